# SPDX-License-Identifier: Apache-2.0
"""The Markdown report of a sweep: every method against the baseline, losses like gains."""

from __future__ import annotations

from collections.abc import Sequence

from ps4pro_nerfstudio.benchmark.scenes import statistics
from ps4pro_nerfstudio.benchmark.scenes.statistics import METRICS, Record, Spread, ViewDifference

_DIGITS = {"psnr": 2, "ssim": 3, "lpips": 3}
_ABSENT = "–"


def report(records: Sequence[Record], baseline: str, command: str) -> str:
    """The whole report.

    Args:
        records: lines of results.jsonl, in the order of the plan.
        baseline: method that the others are compared with.
        command: that makes this report again.
    """
    methods = list(dict.fromkeys(record["method"] for record in records))
    nets = sorted({record["lpips_net"] for record in records if record["lpips_net"]})
    steps = sorted({record["steps"] for record in records})
    parts = [
        f"# {len(records)} runs",
        f"```bash\n{command}\n```",
        f"Steps: {', '.join(f'{count:,}' for count in steps)}. LPIPS network: "
        f"{', '.join(nets) or 'none, its weights are absent'}. "
        "Mean ± sample standard deviation over seeds. "
        f"Δ: minus `{baseline}`, paired by seed; a gain has Δ PSNR and Δ SSIM above zero and "
        "Δ LPIPS below. Worst view, largest loss and largest gain: single test views in PSNR, over "
        "all seeds. Training: the whole ns-train process, pseudo views made or loaded included; "
        "memory: its largest resident set.",
        *_summary(records, methods, baseline),
    ]
    for (scene, views), cell in statistics.cells(records).items():
        parts += _cell(scene, views, cell, methods, baseline)
    parts.append(_environment(records))
    return "\n\n".join(parts) + "\n"


def _summary(records: Sequence[Record], methods: list[str], baseline: str) -> list[str]:
    rows = []
    for row in statistics.scene_means(records, methods, baseline):
        is_baseline = row.method == baseline
        cells = [row.label, row.method, str(row.num_scenes)]
        for name in METRICS:
            cells.append(number(row.means[name], name))
            cells.append(difference(row.differences[name], name, is_baseline))
        loss = row.largest_loss
        cells.append(
            _ABSENT if is_baseline or loss is None else f"{loss.record['scene']} {_change(loss)}"
        )
        rows.append(cells)
    if not rows:
        return []
    header = ["training views", "method", "scenes", *_metric_columns(), "largest loss, dB"]
    return [
        "## Mean over scenes",
        "Every scene weighs the same, ± is over scenes. Only runs that have their baseline count, "
        "and only methods that ran wherever the baseline did have a row.",
        _markdown(header, rows, num_left=2),
    ]


def _cell(
    scene: str, views: str, cell: list[Record], methods: list[str], baseline: str
) -> list[str]:
    counts = sorted({(len(record["train"]), len(record["test"])) for record in cell})
    sizes = ", ".join(f"{train} training and {test} test views" for train, test in counts)
    rows = []
    for method in methods:
        runs = statistics.of_method(cell, method)
        if not runs:
            continue
        row = [method, str(len(runs))]
        for name in METRICS:
            row.append(number(statistics.spread(run[name] for run in runs), name))
            change = statistics.paired_difference(cell, method, baseline, name)
            row.append(difference(change, name, method == baseline))
        worst = statistics.worst_view(runs)
        row.append(f"{worst[0]} {worst[1]:.2f}" if worst else _ABSENT)
        changes = statistics.view_differences(cell, method, baseline)
        for extreme in (min, max):
            if method == baseline or not changes:
                row.append(_ABSENT)
            else:
                row.append(_change(extreme(changes, key=lambda change: change.difference)))
        for key, unit in (("gaussians", 1), ("train_seconds", 1), ("peak_memory_bytes", 2**20)):
            mean = statistics.spread(run[key] for run in runs)
            row.append(_ABSENT if mean is None else f"{mean.mean / unit:,.0f}")
        rows.append(row)
    header = [
        *("method", "seeds", *_metric_columns(), "worst view, dB", "largest loss, dB"),
        *("largest gain, dB", "Gaussians", "training, s", "memory, MiB"),
    ]
    return [f"## {scene}, {views}: {sizes}", _markdown(header, rows, num_left=1)]


def _environment(records: Sequence[Record]) -> str:
    lines = []
    for record in records:
        machine = record["machine"]
        versions = ", ".join(f"{name} {value}" for name, value in machine["versions"].items())
        line = (
            f"{machine['device']}, {machine['cpu']}, {machine['cores']} cores, "
            f"{record['threads']} threads a job, {machine['platform']}; {versions}"
        )
        if line not in lines:
            lines.append(line)
    return "\n".join(["## Measured on", "", *(f"- {line}" for line in lines)])


def _metric_columns() -> list[str]:
    return [title for name in METRICS for title in (name.upper(), f"Δ {name.upper()}")]


def number(value: Spread | None, metric: str) -> str:
    """`24.31 ± 0.12`; without the deviation for a single run."""
    if value is None:
        return _ABSENT
    digits = _DIGITS[metric]
    text = f"{value.mean:.{digits}f}"
    return text if value.deviation is None else f"{text} ± {value.deviation:.{digits}f}"


def difference(value: Spread | None, metric: str, is_baseline: bool) -> str:
    """`+0.71 ± 0.08`, with its sign; nothing for the baseline itself."""
    if value is None or is_baseline:
        return _ABSENT
    digits = _DIGITS[metric]
    text = _signed(value.mean, digits)
    return text if value.deviation is None else f"{text} ± {value.deviation:.{digits}f}"


def _change(view: ViewDifference) -> str:
    """`0042.png −1.10`."""
    return f"{statistics.short_name(view.name, view.record)} {_signed(view.difference, 2)}"


def _signed(value: float, digits: int) -> str:
    return f"{value:+.{digits}f}".replace("-", "−")


def _markdown(header: list[str], rows: list[list[str]], num_left: int) -> str:
    rule = ["---"] * num_left + ["---:"] * (len(header) - num_left)
    return "\n".join("| " + " | ".join(row) + " |" for row in (header, rule, *rows))
