# SPDX-License-Identifier: Apache-2.0
"""PS4PRO: the learned interpolator, from a first flow to flows, mask, image and confidence.

Re-implementation from the published idea of PS4PRO (arXiv 2505.22616), whose architecture is not
public; this one is the project's own. Notation as in `protocol` and `initial_flow`: velocities
V0, V1 with F_t0 = -t V0 and F_t1 = (1 - t) V1.

A shared encoder gives features at 1/2, 1/4, 1/8 and 1/16 of the size. Four stages, coarse to fine,
correct the velocities, which are kept at full size. A stage sees the features and the downsampled
frames warped by the present estimate, their difference, the velocities, their disagreement, the
mask and t. It does not only add a residual to the velocity: flow is mostly wrong near the edges of
things, where the right value stands a few pixels away or in the other direction's flow, so that a
stage chooses among these, a weight for each (`_mix_candidates`). All output layers start at
zero: an untrained network is the optical-flow baseline.

    W_k     = frame k at x + F_tk(x), bilinear; where both agree, or the head says so, Lanczos
    image   = clamp(M W_0 + (1 - M) W_1 + R, 0, 1),   M = sigmoid(m),  R = tanh(r) / 2
    b       = 1/255 + softplus(s), the expected absolute error;  confidence = exp(-b / .05)

m starts at log((1 - t) / t), the linear blend, and s at the difference of the two sources.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ps4pro_nerfstudio.interpolation.initial_flow import FlowInitializer, make_initializer
from ps4pro_nerfstudio.interpolation.protocol import (
    Interpolation,
    check_frames,
    endpoint,
    sample_at,
)
from ps4pro_nerfstudio.messages import InputError

FORMAT = "ps4pro-interpolator/1"
CONFIDENCE_SCALE = 0.05
"""Expected absolute error, in [0, 1], at which the confidence is 1/e."""

_LEAST_ERROR = 1.0 / 255.0
_SHARP_SCALE = 8.0 / 255.0  # as in optical_flow
_DOUBTFUL_GAP = 0.04
"""Difference of the two warped frames, in [0, 1], at which the start is in doubt (1 - 1/e)."""
_DOUBTFUL_PX = 1.0
"""The same for the disagreement of the two velocities, in pixels of half the size."""
_TRUSTED_GAP = 0.1
_TRUSTED_PX = 2.0
"""As the two above, for how far the start is trusted to tell of its surroundings."""
_REACH = 3
"""Distance, in pixels of a stage's output, of the neighbours whose velocity it may take over."""
_NEIGHBOURS = [(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1) if (y, x) != (0, 0)]
_TIME_MARGIN = 1e-3
_SLOPE = 0.1


@dataclass(frozen=True)
class NetworkConfig:
    """Sizes of a network; lists run from 1/2 to 1/16 of the image size."""

    encoder: tuple[int, ...] = (16, 24, 40, 64)
    width: tuple[int, ...] = (32, 56, 96, 128)
    carried: tuple[int, ...] = (12, 16, 24, 32)
    num_blocks: tuple[int, ...] = (1, 2, 2, 2)
    head: int = 24
    initial_flow: str = "dis"


PRESETS: dict[str, NetworkConfig] = {
    "tiny": NetworkConfig((12, 16, 24, 32), (24, 32, 48, 64), (8, 12, 16, 24), (1, 1, 1, 1), 16),
    "small": NetworkConfig(),
    "base": NetworkConfig(
        (24, 40, 64, 96), (80, 112, 144, 192), (16, 24, 32, 48), (2, 2, 2, 2), 32
    ),
}


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
        self.encoder = _Encoder(config.encoder)
        self.stages = nn.ModuleList(_Stage(config, level) for level in range(len(config.encoder)))
        self.head = _Head(config.carried[0], config.head)
        for part in self.modules():
            if isinstance(part, nn.Conv2d):
                nn.init.kaiming_normal_(part.weight, a=_SLOPE, nonlinearity="leaky_relu")
                nn.init.zeros_(part.bias)  # type: ignore[arg-type]
        for output in (*(stage.correct for stage in self.stages), self.head.out):
            nn.init.zeros_(output.weight)  # type: ignore[arg-type]
        self._weights_hash: str | None = None

    @classmethod
    def from_pretrained(
        cls, name_or_path: str | Path = "ps4pro-small", initial_flow: str | None = None
    ) -> PS4PRO:
        """A trained network: one that the package brings, or a safetensors file.

        Raises:
            InputError: when there is no such file, or it is damaged or of another kind.
        """
        path = _find_weights(name_or_path)
        config, tensors = _read_weights(path)
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
        from safetensors.torch import save_file

        dtype = torch.float16 if half else torch.float32
        tensors = {
            key: value.detach().cpu().to(dtype).contiguous()
            for key, value in self.state_dict().items()
        }
        metadata = {"format": FORMAT, "config": json.dumps(asdict(self.config)), **notes}
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, str(path), metadata=metadata)

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
            examined = _examine(frames, t, velocity)
        mask_logit = torch.log((1.0 - t) / t).expand(-1, 1, *frame0.shape[-2:])
        carried: Tensor | None = None
        velocities = [velocity]
        pictures = [F.avg_pool2d(frames, 2)]
        for _ in self.stages[1:]:
            pictures.append(F.avg_pool2d(pictures[-1], 2))
        for level in reversed(range(len(self.stages))):
            velocity, mask_logit, carried = self.stages[level](
                pyramid[level],
                pictures[level],
                t,
                velocity,
                mask_logit,
                examined,
                carried,
            )
            velocities.append(velocity)
        assert carried is not None
        image, mask_logit, error = self.head(
            frames, t, velocity, mask_logit, examined.doubt, carried
        )
        image = image + mean
        classical = frame0
        if self.training:
            with torch.no_grad():
                classical = self.head.synthesise(frames, t, velocities[0]).image + mean
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


def flows(velocity: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """F_t0 and F_t1, [B, 2, H, W], of velocities [B, 4, H, W] at t [B] or [B, 1, 1, 1]."""
    t = t.reshape(-1, 1, 1, 1)
    return -t * velocity[:, :2], (1.0 - t) * velocity[:, 2:]


def resize_velocity(velocity: Tensor, height: int, width: int) -> Tensor:
    """Velocities [B, 4, H, W] for frames of another size: resampled, and scaled to its pixels."""
    if velocity.shape[-2:] == (height, width):
        return velocity
    scale = velocity.new_tensor([width / velocity.shape[-1], height / velocity.shape[-2]])
    resized = F.interpolate(velocity, (height, width), mode="bilinear", align_corners=False)
    return resized * scale.repeat(2)[None, :, None, None]


def _activation() -> nn.Module:
    # A learned slope (PReLU) takes a tenth of a training step for its own gradient.
    return nn.LeakyReLU(_SLOPE, inplace=True)


class _Encoder(nn.Module):
    def __init__(self, channels: tuple[int, ...]) -> None:
        super().__init__()
        self.levels = nn.ModuleList()
        previous = 3
        for count in channels:
            self.levels.append(
                nn.Sequential(
                    nn.Conv2d(previous, count, 3, stride=2, padding=1),
                    _activation(),
                    nn.Conv2d(count, count, 3, padding=1),
                    _activation(),
                )
            )
            previous = count

    def forward(self, frames: Tensor) -> list[Tensor]:
        features = []
        for level in self.levels:
            frames = level(frames)
            features.append(frames)
        return features


class _Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.between = _activation()
        self.second = nn.Conv2d(width, width, 3, padding=1)
        self.gain = nn.Parameter(torch.full((1, width, 1, 1), 0.2))
        self.after = _activation()

    def forward(self, x: Tensor) -> Tensor:
        return self.after(x + self.gain * self.second(self.between(self.first(x))))


class _Stage(nn.Module):
    """One correction of velocities and mask, seen at 1 / 2^(level + 1), made at twice that size."""

    def __init__(self, config: NetworkConfig, level: int) -> None:
        super().__init__()
        self.scale = 2 ** (level + 1)
        self.coarsest = level == len(config.encoder) - 1
        width = config.width[level]
        carried = 0 if self.coarsest else config.carried[level + 1]
        self.num_weights = len(_NEIGHBOURS)
        inputs = 2 * config.encoder[level] + 9 + 6 + 3 + carried + 4
        outputs = self.num_weights + 2 + 4 + 1 + 1
        self.carried = config.carried[level]
        self.first = nn.Sequential(nn.Conv2d(inputs, width, 3, padding=1), _activation())
        self.blocks = nn.Sequential(*(_Block(width) for _ in range(config.num_blocks[level])))
        self.correct = nn.Conv2d(width, 4 * outputs, 3, padding=1)
        self.carry = nn.Conv2d(width, 4 * self.carried, 1)

    def completion_bias(self) -> Tensor:
        """The four biases (one per pixel of a 2x2) of the weight of the completed velocity."""
        assert self.correct.bias is not None
        return self.correct.bias[-4:]

    def forward(
        self,
        features: Tensor,
        frames: Tensor,
        t: Tensor,
        velocity: Tensor,
        mask_logit: Tensor,
        examined: _Examined,
        carried: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        scale = self.scale
        size = scale // 2
        present = _reduce(velocity, size) / size
        small = F.avg_pool2d(present, 2) / 2
        flow0, flow1 = flows(small, t)
        both = torch.cat([features.float(), frames], dim=1)
        warped0, warped1 = sample_at(both, torch.cat([flow0, flow1])).chunk(2)
        colour0, colour1 = warped0[:, -3:], warped1[:, -3:]
        inputs = [
            warped0,
            warped1,
            4.0 * (colour0 - colour1),
            torch.asinh(small) * 0.5,
            torch.asinh(2.0 * (small[:, 2:] - small[:, :2])) * 0.5,
            F.avg_pool2d(mask_logit, scale),
            F.avg_pool2d(examined.doubt[:, :1], scale),
            t.expand(-1, 1, *small.shape[-2:]),
        ]
        if carried is not None:
            inputs.append(carried.float())
        completed = _reduce(examined.completed, size) / size
        middle = 0.5 * (small[:, :2] + small[:, 2:])
        inputs.append(torch.asinh(2.0 * (completed - middle)) * 0.5)
        inputs.append(_reduce(examined.gaps, size))
        hidden = self.blocks(self.first(torch.cat(inputs, dim=1)))
        correction = F.pixel_shuffle(self.correct(hidden), 2).float()
        carried = F.pixel_shuffle(self.carry(hidden), 2)
        # The order of the outputs is that of `completion_bias`.
        completion, mask_change = correction[:, -1:], correction[:, -2:-1]
        completed = (
            _reduce(examined.completed, size // 2) / (size // 2)
            if size > 1
            else 2.0 * _enlarge(examined.completed, 2)
        )
        change = _mix_candidates(present, correction[:, :-2], completion, completed)
        change = _enlarge(change, size) * size
        return (
            velocity + examined.doubt[:, :1] * change,
            mask_logit + examined.doubt[:, 1:] * _enlarge(mask_change, size),
            carried,
        )


@dataclass
class _Examined:
    """What the start says about itself."""

    doubt: Tensor
    """[B, 2, H, W] in [.05, 1]: how far its flow, and its colours, may be corrected."""
    completed: Tensor
    """[B, 2, H / 2, W / 2] one velocity, in pixels of that size, from where it is trusted."""
    gaps: Tensor
    """[B, 2, H / 2, W / 2]: colour difference of the sources by the start, and by `completed`."""


def _examine(frames: Tensor, t: Tensor, velocity: Tensor) -> _Examined:
    """Find where the start contradicts itself, and complete it from where it does not.

    The doubt is near 1 within a few pixels of where the two warped frames differ; for the flow also
    where the two velocities do. What the classical flow gets right it gets right to a fraction of a
    pixel; a network that is free to touch it needs long training only to learn to leave it alone.
    The same holds for the mask: where both sources agree, their average has less noise than either.

    What only one frame shows, at the borders of a view or beside things in front, has no match, and
    the flow there is arbitrary; the motion of what surrounds it is a far better guess.
    """
    small = F.avg_pool2d(velocity, 2) / 2
    pictures = F.avg_pool2d(frames, 2)
    difference = _source_difference(pictures, t, small)
    colour_gap = difference.abs().mean(dim=1, keepdim=True)
    disagreement = (small[:, 2:] - small[:, :2]).norm(dim=1, keepdim=True)
    gap, apart = (colour_gap / _DOUBTFUL_GAP).square(), (disagreement / _DOUBTFUL_PX).square()
    doubt = 1.0 - torch.exp(-torch.cat([gap + apart, gap], dim=1))
    doubt = F.avg_pool2d(_largest(doubt, 2), 3, 1, 1, count_include_pad=False)

    smooth_gap = F.avg_pool2d(colour_gap, 3, 1, 1, count_include_pad=False) / _TRUSTED_GAP
    trust = torch.exp(-smooth_gap.square() - (disagreement / _TRUSTED_PX).square())
    trust = -_largest(-trust, 1)
    completed = _complete(0.5 * (small[:, :2] + small[:, 2:]), trust + 1e-6)
    other = _source_difference(pictures, t, completed.repeat(1, 2, 1, 1))
    gaps = torch.cat([colour_gap, other.abs().mean(dim=1, keepdim=True)], dim=1)
    return _Examined(_enlarge(0.05 + 0.95 * doubt, 2), completed, 4.0 * gaps)


def _largest(values: Tensor, reach: int) -> Tensor:
    """Maximum over a square of side 2 reach + 1, one axis after the other."""
    values = F.max_pool2d(values, (2 * reach + 1, 1), 1, (reach, 0))
    return F.max_pool2d(values, (1, 2 * reach + 1), 1, (0, reach))


def _source_difference(pictures: Tensor, t: Tensor, velocity: Tensor) -> Tensor:
    """Colours of the two warped frames, one minus the other; a change of exposure is no error."""
    colour0, colour1 = sample_at(pictures, torch.cat(flows(velocity, t))).chunk(2)
    difference = colour0 - colour1
    return difference - difference.flatten(2).median(dim=2).values[..., None, None]


def _complete(values: Tensor, weight: Tensor) -> Tensor:
    """Values [B, C, H, W] where they have weight [B, 1, H, W], else from ever larger surroundings.

    Push and pull (Gortler et al., "The lumigraph", 1996): weighted means over 2, 4, 8, ... pixels,
    then back down, each level keeping as much of its own as it has weight for.
    """
    levels = [(values * weight, weight)]
    while min(levels[-1][1].shape[-2:]) > 1:
        levels.append(
            tuple(F.avg_pool2d(x, 2, ceil_mode=True, count_include_pad=False) for x in levels[-1])  # type: ignore[arg-type]
        )
    total, share = levels.pop()
    result = total / share.clamp_min(1e-6)
    for total, share in reversed(levels):
        coarse = F.interpolate(result, total.shape[-2:], mode="bilinear", align_corners=False)
        own = (4.0 * share).clamp(max=1.0)
        result = coarse + own * (total / share.clamp_min(1e-6) - coarse)
    return result


def _mix_candidates(
    velocity: Tensor, weights: Tensor, completion: Tensor, completed: Tensor
) -> Tensor:
    """Change of velocities [B, 4, H, W] by weights [B, 14, H, W].

    sum_k w_k (V(x + d_k) - V(x)) over eight neighbours, the same weights for V0 and V1 because a
    pixel belongs to one thing; w (V1 - V0) for V0 and w (V0 - V1) for V1; a free residual; and
    `completion` (completed - V), completed being [B, 2, H, W].
    """
    height, width = velocity.shape[-2:]
    padded = F.pad(velocity, (_REACH,) * 4, mode="replicate")
    count = len(_NEIGHBOURS)
    other = velocity[:, 2:] - velocity[:, :2]
    change = weights[:, count + 2 :] + torch.cat(
        [weights[:, count : count + 1] * other, -weights[:, count + 1 : count + 2] * other], dim=1
    )
    change = torch.addcmul(change, completion, completed.repeat(1, 2, 1, 1) - velocity)
    change = change - weights[:, :count].sum(dim=1, keepdim=True) * velocity
    for k, (y, x) in enumerate(_NEIGHBOURS):
        top, left = _REACH * (y + 1), _REACH * (x + 1)
        neighbour = padded[..., top : top + height, left : left + width]
        change = torch.addcmul(change, weights[:, k : k + 1], neighbour)
    return change


def _reduce(values: Tensor, scale: int) -> Tensor:
    return F.avg_pool2d(values, scale) if scale > 1 else values


def _enlarge(values: Tensor, scale: int) -> Tensor:
    if scale == 1:
        return values
    return F.interpolate(values, scale_factor=scale, mode="bilinear", align_corners=False)


@dataclass
class _Synthesis:
    image: Tensor
    warped: Tensor  # [B, 6, H, W]: both sources, bilinear
    sharper: Tensor  # [B, 6, H, W]: Lanczos minus bilinear
    same: Tensor  # [B, 1, H, W] in [0, 1]: how far both sources agree


class _Head(nn.Module):
    """Full size: mask, residual, sharpness and confidence from the two warped frames."""

    def __init__(self, carried: int, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(6 + 3 + 1 + carried, width, 3, padding=1),
            _activation(),
            nn.Conv2d(width, width, 3, padding=1),
            _activation(),
        )
        self.out = nn.Conv2d(width, 6, 3, padding=1)

    @staticmethod
    def synthesise(frames: Tensor, t: Tensor, velocity: Tensor) -> _Synthesis:
        """What the flows alone give: the blend of the optical-flow baseline."""
        flow = torch.cat(flows(velocity, t))
        warped = sample_at(frames, flow)
        with torch.no_grad():
            sharper = _sample_lanczos(frames, flow) - warped
        warped = torch.cat(warped.chunk(2), dim=1)
        sharper = torch.cat(sharper.chunk(2), dim=1)
        with torch.no_grad():
            gap = (warped[:, :3] - warped[:, 3:]).abs().mean(dim=1, keepdim=True)
            gap = F.avg_pool2d(F.pad(gap, (2, 2, 2, 2), mode="reflect"), 5, stride=1)
            same = torch.exp(-((gap / _SHARP_SCALE) ** 2))
        sources = warped + same * sharper
        image = (1.0 - t) * sources[:, :3] + t * sources[:, 3:]
        return _Synthesis(image, warped, sharper, same)

    def forward(
        self,
        frames: Tensor,
        t: Tensor,
        velocity: Tensor,
        mask_logit: Tensor,
        doubt: Tensor,
        carried: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        start = self.synthesise(frames, t, velocity)
        difference = start.warped[:, :3] - start.warped[:, 3:]
        inputs = [start.warped, 4.0 * difference, mask_logit, carried.float()]
        out = self.out(self.body(torch.cat(inputs, dim=1))).float()
        mask_logit = mask_logit + doubt[:, 1:] * out[:, 3:4]
        mask = mask_logit.sigmoid()
        sharpness = (start.same + out[:, 4:5]).clamp(0.0, 1.0)
        sources = start.warped + sharpness * start.sharper
        residual = 0.5 * doubt[:, 1:] * torch.tanh(out[:, :3])
        image = sources[:, 3:] + mask * (sources[:, :3] - sources[:, 3:]) + residual
        gap = difference.detach().abs().mean(dim=1, keepdim=True)
        # softplus inverted, so that s = 0 means: the error is as large as the sources disagree.
        start_error = torch.log(torch.expm1(gap.clamp_min(1e-3)))
        error = _LEAST_ERROR + F.softplus(start_error + 4.0 * out[:, 5:6])
        return image, mask_logit, error


def _sample_lanczos(image: Tensor, flow: Tensor) -> Tensor:
    """Samples of [B, C, H, W] at x + flow(x) by Lanczos' kernel of 8x8, without gradient.

    OpenCV's, on the CPU, on whatever device the image is: torch has nothing sharper than bicubic,
    which costs .2 dB on Middlebury.
    """
    import cv2

    height, width = image.shape[-2:]
    x, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    places = flow.detach().permute(0, 2, 3, 1).cpu().numpy() + np.stack([x, y], axis=-1)
    sources = image.detach().permute(0, 2, 3, 1).contiguous().cpu().numpy()
    sampled = [
        cv2.remap(source, place, None, cv2.INTER_LANCZOS4, borderMode=cv2.BORDER_REPLICATE)  # type: ignore[call-overload]
        for source, place in zip(sources, places, strict=True)
    ]
    return torch.from_numpy(np.stack(sampled)).permute(0, 3, 1, 2).to(image.device)


def _find_weights(name_or_path: str | Path) -> Path:
    path = Path(name_or_path)
    if path.suffix == ".safetensors" or path.is_file():
        if path.is_file():
            return path
        raise InputError(f"there is no weights file {path}")
    folder = Path(str(resources.files("ps4pro_nerfstudio.interpolation").joinpath("weights")))
    shipped = folder / f"{name_or_path}.safetensors"
    if shipped.is_file():
        return shipped
    known = ", ".join(sorted(file.stem for file in folder.glob("*.safetensors"))) or "none"
    raise InputError(
        f"no weights named {name_or_path!r}: the package brings {known}; "
        "give one of these or the path of a .safetensors file"
    )


def _read_weights(path: Path) -> tuple[NetworkConfig, dict[str, Tensor]]:
    from safetensors import safe_open

    try:
        with safe_open(str(path), framework="pt") as file:
            metadata: dict[str, str] = file.metadata() or {}
            tensors: dict[str, Any] = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except Exception as error:
        # safetensors raises a type of its own and several of others for damaged files.
        raise InputError(f"{path} is damaged or no safetensors file: {error}") from error
    if metadata.get("format") != FORMAT:
        raise InputError(
            f"{path} holds no PS4PRO network of this version "
            f"(format {metadata.get('format')!r}, wanted {FORMAT!r})"
        )
    try:
        fields: dict[str, Any] = json.loads(metadata["config"])
        config = NetworkConfig(
            **{k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}  # type: ignore[arg-type]
        )
    except (KeyError, ValueError, TypeError) as error:
        raise InputError(f"{path} does not say the sizes of its network: {error}") from error
    if not all(bool(torch.isfinite(value).all()) for value in tensors.values()):
        raise InputError(f"{path} holds weights that are not finite")
    return config, tensors
