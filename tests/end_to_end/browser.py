# SPDX-License-Identifier: Apache-2.0
"""A headless Chromium, driven over its debugging protocol."""

from __future__ import annotations

import base64
import io
import itertools
import json
import os
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

_FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    # A machine without a GPU draws WebGL in software.
    "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader",
    "--window-size=1000,700", "--remote-allow-origins=*",
)  # fmt: skip


def find_chromium() -> str | None:
    """Path of a Chromium, None where there is none."""
    names = ("chromium", "chromium-browser", "google-chrome")
    return next(filter(None, map(shutil.which, names)), None)


def free_port() -> int:
    """A port of the loopback address that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Page:
    """One tab."""

    def __init__(self, socket_url: str) -> None:
        import websocket

        self._socket = websocket.create_connection(socket_url, timeout=60)
        self._ids = itertools.count(1)
        self.call("Page.enable")

    def call(self, method: str, **parameters):
        """Call a method of the protocol and return its result."""
        number = next(self._ids)
        self._socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            answer = json.loads(self._socket.recv())
            if answer.get("id") == number:
                assert "error" not in answer, answer
                return answer["result"]

    def evaluate(self, expression: str):
        """Value of a JavaScript expression."""
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        return result["result"].get("value")

    def screenshot(self) -> Image.Image:
        """What the page looks like now."""
        data = self.call("Page.captureScreenshot", format="png")["data"]
        return Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")

    def scroll(self, x: float, y: float, pixels: float) -> None:
        """Turn the mouse wheel there; positive pixels zoom out of a 3-D view."""
        self.call("Input.dispatchMouseEvent", type="mouseWheel", x=x, y=y, deltaX=0, deltaY=pixels)

    def click(self, x: float, y: float) -> None:
        """Press and release the left mouse button there."""
        self.drag([(x, y)])

    def drag(self, places: Sequence[tuple[float, float]], button: str = "left") -> None:
        """Move the mouse along the places with a button held down."""
        first, last = places[0], places[-1]
        self._mouse("mouseMoved", first)
        self._mouse("mousePressed", first, button)
        for place in places[1:]:
            self._mouse("mouseMoved", place, button)
        self._mouse("mouseReleased", last, button)

    def _mouse(self, kind: str, place: tuple[float, float], button: str = "none") -> None:
        x, y = place
        self.call(
            "Input.dispatchMouseEvent", type=kind, x=x, y=y, button=button,
            buttons={"none": 0, "left": 1, "right": 2}[button], clickCount=int(button != "none"),
        )  # fmt: skip

    def type_text(self, text: str) -> None:
        """Type into the element that has the focus."""
        self.call("Input.insertText", text=text)

    def press(self, key: str, code: int) -> None:
        """Press a key, e.g. ("Enter", 13)."""
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code)

    def wait_for(self, condition: Callable[[], Any], seconds: float = 300.0) -> Any:
        """Call the function until it returns something true, and return that.

        Two slow cores that draw, train and evaluate at once have taken more than 90 seconds.
        """
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if result := condition():
                return result
            time.sleep(0.5)
        raise TimeoutError("the page never got into the expected state")


@contextmanager
def open_page(url: str, profile: Path):
    """Open an address in a new Chromium; closed at the end."""
    chromium = find_chromium()
    assert chromium is not None
    port = free_port()
    process = subprocess.Popen(
        [chromium, *_FLAGS, f"--remote-debugging-port={port}", f"--user-data-dir={profile}", url],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "HOME": str(profile)},
    )
    try:
        yield Page(_socket_url(port))
    finally:
        process.kill()
        process.wait()


def _socket_url(port: int) -> str:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/json", timeout=5) as answer:
                tabs = [tab for tab in json.load(answer) if tab["type"] == "page"]
        except OSError:
            tabs = []
        if tabs:
            return tabs[0]["webSocketDebuggerUrl"]
        time.sleep(0.3)
    raise TimeoutError("Chromium did not open its debugging port")
