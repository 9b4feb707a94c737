# SPDX-License-Identifier: Apache-2.0
"""nerfstudio's trainer with a device chosen for the machine, exact resume and clear errors.

What it adds:
  - `cuda` when there is a GPU, else `cpu`, said in one line;
  - random numbers of step `s` depend on the seed and on `s` alone, so that a resumed run draws what
    the uninterrupted one would have drawn;
  - the length of the run (steps done before a resume plus `max_num_iterations`) is handed to what
    follows it: schedulers, densification, pseudo views;
  - the photographs that train and those held out are written into the run's folder (`split.json`),
    and what they made of a splat's configuration (`plan.json`), which is said in one line as well;
  - the viewer shows the real and pseudo views of the training (`viewer.views_panel`);
  - an `InputError` ends the command with its message and exit code 1, and leaves no run folder.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from nerfstudio.engine.trainer import Trainer, TrainerConfig
from nerfstudio.models.splatfacto import SplatfactoModelConfig
from nerfstudio.viewer.viewer import Viewer
from torch import Tensor

from ps4pro_nerfstudio.dataparsers.split_file import write_split
from ps4pro_nerfstudio.engine.schedulers import FloatExponentialDecaySchedulerConfig
from ps4pro_nerfstudio.messages import InputError, MissingPartError, counted, fail, say
from ps4pro_nerfstudio.splatting.adapter import require_kernels
from ps4pro_nerfstudio.splatting.api import chosen_rasterizer
from ps4pro_nerfstudio.viewer.render_threads import stop_rendering
from ps4pro_nerfstudio.viewer.view_losses import ViewKey

if TYPE_CHECKING:
    from ps4pro_nerfstudio.models.splat_plan import SplatPlan
    from ps4pro_nerfstudio.viewer.views_panel import ViewsPanel

PROVENANCE_FILE = "networks.json"
"""Which networks' weights judged a run, in its folder; for models that have such."""

PLAN_FILE = "plan.json"
"""What the photographs and initial points made of a splat's configuration, in the run's folder."""

# Far apart for neighbouring seeds; a prime keeps (seed, step) pairs from meeting.
_SEED_STRIDE = 1_000_003
_LITTLE_SPACE = 1 << 20
"""Bytes; a checkpoint is larger, and what is left of one that failed is removed only later."""


@dataclass
class PS4PROTrainerConfig(TrainerConfig):
    """Trainer of the suite's methods."""

    _target: type = field(default_factory=lambda: PS4PROTrainer)


class PS4PROTrainer(Trainer):
    """See the module's docstring."""

    config: PS4PROTrainerConfig
    views_panel: ViewsPanel | None = None
    """What is added to the viewer; None without one."""

    def __init__(
        self, config: PS4PROTrainerConfig, local_rank: int = 0, world_size: int = 1
    ) -> None:
        if world_size > 1:
            fail(
                "training a splat on several GPUs at once is not supported "
                "(--machine.num-devices 1)"
            )
        _choose_device(config)
        super().__init__(config, local_rank, world_size)
        self.grad_scaler = _GradScaler(
            "cuda", enabled=self.use_grad_scaler and _on_gpu(self.device)
        )

    @property
    def run_length(self) -> int:
        """Steps of the whole run, those before a resume included."""
        return self._start_step + self.config.max_num_iterations

    def setup(self, test_mode: Literal["test", "val", "inference"] = "val") -> None:
        """Set up as upstream; an unusable input ends the command with one line."""
        try:
            if isinstance(self.config.pipeline.model, SplatfactoModelConfig) and (
                chosen_rasterizer(self.device) == "gsplat"
            ):
                # Before photographs are matched for minutes.
                require_kernels()
            super().setup(test_mode)
        except (InputError, MissingPartError) as error:
            _remove_empty_run(self.base_dir)
            fail(str(error))
        # What was decided during the set-up (share of pseudo steps, length) belongs to the record.
        self.config.save_config()
        manager: Any = self.pipeline.datamanager
        write_split(
            self.base_dir,
            manager.config.dataparser.data,
            train=manager.train_dataset.image_filenames,
            test=manager.eval_dataset.image_filenames,
        )
        plan: SplatPlan | None = getattr(self.pipeline.model, "plan", None)
        if plan is not None:
            say(plan.describe())
            (self.base_dir / PLAN_FILE).write_text(json.dumps(plan.record(), indent=1) + "\n")
        provenance = getattr(self.pipeline.model, "provenance", None)
        if provenance is not None:
            (self.base_dir / PROVENANCE_FILE).write_text(json.dumps(provenance(), indent=1) + "\n")

    def _load_checkpoint(self) -> None:
        load_dir = self.config.load_dir
        if load_dir is not None:
            _check_load_dir(load_dir)
        super()._load_checkpoint()
        manager: Any = self.pipeline.datamanager
        planned_length = getattr(manager, "planned_length", None)
        # A resumed run is told how many steps are left of one that was lengthened when it began.
        if planned_length is not None and self._start_step == 0:
            asked = self.config.max_num_iterations
            self.config.max_num_iterations = planned_length(asked)
            if self.config.max_num_iterations > asked:
                # The record has the longer number: who repeats it must not get an even longer run.
                manager.config.pseudo_views.schedule.equal_real_steps = False
        for group in self.config.optimizers.values():
            scheduler = group["scheduler"]
            if isinstance(scheduler, FloatExponentialDecaySchedulerConfig):
                scheduler.run_length = self.run_length

    def train(self) -> None:
        """Train as upstream; what stops it with advice ends the command with one line."""
        try:
            super().train()
        except InputError as error:
            fail(str(error))
        finally:
            if isinstance(self.viewer_state, Viewer):
                stop_rendering(self.viewer_state)

    def train_iteration(self, step: int):
        """Run one iteration whose random numbers depend on (seed, step) alone."""
        torch.manual_seed(self.config.machine.seed * _SEED_STRIDE + step)
        panel = self.views_panel
        if panel is None:
            return super().train_iteration(step)
        panel.before_step(step)
        result = super().train_iteration(step)
        panel.after_step(step, losses_of_step(self.pipeline, result[1]))
        return result

    def _init_viewer_state(self) -> None:
        super()._init_viewer_state()
        manager = self.pipeline.datamanager
        if isinstance(self.viewer_state, Viewer):
            from ps4pro_nerfstudio.datamanagers.pseudo_ray_datamanager import PseudoRayDatamanager
            from ps4pro_nerfstudio.datamanagers.pseudo_view_datamanager import PseudoViewDatamanager
            from ps4pro_nerfstudio.viewer.views_panel import ViewsPanel

            if isinstance(manager, (PseudoViewDatamanager, PseudoRayDatamanager)):
                self.views_panel = ViewsPanel(self.viewer_state, manager)

    def _train_complete_viewer(self) -> None:
        if self.views_panel is not None:
            self.views_panel.finish(self.step)
        super()._train_complete_viewer()

    def save_checkpoint(self, step: int) -> None:
        """Save under another name first: a full disk or a kill leaves the old checkpoint whole.

        Raises:
            InputError: the disk is full.
        """
        final_folder = self.checkpoint_dir
        final_folder.mkdir(parents=True, exist_ok=True)
        name = f"step-{step:09d}.ckpt"
        # Beside, not inside: every name in the folder is parsed as a checkpoint (nerfstudio).
        with tempfile.TemporaryDirectory(dir=final_folder.parent, prefix=".saving-") as temporary:
            self.checkpoint_dir = Path(temporary)
            try:
                super().save_checkpoint(step)
            except (OSError, RuntimeError) as error:  # torch has a RuntimeError for a full disk
                if shutil.disk_usage(final_folder).free > _LITTLE_SPACE:
                    raise
                raise InputError(
                    f"the disk of {final_folder} is full: the checkpoint of step {step} is lost, "
                    "earlier ones are whole; make room and go on from there with --load-dir"
                ) from error
            finally:
                self.checkpoint_dir = final_folder
            os.replace(Path(temporary) / name, final_folder / name)
        if self.config.save_only_latest_checkpoint:
            for other in final_folder.glob("*.ckpt"):
                if other.name != name:
                    other.unlink()


class _GradScaler(torch.amp.GradScaler):
    """Starts anew where a run on a CPU, which scales nothing, goes on on a GPU."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if state_dict:
            super().load_state_dict(state_dict)


def _on_gpu(device: str) -> bool:
    return torch.device(device).type == "cuda"


def losses_of_step(
    pipeline: Any, loss_dict: Mapping[str, Tensor]
) -> dict[ViewKey, tuple[Tensor, float]]:
    """Photometric loss of each view that the latest step used, and the factor that is in it.

    Args:
        pipeline: of one of the suite's methods, after a training step.
        loss_dict: what its model returned in that step.
    """
    served = getattr(pipeline.datamanager, "served", None)
    if served is not None:
        key = ViewKey(served.is_pseudo, served.index)
        return {key: (loss_dict["main_loss"], served.weight)}
    errors = getattr(pipeline.model, "view_errors", {})
    num_real = len(pipeline.datamanager.train_dataset)
    return {
        ViewKey(index >= num_real, index - num_real if index >= num_real else index): (error, 1.0)
        for index, error in errors.items()
    }


def _choose_device(config: PS4PROTrainerConfig) -> None:
    wanted = config.machine.device_type
    if wanted == "cuda" and not torch.cuda.is_available():
        config.machine.device_type = "cpu"
        config.save_config()
        threads = counted(torch.get_num_threads(), "thread")
        say(f"device: cpu, {threads} (no CUDA device was found)")
    elif wanted == "cuda":
        say(f"device: cuda, {torch.cuda.get_device_name()}")
    else:
        say(f"device: {wanted}")


def _check_load_dir(load_dir: Path) -> None:
    if not load_dir.is_dir() or not list(load_dir.glob("step-*.ckpt")):
        raise InputError(
            f"{load_dir} holds no checkpoint (step-*.ckpt); --load-dir wants the folder "
            "nerfstudio_models of a run"
        )


def _remove_empty_run(base_dir: Path) -> None:
    """Remove the folder of a run that never started, and the parents that it alone filled."""
    config_file = base_dir / "config.yml"
    if {p.name for p in base_dir.glob("*")} - {config_file.name}:
        return
    config_file.unlink(missing_ok=True)
    # base_dir is <output>/<experiment>/<method>/<time>; rmdir refuses folders with other runs.
    with contextlib.suppress(OSError):
        for folder in [base_dir, *list(base_dir.parents)[:3]]:
            folder.rmdir()
