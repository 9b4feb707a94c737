# SPDX-License-Identifier: Apache-2.0
"""`ps4pro bench scenes` with real trainings, against ns-eval of the same run."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from tests.end_to_end.conftest import run, succeed

pytestmark = pytest.mark.e2e


def test_a_sweep_measures_what_ns_eval_measures(tmp_path):
    succeed(
        "ps4pro", "demo-scene", "room", "--size", 64, 48, "--num-train-views", 6,
        "--num-test-views", 2, "--num-points", 300, cwd=tmp_path,
    )  # fmt: skip
    sweep = (
        "bench", "scenes", "--data", "room", "--views", 4, "--methods", "plain", "ps4pro",
        "--seeds", 0, "--steps", 30, "--jobs", 2, "--threads", 1, "--output", "out",
        "--keep-checkpoints",
    )  # fmt: skip
    succeed("ps4pro", *sweep, cwd=tmp_path)
    output = tmp_path / "out"
    lines = (output / "results.jsonl").read_text().splitlines()
    records = {record["method"]: record for record in map(json.loads, lines)}
    assert set(records) == {"plain", "ps4pro"}
    for record in records.values():
        names = ["images/test_001.png", "images/test_002.png"]
        assert (len(record["train"]), record["test"]) == (4, names)
        (split,) = (output / "runs" / record["key"]).glob("room/*/run/split.json")
        assert json.loads(split.read_text()) == {name: record[name] for name in ("train", "test")}
        assert record["last_step"] == 29
        assert record["gaussians"] > 0
        assert record["train_seconds"] > 0
        assert record["peak_memory_bytes"] is None or record["peak_memory_bytes"] > 2e8
    assert (output / "contact_sheet.png").is_file()

    record = records["ps4pro"]
    (config,) = (output / "runs" / record["key"]).glob("room/*/run/config.yml")
    succeed("ns-eval", "--load-config", config, "--output-path", "eval.json", cwd=tmp_path)
    averages = json.loads((tmp_path / "eval.json").read_text())["results"]
    for name in ("psnr", "ssim", "lpips"):
        if name not in averages:  # LPIPS without its weights
            assert record[name] is None
            continue
        values = [view[name] for view in record["per_view"]]
        assert sum(values) / 2 == pytest.approx(averages[name], rel=1e-5)
        assert record[name] == pytest.approx(averages[name], rel=1e-5)
    for view in record["per_view"]:
        picture = Image.open(output / "renders" / record["key"] / view["picture"])
        assert picture.size == (128, 48)

    again = run("ps4pro", *sweep, cwd=tmp_path)
    assert again.returncode == 0
    assert "2 jobs, 2 of them done before" in again.stdout
    assert (output / "results.jsonl").read_text().splitlines() == lines
