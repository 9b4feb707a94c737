# SPDX-License-Identifier: Apache-2.0
"""The pieces of a training step, each as something that times itself once per call.

All run on the synthetic scene of `splatting.scene` (a dict of tensors) and return seconds by stage.
Two implementations have the same pieces: the numba kernels (`splatting.cpu.functions`) and the
torch twin (`splatting.reference`).
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch
from pytorch_msssim import SSIM
from torch import Tensor

from ps4pro_nerfstudio.benchmark.timing import Stopwatch
from ps4pro_nerfstudio.splatting import rasterization, reference
from ps4pro_nerfstudio.splatting.cpu import functions
from ps4pro_nerfstudio.splatting.losses import l1_ssim_loss

Scene = dict[str, Any]
SH_DEGREE = 3
SSIM_LAMBDA = 0.2
# Small enough that a thousand steps leave the scene as it is.
_LEARNING_RATE = 1e-7


class Rasterizer:
    """Projection, binning and compositing of one camera, RGB, forward and backward.

    Stages: project, binning, composite (without binning), composite_backward, project_backward.
    """

    def __init__(self, scene: Scene, implementation: ModuleType = functions):
        self.implementation = implementation
        self.width, self.height = scene["width"], scene["height"]
        self.parameters = {
            name: scene[name].clone().requires_grad_(True)
            for name in ("means", "quats", "scales", "opacities", "sh")
        }
        self.viewmats = scene["viewmat"][None]
        self.intrinsics = scene["intrinsics"][None]
        self.settings = reference.ProjectionSettings(self.width, self.height, sh_degree=SH_DEGREE)
        self.image_gradient = torch.randn(
            1, self.height, self.width, 3, generator=torch.Generator().manual_seed(1)
        )
        self.num_visible = 0
        self.num_intersections = 0

    def __call__(self) -> dict[str, float]:
        """Run every stage once."""
        seconds = {}
        watch = Stopwatch()
        radii, means2d, conics, depths, _, rgb = self.implementation.project(
            *self.parameters.values(), self.viewmats, self.intrinsics, self.settings
        )
        seconds["project"] = watch.lap()

        # Leaves of their own, so that the two backward passes are timed apart.
        opacities = self.parameters["opacities"][None]
        leaves = [
            value.detach().requires_grad_(True) for value in (means2d, conics, opacities, rgb)
        ]
        lists_function = "tile_lists" if self.implementation is reference else "bin_rows"
        num_rows = radii.shape[1]
        with _timed_calls(self.implementation, lists_function) as in_binning:
            watch.lap()
            render, _, lists = self.implementation.composite(
                *leaves, depths.detach(), radii, [0, num_rows], self.width, self.height,
                False, False,
            )  # fmt: skip
            seconds["composite"] = watch.lap() - sum(in_binning)
        seconds["binning"] = sum(in_binning)
        v_means2d, v_conics, _, v_rgb = torch.autograd.grad(render, leaves, self.image_gradient)
        seconds["composite_backward"] = watch.lap()

        differentiated = [self.parameters[name] for name in ("means", "quats", "scales", "sh")]
        watch.lap()
        torch.autograd.grad([means2d, conics, rgb], differentiated, [v_means2d, v_conics, v_rgb])
        seconds["project_backward"] = watch.lap()
        self.num_visible = int((radii > 0).sum())
        self.num_intersections = len(lists[0].ids)
        return seconds


@contextmanager
def _timed_calls(module: ModuleType, name: str) -> Iterator[list[float]]:
    """Collect the seconds of each call of a function of a module, where others call it."""
    original = getattr(module, name)
    seconds: list[float] = []

    @functools.wraps(original)
    def timed(*arguments: Any, **options: Any) -> Any:
        watch = Stopwatch()
        result = original(*arguments, **options)
        seconds.append(watch.lap())
        return result

    setattr(module, name, timed)
    try:
        yield seconds
    finally:
        setattr(module, name, original)


class TrainingStep:
    """One optimisation step of splatfacto's six parameter groups through the public functions.

    Stages: step (activations, rasterization, loss, backward, fused Adam); on a GPU forward and
    backward of the rasterization as well.
    """

    def __init__(self, scene: Scene, device: str = "cpu"):
        self.device = device
        self.width, self.height = scene["width"], scene["height"]
        initial = {
            "means": scene["means"],
            "scales": scene["scales"].log(),
            "quats": scene["quats"],
            "features_dc": scene["sh"][:, 0],
            "features_rest": scene["sh"][:, 1:],
            "opacities": torch.logit(scene["opacities"])[:, None],
        }
        self.parameters = {
            name: torch.nn.Parameter(value.clone().contiguous().to(device))
            for name, value in initial.items()
        }
        self.viewmats = scene["viewmat"][None].to(device)
        self.intrinsics = scene["intrinsics"][None].to(device)
        generator = torch.Generator().manual_seed(2)
        self.target = torch.rand(self.height, self.width, 3, generator=generator).to(device)
        self.optimizers = [
            torch.optim.Adam([parameter], lr=_LEARNING_RATE, eps=1e-15, fused=True)
            for parameter in self.parameters.values()
        ]

    def render(self) -> Tensor:
        """Render the scene, [H, W, 3]."""
        parameters = self.parameters
        colors = torch.cat([parameters["features_dc"][:, None], parameters["features_rest"]], dim=1)
        render, _, info = rasterization(
            means=parameters["means"],
            quats=parameters["quats"],
            scales=parameters["scales"].exp(),
            opacities=parameters["opacities"].sigmoid().squeeze(-1),
            colors=colors,
            viewmats=self.viewmats,
            Ks=self.intrinsics,
            width=self.width,
            height=self.height,
            packed=False,
            sh_degree=SH_DEGREE,
            absgrad=True,
        )
        info["means2d"].retain_grad()  # as the densification strategies do
        return render[0]

    def __call__(self) -> dict[str, float]:
        """Run one step."""
        settle = torch.cuda.synchronize if self.device != "cpu" else lambda: None
        watch = Stopwatch(settle)
        loss = l1_ssim_loss(self.render(), self.target, SSIM_LAMBDA)
        loss.backward()
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        return {"step": watch.lap()}


class CudaRender:
    """Forward and backward of gsplat alone, on the same inputs. Stages: forward, backward."""

    def __init__(self, step: TrainingStep):
        self.step = step
        self.image_gradient = torch.ones_like(step.target)

    def __call__(self) -> dict[str, float]:
        """Render once and differentiate."""
        watch = Stopwatch(torch.cuda.synchronize)
        image = self.step.render()
        forward = watch.lap()
        torch.autograd.grad(image, list(self.step.parameters.values()), self.image_gradient)
        return {"forward": forward, "backward": watch.lap()}


class Loss:
    """The photometric loss with its gradient: ours, or splatfacto's. Stage: loss."""

    def __init__(self, width: int, height: int, upstream: bool):
        generator = torch.Generator().manual_seed(3)
        self.target = torch.rand(height, width, 3, generator=generator)
        noise = 0.1 * torch.randn(height, width, 3, generator=generator)
        self.prediction = (self.target + noise).requires_grad_(True)
        self.upstream = SSIM(data_range=1.0, size_average=True, channel=3) if upstream else None

    def __call__(self) -> dict[str, float]:
        """Evaluate once and differentiate."""
        watch = Stopwatch()
        if self.upstream is None:
            loss = l1_ssim_loss(self.prediction, self.target, SSIM_LAMBDA)
        else:
            l1 = (self.target - self.prediction).abs().mean()
            similarity = self.upstream(
                self.target.permute(2, 0, 1)[None], self.prediction.permute(2, 0, 1)[None]
            )
            loss = (1 - SSIM_LAMBDA) * l1 + SSIM_LAMBDA * (1 - similarity)
        torch.autograd.grad(loss, self.prediction)
        return {"loss": watch.lap()}


class AdamStep:
    """Adam on the six parameter groups of N Gaussians. Stage: adam."""

    def __init__(self, num_gaussians: int, fused: bool):
        generator = torch.Generator().manual_seed(4)
        self.optimizers = []
        for columns in (3, 3, 4, 3, 45, 1):
            parameter = torch.nn.Parameter(torch.zeros(num_gaussians, columns))
            parameter.grad = torch.randn(parameter.shape, generator=generator)
            self.optimizers.append(
                torch.optim.Adam(
                    [parameter], lr=_LEARNING_RATE, eps=1e-15, fused=fused, foreach=not fused
                )
            )

    def __call__(self) -> dict[str, float]:
        """Update all groups once."""
        watch = Stopwatch()
        for optimizer in self.optimizers:
            optimizer.step()
        return {"adam": watch.lap()}
