# SPDX-License-Identifier: Apache-2.0
"""Laws of camera frames, poses in between and projection."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from ps4pro_nerfstudio.geometry import cameras


def random_pose(seed: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    pose = np.eye(4)
    pose[:3, :3] = Rotation.from_rotvec(generator.normal(size=3)).as_matrix()
    pose[:3, 3] = generator.normal(size=3)
    return pose


def test_flipping_the_axes_twice_gives_the_pose_back() -> None:
    pose = random_pose(0)
    np.testing.assert_array_equal(cameras.flip_camera_axes(cameras.flip_camera_axes(pose)), pose)


def test_flipping_turns_opengl_backward_into_opencv_forward() -> None:
    """An OpenGL camera at the origin looks along -z of the world: that is OpenCV's +z axis."""
    flipped = cameras.flip_camera_axes(np.eye(4)[:3])
    np.testing.assert_array_equal(flipped[:3, 2], [0.0, 0.0, -1.0])
    np.testing.assert_array_equal(flipped[:3, 1], [0.0, -1.0, 0.0])
    np.testing.assert_array_equal(flipped[:3, 0], [1.0, 0.0, 0.0])


@pytest.mark.parametrize("shape", [(3, 3), (4,), (2, 4, 3)])
def test_a_matrix_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="camera_to_world must be"):
        cameras.as_4x4(np.zeros(shape))


def test_inverse_and_relative_pose_are_consistent() -> None:
    a, b, c = (random_pose(seed) for seed in range(3))
    np.testing.assert_allclose(cameras.invert_rigid(a) @ a, np.eye(4), atol=1e-14)
    composed = cameras.relative_pose(b, c) @ cameras.relative_pose(a, b)
    np.testing.assert_allclose(composed, cameras.relative_pose(a, c), atol=1e-14)


@pytest.mark.parametrize("angle", [0.0, 1e-9, 0.3, 1.5, np.pi - 1e-9, np.pi])
def test_rotation_angle_is_exact_also_near_zero_and_pi(angle: float) -> None:
    pose = random_pose(3)
    turned = pose.copy()
    axis = np.array([1.0, -2.0, 0.5]) / np.sqrt(5.25)
    turned[:3, :3] = pose[:3, :3] @ Rotation.from_rotvec(angle * axis).as_matrix()
    assert cameras.rotation_angle(pose, turned) == pytest.approx(angle, abs=1e-12)
    assert cameras.rotation_angle(turned, pose) == pytest.approx(angle, abs=1e-12)


def test_interpolated_pose_ends_at_the_sources_and_moves_evenly() -> None:
    a, b = random_pose(4), random_pose(5)
    np.testing.assert_allclose(cameras.interpolate_pose(a, b, 0.0), a, atol=1e-14)
    np.testing.assert_allclose(cameras.interpolate_pose(a, b, 1.0), b, atol=1e-14)
    quarter = cameras.interpolate_pose(a, b, 0.25)
    whole = cameras.rotation_angle(a, b)
    assert cameras.rotation_angle(a, quarter) == pytest.approx(0.25 * whole, abs=1e-12)
    np.testing.assert_allclose(quarter[:3, 3], 0.75 * a[:3, 3] + 0.25 * b[:3, 3])
    np.testing.assert_allclose(quarter, cameras.interpolate_pose(b, a, 0.75), atol=1e-12)


def test_interpolation_commutes_with_the_change_of_axes() -> None:
    a, b = random_pose(6), random_pose(7)
    flipped = cameras.interpolate_pose(
        cameras.flip_camera_axes(a), cameras.flip_camera_axes(b), 0.3
    )
    expected = cameras.flip_camera_axes(cameras.interpolate_pose(a, b, 0.3))
    np.testing.assert_allclose(flipped, expected, atol=1e-12)


def test_projection_recovers_the_pixel_a_ray_was_cast_through() -> None:
    pose, generator = random_pose(8), np.random.default_rng(0)
    intrinsics = np.array([[300.0, 0.0, 160.0], [0.0, 310.0, 120.0], [0.0, 0.0, 1.0]])
    pixels = generator.uniform(0, 240, (20, 2))
    depth = generator.uniform(0.5, 9.0, 20)
    in_camera = np.column_stack([pixels, np.ones(20)]) @ np.linalg.inv(intrinsics).T
    points = (in_camera * depth[:, None]) @ pose[:3, :3].T + pose[:3, 3]
    projected, projected_depth = cameras.project(points, pose, intrinsics)
    np.testing.assert_allclose(projected, pixels, atol=1e-9)
    np.testing.assert_allclose(projected_depth, depth)
    behind, _ = cameras.project(2 * pose[:3, 3] - points, pose, intrinsics)
    assert np.isnan(behind).all()


def test_resizing_keeps_the_image_corner_of_a_point() -> None:
    """A point at the lower right corner (640, 480) stays at the corner (160, 120) at a quarter."""
    intrinsics = np.array([[500.0, 0.0, 320.0], [0.0, 500.0, 240.0], [0.0, 0.0, 1.0]])
    point = np.array([[320.0 / 500.0, 240.0 / 500.0, 1.0]])
    scaled = cameras.scale_intrinsics(intrinsics, 0.25, 0.25)
    np.testing.assert_allclose(cameras.project(point, np.eye(4), scaled)[0], [[160.0, 120.0]])


def test_harmonic_median_depth_ignores_what_the_camera_does_not_see() -> None:
    intrinsics = np.array([[100.0, 0.0, 50.0], [0.0, 100.0, 50.0], [0.0, 0.0, 1.0]])
    depths = np.array([2.0] * 5 + [4.0] * 6 + [100.0] * 5)
    seen = np.column_stack([np.zeros(16), np.zeros(16), depths])
    behind = np.tile([[0.0, 0.0, -1.0]], (50, 1))
    outside = np.tile([[50.0, 0.0, 1.0]], (50, 1))
    points = np.concatenate([seen, behind, outside])
    depth = cameras.harmonic_median_depth(points, np.eye(4), intrinsics, (100, 100))
    assert depth == pytest.approx(4.0)
    assert cameras.harmonic_median_depth(outside, np.eye(4), intrinsics, (100, 100)) is None


def test_point_of_attention_is_where_the_axes_meet() -> None:
    target = np.array([0.3, -0.2, 4.0])
    poses = []
    for centre in ([0.0, 0.0, 0.0], [3.0, 0.0, 1.0], [-2.0, 1.0, 0.5]):
        forward = (target - centre) / np.linalg.norm(target - centre)
        right = np.cross([0.0, 1.0, 0.0], forward)
        right /= np.linalg.norm(right)
        pose = np.eye(4)
        pose[:3, :3] = np.stack([right, np.cross(forward, right), forward], axis=1)
        pose[:3, 3] = centre
        poses.append(pose)
    attention = cameras.point_of_attention(np.stack(poses))
    assert attention is not None
    np.testing.assert_allclose(attention, target, atol=1e-9)
    outward = np.stack(poses)
    outward[:, :3, 2] *= -1.0
    assert cameras.point_of_attention(outward) is None


def test_parallel_axes_have_no_point_of_attention() -> None:
    poses = np.tile(np.eye(4), (3, 1, 1))
    poses[:, 0, 3] = [0.0, 1.0, 2.0]
    assert cameras.point_of_attention(poses) is None
