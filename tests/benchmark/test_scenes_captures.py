# SPDX-License-Identifier: Apache-2.0
"""Reduced captures are the same scene in fewer pixels."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from ps4pro_nerfstudio.benchmark.scenes.captures import Capture, plan_capture, reduction_factor
from ps4pro_nerfstudio.messages import InputError


@pytest.mark.parametrize(
    ("long_side", "factor"), [(100, 1), (480, 1), (504, 1), (509, 2), (768, 2), (960, 2), (4032, 8)]
)
def test_factor_is_the_smallest_that_is_about_small_enough(long_side, factor):
    assert reduction_factor(long_side, 480) == factor
    if factor > 1:
        assert long_side / (factor - 1) > 1.06 * 480


def test_a_small_capture_is_used_as_it_stands(capture, tmp_path):
    source = capture()
    planned = plan_capture(source, 64, tmp_path / "captures")
    planned.write()
    assert planned.folder == source
    assert not (tmp_path / "captures").exists()


def _written(source, tmp_path, max_long_side=32) -> Capture:
    planned = plan_capture(source, max_long_side, tmp_path / "captures")
    planned.write()
    return planned


def test_images_are_averages_and_intrinsics_follow(capture, tmp_path):
    source = capture()
    reduced = _written(source, tmp_path)
    old = json.loads((source / "transforms.json").read_text())
    new = json.loads((reduced.folder / "transforms.json").read_text())
    assert reduced.factor == 2
    for key in ("w", "h", "fl_x", "fl_y", "cx", "cy"):
        assert new[key] == old[key] / 2
    assert (new["w"], new["h"]) == (32, 24)
    name = new["frames"][3]["file_path"]
    photo = np.asarray(Image.open(source / name), np.float64)
    blocks = photo.reshape(24, 2, 32, 2, 3).mean((1, 3))
    assert np.abs(np.asarray(Image.open(reduced.folder / name)) - blocks).max() <= 0.5
    assert [f["transform_matrix"] for f in new["frames"]] == [
        f["transform_matrix"] for f in old["frames"]
    ]
    points = (source / "sparse_pc.ply").read_bytes()
    assert (reduced.folder / new["ply_file_path"]).read_bytes() == points


def test_sizes_that_do_not_divide_keep_the_field_of_view(capture, tmp_path):
    """Of 65x47 a half is 32x24: fl_x and w shrink by 32/65, fl_y and h by 24/47."""
    source = capture(width=65, height=47)
    reduced = _written(source, tmp_path)
    old = json.loads((source / "transforms.json").read_text())
    new = json.loads((reduced.folder / "transforms.json").read_text())
    assert (new["w"], new["h"]) == (32, 24)
    for size, focal, centre in (("w", "fl_x", "cx"), ("h", "fl_y", "cy")):
        assert new[focal] / new[size] == pytest.approx(old[focal] / old[size])
        assert new[centre] / new[size] == pytest.approx(old[centre] / old[size])
    image = Image.open(reduced.folder / new["frames"][0]["file_path"])
    assert image.size == (32, 24)


def test_masks_stay_black_and_white_and_depth_is_left_out(capture, tmp_path):
    def add_masks(meta):
        for frame in meta["frames"]:
            frame["mask_path"] = "mask.png"
            frame["depth_file_path"] = "depth.png"
        meta["train_filenames"] = [frame["file_path"] for frame in meta["frames"][:6]]

    source = capture(edit=add_masks)
    mask = np.random.default_rng(0).choice(np.array([0, 255], np.uint8), (48, 64))
    Image.fromarray(mask).save(source / "mask.png")
    reduced = _written(source, tmp_path)
    new = json.loads((reduced.folder / "transforms.json").read_text())
    assert all("depth_file_path" not in frame for frame in new["frames"])
    small = np.asarray(Image.open(reduced.folder / new["frames"][0]["mask_path"]))
    assert small.shape == (24, 32)
    assert set(np.unique(small)) == {0, 255}
    assert new["train_filenames"] == [frame["file_path"] for frame in new["frames"][:6]]


def test_transparent_pixels_lend_no_colour_to_their_neighbours(capture, tmp_path):
    """Left column white and opaque, right one black and transparent: white, half opaque."""
    source = capture()
    both = np.zeros((48, 64, 4), np.uint8)
    both[:, ::2] = 255
    for path in (source / "images").iterdir():
        Image.fromarray(both).save(path)
    reduced = _written(source, tmp_path)
    pixels = np.asarray(Image.open(reduced.folder / "images/000.png"))
    assert pixels.shape == (24, 32, 4)
    assert (pixels[..., :3] == 255).all()
    assert np.abs(pixels[..., 3] - 127.5).max() <= 0.5


def test_photographs_outside_the_folder_and_of_one_name_are_kept_apart(capture, tmp_path):
    source = capture()

    names = [f"../a/{i}.png" for i in range(6)] + [f"../b/{i}.png" for i in range(6)]
    meta = json.loads((source / "transforms.json").read_text())
    for frame, name in zip(meta["frames"], names, strict=True):
        (source / name).parent.mkdir(exist_ok=True)
        (source / frame["file_path"]).rename(source / name)
        frame["file_path"] = name
    (source / "transforms.json").write_text(json.dumps(meta))
    reduced = _written(source, tmp_path)
    new = json.loads((reduced.folder / "transforms.json").read_text())
    paths = [frame["file_path"] for frame in new["frames"]]
    assert len(set(paths)) == 12
    assert paths == sorted(paths)
    assert all((reduced.folder / path).resolve().is_relative_to(reduced.folder) for path in paths)


def _llff(folder, sizes: dict[str, tuple[int, int]], count: int = 3):
    folder.mkdir()
    np.save(folder / "poses_bounds.npy", np.ones((count, 17)))
    for name, size in sizes.items():
        (folder / name).mkdir()
        for index in range(count):
            Image.new("RGB", size, (40 * index, 0, 0)).save(folder / name / f"{index}.jpg")
    return folder


def test_llff_reads_the_folder_that_is_small_enough(tmp_path):
    source = _llff(tmp_path / "fern", {"images": (4032, 3024), "images_8": (504, 378)})
    planned = plan_capture(source, 480, tmp_path / "captures")
    assert (planned.folder, planned.factor) == (source, 1)
    assert planned.arguments == ("--downscale-factor", "8")


def test_llff_without_such_a_folder_is_reduced(tmp_path):
    source = _llff(tmp_path / "fern", {"images_4": (96, 72)})
    reduced = _written(source, tmp_path, 48)
    images = sorted((reduced.folder / "images").iterdir())
    assert [Image.open(image).size for image in images] == [(48, 36)] * 3
    reds = [np.asarray(Image.open(image))[..., 0].mean() for image in images]
    assert reds == pytest.approx([0, 40, 80], abs=2)  # JPEG
    poses = (source / "poses_bounds.npy").read_bytes()
    assert (reduced.folder / "poses_bounds.npy").read_bytes() == poses


def test_the_digest_is_of_the_content(capture, tmp_path):
    def digest(source, size=480):
        return plan_capture(source, size, tmp_path / "captures").digest

    first, same = capture("first"), capture("same")
    assert digest(first) == digest(same)
    assert digest(first) != digest(first, 32)
    (same / "images/005.png").write_bytes((same / "images/006.png").read_bytes())
    assert digest(first) != digest(same)


def test_what_trainings_write_into_a_capture_does_not_change_it(tmp_path):
    """COLMAP's and Blender's captures are trained on where they are."""
    source = tmp_path / "scene"
    (source / "sparse").mkdir(parents=True)
    (source / "sparse/cameras.bin").write_bytes(b"1")

    def digest():
        return plan_capture(source, 480, source / "outputs/captures").digest

    before = digest()
    for name in (".ps4pro_cache/points.npz", "outputs/results.jsonl", "outputs/captures/a"):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes(b"2")
    assert digest() == before
    (source / "sparse/cameras.bin").write_bytes(b"3")
    assert digest() != before


def test_an_archive_beside_the_images_is_none_of_them(tmp_path):
    source = _llff(tmp_path / "fern", {"images_4": (96, 72)})
    (source / "images.zip").write_bytes(b"")
    assert plan_capture(source, 96, tmp_path / "captures").factor == 1


def test_a_broken_off_copy_is_not_taken_for_a_whole_one(capture, tmp_path, monkeypatch):
    source = capture()
    planned = plan_capture(source, 32, tmp_path / "captures")
    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "save", lambda *args, **kwargs: (_ for _ in ()).throw(OSError))
        with pytest.raises(InputError):
            planned.write()
    assert list((tmp_path / "captures").iterdir()) == []
    planned.write()
    assert len(list((planned.folder / "images").iterdir())) == 12


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda folder: None, "is not a folder"),
        (lambda folder: folder.mkdir(), "is empty"),
        (lambda folder: _llff(folder, {}), "no images"),
    ],
)
def test_folders_without_a_capture_are_refused(tmp_path, prepare, message):
    prepare(tmp_path / "scene")
    with pytest.raises(InputError, match=message):
        plan_capture(tmp_path / "scene", 480, tmp_path / "captures")


def test_a_missing_photograph_is_named(capture, tmp_path):
    source = capture()
    (source / "images/004.png").unlink()
    with pytest.raises(InputError, match=r"004\.png"):
        plan_capture(source, 32, tmp_path / "captures")
