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
        ("images/a.png", 0): 3.0, ("images/b.png", 0): 0.0,
        ("images/a.png", 1): -1.0, ("images/b.png", 1): 2.0,
    }  # fmt: skip


def test_views_of_one_file_name_in_two_folders_are_told_apart():
    """Left gains 3 dB and right loses 2: neither is compared with the other's baseline."""
    names = ["left/0.png", "right/0.png"]
    records = [
        record([20.0, 25.0], names=names), record([23.0, 23.0], method="ps4pro", names=names)
    ]  # fmt: skip
    changes = statistics.view_differences(records, "ps4pro", "plain")
    assert [(c.name, c.difference, c.view["picture"]) for c in changes] == [
        ("left/0.png", 3.0, "eval_img_0000.png"), ("right/0.png", -2.0, "eval_img_0001.png")
    ]  # fmt: skip
    text = report(records, "plain", "")
    assert "| left/0.png 20.00 | – | – |" in text
    assert "| right/0.png −2.00 | left/0.png +3.00 |" in text


def test_views_that_an_old_record_names_alike_are_not_compared():
    """Two of three are called 0.png; their averages still count."""
    names = ["0.png", "1.png", "0.png"]
    records = [
        record([20.0, 20.0, 25.0], names=names),
        record([23.0, 21.0, 23.0], method="ps4pro", names=names),
    ]
    changes = statistics.view_differences(records, "ps4pro", "plain")
    assert [(c.name, c.difference) for c in changes] == [("1.png", 1.0)]
    assert "| +0.67 |" in report(records, "plain", "")


def test_lpips_of_two_networks_has_no_difference():
    records = [record([20.0]), record([21.0], method="ps4pro") | {"lpips_net": "vgg"}]
    assert statistics.paired_difference(records, "ps4pro", "plain", "lpips") is None
    assert statistics.paired_difference(records, "ps4pro", "plain", "psnr") is not None


def test_every_scene_weighs_the_same_in_the_groups():
    """Room +1 in two cells and fox +3 in one: their mean is +2, not 5 / 3."""
    records = []
    for scene, views, num_train, gain in (
        ("room", "6", 6, 1.0), ("room", "10", 10, 1.0), ("fox", "8", 8, 3.0), ("fox", "17", 17, 9.0)
    ):  # fmt: skip
        same = {"scene": scene, "views": views, "num_train": num_train}
        records += [record([20.0], **same), record([20.0 + gain], method="ps4pro", **same)]
    rows = statistics.scene_means(records, ["ps4pro"], "plain")
    assert [(row.label, row.num_scenes, row.differences["psnr"]) for row in rows] == [
        ("6 to 10 views (6, 10, 8)", 2, Spread(2.0, math.sqrt(2), 2)),
        ("11 to 20 views (17)", 1, Spread(9.0, None, 1)),
    ]


def _scenes(views: str, gains: dict[str, dict[str, float]], num_train: int = 6) -> list[dict]:
    """Runs of plain at 20 dB in each scene, and of methods so much above it."""
    records = []
    for scene, by_method in gains.items():
        same = {"scene": scene, "views": views, "num_train": num_train}
        records.append(record([20.0], **same))
        records += [record([20.0 + g], method=m, **same) for m, g in by_method.items()]
    return records


def test_each_specification_has_its_mean_of_the_scenes():
    """every-2 of both scenes, +1 and +3 dB; `17` is of one scene and has only its group's row."""
    records = [
        *_scenes("every-2", {"room": {"ps4pro": 1.0}}, 6),
        *_scenes("every-2", {"fox": {"ps4pro": 3.0}}, 25),
        *_scenes("17", {"fox": {"ps4pro": 0.5}}, 17),
    ]
    rows = statistics.scene_means(records, ["plain", "ps4pro"], "plain")
    assert [(row.label, row.method) for row in rows[-2:]] == [
        ("every-2", "plain"), ("every-2", "ps4pro")
    ]  # fmt: skip
    assert [row.label for row in rows if row.method == "ps4pro"] == [
        "6 to 10 views (every-2)", "11 to 20 views (17)", "21 views and more (every-2)", "every-2"
    ]  # fmt: skip
    assert rows[-1].means["psnr"] == Spread(22.0, math.sqrt(2), 2)
    assert rows[-1].differences["psnr"] == Spread(2.0, math.sqrt(2), 2)
    assert rows[-1].num_scenes == 2
    text = report(records, "plain", "")
    assert "| every-2 | ps4pro | 2 | 22.00 ± 1.41 | +2.00 ± 1.41 |" in text


def test_a_specification_that_is_a_whole_group_is_not_repeated():
    records = _scenes("6", {"room": {"ps4pro": 1.0}, "fox": {"ps4pro": 3.0}})
    rows = statistics.scene_means(records, ["ps4pro"], "plain")
    assert [row.label for row in rows] == ["6 to 10 views (6)"]


def test_a_method_that_a_scene_lacks_has_no_mean_over_scenes():
    """Its mean would be of the room alone, beside means of the room and the fox."""
    records = _scenes("6", {"room": {"ps4pro": 1.0, "views": 9.0}, "fox": {"ps4pro": 3.0}})
    rows = statistics.scene_means(records, ["plain", "ps4pro", "views"], "plain")
    assert [row.method for row in rows] == ["plain", "ps4pro"]


def test_a_metric_that_a_scene_lacks_has_no_mean_over_scenes():
    records = _scenes("6", {"room": {"ps4pro": 1.0}, "fox": {"ps4pro": 3.0}})
    records[-1]["lpips"] = None
    (row,) = statistics.scene_means(records, ["ps4pro"], "plain")
    assert row.means["lpips"] is None
    assert row.differences["lpips"] is None
    assert row.means["psnr"] == Spread(22.0, math.sqrt(2), 2)


def test_the_means_say_the_largest_loss_of_all_scenes():
    records = _scenes("6", {"room": {"ps4pro": 1.0}, "fox": {"ps4pro": -3.0}})
    (row,) = (line for line in report(records, "plain", "").splitlines() if "10 views" in line
              and "| ps4pro |" in line)  # fmt: skip
    assert row.endswith("| fox a.png −3.00 |")


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
    assert "| 6 to 10 views (6) | ps4pro | 1 | 19.00 | −1.00 |" in text


def test_lpips_may_be_absent():
    records = [record([20.0], lpips=None), record([19.0], method="ps4pro", lpips=None)]
    assert "its weights are absent" in report(records, "plain", "")


def test_table_without_its_baseline_has_no_differences():
    text = report([record([20.0], method="ps4pro")], "plain", "")
    assert "| ps4pro | 1 | 20.00 | – |" in text
    assert "Mean over scenes" not in text
