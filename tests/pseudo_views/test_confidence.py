# SPDX-License-Identifier: Apache-2.0
"""Laws of the confidence factors."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ps4pro_nerfstudio.pseudo_views.confidence import (
    combine,
    local_contrast,
    photometric_factor,
    position_factor,
    to_uint8,
)

errors = st.floats(0.0, 1e6)


@given(smaller=errors, larger=errors)
def test_position_factor_falls_with_the_error(smaller: float, larger: float) -> None:
    smaller, larger = min(smaller, larger), max(smaller, larger)
    assert 0.0 <= position_factor(larger) <= position_factor(smaller) <= 1.0


@given(smaller=st.floats(0.0, 1.0), larger=st.floats(0.0, 1.0))
def test_photometric_factor_falls_with_the_difference(smaller: float, larger: float) -> None:
    smaller, larger = min(smaller, larger), max(smaller, larger)
    base = np.zeros((1, 3))
    low, high = photometric_factor(base, base + larger), photometric_factor(base, base + smaller)
    assert 0.0 <= low[0] <= high[0] <= 1.0


def test_exact_agreement_is_full_confidence() -> None:
    image = np.random.default_rng(0).random((4, 5, 3))
    np.testing.assert_array_equal(photometric_factor(image, image), np.ones((4, 5)))
    assert position_factor(0.0) == 1.0


def test_factors_by_hand() -> None:
    """Colour difference .08 is one scale: exp(-1). Two pixels: exp(-2^2 / 2) = exp(-2)."""
    shifted = photometric_factor(np.zeros((1, 3)), np.full((1, 3), 0.08))
    assert shifted[0] == pytest.approx(np.exp(-1.0))
    assert position_factor(2.0) == pytest.approx(np.exp(-2.0))


def test_unknown_errors_are_no_confidence() -> None:
    unknown = np.array([np.inf, np.nan])
    np.testing.assert_array_equal(position_factor(unknown), [0.0, 0.0])


def test_combination_is_the_product_and_zero_outside_and_below_the_floor() -> None:
    in_bounds = np.array([True, True, True, False])
    first, second = np.array([1.0, 0.5, 0.2, 1.0]), np.array([0.9, 0.5, 0.3, 1.0])
    expected = [0.9, 0.25, 0.0, 0.0]
    np.testing.assert_allclose(combine(in_bounds, first, second, floor=0.1), expected)


def test_contrast_is_the_deviation_around_a_pixel() -> None:
    """A chessboard of .4 and .6 deviates by .1 from its mean; a blank picture not at all."""
    board = 0.4 + 0.2 * (np.indices((40, 40)).sum(axis=0) % 2)
    contrast = local_contrast(np.repeat(board[..., None], 3, axis=2))
    np.testing.assert_allclose(contrast, 0.1, atol=1e-3)
    assert local_contrast(np.full((40, 40, 3), 0.9)).max() < 1e-6
    half = np.where(np.arange(40) < 20, 0.0, board)[..., None] * np.ones(3)
    assert local_contrast(half)[:, :11].max() < 1e-6


def test_eight_bit_confidence_keeps_zero_and_one_and_drops_nan() -> None:
    stored = to_uint8(np.array([0.0, 1.0, 0.5, np.nan]))
    np.testing.assert_array_equal(stored, [0, 255, 128, 0])


def test_images_of_different_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(2, 3\) and \(3, 3\)"):
        photometric_factor(np.zeros((2, 3)), np.zeros((3, 3)))
