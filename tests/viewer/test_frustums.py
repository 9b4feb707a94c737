# SPDX-License-Identifier: Apache-2.0
"""Frustums against hand calculations."""

from __future__ import annotations

import math

import numpy as np
import pytest
from viser.transforms import SO3

from ps4pro_nerfstudio.viewer.frustums import frustum_of


def test_an_opengl_camera_at_rest_looks_down():
    """OpenGL's identity looks along -z with y up: half a turn around x from OpenCV's axes."""
    frustum = frustum_of(np.eye(3, 4), (100.0, 100.0), (200, 200))
    np.testing.assert_allclose(np.abs(frustum.wxyz), [0, 1, 0, 0], atol=1e-12)


def test_the_frustum_opens_along_the_optical_axis():
    """Turned by 90 degrees around y (OpenGL), the camera looks along -x; its up stays +y."""
    pose = np.array([[0, 0, 1, 0.0], [0, 1, 0, 0], [-1, 0, 0, 0]])
    rotation = SO3(frustum_of(pose, (1.0, 1.0), (2, 2)).wxyz).as_matrix()
    np.testing.assert_allclose(rotation @ [0, 0, 1], [-1, 0, 0], atol=1e-12)
    np.testing.assert_allclose(rotation @ [0, -1, 0], [0, 1, 0], atol=1e-12)


def test_the_position_is_ten_times_the_pose():
    """nerfstudio's viewer shows its scene ten times enlarged."""
    pose = np.concatenate([np.eye(3), [[0.1], [-0.2], [0.3]]], axis=1)
    np.testing.assert_allclose(
        frustum_of(pose, (1.0, 1.0), (2, 2)).position, [1.0, -2.0, 3.0], atol=1e-12
    )


@pytest.mark.parametrize(
    ("focal", "size", "fov_degrees", "aspect"),
    [
        # 2 atan(90 / 90), 320 / 180
        ((90.0, 90.0), (320, 180), 90.0, 16 / 9),
        # 2 atan(160 / (160 sqrt 3)), 180 / 320: the vertical field of view of a portrait
        ((160 * math.sqrt(3), 160 * math.sqrt(3)), (180, 320), 60.0, 9 / 16),
        # Pixels that are twice as wide as high: half the focal length, twice the aspect.
        ((50.0, 100.0), (200, 200), 90.0, 2.0),
    ],
)
def test_field_of_view_is_vertical_and_aspect_that_of_the_picture(focal, size, fov_degrees, aspect):
    frustum = frustum_of(np.eye(3, 4), focal, size)
    assert math.degrees(frustum.fov) == pytest.approx(fov_degrees)
    assert frustum.aspect == pytest.approx(aspect)
