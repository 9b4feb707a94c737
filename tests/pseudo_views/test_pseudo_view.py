# SPDX-License-Identifier: Apache-2.0
"""The pseudo view as a nerfstudio camera, and the shapes it insists on."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from ps4pro_nerfstudio.pseudo_views.pseudo_view import Provenance, PseudoView


def example(time: float | None = None) -> PseudoView:
    generator = np.random.default_rng(0)
    return PseudoView(
        camera_to_world=generator.normal(size=(3, 4)).astype(np.float32),
        fx=50.0,
        fy=51.0,
        cx=20.25,
        cy=15.5,
        width=40,
        height=30,
        time=time,
        image=generator.integers(0, 256, (30, 40, 3), dtype=np.uint8),
        confidence=generator.integers(0, 256, (30, 40), dtype=np.uint8),
        provenance=Provenance(("a", "b"), 0.5, "slerp+lerp", "points", 2.0, "flow", 0.5, 0.6),
    )


def test_it_becomes_one_camera_without_a_camera_index() -> None:
    """A `cam_idx` would give it a row of the camera optimiser, which counts real views only."""
    view = example()
    cameras = view.to_cameras()
    assert cameras.shape == (1,)
    assert "cam_idx" not in (cameras.metadata or {})
    assert torch.equal(cameras.camera_to_worlds[0], torch.from_numpy(view.camera_to_world))
    expected = torch.tensor([[50.0, 0.0, 20.25], [0.0, 51.0, 15.5], [0.0, 0.0, 1.0]])
    assert torch.equal(cameras.get_intrinsics_matrices()[0], expected)
    assert (cameras.width.item(), cameras.height.item()) == (40, 30)
    assert cameras.times is None


def test_time_travels_with_the_camera() -> None:
    times = example(time=0.375).to_cameras().times
    assert times is not None
    assert times.shape == (1, 1)
    assert times.item() == 0.375


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("camera_to_world", np.eye(4, dtype=np.float32)),
        ("confidence", np.zeros((40, 30), np.uint8)),
        ("confidence", np.zeros((30, 40), np.float32)),
        ("image", np.zeros((30, 40, 4), np.uint8)),
    ],
)
def test_wrong_shapes_and_types_are_refused_by_name(field: str, value: np.ndarray) -> None:
    with pytest.raises(ValueError, match=field):
        replace(example(), **{field: value})


def test_bytes_are_those_of_the_pixels() -> None:
    assert example().num_bytes == 30 * 40 * 4
    assert replace(example(), image=None).num_bytes == 30 * 40
