# SPDX-License-Identifier: Apache-2.0
"""`ps4pro points`: points on the surface, in the frame of the capture's file."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import trimesh
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig

from ps4pro_nerfstudio.commands import points as points_module
from ps4pro_nerfstudio.commands.loading import CaptureFrame, SplitOptions
from ps4pro_nerfstudio.commands.points import (
    Points,
    _chooses_views,
    reprojection_error_px,
    write_points,
)
from ps4pro_nerfstudio.dataparsers.nerfstudio_dataparser import CheckedNerfstudio
from ps4pro_nerfstudio.initialization.dense_points import DensePointsConfig
from ps4pro_nerfstudio.messages import InputError
from ps4pro_nerfstudio.pseudo_views.pseudo_view import Provenance, PseudoView
from tests.conftest import CaptureMaker

APPLIED = [[0, 1, 0, 0.3], [1, 0, 0, -2.0], [0, 0, -1, 0.7]]


def test_points_lie_where_the_original_cameras_see_them(
    capture: CaptureMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The wall stands at y = 0 and its colour is known everywhere: see `wall_image`."""
    said: list[str] = []
    monkeypatch.setattr(points_module, "say", said.append)
    data = capture(
        num_images=6, width=96, height=72, edit=lambda meta: meta.update(applied_transform=APPLIED)
    )
    file = tmp_path / "points.ply"
    Points(data=data, output=file, interpolator="optical-flow").run()

    header = file.read_bytes()[:400].decode("ascii", "ignore")
    assert "format binary_little_endian" in header
    for line in ("float x", "float y", "float z", "uchar red", "uchar green", "uchar blue"):
        assert f"property {line}\n" in header
    cloud = trimesh.load(file, process=False)
    sparse = trimesh.load(data / "sparse_pc.ply", process=False)
    assert isinstance(cloud, trimesh.PointCloud)
    assert isinstance(sparse, trimesh.PointCloud)
    xyz, rgb = np.asarray(cloud.vertices), np.asarray(cloud.colors)[:, :3].astype(float)
    is_sparse = np.isin(xyz.astype(np.float32)[:, 0].round(4), sparse.vertices[:, 0].round(4))
    assert np.median(np.abs(xyz[:, 1])) < 0.01
    u, v = xyz[:, 0] * 5, xyz[:, 2] * 5
    pattern = np.stack([np.sin(u) * np.cos(v), np.sin(1.7 * u + v), np.cos(2.3 * v - u)], axis=1)
    assert np.median(np.abs(127.5 + 100 * pattern - rgb)[~is_sparse]) < 6.0
    (line,) = said
    assert f"{len(xyz):,} points" in line
    assert "400 sparse" in line
    assert f"{len(xyz) - 400:,} dense" in line

    # nerfstudio's parser, given the file, has the points in the frame of its poses.
    meta = json.loads((data / "transforms.json").read_text())
    meta["ply_file_path"] = str(file)
    (data / "transforms.json").write_text(json.dumps(meta))
    parser = NerfstudioDataParserConfig(data=data, load_3D_points=True)
    parser._target = CheckedNerfstudio
    outputs = parser.setup().get_dataparser_outputs("train")
    back = CaptureFrame.of(outputs, data, meta).points(outputs.metadata["points3D_xyz"].numpy())
    np.testing.assert_allclose(back, xyz, atol=1e-5)


def test_a_capture_of_many_photographs_gets_points_too(
    capture: CaptureMaker, tmp_path: Path
) -> None:
    """Training leaves them out of captures with more photographs than `max_views`."""
    data = capture(num_images=4, width=96, height=72)
    file = tmp_path / "points.ply"
    Points(
        data=data,
        output=file,
        interpolator="optical-flow",
        dense_points=DensePointsConfig(max_views=2),
    ).run()
    cloud = trimesh.load(file, process=False)
    assert isinstance(cloud, trimesh.PointCloud)
    assert len(cloud.vertices) > 400 + 100  # the capture brings 400


def test_options_that_choose_views_hold_the_others_out() -> None:
    assert not _chooses_views(SplitOptions())
    assert not _chooses_views(SplitOptions(format="llff", downscale_factor=2))
    for options in (SplitOptions(views=6), SplitOptions(every=3), SplitOptions(test_every=4)):
        assert _chooses_views(options)


def _frame(x: float, depth: float) -> PseudoView:
    """A camera at (x, 0, 0) that looks along -z at a wall it believes to be `depth` away."""
    pose = np.eye(4, dtype=np.float32)[:3]
    pose[0, 3] = x
    return PseudoView(
        camera_to_world=pose, fx=50.0, fy=50.0, cx=16.0, cy=12.0, width=32, height=24, time=None,
        image=np.zeros((24, 32, 3), np.uint8), confidence=np.full((24, 32), 255, np.uint8),
        provenance=Provenance(("a", "b"), 0.5, "", "", depth, "", 1.0, 1.0),
        depth=np.full((24, 32), depth, np.float32),
    )  # fmt: skip


def test_reprojection_error_by_hand() -> None:
    """Frames 0.4 apart. One believes the wall at 4, the other at 4.1.

    The first one's point at lateral position X appears in the other at 50 (X - 0.4) / 4 from its
    middle; at depth 4.1 that pixel shows 0.4 + (X - 0.4) 4.1 / 4, which the first sees at 50 / 4.1
    times that: 50 * 0.4 * (1 / 4.1 - 1 / 4) = -0.122 px from where it was. The other way round it
    is the same with 4 and 4.1 exchanged, 0.122 px as well.
    """
    assert reprojection_error_px([_frame(0.0, 4.0), _frame(0.4, 4.0)]) == pytest.approx(0, abs=1e-5)
    error = reprojection_error_px([_frame(0.0, 4.0), _frame(0.4, 4.1)])
    assert error == pytest.approx(0.122, abs=1e-3)
    assert reprojection_error_px([_frame(0.0, 4.0), _frame(0.4, 6.0)]) is None
    assert reprojection_error_px([_frame(0.0, 4.0), _frame(90.0, 4.0)]) is None
    assert reprojection_error_px([replace(_frame(0.0, 4.0), depth=None)]) is None


def test_what_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"must end in \.ply"):
        Points(data=tmp_path, output=tmp_path / "points.txt").run()
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="cannot write"):
        write_points(
            tmp_path / "file/p.ply", np.zeros((1, 3), np.float32), np.zeros((1, 3), np.uint8)
        )


def test_a_failed_write_leaves_the_former_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "p.ply"
    file.write_text("former")

    def full(*_) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(InputError, match="No space left"):
            write_points(file, np.zeros((1, 3), np.float32), np.zeros((1, 3), np.uint8))
    assert [path.name for path in tmp_path.iterdir()] == ["p.ply"]
    assert file.read_text() == "former"
