# SPDX-License-Identifier: Apache-2.0
"""Work that a trace function must not break off.

nerfstudio's viewer stops a render by raising from a trace function, at any line of Python that its
thread runs. The import of numba and the compilation of a kernel, broken off, leave numba without
what they were about to register, for the rest of the process and for the training in it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def untraced() -> Iterator[None]:
    """Leave this thread without a trace function while inside; afterwards its own acts again."""
    trace = sys.gettrace()
    if trace is None:
        yield
        return
    sys.settrace(None)
    try:
        yield
    finally:
        sys.settrace(trace)
