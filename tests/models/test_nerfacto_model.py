# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from nerfstudio.cameras.camera_optimizers import CameraOptimizerConfig
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.data.scene_box import SceneBox
from nerfstudio.models.nerfacto import NerfactoModel

from ps4pro_nerfstudio.messages import InputError
from ps4pro_nerfstudio.methods import ps4pro_nerfacto_small
from ps4pro_nerfstudio.models.nerfacto import (
    PS4PRONerfactoModel,
    PS4PRONerfactoModelConfig,
    errors_of_views,
    photometric_loss,
)
from ps4pro_nerfstudio.pseudo_views.per_view import METADATA_KEY, PseudoSources

NUM_REAL = 4
SOURCES = PseudoSources(
    first=torch.tensor([0, 2]), second=torch.tensor([1, 3]), t=torch.tensor([0.5, 0.25])
)


def _model(sources: PseudoSources | None = SOURCES, **options) -> PS4PRONerfactoModel:
    config: Any = copy.deepcopy(ps4pro_nerfacto_small.config.pipeline.model)
    config.log2_hashmap_size = config.proposal_net_args_list[0]["log2_hashmap_size"] = 8
    for name, value in options.items():
        setattr(config, name, value)
    torch.manual_seed(0)
    model = config.setup(
        scene_box=SceneBox(torch.tensor([[-1.0] * 3, [1.0] * 3])),
        num_train_data=NUM_REAL,
        metadata={} if sources is None else {METADATA_KEY: sources},
        device="cpu",
        grad_scaler=None,
    )
    return model.train()


def _rays(camera_indices: list[int], seed=0) -> RayBundle:
    generator = torch.Generator().manual_seed(seed)
    count = len(camera_indices)
    directions = torch.randn(count, 3, generator=generator)
    return RayBundle(
        origins=0.2 * torch.randn(count, 3, generator=generator),
        directions=directions / directions.norm(dim=-1, keepdim=True),
        pixel_area=torch.full((count, 1), 1e-5),
        camera_indices=torch.tensor(camera_indices)[:, None],
        metadata={"directions_norm": torch.ones(count, 1)},
    )


def _losses(model, rays: RayBundle, batch: dict) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    outputs = model(rays)
    return model.get_loss_dict(outputs, batch, model.get_metrics_dict(outputs, batch))


def _pseudo_batch(num_real: int, confidence: list[float], weight: float) -> dict[str, Any]:
    count = num_real + len(confidence)
    return {
        "image": torch.rand(count, 3, generator=torch.Generator().manual_seed(3)),
        "is_pseudo": torch.arange(count) >= num_real,
        "confidence": torch.tensor([1.0] * num_real + confidence),
        "distance": torch.zeros(count),
        "pseudo_weight": weight,
    }


def test_loss_of_one_real_and_two_pseudo_rays_by_hand():
    """Errors d^2 of the three rays: 0.3^2 = 0.09, 0.2^2 = 0.04 and (0.6^2 + 0 + 0) / 3 = 0.12.

    0.09 + 0.5 * 2 * (0.25 * 0.04 + 0.75 * 0.12) / (0.25 + 0.75) = 0.09 + 1 * 0.1 = 0.19
    """
    target = torch.zeros(3, 3)
    prediction = torch.tensor([[0.3, 0.3, 0.3], [0.2, -0.2, 0.2], [0.6, 0.0, 0.0]])
    loss = photometric_loss(
        prediction,
        target,
        torch.tensor([False, True, True]),
        torch.tensor([1.0, 0.25, 0.75]),
        weight=0.5,
    )
    assert float(loss) == pytest.approx(0.19, abs=1e-7)


def test_only_the_ratio_of_confidences_matters():
    generator = torch.Generator().manual_seed(0)
    prediction, target = torch.rand(2, 6, 3, generator=generator)
    is_pseudo = torch.arange(6) >= 2
    confidence = torch.rand(6, generator=generator)
    one = photometric_loss(prediction, target, is_pseudo, confidence, 0.3)
    other = photometric_loss(prediction, target, is_pseudo, 0.1 * confidence, 0.3)
    torch.testing.assert_close(one, other)
    assert float(photometric_loss(prediction, target, is_pseudo, confidence, 0.0)) == pytest.approx(
        float((prediction[:2] - target[:2]).square().mean())
    )


def test_fully_trusted_rays_count_like_real_ones():
    """With lambda = 1 and C = 1 the loss is R + Q over R times the mean over all rays."""
    prediction, target = torch.rand(2, 6, 3, generator=torch.Generator().manual_seed(0))
    loss = photometric_loss(prediction, target, torch.arange(6) >= 4, torch.ones(6), 1.0)
    torch.testing.assert_close(loss, 6 / 4 * (prediction - target).square().mean())


def test_the_colour_loss_of_a_batch_is_that_function():
    model = _model()
    batch = _pseudo_batch(3, [0.4, 1.0], weight=0.3)
    rays = _rays([0, 1, 3, NUM_REAL, NUM_REAL + 1])
    torch.manual_seed(1)
    outputs = model(rays)
    losses = model.get_loss_dict(outputs, batch, model.get_metrics_dict(outputs, batch))
    error = (outputs["rgb"] - batch["image"]).square().mean(-1)
    expected = error[:3].mean() + 0.3 * (2 / 3) * (0.4 * error[3] + error[4]) / 1.4
    torch.testing.assert_close(losses["rgb_loss"], expected)
    assert set(losses) == {"rgb_loss", "interlevel_loss", "distortion_loss", "depth_loss"}
    assert losses["depth_loss"] == 0.0  # no ray's end is known


@pytest.mark.parametrize("depth_weight", [0.02, 0.0])
def test_the_depth_loss_of_a_batch_is_that_function(depth_weight):
    """Of the middles and widths of all samples, with lambda and the confidence of each ray."""
    model = _model(depth_weight=depth_weight, depth_tolerance=0.1)
    batch = _pseudo_batch(3, [0.4, 1.0], weight=0.3)
    batch["distance"][3:] = torch.tensor([1.5, 0.7])
    torch.manual_seed(1)
    outputs = model(_rays([0, 1, 3, NUM_REAL, NUM_REAL + 1]))
    losses = model.get_loss_dict(outputs, batch, model.get_metrics_dict(outputs, batch))
    if depth_weight == 0.0:
        assert "depth_loss" not in losses
        return
    expected = 0.0
    for weights, samples in zip(outputs["weights_list"], outputs["ray_samples_list"], strict=True):
        frustums = samples.frustums
        for ray, trust, end in ((3, 0.4, 1.5), (4, 1.0, 0.7)):
            middle = (frustums.starts[ray] + frustums.ends[ray])[:, 0] / 2
            width = (frustums.ends[ray] - frustums.starts[ray])[:, 0]
            near = torch.exp(-((middle - end) ** 2) / (2 * (width / 2).clamp_min(0.1 * end) ** 2))
            expected -= trust * torch.log((weights[ray, :, 0] * near).sum() + 1e-4)
    assert len(outputs["weights_list"]) == 2
    torch.testing.assert_close(losses["depth_loss"], 0.02 * 0.3 * expected / (5 * 2))


def test_the_depth_loss_moves_rays_to_their_ends():
    model = _model(camera_optimizer=CameraOptimizerConfig(mode="off"))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    batch = _pseudo_batch(2, [1.0, 1.0], weight=1.0)
    batch["distance"][2:] = torch.tensor([1.0, 0.6])
    rays = [0, 1, NUM_REAL, NUM_REAL + 1]
    errors = []
    for _ in range(120):
        torch.manual_seed(1)
        outputs = model(_rays(rays))
        losses = model.get_loss_dict(outputs, batch, model.get_metrics_dict(outputs, batch))
        optimizer.zero_grad()
        losses["depth_loss"].backward()
        optimizer.step()
        errors.append((outputs["expected_depth"][2:, 0] - batch["distance"][2:]).abs().max())
    assert errors[-1] < 0.02 < errors[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth_weight": -1.0}, "depth_weight must not be negative, got -1.0"),
        ({"depth_tolerance": 0.0}, "depth_tolerance must be positive, got 0.0"),
    ],
)
def test_depth_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        PS4PRONerfactoModelConfig(**options)


def test_errors_of_views_by_hand():
    """View 7: (0.04 + 3 * 0.12) / (1 + 3) = 0.1; view 2: 0.09, whatever its confidence."""
    prediction = torch.tensor([[0.2, -0.2, 0.2], [0.3, 0.3, 0.3], [0.6, 0.0, 0.0]])
    views, confidence = torch.tensor([7, 2, 7]), torch.tensor([0.25, 0.1, 0.75])
    errors = errors_of_views(prediction, torch.zeros(3, 3), views, confidence)
    assert {index: round(float(error), 6) for index, error in errors.items()} == {2: 0.09, 7: 0.1}
    errors = errors_of_views(prediction, torch.zeros(3, 3), views)
    assert float(errors[7]) == pytest.approx(0.08)


def test_training_psnr_is_that_of_real_rays():
    model = _model()
    batch = _pseudo_batch(3, [0.4, 1.0], weight=0.3)
    outputs = model(_rays([0, 1, 3, NUM_REAL, NUM_REAL + 1]))
    error = (outputs["rgb"][:3] - batch["image"][:3]).square().mean()
    psnr = model.get_metrics_dict(outputs, batch)["psnr"]
    torch.testing.assert_close(psnr, -10 * torch.log10(error))


@pytest.mark.parametrize("sources", [None, SOURCES])
def test_without_pseudo_rays_it_is_nerfacto(sources, monkeypatch):
    """Same parameters from the same seed, same losses and gradients of a batch of real rays."""
    mode = {"camera_optimizer": CameraOptimizerConfig(mode="SO3xR3")}
    ours = _model(sources, **mode)
    monkeypatch.setattr(
        "torchmetrics.image.lpip.LearnedPerceptualImagePatchSimilarity", lambda **_: None
    )
    upstream = _model(sources, _target=NerfactoModel, **mode)
    assert type(upstream) is NerfactoModel
    batch = {"image": torch.rand(5, 3, generator=torch.Generator().manual_seed(3))}
    results = [_losses(model, _rays([0, 1, 2, 3, 1]), batch) for model in (ours, upstream)]
    assert results[0].keys() == results[1].keys()
    for name, loss in results[0].items():
        assert torch.equal(loss, results[1][name]), name
    for losses in results:
        torch.stack(list(losses.values())).sum().backward()
    expected = dict(upstream.named_parameters())
    for name, parameter in ours.named_parameters():
        if parameter.grad is None:
            assert expected[name].grad is None, name
        else:
            torch.testing.assert_close(parameter.grad, expected[name].grad, msg=name)


def test_p16_pseudo_rays_teach_no_real_view():
    """Their appearance and pose lie between their photographs', which get no gradient from them."""
    model = _model(camera_optimizer=CameraOptimizerConfig(mode="SO3xR3"))
    with torch.no_grad():
        model.camera_optimizer.pose_adjustment.normal_(std=0.01)
    batch = _pseudo_batch(2, [1.0, 1.0], weight=0.5)
    losses = _losses(model, _rays([0, 1, NUM_REAL, NUM_REAL + 1]), batch)
    losses["rgb_loss"].backward()
    appearance = model.field.embedding_appearance
    assert appearance is not None
    for table in (appearance.embedding.weight, model.camera_optimizer.pose_adjustment):
        assert table.shape[0] == NUM_REAL
        assert table.grad is not None
        assert table.grad[:2].abs().sum() > 0
        assert table.grad[2:].abs().sum() == 0


def test_appearance_and_pose_lie_between_the_photographs():
    model = _model(camera_optimizer=CameraOptimizerConfig(mode="SO3xR3"))
    embedding = model.field.embedding_appearance
    assert embedding is not None
    weight = embedding.embedding.weight
    found = embedding(torch.tensor([3, NUM_REAL + 1]))
    torch.testing.assert_close(found[0], weight[3])
    torch.testing.assert_close(found[1], 0.75 * weight[2] + 0.25 * weight[3])
    with torch.no_grad():
        model.camera_optimizer.pose_adjustment[2, 0] = 0.04
    corrections = model.camera_optimizer(torch.tensor([2, NUM_REAL + 1]))
    assert corrections[:, 0, 3].tolist() == pytest.approx([0.04, 0.03])


def test_masked_pixels_enter_no_metric():
    model = _model(None).eval()
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(24, 32, 3, generator=generator)
    outputs = {
        "rgb": (image + 0.1).clamp(0, 1),
        "accumulation": torch.ones(24, 32, 1),
        "depth": torch.ones(24, 32, 1),
        "prop_depth_0": torch.ones(24, 32, 1),
    }
    mask = torch.ones(24, 32, 1, dtype=torch.bool)
    mask[:, :6] = False
    spoiled = torch.where(mask, image, 1 - image)
    kept, _ = model.get_image_metrics_and_images(outputs, {"image": image, "mask": mask})
    metrics, images = model.get_image_metrics_and_images(outputs, {"image": spoiled, "mask": mask})
    whole, _ = model.get_image_metrics_and_images(outputs, {"image": spoiled})
    assert metrics == kept
    assert whole["psnr"] < metrics["psnr"] - 3
    assert images["img"].shape == (24, 64, 3)
    assert set(images) == {"img", "accumulation", "depth", "prop_depth_0"}


def test_checkpoints_hold_the_sampler_and_are_strict():
    model = _model(None)
    model.proposal_sampler.step_cb(40)
    model.proposal_sampler.step_cb(41)
    state = model.state_dict()
    assert not [name for name in state if name.startswith("lpips")]
    fresh = _model(SOURCES)
    fresh.load_state_dict(state)  # pseudo views add no parameter
    assert fresh.proposal_sampler._step == 41
    assert fresh.proposal_sampler._steps_since_update == 2
    # Plain nerfacto's has metrics in it, and no state of the sampler.
    plain = {k: v for k, v in state.items() if k != "_extra_state"}
    fresh.load_state_dict({**plain, "lpips.net.weight": torch.zeros(1)})
    del plain["field.mlp_head.layers.0.weight"]
    with pytest.raises(InputError, match=r"mlp_head\.layers\.0\.weight"):
        fresh.load_state_dict(plain, strict=False)
