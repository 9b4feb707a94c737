# SPDX-License-Identifier: Apache-2.0
"""Photographs as the interpolation takes them: which are pinhole ones, and when they were taken."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from nerfstudio.cameras.cameras import Cameras, CameraType
from PIL import Image

from ps4pro_nerfstudio.datamanagers.augmentation import make_interpolator
from ps4pro_nerfstudio.datamanagers.captures import (
    check_captures,
    mark_pinholes,
    reading_capture,
    source_views,
    undistorted_photographs,
)
from ps4pro_nerfstudio.datamanagers.photo_dataset import PhotoDataset
from ps4pro_nerfstudio.messages import InputError
from ps4pro_nerfstudio.methods import ps4pro_splatfacto
from ps4pro_nerfstudio.pseudo_views.sources import InterpolatedSourceConfig
from ps4pro_nerfstudio.pseudo_views.store import load_or_make, store_key
from tests.conftest import CaptureMaker, look_at, wall_image

DISTORTION = {"k1": 0.05, "k2": -0.01, "k3": 0.0, "k4": 0.0}
FISHEYE, PERSPECTIVE = CameraType.FISHEYE.value, CameraType.PERSPECTIVE.value


def dataset(folder: Path, **changes: Any) -> PhotoDataset:
    """The training photographs of a capture; `changes` are to their cameras."""
    manager: Any = ps4pro_splatfacto.config.pipeline.datamanager
    parser = copy.deepcopy(manager.dataparser)
    parser.data = folder
    outputs = parser.setup().get_dataparser_outputs("train")
    for name, value in changes.items():
        setattr(outputs.cameras, name, value)
    return PhotoDataset(outputs)


def cameras(types: list[int], distortion: list[float]) -> Cameras:
    count = len(types)
    parameters = torch.zeros(count, 6)
    parameters[:, 0] = torch.tensor(distortion)
    return Cameras(
        camera_to_worlds=torch.eye(4)[None, :3].repeat(count, 1, 1),
        fx=50.0, fy=50.0, cx=32.0, cy=24.0, width=64, height=48,
        distortion_params=parameters,
        camera_type=torch.tensor(types)[:, None],
    )  # fmt: skip


# ---------------------------------------------------------------------- fisheye


def test_only_what_was_undistorted_becomes_a_pinhole() -> None:
    """A fisheye without parameters is left as it is by nerfstudio; so are other kinds."""
    panorama = CameraType.EQUIRECTANGULAR.value
    taken = cameras([FISHEYE, FISHEYE, PERSPECTIVE, panorama], [0.1, 0.0, 0.2, 0.3])
    found = copy.deepcopy(taken)
    assert mark_pinholes(found, taken)
    assert found.camera_type[:, 0].tolist() == [PERSPECTIVE, FISHEYE, PERSPECTIVE, panorama]
    assert found.distortion_params is not None
    assert found.distortion_params[:, 0].tolist() == pytest.approx([0.0, 0.0, 0.2, 0.3])
    assert taken.camera_type[0] == FISHEYE


def test_cameras_without_a_fisheye_stay_the_very_same() -> None:
    taken = cameras([PERSPECTIVE, FISHEYE], [0.2, 0.0])
    found = copy.deepcopy(taken)
    types, parameters = found.camera_type, found.distortion_params
    assert not mark_pinholes(found, taken)
    assert found.camera_type is types
    assert found.distortion_params is parameters


def write_fisheye(capture: CaptureMaker) -> Path:
    """A wall as a fisheye lens shows it: each pixel is that of the pinhole picture of its ray."""
    folder = capture(
        width=96, height=72,
        edit=lambda meta: meta.update(camera_model="OPENCV_FISHEYE", **DISTORTION),
    )  # fmt: skip
    focal, size = 0.9 * 96, (96, 72)
    column, row = np.meshgrid(np.arange(96.0), np.arange(72.0))
    lens = np.array([[focal, 0, 47.5], [0, focal, 35.5], [0, 0, 1.0]])
    pixels = np.stack([column, row], axis=-1).reshape(1, -1, 2)
    rays = cv2.fisheye.undistortPoints(pixels, lens, np.array(list(DISTORTION.values())))
    wide = 3  # how much more the pinhole picture shows than the lens
    at = (rays.reshape(72, 96, 2) * focal + np.array(size) * wide / 2 - 0.5).astype(np.float32)
    for index, path in enumerate(sorted((folder / "images").iterdir())):
        angle = 0.5 * (index / 11 - 0.5)
        eye = np.array([2 * np.sin(angle), 2 * np.cos(angle), 0.2 * np.sin(5 * angle)])
        pinhole = wall_image(look_at(eye, np.zeros(3)), focal, 96 * wide, 72 * wide)
        Image.fromarray(cv2.remap(pinhole, at[..., 0], at[..., 1], cv2.INTER_LINEAR)).save(path)
    return folder


def test_fisheye_photographs_are_pinhole_ones_once_undistorted(capture: CaptureMaker) -> None:
    """The undistorted picture is what a pinhole camera of its intrinsics shows, within two levels.

    So both the rasterizer, which knows pinhole cameras only, and the interpolation are right to
    take it for one. The camera of the photograph itself, whose rays a field follows, keeps its
    lens.
    """
    photographs = dataset(write_fisheye(capture))
    assert bool((photographs.cameras.camera_type == FISHEYE).all())
    images, pinholes = undistorted_photographs(photographs)
    views = source_views(images, pinholes, photographs.image_filenames)
    assert views.is_pinhole == [True] * 11
    assert bool((photographs.cameras.camera_type == FISHEYE).all())
    assert photographs.cameras.distortion_params is not None
    assert bool((photographs.cameras.distortion_params[:, 0] > 0).all())
    rays = pinholes.generate_rays(camera_indices=5, keep_shape=True)
    origin, direction = rays.origins.numpy(), rays.directions.numpy()
    outputs = photographs._dataparser_outputs
    rotation = outputs.dataparser_transform[:, :3].numpy()
    shift = outputs.dataparser_transform[:, 3].numpy()
    origin = (origin / outputs.dataparser_scale - shift) @ rotation
    direction = direction @ rotation
    hit = origin - origin[..., 1:2] / direction[..., 1:2] * direction
    u, v = hit[..., 0] * 5, hit[..., 2] * 5
    truth = 127.5 + 100 * np.stack(
        [np.sin(u) * np.cos(v), np.sin(1.7 * u + v), np.cos(2.3 * v - u)], axis=-1
    )
    inside = views.valid[5] if views.valid is not None else None
    inside = np.ones(truth.shape[:2], bool) if inside is None else inside
    assert inside.mean() > 0.7
    assert np.abs(views.images[5].astype(float) - truth)[inside].mean() < 2.0


def test_a_splat_gets_the_same_pinhole_cameras(capture: CaptureMaker) -> None:
    """For training, evaluation and what the trainer hands to the model."""
    folder = write_fisheye(capture)
    config: Any = copy.deepcopy(ps4pro_splatfacto.config.pipeline.datamanager)
    config.data = folder
    manager = config.setup(device="cpu", test_mode="test")
    images, expected = undistorted_photographs(dataset(folder))
    for data, image in zip(manager.cached_train, images, strict=True):
        assert torch.equal(data["image"], image["image"])
    found = manager.train_dataset.cameras
    for name in ("fx", "fy", "cx", "cy", "width", "camera_type", "distortion_params"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), msg=name)
    assert len(manager.cached_eval) == 1  # read, and undistorted, when it is first asked for
    assert bool((manager.eval_dataset.cameras.camera_type == PERSPECTIVE).all())
    assert int(manager.next_train(0)[0].camera_type) == PERSPECTIVE


# ---------------------------------------------------------------------- times


def test_times_reach_pseudo_views_and_the_store(capture: CaptureMaker, tmp_path: Path) -> None:
    """A capture of eleven photographs taken evenly over [0, 1]; a frame lies between two times."""
    times = torch.linspace(0.0, 1.0, 11)[:, None]
    photographs = dataset(capture(), times=times)
    views = source_views(*undistorted_photographs(photographs), photographs.image_filenames)
    assert views.times == pytest.approx(times[:, 0].tolist())
    interpolator = make_interpolator("linear-blend", "cpu")
    for _ in range(2):  # made, then loaded
        made = load_or_make(tmp_path / "store", views, interpolator, InterpolatedSourceConfig())
        assert len(made.views) > 5
        for view in made.views:
            a, b = (views.names.index(name) for name in view.provenance.source_names)
            assert view.time == pytest.approx((a + b) / 20)


def test_a_capture_without_times_keeps_the_name_of_its_entry(capture: CaptureMaker) -> None:
    photographs = dataset(capture())
    views = source_views(*undistorted_photographs(photographs), photographs.image_filenames)
    assert views.times is None
    config = InterpolatedSourceConfig()
    same = dataclasses.replace(views, times=None, is_pinhole=[True] * 11)
    assert store_key(views, "flow/1", config) == store_key(same, "flow/1", config)


# ---------------------------------------------------------------------- cameras that do not move


def test_training_photographs_from_one_place_are_refused(capture: CaptureMaker) -> None:
    """Those held out moved; the parsers' own check sees all cameras together."""
    good = dataset(capture())
    poses = good.cameras.camera_to_worlds.clone()
    check_captures(good, good)
    poses[:, :, 3] = poses[3, :, 3]
    still = dataset(capture("still"), camera_to_worlds=poses)
    with pytest.raises(InputError, match="same place"):
        check_captures(still, good)


def test_rounding_errors_blown_up_by_a_parser_are_no_movement(capture: CaptureMaker) -> None:
    """Cameras at (3, 1, -2) but for the last bit of float32, centred and scaled to +/- 1."""
    good = dataset(capture())
    place = torch.tensor([3.0, 1.0, -2.0])
    centres = place.repeat(11, 1)
    centres[::2, 0] = torch.nextafter(place[0], torch.tensor(9.0))
    middle = centres.double().mean(0)
    scale = 1.0 / float((centres - middle).abs().max())
    poses = good.cameras.camera_to_worlds.clone()
    poses[:, :, 3] = ((centres - middle) * scale).float()
    assert float(poses[:, 0, 3].max() - poses[:, 0, 3].min()) > 1.0
    still = dataset(capture("still"), camera_to_worlds=poses)
    transform = torch.cat([torch.eye(3), -middle[:, None]], dim=1).float()
    still._dataparser_outputs = dataclasses.replace(
        still._dataparser_outputs, dataparser_transform=transform, dataparser_scale=scale
    )
    with pytest.raises(InputError, match="same place"):
        check_captures(still, good)


def test_a_parser_that_divides_by_no_movement_is_one_line(tmp_path: Path) -> None:
    parser: Any = ps4pro_splatfacto.config.pipeline.datamanager
    with (
        pytest.raises(InputError, match="same place"),
        reading_capture(tmp_path, copy.deepcopy(parser.dataparser)),
    ):
        _ = 1.0 / float(torch.zeros(3).max())


# ---------------------------------------------------------------------- cut-outs


def cut_out(alpha: np.ndarray, mask: np.ndarray | None = None) -> Any:
    """Silhouette of a grey photograph with this alpha [H, W] in [0, 1], uint8 and as float."""
    found = []
    for image in (
        np.dstack([np.full((*alpha.shape, 3), 99.0), 255.0 * alpha]).astype(np.uint8),
        np.dstack([np.full((*alpha.shape, 3), 0.4), alpha]).astype(np.float32),
    ):
        data: dict[str, Any] = {"image": torch.from_numpy(image)}
        if mask is not None:
            data["mask"] = torch.from_numpy(mask)[..., None]
        views = source_views([data], cameras([PERSPECTIVE], [0.0]), [Path("a.png")])
        assert views.silhouettes is not None
        found.append(views.silhouettes[0])
    if found[0] is None or found[1] is None:
        assert found[0] is found[1]
    else:
        np.testing.assert_array_equal(found[0], found[1])
    return found[0]


def test_a_silhouette_is_what_is_not_empty() -> None:
    """Edges that are half transparent belong to it, traces of matting do not."""
    alpha = np.zeros((8, 10), np.float32)
    alpha[2:6, 3:7] = 1.0
    alpha[2, 3:7] = 0.5
    expected = alpha > 0.0
    alpha[0, 0] = 0.05
    np.testing.assert_array_equal(cut_out(alpha), expected)


def test_what_a_mask_excludes_may_show_anything() -> None:
    alpha = np.zeros((8, 10), np.float32)
    alpha[2:6, 3:7] = 1.0
    mask = np.ones((8, 10), bool)
    mask[:, :2] = False
    np.testing.assert_array_equal(cut_out(alpha, mask), (alpha > 0.0) | ~mask)


def test_opaque_photographs_are_not_cut_out_nor_those_with_a_transparent_rim() -> None:
    """Undistortion leaves such a rim; nothing says that the scene is empty there."""
    alpha = np.ones((40, 50), np.float32)
    assert cut_out(alpha) is None
    alpha[:2] = alpha[-2:] = alpha[:, :2] = alpha[:, -2:] = 0.0
    assert cut_out(alpha) is None
