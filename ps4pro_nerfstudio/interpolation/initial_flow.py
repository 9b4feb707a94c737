# SPDX-License-Identifier: Apache-2.0
"""Where the learned network starts from: a first estimate of the motion between two frames.

Notation. A *velocity* is a displacement in pixels per unit of time, given at the pixels x of the
frame at time t: V0 says where the pixel came from, F_t0 = -t V0, and V1 where it goes,
F_t1 = (1 - t) V1. For straight motion at constant speed V0 = V1. Unlike the flows themselves,
velocities keep their size as t goes to 0 or 1. They are stacked as [B, 4, H, W] = (V0 x, V0 y,
V1 x, V1 y).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import numpy as np
import torch
from torch import Tensor

from ps4pro_nerfstudio.interpolation.coarse_matching import coarse_flow
from ps4pro_nerfstudio.interpolation.examination import complete
from ps4pro_nerfstudio.interpolation.optical_flow import (
    OpticalFlowInterpolator,
    _flow_at_time,
    _remap,
    _to_numpy,
)
from ps4pro_nerfstudio.messages import MissingPartError

InitialFlow = Literal["dis", "raft", "none"]

_PUSHED = 4
"""Distance in pixels of those that are pushed along their flow."""
_SAME_COLOUR = 0.05
"""Mean absolute difference, in [0, 1], up to which two colours are the same."""


class FlowInitializer(Protocol):
    """Gives the network its starting velocities."""

    @property
    def identity(self) -> str:
        """Changes whenever the result for the same frames may change."""
        ...

    def __call__(self, frame0: Tensor, frame1: Tensor, t: Tensor) -> Tensor | None:
        """Velocities [B, 4, H, W] at t [B] for frames [B, 3, H, W]; None: no estimate."""
        ...


@dataclass(frozen=True)
class DisInitializer:
    """Dense Inverse Search both ways, started from `coarse_flow`.

    In a third of the time of the optical-flow baseline: wider stride, fewer steps and no refinement
    cost .10 dB of 35.96 on Middlebury and nothing on DAVIS or on pairs of views.
    """

    finest_scale: int = 0
    """Finest pyramid level of the flow; 0 is the full size, 1 is faster."""

    @property
    def identity(self) -> str:
        """That of the baseline, which computes the flow."""
        return f"coarse/2 {self._flow.identity}"

    @property
    def _flow(self) -> OpticalFlowInterpolator:
        return OpticalFlowInterpolator(
            self.finest_scale, patch_stride=4, descent_steps=12, refinement_steps=0
        )

    def __call__(self, frame0: Tensor, frame1: Tensor, t: Tensor) -> Tensor:
        """Velocities [B, 4, H, W]; computed on the CPU, returned on the device of the frames."""
        with torch.no_grad():
            coarse = coarse_flow(frame0.float(), frame1.float())
        sources = (_to_numpy(frame0), _to_numpy(frame1), *(_to_numpy(flow) for flow in coarse))
        result = [
            _velocities(a, b, *self._flow.flows(a, b, (there, back)), float(time))
            for a, b, there, back, time in zip(*map(_contiguous, sources), t, strict=True)
        ]
        return torch.from_numpy(np.stack(result)).to(frame0.device)


@dataclass(frozen=True)
class ZeroInitializer:
    """No classical flow: the network works from coarse to fine on its own."""

    identity = "none"

    def __call__(self, frame0: Tensor, frame1: Tensor, t: Tensor) -> None:
        """Always None."""
        return


class RaftInitializer:
    """torchvision's RAFT (small), where its weights are on disk; nothing is downloaded.

    Raises:
        MissingPartError: when the weights are absent.
    """

    identity = "raft-small/2"

    def __init__(self) -> None:
        from torchvision.models.optical_flow import Raft_Small_Weights, raft_small

        name = Raft_Small_Weights.DEFAULT.url.rsplit("/", maxsplit=1)[-1]
        path = Path(torch.hub.get_dir()) / "checkpoints" / name
        if not path.is_file():
            raise MissingPartError(
                f"the initial flow 'raft' needs torchvision's weights {path}, which are absent: "
                "put them there, or use the initial flow 'dis'"
            )
        self._network: Any = raft_small()
        self._network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        self._network.eval()

    @torch.no_grad()
    def __call__(self, frame0: Tensor, frame1: Tensor, t: Tensor) -> Tensor:
        """Velocities [B, 4, H, W]; RAFT needs sides of at least 128, smaller frames are padded."""
        import torch.nn.functional as F

        height, width = frame0.shape[-2:]
        pad = (0, max(128, -(-width // 8) * 8) - width, 0, max(128, -(-height // 8) * 8) - height)
        a, b = (
            F.pad(frame.float() * 2.0 - 1.0, pad, mode="replicate") for frame in (frame0, frame1)
        )
        network = self._network.to(a.device)
        forward, backward = (network(*pair)[-1][..., :height, :width] for pair in ((a, b), (b, a)))
        fields = (frame0.float(), frame1.float(), forward, backward)
        result = [
            _velocities(
                *(_channels_last(field[index]) for field in fields),  # type: ignore[arg-type]
                t=float(time),
            )
            for index, time in enumerate(t)
        ]
        return torch.from_numpy(np.stack(result)).to(frame0.device)


def make_initializer(name: str) -> FlowInitializer:
    """The initializer of a name: "dis", "raft" or "none".

    Raises:
        ValueError: for another name.
        MissingPartError: when its weights are absent.
    """
    if name == "dis":
        return DisInitializer()
    if name == "raft":
        return RaftInitializer()
    if name == "none":
        return ZeroInitializer()
    raise ValueError(f"initial flow must be one of {get_args(InitialFlow)}, got {name!r}")


def _contiguous(values: np.ndarray) -> np.ndarray:
    # A copy: DIS writes into its start.
    return np.array(values, np.float32, order="C")


def _channels_last(flow: Tensor) -> np.ndarray:
    return flow.permute(1, 2, 0).contiguous().cpu().numpy()


def _velocities(
    frame0: np.ndarray, frame1: np.ndarray, forward: Any, backward: Any, t: float
) -> np.ndarray:
    """[4, H, W] at time t from frames [H, W, 3] and from F_01 and F_10, [H, W, 2] each."""
    velocity1 = _flow_at_time(forward, t, _in_front(frame0, frame1, forward, t))
    velocity0 = -_flow_at_time(backward, 1.0 - t, _in_front(frame1, frame0, backward, 1.0 - t))
    return np.concatenate([velocity0, velocity1], axis=-1).transpose(2, 0, 1).astype(np.float32)


def _in_front(here: np.ndarray, there: np.ndarray, flow: np.ndarray, t: float) -> Any:
    """Roughly the flow [H, W, 2] of what passes each pixel at time t in front of all else.

    Every fourth pixel is pushed along its flow, if its colour is there where the flow ends. Of two
    that land on the same place the one stays whose flow is more unlike that of most of the picture:
    things in front of a wall move unlike the wall.
    """
    import cv2

    height, width = flow.shape[0] // _PUSHED, flow.shape[1] // _PUSHED
    if min(height, width) < 2:
        return None
    middle = _PUSHED // 2
    pushed = flow[middle::_PUSHED, middle::_PUSHED][:height, :width]
    y, x = np.mgrid[:height, :width].astype(np.float32) * _PUSHED + middle
    ends = np.stack([x + pushed[..., 0], y + pushed[..., 1]], axis=-1).astype(np.float32)
    found = _remap(np.asarray(cv2.blur(there, (5, 5)), np.float32), ends)
    wanted = cv2.blur(here, (5, 5))[middle::_PUSHED, middle::_PUSHED][:height, :width]
    column = ((x + t * pushed[..., 0]) / _PUSHED).astype(int)
    row = ((y + t * pushed[..., 1]) / _PUSHED).astype(int)
    stays = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    stays &= np.abs(found - wanted).mean(axis=-1) < _SAME_COLOUR
    unlike = np.linalg.norm(pushed - np.median(pushed, axis=(0, 1)), axis=-1)
    order = np.argsort(unlike[stays], kind="stable")
    landed = np.zeros((3, height, width), np.float32)
    landed[2, row[stays], column[stays]] = 1.0
    landed[:2, row[stays][order], column[stays][order]] = pushed[stays][order].T
    known = torch.from_numpy(landed)[None]
    completed = complete(known[:, :2], known[:, 2:] + 1e-6)[0].permute(1, 2, 0).numpy()
    size = (flow.shape[1], flow.shape[0])
    return cv2.resize(completed, size, interpolation=cv2.INTER_NEAREST)
