# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
from nerfstudio.engine.schedulers import ExponentialDecaySchedulerConfig

from ps4pro_nerfstudio.engine.schedulers import FloatExponentialDecaySchedulerConfig


def _rates(config, steps: int) -> list[float]:
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], lr=2e-4)
    scheduler = config.setup().get_scheduler(optimizer, lr_init=2e-4)
    rates = []
    for _ in range(steps):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize("ramp", ["linear", "cosine"])
@pytest.mark.parametrize("warmup_steps", [0, 7])
def test_rates_equal_nerfstudios(ramp, warmup_steps):
    options = {
        "lr_final": 1e-6, "max_steps": 30, "warmup_steps": warmup_steps, "ramp": ramp,
        "lr_pre_warmup": 1e-8,
    }  # fmt: skip
    ours = _rates(FloatExponentialDecaySchedulerConfig(**options), 40)
    theirs = _rates(ExponentialDecaySchedulerConfig(**options), 40)
    assert ours == pytest.approx(theirs, rel=1e-12)


def test_p08_rates_are_python_floats():
    config = FloatExponentialDecaySchedulerConfig(lr_final=1e-6, max_steps=10)
    assert {type(rate) for rate in _rates(config, 12)} == {float}


def test_decay_follows_the_run_when_no_length_is_given():
    """Half of a 20-step run from 2e-4 to 2e-6: sqrt(2e-4 * 2e-6) = 2e-5, a tenth of the start."""
    config = FloatExponentialDecaySchedulerConfig(lr_final=2e-6, run_length=20)
    rates = _rates(config, 21)
    assert rates[10] == pytest.approx(2e-5)
    assert rates[20] == pytest.approx(2e-6)


def test_a_run_shorter_than_its_warm_up_is_finite():
    config = FloatExponentialDecaySchedulerConfig(lr_final=1e-6, warmup_steps=50, run_length=10)
    assert all(0 <= rate <= 2e-4 for rate in _rates(config, 60))
