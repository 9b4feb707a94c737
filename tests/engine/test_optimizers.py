# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import torch
from nerfstudio.engine.optimizers import AdamOptimizerConfig

from ps4pro_nerfstudio.engine.optimizers import FusedAdamOptimizerConfig


def _after_steps(config) -> torch.Tensor:
    parameter = torch.nn.Parameter(torch.linspace(-1, 1, 50).reshape(10, 5))
    optimizer = config.setup(params=[parameter])
    for _ in range(5):
        optimizer.zero_grad()
        (parameter**3).sum().backward()
        optimizer.step()
    return parameter.detach()


def test_p07_fused_steps_equal_the_default_ones():
    ours = _after_steps(FusedAdamOptimizerConfig(lr=1e-2, eps=1e-15))
    theirs = _after_steps(AdamOptimizerConfig(lr=1e-2, eps=1e-15))
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)


def test_p07_adam_is_fused_on_the_cpu():
    optimizer = FusedAdamOptimizerConfig(lr=1.0).setup(params=[torch.nn.Parameter(torch.ones(2))])
    assert optimizer.param_groups[0]["fused"] is True
