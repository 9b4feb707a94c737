# SPDX-License-Identifier: Apache-2.0
"""Captures in the format of LLFF (Mildenhall et al. 2019): `poses_bounds.npy` beside images.

Each of the N rows holds 17 numbers: a 3x5 matrix, row by row, and the nearest and farthest depth of
the scene. The first four columns of the matrix are a camera-to-world pose whose camera axes point
down, right and back; the fifth is height, width and focal length in pixels of the photographs as
taken. Rows follow the plain alphabetical order of the file names. Photographs stand in `images`,
those made smaller by k in `images_k`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from nerfstudio.cameras import camera_utils
from nerfstudio.cameras.cameras import Cameras, CameraType
from nerfstudio.data.dataparsers.base_dataparser import DataparserOutputs
from nerfstudio.data.scene_box import SceneBox
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from ps4pro_nerfstudio.dataparsers.places import check_places
from ps4pro_nerfstudio.messages import InputError

_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp"}
_MIN_LONG_SIDE = 480
"""Pixels below which smaller images are not chosen by themselves; the usual 504x378 are above."""


def read_llff(
    data: Path,
    *,
    downscale_factor: int | None = None,
    scale_factor: float = 1.0,
    scene_scale: float = 1.0,
    orientation_method: str = "up",
    center_method: str = "poses",
    auto_scale_poses: bool = True,
) -> DataparserOutputs:
    """All views of an LLFF capture, oriented, centred and scaled as nerfstudio does it.

    The scene box encloses what the cameras see up to their far bounds, times `scene_scale`.
    `metadata["depth_bounds"]` [N, 2] are the nearest and farthest depth of each view, in units of
    the returned poses.

    Args:
        data: folder with `poses_bounds.npy`.
        downscale_factor: k reads `images_k`, 1 reads `images`. By default the smallest images whose
            longer side has at least 480 pixels are read, and the largest where none has.
        scale_factor: times the scale of the poses.
        scene_scale: times the size of the scene box.
        orientation_method: as in nerfstudio.
        center_method: as in nerfstudio.
        auto_scale_poses: scale the camera centres into +/- 1.

    Raises:
        InputError: a broken file, cameras that do not move, no images, a number of images that is
            not that of the poses.
    """
    poses, sizes, focals, bounds = _read_poses(data / "poses_bounds.npy")
    files = _choose_images(data, downscale_factor)
    if len(files) != len(poses):
        raise InputError(
            f"{files[0].parent} has {len(files)} images, {data / 'poses_bounds.npy'} "
            f"{len(poses)} poses; there must be one image for each pose"
        )
    found = np.array([_image_size(file) for file in files], dtype=np.float64)  # width, height
    ratio = found / sizes
    intrinsics = torch.from_numpy(np.stack([focals * ratio[:, 0], focals * ratio[:, 1]])).float()
    oriented, transform = camera_utils.auto_orient_and_center_poses(
        torch.from_numpy(poses).float(),
        method=orientation_method,  # pyright: ignore[reportArgumentType]
        center_method=center_method,  # pyright: ignore[reportArgumentType]
    )
    scale = scale_factor
    if auto_scale_poses:
        scale /= max(float(oriented[:, :3, 3].abs().max()), 1e-12)
    oriented = oriented[:, :3, :4].clone()
    oriented[:, :3, 3] *= scale
    width, height = torch.from_numpy(found).float().T
    cameras = Cameras(
        camera_to_worlds=oriented,
        fx=intrinsics[0],
        fy=intrinsics[1],
        cx=width / 2,
        cy=height / 2,
        width=width.to(torch.int32),
        height=height.to(torch.int32),
        camera_type=CameraType.PERSPECTIVE,
    )
    depth_bounds = torch.from_numpy(bounds).float() * scale
    return DataparserOutputs(
        image_filenames=files,
        cameras=cameras,
        scene_box=SceneBox(aabb=_seen_box(cameras, depth_bounds[:, 1], scene_scale)),
        dataparser_transform=transform,
        dataparser_scale=scale,
        metadata={"depth_bounds": depth_bounds},
    )


def _read_poses(file: Path) -> tuple[NDArray, NDArray, NDArray, NDArray]:
    """Poses [N, 4, 4] with OpenGL axes, sizes [N, 2] (width, height), focals [N], bounds [N, 2]."""
    try:
        rows = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{file} cannot be read: {error}") from error
    if rows.ndim != 2 or rows.shape[1] != 17 or len(rows) < 2:
        raise InputError(f"{file} has shape {rows.shape}, expected (N, 17) with at least two rows")
    rows = rows.astype(np.float64)
    if not np.isfinite(rows).all():
        raise InputError(f"{file} has NaN or infinite entries")
    matrices = rows[:, :15].reshape(-1, 3, 5)
    down, right, back, centre, shape = np.moveaxis(matrices, 2, 0)
    poses = np.tile(np.eye(4), (len(rows), 1, 1))
    poses[:, :3, :] = np.stack([right, -down, back, centre], axis=2)
    rotations = poses[:, :3, :3]
    errors = np.abs(rotations @ rotations.swapaxes(1, 2) - np.eye(3)).max(axis=(1, 2))
    bounds = rows[:, 15:]
    if errors.max() > 1e-2 or (np.linalg.det(rotations) < 0).any():
        raise InputError(f"{file}: the pose of row {int(errors.argmax())} is no rigid motion")
    if (shape <= 0).any() or (bounds[:, 0] <= 0).any() or (bounds[:, 1] < bounds[:, 0]).any():
        raise InputError(f"{file}: image sizes, focal lengths and depth bounds must be positive")
    check_places(centre, file)
    return poses, shape[:, [1, 0]], shape[:, 2], bounds


def _choose_images(data: Path, downscale_factor: int | None) -> list[Path]:
    """Images of the folder that the factor names, or of the one that suits; plain order."""
    if downscale_factor is not None:
        name = "images" if downscale_factor == 1 else f"images_{downscale_factor}"
        files = _list_images(data / name)
        if not files:
            raise InputError(f"{data / name} has no images (--downscale-factor)")
        return files
    folders = [_list_images(folder) for folder in [data / "images", *data.glob("images_*")]]
    folders = [files for files in folders if files]
    if not folders:
        raise InputError(f"no images in {data / 'images'} or {data / 'images_8'}")
    by_size = sorted(folders, key=lambda files: max(_image_size(files[0])))
    large = [files for files in by_size if max(_image_size(files[0])) >= _MIN_LONG_SIDE]
    return large[0] if large else by_size[-1]


def _list_images(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(file for file in folder.iterdir() if file.suffix.lower() in _SUFFIXES)


def _image_size(file: Path) -> tuple[int, int]:
    try:
        with Image.open(file) as image:
            return image.size
    except (UnidentifiedImageError, OSError) as error:
        raise InputError(f"image {file} cannot be read: {error}") from error


def _seen_box(cameras: Cameras, far: torch.Tensor, scene_scale: float) -> torch.Tensor:
    """Box [2, 3] around the cameras and the corners of their images at depth `far` [N]."""
    half = torch.cat([cameras.cx / cameras.fx, cameras.cy / cameras.fy], dim=1)  # [N, 2]
    signs = torch.tensor([[-1.0, -1.0], [-1.0, 1.0], [1.0, -1.0], [1.0, 1.0]])
    rays = torch.cat([signs * half[:, None], -torch.ones(len(far), 4, 1)], dim=2)
    rotation, centre = cameras.camera_to_worlds[:, :, :3], cameras.camera_to_worlds[:, :, 3]
    corners = torch.einsum("nij,nkj->nki", rotation, rays * far[:, None, None]) + centre[:, None]
    points = torch.cat([centre, corners.reshape(-1, 3)])
    low, high = points.min(0).values, points.max(0).values
    middle, extent = (low + high) / 2, (high - low) / 2 * scene_scale
    return torch.stack([middle - extent, middle + extent])
