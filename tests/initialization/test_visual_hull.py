# SPDX-License-Identifier: Apache-2.0
"""Points of the visual hull: inside every silhouette, where nothing known explains a ray."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ps4pro_nerfstudio.geometry.cameras import project
from ps4pro_nerfstudio.initialization.views import inside_image
from ps4pro_nerfstudio.initialization.visual_hull import VisualHullConfig, visual_hull_points
from tests.initialization.scenes import (
    BALL_DISTANCE,
    BALL_RADIUS,
    BALL_SIZE,
    ball_views,
)

CONFIG = VisualHullConfig(cells=20)
SPACING = BALL_SIZE / CONFIG.cells


NOTHING = np.zeros((0, 3))


@pytest.mark.parametrize("count", [3, 8])
def test_every_point_lies_inside_every_silhouette(count):
    views, silhouettes = ball_views(count)
    hull = visual_hull_points(views, silhouettes, NOTHING, CONFIG)
    assert len(hull) > 0
    for index, silhouette in enumerate(silhouettes):
        pixels, _ = project(hull.xyz, views.camera_to_worlds[index], views.intrinsics[index])
        inside = inside_image(pixels, (BALL_SIZE, BALL_SIZE))
        column, row = np.floor(pixels[inside]).astype(int).T
        assert silhouette is not None
        # A point between two depths of the search may leave a silhouette by a pixel.
        grown = np.pad(silhouette, 1)
        near = np.stack([grown[row + i, column + j] for i in range(3) for j in range(3)])
        assert near.any(axis=0).all()


def test_many_photographs_leave_the_object_itself():
    views, silhouettes = ball_views(16)
    hull = visual_hull_points(views, silhouettes, NOTHING, replace(CONFIG, inside=0.0))
    radius = np.linalg.norm(hull.xyz, axis=1)
    assert np.percentile(radius, 5) > 0.9 * BALL_RADIUS
    assert np.median(radius) < 1.1 * BALL_RADIUS
    # Each photograph sees its own side, in its own colour.
    for index in range(16):
        own = hull.xyz[hull.rgb[:, 0] == 10 * index]
        centre = views.camera_to_worlds[index, :3, 3] / BALL_DISTANCE
        assert len(own) > 50
        assert (own @ centre > -0.1).all()


def test_points_stand_deeper_inside_when_asked_to():
    views, silhouettes = ball_views(8)
    shallow, deep = (
        visual_hull_points(views, silhouettes, NOTHING, replace(CONFIG, inside=share))
        for share in (0.0, 0.5)
    )
    assert len(shallow) == len(deep)
    _, near = project(shallow.xyz[:50], views.camera_to_worlds[0], views.intrinsics[0])
    _, far = project(deep.xyz[:50], views.camera_to_worlds[0], views.intrinsics[0])
    assert (far >= near).all()
    assert (far > near).mean() > 0.9


def test_what_is_known_of_the_near_side_explains_a_ray_and_of_the_far_side_not():
    views, silhouettes = ball_views(8)
    everything = visual_hull_points(views, silhouettes, NOTHING, CONFIG)
    count = int((everything.rgb[:, 0] == 0).sum())
    towards = views.camera_to_worlds[0, :3, 3] / BALL_DISTANCE
    for side, expected in ((0.9, range(count)), (-0.9, [count])):
        known = (side * towards)[None]
        hull = visual_hull_points(views, silhouettes, known, CONFIG)
        assert int((hull.rgb[:, 0] == 0).sum()) in expected
    pixels, _ = project(
        visual_hull_points(views, silhouettes, 0.9 * towards[None], CONFIG).xyz[: count // 2],
        views.camera_to_worlds[0],
        views.intrinsics[0],
    )
    assert np.linalg.norm(pixels - BALL_SIZE / 2, axis=1).min() > CONFIG.reach * SPACING - 1e-6


def test_photographs_that_are_not_cut_out_neither_carve_nor_get_points():
    views, silhouettes = ball_views(4)
    some = [*silhouettes[:3], None]
    hull = visual_hull_points(views, some, NOTHING, CONFIG)
    assert 30 not in hull.rgb
    assert {0, 10, 20} == set(hull.rgb[:, 0].tolist())
    assert len(visual_hull_points(views, [None] * 4, NOTHING, CONFIG)) == 0


def test_silhouettes_that_contradict_each_other_leave_nothing():
    views, silhouettes = ball_views(3)
    empty = np.zeros((BALL_SIZE, BALL_SIZE), bool)
    hull = visual_hull_points(views, [silhouettes[0], empty, empty], NOTHING, CONFIG)
    assert len(hull) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [({"cells": 0}, "cells"), ({"reach": -1.0}, "reach"), ({"inside": 1.5}, "inside")],
)
def test_options_of_nonsense_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        VisualHullConfig(**options)
