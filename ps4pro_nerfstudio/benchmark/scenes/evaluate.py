# SPDX-License-Identifier: Apache-2.0
"""Evaluate one run as ns-eval does, and keep what each view contributes.

`python -m ps4pro_nerfstudio.benchmark.scenes.evaluate CONFIG JSON FOLDER`

Loading, rendering, metrics and averages are nerfstudio's calls of ns-eval, in its order; only a
listener stands between the model and the average. Truth and render, side by side, go to FOLDER.
"""

from __future__ import annotations

import json
import math
import platform
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ps4pro_nerfstudio.benchmark.scenes.code_version import CODE, installed_versions
from ps4pro_nerfstudio.benchmark.timing import available_cores, cpu_model
from ps4pro_nerfstudio.dataparsers.split_file import relative_name
from ps4pro_nerfstudio.messages import InputError

METRICS = ("psnr", "ssim", "lpips")
_VERSIONS = ("ps4pro-nerfstudio", CODE, "nerfstudio", "torch", "gsplat", "numpy", "numba")


def evaluate(config_path: Path, renders: Path) -> dict[str, Any]:
    """Averages, metrics of each view, split lists, size of the model and versions.

    Args:
        config_path: config.yml of the run.
        renders: folder for eval_img_NNNN.png, in the order of the views.
    """
    from nerfstudio.utils.eval_utils import eval_setup

    config, loaded, _, step = eval_setup(config_path)
    pipeline: Any = loaded
    model = pipeline.model
    measured: list[dict[str, Any]] = []
    measure = model.get_image_metrics_and_images

    def listen(outputs: Any, batch: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        metrics, images = measure(outputs, batch)
        measured.append({name: number(metrics.get(name)) for name in METRICS})
        return metrics, {name: image for name, image in images.items() if name == "img"}

    model.get_image_metrics_and_images = listen
    begin = time.perf_counter()
    averages = pipeline.get_average_eval_image_metrics(output_path=renders, get_std=True)
    seconds = time.perf_counter() - begin

    datamanager = pipeline.datamanager
    train, test = (
        view_names(dataset.image_filenames, datamanager.config.dataparser.data)
        for dataset in (datamanager.train_dataset, datamanager.eval_dataset)
    )
    views = []
    for index, (name, metrics) in enumerate(zip(test, measured, strict=True)):
        picture = renders / f"eval_img_{index:04d}.png"
        views.append(
            {"name": name, **metrics, "picture": picture.name if picture.is_file() else None}
        )
    return {
        **{name: number(averages.get(name)) for name in METRICS},
        "lpips_net": lpips_net(model) if "lpips" in averages else None,
        "per_view": views,
        "train": train,
        "test": test,
        "last_step": step,
        "gaussians": len(model.means) if hasattr(model, "gauss_params") else None,
        "render_and_metrics_seconds": seconds,
        "ns_method": config.method_name,
        "machine": machine(str(pipeline.device)),
    }


def view_names(files: Sequence[Path], data: Path) -> list[str]:
    """Names of photographs as in the run's split.json: paths relative to the capture.

    Raises:
        InputError: two views are of the same file, so that no name tells them apart.
    """
    names = [relative_name(file, data) for file in files]
    if len(set(names)) < len(names):
        repeated = next(name for name in names if names.count(name) > 1)
        raise InputError(f"two views of {data} are read from {repeated}; name each photo once")
    return names


def number(value: Any) -> float | None:
    """A plain finite number, or None: JSON has no other."""
    if value is None or not math.isfinite(float(value)):
        return None
    return float(value)


def lpips_net(model: Any) -> str | None:
    """Network of the LPIPS in use: what the model's config names, else what torchmetrics holds."""
    named = getattr(model.config, "lpips_net", None)
    return named or getattr(getattr(getattr(model, "lpips", None), "net", None), "pnet_type", None)


def machine(device: str) -> dict[str, Any]:
    """Where the figures come from."""
    return {
        "device": device,
        "cpu": cpu_model(),
        "cores": available_cores(),
        "platform": f"{platform.system()} {platform.machine()}",
        "versions": {"python": platform.python_version(), **installed_versions(_VERSIONS)},
    }


if __name__ == "__main__":
    _config, _output, _renders = map(Path, sys.argv[1:])
    _output.write_text(json.dumps(evaluate(_config, _renders), allow_nan=False) + "\n")
