# SPDX-License-Identifier: Apache-2.0
"""Cameras as frustums of a viser scene.

Poses are nerfstudio's: camera_to_world [3, 4] with OpenGL axes (x right, y up, z back). viser wants
OpenCV axes (x right, y down, z forward), a *vertical* field of view, and aspect = width / height.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from nerfstudio.viewer.viewer import VISER_NERFSTUDIO_SCALE_RATIO
from numpy.typing import NDArray
from viser.transforms import SO3


@dataclass(frozen=True)
class Frustum:
    """Shape and place of one frustum."""

    fov: float
    """Vertical field of view in radians."""
    aspect: float
    """Width over height of the image plane."""
    wxyz: NDArray[np.float64]
    """Unit quaternion [4] from OpenCV camera axes to the world."""
    position: NDArray[np.float64]
    """[3], in the units of the viewer's scene."""


def frustum_of(
    camera_to_world: NDArray,  # [3, 4] OpenGL axes
    focal: tuple[float, float],  # pixels
    size: tuple[int, int],  # width, height in pixels
) -> Frustum:
    """Frustum of a pinhole camera; a principal point off the centre does not show."""
    half_width, half_height = size[0] / (2 * focal[0]), size[1] / (2 * focal[1])
    pose = np.asarray(camera_to_world, dtype=np.float64)
    rotation = SO3.from_matrix(pose[:, :3] * [1.0, -1.0, -1.0])
    return Frustum(
        fov=2 * math.atan(half_height),
        aspect=half_width / half_height,
        wxyz=rotation.wxyz,
        position=pose[:, 3] * VISER_NERFSTUDIO_SCALE_RATIO,
    )
