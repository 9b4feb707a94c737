# SPDX-License-Identifier: Apache-2.0
"""Photographs of any usual kind as 8-bit RGB or RGBA.

nerfstudio casts pixels to 8 bits without scaling, which turns a 16-bit photo into noise, and
refuses grey photos with alpha.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import numpy.typing as npt
from nerfstudio.data.datasets.base_dataset import InputDataset
from PIL import Image, UnidentifiedImageError

from ps4pro_nerfstudio.messages import InputError
from ps4pro_nerfstudio.splatting.background import TRANSPARENT_COLOR


class PhotoDataset(InputDataset):
    """Dataset of nerfstudio that reads 16-bit, grey, palette and RGBA images."""

    def keep_transparency(self) -> None:
        """Leave transparent images as they are where the parser wants a colour behind them.

        That colour goes into the metadata: it is what evaluation shows there. Without transparent
        images nothing changes.
        """
        color = self._dataparser_outputs.alpha_color
        if color is None or not any(_is_transparent(path) for path in self.image_filenames):
            return
        self._dataparser_outputs = dataclasses.replace(self._dataparser_outputs, alpha_color=None)
        self.metadata[TRANSPARENT_COLOR] = color

    def get_numpy_image(self, image_idx: int) -> npt.NDArray[np.uint8]:
        """Pixels [H, W, 3 or 4] uint8 of one image.

        Raises:
            InputError: the file is missing, damaged or no image.
        """
        path = self._dataparser_outputs.image_filenames[image_idx]
        try:
            with Image.open(path) as image:
                rgb = _to_8_bit(image)
        except FileNotFoundError as error:
            raise InputError(f"image {path} does not exist") from error
        except (UnidentifiedImageError, OSError, SyntaxError) as error:
            raise InputError(f"image {path} cannot be read: {error}") from error
        if self.scale_factor != 1.0:
            size = (int(rgb.width * self.scale_factor), int(rgb.height * self.scale_factor))
            rgb = rgb.resize(size, resample=Image.Resampling.BILINEAR)
        return np.array(rgb, dtype=np.uint8)


def _to_8_bit(image: Image.Image) -> Image.Image:
    """RGB, or RGBA when the image has transparency."""
    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image, dtype=np.float64)
        # 16-bit files open as I;16 or I; float files are taken as [0, 1].
        scale = 255.0 if image.mode == "F" else 255.0 / 65535.0
        grey = np.clip(np.rint(values * scale), 0, 255).astype(np.uint8)
        return Image.fromarray(grey).convert("RGB")
    return image.convert("RGBA" if _has_alpha(image) else "RGB")


def _has_alpha(image: Image.Image) -> bool:
    return image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info


def _is_transparent(path: Path) -> bool:
    """Whether an image has an alpha channel; one that cannot be opened is refused elsewhere."""
    try:
        with Image.open(path) as image:
            return _has_alpha(image)
    except (UnidentifiedImageError, OSError):
        return False
