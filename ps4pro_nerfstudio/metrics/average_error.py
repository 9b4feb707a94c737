# SPDX-License-Identifier: Apache-2.0
"""One number out of PSNR, SSIM and LPIPS: the geometric mean of three errors.

    average error = (10^(-PSNR / 10) * sqrt(1 - SSIM) * LPIPS)^(1/3)

It is the "average" of mip-NeRF (arXiv 2103.13415) and of the comparisons on few views that follow
it. Two uses give two numbers, since the formula is not linear:
  - published tables put in the means of PSNR, SSIM and LPIPS over a scene or over scenes;
  - `avge` of ns-eval with ipsm-gaussian is computed for each test view from the metrics of that
    view, and then averaged over the views.
To compare with a table, put the mean metrics of ns-eval into the formula.
"""

from __future__ import annotations

import torch
from torch import Tensor


def average_error(
    psnr: float | Tensor,  # [...] decibel
    ssim: float | Tensor,  # [...]
    lpips: float | Tensor,  # [...]
) -> Tensor:  # [...] smaller is better, 0 for equal images
    """Geometric mean of mean squared error, the root of 1 - SSIM, and LPIPS.

    An SSIM above 1 or an LPIPS below 0, which rounding makes, counts as no error. NaN stays NaN.
    """
    squared_error = 10.0 ** (-_tensor(psnr) / 10.0)
    dissimilarity = (1.0 - _tensor(ssim)).clamp(min=0.0).sqrt()
    return (squared_error * dissimilarity * _tensor(lpips).clamp(min=0.0)) ** (1.0 / 3.0)


def _tensor(value: float | Tensor) -> Tensor:
    return value if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64)
