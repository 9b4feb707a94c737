# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from ps4pro_nerfstudio.demo.capture import hand_held_capture, look_at
from ps4pro_nerfstudio.demo.raycasting import Camera, render
from ps4pro_nerfstudio.demo.room import Room, build_room


@pytest.fixture(scope="module", params=[0, 1, 2, 3])
def room(request) -> Room:
    return build_room(np.random.default_rng(request.param), baked=False)


def test_rooms_are_closed_and_hold_many_surfaces_in_view(room):
    capture = hand_held_capture(room, 6, 2, np.random.default_rng(0))
    for pose in capture.train:
        rendering = render(room.caster, Camera(96, 54, 68.0, pose), supersampling=1)
        assert (rendering.surface >= 0).all()
        assert len(np.unique(rendering.surface)) > 60
        # Depth edges: where parallax and occlusion are.
        jumps = np.abs(np.diff(np.log(rendering.depth), axis=1)) > 0.1
        assert jumps.mean() > 0.03


def test_rooms_are_textured_everywhere(room):
    """Hardly any 8 x 8 block of a picture is nearly flat, even without shadows."""
    capture = hand_held_capture(room, 4, 1, np.random.default_rng(0))
    deviations = []
    for pose in capture.train:
        image = render(room.caster, Camera(320, 176, 228.0, pose)).image.mean(axis=2)
        deviations.append(image.reshape(22, 8, 40, 8).std(axis=(1, 3)))
    flat = np.mean(np.stack(deviations) < 2.0 / 255.0)
    assert flat < 0.02


def test_the_same_generator_state_gives_the_same_room():
    first, second, other = (
        build_room(np.random.default_rng(seed), baked=False).caster.scene for seed in (5, 5, 6)
    )
    np.testing.assert_array_equal(first.vertices, second.vertices)
    np.testing.assert_array_equal(first.pyramids.texels, second.pyramids.texels)
    assert [s.uv_offset for s in first.surfaces] == [s.uv_offset for s in second.surfaces]
    assert first.vertices.shape != other.vertices.shape or not np.allclose(
        first.vertices, other.vertices
    )
    assert not np.array_equal(first.pyramids.texels, other.pyramids.texels)


def test_free_space_excludes_walls_furniture_and_outside(room):
    table = next(s for s in room.caster.scene.surfaces if s.name == "table/top/top")
    half = np.array([0.5])
    on_table = table.chart(half, half)[0]
    _, y, z = room.size_m
    places = np.concatenate(
        [on_table, [[0.0, -y / 2 + 0.1, 1.4], [0.0, -y / 2 - 1.0, 1.4], [0.0, 0.0, z + 1.0]]]
    )
    assert not room.is_free(places, 0.25).any()
    assert room.is_free(np.array([[0.0, -y / 2 + 0.5, 1.4]]), 0.25).all()


def test_look_at_puts_the_target_in_the_middle_and_up_is_up():
    position, target = np.array([1.0, -2.0, 1.5]), np.array([0.3, 2.0, 0.8])
    pose = look_at(position, target)
    np.testing.assert_allclose(pose[:3, :3].T @ pose[:3, :3], np.eye(3), atol=1e-12)
    assert np.linalg.det(pose[:3, :3]) == pytest.approx(1.0)
    camera = Camera(64, 48, 50.0, pose)
    pixel, depth = camera.project(np.array([target, (*target[:2], target[2] + 0.1)]))
    np.testing.assert_allclose(pixel[0], (32.0, 24.0), atol=1e-9)
    assert depth[0] == pytest.approx(np.linalg.norm(target - position))
    assert pixel[1, 1] < pixel[0, 1]
    assert pixel[1, 0] == pytest.approx(pixel[0, 0])


def test_roll_turns_the_picture_clockwise_about_its_middle():
    """A roll of +90 degrees: what was above the middle is now at its left."""
    pose = look_at(np.zeros(3), np.array([0.0, 1.0, 0.0]), roll_rad=np.pi / 2.0)
    pixel, _ = Camera(64, 48, 50.0, pose).project(np.array([0.0, 1.0, 0.1]))
    np.testing.assert_allclose(pixel, (32.0 - 5.0, 24.0), atol=1e-9)


@pytest.mark.parametrize("num_train", [2, 3, 24])
def test_test_views_stand_beside_the_path(room, num_train):
    capture = hand_held_capture(room, num_train, 8, np.random.default_rng(3))
    assert capture.train.shape == (num_train, 4, 4)
    assert capture.test.shape == (8, 4, 4)
    train, test = capture.train[:, :3, 3], capture.test[:, :3, 3]
    nearest = np.linalg.norm(test[:, None] - train[None], axis=2).min(axis=1)
    assert nearest.min() > 0.03
    if num_train == 24:
        start, edge = train[:-1], np.diff(train, axis=0)
        along = np.einsum("nik,ik->ni", test[:, None] - start, edge) / (edge**2).sum(axis=1)
        foot = start + np.clip(along, 0.0, 1.0)[..., None] * edge
        beside = np.linalg.norm(test[:, None] - foot, axis=2).min(axis=1)
        assert beside.min() > 0.03
        assert beside.max() < 0.3


def test_test_views_show_what_two_training_views_saw(room):
    capture = hand_held_capture(room, 24, 8, np.random.default_rng(2))
    training = [Camera(48, 27, 34.3, pose) for pose in capture.train]
    shares = []
    for pose in capture.test:
        camera = Camera(48, 27, 34.3, pose)
        rays = camera.directions(camera.pixel_centers()).reshape(-1, 3)
        points = camera.center + room.caster.cast(camera.center, rays)[1][:, None] * rays
        views = sum(room.caster.sees(view, points).astype(int) for view in training)
        shares.append(np.mean(views >= 2))
    assert np.mean(shares) > 0.97


def test_a_path_is_smooth_and_hand_held(room):
    capture = hand_held_capture(room, 24, 1, np.random.default_rng(0))
    steps = np.diff(capture.train[:, :3, 3], axis=0)
    lengths = np.linalg.norm(steps, axis=1)
    assert 0.05 < lengths.min() < lengths.max() < 0.4
    jerk = np.linalg.norm(np.diff(steps, axis=0), axis=1)
    assert 0.005 < np.median(jerk) < 0.1
    forward = capture.train[:, :3, 2]
    assert np.arccos((forward[1:] * forward[:-1]).sum(axis=1)).max() < np.deg2rad(15.0)
