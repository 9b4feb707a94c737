# SPDX-License-Identifier: Apache-2.0
"""Depth of photographs from each other: planes found, their cost, and what is not believed."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch

from ps4pro_nerfstudio.geometry.cameras import pixel_centres, project, relative_pose
from ps4pro_nerfstudio.initialization import kept, patch_match, stereo
from ps4pro_nerfstudio.initialization.patch_match import (
    RADIUS,
    STRIDE,
    WORST,
    match_planes,
)
from ps4pro_nerfstudio.initialization.stereo import StereoConfig, StereoDepth, stereo_depths
from ps4pro_nerfstudio.initialization.views import TrainViews

WIDTH, HEIGHT, FOCAL = 96, 72, 90.0
INTRINSICS = np.array([[FOCAL, 0, WIDTH / 2], [0, FOCAL, HEIGHT / 2], [0, 0, 1.0]])
NORMAL, OFFSET = np.array([0.3, -0.2, 1.0]), 4.0
"""The wall: NORMAL @ X = OFFSET in the world, which has OpenCV axes."""
CONFIG = StereoConfig(max_long_side=WIDTH)


def texture(points: np.ndarray) -> np.ndarray:
    """Grey [..., 3] in 0 to 255 at points [..., 3]: waves of many lengths, none repeated."""
    generator = np.random.default_rng(3)
    waves = generator.normal(0, 6.0, (24, 3))
    phase = generator.uniform(0, 2 * np.pi, 24)
    grey = np.sin(points @ waves.T + phase).sum(-1) / np.sqrt(24)
    return np.clip(128 + 60 * grey, 0, 255)[..., None].repeat(3, -1).astype(np.uint8)


def rays(pose: np.ndarray) -> np.ndarray:
    """Directions [H, W, 3] of the pixels in the world, of depth 1 along the optical axis."""
    centres = pixel_centres(HEIGHT, WIDTH)
    homogeneous = np.concatenate([centres, np.ones((HEIGHT, WIDTH, 1))], axis=-1)
    return homogeneous @ np.linalg.inv(INTRINSICS).T @ pose[:3, :3].T


def true_depth(pose: np.ndarray) -> np.ndarray:
    return (OFFSET - pose[:3, 3] @ NORMAL) / (rays(pose) @ NORMAL)


def camera(x: float, turn: float = 0.0, roll: float = 0.0) -> np.ndarray:
    """OpenCV axes; `turn` about the vertical and `roll` about the optical axis, in degrees."""
    a, b = np.radians([turn, roll])
    about_y = np.array([[np.cos(a), 0, np.sin(a)], [0, 1, 0], [-np.sin(a), 0, np.cos(a)]])
    about_z = np.array([[np.cos(b), -np.sin(b), 0], [np.sin(b), np.cos(b), 0], [0, 0, 1]])
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = about_y @ about_z, (x, 0.0, 0.0)
    return pose


POSES = [camera(-0.9, 12.0), camera(0.0, 0.0, 25.0), camera(0.9, -12.0)]
"""24 degrees apart, the one in the middle tilted: more than a flow between them would bear."""


def picture(pose: np.ndarray) -> np.ndarray:
    return texture(pose[:3, 3] + rays(pose) * true_depth(pose)[..., None])


def views(
    poses: list[np.ndarray] = POSES, images: list[np.ndarray] | None = None, masks=None
) -> TrainViews:
    flip = np.diag([1.0, -1.0, -1.0, 1.0])
    return TrainViews.checked(
        images or [picture(pose) for pose in poses],
        masks or [None] * len(poses),
        np.stack([pose @ flip for pose in poses]),
        np.stack([INTRINSICS] * len(poses)),
        [str(index) for index in range(len(poses))],
    )


@pytest.fixture(scope="module")
def known() -> np.ndarray:
    """Points of the wall [P, 3], a few pixels of the middle photograph."""
    pose = POSES[1]
    points = pose[:3, 3] + rays(pose) * true_depth(pose)[..., None]
    return points[::9, ::9].reshape(-1, 3)


@pytest.fixture(scope="module")
def found(known) -> list[StereoDepth | None]:
    return stereo_depths(views(), known, CONFIG)


def one(found: list[StereoDepth | None], index: int) -> StereoDepth:
    result = found[index]
    assert result is not None
    return result


def both_show(index: int, other: int) -> np.ndarray:
    """Pixels [H, W] of a photograph whose patches another one shows as well."""
    points = POSES[index][:3, 3] + rays(POSES[index]) * true_depth(POSES[index])[..., None]
    pixels, _ = project(points, POSES[other], INTRINSICS)
    return np.all((pixels >= RADIUS) & (pixels < np.array([WIDTH, HEIGHT]) - RADIUS), axis=-1)


def motions_to(index: int, others: list[int]) -> np.ndarray:
    motions = []
    for other in others:
        motion = relative_pose(POSES[index], POSES[other])
        turn = INTRINSICS @ motion[:3, :3] @ np.linalg.inv(INTRINSICS)
        motions.append(np.concatenate([turn, INTRINSICS @ motion[:3, 3:]], axis=1))
    return np.stack(motions).astype(np.float32)


def true_planes(index: int) -> np.ndarray:
    """Inverse depth of the wall and its gradient, in the pixels of a photograph."""
    inverse = 1.0 / true_depth(POSES[index])
    slope_y, slope_x = np.gradient(inverse)
    return np.stack([inverse, slope_x, slope_y], axis=-1).astype(np.float32)


def grey(index: int) -> np.ndarray:
    return picture(POSES[index])[..., 0].astype(np.float32) / 255.0


def costs_of(planes: np.ndarray, index: int, others: list[int], rounds: int = 0) -> np.ndarray:
    """Costs of the planes of a photograph; with rounds, the planes are improved in place."""
    return match_planes(
        planes,
        grey(index),
        np.stack([grey(other) for other in others]),
        np.array([[WIDTH, HEIGHT]] * len(others)),
        motions_to(index, others),
        (0.05, 2.0),
        FOCAL,
        rounds=rounds,
        seed=0,
    )


def cost_by_definition(plane: np.ndarray, row: int, column: int, index: int, other: int) -> float:
    """1 - NCC of a patch with its image under the plane, written as it is defined, in float64."""
    centre, there = grey(index).astype(np.float64), grey(other).astype(np.float64)
    motion = motions_to(index, [other])[0].astype(np.float64)
    here, seen, weights = [], [], []
    for dy in range(-RADIUS, RADIUS + 1, STRIDE):
        for dx in range(-RADIUS, RADIUS + 1, STRIDE):
            w = plane[0] + dx * plane[1] + dy * plane[2]
            x, y = column + 0.5 + dx, row + 0.5 + dy
            u, v, z = motion[:, :3] @ (x, y, 1.0) + motion[:, 3] * w
            u, v = u / z - 0.5, v / z - 0.5
            c, r = int(np.floor(u)), int(np.floor(v))
            fu, fv = u - c, v - r
            block = there[r : r + 2, c : c + 2]
            seen.append(np.array([1 - fv, fv]) @ block @ np.array([1 - fu, fu]))
            value = centre[row + dy, column + dx]
            here.append(value)
            weights.append(np.exp(-abs(value - centre[row, column]) / 0.15))
    a, b, w = np.array(here), np.array(seen), np.array(weights) / np.sum(weights)
    a, b = a - w @ a, b - w @ b
    noise = (2 / 255) ** 2
    return 1.0 - (w @ (a * b)) / np.sqrt((w @ a**2 + noise) * (w @ b**2 + noise))


def test_cost_is_one_minus_the_correlation_of_the_patches() -> None:
    planes = true_planes(1)
    planes[..., 0] *= 1.03  # a little off: costs differ from pixel to pixel
    cost = costs_of(planes.copy(), 1, [2])
    shown = both_show(1, 2)
    shown[: 2 * RADIUS], shown[-2 * RADIUS :] = False, False
    shown[:, : 2 * RADIUS], shown[:, -2 * RADIUS :] = False, False
    # The tilted patch and its image reach farther than both_show's margin.
    shown = cv2.erode(shown.astype(np.uint8), np.ones((15, 15))).astype(bool)
    rows, columns = np.nonzero(shown)
    assert len(rows) > 100
    for place in range(0, len(rows), max(len(rows) // 20, 1)):
        row, column = int(rows[place]), int(columns[place])
        expected = cost_by_definition(planes[row, column].astype(float), row, column, 1, 2)
        assert cost[row, column] == pytest.approx(expected, abs=2e-4)


def test_true_planes_cost_next_to_nothing_and_others_more() -> None:
    shown = both_show(1, 0)
    true = costs_of(true_planes(1), 1, [0])[shown]
    wrong = true_planes(1) * np.float32(1.2)
    assert np.median(true) < 0.02
    assert np.median(costs_of(wrong, 1, [0])[shown]) > 0.5


def test_cost_is_that_of_the_photograph_that_fits_best() -> None:
    planes = true_planes(1) * np.float32(1.02)
    apart = np.minimum(costs_of(planes.copy(), 1, [0]), costs_of(planes.copy(), 1, [2]))
    np.testing.assert_allclose(costs_of(planes.copy(), 1, [0, 2]), apart, atol=1e-6)


def test_a_plane_that_no_photograph_shows_costs_most() -> None:
    planes = np.full((HEIGHT, WIDTH, 3), (50.0, 0.0, 0.0), np.float32)  # right before the camera
    assert (costs_of(planes, 1, [0, 2]) == WORST).all()


def test_rounds_only_ever_lower_the_cost() -> None:
    planes = np.zeros((HEIGHT, WIDTH, 3), np.float32)
    planes[..., 0] = np.random.default_rng(0).uniform(0.1, 1.0, (HEIGHT, WIDTH))
    before = costs_of(planes.copy(), 1, [0, 2])
    after = costs_of(planes, 1, [0, 2], rounds=1)
    assert (after <= before).all()
    np.testing.assert_allclose(costs_of(planes, 1, [0, 2]), after, atol=1e-4)


def test_result_does_not_depend_on_the_number_of_threads() -> None:
    results = []
    threads = torch.get_num_threads()
    for count in (1, 2):
        torch.set_num_threads(count)
        planes = true_planes(1) * np.float32(1.3)
        costs_of(planes, 1, [0, 2], rounds=2)
        results.append(planes)
    torch.set_num_threads(threads)
    np.testing.assert_array_equal(*results)


def test_slanted_wall_is_found_across_24_degrees(found) -> None:
    for index in range(3):
        depth = one(found, index).depth
        shown = both_show(index, 0 if index else 1)
        right = np.abs(depth / true_depth(POSES[index]) - 1.0) < 0.01
        assert right[shown].mean() > 0.9
        assert right[depth > 0].mean() > 0.97


def test_observations_are_points_of_the_wall(found) -> None:
    seen = one(found, 1)
    points = seen.observations()
    distance = np.abs(points.xyz @ NORMAL - OFFSET) / np.linalg.norm(NORMAL)
    assert np.quantile(distance, 0.97) < 0.05
    assert len(points.xyz) == (seen.depth > 0).sum() == (seen.confidence > 0).sum()
    np.testing.assert_allclose(points.pixel_size, seen.depth[seen.depth > 0] / FOCAL, rtol=1e-6)
    row, column = np.nonzero(seen.depth)
    np.testing.assert_array_equal(points.rgb, seen.image[row, column])


def test_pixels_beside_a_known_point_can_be_left_out(found) -> None:
    seen = one(found, 1)
    depth = seen.depth.copy()
    depth[20:60, 20:80] = true_depth(POSES[1])[20:60, 20:80]
    seen = replace(seen, depth=depth)
    point = (POSES[1][:3, 3] + rays(POSES[1]) * depth[..., None].astype(float))[40, 50]
    everything, rest = seen.observations(), seen.observations(point[None])
    gone = {tuple(row) for row in everything.xyz} - {tuple(row) for row in rest.xyz}
    pixels, _ = project(np.array(sorted(gone)), POSES[1], INTRINSICS)
    assert len(gone) == 25
    assert np.abs(pixels - (50.5, 40.5)).max() < 2.01
    behind = POSES[1][:3, 3] + 1.2 * (point - POSES[1][:3, 3])
    assert len(seen.observations(behind[None]).xyz) == len(everything.xyz)


def test_masked_pixels_have_no_depth(known) -> None:
    mask = np.ones((HEIGHT, WIDTH), bool)
    mask[:, : WIDTH // 2] = False
    found = stereo_depths(views(masks=[None, mask, None]), known, CONFIG)
    assert not one(found, 1).depth[:, : WIDTH // 2].any()
    assert one(found, 1).depth[:, WIDTH // 2 :].any()


def test_pictures_without_structure_say_nothing(known) -> None:
    flat = [np.full((HEIGHT, WIDTH, 3), 90, np.uint8)] * 3
    found = stereo_depths(views(images=flat), known, CONFIG)
    assert all(not one(found, index).depth.any() for index in range(3))


def test_pictures_of_other_things_say_little(known) -> None:
    generator = np.random.default_rng(0)
    noise = [generator.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8) for _ in range(3)]
    found = stereo_depths(views(images=noise), known, CONFIG)
    assert max((one(found, index).depth > 0).mean() for index in range(3)) < 0.02


def test_no_neighbour_or_nothing_known_gives_none(known) -> None:
    assert stereo_depths(views(POSES[:1]), known, CONFIG) == [None]
    assert stereo_depths(views(), known[:5], CONFIG) == [None, None, None]
    same_place = [POSES[1], POSES[1]]  # pure copies: no parallax
    assert stereo_depths(views(same_place), known, CONFIG) == [None, None]


def test_a_narrow_angle_is_not_believed(known) -> None:
    near = [camera(0.0), camera(0.02)]
    found = stereo_depths(views(near), known, CONFIG)
    assert not any(one(found, index).depth.any() for index in range(2))


def test_photographs_of_different_sizes(known) -> None:
    flip = np.diag([1.0, -1.0, -1.0, 1.0])
    images = [picture(pose) for pose in POSES]
    images[2] = np.ascontiguousarray(images[2][: HEIGHT - 12, : WIDTH - 8])
    mixed = TrainViews.checked(
        images, [None] * 3, np.stack([p @ flip for p in POSES]), np.stack([INTRINSICS] * 3), "abc"
    )
    found = stereo_depths(mixed, known, CONFIG)
    depth = one(found, 2).depth
    assert depth.shape == (HEIGHT - 12, WIDTH - 8)
    error = np.abs(depth / true_depth(POSES[2])[: HEIGHT - 12, : WIDTH - 8] - 1.0)
    assert (error[depth > 0] < 0.01).mean() > 0.95
    assert (depth > 0).mean() > 0.3


def test_depths_are_kept_and_made_anew_when_damaged(known, found, tmp_path, monkeypatch) -> None:
    stereo_depths(views(), known, CONFIG, tmp_path)
    (file,) = tmp_path.iterdir()
    monkeypatch.setattr(patch_match, "match_planes", None)  # nothing is matched again
    again = stereo_depths(views(), known, CONFIG, tmp_path)
    for index in range(3):
        np.testing.assert_array_equal(one(again, index).depth, one(found, index).depth)
        np.testing.assert_array_equal(one(again, index).confidence, one(found, index).confidence)
    # What does not change a depth does not change the file.
    stereo_depths(views(), known, replace(CONFIG, everywhere=False, max_views=7), tmp_path)
    with pytest.raises(TypeError):  # other options, another file
        stereo_depths(views(), known, replace(CONFIG, seed=1), tmp_path)
    monkeypatch.undo()
    file.write_bytes(file.read_bytes()[:100])
    anew = stereo_depths(views(), known, CONFIG, tmp_path)
    np.testing.assert_array_equal(one(anew, 1).depth, one(found, 1).depth)
    assert len(list(tmp_path.iterdir())) == 1


def _matched_again(monkeypatch: pytest.MonkeyPatch, stop_at: int | None) -> list[float]:
    """Grey levels of the photographs that are matched from now on; the given one is a failure.

    Each is matched twice: small, then at its own size.
    """
    matched: list[float] = []
    really = patch_match.match_planes

    def match(planes, picture, *arguments):
        matched.append(float(picture.mean()))
        if len(matched) == stop_at:
            raise KeyboardInterrupt
        return really(planes, picture, *arguments)

    monkeypatch.setattr(patch_match, "match_planes", match)
    return matched


@pytest.mark.parametrize(("stop_at", "num_finished"), [(2, 0), (3, 1), (5, 2), (6, 2)])
def test_an_interrupted_run_loses_only_the_photograph_it_was_at(
    known, found, tmp_path, monkeypatch, stop_at, num_finished
) -> None:
    """Broken off at the first, second or third photograph, while it is small or at its own size."""
    said: list[str] = []
    monkeypatch.setattr(stereo, "say", said.append)
    with monkeypatch.context() as patch:
        _matched_again(patch, stop_at)
        with pytest.raises(KeyboardInterrupt):
            stereo_depths(views(), known, CONFIG, tmp_path)
    parts = sorted(tmp_path.iterdir())
    assert len(parts) == num_finished
    assert all(part.name.startswith(".part-") for part in parts)
    steps: list[tuple[int, int]] = []
    with monkeypatch.context() as patch:
        matched = _matched_again(patch, None)
        again = stereo_depths(
            views(), known, CONFIG, tmp_path, lambda done, total: steps.append((done, total))
        )
    assert matched[1::2] == [float(grey(i).mean()) for i in range(num_finished, 3)]
    assert steps == [(1, 3), (2, 3), (3, 3)]
    assert len(said) == (num_finished > 0)
    for index in range(3):
        np.testing.assert_array_equal(one(again, index).depth, one(found, index).depth)
        np.testing.assert_array_equal(one(again, index).confidence, one(found, index).confidence)
    assert [path.name.startswith(".") for path in tmp_path.iterdir()] == [False]


def test_a_damaged_part_is_matched_again(known, found, tmp_path, monkeypatch) -> None:
    with monkeypatch.context() as patch:
        _matched_again(patch, 5)
        with pytest.raises(KeyboardInterrupt):
            stereo_depths(views(), known, CONFIG, tmp_path)
    first = sorted(tmp_path.iterdir())[0]
    first.write_bytes(first.read_bytes()[:1000])
    matched = _matched_again(monkeypatch, None)
    again = stereo_depths(views(), known, CONFIG, tmp_path)
    assert len(matched) == 2 * 2
    np.testing.assert_array_equal(one(again, 0).depth, one(found, 0).depth)


def test_parts_of_a_run_killed_at_its_very_end_are_cleared_away(known, tmp_path) -> None:
    stereo_depths(views(), known, CONFIG, tmp_path)
    (file,) = tmp_path.iterdir()
    (tmp_path / f".part-{file.stem}_0001.npz").write_bytes(b"left")
    other = tmp_path / ".part-stereo_other_0001.npz"
    other.write_bytes(b"of another run at work")
    stereo_depths(views(), known, CONFIG, tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted([file, other])


def test_a_disk_that_refuses_a_part_is_asked_once(known, found, tmp_path, monkeypatch) -> None:
    warned: list[str] = []
    monkeypatch.setattr(kept, "warn", warned.append)
    (tmp_path / "file").write_text("in the way")
    depths = stereo_depths(views(), known, CONFIG, tmp_path / "file" / "stereo")
    np.testing.assert_array_equal(one(depths, 1).depth, one(found, 1).depth)
    assert len(warned) == 1


def test_a_photograph_without_depth_is_kept_as_such(known, tmp_path) -> None:
    away = camera(0.0, 180.0)
    some = [*POSES, away]
    images = [picture(pose) for pose in POSES] + [picture(POSES[0])]
    first = stereo_depths(views(some, images), known, CONFIG, tmp_path)
    again = stereo_depths(views(some, images), known, CONFIG, tmp_path)
    assert first[3] is None
    assert again[3] is None
    np.testing.assert_array_equal(one(again, 0).depth, one(first, 0).depth)


def test_depth_does_not_depend_on_the_frame_of_the_world(known, found) -> None:
    """A similarity of the world moves the points and scales the depths, nothing else."""
    move = camera(0.4, 33.0, 10.0)
    move[:3, 3] = (3.0, -1.0, 7.0)
    moved = []
    for pose in POSES:
        there = move @ pose
        there[:3, 3] = 2.0 * there[:3, 3]
        moved.append(there)
    points = 2.0 * (known @ move[:3, :3].T + move[:3, 3])
    images = [picture(pose) for pose in POSES]
    result = stereo_depths(views(moved, images), points, CONFIG)
    for index in range(3):
        both = (one(result, index).depth > 0) & (one(found, index).depth > 0)
        ratio = one(result, index).depth[both] / one(found, index).depth[both]
        assert np.median(np.abs(ratio - 2.0)) < 1e-3
        assert both.mean() > 0.9 * (one(found, index).depth > 0).mean()
