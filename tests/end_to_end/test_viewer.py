# SPDX-License-Identifier: Apache-2.0
"""The viewer of a run, opened in a real browser."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

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
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _artefacts() -> Path:
    folder = Path(os.environ.get("PS4PRO_ARTEFACTS", "test-artefacts"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


# The canvas without the title bar and the panel on its right: left, top, right, bottom.
_CANVAS = (0, 60, 670, 550)
# What the model renders where there is nothing; the page itself is darker.
_BACKGROUND = np.array([38, 42, 55])


def _look_at_the_scene(page: Page) -> float:
    """Wait for rendered pictures and zoom out until the scene is in sight.

    Returns:
        Share of the canvas that shows the scene.
    """
    page.wait_for(lambda: page.evaluate("document.querySelector('canvas') !== null"))

    def share() -> float | None:
        canvas = np.asarray(page.screenshot().crop(_CANVAS), dtype=np.int64)
        empty = np.abs(canvas - _BACKGROUND).max(-1) < 12
        # Without any of the model's background no picture has come from the server yet.
        if empty.mean() < 0.05 or (~empty).mean() > 0.05:
            return float((~empty).mean()) if empty.mean() >= 0.05 else None
        page.scroll(335, 300, 240)
        return None

    return page.wait_for(share)


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


def test_p38_training_goes_on_while_the_viewer_renders(trained: Run, tmp_path):
    """The viewer renders from its own thread; the loss stays finite and steps advance."""
    port = free_port()
    log = tmp_path / "train.log"
    arguments = list(TRAIN)
    arguments[arguments.index("tensorboard")] = "viewer+tensorboard"
    arguments[arguments.index("--max-num-iterations") + 1] = 100_000
    arguments += ["--viewer.websocket-port", port, "--timestamp", "viewed"]
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
            page.screenshot().save(_artefacts() / "viewer_training.png")
        assert process.poll() is None
    assert "Viewer failed" not in log.read_text()
    assert "Traceback" not in log.read_text()
