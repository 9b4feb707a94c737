# SPDX-License-Identifier: Apache-2.0
"""Every subcommand can be parsed: options of nested configs must not collide."""

from __future__ import annotations

import pytest

from ps4pro_nerfstudio import cli


@pytest.mark.parametrize(
    "command",
    [
        "doctor",
        "demo-scene",
        "summary",
        "interpolate",
        "augment",
        "points",
        "train-interpolator",
        "eval-interpolator",
        "bench rasterizer",
        "bench startup",
        "bench interpolators",
        "bench scenes",
    ],
)
def test_help_of_every_command(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["ps4pro", *command.split(), "--help"])
    with pytest.raises(SystemExit) as ended:
        cli.entrypoint()
    assert ended.value.code == 0
    assert f"usage: ps4pro {command}" in capsys.readouterr().out
