# SPDX-License-Identifier: Apache-2.0
"""What is said of the exceptions of other people's libraries."""

from __future__ import annotations

from pathlib import Path

import pytest

from ps4pro_nerfstudio.diffusion.libraries import explained, first_line, reason
from ps4pro_nerfstudio.messages import InputError


def chain(*errors: Exception, hidden: bool = False) -> BaseException:
    """The last of some exceptions, each raised while the one before was handled."""
    for error, before in zip(errors[1:], errors, strict=False):
        error.__context__ = before
        error.__suppress_context__ = hidden
    return errors[-1]


def test_the_first_line_is_told_or_the_kind_where_nothing_is_said() -> None:
    assert first_line(ValueError("\n  one \ntwo")) == "one"
    assert first_line(ValueError("")) == "ValueError"


def test_the_first_cause_follows_once() -> None:
    origin = "header too small"
    assert reason(ValueError(origin)) == origin
    told = reason(chain(ValueError(origin + "\nmore"), KeyError("x"), OSError("Unable to load.")))
    assert told == "Unable to load (header too small)"
    assert reason(chain(ValueError(origin), OSError(f"bad: {origin}"))) == f"bad: {origin}"


def test_a_bare_key_and_what_was_hidden_are_no_causes() -> None:
    assert reason(chain(KeyError("glpn"), OSError("unknown type"))) == "unknown type"
    assert reason(chain(StopIteration(0), ValueError("bad JSON"), hidden=True)) == "bad JSON"


@pytest.mark.parametrize("kind", ["", "as a chair"])
def test_what_a_library_raises_becomes_one_line(kind: str) -> None:
    with pytest.raises(InputError) as raised, explained(Path("w"), kind):
        raise OSError("no\nbackend")
    assert str(raised.value) == f"w cannot be loaded{f' {kind}' if kind else ''}: no"
