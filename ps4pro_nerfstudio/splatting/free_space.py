# SPDX-License-Identifier: Apache-2.0
"""Gaussians that reach into space known to be empty."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from gsplat.utils import normalized_quat_to_rotmat
from torch import Tensor


class SeenSurface(NamedTuple):
    """What one photograph shows, and nothing stands before."""

    world_to_camera: Tensor
    """[4, 4], OpenCV axes."""
    intrinsics: Tensor
    """[3, 3]."""
    nearest: Tensor
    """[H, W], the smallest depth around each pixel; 0 where it is not known."""


class FreeSpace(NamedTuple):
    """Space that nothing stands in, in the world of the training and on its device."""

    centres: Tensor
    """[N, 3], of balls around cameras."""
    radii: Tensor
    """[N]."""
    seen: Sequence[SeenSurface] = ()
    """Surfaces that photographs show."""
    share: float = 0.85
    """Share of the depth of a surface up to which the space before it counts as empty."""


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


def stands_before(
    means: Tensor,  # [N, 3]
    world_to_camera: Tensor,  # [4, 4], OpenCV axes
    intrinsics: Tensor,  # [3, 3]
    nearest: Tensor,  # [H, W], depth of what is seen; 0 where not known
    share: float,
) -> Tensor:  # [N], bool
    """Which means a camera would see at less than this share of the depth of what it does see."""
    projection = intrinsics @ world_to_camera[:3]
    image = torch.addmm(projection[:, 3], means, projection[:, :3].T)
    depth = image[:, 2]
    # In float: a point beside the camera plane is at no pixel that an integer holds.
    column, row = (image[:, :2] / depth.clamp_min(1e-6)[:, None]).floor().unbind(dim=-1)
    height, width = nearest.shape
    inside = (depth > 0) & (column >= 0) & (row >= 0) & (column < width) & (row < height)
    # Only what lies in the picture is looked up: a part of the capture.
    seen = torch.nonzero(inside)[:, 0]
    surface = nearest[row[seen].long(), column[seen].long()]
    result = torch.zeros_like(inside)
    result[seen] = (surface > 0) & (depth[seen] < share * surface)
    return result
