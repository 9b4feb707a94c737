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
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        advice = EXTRA if missing_packages(package) else UPDATE
        raise MissingPartError(f"{package} cannot be used ({reason}): {advice}") from error


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn whatever a library raises for a broken folder into one line.

    Raises:
        InputError: names the folder and the first line of what was raised.
    """
    try:
        yield
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise InputError(f"{path} cannot be loaded: {lines[0]}") from error
