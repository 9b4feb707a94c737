# SPDX-License-Identifier: Apache-2.0
"""The same jobs over a Ray of two workers on this machine."""

from __future__ import annotations

import os
import subprocess
import sys
from unittest.mock import MagicMock

import pytest

from ps4pro_nerfstudio.benchmark.scenes.cluster import run_on_ray
from ps4pro_nerfstudio.messages import InputError, MissingPartError
from tests.benchmark.scenes_records import job

needs_ray = pytest.mark.skipif(
    subprocess.run([sys.executable, "-c", "import ray"], capture_output=True).returncode != 0,
    reason="Ray is not installed: pip install 'ps4pro-nerfstudio[ray]'",
)


@needs_ray
def test_two_workers_do_the_jobs_at_the_same_time(tmp_path):
    """Each of two jobs ends well only after it has seen the other begin, in another process.

    A third kills its worker and a fourth raises: both are failures, and cost no other job.
    """

    def work(job):
        import os
        import time
        from pathlib import Path

        from ps4pro_nerfstudio.benchmark.scenes.execution import Outcome

        if job.method == "kills":
            os._exit(1)
        if job.method == "raises":
            raise ValueError("too dark")
        Path(folder, str(job.seed)).touch()
        end = time.monotonic() + 300
        while len(list(Path(folder).iterdir())) < 2:
            if time.monotonic() > end:
                return Outcome(error=("the other job did not begin",))
            time.sleep(0.05)
        gpus = os.environ.get("CUDA_VISIBLE_DEVICES")
        return Outcome(record={"key": job.key, "process": os.getpid(), "gpus": gpus})

    folder = str(tmp_path)
    jobs = [job(seed=0), job(seed=1), job(method="kills"), job(method="raises")]
    execute = run_on_ray("local", parallel=2, threads=1, gpus_per_job=0)
    outcomes = {done.key: outcome for done, outcome in execute(work, jobs)}
    assert set(outcomes) == {one.key for one in jobs}
    records = [outcomes[one.key].record for one in jobs[:2]]
    assert all(records), outcomes
    # Ray would leave all GPUs visible to jobs that ask for none.
    assert [record["gpus"] for record in records if record is not None] == ["", ""]
    processes = {record["process"] for record in records if record is not None}
    assert len(processes) == 2
    assert os.getpid() not in processes
    for one in jobs[2:]:
        assert outcomes[one.key].record is None
        assert outcomes[one.key].error
    assert "too dark" in " ".join(outcomes[jobs[3].key].error)


def test_a_busy_machine_gets_more_time_to_start(monkeypatch, capsys):
    ray = MagicMock()
    ray.cluster_resources.return_value = {"CPU": 8.0}
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setitem(sys.modules, "ray.exceptions", ray.exceptions)
    slow = Exception("The current node timed out during startup. This could happen ...")
    ray.init.side_effect = [slow, slow, None]
    run_on_ray("local", parallel=1, threads=1, gpus_per_job=0)
    assert ray.init.call_count == 3
    assert capsys.readouterr().out.count("trying again") == 2
    ray.init.side_effect = slow
    with pytest.raises(InputError, match="did not start"):
        run_on_ray("local", parallel=1, threads=1, gpus_per_job=0)
    ray.init.side_effect = ValueError("something else")
    with pytest.raises(ValueError, match="something else"):
        run_on_ray("local", parallel=1, threads=1, gpus_per_job=0)


def test_a_cluster_without_what_a_job_asks_for_is_refused_at_once(monkeypatch):
    """Ray itself would wait for a machine that may still come."""
    ray = MagicMock()
    ray.cluster_resources.return_value = {"CPU": 8.0, "GPU": 1.0}
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setitem(sys.modules, "ray.exceptions", ray.exceptions)
    run_on_ray("auto", parallel=1, threads=8, gpus_per_job=0.5)
    ray.shutdown.assert_not_called()
    with pytest.raises(InputError, match="a job asks for 2 GPU, the cluster has 1"):
        run_on_ray("auto", parallel=1, threads=8, gpus_per_job=2)
    with pytest.raises(InputError, match="a job asks for 9 CPU, the cluster has 8"):
        run_on_ray("auto", parallel=1, threads=9, gpus_per_job=0)
    assert ray.shutdown.call_count == 2


@needs_ray
def test_no_cluster_is_one_line(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(InputError, match="ray start --head"):
        run_on_ray("auto", parallel=1, threads=1, gpus_per_job=0)


def test_without_ray_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingPartError, match=r"ps4pro-nerfstudio\[ray\]"):
        run_on_ray("local", parallel=1, threads=1, gpus_per_job=0)
