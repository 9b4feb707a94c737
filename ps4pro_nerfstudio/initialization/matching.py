# SPDX-License-Identifier: Apache-2.0
"""Kernels that compare descriptors of features near each other's epipolar line.

Only about one pair of features in a hundred lies within a few pixels of an epipolar line. Testing
the distance first and multiplying the descriptors of the survivors is an order of magnitude faster
than the full product of both descriptor matrices. Descriptors are int16 and products int32, hence
exact: the result depends neither on the order of summation nor on the number of threads.

This module imports numba; import it where it is used.
"""

from __future__ import annotations

from typing import NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray

Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]


class BestNearLine(NamedTuple):
    """For each feature of both images its best partner near the epipolar line, -1 for none.

    The second best score ignores features at the position of the best one: a position with two
    orientations has two descriptors.
    """

    partner_a: Int64  # [A], index into b
    score_a: Int32  # [A]
    second_a: Int32  # [A]
    partner_b: Int64  # [B], index into a
    score_b: Int32  # [B]
    second_b: Int32  # [B]


@numba.njit(cache=True, nogil=True)
def _dot(a, b):
    total = np.int32(0)
    for k in range(a.shape[0]):
        total += np.int32(a[k]) * np.int32(b[k])
    return total


@numba.njit(cache=True, nogil=True)
def _offer(candidate, score, place, places, index, partner, best, second):
    """Enter a candidate into the best and second best of feature `index`."""
    if score > best[index]:
        if partner[index] >= 0 and places[partner[index]] != place:
            second[index] = best[index]
        partner[index] = candidate
        best[index] = score
    elif score > second[index] and places[partner[index]] != place:
        second[index] = score


@numba.njit(cache=True, nogil=True)
def _best_near_line(
    lines, positions_b, descriptors_a, descriptors_b, places_a, places_b, max_distance
):
    num_a, num_b = descriptors_a.shape[0], descriptors_b.shape[0]
    partner_a, partner_b = np.full(num_a, -1), np.full(num_b, -1)
    score_a, score_b = np.zeros(num_a, np.int32), np.zeros(num_b, np.int32)
    second_a, second_b = np.zeros(num_a, np.int32), np.zeros(num_b, np.int32)
    for i in range(num_a):
        for j in range(num_b):
            distance = lines[i, 0] * positions_b[j, 0] + lines[i, 1] * positions_b[j, 1]
            if abs(distance + lines[i, 2]) < max_distance:
                score = _dot(descriptors_a[i], descriptors_b[j])
                _offer(j, score, places_b[j], places_b, i, partner_a, score_a, second_a)
                _offer(i, score, places_a[i], places_a, j, partner_b, score_b, second_b)
    return partner_a, score_a, second_a, partner_b, score_b, second_b


@numba.njit(cache=True, nogil=True)
def _best_other(chosen_a, chosen_b, descriptors_a, descriptors_b, places_b):
    best = np.zeros(chosen_a.shape[0], np.int32)
    for m in range(chosen_a.shape[0]):
        for j in range(descriptors_b.shape[0]):
            if places_b[j] != places_b[chosen_b[m]]:
                best[m] = max(best[m], _dot(descriptors_a[chosen_a[m]], descriptors_b[j]))
    return best


def best_near_line(
    lines: NDArray[np.float32],  # [A, 3], unit normals: epipolar lines in b of the features of a
    positions_b: NDArray[np.float32],  # [B, 2]
    descriptors_a: NDArray[np.int16],  # [A, K]
    descriptors_b: NDArray[np.int16],  # [B, K]
    places_a: Int64,  # [A], equal for features at the same position
    places_b: Int64,  # [B]
    max_distance: float,  # pixels
) -> BestNearLine:
    """Compare each feature of a with the features of b closer than max_distance to its line."""
    return BestNearLine(
        *_best_near_line(
            lines,
            positions_b,
            descriptors_a,
            descriptors_b,
            places_a,
            places_b,
            np.float32(max_distance),
        )
    )


def best_other(
    chosen_a: Int64,  # [M], indices into a
    chosen_b: Int64,  # [M], indices into b
    descriptors_a: NDArray[np.int16],
    descriptors_b: NDArray[np.int16],
    places_b: Int64,
) -> Int32:  # [M]
    """Score of the best partner, anywhere in b, other than the chosen one."""
    return _best_other(chosen_a, chosen_b, descriptors_a, descriptors_b, places_b)
