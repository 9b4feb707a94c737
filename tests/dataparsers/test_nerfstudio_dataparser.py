# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig

from ps4pro_nerfstudio.dataparsers.nerfstudio_dataparser import CheckedNerfstudio, check_transforms
from ps4pro_nerfstudio.messages import InputError


def _set_frame(index: int, key: str, value):
    def edit(meta):
        meta["frames"][index][key] = value

    return edit


def _singular(meta):
    for row in meta["frames"][3]["transform_matrix"][:3]:
        row[0] = row[1]


def _mirrored(meta):
    for row in meta["frames"][3]["transform_matrix"][:3]:
        row[0] = -row[0]


def _nan(meta):
    meta["frames"][3]["transform_matrix"][0][3] = float("nan")


def _masks_for_some(meta):
    meta["frames"][0]["mask_path"] = "masks/000.png"


def _no_test_list(meta):
    meta["train_filenames"] = ["images/000.png"]
    meta["val_filenames"] = ["images/001.png"]


BAD = {
    "no frames": (lambda meta: meta.update(frames=[]), "lists no images"),
    "singular pose": (_singular, "images/003.png.*not a rotation"),
    "mirrored pose": (_mirrored, r"images/003.png.*not a rotation \(determinant -1"),
    "NaN pose": (_nan, "images/003.png.*NaN"),
    "pose of the wrong shape": (
        _set_frame(1, "transform_matrix", [[1.0, 0.0], [0.0, 1.0]]),
        r"images/001.png.*shape \(2, 2\)",
    ),
    "pose of words": (
        _set_frame(1, "transform_matrix", "identity"),
        "not a matrix of numbers|shape",
    ),
    "masks for some": (_masks_for_some, "masks for 1 of 12 frames"),
    "split list missing": (_no_test_list, "test_filenames.*missing"),
}


@pytest.mark.parametrize("edit, message", BAD.values(), ids=BAD.keys())
def test_a_bad_capture_is_refused_by_name(capture, edit, message):
    folder = capture(points=False, edit=edit)
    with pytest.raises(InputError, match=message):
        check_transforms(folder)


def test_a_missing_or_broken_file_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"transforms\.json not found"):
        check_transforms(tmp_path)
    (tmp_path / "transforms.json").write_text("{")
    with pytest.raises(InputError, match="not valid JSON"):
        check_transforms(tmp_path)


def test_a_good_capture_is_accepted(capture):
    check_transforms(capture())


def _parse(folder, **options):
    config = NerfstudioDataParserConfig(data=folder, load_3D_points=True, **options)
    config._target = CheckedNerfstudio
    return config.setup().get_dataparser_outputs("train")


def test_a_capture_of_an_older_processing_is_not_asked_about(capture, monkeypatch):
    """Upstream asks to write a point cloud into it; a job without a terminal ends there."""
    folder = capture(points=False)
    (folder / "colmap/sparse/0").mkdir(parents=True)
    before = (folder / "transforms.json").read_bytes()
    monkeypatch.setattr("rich.prompt.Confirm.ask", lambda *args: pytest.fail("asked"))
    outputs = _parse(folder)
    assert len(outputs.image_filenames) > 0
    assert "points3D_xyz" not in outputs.metadata
    assert (folder / "transforms.json").read_bytes() == before


def test_points_move_with_the_poses(capture):
    """The wall's points (y = 0) stay where the cameras look after centring and scaling.

    The camera of frame 0 looks at the origin, a point of the wall: the origin in the new frame must
    lie on the optical axis of the new pose, at the distance 2 times the parser's scale.
    """
    folder = capture()
    outputs = _parse(folder)
    points = outputs.metadata["points3D_xyz"]
    assert points.shape == (400, 3)
    assert outputs.metadata["points3D_rgb"].dtype == torch.uint8
    transform, scale = outputs.dataparser_transform, outputs.dataparser_scale
    origin = transform[:3, 3] * scale
    pose = outputs.cameras.camera_to_worlds[0]
    axis = -pose[:, 2]
    offset = origin - pose[:, 3]
    distance = float(offset @ axis)
    assert torch.linalg.norm(offset - distance * axis) < 1e-5
    # All points lie in one plane, before and after.
    centred = points - points.mean(0)
    assert torch.linalg.svdvals(centred)[2] < 1e-5


def test_points_equal_open3ds(capture):
    """Where Open3D loads, its points and ours are the same."""
    pytest.importorskip("open3d", exc_type=ImportError)
    folder = capture()
    ours = _parse(folder).metadata
    theirs = NerfstudioDataParserConfig(data=folder, load_3D_points=True).setup()
    theirs = theirs.get_dataparser_outputs("train").metadata
    torch.testing.assert_close(ours["points3D_xyz"], theirs["points3D_xyz"])
    difference = ours["points3D_rgb"].int() - theirs["points3D_rgb"].int()
    assert difference.abs().max() <= 1  # Open3D goes through floats and truncates


def test_an_unreadable_point_cloud_is_refused(capture):
    folder = capture()
    (folder / "sparse_pc.ply").write_bytes(b"not a point cloud")
    with pytest.raises(InputError, match=re.escape("sparse_pc.ply")):
        _parse(folder)
    (folder / "sparse_pc.ply").unlink()
    with pytest.raises(InputError, match="does not exist"):
        _parse(folder)


def test_points_that_are_not_finite_are_dropped(capture):
    import trimesh

    folder = capture()
    xyz = np.ones((5, 3))
    xyz[2, 1] = np.nan
    trimesh.PointCloud(xyz).export(folder / "sparse_pc.ply")
    assert len(_parse(folder).metadata["points3D_xyz"]) == 4
