# SPDX-License-Identifier: Apache-2.0
"""`ps4pro eval-interpolator`: interpolators side by side on triplets, or on the fixed view pairs.

Layouts of the public sets:

    triplets   DATA/*/{frame0,frame1,frame2}.* or {im1,im2,im3}.*; the middle one is the truth
    vimeo90k   DATA/sequences/AAAAA/BBBB/im1..3.png, listed in DATA/tri_testlist.txt
    ucf101     DATA/*/{frame_00,frame_01_gt,frame_02}.png
    snu-film   DATA/test-{easy,medium,hard,extreme}.txt, lines of three paths: first, truth, last
    xiph       DATA/*/ with numbered frames; even frames 2..98 from their neighbours at a distance
               of 2 ... "2k": reduced to 2048x1080 by area, "4k": its centre crop

PSNR is of the 8-bit rounded prediction, per image, then averaged. SSIM has two variants, which must
not be mixed: `ssim_vfi` is that of the literature (RIFE, IFRNet, EMA-VFI tables): one 11x11x11
Gaussian, sigma 1.5, over the RGB volume with replicated borders; `ssim_2d` is scikit-image's 7x7
per channel on 8-bit images (Xiph tables). LPIPS is AlexNet's, left out without weights on disk.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
import tyro
from numpy.typing import NDArray
from torch import Tensor

from ps4pro_nerfstudio.caches import cache_folder
from ps4pro_nerfstudio.interpolation.network import PS4PRO
from ps4pro_nerfstudio.interpolation.optical_flow import LinearBlend, OpticalFlowInterpolator
from ps4pro_nerfstudio.interpolation.protocol import FrameInterpolator
from ps4pro_nerfstudio.interpolation.rife import RifeInterpolator
from ps4pro_nerfstudio.messages import InputError, say

Layout = Literal["triplets", "vimeo90k", "ucf101", "snu-film", "xiph"]


@dataclass(frozen=True)
class Triplet:
    """Where the two given frames and the truth at t = 1/2 lie."""

    name: str
    first: Path
    truth: Path
    last: Path
    prepare: Callable[[NDArray[np.uint8]], NDArray[np.uint8]] | None = None


@dataclass
class EvalInterpolator:
    """Compare interpolators on triplets of a public set, or on the suite's own view pairs."""

    data: Annotated[Path | None, tyro.conf.Positional] = None
    """Folder of the data set; not needed with --views."""
    layout: Layout = "triplets"
    """How its files are laid out; see the README."""
    split: str = ""
    """snu-film: easy, medium, hard or extreme (empty: all); xiph: 2k (default) or 4k."""
    models: tuple[str, ...] = ("ps4pro-small",)
    """Networks: names of shipped weights or .safetensors files, and `rife` for the peer RIFE v4.0.
    Frame mean and optical flow are always measured beside them."""
    views: bool = False
    """Measure on the fixed set of ray-cast view pairs, by motion and angle."""
    angles: tuple[float, ...] = ()
    """With --views: only these angles between the views, in degrees (2, 5, 10, 15, 20)."""
    limit: int = 0
    """Measure only the first so many triplets; 0 measures all."""
    lpips: bool = True
    """Measure LPIPS where the weights of AlexNet are on disk."""
    device: str = "cpu"
    """Device that the networks run on."""
    threads: int = 0
    """Threads of torch and OpenCV on the CPU; 0 leaves the default."""
    precision: Literal["bf16", "fp32"] = "fp32"
    """Arithmetic of the networks' convolutions."""
    output: Path | None = None
    """JSON file for the figures."""

    def run(self) -> None:
        """Measure, print a table and write the JSON file."""
        if self.threads:
            import cv2

            torch.set_num_threads(self.threads)
            cv2.setNumThreads(self.threads)
        interpolators = self._interpolators()
        if self.views:
            report = self._run_views(interpolators)
        elif self.data is not None:
            report = self._run_triplets(interpolators)
        else:
            raise InputError("name the folder of a data set, or ask for --views")
        if self.output is not None:
            self.output.parent.mkdir(parents=True, exist_ok=True)
            self.output.write_text(json.dumps(report, indent=2))
            say(f"figures written to {self.output}")

    def _interpolators(self) -> list[FrameInterpolator]:
        bf16 = self.precision == "bf16"
        networks = []
        for name in self.models:
            if name == "rife":
                networks.append(Autocast(RifeInterpolator(self.device), self.device, bf16))
            else:
                network = PS4PRO.from_pretrained(name).to(self.device)
                networks.append(Autocast(network, self.device, bf16))
        return [LinearBlend(), OpticalFlowInterpolator(), *networks]

    def _run_triplets(self, interpolators: list[FrameInterpolator]) -> dict[str, Any]:
        from rich.progress import track

        assert self.data is not None
        triplets = list(find_triplets(self.data, self.layout, self.split))
        if self.limit:
            triplets = triplets[: self.limit]
        rows: dict[str, list[dict[str, float]]] = {i.name: [] for i in interpolators}
        lpips = _lpips(self.device) if self.lpips else None
        for triplet in track(triplets, description="Interpolating", transient=True):
            first, truth, last = (_read(path, triplet.prepare) for path in _paths(triplet))
            if first.shape != truth.shape or last.shape != truth.shape:
                raise InputError(f"the frames of {triplet.name} differ in size")
            for interpolator in interpolators:
                image, seconds = _timed(interpolator, first, last, self.device)
                figures = image_figures(image, truth, self.layout == "xiph")
                if lpips is not None:
                    value = lpips(image, truth)
                    figures["lpips_alex"] = float("nan") if value is None else value
                rows[interpolator.name].append({**figures, "seconds": seconds})
        report: dict[str, Any] = {
            "data": self.data.name,
            "layout": self.layout,
            "split": self.split,
            "triplets": len(triplets),
            "round8": True,
            "models": {},
        }
        for interpolator in interpolators:
            mean = {
                key: float(np.mean([row[key] for row in rows[interpolator.name]]))
                for key in rows[interpolator.name][0]
            }
            # The first frames warm caches up.
            mean["seconds"] = float(np.median([r["seconds"] for r in rows[interpolator.name]]))
            report["models"][interpolator.name] = {**mean, **_about(interpolator)}
        report["peak_memory_mib"] = _peak_memory_mib(self.device)
        _print_table(f"{self.data.name}: {len(triplets)} triplets, t = 1/2", report["models"])
        say(f"peak memory of this process: {report['peak_memory_mib']:.0f} MiB")
        return report

    def _run_views(self, interpolators: list[FrameInterpolator]) -> dict[str, Any]:
        from rich.progress import track

        from ps4pro_nerfstudio.training.view_pairs import (
            ANGLES_DEG,
            MOTIONS,
            SIZE,
            VERSION,
            measure,
            summarise,
            view_pairs,
        )

        if unknown := set(self.angles) - set(ANGLES_DEG):
            raise InputError(f"--angles must be among {ANGLES_DEG}, got {sorted(unknown)}")
        pairs = view_pairs(
            cache_folder(),
            self.angles or ANGLES_DEG,
            lambda wanted: track(wanted, description="Making view pairs", transient=True),
        )
        if self.limit:
            pairs = pairs[: self.limit]
        figures = {
            interpolator.name: [
                measure(pair, interpolator, self.device)
                for pair in track(pairs, description=interpolator.name, transient=True)
            ]
            for interpolator in interpolators
        }
        report: dict[str, Any] = {"data": f"view pairs {VERSION}", "size": SIZE, "models": {}}
        groups: dict[str, Callable[[Any], bool]] = {"all": lambda f: True}
        groups["5-15 deg"] = lambda f: 5.0 <= f.angle_deg <= 15.0
        for angle in self.angles or ANGLES_DEG:
            groups[f"{angle:g} deg"] = lambda f, angle=angle: f.angle_deg == angle
        for motion in MOTIONS:
            groups[motion] = lambda f, motion=motion: f.motion == motion
        for group, belongs in groups.items():
            table = {}
            for name, values in figures.items():
                chosen = [value for value in values if belongs(value)]
                if chosen:
                    table[name] = summarise(chosen)
                    report["models"].setdefault(name, {})[group] = table[name]
            if table:
                _print_table(f"view pairs, {group}", table)
        return report


class Autocast:
    """An interpolator under autocast, so that 16-bit arithmetic is measured like any other."""

    def __init__(self, network: PS4PRO | RifeInterpolator, device: str, enabled: bool) -> None:
        self.network = network
        self.name = network.name
        self.identity = network.identity
        self.judges_itself = network.judges_itself
        self._device = torch.device(device).type
        self._enabled = enabled

    def __call__(self, frame0: Tensor, frame1: Tensor, t: float) -> Any:
        """As the network, in the chosen arithmetic."""
        with torch.autocast(self._device, torch.bfloat16, enabled=self._enabled):
            return self.network(frame0, frame1, t)


def find_triplets(data: Path, layout: Layout, split: str = "") -> Iterator[Triplet]:
    """The triplets of a data set, in a fixed order.

    Raises:
        InputError: when there are none; the message says what was looked for.
    """
    finders = {
        "triplets": _find_folders,
        "vimeo90k": _find_vimeo90k,
        "ucf101": _find_ucf101,
        "snu-film": _find_snu_film,
        "xiph": _find_xiph,
    }
    found = False
    for triplet in finders[layout](data, split):
        found = True
        yield triplet
    if not found:
        raise InputError(f"{data} holds no triplets of the layout {layout!r}; see --help")


def _find_folders(data: Path, split: str) -> Iterator[Triplet]:
    for folder in sorted(path for path in data.rglob("*") if path.is_dir()):
        for names in (("frame0", "frame1", "frame2"), ("im1", "im2", "im3")):
            files = [sorted(folder.glob(f"{name}.*")) for name in names]
            if all(files):
                first, truth, last = (each[0] for each in files)
                yield Triplet(str(folder.relative_to(data)), first, truth, last)
                break


def _find_vimeo90k(data: Path, split: str) -> Iterator[Triplet]:
    listing = data / "tri_testlist.txt"
    if not listing.is_file():
        raise InputError(f"vimeo90k: {listing} is absent")
    for line in listing.read_text().split():
        folder = data / "sequences" / line
        yield Triplet(line, folder / "im1.png", folder / "im2.png", folder / "im3.png")


def _find_ucf101(data: Path, split: str) -> Iterator[Triplet]:
    for truth in sorted(data.glob("*/frame_01_gt.png")):
        folder = truth.parent
        yield Triplet(folder.name, folder / "frame_00.png", truth, folder / "frame_02.png")


def _find_snu_film(data: Path, split: str) -> Iterator[Triplet]:
    splits = [split] if split else ["easy", "medium", "hard", "extreme"]
    for name in splits:
        listing = data / f"test-{name}.txt"
        if not listing.is_file():
            raise InputError(f"snu-film: {listing} is absent")
        for line in filter(None, listing.read_text().splitlines()):
            paths = [_resolve(data, part) for part in line.split()]
            if len(paths) != 3:
                raise InputError(f"snu-film: {listing} has a line without three paths: {line!r}")
            first, truth, last = paths
            yield Triplet(f"{name}/{truth.parent.name}/{truth.stem}", first, truth, last)


def _resolve(data: Path, written: str) -> Path:
    """A path of SNU-FILM's lists, which start at a folder of the authors' machine."""
    parts = Path(written).parts
    for start in range(len(parts)):
        candidate = data.joinpath(*parts[start:])
        if candidate.is_file():
            return candidate
    raise InputError(f"snu-film: no file {written} below {data}")


def _find_xiph(data: Path, split: str) -> Iterator[Triplet]:
    if split not in ("", "2k", "4k"):
        raise InputError(f"xiph: --split must be 2k or 4k, got {split!r}")
    prepare = _centre_crop if split == "4k" else _reduce_to_2k
    for folder in sorted(path for path in data.iterdir() if path.is_dir()):
        frames = sorted(folder.glob("*.png"))[:100]
        for middle in range(2, min(99, len(frames) - 1), 2):
            paths = (frames[middle - 1], frames[middle], frames[middle + 1])
            yield Triplet(f"{folder.name}/{middle:03d}", *paths, prepare)


def _reduce_to_2k(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    import cv2

    return np.asarray(cv2.resize(image, (2048, 1080), interpolation=cv2.INTER_AREA), np.uint8)


def _centre_crop(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    top, left = (image.shape[0] - 1080) // 2, (image.shape[1] - 2048) // 2
    return image[top : top + 1080, left : left + 2048]


def _paths(triplet: Triplet) -> tuple[Path, Path, Path]:
    return triplet.first, triplet.truth, triplet.last


def _read(path: Path, prepare: Callable | None) -> Tensor:
    """A picture as [H, W, 3] in [0, 1]."""
    import cv2

    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if image is None:
        raise InputError(f"{path} is absent or no picture")
    image = np.ascontiguousarray(image[..., ::-1])
    if prepare is not None:
        image = np.ascontiguousarray(prepare(image))
    return torch.from_numpy(image).float() / 255.0


def _timed(
    interpolator: FrameInterpolator, first: Tensor, last: Tensor, device: str
) -> tuple[Tensor, float]:
    """The prediction [H, W, 3], 8-bit rounded, and the seconds it took, everything included."""
    frames = [image.permute(2, 0, 1)[None].to(device) for image in (first, last)]
    start = time.perf_counter()
    with torch.inference_mode():
        image = interpolator(frames[0], frames[1], 0.5).image
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    image = (image[0].float() * 255.0).round().clamp(0, 255) / 255.0
    return image.permute(1, 2, 0).cpu(), seconds


def image_figures(image: Tensor, truth: Tensor, two_dimensional: bool = False) -> dict[str, float]:
    """PSNR and SSIM of [H, W, 3] images in [0, 1]; see the module for the two kinds of SSIM."""
    error = (image - truth).double().square().mean().clamp_min(1e-10)
    figures = {"psnr": float(-10.0 * torch.log10(error))}
    if two_dimensional:
        from skimage.metrics import structural_similarity

        eight_bit = [(value * 255.0).round().to(torch.uint8).numpy() for value in (image, truth)]
        figures["ssim_2d"] = float(
            structural_similarity(*eight_bit, channel_axis=2)  # pyright: ignore[reportArgumentType]
        )
    else:
        figures["ssim_vfi"] = ssim_vfi(image, truth)
    return figures


def ssim_vfi(image: Tensor, truth: Tensor) -> float:
    """SSIM over the RGB volume, as the interpolation literature computes it; [H, W, 3] images."""
    window = torch.exp(-((torch.arange(11) - 5.0) ** 2) / (2 * 1.5**2))
    window = window / window.sum()
    kernels = [window.reshape(shape) for shape in ((1, 1, 11, 1, 1), (1, 1, 1, 11, 1))]
    kernels.append(window.reshape(1, 1, 1, 1, 11))

    def blur(volume: Tensor) -> Tensor:
        volume = F.pad(volume, (5, 5, 5, 5, 5, 5), mode="replicate")
        for kernel in kernels:
            volume = F.conv3d(volume, kernel)
        return volume

    a, b = (value.permute(2, 0, 1)[None, None].float() for value in (image, truth))
    mean_a, mean_b = blur(a), blur(b)
    variance_a = blur(a * a) - mean_a**2
    variance_b = blur(b * b) - mean_b**2
    covariance = blur(a * b) - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    numerator = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    return float(
        (numerator / ((mean_a**2 + mean_b**2 + c1) * (variance_a + variance_b + c2))).mean()
    )


def _lpips(device: str) -> Any:
    from ps4pro_nerfstudio.metrics import LazyLPIPS
    from ps4pro_nerfstudio.metrics.lpips import available

    if not available("alex"):
        say("LPIPS is left out: the weights of AlexNet are not on disk")
        return None
    return LazyLPIPS("alex")


def _about(interpolator: FrameInterpolator) -> dict[str, Any]:
    network = getattr(interpolator, "network", None)
    parameters = sum(p.numel() for p in network.parameters()) if network is not None else 0
    return {"parameters": parameters, "identity": interpolator.identity}


def _peak_memory_mib(device: str) -> float:
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    try:
        import resource
    except ImportError:  # Windows
        return float("nan")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _print_table(title: str, models: dict[str, dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title)
    columns = [key for key in next(iter(models.values())) if key != "identity"]
    table.add_column("model")
    for column in columns:
        table.add_column(column, justify="right")
    for name, figures in models.items():
        table.add_row(name, *(_formatted(column, figures[column]) for column in columns))
    Console(width=max(100, 14 * len(columns) + 20)).print(table)


def _formatted(column: str, value: float) -> str:
    if column in ("parameters", "pairs"):
        return f"{int(value):,}"
    if column.startswith("psnr"):
        return f"{value:.2f}"
    return f"{value:.4f}" if abs(value) < 1 else f"{value:.3f}"
