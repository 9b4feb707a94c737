# SPDX-License-Identifier: Apache-2.0
"""What can be known about a classical flow before a network looks at it."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ps4pro_nerfstudio.interpolation.examination import (
    complete,
    examine,
    repeated_border,
    shown_by,
)

HALF = torch.full((1, 1, 1, 1), 0.5)


def _texture(height: int, width: int, seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).random((height, width, 3), np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), 1.5)
    return np.clip(0.5 + 0.2 * (smooth - smooth.mean()) / smooth.std(), 0.0, 1.0)


def _picture(image: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None]


@pytest.mark.parametrize("lean_deg", [0.0, 4.0])
def test_repeated_borders_are_found_also_when_turned(lean_deg: float) -> None:
    """The right quarter repeats the edge; a homography of a few degrees turns the streaks."""
    image = _texture(60, 90)
    matrix = np.array([[1.0, 0.0, -22.0], [np.tan(np.deg2rad(lean_deg)), 1.0, -3.0]])
    moved = cv2.warpAffine(image, matrix, (90, 60), borderMode=cv2.BORDER_REPLICATE)
    inside = cv2.warpAffine(np.ones((60, 90), np.uint8), matrix, (90, 60)) > 0
    eight_bit = np.rint(moved * 255.0).astype(np.float32) / 255.0
    found = repeated_border(_picture(eight_bit))[0, 0].numpy()
    far = cv2.erode(inside.astype(np.uint8), np.ones((7, 7))) > 0
    deep = cv2.dilate(inside.astype(np.uint8), np.ones((7, 7))) == 0
    assert found[deep].mean() > 0.95
    assert found[far].mean() < 0.02


def test_ordinary_and_flat_pictures_have_no_repeated_border() -> None:
    assert float(repeated_border(_picture(_texture(60, 90, 3))).float().mean()) < 0.02
    assert not repeated_border(torch.full((1, 3, 60, 90), 0.3)).any()


def test_a_source_outside_of_its_frame_is_not_shown() -> None:
    """At t = 1/2, V = (8, 0): x comes from x - 4 of frame 0 and goes to x + 4 of frame 1."""
    velocity = torch.tensor([8.0, 0.0, 8.0, 0.0])[None, :, None, None].expand(1, 4, 10, 20)
    shown = shown_by(torch.ones(2, 1, 10, 20), HALF, velocity)
    assert shown[0, 0, 5].tolist() == [0.0] * 3 + [0.0] + [1.0] * 16
    assert shown[0, 1, 5].tolist() == [1.0] * 16 + [0.0] * 4


def test_completion_keeps_what_is_known_and_fills_the_rest() -> None:
    values = torch.full((1, 2, 16, 16), 3.0)
    values[..., 5:9, 5:9] = 100.0
    weight = torch.ones(1, 1, 16, 16)
    weight[..., 5:9, 5:9] = 0.0
    torch.testing.assert_close(complete(values, weight), torch.full((1, 2, 16, 16), 3.0))


def test_flow_that_agrees_with_itself_is_hardly_in_doubt() -> None:
    image = _picture(_texture(64, 96))
    frames = torch.cat([image, image])
    examined = examine(frames, HALF, torch.zeros(1, 4, 64, 96))
    assert float(examined.doubt.max()) < 0.06
    assert float(examined.mask_logit.abs().max()) < 1e-4
    assert torch.equal(examined.velocity, torch.zeros(1, 4, 64, 96))


def test_wrong_flow_is_in_doubt_and_completed_from_around() -> None:
    noise = np.random.default_rng(0).random((48, 48, 3), np.float32)
    image = _picture(noise.repeat(2, axis=0).repeat(2, axis=1))
    frames = torch.cat([image, image])
    velocity = torch.zeros(1, 4, 96, 96)
    velocity[..., 40:56, 40:56] = 20.0
    examined = examine(frames, HALF, velocity)
    inner = (..., slice(22, 26), slice(22, 26))
    assert float(examined.doubt[inner].min()) > 0.9
    assert float(examined.completed[inner].abs().max()) < 1.0
    assert float(examined.doubt[..., :10, :10].max()) < 0.06


def test_exchanging_the_frames_exchanges_all() -> None:
    """But for the median of an even number of colours, which is one of the two in the middle."""
    a, b = _picture(_texture(64, 96, 1)), _picture(_texture(64, 96, 2))
    noise = torch.randn(1, 4, 8, 12, generator=torch.Generator().manual_seed(0))
    velocity = F.interpolate(noise * 4.0, (64, 96), mode="bilinear")
    one = examine(torch.cat([a, b]), torch.full((1, 1, 1, 1), 0.3), velocity)
    swapped = -velocity[:, [2, 3, 0, 1]]
    other = examine(torch.cat([b, a]), torch.full((1, 1, 1, 1), 0.7), swapped)
    torch.testing.assert_close(one.velocity, -other.velocity[:, [2, 3, 0, 1]], atol=0.2, rtol=0)
    torch.testing.assert_close(one.mask_logit, -other.mask_logit, atol=0.02, rtol=0)
    torch.testing.assert_close(one.doubt, other.doubt, atol=0.02, rtol=0)
    torch.testing.assert_close(one.completed, -other.completed, atol=0.2, rtol=0)
