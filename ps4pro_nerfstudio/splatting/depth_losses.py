# SPDX-License-Identifier: Apache-2.0
"""Losses on rendered depth, and of a render against a warped photograph (IPSM, arXiv 2412.02225).

A term that is not defined, because a depth is constant or too few points are known, is None: there
is nothing to add then, and nothing becomes NaN.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "DepthForm",
    "geometry_consistency_loss",
    "inverse_depth_loss",
    "pearson",
    "sample_bilinear",
    "triangulated_depth_loss",
    "unit_free",
]

MIN_POINTS = 32
"""With fewer points than this a view has no triangulated depth term."""
_UNIT_FREE_OFFSET = 0.1
"""c for inverse depths normalised to [0, 1]."""
_HUBER_DELTA = 0.1
"""Relative error of a depth from which on the metric loss grows linearly."""

DepthForm = Literal["pearson", "metric", "both"]


def pearson(a: Tensor, b: Tensor) -> Tensor | None:
    """Correlation [] of two tensors of one shape, in [-1, 1]; None when either is constant.

    Raises:
        ValueError: the shapes differ.
    """
    if a.shape != b.shape:
        raise ValueError(f"two tensors of one shape, got {list(a.shape)} and {list(b.shape)}")
    centred = []
    for values in (a.flatten(), b.flatten()):
        deviation = values - values.mean()
        # What rounding leaves of a constant is no signal; NaN fails the comparison as well.
        if not deviation.norm() > 8 * torch.finfo(values.dtype).eps * values.norm():
            return None
        centred.append(deviation)
    return (centred[0] @ centred[1]) / (centred[0].norm() * centred[1].norm())


def unit_free(inverse_depth: Tensor) -> Tensor:
    """Inverse depth of any scale and shift, its 2 % and 98 % quantiles brought to 0 and 1, clipped.

    A constant map becomes zero everywhere.
    """
    values = inverse_depth.flatten()
    low, high = (
        values.kthvalue(max(1, min(len(values), round(share * len(values))))).values
        for share in (0.02, 0.98)
    )
    spread = (high - low).clamp_min(torch.finfo(values.dtype).tiny)
    return ((inverse_depth - low) / spread).clamp(0.0, 1.0)


def inverse_depth_loss(
    inverse_depth: Tensor,  # [H, W], large = near, of unknown scale and shift
    depth: Tensor,  # [H, W]
    inverse_offset: float | None = None,
) -> Tensor | None:  # []
    """Disagreement of a photograph's depth by a network with the rendered one.

    min(1 - rho(-m, D), 1 - rho(1 / (m + c), D)) over all pixels. With an offset c it is in the raw
    units of the network; None normalises m first (`unit_free`). None where it is not defined.
    """
    if inverse_offset is None:
        shifted = unit_free(inverse_depth) + _UNIT_FREE_OFFSET
    else:
        shifted = inverse_depth + inverse_offset
    correlations = [pearson(-inverse_depth, depth), pearson(1.0 / shifted, depth)]
    losses = [1.0 - correlation for correlation in correlations if correlation is not None]
    return torch.stack(losses).min() if losses else None


def triangulated_depth_loss(
    depth: Tensor,  # [H, W], normalised by accumulation
    pixels: Tensor,  # [P, 2] column and row, centres at half-integers
    known: Tensor,  # [P] > 0
    form: DepthForm = "metric",
) -> Tensor | None:  # []
    """Disagreement of the rendered depth with that of points which a view shows.

    pearson: 1 - rho over the points. metric: mean of Huber(|D - z| / z), which fixes the scale as
    well. both: their sum. None with fewer than 32 points, or where it is not defined.
    """
    if len(known) < MIN_POINTS:
        return None
    rendered = sample_bilinear(depth, pixels)
    parts = []
    if form in ("pearson", "both"):
        correlation = pearson(rendered, known)
        if correlation is not None:
            parts.append(1.0 - correlation)
    if form in ("metric", "both"):
        parts.append(
            F.huber_loss(rendered / known, torch.ones_like(known), delta=_HUBER_DELTA)
            / _HUBER_DELTA
        )
    return torch.stack(parts).sum() if parts else None


def sample_bilinear(
    image: Tensor,  # [H, W]
    pixels: Tensor,  # [P, 2] column and row, centres at half-integers
) -> Tensor:  # [P]
    """Values of an image between its pixel centres; beyond the outermost ones their value."""
    height, width = image.shape
    size = pixels.new_tensor([width, height])
    grid = 2.0 * pixels / size - 1.0
    sampled = F.grid_sample(
        image[None, None],
        grid[None, None].to(image.dtype),
        mode="bilinear",
        padding_mode="border",
        align_corners=False,
    )
    return sampled[0, 0, 0]


def geometry_consistency_loss(
    rendered: Tensor,  # [3, H, W]
    warped: Tensor,  # [3, H, W]
    mask: Tensor,  # [H, W] bool
    norm: Literal["all", "mask"] = "all",
) -> Tensor | None:  # []
    """L_geo: mean |x - w| of the pixels that a warped photograph explains, for the render x only.

    all: the mean is over every pixel of the view, so that little agreement weighs little; mask:
    over the explained ones. None where nothing is explained.
    """
    count = int(mask.sum()) if norm == "mask" else mask.numel()
    if count == 0 or not bool(mask.any()):
        return None
    difference = torch.where(mask, rendered - warped.detach(), 0.0)
    return difference.abs().sum() / (rendered.shape[0] * count)
