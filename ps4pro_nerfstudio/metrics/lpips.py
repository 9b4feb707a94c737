# SPDX-License-Identifier: Apache-2.0
"""LPIPS, built at its first use and only where the weights of its network are on disk.

LPIPS (Zhang et al., "The unreasonable effectiveness of deep features as a perceptual metric", 2018)
compares deep features of two images; the network and its linear layers are those of torchmetrics,
input in [0, 1]. The ImageNet weights of the network are a download (AlexNet 244 MB, VGG-16 553 MB)
that upstream starts while a model is built, so that even ns-viewer hangs offline (nerfstudio
#2415). Here nothing is fetched unless PS4PRO_DOWNLOAD_WEIGHTS=1 says so; without weights the metric
is None and one line per process tells why.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from ps4pro_nerfstudio.messages import MissingPartError, warn

__all__ = ["LPIPS_NETS", "LazyLPIPS", "available", "perceptual_distance", "weights_path"]

LPIPSNet = Literal["alex", "vgg"]
LPIPS_NETS: tuple[str, ...] = get_args(LPIPSNet)

DOWNLOAD_VARIABLE = "PS4PRO_DOWNLOAD_WEIGHTS"
# The names under which torchvision keeps and looks for them.
_WEIGHTS_FILES = {"alex": "alexnet-owt-7be5be79.pth", "vgg": "vgg16-397923af.pth"}
_DOWNLOAD_TIMEOUT_S = 30.0
SMALLEST_SIDE = 32
"""Images with a smaller side vanish in the strides of AlexNet."""


def weights_path(net: str) -> Path:
    """File in which torchvision looks for the weights of a network, present or not.

    Raises:
        ValueError: for a network other than "alex" and "vgg".
    """
    if net not in _WEIGHTS_FILES:
        raise ValueError(f"net must be one of {', '.join(_WEIGHTS_FILES)}, got {net!r}")
    return Path(torch.hub.get_dir()) / "checkpoints" / _WEIGHTS_FILES[net]


def available(net: str) -> bool:
    """Whether the weights of a network are on disk."""
    return weights_path(net).is_file()


# What this process has tried: a download that failed is not waited for again at each image.
_process: dict[str, Any] = {"said": False, "failed": set()}


class LazyLPIPS:
    """LPIPS as a plain object: no module, so that no checkpoint ever holds its weights.

    Args:
        net: "alex" (what most papers report) or "vgg".

    Raises:
        ValueError: for another network.
    """

    def __init__(self, net: str = "alex"):
        weights_path(net)
        self.net = net
        self._metric: Any = None

    @torch.no_grad()
    def __call__(
        self,
        prediction: Tensor,  # [H, W, 3] in [0, 1]
        target: Tensor,  # [H, W, 3] in [0, 1]
        valid: Tensor | None = None,  # [H, W] bool
    ) -> float | None:
        """LPIPS of two images; 0 for equal ones, larger for less alike.

        Invalid pixels are filled with one colour in both images, the mean of the valid pixels of
        the target. They thus never enter, but count as equal: the value is that of a picture with
        a plain patch, somewhat lower than that of its valid part alone.

        Returns:
            None when the weights are absent (said in one line per process), when no pixel is
            valid, and for images with a side of fewer than 32 pixels.
        """
        if min(prediction.shape[:2]) < SMALLEST_SIDE:
            return None
        if valid is not None:
            if not bool(valid.any()):
                return None
            fill = target[valid].mean(dim=0)
            prediction = torch.where(valid[..., None], prediction, fill)
            target = torch.where(valid[..., None], target, fill)
        metric = self._build(prediction.device)
        if metric is None:
            return None
        images = (
            image.float().clamp(0, 1).permute(2, 0, 1)[None].contiguous()
            for image in (prediction, target)
        )
        value = float(metric(*images))
        metric.reset()
        return value

    def _build(self, device: torch.device) -> Any:
        """The torchmetrics object on this device, or None without weights."""
        if self._metric is None:
            self._metric = _load(self.net)
        return None if self._metric is None else self._metric.to(device)


def perceptual_distance(net: str = "alex", device: torch.device | str = "cpu") -> Any:
    """LPIPS as a frozen module for training: called with two images [B, 3, H, W] in [0, 1].

    Raises:
        MissingPartError: when the weights of its network are absent.
    """
    metric = _load(net)
    if metric is None:
        raise MissingPartError(
            f"a perceptual loss needs the weights {weights_path(net)}: put torchvision's file "
            f"there, set {DOWNLOAD_VARIABLE}=1 to have it downloaded, or leave the loss out"
        )
    network = metric.net.requires_grad_(False).to(device)
    return lambda image, target: network(image, target, normalize=True)


def _load(net: str) -> Any:
    """Build the metric, or say once why it is left out."""
    if net in _process["failed"]:
        return None
    path = weights_path(net)
    download = os.environ.get(DOWNLOAD_VARIABLE) == "1"
    if not path.is_file() and not download:
        _say_left_out(
            f"LPIPS ({net}) is left out: {path} is absent. Put torchvision's file there, or set "
            f"{DOWNLOAD_VARIABLE}=1 to have it downloaded"
        )
        return None
    from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

    try:
        with _network_timeout(_DOWNLOAD_TIMEOUT_S):
            return LearnedPerceptualImagePatchSimilarity(net_type=net, normalize=True).eval()  # type: ignore[arg-type]
    except Exception as error:
        # A damaged file or a failed download, for which torch and urllib raise many types.
        _process["failed"].add(net)
        first_line = str(error).split("\n", maxsplit=1)[0]
        _say_left_out(
            f"LPIPS ({net}) is left out: {path} could not be "
            f"{'read' if path.is_file() else 'downloaded'} ({type(error).__name__}: {first_line}). "
            "Delete it if it is there, and put torchvision's file in its place"
        )
        return None


def _say_left_out(message: str) -> None:
    """Warn, the first time in this process only."""
    if not _process["said"]:
        _process["said"] = True
        warn(message)


@contextmanager
def _network_timeout(seconds: float) -> Iterator[None]:
    """Let connections without a timeout of their own fail instead of hanging."""
    previous = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(previous)
