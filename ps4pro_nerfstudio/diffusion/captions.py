# SPDX-License-Identifier: Apache-2.0
"""A prompt for a scene: what BLIP (arXiv 2201.12086) says of one of its photographs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ps4pro_nerfstudio.diffusion.libraries import explained, take

PREFIX = "a photography of"
"""How a caption begins; the network writes the rest."""
_SUFFIX = ", realistic, 8k"
"""How each prompt ends."""
GENERIC_PROMPT = f"{PREFIX} a scene{_SUFFIX}"
"""Prompt where nobody and nothing describes the scene."""
_MOST_TOKENS = 30


def complete_prompt(sentence: str) -> str:
    """The prompt y for a sentence about the scene; one that is complete already stays as it is."""
    words = sentence.strip().rstrip(".")
    return words if words.endswith(_SUFFIX) else words + _SUFFIX


def write_prompt(folder: Path, photograph: NDArray[np.uint8], device: torch.device | str) -> str:
    """One sentence about a photograph, as IPSM (arXiv 2412.02225) asks its denoisers for.

    The likeliest words are taken, so that a photograph always has the same prompt. The network is
    freed on return.

    Args:
        folder: weights in the layout of transformers; nothing is downloaded.
        photograph: [H, W, 3].
        device: where to compute.

    Raises:
        InputError: the folder cannot be read, or holds another kind of network.
    """
    network_of = take("transformers", "BlipForConditionalGeneration")
    processor_of = take("transformers", "BlipProcessor")
    with explained(folder):
        processor = processor_of.from_pretrained(folder, local_files_only=True)
        network = network_of.from_pretrained(folder, use_safetensors=True, local_files_only=True)
        inputs = processor(images=photograph, text=PREFIX, return_tensors="pt").to(device)
        with torch.no_grad():
            words = network.to(device).eval().generate(**inputs, max_new_tokens=_MOST_TOKENS)
        caption = processor.decode(words[0], skip_special_tokens=True)
    return complete_prompt(caption)
