# SPDX-License-Identifier: Apache-2.0
"""How true pseudo views are, and whether their confidence says so: `ps4pro bench pseudo-views`.

Ray-cast rooms can be photographed from every camera, the one in between included. For each room,
motion and angle, three photographs are taken along one path, pseudo views are made of them in
several ways, and each is compared with what its camera sees:

    agree          share of the pixels whose two sources agree
    moved          median distance in pixels by which positions had to be moved (of agreeing pixels)
    PSNR           of the pixels, weighted by confidence, and of all pixels
    wrong          share of the pixels trusted above one half whose colour is off by more than .05
    depth          median relative error of the depths that are given
    depth > 5 %    share of them that are off by more than that

Figures of colour are means over the views of an angle. Those of depth pool the pixels of all its
views, because a view with a handful of depths says little; so does the reliability curve: mean
error of colour against confidence.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table

from ps4pro_nerfstudio.benchmark.timing import describe_machine
from ps4pro_nerfstudio.demo.capture import CLEARANCE_M
from ps4pro_nerfstudio.demo.raycasting import Camera, render
from ps4pro_nerfstudio.demo.room import Room
from ps4pro_nerfstudio.geometry.cameras import flip_camera_axes, relative_pose
from ps4pro_nerfstudio.interpolation.network import PS4PRO
from ps4pro_nerfstudio.interpolation.optical_flow import LinearBlend, OpticalFlowInterpolator
from ps4pro_nerfstudio.interpolation.protocol import FrameInterpolator
from ps4pro_nerfstudio.messages import InputError, say
from ps4pro_nerfstudio.pseudo_views.pseudo_view import PseudoView
from ps4pro_nerfstudio.pseudo_views.sources import (
    InterpolatedSourceConfig,
    SourceViews,
    make_pseudo_views,
)
from ps4pro_nerfstudio.training.rooms import MOTIONS, draw_cameras, draw_room

CONFIDENCE_EDGES = (0.0, 0.1, 0.25, 0.5, 0.7, 0.8, 0.9, 1.0)
"""Bins of the reliability curve; the first holds pixels that are never used."""

_SEED = 88_100_000
_WRONG_COLOR = 0.05
_NUM_POINTS = 400
_DEFAULT = "ps4pro"


@dataclass(frozen=True)
class TruthCapture:
    """Three photographs, and the room to ask what any other camera would have seen."""

    views: SourceViews
    room: Room
    focal: float
    angle_deg: float

    def truth(self, view: PseudoView) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
        """Image [H, W, 3] in [0, 1] and depth [H, W] that the camera of a view sees."""
        camera = Camera(view.width, view.height, self.focal, flip_camera_axes(view.camera_to_world))
        rendering = render(self.room.caster, camera, 2)
        return np.clip(rendering.image, 0.0, 1.0), rendering.depth


@dataclass
class _Figures:
    """What was measured of one way of making views, view by view and pixel by pixel."""

    per_view: dict[float, list[dict[str, float]]] = field(default_factory=dict)
    depth_errors: dict[float, list[NDArray]] = field(default_factory=dict)
    """Relative error of each depth that is given, by angle."""
    confidence: list[NDArray] = field(default_factory=list)
    error: list[NDArray] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)


@dataclass
class PseudoViewsBenchmark:
    """Compare ways of making pseudo views with exact pictures; plot confidence against error."""

    rooms: int = 3
    """Rooms, each with its own textures."""
    angles_deg: tuple[float, ...] = (6.0, 12.0, 20.0, 32.0)
    """Angles between neighbouring photographs."""
    size: tuple[int, int] = (480, 270)
    """Width and height of the photographs."""
    ways: tuple[str, ...] = (
        "raw photographs",
        "plane, as interpolated",
        "linear blend",
        "optical-flow",
        _DEFAULT,
        "ps4pro, two passes",
    )
    """What to compare; "ps4pro" is the default of the methods."""
    threads: int = 2
    """Threads of torch and OpenCV."""
    plot: Path | None = None
    """PNG of the reliability curve to write."""
    output: Path | None = None
    """JSON file to write."""

    def run(self) -> dict[str, Any]:
        """Print and return the figures.

        Raises:
            InputError: an unknown way.
        """
        import cv2

        known = _ways()
        if unknown := set(self.ways) - set(known):
            raise InputError(f"unknown {sorted(unknown)}; choose from {sorted(known)}")
        torch.set_num_threads(self.threads)
        cv2.setNumThreads(self.threads)
        measured = {way: _Figures() for way in self.ways}
        captures = truth_captures(self.rooms, self.angles_deg, self.size)
        for capture in track(captures, "Photographing rooms", transient=True):
            for way in self.ways:
                interpolator, config = known[way]
                _measure(capture, interpolator, config, measured[way])
        figures = {
            "size": list(self.size),
            "ways": {way: _summary(found) for way, found in measured.items()},
            "reliability": {
                way: reliability(np.concatenate(found.confidence), np.concatenate(found.error))
                for way, found in measured.items()
            },
            "machine": describe_machine(),
        }
        self._print(figures)
        if self.plot is not None:
            plot_reliability(figures["reliability"], self.plot)
        if self.output is not None:
            self.output.write_text(json.dumps(figures, indent=2) + "\n")
        return figures

    def _print(self, figures: dict[str, Any]) -> None:
        table = Table(title=f"Pseudo views of ray-cast rooms, {self.size[0]}x{self.size[1]}")
        names = ("agree", "moved", "PSNR weighted", "PSNR", "wrong", "depth", "depth > 5 %")
        for column in ("angle", "", *names):
            table.add_column(column, justify="left" if column == "" else "right")
        for angle in self.angles_deg:
            for way in self.ways:
                values = figures["ways"][way][f"{angle:g}"]
                table.add_row(f"{angle:g}", way, *(_shown(values[name]) for name in names))
            table.add_section()
        Console(width=110).print(table)
        for way in self.ways:
            curve = figures["reliability"][way]
            errors = " ".join(f"{error:.3f}" for error in curve["error"])
            seconds = figures["ways"][way]["seconds"]
            say(f"{way}: {seconds:.2f} s a view; mean error by rising confidence: {errors}")


def truth_captures(
    rooms: int, angles_deg: tuple[float, ...], size: tuple[int, int]
) -> list[TruthCapture]:
    """Three photographs of each room, motion and angle; places without room for them are left out.

    The third photograph continues the motion from the first to the second.
    """
    captures = []
    for number in range(rooms):
        room = draw_room(np.random.default_rng([_SEED, number]), None, baked=True)
        for motion in MOTIONS:
            for angle in angles_deg:
                seed = [_SEED, number, MOTIONS.index(motion), round(10 * angle)]
                capture = _photograph(room, motion, angle, size, np.random.default_rng(seed))
                if capture is not None:
                    captures.append(capture)
    return captures


def reliability(confidence: NDArray, error: NDArray) -> dict[str, list[float]]:
    """Mean error and share of the pixels [P] in bins of confidence [P]; empty bins are left out."""
    place = np.digitize(confidence, CONFIDENCE_EDGES[1:-1])
    curve: dict[str, list[float]] = {"confidence": [], "error": [], "share": []}
    for index in range(len(CONFIDENCE_EDGES) - 1):
        inside = place == index
        if inside.any():
            curve["confidence"].append(float(confidence[inside].mean()))
            curve["error"].append(float(error[inside].mean()))
            curve["share"].append(float(inside.mean()))
    return curve


def plot_reliability(curves: dict[str, dict[str, list[float]]], path: Path) -> None:
    """Error of colour against confidence, and where the pixels are."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.0, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for way, curve in curves.items():
        if len(curve["confidence"]) < 3:
            continue  # It trusts everything, or nothing.
        left.plot(curve["confidence"], curve["error"], marker="o", label=way)
        right.plot(curve["confidence"], curve["share"], marker="o", label=way)
    left.set(xlabel="confidence", ylabel="mean error of colour", ylim=(0.0, None))
    right.set(xlabel="confidence", ylabel="share of the pixels", ylim=(0.0, None))
    left.legend(frameon=False)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


def _ways() -> dict[str, tuple[FrameInterpolator, InterpolatedSourceConfig]]:
    network = PS4PRO.from_pretrained()
    config = InterpolatedSourceConfig
    return {
        "raw photographs": (network, config(aligned=False, min_mean_confidence=0.0)),
        "plane, as interpolated": (network, config(weighed=False)),
        "linear blend": (LinearBlend(), config(weighed=False)),
        "optical-flow": (OpticalFlowInterpolator(), config(min_mean_confidence=0.0)),
        _DEFAULT: (network, config(min_mean_confidence=0.0)),
        "ps4pro, two passes": (network, config(min_mean_confidence=0.0, passes=2)),
    }


def _photograph(
    room: Room, motion: str, angle_deg: float, size: tuple[int, int], generator: np.random.Generator
) -> TruthCapture | None:
    try:
        first, second, _ = draw_cameras(room, motion, angle_deg, 0.5, generator)
    except InputError:
        return None
    third = second @ relative_pose(second, first)
    poses = [first, second]
    if room.is_free(third[None, :3, 3], CLEARANCE_M).all():
        poses.append(third)
    width, height = size
    focal = float(width / 2.0 / np.tan(np.deg2rad(generator.uniform(50.0, 78.0)) / 2.0))
    cameras = [Camera(width, height, focal, pose) for pose in poses]
    renderings = [render(room.caster, camera, 2) for camera in cameras]
    intrinsics = np.array([[focal, 0.0, width / 2.0], [0.0, focal, height / 2.0], [0.0, 0.0, 1.0]])
    seen = renderings[1].depth
    row, column = np.nonzero(np.isfinite(seen))
    chosen = generator.permutation(len(row))[:_NUM_POINTS]
    row, column = row[chosen], column[chosen]
    directions = cameras[1].directions(cameras[1].pixel_centers())[row, column]
    views = SourceViews(
        images=[np.rint(np.clip(r.image, 0.0, 1.0) * 255.0).astype(np.uint8) for r in renderings],
        camera_to_worlds=flip_camera_axes(np.stack(poses)),
        intrinsics=np.tile(intrinsics, (len(poses), 1, 1)),
        names=[f"{index}.png" for index in range(len(poses))],
        points=cameras[1].center + directions * seen[row, column, None],
    )
    return TruthCapture(views, room, focal, angle_deg)


def _measure(
    capture: TruthCapture,
    interpolator: FrameInterpolator,
    config: InterpolatedSourceConfig,
    into: _Figures,
) -> None:
    start = time.perf_counter()
    views = make_pseudo_views(capture.views, interpolator, config).views
    if views:
        into.seconds.append((time.perf_counter() - start) / len(views))
    for view in views:
        truth, depth = capture.truth(view)
        assert view.image is not None
        difference = view.image / 255.0 - truth
        error = np.abs(difference).mean(axis=-1)
        squared = np.square(difference).mean(axis=-1)
        confidence = view.confidence / 255.0
        trusted = confidence > 0.5
        figures = {
            "agree": view.provenance.agreeing_share,
            "moved": view.provenance.moved_px,
            "PSNR weighted": _decibel(float(np.sum(confidence * squared)), float(confidence.sum())),
            "PSNR": _decibel(float(squared.sum()), float(squared.size)),
            "wrong": float((error[trusted] > _WRONG_COLOR).mean()) if trusted.any() else np.nan,
        }
        if view.depth is not None:
            known = view.depth > 0.0
            off = np.abs(view.depth[known] / depth[known] - 1.0)
            into.depth_errors.setdefault(capture.angle_deg, []).append(off)
        into.per_view.setdefault(capture.angle_deg, []).append(figures)
        into.confidence.append(confidence.reshape(-1)[::7])
        into.error.append(error.reshape(-1)[::7])


def _summary(found: _Figures) -> dict[str, Any]:
    summary: dict[str, Any] = {
        f"{angle:g}": {
            **{name: _mean([figures[name] for figures in views]) for name in views[0]},
            **depth_figures(found.depth_errors.get(angle, [])),
        }
        for angle, views in found.per_view.items()
    }
    # The first one loads the network.
    return {**summary, "seconds": float(np.median(found.seconds)) if found.seconds else np.nan}


def depth_figures(errors: list[NDArray]) -> dict[str, float]:
    """Figures of the relative errors of all depths; NaN without any."""
    pooled = np.concatenate([*errors, np.empty(0)])
    if not pooled.size:
        return {"depth": float("nan"), "depth > 5 %": float("nan")}
    return {
        "depth": float(np.median(pooled)),
        "depth > 5 %": float((pooled > 0.05).mean()),
    }


def _mean(values: list[float]) -> float:
    known = [value for value in values if np.isfinite(value)]
    return float(np.mean(known)) if known else float("nan")


def _shown(value: float) -> str:
    return f"{value:.3g}" if np.isfinite(value) else "-"


def _decibel(squared: float, weight: float) -> float:
    return float(-10.0 * np.log10(max(squared / weight, 1e-10))) if weight > 0.0 else float("nan")
