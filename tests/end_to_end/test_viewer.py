# SPDX-License-Identifier: Apache-2.0
"""The viewer of a run, opened in a real browser."""

from __future__ import annotations

import os
import signal
import subprocess
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from tests.end_to_end.browser import find_chromium, free_port, open_page, variety
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


def _scene_of(page) -> np.ndarray | None:
    """The middle of the canvas once it shows more than a plain background."""
    if not page.evaluate("document.querySelector('canvas') !== null"):
        return None
    middle = page.screenshot().crop((100, 150, 600, 650))
    return np.asarray(middle) if variety(middle) > 12 else None


def _wait_for_port(log: Path, page_log: str = "Viewer running locally") -> None:
    import time

    end = time.monotonic() + 120
    while time.monotonic() < end:
        if page_log in log.read_text():
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
        _wait_for_port(log)
        with open_page(f"http://127.0.0.1:{port}", tmp_path / "profile") as page:
            scene = page.wait_for(lambda: (s := _scene_of(page)) is not None and s.std())
            page.screenshot().save(_artefacts() / "viewer.png")
            assert scene > 12
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
        _wait_for_port(log)
        # Loopback by default: nothing but this machine can connect.
        assert f"http://127.0.0.1:{port}" in log.read_text()
        with open_page(f"http://127.0.0.1:{port}", tmp_path / "profile") as page:
            page.wait_for(lambda: _scene_of(page) is not None)
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
