# SPDX-License-Identifier: Apache-2.0
"""Optical flow interpolation on motion that is known exactly."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from ps4pro_nerfstudio.interpolation.optical_flow import (
    OpticalFlowInterpolator,
    photometric_agreement,
)


def moving_texture(offset_x: float, offset_y: float) -> Tensor:
    """A frame [1, 3, 96, 128] of a pattern that has moved by (offset_x, offset_y) pixels."""
    generator = np.random.default_rng(0)
    y, x = np.mgrid[0:96, 0:128].astype(np.float64)
    x, y = x - offset_x, y - offset_y
    frame = np.zeros((3, 96, 128))
    for _ in range(40):
        frequency = generator.normal(0.0, 0.25, 2)
        amplitude, phase = generator.normal(size=3), generator.uniform(0, 2 * np.pi)
        wave = np.sin(frequency[0] * x + frequency[1] * y + phase)
        frame += amplitude[:, None, None] * wave
    return torch.from_numpy(0.5 + 0.06 * frame).clamp(0, 1).float()[None]


@pytest.mark.parametrize("t", [0.25, 0.5, 0.8])
def test_a_translation_is_recovered_at_any_time(t: float) -> None:
    motion = np.array([5.0, -3.0])
    result = OpticalFlowInterpolator()(moving_texture(0, 0), moving_texture(*motion), t)
    inner = (0, slice(None), slice(12, -12), slice(12, -12))
    median_0 = result.flow_t0[inner].flatten(1).median(dim=1).values.numpy()
    median_1 = result.flow_t1[inner].flatten(1).median(dim=1).values.numpy()
    np.testing.assert_allclose(median_0, -t * motion, atol=0.1)
    np.testing.assert_allclose(median_1, (1 - t) * motion, atol=0.1)
    error = result.image - moving_texture(*(t * motion))
    assert error[inner].square().mean().sqrt() < 10 ** (-35 / 20)


def test_confidence_falls_where_the_frames_disagree() -> None:
    a = moving_texture(0, 0)
    b = moving_texture(2, 0)
    b[..., 30:60, 40:80] = 1.0 - b[..., 30:60, 40:80]
    confidence = OpticalFlowInterpolator()(a, b, 0.5).confidence
    assert confidence[..., 35:55, 45:75].mean() < 0.5 * confidence[..., 70:90, 10:120].mean()


def test_photometric_agreement_by_hand() -> None:
    """Differences .03, .06 and .06 have the mean .05, the scale of the law: exp(-1)."""
    a = torch.zeros(1, 3, 1, 1)
    b = torch.tensor([0.03, 0.06, 0.06]).view(1, 3, 1, 1)
    assert photometric_agreement(a, b).item() == pytest.approx(np.exp(-1.0), rel=1e-5)
    assert photometric_agreement(a, a).item() == 1.0
