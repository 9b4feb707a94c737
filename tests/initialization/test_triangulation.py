# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import re
import tempfile

import numpy as np
import pytest
from scipy.spatial import KDTree
from scipy.spatial.transform import Rotation

from ps4pro_nerfstudio.geometry.cameras import flip_camera_axes
from ps4pro_nerfstudio.geometry.epipolar import fundamental_matrix
from ps4pro_nerfstudio.initialization import triangulation
from ps4pro_nerfstudio.initialization.points import SeedPointsConfig
from ps4pro_nerfstudio.initialization.triangulation import triangulate_points
from ps4pro_nerfstudio.messages import InputError
from tests.conftest import look_at
from tests.initialization.scenes import (
    FAR_DEPTH,
    NEAR_DEPTH,
    PlaneScene,
    plane_scene,
    project_by_hand,
)


@pytest.fixture(scope="module")
def scene():
    return plane_scene(num_views=3)


@pytest.fixture(scope="module")
def points(scene):
    return triangulate_points(**scene.arguments)


def relative_depth_errors(xyz: np.ndarray) -> np.ndarray:
    depth = -xyz[:, 2]
    error = np.minimum(np.abs(depth - FAR_DEPTH), np.abs(depth - NEAR_DEPTH))
    return error / depth


@pytest.mark.parametrize("num_views", [2, 3])
def test_points_of_planes_lie_on_them(num_views):
    points = triangulate_points(**plane_scene(num_views, width=480, height=360).arguments)
    errors = relative_depth_errors(points.xyz)
    assert len(points) > 1000
    assert np.mean(errors < 0.01) > 0.97
    assert np.median(errors) < 0.002
    # Both planes are found, not only the larger one.
    assert np.sum(np.abs(points.xyz[:, 2] + NEAR_DEPTH) < 0.03) > 50
    assert np.sum(np.abs(points.xyz[:, 2] + FAR_DEPTH) < 0.04) > 50


def test_points_remember_the_views_that_found_them(scene, points):
    assert points.seen_by.shape == (len(points), len(scene.arguments["images"]))
    np.testing.assert_array_equal(points.seen_by.sum(axis=1), points.track_lengths)
    for view, pose in enumerate(scene.camera_to_worlds):
        in_camera = (points.xyz[points.seen_by[:, view]] - pose[:3, 3]) @ pose[:3, :3]
        assert bool((in_camera[:, 2] < 0).all())  # OpenGL: in front of the camera


def test_views_of_different_sizes_agree():
    """The same camera with half the pixels: a slip of half a pixel between them would show."""
    fine, coarse = (plane_scene(2, width, width * 3 // 4) for width in (480, 240))
    scene = PlaneScene(
        [fine.images[0], coarse.images[1]],
        fine.camera_to_worlds,
        np.stack([fine.intrinsics[0], coarse.intrinsics[1]]),
    )
    points = triangulate_points(**scene.arguments)
    depth = -points.xyz[:, 2]
    plane = np.where(depth < (NEAR_DEPTH + FAR_DEPTH) / 2, NEAR_DEPTH, FAR_DEPTH)
    assert len(points) > 300
    # Positions half a pixel off give 0.005 here.
    assert abs(np.median(depth / plane - 1.0)) < 0.001


def test_reported_errors_are_small_and_tracks_are_whole(points):
    assert set(np.unique(points.track_lengths)) <= {2, 3}
    assert np.median(points.reprojection_errors_px) < 0.5
    assert points.reprojection_errors_px.max() <= SeedPointsConfig().max_reprojection_px
    assert points.xyz.dtype == np.float32
    assert points.rgb.dtype == np.uint8


def test_colors_are_those_of_the_pixels(scene, points):
    pixels, _ = project_by_hand(points.xyz, scene.camera_to_worlds[1], scene.intrinsics[1])
    image = scene.images[1].astype(float)
    inside = np.all((pixels > 1) & (pixels < [image.shape[1] - 1, image.shape[0] - 1]), axis=1)
    column, row = pixels[inside].astype(int).T
    difference = np.abs(image[row, column] - points.rgb[inside]).mean(axis=1)
    assert np.median(difference) < 6.0


def test_same_input_gives_same_points_for_any_number_of_threads(scene, points, monkeypatch):
    monkeypatch.setattr(triangulation.os, "cpu_count", lambda: 1)
    again = triangulate_points(**scene.arguments)
    np.testing.assert_array_equal(points.xyz, again.xyz)
    np.testing.assert_array_equal(points.rgb, again.rgb)
    np.testing.assert_array_equal(points.track_lengths, again.track_lengths)


def test_points_follow_a_similarity_of_the_world(scene, points):
    """A rotated, scaled and shifted world has rotated, scaled and shifted points."""
    rotation = Rotation.from_euler("xyz", [40, -70, 20], degrees=True).as_matrix()
    scale, shift = 250.0, np.array([3e3, -2e3, 1e3])
    poses = scene.camera_to_worlds.copy()
    poses[:, :, :3] = rotation @ poses[:, :, :3]
    poses[:, :, 3] = scale * poses[:, :, 3] @ rotation.T + shift
    moved = triangulate_points(**{**scene.arguments, "camera_to_worlds": poses})
    expected = scale * points.xyz @ rotation.T + shift
    distance, _ = KDTree(moved.xyz).query(expected)
    assert abs(len(moved) - len(points)) <= 0.02 * len(points)
    assert np.mean(distance < 1e-3 * scale) > 0.97


def test_invalid_pixels_yield_no_points():
    """Two views: each point was found in both, so none may lie under either mask."""
    scene = plane_scene(num_views=2)
    mask = np.ones(scene.images[0].shape[:2], bool)
    mask[:, 120:] = False
    masked = triangulate_points(**{**scene.arguments, "valid": [mask, None]})
    pixels, _ = project_by_hand(masked.xyz, scene.camera_to_worlds[0], scene.intrinsics[0])
    assert len(masked) > 50
    assert pixels[:, 0].max() < 121.0
    free = triangulate_points(**scene.arguments)
    pixels, _ = project_by_hand(free.xyz, scene.camera_to_worlds[0], scene.intrinsics[0])
    assert np.sum(pixels[:, 0] > 130.0) > 50


@pytest.mark.parametrize("fill", [0, 128])
def test_blank_images_give_no_points(scene, fill):
    blank = [np.full_like(image, fill) for image in scene.images]
    points = triangulate_points(**{**scene.arguments, "images": blank})
    assert points.xyz.shape == (0, 3)
    assert points.rgb.shape == (0, 3)


def test_cameras_in_one_place_give_no_points(scene):
    poses = np.stack([scene.camera_to_worlds[0]] * 3)
    assert len(triangulate_points(**{**scene.arguments, "camera_to_worlds": poses})) == 0


def test_a_full_temporary_folder_is_named(scene, tmp_path, monkeypatch):
    resource = pytest.importorskip("resource")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 14, hard))
    try:
        with pytest.raises(InputError, match=re.escape(str(tmp_path))):
            triangulate_points(**scene.arguments)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(tmp_path.iterdir())


def test_a_temporary_folder_that_is_missing_is_named(scene, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    with pytest.raises(InputError, match=r"missing.*TMPDIR"):
        triangulate_points(**scene.arguments)


def test_colmap_is_quiet_and_leaves_no_files(scene, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert len(triangulate_points(**scene.arguments)) > 0
    assert list(tmp_path.iterdir()) == []
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err == ""


def test_progress_counts_to_the_end(scene):
    calls = []
    triangulate_points(**scene.arguments, progress=lambda *call: calls.append(call))
    assert ("views", 3, 3) in calls
    assert ("pairs", 3, 3) in calls


def test_bad_arguments_are_named(scene):
    with pytest.raises(ValueError, match="camera_to_worlds"):
        triangulate_points(**{**scene.arguments, "camera_to_worlds": scene.camera_to_worlds[:2]})
    floats = [image.astype(np.float32) for image in scene.images]
    with pytest.raises(ValueError, match=r"images\[0\]"):
        triangulate_points(**{**scene.arguments, "images": floats})
    poses = scene.camera_to_worlds.copy()
    mirrored = poses.copy()
    mirrored[1, :, 0] *= -1.0
    with pytest.raises(InputError, match="view 1"):
        triangulate_points(**{**scene.arguments, "camera_to_worlds": mirrored})
    poses[1, 0, 3] = np.nan
    with pytest.raises(InputError, match="view 1"):
        triangulate_points(**{**scene.arguments, "camera_to_worlds": poses})


def ring(num_views: int) -> np.ndarray:
    angles = 2 * np.pi * np.arange(num_views) / num_views
    eyes = np.stack([2 * np.cos(angles), 2 * np.sin(angles), 0.3 * np.ones(num_views)], axis=1)
    return flip_camera_axes(np.stack([look_at(eye, np.zeros(3)) for eye in eyes]))


def test_a_match_with_a_rival_elsewhere_is_not_distinctive():
    """Both images show the same feature; the second one also shows it away from the line."""
    rng = np.random.default_rng(0)
    one, other = rng.normal(size=(2, 128)) ** 2
    one, other = (np.round(512 * d / np.linalg.norm(d)) for d in (one, other))
    poses = flip_camera_axes(plane_scene(num_views=2).camera_to_worlds)
    poses[1, :3, :3] = poses[0, :3, :3] = np.eye(3)
    poses[1, :3, 3] = poses[0, :3, 3] + [1.0, 0.0, 0.0]  # Epipolar lines are rows.
    intrinsics = np.array([[100.0, 0, 50], [0, 100.0, 50], [0, 0, 1]])
    fundamental = fundamental_matrix(poses[0], intrinsics, poses[1], intrinsics)
    config = SeedPointsConfig()

    def distinctive(rival):
        first = triangulation._Features(
            np.array([[60.0, 50.0]]), one[None].astype(np.int16), np.zeros(1, np.int64)
        )
        second = triangulation._Features(
            np.array([[40.0, 50.0], [40.0, 90.0]]),
            np.stack([one, rival]).astype(np.int16),
            np.arange(2),
        )
        found = triangulation._match_along_epipolar_lines(first, second, fundamental, config)
        assert found.positions.tolist() == [[0, 0]]
        return triangulation._distinctive(first, second, found.descriptors, config.max_ratio)

    assert distinctive(other).tolist() == [True]
    assert distinctive(one).tolist() == [False]


def test_all_pairs_are_matched_when_they_are_few():
    poses = flip_camera_axes(plane_scene(num_views=5).camera_to_worlds)
    assert len(triangulation._pairs_to_match(poses, 100)) == 10


def test_pairs_are_limited_and_leave_no_view_alone():
    pairs = triangulation._pairs_to_match(ring(60), 300)
    assert len(pairs) <= 300
    assert len(set(pairs)) == len(pairs)
    assert all(a < b for a, b in pairs)
    assert {view for pair in pairs for view in pair} == set(range(60))
    # The neighbours along the ring are always among them.
    assert {(view, view + 1) for view in range(59)} <= set(pairs)


def test_views_from_opposite_sides_are_not_matched():
    steps = [min(b - a, 24 - (b - a)) for a, b in triangulation._pairs_to_match(ring(24), 1000)]
    assert max(steps) * 360 / 24 <= triangulation.MAX_ANGLE_BETWEEN_AXES_DEG
