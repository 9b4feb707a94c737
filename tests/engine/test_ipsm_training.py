# SPDX-License-Identifier: Apache-2.0
"""IPSM from the first step to the saved scene, as ns-train runs it, in this process (check 16)."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from nerfstudio.engine.callbacks import TrainingCallbackLocation
from nerfstudio.scripts.train import _set_random_seed

from ps4pro_nerfstudio.datamanagers.unseen_view_datamanager import UnseenViewDatamanager
from ps4pro_nerfstudio.dataparsers.sparse_views import SparseViewsDataParserConfig
from ps4pro_nerfstudio.diffusion import weights
from ps4pro_nerfstudio.methods import ipsm_gaussian
from ps4pro_nerfstudio.models.splatfacto import DenseStartConfig
from tests.conftest import write_capture

LENGTH = 40
FIRST = 3
"""Steps before densification."""


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_capture(tmp_path_factory.mktemp("wall") / "capture")


def set_up(scene: Path, diffusion: str, **model: Any) -> Any:
    config: Any = copy.deepcopy(ipsm_gaussian.config)
    config.vis = "tensorboard"
    config.logging.local_writer.enable = False
    config.max_num_iterations = LENGTH
    config.output_dir = scene.parent / "outputs"
    config.data = config.pipeline.datamanager.data = scene
    manager = config.pipeline.datamanager
    manager.dataparser = SparseViewsDataParserConfig(views=3)
    manager.cache_dir = scene.parent / "cache"
    manager.pseudo_views.interpolator = "optical-flow"
    manager.pseudo_views.source.min_mean_confidence = 0.0
    config.pipeline.model.diffusion = diffusion
    config.pipeline.model.depth = "triangulated"
    config.pipeline.model.score.size = 64
    config.pipeline.model.warmup_length, config.pipeline.model.refine_every = 5, 5
    for name, value in model.items():
        setattr(config.pipeline.model, name, value)
    config.set_timestamp()
    _set_random_seed(config.machine.seed)  # as ns-train does
    trainer = config.setup()
    trainer.setup()
    return trainer


def train(trainer: Any, steps: range = range(LENGTH)) -> list[dict[str, float]]:
    """Losses of each step."""
    history = []
    for step in steps:
        trainer.pipeline.train()
        trainer.pipeline.model.step_cb(trainer.optimizers, step)
        _, losses, _ = trainer.train_iteration(step)
        trainer.pipeline.model.step_post_backward(step)
        history.append({name: float(value) for name, value in losses.items()})
    return history


@pytest.mark.parametrize("diffusion", ["off", "tiny-random"])
def test_a_run_is_finite_repeatable_and_comes_back_from_disk(scene: Path, diffusion: str) -> None:
    trainer = set_up(scene, diffusion)
    model = trainer.pipeline.model
    before = {name: value.detach().clone() for name, value in model.gauss_params.items()}
    networks = json.loads((trainer.base_dir / "networks.json").read_text())
    assert (networks["diffusion"] is None) == (diffusion == "off")
    if diffusion == "tiny-random":
        assert networks["diffusion"]["prompt"] == ""  # it reads none
    assert networks["depth"] is None
    # Before Gaussians are added or removed, those that were there move.
    history = train(trainer, range(FIRST))
    for name, value in before.items():
        moves = not torch.equal(model.gauss_params[name], value)
        assert moves == (name != "features_rest"), name  # harmonics come later
    history += train(trainer, range(FIRST, LENGTH))
    terms = {name for losses in history for name in losses}
    assert {"main_loss", "seen_depth_loss", "geo_loss", "unseen_depth_loss"} <= terms
    assert ("score_loss" in terms) == (diffusion == "tiny-random")
    assert all(torch.isfinite(torch.tensor(list(losses.values()))).all() for losses in history)
    after = model.gauss_params

    again = set_up(scene, diffusion)
    assert train(again) == history
    for name, value in after.items():
        assert torch.equal(value, again.pipeline.model.gauss_params[name]), name

    trainer.save_checkpoint(LENGTH - 1)
    resumed = set_up(scene, "off")
    resumed.config.load_dir = trainer.checkpoint_dir
    resumed._load_checkpoint()
    camera = trainer.pipeline.datamanager.eval_dataset.cameras[:1]
    with torch.no_grad():
        first, second = (
            t.pipeline.model.eval().get_outputs(camera)["rgb"] for t in (trainer, resumed)
        )
    assert torch.equal(first, second)


def test_one_depth_network_serves_the_initial_points_and_the_losses(
    scene: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The datamanager opens what the model names, once, and the model takes it from there."""
    opened: list[BrightIsNear] = []

    def make(config: Any, device: Any) -> BrightIsNear:
        del config, device
        opened.append(BrightIsNear())
        return opened[-1]

    monkeypatch.setitem(sys.modules, "my_depth", SimpleNamespace(make=make))
    trainer = set_up(scene, "off", depth="my_depth:make")
    assert len(opened) == 1
    assert trainer.pipeline.datamanager.depth_prior is opened[0]
    assert trainer.pipeline.model.depth_prior is opened[0]
    networks = json.loads((trainer.base_dir / "networks.json").read_text())
    assert networks["depth"]["name"] == "bright"
    assert {"seen_depth_loss", "unseen_depth_loss"} <= {
        n for losses in train(trainer) for n in losses
    }


@pytest.mark.parametrize(
    ("densification", "end", "grad_thresh"),
    [("splatfacto", LENGTH // 4, 0.0004), ("released", LENGTH, 0.0005)],
)
def test_densification_from_dense_points(
    scene: Path, densification: str, end: int, grad_thresh: float
) -> None:
    """Early and short, but as released where that is asked for."""
    dense_start = DenseStartConfig(num_points=1000, stop_split_at=LENGTH // 4)
    trainer = set_up(scene, "off", dense_start=dense_start, densification=densification)
    assert trainer.pipeline.model.strategy.refine_stop_iter == end
    assert trainer.pipeline.model.strategy.grow_grad2d == grad_thresh
    decided = json.loads((trainer.base_dir / "plan.json").read_text())
    assert (decided["stop_split_at"], decided["densify_grad_thresh"]) == (end, grad_thresh)
    assert decided["drop_rate"] == trainer.pipeline.model.config.drop_rate > 0.0


def test_space_around_the_cameras_is_kept_empty(scene: Path) -> None:
    """Gaussians put before a camera are gone after the step that looks for them."""
    trainer = set_up(scene, "off")
    model, free = trainer.pipeline.model, trainer.pipeline.datamanager.free_space
    assert free.centres.shape == (3, 3)
    assert bool((free.radii > 0.0).all())
    placed = free.centres[0] + 0.5 * free.radii[0] * torch.tensor([0.0, 0.0, 1.0])
    train(trainer)
    with torch.no_grad():
        model.gauss_params["means"][:7] = placed

    def near() -> int:
        return int(((model.means - placed).norm(dim=-1) < 1e-6).sum())

    count = model.num_points
    assert near() == 7
    model.step_cb(trainer.optimizers, LENGTH)
    for callback in trainer.callbacks:
        callback.run_callback_at_location(LENGTH, TrainingCallbackLocation.AFTER_TRAIN_ITERATION)
    assert near() == 0
    assert model.num_points <= count - 7
    for name, optimizer in trainer.optimizers.optimizers.items():
        if name in model.gauss_params:
            assert optimizer.param_groups[0]["params"][0] is model.gauss_params[name]


class BrightIsNear:
    """A stand-in for a network."""

    name = "bright"
    inverse_offset = None

    def inverse_depth(self, image: torch.Tensor) -> torch.Tensor:
        assert image.shape[0] == 3
        return image.mean(dim=0)


@pytest.mark.parametrize(
    "model, message",
    [
        ({"diffusion": "stable-diffusion"}, "ps4pro fetch-weights ipsm"),
        ({"diffusion": "no-such-folder"}, "no such folder"),
        ({"depth": "depth-anything"}, "Depth-Anything-V2-Small"),
    ],
)
def test_weights_that_are_asked_for_but_absent_end_the_command(
    scene: Path, capsys, monkeypatch, tmp_path: Path, model: dict[str, str], message: str
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(SystemExit) as stop:
        set_up(scene, **{"diffusion": "off", **model})
    assert stop.value.code == 1
    last = capsys.readouterr().out.strip().splitlines()[-1]
    assert last.startswith("ps4pro ")
    assert message in last


def test_weights_that_do_not_fit_are_known_before_photographs_are_matched(
    scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """An inpainting model in the place of the one for text, with the files of auto's cache."""
    pytest.importorskip("diffusers")
    places = []
    for role in ("inpainting", "text"):
        places.append(weights.Found(tmp_path / role, role))
        for network, sizes in (("unet", {"in_channels": 9}), ("vae", {"latent_channels": 4})):
            file = tmp_path / role / network / "config.json"
            file.parent.mkdir(parents=True)
            file.write_text(json.dumps(sizes))
    monkeypatch.setattr(weights, "_cached", lambda *_: tuple(places))
    monkeypatch.setattr(UnseenViewDatamanager, "_augment", lambda _: pytest.fail("too late"))
    with pytest.raises(SystemExit):
        set_up(scene, "auto")
    printed = capsys.readouterr().out
    assert "text UNet takes 9 channels instead of 4" in printed
    assert "--pipeline.model.diffusion off" in printed


def test_missing_weights_are_known_before_photographs_are_matched(
    scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(UnseenViewDatamanager, "_augment", lambda _: pytest.fail("too late"))
    with pytest.raises(SystemExit):
        set_up(scene, str(tmp_path))
    assert "inpainting/unet/config.json is missing" in capsys.readouterr().out
