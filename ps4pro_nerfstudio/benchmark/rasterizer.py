# SPDX-License-Identifier: Apache-2.0
"""Times of the rasterizer and of a whole training step: `ps4pro bench rasterizer`.

For each number of Gaussians, image size and number of threads: projection, binning, compositing,
loss and Adam, each forward and backward, and the whole step through the public functions. On the
first of these scenes also the torch twin with one thread, which the speed is stated against; and in
processes of their own the time of the first call with an empty and with a filled kernel cache. With
a GPU, gsplat on the same inputs.

"Compositing" is blending forward and backward, given the tile lists; binning is counted apart, in
ours and in the twin alike. Variants are interleaved (see `timing`): trust the ratios, and the times
only on a machine without other work.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from ps4pro_nerfstudio.benchmark.timing import (
    Variant,
    available_cores,
    describe_machine,
    interleaved_medians,
)
from ps4pro_nerfstudio.messages import InputError, say

# The bars of the project; each is a ratio or a time that a user waits for.
TWIN_BAR = 60.0
SCALING_BAR = 1.8
STEP_BAR = 2.2
COLD_START_BAR_S = 10.0
WARM_START_BAR_S = 1.0

_QUICK_REPETITIONS = 5
_STAGES = ("project", "project_backward", "binning", "composite", "composite_backward")
_FIRST_CALL_TIMEOUT_S = 600

# Runs in a process of its own; imports are counted from numba on, which the first call imports.
_FIRST_CALL = """
import json, time
import torch
from ps4pro_nerfstudio.splatting import rasterization
from ps4pro_nerfstudio.splatting.losses import l1_ssim_loss
from ps4pro_nerfstudio.splatting.scene import make_scene
scene = make_scene(200, 64, 48)
names = ("means", "quats", "scales", "opacities", "sh")
arguments = [scene[name].requires_grad_(True) for name in names]
camera = scene["viewmat"][None], scene["intrinsics"][None], 64, 48
def call():
    begin = time.perf_counter()
    render, _, info = rasterization(*arguments, *camera, sh_degree=3, packed=False, absgrad=True)
    l1_ssim_loss(render[0], torch.zeros(48, 64, 3)).backward()
    return time.perf_counter() - begin
print(json.dumps([call(), call()]))
"""


@dataclass
class RasterizerBenchmark:
    """Measure the CPU rasterizer and a whole training step."""

    gaussians: tuple[int, ...] = (20_000, 50_000, 200_000)
    """Numbers N of Gaussians."""
    resolutions: tuple[tuple[int, int], ...] = ((320, 180), (640, 360), (1280, 720))
    """Image sizes, width and height in pixels."""
    threads: tuple[int, ...] = (1, 0)
    """Numbers of threads; 0 stands for all cores. Where there are more than two, two are added,
    since a bar is about them."""
    repetitions: int = 15
    """Counted runs of each variant; the median is reported."""
    twin_repetitions: int = 3
    """Counted runs of the torch twin (a second or more each), on the first scene only."""
    seed: int = 0
    """Seed of the synthetic scene."""
    first_call: bool = True
    """Measure the first call in new processes: compiling takes some 20 s."""
    output: Path | None = Path("rasterizer_benchmark.json")
    """JSON file to write; None writes none."""
    quick: bool = False
    """Only the first number of Gaussians at the first size, 5 repetitions: less than a minute."""

    def run(self) -> dict[str, Any]:
        """Measure, print the tables, write the JSON and return its content.

        Raises:
            InputError: a list is empty or a number is out of range.
        """
        self._check()
        import torch

        results: dict[str, Any] = {
            "machine": describe_machine(),
            "settings": self._settings(),
            "scenes": [],
        }
        threads_before = torch.get_num_threads()
        with Progress(transient=True) as progress:
            task = progress.add_task("measuring", total=self._num_runs())
            advance = functools.partial(progress.advance, task)
            try:
                if self.first_call:
                    progress.update(task, description="first call")
                    results["first_call"] = measure_first_call()
                    advance()
                for index, (count, size) in enumerate(self._scenes()):
                    progress.update(task, description=f"{count} Gaussians, {size[0]}x{size[1]}")
                    results["scenes"].append(self._measure(count, size, index == 0, advance))
            finally:
                torch.set_num_threads(threads_before)
        results["bars"] = bars(results)
        print_tables(results)
        if self.output is not None:
            self.output.write_text(json.dumps(results, indent=2) + "\n")
            say(f"wrote {self.output}")
        return results

    # ------------------------------------------------------------------ settings

    def _check(self) -> None:
        lists = {
            "gaussians": self.gaussians,
            "resolutions": self.resolutions,
            "threads": self.threads,
        }
        for name, values in lists.items():
            if not values:
                raise InputError(f"{name} is empty; give at least one")
        if min(self.gaussians) < 100 or min(min(size) for size in self.resolutions) < 16:
            raise InputError("the benchmark needs at least 100 Gaussians and 16 pixels a side")
        if min(self.repetitions, self.twin_repetitions) < 1 or min(self.threads) < 0:
            raise InputError("repetitions must be at least 1, threads at least 0")

    def _scenes(self) -> list[tuple[int, tuple[int, int]]]:
        pairs = [(count, size) for size in self.resolutions for count in self.gaussians]
        return pairs[:1] if self.quick else pairs

    def _thread_counts(self) -> list[int]:
        cores = available_cores()
        counts = {min(count or cores, cores) for count in self.threads}
        if max(counts) > 2:
            counts.add(2)
        return sorted(counts)

    def _repetitions(self) -> int:
        return min(self.repetitions, _QUICK_REPETITIONS) if self.quick else self.repetitions

    def _settings(self) -> dict[str, Any]:
        return {
            "threads": self._thread_counts(),
            "repetitions": self._repetitions(),
            "twin_repetitions": self.twin_repetitions,
            "seed": self.seed,
            "spherical_harmonics_degree": 3,
            "statistic": "median of interleaved runs, milliseconds",
        }

    def _num_runs(self) -> int:
        """Runs of single variants, for the progress bar."""
        import torch

        per_thread_count = 2
        one_thread = 4
        gpu = 2 * torch.cuda.is_available()
        variants = per_thread_count * len(self._thread_counts()) + one_thread + gpu
        runs = len(self._scenes()) * variants * (self._repetitions() + 1)
        return runs + self.twin_repetitions + 1 + self.first_call

    # ------------------------------------------------------------------ measurement

    def _measure(
        self, count: int, size: tuple[int, int], with_twin: bool, advance: Callable[[], Any]
    ) -> dict[str, Any]:
        """Everything about one scene; the torch twin on request."""
        import torch

        from ps4pro_nerfstudio.benchmark import workloads
        from ps4pro_nerfstudio.splatting import reference
        from ps4pro_nerfstudio.splatting.scene import make_scene

        width, height = size
        scene = make_scene(count, width, height, seed=self.seed, scale=_scale(size))
        rasterizer = workloads.Rasterizer(scene)
        step = workloads.TrainingStep(scene)
        variants: dict[str, Variant] = {}
        for threads in self._thread_counts():
            variants[f"rasterizer {threads}"] = _with_threads(threads, rasterizer)
            variants[f"step {threads}"] = _with_threads(threads, step)
        for upstream in (False, True):
            loss = workloads.Loss(width, height, upstream)
            variants["pytorch_msssim" if upstream else "loss"] = _with_threads(1, loss)
        for fused in (True, False):
            adam = workloads.AdamStep(count, fused)
            variants["adam_fused" if fused else "adam_foreach"] = _with_threads(1, adam)
        if torch.cuda.is_available():
            variants |= _gpu_variants(scene)
        medians = interleaved_medians(variants, self._repetitions(), advance)

        result: dict[str, Any] = {
            "gaussians": count,
            "width": width,
            "height": height,
            "visible": rasterizer.num_visible,
            "intersections": rasterizer.num_intersections,
            "threads": {
                str(threads): _per_thread_count(
                    medians[f"rasterizer {threads}"], medians[f"step {threads}"]
                )
                for threads in self._thread_counts()
            },
            "one_thread_ms": {
                "loss": medians["loss"]["loss"],
                "loss_pytorch_msssim": medians["pytorch_msssim"]["loss"],
                "adam_fused": medians["adam_fused"]["adam"],
                "adam_foreach": medians["adam_foreach"]["adam"],
            },
        }
        if "gpu_step" in medians:
            result["gpu"] = _gpu_result(medians, scene)
        if with_twin:
            twin = workloads.Rasterizer(scene, reference)
            alternating = {
                "twin": _with_threads(1, twin),
                "ours": _with_threads(1, rasterizer),
            }
            pair = interleaved_medians(alternating, self.twin_repetitions)
            for _ in range(self.twin_repetitions + 1):
                advance()
            result["torch_twin"] = {
                name: _compositing(stages) | {f"{k}_ms": stages[k] for k in _STAGES}
                for name, stages in pair.items()
            }
        result["ratios"] = ratios(result)
        return result


def _scale(size: tuple[int, int]) -> float:
    """Factor on the scales of the Gaussians that keeps 30 to 40 of them in every pixel."""
    return 0.95 if size[0] <= 320 else 1.2


def _with_threads(count: int, variant: Variant) -> Variant:
    """The same variant, run with this number of threads."""
    import torch

    def run() -> dict[str, float]:
        torch.set_num_threads(count)
        return variant()

    return run


def _compositing(stages: dict[str, float]) -> dict[str, float]:
    return {"compositing_ms": stages["composite"] + stages["composite_backward"]}


def _per_thread_count(rasterizer: dict[str, float], step: dict[str, float]) -> dict[str, float]:
    times = {f"{stage}_ms": rasterizer[stage] for stage in _STAGES}
    return times | _compositing(rasterizer) | {"step_ms": step["step"]}


def ratios(scene: dict[str, Any]) -> dict[str, float]:
    """Ratios of the times of one scene, from its medians; absent where a time is.

    twin_over_ours: compositing of the torch twin over ours, interleaved, one thread each.
    twin_projection_over_ours: the same of projection with spherical harmonics.
    scaling_T: compositing with one thread over T threads; step_scaling_T of the whole step.
    step_over_compositing: whole step over compositing, one thread.
    loss_pytorch_msssim_over_ours, adam_foreach_over_fused: one thread.
    """
    found: dict[str, float] = {}
    if "torch_twin" in scene:
        twin, ours = scene["torch_twin"]["twin"], scene["torch_twin"]["ours"]
        found["twin_over_ours"] = twin["compositing_ms"] / ours["compositing_ms"]
        found["twin_projection_over_ours"] = (twin["project_ms"] + twin["project_backward_ms"]) / (
            ours["project_ms"] + ours["project_backward_ms"]
        )
    one = scene["threads"].get("1")
    for count, times in scene["threads"].items():
        if one is not None and count != "1":
            found[f"scaling_{count}"] = one["compositing_ms"] / times["compositing_ms"]
            found[f"step_scaling_{count}"] = one["step_ms"] / times["step_ms"]
    if one is not None:
        found["step_over_compositing"] = one["step_ms"] / one["compositing_ms"]
    single = scene["one_thread_ms"]
    found["loss_pytorch_msssim_over_ours"] = single["loss_pytorch_msssim"] / single["loss"]
    found["adam_foreach_over_fused"] = single["adam_foreach"] / single["adam_fused"]
    return found


# --------------------------------------------------------------------------- GPU


def _gpu_variants(scene: dict[str, Any]) -> dict[str, Variant]:
    """Gsplat through the same public function, on the same inputs."""
    from ps4pro_nerfstudio.benchmark import workloads

    step = workloads.TrainingStep(scene, "cuda")
    return {"gpu_step": step, "gpu_render": workloads.CudaRender(step)}


def _gpu_result(medians: dict[str, dict[str, float]], scene: dict[str, Any]) -> dict[str, float]:
    """Times of gsplat, and how far its image is from ours."""
    import torch

    from ps4pro_nerfstudio.benchmark import workloads

    with torch.no_grad():
        ours = workloads.TrainingStep(scene).render()
        theirs = workloads.TrainingStep(scene, "cuda").render().cpu()
    difference = (ours - theirs).abs()
    return {
        "forward_ms": medians["gpu_render"]["forward"],
        "backward_ms": medians["gpu_render"]["backward"],
        "step_ms": medians["gpu_step"]["step"],
        "image_mean_difference": float(difference.mean()),
        "image_largest_difference": float(difference.max()),
    }


# --------------------------------------------------------------------------- first call


def measure_first_call() -> dict[str, float]:
    """Seconds of the first render, loss and gradient of a process, without and with cached kernels.

    Both run in new processes; the import of torch and of this package is not counted, that of numba
    is. `steady_s` is the same call a second time.

    Raises:
        RuntimeError: the process failed; its last line of output is in the message.
    """
    with tempfile.TemporaryDirectory(prefix="ps4pro-kernels-") as folder:
        cold, _ = _first_call_in_new_process(Path(folder))
        warm, steady = _first_call_in_new_process(Path(folder))
    return {"cold_s": cold, "warm_s": warm, "steady_s": steady}


def _first_call_in_new_process(kernel_cache: Path | None) -> tuple[float, float]:
    """Seconds of the first and of the second call; None stands for the user's own cache."""
    environment = dict(os.environ, PS4PRO_RASTERIZER="numba")
    if kernel_cache is not None:
        environment["NUMBA_CACHE_DIR"] = str(kernel_cache)
    process = subprocess.run(
        [sys.executable, "-c", _FIRST_CALL],
        env=environment,
        capture_output=True,
        text=True,
        timeout=_FIRST_CALL_TIMEOUT_S,
        check=False,
    )
    if process.returncode != 0:
        output = (process.stderr.strip() or process.stdout.strip()).splitlines() or ["no output"]
        raise RuntimeError(f"the first call in a new process failed: {output[-1]}")
    first, second = json.loads(process.stdout.strip().splitlines()[-1])
    return first, second


# --------------------------------------------------------------------------- report


def bars(results: dict[str, Any]) -> list[dict[str, Any]]:
    """What the project promises, what was measured on the first scene, and whether it holds.

    A bar whose measurement was left out has the value and the verdict None.
    """
    scene = results["scenes"][0]
    measured = scene["ratios"]
    first_call = results.get("first_call", {})
    lines = (
        ("compositing, torch twin over ours, 1 thread", "twin_over_ours", measured, ">=", TWIN_BAR),
        ("compositing, 1 thread over 2", "scaling_2", measured, ">=", SCALING_BAR),
        ("whole step over compositing", "step_over_compositing", measured, "<=", STEP_BAR),
        ("first call, nothing compiled, s", "cold_s", first_call, "<=", COLD_START_BAR_S),
        ("first call, kernels cached, s", "warm_s", first_call, "<=", WARM_START_BAR_S),
    )
    return [
        {
            "name": name,
            "value": values.get(key),
            "direction": direction,
            "limit": limit,
            "passed": _passes(values.get(key), direction, limit),
        }
        for name, key, values, direction, limit in lines
    ]


def _passes(value: float | None, direction: str, limit: float) -> bool | None:
    if value is None:
        return None
    return value >= limit if direction == ">=" else value <= limit


def print_tables(results: dict[str, Any], console: Console | None = None) -> None:
    """Print the machine, the times of each scene, the ratios and the bars."""
    console = console or Console()
    machine = results["machine"]
    load = machine["load_average"]
    console.print(
        f"{machine['cpu']}, {machine['cores']} cores, {machine['instruction_set']}, torch "
        f"{machine['versions'].get('torch')}, numba {machine['versions'].get('numba')}"
        + ("" if load is None else f", load average {load:.1f} (below 0.3 is quiet)")
    )
    for table in (_times_table(results), _ratios_table(results), _bars_table(results)):
        console.print(table)
    for scene in results["scenes"]:
        if "gpu" in scene:
            _print_gpu(scene, machine["gpu"], console)


def _label(scene: dict[str, Any]) -> str:
    return f"{scene['gaussians']:,} at {scene['width']}x{scene['height']}"


def _times_table(results: dict[str, Any]) -> Table:
    columns = (
        ("project", "project_ms"),
        ("bin", "binning_ms"),
        ("composite", "composite_ms"),
        ("composite'", "composite_backward_ms"),
        ("project'", "project_backward_ms"),
        ("whole step", "step_ms"),
    )
    table = Table(title="Milliseconds, ' is backward", title_justify="left")
    table.add_column("Gaussians")
    table.add_column("threads", justify="right")
    for title, _ in columns:
        table.add_column(title, justify="right")
    for scene in results["scenes"]:
        for count, times in scene["threads"].items():
            table.add_row(_label(scene), count, *(f"{times[key]:.2f}" for _, key in columns))
        with contextlib.suppress(KeyError):
            twin = scene["torch_twin"]["twin"]
            cells = (f"{twin[key]:.2f}" for _, key in columns[:-1])
            table.add_row("  torch twin", "1", *cells, "")
    return table


def _ratios_table(results: dict[str, Any]) -> Table:
    names = list(dict.fromkeys(name for scene in results["scenes"] for name in scene["ratios"]))
    table = Table(title="Ratios", title_justify="left")
    table.add_column("")
    for scene in results["scenes"]:
        table.add_column(_label(scene), justify="right")
    for name in names:
        values = (scene["ratios"].get(name) for scene in results["scenes"])
        cells = ("" if value is None else f"{value:.2f}" for value in values)
        table.add_row(name.replace("_", " "), *cells)
    return table


def _bars_table(results: dict[str, Any]) -> Table:
    verdicts = {True: "[green]holds[/]", False: "[red]missed[/]", None: "not measured"}
    table = Table(title=f"Bars, {_label(results['scenes'][0])}", title_justify="left")
    for title in ("", "measured", "bar", ""):
        table.add_column(title, justify="right" if title else "left")
    for bar in results["bars"]:
        value = "" if bar["value"] is None else f"{bar['value']:.2f}"
        limit = f"{bar['direction']} {bar['limit']:g}"
        table.add_row(bar["name"], value, limit, verdicts[bar["passed"]])
    return table


def _print_gpu(scene: dict[str, Any], name: str | None, console: Console) -> None:
    gpu = scene["gpu"]
    console.print(
        f"gsplat on {name}, {_label(scene)}: forward {gpu['forward_ms']:.2f} ms, backward "
        f"{gpu['backward_ms']:.2f} ms, whole step {gpu['step_ms']:.2f} ms; image differs from ours "
        f"by {gpu['image_mean_difference']:.1e} in the mean, {gpu['image_largest_difference']:.1e} "
        "at most"
    )
