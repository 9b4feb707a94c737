# SPDX-License-Identifier: Apache-2.0
"""Laws of the pseudo-view schedule."""

from __future__ import annotations

from collections import Counter

import pytest

from ps4pro_nerfstudio.pseudo_views.schedule import PseudoViewSchedule, PseudoViewScheduleConfig


def schedule(
    num_real: int = 10, num_pseudo: int = 9, num_steps: int = 1000, **options: object
) -> PseudoViewSchedule:
    config = PseudoViewScheduleConfig(**options)  # pyright: ignore
    return PseudoViewSchedule(config, num_steps, num_real, num_pseudo)


def test_weight_is_zero_at_both_ends_and_never_above_its_peak() -> None:
    plan = schedule()
    weights = [plan.weight(step) for step in range(1000)]
    assert weights[0] == weights[999] == 0.0
    assert max(weights) == pytest.approx(1.0)
    assert min(weights) >= 0.0


def test_weight_ramps_stays_and_falls() -> None:
    """1001 steps: progress is step / 1000. Half of the ramp: .5; half of the cosine: .5."""
    plan = schedule(num_steps=1001)
    assert plan.weight(99) == 0.0
    assert plan.weight(125) == pytest.approx(0.5)
    assert plan.weight(150) == pytest.approx(1.0)
    assert plan.weight(750) == pytest.approx(1.0)
    assert plan.weight(875) == pytest.approx(0.5)
    assert plan.weight(960) < 0.1


@pytest.mark.parametrize(
    ("num_real", "share"), [(2, 0.35), (12, 0.35), (26, 0.175), (40, 0.0), (400, 0.0)]
)
def test_share_fades_as_the_capture_gets_denser(num_real: int, share: float) -> None:
    assert schedule(num_real, num_pseudo=50).share == pytest.approx(share)


def test_no_pseudo_view_is_visited_more_often_than_a_photograph() -> None:
    assert schedule(num_real=9, num_pseudo=1).share == pytest.approx(0.1)


def test_share_of_pseudo_steps_is_the_decided_share() -> None:
    plan = schedule(num_steps=4000)
    planned = sum(plan.is_pseudo(step) for step in range(600, 3000))
    assert planned == pytest.approx(2400 * plan.share, abs=1.01)


def test_steps_without_weight_are_real_steps() -> None:
    plan = schedule()
    assert not any(plan.is_pseudo(step) for step in range(1000) if plan.weight(step) == 0.0)
    assert not any(plan.is_pseudo(step) for step in range(100))


def test_each_round_visits_every_pseudo_view_once_in_another_order() -> None:
    plan = schedule(num_pseudo=8)
    visited = [plan.view_index(step) for step in range(1000) if plan.is_pseudo(step)]
    first, second = visited[8:16], visited[16:24]
    assert set(Counter(visited[:8] + first + second).values()) == {3}
    assert first != second


def test_the_plan_is_a_function_of_the_step_alone() -> None:
    """A resumed run asks only for the steps that are left, in a new process."""
    whole, resumed = schedule(), schedule()
    expected = [(whole.is_pseudo(step), whole.view_index(step)) for step in range(1000)]
    found = [(resumed.is_pseudo(step), resumed.view_index(step)) for step in range(500, 1000)]
    assert found == expected[500:]
    other = schedule(seed=1)
    assert [other.view_index(step) for step in range(1000)] != [i for _, i in expected]


def test_no_pseudo_views_no_pseudo_steps() -> None:
    plan = schedule(num_pseudo=0)
    assert not any(plan.is_pseudo(step) for step in range(1000))
    assert "there are none" in plan.describe()


@pytest.mark.parametrize("num_steps", [1, 2, 7])
def test_very_short_trainings_have_a_plan(num_steps: int) -> None:
    plan = schedule(num_steps=num_steps)
    assert all(0.0 <= plan.weight(step) <= 1.0 for step in range(num_steps))
    assert not plan.is_pseudo(num_steps - 1)


def test_description_names_every_decided_value() -> None:
    assert schedule().describe() == (
        "9 pseudo views beside 10 photographs: 35% of the steps from 100 on, weight up to 1 from "
        "step 150, fading to 0 from step 749 to 999"
    )
    assert "dense enough" in schedule(num_real=50).describe()
    assert "their share is 0" in schedule(share=0.0).describe()


def test_without_a_tail_the_weight_stays_to_the_end() -> None:
    plan = schedule(num_steps=1000, tail=0.0)
    assert plan.weight(998) == plan.weight(500) == 1.0
    assert plan.describe().endswith("weight up to 1 from step 150, up to step 999")


def test_the_end_phase_uses_photographs_only() -> None:
    """1001 steps, the last fifth on photographs: the tail ends at .8, its middle is at .675."""
    plan = schedule(num_steps=1001, real_only=0.2)
    assert plan.weight(675) == pytest.approx(0.5)
    assert not any(plan.is_pseudo(step) for step in range(800, 1001))
    assert any(plan.is_pseudo(step) for step in range(760, 800))
    assert plan.describe().endswith("fading to 0 from step 550 to 800")


@pytest.mark.parametrize("options", [{}, {"real_only": 0.3}, {"share": 0.0}, {"share": 0.6}])
def test_a_lengthened_plan_has_the_real_steps_of_a_run_without_pseudo_views(
    options: dict[str, float],
) -> None:
    plan = schedule(num_steps=700, **options)  # pyright: ignore
    longer = plan.lengthened()
    assert longer.num_real_steps() >= 700
    assert longer.num_real_steps() <= 702
    assert (longer.num_steps == 700) == (plan.share == 0.0)


@pytest.mark.parametrize(
    "options",
    [
        {"share": 1.0},
        {"max_share": -0.1},
        {"peak_weight": -1.0},
        {"start": 0.9},
        {"real_only": 0.7},
        {"num_views_full": 50},
    ],
)
def test_impossible_options_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        schedule(**options)  # pyright: ignore
