# SPDX-License-Identifier: Apache-2.0
"""Two views of one point: epipolar distance, triangulation, re-projection.

Notation: x0, x1 are pixels [..., 2] of one scene point in two pinhole cameras; x1^T F x0 = 0 with
the fundamental matrix F [3, 3]. OpenCV camera axes, numpy, float64, squared pixels where noted.
Source: Hartley and Zisserman, Multiple View Geometry, chapters 9, 11 and 12.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from ps4pro_nerfstudio.geometry.cameras import Float64, as_4x4, project, relative_pose


def fundamental_matrix(
    camera_to_world_0: ArrayLike,
    intrinsics_0: ArrayLike,
    camera_to_world_1: ArrayLike,
    intrinsics_1: ArrayLike,
) -> Float64:
    """F [3, 3] with x1^T F x0 = 0, from two known cameras; zero when the centres coincide."""
    pose = relative_pose(camera_to_world_0, camera_to_world_1)
    tx, ty, tz = pose[:3, 3]
    cross = np.array([[0.0, -tz, ty], [tz, 0.0, -tx], [-ty, tx, 0.0]])
    inverse_0 = np.linalg.inv(np.asarray(intrinsics_0, np.float64))
    inverse_1 = np.linalg.inv(np.asarray(intrinsics_1, np.float64))
    return inverse_1.T @ cross @ pose[:3, :3] @ inverse_0


def sampson_distance(
    points_0: ArrayLike,  # [..., 2] pixels in image 0
    points_1: ArrayLike,  # [..., 2] pixels in image 1
    fundamental: ArrayLike,  # [3, 3]
) -> Float64:  # [...] squared pixels
    """First-order squared distance of a correspondence to the epipolar constraint.

    Zero for exact correspondences, unchanged when F is multiplied by any non-zero number and when
    the two images are exchanged together with a transposition of F. Infinite where F says nothing
    (both epipolar lines vanish): an unknown agreement is no agreement.
    """
    fundamental = np.asarray(fundamental, np.float64)
    points_0, points_1 = np.asarray(points_0, np.float64), np.asarray(points_1, np.float64)
    line_in_1 = points_0 @ fundamental[:, :2].T + fundamental[:, 2]
    line_in_0 = points_1 @ fundamental[:2, :] + fundamental[2, :]
    algebraic = np.sum(points_1 * line_in_1[..., :2], axis=-1) + line_in_1[..., 2]
    gradient = np.sum(line_in_0[..., :2] ** 2, axis=-1) + np.sum(line_in_1[..., :2] ** 2, axis=-1)
    known = gradient > 0.0
    return np.where(known, algebraic**2 / np.where(known, gradient, 1.0), np.inf)


def pixel_rays(
    pixels: ArrayLike, camera_to_world: ArrayLike, intrinsics: ArrayLike
) -> tuple[Float64, Float64]:
    """Centre [3] and unit directions [..., 3] in the world of the rays of pixels [..., 2]."""
    pose = as_4x4(camera_to_world)
    inverse = np.linalg.inv(np.asarray(intrinsics, np.float64))
    pixels = np.asarray(pixels, np.float64)
    directions = (pixels @ inverse[:, :2].T + inverse[:, 2]) @ pose[:3, :3].T
    return pose[:3, 3], directions / np.linalg.norm(directions, axis=-1, keepdims=True)


def triangulate(
    points_0: ArrayLike,
    points_1: ArrayLike,
    camera_to_world_0: ArrayLike,
    intrinsics_0: ArrayLike,
    camera_to_world_1: ArrayLike,
    intrinsics_1: ArrayLike,
) -> Float64:
    """Midpoint of the shortest segment between the two rays of each correspondence.

    Returns:
        Homogeneous world points [..., 4] with last component 1, or 0 where the rays are parallel or
        diverge: the point then lies at infinity in their mean direction (noise makes the rays of
        far points diverge, and infinity is the nearest answer that both cameras can see).
    """
    centre_0, direction_0 = pixel_rays(points_0, camera_to_world_0, intrinsics_0)
    centre_1, direction_1 = pixel_rays(points_1, camera_to_world_1, intrinsics_1)
    baseline = centre_1 - centre_0
    cosine = np.sum(direction_0 * direction_1, axis=-1)
    # |d0 x d1|^2, computed from the cross product: 1 - cosine^2 cancels for narrow angles.
    squared_sine = np.sum(np.cross(direction_0, direction_1) ** 2, axis=-1)
    along_0, along_1 = direction_0 @ baseline, direction_1 @ baseline
    meets = squared_sine > 1e-14
    divisor = np.where(meets, squared_sine, 1.0)
    distance_0 = (along_0 - cosine * along_1) / divisor
    distance_1 = (cosine * along_0 - along_1) / divisor
    meets &= (distance_0 > 0.0) & (distance_1 > 0.0)
    midpoint = 0.5 * (
        (centre_0 + distance_0[..., None] * direction_0)
        + (centre_1 + distance_1[..., None] * direction_1)
    )
    points = np.where(meets[..., None], midpoint, direction_0 + direction_1)
    return np.concatenate([points, meets[..., None].astype(np.float64)], axis=-1)


def reprojection_residual(
    points: ArrayLike, pixels: ArrayLike, camera_to_world: ArrayLike, intrinsics: ArrayLike
) -> Float64:
    """Distance [...] in pixels between pixels [..., 2] and projected points; inf behind the camera.

    Args:
        points: [..., 3] or homogeneous [..., 4] world points.
        pixels: [..., 2], where the points should appear.
        camera_to_world: [4, 4], OpenCV axes.
        intrinsics: [3, 3].
    """
    projected, _ = project(points, camera_to_world, intrinsics)
    distance = np.linalg.norm(projected - np.asarray(pixels, np.float64), axis=-1)
    return np.where(np.isnan(distance), np.inf, distance)
