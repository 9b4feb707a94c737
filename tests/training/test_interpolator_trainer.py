# SPDX-License-Identifier: Apache-2.0
"""Training learns, and a run that was killed ends where an uninterrupted one does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ps4pro_nerfstudio.interpolation.network import PS4PRO
from ps4pro_nerfstudio.messages import InputError, MissingPartError
from ps4pro_nerfstudio.training import trainer
from ps4pro_nerfstudio.training.stream import StreamConfig
from ps4pro_nerfstudio.training.trainer import TrainingRun, TrainInterpolator


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> TrainInterpolator:
    folder = tmp_path_factory.mktemp("training")
    data = StreamConfig(cache=folder / "cache", num_rooms=0, num_layered=6, size=(128, 96))
    return TrainInterpolator(
        output=folder / "run",
        preset="tiny",
        data=data,
        steps=50,
        batch_size=2,
        crop=64,
        warmup_steps=5,
        validate_every=50,
        validation_pairs=1,
        precision="fp32",
    )


def test_fifty_steps_lower_the_loss(config: TrainInterpolator) -> None:
    """On the batches of the first ten steps, before and after: the same data."""
    run = TrainingRun(config)
    batches = [run._stream.batch(step, 2, 64) for step in range(10)]

    def loss() -> float:
        with torch.no_grad():
            return float(np.mean([float(run._step(batch)["total"]) for batch in batches]))

    before = loss()
    run.train()
    assert loss() < before
    assert PS4PRO.from_pretrained(run.best_path).config == run.network.config


def test_killed_and_resumed_is_the_same_as_uninterrupted(
    config: TrainInterpolator, tmp_path: Path
) -> None:
    whole = replace(config, output=tmp_path / "whole", steps=8, validate_every=4)
    parts = replace(whole, output=tmp_path / "parts")
    uninterrupted = TrainingRun(whole)
    uninterrupted.train()
    TrainingRun(parts).train(until=4)
    resumed = TrainingRun(parts)
    assert resumed.step == 4
    resumed.train()
    for run in (uninterrupted, resumed):
        assert run.step == 8
    for key, value in uninterrupted.network.state_dict().items():
        assert torch.equal(value, resumed.network.state_dict()[key]), key
        assert torch.equal(uninterrupted.average[key], resumed.average[key]), key


def test_learning_rate_rises_then_falls(config: TrainInterpolator, tmp_path: Path) -> None:
    run = TrainingRun(replace(config, output=tmp_path, steps=100, warmup_steps=10))
    rates = [run.learning_rate(step) for step in range(101)]
    assert rates[:10] == sorted(rates[:10])
    assert max(rates) == pytest.approx(config.learning_rate)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] == pytest.approx(0.02 * config.learning_rate)


def test_wrong_options_and_foreign_checkpoints_are_refused(
    config: TrainInterpolator, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="multiple of 16"):
        TrainingRun(replace(config, crop=50))
    short = replace(config, output=tmp_path, steps=1, validate_every=1)
    TrainingRun(short).train()
    with pytest.raises(InputError, match="belongs to the preset 'tiny'"):
        TrainingRun(replace(short, preset="small"))
    (tmp_path / "last.pt").write_bytes(b"damaged")
    with pytest.raises(InputError, match="delete it to start anew"):
        TrainingRun(short)


def test_the_perceptual_loss_comes_at_the_end(
    config: TrainInterpolator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def distance(image: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        asked.append(run.step)
        return (image - target).abs().mean()

    monkeypatch.setattr(trainer, "perceptual_distance", lambda device: distance)
    options = replace(config, output=tmp_path, steps=4, perceptual_steps=2, validate_every=4)
    run = TrainingRun(options)
    run.best_psnr = 1e3
    run.train()
    assert asked == [2, 3]
    assert run.best_path.is_file()


def test_missing_weights_of_the_perceptual_loss_are_noticed_at_the_start(
    config: TrainInterpolator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(MissingPartError, match="put torchvision's file there"):
        TrainingRun(replace(config, output=tmp_path / "run", perceptual_steps=2))
