# SPDX-License-Identifier: Apache-2.0
"""IPSM-Gaussian: splats from few photographs, held by depth, geometry and a diffusion prior.

Adds to `PS4PROSplatfactoModel`, in each step of a real view (arXiv 2412.02225):
  - L_d,seen: its rendered depth agrees with triangulated points, or with a depth network;
  - a camera nearby where nobody stood is rendered, and
      L_geo: it agrees with the photograph warped there through both rendered depths,
      L_d,unseen: its depth agrees with the points that the photograph shows, or with the network,
      L_IPSM: a diffusion prior that is given the warped photograph finds it likely.
Re-implemented from the paper. Without diffusion weights L_IPSM is left out; without a depth network
the points come from the correspondences between photographs, in units of the poses.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.engine.callbacks import TrainingCallback, TrainingCallbackAttributes
from nerfstudio.utils import poses
from nerfstudio.viewer.viewer_elements import ViewerSlider
from torch import Tensor

from ps4pro_nerfstudio.diffusion.catalogue import licences
from ps4pro_nerfstudio.diffusion.inpainting_score import InpaintingScoreConfig
from ps4pro_nerfstudio.diffusion.monocular_depth import MonocularDepthConfig, tells_depth
from ps4pro_nerfstudio.diffusion.protocol import DepthPrior, ScorePrior
from ps4pro_nerfstudio.diffusion.weights import OTHER_DEPTH, SMALLER, open_score_prior
from ps4pro_nerfstudio.geometry.inverse_warp import (
    Agreement,
    Interpolation,
    Warp,
    inverse_warp,
    visible,
)
from ps4pro_nerfstudio.messages import InputError, warn
from ps4pro_nerfstudio.metrics.average_error import average_error
from ps4pro_nerfstudio.models.ipsm_schedule import (
    IPSMSchedule,
    IPSMScheduleConfig,
    check_weight,
)
from ps4pro_nerfstudio.models.ipsm_strategy import IPSMStrategy
from ps4pro_nerfstudio.models.splatfacto import (
    PS4PROSplatfactoModel,
    PS4PROSplatfactoModelConfig,
    world_to_camera,
)
from ps4pro_nerfstudio.pseudo_views.schedule import sparsity
from ps4pro_nerfstudio.splatting.depth_losses import (
    DepthForm,
    geometry_consistency_loss,
    inverse_depth_loss,
    pearson,
    triangulated_depth_loss,
)
from ps4pro_nerfstudio.splatting.losses import LossWeights, l1_ssim_loss

_OPAQUE = 0.5
"""Accumulation from which on a pixel has a depth to warp with."""
_GREY = 0.5
"""What the depth network sees behind a photograph with alpha."""
_EPS = 1e-6
_CLOTH_ROWS = 50
_MANY_BLIND = 50
"""So many unseen views in a row that show nothing are no accident."""
_DROP_VIEWS = (3, 9)
"""Numbers of photographs up to which dropout is full, and from which on there is none."""
_WEIGHTS = (
    "seen_depth_weight",
    "triangulated_depth_weight",
    "unseen_depth_weight",
    "geo_weight",
    "score_weight",
)


@dataclass
class IPSMModelConfig(PS4PROSplatfactoModelConfig):
    """IPSM-Gaussian: weights, thresholds and schedule of its terms are the paper's for LLFF.

    Triangulated depth, which the paper has not, and how splats are rendered and densified are what
    measured better here; docs/options.md lists the differences.
    """

    _target: type = field(default_factory=lambda: IPSMModel)
    diffusion: str = "auto"
    """Prior of unseen views: off, stable-diffusion, a folder with its weights, or auto: weights
    that are on this machine already, else off. `ps4pro fetch-weights ipsm` downloads them. Or
    module:function, called with its config and device, for any other `ScorePrior`."""
    depth: str = "auto"
    """Depth of the photographs: triangulated, depth-anything, dpt-hybrid, a folder with weights, or
    auto: the network's where its weights are on this machine already, else triangulated."""
    ssim_lambda: float = 0.2
    """lambda_ssim: share of 1 - SSIM in the photometric term; the rest, lambda_1, is L1's."""
    inverse_offset: Literal["auto", "unit_free"] | float = "auto"
    """c of 1 / (m + c), a network's inverse depth m as depth: unit_free, .1 after m is brought to
    [0, 1]; a number, in the units of the network; or auto: 200 for dpt-hybrid, else unit_free."""
    depth_form: DepthForm = "metric"
    """How triangulated depth is compared: pearson as the paper does with a network's, metric, which
    fixes the scale too, or both."""
    seen_depth_weight: float = 0.05
    """lambda_d,seen: weight of the network's depth of photos (lambda_depth eta_d of the paper)."""
    triangulated_depth_weight: float = 0.25
    """The same for triangulated depth, which is in scene units and more reliable."""
    unseen_depth_weight: float = 0.5
    """lambda_d,pseudo: weight of the depth of unseen views (the paper's lambda_depth)."""
    geo_weight: float = 2.0
    """lambda_geo: weight of the photograph warped into the unseen view."""
    score_weight: float = 1.0
    """Factor on L_IPSM, whose own weights w_1 and w_2 are those of --pipeline.model.score;
    omega(t) is alpha_bar_t, as released."""
    soft_threshold: float = 0.3
    """tau_soft: relative disagreement of depths up to which the prior is given the photograph."""
    strict_threshold: float = 0.1
    """tau_strict: the same for L_geo, no more than tau_soft."""
    mask_mode: Agreement = "reproject"
    """How depths are compared: reproject in the camera of the photograph; minmax as released."""
    warp_depth: Literal["normalised", "blended"] = "normalised"
    """Depth to warp with: D / alpha where alpha > 0.5, or D as released, biased to the camera."""
    warp_interp: Interpolation = "nearest"
    """How the photograph is sampled."""
    geo_norm: Literal["all", "mask"] = "all"
    """L_geo is the mean over all pixels, as released, or those that the photograph explains."""
    unseen_depth_through_image: bool = True
    """Let the gradient of the network's depth of an unseen view reach its colours too."""
    drop_rate: float = 0.2
    """Share of the Gaussians left out of each training render, growing from none to this until the
    end phase, which has them all; the others count for them (DropGaussian, arXiv 2504.00773). In
    full up to 3 photographs, less for more, none from 9 on. Not in IPSM."""
    densification: Literal["splatfacto", "released"] = "splatfacto"
    """splatfacto's, with its thresholds, but without resets and without removal of large Gaussians,
    which measured better; or as released with IPSM: plain gradients above 5e-4, opacities below
    .005 pruned, nothing split by its size in the image, until the end, with resets. That takes the
    place of densify-grad-thresh, use-absgrad, cull-alpha-thresh, stop-screen-size-at,
    stop-split-at, densify-until and dense-start; warmup-length, refine-every, densify-size-thresh,
    unpool-metric, fading, drop-rate and max-angular-scale stay as they are."""
    background_prior: bool = False
    """For objects before black or white cloth (DTU): colours count as black where the photograph
    shows the cloth."""
    reset_opacity: float = 0.01
    """Opacity that a reset leaves at most; splatfacto's densification has none."""
    unpool_metric: Literal["paper", "metric", "off"] = "paper"
    """Unpooling compares a squared distance with a length, as released, or a length, or is off."""
    schedule: IPSMScheduleConfig = field(default_factory=IPSMScheduleConfig)
    """When each part takes part."""
    score: InpaintingScoreConfig = field(default_factory=InpaintingScoreConfig)
    """The diffusion prior."""
    depth_network: MonocularDepthConfig = field(default_factory=MonocularDepthConfig)
    """The depth network."""
    output_depth_during_training: bool = True
    """Depth is part of the loss."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 <= self.drop_rate < 1.0:
            raise ValueError(f"drop_rate must lie in [0, 1), got {self.drop_rate}")
        if self.num_downscales != 0:
            raise ValueError(
                "num_downscales must be 0: depths and warped photographs are of full resolution, "
                f"got {self.num_downscales}"
            )
        if not self.output_depth_during_training:
            raise ValueError("output_depth_during_training must be True: depth is part of the loss")
        for name in _WEIGHTS:
            check_weight(name, getattr(self, name))
        if not 0.0 <= self.ssim_lambda <= 1.0:
            raise ValueError(f"ssim_lambda must lie in [0, 1], got {self.ssim_lambda}")
        if not isinstance(self.inverse_offset, str):
            check_weight("inverse_offset", self.inverse_offset)
        if not 0.0 < self.reset_opacity < 1.0:
            raise ValueError(f"reset_opacity must lie in (0, 1), got {self.reset_opacity}")
        if not 0.0 < self.strict_threshold <= self.soft_threshold < math.inf:
            raise ValueError(
                "strict_threshold must be positive and at most soft_threshold: L_geo trusts no "
                f"pixel that the prior is not given, got {self.strict_threshold} and "
                f"{self.soft_threshold}"
            )


class IPSMModel(PS4PROSplatfactoModel):
    """See the module's docstring."""

    config: IPSMModelConfig

    # ------------------------------------------------------------------ set-up

    def populate_modules(self) -> None:
        """Build the splats; priors are opened by a training only."""
        super().populate_modules()
        config = self.config
        self.schedule = IPSMSchedule(config.schedule)
        # Not modules, hence in no checkpoint.
        self._priors: dict[str, Any] = {}
        self._inverse_depths: dict[int, Tensor | None] = {}
        self._warned_of_depth = False
        self._num_blind = 0
        self._warned_of_blind = False
        self._unseen_pictures: dict[str, Tensor] = {}
        # They act on a training alone, which enables them.
        self.score_weight_slider = _slider(
            "× L_IPSM",
            config.score_weight,
            (0.0, max(4.0, 2 * config.score_weight)),
            0.05,
            "Factor on the score term; its weights w_1 and w_2 (the paper's λ_IPSM) stay",
        )
        self.guidance_slider = _slider(
            "CFG", config.score.guidance, (1.0, 100.0), 0.5, "Guidance g of both denoisers"
        )
        self.threshold_slider = _slider(
            "mask threshold τ_strict",
            config.strict_threshold,
            (0.0, config.soft_threshold),
            0.01,
            "Disagreement of depths up to which L_geo trusts the warped photograph; at most "
            "τ_soft, that of the score term, which stays",
        )

    @property
    def score_prior(self) -> ScorePrior | None:
        """The diffusion prior of this training, if there is one."""
        return self._priors.get("score")

    @property
    def depth_prior(self) -> DepthPrior | None:
        """The depth network of this training, if there is one."""
        return self._priors.get("depth")

    def provenance(self) -> dict[str, Any]:
        """What judged this training, for the record: networks, their licences, and the prompt."""
        networks = {"diffusion": self.score_prior, "depth": self.depth_prior}
        record: dict[str, Any] = {
            role: None if prior is None else {"name": prior.name, "licences": licences(prior.name)}
            for role, prior in networks.items()
        }
        if record["diffusion"] is not None:
            record["diffusion"]["prompt"] = self.config.score.prompt
        return record

    def _make_strategy(self) -> IPSMStrategy:
        """Gsplat's strategy with unpooling, or with all that was released with IPSM."""
        config = self.config
        released = config.densification == "released"
        return IPSMStrategy(
            prune_opa=0.005 if released else config.cull_alpha_thresh,
            grow_grad2d=0.0005 if released else self._densify_grad_thresh(),
            grow_scale3d=config.densify_size_thresh,
            grow_scale2d=config.split_screen_size,
            refine_scale2d_stop_iter=0 if released else config.stop_screen_size_at,
            refine_start_iter=config.warmup_length,
            refine_stop_iter=config.stop_split_at,
            refine_every=config.refine_every,
            absgrad=config.use_absgrad and not released,
            revised_opacity=False,
            verbose=False,
            resets=released,
            reset_opacity=config.reset_opacity,
            unpool_metric=config.unpool_metric,
        )

    def get_training_callbacks(
        self, training_callback_attributes: TrainingCallbackAttributes
    ) -> list[TrainingCallback]:
        """Fit the schedule to the run, and open the priors."""
        callbacks = super().get_training_callbacks(training_callback_attributes)
        run_length = getattr(training_callback_attributes.trainer, "run_length", None)
        if run_length is not None:
            self.schedule = IPSMSchedule(self.config.schedule, run_length)
        strategy = self.strategy
        assert isinstance(strategy, IPSMStrategy)
        strategy.schedule = self.schedule
        if self.config.densification == "released" and run_length is not None:
            strategy.refine_stop_iter = run_length
        assert self.plan is not None
        self.plan = replace(
            self.plan,
            stop_split_at=strategy.refine_stop_iter,
            densify_grad_thresh=strategy.grow_grad2d,
            drop_rate=self._largest_drop_rate(),
        )
        pipeline = training_callback_attributes.pipeline
        config = self.config
        manager: Any = None if pipeline is None else pipeline.datamanager
        if manager is not None:
            strategy.extent = capture_extent(manager.train_dataset.cameras)
        self._priors = {
            "score": open_score_prior(
                config.diffusion,
                config.score,
                self.device,
                None if manager is None else lambda: manager.photograph(0),
            ),
            # The datamanager's own: a network is in memory once.
            "depth": getattr(manager, "depth_prior", None),
        }
        for slider in (self.score_weight_slider, self.guidance_slider):
            _set_enabled(slider, self.score_prior is not None)
        _set_enabled(self.threshold_slider, config.geo_weight > 0.0)
        return callbacks

    def _opacities(self, params: Mapping[str, Tensor]) -> Tensor:
        """Opacities [N]; in training some are zero, so that no Gaussian hides behind others."""
        opacities = super()._opacities(params)
        rate = self.schedule.drop_rate(self.step, self._largest_drop_rate())
        if not self.training or rate <= 0.0:
            return opacities
        kept = torch.rand_like(opacities) >= rate
        scaled = opacities / (1.0 - rate)
        # What is cut off keeps its gradient: a Gaussian that is all but opaque can become fainter.
        scaled = scaled - (scaled - 1.0).clamp_min(0.0).detach()
        return torch.where(kept, scaled, 0.0)

    def _largest_drop_rate(self) -> float:
        return self.config.drop_rate * sparsity(self.num_train_data, *_DROP_VIEWS)

    # ------------------------------------------------------------------ losses

    def get_loss_dict(self, outputs, batch, metrics_dict=None) -> dict[str, Tensor]:
        """The photometric loss; on a real view those of depth and of an unseen view as well."""
        losses = super().get_loss_dict(outputs, batch, metrics_dict)
        if not self.training or "pseudo_weight" in batch:
            return losses
        config, step = self.config, self.step
        weight = (
            config.triangulated_depth_weight
            if self.depth_prior is None
            else config.seen_depth_weight
        )
        seen_weight = self.schedule.seen_depth_weight(step, weight)
        if seen_weight > 0.0:
            _add(losses, "seen_depth", seen_weight, self._seen_depth_loss(outputs, batch))
        unseen = batch.get("unseen")
        if unseen is not None and self.schedule.has_unseen_view(step):
            losses.update(self._unseen_losses(outputs, batch, unseen))
        return losses

    def _photometric_loss(
        self, prediction: Tensor, target: Tensor, weights: LossWeights | None
    ) -> Tensor:
        """With the background prior the L1 part, not the SSIM part, wants the cloth to be black."""
        if not self.config.background_prior:
            return super()._photometric_loss(prediction, target, weights)
        black = torch.where(cloth(target)[..., None], 0.0, target)
        share = self.config.ssim_lambda
        absolute = l1_ssim_loss(prediction, black, 0.0, weights)
        return (1 - share) * absolute + share * l1_ssim_loss(prediction, target, 1.0, weights)

    def _seen_depth_loss(self, outputs: dict[str, Any], batch: dict[str, Any]) -> Tensor | None:
        """L_d,seen of the view of this step."""
        depth = outputs["depth"][..., 0]
        if self.depth_prior is None:
            known = batch.get("seen_depth")
            if known is None:
                return None
            return triangulated_depth_loss(depth, known.pixels, known.depth, self.config.depth_form)
        index = int(batch["image_idx"])
        if index not in self._inverse_depths:
            # Not over the background of the step, which is another one in a resumed run.
            grey = {"background": torch.full((3,), _GREY, device=self.device)}
            photograph = self._ground_truth(grey, batch).permute(2, 0, 1)
            with torch.no_grad():
                found = self.depth_prior.inverse_depth(photograph)
            self._inverse_depths[index] = found if tells_depth(found) else None
            self._warn_of_photographs()
        inverse = self._inverse_depths[index]
        if inverse is None:
            return None
        blended = depth * outputs["accumulation"][..., 0]
        valid = self._valid(batch, *depth.shape)
        if valid is not None:
            inverse, blended = inverse[valid], blended[valid]
        offset = self.config.inverse_offset
        if isinstance(offset, str):
            offset = self.depth_prior.inverse_offset if offset == "auto" else None
        return inverse_depth_loss(inverse, blended, offset)

    def _warn_of_photographs(self) -> None:
        """Say in how many photographs the network tells no depth, when it has seen all of them."""
        found = self._inverse_depths.values()
        without = sum(inverse is None for inverse in found)
        if without and len(found) == self.num_train_data:
            self._warn_of_depth(f"{without} of {len(found)} photographs")

    def _warn_of_depth(self, pictures: str) -> None:
        """Say once that a depth network is of no use for some pictures."""
        prior = self.depth_prior
        assert prior is not None
        if self._warned_of_depth:
            return
        self._warned_of_depth = True
        warn(
            f"depth network {prior.name} gives one depth for the whole of {pictures}, or values "
            f"that are not finite: its depth terms are left out there; {OTHER_DEPTH}"
        )

    def _warn_of_blind(self, is_blind: bool) -> None:
        """Say when so many unseen views in a row have shown nothing of their photographs."""
        self._num_blind = self._num_blind + 1 if is_blind else 0
        if self._num_blind == _MANY_BLIND and not self._warned_of_blind:
            self._warned_of_blind = True
            warn(
                f"{_MANY_BLIND} unseen views in a row show nothing of the photographs beside them "
                "and are of little use; move them less (--pipeline.datamanager.unseen.sigma-max, "
                "gap-share) or in another way (--pipeline.datamanager.unseen.frame)"
            )

    def _unseen_losses(
        self, outputs: dict[str, Any], batch: dict[str, Any], unseen: Any
    ) -> dict[str, Tensor]:
        """L_geo, L_d,unseen and L_IPSM of a camera near the one of this step."""
        config = self.config
        colors, depth, accumulation = self.render_unseen(self._corrected(unseen))
        if config.use_bilateral_grid:
            # As the photograph that it is compared with was exposed.
            picture = colors.permute(1, 2, 0)[None]
            index = int(batch["image_idx"])
            graded = self._apply_bilateral_grid(picture, index, *depth.shape)
            colors = graded[0].permute(2, 0, 1)
        photograph = self._ground_truth(outputs, batch).permute(2, 0, 1)
        source_depth = self._depth_to_warp(
            outputs["depth"][..., 0].detach(), outputs["accumulation"][..., 0].detach()
        )
        valid = self._valid(batch, *source_depth.shape)
        if valid is not None:
            source_depth = torch.where(valid, source_depth, 0.0)
        unseen_depth = self._depth_to_warp(depth.detach(), accumulation.detach())
        warp = self._warp(photograph, source_depth, unseen_depth, unseen)
        strict = visible(warp, unseen_depth, self.threshold_slider.value, config.mask_mode)
        soft = visible(warp, unseen_depth, config.soft_threshold, config.mask_mode)
        is_blind = not bool(soft.any())
        if bool((source_depth > 0.0).any()):  # Else it is not the unseen camera's fault.
            self._warn_of_blind(is_blind)

        # Applied each k-th step, k times as strongly.
        often = float(config.schedule.every_k)
        ramp = often * self.schedule.ramp(self.step)
        losses: dict[str, Tensor] = {}
        if config.geo_weight > 0.0:
            target = warp.colors
            if config.background_prior:
                # For this term alone: the prior is given the photograph as it is.
                black = torch.where(cloth(photograph.permute(1, 2, 0)), 0.0, photograph)
                target = self._warp(black, source_depth, unseen_depth, unseen).colors
            geo = geometry_consistency_loss(colors, target, strict, config.geo_norm)
            _add(losses, "geo", often * config.geo_weight, geo)
        if config.unseen_depth_weight > 0.0:
            loss = self._unseen_depth_loss(colors, depth, accumulation, batch, unseen)
            _add(losses, "unseen_depth", ramp * config.unseen_depth_weight, loss)
        score_weight = self.score_weight_slider.value
        if self.score_prior is not None and score_weight > 0.0 and not is_blind:
            loss = self._score_loss(colors, warp.colors, soft)
            _add(losses, "score", ramp * score_weight, loss)
        self._unseen_pictures = {
            "unseen_rgb": colors.detach().clamp(0.0, 1.0).permute(1, 2, 0),
            "unseen_warped": warp.colors.permute(1, 2, 0),
            "unseen_mask": (soft.float() + strict.float())[..., None] / 2.0,
            "unseen_depth": unseen_depth[..., None],
        }
        return losses

    def render_unseen(self, camera: Cameras) -> tuple[Tensor, Tensor, Tensor]:
        """Colours [3, H, W], normalised depth [H, W] and accumulation [H, W] of a free camera.

        Neither densification nor anything else of the training step hears of it.
        """
        motion, intrinsics = self._matrices(camera)
        render, alpha, _ = self._rasterize(
            dict(self.gauss_params.items()),
            motion[None],
            intrinsics[None],
            (int(camera.width.item()), int(camera.height.item())),
            "RGB+ED",
        )
        background = self._get_background_color()
        # Not clamped: a colour beyond 1 would get no gradient.
        colors = (render[0, ..., :3] + (1 - alpha[0]) * background).permute(2, 0, 1)
        return colors, render[0, ..., 3], alpha[0, ..., 0]

    def _corrected(self, unseen: Any) -> Cameras:
        """The unseen camera, moved as the camera optimizer moves the seen one beside it."""
        if self.camera_optimizer.config.mode == "off":
            return unseen.camera
        given, beside = (c.camera_to_worlds.to(self.device) for c in (unseen.source, unseen.camera))
        moved = self.camera_optimizer.apply_to_camera(unseen.source).detach().to(self.device)
        camera = copy(unseen.camera)
        camera.camera_to_worlds = poses.multiply(
            moved, poses.multiply(poses.inverse(given), beside)
        )
        return camera

    def _matrices(self, camera: Cameras) -> tuple[Tensor, Tensor]:
        """World to camera [4, 4], OpenCV axes, and intrinsics [3, 3] of a batch of one."""
        motion = world_to_camera(camera.camera_to_worlds.to(self.device))[0]
        return motion, camera.get_intrinsics_matrices().to(self.device)[0]

    def _warp(
        self, photograph: Tensor, source_depth: Tensor, unseen_depth: Tensor, unseen: Any
    ) -> Warp:
        """A photograph [3, H, W] of the seen camera brought into the unseen one."""
        seen_motion, seen_intrinsics = self._matrices(unseen.source)
        unseen_motion, unseen_intrinsics = self._matrices(unseen.camera)
        return inverse_warp(
            photograph,
            source_depth,
            unseen_depth,
            seen_motion,
            unseen_motion,
            seen_intrinsics,
            unseen_intrinsics,
            interpolation=self.config.warp_interp,
        )

    def _depth_to_warp(self, depth: Tensor, accumulation: Tensor) -> Tensor:
        """Depth [H, W] to warp with, 0 where there is none."""
        if self.config.warp_depth == "blended":
            return depth * accumulation
        return torch.where(accumulation > _OPAQUE, depth, 0.0)

    def _unseen_depth_loss(
        self,
        colors: Tensor,
        depth: Tensor,
        accumulation: Tensor,
        batch: dict[str, Any],
        unseen: Any,
    ) -> Tensor | None:
        """L_d,pseudo, against the network's depth of the render or the points of the source."""
        if self.depth_prior is not None:
            image = colors if self.config.unseen_depth_through_image else colors.detach()
            inverse = self.depth_prior.inverse_depth(image.clamp(0.0, 1.0))
            if not tells_depth(inverse):
                if bool((accumulation > _OPAQUE).any()):  # Else there is nothing to tell.
                    self._warn_of_depth("a render")
                return None
            correlation = pearson(depth * accumulation, -inverse)
            return None if correlation is None else 1.0 - correlation
        known = batch.get("seen_depth")
        if known is None or len(known.depth) == 0:
            return None
        # The points are in the frame of the poses as given, and so is this camera. Points that
        # others hide from it stay: where they were left out, stray points hid good ones.
        pixels, known_depth = project_points(known.xyz, unseen.camera)
        size = pixels.new_tensor([depth.shape[1], depth.shape[0]])
        inside = (known_depth > _EPS) & ((pixels >= 0) & (pixels < size)).all(dim=-1)
        return triangulated_depth_loss(
            depth, pixels[inside], known_depth[inside], self.config.depth_form
        )

    def _score_loss(self, colors: Tensor, warped: Tensor, soft: Tensor) -> Tensor:
        """L_IPSM as its value, with its gradient."""
        prior = self.score_prior
        assert prior is not None
        prior.config.guidance = float(self.guidance_slider.value)
        generator = torch.Generator(self.device)
        generator.manual_seed(int(torch.randint(1 << 62, ())))
        try:
            score = prior.score(colors.detach(), warped, soft, generator)
        except torch.cuda.OutOfMemoryError as error:
            raise InputError(
                f"the score prior does not fit into the GPU's memory; {SMALLER}"
            ) from error
        product = (score.gradient * colors).sum()
        return score.value + product - product.detach()

    def _image_metrics(
        self, prediction: Tensor, target: Tensor, valid: Tensor | None
    ) -> dict[str, float]:
        """PSNR, SSIM and LPIPS, and the one number that papers on few views make of them."""
        metrics = super()._image_metrics(prediction, target, valid)
        if "lpips" in metrics:
            metrics["avge"] = float(
                average_error(metrics["psnr"], metrics["ssim"], metrics["lpips"])
            )
        return metrics

    # ------------------------------------------------------------------ viewer

    def get_outputs(self, camera: Cameras) -> dict[str, Any]:
        """Render one camera; while a training runs, with the latest unseen view beside it."""
        outputs = super().get_outputs(camera)
        if not self.training:
            size = outputs["rgb"].shape[:2]
            for name, picture in self._unseen_pictures.items():
                outputs[name] = _resized(picture, size)
        return outputs


def cloth(photograph: Tensor) -> Tensor:
    """Where a photograph [H, W, 3] in [0, 1] shows black or white cloth, [H, W] bool.

    Black: the brightest channel below 30 of 255, at the pixel and the (up to) 49 above it, which
    keeps dark parts of an object. White: a mean above 0.99.
    """
    dark = (photograph.amax(dim=-1) < 30 / 255)[None, None].float()
    above = torch.nn.functional.pad(dark, (0, 0, _CLOTH_ROWS - 1, 0), value=1.0)
    # The smallest of each window that ends at the pixel.
    all_dark = -torch.nn.functional.max_pool2d(-above, (_CLOTH_ROWS, 1), stride=1)
    return (all_dark[0, 0] > 0.5) | (photograph.mean(dim=-1) > 0.99)


def capture_extent(cameras: Cameras) -> float:
    """1.1 times the largest distance of a camera from their mean, in units of the poses."""
    centres = cameras.camera_to_worlds[..., 3]
    return 1.1 * float((centres - centres.mean(dim=0)).norm(dim=-1).max())


def project_points(xyz: Tensor, camera: Cameras) -> tuple[Tensor, Tensor]:
    """Pixels [P, 2] and depths [P] of world points [P, 3] in a camera in a batch of one.

    Pixels of points at or behind the camera mean nothing.
    """
    motion = world_to_camera(camera.camera_to_worlds.to(xyz.device))[0]
    points = xyz @ motion[:3, :3].T + motion[:3, 3]
    depth = points[:, 2]
    image = points @ camera.get_intrinsics_matrices().to(xyz.device)[0].T
    return image[:, :2] / depth.clamp_min(_EPS)[:, None], depth


def _slider(
    name: str, value: float, bounds: tuple[float, float], step: float, hint: str
) -> ViewerSlider:
    """A disabled slider whose range has room for the value it starts from."""
    low, high = min(bounds[0], value), max(bounds[1], value)
    return ViewerSlider(name, value, low, high, step, disabled=True, hint=hint)


def _set_enabled(slider: ViewerSlider, enabled: bool) -> None:
    """Also where the viewer, which is there before the priors are, shows the slider already."""
    slider.disabled = not enabled
    if slider.gui_handle is not None:
        slider.set_disabled(not enabled)


def _add(losses: dict[str, Tensor], name: str, weight: float, loss: Tensor | None) -> None:
    if loss is not None and weight > 0.0:
        losses[f"{name}_loss"] = weight * loss


def _resized(picture: Tensor, size: torch.Size) -> Tensor:
    """A picture [H, W, C] in another size."""
    if picture.shape[:2] == size:
        return picture
    resized = torch.nn.functional.interpolate(
        picture.permute(2, 0, 1)[None], size=tuple(size), mode="nearest"
    )
    return resized[0].permute(1, 2, 0)
