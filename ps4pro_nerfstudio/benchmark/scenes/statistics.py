# SPDX-License-Identifier: Apache-2.0
"""Means and paired differences over the records of a sweep.

A *cell* is one scene with one specification of its views. Differences to the baseline pair runs of
one cell with the same seed: what the seed does to both cancels. A difference of PSNR or SSIM above
zero is a gain, of LPIPS below zero. A test view is named by its path relative to the capture; in
records of earlier versions by its file name alone.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

METRICS = ("psnr", "ssim", "lpips")

# Numbers of training views that are averaged together.
GROUPS = ((2, 5), (6, 10), (11, 20), (21, math.inf))

Record = dict[str, Any]
Cells = dict[tuple[str, str], list[Record]]
"""Runs by scene and specification of the views."""


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
    view: dict[str, Any]
    """Entry of `per_view` of the method's record."""
    baseline_view: dict[str, Any]


@dataclass(frozen=True)
class SceneMeans:
    """One method over several scenes, each of which weighs the same."""

    label: str
    """Which training views: a group of counts, or one specification."""
    method: str
    num_scenes: int
    means: dict[str, Spread | None]
    """By metric, over the runs that have a run of the baseline; the deviation is over scenes."""
    differences: dict[str, Spread | None]
    largest_loss: ViewDifference | None


def spread(values: Iterable[float | None]) -> Spread | None:
    """Mean and deviation of the values that are there; None without any."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    deviation = statistics.stdev(known) if len(known) > 1 else None
    return Spread(statistics.fmean(known), deviation, len(known))


def cells(records: Iterable[Record]) -> Cells:
    """Records by scene and views, in the order of their first appearance."""
    found: Cells = {}
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
        if ours[metric] is not None
        and theirs[metric] is not None
        # Distances by different networks have no difference.
        and (metric != "lpips" or ours["lpips_net"] == theirs["lpips_net"])
    )


def views_by_name(record: Record) -> dict[str, dict[str, Any]]:
    """Entries of `per_view`, without those whose name another one has too.

    Records of earlier versions name files without their folders: of views that share a name nobody
    knows which is which, so they are compared with nothing.
    """
    counts = Counter(view["name"] for view in record["per_view"])
    return {view["name"]: view for view in record["per_view"] if counts[view["name"]] == 1}


def short_name(name: str, record: Record) -> str:
    """File name of a test view; its path where the run has another view of that file name."""
    last = PurePosixPath(name).name
    same = [other for other in record["test"] if PurePosixPath(other).name == last]
    return last if len(same) <= 1 else name


def view_differences(cell: Sequence[Record], method: str, baseline: str) -> list[ViewDifference]:
    """Every test view of every pair, in the order of the records."""
    found = []
    for ours, theirs in pairs(cell, method, baseline):
        before = views_by_name(theirs)
        for name, view in views_by_name(ours).items():
            other = before.get(name)
            if other is None or view["psnr"] is None or other["psnr"] is None:
                continue
            difference = view["psnr"] - other["psnr"]
            found.append(ViewDifference(name, difference, ours, theirs, view, other))
    return found


def worst_view(records: Iterable[Record]) -> tuple[str, float] | None:
    """Short name and PSNR of the view that a method renders worst, over all its seeds."""
    worst = [
        (short_name(view["name"], record), view["psnr"])
        for record in records
        if (view := record["worst_view"]) is not None
    ]
    return min(worst, key=lambda view: view[1], default=None)


def group_label(group: tuple[float, float]) -> str:
    """`6 to 10 views`."""
    low, high = group
    return f"{low} views and more" if math.isinf(high) else f"{low} to {high} views"


def scene_means(
    records: Sequence[Record], methods: Sequence[str], baseline: str
) -> list[SceneMeans]:
    """Means over scenes for each group of view counts, then for each specification of the views.

    A method has a row where it was paired with the baseline in every cell in which the baseline
    ran: means over different scenes cannot be compared. A specification has rows where several
    scenes have it and they are not those of a group.
    """
    rows = []
    for label, selected in _selections(records, baseline):
        for method in methods:
            if all(pairs(cell, method, baseline) for cell in selected.values()):
                rows.append(_mean_over_scenes(label, selected, method, baseline))
    return rows


def _selections(records: Sequence[Record], baseline: str) -> list[tuple[str, Cells]]:
    """Labels and cells of the groups, then of the specifications that are not one of the groups."""
    usable = {key: cell for key, cell in cells(records).items() if of_method(cell, baseline)}
    found: list[tuple[str, Cells]] = []
    for low, high in GROUPS:
        selected = {
            key: cell for key, cell in usable.items() if low <= len(cell[0]["train"]) <= high
        }
        if selected:
            specifications = ", ".join(dict.fromkeys(views for _, views in selected))
            found.append((f"{group_label((low, high))} ({specifications})", selected))
    groups = [selected.keys() for _, selected in found]
    for specification in dict.fromkeys(views for _, views in usable):
        selected = {key: cell for key, cell in usable.items() if key[1] == specification}
        if len(selected) > 1 and selected.keys() not in groups:
            found.append((specification, selected))
    return found


def _mean_over_scenes(label: str, selected: Cells, method: str, baseline: str) -> SceneMeans:
    means, differences = {}, {}
    for name in METRICS:
        means[name] = _over_scenes(
            {
                key: spread(ours[name] for ours, _ in pairs(cell, method, baseline))
                for key, cell in selected.items()
            }
        )
        differences[name] = _over_scenes(
            {key: paired_difference(cell, method, baseline, name) for key, cell in selected.items()}
        )
    views = [v for cell in selected.values() for v in view_differences(cell, method, baseline)]
    return SceneMeans(
        label=label,
        method=method,
        num_scenes=len({scene for scene, _ in selected}),
        means=means,
        differences=differences,
        largest_loss=min(views, key=lambda view: view.difference, default=None),
    )


def _over_scenes(values: dict[tuple[str, str], Spread | None]) -> Spread | None:
    """Spread of the scenes' means; None where a cell lacks the value."""
    by_scene: dict[str, list[float]] = {}
    for (scene, _), value in values.items():
        if value is None:
            return None
        by_scene.setdefault(scene, []).append(value.mean)
    return spread(statistics.fmean(of_scene) for of_scene in by_scene.values())
