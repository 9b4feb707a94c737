# SPDX-License-Identifier: Apache-2.0
"""A random furnished room, textured everywhere, with a free space for the camera at its front.

Axes are those of `scene`: x right, y into the room, z up, the floor at z = 0 and the origin in the
middle of the floor. Furniture stands in the middle, at the back and along the sides. Shapes that
touch keep a gap of a few millimetres, so that it is always clear what a ray hits first.
"""

from __future__ import annotations

import colorsys
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ps4pro_nerfstudio.demo.lighting import AreaLight, bake
from ps4pro_nerfstudio.demo.raycasting import RayCaster
from ps4pro_nerfstudio.demo.scene import Material, SceneBuilder
from ps4pro_nerfstudio.demo.textures import photograph, tinted, with_detail

_GAP_M = 3e-3  # between things that touch


@dataclass(frozen=True)
class Room:
    """A lit room, ready for rendering, and what a capture of it needs to know."""

    caster: RayCaster
    size_m: tuple[float, float, float]
    """Width (x), depth (y), height (z)."""
    focus: NDArray[np.float64]
    """[3] the middle of what is worth looking at."""

    def is_free(self, positions: NDArray[np.float64], clearance_m: float) -> NDArray[np.bool_]:
        """Which positions [N, 3] lie in the room with nothing nearer than the clearance.

        Distances are sampled along 26 directions.
        """
        half = np.array([self.size_m[0] / 2.0, self.size_m[1] / 2.0])
        free = (np.abs(positions[:, :2]) < half).all(axis=1)
        free &= (positions[:, 2] > 0.0) & (positions[:, 2] < self.size_m[2])
        steps = np.stack(np.meshgrid(*[[-1.0, 0.0, 1.0]] * 3), axis=-1).reshape(-1, 3)
        steps = steps[np.abs(steps).sum(axis=1) > 0.0]
        for step in steps / np.linalg.norm(steps, axis=1, keepdims=True):
            _, distance = self.caster.cast(positions, np.broadcast_to(step, positions.shape))
            free &= distance >= clearance_m
        return free


@dataclass(frozen=True)
class _Palette:
    """Materials of one room."""

    walls: tuple[Material, Material, Material, Material]  # back, front, right, left
    floor: Material
    ceiling: Material
    wood: tuple[Material, Material]
    rug: Material
    fabrics: tuple[Material, ...]
    pictures: tuple[Material, ...]


def build_room(
    generator: np.random.Generator, finest_detail_m: float = 0.02, baked: bool = True
) -> Room:
    """Draw a room: its size, furniture, textures and light.

    Args:
        generator: the only source of randomness.
        finest_detail_m: textures carry nothing finer than this.
        baked: cast rays for soft light and shadows; else leave the room evenly lit: faster.
    """
    builder = SceneBuilder(generator, finest_detail_m=finest_detail_m)
    palette = _draw_palette(builder, generator)
    width, depth, height = generator.uniform((5.0, 4.7, 2.5), (5.8, 5.2, 2.8))
    side = float(generator.choice([-1.0, 1.0]))  # the room or its mirror image

    _add_shell(builder, palette, width, depth, height)
    _add_dining_table(builder, palette, generator, side, height)
    _add_back_wall(builder, palette, generator, side, depth)
    _add_sofa(builder, palette, generator, side, width)
    _add_plant_and_crates(builder, palette, generator, side, width)
    _add_side_pictures(builder, palette, generator, width)

    scene = builder.build()
    caster = RayCaster(scene)
    if baked:
        lights = [
            AreaLight((0.0, 0.1, height - 0.2), (1.8, 0.0, 0.0), (0.0, 1.4, 0.0), 1.0),
            # As if a window stood at the front of one side wall.
            AreaLight(
                (-side * (width / 2.0 - 0.1), -depth / 4.0, 1.6),
                (0.0, 1.4, 0.0),
                (0.0, 0.0, 1.1),
                strength=0.6,
                color=(0.92, 0.98, 1.08),
            ),
        ]
        caster = RayCaster(scene.with_light(bake(caster, lights)))
    return Room(caster=caster, size_m=(width, depth, height), focus=np.array([0.0, 0.55, 0.85]))


def _draw_palette(builder: SceneBuilder, generator: np.random.Generator) -> _Palette:
    def color(saturation: tuple[float, float], value: float, hue: tuple[float, float] = (0.0, 1.0)):
        drawn = (generator.uniform(*hue), generator.uniform(*saturation), value)
        return np.array(colorsys.hsv_to_rgb(*drawn))

    def material(values: NDArray[np.float32], width_m: float, height_m: float) -> Material:
        return Material(builder.texture(values), (width_m, height_m))

    def patched(values: NDArray[np.float32], strength: float = 0.10) -> NDArray[np.float32]:
        # A second, larger structure makes places differ that look alike in the first one.
        return with_detail(values, "moon", strength, repeats=1)

    wallpapers = [
        material(patched(tinted("gravel", color((0.15, 0.4), 0.72), 0.18)), 1.6, 1.6),
        material(patched(tinted("brick", color((0.3, 0.55), 0.68, (0.0, 0.1)), 0.25)), 1.6, 1.6),
        material(patched(tinted("grass", color((0.2, 0.45), 0.7), 0.18)), 2.2, 2.2),
        material(with_detail(photograph("tissue"), "gravel", 0.06), 1.7, 1.4),
        material(patched(tinted("coins", color((0.2, 0.45), 0.68), 0.25)), 1.4, 1.1),
    ]
    walls = [wallpapers[k] for k in generator.permutation(len(wallpapers))]
    woods = [
        with_detail(tinted("wood", color((0.45, 0.65), value, (0.04, 0.09)), 0.16), "grass", 0.06)
        for value in (0.55, 0.75)
    ]
    fabrics = [
        material(tinted("grass", color((0.4, 0.7), 0.6), 0.3), 0.9, 0.9),
        material(tinted("tissue", color((0.3, 0.6), 0.65), 0.3), 0.8, 0.7),
        material(tinted("galaxies", color((0.4, 0.6), 0.45, (0.55, 0.75)), 0.45), 0.7, 0.6),
        material(with_detail(photograph("retina"), "grass", 0.12), 0.6, 0.6),
        material(tinted("coins", color((0.3, 0.6), 0.6), 0.35), 0.7, 0.55),
    ]
    rug = tinted(str(generator.choice(["tissue", "coins", "retina"])), color((0.3, 0.6), 0.6), 0.35)
    pictures = [
        Material(builder.texture(with_detail(photograph(name), "gravel", 0.08)))
        for name in ("astronaut", "camera", "cat", "coffee", "coins", "rocket", "page", "retina")
    ]
    boards = tinted("brick", color((0.35, 0.55), 0.6, (0.05, 0.1)), 0.3)
    plaster = tinted("gravel", color((0.05, 0.12), 0.78, (0.08, 0.14)), 0.14)
    return _Palette(
        walls=(walls[0], walls[1], walls[2], walls[3]),
        floor=material(patched(boards, 0.12), 1.5, 1.5),
        ceiling=material(patched(plaster), 1.8, 1.8),
        wood=(material(woods[0], 1.1, 0.6), material(woods[1], 1.1, 0.6)),
        rug=material(patched(rug), 1.1, 1.1),
        fabrics=tuple(fabrics[k] for k in generator.permutation(len(fabrics))),
        pictures=tuple(pictures[k] for k in generator.permutation(len(pictures))),
    )


def _add_shell(
    builder: SceneBuilder, palette: _Palette, width: float, depth: float, height: float
) -> None:
    """Walls, floor, ceiling with beams."""
    x, y = width / 2.0, depth / 2.0
    down = (0.0, 0.0, -height)
    back, front, right, left = palette.walls
    builder.quad("wall/back", (-x, y, height), (width, 0.0, 0.0), down, back)
    builder.quad("wall/front", (x, -y, height), (-width, 0.0, 0.0), down, front)
    builder.quad("wall/right", (x, y, height), (0.0, -depth, 0.0), down, right)
    builder.quad("wall/left", (-x, -y, height), (0.0, depth, 0.0), down, left)
    builder.quad("floor", (-x, y, 0.0), (width, 0.0, 0.0), (0.0, -depth, 0.0), palette.floor)
    builder.quad("ceiling", (-x, -y, height), (width, 0.0, 0.0), (0.0, depth, 0.0), palette.ceiling)
    for index, place in enumerate((0.05, 0.5, 0.95)):
        builder.box(
            f"beam{index}",
            (0.0, y - 0.3 - place * 2.4, height - 0.08 - _GAP_M),
            (width - 2.0 * _GAP_M, 0.14, 0.16),
            palette.wood[0],
        )


def _legs(
    builder: SceneBuilder,
    name: str,
    middle: NDArray[np.float64],  # [2]
    spread: tuple[float, float],
    top: float,
    thickness: float,
    material: Material,
    yaw: float,
) -> None:
    for k, (x, y) in enumerate(((-1, -1), (1, -1), (1, 1), (-1, 1))):
        place = middle + _turned(np.array([x * spread[0], y * spread[1]]) / 2.0, yaw)
        length = top - 2.0 * _GAP_M
        builder.box(
            f"{name}/leg{k}",
            (*place, top / 2.0),
            (thickness, thickness, length),
            material,
            yaw,
        )


def _turned(offset: NDArray[np.float64], yaw: float) -> NDArray[np.float64]:
    cosine, sine = np.cos(yaw), np.sin(yaw)
    return np.array([cosine * offset[0] - sine * offset[1], sine * offset[0] + cosine * offset[1]])


def _add_chair(
    builder: SceneBuilder,
    name: str,
    middle: NDArray[np.float64],
    yaw: float,
    wood: Material,
    fabric: Material,
) -> None:
    """A chair whose back is on its +y side before turning."""
    _legs(builder, name, middle, (0.38, 0.38), 0.44, 0.045, wood, yaw)
    builder.box(f"{name}/seat", (*middle, 0.47), (0.45, 0.45, 0.06), fabric, yaw)
    for k, x in enumerate((-0.19, 0.19)):
        place = middle + _turned(np.array([x, 0.19]), yaw)
        builder.box(f"{name}/post{k}", (*place, 0.70), (0.04, 0.04, 0.40 - _GAP_M), wood, yaw)
    for k, z in enumerate((0.68, 0.84)):
        place = middle + _turned(np.array([0.0, 0.16]), yaw)
        builder.box(f"{name}/slat{k}", (*place, z), (0.44, 0.015, 0.11), fabric, yaw)


def _add_dining_table(
    builder: SceneBuilder,
    palette: _Palette,
    generator: np.random.Generator,
    side: float,
    ceiling: float,
) -> None:
    """Table, things on it, chairs, rug, ball, and a lamp above."""
    middle = np.array([side * generator.uniform(-0.3, 0.2), generator.uniform(0.4, 0.65)])
    yaw = float(generator.uniform(-0.3, 0.3))
    length, breadth, top = generator.uniform((1.25, 0.75, 0.72), (1.55, 0.9, 0.76))
    wood, fabrics = palette.wood, palette.fabrics

    builder.box(
        "rug",
        (*middle, 0.008 + _GAP_M),
        (length + 1.1, breadth + 1.2, 0.016),
        palette.rug,
        yaw,
    )
    table_top = top + 0.045
    builder.box("table/top", (*middle, top + 0.0225), (length, breadth, 0.045), wood[1], yaw)
    _legs(builder, "table", middle, (length - 0.14, breadth - 0.14), top, 0.055, wood[0], yaw)

    def on_table(x: float, y: float) -> NDArray[np.float64]:
        return middle + _turned(np.array([x * length, y * breadth]) / 2.0, yaw)

    radius = float(generator.uniform(0.11, 0.15))
    globe = on_table(generator.uniform(-0.7, -0.5), generator.uniform(-0.2, 0.4))
    builder.sphere(
        "globe",
        (*globe, table_top + radius + _GAP_M),
        radius,
        Material(palette.pictures[1].texture, (0.4, 0.4)),
    )
    books = on_table(generator.uniform(-0.1, 0.2), generator.uniform(-0.3, 0.4))
    rise = table_top
    for k in range(int(generator.integers(3, 6))):
        size = generator.uniform((0.18, 0.24, 0.025), (0.24, 0.32, 0.05))
        builder.box(
            f"book{k}",
            (*books, rise + _GAP_M + size[2] / 2.0),
            size,
            palette.pictures[(k + 2) % len(palette.pictures)],
            yaw + float(generator.uniform(-0.4, 0.4)),
        )
        rise += size[2] + _GAP_M
    for k in range(2):
        place = on_table(0.5 + 0.25 * k, float(generator.uniform(-0.5, 0.5)))
        tall = float(generator.uniform(0.22, 0.34))
        builder.cylinder(f"candle{k}", (*place, table_top + _GAP_M), 0.016, tall, fabrics[k])
        builder.sphere(
            f"flame{k}", (*place, table_top + tall + 0.035), 0.03, fabrics[(k + 2) % len(fabrics)]
        )

    ends = length / 2.0 + 0.28
    chairs = [
        (np.array([-ends, 0.05]), np.pi / 2.0),
        (np.array([ends, -0.05]), -np.pi / 2.0),
        (np.array([0.3, breadth / 2.0 + 0.22]), 0.0),
        (np.array([-0.25, -breadth / 2.0 - 0.2]), np.pi),
    ]
    for k, (offset, turn) in enumerate(chairs):
        _add_chair(
            builder,
            f"chair{k}",
            middle + _turned(offset, yaw),
            yaw + turn + float(generator.uniform(-0.25, 0.25)),
            wood[0],
            fabrics[3 if k % 2 else 1],
        )
    ball = middle + np.array([side * generator.uniform(0.9, 1.15), generator.uniform(-1.0, -0.8)])
    builder.sphere(
        "ball", (*ball, 0.15 + 0.03), 0.15, Material(palette.pictures[2].texture, (0.47, 0.4))
    )

    lamp = on_table(0.0, 0.0)
    low = float(generator.uniform(1.8, 1.95))
    builder.cylinder("lamp/cord", (*lamp, low), 0.012, ceiling - low - _GAP_M, wood[0])
    builder.sphere("lamp/shade", (*lamp, low - 0.13), 0.17, fabrics[4])


def _add_back_wall(
    builder: SceneBuilder,
    palette: _Palette,
    generator: np.random.Generator,
    side: float,
    depth: float,
) -> None:
    """Bookshelf, cabinet with a vase, floor lamp, pictures between them."""
    wall = depth / 2.0
    shelf_x = -side * generator.uniform(1.35, 1.6)
    shelf_width, shelf_height, shelf_depth = 1.1, float(generator.uniform(1.7, 2.0)), 0.32
    wood, fabrics, pictures = palette.wood, palette.fabrics, palette.pictures
    y = wall - shelf_depth / 2.0 - _GAP_M
    for k, x in enumerate((-1.0, 1.0)):
        builder.box(
            f"shelf/side{k}",
            (shelf_x + x * (shelf_width / 2.0 + 0.02), y, shelf_height / 2.0 + _GAP_M),
            (0.035, shelf_depth, shelf_height),
            wood[0],
        )
    num_boards = 5
    for board in range(num_boards):
        z = 0.06 + board * (shelf_height - 0.1) / (num_boards - 1)
        builder.box(
            f"shelf/board{board}",
            (shelf_x, y, z),
            (shelf_width - _GAP_M, shelf_depth - 0.01, 0.03),
            wood[1],
        )
        if board == num_boards - 1:
            break
        room_above = (shelf_height - 0.1) / (num_boards - 1) - 0.05
        x = shelf_x - shelf_width / 2.0 + 0.02
        end = shelf_x + shelf_width / 2.0 - 0.02
        count = 0
        while True:
            thick, tall, deep = generator.uniform(
                (0.05, 0.6 * room_above, 0.17), (0.13, 0.95 * room_above, 0.24)
            )
            gap = float(generator.choice([_GAP_M, 0.06], p=[0.8, 0.2]))
            if x + thick + gap > end:
                break
            material = (*pictures, *fabrics)[int(generator.integers(len(pictures) + len(fabrics)))]
            builder.box(
                f"shelf/book{board}.{count}",
                (x + gap + thick / 2.0, wall - 0.02 - deep / 2.0, z + 0.015 + _GAP_M + tall / 2.0),
                (thick, deep, tall),
                material,
            )
            x += thick + gap
            count += 1

    cabinet_x = side * generator.uniform(0.75, 1.0)
    width, tall = float(generator.uniform(1.2, 1.5)), float(generator.uniform(0.7, 0.85))
    builder.box(
        "cabinet",
        (cabinet_x, wall - 0.24, tall / 2.0 + _GAP_M),
        (width, 0.45, tall),
        [pictures[3] if k == 0 else wood[1] for k in range(6)],
    )
    builder.cylinder(
        "vase", (cabinet_x - 0.35, wall - 0.26, tall + 2 * _GAP_M), 0.09, 0.3, fabrics[2]
    )
    builder.sphere("vase/bloom", (cabinet_x - 0.35, wall - 0.26, tall + 0.4), 0.13, fabrics[0])
    builder.box(
        "chest",
        (cabinet_x + 0.25, wall - 0.25, tall + 0.1 + 2 * _GAP_M),
        (0.34, 0.26, 0.2),
        pictures[4],
        float(generator.uniform(-0.5, 0.5)),
    )
    for k, (x, z) in enumerate(((cabinet_x - 0.3, 1.6), (cabinet_x + 0.55, 1.45))):
        extent = generator.uniform((0.5, 0.45), (0.72, 0.68))
        _add_picture(
            builder, f"picture/back{k}", (x, wall, z), extent, "back", pictures[k], wood[0]
        )

    lamp_x = side * (cabinet_x * side + width / 2.0 + 0.3)
    builder.cylinder("floor lamp/foot", (lamp_x, wall - 0.4, _GAP_M), 0.14, 0.04, wood[0])
    builder.cylinder("floor lamp/pole", (lamp_x, wall - 0.4, 0.02), 0.016, 1.5, wood[1])
    builder.sphere("floor lamp/shade", (lamp_x, wall - 0.4, 1.62), 0.18, fabrics[3])


def _add_picture(
    builder: SceneBuilder,
    name: str,
    place: tuple[float, float, float],
    extent: NDArray[np.float64],  # [2] width and height
    wall: str,
    picture: Material,
    frame: Material,
) -> None:
    """A picture, 3 cm thick, whose middle of the back lies at `place` on a wall."""
    inward = {
        "back": (0.0, -1.0, 0.0),
        "right": (-1.0, 0.0, 0.0),
        "left": (1.0, 0.0, 0.0),
    }[wall]
    shown = {"back": 0, "right": 3, "left": 2}[wall]  # index of the box face that looks inward
    thickness = 0.03
    center = np.array(place) + (thickness / 2.0 + _GAP_M) * np.array(inward)
    along_x = wall == "back"
    builder.box(
        name,
        center,
        (extent[0], thickness, extent[1]) if along_x else (thickness, extent[0], extent[1]),
        [picture if k == shown else frame for k in range(6)],
    )


def _add_sofa(
    builder: SceneBuilder,
    palette: _Palette,
    generator: np.random.Generator,
    side: float,
    width: float,
) -> None:
    """A sofa with cushions along one side wall."""
    x, y = side * (width / 2.0 - 0.47), float(generator.uniform(0.75, 0.95))
    fabric, pictures = palette.fabrics[0], palette.pictures
    builder.box("sofa/base", (x, y, 0.2), (0.85, 1.7, 0.38), fabric)
    builder.box("sofa/back", (x + side * 0.33, y, 0.62), (0.2, 1.7, 0.44), fabric)
    for k, end in enumerate((-0.93, 0.93)):
        builder.box(f"sofa/arm{k}", (x, y + end, 0.3), (0.85, 0.15, 0.58), fabric)
    for k, place in enumerate((-0.5, 0.45)):
        builder.box(
            f"sofa/cushion{k}",
            (x - side * 0.02, y + place, 0.39 + 0.21),
            (0.14, 0.42, 0.4),
            pictures[(4 + k) % len(pictures)],
            float(generator.uniform(-0.35, 0.35)),
        )


def _add_plant_and_crates(
    builder: SceneBuilder,
    palette: _Palette,
    generator: np.random.Generator,
    side: float,
    width: float,
) -> None:
    """On the side without a sofa: stacked crates, and a plant of thin stems."""
    wall = -side * width / 2.0
    pictures, fabrics, wood = palette.pictures, palette.fabrics, palette.wood
    y = float(generator.uniform(1.0, 1.2))
    rise = _GAP_M
    for k, edge in enumerate(generator.uniform((0.5, 0.36, 0.22), (0.58, 0.44, 0.3))):
        builder.box(
            f"crate{k}",
            (wall + side * 0.48, y + 0.03 * k, rise + edge / 2.0),
            (edge, edge, edge),
            wood[1] if k == 1 else pictures[(5 + k) % len(pictures)],
            float(generator.uniform(-0.5, 0.5)),
        )
        rise += edge + _GAP_M

    pot = np.array([wall + side * 0.4, float(generator.uniform(0.1, 0.3))])
    builder.cylinder("plant/pot", (*pot, _GAP_M), 0.17, 0.34, fabrics[2])
    builder.box("plant/soil", (*pot, 0.3), (0.2, 0.2, 0.04), wood[0])
    for k in range(int(generator.integers(5, 8))):
        offset = generator.uniform(-0.12, 0.12, size=2)
        tall = float(generator.uniform(0.7, 1.25))
        builder.cylinder(f"plant/stem{k}", (*(pot + offset), 0.32), 0.011, tall - 0.32, fabrics[1])
        builder.sphere(
            f"plant/leaf{k}",
            (*(pot + offset), tall + 0.03),
            float(generator.uniform(0.05, 0.09)),
            fabrics[k % len(fabrics)],
        )


def _add_side_pictures(
    builder: SceneBuilder, palette: _Palette, generator: np.random.Generator, width: float
) -> None:
    """Two pictures on each side wall."""
    for index, (wall, sign) in enumerate((("right", 1.0), ("left", -1.0))):
        for k, y in enumerate((0.25, 1.35)):
            _add_picture(
                builder,
                f"picture/{wall}{k}",
                (sign * width / 2.0, y, float(generator.uniform(1.5, 1.65))),
                generator.uniform((0.6, 0.5), (0.85, 0.75)),
                wall,
                palette.pictures[2 + 2 * index + k],
                palette.wood[1],
            )
