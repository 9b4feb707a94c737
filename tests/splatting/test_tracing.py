# SPDX-License-Identifier: Apache-2.0
"""nerfstudio's viewer stops renders by raising from a trace function; kernels must outlive that."""

from __future__ import annotations

import subprocess
import sys

import pytest

from ps4pro_nerfstudio.splatting.cpu.tracing import untraced

# A new process, in which numba is not imported yet. The render is interrupted wherever the trace
# function first sees a line of the given files; a second render must work all the same.
_INTERRUPTED = """
import sys, torch
from ps4pro_nerfstudio.splatting import rasterization

class Interrupt(Exception): pass

def render():
    return rasterization(
        torch.tensor([[0.0, 0.0, 3.0]]), torch.tensor([[1.0, 0, 0, 0]]), torch.full((1, 3), 0.1),
        torch.ones(1), torch.ones(1, 16, 3), torch.eye(4)[None], 20 * torch.eye(3)[None],
        32, 32, sh_degree=3,
    )

lines = 0
def interrupt(frame, event, arg):
    global lines
    if event == "line" and WHERE in frame.f_code.co_filename:
        lines += 1
        if lines == AT:
            raise Interrupt
    return interrupt

sys.settrace(interrupt)
try:
    render()
    print("not interrupted")
except Interrupt:
    print("interrupted")
sys.settrace(None)
print("rendered", float(render()[1].sum()) > 0)
"""


@pytest.mark.parametrize(
    ("where", "at", "happened"),
    [("/numba/", 2000, "not interrupted"), ("/splatting/", 3, "interrupted")],
    ids=["loading-of-kernels-is-not-broken-off", "the-render-itself-is"],
)
def test_an_interrupted_first_render_leaves_the_kernels_usable(where, at, happened):
    script = _INTERRUPTED.replace("WHERE", repr(where)).replace("AT", str(at))
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert run.stdout.splitlines()[-2:] == [happened, "rendered True"], run.stderr[-2000:]


def test_the_trace_function_acts_again_afterwards_also_after_an_error():
    before = sys.gettrace()

    def trace(frame, event, arg):
        return None

    sys.settrace(trace)
    try:
        with untraced():
            inside = sys.gettrace()
        after = sys.gettrace()
        with pytest.raises(ZeroDivisionError), untraced():
            raise ZeroDivisionError
        after_error = sys.gettrace()
    finally:
        sys.settrace(before)
    assert inside is None
    assert after is trace
    assert after_error is trace
