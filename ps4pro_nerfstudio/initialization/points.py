# SPDX-License-Identifier: Apache-2.0
"""What an initialisation gives, and the options that all its parts share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class SeedPoints:
    """Coloured points in the world frame of the cameras, in random order.

    The order is shuffled because a prefix of feature points is no fair sample of the scene.
    """

    xyz: NDArray[np.float32]
    """[P, 3] positions."""
    rgb: NDArray[np.uint8]
    """[P, 3] colours."""
    track_lengths: NDArray[np.int32]
    """[P] number of views in which a point was found; 0 for a random point."""
    reprojection_errors_px: NDArray[np.float32]
    """[P] mean distance of a point to where it was found, in pixels of the given images; NaN for a
    random point."""
    seen_by: NDArray[np.bool_]
    """[P, N] in which of the N views a point was found; in none for a random point."""
    method: Literal["triangulated", "random"]
    """Where the points come from."""

    def __len__(self) -> int:
        return len(self.xyz)


@dataclass
class SeedPointsConfig:
    """Initial points of a splat where the capture ships no sparse points."""

    method: Literal["auto", "triangulate", "random"] = "auto"
    """triangulate: features of the train views, matched and triangulated with the known poses;
    random: points in the region that several cameras see; auto: triangulate, and random where
    that finds fewer than min_points."""
    min_points: int = 100
    """Fewer triangulated points than this count as a failure."""
    num_random: int = 20_000
    """Number of random points."""
    max_features: int = 4096
    """Most SIFT features of one view; the strongest are kept."""
    feature_side_px: int = 800
    """Features are sought in images resized to this long side, in pixels; small images are at most
    doubled. The thresholds in pixels below refer to the resized images."""
    contrast_threshold: float = 0.0067
    """Contrast of the weakest feature, as OpenCV's SIFT defines it (its own default is 0.04)."""
    max_pairs: int = 600
    """Most pairs of views that are matched, but at least four for each view. With more pairs than
    this, each view is matched with its share of them, denser among its nearer neighbours."""
    max_ratio: float = 0.8
    """Lowe's ratio: the angle between two matched descriptors divided by that of the next best."""
    max_epipolar_px: float = 1.5
    """Largest distance of a match to its epipolar line, in pixels."""
    max_reprojection_px: float = 2.0
    """Largest distance of a point to where a view found it, in pixels."""
    min_angle_deg: float = 1.5
    """Smallest angle between two rays of a point, in degrees; below, its depth is uncertain."""
    seed: int = 0
    """Seed of the random points, of the triangulation and of the order of the points."""
