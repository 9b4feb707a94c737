# SPDX-License-Identifier: Apache-2.0
"""The last training loss of each view.

The training thread records, any thread reads. Recording keeps the detached tensor and waits for no
device; tensors become numbers when somebody reads.
"""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, order=True)
class ViewKey:
    """A real or pseudo view of the training."""

    is_pseudo: bool
    index: int
    """Index among the real views, or among the pseudo views."""


@dataclass(frozen=True)
class ViewLoss:
    """Loss of one view."""

    key: ViewKey
    loss: float
    """Photometric loss, of a radiance field the squared error of the rays that the step drew; of a
    pseudo view weighted by its confidence, but not by lambda."""
    step: int
    """Step that saw it last."""


class ViewLosses:
    """See the module's docstring."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: dict[ViewKey, ViewLoss] = {}
        self._pending: dict[ViewKey, tuple[Tensor, float, int]] = {}

    def record(self, key: ViewKey, loss: Tensor, weight: float, step: int) -> None:
        """Note the loss (a scalar tensor) of a view; `weight` is what it was multiplied by."""
        with self._lock:
            self._pending[key] = (loss.detach(), weight, step)

    def last(self, key: ViewKey) -> ViewLoss | None:
        """Latest loss of a view, None when no step has used it."""
        with self._lock:
            self._read_pending()
            return self._known.get(key)

    def worst(self, count: int) -> list[ViewLoss]:
        """Views with the largest losses, the largest first; one that is not finite leads."""
        with self._lock:
            self._read_pending()
            known = list(self._known.values())
        finite_last = [(not math.isfinite(one.loss), one.loss, one.key) for one in known]
        order = sorted(range(len(known)), key=finite_last.__getitem__, reverse=True)
        return [known[place] for place in order[:count]]

    def _read_pending(self) -> None:
        if not self._pending:
            return
        # Stacked, so that a GPU is waited for once.
        values = torch.stack([loss.float() for loss, _, _ in self._pending.values()]).tolist()
        for value, (key, (_, weight, step)) in zip(values, self._pending.items(), strict=True):
            self._known[key] = ViewLoss(key, value / weight, step)
        self._pending.clear()
