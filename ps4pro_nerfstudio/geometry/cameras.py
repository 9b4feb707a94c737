# SPDX-License-Identifier: Apache-2.0
"""Pinhole cameras as matrices: frames, relative poses, cameras in between, projection.

Notation. `camera_to_world` [..., 3, 4] or [..., 4, 4] takes camera to world coordinates. OpenCV
camera axes: x right, y down, z forward (everything in `geometry`); OpenGL camera axes: x right,
y up, z back (nerfstudio). Intrinsics [..., 3, 3] are in pixels and pixel (column x, row y) has its
centre at (x + .5, y + .5). Angles in radians. numpy, computed in float64.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Float64 = NDArray[np.float64]

_FLIP_Y_Z = np.array([1.0, -1.0, -1.0, 1.0])


def flip_camera_axes(camera_to_world: ArrayLike) -> Float64:
    """Change OpenGL camera axes into OpenCV ones, or back; the function is its own inverse.

    Args:
        camera_to_world: [..., 3, 4] or [..., 4, 4].

    Returns:
        [..., 4, 4], the same camera with its y and z axes reversed.
    """
    return as_4x4(camera_to_world) * _FLIP_Y_Z


def as_4x4(camera_to_world: ArrayLike) -> Float64:
    """Append the row (0, 0, 0, 1) to [..., 3, 4]; [..., 4, 4] is copied.

    Raises:
        ValueError: for any other shape.
    """
    matrix = np.asarray(camera_to_world, dtype=np.float64)
    if matrix.shape[-2:] not in ((3, 4), (4, 4)):
        raise ValueError(f"camera_to_world must be [..., 3, 4] or [..., 4, 4], got {matrix.shape}")
    full = np.zeros((*matrix.shape[:-2], 4, 4))
    full[..., :3, :] = matrix[..., :3, :]
    full[..., 3, 3] = 1.0
    return full


def invert_rigid(camera_to_world: ArrayLike) -> Float64:
    """Invert rigid motions [..., 4, 4] exactly: transpose of the rotation, no linear solve."""
    matrix = as_4x4(camera_to_world)
    inverse = np.zeros_like(matrix)
    rotation_transposed = np.swapaxes(matrix[..., :3, :3], -1, -2)
    inverse[..., :3, :3] = rotation_transposed
    inverse[..., :3, 3] = -(rotation_transposed @ matrix[..., :3, 3:])[..., 0]
    inverse[..., 3, 3] = 1.0
    return inverse


def relative_pose(camera_to_world_a: ArrayLike, camera_to_world_b: ArrayLike) -> Float64:
    """Coordinates of camera a to coordinates of camera b, [..., 4, 4]."""
    return invert_rigid(camera_to_world_b) @ as_4x4(camera_to_world_a)


def rotation_angle(camera_to_world_a: ArrayLike, camera_to_world_b: ArrayLike) -> Float64:
    """Angle of the rotation between two cameras, [...] in [0, pi]; symmetric in its arguments."""
    rotation = relative_pose(camera_to_world_a, camera_to_world_b)[..., :3, :3]
    # atan2 of the sine and the cosine: acos alone loses half of the digits near 0 and pi.
    antisymmetric = rotation - np.swapaxes(rotation, -1, -2)
    sine = np.sqrt(np.sum(antisymmetric**2, axis=(-1, -2)) / 8.0)
    cosine = (np.trace(rotation, axis1=-2, axis2=-1) - 1.0) / 2.0
    return np.arctan2(sine, cosine)


def interpolate_pose(
    camera_to_world_a: ArrayLike, camera_to_world_b: ArrayLike, t: float
) -> Float64:
    """The camera at t in [0, 1] of the way from a to b: slerp of the rotation, lerp of the centre.

    Returns:
        [4, 4]; t = 0 gives a and t = 1 gives b. Camera axes (OpenCV or OpenGL) are kept.
    """
    from scipy.spatial.transform import Rotation, Slerp

    pose_a, pose_b = as_4x4(camera_to_world_a), as_4x4(camera_to_world_b)
    rotations = Rotation.from_matrix(np.stack([pose_a[:3, :3], pose_b[:3, :3]]))
    between = np.eye(4)
    between[:3, :3] = Slerp([0.0, 1.0], rotations)(t).as_matrix()
    between[:3, 3] = (1.0 - t) * pose_a[:3, 3] + t * pose_b[:3, 3]
    return between


def interpolate_intrinsics(intrinsics_a: ArrayLike, intrinsics_b: ArrayLike, t: float) -> Float64:
    """Linear blend [3, 3] of two intrinsic matrices; t = 0 gives a."""
    return (1.0 - t) * np.asarray(intrinsics_a, np.float64) + t * np.asarray(
        intrinsics_b, np.float64
    )


def scale_intrinsics(intrinsics: ArrayLike, scale_x: float, scale_y: float) -> Float64:
    """Intrinsics of the same camera after its image was resized by the two factors.

    Pixel centres lie at half-integers, so the whole first two rows scale, principal point included.
    """
    return np.asarray(intrinsics, np.float64) * np.array([[scale_x], [scale_y], [1.0]])


def pixel_centres(height: int, width: int) -> Float64:
    """Coordinates (x, y) of all pixel centres, [height, width, 2]."""
    x, y = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    return np.stack([x, y], axis=-1)


def project(
    points: ArrayLike, camera_to_world: ArrayLike, intrinsics: ArrayLike
) -> tuple[Float64, Float64]:
    """Project world points into a camera with OpenCV axes.

    Args:
        points: [..., 3], or homogeneous [..., 4] (last component 0: a direction, at infinity).
        camera_to_world: [4, 4].
        intrinsics: [3, 3].

    Returns:
        pixels [..., 2] (NaN where the depth is not positive) and depth [...] along the optical
        axis. For homogeneous points the depth is in units of the last component.
    """
    points = np.asarray(points, np.float64)
    world_to_camera = invert_rigid(camera_to_world)
    if points.shape[-1] == 4:
        in_camera = points @ world_to_camera[:3].T
    else:
        in_camera = points @ world_to_camera[:3, :3].T + world_to_camera[:3, 3]
    depth = in_camera[..., 2]
    image = in_camera @ np.asarray(intrinsics, np.float64).T
    in_front = depth > 0.0
    divisor = np.where(in_front, depth, 1.0)[..., None]
    return np.where(in_front[..., None], image[..., :2] / divisor, np.nan), depth


def back_project(
    pixels: ArrayLike, depth: ArrayLike, camera_to_world: ArrayLike, intrinsics: ArrayLike
) -> Float64:
    """World points [..., 3] of pixels [..., 2] at depths [...] along the optical axis.

    The inverse of `project`: camera_to_world [4, 4] has OpenCV axes, intrinsics are [3, 3].
    """
    inverse = np.linalg.inv(np.asarray(intrinsics, np.float64))
    rays = np.asarray(pixels, np.float64) @ inverse[:, :2].T + inverse[:, 2]
    in_camera = rays * np.asarray(depth, np.float64)[..., None]
    pose = as_4x4(camera_to_world)
    return in_camera @ pose[:3, :3].T + pose[:3, 3]


def harmonic_median_depth(
    points: ArrayLike,
    camera_to_world: ArrayLike,
    intrinsics: ArrayLike,
    size: tuple[int, int],
    min_points: int = 8,
) -> float | None:
    """Median of the inverse depths, inverted, of the points that a camera sees.

    Disparity is linear in inverse depth: a plane there leaves as much parallax in front as behind.

    Args:
        points: [P, 3] in the world.
        camera_to_world: [4, 4], OpenCV axes.
        intrinsics: [3, 3].
        size: (width, height) of the image in pixels.
        min_points: with fewer points inside the image the answer is None.
    """
    pixels, depth = project(points, camera_to_world, intrinsics)
    with np.errstate(invalid="ignore"):
        inside = np.all((pixels >= 0.0) & (pixels <= np.asarray(size, np.float64)), axis=-1)
    if int(inside.sum()) < min_points:
        return None
    return float(1.0 / np.median(1.0 / depth[inside]))


def point_of_attention(camera_to_worlds: ArrayLike) -> Float64 | None:
    """The world point [3] nearest to all optical axes of [N, 4, 4] cameras with OpenCV axes.

    None when the axes are too close to parallel to meet anywhere, or meet behind most cameras.
    """
    poses = as_4x4(camera_to_worlds)
    axes, centres = poses[:, :3, 2], poses[:, :3, 3]
    projectors = np.eye(3) - axes[:, :, None] * axes[:, None, :]
    normal_matrix = projectors.mean(axis=0)
    # The smallest eigenvalue is the mean squared sine of the axes to their common direction:
    # below 1e-3 (about 2 degrees) the point would be decided by noise.
    if np.linalg.eigvalsh(normal_matrix)[0] < 1e-3:
        return None
    point = np.linalg.solve(normal_matrix, (projectors @ centres[:, :, None]).mean(axis=0)[:, 0])
    depths = np.sum((point - centres) * axes, axis=-1)
    return point if np.median(depths) > 0.0 else None
