# SPDX-License-Identifier: Apache-2.0
"""The benchmark with exact pictures: confidence is calibrated."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from ps4pro_nerfstudio.benchmark.pseudo_views import (
    PseudoViewsBenchmark,
    depth_figures,
    reliability,
    truth_captures,
)
from ps4pro_nerfstudio.geometry.cameras import flip_camera_axes, project
from ps4pro_nerfstudio.messages import InputError


def test_error_falls_with_confidence_and_better_ways_are_better(tmp_path: Path) -> None:
    """Over all rooms' pixels the mean error of colour falls from each bin to the next."""
    bench = PseudoViewsBenchmark(
        rooms=1,
        angles_deg=(12.0,),
        size=(240, 136),
        ways=("linear blend", "optical-flow", "ps4pro"),
        plot=tmp_path / "curve.png",
        output=tmp_path / "figures.json",
    )
    figures = bench.run()
    errors = figures["reliability"]["ps4pro"]["error"]
    assert len(errors) == 7
    assert all(first > second for first, second in pairwise(errors))
    assert errors[0] > 4 * errors[-1]
    ours, flow, blend = (
        figures["ways"][way]["12"] for way in ("ps4pro", "optical-flow", "linear blend")
    )
    assert ours["PSNR weighted"] > flow["PSNR weighted"]
    assert ours["PSNR weighted"] > blend["PSNR weighted"] + 6
    assert (tmp_path / "curve.png").stat().st_size > 5000
    assert json.loads((tmp_path / "figures.json").read_text())["size"] == [240, 136]


def test_points_and_truth_agree_with_the_photographs() -> None:
    """The scene points of a capture project to where their depth says, in the second photograph."""
    (capture, *_) = truth_captures(1, (12.0,), (120, 68))
    pose = flip_camera_axes(capture.views.camera_to_worlds[1])
    assert capture.views.points is not None
    pixels, depth = project(capture.views.points, pose, capture.views.intrinsics[1])
    assert (pixels > 0).all()
    assert (pixels < (120, 68)).all()
    assert (depth > 0).all()
    np.testing.assert_allclose(pixels % 1.0, 0.5, atol=1e-3)


def test_reliability_by_hand() -> None:
    """Two pixels never used, two of confidence .95 with errors .1 and .3."""
    curve = reliability(np.array([0.0, 0.0, 0.95, 0.95]), np.array([1.0, 0.5, 0.1, 0.3]))
    assert curve == {
        "confidence": [0.0, 0.95],
        "error": [0.75, pytest.approx(0.2)],
        "share": [0.5, 0.5],
    }


def test_depths_are_pooled_over_views() -> None:
    """A view with one depth, 80 % off, beside one with four that are nearly right."""
    views = [np.array([0.8]), np.array([0.01, 0.02, 0.03, 0.06])]
    assert depth_figures(views) == {"depth": 0.03, "depth > 5 %": 0.4}
    assert all(np.isnan(figure) for figure in depth_figures([]).values())


def test_an_unknown_way_is_named() -> None:
    with pytest.raises(InputError, match="telepathy"):
        PseudoViewsBenchmark(ways=("telepathy",)).run()
