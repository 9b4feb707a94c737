# SPDX-License-Identifier: Apache-2.0
"""Finds weights on this disk and opens the prior that the user chose; never downloads.

A local folder has the sub-folders `inpainting` and `text`, each in the layout of diffusers, and
`depth` and `caption` in the layout of transformers: what `ps4pro fetch-weights ipsm --output
FOLDER` writes. Only safetensors files are read.
"""

from __future__ import annotations

import contextlib
import importlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ps4pro_nerfstudio.diffusion.captions import GENERIC_PROMPT, complete_prompt, write_prompt
from ps4pro_nerfstudio.diffusion.catalogue import CAPTION, DENOISERS, DEPTH, Part
from ps4pro_nerfstudio.diffusion.inpainting_score import InpaintingScoreConfig, InpaintingScorePrior
from ps4pro_nerfstudio.diffusion.libraries import EXTRA, missing_packages, take
from ps4pro_nerfstudio.diffusion.loading import check_folders, load_parts
from ps4pro_nerfstudio.diffusion.monocular_depth import MonocularDepthConfig, load_depth
from ps4pro_nerfstudio.diffusion.protocol import DepthPrior, ScorePrior
from ps4pro_nerfstudio.diffusion.tiny import tiny_parts
from ps4pro_nerfstudio.messages import InputError, MissingPartError, say, warn

FETCH = "ps4pro fetch-weights ipsm"
SCORE_FIELD = "--pipeline.model.diffusion"
DEPTH_FIELD = "--pipeline.model.depth"
PROMPT_FIELD = "--pipeline.model.score.prompt"
OTHER_DEPTH = f"choose another network with {DEPTH_FIELD}, or triangulated"
"""What to do about a depth network that tells nothing."""
SMALLER = (
    "--pipeline.model.score.cpu-offload True needs half of it, a smaller "
    f"--pipeline.model.score.size less, {SCORE_FIELD} off none"
)
"""What to do where a GPU's memory is too small."""

_WITHOUT_SCORE = f"{SCORE_FIELD} off"
_WITHOUT_DEPTH = f"{DEPTH_FIELD} triangulated"

_FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


@dataclass(frozen=True)
class Found:
    """A part on this disk."""

    folder: Path
    """Where its files are."""
    name: str
    """Hub id with the commit, or the folder."""


def find_cached(part: Part, revision: str = "main") -> Found | None:
    """A part in the Hugging Face cache, complete; None where anything is missing."""
    if missing_packages("huggingface_hub"):
        return None
    try_to_load_from_cache = take("huggingface_hub", "try_to_load_from_cache")
    first = part.networks[0].config
    cached = try_to_load_from_cache(part.hub_id, first, revision=revision)
    if not isinstance(cached, str):
        return None
    folder = Path(cached)
    for _ in Path(first).parts:
        folder = folder.parent
    if part.missing(folder):
        return None
    return Found(folder, f"{part.hub_id}@{folder.name[:12]}")


def find_in_folder(part: Part, folder: Path, fetch: str) -> Found:
    """A denoiser inside the user's folder; `fetch` is the command that would get it.

    Raises:
        InputError: it is not there, or not complete; names the option, the first missing file, and
            how to get it.
    """
    place = folder / part.role
    lacking = part.missing(place)
    if lacking:
        raise InputError(
            f"{SCORE_FIELD} {folder}: {part.role}/{lacking[0].split('|')[0]} is missing; "
            f"`{fetch} --output {folder}` fetches {part.hub_id} into this layout"
        )
    return Found(place, str(place))


Photograph = Callable[[], NDArray[np.uint8]]
"""Gives a photograph [H, W, 3] of the scene."""


def open_score_prior(
    choice: str,
    config: InpaintingScoreConfig,
    device: torch.device | str,
    photograph: Photograph | None = None,
) -> ScorePrior | None:
    """The score prior that the user chose; says in one line what it is, or why there is none.

    Args:
        choice: `off`; `auto`, weights that are already on this disk;
            `stable-diffusion`; a local folder; `tiny-random`, for tests; or `module:function`,
            called with `config` and `device` to make any other `ScorePrior`.
        config: settings; kept by reference, so that they can be changed while training runs. The
            prompt is replaced by the one that is used.
        device: where to compute.
        photograph: asked for a picture to describe where the prompt is empty.

    Raises:
        MissingPartError: an explicit choice whose weights or packages are not there.
        InputError: weights that cannot be used; an unknown choice.
    """
    device = torch.device(device)
    if choice == "off":
        return None
    if _is_function(choice):
        prior = _call(choice, config, device, SCORE_FIELD)
        say(f"score prior: {prior.name} ({choice})")
        return prior
    try:
        if choice == "tiny-random":
            _require_packages(choice, config)
            warn("the score prior is tiny-random: random weights, for tests; it harms the result")
            return InpaintingScorePrior(tiny_parts(), config, device)
        inpainting, text = _find_score_weights(choice, config)
        if choice == "auto" and device.type == "cpu":
            warn(
                "the score prior takes many seconds a step without a GPU; "
                f"{SCORE_FIELD} off trains without it"
            )
        return _load_score(inpainting, text, config, device, photograph, choice)
    except MissingPartError as error:
        if choice != "auto":
            raise
        say(f"training without a score prior: {error}")
        return None


def check_score_weights(choice: str, config: InpaintingScoreConfig) -> None:
    """Look for the weights that would be used, so that what is wrong with them is known early.

    Args:
        choice: as for `open_score_prior`.
        config: settings.

    Raises:
        MissingPartError: the user insists on weights, and they, or the packages that read them, are
            not there.
        InputError: an unknown choice; weights that do not fit together.
    """
    if choice in ("off", "tiny-random") or _is_function(choice):
        return
    try:
        _find_score_weights(choice, config)
    except MissingPartError:
        if choice != "auto":
            raise


def _is_function(choice: str) -> bool:
    """Whether a choice is a `module:function`."""
    return _FUNCTION.fullmatch(choice) is not None and not Path(choice).is_dir()


def _find_score_weights(choice: str, config: InpaintingScoreConfig) -> tuple[Found, Found]:
    """Inpainting and text weights of `auto`, `stable-diffusion` or a folder.

    Raises:
        MissingPartError: the weights are not there, or the packages that read them cannot be used.
        InputError: an unknown choice; weights that do not fit together.
    """
    folder = Path(choice)
    if choice not in ("auto", "stable-diffusion") and not folder.is_dir():
        raise InputError(
            f"{SCORE_FIELD} {choice}: no such folder; known besides folders: off, auto, "
            "stable-diffusion, module:function"
        )
    _require_packages(choice, config)
    parts, fetch = _denoisers(config)
    if choice in ("auto", "stable-diffusion"):
        inpainting, text = _cached(parts, config)
    else:
        inpainting, text = (find_in_folder(part, folder, fetch) for part in parts)
    if inpainting is None or text is None:
        absent = f"{_absent(parts, inpainting, text)} not on this disk"
        if choice == "auto":
            raise MissingPartError(
                f"{absent}; `{fetch}` shows licences and sizes and fetches what is missing"
            )
        raise MissingPartError(
            f"{SCORE_FIELD} stable-diffusion: {absent}; fetch with `{fetch}`, or give a folder "
            f"with {SCORE_FIELD} FOLDER (the extra of {EXTRA} is installed)"
        )
    with _with_way_out(choice, _WITHOUT_SCORE):
        check_folders(inpainting.folder, text.folder, _name(inpainting, text))
    return inpainting, text


@contextlib.contextmanager
def _with_way_out(choice: str, without: str) -> Iterator[None]:
    """Tell who has not asked for the weights that are at fault the option that does without."""
    try:
        yield
    except InputError as error:
        if choice != "auto":
            raise
        raise InputError(f"{error}, or train without these weights: {without}") from error


def _require_packages(choice: str, config: InpaintingScoreConfig) -> None:
    """Refuse a choice whose packages are not installed.

    Raises:
        MissingPartError: names them, and the weights that they read.
    """
    if missing := missing_packages():
        parts, fetch = _denoisers(config)
        after = f", then {fetch}" if choice == "auto" else f"; weights: {_ids(parts)}"
        raise MissingPartError(f"the score prior needs {', '.join(missing)}: {EXTRA}{after}")


def _denoisers(config: InpaintingScoreConfig) -> tuple[tuple[Part, Part], str]:
    """The parts of a family, and the command that fetches them."""
    fetch = FETCH if config.family == "sd-1.5" else f"{FETCH} --family {config.family}"
    return DENOISERS[config.family], fetch


def _cached(
    parts: tuple[Part, Part], config: InpaintingScoreConfig
) -> tuple[Found | None, Found | None]:
    inpainting, text = parts
    return (
        find_cached(inpainting, config.inpainting_revision),
        find_cached(text, config.text_revision),
    )


def _name(inpainting: Found, text: Found) -> str:
    return f"{inpainting.name} + {text.name}"


def _absent(parts: tuple[Part, Part], *found: Found | None) -> str:
    return _ids(tuple(part for part, place in zip(parts, found, strict=True) if place is None))


def open_depth_prior(
    choice: str, config: MonocularDepthConfig, device: torch.device | str
) -> DepthPrior | None:
    """The depth prior that the user chose; says in one line what it is, or why there is none.

    Args:
        choice: `triangulated`, no network; `auto`, a network whose weights are already on this
            disk; `depth-anything`; `dpt-hybrid`; a local folder with a network or with one in its
            sub-folder `depth`; or `module:function`, called with `config` and `device` to make any
            other `DepthPrior`.
        config: settings.
        device: where to compute.

    Raises:
        MissingPartError: an explicit choice whose weights or packages are not there.
        InputError: weights that cannot be used; an unknown choice.
    """
    device = torch.device(device)
    if choice == "triangulated":
        return None
    folder = Path(choice)
    named = choice == "auto" or choice in DEPTH
    if _is_function(choice):
        prior = _call(choice, config, device, DEPTH_FIELD)
        say(f"depth of single images: {prior.name} ({choice})")
        return prior
    if not named and not folder.is_dir():
        raise InputError(
            f"{DEPTH_FIELD} {choice}: no such folder; known besides folders: triangulated, auto, "
            f"{', '.join(DEPTH)}, module:function"
        )
    if absent := missing_packages("transformers", "huggingface_hub"):
        message = f"depth of single images needs {', '.join(absent)}: {EXTRA}"
        if choice != "auto":
            wanted = f"; weights: {DEPTH[choice].hub_id}" if choice in DEPTH else ""
            raise MissingPartError(f"{message}{wanted}")
        say(f"depth is triangulated from the training views: {message}, then {FETCH}")
        return None
    if not named:
        place = folder / "depth" if (folder / "depth").is_dir() else folder
        lacking = DEPTH["depth-anything"].missing(place)
        if lacking:
            raise InputError(
                f"{DEPTH_FIELD} {folder}: {lacking[0]} is missing; `{FETCH} --output {folder}` "
                f"fetches {DEPTH['depth-anything'].hub_id} into its sub-folder depth"
            )
        return _load_depth(Found(place, str(place)), config, device)
    candidates = DEPTH.values() if choice == "auto" else (DEPTH[choice],)
    try:
        for part in candidates:
            found = find_cached(part, config.revision)
            if found is not None:
                with _with_way_out(choice, _WITHOUT_DEPTH):
                    return _load_depth(found, config, device)
    except MissingPartError as error:
        if choice != "auto":
            raise
        say(f"depth is triangulated from the training views: {error}")
        return None
    if choice != "auto":
        raise MissingPartError(
            f"{DEPTH_FIELD} {choice}: {DEPTH[choice].hub_id} not on this disk; fetch with "
            f"`{FETCH} --depth {choice}`, or give a folder with {DEPTH_FIELD} FOLDER "
            f"(the extra of {EXTRA} is installed)"
        )
    say(
        f"depth is triangulated from the training views: {DEPTH['depth-anything'].hub_id} is not "
        f"on this disk; `{FETCH}` shows its licence and size and fetches it"
    )
    return None


def _load_score(
    inpainting: Found,
    text: Found,
    config: InpaintingScoreConfig,
    device: torch.device,
    photograph: Photograph | None,
    choice: str,
) -> ScorePrior:
    name = _name(inpainting, text)
    if config.prompt.strip():
        config.prompt = complete_prompt(config.prompt)
    else:
        config.prompt = _prompt(inpainting.folder.parent, config, device, photograph)
    try:
        with _with_way_out(choice, _WITHOUT_SCORE):
            parts = load_parts(inpainting.folder, text.folder, name, config, device)
            prior = InpaintingScorePrior(parts, config, device)
    except torch.cuda.OutOfMemoryError as error:
        raise InputError(f"{name} does not fit into the GPU's memory; {SMALLER}") from error
    say(f"score prior: {name}")
    return prior


def _prompt(
    folder: Path,
    config: InpaintingScoreConfig,
    device: torch.device,
    photograph: Photograph | None,
) -> str:
    """A prompt for who gave none; says in one line what it is and where it comes from."""
    beside = folder / CAPTION.role
    found = Found(beside, str(beside))
    if CAPTION.missing(beside):
        found = find_cached(CAPTION, config.caption_revision)
    if photograph is None or found is None:
        say(
            f'prompt: "{GENERIC_PROMPT}"; describe the scene with {PROMPT_FIELD}, or let '
            f"{CAPTION.hub_id} do it: `{FETCH} --parts caption`"
        )
        return GENERIC_PROMPT
    picture = photograph()
    try:
        prompt = write_prompt(found.folder, picture, device)
    # A caption is asked for by nobody; the prior does without, whatever is wrong with it.
    except (InputError, MissingPartError) as error:
        warn(f'prompt: "{GENERIC_PROMPT}", for {error}; describe the scene with {PROMPT_FIELD}')
        return GENERIC_PROMPT
    say(f'prompt: "{prompt}", by {found.name} of the first photograph; {PROMPT_FIELD} changes it')
    return prompt


def _load_depth(found: Found, config: MonocularDepthConfig, device: torch.device) -> DepthPrior:
    prior = load_depth(found.folder, found.name, config, device)
    say(f"depth of single images: {found.name}")
    return prior


def _call(choice: str, config: Any, device: torch.device, field: str) -> Any:
    """Make a prior of somebody else's.

    Raises:
        InputError: there is no such function.
    """
    module, function = choice.split(":")
    try:
        make = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise InputError(f"{field} {choice}: {error}") from error
    return make(config, device)


def _ids(parts: tuple[Part, ...]) -> str:
    return " and ".join(part.hub_id for part in parts)
