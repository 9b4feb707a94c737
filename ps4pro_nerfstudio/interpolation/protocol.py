# SPDX-License-Identifier: Apache-2.0
"""What a frame interpolator takes and gives, whatever is inside it.

Notation. Frames are [B, 3, H, W], RGB in [0, 1]; t in [0, 1] is the time of the wanted frame,
frame0 being at 0 and frame1 at 1. Flows are in pixels, (x, y), and point from the wanted frame into
the sources: pixel x of the wanted frame comes from x + flow_t0(x) in frame0 and x + flow_t1(x) in
frame1. Warping is `sample_at`: bilinear, border repeated.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass
class Interpolation:
    """A frame at time t and where each of its pixels comes from."""

    image: Tensor
    """[B, 3, H, W] in [0, 1]."""
    flow_t0: Tensor
    """[B, 2, H, W] pixels: x + flow_t0(x) is the source position in frame0."""
    flow_t1: Tensor
    """[B, 2, H, W] pixels: the same for frame1."""
    mask: Tensor
    """[B, 1, H, W] in [0, 1]: weight of frame0 in the blend."""
    confidence: Tensor
    """[B, 1, H, W] in [0, 1]: what the interpolator believes of its own `image`."""


class FrameInterpolator(Protocol):
    """Anything that makes the frame between two frames.

    Deterministic: the same frames, t and `identity` give the same result. t = 0 and t = 1 give the
    inputs exactly. Calls may come from several threads.
    """

    @property
    def name(self) -> str:
        """Short name for logs, e.g. "optical-flow"."""
        ...

    @property
    def identity(self) -> str:
        """Part of the key of stored pseudo views: changes whenever the results may change.

        The name, every setting, and for a learned network the hash of its weights.
        """
        ...

    @property
    def judges_itself(self) -> bool:
        """Whether its confidence tells more than how well the two sources agree."""
        ...

    def __call__(self, frame0: Tensor, frame1: Tensor, t: float) -> Interpolation:
        """Interpolate two frames [B, 3, H, W] at t; see `check_frames` for the errors."""
        ...


def check_frames(frame0: Tensor, frame1: Tensor, t: float) -> None:
    """Refuse what no interpolator can use.

    Raises:
        ValueError: frames that are not [B, 3, H, W], not floating point, of different shapes, not
            finite, or t outside of [0, 1]; the message names both shapes.
    """
    shapes = f"frame0 {tuple(frame0.shape)} and frame1 {tuple(frame1.shape)}"
    if frame0.shape != frame1.shape or frame0.ndim != 4 or frame0.shape[1] != 3:
        raise ValueError(f"frames must both be [B, 3, H, W] of one size, got {shapes}")
    if not (frame0.is_floating_point() and frame1.is_floating_point()):
        raise ValueError(
            f"frames must be floating point in [0, 1], got {frame0.dtype} and {frame1.dtype} "
            f"for {shapes}"
        )
    if not bool(torch.isfinite(frame0).all() and torch.isfinite(frame1).all()):
        raise ValueError(f"frames must be finite, found NaN or inf in {shapes}")
    if not 0.0 <= t <= 1.0:
        raise ValueError(f"t must lie in [0, 1], got {t} for {shapes}")


def sample_at(image: Tensor, flow: Tensor) -> Tensor:
    """Bilinear samples of an image [B, C, H, W] at x + flow(x), flow [B, 2, H, W] in pixels.

    The border is repeated outside of the image; zero flow gives the image back, up to rounding.
    """
    height, width = image.shape[-2:]
    y, x = torch.meshgrid(
        torch.arange(height, device=flow.device, dtype=flow.dtype),
        torch.arange(width, device=flow.device, dtype=flow.dtype),
        indexing="ij",
    )
    # max(size - 1, 1): an image one pixel wide has only one place to sample.
    grid = torch.stack(
        [
            (x + flow[:, 0]) * (2.0 / max(width - 1, 1)) - 1.0,
            (y + flow[:, 1]) * (2.0 / max(height - 1, 1)) - 1.0,
        ],
        dim=-1,
    )
    return F.grid_sample(image, grid, mode="bilinear", padding_mode="border", align_corners=True)


def endpoint(frame0: Tensor, frame1: Tensor, t: float) -> Interpolation | None:
    """The exact answer at t = 0 and t = 1, None in between.

    The frame of the other end is not consulted: its flow is zero and its weight is zero.
    """
    if 0.0 < t < 1.0:
        return None
    zeros = torch.zeros_like(frame0[:, :2])
    ones = torch.ones_like(frame0[:, :1])
    image = frame0 if t == 0.0 else frame1
    return Interpolation(image.clone(), zeros, zeros.clone(), ones * (1.0 - t), ones.clone())
