# SPDX-License-Identifier: Apache-2.0
"""Two views of one point: epipolar distance, triangulation, depth along a ray.

Notation: x0, x1 are pixels [..., 2] of one scene point in two pinhole cameras; x1^T F x0 = 0 with
the fundamental matrix F [3, 3]. OpenCV camera axes, numpy, float64, squared pixels where noted.
Source: Hartley and Zisserman, Multiple View Geometry, chapters 9, 11 and 12.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from ps4pro_nerfstudio.geometry.cameras import Float64, as_4x4, relative_pose


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


def depth_along_rays(
    pixels: ArrayLike,  # [..., 2] pixels of the target camera
    positions: Sequence[ArrayLike],  # of K cameras [..., 2]: where each shows those pixels
    target_camera_to_world: ArrayLike,
    target_intrinsics: ArrayLike,
    camera_to_worlds: Sequence[ArrayLike],
    intrinsics: Sequence[ArrayLike],
) -> tuple[Float64, list[Float64]]:
    """Depth of the scene on the rays of a target camera, from where other cameras show them.

    A point on the ray of pixel x at inverse depth r appears in camera k at M_k x + r t_k
    (homogeneous), which is linear in r. The answer minimises the squared distance in pixels between
    these places and `positions`, with the depth ratio of the cameras frozen at infinity (exact for
    cameras that look the same way, and right to first order otherwise).

    Returns:
        depth [...] along the target's optical axis, `inf` where the positions say infinity or
        beyond, or where the cameras stand in one place; and for each camera the place [..., 2] of
        that point, NaN behind it: the nearest positions that one point on the ray can have.
    """
    pose = as_4x4(target_camera_to_world)
    inverse = np.linalg.inv(np.asarray(target_intrinsics, np.float64))
    pixels = np.asarray(pixels, np.float64)
    directions = pixels @ inverse[:, :2].T + inverse[:, 2]
    numerator = np.zeros(pixels.shape[:-1])
    denominator = np.zeros(pixels.shape[:-1])
    motions: list[tuple[Float64, Float64]] = []
    for found, camera_to_world, camera_intrinsics in zip(
        positions, camera_to_worlds, intrinsics, strict=True
    ):
        relative = relative_pose(pose, camera_to_world)
        matrix = np.asarray(camera_intrinsics, np.float64)
        position = np.asarray(found, np.float64)
        at_infinity = directions @ (matrix @ relative[:3, :3]).T
        shift = matrix @ relative[:3, 3]
        slope = shift[:2] - position * shift[2]
        offset = position * at_infinity[..., 2:] - at_infinity[..., :2]
        weight = 1.0 / np.maximum(np.square(at_infinity[..., 2]), 1e-12)
        numerator += weight * np.sum(slope * offset, axis=-1)
        denominator += weight * np.sum(slope * slope, axis=-1)
        motions.append((at_infinity, shift))
    inverse_depth = np.maximum(numerator / np.maximum(denominator, 1e-30), 0.0)
    places = []
    for at_infinity, shift in motions:
        image = at_infinity + inverse_depth[..., None] * shift
        in_front = image[..., 2:] > 1e-12
        divisor = np.where(in_front, image[..., 2:], 1.0)
        places.append(np.where(in_front, image[..., :2] / divisor, np.nan))
    with np.errstate(divide="ignore"):
        return 1.0 / inverse_depth, places
