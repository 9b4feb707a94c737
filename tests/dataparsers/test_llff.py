# SPDX-License-Identifier: Apache-2.0
"""Poses of LLFF against hand calculations, and against the photographs of a real capture."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ps4pro_nerfstudio.dataparsers.llff import read_llff
from ps4pro_nerfstudio.messages import InputError
from tests.conftest import look_at

UNTOUCHED = {"orientation_method": "none", "center_method": "none", "auto_scale_poses": False}


def write_llff(folder: Path, count: int = 12, sizes: tuple[int, ...] = (64,)) -> list[np.ndarray]:
    """Write a capture taken at 640x480 with focal length 600; return its OpenGL poses [4, 4].

    `sizes` are the widths of the images found; the first goes to `images`, w to `images_{640/w}`.
    """
    poses = [look_at(np.array([0.1 * i, 2.0, 0.3]), np.zeros(3)) for i in range(count)]
    rows = []
    for pose in poses:
        right, up, back, centre = pose[:3].T
        matrix = np.stack([-up, right, back, centre, [480, 640, 600]], axis=1)
        rows.append([*matrix.ravel(), 1.0, 5.0])
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "poses_bounds.npy", np.array(rows))
    for place, width in enumerate(sizes):
        images = folder / ("images" if place == 0 else f"images_{640 // width}")
        images.mkdir()
        for index in range(count):
            image = Image.new("RGB", (width, width * 3 // 4), (index, 0, 0))
            image.save(images / f"photo{index:02d}.png")
    return poses


def test_poses_get_opengl_axes(tmp_path):
    poses = write_llff(tmp_path)
    parsed = read_llff(tmp_path, **UNTOUCHED).cameras.camera_to_worlds.numpy()
    np.testing.assert_allclose(parsed, np.array(poses)[:, :3], atol=1e-6)


def test_intrinsics_follow_the_images_found(tmp_path):
    write_llff(tmp_path, sizes=(640, 64))
    small = read_llff(tmp_path, downscale_factor=10).cameras[0]
    assert (int(small.width), int(small.height)) == (64, 48)
    assert float(small.fx) == float(small.fy) == 60
    assert (float(small.cx), float(small.cy)) == (32, 24)


@pytest.mark.parametrize(
    "sizes, factor, width",
    [((640, 320), None, 640), ((320, 64), None, 320), ((2560, 1280, 512, 320), None, 512),
     ((640, 320), 2, 320), ((640, 320), 1, 640)],
)  # fmt: skip
def test_the_smallest_images_that_are_large_enough_are_read(tmp_path, sizes, factor, width):
    write_llff(tmp_path, count=2, sizes=sizes[:1])
    for other in sizes[1:]:
        folder = tmp_path / f"images_{sizes[0] // other}"
        folder.mkdir()
        for index in range(2):
            Image.new("RGB", (other, other * 3 // 4)).save(folder / f"photo{index:02d}.png")
    assert int(read_llff(tmp_path, downscale_factor=factor).cameras.width[0]) == width


def test_rows_belong_to_the_files_in_plain_order(tmp_path):
    """Without leading zeros "photo10" comes before "photo2", and so do their rows."""
    poses = write_llff(tmp_path)
    for file in sorted((tmp_path / "images").iterdir()):
        file.rename(file.with_name(f"photo{int(file.stem[5:])}.png"))
    outputs = read_llff(tmp_path, **UNTOUCHED)
    assert outputs.image_filenames[2].name == "photo10.png"
    found = outputs.cameras.camera_to_worlds[2].numpy()
    np.testing.assert_allclose(found, poses[2][:3], atol=1e-6)


def test_normalised_poses_lead_back_to_the_file(tmp_path):
    poses = write_llff(tmp_path)
    outputs = read_llff(tmp_path)
    parsed = outputs.cameras.camera_to_worlds
    assert float(parsed[:, :, 3].abs().max()) == pytest.approx(1)
    back = outputs.transform_poses_to_original_space(parsed.clone(), camera_convention="opengl")
    np.testing.assert_allclose(back.numpy(), np.array(poses)[:, :3], atol=1e-4)


@pytest.mark.filterwarnings("ignore:Using a non-tuple sequence")
def test_the_scene_box_is_what_is_seen_up_to_the_far_bound(tmp_path):
    """The box is the smallest around all cameras and all their pixels at depth 5."""
    write_llff(tmp_path)
    outputs = read_llff(tmp_path, **UNTOUCHED)
    seen = [outputs.cameras.camera_to_worlds[:, :, 3]]
    for index in range(len(outputs.cameras)):
        rays = outputs.cameras.generate_rays(camera_indices=index)
        # The bound is along the axis; a ray to the side is longer.
        axis = -outputs.cameras.camera_to_worlds[index, :, 2]
        length = 5.0 / (rays.directions @ axis)
        seen.append((rays.origins + rays.directions * length[..., None]).reshape(-1, 3))
    points = torch.cat(seen)
    box = outputs.scene_box.aabb
    tolerance = 5.0 / 60  # the outermost pixel centre is half a pixel of the 64 inside
    assert bool((points >= box[0] - 1e-4).all() and (points <= box[1] + 1e-4).all())
    torch.testing.assert_close(points.min(0).values, box[0], atol=tolerance, rtol=0)
    torch.testing.assert_close(points.max(0).values, box[1], atol=tolerance, rtol=0)
    doubled = read_llff(tmp_path, **UNTOUCHED, scene_scale=2.0).scene_box.aabb
    torch.testing.assert_close(doubled[1] - doubled[0], 2 * (box[1] - box[0]))


@pytest.mark.parametrize("options", [UNTOUCHED, {}])
def test_each_view_has_its_depth_bounds_in_units_of_the_poses(tmp_path, options):
    write_llff(tmp_path)
    bounds = np.stack([1.0 + 0.1 * np.arange(12), 5.0 + np.arange(12)], axis=1)
    _edit_rows(lambda rows: np.hstack([rows[:, :15], bounds]))(tmp_path)
    outputs = read_llff(tmp_path, **options)
    found = outputs.metadata["depth_bounds"]
    assert found.shape == (12, 2)
    np.testing.assert_allclose(found / outputs.dataparser_scale, bounds, rtol=1e-6)
    assert (outputs.dataparser_scale == 1.0) == (options == UNTOUCHED)


def _edit_rows(change):
    def edit(folder):
        rows = np.load(folder / "poses_bounds.npy")
        np.save(folder / "poses_bounds.npy", change(rows))

    return edit


def _set(row, column, value):
    def change(rows):
        rows[row, column] = value
        return rows

    return _edit_rows(change)


BAD = {
    "rows": (_edit_rows(lambda rows: rows[:-1]), "12 images, .* 11 poses"),
    "columns": (_edit_rows(lambda rows: rows[:, :16]), r"shape \(12, 16\), expected"),
    "NaN": (_set(3, 3, np.nan), "NaN"),
    "rotation": (_set(3, 0, 4.0), "pose of row 3 is no rigid motion"),
    "bounds": (_set(3, 15, -1.0), "must be positive"),
    "no array": (lambda folder: (folder / "poses_bounds.npy").write_bytes(b"x"), "cannot be read"),
    "no file": (lambda folder: (folder / "poses_bounds.npy").unlink(), "cannot be read"),
    "no images": (
        lambda folder: [file.unlink() for file in (folder / "images").iterdir()],
        "no images in",
    ),
    "broken image": (
        lambda folder: (folder / "images/photo04.png").write_bytes(b"x"),
        r"photo04\.png cannot be read",
    ),
}


@pytest.mark.parametrize("spoil, message", BAD.values(), ids=BAD.keys())
def test_a_bad_capture_is_refused(tmp_path, spoil, message):
    write_llff(tmp_path)
    spoil(tmp_path)
    with pytest.raises(InputError, match=message):
        read_llff(tmp_path)


def test_a_missing_downscaled_folder_is_refused(tmp_path):
    write_llff(tmp_path)
    with pytest.raises(InputError, match="images_4 has no images"):
        read_llff(tmp_path, downscale_factor=4)


def _fern() -> Path:
    beside_checkout = Path(__file__).resolve().parents[2].parent / "shared" / "data"
    folder = Path(os.environ.get("PS4PRO_BENCH_DATA", beside_checkout)) / "scenes" / "fern"
    if not folder.is_dir():
        pytest.skip("no fern: set PS4PRO_BENCH_DATA to the folder that has scenes/fern")
    return folder


def test_real_photographs_agree_with_the_parsed_poses():
    """Features matched between two photographs lie on each other's epipolar lines.

    x_b^T F x_a = 0 with F = K^-T [t]x R K^-1 from the parsed poses alone. The median distance is
    that of a true match as long as most matches are true; with one axis flipped it is far above.
    """
    import cv2

    outputs = read_llff(_fern())
    flip = np.diag([1.0, -1.0, -1.0])  # OpenGL to OpenCV camera axes
    poses = outputs.cameras.camera_to_worlds.double().numpy()
    intrinsics = outputs.cameras.get_intrinsics_matrices().double().numpy()
    assert (int(outputs.cameras.width[0]), int(outputs.cameras.height[0])) == (504, 378)
    sift = cv2.SIFT_create(2000)  # pyright: ignore[reportAttributeAccessIssue]
    for a, b in itertools.combinations((0, 3, 11), 2):
        features = []
        for view in (a, b):
            grey = cv2.imread(str(outputs.image_filenames[view]), cv2.IMREAD_GRAYSCALE)
            features.append(sift.detectAndCompute(grey, None))
        (points_a, of_a), (points_b, of_b) = features
        matches = [
            first
            for first, second in cv2.BFMatcher().knnMatch(of_a, of_b, k=2)
            if first.distance < 0.7 * second.distance
        ]
        assert len(matches) > 50
        ones = np.ones((len(matches), 1))
        # OpenCV counts from pixel centres, the cameras from the corner of the image.
        x_a = np.hstack([np.array([points_a[m.queryIdx].pt for m in matches]) + 0.5, ones])
        x_b = np.hstack([np.array([points_b[m.trainIdx].pt for m in matches]) + 0.5, ones])
        rotation_a, rotation_b = poses[a, :, :3] @ flip, poses[b, :, :3] @ flip
        rotation = rotation_b.T @ rotation_a
        t = rotation_b.T @ (poses[a, :, 3] - poses[b, :, 3])
        cross = np.array([[0, -t[2], t[1]], [t[2], 0, -t[0]], [-t[1], t[0], 0]])
        fundamental = (
            np.linalg.inv(intrinsics[b]).T @ cross @ rotation @ np.linalg.inv(intrinsics[a])
        )
        lines = x_a @ fundamental.T
        distance = np.abs((x_b * lines).sum(1)) / np.linalg.norm(lines[:, :2], axis=1)
        assert np.median(distance) < 1.0
        print(f"views {a} and {b}: {len(matches)} matches, median {np.median(distance):.2f} px")
