# SPDX-License-Identifier: Apache-2.0
"""Loading of checkpoints written by nerfstudio under every supported torch.

Since torch 2.6 `torch.load` unpickles tensors and plain containers only. nerfstudio's schedulers
leave one NumPy float in each checkpoint, so that loading fails in ns-eval, ns-viewer and on resume
(nerfstudio #3683). Our schedulers write Python floats; for checkpoints that exist already the three
NumPy names below are declared safe. They can build a number and nothing else.

Can be removed when nerfstudio writes plain floats and old checkpoints no longer matter.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

# NumPy 2 renamed `numpy.core`; a pickle carries whichever name its writer had.
_NAMES = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")


def allow_numpy_scalars() -> None:
    """Declare the pickled parts of a NumPy float safe for `torch.load(weights_only=True)`."""
    if not hasattr(torch.serialization, "add_safe_globals"):
        return  # torch 2.4: it loads these checkpoints without being asked
    # The function that NumPy's own floats name as their constructor, whatever its module.
    constructor = np.float64(0).__reduce__()[0]
    safe: list[Any] = [np.dtype, type(np.dtype("float64")), type(np.dtype("float32"))]
    safe += [(constructor, name) for name in _NAMES]
    torch.serialization.add_safe_globals(safe)
