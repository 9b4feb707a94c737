# SPDX-License-Identifier: Apache-2.0
"""Where derived files are kept between runs.

What belongs to a capture is kept in `.ps4pro_cache` in its folder; all else, and what belongs to
captures that cannot be written, in `ps4pro-nerfstudio` where this system keeps a user's caches.
`$PS4PRO_CACHE` replaces both. Nothing in them is needed: deleting costs time only.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from pathlib import Path

CAPTURE_CACHE = ".ps4pro_cache"
"""Name of the cache folder inside a capture."""

_VARIABLE = "PS4PRO_CACHE"


def cache_folder(*parts: str) -> Path:
    """Path of a folder below the package's cache; it is not created here."""
    if explicit := os.environ.get(_VARIABLE):
        return Path(explicit).joinpath(*parts)
    return _user_cache().joinpath("ps4pro-nerfstudio", *parts)


def capture_cache(data: Path) -> Path:
    """Path of the cache of a capture, a folder or its json file; it is not created here."""
    if explicit := os.environ.get(_VARIABLE):
        return Path(explicit)
    return (data.parent if data.suffix == ".json" else data) / CAPTURE_CACHE


def can_write(folder: Path) -> bool:
    """Whether a folder takes new files, or can be made where it does not exist; leaves nothing."""
    while not os.path.lexists(folder) and folder != folder.parent:
        folder = folder.parent
    try:
        # Permissions alone do not tell: the disk may be mounted read-only, or be full.
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def borrow(kept: Path, into: Path) -> None:
    """Let a cache serve what another one, which cannot be written, has finished.

    Links to the entries (`kind/name`; those with a dot are unfinished) that `into` lacks. Entries
    are named by what they are made of, so that those of different captures do not meet.
    """
    for entry in kept.glob("[!.]*/[!.]*"):
        link = into / entry.relative_to(kept)
        with contextlib.suppress(OSError):  # It is there, or is made anew.
            link.parent.mkdir(parents=True, exist_ok=True)
            unlink_dangling(link)
            link.symlink_to(entry.resolve(), target_is_directory=entry.is_dir())


def unlink_dangling(link: Path) -> None:
    """Remove a link that leads nowhere: what it was borrowed from is gone, and it is in the way."""
    if link.is_symlink() and not os.path.exists(link):
        link.unlink(missing_ok=True)


def _user_cache() -> Path:
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local"))
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
