# SPDX-License-Identifier: Apache-2.0
"""Pseudo views on disk, so that a second run does not make them again.

One folder per key below the folder that the caller gives:

    <key>/manifest.json           format, number of views, skipped pairs, SHA-256 of every file
    <key>/view_0000.json          camera, time, provenance
    <key>/view_0000_image.png     RGB (absent for views without an image)
    <key>/view_0000_confidence.png
    <key>/view_0000_depth.npz     float32 (absent for views without depth)

and, while they are being made, one archive of the same files for each frame:

    .partial-<key>/frame_0000_0001_0.5.zip

The key is the SHA-256 of everything that decides the result: photographs, masks, poses, intrinsics,
names, points, times, the interpolator's identity, the config and `FORMAT_VERSION`. Frames and
entries are written under another name and moved into place in one step, so that two runs at once
and a killed run are harmless, and the run after a killed one makes only the frames that are
missing. The frames are removed once the entry is in place: only all of them together can be checked
against each other. What does not match its checksums is made again, never used. When the folder
cannot be written, training goes on with the views in memory. Nothing here reads pickles.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
import tempfile
import time
import uuid
import zipfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ps4pro_nerfstudio.caches import unlink_dangling
from ps4pro_nerfstudio.interpolation.protocol import FrameInterpolator
from ps4pro_nerfstudio.messages import say, warn
from ps4pro_nerfstudio.pseudo_views.pairs import Objection, Pair, Skipped
from ps4pro_nerfstudio.pseudo_views.pseudo_view import Provenance, PseudoView
from ps4pro_nerfstudio.pseudo_views.sources import (
    InterpolatedSource,
    InterpolatedSourceConfig,
    Progress,
    PseudoViewSet,
    SourceViews,
    make_pseudo_views,
)

FORMAT_VERSION = 8
"""Raised whenever the files, or the way in which views are made, change."""

_MANIFEST = "manifest.json"
_TEMPORARY = ".unfinished-"
_PARTIAL = ".partial-"
_ABANDONED_AFTER_SECONDS = 3600.0


class DamagedEntryError(Exception):
    """An entry exists but cannot be used."""


@dataclass
class StoreConfig:
    """Where the store stops growing."""

    max_bytes: int = 2 * 1024**3
    """Largest size of the folder of pseudo views; what was unused for longest is removed first. It
    bounds nothing else: depths and points lie in folders of their own (stereo, seed_points,
    dense_points, filled_points), each of which is kept below 2 GiB in the same way."""


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

    Frames that a killed run had finished are not made again; one line says how many.

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
    source = _ResumedSource(store, key, views, interpolator, config, device)
    made = source.make_all(progress)
    if source.num_resumed:
        say(f"frames of an interrupted run, not made again: {source.num_resumed}")
    store.save(key, made)
    return made


class _ResumedSource(InterpolatedSource):
    """Makes what the store does not have, and stores each frame as soon as it is made."""

    def __init__(
        self,
        store: PseudoViewStore,
        key: str,
        views: SourceViews,
        interpolator: FrameInterpolator,
        config: InterpolatedSourceConfig,
        device: torch.device | str,
    ) -> None:
        super().__init__(views, interpolator, config, device)
        self._store, self._key = store, key
        self.num_resumed = 0

    def make(self, pair: Pair, t: float) -> PseudoView | Objection:
        result = self._store.load_frame(self._key, pair, t)
        if result is not None:
            self.num_resumed += 1
            return result
        result = super().make(pair, t)
        self._store.save_frame(self._key, pair, t, result)
        return result


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
        self._given_up = False

    def load(self, key: str) -> PseudoViewSet | None:
        """The views of a key; None when there are none, or damaged ones (one line says so)."""
        entry = self.folder / key
        if not os.path.isdir(entry):  # Path.is_dir raises where a folder may not be read.
            return None
        try:
            loaded = _decode(lambda name: (entry / name).read_bytes())
        except DamagedEntryError as error:
            warn(f"stored pseudo views {key[:12]} are damaged ({error}); they are made again")
            self._remove(entry)
            return None
        # The entry was used: it is the last to be removed for space. A read-only store serves as
        # well, it only forgets the order.
        with contextlib.suppress(OSError):
            os.utime(entry)
        self._remove_frames(key)  # A run was killed between its last two steps.
        return loaded

    def save(self, key: str, views: PseudoViewSet) -> bool:
        """Write an entry in the place of its frames.

        When that fails, say so in one line, unless the frames already failed, and return False.
        Finished frames are then kept for the next run.
        """
        if self._given_up:
            return False
        files = _encode(views)
        num_bytes = sum(len(content) for content in files.values())
        if not self._fits(num_bytes):
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
            self._give_up(error)
            return False
        finally:
            if temporary is not None:
                shutil.rmtree(temporary, ignore_errors=True)
        self._remove_frames(key)
        return True

    def load_frame(self, key: str, pair: Pair, t: float) -> PseudoView | Objection | None:
        """What an unfinished run found for a pair at t; None: nothing, or nothing usable."""
        path = self._frame(key, pair, t)
        try:
            stored = _unpack(path.read_bytes())
        except DamagedEntryError as error:
            warn(f"the stored frame {path.name} is damaged ({error}); it is made again")
            return None
        except OSError:
            return None
        return stored.views[0] if stored.views else stored.skipped[0].objection

    def save_frame(self, key: str, pair: Pair, t: float, result: PseudoView | Objection) -> None:
        """Keep one frame, or why there is none; after a failure, said in one line, do nothing."""
        if self._given_up:
            return
        if isinstance(result, PseudoView):
            content = _pack(PseudoViewSet([result], []))
        else:
            content = _pack(PseudoViewSet([], [Skipped(pair.a, pair.b, result)]))
        path = self._frame(key, pair, t)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            num_bytes = _size(path.parent) + len(content)
            if self._fits(num_bytes):
                self._make_room(key, num_bytes)
                self._write_frame(path, content)
        except OSError as error:
            self._give_up(error)

    def _frame(self, key: str, pair: Pair, t: float) -> Path:
        return self.folder / f"{_PARTIAL}{key}" / f"frame_{pair.a:04d}_{pair.b:04d}_{t!r}.zip"

    def _write_frame(self, path: Path, content: bytes) -> None:
        for is_last in (False, True):
            temporary = path.with_name(f"{_TEMPORARY}{uuid.uuid4().hex}")
            try:
                path.parent.mkdir(exist_ok=True)
                temporary.write_bytes(content)
                temporary.replace(path)
                return
            except FileNotFoundError:
                # Another run finished the entry, or needed the room, and removed the folder.
                if is_last:
                    raise
            finally:
                with contextlib.suppress(OSError):
                    temporary.unlink()

    def _remove_frames(self, key: str) -> None:
        partial = self.folder / f"{_PARTIAL}{key}"
        if os.path.isdir(partial):
            self._remove(partial)

    def _fits(self, num_bytes: int) -> bool:
        if num_bytes <= self.config.max_bytes:
            return True
        warn(
            f"pseudo views take {num_bytes / 1e6:.0f} MB, more than the store may hold "
            f"({self.config.max_bytes / 1e6:.0f} MB); they stay in memory"
        )
        self._given_up = True
        return False

    def _give_up(self, error: OSError) -> None:
        """Say once why nothing is stored; later frames do not try again."""
        reason = error.strerror or type(error).__name__
        warn(f"cannot store pseudo views in {self.folder} ({reason}); they stay in memory")
        self._given_up = True

    def _move_into_place(self, temporary: Path, entry: Path) -> None:
        unlink_dangling(entry)  # A folder does not replace a link, even one to nowhere.
        try:
            temporary.replace(entry)
        except OSError:
            # Another run was faster: it wrote the same files, ours are not needed.
            if not (entry / _MANIFEST).is_file():
                raise

    def _make_room(self, key: str, num_bytes: int) -> None:
        """Remove what killed runs left, then what was unused for longest until the new one fits.

        Frames of killed runs are left like entries: their run may be started again.
        """
        now = time.time()
        entries: list[tuple[float, int, Path]] = []
        for path in self.folder.iterdir():
            try:
                modified = path.stat().st_mtime
                is_partial = path.name.startswith(_PARTIAL)
                if path.name.startswith(_TEMPORARY):
                    if now - modified > _ABANDONED_AFTER_SECONDS:
                        shutil.rmtree(path, ignore_errors=True)
                elif path.name in (key, f"{_PARTIAL}{key}"):
                    continue
                elif is_partial or (path / _MANIFEST).is_file():
                    entries.append((modified, _size(path), path))
            except FileNotFoundError:
                continue  # Another run removed it in between.
        used = sum(size for _, size, _ in entries)
        for _, size, path in sorted(entries):
            if used + num_bytes <= self.config.max_bytes:
                break
            self._remove(path)
            used -= size
            say(f"removed stored pseudo views {path.name.removeprefix(_PARTIAL)[:12]} to make room")

    def _remove(self, entry: Path) -> None:
        """Take an entry away in one step, then delete it."""
        grave: Path | None = None
        try:
            grave = Path(tempfile.mkdtemp(prefix=_TEMPORARY, dir=self.folder))
            entry.replace(grave / "removed")
        except OSError:  # among others, another run has taken it away
            shutil.rmtree(entry, ignore_errors=True)
        finally:
            if grave is not None:
                shutil.rmtree(grave, ignore_errors=True)


def _encode(views: PseudoViewSet) -> dict[str, bytes]:
    """File name to content, the manifest last."""
    files: dict[str, bytes] = {}
    for index, view in enumerate(views.views):
        stem = f"view_{index:04d}"
        files[f"{stem}_confidence.png"] = _png(view.confidence)
        if view.image is not None:
            files[f"{stem}_image.png"] = _png(view.image[..., ::-1])
        if view.depth is not None:
            files[f"{stem}_depth.npz"] = _npz(view.depth)
        sidecar = {
            "camera_to_world": view.camera_to_world.tolist(),
            **{name: getattr(view, name) for name in _SCALARS},
            "has_image": view.image is not None,
            "has_depth": view.depth is not None,
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


def _decode(read: Callable[[str], bytes]) -> PseudoViewSet:
    """Read and check what `_encode` made; `read` gives the content of a file.

    Raises:
        DamagedEntryError: a file is missing, changed or not understood.
    """
    try:
        manifest = json.loads(read(_MANIFEST))
        if manifest["format"] != FORMAT_VERSION:
            raise DamagedEntryError(f"format {manifest['format']}")
        checksums: dict[str, str] = manifest["sha256"]
        views = [_decode_view(read, index, checksums) for index in range(manifest["num_views"])]
        skipped = [
            Skipped(item["a"], item["b"], Objection(**item["objection"]))
            for item in manifest["skipped"]
        ]
    except OSError as error:
        raise DamagedEntryError(error.strerror or str(error)) from error
    except (ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise DamagedEntryError(f"unreadable: {error}") from error
    return PseudoViewSet(views, skipped)


def _decode_view(read: Callable[[str], bytes], index: int, checksums: dict[str, str]) -> PseudoView:
    def content(name: str) -> bytes:
        found = read(name)
        if hashlib.sha256(found).hexdigest() != checksums[name]:
            raise DamagedEntryError(f"{name} was changed")
        return found

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
        depth=_from_npz(content(f"{stem}_depth.npz")) if sidecar["has_depth"] else None,
    )


def _pack(views: PseudoViewSet) -> bytes:
    """All files of a set in one archive."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in _encode(views).items():
            archive.writestr(name, content)
    return buffer.getvalue()


def _unpack(content: bytes) -> PseudoViewSet:
    """Read and check what `_pack` made.

    Raises:
        DamagedEntryError: see `_decode`.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            return _decode(archive.read)
    except zipfile.BadZipFile as error:
        raise DamagedEntryError(f"unreadable: {error}") from error


def _size(folder: Path) -> int:
    """Bytes of the files in a folder, without those below it; another run may remove some."""
    total = 0
    with contextlib.suppress(FileNotFoundError):
        for file in folder.iterdir():
            with contextlib.suppress(FileNotFoundError):
                total += file.stat().st_size
    return total


def _npz(depth: NDArray[np.float32]) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, depth=depth)
    return buffer.getvalue()


def _from_npz(content: bytes) -> NDArray[np.float32]:
    with np.load(io.BytesIO(content), allow_pickle=False) as stored:
        return stored["depth"]


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
