# SPDX-License-Identifier: Apache-2.0
"""Laws of the plane-induced homography and of warping along it."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from ps4pro_nerfstudio.geometry.cameras import interpolate_pose, pixel_centres, project
from ps4pro_nerfstudio.geometry.epipolar import pixel_rays
from ps4pro_nerfstudio.geometry.planes import (
    SHARP_REACH,
    apply_homography,
    erode,
    plane_homography,
    warp_by_homography,
    warp_valid,
)

INTRINSICS = np.array([[90.0, 0.0, 41.0], [0.0, 92.0, 29.5], [0.0, 0.0, 1.0]])
SIZE = (80, 60)


def camera(rotation_vector: list[float], centre: list[float]) -> np.ndarray:
    pose = np.eye(4)
    pose[:3, :3] = Rotation.from_rotvec(rotation_vector).as_matrix()
    pose[:3, 3] = centre
    return pose


TARGET = camera([0.02, 0.0, 0.01], [0.1, 0.0, 0.0])
SOURCE = camera([-0.03, 0.15, 0.05], [-0.4, 0.1, 0.2])


def position_image() -> np.ndarray:
    """Every pixel holds the coordinates of its own centre: a warp of it shows where it read."""
    return pixel_centres(SIZE[1], SIZE[0]).astype(np.float32)


@pytest.mark.parametrize("normal", [(0.0, 0.0, 1.0), (0.28, 0.0, 0.96)])
def test_homography_agrees_with_points_of_the_plane(normal: tuple[float, float, float]) -> None:
    depth = 3.0
    pixels = pixel_centres(7, 9).reshape(-1, 2) * 8.0
    centre, rays = pixel_rays(pixels, TARGET, INTRINSICS)
    normal_in_world = TARGET[:3, :3] @ np.array(normal)
    points = centre + rays * (depth / (rays @ normal_in_world))[:, None]
    expected, _ = project(points, SOURCE, INTRINSICS)
    homography = plane_homography(TARGET, INTRINSICS, SOURCE, INTRINSICS, depth, normal)
    np.testing.assert_allclose(apply_homography(homography, pixels), expected, atol=1e-9)


def test_homography_between_equal_cameras_is_the_identity() -> None:
    homography = plane_homography(TARGET, INTRINSICS, TARGET, INTRINSICS, 2.0)
    np.testing.assert_allclose(homography / homography[2, 2], np.eye(3), atol=1e-12)


def test_a_plane_at_infinity_gives_the_pure_rotation() -> None:
    turned = SOURCE.copy()
    turned[:3, 3] = TARGET[:3, 3]
    np.testing.assert_allclose(
        plane_homography(TARGET, INTRINSICS, SOURCE, INTRINSICS, np.inf),
        plane_homography(TARGET, INTRINSICS, turned, INTRINSICS, 5.0),
        atol=1e-9,
    )


@pytest.mark.parametrize("depth", [0.0, -1.0, float("nan")])
def test_a_plane_behind_the_camera_is_refused(depth: float) -> None:
    with pytest.raises(ValueError, match="depth"):
        plane_homography(TARGET, INTRINSICS, SOURCE, INTRINSICS, depth)


@pytest.mark.parametrize(("sharp", "tolerance_px"), [(False, 0.02), (True, 0.035)])
def test_warp_reads_at_the_right_place(sharp: bool, tolerance_px: float) -> None:
    """Half a pixel of convention error would show as .5.

    OpenCV's table step is 1/32 px: 1/64 px of rounding. Lanczos does not reproduce a ramp exactly,
    which adds as much again; on average both are right.
    """
    homography = plane_homography(TARGET, INTRINSICS, SOURCE, INTRINSICS, 3.0)
    read = warp_by_homography(position_image(), homography, SIZE, sharp)
    away_from_border = np.zeros(SIZE[::-1], bool)
    away_from_border[SHARP_REACH:-SHARP_REACH, SHARP_REACH:-SHARP_REACH] = True
    inside = warp_valid(away_from_border, homography, SIZE)
    assert inside.mean() > 0.4
    expected = apply_homography(homography, pixel_centres(SIZE[1], SIZE[0]))
    assert np.abs(read - expected)[inside].max() < tolerance_px
    assert np.abs((read - expected)[inside].mean(axis=0)).max() < 0.005


def test_enlarging_keeps_half_pixel_centres() -> None:
    """Twice the focal length and principal point: target pixel (x, y) reads source (x/2, y/2)."""
    doubled = INTRINSICS * np.array([[2.0], [2.0], [1.0]])
    homography = plane_homography(TARGET, doubled, TARGET, INTRINSICS, 1.0)
    read = warp_by_homography(position_image(), homography, (160, 120), sharp=False)
    expected = pixel_centres(120, 160) / 2.0
    assert np.abs(read - expected)[2:-2, 2:-2].max() < 0.02


def test_validity_moves_with_the_image_and_ends_at_its_border() -> None:
    """Target pixel (x, y) reads source (x + 3, y): a hole at column 15 appears at column 12."""
    shift = np.array([[1.0, 0.0, 3.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    valid = np.ones((20, 30), bool)
    valid[10, 15] = False
    expected = np.ones((20, 30), bool)
    expected[:, 27:] = False
    expected[10, 12] = False
    np.testing.assert_array_equal(warp_valid(valid, shift, (30, 20)), expected)


def test_half_a_pixel_of_an_invalid_neighbour_is_enough_to_be_invalid() -> None:
    shift = np.array([[1.0, 0.0, 0.5], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    valid = np.ones((5, 8), bool)
    valid[2, 4] = False
    expected = np.ones((5, 8), bool)
    expected[:, 7] = False
    expected[2, 3:5] = False
    np.testing.assert_array_equal(warp_valid(valid, shift, (8, 5)), expected)


def test_eroding_grows_holes_but_not_the_border() -> None:
    valid = np.ones((12, 14), bool)
    valid[5, 7] = False
    expected = np.ones((12, 14), bool)
    expected[3:8, 5:10] = False
    np.testing.assert_array_equal(erode(valid, 2), expected)


def test_eroding_by_nothing_changes_nothing() -> None:
    valid = np.random.default_rng(0).random((9, 11)) > 0.5
    np.testing.assert_array_equal(erode(valid, 0), valid)


def test_what_lies_behind_the_source_is_invalid() -> None:
    turned_away = camera([0.0, np.pi, 0.0], [0.0, 0.0, 0.0])
    homography = plane_homography(np.eye(4), INTRINSICS, turned_away, INTRINSICS, 2.0)
    assert np.isnan(apply_homography(homography, np.array([[41.0, 29.5]]))).all()


def test_middle_camera_sees_opposite_parallax_of_its_neighbours() -> None:
    """Sideways motion without rotation: a nearer point moves by equal amounts, opposite signs.

    Centres at x = -1 and 1, focal length 90, plane at depth 4, point at depth 3: each source sees
    the point 90 * 1 * (1/3 - 1/4) = 7.5 px away from where the plane would put it.
    """
    left, right = camera([0, 0, 0], [-1, 0, 0]), camera([0, 0, 0], [1, 0, 0])
    middle = interpolate_pose(left, right, 0.5)
    point = np.array([[0.2, 0.1, 3.0]])
    seen, _ = project(point, middle, INTRINSICS)
    offsets = []
    for source in (left, right):
        homography = plane_homography(middle, INTRINSICS, source, INTRINSICS, 4.0)
        in_source, _ = project(point, source, INTRINSICS)
        offsets.append(apply_homography(np.linalg.inv(homography), in_source) - seen)
    np.testing.assert_allclose(offsets[0], [[7.5, 0.0]], atol=1e-9)
    np.testing.assert_allclose(offsets[1], [[-7.5, 0.0]], atol=1e-9)
