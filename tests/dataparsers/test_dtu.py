# SPDX-License-Identifier: Apache-2.0
"""A small scan written here: its cameras come back, the split is the published one."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from nerfstudio.data.datasets.base_dataset import InputDataset
from nerfstudio.data.utils.data_utils import get_image_mask_tensor_from_path
from PIL import Image

from ps4pro_nerfstudio.dataparsers import dtu
from ps4pro_nerfstudio.dataparsers.dtu import DTUDataParserConfig, choose_views, read_scan
from ps4pro_nerfstudio.geometry.cameras import flip_camera_axes
from ps4pro_nerfstudio.messages import InputError
from tests.conftest import look_at

WIDTH, HEIGHT = 80, 60
INTRINSICS = np.array([[140.0, 0.0, 41.5], [0.0, 139.0, 29.0], [0.0, 0.0, 1.0]])
UNTOUCHED = {"orientation_method": "none", "center_method": "none", "auto_scale_poses": False}


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch) -> None:
    monkeypatch.setenv("PS4PRO_CACHE", str(tmp_path_factory.mktemp("cache")))


def opengl_poses(count: int) -> np.ndarray:
    """Cameras [N, 4, 4] on a part of a sphere around (100, -50, 600)."""
    target, k = np.array([100.0, -50.0, 600.0]), np.arange(count)
    azimuth, height = 0.15 * (k % 7) - 0.5, 0.12 * (k // 7) + 0.2
    around = np.stack(
        [np.sin(azimuth) * np.cos(height), -np.cos(azimuth) * np.cos(height), np.sin(height)],
        axis=1,
    )
    return np.array([look_at(target + 500.0 * offset, target) for offset in around])


def write_scan(folder: Path, count: int = 49) -> np.ndarray:
    """Write a scan whose view k is an image of grey value k; return its OpenGL poses.

    Projections are written at all kinds of scales, of both signs. Masks show the left half.
    """
    (folder / "image").mkdir(parents=True)
    (folder / "mask").mkdir()
    poses, cameras = opengl_poses(count), {}
    for view in range(count):
        world_to_camera = np.linalg.inv(flip_camera_axes(poses[view]))
        projection = np.eye(4)
        projection[:3] = INTRINSICS @ world_to_camera[:3] * (-1.7) ** (view % 5)
        cameras[f"world_mat_{view}"] = projection
        cameras[f"scale_mat_{view}"] = np.diag([300.0, 300.0, 300.0, 1.0])
        image = Image.new("RGB", (WIDTH, HEIGHT), (view, view, view))
        image.save(folder / "image" / f"{view:06d}.png")
    np.savez(folder / "cameras.npz", **cameras)
    pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    pixels[:, : WIDTH // 2] = 255
    Image.fromarray(pixels).save(folder / "mask" / "000.png")
    for view in range(1, count):
        shutil.copyfile(folder / "mask" / "000.png", folder / "mask" / f"{view:03d}.png")
    return poses


def parse(folder: Path, split: str = "train", **options):
    config = DTUDataParserConfig(data=folder, **options)
    return config.setup().get_dataparser_outputs(split)


def grey_values(files: list[Path]) -> list[int]:
    return [int(np.asarray(Image.open(file))[0, 0, 0]) for file in files]


def test_the_split_is_the_published_one() -> None:
    assert choose_views(3)[0] == [22, 25, 28]
    assert choose_views(6)[0] == [22, 25, 28, 40, 44, 48]
    assert choose_views(9)[0] == [0, 8, 13, 22, 25, 28, 40, 44, 48]
    test = [1, 2, 9, 10, 11, 12, 14, 15, 23, 24, 26, 27, 29, 30, 31, 32, 33, 34, 35, 41, 42, 43,
            45, 46, 47]  # fmt: skip
    assert all(choose_views(count)[1] == test for count in (3, 6, 9))
    assert len(test) == 25


@pytest.mark.parametrize("count", [49, 64])
def test_known_cameras_come_back(tmp_path, count) -> None:
    poses = write_scan(tmp_path, count)
    for split, views in (("train", choose_views(9)[0]), ("test", choose_views(9)[1])):
        outputs = parse(tmp_path, split, views=9, downscale_factor=1, **UNTOUCHED)
        found = outputs.cameras.camera_to_worlds.numpy()
        np.testing.assert_allclose(found[:, :, :3], poses[views][:, :3, :3], atol=1e-5)
        np.testing.assert_allclose(found[:, :, 3], poses[views][:, :3, 3], rtol=1e-6, atol=1e-4)
        matrices = outputs.cameras.get_intrinsics_matrices().numpy()
        np.testing.assert_allclose(matrices, np.tile(INTRINSICS, (len(views), 1, 1)), rtol=1e-6)
        assert grey_values(outputs.image_filenames) == views
    scan = read_scan(tmp_path)
    np.testing.assert_allclose(flip_camera_axes(scan.camera_to_worlds), poses, atol=1e-8)


def test_normalised_poses_lead_back_to_the_file(tmp_path) -> None:
    """The object lies at the origin and the cameras, of all numbers of views, in one frame."""
    poses = write_scan(tmp_path)
    few, many = parse(tmp_path, views=3), parse(tmp_path, views=9)
    assert torch.equal(few.cameras.camera_to_worlds[0], many.cameras.camera_to_worlds[3])
    back = many.transform_poses_to_original_space(many.cameras.camera_to_worlds, "opengl")
    expected = poses[choose_views(9)[0]][:, :3]
    np.testing.assert_allclose(back[:, :3, 3].numpy(), expected[:, :, 3], rtol=1e-4, atol=1e-2)
    target = many.dataparser_transform @ torch.tensor([100.0, -50.0, 600.0, 1.0])
    np.testing.assert_allclose(target.numpy() * many.dataparser_scale, 0.0, atol=1e-5)
    assert float(many.cameras.camera_to_worlds[:, :, 3].abs().max()) <= 1.0


def test_smaller_images_keep_the_field_of_view(tmp_path) -> None:
    write_scan(tmp_path)
    for split in ("train", "test"):
        outputs = parse(tmp_path, split, downscale_factor=4)
        camera = outputs.cameras[0]
        assert (int(camera.width), int(camera.height)) == (20, 15)
        assert float(camera.fx) == pytest.approx(35.0)
        assert float(camera.fy) == pytest.approx(34.75)
        assert (float(camera.cx), float(camera.cy)) == pytest.approx((10.375, 7.25))
        assert all(Image.open(file).size == (20, 15) for file in outputs.image_filenames)
    assert not (tmp_path / ".ps4pro_cache").exists()


def test_images_get_the_published_width(tmp_path, monkeypatch) -> None:
    write_scan(tmp_path)
    assert int(parse(tmp_path).cameras.width[0]) == WIDTH
    monkeypatch.setattr(dtu, "_USUAL_WIDTH", 20)
    assert int(parse(tmp_path).cameras.width[0]) == 20


def test_a_changed_image_is_made_smaller_again(tmp_path) -> None:
    write_scan(tmp_path)
    assert grey_values(parse(tmp_path, downscale_factor=2).image_filenames) == [22, 25, 28]
    Image.new("RGB", (WIDTH, HEIGHT), (200, 0, 0)).save(tmp_path / "image" / "000025.png")
    assert grey_values(parse(tmp_path, downscale_factor=2).image_filenames) == [22, 200, 28]


@pytest.mark.parametrize("factor", [1, 4])
def test_test_views_carry_masks_and_training_views_do_not(tmp_path, factor) -> None:
    write_scan(tmp_path)
    assert parse(tmp_path, downscale_factor=factor).mask_filenames is None
    for split in ("val", "test"):
        outputs = parse(tmp_path, split, downscale_factor=factor)
        assert outputs.mask_filenames is not None
        assert len(outputs.mask_filenames) == 25
        mask = InputDataset(outputs)[3]["mask"]
        width = WIDTH // factor
        assert mask.shape == (HEIGHT // factor, width, 1)
        assert mask[:, : width // 2].all()
        assert not mask[:, width // 2 :].any()


def test_masks_may_lie_elsewhere_and_only_for_test_views(tmp_path) -> None:
    write_scan(tmp_path / "scan")
    (tmp_path / "scan" / "mask").rename(tmp_path / "elsewhere")
    assert parse(tmp_path / "scan", "test").mask_filenames is None
    for view in (25, 3):
        (tmp_path / "elsewhere" / f"{view:03d}.png").unlink()
    outputs = parse(tmp_path / "scan", "test", masks=tmp_path / "elsewhere")
    assert outputs.mask_filenames is not None
    assert get_image_mask_tensor_from_path(outputs.mask_filenames[0]).any()


def test_the_split_is_named_in_the_metadata(tmp_path) -> None:
    write_scan(tmp_path)
    split = parse(tmp_path).metadata["split"]
    assert split["train"] == ["image/000022.png", "image/000025.png", "image/000028.png"]
    assert len(split["test"]) == 25


def remove_images(scan: Path) -> None:
    for file in sorted((scan / "image").iterdir())[48:]:
        file.unlink()


def edit_cameras(edit: Callable[[dict], None]) -> Callable[[Path], None]:
    def damage(scan: Path) -> None:
        with np.load(scan / "cameras.npz") as content:
            cameras = dict(content)
        edit(cameras)
        np.savez(scan / "cameras.npz", **cameras)

    return damage


def of_full_size(cameras: dict) -> None:
    for name in cameras:
        cameras[name] = np.diag([4.0, 4.0, 1.0, 1.0]) @ cameras[name]


def still(cameras: dict) -> None:
    """All cameras at one place, as far as projections of different scales can say it."""
    for name, matrix in cameras.items():
        if name.startswith("world_mat"):
            matrix[:3, 3] = -matrix[:3, :3] @ (100.0, -50.0, 600.0)


def skewed(cameras: dict) -> None:
    shear = np.eye(4)
    shear[0, 1] = 0.1
    cameras["world_mat_5"] = shear @ cameras["world_mat_5"]


@pytest.mark.parametrize(
    "damage, message",
    [
        (remove_images, "has 48 images; a DTU scan has at least 49"),
        (lambda scan: (scan / "image").rename(scan / "images"), "image not found"),
        (lambda scan: (scan / "cameras.npz").unlink(), "cameras.npz not found"),
        (lambda scan: (scan / "cameras.npz").write_bytes(b"PK"), "cannot be read"),
        (lambda scan: (scan / "mask" / "046.png").unlink(), "no mask of view 46"),
        (lambda scan: (scan / "image" / "000011.png").write_bytes(b"no"), "000011.png cannot"),
        (lambda scan: Image.new("RGB", (8, 6)).save(scan / "image" / "000002.png"), "differ"),
        (edit_cameras(lambda cameras: cameras.pop("world_mat_48")), "has 48 cameras"),
        (edit_cameras(of_full_size), "does not fit images of 80x60"),
        (edit_cameras(still), "cameras.npz: all cameras stand at the same place"),
        (edit_cameras(skewed), "world_mat_5 is a camera with skewed pixels"),
        (
            edit_cameras(lambda cameras: cameras.update(world_mat_7=np.zeros((3, 4)))),
            "world_mat_7 is not a projection",
        ),
        (
            edit_cameras(lambda cameras: cameras.update(world_mat_7=np.full((4, 4), np.nan))),
            "world_mat_7 must be a finite",
        ),
    ],
)
def test_a_broken_scan_is_refused_with_its_reason(tmp_path, damage, message) -> None:
    write_scan(tmp_path)
    damage(tmp_path)
    with pytest.raises(InputError, match=message):
        parse(tmp_path, "test")


def test_impossible_options_are_refused(tmp_path) -> None:
    write_scan(tmp_path)
    with pytest.raises(InputError, match="3, 6 or 9"):
        parse(tmp_path, views=4)
    with pytest.raises(InputError, match="--downscale-factor 0"):
        parse(tmp_path, downscale_factor=0)
    with pytest.raises(InputError, match="--masks"):
        parse(tmp_path, masks=Path("nowhere"))
    with pytest.raises(InputError, match="image not found"):
        parse(tmp_path / "nothing")
