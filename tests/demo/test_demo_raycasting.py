# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from ps4pro_nerfstudio.demo.capture import look_at
from ps4pro_nerfstudio.demo.raycasting import Camera, RayCaster, render
from ps4pro_nerfstudio.demo.scene import Material, SceneBuilder
from ps4pro_nerfstudio.demo.textures import photograph

FORWARD = np.array([[1.0, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 0], [0, 0, 0, 1]])
"""A camera at the origin that looks along y, its picture upright."""


def _builder(texture: np.ndarray, **options) -> SceneBuilder:
    builder = SceneBuilder(np.random.default_rng(0), **options)
    builder.texture(texture.astype(np.float32))
    return builder


def _noise(size: int) -> np.ndarray:
    return np.random.default_rng(1).random((size, size, 3))


def _wall(builder: SceneBuilder, distance: float, half: float, material: Material) -> None:
    corner = (-half, distance, half)
    builder.quad("wall", corner, (2 * half, 0, 0), (0, 0, -2 * half), material)


def test_a_picture_that_fills_the_view_is_reproduced():
    """Texels meet pixel centres one to one, so orientation and the half pixel must be right."""
    cat = photograph("cat")
    builder = _builder(cat)
    _wall(builder, distance=2.0, half=1.0, material=Material(0))
    camera = Camera(512, 512, 512.0, FORWARD)
    rendering = render(RayCaster(builder.build()), camera, supersampling=1)
    np.testing.assert_allclose(rendering.image, cat, atol=1e-5)
    np.testing.assert_allclose(rendering.depth, 2.0, rtol=1e-12)


def test_projection_inverts_rays():
    camera = Camera(40, 30, 33.0, look_at(np.array([1.0, -2.0, 1.5]), np.array([0.2, 3.0, 0.4])))
    pixels = camera.pixel_centers()
    depth = np.random.default_rng(0).uniform(0.5, 4.0, pixels.shape[:2])
    points = camera.center + depth[..., None] * camera.directions(pixels)
    found, found_depth = camera.project(points)
    np.testing.assert_allclose(found, pixels, atol=1e-9)
    np.testing.assert_allclose(found_depth, depth, rtol=1e-12)


def test_depth_of_a_slanted_plane_is_exact():
    """The plane y = 3 + x / 2 meets the ray (x, y, z) = d (a, 1, .) at d = 3 / (1 - a / 2)."""
    builder = _builder(_noise(8))
    builder.quad("plane", (-8, -1, 9), (16, 8, 0), (0, 0, -18), Material(0))
    camera = Camera(31, 17, 20.0, FORWARD)
    rendering = render(RayCaster(builder.build()), camera)
    slope = (np.arange(31) + 0.5 - 15.5) / 20.0
    expected = np.broadcast_to(3.0 / (1.0 - slope / 2.0), (17, 31))
    np.testing.assert_allclose(rendering.depth, expected, rtol=1e-12)


def test_nothing_hit_is_background_at_infinity():
    builder = _builder(_noise(8))
    _wall(builder, distance=2.0, half=0.1, material=Material(0))
    rendering = render(
        RayCaster(builder.build()), Camera(16, 16, 8.0, FORWARD), background=(0.2, 0.4, 0.6)
    )
    np.testing.assert_allclose(rendering.image[0, 0], (0.2, 0.4, 0.6), rtol=1e-6)
    assert np.isinf(rendering.depth[0, 0])
    assert rendering.surface[0, 0] == rendering.triangle[0, 0] == -1


@pytest.mark.parametrize("tilt", [0.0, 1.2])
def test_structure_below_the_pixel_becomes_its_mean(tilt):
    """White noise far finer than the pixels, seen straight on or at a grazing angle, is grey."""
    builder = _builder(_noise(256))
    across = np.array([np.cos(tilt), np.sin(tilt), 0.0]) * 40.0
    corner = np.array([0.0, 20.0, 20.0]) - across / 2.0
    builder.quad("wall", corner, across, (0, 0, -40.0), Material(0, (0.8, 0.8)))
    camera = Camera(24, 24, 100.0, FORWARD)
    image = render(RayCaster(builder.build()), camera, supersampling=1).image
    assert abs(float(image.mean()) - 0.5) < 0.01
    # Point sampling would leave the deviation of the noise, 0.29; at 0.2 m a pixel spans 64 texels.
    assert image.std() < 0.02


def test_a_grazing_view_keeps_structure_across_the_line_of_sight():
    """Stripes along the view, eight pixels wide: a filter as wide as long would wash them out."""
    stripes = np.zeros((64, 64, 3))
    stripes[:, ::2] = 1.0
    builder = _builder(stripes)
    builder.quad("floor", (-8, 26, -1), (16, 0, 0), (0, -24, 0), Material(0, (16.0, 16.0)))
    camera = Camera(64, 4, 300.0, FORWARD)
    down = FORWARD.copy()
    down[:3, :3] = look_at(np.zeros(3), np.array([0.0, 9.0, -1.0]))[:3, :3]
    camera = Camera(64, 4, 300.0, down)
    row = render(RayCaster(builder.build()), camera).image[2, :, 0]
    assert row.max() - row.min() > 0.6


@pytest.mark.parametrize("yaw", [0.0, 0.7])
def test_charts_invert_positions_on_planar_surfaces(yaw):
    builder = _builder(_noise(8))
    builder.box("box", (0.1, 3.0, -0.2), (1.0, 0.8, 1.2), Material(0), yaw_rad=yaw)
    scene = builder.build()
    pose = look_at(np.array([1.6, 0.0, 1.5]), np.array([0.1, 3.0, -0.2]))
    camera = Camera(40, 40, 60.0, pose)
    rendering = render(RayCaster(scene), camera)
    hit = rendering.triangle >= 0
    faces = rendering.triangle[hit]
    positions = camera.center + rendering.depth[hit][:, None] * camera.directions(
        camera.pixel_centers()[hit]
    )
    offset = positions - scene.vertices[scene.faces[faces, 0]]
    chart = scene.chart_origin[faces] + np.einsum("fij,fj->fi", scene.chart_gradient[faces], offset)
    assert len(set(scene.face_surface[faces])) == 3
    assert chart.min() > -1e-9
    assert chart.max() < 1.0 + 1e-9
    for surface in set(scene.face_surface[faces].tolist()):
        mine = scene.face_surface[faces] == surface
        s, t = chart[mine].T
        back, normal = scene.surfaces[surface].chart(s, t)
        np.testing.assert_allclose(back, positions[mine], atol=1e-9)
        # Outside is where the camera is.
        assert ((camera.center - back) * normal).sum(axis=1).min() > 0.0


@pytest.mark.parametrize("shape", ["sphere", "cylinder"])
def test_textures_close_around_round_shapes(shape):
    """An even number of mirrored copies: the colour left of the seam continues right of it."""
    builder = _builder(photograph("cat"), finest_detail_m=0.05)
    material = Material(0, (0.55, 0.5))
    if shape == "sphere":
        builder.sphere("shape", (0, 0, 0), 0.5, material)
    else:
        builder.cylinder("shape", (0, 0, -1), 0.5, 2.0, material)
    caster = RayCaster(builder.build())
    # The seam s = 0 = 1 lies at +x: the middle column of a camera that looks along -x.
    camera = Camera(64, 32, 300.0, look_at(np.array([4.0, 0.0, 0.0]), np.zeros(3)))
    image = render(caster, camera, supersampling=1).image
    steps = np.abs(np.diff(image, axis=1)).mean(axis=(0, 2))
    assert steps[31] < 2.0 * np.median(steps) + 0.01


def test_finest_detail_is_a_lower_bound_on_blur():
    def contrast(detail: float) -> float:
        builder = _builder(_noise(256), finest_detail_m=detail)
        _wall(builder, distance=1.0, half=1.0, material=Material(0))
        camera = Camera(256, 256, 256.0, FORWARD)
        return float(render(RayCaster(builder.build()), camera).image[64:192, 64:192].std())

    assert contrast(0.0) > 2.0 * contrast(0.03) > 4.0 * contrast(0.12)


def test_sees_what_is_inside_and_not_hidden():
    builder = _builder(_noise(8))
    _wall(builder, distance=4.0, half=4.0, material=Material(0))
    builder.box("box", (0.0, 2.0, 0.0), (0.5, 0.5, 0.5), Material(0))
    caster = RayCaster(builder.build())
    camera = Camera(20, 20, 20.0, FORWARD)
    points = np.array(
        [
            [0.0, 4.0, 0.0],  # behind the box
            [1.5, 4.0, 0.0],  # beside it
            [3.5, 4.0, 0.0],  # outside the picture
            [0.0, 1.75, 0.0],  # front of the box
            [0.0, 2.25, 0.0],  # its back
            [0.0, -1.0, 0.0],  # behind the camera
        ]
    )
    assert caster.sees(camera, points).tolist() == [False, True, False, True, False, False]
