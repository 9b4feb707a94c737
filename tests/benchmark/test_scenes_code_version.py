# SPDX-License-Identifier: Apache-2.0
"""The hash of the code changes with the code, and with nothing else."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ps4pro_nerfstudio.benchmark.scenes import code_version
from ps4pro_nerfstudio.benchmark.scenes.code_version import (
    CODE,
    DECISIVE,
    installed_versions,
    package_digest,
)
from ps4pro_nerfstudio.benchmark.scenes.plan import module_command


@pytest.fixture
def package(tmp_path: Path) -> Path:
    root = tmp_path / "package"
    for name in ("__init__.py", "models/a.py", "weights/net.safetensors", "README.md"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    return root


def _write(name: str, text: str = "new") -> Callable[[Path], object]:
    def change(package: Path) -> None:
        (package / name).parent.mkdir(exist_ok=True)
        (package / name).write_text(text)

    return change


@pytest.mark.parametrize(
    "change",
    [
        _write("models/a.py"),
        _write("models/b.py"),
        _write("weights/net.safetensors"),
        lambda package: (package / "models/a.py").unlink(),
        lambda package: (package / "models/a.py").rename(package / "a.py"),
    ],
    ids=["edited", "added", "other weights", "removed", "moved"],
)
def test_whatever_runs_differently_changes_the_hash(
    package: Path, change: Callable[[Path], object]
) -> None:
    before = package_digest(package)
    change(package)
    assert package_digest(package) != before


@pytest.mark.parametrize(
    "change",
    [
        _write("README.md"),
        _write("models/__pycache__/a.cpython-311.pyc"),
        _write("models/__pycache__/a.py"),
        _write(".ipynb_checkpoints/a.py"),
        lambda package: (package / "models/.#a.py").symlink_to("nowhere"),
        lambda package: os.utime(package / "models/a.py", (0, 0)),
    ],
    ids=["text", "compiled", "cache", "hidden", "lock of an editor", "time"],
)
def test_what_does_not_run_leaves_the_hash(package: Path, change: Callable[[Path], object]) -> None:
    before = package_digest(package)
    change(package)
    assert package_digest(package) == before


def test_checkout_and_installed_copy_of_the_same_code_have_one_hash(
    package: Path, tmp_path: Path
) -> None:
    installed = shutil.copytree(package, tmp_path / "site-packages" / "package")
    (installed / "README.md").unlink()  # as a wheel may leave it out
    assert package_digest(installed) == package_digest(package)


def test_the_order_in_which_a_disk_lists_files_does_not_matter(
    package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = package_digest(package)
    files = sorted(code_version._decisive_files(package))
    for listed in (files, files[::-1]):
        monkeypatch.setattr(code_version, "_decisive_files", lambda _, listed=listed: iter(listed))
        assert package_digest(package) == before


def test_code_and_weights_of_this_package_are_among_what_is_hashed() -> None:
    names = {name for name, _ in code_version._decisive_files(code_version._PACKAGE)}
    assert {"__init__.py", "benchmark/scenes/code_version.py"} <= names
    assert "interpolation/weights/ps4pro-small.safetensors" in names


def test_versions_have_the_hash_and_skip_what_is_not_installed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(code_version, "package_digest", lambda: "c0de")
    versions = installed_versions((*DECISIVE, "no-such-distribution"))
    assert versions[CODE] == "c0de"
    assert {"torch", "nerfstudio"} <= set(versions)
    assert "no-such-distribution" not in versions


def test_a_package_of_the_current_folder_is_not_taken_for_the_installed_one(
    tmp_path: Path,
) -> None:
    """`python -m` in that folder would run it; ns-train, whose place is elsewhere, would not."""
    for folder, word in ((tmp_path / "here", "wrong"), (tmp_path / "installed", "right")):
        folder.mkdir()
        (folder / "probe.py").write_text(f"import sys; print({word!r}, sys.argv[1:], __name__)")

    def printed(command: list[str]) -> str:
        environment = {**os.environ, "PYTHONPATH": str(tmp_path / "installed")}
        return subprocess.run(
            command, cwd=tmp_path / "here", env=environment, capture_output=True, text=True
        ).stdout.strip()

    assert printed([*module_command("probe"), "x"]) == "right ['x'] __main__"
    assert printed([sys.executable, "-m", "probe", "x"]) == "wrong ['x'] __main__"
