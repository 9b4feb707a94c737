# SPDX-License-Identifier: Apache-2.0
"""The capture of a command: which photographs are used, and the way back to its own coordinates.

Captures are read as for training, oriented and scaled as nerfstudio does it, so that commands and
training runs share what they keep on disk. What is written goes back to the frame of reference of
the capture's file: `transforms.json`, `poses_bounds.npy` (OpenGL camera axes) or the COLMAP model.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import tyro
from numpy.typing import NDArray

from ps4pro_nerfstudio.geometry.cameras import Float64, as_4x4
from ps4pro_nerfstudio.initialization.dense_points import DensePointsConfig
from ps4pro_nerfstudio.initialization.filled_points import FilledPointsConfig
from ps4pro_nerfstudio.initialization.points import SeedPointsConfig
from ps4pro_nerfstudio.initialization.stereo import StereoConfig
from ps4pro_nerfstudio.initialization.visual_hull import VisualHullConfig
from ps4pro_nerfstudio.messages import InputError
from ps4pro_nerfstudio.pseudo_views.sources import InterpolatedSourceConfig

if TYPE_CHECKING:
    from nerfstudio.data.dataparsers.base_dataparser import DataparserOutputs

    from ps4pro_nerfstudio.datamanagers.augmentation import Augmentation
    from ps4pro_nerfstudio.dataparsers.sparse_views import SparseViewsDataParserConfig

# nerfstudio's reading of a COLMAP model beside a transforms.json that does not say how the one came
# from the other.
_COLMAP_TO_SAVED = [[0.0, 1.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0], [0.0, 0.0, -1.0, 0.0]]


@dataclass
class SplitOptions:
    """Which photographs train and which are held out; as in the dataparser `sparse-views`."""

    format: Literal["auto", "nerfstudio", "colmap", "llff", "blender"] = "auto"
    """Format of the capture."""
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
    """Train on every k-th photo of the file order."""
    test_every: int = 8
    """Hold out every k-th photo, unless the capture or another option says what is held out."""
    test_cap: int | None = None
    """Largest number of test views, taken at equal distances; default: all."""
    downscale_factor: int | None = None
    """How many times smaller the images are, read from images_k."""

    def parser(self, data: Path) -> SparseViewsDataParserConfig:
        """The dataparser with these options."""
        from ps4pro_nerfstudio.dataparsers.sparse_views import SparseViewsDataParserConfig

        return SparseViewsDataParserConfig(data=data, **asdict(self))


@dataclass(kw_only=True)
class CaptureCommand:
    """Options of all commands that interpolate between the photographs of a capture."""

    data: tyro.conf.Positional[Path]
    """Folder of the capture, or its json file."""
    split: tyro.conf.OmitArgPrefixes[SplitOptions] = field(default_factory=SplitOptions)
    """Which photographs are used."""
    interpolator: Literal["ps4pro", "optical-flow", "linear-blend"] = "ps4pro"
    """What makes the frames: the network, classical optical flow, or a plain blend."""
    source: InterpolatedSourceConfig = field(default_factory=InterpolatedSourceConfig)
    """How pseudo views are made."""
    dense_points: DensePointsConfig = field(default_factory=DensePointsConfig)
    """Points from the same correspondences."""
    stereo: StereoConfig = field(default_factory=lambda: StereoConfig(everywhere=False))
    """Depth of few photographs from each other."""
    seed_points: SeedPointsConfig = field(default_factory=SeedPointsConfig)
    """Sparse points of a capture that brings none."""
    cache_dir: Path | None = None
    """Folder for what is kept between runs; default: as in training."""

    def interpolate(self, train: DataparserOutputs) -> Augmentation:
        """Pseudo views and points of the training views, in the frame of the parsed poses.

        Raises:
            InputError: photographs that cannot be used.
        """
        import torch

        from ps4pro_nerfstudio.datamanagers.augmentation import (
            AugmentationConfig,
            PseudoViewsConfig,
            augment,
            sparse_points,
        )
        from ps4pro_nerfstudio.datamanagers.captures import (
            check_captures,
            reading_capture,
            source_views,
            undistorted_photographs,
        )
        from ps4pro_nerfstudio.datamanagers.photo_dataset import PhotoDataset
        from ps4pro_nerfstudio.pseudo_views.schedule import PseudoViewScheduleConfig

        dataset = PhotoDataset(train)
        dataset.keep_transparency()
        check_captures(dataset, dataset)
        with reading_capture(self.data, self.split.parser(self.data)):
            photographs, cameras = undistorted_photographs(dataset)
        config = AugmentationConfig(
            pseudo_views=PseudoViewsConfig(
                interpolator=self.interpolator,
                source=self.source,
                # Who asks for pseudo views gets them, however dense the capture is.
                schedule=PseudoViewScheduleConfig(share=0.5),
            ),
            # The same holds for points.
            dense_points=replace(self.dense_points, enabled=True, max_views=len(dataset)),
            stereo=self.stereo,
            # Guesses help a training to begin; they are no points of the capture.
            filled_points=FilledPointsConfig(enabled=False),
            visual_hull=VisualHullConfig(enabled=False),
            seed_points=self.seed_points,
            cache_dir=self.cache_dir,
        )
        return augment(
            source_views(photographs, cameras, dataset.image_filenames),
            sparse_points(train.metadata),
            config,
            "cuda" if torch.cuda.is_available() else "cpu",
            self.data,
        )


def read_all(options: SplitOptions, data: Path) -> DataparserOutputs:
    """All photographs of a capture, without a split, with all of its sparse points."""
    from ps4pro_nerfstudio.dataparsers.all_views import find_format
    from ps4pro_nerfstudio.dataparsers.sparse_views import read_capture

    found = find_format(data) if options.format == "auto" else options.format
    return read_capture(options.parser(data), found).outputs


def read_transforms(data: Path) -> dict[str, Any] | None:
    """The content of a capture's `transforms.json`; None for a capture of another format.

    Raises:
        InputError: the file is no JSON.
    """
    file = data if data.suffix == ".json" else data / "transforms.json"
    if not file.is_file():
        return None
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{file} is not valid JSON: {error}") from error


@dataclass(frozen=True)
class CaptureFrame:
    """The way from the parsed poses back to the coordinates of the capture's file."""

    rotation: Float64
    """[3, 3]."""
    scale: float
    translation: Float64
    """[3]; a point x becomes scale * rotation @ x + translation."""

    @staticmethod
    def of(
        outputs: DataparserOutputs, data: Path, transforms: dict[str, Any] | None
    ) -> CaptureFrame:
        """The way back from a parser's outputs; `transforms` is the capture's transforms.json."""
        to_parsed = as_4x4(outputs.dataparser_transform.numpy().astype(np.float64))
        scale = float(outputs.dataparser_scale)
        if transforms is not None:
            # The parser leads from the coordinates before transforms.json was written.
            applied = transforms.get("applied_transform")
            if applied is None and (data / "colmap/sparse/0").exists():
                applied = _COLMAP_TO_SAVED
            if applied is not None:
                to_parsed = to_parsed @ np.linalg.inv(as_4x4(np.asarray(applied, np.float64)))
            scale /= float(transforms.get("applied_scale", 1.0))
        back = np.linalg.inv(to_parsed)
        return CaptureFrame(back[:3, :3], 1.0 / scale, back[:3, 3])

    def points(self, xyz: NDArray) -> NDArray[np.float32]:
        """Points [P, 3]."""
        moved = self.scale * xyz.astype(np.float64) @ self.rotation.T + self.translation
        return moved.astype(np.float32)

    def pose(self, camera_to_world: NDArray) -> Float64:
        """A camera [3, 4] or [4, 4] as [4, 4]; its axes stay as they are."""
        pose = as_4x4(np.asarray(camera_to_world, np.float64))
        moved = np.eye(4)
        moved[:3, :3] = self.rotation @ pose[:3, :3]
        moved[:3, 3] = self.scale * self.rotation @ pose[:3, 3] + self.translation
        return moved
