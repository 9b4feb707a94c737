# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from ps4pro_nerfstudio.initialization import kept
from ps4pro_nerfstudio.initialization import seed_points as module
from ps4pro_nerfstudio.initialization.points import SeedPointsConfig
from ps4pro_nerfstudio.initialization.seed_points import seed_points
from ps4pro_nerfstudio.messages import InputError
from tests.initialization.scenes import plane_scene


@pytest.fixture(scope="module")
def scene():
    return plane_scene(num_views=2, width=160, height=120)


@pytest.fixture
def said(monkeypatch):
    lines: list[str] = []
    monkeypatch.setattr(module, "say", lines.append)
    return lines


@pytest.fixture
def warned(monkeypatch):
    lines: list[str] = []
    monkeypatch.setattr(kept, "warn", lines.append)
    return lines


@pytest.fixture
def triangulations(monkeypatch):
    """Counts how often points are really triangulated."""
    calls: list[int] = []
    real = module.triangulate_points

    def counting(*args, **kwargs):
        calls.append(1)
        return real(*args, **kwargs)

    monkeypatch.setattr(module, "triangulate_points", counting)
    return calls


def blank(scene) -> dict:
    return {**scene.arguments, "images": [np.full_like(i, 90) for i in scene.images]}


def assert_same(first, second):
    np.testing.assert_array_equal(first.xyz, second.xyz)
    np.testing.assert_array_equal(first.rgb, second.rgb)
    np.testing.assert_array_equal(first.track_lengths, second.track_lengths)
    np.testing.assert_array_equal(first.reprojection_errors_px, second.reprojection_errors_px)


def test_importing_is_cheap():
    heavy = "{'cv2', 'numba', 'pycolmap', 'torch'}"
    code = (
        "import sys, ps4pro_nerfstudio.initialization.seed_points; "
        f"sys.exit(', '.join({heavy} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stderr.strip() == ""


def test_what_was_done_is_said_in_one_line(scene, said):
    points = seed_points(**scene.arguments, config=SeedPointsConfig(min_points=20))
    assert points.method == "triangulated"
    assert len(said) == 1
    assert said[0].startswith(f"triangulated {len(points):,} points from 2 train views in ")
    assert "median reprojection error" in said[0]


def test_too_few_points_fall_back_to_random_ones(scene, said):
    config = SeedPointsConfig(num_random=500)
    points = seed_points(**blank(scene), config=config)
    assert points.method == "random"
    assert len(points) == 500
    assert np.all(points.track_lengths == 0)
    assert np.all(points.rgb == 90)  # The colour of the photographs.
    assert len(said) == 1
    assert "only 0 points" in said[0]
    assert "500 random points" in said[0]


def test_method_triangulate_does_not_fall_back(scene, said):
    with pytest.raises(InputError, match="Only 0 points"):
        seed_points(**blank(scene), config=SeedPointsConfig(method="triangulate"))


def test_method_random_does_not_triangulate(scene, said, triangulations):
    points = seed_points(**scene.arguments, config=SeedPointsConfig("random", num_random=50))
    assert len(points) == 50
    assert triangulations == []
    assert len(said) == 1


def test_one_view_gets_random_points(scene, said):
    one = {key: value[:1] for key, value in scene.arguments.items()}
    points = seed_points(**one, config=SeedPointsConfig(num_random=80))
    assert points.method == "random"
    assert len(said) == 1
    assert "one train view" in said[0]
    with pytest.raises(InputError, match="add more views"):
        seed_points(**one, config=SeedPointsConfig(method="triangulate"))


def test_colors_of_random_points_come_from_valid_pixels(scene, said):
    """Left halves are red and valid, right halves are green and invalid."""
    image = np.zeros((120, 160, 3), np.uint8)
    image[:, :80] = [200, 0, 0]
    image[:, 80:] = [0, 200, 0]
    valid = np.zeros((120, 160), bool)
    valid[:, :80] = True
    arguments = {**scene.arguments, "images": [image] * 2, "valid": [valid] * 2}
    points = seed_points(**arguments, config=SeedPointsConfig("random", num_random=400))
    red, grey = points.rgb[:, 0] == 200, np.all(points.rgb == 128, axis=1)
    assert np.all(red | grey)
    assert red.sum() > 50
    assert grey.sum() > 50


def test_the_second_time_comes_from_the_cache(scene, said, triangulations, tmp_path):
    config = SeedPointsConfig(min_points=20)
    first = seed_points(**scene.arguments, config=config, cache_folder=tmp_path / "new")
    again = seed_points(**scene.arguments, config=config, cache_folder=tmp_path / "new")
    assert len(triangulations) == 1
    assert_same(first, again)
    assert "from the cache" in said[1]
    assert len(list((tmp_path / "new").iterdir())) == 1


def test_other_input_has_another_cache_file(scene, said, triangulations, tmp_path):
    config = SeedPointsConfig(min_points=0)
    poses = scene.camera_to_worlds * [1, 1, 1, 0.9]
    seed_points(**blank(scene), config=config, cache_folder=tmp_path)
    masks = {**blank(scene), "valid": [np.zeros((120, 160), bool), None]}
    moved = {**blank(scene), "camera_to_worlds": poses}
    seed_points(**masks, config=config, cache_folder=tmp_path)
    seed_points(**moved, config=config, cache_folder=tmp_path)
    seed_points(**blank(scene), config=SeedPointsConfig(seed=1), cache_folder=tmp_path)
    assert len(triangulations) == 4
    assert len(list(tmp_path.iterdir())) == 4


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "text", "wrong shape"])
def test_a_damaged_cache_is_rebuilt_with_one_warning(
    scene, said, warned, triangulations, tmp_path, damage
):
    config = SeedPointsConfig(min_points=20)
    first = seed_points(**scene.arguments, config=config, cache_folder=tmp_path)
    (file,) = tmp_path.iterdir()
    content = bytearray(file.read_bytes())
    if damage == "truncated":
        file.write_bytes(content[: len(content) // 2])
    elif damage == "flipped":
        content[300] ^= 255
        file.write_bytes(content)
    elif damage == "empty":
        file.write_bytes(b"")
    elif damage == "text":
        file.write_text("not an archive")
    else:
        with open(file, "wb") as stream:
            np.savez(
                stream, xyz=first.xyz[:5], rgb=first.rgb, track_lengths=first.track_lengths,
                reprojection_errors_px=first.reprojection_errors_px,
            )  # fmt: skip
    again = seed_points(**scene.arguments, config=config, cache_folder=tmp_path)
    assert_same(first, again)
    assert len(warned) == 1
    assert len(triangulations) == 2
    seed_points(**scene.arguments, config=config, cache_folder=tmp_path)
    assert len(warned) == 1
    assert len(triangulations) == 2


def test_an_unusable_cache_folder_costs_one_warning(scene, said, warned, tmp_path):
    (tmp_path / "file").write_text("")
    points = seed_points(
        **scene.arguments, config=SeedPointsConfig(min_points=20), cache_folder=tmp_path / "file"
    )
    assert points.method == "triangulated"
    assert len(warned) == 1
    assert "going on without" in warned[0]


def test_a_full_disk_leaves_nothing_half_written(scene, said, warned, tmp_path, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(kept.os, "replace", full)
    points = seed_points(
        **scene.arguments, config=SeedPointsConfig(min_points=20), cache_folder=tmp_path
    )
    assert len(points) > 20
    assert len(warned) == 1
    assert list(tmp_path.iterdir()) == []
