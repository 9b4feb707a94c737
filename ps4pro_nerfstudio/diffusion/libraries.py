# SPDX-License-Identifier: Apache-2.0
"""Takes things from the packages of the extra `diffusion`, which may be absent or broken."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ps4pro_nerfstudio.messages import InputError, MissingPartError

EXTRA = 'pip install "ps4pro-nerfstudio[diffusion]"'
"""How to install them."""
UPDATE = (
    f"pip install -U diffusers transformers huggingface_hub {EXTRA.removeprefix('pip install ')}"
)
"""How to bring installed ones into versions that fit each other."""

_PACKAGES = ("diffusers", "transformers", "huggingface_hub")


def missing_packages(*names: str) -> list[str]:
    """Which of some packages, all of the extra if none is named, are not installed."""
    return [name for name in names or _PACKAGES if importlib.util.find_spec(name) is None]


def take(package: str, name: str) -> Any:
    """A class or function of a package; imports it now.

    Raises:
        MissingPartError: the package is absent or does not import; says how to install or mend it.
    """
    try:
        return getattr(importlib.import_module(package), name)
    # These packages import their parts late, and wrap what goes wrong in errors of any kind.
    except Exception as error:
        said, advice = first_line(error), EXTRA if missing_packages(package) else UPDATE
        raise MissingPartError(f"{package} cannot be used ({said}): {advice}") from error


def first_line(error: BaseException) -> str:
    """The first line of what an exception says, or its kind where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].strip()


def reason(error: BaseException) -> str:
    """What an exception says in its first line, and what the first one behind it says beside that.

    Diffusers says of a truncated file no more than that it cannot be read; why, safetensors knows.
    """
    said, origin = first_line(error), error
    while (behind := _behind(origin)) is not None:
        origin = behind
    cause = first_line(origin)
    # The message of a KeyError is the key alone.
    if isinstance(origin, KeyError) or cause in said:
        return said
    return f"{said.rstrip('.')} ({cause})"


def _behind(error: BaseException) -> BaseException | None:
    """What an exception was raised from, unless it hides that."""
    return error.__cause__ or (None if error.__suppress_context__ else error.__context__)


@contextlib.contextmanager
def explained(path: Path, kind: str = "") -> Iterator[None]:
    """Turn whatever a library raises for a broken folder into one line.

    Args:
        path: of the folder.
        kind: as what it is loaded, for the message: "as a ...".

    Raises:
        InputError: names the folder, the first line of what was raised, and its cause.
    """
    try:
        yield
    except Exception as error:
        what = f"{path} cannot be loaded{' ' * bool(kind)}{kind}"
        raise InputError(f"{what}: {reason(error)}") from error
