# SPDX-License-Identifier: Apache-2.0
"""Scans of DTU (Jensen et al. 2014) with few training views: `ns-train METHOD --data D dtu`.

The split is that of pixelNeRF (arXiv 2012.02190), which methods for few views are compared on:
view k is the k-th position of the robot, counted from 0, of the first 49; 9 of them train, in a
fixed order of which the first 3 or 6 may be taken; 15 with glare or shadow are left out; the other
25 are test views.

A scan has the layout of IDR (arXiv 2003.09852), in which pixelNeRF's smaller copy of all scans and
NeuS's copy are spread, too:

    scan40/image/*.png   a photograph of each view, in the order of the names
    scan40/cameras.npz   "world_mat_k", [3 or 4, 4]: P = K [R | t], world to pixels of these images
    scan40/mask/*.png    optional, "000.png" and so on: where view k shows the object

Masks serve to measure on the object; test views carry them, training views do not. All else in
cameras.npz, such as the matrices that normalise a scan, is not needed. Poses are oriented, centred
and scaled from all views of a scan together, so that every number of views shares one frame.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from nerfstudio.cameras import camera_utils
from nerfstudio.cameras.cameras import Cameras, CameraType
from nerfstudio.data.dataparsers.base_dataparser import (
    DataParser,
    DataParserConfig,
    DataparserOutputs,
)
from nerfstudio.data.scene_box import SceneBox
from nerfstudio.plugins.registry_dataparser import DataParserSpecification
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from ps4pro_nerfstudio.caches import cache_folder, can_write, capture_cache
from ps4pro_nerfstudio.dataparsers.places import check_places
from ps4pro_nerfstudio.dataparsers.split_file import relative_name
from ps4pro_nerfstudio.dataparsers.view_selection import natural_key
from ps4pro_nerfstudio.geometry.cameras import flip_camera_axes
from ps4pro_nerfstudio.messages import InputError, say

NUM_VIEWS = 49
"""Views of a scan that the split knows; some scans have 15 more, which are not used."""
TRAIN_ORDER = (25, 22, 28, 40, 44, 48, 0, 8, 13)
"""Training views; fewer are the first of these."""
EXCLUDED = (3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 36, 37, 38, 39)
"""Views that neither train nor test."""
TEST = tuple(v for v in range(NUM_VIEWS) if v not in TRAIN_ORDER and v not in EXCLUDED)
"""Test views, whatever the number of training views."""

_USUAL_WIDTH = 400
"""Width of the images in published comparisons, a quarter of that of the photographs."""
_SUFFIXES = {".png", ".jpg", ".jpeg"}
_MAX_SKEW = 1e-3
"""Largest skew, as part of the focal length, that nerfstudio's cameras may leave out."""


@dataclass
class DTUDataParserConfig(DataParserConfig):
    """A scan of DTU of which few views train."""

    _target: type = field(default_factory=lambda: DTU)
    data: Path = Path()
    """Folder of the scan, with image/ and cameras.npz."""
    views: Literal[3, 6, 9] = 3
    """Number of training views."""
    downscale_factor: int | None = None
    """How many times smaller the images are made. Default: as many times as brings the width
    nearest to 400 pixels, the size of the published comparisons."""
    masks: Path = Path("mask")
    """Folder of object masks, in the scan or elsewhere; they are named 000.png and so on."""
    scale_factor: float = 1.0
    """How much to scale the camera centres by."""
    scene_scale: float = 1.0
    """How much to scale the region of interest by."""
    orientation_method: Literal["pca", "up", "vertical", "none"] = "up"
    """How the scan is oriented."""
    center_method: Literal["poses", "focus", "none"] = "focus"
    """How the scan is centred; focus puts the object at the origin."""
    auto_scale_poses: bool = True
    """Scale the camera centres into +/- 1."""


@dataclass(frozen=True)
class Scan:
    """What a scan's folder holds, view by view."""

    images: list[Path]
    """Photographs of all views, 49 or more."""
    masks: dict[int, Path] | None
    """Object masks by view; None: the scan has none."""
    camera_to_worlds: NDArray[np.float64]
    """[N, 4, 4], OpenCV camera axes, in the units of the file (usually millimetres)."""
    intrinsics: NDArray[np.float64]
    """[N, 3, 3] in pixels of the photographs."""
    size: tuple[int, int]
    """(width, height) of the photographs."""


class DTU(DataParser):
    """See the module's docstring.

    `metadata["split"]` of its outputs names all training and test views, as `sparse-views` does.
    """

    config: DTUDataParserConfig

    def __init__(self, config: DTUDataParserConfig) -> None:
        super().__init__(config)
        self._scan: Scan | None = None

    def _generate_dataparser_outputs(
        self, split: str = "train", **kwargs: dict | None
    ) -> DataparserOutputs:
        if split not in ("train", "val", "test"):
            raise ValueError(f"unknown split {split}")
        config = self.config
        train, test = choose_views(config.views)
        if self._scan is None:
            self._scan = read_scan(config.data, config.masks)
            say(
                f"{len(train)} training and {len(test)} test views of a DTU scan, "
                + ("with" if self._scan.masks else "without")
                + " object masks"
            )
        scan = self._scan
        factor = config.downscale_factor
        if factor is None:
            factor = max(1, round(scan.size[0] / _USUAL_WIDTH))
        if factor < 1:
            raise InputError(f"--downscale-factor {factor}: at least 1 is needed")
        size = (max(1, round(scan.size[0] / factor)), max(1, round(scan.size[1] / factor)))
        views = train if split == "train" else test
        images, masks = [scan.images[view] for view in views], None
        if split != "train" and scan.masks is not None:
            masks = [scan.masks[view] for view in views]
        if size != scan.size:
            images = _write_smaller(images, size, config.data, "image")
        if masks is not None:
            masks = _write_smaller(masks, size, config.data, "mask")
        cameras, transform, scale = _normalised_cameras(scan, size, config)
        half = torch.full((3,), config.scene_scale)
        names = [relative_name(image, config.data) for image in scan.images]
        return DataparserOutputs(
            image_filenames=images,
            cameras=cameras[torch.tensor(views)],
            scene_box=SceneBox(aabb=torch.stack([-half, half])),
            mask_filenames=masks,
            dataparser_transform=transform,
            dataparser_scale=scale,
            metadata={
                "split": {
                    "train": [names[view] for view in train],
                    "test": [names[view] for view in test],
                }
            },
        )


def choose_views(count: int) -> tuple[list[int], list[int]]:
    """Training and test views, both ascending.

    Raises:
        InputError: `count` is not 3, 6 or 9.
    """
    if count not in (3, 6, 9):
        raise InputError(f"--views {count}: the DTU split has 3, 6 or 9 training views")
    return sorted(TRAIN_ORDER[:count]), list(TEST)


def read_scan(data: Path, masks: Path = Path("mask")) -> Scan:
    """Find and check everything that a scan's folder holds, without decoding its images.

    Args:
        data: folder with `image` and `cameras.npz`.
        masks: folder of the masks, below `data` or elsewhere. Only the default may be absent.

    Raises:
        InputError: missing files, fewer than 49 photographs, another number of cameras than of
            photographs, a mask that is missing, cameras that do not fit the photographs or do not
            move.
    """
    images = _list_images(data / "image")
    if len(images) < NUM_VIEWS:
        raise InputError(
            f"{data / 'image'} has {len(images)} images; a DTU scan has at least {NUM_VIEWS}, "
            "image/*.png beside cameras.npz"
        )
    sizes = {_image_size(image) for image in images[:NUM_VIEWS]}
    if len(sizes) > 1:
        raise InputError(f"the images in {data / 'image'} differ in size: {sorted(sizes)[:2]}")
    size = sizes.pop()
    poses, intrinsics = _read_cameras(data / "cameras.npz", len(images))
    # A camera file of the full-size photographs beside smaller ones is a common mix-up.
    relative = intrinsics[:, :2, 2] / size
    if relative.min() < 0.2 or relative.max() > 0.8:
        raise InputError(
            f"{data / 'cameras.npz'} does not fit images of {size[0]}x{size[1]} pixels (principal "
            f"point {np.round(intrinsics[0, :2, 2]).tolist()}); use the images it was made for"
        )
    return Scan(images, _find_masks(data, masks), poses, intrinsics, size)


def _list_images(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise InputError(
            f"{folder} not found; --data wants the folder of one DTU scan, with image/*.png and "
            "cameras.npz"
        )
    files = [file for file in folder.iterdir() if file.suffix.lower() in _SUFFIXES]
    return sorted(files, key=lambda file: natural_key(file.name))


def _find_masks(data: Path, masks: Path) -> dict[int, Path] | None:
    """Masks of the test views, by the number that ends their names."""
    folder = data / masks
    if not folder.is_dir():
        if masks != Path("mask"):
            raise InputError(f"{folder} does not exist (--masks)")
        return None
    found = {}
    for file in folder.iterdir():
        number = re.search(r"([0-9]+)$", file.stem)
        if number and file.suffix.lower() in _SUFFIXES:
            found[int(number[1])] = file
    missing = [view for view in TEST if view not in found]
    if missing:
        raise InputError(
            f"{folder} has no mask of view {missing[0]} ({missing[0]:03d}.png); add it, or name "
            "another folder (--masks)"
        )
    return found


def _read_cameras(
    file: Path, count: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:  # [N, 4, 4] and [N, 3, 3]
    if not file.is_file():
        raise InputError(f"{file} not found; a DTU scan has its cameras there (world_mat_0 ...)")
    try:
        with np.load(file, allow_pickle=False) as content:
            names = {name for name in content.files if re.fullmatch(r"world_mat_[0-9]+", name)}
            wanted = [f"world_mat_{view}" for view in range(count)]
            if names != set(wanted):
                raise InputError(
                    f"{file} has {len(names)} cameras (world_mat_0 ...), its folder {count} "
                    "images; there must be one camera for each image"
                )
            matrices = [np.asarray(content[name], dtype=np.float64) for name in wanted]
    except InputError:
        raise
    except Exception as error:  # numpy, zipfile and zlib each raise their own
        raise InputError(f"{file} cannot be read: {error}") from error
    cameras = [_decompose(matrix, f"{file}: world_mat_{v}") for v, matrix in enumerate(matrices)]
    poses = np.stack([pose for pose, _ in cameras])
    check_places(poses[:, :3, 3], file)
    return poses, np.stack([matrix for _, matrix in cameras])


def _decompose(
    projection: NDArray[np.float64], where: str
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Camera-to-world [4, 4] with OpenCV axes and intrinsics [3, 3] of P = K [R | t], any scale."""
    import cv2

    if projection.shape not in ((3, 4), (4, 4)) or not np.isfinite(projection).all():
        raise InputError(f"{where} must be a finite [3, 4] or [4, 4], got {projection.shape}")
    projection = projection[:3]
    scale = np.linalg.norm(projection[2, :3])
    if scale == 0 or abs(np.linalg.det(projection[:, :3] / scale)) < 1e-9:
        raise InputError(f"{where} is not a projection of a pinhole camera")
    # The sign is free; with this one OpenCV's factors are a rotation and a positive diagonal.
    projection = projection / (scale * np.sign(np.linalg.det(projection[:, :3])))
    intrinsics, rotation, centre = cv2.decomposeProjectionMatrix(projection)[:3]
    intrinsics = intrinsics / intrinsics[2, 2]
    if abs(intrinsics[0, 1]) > _MAX_SKEW * intrinsics[0, 0]:
        raise InputError(f"{where} is a camera with skewed pixels, which nerfstudio cannot render")
    pose = np.eye(4)
    pose[:3, :3] = rotation.T
    pose[:3, 3] = centre[:3, 0] / centre[3, 0]
    return pose, intrinsics


def _normalised_cameras(
    scan: Scan, size: tuple[int, int], config: DTUDataParserConfig
) -> tuple[Cameras, torch.Tensor, float]:
    """All cameras for images of `size` as nerfstudio wants them, the transform and the scale."""
    oriented, transform = camera_utils.auto_orient_and_center_poses(
        torch.from_numpy(flip_camera_axes(scan.camera_to_worlds)).float(),
        method=config.orientation_method,
        center_method=config.center_method,
    )
    scale = config.scale_factor
    if config.auto_scale_poses:
        scale /= max(float(oriented[:, :3, 3].abs().max()), 1e-12)
    poses = oriented[:, :3, :4].clone()
    poses[:, :3, 3] *= scale
    ratio = np.array(size) / scan.size
    focal = torch.from_numpy(scan.intrinsics[:, [0, 1], [0, 1]] * ratio).float()
    centre = torch.from_numpy(scan.intrinsics[:, :2, 2] * ratio).float()
    cameras = Cameras(
        camera_to_worlds=poses,
        fx=focal[:, 0],
        fy=focal[:, 1],
        cx=centre[:, 0],
        cy=centre[:, 1],
        width=size[0],
        height=size[1],
        camera_type=CameraType.PERSPECTIVE,
    )
    return cameras, transform, scale


# ---------------------------------------------------------------------- smaller images


def _write_smaller(
    files: Sequence[Path], size: tuple[int, int], data: Path, kind: Literal["image", "mask"]
) -> list[Path]:
    """Copies of the files at a size, in the cache of the scan; those already there are kept."""
    folder = capture_cache(data)
    folder = (folder if can_write(folder) else cache_folder()) / "dtu"
    copies = []
    for file in files:
        stamp = file.stat()
        key = f"{file.resolve()} {stamp.st_mtime_ns} {stamp.st_size}"
        digest = hashlib.blake2b(key.encode(), digest_size=8).hexdigest()
        copy = folder / f"{kind}_{size[0]}x{size[1]}" / f"{file.stem}_{digest}.png"
        if not copy.is_file():
            copy.parent.mkdir(parents=True, exist_ok=True)
            # Another process may be at the same; the last complete copy stays.
            partial = copy.with_name(f"{copy.stem}.{os.getpid()}.partial")
            _reduce(file, size, kind).save(partial, format="PNG")
            os.replace(partial, copy)
        copies.append(copy)
    return copies


def _reduce(file: Path, size: tuple[int, int], kind: Literal["image", "mask"]) -> Image.Image:
    """Area average in 8 bits; a pixel of a mask is set where most of its area is."""
    import cv2

    try:
        with Image.open(file) as image:
            pixels = np.asarray(image.convert("RGB" if kind == "image" else "L"))
    except (UnidentifiedImageError, OSError) as error:
        raise InputError(f"{kind} {file} cannot be read: {error}") from error
    if kind == "mask":
        pixels = np.where(pixels > 127, np.uint8(255), np.uint8(0))
    pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    if kind == "mask":
        pixels = np.where(pixels > 127, np.uint8(255), np.uint8(0))
    return Image.fromarray(pixels)


def _image_size(file: Path) -> tuple[int, int]:
    try:
        with Image.open(file) as image:
            return image.size
    except (UnidentifiedImageError, OSError) as error:
        raise InputError(f"image {file} cannot be read: {error}") from error


dtu = DataParserSpecification(
    config=DTUDataParserConfig(),
    description="A DTU scan of which 3, 6 or 9 views train, 25 others test.",
)
