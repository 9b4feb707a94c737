# SPDX-License-Identifier: Apache-2.0
"""The photometric loss of splatfacto, with weights per pixel that keep invalid pixels out.

Notation: p prediction and t target, [H, W, 3] in [0, 1]; w >= 0 the weight of a pixel; v >= 0 the
weight of an SSIM window (see `geometry.windows`); lambda the share of SSIM. The loss is
    (1 - lambda) sum w |p - t| / (3 sum w)  +  lambda sum v (1 - SSIM) / (3 sum v)
and without weights exactly splatfacto's (1 - lambda) mean |p - t| + lambda (1 - mean SSIM), with
pytorch_msssim's SSIM. A part whose weights are all zero counts as 0, and so does the SSIM part of
an image smaller than a window (11 pixels on a side): such an image has the L1 part alone.

Unlike splatfacto (nerfstudio #3475), a mask neither darkens the images before SSIM nor changes the
divisor: a window that touches an invalid pixel is left out, and the sums are over what is left.

`l1_ssim_loss` runs the fused kernel of `splatting.cpu.ssim` where the numba rasterizer is chosen
(float32 on the CPU, unless PS4PRO_RASTERIZER says otherwise) and `l1_ssim_reference`, the obvious
torch twin, for all else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ps4pro_nerfstudio.geometry.windows import (
    WINDOW_SIZE,
    fits_a_window,
    pixels_inside_windows,
    ssim_map,
    window_average,
    windows_inside,
)
from ps4pro_nerfstudio.splatting.api import chosen_rasterizer

__all__ = ["LossWeights", "l1_ssim_loss", "l1_ssim_reference", "loss_weights"]


@dataclass(frozen=True)
class LossWeights:
    """How much each pixel and each SSIM window counts."""

    pixels: Tensor
    """w, [H, W], finite and >= 0: weights of the L1 part."""
    windows: Tensor
    """v, [H - 10, W - 10] (a side is 0 where the image is smaller), finite and >= 0: weights of the
    SSIM part."""


def loss_weights(
    valid: Tensor | None,  # [H, W] bool
    confidence: Tensor | None,  # [H, W] in [0, 1]
) -> LossWeights | None:
    """Weights of a view: how far each of its valid pixels is to be trusted.

    A pixel weighs its confidence, a window the Gaussian average of its pixels' confidence. What is
    not valid weighs nothing: the pixel itself, and each window that contains it. The confidence of
    an invalid pixel is never read.

    Returns:
        The weights, or None when neither argument is given (everything counts alike).

    Raises:
        ValueError: when the shapes of the two differ or are not [H, W].
    """
    if valid is None and confidence is None:
        return None
    for name, value in (("valid", valid), ("confidence", confidence)):
        if value is not None and value.ndim != 2:
            raise ValueError(f"{name} must be [H, W], got {list(value.shape)}")
    if valid is None:
        assert confidence is not None
        valid = torch.ones_like(confidence, dtype=torch.bool)
    valid = valid.bool()
    if confidence is None:
        confidence = torch.ones(valid.shape, device=valid.device)
    if valid.shape != confidence.shape:
        raise ValueError(
            f"valid and confidence must have one shape, got {list(valid.shape)} and "
            f"{list(confidence.shape)}"
        )
    height, width = valid.shape
    pixels = torch.where(valid, confidence, 0)
    if not fits_a_window(height, width):
        return LossWeights(pixels, pixels.new_zeros(_windows_shape(height, width)))
    windows = torch.where(windows_inside(valid), window_average(pixels), 0)
    return LossWeights(pixels, windows)


def l1_ssim_loss(
    prediction: Tensor,  # [H, W, 3] in [0, 1]
    target: Tensor,  # [H, W, 3] in [0, 1]
    ssim_lambda: float = 0.2,
    weights: LossWeights | None = None,
) -> Tensor:  # []
    """Weighted L1 + SSIM loss of a render, differentiable in `prediction`; see the module.

    The kernel (float32 on the CPU) differentiates once; its result has the same bits for any
    number of threads. `target` and the weights get no gradient.

    Raises:
        ValueError: when the shapes, dtypes or devices of the arguments do not go together.
    """
    _check(prediction, target, weights)
    backend = chosen_rasterizer(prediction.device, prediction.dtype)
    if backend != "numba" or not fits_a_window(*prediction.shape[:2]):
        return l1_ssim_reference(prediction, target, ssim_lambda, weights)
    if weights is None:
        return _FusedL1SSIM.apply(prediction, target, ssim_lambda, None, None)  # type: ignore[return-value]
    return _FusedL1SSIM.apply(prediction, target, ssim_lambda, weights.pixels, weights.windows)  # type: ignore[return-value]


def l1_ssim_reference(
    prediction: Tensor,  # [H, W, 3]
    target: Tensor,  # [H, W, 3]
    ssim_lambda: float = 0.2,
    weights: LossWeights | None = None,
) -> Tensor:  # []
    """The torch twin of `l1_ssim_loss`: any device and floating dtype, autograd's gradient.

    Raises:
        ValueError: when the shapes, dtypes or devices of the arguments do not go together.
    """
    _check(prediction, target, weights)
    height, width, _ = prediction.shape
    target = target.detach()
    if weights is None:
        pixels = prediction.new_ones(height, width)
        windows = prediction.new_ones(_windows_shape(height, width))
    else:
        pixels, windows = weights.pixels, weights.windows
        used = pixels > 0
        if fits_a_window(height, width):
            used = used | pixels_inside_windows(windows > 0)
        # Before any arithmetic: zero times a NaN is not zero.
        prediction = torch.where(used[..., None], prediction, 0)
        target = torch.where(used[..., None], target, 0)

    loss = (1 - ssim_lambda) * _weighted_mean((prediction - target).abs(), pixels)
    if fits_a_window(height, width):
        loss = loss + ssim_lambda * _weighted_mean(1 - ssim_map(prediction, target), windows)
    return loss


def _weighted_mean(
    values: Tensor,  # [H, W, C]
    weights: Tensor,  # [H, W]
) -> Tensor:  # []
    """Average over pixels and channels; 0 when no pixel has a weight."""
    divisor = values.shape[-1] * weights.sum()
    return (weights[..., None] * values).sum() / divisor.clamp_min(torch.finfo(values.dtype).tiny)


class _FusedL1SSIM(torch.autograd.Function):
    """The numba kernel as a differentiable function; the gradient is made with the value."""

    @staticmethod
    def forward(
        ctx: Any,
        prediction: Tensor,
        target: Tensor,
        ssim_lambda: float,
        pixels: Tensor | None,
        windows: Tensor | None,
    ) -> Tensor:
        from ps4pro_nerfstudio.splatting.cpu.ssim import l1_ssim_value_and_gradient

        value, gradient = l1_ssim_value_and_gradient(
            prediction.detach().contiguous().numpy(),
            target.detach().contiguous().numpy(),
            ssim_lambda,
            None if pixels is None else pixels.detach().contiguous().numpy(),
            None if windows is None else windows.detach().contiguous().numpy(),
        )
        ctx.save_for_backward(torch.from_numpy(gradient))
        return torch.tensor(value, dtype=torch.float32)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient * upstream[0], None, None, None, None


def _windows_shape(height: int, width: int) -> tuple[int, int]:
    return max(0, height - WINDOW_SIZE + 1), max(0, width - WINDOW_SIZE + 1)


def _check(prediction: Tensor, target: Tensor, weights: LossWeights | None) -> None:
    """Raise ValueError for arguments that do not go together."""
    if prediction.ndim != 3 or prediction.shape[-1] != 3:
        raise ValueError(f"prediction must be [H, W, 3], got {list(prediction.shape)}")
    if target.shape != prediction.shape:
        raise ValueError(
            f"target must have the shape of prediction, got {list(target.shape)} and "
            f"{list(prediction.shape)}"
        )
    arguments = {"target": target}
    if weights is not None:
        height, width, _ = prediction.shape
        arguments |= {"weights.pixels": weights.pixels, "weights.windows": weights.windows}
        expected = {
            "weights.pixels": (height, width),
            "weights.windows": _windows_shape(height, width),
        }
        for name, shape in expected.items():
            if arguments[name].shape != shape:
                raise ValueError(
                    f"{name} must be {list(shape)} for images {list(prediction.shape)}, got "
                    f"{list(arguments[name].shape)}"
                )
    for name, value in arguments.items():
        if value.dtype != prediction.dtype or value.device != prediction.device:
            raise ValueError(
                f"{name} is {value.dtype} on {value.device}, prediction {prediction.dtype} on "
                f"{prediction.device}; they must agree"
            )
