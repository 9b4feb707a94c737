# SPDX-License-Identifier: Apache-2.0
"""Rays for radiance fields: real views as nerfstudio samples them, rays of pseudo views beside.

While the schedule gives pseudo views a weight, its share is a share of the rays of each batch: the
batch keeps its size, and with it a step its cost. Real rays come from nerfstudio's own sampler,
asked for fewer; with pseudo views disabled each batch is nerfstudio's, bit by bit. Photographs keep
their distortion, which rays follow exactly; undistorted copies serve the interpolation and are then
dropped.

Among the pseudo rays are some of photographs, through pixels whose depth is known because the
photographs were matched with each other: their colours are as taken, and where they end is known.

A batch with pseudo rays has them last and says of each ray: `is_pseudo` [R] and `confidence` [R] in
(0, 1], 1 for real rays; `distance` [R] from the camera to where the ray is known to end, in units
of the poses, 0 where it is not known; `pseudo_weight` is lambda. The ray's camera index, and that
in `indices`, is the number of real views plus that of the pseudo view, or that of the photograph;
`PseudoSources`, in the metadata of `train_dataset`, tells the model which photographs a pseudo view
lies between. Real views keep their indices, and pseudo views enter no dataset: whatever counts,
draws, evaluates or exports views sees real ones only.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated, Any, Literal

import numpy as np
import torch
import tyro
from nerfstudio.cameras.cameras import Cameras, CameraType
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.data.datamanagers.base_datamanager import (
    VanillaDataManager,
    VanillaDataManagerConfig,
)
from nerfstudio.engine.callbacks import TrainingCallback, TrainingCallbackAttributes
from numpy.typing import NDArray
from torch import Tensor

from ps4pro_nerfstudio.datamanagers.augmentation import (
    AugmentationConfig,
    PseudoViewsConfig,
    augment,
    plan,
    sparse_points,
    to_uint8_photo,
)
from ps4pro_nerfstudio.datamanagers.captures import (
    check_captures,
    reading_capture,
    source_views,
    undistorted_photographs,
)
from ps4pro_nerfstudio.datamanagers.photo_dataset import PhotoDataset
from ps4pro_nerfstudio.geometry.cameras import flip_camera_axes
from ps4pro_nerfstudio.initialization.dense_points import DensePointsConfig
from ps4pro_nerfstudio.initialization.filled_points import FilledPointsConfig
from ps4pro_nerfstudio.initialization.free_space import FreeSpaceConfig
from ps4pro_nerfstudio.initialization.stereo import StereoDepth
from ps4pro_nerfstudio.initialization.visual_hull import VisualHullConfig
from ps4pro_nerfstudio.messages import InputError, counted, say
from ps4pro_nerfstudio.pseudo_views.per_view import METADATA_KEY, find_sources
from ps4pro_nerfstudio.pseudo_views.pseudo_view import Provenance, PseudoView
from ps4pro_nerfstudio.pseudo_views.schedule import (
    PseudoViewSchedule,
    PseudoViewScheduleConfig,
)


@dataclass
class PseudoRayDatamanagerConfig(AugmentationConfig, VanillaDataManagerConfig):
    """Rays with pseudo views."""

    _target: type = field(default_factory=lambda: PseudoRayDatamanager)
    pseudo_views: PseudoViewsConfig = field(
        default_factory=lambda: PseudoViewsConfig(schedule=PseudoViewScheduleConfig(tail=0.0))
    )
    """Views added between the training views. They keep their weight to the end: where a ray ends
    stays true, and without it a field learns haze again."""
    dense_points: Annotated[DensePointsConfig, tyro.conf.Suppress] = field(
        default_factory=lambda: DensePointsConfig(enabled=False)
    )
    """Not offered: a radiance field starts from no points."""
    filled_points: Annotated[FilledPointsConfig, tyro.conf.Suppress] = field(
        default_factory=lambda: FilledPointsConfig(enabled=False)
    )
    """Not offered either."""
    visual_hull: Annotated[VisualHullConfig, tyro.conf.Suppress] = field(
        default_factory=lambda: VisualHullConfig(enabled=False)
    )
    """Nor this."""
    free_space: Annotated[FreeSpaceConfig, tyro.conf.Suppress] = field(
        default_factory=lambda: FreeSpaceConfig(share=0.0)
    )
    """Nor this: it is about Gaussians."""


class PseudoRayDatamanager(VanillaDataManager[PhotoDataset]):
    """See the module's docstring."""

    config: PseudoRayDatamanagerConfig
    train_dataset: PhotoDataset
    eval_dataset: PhotoDataset

    def __init__(
        self,
        config: PseudoRayDatamanagerConfig,
        device: torch.device | str = "cpu",
        test_mode: Literal["test", "val", "inference"] = "val",
        world_size: int = 1,
        local_rank: int = 0,
        **kwargs: Any,
    ) -> None:
        with reading_capture(config.data, config.dataparser):
            super().__init__(config, device, test_mode, world_size, local_rank, **kwargs)
        self.pseudo_views: list[PseudoView] = []
        # By their index among the real views; drawn from like pseudo views.
        self.known_photographs: dict[int, PseudoView] = {}
        self._pixels: PseudoPixels | None = None
        self._schedule: PseudoViewSchedule | None = None
        if test_mode == "val" and config.pseudo_views.enabled:
            self._augment()

    @cached_property
    def dataset_type(self) -> type[PhotoDataset]:
        """Class of the datasets; upstream finds it for direct subclasses only."""
        return PhotoDataset

    def create_eval_dataset(self) -> PhotoDataset:
        """Make upstream's dataset and, before training, check all photographs: none is read yet."""
        dataset = super().create_eval_dataset()
        if self.test_mode == "val":
            check_captures(self.train_dataset, dataset)
        return dataset

    # ------------------------------------------------------------------ pseudo views

    def _augment(self) -> None:
        num_real = len(self.train_dataset)
        planned = plan(self.config, num_real, num_real, num_steps=1)
        if planned.share == 0.0:
            # Said here: `augment` would look for points first, which nothing else needs.
            say(planned.describe())
            return
        with reading_capture(self.config.data, self.config.dataparser):
            photographs, cameras = undistorted_photographs(self.train_dataset)
        views = source_views(photographs, cameras, self.train_dataset.image_filenames)
        if self.config.pseudo_views.control == "oracle":
            raise InputError(
                "the control oracle is for splats; a radiance field's controls are linear-blend, "
                "naive, unweighted and repeat-real"
            )
        points = sparse_points(self.train_dataparser_outputs.metadata)
        made = augment(views, points, self.config, self.device, self.config.data, want_depth=True)
        self.pseudo_views = made.pseudo_views
        num_pseudo = len(self.pseudo_views)
        known = known_photographs(made.stereo or [], views.names, views.times)
        self.known_photographs = known
        pixels = PseudoPixels(
            [*self.pseudo_views, *known.values()],
            self.device,
            [*range(num_real, num_real + num_pseudo), *known],
        )
        if len(pixels) > 0:
            self._pixels = pixels
            sources = find_sources(self.pseudo_views, views.names)
            self.train_dataset.metadata[METADATA_KEY] = sources

    def get_training_callbacks(
        self, training_callback_attributes: TrainingCallbackAttributes
    ) -> list[TrainingCallback]:
        """Plan the pseudo rays over the length of the run; say the plan and enter its share.

        Only our trainer knows that length; under another one there are no pseudo rays.
        """
        run_length = getattr(training_callback_attributes.trainer, "run_length", None)
        if self._pixels is not None and run_length is not None:
            self._schedule = self._plan(run_length)
            self.config.pseudo_views.schedule.share = self._schedule.share
            num_rays = self.get_train_rays_per_batch()
            say(
                f"{self._schedule.describe(self._describe_drawn())}; that share is one of rays: "
                f"{num_pseudo_rays(num_rays, self._schedule.share)} of {num_rays} in each batch, "
                f"{self._pixels.known_share:.0%} of them with a known end"
            )
        return super().get_training_callbacks(training_callback_attributes)

    def planned_length(self, num_steps: int) -> int:
        """Steps of a run that was asked to have `num_steps`: more if real rays are to be equal."""
        if self._pixels is None or not self.config.pseudo_views.schedule.equal_real_steps:
            return num_steps
        return self._plan(num_steps).lengthened().num_steps

    def _plan(self, num_steps: int) -> PseudoViewSchedule:
        # Where no frame could be made, photographs far from each other may still tell depth.
        num_drawn = len(self.pseudo_views) + len(self.known_photographs)
        return plan(self.config, len(self.train_dataset), num_drawn, num_steps)

    def _describe_drawn(self) -> str:
        """What rays are drawn from beside the photographs as they are."""
        parts = []
        if self.pseudo_views:
            parts.append(counted(len(self.pseudo_views), "pseudo view"))
        if self.known_photographs:
            known = counted(len(self.known_photographs), "photograph")
            parts.append(f"matched pixels of {known}")
        return " and ".join(parts)

    def photograph(self, index: int) -> NDArray[np.uint8]:
        """A training photograph [H, W, 3], as it was taken."""
        return to_uint8_photo(self.train_dataset.get_numpy_image(index))[0]

    @property
    def schedule(self) -> PseudoViewSchedule | None:
        """Plan of the pseudo rays; None before the run's length is known, or without any."""
        return self._schedule

    def next_train(self, step: int) -> tuple[RayBundle, dict]:
        """Rays of real views and, while they have a weight, of pseudo views."""
        # The trainer seeds torch for each step; upstream's sampler falls back to Python's numbers
        # where a mask leaves few pixels.
        random.seed(torch.initial_seed())
        schedule, sampler = self._schedule, self.train_pixel_sampler
        assert sampler is not None
        num_rays = sampler.num_rays_per_batch
        weight = 0.0 if schedule is None else schedule.weight(step)
        num_pseudo = 0 if schedule is None else num_pseudo_rays(num_rays, schedule.share)
        if schedule is None or self._pixels is None or weight == 0.0 or num_pseudo == 0:
            return super().next_train(step)
        sampler.set_num_rays_per_batch(num_rays - num_pseudo)
        real_rays, batch = super().next_train(step)
        sampler.set_num_rays_per_batch(num_rays)
        generator = np.random.default_rng((schedule.config.seed, step))
        sample = self._pixels.sample(num_pseudo, generator)
        rays = self._pixels.rays(sample)
        rays.camera_indices = sample.views[:, None].to(self.device)
        along_ray = rays.metadata["directions_norm"][:, 0]
        return join_rays(real_rays, rays), {
            **join_batches(batch, sample),
            "distance": torch.cat(
                [along_ray.new_zeros(len(real_rays)), sample.depth.to(along_ray) * along_ray]
            ),
            "pseudo_weight": weight,
        }


def num_pseudo_rays(num_rays: int, share: float) -> int:
    """How many rays of a batch belong to pseudo views: even, as upstream's samplers need it."""
    return min(2 * round(share * num_rays / 2), num_rays - 2)


@dataclass(frozen=True)
class PixelSample:
    """Some pixels of pseudo views and of photographs whose depth is known."""

    indices: Tensor
    """[R, 3] place of the view among those that were drawn from, row and column."""
    views: Tensor
    """[R] index of the view, as batches have it: real ones first, then pseudo ones."""
    rgb: Tensor
    """[R, 3] in [0, 1]."""
    confidence: Tensor
    """[R] in (0, 1]."""
    depth: Tensor
    """[R] along the optical axis, in units of the poses; 0 where not known."""


class PseudoPixels:
    """The pixels of pseudo views that are trusted at all, and their rays.

    Args:
        views: P views; those without an image contribute nothing.
        device: where rays are made. Pixels stay on the CPU, as nerfstudio's photographs do.
        view_indices: index of each view in batches; None: its place.
    """

    def __init__(
        self,
        views: Sequence[PseudoView],
        device: torch.device | str = "cpu",
        view_indices: Sequence[int] | None = None,
    ) -> None:
        flat, rgb, confidence, depth = [], [], [], []
        for view in views:
            trusted = np.flatnonzero(view.confidence) if view.image is not None else np.arange(0)
            flat.append(trusted.astype(np.int32))
            confidence.append(view.confidence.reshape(-1)[trusted])
            known = np.zeros(view.confidence.size, np.float32) if view.depth is None else view.depth
            depth.append(known.reshape(-1)[trusted])
            if view.image is not None:
                rgb.append(view.image.reshape(-1, 3)[trusted])
        self._ends = np.cumsum([len(part) for part in flat])
        self._views = np.array(range(len(views)) if view_indices is None else view_indices)
        self._widths = np.array([view.width for view in views])
        self._flat = np.concatenate([*flat, np.zeros(0, np.int32)])
        self._rgb = np.concatenate([*rgb, np.zeros((0, 3), np.uint8)])
        self._confidence = np.concatenate([*confidence, np.zeros(0, np.uint8)])
        self._depth = np.concatenate([*depth, np.zeros(0, np.float32)])
        self._cameras = _cameras(views).to(device) if views else None

    def __len__(self) -> int:
        return len(self._flat)

    @property
    def known_share(self) -> float:
        """Share of the pixels whose depth is known."""
        return float((self._depth > 0.0).mean()) if len(self) else 0.0

    def sample(self, num_rays: int, generator: np.random.Generator) -> PixelSample:
        """Draw pixels, each of all views with the same probability."""
        chosen = generator.integers(len(self), size=num_rays)
        view = np.searchsorted(self._ends, chosen, side="right")
        row, column = np.divmod(self._flat[chosen], self._widths[view])
        return PixelSample(
            indices=torch.from_numpy(np.stack([view, row, column], axis=1).astype(np.int64)),
            views=torch.from_numpy(self._views[view].astype(np.int64)),
            rgb=torch.from_numpy(self._rgb[chosen]).float() / 255.0,
            confidence=torch.from_numpy(self._confidence[chosen]).float() / 255.0,
            depth=torch.from_numpy(self._depth[chosen]),
        )

    def rays(self, sample: PixelSample) -> RayBundle:
        """Rays through the centres of pixels; `camera_indices` [R, 1] are places of views."""
        assert self._cameras is not None
        indices = sample.indices.to(self._cameras.device)
        return self._cameras.generate_rays(
            camera_indices=indices[:, :1], coords=indices[:, 1:].float() + 0.5
        )


def _cameras(views: Sequence[PseudoView]) -> Cameras:
    def column(name: str, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.tensor([getattr(view, name) for view in views], dtype=dtype)[:, None]

    has_times = all(view.time is not None for view in views)
    return Cameras(
        camera_to_worlds=torch.from_numpy(np.stack([view.camera_to_world for view in views])),
        fx=column("fx"),
        fy=column("fy"),
        cx=column("cx"),
        cy=column("cy"),
        width=column("width", torch.int64),
        height=column("height", torch.int64),
        camera_type=CameraType.PERSPECTIVE,
        times=column("time") if has_times else None,
    )


def known_photographs(
    depths: Sequence[StereoDepth | None],
    names: Sequence[str],
    times: Sequence[float] | None = None,
) -> dict[int, PseudoView]:
    """Photographs with the pixels whose depth is known, by their index among N photographs.

    Args:
        depths: N depths; None where there is none.
        names: N names.
        times: N times of a moving scene.
    """
    return {
        index: _known_pixels(depth, names[index], None if times is None else times[index])
        for index, depth in enumerate(depths)
        if depth is not None
    }


def _known_pixels(depth: StereoDepth, name: str, time: float | None) -> PseudoView:
    """One photograph, trusted where its depth is known: there its colours are as taken."""
    height, width = depth.depth.shape
    is_known = depth.depth > 0.0
    share = float(is_known.mean())
    return PseudoView(
        camera_to_world=flip_camera_axes(depth.camera_to_world)[:3].astype(np.float32),
        fx=float(depth.intrinsics[0, 0]),
        fy=float(depth.intrinsics[1, 1]),
        cx=float(depth.intrinsics[0, 2]),
        cy=float(depth.intrinsics[1, 2]),
        width=width,
        height=height,
        time=time,
        image=depth.image,
        confidence=np.where(is_known, np.uint8(255), np.uint8(0)),
        provenance=Provenance((name,), 0.0, "as taken", "matches", 0.0, "none", share, share),
        depth=depth.depth,
    )


def join_rays(real: RayBundle, pseudo: RayBundle) -> RayBundle:
    """Rays [R] and [Q] as one bundle [R + Q]; what only one of them has is left out."""

    def joined(name: str) -> Any:
        parts = [getattr(real, name), getattr(pseudo, name)]
        return None if any(part is None for part in parts) else torch.cat(parts)

    shared = real.metadata.keys() & pseudo.metadata.keys()
    names = ("origins", "directions", "pixel_area", "camera_indices", "nears", "fars", "times")
    return RayBundle(
        **{name: joined(name) for name in names},
        metadata={key: torch.cat([real.metadata[key], pseudo.metadata[key]]) for key in shared},
    )


def join_batches(real: dict[str, Any], sample: PixelSample) -> dict[str, Any]:
    """Upstream's pixel batch [R] and pixels of pseudo views [Q] as one batch [R + Q].

    Per-ray values that pseudo views do not have, such as depth, are left out.
    """
    device = real["image"].device
    num_real, num_pseudo = len(real["image"]), len(sample.rgb)
    rgb = sample.rgb.to(real["image"])
    if real["image"].shape[-1] == 4:  # photographs with transparency; a pseudo view is opaque
        rgb = torch.cat([rgb, torch.ones_like(rgb[:, :1])], dim=-1)
    indices = torch.cat([sample.views[:, None], sample.indices[:, 1:]], dim=1)
    confidence = torch.cat([torch.ones(num_real), sample.confidence])
    batch = {
        "image": torch.cat([real["image"], rgb]),
        "indices": torch.cat([real["indices"], indices.to(real["indices"].device)]),
        "is_pseudo": (torch.arange(num_real + num_pseudo) >= num_real).to(device),
        "confidence": confidence.to(device),
    }
    if "mask" in real:
        batch["mask"] = torch.cat([real["mask"], real["mask"].new_ones(num_pseudo, 1)])
    if "full_image" in real:
        batch["full_image"] = real["full_image"]
    return batch
