# SPDX-License-Identifier: Apache-2.0
"""Photographs of two textured planes whose depth is known exactly, and of a ball cut out."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import skimage.data

from ps4pro_nerfstudio.geometry.cameras import flip_camera_axes, pixel_centres
from ps4pro_nerfstudio.geometry.epipolar import pixel_rays
from ps4pro_nerfstudio.initialization.views import TrainViews
from tests.conftest import look_at

FAR_DEPTH, NEAR_DEPTH = 4.0, 3.0


@dataclass
class PlaneScene:
    images: list[np.ndarray]
    camera_to_worlds: np.ndarray  # [N, 3, 4], OpenGL axes
    intrinsics: np.ndarray  # [N, 3, 3]

    @property
    def arguments(self) -> dict:
        count = len(self.images)
        return {
            "images": self.images,
            "valid": [None] * count,
            "camera_to_worlds": self.camera_to_worlds,
            "intrinsics": self.intrinsics,
            "names": [f"view {index}" for index in range(count)],
        }


def plane_scene(num_views: int = 3, width: int = 240, height: int = 180) -> PlaneScene:
    """Cameras on a line in front of a far plane (z = -4) and a smaller near one (z = -3).

    World: x right, y up, cameras look along -z (the OpenGL camera axes, unrotated).
    """
    focal = 0.9 * width
    intrinsics = np.array([[focal, 0.0, width / 2], [0.0, focal, height / 2], [0.0, 0.0, 1.0]])
    poses, images = [], []
    for index in range(num_views):
        offset = index - (num_views - 1) / 2
        angle = 0.05 * offset
        pose = np.zeros((3, 4))
        pose[:, :3] = [
            [np.cos(angle), 0.0, np.sin(angle)],
            [0.0, 1.0, 0.0],
            [-np.sin(angle), 0.0, np.cos(angle)],
        ]
        pose[:, 3] = [0.35 * offset, 0.06 * offset**2, 0.1 * offset]
        poses.append(pose)
        size = (width, height)
        far = _see_plane(skimage.data.coffee(), pose, intrinsics, size, FAR_DEPTH, 6.0)[0]
        near, covered = _see_plane(skimage.data.chelsea(), pose, intrinsics, size, NEAR_DEPTH, 1.4)
        images.append(np.where(covered[..., None], near, far))
    return PlaneScene(images, np.stack(poses), np.stack([intrinsics] * num_views))


def _see_plane(texture, pose, intrinsics, size, depth, plane_width):
    """Image [H, W, 3] of a texture on the plane z = -depth, and where it is seen.

    Rendered at four times the size and averaged: aliasing would move features by half a pixel.
    """
    rows, columns = texture.shape[:2]
    pixel = plane_width / columns
    # Texture index (column, row, 1) to a world point on the plane; texel centres are at integers.
    to_world = np.array(
        [
            [pixel, 0.0, (0.5 - columns / 2) * pixel],
            [0.0, -pixel, (rows / 2 - 0.5) * pixel],
            [0.0, 0.0, -depth],
        ]
    )
    rotation = pose[:, :3] * [1.0, -1.0, -1.0]
    # All plane points share the last homogeneous coordinate, so the translation joins column 3.
    to_camera = rotation.T @ (to_world - np.outer(pose[:, 3], [0.0, 0.0, 1.0]))
    # warpPerspective has pixel centres at integers, the intrinsics at half-integers.
    to_index = np.array([[4, 0, -0.5], [0, 4, -0.5], [0, 0, 1]])
    homography = to_index @ intrinsics @ to_camera
    large = (4 * size[0], 4 * size[1])
    image = cv2.warpPerspective(texture, homography, large)
    covered = cv2.warpPerspective(np.full((rows, columns), 255, np.uint8), homography, large)
    image, covered = (cv2.resize(x, size, interpolation=cv2.INTER_AREA) for x in (image, covered))
    return image, covered > 127


def project_by_hand(xyz: np.ndarray, pose: np.ndarray, intrinsics: np.ndarray):
    """Pixels [P, 2] and depths [P] of world points in an OpenGL camera, from first principles."""
    right, up, back = ((xyz - pose[:, 3]) @ pose[:, :3]).T
    depth = -back
    x = intrinsics[0, 0] * right / depth + intrinsics[0, 2]
    y = intrinsics[1, 1] * -up / depth + intrinsics[1, 2]
    return np.stack([x, y], axis=1), depth


BALL_SIZE, BALL_FOCAL, BALL_DISTANCE, BALL_RADIUS = 80, 90.0, 4.0, 1.0


def ball_views(count: int) -> tuple[TrainViews, list[np.ndarray | None]]:
    """Photographs around a ball at the origin, each of its own grey, and its silhouettes."""
    angles = 2.0 * np.pi * np.arange(count) / count
    heights = np.where(np.arange(count) % 2 == 0, 0.5, -0.5)
    eyes = np.stack([np.cos(angles), np.sin(angles), heights], axis=1)
    eyes *= BALL_DISTANCE / np.linalg.norm(eyes, axis=1, keepdims=True)
    poses = np.stack([look_at(eye, np.zeros(3)) for eye in eyes])
    matrix = np.array([[BALL_FOCAL, 0, BALL_SIZE / 2], [0, BALL_FOCAL, BALL_SIZE / 2], [0, 0, 1.0]])
    silhouettes: list[np.ndarray | None] = []
    for pose in flip_camera_axes(poses):
        centre, directions = pixel_rays(
            pixel_centres(BALL_SIZE, BALL_SIZE).reshape(-1, 2), pose, matrix
        )
        directions = directions / np.linalg.norm(directions, axis=1, keepdims=True)
        along = -directions @ centre
        nearest = np.sqrt(np.maximum(centre @ centre - along**2, 0.0))
        silhouettes.append((nearest < BALL_RADIUS).reshape(BALL_SIZE, BALL_SIZE))
    images = [np.full((BALL_SIZE, BALL_SIZE, 3), 10 * index, np.uint8) for index in range(count)]
    views = TrainViews.checked(
        images,
        silhouettes,
        poses,
        np.stack([matrix] * count),
        [str(index) for index in range(count)],
    )
    return views, silhouettes
