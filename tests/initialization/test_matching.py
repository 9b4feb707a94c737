# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest

from ps4pro_nerfstudio.initialization.matching import best_near_line, best_other


def random_features(seed: int, num_a: int = 60, num_b: int = 75):
    rng = np.random.default_rng(seed)
    normals = rng.normal(size=(num_a, 2))
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    positions = rng.uniform(0, 100, (num_b, 2))
    # Each line passes through a random feature of b, so that some features are near.
    offsets = -np.sum(normals * positions[rng.integers(0, num_b, num_a)], axis=1)
    lines = np.concatenate([normals, offsets[:, None]], axis=1).astype(np.float32)
    descriptors_a = rng.integers(0, 90, (num_a, 128)).astype(np.int16)
    descriptors_b = rng.integers(0, 90, (num_b, 128)).astype(np.int16)
    places_a, places_b = rng.integers(0, num_a // 2, num_a), rng.integers(0, num_b // 2, num_b)
    return lines, positions.astype(np.float32), descriptors_a, descriptors_b, places_a, places_b


@pytest.mark.parametrize("seed", range(5))
def test_best_near_line_agrees_with_a_double_loop(seed):
    lines, positions, descriptors_a, descriptors_b, places_a, places_b = random_features(seed)
    result = best_near_line(lines, positions, descriptors_a, descriptors_b, places_a, places_b, 5.0)
    near = np.abs(lines[:, :2] @ positions.T + lines[:, 2:]) < 5.0
    score = descriptors_a.astype(np.int32) @ descriptors_b.astype(np.int32).T
    score = np.where(near, score, 0)

    def by_hand(score, places):
        partner, best, second = [], [], []
        for row in score:
            chosen = int(row.argmax())
            partner.append(chosen if row[chosen] > 0 else -1)
            best.append(row[chosen])
            second.append(max(row[places != places[chosen]]))
        return partner, best, second

    for actual, expected in zip(
        result, [*by_hand(score, places_b), *by_hand(score.T, places_a)], strict=True
    ):
        np.testing.assert_array_equal(actual, expected)


def test_best_other_ignores_the_place_of_the_chosen_one():
    _, _, descriptors_a, descriptors_b, _, places_b = random_features(7)
    chosen_a, chosen_b = np.array([3, 0, 59]), np.array([10, 74, 0])
    score = descriptors_a.astype(np.int32) @ descriptors_b.astype(np.int32).T
    expected = [
        score[a][places_b != places_b[b]].max() for a, b in zip(chosen_a, chosen_b, strict=True)
    ]
    np.testing.assert_array_equal(
        best_other(chosen_a, chosen_b, descriptors_a, descriptors_b, places_b), expected
    )


def test_no_features_have_no_partners():
    lines, positions, descriptors_a, descriptors_b, places_a, places_b = random_features(1)
    result = best_near_line(
        lines, positions[:0], descriptors_a, descriptors_b[:0], places_a, places_b[:0], 5.0
    )
    assert np.all(result.partner_a == -1)
    assert len(result.partner_b) == 0
