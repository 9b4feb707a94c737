# SPDX-License-Identifier: Apache-2.0
"""How far around each photograph's camera the scene is empty.

Who took a photograph stood in free space, and what it shows nearest says how much of it there is.
With few photographs training puts Gaussians there that only one of them sees, often as needles;
they explain it as well as the true surface would, and hide the scene from every view between.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ps4pro_nerfstudio.geometry.cameras import Float64, project
from ps4pro_nerfstudio.initialization.views import TrainViews, inside_image

NEAREST_PERCENTILE = 2.0
"""The nearest thing that a photograph shows, but for stray points, in percent of its points."""
_LEAST_KNOWN = 20
"""With fewer known points than this in a photograph nothing is known about its nearest."""


@dataclass
class FreeSpaceConfig:
    """The space around the cameras that training keeps empty."""

    share: float = 0.5
    """Radius around each camera, as a share of the depth of the nearest points that it shows; 0
    leaves all Gaussians where they are."""
    before_surfaces: float = 0.85
    """Gaussians at less than this share of the depth at which photographs were matched with each
    other stand before what they show, and are removed; 0 leaves them."""
    max_views: int = 5
    """Captures with more photographs than this have no such balls around their cameras: other views
    see the space, and with six photographs clearing it cost more than it gained."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.before_surfaces < 1.0:
            raise ValueError(f"before_surfaces must lie in [0, 1), got {self.before_surfaces}")
        if not 0.0 <= self.share < 1.0:
            raise ValueError(f"share must lie in [0, 1), got {self.share}")


def free_radii(views: TrainViews, known: NDArray, config: FreeSpaceConfig) -> Float64:
    """Radius [N] of the empty ball around each camera, in units of the poses; 0 where not known.

    Args:
        views: the N photographs.
        known: points of the scene [P, 3], in the world of the poses.
        config: how much of the space before the nearest point counts as empty.
    """
    radii = np.zeros(len(views))
    for index, size in enumerate(views.sizes):
        pixels, depth = project(known, views.camera_to_worlds[index], views.intrinsics[index])
        shown = depth[inside_image(pixels, size)]
        if len(shown) >= _LEAST_KNOWN:
            radii[index] = config.share * np.percentile(shown, NEAREST_PERCENTILE)
    return radii


def nearest_around(depth: NDArray[np.float32]) -> NDArray[np.float32]:
    """The smallest depth [H, W] of each pixel and its eight neighbours; 0 next to unknown ones."""
    import cv2

    return cv2.erode(depth, np.ones((3, 3), np.uint8)).astype(np.float32)
