# SPDX-License-Identifier: Apache-2.0
"""Brightness of two photographs brought to that of the frame between them.

Cameras change exposure and white balance from shot to shot. With r the ratio of brightness of the
second photograph to the first, per channel, the frame at t has r^t times the brightness of the
first: the first is multiplied by r^t and the second by r^(t - 1).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ps4pro_nerfstudio.geometry.cameras import Float64

_DARK, _BRIGHT = 0.04, 0.96
"""Colours outside are clipped or noise, and say nothing about exposure."""
_MIN_PIXELS = 200
_NOTICED = 1.1
"""Smallest ratio of mean brightness that is evened out before anything is known pixel by pixel."""


def coarse_ratio(first: NDArray, second: NDArray, overlap: NDArray[np.bool_]) -> Float64:
    """Ratio per channel [3] of the means of two roughly aligned images; 1 where it is near 1.

    Means of images that do not show the same differ by some percent for that reason alone.
    """
    means = [image[overlap].astype(np.float64).mean(axis=0) for image in (first, second)]
    ratio = means[1] / np.maximum(means[0], 1e-6)
    near = np.abs(np.log(np.maximum(ratio, 1e-6))).max() < np.log(_NOTICED)
    return np.ones(3) if near else ratio


def brightness_ratio(first: NDArray, second: NDArray, where: NDArray[np.bool_]) -> Float64 | None:
    """Median ratio per channel [3] of two images [H, W, 3] in [0, 1] that show the same.

    None where too few pixels can tell.
    """
    usable = where & (np.minimum(first, second).min(axis=-1) > _DARK)
    usable &= np.maximum(first, second).max(axis=-1) < _BRIGHT
    if int(usable.sum()) < _MIN_PIXELS:
        return None
    return np.median(second[usable].astype(np.float64) / first[usable], axis=0)


def equalise(
    first: NDArray[np.float32], second: NDArray[np.float32], ratio: Float64, t: float
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Both images [H, W, 3] at the brightness of the frame at t, clipped to [0, 1]."""
    scaled = first * ratio**t, second * ratio ** (t - 1.0)
    return tuple(np.clip(image, 0.0, 1.0).astype(np.float32) for image in scaled)  # type: ignore
