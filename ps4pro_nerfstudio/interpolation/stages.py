# SPDX-License-Identifier: Apache-2.0
"""The coarse part of the network: features, and stages that correct velocities and mask."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ps4pro_nerfstudio.interpolation.examination import Examined
from ps4pro_nerfstudio.interpolation.network_config import NetworkConfig
from ps4pro_nerfstudio.interpolation.protocol import sample_at
from ps4pro_nerfstudio.interpolation.velocities import enlarge, flows

SLOPE = 0.1
"""Of the leaky ReLUs."""
_MATCHED = 16
"""Channels of the features that are compared."""
_REACH = 3
"""Distance, in pixels of a stage's output, of the neighbours whose velocity it may take over."""
_NEIGHBOURS = [(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1) if (y, x) != (0, 0)]


def activation() -> nn.Module:
    """The leaky ReLU of all layers."""
    # A learned slope (PReLU) takes a tenth of a training step for its own gradient.
    return nn.LeakyReLU(SLOPE, inplace=True)


class Encoder(nn.Module):
    """Features of frames [N, 3, H, W] at 1/2, 1/4, ... of their size."""

    def __init__(self, channels: tuple[int, ...]) -> None:
        super().__init__()
        self.levels = nn.ModuleList()
        previous = 3
        for count in channels:
            self.levels.append(
                nn.Sequential(
                    nn.Conv2d(previous, count, 3, stride=2, padding=1),
                    activation(),
                    nn.Conv2d(count, count, 3, padding=1),
                    activation(),
                )
            )
            previous = count

    def forward(self, frames: Tensor) -> list[Tensor]:
        """One map [N, C, h, w] per level, fine to coarse."""
        features = []
        for level in self.levels:
            frames = level(frames)
            features.append(frames)
        return features


class Block(nn.Module):
    """Two convolutions whose sum with the input is learned to matter, channel by channel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.between = activation()
        self.second = nn.Conv2d(width, width, 3, padding=1)
        self.gain = nn.Parameter(torch.full((1, width, 1, 1), 0.2))
        self.after = activation()

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h, w] to the same."""
        return self.after(x + self.gain * self.second(self.between(self.first(x))))


class Stage(nn.Module):
    """One correction of velocities and mask, seen at 1 / 2^(level + 1).

    It sees the features and the downsampled frames warped by the present estimate, their
    difference, how alike they are when moved apart (`matches`), the velocities, their disagreement,
    the mask, t and what the examination found. It does not only add a residual to the velocity:
    flow is mostly wrong near the edges of things, where the right value stands a few pixels away or
    in the other direction's flow, so that it chooses among these, a weight for each
    (`mix_candidates`).

    Made at twice that size, but for the finest: what it corrects is enlarged by `choose_nearest`.
    """

    def __init__(self, config: NetworkConfig, level: int) -> None:
        super().__init__()
        coarsest = level == len(config.encoder) - 1
        width = config.width[level]
        carried = 0 if coarsest else config.carried[level + 1]
        self.factor = 2 if level else 1
        self.reach = config.reach[level]
        matching = (2 * self.reach + 1) ** 2 + 3 if self.reach else 0
        inputs = 2 * config.encoder[level] + 9 + 6 + 3 + carried + 4 + 2 + matching
        self.first = nn.Sequential(nn.Conv2d(inputs, width, 3, padding=1), activation())
        self.blocks = nn.Sequential(*(Block(width) for _ in range(config.num_blocks[level])))
        outputs = len(_NEIGHBOURS) + 2 + 4 + 1 + 1 + (1 if self.reach else 0)
        self.correct = nn.Conv2d(width, self.factor**2 * outputs, 3, padding=1)
        self.carry = nn.Conv2d(width, self.factor**2 * config.carried[level], 1)
        self.choose = None if level else nn.Conv2d(width, 16, 3, padding=1)
        self.sharpness = nn.Parameter(torch.tensor(15.0)) if self.reach else None

    def completion_bias(self) -> Tensor:
        """Biases of the weight of the completed velocity, one for each pixel made of one."""
        assert self.correct.bias is not None
        first = len(_NEIGHBOURS) + 6
        return self.correct.bias[first * self.factor**2 : (first + 1) * self.factor**2]

    def forward(
        self, features: Tensor, frames: Tensor, t: Tensor, state: State, starts: list[Start]
    ) -> State:
        """Correct the state; `starts` are those at the size of the stage and of its output."""
        start, target = starts
        small = start.velocity + state.change
        both = torch.cat([features.float(), frames], dim=1)
        warped = sample_at(both, torch.cat(flows(small, t)))
        warped0, warped1 = warped.chunk(2)
        completed = start.completed - 0.5 * (small[:, :2] + small[:, 2:])
        inputs = [
            warped0,
            warped1,
            4.0 * (warped0[:, -3:] - warped1[:, -3:]),
            torch.asinh(small) * 0.5,
            torch.asinh(2.0 * (small[:, 2:] - small[:, :2])) * 0.5,
            start.mask_logit + state.mask_change,
            t.expand(-1, 1, *small.shape[-2:]),
            torch.asinh(2.0 * completed) * 0.5,
            start.cues,
        ]
        if state.carried is not None:
            inputs.append(state.carried.float())
        step: Tensor | None = None
        if self.sharpness is not None:
            likeness = matches(warped[:, : min(features.shape[1], _MATCHED)], self.reach)
            step, best = likely_step(likeness, self.reach, self.sharpness)
            inputs += [likeness, step, best]
        hidden = self.blocks(self.first(torch.cat(inputs, dim=1)))
        out = F.pixel_shuffle(self.correct(hidden), self.factor).float()
        so_far = torch.cat([self.factor * state.change, state.mask_change], dim=1)
        so_far = enlarge(so_far, self.factor)
        present = target.velocity + so_far[:, :4]
        towards = [target.completed.repeat(1, 2, 1, 1)]
        if step is not None:
            step = enlarge(2.0 * self.factor * step, self.factor)
            towards.append(present + step.repeat(1, 2, 1, 1))
        change = mix_candidates(present, out[:, :-1], towards)
        return State(
            change=so_far[:, :4] + target.doubt[:, :1] * change,
            mask_change=so_far[:, 4:] + target.doubt[:, 1:] * out[:, -1:],
            carried=F.pixel_shuffle(self.carry(hidden), self.factor),
            choice=None if self.choose is None else self.choose(hidden).float(),
        )


@dataclass
class State:
    """What the stages have changed so far, at the size of the next one."""

    change: Tensor
    """[B, 4, h, w], added to the velocities of the start, in pixels of this size."""
    mask_change: Tensor
    """[B, 1, h, w], added to the mask's logit."""
    carried: Tensor | None = None
    choice: Tensor | None = None
    """[B, 16, h, w] of the finest stage; see `choose_nearest`."""


@dataclass
class Start:
    """What is known before the stages, reduced to the size of one of them."""

    velocity: Tensor
    mask_logit: Tensor
    completed: Tensor
    doubt: Tensor
    cues: Tensor
    """[B, 5, h, w]: doubt of the flow, gaps, and whether each frame shows the pixel."""

    @classmethod
    def from_examined(cls, examined: Examined) -> Start:
        """At half the size of the frames."""
        return cls(
            velocity=F.avg_pool2d(examined.velocity, 2) / 2,
            mask_logit=F.avg_pool2d(examined.mask_logit, 2),
            completed=examined.completed,
            doubt=examined.doubt,
            cues=torch.cat([examined.doubt[:, :1], 4.0 * examined.gaps, examined.shown], dim=1),
        )

    def halved(self) -> Start:
        """The same at half the size."""
        return Start(
            velocity=F.avg_pool2d(self.velocity, 2) / 2,
            mask_logit=F.avg_pool2d(self.mask_logit, 2),
            completed=F.avg_pool2d(self.completed, 2) / 2,
            doubt=F.avg_pool2d(self.doubt, 2),
            cues=F.avg_pool2d(self.cues, 2),
        )


def choose_nearest(velocity: Tensor, choice: Tensor) -> Tensor:
    """Velocities [B, 4, h, w] at twice the size, each pixel from its four nearest, not in between.

    `choice` [B, 16, h, w] adds to the logits of the weights, which at zero are bilinear: channel
    4 (2 a + b) + k for the pixel (a, b) of the four that take the place of one, and k of the four
    neighbours: the pixel itself, beside, above or below, across the corner.
    """
    height, width = velocity.shape[-2:]
    padded = F.pad(velocity, (1, 1, 1, 1), mode="replicate")
    bilinear = choice.new_tensor([9.0, 3.0, 3.0, 1.0]).log()[:, None, None]
    pixels = []
    for pixel, (dy, dx) in enumerate(((-1, -1), (-1, 1), (1, -1), (1, 1))):
        weights = torch.softmax(choice[:, 4 * pixel : 4 * pixel + 4] + bilinear, dim=1)
        total = weights[:, :1] * velocity
        for k, (y, x) in enumerate(((0, dx), (dy, 0), (dy, dx)), start=1):
            neighbour = padded[..., 1 + y : 1 + y + height, 1 + x : 1 + x + width]
            total = torch.addcmul(total, weights[:, k : k + 1], neighbour)
        pixels.append(total)
    return 2.0 * F.pixel_shuffle(torch.stack(pixels, dim=2).flatten(1, 2), 2)


def matches(warped: Tensor, reach: int) -> Tensor:
    """Likeness of the warped features [2B, C, h, w] of both frames, moved apart: [B, K, h, w].

    Channel (dy, dx), each from -reach to reach: the cosine between frame 0 at x - d and frame 1 at
    x + d, what is seen if the velocity were 2 d larger (exactly so at t = 1/2).
    """
    height, width = warped.shape[-2:]
    centred = warped - warped.mean(dim=(2, 3), keepdim=True)
    unit = centred * torch.rsqrt(centred.square().sum(dim=1, keepdim=True) + 1e-6)
    padded = F.pad(unit, (reach,) * 4)
    first, second = padded.chunk(2)
    last = 2 * reach
    return torch.stack(
        [
            (
                first[..., last - y : last - y + height, last - x : last - x + width]
                * second[..., y : y + height, x : x + width]
            ).sum(dim=1)
            for y in range(last + 1)
            for x in range(last + 1)
        ],
        dim=1,
    )


def likely_step(likeness: Tensor, reach: int, sharpness: Tensor) -> tuple[Tensor, Tensor]:
    """Mean displacement d [B, 2, h, w] under softmax(sharpness likeness), and the best likeness."""
    chances = torch.softmax(sharpness * likeness, dim=1)
    offsets = torch.arange(-reach, reach + 1, device=likeness.device, dtype=likeness.dtype)
    table = chances.unflatten(1, (2 * reach + 1, 2 * reach + 1))
    dx = (table.sum(dim=1) * offsets[:, None, None]).sum(dim=1, keepdim=True)
    dy = (table.sum(dim=2) * offsets[:, None, None]).sum(dim=1, keepdim=True)
    return torch.cat([dx, dy], dim=1), likeness.amax(dim=1, keepdim=True)


def mix_candidates(velocity: Tensor, weights: Tensor, towards: list[Tensor]) -> Tensor:
    """Change of velocities [B, 4, H, W] by weights [B, 14 + len(towards), H, W].

    sum_k w_k (V(x + d_k) - V(x)) over eight neighbours, the same weights for V0 and V1 because a
    pixel belongs to one thing; w (V1 - V0) for V0 and w (V0 - V1) for V1; a free residual; and
    w (C - V) for each velocity C [B, 4, H, W] of `towards`.
    """
    height, width = velocity.shape[-2:]
    padded = F.pad(velocity, (_REACH,) * 4, mode="replicate")
    count = len(_NEIGHBOURS)
    other = velocity[:, 2:] - velocity[:, :2]
    change = weights[:, count + 2 : count + 6] + torch.cat(
        [weights[:, count : count + 1] * other, -weights[:, count + 1 : count + 2] * other], dim=1
    )
    for k, candidate in enumerate(towards):
        change = torch.addcmul(change, weights[:, count + 6 + k : count + 7 + k], candidate)
    pulled = torch.cat([weights[:, :count], weights[:, count + 6 :]], dim=1)
    change = torch.addcmul(change, pulled.sum(dim=1, keepdim=True), velocity, value=-1.0)
    for k, (y, x) in enumerate(_NEIGHBOURS):
        top, left = _REACH * (y + 1), _REACH * (x + 1)
        neighbour = padded[..., top : top + height, left : left + width]
        change = torch.addcmul(change, weights[:, k : k + 1], neighbour)
    return change
