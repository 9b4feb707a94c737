# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest

from ps4pro_nerfstudio.geometry.cameras import flip_camera_axes
from ps4pro_nerfstudio.initialization.random_points import (
    expected_depth,
    points_in_common_frustum,
)
from tests.conftest import look_at
from tests.initialization.scenes import project_by_hand

SIZE = (64, 48)
INTRINSICS = np.array([[50.0, 0, 32], [0, 50.0, 24], [0, 0, 1]])


def inward() -> np.ndarray:
    angles = np.linspace(0, 1.5 * np.pi, 7)
    return np.stack(
        [look_at(np.array([3 * np.cos(a), 3 * np.sin(a), 1.0]), np.zeros(3)) for a in angles]
    )[:, :3]


def parallel() -> np.ndarray:
    poses = np.tile(np.eye(4)[:3], (6, 1, 1))
    poses[:, 0, 3] = np.linspace(-0.5, 0.5, 6)
    return poses


def outward() -> np.ndarray:
    """A panorama: neighbours overlap, the axes meet behind the cameras."""
    angles = np.linspace(0, np.pi, 9)
    directions = np.stack([np.cos(angles), np.sin(angles), np.zeros(9)], axis=1)
    return np.stack([look_at(0.2 * d, 5 * d) for d in directions])[:, :3]


def in_one_place() -> np.ndarray:
    return np.tile(np.eye(4)[:3], (2, 1, 1))


def arguments(poses: np.ndarray) -> dict:
    return {
        "camera_to_worlds": poses,
        "intrinsics": np.stack([INTRINSICS] * len(poses)),
        "sizes": np.array([SIZE] * len(poses)),
    }


def count_views(xyz: np.ndarray, poses: np.ndarray) -> np.ndarray:
    seen = np.zeros(len(xyz), int)
    for pose in poses:
        pixels, depth = project_by_hand(xyz.astype(np.float64), pose, INTRINSICS)
        # A thousandth of a pixel of slack: positions are rounded to float32.
        inside = np.all((pixels > -1e-3) & (pixels < np.array(SIZE) + 1e-3), axis=1)
        seen += (depth > 0) & inside
    return seen


@pytest.mark.parametrize("layout", [inward, parallel, outward, in_one_place])
def test_every_point_is_seen_by_two_cameras(layout):
    poses = layout()
    xyz, rgb = points_in_common_frustum(**arguments(poses), num_points=2000, seed=3)
    assert xyz.shape == (2000, 3)
    assert rgb.shape == (2000, 3)
    assert count_views(xyz, poses).min() >= 2


def test_points_of_one_camera_lie_in_its_image():
    poses = inward()[:1]
    xyz, _ = points_in_common_frustum(**arguments(poses), num_points=500)
    assert count_views(xyz, poses).min() == 1


def test_cameras_without_a_common_region_still_get_points():
    back_to_back = np.stack(
        [look_at(np.array([1.0, 0, 0]), np.array([9.0, 0, 0])),
         look_at(np.array([-1.0, 0, 0]), np.array([-9.0, 0, 0]))]
    )[:, :3]  # fmt: skip
    xyz, _ = points_in_common_frustum(**arguments(back_to_back), num_points=500)
    assert xyz.shape == (500, 3)
    np.testing.assert_array_equal(count_views(xyz, back_to_back), 1)


def test_the_seed_decides_the_points():
    first = points_in_common_frustum(**arguments(inward()), num_points=300, seed=1)
    again = points_in_common_frustum(**arguments(inward()), num_points=300, seed=1)
    other = points_in_common_frustum(**arguments(inward()), num_points=300, seed=2)
    np.testing.assert_array_equal(first[0], again[0])
    np.testing.assert_array_equal(first[1], again[1])
    assert not np.array_equal(first[0], other[0])


def test_inward_looking_cameras_surround_their_points():
    """The axes meet at the origin, sqrt(10) from each camera."""
    xyz, _ = points_in_common_frustum(**arguments(inward()), num_points=2000)
    assert expected_depth(flip_camera_axes(inward())) == pytest.approx(np.sqrt(10), rel=1e-6)
    assert np.linalg.norm(np.median(xyz, axis=0)) < 1.0


def test_expected_depth_scales_with_the_world():
    for layout in (inward, parallel, outward):
        poses = flip_camera_axes(layout())
        scaled = poses.copy()
        scaled[:, :3, 3] *= 7.0
        assert expected_depth(scaled) == pytest.approx(7.0 * expected_depth(poses))


def test_wrong_shapes_are_named():
    good = arguments(inward())
    with pytest.raises(ValueError, match="intrinsics"):
        points_in_common_frustum(**{**good, "intrinsics": INTRINSICS}, num_points=3)
    with pytest.raises(ValueError, match="sizes"):
        points_in_common_frustum(**{**good, "sizes": SIZE}, num_points=3)
