# SPDX-License-Identifier: Apache-2.0
"""Runs that a SIGKILL ends at chosen moments, and the runs after them; prints JSON.

A process without threads forks one child for each run, so that what is heavy is imported once.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import torch

from ps4pro_nerfstudio.interpolation.optical_flow import LinearBlend
from ps4pro_nerfstudio.pseudo_views import store as store_module
from ps4pro_nerfstudio.pseudo_views.sources import InterpolatedSourceConfig, SourceViews
from tests.pseudo_views.conftest import arc, capture, wall_points

CONFIG = InterpolatedSourceConfig(frames_per_gap=2)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Watched(LinearBlend):
    """Writes down each frame that it begins, and may be killed while it makes one."""

    def __init__(self, log: Path, kill_at: int | None) -> None:
        super().__init__()
        self._log, self._kill_at = log, kill_at

    def __call__(self, *args, **kwargs):
        with self._log.open("a") as log:
            log.write("x")
        if self._log.stat().st_size == self._kill_at:
            die()
        return super().__call__(*args, **kwargs)


def kill_in(name: str, call: int) -> None:
    """Be killed in the given call of a method of Path: "write", "move" or "moved"."""
    method = {"write": "write_bytes", "move": "replace", "moved": "replace"}[name]
    really = getattr(Path, method)
    count = 0

    def watched(path: Path, argument):
        nonlocal count
        count += 1
        if count == call and name == "write":
            really(path, argument[: len(argument) // 2])
        if count == call and name != "moved":
            die()
        result = really(path, argument)
        if count == call:
            die()
        return result

    setattr(Path, method, watched)


def in_child(run: Callable[[], None]) -> bool:
    """Run a function in a child; whether it was killed."""
    child = os.fork()
    if child == 0:
        try:
            run()
        except BaseException:
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, "a run failed"
    return os.WIFSIGNALED(status)


def one_run(views: SourceViews, folder: Path, log: Path, moment: tuple[str, int] | None) -> None:
    """Make the views, to be killed at a moment; the digest of what came out goes beside the log."""
    kill_at = moment[1] if moment is not None and moment[0] == "make" else None
    if moment is not None and kill_at is None:
        kill_in(*moment)
    made = store_module.load_or_make(folder, views, Watched(log, kill_at), CONFIG)
    content = store_module._encode(made)["manifest.json"]
    log.with_suffix(".digest").write_text(hashlib.sha256(content).hexdigest())


def count(log: Path) -> int:
    return log.stat().st_size if log.exists() else 0


def main(root: Path) -> None:
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    views = capture(arc(4, 30.0), wall_points())
    reference = root / "uninterrupted.log"
    in_child(lambda: one_run(views, root / "uninterrupted", reference, None))
    total = count(reference)
    entries = sorted(path.name for path in (root / "uninterrupted").iterdir())
    digest = reference.with_suffix(".digest").read_text()
    report = [{"num_made": total, "digest": digest, "entries": entries}]
    # The frames are written and moved first, then the files of the entry; the entry's own move is
    # the next one after those of the frames.
    moments = [
        ("make", 1), ("make", 2), ("make", total), ("write", 1), ("write", 3), ("write", total + 2),
        ("move", 2), ("moved", 2), ("move", total + 1), ("moved", total + 1), ("moved", total + 2),
    ]  # fmt: skip
    for index, moment in enumerate(moments):
        folder, log = root / f"{index}", root / f"{index}.log"
        again = root / f"{index}_again.log"
        killed = in_child(lambda f=folder, g=log, m=moment: one_run(views, f, g, m))
        stored = len(list(folder.glob(".partial-*/frame_*")))
        if not stored and any((folder / name).is_dir() for name in entries):
            stored = total
        in_child(lambda f=folder, g=again: one_run(views, f, g, None))
        left = sorted(p.name for p in folder.iterdir() if not p.name.startswith(".unfinished-"))
        report.append(
            {
                "moment": moment,
                "was_killed": killed,
                "num_made": count(log),
                "num_stored": stored,
                "num_made_again": count(again),
                "digest": again.with_suffix(".digest").read_text(),
                "entries": left,
            }
        )
    print(json.dumps(report))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
