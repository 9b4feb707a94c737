# SPDX-License-Identifier: Apache-2.0
"""The average error against published tables and its own laws."""

from __future__ import annotations

import math

import pytest
import torch

from ps4pro_nerfstudio.metrics.average_error import average_error


@pytest.mark.parametrize(
    "ssim, lpips, psnr, expected",
    [(0.702, 0.207, 20.44, 0.101), (0.856, 0.121, 19.99, 0.077),
     (0.818, 0.135, 23.94, 0.061), (0.855, 0.111, 25.13, 0.051)],
)  # fmt: skip
def test_published_rows_come_back(ssim, lpips, psnr, expected) -> None:
    """IPSM (arXiv 2412.02225): LLFF 3 views, DTU 3 views, LLFF 6 and 9 views."""
    assert float(average_error(psnr, ssim, lpips)) == pytest.approx(expected, abs=5e-4)


def test_hand_calculation() -> None:
    """10 dB is 0.1, 1 - 0.75 has the root 0.5, so (0.1 * 0.5 * 0.16)^(1/3) = 0.008^(1/3) = 0.2."""
    assert float(average_error(10.0, 0.75, 0.16)) == pytest.approx(0.2, abs=1e-12)


def test_equal_images_have_no_error() -> None:
    assert float(average_error(math.inf, 1.0, 0.0)) == 0.0
    assert float(average_error(30.0, 1.0 + 1e-7, 0.1)) == 0.0
    assert float(average_error(30.0, 0.9, -1e-9)) == 0.0


def test_each_metric_counts() -> None:
    best = float(average_error(25.0, 0.8, 0.1))
    assert best < float(average_error(24.0, 0.8, 0.1))
    assert best < float(average_error(25.0, 0.7, 0.1))
    assert best < float(average_error(25.0, 0.8, 0.2))


def test_tensors_go_elementwise_and_nan_stays() -> None:
    psnr, ssim = torch.tensor([10.0, 20.0, math.nan]), torch.tensor([0.75, 0.5, 0.5])
    both = average_error(psnr, ssim, torch.tensor(0.16))
    assert both.dtype == torch.float32
    assert both[0] == pytest.approx(0.2, abs=1e-6)
    assert float(both[1]) == pytest.approx(float(average_error(20.0, 0.5, 0.16)), abs=1e-6)
    assert both[2].isnan()
