# SPDX-License-Identifier: Apache-2.0
"""Pseudo views interpolated between neighbouring training photographs.

For each pair of neighbours: the camera between them (slerp of the rotation, lerp of centre and
intrinsics), both photographs warped into it (`alignment`), the flows between them (any
`FrameInterpolator`), the scene point of each pixel (`correspondence`), what the photographs show
there, and a confidence per pixel (`confidence`). Frames then check each other's points
(`consistency`). Deterministic. Poses are nerfstudio's (OpenGL axes) outside
and OpenCV inside; images are uint8 RGB [H, W, 3]. Idea: PS4PRO (arXiv 2505.22616), re-implemented
from the published idea; alignment and confidence are this project's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from ps4pro_nerfstudio.geometry.cameras import (
    Float64,
    flip_camera_axes,
    harmonic_median_depth,
    interpolate_intrinsics,
    interpolate_pose,
    point_of_attention,
    project,
    scale_intrinsics,
)
from ps4pro_nerfstudio.geometry.planes import SHARP_REACH, erode
from ps4pro_nerfstudio.interpolation.protocol import FrameInterpolator, Interpolation
from ps4pro_nerfstudio.messages import counted, named, spanned
from ps4pro_nerfstudio.pseudo_views.alignment import (
    Aligned,
    FeatureCache,
    Photograph,
    TargetCamera,
    align,
    align_to_surface,
    matched_points,
    plane_depth,
    unaligned,
)
from ps4pro_nerfstudio.pseudo_views.confidence import (
    combine,
    local_contrast,
    photometric_factor,
    position_factor,
    to_uint8,
)
from ps4pro_nerfstudio.pseudo_views.consistency import drop_contradicted
from ps4pro_nerfstudio.pseudo_views.correspondence import Correspondence, correspond, surface
from ps4pro_nerfstudio.pseudo_views.exposure import brightness_ratio, coarse_ratio, equalise
from ps4pro_nerfstudio.pseudo_views.pairs import (
    Objection,
    Pair,
    PairConfig,
    PairSelection,
    Skipped,
    baseline_objection,
    exposure_objection,
    overlap_objection,
    select_pairs,
)
from ps4pro_nerfstudio.pseudo_views.pseudo_view import Provenance, PseudoView

_AGREEMENT = 0.5
"""A pixel's sources agree when photometric times position factor exceeds this."""

_ENOUGH_TO_JUDGE = 0.1
"""Smallest share of a photograph's valid pixels that its partners must agree on to judge it."""

_LEAST_CONTRAST = 0.008
"""Depth is not known where the picture is flatter than two of 255 levels: clipped sky, paper."""

_NO_MATCH = "sources do not match"
_DIFFERS = "differs from what its neighbours show"

_INVALID_MARGIN = 2 * SHARP_REACH
"""Pixels kept away from invalid ones: alignment and interpolation each resample once."""

Progress = Callable[[int, int], None]
"""Called with the number of finished pairs and the number of all pairs."""


@dataclass
class InterpolatedSourceConfig:
    """How frames between training photographs are made."""

    frames_per_gap: int = 1
    """Frames between two neighbours, equally spaced. One was measured as good as three."""
    max_long_side: int = 640
    """Photographs are reduced to this long side, in pixels, before they are interpolated."""
    aligned: bool = True
    """Warp the photographs into the frame's camera first; False interpolates them as they are, a
    baseline."""
    weighed: bool = True
    """Put each pixel where its sources agree and judge it; False takes the interpolated frame and
    trusts every pixel, a baseline."""
    passes: int = 1
    """2 aligns once more, through the depth that was found: some more pixels at wide angles, twice
    the time."""
    own_confidence: bool = True
    """Multiply the confidence by what a learned interpolator believes of its own image."""
    min_pixel_confidence: float = 0.1
    """Pixels below this confidence are not used at all."""
    min_mean_confidence: float = 0.05
    """Frames whose mean confidence is below this are dropped."""
    min_point_confidence: float = 0.4
    """Pixels from this confidence on have a depth, and may become initial points."""
    min_angle_degrees: float = 1.0
    """Below this angle between the rays of the two photographs a depth is not known."""
    pairs: PairConfig = field(default_factory=PairConfig)
    """Which neighbours get a frame between them."""

    def __post_init__(self) -> None:
        if self.frames_per_gap < 1:
            raise ValueError(f"frames_per_gap must be at least 1, got {self.frames_per_gap}")
        if self.passes < 1:
            raise ValueError(f"passes must be at least 1, got {self.passes}")
        if self.max_long_side < 32:
            raise ValueError(f"max_long_side must be at least 32 px, got {self.max_long_side}")


@dataclass(frozen=True)
class SourceViews:
    """The training photographs, undistorted, with their cameras. Nothing held out."""

    images: Sequence[NDArray[np.uint8]]
    """N images [H, W, 3]; sizes may differ between views, pairs are made of equal ones only."""
    camera_to_worlds: NDArray
    """[N, 3, 4] or [N, 4, 4], OpenGL axes."""
    intrinsics: NDArray
    """[N, 3, 3] in pixels of the images."""
    names: Sequence[str]
    """N file names; their natural order is the file order of the capture."""
    valid: Sequence[NDArray[np.bool_] | None] | None = None
    """N masks [H, W], false where a pixel must not be used (masks, borders of undistortion)."""
    points: NDArray | None = None
    """[P, 3] scene points in the world of the poses, from training views only."""
    times: Sequence[float] | None = None
    """N normalised times of a moving scene."""
    is_pinhole: Sequence[bool] | None = None
    """N flags; photographs that no pinhole camera would take get no pseudo view."""
    silhouettes: Sequence[NDArray[np.bool_] | None] | None = None
    """N masks [H, W] of photographs that are cut out, true where they show something; None: not cut
    out."""

    def __post_init__(self) -> None:
        count = len(self.images)
        per_view = ("camera_to_worlds", "intrinsics", "names", "valid", "times", "is_pinhole")
        for name in (*per_view, "silhouettes"):
            values = getattr(self, name)
            if values is not None and len(values) != count:
                raise ValueError(f"{name} has {len(values)} entries for {count} images")
        if np.shape(self.intrinsics)[1:] != (3, 3):
            raise ValueError(f"intrinsics must be [{count}, 3, 3], got {self.intrinsics.shape}")
        for index, image in enumerate(self.images):
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
                raise ValueError(
                    f"image {self.names[index]} must be uint8 [H, W, 3], "
                    f"got {image.dtype} {image.shape}"
                )
            mask = None if self.valid is None else self.valid[index]
            if mask is not None and mask.shape != image.shape[:2]:
                raise ValueError(
                    f"valid of {self.names[index]} is {mask.shape}, its image {image.shape}"
                )
        if self.points is not None and (self.points.ndim != 2 or self.points.shape[1] != 3):
            raise ValueError(f"points must be [P, 3], got {self.points.shape}")


@dataclass(frozen=True)
class PseudoViewSet:
    """The pseudo views of a capture and the neighbours that got none."""

    views: list[PseudoView]
    skipped: list[Skipped]

    def describe(self, names: Sequence[str]) -> str:
        """One line: how many views, how good, and why some neighbours were left out.

        Args:
            names: of all photographs, in their order.
        """
        if self.views:
            confidence = np.mean([view.provenance.mean_confidence for view in self.views])
            agreeing = np.mean([view.provenance.agreeing_share for view in self.views])
            line = (
                f"{counted(len(self.views), 'pseudo view')}, mean confidence {confidence:.2f}, "
                f"sources agree on {agreeing:.0%} of the pixels"
            )
        else:
            line = "no pseudo views, training uses the photographs only"
        by_reason: dict[str, list[Skipped]] = {}
        for skip in self.skipped:
            by_reason.setdefault(skip.objection.reason, []).append(skip)
        if by_reason:
            most_common_first = sorted(by_reason.items(), key=lambda item: -len(item[1]))
            line += "; gaps left out: " + "; ".join(
                f"{_why(reason, skips)} ({_gaps(skips, names)})"
                for reason, skips in most_common_first
            )
        known = {name for view in self.views for name in view.provenance.source_names}
        known |= {names[index] for skip in self.skipped for index in (skip.a, skip.b)}
        lonely = [name for name in names if name not in known]
        if self.views and lonely:
            line += f"; without a usable neighbour: {named(lonely)}"
        return line


def _why(reason: str, skips: Sequence[Skipped]) -> str:
    """One reason with the range of its figures and their limit, where it has any."""
    figures = spanned([skip.objection.detail for skip in skips])
    return f"{reason}, {figures}" if figures else reason


def _gaps(skips: Sequence[Skipped], names: Sequence[str]) -> str:
    """What was left out for one reason, by name; a photograph that is left out has one name."""
    gaps = [
        names[skip.a] if skip.a == skip.b else f"{names[skip.a]} - {names[skip.b]}"
        for skip in skips
    ]
    # Several frames of one gap are one gap.
    return named(list(dict.fromkeys(gaps)))


@dataclass(frozen=True)
class _Frame:
    """What two photographs show at a camera."""

    image: NDArray  # [H, W, 3] in [0, 1]
    confidence: Float64  # [H, W]
    agreeing: NDArray[np.bool_]  # [H, W]
    depth: NDArray[np.float32] | None  # [H, W], 0 where unknown
    moved_px: float  # median over agreeing pixels
    plane_depth: float
    depth_source: str


class InterpolatedSource:
    """Makes the frames between the photographs of one capture."""

    def __init__(
        self,
        views: SourceViews,
        interpolator: FrameInterpolator,
        config: InterpolatedSourceConfig,
        device: torch.device | str = "cpu",
    ) -> None:
        """Prepare the capture; `device` is where the interpolator's frames are put."""
        self.views = views
        self.interpolator = interpolator
        self.config = config
        self.device = torch.device(device)
        self.photographs = [self._photograph(index) for index in range(len(views.images))]
        self._features = FeatureCache(self.photographs)

    @cached_property
    def selection(self) -> PairSelection:
        """The neighbours of the capture."""
        return select_pairs(
            self.views.camera_to_worlds,
            self.views.names,
            self.config.pairs,
            depth_scale=self._depth_scale(),
            sizes=[(image.shape[1], image.shape[0]) for image in self.views.images],
            is_pinhole=self.views.is_pinhole,
        )

    def make_all(self, progress: Progress | None = None) -> PseudoViewSet:
        """Frames for all neighbours, in their order."""
        pairs = self.selection.pairs
        made: list[PseudoView] = []
        skipped = list(self.selection.skipped)
        times = np.linspace(0.0, 1.0, self.config.frames_per_gap + 2)[1:-1].tolist()
        for done, pair in enumerate(pairs, start=1):
            for t in times:
                result = self.make(pair, t)
                if isinstance(result, PseudoView):
                    made.append(result)
                else:
                    skipped.append(Skipped(pair.a, pair.b, result))
            if progress is not None:
                progress(done, len(pairs))
        odd = self._odd_ones_out(skipped)
        skipped += odd
        names = {self.views.names[skip.a] for skip in odd}
        made = [view for view in made if names.isdisjoint(view.provenance.source_names)]
        checked = drop_contradicted(made, self.photographs, self.views.names)
        return PseudoViewSet(checked, skipped)

    def make(self, pair: Pair, t: float) -> PseudoView | Objection:
        """The frame at t in (0, 1) between two views, or why there is none."""
        a, b = self.photographs[pair.a], self.photographs[pair.b]
        target = TargetCamera(
            interpolate_pose(a.camera_to_world, b.camera_to_world, t),
            interpolate_intrinsics(a.intrinsics, _at_size(b, a.size), t),
            a.size,
        )
        frame = self._frame(pair, target, t)
        if isinstance(frame, Objection):
            return frame
        # Of what the photographs have at all: cut-outs and masks leave a part of each.
        shown = max(min(float(view.valid.mean()) for view in (a, b)), 1e-6)
        mean_confidence = min(float(frame.confidence.mean()) / shown, 1.0)
        if mean_confidence < self.config.min_mean_confidence:
            return Objection(
                _NO_MATCH,
                f"mean confidence {mean_confidence:.2g} < {self.config.min_mean_confidence:g}",
            )
        intrinsics = target.intrinsics
        return PseudoView(
            camera_to_world=flip_camera_axes(target.camera_to_world)[:3].astype(np.float32),
            fx=float(intrinsics[0, 0]),
            fy=float(intrinsics[1, 1]),
            cx=float(intrinsics[0, 2]),
            cy=float(intrinsics[1, 2]),
            width=target.size[0],
            height=target.size[1],
            time=self._time(pair, t),
            image=np.rint(np.clip(frame.image, 0.0, 1.0) * 255.0).astype(np.uint8),
            confidence=to_uint8(frame.confidence),
            provenance=Provenance(
                source_names=(self.views.names[pair.a], self.views.names[pair.b]),
                t=t,
                pose_source="slerp+lerp",
                depth_source=frame.depth_source,
                plane_depth=frame.plane_depth,
                interpolator=self.interpolator.name,
                mean_confidence=mean_confidence,
                agreeing_share=min(float(frame.agreeing.mean()) / shown, 1.0),
                moved_px=frame.moved_px,
            ),
            depth=frame.depth,
        )

    def leave_one_out(self, index: int, pair: Pair) -> float | None:
        """PSNR of a photograph predicted from two others, over the pixels that those agree on.

        None where they agree on less than a tenth: nothing is known then. The gap is about twice as
        wide as that of a frame, so this is a pessimistic bound for the frames.
        """
        view = self.photographs[index]
        target = TargetCamera(view.camera_to_world, view.intrinsics, view.size)
        frame = self._frame(pair, target, 0.5)
        if isinstance(frame, Objection):
            return None
        trusted = (frame.confidence > _AGREEMENT) & view.valid
        if not trusted.any() or trusted.sum() < _ENOUGH_TO_JUDGE * view.valid.sum():
            return None
        difference = frame.image[trusted] - view.image[trusted] / 255.0
        return float(-10.0 * np.log10(max(float(np.mean(np.square(difference))), 1e-10)))

    def _odd_ones_out(self, skipped: Sequence[Skipped]) -> list[Skipped]:
        """Photographs of frames that did not match, which their partners predict otherwise."""
        partners: dict[int, list[int]] = {}
        for pair in self.selection.pairs:
            partners.setdefault(pair.a, []).append(pair.b)
            partners.setdefault(pair.b, []).append(pair.a)
        doubtful = {i for s in skipped if s.objection.reason == _NO_MATCH for i in (s.a, s.b)}
        limit = self.config.pairs.min_leave_one_out_psnr
        odd = []
        for index in sorted(doubtful):
            if len(partners[index]) < 2:
                continue
            psnr = self.leave_one_out(index, Pair(*partners[index][:2]))
            if psnr is not None and psnr < limit:
                figure = f"{psnr:.3g} dB < {limit:g}"
                objection = Objection(_DIFFERS, f"{figure}: it still trains, look at its pose")
                odd.append(Skipped(index, index, objection))
        return odd

    def _frame(self, pair: Pair, target: TargetCamera, t: float) -> _Frame | Objection:
        """What two photographs show at a target camera, or why that is not known."""
        plane = self._plane(pair, target)
        if isinstance(plane, Objection):
            return plane
        depth, depth_source = plane
        a, b = self.photographs[pair.a], self.photographs[pair.b]
        config = self.config
        aligned: tuple[Aligned, Aligned] = (
            (align(a, target, depth), align(b, target, depth))
            if config.aligned
            else (unaligned(a, target.size), unaligned(b, target.size))
        )
        images = (aligned[0].image, aligned[1].image)
        overlap = aligned[0].valid & aligned[1].valid
        objection = exposure_objection(*images, overlap, config.pairs)
        if objection is not None:
            return objection

        coarse = coarse_ratio(*images, overlap)
        interpolation = self._interpolate(equalise(*images, coarse, t), t)
        if not config.weighed:
            image = interpolation.image[0].permute(1, 2, 0).numpy()
            trusted = overlap.astype(np.float64)
            return _Frame(image, trusted, overlap, None, np.nan, depth, depth_source)
        found = correspond((a, b), aligned, target, interpolation)
        image, confidence, agreeing = self._judged(found, interpolation, coarse, t)
        for _ in range(1, config.passes):
            depth_map = surface(found, confidence)
            if depth_map is None:
                break
            aligned = (
                align_to_surface(a, target, depth_map),
                align_to_surface(b, target, depth_map),
            )
            images = (aligned[0].image, aligned[1].image)
            interpolation = self._interpolate(equalise(*images, coarse, t), t)
            found = correspond((a, b), aligned, target, interpolation)
            image, confidence, agreeing = self._judged(found, interpolation, coarse, t)
        known = confidence >= config.min_point_confidence
        known &= np.degrees(found.angle) >= config.min_angle_degrees
        known &= local_contrast(image) >= _LEAST_CONTRAST
        scene_depth = np.where(known, found.depth, 0.0).astype(np.float32)
        moved_px = float(np.median(found.moved_px[agreeing])) if agreeing.any() else np.nan
        return _Frame(image, confidence, agreeing, scene_depth, moved_px, depth, depth_source)

    def _plane(self, pair: Pair, target: TargetCamera) -> tuple[float, str] | Objection:
        """Depth to align two photographs at and where it comes from, or why they cannot be."""
        a, b = self.photographs[pair.a], self.photographs[pair.b]
        config = self.config.pairs
        objection = overlap_objection(
            self._shown_points(pair.a), self._shown_points(pair.b), config
        )
        if objection is not None:
            return objection
        plane = self._plane_depth(pair, target)
        if plane is None:
            return Objection("depth unknown")
        objection = baseline_objection(a.camera_to_world, b.camera_to_world, plane[0], config)
        return plane if objection is None else objection

    def _judged(
        self, found: Correspondence, interpolation: Interpolation, coarse: Float64, t: float
    ) -> tuple[NDArray, Float64, NDArray[np.bool_]]:
        """Image [H, W, 3] and confidence [H, W] of a frame, and its pixels that agree [H, W]."""
        position = position_factor(found.moved_px)
        likely = found.in_bounds & (position > _AGREEMENT)
        likely &= photometric_factor(*equalise(*found.colors, coarse, t)) > _AGREEMENT
        ratio = brightness_ratio(*found.colors, likely)
        colors = equalise(*found.colors, coarse if ratio is None else ratio, t)
        factors = [photometric_factor(*colors), position]
        agreeing = combine(found.in_bounds, *factors) > _AGREEMENT
        if self.config.own_confidence and self.interpolator.judges_itself:
            factors.append(interpolation.confidence[0, 0].double().numpy())
        weight = interpolation.mask[0, 0, :, :, None].numpy()
        image = weight * colors[0] + (1.0 - weight) * colors[1]
        floor = self.config.min_pixel_confidence
        return image, combine(found.in_bounds, *factors, floor=floor), agreeing

    def _photograph(self, index: int) -> Photograph:
        """One view reduced to the resolution of the interpolation."""
        import cv2

        image = self.views.images[index]
        mask = None if self.views.valid is None else self.views.valid[index]
        valid = np.ones(image.shape[:2], bool) if mask is None else mask.astype(bool)
        intrinsics = np.asarray(self.views.intrinsics[index], np.float64)
        height, width = image.shape[:2]
        shrink = self.config.max_long_side / max(height, width)
        if shrink < 1.0:
            size = (max(round(width * shrink), 1), max(round(height * shrink), 1))
            image = cv2.resize(image, size, interpolation=cv2.INTER_AREA).astype(np.uint8)
            share = cv2.resize(valid.astype(np.float32), size, interpolation=cv2.INTER_AREA)
            valid = share > 0.999
            intrinsics = scale_intrinsics(intrinsics, size[0] / width, size[1] / height)
        return Photograph(
            image=np.ascontiguousarray(image),
            valid=erode(valid, _INVALID_MARGIN),
            camera_to_world=flip_camera_axes(self.views.camera_to_worlds[index]),
            intrinsics=intrinsics,
        )

    def _depth_scale(self) -> float | None:
        """Typical scene depth, to weigh centre distance against view angle."""
        if self.views.points is not None:
            depths = [
                harmonic_median_depth(
                    self.views.points, view.camera_to_world, view.intrinsics, view.size
                )
                for view in self.photographs
            ]
            known = [depth for depth in depths if depth is not None]
            if known:
                return float(np.median(known))
        poses = flip_camera_axes(self.views.camera_to_worlds)
        finite = poses[np.isfinite(poses).all(axis=(1, 2))]
        attention = point_of_attention(finite) if len(finite) > 1 else None
        if attention is None:
            return None
        return float(np.median(np.linalg.norm(finite[:, :3, 3] - attention, axis=-1)))

    def _shown_points(self, index: int) -> NDArray[np.bool_]:
        """Which of the known scene points [P] fall into a photograph."""
        if self.views.points is None:
            return np.zeros(0, bool)
        view = self.photographs[index]
        pixels, _ = project(self.views.points, view.camera_to_world, view.intrinsics)
        with np.errstate(invalid="ignore"):
            return np.all((pixels >= 0.0) & (pixels < view.size), axis=-1)

    def _plane_depth(self, pair: Pair, target: TargetCamera) -> tuple[float, str] | None:
        photographs = (self.photographs[pair.a], self.photographs[pair.b])
        return plane_depth(
            photographs,
            target,
            self.views.points,
            find_matches=lambda: matched_points(
                *photographs, self._features.get(pair.a), self._features.get(pair.b)
            ),
        )

    def _interpolate(self, images: Sequence[NDArray[np.float32]], t: float) -> Interpolation:
        frames = [
            torch.from_numpy(image).permute(2, 0, 1)[None].contiguous().to(self.device)
            for image in images
        ]
        with torch.inference_mode():
            result = self.interpolator(frames[0], frames[1], t)
        return Interpolation(**{name: value.float().cpu() for name, value in vars(result).items()})

    def _time(self, pair: Pair, t: float) -> float | None:
        if self.views.times is None:
            return None
        return (1.0 - t) * float(self.views.times[pair.a]) + t * float(self.views.times[pair.b])


def _at_size(view: Photograph, size: tuple[int, int]) -> Float64:
    """Intrinsics [3, 3] of a photograph if it had another size (width, height)."""
    return scale_intrinsics(view.intrinsics, size[0] / view.size[0], size[1] / view.size[1])


def make_pseudo_views(
    views: SourceViews,
    interpolator: FrameInterpolator,
    config: InterpolatedSourceConfig | None = None,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> PseudoViewSet:
    """All pseudo views of a capture; see `InterpolatedSource`."""
    source = InterpolatedSource(views, interpolator, config or InterpolatedSourceConfig(), device)
    return source.make_all(progress)
