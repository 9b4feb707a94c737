# SPDX-License-Identifier: Apache-2.0
"""Names of views and versions in what an evaluation writes."""

from __future__ import annotations

from pathlib import Path

import pytest

from ps4pro_nerfstudio.benchmark.scenes import code_version
from ps4pro_nerfstudio.benchmark.scenes.evaluate import machine, view_names
from ps4pro_nerfstudio.messages import InputError


def test_views_of_one_file_name_keep_their_folders() -> None:
    data = Path("/captures/room")
    files = [data / "left/0.png", data / "right/0.png", Path("/elsewhere/0.png")]
    assert view_names(files, data) == ["left/0.png", "right/0.png", "/elsewhere/0.png"]


def test_one_file_as_two_views_is_refused() -> None:
    data = Path("/captures/room")
    with pytest.raises(InputError, match=r"read from left/0\.png"):
        view_names([data / "left/0.png", data / "1.png", data / "left/0.png"], data)


def test_a_record_has_the_hash_of_the_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(code_version, "package_digest", lambda: "c0de")
    versions = machine("cpu")["versions"]
    assert versions[code_version.CODE] == "c0de"
    assert {"python", "torch", "nerfstudio"} <= set(versions)
