# SPDX-License-Identifier: Apache-2.0
"""Motion that is larger than the thing that moves is found without a start."""

from __future__ import annotations

import cv2
import numpy as np
import torch
from torch import Tensor

from ps4pro_nerfstudio.interpolation.coarse_matching import coarse_flow
from ps4pro_nerfstudio.interpolation.initial_flow import DisInitializer
from ps4pro_nerfstudio.interpolation.optical_flow import OpticalFlowInterpolator


def _texture(height: int, width: int, seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).random((height // 6 + 1, width // 6 + 1, 3), np.float32)
    return cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC).clip(0, 1)


def _scene(shift: int) -> tuple[Tensor, Tensor, slice, slice]:
    """A 64x64 square moves right by `shift` before a wall that stands still; its place in 0."""
    wall, square = _texture(192, 320, 0), _texture(64, 64, 1)
    frames = []
    for x in (80, 80 + shift):
        frame = wall.copy()
        frame[64:128, x : x + 64] = square
        frames.append(torch.from_numpy(frame).permute(2, 0, 1)[None].contiguous())
    return frames[0], frames[1], slice(76, 116), slice(92, 132)


def test_a_thing_that_moves_farther_than_its_size_is_found() -> None:
    frame0, frame1, rows, columns = _scene(80)
    forward, backward = coarse_flow(frame0, frame1)
    assert forward.shape == backward.shape == (1, 2, 192, 320)
    assert float((forward[0, 0, rows, columns] - 80.0).abs().median()) <= 8.0
    assert float(forward[0, 1, rows, columns].abs().median()) <= 8.0
    assert float((backward[0, 0, rows, 172:212] + 80.0).abs().median()) <= 8.0
    assert float(forward[0, :, :, 250:].abs().median()) < 1.0


def test_the_classical_flow_is_exact_from_there_and_lost_alone() -> None:
    frame0, frame1, rows, columns = _scene(80)
    a, b = (np.ascontiguousarray(frame[0].permute(1, 2, 0).numpy()) for frame in (frame0, frame1))
    there, back = (
        np.array(flow[0].permute(1, 2, 0), order="C") for flow in coarse_flow(frame0, frame1)
    )
    flow = OpticalFlowInterpolator(0, patch_stride=4, descent_steps=12, refinement_steps=0)
    error = flow.flows(a, b, (there, back))[0][rows, columns] - (80.0, 0.0)
    assert float(np.median(np.linalg.norm(error, axis=-1))) < 0.2
    alone = flow.flows(a, b)[0][rows, columns] - (80.0, 0.0)
    assert float(np.median(np.linalg.norm(alone, axis=-1))) > 10.0


def test_between_the_frames_the_thing_in_front_is_where_it_passes() -> None:
    """Half way the square covers the columns 120 to 184, where in neither frame it stands."""
    frame0, frame1, rows, _ = _scene(80)
    velocity = DisInitializer()(frame0, frame1, torch.tensor([0.5]))
    error = velocity[0, :, rows, 132:172] - torch.tensor([80.0, 0.0, 80.0, 0.0])[:, None, None]
    assert float(error.norm(dim=0).median()) < 0.5
    assert float(velocity[0, :, rows, 250:].norm(dim=0).median()) < 0.1


def test_exchanging_the_frames_exchanges_the_flows() -> None:
    frame0, frame1, _, _ = _scene(40)
    forward, backward = coarse_flow(frame0, frame1)
    again_backward, again_forward = coarse_flow(frame1, frame0)
    agree = (forward - again_forward).norm(dim=1) < 1e-3
    assert float(agree.float().mean()) > 0.95
    assert float(((backward - again_backward).norm(dim=1) < 1e-3).float().mean()) > 0.95


def test_equal_frames_do_not_move_at_any_size() -> None:
    for size in ((64, 64), (65, 131), (40, 900)):
        image = torch.from_numpy(_texture(*size, seed=2)).permute(2, 0, 1)[None].contiguous()
        for flow in coarse_flow(image, image):
            assert flow.shape == (1, 2, *size)
            assert float(flow.abs().max()) == 0.0
