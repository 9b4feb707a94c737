# SPDX-License-Identifier: Apache-2.0
"""The viewer of a run, opened in a real browser."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.end_to_end.browser import Page, find_chromium, free_port, open_page
from tests.end_to_end.conftest import TRAIN, Run, command

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(find_chromium() is None, reason="no Chromium (apt-get install chromium)"),
]


@contextmanager
def _serving(log: Path, name: str, *arguments: object, cwd: Path):
    with log.open("w") as output:
        process = subprocess.Popen(
            [command(name), *map(str, arguments)], cwd=cwd, stdout=output,
            stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, start_new_session=True,
            env={**os.environ, "COLUMNS": "200", "PYTHONUNBUFFERED": "1"},
        )  # fmt: skip
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):  # it ended, and its children with it
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _artefacts() -> Path:
    folder = Path(os.environ.get("PS4PRO_ARTEFACTS", "test-artefacts"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


# The canvas without the title bar and the panel on its right: left, top, right, bottom.
_CANVAS = (0, 60, 670, 550)
# The frustums' colours as the page's tone mapping shows them.
_REAL, _PSEUDO = (113, 180, 226), (238, 163, 51)
# What the model renders where there is nothing; the page itself is darker.
_BACKGROUND = np.array([38, 42, 55])


def _look_at_the_scene(page: Page) -> float:
    """Wait for rendered pictures and zoom out until the scene is in sight.

    Returns:
        Share of the canvas that shows the scene.
    """
    page.wait_for(lambda: page.evaluate("document.querySelector('canvas') !== null"))

    before: np.ndarray | None = None
    scrolled = 0.0

    def share() -> float | None:
        nonlocal before, scrolled
        canvas = np.asarray(page.screenshot().crop(_CANVAS), dtype=np.int64)
        empty = np.abs(canvas - _BACKGROUND).max(-1) < 12
        # Without any of the model's background no picture has come from the server yet.
        if empty.mean() < 0.05:
            return None
        if (~empty).mean() > 0.05:
            return float((~empty).mean())
        # On a slow machine the picture of the last turn is still to come: without waiting for it
        # the scene would shrink to a dot before it is seen.
        has_come = before is None or not np.array_equal(canvas, before)
        if has_come or time.monotonic() > scrolled + 10:
            before, scrolled = canvas, time.monotonic()
            page.scroll(335, 300, 240)
        return None

    return page.wait_for(share)


def _text(page: Page) -> str:
    return page.evaluate("document.body.innerText") or ""


def _pixels(page: Page, colour: tuple[int, int, int]) -> np.ndarray:
    """Pixels [N, 2] (x, y) of the canvas of a colour, or of it blended with the background.

    On a slow machine the page draws coarser than the screen; the clearest pixels come first.
    """
    left, top, right, bottom = _CANVAS
    canvas = np.asarray(page.screenshot().crop((left, top, right, bottom)), dtype=np.float64)
    beyond, towards = canvas - _BACKGROUND, np.array(colour) - _BACKGROUND
    strength = np.linalg.norm(beyond, axis=-1)
    cosine = beyond @ towards / np.maximum(strength * np.linalg.norm(towards), 1e-9)
    row, column = np.nonzero((cosine > 0.985) & (strength > 60))
    clearest = np.argsort(-strength[row, column], kind="stable")
    return np.stack([column + left, row + top], axis=1)[clearest]


def _click_button(page: Page, text: str) -> None:
    buttons = f"[...document.querySelectorAll('button')].find(b => b.innerText.includes('{text}'))"
    page.evaluate(f"{buttons}.click()")


def _wait_for_server(log: Path, port: int) -> None:
    """Wait until the log names the address, on loopback: nothing but this machine can connect."""
    end = time.monotonic() + 120
    while time.monotonic() < end:
        if f"http://127.0.0.1:{port}" in log.read_text():
            return
        time.sleep(0.5)
    raise TimeoutError(log.read_text()[-3000:])


def test_ns_viewer_shows_the_scene(trained: Run, tmp_path):
    port = free_port()
    log = tmp_path / "viewer.log"
    arguments = (
        "--load-config", trained.config, "--viewer.websocket-port", port,
        "--viewer.websocket-host", "127.0.0.1",
    )  # fmt: skip
    with _serving(log, "ns-viewer", *arguments, cwd=trained.folder):
        _wait_for_server(log, port)
        with open_page(f"http://127.0.0.1:{port}", tmp_path / "profile") as page:
            share = _look_at_the_scene(page)
            page.screenshot().save(_artefacts() / "viewer.png")
            assert share > 0.05
            assert "Connection opened" in log.read_text()


def test_p38_training_goes_on_and_obeys_while_the_viewer_renders(trained: Run, tmp_path):
    """The viewer renders from its own thread, steps advance, and the slider reaches the schedule.

    The page shows the weight that the training uses, not the slider's own value.
    """
    port = free_port()
    log = tmp_path / "train.log"
    arguments = list(TRAIN)
    arguments[arguments.index("tensorboard")] = "viewer+tensorboard"
    arguments[arguments.index("--max-num-iterations") + 1] = 100_000
    schedule = "--pipeline.datamanager.pseudo-views.schedule."
    arguments += ["--viewer.websocket-port", port, "--timestamp", "viewed"]
    arguments += [f"{schedule}start", 0, f"{schedule}ramp", 0, f"{schedule}peak-weight", 0.5]
    with _serving(log, "ns-train", *arguments, cwd=trained.folder) as process:
        _wait_for_server(log, port)
        with open_page(f"http://127.0.0.1:{port}", tmp_path / "profile") as page:
            _look_at_the_scene(page)
            seen = set()

            def steps_advance() -> bool:
                text = page.evaluate("document.body.innerText") or ""
                seen.update(line for line in text.splitlines() if line.startswith("Step:"))
                return len(seen) >= 3

            page.wait_for(steps_advance)
            page.wait_for(lambda: "λ = 0.500" in _text(page))
            page.wait_for(lambda: "pseudo " in _text(page).partition("Worst views")[2])
            page.evaluate("document.querySelector('[role=slider]').focus()")
            page.press("Home", 36)  # to its left end
            page.wait_for(lambda: "λ = 0.000" in _text(page))
            page.wait_for(lambda: "set in the viewer: 0 (step" in log.read_text())
            page.screenshot().save(_artefacts() / "viewer_training.png")
        assert process.poll() is None
    assert "Viewer failed" not in log.read_text()
    assert "Traceback" not in log.read_text()


def test_views_are_shown_and_looking_at_them_changes_nothing(trained: Run, tmp_path):
    """Pseudo cameras are drawn, clicked and hidden; the run is that without a viewer, bit by bit.

    It starts paused, so that all of it happens under the eyes of the page.
    """
    port = free_port()
    log = tmp_path / "train.log"
    arguments = list(TRAIN)
    arguments[arguments.index("tensorboard")] = "viewer+tensorboard"
    arguments += ["--viewer.websocket-port", port, "--timestamp", "looked-at"]
    arguments += ["--start-paused", "True", "--viewer.quit-on-train-completion", "True"]
    arguments += ["--viewer.camera-frustum-scale", 0.8]
    with _serving(log, "ns-train", *arguments, cwd=trained.folder) as process:
        _wait_for_server(log, port)
        with open_page(f"http://127.0.0.1:{port}", tmp_path / "profile") as page:
            page.wait_for(lambda: "Pseudo cameras" in _text(page))
            page.wait_for(lambda: min(len(_pixels(page, one)) for one in (_REAL, _PSEUDO)) > 50)
            num_real = len(_pixels(page, _REAL))  # the pictures hold a little of it themselves
            # The first box is the page's own, for its frame rate.
            boxes = "document.querySelectorAll('input[type=checkbox]')"
            page.evaluate(f"{boxes}[1].click()")
            page.wait_for(lambda: len(_pixels(page, _REAL)) < num_real / 2)

            page.wait_for(lambda: len(_pixels(page, _PSEUDO)) > 50)
            edges = _pixels(page, _PSEUDO)
            places = iter(edges[:: max(len(edges) // 20, 1)].tolist())

            def chosen() -> bool:
                page.click(*next(places))
                return "Pseudo view" in _text(page)

            page.wait_for(chosen)
            page.wait_for(lambda: page.evaluate(_NUM_PICTURES) == 2)
            said = _text(page)
            assert "mean confidence" in said
            assert said.partition("Pseudo view")[2].count(".png") >= 2  # its sources
            page.screenshot().save(_artefacts() / "viewer_views.png")

            page.evaluate(f"{boxes}[2].click()")
            page.wait_for(lambda: len(_pixels(page, _PSEUDO)) < len(edges) / 2)

            _click_button(page, "Resume Training")
            page.wait_for(lambda: process.poll() is not None)
        assert process.returncode == 0, log.read_text()[-3000:]
    assert "set in the viewer" not in log.read_text()
    name = "nerfstudio_models/step-000000029.ckpt"
    alone, looked_at = (
        torch.load(folder / name, weights_only=True)["pipeline"]
        for folder in (trained.path, trained.path.with_name("looked-at"))
    )
    tensors = [key for key, value in alone.items() if isinstance(value, torch.Tensor)]
    assert any("means" in key for key in tensors)
    for key in tensors:
        assert torch.equal(alone[key], looked_at[key]), key


_NUM_PICTURES = "document.querySelectorAll('img[src^=\"data:image/jpeg\"]').length"
