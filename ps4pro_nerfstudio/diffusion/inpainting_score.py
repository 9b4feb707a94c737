# SPDX-License-Identifier: Apache-2.0
"""The score prior of IPSM (arXiv 2412.02225): an inpainting and a text-only Stable Diffusion.

The render is encoded once. Both UNets judge its noised latents without building a graph; the
gradient of the latents then goes back through the encoder alone. The formulas are in `score`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ps4pro_nerfstudio.diffusion.parts import DiffusionParts, Prediction, cast, check_parts
from ps4pro_nerfstudio.diffusion.protocol import Score
from ps4pro_nerfstudio.diffusion.score import (
    SecondTermSign,
    add_noise,
    guide,
    hole_mask,
    latent_holes,
    masked_picture,
    noise_from_velocity,
    resize_picture,
    score_loss,
    score_terms,
)
from ps4pro_nerfstudio.messages import InputError, warn

_MANY_DROPPED = 10
"""Gradients that overflow at first only make the loss scale smaller; so many are no accident."""
_FLOAT32 = "--pipeline.model.score.dtype float32 is slower and has room for it"


@dataclass
class InpaintingScoreConfig:
    """The score term of IPSM; `guidance`, `w1` and `w2` may change while training runs."""

    family: Literal["sd-1.5", "sd-2"] = "sd-1.5"
    """Which Stable Diffusion to look for when no folder is given; the paper uses 1.5."""
    variant: Literal["auto", "fp16", "full"] = "auto"
    """Which weights files to read where both kinds are there; auto: half-precision ones for a
    half-precision `dtype`, otherwise full ones."""
    dtype: Literal["auto", "float16", "bfloat16", "float32"] = "auto"
    """Precision of VAE and UNets; auto: float16 on CUDA, float32 elsewhere."""
    cpu_offload: bool = False
    """Keep the UNets in the computer's memory and move each to the GPU for its pass: half the GPU
    memory, slower."""
    size: int = 512
    """S: side in pixels of the square that the render is resized to, a multiple of 8."""
    guidance: float = 7.5
    """g: classifier-free guidance of both denoisers; 1 uses the prompt alone."""
    t_min: float = 0.25
    """Smallest time step as a share of all (250 of 1000); larger: coarser changes."""
    t_max: float = 0.75
    """Largest time step as a share of all, exclusive."""
    w1: float = 0.2
    """Weight of G1, the pull to the inpainted photograph; the paper's lambda_IPSM * eta_r."""
    w2: float = 2.0
    """Weight of G2, which ties the inpainted photograph to the text; the paper's lambda_IPSM."""
    g2_sign: SecondTermSign = "code"
    """Sign of G2: code, as released (away from text alone), or paper, as its equation (towards)."""
    vae_encodes: Literal[1, 2] = 1
    """Encodings of the render: 1, shared; 2, one per term, as the released code does. The UNets
    see the first one."""
    prompt: str = ""
    """What the scene shows, in one sentence; with ", realistic, 8k" after it, it is the prompt y.
    Empty: what BLIP says of the first photograph where its weights are on this machine (`ps4pro
    fetch-weights ipsm --parts caption`), else "a photography of a scene, realistic, 8k"."""
    negative_prompt: str = ""
    """Text of the unconditional branch; the paper's results use none."""
    loss_scale: float = 64.0
    """Lambda: factor on the gradient inside the VAE, so that half precision does not lose it;
    halved by itself when a value overflows."""
    inpainting_revision: str = "main"
    """Revision of the inpainting weights on the Hugging Face hub: a branch, tag or commit id."""
    text_revision: str = "main"
    """Revision of the text-to-image weights on the Hugging Face hub."""
    caption_revision: str = "main"
    """Revision of BLIP's weights on the Hugging Face hub."""


def resolve_dtype(config: InpaintingScoreConfig, device: torch.device) -> torch.dtype:
    """The precision that a config means on a device."""
    if config.dtype == "auto":
        return torch.float16 if device.type == "cuda" else torch.float32
    return getattr(torch, config.dtype)


class InpaintingScorePrior:
    """Scores renders with frozen networks; see `ScorePrior`.

    Args:
        parts: the networks; they are frozen and moved to `device` here.
        config: settings, kept by reference.
        device: where to compute.

    Raises:
        InputError: networks that do not belong together, or settings out of range.
    """

    def __init__(
        self, parts: DiffusionParts, config: InpaintingScoreConfig, device: torch.device | str
    ):
        check_parts(parts, config.size)
        _check_config(config, len(parts.alphas_cumprod))
        self.config = config
        self.device = torch.device(device)
        self._dtype = resolve_dtype(config, self.device)
        self._parts = parts
        self._loss_scale = config.loss_scale
        self._num_dropped = 0
        self._warned_of_denoiser = False
        self._offload = config.cpu_offload and self.device.type != "cpu"
        for network in (parts.vae, parts.inpainting_unet, parts.text_unet):
            network.requires_grad_(False).eval()
            keep_off = self._offload and network is not parts.vae
            cast(network, self._dtype).to("cpu" if keep_off else self.device)
        self._embeddings = parts.embeddings.to(self.device, self._dtype)
        self._alphas_cumprod = parts.alphas_cumprod.to("cpu", torch.float32)

    @property
    def name(self) -> str:
        """Which weights these are."""
        return self._parts.name

    def score(
        self, image: Tensor, warped: Tensor, visible: Tensor, generator: torch.Generator
    ) -> Score:
        """See `ScorePrior.score`. Random numbers are drawn where the generator lives.

        Where the gradient or the value overflows, both are returned as zero, and later gradients
        are scaled less. Values of the image outside of [0, 1] get none: the VAE has never seen such
        pictures.
        """
        config = self.config
        leaf = image.detach().to(self.device, torch.float32).requires_grad_(True)
        # Neither the caller's autocast nor its no_grad may reach the encoder.
        with torch.autocast(self.device.type, enabled=False), torch.enable_grad():
            square = 2.0 * resize_picture(leaf.clamp(0.0, 1.0), config.size) - 1.0
            encodings = [self._encode(square, generator) for _ in range(config.vae_encodes)]
            with torch.no_grad():
                holes = hole_mask(visible.to(self.device), config.size)
                shown = self._encode(masked_picture(warped.to(self.device), holes), generator)
                first, second = self._terms(encodings[0], shown, holes, generator)
                first, second = config.w1 * first, config.w2 * second
                terms = [first + second] if len(encodings) == 1 else [first, second]
                pairs = zip(encodings, terms, strict=True)
                value = torch.stack([score_loss(*pair) for pair in pairs]).sum()
            scale = self._loss_scale
            (gradient,) = torch.autograd.grad(encodings, leaf, [scale * term for term in terms])
        gradient = gradient / (scale * encodings[0].numel())
        if not bool(torch.isfinite(gradient).all() & torch.isfinite(value)):
            self._loss_scale = max(0.5 * scale, 1.0)
            gradient, value = torch.zeros_like(gradient), torch.zeros_like(value)
            self._num_dropped += 1
            if self._num_dropped == _MANY_DROPPED:
                warn(
                    f"the score prior's gradient overflowed {_MANY_DROPPED} times and was left out "
                    f"then; {_FLOAT32}"
                )
        return Score(gradient.to(image.device), value.to(image.device))

    def _encode(self, picture: Tensor, generator: torch.Generator) -> Tensor:
        """A sample of the latents of a picture [1, 3, S, S] in [-1, 1], float32."""
        posterior = self._parts.vae.encode(picture.to(self._dtype)).latent_dist
        mean = posterior.mean.float()
        sample = mean + posterior.std.float() * self._normal(mean.shape, generator)
        return self._parts.vae.config.scaling_factor * sample

    def _terms(
        self, latents: Tensor, shown: Tensor, holes: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """G1 and G2 at a random time step, without their weights."""
        config, parts = self.config, self._parts
        steps = len(self._alphas_cumprod)
        bounds = int(config.t_min * steps), int(config.t_max * steps)
        where = generator.device
        step = int(torch.randint(*bounds, (1,), generator=generator, device=where).item())
        alpha_bar = float(self._alphas_cumprod[step])
        noise = self._normal(latents.shape, generator)
        noisy = add_noise(latents, noise, alpha_bar)
        mask = latent_holes(holes, (latents.shape[-2], latents.shape[-1]))
        inpainting = self._predict(
            parts.inpainting_unet,
            parts.inpainting_prediction,
            (noisy, mask, shown),
            step,
            alpha_bar,
        )
        text = self._predict(parts.text_unet, parts.text_prediction, (noisy,), step, alpha_bar)
        return score_terms(inpainting, text, noise, alpha_bar, config.g2_sign)

    def _predict(
        self,
        unet: Any,
        prediction: Prediction,
        inputs: tuple[Tensor, ...],
        step: int,
        alpha_bar: float,
    ) -> Tensor:
        """Noise that a denoiser sees in `inputs`, the first of which are the noisy latents."""
        batch = torch.cat(inputs, dim=1).to(self._dtype).repeat(2, 1, 1, 1)
        with self._loaded(unet):
            time = torch.tensor(step, device=self.device)
            output = unet(batch, time, encoder_hidden_states=self._embeddings).sample.float()
        self._warn_of_denoiser(batch, output)
        if prediction == "v_prediction":
            output = noise_from_velocity(output, inputs[0], alpha_bar)
        return guide(output, self.config.guidance)

    def _warn_of_denoiser(self, batch: Tensor, output: Tensor) -> None:
        """Say once that a denoiser spoils what it is given."""
        if self._warned_of_denoiser or bool(torch.isfinite(output).all()):
            return
        if bool(torch.isfinite(batch).all()):
            self._warned_of_denoiser = True
            is_exact = self._dtype == torch.float32
            advice = "its weights are broken, fetch them anew" if is_exact else _FLOAT32
            warn(
                f"a denoiser of the score prior {self.name} gives values that are not finite, "
                f"which are left out; {advice}"
            )

    @contextmanager
    def _loaded(self, unet: Any) -> Iterator[None]:
        if not self._offload:
            yield
            return
        unet.to(self.device)
        try:
            yield
        finally:
            unet.to("cpu")

    def _normal(self, shape: torch.Size, generator: torch.Generator) -> Tensor:
        return torch.randn(shape, generator=generator, device=generator.device).to(self.device)


def _check_config(config: InpaintingScoreConfig, num_steps: int) -> None:
    """Refuse settings that leave nothing to draw from.

    Raises:
        InputError: names the setting.
    """
    if not 0 <= int(config.t_min * num_steps) < int(config.t_max * num_steps) <= num_steps:
        raise InputError(
            f"t_min {config.t_min} and t_max {config.t_max} must satisfy 0 <= t_min < t_max <= 1"
        )
    if config.loss_scale <= 0.0:
        raise InputError(f"loss_scale must be above 0, got {config.loss_scale}")
