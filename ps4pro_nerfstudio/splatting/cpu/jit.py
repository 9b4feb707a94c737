# SPDX-License-Identifier: Apache-2.0
"""How the CPU kernels are compiled and where their machine code is kept.

`kernel` declares a compiled function that Python calls; its machine code is cached on disk.
`helper` declares a function that only other compiled functions call.

numba's own cache does not notice edits in an imported helper, so ours lives in a folder named after
a hash of the package version, the numba version and the sources of all kernels. The folder is
`numba/<key>` in the package's cache, below NUMBA_CACHE_DIR when the user set that, or a temporary
one when neither can be written. `numba.config.CACHE_DIR` is changed only while one of our
functions is declared, so other users of numba in the process are not affected.
"""

from __future__ import annotations

import functools
import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba

from ps4pro_nerfstudio import __version__
from ps4pro_nerfstudio.caches import cache_folder
from ps4pro_nerfstudio.messages import say

# Everything of fastmath except "no NaN" and "no infinity", so that tests for them survive.
FASTMATH = {"nsz", "arcp", "contract", "afn", "reassoc"}
# For kernels whose inputs have passed such a test.
NO_NAN = FASTMATH | {"nnan"}


def _source_key() -> str:
    """Changes whenever the machine code may have to."""
    digest = hashlib.sha256(f"{__version__} numba {numba.__version__}".encode())
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.name.encode())
        digest.update(source.read_bytes())
    return digest.hexdigest()[:16]


def _writable(folder: Path) -> bool:
    """Create the folder and try to write in it; permission bits alone do not tell."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


@functools.cache
def cache_directory() -> Path:
    """The folder of the compiled kernels; created, and writable."""
    if os.environ.get("NUMBA_CACHE_DIR"):
        base = Path(os.environ["NUMBA_CACHE_DIR"]) / "ps4pro-nerfstudio"
    else:
        base = cache_folder("numba")
    folder = base / _source_key()
    if _writable(folder):
        return folder
    fallback = Path(tempfile.mkdtemp(prefix="ps4pro-nerfstudio-numba-"))
    say(f"cannot write {folder}; compiled CPU kernels are kept in {fallback} for this process")
    return fallback


@functools.cache
def announce_compilation() -> None:
    """Say once per process that the kernels are about to be compiled, if their cache is empty."""
    if not any(cache_directory().glob("*/*.nbi")):
        say("compiling CPU kernels once (about 20 s)")


def kernel(
    *, parallel: bool = True, fastmath: set[str] | bool = FASTMATH
) -> Callable[[Callable], Any]:
    """Declare a compiled function that Python calls; cached on disk.

    Call it inside `threads.kernel_threads()`. Keep the body of a parallel one small, by calling
    helpers: numba analyses and compiles it twice.
    """

    def declare(function: Callable) -> Any:
        previous = numba.config.CACHE_DIR  # type: ignore[attr-defined]
        numba.config.CACHE_DIR = str(cache_directory())  # type: ignore[attr-defined]
        try:
            return numba.njit(
                parallel=parallel, fastmath=fastmath, error_model="numpy", cache=True
            )(function)
        finally:
            numba.config.CACHE_DIR = previous  # type: ignore[attr-defined]

    return declare


def helper(
    *, parallel: bool = False, fastmath: set[str] | bool = FASTMATH
) -> Callable[[Callable], Any]:
    """Declare a function that only kernels call; without the wrappers that Python would need."""
    options: dict[str, Any] = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}
    options["parallel"] = parallel
    return numba.njit(fastmath=fastmath, error_model="numpy", **options)
