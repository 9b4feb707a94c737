# SPDX-License-Identifier: Apache-2.0
"""Image metrics over valid pixels: PSNR, SSIM, and LPIPS where its weights are."""

from ps4pro_nerfstudio.metrics.image import psnr, ssim
from ps4pro_nerfstudio.metrics.lpips import LazyLPIPS

__all__ = ["LazyLPIPS", "psnr", "ssim"]
