# SPDX-License-Identifier: Apache-2.0
"""Exposure of two photographs evened out."""

from __future__ import annotations

import numpy as np
import pytest

from ps4pro_nerfstudio.pseudo_views.exposure import brightness_ratio, coarse_ratio, equalise

GAINS = np.array([1.3, 1.2, 1.1])


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    return np.random.default_rng(0).uniform(0.1, 0.6, (40, 50, 3)).astype(np.float32)


def test_the_ratio_is_found_per_channel_whatever_is_wrong_in_places(picture: np.ndarray) -> None:
    brighter = picture * GAINS
    brighter[:8] = 0.5  # a tenth or two of the pixels show something else
    where = np.ones((40, 50), bool)
    ratio = brightness_ratio(picture, brighter, where)
    assert ratio is not None
    np.testing.assert_allclose(ratio, GAINS, rtol=0.02)


def test_too_few_pixels_tell_nothing(picture: np.ndarray) -> None:
    where = np.zeros((40, 50), bool)
    where[:3] = True
    assert brightness_ratio(picture, picture, where) is None


def test_clipped_pixels_tell_nothing(picture: np.ndarray) -> None:
    assert brightness_ratio(picture, np.ones_like(picture), np.ones((40, 50), bool)) is None


@pytest.mark.parametrize("t", [0.25, 0.5])
def test_both_end_at_the_brightness_between(picture: np.ndarray, t: float) -> None:
    first, second = equalise(picture, (picture * GAINS).astype(np.float32), GAINS, t)
    np.testing.assert_allclose(first, second, atol=1e-6)
    np.testing.assert_allclose(first, np.clip(picture * GAINS**t, 0, 1), atol=1e-6)


def test_small_differences_of_means_are_left_to_what_follows(picture: np.ndarray) -> None:
    overlap = np.ones((40, 50), bool)
    np.testing.assert_array_equal(coarse_ratio(picture, picture * 1.05, overlap), np.ones(3))
    np.testing.assert_allclose(coarse_ratio(picture, picture * GAINS, overlap), GAINS, rtol=1e-5)
