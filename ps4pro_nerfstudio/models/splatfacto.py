# SPDX-License-Identifier: Apache-2.0
"""Splatfacto that trains on any machine and trusts pseudo views as far as their confidence says.

Extends `nerfstudio.models.splatfacto.SplatfactoModel` (viewer, ns-render and ns-export treat it as
one) and differs from it in:
  - rendering through `ps4pro_nerfstudio.splatting.rasterization`, on the device of the parameters;
  - the loss: pixels that are not valid enter neither L1 nor SSIM, and a pseudo view counts with its
    confidence and the weight lambda of the schedule;
  - densification looks at real views only; from many points on it is early and short;
  - no Gaussian of a few photographs is large beside its distance from their cameras;
  - opacities fade, the more the fewer photographs there are, until the last part of the run;
  - what no photograph shows has the colour of its direction in the photographs;
  - checkpoints: complete (strategy state included), strict, and resumed in place.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, cast

import torch
from gsplat.strategy import DefaultStrategy
from gsplat.strategy.ops import remove
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.engine.callbacks import (
    TrainingCallback,
    TrainingCallbackAttributes,
    TrainingCallbackLocation,
)
from nerfstudio.model_components.lib_bilagrid import (
    BilateralGrid,
    color_correct,
    total_variation_loss,
)
from nerfstudio.models.splatfacto import (
    RGB2SH,
    SplatfactoModel,
    SplatfactoModelConfig,
    num_sh_bases,
    random_quat_tensor,
)
from nerfstudio.utils.colors import get_color
from torch import Tensor
from torch.nn import Parameter, ParameterDict

from ps4pro_nerfstudio.messages import InputError, say, warn
from ps4pro_nerfstudio.metrics import LazyLPIPS, psnr, ssim
from ps4pro_nerfstudio.models.splat_plan import SplatPlan, densify_grad_thresh, plan_splat
from ps4pro_nerfstudio.splatting import rasterization
from ps4pro_nerfstudio.splatting.background import (
    TRANSPARENT_COLOR,
    background_colors,
    fit_to_photographs,
    pixel_directions,
)
from ps4pro_nerfstudio.splatting.bounds import SMALLEST_SCALE, bound_scales_, fade_
from ps4pro_nerfstudio.splatting.free_space import FreeSpace, reaches_into, stands_before
from ps4pro_nerfstudio.splatting.losses import LossWeights, l1_ssim_loss, loss_weights

# Steps between two looks at the space that is known to be empty, and at the size of Gaussians.
_CLEAR_EVERY = 20
# Parts of older checkpoints that hold metrics, not the scene.
_METRIC_PREFIXES = ("lpips.", "psnr.", "ssim.")


@dataclass
class DenseStartConfig:
    """Densification of a sparse capture that starts from many points: early, thorough and short.

    Dense points stand where the photographs agree already. What a few photographs leave open after
    that is mostly noise, and Gaussians added late learn it by heart.
    """

    enabled: bool = True
    """Off: splatfacto's densification, however many points and photographs there are."""
    num_points: int = 10_000
    """Initial points from which this holds; a scene that starts from fewer has to grow first."""
    stop_split_at: int = 1000
    """Step after which no Gaussians are added, with 12 photographs or fewer; later the more there
    are, and as in splatfacto from 40 on (densify_until bounds it as well). The length of the run
    does not count: longer runs have more time to learn noise."""
    grad_thresh: float = 0.0004
    """Gradient in the image above which a Gaussian is doubled or split, where densify_grad_thresh
    is higher: the detail that time would have brought comes from a lower threshold."""

    def __post_init__(self) -> None:
        if self.stop_split_at < 0:
            raise ValueError(
                f"dense_start.stop_split_at must not be negative, got {self.stop_split_at}"
            )
        if not self.grad_thresh > 0.0:
            raise ValueError(f"dense_start.grad_thresh must be positive, got {self.grad_thresh}")


@dataclass
class PS4PROSplatfactoModelConfig(SplatfactoModelConfig):
    """Splatfacto with pseudo views; the inherited fields keep splatfacto's meaning."""

    _target: type = field(default_factory=lambda: PS4PROSplatfactoModel)
    num_downscales: int = 0
    """Training starts at 1/2^d resolution; 0 because sparse captures are small and runs short."""
    densify_until: float = 0.5
    """Fraction of the run after which Gaussians are no longer added, and removed only from space
    that is known to be empty (stop_split_at bounds it as well)."""
    dense_start: DenseStartConfig = field(default_factory=DenseStartConfig)
    """Densification where dense points are there from the start."""
    max_angular_scale: float = 0.2
    """Largest standard deviation of a Gaussian, as a share of its distance from the nearest
    photograph's camera, with fewer than 40 photographs. A few of them see a sheet that is many
    times wider than the scene at their rim only; the view beside them sees nothing else. 0 leaves
    it out."""
    unseen_color: Literal["photographs", "background"] = "photographs"
    """What evaluation and ns-render show where nothing stands: with fewer than 40 opaque
    photographs and a random background the colour that they have in that direction on average, or
    one colour as splatfacto. The viewer shows its own."""
    fading: float = 0.002
    """Share of its opacity that each Gaussian loses after a step. What several photographs show
    grows back at once; haze and needles, which few of them hold in place, do not (opacity decay of
    arXiv 2410.18822, which has .005). In full up to 12 photographs, less for more, none from 40 on;
    0 is plain splatfacto."""
    fading_until: float = 0.9
    """Part of the run after which opacities fade no longer: they settle where the photographs want
    them, which gives back half of the sharpness that fading costs."""
    lpips_net: str = "alex"
    """Network of the LPIPS metric, alex or vgg."""
    metrics_on_white: bool = False
    """SSIM and LPIPS see what a mask leaves out as white in both pictures, as published tables of
    DTU do; otherwise neither sees it. PSNR is that of the pixels inside the mask either way."""
    allow_partial_load: bool = False
    """Load a checkpoint whose parameters do not match; what is missing keeps its initial value."""

    def __post_init__(self) -> None:
        if not self.max_angular_scale >= 0.0:
            raise ValueError(
                f"max_angular_scale must not be negative, got {self.max_angular_scale}"
            )
        if not 0.0 <= self.fading < 1.0:
            raise ValueError(f"fading must lie in [0, 1), got {self.fading}")
        if not 0.0 <= self.fading_until <= 1.0:
            raise ValueError(f"fading_until must lie in [0, 1], got {self.fading_until}")

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Read the config.yml of an earlier version: what it does not name has its default."""
        self.__dict__.update(vars(type(self)()) | state)


class PS4PROSplatfactoModel(SplatfactoModel):
    """See the module's docstring."""

    config: PS4PROSplatfactoModelConfig

    # ------------------------------------------------------------------ set-up

    def populate_modules(self) -> None:
        """Build Gaussians, camera optimizer, strategy and metrics, all on the CPU at first.

        Replaces the upstream method, which builds LPIPS (a download) and moves the colours to CUDA.
        """
        self.gauss_params = self._initial_gaussians()
        self.camera_optimizer = self.config.camera_optimizer.setup(
            num_cameras=self.num_train_data, device="cpu"
        )
        self.lpips = LazyLPIPS(self.config.lpips_net)
        self.step = 0
        self.crop_box = None
        random_background = self.config.background_color == "random"
        # Viser's own background, so that renders look the same beside the viewer.
        self.background_color = (
            torch.tensor([0.1490, 0.1647, 0.2157])
            if random_background
            else get_color(self.config.background_color)
        )
        if self.config.use_bilateral_grid:
            grid_x, grid_y, grid_w = self.config.grid_shape
            self.bil_grids = BilateralGrid(
                num=self.num_train_data, grid_X=grid_x, grid_Y=grid_y, grid_W=grid_w
            )
        # Behind transparent photographs in evaluation, [3]; None: the background's.
        self.transparent_color = self.kwargs.get("metadata", {}).get(TRANSPARENT_COLOR)
        # Colour of what no photograph shows, [4, 3]; None: the background's.
        self.background_fit: Tensor | None = None
        # Decided when a training begins.
        self.plan: SplatPlan | None = None
        self._is_for_viewer = False
        self.strategy = self._make_strategy()
        self.strategy_state = self.strategy.initialize_state(scene_scale=1.0)

    def _initial_gaussians(self) -> ParameterDict:
        config = self.config
        if self.seed_points is not None and not config.random_init:
            means = self.seed_points[0].detach().float().cpu().clone()
            rgb = self.seed_points[1].detach().float().cpu() / 255
        else:
            means = (torch.rand(config.num_random, 3) - 0.5) * config.random_scale
            rgb = torch.zeros(0, 3)
        num_points = self._num_initial = len(means)
        if len(rgb) != num_points:  # a point cloud may come without colours
            rgb = torch.rand(num_points, 3)
        neighbours = min(3, num_points - 1)
        distances, _ = self.k_nearest_sklearn(means, neighbours)
        mean_distance = torch.from_numpy(distances).mean(-1, keepdim=True)
        scales = mean_distance.clamp_min(SMALLEST_SCALE).log().repeat(1, 3)
        # Without harmonics a colour is the sigmoid of its parameter.
        features_dc = RGB2SH(rgb) if config.sh_degree > 0 else torch.logit(rgb, eps=1e-10)
        features_rest = torch.zeros(num_points, num_sh_bases(config.sh_degree) - 1, 3)
        opacities = torch.logit(0.1 * torch.ones(num_points, 1))
        return ParameterDict(
            {
                "means": Parameter(means),
                "scales": Parameter(scales),
                "quats": Parameter(random_quat_tensor(num_points)),
                "features_dc": Parameter(features_dc),
                "features_rest": Parameter(features_rest),
                "opacities": Parameter(opacities),
            }
        )

    def _make_strategy(self) -> DefaultStrategy:
        config = self.config
        reset_every = config.reset_alpha_every * config.refine_every
        return DefaultStrategy(
            prune_opa=config.cull_alpha_thresh,
            grow_grad2d=self._densify_grad_thresh(),
            grow_scale3d=config.densify_size_thresh,
            grow_scale2d=config.split_screen_size,
            prune_scale3d=config.cull_scale_thresh,
            prune_scale2d=config.cull_screen_size,
            refine_scale2d_stop_iter=config.stop_screen_size_at,
            refine_start_iter=config.warmup_length,
            refine_stop_iter=config.stop_split_at,
            reset_every=reset_every,
            refine_every=config.refine_every,
            # Upstream's pause grows with the number of views until densification never runs
            # (nerfstudio #2927); half of the reset period is enough for opacities to recover.
            pause_refine_after_reset=min(
                self.num_train_data + config.refine_every, reset_every // 2
            ),
            absgrad=config.use_absgrad,
            revised_opacity=False,
            verbose=False,
        )

    def _densify_grad_thresh(self) -> float:
        return densify_grad_thresh(self.config, self._num_initial, self.num_train_data)

    def get_training_callbacks(
        self, training_callback_attributes: TrainingCallbackAttributes
    ) -> list[TrainingCallback]:
        """Upstream's callbacks, fading, bounded scales, and space that stays empty.

        The end of densification follows the length of the run, the photographs and the points.
        """
        run_length = getattr(training_callback_attributes.trainer, "run_length", None)
        manager: Any = getattr(training_callback_attributes.pipeline, "datamanager", None)
        plan = plan_splat(self.config, self._num_initial, self.num_train_data, run_length)
        self.plan = plan
        self.strategy.refine_stop_iter = plan.stop_split_at
        callbacks = super().get_training_callbacks(training_callback_attributes)
        if getattr(manager, "pseudo_views", None):
            self._warn_of_uncorrected_views()
        params = self.gauss_params
        if plan.colors_unseen and manager is not None:
            self.background_fit = fit_to_photographs(
                manager.cached_train, manager.train_dataset.cameras
            )
            if self.background_fit is None:  # cut-outs show no background
                self.plan = plan = replace(plan, colors_unseen=False)
        if plan.max_angular_scale > 0.0 and manager is not None:
            centres = manager.train_dataset.cameras.camera_to_worlds[:, :3, 3]

            def bound(step: int) -> None:
                bound_scales_(params["scales"], params["means"], centres, plan.max_angular_scale)

            callbacks.append(_after_steps(bound, _CLEAR_EVERY))
        free = getattr(manager, "free_space", None)
        if free is not None:
            callbacks.append(_after_steps(lambda step: self.clear(free), _CLEAR_EVERY))
        if plan.fading > 0.0:

            def fade(step: int) -> None:
                if step < plan.fading_until:
                    fade_(params["opacities"], plan.fading)

            callbacks.append(_after_steps(fade, 1))
        return callbacks

    def _warn_of_uncorrected_views(self) -> None:
        """Say which of the things that are learned for each photograph pseudo views do not get."""
        learned = {
            "the bilateral grid": self.config.use_bilateral_grid,
            "pose corrections": self.config.camera_optimizer.mode != "off",
        }
        without = [name for name, is_on in learned.items() if is_on]
        if without:
            warn(
                f"pseudo views are rendered without {' and '.join(without)}; where corrections are "
                "large, leave pseudo views out (--pipeline.datamanager.pseudo-views.enabled False)"
            )

    @torch.no_grad()
    def clear(self, free: FreeSpace) -> None:
        """Remove the Gaussians in space that is known to be empty; all of them is a mistake."""
        params = self.gauss_params
        wrong = torch.zeros(len(params["means"]), dtype=torch.bool, device=params["means"].device)
        if len(free.radii):
            wrong |= reaches_into(
                params["means"], params["quats"], params["scales"].exp(), free.centres, free.radii
            )
        for view in free.seen:
            wrong |= stands_before(params["means"], *view, free.share)
        if wrong.any() and not wrong.all():
            remove(params, self.optimizers, self.strategy_state, wrong)

    # ------------------------------------------------------------------ rendering

    def get_outputs(self, camera: Cameras) -> dict[str, Any]:
        """Render one camera.

        Returns:
            rgb [H, W, 3] in [0, 1], accumulation [H, W, 1], background [3] or [H, W, 3], and depth
            [H, W, 1] (expected depth along the optical axis) when asked for or not training.
        """
        config = self.config
        camera_to_worlds = camera.camera_to_worlds
        if self.training and _camera_index(camera) is not None:
            camera_to_worlds = self.camera_optimizer.apply_to_camera(camera)

        params: Mapping[str, Tensor] = dict(self.gauss_params.items())
        if self.crop_box is not None and not self.training:
            inside = self.crop_box.within(self.means).squeeze()
            if not bool(inside.any()):
                return self.get_empty_outputs(
                    int(camera.width.item()), int(camera.height.item()), self.background_color
                )
            params = {name: value[inside] for name, value in params.items()}

        # The camera object belongs to the caller: intrinsics are scaled, not the camera.
        factor = self._get_downscale_factor()
        width = int(camera.width.item()) // factor
        height = int(camera.height.item()) // factor
        intrinsics = camera.get_intrinsics_matrices().to(self.device).clone()
        intrinsics[:, :2] /= factor
        self.last_size = (height, width)

        with_depth = config.output_depth_during_training or not self.training
        background = self._background(camera_to_worlds, intrinsics, (width, height))
        render, alpha, self.info = self._rasterize(
            params,
            world_to_camera(camera_to_worlds.to(self.device)),
            intrinsics,
            (width, height),
            "RGB+ED" if with_depth else "RGB",
        )
        if self.training:
            self.strategy.step_pre_backward(
                self.gauss_params, self.optimizers, self.strategy_state, self.step, self.info
            )
            if _is_pseudo(camera):
                # No Gaussian is reported as seen: pseudo views do not steer densification.
                self.info = {**self.info, "radii": torch.zeros_like(self.info["radii"])}

        rgb = (render[..., :3] + (1 - alpha) * background).clamp(0.0, 1.0)
        index = _camera_index(camera)
        if config.use_bilateral_grid and self.training and index is not None:
            rgb = self._apply_bilateral_grid(rgb, index, height, width)
        outputs: dict[str, Any] = {
            "rgb": rgb.squeeze(0),
            "depth": None,
            "accumulation": alpha.squeeze(0),
            "background": background if self.training else background.expand(height, width, 3),
        }
        if with_depth:
            depth = render[..., 3:4]
            outputs["depth"] = torch.where(alpha > 0, depth, depth.detach().max()).squeeze(0)
        return outputs

    def set_background(self, background_color: Tensor) -> None:
        """Take the viewer's colour, which it sets before each of its renders: it shows there."""
        super().set_background(background_color)
        self._is_for_viewer = True

    def _background(
        self, camera_to_worlds: Tensor, intrinsics: Tensor, size: tuple[int, int]
    ) -> Tensor:
        """Background of one camera, [3], or [H, W, 3] where it is that of the photographs."""
        fit = self.background_fit
        is_plain = self.training or self._is_for_viewer or self.crop_box is not None
        self._is_for_viewer = False
        if not is_plain and self.transparent_color is not None:
            return self.transparent_color.to(self.device)
        if fit is None or is_plain or self.config.background_color != "random":
            return self._get_background_color()
        directions = pixel_directions(camera_to_worlds[0].to(intrinsics), intrinsics[0], size)
        return background_colors(fit.to(directions), directions)

    def _rasterize(
        self,
        params: Mapping[str, Tensor],
        world_to_cameras: Tensor,  # [C, 4, 4], OpenCV axes
        intrinsics: Tensor,  # [C, 3, 3]
        size: tuple[int, int],  # width, height
        render_mode: Literal["RGB", "RGB+D", "RGB+ED"],
    ) -> tuple[Tensor, Tensor, dict[str, Any]]:
        """Render [C, H, W, 3 or 4] without background, accumulation [C, H, W, 1], gsplat's info.

        Nothing of the model is changed: what else has to follow a training step (`self.info`, the
        strategy) is for the caller.
        """
        sh_degree, colors = self._colors(params)
        return rasterization(
            means=params["means"],
            quats=params["quats"],
            scales=params["scales"].exp(),
            opacities=self._opacities(params),
            colors=colors,
            viewmats=world_to_cameras,
            Ks=intrinsics,
            width=size[0],
            height=size[1],
            packed=False,
            near_plane=0.01,
            far_plane=1e10,
            render_mode=render_mode,
            sh_degree=sh_degree,
            sparse_grad=False,
            absgrad=self.strategy.absgrad,
            rasterize_mode=self.config.rasterize_mode,
        )

    def _opacities(self, params: Mapping[str, Tensor]) -> Tensor:
        """Opacities [N] to render with."""
        return params["opacities"].sigmoid().squeeze(-1)

    def _colors(self, params: Mapping[str, Tensor]) -> tuple[int | None, Tensor]:
        """Return the SH degree in use and colours: [N, (degree + 1)^2, 3], or [N, 3] without SH."""
        if self.config.sh_degree == 0:
            return None, params["features_dc"].sigmoid()
        degree = min(self.step // self.config.sh_degree_interval, self.config.sh_degree)
        # Coefficients above the degree in use would be copied each step for nothing.
        rest = params["features_rest"][:, : num_sh_bases(degree) - 1]
        return degree, torch.cat((params["features_dc"][:, None, :], rest), dim=1)

    # ------------------------------------------------------------------ loss and metrics

    def _valid(self, batch: dict, height: int, width: int) -> Tensor | None:
        """Pixels that may be used, [H, W] bool at the current resolution; None means all."""
        if "mask" not in batch:
            return None
        mask = batch["mask"].to(self.device)
        if mask.shape[:2] != (height, width):
            # A pixel of the smaller image is valid where all that it averages is.
            mask = self._downscale_if_required(mask.float()) > 1 - 1e-4
        return mask[..., 0].bool()

    def _ground_truth(self, outputs: dict, batch: dict) -> Tensor:
        """Photograph [H, W, 3] at the current resolution, over the background when it has alpha."""
        return self.composite_with_background(
            self.get_gt_img(batch["image"]), outputs["background"]
        )

    def get_loss_dict(self, outputs, batch, metrics_dict=None) -> dict[str, Tensor]:
        """Photometric loss of a real or pseudo view, and regularisers.

        A real view: (1 - w) L1 + w (1 - SSIM) over its valid pixels, w = ssim_lambda. A pseudo
        view: the same with each pixel weighted by its confidence, times lambda.
        """
        target = self._ground_truth(outputs, batch)
        prediction = outputs["rgb"]
        height, width = prediction.shape[:2]
        confidence = batch.get("confidence")
        if confidence is not None:
            confidence = self._downscale_if_required(confidence[..., None].to(self.device))[..., 0]
        weights = loss_weights(self._valid(batch, height, width), confidence)
        loss = self._photometric_loss(prediction, target, weights)
        if "pseudo_weight" in batch:
            loss = loss * batch["pseudo_weight"]
        loss_dict = {"main_loss": loss}
        if self.config.use_scale_regularization and self.step % 10 == 0:
            loss_dict["scale_reg"] = self._scale_regularization()
        if self.training:
            self.camera_optimizer.get_loss_dict(loss_dict)
            if self.config.use_bilateral_grid:
                loss_dict["tv_loss"] = 10 * total_variation_loss(self.bil_grids.grids)
        return loss_dict

    def _photometric_loss(
        self, prediction: Tensor, target: Tensor, weights: LossWeights | None
    ) -> Tensor:
        """Disagreement [] of two pictures [H, W, 3]."""
        return l1_ssim_loss(prediction, target, self.config.ssim_lambda, weights)

    def _scale_regularization(self) -> Tensor:
        """Penalty on needles, as in splatfacto (PhysGaussian)."""
        scales = self.scales.exp()
        ratio = scales.amax(-1) / scales.amin(-1)
        return 0.1 * (ratio - self.config.max_gauss_ratio).clamp_min(0).mean()

    @torch.no_grad()
    def get_metrics_dict(self, outputs, batch) -> dict[str, Any]:
        """PSNR over the valid pixels and the number of Gaussians; cheap, since run each step."""
        prediction = outputs["rgb"].detach()
        valid = self._valid(batch, *prediction.shape[:2])
        metrics: dict[str, Any] = {
            "psnr": psnr(prediction, self._ground_truth(outputs, batch), valid),
            "gaussian_count": self.num_points,
        }
        self.camera_optimizer.get_metrics_dict(metrics)
        return metrics

    @torch.no_grad()
    def get_image_metrics_and_images(self, outputs, batch):
        """Metrics of one evaluation view over its valid pixels, and truth beside render.

        `lpips` is absent when its weights are; its network is `config.lpips_net`, its input [0, 1].
        """
        target = self._ground_truth(outputs, batch)
        prediction = outputs["rgb"]
        valid = self._valid(batch, *prediction.shape[:2])
        images = {"img": torch.cat([target, prediction], dim=1)}
        metrics = self._image_metrics(prediction, target, valid)
        if self.config.color_corrected_metrics:
            corrected = color_correct(prediction, target)
            of_corrected = self._image_metrics(corrected, target, valid)
            metrics.update({f"cc_{name}": value for name, value in of_corrected.items()})
            images["cc_img"] = torch.cat([target, corrected], dim=1)
        return metrics, images

    def _image_metrics(
        self, prediction: Tensor, target: Tensor, valid: Tensor | None
    ) -> dict[str, float]:
        metrics = {"psnr": float(psnr(prediction, target, valid))}
        if self.config.metrics_on_white and valid is not None:
            prediction, target = (
                torch.where(valid[..., None], picture, 1.0) for picture in (prediction, target)
            )
            valid = None
        metrics["ssim"] = float(ssim(prediction, target, valid))
        perceptual = self.lpips(prediction, target, valid)
        if perceptual is not None:
            metrics["lpips"] = float(perceptual)
        return metrics

    # ------------------------------------------------------------------ checkpoints

    def update_to_step(self, step: int) -> None:
        """Take over the step of a loaded checkpoint; it decides the SH degree that is rendered."""
        self.step = step

    def get_extra_state(self) -> dict[str, Any]:
        """Strategy state, for an exact resume, and the colour of what no photograph shows.

        Plain containers and tensors only.
        """
        return {"strategy": dict(self.strategy_state), "background_fit": self.background_fit}

    def set_extra_state(self, state: Any) -> None:
        """Restore `get_extra_state`; checkpoints of plain splatfacto have none."""
        if state is None:
            return
        self.strategy_state = {
            name: value.to(self.device) if isinstance(value, Tensor) else value
            for name, value in state["strategy"].items()
        }
        self.background_fit = state.get("background_fit")

    def load_state_dict(self, dict: Mapping[str, Any], **kwargs):  # type: ignore[override]
        """Load in place: parameters keep their identity, so optimizers stay bound to them.

        Raises:
            InputError: parameters are missing or unknown and `allow_partial_load` is off.
        """
        state = {k: v for k, v in dict.items() if not k.startswith(_METRIC_PREFIXES)}
        for name in self.gauss_params:
            if name in state:  # checkpoints before nerfstudio 1.0
                state[f"gauss_params.{name}"] = state.pop(name)
        state.setdefault("_extra_state", None)
        expected = set(self.state_dict())
        missing, unexpected = sorted(expected - set(state)), sorted(set(state) - expected)
        if missing or unexpected:
            message = f"checkpoint does not fit the model: missing {missing}, unknown {unexpected}"
            if not self.config.allow_partial_load:
                raise InputError(
                    f"{message}; --pipeline.model.allow-partial-load True loads what fits"
                )
            say(message)
        for name, parameter in self.gauss_params.items():
            loaded = state.get(f"gauss_params.{name}")
            if loaded is not None and loaded.shape != parameter.shape:
                parameter.data = parameter.data.new_zeros(loaded.shape)
        # Past SplatfactoModel, whose version replaces the parameters and forgets the step.
        return super(SplatfactoModel, self).load_state_dict(state, strict=False)


def world_to_camera(camera_to_worlds: Tensor) -> Tensor:
    """Rigid inverse [C, 4, 4] with OpenCV axes of camera_to_worlds [C, 3, 4] with OpenGL axes.

    Eager and differentiable; upstream compiles the same for a C++ compiler that may be absent.
    """
    # OpenGL has y up and z back: the last two columns of the rotation change sign.
    flip = camera_to_worlds.new_tensor([1.0, -1.0, -1.0])
    rotation = (camera_to_worlds[:, :3, :3] * flip).transpose(1, 2)
    translation = -rotation @ camera_to_worlds[:, :3, 3:4]
    last_row = camera_to_worlds.new_tensor([0.0, 0.0, 0.0, 1.0]).expand(len(rotation), 1, 4)
    return torch.cat([torch.cat([rotation, translation], dim=2), last_row], dim=1)


def _after_steps(function: Callable[[int], None], every: int) -> TrainingCallback:
    """Call with the step, after each step that this number divides."""
    return TrainingCallback(
        [TrainingCallbackLocation.AFTER_TRAIN_ITERATION], function, update_every_num_iters=every
    )


def _camera_index(camera: Cameras) -> int | None:
    """Index of a real training view; pseudo views and free cameras have none."""
    metadata = camera.metadata
    return None if metadata is None else cast("int | None", metadata.get("cam_idx"))


def _is_pseudo(camera: Cameras) -> bool:
    return camera.metadata is not None and "pseudo_idx" in camera.metadata
