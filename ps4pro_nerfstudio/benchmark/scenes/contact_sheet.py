# SPDX-License-Identifier: Apache-2.0
"""Where a method wins and loses most: crops of truth, baseline and method, side by side.

The views are picked by the difference of their PSNR, the crops by where the squared errors of the
two renders differ most in the same direction. As many losses are shown as gains; where nothing is
lost, the smallest gains stand there and are called gains.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ps4pro_nerfstudio.benchmark.scenes import statistics
from ps4pro_nerfstudio.benchmark.scenes.statistics import Record, ViewDifference

_TILE_PX = 240
_CAPTION_PX = 20
_GAP_PX = 4
# Side of the crop as a part of the image's shorter side.
_CROP_SHARE = 0.4


def pick(
    records: Sequence[Record], method: str, baseline: str, count: int
) -> tuple[list[ViewDifference], list[ViewDifference]]:
    """Test views with the largest gains and with the largest losses, the extreme ones first.

    A view of a cell appears once, with the seed where it stands out most; no view is in both lists.
    """
    changes = [
        change
        for cell in statistics.cells(records).values()
        for change in statistics.view_differences(cell, method, baseline)
        if change.view["picture"] and change.baseline_view["picture"]
    ]
    changes.sort(key=lambda change: change.difference)
    losses = _distinct(changes)
    gains = _distinct(changes[::-1])
    # With few views the lists would meet in the middle; a single view is a gain.
    count = max(1, min(count, len(gains) // 2))
    chosen = gains[:count]
    taken = {_identity(change) for change in chosen}
    return chosen, [change for change in losses if _identity(change) not in taken][:count]


def crop_box(
    truth: NDArray[np.float32],  # [H, W, 3]
    better: NDArray[np.float32],  # [H, W, 3]
    worse: NDArray[np.float32],  # [H, W, 3]
    side: int,
) -> tuple[int, int]:
    """Top and left of the square, `side` pixels, where `worse` has most more squared error."""
    excess = (np.square(worse - truth) - np.square(better - truth)).sum(axis=2, dtype=np.float64)
    # Sums over all squares from one table of sums.
    table = np.pad(excess.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    sums = table[side:, side:] - table[:-side, side:] - table[side:, :-side] + table[:-side, :-side]
    top, left = np.unravel_index(int(sums.argmax()), sums.shape)
    return int(top), int(left)


def write_contact_sheet(
    records: Sequence[Record], method: str, baseline: str, output: Path, count: int = 3
) -> Path | None:
    """Write contact_sheet.png below `output`; None when there is nothing to compare."""
    from PIL import Image, ImageDraw

    gains, losses = pick(records, method, baseline, count)
    changes = gains + losses
    if not changes:
        return None
    width = 3 * _TILE_PX + 4 * _GAP_PX
    row_height = _CAPTION_PX + _TILE_PX + _GAP_PX
    sheet = Image.new("RGB", (width, _CAPTION_PX + row_height * len(changes)), "white")
    draw = ImageDraw.Draw(sheet)
    for column, title in enumerate(("photograph", baseline, method)):
        draw.text((_GAP_PX + column * (_TILE_PX + _GAP_PX), 4), title, fill="black")
    for row, change in enumerate(changes):
        top = _CAPTION_PX + row * row_height
        draw.text((_GAP_PX, top + 4), _caption(change), fill="black")
        for column, tile in enumerate(_tiles(change, output)):
            image = Image.fromarray(np.rint(255 * tile).astype(np.uint8))
            image = image.resize((_TILE_PX, _TILE_PX), Image.Resampling.BICUBIC)
            sheet.paste(image, (_GAP_PX + column * (_TILE_PX + _GAP_PX), top + _CAPTION_PX))
    path = output / "contact_sheet.png"
    sheet.save(path)
    return path


def _tiles(change: ViewDifference, output: Path) -> list[NDArray[np.float32]]:
    """Crops of photograph, baseline and method."""
    truth, ours = _read(output, change.record, change.view)
    _, theirs = _read(output, change.baseline, change.baseline_view)
    better, worse = (ours, theirs) if change.difference >= 0 else (theirs, ours)
    side = max(1, round(_CROP_SHARE * min(truth.shape[:2])))
    top, left = crop_box(truth, better, worse, side)
    return [image[top : top + side, left : left + side] for image in (truth, theirs, ours)]


def _caption(change: ViewDifference) -> str:
    record, ours = change.record, change.view["psnr"]
    what = "gain" if change.difference >= 0 else "loss"
    return (
        f"{what} of {abs(change.difference):.2f} dB, {ours - change.difference:.2f} to {ours:.2f}: "
        f"{record['scene']}, {statistics.short_name(change.name, record)}, "
        f"{len(record['train'])} training views, seed {record['seed']}"
    )


def _read(
    output: Path, record: Record, view: dict[str, Any]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Truth and render [H, W, 3] in [0, 1] of one view, from the picture that has both."""
    from PIL import Image

    path = output / "renders" / record["key"] / view["picture"]
    both = np.asarray(Image.open(path).convert("RGB"), dtype=np.float32) / 255
    half = both.shape[1] // 2
    return both[:, :half], both[:, half:]


def _identity(change: ViewDifference) -> tuple[str, str, str]:
    return (change.record["scene"], change.record["views"], change.name)


def _distinct(changes: list[ViewDifference]) -> list[ViewDifference]:
    """The first of each view."""
    first: dict[tuple[str, str, str], ViewDifference] = {}
    for change in changes:
        first.setdefault(_identity(change), change)
    return list(first.values())
