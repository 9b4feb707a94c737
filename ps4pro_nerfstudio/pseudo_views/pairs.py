# SPDX-License-Identifier: Apache-2.0
"""Which two training photographs get a frame between them.

A capture is a path when its file order visits neighbours: a video, a walk around an object. Then
each photograph is paired with the next one, and with others that stand about as near (the next row
of a grid, an earlier turn around the object). Otherwise photographs are paired with their nearest
neighbours, by centre distance and view angle, each in at most two pairs, so that the work and the
weight spread over the capture. Two views that can never be a pair (portrait and landscape, a
fisheye, one place) are no neighbours: each finds the next one that it can be paired with. Several
shots of one picture (a bracketing, a burst on a tripod) count as one viewpoint, for which the first
of them stands. Only training views are ever given to this module, and nothing about held-out views
enters. Poses are [N, 3, 4], any camera axes; angles in radians inside, degrees in options and
messages. Inside, V views are counted in file order.
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
_SAME_DIRECTION_DEGREES = 5.0
"""Views from one place, turned by less than this, show one picture. Shots on a tripod differ by
fractions of a degree, the steps of a panorama by tens."""
_SAME_VIEWPOINT = 5.0
"""Where shots were repeated from one place, so many times its size still is the same viewpoint: the
error of estimated poses scatters shots on a tripod by some thousandths of the depth."""

_Edge = tuple[int, int]
"""Two views, in file order."""


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
        is_pinhole: N flags; photographs that no pinhole camera would take are refused.

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
    candidates = _candidates(poses[order], scale, config, _comparable(order, sizes, is_pinhole))
    edges, is_path = _neighbours(candidates)

    pairs: list[Pair] = []
    for i, j in edges + _without_partner(candidates):
        a, b = order[i], order[j]
        objection = _objection(a, b, poses, scale, config, sizes, is_pinhole)
        if objection is None:
            pairs.append(Pair(a, b))
        else:
            skipped.append(Skipped(a, b, objection))
    return PairSelection(pairs, skipped + _further_shots(candidates, order), is_path)


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
            f"baseline {baseline / depth:.3g} of the depth > {config.max_baseline_over_depth:g}",
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
        return Objection(
            "too little overlap", f"{100.0 * overlap:.3g}% < {100.0 * config.min_overlap:.3g}%"
        )
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
            "exposure changes", f"brightness ratio {ratio:.3g} > {config.max_exposure_ratio:g}"
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
        if not _is_one_shape(aspect_a, aspect_b):
            narrow, wide = sorted((aspect_a, aspect_b))
            return Objection(
                "different image shapes", f"width / height {narrow:.2f} and {wide:.2f}"
            )
    degrees = float(np.degrees(rotation_angle(poses[a], poses[b])))
    if degrees > config.max_rotation_degrees:
        return Objection(
            "rotation too large", f"{degrees:.3g} degrees > {config.max_rotation_degrees:g}"
        )
    baseline = float(np.linalg.norm(poses[a, :3, 3] - poses[b, :3, 3]))
    if baseline < config.min_baseline_over_depth * scale:
        return Objection("taken from one place")
    return None


def _is_one_shape(aspect_a: ArrayLike, aspect_b: ArrayLike) -> NDArray[np.bool_]:
    """Whether two ratios of width to height [...] are one, up to rounding to whole pixels."""
    larger, smaller = np.maximum(aspect_a, aspect_b), np.minimum(aspect_a, aspect_b)
    return larger / smaller - 1.0 <= _SAME_SHAPE


def _comparable(
    order: Sequence[int],
    sizes: Sequence[tuple[int, int]] | None,
    is_pinhole: Sequence[bool] | None,
) -> NDArray[np.bool_]:
    """Which two images [V, V] a frame can be made of at all, whatever their poses."""
    comparable = np.ones((len(order), len(order)), bool)
    if is_pinhole is not None:
        pinhole = np.array([bool(is_pinhole[view]) for view in order])
        comparable &= pinhole[:, None] & pinhole
    if sizes is not None:
        aspects = np.array([sizes[view][0] / sizes[view][1] for view in order])
        comparable &= _is_one_shape(aspects[:, None], aspects)
    return comparable


@dataclass(frozen=True)
class _Candidates:
    """Who can be the neighbour of whom; all indices count the views in file order."""

    cost: Float64  # [V, V] distance of two poses
    possible: NDArray[np.bool_]  # [V, V] two views that can be a pair, one for each viewpoint
    one_place: NDArray[np.bool_]  # [V, V]
    viewpoint: NDArray[np.int64]  # [V] the view that stands for what each one shows


def _candidates(
    poses: Float64, scale: float, config: PairConfig, comparable: NDArray[np.bool_]
) -> _Candidates:
    """Sort out what can never be a pair, before it takes the place of a neighbour.

    Args:
        poses: [V, 4, 4] in file order.
        scale: typical depth.
        config: gates.
        comparable: [V, V], false for images that have no frame between them.
    """
    cost = pose_distances(poses, scale)
    centres = poses[:, :3, 3]
    baseline = np.linalg.norm(centres[:, None] - centres, axis=-1)
    itself = np.eye(len(poses), dtype=bool)
    one_place = itself | (baseline < config.min_baseline_over_depth * scale)
    turned = rotation_angle(poses[:, None], poses[None])
    alike = comparable & (turned < np.radians(_SAME_DIRECTION_DEGREES))
    repeats = bool((alike & one_place & ~itself).any())
    # Without repeated shots a small step is one of a slow video: it stays as it is.
    reach = _SAME_VIEWPOINT * config.min_baseline_over_depth * scale if repeats else 0.0
    alike &= itself | (baseline < reach)
    viewpoint = _viewpoints(alike)
    stands = viewpoint == np.arange(len(poses))
    possible = comparable & ~one_place & stands[:, None] & stands
    if possible.any():
        return _Candidates(cost, possible, one_place, viewpoint)
    # No two views can be a pair: the neighbours as they stand are named, with the reason.
    return _Candidates(cost, ~itself, itself, np.arange(len(poses)))


def _viewpoints(alike: NDArray[np.bool_]) -> NDArray[np.int64]:
    """For each view [V] the earliest one that stands for it, of views that are alike [V, V].

    Each view is compared with those that stand for others only: a slow pan does not become one.
    """
    standing = np.arange(len(alike))
    for view in range(1, len(alike)):
        is_first = standing[:view] == np.arange(view)
        earlier = np.flatnonzero(alike[view, :view] & is_first)
        if len(earlier):
            standing[view] = earlier[0]
    return standing


def _neighbours(candidates: _Candidates) -> tuple[list[_Edge], bool]:
    """Edges between views, and whether they follow the file order."""
    cost = candidates.cost
    nearest = _nearest_neighbours(candidates)
    path = _path(candidates)
    usual = float(np.median([cost[edge] for edge in nearest]))
    near = [cost[edge] <= _NEAR * usual for edge in path]
    if np.mean(near) < _PATH_SHARE:
        return sorted(nearest), False
    usual_step = float(np.median([cost[edge] for edge in path]))
    return path + _shortcuts(candidates, path, _CLOSING * usual_step), True


def _nearest_neighbours(candidates: _Candidates) -> list[_Edge]:
    """Cheapest edges (i < j) such that no view is in more than two of them, closest first."""
    degree = np.zeros(len(candidates.cost), dtype=int)
    edges: list[_Edge] = []
    for i, j in _closest_first(candidates.cost, candidates.possible):
        if degree[i] < _MAX_PAIRS_PER_VIEW and degree[j] < _MAX_PAIRS_PER_VIEW:
            edges.append((i, j))
            degree[[i, j]] += 1
    return edges


def _path(candidates: _Candidates) -> list[_Edge]:
    """From each viewpoint of the file order to the next one that it can be paired with.

    Where several views were taken from there, in different directions, the most similar one.
    """
    walk = candidates.viewpoint[np.diff(candidates.viewpoint, prepend=-1) != 0]
    edges: dict[_Edge, _Edge] = {}
    for step, i in enumerate(walk.tolist()):
        later = walk[step + 1 :]
        later = later[candidates.possible[i, later]]
        if len(later):
            there = np.flatnonzero(candidates.possible[i] & candidates.one_place[later[0]])
            j = int(there[np.argmin(candidates.cost[i, there])])
            # A second turn through the same viewpoints adds nothing.
            edges.setdefault((min(i, j), max(i, j)), (i, j))
    return list(edges.values())


def _shortcuts(candidates: _Candidates, path: list[_Edge], longest: float) -> list[_Edge]:
    """Edges beside the path, closest first, up to a length and a number for each view."""
    beside = candidates.possible.copy()
    sources, targets = np.array(path).T
    beside[sources, targets] = beside[targets, sources] = False
    degree = np.bincount(np.array(path).reshape(-1), minlength=len(beside))
    edges = []
    for i, j in _closest_first(candidates.cost, beside):
        if candidates.cost[i, j] > longest:
            break
        if max(degree[i], degree[j]) < _MAX_PARTNERS_ON_PATH:
            # The last view leads back to the first one: the frame lies between them in this order.
            closes = i not in targets and j not in sources
            edges.append((j, i) if closes else (i, j))
            degree[[i, j]] += 1
    return edges


def _closest_first(cost: Float64, possible: NDArray[np.bool_]) -> list[_Edge]:
    """The edges (i < j) of a symmetric choice [V, V], by their cost [V, V]."""
    first, second = np.nonzero(np.triu(possible, k=1))
    ranking = np.argsort(cost[first, second], kind="stable")
    return list(zip(first[ranking].tolist(), second[ranking].tolist(), strict=True))


def _further_shots(candidates: _Candidates, order: Sequence[int]) -> list[Skipped]:
    """The views that another one of the same viewpoint stands for."""
    one_place = Objection("taken from one place")
    return [
        Skipped(order[first], order[view], one_place)
        for view, first in enumerate(candidates.viewpoint.tolist())
        if first != view
    ]


def _without_partner(candidates: _Candidates) -> list[_Edge]:
    """Views that can be paired with none, each with the nearest other one, to be named."""
    stands = candidates.viewpoint == np.arange(len(candidates.viewpoint))
    edges = []
    for view in np.flatnonzero(stands & ~candidates.possible.any(axis=1)).tolist():
        others = np.flatnonzero(stands & (np.arange(len(stands)) != view))
        nearest = int(others[np.argmin(candidates.cost[view, others])])
        edges.append((min(view, nearest), max(view, nearest)))
    return list(dict.fromkeys(edges))


def _natural_key(name: str) -> tuple[tuple[int, int, str], ...]:
    """Numbers inside a name compare as numbers."""
    parts = re.findall(r"\d+|\D+", name)
    return tuple((0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts)
