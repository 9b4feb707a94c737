# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import shutil
import subprocess
import sys

from ps4pro_nerfstudio.engine.programs import provide_ffmpeg


def test_p33_ffmpeg_is_found_where_the_machine_has_none(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("PS4PRO_CACHE", str(tmp_path / "cache"))
    assert shutil.which("ffmpeg") is None
    assert provide_ffmpeg() is not None
    found = shutil.which("ffmpeg")
    assert found is not None
    version = subprocess.run([found, "-version"], capture_output=True, text=True, check=True)
    assert version.stdout.startswith("ffmpeg version")


def test_an_installed_ffmpeg_comes_first(tmp_path, monkeypatch):
    own = tmp_path / "ffmpeg"
    own.write_text("#!/bin/sh\n")
    own.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert provide_ffmpeg() == own
    assert os.environ["PATH"] == str(tmp_path)


def test_nothing_breaks_without_the_package(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    assert provide_ffmpeg() is None
