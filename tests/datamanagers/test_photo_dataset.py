# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
import torch
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.data.dataparsers.base_dataparser import DataparserOutputs
from PIL import Image

from ps4pro_nerfstudio.datamanagers.photo_dataset import PhotoDataset
from ps4pro_nerfstudio.messages import InputError
from ps4pro_nerfstudio.splatting.background import TRANSPARENT_COLOR


def _dataset(path, **options):
    cameras = Cameras(torch.eye(4)[None, :3], fx=1.0, fy=1.0, cx=1.0, cy=1.0, width=3, height=2)
    return PhotoDataset(DataparserOutputs([path], cameras, **options))


def _grey_ramp() -> np.ndarray:
    return np.array([[0, 51, 102], [153, 204, 255]], np.uint8)


def test_16_bit_grey_is_scaled_not_wrapped(tmp_path):
    """51 * 257 = 13107 is 51 of 255 in 16 bits; taken modulo 256 it would be 51 only by luck,
    13107 + 100 is still nearest to 51 and modulo 256 it is 151.
    """
    values = _grey_ramp().astype(np.uint16) * 257
    values[0, 1] += 100
    Image.fromarray(values).save(tmp_path / "a.png")
    image = _dataset(tmp_path / "a.png").get_numpy_image(0)
    assert image.shape == (2, 3, 3)
    np.testing.assert_array_equal(image[..., 0], _grey_ramp())


@pytest.mark.parametrize("mode, channels", [("L", 3), ("LA", 4), ("P", 3), ("RGB", 3), ("RGBA", 4)])
def test_kinds_of_images(tmp_path, mode, channels):
    Image.fromarray(_grey_ramp()).convert(mode).save(tmp_path / "a.png")
    image = _dataset(tmp_path / "a.png").get_numpy_image(0)
    assert image.dtype == np.uint8
    assert image.shape == (2, 3, channels)
    np.testing.assert_array_equal(image[..., 1], _grey_ramp())


def test_a_damaged_file_is_named(tmp_path):
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(tmp_path / "a.jpg")
    whole = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "a.jpg").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"a\.jpg cannot be read"):
        _dataset(tmp_path / "a.jpg").get_numpy_image(0)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"b\.png does not exist"):
        _dataset(tmp_path / "b.png").get_numpy_image(0)


WHITE = torch.ones(3)


@pytest.mark.parametrize(("mode", "is_kept"), [("RGBA", True), ("LA", True), ("RGB", False)])
def test_transparency_is_kept_and_the_colour_behind_it_told(tmp_path, mode, is_kept):
    pixels = Image.fromarray(_grey_ramp()).convert(mode)
    pixels.save(tmp_path / "a.png")
    dataset = _dataset(tmp_path / "a.png", alpha_color=WHITE)
    before = dataset.get_image_uint8(0)
    assert before.shape[-1] == 3
    dataset.keep_transparency()
    assert dataset.get_image_uint8(0).shape[-1] == (4 if is_kept else 3)
    assert (TRANSPARENT_COLOR in dataset.metadata) == is_kept
    if is_kept:
        assert torch.equal(dataset.metadata[TRANSPARENT_COLOR], WHITE)
    else:
        assert torch.equal(dataset.get_image_uint8(0), before)


def test_without_a_colour_of_the_parser_nothing_is_told(tmp_path):
    Image.fromarray(_grey_ramp()).convert("RGBA").save(tmp_path / "a.png")
    dataset = _dataset(tmp_path / "a.png")
    dataset.keep_transparency()
    assert dataset.metadata == {}
    assert dataset.get_image_uint8(0).shape[-1] == 4
