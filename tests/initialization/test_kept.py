# SPDX-License-Identifier: Apache-2.0
"""Kept arrays: complete or absent, and a disk that refuses them costs one line."""

from __future__ import annotations

import gc
import resource
import sys
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
