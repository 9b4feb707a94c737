# SPDX-License-Identifier: Apache-2.0
"""Tiny networks with random weights: the mechanics of a score prior, without any knowledge.

For tests and for checking an installation; nothing is learnt from what they say.
"""

from __future__ import annotations

from typing import Any

import torch

from ps4pro_nerfstudio.diffusion.libraries import take
from ps4pro_nerfstudio.diffusion.parts import DiffusionParts

TEXT_WIDTH = 32
_TOKENS = 77
_SEED = 0


def tiny_unet(in_channels: int) -> Any:
    """A `UNet2DConditionModel` of diffusers with about a million random weights."""
    return take("diffusers", "UNet2DConditionModel")(
        sample_size=8,
        in_channels=in_channels,
        out_channels=4,
        layers_per_block=1,
        block_out_channels=(32, 64),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=8,
    )


def tiny_vae() -> Any:
    """An `AutoencoderKL` of diffusers with random weights: 8 pixels per latent, 4 channels."""
    return take("diffusers", "AutoencoderKL")(
        block_out_channels=(16, 32, 32, 32),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        norm_num_groups=8,
        latent_channels=4,
    )


def training_schedule() -> Any:
    """The noise schedule that Stable Diffusion was trained with: 1000 steps, scaled linear."""
    return take("diffusers", "DDPMScheduler")(
        num_train_timesteps=1000,
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        prediction_type="epsilon",
        clip_sample=False,
    )


def tiny_parts() -> DiffusionParts:
    """Random networks and text, the same ones in each call; made for pictures of 64 pixels."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        return DiffusionParts(
            name="tiny-random",
            vae=tiny_vae(),
            inpainting_unet=tiny_unet(9),
            text_unet=tiny_unet(4),
            alphas_cumprod=training_schedule().alphas_cumprod,
            embeddings=torch.randn(2, _TOKENS, TEXT_WIDTH),
        )
