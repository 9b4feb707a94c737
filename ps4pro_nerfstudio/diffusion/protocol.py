# SPDX-License-Identifier: Apache-2.0
"""What a score prior and a depth prior take and give, whatever network is inside them.

Both are frozen, hold no parameters that train, and are plain objects: they never enter a model's
state dict. Images are [3, H, W], RGB in [0, 1].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class Score:
    """How an image should change to be likelier under the prior.

    In training the surrogate (gradient * image).sum() has this gradient and nothing else; `value`
    is for the log.
    """

    gradient: Tensor
    """[3, H, W] float32, d L_IPSM / d image: a step against it makes the image likelier."""
    value: Tensor
    """[] the loss L_IPSM, without a gradient."""


class ScoreWeights(Protocol):
    """What may be changed while training runs: read anew in each call of `ScorePrior.score`."""

    w1: float
    w2: float
    guidance: float


class ScorePrior(Protocol):
    """Judges a render of an unseen view beside a photograph warped into that view."""

    @property
    def name(self) -> str:
        """Short name for logs: the weights it uses."""
        ...

    @property
    def config(self) -> ScoreWeights:
        """Its settings, live."""
        ...

    def score(
        self, image: Tensor, warped: Tensor, visible: Tensor, generator: torch.Generator
    ) -> Score:
        """Score an image [3, H, W]; its own gradient is neither needed nor touched.

        Args:
            image: the render.
            warped: [3, H, W] the nearest photograph in the render's camera.
            visible: [H, W] bool, where `warped` shows what the render should show.
            generator: the only source of randomness; equal states give equal scores.
        """
        ...


class DepthPrior(Protocol):
    """Inverse depth of a single image, of unknown scale and shift."""

    @property
    def name(self) -> str:
        """Short name for logs: the weights it uses."""
        ...

    @property
    def inverse_offset(self) -> float | None:
        """Offset c of 1 / (m + c), in the network's own units; None: the unit-free form."""
        ...

    def inverse_depth(self, image: Tensor) -> Tensor:
        """Inverse depth [H, W] of an image [3, H, W], large = near, differentiable in the image."""
        ...
