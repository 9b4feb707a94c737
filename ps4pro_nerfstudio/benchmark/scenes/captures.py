# SPDX-License-Identifier: Apache-2.0
"""Captures at the size of the comparison.

A capture in nerfstudio's or LLFF's format whose images are larger than wanted is written once more
in the same format: images area-averaged by a whole number, masks by nearest pixel, intrinsics by
the ratio of the sizes. Every other capture is used as it stands. Pixel coordinates count from the
image's corner, so scaling needs no half-pixel term. Depth maps are left out: no method of the
comparison reads them.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from ps4pro_nerfstudio.caches import CAPTURE_CACHE
from ps4pro_nerfstudio.messages import InputError, say

# 504 pixels count as "about 480": the step to the next whole factor would halve the image.
_TOLERANCE = 1.06
_SUFFIXES = (".png", ".jpg", ".jpeg")
# Part of the digest; to be raised when the written captures change.
_FORMAT = 1


@dataclass(frozen=True)
class Capture:
    """A capture as the benchmark uses it."""

    name: str
    """Name of the source's folder."""
    folder: Path
    """What --data names; exists after `write`."""
    digest: str
    """Hash of the source's content and of what is done to it."""
    source: Path
    factor: int
    """Whole number that the images are reduced by."""
    transforms: dict[str, Any] | None = None
    """Content of the source's transforms.json, where that is its format."""
    images: tuple[Path, ...] = ()
    """Images of an LLFF capture that are read."""
    arguments: tuple[str, ...] = ()
    """Options of the parser `sparse-views` that the capture needs."""

    def write(self) -> None:
        """Write the reduced copy where it is absent; a broken-off copy never takes its name.

        Raises:
            InputError: an image cannot be read.
        """
        if self.factor == 1 or self.folder.is_dir():
            return
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=".writing-", dir=self.folder.parent))
        try:
            if self.transforms is not None:
                _write_nerfstudio(self.transforms, self.source, self.factor, scratch)
            else:
                _write_llff(self.images, self.source, self.factor, scratch)
            os.rename(scratch, self.folder)
        except OSError:
            # Another sweep may have been quicker; its copy is the same.
            if not self.folder.is_dir():
                raise
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def plan_capture(source: Path, max_long_side: int, folder: Path) -> Capture:
    """What to do with a capture; writes nothing.

    Args:
        source: folder of the capture.
        max_long_side: longest side wanted, pixels; 6 % more are tolerated.
        folder: where reduced copies are kept.

    Raises:
        InputError: the folder is absent, or its images or cameras cannot be read.
    """
    source = source.resolve()
    if not source.is_dir():
        raise InputError(f"{source} is not a folder; --data wants folders of captures")
    if (source / "transforms.json").is_file():
        return _plan_nerfstudio(source, max_long_side, folder)
    if (source / "poses_bounds.npy").is_file():
        return _plan_llff(source, max_long_side, folder)
    written = folder.resolve().parent
    # Trainings and this benchmark may write into the capture's folder: they do not change it.
    files = sorted(
        path
        for path in source.rglob("*")
        if path.is_file()
        and CAPTURE_CACHE not in path.relative_to(source).parts
        and not path.is_relative_to(written)
    )
    if not files:
        raise InputError(f"{source} is empty; --data wants folders of captures")
    say(
        f"{source.name} is used at the size it has: only captures in nerfstudio's and LLFF's "
        "format are reduced"
    )
    return Capture(source.name, source, _digest(source, files, 1), source, 1)


def reduction_factor(long_side: int, max_long_side: int) -> int:
    """Smallest whole number that brings `long_side` to at most 1.06 `max_long_side`, pixels."""
    return max(1, int(np.ceil(long_side / (_TOLERANCE * max_long_side))))


# --------------------------------------------------------------------------- reading


def _plan_nerfstudio(source: Path, max_long_side: int, folder: Path) -> Capture:
    transforms = _read_transforms(source)
    files = _named_files(source, transforms)
    long_side = max(max(_size(source / frame["file_path"])) for frame in transforms["frames"])
    factor = reduction_factor(long_side, max_long_side)
    digest = _digest(source, [source / "transforms.json", *files], factor)
    target = source if factor == 1 else _copy_folder(folder, source, digest)
    return Capture(source.name, target, digest, source, factor, transforms)


def _plan_llff(source: Path, max_long_side: int, folder: Path) -> Capture:
    """Of folders that end at the same size the one that was reduced furthest is read."""
    found = []
    for number, images in _llff_folders(source):
        long_side = max(_size(images[0]))
        factor = reduction_factor(long_side, max_long_side)
        found.append((long_side / factor, -factor, number, images))
    if not found:
        raise InputError(f"{source} has poses_bounds.npy but no images, images_4 or images_8")
    _, negative_factor, number, images = max(found, key=lambda entry: entry[:2])
    factor = -negative_factor
    digest = _digest(source, [source / "poses_bounds.npy", *images], factor)
    if factor == 1:
        arguments = ("--downscale-factor", str(number))
        return Capture(source.name, source, digest, source, 1, None, (*images,), arguments)
    target = _copy_folder(folder, source, digest)
    return Capture(source.name, target, digest, source, factor, None, (*images,))


def _llff_folders(source: Path) -> Iterator[tuple[int, list[Path]]]:
    """Images that are k times smaller than photographed, with k, for every folder `images_k`."""
    for folder in sorted(source.glob("images*")):
        match = re.fullmatch(r"images(?:_(\d+))?", folder.name)
        if match is None or not folder.is_dir():
            continue
        images = sorted(path for path in folder.iterdir() if path.suffix.lower() in _SUFFIXES)
        if images:
            yield int(match[1] or 1), images


def _copy_folder(folder: Path, source: Path, digest: str) -> Path:
    return folder.resolve() / f"{source.name}-{digest[:8]}"


def _read_transforms(source: Path) -> dict[str, Any]:
    path = source / "transforms.json"
    try:
        transforms = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(transforms, dict) or not transforms.get("frames"):
        raise InputError(f'{path} lists no images (its "frames" are empty)')
    return transforms


def _named_files(source: Path, transforms: dict[str, Any]) -> list[Path]:
    """Images, masks and points that transforms.json names.

    Raises:
        InputError: one of them is absent.
    """
    names = [frame["file_path"] for frame in transforms["frames"]]
    names += [frame["mask_path"] for frame in transforms["frames"] if "mask_path" in frame]
    names += [transforms["ply_file_path"]] if "ply_file_path" in transforms else []
    paths = [source / name for name in names]
    for path in paths:
        if not path.is_file():
            raise InputError(f"{source / 'transforms.json'} names {path}, which does not exist")
    return paths


def _size(path: Path) -> tuple[int, int]:
    """Width and height in pixels."""
    try:
        with Image.open(path) as image:
            return image.size
    except (UnidentifiedImageError, OSError) as error:
        raise InputError(f"image {path} cannot be read: {error}") from error


def _digest(source: Path, paths: Iterable[Path], factor: int) -> str:
    total = hashlib.blake2b(f"{_FORMAT} {factor}".encode(), digest_size=16)
    for path in paths:
        content = hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()
        total.update(f"{os.path.relpath(path, source)} {content}\n".encode())
    return total.hexdigest()


# --------------------------------------------------------------------------- writing


def _write_nerfstudio(transforms: dict[str, Any], source: Path, factor: int, target: Path) -> None:
    """Write the capture below `target`; see the module's docstring."""
    made = copy.deepcopy(transforms)
    names = _new_names([frame["file_path"] for frame in made["frames"]], source)
    ratio = (1.0, 1.0)
    for frame in made["frames"]:
        old = source / frame["file_path"]
        ratio = _reduce_image(old, target / names[frame["file_path"]], factor, average=True)
        frame["file_path"] = names[frame["file_path"]]
        if "mask_path" in frame:
            name = f"masks/{frame['file_path']}"
            _reduce_image(source / frame["mask_path"], target / name, factor, average=False)
            frame["mask_path"] = name
        frame.pop("depth_file_path", None)
        _scale_intrinsics(frame, *ratio)
    # Intrinsics that all frames share go with images that share their size.
    _scale_intrinsics(made, *ratio)
    if "fisheye_crop_radius" in made:
        made["fisheye_crop_radius"] /= factor
    for split in ("train", "val", "test"):
        if listed := made.get(f"{split}_filenames"):
            made[f"{split}_filenames"] = [names[name] for name in listed if name in names]
    if "ply_file_path" in made:
        shutil.copyfile(source / made["ply_file_path"], target / "sparse_pc.ply")
        made["ply_file_path"] = "sparse_pc.ply"
    (target / "transforms.json").write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")


def _write_llff(images: Sequence[Path], source: Path, factor: int, target: Path) -> None:
    """Reduced images beside the same poses, which hold for any size of the images."""
    names = _new_names([str(image) for image in images], source)
    for image in images:
        _reduce_image(image, target / names[str(image)], factor, average=True)
    shutil.copyfile(source / "poses_bounds.npy", target / "poses_bounds.npy")


def _new_names(names: list[str], source: Path) -> dict[str, str]:
    """Names inside the copy: PNG, same folders where those lie inside the capture, same order."""
    inside = {}
    for name in names:
        relative = Path(os.path.relpath(source / name, source))
        if ".." in relative.parts:
            relative = Path("images", relative.name)
        elif len(relative.parts) > 1 and relative.parts[0].startswith("images"):
            # nerfstudio takes images_N beside images for a reduced copy.
            relative = Path("images", *relative.parts[1:])
        inside[name] = str(PurePosixPath(*relative.parts).with_suffix(".png"))
    if len(set(inside.values())) < len(inside):
        return {name: f"images/{index:05d}.png" for index, name in enumerate(sorted(inside))}
    return inside


def _reduce_image(old: Path, new: Path, factor: int, *, average: bool) -> tuple[float, float]:
    """Write the reduced image; return the ratios of the widths and of the heights.

    Colours are averaged weighted by opacity; without `average` the nearest pixel is taken.
    """
    import cv2

    new.parent.mkdir(parents=True, exist_ok=True)
    try:
        with Image.open(old) as image:
            size = (max(1, round(image.width / factor)), max(1, round(image.height / factor)))
            if not average:
                image.resize(size, Image.Resampling.NEAREST).save(new)
            else:
                transparent = image.has_transparency_data
                if transparent:
                    image = image.convert("RGBA").convert("RGBa")
                elif image.mode != "L":
                    image = image.convert("RGB")
                # Pillow's own average rounds rows and columns one after the other.
                pixels = cv2.resize(np.asarray(image), size, interpolation=cv2.INTER_AREA)
                reduced = Image.frombytes(image.mode, size, pixels.tobytes())
                (reduced.convert("RGBA") if transparent else reduced).save(new)
            return size[0] / image.width, size[1] / image.height
    except (UnidentifiedImageError, OSError) as error:
        raise InputError(f"image {old} cannot be read or reduced: {error}") from error


def _scale_intrinsics(values: dict[str, Any], along_x: float, along_y: float) -> None:
    """Scale what is measured in pixels; sizes stay whole."""
    for ratio, keys in ((along_x, ("fl_x", "cx")), (along_y, ("fl_y", "cy"))):
        for key in keys:
            if key in values:
                values[key] = values[key] * ratio
    for ratio, key in ((along_x, "w"), (along_y, "h")):
        if key in values:
            values[key] = round(values[key] * ratio)
