# SPDX-License-Identifier: Apache-2.0
"""Pictures of views as the viewer shows them: small, and inside Markdown as data URIs.

Images are uint8 RGB [H, W, 3].
"""

from __future__ import annotations

import base64

import cv2
import numpy as np
from numpy.typing import NDArray

_JPEG_QUALITY = 85


def shrink(image: NDArray[np.uint8], longest: int) -> NDArray[np.uint8]:
    """Image with at most `longest` pixels along its longer side; never enlarged."""
    height, width = image.shape[:2]
    factor = min(1.0, longest / max(height, width))
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)  # type: ignore[return-value]


def confidence_picture(confidence: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Colours [H, W, 3] of a confidence [H, W]: black where it is 0, then viridis up to 255."""
    colours = cv2.cvtColor(cv2.applyColorMap(confidence, cv2.COLORMAP_VIRIDIS), cv2.COLOR_BGR2RGB)
    colours[confidence == 0] = 0
    return colours  # type: ignore[return-value]


def data_uri(image: NDArray[np.uint8]) -> str:
    """The image as a JPEG data URI."""
    bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    _, jpeg = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
    return "data:image/jpeg;base64," + base64.b64encode(jpeg.tobytes()).decode("ascii")
