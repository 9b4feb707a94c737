# SPDX-License-Identifier: Apache-2.0
"""Laws of the pseudo cameras near seen views, in both frames and for degenerate captures."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from ps4pro_nerfstudio.pseudo_views.perturbed import (
    PerturbedCameras,
    PerturbedCamerasConfig,
    depth_bounds,
    perturbed_cameras,
    told_depth_bounds,
)
from tests.conftest import look_at

BOUNDS = (2.0, 9.0)
FRAMES = ("llff", "dtu")
SMALL = PerturbedCamerasConfig(n=500)
NOISELESS = replace(SMALL, sigma_min=0.0, sigma_max=0.0)


def facing(count: int = 5) -> np.ndarray:
    """Cameras [N, 4, 4] side by side that look along +y at something five away; z is up."""
    places = np.linspace(-1.0, 1.0, count)
    return np.array(
        [look_at(np.array([x, -5 + 0.3 * x, 0.2 * x * x]), np.zeros(3)) for x in places]
    )


def ring(count: int = 6, height: float = 1.2) -> np.ndarray:
    angles = 2 * np.pi * np.arange(count) / count
    eyes = np.stack([4 * np.cos(angles), 4 * np.sin(angles), np.full(count, height)], axis=1)
    return np.array([look_at(eye, np.zeros(3)) for eye in eyes])


def diagonal() -> np.ndarray:
    """Two cameras whose baseline, and so a principal axis, is diagonal in their images."""
    return np.array([look_at(np.array([s, -5.0, s]), np.zeros(3)) for s in (-1.0, 1.0)])


def assert_proper(poses: np.ndarray) -> None:
    assert np.isfinite(poses).all()
    rotations = poses[:, :, :3].astype(np.float64)
    np.testing.assert_allclose(
        rotations @ rotations.swapaxes(1, 2), np.broadcast_to(np.eye(3), rotations.shape), atol=1e-6
    )
    np.testing.assert_allclose(np.linalg.det(rotations), 1.0, atol=1e-6)


@pytest.mark.parametrize("frame", FRAMES)
@pytest.mark.parametrize("seen", [facing(), ring(), facing(2), facing(3)[:, :3]])
def test_cameras_are_rigid_and_near_their_source(frame, seen) -> None:
    cameras = perturbed_cameras(seen, BOUNDS, replace(SMALL, frame=frame))
    assert cameras.camera_to_worlds.shape == (500, 3, 4)
    assert cameras.camera_to_worlds.dtype == np.float32
    assert_proper(cameras.camera_to_worlds)
    assert set(cameras.source) == set(range(len(seen)))
    offsets = cameras.camera_to_worlds[:, :, 3] - seen[cameras.source][:, :3, 3]
    centres = seen[:, :3, 3] - seen[:, :3, 3].mean(axis=0)
    # No principal axis of the seen cameras is longer than their largest distance from the mean.
    unit = 0.75 * BOUNDS[0] if frame == "llff" else np.linalg.norm(centres, axis=1).max()
    assert np.linalg.norm(offsets, axis=1).max() < 5 * 0.05 * unit


@pytest.mark.parametrize("frame", FRAMES)
@pytest.mark.parametrize("seen", [facing(), ring(), facing(2), diagonal()])
def test_without_noise_a_camera_stands_at_its_source_and_looks_at_the_common_point(
    frame, seen
) -> None:
    cameras = perturbed_cameras(seen, BOUNDS, replace(NOISELESS, frame=frame))
    poses = cameras.camera_to_worlds.astype(np.float64)
    np.testing.assert_allclose(poses[:, :, 3], seen[cameras.source][:, :3, 3], atol=1e-6)
    towards = cameras.look_at - poses[:, :, 3]
    towards /= np.linalg.norm(towards, axis=1, keepdims=True)
    np.testing.assert_allclose(-poses[:, :, 2], towards, atol=1e-5)
    up = seen[:, :3, 1].mean(axis=0)
    assert (poses[:, :, 1] @ up > 0.8).all()
    assert (np.abs(poses[:, :, 0] @ up) < 0.2).all()


def test_noise_grows_from_its_smallest_to_its_largest() -> None:
    sigma = perturbed_cameras(facing(), BOUNDS, SMALL).sigma
    assert sigma[0] == sigma[98] == 0.01
    assert sigma[-1] == pytest.approx(0.05)
    assert (np.diff(sigma) >= 0).all()
    assert sigma[249] == pytest.approx(0.025)


@pytest.mark.parametrize("frame, unit", [("llff", 1.5), ("dtu", 7.875)])
def test_noise_reaches_into_wide_gaps(frame, unit) -> None:
    """Views at x = 0, 4.5, 9 and 15: gaps 4.5, 4.5, 4.5 and 6. The units are 1.5 and, from the mean
    of the positions at 7.125, 7.875."""
    seen = np.tile(np.eye(4), (4, 1, 1))
    seen[:, 0, 3] = [0.0, 4.5, 9.0, 15.0]
    wide = replace(SMALL, frame=frame, gap_share=0.3)
    cameras = perturbed_cameras(seen, BOUNDS, wide)
    assert cameras.sigma[-1] == pytest.approx(0.3 * 4.5 / unit)
    assert cameras.sigma[0] == pytest.approx(0.01)
    assert (np.diff(cameras.sigma) >= 0).all()


@pytest.mark.parametrize("spread, share", [(1.0, 0.3), (0.0, 0.3), (100.0, 0.0)])
def test_narrow_gaps_leave_the_noise_as_published(spread, share) -> None:
    """A gap of .1 / 1.5 is below .05 / .3; no gap is, too; and without share any gap counts not."""
    seen = np.tile(np.eye(4), (3, 1, 1))
    seen[:, 0, 3] = [0.0, 0.1 * spread, 0.2 * spread]
    plain = perturbed_cameras(seen, BOUNDS, SMALL)
    shared = perturbed_cameras(seen, BOUNDS, replace(SMALL, gap_share=share))
    np.testing.assert_array_equal(shared.camera_to_worlds, plain.camera_to_worlds)
    np.testing.assert_array_equal(shared.sigma, plain.sigma)


def test_noise_has_the_size_that_sigma_says() -> None:
    """Offsets of a coordinate have variance (sigma * 0.75 * b_min)^2 where nothing is clipped."""
    config = replace(SMALL, n=4000, sigma_min=0.02, sigma_max=0.02)
    seen = facing(2) * 1.0
    seen[:, :3, 3] *= 0.1
    cameras = perturbed_cameras(seen, BOUNDS, config)
    offsets = cameras.camera_to_worlds[:, :, 3] - seen[cameras.source][:, :3, 3]
    assert np.std(offsets, axis=0) == pytest.approx(0.02 * 0.75 * BOUNDS[0], rel=0.05)


def test_what_is_looked_at_has_noise_of_the_same_size() -> None:
    """Optical axes cross the plane z = a_0 where n_2 moved a_0 to, to first order."""
    config = replace(SMALL, n=4000, sigma_min=0.02, sigma_max=0.02)
    cameras = perturbed_cameras(np.eye(4)[None], BOUNDS, config)
    right_up, height = np.split(cameras.camera_to_worlds.astype(np.float64), [2], axis=1)
    slopes = right_up[:, :, 2] / height[:, :, 2]
    crossings = right_up[:, :, 3] - slopes * (height[:, :, 3] - cameras.look_at[2])
    assert np.std(crossings, axis=0) == pytest.approx(0.02 * 0.75 * BOUNDS[0], rel=0.05)


def test_focus_distance_averages_disparities() -> None:
    """1/f = 0.25 / (0.9 * 2) + 0.75 / (5 * 9) = 0.155556, so f = 6.428571 along -z."""
    cameras = perturbed_cameras(np.eye(4)[None], BOUNDS, SMALL)
    np.testing.assert_allclose(cameras.look_at, [0, 0, -6.428571], atol=1e-5)


def test_the_common_point_of_dtu_is_where_the_axes_meet() -> None:
    cameras = perturbed_cameras(ring(), BOUNDS, replace(SMALL, frame="dtu"))
    np.testing.assert_allclose(cameras.look_at, 0.0, atol=1e-9)


@pytest.mark.parametrize("frame, noise", [("llff", SMALL), ("dtu", NOISELESS)])
def test_a_moved_turned_and_scaled_capture_gives_the_cameras_moved_likewise(frame, noise) -> None:
    """For `dtu` without noise: the signs of principal axes, and so the noise, are arbitrary."""
    config = replace(noise, frame=frame)
    seen = facing()
    rotation = Rotation.from_rotvec([0.4, -1.3, 2.0]).as_matrix()
    moved = seen.copy()
    moved[:, :3, :3] = rotation @ seen[:, :3, :3]
    moved[:, :3, 3] = 3.0 * seen[:, :3, 3] @ rotation.T + [1.0, -2.0, 3.0]
    here = perturbed_cameras(seen, BOUNDS, config).camera_to_worlds
    there = perturbed_cameras(moved, (3 * BOUNDS[0], 3 * BOUNDS[1]), config).camera_to_worlds
    np.testing.assert_allclose(there[:, :, :3], rotation @ here[:, :, :3], atol=1e-5)
    expected = 3.0 * here[:, :, 3] @ rotation.T + [1.0, -2.0, 3.0]
    np.testing.assert_allclose(there[:, :, 3], expected, atol=1e-5)


def test_positions_stay_in_the_cube_where_their_source_is_in_it() -> None:
    """The unit is 0.75 * 2: cameras at +/- 1.5 stand on two faces of the cube."""
    seen = np.tile(np.eye(4), (2, 1, 1))
    seen[:, 0, 3] = [-1.5, 1.5]
    cameras = perturbed_cameras(seen, BOUNDS, replace(SMALL, sigma_max=0.5))
    assert np.abs(cameras.camera_to_worlds[:, :, 3]).max() <= 1.5 + 1e-6
    assert (np.abs(cameras.camera_to_worlds[:, 0, 3]) == 1.5).mean() > 0.3


def degenerate_captures() -> dict[str, np.ndarray]:
    one = facing(1)
    opposite = np.array([look_at(np.array([s * 3.0, 0, 0]), np.zeros(3)) for s in (-1, 1)])
    back_to_back = opposite.copy()
    back_to_back[:, :3, 3] = 0.0
    parallel = np.tile(np.eye(4), (3, 1, 1))
    parallel[:, 0, 3] = [-1, 0, 1]
    upside_down = np.tile(one, (2, 1, 1))
    upside_down[1, :3, :2] *= -1
    pole = np.tile(np.eye(4), (2, 1, 1))
    pole[1, :3, :3] = Rotation.from_rotvec([0, 0, np.pi]).as_matrix()
    return {
        "one view": one,
        "identical": np.tile(one, (3, 1, 1)),
        "opposite": opposite,
        "back to back": back_to_back,
        "parallel": parallel,
        "upside down": upside_down,
        "turned about the axis": pole,
        "ring": ring(8),
    }


@pytest.mark.parametrize("frame", FRAMES)
@pytest.mark.parametrize("name", degenerate_captures())
def test_degenerate_captures_give_proper_cameras(frame, name) -> None:
    seen = degenerate_captures()[name]
    for config in (SMALL, NOISELESS):
        cameras = perturbed_cameras(seen, BOUNDS, replace(config, frame=frame))
        assert_proper(cameras.camera_to_worlds)
        offsets = cameras.camera_to_worlds[:, :, 3] - seen[cameras.source][:, :3, 3]
        assert np.abs(offsets).max() < 1.0


def test_a_camera_at_the_common_point_keeps_the_direction_of_its_source() -> None:
    seen = ring(4)
    centre = seen[:1].copy()
    centre[:, :3, 3] = 0.0
    seen = np.concatenate([seen, centre])
    cameras = perturbed_cameras(seen, BOUNDS, replace(NOISELESS, frame="dtu"))
    assert_proper(cameras.camera_to_worlds)
    at_centre = cameras.camera_to_worlds[cameras.source == 4]
    np.testing.assert_allclose(
        at_centre[:, :, 2], np.broadcast_to(seen[4, :3, 2], at_centre[:, :, 2].shape), atol=1e-6
    )


def test_a_line_of_sight_along_the_mean_up_vector_keeps_the_up_of_the_source() -> None:
    """Above a ring whose up is z: cameras that look down, to the sides upright, and on edge."""
    down = Rotation.from_euler("z", [[0], [180]], degrees=True).as_matrix()
    upright = Rotation.from_euler("xz", [(90, a) for a in (0, 90, 180, 270)], degrees=True)
    on_edge = np.array([[[0, 0, -s], [0, s, 0], [1, 0, 0]] for s in (1, -1)])  # right is z
    above = np.tile(np.eye(4), (8, 1, 1))
    above[:, :3, :3] = np.concatenate([down, upright.as_matrix(), on_edge])
    above[:, 2, 3] = 3.0
    seen = np.concatenate([ring(6, height=0.0), above])
    cameras = perturbed_cameras(seen, BOUNDS, replace(NOISELESS, frame="dtu"))
    assert_proper(cameras.camera_to_worlds)
    for source in range(6, 14):
        kept = 0 if 8 <= source < 12 else 1  # right where up is the line of sight
        for pose in cameras.camera_to_worlds[cameras.source == source]:
            np.testing.assert_allclose(pose[:, kept], seen[source, :3, kept], atol=1e-6)


def _drawn(cameras: PerturbedCameras, source: int, moments: NDArray) -> list[int]:
    drawn = [cameras.draw_index(source, progress) for progress in moments]
    assert None not in drawn
    return [index for index in drawn if index is not None]


def test_growing_order_meets_more_and_more_noise() -> None:
    cameras = perturbed_cameras(facing(), BOUNDS, SMALL)
    for source in range(len(facing())):
        drawn = _drawn(cameras, source, np.linspace(-0.1, 1.1, 200))
        assert all(cameras.source[index] == source for index in drawn)
        of_source = np.flatnonzero(cameras.source == source)
        assert (drawn[0], drawn[-1]) == (of_source[0], of_source[-1])
        assert (np.diff(cameras.sigma[drawn]) >= 0).all()


def test_shuffled_order_is_another_order_of_the_same_cameras() -> None:
    shuffled = perturbed_cameras(facing(), BOUNDS, replace(SMALL, order="shuffled"))
    drawn = _drawn(shuffled, 0, (np.arange(500) + 0.5) / 500)
    met = list(dict.fromkeys(drawn))
    assert sorted(met) == np.flatnonzero(shuffled.source == 0).tolist()
    assert abs(np.corrcoef(met, range(len(met)))[0, 1]) < 0.4
    growing = perturbed_cameras(facing(), BOUNDS, SMALL)
    np.testing.assert_array_equal(shuffled.camera_to_worlds, growing.camera_to_worlds)


def test_a_view_without_cameras_draws_none() -> None:
    one = perturbed_cameras(facing(), BOUNDS, replace(SMALL, n=1))
    (source,) = one.source
    assert one.draw_index(int(source), 0.5) == 0
    assert one.draw_index(int(source) + 1, 0.5) is None


def test_the_seed_decides_everything() -> None:
    config = replace(SMALL, order="shuffled", seed=7)
    one, same = (perturbed_cameras(facing(), BOUNDS, config) for _ in range(2))
    other = perturbed_cameras(facing(), BOUNDS, replace(config, seed=8))
    np.testing.assert_array_equal(one.camera_to_worlds, same.camera_to_worlds)
    np.testing.assert_array_equal(one.order, same.order)
    assert (one.camera_to_worlds != other.camera_to_worlds).any()
    assert (one.order != other.order).any()


@pytest.mark.parametrize("bounds", [(0.0, 1.0), (2.0, 1.0), (1.0, np.inf), (np.nan, 1.0)])
def test_bounds_that_are_none_are_refused(bounds) -> None:
    with pytest.raises(ValueError, match="depth_bounds"):
        perturbed_cameras(facing(), bounds, SMALL)


@pytest.mark.parametrize(
    "options",
    [{"n": 0}, {"sigma_min": -0.1}, {"sigma_min": 0.2, "sigma_max": 0.1}, {"gap_share": -1}],
)
def test_impossible_options_are_refused(options) -> None:
    with pytest.raises(ValueError, match="must"):
        PerturbedCamerasConfig(**options)


def test_no_view_is_refused() -> None:
    with pytest.raises(ValueError, match="camera_to_worlds"):
        perturbed_cameras(np.zeros((0, 3, 4)), BOUNDS, SMALL)


def test_told_depth_bounds_are_the_nearest_and_the_farthest() -> None:
    assert told_depth_bounds([[2.0, 7.0], [1.5, 3.0], [4.0, 9.0]]) == (1.5, 9.0)


@pytest.mark.parametrize(
    "bad",
    [(0.0, 1.0), (-1.0, 1.0), (2.0, 2.0), (2.0, 1.0), (1.0, np.inf), (np.nan, 1.0), (1.0, np.nan)],
)
def test_told_depth_bounds_that_are_none_are_not_believed(bad) -> None:
    assert told_depth_bounds([(1.0, 5.0), bad, (1.0, 5.0)]) is None
    assert told_depth_bounds(np.zeros((0, 2))) is None


def test_depth_bounds_are_quantiles_of_what_the_views_see() -> None:
    """101 depths 0, 0.1 ... 10 on the axis of a camera: quantiles of those before it, plus 4."""
    poses = np.tile(np.eye(4), (2, 1, 1))[:, :3]
    poses[1, 2, 3] = 100.0  # sees only what is far from the first
    intrinsics = np.tile([[50.0, 0, 32], [0, 50, 24], [0, 0, 1]], (2, 1, 1))
    sizes = [[64, 48], [64, 48]]
    depths = 4.0 + np.linspace(0, 10, 101)
    points = np.stack([0 * depths, 0 * depths, -depths], axis=1)
    aside = points + np.array([100.0, 0.0, 0.0])
    behind = points * [1, 1, -1]
    seen = np.concatenate([points, aside, behind])
    assert depth_bounds(seen, poses[:1], intrinsics[:1], sizes[:1]) == pytest.approx((4.2, 13.8))
    both = depth_bounds(seen, poses, intrinsics, sizes)
    everything = np.concatenate([depths, 100 + depths, 100 - depths])
    assert both == pytest.approx(tuple(np.quantile(everything, [0.02, 0.98])))


def test_too_few_points_give_no_bounds() -> None:
    pose, intrinsics = np.eye(4)[None], np.array([[[50.0, 0, 32], [0, 50, 24], [0, 0, 1]]])
    points = np.tile([0.0, 0.0, -2.0], (8, 1))
    assert depth_bounds(points, pose, intrinsics, [[64, 48]]) == (2.0, 2.0)
    assert depth_bounds(points[:7], pose, intrinsics, [[64, 48]]) is None
    assert depth_bounds(np.zeros((0, 3)), pose, intrinsics, [[64, 48]]) is None
