# SPDX-License-Identifier: Apache-2.0
"""The same wall as a nerfstudio, COLMAP, Blender and LLFF capture, few views of which train."""

from __future__ import annotations

import json
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nerfstudio.data.dataparsers.base_dataparser import DataparserOutputs
from nerfstudio.data.dataparsers.colmap_dataparser import ColmapDataParserConfig
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
from PIL import Image
from scipy.spatial.transform import Rotation

from ps4pro_nerfstudio.dataparsers.sparse_views import (
    SparseViews,
    SparseViewsDataParserConfig,
    sparse_views,
)
from ps4pro_nerfstudio.messages import InputError
from tests.conftest import look_at, wall_image, write_capture

COUNT, WIDTH, HEIGHT, FOCAL = 12, 64, 48, 57.6
TEST = [0, 8]  # of twelve photos


def wall_poses(count: int = COUNT) -> list[np.ndarray]:
    """Cameras on an arc before the wall, camera to world in OpenGL axes."""
    angles = np.linspace(-0.25, 0.25, count)
    return [look_at(np.array([2 * np.sin(a), 2 * np.cos(a), 0.1]), np.zeros(3)) for a in angles]


def write_colmap(
    folder: Path, names: list[str] | None = None, place: str = "sparse/0", binary: bool = False
) -> dict[int, set[int]]:
    """Write a COLMAP model as text or binary; return the views that saw each of its points.

    Images get the numbers 120, 110, ... 10, so that these and the file order differ. Point p stands
    at x = p / 10 on the wall and was seen by the views p, p + 1 and p + 2, the last one by views 0
    and 8 only.
    """
    names = names or [f"photo{index}.png" for index in range(COUNT)]
    model = folder / place
    model.mkdir(parents=True)
    tracks = {p: {p, p + 1, p + 2} for p in range(len(names) - 2)}
    tracks[len(tracks)] = set(TEST)
    lines = []
    for view, (name, pose) in enumerate(zip(names, wall_poses(len(names)), strict=True)):
        file = folder / "images" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(wall_image(pose, FOCAL, WIDTH, HEIGHT)).save(file)
        to_camera = np.linalg.inv(pose @ np.diag([1.0, -1.0, -1.0, 1.0]))
        x, y, z, w = Rotation.from_matrix(to_camera[:3, :3]).as_quat()
        numbers = " ".join(map(str, [w, x, y, z, *to_camera[:3, 3]]))
        lines.append(f"{10 * (len(names) - view)} {numbers} 1 {name}")
        seen = [p for p in tracks if view in tracks[p]]
        lines.append(" ".join(f"1.0 2.0 {p + 1}" for p in seen))
    (model / "images.txt").write_text("\n".join(lines) + "\n")
    (model / "cameras.txt").write_text(
        f"1 PINHOLE {WIDTH} {HEIGHT} {FOCAL} {FOCAL} {WIDTH / 2} {HEIGHT / 2}\n"
    )
    points = []
    for p, track in tracks.items():
        pairs = []
        for view in sorted(track):
            index = [q for q in tracks if view in tracks[q]].index(p)
            pairs += [10 * (len(names) - view), index]
        points.append(" ".join(map(str, [p + 1, p / 10, 0.0, 0.0, p, 0, 0, 0.5, *pairs])))
    (model / "points3D.txt").write_text("\n".join(points) + "\n")
    if binary:
        import pycolmap

        pycolmap.Reconstruction(str(model)).write_binary(str(model))
        for text in list(model.glob("*.txt")):
            text.unlink()
    return tracks


def write_blender(folder: Path, train: int = 10, test: int = 4) -> None:
    for split, count in (("train", train), ("test", test)):
        frames = []
        (folder / split).mkdir(parents=True)
        for index, pose in enumerate(wall_poses(count)):
            pixels = np.zeros((HEIGHT, WIDTH, 4), np.uint8)
            Image.fromarray(pixels).save(folder / split / f"r_{index}.png")
            frames.append({"file_path": f"./{split}/r_{index}", "transform_matrix": pose.tolist()})
        angle = 2 * np.arctan(WIDTH / 2 / FOCAL)
        meta = {"camera_angle_x": angle, "frames": frames}
        (folder / f"transforms_{split}.json").write_text(json.dumps(meta))


def write_llff_wall(folder: Path) -> None:
    (folder / "images").mkdir(parents=True)
    rows = []
    for index, pose in enumerate(wall_poses()):
        right, up, back, centre = pose[:3].T
        matrix = np.stack([-up, right, back, centre, [HEIGHT, WIDTH, FOCAL]], axis=1)
        rows.append([*matrix.ravel(), 1.0, 4.0])
        image = Image.fromarray(wall_image(pose, FOCAL, WIDTH, HEIGHT))
        image.save(folder / f"images/{index:03d}.png")
    np.save(folder / "poses_bounds.npy", np.array(rows))


WRITERS = {
    "nerfstudio": write_capture,
    "colmap": write_colmap,
    "llff": write_llff_wall,
    "blender": write_blender,
}


def _parser(folder: Path, **options: Any) -> SparseViews:
    return SparseViewsDataParserConfig(data=folder, **options).setup()


def _names(outputs: DataparserOutputs, folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in outputs.image_filenames]


@pytest.mark.parametrize("kind", WRITERS)
def test_every_format_is_found_and_split(tmp_path, kind, capsys):
    WRITERS[kind](tmp_path)
    parser = _parser(tmp_path, views=4)
    train, val, test = (parser.get_dataparser_outputs(split) for split in ("train", "val", "test"))
    assert len(train.image_filenames) == len(train.cameras) == 4
    assert val.image_filenames == test.image_filenames
    assert len(val.image_filenames) == len(val.cameras) == (4 if kind == "blender" else 2)
    assert not set(train.image_filenames) & set(test.image_filenames)
    assert all(path.is_file() for path in [*train.image_filenames, *test.image_filenames])
    assert train.metadata["split"] == {
        "train": _names(train, tmp_path),
        "test": _names(test, tmp_path),
    }
    # A second parser, asked for the test views first, chooses the same.
    again = _parser(tmp_path, views=4, format=kind)
    assert again.get_dataparser_outputs("test").image_filenames == test.image_filenames
    assert torch.equal(
        again.get_dataparser_outputs("train").cameras.camera_to_worlds,
        train.cameras.camera_to_worlds,
    )
    assert capsys.readouterr().out.count("4 training and") == 2


@pytest.mark.parametrize("kind", WRITERS)
def test_cameras_stay_with_their_photographs(tmp_path, kind):
    """All views, moved back to the capture's own frame, have the poses they were taken from."""
    WRITERS[kind](tmp_path)
    parser = _parser(tmp_path)
    for split in ("train", "test"):
        outputs = parser.get_dataparser_outputs(split)
        cameras = outputs.cameras
        assert torch.allclose(cameras.fx, torch.tensor(FOCAL))
        assert (cameras.width == WIDTH).all()
        poses = outputs.transform_poses_to_original_space(
            cameras.camera_to_worlds.clone(), camera_convention="opengl"
        )
        for path, pose in zip(outputs.image_filenames, poses.numpy(), strict=True):
            if kind == "blender":
                number = int(path.stem.removeprefix("r_"))
                truth = wall_poses(10 if split == "train" else 4)[number]
                np.testing.assert_allclose(pose, truth[:3], atol=1e-4)
            else:
                seen = wall_image(pose, FOCAL, WIDTH, HEIGHT).astype(int)
                assert np.abs(seen - np.asarray(Image.open(path))).max() <= 2


@pytest.mark.parametrize("kind", WRITERS)
def test_the_frame_of_reference_does_not_depend_on_the_choice(tmp_path, kind):
    WRITERS[kind](tmp_path)
    few = _parser(tmp_path, views=3, selection="farthest-point").get_dataparser_outputs("test")
    many = _parser(tmp_path).get_dataparser_outputs("test")
    assert torch.equal(few.cameras.camera_to_worlds, many.cameras.camera_to_worlds)
    assert few.dataparser_scale == many.dataparser_scale


def test_nerfstudios_parsers_give_the_same_poses(tmp_path):
    """With the same views held out, nothing but the class differs."""
    write_capture(tmp_path / "nerfstudio")
    write_colmap(tmp_path / "colmap", [f"photo{i:02d}.png" for i in range(COUNT)])
    theirs: list[Any] = [
        NerfstudioDataParserConfig(data=tmp_path / "nerfstudio", eval_mode="interval"),
        ColmapDataParserConfig(data=tmp_path / "colmap", colmap_path=Path("sparse/0")),
    ]
    for config in theirs:
        upstream = config.setup().get_dataparser_outputs("train")
        ours = _parser(config.data).get_dataparser_outputs("train")
        where = {path: i for i, path in enumerate(upstream.image_filenames)}
        both = [where[path] for path in ours.image_filenames if path in where]
        mine = [i for i, path in enumerate(ours.image_filenames) if path in where]
        assert len(both) >= 8  # the two hold out two views each
        torch.testing.assert_close(
            upstream.cameras.camera_to_worlds[both], ours.cameras.camera_to_worlds[mine]
        )
        torch.testing.assert_close(upstream.cameras.fx[both], ours.cameras.fx[mine])
        assert ours.dataparser_scale == upstream.dataparser_scale


# ---------------------------------------------------------------- points


@pytest.mark.parametrize("place, binary", [("sparse/0", True), ("colmap/sparse/0", False)])
def test_points_that_test_views_alone_saw_are_left_out(tmp_path, place, binary):
    tracks = write_colmap(tmp_path, place=place, binary=binary)
    for options in ({}, {"views": 4}, {"every": 3}):
        train = _parser(tmp_path, **options).get_dataparser_outputs("train")
        views = {int(path.stem[5:]) for path in train.image_filenames}
        kept = [p for p, track in tracks.items() if len(track & views) >= 2]
        assert len(tracks) - 1 not in kept
        # The red of a point is its number.
        found = train.metadata.get("points3D_rgb", torch.zeros(0, 3))[:, 0].tolist()
        assert sorted(found) == kept
        if kept:
            scale, transform = train.dataparser_scale, train.dataparser_transform
            xyz = torch.tensor([[p / 10, 0.0, 0.0] for p in found])
            expected = (xyz @ transform[:, :3].T + transform[:, 3]) * scale
            torch.testing.assert_close(train.metadata["points3D_xyz"], expected)


def test_points_without_tracks_are_dropped_when_views_are_left_out(tmp_path, capsys):
    write_capture(tmp_path)
    whole = _parser(tmp_path).get_dataparser_outputs("train")
    assert len(whole.metadata["points3D_xyz"]) == 400
    assert "left out" not in capsys.readouterr().out
    for options in ({"views": 9}, {"every": 2}):
        outputs = _parser(tmp_path, **options).get_dataparser_outputs("train")
        assert not [key for key in outputs.metadata if key.startswith("points3D")]
        assert capsys.readouterr().out.count("left out") == 1
    bare = _parser(tmp_path, load_3D_points=False).get_dataparser_outputs("train")
    assert "points3D_xyz" not in bare.metadata


# ---------------------------------------------------------------- what belongs to a view


def test_masks_depth_and_intrinsics_follow_their_view(tmp_path):
    def edit(meta):
        shared = {key: meta.pop(key) for key in ("fl_x", "fl_y", "cx", "cy", "w", "h")}
        for index, frame in enumerate(meta["frames"]):
            frame.update(shared, fl_x=100.0 + index, k1=index / 100)
            frame["mask_path"] = f"masks/{index:03d}.png"
            frame["depth_file_path"] = f"depth/{index:03d}.png"

    write_capture(tmp_path, edit=edit)
    outputs = _parser(tmp_path, views=5, selection="farthest-point").get_dataparser_outputs("train")
    numbers = [int(path.stem) for path in outputs.image_filenames]
    assert outputs.mask_filenames == [tmp_path / f"masks/{n:03d}.png" for n in numbers]
    assert outputs.metadata["depth_filenames"] == [tmp_path / f"depth/{n:03d}.png" for n in numbers]
    assert outputs.cameras.fx[:, 0].tolist() == [100.0 + n for n in numbers]
    assert outputs.cameras.distortion_params is not None
    torch.testing.assert_close(
        outputs.cameras.distortion_params[:, 0], torch.tensor([n / 100 for n in numbers])
    )


def test_depth_bounds_follow_their_view(tmp_path):
    """Rows are in plain order, "photo10" before "photo2"; views are not."""
    write_llff_wall(tmp_path)
    numbers = sorted(range(COUNT), key=str)
    for row in range(COUNT):
        file = tmp_path / f"images/{row:03d}.png"
        file.rename(file.with_name(f"photo{numbers[row]}.png"))
    rows = np.load(tmp_path / "poses_bounds.npy")
    rows[:, 15:] = [[1 + number / 10, 20 + number] for number in numbers]
    np.save(tmp_path / "poses_bounds.npy", rows)
    parser = _parser(tmp_path, views=4, selection="farthest-point")
    for split in ("train", "val", "test", "between"):
        outputs = parser.get_dataparser_outputs(split)
        shown = [int(path.stem[5:]) for path in outputs.image_filenames]
        expected = torch.tensor([[1 + number / 10, 20 + number] for number in shown])
        found = outputs.metadata["depth_bounds"] / outputs.dataparser_scale
        torch.testing.assert_close(found, expected.reshape(-1, 2))


@pytest.mark.parametrize("kind", sorted(WRITERS.keys() - {"llff"}))
def test_other_formats_tell_no_depth_bounds(tmp_path, kind):
    WRITERS[kind](tmp_path)
    for split in ("train", "test"):
        outputs = _parser(tmp_path).get_dataparser_outputs(split)
        assert "depth_bounds" not in outputs.metadata


def test_numbers_in_names_order_the_views(tmp_path):
    """photo10 comes after photo9: the views held out are the first and the ninth."""
    write_colmap(tmp_path)
    test = _parser(tmp_path).get_dataparser_outputs("test")
    assert [path.name for path in test.image_filenames] == ["photo0.png", "photo8.png"]


def test_photos_of_one_name_in_two_folders(tmp_path):
    names = [f"{side}/{index}.png" for side in ("left", "right") for index in range(6)]
    write_colmap(tmp_path, names)
    (tmp_path / "train.txt").write_text("left/1.png\nright/1.png\n")
    (tmp_path / "test.txt").write_text("left/0.png\n")
    lists = {"train_list": tmp_path / "train.txt", "test_list": tmp_path / "test.txt"}
    outputs = _parser(tmp_path, selection="list", **lists).get_dataparser_outputs("train")
    assert outputs.metadata["split"] == {
        "train": ["images/left/1.png", "images/right/1.png"],
        "test": ["images/left/0.png"],
    }
    expected = wall_poses()
    poses = outputs.transform_poses_to_original_space(
        outputs.cameras.camera_to_worlds.clone(), camera_convention="opengl"
    )
    np.testing.assert_allclose(poses.numpy(), [expected[1][:3], expected[7][:3]], atol=1e-4)


def test_photos_that_smaller_images_cannot_tell_apart_are_refused(tmp_path):
    """nerfstudio keeps smaller images in one folder, by file name."""

    def edit(meta):
        meta["frames"][0]["file_path"] = "images/a/000.png"
        meta["frames"][1]["file_path"] = "images/b/000.png"

    write_capture(tmp_path, edit=edit)
    with pytest.raises(InputError, match=r"images_2/000\.png; photos of the same name"):
        _parser(tmp_path, downscale_factor=2).get_dataparser_outputs("train")


def test_blender_data_keeps_its_test_photos_and_its_white(tmp_path):
    write_blender(tmp_path, train=12, test=9)
    parser = _parser(tmp_path, views=3, test_cap=3)
    train, test = (parser.get_dataparser_outputs(split) for split in ("train", "test"))
    assert _names(train, tmp_path) == ["train/r_0.png", "train/r_6.png", "train/r_11.png"]
    assert _names(test, tmp_path) == ["test/r_0.png", "test/r_4.png", "test/r_8.png"]
    assert train.alpha_color is not None
    assert train.alpha_color.tolist() == [1, 1, 1]


def test_split_lists_of_the_capture_are_kept(tmp_path):
    def edit(meta):
        files = [frame["file_path"] for frame in meta["frames"]]
        meta.update(
            train_filenames=files[:8], val_filenames=files[8:10], test_filenames=files[9:11]
        )

    write_capture(tmp_path / "nerfstudio", edit=edit)
    parser = _parser(tmp_path / "nerfstudio", views=3)
    train, test = (parser.get_dataparser_outputs(split) for split in ("train", "test"))
    assert [path.name for path in train.image_filenames] == ["000.png", "004.png", "007.png"]
    assert [path.name for path in test.image_filenames] == ["009.png", "010.png"]

    write_colmap(tmp_path / "colmap")
    (tmp_path / "colmap/train_list.txt").write_text("photo1.png\nphoto2.png\nphoto3.png\n")
    (tmp_path / "colmap/test_list.txt").write_text("photo5.png\n")
    split = _parser(tmp_path / "colmap").get_dataparser_outputs("train").metadata["split"]
    assert split == {
        "train": ["images/photo1.png", "images/photo2.png", "images/photo3.png"],
        "test": ["images/photo5.png"],
    }


def test_colmap_reads_smaller_images_and_never_asks(tmp_path, capsys):
    write_colmap(tmp_path)
    with pytest.raises(InputError, match=r"images_2 does not exist \(--downscale-factor 2\)"):
        _parser(tmp_path, downscale_factor=2).get_dataparser_outputs("train")
    (tmp_path / "images_2").mkdir()
    outputs = _parser(tmp_path, downscale_factor=2).get_dataparser_outputs("train")
    assert outputs.image_filenames[0] == tmp_path / "images_2/photo1.png"
    assert (int(outputs.cameras.width[0]), int(outputs.cameras.height[0])) == (32, 24)
    # Above 1600 pixels smaller images are wanted; without them the large ones are read.
    Image.new("RGB", (2000, 10)).save(tmp_path / "images/photo11.png")
    (tmp_path / "images_2").rmdir()
    outputs = _parser(tmp_path).get_dataparser_outputs("train")
    assert int(outputs.cameras.width[0]) == WIDTH
    assert "is read at full size" in capsys.readouterr().out


# ---------------------------------------------------------------- refused


def test_a_folder_without_a_capture_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"looked for transforms\.json.*sparse/0"):
        _parser(tmp_path).get_dataparser_outputs("train")
    for kind, message in (
        ("nerfstudio", r"transforms\.json not found"),
        ("colmap", "holds no COLMAP model"),
        ("llff", r"poses_bounds\.npy cannot be read"),
        ("blender", r"transforms_train\.json not found"),
    ):
        with pytest.raises(InputError, match=message):
            _parser(tmp_path, format=kind).get_dataparser_outputs("train")


def test_captures_without_images_are_refused(tmp_path):
    write_capture(tmp_path / "nerfstudio", edit=lambda meta: meta.update(frames=[]))
    write_colmap(tmp_path / "colmap")
    (tmp_path / "colmap/sparse/0/images.txt").write_text("")
    write_blender(tmp_path / "blender", test=0)
    for kind, message in (
        ("nerfstudio", "lists no images"),
        ("colmap", "No images found"),
        ("blender", "lists no images"),
    ):
        with pytest.raises(InputError, match=message):
            _parser(tmp_path / kind).get_dataparser_outputs("train")


def test_more_views_than_there_are_is_refused(tmp_path):
    write_capture(tmp_path)
    with pytest.raises(InputError, match="--views 11: only 10 photos are not held out"):
        _parser(tmp_path, views=11).get_dataparser_outputs("train")


def test_blender_data_has_no_smaller_images(tmp_path):
    write_blender(tmp_path)
    with pytest.raises(InputError, match="leave out --downscale-factor"):
        _parser(tmp_path, downscale_factor=2).get_dataparser_outputs("train")


# ---------------------------------------------------------------- registration


def test_p32_the_parser_is_registered_under_its_name():
    (entry,) = entry_points(group="nerfstudio.dataparser_configs", name="sparse-views")
    assert entry.load() is sparse_views
    from nerfstudio.configs.dataparser_configs import all_dataparsers

    assert isinstance(all_dataparsers["sparse-views"], SparseViewsDataParserConfig)


def _stop_moving(folder: Path, kind: str, centre: tuple[float, float, float]) -> None:
    """Put all cameras of a capture at one place; they go on turning."""
    if kind == "llff":
        rows = np.load(folder / "poses_bounds.npy")
        rows[:, [3, 8, 13]] = centre
        np.save(folder / "poses_bounds.npy", rows)
    elif kind == "colmap":
        file = folder / "sparse/0/images.txt"
        lines = file.read_text().splitlines()
        for place in range(0, len(lines), 2):
            number, w, x, y, z, *_, camera, name = lines[place].split()
            rotation = Rotation.from_quat([float(x), float(y), float(z), float(w)]).as_matrix()
            shift = " ".join(map(str, -rotation @ centre))
            lines[place] = f"{number} {w} {x} {y} {z} {shift} {camera} {name}"
        file.write_text("\n".join(lines) + "\n")
    else:
        file = folder / ("transforms.json" if kind == "nerfstudio" else "transforms_train.json")
        meta = json.loads(file.read_text())
        for frame in meta["frames"]:
            for row, value in zip(frame["transform_matrix"], centre, strict=False):
                row[3] = value
        file.write_text(json.dumps(meta))


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("centre", [(0.3, 2.0, 0.1), (0.0, 0.0, 0.0)])
def test_cameras_that_do_not_move_are_refused_in_every_format(
    tmp_path: Path, kind: str, centre: tuple[float, float, float]
) -> None:
    """Also where the same place, computed from rotations, differs in its last digits."""
    folder = tmp_path / "scene"
    WRITERS[kind](folder)
    _stop_moving(folder, kind, centre)
    with pytest.raises(InputError, match="same place") as refused:
        _parser(folder).get_dataparser_outputs("train")
    assert str(folder) in str(refused.value)
