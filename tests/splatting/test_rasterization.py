# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from ps4pro_nerfstudio.messages import InputError
from ps4pro_nerfstudio.splatting import chosen_rasterizer, rasterization

# float32 against float64: an alpha on the other side of 1/255 changes a pixel by about 0.004 of its
# colour, and gradients of that pixel with it.
IMAGE = 2e-2
GRADIENT = 1e-2


def size(n: int, width: int, height: int) -> dict[str, int]:
    return {"n": n, "width": width, "height": height}


CASES = {
    "RGB, plain colours": (size(200, 50, 37), {}),
    "one Gaussian": (size(1, 33, 17), {}),
    "1 x 1 image": (size(50, 1, 1), {}),
    "one column": (size(50, 1, 40), {}),
    "width 17": (size(100, 17, 16), {}),
    "antialiased": (size(200, 50, 37), {"rasterize_mode": "antialiased"}),
    "SH 0 of 16": (size(150, 40, 30) | {"sh_bases": 16}, {"sh_degree": 0}),
    "SH 1": (size(150, 40, 30) | {"sh_bases": 4}, {"sh_degree": 1}),
    "SH 2": (size(150, 40, 30) | {"sh_bases": 9}, {"sh_degree": 2}),
    "SH 3": (size(150, 40, 30) | {"sh_bases": 16}, {"sh_degree": 3}),
    "SH 4": (size(150, 40, 30) | {"sh_bases": 25}, {"sh_degree": 4}),
    "7 channels": (size(150, 40, 30) | {"channels": 7}, {}),
    "8 channels and depth": (
        size(150, 40, 30) | {"channels": 8},
        {"render_mode": "RGB+D"},
    ),
    "depth": (size(150, 40, 30), {"render_mode": "D"}),
    "expected depth": (size(150, 40, 30), {"render_mode": "ED"}),
    "RGB+ED": (
        size(150, 40, 30) | {"sh_bases": 4},
        {"render_mode": "RGB+ED", "sh_degree": 1},
    ),
    "three cameras": (
        size(150, 40, 30) | {"cameras": 3, "sh_bases": 9},
        {"sh_degree": 2},
    ),
    "three cameras, antialiased": (
        size(150, 40, 30) | {"cameras": 3},
        {"rasterize_mode": "antialiased", "render_mode": "RGB+ED"},
    ),
    "packed": (size(150, 40, 30) | {"cameras": 2}, {"packed": True}),
    "planes and clip": (
        size(150, 40, 30),
        {"near_plane": 3.0, "far_plane": 5.0, "radius_clip": 3.0, "eps2d": 0.1},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_image_and_every_gradient_equal_the_twin(scene, rendered, error, case):
    build, options = CASES[case]
    compare(scene(**build), rendered, error, options)


def compare(s, rendered, error, options):
    render, alphas, gradients, info = rendered(s, torch.float32, absgrad=True, **options)
    truth, true_alphas, true_gradients, true_info = rendered(
        s, torch.float64, absgrad=True, **options
    )
    assert torch.equal(info["radii"], true_info["radii"])
    scale = max(1.0, truth.abs().max().item())
    assert (render - truth).abs().max() < IMAGE * scale
    assert (render - truth).abs().mean() < 1e-4 * scale
    assert (alphas - true_alphas).abs().max() < IMAGE
    for name, value in gradients.items():
        assert error(value, true_gradients[name]) < GRADIENT, name
    assert (info["means2d"].absgrad >= info["means2d"].grad.abs() * 0.999 - 1e-5).all()


def test_huge_gaussians_equal_the_twin(scene, rendered, error):
    s = scene(30, 45, 33)
    s["scales"][:10] *= 50
    compare(s, rendered, error, {})


def test_needles_equal_the_twin(scene, rendered, error):
    s = scene(60, 45, 33)
    s["scales"][:, 0] *= 10
    s["scales"][:, 1:] *= 0.02
    compare(s, rendered, error, {"rasterize_mode": "antialiased"})


def test_gaussians_behind_the_camera_equal_the_twin(scene, rendered, error):
    s = scene(100, 45, 33)
    s["means"][:60, 2] -= 6
    compare(s, rendered, error, {})


@pytest.mark.parametrize("n", [0, 20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("mode", ["RGB", "RGB+ED"])
def test_nothing_visible_gives_the_background_and_no_gradient(
    scene, rendered, n, dtype, packed, mode
):
    s = scene(n, 20, 18, sh_bases=4)
    s["means"][:, 2] = -1
    background = torch.tensor([[0.1, 0.2, 0.3]], dtype=dtype)
    render, alphas, gradients, info = rendered(
        s, dtype, sh_degree=1, packed=packed, backgrounds=background, render_mode=mode
    )
    assert torch.equal(render[..., :3], background.expand(1, 18, 20, 3))
    assert not alphas.any()
    assert not info["radii"].any()
    assert all(not gradient.any() for gradient in gradients.values())
    assert gradients["means"].shape == (n, 3)


@pytest.mark.parametrize("mode", ["classic", "antialiased"])
def test_twin_passes_gradcheck(scene, mode):
    """float64, 5 Gaussians on 20 x 12 pixels, one random projection of all outputs."""
    s = scene(5, 20, 12, sh_bases=4, seed=1)
    s["scales"] = s["scales"] * 2
    names = ("means", "quats", "scales", "opacities", "colors", "viewmats")
    leaves = [s[name].double().requires_grad_(True) for name in names]

    weights = torch.randn(12, 20, 5, generator=torch.Generator().manual_seed(0)).double()

    def loss(*parameters):
        options = {**s, **dict(zip(names, parameters, strict=True)), "Ks": s["Ks"].double()}
        render, alphas, _ = rasterization(
            **options, sh_degree=1, render_mode="RGB+ED", rasterize_mode=mode
        )
        # Expected depth jumps where alpha begins: its weight is zero there.
        return (torch.cat([render * alphas, alphas], dim=-1) * weights).sum()

    assert torch.autograd.gradcheck(loss, leaves, eps=1e-7, atol=1e-4, rtol=1e-4)


def test_order_of_gaussians_does_not_matter(scene):
    s = scene(200, 50, 37, sh_bases=4)
    shuffle = torch.randperm(200, generator=torch.Generator().manual_seed(0))
    parameters = ("means", "quats", "scales", "opacities", "colors")
    shuffled = {**s, **{name: s[name][shuffle] for name in parameters}}
    assert torch.equal(
        rasterization(**s, sh_degree=1)[0], rasterization(**shuffled, sh_degree=1)[0]
    )


@pytest.mark.parametrize("mode", ["RGB", "RGB+D", "D"])
def test_background_is_added_behind_the_colours_only(scene, mode):
    s = scene(100, 50, 37, cameras=2)
    backgrounds = torch.tensor([[0.2, 0.4, 0.9], [1.0, 0.0, 0.5]])
    plain, alphas, _ = rasterization(**s, render_mode=mode)
    render, _, _ = rasterization(**s, render_mode=mode, backgrounds=backgrounds)
    expected = plain.clone()
    if mode != "D":
        expected[..., :3] += (1 - alphas) * backgrounds[:, None, None]
    torch.testing.assert_close(render, expected, atol=1e-6, rtol=0)


def test_gradient_of_the_background_is_what_shines_through(scene):
    s = scene(100, 30, 30)
    background = torch.zeros(1, 3, requires_grad=True)
    render, alphas, _ = rasterization(**s, backgrounds=background)
    render.sum().backward()
    assert background.grad is not None
    torch.testing.assert_close(background.grad[0, 0], (1 - alphas).sum())


def test_render_modes_are_slices_of_one_another(scene):
    s = scene(150, 40, 30)
    both, alphas, _ = rasterization(**s, render_mode="RGB+D")
    torch.testing.assert_close(rasterization(**s, render_mode="RGB")[0], both[..., :3])
    torch.testing.assert_close(rasterization(**s, render_mode="D")[0], both[..., 3:])
    expected = both[..., 3:] / alphas.clamp(min=1e-10)
    torch.testing.assert_close(rasterization(**s, render_mode="ED")[0], expected)
    torch.testing.assert_close(rasterization(**s, render_mode="RGB+ED")[0][..., 3:], expected)


def test_several_cameras_equal_one_call_each(scene):
    s = scene(100, 33, 20, cameras=3)
    together = rasterization(**s)[0]
    for c in range(3):
        one = {**s, "viewmats": s["viewmats"][c : c + 1], "Ks": s["Ks"][c : c + 1]}
        assert torch.equal(rasterization(**one)[0][0], together[c])


def test_colours_per_camera(scene):
    s = scene(100, 33, 20, cameras=2)
    own = torch.stack([s["colors"], 1 - s["colors"]])
    render = rasterization(**{**s, "colors": own})[0]
    assert torch.equal(render[0], rasterization(**s)[0][0])
    assert torch.equal(render[1], rasterization(**{**s, "colors": own[1]})[0][1])


def test_inputs_need_not_be_contiguous(scene):
    s = scene(50, 33, 20)
    strided = {**s, "means": s["means"].T.contiguous().T, "colors": s["colors"].flip(-1).flip(-1)}
    strided["viewmats"] = s["viewmats"].transpose(1, 2).contiguous().transpose(1, 2)
    assert torch.equal(rasterization(**strided)[0], rasterization(**s)[0])


def test_a_second_derivative_is_refused(scene):
    s = scene(10, 16, 16)
    s["means"].requires_grad_(True)
    render = rasterization(**s)[0].square().sum()
    (gradient,) = torch.autograd.grad(render, s["means"], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


# --------------------------------------------------------------------------- refusals

SHAPES = [
    ("means", (10, 2)),
    ("quats", (10, 3)),
    ("quats", (9, 4)),
    ("scales", (10, 1)),
    ("opacities", (10, 1)),
    ("colors", (9, 3)),
    ("colors", (10,)),
    ("colors", (10, 0)),
    ("colors", (3, 10, 3)),
    ("viewmats", (4, 4)),
    ("viewmats", (0, 4, 4)),
    ("Ks", (2, 3, 3)),
    ("backgrounds", (3,)),
    ("backgrounds", (1, 4)),
]


@pytest.mark.parametrize(("name", "shape"), SHAPES)
def test_wrong_shapes_are_named_with_both_shapes(scene, name, shape):
    s = {**scene(10, 16, 16), name: torch.ones(shape)}
    with pytest.raises(ValueError, match=name) as caught:
        rasterization(**s)
    assert str(list(shape)) in str(caught.value)
    assert "expected" in str(caught.value)


@pytest.mark.parametrize("shape", [(10, 3, 3), (10, 4, 4), (10, 12)])
def test_wrong_shapes_of_coefficients_are_named(scene, shape):
    s = {**scene(10, 16, 16), "colors": torch.ones(shape)}
    with pytest.raises(ValueError, match="colors") as caught:
        rasterization(**s, sh_degree=1)
    assert "[10, 4, 3]" in str(caught.value)


@pytest.mark.parametrize("name", ["quats", "scales", "opacities", "colors", "viewmats", "Ks"])
def test_mixed_dtypes_are_named(scene, name):
    s = scene(10, 16, 16)
    s[name] = s[name].double()
    with pytest.raises(ValueError, match=rf"{name}.*float32.*float64"):
        rasterization(**s)


def test_half_precision_is_refused(scene):
    with pytest.raises(ValueError, match=r"means.*float16"):
        rasterization(**{**scene(10, 16, 16), "means": torch.ones(10, 3).half()})


@pytest.mark.parametrize(
    "option",
    [
        {"render_mode": "BGR"},
        {"rasterize_mode": "sharp"},
        {"sh_degree": 5},
        {"width": 0},
        {"height": 2.5},
        {"camera_model": "cubist"},
    ],
)
def test_unknown_values_are_named(scene, option):
    with pytest.raises(ValueError, match=next(iter(option))):
        rasterization(**{**scene(10, 16, 16), **option})


@pytest.mark.parametrize(
    "option",
    [
        {"sparse_grad": True},
        {"distributed": True},
        {"covars": torch.ones(10, 3, 3)},
        {"camera_model": "fisheye"},
        {"camera_model": "ortho"},
        {"tile_size": 8},
        {"with_ut": True},
    ],
)
def test_options_that_the_cpu_lacks_are_named(scene, option):
    with pytest.raises(NotImplementedError, match=next(iter(option))):
        rasterization(**scene(10, 16, 16), **option)


def test_newer_options_at_their_defaults_are_accepted(scene):
    rasterization(**scene(10, 16, 16), segmented=False, radial_coeffs=None)


# --------------------------------------------------------------------------- dispatch


def test_device_and_dtype_choose_the_implementation(monkeypatch):
    monkeypatch.delenv("PS4PRO_RASTERIZER", raising=False)
    assert chosen_rasterizer("cuda") == "gsplat"
    assert chosen_rasterizer("cpu") == "numba"
    assert chosen_rasterizer("cpu", torch.float64) == "torch"
    assert chosen_rasterizer("meta") == "torch"


def test_the_environment_overrides(monkeypatch, scene):
    monkeypatch.setenv("PS4PRO_RASTERIZER", "torch")
    assert chosen_rasterizer("cpu") == "torch"
    assert chosen_rasterizer("cuda") == "torch"
    s = scene(10, 16, 16)
    twin = rasterization(**s)[0]
    monkeypatch.setenv("PS4PRO_RASTERIZER", "numba")
    assert not torch.equal(rasterization(**s)[0], twin)  # other arithmetic, same picture
    torch.testing.assert_close(rasterization(**s)[0], twin, atol=1e-4, rtol=0)
    monkeypatch.setenv("PS4PRO_RASTERIZER", "gsplat")
    with pytest.raises(InputError, match="auto"):
        rasterization(**s)
    monkeypatch.setenv("PS4PRO_RASTERIZER", "opengl")
    with pytest.raises(InputError, match="opengl"):
        chosen_rasterizer("cpu")


def test_importing_the_package_imports_neither_numba_nor_gsplat():
    code = (
        "import sys, ps4pro_nerfstudio.splatting\n"
        "sys.exit(any(name in sys.modules for name in ('numba', 'gsplat', 'nerfstudio')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
