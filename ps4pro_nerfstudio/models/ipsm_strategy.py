# SPDX-License-Identifier: Apache-2.0
"""Densification of IPSM: gsplat's default strategy, unpooling at first, resets by a schedule.

Unpooling is that of FSGS (arXiv 2312.00451, section 3.2): where Gaussians lie far apart, new ones
are put half-way to their three nearest neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from gsplat.strategy import DefaultStrategy
from gsplat.strategy.ops import _update_param_with_optimizer, reset_opa, split
from scipy.spatial import KDTree
from torch import Tensor

from ps4pro_nerfstudio.models.ipsm_schedule import IPSMSchedule

NEIGHBOURS = 3
_FAR = 5.0
_VERY_FAR = 10.0
_NEVER = 1 << 60


@dataclass
class IPSMStrategy(DefaultStrategy):
    """See the module's docstring; the inherited fields keep gsplat's meaning."""

    schedule: IPSMSchedule = field(default_factory=IPSMSchedule)
    """When Gaussians are unpooled and opacities lowered."""
    resets: bool = True
    """Whether opacities are lowered at all."""
    reset_opacity: float = 0.01
    """Opacity that a reset leaves at most."""
    extent: float = 1.0
    """Size of the capture in units of the poses."""
    unpool_metric: Literal["paper", "metric", "off"] = "paper"
    """What is compared with 5 extents: the mean squared distance to the neighbours, as released,
    or the root of it."""

    def __post_init__(self) -> None:
        # gsplat resets each `reset_every` steps, the very first one included.
        self.reset_every = _NEVER
        self.pause_refine_after_reset = 0

    def step_post_backward(  # type: ignore[override]
        self, params, optimizers, state: dict[str, Any], step: int, info, packed: bool = False
    ) -> None:
        """Collect statistics, grow and prune, and reset when the schedule says so."""
        if step > 0:
            super().step_post_backward(params, optimizers, state, step, info, packed)
        elif step < self.refine_stop_iter:
            self._update_state(params, state, info, packed=packed)
        if self.resets and self.schedule.resets_opacity(step):
            reset_opa(params, optimizers, state, self.reset_opacity)

    @torch.no_grad()
    def _grow_gs(self, params, optimizers, state, step: int) -> tuple[int, int]:
        unpool = self.schedule.unpools(step) and self.unpool_metric != "off"
        if unpool:
            self._split_lonely(params, optimizers, state)
        num_duplicated, num_split = super()._grow_gs(params, optimizers, state, step)
        if unpool:
            num_duplicated += self._unpool(params, optimizers, state)
        return num_duplicated, num_split

    def _distance(self, means: Tensor) -> tuple[Tensor, Tensor]:
        """Mean (squared) distance [N] to the three nearest neighbours, and these [N, 3]."""
        points = means.detach().cpu().numpy()
        # The first neighbour of a point is itself.
        found = KDTree(points).query(points, k=NEIGHBOURS + 1)
        distance, neighbours = (np.asarray(part)[:, 1:] for part in found)
        squared = np.square(distance).mean(axis=1)
        result = torch.from_numpy(squared if self.unpool_metric == "paper" else np.sqrt(squared))
        return result.to(means), torch.from_numpy(neighbours.copy()).to(means.device)

    def _lonely(self, params, factor: float) -> tuple[Tensor, Tensor] | None:
        """Large Gaussians farther than `factor` extents from their neighbours: mask, neighbours."""
        if len(params["means"]) <= NEIGHBOURS:
            return None
        is_large = params["scales"].exp().amax(dim=-1) > self.extent
        if not bool(is_large.any()):
            return None
        distance, neighbours = self._distance(params["means"])
        mask = is_large & (distance > factor * self.extent)
        return (mask, neighbours) if bool(mask.any()) else None

    def _split_lonely(self, params, optimizers, state) -> None:
        found = self._lonely(params, _VERY_FAR)
        if found is not None:
            split(params=params, optimizers=optimizers, state=state, mask=found[0])

    def _unpool(self, params, optimizers, state) -> int:
        """Put a Gaussian half-way to each neighbour of a lonely one; how many."""
        found = self._lonely(params, _FAR)
        if found is None:
            return 0
        mask, neighbours = found
        lonely = torch.nonzero(mask)[:, 0].repeat_interleave(NEIGHBOURS)
        other = neighbours[mask].flatten()
        identity = params["quats"].new_tensor([1.0, 0.0, 0.0, 0.0])

        def new_values(name: str, values: Tensor) -> Tensor:
            if name == "means":
                return 0.5 * (values[lonely] + values[other])
            if name in ("scales", "opacities"):
                return values[other]
            if name == "quats":
                return identity.expand(len(other), 4)
            return torch.zeros_like(values[other])

        _update_param_with_optimizer(
            lambda name, values: torch.nn.Parameter(torch.cat([values, new_values(name, values)])),
            lambda _, moment: torch.cat([moment, moment.new_zeros(len(other), *moment.shape[1:])]),
            params,
            optimizers,
        )
        for name, values in state.items():
            if isinstance(values, Tensor):
                state[name] = torch.cat([values, values.new_zeros(len(other), *values.shape[1:])])
        return len(other)
