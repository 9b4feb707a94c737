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

from ps4pro_nerfstudio.interpolation.optical_flow import (
    OpticalFlowInterpolator,
    _flow_at_time,
    _to_numpy,
)
from ps4pro_nerfstudio.messages import MissingPartError

InitialFlow = Literal["dis", "raft", "none"]


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
    """Dense Inverse Search both ways, as the optical-flow baseline uses it, so as good as it."""

    finest_scale: int = 0
    """Finest pyramid level of the flow; 0 is the full size, 1 is faster."""

    @property
    def identity(self) -> str:
        """That of the baseline, which computes the flow."""
        return OpticalFlowInterpolator(self.finest_scale).identity

    def __call__(self, frame0: Tensor, frame1: Tensor, t: Tensor) -> Tensor:
        """Velocities [B, 4, H, W]; computed on the CPU, returned on the device of the frames."""
        flow = OpticalFlowInterpolator(self.finest_scale)
        result = [
            _velocities(*flow._flows(a, b), float(time))
            for a, b, time in zip(_to_numpy(frame0), _to_numpy(frame1), t, strict=True)
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

    identity = "raft-small/1"

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
        result = [
            _velocities(_channels_last(there), _channels_last(back), float(time))
            for there, back, time in zip(forward, backward, t, strict=True)
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


def _channels_last(flow: Tensor) -> np.ndarray:
    return flow.permute(1, 2, 0).contiguous().cpu().numpy()


def _velocities(forward: Any, backward: Any, t: float) -> np.ndarray:
    """[4, H, W] at time t from F_01 and F_10, [H, W, 2] each."""
    velocity1 = _flow_at_time(forward, t)
    velocity0 = -_flow_at_time(backward, 1.0 - t)
    return np.concatenate([velocity0, velocity1], axis=-1).transpose(2, 0, 1).astype(np.float32)
