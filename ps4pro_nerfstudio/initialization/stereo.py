# SPDX-License-Identifier: Apache-2.0
"""Depth of few photographs from each other, for gaps that no flow crosses.

Each photograph is matched against those around it (`patch_match`), and a pixel keeps its depth
where another photograph's depth leads back to it: the two were found apart from each other, so
chance rarely agrees. Coarse pictures come first; they decide where a small patch shows too little.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import KDTree

from ps4pro_nerfstudio.geometry.cameras import (
    Float64,
    back_project,
    pixel_centres,
    project,
    relative_pose,
    scale_intrinsics,
)
from ps4pro_nerfstudio.initialization.dense_points import PointObservations
from ps4pro_nerfstudio.initialization.kept import (
    keep,
    kept_file,
    load_kept,
    part_file,
    remove_parts,
)
from ps4pro_nerfstudio.initialization.views import TrainViews, inside_image
from ps4pro_nerfstudio.messages import say

Float32 = NDArray[np.float32]

# Part of the name of what is kept: raise it when the same input gives other depths than before.
_CACHE_VERSION = 1
_WHAT = "depths of the photographs"
_Matched = tuple[Float32, Float32]
"""Depth and cost [H, W] of a photograph by itself."""
_Depth = tuple[Float32, Float32 | None]
"""Depth [H, W], 0 where not known, and confidence; None for a photograph that was not matched."""

_LEAST_KNOWN = 20
"""A photograph that shows fewer known points than this is left out."""
_BEYOND = 2.0
"""Depths are looked for up to this many times beyond those of the known points, to both sides."""
_BESIDE = 2
"""How near a known point, in pixels, nothing more is to be learnt."""
_SAME_DEPTH = 0.05
"""Relative difference up to which a known point is the same surface."""
_MATCH_PX = 0.25
"""How precisely patches are matched, in pixels."""
_WIDEST_DEGREES = 80.0
"""Photographs that look in directions farther apart than this are not compared."""


@dataclass
class StereoConfig:
    """Depth of the photographs from each other."""

    enabled: bool = True
    """Match the photographs of small captures with each other; its points join the dense ones."""
    max_views: int = 20
    """Captures with more photographs than this are left to the flow between neighbours."""
    max_long_side: int = 480
    """Photographs are reduced to this long side, in pixels."""
    max_others: int = 3
    """Each photograph is matched against this many around it."""
    rounds: int = 2
    """Rounds of spreading and refinement, at each of two sizes."""
    max_cost: float = 0.5
    """Depths whose patches correlate worse than 1 minus this are not used."""
    max_error_px: float = 1.5
    """Nor those that do not lead back, through another photograph's depth, to their pixel."""
    max_depth_difference: float = 0.02
    """Nor those that differ from the other photograph's depth by more than this share."""
    max_uncertainty: float = 0.02
    """Nor those that a match a quarter of a pixel off would move by more than this share: both
    photographs see them from directions that are too close."""
    min_part: int = 40
    """Nor connected parts of similar depth with fewer pixels than this."""
    everywhere: bool = True
    """Give points also where frames between neighbours gave some: those are more precise, but a
    training gains more from twice as many (fox, 10 views: SSIM .890 against .880)."""
    seed: int = 0
    """Seed of the random planes."""

    def __post_init__(self) -> None:
        if self.max_long_side < 64:
            raise ValueError(f"max_long_side must be at least 64 px, got {self.max_long_side}")


@dataclass(frozen=True)
class StereoDepth:
    """What is known of the depth of one photograph."""

    depth: Float32
    """[H, W] along the optical axis, in units of the poses; 0 where not known."""
    confidence: Float32
    """[H, W] in [0, 1], 0 where the depth is not known."""
    image: NDArray[np.uint8]
    """[H, W, 3], the photograph at this size."""
    camera_to_world: Float64
    """[4, 4], OpenCV axes."""
    intrinsics: Float64
    """[3, 3], at this size."""

    def observations(self, known: NDArray | None = None) -> PointObservations:
        """The points of all pixels with a depth.

        Args:
            known: points [P, 3] in the world, found more precisely; pixels that show one of them,
                or are beside one that does, are left out.
        """
        wanted = self.depth > 0.0
        if known is not None:
            wanted &= ~self._shows(known)
        row, column = np.nonzero(wanted)
        depth = self.depth[row, column].astype(np.float64)
        centres = np.stack([column, row], axis=-1) + 0.5
        return PointObservations(
            xyz=back_project(centres, depth, self.camera_to_world, self.intrinsics),
            rgb=self.image[row, column],
            weight=self.confidence[row, column].astype(np.float64),
            pixel_size=depth / self.intrinsics[0, 0],
        )

    def _shows(self, points: NDArray) -> NDArray[np.bool_]:
        """Pixels [H, W] within `_BESIDE` of one that shows a point, at about its depth."""
        height, width = self.depth.shape
        pixels, depth = project(points, self.camera_to_world, self.intrinsics)
        inside = inside_image(pixels, (width, height))
        column, row = pixels[inside].astype(np.int64).T
        nearest = np.full((height + 2 * _BESIDE, width + 2 * _BESIDE), np.inf)
        np.minimum.at(nearest, (row + _BESIDE, column + _BESIDE), depth[inside])
        result = np.zeros((height, width), bool)
        for down in range(2 * _BESIDE + 1):
            for right in range(2 * _BESIDE + 1):
                there = nearest[down : down + height, right : right + width]
                result |= np.abs(self.depth - there) < _SAME_DEPTH * there
        return result & (self.depth > 0.0)


@dataclass(frozen=True)
class _View:
    """A photograph at the size it is matched at."""

    image: NDArray[np.uint8]  # [H, W, 3]
    valid: NDArray[np.bool_]  # [H, W]
    pose: Float64  # [4, 4]
    intrinsics: Float64  # [3, 3]

    @property
    def grey(self) -> Float32:
        return self.image.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32) / 255.0


def stereo_depths(
    views: TrainViews,
    known: NDArray,
    config: StereoConfig,
    cache_folder: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[StereoDepth | None]:
    """Depth of each photograph; None for one that shows too few known points or has no neighbour.

    What a killed run had matched is not matched again; one line says how much.

    Args:
        views: the N photographs.
        known: points of the scene [P, 3], in the world of the poses: they tell how far away to
            look, and start the search.
        config: what is matched, and what is believed.
        cache_folder: where depths are kept between runs; None: nowhere.
        progress: called with the number of finished photographs and the number of all.
    """
    reduced = [_reduced(views, index, config.max_long_side) for index in range(len(views))]
    # Whether depths are wanted, and what becomes of them, does not change them.
    decisive = replace(config, enabled=True, max_views=0, everywhere=True)
    file = kept_file(cache_folder, "stereo", _CACHE_VERSION, decisive, views, known)
    found = load_kept(file, _WHAT, lambda stored: _read(stored, reduced))
    if found is None:
        matching = _Matching(views, reduced, known, config, file)
        found = _agreeing(matching.all(progress), reduced, matching.others, config)
        # Where a part could not be kept, neither can the whole; a line was said.
        if matching.is_keeping:
            keep(file, _WHAT, _arrays(found))
    remove_parts(file)
    return [
        None
        if confidence is None
        else StereoDepth(depth, confidence, view.image, view.pose, view.intrinsics)
        for (depth, confidence), view in zip(found, reduced, strict=True)
    ]


class _Matching:
    """Matches each photograph with those around it, and keeps what is finished.

    Nothing but the photographs decides a result: those of other photographs have no part in it.
    """

    def __init__(
        self,
        views: TrainViews,
        fine: list[_View],
        known: NDArray,
        config: StereoConfig,
        file: Path | None,
    ) -> None:
        self.others = [_others(views, index, config) for index in range(len(views))]
        self.is_keeping = file is not None
        self._coarse = [
            _reduced(views, index, config.max_long_side // 2) for index in range(len(views))
        ]
        self._fine, self._known, self._config, self._file = fine, known, config, file

    def all(self, progress: Callable[[int, int], None] | None) -> list[_Matched | None]:
        """Depth and cost of each photograph; None where it cannot be matched."""
        found: list[_Matched | None] = []
        num_resumed = 0
        for index, view in enumerate(self._fine):
            bounds = _bounds(self._known, view)
            matched = None
            if self.others[index] and bounds is not None:
                part = part_file(self._file, index)
                matched = load_kept(part, _WHAT, lambda stored, view=view: _read_part(stored, view))
                num_resumed += matched is not None
                if matched is None:
                    matched = self._match(index, bounds)
                    self._keep(part, matched)
            found.append(matched)
            if progress is not None:
                progress(index + 1, len(self._fine))
        if num_resumed:
            say(f"photographs that an interrupted run had matched, not again: {num_resumed}")
        return found

    def _match(self, index: int, bounds: tuple[float, float]) -> _Matched:
        others, config = self.others[index], self._config
        planes = _first_planes(self._known, self._coarse[index], bounds, config.seed + index)
        _match(planes, self._coarse, index, others, bounds, config)
        planes = _enlarged(planes, *self._fine[index].valid.shape)
        cost = _match(planes, self._fine, index, others, bounds, config)
        return 1.0 / planes[..., 0], cost

    def _keep(self, part: Path | None, matched: _Matched) -> None:
        if self.is_keeping:
            depth, cost = matched
            self.is_keeping = keep(part, _WHAT, {"depth": depth, "cost": cost})


def _agreeing(
    matched: list[_Matched | None],
    views: list[_View],
    others: list[list[int]],
    config: StereoConfig,
) -> list[_Depth]:
    """Depths of all photographs, where they agree with each other."""
    result: list[_Depth] = []
    for index, (own, view) in enumerate(zip(matched, views, strict=True)):
        if own is None:
            result.append((np.zeros(view.valid.shape, np.float32), None))
            continue
        depth, cost = own
        agreeing = np.zeros(depth.shape, bool)
        for other in others[index]:
            there = matched[other]
            if there is not None:
                agreeing |= _leads_back(depth, view, there[0], views[other], config)
        known_here = agreeing & (cost <= config.max_cost) & view.valid
        known_here = _without_specks(depth, known_here, config)
        confidence = np.clip(1.0 - cost, 0.0, 1.0)
        result.append((np.where(known_here, depth, 0.0), np.where(known_here, confidence, 0.0)))
    return result


def _read_part(stored: Mapping[str, NDArray], view: _View) -> _Matched:
    """What a killed run found for a photograph.

    Raises:
        ValueError: it is not what was written.
    """
    depth, cost = stored["depth"], stored["cost"]
    for array in (depth, cost):
        if array.shape != view.valid.shape or array.dtype != np.float32:
            raise ValueError("unexpected arrays")
    return depth, cost


def _arrays(found: list[_Depth]) -> dict[str, NDArray]:
    arrays = {f"depth_{index}": depth for index, (depth, _) in enumerate(found)}
    for index, (_, confidence) in enumerate(found):
        if confidence is not None:
            arrays[f"confidence_{index}"] = confidence
    return arrays


def _read(stored: Mapping[str, NDArray], views: list[_View]) -> list[_Depth]:
    """Depths from the arrays of a cache file.

    Raises:
        ValueError: they are not what was written.
    """
    found: list[_Depth] = []
    for index, view in enumerate(views):
        name = f"confidence_{index}"
        confidence = stored.get(name)
        depth = stored[f"depth_{index}"]
        for array in (depth, depth if confidence is None else confidence):
            if array.shape != view.valid.shape or array.dtype != np.float32:
                raise ValueError("unexpected arrays")
            if not np.isfinite(array).all():
                raise ValueError("depths that are not finite")
        found.append((depth, confidence))
    return found


def _reduced(views: TrainViews, index: int, long_side: int) -> _View:
    import cv2

    image, mask = views.images[index], views.valid[index]
    height, width = image.shape[:2]
    valid = np.ones((height, width), bool) if mask is None else mask
    intrinsics = views.intrinsics[index]
    shrink = long_side / max(height, width)
    if shrink < 1.0:
        size = (max(round(width * shrink), 1), max(round(height * shrink), 1))
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA).astype(np.uint8)
        share = cv2.resize(valid.astype(np.float32), size, interpolation=cv2.INTER_AREA)
        valid = share > 0.999
        intrinsics = scale_intrinsics(intrinsics, size[0] / width, size[1] / height)
    return _View(np.ascontiguousarray(image), valid, views.camera_to_worlds[index], intrinsics)


def _others(views: TrainViews, index: int, config: StereoConfig) -> list[int]:
    """The photographs around one: those that look in similar directions, the nearest first."""
    pose = views.camera_to_worlds[index]
    ranked = []
    for other in range(len(views)):
        there = views.camera_to_worlds[other]
        cosine = float(pose[:3, 2] @ there[:3, 2])
        distance = float(np.linalg.norm(pose[:3, 3] - there[:3, 3]))
        if other != index and distance > 0.0 and cosine > np.cos(np.radians(_WIDEST_DEGREES)):
            ranked.append((distance, other))
    return [other for _, other in sorted(ranked)[: config.max_others]]


def _bounds(known: NDArray, view: _View) -> tuple[float, float] | None:
    """Smallest and largest inverse depth to look for."""
    pixels, depth = project(known, view.pose, view.intrinsics)
    shown = depth[inside_image(pixels, view.image.shape[1::-1])]
    if len(shown) < _LEAST_KNOWN:
        return None
    near, far = np.percentile(shown, [1.0, 99.0])
    return 1.0 / (_BEYOND * far), _BEYOND / near


def _first_planes(known: NDArray, view: _View, bounds: tuple[float, float], seed: int) -> Float32:
    """Half of the pixels start at the depth of the nearest known point, half anywhere."""
    generator = np.random.default_rng(seed)
    height, width = view.image.shape[:2]
    pixels, depth = project(known, view.pose, view.intrinsics)
    inside = inside_image(pixels, (width, height))
    _, nearest = KDTree(pixels[inside]).query(pixel_centres(height, width))
    planes = np.zeros((height, width, 3))
    planes[..., 0] = np.clip(1.0 / depth[inside][nearest], *bounds)
    anywhere = generator.random((height, width)) < 0.5
    planes[anywhere, 0] = generator.uniform(*bounds, int(anywhere.sum()))
    return planes.astype(np.float32)


def _enlarged(planes: Float32, height: int, width: int) -> Float32:
    """Planes of a smaller picture for a larger one; gradients are for each pixel."""
    import cv2

    larger = cv2.resize(planes, (width, height), interpolation=cv2.INTER_NEAREST)
    larger[..., 1] *= planes.shape[1] / width
    larger[..., 2] *= planes.shape[0] / height
    return np.ascontiguousarray(larger, np.float32)


def _match(
    planes: Float32,
    views: list[_View],
    index: int,
    others: list[int],
    bounds: tuple[float, float],
    config: StereoConfig,
) -> Float32:
    """Improve the planes of a view; their costs."""
    # Imported here: every ns-* command reads our configs, and numba is heavy.
    from ps4pro_nerfstudio.initialization.patch_match import match_planes

    view = views[index]
    sizes = np.array([views[other].image.shape[1::-1] for other in others], np.int64)
    pictures = np.zeros((len(others), sizes[:, 1].max(), sizes[:, 0].max()), np.float32)
    motions = np.zeros((len(others), 3, 4), np.float32)
    for place, other in enumerate(others):
        grey = views[other].grey
        pictures[place, : grey.shape[0], : grey.shape[1]] = grey
        motion = relative_pose(view.pose, views[other].pose)
        turn = views[other].intrinsics @ motion[:3, :3] @ np.linalg.inv(view.intrinsics)
        motions[place, :, :3] = turn
        motions[place, :, 3] = views[other].intrinsics @ motion[:3, 3]
    return match_planes(
        planes,
        view.grey,
        pictures,
        sizes,
        motions,
        bounds,
        float(view.intrinsics[0, 0]),
        config.rounds,
        config.seed + index,
    )


def _without_specks(
    depth: Float32, keep: NDArray[np.bool_], config: StereoConfig
) -> NDArray[np.bool_]:
    """Leave out the pixels of small connected parts of similar depth: most are chance."""
    import cv2

    steps = np.log(depth / depth.min()) / config.max_depth_difference
    levels = np.where(keep, np.clip(steps, 0, 32_000) + 1.0, 0.0).astype(np.int16)
    cv2.filterSpeckles(levels, 0, config.min_part, 2)
    return levels > 0


def _leads_back(
    depth: Float32, view: _View, there: Float32, other: _View, config: StereoConfig
) -> NDArray[np.bool_]:
    """Which pixels [H, W] another photograph's depth [H', W'] takes back to where they are."""
    centres = pixel_centres(*depth.shape)
    points = back_project(centres, depth, view.pose, view.intrinsics)
    pixels, seen_at = project(points, other.pose, other.intrinsics)
    inside = inside_image(pixels, other.image.shape[1::-1])
    column, row = np.where(inside[..., None], pixels, 0.0).astype(np.int64).transpose(2, 0, 1)
    inside &= other.valid[row, column]
    found = there[row, column].astype(np.float64)
    # The other depth belongs to the centre of its pixel.
    back, _ = project(
        back_project(pixels, found, other.pose, other.intrinsics), view.pose, view.intrinsics
    )
    with np.errstate(invalid="ignore"):
        close = np.linalg.norm(back - centres, axis=-1) <= config.max_error_px
        close &= np.abs(found / seen_at - 1.0) <= config.max_depth_difference
    first = points - view.pose[:3, 3]
    second = points - other.pose[:3, 3]
    cosine = np.sum(first * second, axis=-1) / (
        np.linalg.norm(first, axis=-1) * np.linalg.norm(second, axis=-1)
    )
    least_angle = _MATCH_PX / (view.intrinsics[0, 0] * config.max_uncertainty)
    return inside & close & (cosine <= np.cos(least_angle))
