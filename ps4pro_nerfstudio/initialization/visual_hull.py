# SPDX-License-Identifier: Apache-2.0
"""Coarse initial points of an object that photographs show cut out.

Where a photograph is transparent it shows that nothing stands along that ray. What remains after
all photographs is the visual hull (Laurentini 1994): the object lies inside and, seen from any of
the photographs, fills it. Correspondences leave out what is smooth or far from all neighbours; a
splat without Gaussians there shows a hole. Each ray of a photograph that no known point explains
gets one just inside the hull, which training moves inwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import KDTree

from ps4pro_nerfstudio.geometry.cameras import Float64, back_project, project
from ps4pro_nerfstudio.initialization.dense_points import PointCloud
from ps4pro_nerfstudio.initialization.random_points import DEPTH_RANGE, expected_depth
from ps4pro_nerfstudio.initialization.views import TrainViews, inside_image, pixel_grid

CACHE_VERSION = 1
"""Part of the name of kept results: raised when this module gives others."""
_NUM_DEPTHS = 384
"""Depths along a ray, each less than one percent farther than the one before."""
_MAX_CARVING = 16
"""Photographs that a ray is carved by, at equal distances in their order; more add little."""
_NEIGHBOURS = 8
"""Known points that may explain a ray."""


@dataclass
class VisualHullConfig:
    """Coarse initial points of objects that photographs show cut out."""

    enabled: bool = True
    """Add them to dense points where photographs have transparency. Where to look for depth the
    hull tells either way, if nothing else does."""
    max_views: int = 40
    """Captures with more photographs than this have neighbours for all of the object."""
    cells: int = 80
    """Spacing of the rays: the long side of a photograph over this number."""
    reach: float = 2.0
    """A known point explains the rays up to this many spacings from it."""
    inside: float = 0.25
    """Where the point stands, as a share of the part of its ray that lies in the hull."""

    def __post_init__(self) -> None:
        if self.cells < 1:
            raise ValueError(f"cells must be at least 1, got {self.cells}")
        if not self.reach >= 0.0:
            raise ValueError(f"reach must not be negative, got {self.reach}")
        if not 0.0 <= self.inside <= 1.0:
            raise ValueError(f"inside must lie in [0, 1], got {self.inside}")


def visual_hull_points(
    views: TrainViews,
    silhouettes: Sequence[NDArray[np.bool_] | None],
    known: NDArray,
    config: VisualHullConfig,
) -> PointCloud:
    """Points just inside the visual hull, on rays that no known point explains.

    Args:
        views: the N photographs.
        silhouettes: N masks [H, W], true where a photograph shows the object; None: it is not cut
            out, so it carves nothing and gets no points.
        known: points of the scene [P, 3], in the world of the poses.
        config: how coarse, and how deep inside.

    Returns:
        The new points alone.
    """
    xyz = [np.zeros((0, 3))]
    rgb = [np.zeros((0, 3), np.uint8)]
    depths = expected_depth(views.camera_to_worlds) * np.geomspace(*DEPTH_RANGE, _NUM_DEPTHS)
    for index, silhouette in enumerate(silhouettes):
        if silhouette is None:
            continue
        spacing = max(views.sizes[index]) / config.cells
        mask = views.valid[index]
        shown = silhouette if mask is None else silhouette & mask
        spots = pixel_grid(views.sizes[index], spacing, shown)
        entry, end = _first_stay(spots, depths, views, silhouettes, index)
        inside = entry < end
        spots, near, far = spots[inside], depths[entry[inside]], depths[end[inside] - 1]
        blank = ~_explained(spots, (near + far) / 2.0, known, views, index, config.reach * spacing)
        spots, near, far = spots[blank], near[blank], far[blank]
        depth = near + config.inside * (far - near)
        pose, matrix = views.camera_to_worlds[index], views.intrinsics[index]
        xyz.append(back_project(spots, depth, pose, matrix))
        column, row = np.floor(spots).astype(np.int64).T
        rgb.append(views.images[index][row, column])
    return PointCloud(np.concatenate(xyz).astype(np.float32), np.concatenate(rgb))


def _first_stay(
    spots: Float64,
    depths: Float64,
    views: TrainViews,
    silhouettes: Sequence[NDArray[np.bool_] | None],
    index: int,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Of the rays of spots [S, 2]: places [S] of the first depth in the hull and the first after.

    Both are the number of depths for rays that miss the hull. It is where all other photographs
    that see a point show the object, and at least two of them, or the only one, do.
    """
    pose, matrix = views.camera_to_worlds[index], views.intrinsics[index]
    points = back_project(
        np.repeat(spots, len(depths), axis=0), np.tile(depths, len(spots)), pose, matrix
    )
    others = [other for other in range(len(views)) if other != index]
    if len(others) > _MAX_CARVING:
        chosen = np.linspace(0, len(others) - 1, _MAX_CARVING).round().astype(int)
        others = [others[place] for place in chosen]
    num_showing = np.zeros(len(points), np.int64)
    left = np.arange(len(points))
    for other in others:
        silhouette = silhouettes[other]
        if silhouette is None:
            continue
        pixels, _ = project(points[left], views.camera_to_worlds[other], views.intrinsics[other])
        is_seen = inside_image(pixels, views.sizes[other])
        column, row = np.floor(pixels[is_seen]).astype(np.int64).T
        shows = np.zeros(len(left), bool)
        shows[is_seen] = silhouette[row, column]
        num_showing[left] += shows
        left = left[shows | ~is_seen]
    in_hull = np.zeros(len(points), bool)
    in_hull[left] = num_showing[left] >= min(2, len(others))
    in_hull = in_hull.reshape(len(spots), len(depths))
    missing = np.full(len(spots), len(depths))
    entry = np.where(in_hull.any(axis=1), in_hull.argmax(axis=1), missing)
    place = np.arange(len(depths))
    is_out = ~in_hull & (place > entry[:, None])
    end = np.where(is_out.any(axis=1), is_out.argmax(axis=1), missing)
    return entry, end


def _explained(
    spots: Float64,
    before: Float64,
    known: NDArray,
    views: TrainViews,
    index: int,
    reach: float,
) -> NDArray[np.bool_]:
    """Which rays of spots [S, 2] have a known point within reach, nearer than a depth [S].

    What is known of the far side of the object explains nothing of the near one.
    """
    pixels, depth = project(known, views.camera_to_worlds[index], views.intrinsics[index])
    inside = inside_image(pixels, views.sizes[index])
    pixels, depth = pixels[inside], depth[inside]
    if len(pixels) == 0 or len(spots) == 0:
        return np.zeros(len(spots), bool)
    count = min(_NEIGHBOURS, len(pixels))
    distance, neighbour = KDTree(pixels).query(spots, k=count)
    distance, neighbour = (np.reshape(part, (len(spots), count)) for part in (distance, neighbour))
    is_near = (np.asarray(distance) <= reach) & (depth[neighbour] <= before[:, None])
    return is_near.any(axis=1)
