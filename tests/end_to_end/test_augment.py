# SPDX-License-Identifier: Apache-2.0
"""The real commands: a capture is augmented, and the result is trained on like any dataset."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.end_to_end.conftest import succeed

pytestmark = pytest.mark.e2e


def test_an_augmented_capture_trains(tmp_path: Path) -> None:
    succeed(
        "ps4pro", "demo-scene", "scene", "--size", 96, 64, "--num-train-views", 8,
        "--num-test-views", 2, "--num-points", 300, cwd=tmp_path,
    )  # fmt: skip
    output = succeed(
        "ps4pro", "augment", "scene", "-o", "new", "--interpolator", "optical-flow", cwd=tmp_path
    )
    assert "train with: ns-train METHOD --data new" in output
    before = json.loads((tmp_path / "scene/transforms.json").read_text())
    meta = json.loads((tmp_path / "new/transforms.json").read_text())
    pseudo = [frame["file_path"] for frame in meta["frames"] if "pseudo_view" in frame]
    assert pseudo
    assert meta["train_filenames"] == before["train_filenames"] + pseudo
    assert meta["test_filenames"] == before["test_filenames"]
    succeed(
        "ns-train", "ps4pro-splatfacto", "--data", "new", "--vis", "tensorboard",
        "--max-num-iterations", 20, "--timestamp", "one",
        "--pipeline.datamanager.pseudo-views.enabled", "False", cwd=tmp_path,
    )  # fmt: skip
    run = tmp_path / "outputs/new/ps4pro-splatfacto/one"
    assert (run / "nerfstudio_models/step-000000019.ckpt").is_file()
    split = json.loads((run / "split.json").read_text())
    assert len(split["train"]) == len(before["train_filenames"]) + len(pseudo)
    assert sorted(split["test"]) == sorted(before["test_filenames"])
