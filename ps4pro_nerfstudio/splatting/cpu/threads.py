# SPDX-License-Identifier: Apache-2.0
"""One lock and one thread count for all kernel launches.

numba's portable threading layer ("workqueue") must not be entered from two Python threads at once,
and the viewer renders from a thread of its own: a process-wide lock serialises the launches. The
number of threads follows `torch.get_num_threads()`.
"""

from __future__ import annotations

import functools
import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numba
import torch

from ps4pro_nerfstudio.splatting.cpu import jit
from ps4pro_nerfstudio.splatting.cpu.tracing import untraced

_LAUNCH_LOCK = threading.RLock()


@functools.cache
def _start_threads() -> None:
    """Start numba's threads without changing torch's number of threads.

    Where both use the same OpenMP library, numba's start sets the number for torch as well.
    """
    torch_threads = torch.get_num_threads()
    numba.set_num_threads(1)
    if torch.get_num_threads() != torch_threads:
        torch.set_num_threads(torch_threads)


def thread_count() -> int:
    """Threads of the next launch: torch's number, at most what numba started with."""
    available = numba.config.NUMBA_NUM_THREADS  # type: ignore[attr-defined]
    return max(1, min(torch.get_num_threads(), available))


@contextmanager
def kernel_threads() -> Iterator[int]:
    """Hold the launch lock and set numba's thread count; yields the count.

    Results never depend on the count: kernels split their work in chunks whose results do not.
    A launch may compile: what interrupts renders waits until it is done.
    """
    with untraced(), _LAUNCH_LOCK:
        jit.announce_compilation()
        _start_threads()
        count = thread_count()
        numba.set_num_threads(count)
        # A launch makes no garbage, but a compilation makes millions of objects: the collector
        # would take a tenth of its time.
        collects = gc.isenabled()
        gc.disable()
        try:
            yield count
        finally:
            if collects:
                gc.enable()
