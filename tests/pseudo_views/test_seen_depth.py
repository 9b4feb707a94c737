# SPDX-License-Identifier: Apache-2.0
"""Depth of photographs from correspondences, on the wall at 4 with the board at 3."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ps4pro_nerfstudio.geometry.cameras import flip_camera_axes, project
from ps4pro_nerfstudio.interpolation.optical_flow import OpticalFlowInterpolator
from ps4pro_nerfstudio.pseudo_views.pseudo_view import PseudoView
from ps4pro_nerfstudio.pseudo_views.seen_depth import SeenDepthConfig, seen_depths
from ps4pro_nerfstudio.pseudo_views.sources import SourceViews, make_pseudo_views
from tests.pseudo_views.conftest import wall_points


@pytest.fixture(scope="module")
def frames(three_views: SourceViews) -> list[PseudoView]:
    return make_pseudo_views(three_views, OpticalFlowInterpolator()).views


def test_each_photograph_knows_the_depth_of_what_it_shows(
    three_views: SourceViews, frames: list[PseudoView]
) -> None:
    for index, seen in enumerate(seen_depths(three_views, frames)):
        assert len(seen) > 1000
        error = np.minimum(np.abs(seen.xyz[:, 2] - 4.0), np.abs(seen.xyz[:, 2] - 3.0))
        assert np.median(error) < 0.05
        pose = flip_camera_axes(three_views.camera_to_worlds[index])
        pixels, depth = project(seen.xyz, pose, three_views.intrinsics[index])
        np.testing.assert_allclose(seen.pixels, pixels, atol=1e-3)
        np.testing.assert_allclose(seen.depth, depth, rtol=1e-5)
        height, width = three_views.images[index].shape[:2]
        assert bool(np.all((seen.pixels >= 0) & (seen.pixels < (width, height))))


def test_points_come_only_from_frames_of_the_photograph(
    three_views: SourceViews, frames: list[PseudoView]
) -> None:
    name = three_views.names[0]
    of_others = [frame for frame in frames if name not in frame.provenance.source_names]
    assert len(seen_depths(three_views, of_others)[0]) == 0


def test_sparse_points_stand_in_for_dense_ones(three_views: SourceViews) -> None:
    points = wall_points(100)
    seen_by = np.zeros((100, 3), bool)
    seen_by[:40, 0] = True
    found = seen_depths(three_views, [], lambda: (points, seen_by))
    assert [len(seen) for seen in found] == [40, 0, 0]
    np.testing.assert_allclose(found[0].xyz, points[:40], atol=1e-6)


def test_sparse_points_do_not_join_where_dense_ones_suffice(
    three_views: SourceViews, frames: list[PseudoView]
) -> None:
    points, seen_by = wall_points(100), np.ones((100, 3), bool)
    alone = seen_depths(three_views, frames)
    joined = seen_depths(three_views, frames, lambda: (points, seen_by))
    assert [len(seen) for seen in joined] == [len(seen) for seen in alone]


def test_what_a_mask_hides_is_left_out(three_views: SourceViews, frames: list[PseudoView]) -> None:
    height, width = three_views.images[0].shape[:2]
    left = np.zeros((height, width), bool)
    left[:, : width // 2] = True
    masked = replace(three_views, valid=[left, None, None])
    seen = seen_depths(masked, frames)[0]
    assert len(seen) > 100
    assert seen.pixels[:, 0].max() < width // 2


def test_the_draw_is_bounded_and_repeatable(
    three_views: SourceViews, frames: list[PseudoView]
) -> None:
    config = SeenDepthConfig(max_samples=200)
    once, again = (seen_depths(three_views, frames, config=config) for _ in range(2))
    for a, b in zip(once, again, strict=True):
        assert 100 < len(a) <= 200
        np.testing.assert_array_equal(a.xyz, b.xyz)
    with pytest.raises(ValueError, match="max_samples"):
        SeenDepthConfig(max_samples=0)


def test_frames_without_depth_of_other_photographs_are_passed_over(
    three_views: SourceViews, frames: list[PseudoView]
) -> None:
    origin = replace(frames[0].provenance, source_names=("between.png",))
    control = replace(frames[0], depth=None, provenance=origin)
    assert [len(seen) for seen in seen_depths(three_views, [control])] == [0, 0, 0]
