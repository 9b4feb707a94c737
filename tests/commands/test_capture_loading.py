# SPDX-License-Identifier: Apache-2.0
"""The way from parsed poses back to the coordinates of a capture's own file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ps4pro_nerfstudio.commands.loading import (
    CaptureFrame,
    SplitOptions,
    read_all,
    read_transforms,
)
from ps4pro_nerfstudio.messages import InputError
from tests.conftest import CaptureMaker, look_at

APPLIED = [[0, 1, 0, 0.3], [1, 0, 0, -2.0], [0, 0, -1, 0.7]]


def _applied(meta: dict[str, Any]) -> None:
    meta["applied_transform"] = APPLIED


def _scaled(meta: dict[str, Any]) -> None:
    meta.update(applied_transform=APPLIED, applied_scale=0.25)


def _oriented(meta: dict[str, Any]) -> None:
    # Not pca: nerfstudio 1.1.5 then turns two of the poses, or none, by the sign of an eigenvector.
    meta["orientation_override"] = "vertical"


@pytest.mark.parametrize("edit", [None, _applied, _scaled, _oriented])
def test_poses_of_a_transforms_file_come_back(capture: CaptureMaker, edit) -> None:
    data = capture(num_images=5, edit=edit)
    transforms = read_transforms(data)
    assert transforms is not None
    parsed = read_all(SplitOptions(), data)
    frame = CaptureFrame.of(parsed, data, transforms)
    for index, original in enumerate(transforms["frames"]):
        pose = frame.pose(parsed.cameras.camera_to_worlds[index].numpy())
        np.testing.assert_allclose(pose, original["transform_matrix"], atol=2e-6)


def test_poses_of_an_llff_capture_come_back(tmp_path: Path) -> None:
    from PIL import Image

    angles = np.linspace(-0.3, 0.3, 4)
    poses = [look_at(np.array([3 * np.sin(a), 3 * np.cos(a), 0.4]), np.zeros(3)) for a in angles]
    (tmp_path / "images").mkdir()
    rows = []
    for index, pose in enumerate(poses):
        Image.new("RGB", (64, 48)).save(tmp_path / f"images/{index}.png")
        right, up, back, centre = pose[:3].T
        matrix = np.stack([-up, right, back, centre, [48, 64, 60]], axis=1)
        rows.append([*matrix.flatten(), 1.0, 5.0])
    np.save(tmp_path / "poses_bounds.npy", np.array(rows))
    parsed = read_all(SplitOptions(), tmp_path)
    frame = CaptureFrame.of(parsed, tmp_path, read_transforms(tmp_path))
    for index, original in enumerate(poses):
        pose = frame.pose(parsed.cameras.camera_to_worlds[index].numpy())
        np.testing.assert_allclose(pose, original, atol=2e-6)


def test_points_move_as_the_cameras_do(capture: CaptureMaker) -> None:
    """The camera centres, taken as points, go where the cameras go."""
    data = capture(num_images=4, edit=_applied)
    parsed = read_all(SplitOptions(), data)
    frame = CaptureFrame.of(parsed, data, read_transforms(data))
    cameras = parsed.cameras.camera_to_worlds.numpy()
    moved = np.stack([frame.pose(camera)[:3, 3] for camera in cameras])
    np.testing.assert_allclose(frame.points(cameras[:, :, 3]), moved, atol=1e-6)


def test_two_photographs_are_all_photographs(capture: CaptureMaker) -> None:
    assert len(read_all(SplitOptions(), capture(num_images=2)).image_filenames) == 2


def test_broken_json_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "transforms.json").write_text("{")
    with pytest.raises(InputError, match="not valid JSON"):
        read_transforms(tmp_path)
    (tmp_path / "transforms.json").write_text(json.dumps({"frames": []}))
    assert read_transforms(tmp_path / "transforms.json") == {"frames": []}
    assert read_transforms(tmp_path / "elsewhere") is None
