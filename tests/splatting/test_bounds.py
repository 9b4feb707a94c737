# SPDX-License-Identifier: Apache-2.0
"""Gaussians in bounds: shares and sizes by hand."""

from __future__ import annotations

import math

import pytest
import torch

from ps4pro_nerfstudio.splatting.bounds import bound_scales_, fade_


def test_fading_takes_a_share_of_each_opacity() -> None:
    """.5 and .9 lose a tenth: .45 and .81. Whatever has all but vanished stays finite."""
    logits = torch.tensor([[0.0], [math.log(9.0)], [-300.0]])
    fade_(logits, 0.1)
    torch.testing.assert_close(logits[:2].sigmoid(), torch.tensor([[0.45], [0.81]]))
    assert float(logits[2]) == pytest.approx(-300.0 + math.log(0.9), abs=1e-3)


def test_scales_are_bounded_by_the_distance_from_the_nearest_camera() -> None:
    """From cameras at 0 and 10 along x, 2 and 9 stand at 2 and 1: bounds .4 and .2 with a fifth."""
    means = torch.tensor([[2.0, 0, 0], [9.0, 0, 0], [0.0, 0, 0]])
    log_scales = torch.tensor([[1.0, 0.1, 0.39], [0.3, 0.21, 5.0], [1.0, 1.0, 1.0]]).log()
    bound_scales_(log_scales, means, torch.tensor([[0.0, 0, 0], [10.0, 0, 0]]), 0.2)
    expected = torch.tensor([[0.4, 0.1, 0.39], [0.2, 0.2, 0.2], [1e-7, 1e-7, 1e-7]])
    torch.testing.assert_close(log_scales.exp(), expected)
