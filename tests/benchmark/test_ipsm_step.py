# SPDX-License-Identifier: Apache-2.0
"""The step of ipsm-gaussian with its prior inside, on a small scene and with tiny networks."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from ps4pro_nerfstudio.benchmark import ipsm_step
from ps4pro_nerfstudio.benchmark.ipsm_step import IPSMStepBenchmark
from ps4pro_nerfstudio.diffusion.inpainting_score import InpaintingScorePrior
from ps4pro_nerfstudio.diffusion.protocol import Score
from ps4pro_nerfstudio.messages import InputError

_PULL = 1e4
_SLEEP_S = 0.05


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Pictures are so small that threads only wait for each other on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Pull:
    """A prior that wants each colour to be darker, takes its time, and counts."""

    name = "pull"

    def __init__(self) -> None:
        self.config: Any = SimpleNamespace(guidance=7.5)
        self.calls = 0

    def score(self, image: Tensor, warped: Tensor, visible: Tensor, generator: Any) -> Score:
        assert image.shape == warped.shape == (3, *visible.shape)
        assert bool(visible.any())
        time.sleep(_SLEEP_S)
        self.calls += 1
        return Score(torch.full_like(image, _PULL), torch.tensor(1.0))


def bench(**options: Any) -> IPSMStepBenchmark:
    return IPSMStepBenchmark(
        num_gaussians=1500, size=(48, 36), num_points=100, repetitions=1, **options
    )


def work() -> ipsm_step._Work:
    return ipsm_step._Work(bench(), torch.device("cpu"))


def test_a_whole_step_goes_through_the_score_to_the_gaussians() -> None:
    scene, prior = work(), Pull()

    def pull_on_colours() -> float:
        gradient = scene.model.gauss_params["features_dc"].grad
        assert gradient is not None
        return float(gradient.sum())

    scene.step_with_unseen()
    assert "score_loss" not in scene.losses
    without = pull_on_colours()
    whole = scene.whole_step(prior, repetitions=2)
    assert prior.calls == 4  # Two are not counted.
    assert whole.networks == "pull"
    assert whole.milliseconds > 1e3 * _SLEEP_S
    assert whole.peak_gigabytes is None
    assert {"geo_loss", "score_loss"} <= set(scene.losses)
    assert pull_on_colours() > 100 * abs(without)
    assert scene.model.score_prior is None


def test_an_unseen_camera_that_shows_nothing_is_no_measurement(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ipsm_step, "_OFFSET", 1e4)
    scene = work()
    with pytest.raises(InputError, match="nothing to judge"):
        scene.whole_step(Pull(), repetitions=1)
    assert scene.model.score_prior is None


def test_tiny_networks_go_the_way_of_the_real_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a GPU too: the score is measured alone and inside whole steps."""
    pytest.importorskip("diffusers")
    sizes: list[torch.Size] = []
    score = InpaintingScorePrior.score

    def record(prior: InpaintingScorePrior, image: Tensor, *others: Any) -> Score:
        sizes.append(image.shape)
        return score(prior, image, *others)

    monkeypatch.setattr(InpaintingScorePrior, "score", record)
    output = tmp_path / "step.json"
    figures = bench(networks="tiny", output=output).run()
    assert sizes == [(3, 36, 48)] * 5
    assert figures["whole_step"]["networks"] == "tiny-random"
    assert figures["whole_step"]["milliseconds"] > 0.0
    assert figures["score"]["size"] == 64
    assert json.loads(output.read_text())["whole_step"] == figures["whole_step"]


@pytest.mark.parametrize(
    "options, measured",
    [({}, False), ({"networks": "tiny"}, True), ({"networks": "tiny", "score": False}, False)],
)
def test_the_prior_is_measured_where_it_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], measured: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(
        ipsm_step,
        "_Work",
        lambda *_: SimpleNamespace(
            render=lambda: {"total": 1.0},
            step=lambda: {"total": 2.0},
            step_with_unseen=lambda: {"total": 3.0},
        ),
    )
    monkeypatch.setattr(IPSMStepBenchmark, "_with_score", lambda *_: {"score": 0})
    figures = IPSMStepBenchmark(repetitions=1, **options).run()
    assert ("score" in figures) == measured
    assert figures["added_renders"] == 1.0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_the_peak_of_a_whole_step_holds_networks_and_gaussians() -> None:
    figures = bench(networks="tiny").run()
    resident = figures["score"]["resident_gigabytes"]
    assert figures["whole_step"]["peak_gigabytes"] > resident > 0.0
