# SPDX-License-Identifier: Apache-2.0
"""What photographs and initial points make of a splat's configuration."""

import json
import math

import pytest

from ps4pro_nerfstudio.models.splat_plan import plan_splat
from ps4pro_nerfstudio.models.splatfacto import DenseStartConfig, PS4PROSplatfactoModelConfig


def test_a_few_photographs_with_dense_points_are_densified_early_and_fade():
    plan = plan_splat(PS4PROSplatfactoModelConfig(), 50_000, 10, run_length=7000)
    assert (plan.stop_split_at, plan.densify_grad_thresh) == (1000, 0.0004)
    assert (plan.fading, plan.fading_until) == (0.002, 6300.0)
    assert (plan.max_angular_scale, plan.colors_unseen) == (0.2, True)
    assert plan.describe() == (
        "50,000 initial points: Gaussians are added until step 1,000, where gradients exceed "
        "0.0004; opacities fade by 0.20% a step until step 6,300; scales up to 0.2 of the "
        "distance; unseen regions in the photographs' colours"
    )


def test_a_dense_capture_is_left_to_splatfacto():
    plan = plan_splat(PS4PROSplatfactoModelConfig(), 50_000, 40, run_length=7000)
    assert (plan.stop_split_at, plan.densify_grad_thresh) == (3500, 0.0008)
    assert (plan.fading, plan.max_angular_scale, plan.colors_unseen) == (0.0, 0.0, False)
    assert plan.describe() == (
        "50,000 initial points: Gaussians are added until step 3,500, where gradients exceed 0.0008"
    )


@pytest.mark.parametrize(
    ("num_points", "num_views", "end"),
    [(9_999, 10, 3500), (10_000, 10, 1000), (10_000, 26, 2000), (10_000, 39, 3500)],
)
def test_the_end_of_densification_moves_back_with_sparsity(num_points, num_views, end):
    plan = plan_splat(PS4PROSplatfactoModelConfig(), num_points, num_views, run_length=7000)
    assert plan.stop_split_at == end


def test_a_plan_is_no_part_of_the_configuration():
    config = PS4PROSplatfactoModelConfig(dense_start=DenseStartConfig(stop_split_at=800))
    first = plan_splat(config, 20_000, 20, run_length=5000)
    assert plan_splat(config, 20_000, 20, run_length=5000) == first
    assert config == PS4PROSplatfactoModelConfig(dense_start=DenseStartConfig(stop_split_at=800))


def test_a_run_of_any_length_is_recorded_without_an_infinity():
    plan = plan_splat(PS4PROSplatfactoModelConfig(), 100, 3)
    assert math.isinf(plan.fading_until)
    assert json.loads(json.dumps(plan.record(), allow_nan=False))["fading_until"] is None
