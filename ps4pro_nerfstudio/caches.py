# SPDX-License-Identifier: Apache-2.0
"""Where derived files are kept between runs.

The folder is `$PS4PRO_CACHE`, else `$XDG_CACHE_HOME/ps4pro-nerfstudio`, else
`~/.cache/ps4pro-nerfstudio`. Nothing in it is needed: deleting it costs time only.
"""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder(*parts: str) -> Path:
    """Path of a folder below the package's cache; it is not created here."""
    if explicit := os.environ.get("PS4PRO_CACHE"):
        return Path(explicit).joinpath(*parts)
    base = os.environ.get("XDG_CACHE_HOME")
    root = Path(base) if base else Path.home() / ".cache"
    return root.joinpath("ps4pro-nerfstudio", *parts)
