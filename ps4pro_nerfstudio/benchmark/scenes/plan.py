# SPDX-License-Identifier: Apache-2.0
"""Which jobs a sweep has, and what decides each of them."""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ps4pro_nerfstudio.benchmark.scenes.arms import find_arm
from ps4pro_nerfstudio.benchmark.scenes.captures import Capture
from ps4pro_nerfstudio.benchmark.scenes.code_version import CODE, DECISIVE, installed_versions
from ps4pro_nerfstudio.messages import InputError, MissingPartError

# `-m` alone would take a package that lies in the current folder, which ns-train does not.
_RUN_MODULE = (
    "import runpy, sys; sys.path[:] = filter(None, sys.path); "
    "runpy.run_module(sys.argv.pop(1), run_name='__main__', alter_sys=True)"
)


@dataclass(frozen=True)
class Job:
    """One training with its evaluation."""

    scene: str
    views: str
    """As the user wrote it: `6`, `every-3`, `dense`."""
    method: str
    """Short name of the arm."""
    seed: int
    steps: int
    data: Path
    """Capture that ns-train reads."""
    arguments: tuple[str, ...]
    """Of ns-train, without the folder of the run."""
    key: str
    """Hash of everything that decides the result."""
    code: str
    """Hash of this package when the job was planned."""

    def __str__(self) -> str:
        unit = " views" if self.views.isdecimal() else ""
        return f"{self.scene}, {self.views}{unit}, {self.method}, seed {self.seed}"

    def train_command(self, output: Path) -> list[str]:
        """The command that trains; its run goes below `output/runs/<key>`."""
        method, *arguments = self.arguments
        split = arguments.index("sparse-views")
        return [
            program("ns-train"),
            method,
            *("--output-dir", str(self.run_folder(output))),
            *("--experiment-name", self.scene, "--timestamp", "run"),
            *arguments[:split],
            *("sparse-views", "--data", str(self.data)),
            *arguments[split + 1 :],
        ]

    def run_folder(self, output: Path) -> Path:
        """Folder of the run, its logs and its evaluation."""
        return output / "runs" / self.key

    def evaluate_command(self, output: Path, config: Path) -> list[str]:
        """The command that evaluates a trained run; see `evaluate.py`."""
        return [
            *module_command("ps4pro_nerfstudio.benchmark.scenes.evaluate"),
            *(str(config), str(self.run_folder(output) / "evaluation.json")),
            str(output / "renders" / self.key),
        ]


def make_plan(
    captures: Sequence[Capture],
    views: Sequence[str],
    methods: Sequence[str],
    seeds: Sequence[int],
    *,
    steps: int,
    device: str | None = None,
    test_cap: int | None = None,
) -> list[Job]:
    """All jobs, all methods of a seed together: a sweep that is broken off leaves whole pairs.

    Args:
        captures: scenes.
        views: specifications of the training views, see `view_arguments`; `SCENE:` before one
            keeps it to that scene.
        methods: names of arms, or of what ns-train lists.
        seeds: of ns-train's machine.
        steps: training steps, the same for all.
        device: of ns-train's machine; None leaves it to the method.
        test_cap: largest number of test views.

    Raises:
        InputError: nothing to do, a specification that cannot be read, two scenes of one name.
    """
    named: tuple[tuple[str, Sequence[str | int]], ...] = (
        ("--data", [capture.name for capture in captures]),
        ("--views", views),
        ("--methods", methods),
        ("--seeds", seeds),
    )
    for what, values in named:
        if not values:
            raise InputError(f"{what} is empty; name at least one")
        if len(set(values)) < len(values):
            repeated = next(value for value in values if list(values).count(value) > 1)
            raise InputError(f"{what} has {repeated} twice; names must differ")
    if steps < 1:
        raise InputError(f"--steps is {steps}; it must be at least 1")
    views_of: dict[str, list[str]] = {capture.name: [] for capture in captures}
    for entry in views:
        scene, _, specification = entry.rpartition(":")
        if scene and scene not in views_of:
            raise InputError(f"--views {entry} names a scene that --data does not: {scene}")
        for name in [scene] if scene else views_of:
            if specification in views_of[name]:
                raise InputError(f"--views has {specification} twice for the scene {name}")
            views_of[name].append(specification)
    jobs = []
    versions = installed_versions(DECISIVE)
    for capture in captures:
        for specification in views_of[capture.name]:
            for seed in seeds:
                for method in methods:
                    arm = find_arm(method)
                    arguments = (
                        arm.method,
                        *arm.arguments,
                        *_run_arguments(seed, steps, device),
                        "sparse-views",
                        *capture.arguments,
                        *view_arguments(specification),
                        *(("--test-cap", str(test_cap)) if test_cap is not None else ()),
                    )
                    jobs.append(
                        Job(
                            scene=capture.name,
                            views=specification,
                            method=method,
                            seed=seed,
                            steps=steps,
                            data=capture.folder,
                            arguments=arguments,
                            key=job_key(
                                (capture.name, specification, method),
                                capture.digest,
                                arguments,
                                versions,
                            ),
                            code=versions[CODE],
                        )
                    )
    return jobs


def _run_arguments(seed: int, steps: int, device: str | None) -> tuple[str, ...]:
    """No viewer, one checkpoint at the end, no evaluation on the way: it would cost time."""
    never = ("batch", "image", "all-images")
    return (
        *("--machine.seed", str(seed), "--max-num-iterations", str(steps)),
        *(("--machine.device-type", device) if device is not None else ()),
        *("--vis", "tensorboard", "--steps-per-save", str(steps)),
        *(part for kind in never for part in (f"--steps-per-eval-{kind}", "0")),
    )


def view_arguments(specification: str) -> tuple[str, ...]:
    """Options of the parser `sparse-views` for one specification of the training views.

    `N`: that many, evenly spaced among those that are no test views; `every-K`: every K-th, all
    others are test views; `dense`: all but every 8th.

    Raises:
        InputError: it is none of these.
    """
    if specification == "dense":
        return ("--test-every", "8")
    if match := re.fullmatch(r"every-(\d+)", specification):
        if int(match[1]) < 2:
            raise InputError(f"--views {specification} leaves no test view; every-2 is the least")
        return ("--every", match[1])
    if specification.isdecimal() and int(specification) >= 2:
        return ("--views", specification)
    raise InputError(
        f"--views {specification} is not understood; give a number of training views (2 or more), "
        "every-K, or dense"
    )


def job_key(
    labels: tuple[str, ...], digest: str, arguments: tuple[str, ...], versions: Mapping[str, str]
) -> str:
    """16 hexadecimal digits over the capture, the arguments and the versions that can matter.

    The labels, by which reports sort, are part of it: what is the same under two names runs twice.
    """
    text = json.dumps([labels, digest, arguments, versions], sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def superseded(jobs: Sequence[Job], records: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Records of these very jobs by another version of the code, or of what it rests on."""
    keys = {job.key for job in jobs}
    planned = {(job.scene, job.views, job.method, job.seed, job.steps) for job in jobs}
    current = installed_versions(DECISIVE)
    found = []
    for record in records:
        # Records of the earliest versions have no hash of the code: another one, too.
        versions = record.get("machine", {}).get("versions", {})
        same_job = tuple(map(record.get, ("scene", "views", "method", "seed", "steps"))) in planned
        differs = any(versions.get(name) != current.get(name) for name in DECISIVE)
        if same_job and differs and record["key"] not in keys:
            found.append(record)
    return found


def module_command(module: str) -> list[str]:
    """The command that runs a module of the package that ns-train imports."""
    return [sys.executable, "-c", _RUN_MODULE, module]


def program(name: str) -> str:
    """Path of a command of the environment that runs this process.

    Raises:
        MissingPartError: it is not there.
    """
    suffix = ".exe" if sys.platform == "win32" else ""
    path = Path(sys.executable).with_name(name + suffix)
    if not path.is_file():
        raise MissingPartError(
            f"{path} does not exist; install nerfstudio into the environment of {sys.executable}"
        )
    return str(path)
