# SPDX-License-Identifier: Apache-2.0
"""Laws that every frame interpolator of the package obeys, and the warp they share."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from ps4pro_nerfstudio.interpolation import FrameInterpolator
from ps4pro_nerfstudio.interpolation.optical_flow import LinearBlend, OpticalFlowInterpolator
from ps4pro_nerfstudio.interpolation.protocol import sample_at

INTERPOLATORS: list[FrameInterpolator] = [LinearBlend(), OpticalFlowInterpolator()]
each_interpolator = pytest.mark.parametrize(
    "interpolator", INTERPOLATORS, ids=lambda interpolator: interpolator.name
)


def texture(height: int, width: int, seed: int = 0, batch: int = 1) -> Tensor:
    """Smooth random frames [batch, 3, height, width] in [0, 1] with detail of a few pixels."""
    import cv2

    noise = np.random.default_rng(seed).random((batch, height, width, 3)).astype(np.float32)
    smooth = np.stack([cv2.GaussianBlur(frame, (0, 0), 2.0) for frame in noise])
    smooth = (smooth - smooth.min()) / (smooth.max() - smooth.min())
    return torch.from_numpy(smooth).permute(0, 3, 1, 2).contiguous()


@each_interpolator
def test_ends_are_the_inputs_exactly(interpolator: FrameInterpolator) -> None:
    a, b = texture(48, 64, seed=1), texture(48, 64, seed=2)
    assert torch.equal(interpolator(a, b, 0.0).image, a)
    assert torch.equal(interpolator(a, b, 1.0).image, b)


@each_interpolator
def test_equal_frames_give_themselves(interpolator: FrameInterpolator) -> None:
    a = texture(48, 64)
    result = interpolator(a, a.clone(), 0.5)
    assert (result.image - a).abs().max() < 1e-2
    assert (result.image - a).square().mean().sqrt() < 10 ** (-45 / 20)
    assert result.confidence.min() > 0.9


@each_interpolator
@pytest.mark.parametrize("size", [(7, 9), (17, 33), (64, 48)])
@pytest.mark.parametrize("batch", [1, 3])
def test_any_size_and_batch_equals_singles(
    interpolator: FrameInterpolator, size: tuple[int, int], batch: int
) -> None:
    a, b = texture(*size, seed=1, batch=batch), texture(*size, seed=2, batch=batch)
    together = interpolator(a, b, 0.3)
    assert together.image.shape == a.shape
    assert together.flow_t0.shape == together.flow_t1.shape == (batch, 2, *size)
    assert together.mask.shape == together.confidence.shape == (batch, 1, *size)
    assert together.image.min() >= 0.0
    assert together.image.max() <= 1.0
    for index in range(batch):
        alone = interpolator(a[index : index + 1], b[index : index + 1], 0.3)
        for name, value in vars(alone).items():
            assert torch.equal(value[0], vars(together)[name][index]), name


@each_interpolator
def test_exchange_of_the_frames_reverses_time(interpolator: FrameInterpolator) -> None:
    a = texture(64, 80)
    b = torch.roll(a, 3, dims=3)
    forward, backward = interpolator(a, b, 0.25), interpolator(b, a, 0.75)
    assert torch.allclose(forward.image, backward.image, atol=1e-5)
    assert torch.allclose(forward.flow_t0, backward.flow_t1, atol=1e-4)
    assert torch.allclose(forward.flow_t1, backward.flow_t0, atol=1e-4)
    assert torch.allclose(forward.mask, 1.0 - backward.mask, atol=1e-6)


@each_interpolator
def test_same_call_gives_the_same_bits(interpolator: FrameInterpolator) -> None:
    a, b = texture(48, 64, seed=1), texture(48, 64, seed=2)
    first, second = interpolator(a, b, 0.5), interpolator(a, b, 0.5)
    assert all(torch.equal(value, vars(second)[name]) for name, value in vars(first).items())


@each_interpolator
def test_type_of_the_frames_is_kept(interpolator: FrameInterpolator) -> None:
    a = texture(32, 32).double()
    result = interpolator(a, a, 0.5)
    assert {value.dtype for value in vars(result).values()} == {torch.float64}


@each_interpolator
def test_unusable_frames_are_refused_with_both_shapes(interpolator: FrameInterpolator) -> None:
    a = texture(32, 40)
    with pytest.raises(ValueError, match=r"\(1, 3, 32, 40\).*\(1, 3, 40, 32\)"):
        interpolator(a, texture(40, 32), 0.5)
    with pytest.raises(ValueError, match=r"\(3, 32, 40\)"):
        interpolator(a[0], a[0], 0.5)
    broken = a.clone()
    broken[0, 0, 3, 3] = float("nan")
    with pytest.raises(ValueError, match=r"finite.*\(1, 3, 32, 40\)"):
        interpolator(a, broken, 0.5)
    with pytest.raises(ValueError, match="floating point"):
        interpolator((a * 255).byte(), (a * 255).byte(), 0.5)
    with pytest.raises(ValueError, match=r"t must lie in \[0, 1\], got 1.5"):
        interpolator(a, a, 1.5)


def test_identities_tell_settings_apart() -> None:
    identities = {
        LinearBlend().identity,
        OpticalFlowInterpolator().identity,
        OpticalFlowInterpolator(finest_scale=1).identity,
    }
    assert len(identities) == 3


def test_sampling_at_zero_flow_is_the_identity() -> None:
    a = texture(15, 22)
    assert torch.allclose(sample_at(a, torch.zeros(1, 2, 15, 22)), a, atol=1e-5)


def test_sampling_at_an_integer_shift_reads_that_pixel_and_repeats_the_border() -> None:
    a = texture(15, 22)
    flow = torch.zeros(1, 2, 15, 22)
    flow[:, 0], flow[:, 1] = 3.0, -2.0
    shifted = sample_at(a, flow)
    assert torch.allclose(shifted[..., 2:, :-3], a[..., :-2, 3:], atol=1e-5)
    assert torch.allclose(shifted[..., 2:, -1], a[..., :-2, -1], atol=1e-5)


def test_sampling_passes_gradients() -> None:
    image = torch.rand(1, 1, 6, 6, dtype=torch.float64, requires_grad=True)
    flow = 0.3 + 0.4 * torch.rand(1, 2, 6, 6, dtype=torch.float64)
    flow.requires_grad_(True)
    assert torch.autograd.gradcheck(sample_at, (image, flow))
