# SPDX-License-Identifier: Apache-2.0
"""Laws of masked PSNR and SSIM."""

import math

import pytest
import torch
from pytorch_msssim import ssim as msssim

from ps4pro_nerfstudio.metrics import psnr, ssim


def images(height=40, width=33, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    target = torch.rand(height, width, 3, generator=generator, dtype=dtype)
    noise = 0.1 * torch.randn(height, width, 3, generator=generator, dtype=dtype)
    return (target + noise).clamp(0, 1), target


def bordered(height, width):
    valid = torch.ones(height, width, dtype=torch.bool)
    valid[:3], valid[-3:], valid[:, :3], valid[:, -3:] = False, False, False, False
    return valid


def test_psnr_by_hand():
    """A constant error of .1 gives a mean square of .01: 20 dB. With a second half of error .3 the
    mean square is (.01 + .09) / 2 = .05: 10 log10(20) = 13.0103 dB; masking it restores 20 dB."""
    target = torch.zeros(4, 6, 3, dtype=torch.float64)
    prediction = target + 0.1
    assert float(psnr(prediction, target)) == pytest.approx(20)
    prediction[:, 3:] = 0.3
    assert float(psnr(prediction, target)) == pytest.approx(10 * math.log10(20))
    valid = torch.ones(4, 6, dtype=torch.bool)
    valid[:, 3:] = False
    assert float(psnr(prediction, target, valid)) == pytest.approx(20)


def test_ssim_without_a_mask_is_that_of_pytorch_msssim():
    prediction, target = images()
    expected = msssim(
        prediction.permute(2, 0, 1)[None], target.permute(2, 0, 1)[None], data_range=1.0
    )
    assert float(ssim(prediction, target)) == pytest.approx(float(expected), rel=1e-12)


@pytest.mark.parametrize("metric", [psnr, ssim])
def test_a_full_mask_is_no_mask(metric):
    prediction, target = images()
    valid = torch.ones(40, 33, dtype=torch.bool)
    plain = float(metric(prediction, target))
    assert float(metric(prediction, target, valid)) == pytest.approx(plain, rel=1e-12)


@pytest.mark.parametrize("metric", [psnr, ssim])
def test_a_masked_border_is_a_crop(metric):
    prediction, target = images()
    valid = bordered(40, 33)
    cropped = float(metric(prediction[3:-3, 3:-3], target[3:-3, 3:-3]))
    assert float(metric(prediction, target, valid)) == pytest.approx(cropped, rel=1e-12)


@pytest.mark.parametrize("metric", [psnr, ssim])
@pytest.mark.parametrize("garbage", [float("nan"), float("inf"), 1e30])
def test_invalid_pixels_never_enter(metric, garbage):
    prediction, target = images(dtype=torch.float32)
    valid = bordered(40, 33)
    clean = metric(prediction, target, valid)
    target[~valid] = garbage
    prediction[~valid] = -garbage
    assert torch.equal(metric(prediction, target, valid), clean)


@pytest.mark.parametrize("metric", [psnr, ssim])
def test_metrics_are_symmetric(metric):
    prediction, target = images()
    valid = bordered(40, 33)
    forth, back = metric(prediction, target, valid), metric(target, prediction, valid)
    torch.testing.assert_close(forth, back)


def test_equal_images_are_perfect():
    _, target = images()
    valid = bordered(40, 33)
    assert float(psnr(target, target, valid)) == float("inf")
    assert float(ssim(target, target, valid)) == pytest.approx(1)


def test_nothing_to_measure_is_nan():
    prediction, target = images()
    nothing = torch.zeros(40, 33, dtype=torch.bool)
    assert math.isnan(float(psnr(prediction, target, nothing)))
    assert math.isnan(float(ssim(prediction, target, nothing)))
    assert math.isnan(float(ssim(prediction[:10], target[:10])))


@pytest.mark.parametrize("metric", [psnr, ssim])
def test_wrong_shapes_are_refused(metric):
    prediction, target = images()
    with pytest.raises(ValueError, match=r"\[39, 33, 3\] and \[40, 33, 3\]"):
        metric(prediction[1:], target)
    with pytest.raises(ValueError, match=r"valid must be bool \[40, 33\].*\[33, 40\]"):
        metric(prediction, target, torch.ones(33, 40, dtype=torch.bool))
