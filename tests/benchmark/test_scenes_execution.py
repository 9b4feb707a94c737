# SPDX-License-Identifier: Apache-2.0
"""One job: two processes, their figures, and what is left of a failure."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import threading
import time
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path

import pytest

from ps4pro_nerfstudio.benchmark.scenes import execution
from ps4pro_nerfstudio.benchmark.scenes.code_version import CODE, package_digest
from ps4pro_nerfstudio.benchmark.scenes.execution import (
    Outcome,
    RealWork,
    environment,
    installed_code,
    last_words,
    run_locally,
    run_process,
)
from ps4pro_nerfstudio.benchmark.scenes.plan import Job
from tests.benchmark.scenes_records import CODE_HASH, job, measurement

_TRAIN = """
import pathlib
run = pathlib.Path({folder!r}) / "room" / "plain" / "run"
(run / "nerfstudio_models").mkdir(parents=True)
(run / "config.yml").write_text("config")
"""


@pytest.fixture(autouse=True)
def _code(monkeypatch: pytest.MonkeyPatch) -> None:
    """The code on the disk is that of the jobs, whoever edits it while the tests run."""
    monkeypatch.setattr(execution, "installed_code", lambda threads: CODE_HASH)


def _fake(monkeypatch: pytest.MonkeyPatch, train: str, evaluate: str) -> None:
    """Put small programs in the place of ns-train and of the evaluation."""
    monkeypatch.setattr(
        Job,
        "train_command",
        lambda self, output: [
            sys.executable, "-c", train.format(folder=str(self.run_folder(output)))
        ],
    )  # fmt: skip
    monkeypatch.setattr(
        Job,
        "evaluate_command",
        lambda self, output, config: [
            sys.executable, "-c", evaluate, str(config),
            str(self.run_folder(output) / "evaluation.json"),
        ],
    )  # fmt: skip


def _evaluation(*psnrs: float, code: str = CODE_HASH) -> str:
    measured = measurement(psnrs)
    if math.isnan(measured["psnr"]):
        measured["psnr"] = None
    measured["machine"]["versions"][CODE] = code
    text = json.dumps(measured)
    return f"import sys; assert 'config.yml' in sys.argv[1]; open(sys.argv[2], 'w').write({text!r})"


@pytest.mark.parametrize("keep", [False, True])
def test_a_job_becomes_a_record(tmp_path, monkeypatch, keep):
    _fake(monkeypatch, _TRAIN, _evaluation(24.0, 20.5, 22.0))
    outcome = RealWork(tmp_path, threads=1, keep_checkpoints=keep)(job(seed=3))
    assert outcome.error == ()
    assert outcome.record is not None
    assert outcome.record["seed"] == 3
    assert outcome.record["worst_view"] == {"name": "images/b.png", "psnr": 20.5}
    assert outcome.record["psnr"] == pytest.approx(66.5 / 3)
    run = job(seed=3).run_folder(tmp_path) / "room/plain/run"
    assert (run / "nerfstudio_models").is_dir() == keep
    assert (run / "config.yml").is_file()


def test_what_a_broken_off_attempt_left_is_removed_first(tmp_path, monkeypatch):
    _fake(monkeypatch, _TRAIN, _evaluation(20.0))
    stale = job().run_folder(tmp_path) / "room/plain/run"
    stale.mkdir(parents=True)
    (stale / "stale").touch()
    assert RealWork(tmp_path, threads=1)(job()).record is not None
    assert not (stale / "stale").exists()


@pytest.mark.parametrize(
    ("train", "evaluate", "last_line"),
    [
        ("print('fine'); raise ValueError('no {{}} photo')", "", "ValueError: no {} photo"),
        (_TRAIN, "import sys; sys.exit('the metrics are odd')", "the metrics are odd"),
        ("import sys; sys.exit(3)", "", "no output"),
        ("pass", "", "ns-train ended without an error, but left no config.yml"),
        ("import os, signal; os.kill(os.getpid(), 9)", "", "killed by signal 9"),
        (_TRAIN, "pass", "evaluation.json"),
        (_TRAIN, _evaluation(math.nan), "no finite PSNR"),
    ],
)
def test_a_failure_keeps_its_last_lines(tmp_path, monkeypatch, train, evaluate, last_line):
    _fake(monkeypatch, train, evaluate)
    outcome = RealWork(tmp_path, threads=1)(job())
    assert outcome.record is None
    assert last_line in outcome.error[-1]


def test_a_job_of_other_code_is_not_trained(tmp_path, monkeypatch):
    """The package was edited after the plan, or ns-train has another copy."""
    _fake(monkeypatch, "open('trained', 'w')", _evaluation(20.0))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(execution, "installed_code", lambda threads: "edited")
    outcome = RealWork(tmp_path, threads=1)(job())
    assert outcome.record is None
    assert "start the sweep again" in outcome.error[-1]
    assert list(tmp_path.iterdir()) == []


def test_code_that_changes_while_a_job_runs_makes_no_record(tmp_path, monkeypatch):
    _fake(monkeypatch, _TRAIN, _evaluation(20.0, code="edited"))
    outcome = RealWork(tmp_path, threads=1)(job())
    assert outcome.record is None
    assert "start the sweep again" in outcome.error[-1]


def test_a_new_process_imports_this_package():
    """`installed_code` as imported above, before any test puts another in its place."""
    assert installed_code(1) == package_digest()


def test_a_framed_error_ends_with_what_is_wrong():
    """The advice below it stays in the lines, but does not stand for the error."""
    text = """
    a warning
    ╭─ Unrecognized options ──────╮
    │ Unrecognized options:       │
    │   --machine.sead (applied)  │
    │ ─────────────────────────── │
    │ For full helptext, see      │
    ╰─────────────────────────────╯
    """
    *before, last = last_words(text)
    assert last == "Unrecognized options: Unrecognized options: --machine.sead (applied)"
    assert before[0] == "a warning"
    assert last_words("Traceback\n  x = 1\nValueError: dark\n")[-1] == "ValueError: dark"


def test_memory_is_that_of_the_command_alone(tmp_path):
    """200 MB written are seen, the hundreds of MB of the process that runs the tests are not."""
    large, small = (
        run_process([sys.executable, "-c", script], tmp_path / "log", threads=1)
        for script in ("x = bytearray(200_000_000); x[::4096] = x[::4096]", "pass")
    )
    if large.peak_memory_bytes is None or small.peak_memory_bytes is None:
        pytest.skip("this system has no os.wait4")
    assert 200_000_000 < large.peak_memory_bytes < 260_000_000
    assert small.peak_memory_bytes < 60_000_000


@pytest.mark.skipif(not hasattr(os, "wait4"), reason="this system has no os.wait4")
def test_a_training_ends_with_a_sweep_that_was_killed(tmp_path):
    """The command writes its number and then would wait for 60 s."""
    command = [
        sys.executable, "-c",
        "import os, time; print(os.getpid(), flush=True); time.sleep(60)",
    ]  # fmt: skip
    code = f"""
from pathlib import Path
from ps4pro_nerfstudio.benchmark.scenes.execution import run_process
run_process({command!r}, Path({str(tmp_path / "log")!r}), threads=1)
"""
    sweep = subprocess.Popen([sys.executable, "-c", code])
    log = tmp_path / "log"
    _until(lambda: log.is_file() and log.read_text().endswith("\n"))
    training = int(log.read_text())
    os.kill(training, 0)  # is there
    sweep.kill()
    sweep.wait()
    _until(lambda: not _runs(training))


def _until(holds, seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    # Ended, and not yet collected by whoever adopted it.
    state = Path(f"/proc/{process}/stat")
    return not (state.is_file() and state.read_text().rsplit(")", 1)[1].split()[0] == "Z")


def test_processes_get_the_threads_and_the_own_commands():
    given = environment(3)
    assert {given[name] for name in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS")} == {"3"}
    assert given["PATH"].split(os.pathsep)[0] == os.path.dirname(sys.executable)


@pytest.mark.parametrize(("device", "visible"), [("cpu", ""), ("cuda", "0,1")])
def test_who_asks_for_the_cpu_is_evaluated_there(tmp_path, monkeypatch, device, visible):
    """ns-eval's set-up takes whatever GPU it sees; both processes write down what that is."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    note = "import os; open({!r}, 'w').write(os.environ['CUDA_VISIBLE_DEVICES']);"
    seen = [tmp_path / "train.txt", tmp_path / "evaluate.txt"]
    train, evaluate = (note.format(str(file)) for file in seen)
    _fake(monkeypatch, train + _TRAIN, evaluate + _evaluation(24.0))
    arguments = (*job().arguments, "--machine.device-type", device)
    done = RealWork(tmp_path, threads=1)(replace(job(), arguments=arguments))
    assert done.error == ()
    assert [file.read_text() for file in seen] == [visible, visible]


def test_jobs_run_side_by_side():
    """Each waits until the other has begun; one after the other they would not end well."""
    both = threading.Barrier(2, timeout=20)

    def work(job: Job) -> Outcome:
        both.wait()
        return Outcome(record={"seed": job.seed})

    jobs = [job(seed=0), job(seed=1)]
    done = {job.seed: outcome.record for job, outcome in run_locally(2)(work, jobs)}
    assert done == {0: {"seed": 0}, 1: {"seed": 1}}


def test_jobs_that_have_not_begun_are_dropped_when_the_sweep_is_interrupted():
    begun = []

    def work(job: Job) -> Outcome:
        begun.append(job.seed)
        # All of them would take half a minute: the sweep is interrupted long before.
        time.sleep(0.03)
        return Outcome(record={})

    running = run_locally(1)(work, [job(seed=seed) for seed in range(1000)])
    assert isinstance(running, Generator)
    next(running)
    running.close()
    assert len(begun) < 1000
