# SPDX-License-Identifier: Apache-2.0
"""The endless, seeded stream of training batches.

A sample is a function of (seed, kind, index) and a batch of (seed, step), so a run that is resumed
at a step sees what it would have seen. Samples are made when they are first asked for and kept on
disk; the classical flow of the whole pair is kept with them, so that a training step costs only the
network. `prepare` makes them ahead, in as many processes as wanted.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np

from ps4pro_nerfstudio.messages import InputError
from ps4pro_nerfstudio.training.augmentation import augment
from ps4pro_nerfstudio.training.layered import layered_sample
from ps4pro_nerfstudio.training.photographs import Photographs
from ps4pro_nerfstudio.training.samples import Batch, Sample
from ps4pro_nerfstudio.training.video import VideoTriplets

KINDS = ("room", "layered", "video")
_PAIRS_PER_ROOM = 12


@dataclass
class StreamConfig:
    """What the interpolator is trained on."""

    photos: Path | None = None
    """Folder of photographs for generated pairs; without one, those inside scikit-image."""
    videos: Path | None = None
    """Folder of videos, or of Vimeo90K triplets or septuplets; without one, no video is used."""
    cache: Path = field(default_factory=lambda: Path("training-cache"))
    """Folder for generated samples and decoded videos."""
    seed: int = 1
    """Chooses all samples and crops."""
    num_rooms: int = 600
    """Distinct ray-cast pairs."""
    num_layered: int = 600
    """Distinct layered pairs."""
    num_video: int = 600
    """Distinct video triplets."""
    shares: tuple[float, float, float] = (0.5, 0.2, 0.3)
    """Shares of rooms, layers and video in a batch."""
    size: tuple[int, int] = (320, 192)
    """Width and height of the pairs that crops are cut from."""


class SampleStream:
    """Batches by step. Not shared between threads."""

    def __init__(self, config: StreamConfig) -> None:
        self.config = config
        self._counts: dict[str, int] = dict(
            zip(KINDS, (config.num_rooms, config.num_layered, config.num_video), strict=True)
        )
        if config.videos is None:
            self._counts["video"] = 0
        shares = np.array(
            [
                share if self._counts[kind] else 0.0
                for kind, share in zip(KINDS, config.shares, strict=True)
            ]
        )
        if not shares.sum() > 0.0:
            raise InputError("no training data: all shares or numbers of samples are zero")
        self._shares = shares / shares.sum()
        self._photographs: Photographs | None = None
        self._videos: VideoTriplets | None = None
        self._room = lru_cache(maxsize=1)(self._make_room)

    def has(self, kind: str) -> bool:
        """Whether there are samples of a kind."""
        return self._counts[kind] > 0

    def path(self, kind: str, index: int) -> Path:
        """Where a sample is kept."""
        width, height = self.config.size
        folder = f"{kind}-{self.config.seed}-{width}x{height}"
        return self.config.cache / folder / f"{index:05d}.npz"

    def sample(self, kind: str, index: int) -> Sample:
        """A sample by its number, made if it is not on disk."""
        path = self.path(kind, index)
        if not path.is_file():
            self._make(kind, index).with_start().save(path)
        return Sample.load(path)

    def batch(self, step: int, batch_size: int, crop: int) -> Batch:
        """The batch of a training step."""
        generator = np.random.default_rng([self.config.seed, step])
        samples = []
        for _ in range(batch_size):
            kind = KINDS[int(generator.choice(len(KINDS), p=self._shares))]
            index = int(generator.integers(self._counts[kind]))
            samples.append(augment(self.sample(kind, index), generator, crop))
        return Batch.stack(samples)

    def missing(self) -> list[tuple[str, int]]:
        """Samples that are not on disk yet, kinds interleaved."""
        wanted = [
            (index / self._counts[kind], kind, index)
            for kind in KINDS
            for index in range(self._counts[kind])
            if not self.path(kind, index).is_file()
        ]
        return [(kind, index) for _, kind, index in sorted(wanted)]

    def _make(self, kind: str, index: int) -> Sample:
        width, height = self.config.size
        for attempt in range(8):
            generator = np.random.default_rng(
                [self.config.seed, KINDS.index(kind) + 1, index, attempt]
            )
            try:
                if kind == "layered":
                    return layered_sample(generator, self._get_photographs(), width, height)
                if kind == "video":
                    return self._get_videos().sample(generator, width, height)
                from ps4pro_nerfstudio.training.rooms import room_sample

                room = self._room(index // _PAIRS_PER_ROOM)
                return room_sample(room, generator, width=width, height=height)
            except InputError:
                if attempt == 7:
                    raise
        raise AssertionError

    def _make_room(self, index: int):
        from ps4pro_nerfstudio.training.rooms import draw_room

        generator = np.random.default_rng([self.config.seed, 9, index])
        return draw_room(generator, self._get_photographs(), baked=index % 2 == 0)

    def _get_photographs(self) -> Photographs:
        if self._photographs is None:
            self._photographs = Photographs(self.config.photos)
        return self._photographs

    def _get_videos(self) -> VideoTriplets:
        if self._videos is None:
            assert self.config.videos is not None
            self._videos = VideoTriplets(self.config.videos, self.config.cache / "decoded")
        return self._videos
