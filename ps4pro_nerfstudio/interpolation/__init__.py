# SPDX-License-Identifier: Apache-2.0
"""Frames between two photographs, with the correspondence that made them."""

from ps4pro_nerfstudio.interpolation.protocol import FrameInterpolator, Interpolation

__all__ = ["FrameInterpolator", "Interpolation"]
