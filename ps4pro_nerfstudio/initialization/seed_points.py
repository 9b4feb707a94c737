# SPDX-License-Identifier: Apache-2.0
"""Initial points of a splat: triangulated from the train views, else random; kept in a cache."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ps4pro_nerfstudio.geometry.cameras import flip_camera_axes
from ps4pro_nerfstudio.initialization.kept import keep, kept_file, load_kept
from ps4pro_nerfstudio.initialization.points import SeedPoints, SeedPointsConfig
from ps4pro_nerfstudio.initialization.random_points import points_in_common_frustum
from ps4pro_nerfstudio.initialization.triangulation import Progress, triangulate_points
from ps4pro_nerfstudio.initialization.views import TrainViews, colors_of_points
from ps4pro_nerfstudio.messages import InputError, counted, say

__all__ = ["SeedPoints", "SeedPointsConfig", "seed_points"]

# Part of the key: raise it when the same input gives other points than before.
_CACHE_VERSION = 2
_WHAT = "initial points"


def seed_points(
    images: Sequence[NDArray[np.uint8]],
    valid: Sequence[NDArray[np.bool_] | None],
    camera_to_worlds: ArrayLike,
    intrinsics: ArrayLike,
    names: Sequence[str],
    config: SeedPointsConfig | None = None,
    cache_folder: Path | None = None,
    progress: Progress | None = None,
) -> SeedPoints:
    """Find initial points from train views and say in one line how.

    Args:
        images: N undistorted pinhole images uint8 [H, W, 3]. Give train views only.
        valid: N masks bool [H, W], False where a pixel means nothing, or None.
        camera_to_worlds: [N, 3, 4], OpenGL camera axes (nerfstudio), any world frame and scale.
        intrinsics: [N, 3, 3], pixels; pixel centres at half-integers.
        names: N names of the images, for messages.
        config: method and thresholds.
        cache_folder: where triangulated points are kept between runs; None: nowhere.
        progress: see `triangulation.triangulate_points`.

    Raises:
        ValueError: wrong shapes or dtypes.
        InputError: an impossible camera, or too few points with method "triangulate".
    """
    config = config or SeedPointsConfig()
    views = TrainViews.checked(images, valid, camera_to_worlds, intrinsics, names)
    num_views = counted(len(views), "train view")
    if config.method == "random":
        points = _random_points(views, config)
        say(f"starting from {counted(len(points), 'random point')} {_where(len(views))}")
        return points
    if len(views) == 1:
        if config.method == "triangulate":
            raise InputError("One train view is not enough to triangulate points; add more views.")
        points = _random_points(views, config)
        say(
            "one train view cannot be triangulated; starting from "
            f"{counted(len(points), 'random point')} {_where(1)}"
        )
        return points

    start = time.perf_counter()
    cache_file = kept_file(cache_folder, "seed_points", _CACHE_VERSION, config, views)
    points = load_kept(cache_file, _WHAT, lambda stored: _read(stored, len(views)))
    origin = "from the cache"
    if points is None:
        points = triangulate_points(
            images, valid, camera_to_worlds, intrinsics, names, config, progress
        )
        origin = f"in {time.perf_counter() - start:.0f} s"
        keep(cache_file, _WHAT, _arrays(points))
    found = counted(len(points), "point")
    if len(points) >= max(config.min_points, 1):
        error = float(np.median(points.reprojection_errors_px))
        say(
            f"triangulated {found} from {num_views} {origin} "
            f"(median reprojection error {error:.1f} px)"
        )
        return points
    if config.method == "triangulate":
        raise InputError(
            f"Only {found} could be triangulated from {num_views}, fewer than min_points = "
            f"{config.min_points}; lower it, or choose the method auto or random."
        )
    points = _random_points(views, config)
    say(
        f"only {found} could be triangulated from {num_views}; unless dense correspondences give "
        f"some, training starts from {counted(len(points), 'random point')} {_where(len(views))}"
    )
    return points


def _where(num_views: int) -> str:
    return "in front of the camera" if num_views == 1 else "that at least two cameras see"


def _random_points(views: TrainViews, config: SeedPointsConfig) -> SeedPoints:
    """Random points in the common frustum, with the colours of the pixels that show them."""
    xyz, _ = points_in_common_frustum(
        flip_camera_axes(views.camera_to_worlds),
        views.intrinsics,
        views.sizes,
        config.num_random,
        config.seed,
    )
    return SeedPoints(
        xyz=xyz,
        rgb=colors_of_points(xyz, views),
        track_lengths=np.zeros(len(xyz), np.int32),
        reprojection_errors_px=np.full(len(xyz), np.nan, np.float32),
        seen_by=np.zeros((len(xyz), len(views)), np.bool_),
        method="random",
    )


def _read(stored: Mapping[str, NDArray], num_views: int) -> SeedPoints:
    """Points from the arrays of a cache file.

    Raises:
        ValueError: they are not what was written.
    """
    points = SeedPoints(
        xyz=stored["xyz"],
        rgb=stored["rgb"],
        track_lengths=stored["track_lengths"],
        reprojection_errors_px=stored["reprojection_errors_px"],
        seen_by=stored["seen_by"],
        method="triangulated",
    )
    count = len(points)
    layout = [
        (points.xyz, np.float32, (count, 3)),
        (points.rgb, np.uint8, (count, 3)),
        (points.track_lengths, np.int32, (count,)),
        (points.reprojection_errors_px, np.float32, (count,)),
        (points.seen_by, np.bool_, (count, num_views)),
    ]
    if any(a.dtype != dtype or a.shape != shape for a, dtype, shape in layout):
        raise ValueError("unexpected arrays")
    if not np.all(np.isfinite(points.xyz)):
        raise ValueError("points that are not finite")
    return points


def _arrays(points: SeedPoints) -> dict[str, NDArray]:
    return {
        "xyz": points.xyz,
        "rgb": points.rgb,
        "track_lengths": points.track_lengths,
        "reprojection_errors_px": points.reprojection_errors_px,
        "seen_by": points.seen_by,
    }
