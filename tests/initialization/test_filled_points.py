# SPDX-License-Identifier: Apache-2.0
"""Filled points: in blank spots alone, at the depth of their surroundings, never contradicted."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ps4pro_nerfstudio.geometry.cameras import back_project, project
from ps4pro_nerfstudio.initialization.dense_points import PointCloud
from ps4pro_nerfstudio.initialization.filled_points import FilledPointsConfig, filled_points
from ps4pro_nerfstudio.initialization.free_space import FreeSpaceConfig, free_radii
from ps4pro_nerfstudio.initialization.views import TrainViews

WIDTH, HEIGHT, FOCAL, DEPTH = 160, 120, 140.0, 4.0
CONFIG = FilledPointsConfig(cells=40)
SPACING = WIDTH / CONFIG.cells


def wall_views(offsets: tuple[float, ...] = (-0.2, 0.2), grey: int = 120) -> TrainViews:
    """Cameras side by side before a grey wall at z = -4, looking along -z (OpenGL axes)."""
    poses = np.stack([np.eye(4)[:3]] * len(offsets))
    poses[:, 0, 3] = offsets
    intrinsics = np.array([[FOCAL, 0, WIDTH / 2], [0, FOCAL, HEIGHT / 2], [0, 0, 1.0]])
    count = len(offsets)
    image = np.full((HEIGHT, WIDTH, 3), grey, np.uint8)
    names = [str(index) for index in range(count)]
    return TrainViews.checked(
        [image.copy() for _ in range(count)],
        [None] * count,
        poses,
        np.stack([intrinsics] * count),
        names,
    )


def cloud(xyz: np.ndarray, grey: int = 120) -> PointCloud:
    return PointCloud(xyz.astype(np.float32), np.full((len(xyz), 3), grey, np.uint8))


def on_wall(rows: tuple[float, float] = (0.0, HEIGHT), depth: float = DEPTH) -> np.ndarray:
    """Points of the wall that a camera at the origin sees between two rows, every 3 px."""
    x, y = np.meshgrid(np.arange(-20.0, WIDTH + 20, 3.0), np.arange(*rows, 3.0))
    pixels = np.stack([x.ravel(), y.ravel()], axis=1)
    camera = np.diag([1.0, -1.0, -1.0, 1.0])
    return back_project(pixels, np.full(len(pixels), depth), camera, wall_views().intrinsics[0])


def seen(points: PointCloud, views: TrainViews, index: int) -> tuple[np.ndarray, np.ndarray]:
    return project(points.xyz, views.camera_to_worlds[index], views.intrinsics[index])


def test_back_projection_is_the_inverse_of_projection() -> None:
    views = wall_views()
    xyz = on_wall()
    pixels, depth = project(xyz, views.camera_to_worlds[0], views.intrinsics[0])
    back = back_project(pixels, depth, views.camera_to_worlds[0], views.intrinsics[0])
    np.testing.assert_allclose(back, xyz, atol=1e-12)


def test_nothing_is_added_where_all_is_known() -> None:
    assert len(filled_points(wall_views(), cloud(on_wall()), CONFIG)) == 0


def test_the_blank_part_of_a_wall_is_filled_once_at_its_depth() -> None:
    """The lower half is unknown. Each of its spots gets one point, though two photographs show it.

    One photograph has 40 x 15 spots below the middle; the first row lies within two spacings of
    what is known. The second photograph adds the strip that the first one does not show.
    """
    views, known = wall_views(), cloud(on_wall((0.0, HEIGHT / 2)))
    filled = filled_points(views, known, CONFIG)
    np.testing.assert_allclose(filled.xyz[:, 2], -DEPTH, atol=1e-4)
    pixels, _ = seen(filled, views, 0)
    assert pixels[:, 1].min() > HEIGHT / 2 + CONFIG.reach * SPACING - 3.0
    alone = filled_points(wall_views((-0.2,)), known, CONFIG)
    assert 40 * 12 <= len(alone) <= 40 * 14
    strip = FOCAL * 0.4 / DEPTH / SPACING * 14
    assert len(alone) < len(filled) <= len(alone) + strip + 1


def test_an_empty_map_of_a_network_counts_as_none() -> None:
    views, known = wall_views(), cloud(on_wall((0.0, HEIGHT / 2)))
    without = filled_points(views, known, CONFIG)
    empty = filled_points(views, known, CONFIG, [np.zeros((0, 0))] * 2)
    np.testing.assert_array_equal(empty.xyz, without.xyz)


def test_a_guess_lies_between_the_depths_around_it() -> None:
    """Known points left at depth 3 and right at depth 5, nothing between."""
    views = wall_views((0.0,))
    columns = seen(cloud(on_wall(depth=3.0)), views, 0)[0][:, 0]
    left, right = on_wall(depth=3.0)[columns < 50], on_wall(depth=5.0)[columns > 110]
    filled = filled_points(views, cloud(np.concatenate([left, right])), CONFIG)
    pixels, depth = seen(filled, views, 0)
    assert len(filled) > 100
    assert depth.min() >= 3.0 - 1e-6
    assert depth.max() <= 5.0 + 1e-6
    assert depth[pixels[:, 0] < 60].mean() < 3.3
    assert depth[pixels[:, 0] > 100].mean() > 4.5


def test_the_rest_of_a_slanted_wall_lies_on_its_plane() -> None:
    """Known on the left third alone; a mean of known depths would put the rest at theirs."""
    views = wall_views((0.0,))
    x, y = np.meshgrid(np.arange(0.0, WIDTH, 3.0), np.arange(0.0, HEIGHT, 3.0))
    pixels = np.stack([x.ravel(), y.ravel()], axis=1)
    depth = 1.0 / (0.2 + 5e-4 * pixels[:, 0])
    xyz = back_project(pixels, depth, views.camera_to_worlds[0], views.intrinsics[0])
    filled = filled_points(views, cloud(xyz[pixels[:, 0] < WIDTH / 3]), CONFIG)
    spots, guessed = seen(filled, views, 0)
    assert len(filled) > 700
    np.testing.assert_allclose(guessed, 1.0 / (0.2 + 5e-4 * spots[:, 0]), rtol=1e-4)


def test_no_guess_stands_where_training_keeps_the_space_around_a_camera_empty() -> None:
    """A wall that comes close, known on the left third alone, and a stray point before it."""
    views = wall_views((0.0,))
    x, y = np.meshgrid(np.arange(0.0, WIDTH, 3.0), np.arange(0.0, HEIGHT, 3.0))
    pixels = np.stack([x.ravel(), y.ravel()], axis=1)
    depth = 1.0 / (0.2 + 0.01 * pixels[:, 0])
    xyz = back_project(pixels, depth, views.camera_to_worlds[0], views.intrinsics[0])
    left = xyz[pixels[:, 0] < WIDTH / 3]
    known = np.concatenate([left, 0.1 * left[200:201]])
    (radius,) = free_radii(views, known, FreeSpaceConfig())
    filled = filled_points(views, cloud(known), CONFIG)
    assert len(filled) > 700
    assert depth.min() < radius  # there the wall itself would be removed
    assert np.linalg.norm(filled.xyz, axis=1).min() > 1.2 * radius


def test_a_guess_that_would_hide_known_points_is_dropped() -> None:
    """What the right camera knows to stand at depth 8 is not covered by guesses of the left one."""
    views = wall_views((-1.0, 1.0))
    near, far_off = on_wall((0.0, 40.0)), on_wall((40.0, 120.0), depth=8.0)
    known = cloud(np.concatenate([near, far_off + np.array([4.0, 0.0, 0.0])]))
    filled = filled_points(views, known, CONFIG)
    free = filled_points(wall_views((-1.0,)), cloud(near), CONFIG)
    far, _ = seen(cloud(known.xyz[known.xyz[:, 2] < -6.0]), views, 1)
    pixels, depth = seen(filled, views, 1)
    covers = (depth < 6.0) & (pixels[:, 0] > far[:, 0].min() + 5) & (pixels[:, 1] > 45)
    would, _ = seen(free, views, 1)
    assert ((would[:, 0] > far[:, 0].min() + 5) & (would[:, 1] > 45)).sum() > 20
    assert covers.sum() == 0


def test_a_guess_that_another_photograph_contradicts_is_dropped() -> None:
    views = wall_views()
    views.images[1][:] = 220
    known = cloud(on_wall((0.0, HEIGHT / 2)))
    filled = filled_points(views, known, CONFIG)
    for index in range(2):
        pixels, _ = seen(filled, views, 1 - index)
        mine = filled.rgb[:, 0] == views.images[index][0, 0, 0]
        inside = (pixels[:, 0] >= 0) & (pixels[:, 0] < WIDTH)
        assert not bool((mine & inside).any())
    assert len(filled_points(wall_views(), known, CONFIG)) > len(filled)


def test_masked_pixels_are_not_filled() -> None:
    views = wall_views((0.0,))
    right = np.zeros((HEIGHT, WIDTH), bool)
    right[:, WIDTH // 2 :] = True
    masked = replace(views, valid=[right])
    filled = filled_points(masked, cloud(on_wall((0.0, HEIGHT / 2))), CONFIG)
    assert len(filled) > 100
    assert seen(filled, views, 0)[0][:, 0].min() >= WIDTH / 2


def test_colours_are_those_of_the_photograph() -> None:
    views = wall_views((0.0,), grey=77)
    filled = filled_points(views, cloud(on_wall((0.0, HEIGHT / 2))), CONFIG)
    assert set(np.unique(filled.rgb)) == {77}


def test_a_network_gives_the_shape_and_known_points_its_scale() -> None:
    """A slanted plane: the network knows its inverse depth up to scale and shift."""
    views = wall_views((0.0,))
    row = np.arange(HEIGHT) + 0.5
    true = 1.0 / (3.0 + 0.02 * row)
    network = np.repeat((7.0 * true - 0.4)[:, None], WIDTH, axis=1)
    pixels = np.stack(np.meshgrid(np.arange(1.5, WIDTH, 3), np.arange(1.5, 60, 3)), -1).reshape(
        -1, 2
    )
    depth = 3.0 + 0.02 * pixels[:, 1]
    known = cloud(back_project(pixels, depth, views.camera_to_worlds[0], views.intrinsics[0]))
    filled = filled_points(views, known, CONFIG, [network])
    below, found = seen(filled, views, 0)
    assert len(filled) > 100
    np.testing.assert_allclose(found, 3.0 + 0.02 * below[:, 1], rtol=5e-3)


def test_little_knowledge_fills_nothing() -> None:
    few = cloud(on_wall((60.0, 63.0))[20:35])
    assert len(filled_points(wall_views(), few, CONFIG)) == 0


def test_options_are_checked() -> None:
    with pytest.raises(ValueError, match="cells"):
        FilledPointsConfig(cells=0)
    with pytest.raises(ValueError, match="reach"):
        FilledPointsConfig(reach=0.0)
