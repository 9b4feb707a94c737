# SPDX-License-Identifier: Apache-2.0
"""A small scene that can be rendered exactly from any camera: a wall and a board before it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from ps4pro_nerfstudio.geometry.cameras import (
    flip_camera_axes,
    pixel_centres,
    scale_intrinsics,
)
from ps4pro_nerfstudio.geometry.epipolar import pixel_rays
from ps4pro_nerfstudio.pseudo_views.sources import SourceViews

WIDTH, HEIGHT = 128, 96
INTRINSICS = np.array([[120.0, 0.0, 64.0], [0.0, 120.0, 48.0], [0.0, 0.0, 1.0]])
WALL_DEPTH, BOARD_DEPTH = 4.0, 3.0
BOARD = (-0.5, 0.5, -0.35, 0.45)
"""Left, right, upper and lower edge of the board at its depth."""


def look_at(centre: NDArray, target: NDArray) -> NDArray[np.float64]:
    """Camera [4, 4] with OpenCV axes at a centre, y down, looking at a target."""
    forward = (target - centre) / np.linalg.norm(target - centre)
    right = np.cross([0.0, 1.0, 0.0], forward)
    right /= np.linalg.norm(right)
    pose = np.eye(4)
    pose[:3, :3] = np.stack([right, np.cross(forward, right), forward], axis=1)
    pose[:3, 3] = centre
    return pose


def arc(num_views: int, degrees: float) -> NDArray[np.float64]:
    """Cameras [N, 4, 4] with OpenCV axes on an arc around the middle of the scene."""
    target = np.array([0.0, 0.0, 3.7])
    poses = []
    for angle in np.radians(np.linspace(-degrees / 2, degrees / 2, num_views)):
        centre = target - 3.7 * np.array([np.sin(angle), 0.0, np.cos(angle)])
        poses.append(look_at(centre, target))
    return np.stack(poses)


def _texture(seed: int) -> NDArray[np.float32]:
    """Detail at several scales, [400, 600, 3] in [0, 1]; one unit of length is 100 pixels."""
    import cv2

    generator = np.random.default_rng(seed)
    total = np.zeros((400, 600, 3), np.float32)
    for sigma in (3.0, 8.0, 25.0):
        noise = generator.normal(size=total.shape).astype(np.float32)
        total += cv2.GaussianBlur(noise, (0, 0), sigma) * sigma**1.5
    return np.clip(0.5 + 0.18 * total / total.std(), 0.0, 1.0)


_WALL, _BOARD_TEXTURE = _texture(1), _texture(2)


def render(camera_to_world: NDArray, supersampling: int = 2) -> NDArray[np.uint8]:
    """The exact picture [H, W, 3] of a camera with OpenCV axes."""
    import cv2

    width, height = WIDTH * supersampling, HEIGHT * supersampling
    intrinsics = scale_intrinsics(INTRINSICS, supersampling, supersampling)
    origin, rays = pixel_rays(pixel_centres(height, width), camera_to_world, intrinsics)
    layers = []
    for texture, depth in ((_WALL, WALL_DEPTH), (_BOARD_TEXTURE, BOARD_DEPTH)):
        hit = origin + rays * ((depth - origin[2]) / rays[..., 2])[..., None]
        at = ((hit[..., :2] + (3.0, 2.0)) * 100.0 - 0.5).astype(np.float32)
        layers.append((cv2.remap(texture, at, None, cv2.INTER_LINEAR), hit))  # pyright: ignore
    (wall, _), (board, hit) = layers
    left, right, upper, lower = BOARD
    on_board = (hit[..., 0] > left) & (hit[..., 0] < right)
    on_board &= (hit[..., 1] > upper) & (hit[..., 1] < lower)
    picture = np.where(on_board[..., None], board, wall)
    small = cv2.resize(picture, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA)
    return np.rint(small * 255.0).astype(np.uint8)


def wall_points(count: int = 200) -> NDArray[np.float64]:
    """Scene points [count, 3] on the wall."""
    generator = np.random.default_rng(0)
    points = generator.uniform([-1.5, -1.0, WALL_DEPTH], [1.5, 1.0, WALL_DEPTH], (count, 3))
    return points


def capture(poses: NDArray, points: NDArray) -> SourceViews:
    """The photographs of cameras [N, 4, 4] with OpenCV axes, as the package takes them."""
    return SourceViews(
        images=[render(pose) for pose in poses],
        camera_to_worlds=flip_camera_axes(poses)[:, :3],
        intrinsics=np.tile(INTRINSICS, (len(poses), 1, 1)),
        names=[f"frame_{index}.png" for index in range(len(poses))],
        points=points,
    )


@pytest.fixture(scope="session", name="render")
def render_fixture() -> Callable[..., NDArray[np.uint8]]:
    return render


@pytest.fixture(scope="session")
def three_views() -> SourceViews:
    """Three photographs on an arc of 20 degrees, with scene points."""
    return capture(arc(3, 20.0), wall_points())
