# SPDX-License-Identifier: Apache-2.0
"""Few training views of a capture in any of four formats: `ns-train METHOD --data D sparse-views`.

Test views are held out first, training views are chosen among the rest (`view_selection`). Poses
are oriented, centred and scaled from all cameras together, so that every choice of views shares one
frame of reference.

What was computed from views that do not train must not come back through sparse points. Points of
a COLMAP model are kept where at least two training views saw them; a point cloud that does not say
who saw what is dropped as soon as some photographs that could train do not, and points are then
triangulated from the training views.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from nerfstudio.data.dataparsers.base_dataparser import (
    DataParser,
    DataParserConfig,
    DataparserOutputs,
)
from nerfstudio.data.dataparsers.blender_dataparser import BlenderDataParserConfig
from nerfstudio.data.dataparsers.colmap_dataparser import ColmapDataParserConfig
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
from nerfstudio.plugins.registry_dataparser import DataParserSpecification

from ps4pro_nerfstudio.dataparsers.all_views import (
    COLMAP_FOLDERS,
    Capture,
    find_format,
    in_file_order,
    pick,
    read_blender,
    read_colmap,
    read_nerfstudio,
)
from ps4pro_nerfstudio.dataparsers.llff import read_llff
from ps4pro_nerfstudio.dataparsers.view_selection import Split, SplitOptions, choose_split
from ps4pro_nerfstudio.messages import InputError, say

_MIN_TRACK = 2
"""Training views that must have seen a sparse point: one view alone cannot triangulate it."""


@dataclass
class SparseViewsDataParserConfig(DataParserConfig):
    """A capture of which few views train."""

    _target: type = field(default_factory=lambda: SparseViews)
    data: Path = Path()
    """Folder of the capture."""
    format: Literal["auto", "nerfstudio", "colmap", "llff", "blender"] = "auto"
    """Format of the capture; auto looks for transforms.json, transforms_train.json,
    poses_bounds.npy and a COLMAP model, in this order."""
    views: int | None = None
    """Number of training views; default: all that are not test views."""
    selection: Literal["linspaced", "farthest-point", "list"] = "linspaced"
    """How training views are chosen: at equal distances in the file order, far from each other by
    their poses, or those of --train-list."""
    train_list: Path | None = None
    """Text file that names the training views, one per line (with --selection list)."""
    test_list: Path | None = None
    """Text file that names the test views, one per line; replaces --test-every."""
    every: int | None = None
    """Train on every k-th photo of the file order; all others are test views, unless the capture
    brings its own."""
    test_every: int = 8
    """Hold out every k-th photo of the file order, from the first on, where neither --every nor
    lists nor the capture itself say what is held out."""
    test_cap: int | None = None
    """Largest number of test views, taken at equal distances; default: all."""
    downscale_factor: int | None = None
    """How many times smaller the images are, read from images_k. Default: longer side up to 1600
    pixels; for LLFF the smallest images whose longer side has at least 480."""
    load_3D_points: bool = True
    """Use the capture's sparse points as far as training views saw them."""
    scale_factor: float = 1.0
    """How much to scale the camera centres by."""
    scene_scale: float = 1.0
    """How much to scale the region of interest by."""
    orientation_method: Literal["pca", "up", "vertical", "none"] = "up"
    """How the capture is oriented (not for Blender data)."""
    center_method: Literal["poses", "focus", "none"] = "poses"
    """How the capture is centred (not for Blender data)."""
    auto_scale_poses: bool = True
    """Scale the camera centres into +/- 1 (not for Blender data)."""
    depth_unit_scale_factor: float = 1e-3
    """Metres per unit of depth maps (nerfstudio's format)."""
    mask_color: tuple[float, float, float] | None = None
    """Colour of what masks exclude (nerfstudio's format)."""
    colmap_path: Path | None = None
    """Folder of the COLMAP model below the capture; default: colmap/sparse/0, else sparse/0."""
    images_path: Path = Path("images")
    """Folder of the images of a COLMAP model below the capture."""
    masks_path: Path | None = None
    """Folder of the masks of a COLMAP model below the capture; default: no masks."""
    downscale_rounding_mode: Literal["floor", "round", "ceil"] = "floor"
    """How the size of smaller images was rounded (COLMAP)."""
    alpha_color: str | None = "white"
    """Background of transparent images of Blender data."""


class SparseViews(DataParser):
    """See the module's docstring.

    Beside train, val and test there is the split "between": for each two consecutive training views
    the photo nearest to the middle of those between them that are not test views, if there is one.

    `metadata["split"]` of its outputs names all training and test views:
    `{"train": [names], "test": [names]}`, paths relative to the capture. `metadata["depth_bounds"]`
    is there where the capture tells the nearest and farthest depth of its views (LLFF): [N, 2] for
    the N views of the split, in units of the poses.
    """

    config: SparseViewsDataParserConfig

    def __init__(self, config: SparseViewsDataParserConfig) -> None:
        super().__init__(config)
        self._chosen: tuple[Capture, Split, dict[str, Any]] | None = None

    def _generate_dataparser_outputs(
        self, split: str = "train", **kwargs: dict | None
    ) -> DataparserOutputs:
        if split not in ("train", "val", "test", "between"):
            raise ValueError(f"unknown split {split}")
        if self._chosen is None:
            self._chosen = self._choose()
        capture, chosen, metadata = self._chosen
        views = {"train": chosen.train, "between": chosen.between()}.get(split, chosen.test)
        outputs = pick(capture.outputs, views)
        bounds = _bounds_of_files(capture.outputs, outputs.image_filenames)
        return dataclasses.replace(outputs, metadata={**outputs.metadata, **metadata, **bounds})

    def _choose(self) -> tuple[Capture, Split, dict[str, Any]]:
        """The capture without its points, the split, and the metadata of the split."""
        config = self.config
        found = find_format(config.data) if config.format == "auto" else config.format
        capture = read_capture(config, found)
        options = SplitOptions(
            **{f.name: getattr(config, f.name) for f in dataclasses.fields(SplitOptions)}
        )
        poses = capture.outputs.cameras.camera_to_worlds.numpy()
        split = choose_split(capture.names, poses, options, capture.own, config.data)
        say(
            f"{len(split.train)} training and {len(split.test)} test views of "
            f"{len(capture.names)} photos ({found}, {_sizes(capture.outputs)})"
        )
        metadata = dict(capture.outputs.metadata)
        points = {key: metadata.pop(key) for key in list(metadata) if key.startswith("points3D_")}
        bare = dataclasses.replace(capture.outputs, metadata=metadata)
        names = {
            "train": [capture.names[view] for view in split.train],
            "test": [capture.names[view] for view in split.test],
        }
        kept = _points_of_training_views(points, capture, split)
        return dataclasses.replace(capture, outputs=bare), split, {"split": names, **kept}


def read_capture(config: SparseViewsDataParserConfig, found: str) -> Capture:
    """All views of a capture in one of the formats of the config."""
    poses: dict[str, Any] = {
        name: getattr(config, name)
        for name in ("scale_factor", "scene_scale", "orientation_method", "center_method",
                     "auto_scale_poses", "downscale_factor")
    }  # fmt: skip
    if found == "llff":
        return _sorted_llff(read_llff(config.data, **poses), config.data)
    if found == "nerfstudio":
        return read_nerfstudio(
            NerfstudioDataParserConfig(
                data=config.data,
                load_3D_points=config.load_3D_points,
                depth_unit_scale_factor=config.depth_unit_scale_factor,
                mask_color=config.mask_color,
                **poses,
            )
        )
    if found == "colmap":
        there = [folder for folder in COLMAP_FOLDERS if (config.data / folder).is_dir()]
        return read_colmap(
            ColmapDataParserConfig(
                data=config.data,
                load_3D_points=config.load_3D_points,
                colmap_path=config.colmap_path or [*there, COLMAP_FOLDERS[0]][0],
                images_path=config.images_path,
                masks_path=config.masks_path,
                downscale_rounding_mode=config.downscale_rounding_mode,
                **poses,
            )
        )
    if config.downscale_factor not in (None, 1):
        raise InputError("Blender data has no smaller images; leave out --downscale-factor")
    return read_blender(
        BlenderDataParserConfig(
            data=config.data, scale_factor=config.scale_factor, alpha_color=config.alpha_color
        )
    )


def _sorted_llff(outputs: DataparserOutputs, data: Path) -> Capture:
    """Views of an LLFF capture, and their depth bounds, in the order of all other formats."""
    capture = in_file_order(outputs, data)
    bounds = _bounds_of_files(outputs, capture.outputs.image_filenames)
    metadata = {**capture.outputs.metadata, **bounds}
    return dataclasses.replace(
        capture, outputs=dataclasses.replace(capture.outputs, metadata=metadata)
    )


def _bounds_of_files(outputs: DataparserOutputs, files: list[Path]) -> dict[str, torch.Tensor]:
    """Metadata with the depth bounds of the views that show some files, where they are known."""
    bounds = outputs.metadata.get("depth_bounds")
    if bounds is None:
        return {}
    row_of = {file: row for row, file in enumerate(outputs.image_filenames)}
    return {"depth_bounds": bounds[[row_of[file] for file in files]]}


def _points_of_training_views(
    points: dict[str, torch.Tensor], capture: Capture, split: Split
) -> dict[str, torch.Tensor]:
    """Sparse points that training views alone justify; see the module's docstring."""
    if not points:
        return {}
    if capture.tracks is None:
        if not split.is_subset:
            return points
        say(
            "the capture's sparse points do not say which photos saw them; they are left out, as "
            "some photos do not train"
        )
        return {}
    train = set(split.train)
    seen = [len(track & train) >= _MIN_TRACK for track in capture.tracks]
    kept = torch.from_numpy(np.flatnonzero(seen))
    say(f"{len(kept)} of {len(seen)} sparse points were seen by {_MIN_TRACK} training views")
    return {key: values[kept] for key, values in points.items()} if len(kept) else {}


def _sizes(outputs: DataparserOutputs) -> str:
    cameras = outputs.cameras
    sizes = {(int(w), int(h)) for w, h in zip(cameras.width, cameras.height, strict=True)}
    if len(sizes) > 1:
        return f"{len(sizes)} image sizes"
    width, height = sizes.pop()
    return f"{width}x{height}"


sparse_views = DataParserSpecification(
    config=SparseViewsDataParserConfig(),
    description="Few training views of a nerfstudio, COLMAP, LLFF or Blender capture.",
)
