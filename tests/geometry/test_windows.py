# SPDX-License-Identifier: Apache-2.0
"""Laws of SSIM windows, against plain loops."""

import pytest
import torch

from ps4pro_nerfstudio.geometry.windows import (
    gaussian_taps,
    pixels_inside_windows,
    ssim_map,
    window_average,
    windows_inside,
)


def random_mask(height, width, share, seed=0):
    return torch.rand(height, width, generator=torch.Generator().manual_seed(seed)) < share


def test_taps_are_symmetric_and_sum_to_one():
    taps = gaussian_taps(torch.float64)
    assert torch.equal(taps, taps.flip(0))
    assert float(taps.sum()) == pytest.approx(1, abs=1e-6)
    assert torch.exp(torch.tensor(-1 / 4.5)).item() == pytest.approx(float(taps[4] / taps[5]))


def test_window_average_is_the_weighted_sum_of_each_window():
    image = torch.rand(13, 14, 2, dtype=torch.float64)
    taps = gaussian_taps(torch.float64)
    weights = taps[:, None] * taps[None, :]
    average = window_average(image)
    assert average.shape == (3, 4, 2)
    for row in range(3):
        for column in range(4):
            patch = image[row : row + 11, column : column + 11]
            expected = (patch * weights[..., None]).sum(dim=(0, 1))
            torch.testing.assert_close(average[row, column], expected)
    torch.testing.assert_close(window_average(image[..., 1]), average[..., 1])


def test_windows_inside_hold_valid_pixels_only():
    valid = random_mask(24, 20, 0.99)
    inside = windows_inside(valid)
    assert inside.any()
    assert not inside.all()
    for row in range(14):
        for column in range(10):
            patch = valid[row : row + 11, column : column + 11]
            assert bool(inside[row, column]) == bool(patch.all())


def test_pixels_inside_windows_are_their_union():
    windows = random_mask(14, 10, 0.02)
    assert windows.any()
    union = torch.zeros(24, 20, dtype=torch.bool)
    for row, column in windows.nonzero().tolist():
        union[row : row + 11, column : column + 11] = True
    assert torch.equal(pixels_inside_windows(windows), union)


def test_ssim_is_one_for_equal_images_symmetric_and_at_most_one():
    generator = torch.Generator().manual_seed(1)
    x, y = torch.rand(2, 20, 25, 3, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(ssim_map(x, x), torch.ones(10, 15, 3, dtype=torch.float64))
    torch.testing.assert_close(ssim_map(x, y), ssim_map(y, x))
    assert float(ssim_map(x, y).max()) < 1
    assert float(ssim_map(x, 1 - x).mean()) < 0


def test_too_small_images_are_refused():
    with pytest.raises(ValueError, match=r"\[10, 40\].*at least 11"):
        window_average(torch.zeros(10, 40))
    with pytest.raises(ValueError, match=r"\[12, 12, 3\] and \[11, 12, 3\]"):
        ssim_map(torch.zeros(12, 12, 3), torch.zeros(11, 12, 3))
