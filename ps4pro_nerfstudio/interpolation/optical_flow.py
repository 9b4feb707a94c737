# SPDX-License-Identifier: Apache-2.0
"""Interpolation without learned weights: dense optical flow both ways, and the linear blend.

Notation as in `protocol`. F_01 is the flow from frame0 to frame1 by Dense Inverse Search (Kroeger
et al., ECCV 2016; OpenCV). Assuming straight motion, pixel y of frame0 is at x = y + t F_01(y) at
time t; solving for y by fixed point gives the flow at x without holes: F_t1(x) = (1 - t) F_01(y),
and from F_10 in the same way F_t0(x). Each source is thus found through the flow that starts in the
other one, which agrees with it where both are seen.

No occlusion test: where both flows fail, averaging is safer (measured by the project: such a mask
costs 0.2 to 0.3 dB on DAVIS). What was guessed says the confidence.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ps4pro_nerfstudio.interpolation.protocol import (
    Interpolation,
    check_frames,
    endpoint,
    sample_at,
)

Float32 = NDArray[np.float32]

_PHOTOMETRIC_SCALE = 0.05
"""Mean absolute colour difference, in [0, 1], at which the confidence falls to 1/e."""
_SHARP_SCALE = 8.0 / 255.0
"""Colour difference up to which the two sources count as the same: there they are resampled
by Lanczos, elsewhere bilinearly, because sharpening a mismatch makes it worse."""
_FIXED_POINT_STEPS = 3


@dataclass(frozen=True)
class LinearBlend:
    """(1 - t) frame0 + t frame1 with zero flow: the control that every interpolator must beat."""

    name = "linear-blend"
    judges_itself = False
    identity = "linear-blend/1"

    def __call__(self, frame0: Tensor, frame1: Tensor, t: float) -> Interpolation:
        """Blend two frames [B, 3, H, W]; raises ValueError as `check_frames` says."""
        check_frames(frame0, frame1, t)
        if (exact := endpoint(frame0, frame1, t)) is not None:
            return exact
        flow = torch.zeros_like(frame0[:, :2])
        return Interpolation(
            image=torch.lerp(frame0, frame1, t),
            flow_t0=flow,
            flow_t1=flow.clone(),
            mask=torch.full_like(frame0[:, :1], 1.0 - t),
            confidence=photometric_agreement(frame0, frame1),
        )


@dataclass(frozen=True)
class OpticalFlowInterpolator:
    """Bidirectional DIS flow (preset medium) and the simplest blend of the two warped frames."""

    finest_scale: int = 0
    """Finest pyramid level of the flow; 0 is the full size, 1 (OpenCV's default) is faster."""
    patch_stride: int = 3
    """Distance of the 8-pixel patches that are matched."""
    descent_steps: int = 25
    """Steps of the search for each patch."""
    refinement_steps: int = 5
    """Iterations of the variational refinement, half of the time."""

    name = "optical-flow"
    judges_itself = False

    @property
    def identity(self) -> str:
        """Name, settings, and the version of OpenCV, whose flow may change between releases."""
        import cv2

        settings = " ".join(f"{key}={value}" for key, value in asdict(self).items())
        return f"optical-flow/2 {settings} cv2={cv2.__version__}"

    def __call__(self, frame0: Tensor, frame1: Tensor, t: float) -> Interpolation:
        """Interpolate two frames [B, 3, H, W]; raises ValueError as `check_frames` says.

        The flow is computed on the CPU; the result is on the device and of the type of the frames.
        """
        check_frames(frame0, frame1, t)
        if (exact := endpoint(frame0, frame1, t)) is not None:
            return exact
        sources = [np.ascontiguousarray(_to_numpy(frame)) for frame in (frame0, frame1)]
        parts = [self._interpolate(a, b, t) for a, b in zip(*sources, strict=True)]
        image, flow_t0, flow_t1 = (
            torch.from_numpy(np.stack(part)).permute(0, 3, 1, 2).to(frame0)
            for part in zip(*parts, strict=True)
        )
        return Interpolation(
            image=image,
            flow_t0=flow_t0,
            flow_t1=flow_t1,
            mask=torch.full_like(frame0[:, :1], 1.0 - t),
            confidence=photometric_agreement(
                sample_at(frame0, flow_t0), sample_at(frame1, flow_t1)
            ),
        )

    def _interpolate(
        self, frame0: Float32, frame1: Float32, t: float
    ) -> tuple[Float32, Float32, Float32]:
        """Image [H, W, 3] and the flows [H, W, 2] to the two sources, for one pair [H, W, 3]."""
        import cv2

        forward, backward = self.flows(frame0, frame1)
        flow_t1 = (1.0 - t) * _flow_at_time(forward, t)
        flow_t0 = t * _flow_at_time(backward, 1.0 - t)
        soft0, soft1 = _warp(frame0, flow_t0), _warp(frame1, flow_t1)
        soft = (1.0 - t) * soft0 + t * soft1
        sharp = (1.0 - t) * _warp(frame0, flow_t0, cv2.INTER_LANCZOS4)
        sharp += t * _warp(frame1, flow_t1, cv2.INTER_LANCZOS4)
        difference = cv2.blur(np.abs(soft0 - soft1).mean(axis=-1), (5, 5))
        same = np.exp(-np.square(difference / _SHARP_SCALE))[..., None]
        image = np.clip(soft + same * (sharp - soft), 0.0, 1.0)
        return image.astype(np.float32), flow_t0, flow_t1

    def flows(
        self,
        frame0: Float32,
        frame1: Float32,
        start: tuple[Float32, Float32] | None = None,
    ) -> tuple[Float32, Float32]:
        """F_01 and F_10, [H, W, 2] each, of frames [H, W, 3]; `start` holds first guesses."""
        import cv2

        grey0, grey1 = _to_grey(frame0), _to_grey(frame1)
        height, width = grey0.shape
        if min(height, width) < _SMALLEST_SIDE:
            # DIS needs a few of its 8-pixel patches; repeat the border and cut it off again.
            pad = (0, max(_SMALLEST_SIDE - height, 0), 0, max(_SMALLEST_SIDE - width, 0))
            grey0, grey1 = (
                cv2.copyMakeBorder(grey, *pad, cv2.BORDER_REPLICATE) for grey in (grey0, grey1)
            )
            start = None
        # A new object per call: DIS keeps buffers inside and is not safe to share between threads.
        flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
        flow.setFinestScale(self.finest_scale)
        flow.setPatchStride(self.patch_stride)
        flow.setGradientDescentIterations(self.descent_steps)
        flow.setVariationalRefinementIterations(self.refinement_steps)
        there, back = start if start is not None else (None, None)
        forward = flow.calc(grey0, grey1, there)  # pyright: ignore
        backward = flow.calc(grey1, grey0, back)  # pyright: ignore
        return forward[:height, :width], backward[:height, :width]


_SMALLEST_SIDE = 32


def photometric_agreement(warped0: Tensor, warped1: Tensor) -> Tensor:
    """exp(-mean over channels of |warped0 - warped1| / .05), [B, 1, H, W] in (0, 1].

    1 where both sources show the same colour; low at occlusions, wrong flow and reflections.
    """
    return torch.exp(-(warped0 - warped1).abs().mean(dim=1, keepdim=True) / _PHOTOMETRIC_SCALE)


def _flow_at_time(flow: Float32, t: float, guess: Float32 | None = None) -> Float32:
    """Flow [H, W, 2] of the pixel that is at x at time t, when it starts at time 0.

    Of several that pass x, the one that is nearest to `guess` [H, W, 2], or else to no motion.
    """
    grid = _pixel_grid(*flow.shape[:2])
    start = grid if guess is None else grid - t * guess
    for _ in range(_FIXED_POINT_STEPS):
        start = grid - t * _remap(flow, start)
    return _remap(flow, start)


def _warp(image: Float32, flow: Float32, interpolation: int | None = None) -> Float32:
    return _remap(image, _pixel_grid(*flow.shape[:2]) + flow, interpolation)


def _remap(image: Float32, positions: Float32, interpolation: int | None = None) -> Float32:
    import cv2

    mode = cv2.INTER_LINEAR if interpolation is None else interpolation
    return cv2.remap(image, positions, None, mode, borderMode=cv2.BORDER_REPLICATE)  # pyright: ignore


def _pixel_grid(height: int, width: int) -> Float32:
    x, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    return np.stack([x, y], axis=-1)


def _to_numpy(frame: Tensor) -> Float32:
    return frame.detach().permute(0, 2, 3, 1).to("cpu", torch.float32).numpy()


def _to_grey(frame: Float32) -> NDArray[np.uint8]:
    import cv2

    eight_bit = cv2.convertScaleAbs(frame, alpha=255.0)  # rounds and saturates
    return np.asarray(cv2.cvtColor(eight_bit, cv2.COLOR_RGB2GRAY), np.uint8)
