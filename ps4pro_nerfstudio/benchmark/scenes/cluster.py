# SPDX-License-Identifier: Apache-2.0
"""The same jobs over a Ray cluster (extra `ray`).

Every machine needs this package and must see the captures and the output folder under the same
paths. Results are written by the process that started the sweep.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from typing import Any

from ps4pro_nerfstudio.benchmark.scenes.execution import Executor, Outcome, Work
from ps4pro_nerfstudio.benchmark.scenes.plan import Job
from ps4pro_nerfstudio.messages import InputError, MissingPartError, say

_ATTEMPTS = 4
"""Attempts to start Ray on this machine."""


def run_on_ray(address: str, *, parallel: int, threads: int, gpus_per_job: float) -> Executor:
    """Executor that hands jobs to Ray.

    Args:
        address: of a running cluster, `auto` to find it, `local` to start one on this machine.
        parallel: jobs at once of a cluster that is started here.
        threads: CPUs that a job asks for.
        gpus_per_job: GPUs, or parts of one, that a job asks for; 0 hides the GPUs from it.

    Raises:
        MissingPartError: Ray is not installed.
        InputError: there is no cluster at the address.
    """
    # Nothing is reported to anybody without being asked for.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
        import ray.exceptions
    except ImportError as error:
        raise MissingPartError(
            "--ray needs Ray; install it with: pip install 'ps4pro-nerfstudio[ray]'"
        ) from error
    here = {"num_cpus": parallel * threads, "include_dashboard": False}
    try:
        if address == "local":
            _start(ray, log_to_driver=False, logging_level=logging.ERROR, **here)
        else:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except ConnectionError as error:
        raise InputError(
            f"no Ray cluster at {address}; start one with `ray start --head`, or use --ray local"
        ) from error
    for kind, wanted in (("CPU", threads), ("GPU", gpus_per_job)):
        # Ray would wait for ever for a machine that may still come.
        if wanted > (available := ray.cluster_resources().get(kind, 0)):
            ray.shutdown()
            raise InputError(f"a job asks for {wanted:g} {kind}, the cluster has {available:g}")

    def execute(work: Work, jobs: list[Job]) -> Iterator[tuple[Job, Outcome]]:
        # A job leaves files behind, so it is not repeated behind our back.
        do = ray.remote(num_cpus=threads, num_gpus=gpus_per_job, max_retries=0)(
            _do if gpus_per_job > 0.0 else _do_without_gpus
        )
        try:
            pending = {do.remote(work, job): job for job in jobs}
            while pending:
                done, _ = ray.wait(list(pending), num_returns=1)
                job = pending.pop(done[0])
                try:
                    yield job, ray.get(done[0])
                except ray.exceptions.RayError as error:
                    yield job, Outcome(error=tuple(str(error).strip().splitlines()[-8:]))
        finally:
            ray.shutdown()

    return execute


def _start(ray: Any, **options: Any) -> None:
    """Start Ray on this machine; it gives itself 30 s, which a busy machine may exceed.

    Raises:
        InputError: it did not start in several attempts.
    """
    for left in reversed(range(_ATTEMPTS)):
        try:
            ray.init(address="local", **options)
            return
        except Exception as error:  # Ray raises a bare Exception here.
            if "timed out during startup" not in str(error):
                raise
            ray.shutdown()
            if left == 0:
                raise InputError(
                    f"Ray did not start on this machine in {_ATTEMPTS} attempts of 30 s; stop "
                    "other work, or run without --ray"
                ) from error
            say("Ray took longer than 30 s to start; trying again")


def _do(work: Work, job: Job) -> Outcome:
    return work(job)


def _do_without_gpus(work: Work, job: Job) -> Outcome:
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # Ray leaves all of them visible.
    return work(job)
