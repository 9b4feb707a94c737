# SPDX-License-Identifier: Apache-2.0
"""Pure functions on cameras, planes, epipolar lines and windows; no nerfstudio state."""
