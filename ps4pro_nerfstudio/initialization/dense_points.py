# SPDX-License-Identifier: Apache-2.0
"""Dense coloured points from depth maps, thinned and joined with the sparse points of a capture.

The same surface is seen by many pixels of several frames. Points that share a cell of space become
one, their weighted mean. Cells grow with the distance from the cameras, by powers of two, so that
one point stands for about `spacing_px` x `spacing_px` pixels near and far. Fused points are kept
between runs: millions of observations take seconds, their hash a tenth of one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ps4pro_nerfstudio.geometry.cameras import Float64
from ps4pro_nerfstudio.initialization.kept import file_of, keep, load_kept

# Part of the name of what is kept: raise it when the same input gives other points than before.
_CACHE_VERSION = 1
_WHAT = "dense points"


@dataclass
class DensePointsConfig:
    """Initial points from the correspondences of neighbouring photographs."""

    enabled: bool = True
    """Add points where the photographs show the same surface; False keeps sparse points only."""
    spacing_px: float = 2.0
    """Distance between neighbouring points, in pixels of the frames that they come from."""
    max_points: int = 300_000
    """Most points, sparse ones included; sparse points always stay, dense ones are drawn at random
    from what is left."""
    as_many_as_sparse: bool = False
    """For comparisons: keep as many points as the sparse ones alone, drawn at random from all.
    Without sparse points all stay."""
    max_views: int = 100
    """Captures with more photographs than this are dense: their sparse points will do."""
    seed: int = 0
    """Seed of the draw and of the order of the points."""

    def __post_init__(self) -> None:
        if not self.spacing_px > 0.0:
            raise ValueError(f"spacing_px must be positive, got {self.spacing_px}")
        if self.max_points < 1:
            raise ValueError(f"max_points must be at least 1, got {self.max_points}")


@dataclass(frozen=True)
class PointCloud:
    """Coloured points in the world of the poses."""

    xyz: NDArray[np.float32]
    """[P, 3]."""
    rgb: NDArray[np.uint8]
    """[P, 3]."""

    def __len__(self) -> int:
        return len(self.xyz)


@dataclass(frozen=True)
class PointObservations:
    """Points that one frame sees, one for each of its pixels with a depth."""

    xyz: Float64
    """[P, 3] in the world."""
    rgb: NDArray[np.uint8]
    """[P, 3]."""
    weight: NDArray
    """[P], how far each is trusted, above 0."""
    pixel_size: NDArray
    """[P], what a pixel measures at the point, in units of the poses."""


@dataclass(frozen=True)
class FusedPoints:
    """Sparse and dense points in random order."""

    points: PointCloud
    num_sparse: int
    """How many of them are sparse ones."""

    def __len__(self) -> int:
        return len(self.points)

    @property
    def num_dense(self) -> int:
        """How many of them come from dense correspondences."""
        return len(self.points) - self.num_sparse


def load_or_fuse(
    observations: Sequence[PointObservations],
    sparse: PointCloud,
    config: DensePointsConfig,
    cache_folder: Path | None = None,
) -> FusedPoints:
    """What `fuse` makes of the same arguments, from the cache where it is there.

    Args:
        observations: what all frames see.
        sparse: points of the capture.
        config: how points are thinned and drawn.
        cache_folder: where fused points are kept between runs; None: nowhere.
    """
    # Whether points are wanted does not change them.
    decisive = replace(config, enabled=True, max_views=0)
    arrays = [sparse.xyz, sparse.rgb]
    for part in observations:
        arrays += [part.xyz, part.rgb, part.weight, part.pixel_size]
    file = file_of(cache_folder, "dense_points", _CACHE_VERSION, decisive, arrays)
    fused = load_kept(file, _WHAT, _read)
    if fused is None:
        fused = fuse(observations, sparse, config)
        points = {"xyz": fused.points.xyz, "rgb": fused.points.rgb}
        keep(file, _WHAT, {**points, "num_sparse": np.array(fused.num_sparse)})
    return fused


def read_points(stored: Mapping[str, NDArray]) -> PointCloud:
    """Points from the arrays `xyz` and `rgb` of a cache file.

    Raises:
        ValueError: they are not what was written.
    """
    xyz, rgb = stored["xyz"], stored["rgb"]
    if xyz.shape != (len(xyz), 3) or rgb.shape != xyz.shape:
        raise ValueError("unexpected arrays")
    if xyz.dtype != np.float32 or rgb.dtype != np.uint8:
        raise ValueError("unexpected types")
    return PointCloud(xyz, rgb)


def _read(stored: Mapping[str, NDArray]) -> FusedPoints:
    points, num_sparse = read_points(stored), int(stored["num_sparse"])
    if not 0 <= num_sparse <= len(points):
        raise ValueError("more sparse points than points")
    return FusedPoints(points, num_sparse)


def fuse(
    observations: Sequence[PointObservations], sparse: PointCloud, config: DensePointsConfig
) -> FusedPoints:
    """Join what all frames see with the sparse points, shuffled.

    A cell that holds a sparse point takes no dense one: features are found more precisely. The
    order is random, because a prefix of ordered points is no fair sample of the scene.
    """
    generator = np.random.default_rng(config.seed)
    filled = [part for part in observations if len(part.xyz)]
    if filled:
        dense = _thin(filled, sparse, config.spacing_px)
        room = max(config.max_points - len(sparse), 0)
        chosen = generator.permutation(len(dense))[:room]
        xyz = np.concatenate([sparse.xyz, dense.xyz[chosen]])
        rgb = np.concatenate([sparse.rgb, dense.rgb[chosen]])
    else:
        xyz, rgb = sparse.xyz, sparse.rgb
    order = generator.permutation(len(xyz))
    if config.as_many_as_sparse and len(sparse) > 0:
        order = order[: len(sparse)]
    points = PointCloud(xyz[order].astype(np.float32), rgb[order].astype(np.uint8))
    return FusedPoints(points, num_sparse=int((order < len(sparse)).sum()))


def shuffled(first: PointCloud, second: PointCloud, seed: int) -> PointCloud:
    """Two clouds as one, in random order."""
    order = np.random.default_rng(seed).permutation(len(first) + len(second))
    return PointCloud(
        np.concatenate([first.xyz, second.xyz])[order],
        np.concatenate([first.rgb, second.rgb])[order],
    )


def _thin(
    observations: Sequence[PointObservations], sparse: PointCloud, spacing_px: float
) -> PointCloud:
    """One point for each cell, at the weighted mean of what falls into it."""
    xyz = np.concatenate([part.xyz for part in observations])
    rgb = np.concatenate([part.rgb for part in observations]).astype(np.float64)
    weight = np.concatenate([part.weight for part in observations]).astype(np.float64)
    cell = spacing_px * np.concatenate([part.pixel_size for part in observations])
    level = np.rint(np.log2(cell)).astype(np.int64)
    taken = [_cells(sparse.xyz, np.full(len(sparse), one)) for one in np.unique(level)]
    group = _groups(np.concatenate([_cells(xyz, level), *taken]))
    of_sparse = np.zeros(group.max() + 1, bool)
    of_sparse[group[len(xyz) :]] = True
    free = ~of_sparse[group[: len(xyz)]]
    _, group = np.unique(group[: len(xyz)][free], return_inverse=True)
    total = np.bincount(group, weight[free])
    mean = [np.bincount(group, weight[free] * values[free]) / total for values in (*xyz.T, *rgb.T)]
    return PointCloud(
        np.stack(mean[:3], axis=1).astype(np.float32),
        np.rint(np.stack(mean[3:], axis=1)).astype(np.uint8),
    )


def _cells(xyz: NDArray, level: NDArray[np.int64]) -> NDArray[np.int64]:
    """Cell of each point [P, 3] in the grid of its level: [P, 4], edge length 2^level."""
    edge = np.exp2(level.astype(np.float64))[:, None]
    return np.concatenate([level[:, None], np.floor(xyz / edge).astype(np.int64)], axis=1)


def _groups(cells: NDArray[np.int64]) -> NDArray[np.int64]:
    """A number [P] for each row [P, 4], the same for equal rows.

    Rows are packed into one integer where their ranges allow it: sorting those is ten times faster.
    """
    low, high = cells.min(axis=0), cells.max(axis=0)
    sizes = tuple(int(size) for size in high - low + 1)
    if math.prod(sizes) < np.iinfo(np.int64).max:
        packed = np.ravel_multi_index(tuple((cells - low).T), sizes)
        _, group = np.unique(packed, return_inverse=True)
    else:
        _, group = np.unique(cells, axis=0, return_inverse=True)
    return group.reshape(-1)
