# SPDX-License-Identifier: Apache-2.0
"""Soft light baked onto the surfaces of a scene, the same from every direction of view.

Irradiance at a point with normal n is `ambient * openness + sum over lights of strength * <cos>`.
Openness is the mean free distance over the half space about n, weighted by the cosine, as a share
of a reach; <cos> averages max(0, n . direction) over the points of a light, and is 0 for those that
something hides. Light enters pictures as a factor of display colours: with the usual display curve
of exponent 1 / 2.2, that factor is the irradiance to the power 1 / 2.2.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ps4pro_nerfstudio.demo.raycasting import RayCaster
from ps4pro_nerfstudio.demo.scene import LightMaps

DISPLAY_EXPONENT = 1.0 / 2.2
"""Display value = linear value to this power."""

_OFFSET_M = 4e-3  # start rays off the surface; embree works in single precision


@dataclass(frozen=True)
class AreaLight:
    """A parallelogram that shines."""

    center: tuple[float, float, float]
    edge_a: tuple[float, float, float]
    edge_b: tuple[float, float, float]
    strength: float
    color: tuple[float, float, float] = (1.0, 1.0, 1.0)
    falloff_m: float = 4.0
    """Distance at which the light has half of its strength."""

    def points(self, per_side: int) -> NDArray[np.float64]:
        """The middles [per_side ** 2, 3] of equal parts."""
        share = (np.arange(per_side) + 0.5) / per_side - 0.5
        a, b = np.meshgrid(share, share)
        offset_a = a.reshape(-1, 1) * np.array(self.edge_a)
        offset_b = b.reshape(-1, 1) * np.array(self.edge_b)
        return np.asarray(self.center, dtype=np.float64) + offset_a + offset_b


def bake(
    caster: RayCaster,
    lights: list[AreaLight],
    ambient: float = 0.45,
    reach_m: float = 1.2,
    cell_m: float = 0.07,
    directions_per_side: int = 6,
    light_points_per_side: int = 4,
) -> LightMaps:
    """Light maps for all surfaces of a scene.

    Args:
        caster: the scene.
        lights: what shines.
        ambient: irradiance of an open place without lights.
        reach_m: things farther than this hide no ambient light.
        cell_m: wanted side of a cell of the maps, in metres.
        directions_per_side: square root of the number of ambient rays per cell.
        light_points_per_side: square root of the number of rays per cell and light.
    """
    positions, normals, rows, columns = [], [], [], []
    for surface in caster.scene.surfaces:
        num_columns, num_rows = (
            int(np.clip(np.ceil(extent / cell_m), 2, 256)) for extent in surface.extent_m
        )
        s, t = np.meshgrid(
            (np.arange(num_columns) + 0.5) / num_columns, (np.arange(num_rows) + 0.5) / num_rows
        )
        position, normal = surface.chart(s, t)
        positions.append(position.reshape(-1, 3))
        normals.append(normal.reshape(-1, 3))
        rows.append(num_rows)
        columns.append(num_columns)
    position, normal = np.concatenate(positions), np.concatenate(normals)
    start_point = position + _OFFSET_M * normal

    irradiance = np.zeros((len(position), 3))
    irradiance += ambient * _openness(caster, start_point, normal, reach_m, directions_per_side)
    for light in lights:
        points = light.points(light_points_per_side)
        for point in points:
            toward = point - start_point
            length = np.linalg.norm(toward, axis=1)
            cosine = np.einsum("ij,ij->i", toward, normal) / length
            facing = np.flatnonzero(cosine > 0.0)
            _, distance = caster.cast(start_point[facing], toward[facing])
            lit = facing[distance > 1.0]
            received = light.strength * cosine[lit] / (1.0 + (length[lit] / light.falloff_m) ** 2)
            irradiance[lit] += received[:, None] * np.array(light.color) / len(points)

    num_cells = np.array(rows) * np.array(columns)
    return LightMaps(
        values=(irradiance**DISPLAY_EXPONENT).astype(np.float32),
        start=np.concatenate([[0], np.cumsum(num_cells)[:-1]]),
        rows=np.array(rows),
        columns=np.array(columns),
    )


def _openness(
    caster: RayCaster,
    start_point: NDArray[np.float64],  # [N, 3]
    normal: NDArray[np.float64],  # [N, 3]
    reach_m: float,
    per_side: int,
) -> NDArray[np.float64]:  # [N, 1] in [0, 1]
    """Mean over cosine-weighted directions of the free distance, as a fraction of the reach."""
    helper = np.where(np.abs(normal[:, 2:]) < 0.9, [[0.0, 0.0, 1.0]], [[1.0, 0.0, 0.0]])
    tangent = np.cross(helper, normal)
    tangent /= np.linalg.norm(tangent, axis=1, keepdims=True)
    bitangent = np.cross(normal, tangent)
    total = np.zeros(len(normal))
    for i in range(per_side):
        for j in range(per_side):
            # Equal shares of the unit disk, lifted to the half sphere: Malley's method.
            radius = np.sqrt((i + 0.5) / per_side)
            azimuth = 2.0 * np.pi * (j + (0.5 if i % 2 else 0.0)) / per_side
            direction = (
                radius * np.cos(azimuth) * tangent
                + radius * np.sin(azimuth) * bitangent
                + np.sqrt(1.0 - radius**2) * normal
            )
            _, distance = caster.cast(start_point, direction)
            total += np.minimum(distance / reach_m, 1.0)
    return (total / per_side**2)[:, None]
