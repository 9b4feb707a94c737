# SPDX-License-Identifier: Apache-2.0
"""The sweep: what it runs, what it skips, what it writes down, how it ends."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ps4pro_nerfstudio.benchmark.scenes import code_version, command, results
from ps4pro_nerfstudio.benchmark.scenes.command import ScenesBenchmark
from ps4pro_nerfstudio.benchmark.scenes.execution import Outcome
from ps4pro_nerfstudio.messages import InputError
from tests.benchmark.scenes_records import record


class FakeWork:
    """Writes renders and returns records without training; the jobs named in `broken` fail."""

    def __init__(self, output: Path, broken: tuple[str, ...] = ()):
        self.output = output
        self.broken = broken
        self.done: list[str] = []

    def __call__(self, job):
        name = f"{job.scene} {job.views} {job.method} {job.seed}"
        self.done.append(name)
        if name in self.broken:
            return Outcome(error=("Traceback", "ValueError: too dark"), command=("ns-train", "x"))
        gain = {"plain": 0.0, "ps4pro": 1.0}[job.method]
        made = record(
            [20.0 + gain, 22.0 - gain + job.seed],
            scene=job.scene, method=job.method, seed=job.seed, views=job.views,
        )  # fmt: skip
        folder = self.output / "renders" / job.key
        folder.mkdir(parents=True, exist_ok=True)
        for view in made["per_view"]:
            Image.fromarray(np.full((20, 40, 3), 99, np.uint8)).save(folder / view["picture"])
        made["machine"]["versions"][code_version.CODE] = job.code
        return Outcome(record=made | {"key": job.key, "steps": job.steps})


@pytest.fixture(autouse=True)
def _code(monkeypatch):
    """One version of the code, whoever edits it while the tests run."""
    monkeypatch.setattr(code_version, "package_digest", lambda: "c0de")


@pytest.fixture
def benchmark(capture, tmp_path, monkeypatch):
    """Function that runs a sweep with work that only pretends, and returns that work."""
    sources = (capture("room"), capture("hall", num_images=9))

    def run(broken: tuple[str, ...] = (), report: bool = False, **options) -> FakeWork:
        output = tmp_path / "out"
        work = FakeWork(output, broken)
        monkeypatch.setattr(command, "RealWork", lambda *_: work)
        sweep = ScenesBenchmark(
            **({"data": sources, "output": output, "views": ("6",), "seeds": (0, 1)} | options)
        )
        with monkeypatch.context() as patch:
            if not report:  # plots take longer than all else
                patch.setattr(ScenesBenchmark, "_report", lambda *_: None)
            sweep.run()
        return work

    return run


def test_a_sweep_writes_results_table_plots_and_sheet(benchmark, tmp_path, capsys):
    work = benchmark(report=True)
    assert len(work.done) == 8
    lines = (tmp_path / "out/results.jsonl").read_text().splitlines()
    assert len({json.loads(line)["key"] for line in lines}) == 8
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written >= {"table.md", "psnr.png", "ssim.png", "lpips.png", "contact_sheet.png"}
    table = (tmp_path / "out/table.md").read_text()
    # Each view changes by one, in opposite directions, in every pair; over the scenes the loss.
    assert (table.count("| a.png +1.00"), table.count("| b.png −1.00")) == (2, 2)
    assert table.count("| room b.png −1.00") == 1
    printed = capsys.readouterr().out.replace("\n", " ")
    assert "[8/8]" in printed
    assert "to go" in printed


def test_what_is_done_is_not_done_again(benchmark, tmp_path):
    benchmark(seeds=(0,))
    before = (tmp_path / "out/results.jsonl").read_bytes()
    again = benchmark()
    assert sorted(again.done) == [
        "hall 6 plain 1", "hall 6 ps4pro 1", "room 6 plain 1", "room 6 ps4pro 1"
    ]  # fmt: skip
    assert (tmp_path / "out/results.jsonl").read_bytes().startswith(before)
    assert benchmark().done == []


def test_results_of_other_code_are_kept_and_counted_but_not_shown(
    benchmark, tmp_path, monkeypatch, capsys
):
    """Two scenes with two seeds; after an edit one seed is asked for and done anew."""
    benchmark(methods=("plain",))
    path = tmp_path / "out/results.jsonl"
    before = path.read_bytes()
    assert "kept but not shown" not in capsys.readouterr().out
    monkeypatch.setattr(code_version, "package_digest", lambda: "edited")
    again = benchmark(methods=("plain",), seeds=(1,), report=True)
    assert sorted(again.done) == ["hall 6 plain 1", "room 6 plain 1"]
    assert path.read_bytes().startswith(before)
    printed = capsys.readouterr().out.splitlines()
    assert sum("kept but not shown: 2 earlier results" in line for line in printed) == 1
    assert (tmp_path / "out/table.md").read_text().startswith("# 2 runs")


def test_records_of_the_earliest_versions_are_read(benchmark, tmp_path, capsys):
    """They name files without folders, and no hash of the code."""
    old = record([20.0, 21.0], names=["a.png", "a.png"])
    del old["machine"]["versions"][code_version.CODE]
    results.append(tmp_path / "out/results.jsonl", old)
    same_job = {"views": "6", "steps": 5000, "machine": {}}
    results.append(tmp_path / "out/results.jsonl", old | same_job | {"key": "other"})
    benchmark(seeds=(0,), report=True)
    assert "kept but not shown: 1 earlier result of" in capsys.readouterr().out
    assert (tmp_path / "out/table.md").read_text().startswith("# 4 runs")


def test_a_job_whose_line_was_broken_off_is_done_again(benchmark, tmp_path):
    benchmark()
    path = tmp_path / "out/results.jsonl"
    content = path.read_bytes()
    path.write_bytes(content[:-40])
    last = json.loads(content.splitlines()[-1])
    assert benchmark().done == [f"{last['scene']} {last['views']} {last['method']} {last['seed']}"]
    assert len(results.read(path)) == 8


def test_a_failed_job_is_written_down_and_the_sweep_goes_on(benchmark, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        benchmark(broken=("room 6 ps4pro 0",), report=True)
    assert ended.value.code == 1
    (failure,) = results.read(tmp_path / "out/failures.jsonl")
    assert failure["job"] == "room, 6 views, ps4pro, seed 0"
    assert failure["error"] == ["Traceback", "ValueError: too dark"]
    assert failure["command"] == "ns-train x"
    assert len(results.read(tmp_path / "out/results.jsonl")) == 7
    printed = capsys.readouterr().out
    assert sum("ValueError: too dark" in line for line in printed.splitlines()) == 1
    assert "1 of 8 jobs failed" in printed
    assert (tmp_path / "out/table.md").is_file()
    assert benchmark().done == ["room 6 ps4pro 0"]


def test_the_report_is_of_the_plan_only(benchmark, tmp_path):
    benchmark()
    benchmark(seeds=(1,), methods=("plain",), report=True)
    table = (tmp_path / "out/table.md").read_text()
    assert table.startswith("# 2 runs")
    assert "| ps4pro " not in table


def test_list_runs_and_writes_nothing(benchmark, tmp_path, capsys):
    work = benchmark(plan_only=True, max_long_side=32)
    assert work.done == []
    assert not (tmp_path / "out").exists()
    printed = capsys.readouterr().out
    assert "linear-blend" in printed
    assert printed.count("ns-train ps4pro-splatfacto --output-dir") == 8


def test_captures_are_reduced_before_the_jobs_begin(benchmark, tmp_path):
    benchmark(max_long_side=32)
    names = [path.name[:5] for path in (tmp_path / "out/captures").iterdir()]
    assert sorted(names) == ["hall-", "room-"]


def test_the_baseline_must_be_among_the_methods(benchmark):
    with pytest.raises(InputError, match="--baseline naive is not among --methods plain ps4pro"):
        benchmark(baseline="naive")


def test_the_report_says_the_command_that_makes_it(tmp_path):
    sweep = ScenesBenchmark(
        data=(Path("my room"), Path("fox")), output=tmp_path, seeds=(0,), jobs=2, steps=30
    )
    assert sweep.command_line() == ("ps4pro bench scenes --data 'my room' fox --seeds 0 --steps 30")
