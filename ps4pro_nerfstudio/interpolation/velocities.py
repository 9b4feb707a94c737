# SPDX-License-Identifier: Apache-2.0
"""Velocities, as defined in `initial_flow`, at other sizes and as flows."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def flows(velocity: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """F_t0 and F_t1, [B, 2, H, W], of velocities [B, 4, H, W] at t [B] or [B, 1, 1, 1]."""
    t = t.reshape(-1, 1, 1, 1)
    return -t * velocity[:, :2], (1.0 - t) * velocity[:, 2:]


def resize_velocity(velocity: Tensor, height: int, width: int) -> Tensor:
    """Velocities [B, 4, H, W] for frames of another size: resampled, and scaled to its pixels."""
    if velocity.shape[-2:] == (height, width):
        return velocity
    scale = velocity.new_tensor([width / velocity.shape[-1], height / velocity.shape[-2]])
    resized = F.interpolate(velocity, (height, width), mode="bilinear", align_corners=False)
    return resized * scale.repeat(2)[None, :, None, None]


def enlarge(values: Tensor, scale: int) -> Tensor:
    """Bilinear, by a whole factor."""
    if scale == 1:
        return values
    return F.interpolate(values, scale_factor=scale, mode="bilinear", align_corners=False)
