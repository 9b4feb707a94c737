# SPDX-License-Identifier: Apache-2.0
"""Two processes of accelerate train one network, through the real command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import torch


def test_two_processes_train_one_network(tmp_path: Path) -> None:
    command = [
        *(sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2"),
        *("--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"),
        *("--module", "ps4pro_nerfstudio", "train-interpolator", "--output", tmp_path / "run"),
        *("--preset", "tiny", "--steps", "4", "--warmup-steps", "2", "--precision", "fp32"),
        *("--batch-size", "1", "--crop", "64", "--validate-every", "2", "--validation-pairs", "1"),
        *("--data.cache", tmp_path / "cache", "--data.num-rooms", "0", "--data.num-layered", "2"),
        *("--data.size", "128", "96"),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [str(part) for part in command],
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    state = torch.load(tmp_path / "run" / "last.pt", weights_only=True)
    assert state["step"] == 4
    lines = (tmp_path / "run" / "validation.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [2, 4]
    assert (tmp_path / "run" / "ps4pro-tiny.safetensors").is_file()
