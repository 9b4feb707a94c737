# SPDX-License-Identifier: Apache-2.0
"""Losses of the learned interpolator.

    L = L_char + w_lap L_lap + w_psnr L_psnr + w_flow sum_l a_l L_flow(l)
        + w_mask L_mask + w_conf L_conf (+ w_perc LPIPS, late)

Images [B, 3, H, W], velocities [B, 4, H, W] as in `initial_flow`, weights [B, 1, H, W]. Classical
flow is right on most pixels, where there is nothing to learn: `difficulty` gives the others more
weight.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ps4pro_nerfstudio.interpolation.network import Estimate


@dataclass
class LossWeights:
    """Weights of the terms; see the module."""

    laplacian: float = 0.2
    """Of the Laplacian pyramid of the image."""
    psnr: float = 0.1
    """Of the logarithm of each crop's squared error: what the mean PSNR is made of."""
    flow: float = 0.02
    """Of the end-point error per pixel, where the truth is known."""
    mask: float = 0.02
    """Of the blending mask, where the pixel is seen in one frame only."""
    confidence: float = 0.01
    """Of the confidence; it does not touch the image."""
    perceptual: float = 0.3
    """Of LPIPS (AlexNet), in the last `perceptual_steps` of training: sharper, and less PSNR."""
    difficulty: float = 2.0
    """Extra weight of pixels that the classical result gets wrong by 0.1 or more."""


def charbonnier(prediction: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Weighted mean of sqrt((prediction - target)^2 + 1e-6), [].

    One pixel, one channel, prediction .5, target .3: sqrt(.04 + 1e-6) = .2000025.
    """
    error = torch.sqrt((prediction - target).square() + 1e-6)
    return (error * weight).sum() / (weight.sum() * prediction.shape[1]).clamp_min(1e-6)


def laplacian(prediction: Tensor, target: Tensor, weight: Tensor, levels: int = 3) -> Tensor:
    """L1 of the bands of a Laplacian pyramid and of what remains, each a weighted mean, summed.

    The kernel is the 5x5 binomial. A constant offset c shows in the remainder only: the loss is c.
    """
    difference = (prediction - target) * (weight > 0)
    total = difference.new_zeros(())
    row = difference.new_tensor([1.0, 4.0, 6.0, 4.0, 1.0]) / 16.0
    kernel = (row[:, None] * row[None, :])[None, None].expand(difference.shape[1], 1, 5, 5)
    for _ in range(levels):
        padded = F.pad(difference, (2, 2, 2, 2), mode="reflect")
        low = F.conv2d(padded, kernel, groups=difference.shape[1])
        total = total + _weighted_mean(difference - low, weight)
        difference = low[..., ::2, ::2]
        weight = weight[..., ::2, ::2]
    return total + _weighted_mean(difference, weight)


def _weighted_mean(value: Tensor, weight: Tensor) -> Tensor:
    return (value.abs() * weight).sum() / (weight.sum() * value.shape[1]).clamp_min(1e-6)


def psnr_loss(prediction: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Mean over the batch of log(MSE + 3e-5), [].

    Where it cannot be known which of two sources is right, absolute errors are least when one is
    chosen and squared ones when the two are mixed by their chances, which also looks less torn. An
    error of .1 everywhere: log(.01003) = -4.602; of .01 everywhere: log(1.3e-4) = -8.948.
    """
    error = ((prediction - target).square() * weight).sum(dim=(1, 2, 3))
    error = error / (weight.sum(dim=(1, 2, 3)) * prediction.shape[1]).clamp_min(1.0)
    return torch.log(error + 3e-5).mean()


def end_point_error(velocity: Tensor, truth: Tensor, t: Tensor) -> Tensor:
    """Length of the error of the flows F_t0 and F_t1, [B, 2, H, W] pixels; truth may hold NaN.

    Velocity (2, 0) where the truth is (0, 0), at t = 1/2: the flows are wrong by 1 px.
    """
    t = t.reshape(-1, 1, 1, 1)
    scale = torch.cat([t, t, 1.0 - t, 1.0 - t], dim=1)
    error = (velocity - torch.nan_to_num(truth)) * scale
    squared = error.square()
    pairs = torch.stack([squared[:, :2].sum(dim=1), squared[:, 2:].sum(dim=1)], dim=1)
    return torch.sqrt(pairs + 1e-4) - 1e-2


def flow_loss(
    velocities: list[Tensor], truth: Tensor, t: Tensor, weight: Tensor, per_level: list[float]
) -> Tensor:
    """Weighted mean of `end_point_error` over the stages, []; `weight` [B, 2, H, W].

    A start that is wrong by more than a pixel is what there is to learn: those count three times.
    """
    known = torch.isfinite(truth).all(dim=1, keepdim=True) & (weight > 0)
    with torch.no_grad():
        wrong = end_point_error(velocities[0], truth, t) > 1.0
        weight = torch.where(known, weight * (1.0 + 2.0 * wrong), 0.0)
    total = velocities[0].new_zeros(())
    for share, velocity in zip(per_level, velocities[1:], strict=True):
        error = end_point_error(velocity, truth, t)
        total = total + share * (error * weight).sum()
    return total / weight.sum().clamp_min(1.0)


def mask_loss(mask_logit: Tensor, seen_in_0: Tensor, seen_in_1: Tensor) -> Tensor:
    """Cross entropy of the mask [B, 1, H, W] where exactly one frame shows the pixel, [].

    Logit 0 anywhere on such a pixel: log 2.
    """
    one = seen_in_0 ^ seen_in_1
    loss = F.binary_cross_entropy_with_logits(mask_logit, seen_in_0.float(), reduction="none")
    return (loss * one).sum() / one.sum().clamp_min(64.0)


def confidence_loss(error_scale: Tensor, image: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Negative log-likelihood of a Laplace model, mean of e / b + log b over weighted pixels, [].

    e is the absolute error of the image, averaged over channels, without gradient. At b = e = .1:
    1 + log .1 = -1.303, and that is the minimum in b.
    """
    error = (image.detach().clamp(0.0, 1.0) - target).abs().mean(dim=1, keepdim=True)
    likelihood = error / error_scale + torch.log(error_scale)
    return (likelihood * weight).sum() / weight.sum().clamp_min(1e-6)


def difficulty(classical: Tensor, target: Tensor, extra: float) -> Tensor:
    """Weight [B, 1, H, W]: 1 where the classical result is right, up to 1 + extra where wrong."""
    error = (classical.detach() - target).abs().mean(dim=1, keepdim=True)
    error = F.avg_pool2d(F.pad(error, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    return 1.0 + extra * (error / 0.1).clamp(max=1.0)


def total_loss(
    estimate: Estimate,
    target: Tensor,
    t: Tensor,
    truth: Tensor,
    seen_in_0: Tensor,
    seen_in_1: Tensor,
    usable: Tensor,
    weights: LossWeights,
    distance: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> dict[str, Tensor]:
    """All terms, unweighted except `total`, for boolean maps [B, 1, H, W].

    `distance` gives the perceptual distance of two images [B, 3, H, W] in [0, 1], for each pair.
    """
    usable_weight = usable.float()
    image_weight = usable_weight * difficulty(estimate.classical, target, weights.difficulty)
    seen = torch.cat([seen_in_0, seen_in_1], dim=1)
    # Where a source is hidden its flow still says where the thing would be; it counts little.
    flow_weight = torch.where(seen, 1.0, 0.05) * usable_weight
    terms = {
        "image": charbonnier(estimate.image, target, image_weight),
        "laplacian": laplacian(estimate.image, target, image_weight),
        "psnr": psnr_loss(estimate.image, target, usable_weight),
        "flow": flow_loss(
            estimate.velocities, truth, t, flow_weight, _level_shares(len(estimate.velocities) - 1)
        ),
        "mask": mask_loss(estimate.mask_logit, seen_in_0, seen_in_1),
        "confidence": confidence_loss(estimate.error, estimate.image, target, usable_weight),
    }
    if distance is not None:
        known = torch.where(usable, estimate.image.clamp(0.0, 1.0), target)
        terms["perceptual"] = distance(known, target).mean()
    terms["total"] = terms["image"] + sum(
        getattr(weights, name) * value for name, value in terms.items() if name != "image"
    )
    return terms


def _level_shares(count: int) -> list[float]:
    return [0.5 ** (count - 1 - level) for level in range(count)]
