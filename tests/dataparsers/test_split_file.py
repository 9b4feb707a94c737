# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from pathlib import Path

from ps4pro_nerfstudio.dataparsers.split_file import relative_name, write_split


def test_names_are_relative_to_the_capture(tmp_path):
    data = Path("captures/room")
    assert relative_name(data / "images/1.png", data) == "images/1.png"
    assert relative_name(data / "../other/1.png", data) == "../other/1.png"
    assert relative_name(data / "images/1.png", data / "transforms.json") == "images/1.png"
    assert relative_name(Path("/elsewhere/1.png"), data) == "/elsewhere/1.png"


def test_the_file_holds_both_lists(tmp_path):
    data = Path("room")
    file = write_split(
        tmp_path / "run", data, train=[data / "a/ä.png", data / "b/ä.png"], test=[data / "c.png"]
    )
    assert file == tmp_path / "run/split.json"
    written = json.loads(file.read_text(encoding="utf-8"))
    assert written == {"train": ["a/ä.png", "b/ä.png"], "test": ["c.png"]}
