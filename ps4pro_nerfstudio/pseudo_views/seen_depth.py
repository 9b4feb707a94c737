# SPDX-License-Identifier: Apache-2.0
"""Depth of the training photographs without a depth network: points that other views confirm.

Dense ones come from the frames between photographs: a pixel whose two sources agree is a scene
point, and both sources show it. Sparse ones are tracks of features; they stand in for a photograph
whose neighbours gave too few dense ones. All depths are in units of the poses, unlike those of a
monocular network, so they fix the scale too (IPSM, arXiv 2412.02225, uses a network here).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ps4pro_nerfstudio.geometry.cameras import flip_camera_axes, project
from ps4pro_nerfstudio.pseudo_views.consistency import scene_points
from ps4pro_nerfstudio.pseudo_views.pseudo_view import PseudoView
from ps4pro_nerfstudio.pseudo_views.sources import SourceViews


@dataclass
class SeenDepthConfig:
    """Triangulated depth of the training photographs."""

    max_samples: int = 16_384
    """Most points for one photograph, drawn at random."""
    min_dense: int = 1024
    """A photograph with fewer dense points than this gets the sparse ones as well."""
    seed: int = 0
    """Seed of the draw."""

    def __post_init__(self) -> None:
        if self.max_samples < 1:
            raise ValueError(f"max_samples must be at least 1, got {self.max_samples}")


Tracks = tuple[NDArray, NDArray[np.bool_]]
"""Sparse points [P, 3] in the world, and which of the N views found them [P, N]."""


@dataclass(frozen=True)
class SeenDepth:
    """Points that one photograph shows, with the depths at which it shows them."""

    pixels: NDArray[np.float32]
    """[P, 2], column and row in pixels of the photograph, centres at half-integers."""
    depth: NDArray[np.float32]
    """[P] along its optical axis, in units of the poses."""
    xyz: NDArray[np.float32]
    """[P, 3] in the world of the poses."""

    def __len__(self) -> int:
        return len(self.depth)


def seen_depths(
    views: SourceViews,
    frames: Sequence[PseudoView],
    find_tracks: Callable[[], Tracks | None] | None = None,
    config: SeenDepthConfig | None = None,
    own: Sequence[NDArray] | None = None,
) -> list[SeenDepth]:
    """What is known of the depth of each photograph.

    Args:
        views: the N photographs.
        frames: frames between them, with depths.
        find_tracks: asked once for sparse points if a photograph has too few dense ones.
        config: how many points are kept.
        own: points [P, 3] that each photograph is known to show by itself.
    """
    config = config or SeenDepthConfig()
    generator = np.random.default_rng(config.seed)
    parts: dict[str, list[NDArray]] = {name: [] for name in views.names}
    for frame in frames:
        if frame.depth is None:  # a control; its sources may even be other photographs
            continue
        xyz, _, _ = scene_points(frame)
        for name in frame.provenance.source_names:
            parts[name].append(xyz)
    for name, xyz in zip(views.names, own or [], strict=False):
        parts[name].append(xyz)
    known = [np.concatenate([np.zeros((0, 3)), *parts[name]]) for name in views.names]
    wanting = any(len(dense) < config.min_dense for dense in known)
    tracks = find_tracks() if wanting and find_tracks is not None else None
    result = []
    for index, dense in enumerate(known):
        if tracks is not None and len(dense) < config.min_dense:
            xyz, seen_by = tracks
            dense = np.concatenate([dense, xyz[seen_by[:, index]]])
        if len(dense) > config.max_samples:
            dense = dense[generator.choice(len(dense), config.max_samples, replace=False)]
        result.append(_as_seen(dense, views, index))
    return result


def _as_seen(xyz: NDArray, views: SourceViews, index: int) -> SeenDepth:
    """The points inside the valid part of a photograph."""
    height, width = views.images[index].shape[:2]
    pose = flip_camera_axes(views.camera_to_worlds[index])
    pixels, depth = project(xyz, pose, views.intrinsics[index])
    with np.errstate(invalid="ignore"):
        inside = np.all((pixels >= 0.0) & (pixels < (width, height)), axis=-1)
    mask = None if views.valid is None else views.valid[index]
    if mask is not None:
        column, row = np.where(inside[:, None], pixels, 0.0).astype(np.int64).T
        inside &= mask[row, column]
    return SeenDepth(
        pixels[inside].astype(np.float32),
        depth[inside].astype(np.float32),
        xyz[inside].astype(np.float32),
    )
