# SPDX-License-Identifier: Apache-2.0
"""A loss that puts the density of a ray where correspondences found a surface.

A correspondence tells where the ray of a pixel ends, not only its colour. Few views leave a
radiance field many ways to explain colours; with the ends of a part of the rays known, most of them
fall away (the idea is that of depth-supervised NeRF, arXiv 2107.02791).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_EPS = 1e-4
"""Bounds the loss of a ray that has no sample near its end."""


def ray_depth_loss(
    weights: Sequence[Tensor],  # L levels of [R, S_l], what each sample adds to its ray
    distances: Sequence[Tensor],  # L levels of [R, S_l] from the camera, the middle of each sample
    widths: Sequence[Tensor],  # L levels of [R, S_l], the length of each sample
    known: Tensor,  # [R] distance of each ray's end from the camera, 0 where not known
    confidence: Tensor,  # [R] in [0, 1]
    tolerance: float = 0.05,
) -> Tensor:  # []
    """Disagreement of where rays end with where they are known to end.

    Mean over all R rays and L levels of -C log(sum_k w_k g_k + eps), with g_k the Gaussian of the
    distance between sample and end whose deviation is `tolerance` of the end's distance, or half of
    the sample's width where samples are wide. It is 0 for rays that end exactly there, and for
    those whose end is not known. All levels take part: the proposals decide where the last one
    looks.

    Raises:
        ValueError: there is no level, or the tolerance is not positive.
    """
    if not weights:
        raise ValueError("ray_depth_loss: at least one level of samples is needed")
    if not tolerance > 0.0:
        raise ValueError(f"ray_depth_loss: tolerance must be positive, got {tolerance}")
    is_known = known > 0.0
    end = known[is_known][:, None]
    trust = confidence[is_known]
    total = known.new_zeros(())
    for weight, distance, width in zip(weights, distances, widths, strict=True):
        deviation = torch.maximum(tolerance * end, width[is_known] / 2.0)
        near = torch.exp(-0.5 * ((distance[is_known] - end) / deviation).square())
        total = total - (trust * torch.log((weight[is_known] * near).sum(dim=-1) + _EPS)).sum()
    return total / (len(known) * len(weights))
