# SPDX-License-Identifier: Apache-2.0
"""Run a command and write down how it ended: `python watch.py REPORT COMMAND...`.

A process of its own for two reasons. The system counts the memory of a program from the moment its
parent is copied for it, so only a small parent does not show in the figure. And a sweep that is
killed must not leave its trainings behind: they end when this process has lost its parent.

Runs as a file with the standard library alone; the report is
{"exit_code": negative for a signal, "peak_memory_bytes": of the command or one of its children}.
"""

import json
import os
import subprocess
import sys
import time

_POLL_SECONDS = 0.1


def watch(command: list[str]) -> dict[str, int]:
    """Run the command to its end."""
    parent = os.getppid()
    child = subprocess.Popen(command)
    while True:
        ended, status, usage = os.wait4(child.pid, os.WNOHANG)
        if ended:
            break
        if os.getppid() != parent:
            os.kill(child.pid, 9)
        time.sleep(_POLL_SECONDS)
    child.returncode = os.waitstatus_to_exitcode(status)
    unit = 1 if sys.platform == "darwin" else 1024
    return {"exit_code": child.returncode, "peak_memory_bytes": usage.ru_maxrss * unit}


if __name__ == "__main__":
    report = watch(sys.argv[2:])
    with open(sys.argv[1], "w", encoding="utf-8") as file:
        json.dump(report, file)
