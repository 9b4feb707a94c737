# SPDX-License-Identifier: Apache-2.0
"""Nerfacto that trusts rays of pseudo views as far as their confidence says.

Extends `nerfstudio.models.nerfacto.NerfactoModel` and differs from it in:
  - the colour loss of batches with pseudo rays, see `photometric_loss`; the regularisers compare
    the field with itself, not with an image, and take every ray alike;
  - where those rays end is known in part, see `ray_depth`;
  - appearance and pose correction of a pseudo view lie between those of its two photographs, which
    learn nothing from it (`pseudo_views.per_view`);
  - evaluation over the pixels that a mask leaves, and no LPIPS network before it is needed;
  - checkpoints: strict, and complete (state of the proposal sampler), so that a resumed run goes on
    exactly.

Trained without pseudo rays it is nerfacto.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from nerfstudio.cameras.camera_optimizers import CameraOptimizer
from nerfstudio.cameras.lie_groups import exp_map_SE3, exp_map_SO3xR3
from nerfstudio.field_components.base_field_component import FieldComponent
from nerfstudio.field_components.embedding import Embedding
from nerfstudio.models.nerfacto import NerfactoModel, NerfactoModelConfig
from nerfstudio.utils import colormaps
from torch import Tensor
from torch.nn.functional import embedding

from ps4pro_nerfstudio.messages import InputError
from ps4pro_nerfstudio.metrics import LazyLPIPS, psnr, ssim
from ps4pro_nerfstudio.models.ray_depth import ray_depth_loss
from ps4pro_nerfstudio.pseudo_views.per_view import METADATA_KEY, PseudoSources

# Parts of upstream's checkpoints that hold metrics, not the scene.
_METRIC_PREFIXES = ("lpips.", "psnr.", "ssim.")


@dataclass
class PS4PRONerfactoModelConfig(NerfactoModelConfig):
    """Nerfacto with pseudo views; the inherited fields keep nerfacto's meaning."""

    _target: type = field(default_factory=lambda: PS4PRONerfactoModel)
    lpips_net: str = "alex"
    """Network of the LPIPS metric, alex or vgg."""
    depth_weight: float = 0.03
    """Weight of where rays of pseudo views are known to end, from the correspondences that gave
    their colours; it grows and falls with lambda. 0 leaves it out."""
    depth_tolerance: float = 0.05
    """How far from there density may stand without much loss, as a share of the distance."""

    def __post_init__(self) -> None:
        if not self.depth_weight >= 0.0:
            raise ValueError(f"depth_weight must not be negative, got {self.depth_weight}")
        if not self.depth_tolerance > 0.0:
            raise ValueError(f"depth_tolerance must be positive, got {self.depth_tolerance}")


class PS4PRONerfactoModel(NerfactoModel):
    """See the module's docstring."""

    config: PS4PRONerfactoModelConfig

    # ------------------------------------------------------------------ set-up

    def populate_modules(self) -> None:
        """Build upstream's modules; the tables per view also answer for pseudo views."""
        with _without_lpips():
            super().populate_modules()
        self.lpips = LazyLPIPS(self.config.lpips_net)
        # Of the latest training step; see `errors_of_views`.
        self.view_errors: dict[int, Tensor] = {}
        sources = self.kwargs["metadata"].get(METADATA_KEY)
        if sources is None:
            return
        if self.field.embedding_appearance is not None:
            self.field.embedding_appearance = ViewEmbedding(
                self.field.embedding_appearance, sources
            )
        self.camera_optimizer = ViewCameraOptimizer(
            self.config.camera_optimizer, num_cameras=self.num_train_data, device="cpu"
        )
        self.camera_optimizer.sources = sources

    # ------------------------------------------------------------------ loss and metrics

    def get_loss_dict(self, outputs, batch, metrics_dict=None) -> dict[str, Tensor]:
        """Upstream's losses; with pseudo rays in the batch the colour loss tells them apart."""
        losses = super().get_loss_dict(outputs, batch, metrics_dict)
        if self.training and "indices" in batch:
            target = self.renderer_rgb.blend_background(batch["image"].to(self.device))
            self.view_errors = errors_of_views(
                outputs["rgb"], target, batch["indices"][:, 0], batch.get("confidence")
            )
        if "is_pseudo" in batch:
            prediction, target = self.renderer_rgb.blend_background_for_loss_computation(
                pred_image=outputs["rgb"],
                pred_accumulation=outputs["accumulation"],
                gt_image=batch["image"].to(self.device),
            )
            losses["rgb_loss"] = photometric_loss(
                prediction,
                target,
                batch["is_pseudo"].to(self.device),
                batch["confidence"].to(self.device),
                batch["pseudo_weight"],
            )
            if self.training and self.config.depth_weight > 0.0:
                weight = self.config.depth_weight * batch["pseudo_weight"]
                losses["depth_loss"] = weight * self._depth_loss(outputs, batch)
        return losses

    def _depth_loss(self, outputs: dict[str, Any], batch: dict[str, Any]) -> Tensor:
        """Disagreement of where rays end with where correspondences say that they do."""
        samples = [part.frustums for part in outputs["ray_samples_list"]]
        return ray_depth_loss(
            [weights[..., 0] for weights in outputs["weights_list"]],
            [(part.starts + part.ends)[..., 0] / 2.0 for part in samples],
            [(part.ends - part.starts)[..., 0] for part in samples],
            batch["distance"].to(self.device),
            batch["confidence"].to(self.device),
            self.config.depth_tolerance,
        )

    def get_metrics_dict(self, outputs, batch) -> dict[str, Any]:
        """Upstream's metrics; the PSNR is that of real rays."""
        metrics = super().get_metrics_dict(outputs, batch)
        if "is_pseudo" in batch:
            real = ~batch["is_pseudo"]
            image = self.renderer_rgb.blend_background(batch["image"][real].to(self.device))
            metrics["psnr"] = self.psnr(outputs["rgb"][real.to(self.device)], image)
        return metrics

    @torch.no_grad()
    def get_image_metrics_and_images(self, outputs, batch):
        """Metrics of one evaluation view over its valid pixels, and truth beside render.

        `lpips` is absent when its weights are; its network is `config.lpips_net`, its input [0, 1].
        """
        target = self.renderer_rgb.blend_background(batch["image"].to(self.device))
        prediction = outputs["rgb"]
        valid = batch["mask"][..., 0].bool().to(self.device) if "mask" in batch else None
        metrics = {
            "psnr": float(psnr(prediction, target, valid)),
            "ssim": float(ssim(prediction, target, valid)),
        }
        perceptual = self.lpips(prediction, target, valid)
        if perceptual is not None:
            metrics["lpips"] = float(perceptual)
        accumulation = outputs["accumulation"]
        images = {
            "img": torch.cat([target, prediction], dim=1),
            "accumulation": colormaps.apply_colormap(accumulation),
        }
        for name in ("depth", *(f"prop_depth_{i}" for i in range(len(self.density_fns)))):
            images[name] = colormaps.apply_depth_colormap(outputs[name], accumulation=accumulation)
        return metrics, images

    # ------------------------------------------------------------------ checkpoints

    def get_extra_state(self) -> dict[str, int]:
        """When the proposal networks were last trained, which decides when they are again."""
        sampler = self.proposal_sampler
        return {"step": sampler._step, "steps_since_update": sampler._steps_since_update}

    def set_extra_state(self, state: Any) -> None:
        """Restore `get_extra_state`; checkpoints of plain nerfacto have none."""
        if state is not None:
            self.proposal_sampler._step = state["step"]
            self.proposal_sampler._steps_since_update = state["steps_since_update"]

    def load_state_dict(self, state_dict: Mapping[str, Any], **_):  # type: ignore[override]
        """Load strictly, whatever is asked for: upstream keeps what does not fit at random.

        Raises:
            InputError: parameters are missing, unknown or of another shape.
        """
        state = {k: v for k, v in state_dict.items() if not k.startswith(_METRIC_PREFIXES)}
        state.setdefault("_extra_state", None)
        try:
            return super().load_state_dict(state, strict=True)
        except RuntimeError as error:
            what = " ".join(str(error).split())
            raise InputError(f"checkpoint does not fit the model: {what}") from error


def photometric_loss(
    prediction: Tensor,  # [R, 3]
    target: Tensor,  # [R, 3]
    is_pseudo: Tensor,  # [R] bool
    confidence: Tensor,  # [R] in [0, 1]
    weight: float,  # lambda
) -> Tensor:  # []
    """Squared error of real rays, plus lambda times that of pseudo rays weighted by confidence.

    L = (sum d^2 over real rays + lambda Q sum C d^2 / sum C over the Q pseudo rays) / R, where d^2
    is the mean squared difference of a ray's three colours and R the number of real rays. A real
    ray weighs what it weighs without pseudo rays, and those add, in proportion to their number,
    what steps on whole pseudo views add for splats: with lambda = 1 a pseudo ray of average
    confidence counts as much as a real one.
    """
    error = (prediction - target).square().mean(dim=-1)
    num_pseudo = is_pseudo.sum()
    num_real = len(error) - num_pseudo
    trust = is_pseudo * confidence
    pseudo = num_pseudo * (trust * error).sum() / trust.sum().clamp_min(1e-9)
    return (error[~is_pseudo].sum() + weight * pseudo) / num_real


@torch.no_grad()
def errors_of_views(
    prediction: Tensor,  # [R, 3]
    target: Tensor,  # [R, 3]
    views: Tensor,  # [R] index of the view of each ray
    confidence: Tensor | None = None,  # [R] above 0; None: all 1
) -> dict[int, Tensor]:
    """Mean squared error [] of the rays of each view, weighted by confidence, by its index."""
    error = (prediction - target).square().mean(dim=-1)
    weight = torch.ones_like(error) if confidence is None else confidence.to(error)
    # Counted where the indices are, on the CPU: no GPU is waited for.
    present, place = views.unique(return_inverse=True)
    place = place.to(error.device)
    total, weights = (
        error.new_zeros(len(present)).index_add_(0, place, part)
        for part in (weight * error, weight)
    )
    return dict(zip(present.tolist(), (total / weights).unbind(), strict=True))


class ViewEmbedding(Embedding):
    """An embedding of real views, which it shares, that answers for pseudo views too."""

    def __init__(self, learned: Embedding, sources: PseudoSources) -> None:
        FieldComponent.__init__(self, in_dim=learned.in_dim, out_dim=learned.out_dim)
        self.embedding = learned.embedding
        self.sources = sources

    def forward(self, in_tensor: Tensor) -> Tensor:
        """Vectors [..., D] of views [...], counted from the first real to the last pseudo one."""
        return embedding(in_tensor, self.sources.append_to(self.embedding.weight))


class ViewCameraOptimizer(CameraOptimizer):
    """Pose corrections of real views that answers for pseudo views too."""

    sources: PseudoSources

    def forward(self, indices: Tensor) -> Tensor:
        """Corrections [..., 3, 4] of views [...], counted from the first real to the last pseudo.

        Corrections are small, so that those between two lie on the line between their logarithms.
        """
        if self.config.mode == "off":
            return super().forward(indices)
        exp_map = exp_map_SO3xR3 if self.config.mode == "SO3xR3" else exp_map_SE3
        return exp_map(self.sources.append_to(self.pose_adjustment)[indices])


@contextmanager
def _without_lpips() -> Iterator[None]:
    """Keep upstream from building LPIPS with each model, a download (nerfstudio #2415)."""
    import torchmetrics.image.lpip as module

    name = "LearnedPerceptualImagePatchSimilarity"
    built = getattr(module, name)
    setattr(module, name, lambda **_: None)
    try:
        yield
    finally:
        setattr(module, name, built)
