# SPDX-License-Identifier: Apache-2.0
"""What a running training adds to nerfstudio's viewer: pseudo views, their weight, view losses."""
