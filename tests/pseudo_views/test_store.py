# SPDX-License-Identifier: Apache-2.0
"""The store of pseudo views: what it keys on, and that nothing damaged or unfinished is used."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ps4pro_nerfstudio.interpolation.optical_flow import LinearBlend
from ps4pro_nerfstudio.pseudo_views import store as store_module
from ps4pro_nerfstudio.pseudo_views.pairs import Objection, Pair, PairConfig, Skipped
from ps4pro_nerfstudio.pseudo_views.pseudo_view import PseudoView
from ps4pro_nerfstudio.pseudo_views.sources import (
    InterpolatedSource,
    InterpolatedSourceConfig,
    PseudoViewSet,
    SourceViews,
    make_pseudo_views,
)
from ps4pro_nerfstudio.pseudo_views.store import (
    PseudoViewStore,
    StoreConfig,
    load_or_make,
    store_key,
)

CONFIG = InterpolatedSourceConfig()


@pytest.fixture(scope="module")
def example(three_views: SourceViews) -> PseudoViewSet:
    """Two views, one of them without an image, one with a time, and a skipped pair."""
    first, second = make_pseudo_views(three_views, LinearBlend()).views
    return PseudoViewSet(
        [replace(first, image=None), replace(second, time=0.1 + 0.2)],
        [Skipped(0, 2, Objection("rotation too large", "50 degrees > 45"))],
    )


@pytest.fixture
def messages(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the store tells the user."""
    said: list[str] = []
    monkeypatch.setattr(store_module, "warn", said.append)
    monkeypatch.setattr(store_module, "say", said.append)
    return said


def assert_equal(first: PseudoViewSet, second: PseudoViewSet) -> None:
    assert first.skipped == second.skipped
    assert len(first.views) == len(second.views)
    for one, other in zip(first.views, second.views, strict=True):
        for name, value in vars(one).items():
            if isinstance(value, np.ndarray):
                np.testing.assert_array_equal(value, getattr(other, name))
                assert value.dtype == getattr(other, name).dtype
            else:
                assert value == getattr(other, name), name


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_is_stored_comes_back_bit_for_bit(
    tmp_path: Path, example: PseudoViewSet, messages: list[str]
) -> None:
    store = PseudoViewStore(tmp_path / "new" / "folder", StoreConfig())
    assert store.load("key") is None
    assert store.save("key", example)
    loaded = store.load("key")
    assert loaded is not None
    assert_equal(loaded, example)
    assert names_in(store.folder) == ["key"]
    assert messages == []


def test_second_run_loads_instead_of_making(
    tmp_path: Path, three_views: SourceViews, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = load_or_make(tmp_path, three_views, LinearBlend(), CONFIG)
    monkeypatch.setattr(InterpolatedSource, "make_all", None)
    assert_equal(load_or_make(tmp_path, three_views, LinearBlend(), CONFIG), first)


def test_without_a_folder_views_stay_in_memory(three_views: SourceViews) -> None:
    assert len(load_or_make(None, three_views, LinearBlend(), CONFIG).views) == 2


def test_every_input_changes_the_key(three_views: SourceViews) -> None:
    views = three_views
    assert views.points is not None
    touched = [image.copy() for image in views.images]
    touched[1][5, 7, 0] ^= 1
    masks = [np.ones(image.shape[:2], bool) for image in views.images]
    hole = [mask.copy() for mask in masks]
    hole[0][0, 0] = False
    variants = [
        views,
        replace(views, images=touched),
        replace(views, valid=masks),
        replace(views, valid=hole),
        replace(views, camera_to_worlds=np.nextafter(views.camera_to_worlds, 9.0)),
        replace(views, intrinsics=views.intrinsics * 1.000001),
        replace(views, names=["a", "b", "c"]),
        replace(views, points=views.points[:-1]),
        replace(views, points=None),
        replace(views, times=[0.0, 0.5, 1.0]),
        replace(views, is_pinhole=[True, True, False]),
    ]
    keys = [store_key(variant, "flow/1", CONFIG) for variant in variants]
    keys.append(store_key(views, "flow/2", CONFIG))
    keys.append(store_key(views, "flow/1", InterpolatedSourceConfig(frames_per_gap=2)))
    nested = InterpolatedSourceConfig(pairs=PairConfig(max_rotation_degrees=30.0))
    keys.append(store_key(views, "flow/1", nested))
    assert len(set(keys)) == len(keys)
    assert store_key(views, "flow/1", InterpolatedSourceConfig()) == keys[0]


def _truncate(entry: Path) -> None:
    path = entry / "view_0001_image.png"
    path.write_bytes(path.read_bytes()[:100])


def _flip_a_bit(entry: Path) -> None:
    path = entry / "view_0000_confidence.png"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def _edit_pose(entry: Path) -> None:
    path = entry / "view_0000.json"
    path.write_text(path.read_text().replace('"fx": 120.0', '"fx": 121.0'))


def _other_format(entry: Path) -> None:
    path = entry / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["format"] = 999
    path.write_text(json.dumps(manifest))


DAMAGES: dict[str, Callable[[Path], object]] = {
    "truncated image": _truncate,
    "flipped bit": _flip_a_bit,
    "edited sidecar": _edit_pose,
    "missing file": lambda entry: (entry / "view_0001_confidence.png").unlink(),
    "missing manifest": lambda entry: (entry / "manifest.json").unlink(),
    "empty manifest": lambda entry: (entry / "manifest.json").write_text(""),
    "strange manifest": lambda entry: (entry / "manifest.json").write_text("[1, 2]"),
    "binary manifest": lambda entry: (entry / "manifest.json").write_bytes(b"\x80\x04\x95"),
    "other format": _other_format,
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_entry_is_made_again_with_one_warning(
    tmp_path: Path,
    three_views: SourceViews,
    messages: list[str],
    damage: Callable[[Path], object],
) -> None:
    good = load_or_make(tmp_path, three_views, LinearBlend(), CONFIG)
    (entry,) = tmp_path.iterdir()
    damage(entry)
    assert_equal(load_or_make(tmp_path, three_views, LinearBlend(), CONFIG), good)
    assert len(messages) == 1
    assert "damaged" in messages[0]
    assert names_in(tmp_path) == [entry.name]
    assert_equal(load_or_make(tmp_path, three_views, LinearBlend(), CONFIG), good)
    assert len(messages) == 1


@pytest.mark.parametrize("full_at", range(1, 6))
def test_a_full_disk_leaves_nothing_unfinished_and_training_goes_on(
    tmp_path: Path,
    three_views: SourceViews,
    messages: list[str],
    monkeypatch: pytest.MonkeyPatch,
    full_at: int,
) -> None:
    """A write fails after some bytes: that of a frame (1, 2) or one of the entry (from 3 on)."""
    expected = make_pseudo_views(three_views, LinearBlend())
    written: list[Path] = []
    really_write = Path.write_bytes

    def write(path: Path, content: bytes) -> int:
        written.append(path)
        if len(written) == full_at:
            really_write(path, content[:10])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return really_write(path, content)

    monkeypatch.setattr(Path, "write_bytes", write)
    assert_equal(load_or_make(tmp_path, three_views, LinearBlend(), CONFIG), expected)
    assert len(written) == full_at
    assert len(messages) == 1
    assert "No space left on device" in messages[0]
    (partial,) = tmp_path.iterdir()
    assert len(names_in(partial)) == min(full_at - 1, 2)
    messages.clear()
    assert_equal(load_or_make(tmp_path, three_views, LinearBlend(), CONFIG), expected)
    assert len(messages) == (full_at > 1)
    assert all("interrupted" in message for message in messages)
    assert names_in(tmp_path) == [partial.name.removeprefix(".partial-")]


def test_a_folder_that_cannot_be_made_is_said_once(
    tmp_path: Path, three_views: SourceViews, messages: list[str]
) -> None:
    (tmp_path / "file").write_text("in the way")
    folder = tmp_path / "file" / "store"
    assert len(load_or_make(folder, three_views, LinearBlend(), CONFIG).views) == 2
    assert len(messages) == 1
    assert "stay in memory" in messages[0]


def test_two_runs_at_once_both_get_their_views(
    tmp_path: Path, example: PseudoViewSet, messages: list[str]
) -> None:
    def run(_: int) -> PseudoViewSet:
        store = PseudoViewStore(tmp_path, StoreConfig())
        assert store.save("key", example)
        loaded = store.load("key")
        assert loaded is not None
        return loaded

    with ThreadPoolExecutor(8) as executor:
        for loaded in executor.map(run, range(24)):
            assert_equal(loaded, example)
    assert names_in(tmp_path) == ["key"]
    assert messages == []


def test_an_unfinished_entry_is_never_seen_and_old_ones_are_cleared(
    tmp_path: Path, example: PseudoViewSet
) -> None:
    """A killed run leaves its temporary folder; a fresh one may belong to a run at work."""
    store = PseudoViewStore(tmp_path, StoreConfig())
    old, fresh = tmp_path / ".unfinished-old", tmp_path / ".unfinished-fresh"
    for folder in (old, fresh):
        folder.mkdir()
        (folder / "view_0000.json").write_text("{")
    os.utime(old, (0, 0))
    store.save("key", example)
    assert names_in(tmp_path) == [".unfinished-fresh", "key"]


def test_least_recently_used_entries_make_room(
    tmp_path: Path, example: PseudoViewSet, messages: list[str]
) -> None:
    unbounded = PseudoViewStore(tmp_path, StoreConfig())
    for name in ("first", "second", "third"):
        unbounded.save(name, example)
    size = sum(path.stat().st_size for path in (tmp_path / "first").iterdir())
    now = time.time()
    for age, name in enumerate(("third", "second", "first")):
        os.utime(tmp_path / name, (now - 100 - age, now - 100 - age))
    unbounded.load("first")
    bounded = PseudoViewStore(tmp_path, StoreConfig(max_bytes=3 * size))
    assert bounded.save("fourth", example)
    assert names_in(tmp_path) == ["first", "fourth", "third"]
    assert len(messages) == 1
    assert "second" in messages[0]


def test_an_entry_larger_than_the_store_is_not_written(
    tmp_path: Path, example: PseudoViewSet, messages: list[str]
) -> None:
    store = PseudoViewStore(tmp_path, StoreConfig(max_bytes=1000))
    store.save("small", PseudoViewSet([], []))
    assert not store.save("large", example)
    assert names_in(tmp_path) == ["small"]
    assert len(messages) == 1


def test_files_of_others_are_left_alone(tmp_path: Path, example: PseudoViewSet) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(b"x" * 5000)
    PseudoViewStore(tmp_path, StoreConfig(max_bytes=10**6)).save("key", example)
    assert names_in(tmp_path) == ["key", "notes.txt", "photos"]


def test_a_borrowed_entry_whose_capture_is_gone_is_made_again(
    tmp_path: Path, three_views: SourceViews, messages: list[str]
) -> None:
    """A link to nowhere in its place stops neither the making nor the storing."""
    load_or_make(tmp_path / "lender", three_views, LinearBlend(), CONFIG)
    (entry,) = (tmp_path / "lender").iterdir()
    link = tmp_path / "store" / entry.name
    link.parent.mkdir()
    link.symlink_to(entry, target_is_directory=True)
    expected = load_or_make(link.parent, three_views, LinearBlend(), CONFIG)
    shutil.rmtree(tmp_path / "lender")
    for _ in range(2):
        assert_equal(load_or_make(link.parent, three_views, LinearBlend(), CONFIG), expected)
        assert not link.is_symlink()
        assert (link / "manifest.json").is_file()
    assert messages == []


def test_no_views_are_an_answer_too(tmp_path: Path) -> None:
    """A capture whose pairs were all refused is not tried again."""
    store = PseudoViewStore(tmp_path, StoreConfig())
    nothing = PseudoViewSet([], [Skipped(0, 1, Objection("depth unknown"))])
    store.save("key", nothing)
    assert store.load("key") == nothing


def test_views_of_the_store_are_ordinary_views(tmp_path: Path, example: PseudoViewSet) -> None:
    store = PseudoViewStore(tmp_path, StoreConfig())
    store.save("key", example)
    loaded = store.load("key")
    assert loaded is not None
    assert isinstance(loaded.views[1], PseudoView)
    assert loaded.views[1].to_cameras().shape == (1,)


# ---------------------------------------------------------------------- interrupted runs


def interrupt(folder: Path, views: SourceViews, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run that is broken off once all frames are made; the folder of its frames."""
    with monkeypatch.context() as patch:
        patch.setattr(PseudoViewStore, "save", lambda *_: False)
        load_or_make(folder, views, LinearBlend(), CONFIG)
    (partial,) = folder.glob(".partial-*")
    return partial


def test_runs_killed_at_any_moment_lose_nothing_finished(tmp_path: Path) -> None:
    """SIGKILL while a frame is made, half-way through a write, before and after a move."""
    script = Path(__file__).with_name("killed_runs.py")
    environment = {**os.environ, "PYTHONPATH": str(script.parents[2]), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, str(script), str(tmp_path)],
        env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    uninterrupted, *killed = json.loads(result.stdout.splitlines()[-1])
    total = uninterrupted["num_made"]
    assert total >= 6
    assert len(killed) >= 8
    for run in killed:
        assert run["was_killed"], run
        # Of the frames that were begun at most the last one is lost.
        assert run["num_stored"] >= run["num_made"] - 1, run
        assert run["num_made_again"] == total - run["num_stored"], run
        assert run["digest"] == uninterrupted["digest"], run
        assert run["entries"] == uninterrupted["entries"], run
    assert {run["num_stored"] for run in killed} > {0, 1, total}


def test_a_damaged_frame_is_made_again_with_one_warning(
    tmp_path: Path,
    three_views: SourceViews,
    messages: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected = make_pseudo_views(three_views, LinearBlend())
    partial = interrupt(tmp_path, three_views, monkeypatch)
    frame = sorted(partial.iterdir())[0]
    content = bytearray(frame.read_bytes())
    content[len(content) // 2] ^= 1
    frame.write_bytes(bytes(content))
    assert_equal(load_or_make(tmp_path, three_views, LinearBlend(), CONFIG), expected)
    assert len(messages) == 2
    assert "damaged" in messages[0]
    assert messages[1] == "frames of an interrupted run, not made again: 1"


def test_objections_are_results_that_are_kept(tmp_path: Path) -> None:
    store, pair = PseudoViewStore(tmp_path, StoreConfig()), Pair(3, 1)
    why = Objection("sources do not match", "mean confidence 0.01 < 0.05")
    assert store.load_frame("key", pair, 1 / 3) is None
    store.save_frame("key", pair, 1 / 3, why)
    assert store.load_frame("key", pair, 1 / 3) == why
    assert store.load_frame("key", pair, 2 / 3) is None
    assert store.load_frame("other", pair, 1 / 3) is None
    assert store.load("key") is None


def test_frames_of_killed_runs_count_and_go_when_unused_for_longest(
    tmp_path: Path,
    example: PseudoViewSet,
    three_views: SourceViews,
    messages: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    partial = interrupt(tmp_path, three_views, monkeypatch)
    store = PseudoViewStore(tmp_path, StoreConfig())
    store.save("entry", example)
    size = sum(path.stat().st_size for path in (tmp_path / "entry").iterdir())
    os.utime(partial, (time.time() - 7200, time.time() - 7200))
    store.save("second", example)
    assert names_in(tmp_path) == sorted([partial.name, "entry", "second"])
    bounded = PseudoViewStore(tmp_path, StoreConfig(max_bytes=3 * size))
    assert bounded.save("third", example)
    assert names_in(tmp_path) == ["entry", "second", "third"]
    assert len(messages) == 1


def test_frames_stop_where_the_store_is_full(
    tmp_path: Path, three_views: SourceViews, messages: list[str]
) -> None:
    expected = make_pseudo_views(three_views, LinearBlend())
    bound = len(store_module._pack(PseudoViewSet(expected.views[:1], []))) + 1000
    config = StoreConfig(max_bytes=bound)
    assert_equal(load_or_make(tmp_path, three_views, LinearBlend(), CONFIG, config), expected)
    (partial,) = tmp_path.iterdir()
    assert sum(path.stat().st_size for path in partial.iterdir()) <= bound
    assert len(messages) == 1
    assert "stay in memory" in messages[0]


def test_two_whole_runs_at_once_end_with_one_entry(
    tmp_path: Path, three_views: SourceViews, messages: list[str]
) -> None:
    expected = make_pseudo_views(three_views, LinearBlend())

    def run(_: int) -> PseudoViewSet:
        return load_or_make(tmp_path, three_views, LinearBlend(), CONFIG)

    with ThreadPoolExecutor(4) as executor:
        for made in executor.map(run, range(6)):
            assert_equal(made, expected)
    store = PseudoViewStore(tmp_path, StoreConfig())
    (entry,) = (path for path in tmp_path.iterdir() if not path.name.startswith("."))
    loaded = store.load(entry.name)
    assert loaded is not None
    assert_equal(loaded, expected)
    assert names_in(tmp_path) == [entry.name]
    assert all("interrupted" in message for message in messages)
