# SPDX-License-Identifier: Apache-2.0
"""Pseudo cameras near the seen views: positions and the point looked at, moved at random.

    c = clip(c_i + sigma_k n_1)    a = a_0 + sigma_k n_2    n_1, n_2 ~ N(0, I)

Camera k stands at c and looks at a, the mean up vector upwards; i is a seen view drawn at random,
a_0 the point that all seen views look at together. The noise sigma_k grows with k from `sigma_min`
to `sigma_max`, or to `gap_share` of the gap between seen views where that is more. It is in units
of a normalised frame, which depends on the kind of capture:

    llff  the unit is 3/4 of the nearest depth; axes and origin are those of the average pose; a_0
          lies on its optical axis, at a distance between the nearest and the farthest depth.
    dtu   the unit is the largest coordinate of a seen camera; the origin is the mean of the seen
          cameras, the axes are their principal axes; a_0 is the point nearest to all optical axes.

Cameras given and returned are camera-to-world, OpenGL camera axes, in nerfstudio's frame. numpy,
computed in float64.

IPSM (arXiv 2412.02225), section 4.1, with the settings of its code; the two frames are those of
RegNeRF (arXiv 2112.00724). Where positions are clipped to the cube of side 2 there, the cube is
extended here as far as the seen view stands outside: no camera leaves its seen view without noise.
The axis nearest to the mean up vector is up in `dtu` only if it is within 20 degrees of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ps4pro_nerfstudio.geometry.cameras import (
    Float64,
    as_4x4,
    flip_camera_axes,
    point_of_attention,
    project,
)

_TINY = 1e-6
"""Lengths below this part of the scene's, and sines below this, count as zero."""

_CANCELLED = 0.5
"""Below this length the mean of directions does not stand for them: they are 60 degrees off."""
_UPRIGHT = np.cos(np.radians(20.0))
"""Cosine of the largest angle between the mean up vector and an axis that takes its place."""


@dataclass
class PerturbedCamerasConfig:
    """Which pseudo cameras stand near the seen views."""

    n: int = 10_000
    """Number of pseudo cameras."""
    sigma_min: float = 0.01
    """Smallest noise sigma of position and point looked at, in units of the normalised frame."""
    sigma_max: float = 0.05
    """Largest noise sigma, in units of the normalised frame; camera k has sigma_max (k + 1) / n,
    but not less than sigma_min."""
    gap_share: float = 0.0
    """The largest noise sigma is at least this part of the gap between neighbouring seen views (the
    median over the views of the distance to the nearest other). Without it, pseudo cameras of views
    that are far apart never leave their seen view's side; 0 is the paper."""
    frame: Literal["llff", "dtu"] = "llff"
    """Normalised frame: llff for cameras side by side that face the scene, dtu for cameras around
    an object."""
    order: Literal["growing", "shuffled"] = "growing"
    """Whether training meets the cameras in the order of their noise, as the paper means it, or in
    random order, as its code does it."""
    seed: int = 0
    """Seed of the noise, of the choice of seen views and of the random order."""

    def __post_init__(self) -> None:
        if self.n < 1:
            raise ValueError(f"n must be at least 1, got {self.n}")
        if not 0.0 <= self.sigma_min <= self.sigma_max:
            raise ValueError(
                "sigma_min and sigma_max must satisfy 0 <= sigma_min <= sigma_max, got "
                f"{self.sigma_min} and {self.sigma_max}"
            )
        if not 0.0 <= self.gap_share < np.inf:
            raise ValueError(f"gap_share must not be negative, got {self.gap_share}")


@dataclass(frozen=True)
class PerturbedCameras:
    """n pseudo cameras, in the order of their noise."""

    camera_to_worlds: NDArray[np.float32]
    """[n, 3, 4], OpenGL camera axes, in the frame of the seen views."""
    source: NDArray[np.int64]
    """[n], the seen view that each was moved away from."""
    sigma: Float64
    """[n], the noise sigma_k, never falling."""
    look_at: Float64
    """[3], the point a_0 in the frame of the seen views."""
    order: NDArray[np.int64]
    """[n], the order in which training meets the cameras."""

    def draw_index(self, source: int, progress: float) -> int | None:
        """The next camera of a seen view at a moment of training; None if it has none at all.

        A pure function: a resumed run goes on with the same cameras.

        Args:
            source: index of the seen view.
            progress: 0 at the beginning of the training, 1 at its end; beyond, the nearer end.
        """
        places = np.flatnonzero(self.source[self.order] == source)
        if not len(places):
            return None
        position = np.searchsorted(places, progress * len(self.order))
        return int(self.order[places[min(int(position), len(places) - 1)]])


@dataclass(frozen=True)
class _Frame:
    """A normalised frame: x_normalised = axes^T (x - origin) / unit."""

    axes: Float64  # [3, 3] orthonormal columns in the world, of either handedness
    origin: Float64  # [3]
    unit: float
    look_at: Float64  # [3] in the world
    up: Float64  # [3] in the world


def perturbed_cameras(
    camera_to_worlds: ArrayLike, depth_bounds: tuple[float, float], config: PerturbedCamerasConfig
) -> PerturbedCameras:
    """Pseudo cameras near the seen views; see the module's docstring.

    Degenerate captures give cameras, too. With one seen view, or all at one place, there are no
    principal axes and `dtu` takes the axes and the unit of `llff`; where optical axes do not meet,
    it takes its a_0. Where the optical axes of `llff` cancel, as around an object, a_0 is the point
    nearest to them all and the axes are those of the first view.

    Args:
        camera_to_worlds: the seen views, [N, 3, 4] or [N, 4, 4], OpenGL camera axes, N >= 1.
        depth_bounds: (b_min, b_max), nearest and farthest depth of the scene over the seen views,
            in the units of the poses.
        config: see there.

    Raises:
        ValueError: no view, or bounds that are not 0 < b_min <= b_max < infinity.
    """
    poses = as_4x4(camera_to_worlds)
    nearest, farthest = depth_bounds
    if poses.ndim != 3 or len(poses) == 0:
        raise ValueError(f"camera_to_worlds must be [N, 3, 4] with N >= 1, got {poses.shape}")
    if not 0.0 < nearest <= farthest < np.inf:
        raise ValueError(f"depth_bounds must be 0 < b_min <= b_max, got {depth_bounds}")
    frame = _llff_frame(poses, nearest, farthest)
    if config.frame == "dtu":
        frame = _dtu_frame(poses, frame)

    generator = np.random.default_rng(config.seed)
    source = generator.integers(len(poses), size=config.n)
    noise = generator.standard_normal((2, config.n, 3))
    order = np.arange(config.n)
    if config.order == "shuffled":
        order = generator.permutation(config.n)
    seen = (poses[:, :3, 3] - frame.origin) @ frame.axes / frame.unit
    sigma_max = max(config.sigma_max, config.gap_share * _typical_gap(seen))
    sigma = np.maximum(config.sigma_min, sigma_max * np.arange(1, config.n + 1) / config.n)

    limit = np.maximum(1.0, np.abs(seen))[source]
    moved = np.clip(seen[source] + sigma[:, None] * noise[0], -limit, limit)
    centres = moved * frame.unit @ frame.axes.T + frame.origin
    targets = frame.look_at + sigma[:, None] * frame.unit * noise[1] @ frame.axes.T
    rotations = _look_at(centres, targets, frame.up, poses[source, :3, :3], frame.unit)
    return PerturbedCameras(
        camera_to_worlds=np.concatenate([rotations, centres[:, :, None]], axis=2).astype(
            np.float32
        ),
        source=source,
        sigma=sigma,
        look_at=frame.look_at,
        order=order,
    )


def told_depth_bounds(bounds: ArrayLike) -> tuple[float, float] | None:
    """Nearest and farthest of the depth bounds that a capture tells of its views.

    Args:
        bounds: [N, 2], near and far of each view.

    Returns:
        (b_min, b_max) in units of the bounds; None unless 0 < near < far < infinity in all views:
        where one holds a placeholder, none is to be believed.
    """
    near, far = np.asarray(bounds, np.float64).reshape(-1, 2).T
    if not len(near) or not np.all((near > 0.0) & (near < far) & (far < np.inf)):
        return None
    return float(near.min()), float(far.max())


def depth_bounds(
    points: ArrayLike,
    camera_to_worlds: ArrayLike,
    intrinsics: ArrayLike,
    sizes: ArrayLike,
    min_points: int = 8,
) -> tuple[float, float] | None:
    """Quantiles 2 % and 98 % of the depths of points over all views that have them in the image.

    Args:
        points: [P, 3] in the world.
        camera_to_worlds: [N, 3, 4] or [N, 4, 4], OpenGL camera axes.
        intrinsics: [N, 3, 3] in pixels.
        sizes: [N, 2], (width, height) of each view in pixels.
        min_points: with fewer depths the answer is None.

    Returns:
        (b_min, b_max) in units of the world, 0 < b_min <= b_max.
    """
    depths = []
    for pose, matrix, size in zip(
        flip_camera_axes(camera_to_worlds), np.asarray(intrinsics), np.asarray(sizes), strict=True
    ):
        pixels, depth = project(points, pose, matrix)
        with np.errstate(invalid="ignore"):
            depths.append(depth[np.all((pixels >= 0.0) & (pixels <= size), axis=-1)])
    seen = np.concatenate(depths)
    if len(seen) < max(min_points, 1):
        return None
    low, high = np.quantile(seen, [0.02, 0.98])
    return float(low), float(high)


def _llff_frame(poses: Float64, nearest: float, farthest: float) -> _Frame:
    """The average pose of OpenGL cameras [N, 4, 4], in units of 3/4 of the nearest depth."""
    origin = poses[:, :3, 3].mean(axis=0)
    back, up = poses[:, :3, 2].mean(axis=0), poses[:, :3, 1].mean(axis=0)
    cancelled = np.linalg.norm(back) < _CANCELLED
    if cancelled:
        back = poses[0, :3, 2]
    # The mean up vector may vanish or lie along the axis; the first view's own never does both.
    axes = _look_at(back[None], np.zeros((1, 3)), up, poses[:1, :3, :3], 1.0)[0]
    # Disparities are averaged, 1/4 of the nearest and 3/4 of the farthest depth.
    distance = 1.0 / (0.25 / (0.9 * nearest) + 0.75 / (5.0 * farthest))
    look_at = origin - distance * axes[:, 2]
    if cancelled:
        attention = point_of_attention(flip_camera_axes(poses))
        look_at = look_at if attention is None else attention
    if np.linalg.norm(up) < _CANCELLED:
        up = axes[:, 1]
    return _Frame(axes, origin, 0.75 * nearest, look_at, up)


def _dtu_frame(poses: Float64, otherwise: _Frame) -> _Frame:
    """Principal axes of the cameras [N, 4, 4]; what they leave open is taken from `otherwise`."""
    centres = poses[:, :3, 3] - otherwise.origin
    axes, unit = otherwise.axes, otherwise.unit
    if np.abs(centres).max() > _TINY * otherwise.unit:
        axes = np.linalg.svd(centres)[2].T
        unit = float(np.abs(centres @ axes).max())
    attention = point_of_attention(flip_camera_axes(poses))
    look_at = otherwise.look_at if attention is None else attention
    up = otherwise.up
    along = up @ axes
    largest = int(np.argmax(np.abs(along)))
    # Axes of few cameras may lie askew; then the images would be rolled for no reason.
    if np.abs(along[largest]) > _UPRIGHT * np.linalg.norm(up):
        up = axes[:, largest] * np.sign(along[largest])
    return _Frame(axes, otherwise.origin, unit, look_at, up)


def _typical_gap(centres: Float64) -> float:
    """Median over positions [N, 3] of the distance to the nearest other; 0 for a single one."""
    if len(centres) < 2:
        return 0.0
    distances = np.linalg.norm(centres[:, None] - centres[None], axis=-1)
    np.fill_diagonal(distances, np.inf)
    return float(np.median(distances.min(axis=1)))


def _look_at(
    centres: Float64, targets: Float64, up: Float64, sources: Float64, unit: float
) -> Float64:
    """Rotations [n, 3, 3] of OpenGL cameras at `centres` [n, 3] that look at `targets` [n, 3].

    `up` [3] is up in the image. What it leaves open, along the line of sight, is taken from the
    rotations `sources` [n, 3, 3], and so is the direction of a camera at its own target.
    """
    back = centres - targets
    back = np.where(_norm(back) > _TINY * unit, back, sources[:, :, 2])
    back = back / _norm(back)
    up = up / max(float(np.linalg.norm(up)), np.finfo(np.float64).tiny)
    right = np.cross(up, back)
    # A source's up and right are orthogonal: they cannot both lie along the line of sight.
    right = np.where(_norm(right) > _TINY, right, np.cross(sources[:, :, 1], back))
    right = np.where(_norm(right) > _TINY, right, sources[:, :, 0])
    upwards = np.cross(back, right)
    upwards = upwards / _norm(upwards)
    return np.stack([np.cross(upwards, back), upwards, back], axis=2)


def _norm(vectors: Float64) -> Float64:
    return np.linalg.norm(vectors, axis=-1, keepdims=True)
