# SPDX-License-Identifier: Apache-2.0
"""Frames between two photographs, with the correspondence that made them."""

from ps4pro_nerfstudio.interpolation.network import PS4PRO
from ps4pro_nerfstudio.interpolation.protocol import FrameInterpolator, Interpolation

__all__ = ["PS4PRO", "FrameInterpolator", "Interpolation"]
