# SPDX-License-Identifier: Apache-2.0
"""Gaussians that reach into space known to be empty."""

from __future__ import annotations

import torch
from gsplat.utils import normalized_quat_to_rotmat
from torch import Tensor

_SAMPLES = (-1.0, -0.5, 0.0, 0.5, 1.0)
"""Points along the longest axis that are looked at, in standard deviations."""


def reaches_into(
    means: Tensor,  # [N, 3]
    quats: Tensor,  # [N, 4], wxyz, of any length
    scales: Tensor,  # [N, 3], standard deviations
    centres: Tensor,  # [C, 3]
    radii: Tensor,  # [C]
) -> Tensor:  # [N], bool
    """Which Gaussians come into one of the balls within a standard deviation of their longest axis.

    Needles are why the centre alone does not do.
    """
    length, longest = scales.max(dim=-1)
    rotation = normalized_quat_to_rotmat(torch.nn.functional.normalize(quats, dim=-1))
    axis = rotation.gather(2, longest[:, None, None].expand(-1, 3, 1))[..., 0]
    result = torch.zeros(len(means), dtype=torch.bool, device=means.device)
    for sample in _SAMPLES:
        points = means + sample * length[:, None] * axis
        result |= (torch.cdist(points, centres) < radii).any(dim=-1)
    return result
