# SPDX-License-Identifier: Apache-2.0
"""Files of a sweep: one JSON object per line, never half of one twice.

A line is appended with one write and flushed to the disk before the job counts as finished. A last
line that a fault broke off is dropped when the file is read again, and its job is done anew.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from ps4pro_nerfstudio.messages import InputError, warn

Record = dict[str, Any]


def append(path: Path, record: Record) -> None:
    """Append one record and wait until it is on the disk."""
    line = json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab", buffering=0) as file:
        file.write(line.encode())
        os.fsync(file.fileno())


def read(path: Path) -> list[Record]:
    """All records; a broken last line is removed from the file.

    Raises:
        InputError: another line is broken, which no interrupted write explains.
    """
    if not path.is_file():
        return []
    content = path.read_bytes()
    lines = content.split(b"\n")
    records = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        record = _parse(line)
        if record is not None:
            records.append(record)
        elif number == len(lines):
            warn(f"{path}: dropped a last line that was not written completely")
        else:
            raise InputError(f"{path}: line {number} is not a JSON object; remove the line")
    if content and not content.endswith(b"\n"):
        _rewrite(path, records)
    return records


def _parse(line: bytes) -> Record | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None


def _rewrite(path: Path, records: list[Record]) -> None:
    """Replace the file in one step."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    scratch.unlink(missing_ok=True)
    scratch.touch()
    for record in records:
        append(scratch, record)
    os.replace(scratch, path)
