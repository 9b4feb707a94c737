# SPDX-License-Identifier: Apache-2.0
"""Panel and frustums of the views that a running training uses.

Real and pseudo cameras stand in the scene in two colours, each with its picture. Panel: what to
show, the peak weight lambda of pseudo views, the worst views, and everything about the view that
was clicked or chosen. Where a method renders cameras near the photographs' (IPSM), some of those to
come and the latest one stand there in a third colour.

Threads: viser calls handlers from its own; they touch GUI and pictures only. `before_step` and
`after_step` belong to the training thread, which alone changes the schedule, between two steps. A
training whose slider nobody moves is the training without a viewer, bit by bit.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.viewer.viewer import Viewer
from numpy.typing import NDArray
from torch import Tensor
from viser import CameraFrustumHandle, ClientHandle, GuiInputHandle, GuiMarkdownHandle

from ps4pro_nerfstudio.datamanagers.pseudo_ray_datamanager import PseudoRayDatamanager
from ps4pro_nerfstudio.datamanagers.pseudo_view_datamanager import PseudoViewDatamanager
from ps4pro_nerfstudio.messages import say
from ps4pro_nerfstudio.viewer import descriptions
from ps4pro_nerfstudio.viewer.frustums import Frustum, frustum_of
from ps4pro_nerfstudio.viewer.pictures import confidence_picture, data_uri, shrink
from ps4pro_nerfstudio.viewer.view_losses import ViewKey, ViewLosses

REAL_COLOUR = (80, 165, 255)
PSEUDO_COLOUR = (255, 140, 30)
UNSEEN_COLOUR = (120, 220, 120)
_SELECTED_COLOUR = (255, 255, 255)
# Pseudo cameras stand between real ones; smaller, they hide less.
_PSEUDO_SCALE = 0.75
# A few of the thousands show how far they go; the latest one is to stand out among them.
_NUM_UNSEEN, _UNSEEN_SCALE = 24, 0.3
_THUMBNAIL_PX, _PICTURE_PX = 120, 480
_NUM_WORST = 5
_REFRESH_S = 1.0
_NOTHING = "(click a camera)"


class ViewsPanel:
    """See the module's docstring."""

    def __init__(
        self, viewer: Viewer, manager: PseudoViewDatamanager | PseudoRayDatamanager
    ) -> None:
        """Draw everything; `viewer` has drawn its scene already."""
        self._viewer = viewer
        self._manager = manager
        self._names = [path.name for path in manager.train_dataset.image_filenames]
        self._losses = ViewLosses()
        self._lock = threading.Lock()
        self._selected: ViewKey | None = None
        self._requested_weight: float | None = None
        self._unsaid_since: float | None = None
        self._refreshed = 0.0
        self._handles: dict[ViewKey, CameraFrustumHandle] = {}
        self._frustums: dict[ViewKey, Frustum] = {}
        self._marker: CameraFrustumHandle | None = None
        self._unseen_handles: dict[str, CameraFrustumHandle] = {}
        self._show_pseudo: GuiInputHandle[bool] | None = None
        self._draw_cameras()
        self._build()

    # ------------------------------------------------------------------ training thread

    def before_step(self, step: int) -> None:
        """Take over the weight that the user has asked for since the last step."""
        schedule = self._manager.schedule
        with self._lock:
            wanted, self._requested_weight = self._requested_weight, None
        if schedule is None:
            return
        if wanted is not None and wanted != schedule.config.peak_weight:
            # A new object: the config that was saved with the run stays what it was.
            schedule.config = replace(schedule.config, peak_weight=wanted)
            self._unsaid_since = time.monotonic()
        # A slider passes many values on its way; the one that it rests at is worth a line.
        elif self._unsaid_since is not None and time.monotonic() - self._unsaid_since > _REFRESH_S:
            self._unsaid_since = None
            peak = schedule.config.peak_weight
            say(f"peak weight of pseudo views set in the viewer: {peak:g} (step {step})")

    def after_step(self, step: int, losses: Mapping[ViewKey, tuple[Tensor, float]]) -> None:
        """Note the photometric losses of the step's views; once a second, refresh the panel.

        Args:
            step: the step that was trained.
            losses: of each view that it used, a scalar and the factor that is in it: the lambda
                of a pseudo view.
        """
        for key, (loss, weight) in losses.items():
            self._losses.record(key, loss, weight, step)
        if time.monotonic() - self._refreshed >= _REFRESH_S:
            self._refreshed = time.monotonic()
            self.refresh(step)

    def refresh(self, step: int) -> None:
        """Show the losses and the weight as they are now."""
        schedule = self._manager.schedule
        worst = self._losses.worst(_NUM_WORST)
        _set(self._worst_text, descriptions.worst_views(worst, self._names))
        if schedule is not None:
            _set(self._weight_text, descriptions.weight(schedule.weight(step), step))
        with self._lock:
            if self._selected is not None:
                _set(self._view_text, self._describe(self._selected))
        self._draw_unseen()

    def finish(self, step: int) -> None:
        """Show the last state; the slider has nothing left to act on."""
        self.refresh(step)
        if self._weight_slider is not None:
            self._weight_slider.disabled = True

    # ------------------------------------------------------------------ scene

    def _draw_cameras(self) -> None:
        """Draw pseudo cameras, and the viewer's real ones anew.

        nerfstudio hands viser the horizontal field of view where it wants the vertical one, and
        has one colour; under the same names these replace its frustums.
        """
        cameras = self._manager.train_dataset.cameras
        for index in self._viewer.camera_handles:
            camera = cameras[index]
            frustum = frustum_of(
                camera.camera_to_worlds.cpu().numpy(),
                (float(camera.fx), float(camera.fy)),
                (int(camera.width), int(camera.height)),
            )
            key = ViewKey(False, index)
            handle = self._draw(f"/cameras/camera_{index:05d}", key, frustum)
            handle.on_click(lambda event, key=key: self._look_through(key, event.client))
            self._viewer.camera_handles[index] = handle
        views = self._manager.pseudo_views
        for index in self._viewer._pick_drawn_image_idxs(len(views)) if views else ():
            view = views[index]
            frustum = frustum_of(
                view.camera_to_world, (view.fx, view.fy), (view.width, view.height)
            )
            self._draw(f"/pseudo_cameras/camera_{index:05d}", ViewKey(True, index), frustum)
        self._draw_coming_unseen()

    def _draw_coming_unseen(self) -> None:
        """Stand small frustums at some unseen cameras, from the first to the last to be met."""
        unseen = getattr(self._manager, "coming_unseen", None)  # of ipsm-gaussian alone
        if unseen is None:
            return
        cameras = self._manager.train_dataset.cameras
        places = np.linspace(0, len(unseen.order) - 1, min(_NUM_UNSEEN, len(unseen.order)))
        for number, index in enumerate(unseen.order[places.round().astype(int)]):
            seen = cameras[int(unseen.source[index])]
            self._draw_unseen_frustum(
                f"/unseen_cameras/camera_{number:02d}",
                unseen.camera_to_worlds[index],
                seen,
                _UNSEEN_SCALE,
            )

    def _draw_unseen(self) -> None:
        """Stand a frustum where the latest unseen camera is; the same name replaces the last."""
        camera = getattr(self._manager, "latest_unseen", None)  # no radiance field has any
        if camera is None:
            return
        pose = camera.camera_to_worlds[0].cpu().numpy()
        self._draw_unseen_frustum("/unseen_camera", pose, camera, _PSEUDO_SCALE)

    def _draw_unseen_frustum(
        self, name: str, camera_to_world: NDArray, camera: Cameras, scale: float
    ) -> None:
        """Stand a frustum at a pose [3, 4] with the intrinsics of a camera."""
        frustum = frustum_of(
            camera_to_world,
            (float(camera.fx), float(camera.fy)),
            (int(camera.width), int(camera.height)),
        )
        self._unseen_handles[name] = self._viewer.viser_server.scene.add_camera_frustum(
            name,
            fov=frustum.fov,
            aspect=frustum.aspect,
            scale=self._viewer.config.camera_frustum_scale * scale,
            color=UNSEEN_COLOUR,
            wxyz=frustum.wxyz,
            position=frustum.position,
            visible=self._shows_pseudo(),
        )

    def _draw(self, name: str, key: ViewKey, frustum: Frustum) -> CameraFrustumHandle:
        image = self._image(key)
        handle = self._viewer.viser_server.scene.add_camera_frustum(
            name,
            fov=frustum.fov,
            aspect=frustum.aspect,
            scale=self._scale(key),
            color=PSEUDO_COLOUR if key.is_pseudo else REAL_COLOUR,
            image=None if image is None else shrink(image, _THUMBNAIL_PX),
            wxyz=frustum.wxyz,
            position=frustum.position,
        )
        handle.on_click(lambda _: self.select(key))
        self._handles[key] = handle
        self._frustums[key] = frustum
        return handle

    def _scale(self, key: ViewKey) -> float:
        return self._viewer.config.camera_frustum_scale * (_PSEUDO_SCALE if key.is_pseudo else 1.0)

    def _image(self, key: ViewKey) -> NDArray[np.uint8] | None:
        if key.is_pseudo:
            return self._manager.pseudo_views[key.index].image
        return self._manager.photograph(key.index)

    # ------------------------------------------------------------------ panel

    def _build(self) -> None:
        gui = self._viewer.viser_server.gui
        # The check boxes do what these two buttons do.
        self._viewer.hide_images.visible = self._viewer.show_images.visible = False
        # Below the header, above nerfstudio's tabs: orders are whole numbers.
        with gui.add_folder("Views", order=self._viewer.stats_markdown.order + 0.5):
            self._show_real = gui.add_checkbox("Real cameras", True)
            self._show_real.on_update(lambda _: self._apply_visibility())
            schedule = self._manager.schedule
            self._weight_slider = None
            if self._manager.pseudo_views or self._unseen_handles:
                self._show_pseudo = gui.add_checkbox("Pseudo cameras", True)
                self._show_pseudo.on_update(lambda _: self._apply_visibility())
            if schedule is not None and schedule.share > 0.0:
                peak = schedule.config.peak_weight
                self._weight_slider = gui.add_slider(
                    "Peak λ",
                    min=0.0,
                    max=max(1.0, 2 * peak),
                    step=0.01,
                    initial_value=peak,
                    hint="Largest loss weight of pseudo views, from the next step on",
                )
                self._weight_slider.on_update(
                    lambda event: self._request_weight(float(event.target.value))
                )
            self._weight_text = gui.add_markdown("")
            self._choices = {self._choice(key): key for key in self._all_keys()}
            self._chooser = gui.add_dropdown("View", (_NOTHING, *self._choices))
            self._chooser.on_update(lambda event: self._choose(event.target.value))
            self._view_text = gui.add_markdown("")
            # The pictures come as data; viser warns of a missing folder all the same.
            self._view_pictures = gui.add_markdown("", image_root=Path())
            self._enter = gui.add_button("Look through this camera", visible=False)
            self._enter.on_click(lambda event: self._look_through(self._selected, event.client))
            gui.add_markdown("**Worst views**")
            self._worst_text = gui.add_markdown(descriptions.worst_views([], self._names))

    def _all_keys(self) -> list[ViewKey]:
        real = [ViewKey(False, index) for index in range(len(self._names))]
        return real + [ViewKey(True, index) for index in range(len(self._manager.pseudo_views))]

    def _choice(self, key: ViewKey) -> str:
        return descriptions.title(key, self._names)

    # ------------------------------------------------------------------ handlers

    def select(self, key: ViewKey) -> None:
        """Show everything about a view and mark its frustum."""
        pictures = descriptions.pictures(self._pictures(key))
        with self._lock:
            if key == self._selected:
                return
            self._selected = key
            _set(self._view_text, self._describe(key))
            _set(self._view_pictures, pictures)
            self._enter.visible = key in self._handles
            self._mark(key)
        self._chooser.value = self._choice(key)

    def _choose(self, choice: str) -> None:
        if choice in self._choices:
            self.select(self._choices[choice])

    def _request_weight(self, value: float) -> None:
        with self._lock:
            self._requested_weight = value

    def _apply_visibility(self) -> None:
        with self._lock:
            for key, handle in self._handles.items():
                handle.visible = self._is_shown(key)
            # The training thread puts a new one under the name of the latest.
            for handle in list(self._unseen_handles.values()):
                handle.visible = self._shows_pseudo()
            if self._marker is not None and self._selected is not None:
                self._marker.visible = self._is_shown(self._selected)

    def _is_shown(self, key: ViewKey) -> bool:
        return self._shows_pseudo() if key.is_pseudo else bool(self._show_real.value)

    def _shows_pseudo(self) -> bool:
        return self._show_pseudo is None or bool(self._show_pseudo.value)

    def _look_through(self, key: ViewKey | None, client: ClientHandle | None) -> None:
        handle = None if key is None else self._handles.get(key)
        if key is None or handle is None or client is None:
            return
        with client.atomic():
            client.camera.position = handle.position
            client.camera.wxyz = handle.wxyz
        if not key.is_pseudo:
            self._viewer.current_camera_idx = key.index  # as nerfstudio's own click does

    def _describe(self, key: ViewKey) -> str:
        loss = self._losses.last(key)
        if key.is_pseudo:
            view = self._manager.pseudo_views[key.index]
            return descriptions.pseudo_view(key.index, view, loss)
        return descriptions.real_view(key.index, self._names, loss)

    def _pictures(self, key: ViewKey) -> list[tuple[str, str]]:
        image = self._image(key)
        shown = [] if image is None else [("image", image)]
        if key.is_pseudo:
            confidence = self._manager.pseudo_views[key.index].confidence
            shown.append(("confidence, dark to bright", confidence_picture(confidence)))
        return [(caption, data_uri(shrink(picture, _PICTURE_PX))) for caption, picture in shown]

    def _mark(self, key: ViewKey) -> None:
        """Stand a white frustum around the selected one; it may have moved since it was drawn."""
        handle = self._handles.get(key)
        if handle is None:  # one of the many that are not drawn
            if self._marker is not None:
                self._marker.visible = False
            return
        self._marker = self._viewer.viser_server.scene.add_camera_frustum(
            "/selected_camera",
            fov=self._frustums[key].fov,
            aspect=self._frustums[key].aspect,
            scale=self._scale(key) * 1.08,
            color=_SELECTED_COLOUR,
            wxyz=handle.wxyz,
            position=handle.position,
            visible=self._is_shown(key),
        )


def _set(text: GuiMarkdownHandle, content: str) -> None:
    """Change a text; an unchanged one is not sent again."""
    if text.content != content:
        text.content = content
