# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from ps4pro_nerfstudio.demo.capture import hand_held_capture
from ps4pro_nerfstudio.demo.raycasting import Camera, render
from ps4pro_nerfstudio.demo.room import build_room
from ps4pro_nerfstudio.demo.sparse_points import MIN_ANGLE_RAD, SparsePoints, reconstruct


@pytest.fixture(scope="module")
def capture():
    room = build_room(np.random.default_rng(1), baked=False)
    poses = hand_held_capture(room, 8, 1, np.random.default_rng(1)).train
    cameras = [Camera(160, 90, 114.0, pose) for pose in poses]
    return room.caster, cameras, [render(room.caster, camera) for camera in cameras]


def _points(capture, noise_px: float = 0.7, num_points: int = 10_000) -> SparsePoints:
    caster, cameras, renderings = capture
    generator = np.random.default_rng(0)
    return reconstruct(caster, cameras, renderings, num_points, noise_px, generator)


def test_each_point_is_seen_by_the_views_of_its_track(capture):
    caster, cameras, _ = capture
    points = _points(capture)
    assert len(points.positions) > 500
    assert (points.tracks.sum(axis=1) >= 2).all()
    for view, camera in enumerate(cameras):
        seen = caster.sees(camera, points.exact_positions)
        assert seen[points.tracks[:, view]].all()


def test_rays_of_a_track_open_a_useful_angle(capture):
    _, cameras, _ = capture
    points = _points(capture)
    centers = np.stack([camera.center for camera in cameras])
    for position, track in zip(points.exact_positions[::20], points.tracks[::20], strict=True):
        rays = position - centers[track]
        rays /= np.linalg.norm(rays, axis=1, keepdims=True)
        assert np.arccos(np.clip((rays @ rays.T).min(), -1.0, 1.0)) >= MIN_ANGLE_RAD - 1e-9


def test_the_error_is_that_of_least_squares_triangulation(capture):
    """Summed over its track, the squared pixel displacement of a point has the mean 3 sigma^2.

    The displacement is the projection of the observations' errors onto the three directions in
    which the point can move, each of variance sigma^2; first order, so with a small sigma.
    """
    _, cameras, _ = capture
    sigma = 0.05
    points = _points(capture, noise_px=sigma)
    total = np.zeros(len(points.positions))
    for view, camera in enumerate(cameras):
        moved = camera.project(points.positions)[0] - camera.project(points.exact_positions)[0]
        total += np.where(points.tracks[:, view], (moved**2).sum(axis=1), 0.0)
    assert total.mean() / sigma**2 == pytest.approx(3.0, rel=0.1)


def test_errors_are_larger_along_the_line_of_sight(capture):
    _, cameras, _ = capture
    points = _points(capture)
    sight = points.exact_positions - np.mean([camera.center for camera in cameras], axis=0)
    sight /= np.linalg.norm(sight, axis=1, keepdims=True)
    error = points.positions - points.exact_positions
    along = (error * sight).sum(axis=1)
    across = error - along[:, None] * sight  # two directions
    assert np.sqrt(np.mean(along**2)) > 2.0 * np.sqrt(np.mean((across**2).sum(axis=1)) / 2.0)
    assert np.median(np.linalg.norm(error, axis=1)) < 0.05


def test_no_noise_leaves_points_on_the_surface(capture):
    points = _points(capture, noise_px=0.0)
    np.testing.assert_array_equal(points.positions, points.exact_positions)


def test_points_cluster_on_texture_and_carry_its_colour(capture):
    import cv2

    _, cameras, renderings = capture
    points = _points(capture)
    strengths, usual, color_errors = [], [], []
    for view, (camera, rendering) in enumerate(zip(cameras, renderings, strict=True)):
        pixel = camera.project(points.exact_positions[points.tracks[:, view]])[0].astype(int)
        inside = (pixel < (160, 90)).all(axis=1)
        gray = cv2.cvtColor(rendering.image, cv2.COLOR_RGB2GRAY)
        strength = cv2.cornerMinEigenVal(gray, 3)
        column, row = pixel[inside].T
        strengths.append(np.median(strength[row, column]))
        usual.append(np.median(strength))
        colors = points.colors[points.tracks[:, view]][inside] / 255.0
        color_errors.append(np.abs(colors - rendering.image[row, column]).mean())
    assert np.mean(strengths) > 2.0 * np.mean(usual)
    assert np.mean(color_errors) < 0.06


def test_the_number_of_points_is_a_limit(capture):
    assert len(_points(capture, num_points=50).positions) == 50


def test_one_corner_gives_one_point(capture):
    from scipy.spatial import KDTree

    points = _points(capture)
    spacing = KDTree(points.exact_positions).query(points.exact_positions, 2)[0][:, 1]
    assert spacing.min() > 1e-3
