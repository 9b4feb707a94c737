# SPDX-License-Identifier: Apache-2.0
"""Pseudo views interpolated between neighbouring training photographs.

For each pair of neighbours: the camera between them (slerp of the rotation, lerp of centre and
intrinsics), both photographs warped into it (`alignment`), the frame between them (any
`FrameInterpolator`), and a confidence per pixel (`confidence`) from where the two sources of a
pixel lie in the original photographs. Deterministic. Poses are nerfstudio's (OpenGL axes) outside
and OpenCV inside; images are uint8 RGB [H, W, 3]. Idea: PS4PRO (arXiv 2505.22616), re-implemented
from the published idea; alignment and confidence are this project's.
"""

from __future__ import annotations

from collections import Counter
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
    pixel_centres,
    point_of_attention,
    scale_intrinsics,
)
from ps4pro_nerfstudio.geometry.epipolar import (
    fundamental_matrix,
    reprojection_residual,
    sampson_distance,
    triangulate,
)
from ps4pro_nerfstudio.geometry.planes import SHARP_REACH, apply_homography, erode
from ps4pro_nerfstudio.interpolation.protocol import FrameInterpolator, Interpolation, sample_at
from ps4pro_nerfstudio.pseudo_views.alignment import (
    Aligned,
    FeatureCache,
    Photograph,
    TargetCamera,
    align,
    matched_points,
    plane_depth,
)
from ps4pro_nerfstudio.pseudo_views.confidence import (
    combine,
    epipolar_factor,
    photometric_factor,
    pose_factor,
    to_uint8,
)
from ps4pro_nerfstudio.pseudo_views.pairs import (
    Objection,
    Pair,
    PairConfig,
    PairSelection,
    Skipped,
    baseline_objection,
    exposure_objection,
    select_pairs,
)
from ps4pro_nerfstudio.pseudo_views.pseudo_view import Provenance, PseudoView

_AGREEMENT = 0.5
"""A pixel's sources agree when photometric times epipolar factor exceeds this."""

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
    own_confidence: bool = True
    """Multiply the confidence by what a learned interpolator believes of its own image."""
    min_pixel_confidence: float = 0.1
    """Pixels below this confidence are not used at all."""
    min_mean_confidence: float = 0.05
    """Frames whose mean confidence is below this are dropped."""
    pairs: PairConfig = field(default_factory=PairConfig)
    """Which neighbours get a frame between them."""

    def __post_init__(self) -> None:
        if self.frames_per_gap < 1:
            raise ValueError(f"frames_per_gap must be at least 1, got {self.frames_per_gap}")
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
    """N flags; false for fisheye and other camera models, which get no pseudo view."""

    def __post_init__(self) -> None:
        count = len(self.images)
        for name in ("camera_to_worlds", "intrinsics", "names", "valid", "times", "is_pinhole"):
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

    def describe(self) -> str:
        """One line: how many views, how good, and why some neighbours were left out."""
        if self.views:
            confidence = np.mean([view.provenance.mean_confidence for view in self.views])
            agreeing = np.mean([view.provenance.agreeing_share for view in self.views])
            line = (
                f"{len(self.views)} pseudo views, mean confidence {confidence:.2f}, "
                f"sources agree on {agreeing:.0%} of the pixels"
            )
        else:
            line = "no pseudo views, training uses the photographs only"
        reasons = Counter(skip.objection.reason for skip in self.skipped)
        if reasons:
            listed = "; ".join(f"{reason} ({count}x)" for reason, count in reasons.most_common())
            line += f"; gaps left out: {listed}"
        return line


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
        return PseudoViewSet(made, skipped)

    def make(self, pair: Pair, t: float) -> PseudoView | Objection:
        """The frame at t in (0, 1) between two views, or why there is none."""
        photographs = (self.photographs[pair.a], self.photographs[pair.b])
        a, b = photographs
        target = TargetCamera(
            interpolate_pose(a.camera_to_world, b.camera_to_world, t),
            interpolate_intrinsics(a.intrinsics, b.intrinsics, t),
            a.size,
        )
        found = self._plane_depth(pair, target)
        if found is None:
            return Objection("depth unknown")
        depth, depth_source = found
        objection = baseline_objection(
            a.camera_to_world, b.camera_to_world, depth, self.config.pairs
        )
        if objection is not None:
            return objection
        aligned = (align(a, target, depth), align(b, target, depth))
        objection = exposure_objection(
            aligned[0].image,
            aligned[1].image,
            aligned[0].valid & aligned[1].valid,
            self.config.pairs,
        )
        if objection is not None:
            return objection

        interpolation = self._interpolate(aligned, t)
        confidence, agreeing = _confidence(
            photographs,
            aligned,
            target,
            interpolation,
            self.config.min_pixel_confidence,
            own=self.config.own_confidence and self.interpolator.judges_itself,
        )
        mean_confidence = float(confidence.mean())
        if mean_confidence < self.config.min_mean_confidence:
            return Objection(
                "sources do not match",
                f"mean confidence {mean_confidence:.2f} < {self.config.min_mean_confidence:g}",
            )
        image = (interpolation.image[0].permute(1, 2, 0) * 255.0).round().clamp(0, 255)
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
            image=image.to(torch.uint8).cpu().numpy(),
            confidence=to_uint8(confidence),
            provenance=Provenance(
                source_names=(self.views.names[pair.a], self.views.names[pair.b]),
                t=t,
                pose_source="slerp+lerp",
                depth_source=depth_source,
                plane_depth=depth,
                interpolator=self.interpolator.name,
                mean_confidence=mean_confidence,
                agreeing_share=agreeing,
            ),
        )

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

    def _interpolate(self, aligned: tuple[Aligned, Aligned], t: float) -> Interpolation:
        frames = [
            torch.from_numpy(view.image).permute(2, 0, 1)[None].contiguous().to(self.device)
            for view in aligned
        ]
        with torch.inference_mode():
            result = self.interpolator(frames[0], frames[1], t)
        return Interpolation(**{name: value.float().cpu() for name, value in vars(result).items()})

    def _time(self, pair: Pair, t: float) -> float | None:
        if self.views.times is None:
            return None
        return (1.0 - t) * float(self.views.times[pair.a]) + t * float(self.views.times[pair.b])


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


def _confidence(
    photographs: tuple[Photograph, Photograph],
    aligned: tuple[Aligned, Aligned],
    target: TargetCamera,
    interpolation: Interpolation,
    floor: float,
    own: bool,
) -> tuple[Float64, float]:
    """Confidence [H, W] of a frame, and the share of pixels whose sources agree."""
    width, height = target.size
    centres = pixel_centres(height, width)
    in_bounds = np.ones((height, width), bool)
    warped: list[NDArray] = []
    positions: list[Float64] = []
    for view, flow in zip(aligned, (interpolation.flow_t0, interpolation.flow_t1), strict=True):
        source = centres + flow[0].permute(1, 2, 0).double().numpy()
        in_bounds &= np.all((source >= 0.5) & (source <= np.array(target.size) - 0.5), axis=-1)
        in_bounds &= _sample(view.valid.astype(np.float32)[..., None], flow)[..., 0] > 0.999
        warped.append(_sample(view.image, flow))
        positions.append(apply_homography(view.to_source, source))
    a, b = photographs
    cameras = (a.camera_to_world, a.intrinsics, b.camera_to_world, b.intrinsics)
    points = triangulate(positions[0], positions[1], *cameras)
    residual = reprojection_residual(points, centres, target.camera_to_world, target.intrinsics)
    photometric = photometric_factor(warped[0], warped[1])
    epipolar = epipolar_factor(
        sampson_distance(positions[0], positions[1], fundamental_matrix(*cameras))
    )
    agreeing = combine(in_bounds, photometric, epipolar) > _AGREEMENT
    factors = [photometric, epipolar, pose_factor(residual)]
    if own:
        factors.append(interpolation.confidence[0, 0].double().numpy())
    confidence = combine(in_bounds, *factors, floor=floor)
    return confidence, float(agreeing.mean())


def _sample(image: NDArray[np.float32], flow: torch.Tensor) -> NDArray[np.float32]:
    """Bilinear samples [H, W, C] of an image [H, W, C] at the flow [1, 2, H, W]."""
    tensor = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None]
    return sample_at(tensor, flow)[0].permute(1, 2, 0).numpy()
