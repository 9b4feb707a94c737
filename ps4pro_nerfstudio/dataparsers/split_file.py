# SPDX-License-Identifier: Apache-2.0
"""The file that says which photographs a run trained on and which it held out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

SPLIT_FILE = "split.json"
"""Name of the file in the folder of a run: {"train": [names], "test": [names]}."""


def relative_name(file: Path, data: Path) -> str:
    """Path of a photo relative to its capture, a folder or a json file, with forward slashes."""
    root = data.parent if data.suffix == ".json" else data
    try:
        return file.relative_to(root).as_posix()
    except ValueError:  # a photo kept elsewhere
        return file.as_posix()


def write_split(folder: Path, data: Path, train: Sequence[Path], test: Sequence[Path]) -> Path:
    """Write the names of a run's training and test photographs into its folder.

    Args:
        folder: the run's folder; it is made when it does not exist.
        data: the capture to which names are relative.
        train: files of the training photographs.
        test: files of the photographs that evaluation uses.

    Returns:
        The file written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / SPLIT_FILE
    names = {
        "train": [relative_name(file, data) for file in train],
        "test": [relative_name(file, data) for file in test],
    }
    path.write_text(json.dumps(names, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return path
