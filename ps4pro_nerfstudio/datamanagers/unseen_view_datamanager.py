# SPDX-License-Identifier: Apache-2.0
"""Photographs with what is known of their depth, and with a camera nearby where nobody stood.

Each real view comes with `seen_depth` (points that it shows, with their depths) and `unseen`: a
camera moved at random away from it, to be rendered and compared with the view warped there (IPSM,
arXiv 2412.02225). The camera is drawn for the view of the step rather than by itself: seen views
are drawn evenly, so the unseen ones are too, and the seen render is not needed twice.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
import tyro
from nerfstudio.cameras.cameras import Cameras, CameraType
from nerfstudio.engine.callbacks import TrainingCallback, TrainingCallbackAttributes
from numpy.typing import NDArray
from torch import Tensor

from ps4pro_nerfstudio.datamanagers.augmentation import Augmentation, feature_tracks
from ps4pro_nerfstudio.datamanagers.pseudo_view_datamanager import (
    PseudoViewDatamanager,
    PseudoViewDatamanagerConfig,
)
from ps4pro_nerfstudio.diffusion.monocular_depth import MonocularDepthConfig, tells_depth
from ps4pro_nerfstudio.diffusion.protocol import DepthPrior
from ps4pro_nerfstudio.diffusion.weights import open_depth_prior
from ps4pro_nerfstudio.messages import say
from ps4pro_nerfstudio.pseudo_views.perturbed import (
    PerturbedCameras,
    PerturbedCamerasConfig,
    depth_bounds,
    perturbed_cameras,
    told_depth_bounds,
)
from ps4pro_nerfstudio.pseudo_views.seen_depth import SeenDepthConfig, Tracks, seen_depths
from ps4pro_nerfstudio.pseudo_views.sources import SourceViews


class KnownPoints(NamedTuple):
    """Points that one photograph shows, on the device of the training."""

    pixels: Tensor
    """[P, 2], column and row, centres at half-integers."""
    depth: Tensor
    """[P], in units of the poses."""
    xyz: Tensor
    """[P, 3], in the world."""


class UnseenView(NamedTuple):
    """A camera near a seen one."""

    camera: Cameras
    """[1], of the size and intrinsics of the seen one."""
    source: Cameras
    """[1], the seen one."""
    sigma: float
    """Noise that moved it, in the units of the sampler."""


@dataclass
class UnseenViewDatamanagerConfig(PseudoViewDatamanagerConfig):
    """Full images with pseudo views, triangulated depth and unseen cameras."""

    _target: type = field(default_factory=lambda: UnseenViewDatamanager)
    unseen: PerturbedCamerasConfig = field(default_factory=PerturbedCamerasConfig)
    """Cameras near the seen ones."""
    seen_depth: SeenDepthConfig = field(default_factory=SeenDepthConfig)
    """Depth of the photographs from correspondences."""
    depth: Annotated[str, tyro.conf.Suppress] = "triangulated"
    """Depth network of the coarse initial points: that of the model, which the pipeline enters."""
    depth_network: Annotated[MonocularDepthConfig, tyro.conf.Suppress] = field(
        default_factory=MonocularDepthConfig
    )
    """Its settings."""


class UnseenViewDatamanager(PseudoViewDatamanager):
    """See the module's docstring."""

    config: UnseenViewDatamanagerConfig
    _wants_frames = True
    _unseen: PerturbedCameras | None = None

    def _augment(self) -> None:
        self.depth_prior: DepthPrior | None = open_depth_prior(
            self.config.depth, self.config.depth_network, self.device
        )
        super()._augment()

    def _inverse_depths(self, views: SourceViews) -> list[NDArray] | None:
        """Link (c) of the initialisation chain: coarse points at the network's depth.

        Maps that tell no depth are empty. The model warns of them: it sees all photographs, also
        where no coarse points are wanted.
        """
        prior = self.depth_prior
        if prior is None:
            return None
        found = []
        for image in views.images:
            picture = torch.from_numpy(image).to(self.device).permute(2, 0, 1).float() / 255.0
            with torch.no_grad():
                inverse = prior.inverse_depth(picture)
            found.append(inverse.cpu().numpy() if tells_depth(inverse) else np.zeros((0, 0)))
        return found if any(inverse.size for inverse in found) else None

    def _keep(self, views: SourceViews, made: Augmentation) -> None:
        """Depths of the photographs and cameras near them."""
        config = self.config
        own = [
            np.zeros((0, 3)) if depth is None else depth.observations().xyz
            for depth in made.stereo or []
        ]
        found = seen_depths(
            views, made.frames, lambda: self._tracks(views, made), config.seen_depth, own
        )
        self._known = [
            KnownPoints(
                torch.from_numpy(seen.pixels).to(self.device),
                torch.from_numpy(seen.depth).to(self.device),
                torch.from_numpy(seen.xyz).to(self.device),
            )
            for seen in found
        ]
        counts = [len(seen) for seen in found]
        without = sum(count == 0 for count in counts)
        line = f"depth from correspondences: {np.mean(counts):,.0f} points in each photograph"
        say(line + (f", none in {without} of {len(counts)}" if without else ""))
        bounds = self._depth_bounds(views, made)
        if bounds is None:
            say("no unseen views: no photograph shows the initial points")
        self._unseen = (
            None
            if bounds is None
            else perturbed_cameras(views.camera_to_worlds, bounds, config.unseen)
        )
        self._run_length: int | None = None

    def _depth_bounds(self, views: SourceViews, made: Augmentation) -> tuple[float, float] | None:
        """Nearest and farthest depth of the photographs: of the capture, else of the points."""
        told = self.train_dataparser_outputs.metadata.get("depth_bounds")
        if told is not None:
            bounds = told_depth_bounds(told)
            if bounds is not None:
                return bounds
            say("the capture's depth bounds are not 0 < near < far; the initial points' are taken")
        sizes = [(image.shape[1], image.shape[0]) for image in views.images]
        return depth_bounds(made.points.xyz, views.camera_to_worlds, views.intrinsics, sizes)

    @property
    def coming_unseen(self) -> PerturbedCameras | None:
        """All unseen cameras that the training may meet; None without any."""
        return self._unseen

    def _tracks(self, views: SourceViews, made: Augmentation) -> Tracks | None:
        """Points triangulated from features.

        They are made now where the capture brought points: nobody knows which views found those.
        """
        tracks = made.tracks
        if tracks is None:
            say("too little depth from the photographs' neighbours; matching features as well")
            tracks = feature_tracks(views, self.config, self.config.data)
        return None if tracks.method == "random" else (tracks.xyz, tracks.seen_by)

    def get_training_callbacks(
        self, training_callback_attributes: TrainingCallbackAttributes
    ) -> list[TrainingCallback]:
        """Take over the length of the run, along which the unseen cameras move away."""
        self._run_length = getattr(training_callback_attributes.trainer, "run_length", None)
        return super().get_training_callbacks(training_callback_attributes)

    def next_train(self, step: int) -> tuple[Cameras, dict[str, Any]]:
        """A real view with `seen_depth` and `unseen`, or a pseudo view with neither."""
        camera, batch = super().next_train(step)
        served = self.served
        if served is None or served.is_pseudo:
            return camera, batch
        batch = {**batch, "seen_depth": self._known[served.index]}
        unseen = self._unseen_view(camera, served.index, step)
        if unseen is not None:
            batch["unseen"] = unseen
            self.latest_unseen = unseen.camera
        return camera, batch

    def _unseen_view(self, source: Cameras, index: int, step: int) -> UnseenView | None:
        """The next camera of a seen view at this moment of the training."""
        if self._unseen is None:
            return None
        progress = 0.0 if self._run_length is None else step / self._run_length
        chosen = self._unseen.draw_index(index, progress)
        if chosen is None:
            return None
        pose = torch.from_numpy(self._unseen.camera_to_worlds[chosen]).to(self.device)
        camera = Cameras(
            camera_to_worlds=pose[None],
            fx=source.fx,
            fy=source.fy,
            cx=source.cx,
            cy=source.cy,
            width=source.width,
            height=source.height,
            camera_type=CameraType.PERSPECTIVE,
        )
        return UnseenView(camera, source, float(self._unseen.sigma[chosen]))
