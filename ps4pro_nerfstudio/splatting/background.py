# SPDX-License-Identifier: Apache-2.0
"""What stands in for regions that no photograph shows: the colour of their direction.

A colour that changes linearly with the direction of the ray, fitted to all pixels of all
photographs: little more than their mean, but sky stays above and ground below.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from nerfstudio.cameras.cameras import Cameras
from torch import Tensor

TRANSPARENT_COLOR = "transparent_color"
"""Where the metadata of a training dataset holds the colour [3] that its parser wants behind
transparent images."""
# Weight of the slopes' squares beside the mean squared error: photographs that look one way only
# say nothing about the others.
_RIDGE = 0.01
# Pixels along the longer side of a photograph that are looked at, to twice as many.
_SIDE = 64


def pixel_directions(
    camera_to_world: Tensor,  # [3 or 4, 4], OpenGL axes
    intrinsics: Tensor,  # [3, 3]
    size: tuple[int, int],  # width, height
) -> Tensor:  # [H, W, 3]
    """Unit directions in the world through the pixels' centres."""
    options = {"device": intrinsics.device, "dtype": intrinsics.dtype}
    u, v = torch.meshgrid(
        torch.arange(size[0], **options) + 0.5,
        torch.arange(size[1], **options) + 0.5,
        indexing="xy",
    )
    x = (u - intrinsics[0, 2]) / intrinsics[0, 0]
    y = (v - intrinsics[1, 2]) / intrinsics[1, 1]
    local = torch.stack([x, -y, -torch.ones_like(x)], dim=-1)
    return torch.nn.functional.normalize(local @ camera_to_world[:3, :3].T, dim=-1)


def fit_background(directions: Tensor, colors: Tensor) -> Tensor:
    """Least squares of colours [P, 3] in [0, 1] over unit directions [P, 3].

    Returns:
        [4, 3], mean part first, for `background_colors`.

    Raises:
        ValueError: there is no pixel.
    """
    if len(directions) == 0:
        raise ValueError("no pixel to fit the background to")
    design = _design(directions).double()
    penalty = torch.full_like(design[0], _RIDGE * len(design))
    penalty[0] = 0.0
    fit = torch.linalg.solve(design.T @ design + penalty.diag(), design.T @ colors.double())
    return fit.to(colors)


def fit_to_photographs(
    photographs: Sequence[Mapping[str, Tensor]], cameras: Cameras
) -> Tensor | None:
    """Colour by direction [4, 3] of undistorted photographs; None where they are cut out.

    Args:
        photographs: `image` [H, W, 3 or 4], uint8 or in [0, 1], and perhaps `mask` [H, W, 1].
        cameras: one for each, OpenGL axes; distortion is ignored.
    """
    directions, colors = [], []
    for photograph, motion, intrinsics in zip(
        photographs, cameras.camera_to_worlds, cameras.get_intrinsics_matrices(), strict=True
    ):
        image = photograph["image"].cpu()
        if image.shape[-1] != 3:
            return None
        height, width = image.shape[:2]
        step = max(1, max(height, width) // _SIDE)
        rays = pixel_directions(motion.cpu(), intrinsics.cpu(), (width, height))[::step, ::step]
        color = image[::step, ::step].float() / (255.0 if image.dtype == torch.uint8 else 1.0)
        if "mask" in photograph:
            valid = photograph["mask"].cpu()[::step, ::step, 0].bool()
            rays, color = rays[valid], color[valid]
        directions.append(rays.reshape(-1, 3))
        colors.append(color.reshape(-1, 3))
    if not sum(map(len, colors)):
        return None
    return fit_background(torch.cat(directions), torch.cat(colors))


def background_colors(fit: Tensor, directions: Tensor) -> Tensor:
    """Colours [..., 3] in [0, 1] of unit directions [..., 3]."""
    return (_design(directions) @ fit).clamp(0.0, 1.0)


def _design(directions: Tensor) -> Tensor:
    return torch.cat([torch.ones_like(directions[..., :1]), directions], dim=-1)
