# SPDX-License-Identifier: Apache-2.0
"""All views of a capture in one frame of reference, whatever its format.

nerfstudio's parsers return one split at a time, but orient, centre and scale the poses of all
cameras together. Here they are asked for everything; what trains is chosen afterwards.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.data.dataparsers.base_dataparser import DataparserOutputs
from nerfstudio.data.dataparsers.blender_dataparser import Blender, BlenderDataParserConfig
from nerfstudio.data.dataparsers.colmap_dataparser import (
    MAX_AUTO_RESOLUTION,
    ColmapDataParser,
    ColmapDataParserConfig,
)
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
from nerfstudio.data.utils import colmap_parsing_utils
from nerfstudio.utils.io import load_from_json
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from ps4pro_nerfstudio.dataparsers.nerfstudio_dataparser import CheckedNerfstudio
from ps4pro_nerfstudio.dataparsers.places import check_places
from ps4pro_nerfstudio.dataparsers.split_file import relative_name
from ps4pro_nerfstudio.dataparsers.view_selection import OwnSplit, find_name, natural_key
from ps4pro_nerfstudio.messages import InputError, say

Format = Literal["nerfstudio", "colmap", "llff", "blender"]

COLMAP_FOLDERS = (Path("colmap/sparse/0"), Path("sparse/0"))
"""Where a COLMAP model is looked for, relative to the capture."""


@dataclass(frozen=True)
class Capture:
    """All views of a capture in file order."""

    outputs: DataparserOutputs
    """What a parser of nerfstudio would return if all views were of one split."""
    names: list[str]
    """Paths of the photographs relative to the capture."""
    own: OwnSplit | None = None
    """The split that the capture itself brings."""
    tracks: list[set[int]] | None = None
    """For each sparse point the views that saw it; None where this is unknown."""


def find_format(data: Path) -> Format:
    """Format of the capture in a folder.

    Raises:
        InputError: nothing known was found.
    """
    if data.suffix == ".json" or (data / "transforms.json").is_file():
        return "nerfstudio"
    if (data / "transforms_train.json").is_file():
        return "blender"
    if (data / "poses_bounds.npy").is_file():
        return "llff"
    if any((data / folder).is_dir() for folder in COLMAP_FOLDERS):
        return "colmap"
    raise InputError(
        f"no capture in {data}: looked for transforms.json, transforms_train.json (Blender), "
        "poses_bounds.npy (LLFF), colmap/sparse/0 and sparse/0 (COLMAP)"
    )


def in_file_order(
    outputs: DataparserOutputs,
    data: Path,
    own: tuple[list[Path], list[Path]] | None = None,
    tracks: list[set[int]] | None = None,
) -> Capture:
    """Sort views by name.

    Args:
        outputs: all views, in any order.
        data: the capture, to which names are relative.
        own: files of the capture's own training and test views.
        tracks: for each sparse point the views that saw it, as indices into `outputs`.

    Raises:
        InputError: two views show the same file.
    """
    names = [relative_name(file, data) for file in outputs.image_filenames]
    order = sorted(range(len(names)), key=lambda index: natural_key(names[index]))
    names = [names[index] for index in order]
    for one, other in itertools.pairwise(names):
        if one == other:
            raise InputError(
                f"two photos of {data} would be read from {one}; photos of the same name in "
                "different folders cannot be read from a folder of smaller images "
                "(--downscale-factor 1)"
            )
    outputs = pick(outputs, order)
    place = {old: new for new, old in enumerate(order)}
    index_of = {file: index for index, file in enumerate(outputs.image_filenames)}
    return Capture(
        outputs=outputs,
        names=names,
        own=None if own is None else OwnSplit(*([index_of[file] for file in s] for s in own)),
        tracks=None if tracks is None else [{place[view] for view in track} for track in tracks],
    )


def pick(outputs: DataparserOutputs, indices: Sequence[int]) -> DataparserOutputs:
    """Views of a parser's outputs, with all that belongs to each of them."""

    def chosen(files: list[Path] | None) -> list[Path] | None:
        return [files[index] for index in indices] if files else None

    metadata = dict(outputs.metadata)
    if "depth_filenames" in metadata:
        metadata["depth_filenames"] = chosen(metadata["depth_filenames"])
    return dataclasses.replace(
        outputs,
        image_filenames=[outputs.image_filenames[index] for index in indices],
        cameras=outputs.cameras[torch.as_tensor(indices, dtype=torch.long)],
        mask_filenames=chosen(outputs.mask_filenames),
        metadata=metadata,
    )


def join(parts: Sequence[DataparserOutputs]) -> DataparserOutputs:
    """Views of several outputs in one; a photo that stands in several is taken once.

    All else, such as points, comes from the first.
    """

    def together(lists: list[list[Path] | None]) -> list[Path] | None:
        return None if None in lists else [file for files in lists for file in files or ()]

    cameras = [part.cameras for part in parts]
    tensors = {}
    for field in dataclasses.fields(Cameras):
        if field.name != "metadata" and getattr(cameras[0], field.name) is not None:
            values = torch.cat([getattr(camera, field.name) for camera in cameras])
            # Upstream's focal lengths of Blender data are 64 bits wide, all else is 32.
            tensors[field.name] = values.float() if values.is_floating_point() else values
    metadata = dict(parts[0].metadata)
    if "depth_filenames" in metadata:
        metadata["depth_filenames"] = together([p.metadata["depth_filenames"] for p in parts])
    everything = dataclasses.replace(
        parts[0],
        image_filenames=[file for part in parts for file in part.image_filenames],
        cameras=Cameras(**tensors, metadata=cameras[0].metadata),
        mask_filenames=together([part.mask_filenames for part in parts]),
        metadata=metadata,
    )
    first = {}
    for index, file in enumerate(everything.image_filenames):
        first.setdefault(file, index)
    return pick(everything, list(first.values()))


# ---------------------------------------------------------------------- nerfstudio


def read_nerfstudio(config: NerfstudioDataParserConfig) -> Capture:
    """All views of a capture in nerfstudio's format; split lists that it brings are its own split.

    Photographs that stand in no split list of a capture that has such lists are left out.
    """
    data = config.data
    file = data if data.suffix == ".json" else data / "transforms.json"
    # Upstream's "all" warns each time; a fraction of one is the same without the warning.
    config = dataclasses.replace(config, eval_mode="fraction", train_split_fraction=1.0)
    config._target = CheckedNerfstudio
    meta = load_from_json(file) if file.is_file() else {}
    train = config.setup().get_dataparser_outputs("train")
    if "train_filenames" not in meta:
        return in_file_order(train, data)
    without_points = dataclasses.replace(config, load_3D_points=False).setup()
    val, test = (without_points.get_dataparser_outputs(split) for split in ("val", "test"))
    own = (train.image_filenames, test.image_filenames)
    return in_file_order(join([train, val, test]), data, own=own)


# ---------------------------------------------------------------------- COLMAP


class AllColmapViews(ColmapDataParser):
    """COLMAP's views without a split, and which of them saw each point."""

    def __init__(self, config: ColmapDataParserConfig):
        super().__init__(config)
        self.image_ids: list[int] = []
        """COLMAP's number of each view, in the order of the outputs."""
        self.point_image_ids: list[list[int]] = []
        """COLMAP's numbers of the views that saw each point."""

    def _get_all_images_and_cameras(self, recon_dir: Path) -> dict[str, Any]:
        out = super()._get_all_images_and_cameras(recon_dir)
        self.image_ids = [frame["colmap_im_id"] for frame in out["frames"]]
        check_places([frame["transform_matrix"][:3, 3] for frame in out["frames"]], recon_dir)
        return out

    def _get_image_indices(self, image_filenames: list[Path], split: str) -> np.ndarray:
        return np.arange(len(image_filenames))

    def _setup_downscale_factor(
        self, image_filenames: list[Path], mask_filenames: list[Path], depth_filenames: list[Path]
    ) -> tuple[list[Path], list[Path], list[Path], int]:
        """As upstream, which would ask here whether to write smaller images; this never asks."""
        images = self.config.data / self.config.images_path
        factor = self.config.downscale_factor
        if factor is None:
            longest = max(_image_size(image_filenames[0]))
            factor = 1
            while longest / factor > MAX_AUTO_RESOLUTION:
                factor *= 2
            if factor > 1 and not _smaller(images, factor).is_dir():
                say(f"{_smaller(images, factor)} does not exist; {images} is read at full size")
                factor = 1
        elif factor > 1 and not _smaller(images, factor).is_dir():
            raise InputError(
                f"{_smaller(images, factor)} does not exist (--downscale-factor {factor})"
            )
        self._downscale_factor = factor
        return super()._setup_downscale_factor(image_filenames, mask_filenames, depth_filenames)

    def _load_3D_points(
        self, colmap_path: Path, transform_matrix: Tensor, scale_factor: float
    ) -> dict[str, Tensor]:
        """Points [P, 3] in the frame of the parsed poses, colours [P, 3]; keeps tracks."""
        if (colmap_path / "points3D.bin").exists():
            points = colmap_parsing_utils.read_points3D_binary(colmap_path / "points3D.bin")
        elif (colmap_path / "points3D.txt").exists():
            points = colmap_parsing_utils.read_points3D_text(colmap_path / "points3D.txt")
        else:
            return {}
        self.point_image_ids = [list(point.image_ids) for point in points.values()]
        xyz = np.array([point.xyz for point in points.values()], dtype=np.float32).reshape(-1, 3)
        rgb = np.array([point.rgb for point in points.values()], dtype=np.uint8).reshape(-1, 3)
        rotation, translation = transform_matrix[:3, :3], transform_matrix[:3, 3]
        return {
            "points3D_xyz": (torch.from_numpy(xyz) @ rotation.T + translation) * scale_factor,
            "points3D_rgb": torch.from_numpy(rgb),
        }


def read_colmap(config: ColmapDataParserConfig) -> Capture:
    """All views of a COLMAP model; `train_list.txt`, `test_list.txt` beside it: its own split.

    Raises:
        InputError: no model, no images in it, a model that cannot be read, or whose cameras do not
            move.
    """
    folder = config.data / config.colmap_path
    if not any((folder / f"cameras.{kind}").is_file() for kind in ("bin", "txt")):
        raise InputError(f"{folder} holds no COLMAP model (cameras.bin or cameras.txt)")
    parser = AllColmapViews(config)
    try:
        outputs = parser.get_dataparser_outputs("train")
    except AssertionError as error:
        raise InputError(f"{folder}: {error}") from error
    view_of = {image_id: view for view, image_id in enumerate(parser.image_ids)}
    tracks = None
    if "points3D_xyz" in outputs.metadata:
        tracks = [{view_of[i] for i in ids if i in view_of} for ids in parser.point_image_ids]
    return in_file_order(outputs, config.data, _colmap_lists(config.data, outputs), tracks)


def _colmap_lists(data: Path, outputs: DataparserOutputs) -> tuple[list[Path], list[Path]] | None:
    """Files that nerfstudio's lists beside a COLMAP model name for training and for testing."""
    lists = [data / "train_list.txt", data / "test_list.txt"]
    if not all(path.is_file() for path in lists):
        return None
    names = [relative_name(file, data) for file in outputs.image_filenames]
    train, test = (
        [
            outputs.image_filenames[find_name(name, names, str(path))]
            for name in path.read_text(encoding="utf-8").split("\n")
            if name.strip()
        ]
        for path in lists
    )
    return train, test


def _smaller(images: Path, factor: int) -> Path:
    return images.with_name(f"{images.name}_{factor}")


def _image_size(file: Path) -> tuple[int, int]:
    try:
        with Image.open(file) as image:
            return image.size
    except FileNotFoundError as error:
        raise InputError(f"image {file} does not exist") from error
    except (UnidentifiedImageError, OSError) as error:
        raise InputError(f"image {file} cannot be read: {error}") from error


# ---------------------------------------------------------------------- Blender


def read_blender(config: BlenderDataParserConfig) -> Capture:
    """Training and test views of a synthetic scene of NeRF; they are its own split.

    Raises:
        InputError: one of the two json files is missing or lists no images, or the cameras do not
            move.
    """
    for split in ("train", "test"):
        file = config.data / f"transforms_{split}.json"
        if not file.is_file():
            raise InputError(f"{file} not found; Blender data needs transforms_train and _test")
        if not load_from_json(file).get("frames"):
            raise InputError(f'{file} lists no images (its "frames" are empty)')
    parser = Blender(config)
    train, test = (parser.get_dataparser_outputs(split) for split in ("train", "test"))
    check_places(train.cameras.camera_to_worlds[:, :3, 3], config.data / "transforms_train.json")
    own = (train.image_filenames, test.image_filenames)
    return in_file_order(join([train, test]), config.data, own=own)
