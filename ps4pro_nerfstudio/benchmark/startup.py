# SPDX-License-Identifier: Apache-2.0
"""What the plugin adds to the start of each ns-* command: `ps4pro bench startup`."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from ps4pro_nerfstudio.messages import say

# Plugins are hidden while nerfstudio is imported; then ours is imported and timed alone.
_PROBE = """
import importlib.metadata as metadata, json, time
find = metadata.entry_points
metadata.entry_points = lambda **query: metadata.EntryPoints()
begin = time.perf_counter()
import nerfstudio.configs.method_configs
framework = time.perf_counter() - begin
metadata.entry_points = find
begin = time.perf_counter()
import ps4pro_nerfstudio.methods
print(json.dumps([framework, time.perf_counter() - begin]))
"""
_BAR_SECONDS = 0.3


@dataclass
class StartupBenchmark:
    """Seconds that the plugin adds to the start of each ns-* command."""

    repetitions: int = 5
    """Fresh processes to time; the median is reported."""
    output: Path | None = None
    """JSON file to write."""

    def run(self) -> dict[str, float]:
        """Print and return the median seconds of nerfstudio's import and of ours after it."""
        times = [self._once() for _ in range(self.repetitions)]
        framework, plugin = (statistics.median(column) for column in zip(*times, strict=True))
        verdict = "holds" if plugin <= _BAR_SECONDS else "missed"
        say(
            f"nerfstudio {framework:.2f} s, this plugin adds {plugin:.2f} s "
            f"(bar {_BAR_SECONDS} s: {verdict}; median of {self.repetitions})"
        )
        figures = {"nerfstudio_seconds": framework, "plugin_seconds": plugin}
        if self.output is not None:
            self.output.write_text(json.dumps(figures, indent=2))
        return figures

    @staticmethod
    def _once() -> tuple[float, float]:
        command = [sys.executable, "-W", "ignore", "-c", _PROBE]
        printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        framework, plugin = json.loads(printed.splitlines()[-1])
        return framework, plugin
