# SPDX-License-Identifier: Apache-2.0
import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import tyro
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
from PIL import Image

from ps4pro_nerfstudio.demo import DemoScene
from ps4pro_nerfstudio.demo.dataset import DEPTH_UNIT_M, MARKER_NAME
from ps4pro_nerfstudio.messages import InputError

TINY = {"size": (48, 32), "num_train_views": 3, "num_test_views": 1}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("demo") / "room"
    return DemoScene(size=(240, 135), num_train_views=9, num_test_views=3).write(output)


def _contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def _outputs(folder: Path, split: str, **options):
    config = NerfstudioDataParserConfig(data=folder, load_3D_points=True, **options)
    return config.setup().get_dataparser_outputs(split)


# ------------------------------------------------------------------ what nerfstudio makes of it


def test_the_data_parser_finds_all_three_lists(folder):
    train, val, test = (_outputs(folder, split) for split in ("train", "val", "test"))
    assert (len(train.image_filenames), len(val.image_filenames)) == (9, 3)
    assert val.image_filenames == test.image_filenames
    assert not set(train.image_filenames) & set(test.image_filenames)
    for outputs in (train, test):
        assert all(path.is_file() for path in outputs.image_filenames)
        assert (outputs.cameras.width == 240).all()
        assert (outputs.cameras.height == 135).all()
    assert not np.isin(
        test.cameras.camera_to_worlds[:, :, 3].numpy(),
        train.cameras.camera_to_worlds[:, :, 3].numpy(),
    ).any()


@pytest.mark.parametrize("options", [{}, {"orientation_method": "none", "center_method": "none"}])
def test_points_lie_at_the_depths_of_the_pictures(folder, options):
    """Holds in the frame that nerfstudio turned, centred and scaled, too."""
    outputs = _outputs(folder, "train", **options)
    points = outputs.metadata["points3D_xyz"].double().numpy()
    colors = outputs.metadata["points3D_rgb"].numpy() / 255.0
    assert len(points) > 500
    views_of_point = np.zeros(len(points))
    color_errors = []
    for index, path in enumerate(outputs.image_filenames):
        pixels, depth = _project(outputs, index, points)
        inside = (depth > 0) & (pixels >= 0).all(axis=1) & (pixels < (240, 135)).all(axis=1)
        column, row = pixels[inside].astype(int).T
        truth = _read_depth(folder, path.name)[row, column] * outputs.dataparser_scale
        agree = np.abs(depth[inside] / truth - 1.0) < 0.05
        views_of_point[np.flatnonzero(inside)[agree]] += 1
        image = np.asarray(Image.open(path)) / 255.0
        color_errors.append(np.abs(image[row, column] - colors[inside])[agree].mean())
    assert np.mean(views_of_point >= 2) > 0.97
    assert np.mean(color_errors) < 0.08


@pytest.mark.parametrize(("source", "target"), [(4, 3), (5, 7)])
def test_depth_and_poses_carry_one_picture_into_another(folder, source, target):
    """Reads the files alone: poses, intrinsics, depth and the half-pixel rule must all agree."""
    psnr = _warp_psnr(folder, source, target, shift_px=0.0)
    assert psnr > 28.0
    # The test would notice pixel centres on whole numbers.
    assert psnr > _warp_psnr(folder, source, target, shift_px=0.5) + 2.0


def _project(outputs, index, points):
    """Pixel positions and depths, straight from nerfstudio's cameras (OpenGL axes)."""
    pose = outputs.cameras.camera_to_worlds[index].double().numpy()
    in_camera = (points - pose[:, 3]) @ pose[:, :3]
    depth = -in_camera[:, 2]
    camera = outputs.cameras[index]
    x = float(camera.cx) + float(camera.fx) * in_camera[:, 0] / depth
    y = float(camera.cy) - float(camera.fy) * in_camera[:, 1] / depth
    return np.stack([x, y], axis=1), depth


def _read_depth(folder: Path, name: str) -> np.ndarray:
    values = cv2.imread(str(folder / "depth" / name), cv2.IMREAD_UNCHANGED)
    assert values.dtype == np.uint16
    return values.astype(np.float64) * DEPTH_UNIT_M


def _warp_psnr(folder: Path, source: int, target: int, shift_px: float) -> float:
    """PSNR of the source picture, fetched into the target's pixels, where both see the surface."""
    meta = json.loads((folder / "transforms.json").read_text())
    frames = {Path(frame["file_path"]).name: frame for frame in meta["frames"]}
    names = [Path(name).name for name in meta["train_filenames"]]
    poses = [np.array(frames[names[k]]["transform_matrix"]) for k in (source, target)]
    images = [
        np.asarray(Image.open(folder / "images" / names[k])).astype(np.float32) / 255.0
        for k in (source, target)
    ]
    depths = [_read_depth(folder, names[k]).astype(np.float32) for k in (source, target)]

    column, row = np.meshgrid(np.arange(meta["w"]), np.arange(meta["h"]))
    x = (column + 0.5 - meta["cx"]) / meta["fl_x"]
    y = (row + 0.5 - meta["cy"]) / meta["fl_y"]
    in_target = np.stack([x, -y, -np.ones_like(x)], axis=-1) * depths[1][..., None]
    world = in_target @ poses[1][:3, :3].T + poses[1][:3, 3]
    source_x, source_y, source_z = np.moveaxis((world - poses[0][:3, 3]) @ poses[0][:3, :3], -1, 0)
    depth = np.negative(source_z)
    found_x = meta["cx"] + meta["fl_x"] * source_x / depth
    found_y = meta["cy"] - meta["fl_y"] * source_y / depth
    map_x = (found_x - 0.5 + shift_px).astype(np.float32)
    map_y = (found_y - 0.5 + shift_px).astype(np.float32)
    window = np.ones((3, 3), dtype=np.uint8)
    # Co-visible: the source's depth agrees at all pixels that the look-up blends.
    nearest = cv2.remap(cv2.erode(depths[0], window), map_x, map_y, cv2.INTER_NEAREST)
    farthest = cv2.remap(cv2.dilate(depths[0], window), map_x, map_y, cv2.INTER_NEAREST)
    both = (nearest > 0.96 * depth) & (farthest < 1.04 * depth)
    # Pixels that a depth edge crosses mix two surfaces in the target.
    both &= cv2.dilate(depths[1], window) < 1.06 * cv2.erode(depths[1], window)
    both &= (map_x >= 0) & (map_x <= meta["w"] - 1) & (map_y >= 0) & (map_y <= meta["h"] - 1)
    assert both.mean() > 0.4
    warped = cv2.remap(images[0], map_x, map_y, cv2.INTER_LINEAR)
    return float(-10.0 * np.log10(np.mean((warped - images[1])[both] ** 2)))


# ------------------------------------------------------------------------------- the files


def test_options_and_seed_determine_every_byte(tmp_path):
    """The second run is another process, with another hash seed."""
    first = DemoScene(**TINY, seed=7).write(tmp_path / "first")
    program = (
        "import sys; from ps4pro_nerfstudio.demo import DemoScene; from pathlib import Path; "
        f"DemoScene(**{TINY!r}, seed=7).write(Path(sys.argv[1]))"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "second")], check=True)
    contents = _contents(first)
    assert contents == _contents(tmp_path / "second")
    assert len(contents) == 2 * 4 + 3

    other = _contents(DemoScene(**TINY, seed=8).write(tmp_path / "other"))
    assert set(other) == set(contents)
    assert all(other[name] != contents[name] for name in contents)


def test_evaluation_depth_is_not_part_of_the_dataset(folder):
    assert "depth" not in (folder / "transforms.json").read_text()
    images, depths = (sorted(p.name for p in (folder / d).iterdir()) for d in ("images", "depth"))
    assert images == depths
    assert len(images) == 12
    assert json.loads((folder / MARKER_NAME).read_text())["depth"]["unit_m"] == DEPTH_UNIT_M


def test_other_users_may_read_the_folder(folder):
    assert folder.stat().st_mode & 0o555 == 0o555


# ---------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("size", (31, 100)),
        ("size", (100, 31)),
        ("size", (9000, 100)),
        ("num_train_views", 1),
        ("num_train_views", 0),
        ("num_test_views", 0),
        ("seed", -1),
        ("num_points", 0),
        ("point_noise_px", -0.1),
        ("point_noise_px", float("nan")),
        ("supersampling", 0),
        ("finest_detail_m", -1.0),
    ],
)
def test_options_out_of_range_are_named(tmp_path, option, value):
    with pytest.raises(InputError, match=f"--{option.replace('_', '-')} must be"):
        DemoScene(**{option: value}).write(tmp_path / "out")
    assert not any(tmp_path.iterdir())


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "photo.jpg").write_bytes(b"precious")
    for overwrite in (False, True):
        with pytest.raises(InputError, match="another folder"):
            DemoScene(**TINY, overwrite=overwrite).write(tmp_path / "mine")
    assert _contents(tmp_path) == {str(Path("mine") / "photo.jpg"): b"precious"}


def test_a_file_in_the_way_is_refused(tmp_path):
    (tmp_path / "out").write_text("text")
    with pytest.raises(InputError, match="is a file"):
        DemoScene(**TINY).write(tmp_path / "out")


def test_a_demo_scene_is_replaced_only_on_request(tmp_path):
    output = tmp_path / "new" / "scene"
    output.mkdir(parents=True)  # an empty folder is free
    DemoScene(**TINY).write(output)
    before = _contents(output)
    (output / "stale.txt").write_text("from a training run")
    with pytest.raises(InputError, match="--overwrite"):
        DemoScene(**TINY).write(output)
    DemoScene(**TINY, overwrite=True).write(output)
    assert _contents(output) == before
    assert [path.name for path in output.parent.iterdir()] == ["scene"]


def test_a_failure_leaves_nothing_behind(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ps4pro_nerfstudio.demo.dataset._write_points", full)
    with pytest.raises(OSError, match="No space"):
        DemoScene(**TINY).write(tmp_path / "out")
    assert not any(tmp_path.iterdir())


def test_options_are_read_from_the_command_line():
    parsed = tyro.cli(DemoScene, args=["--size", "64", "48", "--num-train-views", "5"])
    assert parsed == DemoScene(size=(64, 48), num_train_views=5)
