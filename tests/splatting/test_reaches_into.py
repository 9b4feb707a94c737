# SPDX-License-Identifier: Apache-2.0
"""Which Gaussians reach into balls: needles by their tips, discs and dots by their centres."""

from __future__ import annotations

import math

import pytest
import torch

from ps4pro_nerfstudio.splatting.free_space import reaches_into, stands_before

CENTRES = torch.tensor([[0.0, 0.0, 0.0], [10.0, 0.0, 0.0]])
RADII = torch.tensor([1.0, 0.5])
IDENTITY = torch.tensor([[1.0, 0.0, 0.0, 0.0]])


def reaches(mean: list[float], scales: list[float], quat: torch.Tensor = IDENTITY) -> bool:
    result = reaches_into(torch.tensor([mean]), quat, torch.tensor([scales]), CENTRES, RADII)
    return bool(result[0])


@pytest.mark.parametrize(
    "mean, expected",
    [
        ([0.9, 0.0, 0.0], True),
        ([1.1, 0.0, 0.0], False),
        ([9.6, 0.0, 0.0], True),
        ([9.4, 0, 0], False),
    ],
)
def test_a_dot_is_where_its_centre_is(mean: list[float], expected: bool) -> None:
    assert reaches(mean, [0.01, 0.01, 0.01]) == expected


def test_a_needle_reaches_as_far_as_one_standard_deviation() -> None:
    assert reaches([3.0, 0.0, 0.0], [2.1, 0.01, 0.01])
    assert not reaches([3.0, 0.0, 0.0], [1.9, 0.01, 0.01])
    assert not reaches([3.0, 0.0, 0.0], [0.01, 2.1, 0.01])


def test_the_direction_of_a_needle_is_that_of_its_quaternion_of_any_length() -> None:
    """Turned by 90 degrees about z, the long second axis lies along x."""
    half = math.sqrt(0.5)
    turned = torch.tensor([[half, 0.0, 0.0, half]])
    for factor in (1.0, -3.0):
        assert reaches([3.0, 0.0, 0.0], [0.01, 2.1, 0.01], factor * turned)
        assert not reaches([3.0, 0.0, 0.0], [2.1, 0.01, 0.01], factor * turned)


def test_moving_everything_changes_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    means = 2 * torch.randn(200, 3, generator=generator)
    quats = torch.randn(200, 4, generator=generator)
    scales = torch.rand(200, 3, generator=generator)
    here = reaches_into(means, quats, scales, CENTRES, RADII)
    assert 5 < int(here.sum()) < 150
    shift = torch.tensor([3.0, -2.0, 7.0])
    assert torch.equal(here, reaches_into(means + shift, quats, scales, CENTRES + shift, RADII))


def test_a_ball_without_size_holds_nothing() -> None:
    none = reaches_into(
        torch.zeros(1, 3), IDENTITY, torch.ones(1, 3), torch.zeros(1, 3), torch.zeros(1)
    )
    assert not bool(none.any())


CAMERA = (
    torch.tensor([[1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 2.0], [0, 0, 0, 1]]),  # 2 back
    torch.tensor([[10.0, 0, 5.0], [0, 10.0, 4.0], [0, 0, 1]]),
)
SURFACE = torch.zeros(8, 10)
SURFACE[4, 5] = 10.0
"""A camera that looks along +z from z = -2 and knows one pixel, (5, 4): a surface 10 away."""


@pytest.mark.parametrize(
    "mean, expected",
    [
        ([0.0, 0.0, 5.9], True),  # depth 7.9 of 10
        ([0.0, 0.0, 6.1], False),  # depth 8.1
        ([0.0, 0.0, 9.0], False),  # behind the surface
        ([0.6, 0.0, 3.0], False),  # another pixel, nothing known
        ([0.4, 0.0, 3.0], True),  # column 5 + 10 * .4 / 5 = 5.8
        ([0.0, 0.0, -3.0], False),  # behind the camera
        ([9.0, 0.0, 3.0], False),  # beside the picture
    ],
)
def test_what_stands_before_a_surface(mean: list[float], expected: bool) -> None:
    result = stands_before(torch.tensor([mean]), *CAMERA, SURFACE, share=0.8)
    assert result.tolist() == [expected]
