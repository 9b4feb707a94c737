# SPDX-License-Identifier: Apache-2.0
"""The photographs of a capture: what can be wrong with them, and how they enter the interpolation.

Every datamanager of the suite reads captures through these functions, so that all of them refuse
the same captures with the same words and make the same pseudo views.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from nerfstudio.cameras.cameras import Cameras, CameraType
from nerfstudio.data.datamanagers.full_images_datamanager import _undistort_image
from nerfstudio.data.dataparsers.base_dataparser import DataParserConfig, DataparserOutputs
from nerfstudio.data.dataparsers.nerfstudio_dataparser import Nerfstudio
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from ps4pro_nerfstudio.datamanagers.augmentation import to_uint8_photo
from ps4pro_nerfstudio.datamanagers.photo_dataset import PhotoDataset
from ps4pro_nerfstudio.dataparsers.nerfstudio_dataparser import CheckedNerfstudio
from ps4pro_nerfstudio.dataparsers.places import stand_at_one_place
from ps4pro_nerfstudio.messages import InputError, counted, named, warn
from ps4pro_nerfstudio.pseudo_views.sources import SourceViews

# What reading a capture raises when the capture is at fault.
_CAPTURE_ERRORS = (AssertionError, OSError, ValueError, KeyError, IndexError, RuntimeError)
_LEAST_CONTENT = 0.01
"""Share of a photograph that masks must leave to be of use."""
_LEAST_ALPHA = 0.1
"""Alpha up to which a pixel counts as empty: cut-outs by matting are not quite clean."""
_LARGEST_CUT_OUT = 0.7
"""A photograph of which more is left is a picture with a transparent rim, not one of an object."""
_EXIF_ORIENTATION = 0x0112
_TURNED = (5, 6, 7, 8)
"""Values of the tag that show a picture turned by a quarter."""


@contextmanager
def reading_capture(data: Path | None, dataparser: DataParserConfig) -> Iterator[None]:
    """Read a capture: nerfstudio's own parser checks what it reads, failures become one line.

    Args:
        data: folder that the datamanager was given; None: that of the parser.
        dataparser: config of the parser; `Nerfstudio` is replaced by the parser that checks.

    Raises:
        InputError: the capture cannot be read.
    """
    if dataparser._target is Nerfstudio:
        dataparser._target = CheckedNerfstudio
    try:
        yield
    except InputError:
        raise
    except ZeroDivisionError as error:
        # nerfstudio's parsers divide by the largest coordinate of a centred camera alone.
        raise InputError(
            f"the capture {data or dataparser.data} cannot be read: all its cameras stand at the "
            "same place; there is no depth to find"
        ) from error
    except _CAPTURE_ERRORS as error:
        what = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"the capture {data or dataparser.data} cannot be read: {what}") from error


def check_captures(train: PhotoDataset, evaluation: PhotoDataset) -> None:
    """Check what can be checked without decoding images.

    Raises:
        InputError: fewer than two training views, or all from one place, no evaluation view, a
            missing or unreadable file, an image or mask whose size is not its camera's, a mask of
            several channels, a pose that is not finite.
    """
    train_on_all = (
        "`nerfstudio-data --eval-mode all` to train on all (the metrics then say nothing about new "
        "views)"
    )
    if len(train) < 2:
        raise InputError(
            f"{counted(len(train), 'photo')} left for training, at least two are needed; capture "
            f"more, or append {train_on_all}"
        )
    if len(evaluation) == 0:
        hold_out = (
            "`nerfstudio-data --eval-mode interval --eval-interval 8` to hold out every 8th, or "
        )
        raise InputError(
            "no evaluation view: nerfstudio's default split holds out none of fewer than ten "
            f"photos; append {hold_out if len(train) > 2 else ''}{train_on_all}"
        )
    for dataset in (train, evaluation):
        masks = dataset._dataparser_outputs.mask_filenames
        for index, path in enumerate(dataset.image_filenames):
            camera = dataset.cameras[index]
            if not bool(torch.isfinite(camera.camera_to_worlds).all()):
                raise InputError(f"the pose of {path} has NaN or infinite entries")
            if dataset.scale_factor == 1.0:
                size = (int(camera.width.item()), int(camera.height.item()))
                _check_image("image", path, size)
                if masks is not None:
                    _check_image("mask", masks[index], size)
    if stand_at_one_place(_centres_as_given(train._dataparser_outputs)):
        raise InputError(
            "all training photographs were taken from the same place; there is no depth to find. "
            "Let others train"
        )


def _centres_as_given(outputs: DataparserOutputs) -> NDArray[np.float64]:
    """Camera centres [N, 3] before a parser turned, centred and scaled them.

    Scaled, cameras that differ by rounding errors alone look like any others.
    """
    centres = outputs.cameras.camera_to_worlds[:, :3, 3].numpy().astype(np.float64)
    transform = outputs.dataparser_transform.numpy().astype(np.float64)
    return (centres / outputs.dataparser_scale - transform[:3, 3]) @ transform[:3, :3]


def content_mask(camera: Cameras) -> np.ndarray | None:
    """Pixels of the undistorted image that come from inside the photo, [H, W] bool; None: all.

    A white image goes through the same undistortion; what is not fully white afterwards was
    interpolated with the outside.

    Args:
        camera: one camera as the photo was taken, without batch axes.
    """
    parameters = camera.distortion_params
    if parameters is None or not bool(parameters.any()):
        return None
    if int(camera.camera_type.item()) == CameraType.FISHEYE624.value:
        return None  # upstream makes this camera's mask itself
    white = np.full((int(camera.height.item()), int(camera.width.item())), 255, np.uint8)
    intrinsics = camera.get_intrinsics_matrices().numpy()
    _, content, _ = _undistort_image(camera, parameters.numpy(), {}, white, intrinsics)
    # One pixel more: the photo's own outermost pixels are often damaged by its processing.
    return cv2.erode((content == 255).astype(np.uint8), np.ones((3, 3), np.uint8)) > 0


def undistorted_photographs(dataset: PhotoDataset) -> tuple[list[dict[str, Any]], Cameras]:
    """Photographs as pinhole cameras would have taken them; the dataset stays as it is.

    What nerfstudio's full-image datamanager makes of the same capture, pixel by pixel.

    Returns:
        For each view `image` [H, W, 3 or 4] uint8 and, unless all of it is content and wanted,
        `mask` [H, W, 1] bool; and the cameras of these images.
    """
    cameras = copy.deepcopy(dataset.cameras)
    photographs = []
    for index in range(len(dataset)):
        data: dict[str, Any] = dataset.get_data(index, image_type="uint8")
        camera = dataset.cameras[index].reshape(())
        parameters = camera.distortion_params
        if parameters is not None and bool(parameters.any()):
            intrinsics, image, mask = _undistort_image(
                camera,
                parameters.numpy(),
                data,
                data["image"].numpy(),
                camera.get_intrinsics_matrices().numpy(),
            )
            data["image"] = torch.from_numpy(image)
            if mask is not None:
                data["mask"] = mask
            cameras.fx[index], cameras.fy[index] = float(intrinsics[0, 0]), float(intrinsics[1, 1])
            cameras.cx[index], cameras.cy[index] = float(intrinsics[0, 2]), float(intrinsics[1, 2])
            cameras.width[index], cameras.height[index] = image.shape[1], image.shape[0]
            mask_content(data, content_mask(camera))
        photographs.append(data)
    mark_pinholes(cameras, dataset.cameras)
    return photographs, cameras


def mark_pinholes(cameras: Cameras, as_taken: Cameras) -> bool:
    """Call those of N cameras pinholes whose fisheye photographs were undistorted.

    nerfstudio's undistortion makes pinhole pictures of them and changes the intrinsics, but leaves
    the type of the camera and its distortion. Fisheye cameras whose parameters are all zero have
    not been undistorted and stay what they are.

    Args:
        cameras: those of the undistorted photographs; changed in place.
        as_taken: those of the photographs as they were taken.

    Returns:
        Whether there was any.
    """
    parameters = as_taken.distortion_params
    if parameters is None or cameras.distortion_params is None:
        return False
    undistorted = (parameters != 0).any(dim=-1, keepdim=True)
    undistorted &= as_taken.camera_type == CameraType.FISHEYE.value
    if not bool(undistorted.any()):
        return False
    # New tensors: a value that all cameras share lies in one place of the memory.
    cameras.camera_type = torch.where(
        undistorted, CameraType.PERSPECTIVE.value, cameras.camera_type
    )
    cameras.distortion_params = torch.where(undistorted, 0.0, cameras.distortion_params)
    return True


def mask_content(data: dict[str, Any], content: np.ndarray | None) -> None:
    """Add what has content [H, W] bool to the `mask` [H, W, 1] of a view; None: all has."""
    if content is None or content.all():
        return
    mask = torch.from_numpy(content)[..., None].to(data["image"].device)
    data["mask"] = mask & data["mask"].to(mask.device) if "mask" in data else mask


def source_views(
    photographs: Sequence[Mapping[str, Any]], cameras: Cameras, files: Sequence[Path]
) -> SourceViews:
    """Undistorted training views as the interpolation wants them.

    Args:
        photographs: `image` [H, W, 3 or 4], uint8 or float, and perhaps `mask` [H, W, 1] of each.
        cameras: their cameras, with times where the scene moves.
        files: their files, in the same order.

    Raises:
        InputError: masks or transparency leave (nearly) nothing of any photograph.
    """
    names = _unique_names(files)
    images, valid, silhouettes = [], [], []
    for data in photographs:
        photograph = data["image"].cpu().numpy()
        image, opaque = to_uint8_photo(photograph)
        mask = data["mask"][..., 0].cpu().numpy() if "mask" in data else None
        usable = opaque if mask is None else mask
        if mask is not None and opaque is not None:
            usable = mask & opaque
        images.append(image)
        valid.append(None if usable is None or usable.all() else usable)
        silhouettes.append(_silhouette(photograph, mask))
    _check_content(valid, names)
    types = cameras.camera_type.flatten().tolist()
    return SourceViews(
        images=images,
        valid=valid,
        camera_to_worlds=cameras.camera_to_worlds.cpu().numpy().astype(np.float64),
        intrinsics=cameras.get_intrinsics_matrices().cpu().numpy().astype(np.float64),
        names=names,
        times=None if cameras.times is None else cameras.times.flatten().tolist(),
        is_pinhole=[kind == CameraType.PERSPECTIVE.value for kind in types],
        silhouettes=silhouettes,
    )


def _silhouette(photograph: np.ndarray, mask: np.ndarray | None) -> np.ndarray | None:
    """Where a photograph [H, W, 3 or 4] shows something, [H, W] bool; None: it is not cut out.

    What a mask [H, W] excludes may show anything.
    """
    if photograph.shape[2] != 4:
        return None
    alpha = photograph[..., 3]
    shows = alpha > _LEAST_ALPHA * (255 if photograph.dtype == np.uint8 else 1)
    judged = shows if mask is None else shows[mask]
    if judged.size == 0 or judged.mean() > _LARGEST_CUT_OUT:
        return None
    return shows if mask is None else shows | ~mask


def _unique_names(files: Sequence[Path]) -> list[str]:
    """File names; with their folders where two files of different folders share a name."""
    names = [path.name for path in files]
    if len(set(names)) == len(names):
        return names
    common = os.path.commonpath([path.parent for path in files])
    return [path.relative_to(common).as_posix() for path in files]


def _check_content(valid: Sequence[np.ndarray | None], names: Sequence[str]) -> None:
    """Name photographs of which masks or transparency leave (nearly) nothing."""
    empty = [
        name
        for name, mask in zip(names, valid, strict=True)
        if mask is not None and mask.mean() < _LEAST_CONTENT
    ]
    if not empty:
        return
    if len(empty) == len(names):
        raise InputError(
            "masks or transparency leave nothing of any photograph; white pixels of a mask are "
            "used, black ones are not"
        )
    warn(
        f"masks or transparency leave less than {_LEAST_CONTENT:.0%} of {named(empty)}: it teaches "
        "next to nothing"
    )


def _check_image(what: str, path: Path, expected: tuple[int, int]) -> None:
    try:
        with Image.open(path) as image:
            size, bands = image.size, len(image.getbands())
            is_turned = image.getexif().get(_EXIF_ORIENTATION, 1) in _TURNED
    except FileNotFoundError as error:
        raise InputError(f"{what} {path} does not exist") from error
    except (UnidentifiedImageError, OSError) as error:
        raise InputError(f"{what} {path} cannot be read: {error}") from error
    if what == "mask" and bands != 1:
        raise InputError(
            f"mask {path} has {bands} channels; save it as a greyscale picture, white where the "
            "photo is used"
        )
    if size == expected:
        return
    advice = "give w, h and intrinsics for each frame where images differ in size"
    if what == "mask":
        advice = "save it in the size of its photo"
    elif is_turned and size == expected[::-1]:
        advice = "it is turned by its EXIF orientation alone; save it with its pixels turned"
    raise InputError(
        f"{what} {path} has {size[0]}x{size[1]} pixels, its camera {expected[0]}x{expected[1]}; "
        f"{advice}"
    )
