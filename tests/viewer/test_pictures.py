# SPDX-License-Identifier: Apache-2.0
"""Pictures for the viewer."""

from __future__ import annotations

import base64

import cv2
import numpy as np

from ps4pro_nerfstudio.viewer.pictures import confidence_picture, data_uri, shrink


def test_shrinking_keeps_the_aspect_and_never_enlarges():
    assert shrink(np.zeros((100, 400, 3), np.uint8), 120).shape == (30, 120, 3)
    assert shrink(np.zeros((400, 100, 3), np.uint8), 120).shape == (120, 30, 3)
    assert shrink(np.zeros((20, 10, 3), np.uint8), 120).shape == (20, 10, 3)
    assert shrink(np.zeros((1, 1000, 3), np.uint8), 10).shape == (1, 10, 3)


def test_confidence_is_black_at_zero_and_brighter_with_more():
    colours = confidence_picture(np.array([[0, 1, 64, 128, 255]], np.uint8))
    luminance = colours[0] @ [0.2126, 0.7152, 0.0722]
    assert luminance[0] == 0
    assert (np.diff(luminance) > 0).all()


def test_a_data_uri_holds_the_picture_with_its_channels_in_order():
    image = np.full((16, 16, 3), (200, 100, 50), np.uint8)
    head, body = data_uri(image).split(",")
    assert head == "data:image/jpeg;base64"
    decoded = cv2.imdecode(np.frombuffer(base64.b64decode(body), np.uint8), cv2.IMREAD_COLOR)
    np.testing.assert_allclose(decoded[8, 8, ::-1], [200, 100, 50], atol=4)
