# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import torch

from ps4pro_nerfstudio.pseudo_views.per_view import PseudoSources


def test_rows_of_pseudo_views_lie_between_and_pass_no_gradient():
    """Row at t = 1/4 between (0, 4) and (8, 0): (2, 3)."""
    table = torch.tensor([[0.0, 4.0], [8.0, 0.0], [5.0, 5.0]], requires_grad=True)
    sources = PseudoSources(torch.tensor([0, 2]), torch.tensor([1, 2]), torch.tensor([0.25, 0.0]))
    longer = sources.append_to(table)
    torch.testing.assert_close(longer[:3], table)
    assert longer[3:].tolist() == [[2.0, 3.0], [5.0, 5.0]]
    (2.0 * longer[1].sum() + longer[3:].sum()).backward()
    assert table.grad is not None
    assert table.grad.tolist() == [[0.0, 0.0], [2.0, 2.0], [0.0, 0.0]]
