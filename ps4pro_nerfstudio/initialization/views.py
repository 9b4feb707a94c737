# SPDX-License-Identifier: Apache-2.0
"""The train views that initial points come from, checked once and in one convention.

Cameras come in as nerfstudio has them (OpenGL axes: x right, y up, z back) and are kept with OpenCV
axes (x right, y down, z forward), as everything in `geometry`. Pixel (column x, row y) has its
centre at (x + .5, y + .5).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ps4pro_nerfstudio.geometry.cameras import Float64, flip_camera_axes, project
from ps4pro_nerfstudio.messages import InputError

UNSEEN_RGB = 128
"""Grey level of a point that no valid pixel shows."""


@dataclass(frozen=True)
class TrainViews:
    """Undistorted pinhole photographs with known cameras."""

    images: list[NDArray[np.uint8]]
    """[H, W, 3] RGB; sizes may differ between views."""
    valid: list[NDArray[np.bool_] | None]
    """[H, W], False where a pixel means nothing (border of undistortion, mask); None: all valid."""
    camera_to_worlds: Float64
    """[N, 4, 4], OpenCV camera axes, any world frame and scale."""
    intrinsics: Float64
    """[N, 3, 3] in pixels."""
    names: list[str]

    @staticmethod
    def checked(
        images: Sequence[NDArray[np.uint8]],
        valid: Sequence[NDArray[np.bool_] | None],
        camera_to_worlds: ArrayLike,
        intrinsics: ArrayLike,
        names: Sequence[str],
    ) -> TrainViews:
        """Build views from nerfstudio's arrays (OpenGL camera axes [N, 3, 4] or [N, 4, 4]).

        Raises:
            ValueError: a wrong shape or dtype; names the argument.
            InputError: a pose that is no rigid motion or intrinsics that are no camera; names the
                image.
        """
        num_views = len(images)
        if num_views == 0:
            raise InputError("No train view to take initial points from; check the data folder.")
        poses = flip_camera_axes(camera_to_worlds)
        matrices = np.array(intrinsics, np.float64)
        if poses.shape != (num_views, 4, 4):
            raise ValueError(
                f"camera_to_worlds must be [{num_views}, 3, 4], one per image, "
                f"got {np.shape(camera_to_worlds)}"
            )
        if matrices.shape != (num_views, 3, 3):
            raise ValueError(f"intrinsics must be [{num_views}, 3, 3], got {matrices.shape}")
        if len(valid) != num_views or len(names) != num_views:
            raise ValueError(
                f"valid and names must have one entry per image ({num_views}), "
                f"got {len(valid)} and {len(names)}"
            )
        for index, (image, mask, name) in enumerate(zip(images, valid, names, strict=True)):
            if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
                raise ValueError(
                    f"images[{index}] must be uint8 [H, W, 3], got {image.dtype} {image.shape}"
                )
            if mask is not None and (mask.shape != image.shape[:2] or mask.dtype != np.bool_):
                raise ValueError(
                    f"valid[{index}] must be bool {image.shape[:2]}, got {mask.dtype} {mask.shape}"
                )
            rotation = poses[index, :3, :3]
            # nerfstudio keeps poses in float32, so a rotation is only nearly orthonormal.
            if (
                not np.all(np.isfinite(poses[index]))
                or not np.allclose(rotation @ rotation.T, np.eye(3), atol=1e-2)
                or np.linalg.det(rotation) < 0.0
            ):
                raise InputError(
                    f"The pose of {name} is not a rotation and a position; "
                    "correct or remove this frame."
                )
            focal_x, focal_y = matrices[index, 0, 0], matrices[index, 1, 1]
            if not np.all(np.isfinite(matrices[index])) or focal_x <= 0.0 or focal_y <= 0.0:
                raise InputError(
                    f"The intrinsics of {name} have no positive focal length; "
                    "correct or remove this frame."
                )
        return TrainViews(list(images), list(valid), poses, matrices, list(names))

    def __len__(self) -> int:
        return len(self.images)

    @property
    def sizes(self) -> NDArray[np.int64]:
        """(width, height) of each image, [N, 2]."""
        return np.array([(image.shape[1], image.shape[0]) for image in self.images], np.int64)


def colors_of_points(
    xyz: ArrayLike,  # [P, 3] in the world
    views: TrainViews,
) -> NDArray[np.uint8]:  # [P, 3]
    """Colour of the valid pixel that shows each point in the camera nearest to it (by depth).

    A point that no valid pixel shows is grey.
    """
    points = np.asarray(xyz, np.float64)
    rgb = np.full((len(points), 3), UNSEEN_RGB, np.uint8)
    nearest = np.full(len(points), np.inf)
    for index, image in enumerate(views.images):
        pixels, depth = project(points, views.camera_to_worlds[index], views.intrinsics[index])
        mask = views.valid[index]
        candidates = np.flatnonzero(inside_image(pixels, views.sizes[index]) & (depth < nearest))
        column, row = np.floor(pixels[candidates]).astype(np.int64).T
        if mask is not None:
            shown = mask[row, column]
            candidates, column, row = candidates[shown], column[shown], row[shown]
        rgb[candidates] = image[row, column]
        nearest[candidates] = depth[candidates]
    return rgb


def inside_image(
    pixels: Float64,  # [..., 2], NaN for points behind the camera
    size: ArrayLike,  # (width, height)
) -> NDArray[np.bool_]:  # [...]
    """Which pixel positions lie in an image; NaN lies outside."""
    with np.errstate(invalid="ignore"):
        return np.all((pixels >= 0.0) & (pixels < np.asarray(size, np.float64)), axis=-1)


def pixel_grid(
    size: ArrayLike,  # (width, height)
    spacing: float,
    mask: NDArray[np.bool_] | None = None,  # [H, W]; None: all
) -> Float64:  # [S, 2]
    """Pixel positions at equal distances, row by row, of those pixels that a mask leaves."""
    width, height = np.asarray(size).tolist()
    axes = np.meshgrid(
        np.arange(spacing / 2, width, spacing), np.arange(spacing / 2, height, spacing)
    )
    positions = np.stack([axis.ravel() for axis in axes], axis=1)
    if mask is None:
        return positions
    column, row = np.floor(positions).astype(np.int64).T
    return positions[mask[row, column]]
