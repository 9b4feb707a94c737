# SPDX-License-Identifier: Apache-2.0
"""The cost of a step: real sizes without building them, and the measurement on tiny networks."""

from __future__ import annotations

import pytest
import torch

from ps4pro_nerfstudio.diffusion.cost import real_size_unet, real_size_vae, step_cost
from ps4pro_nerfstudio.diffusion.inpainting_score import InpaintingScoreConfig
from ps4pro_nerfstudio.messages import InputError
from tests.diffusion.conftest import fake_config, fake_parts


def test_networks_have_the_published_numbers_of_weights() -> None:
    """Those of Stable Diffusion 1.5; each of 5 more input channels has 320 * 9 weights."""
    pytest.importorskip("diffusers")
    with torch.device("meta"):
        counts = [
            sum(weight.numel() for weight in network.parameters())
            for network in (real_size_unet(4), real_size_unet(9), real_size_vae())
        ]
    assert counts == [859_520_964, 859_520_964 + 5 * 320 * 9, 83_653_863]


def test_a_step_is_measured() -> None:
    parts = fake_parts()
    cost = step_cost("cpu", fake_config(), repetitions=3, image_size=(24, 40), parts=parts)
    assert len(parts.text_unet.calls) == 4  # One is not counted.
    assert cost.milliseconds > 0
    assert (cost.device, cost.dtype, cost.size) == ("cpu", "float32", 32)
    assert cost.parameters == 14
    assert cost.peak_gigabytes is None


def test_no_repetition_is_refused() -> None:
    with pytest.raises(InputError, match="repetitions"):
        step_cost("cpu", InpaintingScoreConfig(), repetitions=0)
