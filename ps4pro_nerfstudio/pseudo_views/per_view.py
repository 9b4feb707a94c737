# SPDX-License-Identifier: Apache-2.0
"""What a model learns for each real view, read off for the pseudo views between them.

Appearance embeddings and pose corrections are tables with one row per real view. A pseudo view has
no row of its own: its camera, time and exposure lie between those of its two photographs, and so
does its row, (1 - t) a + t b, in a radiance field (splats have neither by default, and render a
pseudo view without). It learns from the photographs and teaches them nothing: no gradient
reaches a or b through it, so that a pseudo view never changes what a real view alone should decide.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ps4pro_nerfstudio.pseudo_views.pseudo_view import PseudoView

METADATA_KEY = "pseudo_sources"
"""Where the metadata of a training dataset holds them."""


@dataclass(frozen=True)
class PseudoSources:
    """Which two real views each of P pseudo views lies between, and where."""

    first: Tensor
    """[P] index of the real view at t = 0."""
    second: Tensor
    """[P] index of the real view at t = 1."""
    t: Tensor
    """[P] in [0, 1]."""

    def append_to(self, table: Tensor) -> Tensor:
        """Rows of real views [N, D], unchanged, then those of pseudo views: [N + P, D]."""
        first, second = self.first.to(table.device), self.second.to(table.device)
        rows = table.detach()
        t = self.t.to(rows)[:, None]
        return torch.cat([table, (1.0 - t) * rows[first] + t * rows[second]])


def find_sources(views: Sequence[PseudoView], names: Sequence[str]) -> PseudoSources:
    """Look up the photographs of pseudo views among the names of the real views.

    A pseudo view of one photograph, a control, lies at t = 0 between it and itself.
    """
    index = {name: place for place, name in enumerate(names)}
    sources = [view.provenance for view in views]
    return PseudoSources(
        first=torch.tensor([index[v.source_names[0]] for v in sources], dtype=torch.long),
        second=torch.tensor([index[v.source_names[-1]] for v in sources], dtype=torch.long),
        t=torch.tensor([source.t for source in sources], dtype=torch.float32),
    )
