# SPDX-License-Identifier: Apache-2.0
"""The empty ball around a camera: a share of the depth of the nearest that it shows."""

from __future__ import annotations

import numpy as np
import pytest

from ps4pro_nerfstudio.initialization.free_space import FreeSpaceConfig, free_radii, nearest_around
from tests.initialization.test_filled_points import on_wall, wall_views


def test_half_the_way_to_a_wall() -> None:
    radii = free_radii(wall_views(), on_wall(), FreeSpaceConfig(share=0.5))
    np.testing.assert_allclose(radii, [2.0, 2.0])


def test_one_stray_point_does_not_count() -> None:
    stray = np.concatenate([on_wall(), [[0.0, 0.0, -0.1]]])
    radii = free_radii(wall_views((0.0,)), stray, FreeSpaceConfig(share=0.5))
    np.testing.assert_allclose(radii, [2.0])


def test_nothing_is_known_of_a_camera_that_shows_few_points() -> None:
    behind = on_wall() * [1.0, 1.0, -1.0]
    assert free_radii(wall_views(), behind, FreeSpaceConfig()).tolist() == [0.0, 0.0]
    assert free_radii(wall_views(), on_wall()[:10], FreeSpaceConfig()).tolist() == [0.0, 0.0]


def test_lengths_follow_the_scale_of_the_capture() -> None:
    views = wall_views()
    once = free_radii(views, on_wall(), FreeSpaceConfig())
    views.camera_to_worlds[:, :3, 3] *= 7.0
    np.testing.assert_allclose(free_radii(views, 7.0 * on_wall(), FreeSpaceConfig()), 7.0 * once)


def test_options_are_checked() -> None:
    with pytest.raises(ValueError, match="share"):
        FreeSpaceConfig(share=1.0)
    with pytest.raises(ValueError, match="before_surfaces"):
        FreeSpaceConfig(before_surfaces=1.0)


def test_the_nearest_of_nine_pixels_counts_where_all_are_known() -> None:
    depth = np.full((6, 7), 4.0, np.float32)
    depth[2, 2], depth[4, 6] = 3.0, 0.0
    nearest = nearest_around(depth)
    assert (nearest[1:4, 1:4] == 3.0).all()
    assert (nearest[3:, 5:] == 0.0).all()
    assert nearest[0, 5] == 4.0
