# SPDX-License-Identifier: Apache-2.0
"""How far to trust each pixel of a frame between two photographs.

Every factor lies in [0, 1], is 1 for exact agreement and falls with its error; the confidence is
their product, so one strong objection is enough. A learned interpolator's own confidence, or a
third view, is one more factor of `combine`.

    C = in_bounds * exp(-(dI / .08)^2) * exp(-sampson^2 / 2) * exp(-residual^2 / 2)

dI: mean absolute colour difference of the two warped sources, in [0, 1]; sampson: distance in
pixels of the correspondence to the epipolar constraint (wrong flow, moving objects); residual:
distance in pixels between a pixel and its triangulated point seen from the camera that was given to
the frame (wrong camera). Pixels are those of the interpolation.
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


def epipolar_factor(squared_sampson: ArrayLike) -> Float64:
    """exp(-d^2 / 2) of the squared Sampson distance in pixels; unknown (NaN) and inf give 0."""
    return _gaussian(np.asarray(squared_sampson, np.float64))


def pose_factor(residual: ArrayLike) -> Float64:
    """exp(-r^2 / 2) of the re-projection residual in pixels; unknown (NaN) and inf give 0."""
    return _gaussian(np.square(np.asarray(residual, np.float64)))


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


def to_uint8(confidence: ArrayLike) -> NDArray[np.uint8]:
    """Confidence in [0, 1] as 0 to 255, rounded; NaN gives 0."""
    scaled = np.rint(np.clip(np.nan_to_num(np.asarray(confidence, np.float64)), 0, 1) * 255)
    return scaled.astype(np.uint8)


def _gaussian(squared: Float64) -> Float64:
    return np.nan_to_num(np.exp(-0.5 * squared), nan=0.0)
