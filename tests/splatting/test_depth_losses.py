# SPDX-License-Identifier: Apache-2.0
"""Depth and geometry terms of IPSM against hand calculations and their invariances."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ps4pro_nerfstudio.splatting.depth_losses import (
    DepthForm,
    geometry_consistency_loss,
    inverse_depth_loss,
    pearson,
    sample_bilinear,
    triangulated_depth_loss,
    unit_free,
)

scales = st.floats(0.1, 10.0)
shifts = st.floats(-5.0, 5.0)


def depth_map(seed: int = 0, size: tuple[int, int] = (9, 12)) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 1.0 + 3.0 * torch.rand(size, generator=generator, dtype=torch.float64)


def known(value: torch.Tensor | None) -> torch.Tensor:
    assert value is not None
    return value


# ---------------------------------------------------------------- Pearson (check 5)


def test_pearson_by_hand() -> None:
    a = torch.tensor([1.0, 2.0, 3.0, 6.0], dtype=torch.float64)
    b = torch.tensor([2.0, 1.0, 4.0, 5.0], dtype=torch.float64)
    # Deviations (-2, -1, 0, 3) and (-1, -2, 1, 2): 10 / sqrt(14 * 10).
    assert float(known(pearson(a, b))) == pytest.approx(10 / 140**0.5, abs=1e-12)


@settings(deadline=None)
@given(scale=scales, shift=shifts, of_depth=scales, depth_shift=shifts)
def test_pearson_ignores_scale_and_shift(
    scale: float, shift: float, of_depth: float, depth_shift: float
) -> None:
    m, depth = depth_map(1), depth_map(2)
    value = known(pearson(-m, depth))
    changed = known(pearson(-(scale * m + shift), of_depth * depth + depth_shift))
    assert float(changed) == pytest.approx(float(value), abs=1e-9)
    assert float(known(pearson(scale * m + shift, depth))) == pytest.approx(-float(value), abs=1e-9)


@settings(deadline=None)
@given(seed=st.integers(0, 1000))
def test_losses_stay_between_zero_and_two(seed: int) -> None:
    loss = known(inverse_depth_loss(depth_map(seed), depth_map(seed + 1)))
    assert 0.0 <= float(loss) <= 2.0


def test_the_gradient_neither_shifts_nor_scales_the_depth() -> None:
    depth = depth_map(3).requires_grad_()
    (1.0 - known(pearson(-depth_map(4), depth))).backward()
    gradient = depth.grad
    assert gradient is not None
    assert float(gradient.abs().max()) > 1e-4
    assert float(gradient.sum()) == pytest.approx(0.0, abs=1e-10)
    assert float((gradient * depth.detach()).sum()) == pytest.approx(0.0, abs=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_constant_depth_has_no_term(dtype: torch.dtype) -> None:
    constant = torch.full((8, 8), 3.3, dtype=dtype)
    varied = depth_map(5, (8, 8)).to(dtype)
    assert pearson(constant, varied) is None
    assert pearson(varied, constant) is None
    assert inverse_depth_loss(varied, constant) is None
    assert inverse_depth_loss(constant, varied) is None
    assert pearson(varied, torch.full_like(varied, torch.nan)) is None


def test_pearson_wants_equal_shapes() -> None:
    with pytest.raises(ValueError, match=r"\[2, 3\]"):
        pearson(torch.zeros(2, 3), torch.zeros(3, 2))


@settings(deadline=None)
@given(scale=scales, shift=shifts)
def test_only_the_unit_free_branch_ignores_the_units_of_the_network(
    scale: float, shift: float
) -> None:
    m = depth_map(6)
    torch.testing.assert_close(unit_free(scale * m + shift), unit_free(m))
    depth = 1.0 / (unit_free(m) + 0.1)
    assert float(known(inverse_depth_loss(scale * m + shift, depth))) == pytest.approx(0, abs=1e-6)


def test_the_offset_branch_depends_on_the_units() -> None:
    m = depth_map(6)
    depth = 1.0 / (m + 200.0)
    exact = known(inverse_depth_loss(m, depth, 200.0))
    scaled = known(inverse_depth_loss(1000.0 * m, depth, 200.0))
    assert float(exact) == pytest.approx(0.0, abs=1e-9)
    assert float(scaled) > 1e-6


def test_unit_free_clips_at_the_quantiles() -> None:
    values = torch.arange(101, dtype=torch.float64)
    result = unit_free(values)
    assert float(result[0]) == 0.0
    assert float(result[100]) == 1.0
    assert 0.4 < float(result[50]) < 0.6
    assert bool(torch.isfinite(unit_free(torch.ones(5, 5))).all())


# ---------------------------------------------------------------- triangulated depth (check 15)


def centres(height: int, width: int) -> torch.Tensor:
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([x, y], dim=-1).reshape(-1, 2).double() + 0.5


@pytest.mark.parametrize("form", ["pearson", "metric", "both"])
def test_true_depth_costs_nothing(form: DepthForm) -> None:
    depth = depth_map(7)
    loss = known(triangulated_depth_loss(depth, centres(9, 12), depth.flatten(), form))
    assert float(loss) == pytest.approx(0.0, abs=1e-12)


def test_the_metric_form_by_hand() -> None:
    depth = torch.full((9, 12), 2.0, dtype=torch.float64)
    points = torch.full((108,), 1.6, dtype=torch.float64)
    points[:54] = 1.99  # errors of 0.25 and of 0.01 / 1.99
    loss = known(triangulated_depth_loss(depth, centres(9, 12), points, "metric"))
    small = 0.5 * (0.01 / 1.99) ** 2 / 0.1
    assert float(loss) == pytest.approx(0.5 * (0.25 - 0.05) + 0.5 * small, abs=1e-9)


def test_only_the_metric_form_knows_the_scale() -> None:
    depth = depth_map(8)
    doubled = 2.0 * depth.flatten()
    assert float(known(triangulated_depth_loss(depth, centres(9, 12), doubled, "pearson"))) < 1e-9
    assert float(known(triangulated_depth_loss(depth, centres(9, 12), doubled, "metric"))) > 0.3


def test_few_points_have_no_term() -> None:
    depth = depth_map(9)
    pixels = centres(9, 12)
    assert triangulated_depth_loss(depth, pixels[:31], depth.flatten()[:31]) is None
    assert triangulated_depth_loss(depth, pixels[:32], depth.flatten()[:32]) is not None


def test_bilinear_samples_of_a_plane_are_exact() -> None:
    y, x = torch.meshgrid(torch.arange(6.0), torch.arange(8.0), indexing="ij")
    plane = 2.0 + 0.3 * (x + 0.5) - 0.2 * (y + 0.5)
    pixels = torch.tensor([[0.5, 0.5], [3.3, 2.9], [7.2, 5.1]])
    expected = 2.0 + 0.3 * pixels[:, 0] - 0.2 * pixels[:, 1]
    torch.testing.assert_close(sample_bilinear(plane, pixels), expected)


# ---------------------------------------------------------------- L_geo (check 10)


def geometry() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    rendered = torch.rand(3, 6, 8, generator=generator, dtype=torch.float64)
    warped = torch.rand(3, 6, 8, generator=generator, dtype=torch.float64)
    return rendered, warped, torch.rand(6, 8, generator=generator) > 0.4


def test_l_geo_is_zero_where_the_warped_photograph_is_met() -> None:
    rendered, warped, mask = geometry()
    met = torch.where(mask, warped, rendered)
    assert float(known(geometry_consistency_loss(met, warped, mask))) == 0.0
    assert float(known(geometry_consistency_loss(rendered, warped, mask))) > 0.1


def test_l_geo_has_no_gradient_outside_the_mask_or_to_the_photograph() -> None:
    rendered, warped, mask = geometry()
    rendered.requires_grad_()
    warped.requires_grad_()
    known(geometry_consistency_loss(rendered, warped, mask)).backward()
    assert rendered.grad is not None
    assert bool((rendered.grad[:, ~mask] == 0).all())
    assert bool((rendered.grad[:, mask] != 0).all())
    assert warped.grad is None


def test_the_mean_over_all_is_the_masked_mean_times_its_share() -> None:
    rendered, warped, mask = geometry()
    over_all = known(geometry_consistency_loss(rendered, warped, mask, "all"))
    over_mask = known(geometry_consistency_loss(rendered, warped, mask, "mask"))
    share = float(mask.float().mean())
    assert float(over_all) == pytest.approx(share * float(over_mask), rel=1e-6)


@pytest.mark.parametrize("norm", ["all", "mask"])
def test_a_view_that_sees_nothing_has_no_l_geo(norm) -> None:
    rendered, warped, mask = geometry()
    assert geometry_consistency_loss(rendered, warped, torch.zeros_like(mask), norm) is None
