# SPDX-License-Identifier: Apache-2.0
"""Running the real ns-* commands on a small scene."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

TIME_LIMIT_S = 300


def command(name: str) -> str:
    """Path of a command of the environment that runs the tests."""
    return str(Path(sys.executable).with_name(name))


def run(name: str, *arguments: object, cwd: Path, env: dict[str, str] | None = None):
    """Run a command to its end and return its result, output and errors together."""
    return subprocess.run(
        [command(name), *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "COLUMNS": "400", "MPLBACKEND": "agg", **(env or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
        timeout=TIME_LIMIT_S,
        check=False,
    )


def succeed(name: str, *arguments: object, cwd: Path, env: dict[str, str] | None = None) -> str:
    """Run a command that must succeed and return what it printed."""
    result = run(name, *arguments, cwd=cwd, env=env)
    assert result.returncode == 0, f"{name} {arguments}\n{result.stdout[-6000:]}"
    return result.stdout


@dataclass(frozen=True)
class Run:
    """A finished training run."""

    folder: Path
    """Where the commands run."""
    scene: Path
    output: str
    """What ns-train printed."""

    @property
    def path(self) -> Path:
        """Folder of the run."""
        return self.folder / "outputs/scene/ps4pro-splatfacto/first"

    @property
    def config(self) -> Path:
        """Its config.yml."""
        return self.path / "config.yml"


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The demo scene, small, and 30 steps on it, with a checkpoint after steps 15 and 29."""
    folder = tmp_path_factory.mktemp("end_to_end")
    succeed(
        "ps4pro", "demo-scene", "scene", "--size", 96, 64, "--num-train-views", 10,
        "--num-test-views", 2, "--num-points", 500, cwd=folder,
    )  # fmt: skip
    output = succeed("ns-train", *TRAIN, "--timestamp", "first", cwd=folder)
    return Run(folder, folder / "scene", output)


# Densification and pseudo views take part in all of a run that is far too short for them.
TRAIN: tuple[object, ...] = (
    "ps4pro-splatfacto", "--data", "scene", "--vis", "tensorboard",
    "--max-num-iterations", 30, "--steps-per-save", 15, "--save-only-latest-checkpoint", "False",
    "--pipeline.model.warmup-length", 3, "--pipeline.model.refine-every", 4,
    "--pipeline.model.densify-until", 1.0, "--pipeline.model.sh-degree-interval", 8,
    "--pipeline.model.densify-grad-thresh", 0.0002,
)  # fmt: skip
