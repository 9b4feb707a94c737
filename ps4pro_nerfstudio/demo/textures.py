# SPDX-License-Identifier: Apache-2.0
"""Photographs as mip-mapped textures, for pictures without aliasing.

Notation: a texture is a square `[size, size, 3]` float32 array of display colours in [0, 1];
texture coordinates (u, v) run right and down over one copy of it, and copies repeat mirrored, so
that any photograph tiles without a seam. Level 0 of the pyramid is the texture itself, and level l
averages 2^l x 2^l of its texels.

The photographs are those that lie inside the scikit-image package. They are opened as files:
nothing is ever downloaded.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib import resources

import numpy as np
from numpy.typing import NDArray

from ps4pro_nerfstudio.messages import MissingPartError

TEXTURE_SIZE = 512
"""Texels along each side of a texture; a power of two."""

# Each entry: file in skimage/data, and the part (left, top, right, bottom) of it, as fractions,
# that has structure. Where they come from and their terms: the docstrings of skimage.data.
_PHOTOGRAPHS: dict[str, tuple[str, tuple[float, float, float, float]]] = {
    "astronaut": ("astronaut.png", (0.0, 0.0, 1.0, 1.0)),
    "brick": ("brick.png", (0.0, 0.0, 1.0, 1.0)),
    "camera": ("camera.png", (0.0, 0.0, 1.0, 1.0)),
    "cat": ("chelsea.png", (0.0, 0.0, 1.0, 1.0)),
    "coffee": ("coffee.png", (0.0, 0.0, 1.0, 1.0)),
    "coins": ("coins.png", (0.0, 0.0, 1.0, 1.0)),
    "galaxies": ("hubble_deep_field.jpg", (0.0, 0.0, 1.0, 1.0)),
    "grass": ("grass.png", (0.0, 0.0, 1.0, 1.0)),
    "gravel": ("gravel.png", (0.0, 0.0, 1.0, 1.0)),
    "moon": ("moon.png", (0.0, 0.0, 1.0, 1.0)),
    "page": ("page.png", (0.0, 0.0, 1.0, 1.0)),
    "retina": ("retina.jpg", (0.2, 0.2, 0.8, 0.8)),
    "rocket": ("rocket.jpg", (0.2, 0.0, 0.8, 1.0)),
    "tissue": ("ihc.png", (0.0, 0.0, 1.0, 1.0)),
    "wood": ("coffee.png", (0.76, 0.0, 1.0, 0.34)),
}

_LUMINANCE = np.array([0.299, 0.587, 0.114], dtype=np.float32)

PHOTOGRAPHS: tuple[str, ...] = tuple(_PHOTOGRAPHS)
"""Names that `photograph` knows."""


@cache
def photograph(name: str) -> NDArray[np.float32]:
    """One of `PHOTOGRAPHS` as `[TEXTURE_SIZE, TEXTURE_SIZE, 3]` display colours in [0, 1].

    The array is shared between callers and read-only. Its aspect ratio is squeezed to a square.

    Raises:
        ValueError: if the name is unknown.
        MissingPartError: if the installed scikit-image lacks the file.
    """
    import cv2
    from PIL import Image

    if name not in _PHOTOGRAPHS:
        raise ValueError(
            f"photograph: no picture named {name!r}; there are {', '.join(PHOTOGRAPHS)}"
        )
    file_name, (left, top, right, bottom) = _PHOTOGRAPHS[name]
    content = resources.files("skimage").joinpath("data").joinpath(file_name)
    if not content.is_file():
        raise MissingPartError(
            f"scikit-image lacks its photograph {file_name}, which textures the demo scene: "
            "run `pip install --force-reinstall scikit-image`"
        )
    with content.open("rb") as stream:
        # Pillow rather than OpenCV, which prints warnings about the colour profiles of these files.
        pixels = np.asarray(Image.open(stream).convert("RGB"))
    height, width = pixels.shape[:2]
    pixels = pixels[
        round(top * height) : round(bottom * height), round(left * width) : round(right * width)
    ]
    shrinks = min(pixels.shape[:2]) >= TEXTURE_SIZE
    resized = cv2.resize(
        pixels.astype(np.float32) / 255.0,
        (TEXTURE_SIZE, TEXTURE_SIZE),
        interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR,
    )
    texture = np.asarray(resized, dtype=np.float32)
    texture.setflags(write=False)
    return texture


def tinted(name: str, color: NDArray[np.floating], contrast: float) -> NDArray[np.float32]:
    """The luminance structure of a photograph around a colour: a material such as coloured plaster.

    Brightness that changes over more than a quarter of the photograph is taken out, because it
    would show as a pattern of its own where copies repeat.

    Args:
        name: one of `PHOTOGRAPHS`.
        color: [3] mean display colour of the result (before clipping to [0, 1]).
        contrast: standard deviation of the result's luminance, as a fraction of its mean.
    """
    import cv2

    luminance = photograph(name) @ _LUMINANCE
    # Blurred small and enlarged, because a Gaussian of an eighth of the width is slow at full size.
    small = cv2.resize(luminance, (32, 32), interpolation=cv2.INTER_AREA)
    small = cv2.GaussianBlur(small, (0, 0), 4.0, borderType=cv2.BORDER_REFLECT)
    structure = luminance - cv2.resize(small, luminance.shape, interpolation=cv2.INTER_LINEAR)
    structure /= structure.std()
    values = np.asarray(color) * (1.0 + contrast * structure[..., None])
    return np.clip(values, 0.0, 1.0).astype(np.float32)


def with_detail(
    base: NDArray[np.float32], detail: str, strength: float, repeats: int = 2
) -> NDArray[np.float32]:
    """A texture multiplied by the fine structure of a photograph, so that no part of it stays flat.

    Args:
        base: [size, size, 3] display colours.
        detail: the photograph that gives the structure, repeated mirrored.
        strength: standard deviation of the factor, whose mean is 1.
        repeats: copies of the structure along each side.
    """
    luminance = photograph(detail) @ _LUMINANCE
    structure = luminance[::repeats, ::repeats]
    tile = np.block([[structure, structure[:, ::-1]], [structure[::-1], structure[::-1, ::-1]]])
    copies = -(-base.shape[0] // tile.shape[0])
    tiled = np.tile(tile, (copies, copies))[: base.shape[0], : base.shape[1]]
    factor = 1.0 + strength * (tiled - tiled.mean()) / tiled.std()
    # Lifting the darkest part keeps the factor visible in it: zero times anything stays flat.
    lifted = 0.12 + 0.88 * base
    return np.clip(lifted * factor[..., None], 0.0, 1.0).astype(np.float32)


@dataclass(frozen=True)
class TexturePyramids:
    """The mip levels of all textures of a scene in one flat array, which compiled code can index.

    Texel (row, column) of texture k at level l, whose side is `size >> l`, is row
    `level_start[l] + (k * side + row) * side + column` of `texels`.
    """

    texels: NDArray[np.float32]  # [T, 3]
    level_start: NDArray[np.int64]  # [num_levels]
    size: int

    @classmethod
    def build(cls, textures: list[NDArray[np.float32]]) -> TexturePyramids:
        """Average the textures down to one texel.

        Raises:
            ValueError: if a texture is not square with a power-of-two side common to all.
        """
        size = textures[0].shape[0]
        for texture in textures:
            if texture.shape != (size, size, 3) or size & (size - 1):
                raise ValueError(
                    "textures: all must be [size, size, 3] with the same power of two for size, "
                    f"got {texture.shape} beside {textures[0].shape}"
                )
        level = np.stack(textures)
        flat, starts, start = [], [], 0
        while True:
            starts.append(start)
            flat.append(level.reshape(-1, 3))
            start += len(flat[-1])
            side = level.shape[1]
            if side == 1:
                break
            rows = level[:, ::2] + level[:, 1::2]
            level = np.float32(0.25) * (rows[:, :, ::2] + rows[:, :, 1::2])
        return cls(
            texels=np.concatenate(flat), level_start=np.array(starts, dtype=np.int64), size=size
        )
