# SPDX-License-Identifier: Apache-2.0
"""Inverse depth of single images by a frozen network of transformers, differentiable in the image.

The library's own preprocessing works on arrays and cuts the gradient, so pictures are resized and
normalised here, on tensors. The released code of IPSM (arXiv 2412.02225) feeds DPT-Hybrid 384 x 512
pixels; the one of transformers accepts its training size only, a square of 384.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ps4pro_nerfstudio.diffusion.libraries import explained, take
from ps4pro_nerfstudio.messages import InputError

_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
_DPT_HYBRID_OFFSET = 200.0
_LEAST_SPREAD = 1e-4
"""Spread of a map, as a share of its size, below which it is one depth for the whole picture."""


@dataclass
class MonocularDepthConfig:
    """The depth network of a single image."""

    size: int = 518
    """Shorter side in pixels of what Depth Anything is shown, rounded to multiples of its patch of
    14: smaller is faster and coarser. DPT always sees its own training size."""
    revision: str = "main"
    """Revision of the weights on the Hugging Face hub: a branch, tag or commit id."""


class MonocularDepth:
    """Frozen depth network; see `DepthPrior`.

    Args:
        network: a depth estimator of transformers; it is frozen and moved to `device` here.
        name: what to call it in logs.
        config: settings, kept by reference.
        device: where to compute.
        normalisation: mean and standard deviation of each channel that it was trained with; None:
            those usual for its kind.

    Raises:
        InputError: a network of another kind, or one that predicts depth instead of its inverse.
    """

    def __init__(
        self,
        network: Any,
        name: str,
        config: MonocularDepthConfig,
        device: torch.device | str,
        normalisation: tuple[tuple[float, ...], tuple[float, ...]] | None = None,
    ):
        sizes = network.config
        if sizes.model_type not in ("depth_anything", "dpt"):
            raise InputError(
                f"{name} is a network of type '{sizes.model_type}'; inverse depth is known of "
                "depth_anything and dpt"
            )
        if getattr(sizes, "depth_estimation_type", "relative") == "metric":
            raise InputError(f"{name} predicts metric depth; take its relative version")
        if config.size < 1:
            raise InputError(f"the size of the depth network must be positive, got {config.size}")
        self.config = config
        self.name = name
        hybrid = sizes.model_type == "dpt" and bool(sizes.is_hybrid)
        self.inverse_offset = _DPT_HYBRID_OFFSET if hybrid else None
        self._network = network.float().to(device).requires_grad_(False).eval()
        self._device = torch.device(device)
        if normalisation is None:
            normalisation = _HALF if sizes.model_type == "dpt" else _IMAGENET
        mean, deviation = (torch.tensor(values, device=device) for values in normalisation)
        self._mean, self._deviation = mean[:, None, None], deviation[:, None, None]

    def inverse_depth(self, image: Tensor) -> Tensor:
        """See `DepthPrior.inverse_depth`; computed in float32."""
        height, width = image.shape[-2:]
        picture = (image.to(self._device, torch.float32) - self._mean) / self._deviation
        with torch.autocast(self._device.type, enabled=False):
            shown = F.interpolate(
                picture[None],
                network_size(self._network.config, height, width, self.config.size),
                mode="bicubic",
                align_corners=False,
                antialias=True,
            )
            predicted = self._network(pixel_values=shown).predicted_depth[:, None]
            resized = F.interpolate(predicted, (height, width), mode="bicubic", align_corners=False)
        return resized[0, 0].to(image.device)


def tells_depth(inverse_depth: Tensor) -> bool:
    """Whether what a network gives for a picture, [H, W], is finite and not one depth for all."""
    if not bool(torch.isfinite(inverse_depth).all()):
        return False
    values = inverse_depth.detach().double()
    return bool((values - values.mean()).norm() > _LEAST_SPREAD * values.norm())


def network_size(sizes: Any, height: int, width: int, shorter_side: int) -> tuple[int, int]:
    """Height and width in pixels at which a network is shown an image.

    Args:
        sizes: the `config` of the network.
        height: of the image.
        width: of the image.
        shorter_side: wanted, for networks that take any multiple of their patch.
    """
    if sizes.model_type == "dpt":
        if sizes.is_hybrid or sizes.backbone_config is None:
            # It folds its tokens back into a square.
            side = sizes.image_size
            return (side, side) if isinstance(side, int) else (side[0], side[1])
        patch = sizes.backbone_config.patch_size
    else:
        patch = sizes.patch_size
    scale = shorter_side / min(height, width)
    rows, columns = (max(round(scale * side / patch), 1) for side in (height, width))
    return rows * patch, columns * patch


def load_depth(
    folder: Path, name: str, config: MonocularDepthConfig, device: torch.device
) -> MonocularDepth:
    """Read a depth network from a folder in the layout of transformers; nothing is downloaded.

    Raises:
        InputError: the folder cannot be read, or holds another kind of network.
    """
    loader = take("transformers", "AutoModelForDepthEstimation")
    with explained(folder, "as a depth network"):
        network = loader.from_pretrained(folder, use_safetensors=True, local_files_only=True)
        normalisation = _normalisation(folder)
    return MonocularDepth(network, name, config, device, normalisation)


def _normalisation(folder: Path) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    file = folder / "preprocessor_config.json"
    if not file.is_file():
        return None
    content = json.loads(file.read_text())
    if "image_mean" not in content or "image_std" not in content:
        return None
    return tuple(content["image_mean"]), tuple(content["image_std"])
