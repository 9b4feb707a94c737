# SPDX-License-Identifier: Apache-2.0
"""Laws of the photometric loss: splatfacto's value, the weights, and kernel against twin."""

import pytest
import torch
from pytorch_msssim import SSIM

from ps4pro_nerfstudio.geometry.windows import window_average, windows_inside
from ps4pro_nerfstudio.splatting.losses import (
    LossWeights,
    l1_ssim_loss,
    l1_ssim_reference,
    loss_weights,
)

# Differences of float32 kernels from float64: rounding of E[x^2] - mu^2 over 121 pixels.
VALUE_TOLERANCE = 2e-6
GRADIENT_TOLERANCE = 1e-5


def images(height, width, seed=0):
    """A smooth target and a noisy prediction, both in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    target = torch.rand(1, 3, height, width, generator=generator)
    target = torch.nn.functional.avg_pool2d(target, 5, 1, 2)[0].permute(1, 2, 0).contiguous()
    noise = 0.1 * torch.randn(height, width, 3, generator=generator)
    return (target + noise).clamp(0, 1), target


def random_weights(height, width, seed=0):
    """Weights with zeros among them, pixels and windows independent of each other."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.rand(height, width, generator=generator) - 0.3
    windows = torch.rand(height - 10, width - 10, generator=generator) - 0.3
    return LossWeights(pixels.clamp_min(0), windows.clamp_min(0))


def value_and_gradient(loss, prediction, target, ssim_lambda=0.2, weights=None):
    leaf = prediction.clone().requires_grad_(True)
    value = loss(leaf, target, ssim_lambda, weights)
    (gradient,) = torch.autograd.grad(value, leaf)
    return value.detach(), gradient


def relative_error(value, truth):
    return float((value.double() - truth).norm() / truth.norm())


SIZES = [(11, 11), (11, 40), (37, 11), (23, 31), (48, 65)]


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("weighted", [False, True])
def test_kernel_equals_its_float64_twin(height, width, weighted):
    prediction, target = images(height, width)
    weights = random_weights(height, width) if weighted else None
    exact = LossWeights(weights.pixels.double(), weights.windows.double()) if weights else None
    value, gradient = value_and_gradient(l1_ssim_loss, prediction, target, 0.2, weights)
    true_value, true_gradient = value_and_gradient(
        l1_ssim_reference, prediction.double(), target.double(), 0.2, exact
    )
    assert float(value) == pytest.approx(float(true_value), abs=VALUE_TOLERANCE)
    assert relative_error(gradient, true_gradient) < GRADIENT_TOLERANCE


@pytest.mark.parametrize("ssim_lambda", [0.0, 0.2, 1.0])
def test_without_weights_it_is_the_loss_of_splatfacto(ssim_lambda):
    """Upstream: (1 - lambda) |gt - pred|.mean() + lambda (1 - SSIM(gt, pred)), data range 1."""

    def splatfacto(prediction, target, ssim_lambda, _):
        similarity = SSIM(data_range=1.0, size_average=True, channel=3)(
            target.permute(2, 0, 1)[None], prediction.permute(2, 0, 1)[None]
        )
        l1 = (target - prediction).abs().mean()
        return (1 - ssim_lambda) * l1 + ssim_lambda * (1 - similarity)

    prediction, target = images(40, 33)
    truth = value_and_gradient(splatfacto, prediction.double(), target.double(), ssim_lambda)
    twin = value_and_gradient(l1_ssim_reference, prediction.double(), target.double(), ssim_lambda)
    kernel = value_and_gradient(l1_ssim_loss, prediction, target, ssim_lambda)
    assert float(twin[0]) == pytest.approx(float(truth[0]), rel=1e-12)
    assert relative_error(twin[1], truth[1]) < 1e-12
    assert float(kernel[0]) == pytest.approx(float(truth[0]), abs=VALUE_TOLERANCE)
    assert relative_error(kernel[1], truth[1]) < GRADIENT_TOLERANCE


@pytest.mark.parametrize("loss", [l1_ssim_loss, l1_ssim_reference])
def test_value_on_constant_images_by_hand(loss):
    """One 11x11 window, p = .5 and t = .3 everywhere, lambda = .2.

    L1 = .2. Variances and covariance vanish, so the structure factor is C2 / C2 = 1 and
    SSIM = (2 * .5 * .3 + .0001) / (.25 + .09 + .0001) = .3001 / .3401 = .8823875.
    Loss = .8 * .2 + .2 * (1 - .8823875) = .16 + .0235225 = .1835225.

    With p = t in the left 4 columns (weight 3 each) and weight 1 elsewhere, window weight 0:
    L1 = (77 * .2) / (44 * 3 + 77) = 15.4 / 209 = .0736842, loss = .8 * .0736842 = .0589474.
    """
    prediction, target = torch.full((11, 11, 3), 0.5), torch.full((11, 11, 3), 0.3)
    # float32: the variances are rounding errors of 1e-7 beside C2 = 9e-4, a change of 1e-4 in SSIM.
    assert float(loss(prediction, target)) == pytest.approx(0.1835225, abs=2e-5)

    prediction[:, :4] = 0.3
    pixels = torch.ones(11, 11)
    pixels[:, :4] = 3
    weights = LossWeights(pixels, torch.zeros(1, 1))
    assert float(loss(prediction, target, 0.2, weights)) == pytest.approx(0.0589474, abs=1e-6)


@pytest.mark.parametrize("loss", [l1_ssim_loss, l1_ssim_reference])
def test_equal_images_cost_nothing(loss):
    _, target = images(20, 24)
    value, gradient = value_and_gradient(loss, target, target)
    assert abs(float(value)) < 1e-6
    # The slope of SSIM at its maximum is 0, and of |d| at 0 by convention.
    assert float(gradient.abs().max()) < 1e-6


@pytest.mark.parametrize("loss", [l1_ssim_loss, l1_ssim_reference])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_weights_of_one_are_no_weights(loss, dtype):
    prediction, target = (image.to(dtype) for image in images(25, 30))
    ones = LossWeights(torch.ones(25, 30, dtype=dtype), torch.ones(15, 20, dtype=dtype))
    plain = value_and_gradient(loss, prediction, target)
    weighted = value_and_gradient(loss, prediction, target, 0.2, ones)
    torch.testing.assert_close(weighted, plain)


@pytest.mark.parametrize("loss", [l1_ssim_loss, l1_ssim_reference])
def test_scaling_all_weights_changes_nothing(loss):
    prediction, target = images(25, 30)
    weights = random_weights(25, 30)
    scaled = LossWeights(4 * weights.pixels, 4 * weights.windows)  # a power of two: exact
    plain = value_and_gradient(loss, prediction, target, 0.2, weights)
    again = value_and_gradient(loss, prediction, target, 0.2, scaled)
    torch.testing.assert_close(again, plain, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("loss", [l1_ssim_loss, l1_ssim_reference])
def test_all_zero_weights_give_zero_loss_and_gradient(loss):
    prediction, target = images(25, 30)
    weights = loss_weights(torch.zeros(25, 30, dtype=torch.bool), None)
    value, gradient = value_and_gradient(loss, prediction, target, 0.2, weights)
    assert float(value) == 0
    assert not gradient.any()


def invalid_border_and_hole(height, width):
    valid = torch.ones(height, width, dtype=torch.bool)
    valid[:3] = False
    valid[:, -2:] = False
    valid[height // 2, width // 3] = False
    return valid


@pytest.mark.parametrize("loss", [l1_ssim_loss, l1_ssim_reference])
@pytest.mark.parametrize("garbage", [float("nan"), float("inf"), -1e30, 3e38, 0.7])
@pytest.mark.parametrize("with_confidence", [False, True])
def test_p17_invalid_pixels_never_influence_the_loss(loss, garbage, with_confidence):
    """Bit-equal value and gradient whatever stands at invalid pixels, in either image."""
    height, width = 45, 52
    prediction, target = images(height, width)
    valid = invalid_border_and_hole(height, width)
    confidence = torch.rand(height, width) if with_confidence else None
    clean = value_and_gradient(loss, prediction, target, 0.2, loss_weights(valid, confidence))
    target[~valid] = garbage
    prediction[~valid] = -garbage
    if confidence is not None:
        confidence[~valid] = garbage
    weights = loss_weights(valid, confidence)
    dirty = value_and_gradient(loss, prediction, target, 0.2, weights)
    assert torch.equal(clean[0], dirty[0])
    assert torch.equal(clean[1], dirty[1])
    assert not dirty[1][~valid].any()
    assert dirty[1][valid].any()


def test_nan_at_a_valid_pixel_reaches_the_loss():
    prediction, target = images(25, 30)
    prediction[12, 12, 1] = float("nan")
    assert torch.isnan(l1_ssim_loss(prediction, target))
    weights = loss_weights(torch.ones(25, 30, dtype=torch.bool), None)
    assert torch.isnan(l1_ssim_loss(prediction, target, 0.2, weights))


def test_a_masked_border_leaves_the_loss_of_the_cropped_image():
    """Windows fully inside a rectangle are the windows of the crop, and so are the pixels."""
    prediction, target = images(40, 50)
    valid = torch.zeros(40, 50, dtype=torch.bool)
    valid[5:33, 7:44] = True
    masked = value_and_gradient(l1_ssim_loss, prediction, target, 0.2, loss_weights(valid, None))
    cropped = value_and_gradient(
        l1_ssim_loss, prediction[5:33, 7:44].contiguous(), target[5:33, 7:44].contiguous()
    )
    torch.testing.assert_close(masked[0], cropped[0])
    torch.testing.assert_close(masked[1][5:33, 7:44], cropped[1], rtol=1e-4, atol=1e-9)


def test_window_weights_average_the_confidence_inside_the_mask():
    confidence = torch.rand(30, 26)
    valid = invalid_border_and_hole(30, 26)
    weights = loss_weights(valid, confidence)
    assert weights is not None
    assert torch.equal(weights.pixels, torch.where(valid, confidence, 0))
    inside = windows_inside(valid)
    assert torch.equal(weights.windows > 0, inside)
    for row, column in inside.nonzero()[::17].tolist():
        assert bool(valid[row : row + 11, column : column + 11].all())
        patch = confidence[row : row + 11, column : column + 11]
        expected = window_average(patch)[0, 0]
        torch.testing.assert_close(weights.windows[row, column], expected)


def test_no_mask_and_no_confidence_are_no_weights():
    assert loss_weights(None, None) is None
    constant = loss_weights(None, torch.full((20, 20), 0.25))
    assert constant is not None
    torch.testing.assert_close(constant.windows, torch.full((10, 10), 0.25))


@pytest.mark.parametrize("loss", [l1_ssim_loss, l1_ssim_reference])
def test_an_image_smaller_than_a_window_has_the_l1_part_only(loss):
    prediction, target = images(10, 40)
    value = loss(prediction, target, 0.2)
    torch.testing.assert_close(value, 0.8 * (prediction - target).abs().mean())
    valid = torch.ones(10, 40, dtype=torch.bool)
    valid[:, 20:] = False
    value = loss(prediction, target, 0.2, loss_weights(valid, None))
    expected = 0.8 * (prediction - target)[:, :20].abs().mean()
    torch.testing.assert_close(value, expected)


def test_same_bits_for_one_and_two_threads():
    prediction, target = images(61, 47)
    weights = random_weights(61, 47)
    before = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            results.append(value_and_gradient(l1_ssim_loss, prediction, target))
            results.append(value_and_gradient(l1_ssim_loss, prediction, target, 0.2, weights))
    finally:
        torch.set_num_threads(before)
    for one, two in zip(results[:2], results[2:], strict=True):
        assert torch.equal(one[0], two[0])
        assert torch.equal(one[1], two[1])


def test_reference_gradient_passes_gradcheck():
    """Differences of at least .02, so that no step of gradcheck crosses the kink of |d|."""
    generator = torch.Generator().manual_seed(3)
    target = torch.rand(12, 11, 3, generator=generator, dtype=torch.float64)
    sign = torch.randint(0, 2, target.shape, generator=generator) * 2 - 1
    prediction = (target + sign * (0.02 + 0.1 * target)).requires_grad_(True)
    pixels = torch.rand(12, 11, generator=generator, dtype=torch.float64)
    weights = LossWeights(pixels, torch.rand(2, 1, generator=generator, dtype=torch.float64))
    assert torch.autograd.gradcheck(
        lambda p: l1_ssim_reference(p, target, 0.3, weights), [prediction], fast_mode=True
    )


def test_gradient_scales_with_what_follows_and_reads_any_memory_layout():
    prediction, target = images(20, 24)
    _, gradient = value_and_gradient(l1_ssim_loss, prediction, target)
    planes = prediction.permute(2, 0, 1).contiguous().requires_grad_(True)
    (3 * l1_ssim_loss(planes.permute(1, 2, 0), target)).backward()
    assert planes.grad is not None
    torch.testing.assert_close(planes.grad.permute(1, 2, 0), 3 * gradient)


def test_the_rasterizer_switch_chooses_the_twin(monkeypatch):
    prediction, target = images(20, 24)
    monkeypatch.setenv("PS4PRO_RASTERIZER", "torch")
    prediction.requires_grad_(True)
    function = l1_ssim_loss(prediction, target).grad_fn
    assert function is not None
    assert "Fused" not in function.name()


def test_wrong_arguments_name_themselves_and_both_shapes():
    prediction, target = images(20, 24)
    with pytest.raises(ValueError, match=r"target .*\[19, 24, 3\].*\[20, 24, 3\]"):
        l1_ssim_loss(prediction, target[1:])
    with pytest.raises(ValueError, match="prediction must be"):
        l1_ssim_loss(prediction[None], target[None])
    with pytest.raises(ValueError, match=r"weights.windows must be \[10, 14\].*\[20, 24\]"):
        l1_ssim_loss(prediction, target, 0.2, LossWeights(torch.ones(20, 24), torch.ones(20, 24)))
    with pytest.raises(ValueError, match=r"target is torch.float64"):
        l1_ssim_loss(prediction, target.double())
    with pytest.raises(ValueError, match=r"\[20, 24\] and \[24, 20\]"):
        loss_weights(torch.ones(20, 24).bool(), torch.ones(24, 20))
