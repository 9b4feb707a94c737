# SPDX-License-Identifier: Apache-2.0
"""Time and memory of one score step with networks of Stable Diffusion 1.5's real size.

The weights are random: what a step costs depends on sizes, not on what was learnt.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch

from ps4pro_nerfstudio.diffusion.inpainting_score import (
    InpaintingScoreConfig,
    InpaintingScorePrior,
    resolve_dtype,
)
from ps4pro_nerfstudio.diffusion.libraries import take
from ps4pro_nerfstudio.diffusion.parts import DiffusionParts, cast
from ps4pro_nerfstudio.diffusion.tiny import training_schedule
from ps4pro_nerfstudio.messages import InputError

_TEXT_WIDTH = 768
_TOKENS = 77


@dataclass(frozen=True)
class StepCost:
    """What one score step takes."""

    device: str
    """Name of the GPU, or cpu."""
    dtype: str
    """Precision of VAE and UNets."""
    size: int
    """S: side in pixels of the picture that is scored."""
    parameters: int
    """Weights of the VAE and both UNets together."""
    milliseconds: float
    """Median wall-clock time of a step."""
    resident_gigabytes: float | None
    """GPU memory (10^9 bytes) of the networks alone; None without a GPU."""
    peak_gigabytes: float | None
    """Largest GPU memory (10^9 bytes) during a step, networks included; None without a GPU."""


def real_size_unet(in_channels: int) -> Any:
    """A UNet of Stable Diffusion 1.5's sizes with random weights, 860 million of them."""
    return take("diffusers", "UNet2DConditionModel")(
        sample_size=64,
        in_channels=in_channels,
        out_channels=4,
        layers_per_block=2,
        block_out_channels=(320, 640, 1280, 1280),
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        cross_attention_dim=_TEXT_WIDTH,
        attention_head_dim=8,
    )


def real_size_vae() -> Any:
    """A VAE of Stable Diffusion 1.5's sizes with random weights, 84 million of them."""
    return take("diffusers", "AutoencoderKL")(
        block_out_channels=(128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        latent_channels=4,
        sample_size=512,
    )


def real_size_parts(device: torch.device | str, dtype: torch.dtype) -> DiffusionParts:
    """Both denoisers with random weights, made on a device: 1.8 billion weights altogether."""
    with torch.device(device):
        return DiffusionParts(
            name="random weights of Stable Diffusion 1.5's size",
            vae=cast(real_size_vae(), dtype),
            inpainting_unet=cast(real_size_unet(9), dtype),
            text_unet=cast(real_size_unet(4), dtype),
            alphas_cumprod=training_schedule().alphas_cumprod,
            embeddings=torch.randn(2, _TOKENS, _TEXT_WIDTH),
        )


def step_cost(
    device: torch.device | str,
    config: InpaintingScoreConfig | None = None,
    *,
    repetitions: int = 5,
    image_size: tuple[int, int] = (378, 504),
    parts: DiffusionParts | None = None,
    seed: int = 0,
) -> StepCost:
    """Measure full score steps: both encodings, both denoisers, and the way back to the image.

    Args:
        device: where to compute.
        config: settings of the score; None: the defaults of training.
        repetitions: counted steps after one that is not counted; the median is reported.
        image_size: height and width in pixels of the scored image.
        parts: networks; None: random ones of the real size.
        seed: of the images and of the score's random numbers.

    Raises:
        InputError: fewer than one repetition, or not enough GPU memory.
        MissingPartError: diffusers is not installed.
    """
    if repetitions < 1:
        raise InputError(f"repetitions must be at least 1, got {repetitions}")
    device = torch.device(device)
    config = config or InpaintingScoreConfig()
    dtype = resolve_dtype(config, device)
    generator = torch.Generator().manual_seed(seed)
    try:
        parts = parts or real_size_parts("cpu" if config.cpu_offload else device, dtype)
        prior = InpaintingScorePrior(parts, config, device)
        image, warped = (torch.rand(3, *image_size, generator=generator) for _ in range(2))
        visible = torch.rand(image_size, generator=generator) > 0.5
        inputs = image.to(device), warped.to(device), visible.to(device)
        resident = gigabytes(device)
        times = []
        for _ in range(repetitions + 1):
            _settle(device)
            begin = time.perf_counter()
            prior.score(*inputs, generator)
            _settle(device)
            times.append(time.perf_counter() - begin)
            if len(times) == 1 and device.type == "cuda":
                # The first step also chooses algorithms, some of which take more memory.
                torch.cuda.reset_peak_memory_stats(device)
    except torch.cuda.OutOfMemoryError as error:
        raise InputError(
            "the score step does not fit into this GPU's memory; try cpu_offload, or a smaller size"
        ) from error
    networks = (parts.vae, parts.inpainting_unet, parts.text_unet)
    return StepCost(
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        dtype=str(dtype).removeprefix("torch."),
        size=config.size,
        parameters=sum(weight.numel() for net in networks for weight in net.parameters()),
        milliseconds=1e3 * sorted(times[1:])[repetitions // 2],
        resident_gigabytes=resident,
        peak_gigabytes=gigabytes(device, peak=True),
    )


def _settle(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def gigabytes(device: torch.device, peak: bool = False) -> float | None:
    """GPU memory (10^9 bytes) in use now, or at most since the last reset; None without a GPU."""
    if device.type != "cuda":
        return None
    used = torch.cuda.max_memory_allocated if peak else torch.cuda.memory_allocated
    return used(device) / 1e9
