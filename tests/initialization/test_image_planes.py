# SPDX-License-Identifier: Apache-2.0
"""Planes of a photograph: found where they are, told apart, and the same for the same points."""

from __future__ import annotations

import numpy as np

from ps4pro_nerfstudio.initialization.image_planes import find_planes

WALL = np.array([1e-3, 0.0, 0.2])  # recedes to the left
FLOOR = np.array([0.0, 2e-3, 0.1])  # comes nearer downwards


def grid(columns: tuple[int, int], rows: tuple[int, int]) -> np.ndarray:
    x, y = np.meshgrid(np.arange(*columns, 3.0), np.arange(*rows, 3.0))
    return np.stack([x.ravel(), y.ravel()], axis=1)


def on(plane: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    return pixels @ plane[:2] + plane[2]


def test_two_planes_are_found_and_each_point_is_given_to_its_own() -> None:
    """The wall has 50 x 34 points, the floor 50 x 17; both are exact."""
    upper, lower = grid((0, 150), (0, 100)), grid((0, 150), (120, 170))
    pixels = np.concatenate([upper, lower])
    planes = find_planes(pixels, np.concatenate([on(WALL, upper), on(FLOOR, lower)]))
    # Where the two meet in depth, a point may be given to either, and moves it a little.
    np.testing.assert_allclose(planes.coefficients[0], WALL, atol=2e-4)
    np.testing.assert_allclose(planes.coefficients[1], FLOOR, atol=2e-4)
    assert (planes.plane[: len(upper)] == 0).mean() > 0.95
    assert (planes.plane[len(upper) :] == 1).mean() > 0.8


def test_a_plane_tells_the_rest_of_its_wall_and_outliers_do_not_move_it() -> None:
    generator = np.random.default_rng(1)
    pixels = grid((0, 100), (0, 100))
    inverse = on(WALL, pixels) * generator.uniform(0.995, 1.005, len(pixels))
    wrong = generator.permutation(len(pixels))[: len(pixels) // 3]
    inverse[wrong] = generator.uniform(0.05, 1.0, len(wrong))
    planes = find_planes(pixels, inverse)
    far = np.array([[300.0, 50.0], [300.0, 200.0]])
    np.testing.assert_allclose(planes.inverse_depth(far)[:, 0], on(WALL, far), rtol=0.02)
    assert (planes.plane[wrong] >= 0).mean() < 0.3


def test_scattered_depths_and_no_points_hold_no_plane() -> None:
    generator = np.random.default_rng(2)
    pixels = grid((0, 150), (0, 150))
    scattered = generator.uniform(0.01, 1.0, len(pixels))
    assert len(find_planes(pixels, scattered).coefficients) == 0
    nothing = find_planes(np.zeros((0, 2)), np.zeros(0))
    assert nothing.coefficients.shape == (0, 3)
    assert nothing.plane.shape == (0,)
    assert nothing.inverse_depth(pixels).shape == (len(pixels), 0)


def test_the_same_points_give_the_same_planes_in_any_scale_of_the_scene() -> None:
    generator = np.random.default_rng(3)
    pixels = grid((0, 120), (0, 90))
    inverse = on(FLOOR, pixels) * generator.uniform(0.98, 1.02, len(pixels))
    planes, again = find_planes(pixels, inverse), find_planes(pixels, inverse)
    np.testing.assert_array_equal(planes.coefficients, again.coefficients)
    scaled = find_planes(pixels, 8.0 * inverse)
    np.testing.assert_allclose(scaled.coefficients, 8.0 * planes.coefficients, rtol=1e-6)
    np.testing.assert_array_equal(scaled.plane, planes.plane)
