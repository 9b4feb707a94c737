# SPDX-License-Identifier: Apache-2.0
"""Which two training photographs get a frame between them.

A capture is a path when its file order visits neighbours: a video, a walk around an object. Then
each photograph is paired with the next one, and with others that stand about as near (the next row
of a grid, an earlier turn around the object). Otherwise photographs are paired with their nearest
neighbours, by centre distance and view angle, each in at most two pairs, so that the work and the
weight spread over the capture. Only training views are ever given to this module, and nothing about
held-out views enters. Poses are [N, 3, 4], any camera axes; angles in radians inside, degrees in
options and messages.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ps4pro_nerfstudio.geometry.cameras import Float64, as_4x4, relative_pose, rotation_angle

_MAX_PAIRS_PER_VIEW = 2
_NEAR = 3.0
"""A step of the file order counts as near up to this multiple of the usual neighbour distance."""
_PATH_SHARE = 0.8
"""Share of near steps from which the file order is taken as a path."""
_CLOSING = 1.5
"""Views that are not consecutive are paired too up to this multiple of a usual step."""
_MAX_PARTNERS_ON_PATH = 3
"""A view of a path has at most this many partners, the consecutive ones included."""
_SAME_SHAPE = 0.02
"""Relative difference up to which two aspect ratios are one."""


@dataclass(frozen=True)
class Pair:
    """Two views, as indices into the training views, a before b along the path."""

    a: int
    b: int


@dataclass(frozen=True)
class Objection:
    """Why two views get no frame between them."""

    reason: str
    """The gate, in words that are the same for all pairs it stops."""
    detail: str = ""
    """The figure and its limit."""


@dataclass(frozen=True)
class Skipped:
    """Two neighbours that get no frame between them; a view that can have none has a = b."""

    a: int
    b: int
    objection: Objection


@dataclass
class PairConfig:
    """Gates on the pairs. They are generous: confidence removes what does not match."""

    max_rotation_degrees: float = 45.0
    """Largest rotation between two views. Aligned frames were measured to help up to 40 degrees."""
    max_baseline_over_depth: float = 1.0
    """Largest distance between two centres, over the depth of the alignment plane."""
    min_baseline_over_depth: float = 1e-3
    """Smallest one, over the depth of the scene: from one place nothing can be triangulated."""
    min_overlap: float = 0.15
    """Smallest share of the scene points in one view that the other shows as well."""
    min_leave_one_out_psnr: float = 18.0
    """A photograph whose frames do not match is predicted from its two partners; if it differs more
    than this, in dB over what they agree on, its pose or content is taken to be at fault."""
    max_exposure_ratio: float = 1.6
    """Largest ratio of the mean brightness of two views where they overlap; smaller differences are
    evened out."""


@dataclass(frozen=True)
class PairSelection:
    """Neighbours of a capture."""

    pairs: list[Pair]
    skipped: list[Skipped]
    is_path: bool
    """True when the file order was followed."""


def select_pairs(
    camera_to_worlds: ArrayLike,
    names: Sequence[str],
    config: PairConfig,
    depth_scale: float | None = None,
    sizes: Sequence[tuple[int, int]] | None = None,
    is_pinhole: Sequence[bool] | None = None,
) -> PairSelection:
    """Choose neighbouring views.

    Args:
        camera_to_worlds: [N, 3, 4] or [N, 4, 4].
        names: N file names; their natural order ("2" before "10") is the file order.
        config: gates.
        depth_scale: typical scene depth in units of the poses; makes centre distance an angle. The
            size of the capture stands in when it is unknown.
        sizes: N image sizes (width, height); pairs of different aspect ratio are refused.
        is_pinhole: N flags; false for fisheye and other models, which are refused.

    Raises:
        ValueError: when the number of names differs from the number of cameras.
    """
    poses = as_4x4(camera_to_worlds)
    if len(names) != len(poses):
        raise ValueError(f"names and camera_to_worlds differ: {len(names)} and {poses.shape}")
    finite = np.isfinite(poses).all(axis=(1, 2))
    skipped = [
        Skipped(i, i, Objection("pose is not finite")) for i in np.flatnonzero(~finite).tolist()
    ]
    order: list[int] = np.flatnonzero(finite).tolist()
    order.sort(key=lambda index: (_natural_key(names[index]), index))
    if len(order) < 2:
        return PairSelection([], skipped, is_path=True)
    scale = depth_scale if depth_scale is not None else _extent(poses[order])
    cost = pose_distances(poses[order], scale)
    nearest = _nearest_neighbours(cost)
    path = [(i, i + 1) for i in range(len(order) - 1)]
    usual = float(np.median([cost[edge] for edge in nearest]))
    near = [cost[edge] <= _NEAR * usual for edge in path]
    is_path = bool(np.mean(near) >= _PATH_SHARE)
    if is_path:
        edges = path
        usual_step = float(np.median([cost[edge] for edge in path]))
        edges = path + _shortcuts(cost, path, _CLOSING * usual_step)
    else:
        edges = sorted(nearest)

    pairs: list[Pair] = []
    for i, j in edges:
        a, b = order[i], order[j]
        objection = _objection(a, b, poses, scale, config, sizes, is_pinhole)
        if objection is None:
            pairs.append(Pair(a, b))
        else:
            skipped.append(Skipped(a, b, objection))
    return PairSelection(pairs, skipped, is_path)


def pose_distances(camera_to_worlds: ArrayLike, depth_scale: float) -> Float64:
    """Symmetric [N, N] distances: centre distance over depth, plus view angle, in radians."""
    poses = as_4x4(camera_to_worlds)
    centres = poses[:, :3, 3]
    distances = np.linalg.norm(centres[:, None] - centres[None], axis=-1)
    return distances / depth_scale + rotation_angle(poses[:, None], poses[None])


def baseline_objection(
    camera_to_world_a: ArrayLike, camera_to_world_b: ArrayLike, depth: float, config: PairConfig
) -> Objection | None:
    """Why two views are too far apart for the depth of what both see, if they are."""
    baseline = float(np.linalg.norm(relative_pose(camera_to_world_a, camera_to_world_b)[:3, 3]))
    if baseline > config.max_baseline_over_depth * depth:
        return Objection(
            "too far apart for the depth",
            f"baseline {baseline / depth:.2f} of the depth > {config.max_baseline_over_depth:g}",
        )
    return None


def overlap_objection(
    shown_a: NDArray[np.bool_], shown_b: NDArray[np.bool_], config: PairConfig
) -> Objection | None:
    """Why two views have too little in common, from which scene points [P] each shows.

    With fewer than 20 points in either view nothing is known, and nothing objected.
    """
    fewer = min(int(shown_a.sum()), int(shown_b.sum()))
    if fewer < 20:
        return None
    overlap = int((shown_a & shown_b).sum()) / fewer
    if overlap < config.min_overlap:
        return Objection("too little overlap", f"{overlap:.0%} < {config.min_overlap:.0%}")
    return None


def exposure_objection(
    image_a: NDArray, image_b: NDArray, overlap: NDArray[np.bool_], config: PairConfig
) -> Objection | None:
    """Why two aligned images [H, W, 3] differ too much in brightness where both are valid."""
    if not overlap.any():
        return Objection("no overlap")
    mean_a, mean_b = (max(float(image[overlap].mean()), 1e-6) for image in (image_a, image_b))
    ratio = max(mean_a / mean_b, mean_b / mean_a)
    if ratio > config.max_exposure_ratio:
        return Objection(
            "exposure changes", f"brightness ratio {ratio:.2f} > {config.max_exposure_ratio:g}"
        )
    return None


def _extent(poses: Float64) -> float:
    """Size of the capture, in the place of its unknown depth: the diagonal of the centres' box."""
    return max(float(np.linalg.norm(np.ptp(poses[:, :3, 3], axis=0))), 1e-12)


def _objection(
    a: int,
    b: int,
    poses: Float64,
    scale: float,
    config: PairConfig,
    sizes: Sequence[tuple[int, int]] | None,
    is_pinhole: Sequence[bool] | None,
) -> Objection | None:
    if is_pinhole is not None and not (is_pinhole[a] and is_pinhole[b]):
        return Objection("not a pinhole camera")
    if sizes is not None:
        aspect_a, aspect_b = (sizes[index][0] / sizes[index][1] for index in (a, b))
        if abs(aspect_a / aspect_b - 1.0) > _SAME_SHAPE:
            return Objection("different image shapes", f"{aspect_a:.2f} and {aspect_b:.2f}")
    degrees = float(np.degrees(rotation_angle(poses[a], poses[b])))
    if degrees > config.max_rotation_degrees:
        return Objection(
            "rotation too large", f"{degrees:.0f} degrees > {config.max_rotation_degrees:g}"
        )
    baseline = float(np.linalg.norm(poses[a, :3, 3] - poses[b, :3, 3]))
    if baseline < config.min_baseline_over_depth * scale:
        return Objection("taken from one place")
    return None


def _nearest_neighbours(cost: Float64) -> list[tuple[int, int]]:
    """Cheapest edges (i < j) such that no view is in more than two of them, closest first."""
    first, second = np.triu_indices(len(cost), k=1)
    ranking = np.argsort(cost[first, second], kind="stable")
    degree = np.zeros(len(cost), dtype=int)
    edges: list[tuple[int, int]] = []
    for i, j in zip(first[ranking].tolist(), second[ranking].tolist(), strict=True):
        if degree[i] < _MAX_PAIRS_PER_VIEW and degree[j] < _MAX_PAIRS_PER_VIEW:
            edges.append((i, j))
            degree[[i, j]] += 1
    return edges


def _shortcuts(cost: Float64, path: list[tuple[int, int]], longest: float) -> list[tuple[int, int]]:
    """Edges beside the path, closest first, up to a length and a number for each view."""
    degree = np.bincount(np.array(path).reshape(-1), minlength=len(cost))
    first, second = np.triu_indices(len(cost), k=2)
    ranking = np.argsort(cost[first, second], kind="stable")
    edges = []
    for i, j in zip(first[ranking].tolist(), second[ranking].tolist(), strict=True):
        if cost[i, j] > longest:
            break
        if max(degree[i], degree[j]) < _MAX_PARTNERS_ON_PATH:
            # The last view leads back to the first one: the frame lies between them in this order.
            edges.append((j, i) if (i, j) == (0, len(cost) - 1) else (i, j))
            degree[[i, j]] += 1
    return edges


def _natural_key(name: str) -> tuple[tuple[int, int, str], ...]:
    """Numbers inside a name compare as numbers."""
    parts = re.findall(r"\d+|\D+", name)
    return tuple((0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts)
