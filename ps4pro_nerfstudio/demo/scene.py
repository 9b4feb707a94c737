# SPDX-License-Identifier: Apache-2.0
"""Triangle scenes with textures and baked light, built from quads, boxes, spheres and cylinders.

Notation: world axes are x right, y into the room, z up, in metres. Each *surface* (a face of a box,
the side of a cylinder, a sphere) has a chart (s, t) in [0, 1]^2, s to the right and t downwards as
seen from outside. On every triangle the chart is an affine function of the position,
(s, t) = origin + gradient (P - v0), which holds exactly for planar surfaces and makes the facets
of round ones seamless. Texture coordinates are `offset + scale * (s, t)`, per surface; the light is
a small grid over the chart, per surface (see `lighting`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ps4pro_nerfstudio.demo.textures import TexturePyramids

Chart = Callable[[NDArray[np.float64], NDArray[np.float64]], tuple[NDArray, NDArray]]
"""Maps chart coordinates s, t, each [...], to positions [..., 3] and unit normals [..., 3]."""


@dataclass(frozen=True)
class Material:
    """A texture and the length in metres that one copy of it covers."""

    texture: int
    """Index of the texture in the builder."""
    tile_m: tuple[float, float] | None = None
    """Width and height of one copy in metres; None stretches one copy over each face."""


@dataclass(frozen=True)
class Surface:
    """What the shading and the light of one surface need."""

    name: str
    chart: Chart
    extent_m: tuple[float, float]
    """Lengths of the surface along s and t, in metres."""
    texture: int
    uv_scale: tuple[float, float]
    uv_offset: tuple[float, float]


@dataclass(frozen=True)
class LightMaps:
    """Factors that multiply the texture colours, as one small grid per surface.

    Cell (row, column) of surface k is `values[start[k] + row * columns[k] + column]`; cell centres
    lie at ((column + 0.5) / columns, (row + 0.5) / rows) in the chart.
    """

    values: NDArray[np.float32]  # [cells, 3]
    start: NDArray[np.int64]  # [S]
    rows: NDArray[np.int64]  # [S]
    columns: NDArray[np.int64]  # [S]

    @classmethod
    def uniform(cls, num_surfaces: int, value: float = 1.0) -> LightMaps:
        """The same light everywhere."""
        one = np.ones(num_surfaces, dtype=np.int64)
        values = np.full((num_surfaces, 3), value, dtype=np.float32)
        return cls(values=values, start=np.arange(num_surfaces), rows=one, columns=one)


@dataclass(frozen=True)
class Scene:
    """Triangles with charts, textures and light: everything that `raycasting.render` reads."""

    vertices: NDArray[np.float64]  # [V, 3]
    faces: NDArray[np.int64]  # [F, 3]
    face_surface: NDArray[np.int64]  # [F] index into surfaces
    face_normal: NDArray[np.float64]  # [F, 3] unit
    chart_origin: NDArray[np.float64]  # [F, 2] chart coordinates of the first vertex
    chart_gradient: NDArray[np.float64]  # [F, 2, 3] per metre
    surfaces: tuple[Surface, ...]
    pyramids: TexturePyramids
    light: LightMaps
    finest_detail_m: float
    """Textures are averaged over at least this length, however near the camera comes."""

    def with_light(self, light: LightMaps) -> Scene:
        """The same scene under other light."""
        return replace(self, light=light)


@dataclass
class SceneBuilder:
    """Collects textures and shapes, and builds a `Scene` of them.

    Offsets of tiled textures are drawn from `generator`, so that equal boxes do not look equal.
    """

    generator: np.random.Generator
    finest_detail_m: float = 0.0
    """Length in metres over which textures are averaged at least; 0 keeps them as they are."""

    _textures: list[NDArray[np.float32]] = field(default_factory=list)
    _surfaces: list[Surface] = field(default_factory=list)
    _vertices: list[NDArray[np.float64]] = field(default_factory=list)
    _charts: list[NDArray[np.float64]] = field(default_factory=list)
    _faces: list[NDArray[np.int64]] = field(default_factory=list)
    _num_vertices: int = 0

    def texture(self, values: NDArray[np.float32]) -> int:
        """Add a [size, size, 3] texture; returns the index for `Material`."""
        self._textures.append(values)
        return len(self._textures) - 1

    def quad(
        self, name: str, origin: ArrayLike, edge_s: ArrayLike, edge_t: ArrayLike, material: Material
    ) -> None:
        """Add a parallelogram, from its top left corner as seen from the side that is lit.

        Args:
            name: shown by tools that list surfaces.
            origin: [3] top left corner.
            edge_s: [3] from there to the top right corner.
            edge_t: [3] from there to the bottom left corner.
            material: its texture.
        """
        corner, right, down = (np.asarray(v, dtype=np.float64) for v in (origin, edge_s, edge_t))
        normal = np.cross(down, right)
        normal /= np.linalg.norm(normal)

        def chart(s: NDArray, t: NDArray) -> tuple[NDArray, NDArray]:
            positions = corner + s[..., None] * right + t[..., None] * down
            return positions, np.broadcast_to(normal, positions.shape)

        extent = (float(np.linalg.norm(right)), float(np.linalg.norm(down)))
        self._add_grid(name, chart, extent, 1, 1, material, closed=False)

    def box(
        self,
        name: str,
        center: ArrayLike,
        size: ArrayLike,
        material: Material | Sequence[Material],
        yaw_rad: float = 0.0,
    ) -> None:
        """Add a box that is turned about the vertical.

        Args:
            name: the faces are called name/front, /back, /right, /left, /top, /bottom.
            center: [3].
            size: [3] full lengths along its own x, y, z.
            material: one for all faces, or six in the order above.
            yaw_rad: turn about z, counter-clockwise from above.
        """
        middle = np.asarray(center, dtype=np.float64)
        half = np.asarray(size, dtype=np.float64) / 2.0
        cosine, sine = np.cos(yaw_rad), np.sin(yaw_rad)
        turn = np.array([[cosine, -sine, 0.0], [sine, cosine, 0.0], [0.0, 0.0, 1.0]])
        materials = [material] * 6 if isinstance(material, Material) else list(material)
        # Per face, as seen from outside: signs of the top left corner, right and down directions.
        faces = {
            "front": ((-1, -1, 1), (1, 0, 0), (0, 0, -1)),
            "back": ((1, 1, 1), (-1, 0, 0), (0, 0, -1)),
            "right": ((1, -1, 1), (0, 1, 0), (0, 0, -1)),
            "left": ((-1, 1, 1), (0, -1, 0), (0, 0, -1)),
            "top": ((-1, 1, 1), (1, 0, 0), (0, -1, 0)),
            "bottom": ((-1, -1, -1), (1, 0, 0), (0, 1, 0)),
        }
        for (face, (corner, right, down)), face_material in zip(
            faces.items(), materials, strict=True
        ):
            self.quad(
                f"{name}/{face}",
                middle + turn @ (half * corner),
                turn @ (2.0 * half * right),
                turn @ (2.0 * half * down),
                face_material,
            )

    def sphere(self, name: str, center: ArrayLike, radius: float, material: Material) -> None:
        """Add a sphere of 32 x 16 facets; s runs around the vertical, t from the top down."""
        middle = np.asarray(center, dtype=np.float64)

        def chart(s: NDArray, t: NDArray) -> tuple[NDArray, NDArray]:
            azimuth, inclination = 2.0 * np.pi * s, np.pi * t
            normals = np.stack(
                [
                    np.cos(azimuth) * np.sin(inclination),
                    np.sin(azimuth) * np.sin(inclination),
                    np.cos(inclination),
                ],
                axis=-1,
            )
            return middle + radius * normals, normals

        self._add_grid(
            name, chart, (2.0 * np.pi * radius, np.pi * radius), 32, 16, material, closed=True
        )

    def cylinder(
        self, name: str, base: ArrayLike, radius: float, height: float, material: Material
    ) -> None:
        """Add an upright open cylinder of 20 facets, standing on the centre of its base."""
        bottom = np.asarray(base, dtype=np.float64)

        def chart(s: NDArray, t: NDArray) -> tuple[NDArray, NDArray]:
            azimuth = 2.0 * np.pi * s
            normals = np.stack([np.cos(azimuth), np.sin(azimuth), np.zeros_like(azimuth)], axis=-1)
            rise = np.zeros_like(normals)
            rise[..., 2] = (1.0 - t) * height
            return bottom + radius * normals + rise, normals

        self._add_grid(name, chart, (2.0 * np.pi * radius, height), 20, 1, material, closed=True)

    def build(self) -> Scene:
        """The scene so far, evenly lit."""
        vertices = np.concatenate(self._vertices)
        charts = np.concatenate(self._charts)
        faces = np.concatenate(self._faces)
        counts = [len(f) for f in self._faces]
        edges = vertices[faces[:, 1:]] - vertices[faces[:, :1]]  # [F, 2, 3]
        chart_edges = charts[faces[:, 1:]] - charts[faces[:, :1]]  # [F, 2, 2]
        # Least-norm solution of gradient @ edge = chart edge: no change along the normal.
        gradient = np.einsum("fik,fji->fkj", chart_edges, np.linalg.pinv(edges))
        normal = np.cross(edges[:, 0], edges[:, 1])
        return Scene(
            vertices=vertices,
            faces=faces,
            face_surface=np.repeat(np.arange(len(counts)), counts),
            face_normal=normal / np.linalg.norm(normal, axis=1, keepdims=True),
            chart_origin=charts[faces[:, 0]],
            chart_gradient=gradient,
            surfaces=tuple(self._surfaces),
            pyramids=TexturePyramids.build(self._textures),
            light=LightMaps.uniform(len(self._surfaces)),
            finest_detail_m=self.finest_detail_m,
        )

    def _add_grid(
        self,
        name: str,
        chart: Chart,
        extent_m: tuple[float, float],
        num_columns: int,
        num_rows: int,
        material: Material,
        closed: bool,
    ) -> None:
        """Triangulate a chart; `closed` means that s = 1 meets s = 0."""
        s, t = np.meshgrid(
            np.linspace(0.0, 1.0, num_columns + 1), np.linspace(0.0, 1.0, num_rows + 1)
        )
        vertices = chart(s, t)[0].reshape(-1, 3)
        index = np.arange(vertices.shape[0]).reshape(num_rows + 1, num_columns + 1)
        upper_left, upper_right = index[:-1, :-1].ravel(), index[:-1, 1:].ravel()
        lower_left, lower_right = index[1:, :-1].ravel(), index[1:, 1:].ravel()
        faces = np.concatenate(
            [
                np.stack([upper_left, lower_left, lower_right], axis=1),
                np.stack([upper_left, lower_right, upper_right], axis=1),
            ]
        )
        corners = vertices[faces]
        doubled_area = np.linalg.norm(
            np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1
        )
        # At the poles of a sphere one triangle of each cell has no area.
        faces = faces[doubled_area > 1e-9 * extent_m[0] * extent_m[1]]

        scale, offset = (1.0, 1.0), (0.0, 0.0)
        if material.tile_m is not None:
            along_s = extent_m[0] / material.tile_m[0]
            if closed:
                # Mirrored copies meet without a seam when their number around is even.
                along_s = 2.0 * max(1, round(along_s / 2.0))
            scale = (along_s, extent_m[1] / material.tile_m[1])
            draw = self.generator.uniform(0.0, 2.0, size=2)
            offset = (float(draw[0]), float(draw[1]))
        self._surfaces.append(
            Surface(
                name=name,
                chart=chart,
                extent_m=extent_m,
                texture=material.texture,
                uv_scale=scale,
                uv_offset=offset,
            )
        )
        self._vertices.append(vertices)
        self._charts.append(np.stack([s.ravel(), t.ravel()], axis=1))
        self._faces.append(faces + self._num_vertices)
        self._num_vertices += len(vertices)
