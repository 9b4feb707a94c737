# SPDX-License-Identifier: Apache-2.0
"""`ps4pro bench scenes`: a resumable sweep and its report."""

from __future__ import annotations

import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import tyro

from ps4pro_nerfstudio.benchmark.scenes import results
from ps4pro_nerfstudio.benchmark.scenes.arms import ARMS, find_arm
from ps4pro_nerfstudio.benchmark.scenes.captures import plan_capture
from ps4pro_nerfstudio.benchmark.scenes.execution import (
    Executor,
    Outcome,
    RealWork,
    Work,
    run_locally,
)
from ps4pro_nerfstudio.benchmark.scenes.plan import Job, make_plan, superseded
from ps4pro_nerfstudio.messages import InputError, counted, fail, say, warn


@dataclass
class ScenesBenchmark:
    """Train and evaluate scenes x methods x views x seeds, and report against a baseline."""

    data: tuple[Path, ...]
    """Folders of captures; their names are the names of the scenes."""
    output: Path = Path("bench-scenes")
    """Folder for results.jsonl, table.md, plots, contact_sheet.png and the runs. A sweep that was
    broken off goes on where it stopped when it is started again with the same folder; results of
    another version of the code are kept, but neither used nor shown."""
    views: tuple[str, ...] = ("6", "10", "dense")
    """Training views: a number (evenly spaced), every-K (all others are test views), or dense
    (every 8th is a test view); fox:17 is for the scene fox alone."""
    methods: tuple[str, ...] = ("plain", "ps4pro")
    """Names of the table that --list prints, or any other method of ns-train."""
    baseline: str = "plain"
    """Method that the others are compared with; it must be among the methods."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of ns-train's machine."""
    steps: int = 5000
    """Training steps, the same for all methods."""
    max_long_side: int = 480
    """Images are reduced by the smallest whole number that brings them to this many pixels, 6 %
    more tolerated."""
    test_cap: int | None = None
    """Largest number of test views; None takes all."""
    jobs: int = 1
    """Jobs at once on this machine, or on the Ray that --ray local starts."""
    threads: int = 2
    """Threads of each job; with Ray also the CPUs it asks for."""
    device: Literal["cpu", "cuda", "mps"] | None = None
    """Device that ns-train is told; None leaves it to the method (nerfstudio's own want cuda)."""
    ray: str | None = None
    """Run the jobs over Ray: the address of a cluster, auto to find it, local to start one here.
    All machines must see the captures and the output folder under the same paths."""
    gpus_per_job: float = 0.0
    """GPUs, or a part of one, that a job asks Ray for; 0 trains on CPUs."""
    keep_checkpoints: bool = False
    """Keep what was trained, for ns-viewer; some 50 to 500 MB for each job."""
    plan_only: Annotated[bool, tyro.conf.arg(name="list")] = False
    """Print methods, plan and commands, and run nothing."""

    _name: ClassVar[str] = "scenes"

    def run(self) -> None:
        """Run what is missing, write the report, and fail in the end if a job did.

        Raises:
            InputError: options or captures that cannot be used.
            MissingPartError: --ray without Ray.
        """
        if self.baseline not in self.methods:
            raise InputError(
                f"--baseline {self.baseline} is not among --methods {' '.join(self.methods)}"
            )
        output = self.output.resolve()
        captures = [
            plan_capture(source, self.max_long_side, output / "captures") for source in self.data
        ]
        jobs = make_plan(
            captures,
            self.views,
            self.methods,
            self.seeds,
            steps=self.steps,
            device=self.device,
            test_cap=self.test_cap,
        )
        records = results.read(output / "results.jsonl")
        done = {record["key"] for record in records}
        if others := superseded(jobs, records):
            say(
                f"kept but not shown: {counted(len(others), 'earlier result')} of another version "
                "of the code, nerfstudio, torch or gsplat"
            )
        todo = [job for job in jobs if job.key not in done]
        if self.plan_only:
            self._print_plan(jobs, done, output)
            return
        say(f"{len(jobs)} jobs, {len(jobs) - len(todo)} of them done before; results in {output}")
        if todo:
            for capture in captures:
                capture.write()
            work = RealWork(output, self.threads, self.keep_checkpoints)
            try:
                failed = sweep(todo, work, self._executor(), output)
            except KeyboardInterrupt:
                fail(f"interrupted; the same command goes on with what is in {output}")
        else:
            failed = 0
        self._report(jobs, output)
        if failed:
            fail(f"{failed} of {len(jobs)} jobs failed; see {output / 'failures.jsonl'}")

    def _executor(self) -> Executor:
        if self.ray is None:
            return run_locally(self.jobs)
        from ps4pro_nerfstudio.benchmark.scenes.cluster import run_on_ray

        return run_on_ray(
            self.ray, parallel=self.jobs, threads=self.threads, gpus_per_job=self.gpus_per_job
        )

    def _print_plan(self, jobs: Sequence[Job], done: set[str], output: Path) -> None:
        width = max(map(len, ARMS))
        print("Methods:")
        for name, arm in ARMS.items():
            print(
                f"  {name:{width}}  {arm.description}: {shlex.join([arm.method, *arm.arguments])}"
            )
        for name in self.methods:
            if name not in ARMS:
                print(f"  {name:{width}}  {find_arm(name).description}")
        print(f"Jobs: {len(jobs)}")
        for job in jobs:
            print(f"  {job}{' (done)' if job.key in done else ''}")
            print(f"    {shlex.join(job.train_command(output))}")

    def _report(self, jobs: Sequence[Job], output: Path) -> None:
        """Table, plots and contact sheet of what the plan names and is done."""
        from ps4pro_nerfstudio.benchmark.scenes.contact_sheet import write_contact_sheet
        from ps4pro_nerfstudio.benchmark.scenes.plots import write_plots
        from ps4pro_nerfstudio.benchmark.scenes.table import report

        by_key = {record["key"]: record for record in results.read(output / "results.jsonl")}
        records = [by_key[job.key] for job in jobs if job.key in by_key]
        if not records:
            return
        path = output / "table.md"
        path.write_text(report(records, self.baseline, self.command_line()), encoding="utf-8")
        written = [path, *write_plots(records, output)]
        if others := [method for method in self.methods if method != self.baseline]:
            shown = "ps4pro" if "ps4pro" in others else others[0]
            sheet = write_contact_sheet(records, shown, self.baseline, output)
            written += [] if sheet is None else [sheet]
        say(f"wrote {', '.join(path.name for path in written)} in {output}")

    def command_line(self) -> str:
        """The command that makes the report again: what decides it, without defaults."""
        words = ["ps4pro", "bench", self._name]
        for item in fields(self):
            value = getattr(self, item.name)
            if item.name in _DECIDES_NOTHING or value == item.default:
                continue
            values = value if isinstance(value, tuple) else (value,)
            words += [f"--{item.name.replace('_', '-')}", *map(str, values)]
        return shlex.join(words)


_DECIDES_NOTHING = ("output", "jobs", "ray", "gpus_per_job", "keep_checkpoints", "plan_only")


def sweep(jobs: list[Job], work: Work, execute: Executor, output: Path) -> int:
    """Do all jobs and write down each as it ends; return how many failed.

    Args:
        jobs: to be done.
        work: does one.
        execute: does many.
        output: folder of results.jsonl and failures.jsonl.
    """
    begin = time.perf_counter()
    failed = 0
    for count, (job, outcome) in enumerate(execute(work, jobs), 1):
        progress = f"[{count}/{len(jobs)}] {job}"
        remaining = (time.perf_counter() - begin) / count * (len(jobs) - count)
        if outcome.record is None:
            failed += 1
            results.append(output / "failures.jsonl", _failure(job, outcome))
            warn(f"{progress} failed: {outcome.error[-1]}; {_duration(remaining)} to go")
            continue
        results.append(output / "results.jsonl", outcome.record)
        say(f"{progress}: {_figures(outcome.record)}; {_duration(remaining)} to go")
    return failed


def _failure(job: Job, outcome: Outcome) -> dict[str, Any]:
    return {
        "key": job.key,
        "job": str(job),
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "error": list(outcome.error),
        "command": shlex.join(outcome.command),
    }


def _figures(record: dict[str, Any]) -> str:
    figures = ", ".join(
        f"{name.upper()} {'absent' if record[name] is None else f'{record[name]:.{digits}f}'}"
        for name, digits in (("psnr", 2), ("ssim", 3), ("lpips", 3))
    )
    return f"{figures}, trained in {record['train_seconds']:.0f} s"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"about {seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"about {minutes} min" if minutes < 120 else f"about {minutes / 60:.1f} h"
