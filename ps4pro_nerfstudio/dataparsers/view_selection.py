# SPDX-License-Identifier: Apache-2.0
"""Which photographs train and which are held out.

A view is known by its name, the path of its photo relative to the capture, and by its place in the
natural order of names ("2" before "10"), the file order. Test views are fixed first; training views
are then chosen among the rest, from their order and poses alone, so that nothing about a test view
decides what trains.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ps4pro_nerfstudio.messages import InputError

Selection = Literal["linspaced", "farthest-point", "list"]


@dataclass(frozen=True)
class SplitOptions:
    """What the user asked for; the fields are those of the dataparser."""

    views: int | None = None
    selection: Selection = "linspaced"
    every: int | None = None
    test_every: int = 8
    test_cap: int | None = None
    train_list: Path | None = None
    test_list: Path | None = None


@dataclass(frozen=True)
class OwnSplit:
    """Views that the capture itself names for training and for testing, as indices."""

    train: list[int]
    test: list[int]


@dataclass(frozen=True)
class Split:
    """Indices into the views in file order, both ascending and without a common view."""

    train: list[int]
    test: list[int]
    is_subset: bool
    """True when photographs that could train do not."""

    def between(self) -> list[int]:
        """For each gap between training views the view nearest to its middle that is unused."""
        test = set(self.test)
        found = []
        for first, last in pairwise(self.train):
            unused = [view for view in range(first + 1, last) if view not in test]
            if unused:
                found.append(min(unused, key=lambda view: abs(2 * view - first - last)))
        return found


def natural_key(name: str) -> list[tuple[int, int, str]]:
    """Key that sorts numbers within names by value."""
    return [
        (0, int(part), "") if part[0] in "0123456789" else (1, 0, part)
        for part in re.split(r"([0-9]+)", name)
        if part
    ]


def choose_split(
    names: Sequence[str],
    camera_to_worlds: ArrayLike,
    options: SplitOptions,
    own: OwnSplit | None = None,
    data: Path = Path(),
) -> Split:
    """Divide the views of a capture.

    Args:
        names: N names in file order, all different.
        camera_to_worlds: [N, 3, 4] poses with OpenGL camera axes.
        options: what the user asked for.
        own: the split that the capture brings; its test views stay test views unless a test list
            is given.
        data: folder in which list files are looked for when they are not found as given.

    Raises:
        InputError: options that contradict each other, an unknown or twice listed name, an empty
            test split, fewer than two training views, more views wanted than there are.
    """
    poses = np.asarray(camera_to_worlds, dtype=np.float64)
    _check_options(options)
    available, test = _hold_out(names, options, own, data)
    if options.every is not None:
        train = available[:: options.every]
        if own is None:
            available, test = train, [i for i in available if i not in set(train)]
    elif options.selection == "list":
        assert options.train_list is not None  # _check_options
        train = _read_list(options.train_list, names, data)
        both = sorted(set(train) & set(test))
        if both:
            other = options.test_list or "the capture's own test views"
            raise InputError(
                f"{names[both[0]]} stands in both {options.train_list} and {other}; a view either "
                "trains or tests"
            )
        if options.test_list is None and own is None:
            test = [i for i in available if i not in set(train)]
    else:
        train = available
    train = _reduce(train, poses, options, own)
    if options.test_cap is not None:
        test = linspaced(test, options.test_cap)
    if not test:
        raise InputError(
            f"no test view is left of {len(names)} photos; hold some out with --test-every or "
            "--test-list"
        )
    if len(train) < 2:
        raise InputError(
            f"{len(train)} training view(s) of {len(names)} photos: at least two are needed; hold "
            "out fewer or choose more (--views, --every, --test-every, --train-list)"
        )
    is_subset = options.every is not None or len(train) < len(available)
    return Split(sorted(train), sorted(test), is_subset)


def linspaced(items: Sequence[int], count: int) -> list[int]:
    """`count` items at equal distances, the first and the last among them; all when too few.

    A single one is the first.
    """
    if count >= len(items):
        return list(items)
    places = np.rint(np.linspace(0, len(items) - 1, count)).astype(int)
    return [items[place] for place in places]


def farthest_points(camera_to_worlds: ArrayLike, count: int) -> list[int]:
    """Choose views that lie far from each other, greedily.

    The distance of two views is that of their centres, over the root mean square distance of all
    centres from their mean, plus the angle between their viewing directions in radians. It does
    not change when the capture is moved, turned or scaled. The first view is the one nearest to
    the mean of the centres; ties go to the lower index.

    Args:
        camera_to_worlds: [N, 3, 4] poses with OpenGL camera axes.
        count: how many to choose, at most N.

    Returns:
        Indices in the order in which they were chosen.
    """
    poses = np.asarray(camera_to_worlds, dtype=np.float64)
    offsets = poses[:, :3, 3] - poses[:, :3, 3].mean(0)
    size = float(np.sqrt((offsets**2).sum(1).mean()))
    if size > 0:
        offsets = offsets / size
    chosen = [int(np.linalg.norm(offsets, axis=1).argmin())]
    nearest = np.full(len(poses), np.inf)
    while len(chosen) < count:
        nearest = np.minimum(nearest, _distances(offsets, poses[:, :3, 2], chosen[-1]))
        nearest[chosen] = -1.0
        # Equal distances may differ in the last digits; the lower index shall win all the same.
        chosen.append(int(np.flatnonzero(nearest >= nearest.max() - 1e-9)[0]))
    return chosen


def _distances(centres: NDArray, axes: NDArray, view: int) -> NDArray:
    """Distance [N] of one view to all others; see `farthest_points`."""
    cosine = np.clip(axes @ axes[view], -1.0, 1.0)
    return np.linalg.norm(centres - centres[view], axis=1) + np.arccos(cosine)


def _check_options(options: SplitOptions) -> None:
    for name, smallest in (("views", 2), ("every", 2), ("test_every", 2), ("test_cap", 1)):
        value = getattr(options, name)
        if value is not None and value < smallest:
            raise InputError(f"--{name.replace('_', '-')} {value}: at least {smallest} is needed")
    if (options.selection == "list") != (options.train_list is not None):
        raise InputError("--selection list and --train-list FILE belong together; give both")
    chosen_otherwise = options.selection != "linspaced" or options.test_list is not None
    if options.every is not None and chosen_otherwise:
        raise InputError(
            "--every decides which views train and test; leave out --selection and the lists"
        )


def _hold_out(
    names: Sequence[str], options: SplitOptions, own: OwnSplit | None, data: Path
) -> tuple[list[int], list[int]]:
    """Views that may train, and test views."""
    everything = list(range(len(names))) if own is None else sorted(own.train)
    if options.test_list is not None:
        test = _read_list(options.test_list, names, data)
    elif own is not None:
        test = sorted(own.test)
    elif options.every is not None or options.selection == "list":
        test = []
    else:
        test = everything[:: options.test_every]
    held_out = set(test)
    return [i for i in everything if i not in held_out], test


def _reduce(
    train: list[int], poses: NDArray, options: SplitOptions, own: OwnSplit | None
) -> list[int]:
    count = options.views
    if count is None:
        return train
    if options.every is not None or options.selection == "list":
        if count != len(train):
            what = "--every" if options.every is not None else "--train-list"
            raise InputError(
                f"--views {count} contradicts {what}, which gives {len(train)} training views; "
                "leave out --views"
            )
        return train
    if count > len(train):
        if own is not None and count > len(own.train):
            raise InputError(
                f"--views {count}: the capture's own split has only {len(own.train)} training "
                "photos; ask for that many at most"
            )
        what = "--test-every" if options.test_list is None else "--test-list"
        raise InputError(
            f"--views {count}: only {len(train)} photos are not held out; ask for fewer or hold "
            f"out fewer ({what})"
        )
    if options.selection == "farthest-point":
        return [train[place] for place in farthest_points(poses[train], count)]
    return linspaced(train, count)


def _read_list(path: Path, names: Sequence[str], data: Path) -> list[int]:
    """Indices of the views that a text file names, one per line; # starts a comment line."""
    file = path if path.is_file() else data / path
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"the list {path} cannot be read: {error}") from error
    wanted = [line.strip() for line in lines if line.strip() and not line.strip().startswith("#")]
    return sorted({find_name(name, names, str(path)) for name in wanted})


def find_name(name: str, names: Sequence[str], where: str) -> int:
    """Index of the view whose path ends in `name`.

    Raises:
        InputError: there is none, or there are several; `where` says who named it.
    """
    if name in names:
        return names.index(name)
    parts = PurePosixPath(name).parts
    found = [
        i for i, other in enumerate(names) if PurePosixPath(other).parts[-len(parts) :] == parts
    ]
    if not found:
        raise InputError(f"{where} names {name}, which is no photo of the capture")
    if len(found) > 1:
        raise InputError(
            f"{where} names {name}, which may be {names[found[0]]} or {names[found[1]]}; write "
            "the folder too"
        )
    return found[0]
