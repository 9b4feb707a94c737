# SPDX-License-Identifier: Apache-2.0
"""How far to trust each pixel of a frame between two photographs.

Every factor lies in [0, 1], is 1 for exact agreement and falls with its error; the confidence is
their product, so one strong objection is enough. A learned interpolator's own confidence is one
more factor of `combine`. Third views are asked later, about the points only (`consistency`): they
take a pixel's depth away and leave its confidence as it is.

    C = in_bounds * exp(-(dI / .08)^2) * exp(-d^2 / 2)

dI: mean absolute colour difference of the two sources, in [0, 1]; d: distance in pixels by which
two positions found had to be moved to be those of one scene point on the pixel's ray. It contains
the epipolar error between the photographs (wrong flow, moving objects) and the re-projection error
at the frame (wrong camera). Pixels are those of the interpolation.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ps4pro_nerfstudio.geometry.cameras import Float64

PHOTOMETRIC_SCALE = 0.08
"""Colour difference at which the photometric factor is 1/e."""


def photometric_factor(
    warped_0: ArrayLike, warped_1: ArrayLike, scale: float = PHOTOMETRIC_SCALE
) -> Float64:
    """exp(-(dI / scale)^2) of two images [..., C] in [0, 1] that show the same pixels; [...]."""
    warped_0, warped_1 = np.asarray(warped_0, np.float64), np.asarray(warped_1, np.float64)
    if warped_0.shape != warped_1.shape:
        raise ValueError(
            f"warped_0 and warped_1 must have one shape, got {warped_0.shape} and {warped_1.shape}"
        )
    return np.exp(-np.square(np.abs(warped_0 - warped_1).mean(axis=-1) / scale))


def position_factor(moved_px: ArrayLike) -> Float64:
    """exp(-d^2 / 2) of a distance d in pixels; unknown (NaN) and inf give 0."""
    squared = np.square(np.asarray(moved_px, np.float64))
    return np.nan_to_num(np.exp(-0.5 * squared), nan=0.0)


def combine(in_bounds: NDArray[np.bool_], *factors: ArrayLike, floor: float = 0.0) -> Float64:
    """Product of all factors, exactly 0 outside of `in_bounds` and below `floor`.

    Args:
        in_bounds: [...] bool.
        *factors: [...] in [0, 1] each.
        floor: products below it become 0: many weak pixels together would pull without evidence.
    """
    product = in_bounds.astype(np.float64)
    for factor in factors:
        product = product * np.asarray(factor, np.float64)
    return np.where(in_bounds & (product >= floor), product, 0.0)


def local_contrast(image: NDArray, reach: int = 8) -> NDArray[np.float32]:
    """Standard deviation [H, W] of the grey of an image [H, W, 3] within `reach` pixels.

    Where it is zero every position matches every other: agreement says nothing about depth.
    """
    import cv2

    grey = np.ascontiguousarray(image.mean(axis=-1), np.float32)
    size = (2 * reach + 1, 2 * reach + 1)
    # Around the mean of the picture: squares of small numbers lose fewer digits.
    grey = grey - grey.mean()
    mean, square = cv2.blur(grey, size), cv2.blur(np.square(grey), size)
    return np.sqrt(np.maximum(square - np.square(mean), 0.0))


def to_uint8(confidence: ArrayLike) -> NDArray[np.uint8]:
    """Confidence in [0, 1] as 0 to 255, rounded; NaN gives 0."""
    scaled = np.rint(np.clip(np.nan_to_num(np.asarray(confidence, np.float64)), 0, 1) * 255)
    return scaled.astype(np.uint8)
