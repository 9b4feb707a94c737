# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
from numba import njit

from ps4pro_nerfstudio.splatting.cpu.simd import (
    LANES,
    any_lane,
    broadcast,
    choose,
    exp_negative,
    floor,
    load,
    lowest_bit,
    mask_bits,
    maximum,
    minimum,
    store,
    store_four_sums,
)

F32 = np.float32


@njit
def _exponentials(values, result):
    for i in range(0, len(values), LANES):
        store(result, i, exp_negative(load(values, i)))


@njit
def _walk(values, limit, result):
    """Indices of the lanes below the limit, in order; returns how many, and whether any."""
    mask = load(values, 0) <= broadcast(limit)
    bits = mask_bits(mask)
    count = 0
    while bits != 0:
        result[count] = lowest_bit(bits)
        bits &= bits - 1
        count += 1
    return count, any_lane(mask)


@njit
def _combine(a, b, result, sums):
    x = load(a, 0)
    y = load(b, 0)
    store(result, 0, minimum(x, y))
    store(result, LANES, maximum(x, y))
    store(result, 2 * LANES, choose(x > y, x + y, x - y))
    store(result, 3 * LANES, x * y)
    store_four_sums(sums, 0, x, y, x + y, x / y)


@njit
def _floors(values, result):
    for i in range(len(values)):
        result[i] = floor(values[i])


@pytest.mark.parametrize(("largest", "tolerance"), [(6, 1e-6), (80, 1e-5)])
def test_exponential_is_accurate(largest, tolerance):
    """No alpha above 1/255 has an exponent beyond 5.6."""
    values = np.linspace(-2, largest, 64 * LANES, dtype=F32)
    result = np.empty_like(values)
    _exponentials(values, result)
    np.testing.assert_allclose(result, np.exp(-values.astype(np.float64)), rtol=tolerance)


def test_set_bits_of_a_mask_are_the_lanes_below_the_limit():
    values = np.random.default_rng(0).random(LANES, dtype=F32)
    result = np.empty(LANES, np.int64)
    for limit in (-1.0, 0.3, 0.5, 2.0):
        expected = np.flatnonzero(values <= F32(limit))
        count, some = _walk(values, F32(limit), result)
        np.testing.assert_array_equal(result[:count], expected)
        assert some == (len(expected) > 0)


def test_lanes_combine_like_numpy():
    rng = np.random.default_rng(1)
    a = rng.uniform(1, 2, LANES).astype(F32)
    b = rng.uniform(1, 2, LANES).astype(F32)
    result = np.empty(4 * LANES, F32)
    sums = np.empty(4, F32)
    _combine(a, b, result, sums)
    lanes = result.reshape(4, LANES)
    np.testing.assert_array_equal(lanes[0], np.minimum(a, b))
    np.testing.assert_array_equal(lanes[1], np.maximum(a, b))
    np.testing.assert_array_equal(lanes[2], np.where(a > b, a + b, a - b))
    np.testing.assert_array_equal(lanes[3], a * b)
    np.testing.assert_allclose(sums, [a.sum(), b.sum(), (a + b).sum(), (a / b).sum()], rtol=1e-5)


def test_floor_goes_down_and_survives_what_no_integer_holds():
    values = np.array([-1.5, -1.0, -0.25, 0.0, 0.75, 3e30, -3e30], F32)
    result = np.empty_like(values)
    _floors(values, result)
    np.testing.assert_array_equal(result, np.floor(values))
