# SPDX-License-Identifier: Apache-2.0
"""From the flows of an interpolation to points on the rays of the frame's camera.

An interpolator says for each pixel of the frame where both aligned photographs show it. Carried
back through the alignment these are two positions in the photographs as taken. In a static scene
seen by known cameras they cannot be any two: the pixel's ray leaves one number free, its depth.
The depth whose two projections are nearest to the positions found is taken, and the photographs are
sampled again exactly there. So the frame is exact at its camera by construction, each of its pixels
was resampled once instead of twice, and the distance that the positions had to be moved by tells
how wrong they were: it contains the epipolar error between the photographs and the error of the
camera given to the frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ps4pro_nerfstudio.geometry.cameras import Float64, pixel_centres
from ps4pro_nerfstudio.geometry.epipolar import depth_along_rays
from ps4pro_nerfstudio.interpolation.protocol import Interpolation, sample_at
from ps4pro_nerfstudio.pseudo_views.alignment import (
    Aligned,
    Photograph,
    TargetCamera,
    sample_photograph,
    unproject,
    valid_at,
)

_TRUSTED = 0.3
"""Confidence of the pixels that a surface is laid through."""
_ENOUGH = 0.02
"""Smallest share of such pixels."""


@dataclass(frozen=True)
class Correspondence:
    """One scene point for each pixel of the frame, and what two photographs show of it."""

    depth: Float64
    """[H, W] along the optical axis of the frame's camera, in units of the poses; may be inf."""
    moved_px: Float64
    """[H, W] by how much the positions found had to be moved, in pixels of the photographs."""
    angle: Float64
    """[H, W] between the rays of the two photographs, in radians."""
    colors: tuple[NDArray[np.float32], NDArray[np.float32]]
    """[H, W, 3] in [0, 1]: what each photograph shows at the point."""
    in_bounds: NDArray[np.bool_]
    """[H, W]: both photographs show the point at a valid pixel."""


def correspond(
    photographs: tuple[Photograph, Photograph],
    aligned: tuple[Aligned, Aligned],
    target: TargetCamera,
    interpolation: Interpolation,
) -> Correspondence:
    """Put each pixel of an interpolation at the depth that its two flows agree on best."""
    width, height = target.size
    centres = pixel_centres(height, width)
    in_bounds = np.ones((height, width), bool)
    found = []
    for view, flow in zip(aligned, (interpolation.flow_t0, interpolation.flow_t1), strict=True):
        source = centres + flow[0].permute(1, 2, 0).double().numpy()
        in_bounds &= np.all((source >= 0.5) & (source <= np.array(target.size) - 0.5), axis=-1)
        valid = torch.from_numpy(view.valid.astype(np.float32))[None, None]
        in_bounds &= sample_at(valid, flow)[0, 0].numpy() > 0.999
        found.append(view.source_of(source))
    depth, places = depth_along_rays(
        centres,
        found,
        target.camera_to_world,
        target.intrinsics,
        [view.camera_to_world for view in photographs],
        [view.intrinsics for view in photographs],
    )
    moved = [
        np.sum(np.square(place - old), axis=-1) for place, old in zip(places, found, strict=True)
    ]
    for view, place in zip(photographs, places, strict=True):
        in_bounds &= valid_at(view, place)
    return Correspondence(
        depth=depth,
        moved_px=np.sqrt(moved[0] + moved[1]),
        angle=_angle_between(photographs, target, depth, centres),
        colors=(
            sample_photograph(photographs[0].image, places[0]),
            sample_photograph(photographs[1].image, places[1]),
        ),
        in_bounds=in_bounds,
    )


def _angle_between(
    photographs: Sequence[Photograph], target: TargetCamera, depth: Float64, centres: Float64
) -> Float64:
    """Angle [H, W] at which two photographs see the points of the frame, in radians."""
    # At infinity the rays are parallel; any large depth stands in for it.
    points = unproject(centres, np.minimum(depth, 1e12), target)
    from_a, from_b = (points - view.camera_to_world[:3, 3] for view in photographs)
    sine = np.linalg.norm(np.cross(from_a, from_b), axis=-1)
    return np.arctan2(sine, np.sum(from_a * from_b, axis=-1))


def surface(
    correspondence: Correspondence, confidence: Float64, reach: float = 2.0
) -> Float64 | None:
    """A depth for every pixel [H, W] from those that are trusted; None where too few are.

    Inverse depth is averaged over ever larger neighbourhoods until a pixel has one (a pyramid of
    weighted means), then smoothed over `reach` pixels.
    """
    import cv2

    trusted = confidence > _TRUSTED
    if trusted.mean() < _ENOUGH:
        return None
    inverse = np.where(trusted, 1.0 / correspondence.depth, 0.0)
    near, far = np.percentile(inverse[trusted], [99.5, 0.5])
    weight = np.where(trusted, confidence, 0.0)
    levels: list[tuple[Any, Any]] = [(inverse * weight, weight)]
    while min(levels[-1][0].shape) > 2:
        summed, weights = levels[-1]
        levels.append((cv2.pyrDown(summed), cv2.pyrDown(weights)))
    filled = levels[-1][0] / np.maximum(levels[-1][1], 1e-12)
    for summed, weights in levels[-2::-1]:
        coarse = cv2.pyrUp(filled, dstsize=(summed.shape[1], summed.shape[0]))
        share = np.clip(4.0 * weights, 0.0, 1.0)
        filled = share * summed / np.maximum(weights, 1e-12) + (1.0 - share) * coarse
    smooth = cv2.GaussianBlur(filled, (0, 0), reach)
    return 1.0 / np.clip(smooth, 0.8 * far, 1.2 * near)
