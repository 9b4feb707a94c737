# SPDX-License-Identifier: Apache-2.0
"""results.jsonl survives what happens while it is written."""

from __future__ import annotations

import pytest

from ps4pro_nerfstudio.benchmark.scenes import results
from ps4pro_nerfstudio.messages import InputError


def test_records_come_back_in_order(tmp_path):
    path = tmp_path / "new" / "results.jsonl"
    records = [{"key": str(index), "name": "Zoë\n"} for index in range(3)]
    for record in records:
        results.append(path, record)
    assert results.read(path) == records
    assert len(path.read_bytes().splitlines()) == 3


def test_no_file_is_no_records(tmp_path):
    assert results.read(tmp_path / "results.jsonl") == []


@pytest.mark.parametrize("length", range(1, len('{"key": "b"}\n')))
def test_a_line_broken_anywhere_is_dropped_and_the_next_one_is_whole(tmp_path, length):
    """Whatever part of the second line reached the disk; complete without its end it is kept."""
    path = tmp_path / "results.jsonl"
    results.append(path, {"key": "a"})
    with path.open("ab") as file:
        file.write(b'{"key": "b"}\n'[:length])
    kept = [{"key": "a"}, {"key": "b"}] if length == len('{"key": "b"}') else [{"key": "a"}]
    assert results.read(path) == kept
    results.append(path, {"key": "c"})
    assert results.read(path) == [*kept, {"key": "c"}]


def test_only_a_broken_last_line_is_rewritten(tmp_path):
    path = tmp_path / "results.jsonl"
    path.write_bytes(b'{"key": "a"}\n{"key"\n{"key": "c"}\n')
    with pytest.raises(InputError, match="line 2"):
        results.read(path)
    assert path.read_bytes().count(b"\n") == 3


def test_not_a_number_is_no_json(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        results.append(tmp_path / "results.jsonl", {"psnr": float("nan")})
