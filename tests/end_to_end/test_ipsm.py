# SPDX-License-Identifier: Apache-2.0
"""ipsm-gaussian through the real commands, without any weights on the machine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.conftest import write_capture
from tests.end_to_end.conftest import run, succeed

pytestmark = pytest.mark.e2e

TRAIN = ("ns-train", "ipsm-gaussian", "--data", "scene", "--vis", "tensorboard")
PARSER = ("sparse-views", "--views", 3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ipsm")
    write_capture(folder / "scene")
    return folder


def test_training_without_weights_says_so_once_and_goes_on(folder: Path, tmp_path: Path) -> None:
    output = succeed(
        *TRAIN, "--max-num-iterations", 20, "--timestamp", "first",
        "--pipeline.datamanager.pseudo-views.source.min-mean-confidence", 0, *PARSER,
        cwd=folder, env={"HF_HUB_CACHE": str(tmp_path)},
    )  # fmt: skip
    assert output.count("training without a score prior") == 1
    assert output.count("depth is triangulated from the training views") == 1
    assert output.count("ps4pro fetch-weights ipsm") == 2
    assert "depth from correspondences" in output
    config = folder / "outputs/scene/ipsm-gaussian/first/config.yml"
    succeed("ns-eval", "--load-config", config, "--output-path", "eval.json", cwd=folder)
    results = json.loads((folder / "eval.json").read_text())["results"]
    assert results["psnr"] > 10.0


def test_asking_for_weights_that_are_not_there_is_one_line(folder: Path, tmp_path: Path) -> None:
    result = run(
        *TRAIN, "--pipeline.model.diffusion", "stable-diffusion", *PARSER,
        cwd=folder, env={"HF_HUB_CACHE": str(tmp_path)},
    )  # fmt: skip
    assert result.returncode == 1
    assert "Traceback" not in result.stdout
    last = result.stdout.strip().splitlines()[-1]
    assert last.startswith("ps4pro ")
    assert "ps4pro fetch-weights ipsm" in last


def test_help_names_the_symbols_of_the_paper(folder: Path) -> None:
    text = succeed("ns-train", "ipsm-gaussian", "--help", cwd=folder)
    for symbol in ("lambda_d,seen", "lambda_d,pseudo", "lambda_geo", "tau_strict", "w_1"):
        assert symbol in text
