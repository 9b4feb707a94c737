# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch
from nerfstudio.cameras.cameras import Cameras

from ps4pro_nerfstudio.splatting.background import (
    background_colors,
    fit_background,
    fit_to_photographs,
    pixel_directions,
)


def _directions(count: int = 500) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.nn.functional.normalize(torch.randn(count, 3, generator=generator), dim=-1)


def test_directions_by_hand():
    """90 degrees wide and turned left by 90: the middle looks along -x, the rims half-way on."""
    turned = torch.tensor([[0.0, 0, 1, 5], [0, 1, 0, 6], [-1, 0, 0, 7]])
    intrinsics = torch.tensor([[1.5, 0, 1.5], [0, 1.5, 0.5], [0, 0, 1]])
    directions = pixel_directions(turned, intrinsics, (3, 1))
    assert directions.shape == (1, 3, 3)
    side = math.atan(1 / 1.5)
    expected = [[-math.cos(a), 0.0, -math.sin(a)] for a in (-side, 0.0, side)]
    torch.testing.assert_close(directions[0], torch.tensor(expected))


def test_pixels_lower_in_the_picture_look_down():
    intrinsics = torch.tensor([[4.0, 0, 2], [0, 4.0, 2], [0, 0, 1]])
    directions = pixel_directions(torch.eye(4)[:3], intrinsics, (4, 4))
    assert bool((directions[0, :, 1] > 0.0).all())
    assert bool((directions[-1, :, 1] < 0.0).all())
    torch.testing.assert_close(directions.norm(dim=-1), torch.ones(4, 4))


def test_one_colour_everywhere_is_that_colour():
    color = torch.tensor([0.2, 0.5, 0.9])
    fit = fit_background(_directions(), color.expand(500, 3))
    torch.testing.assert_close(
        background_colors(fit, _directions(7)), color.expand(7, 3), rtol=0, atol=1e-5
    )


def test_sky_above_and_ground_below_are_continued():
    directions = _directions()
    up = directions[:, 1:2]
    fit = fit_background(directions, 0.5 + 0.4 * up * torch.ones(3))
    poles = background_colors(fit, torch.tensor([[0.0, 1, 0], [0, -1, 0], [1, 0, 0]]))
    torch.testing.assert_close(poles[:, 0], torch.tensor([0.9, 0.1, 0.5]), rtol=0, atol=0.03)


def test_photographs_that_look_one_way_say_nothing_about_the_others():
    """Slopes that noise over a narrow angle would make steep stay shallow."""
    generator = torch.Generator().manual_seed(1)
    narrow = torch.tensor([0.0, 0, -1]) + 0.01 * torch.randn(200, 3, generator=generator)
    narrow = torch.nn.functional.normalize(narrow, dim=-1)
    colors = 0.5 + 0.2 * torch.randn(200, 3, generator=generator).clamp(-1, 1)
    fit = fit_background(narrow, colors)
    others = background_colors(fit, _directions(50))
    assert float((others - colors.mean(dim=0)).abs().max()) < 0.05


def test_colours_stay_colours():
    fit = torch.tensor([[0.5, 0.5, 0.5], [2.0, 2.0, 2.0], [0.0, 0, 0], [0.0, 0, 0]])
    colors = background_colors(fit, torch.tensor([[1.0, 0, 0], [-1, 0, 0]]))
    assert colors.tolist() == [[1.0] * 3, [0.0] * 3]


def test_no_pixel_is_an_error():
    with pytest.raises(ValueError, match="no pixel"):
        fit_background(torch.zeros(0, 3), torch.zeros(0, 3))


def _cameras(count: int) -> Cameras:
    return Cameras(torch.eye(4)[:3].expand(count, 3, 4), 100.0, 100.0, 100.0, 50.0, 200, 100)


def test_photographs_are_fitted_in_bytes_and_in_floats_and_inside_their_masks():
    """Red photographs, the second blue outside of its mask."""
    red = torch.tensor([255, 0, 0], dtype=torch.uint8).repeat(100, 200, 1)
    half = torch.zeros(100, 200, 1, dtype=torch.bool)
    half[:, :100] = True
    partly = torch.where(half, red, red.roll(2, dims=-1)).float() / 255
    photographs = [{"image": red}, {"image": partly, "mask": half}]
    fit = fit_to_photographs(photographs, _cameras(2))
    assert fit is not None
    expected = torch.tensor([1.0, 0, 0]).expand(3, 3)
    torch.testing.assert_close(background_colors(fit, _directions(3)), expected, rtol=0, atol=1e-3)


def test_cut_out_photographs_and_empty_masks_have_no_background():
    assert fit_to_photographs([{"image": torch.zeros(100, 200, 4)}], _cameras(1)) is None
    nothing = {"image": torch.zeros(100, 200, 3), "mask": torch.zeros(100, 200, 1)}
    assert fit_to_photographs([nothing], _cameras(1)) is None
