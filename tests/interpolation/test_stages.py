# SPDX-License-Identifier: Apache-2.0
"""The parts of a stage, against what can be worked out by hand or in a slower way."""

from __future__ import annotations

import pytest
import torch

from ps4pro_nerfstudio.interpolation.network import PS4PRO
from ps4pro_nerfstudio.interpolation.stages import (
    choose_nearest,
    likely_step,
    matches,
    mix_candidates,
)
from ps4pro_nerfstudio.interpolation.velocities import enlarge


def _random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3))


def test_without_preference_the_nearest_are_mixed_bilinearly() -> None:
    """Velocities double with the size of their pixels."""
    velocity = _random(2, 4, 5, 7)
    chosen = choose_nearest(velocity, torch.zeros(2, 16, 5, 7))
    torch.testing.assert_close(chosen, 2.0 * enlarge(velocity, 2), atol=1e-5, rtol=1e-5)


def test_a_preference_takes_one_neighbour_whole() -> None:
    """Channel 13 is k = 1, the one beside, of pixel (1, 1): it takes its right neighbour."""
    velocity = _random(1, 4, 4, 6)
    choice = torch.zeros(1, 16, 4, 6)
    choice[:, 13] = 50.0
    chosen = choose_nearest(velocity, choice)
    torch.testing.assert_close(chosen[..., 1::2, 1:-1:2], 2.0 * velocity[..., 1:])


def test_likeness_is_one_where_frames_are_moved_apart() -> None:
    """Frame 1 is frame 0 moved right by 4: at the middle both are alike at d = (2, 0)."""
    wide = _random(1, 8, 12, 40)
    both = torch.cat([wide[..., 6:26], wide[..., 2:22]])
    found = matches(both, 2).unflatten(1, (5, 5))
    inside = (..., slice(4, -4), slice(6, -6))
    assert float(found[:, 2, 4][inside].min()) > 0.97
    assert float(found[:, 2, 2][inside].mean()) < 0.3
    assert torch.equal(found.flatten(1, 2).argmax(dim=1)[inside].unique(), torch.tensor([14]))


def test_likely_step_is_the_best_one_when_sharp_and_none_when_all_are_alike() -> None:
    likeness = torch.zeros(1, 25, 3, 3)
    step, best = likely_step(likeness, 2, torch.tensor(15.0))
    assert float(step.abs().max()) < 1e-5
    assert float(best.max()) == 0.0
    likeness[:, 5 * 1 + 4] = 1.0  # dy = -1, dx = 2
    step, best = likely_step(likeness, 2, torch.tensor(50.0))
    assert step[0, :, 1, 1].tolist() == pytest.approx([2.0, -1.0], abs=1e-4)
    assert float(best.min()) == 1.0


def test_each_candidate_is_taken_over_by_a_weight_of_one() -> None:
    velocity, other = _random(1, 4, 9, 9), _random(1, 4, 9, 9) + 5.0

    def taken(channel: int) -> torch.Tensor:
        weights = torch.zeros(1, 15, 9, 9)
        weights[:, channel] = 1.0
        return velocity + mix_candidates(velocity, weights, [other])

    torch.testing.assert_close(taken(14), other)
    torch.testing.assert_close(taken(8)[:, :2], velocity[:, 2:])
    torch.testing.assert_close(taken(9)[:, 2:], velocity[:, :2])
    torch.testing.assert_close(taken(10)[:, 0], velocity[:, 0] + 1.0)
    # The first neighbour stands 3 pixels above and to the left.
    torch.testing.assert_close(taken(0)[..., 3:, 3:], velocity[..., :-3, :-3])


def test_untrained_output_layers_are_zero() -> None:
    network = PS4PRO("tiny")
    finest = network.stages[0]
    for layer in (finest.correct, finest.choose, network.head.out):
        assert float(layer.weight.abs().max()) == 0.0  # type: ignore[union-attr]
