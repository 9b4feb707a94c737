# SPDX-License-Identifier: Apache-2.0
"""gsplat's densification strategies on the CPU, called as nerfstudio's SplatfactoModel does."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ps4pro_nerfstudio.splatting import rasterization
from ps4pro_nerfstudio.splatting.adapter import enable_cpu_strategies, relocated

strategies = pytest.importorskip("gsplat.strategy")
WIDTH, HEIGHT = 48, 32


def make_parameters(s) -> torch.nn.ParameterDict:
    return torch.nn.ParameterDict(
        {
            "means": s["means"].clone(),
            "quats": s["quats"].clone(),
            "scales": s["scales"].log(),
            "opacities": torch.logit(s["opacities"])[:, None],
            "colors": s["colors"].clone(),
        }
    )


def train(s, strategy, steps, *, packed, target, step_arguments=None):
    """A short training; returns the losses and the numbers of Gaussians."""
    torch.manual_seed(0)
    parameters = make_parameters(s)
    optimizers = {
        name: torch.optim.Adam([value], lr=0.02, fused=True) for name, value in parameters.items()
    }
    strategy.check_sanity(parameters, optimizers)
    is_default = isinstance(strategy, strategies.DefaultStrategy)
    state = (
        strategy.initialize_state(scene_scale=1.0) if is_default else strategy.initialize_state()
    )
    losses, counts = [], []
    for step in range(steps):
        render, _, info = rasterization(
            means=parameters["means"],
            quats=parameters["quats"],
            scales=parameters["scales"].exp(),
            opacities=torch.sigmoid(parameters["opacities"]).squeeze(-1),
            colors=parameters["colors"],
            viewmats=s["viewmats"],
            Ks=s["Ks"],
            width=WIDTH,
            height=HEIGHT,
            packed=packed,
            absgrad=is_default and strategy.absgrad,
        )
        strategy.step_pre_backward(parameters, optimizers, state, step, info)
        loss = (render - target).abs().mean()
        loss.backward()
        for optimizer in optimizers.values():
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        options = {"packed": packed} if is_default else {"lr": 1e-6}
        strategy.step_post_backward(parameters, optimizers, state, step, info, **options)
        losses.append(loss.item())
        counts.append(len(parameters["means"]))
    return losses, counts


@pytest.fixture
def target(scene) -> Tensor:
    s = scene(60, WIDTH, HEIGHT, seed=9, cameras=2)
    return rasterization(**s)[0]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("absgrad", [False, True])
def test_default_strategy_densifies_and_lowers_the_loss(scene, target, packed, absgrad):
    strategy = strategies.DefaultStrategy(
        prune_opa=0.01,
        grow_grad2d=0.0008 if absgrad else 0.0002,
        refine_scale2d_stop_iter=4000,
        refine_start_iter=20,
        refine_stop_iter=200,
        reset_every=120,
        refine_every=20,
        pause_refine_after_reset=5,
        absgrad=absgrad,
        revised_opacity=False,
        verbose=False,
    )
    s = scene(80, WIDTH, HEIGHT, cameras=2)
    losses, counts = train(s, strategy, 100, packed=packed, target=target)
    assert len(set(counts)) > 1
    assert sum(losses[-10:]) < 0.85 * sum(losses[1:11])
    assert all(math.isfinite(loss) for loss in losses)


def test_packed_and_unpacked_densify_alike(scene, target):
    strategy = strategies.DefaultStrategy(
        refine_start_iter=5, refine_every=10, absgrad=True, grow_grad2d=0.0008
    )
    s = scene(80, WIDTH, HEIGHT, cameras=2)
    runs = [train(s, strategy, 16, packed=packed, target=target)[1] for packed in (False, True)]
    assert runs[0] == runs[1]
    assert runs[0][-1] != runs[0][0]


def test_mcmc_strategy_adds_gaussians_and_lowers_the_loss(scene, target):
    enable_cpu_strategies()
    strategy = strategies.MCMCStrategy(
        cap_max=100,
        noise_lr=5e3,
        refine_start_iter=10,
        refine_stop_iter=200,
        refine_every=10,
        min_opacity=0.02,
        verbose=False,
    )
    s = scene(80, WIDTH, HEIGHT, cameras=2)
    s["opacities"][:10] = 0.01  # dead: relocated
    losses, counts = train(s, strategy, 100, packed=False, target=target)
    assert counts[0] == 80
    assert counts[-1] == 100
    assert sum(losses[-10:]) < 0.85 * sum(losses[1:11])


def test_enabling_twice_changes_nothing_more():
    from gsplat.strategy import ops

    enable_cpu_strategies()
    first = ops.compute_relocation, ops.quat_scale_to_covar_preci
    enable_cpu_strategies()
    assert (ops.compute_relocation, ops.quat_scale_to_covar_preci) == first


def test_covariances_are_rotated_squares(scene):
    from gsplat.strategy import ops

    enable_cpu_strategies()
    s = scene(20, 8, 8)
    covariances, precisions = ops.quat_scale_to_covar_preci(s["quats"], s["scales"])
    assert covariances is not None
    assert precisions is not None
    torch.testing.assert_close(
        torch.linalg.eigvalsh(covariances), s["scales"].square().sort(-1).values
    )
    identity = torch.eye(3).expand(20, 3, 3)
    torch.testing.assert_close(covariances @ precisions, identity, atol=1e-3, rtol=0)
    with pytest.raises(NotImplementedError, match="triu"):
        ops.quat_scale_to_covar_preci(s["quats"], s["scales"], triu=True)


def test_one_copy_is_the_gaussian_itself():
    opacities = torch.tensor([0.1, 0.5, 0.9])
    scales = torch.rand(3, 3)
    new_opacities, new_scales = relocated(opacities, scales, torch.ones(3, dtype=torch.long))
    torch.testing.assert_close(new_opacities, opacities)
    torch.testing.assert_close(new_scales, scales)


def test_two_copies_blend_to_the_same_centre_and_mass():
    """n = 2, o = 0.75: o' = 1 - sqrt(0.25) = 0.5 and 1 - (1 - o')^2 = 0.75 again.

    The sum is C(2,1) o' - C(2,2) o'^2 / sqrt(2) = 1 - 0.25 / 1.41421 = 0.823223,
    so s' = s * 0.75 / 0.823223 = 0.911053 s.
    """
    opacity, scale = relocated(torch.tensor([0.75]), torch.ones(1, 3), torch.tensor([2]))
    assert opacity.item() == pytest.approx(0.5)
    assert scale[0, 0].item() == pytest.approx(0.911053, rel=1e-5)


def test_many_copies_of_an_opaque_gaussian_stay_finite():
    """The terms alternate up to 1e14 in size; ratios above 51 count as 51, as in gsplat."""
    opacities = torch.full((3,), 0.999)
    new_opacities, new_scales = relocated(opacities, torch.ones(3, 3), torch.tensor([50, 51, 1000]))
    assert torch.isfinite(new_scales).all()
    assert (new_scales > 0).all()
    assert (new_scales[0] >= new_scales[1]).all()
    assert torch.equal(new_scales[1], new_scales[2])
    torch.testing.assert_close((1 - (1 - new_opacities[1]) ** 51), opacities[1], atol=1e-4, rtol=0)
