# SPDX-License-Identifier: Apache-2.0
import numpy as np

from ps4pro_nerfstudio.demo.lighting import DISPLAY_EXPONENT, AreaLight, bake
from ps4pro_nerfstudio.demo.raycasting import RayCaster
from ps4pro_nerfstudio.demo.scene import Material, SceneBuilder


def _floor_and(*boxes: tuple) -> RayCaster:
    builder = SceneBuilder(np.random.default_rng(0))
    builder.texture(np.ones((2, 2, 3), dtype=np.float32))
    builder.quad("floor", (-2, 2, 0), (4, 0, 0), (0, -4, 0), Material(0))
    for center, size in boxes:
        builder.box("box", center, size, Material(0))
    return RayCaster(builder.build())


def _floor_light(caster: RayCaster, **options) -> np.ndarray:
    """Irradiance [rows, columns] on the floor, which is the first surface."""
    maps = bake(caster, cell_m=0.25, **options)
    count = maps.rows[0] * maps.columns[0]
    values = maps.values[:count, 0].reshape(maps.rows[0], maps.columns[0])
    return values ** (1.0 / DISPLAY_EXPONENT)


def test_an_open_floor_receives_all_ambient_light():
    light = _floor_light(_floor_and(), lights=[], ambient=0.4)
    np.testing.assert_allclose(light, 0.4, rtol=1e-5)


def test_a_small_light_follows_the_cosine_and_its_falloff():
    """At offset x below a light of height 2: cos = 2 / d, strength cos / (1 + (d / 4)^2)."""
    light = AreaLight((0.0, 0.0, 2.0), (1e-6, 0, 0), (0, 1e-6, 0), strength=1.5)
    found = _floor_light(_floor_and(), lights=[light], ambient=0.0)
    x = (np.arange(16) + 0.5) / 4.0 - 2.0
    distance = np.sqrt(x[None, :] ** 2 + x[:, None] ** 2 + 4.0)
    expected = 1.5 * (2.0 / distance) / (1.0 + (distance / 4.0) ** 2)
    np.testing.assert_allclose(found, expected, rtol=5e-3)  # rays start 4 mm above the floor


def test_a_board_shades_the_floor_beneath_it():
    light = AreaLight((0.0, 0.0, 3.0), (0.2, 0, 0), (0, 0.2, 0), strength=1.0)
    open_floor = _floor_light(_floor_and(), lights=[light])
    shaded = _floor_light(_floor_and(((0, 0, 0.5), (1.5, 1.5, 0.1))), lights=[light])
    assert shaded[8, 8] < 0.35 * open_floor[8, 8]
    np.testing.assert_allclose(shaded[0, 0], open_floor[0, 0], rtol=0.05)
    assert (shaded <= open_floor + 1e-5).all()


def test_light_is_finite_where_things_touch():
    caster = _floor_and(((0, 0, 0.5), (1.0, 1.0, 1.0)))  # the box stands in the floor's plane
    lights = [AreaLight((0.5, 0.0, 2.0), (0.5, 0, 0), (0, 0.5, 0), strength=1.0)]
    assert np.isfinite(bake(caster, lights).values).all()
