# SPDX-License-Identifier: Apache-2.0
"""Kept arrays: complete or absent, and a disk that refuses them costs one line."""

from __future__ import annotations

import gc
import os
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ps4pro_nerfstudio.initialization import kept
from ps4pro_nerfstudio.initialization.kept import keep, load_kept

ARRAYS = {"depth": np.arange(100_000.0), "names": np.array(["a", "b"])}


@pytest.fixture
def warned(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr(kept, "warn", lines.append)
    return lines


@pytest.fixture
def full_disk() -> Iterator[None]:
    """No file may grow beyond 64 KiB; writing more is an OSError, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_arrays_come_back(tmp_path: Path, warned: list[str]) -> None:
    file = tmp_path / "new" / "kept.npz"
    assert load_kept(file, "depths", dict) is None
    keep(file, "depths", ARRAYS)
    back = load_kept(file, "depths", dict)
    assert back is not None
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(back[name], array)
    assert list(file.parent.iterdir()) == [file]
    assert warned == []


def test_a_full_disk_is_one_line_and_leaves_nothing(
    tmp_path: Path, warned: list[str], full_disk: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    del full_disk
    complaints: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", complaints.append)
    keep(tmp_path / "kept.npz", "depths of the photographs", ARRAYS)
    gc.collect()
    assert len(warned) == 1
    assert "depths of the photographs" in warned[0]
    assert "\n" not in warned[0]
    assert list(tmp_path.iterdir()) == []
    assert complaints == []


def test_a_damaged_file_is_made_anew(tmp_path: Path, warned: list[str]) -> None:
    file = tmp_path / "kept.npz"
    keep(file, "depths", ARRAYS)
    file.write_bytes(file.read_bytes()[:1000])
    assert load_kept(file, "depths", dict) is None
    assert len(warned) == 1


def test_what_was_unused_for_longest_makes_room(
    tmp_path: Path, warned: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three files of 0.8 MB fit into 2.5 MB, a fourth does not; the first one was just read."""
    monkeypatch.setattr(kept, "_MAX_BYTES", 2_500_000)
    files = [tmp_path / f"{index}.npz" for index in range(4)]
    for age, file in zip((30, 20, 10), files, strict=False):
        keep(file, "depths", ARRAYS)
        os.utime(file, (time.time() - age, time.time() - age))
    assert load_kept(files[0], "depths", dict) is not None
    keep(files[3], "depths", ARRAYS)
    assert sorted(tmp_path.iterdir()) == [files[0], files[2], files[3]]
    assert warned == []


def test_only_what_a_killed_run_left_is_cleared_away(tmp_path: Path) -> None:
    left, busy = tmp_path / ".writing-a.tmp", tmp_path / ".writing-b.tmp"
    for file, age in ((left, 7200), (busy, 5)):
        file.write_bytes(b"half")
        os.utime(file, (time.time() - age, time.time() - age))
    keep(tmp_path / "kept.npz", "depths", ARRAYS)
    assert sorted(file.name for file in tmp_path.iterdir()) == [busy.name, "kept.npz"]
