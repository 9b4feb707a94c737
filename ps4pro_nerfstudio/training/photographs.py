# SPDX-License-Identifier: Apache-2.0
"""Photographs as material for generated training pairs: a folder of the user's, or scikit-image's.

The evaluation set of view pairs is textured with scikit-image's photographs. Training on them as
well would let the figures flatter, so a folder of other photographs is asked for and said.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ps4pro_nerfstudio.demo.textures import PHOTOGRAPHS, photograph
from ps4pro_nerfstudio.messages import InputError, say

_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"}
_LONG_SIDE = 1100


class Photographs:
    """Random access to the pictures of a folder, reduced to a long side of 1100 pixels.

    Raises:
        InputError: when the folder has no pictures.
    """

    def __init__(self, folder: Path | None) -> None:
        self._cache: dict[int, NDArray[np.uint8]] = {}
        if folder is None:
            say(
                "no --photos folder: scikit-image's photographs texture the training pairs, "
                "which are also those of the evaluation set `--views`"
            )
            for index, name in enumerate(PHOTOGRAPHS):
                self._cache[index] = np.rint(photograph(name) * 255.0).astype(np.uint8)
            self._paths = []
            return
        self._paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in _SUFFIXES)
        if not self._paths:
            raise InputError(f"{folder} has no pictures ({', '.join(sorted(_SUFFIXES))})")

    def __len__(self) -> int:
        return len(self._paths) or len(self._cache)

    def get(self, index: int) -> NDArray[np.uint8]:
        """One picture, RGB [H, W, 3]."""
        import cv2

        if index not in self._cache:
            image = cv2.imread(str(self._paths[index]), cv2.IMREAD_COLOR)
            if image is None:
                raise InputError(f"{self._paths[index]} cannot be read as a picture")
            shrink = _LONG_SIDE / max(image.shape[:2])
            if shrink < 1.0:
                image = cv2.resize(image, None, fx=shrink, fy=shrink, interpolation=cv2.INTER_AREA)
            self._cache[index] = np.ascontiguousarray(image[..., ::-1], np.uint8)
        return self._cache[index]

    def crop(self, generator: np.random.Generator, height: int, width: int) -> NDArray[np.uint8]:
        """A random part [height, width, 3] of a random picture, at a random scale, mirrored.

        Parts without structure are drawn again, a few times.
        """
        import cv2

        part = np.zeros((height, width, 3), np.uint8)
        for _ in range(4):
            image = self.get(int(generator.integers(len(self))))
            largest = min(image.shape[0] / height, image.shape[1] / width)
            share = largest * generator.uniform(0.5, 1.0)
            size = (max(int(width * share), 8), max(int(height * share), 8))
            x = int(generator.integers(max(image.shape[1] - size[0], 0) + 1))
            y = int(generator.integers(max(image.shape[0] - size[1], 0) + 1))
            cut = image[y : y + size[1], x : x + size[0]]
            mode = cv2.INTER_AREA if share > 1.0 else cv2.INTER_CUBIC
            part = np.asarray(cv2.resize(cut, (width, height), interpolation=mode), np.uint8)
            if generator.random() < 0.5:
                part = part[:, ::-1]
            if part.std() > 20.0:
                break
        return np.ascontiguousarray(part)
