# SPDX-License-Identifier: Apache-2.0
"""Random points in the region that several cameras see, from the cameras alone.

A point is drawn on the ray of a random pixel of a random camera, at a depth whose logarithm is
uniform between a near and a far bound around the depth at which the scene is expected, and kept
when a second camera sees it too. Where the optical axes meet, the scene is expected there; where
they do not (photographs in parallel, outward-looking captures) at a few times the extent of the
camera positions, because a photographer moves by a fraction of the distance to the subject.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ps4pro_nerfstudio.geometry.cameras import (
    Float64,
    flip_camera_axes,
    point_of_attention,
    project,
)
from ps4pro_nerfstudio.geometry.epipolar import pixel_rays
from ps4pro_nerfstudio.initialization.views import inside_image

DEPTH_RANGE = (0.3, 3.0)
"""Near and far bound as multiples of the expected depth."""

PARALLEL_DEPTH_PER_EXTENT = 3.0
"""Expected depth of cameras whose axes do not meet, in units of the extent of their positions."""

_MAX_ROUNDS = 50


def expected_depth(camera_to_worlds: ArrayLike) -> float:
    """Depth at which cameras [N, 4, 4] (OpenCV axes) are likely to see their scene.

    The median depth of the point that the optical axes have in common; without such a point a
    multiple of the extent (largest distance of a camera to the mean position, doubled); 1 for
    cameras in one place, where nothing tells the scale.
    """
    poses = np.asarray(camera_to_worlds, np.float64)
    centres = poses[:, :3, 3]
    extent = 2.0 * float(np.linalg.norm(centres - centres.mean(axis=0), axis=-1).max())
    common = point_of_attention(poses)
    if common is not None:
        return float(np.median(np.sum((common - centres) * poses[:, :3, 2], axis=-1)))
    return PARALLEL_DEPTH_PER_EXTENT * extent if extent > 0.0 else 1.0


def points_in_common_frustum(
    camera_to_worlds: ArrayLike,  # [N, 3, 4], OpenGL camera axes (nerfstudio)
    intrinsics: ArrayLike,  # [N, 3, 3] in pixels
    sizes: ArrayLike,  # [N, 2] (width, height) in pixels
    num_points: int,
    seed: int = 0,
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Draw points that lie inside the images of at least two cameras.

    Deterministic for a seed. Of a single camera, and where no two cameras look at a common region,
    the points lie inside the image of one camera.

    Returns:
        xyz [num_points, 3] and rgb [num_points, 3], uniformly random colours.

    Raises:
        ValueError: the arguments disagree about the number of cameras, or there is none.
    """
    poses = flip_camera_axes(camera_to_worlds)
    matrices = np.asarray(intrinsics, np.float64)
    image_sizes = np.asarray(sizes, np.float64)
    num_cameras = len(poses)
    if not num_cameras or matrices.shape != (num_cameras, 3, 3):
        raise ValueError(f"intrinsics must be [{num_cameras}, 3, 3], got {matrices.shape}")
    if image_sizes.shape != (num_cameras, 2):
        raise ValueError(f"sizes must be [{num_cameras}, 2], got {image_sizes.shape}")
    generator = np.random.default_rng(seed)
    depth = expected_depth(poses)
    log_range = np.log(depth * np.asarray(DEPTH_RANGE))

    common: list[Float64] = []
    single: list[Float64] = []
    num_common = 0
    for _ in range(_MAX_ROUNDS):
        drawn = _points_on_rays(poses, matrices, image_sizes, log_range, num_points, generator)
        num_seeing = np.zeros(num_points, np.int64)
        for pose, matrix, size in zip(poses, matrices, image_sizes, strict=True):
            num_seeing += inside_image(project(drawn, pose, matrix)[0], size)
        shared = num_seeing >= min(2, num_cameras)
        common.append(drawn[shared])
        single = [*single, drawn[~shared]][:1]
        num_common += int(shared.sum())
        if num_common >= num_points:
            break
    # One round of points of single cameras fills what the common region could not give.
    xyz = np.concatenate([*common, *single])[:num_points]
    rgb = generator.integers(0, 256, (num_points, 3), dtype=np.uint8)
    return xyz.astype(np.float32), rgb


def _points_on_rays(
    poses: Float64,
    intrinsics: Float64,
    sizes: Float64,
    log_depth_range: Float64,
    num_points: int,
    generator: np.random.Generator,
) -> Float64:
    """Draw points [num_points, 3] on rays of random pixels, log depth uniform in the range."""
    camera = generator.integers(0, len(poses), num_points)
    pixels = generator.uniform(0.0, 1.0, (num_points, 2)) * sizes[camera]
    near, far = log_depth_range
    depth = np.exp(generator.uniform(near, far, num_points))
    points = np.empty((num_points, 3))
    for index, (pose, matrix) in enumerate(zip(poses, intrinsics, strict=True)):
        chosen = camera == index
        centre, directions = pixel_rays(pixels[chosen], pose, matrix)
        distance = depth[chosen] / (directions @ pose[:3, 2])
        points[chosen] = centre + directions * distance[:, None]
    return points
