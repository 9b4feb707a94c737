# SPDX-License-Identifier: Apache-2.0
"""PSNR, SSIM and LPIPS against the number of training views, one panel for each scene.

A point is one specification of the views, however many have the same number; those that are not a
number stand beside their points. A line joins points of the same test views: others differ in what
was asked of the method.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ps4pro_nerfstudio.benchmark.scenes import statistics
from ps4pro_nerfstudio.benchmark.scenes.statistics import METRICS, Record, Spread

_TITLES = {"psnr": "PSNR, dB (higher is better)", "ssim": "SSIM (higher is better)"}
_PANEL_INCHES = (4.2, 3.4)


@dataclass(frozen=True)
class Point:
    """Runs of one method on one scene with one specification of the training views."""

    views: str
    num_train: int
    test: tuple[str, ...]
    """Names of the test views."""
    value: Spread


def curve(records: Sequence[Record], scene: str, method: str, metric: str) -> list[Point]:
    """A point for each specification of the views, by ascending number of training views."""
    points = []
    for (name, views), cell in statistics.cells(records).items():
        runs = statistics.of_method(cell, method)
        value = statistics.spread(run[metric] for run in runs)
        if name == scene and value is not None:
            points.append(Point(views, len(runs[0]["train"]), tuple(runs[0]["test"]), value))
    return sorted(points, key=lambda point: point.num_train)


def lines(points: Sequence[Point]) -> list[list[Point]]:
    """Points of the same test views together, in their order."""
    found: dict[tuple[str, ...], list[Point]] = {}
    for point in points:
        found.setdefault(point.test, []).append(point)
    return list(found.values())


def write_plots(records: Sequence[Record], folder: Path) -> list[Path]:
    """Write psnr.png, ssim.png and, where it was measured, lpips.png; error bars are deviations."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    scenes = list(dict.fromkeys(record["scene"] for record in records))
    methods = list(dict.fromkeys(record["method"] for record in records))
    nets = sorted({record["lpips_net"] for record in records if record["lpips_net"]})
    titles = {**_TITLES, "lpips": f"LPIPS, {', '.join(nets)} (lower is better)"}
    written = []
    for metric in METRICS:
        if all(record[metric] is None for record in records):
            continue
        figure = Figure(figsize=(_PANEL_INCHES[0] * len(scenes), _PANEL_INCHES[1]))
        FigureCanvasAgg(figure)
        for index, scene in enumerate(scenes, 1):
            axes = figure.add_subplot(1, len(scenes), index)
            for color, method in enumerate(methods):
                _draw(axes, curve(records, scene, method, metric), f"C{color}", method)
            _name_points(axes, [p for m in methods for p in curve(records, scene, m, metric)])
            axes.set_title(scene)
            axes.set_xlabel("training views")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.grid(alpha=0.3)
            if index == 1:
                axes.set_ylabel(titles[metric])
                axes.legend(fontsize="small")
        figure.tight_layout()
        path = folder / f"{metric}.png"
        figure.savefig(path, dpi=120)
        written.append(path)
    return written


def _draw(axes: Any, points: Sequence[Point], color: str, method: str) -> None:
    """Lines of one method; without points its name still comes into the legend."""
    for index, line in enumerate(lines(points) or [[]]):
        axes.errorbar(
            [point.num_train for point in line],
            [point.value.mean for point in line],
            yerr=[point.value.deviation or 0.0 for point in line],
            color=color,
            marker="o",
            markersize=4,
            capsize=3,
            label=method if index == 0 else None,
        )


def _name_points(axes: Any, points: Sequence[Point]) -> None:
    """Write each specification that is not a number beside the first of its points."""
    named = {point.views: point for point in reversed(points) if not point.views.isdecimal()}
    for point in named.values():
        axes.annotate(
            point.views,
            (point.num_train, point.value.mean),
            xytext=(4, 4),
            textcoords="offset points",
            fontsize="x-small",
        )
