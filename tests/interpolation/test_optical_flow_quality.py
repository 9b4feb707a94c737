# SPDX-License-Identifier: Apache-2.0
"""The quality floor of interpolation without weights, on the public triplets where they are."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from ps4pro_nerfstudio.interpolation.optical_flow import OpticalFlowInterpolator
from ps4pro_nerfstudio.interpolation.protocol import FrameInterpolator


def _triplets(name: str) -> list[Path]:
    beside_checkout = Path(__file__).resolve().parents[2].parent / "shared" / "data"
    root = Path(os.environ.get("PS4PRO_BENCH_DATA", beside_checkout)) / "interpolation" / name
    if not root.is_dir():
        pytest.skip(f"no {name}: set PS4PRO_BENCH_DATA to the folder that has interpolation/{name}")
    return sorted(path for path in root.iterdir() if path.is_dir())


def _mean_psnr(interpolator: FrameInterpolator, triplets: list[Path]) -> float:
    import cv2

    values = []
    for folder in triplets:
        images = []
        for index in range(3):
            (path,) = folder.glob(f"frame{index}.*")
            bgr = cv2.imread(str(path))
            images.append(torch.from_numpy(bgr[..., ::-1].copy()).permute(2, 0, 1)[None] / 255.0)
        image = interpolator(images[0], images[2], 0.5).image
        error = (image * 255.0).round() - (images[1] * 255.0).round()
        values.append(10.0 * np.log10(255.0**2 / error.double().square().mean().item()))
    return float(np.mean(values))


def test_middlebury_psnr_reaches_the_floor() -> None:
    """Bilinear blend of the same flow: 34.8 dB; measured with sharp resampling: 36.0 dB."""
    triplets = _triplets("eval_middlebury")
    assert _mean_psnr(OpticalFlowInterpolator(), triplets) >= 35.5


def test_davis_psnr_reaches_the_floor_on_every_fourth_triplet() -> None:
    """All 40 triplets: 26.07 dB; every fourth, to keep the test short: 25.00 dB."""
    assert _mean_psnr(OpticalFlowInterpolator(), _triplets("eval_davis")[::4]) >= 24.9
