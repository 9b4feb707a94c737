# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import copy
import json
import shutil
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from ps4pro_nerfstudio.datamanagers.pseudo_view_datamanager import ServedView
from ps4pro_nerfstudio.dataparsers.sparse_views import SparseViewsDataParserConfig
from ps4pro_nerfstudio.engine import trainer as trainer_module
from ps4pro_nerfstudio.engine.trainer import PS4PROTrainer, PS4PROTrainerConfig, losses_of_step
from ps4pro_nerfstudio.messages import InputError
from ps4pro_nerfstudio.methods import ps4pro_splatfacto
from ps4pro_nerfstudio.viewer.view_losses import ViewKey


def _config(folder: Path) -> PS4PROTrainerConfig:
    config = copy.deepcopy(ps4pro_splatfacto.config)
    assert isinstance(config, PS4PROTrainerConfig)
    config.output_dir, config.experiment_name = folder, "test"
    config.set_timestamp()
    return config


def test_p26_several_gpus_are_refused(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        PS4PROTrainer(_config(tmp_path), world_size=2)
    assert stop.value.code == 1
    assert "--machine.num-devices 1" in capsys.readouterr().out


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_p03_cuda_becomes_cpu_where_there_is_none(tmp_path, capsys):
    config = _config(tmp_path)
    assert config.machine.device_type == "cuda"
    trainer = PS4PROTrainer(config)
    assert trainer.device == "cpu"
    assert capsys.readouterr().out.count("ps4pro device: cpu") == 1


@pytest.mark.parametrize("kernels", [None, "broken"])
def test_kernels_that_cannot_be_compiled_are_missed_before_any_work(
    tmp_path, monkeypatch, capsys, kernels
):
    """gsplat compiles its kernels at the first use; without nvcc it has None in their place."""
    backend = ModuleType("gsplat.cuda._backend")
    if kernels is None:
        backend._C = None  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "gsplat.cuda._backend", backend)
    monkeypatch.setattr(trainer_module, "chosen_rasterizer", lambda device: "gsplat")
    config = _config(tmp_path)
    config.pipeline.datamanager.data = tmp_path / "no capture"
    with pytest.raises(SystemExit):
        PS4PROTrainer(config).setup()
    said = capsys.readouterr().out
    assert "gsplat's CUDA kernels" in said
    assert "--machine.device-type cpu" in said


def test_a_scaler_saved_on_a_cpu_is_started_anew(tmp_path):
    """On a CPU nothing is scaled and nothing saved; torch's own scaler refuses that on a GPU."""
    scaler = PS4PROTrainer(_config(tmp_path)).grad_scaler
    scaler._enabled = True
    scaler.load_state_dict({})
    with pytest.raises(RuntimeError, match="is empty"):
        torch.amp.GradScaler.load_state_dict(scaler, {})


def test_the_run_length_counts_the_steps_before_a_resume(tmp_path):
    config = _config(tmp_path)
    config.max_num_iterations = 100
    trainer = PS4PROTrainer(config)
    assert trainer.run_length == 100
    trainer._start_step = 40
    assert trainer.run_length == 140


def test_a_kill_while_saving_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    """The new file is written beside the folder of checkpoints and moved into it when complete."""
    from nerfstudio.engine.trainer import Trainer

    trainer = PS4PROTrainer(_config(tmp_path))
    trainer.checkpoint_dir.mkdir(parents=True)
    old = trainer.checkpoint_dir / "step-000000001.ckpt"
    old.write_bytes(b"old")
    places = []

    def interrupted(self, step):
        places.append(self.checkpoint_dir)
        (self.checkpoint_dir / f"step-{step:09d}.ckpt").write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "save_checkpoint", interrupted)
    with pytest.raises(KeyboardInterrupt):
        trainer.save_checkpoint(2)
    assert [path.name for path in trainer.checkpoint_dir.iterdir()] == [old.name]
    assert old.read_bytes() == b"old"
    assert places[0] != trainer.checkpoint_dir
    assert not places[0].exists()


def test_a_full_disk_is_named_and_another_failure_is_not_hidden(tmp_path, monkeypatch):
    """What torch says of a full disk names neither disk nor folder."""
    from nerfstudio.engine.trainer import Trainer

    def failing(self, step):
        raise RuntimeError("unexpected pos 4352 vs 4288")

    monkeypatch.setattr(Trainer, "save_checkpoint", failing)
    trainer = PS4PROTrainer(_config(tmp_path))
    with pytest.raises(RuntimeError, match="unexpected pos"):
        trainer.save_checkpoint(2)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=4096))
    with pytest.raises(InputError, match=r"is full: the checkpoint of step 2 is lost.*--load-dir"):
        trainer.save_checkpoint(2)


def test_a_run_says_what_it_trained_on(capture, tmp_path):
    """Names relative to the capture, in the run's folder and not among the checkpoints (p12)."""
    config = _config(tmp_path / "outputs")
    config.vis = "tensorboard"
    config.logging.local_writer.enable = False
    manager: Any = config.pipeline.datamanager
    manager.data = capture()
    manager.dataparser = SparseViewsDataParserConfig(views=3)
    manager.pseudo_views.enabled = False
    manager.seed_points.num_random = 100
    trainer = PS4PROTrainer(config)
    trainer.setup()
    written = json.loads((trainer.base_dir / "split.json").read_text())
    assert written == {
        "train": ["images/001.png", "images/005.png", "images/011.png"],
        "test": ["images/000.png", "images/008.png"],
    }
    assert not trainer.checkpoint_dir.exists()
    assert manager.dataparser.setup().get_dataparser_outputs().metadata["split"] == written


def test_equal_real_steps_lengthen_the_run_and_the_record_says_so(capture, tmp_path):
    """Six photographs: 35 % of the steps from the tenth part on are pseudo steps."""
    config = _config(tmp_path / "outputs")
    config.vis = "tensorboard"
    config.logging.local_writer.enable = False
    config.max_num_iterations = 100
    manager: Any = config.pipeline.datamanager
    manager.data = capture()
    manager.dataparser = SparseViewsDataParserConfig(views=6)
    manager.pseudo_views.interpolator = "linear-blend"
    manager.pseudo_views.control = "repeat-real"
    manager.pseudo_views.schedule.equal_real_steps = True
    manager.seed_points.num_random = 100
    trainer = PS4PROTrainer(config)
    trainer.setup()
    trained_on = [
        "pseudo_weight" in trainer.pipeline.datamanager.next_train(step)[1]
        for step in range(trainer.run_length)
    ]
    assert trained_on.count(False) in (100, 101)
    assert trained_on.count(True) > 25
    text = (trainer.base_dir / "config.yml").read_text()
    assert f"max_num_iterations: {trainer.run_length}" in text
    assert "share: 0.35" in text
    # Who repeats the run from its record gets the same one.
    assert "equal_real_steps: false" in text
    # A resume counts what is left of the longer run.
    trainer._start_step, config.max_num_iterations = 60, trainer.run_length - 60
    length = trainer.run_length
    manager.pseudo_views.schedule.equal_real_steps = True
    trainer._load_checkpoint()
    assert trainer.run_length == length


def test_losses_of_a_step_name_its_views():
    """Full images: the view that was served. Rays: each view, pseudo views counted after real."""
    loss = torch.tensor(0.3)
    manager = SimpleNamespace(served=ServedView(is_pseudo=True, index=4, weight=0.5))
    pipeline = SimpleNamespace(datamanager=manager, model=None)
    assert losses_of_step(pipeline, {"main_loss": loss}) == {ViewKey(True, 4): (loss, 0.5)}

    model = SimpleNamespace(view_errors={2: loss, 3: loss + 1})
    pipeline = SimpleNamespace(datamanager=SimpleNamespace(train_dataset=[0, 1, 2]), model=model)
    losses = losses_of_step(pipeline, {"rgb_loss": loss})
    assert losses == {ViewKey(False, 2): (loss, 1.0), ViewKey(True, 0): (loss + 1, 1.0)}
