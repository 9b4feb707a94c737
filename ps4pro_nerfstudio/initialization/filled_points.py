# SPDX-License-Identifier: Apache-2.0
"""Coarse initial points where nothing is known of a photograph's depth.

Correspondences leave out smooth walls, skies and what one photograph alone shows. A splat that has
no Gaussians there stretches others across them, and these then stand in the way of other views. A
coarse point for each blank spot, on the plane of its surroundings or at their depth, prevents that:
training moves it or removes it, where a guessed depth in the loss would hold it. With the inverse
depths of a monocular network the guess is theirs, fitted to the known points of the photograph by
least squares (initialisation chain of IPSM, arXiv 2412.02225). Photographs are filled one after the
other, so that a wall which ten of them show is filled once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import KDTree

from ps4pro_nerfstudio.geometry.cameras import Float64, back_project, project
from ps4pro_nerfstudio.initialization.dense_points import PointCloud
from ps4pro_nerfstudio.initialization.free_space import NEAREST_PERCENTILE
from ps4pro_nerfstudio.initialization.image_planes import find_planes
from ps4pro_nerfstudio.initialization.views import TrainViews, inside_image, pixel_grid

CACHE_VERSION = 2
"""Part of the name of kept results: raised when this module, or `image_planes`, gives others."""
_NEIGHBOURS = 8
"""Known points that a guess is interpolated from."""
_FOLLOWED = 2.0
"""A plane is followed up to this many times the depth of the farthest known point,"""
_NEARER = 1.5
"""and down to the depth of the nearest over this: what is nearer, free space would remove."""
_LEAST_KNOWN = 20
"""A photograph that shows fewer known points than this is left as it is."""
_SAME_SURFACE = 1.2
"""Points up to this many times as far as the nearest of their cell count as seen."""
_BEFORE = 0.95
"""A point nearer than this share of the nearest known one of a cell would hide it."""
_BEHIND = 1.05
"""A point farther than this many times the farthest seen one of a cell is hidden by it."""


@dataclass
class FilledPointsConfig:
    """Coarse initial points where correspondences give none."""

    enabled: bool = True
    """Add them to dense points; they are guesses, and never written as points of a capture."""
    max_views: int = 5
    """Captures with more photographs than this are left as they are. Guesses look plausible and are
    some pixels off; with six photographs that cost more than it gained."""
    cells: int = 80
    """Spacing of the points: the long side of a photograph over this number."""
    reach: float = 2.0
    """A spot is blank when no known point is nearer than this many spacings."""
    max_color_difference: float = 0.15
    """Another photograph that shows something else at the place of a guess removes it: mean
    difference of the colours, of 1."""

    def __post_init__(self) -> None:
        if self.cells < 1:
            raise ValueError(f"cells must be at least 1, got {self.cells}")
        if not self.reach > 0.0:
            raise ValueError(f"reach must be positive, got {self.reach}")


@dataclass(frozen=True)
class _Known:
    """The points that one photograph shows, and the range of their depths over a grid of cells."""

    pixels: Float64  # [K, 2]
    depth: Float64  # [K]
    nearest: Float64  # [rows, columns], inf where empty
    farthest: Float64  # [rows, columns], 0 where empty
    spacing: float  # edge of a cell in pixels

    def cell(self, pixels: Float64) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Row and column of the cells of pixel positions [P, 2]."""
        column, row = np.floor(pixels / self.spacing).astype(np.int64).T
        return row, column


def filled_points(
    views: TrainViews,
    known: PointCloud,
    config: FilledPointsConfig,
    inverse_depths: Sequence[NDArray] | None = None,
) -> PointCloud:
    """Coarse points for what the photographs show and no known point explains.

    Args:
        views: the N photographs.
        known: points of the scene, in the world of the poses.
        config: how coarse, and what speaks against a guess.
        inverse_depths: N maps [H, W] of a network, of any scale and shift; without them, or where
            one is empty, the inverse depth is that of the planes which the known points around a
            spot lie on.

    Returns:
        The new points alone; none where too little is known.
    """
    seen = [_known(known.xyz, views, index, config) for index in range(len(views))]
    xyz: list[Float64] = []
    rgb: list[NDArray[np.uint8]] = []
    for index in range(len(views)):
        before = np.concatenate([known.xyz.astype(np.float64), *xyz])
        spots = _blank_spots(before, views, index, config)
        depth = _guess(
            spots, seen[index], None if inverse_depths is None else inverse_depths[index]
        )
        if depth is None:
            continue
        points = back_project(spots, depth, views.camera_to_worlds[index], views.intrinsics[index])
        colors = _colors(views.images[index], spots)
        kept = np.ones(len(points), bool)
        for other in range(len(views)):
            if other != index:
                kept &= ~_contradicts(points, colors, views, other, seen[other], config)
        xyz.append(points[kept])
        rgb.append(colors[kept])
    return PointCloud(
        np.concatenate([np.zeros((0, 3)), *xyz]).astype(np.float32),
        np.concatenate([np.zeros((0, 3), np.uint8), *rgb]),
    )


def _shown(xyz: NDArray, views: TrainViews, index: int) -> tuple[Float64, Float64]:
    """Pixels [K, 2] and depths [K] of the points that fall into a photograph."""
    pixels, depth = project(xyz, views.camera_to_worlds[index], views.intrinsics[index])
    inside = inside_image(pixels, views.sizes[index])
    return pixels[inside], depth[inside]


def _known(xyz: NDArray, views: TrainViews, index: int, config: FilledPointsConfig) -> _Known:
    width, height = views.sizes[index].tolist()
    spacing = max(width, height) / config.cells
    shape = (int(np.ceil(height / spacing)), int(np.ceil(width / spacing)))
    pixels, depth = _shown(xyz, views, index)
    known = _Known(pixels, depth, np.full(shape, np.inf), np.zeros(shape), spacing)
    cell = known.cell(pixels)
    np.minimum.at(known.nearest, cell, depth)
    seen = depth <= _SAME_SURFACE * known.nearest[cell]
    np.maximum.at(known.farthest, (cell[0][seen], cell[1][seen]), depth[seen])
    return _Known(pixels[seen], depth[seen], known.nearest, known.farthest, spacing)


def _blank_spots(
    xyz: NDArray, views: TrainViews, index: int, config: FilledPointsConfig
) -> Float64:
    """Pixels [S, 2] of a grid, far from all points [P, 3] that the photograph shows."""
    spacing = max(views.sizes[index]) / config.cells
    spots = pixel_grid(views.sizes[index], spacing, views.valid[index])
    pixels, _ = _shown(xyz, views, index)
    if len(pixels) == 0:
        return spots
    distance, _ = KDTree(pixels).query(spots)
    return spots[distance > config.reach * spacing]


def _guess(spots: Float64, known: _Known, inverse_depth: NDArray | None) -> Float64 | None:
    """Depth [S] of blank spots [S, 2]; None where too little is known."""
    if len(known.depth) < _LEAST_KNOWN or len(spots) == 0:
        return None
    nearest, farthest = _nearest(known.depth), float(known.depth.max())
    if inverse_depth is None or inverse_depth.size == 0:
        inverse = _of_surroundings(spots, known)
        farthest *= _FOLLOWED
    else:
        column, row = np.floor(known.pixels).astype(np.int64).T
        network = inverse_depth[row, column].astype(np.float64)
        design = np.stack([network, np.ones_like(network)], axis=1)
        (scale, shift), *_ = np.linalg.lstsq(design, 1.0 / known.depth, rcond=None)
        column, row = np.floor(spots).astype(np.int64).T
        inverse = scale * inverse_depth[row, column].astype(np.float64) + shift
        # A network tells far from farther, but a line through near points cannot say how far.
        farthest *= 4.0
    return 1.0 / np.clip(inverse, 1.0 / farthest, 1.0 / nearest)


def _nearest(depth: Float64) -> float:
    """Depth down to which guesses are believed, from the known ones [K] but for stray points."""
    return float(np.percentile(depth, NEAREST_PERCENTILE)) / _NEARER


def _of_surroundings(spots: Float64, known: _Known) -> Float64:
    """Inverse depth [S] of spots [S, 2]: weighted median of what the nearest known points say.

    A point says what its plane has at the spot, or its own inverse depth where it lies in none. The
    median takes one side where two surfaces meet: their mean would be in neither.
    """
    inverse = 1.0 / known.depth
    planes = find_planes(known.pixels, inverse)
    distance, neighbour = KDTree(known.pixels).query(spots, k=_NEIGHBOURS)
    # The last column stands for the points in no plane.
    extended = np.column_stack([planes.inverse_depth(spots), np.full(len(spots), np.nan)])
    said = np.take_along_axis(extended, planes.plane[neighbour], axis=1)
    own = inverse[neighbour]
    # Followed too far, it reaches the horizon, or the camera.
    usable = (said >= inverse.min() / _FOLLOWED) & (said <= 1.0 / _nearest(known.depth))
    said = np.where(usable, said, own)
    order = np.argsort(said, axis=1)
    weight = np.take_along_axis(1.0 / np.square(np.asarray(distance)), order, axis=1)
    reached = np.cumsum(weight, axis=1) >= weight.sum(axis=1, keepdims=True) / 2.0
    middle = order[np.arange(len(order)), reached.argmax(axis=1)]
    return said[np.arange(len(said)), middle]


def _contradicts(
    points: Float64,
    colors: NDArray[np.uint8],
    views: TrainViews,
    index: int,
    known: _Known,
    config: FilledPointsConfig,
) -> NDArray[np.bool_]:
    """Which points [P, 3] would hide what a photograph is known to show, or look otherwise."""
    result = np.zeros(len(points), bool)
    pixels, depth = project(points, views.camera_to_worlds[index], views.intrinsics[index])
    inside = np.flatnonzero(inside_image(pixels, views.sizes[index]))
    pixels, depth = pixels[inside], depth[inside]
    cell = known.cell(pixels)
    hides = depth < _BEFORE * np.where(known.farthest[cell] > 0.0, known.nearest[cell], 0.0)
    is_hidden = (known.farthest[cell] > 0.0) & (depth > _BEHIND * known.farthest[cell])
    shown = _colors(views.images[index], pixels).astype(np.float64)
    difference = np.abs(shown - colors[inside]).mean(axis=1) / 255.0
    differs = difference > config.max_color_difference
    mask = views.valid[index]
    if mask is not None:
        differs &= mask[tuple(np.floor(pixels).astype(np.int64).T[::-1])]
    result[inside] = hides | (differs & ~is_hidden)
    return result


def _colors(image: NDArray[np.uint8], pixels: Float64) -> NDArray[np.uint8]:
    """Colours [P, 3] of the pixels that hold the positions [P, 2]."""
    column, row = np.floor(pixels).astype(np.int64).T
    return image[row, column]
