# SPDX-License-Identifier: Apache-2.0
"""Planes that a photograph shows, found in its known depths.

The inverse depth of a plane is an affine function of the pixel, so that a plane found where depth
is known tells the depth of the rest of its wall, floor or table: where a mean of the known depths
around a place can only repeat them.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ps4pro_nerfstudio.geometry.cameras import Float64

_MOST = 6
"""Planes looked for in one photograph."""
_LEAST_SHARE = 0.05
"""A plane holds at least this share of the known points."""
_TOLERANCE = 0.02
"""Largest relative difference of an inverse depth from that of its plane."""
_SAMPLE = 2000
"""Points that a plane is looked for in; the rest is asked afterwards."""
_TRIALS = 1000
"""Triples tried for a plane: one that holds a seventh of the points is found in 19 of 20 cases."""


class ImagePlanes(NamedTuple):
    """K planes of a photograph."""

    coefficients: Float64
    """[K, 3]: inverse depth = a column + b row + c, in 1 / units of the poses."""
    plane: NDArray[np.int64]
    """[P], the plane of each known point, -1 for those in none."""

    def inverse_depth(self, pixels: Float64) -> Float64:
        """Inverse depth [S, K] of each plane at pixel positions [S, 2], not always positive."""
        return pixels @ self.coefficients[:, :2].T + self.coefficients[:, 2]


def find_planes(pixels: Float64, inverse_depth: Float64, seed: int = 0) -> ImagePlanes:
    """The largest plane, then the largest in what it leaves, and so on (sequential RANSAC).

    Args:
        pixels: [P, 2], column and row of points whose depth is known.
        inverse_depth: [P], positive.
        seed: of the triples that are tried.
    """
    from sklearn.linear_model import LinearRegression, RANSACRegressor

    design = np.column_stack([pixels, np.ones(len(pixels))])
    plane = np.full(len(pixels), -1)
    least = max(_LEAST_SHARE * len(pixels), 3)
    coefficients: list[Float64] = []
    generator = np.random.default_rng(seed)
    for index in range(_MOST):
        left = np.flatnonzero(plane < 0)
        if len(left) < least:
            break
        sample = generator.permutation(left)[:_SAMPLE]
        ransac = RANSACRegressor(
            LinearRegression(),
            min_samples=3,
            residual_threshold=_TOLERANCE,
            max_trials=_TRIALS,
            loss=lambda true, predicted: np.abs(predicted - true) / true,  # pyright: ignore
            random_state=seed,
        )
        try:
            ransac.fit(pixels[sample], inverse_depth[sample])
        except ValueError:  # not one triple agrees with its own plane
            break
        difference = np.abs(ransac.predict(pixels[left]) - inverse_depth[left])
        near = difference < _TOLERANCE * inverse_depth[left]
        if np.count_nonzero(near) < least:
            break
        chosen = left[near]
        plane[chosen] = index
        coefficients.append(np.linalg.lstsq(design[chosen], inverse_depth[chosen], rcond=None)[0])
    return ImagePlanes(np.array(coefficients).reshape(-1, 3), plane)
