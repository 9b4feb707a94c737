# SPDX-License-Identifier: Apache-2.0
"""What keeps Gaussians in bounds beside the gradient: changes of their parameters, in place."""

from __future__ import annotations

import math

import torch
from torch import Tensor

# A scale of zero has no logarithm: that of duplicate points, or of a Gaussian at a camera.
SMALLEST_SCALE = 1e-7


@torch.no_grad()
def fade_(logits: Tensor, share: float) -> None:
    """Take a share in (0, 1) of each opacity, the sigmoid of its logit [...] (arXiv 2410.18822)."""
    # With o = sigmoid(x) and q = 1 - share, log(qo / (1 - qo)) = log q - log(exp(-x) + share).
    lost = torch.full_like(logits, math.log(share))
    logits.copy_(math.log1p(-share) - torch.logaddexp(-logits, lost))


@torch.no_grad()
def bound_scales_(
    log_scales: Tensor,  # [N, 3], of standard deviations
    means: Tensor,  # [N, 3]
    centres: Tensor,  # [C, 3], of cameras
    share: float,
) -> None:
    """Shrink what is larger than this share of its distance from the nearest camera, at least one.

    Means and centres are in one frame of reference, whose units the scales have.
    """
    distance = torch.cdist(means, centres.to(means)).amin(dim=1)
    largest = (share * distance).clamp_min(SMALLEST_SCALE)
    log_scales.clamp_(max=largest.log()[:, None])
