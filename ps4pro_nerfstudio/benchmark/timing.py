# SPDX-License-Identifier: Apache-2.0
"""Interleaved timing, and what has to be known about a machine to read the result.

Variants alternate inside one loop, so that a slow moment of the machine hits all of them alike and
their ratios hold where their times do not. All times are wall-clock medians in milliseconds.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

Variant = Callable[[], dict[str, float]]
"""Runs its work once and returns the seconds of each of its stages."""

_DISTRIBUTIONS = ("ps4pro-nerfstudio", "torch", "numba", "llvmlite", "numpy", "gsplat")


class Stopwatch:
    """Wall-clock seconds since the last mark.

    Args:
        settle: called before the clock is read, to wait for a device that works on its own.
    """

    def __init__(self, settle: Callable[[], Any] = lambda: None):
        self._settle = settle
        self._settle()
        self._last = time.perf_counter()

    def lap(self) -> float:
        """Seconds since the last lap or the start."""
        self._settle()
        now = time.perf_counter()
        seconds, self._last = now - self._last, now
        return seconds


def interleaved_medians(
    variants: Mapping[str, Variant],
    repetitions: int,
    advance: Callable[[], Any] = lambda: None,
) -> dict[str, dict[str, float]]:
    """Run all variants in turn, `repetitions` times, after one run that is not counted.

    Args:
        variants: what to run, by name.
        repetitions: counted runs of each, at least 1.
        advance: called after each run of a variant.

    Returns:
        Median milliseconds of each stage of each variant.
    """
    times: dict[str, dict[str, list[float]]] = {name: {} for name in variants}
    for repetition in range(repetitions + 1):
        for name, variant in variants.items():
            stages = variant()
            advance()
            if repetition == 0:
                continue
            for stage, seconds in stages.items():
                times[name].setdefault(stage, []).append(1e3 * seconds)
    return {
        name: {stage: statistics.median(values) for stage, values in stages.items()}
        for name, stages in times.items()
    }


def describe_machine() -> dict[str, Any]:
    """CPU, threads, load and versions, for the JSON of a benchmark."""
    import torch

    versions = {"python": platform.python_version()}
    for name in _DISTRIBUTIONS:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return {
        "cpu": cpu_model(),
        "instruction_set": torch.backends.cpu.get_cpu_capability(),
        "cores": available_cores(),
        "platform": f"{platform.system()} {platform.machine()}",
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY"),
        "load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "versions": versions,
    }


def cpu_model() -> str:
    """Name of the processor as the system tells it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def available_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
