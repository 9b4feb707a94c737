# SPDX-License-Identifier: Apache-2.0
"""Means, paired differences and the table, against figures calculated by hand."""

from __future__ import annotations

import math

import pytest

from ps4pro_nerfstudio.benchmark.scenes import statistics
from ps4pro_nerfstudio.benchmark.scenes.statistics import Spread
from ps4pro_nerfstudio.benchmark.scenes.table import report
from tests.benchmark.scenes_records import record


def _two_seeds() -> list[dict]:
    """Means of two views: plain 20 and 22, ps4pro 21.5 and 22.5."""
    return [
        record([18.0, 22.0], seed=0),
        record([21.0, 22.0], method="ps4pro", seed=0, lpips=0.20),
        record([21.0, 23.0], seed=1),
        record([20.0, 25.0], method="ps4pro", seed=1, lpips=0.22),
    ]


def test_spread_is_mean_and_sample_deviation():
    """Of 20 and 22: mean 21, deviation sqrt((1 + 1) / (2 - 1))."""
    assert statistics.spread([20.0, 22.0, None]) == Spread(21.0, math.sqrt(2), 2)
    assert statistics.spread([20.0]) == Spread(20.0, None, 1)
    assert statistics.spread([None]) is None


def test_differences_are_paired_by_seed():
    """+1.5 and +0.5: mean 1.0, deviation sqrt(0.5); unpaired it would be far larger."""
    change = statistics.paired_difference(_two_seeds(), "ps4pro", "plain", "psnr")
    assert change is not None
    assert change.mean == pytest.approx(1.0)
    assert change.deviation == pytest.approx(math.sqrt(0.5))
    lpips = statistics.paired_difference(_two_seeds(), "ps4pro", "plain", "lpips")
    assert lpips is not None
    assert lpips.mean == pytest.approx(-0.04)


def test_a_seed_without_its_baseline_does_not_enter_the_difference():
    records = [*_two_seeds(), record([90.0, 90.0], method="ps4pro", seed=2)]
    change = statistics.paired_difference(records, "ps4pro", "plain", "psnr")
    assert change is not None
    assert (change.count, change.mean) == (2, pytest.approx(1.0))


def test_view_differences_go_by_name_and_not_by_place():
    records = _two_seeds()
    records[1]["per_view"].reverse()
    changes = statistics.view_differences(records, "ps4pro", "plain")
    assert {(c.name, c.record["seed"]): c.difference for c in changes} == {
        ("a.png", 0): 3.0, ("b.png", 0): 0.0, ("a.png", 1): -1.0, ("b.png", 1): 2.0,
    }  # fmt: skip


def test_every_scene_weighs_the_same_in_the_groups():
    """Room +1 in two cells and fox +3 in one: their mean is +2, not 5 / 3."""
    records = []
    for scene, views, num_train, gain in (
        ("room", "6", 6, 1.0), ("room", "10", 10, 1.0), ("fox", "8", 8, 3.0), ("fox", "17", 17, 9.0)
    ):  # fmt: skip
        same = {"scene": scene, "views": views, "num_train": num_train}
        records += [record([20.0], **same), record([20.0 + gain], method="ps4pro", **same)]
    rows = statistics.group_means(records, "ps4pro", "plain")
    found = [(label, scenes, changes["psnr"]) for label, scenes, _, changes in rows]
    assert found == [
        ("6 to 10 views", 2, Spread(2.0, math.sqrt(2), 2)),
        ("11 to 20 views", 1, Spread(9.0, None, 1)),
    ]


def test_table_shows_means_differences_and_single_views():
    text = report(_two_seeds(), "plain", "ps4pro bench scenes --data room")
    rows = {
        cells[0]: cells
        for line in text.split("## room, 6:")[1].splitlines()
        if line.startswith("| ") and (cells := [cell.strip() for cell in line.split("|")[1:-1]])
    }
    assert "6 training and 2 test views" in text
    assert rows["plain"][1:4] == ["2", "21.00 ± 1.41", "–"]
    assert rows["ps4pro"][1:4] == ["2", "22.00 ± 0.71", "+1.00 ± 0.71"]
    assert rows["ps4pro"][6:8] == ["0.210 ± 0.014", "−0.040 ± 0.014"]
    assert rows["plain"][8:11] == ["a.png 18.00", "–", "–"]
    assert rows["ps4pro"][8:11] == ["a.png 20.00", "a.png −1.00", "a.png +3.00"]
    assert rows["ps4pro"][11:] == ["1,000", "60", "1,024"]
    assert "LPIPS network: alex" in text
    assert "ps4pro bench scenes --data room" in text


def test_a_loss_is_written_like_a_gain():
    records = [record([20.0]), record([19.0], method="ps4pro")]
    text = report(records, "plain", "")
    assert "| ps4pro | 1 | 19.00 | −1.00 |" in text
    assert "| 6 to 10 views | ps4pro | 1 | 19.00 | −1.00 |" in text


def test_lpips_may_be_absent():
    records = [record([20.0], lpips=None), record([19.0], method="ps4pro", lpips=None)]
    assert "its weights are absent" in report(records, "plain", "")


def test_table_without_its_baseline_has_no_differences():
    text = report([record([20.0], method="ps4pro")], "plain", "")
    assert "| ps4pro | 1 | 20.00 | – |" in text
    assert "Mean over scenes" not in text
