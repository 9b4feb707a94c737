# SPDX-License-Identifier: Apache-2.0
"""PS4PRO: the learned interpolator, from a first flow to flows, mask, image and confidence.

Re-implementation from the published idea of PS4PRO (arXiv 2505.22616), whose architecture is not
public; this one is the project's own. Notation as in `protocol` and `initial_flow`: velocities
V0, V1 with F_t0 = -t V0 and F_t1 = (1 - t) V1.

What a thing that moved far needs is a first flow that found it (`coarse_matching`); what a view
needs at its borders is to know which photograph shows them (`examination`). The rest is learned. A
shared encoder gives features at 1/2, 1/4, 1/8 and 1/16 of the size; four stages, coarse to fine,
correct velocities and mask (`stages`); a head makes the frame, its mask and its confidence at full
size (`synthesis`). All output layers start at zero: an untrained network is the examined classical
flow.

    W_k     = frame k at x + F_tk(x), bilinear; where both agree, or the head says so, cubic
    image   = clamp(M W_0 + (1 - M) W_1 + R, 0, 1),   M = sigmoid(m)
    b       = 1/255 + softplus(s), the expected absolute error;  confidence = exp(-b / .05)

m starts at log((1 - t) / t), the linear blend, where both frames show the pixel, and at the frame
that does elsewhere; s starts at the difference of the two sources.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ps4pro_nerfstudio.interpolation.examination import examine
from ps4pro_nerfstudio.interpolation.initial_flow import FlowInitializer, make_initializer
from ps4pro_nerfstudio.interpolation.network_config import PRESETS, NetworkConfig
from ps4pro_nerfstudio.interpolation.protocol import Interpolation, check_frames, endpoint
from ps4pro_nerfstudio.interpolation.stages import (
    SLOPE,
    Encoder,
    Stage,
    Start,
    State,
    choose_nearest,
)
from ps4pro_nerfstudio.interpolation.synthesis import Head
from ps4pro_nerfstudio.interpolation.velocities import enlarge, flows, resize_velocity
from ps4pro_nerfstudio.interpolation.weights_file import find_weights, read_weights, write_weights
from ps4pro_nerfstudio.messages import InputError

CONFIDENCE_SCALE = 0.05
"""Expected absolute error, in [0, 1], at which the confidence is 1/e."""

_TIME_MARGIN = 1e-3


@dataclass
class Estimate:
    """All that training looks at; the fields of `Interpolation`, before clamping, and more."""

    image: Tensor
    """[B, 3, H, W], not clamped, so that gradients live."""
    classical: Tensor
    """[B, 3, H, W]: what the network started from."""
    velocities: list[Tensor]
    """[B, 4, H, W] after each stage, the first being the start, the last the result."""
    mask_logit: Tensor
    """[B, 1, H, W]."""
    error: Tensor
    """[B, 1, H, W]: b, the scale of the Laplace model of the absolute error."""


class PS4PRO(nn.Module):
    """The learned `FrameInterpolator`.

    Args:
        config: sizes; one of `PRESETS`, or its name.
        initializer: where the velocities start; by default that of the config.
        name: what logs call it.
    """

    judges_itself = True

    def __init__(
        self,
        config: NetworkConfig | str = "small",
        initializer: FlowInitializer | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__()
        if isinstance(config, str):
            if config not in PRESETS:
                raise ValueError(f"config must be one of {', '.join(PRESETS)}, got {config!r}")
            name = name or f"ps4pro-{config}"
            config = PRESETS[config]
        self.config = config
        self.name = name or "ps4pro"
        self.initializer = initializer or make_initializer(config.initial_flow)
        self.encoder = Encoder(config.encoder)
        self.stages = nn.ModuleList(Stage(config, level) for level in range(len(config.encoder)))
        self.head = Head(config.carried[0], config.head)
        for part in self.modules():
            if isinstance(part, nn.Conv2d):
                nn.init.kaiming_normal_(part.weight, a=SLOPE, nonlinearity="leaky_relu")
                nn.init.zeros_(part.bias)  # type: ignore[arg-type]
        outputs = (*(stage.correct for stage in self.stages), self.stages[0].choose, self.head.out)
        for output in outputs:
            nn.init.zeros_(output.weight)  # type: ignore[arg-type, union-attr]
        # A tenth faster on a CPU.
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._weights_hash: str | None = None

    @classmethod
    def from_pretrained(
        cls, name_or_path: str | Path = "ps4pro-small", initial_flow: str | None = None
    ) -> PS4PRO:
        """A trained network: one that the package brings, or a safetensors file.

        Raises:
            InputError: when there is no such file, or it is damaged or of another kind.
        """
        path = find_weights(name_or_path)
        config, tensors = read_weights(path)
        initializer = make_initializer(initial_flow or config.initial_flow)
        network = cls(config, initializer, name=path.stem)
        try:
            network.load_state_dict({key: value.float() for key, value in tensors.items()})
        except RuntimeError as error:
            first = str(error).strip().splitlines()[-1].strip()
            raise InputError(f"{path} does not fit the network that it names: {first}") from error
        return network.eval().requires_grad_(False)

    def save(self, path: Path, half: bool = False, **notes: str) -> None:
        """Write the weights and the sizes as safetensors; `half` stores them in 16 bits."""
        write_weights(path, self.config, self.state_dict(), half, notes)

    @property
    def identity(self) -> str:
        """Name, hash of the weights, and the start of the flow."""
        if self._weights_hash is None or self.training:
            digest = hashlib.sha256(json.dumps(asdict(self.config)).encode())
            for key, value in sorted(self.state_dict().items()):
                digest.update(key.encode())
                digest.update(value.detach().float().cpu().contiguous().numpy().tobytes())
            self._weights_hash = digest.hexdigest()[:16]
        return f"{self.name}/{self._weights_hash} start=[{self.initializer.identity}]"

    def forward(
        self, frame0: Tensor, frame1: Tensor, t: float | Tensor, velocity: Tensor | None = None
    ) -> Interpolation:
        """Interpolate frames [B, 3, H, W] in [0, 1] at t in [0, 1], a number or [B].

        t = 0 and t = 1 give the inputs exactly. `velocity` [B, 4, H, W] replaces the initializer.

        Raises:
            ValueError: as `check_frames` says.
        """
        if isinstance(t, Tensor) and t.numel() > 1:
            if t.shape != (len(frame0),):
                raise ValueError(f"t must be a number or [B], got {tuple(t.shape)}")
            parts = [
                self(frame0[k : k + 1], frame1[k : k + 1], float(time))
                if velocity is None
                else self(frame0[k : k + 1], frame1[k : k + 1], float(time), velocity[k : k + 1])
                for k, time in enumerate(t)
            ]
            fields = vars(parts[0])
            return Interpolation(
                **{key: torch.cat([getattr(part, key) for part in parts]) for key in fields}
            )
        t = float(t)
        check_frames(frame0, frame1, t)
        if (exact := endpoint(frame0, frame1, t)) is not None:
            return exact
        times = torch.full((len(frame0),), t, device=frame0.device)
        if velocity is None:
            velocity = self.initializer(frame0, frame1, times)
        if velocity is None:
            velocity = self._own_start(frame0, frame1, times)
        estimate = self.estimate(frame0, frame1, times, velocity)
        flow_t0, flow_t1 = flows(estimate.velocities[-1], times)
        dtype = frame0.dtype
        return Interpolation(
            image=estimate.image.clamp(0.0, 1.0).to(dtype),
            flow_t0=flow_t0.to(dtype),
            flow_t1=flow_t1.to(dtype),
            mask=estimate.mask_logit.sigmoid().to(dtype),
            confidence=torch.exp(-estimate.error / CONFIDENCE_SCALE).to(dtype),
        )

    def estimate(self, frame0: Tensor, frame1: Tensor, t: Tensor, velocity: Tensor) -> Estimate:
        """The network itself: frames [B, 3, H, W], t [B] in (0, 1), start [B, 4, H, W]."""
        height, width = frame0.shape[-2:]
        multiple = 2 ** len(self.stages)
        pad = (0, -width % multiple, 0, -height % multiple)
        # Warps and flows in 32 bits: half a pixel at 400 px is below the resolution of 16.
        frame0, frame1, velocity = (
            F.pad(value.float(), pad, mode="replicate") if any(pad) else value.float()
            for value in (frame0, frame1, velocity)
        )
        t = t.float().clamp(_TIME_MARGIN, 1.0 - _TIME_MARGIN)[:, None, None, None]
        mean = torch.stack([frame0, frame1]).mean(dim=(0, 3, 4))[..., None, None]
        frames = torch.cat([frame0 - mean, frame1 - mean])
        pyramid = self.encoder(frames)

        with torch.no_grad():
            examined = examine(frames, t, velocity)
            starts = [Start.from_examined(examined)]
            pictures = [F.avg_pool2d(frames, 2)]
            for _ in self.stages[1:]:
                starts.append(starts[-1].halved())
                pictures.append(F.avg_pool2d(pictures[-1], 2))
        coarsest = starts[-1]
        state = State(torch.zeros_like(coarsest.velocity), torch.zeros_like(coarsest.mask_logit))
        velocities = [examined.velocity]
        for level in reversed(range(len(self.stages))):
            target = starts[max(level - 1, 0)]
            state = self.stages[level](
                pyramid[level], pictures[level], t, state, [starts[level], target]
            )
            if self.training and level:
                velocities.append(enlarge(target.velocity + state.change, 2**level) * 2**level)
        assert state.carried is not None
        assert state.choice is not None
        doubt = starts[0].doubt
        velocity = choose_nearest(starts[0].velocity + state.change, doubt[:, :1] * state.choice)
        # What the start knows finer than the stages see, where it is trusted.
        fine = examined.velocity - 2.0 * enlarge(starts[0].velocity, 2)
        velocity = torch.addcmul(velocity, enlarge(1.0 - doubt[:, :1], 2), fine)
        velocities.append(velocity)
        image, mask_logit, error = self.head(
            frames,
            t,
            velocity,
            examined.mask_logit + enlarge(state.mask_change, 2),
            enlarge(doubt[:, 1:], 2),
            state.carried,
        )
        image = image + mean
        classical = frame0
        if self.training:
            with torch.no_grad():
                start = self.head.synthesise(frames, t, examined.velocity)
                classical = start.blend(examined.mask_logit.sigmoid(), start.same)
                classical = classical + mean
        crop = (..., slice(0, height), slice(0, width))
        return Estimate(
            image=image[crop],
            classical=classical[crop],
            velocities=[value[crop] for value in velocities],
            mask_logit=mask_logit[crop],
            error=error[crop],
        )

    def _own_start(self, frame0: Tensor, frame1: Tensor, t: Tensor) -> Tensor:
        """Velocities from the network itself on smaller and smaller frames, starting at zero.

        As many halvings as bring a quarter of the long side down to the reach of one pass.
        """
        velocity = frame0.new_zeros((len(frame0), 4, *frame0.shape[-2:]), dtype=torch.float32)
        long_side = max(frame0.shape[-2:])
        for halvings in range(num_halvings(long_side), 0, -1):
            scale = 0.5**halvings
            size = [max(round(side * scale), 16) for side in frame0.shape[-2:]]
            small = [F.interpolate(frame.float(), size, mode="area") for frame in (frame0, frame1)]
            start = resize_velocity(velocity, size[0], size[1])
            velocity = self.estimate(small[0], small[1], t, start).velocities[-1]
        return resize_velocity(velocity, *frame0.shape[-2:])


def num_halvings(long_side: int, reach_px: float = 48.0) -> int:
    """How often frames are halved until a quarter of their long side is within `reach_px`."""
    return max(0, math.ceil(math.log2(max(long_side / 4.0 / reach_px, 1.0))))
