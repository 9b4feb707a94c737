# SPDX-License-Identifier: Apache-2.0
"""gsplat on CUDA against the CPU kernels, for every feature that both have."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ps4pro_nerfstudio.splatting import rasterization

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

PARAMETERS = ("means", "quats", "scales", "opacities", "colors", "viewmats")
CASES = {
    "SH 3": ({"sh_bases": 16}, {"sh_degree": 3}),
    "SH 4, antialiased": ({"sh_bases": 25}, {"sh_degree": 4, "rasterize_mode": "antialiased"}),
    "plain, RGB+ED": ({}, {"render_mode": "RGB+ED"}),
    "three cameras": ({"cameras": 3}, {}),
    "8 channels": ({"channels": 8}, {}),
}


@pytest.mark.parametrize("case", CASES)
def test_cuda_and_cpu_agree(scene, error, case):
    build, options = CASES[case]
    s = scene(2000, 160, 90, **build)
    results = []
    for device in ("cpu", "cuda"):
        moved: dict[str, Any] = {
            k: v.detach().to(device).requires_grad_(k in PARAMETERS)
            if isinstance(v, torch.Tensor)
            else v
            for k, v in s.items()
        }
        render, alphas, info = rasterization(**moved, **options, absgrad=True)
        info["means2d"].retain_grad()
        generator = torch.Generator().manual_seed(0)
        weights = torch.randn(render.shape, generator=generator).to(device)
        ((render * weights).sum() + alphas.sum()).backward()
        gradients = {k: moved[k].grad.cpu() for k in PARAMETERS}
        gradients["absgrad"] = info["means2d"].absgrad.cpu()
        results.append((render.detach().cpu(), alphas.detach().cpu(), info, gradients))
    cpu, cuda = results
    assert (cpu[2]["radii"] != cuda[2]["radii"].cpu()).float().mean() < 1e-3
    assert (cpu[0] - cuda[0]).abs().mean() < 1e-4
    assert (cpu[1] - cuda[1]).abs().mean() < 1e-4
    for name, gradient in cpu[3].items():
        assert error(gradient, cuda[3][name]) < 1e-2, name
