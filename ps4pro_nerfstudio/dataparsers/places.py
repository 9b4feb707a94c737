# SPDX-License-Identifier: Apache-2.0
"""Whether the cameras of a capture moved at all.

To be asked before poses are scaled: nerfstudio divides by the largest coordinate of a camera, which
makes a scene out of rounding errors, or fails, where no camera moved.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from ps4pro_nerfstudio.messages import InputError

_LEAST_SPREAD = 4.0 * float(np.finfo(np.float32).eps)
"""Spread, over the distance from the origin, that float32 poses can still tell from none."""


def stand_at_one_place(centres: ArrayLike) -> bool:
    """Whether all of several camera centres [N, 3] are the same but for the rounding of float32."""
    found = np.asarray(centres, dtype=np.float64)
    if len(found) < 2:
        return False
    return float(np.ptp(found, axis=0).max()) <= _LEAST_SPREAD * float(np.abs(found).max())


def check_places(centres: ArrayLike, where: object) -> None:
    """Refuse a capture whose cameras do not move.

    Args:
        centres: of the N cameras, [N, 3], not scaled.
        where: the file that they come from, for the message.

    Raises:
        InputError: all are the same.
    """
    if stand_at_one_place(centres):
        raise InputError(f"{where}: all cameras stand at the same place; there is no depth to find")
