# SPDX-License-Identifier: Apache-2.0
"""What this machine has, what is missing, and what to do about it: `ps4pro doctor`."""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ps4pro_nerfstudio.caches import CAPTURE_CACHE, cache_folder
from ps4pro_nerfstudio.diffusion.catalogue import CAPTION, DENOISERS, DEPTH, Part
from ps4pro_nerfstudio.diffusion.libraries import EXTRA, missing_packages
from ps4pro_nerfstudio.messages import MissingPartError

State = Literal["ok", "optional", "missing"]

# Distribution, extra that brings it (None: required), what it is for.
_PACKAGES: tuple[tuple[str, str | None, str], ...] = (
    ("ps4pro-nerfstudio", None, "this package"),
    ("nerfstudio", None, "framework"),
    ("torch", None, "tensors"),
    ("torchvision", None, "image networks"),
    ("gsplat", None, "densification; rendering on CUDA"),
    ("numba", None, "rendering on the CPU"),
    ("numpy", None, "arrays"),
    ("tyro", None, "command line"),
    ("viser", None, "viewer"),
    ("pycolmap", None, "initial points of captures without any"),
    ("diffusers", "diffusion", "diffusion priors"),
    ("transformers", "diffusion", "depth and text networks"),
    ("ray", "ray", "benchmarks on a cluster"),
)


@dataclass
class Finding:
    """One line of the report."""

    group: str
    """Versions, devices, programs, weights or caches."""
    name: str
    """What was looked for."""
    value: str
    """What was found."""
    state: State = "ok"
    """ok, optional (absent, and only some features need it) or missing (something will fail)."""
    advice: str = ""
    """What to do when the state is not ok."""


def examine() -> list[Finding]:
    """Look at everything; a part that fails to import is a finding, not an error."""
    parts: tuple[Callable[[], Iterator[Finding]], ...] = (
        _versions,
        _devices,
        _programs,
        _weights,
        _caches,
    )
    findings: list[Finding] = []
    for part in parts:
        findings.extend(part())
    return findings


def print_report(*, as_json: bool = False) -> None:
    """Print the report as a table or as JSON (a list of findings)."""
    findings = examine()
    if as_json:
        print(json.dumps([asdict(finding) for finding in findings], indent=2))
        return
    colours = {"ok": "green", "optional": "yellow", "missing": "red"}
    table = Table("", "what", "found", "to do", box=None, pad_edge=False)
    group = ""
    for finding in findings:
        if finding.group != group:
            group = finding.group
            table.add_row("", f"[bold]{group}[/]")
        colour = colours[finding.state]
        mark = {"ok": "✓", "optional": "·", "missing": "✗"}[finding.state]
        texts = (escape(text) for text in (finding.name, finding.value, finding.advice))
        table.add_row(f"[{colour}]{mark}[/]", *texts)
    Console().print(table)


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _versions() -> Iterator[Finding]:
    group = "versions"
    yield Finding(group, "python", platform.python_version())
    for distribution, extra, purpose in _PACKAGES:
        version = _version(distribution)
        name = f"{distribution} ({purpose})"
        if version is not None:
            yield Finding(group, name, version)
        elif extra is None:
            yield Finding(group, name, "absent", "missing", f"pip install {distribution}")
        else:
            advice = f'pip install "ps4pro-nerfstudio[{extra}]"'
            yield Finding(group, name, "absent", "optional", advice)
    yield _torch_and_torchvision()


def _torch_and_torchvision() -> Finding:
    """A CPU build of torch beside a CUDA build of torchvision fails at the import of the latter."""
    group, name = "versions", "torch and torchvision fit"
    try:
        importlib.import_module("torchvision")
    except Exception as error:  # whatever a broken binary raises
        return Finding(
            group,
            name,
            f"no: {' '.join(str(error).split())[:80]}",
            "missing",
            "install both from the same place: pip install --force-reinstall torch torchvision",
        )
    return Finding(group, name, "yes")


def _devices() -> Iterator[Finding]:
    import torch

    group = "devices"
    yield Finding(group, "processor", f"{_processor()}, {os.cpu_count()} cores")
    if torch.cuda.is_available():
        yield Finding(group, "cuda", f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}")
    else:
        yield Finding(group, "cuda", "none", "optional", "methods train on the CPU")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        from ps4pro_nerfstudio.splatting.adapter import require_kernels
        from ps4pro_nerfstudio.splatting.api import chosen_rasterizer

        chosen = chosen_rasterizer(device)
        if chosen == "gsplat":
            require_kernels()
        yield Finding(group, "rasterizer", f"{chosen} on {device}")
    except MissingPartError as error:
        what, _, cure = str(error).partition("; ")
        yield Finding(group, "rasterizer", what, "missing", cure)
    except Exception as error:
        yield Finding(group, "rasterizer", f"none: {error}", "missing", "pip install numba gsplat")


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _programs() -> Iterator[Finding]:
    from ps4pro_nerfstudio.engine.programs import provide_ffmpeg

    group = "programs"
    ffmpeg = provide_ffmpeg()
    if ffmpeg is not None:
        yield Finding(group, "ffmpeg (ns-render)", str(ffmpeg))
    else:
        yield Finding(group, "ffmpeg (ns-render)", "none", "optional", "pip install imageio-ffmpeg")
    yield _open3d()
    colmap = shutil.which("colmap")
    if colmap:
        yield Finding(group, "colmap (ns-process-data)", colmap)
    else:
        yield Finding(
            group,
            "colmap (ns-process-data)",
            "none",
            "optional",
            "needed only to compute poses of new photos; apt-get install colmap",
        )


def _open3d() -> Finding:
    """ns-export imports Open3D, whose wheel needs a library that small systems lack."""
    group, name = "programs", "open3d (ns-export)"
    try:
        importlib.import_module("open3d")
    except Exception as error:
        advice = "apt-get install libusb-1.0-0" if "libusb" in str(error) else "pip install open3d"
        return Finding(group, name, f"does not load: {error}", "optional", advice)
    return Finding(group, name, str(_version("open3d")))


def _weights() -> Iterator[Finding]:
    from ps4pro_nerfstudio.metrics import lpips

    for net in ("alex", "vgg"):
        name = f"LPIPS ({net})"
        path = lpips.weights_path(net)
        if lpips.available(net):
            yield Finding("weights", name, str(path))
        else:
            advice = (
                f"put torchvision's {path.name} into {path.parent}, or let the first evaluation "
                f"fetch it: {lpips.DOWNLOAD_VARIABLE}=1 ns-eval ..."
            )
            yield Finding("weights", name, "absent, metric left out", "optional", advice)
    yield from _prior_weights()


def _prior_weights() -> Iterator[Finding]:
    """What ipsm-gaussian can use, and where its defaults look for it; training goes without it."""
    for family, pair in DENOISERS.items():
        option = "" if family == "sd-1.5" else f" --family {family}"
        for part in pair:
            yield _prior_part(part, family, f"--parts {part.role}{option}")
    for choice, part in DEPTH.items():
        option = "" if choice == "depth-anything" else f" --depth {choice}"
        yield _prior_part(part, choice, f"--parts depth{option}")
    yield _prior_part(CAPTION, "blip", "--parts caption")


def _prior_part(part: Part, kind: str, options: str) -> Finding:
    """One part of the priors, as found in the Hugging Face cache."""
    from ps4pro_nerfstudio.diffusion.weights import FETCH, find_cached

    group, name, advice = "weights", f"ipsm {part.role} ({kind})", f"{FETCH} {options}"
    try:
        found = find_cached(part)
    except MissingPartError as error:
        return Finding(group, name, "unknown", "optional", str(error))
    if found is not None:
        return Finding(group, name, str(found.folder))
    if missing_packages("huggingface_hub"):
        advice = f"{EXTRA}, then {advice}"
    return Finding(group, name, "not in the Hugging Face cache", "optional", advice)


def _caches() -> Iterator[Finding]:
    group = "caches"
    if "PS4PRO_CACHE" not in os.environ:
        value = f"{CAPTURE_CACHE} in the capture's folder; below where that cannot be written"
        yield Finding(group, "what belongs to a capture", value)
    for what in ("pseudo_views", "seed_points", "stereo", "numba"):
        folder = cache_folder(what)
        size = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
        yield Finding(group, what, f"{folder} ({size / 2**20:.0f} MiB)")
