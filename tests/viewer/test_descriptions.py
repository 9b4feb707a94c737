# SPDX-License-Identifier: Apache-2.0
"""Texts of the panel."""

from __future__ import annotations

import html

from hypothesis import given
from hypothesis import strategies as st

from ps4pro_nerfstudio.viewer import descriptions
from ps4pro_nerfstudio.viewer.view_losses import ViewKey, ViewLoss


@given(st.text(st.characters(min_codepoint=32, max_codepoint=126)))
def test_a_file_name_is_text_and_no_markup(name):
    """Braces would be JavaScript to the page, angle brackets a tag, a bar a new column."""
    escaped = descriptions.literal(name)
    assert html.unescape(escaped) == name
    assert not set(escaped) & set("{}<>|*_`[]()!\\\n")


def test_the_table_keeps_the_order_and_tells_real_from_pseudo():
    losses = [ViewLoss(ViewKey(True, 1), 0.5, 9), ViewLoss(ViewKey(False, 0), 0.25, 7)]
    rows = descriptions.worst_views(losses, ["a|b"]).splitlines()[2:]
    assert [html.unescape(row) for row in rows] == [
        "| pseudo 1 | 0.5000 | 9 |",
        "| 0: a|b | 0.2500 | 7 |",
    ]
    assert rows[1].count("|") == 4


def test_before_the_first_step_the_table_says_so():
    assert "no view" in descriptions.worst_views([], [])


def test_views_with_one_name_have_different_titles():
    names = ["a.jpg", "a.jpg"]
    titles = {
        descriptions.title(ViewKey(pseudo, i), names) for pseudo in (False, True) for i in (0, 1)
    }
    assert len(titles) == 4
