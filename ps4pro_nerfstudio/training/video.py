# SPDX-License-Identifier: Apache-2.0
"""Training triplets from real video: clips, or the folders of Vimeo90K triplets and septuplets.

Three frames a < b < c of a clip give t = (b - a) / (c - a). Rejected are triplets across a cut (the
two halves of the way differ far more than the frames around) and those in which nothing moves.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ps4pro_nerfstudio.interpolation.video import is_cut, is_static
from ps4pro_nerfstudio.messages import InputError
from ps4pro_nerfstudio.training.samples import USABLE, Sample

VIDEO_SUFFIXES = {".mp4", ".mkv", ".mov", ".avi", ".webm", ".m4v"}
_ATTEMPTS = 12


class VideoTriplets:
    """Random triplets of a folder of videos (any depth), or of `im1.png`, `im2.png`, ... folders.

    Videos are decoded once, reduced to a long side of `long_side` pixels, into `cache`.

    Raises:
        InputError: when the folder has neither.
    """

    def __init__(self, folder: Path, cache: Path, long_side: int = 512) -> None:
        self._clips: list[Any] = []
        self._folders = sorted(path.parent for path in folder.rglob("im1.png"))
        videos = sorted(p for p in folder.rglob("*") if p.suffix.lower() in VIDEO_SUFFIXES)
        for path in videos:
            target = cache / f"{path.stem}-{path.stat().st_size}-{long_side}.npy"
            if not target.is_file():
                _decode(path, target, long_side)
            self._clips.append(np.load(target, mmap_mode="r"))
        if not self._clips and not self._folders:
            raise InputError(f"{folder} has no videos and no im1.png, im2.png, ... folders")

    def sample(self, generator: np.random.Generator, width: int = 320, height: int = 192) -> Sample:
        """A random part of a random triplet that moves and has no cut.

        Raises:
            InputError: when none is found in a few attempts.
        """
        for _ in range(_ATTEMPTS):
            frames, t = self._draw(generator)
            if is_static(frames[0], frames[2]):
                continue
            if is_cut(frames[0], frames[1]) or is_cut(frames[1], frames[2]):
                continue
            parts = _random_part(generator, frames, width, height)
            if is_static(parts[0], parts[2]):
                continue
            flags = np.full(parts[1].shape[:2], USABLE, np.uint8)
            return Sample(parts[0], parts[1], parts[2], t, flags)
        raise InputError("the videos hardly move or are all cuts: no training triplet was found")

    def _draw(self, generator: np.random.Generator) -> tuple[list[NDArray[np.uint8]], float]:
        total = len(self._clips) + len(self._folders)
        chosen = int(generator.integers(total))
        if self._clips:
            # A clip of n frames counts as the square root: long clips are not more varied by n.
            weight = np.sqrt([len(clip) for clip in self._clips])
            weight = np.concatenate([weight, np.full(len(self._folders), 1.0)])
            chosen = int(generator.choice(total, p=weight / weight.sum()))
        if chosen < len(self._clips):
            clip = self._clips[chosen]
            gap = int(generator.choice([1, 2, 3, 4], p=[0.35, 0.35, 0.15, 0.15]))
            before = gap if generator.random() < 0.75 else int(generator.integers(1, 2 * gap + 1))
            before = min(before, 2 * gap - 1)
            if len(clip) <= 2 * gap:
                gap, before = 1, 1
            start = int(generator.integers(len(clip) - 2 * gap))
            indices = (start, start + before, start + 2 * gap)
            return [np.asarray(clip[k]) for k in indices], before / (2 * gap)
        import cv2

        paths = sorted(self._folders[chosen - len(self._clips)].glob("im*.png"))
        a, b, c = np.sort(generator.choice(len(paths), 3, replace=False)).tolist()
        images = [cv2.imread(str(paths[k])) for k in (a, b, c)]
        if any(image is None for image in images):
            raise InputError(f"{paths[a].parent} has a picture that cannot be read")
        return [np.ascontiguousarray(image[..., ::-1], np.uint8) for image in images], (b - a) / (
            c - a
        )


def _random_part(
    generator: np.random.Generator, frames: list[NDArray[np.uint8]], width: int, height: int
) -> list[NDArray[np.uint8]]:
    import cv2

    rows, columns = frames[0].shape[:2]
    enlarge = max(width / columns, height / rows, 1.0)
    if enlarge > 1.0:
        size = (max(round(columns * enlarge), width), max(round(rows * enlarge), height))
        frames = [
            np.asarray(cv2.resize(f, size, interpolation=cv2.INTER_CUBIC), np.uint8) for f in frames
        ]
        rows, columns = frames[0].shape[:2]
    x = int(generator.integers(columns - width + 1))
    y = int(generator.integers(rows - height + 1))
    return [np.ascontiguousarray(frame[y : y + height, x : x + width]) for frame in frames]


def _decode(path: Path, target: Path, long_side: int) -> None:
    """Decode a video into one array [N, H, W, 3] uint8."""
    import av

    frames = []
    try:
        with av.open(str(path)) as container:
            for frame in container.decode(video=0):
                shrink = min(1.0, long_side / max(frame.width, frame.height))
                size = (round(frame.width * shrink / 2) * 2, round(frame.height * shrink / 2) * 2)
                small = frame.reformat(width=size[0], height=size[1], interpolation="AREA")
                frames.append(small.to_ndarray(format="rgb24"))
    except av.FFmpegError as error:  # pyright: ignore[reportPrivateImportUsage]
        raise InputError(f"{path} cannot be decoded as video: {error}") from error
    if len(frames) < 3:
        raise InputError(f"{path} has {len(frames)} frames; a triplet needs 3")
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_suffix(".part.npy")
    np.save(draft, np.stack(frames))
    draft.replace(target)
