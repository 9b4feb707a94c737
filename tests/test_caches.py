# SPDX-License-Identifier: Apache-2.0
"""Where derived files are kept: beside the capture, unless something speaks against it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ps4pro_nerfstudio import caches
from ps4pro_nerfstudio.caches import CAPTURE_CACHE, borrow, can_write
from ps4pro_nerfstudio.datamanagers import augmentation
from ps4pro_nerfstudio.datamanagers.augmentation import AugmentationConfig
from ps4pro_nerfstudio.dataparsers.sparse_views import SparseViewsDataParserConfig
from ps4pro_nerfstudio.pseudo_views.store import PseudoViewStore, StoreConfig
from tests.conftest import CaptureMaker


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """What is said while no variable names a cache and the user's own is below `home`."""
    lines: list[str] = []
    monkeypatch.setattr(augmentation, "say", lines.append)
    monkeypatch.setattr(caches, "_user_cache", lambda: tmp_path / "home")
    monkeypatch.delenv("PS4PRO_CACHE", raising=False)
    return lines


def test_a_capture_keeps_its_own_cache(tmp_path: Path, said: list[str]) -> None:
    for data in (tmp_path, tmp_path / "transforms.json"):
        assert augmentation._cache(AugmentationConfig(), data) == tmp_path / ".ps4pro_cache"
    assert said == []
    assert list(tmp_path.iterdir()) == []


def test_a_capture_that_cannot_be_written_is_said_once(tmp_path: Path, said: list[str]) -> None:
    """A file in the place of the folder stops even root, as a read-only disk does."""
    (tmp_path / ".ps4pro_cache").write_text("in the way")
    folder = augmentation._cache(AugmentationConfig(), tmp_path)
    assert folder == tmp_path / "home/ps4pro-nerfstudio"
    assert len(said) == 1
    assert "cannot be written" in said[0]


def test_what_a_read_only_capture_has_finished_is_used(
    tmp_path: Path, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prepared once, then shared read-only: nobody matches its photographs again."""
    kept, home = tmp_path / ".ps4pro_cache", tmp_path / "home/ps4pro-nerfstudio"
    (kept / "pseudo_views/key").mkdir(parents=True)
    (kept / "pseudo_views/key/manifest.json").write_text("the capture's")
    (kept / "pseudo_views/.unfinished-key").mkdir()
    (kept / "stereo").mkdir()
    (kept / "stereo/stereo_1.npz").write_bytes(b"the capture's")
    (kept / "stereo/stereo_2.npz").write_bytes(b"the capture's")
    (home / "stereo").mkdir(parents=True)
    (home / "stereo/stereo_2.npz").write_bytes(b"my own")
    monkeypatch.setattr(augmentation, "can_write", lambda folder: False)

    for _ in range(2):
        assert augmentation._cache(AugmentationConfig(), tmp_path) == home
        assert (home / "pseudo_views/key/manifest.json").read_text() == "the capture's"
        assert [path.name for path in (home / "pseudo_views").iterdir()] == ["key"]
        assert (home / "stereo/stereo_1.npz").read_bytes() == b"the capture's"
        assert (home / "stereo/stereo_2.npz").read_bytes() == b"my own"

    # To make room, the link goes and not what it leads to.
    PseudoViewStore(home / "pseudo_views", StoreConfig())._remove(home / "pseudo_views/key")
    assert not (home / "pseudo_views/key").is_symlink()
    assert (kept / "pseudo_views/key/manifest.json").read_text() == "the capture's"


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_was_borrowed_and_is_gone_is_in_nobodys_way(tmp_path: Path, kind: str) -> None:
    """A link to nowhere: the next capture that has the entry lends it instead."""
    gone, there, home = tmp_path / "gone", tmp_path / "there", tmp_path / "home"
    link = home / "stereo/entry"
    link.parent.mkdir(parents=True)
    link.symlink_to(gone / "stereo/entry", target_is_directory=kind == "folder")
    (there / "stereo").mkdir(parents=True)
    if kind == "folder":
        (there / "stereo/entry").mkdir()
        (there / "stereo/entry/name").write_text("lent")
    else:
        (there / "stereo/entry").write_text("lent")
    borrow(there, home)
    assert (link / "name" if kind == "folder" else link).read_text() == "lent"
    borrow(gone, home)  # What still leads somewhere stays.
    assert link.resolve() == (there / "stereo/entry").resolve()


def test_a_read_only_disk_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**_):
        raise OSError(30, "Read-only file system")

    assert can_write(tmp_path / "not/there/yet")
    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    assert not can_write(tmp_path / "not/there/yet")


def test_the_option_goes_before_the_variable_and_both_before_the_capture(
    tmp_path: Path, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    option = AugmentationConfig(cache_dir=tmp_path / "option")
    monkeypatch.setenv("PS4PRO_CACHE", str(tmp_path / "variable"))
    assert augmentation._cache(option, tmp_path) == tmp_path / "option"
    assert augmentation._cache(AugmentationConfig(), tmp_path) == tmp_path / "variable"
    assert augmentation._cache(AugmentationConfig(), None) == tmp_path / "variable"
    assert said == []


def test_parsers_do_not_see_the_cache(capture: CaptureMaker) -> None:
    data = capture(num_images=5)
    entry = data / CAPTURE_CACHE / "pseudo_views/key"
    entry.mkdir(parents=True)
    (entry / "view_0000_image.png").write_bytes((data / "images/000.png").read_bytes())
    (entry / "transforms.json").write_text(json.dumps({"frames": []}))
    outputs = SparseViewsDataParserConfig(data=data).setup().get_dataparser_outputs("train")
    assert [path.name for path in outputs.image_filenames] == [f"{i:03d}.png" for i in range(1, 5)]
