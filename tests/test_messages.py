# SPDX-License-Identifier: Apache-2.0
"""How numbers and names are put into one line."""

from __future__ import annotations

import pytest

from ps4pro_nerfstudio.messages import counted, named, spanned


@pytest.mark.parametrize(
    ("phrases", "expected"),
    [
        (["50 degrees > 45"], "50 degrees > 45"),
        (["62 degrees > 45", "9.5 degrees > 45", "50 degrees > 45"], "9.5 to 62 degrees > 45"),
        (["9% < 15%", "12.5% < 15%"], "9 to 12.5% < 15%"),
        (["baseline 1.2 of 1", "baseline 3 of 1"], "baseline 1.2 to 3 of 1"),
        (["0.5 and 1.3", "0.75 and 1.5"], "0.5 to 0.75 and 1.3 to 1.5"),
        (["5 px > 3", "5 px > 3"], "5 px > 3"),
        (["5 px > 3", "5 dB > 3"], ""),
        (["5 px > 3", ""], ""),
        ([""], ""),
        ([], ""),
    ],
)
def test_figures_that_differ_become_a_range(phrases: list[str], expected: str) -> None:
    assert spanned(phrases) == expected


def test_names_beyond_the_first_ones_are_counted() -> None:
    assert named(["a", "b"]) == "a, b"
    assert named(["a", "b", "c"], most=2) == "a, b and 1 more"


def test_one_has_no_plural() -> None:
    assert counted(1, "view") == "1 view"
    assert counted(1200, "view") == "1,200 views"
