# SPDX-License-Identifier: Apache-2.0
"""Running jobs: ns-train, then the evaluation, each a process of its own, several side by side."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ps4pro_nerfstudio.benchmark.scenes.code_version import CODE
from ps4pro_nerfstudio.benchmark.scenes.plan import Job, module_command

_TAIL_LINES = 8
_FRAME = " \t│╭╮╰╯─"
_OTHER_CODE = (
    "the package that ns-train imports is not the one that planned this job: its code changed "
    "since, or another copy is installed; start the sweep again"
)
_THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "NUMBA_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)


@dataclass(frozen=True)
class Outcome:
    """What became of a job: a record for results.jsonl, or the last lines of its error."""

    record: dict[str, Any] | None = None
    error: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    """That failed."""


Work = Callable[[Job], Outcome]
"""Does a job and never raises."""
Executor = Callable[[Work, list[Job]], Iterator[tuple[Job, Outcome]]]
"""Does jobs in any order and yields each as it ends."""


@dataclass(frozen=True)
class Process:
    """How a process ended."""

    exit_code: int
    seconds: float
    peak_memory_bytes: int | None
    """Largest resident set of it or of one of its children; None on systems without wait4."""


@dataclass(frozen=True)
class RealWork:
    """Train and evaluate. Plain values only: Ray sends it to its workers."""

    output: Path
    threads: int
    keep_checkpoints: bool = False

    def __call__(self, job: Job) -> Outcome:
        """Do one job; whatever goes wrong becomes the outcome."""
        try:
            return self._run(job)
        except Exception as error:  # a fault of one job must not end the sweep
            return Outcome(error=tuple(traceback.format_exception_only(error)[-1].splitlines()))

    def _run(self, job: Job) -> Outcome:
        if installed_code(self.threads) != job.code:
            return Outcome(error=(_OTHER_CODE,))
        folder = job.run_folder(self.output)
        renders = self.output / "renders" / job.key
        for leftover in (folder, renders):
            shutil.rmtree(leftover, ignore_errors=True)
        folder.mkdir(parents=True)
        command = job.train_command(self.output)
        # The evaluation takes whatever GPU it sees.
        hide = "--machine.device-type cpu" in " ".join(job.arguments)
        training = run_process(command, folder / "train.log", self.threads, hide)
        if training.exit_code != 0:
            return _failed(command, training, folder / "train.log")
        configs = list(folder.glob("*/*/run/config.yml"))
        if len(configs) != 1:
            error = "ns-train ended without an error, but left no config.yml"
            return Outcome(error=(error,), command=(*command,))
        command = job.evaluate_command(self.output, configs[0])
        evaluation = run_process(command, folder / "eval.log", self.threads, hide)
        if evaluation.exit_code != 0:
            return _failed(command, evaluation, folder / "eval.log")
        measured = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
        if measured["machine"]["versions"].get(CODE) != job.code:
            return Outcome(error=(_OTHER_CODE,), command=(*command,))
        if measured["psnr"] is None:
            return Outcome(error=("the evaluation found no finite PSNR",), command=(*command,))
        if not self.keep_checkpoints:
            for checkpoints in folder.glob("*/*/run/nerfstudio_models"):
                shutil.rmtree(checkpoints)
        return Outcome(record=make_record(job, measured, training, evaluation, self.threads))


def make_record(
    job: Job, measured: dict[str, Any], training: Process, evaluation: Process, threads: int
) -> dict[str, Any]:
    """The line of results.jsonl; `measured` is what `evaluate` returns."""
    scored = [view for view in measured["per_view"] if view["psnr"] is not None]
    worst = min(scored, key=lambda view: view["psnr"], default=None)
    return {
        "key": job.key,
        "scene": job.scene,
        "method": job.method,
        "views": job.views,
        "seed": job.seed,
        "steps": job.steps,
        "arguments": list(job.arguments),
        **measured,
        "worst_view": worst and {"name": worst["name"], "psnr": worst["psnr"]},
        "train_seconds": training.seconds,
        "eval_seconds": evaluation.seconds,
        "peak_memory_bytes": training.peak_memory_bytes,
        "threads": threads,
    }


def installed_code(threads: int) -> str:
    """Hash of the package that a new process imports; empty where it has none of this version."""
    done = subprocess.run(
        module_command("ps4pro_nerfstudio.benchmark.scenes.code_version"),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        env=environment(threads),
        text=True,
        check=False,
    )
    return done.stdout.strip()


def run_process(command: list[str], log: Path, threads: int, hide_gpus: bool = False) -> Process:
    """Run a command to its end, its output in `log`, with so many threads for each library."""
    report = log.with_suffix(".json")
    watched = hasattr(os, "wait4")
    watch = (sys.executable, "-I", "-S", str(Path(__file__).with_name("watch.py")), str(report))
    begin = time.perf_counter()
    with log.open("wb") as file:
        done = subprocess.run(
            [*watch, *command] if watched else command,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=environment(threads, hide_gpus),
            check=False,
        )
    seconds = time.perf_counter() - begin
    if not watched or done.returncode != 0:
        return Process(done.returncode, seconds, None)
    ended = json.loads(report.read_text(encoding="utf-8"))
    return Process(ended["exit_code"], seconds, ended["peak_memory_bytes"])


def environment(threads: int, hide_gpus: bool = False) -> dict[str, str]:
    """Environment of this process, with its own commands first and so many threads."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    counts = dict.fromkeys(_THREAD_VARIABLES, str(threads))
    given = {**os.environ, "PATH": path, "MPLBACKEND": "agg", "COLUMNS": "200", **counts}
    return {**given, "CUDA_VISIBLE_DEVICES": ""} if hide_gpus else given


def _failed(command: list[str], process: Process, log: Path) -> Outcome:
    lines = last_words(log.read_text(encoding="utf-8", errors="replace"))
    if process.exit_code < 0:
        lines.append(f"killed by signal {-process.exit_code}")
    return Outcome(error=(*lines,) or ("no output",), command=(*command,))


def last_words(text: str) -> list[str]:
    """The last lines that say something; the very last says what happened.

    That holds for a traceback and for a line of ours. Errors about options are framed and have
    advice behind them: of a frame the title and the first two lines become the last line.
    """
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    said = [bare for line in lines if any(map(str.isalnum, bare := line.strip(_FRAME)))]
    if lines and lines[-1].startswith("╰"):
        start = max((i for i, line in enumerate(lines) if line.startswith("╭")), default=0)
        frame = [line.strip(_FRAME) for line in lines[start:]]
        said.append(": ".join(line.rstrip(":") for line in frame[:3] if line))
    return said[-_TAIL_LINES:]


def run_locally(parallel: int) -> Executor:
    """Executor that does up to `parallel` jobs of this machine at once."""

    def execute(work: Work, jobs: list[Job]) -> Iterator[tuple[Job, Outcome]]:
        with ThreadPoolExecutor(parallel) as pool:
            futures = {pool.submit(work, job): job for job in jobs}
            with contextlib.ExitStack() as unfinished:
                # What interrupts the sweep also drops the jobs that have not begun.
                unfinished.callback(pool.shutdown, wait=False, cancel_futures=True)
                for future in as_completed(futures):
                    yield futures[future], future.result()

    return execute
