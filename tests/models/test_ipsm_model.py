# SPDX-License-Identifier: Apache-2.0
"""Terms of IPSM in the model: what they reach, what they leave alone, and what has no term."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, field
from inspect import signature
from types import SimpleNamespace
from typing import Any, Literal

import pytest
import torch
from nerfstudio.cameras.camera_optimizers import CameraOptimizerConfig
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.data.scene_box import SceneBox
from nerfstudio.engine.callbacks import TrainingCallbackAttributes
from nerfstudio.engine.optimizers import Optimizers
from nerfstudio.utils import poses
from nerfstudio.viewer.utils import parse_object
from nerfstudio.viewer.viewer_elements import ViewerElement
from torch import Tensor

from ps4pro_nerfstudio.datamanagers.unseen_view_datamanager import KnownPoints, UnseenView
from ps4pro_nerfstudio.diffusion.inpainting_score import InpaintingScoreConfig
from ps4pro_nerfstudio.diffusion.protocol import Score
from ps4pro_nerfstudio.geometry.inverse_warp import Warp, inverse_warp, visible
from ps4pro_nerfstudio.messages import InputError
from ps4pro_nerfstudio.methods import ipsm_gaussian
from ps4pro_nerfstudio.models import ipsm
from ps4pro_nerfstudio.models.ipsm import (
    IPSMModel,
    IPSMModelConfig,
    capture_extent,
    cloth,
    project_points,
)
from ps4pro_nerfstudio.models.ipsm_schedule import IPSMSchedule
from ps4pro_nerfstudio.models.splatfacto import world_to_camera
from ps4pro_nerfstudio.splatting.depth_losses import (
    geometry_consistency_loss,
    inverse_depth_loss,
    sample_bilinear,
)
from ps4pro_nerfstudio.splatting.losses import l1_ssim_loss
from tests.conftest import look_at

WIDTH, HEIGHT = 48, 36
ACTIVE = 5000
"""A step of 10,000 in which an unseen view takes part with full weight."""
PHOTO = torch.rand(HEIGHT, WIDTH, 3, generator=torch.Generator().manual_seed(0))


def make(num_points: int = 400, **options: Any) -> IPSMModel:
    generator = torch.Generator().manual_seed(0)
    xyz = 1.6 * torch.rand(num_points, 3, generator=generator) - 0.8
    rgb = torch.randint(0, 255, (num_points, 3), generator=generator)
    torch.manual_seed(0)
    # Without randomness two renders are equal.
    fixed = {"drop_rate": 0.0, "background_color": "black"}
    options = {**fixed, "warmup_length": 2, "refine_every": 3, **options}
    model = IPSMModelConfig(**options).setup(
        scene_box=SceneBox(torch.tensor([[-1.0] * 3, [1.0] * 3])),
        num_train_data=3,
        metadata={},
        device="cpu",
        grad_scaler=None,
        seed_points=(xyz, rgb.to(torch.uint8)),
    )
    model.gauss_params["opacities"].data[:] = 2.0
    model.step, model.optimizers = ACTIVE, {}
    return model.train()


def camera(x: float = 0.0, y: float = 2.5, **metadata: Any) -> Cameras:
    import numpy as np

    pose = torch.from_numpy(look_at(np.array([x, y, 0.3]), np.zeros(3))[None, :3]).float()
    result = Cameras(
        pose, fx=50.0, fy=50.0, cx=WIDTH / 2, cy=HEIGHT / 2, width=WIDTH, height=HEIGHT
    )
    result.metadata = metadata
    return result


def known(model: IPSMModel, factor: float = 1.0) -> KnownPoints:
    """The Gaussians that the seen camera sees, at `factor` times their depth."""
    xyz = model.means.detach()
    pixels, depth = project_points(xyz, camera())
    inside = ((pixels >= 0) & (pixels < torch.tensor([WIDTH, HEIGHT]))).all(dim=1) & (depth > 0)
    return KnownPoints(pixels[inside], factor * depth[inside], xyz[inside])


def losses_of(model: IPSMModel, unseen_x: float = 0.1, **batch: Any) -> dict[str, Tensor]:
    outputs = model.get_outputs(camera(cam_idx=0))
    full = {
        "image": PHOTO,
        "image_idx": 0,
        "seen_depth": known(model),
        "unseen": UnseenView(camera(unseen_x), camera(), 0.02),
        **batch,
    }
    return model.get_loss_dict(outputs, full)


class FakeScore:
    """Wants every image to be darker."""

    name = "fake"

    def __init__(self) -> None:
        self.config = InpaintingScoreConfig()
        self.calls: list[tuple[Tensor, Tensor, Tensor, int]] = []

    def score(self, image: Tensor, warped: Tensor, visible: Tensor, generator) -> Score:
        self.calls.append((image, warped, visible, generator.initial_seed()))
        return Score(torch.full_like(image, 1e-3), torch.tensor(0.7))


class FakeDepth:
    """Sees dark as near."""

    name = "fake"
    inverse_offset = None

    def inverse_depth(self, image: Tensor) -> Tensor:
        return 1.0 - image.mean(dim=0)


@pytest.fixture
def warned(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Warnings of the model."""
    lines: list[str] = []
    monkeypatch.setattr(ipsm, "warn", lines.append)
    return lines


# ---------------------------------------------------------------- which terms there are


def test_the_terms_of_a_step_without_networks() -> None:
    losses = losses_of(make())
    assert set(losses) == {"main_loss", "seen_depth_loss", "geo_loss", "unseen_depth_loss"}
    assert all(bool(torch.isfinite(value)) for value in losses.values())


@pytest.mark.parametrize("step", [0, 2000, 9500, 9999])
def test_no_unseen_view_before_and_after(step: int) -> None:
    model = make()
    model.step = step
    assert set(losses_of(model)) == {"main_loss", "seen_depth_loss"}


def test_interpolated_views_have_the_photometric_term_alone() -> None:
    confidence = torch.ones(HEIGHT, WIDTH)
    losses = losses_of(make(), pseudo_weight=0.5, confidence=confidence)
    assert set(losses) == {"main_loss"}


def test_evaluation_has_none_of_the_terms() -> None:
    assert set(losses_of(make().eval())) == {"main_loss"}


def test_weights_of_zero_switch_terms_off() -> None:
    model = make(triangulated_depth_weight=0.0, unseen_depth_weight=0.0, geo_weight=0.0)
    assert set(losses_of(model)) == {"main_loss"}


def test_the_ramp_concerns_depth_and_score_but_not_geometry() -> None:
    full, half = make(), make()
    for model in (full, half):
        model._priors["score"] = FakeScore()
    half.step = 2250
    # Bands of harmonics in use depend on the step; they are zero at the start.
    whole, part = losses_of(full), losses_of(half)
    for name, ratio in (("geo_loss", 1.0), ("unseen_depth_loss", 0.5), ("score_loss", 0.5)):
        assert float(part[name]) == pytest.approx(ratio * float(whole[name]), rel=1e-4), name


def test_one_of_k_steps_weighs_k_times() -> None:
    once, rarely = make(), make()
    rarely.config.schedule.every_k = 5
    assert rarely.schedule.has_unseen_view(ACTIVE)
    whole, fifth = losses_of(once), losses_of(rarely)
    for name in ("geo_loss", "unseen_depth_loss"):
        assert float(fifth[name]) == pytest.approx(5 * float(whole[name]), rel=1e-5)
    assert float(fifth["seen_depth_loss"]) == pytest.approx(float(whole["seen_depth_loss"]))


# ---------------------------------------------------------------- what they reach


def test_seen_depth_moves_gaussians_towards_the_known_points() -> None:
    """The sum of gradients is the derivative with respect to a shift of the whole scene."""
    model = make(depth_form="metric")
    pixels = known(model).pixels
    rendered = sample_bilinear(model.get_outputs(camera(cam_idx=0))["depth"][..., 0], pixels)
    for factor, sign in ((0.8, 1.0), (1.2, -1.0)):
        points = KnownPoints(pixels, factor * rendered.detach(), known(model).xyz)
        loss = losses_of(model, seen_depth=points)["seen_depth_loss"]
        (gradient,) = torch.autograd.grad(loss, model.gauss_params["means"])
        # The camera stands at y = 2.5: nearer is larger y, and descent has to raise it.
        assert sign * float(gradient[:, 1].sum()) < 0.0


def test_geometry_reaches_the_unseen_render_alone() -> None:
    """Neither the seen render nor any rendered depth has a path to the loss."""
    model = make()
    outputs = model.get_outputs(camera(cam_idx=0))
    unseen = UnseenView(camera(0.1), camera(), 0.02)
    batch = {"image": PHOTO, "image_idx": 0, "seen_depth": known(model), "unseen": unseen}
    loss = model.get_loss_dict(outputs, batch)["geo_loss"]
    seen = torch.autograd.grad(
        loss, [outputs["rgb"], outputs["depth"]], retain_graph=True, allow_unused=True
    )
    assert seen == (None, None)
    (colours,) = torch.autograd.grad(loss, model.gauss_params["features_dc"])
    assert float(colours.abs().max()) > 0.0


def test_the_score_is_a_gradient_on_the_render_and_its_value_is_logged() -> None:
    model = make(score_weight=0.5)
    prior = FakeScore()
    model._priors["score"] = prior
    losses = losses_of(model)
    assert float(losses["score_loss"].detach()) == pytest.approx(0.35)
    colors, _, _ = model.render_unseen(camera(0.1))
    expected = torch.autograd.grad(0.5e-3 * colors.sum(), model.gauss_params["features_dc"])[0]
    found = torch.autograd.grad(losses["score_loss"], model.gauss_params["features_dc"])[0]
    torch.testing.assert_close(found, expected, atol=1e-7, rtol=1e-4)
    image, warped, visible, _ = prior.calls[0]
    assert not image.requires_grad
    assert image.shape == warped.shape == (3, HEIGHT, WIDTH)
    assert visible.dtype == torch.bool
    assert 0.1 < float(visible.float().mean()) < 1.0


def test_a_step_draws_the_same_noise_again() -> None:
    model = make()
    prior = FakeScore()
    model._priors["score"] = prior
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        losses_of(model)
    seeds = [call[3] for call in prior.calls]
    assert seeds[0] == seeds[1] != seeds[2]


def test_sliders_act_on_the_running_training() -> None:
    model = make()
    prior = FakeScore()
    model._priors["score"] = prior
    before = losses_of(model)
    model.guidance_slider.value = 30.0
    model.score_weight_slider.value = 2.0
    model.threshold_slider.value = 0.01
    after = losses_of(model)
    assert prior.config.guidance == 30.0
    assert float(after["score_loss"]) == pytest.approx(2.0 * float(before["score_loss"]))
    assert float(after["geo_loss"]) < float(before["geo_loss"])
    model.score_weight_slider.value = 0.0
    assert "score_loss" not in losses_of(model)


def test_sliders_have_room_for_what_was_configured() -> None:
    """And the threshold of L_geo stays within that of the prior."""
    score = InpaintingScoreConfig(guidance=0.5)
    model = make(strict_threshold=0.005, soft_threshold=0.9, score=score, score_weight=7.0)
    for slider in (model.threshold_slider, model.guidance_slider, model.score_weight_slider):
        assert slider.min <= slider.value <= slider.max
    assert model.threshold_slider.max == model.config.soft_threshold


def callbacks_of(model: IPSMModel) -> None:
    """What a training without datamanager makes of a model."""
    model.get_training_callbacks(
        TrainingCallbackAttributes(optimizers=None, grad_scaler=None, pipeline=None, trainer=None)  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("diffusion", ["off", "my_score:make"])
def test_sliders_without_effect_are_disabled(
    monkeypatch: pytest.MonkeyPatch, diffusion: str
) -> None:
    """A saved scene has none to act on; the viewer shows them before the priors are open."""
    made = SimpleNamespace(make=lambda config, device: FakeScore())
    monkeypatch.setitem(sys.modules, "my_score", made)
    model = make(diffusion=diffusion)
    sliders = (model.score_weight_slider, model.guidance_slider, model.threshold_slider)
    assert all(slider.disabled for slider in sliders)
    shown: Any = SimpleNamespace(value=7.5, disabled=True)
    model.guidance_slider.gui_handle = shown
    callbacks_of(model)
    without_prior = diffusion == "off"
    assert [slider.disabled for slider in sliders] == [without_prior, without_prior, False]
    assert shown.disabled == without_prior


def test_a_prior_too_large_for_the_gpu_says_what_is_smaller() -> None:
    class TooLarge(FakeScore):
        def score(self, image: Tensor, warped: Tensor, visible: Tensor, generator) -> Score:
            raise torch.cuda.OutOfMemoryError("out of memory")

    model = make()
    model._priors["score"] = TooLarge()
    with pytest.raises(InputError, match="cpu-offload"):
        losses_of(model)


def test_nerfstudio_finds_the_sliders() -> None:
    model = make()
    found = {element.name for _, element in parse_object(model, ViewerElement, "model")}
    assert {"× L_IPSM", "CFG", "mask threshold τ_strict"} <= found


def test_a_depth_network_takes_the_place_of_points() -> None:
    model = make()
    model._priors["depth"] = FakeDepth()
    losses = losses_of(model, seen_depth=None)
    assert 0.0 <= float(losses["seen_depth_loss"]) <= 2.0 * model.config.seen_depth_weight
    through = torch.autograd.grad(
        losses["unseen_depth_loss"], model.gauss_params["features_dc"], allow_unused=True
    )[0]
    assert through is not None
    assert float(through.abs().max()) > 0.0
    model.config.unseen_depth_through_image = False
    loss = losses_of(model)["unseen_depth_loss"]
    direct = torch.autograd.grad(loss, model.gauss_params["features_dc"], allow_unused=True)[0]
    assert direct is None or float(direct.abs().max()) == 0.0


class Remembers(FakeDepth):
    """A depth network that keeps what it was shown."""

    def __init__(self) -> None:
        self.shown: list[Tensor] = []

    def inverse_depth(self, image: Tensor) -> Tensor:
        self.shown.append(image.detach().clone())
        return super().inverse_depth(image)


def test_a_depth_network_sees_a_photograph_with_alpha_alike_whatever_the_background() -> None:
    photograph = torch.cat([PHOTO, (PHOTO.mean(dim=-1, keepdim=True) > 0.5).float()], dim=-1)
    shown = []
    for color in (0.0, 1.0):
        model = make(background_color="random", unseen_depth_weight=0.0)
        model._priors["depth"] = prior = Remembers()
        outputs = model.get_outputs(camera(cam_idx=0))
        outputs["background"] = torch.full((3,), color)
        model.get_loss_dict(outputs, {"image": photograph, "image_idx": 0})
        shown += prior.shown
    torch.testing.assert_close(shown[0], shown[1], rtol=0, atol=0)


def test_the_depth_of_a_network_counts_where_the_photograph_is_valid_only() -> None:
    mask = torch.ones(HEIGHT, WIDTH, 1, dtype=torch.bool)
    mask[:, :20] = False
    spoiled = PHOTO.clone()
    spoiled[:, :20] = torch.rand(HEIGHT, 20, 3, generator=torch.Generator().manual_seed(5))
    found = []
    for photograph in (PHOTO, spoiled):
        model = make(unseen_depth_weight=0.0, geo_weight=0.0)
        model._priors["depth"] = FakeDepth()
        losses = losses_of(model, image=photograph, mask=mask)
        found.append(float(losses["seen_depth_loss"].detach()))
    assert found[0] == found[1]


def test_the_unseen_camera_follows_the_camera_optimizer() -> None:
    """It stands beside the corrected seen camera as it stood beside the given one."""
    model = make(camera_optimizer=CameraOptimizerConfig(mode="SO3xR3"))
    with torch.no_grad():
        model.camera_optimizer.pose_adjustment[0] = torch.tensor([0.1, -0.2, 0.05, 0.02, 0.1, 0.0])
    unseen = UnseenView(camera(0.1), camera(cam_idx=0), 0.02)
    moved = model.camera_optimizer.apply_to_camera(unseen.source)
    beside = model._corrected(unseen).camera_to_worlds
    given = poses.multiply(poses.inverse(camera().camera_to_worlds), camera(0.1).camera_to_worlds)
    torch.testing.assert_close(poses.multiply(poses.inverse(moved), beside), given)
    assert not torch.allclose(beside, camera(0.1).camera_to_worlds, atol=0.01)
    # The camera of the datamanager is left alone.
    torch.testing.assert_close(unseen.camera.camera_to_worlds, camera(0.1).camera_to_worlds)
    assert make()._corrected(unseen) is unseen.camera


def test_unseen_colors_are_graded_as_the_photograph_is() -> None:
    """A grid that darkens the render of the photograph darkens what is compared with its warp."""
    found = []
    for factor in (1.0, 0.5):
        model = make(use_bilateral_grid=True, unseen_depth_weight=0.0)
        with torch.no_grad():
            model.bil_grids.grids[:, :12] *= factor
        losses_of(model)
        found.append(model._unseen_pictures["unseen_rgb"])
    torch.testing.assert_close(found[1], 0.5 * found[0])


def test_dropout_leaves_gaussians_out_of_training_renders_only() -> None:
    model = make(drop_rate=0.4)  # half of it at half of the run
    opacities = model.gauss_params["opacities"].detach().sigmoid().squeeze(-1)
    params = dict(model.gauss_params.items())
    drawn = model._opacities(params)
    kept = drawn > 0
    assert 0.7 < float(kept.float().mean()) < 0.9
    torch.testing.assert_close(drawn[kept], (opacities[kept] / 0.8).clamp_max(1.0))
    assert bool((model.eval()._opacities(params) == opacities).all())
    for step in (0, 9600):
        model.train().step = step
        assert bool((model._opacities(params) == opacities).all())


def test_dropout_lets_opaque_gaussians_become_fainter() -> None:
    """.95 / .8 is cut off at 1; its derivative by the opacity is 1 / .8 all the same."""
    model = make(drop_rate=0.4)
    logits = model.gauss_params["opacities"]
    logits.data[:] = math.log(0.95 / 0.05)
    drawn = model._opacities(dict(model.gauss_params.items()))
    assert set(drawn.detach().tolist()) == {0.0, 1.0}
    (gradient,) = torch.autograd.grad(drawn.sum(), logits)
    expected = torch.where(drawn > 0, 0.95 * 0.05 / 0.8, 0.0)
    torch.testing.assert_close(gradient.squeeze(-1), expected)


@pytest.mark.parametrize(("num_photographs", "rate"), [(2, 0.4), (3, 0.4), (6, 0.2), (9, 0.0)])
def test_more_photographs_need_less_dropout(num_photographs: int, rate: float) -> None:
    model = make(num_points=4000, drop_rate=0.8)
    model.num_train_data = num_photographs
    left_out = model._opacities(dict(model.gauss_params.items())) == 0
    assert float(left_out.float().mean()) == pytest.approx(rate, abs=0.03)


WEIGHTS = (
    "seen_depth_weight",
    "triangulated_depth_weight",
    "unseen_depth_weight",
    "geo_weight",
    "score_weight",
)


@pytest.mark.parametrize(
    "options",
    [
        {"num_downscales": 1},
        {"output_depth_during_training": False},
        {"ssim_lambda": 1.1},
        {"inverse_offset": -1.0},
        {"reset_opacity": 0.0},
        {"strict_threshold": 0.31},
        {"strict_threshold": 0.0},
        {"strict_threshold": math.nan},
        {"soft_threshold": 0.09},
        {"soft_threshold": math.inf},
        *({name: value} for name in WEIGHTS for value in (-1.0, math.nan, math.inf)),
    ],
)
def test_options_that_the_terms_cannot_have_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        IPSMModelConfig(**options)


@pytest.mark.parametrize("rate", [-0.1, 1.0, float("nan")])
def test_some_gaussians_must_be_left_to_render(rate: float) -> None:
    with pytest.raises(ValueError, match="drop_rate"):
        IPSMModelConfig(drop_rate=rate)


def test_cloth_counts_as_black_in_the_absolute_part_only() -> None:
    model = make(background_prior=True, ssim_lambda=0.6)
    bright = torch.rand(HEIGHT, WIDTH, 3, generator=torch.Generator().manual_seed(1)) * 0.5 + 0.3
    white = bright.clone()
    white[:, :10] = 1.0
    plain = make(ssim_lambda=0.6)
    outputs = model.get_outputs(camera(cam_idx=0))
    same = [m.get_loss_dict(outputs, {"image": bright})["main_loss"] for m in (model, plain)]
    assert float(same[0].detach()) == pytest.approx(float(same[1].detach()), rel=1e-5)
    found = float(model.get_loss_dict(outputs, {"image": white})["main_loss"].detach())
    target = white.clone()
    target[:, :10] = 0.0
    parts = l1_ssim_loss(outputs["rgb"], target, 0.0), l1_ssim_loss(outputs["rgb"], white, 1.0)
    expected = 0.4 * float(parts[0].detach()) + 0.6 * float(parts[1].detach())
    assert found == pytest.approx(expected, rel=1e-5)
    # A pseudo view shows the same cloth.
    pseudo = {"image": white, "confidence": torch.ones(HEIGHT, WIDTH), "pseudo_weight": 0.5}
    weighed = float(model.get_loss_dict(outputs, pseudo)["main_loss"].detach())
    assert weighed == pytest.approx(0.5 * expected, rel=1e-5)


def test_cloth_is_dark_with_fifty_dark_pixels_above_it_or_white() -> None:
    image = torch.full((120, 4, 3), 0.5)
    image[:60, 0] = 0.1  # dark from the top on: no bright pixel among those above
    image[30:100, 1] = 0.1  # dark below an object: cloth from the fiftieth row on
    image[100:, 2] = 1.0
    found = cloth(image)
    assert int(found[:, 0].sum()) == 60
    assert torch.nonzero(found[:, 1])[:, 0].tolist() == list(range(79, 100))
    assert torch.nonzero(found[:, 2])[:, 0].tolist() == list(range(100, 120))
    assert not bool(found[:, 3].any())


def test_cloth_is_black_for_geometry_and_white_for_the_prior() -> None:
    """A photograph of nothing but white cloth: L_geo = lambda mean |M x|, and the prior sees it."""
    model = make(background_prior=True)
    model._priors["score"] = prior = FakeScore()
    losses = losses_of(model, image=torch.ones(HEIGHT, WIDTH, 3))
    render, warped, soft, _ = prior.calls[0]
    assert bool((warped[:, soft] == 1.0).all())
    strict = model._unseen_pictures["unseen_mask"][..., 0] == 1.0
    expected = model.config.geo_weight * torch.where(strict, render, 0.0).abs().mean()
    assert float(expected) > 0.01
    assert float(losses["geo_loss"].detach()) == pytest.approx(float(expected), rel=1e-5)


# ---------------------------------------------------------------- how they are wired


@dataclass
class Seen:
    """What the model asks the functions of `inverse_warp` for, and what they answer."""

    warps: list[tuple[dict[str, Any], Warp]] = field(default_factory=list)
    masks: list[tuple[float, str, Tensor]] = field(default_factory=list)

    def mask_of(self, threshold: float) -> Tensor:
        (found,) = (mask for used, _, mask in self.masks if used == threshold)
        return found


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    found = Seen()

    def warp(*args: Any, **options: Any) -> Warp:
        bound = signature(inverse_warp).bind(*args, **options)
        found.warps.append((bound.arguments, inverse_warp(*args, **options)))
        return found.warps[-1][1]

    def mask(warp: Warp, depth: Tensor, threshold: float, mode: Any) -> Tensor:
        found.masks.append((threshold, mode, visible(warp, depth, threshold, mode)))
        return found.masks[-1][2]

    monkeypatch.setattr(ipsm, "inverse_warp", warp)
    monkeypatch.setattr(ipsm, "visible", mask)
    return found


@pytest.mark.parametrize("mode", ["reproject", "minmax"])
@pytest.mark.parametrize("norm", ["all", "mask"])
def test_the_prior_gets_the_soft_mask_and_geometry_the_strict_one(
    seen: Seen, mode: str, norm: Literal["all", "mask"]
) -> None:
    model = make(soft_threshold=0.25, strict_threshold=0.02, mask_mode=mode, geo_norm=norm)
    model._priors["score"] = prior = FakeScore()
    losses = losses_of(model)
    used = sorted((threshold, mode) for threshold, mode, _ in seen.masks)
    assert used == [(0.02, mode), (0.25, mode)]
    soft, strict = seen.mask_of(0.25), seen.mask_of(0.02)
    assert bool((soft & ~strict).any())
    assert not bool((strict & ~soft).any())
    render, warped, given, _ = prior.calls[0]
    assert torch.equal(given, soft)
    assert torch.equal(warped, seen.warps[0][1].colors)
    expected = geometry_consistency_loss(render, warped, strict, norm)
    assert expected is not None
    assert float(losses["geo_loss"].detach()) == pytest.approx(2.0 * float(expected), rel=1e-6)


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
@pytest.mark.parametrize("kind", ["normalised", "blended"])
def test_the_photograph_is_warped_through_both_depths(
    seen: Seen, kind: str, interpolation: str
) -> None:
    model = make(warp_depth=kind, warp_interp=interpolation)
    losses_of(model)

    def depth_of(depth: Tensor, accumulation: Tensor) -> Tensor:
        if kind == "blended":
            return depth * accumulation
        return torch.where(accumulation > 0.5, depth, 0.0)

    outputs = model.get_outputs(camera(cam_idx=0))
    _, depth, accumulation = model.render_unseen(camera(0.1))
    ((arguments, _),) = seen.warps
    expected = {
        "image_i": PHOTO.permute(2, 0, 1),
        "depth_i": depth_of(outputs["depth"][..., 0], outputs["accumulation"][..., 0]),
        "depth_j": depth_of(depth, accumulation),
        "world_to_camera_i": world_to_camera(camera().camera_to_worlds)[0],
        "world_to_camera_j": world_to_camera(camera(0.1).camera_to_worlds)[0],
    }
    for name, value in expected.items():
        torch.testing.assert_close(arguments[name], value.detach(), rtol=0, atol=0, msg=name)
    assert arguments["interpolation"] == interpolation
    # The two kinds differ where something is half transparent.
    assert bool(((accumulation > 0.5) & (accumulation < 0.99)).any())


class Prescribed(FakeDepth):
    """A depth network that gives one map whatever it is shown."""

    def __init__(self, inverse: Tensor, inverse_offset: float | None = None) -> None:
        self.inverse = inverse.detach()
        self.inverse_offset = inverse_offset

    def inverse_depth(self, image: Tensor) -> Tensor:
        return self.inverse


def seen_depth_loss(inverse: Tensor, prior_offset: float | None, **options: Any) -> float:
    """L_d,seen without its weight."""
    model = make(geo_weight=0.0, unseen_depth_weight=0.0, seen_depth_weight=1.0, **options)
    model._priors["depth"] = Prescribed(inverse, prior_offset)
    return float(losses_of(model)["seen_depth_loss"].detach())


def blended_depth_of_the_seen_view() -> Tensor:
    """D, which is zero where there is nothing."""
    outputs = make().get_outputs(camera(cam_idx=0))
    return (outputs["depth"] * outputs["accumulation"])[..., 0].detach()


def test_the_inverse_depth_of_a_photograph_is_large_where_the_render_is_near() -> None:
    """1 - rho of a map that is the rendered depth upside down is 0, and of one that is not more.

    -D has the first branch at 0. 1 / (D + 1), the second, where its offset is that of the prior.
    """
    depth = blended_depth_of_the_seen_view()
    assert seen_depth_loss(-depth, None) == pytest.approx(0.0, abs=1e-5)
    assert seen_depth_loss(depth, None) > 1.2
    assert seen_depth_loss(1.0 / (depth + 1.0), 0.0) == pytest.approx(0.0, abs=1e-5)
    assert seen_depth_loss(-1.0 / (depth + 1.0), None) > 1.2


@pytest.mark.parametrize(
    ("option", "offset"), [("auto", 3.0), ("unit_free", None), (0.5, 0.5), (0.0, 0.0)]
)
def test_the_offset_is_that_of_the_prior_or_the_configured_one(
    option: Any, offset: float | None
) -> None:
    depth = blended_depth_of_the_seen_view()
    inverse = 1.0 / (depth + 1.0)
    expected = inverse_depth_loss(inverse, depth, offset)
    assert expected is not None
    assert seen_depth_loss(inverse, 3.0, inverse_offset=option) == pytest.approx(
        float(expected), abs=1e-6
    )
    others = [inverse_depth_loss(inverse, depth, other) for other in {None, 0.0, 0.5, 3.0}]
    assert len({round(float(loss), 4) for loss in others if loss is not None}) == 4


@pytest.mark.parametrize("sign, loss", [(-1.0, 0.0), (1.0, 2.0)])
def test_the_inverse_depth_of_a_render_is_large_where_it_is_near(sign: float, loss: float) -> None:
    """1 - rho(D, -m): 0 for m = -D and 2 for m = D, the blended depth of the unseen render."""
    model = make(geo_weight=0.0, seen_depth_weight=0.0, unseen_depth_weight=1.0)
    _, depth, accumulation = model.render_unseen(camera(0.1))
    model._priors["depth"] = Prescribed(sign * depth * accumulation)
    found = float(losses_of(model)["unseen_depth_loss"].detach())
    assert found == pytest.approx(loss, abs=1e-5)


# ---------------------------------------------------------------- what they leave alone (check 13)


def optimizers_of(model: IPSMModel) -> Optimizers:
    return Optimizers(ipsm_gaussian.config.optimizers.copy(), model.get_param_groups())


def step(model: IPSMModel, optimizers: Optimizers, number: int, **batch: Any) -> None:
    model.step_cb(optimizers, number)
    optimizers.zero_grad_all()
    torch.stack(list(losses_of(model, **batch).values())).sum().backward()
    model.step_post_backward(number)


def test_densification_does_not_hear_of_unseen_views() -> None:
    statistics = []
    for unseen in (True, False):
        model = make(geo_weight=1e-30, unseen_depth_weight=0.0)
        optimizers = optimizers_of(model)
        for number in (5002, 5003):  # 5001 is a refinement, which clears the statistics
            batch = {} if unseen else {"unseen": None}
            step(model, optimizers, number, **batch)
        statistics.append(
            {k: v.clone() for k, v in model.strategy_state.items() if k != "scene_scale"}
        )
    assert float(statistics[0]["count"].sum()) > 0
    for name, value in statistics[0].items():
        assert bool((value == statistics[1][name]).all()), name


def test_priors_are_no_part_of_the_checkpoint_or_of_evaluation() -> None:
    plain, with_priors = make().eval(), make().eval()
    with_priors._priors = {"score": FakeScore(), "depth": FakeDepth()}
    assert set(plain.state_dict()) == set(with_priors.state_dict())
    names = {name.split(".")[0] for name in plain.state_dict()}
    assert names == {"gauss_params", "_extra_state", "device_indicator_param"}
    with torch.no_grad():
        first, second = (m.get_outputs(camera())["rgb"] for m in (plain, with_priors))
    assert bool((first == second).all())


def test_the_viewer_sees_the_latest_unseen_view() -> None:
    model = make()
    names = {"unseen_rgb", "unseen_warped", "unseen_mask", "unseen_depth"}
    assert not names & set(model.eval().get_outputs(camera()))
    losses_of(model.train())
    outputs = model.eval().get_outputs(camera())
    assert names <= set(outputs)
    assert {outputs[name].shape[:2] for name in names} == {outputs["rgb"].shape[:2]}


# ---------------------------------------------------------------- what has no term


def test_an_unseen_view_that_sees_nothing() -> None:
    model = make()
    away = UnseenView(camera(0.0, -2.5), camera(), 0.02)
    away.camera.camera_to_worlds[:, :, 2] *= -1  # looks away from the scene
    away.camera.camera_to_worlds[:, :, 0] *= -1
    model._priors["score"] = prior = FakeScore()
    losses = losses_of(model, unseen=away)
    assert set(losses) == {"main_loss", "seen_depth_loss"}
    assert prior.calls == []


@pytest.fixture
def many_blind(monkeypatch: pytest.MonkeyPatch) -> int:
    """So many blind unseen views in a row are said; few, because each is rendered."""
    monkeypatch.setattr(ipsm, "_MANY_BLIND", 5)
    return 5


def test_unseen_views_that_go_on_seeing_nothing_are_said_once(
    warned: list[str], many_blind: int
) -> None:
    model = make()
    away = UnseenView(camera(0.0, -2.5), camera(), 0.02)
    away.camera.camera_to_worlds[:, :, [0, 2]] *= -1
    for _ in range(many_blind - 1):
        losses_of(model, unseen=away)
    losses_of(model)  # one that sees something
    for _ in range(many_blind - 1):
        losses_of(model, unseen=away)
    assert warned == []
    for _ in range(many_blind + 1):
        losses_of(model, unseen=away)
    losses_of(model)
    for _ in range(many_blind + 1):
        losses_of(model, unseen=away)
    (line,) = warned
    assert "5 unseen views in a row" in line
    assert "--pipeline.datamanager.unseen.sigma-max" in line


def test_an_empty_seen_view_is_not_the_fault_of_the_unseen_one(
    warned: list[str], many_blind: int
) -> None:
    model = make()
    model.gauss_params["opacities"].data[:] = -9.0
    for _ in range(many_blind + 1):
        losses_of(model)
    assert warned == []


def test_few_points_have_no_depth_term() -> None:
    model = make()
    few = KnownPoints(*(value[:10] for value in known(model)))
    assert set(losses_of(model, seen_depth=few)) == {"main_loss", "geo_loss"}


class Flat(FakeDepth):
    """Sees one depth, or none, in each picture whose corner is dark."""

    name = "flat"

    def __init__(self, value: float = 3.0, corner: float = 2.0) -> None:
        self.value = value
        self.corner = corner

    def inverse_depth(self, image: Tensor) -> Tensor:
        if float(image[0, 0, 0]) > self.corner:
            return super().inverse_depth(image)
        return torch.full_like(image[0], self.value)


@pytest.mark.parametrize("value", [3.0, math.nan, math.inf])
def test_a_network_that_tells_no_depth_stays_out_and_is_said_once(
    warned: list[str], value: float
) -> None:
    """In how many photographs is known when all three were seen; the network is named."""
    model = make(unseen_depth_weight=0.0)
    model._priors["depth"] = Flat(value, corner=0.5)
    bright, dark = PHOTO.clone(), PHOTO.clone()
    bright[0, 0], dark[0, 0] = 0.9, 0.1
    for index, photograph in enumerate((dark, bright)):
        assert ("seen_depth_loss" in losses_of(model, image=photograph, image_idx=index)) == index
    assert warned == []
    for _ in range(3):
        assert set(losses_of(model, image=dark, image_idx=2)) == {"main_loss", "geo_loss"}
    (line,) = warned
    assert line.startswith("depth network flat gives one depth for the whole")
    assert "2 of 3 photographs" in line
    assert "--pipeline.model.depth" in line


@pytest.mark.parametrize("value", [3.0, math.nan])
def test_renders_without_a_depth_are_said_where_they_show_something(
    warned: list[str], value: float
) -> None:
    model = make(geo_weight=0.0)
    model._priors["depth"] = Flat(value)
    model.gauss_params["opacities"].data[:] = -9.0
    assert set(losses_of(model)) == {"main_loss"}
    assert warned == []
    model.gauss_params["opacities"].data[:] = 2.0
    for _ in range(2):
        assert set(losses_of(model)) == {"main_loss"}
    (line,) = warned
    assert "flat gives one depth" in line
    assert "a render" in line


def test_masked_pixels_of_the_photograph_are_not_warped() -> None:
    model = make()
    mask = torch.zeros(HEIGHT, WIDTH, 1, dtype=torch.bool)
    mask[:, : WIDTH // 2] = True
    losses_of(model)
    whole = float(model._unseen_pictures["unseen_mask"].sum())
    losses_of(model, mask=mask)
    assert 0.0 < float(model._unseen_pictures["unseen_mask"].sum()) < 0.8 * whole


# ---------------------------------------------------------------- small functions


def test_extent_is_that_of_the_cameras() -> None:
    cameras = torch.zeros(3, 3, 4)
    cameras[:, 0, 3] = torch.tensor([-1.0, 0.0, 1.0])
    whole = Cameras(cameras, fx=1.0, fy=1.0, cx=1.0, cy=1.0, width=2, height=2)
    assert capture_extent(whole) == pytest.approx(1.1)


def test_weights_and_schedule_of_the_terms_are_those_of_the_paper_for_llff() -> None:
    config = ipsm_gaussian.config.pipeline.model
    assert isinstance(config, IPSMModelConfig)
    assert (config.seen_depth_weight, config.unseen_depth_weight) == (0.05, 0.5)
    assert (config.ssim_lambda, config.geo_weight, config.score_weight) == (0.2, 2.0, 1.0)
    assert (config.soft_threshold, config.strict_threshold) == (0.3, 0.1)
    score = config.score
    assert (score.w1, score.w2, score.guidance) == (0.2, 2.0, 7.5)
    assert (score.t_min, score.t_max, score.size) == (0.25, 0.75, 512)
    schedule = IPSMSchedule(config.schedule)
    assert schedule.ramp(2250) == 0.5
    assert [s for s in range(10_000) if schedule.has_unseen_view(s)] == list(range(2001, 9500))
