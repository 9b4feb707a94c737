# SPDX-License-Identifier: Apache-2.0
"""What a method gets beside its photographs: pseudo views and initial points.

Both come from the same correspondences between neighbouring training views, made once and kept on
disk. Whatever a datamanager serves, full images or rays, it gets them here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from nerfstudio.utils.rich_utils import CONSOLE
from numpy.typing import NDArray
from rich.progress import Progress

from ps4pro_nerfstudio.caches import borrow, cache_folder, can_write, capture_cache
from ps4pro_nerfstudio.initialization.dense_points import (
    DensePointsConfig,
    FusedPoints,
    PointCloud,
    PointObservations,
    load_or_fuse,
    read_points,
    shuffled,
)
from ps4pro_nerfstudio.initialization.filled_points import (
    CACHE_VERSION,
    FilledPointsConfig,
    filled_points,
)
from ps4pro_nerfstudio.initialization.free_space import FreeSpaceConfig, free_radii
from ps4pro_nerfstudio.initialization.kept import keep, kept_file, load_kept
from ps4pro_nerfstudio.initialization.seed_points import (
    SeedPoints,
    SeedPointsConfig,
    seed_points,
)
from ps4pro_nerfstudio.initialization.stereo import StereoConfig, StereoDepth, stereo_depths
from ps4pro_nerfstudio.initialization.views import TrainViews
from ps4pro_nerfstudio.initialization.visual_hull import CACHE_VERSION as HULL_VERSION
from ps4pro_nerfstudio.initialization.visual_hull import VisualHullConfig, visual_hull_points
from ps4pro_nerfstudio.interpolation.optical_flow import LinearBlend, OpticalFlowInterpolator
from ps4pro_nerfstudio.interpolation.protocol import FrameInterpolator
from ps4pro_nerfstudio.messages import InputError, named, say, warn
from ps4pro_nerfstudio.pseudo_views.consistency import scene_points
from ps4pro_nerfstudio.pseudo_views.pseudo_view import PseudoView
from ps4pro_nerfstudio.pseudo_views.repeated import repeat_photographs
from ps4pro_nerfstudio.pseudo_views.schedule import PseudoViewSchedule, PseudoViewScheduleConfig
from ps4pro_nerfstudio.pseudo_views.sources import (
    InterpolatedSourceConfig,
    PseudoViewSet,
    SourceViews,
)
from ps4pro_nerfstudio.pseudo_views.store import StoreConfig, load_or_make

Control = Literal["none", "linear-blend", "naive", "unweighted", "repeat-real", "oracle"]


@dataclass
class PseudoViewsConfig:
    """Views that nobody took, added between neighbouring training views."""

    enabled: bool = True
    """Use pseudo views; False trains on real views only."""
    interpolator: Literal["ps4pro", "optical-flow", "linear-blend"] = "ps4pro"
    """What makes the frames: the network, classical optical flow, or a plain blend."""
    control: Control = "none"
    """Baselines to compare with. linear-blend: aligned photographs, blended, every pixel trusted;
    naive: frames of the photographs as they are, every pixel trusted; unweighted: aligned frames,
    every pixel trusted; repeat-real: photographs once more in the place of pseudo views; oracle:
    photographs that were really taken between the training views and are not test views (parser
    sparse-views). A control brings no dense points."""
    source: InterpolatedSourceConfig = field(default_factory=InterpolatedSourceConfig)
    """How pseudo views are made."""
    schedule: PseudoViewScheduleConfig = field(default_factory=PseudoViewScheduleConfig)
    """When and how strongly they take part."""
    store: StoreConfig = field(default_factory=StoreConfig)
    """How much of the disk pseudo views may take between runs."""


@dataclass
class AugmentationConfig:
    """Everything that is added to the photographs."""

    pseudo_views: PseudoViewsConfig = field(default_factory=PseudoViewsConfig)
    """Views added between the training views."""
    dense_points: DensePointsConfig = field(default_factory=DensePointsConfig)
    """Initial points from the same correspondences."""
    stereo: StereoConfig = field(default_factory=StereoConfig)
    """Depth of few photographs from each other, where they are too far apart for a flow."""
    filled_points: FilledPointsConfig = field(default_factory=FilledPointsConfig)
    """Coarse initial points where there are neither sparse nor dense ones."""
    visual_hull: VisualHullConfig = field(default_factory=VisualHullConfig)
    """Coarse initial points of objects that photographs show cut out."""
    free_space: FreeSpaceConfig = field(default_factory=FreeSpaceConfig)
    """Space around the cameras that training keeps empty."""
    seed_points: SeedPointsConfig = field(default_factory=SeedPointsConfig)
    """Sparse initial points of a capture that brings none."""
    cache_dir: Path | None = None
    """Folder for pseudo views and points between runs; default: `.ps4pro_cache` in the capture, or
    the user's cache folder where the capture cannot be written."""


@dataclass(frozen=True)
class Augmentation:
    """What is added to the photographs."""

    pseudo_views: list[PseudoView]
    points: PointCloud
    """Initial points, in random order."""
    num_sparse: int = 0
    """How many of the points are sparse ones of the capture."""
    num_dense: int = 0
    """How many come from dense correspondences; what is neither is guessed or random."""
    frames: list[PseudoView] = field(default_factory=list)
    """All frames that were made, also those that shall not be trained on: their depths."""
    free_radii: NDArray | None = None
    """[N], radius around each photograph's camera that is known to be empty; None: nothing is."""
    stereo: list[StereoDepth | None] | None = None
    """N depths of the photographs from each other; None where they were not matched."""
    tracks: SeedPoints | None = None
    """Points triangulated from features, with the views that found them; None for those that the
    capture brings, whose views are not known."""


def augment(
    views: SourceViews,
    sparse: PointCloud | None,
    config: AugmentationConfig,
    device: torch.device | str = "cpu",
    data: Path | None = None,
    between: SourceViews | None = None,
    want_frames: bool = False,
    inverse_depths: Callable[[], Sequence[NDArray] | None] | None = None,
    want_depth: bool = False,
) -> Augmentation:
    """Make, or load, pseudo views and initial points of a capture; says in one line each what.

    Args:
        views: the training photographs, undistorted; their `points` are ignored.
        sparse: points that the capture brings; None, or too few, has them triangulated.
        config: what is wanted.
        device: where the interpolator works.
        data: the capture, a folder or its json file, which also keeps what was made.
        between: photographs taken between the training views, for the control "oracle" alone.
        want_frames: make frames even where neither pseudo views nor dense points are wanted.
        inverse_depths: asked for a network's inverse depth [H, W] of each photograph when blank
            spots are filled; without it, or for None, their depth is interpolated.
        want_depth: match the photographs with each other even where no dense points are wanted.

    Raises:
        InputError: a capture that cannot be used, see `initialization.seed_points`; the control
            "oracle" without photographs for it.
    """
    cache = _cache(config, data)
    points, tracks = _sparse_points(views, sparse, config, cache)
    are_random = tracks is not None and tracks.method == "random"
    num_sparse = 0 if are_random else len(points)
    pseudo = config.pseudo_views
    num_real = len(views.images)
    use_views = pseudo.enabled and plan(config, num_real, num_real, num_steps=1).share > 0.0
    use_points = config.dense_points.enabled and pseudo.control == "none"
    use_points &= num_real <= config.dense_points.max_views
    if pseudo.enabled and not use_views:
        say(plan(config, num_real, num_real, num_steps=1).describe())
    if not (use_views or use_points or want_frames):
        return Augmentation([], points, num_sparse, tracks=tracks)
    # All that projects points into the photographs does so as a pinhole camera does.
    use_depth = use_points or (want_depth and pseudo.control == "none")
    pinholes = _pinholes(views) if use_depth else []
    has_hull = use_points and len(pinholes) > 0 and num_real <= config.visual_hull.max_views
    guide: NDArray | None = points.xyz
    if are_random:
        # Their depth says nothing about the scene; that of a visual hull does.
        hull = _hull_points(views, pinholes, points.xyz[:0], config, cache) if has_hull else None
        guide = None
        if hull is not None and len(hull) >= config.seed_points.min_points:
            guide = hull.xyz
    views = replace(views, points=guide)
    if pseudo.control == "oracle":
        views = _oracle(between)
    made = _pseudo_views(views, config, device, cache)
    if use_views:
        say(made.describe(views.names))
    num_dense = 0
    free: NDArray | None = None
    stereo: list[StereoDepth | None] | None = None
    if pinholes and config.stereo.enabled and num_real <= config.stereo.max_views:
        stereo = _stereo(views, pinholes, made, config, cache)
    if use_points:
        fused = _with_dense_points(made, points, are_random, config, stereo or [], cache)
        if fused is not None:
            points, num_sparse, num_dense = fused.points, fused.num_sparse, fused.num_dense
        is_known = len(pinholes) > 0 and num_sparse + num_dense > 0
        if is_known and not config.dense_points.as_many_as_sparse:
            known = points
            if num_real <= config.free_space.max_views and config.free_space.share > 0.0:
                free = np.zeros(num_real)
                seen = _train_views(views, pinholes)
                free[pinholes] = free_radii(seen, known.xyz, config.free_space)
            if num_real <= config.filled_points.max_views and config.filled_points.enabled:
                network = None if inverse_depths is None else inverse_depths()
                points = _with_filled_points(views, pinholes, known, config, network, cache)
        use_hull = has_hull and config.visual_hull.enabled
        if use_hull and not config.dense_points.as_many_as_sparse:
            is_random = are_random and num_dense == 0
            known = PointCloud(points.xyz[:0], points.rgb[:0]) if is_random else points
            hull = _hull_points(views, pinholes, known.xyz, config, cache)
            if hull is not None and len(known) + len(hull) >= config.seed_points.min_points:
                say(f"{len(hull):,} coarse points more in the visual hull of cut-out photographs")
                points = shuffled(known, hull, config.dense_points.seed)
    views_to_train = made.views if use_views else []
    return Augmentation(
        views_to_train, points, num_sparse, num_dense, made.views, free, stereo, tracks
    )


def feature_tracks(
    views: SourceViews, config: AugmentationConfig, data: Path | None = None
) -> SeedPoints:
    """Points triangulated from the features of the photographs, kept beside `data`.

    Raises:
        InputError: as `initialization.seed_points`.
    """
    return _seed_points(views, config, _cache(config, data))


def plan(
    config: AugmentationConfig, num_real_views: int, num_pseudo_views: int, num_steps: int
) -> PseudoViewSchedule:
    """When pseudo views take part in a run of `num_steps`."""
    return PseudoViewSchedule(
        config.pseudo_views.schedule, num_steps, num_real_views, num_pseudo_views
    )


def make_interpolator(name: str, device: torch.device | str) -> FrameInterpolator:
    """An interpolator by its name in `PseudoViewsConfig`, ready for frames on a device."""
    if name == "ps4pro":
        from ps4pro_nerfstudio.interpolation.network import PS4PRO

        return PS4PRO.from_pretrained("ps4pro-small").to(device)
    return {"optical-flow": OpticalFlowInterpolator, "linear-blend": LinearBlend}[name]()


def dense_observations(views: Sequence[PseudoView]) -> list[PointObservations]:
    """The scene points of all pixels with a depth."""
    observations = []
    for view in views:
        if view.depth is None or view.image is None:
            continue
        xyz, row, column = scene_points(view)
        observations.append(
            PointObservations(
                xyz=xyz,
                rgb=view.image[row, column],
                weight=view.confidence[row, column].astype(np.float64) / 255.0,
                pixel_size=view.depth[row, column].astype(np.float64) / view.fx,
            )
        )
    return observations


def _oracle(between: SourceViews | None) -> SourceViews:
    """The photographs that stand in for pseudo views, if there are any."""
    if between is None or not between.images:
        raise InputError(
            "the control oracle wants photographs between the training views that neither train "
            "nor test; use the parser sparse-views with --test-cap, so that some are left over"
        )
    return between


def _sparse_points(
    views: SourceViews, sparse: PointCloud | None, config: AugmentationConfig, cache: Path
) -> tuple[PointCloud, SeedPoints | None]:
    """Points of the capture, else those that are made here, with how they were made."""
    if sparse is not None and len(sparse) >= config.seed_points.min_points:
        return sparse, None
    made = _seed_points(views, config, cache)
    return PointCloud(made.xyz, made.rgb), made


def _seed_points(views: SourceViews, config: AugmentationConfig, cache: Path) -> SeedPoints:
    return seed_points(
        views.images,
        views.valid or [None] * len(views.images),
        views.camera_to_worlds,
        views.intrinsics,
        views.names,
        config=config.seed_points,
        cache_folder=cache / "seed_points",
    )


def _pseudo_views(
    views: SourceViews, config: AugmentationConfig, device: torch.device | str, cache: Path
) -> PseudoViewSet:
    pseudo = config.pseudo_views
    if pseudo.control in ("repeat-real", "oracle"):
        return PseudoViewSet(repeat_photographs(views), [])
    source = {
        "none": pseudo.source,
        "linear-blend": replace(pseudo.source, weighed=False),
        "unweighted": replace(pseudo.source, weighed=False),
        "naive": replace(pseudo.source, weighed=False, aligned=False),
    }[pseudo.control]
    name = "linear-blend" if pseudo.control == "linear-blend" else pseudo.interpolator
    with Progress(transient=True, console=CONSOLE) as progress:
        task = progress.add_task("Matching neighbouring photographs", total=None)
        return load_or_make(
            cache / "pseudo_views",
            views,
            make_interpolator(name, device),
            source,
            pseudo.store,
            device=device,
            progress=lambda done, total: progress.update(task, completed=done, total=total),
        )


def _with_dense_points(
    made: PseudoViewSet,
    sparse: PointCloud,
    are_random: bool,
    config: AugmentationConfig,
    stereo: Sequence[StereoDepth | None],
    cache: Path,
) -> FusedPoints | None:
    """Sparse points and those of the correspondences; None where these are too few."""
    observations = dense_observations(made.views)
    # Frames between neighbours are finer, and third views have checked their points.
    known = (
        None
        if config.stereo.everywhere
        else np.concatenate([np.zeros((0, 3)), *(part.xyz for part in observations)])
    )
    observations += [depth.observations(known) for depth in stereo if depth is not None]
    count = sum(len(part.xyz) for part in observations)
    if count < config.seed_points.min_points:
        return None
    if are_random:
        sparse = PointCloud(np.zeros((0, 3), np.float32), np.zeros((0, 3), np.uint8))
    fused = load_or_fuse(observations, sparse, config.dense_points, cache / "dense_points")
    say(
        f"starting from {len(fused):,} points: {fused.num_sparse:,} sparse ones and "
        f"{fused.num_dense:,} from dense correspondences"
    )
    return fused


def _pinholes(views: SourceViews) -> list[int]:
    """Photographs that are not known to be no pinhole ones; one line names the others."""
    flags = views.is_pinhole or [True] * len(views.images)
    others = [name for name, flag in zip(views.names, flags, strict=True) if not flag]
    if others:
        warn(
            f"left out of depth, free space and coarse points: {named(others)}; no pinhole camera "
            "took what they show (fisheye photographs are undistorted by their distortion "
            "parameters, others not)"
        )
    return [index for index, flag in enumerate(flags) if flag]


def _stereo(
    views: SourceViews,
    indices: Sequence[int],
    made: PseudoViewSet,
    config: AugmentationConfig,
    cache: Path,
) -> list[StereoDepth | None]:
    """Depth of some photographs from each other, found from the points that are known already.

    Returns:
        One for each photograph, None for those that are not among `indices` too.
    """
    known = [part.xyz for part in dense_observations(made.views)]
    if views.points is not None:
        known.append(views.points.astype(np.float64))
    points = np.concatenate([np.zeros((0, 3)), *known])
    with Progress(transient=True, console=CONSOLE) as progress:
        task = progress.add_task("Matching photographs with each other", total=None)
        found = stereo_depths(
            _train_views(views, indices),
            points,
            config.stereo,
            cache / "stereo",
            lambda done, total: progress.update(task, completed=done, total=total),
        )
    shares = [0.0 if depth is None else float((depth.depth > 0.0).mean()) for depth in found]
    say(f"photographs matched with each other: depth of {np.mean(shares):.0%} of their pixels")
    result: list[StereoDepth | None] = [None] * len(views.images)
    for index, depth in zip(indices, found, strict=True):
        result[index] = depth
    return result


def _train_views(views: SourceViews, indices: Sequence[int]) -> TrainViews:
    """Those photographs that `indices` names."""
    valid = views.valid or [None] * len(views.images)
    return TrainViews.checked(
        [views.images[index] for index in indices],
        [valid[index] for index in indices],
        np.asarray(views.camera_to_worlds)[indices],
        np.asarray(views.intrinsics)[indices],
        [views.names[index] for index in indices],
    )


def _with_filled_points(
    views: SourceViews,
    indices: Sequence[int],
    points: PointCloud,
    config: AugmentationConfig,
    inverse_depths: Sequence[NDArray] | None,
    cache: Path,
) -> PointCloud:
    if inverse_depths is not None:
        inverse_depths = [inverse_depths[index] for index in indices]
    seen = _train_views(views, indices)
    filled = _filled_points(seen, points, config.filled_points, inverse_depths, cache)
    if len(filled) == 0:
        return points
    where = "on the planes or at the depth around them"
    if inverse_depths is not None:
        where = "at the depth network's depth"
    say(f"{len(filled):,} coarse points more {where}, where correspondences gave none")
    return shuffled(points, filled, config.dense_points.seed)


def _filled_points(
    views: TrainViews,
    known: PointCloud,
    config: FilledPointsConfig,
    inverse_depths: Sequence[NDArray] | None,
    cache: Path,
) -> PointCloud:
    """What `filled_points` makes of the same arguments, from the cache where it is there."""
    # Whether they are wanted does not change them.
    decisive = replace(config, enabled=True, max_views=0)
    file = kept_file(
        cache / "filled_points",
        "filled_points",
        CACHE_VERSION,
        decisive,
        views,
        known.xyz,
        known.rgb,
        *(inverse_depths or []),
    )
    filled = load_kept(file, "coarse points", read_points)
    if filled is None:
        filled = filled_points(views, known, config, inverse_depths)
        keep(file, "coarse points", {"xyz": filled.xyz, "rgb": filled.rgb})
    return filled


def _hull_points(
    views: SourceViews,
    indices: Sequence[int],
    known: NDArray,
    config: AugmentationConfig,
    cache: Path,
) -> PointCloud | None:
    """Points in the visual hull, from the cache where they are there; None: nothing is cut out."""
    given = views.silhouettes or [None] * len(views.images)
    silhouettes = [given[index] for index in indices]
    if all(silhouette is None for silhouette in silhouettes):
        return None
    seen = _train_views(views, indices)
    file = kept_file(
        cache / "visual_hull",
        "visual_hull",
        HULL_VERSION,
        replace(config.visual_hull, enabled=True, max_views=0),
        seen,
        known,
        *(np.zeros(0) if silhouette is None else silhouette for silhouette in silhouettes),
    )
    hull = load_kept(file, "visual hull", read_points)
    if hull is None:
        hull = visual_hull_points(seen, silhouettes, known, config.visual_hull)
        keep(file, "visual hull", {"xyz": hull.xyz, "rgb": hull.rgb})
    return hull


def _cache(config: AugmentationConfig, data: Path | None) -> Path:
    """Where pseudo views and points are kept; says in one line when the capture refuses them."""
    if config.cache_dir is not None:
        return config.cache_dir
    elsewhere = cache_folder()
    beside = elsewhere if data is None else capture_cache(data)
    if beside == elsewhere or can_write(beside):
        return beside
    say(f"{beside} cannot be written; pseudo views and points are kept in {elsewhere}")
    borrow(beside, elsewhere)
    return elsewhere


def sparse_points(metadata: Mapping[str, Any]) -> PointCloud | None:
    """The points that a dataparser found in the capture, if it brings any."""
    xyz = metadata.get("points3D_xyz")
    if xyz is None:
        return None
    rgb = metadata.get("points3D_rgb")
    if rgb is None or len(rgb) != len(xyz):
        rgb = torch.full((len(xyz), 3), 128)
    return PointCloud(xyz.numpy().astype(np.float32), rgb.numpy().astype(np.uint8))


def to_uint8_photo(image: NDArray) -> tuple[NDArray[np.uint8], NDArray[np.bool_] | None]:
    """RGB [H, W, 3] of a photo [H, W, 3 or 4], uint8 or float, and where it is opaque.

    The second is None for photos without transparency.
    """
    if image.dtype != np.uint8:
        image = np.rint(image * 255).astype(np.uint8)
    opaque = image[..., 3] == 255 if image.shape[2] == 4 else None
    return np.ascontiguousarray(image[..., :3]), opaque
