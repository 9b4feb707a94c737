# SPDX-License-Identifier: Apache-2.0
"""The schedule of IPSM at the numbers of its released code (check 11), and scaled."""

from __future__ import annotations

import math

import pytest

from ps4pro_nerfstudio.models.ipsm_schedule import IPSMSchedule, IPSMScheduleConfig
from ps4pro_nerfstudio.pseudo_views.schedule import PseudoViewSchedule, PseudoViewScheduleConfig

LLFF = IPSMSchedule()


def test_the_ramp() -> None:
    assert [LLFF.ramp(step) for step in (0, 2000, 2250, 2500, 9000)] == [0.0, 0.0, 0.5, 1.0, 1.0]


def test_unseen_views_take_part_between_the_two_ends() -> None:
    active = [step for step in range(10_000) if LLFF.has_unseen_view(step)]
    assert active == list(range(2001, 9500))


def test_resets() -> None:
    assert [step for step in range(10_000) if LLFF.resets_opacity(step)] == [2001]
    dtu = IPSMSchedule(IPSMScheduleConfig(reset_at=tuple(range(2001, 10_000, 1000))))
    found = [step for step in range(10_000) if dtu.resets_opacity(step)]
    assert found == [2001, 3001, 4001, 5001, 6001, 7001, 8001, 9001]


@pytest.mark.parametrize("num_steps", [40, 777, 3000, 30_000])
def test_another_length_has_the_same_parts(num_steps: int) -> None:
    """Each reset happens once, unseen views fill three quarters, unpooling the first fifth."""
    schedule = IPSMSchedule(num_steps=num_steps)
    steps = range(num_steps)
    assert sum(schedule.resets_opacity(step) for step in steps) == 1
    assert sum(schedule.has_unseen_view(s) for s in steps) == pytest.approx(0.75 * num_steps, abs=2)
    assert sum(schedule.unpools(step) for step in steps) == pytest.approx(0.2 * num_steps, abs=1)
    assert schedule.ramp(num_steps // 2) == 1.0


def test_every_kth_step_keeps_the_sum_of_weights() -> None:
    """The model multiplies by k what takes part in each k-th step."""
    third = IPSMSchedule(IPSMScheduleConfig(every_k=3))
    steps = range(10_000)
    every = sum(LLFF.ramp(s) for s in steps if LLFF.has_unseen_view(s))
    each_third = sum(3 * third.ramp(s) for s in steps if third.has_unseen_view(s))
    assert each_third == pytest.approx(every, rel=1e-3)


@pytest.mark.parametrize(
    ("share", "k"), [(1 / 3, 3), (0.35, 4), (0.35, 10), (0.35, 20), (0.5, 2), (0.25, 8)]
)
def test_the_rhythm_of_pseudo_views_does_not_change_it(share: float, k: int) -> None:
    """Pseudo steps have no unseen view; of the others one of k has, whatever their share."""
    pseudo = PseudoViewSchedule(PseudoViewScheduleConfig(share=share), 10_000, 3, 100)
    schedule = IPSMSchedule(IPSMScheduleConfig(every_k=k))
    real = [step for step in range(2001, 9500) if not pseudo.is_pseudo(step)]
    found = sum(schedule.has_unseen_view(step) for step in real)
    assert k * found == pytest.approx(len(real), rel=0.03)


def test_seen_depth_counts_little_at_the_end() -> None:
    weights = [LLFF.seen_depth_weight(step, 0.05) for step in (0, 5000, 9500, 9501, 9999)]
    assert weights == [0.05, 0.05, 0.05, 0.001, 0.001]
    assert LLFF.seen_depth_weight(9999, 0.0005) == 0.0005


def test_gaussians_are_left_out_more_and_more_and_not_at_all_in_the_end() -> None:
    steps = (0, 2500, 9500, 9501, 9999)
    rates = [LLFF.drop_rate(step, 0.2) for step in steps]
    assert rates == pytest.approx([0.0, 0.05, 0.19, 0.0, 0.0])
    assert [LLFF.drop_rate(step, 0.0) for step in steps] == [0.0] * 5
    assert IPSMSchedule(num_steps=1000).drop_rate(250, 0.2) == pytest.approx(0.05)


def test_impossible_schedules() -> None:
    with pytest.raises(ValueError, match="unseen_from"):
        IPSMScheduleConfig(unseen_from=9500)
    with pytest.raises(ValueError, match="run of 10,000"):
        IPSMScheduleConfig(unseen_until=20_000)
    with pytest.raises(ValueError, match="every_k"):
        IPSMScheduleConfig(every_k=0)
    with pytest.raises(ValueError, match="ramp"):
        IPSMScheduleConfig(ramp=-5)
    for weight in (-0.1, math.nan, math.inf):
        with pytest.raises(ValueError, match="late_depth_weight"):
            IPSMScheduleConfig(late_depth_weight=weight)
