# SPDX-License-Identifier: Apache-2.0
"""One training pair: two frames, the frame between them, and what is known exactly about it.

Notation as in `interpolation.initial_flow`: velocities V0, V1 in pixels per unit of time at the
pixels of the frame at t. Arrays are [H, W, C] on disk and [B, C, H, W] in batches.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ps4pro_nerfstudio.interpolation.initial_flow import DisInitializer

SEEN_IN_0 = 1
SEEN_IN_1 = 2
USABLE = 4
"""Bits of `Sample.flags`: the pixel is seen in frame 0, in frame 1; its colour is to be learned."""


@dataclass(frozen=True)
class Sample:
    """A training pair with its in-between frame."""

    frame0: NDArray[np.uint8]
    """[H, W, 3]."""
    middle: NDArray[np.uint8]
    """[H, W, 3] at time t."""
    frame1: NDArray[np.uint8]
    """[H, W, 3]."""
    t: float
    flags: NDArray[np.uint8]
    """[H, W] of SEEN_IN_0, SEEN_IN_1, USABLE."""
    truth: NDArray[np.float16] | None = None
    """[H, W, 4] true velocities, NaN where unknown; None for video."""
    start: NDArray[np.float16] | None = None
    """[H, W, 4] velocities of the classical flow."""

    def with_start(self) -> Sample:
        """The same pair with the velocities that the network starts from."""
        frame0, frame1 = (
            torch.from_numpy(frame.astype(np.float32) / 255.0).permute(2, 0, 1)[None]
            for frame in (self.frame0, self.frame1)
        )
        velocity = DisInitializer()(frame0, frame1, torch.tensor([self.t]))[0]
        start = velocity.permute(1, 2, 0).numpy().clip(-4000, 4000).astype(np.float16)
        return replace(self, start=start)

    def save(self, path: Path) -> None:
        """Write one .npz file, atomically."""
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f".{os.getpid()}.{path.name}")
        arrays = {f.name: getattr(self, f.name) for f in fields(self)}
        with open(draft, "wb") as stream:
            np.savez(stream, **{k: np.asarray(v) for k, v in arrays.items() if v is not None})
        draft.replace(path)

    @classmethod
    def load(cls, path: Path) -> Sample:
        """Read a file of `save`."""
        with np.load(path) as file:
            arrays = {name: file[name] for name in file.files}
        return cls(**{**arrays, "t": float(arrays["t"])})  # type: ignore[arg-type]


@dataclass
class Batch:
    """Crops of samples as the network takes them."""

    frame0: Tensor
    """[B, 3, H, W] in [0, 1]."""
    middle: Tensor
    frame1: Tensor
    t: Tensor
    """[B]."""
    start: Tensor
    """[B, 4, H, W]."""
    truth: Tensor
    """[B, 4, H, W], NaN where unknown."""
    flags: Tensor
    """[B, 1, H, W] uint8."""

    @classmethod
    def stack(cls, samples: list[Sample]) -> Batch:
        """Samples of one size, with their start."""

        def image(arrays: list[NDArray[np.uint8]]) -> Tensor:
            return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).float() / 255.0

        def velocity(arrays: list[NDArray[np.float16]]) -> Tensor:
            stacked = np.stack(arrays).transpose(0, 3, 1, 2)
            return torch.from_numpy(np.ascontiguousarray(stacked, dtype=np.float32))

        unknown = np.full((*samples[0].middle.shape[:2], 4), np.nan, np.float16)
        return cls(
            frame0=image([sample.frame0 for sample in samples]),
            middle=image([sample.middle for sample in samples]),
            frame1=image([sample.frame1 for sample in samples]),
            t=torch.tensor([sample.t for sample in samples]),
            start=velocity([s.start if s.start is not None else unknown for s in samples]),
            truth=velocity([s.truth if s.truth is not None else unknown for s in samples]),
            flags=torch.from_numpy(np.stack([sample.flags for sample in samples]))[:, None],
        )
