# SPDX-License-Identifier: Apache-2.0
"""Laws of epipolar distance, triangulation and re-projection."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from ps4pro_nerfstudio.geometry.cameras import project
from ps4pro_nerfstudio.geometry.epipolar import (
    depth_along_rays,
    fundamental_matrix,
    sampson_distance,
    triangulate,
)

INTRINSICS_0 = np.array([[300.0, 0.0, 160.0], [0.0, 310.0, 120.0], [0.0, 0.0, 1.0]])
INTRINSICS_1 = np.array([[320.0, 0.0, 150.0], [0.0, 320.0, 130.0], [0.0, 0.0, 1.0]])
POSE_0 = np.eye(4)
POSE_1 = np.eye(4)
POSE_1[:3, :3] = Rotation.from_rotvec([0.05, -0.2, 0.1]).as_matrix()
POSE_1[:3, 3] = [1.0, 0.1, -0.2]
CAMERAS = (POSE_0, INTRINSICS_0, POSE_1, INTRINSICS_1)


def correspondences(seed: int, count: int = 30) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    points = generator.uniform([-1.5, -1.0, 4.0], [1.5, 1.0, 9.0], (count, 3))
    pixels = (project(points, POSE_0, INTRINSICS_0)[0], project(points, POSE_1, INTRINSICS_1)[0])
    return points, *pixels


def test_sampson_is_zero_for_exact_correspondences() -> None:
    _, x0, x1 = correspondences(0)
    assert sampson_distance(x0, x1, fundamental_matrix(*CAMERAS)).max() < 1e-20


@given(scale=st.floats(1e-3, 1e3), negative=st.booleans(), seed=st.integers(0, 100))
@settings(max_examples=25, deadline=None)
def test_sampson_does_not_depend_on_the_scale_of_f(scale: float, negative: bool, seed: int) -> None:
    _, x0, x1 = correspondences(seed)
    x1 = x1 + np.random.default_rng(seed).normal(size=x1.shape)
    matrix = fundamental_matrix(*CAMERAS)
    scaled = matrix * (-scale if negative else scale)
    np.testing.assert_allclose(
        sampson_distance(x0, x1, scaled), sampson_distance(x0, x1, matrix), rtol=1e-9
    )


def test_sampson_is_symmetric_in_the_two_images() -> None:
    _, x0, x1 = correspondences(1)
    x1 = x1 + 2.0
    matrix = fundamental_matrix(*CAMERAS)
    np.testing.assert_allclose(
        sampson_distance(x0, x1, matrix), sampson_distance(x1, x0, matrix.T), rtol=1e-12
    )


def test_sampson_of_a_rectified_pair_is_half_the_squared_row_difference() -> None:
    """F = [[0,0,0],[0,0,-1],[0,1,0]]: x1' F x0 = y0 - y1, both lines have unit normals.

    d^2 = (y0 - y1)^2 / (1 + 1) = 3^2 / 2 = 4.5.
    """
    matrix = np.array([[0.0, 0.0, 0.0], [0.0, 0.0, -1.0], [0.0, 1.0, 0.0]])
    assert sampson_distance([[10.0, 5.0]], [[40.0, 8.0]], matrix) == pytest.approx(4.5)


def test_one_place_has_no_epipolar_lines() -> None:
    turned = POSE_1.copy()
    turned[:3, 3] = 0.0
    matrix = fundamental_matrix(POSE_0, INTRINSICS_0, turned, INTRINSICS_1)
    np.testing.assert_array_equal(matrix, np.zeros((3, 3)))
    assert np.isinf(sampson_distance([[1.0, 2.0]], [[1.0, 2.0]], matrix)).all()


def test_triangulation_recovers_exact_points() -> None:
    points, x0, x1 = correspondences(2)
    found = triangulate(x0, x1, *CAMERAS)
    np.testing.assert_array_equal(found[:, 3], 1.0)
    np.testing.assert_allclose(found[:, :3], points, atol=1e-9)


@pytest.mark.parametrize("shift", [0.0, 0.5])
def test_parallel_and_diverging_rays_meet_at_infinity(shift: float) -> None:
    """Cameras side by side: equal pixels are parallel rays, a negative disparity diverges."""
    aside = np.eye(4)
    aside[0, 3] = 1.0
    left, right = np.array([[100.0, 80.0]]), np.array([[100.0 + shift, 80.0]])
    found = triangulate(left, right, POSE_0, INTRINSICS_0, aside, INTRINSICS_0)
    assert found[0, 3] == 0.0
    pixels, _ = project(found, POSE_0, INTRINSICS_0)
    np.testing.assert_allclose(pixels, (left + right) / 2, atol=1e-3)


def test_depth_along_rays_is_exact_for_exact_positions() -> None:
    """Rays of the second camera, seen from the first and from a third one."""
    points, x0, x1 = correspondences(7)
    third = POSE_0.copy()
    third[:3, 3] = [-0.5, 0.4, 0.1]
    x2, _ = project(points, third, INTRINSICS_0)
    depth, places = depth_along_rays(
        x1, [x0, x2], POSE_1, INTRINSICS_1, [POSE_0, third], [INTRINSICS_0, INTRINSICS_0]
    )
    np.testing.assert_allclose(depth, project(points, POSE_1, INTRINSICS_1)[1], rtol=1e-9)
    np.testing.assert_allclose(places[0], x0, atol=1e-7)
    np.testing.assert_allclose(places[1], x2, atol=1e-7)


def test_depth_along_rays_of_cameras_in_one_place_is_infinite() -> None:
    """They see the same whatever the depth: the places are those at infinity, and known."""
    pixels = np.array([[10.0, 20.0], [200.0, 100.0]])
    depth, (place,) = depth_along_rays(
        pixels, [pixels], POSE_0, INTRINSICS_0, [POSE_0], [INTRINSICS_0]
    )
    assert np.isinf(depth).all()
    np.testing.assert_allclose(place, pixels, atol=1e-9)


def test_depth_along_rays_beyond_infinity_is_infinity() -> None:
    """A camera to the right sees a point further left; further right is beyond infinity."""
    right = np.eye(4)
    right[0, 3] = 1.0
    pixels = np.array([[200.0, 100.0]])
    depth, (place,) = depth_along_rays(
        pixels, [np.array([[205.0, 100.0]])], POSE_0, INTRINSICS_0, [right], [INTRINSICS_0]
    )
    assert np.isinf(depth).all()
    np.testing.assert_allclose(place, pixels, atol=1e-9)
