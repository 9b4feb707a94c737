# SPDX-License-Identifier: Apache-2.0
"""Pictures, exact depth and visibility of a `Scene` by ray casting.

Notation: camera axes are OpenCV's (x right, y down, z forward); pixel (column i, row j) has its
centre at (i + 0.5, j + 0.5); depth is the z coordinate in the camera frame, in metres, not the
length of the ray. Rays are not normalised: their z component in the camera frame is 1, so that the
ray parameter is the depth.

embree (through trimesh) says which triangle a ray hits first, in single precision; the place of the
hit is then computed from that triangle's plane in double precision. Colours come from a trilinear
look-up with several taps along the longer axis of the pixel's footprint on the surface (Heckbert,
"Survey of texture mapping", 1986; footprints by Igehy, "Tracing ray differentials", 1999), so a
floor seen at a grazing angle is neither aliased nor blurred across.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from ps4pro_nerfstudio.demo.scene import Scene
from ps4pro_nerfstudio.messages import MissingPartError

MAX_TAPS = 8
"""Most texture look-ups per sample; footprints longer than this many widths are blurred."""


@dataclass(frozen=True)
class Camera:
    """A pinhole camera."""

    width: int
    height: int
    focal_px: float
    camera_to_world: NDArray[np.float64]  # [4, 4], OpenCV camera axes

    @property
    def center(self) -> NDArray[np.float64]:
        """[3] position in the world."""
        return self.camera_to_world[:3, 3]

    def directions(self, points_px: NDArray[np.float64]) -> NDArray[np.float64]:
        """World rays [..., 3], of unit depth, through the pixel positions [..., 2]."""
        in_camera = np.empty((*points_px.shape[:-1], 3))
        in_camera[..., 0] = (points_px[..., 0] - self.width / 2.0) / self.focal_px
        in_camera[..., 1] = (points_px[..., 1] - self.height / 2.0) / self.focal_px
        in_camera[..., 2] = 1.0
        return in_camera @ self.camera_to_world[:3, :3].T

    def project(self, points: NDArray[np.float64]) -> tuple[NDArray, NDArray]:
        """Pixel positions [..., 2] and depths [...] of world points [..., 3].

        Positions of points that do not lie in front of the camera have no meaning.
        """
        in_camera = (points - self.center) @ self.camera_to_world[:3, :3]
        depth = in_camera[..., 2]
        scale = self.focal_px / np.where(depth > 0.0, depth, 1.0)
        middle = np.array([self.width / 2.0, self.height / 2.0])
        return in_camera[..., :2] * scale[..., None] + middle, depth

    def pixel_centers(self, samples_per_side: int = 1) -> NDArray[np.float64]:
        """Positions [H * n, W * n, 2] of the middles of all pixels, or of their n x n parts."""
        x = (np.arange(self.width * samples_per_side) + 0.5) / samples_per_side
        y = (np.arange(self.height * samples_per_side) + 0.5) / samples_per_side
        return np.stack(np.meshgrid(x, y), axis=-1)


@dataclass(frozen=True)
class Rendering:
    """What a camera sees of a scene."""

    image: NDArray[np.float32]  # [H, W, 3] display colours in [0, 1]
    depth: NDArray[np.float64]  # [H, W] at pixel centres, metres; inf where nothing is hit
    triangle: NDArray[np.int64]  # [H, W] index into scene.faces at pixel centres, -1 for nothing
    surface: NDArray[np.int64]  # [H, W] index into scene.surfaces at pixel centres, -1 for nothing


class RayCaster:
    """Finds first hits in a scene; holds embree's search tree, so keep one per scene.

    Raises:
        MissingPartError: if embreex is not installed.
    """

    def __init__(self, scene: Scene) -> None:
        try:
            import trimesh
            from trimesh.ray.ray_pyembree import RayMeshIntersector
        except ImportError as error:
            raise MissingPartError(
                "the demo scene is ray-cast by embree, which this environment lacks: "
                "run `pip install trimesh embreex`"
            ) from error
        self.scene = scene
        mesh = trimesh.Trimesh(scene.vertices, scene.faces, process=False, validate=False)
        self._intersector: Any = RayMeshIntersector(mesh)

    def cast(
        self, origins: NDArray[np.float64], directions: NDArray[np.float64]
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """First triangle along each ray, and how far it is.

        Args:
            origins: [N, 3], or [3] for all rays.
            directions: [N, 3], of any length.

        Returns:
            triangle: [N], -1 where the ray hits nothing.
            distance: [N] in lengths of `directions`, inf where the ray hits nothing.
        """
        origins = np.broadcast_to(origins, directions.shape)
        triangle = self._intersector.intersects_first(origins, directions).astype(np.int64)
        normal = self.scene.face_normal[triangle]
        anchor = self.scene.vertices[self.scene.faces[triangle, 0]]
        along_normal = np.einsum("ij,ij->i", directions, normal)
        hit = (triangle >= 0) & (along_normal != 0.0)
        gap = np.einsum("ij,ij->i", anchor - origins, normal)
        distance = np.full(len(directions), np.inf)
        np.divide(gap, along_normal, out=distance, where=hit)
        # In single precision a start on a surface may lie a hair behind it.
        return np.where(hit, triangle, -1), np.maximum(distance, 0.0)

    def sees(
        self, camera: Camera, points: NDArray[np.float64], tolerance: float = 2e-3
    ) -> NDArray[np.bool_]:
        """Which points [N, 3] lie inside the picture with nothing before them.

        Args:
            camera: the camera.
            points: [N, 3] on surfaces of the scene.
            tolerance: how much nearer, as a fraction of the depth, a hit may lie.
        """
        points_px, depth = camera.project(points)
        inside = (
            (depth > 0.0)
            & (points_px >= 0.0).all(axis=1)
            & (points_px <= (camera.width, camera.height)).all(axis=1)
        )
        _, distance = self.cast(camera.center, points - camera.center)
        return inside & (distance >= 1.0 - tolerance)


def render(
    caster: RayCaster,
    camera: Camera,
    supersampling: int = 2,
    background: tuple[float, float, float] = (0.0, 0.0, 0.0),
) -> Rendering:
    """The picture that a camera takes of a scene, with what is known exactly about it.

    Args:
        caster: the scene.
        camera: the camera.
        supersampling: each pixel averages n x n samples.
        background: display colour where a ray hits nothing.
    """
    scene = caster.scene
    centers = camera.directions(camera.pixel_centers()).reshape(-1, 3)
    triangle, depth = caster.cast(camera.center, centers)
    shape = (camera.height, camera.width)
    surface = np.where(triangle >= 0, scene.face_surface[triangle], -1)

    n = supersampling
    rays = camera.directions(camera.pixel_centers(n)).reshape(-1, 3)
    hit, distance = caster.cast(camera.center, rays)
    step = 1.0 / (n * camera.focal_px)
    colors = np.empty((len(rays), 3), dtype=np.float32)
    colors[:] = background
    table = _surface_table(scene)
    _shade(
        camera.center,
        rays,
        hit,
        distance,
        camera.camera_to_world[:3, 0] * step,
        camera.camera_to_world[:3, 1] * step,
        scene.vertices[scene.faces[:, 0]],
        scene.face_normal,
        scene.face_surface,
        scene.chart_origin,
        scene.chart_gradient,
        table,
        np.array([surface.texture for surface in scene.surfaces]),
        scene.pyramids.texels,
        scene.pyramids.level_start,
        scene.pyramids.size,
        scene.light.values,
        scene.light.start,
        scene.light.rows,
        scene.light.columns,
        MAX_TAPS,
        colors,
    )
    image = colors.reshape(camera.height, n, camera.width, n, 3).mean(axis=(1, 3), dtype=np.float32)
    return Rendering(
        image=np.clip(image, 0.0, 1.0),
        depth=depth.reshape(shape),
        triangle=triangle.reshape(shape),
        surface=surface.reshape(shape),
    )


def _surface_table(scene: Scene) -> NDArray[np.float64]:
    """Per surface [S, 5]: texture scale (2), texture offset (2), least footprint in texels."""
    rows = []
    for surface in scene.surfaces:
        texels_per_metre = scene.pyramids.size * max(
            surface.uv_scale[0] / surface.extent_m[0], surface.uv_scale[1] / surface.extent_m[1]
        )
        rows.append(
            (*surface.uv_scale, *surface.uv_offset, scene.finest_detail_m * texels_per_metre)
        )
    return np.array(rows, dtype=np.float64)


# Compiled anew in each process: it takes little more than a second, and needs no cache folder.
@numba.njit(nogil=True)
def _mirrored(index: int, side: int) -> int:
    index = index % (2 * side)
    return index if index < side else 2 * side - 1 - index


@numba.njit(nogil=True)
def _add_texel_blend(texels, start, side, texture, u, v, weight, total):
    """Add `weight` times the bilinear look-up at (u, v) in one level of one texture."""
    x, y = u * side - 0.5, v * side - 0.5
    left, top = math.floor(x), math.floor(y)
    right_share, down_share = x - left, y - top
    for down in range(2):
        row = _mirrored(int(top) + down, side)
        row_weight = weight * (down_share if down else 1.0 - down_share)
        for right in range(2):
            column = _mirrored(int(left) + right, side)
            texel_weight = row_weight * (right_share if right else 1.0 - right_share)
            texel = start + (texture * side + row) * side + column
            for channel in range(3):
                total[channel] += texel_weight * texels[texel, channel]


@numba.njit(nogil=True)
def _shade(
    center,
    rays,
    hit,
    distance,
    step_right,
    step_down,
    anchors,
    normals,
    face_surface,
    chart_origin,
    chart_gradient,
    table,
    surface_texture,
    texels,
    level_start,
    size,
    light_values,
    light_start,
    light_rows,
    light_columns,
    max_taps,
    colors,
):
    """Write the colour of each ray that hits something into `colors` [N, 3].

    `step_right` and `step_down` are the changes of the ray from one sample to the next.
    """
    num_levels = len(level_start)
    footprint = np.empty((2, 2))  # texels: per step (right, down), per texture axis
    total = np.empty(3)
    for ray in range(len(rays)):
        face = hit[ray]
        if face < 0:
            continue
        surface = face_surface[face]
        depth = distance[ray]
        along = 0.0
        for k in range(3):
            along += rays[ray, k] * normals[face, k]
        s, t = chart_origin[face, 0], chart_origin[face, 1]
        for k in range(3):
            offset = center[k] + depth * rays[ray, k] - anchors[face, k]
            s += chart_gradient[face, 0, k] * offset
            t += chart_gradient[face, 1, k] * offset
        u = table[surface, 2] + table[surface, 0] * s
        v = table[surface, 3] + table[surface, 1] * t

        for axis in range(2):
            step = step_right if axis == 0 else step_down
            step_normal = 0.0
            for k in range(3):
                step_normal += step[k] * normals[face, k]
            change_s = change_t = 0.0
            for k in range(3):
                # The hit moves along the plane: depth changes so that the normal part cancels.
                move = depth * (step[k] - rays[ray, k] * step_normal / along)
                change_s += chart_gradient[face, 0, k] * move
                change_t += chart_gradient[face, 1, k] * move
            footprint[axis, 0] = change_s * table[surface, 0] * size
            footprint[axis, 1] = change_t * table[surface, 1] * size
        # Axes of the ellipse that the footprint's parallelogram spans: singular values of it.
        a, b, c, d = footprint[0, 0], footprint[1, 0], footprint[0, 1], footprint[1, 1]
        mean_square = 0.5 * (a * a + b * b + c * c + d * d)
        difference = math.hypot(0.5 * (a * a + b * b - c * c - d * d), a * c + b * d)
        major = math.sqrt(mean_square + difference)
        minor = math.sqrt(max(mean_square - difference, 0.0))
        angle = 0.5 * math.atan2(2.0 * (a * c + b * d), a * a + b * b - c * c - d * d)
        least = max(table[surface, 4], 1.0)
        width = max(minor, major / max_taps, least)
        # One look-up where the footprint is as wide as it is long, whatever its rounding was.
        num_taps = max(1, min(max_taps, math.ceil(major / width - 1e-9)))
        level = min(math.log2(width), num_levels - 1.0)
        lower = min(int(level), num_levels - 2)
        share = level - lower
        reach_u = math.cos(angle) * major / size
        reach_v = math.sin(angle) * major / size
        total[:] = 0.0
        for tap in range(num_taps):
            position = (tap + 0.5) / num_taps - 0.5
            tap_u, tap_v = u + position * reach_u, v + position * reach_v
            for upper in range(2):
                weight = (share if upper else 1.0 - share) / num_taps
                if weight > 0.0:
                    _add_texel_blend(
                        texels,
                        level_start[lower + upper],
                        size >> (lower + upper),
                        surface_texture[surface],
                        tap_u,
                        tap_v,
                        weight,
                        total,
                    )

        # Light: bilinear inside the chart, held constant beyond the outermost cell centres.
        rows, columns = light_rows[surface], light_columns[surface]
        x = min(max(s * columns - 0.5, 0.0), columns - 1.0)
        y = min(max(t * rows - 0.5, 0.0), rows - 1.0)
        left, top = min(int(x), max(columns - 2, 0)), min(int(y), max(rows - 2, 0))
        right, bottom = min(left + 1, columns - 1), min(top + 1, rows - 1)
        x -= left
        y -= top
        start = light_start[surface]
        for channel in range(3):
            upper_light = (1.0 - x) * light_values[start + top * columns + left, channel]
            upper_light += x * light_values[start + top * columns + right, channel]
            lower_light = (1.0 - x) * light_values[start + bottom * columns + left, channel]
            lower_light += x * light_values[start + bottom * columns + right, channel]
            light = (1.0 - y) * upper_light + y * lower_light
            colors[ray, channel] = total[channel] * light
