# SPDX-License-Identifier: Apache-2.0
"""Arrays that took long to compute, kept on disk between runs.

One .npz file for each result, named by the SHA-256 of the images, the masks, the cameras and the
options that decide it. It is written under another name and renamed, so that a file is complete or
absent; a damaged one is made anew, and a folder that refuses it costs the next run time only. Parts
of a result that takes long are kept one by one until it is finished, so that a killed run loses the
one at which it was. Of a folder that grows too large, what was unused for longest goes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import os
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ps4pro_nerfstudio.initialization.views import TrainViews
from ps4pro_nerfstudio.messages import warn

Result = TypeVar("Result")

_MAX_BYTES = 2 * 1024**3
"""Largest size of a folder of results, parts of unfinished ones included."""
_PART = ".part-"
"""Name of a part of a result that is not finished; the dot keeps it from being borrowed."""
_WRITING = ".writing-"
"""Name of a file that is being written, or that a killed run left."""
_ABANDONED_AFTER_SECONDS = 3600.0


def kept_file(
    folder: Path | None, name: str, version: int, config: Any, views: TrainViews, *more: NDArray
) -> Path | None:
    """Path named by a hash of everything that decides a result; None without a folder.

    Args:
        folder: where results are kept.
        name: what the result is, the first part of the file's name.
        version: to be raised when the same input gives another result than before.
        config: a dataclass of options.
        views: the photographs.
        *more: other arrays that decide it.
    """
    arrays = [views.camera_to_worlds, views.intrinsics, *views.images, *views.valid, *more]
    return file_of(folder, name, version, config, arrays)


def file_of(
    folder: Path | None, name: str, version: int, config: Any, arrays: Iterable[NDArray | None]
) -> Path | None:
    """As `kept_file`, for a result that `arrays` decide and no photographs."""
    if folder is None:
        return None
    digest = hashlib.sha256(f"{version} {dataclasses.asdict(config)}".encode())
    for array in arrays:
        if array is None:
            digest.update(b"none")
        else:
            digest.update(f"{array.shape} {array.dtype}".encode())
            digest.update(np.ascontiguousarray(array).data)
    return Path(folder) / f"{name}_{digest.hexdigest()[:32]}.npz"


def part_file(path: Path | None, index: int) -> Path | None:
    """Where a part of an unfinished result is kept; None without a path."""
    return None if path is None else path.with_name(f"{_PART}{path.stem}_{index:04d}.npz")


def remove_parts(path: Path | None) -> None:
    """Remove the parts of a result; those of one that is not there stay."""
    if path is None or not os.path.exists(path):  # Path.exists raises where it may not look
        return
    with contextlib.suppress(OSError):  # a folder that cannot be written keeps them
        for part in path.parent.glob(f"{_PART}{path.stem}_*.npz"):
            part.unlink(missing_ok=True)


def load_kept(
    path: Path | None, what: str, read: Callable[[Mapping[str, NDArray]], Result]
) -> Result | None:
    """What `read` makes of the arrays of a file; None where there is no usable one.

    `read` raises ValueError or KeyError for arrays that it does not expect.
    """
    if path is None:
        return None
    try:
        if not path.exists():
            return None
        with np.load(path, allow_pickle=False) as stored:
            result = read(stored)
        with contextlib.suppress(OSError):  # a folder that cannot be written is still read
            os.utime(path)
        return result
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        warn(f"the cached {what} {path} are damaged ({error}); making them anew")
        return None


def keep(path: Path | None, what: str, arrays: Mapping[str, NDArray]) -> bool:
    """Write a file, complete or not at all; whether it is there. A failure is one line."""
    if path is None:
        return False
    # In memory first: a zip file whose stream fails complains again when it is collected.
    content = io.BytesIO()
    np.savez(content, **arrays)  # pyright: ignore[reportArgumentType]
    partial: str | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _make_room(path.parent, content.getbuffer().nbytes)
        handle, partial = tempfile.mkstemp(prefix=_WRITING, suffix=".tmp", dir=path.parent)
        with os.fdopen(handle, "wb") as stream:
            stream.write(content.getbuffer())
        os.replace(partial, path)
        partial = None
        return True
    except OSError as error:
        warn(f"cannot keep the {what} in {path.parent} ({error}); going on without")
        return False
    finally:
        if partial is not None:
            Path(partial).unlink(missing_ok=True)


def _make_room(folder: Path, num_bytes: int) -> None:
    """Remove what killed runs left, then what was unused for longest until `num_bytes` fit."""
    now = time.time()
    kept: list[tuple[float, int, Path]] = []
    for file in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):  # another run removed it in between
            status = file.stat()
            if file.name.startswith(_WRITING):
                if now - status.st_mtime > _ABANDONED_AFTER_SECONDS:
                    file.unlink()
            elif file.suffix == ".npz":  # nothing of anybody else's
                kept.append((status.st_mtime, status.st_size, file))
    used = sum(size for _, size, _ in kept)
    for _, size, file in sorted(kept):
        if used + num_bytes <= _MAX_BYTES:
            break
        file.unlink(missing_ok=True)
        used -= size
