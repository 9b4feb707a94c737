# SPDX-License-Identifier: Apache-2.0
"""What the shipped network can do, on a few pairs of the set that its card reports on."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch

from ps4pro_nerfstudio.interpolation.network import PS4PRO
from ps4pro_nerfstudio.interpolation.optical_flow import OpticalFlowInterpolator
from ps4pro_nerfstudio.interpolation.protocol import Interpolation
from ps4pro_nerfstudio.training.view_pairs import measure, summarise, view_pairs


@pytest.fixture(scope="module")
def network() -> PS4PRO:
    return PS4PRO.from_pretrained("ps4pro-small")


def _photograph(x: float = 0.0, y: float = 0.0) -> torch.Tensor:
    """Smooth random colours [1, 3, 128, 160], shifted by (x, y) pixels."""
    noise = np.random.default_rng(5).random((192, 224, 3), np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), 2.5)
    smooth = np.clip(0.5 + 0.2 * (smooth - smooth.mean()) / smooth.std(), 0.0, 1.0)
    columns, rows = np.meshgrid(np.arange(160.0) + 32 - x, np.arange(128.0) + 32 - y)
    moved = cv2.remap(smooth, columns.astype(np.float32), rows.astype(np.float32), cv2.INTER_CUBIC)
    return torch.from_numpy(np.clip(moved, 0.0, 1.0)).permute(2, 0, 1)[None].contiguous()


@torch.inference_mode()
def _run(network: PS4PRO, a: torch.Tensor, b: torch.Tensor, t: float) -> Interpolation:
    return network(a, b, t)


def test_shipped_file_is_small(network: PS4PRO) -> None:
    assert sum(parameter.numel() for parameter in network.parameters()) <= 3_000_000


def test_equal_frames_stay_what_they_are(network: PS4PRO) -> None:
    frame = _photograph()
    error = (_run(network, frame, frame, 0.5).image - frame).square().mean()
    assert float(-10.0 * torch.log10(error)) > 45.0


@pytest.mark.parametrize("shift", [(4.0, 0.0), (-6.5, 3.0)])
def test_translation_is_recovered_to_a_tenth_of_a_pixel(
    network: PS4PRO, shift: tuple[float, float]
) -> None:
    """Median over the interior; F_t1 - F_t0 is the whole motion: the flows are consistent."""
    result = _run(network, _photograph(), _photograph(*shift), 0.5)
    wanted = torch.tensor(shift)[None, :, None, None]
    inside = (..., slice(16, -16), slice(16, -16))
    for found, truth in (
        (result.flow_t0, -0.5 * wanted),
        (result.flow_t1, 0.5 * wanted),
        (result.flow_t1 - result.flow_t0, wanted),
    ):
        error = (found - truth)[inside].norm(dim=1)
        assert float(error.median()) < 0.1


def test_exchanging_the_frames_reverses_time(network: PS4PRO) -> None:
    """Not built in, but learned: the images differ by less than .5 % on average."""
    a, b = _photograph(), _photograph(5.0, -2.0)
    one, other = _run(network, a, b, 0.3), _run(network, b, a, 0.7)
    assert float((one.image - other.image).abs().mean()) < 0.005
    assert float((one.flow_t0 - other.flow_t1).norm(dim=1).median()) < 0.1
    assert float((one.mask - (1.0 - other.mask)).abs().mean()) < 0.05


def test_view_pairs_of_ten_degrees_are_better_than_with_optical_flow(network: PS4PRO) -> None:
    """The first room of the set; the card has the figures of all of it."""
    pairs = view_pairs(None, (10.0,), lambda wanted: wanted[:4])
    figures = {
        name: summarise([measure(pair, interpolator) for pair in pairs])
        for name, interpolator in (("learned", network), ("flow", OpticalFlowInterpolator()))
    }
    assert figures["learned"]["psnr"] > figures["flow"]["psnr"] + 0.7
    assert figures["learned"]["psnr_edges"] > figures["flow"]["psnr_edges"]
    assert figures["learned"]["flow_error_px"] < 0.8 * figures["flow"]["flow_error_px"]
    assert figures["learned"]["auc_error"] >= 0.85
    assert figures["learned"]["auc_occlusion"] >= 0.8
