# SPDX-License-Identifier: Apache-2.0
"""PSNR and SSIM of a render against a photograph, over the pixels that are valid.

Images are [H, W, C] in [0, 1]. An invalid pixel enters neither metric, whatever stands there, and
the divisors count only what is measured: a 3-pixel border left by undistortion was seen to cost
9.5 dB when it was counted. SSIM is that of `geometry.windows` (pytorch_msssim's and splatfacto's).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ps4pro_nerfstudio.geometry.windows import fits_a_window, ssim_map, windows_inside

__all__ = ["psnr", "ssim"]


def psnr(
    prediction: Tensor,  # [H, W, C] in [0, 1]
    target: Tensor,  # [H, W, C] in [0, 1]
    valid: Tensor | None = None,  # [H, W] bool
) -> Tensor:  # [] decibel
    """Peak signal-to-noise ratio, -10 log10 of the mean squared error; infinite for equal images.

    NaN when no pixel is valid. With C channels the mean is over valid pixels and channels.

    Raises:
        ValueError: when the shapes do not go together.
    """
    _check(prediction, target, valid)
    error = (prediction - target).square()
    if valid is None:
        return -10 * torch.log10(error.mean())
    error = torch.where(valid[..., None], error, 0)
    return -10 * torch.log10(error.sum() / (valid.sum() * error.shape[-1]))


def ssim(
    prediction: Tensor,  # [H, W, C] in [0, 1]
    target: Tensor,  # [H, W, C] in [0, 1]
    valid: Tensor | None = None,  # [H, W] bool
) -> Tensor:  # []
    """Mean structural similarity of the 11x11 windows that hold valid pixels only.

    NaN when there is no such window, as in an image of fewer than 11 pixels on a side.

    Raises:
        ValueError: when the shapes do not go together.
    """
    _check(prediction, target, valid)
    height, width, channels = prediction.shape
    if not fits_a_window(height, width):
        return prediction.new_tensor(float("nan"))
    if valid is None:
        return ssim_map(prediction, target).mean()
    # Before any arithmetic, since a blur would carry a NaN into its neighbours.
    prediction = torch.where(valid[..., None], prediction, 0)
    target = torch.where(valid[..., None], target, 0)
    inside = windows_inside(valid)
    similarity = torch.where(inside[..., None], ssim_map(prediction, target), 0)
    return similarity.sum() / (inside.sum() * channels)


def _check(prediction: Tensor, target: Tensor, valid: Tensor | None) -> None:
    """Raise ValueError for shapes that do not go together."""
    if prediction.ndim != 3 or prediction.shape != target.shape:
        raise ValueError(
            f"prediction and target must be two [H, W, C], got {list(prediction.shape)} and "
            f"{list(target.shape)}"
        )
    if valid is not None and (valid.dtype != torch.bool or valid.shape != prediction.shape[:2]):
        raise ValueError(
            f"valid must be bool {list(prediction.shape[:2])}, got {valid.dtype} "
            f"{list(valid.shape)}"
        )
