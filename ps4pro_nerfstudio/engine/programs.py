# SPDX-License-Identifier: Apache-2.0
"""Programs that nerfstudio's commands look for on PATH.

ns-render refuses to start without a program named `ffmpeg`, even when it writes images. The package
imageio-ffmpeg brings one under another name; a link to it, in a folder that is appended to the PATH
of this process, is all that is missing.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path

from ps4pro_nerfstudio.caches import cache_folder


def provide_ffmpeg() -> Path | None:
    """Make `ffmpeg` callable in this process where the machine has none.

    Returns:
        The program, or None when there is none to be had. Never raises: it runs at import.
    """
    if found := shutil.which("ffmpeg"):
        return Path(found)
    with contextlib.suppress(Exception):  # an optional convenience must not break a command
        import imageio_ffmpeg

        program = Path(imageio_ffmpeg.get_ffmpeg_exe())
        folder = cache_folder("bin")
        link = folder / ("ffmpeg.exe" if os.name == "nt" else "ffmpeg")
        if not link.exists() or link.resolve() != program.resolve():
            folder.mkdir(parents=True, exist_ok=True)
            fresh = folder / f"ffmpeg-{os.getpid()}"
            if os.name == "nt":
                shutil.copy(program, fresh)
            else:
                fresh.symlink_to(program)
            os.replace(fresh, link)
        os.environ["PATH"] = os.pathsep.join([os.environ.get("PATH", ""), str(folder)])
        return link
    return None
