# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from ps4pro_nerfstudio.engine.trainer import PS4PROTrainer, PS4PROTrainerConfig
from ps4pro_nerfstudio.methods import ps4pro_splatfacto


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
