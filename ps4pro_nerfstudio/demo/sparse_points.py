# SPDX-License-Identifier: Apache-2.0
"""Sparse coloured points of a scene, as structure from motion would deliver them.

Points start at corners of the training pictures (Shi and Tomasi, "Good features to track", 1994),
so they cluster where there is texture. A point has a track: the training views that see it, of
which some are missed, as matching misses them. At least two views and an angle between their rays
are needed.

The position error is that of triangulation. With the Jacobian J_v [2, 3] of the projection into
view v and independent normal errors e_v [2] of the observed pixel positions, least squares moves
the point, to first order, by (sum J_v^T J_v)^-1 sum J_v^T e_v: distant points err more, and along
the line of sight.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ps4pro_nerfstudio.demo.raycasting import Camera, RayCaster, Rendering

DEPTH_EDGE = 0.08
"""Corners next to a relative jump of depth this large belong to two surfaces and match nothing."""
MATCH_SHARE = 0.7
"""Chance that a view which sees a point is part of its track."""
MIN_ANGLE_RAD = np.deg2rad(1.5)
"""Least angle between two rays of a track, as COLMAP asks for."""
MAX_RELATIVE_ERROR = 0.04
"""Points whose expected error is larger than this share of their distance are dropped."""


@dataclass(frozen=True)
class SparsePoints:
    """A sparse reconstruction in world coordinates."""

    positions: NDArray[np.float64]  # [N, 3] with the error of triangulation
    exact_positions: NDArray[np.float64]  # [N, 3] on the surface
    colors: NDArray[np.uint8]  # [N, 3]
    tracks: NDArray[np.bool_]  # [N, V] views that observed the point


def reconstruct(
    caster: RayCaster,
    cameras: list[Camera],
    renderings: list[Rendering],
    num_points: int,
    noise_px: float,
    generator: np.random.Generator,
) -> SparsePoints:
    """Points that are seen by at least two of the views.

    Args:
        caster: the scene.
        cameras: the training views.
        renderings: their pictures and depths.
        num_points: at most this many are kept.
        noise_px: standard deviation, in pixels and per axis, of where a view observes a point.
        generator: the only source of randomness.
    """
    corners = [_corners(rendering) for rendering in renderings]
    positions = np.concatenate(
        [
            camera.center + rendering.depth[row, column, None] * camera.directions(_px(row, column))
            for camera, rendering, (row, column) in zip(cameras, renderings, corners, strict=True)
        ]
    )
    colors = np.concatenate(
        [
            np.round(rendering.image[row, column] * 255.0)
            for rendering, (row, column) in zip(renderings, corners, strict=True)
        ]
    ).astype(np.uint8)
    source = np.repeat(np.arange(len(cameras)), [len(row) for row, _ in corners])
    pixel_m = (
        np.linalg.norm(positions - np.stack([camera.center for camera in cameras])[source], axis=1)
        / np.array([camera.focal_px for camera in cameras])[source]
    )

    chosen = _without_repeats(positions, 1.5 * pixel_m)
    positions, colors, source = positions[chosen], colors[chosen], source[chosen]

    seen = np.stack([caster.sees(camera, positions) for camera in cameras], axis=1)
    tracks = seen & (generator.random(seen.shape) < MATCH_SHARE)
    tracks[np.arange(len(source)), source] = seen[np.arange(len(source)), source]
    errors, expected_m = _triangulation_errors(positions, cameras, tracks, noise_px, generator)
    distance = np.linalg.norm(positions[:, None] - _centers(cameras), axis=2)
    kept = np.flatnonzero(
        (tracks.sum(axis=1) >= 2)
        & (_largest_angle(positions, cameras, tracks) >= MIN_ANGLE_RAD)
        & (expected_m <= MAX_RELATIVE_ERROR * np.where(tracks, distance, np.inf).min(axis=1))
    )
    if len(kept) > num_points:
        kept = np.sort(generator.choice(kept, num_points, replace=False))
    return SparsePoints(
        positions=positions[kept] + errors[kept],
        exact_positions=positions[kept],
        colors=colors[kept],
        tracks=tracks[kept],
    )


def _px(row: NDArray[np.int64], column: NDArray[np.int64]) -> NDArray[np.float64]:
    return np.stack([column + 0.5, row + 0.5], axis=-1)


def _centers(cameras: list[Camera]) -> NDArray[np.float64]:
    return np.stack([camera.center for camera in cameras])


def _corners(rendering: Rendering) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows and columns of textured pixels that lie on one surface."""
    import cv2

    gray = cv2.cvtColor(rendering.image, cv2.COLOR_RGB2GRAY)
    found = cv2.goodFeaturesToTrack(
        gray, maxCorners=0, qualityLevel=0.01, minDistance=3.0, blockSize=3
    )
    if found is None:
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    column, row = np.round(found.reshape(-1, 2)).astype(np.int64).T
    depth = np.where(np.isfinite(rendering.depth), rendering.depth, 1e9).astype(np.float32)
    window = np.ones((3, 3), dtype=np.uint8)
    jump = cv2.dilate(depth, window) / cv2.erode(depth, window) - 1.0
    smooth = jump[row, column] < DEPTH_EDGE
    return row[smooth], column[smooth]


def _without_repeats(
    positions: NDArray[np.float64], reach_m: NDArray[np.float64]
) -> NDArray[np.int64]:
    """Indices without those within reach of an earlier kept one: one corner, seen many times."""
    from scipy.spatial import KDTree

    if len(positions) == 0:
        return np.zeros(0, dtype=np.int64)
    neighbours = KDTree(positions).query_ball_point(positions, reach_m)
    kept = np.zeros(len(positions), dtype=bool)
    for index, near in enumerate(neighbours):
        kept[index] = not kept[near].any()
    return np.flatnonzero(kept)


def _largest_angle(
    positions: NDArray[np.float64],  # [N, 3]
    cameras: list[Camera],
    tracks: NDArray[np.bool_],  # [N, V]
) -> NDArray[np.float64]:  # [N] radians
    """Largest angle between two rays of each track; 0 for tracks of fewer than two views."""
    rays = positions[:, None] - _centers(cameras)
    rays /= np.linalg.norm(rays, axis=2, keepdims=True)
    cosine = np.einsum("nvk,nwk->nvw", rays, rays)
    both = tracks[:, :, None] & tracks[:, None, :]
    return np.arccos(np.clip(np.where(both, cosine, 1.0).min(axis=(1, 2), initial=1.0), -1.0, 1.0))


def _triangulation_errors(
    positions: NDArray[np.float64],  # [N, 3]
    cameras: list[Camera],
    tracks: NDArray[np.bool_],  # [N, V]
    noise_px: float,
    generator: np.random.Generator,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Drawn errors [N, 3] and their expected lengths [N] (root mean square), in metres."""
    normal = np.zeros((len(positions), 3, 3))
    right_side = np.zeros((len(positions), 3))
    for view, camera in enumerate(cameras):
        in_camera = (positions - camera.center) @ camera.camera_to_world[:3, :3]
        depth = np.where(tracks[:, view], in_camera[:, 2], np.inf)
        jacobian = np.zeros((len(positions), 2, 3))
        jacobian[:, 0, 0] = jacobian[:, 1, 1] = camera.focal_px / depth
        jacobian[:, :, 2] = -camera.focal_px * in_camera[:, :2] / depth[:, None] ** 2
        jacobian = jacobian @ camera.camera_to_world[:3, :3].T
        error_px = generator.normal(0.0, noise_px, (len(positions), 2))
        normal += np.einsum("nij,nik->njk", jacobian, jacobian)
        right_side += np.einsum("nij,ni->nj", jacobian, error_px)
    # A single view leaves the depth open; the small term keeps the matrix regular for it.
    inverse = np.linalg.inv(normal + 1e-3 * np.eye(3))
    expected = noise_px * np.sqrt(np.trace(inverse, axis1=1, axis2=2))
    return np.einsum("nij,nj->ni", inverse, right_side), expected
