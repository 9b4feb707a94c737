# SPDX-License-Identifier: Apache-2.0
"""Exponential decay of a learning rate that keeps checkpoints free of NumPy types.

The formula is nerfstudio's: from `lr_init` to `lr_final`, linear in the logarithm, after an
optional warm-up. Two things differ: the factor is a Python float (see `checkpoints`), and the decay
may span the run, whatever its length.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from nerfstudio.engine.schedulers import ExponentialDecayScheduler, ExponentialDecaySchedulerConfig
from torch.optim import Optimizer, lr_scheduler


@dataclass
class FloatExponentialDecaySchedulerConfig(ExponentialDecaySchedulerConfig):
    """Exponential decay that returns Python floats."""

    _target: type = field(default_factory=lambda: FloatExponentialDecayScheduler)
    max_steps: int = 0
    """Step at which lr_final is reached; 0 follows the length of the run."""
    run_length: int = 30_000
    """Length of the run, set by the trainer; used when max_steps is 0."""

    @property
    def decay_steps(self) -> int:
        """Steps over which the rate decays, at least one."""
        return max(self.max_steps or self.run_length, self.warmup_steps + 1)


class FloatExponentialDecayScheduler(ExponentialDecayScheduler):
    """Reads its config at each step: the trainer sets the run's length after loading."""

    config: FloatExponentialDecaySchedulerConfig

    def factor(self, step: int, lr_init: float) -> float:
        """Multiplier of the initial learning rate at a step."""
        config = self.config
        if step < config.warmup_steps:
            progress = step / config.warmup_steps
            if config.ramp == "cosine":
                progress = math.sin(0.5 * math.pi * min(max(progress, 0.0), 1.0))
            return (config.lr_pre_warmup + (lr_init - config.lr_pre_warmup) * progress) / lr_init
        lr_final = lr_init if config.lr_final is None else config.lr_final
        t = (step - config.warmup_steps) / (config.decay_steps - config.warmup_steps)
        t = min(max(t, 0.0), 1.0)
        return math.exp(math.log(lr_init) * (1 - t) + math.log(lr_final) * t) / lr_init

    def get_scheduler(self, optimizer: Optimizer, lr_init: float) -> lr_scheduler.LRScheduler:
        """Return a scheduler of the optimizer; `lr_init` is the rate at factor one."""
        return lr_scheduler.LambdaLR(optimizer, lambda step: self.factor(step, lr_init))
