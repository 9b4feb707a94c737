# SPDX-License-Identifier: Apache-2.0
"""Where derived files are kept between runs.

The folder is `$PS4PRO_CACHE`, else `ps4pro-nerfstudio` where this system keeps a user's caches.
Nothing in it is needed: deleting it costs time only.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path


def cache_folder(*parts: str) -> Path:
    """Path of a folder below the package's cache; it is not created here."""
    if explicit := os.environ.get("PS4PRO_CACHE"):
        return Path(explicit).joinpath(*parts)
    return _user_cache().joinpath("ps4pro-nerfstudio", *parts)


def _user_cache() -> Path:
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local"))
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
