# SPDX-License-Identifier: Apache-2.0
"""The hand calculations in the docstrings of the losses, and what each loss must not do."""

from __future__ import annotations

import math

import pytest
import torch

from ps4pro_nerfstudio.interpolation.losses import (
    LossWeights,
    charbonnier,
    confidence_loss,
    difficulty,
    end_point_error,
    flow_loss,
    laplacian,
    mask_loss,
    psnr_loss,
    total_loss,
)
from ps4pro_nerfstudio.interpolation.network import Estimate


def _image(value: float, size: int = 16) -> torch.Tensor:
    return torch.full((1, 3, size, size), value)


def _ones(size: int = 16) -> torch.Tensor:
    return torch.ones(1, 1, size, size)


def test_charbonnier_of_one_difference() -> None:
    """sqrt(.2^2 + 1e-6) = .2000025."""
    value = charbonnier(_image(0.5), _image(0.3), _ones())
    assert float(value) == pytest.approx(math.sqrt(0.04 + 1e-6), abs=1e-6)


def test_pixels_without_weight_do_not_count() -> None:
    weight = _ones()
    weight[..., :8] = 0.0
    image = _image(0.5)
    image[..., :8] = 0.9
    assert float(charbonnier(image, _image(0.5), weight)) == pytest.approx(1e-3, rel=1e-3)


def test_laplacian_sees_a_constant_offset_in_its_remainder_only() -> None:
    """Each band of a constant is zero, and what remains is the offset."""
    assert float(laplacian(_image(0.5), _image(0.3), _ones())) == pytest.approx(0.2, abs=1e-6)


def test_psnr_loss_of_known_errors() -> None:
    """log(.01003) = -4.602 and log(1.3e-4) = -8.948, averaged over the batch: -6.775."""
    target = torch.cat([_image(0.5), _image(0.5)])
    image = torch.cat([_image(0.6), _image(0.51)])
    value = psnr_loss(image, target, torch.cat([_ones(), _ones()]))
    assert float(value) == pytest.approx(-6.775, abs=2e-3)


def test_end_point_error_of_one_pixel_at_half_time() -> None:
    """Velocities wrong by (2, 0) at t = 1/2 are flows wrong by 1 px; at t = 1/4 by .5 and 1.5."""
    velocity = torch.zeros(2, 4, 4, 4)
    velocity[:, 0] = velocity[:, 2] = 2.0
    error = end_point_error(velocity, torch.zeros_like(velocity), torch.tensor([0.5, 0.25]))
    assert error[0].mean().item() == pytest.approx(1.0, abs=0.011)
    assert error[1, 0].mean().item() == pytest.approx(0.5, abs=0.011)
    assert error[1, 1].mean().item() == pytest.approx(1.5, abs=0.011)


def test_unknown_flow_neither_counts_nor_harms_the_gradient() -> None:
    start = torch.zeros(1, 4, 8, 8)
    velocity = torch.full((1, 4, 8, 8), 2.0, requires_grad=True)
    truth = torch.zeros(1, 4, 8, 8)
    truth[..., 4:] = float("nan")
    loss = flow_loss([start, velocity], truth, torch.tensor([0.5]), torch.ones(1, 2, 8, 8), [1.0])
    loss.backward()
    assert loss.item() == pytest.approx(math.sqrt(2.0), abs=0.011)
    assert velocity.grad is not None
    assert bool(torch.isfinite(velocity.grad).all())
    assert float(velocity.grad[..., 4:].abs().max()) == 0.0


def test_mask_is_asked_only_where_one_frame_shows_the_pixel() -> None:
    seen0 = torch.ones(1, 1, 16, 16, dtype=torch.bool)
    seen1 = seen0.clone()
    logit = torch.zeros(1, 1, 16, 16)
    assert float(mask_loss(logit, seen0, seen1)) == 0.0
    seen1[..., 8:] = False
    assert float(mask_loss(logit, seen0, seen1)) == pytest.approx(math.log(2.0), rel=1e-5)


def test_confidence_is_best_at_the_true_error_and_leaves_the_image_alone() -> None:
    image = _image(0.6).requires_grad_(True)
    scale = torch.full((1, 1, 16, 16), 0.1, requires_grad=True)
    loss = confidence_loss(scale, image, _image(0.5), _ones())
    loss.backward()
    assert loss.item() == pytest.approx(1.0 + math.log(0.1), abs=1e-4)
    assert image.grad is None
    assert scale.grad is not None
    assert float(scale.grad.abs().max()) < 1e-5


def test_difficulty_grows_from_one_to_its_limit() -> None:
    assert float(difficulty(_image(0.5), _image(0.5), 4.0).max()) == 1.0
    assert float(difficulty(_image(0.5), _image(0.55), 4.0)[0, 0, 8, 8]) == pytest.approx(3.0)
    assert float(difficulty(_image(0.1), _image(0.9), 4.0).max()) == pytest.approx(5.0)


def test_the_perceptual_term_is_late_weighted_and_blind_to_unusable_pixels() -> None:
    """A stand-in: the mean absolute difference of two images, half of whose pixels count."""
    ones = torch.ones(1, 1, 16, 16, dtype=torch.bool)
    usable = ones.clone()
    usable[..., 8:] = False
    image, target = _image(0.7), _image(0.5)
    zeros = torch.zeros(1, 4, 16, 16)
    estimate = Estimate(image, target, [zeros, zeros], ones.float(), ones.float())
    arguments = (estimate, target, torch.tensor([0.5]), zeros, ones, ones, usable, LossWeights())
    early = total_loss(*arguments)
    late = total_loss(*arguments, distance=lambda a, b: (a - b).abs().mean(dim=(1, 2, 3)))
    assert "perceptual" not in early
    assert float(late["perceptual"]) == pytest.approx(0.1)
    gained = float(late["total"] - early["total"])
    assert gained == pytest.approx(LossWeights().perceptual * 0.1, abs=1e-6)
