# SPDX-License-Identifier: Apache-2.0
"""Mathematics of inline-prior score matching: IPSM (arXiv 2412.02225), section 3.

Notation. z latents of the render [B, C, h, w]; t a time step with cumulative product alpha_bar of
the noise schedule; z_t = sqrt(alpha_bar) z + sqrt(1 - alpha_bar) noise. Two denoisers predict the
noise: one filled in from a masked picture (inpainting), one from text only. Masks: `visible` is
true where the warped photograph explains a pixel; a hole, 1, is what the inpainting denoiser fills.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

SecondTermSign = Literal["code", "paper"]


def add_noise(
    latents: Tensor,  # [B, C, h, w]
    noise: Tensor,  # [B, C, h, w]
    alpha_bar: Tensor | float,
) -> Tensor:  # [B, C, h, w]
    """z_t of the forward process; the latents at alpha_bar = 1, the noise at 0."""
    alpha_bar = torch.as_tensor(alpha_bar, dtype=latents.dtype, device=latents.device)
    return alpha_bar.sqrt() * latents + (1.0 - alpha_bar).sqrt() * noise


def noise_from_velocity(
    velocity: Tensor,  # [B, C, h, w]
    noisy: Tensor,  # [B, C, h, w] z_t
    alpha_bar: Tensor | float,
) -> Tensor:  # [B, C, h, w]
    """Noise that a denoiser means which predicts v = sqrt(alpha_bar) noise - sqrt(1-alpha_bar) z.

    Exact: the v of a known z and noise gives that noise back.
    """
    alpha_bar = torch.as_tensor(alpha_bar, dtype=noisy.dtype, device=noisy.device)
    return alpha_bar.sqrt() * velocity + (1.0 - alpha_bar).sqrt() * noisy


def guide(
    predictions: Tensor,  # [2, ...] without text, with text
    guidance: float,
) -> Tensor:  # [1, ...]
    """Classifier-free guidance: the prediction with text at g = 1, the one without at g = 0."""
    without_text, with_text = predictions.chunk(2)
    if guidance == 1.0:  # The sum below would only round it.
        return with_text
    return without_text + guidance * (with_text - without_text)


def score_terms(
    inpainting: Tensor,  # [B, C, h, w] noise predicted from the masked photograph
    text: Tensor,  # [B, C, h, w] noise predicted from text only
    noise: Tensor,  # [B, C, h, w] noise that was added
    alpha_bar: Tensor | float,
    sign: SecondTermSign,
) -> tuple[Tensor, Tensor]:  # G1, G2: [B, C, h, w] each
    """Both gradients of the latents, with the weight omega(t) = alpha_bar; NaN becomes 0.

    A step against G1 goes to what the photograph implies. A step against G2 goes away from what
    text alone implies with the sign of the released code, and towards it with that of the paper's
    equation; with the latter G1 + G2 is the gradient of plain score distillation.
    """
    first = alpha_bar * (inpainting - noise)
    second = alpha_bar * (inpainting - text if sign == "code" else text - inpainting)
    return torch.nan_to_num(first), torch.nan_to_num(second)


def score_loss(
    latents: Tensor,  # any shape
    gradient: Tensor,  # as latents
) -> Tensor:  # []
    """Half the mean of (z - sg(z - G))^2, whose gradient in the N latents is G / N."""
    return 0.5 * (latents - (latents - gradient).detach()).square().mean()


def resize_picture(
    picture: Tensor,  # [C, H, W]
    size: int,  # pixels
) -> Tensor:  # [1, C, size, size]
    """Bilinear, to a square whatever the aspect ratio."""
    return F.interpolate(picture[None], (size, size), mode="bilinear", align_corners=False)


def hole_mask(
    visible: Tensor,  # [H, W] bool
    size: int,  # pixels
) -> Tensor:  # [1, 1, size, size] float32 in {0, 1}
    """1 where more than half of the resampled pixel is not visible."""
    hidden = (~visible).to(torch.float32)[None]
    return (resize_picture(hidden, size) > 0.5).to(torch.float32)


def masked_picture(
    warped: Tensor,  # [3, H, W] in [0, 1]
    holes: Tensor,  # [1, 1, size, size] in {0, 1}
) -> Tensor:  # [1, 3, size, size] in [-1, 1]
    """What the inpainting denoiser is shown: holes are 0, mid-grey, whatever was in them."""
    picture = resize_picture(torch.nan_to_num(warped).clamp(0.0, 1.0), holes.shape[-1])
    return (2.0 * picture - 1.0) * (1.0 - holes)


def latent_holes(
    holes: Tensor,  # [1, 1, S, S] in {0, 1}
    latent_size: tuple[int, int],
) -> Tensor:  # [1, 1, h, w] in {0, 1}
    """The holes at the resolution of the latents: nearest, hence still 0 or 1."""
    return F.interpolate(holes, latent_size, mode="nearest")
