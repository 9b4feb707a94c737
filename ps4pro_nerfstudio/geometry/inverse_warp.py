# SPDX-License-Identifier: Apache-2.0
"""A photograph seen from another camera through the depth of that camera, and where to believe it.

View i is a photograph whose depth is known, view j the camera to fill. Each pixel of j is lifted to
its depth, taken into i and looked up there:

    P = D_j K_j^-1 (u, v, 1)    P' = E_i E_j^-1 P    p = K_i P' / P'_z    warped = I_i(p)

The pixel is explained by i when P'_z agrees with the depth that i itself has at p: otherwise
something stands in front of it, or one of the depths is wrong.

World-to-camera matrices have OpenCV axes (x right, y down, z forward). Intrinsics are in pixels and
pixel (column x, row y) has its centre at (x + .5, y + .5). Depth is along the optical axis, in
units of the world; zero, negative and infinite depth stand for "unknown". All tensors of a call
live on one device and share one dtype, float32 or float64. Nothing here carries a gradient.

IPSM (arXiv 2412.02225), section 3.2; points behind camera i, half-pixel offsets, two different
cameras and the comparison of depths in one and the same camera are treated as described above.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as functional
from torch import Tensor

Interpolation = Literal["nearest", "bilinear"]
Agreement = Literal["reproject", "minmax"]


@dataclass(frozen=True)
class Warp:
    """View i brought into the H x W pixels of view j; finite, and zero where `inside` is false.

    The one exception is `depth_in_source`, which is zero only where the depth of j is unknown.
    """

    colors: Tensor
    """[3, H, W], the photograph at the points that the pixels of j show."""
    source_depth: Tensor
    """[H, W], the depth d that view i has at the place where it sees the point."""
    depth_in_source: Tensor
    """[H, W], the depth z' of the point itself in camera i; negative behind it."""
    inside: Tensor
    """[H, W] bool: in front of camera i, within its image, and all depths known."""


@torch.no_grad()
def inverse_warp(
    image_i: Tensor,  # [3, Hi, Wi]
    depth_i: Tensor,  # [Hi, Wi]
    depth_j: Tensor,  # [H, W]
    world_to_camera_i: Tensor,  # [4, 4]
    world_to_camera_j: Tensor,  # [4, 4]
    intrinsics_i: Tensor,  # [3, 3]
    intrinsics_j: Tensor,  # [3, 3]
    near: float = 1e-2,
    interpolation: Interpolation = "nearest",
) -> Warp:
    """Look the pixels of camera j up in the photograph of camera i; see the module's docstring.

    Equal cameras and equal known depth give the photograph itself.

    Args:
        image_i: the photograph.
        depth_i: its depth; it is looked up at the nearest pixel, never blended over an edge.
        depth_j: depth of the camera to fill.
        world_to_camera_i: rigid motion, OpenCV axes.
        world_to_camera_j: rigid motion, OpenCV axes.
        intrinsics_i: for the size of `image_i`.
        intrinsics_j: for the size of `depth_j`.
        near: points nearer than this to the plane of camera i are not inside; positive.
        interpolation: how colours are looked up.

    Raises:
        ValueError: for shapes that do not go together or an unknown interpolation.
    """
    _check_shapes(image_i, depth_i, depth_j)
    height_i, width_i = depth_i.shape
    known_j = _known(depth_j)
    relative = _relative_pose(world_to_camera_j, world_to_camera_i)
    # K_i (R D K_j^-1 (u, v, 1) + t), D times an affine function of the pixel plus a constant.
    rays = intrinsics_i.double() @ relative[:3, :3] @ torch.linalg.inv(intrinsics_j.double())
    offset = intrinsics_i.double() @ relative[:3, 3]
    x, y, depth_in_source = _affine_times(depth_j.where(known_j, 1.0), rays, offset)
    in_front = known_j & (depth_in_source > near) & depth_in_source.isfinite()
    x, y = x / depth_in_source, y / depth_in_source
    # A comparison with NaN is false: what overflowed falls out here.
    within = in_front & (x >= 0) & (x < width_i) & (y >= 0) & (y < height_i)
    x, y = x.where(within, 0.5), y.where(within, 0.5)
    # Truncation is floor, since all are positive.
    place = (y.int() * width_i + x.int()).reshape(-1)
    source_depth = depth_i.reshape(-1).index_select(0, place).view_as(depth_j)
    inside = within & _known(source_depth)
    if interpolation == "nearest":
        colors = image_i.flatten(1).index_select(1, place).view(-1, *depth_j.shape)
    elif interpolation == "bilinear":
        colors = _sample_bilinear(image_i, x, y)
    else:
        raise ValueError(f"interpolation must be nearest or bilinear, got {interpolation}")
    return Warp(
        colors=torch.where(inside, colors, 0.0),
        source_depth=torch.where(inside, source_depth, 0.0),
        depth_in_source=torch.where(known_j & depth_in_source.isfinite(), depth_in_source, 0.0),
        inside=inside,
    )


@torch.no_grad()
def visible(
    warp: Warp,
    depth_j: Tensor,  # [H, W]
    threshold: float,
    mode: Agreement = "reproject",
) -> Tensor:  # [H, W] bool
    """Pixels of j that the photograph explains: inside, and the depths agree.

    A smaller threshold never adds a pixel.

    Args:
        warp: from `inverse_warp`.
        depth_j: the depth it was made with.
        threshold: the paper's tau, of the unit of the mode.
        mode: "reproject" compares both depths in camera i, |z' - d| < threshold * d. "minmax", as
            in the code released with the paper, compares the depths d and D_j of two different
            cameras, each brought to [0, 1] by its own smallest and largest known value; one outlier
            therefore changes all pixels.

    Raises:
        ValueError: for an unknown mode.
    """
    if mode == "reproject":
        error = (warp.depth_in_source - warp.source_depth).abs()
        return warp.inside & (error < threshold * warp.source_depth)
    if mode == "minmax":
        error = _between_zero_and_one(warp.source_depth) - _between_zero_and_one(depth_j)
        return warp.inside & (error.abs() < threshold)
    raise ValueError(f"mode must be reproject or minmax, got {mode}")


def _affine_times(depth: Tensor, matrix: Tensor, offset: Tensor) -> list[Tensor]:
    """The three rows of depth * (matrix (u, v, 1)) + offset, each [H, W], at all pixel centres."""
    height, width = depth.shape
    u = torch.arange(width, device=depth.device, dtype=torch.float64) + 0.5
    v = torch.arange(height, device=depth.device, dtype=torch.float64) + 0.5
    columns = (matrix[:, :1] * u).to(depth)[:, None]  # [3, 1, W]
    rows = (matrix[:, 1:2] * v + matrix[:, 2:]).to(depth)[:, :, None]  # [3, H, 1]
    constants = offset.to(depth)
    return [torch.addcmul(constants[k], columns[k] + rows[k], depth) for k in range(3)]


def _sample_bilinear(image: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Colours [C, H, W] of an image [C, Hi, Wi] at x, y [H, W]; its border is continued."""
    grid = torch.stack([2.0 * x / image.shape[2] - 1.0, 2.0 * y / image.shape[1] - 1.0], dim=-1)
    return functional.grid_sample(
        image[None], grid[None], padding_mode="border", align_corners=False
    )[0]


def _known(depth: Tensor) -> Tensor:
    return (depth > 0) & depth.isfinite()


def _between_zero_and_one(depth: Tensor) -> Tensor:
    """Depth scaled so that its known values span [0, 1]; zeros where it is unknown or constant."""
    known = _known(depth)
    low = torch.where(known, depth, torch.inf).amin()
    span = torch.where(known, depth, -torch.inf).amax() - low
    return torch.where(known & (span > 0), (depth - low) / span, 0.0)


def _relative_pose(world_to_camera_a: Tensor, world_to_camera_b: Tensor) -> Tensor:
    """Coordinates of camera a to those of camera b, [4, 4], float64."""
    # In float32 two poses far from the origin would cancel to a wrong translation; so would they
    # with a transposed rotation, since a rotation in float32 is orthonormal to seven digits only.
    return world_to_camera_b.double() @ torch.linalg.inv(world_to_camera_a.double())


def _check_shapes(image_i: Tensor, depth_i: Tensor, depth_j: Tensor) -> None:
    if image_i.ndim != 3 or depth_i.shape != image_i.shape[1:] or depth_j.ndim != 2:
        raise ValueError(
            "image_i must be [3, Hi, Wi], depth_i [Hi, Wi] and depth_j [H, W], got "
            f"{list(image_i.shape)}, {list(depth_i.shape)} and {list(depth_j.shape)}"
        )
