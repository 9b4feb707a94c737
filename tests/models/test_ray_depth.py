# SPDX-License-Identifier: Apache-2.0
"""The loss that puts the density of a ray where its end is known."""

import math

import pytest
import torch

from ps4pro_nerfstudio.models.ray_depth import ray_depth_loss


def _loss(weights, distances, known, confidence=None, width=0.1, tolerance=0.05):
    weights, distances, known = (
        torch.tensor(v, dtype=torch.float64) for v in (weights, distances, known)
    )
    confidence = torch.ones_like(known) if confidence is None else torch.tensor(confidence)
    widths = torch.full_like(distances, width)
    return ray_depth_loss([weights], [distances], [widths], known, confidence, tolerance)


def test_by_hand():
    # Deviation .05 * 2 = .1; the samples are 0 and 1 deviations from the end.
    found = _loss([[0.5, 0.25]], [[2.0, 2.1]], [2.0])
    assert found.item() == pytest.approx(-math.log(0.5 + 0.25 * math.exp(-0.5) + 1e-4))


def test_a_ray_that_ends_there_has_none():
    assert _loss([[0.0, 1.0, 0.0]], [[1.0, 2.0, 3.0]], [2.0]).item() == pytest.approx(0.0, abs=2e-4)


def test_unknown_ends_and_distrusted_ones_add_nothing_but_count():
    one = _loss([[0.5]], [[1.0]], [1.0])
    many = _loss([[0.5]] * 4, [[1.0]] * 4, [1.0, 0.0, 0.0, 1.0], [1.0, 1.0, 1.0, 0.0])
    assert many.item() == pytest.approx(one.item() / 4)
    assert _loss([[0.5]], [[1.0]], [0.0]).item() == 0.0


def test_wide_samples_are_seen_from_further_away():
    """Half a sample's width away is within its reach, however small the tolerance."""
    assert _loss([[1.0]], [[1.4]], [1.0], width=0.8).item() == pytest.approx(0.5, abs=1e-3)
    assert _loss([[1.0]], [[1.4]], [1.0], width=0.1).item() > 5.0


def test_it_is_bounded_where_no_sample_is_near():
    assert _loss([[1.0]], [[9.0]], [1.0]).item() == pytest.approx(-math.log(1e-4))


def test_levels_are_averaged():
    weights = [torch.full((1, 1), w) for w in (0.5, 0.25)]
    distances, widths = [torch.ones(1, 1)] * 2, [torch.full((1, 1), 0.1)] * 2
    found = ray_depth_loss(weights, distances, widths, torch.ones(1), torch.ones(1))
    assert found.item() == pytest.approx(-(math.log(0.5) + math.log(0.25)) / 2, abs=1e-3)


def test_its_gradient_moves_weight_to_the_end():
    weights = torch.full((1, 3), 0.3, requires_grad=True)
    distances, widths = torch.tensor([[1.0, 2.0, 3.0]]), torch.full((1, 3), 0.5)
    loss = ray_depth_loss([weights], [distances], [widths], torch.tensor([2.0]), torch.ones(1))
    (gradient,) = torch.autograd.grad(loss, weights)
    assert gradient[0, 1] < 100 * gradient[0, [0, 2]].min() < 0.0


def test_scale_of_the_scene_does_not_matter():
    one = _loss([[0.5, 0.3]], [[2.0, 2.2]], [2.1])
    ten = _loss([[0.5, 0.3]], [[20.0, 22.0]], [21.0], width=1.0)
    assert one.item() == pytest.approx(ten.item())


def test_what_makes_no_sense_is_refused():
    with pytest.raises(ValueError, match="at least one level"):
        ray_depth_loss([], [], [], torch.ones(1), torch.ones(1))
    with pytest.raises(ValueError, match="tolerance must be positive, got 0"):
        _loss([[1.0]], [[1.0]], [1.0], tolerance=0.0)
