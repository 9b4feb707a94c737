# SPDX-License-Identifier: Apache-2.0
"""Time of one frame between two pictures, everything included: `ps4pro bench interpolators`."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from ps4pro_nerfstudio.benchmark.timing import Stopwatch, describe_machine, interleaved_medians
from ps4pro_nerfstudio.interpolation.network import PS4PRO
from ps4pro_nerfstudio.interpolation.optical_flow import OpticalFlowInterpolator
from ps4pro_nerfstudio.interpolation.protocol import FrameInterpolator
from ps4pro_nerfstudio.messages import MissingPartError, say

_BAR_MS = 110.0
_BASELINE = "optical-flow"


@dataclass
class InterpolatorsBenchmark:
    """Milliseconds per frame of the network, of optical flow, and of RIFE where it is installed."""

    size: tuple[int, int] = (480, 270)
    """Width and height of the frames."""
    threads: int = 2
    """Threads of torch and OpenCV."""
    repetitions: int = 15
    """Timed runs of each; the medians are reported, the variants alternate."""
    device: str = "cpu"
    """Device that the networks run on."""
    output: Path | None = None
    """JSON file to write."""

    def run(self) -> dict[str, Any]:
        """Print and return the medians, and their ratios to optical flow."""
        import cv2

        torch.set_num_threads(self.threads)
        cv2.setNumThreads(self.threads)
        frames = [frame.to(self.device) for frame in moving_pair(*self.size)]
        variants = {
            name: self._variant(interpolator, frames, bf16)
            for name, (interpolator, bf16) in self._interpolators().items()
        }
        medians = interleaved_medians(variants, self.repetitions)
        times = {name: stages["frame"] for name, stages in medians.items()}
        figures = {
            "size": list(self.size),
            "threads": self.threads,
            "milliseconds": times,
            "over_optical_flow": {k: value / times[_BASELINE] for k, value in times.items()},
            "machine": describe_machine(),
        }
        self._print(figures)
        if self.output is not None:
            self.output.write_text(json.dumps(figures, indent=2) + "\n")
        return figures

    def _interpolators(self) -> dict[str, tuple[FrameInterpolator, bool]]:
        """By name, with whether to run under bfloat16."""
        network: FrameInterpolator = PS4PRO.from_pretrained().to(self.device)
        found = {
            _BASELINE: (OpticalFlowInterpolator(), False),
            network.name: (network, False),
            f"{network.name} bf16": (network, True),
        }
        try:
            from ps4pro_nerfstudio.interpolation.rife import RifeInterpolator

            rife = RifeInterpolator(self.device)
        except MissingPartError as error:
            say(str(error))
        else:
            found |= {rife.name: (rife, False), f"{rife.name} bf16": (rife, True)}
        return found

    def _variant(
        self, interpolator: FrameInterpolator, frames: list[Tensor], bf16: bool
    ) -> Callable[[], dict[str, float]]:
        on_gpu = torch.device(self.device).type == "cuda"

        def once() -> dict[str, float]:
            watch = Stopwatch(torch.cuda.synchronize if on_gpu else lambda: None)
            device = torch.device(self.device).type
            with torch.inference_mode(), torch.autocast(device, torch.bfloat16, enabled=bf16):
                interpolator(frames[0], frames[1], 0.5)
            return {"frame": watch.lap()}

        return once

    def _print(self, figures: dict[str, Any]) -> None:
        width, height = self.size
        table = Table(title=f"One {width}x{height} frame, {self.threads} threads")
        for column in ("interpolator", "ms", "over optical flow"):
            table.add_column(column, justify="left" if column == "interpolator" else "right")
        for name, milliseconds in figures["milliseconds"].items():
            ratio = figures["over_optical_flow"][name]
            table.add_row(name, f"{milliseconds:.0f}", f"{ratio:.2f}")
        Console().print(table)
        best = min(v for k, v in figures["milliseconds"].items() if k.startswith("ps4pro"))
        if self.size == (480, 270) and self.threads == 2:
            verdict = "holds" if best <= _BAR_MS else "missed"
            say(f"network {best:.0f} ms (bar {_BAR_MS:.0f} ms: {verdict})")


def moving_pair(width: int, height: int) -> tuple[Tensor, Tensor]:
    """Two frames [1, 3, H, W] of random structure of all sizes, 7 px apart; always the same."""
    import cv2

    generator = np.random.default_rng(0)
    picture = np.zeros((height, width + 7, 3), np.float32)
    for cells in (4, 8, 16, 32, 64):
        noise = generator.random((max(cells * height // width, 2), cells, 3), np.float32)
        size = (width + 7, height)
        picture += cv2.resize(noise, size, interpolation=cv2.INTER_CUBIC) / 5.0
    tensor = torch.from_numpy(picture.clip(0.0, 1.0)).permute(2, 0, 1)[None]
    return tensor[..., :width].contiguous(), tensor[..., 7:].contiguous()
