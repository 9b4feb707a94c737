# SPDX-License-Identifier: Apache-2.0
"""Unpooling between lonely Gaussians, and resets at the steps of the schedule."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import Parameter, ParameterDict

from ps4pro_nerfstudio.models.ipsm_schedule import IPSMSchedule, IPSMScheduleConfig
from ps4pro_nerfstudio.models.ipsm_strategy import IPSMStrategy


def gaussians(means: torch.Tensor, scale: float) -> tuple[ParameterDict, dict[str, Any]]:
    """Gaussians of one scale, opacity .3 and one optimizer with moments for each parameter."""
    count = len(means)
    params = ParameterDict(
        {
            "means": Parameter(means.clone()),
            "scales": Parameter(torch.full((count, 3), scale).log()),
            "quats": Parameter(torch.randn(count, 4)),
            "features_dc": Parameter(torch.rand(count, 3)),
            "features_rest": Parameter(torch.rand(count, 15, 3)),
            "opacities": Parameter(torch.logit(torch.linspace(0.2, 0.8, count))[:, None]),
        }
    )
    optimizers: dict[str, Any] = {}
    for name, value in params.items():
        optimizers[name] = torch.optim.Adam([value], lr=1e-3)
        value.grad = torch.ones_like(value)
        optimizers[name].step()
        value.grad = None
    return params, optimizers


# A lonely one, far from a cluster of three.
MEANS = torch.tensor([[9.0, 0, 0], [0.0, 0, 0], [0.1, 0, 0], [0.0, 0.1, 0]])


def grown(strategy: IPSMStrategy, params, optimizers, step: int = 100) -> dict[str, Any]:
    state = strategy.initialize_state()
    state["grad2d"] = torch.zeros(len(params["means"]))
    state["count"] = torch.ones(len(params["means"]))
    strategy._grow_gs(params, optimizers, state, step)
    return state


def test_a_lonely_gaussian_gets_three_new_ones_half_way_to_its_neighbours() -> None:
    """Mean squared distance 7.2: more than 5 extents, less than the 10 that split it."""
    params, optimizers = gaussians(MEANS * 0.3, scale=1.5)
    first = {name: value.detach().clone() for name, value in params.items()}
    state = grown(IPSMStrategy(), params, optimizers)
    assert len(params["means"]) == 7
    new = {name: value[4:].detach() for name, value in params.items()}
    expected = 0.5 * (first["means"][:1] + first["means"][1:])
    order, expected_order = (x.sum(dim=1).argsort() for x in (new["means"], expected))
    torch.testing.assert_close(new["means"][order], expected[expected_order])
    # Scale and opacity of the neighbour, no rotation, no colour yet.
    torch.testing.assert_close(new["opacities"][order], first["opacities"][1:][expected_order])
    torch.testing.assert_close(new["scales"], first["scales"][1:])
    assert bool((new["quats"] == torch.tensor([1.0, 0.0, 0.0, 0.0])).all())
    assert bool((new["features_dc"] == 0).all())
    assert bool((new["features_rest"] == 0).all())
    for name, values in first.items():
        torch.testing.assert_close(params[name][:4].detach(), values)
        (group,) = optimizers[name].param_groups
        assert group["params"][0] is params[name]
        moments = optimizers[name].state[params[name]]["exp_avg"]
        assert bool((moments[:4] != 0).all())
        assert bool((moments[4:] == 0).all())
    assert state["grad2d"].shape == state["count"].shape == (7,)


def test_a_very_lonely_gaussian_is_split() -> None:
    """Mean squared distance 80; the four others have each other."""
    means = torch.cat([MEANS, torch.tensor([[0.1, 0.1, 0.0]])])
    params, optimizers = gaussians(means, scale=1.5)
    grown(IPSMStrategy(), params, optimizers)
    assert len(params["means"]) == 6  # Adam's first step has moved all by its rate
    torch.testing.assert_close(params["means"][:4].detach(), means[1:] - 1e-3)


@pytest.mark.parametrize(
    "means, scale, options, step",
    [
        (MEANS * 0.3, 0.5, {}, 100),  # small
        (MEANS * 0.2, 1.5, {}, 100),  # near
        (MEANS * 0.3, 1.5, {"unpool_metric": "off"}, 100),
        (MEANS * 0.3, 1.5, {"unpool_metric": "metric"}, 100),  # 2.7 is no more than 5
        (MEANS * 0.3, 1.5, {}, 2000),  # after the first fifth
        (MEANS[:3] * 0.3, 1.5, {}, 100),  # too few for three neighbours
    ],
)
def test_nothing_is_unpooled(means: torch.Tensor, scale: float, options, step: int) -> None:
    params, optimizers = gaussians(means, scale)
    grown(IPSMStrategy(grow_scale3d=10.0, **options), params, optimizers, step)
    assert len(params["means"]) == len(means)


def test_a_reset_lowers_opacities_once_and_none_happens_at_the_first_step() -> None:
    strategy = IPSMStrategy(schedule=IPSMSchedule(IPSMScheduleConfig(reset_at=(2001,)), 10))
    params, optimizers = gaussians(MEANS, scale=0.1)
    state = strategy.initialize_state()
    lowered = []
    for step in range(10):
        params["opacities"].data[:] = torch.logit(torch.tensor(0.5))
        means2d = torch.zeros(1, 4, 2)
        means2d.grad = torch.zeros(1, 4, 2)
        info = {
            "means2d": means2d,
            "radii": torch.zeros(1, 4),
            "width": 8,
            "height": 8,
            "n_cameras": 1,
            "gaussian_ids": None,
        }
        strategy.step_post_backward(params, optimizers, state, step, info)
        if float(params["opacities"].detach().sigmoid().max()) < 0.0101:
            lowered.append(step)
    assert lowered == [3]
