# SPDX-License-Identifier: Apache-2.0
"""Pseudo views on disk, so that a second run does not make them again.

One folder per key below the folder that the caller gives:

    <key>/manifest.json           format, number of views, skipped pairs, SHA-256 of every file
    <key>/view_0000.json          camera, time, provenance
    <key>/view_0000_image.png     RGB (absent for views without an image)
    <key>/view_0000_confidence.png

The key is the SHA-256 of everything that decides the result: photographs, masks, poses, intrinsics,
names, points, times, the interpolator's identity, the config and `FORMAT_VERSION`. An entry is
written to a temporary folder beside it and moved into place in one step, so that two runs at once
and a killed run are harmless. What does not match its checksums is made again, never used. When the
folder cannot be written, training goes on with the views in memory. Nothing here reads pickles.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ps4pro_nerfstudio.interpolation.protocol import FrameInterpolator
from ps4pro_nerfstudio.messages import say, warn
from ps4pro_nerfstudio.pseudo_views.pairs import Objection, Skipped
from ps4pro_nerfstudio.pseudo_views.pseudo_view import Provenance, PseudoView
from ps4pro_nerfstudio.pseudo_views.sources import (
    InterpolatedSourceConfig,
    Progress,
    PseudoViewSet,
    SourceViews,
    make_pseudo_views,
)

FORMAT_VERSION = 2
"""Raised whenever the files, or the way in which views are made, change."""

_MANIFEST = "manifest.json"
_TEMPORARY = ".unfinished-"
_ABANDONED_AFTER_SECONDS = 3600.0


class DamagedEntryError(Exception):
    """An entry exists but cannot be used."""


@dataclass
class StoreConfig:
    """Where the store stops growing."""

    max_bytes: int = 2 * 1024**3
    """Largest size of the folder; entries unused for longest are removed first."""


def load_or_make(
    folder: Path | None,
    views: SourceViews,
    interpolator: FrameInterpolator,
    config: InterpolatedSourceConfig,
    store_config: StoreConfig | None = None,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> PseudoViewSet:
    """The pseudo views of a capture, from the store when it has them.

    Args:
        folder: the store's folder, created when needed; None keeps the views in memory only.
        views: the training photographs and cameras.
        interpolator: makes the frames; its `identity` is part of the key.
        config: how frames are made; part of the key.
        store_config: size bound.
        device: where the interpolator works.
        progress: called after each pair, only when views are made.
    """
    if folder is None:
        return make_pseudo_views(views, interpolator, config, device, progress)
    store = PseudoViewStore(folder, store_config or StoreConfig())
    key = store_key(views, interpolator.identity, config)
    stored = store.load(key)
    if stored is not None:
        return stored
    made = make_pseudo_views(views, interpolator, config, device, progress)
    store.save(key, made)
    return made


def store_key(
    views: SourceViews, interpolator_identity: str, config: InterpolatedSourceConfig
) -> str:
    """Hexadecimal SHA-256 of everything that decides the pseudo views."""
    digest = hashlib.sha256()

    def add(name: str, array: NDArray | None) -> None:
        described = "none" if array is None else f"{array.dtype.str}{array.shape}"
        digest.update(f"\n{name}:{described}:".encode())
        if array is not None:
            digest.update(np.ascontiguousarray(array).data)

    settings = {
        "format": FORMAT_VERSION,
        "interpolator": interpolator_identity,
        "config": asdict(config),
        "names": list(views.names),
        "times": None if views.times is None else [float(value) for value in views.times],
        "is_pinhole": None if views.is_pinhole is None else [bool(v) for v in views.is_pinhole],
    }
    digest.update(json.dumps(settings, sort_keys=True).encode())
    for index, image in enumerate(views.images):
        add("image", image)
        add("valid", None if views.valid is None else views.valid[index])
    add("camera_to_worlds", np.asarray(views.camera_to_worlds))
    add("intrinsics", np.asarray(views.intrinsics))
    add("points", None if views.points is None else np.asarray(views.points))
    return digest.hexdigest()


class PseudoViewStore:
    """Entries of pseudo views in one folder."""

    def __init__(self, folder: Path, config: StoreConfig) -> None:
        """Nothing is created or read yet."""
        self.folder = Path(folder)
        self.config = config

    def load(self, key: str) -> PseudoViewSet | None:
        """The views of a key; None when there are none, or damaged ones (one line says so)."""
        entry = self.folder / key
        if not entry.is_dir():
            return None
        try:
            loaded = _read_entry(entry)
        except DamagedEntryError as error:
            warn(f"stored pseudo views {key[:12]} are damaged ({error}); they are made again")
            self._remove(entry)
            return None
        # The entry was used: it is the last to be removed for space. A read-only store serves as
        # well, it only forgets the order.
        with contextlib.suppress(OSError):
            os.utime(entry)
        return loaded

    def save(self, key: str, views: PseudoViewSet) -> bool:
        """Write an entry; when that fails, say so in one line, leave nothing, and return False."""
        files = _encode(views)
        num_bytes = sum(len(content) for content in files.values())
        if num_bytes > self.config.max_bytes:
            warn(
                f"pseudo views take {num_bytes / 1e6:.0f} MB, more than the store may hold "
                f"({self.config.max_bytes / 1e6:.0f} MB); they stay in memory"
            )
            return False
        temporary: Path | None = None
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._make_room(key, num_bytes)
            temporary = Path(tempfile.mkdtemp(prefix=_TEMPORARY, dir=self.folder))
            for name, content in files.items():
                (temporary / name).write_bytes(content)
            temporary.chmod(0o755)  # mkdtemp gives 0700; the cache may be shared.
            self._move_into_place(temporary, self.folder / key)
        except OSError as error:
            reason = error.strerror or type(error).__name__
            warn(f"cannot store pseudo views in {self.folder} ({reason}); they stay in memory")
            return False
        finally:
            if temporary is not None:
                shutil.rmtree(temporary, ignore_errors=True)
        return True

    def _move_into_place(self, temporary: Path, entry: Path) -> None:
        try:
            temporary.replace(entry)
        except OSError:
            # Another run was faster: it wrote the same files, ours are not needed.
            if not (entry / _MANIFEST).is_file():
                raise

    def _make_room(self, key: str, num_bytes: int) -> None:
        """Remove what killed runs left, then unused entries until the new one fits."""
        now = time.time()
        entries: list[tuple[float, int, Path]] = []
        for path in self.folder.iterdir():
            try:
                modified = path.stat().st_mtime
                if path.name.startswith(_TEMPORARY):
                    if now - modified > _ABANDONED_AFTER_SECONDS:
                        shutil.rmtree(path, ignore_errors=True)
                elif path.name != key and (path / _MANIFEST).is_file():
                    size = sum(file.stat().st_size for file in path.iterdir())
                    entries.append((modified, size, path))
            except FileNotFoundError:
                continue  # Another run removed it in between.
        used = sum(size for _, size, _ in entries)
        for _, size, path in sorted(entries):
            if used + num_bytes <= self.config.max_bytes:
                break
            self._remove(path)
            used -= size
            say(f"removed stored pseudo views {path.name[:12]} to make room")

    def _remove(self, entry: Path) -> None:
        """Take an entry away in one step, then delete it."""
        try:
            grave = Path(tempfile.mkdtemp(prefix=_TEMPORARY, dir=self.folder))
            entry.replace(grave / "removed")
        except OSError:
            shutil.rmtree(entry, ignore_errors=True)
        else:
            shutil.rmtree(grave, ignore_errors=True)


def _encode(views: PseudoViewSet) -> dict[str, bytes]:
    """File name to content, the manifest last."""
    files: dict[str, bytes] = {}
    for index, view in enumerate(views.views):
        stem = f"view_{index:04d}"
        files[f"{stem}_confidence.png"] = _png(view.confidence)
        if view.image is not None:
            files[f"{stem}_image.png"] = _png(view.image[..., ::-1])
        sidecar = {
            "camera_to_world": view.camera_to_world.tolist(),
            **{name: getattr(view, name) for name in _SCALARS},
            "has_image": view.image is not None,
            "provenance": asdict(view.provenance),
        }
        files[f"{stem}.json"] = json.dumps(sidecar, indent=1).encode()
    manifest = {
        "format": FORMAT_VERSION,
        "num_views": len(views.views),
        "skipped": [asdict(skip) for skip in views.skipped],
        "sha256": {name: hashlib.sha256(content).hexdigest() for name, content in files.items()},
    }
    files[_MANIFEST] = json.dumps(manifest, indent=1).encode()
    return files


_SCALARS = ("fx", "fy", "cx", "cy", "width", "height", "time")


def _read_entry(entry: Path) -> PseudoViewSet:
    """Read and check an entry.

    Raises:
        DamagedEntryError: a file is missing, changed or not understood.
    """
    try:
        manifest = json.loads((entry / _MANIFEST).read_bytes())
        if manifest["format"] != FORMAT_VERSION:
            raise DamagedEntryError(f"format {manifest['format']}")
        checksums: dict[str, str] = manifest["sha256"]
        views = [_read_view(entry, index, checksums) for index in range(manifest["num_views"])]
        skipped = [
            Skipped(item["a"], item["b"], Objection(**item["objection"]))
            for item in manifest["skipped"]
        ]
    except OSError as error:
        raise DamagedEntryError(error.strerror or str(error)) from error
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedEntryError(f"unreadable: {error}") from error
    return PseudoViewSet(views, skipped)


def _read_view(entry: Path, index: int, checksums: dict[str, str]) -> PseudoView:
    def content(name: str) -> bytes:
        read = (entry / name).read_bytes()
        if hashlib.sha256(read).hexdigest() != checksums[name]:
            raise DamagedEntryError(f"{name} was changed")
        return read

    stem = f"view_{index:04d}"
    sidecar = json.loads(content(f"{stem}.json"))
    provenance = sidecar["provenance"]
    provenance["source_names"] = tuple(provenance["source_names"])
    image = _from_png(content(f"{stem}_image.png"))[..., ::-1] if sidecar["has_image"] else None
    return PseudoView(
        camera_to_world=np.array(sidecar["camera_to_world"], np.float32),
        **{name: sidecar[name] for name in _SCALARS},
        image=None if image is None else np.ascontiguousarray(image),
        confidence=_from_png(content(f"{stem}_confidence.png")),
        provenance=Provenance(**provenance),
    )


def _png(image: NDArray[np.uint8]) -> bytes:
    import cv2

    written, buffer = cv2.imencode(".png", np.ascontiguousarray(image))
    if not written:
        raise ValueError(f"cannot encode an image of shape {image.shape} as PNG")
    return buffer.tobytes()


def _from_png(content: bytes) -> NDArray[np.uint8]:
    import cv2

    image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    if image is None:
        raise ValueError("not a PNG")
    return image.astype(np.uint8)
