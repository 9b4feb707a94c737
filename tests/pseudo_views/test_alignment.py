# SPDX-License-Identifier: Apache-2.0
"""Alignment through a plane, and where the depth of the plane comes from."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from ps4pro_nerfstudio.geometry.cameras import flip_camera_axes, interpolate_pose
from ps4pro_nerfstudio.pseudo_views.alignment import (
    FeatureCache,
    Photograph,
    TargetCamera,
    align,
    matched_points,
    plane_depth,
    unaligned,
)
from ps4pro_nerfstudio.pseudo_views.sources import SourceViews


@pytest.fixture(scope="module")
def pair(three_views: SourceViews) -> tuple[Photograph, Photograph]:
    first, second = (
        Photograph(
            image=three_views.images[index],
            valid=np.ones(three_views.images[index].shape[:2], bool),
            camera_to_world=flip_camera_axes(three_views.camera_to_worlds[index]),
            intrinsics=three_views.intrinsics[index],
        )
        for index in (0, 2)
    )
    return first, second


@pytest.fixture(scope="module")
def target(pair: tuple[Photograph, Photograph]) -> TargetCamera:
    a, b = pair
    pose = interpolate_pose(a.camera_to_world, b.camera_to_world, 0.5)
    return TargetCamera(pose, a.intrinsics, a.size)


def matches(pair: tuple[Photograph, Photograph]) -> Callable[[], np.ndarray]:
    cache = FeatureCache(pair)
    return lambda: matched_points(*pair, cache.get(0), cache.get(1))


def test_both_photographs_agree_on_the_plane(
    pair: tuple[Photograph, Photograph], target: TargetCamera
) -> None:
    """Through the wall's depth both warps show the wall at the same place, the board apart."""
    depth = 4.0 - target.camera_to_world[2, 3]
    first, second = (align(photograph, target, depth) for photograph in pair)
    both = first.valid & second.valid
    difference = np.abs(first.image - second.image).mean(axis=-1)
    wall = np.zeros_like(both)
    wall[:, 8:24] = True
    board = np.zeros_like(both)
    board[40:56, 56:72] = True
    assert difference[wall & both].mean() < 0.01
    assert difference[board & both].mean() > 0.05


def test_known_points_give_the_depth_first(
    pair: tuple[Photograph, Photograph], target: TargetCamera, three_views: SourceViews
) -> None:
    found = plane_depth(pair, target, three_views.points, matches(pair))
    assert found is not None
    assert found[1] == "points"
    assert found[0] == pytest.approx(4.0, rel=0.03)


def test_matches_give_the_depth_without_points(
    pair: tuple[Photograph, Photograph], target: TargetCamera
) -> None:
    """Wall at about 4.0 and board at about 3.0 from the camera in the middle."""
    found = plane_depth(pair, target, None, matches(pair))
    assert found is not None
    assert found[1] == "matches"
    assert 2.9 < found[0] < 4.1


def test_optical_axes_are_the_last_resort(
    pair: tuple[Photograph, Photograph], target: TargetCamera
) -> None:
    """The cameras look at a point 3.7 away; the middle one sits on the chord of a 20 degree arc."""
    found = plane_depth(pair, target, None, lambda: np.zeros((0, 3)))
    assert found is not None
    assert found[1] == "optical axes"
    assert found[0] == pytest.approx(3.7 * np.cos(np.radians(10.0)), rel=1e-6)


def test_parallel_views_without_texture_have_no_depth(target: TargetCamera) -> None:
    flat = np.full((96, 128, 3), 128, np.uint8)
    poses = np.tile(np.eye(4), (2, 1, 1))
    poses[1, 0, 3] = 1.0
    views = tuple(
        Photograph(flat, np.ones((96, 128), bool), pose, target.intrinsics) for pose in poses
    )
    between = TargetCamera(interpolate_pose(*poses, t=0.5), target.intrinsics, target.size)
    pair = (views[0], views[1])
    assert plane_depth(pair, between, None, matches(pair)) is None


def test_matches_obey_the_known_cameras(pair: tuple[Photograph, Photograph]) -> None:
    """Every triangulated match lies on the wall (z = 4) or on the board (z = 3)."""
    points = matches(pair)()
    assert len(points) >= 20
    distance = np.minimum(np.abs(points[:, 2] - 4.0), np.abs(points[:, 2] - 3.0))
    assert np.median(distance) < 0.05


def test_an_unaligned_photograph_has_the_size_of_the_other(
    pair: tuple[Photograph, Photograph],
) -> None:
    """Centres of halved pixels: (.5, .5) lies at (1, 1) of the photograph."""
    whole = unaligned(pair[0], pair[0].size)
    np.testing.assert_array_equal(whole.image, pair[0].image.astype(np.float32) / 255.0)
    half = unaligned(pair[0], (64, 48))
    assert half.image.shape == (48, 64, 3)
    assert half.valid.all()
    block = pair[0].image[:2, :2].mean(axis=(0, 1)) / 255.0
    np.testing.assert_allclose(half.image[0, 0], block, atol=1e-6)
    np.testing.assert_allclose(half.source_of(np.array([[0.5, 0.5]])), [[1.0, 1.0]])
