# SPDX-License-Identifier: Apache-2.0
"""A third view speaks for or against a point."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ps4pro_nerfstudio.geometry.cameras import flip_camera_axes
from ps4pro_nerfstudio.interpolation.optical_flow import OpticalFlowInterpolator
from ps4pro_nerfstudio.pseudo_views.alignment import Photograph
from ps4pro_nerfstudio.pseudo_views.consistency import camera_of, drop_contradicted
from ps4pro_nerfstudio.pseudo_views.pseudo_view import PseudoView
from ps4pro_nerfstudio.pseudo_views.sources import SourceViews, make_pseudo_views

WALL = 3.9


@pytest.fixture(scope="module")
def frames(three_views: SourceViews) -> list[PseudoView]:
    return make_pseudo_views(three_views, OpticalFlowInterpolator()).views


def photographs(views: SourceViews) -> list[Photograph]:
    poses = flip_camera_axes(views.camera_to_worlds)
    return [
        Photograph(image, np.ones(image.shape[:2], bool), pose, matrix)
        for image, pose, matrix in zip(views.images, poses, views.intrinsics, strict=True)
    ]


def at_depth(frame: PseudoView, depth: float, patch: tuple[slice, slice]) -> PseudoView:
    """The frame with a patch of its points put elsewhere."""
    assert frame.depth is not None
    moved = frame.depth.copy()
    moved[patch] = depth
    return replace(frame, depth=moved)


def test_true_points_stay(frames: list[PseudoView], three_views: SourceViews) -> None:
    """What the source gave has been checked; checking again drops next to nothing."""
    before = sum(int((frame.depth > 0).sum()) for frame in frames if frame.depth is not None)
    checked = drop_contradicted(frames, photographs(three_views), three_views.names)
    after = sum(int((frame.depth > 0).sum()) for frame in checked if frame.depth is not None)
    assert before > 0.6 * frames[0].confidence.size
    assert after > 0.98 * before


def test_points_that_hide_what_another_frame_sees_are_dropped(
    frames: list[PseudoView], three_views: SourceViews
) -> None:
    """A patch of the wall floats at half its depth; the other frame looks through it."""
    patch = np.s_[8:16, 50:70]
    floating = at_depth(frames[0], 2.0, patch)
    checked = drop_contradicted([floating, frames[1]], photographs(three_views), three_views.names)
    assert checked[0].depth is not None
    assert (checked[0].depth[patch] > 0).mean() < 0.1
    assert checked[1].depth is not None
    assert (checked[1].depth > 0).mean() > 0.9 * (frames[1].depth > 0).mean()  # type: ignore
    np.testing.assert_array_equal(checked[0].confidence, frames[0].confidence)


def test_frames_of_the_same_photographs_are_no_witnesses(
    frames: list[PseudoView], three_views: SourceViews
) -> None:
    """A wrong patch that a frame shares with its own kind is dropped all the same."""
    patch = np.s_[8:16, 50:70]
    floating = at_depth(frames[0], 2.0, patch)
    alike = [floating, floating, floating, frames[1]]
    checked = drop_contradicted(alike, photographs(three_views), three_views.names)
    for frame in checked[:3]:
        assert frame.depth is not None
        assert (frame.depth[patch] > 0).mean() < 0.1


def test_points_behind_what_another_frame_sees_may_be_hidden_there(
    frames: list[PseudoView], three_views: SourceViews
) -> None:
    """Nothing speaks against a point that others cannot see."""
    patch = np.s_[30:60, 50:70]
    behind = at_depth(frames[0], 4.4, patch)
    checked = drop_contradicted([behind, frames[1]], [], [])
    assert checked[0].depth is not None
    assert (checked[0].depth[patch] > 0).all()


def test_points_whose_color_no_photograph_shows_are_dropped(
    frames: list[PseudoView], three_views: SourceViews
) -> None:
    """Without a second frame; the patch is painted in a colour that is nowhere."""
    patch = np.s_[8:16, 50:70]
    assert frames[0].image is not None
    painted = frames[0].image.copy()
    painted[patch] = (0, 255, 0)
    frame = replace(at_depth(frames[0], WALL, patch), image=painted)
    shots = photographs(three_views)
    checked = drop_contradicted([frame], shots * 2, ["other.png"] * 6)
    assert checked[0].depth is not None
    assert (checked[0].depth[patch] > 0).mean() < 0.05
    # One stranger alone may have something in front of it.
    alone = drop_contradicted([frame], shots[2:], ["other.png"])
    assert alone[0].depth is not None
    assert (alone[0].depth[patch] > 0).all()


def test_frames_without_depth_pass(frames: list[PseudoView], three_views: SourceViews) -> None:
    bare = replace(frames[0], depth=None)
    assert drop_contradicted([bare], photographs(three_views), three_views.names)[0] is bare


def test_the_camera_of_a_view_is_the_one_it_was_made_for(frames: list[PseudoView]) -> None:
    camera = camera_of(frames[0])
    assert camera.size == (128, 96)
    np.testing.assert_allclose(camera.intrinsics, [[120, 0, 64], [0, 120, 48], [0, 0, 1]])
    np.testing.assert_allclose(
        flip_camera_axes(camera.camera_to_world)[:3], frames[0].camera_to_world, atol=1e-6
    )
