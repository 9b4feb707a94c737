# SPDX-License-Identifier: Apache-2.0
"""Makes the README's picture of the viewer: the demo room in training, a pseudo view chosen.

python -m tests.end_to_end.viewer_picture examples/viewer.png
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import tempfile
import time
from pathlib import Path

from tests.end_to_end.browser import Page, free_port, open_page
from tests.end_to_end.conftest import command, succeed


def main() -> None:
    """Generate, train, look, save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--steps", type=int, default=400, help="steps before the picture")
    parser.add_argument("--zoom-out", type=float, default=500, help="wheel pixels")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        succeed(
            "ps4pro", "demo-scene", "scene", "--size", 192, 108, "--num-train-views", 10,
            "--num-test-views", 2, cwd=folder,
        )  # fmt: skip
        port = free_port()
        log = folder / "log"
        schedule = "--pipeline.datamanager.pseudo-views.schedule."
        with log.open("w") as output:
            process = subprocess.Popen(
                [
                    command("ns-train"), "ps4pro-splatfacto", "--data", "scene",
                    "--max-num-iterations", "7000", "--viewer.websocket-port", str(port),
                    "--viewer.camera-frustum-scale", "0.35", f"{schedule}start", "0",
                    f"{schedule}ramp", "0",
                ],
                cwd=folder, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                start_new_session=True, env={**os.environ, "PYTHONUNBUFFERED": "1"},
            )  # fmt: skip
        try:
            while f"http://127.0.0.1:{port}" not in log.read_text():
                assert process.poll() is None, log.read_text()[-3000:]
                time.sleep(0.5)
            with open_page(f"http://127.0.0.1:{port}", folder / "profile") as page:
                _take(page, options)
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _take(page: Page, options: argparse.Namespace) -> None:
    page.call(
        "Emulation.setDeviceMetricsOverride", width=1280, height=900, deviceScaleFactor=1,
        mobile=False,
    )  # fmt: skip

    def text() -> str:
        return page.evaluate("document.body.innerText") or ""

    def step() -> int:
        lines = [line for line in text().splitlines() if line.startswith("Step:")]
        return int(lines[0].split(":")[1]) if lines else 0

    page.wait_for(lambda: "pseudo " in text().partition("Worst views")[2], seconds=600)
    _choose(page, "pseudo 4")
    page.wait_for(lambda: "Pseudo view 4" in text())
    button = "[...document.querySelectorAll('button')].find(b => b.innerText.includes('Look thr'))"
    page.evaluate(f"{button}.click()")
    time.sleep(2)
    page.scroll(450, 450, options.zoom_out)
    page.wait_for(lambda: step() >= options.steps, seconds=600)
    _button = "[...document.querySelectorAll('button')].find(b => b.innerText.includes('Pause Tr'))"
    page.evaluate(f"{_button}.click()")
    time.sleep(6)  # the full resolution comes last
    page.screenshot().save(options.picture)


def _choose(page: Page, choice: str) -> None:
    box = page.evaluate(
        "(() => { const i = [...document.querySelectorAll('input')].find("
        "i => i.value === '(click a camera)'); i.scrollIntoView({block: 'center'});"
        "const r = i.getBoundingClientRect(); return [r.x + r.width / 2, r.y + r.height / 2] })()"
    )
    page.click(*box)
    option = (
        "[...document.querySelectorAll('[role=option]')].find("
        f"o => o.innerText.trim() === '{choice}')"
    )
    page.wait_for(lambda: page.evaluate(f"!!{option}"), seconds=10)
    page.evaluate(f"{option}.click()")


if __name__ == "__main__":
    main()
