# SPDX-License-Identifier: Apache-2.0
"""Gaussian splatting on any machine: gsplat's kernels on CUDA, compiled kernels of ours elsewhere.

`rasterization` has gsplat's signature and return. Importing this package imports neither numba nor
gsplat; the first call does.
"""

from ps4pro_nerfstudio.splatting.api import chosen_rasterizer, rasterization

__all__ = ["chosen_rasterizer", "rasterization"]
