# SPDX-License-Identifier: Apache-2.0
"""Sparse points of a capture whose camera poses are known: SIFT, matching, triangulation.

Features are OpenCV's SIFT with RootSIFT descriptors (Arandjelovic and Zisserman, CVPR 2012).
Since the poses are known, a match need not be verified by estimating a two-view geometry: only
features within a few pixels of the epipolar line are compared, which finds weaker matches than a
search over the whole image can. COLMAP (pycolmap, Schönberger and Frahm, CVPR 2016) joins the
matches to tracks and triangulates them with the poses held fixed.

A track of two views is checked by nothing but its epipolar line, and one of three by little more
when their centres lie on a line: on the fox capture 9 % of the points of two views float in front
of the scene, against less than 0.1 % of those of four and more. One match of a track of two or
three views therefore also has to pass Lowe's ratio test against *all* features of both images,
which leaves less than 1 %.

Frames: OpenCV camera axes and pixel centres at (x + .5, y + .5), which is COLMAP's convention too.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ps4pro_nerfstudio.geometry.cameras import (
    Float64,
    as_4x4,
    invert_rigid,
    scale_intrinsics,
)
from ps4pro_nerfstudio.geometry.epipolar import fundamental_matrix
from ps4pro_nerfstudio.initialization.points import SeedPoints, SeedPointsConfig
from ps4pro_nerfstudio.initialization.random_points import expected_depth
from ps4pro_nerfstudio.initialization.views import TrainViews
from ps4pro_nerfstudio.messages import InputError

Progress = Callable[[str, int, int], None]
"""Called with the name of the stage, the number of parts done and the number of parts."""

MAX_ANGLE_BETWEEN_AXES_DEG = 75.0
"""Views that look in more different directions are not matched: SIFT recognises little beyond
about 50 degrees."""

_MAX_ENLARGEMENT = 2.0
_MAX_DESCRIPTOR_ANGLE = 0.7  # Radians; COLMAP's default for RootSIFT.
_MAX_DOUBTFUL_VIEWS = 3
_MIN_NEIGHBOURS = 4
_DESCRIPTOR_LENGTH = 512  # As COLMAP stores them; products fit in 32 bits.


@dataclass(frozen=True)
class _Features:
    positions: Float64  # [F, 2], unique
    descriptors: NDArray[np.int16]  # [D, 128], Euclidean length _DESCRIPTOR_LENGTH
    position_of: NDArray[np.int64]  # [D], a position with two orientations has two descriptors


@dataclass(frozen=True)
class _Matches:
    positions: NDArray[np.uint32]  # [M, 2], indices into the positions of the two views, unique
    descriptors: NDArray[np.int64]  # [M, 2], indices into their descriptors


def triangulate_points(
    images: Sequence[NDArray[np.uint8]],
    valid: Sequence[NDArray[np.bool_] | None],
    camera_to_worlds: ArrayLike,
    intrinsics: ArrayLike,
    names: Sequence[str],
    config: SeedPointsConfig | None = None,
    progress: Progress | None = None,
) -> SeedPoints:
    """Triangulate the features that undistorted views with known poses have in common.

    Deterministic: the same input gives the same points in the same order, for any number of
    threads. Poses and intrinsics are not changed. With fewer than two views, or without features,
    the result has no points.

    Args:
        images: N arrays uint8 [H, W, 3].
        valid: N arrays bool [H, W] or None; no feature comes from an invalid pixel.
        camera_to_worlds: [N, 3, 4], OpenGL camera axes (nerfstudio), any world frame and scale.
        intrinsics: [N, 3, 3], pixels.
        names: N names for messages.
        config: thresholds; the defaults of `SeedPointsConfig` when None.
        progress: called after each view whose features are found and each matched pair.

    Raises:
        ValueError: wrong shapes or dtypes.
        InputError: an impossible pose or camera, or a temporary folder that is full.
    """
    config = config or SeedPointsConfig()
    views = TrainViews.checked(images, valid, camera_to_worlds, intrinsics, names)
    progress = progress or (lambda stage, done, total: None)

    scales = [
        min(_MAX_ENLARGEMENT, config.feature_side_px / max(image.shape[:2]))
        for image in views.images
    ]
    resized_intrinsics = np.stack(
        [scale_intrinsics(k, s, s) for k, s in zip(views.intrinsics, scales, strict=True)]
    )
    features = []
    for index, image in enumerate(views.images):
        features.append(_sift(image, views.valid[index], scales[index], config))
        progress("views", index + 1, len(views))

    pairs = _pairs_to_match(views.camera_to_worlds, config.max_pairs)

    def match(pair: tuple[int, int]) -> _Matches:
        a, b = pair
        fundamental = fundamental_matrix(
            views.camera_to_worlds[a],
            resized_intrinsics[a],
            views.camera_to_worlds[b],
            resized_intrinsics[b],
        )
        return _match_along_epipolar_lines(features[a], features[b], fundamental, config)

    matches: dict[tuple[int, int], _Matches] = {}
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        for index, found in enumerate(pool.map(match, pairs)):
            if len(found.positions):
                matches[pairs[index]] = found
            progress("pairs", index + 1, len(pairs))

    tracks = _triangulate_with_colmap(views, resized_intrinsics, scales, features, matches, config)
    return _seed_points(views, features, matches, tracks, scales, config)


def _sift(
    image: NDArray[np.uint8],
    valid: NDArray[np.bool_] | None,
    scale: float,
    config: SeedPointsConfig,
) -> _Features:
    """The strongest SIFT features of the valid pixels; positions in pixels of the resized image."""
    import cv2

    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    if scale != 1.0:
        method = cv2.INTER_AREA if scale < 1.0 else cv2.INTER_CUBIC
        grey = cv2.resize(grey, None, fx=scale, fy=scale, interpolation=method)
    # The precise upscale removes a shift of a quarter pixel that OpenCV keeps for compatibility.
    sift = cv2.SIFT.create(
        nfeatures=0, contrastThreshold=config.contrast_threshold, enable_precise_upscale=True
    )
    shown = np.ones(grey.shape, np.uint8)
    if valid is not None:
        width, height = grey.shape[1], grey.shape[0]
        shown = cv2.resize(valid.astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST)
    keypoints, descriptors = sift.detectAndCompute(grey, shown)
    if descriptors is None or not len(keypoints):
        return _Features(np.zeros((0, 2)), np.zeros((0, 128), np.int16), np.zeros(0, np.int64))
    # OpenCV's pixel centres are at integers.
    positions = np.array([keypoint.pt for keypoint in keypoints], np.float64) + 0.5
    strength = np.array([keypoint.response for keypoint in keypoints])
    # A feature that reaches over the edge of the valid pixels describes that edge.
    distance = cv2.distanceTransform(shown, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    size = np.array([keypoint.size for keypoint in keypoints])
    column, row = np.clip(positions.astype(np.int64), 0, np.array(grey.shape[::-1]) - 1).T
    keep = np.flatnonzero(distance[row, column] > np.maximum(size, 1.0))
    keep = keep[np.argsort(-strength[keep], kind="stable")][: config.max_features]
    root = np.sqrt(descriptors[keep])
    root /= np.maximum(np.linalg.norm(root, axis=1, keepdims=True), 1e-12)
    unique, position_of = np.unique(positions[keep], axis=0, return_inverse=True)
    return _Features(
        positions=unique,
        descriptors=np.round(root * _DESCRIPTOR_LENGTH).astype(np.int16),
        position_of=position_of.reshape(-1).astype(np.int64),
    )


def _pairs_to_match(camera_to_worlds: Float64, max_pairs: int) -> list[tuple[int, int]]:
    """Pairs (a < b) of views that may show the same surface, at most max_pairs of them.

    The change of viewpoint is the angle between the optical axes plus the angle that the baseline
    spans at the expected depth. When there are too many pairs, each view takes neighbours whose
    rank grows faster than linearly: near views join tracks, farther ones make depth precise. A
    view keeps its four neighbours even if that exceeds max_pairs.
    """
    num_views = len(camera_to_worlds)
    centres, axes = camera_to_worlds[:, :3, 3], camera_to_worlds[:, :3, 2]
    between_axes = np.arccos(np.clip(axes @ axes.T, -1.0, 1.0))
    baselines = np.linalg.norm(centres[:, None] - centres[None], axis=-1)
    depth = expected_depth(camera_to_worlds)
    change = between_axes + np.arctan(baselines / depth)
    possible = (between_axes < np.radians(MAX_ANGLE_BETWEEN_AXES_DEG)) & (baselines > 1e-4 * depth)
    pairs = {(a, b) for a, b in np.argwhere(possible).tolist() if a < b}
    share = max(2 * max_pairs // num_views, _MIN_NEIGHBOURS) + 1
    while len(pairs) > max_pairs and share > _MIN_NEIGHBOURS:
        share -= 1
        pairs = set()
        for a in range(num_views):
            order = np.argsort(np.where(possible[a], change[a], np.inf), kind="stable")
            order = order[: int(possible[a].sum())]
            ranks = np.linspace(0.0, 1.0, min(share, len(order))) ** 1.5 * (len(order) - 1)
            # Along a path the two nearest are about equally far: rounding must not choose one.
            nearest = np.arange(min(2, len(order)))
            chosen = order[np.union1d(nearest, np.round(ranks).astype(np.int64))]
            pairs |= {(min(a, b), max(a, b)) for b in chosen.tolist()}
    return sorted(pairs)


def _match_along_epipolar_lines(
    features_a: _Features, features_b: _Features, fundamental: Float64, config: SeedPointsConfig
) -> _Matches:
    """Mutually best descriptors among the features near each other's epipolar line."""
    from ps4pro_nerfstudio.initialization.matching import best_near_line

    positions_a = features_a.positions[features_a.position_of]
    positions_b = features_b.positions[features_b.position_of]
    lines = positions_a @ fundamental[:, :2].T + fundamental[:, 2]
    lines /= np.maximum(np.linalg.norm(lines[:, :2], axis=1, keepdims=True), 1e-300)
    near = best_near_line(
        lines.astype(np.float32),
        positions_b.astype(np.float32),
        features_a.descriptors,
        features_b.descriptors,
        features_a.position_of,
        features_b.position_of,
        config.max_epipolar_px,
    )
    a = np.flatnonzero(near.partner_a >= 0)
    a = a[near.partner_b[near.partner_a[a]] == a]
    b = near.partner_a[a]
    angle = _descriptor_angle(near.score_a[a])
    next_best = _descriptor_angle(np.maximum(near.second_a[a], near.second_b[b]))
    accepted = (angle < _MAX_DESCRIPTOR_ANGLE) & (angle < config.max_ratio * next_best)
    a, b = a[accepted], b[accepted]
    positions = np.stack([features_a.position_of[a], features_b.position_of[b]], axis=1)
    positions, first = np.unique(positions, axis=0, return_index=True)
    return _Matches(positions.astype(np.uint32), np.stack([a[first], b[first]], axis=1))


def _distinctive(
    features_a: _Features, features_b: _Features, descriptors: NDArray[np.int64], max_ratio: float
) -> NDArray[np.bool_]:
    """Which matches [M, 2] of descriptors also pass the ratio test against the whole images."""
    from ps4pro_nerfstudio.initialization.matching import best_other

    a, b = np.ascontiguousarray(descriptors.T)
    score = np.sum(features_a.descriptors[a].astype(np.int32) * features_b.descriptors[b], axis=1)
    elsewhere = np.maximum(
        best_other(a, b, features_a.descriptors, features_b.descriptors, features_b.position_of),
        best_other(b, a, features_b.descriptors, features_a.descriptors, features_a.position_of),
    )
    return _descriptor_angle(score) < max_ratio * _descriptor_angle(elsewhere)


def _descriptor_angle(score: NDArray[np.int32]) -> Float64:
    """Angle in radians between descriptors, from their integer product."""
    return np.arccos(np.clip(score / _DESCRIPTOR_LENGTH**2, -1.0, 1.0))


_NO_MATCHES = _Matches(np.zeros((0, 2), np.uint32), np.zeros((0, 2), np.int64))


@dataclass(frozen=True)
class _Track:
    xyz: Float64  # [3], in the world
    error_px: float
    elements: list[tuple[int, int]]  # (view, index of its position), sorted

    @property
    def num_views(self) -> int:
        # COLMAP lets a track have two neighbouring features of one view.
        return len({view for view, _ in self.elements})


def _triangulate_with_colmap(
    views: TrainViews,
    intrinsics: Float64,
    scales: Sequence[float],
    features: Sequence[_Features],
    matches: dict[tuple[int, int], _Matches],
    config: SeedPointsConfig,
) -> list[_Track]:
    """Join matches to tracks and triangulate them, all cameras fixed.

    The model is handed over as COLMAP's text files and the matches in its database: both formats
    are read by every version from 3.11 on, while the classes in between have changed.
    """
    if not matches:
        return []
    import pycolmap

    # COLMAP's tolerances are those of a scene about as large as 1.
    centre = views.camera_to_worlds[:, :3, 3].mean(axis=0)
    unit = expected_depth(views.camera_to_worlds)
    poses = views.camera_to_worlds.copy()
    poses[:, :3, 3] = (poses[:, :3, 3] - centre) / unit

    with _temporary_folder() as folder, _quiet(pycolmap):
        try:
            model = folder / "model"
            model.mkdir()
            _write_model(model, views, scales, poses, intrinsics)
            reconstruction = pycolmap.Reconstruction(str(model))
            _write_database(pycolmap, folder / "database.db", reconstruction, features, matches)
        except (OSError, RuntimeError) as error:  # COLMAP reports a full disk as the latter.
            raise _no_space(error) from error
        pycolmap.set_random_seed(config.seed)
        result = pycolmap.triangulate_points(
            reconstruction,
            str(folder / "database.db"),
            str(folder),
            str(folder),
            options=_colmap_options(pycolmap, config, intrinsics),
        )
        tracks = []
        for point_id in sorted(result.points3D):
            point = result.points3D[point_id]
            elements = sorted((e.image_id - 1, e.point2D_idx) for e in point.track.elements)
            tracks.append(_Track(point.xyz * unit + centre, float(point.error), elements))
    return [track for track in tracks if np.all(np.isfinite(track.xyz))]


@contextlib.contextmanager
def _temporary_folder() -> Iterator[Path]:
    try:
        folder = tempfile.TemporaryDirectory(prefix="ps4pro-points-")
    except OSError as error:
        raise _no_space(error) from error
    with folder:
        yield Path(folder.name)


def _no_space(error: Exception) -> InputError:
    return InputError(
        "Points could not be triangulated: COLMAP's database cannot be written to "
        f"{tempfile.gettempdir()} ({error}). Free space there, or name another folder in the "
        "variable TMPDIR."
    )


def _write_database(
    pycolmap: Any,
    path: Path,
    reconstruction: Any,
    features: Sequence[_Features],
    matches: dict[tuple[int, int], _Matches],
) -> None:
    """Write cameras and images of a reconstruction, their features and verified matches."""
    database = _open_database(pycolmap, path)
    try:
        for image_id in range(1, len(features) + 1):
            # A camera per image; the database counts ids from 1 as the model does.
            database.write_camera(reconstruction.camera(image_id), use_camera_id=True)
            name = reconstruction.image(image_id).name
            database.write_image(pycolmap.Image(name=name, camera_id=image_id))
            keypoints = features[image_id - 1].positions.astype(np.float32)
            database.write_keypoints(image_id, keypoints)
        for (a, b), found in matches.items():
            geometry = pycolmap.TwoViewGeometry()
            geometry.config = pycolmap.TwoViewGeometryConfiguration.CALIBRATED
            geometry.inlier_matches = found.positions
            database.write_matches(a + 1, b + 1, found.positions)
            database.write_two_view_geometry(a + 1, b + 1, geometry)
    finally:
        database.close()


def _write_model(
    folder: Path, views: TrainViews, scales: Sequence[float], poses: Float64, intrinsics: Float64
) -> None:
    """Write cameras.txt, images.txt and an empty points3D.txt; ids count from 1."""
    from scipy.spatial.transform import Rotation

    world_to_cameras = invert_rigid(as_4x4(poses))
    quaternions = Rotation.from_matrix(world_to_cameras[:, :3, :3]).as_quat()  # x, y, z, w
    cameras, images = [], []
    for index, (matrix, size) in enumerate(zip(intrinsics, views.sizes, strict=True)):
        width, height = np.maximum(np.round(size * scales[index]), 1).astype(int)
        params = (matrix[0, 0], matrix[1, 1], matrix[0, 2], matrix[1, 2])
        cameras.append(f"{index + 1} PINHOLE {width} {height} " + _numbers(params))
        x, y, z, w = quaternions[index]
        pose = _numbers((w, x, y, z, *world_to_cameras[index, :3, 3]))
        # The second line of an image lists its features; they are taken from the database.
        images.append(f"{index + 1} {pose} {index + 1} {index + 1:06d}\n")
    (folder / "cameras.txt").write_text("\n".join(cameras) + "\n")
    (folder / "images.txt").write_text("\n".join(images) + "\n")
    (folder / "points3D.txt").write_text("")


def _numbers(values: Sequence[float]) -> str:
    return " ".join(repr(float(value)) for value in values)


def _open_database(pycolmap: Any, path: Path) -> Any:
    try:
        return pycolmap.Database.open(str(path))
    except TypeError:  # Up to 3.12 `open` is a method of an instance.
        return pycolmap.Database(str(path))


def _colmap_options(pycolmap: Any, config: SeedPointsConfig, intrinsics: Float64) -> Any:
    """COLMAP's options: one thread and a seed, our thresholds, tracks of two views allowed."""
    max_angle_deg = float(
        np.degrees(np.arctan(config.max_reprojection_px / np.median(intrinsics[:, 0, 0])))
    )
    options = pycolmap.IncrementalPipelineOptions()
    options.min_num_matches = 1
    options.extract_colors = False
    options.num_threads = 1
    options.mapper.num_threads = 1
    options.mapper.filter_max_reproj_error = config.max_reprojection_px
    options.mapper.filter_min_tri_angle = config.min_angle_deg
    triangulation = options.triangulation
    triangulation.ignore_two_view_tracks = False
    triangulation.min_angle = config.min_angle_deg
    triangulation.create_max_angle_error = max_angle_deg
    triangulation.continue_max_angle_error = max_angle_deg
    triangulation.merge_max_reproj_error = config.max_reprojection_px
    triangulation.complete_max_reproj_error = config.max_reprojection_px
    for part in (options, options.mapper, triangulation):
        if hasattr(part, "random_seed"):  # Since 3.13.
            part.random_seed = config.seed
    return options


@contextlib.contextmanager
def _quiet(pycolmap: Any) -> Iterator[None]:
    """Let COLMAP log errors only."""
    before = pycolmap.logging.minloglevel
    pycolmap.logging.minloglevel = 2
    try:
        yield
    finally:
        pycolmap.logging.minloglevel = before


def _trusted(
    tracks: Sequence[_Track],
    features: Sequence[_Features],
    matches: dict[tuple[int, int], _Matches],
    max_ratio: float,
) -> NDArray[np.bool_]:
    """Tracks [T] of many views, and those of few views with a distinctive match."""
    trusted = np.array([track.num_views > _MAX_DOUBTFUL_VIEWS for track in tracks], np.bool_)
    doubtful: dict[tuple[int, int], dict[tuple[int, int], int]] = {}
    for index in np.flatnonzero(~trusted).tolist():
        for (a, i), (b, j) in itertools.combinations(tracks[index].elements, 2):
            doubtful.setdefault((a, b), {})[i, j] = index
    for pair, track_of in doubtful.items():
        # Two views of a track need not be matched with each other: a third one may join them.
        found = matches.get(pair, _NO_MATCHES)
        rows = [
            (row, track_of[i, j])
            for row, (i, j) in enumerate(found.positions.tolist())
            if (i, j) in track_of
        ]
        if rows:
            row, index = np.array(rows).T
            a, b = pair
            trusted[index] |= _distinctive(
                features[a], features[b], found.descriptors[row], max_ratio
            )
    return trusted


def _seed_points(
    views: TrainViews,
    features: Sequence[_Features],
    matches: dict[tuple[int, int], _Matches],
    tracks: Sequence[_Track],
    scales: Sequence[float],
    config: SeedPointsConfig,
) -> SeedPoints:
    """Drop doubtful tracks, shuffle the others and colour each with its mean over its views."""
    trusted = _trusted(tracks, features, matches, config.max_ratio)
    kept = [track for track, good in zip(tracks, trusted, strict=True) if good]
    order = np.random.default_rng(config.seed).permutation(len(kept))
    kept = [kept[index] for index in order]

    lengths = np.array([track.num_views for track in kept], np.int32)
    rgb = np.zeros((len(kept), 3))
    seen_by = np.zeros((len(kept), len(views)), np.bool_)
    for index, track in enumerate(kept):
        seen_by[index, [view for view, _ in track.elements]] = True
        colors = []
        for view, position in track.elements:
            image = views.images[view]
            column, row = (features[view].positions[position] / scales[view]).astype(np.int64)
            colors.append(image[min(row, image.shape[0] - 1), min(column, image.shape[1] - 1)])
        rgb[index] = np.mean(colors, axis=0)
    errors = [
        track.error_px / np.mean([scales[view] for view, _ in track.elements]) for track in kept
    ]
    return SeedPoints(
        xyz=np.array([track.xyz for track in kept], np.float32).reshape(-1, 3),
        rgb=np.round(rgb).astype(np.uint8),
        track_lengths=lengths,
        reprojection_errors_px=np.array(errors, np.float32),
        seen_by=seen_by,
        method="triangulated",
    )
