# SPDX-License-Identifier: Apache-2.0
"""The recorder of view losses."""

from __future__ import annotations

import threading

import pytest
import torch

from ps4pro_nerfstudio.viewer.view_losses import ViewKey, ViewLosses

REAL_0, REAL_1, PSEUDO_0 = ViewKey(False, 0), ViewKey(False, 1), ViewKey(True, 0)


def test_the_last_loss_of_each_view_counts():
    losses = ViewLosses()
    losses.record(REAL_0, torch.tensor(0.5), 1.0, step=3)
    losses.record(REAL_0, torch.tensor(0.25), 1.0, step=7)
    last = losses.last(REAL_0)
    assert last is not None
    assert (last.loss, last.step) == (0.25, 7)
    assert losses.last(PSEUDO_0) is None


def test_a_later_step_replaces_what_was_read():
    losses = ViewLosses()
    losses.record(REAL_0, torch.tensor(0.5), 1.0, step=3)
    assert losses.last(REAL_0) is not None
    losses.record(REAL_0, torch.tensor(2.0), 1.0, step=4)
    assert [one.loss for one in losses.worst(5)] == [2.0]


def test_lambda_is_taken_out_of_a_pseudo_loss():
    """0.06 = 0.3 * 0.2: comparable with real views whatever the schedule says."""
    losses = ViewLosses()
    losses.record(PSEUDO_0, torch.tensor(0.06), 0.3, step=1)
    last = losses.last(PSEUDO_0)
    assert last is not None
    assert last.loss == pytest.approx(0.2)


def test_worst_views_come_first_and_broken_ones_before_them():
    losses = ViewLosses()
    losses.record(REAL_0, torch.tensor(0.1), 1.0, step=1)
    losses.record(REAL_1, torch.tensor(float("nan")), 1.0, step=2)
    losses.record(PSEUDO_0, torch.tensor(0.3), 0.5, step=3)
    assert [one.key for one in losses.worst(5)] == [REAL_1, PSEUDO_0, REAL_0]
    assert [one.key for one in losses.worst(2)] == [REAL_1, PSEUDO_0]


def test_recording_keeps_no_graph():
    losses = ViewLosses()
    parameter = torch.ones((), requires_grad=True)
    losses.record(REAL_0, parameter * 2, 1.0, step=0)
    assert all(not loss.requires_grad for loss, _, _ in losses._pending.values())


def test_reading_beside_recording_loses_nothing():
    """One thread records rising losses while another reads: none goes back, the last is there."""
    losses, seen, done = ViewLosses(), [], threading.Event()

    def read() -> None:
        while not done.is_set():
            seen.extend(one.loss for one in losses.worst(1))

    reader = threading.Thread(target=read)
    reader.start()
    for step in range(500):
        losses.record(REAL_0, torch.tensor(float(step)), 1.0, step)
    done.set()
    reader.join()
    assert seen == sorted(seen)
    assert losses.worst(1)[0].step == 499
