# SPDX-License-Identifier: Apache-2.0
"""Full images for splats: real views as nerfstudio serves them, pseudo views mixed in.

Real views keep nerfstudio's order, indices and cameras; pseudo views live beside them and never
enter `train_dataset`, whose length sizes per-image parameters and whose cameras are drawn,
exported and interpolated. A pseudo view's camera carries `pseudo_idx` instead of `cam_idx`; its
batch carries `confidence` [H, W] and `pseudo_weight` (lambda).

Also cured here: pixels without content after undistortion are masked (a 3-pixel black border costs
9.5 dB on a real capture), memory is pinned only where there is a GPU, and unusable inputs raise
`InputError` before anything is computed.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import torch
from nerfstudio.cameras.cameras import Cameras, CameraType
from nerfstudio.data.datamanagers.full_images_datamanager import (
    FullImageDatamanager,
    FullImageDatamanagerConfig,
    _undistort_image,
)
from nerfstudio.data.dataparsers.nerfstudio_dataparser import Nerfstudio
from nerfstudio.engine.callbacks import TrainingCallback, TrainingCallbackAttributes
from nerfstudio.utils.rich_utils import CONSOLE
from PIL import Image, UnidentifiedImageError
from rich.progress import Progress
from torch import Tensor

from ps4pro_nerfstudio.caches import cache_folder
from ps4pro_nerfstudio.datamanagers.photo_dataset import PhotoDataset
from ps4pro_nerfstudio.dataparsers.nerfstudio_dataparser import CheckedNerfstudio
from ps4pro_nerfstudio.initialization.seed_points import SeedPointsConfig, seed_points
from ps4pro_nerfstudio.interpolation.optical_flow import LinearBlend, OpticalFlowInterpolator
from ps4pro_nerfstudio.interpolation.protocol import FrameInterpolator
from ps4pro_nerfstudio.messages import InputError, say
from ps4pro_nerfstudio.pseudo_views.pseudo_view import PseudoView
from ps4pro_nerfstudio.pseudo_views.schedule import PseudoViewSchedule, PseudoViewScheduleConfig
from ps4pro_nerfstudio.pseudo_views.sources import InterpolatedSourceConfig, SourceViews
from ps4pro_nerfstudio.pseudo_views.store import StoreConfig, load_or_make

# What reading a capture raises when the capture is at fault.
_CAPTURE_ERRORS = (AssertionError, OSError, ValueError, KeyError, IndexError, RuntimeError)


def _make_interpolator(name: str) -> FrameInterpolator:
    if name == "ps4pro":
        from ps4pro_nerfstudio.interpolation.network import PS4PRO

        return PS4PRO.from_pretrained("ps4pro-small")
    return {"optical-flow": OpticalFlowInterpolator, "linear-blend": LinearBlend}[name]()


@dataclass
class PseudoViewsConfig:
    """Views that nobody took, added between neighbouring training views."""

    enabled: bool = True
    """Make and use pseudo views; False trains on real views only."""
    interpolator: Literal["ps4pro", "optical-flow", "linear-blend"] = "ps4pro"
    """What makes the frames: the network, classical optical flow, or a plain blend as a control."""
    source: InterpolatedSourceConfig = field(default_factory=InterpolatedSourceConfig)
    """How pseudo views are made."""
    schedule: PseudoViewScheduleConfig = field(default_factory=PseudoViewScheduleConfig)
    """When and how strongly they take part."""
    store: StoreConfig = field(default_factory=StoreConfig)
    """How much of the disk they may take between runs."""


@dataclass
class PseudoViewDatamanagerConfig(FullImageDatamanagerConfig):
    """Full images with pseudo views."""

    _target: type = field(default_factory=lambda: PseudoViewDatamanager)
    cache_images_type: Literal["uint8", "float32"] = "uint8"
    """Type of the images kept in memory."""
    pseudo_views: PseudoViewsConfig = field(default_factory=PseudoViewsConfig)
    """Views added between the training views."""
    seed_points: SeedPointsConfig = field(default_factory=SeedPointsConfig)
    """Initial points of a capture that brings none."""
    cache_dir: Path | None = None
    """Folder for pseudo views and points between runs; default: the user's cache folder."""


class PseudoViewDatamanager(FullImageDatamanager[PhotoDataset]):
    """See the module's docstring."""

    config: PseudoViewDatamanagerConfig
    train_dataset: PhotoDataset
    eval_dataset: PhotoDataset

    def __init__(
        self,
        config: PseudoViewDatamanagerConfig,
        device: torch.device | str = "cpu",
        test_mode: Literal["test", "val", "inference"] = "val",
        world_size: int = 1,
        local_rank: int = 0,
        **kwargs: Any,
    ) -> None:
        if config.dataparser._target is Nerfstudio:
            config.dataparser._target = CheckedNerfstudio
        try:
            super().__init__(config, device, test_mode, world_size, local_rank, **kwargs)
        except InputError:
            raise
        except _CAPTURE_ERRORS as error:
            data = config.data or config.dataparser.data
            what = " ".join(str(error).split()) or type(error).__name__
            raise InputError(f"the capture {data} cannot be read: {what}") from error
        self.pseudo_views: list[PseudoView] = []
        self._schedule: PseudoViewSchedule | None = None
        self._num_real_served = 0
        self._points_are_random = False
        if test_mode == "val":
            _check_captures(self.train_dataset, self.eval_dataset)
            self._add_seed_points()
            if config.pseudo_views.enabled:
                self.pseudo_views = self._make_pseudo_views()

    @cached_property
    def dataset_type(self) -> type[PhotoDataset]:
        """Class of the datasets; upstream finds it for direct subclasses only."""
        return PhotoDataset

    # ------------------------------------------------------------------ images

    def _load_images(
        self, split: Literal["train", "eval"], cache_images_device: Literal["cpu", "gpu"]
    ) -> list[dict[str, Tensor]]:
        """Upstream's undistorted images; a `mask` marks pixels that have content and are wanted."""
        dataset = self.train_dataset if split == "train" else self.eval_dataset
        as_taken = copy.deepcopy(dataset.cameras)
        if not torch.cuda.is_available():
            cache_images_device = "gpu"  # means self.device; "cpu" would pin memory
        images = super()._load_images(split, cache_images_device)
        for index, data in enumerate(images):
            content = _content_mask(as_taken[index].reshape(()))
            if content is None or content.all():
                continue
            mask = torch.from_numpy(content)[..., None].to(data["image"].device)
            data["mask"] = mask & data["mask"].to(mask.device) if "mask" in data else mask
        return images

    def _photos(self) -> tuple[list[np.ndarray], list[np.ndarray | None]]:
        """Training images as uint8 [H, W, 3] and their valid pixels [H, W] (None: all)."""
        images, valid = [], []
        for data in self.cached_train:
            image = data["image"].cpu().numpy()
            if image.dtype != np.uint8:
                image = np.rint(image * 255).astype(np.uint8)
            usable = data["mask"][..., 0].cpu().numpy() if "mask" in data else None
            if image.shape[2] == 4:
                opaque = image[..., 3] == 255
                usable = opaque if usable is None else usable & opaque
            images.append(np.ascontiguousarray(image[..., :3]))
            valid.append(None if usable is None or usable.all() else usable)
        return images, valid

    def _view_geometry(self) -> dict[str, Any]:
        cameras = self.train_dataset.cameras
        return {
            "camera_to_worlds": cameras.camera_to_worlds.cpu().numpy().astype(np.float64),
            "intrinsics": cameras.get_intrinsics_matrices().cpu().numpy().astype(np.float64),
            "names": [path.name for path in self.train_dataset.image_filenames],
        }

    def _cache(self, what: str) -> Path:
        if self.config.cache_dir is not None:
            return self.config.cache_dir / what
        return cache_folder(what)

    # ------------------------------------------------------------------ points

    def _add_seed_points(self) -> None:
        """Give the model initial points from training views when the capture brings none."""
        metadata = self.train_dataparser_outputs.metadata
        points = metadata.get("points3D_xyz")
        if points is not None and len(points) >= self.config.seed_points.min_points:
            return
        images, valid = self._photos()
        made = seed_points(
            images,
            valid,
            **self._view_geometry(),
            config=self.config.seed_points,
            cache_folder=self._cache("seed_points"),
        )
        metadata["points3D_xyz"] = torch.from_numpy(made.xyz).float()
        metadata["points3D_rgb"] = torch.from_numpy(made.rgb)
        self._points_are_random = made.method == "random"

    # ------------------------------------------------------------------ pseudo views

    def _make_pseudo_views(self) -> list[PseudoView]:
        config = self.config.pseudo_views
        num_real = len(self.train_dataset)
        if self._plan(num_steps=1, num_pseudo=num_real).share == 0:
            say(f"no pseudo views: {num_real} training views are dense enough")
            return []
        images, valid = self._photos()
        # The depth of random points says nothing about the scene.
        points = self.train_dataparser_outputs.metadata["points3D_xyz"].numpy()
        types = self.train_dataset.cameras.camera_type.flatten().tolist()
        views = SourceViews(
            images=images,
            valid=valid,
            **self._view_geometry(),
            points=None if self._points_are_random else points,
            is_pinhole=[kind == CameraType.PERSPECTIVE.value for kind in types],
        )
        with Progress(transient=True, console=CONSOLE) as progress:
            task = progress.add_task("Making pseudo views", total=None)
            made = load_or_make(
                self._cache("pseudo_views"),
                views,
                _make_interpolator(config.interpolator),
                config.source,
                config.store,
                device=self.device,
                progress=lambda done, total: progress.update(task, completed=done, total=total),
            )
        say(made.describe())
        return made.views

    def _plan(self, num_steps: int, num_pseudo: int) -> PseudoViewSchedule:
        schedule = self.config.pseudo_views.schedule
        return PseudoViewSchedule(schedule, num_steps, len(self.train_dataset), num_pseudo)

    def get_training_callbacks(
        self, training_callback_attributes: TrainingCallbackAttributes
    ) -> list[TrainingCallback]:
        """Plan the pseudo steps over the length of the run, and say the plan.

        Only our trainer knows that length; under another one there are no pseudo steps.
        """
        run_length = getattr(training_callback_attributes.trainer, "run_length", None)
        if self.pseudo_views and run_length is not None:
            self._schedule = self._plan(run_length, len(self.pseudo_views))
            say(self._schedule.describe())
        return super().get_training_callbacks(training_callback_attributes)

    def next_train(self, step: int) -> tuple[Cameras, dict]:
        """A real view, or a pseudo view when the schedule says so."""
        if self._schedule is not None and self._schedule.is_pseudo(step):
            return self._pseudo_view(step, self._schedule)
        self._num_real_served += 1
        return super().next_train(step)

    def _pseudo_view(self, step: int, schedule: PseudoViewSchedule) -> tuple[Cameras, dict]:
        index = schedule.view_index(step)
        view = self.pseudo_views[index]
        camera = view.to_cameras().to(self.device)
        camera.metadata = {"pseudo_idx": index}
        confidence = torch.from_numpy(view.confidence).to(self.device)
        batch = {
            "image": torch.from_numpy(view.image).to(self.device),
            "mask": (confidence > 0)[..., None],
            "confidence": confidence.float() / 255,
            "pseudo_weight": schedule.weight(step),
        }
        return camera, batch

    # ------------------------------------------------------------------ resume

    def get_extra_state(self) -> dict[str, int]:
        """How many real views were served; with the sampling seed that fixes what comes next."""
        return {"num_real_served": self._num_real_served}

    def set_extra_state(self, state: Any) -> None:
        """Advance the order of views to where the saved run stood."""
        served = int(state["num_real_served"])
        while self._num_real_served < served:
            self.train_unseen_cameras.pop(0)
            if not self.train_unseen_cameras:
                self.train_unseen_cameras = self.sample_train_cameras()
            self._num_real_served += 1


def _content_mask(camera: Cameras) -> np.ndarray | None:
    """Pixels of the undistorted image that come from inside the photo, [H, W] bool; None: all.

    A white image goes through the same undistortion; what is not fully white afterwards was
    interpolated with the outside.
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


def _check_captures(train: PhotoDataset, evaluation: PhotoDataset) -> None:
    """Check what can be checked without decoding images.

    Raises:
        InputError: fewer than two training views, no evaluation view, a missing or unreadable
            file, an image or mask whose size is not its camera's, a pose that is not finite.
    """
    if len(train) < 2:
        raise InputError(
            f"{len(train)} training view(s): at least two are needed; capture more photos or hold "
            "out fewer (`nerfstudio-data --eval-mode interval`)"
        )
    if len(evaluation) == 0:
        raise InputError(
            "no evaluation view: nerfstudio's default split holds out none of fewer than ten "
            "photos; append `nerfstudio-data --eval-mode interval --eval-interval 8` to hold out "
            "every 8th, or `nerfstudio-data --eval-mode all` to train on all (the metrics then "
            "say nothing about new views)"
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


def _check_image(what: str, path: Path, expected: tuple[int, int]) -> None:
    try:
        with Image.open(path) as image:
            size = image.size
    except FileNotFoundError as error:
        raise InputError(f"{what} {path} does not exist") from error
    except (UnidentifiedImageError, OSError) as error:
        raise InputError(f"{what} {path} cannot be read: {error}") from error
    if size != expected:
        raise InputError(
            f"{what} {path} has {size[0]}x{size[1]} pixels, its camera "
            f"{expected[0]}x{expected[1]}; give w, h and intrinsics for each frame where images "
            "differ in size"
        )
