# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import importlib
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from ps4pro_nerfstudio.splatting import reference
from ps4pro_nerfstudio.splatting.reference import ProjectionSettings

# Any: type checkers do not follow unpacked lists into parameters.
functions: Any = importlib.import_module("ps4pro_nerfstudio.splatting.cpu.functions")

IMPLEMENTATIONS = [
    # module, dtype, tolerance of screen positions in pixels
    ("ps4pro_nerfstudio.splatting.cpu.functions", torch.float32, 1e-3),
    ("ps4pro_nerfstudio.splatting.reference", torch.float64, 1e-9),
]
NAMES = ("means", "quats", "scales", "opacities", "colors", "viewmats", "Ks")


def arguments(scene, dtype) -> Any:
    return [scene[name].detach().to(dtype).clone() for name in NAMES]


@pytest.mark.parametrize(("module", "dtype", "tolerance"), IMPLEMENTATIONS)
@pytest.mark.parametrize("antialiased", [False, True])
def test_projection_equals_gsplats_torch_code(scene, module, dtype, tolerance, antialiased):
    torch_impl = pytest.importorskip("gsplat.cuda._torch_impl")
    s = scene(400, 61, 45, cameras=3, seed=3)
    s["means"][:20, 2] -= 5  # behind
    settings = ProjectionSettings(61, 45, antialiased=antialiased)
    means, quats, scales, opacities, colors, viewmats, intrinsics = arguments(s, dtype)
    radii, means2d, conics, depths, compensations, _ = importlib.import_module(module).project(
        means, quats, scales, opacities, colors, viewmats, intrinsics, settings
    )
    covariances, _ = torch_impl._quat_scale_to_covar_preci(quats, scales, True, False)
    truth = torch_impl._fully_fused_projection(
        means, covariances, viewmats, intrinsics, 61, 45, calc_compensations=antialiased
    )
    assert torch.equal(radii, truth[0])
    visible = radii > 0
    assert 100 < int(visible.sum()) < radii.numel()
    torch.testing.assert_close(means2d[visible], truth[1][visible], atol=tolerance, rtol=0)
    torch.testing.assert_close(depths[visible], truth[2][visible], atol=tolerance, rtol=0)
    torch.testing.assert_close(conics[visible], truth[3][visible], atol=tolerance, rtol=1e-3)
    if antialiased:
        torch.testing.assert_close(compensations[visible], truth[4][visible], atol=1e-3, rtol=0)
    else:
        assert compensations is None


@pytest.mark.parametrize("degree", range(5))
def test_spherical_harmonics_equal_gsplats_torch_code(degree):
    torch_impl = pytest.importorskip("gsplat.cuda._torch_impl")
    directions = torch.randn(200, 3, dtype=torch.float64)
    directions = directions / directions.norm(dim=-1, keepdim=True)
    truth = torch_impl._eval_sh_bases_fast((degree + 1) ** 2, directions)
    torch.testing.assert_close(reference.sh_basis(directions, degree), truth, atol=1e-9, rtol=0)


def test_spherical_harmonics_obey_the_addition_theorem():
    """sum_m Y_lm(d)^2 = (2 l + 1) / (4 pi) for every direction d."""
    directions = torch.randn(50, 3, dtype=torch.float64)
    basis = reference.sh_basis(directions / directions.norm(dim=-1, keepdim=True), 4)
    for degree in range(5):
        band = basis[:, degree**2 : (degree + 1) ** 2]
        expected = torch.full((50,), (2 * degree + 1) / (4 * math.pi), dtype=torch.float64)
        torch.testing.assert_close(band.square().sum(-1), expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("degree", [None, 0, 1, 2, 3, 4])
@pytest.mark.parametrize("antialiased", [False, True])
def test_projection_gradients_equal_the_twin(scene, error, degree, antialiased):
    s = scene(150, 61, 45, cameras=2, sh_bases=None if degree is None else 25, seed=5)
    s["means"][:5, 2] -= 5
    settings = ProjectionSettings(61, 45, sh_degree=degree, antialiased=antialiased)
    results = []
    for implementation, dtype in ((functions, torch.float32), (reference, torch.float64)):
        leaves = [x.requires_grad_(True) for x in arguments(s, dtype)]
        outputs = implementation.project(*leaves, settings)
        generator = torch.Generator().manual_seed(0)
        loss = torch.zeros((), dtype=dtype)
        for output in outputs[1:]:
            if output is not None:
                weight = torch.randn(output.shape, generator=generator)
                loss = loss + (output * weight.to(dtype)).sum()
        # Opacities, intrinsics and plain colours take no part in the projection.
        loss.backward()
        results.append((outputs, [leaf.grad for leaf in leaves]))
    (outputs, gradients), (truth, true_gradients) = results
    assert torch.equal(outputs[0], truth[0])
    for value, expected in zip(outputs[1:], truth[1:], strict=True):
        if expected is not None:
            assert error(value, expected) < 1e-5
    for name, value, expected in zip(NAMES, gradients, true_gradients, strict=True):
        if name in ("opacities", "Ks") or (name == "colors" and degree is None):
            continue
        assert error(value, expected) < 1e-4, name
    if degree is not None:
        unused = gradients[4][:, (degree + 1) ** 2 :]
        assert not unused.any()


def test_colours_per_camera_equal_one_call_per_camera(scene):
    s = scene(40, 32, 32, cameras=2, sh_bases=9)
    leaves = arguments(s, torch.float32)
    colors = torch.stack([leaves[4], leaves[4].flip(0)]).requires_grad_(True)
    settings = ProjectionSettings(32, 32, sh_degree=2)
    rgb = functions.project(*leaves[:4], colors, *leaves[5:], settings)[5]
    assert rgb is not None
    (gradient,) = torch.autograd.grad(rgb.square().sum(), colors)
    for c in range(2):
        own = colors[c].detach().requires_grad_(True)
        single = functions.project(
            *leaves[:4], own, leaves[5][c : c + 1], leaves[6][c : c + 1], settings
        )[5]
        assert single is not None
        assert torch.equal(single[0], rgb[c])
        (expected,) = torch.autograd.grad(single.square().sum(), own)
        assert torch.equal(gradient[c], expected)


@pytest.mark.parametrize("module", [row[0] for row in IMPLEMENTATIONS])
def test_planes_and_clip_hide_what_lies_beyond(scene, module):
    project = importlib.import_module(module).project
    s = scene(300, 64, 48)
    settings = ProjectionSettings(64, 48)
    leaves = arguments(s, torch.float32)
    radii, _, _, depths, _, _ = project(*leaves, settings)
    clipped = replace(settings, near_plane=3.0, far_plane=5.0, radius_clip=4.0)
    radii_clipped = project(*leaves, clipped)[0]
    expected = (radii > 4) & (depths >= 3) & (depths <= 5)
    assert 0 < int(expected.sum()) < int((radii > 0).sum())
    assert torch.equal(radii_clipped > 0, expected)


def broken(name: str, value: float, row: int = 7):
    """A test case: one entry of one parameter replaced."""
    return pytest.param(name, value, row, id=f"{name}={value}")


BROKEN = [
    *(broken(name, v) for name in NAMES[:5] for v in (math.nan, math.inf, -math.inf)),
    broken("means", 1e38),
    broken("means", -1e38),
    broken("scales", 1e30),
]


@pytest.mark.parametrize("module", [row[0] for row in IMPLEMENTATIONS])
@pytest.mark.parametrize(("name", "value", "row"), BROKEN)
@pytest.mark.parametrize("degree", [None, 1])
def test_broken_parameters_hide_one_gaussian_and_touch_no_other(
    scene, module, name, value, row, degree
):
    project = importlib.import_module(module).project
    s = scene(20, 32, 32, sh_bases=None if degree is None else 4)
    settings = ProjectionSettings(32, 32, sh_degree=degree, antialiased=True)

    def run(parameters):
        leaves = [x.clone().requires_grad_(True) for x in parameters]
        radii, *outputs = project(*leaves, settings)
        kept = [x for x in outputs if x is not None]
        torch.stack([x.sum() for x in kept]).sum().backward()
        return radii, kept, [x.grad for x in leaves]

    parameters = arguments(s, torch.float32)
    radii, outputs, gradients = run(parameters)
    assert radii[0, row] > 0
    parameters[NAMES.index(name)].view(20, -1)[row, -1] = value
    broken_radii, broken_outputs, broken_gradients = run(parameters)
    assert broken_radii[0, row] == 0
    others = torch.arange(20) != row
    assert torch.equal(broken_radii[:, others], radii[:, others])
    for value_, expected in zip(broken_outputs, outputs, strict=True):
        assert not value_[:, row].any()
        assert torch.equal(value_[:, others], expected[:, others])
    for k in range(4):
        gradient, expected = broken_gradients[k], gradients[k]
        if gradient is not None:
            assert isinstance(expected, Tensor)
            assert not gradient[row].any()
            assert torch.equal(gradient[others], expected[others])


def test_needles_keep_their_compensation_in_single_precision():
    """A needle 0.01 px thin and 100 px long at 45 degrees, where det(cov) cancels in float32."""
    settings = ProjectionSettings(200, 200, antialiased=True)
    angle = math.pi / 8  # half of 45 degrees
    means = torch.tensor([[0.0, 0.0, 1.0]])
    quats = torch.tensor([[math.cos(angle), 0, 0, math.sin(angle)]])
    scales = torch.tensor([[1.0, 1e-4, 1e-4]])
    intrinsics = torch.tensor([[[100.0, 0, 100], [0, 100, 100], [0, 0, 1]]])
    compensation = functions.project(
        means, quats, scales, torch.ones(1), torch.ones(1, 3), torch.eye(4)[None], intrinsics,
        settings,
    )[4]  # fmt: skip
    # det0 = (100 * 0.01)^2, det1 = (100^2 + 0.3)(0.01^2 + 0.3)
    expected = math.sqrt(1.0 / ((1e4 + 0.3) * (1e-4 + 0.3)))
    assert compensation is not None
    assert float(compensation) == pytest.approx(expected, rel=1e-3)


def test_singular_view_matrix_is_named():
    parameters: Any = [torch.ones(1, 3), torch.ones(1, 4), torch.ones(1, 3), torch.ones(1)]
    with pytest.raises(ValueError, match="viewmats"):
        functions.project(
            *parameters, torch.ones(1, 1, 3), torch.zeros(1, 4, 4), torch.eye(3)[None],
            ProjectionSettings(8, 8, sh_degree=0),
        )  # fmt: skip
