# SPDX-License-Identifier: Apache-2.0
"""Lines of results.jsonl as a sweep would write them, for tests without one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ps4pro_nerfstudio.benchmark.scenes.code_version import CODE
from ps4pro_nerfstudio.benchmark.scenes.execution import Process, make_record
from ps4pro_nerfstudio.benchmark.scenes.plan import Job

CODE_HASH = "c0de"


def job(scene: str = "room", method: str = "plain", seed: int = 0, views: str = "6") -> Job:
    """A job whose key names what it is."""
    key = f"{scene}-{views}-{method}-{seed}"
    return Job(
        scene, views, method, seed, 100, Path(scene), (method, "sparse-views"), key, CODE_HASH
    )


def measurement(
    psnrs: Sequence[float],
    num_train: int = 6,
    lpips: float | None = 0.25,
    names: Sequence[str] | None = None,
) -> dict[str, Any]:
    """What the evaluation of a run writes whose test views reach these PSNR.

    SSIM of each view is a hundredth of its PSNR; the names are `images/a.png`, `images/b.png`, ...
    """
    names = names or [f"images/{chr(97 + index)}.png" for index in range(len(psnrs))]
    per_view = [
        {
            "name": names[index],
            "psnr": psnr,
            "ssim": psnr / 100,
            "lpips": lpips,
            "picture": f"eval_img_{index:04d}.png",
        }
        for index, psnr in enumerate(psnrs)
    ]
    return {
        "psnr": sum(psnrs) / len(psnrs),
        "ssim": sum(psnrs) / len(psnrs) / 100,
        "lpips": lpips,
        "lpips_net": None if lpips is None else "alex",
        "per_view": per_view,
        "train": [f"t{index}.png" for index in range(num_train)],
        "test": [view["name"] for view in per_view],
        "gaussians": 1000,
        "machine": {
            "device": "cpu",
            "cpu": "a processor",
            "cores": 2,
            "platform": "Linux",
            "versions": {CODE: CODE_HASH, "torch": "2.5"},
        },
    }


def record(
    psnrs: Sequence[float],
    *,
    scene: str = "room",
    method: str = "plain",
    seed: int = 0,
    views: str = "6",
    num_train: int = 6,
    lpips: float | None = 0.25,
    names: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Line of results.jsonl of a run with such a measurement."""
    measured = measurement(psnrs, num_train, lpips, names)
    return make_record(
        job(scene, method, seed, views), measured, Process(0, 60.0, 2**30), Process(0, 5.0, None), 2
    )
