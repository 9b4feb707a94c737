# SPDX-License-Identifier: Apache-2.0
"""Threads that render for pages, when a training ends."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any, cast

from nerfstudio.viewer.render_state_machine import RenderAction, RenderStateMachine

from ps4pro_nerfstudio.viewer.render_threads import stop_rendering


class _SlowRenders(RenderStateMachine):
    """Whose renders take until they are told to end."""

    def __init__(self, viewer: Any) -> None:
        super().__init__(viewer, 1.0, cast(Any, None))
        self.is_rendering, self.may_end = threading.Event(), threading.Event()
        self.num_sent = 0

    def _render_img(self, camera_state):
        self.is_rendering.set()
        assert self.may_end.wait(60)
        return {}

    def _send_output_to_viewer(self, outputs, static_render=True):
        self.num_sent += 1


def _viewer(*machines: RenderStateMachine) -> Any:
    return SimpleNamespace(ready=True, render_statemachines=dict(enumerate(machines)))


def test_a_render_ends_and_no_other_begins():
    viewer = _viewer()
    machine = _SlowRenders(viewer)
    viewer.render_statemachines[0] = machine
    machine.start()
    machine.action(RenderAction("move", cast(Any, None)))
    assert machine.is_rendering.wait(60)
    machine.action(RenderAction("move", cast(Any, None)))  # waits for its turn

    stopping = threading.Thread(target=stop_rendering, args=(viewer,))
    stopping.start()
    stopping.join(0.5)
    assert stopping.is_alive()  # the render is not over
    machine.may_end.set()
    stopping.join(60)
    assert not stopping.is_alive()
    assert not machine.is_alive()
    assert machine.num_sent == 1


def test_a_page_that_just_came_and_none_at_all_are_no_obstacle():
    stop_rendering(_viewer())
    machine = _SlowRenders(_viewer())
    stop_rendering(_viewer(machine))
    machine.start()
    machine.join(60)
    assert not machine.is_alive()
