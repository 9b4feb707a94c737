# SPDX-License-Identifier: Apache-2.0
"""What an unseen view adds to a training step of ipsm-gaussian: `ps4pro bench ipsm-step`.

The unit is a render: one rasterization of colours and depth with its way back to the Gaussians.
With the diffusion prior inside, a step is measured as a whole, since the networks and the renders
share a GPU's memory.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.data.scene_box import SceneBox

from ps4pro_nerfstudio.benchmark.timing import Stopwatch, describe_machine, interleaved_medians
from ps4pro_nerfstudio.datamanagers.unseen_view_datamanager import KnownPoints, UnseenView
from ps4pro_nerfstudio.diffusion.cost import gigabytes, real_size_parts, step_cost
from ps4pro_nerfstudio.diffusion.inpainting_score import (
    InpaintingScoreConfig,
    InpaintingScorePrior,
    resolve_dtype,
)
from ps4pro_nerfstudio.diffusion.protocol import ScorePrior
from ps4pro_nerfstudio.diffusion.tiny import tiny_parts
from ps4pro_nerfstudio.messages import InputError, say
from ps4pro_nerfstudio.models.ipsm import IPSMModel, IPSMModelConfig, project_points
from ps4pro_nerfstudio.models.ipsm_schedule import REFERENCE_LENGTH
from ps4pro_nerfstudio.splatting.scene import make_scene

_BAR_RENDERS = 2.2
_OFFSET = 0.03
"""Distance of the unseen camera from the seen one, in units of the scene."""
_SCORE_REPETITIONS = 5
"""Counted runs of what has the prior in it, at most: it takes long and varies little."""
_TINY_SIZE = 64
"""Side in pixels of the picture that tiny networks score."""


@dataclass(frozen=True)
class WholeStep:
    """A training step with the prior inside, from the renders to the gradient of the Gaussians.

    In it: both renders, the warp, the score, its surrogate and all other losses, and one way back;
    not the optimizers.
    """

    networks: str
    """Name of the prior's weights."""
    milliseconds: float
    """Median wall-clock time."""
    peak_gigabytes: float | None
    """Largest GPU memory (10^9 bytes), networks and Gaussians included; None without a GPU."""


@dataclass
class IPSMStepBenchmark:
    """Time that an unseen view adds to a step, in renders; with a GPU, the score as well."""

    num_gaussians: int = 60_000
    """Gaussians of the synthetic scene."""
    size: tuple[int, int] = (480, 360)
    """Width and height in pixels."""
    num_points: int = 16_384
    """Known points of the photograph."""
    repetitions: int = 15
    """Counted runs of each variant; medians are reported."""
    score: bool | None = None
    """Measure the diffusion prior too, alone and inside whole steps. Default: where there is a GPU,
    and with tiny networks."""
    networks: Literal["real-size", "tiny"] = "real-size"
    """Random weights of the prior: of Stable Diffusion 1.5's size (4 GB in half precision, 7 GB and
    minutes on a CPU), or tiny ones, which go the same way in seconds but tell no real cost."""
    output: Path | None = None
    """JSON file to write."""

    def run(self) -> dict[str, Any]:
        """Measure, print and return the figures.

        Raises:
            InputError: nothing to measure, or no folder for the file.
        """
        self._check()
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        work = _Work(self, device)
        medians = interleaved_medians(
            {"render": work.render, "step": work.step, "with unseen view": work.step_with_unseen},
            self.repetitions,
        )
        times = {name: stages["total"] for name, stages in medians.items()}
        added = times["with unseen view"] - times["step"]
        renders = added / times["render"]
        verdict = "holds" if renders <= _BAR_RENDERS else "missed"
        say(
            f"render {times['render']:.1f} ms, step {times['step']:.1f} ms, with an unseen view "
            f"{times['with unseen view']:.1f} ms: {renders:.2f} renders more (bar {_BAR_RENDERS}: "
            f"{verdict}; diffusion off)"
        )
        figures: dict[str, Any] = {
            "milliseconds": times,
            "added_renders": renders,
            "machine": describe_machine(),
        }
        wanted = device.type == "cuda" or self.networks == "tiny"
        if wanted if self.score is None else self.score:
            figures.update(self._with_score(work, device))
        if self.output is not None:
            self.output.write_text(json.dumps(figures, indent=2))
        return figures

    def _with_score(self, work: _Work, device: torch.device) -> dict[str, Any]:
        """Cost of the prior alone and of whole steps with it inside."""
        width, height = self.size
        repetitions = min(self.repetitions, _SCORE_REPETITIONS)
        is_tiny = self.networks == "tiny"
        config = InpaintingScoreConfig(size=_TINY_SIZE) if is_tiny else InpaintingScoreConfig()
        try:
            dtype = resolve_dtype(config, device)
            parts = tiny_parts() if is_tiny else real_size_parts(device, dtype)
            alone = step_cost(
                device, config, repetitions=repetitions, image_size=(height, width), parts=parts
            )
            whole = work.whole_step(InpaintingScorePrior(parts, config, device), repetitions)
        except torch.cuda.OutOfMemoryError as error:
            raise InputError(
                "a step with the prior does not fit into this GPU's memory; try a smaller --size, "
                "fewer --num-gaussians, or --score False"
            ) from error
        say(
            f"score alone, {whole.networks}: {alone.milliseconds:.0f} ms"
            f"{_at_most(alone.peak_gigabytes)}; whole step with it: {whole.milliseconds:.0f} ms"
            f"{_at_most(whole.peak_gigabytes)}, on {alone.device} in {alone.dtype}"
        )
        return {"score": asdict(alone), "whole_step": asdict(whole)}

    def _check(self) -> None:
        if self.repetitions < 1:
            raise InputError(f"--repetitions must be at least 1, got {self.repetitions}")
        output = self.output
        if output is not None and (output.is_dir() or not output.parent.is_dir()):
            raise InputError(
                f"--output {output} cannot be written; give a file in a folder that exists"
            )


class _Work:
    """A model on the synthetic scene, and one step of it."""

    def __init__(self, config: IPSMStepBenchmark, device: torch.device) -> None:
        width, height = config.size
        scene = make_scene(config.num_gaussians, width, height)
        self.model = _model(scene, device)
        pose = torch.linalg.inv(scene["viewmat"]) @ torch.diag(torch.tensor([1.0, -1, -1, 1]))
        cameras = []
        for offset in (0.0, _OFFSET):
            moved = pose[None, :3].clone()
            moved[:, 0, 3] += offset
            matrix = scene["intrinsics"]
            cameras.append(
                Cameras(
                    moved,
                    fx=float(matrix[0, 0]),
                    fy=float(matrix[1, 1]),
                    cx=float(matrix[0, 2]),
                    cy=float(matrix[1, 2]),
                    width=width,
                    height=height,
                ).to(device)
            )
        self.seen, unseen = cameras
        self.seen.metadata = {"cam_idx": 0}
        xyz = scene["means"].to(device)
        pixels, depth = project_points(xyz, self.seen)
        inside = ((pixels >= 0) & (pixels < pixels.new_tensor(config.size))).all(-1) & (depth > 0)
        chosen = torch.nonzero(inside)[: config.num_points, 0]
        self.batch: dict[str, Any] = {
            "image": torch.rand(height, width, 3, generator=torch.Generator().manual_seed(0)),
            "image_idx": 0,
            "seen_depth": KnownPoints(pixels[chosen], depth[chosen], xyz[chosen]),
        }
        self.unseen = UnseenView(unseen, self.seen, 0.0)
        self.device = device
        self.settle = torch.cuda.synchronize if device.type == "cuda" else lambda: None
        self.losses: dict[str, torch.Tensor] = {}

    def render(self) -> dict[str, float]:
        """One rasterization of colours and depth, and back."""
        watch = Stopwatch(self.settle)
        colors, depth, _ = self.model.render_unseen(self.seen)
        self._back(colors.mean() + depth.mean())
        return {"total": watch.lap()}

    def step(self) -> dict[str, float]:
        """A step without an unseen view."""
        return self._step(self.batch)

    def step_with_unseen(self) -> dict[str, float]:
        """A step with one."""
        return self._step({**self.batch, "unseen": self.unseen})

    def whole_step(self, prior: ScorePrior, repetitions: int) -> WholeStep:
        """Measure steps with an unseen view that a prior judges.

        Raises:
            InputError: the unseen camera shows nothing to judge.
        """
        self.model._priors["score"] = prior
        try:
            # Neither timed nor in the peak: it chooses algorithms, some of which take more memory.
            self.step_with_unseen()
            if "score_loss" not in self.losses:
                raise InputError(
                    "the unseen camera shows nothing that the seen one shows, so the prior has "
                    "nothing to judge; take more --num-gaussians"
                )
            if self.device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(self.device)
            medians = interleaved_medians({"whole": self.step_with_unseen}, repetitions)
        finally:
            del self.model._priors["score"]
        peak = gigabytes(self.device, peak=True)
        return WholeStep(prior.name, medians["whole"]["total"], peak)

    def _step(self, batch: dict[str, Any]) -> dict[str, float]:
        watch = Stopwatch(self.settle)
        outputs = self.model.get_outputs(self.seen)
        losses = self.model.get_loss_dict(outputs, batch)
        self._back(torch.stack(list(losses.values())).sum())
        seconds = watch.lap()
        self.losses = {name: loss.detach() for name, loss in losses.items()}
        return {"total": seconds}

    def _back(self, loss: torch.Tensor) -> None:
        self.model.zero_grad(set_to_none=True)
        loss.backward()


def _at_most(peak_gigabytes: float | None) -> str:
    return "" if peak_gigabytes is None else f", {peak_gigabytes:.1f} GB at most"


def _model(scene: dict[str, Any], device: torch.device) -> IPSMModel:
    """The scene as a model in the middle of its training."""
    model: IPSMModel = IPSMModelConfig().setup(
        scene_box=SceneBox(torch.tensor([[-1.0] * 3, [1.0] * 3])),
        num_train_data=1,
        metadata={},
        device=device,
        grad_scaler=None,
        seed_points=(scene["means"], torch.full(scene["means"].shape, 128, dtype=torch.uint8)),
    )
    values = {
        "means": scene["means"],
        "scales": scene["scales"].log(),
        "quats": scene["quats"],
        "opacities": scene["opacities"].logit()[:, None],
        "features_dc": scene["sh"][:, 0],
        "features_rest": scene["sh"][:, 1:],
    }
    for name, value in values.items():
        model.gauss_params[name].data.copy_(value)
    model.step, model.optimizers = REFERENCE_LENGTH // 2, {}
    return model.to(device).train()
