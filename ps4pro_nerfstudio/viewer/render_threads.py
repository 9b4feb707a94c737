# SPDX-License-Identifier: Apache-2.0
"""The end of the threads that render for the viewer's pages, one for each page."""

from __future__ import annotations

from nerfstudio.viewer.viewer import Viewer

# Far longer than a render; a thread that hangs must not keep the command from ending.
_PATIENCE_SECONDS = 30.0


def stop_rendering(viewer: Viewer) -> None:
    """Let each page's render end, and start no other.

    nerfstudio leaves these daemon threads running. One that is inside torch when the interpreter
    ends aborts the process: exit code 134 after a training that went well.
    """
    machines = list(viewer.render_statemachines.values())
    for machine in machines:
        machine.running = False
    for machine in machines:
        if machine.is_alive():  # one that a page's arrival just made has not begun, and will not
            machine.join(_PATIENCE_SECONDS)
