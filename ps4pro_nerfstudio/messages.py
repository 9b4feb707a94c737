# SPDX-License-Identifier: Apache-2.0
"""What the package says to its user: one line per event, and errors that tell what to do."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import NoReturn

from rich.console import Console
from rich.markup import escape

_console = Console(soft_wrap=True)


class InputError(ValueError):
    """The user's data or options cannot be used; the message says what to change.

    Commands print the message as one line and exit with code 1.
    """


class MissingPartError(RuntimeError):
    """An optional package, program or weights file is absent; the message says how to get it."""


def say(message: str) -> None:
    """Print one line about a decision that the user did not make explicitly."""
    _console.print(f"[bold cyan]ps4pro[/] {escape(message)}", highlight=False)


def warn(message: str) -> None:
    """Print one line about something that will not work as hoped, and what to do."""
    _console.print(f"[bold yellow]ps4pro[/] {escape(message)}", highlight=False)


def fail(message: str) -> NoReturn:
    """Print one line about what stops the command, and exit with code 1."""
    _console.print(f"[bold red]ps4pro[/] {escape(message)}", highlight=False)
    sys.exit(1)


def named(names: Sequence[str], most: int = 5) -> str:
    """Names in a row, only the first ones where there are many."""
    listed = ", ".join(names[:most])
    return listed if len(names) <= most else f"{listed} and {len(names) - most} more"


def spanned(phrases: Sequence[str]) -> str:
    """One phrase for several that differ in numbers only: "4 px > 3", "7 px > 3": "4 to 7 px > 3".

    Each number that differs is given from its smallest to its largest; numbers and percentages
    stand between spaces. Empty when other words differ.
    """
    rows = [phrase.split() for phrase in dict.fromkeys(phrases)]
    if len({len(row) for row in rows}) != 1:
        return ""
    words = []
    for column in zip(*rows, strict=True):
        try:
            values = column[:1] if len(set(column)) == 1 else sorted(column, key=_number)
        except ValueError:
            return ""
        least = values[0].rstrip("%") if values[-1].endswith("%") else values[0]
        words.append(values[0] if len(values) == 1 else f"{least} to {values[-1]}")
    return " ".join(words)


def _number(word: str) -> float:
    return float(word.rstrip("%"))


def counted(count: int, noun: str) -> str:
    """The number with the noun, in the plural unless there is one."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"
