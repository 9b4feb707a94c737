# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from ps4pro_nerfstudio.splatting import reference as twin
from ps4pro_nerfstudio.splatting.cpu import functions as kernels

# Any: type checkers do not follow unpacked lists into parameters.
reference: Any = twin
functions: Any = kernels

WIDTH, HEIGHT = 70, 37


def splats(scene, channels, n=400, seed=4):
    """Screen-space rows (means2d, conics, opacities, colors, depths, radii) of one camera."""
    s = scene(n, WIDTH, HEIGHT, seed=seed)
    settings = reference.ProjectionSettings(WIDTH, HEIGHT)
    names = ("means", "quats", "scales", "opacities", "colors", "viewmats", "Ks")
    radii, means2d, conics, depths, _, _ = functions.project(*(s[k] for k in names), settings)
    colors = torch.randn(1, n, channels, generator=torch.Generator().manual_seed(seed))
    return [means2d, conics, s["opacities"][None], colors, depths, radii]


def blend(implementation, rows, dtype, depth_channel, absgrad=True) -> Any:
    """Images, gradients of the five float inputs, absgrad."""
    leaves = [x.detach().to(dtype).clone().requires_grad_(True) for x in rows[:5]]
    render, alphas, _ = implementation.composite(
        *leaves, rows[5], [0, rows[5].numel()], WIDTH, HEIGHT, depth_channel, absgrad
    )
    generator = torch.Generator().manual_seed(0)
    loss = (render * torch.randn(render.shape, generator=generator).to(dtype)).sum()
    loss = loss + (alphas * torch.randn(alphas.shape, generator=generator).to(dtype)).sum()
    loss.backward()
    gradients = [x.grad for x in leaves]
    return render.detach(), alphas.detach(), gradients, getattr(leaves[0], "absgrad", None)


@pytest.mark.parametrize("depth_channel", [False, True])
@pytest.mark.parametrize("channels", [1, 3, 4, 5, 9])
def test_image_and_gradients_equal_the_twin_on_the_same_rows(scene, error, channels, depth_channel):
    rows = splats(scene, channels)
    render, alphas, gradients, absgrad = blend(functions, rows, torch.float32, depth_channel)
    truth, true_alphas, true_gradients, true_absgrad = blend(
        reference, rows, torch.float64, depth_channel
    )
    # An alpha that rounds to the other side of 1/255 moves a pixel by that much.
    assert (render - truth).abs().max() < 2e-3
    assert (alphas - true_alphas).abs().max() < 2e-3
    names = ("means2d", "conics", "opacities", "colors", "depths")
    for name, value, expected in zip(names, gradients, true_gradients, strict=True):
        if name == "depths" and not depth_channel:
            assert value is None
        else:
            assert error(value, expected) < 1e-4, name
    assert absgrad is not None
    assert true_absgrad is not None
    if channels + depth_channel <= 4:
        assert error(absgrad, true_absgrad) < 1e-4
    else:
        assert (absgrad >= true_absgrad - 1e-3 * true_absgrad.abs().max()).all()


def test_absolute_gradient_bounds_the_gradient(scene):
    rows = splats(scene, 3)
    _, _, gradients, absgrad = blend(functions, rows, torch.float32, False)
    gradient: Any = gradients[0]
    assert (absgrad >= gradient.abs() * (1 - 1e-4) - 1e-6).all()
    assert (absgrad > 1.5 * gradient.abs()).any()


def one_gaussian(opacity, variance=4.0, x=8.5, y=8.5):
    """A round Gaussian on a pixel centre."""
    conic = torch.tensor([[1 / variance, 0.0, 1 / variance]])
    radius = torch.tensor([math.ceil(3 * math.sqrt(variance))], dtype=torch.int32)
    return (
        torch.tensor([[x, y]]), conic, torch.tensor([opacity]), torch.tensor([[2.0]]),
        torch.ones(1), radius,
    )  # fmt: skip


def test_one_gaussian_is_its_formula():
    """At distance 1 from the centre: alpha = 0.8 exp(-1/8) = 0.70600; the colour is 2 alpha."""
    rows = one_gaussian(0.8)
    render, alphas, _ = functions.composite(*rows, [0, 1], 16, 16, False, False)
    assert alphas[0, 8, 8, 0].item() == pytest.approx(0.8, abs=1e-5)
    assert alphas[0, 8, 9, 0].item() == pytest.approx(0.70600, abs=1e-5)
    assert render[0, 8, 9, 0].item() == pytest.approx(1.41200, abs=2e-5)
    # sigma = d^2 / 8 reaches ln(255 * 0.8) = 5.318 at d = 6.52: nothing beyond.
    assert alphas[0, 8, 14, 0] > 1 / 255
    assert alphas[0, 8, 15, 0] == 0


def test_a_pixel_stops_before_it_is_full():
    """T = 0.1, 0.01, 0.001; the fourth would bring 1e-4, which is the limit, and is left out."""
    rows = [torch.cat([x] * 5) for x in one_gaussian(0.9)]
    rows[4] = torch.arange(1, 6).float()
    for implementation in (functions, reference):
        # A little more than 0.9, so that rounding does not decide.
        rows[2] = torch.full((5,), 0.9001)
        _, alphas, _ = implementation.composite(*rows, [0, 5], 16, 16, False, False)
        assert alphas[0, 8, 8, 0].item() == pytest.approx(1 - 0.0999**3, abs=1e-6)


def test_opaque_gaussian_passes_no_gradient_where_alpha_is_clamped():
    rows = [x.requires_grad_(x.is_floating_point()) for x in one_gaussian(1.0)]
    render, _, _ = functions.composite(*rows, [0, 1], 16, 16, False, False)
    render[0, 8, 8, 0].backward()
    assert rows[2].grad is not None
    assert rows[2].grad.item() == 0
    assert rows[3].grad is not None
    assert rows[3].grad.item() == pytest.approx(0.999, abs=1e-6)


def test_colour_one_gives_alpha_and_alpha_stays_below_one(scene):
    rows = splats(scene, 3)
    rows[3] = torch.ones_like(rows[3])
    render, alphas, _ = functions.composite(
        *rows, [0, rows[5].numel()], WIDTH, HEIGHT, False, False
    )
    torch.testing.assert_close(render, alphas.expand_as(render), atol=2e-6, rtol=0)
    assert alphas.min() >= 0
    assert alphas.max() < 1


def test_only_alpha_used_gives_the_gradient_of_alpha(scene, error):
    rows = splats(scene, 3)
    results = []
    for implementation, dtype in ((functions, torch.float32), (reference, torch.float64)):
        leaves = [x.detach().to(dtype).clone().requires_grad_(True) for x in rows[:5]]
        _, alphas, _ = implementation.composite(
            *leaves, rows[5], [0, rows[5].numel()], WIDTH, HEIGHT, False, False
        )
        alphas.square().sum().backward()
        results.append([leaves[k].grad for k in range(3)])
    for value, expected in zip(*results, strict=True):
        assert error(value, expected) < 1e-4
