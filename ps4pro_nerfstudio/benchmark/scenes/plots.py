# SPDX-License-Identifier: Apache-2.0
"""PSNR, SSIM and LPIPS against the number of training views, one panel for each scene."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ps4pro_nerfstudio.benchmark.scenes import statistics
from ps4pro_nerfstudio.benchmark.scenes.statistics import METRICS, Record, Spread

_TITLES = {"psnr": "PSNR, dB (higher is better)", "ssim": "SSIM (higher is better)"}
_PANEL_INCHES = (4.2, 3.4)


def curve(
    records: Sequence[Record], scene: str, method: str, metric: str
) -> list[tuple[int, Spread]]:
    """Number of training views, and mean and deviation over the runs with so many; ascending."""
    runs = [run for run in statistics.of_method(records, method) if run["scene"] == scene]
    points = []
    for count in sorted({len(run["train"]) for run in runs}):
        value = statistics.spread(run[metric] for run in runs if len(run["train"]) == count)
        if value is not None:
            points.append((count, value))
    return points


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
                points = curve(records, scene, method, metric)
                axes.errorbar(
                    [count for count, _ in points],
                    [value.mean for _, value in points],
                    yerr=[value.deviation or 0.0 for _, value in points],
                    color=f"C{color}",
                    marker="o",
                    markersize=4,
                    capsize=3,
                    label=method,
                )
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
