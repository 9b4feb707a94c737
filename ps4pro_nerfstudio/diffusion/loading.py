# SPDX-License-Identifier: Apache-2.0
"""Reads the two denoisers from folders; nothing is downloaded here."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from ps4pro_nerfstudio.diffusion.captions import GENERIC_PROMPT
from ps4pro_nerfstudio.diffusion.catalogue import Network
from ps4pro_nerfstudio.diffusion.inpainting_score import InpaintingScoreConfig, resolve_dtype
from ps4pro_nerfstudio.diffusion.libraries import explained, take
from ps4pro_nerfstudio.diffusion.parts import (
    DiffusionParts,
    Prediction,
    check_channels,
    vae_factor,
)
from ps4pro_nerfstudio.messages import InputError

_CLASSES = (
    ("diffusers", "AutoencoderKL"),
    ("diffusers", "UNet2DConditionModel"),
    ("diffusers", "DDPMScheduler"),
    ("transformers", "CLIPTextModel"),
    ("transformers", "CLIPTokenizer"),
)
"""What is taken from the libraries here."""
_PREDICTIONS: tuple[Prediction, ...] = ("epsilon", "v_prediction")


def check_folders(inpainting: Path, text: Path, name: str) -> None:
    """Refuse what cannot be loaded or does not fit, as far as small files tell; takes seconds.

    Args:
        inpainting: as for `load_parts`.
        text: as for `load_parts`.
        name: what to call them in errors.

    Raises:
        MissingPartError: a library is absent or broken.
        InputError: a folder that cannot be read, or two that do not fit together.
    """
    for package, kind in _CLASSES:
        take(package, kind)
    vae = _sizes(inpainting / "vae")
    # What a file leaves out has the default of diffusers.
    check_channels(
        name,
        inpainting=_sizes(inpainting / "unet").get("in_channels", 4),
        text=_sizes(text / "unet").get("in_channels", 4),
        latents=vae.get("latent_channels", 4),
    )
    other = text / "vae"
    if not (other / "config.json").is_file():
        return
    ours, theirs = _latents_of(vae), _latents_of(_sizes(other))
    if ours != theirs:
        raise InputError(
            f"{name}: the VAEs of the two denoisers differ (pixels per latent and scaling {ours} "
            f"for inpainting, {theirs} for text); take both from one family"
        )


def _sizes(network: Path) -> dict[str, Any]:
    """The config.json of a network's folder."""
    with explained(network):
        return dict(json.loads((network / "config.json").read_text()))


def _latents_of(vae: dict[str, Any]) -> tuple[int, float]:
    """Pixels per latent along a side, and the factor on the latents."""
    blocks = SimpleNamespace(block_out_channels=vae.get("block_out_channels", (64,)))
    return vae_factor(blocks), vae.get("scaling_factor", 0.18215)


def load_parts(
    inpainting: Path, text: Path, name: str, config: InpaintingScoreConfig, device: torch.device
) -> DiffusionParts:
    """Read both denoisers, encode the prompt, and drop what encoded it.

    What `check_folders` refuses is not looked for again.

    Args:
        inpainting: folder in diffusers' layout: unet, vae, text_encoder, tokenizer, scheduler.
        text: the same, of which unet and scheduler are read.
        name: what to call them in logs and errors.
        config: prompts, precision and variant.
        device: where the prompt is encoded.

    Raises:
        InputError: a folder that cannot be read, or two that do not fit together.
    """
    dtype = resolve_dtype(config, device)
    schedule, inpainting_prediction = _schedule(inpainting)
    other_schedule, text_prediction = _schedule(text)
    if schedule.shape != other_schedule.shape or not torch.allclose(schedule, other_schedule):
        raise InputError(
            f"{name}: the two denoisers were trained with different noise schedules; "
            "take both from one family"
        )
    return DiffusionParts(
        name=name,
        embeddings=_encode_prompt(inpainting, config, device),
        vae=_network("AutoencoderKL", inpainting, "vae", config, dtype),
        inpainting_unet=_network("UNet2DConditionModel", inpainting, "unet", config, dtype),
        text_unet=_network("UNet2DConditionModel", text, "unet", config, dtype),
        alphas_cumprod=schedule,
        inpainting_prediction=inpainting_prediction,
        text_prediction=text_prediction,
    )


def _network(
    kind: str, folder: Path, sub_folder: str, config: InpaintingScoreConfig, dtype: torch.dtype
) -> Any:
    network = Network(sub_folder, "diffusion_pytorch_model")
    loader = take("diffusers", kind)
    with explained(folder / sub_folder):
        return loader.from_pretrained(
            folder,
            subfolder=sub_folder,
            variant=_variant(network, folder, config, dtype),
            torch_dtype=dtype,
            use_safetensors=True,
            local_files_only=True,
        )


def _variant(
    network: Network, folder: Path, config: InpaintingScoreConfig, dtype: torch.dtype
) -> str | None:
    """The variant as the libraries name it: None for the full one."""
    preferred = config.variant
    if preferred == "auto":
        preferred = "full" if dtype == torch.float32 else "fp16"
    return "fp16" if network.present(folder, preferred) == "fp16" else None


def _schedule(folder: Path) -> tuple[Tensor, Prediction]:
    """alpha_bar [T] of a part's noise schedule, and what its denoiser puts out."""
    loader = take("diffusers", "DDPMScheduler")
    with explained(folder / "scheduler"):
        scheduler = loader.from_pretrained(folder, subfolder="scheduler", local_files_only=True)
    prediction = scheduler.config.prediction_type
    if prediction not in _PREDICTIONS:
        raise InputError(
            f"{folder}: a denoiser that predicts '{prediction}' cannot be used; "
            f"known: {', '.join(_PREDICTIONS)}"
        )
    return scheduler.alphas_cumprod, prediction


def _encode_prompt(folder: Path, config: InpaintingScoreConfig, device: torch.device) -> Tensor:
    """[2, L, D] float32: the negative prompt, then the prompt. The encoder is freed on return."""
    text_model = take("transformers", "CLIPTextModel")
    tokenizer_of = take("transformers", "CLIPTokenizer")
    network = Network("text_encoder", "model")
    with explained(folder / "tokenizer"):
        tokenizer = tokenizer_of.from_pretrained(folder / "tokenizer", local_files_only=True)
    with explained(folder / "text_encoder"):
        encoder = text_model.from_pretrained(
            folder / "text_encoder",
            variant=_variant(network, folder, config, torch.float32),
            use_safetensors=True,
            local_files_only=True,
        )
    encoder.float().to(device).eval()
    tokens = tokenizer(
        [config.negative_prompt, config.prompt or GENERIC_PROMPT],
        padding="max_length",
        max_length=encoder.config.max_position_embeddings,
        truncation=True,
        return_tensors="pt",
    )
    with torch.no_grad():
        return encoder(tokens.input_ids.to(device)).last_hidden_state
