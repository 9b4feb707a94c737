# SPDX-License-Identifier: Apache-2.0
"""The networks of a score prior, and whether they belong together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ps4pro_nerfstudio.messages import InputError

Prediction = Literal["epsilon", "v_prediction"]
"""What a denoiser puts out: the noise, or the velocity between noise and picture."""

LATENT_CHANNELS = 4


@dataclass
class DiffusionParts:
    """Two denoisers that share an encoder, a noise schedule and a prompt.

    The networks are called as those of diffusers and described by a `config` as theirs are.
    """

    name: str
    """What to call them in logs and errors: hub ids with revisions, or folders."""
    vae: Any
    """Encoder of pictures [B, 3, S, S] in [-1, 1]: an `AutoencoderKL`."""
    inpainting_unet: Any
    """Denoiser of 9 channels: noisy latents, hole mask, latents of the masked picture."""
    text_unet: Any
    """Denoiser of 4 channels: noisy latents."""
    alphas_cumprod: Tensor
    """[T] alpha_bar of each time step, falling."""
    embeddings: Tensor
    """[2, L, D] encoded text: the negative or empty prompt, then the prompt."""
    inpainting_prediction: Prediction = "epsilon"
    """What the inpainting denoiser puts out."""
    text_prediction: Prediction = "epsilon"
    """What the text denoiser puts out."""


def cast(network: Any, dtype: torch.dtype) -> Any:
    """Convert a network's weights in place and return it."""
    # The override of diffusers warns of layers that stay in float32 even where there are none.
    return torch.nn.Module.to(network, dtype)


def vae_factor(vae_config: Any) -> int:
    """Pixels per latent along a side: each block of the encoder but the last halves the picture."""
    return 2 ** (len(vae_config.block_out_channels) - 1)


def check_channels(name: str, inpainting: int, text: int, latents: int) -> None:
    """Refuse networks of which one does not take what another one makes.

    Args:
        name: what to call them in errors.
        inpainting: channels that the inpainting UNet takes.
        text: channels that the text UNet takes.
        latents: channels of the VAE's latents.

    Raises:
        InputError: a wrong number of channels; names what was found.
    """
    wanted = (
        ("inpainting", inpainting, 2 * LATENT_CHANNELS + 1, "inpainting"),
        ("text", text, LATENT_CHANNELS, "ordinary text-to-image"),
    )
    for role, found, channels, kind in wanted:
        if found != channels:
            raise InputError(
                f"{name}: the {role} UNet takes {found} channels instead of {channels}; "
                f"give an {kind} model there"
            )
    if latents != LATENT_CHANNELS:
        raise InputError(
            f"{name}: the VAE has {latents} latent channels, the UNets take {LATENT_CHANNELS}"
        )


def check_parts(parts: DiffusionParts, size: int) -> None:
    """Refuse networks that cannot work together on pictures of size x size pixels.

    Raises:
        InputError: wrong number of channels, width of the text, VAE or size; names what was found.
    """
    vae, inpainting, text = (
        network.config for network in (parts.vae, parts.inpainting_unet, parts.text_unet)
    )
    check_channels(parts.name, inpainting.in_channels, text.in_channels, vae.latent_channels)
    width = parts.embeddings.shape[-1]
    for role, unet in (("inpainting", inpainting), ("text", text)):
        found = unet.cross_attention_dim
        if found != width:
            raise InputError(
                f"{parts.name}: the {role} UNet reads text of width {found}, but the text encoder "
                f"writes {width}; both UNets must be of the family of the inpainting text encoder"
            )
    factor = vae_factor(vae)
    if size <= 0 or size % factor:
        raise InputError(
            f"size {size} is not a multiple of {factor}, the factor of the VAE of {parts.name}"
        )
