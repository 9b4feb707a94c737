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
from typing import Any, Literal

import numpy as np
import torch
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.data.datamanagers.full_images_datamanager import (
    FullImageDatamanager,
    FullImageDatamanagerConfig,
)
from nerfstudio.engine.callbacks import TrainingCallback, TrainingCallbackAttributes
from numpy.typing import NDArray
from torch import Tensor

from ps4pro_nerfstudio.datamanagers.augmentation import (
    Augmentation,
    AugmentationConfig,
    augment,
    plan,
    sparse_points,
    to_uint8_photo,
)
from ps4pro_nerfstudio.datamanagers.captures import (
    check_captures,
    content_mask,
    mark_pinholes,
    mask_content,
    reading_capture,
    source_views,
    undistorted_photographs,
)
from ps4pro_nerfstudio.datamanagers.photo_dataset import PhotoDataset
from ps4pro_nerfstudio.dataparsers.sparse_views import SparseViews
from ps4pro_nerfstudio.geometry.cameras import invert_rigid
from ps4pro_nerfstudio.initialization.free_space import nearest_around
from ps4pro_nerfstudio.messages import say
from ps4pro_nerfstudio.pseudo_views.pseudo_view import PseudoView
from ps4pro_nerfstudio.pseudo_views.schedule import PseudoViewSchedule
from ps4pro_nerfstudio.pseudo_views.sources import SourceViews
from ps4pro_nerfstudio.splatting.free_space import FreeSpace, SeenSurface


@dataclass
class PseudoViewDatamanagerConfig(AugmentationConfig, FullImageDatamanagerConfig):
    """Full images with pseudo views."""

    _target: type = field(default_factory=lambda: PseudoViewDatamanager)
    cache_images_type: Literal["uint8", "float32"] = "uint8"
    """Type of the images kept in memory."""


@dataclass(frozen=True)
class ServedView:
    """The view that a training step got."""

    is_pseudo: bool
    index: int
    """Index among the real views, or among the pseudo views."""
    weight: float
    """Factor on its loss: lambda of the step for a pseudo view, 1 for a real one."""


class PseudoViewDatamanager(FullImageDatamanager[PhotoDataset]):
    """See the module's docstring."""

    config: PseudoViewDatamanagerConfig
    _wants_frames = False
    """Whether frames are made even when neither pseudo views nor dense points are wanted."""
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
        with reading_capture(config.data, config.dataparser):
            super().__init__(config, device, test_mode, world_size, local_rank, **kwargs)
        self.pseudo_views: list[PseudoView] = []
        self._schedule: PseudoViewSchedule | None = None
        self._num_real_served = 0
        self.served: ServedView | None = None
        self.free_space: FreeSpace | None = None
        """Space that is known to be empty, where it is."""
        self.latest_unseen: Cameras | None = None
        """Camera near the latest real view, of methods that render such; in a batch of one."""
        if test_mode == "val":
            check_captures(self.train_dataset, self.eval_dataset)
            self._augment()

    @cached_property
    def dataset_type(self) -> type[PhotoDataset]:
        """Class of the datasets; upstream finds it for direct subclasses only."""
        return PhotoDataset

    # ------------------------------------------------------------------ images

    def create_train_dataset(self) -> PhotoDataset:
        """Upstream's, with its transparency: what is known to be empty shows any background."""
        dataset = super().create_train_dataset()
        dataset.keep_transparency()
        return dataset

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
            mask_content(data, content_mask(as_taken[index].reshape(())))
        if mark_pinholes(dataset.cameras, as_taken) and split == "train":
            # Upstream's copy on the device was made before.
            self.train_cameras = self.train_dataset.cameras.to(self.device)
        return images

    def _augment(self) -> None:
        """Make pseudo views, and give the model initial points from training views."""
        metadata = self.train_dataparser_outputs.metadata
        dataset = self.train_dataset
        views = source_views(self.cached_train, dataset.cameras, dataset.image_filenames)
        made = augment(
            views,
            sparse_points(metadata),
            self.config,
            self.device,
            self.config.data,
            self._photographs_between() if self.config.pseudo_views.control == "oracle" else None,
            self._wants_frames,
            lambda: self._inverse_depths(views),
        )
        self.pseudo_views = made.pseudo_views
        self.free_space = self._free_space(views, made)
        self._keep(views, made)
        metadata["points3D_xyz"] = torch.from_numpy(made.points.xyz)
        metadata["points3D_rgb"] = torch.from_numpy(made.points.rgb)

    def _free_space(self, views: SourceViews, made: Augmentation) -> FreeSpace | None:
        """Where nothing stands, as far as it is known."""
        seen = []
        share = self.config.free_space.before_surfaces
        for depth in (made.stereo or []) if share > 0.0 else []:
            if depth is not None:
                motion = invert_rigid(depth.camera_to_world)
                arrays = (motion, depth.intrinsics, nearest_around(depth.depth))
                seen.append(
                    SeenSurface(
                        *(torch.as_tensor(a, dtype=torch.float32).to(self.device) for a in arrays)
                    )
                )
        if made.free_radii is None and not seen:
            return None
        radii = np.zeros(0) if made.free_radii is None else made.free_radii
        centres = torch.as_tensor(views.camera_to_worlds, dtype=torch.float32)[: len(radii), :3, 3]
        return FreeSpace(
            centres.to(self.device),
            torch.as_tensor(radii, dtype=torch.float32).to(self.device),
            seen,
            share,
        )

    def _keep(self, views: SourceViews, made: Augmentation) -> None:
        """Take more of what was made; here nothing more is needed."""

    def _inverse_depths(self, views: SourceViews) -> list[NDArray] | None:
        """What a depth network sees in the photographs, [H, W] each; here there is none."""
        del views
        return None

    def _photographs_between(self) -> SourceViews | None:
        """Photographs between the training views that are not test views; None: not known."""
        if not isinstance(self.dataparser, SparseViews):
            return None
        outputs = self.dataparser.get_dataparser_outputs(split="between")
        dataset = PhotoDataset(outputs)
        photographs, cameras = undistorted_photographs(dataset)
        return source_views(photographs, cameras, dataset.image_filenames)

    # ------------------------------------------------------------------ pseudo views

    def get_training_callbacks(
        self, training_callback_attributes: TrainingCallbackAttributes
    ) -> list[TrainingCallback]:
        """Plan the pseudo steps over the length of the run; say the plan and enter its share.

        Only our trainer knows that length; under another one there are no pseudo steps.
        """
        run_length = getattr(training_callback_attributes.trainer, "run_length", None)
        if self.pseudo_views and run_length is not None:
            self._schedule = self._plan(run_length)
            say(self._schedule.describe())
            self.config.pseudo_views.schedule.share = self._schedule.share
        return super().get_training_callbacks(training_callback_attributes)

    def planned_length(self, num_steps: int) -> int:
        """Steps of a run that was asked to have `num_steps`: more if real steps are to be equal."""
        if not self.pseudo_views or not self.config.pseudo_views.schedule.equal_real_steps:
            return num_steps
        return self._plan(num_steps).lengthened().num_steps

    def _plan(self, num_steps: int) -> PseudoViewSchedule:
        return plan(self.config, len(self.train_dataset), len(self.pseudo_views), num_steps)

    def next_train(self, step: int) -> tuple[Cameras, dict]:
        """A real view, or a pseudo view when the schedule says so."""
        if self._schedule is not None and self._schedule.is_pseudo(step):
            return self._pseudo_view(step, self._schedule)
        self._num_real_served += 1
        self.served = ServedView(False, self.train_unseen_cameras[0], 1.0)
        return super().next_train(step)

    def photograph(self, index: int) -> NDArray[np.uint8]:
        """A training photograph [H, W, 3], undistorted as it is trained on."""
        return to_uint8_photo(self.cached_train[index]["image"].cpu().numpy())[0]

    @property
    def schedule(self) -> PseudoViewSchedule | None:
        """Plan of the pseudo steps; None before the run's length is known, or without any."""
        return self._schedule

    def _pseudo_view(self, step: int, schedule: PseudoViewSchedule) -> tuple[Cameras, dict]:
        index = schedule.view_index(step)
        view = self.pseudo_views[index]
        camera = view.to_cameras().to(self.device)
        camera.metadata = {"pseudo_idx": index}
        weight = schedule.weight(step)
        self.served = ServedView(True, index, weight)
        confidence = torch.from_numpy(view.confidence).to(self.device)
        batch = {
            "image": torch.from_numpy(view.image).to(self.device),
            "mask": (confidence > 0)[..., None],
            "confidence": confidence.float() / 255,
            "pseudo_weight": weight,
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
