# SPDX-License-Identifier: Apache-2.0
"""The Gaussian window of SSIM: blurs, similarity of each window, and which windows are valid.

Notation: an image is [H, W, C] with values in [0, 1]; a *window* is the 11x11 square whose top left
pixel is (row, column), so window maps are [H - 10, W - 10]: "valid" positions only, no padding. The
window weighs its pixels by a separable Gaussian of 1.5 pixels, with sum 1.

SSIM is that of Wang et al., "Image quality assessment: from error visibility to structural
similarity", 2004, equation 13, with K1 = .01, K2 = .03 and a data range of 1: the same numbers as
pytorch_msssim and splatfacto. With E the window average,
    mu_x = E[x], var_x = E[x^2] - mu_x^2, cov = E[xy] - mu_x mu_y
    SSIM = (2 mu_x mu_y + C1)(2 cov + C2) / ((mu_x^2 + mu_y^2 + C1)(var_x + var_y + C2))

Losses (splatting) and metrics share this module, since they must not import each other.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

WINDOW_SIZE = 11
"""Pixels along each side of a window."""
WINDOW_SIGMA = 1.5
"""Standard deviation of the window's Gaussian in pixels."""
C1 = 0.01**2
C2 = 0.03**2

__all__ = [
    "C1",
    "C2",
    "WINDOW_SIGMA",
    "WINDOW_SIZE",
    "fits_a_window",
    "gaussian_taps",
    "pixels_inside_windows",
    "ssim_map",
    "window_average",
    "windows_inside",
]


def gaussian_taps(dtype: torch.dtype = torch.float32, device: torch.device | None = None) -> Tensor:
    """Return the 11 taps of the separable window, with sum 1.

    They are rounded to float32 whatever the dtype, as pytorch_msssim does: the last digits of a
    float64 comparison depend on it.
    """
    offsets = torch.arange(WINDOW_SIZE, dtype=torch.float32) - WINDOW_SIZE // 2
    taps = torch.exp(-(offsets**2) / (2 * WINDOW_SIGMA**2))
    return (taps / taps.sum()).to(device=device, dtype=dtype)


def fits_a_window(height: int, width: int) -> bool:
    """Whether an image of this size has at least one window."""
    return min(height, width) >= WINDOW_SIZE


def _check_fits(name: str, image: Tensor) -> None:
    if image.ndim not in (2, 3) or not fits_a_window(image.shape[0], image.shape[1]):
        raise ValueError(
            f"{name} has shape {list(image.shape)}; expected [H, W] or [H, W, C] with H and W at "
            f"least {WINDOW_SIZE}, the size of an SSIM window"
        )


def window_average(
    image: Tensor,  # [H, W] or [H, W, C], floating point
) -> Tensor:  # [H - 10, W - 10] or [H - 10, W - 10, C]
    """Gaussian-weighted average of each window; a constant image keeps its value.

    Raises:
        ValueError: when the image is smaller than a window or has another rank.
    """
    _check_fits("image", image)
    channels = image[None] if image.ndim == 2 else image.permute(2, 0, 1)
    taps = gaussian_taps(image.dtype, image.device)
    # Channels as groups: a GPU then computes in float32. As a batch they go through cuDNN, which
    # may round to TF32, and E[x^2] - E[x]^2 does not survive that.
    groups = len(channels)
    down, along = (
        taps.reshape(shape).expand(groups, -1, -1, -1) for shape in ((1, 1, -1, 1), (1, 1, 1, -1))
    )
    blurred = F.conv2d(channels[None].contiguous(), down, groups=groups)
    blurred = F.conv2d(blurred, along, groups=groups)[0]
    return blurred[0] if image.ndim == 2 else blurred.permute(1, 2, 0)


def windows_inside(
    valid: Tensor,  # [H, W] bool
) -> Tensor:  # [H - 10, W - 10] bool
    """Whether all 121 pixels of each window are valid.

    Raises:
        ValueError: when the mask is smaller than a window.
    """
    _check_fits("valid", valid)
    return _num_in_windows(~valid) == 0


def pixels_inside_windows(
    windows: Tensor,  # [H - 10, W - 10] bool
) -> Tensor:  # [H, W] bool
    """Whether each pixel lies in at least one of the chosen windows."""
    return _num_in_windows(F.pad(windows, [WINDOW_SIZE - 1] * 4)) > 0


def _num_in_windows(chosen: Tensor) -> Tensor:
    """Number of chosen pixels of each window, [H, W] bool to [H - 10, W - 10], by prefix sums.

    Exact, and on a CPU several times faster than a maximum over windows.
    """
    sums = F.pad(chosen.to(torch.int32).cumsum(0).cumsum(1), (1, 0, 1, 0))
    rows = sums[WINDOW_SIZE:] - sums[:-WINDOW_SIZE]
    return rows[:, WINDOW_SIZE:] - rows[:, :-WINDOW_SIZE]


def ssim_map(
    prediction: Tensor,  # [H, W, C] in [0, 1]
    target: Tensor,  # [H, W, C] in [0, 1]
) -> Tensor:  # [H - 10, W - 10, C] in [-1, 1]
    """Structural similarity of each window and channel; 1 for equal images, and symmetric.

    Differentiable, any floating dtype and device. Its mean is pytorch_msssim's SSIM.

    Raises:
        ValueError: when the shapes differ or the images are smaller than a window.
    """
    if prediction.shape != target.shape:
        raise ValueError(
            f"prediction and target must have one shape, got {list(prediction.shape)} and "
            f"{list(target.shape)}"
        )
    mean_x = window_average(prediction)
    mean_y = window_average(target)
    var_x = window_average(prediction * prediction) - mean_x * mean_x
    var_y = window_average(target * target) - mean_y * mean_y
    cov = window_average(prediction * target) - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + C1) / (mean_x * mean_x + mean_y * mean_y + C1)
    structure = (2 * cov + C2) / (var_x + var_y + C2)
    return luminance * structure
