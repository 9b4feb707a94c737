# SPDX-License-Identifier: Apache-2.0
"""Plots and the contact sheet show what the records say."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from ps4pro_nerfstudio.benchmark.scenes.contact_sheet import crop_box, pick, write_contact_sheet
from ps4pro_nerfstudio.benchmark.scenes.plots import Point, curve, lines, write_plots
from ps4pro_nerfstudio.benchmark.scenes.statistics import Spread
from tests.benchmark.scenes_records import record


def test_curves_are_means_over_seeds_by_number_of_views():
    records = [
        record([22.0], num_train=10, views="10"),
        record([19.0], seed=0),
        record([21.0], seed=1),
        record([30.0], scene="fox"),
    ]
    assert _values(curve(records, "room", "plain", "psnr")) == [
        ("6", 6, Spread(20.0, 2**0.5, 2)),
        ("10", 10, Spread(22.0, None, 1)),
    ]


def _values(points: list[Point]) -> list[tuple[str, int, Spread]]:
    return [(point.views, point.num_train, point.value) for point in points]


def test_different_splits_of_one_size_are_different_points():
    """Ten of every kind: evenly spaced 20 dB, every fifth 30 dB; only like is joined with like."""
    own_test = ["images/y.png"]
    records = [
        record([20.0], num_train=10, views="10"),
        record([30.0], num_train=10, views="every-5", names=own_test),
        record([18.0], num_train=6, views="6"),
    ]
    points = curve(records, "room", "plain", "psnr")
    assert _values(points) == [
        ("6", 6, Spread(18.0, None, 1)),
        ("10", 10, Spread(20.0, None, 1)),
        ("every-5", 10, Spread(30.0, None, 1)),
    ]
    joined = [[point.views for point in line] for line in lines(points)]
    assert joined == [["6", "10"], ["every-5"]]


def test_the_plot_has_a_line_for_each_kind_of_split_and_names_it(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    figures: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda self, path, dpi: figures.append(self))
    records = [
        record([20.0], num_train=10, views="10"),
        record([30.0], num_train=10, views="every-5", names=["images/y.png"]),
        record([18.0], num_train=6, views="6"),
    ]
    write_plots(records, tmp_path)
    (axes,) = figures[0].axes
    joined = [line for line in axes.lines if line.get_linestyle() == "-"]
    drawn = [np.asarray(line.get_xydata()).tolist() for line in joined]
    assert drawn == [[[6.0, 18.0], [10.0, 20.0]], [[10.0, 30.0]]]
    assert [text.get_text() for text in axes.texts] == ["every-5"]
    legend = axes.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["plain"]


def test_one_plot_for_each_metric_that_was_measured(tmp_path):
    records = [record([20.0]), record([21.0], method="ps4pro"), record([25.0], scene="fox")]
    written = write_plots(records, tmp_path)
    assert [path.name for path in written] == ["psnr.png", "ssim.png", "lpips.png"]
    one = Image.open(tmp_path / "psnr.png")
    alone = write_plots([record([20.0], lpips=None)], tmp_path)
    assert [path.name for path in alone] == ["psnr.png", "ssim.png"]
    assert one.width == 2 * Image.open(tmp_path / "psnr.png").width


def test_the_crop_lies_where_the_errors_differ_most():
    """The one is wrong by 1 in a patch, the other by 2 elsewhere: that counts the other way."""
    truth = np.zeros((40, 60, 3), np.float32)
    better, worse = truth.copy(), truth.copy()
    worse[22:30, 41:49] = 1.0
    better[4:12, 4:12] = 2.0
    assert crop_box(truth, better, worse, 8) == (22, 41)
    assert crop_box(truth, worse, better, 8) == (4, 4)


def test_largest_gains_and_losses_are_picked_once_each():
    """Changes over both seeds: a +1 and +4, b -3, c +0.5, d -0.5; a stands once, with seed 1."""
    records = [
        record([20.0, 20.0, 20.0, 20.0], seed=0),
        record([21.0, 17.0, 20.5, 19.5], method="ps4pro", seed=0),
        record([20.0], seed=1),
        record([24.0], method="ps4pro", seed=1),
    ]
    gains, losses = pick(records, "ps4pro", "plain", 2)
    assert [(c.name, c.difference, c.record["seed"]) for c in gains] == [
        ("images/a.png", 4.0, 1), ("images/c.png", 0.5, 0)
    ]  # fmt: skip
    assert [(c.name, c.difference) for c in losses] == [
        ("images/b.png", -3.0), ("images/d.png", -0.5)
    ]  # fmt: skip
    one_gain, one_loss = pick(records, "ps4pro", "plain", 1)
    assert [c.name for c in one_gain + one_loss] == ["images/a.png", "images/b.png"]


def test_nothing_to_compare_makes_no_sheet(tmp_path):
    assert write_contact_sheet([record([20.0])], "ps4pro", "plain", tmp_path) is None


@pytest.mark.parametrize("names", [None, ["left/0.png", "right/0.png"]])
def test_the_sheet_shows_truth_baseline_and_method(tmp_path, names):
    """Grey truth; a patch of the renders is white, one level nearer to grey, or black.

    The method is white in the view that it wins and black in the one that it loses.
    """
    records = [
        record([20.0, 20.0], names=names),
        record([23.0, 19.0], method="ps4pro", names=names),
    ]
    for run, values in zip(records, ((0, 255), (255, 0)), strict=True):
        folder = tmp_path / "renders" / run["key"]
        folder.mkdir(parents=True)
        for view, value in zip(run["per_view"], values, strict=True):
            both = np.full((50, 200, 3), 128, np.uint8)
            both[10:35, 100 + 60 : 100 + 85] = value
            Image.fromarray(both).save(folder / view["picture"])
    path = write_contact_sheet(records, "ps4pro", "plain", tmp_path)
    assert path is not None
    sheet = np.asarray(Image.open(path))
    # Middle of the tiles: 4 px gaps, 240 px tiles, captions of 20 px.
    columns = [4 + 120 + index * 244 for index in range(3)]
    rows = [20 + 20 + 120 + index * 264 for index in range(2)]
    middles = [[sheet[row, column, 0] for column in columns] for row in rows]
    assert middles == [[128, 0, 255], [128, 255, 0]]
