# SPDX-License-Identifier: Apache-2.0
"""The fine part of the network: the frame, its mask and its confidence at full size."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ps4pro_nerfstudio.interpolation.protocol import sample_at
from ps4pro_nerfstudio.interpolation.stages import activation
from ps4pro_nerfstudio.interpolation.velocities import enlarge, flows

_LEAST_ERROR = 1.0 / 255.0
_SHARP_SCALE = 8.0 / 255.0  # as in optical_flow


@dataclass
class Synthesis:
    """The two sources of a frame, before they are blended."""

    warped: Tensor  # [B, 6, H, W]: both sources, bilinear
    difference: Tensor  # [B, 3, H, W]: one minus the other
    sharper: Tensor  # [B, 6, H, W]: cubic minus bilinear
    same: Tensor  # [B, 1, H, W] in [0, 1]: how far both sources agree

    def blend(self, mask: Tensor, sharpness: Tensor) -> Tensor:
        """The frame [B, 3, H, W], by the share of frame 0 and how far to sharpen."""
        sources = torch.addcmul(self.warped, sharpness, self.sharper)
        return sources[:, 3:] + mask * (sources[:, :3] - sources[:, 3:])


class Head(nn.Module):
    """Mask, residual, sharpness and confidence from the two warped frames.

    Full size, worked on as four times the channels at half of it, which is as good and faster.
    """

    def __init__(self, carried: int, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(4 * (6 + 1) + carried, width, 3, padding=1),
            activation(),
            nn.Conv2d(width, width, 3, padding=1),
            activation(),
        )
        self.out = nn.Conv2d(width, 4 * 6, 3, padding=1)

    @staticmethod
    def synthesise(frames: Tensor, t: Tensor, velocity: Tensor) -> Synthesis:
        """What the flows alone give: the blend of the optical-flow baseline."""
        flow = torch.cat(flows(velocity, t))
        both = sample_at(frames, flow)
        with torch.no_grad():
            sharper = sample_cubic(frames, flow) - both
        warped = torch.cat(both.chunk(2), dim=1)
        sharper = torch.cat(sharper.chunk(2), dim=1)
        difference = warped[:, :3] - warped[:, 3:]
        with torch.no_grad():
            gap = F.avg_pool2d(difference.abs().mean(dim=1, keepdim=True), 2)
            gap = F.avg_pool2d(gap, 3, 1, 1, count_include_pad=False)
            same = enlarge(torch.exp(-((gap / _SHARP_SCALE) ** 2)), 2)
        return Synthesis(warped, difference, sharper, same)

    def forward(
        self,
        frames: Tensor,
        t: Tensor,
        velocity: Tensor,
        mask_logit: Tensor,
        doubt: Tensor,
        carried: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Image [B, 3, H, W], mask logit and expected error [B, 1, H, W].

        `doubt` [B, 1, H, W] limits what may change of the mask and the colours.
        """
        start = self.synthesise(frames, t, velocity)
        difference = start.difference
        seen = [start.warped[:, :3] + start.warped[:, 3:], 4.0 * difference, mask_logit]
        inputs = torch.cat([F.pixel_unshuffle(torch.cat(seen, dim=1), 2), carried.float()], dim=1)
        out = F.pixel_shuffle(self.out(self.body(inputs)), 2).float()
        mask_logit = mask_logit + doubt * out[:, 3:4]
        mask = mask_logit.sigmoid()
        sharpness = (start.same + out[:, 4:5]).clamp(0.0, 1.0)
        image = start.blend(mask, sharpness) + doubt * out[:, :3]
        gap = difference.detach().abs().mean(dim=1, keepdim=True)
        # softplus inverted, so that s = 0 means: the error is as large as the sources disagree.
        start_error = torch.log(torch.expm1(gap.clamp_min(1e-3)))
        error = _LEAST_ERROR + F.softplus(start_error + 4.0 * out[:, 5:6])
        return image, mask_logit, error


def sample_cubic(images: Tensor, flow: Tensor) -> Tensor:
    """Cubic samples of [B, 3, H, W] at x + flow(x), without gradient.

    OpenCV's, on the CPU, on whatever device the images are: several times faster than torch's.
    """
    import cv2

    height, width = images.shape[-2:]
    x = torch.arange(width, dtype=torch.float32)
    y = torch.arange(height, dtype=torch.float32)[:, None]
    flow = flow.detach().cpu()
    places = torch.stack([flow[:, 0] + x, flow[:, 1] + y], dim=-1).numpy()
    sources = images.detach().permute(0, 2, 3, 1).contiguous().cpu().numpy()
    sampled = np.empty_like(sources)
    for source, place, out in zip(sources, places, sampled, strict=True):
        cv2.remap(source, place, None, cv2.INTER_CUBIC, out, cv2.BORDER_REPLICATE)  # type: ignore[call-overload]
    return torch.from_numpy(sampled).permute(0, 3, 1, 2).contiguous().to(images.device)
