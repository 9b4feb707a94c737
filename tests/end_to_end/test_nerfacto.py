# SPDX-License-Identifier: Apache-2.0
"""The ns-* commands on a radiance field with pseudo views: train, resume, evaluate, render."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.conftest import write_capture
from tests.end_to_end.browser import free_port
from tests.end_to_end.conftest import Run, succeed

pytestmark = pytest.mark.e2e

TRAIN: tuple[object, ...] = (
    "ps4pro-nerfacto-small", "--data", "scene", "--vis", "tensorboard",
    "--save-only-latest-checkpoint", "False", "--steps-per-save", 10,
    "--pipeline.datamanager.train-num-rays-per-batch", 128,
    "--pipeline.datamanager.pseudo-views.interpolator", "optical-flow",
)  # fmt: skip
# With several threads the gradient of the hash table is summed in an order that varies.
ONE_THREAD = {"OMP_NUM_THREADS": "1"}


class NerfactoRun(Run):
    """A finished run of ps4pro-nerfacto-small."""

    @property
    def path(self) -> Path:
        return self.folder / "outputs/scene/ps4pro-nerfacto-small/first"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> NerfactoRun:
    """Twenty steps, with a checkpoint after steps 10 and 19."""
    folder = tmp_path_factory.mktemp("nerfacto")
    scene = write_capture(folder / "scene")
    output = succeed(
        "ns-train", *TRAIN, "--max-num-iterations", 20, "--timestamp", "first", cwd=folder,
        env=ONE_THREAD,
    )  # fmt: skip
    return NerfactoRun(folder, scene, output)


def _state(path: Path) -> dict:
    return torch.load(path, map_location="cpu", weights_only=True)


def test_pseudo_rays_take_part(trained: NerfactoRun):
    assert "10 pseudo views and matched pixels of 11 photographs beside 11 photographs" in (
        trained.output
    )
    assert "44 of 128 in each batch" in trained.output


def test_p10_resume_continues_bit_exactly(trained: NerfactoRun):
    succeed(
        "ns-train", *TRAIN, "--max-num-iterations", 9, "--timestamp", "resumed", "--load-dir",
        trained.path / "nerfstudio_models", "--load-step", 10, cwd=trained.folder,
        env=ONE_THREAD,
    )  # fmt: skip
    name = "nerfstudio_models/step-000000019.ckpt"
    whole = _state(trained.path / name)
    resumed = _state(trained.path.with_name("resumed") / name)
    early = _state(trained.path / "nerfstudio_models/step-000000010.ckpt")["pipeline"]
    assert whole["pipeline"].keys() == resumed["pipeline"].keys()
    table = "_model.field.mlp_base.model.0.hash_table"
    assert not torch.equal(early[table], whole["pipeline"][table])
    for key, value in whole["pipeline"].items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, resumed["pipeline"][key]), key
        else:
            assert value == resumed["pipeline"][key], key


def test_a_viewer_changes_nothing(trained: NerfactoRun):
    arguments = list(TRAIN)
    arguments[arguments.index("tensorboard")] = "viewer+tensorboard"
    output = succeed(
        "ns-train", *arguments, "--max-num-iterations", 20, "--timestamp", "viewed",
        "--viewer.websocket-port", free_port(), "--viewer.quit-on-train-completion", "True",
        cwd=trained.folder, env=ONE_THREAD,
    )  # fmt: skip
    assert "Viewer failed" not in output
    name = "nerfstudio_models/step-000000019.ckpt"
    alone, viewed = (
        _state(folder / name)["pipeline"]
        for folder in (trained.path, trained.path.with_name("viewed"))
    )
    for key, value in alone.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, viewed[key]), key


def test_eval_and_render_see_the_real_views(trained: NerfactoRun):
    succeed(
        "ns-eval", "--load-config", trained.config, "--output-path", "metrics.json",
        "--render-output-path", "evaluation", cwd=trained.folder,
    )  # fmt: skip
    results = json.loads((trained.folder / "metrics.json").read_text())["results"]
    assert 5 < results["psnr"] < 60
    assert len(list((trained.folder / "evaluation").glob("eval_img_*.png"))) == 1
    succeed(
        "ns-render", "dataset", "--load-config", trained.config, "--output-path", "renders",
        "--split", "train+test", "--rendered-output-names", "rgb", cwd=trained.folder,
    )  # fmt: skip
    # A single picture, that of the test view, gets no folder of its own.
    assert len(list((trained.folder / "renders/train").rglob("*.jpg"))) == 11
    assert len(list((trained.folder / "renders/test").rglob("*.jpg"))) == 1
