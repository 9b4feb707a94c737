# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import copy
import math
import types
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from nerfstudio.cameras.camera_optimizers import CameraOptimizerConfig
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.data.scene_box import SceneBox
from nerfstudio.engine.callbacks import TrainingCallbackAttributes, TrainingCallbackLocation
from nerfstudio.engine.optimizers import Optimizers

from ps4pro_nerfstudio.messages import InputError
from ps4pro_nerfstudio.methods import ps4pro_splatfacto
from ps4pro_nerfstudio.metrics import ssim
from ps4pro_nerfstudio.models.ipsm import IPSMModelConfig
from ps4pro_nerfstudio.models.splatfacto import (
    DenseStartConfig,
    PS4PROSplatfactoModel,
    PS4PROSplatfactoModelConfig,
    world_to_camera,
)
from ps4pro_nerfstudio.splatting.background import TRANSPARENT_COLOR
from tests.conftest import look_at

WIDTH, HEIGHT = 48, 36


def _model(num_points=60, num_train_data=5, metadata=None, **options) -> PS4PROSplatfactoModel:
    generator = torch.Generator().manual_seed(0)
    xyz = 0.6 * torch.rand(num_points, 3, generator=generator) - 0.3
    rgb = torch.randint(0, 255, (num_points, 3), generator=generator)
    torch.manual_seed(0)
    model = PS4PROSplatfactoModelConfig(**options).setup(
        scene_box=SceneBox(torch.tensor([[-1.0] * 3, [1.0] * 3])),
        num_train_data=num_train_data,
        metadata=metadata or {},
        device="cpu",
        grad_scaler=None,
        seed_points=(xyz, rgb.to(torch.uint8)),
    )
    return model.train()


def _camera(eye=(0.0, 2.0, 0.3), **metadata) -> Cameras:
    pose = torch.from_numpy(look_at(np.array(eye), np.zeros(3))[None, :3]).float()
    camera = Cameras(
        pose, fx=50.0, fy=50.0, cx=WIDTH / 2, cy=HEIGHT / 2, width=WIDTH, height=HEIGHT
    )
    camera.metadata = metadata
    return camera


def _real_camera(index=0, **options) -> Cameras:
    return _camera(cam_idx=index, **options)


def _optimizers(model) -> Optimizers:
    return Optimizers(ps4pro_splatfacto.config.optimizers.copy(), model.get_param_groups())


def _photo(seed=0) -> torch.Tensor:
    return torch.rand(HEIGHT, WIDTH, 3, generator=torch.Generator().manual_seed(seed))


def _step(model, optimizers, step: int, camera=None, **batch) -> float:
    """One training step as the trainer does it."""
    model.step_cb(optimizers, step)
    optimizers.zero_grad_all()
    outputs = model.get_outputs(camera or _real_camera())
    losses = model.get_loss_dict(outputs, {"image": _photo(), **batch})
    loss = torch.stack(list(losses.values())).sum()
    loss.backward()
    optimizers.optimizer_step_all()
    model.step_post_backward(step)
    return float(loss.detach())


def test_p01_seed_points_train_on_the_cpu():
    model = _model()
    optimizers = _optimizers(model)
    losses = [_step(model, optimizers, step) for step in range(12)]
    assert model.device.type == "cpu"
    assert losses[-1] < losses[0]


def test_world_to_camera_is_the_inverse_with_opencv_axes():
    pose = torch.from_numpy(look_at(np.array([1.0, 2.0, 0.5]), np.array([0.1, 0, 0]))).float()
    opencv = pose @ torch.diag(torch.tensor([1.0, -1.0, -1.0, 1.0]))
    torch.testing.assert_close(
        world_to_camera(pose[None, :3])[0] @ opencv, torch.eye(4), atol=1e-6, rtol=0
    )


def test_p22_cameras_keep_their_resolution():
    model = _model(num_downscales=1)
    model.step_cb(_optimizers(model), 0)
    camera = _real_camera()
    outputs = model.get_outputs(camera)
    assert outputs["rgb"].shape == (HEIGHT // 2, WIDTH // 2, 3)
    assert (int(camera.width), int(camera.height), float(camera.fx)) == (WIDTH, HEIGHT, 50.0)


def test_sh_coefficients_above_the_degree_get_no_gradient():
    model = _model(sh_degree_interval=10)
    optimizers = _optimizers(model)
    _step(model, optimizers, 11)  # degree 1: 3 of the 15 coefficients
    gradient = model.gauss_params["features_rest"].grad
    assert gradient[:, :3].abs().sum() > 0
    assert gradient[:, 3:].abs().sum() == 0


# ---------------------------------------------------------------- what nothing stands in


def _looking_away(model) -> dict[str, Any]:
    """Outputs of a camera that has all Gaussians behind it."""
    pose = torch.from_numpy(look_at(np.array([0.0, 2.0, 0.0]), np.array([0.0, 4.0, 0.0]))[:3])
    camera = _camera()
    camera.camera_to_worlds = pose[None].float()
    return model.get_outputs(camera)


def test_what_no_photograph_shows_has_the_colour_of_its_direction():
    """Along +y the fit is (.7, .5, .3); in training the background stays random."""
    model = _model()
    fit = torch.tensor([[0.5, 0.5, 0.5], [0, 0, 0], [0.2, 0, -0.2], [0, 0, 0]])
    model.background_fit = fit
    outputs = _looking_away(model.eval())
    assert float(outputs["accumulation"].max()) == 0.0
    middle = outputs["rgb"][HEIGHT // 2, WIDTH // 2]
    torch.testing.assert_close(middle.detach(), torch.tensor([0.7, 0.5, 0.3]), rtol=0, atol=1e-3)
    assert torch.equal(outputs["rgb"], outputs["background"])
    model.train().step_cb(_optimizers(model), 0)
    first, second = (_looking_away(model)["rgb"] for _ in range(2))
    assert not torch.equal(first, second)


def test_a_background_that_was_asked_for_is_kept():
    model = _model(background_color="white").eval()
    model.background_fit = torch.full((4, 3), 0.1)
    assert float(_looking_away(model)["rgb"].min()) == 1.0


@pytest.mark.parametrize(("background", "in_viewer"), [("random", 0.5), ("black", 0.0)])
def test_evaluation_shows_the_colour_that_the_parser_wants_behind_cut_outs(background, in_viewer):
    """In training what is transparent shows the background of the step."""
    white = {TRANSPARENT_COLOR: torch.ones(3)}
    model = _model(metadata=white, background_color=background)
    model.step_cb(_optimizers(model), 0)
    assert float(_looking_away(model)["rgb"].mean()) < 0.9
    assert float(_looking_away(model.eval())["rgb"].min()) == 1.0
    model.set_background(torch.full((3,), 0.5))  # the viewer's own
    assert float(_looking_away(model)["rgb"].max()) == in_viewer


def test_the_viewer_shows_its_own_background():
    """It sets the colour before each of its renders; the next evaluation is as before."""
    model = _model().eval()
    model.background_fit = torch.tensor([[0.6] * 3, [0.0] * 3, [0.0] * 3, [0.0] * 3])
    model.set_background(torch.tensor([0.0, 1.0, 0.0]))
    for shown in [(0.0, 1.0, 0.0), (0.6, 0.6, 0.6)]:
        pixel = _looking_away(model)["rgb"][0, 0].detach()
        torch.testing.assert_close(pixel, torch.tensor(shown))


@pytest.mark.parametrize(
    ("num_views", "unseen_color", "is_fitted"),
    [(3, "photographs", True), (40, "photographs", False), (3, "background", False)],
)
def test_the_background_of_few_photographs_is_fitted_and_kept(num_views, unseen_color, is_fitted):
    model = _model(num_train_data=num_views, unseen_color=unseen_color)
    _fit_grey_background(model)
    loaded = _model(num_train_data=num_views)
    loaded.load_state_dict(model.state_dict())
    if is_fitted:
        assert model.background_fit is not None
        assert loaded.background_fit is not None
        assert torch.equal(loaded.background_fit, model.background_fit)
        torch.testing.assert_close(
            _looking_away(loaded.eval())["rgb"].detach(), torch.full((HEIGHT, WIDTH, 3), 0.6)
        )
    else:
        assert model.background_fit is None
        assert loaded.background_fit is None


def test_cut_outs_have_no_background_and_the_plan_says_none():
    model = _model(num_train_data=3)
    _fit_grey_background(model, channels=4)
    assert model.background_fit is None
    assert model.plan is not None
    assert not model.plan.colors_unseen


def _fit_grey_background(model, channels=3) -> None:
    manager = types.SimpleNamespace(
        cached_train=[{"image": torch.full((HEIGHT, WIDTH, channels), 0.6)}],
        train_dataset=types.SimpleNamespace(cameras=_camera()),
    )
    pipeline: Any = types.SimpleNamespace(datamanager=manager)
    nothing: Any = None
    model.get_training_callbacks(TrainingCallbackAttributes(nothing, None, pipeline, nothing))  # type: ignore[arg-type]


# ---------------------------------------------------------------- loss


def test_p17_pixels_outside_the_mask_change_nothing():
    """Whatever stands in masked pixels, loss and gradients are the same to the bit."""
    mask = torch.ones(HEIGHT, WIDTH, 1, dtype=torch.bool)
    mask[:, :9] = False
    results = []
    for junk in (0.0, 1.0, float("nan")):
        model = _model(background_color="black")
        optimizers = _optimizers(model)
        photo = torch.where(mask, _photo(), junk)
        loss = _step(model, optimizers, 0, image=photo, mask=mask)
        results.append((loss, model.means.detach().clone()))
    for loss, means in results[1:]:
        assert loss == results[0][0]
        assert torch.equal(means, results[0][1])


def test_border_pixels_enter_no_metric():
    model = _model().eval()
    outputs = model.get_outputs(_camera())
    mask = torch.ones(HEIGHT, WIDTH, 1, dtype=torch.bool)
    mask[:3] = False
    truth = outputs["rgb"].clamp(0.1, 0.9)
    broken = torch.where(mask, truth, 0.0)
    whole, _ = model.get_image_metrics_and_images(outputs, {"image": truth})
    masked, _ = model.get_image_metrics_and_images(outputs, {"image": broken, "mask": mask})
    unmasked, _ = model.get_image_metrics_and_images(outputs, {"image": broken})
    assert masked["psnr"] == pytest.approx(whole["psnr"], abs=2.0)
    assert unmasked["psnr"] < whole["psnr"] - 3


def test_metrics_on_white_count_the_outside_of_a_mask_as_equal():
    """PSNR stays that of the inside; SSIM gains the windows outside, which are white in both."""
    mask = torch.ones(HEIGHT, WIDTH, 1, dtype=torch.bool)
    mask[:, : WIDTH // 2] = False
    inside, on_white = (_model(metrics_on_white=white).eval() for white in (False, True))
    with torch.no_grad():
        outputs = inside.get_outputs(_camera())
    truth = torch.where(mask, (outputs["rgb"] + 0.1 * _photo()).clamp(0, 1), 0.0)
    batch = {"image": truth, "mask": mask}
    measured, _ = inside.get_image_metrics_and_images(outputs, batch)
    white, _ = on_white.get_image_metrics_and_images(outputs, batch)
    assert white["psnr"] == measured["psnr"]
    pictures = [torch.where(mask, picture, 1.0) for picture in (outputs["rgb"], truth)]
    assert white["ssim"] == pytest.approx(float(ssim(*pictures)), abs=1e-6)
    assert white["ssim"] > measured["ssim"]
    unmasked = {"image": truth.clamp(0.1, 0.9)}
    whole = [
        model.get_image_metrics_and_images(outputs, unmasked)[0] for model in (inside, on_white)
    ]
    assert whole[0] == whole[1]


def test_a_pseudo_view_counts_with_its_weight():
    model = _model(background_color="black")
    model.step_cb(_optimizers(model), 0)
    outputs = model.get_outputs(_camera(pseudo_idx=0))
    batch = {
        "image": _photo(), "confidence": torch.ones(HEIGHT, WIDTH),
        "mask": torch.ones(HEIGHT, WIDTH, 1, dtype=torch.bool),
    }  # fmt: skip
    real = model.get_loss_dict(outputs, {"image": _photo()})["main_loss"]
    pseudo = model.get_loss_dict(outputs, {**batch, "pseudo_weight": 0.3})["main_loss"]
    torch.testing.assert_close(pseudo, 0.3 * real, rtol=1e-4, atol=1e-6)


def test_confidence_zero_is_no_supervision():
    model = _model()
    optimizers = _optimizers(model)
    before = model.means.detach().clone()
    zeros = torch.zeros(HEIGHT, WIDTH)
    loss = _step(
        model, optimizers, 0, _camera(pseudo_idx=0),
        confidence=zeros, mask=(zeros > 0)[..., None], pseudo_weight=0.3,
    )  # fmt: skip
    assert loss == 0
    torch.testing.assert_close(model.means.detach(), before, rtol=0, atol=0)


# ---------------------------------------------------------------- densification


@pytest.mark.parametrize("num_views", [3, 400, 2_900, 6_000])
def test_p15_densification_is_never_switched_off(num_views):
    """Upstream pauses for num_views + 100 steps of each 3,000: from 2,900 views on, always."""
    model = _model(num_train_data=num_views)
    strategy = model.strategy
    assert strategy.pause_refine_after_reset == min(num_views + 100, 1500)
    assert any(
        step % strategy.reset_every >= strategy.pause_refine_after_reset for step in range(3000)
    )


def test_p15_pseudo_views_do_not_steer_densification():
    model = _model()
    optimizers = _optimizers(model)
    _step(model, optimizers, 0)
    before = {k: v.clone() for k, v in model.strategy_state.items() if torch.is_tensor(v)}
    assert before["count"].sum() > 0
    ones = torch.ones(HEIGHT, WIDTH)
    _step(
        model, optimizers, 1, _camera(pseudo_idx=0),
        confidence=ones, mask=(ones > 0)[..., None], pseudo_weight=0.3,
    )  # fmt: skip
    for name, value in before.items():
        assert torch.equal(model.strategy_state[name], value), name


@pytest.mark.parametrize(
    ("options", "num_pseudo", "said"),
    [
        ({"use_bilateral_grid": True}, 1, "without the bilateral grid; where"),
        ({"camera_optimizer": CameraOptimizerConfig(mode="SO3xR3")}, 1, "pose corrections; where"),
        ({}, 1, ""),
        ({"use_bilateral_grid": True}, 0, ""),
    ],
)
def test_what_pseudo_views_are_rendered_without_is_said(options, num_pseudo, said, capsys):
    model = _model(max_angular_scale=0.0, unseen_color="background", **options)
    manager = types.SimpleNamespace(pseudo_views=[object()] * num_pseudo)
    pipeline: Any = types.SimpleNamespace(datamanager=manager)
    attributes = TrainingCallbackAttributes(
        optimizers=_optimizers(model), grad_scaler=None, pipeline=pipeline, trainer=None
    )  # type: ignore[arg-type]
    model.get_training_callbacks(attributes)
    out = " ".join(capsys.readouterr().out.split())
    assert said in out if said else "rendered without" not in out


def test_densification_ends_with_the_fraction_of_the_run():
    model = _model(num_train_data=100)
    trainer: Any = types.SimpleNamespace(run_length=1000)
    attributes = TrainingCallbackAttributes(
        optimizers=_optimizers(model), grad_scaler=None, pipeline=None, trainer=trainer
    )  # type: ignore[arg-type]
    model.get_training_callbacks(attributes)
    assert model.strategy.refine_stop_iter == 500
    trainer.run_length = 100_000
    model.get_training_callbacks(attributes)
    assert model.strategy.refine_stop_iter == 15_000


@pytest.mark.parametrize(
    ("num_points", "num_views", "options", "end", "grad_thresh"),
    [
        (10_000, 3, {}, 1000, 0.0004),
        (10_000, 12, {}, 1000, 0.0004),
        (10_000, 26, {}, 2000, 0.0004),  # half of the way to 40
        (10_000, 39, {}, 2500, 0.0004),  # half of the run comes first
        (10_000, 40, {}, 2500, 0.0008),  # a dense capture
        (9_999, 3, {}, 2500, 0.0008),  # few points have to grow first
        (10_000, 3, {"dense_start": DenseStartConfig(enabled=False)}, 2500, 0.0008),
        (10_000, 3, {"dense_start": DenseStartConfig(stop_split_at=0)}, 0, 0.0004),
        # What is earlier or lower by itself stays so.
        (10_000, 3, {"densify_until": 0.15, "densify_grad_thresh": 0.0002}, 750, 0.0002),
        (10_000, 3, {"stop_split_at": 600}, 600, 0.0004),
    ],
)
def test_densification_from_many_points_is_early_and_short(
    num_points, num_views, options, end, grad_thresh
):
    model = _model(num_points, num_train_data=num_views, **options)
    trainer: Any = types.SimpleNamespace(run_length=5000)
    optimizers: Any = None
    model.get_training_callbacks(
        TrainingCallbackAttributes(optimizers, None, None, trainer)  # type: ignore[arg-type]
    )
    assert model.strategy.refine_stop_iter == end
    assert model.strategy.grow_grad2d == grad_thresh


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stop_split_at": -1}, "dense_start.stop_split_at must not be negative, got -1"),
        ({"grad_thresh": 0.0}, "dense_start.grad_thresh must be positive, got 0.0"),
        ({"grad_thresh": math.nan}, "dense_start.grad_thresh must be positive"),
    ],
)
def test_dense_starts_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        DenseStartConfig(**options)


@pytest.mark.parametrize("config", [PS4PROSplatfactoModelConfig, IPSMModelConfig])
def test_config_of_an_earlier_version_is_read(config):
    now = config(fading=0.001)
    earlier = copy.copy(now)
    del earlier.dense_start
    read = yaml.load(yaml.dump(earlier), Loader=yaml.Loader)
    assert type(read) is config
    assert read.fading == 0.001
    assert read.dense_start == DenseStartConfig()


@pytest.mark.parametrize("share", [-0.1, math.nan])
def test_angular_scales_are_not_negative(share):
    with pytest.raises(ValueError, match="max_angular_scale must not be negative"):
        PS4PROSplatfactoModelConfig(max_angular_scale=share)


@pytest.mark.parametrize(
    ("num_views", "share", "is_bounded"), [(3, 0.2, True), (3, 0.0, False), (40, 0.2, False)]
)
def test_scales_are_bounded_with_few_photographs(num_views, share, is_bounded):
    model = _model(num_train_data=num_views, max_angular_scale=share)
    model.gauss_params["scales"].data.fill_(3.0)
    manager = types.SimpleNamespace(
        cached_train=[{"image": _photo()}], train_dataset=types.SimpleNamespace(cameras=_camera())
    )
    pipeline: Any = types.SimpleNamespace(datamanager=manager)
    nothing: Any = None
    attributes = TrainingCallbackAttributes(nothing, None, pipeline, nothing)  # type: ignore[arg-type]
    for callback in model.get_training_callbacks(attributes):
        if callback.func.__name__ == "bound":
            callback.run_callback_at_location(20, TrainingCallbackLocation.AFTER_TRAIN_ITERATION)
    assert bool((model.gauss_params["scales"] < 3.0).all()) == is_bounded


@pytest.mark.parametrize(
    ("num_views", "fading", "kept"), [(3, 0.1, 0.9), (26, 0.1, 0.95), (40, 0.1, 1.0), (3, 0.0, 1.0)]
)
def test_fading_ends_as_captures_get_denser(num_views, fading, kept):
    model = _model(num_train_data=num_views, fading=fading)
    before = model.gauss_params["opacities"].sigmoid().detach().clone()
    attributes = TrainingCallbackAttributes(
        optimizers=None, grad_scaler=None, pipeline=None, trainer=None
    )  # pyright: ignore[reportArgumentType]
    for callback in _fading_callbacks(model, attributes):
        callback.run_callback_at_location(0, TrainingCallbackLocation.AFTER_TRAIN_ITERATION)
    torch.testing.assert_close(model.gauss_params["opacities"].sigmoid(), kept * before)


def test_fading_stops_before_the_run_ends():
    """Of 1,000 steps the first 900 fade."""
    model = _model(num_train_data=3, fading=0.1)
    trainer: Any = types.SimpleNamespace(run_length=1000)
    optimizers: Any = None
    attributes = TrainingCallbackAttributes(optimizers, None, None, trainer)  # type: ignore[arg-type]
    (callback,) = _fading_callbacks(model, attributes)
    for step, kept in [(899, 0.9), (900, 1.0), (999, 1.0)]:
        before = model.gauss_params["opacities"].sigmoid().detach().clone()
        callback.run_callback_at_location(step, TrainingCallbackLocation.AFTER_TRAIN_ITERATION)
        torch.testing.assert_close(model.gauss_params["opacities"].sigmoid(), kept * before)


def _fading_callbacks(model, attributes):
    return [
        callback
        for callback in model.get_training_callbacks(attributes)
        if callback.func.__name__ == "fade"
    ]


@pytest.mark.parametrize("fading_until", [-0.1, 1.1, math.nan])
def test_fading_stops_within_the_run(fading_until):
    with pytest.raises(ValueError, match="fading_until must lie in"):
        PS4PROSplatfactoModelConfig(fading_until=fading_until)


@pytest.mark.parametrize("fading", [-0.1, 1.0, math.nan])
def test_fading_is_a_share(fading):
    with pytest.raises(ValueError, match="fading must lie in"):
        PS4PROSplatfactoModelConfig(fading=fading)


def test_p16_a_pseudo_view_leaves_per_image_parameters_alone():
    """With camera optimisation on, a pseudo view renders from its own pose and corrects none."""
    model = _model(camera_optimizer=CameraOptimizerConfig(mode="SO3xR3"))
    with torch.no_grad():
        model.camera_optimizer.pose_adjustment.add_(0.05)
    model.step_cb(_optimizers(model), 0)
    ones = torch.ones(HEIGHT, WIDTH)
    batch = {"image": _photo(), "confidence": ones, "mask": (ones > 0)[..., None]}
    outputs = model.get_outputs(_camera(pseudo_idx=0))
    model.get_loss_dict(outputs, batch)["main_loss"].backward()
    assert model.camera_optimizer.pose_adjustment.grad is None
    # A real view is moved by its correction and teaches it.
    outputs = model.get_outputs(_real_camera(2))
    model.get_loss_dict(outputs, {"image": _photo()})["main_loss"].backward()
    gradient = model.camera_optimizer.pose_adjustment.grad
    assert gradient is not None
    assert gradient[2].abs().sum() > 0
    assert gradient[[0, 1, 3, 4]].abs().sum() == 0


# ---------------------------------------------------------------- checkpoints


def test_p09_loading_keeps_the_optimizers_bound():
    trained = _model(num_points=80)
    model = _model(num_points=60)
    optimizers = _optimizers(model)
    model.load_state_dict(trained.state_dict())
    for name, parameter in model.gauss_params.items():
        assert optimizers.parameters[name][0] is parameter
        assert torch.equal(parameter, trained.gauss_params[name])
    before = model.means.detach().clone()
    _step(model, optimizers, 0)
    assert not torch.equal(model.means, before)


def test_p10_the_step_of_the_checkpoint_is_kept():
    model = _model()
    model.update_to_step(123)
    model.load_state_dict(_model().state_dict())
    assert model.step == 123


def test_p10_strategy_state_survives():
    trained = _model()
    optimizers = _optimizers(trained)
    for step in range(3):
        _step(trained, optimizers, step)
    model = _model()
    model.load_state_dict(trained.state_dict())
    for name, value in trained.strategy_state.items():
        if torch.is_tensor(value):
            assert torch.equal(model.strategy_state[name], value)
        else:
            assert model.strategy_state[name] == value


def test_p11_a_checkpoint_that_does_not_fit_is_refused():
    state = _model().state_dict()
    state["gauss_params.colours"] = state.pop("gauss_params.features_dc")
    with pytest.raises(InputError, match=r"features_dc.*colours"):
        _model().load_state_dict(state)
    model = _model(allow_partial_load=True)
    kept = model.features_dc.detach().clone()
    model.load_state_dict(state)
    assert torch.equal(model.features_dc, kept)


def test_a_checkpoint_of_plain_splatfacto_loads():
    """It has LPIPS weights, no strategy state, and before nerfstudio 1.0 no `gauss_params.`."""
    state = _model().state_dict()
    state.pop("_extra_state")
    state["lpips.net.lin0.model.1.weight"] = torch.zeros(1)
    _model(num_points=70).load_state_dict(dict(state))
    old = {k.removeprefix("gauss_params."): v for k, v in state.items()}
    model = _model(num_points=70)
    model.load_state_dict(old)
    assert torch.equal(model.means, state["gauss_params.means"])


def test_p13_no_metric_network_enters_the_checkpoint():
    model = _model()
    model.eval().get_image_metrics_and_images(model.get_outputs(_camera()), {"image": _photo()})
    assert {key.split(".")[0] for key in model.state_dict()} == {"gauss_params", "_extra_state"} | (
        {"device_indicator_param"} if "device_indicator_param" in model.state_dict() else set()
    )
