# SPDX-License-Identifier: Apache-2.0
"""Weights of the network on disk: safetensors that name the sizes of the network they fit."""

from __future__ import annotations

import json
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ps4pro_nerfstudio.interpolation.network_config import NetworkConfig
from ps4pro_nerfstudio.messages import InputError

FORMAT = "ps4pro-interpolator/2"


def write_weights(
    path: Path,
    config: NetworkConfig,
    tensors: dict[str, Tensor],
    half: bool,
    notes: dict[str, str],
) -> None:
    """Write tensors and the sizes of their network; `half` stores them in 16 bits."""
    from safetensors.torch import save_file

    dtype = torch.float16 if half else torch.float32
    stored = {key: value.detach().cpu().to(dtype).contiguous() for key, value in tensors.items()}
    metadata = {"format": FORMAT, "config": json.dumps(asdict(config)), **notes}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(stored, str(path), metadata=metadata)


def find_weights(name_or_path: str | Path) -> Path:
    """The file of a name that the package brings, or of a path.

    Raises:
        InputError: when there is none.
    """
    path = Path(name_or_path)
    if path.suffix == ".safetensors" or path.is_file():
        if path.is_file():
            return path
        raise InputError(f"there is no weights file {path}")
    folder = Path(str(resources.files("ps4pro_nerfstudio.interpolation").joinpath("weights")))
    shipped = folder / f"{name_or_path}.safetensors"
    if shipped.is_file():
        return shipped
    known = ", ".join(sorted(file.stem for file in folder.glob("*.safetensors"))) or "none"
    raise InputError(
        f"no weights named {name_or_path!r}: the package brings {known}; "
        "give one of these or the path of a .safetensors file"
    )


def read_weights(path: Path) -> tuple[NetworkConfig, dict[str, Tensor]]:
    """Sizes and tensors of a file of `write_weights`.

    Raises:
        InputError: when it is damaged, of another kind, or holds values that are not finite.
    """
    from safetensors import safe_open

    try:
        with safe_open(str(path), framework="pt") as file:
            metadata: dict[str, str] = file.metadata() or {}
            tensors: dict[str, Any] = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except Exception as error:
        # safetensors raises a type of its own and several of others for damaged files.
        raise InputError(f"{path} is damaged or no safetensors file: {error}") from error
    if metadata.get("format") != FORMAT:
        raise InputError(
            f"{path} holds no PS4PRO network of this version "
            f"(format {metadata.get('format')!r}, wanted {FORMAT!r})"
        )
    try:
        fields: dict[str, Any] = json.loads(metadata["config"])
        config = NetworkConfig(
            **{k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}  # type: ignore[arg-type]
        )
    except (KeyError, ValueError, TypeError) as error:
        raise InputError(f"{path} does not say the sizes of its network: {error}") from error
    if not all(bool(torch.isfinite(value).all()) for value in tensors.values()):
        raise InputError(f"{path} holds weights that are not finite")
    return config, tensors
