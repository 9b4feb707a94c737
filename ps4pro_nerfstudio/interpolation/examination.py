# SPDX-License-Identifier: Apache-2.0
"""What a first flow says about itself: where it can be right, and what to put where it cannot.

Notation as in `initial_flow`. Three things make a classical flow wrong, and each can be seen:

- A source lies outside of its frame, or in a border that alignment has filled by repeating the edge
  of the photograph (`repeated_border`). Nothing can be matched there; the other frame alone shows
  the pixel.
- The two warped frames differ in colour, or the two velocities differ: occlusion, or a wrong match.
- Elsewhere the flow is trusted, and right to a fraction of a pixel.

From where it is trusted the flow is completed, smoothly, over everything else (`complete`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ps4pro_nerfstudio.interpolation.protocol import sample_at
from ps4pro_nerfstudio.interpolation.velocities import enlarge, flows

_DOUBTFUL_GAP = 0.04
"""Difference of the two warped frames, in [0, 1], at which the start is in doubt (1 - 1/e)."""
_DOUBTFUL_PX = 1.0
"""The same for the disagreement of the two velocities, in pixels of half the size."""
_TRUSTED_GAP = 0.1
_TRUSTED_PX = 2.0
"""As the two above, for how far the start is trusted to tell of its surroundings."""
_LEAST_DOUBT = 0.05
_COMPLETED_TRUST = 0.85
"""How much less the flow may be corrected where it had to be completed at the border."""
_UNSEEN = 0.02
"""Share of the blend that a source keeps where it is not shown: a logit of 3.9."""

_STREAK_TOLERANCE = 1.5 / 255.0
_STREAK_LEAN = 0.2
"""Slope of a streak against the axis, up to which it counts as one: 11 degrees."""
_STREAK_LEAST = 3
"""Shortest streak, in pixels of half the size."""
_STREAK_MOST = 0.6
"""Longest streak, as a share of the side: beyond, the picture is flat."""


@dataclass
class Examined:
    """What the start says about itself; H and W are those of the frames, h and w half of them."""

    velocity: Tensor
    """[B, 4, H, W]: the start, completed where a source is not shown."""
    mask_logit: Tensor
    """[B, 1, H, W]: the linear blend, or the frame that shows the pixel."""
    doubt: Tensor
    """[B, 2, h, w] in [.05, 1]: how far its flow, and its colours, may be corrected."""
    completed: Tensor
    """[B, 2, h, w]: one velocity, in pixels of that size, from where it is trusted."""
    gaps: Tensor
    """[B, 2, h, w]: colour difference of the sources by the start, and by `completed`."""
    shown: Tensor
    """[B, 2, h, w] in [0, 1]: whether frame 0, frame 1 can show the pixel at all."""


def examine(frames: Tensor, t: Tensor, velocity: Tensor) -> Examined:
    """Examine velocities [B, 4, H, W] at t [B, 1, 1, 1]; frames [2B, 3, H, W], 0 before 1.

    The doubt is near 1 within a few pixels of where the two warped frames differ; for the flow also
    where the two velocities do. What the classical flow gets right it gets right to a fraction of a
    pixel; a network that is free to touch it needs long training only to learn to leave it alone.
    The same holds for the mask: where both sources agree, their average has less noise than either,
    and where only one of them shows the pixel there is nothing to choose.

    What only one frame shows, at the borders of a view or beside things in front, has no match, and
    the flow there is arbitrary; the motion of what surrounds it is a far better guess.
    """
    half = F.avg_pool2d(velocity, 2) / 2
    pictures = F.avg_pool2d(frames, 2)
    valid0, valid1 = (~repeated_border(pictures)).float().chunk(2)
    # What looks like a streak in both is a flat border of the scene itself.
    valid = torch.cat([torch.maximum(valid0, 1.0 - valid1), torch.maximum(valid1, 1.0 - valid0)])
    both = shown_by(valid, t, half).prod(dim=1, keepdim=True)

    difference = _source_difference(pictures, t, half)
    colour_gap = difference.abs().mean(dim=1, keepdim=True)
    apart = (half[:, 2:] - half[:, :2]).square().sum(dim=1, keepdim=True)
    smooth_gap = F.avg_pool2d(colour_gap, 3, 1, 1, count_include_pad=False) / _TRUSTED_GAP
    trust = torch.exp(-smooth_gap.square() - apart / _TRUSTED_PX**2) * both
    trust = -_largest(-trust)
    completed = complete(0.5 * (half[:, :2] + half[:, 2:]), trust + 1e-6)

    unseen = _largest(1.0 - both)
    velocity = velocity + enlarge(unseen, 2) * (
        enlarge(2.0 * completed, 2).repeat(1, 2, 1, 1) - velocity
    )
    shown = shown_by(valid, t, half + unseen * (completed.repeat(1, 2, 1, 1) - half))
    preference = torch.log((shown[:, :1] + _UNSEEN) / (shown[:, 1:] + _UNSEEN))

    gap = (colour_gap / _DOUBTFUL_GAP).square()
    doubt = torch.exp(-torch.cat([gap + apart / _DOUBTFUL_PX**2, gap], dim=1)) * (1.0 - unseen)
    doubt = enlarge(_largest(F.max_pool2d(1.0 - doubt, 2)), 2)
    # Which frame to take is certain where only one of them shows the pixel, and its completed flow
    # is rather right.
    certain = (shown[:, :1] - shown[:, 1:]).abs()
    doubt = doubt * (1.0 - torch.cat([_COMPLETED_TRUST * certain, certain], dim=1))
    other = _source_difference(pictures, t, completed.repeat(1, 2, 1, 1))
    gaps = torch.cat([colour_gap, other.abs().mean(dim=1, keepdim=True)], dim=1)
    return Examined(
        velocity=velocity,
        mask_logit=torch.log((1.0 - t) / t) + enlarge(preference, 2),
        doubt=_LEAST_DOUBT + (1.0 - _LEAST_DOUBT) * doubt,
        completed=completed,
        gaps=gaps,
        shown=shown,
    )


def repeated_border(pictures: Tensor) -> Tensor:
    """Where pictures [N, 3, h, w] only repeat their border, as aligned ones do: [N, 1, h, w] bool.

    From each side, the pixels up to the first change along the axis. A homography turns the streaks
    by a few degrees, so that a tenth of the change across them is forgiven along them.
    """
    grey = pictures.mean(dim=1, keepdim=True)
    along_x = F.pad((grey[..., 1:] - grey[..., :-1]).abs(), (0, 1, 0, 0), mode="replicate")
    along_y = F.pad((grey[..., 1:, :] - grey[..., :-1, :]).abs(), (0, 0, 0, 1), mode="replicate")
    found = torch.zeros_like(along_x, dtype=torch.bool)
    for dim, along, across in ((-1, along_x, along_y), (-2, along_y, along_x)):
        kernel = (3, 1) if dim == -1 else (1, 3)
        pad = (1, 0) if dim == -1 else (0, 1)
        change = F.avg_pool2d(
            along - _STREAK_LEAN * across, kernel, 1, pad, count_include_pad=False
        )
        for flipped in (False, True):
            ordered = change.flip(dim) if flipped else change
            run = ordered.cummax(dim).values < _STREAK_TOLERANCE
            length = run.sum(dim, keepdim=True)
            run &= (length >= _STREAK_LEAST) & (length <= _STREAK_MOST * run.shape[dim])
            found |= run.flip(dim) if flipped else run
    # Rows that stop early or late by chance follow their neighbours.
    return F.avg_pool2d(found.float(), 5, 1, 2, count_include_pad=False) > 0.4


def shown_by(valid: Tensor, t: Tensor, velocity: Tensor) -> Tensor:
    """Whether x + F_tk(x) lies in frame k and on a valid pixel [2B, 1, h, w]: [B, 2, h, w]."""
    height, width = velocity.shape[-2:]
    flow = torch.cat(flows(velocity, t))
    x = torch.arange(width, device=flow.device, dtype=flow.dtype) + flow[:, :1]
    y = torch.arange(height, device=flow.device, dtype=flow.dtype)[:, None] + flow[:, 1:]
    outside = torch.maximum(
        torch.maximum(-x, x - (width - 1.0)), torch.maximum(-y, y - (height - 1.0))
    )
    shown = sample_at(valid, flow) * (1.0 - outside).clamp(0.0, 1.0)
    return torch.cat(shown.chunk(2), dim=1)


def complete(values: Tensor, weight: Tensor) -> Tensor:
    """Values [B, C, H, W] where they have weight [B, 1, H, W], else from ever larger surroundings.

    Push and pull (Gortler et al., "The lumigraph", 1996): weighted means over 2, 4, 8, ... pixels,
    then back down, each level keeping as much of its own as it has weight for.
    """
    levels = [(values * weight, weight)]
    while min(levels[-1][1].shape[-2:]) > 1:
        levels.append(
            tuple(F.avg_pool2d(x, 2, ceil_mode=True, count_include_pad=False) for x in levels[-1])  # type: ignore[arg-type]
        )
    total, share = levels.pop()
    result = total / share.clamp_min(1e-6)
    for total, share in reversed(levels):
        coarse = F.interpolate(result, total.shape[-2:], mode="bilinear", align_corners=False)
        own = (4.0 * share).clamp(max=1.0)
        result = coarse + own * (total / share.clamp_min(1e-6) - coarse)
    return result


def _largest(values: Tensor) -> Tensor:
    """Maximum over 3x3 pixels; several times faster than max_pool2d on a CPU."""
    padded = F.pad(values, (1, 1, 0, 0), mode="replicate")
    values = torch.maximum(values, torch.maximum(padded[..., :-2], padded[..., 2:]))
    padded = F.pad(values, (0, 0, 1, 1), mode="replicate")
    return torch.maximum(values, torch.maximum(padded[..., :-2, :], padded[..., 2:, :]))


def _source_difference(pictures: Tensor, t: Tensor, velocity: Tensor) -> Tensor:
    """Colours of the two warped frames, one minus the other; a change of exposure is no error."""
    flow = torch.cat(flows(velocity, t))
    colour0, colour1 = sample_at(pictures, flow).chunk(2)
    difference = colour0 - colour1
    some = difference[..., ::4, ::4].flatten(2)
    return difference - some.median(dim=2).values[..., None, None]
