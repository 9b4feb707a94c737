# SPDX-License-Identifier: Apache-2.0
"""Means and paired differences over the records of a sweep.

A *cell* is one scene with one specification of its views. Differences to the baseline pair runs of
one cell with the same seed: what the seed does to both cancels. A difference of PSNR or SSIM above
zero is a gain, of LPIPS below zero.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

METRICS = ("psnr", "ssim", "lpips")

# Numbers of training views that are averaged together.
GROUPS = ((2, 5), (6, 10), (11, 20), (21, math.inf))

Record = dict[str, Any]


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation."""

    mean: float
    deviation: float | None
    """None for a single value."""
    count: int


@dataclass(frozen=True)
class ViewDifference:
    """One test view of one pair of runs."""

    name: str
    difference: float
    """PSNR of the method minus that of the baseline, dB."""
    record: Record
    baseline: Record
    index: int
    """Of the view among the test views."""


def spread(values: Iterable[float | None]) -> Spread | None:
    """Mean and deviation of the values that are there; None without any."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    deviation = statistics.stdev(known) if len(known) > 1 else None
    return Spread(statistics.fmean(known), deviation, len(known))


def cells(records: Iterable[Record]) -> dict[tuple[str, str], list[Record]]:
    """Records by scene and views, in the order of their first appearance."""
    found: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        found.setdefault((record["scene"], record["views"]), []).append(record)
    return found


def of_method(records: Iterable[Record], method: str) -> list[Record]:
    """The runs of one method."""
    return [record for record in records if record["method"] == method]


def pairs(cell: Sequence[Record], method: str, baseline: str) -> list[tuple[Record, Record]]:
    """Runs of the method with the baseline's run of the same seed, where there is one."""
    by_seed = {record["seed"]: record for record in of_method(cell, baseline)}
    return [
        (record, by_seed[record["seed"]])
        for record in of_method(cell, method)
        if record["seed"] in by_seed
    ]


def paired_difference(
    cell: Sequence[Record], method: str, baseline: str, metric: str
) -> Spread | None:
    """Method minus baseline, over the seeds that both have."""
    return spread(
        ours[metric] - theirs[metric]
        for ours, theirs in pairs(cell, method, baseline)
        if ours[metric] is not None and theirs[metric] is not None
    )


def view_differences(cell: Sequence[Record], method: str, baseline: str) -> list[ViewDifference]:
    """Every test view of every pair, in the order of the records."""
    found = []
    for ours, theirs in pairs(cell, method, baseline):
        before = {view["name"]: view["psnr"] for view in theirs["per_view"]}
        for index, view in enumerate(ours["per_view"]):
            if view["psnr"] is None or before.get(view["name"]) is None:
                continue
            difference = view["psnr"] - before[view["name"]]
            found.append(ViewDifference(view["name"], difference, ours, theirs, index))
    return found


def worst_view(records: Iterable[Record]) -> dict[str, Any] | None:
    """Name and PSNR of the view that a method renders worst, over all its seeds."""
    worst = [record["worst_view"] for record in records if record["worst_view"] is not None]
    return min(worst, key=lambda view: view["psnr"], default=None)


def group_label(group: tuple[float, float]) -> str:
    """`6 to 10 views`."""
    low, high = group
    return f"{low} views and more" if math.isinf(high) else f"{low} to {high} views"


def group_means(
    records: Sequence[Record], method: str, baseline: str
) -> list[tuple[str, int, dict[str, Spread | None], dict[str, Spread | None]]]:
    """For each group of view counts: label, scenes, means, and differences to the baseline.

    Every scene weighs the same, however many cells it has in the group; `deviation` is over
    scenes. Only cells that have the baseline too are counted, so that mean and difference are of
    the same runs.
    """
    rows = []
    for group in GROUPS:
        values: dict[str, dict[str, list[float]]] = {name: {} for name in METRICS}
        differences: dict[str, dict[str, list[float]]] = {name: {} for name in METRICS}
        scenes = set()
        for (scene, _), cell in cells(records).items():
            paired = pairs(cell, method, baseline)
            if not paired or not group[0] <= len(paired[0][0]["train"]) <= group[1]:
                continue
            scenes.add(scene)
            for name in METRICS:
                mean = spread(ours[name] for ours, _ in paired)
                difference = paired_difference(cell, method, baseline, name)
                if mean is not None:
                    values[name].setdefault(scene, []).append(mean.mean)
                if difference is not None:
                    differences[name].setdefault(scene, []).append(difference.mean)
        if scenes:
            rows.append(
                (group_label(group), len(scenes), _over_scenes(values), _over_scenes(differences))
            )
    return rows


def _over_scenes(values: dict[str, dict[str, list[float]]]) -> dict[str, Spread | None]:
    return {
        name: spread(statistics.fmean(of_scene) for of_scene in by_scene.values())
        for name, by_scene in values.items()
    }
