# SPDX-License-Identifier: Apache-2.0
"""Two photographs seen from the camera between them, through one plane.

Interpolating raw photographs leaves the camera of the result undefined: the frame shows the scene
from wherever the flow happened to go halfway. Warped first into the wanted camera through a
fronto-parallel plane at the harmonic median depth, both photographs agree on that plane, the
remaining flow is the parallax around it, and the wanted camera is the camera of the result. On a
real capture with 21 degrees between views (optical flow, 384 px) the median re-projection error of
agreeing pixels fell from 4.6 to 0.2 px, and their share of the picture rose from .52 to .67.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ps4pro_nerfstudio.geometry.cameras import (
    Float64,
    back_project,
    harmonic_median_depth,
    pixel_centres,
    point_of_attention,
    project,
)
from ps4pro_nerfstudio.geometry.epipolar import fundamental_matrix, sampson_distance, triangulate
from ps4pro_nerfstudio.geometry.planes import (
    apply_homography,
    plane_homography,
    warp_by_homography,
    warp_valid,
)

_MAX_FEATURES = 1500
_LOWE_RATIO = 0.8
_MAX_SQUARED_SAMPSON = 1.0
_MIN_MATCHES = 12


@dataclass(frozen=True)
class Photograph:
    """One training view at the resolution of the interpolation, OpenCV camera axes."""

    image: NDArray[np.uint8]
    """[H, W, 3]."""
    valid: NDArray[np.bool_]
    """[H, W], with a margin: the aligned frame and the flow each resample pixels around."""
    camera_to_world: Float64
    """[4, 4]."""
    intrinsics: Float64
    """[3, 3]."""

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.image.shape[1], self.image.shape[0]


@dataclass(frozen=True)
class TargetCamera:
    """The camera that both photographs are warped into, OpenCV axes."""

    camera_to_world: Float64
    """[4, 4]."""
    intrinsics: Float64
    """[3, 3]."""
    size: tuple[int, int]
    """Width and height in pixels."""


@dataclass(frozen=True)
class Aligned:
    """A photograph warped into the target camera."""

    image: NDArray[np.float32]
    """[H, W, 3] in [0, 1]; where it is invalid, the border of the photograph repeated."""
    valid: NDArray[np.bool_]
    """[H, W]."""

    def source_of(self, pixels: Float64) -> Float64:
        """Where in the photograph [..., 2] the pixels [..., 2] of the target come from."""
        raise NotImplementedError


@dataclass(frozen=True)
class PlaneAligned(Aligned):
    """A photograph warped through a plane."""

    to_source: Float64
    """[3, 3], pixels of the target to pixels of the photograph."""

    def source_of(self, pixels: Float64) -> Float64:
        """Exact, inside the target and outside of it."""
        return apply_homography(self.to_source, pixels)


@dataclass(frozen=True)
class SurfaceAligned(Aligned):
    """A photograph warped through a depth map of the target."""

    places: Float64
    """[H, W, 2], where each pixel of the target lies in the photograph."""

    def source_of(self, pixels: Float64) -> Float64:
        """Bilinear between the pixels of the target, the outermost ones repeated."""
        import cv2

        at = (pixels - 0.5).astype(np.float32)
        places = [
            cv2.remap(
                np.ascontiguousarray(self.places[..., axis]).astype(np.float32),
                at[..., 0],
                at[..., 1],
                cv2.INTER_LINEAR,
                borderMode=cv2.BORDER_REPLICATE,
            )
            for axis in range(2)
        ]
        return np.stack(places, axis=-1).astype(np.float64)


def align(photograph: Photograph, target: TargetCamera, depth: float) -> PlaneAligned:
    """Warp a photograph into the target camera through the fronto-parallel plane at `depth`."""
    to_source = plane_homography(
        target.camera_to_world,
        target.intrinsics,
        photograph.camera_to_world,
        photograph.intrinsics,
        depth,
    )
    image = warp_by_homography(photograph.image.astype(np.float32) / 255.0, to_source, target.size)
    return PlaneAligned(
        image=np.clip(image, 0.0, 1.0),
        valid=warp_valid(photograph.valid, to_source, target.size),
        to_source=to_source,
    )


def align_to_surface(
    photograph: Photograph, target: TargetCamera, depth: NDArray
) -> SurfaceAligned:
    """Warp a photograph into the target camera through a depth [H, W] of each of its pixels."""
    centres = pixel_centres(target.size[1], target.size[0])
    points = unproject(centres, depth, target)
    places, _ = project(points, photograph.camera_to_world, photograph.intrinsics)
    return SurfaceAligned(
        image=sample_photograph(photograph.image, places),
        valid=valid_at(photograph, places),
        places=np.nan_to_num(places, nan=-1e4),
    )


def sample_photograph(image: NDArray[np.uint8], places: Float64) -> NDArray[np.float32]:
    """Bicubic samples [H, W, 3] in [0, 1] of a photograph at positions [H, W, 2]."""
    import cv2

    # OpenCV puts pixel centres at integers; a place that is not known lies outside.
    at = np.nan_to_num(places - 0.5, nan=-1e4).astype(np.float32)
    sampled = cv2.remap(
        image.astype(np.float32),
        at[..., 0],
        at[..., 1],
        cv2.INTER_CUBIC,
        borderMode=cv2.BORDER_REPLICATE,
    )
    return np.clip(sampled / 255.0, 0.0, 1.0).astype(np.float32)


def valid_at(view: Photograph, places: Float64) -> NDArray[np.bool_]:
    """Which positions [H, W, 2] lie inside a photograph, on a valid pixel."""
    with np.errstate(invalid="ignore"):
        inside = np.all((places >= 0.5) & (places <= np.array(view.size) - 0.5), axis=-1)
    column, row = np.where(inside[..., None], places, 0.0).astype(int).transpose(2, 0, 1)
    return inside & view.valid[row, column]


def unproject(pixels: Float64, depth: NDArray, camera: TargetCamera) -> Float64:
    """World points [..., 3] of pixels [..., 2] at depths [...] along the optical axis."""
    return back_project(pixels, depth, camera.camera_to_world, camera.intrinsics)


def unaligned(photograph: Photograph, size: tuple[int, int]) -> PlaneAligned:
    """A photograph as it was taken, but of this width and height, instead of an aligned one."""
    import cv2

    image, valid = photograph.image.astype(np.float32) / 255.0, photograph.valid
    if size != photograph.size:
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        share = cv2.resize(valid.astype(np.float32), size, interpolation=cv2.INTER_AREA)
        valid = share > 1.0 - 1e-4
    # Pixel centres are half-integers: positions are in proportion to the sizes.
    scale = np.append(np.array(photograph.size) / size, 1.0)
    return PlaneAligned(image.astype(np.float32), valid, np.diag(scale))


class FeatureCache:
    """SIFT features of photographs, computed once each, to find a depth where no points are."""

    def __init__(self, photographs: Sequence[Photograph]) -> None:
        self._photographs = photographs
        self._features: dict[int, tuple[Float64, NDArray[np.float32]]] = {}

    def get(self, index: int) -> tuple[Float64, NDArray[np.float32]]:
        """Pixels [F, 2] and descriptors [F, 128] of one photograph; F may be 0."""
        import cv2

        if index not in self._features:
            photograph = self._photographs[index]
            grey = cv2.cvtColor(photograph.image, cv2.COLOR_RGB2GRAY)
            usable = photograph.valid.astype(np.uint8) * 255
            sift = cv2.SIFT_create(nfeatures=_MAX_FEATURES)  # pyright: ignore
            keypoints, descriptors = sift.detectAndCompute(grey, usable)
            # OpenCV's pixel centres are integers, ours half-integers.
            pixels = np.array([k.pt for k in keypoints], np.float64).reshape(-1, 2) + 0.5
            if descriptors is None:
                descriptors = np.zeros((0, 128), np.float32)
            self._features[index] = (pixels, descriptors)
        return self._features[index]


def matched_points(
    a: Photograph,
    b: Photograph,
    features_a: tuple[Float64, NDArray[np.float32]],
    features_b: tuple[Float64, NDArray[np.float32]],
) -> Float64:
    """World points [P, 3] of feature matches that obey the known epipolar geometry."""
    import cv2

    pixels_a, descriptors_a = features_a
    pixels_b, descriptors_b = features_b
    if min(len(pixels_a), len(pixels_b)) < 2:
        return np.zeros((0, 3))
    candidates = cv2.BFMatcher(cv2.NORM_L2).knnMatch(descriptors_a, descriptors_b, k=2)
    matches = np.array(
        [
            (best.queryIdx, best.trainIdx)
            for best, second in candidates
            if best.distance < _LOWE_RATIO * second.distance
        ],
        dtype=int,
    ).reshape(-1, 2)
    matched_a, matched_b = pixels_a[matches[:, 0]], pixels_b[matches[:, 1]]
    cameras = (a.camera_to_world, a.intrinsics, b.camera_to_world, b.intrinsics)
    consistent = (
        sampson_distance(matched_a, matched_b, fundamental_matrix(*cameras)) < _MAX_SQUARED_SAMPSON
    )
    points = triangulate(matched_a[consistent], matched_b[consistent], *cameras)
    return points[points[:, 3] > 0.0, :3]


def plane_depth(
    pair: tuple[Photograph, Photograph],
    target: TargetCamera,
    points: NDArray | None,
    find_matches: Callable[[], Float64] | None = None,
) -> tuple[float, str] | None:
    """Depth of the alignment plane in the target camera, and what gave it.

    Tried in this order: the known scene points that the target sees; feature matches of the two
    photographs; the point nearest to both optical axes. None when all three fail.

    Args:
        pair: the two photographs.
        target: the camera in between.
        points: [P, 3] in the world, or None.
        find_matches: gives world points [P, 3] of the matches; called only when it is needed.
    """
    seen_from = (target.camera_to_world, target.intrinsics, target.size)
    if points is not None:
        depth = harmonic_median_depth(points, *seen_from)
        if depth is not None:
            return depth, "points"
    if find_matches is not None:
        depth = harmonic_median_depth(find_matches(), *seen_from, min_points=_MIN_MATCHES)
        if depth is not None:
            return depth, "matches"
    attention = point_of_attention(np.stack([view.camera_to_world for view in pair]))
    if attention is not None:
        _, attention_depth = project(attention, target.camera_to_world, target.intrinsics)
        if attention_depth > 0.0:
            return float(attention_depth), "optical axes"
    return None
