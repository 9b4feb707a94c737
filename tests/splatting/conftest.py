# SPDX-License-Identifier: Apache-2.0
"""Random Gaussians in front of a few cameras, and one rendering with its gradients."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from ps4pro_nerfstudio.splatting import rasterization

PARAMETERS = ("means", "quats", "scales", "opacities", "colors", "viewmats")


def random_scene(
    n: int,
    width: int,
    height: int,
    *,
    seed: int = 0,
    cameras: int = 1,
    sh_bases: int | None = None,
    channels: int = 3,
) -> dict[str, Any]:
    """Arguments of `rasterization`, float32: n Gaussians 2 to 6 units in front of the cameras."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    depth = 2 + 4 * uniform(n)
    lateral = (uniform(n, 2) - 0.5) * depth[:, None] * 1.3
    angles = 0.15 * normal(cameras)
    viewmats = torch.eye(4).repeat(cameras, 1, 1)
    viewmats[:, 0, 0] = viewmats[:, 2, 2] = angles.cos()
    viewmats[:, 0, 2], viewmats[:, 2, 0] = angles.sin(), -angles.sin()
    viewmats[:, :3, 3] = 0.1 * normal(cameras, 3)
    focal = max(width, height) * 0.8
    intrinsics = torch.tensor(
        [[focal, 0, width / 2 + 0.3], [0, focal, height / 2 - 0.2], [0, 0, 1]]
    )
    return {
        "means": torch.cat([lateral, depth[:, None]], dim=-1),
        "quats": normal(n, 4),
        "scales": 0.5 / math.sqrt(n + 1) * torch.exp(0.5 * normal(n, 3)),
        "opacities": torch.sigmoid(1.5 * normal(n)),
        "colors": uniform(n, channels) if sh_bases is None else 0.4 * normal(n, sh_bases, 3),
        "viewmats": viewmats,
        "Ks": intrinsics.repeat(cameras, 1, 1),
        "width": width,
        "height": height,
        "packed": False,
    }


def convert(scene: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """The scene with its tensors in another dtype; parameters become fresh leaves."""
    result = {}
    for name, value in scene.items():
        if isinstance(value, Tensor):
            value = value.detach().to(dtype).clone().requires_grad_(name in PARAMETERS)
        result[name] = value
    return result


def render_with_gradients(
    scene: dict[str, Any], dtype: torch.dtype = torch.float32, **options: Any
) -> tuple[Tensor, Tensor, dict[str, Tensor], dict[str, Any]]:
    """render, alphas, gradients of parameters and means2d for fixed random weights, info."""
    scene = convert(scene, dtype)
    render, alphas, info = rasterization(**{**scene, **options})
    info["means2d"].retain_grad()
    generator = torch.Generator().manual_seed(7)
    loss = (render * torch.randn(render.shape, generator=generator).to(dtype)).sum()
    loss = loss + (alphas * torch.randn(alphas.shape, generator=generator).to(dtype)).sum()
    loss.backward()
    gradients = {name: scene[name].grad for name in PARAMETERS}
    gradients["means2d"] = info["means2d"].grad
    gradients = {k: torch.zeros(0) if g is None else g for k, g in gradients.items()}
    return render.detach(), alphas.detach(), gradients, info


def relative_error(value: Tensor, truth: Tensor) -> float:
    """L2 norm of the difference over the L2 norm of the truth (or 1e-8)."""
    difference = (value.double() - truth.double()).norm()
    return (difference / truth.double().norm().clamp_min(1e-8)).item()


@pytest.fixture(autouse=True)
def _one_thread():
    """Tiny scenes are rendered faster by one thread, above all on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def scene() -> Callable[..., dict[str, Any]]:
    """The function `random_scene`."""
    return random_scene


@pytest.fixture
def rendered() -> Callable[..., Any]:
    """The function `render_with_gradients`."""
    return render_with_gradients


@pytest.fixture
def error() -> Callable[[Tensor, Tensor], float]:
    """The function `relative_error`."""
    return relative_error
