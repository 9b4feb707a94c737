# SPDX-License-Identifier: Apache-2.0
"""The panel on a server that keeps what it is told."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from nerfstudio.cameras.cameras import Cameras

from ps4pro_nerfstudio.dataparsers.sparse_views import SparseViewsDataParserConfig
from ps4pro_nerfstudio.methods import ipsm_gaussian, ps4pro_nerfacto_small
from ps4pro_nerfstudio.pseudo_views.perturbed import (
    PerturbedCameras,
    PerturbedCamerasConfig,
    perturbed_cameras,
)
from ps4pro_nerfstudio.pseudo_views.pseudo_view import Provenance, PseudoView
from ps4pro_nerfstudio.pseudo_views.schedule import PseudoViewSchedule, PseudoViewScheduleConfig
from ps4pro_nerfstudio.viewer import views_panel
from ps4pro_nerfstudio.viewer.view_losses import ViewKey
from ps4pro_nerfstudio.viewer.views_panel import (
    PSEUDO_COLOUR,
    REAL_COLOUR,
    UNSEEN_COLOUR,
    ViewsPanel,
)


class FakeElement(SimpleNamespace):
    """A GUI element or scene node; `act` does what a user's action does."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(visible=True, handlers=[], **attributes)

    def on_click(self, handler: Callable) -> None:
        self.handlers.append(handler)

    on_update = on_click

    def act(self, value: Any = None, client: Any = None) -> None:
        if value is not None:
            self.value = value
        for handler in self.handlers:
            handler(SimpleNamespace(target=self, client=client))

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...


@dataclass
class FakeServer:
    """Scene nodes by name, GUI elements by label, Markdown texts in order."""

    nodes: dict[str, FakeElement] = field(default_factory=dict)
    elements: dict[str, FakeElement] = field(default_factory=dict)
    texts: list[FakeElement] = field(default_factory=list)

    @property
    def scene(self) -> SimpleNamespace:
        return SimpleNamespace(add_camera_frustum=self._add_frustum)

    @property
    def gui(self) -> SimpleNamespace:
        def labelled(label: str, value: Any = None, **rest: Any) -> FakeElement:
            rest = {"value": value, **rest}
            if "initial_value" in rest:
                rest["value"] = rest["initial_value"]
            visible = rest.pop("visible", True)
            self.elements[label] = FakeElement(**rest)
            self.elements[label].visible = visible
            return self.elements[label]

        return SimpleNamespace(
            add_folder=labelled, add_checkbox=labelled, add_slider=labelled, add_button=labelled,
            add_dropdown=labelled, add_markdown=self._add_markdown,
        )  # fmt: skip

    def _add_frustum(self, name: str, *, visible: bool = True, **rest: Any) -> FakeElement:
        self.nodes[name] = FakeElement(**rest)
        self.nodes[name].visible = visible
        return self.nodes[name]

    def _add_markdown(self, content: str, image_root: Path | None = None) -> FakeElement:
        self.texts.append(FakeElement(content=content))
        return self.texts[-1]

    def everything_said(self) -> str:
        return "\n".join(text.content for text in self.texts)


def _pose(x: float) -> np.ndarray:
    return np.concatenate([np.eye(3), [[x], [0], [0]]], axis=1).astype(np.float32)


def _pseudo_view() -> PseudoView:
    origin = Provenance(("a.png", "b.png"), 0.25, "slerp+lerp", "points", 1.0, "x", 0.625, 0.5)
    image = np.full((4, 8, 3), 90, np.uint8)
    confidence = np.full((4, 8), 160, np.uint8)
    return PseudoView(_pose(0.5), 4.0, 4.0, 4.0, 2.0, 8, 4, None, image, confidence, origin)


@pytest.fixture
def server() -> FakeServer:
    return FakeServer()


@pytest.fixture
def manager() -> SimpleNamespace:
    poses = torch.from_numpy(np.stack([_pose(0.0), _pose(1.0)]))
    cameras = Cameras(poses, fx=4.0, fy=4.0, cx=4.0, cy=2.0, width=8, height=4)
    config = PseudoViewScheduleConfig(share=0.5, peak_weight=0.3, start=0.0, ramp=0.0, tail=0.0)
    return SimpleNamespace(
        train_dataset=SimpleNamespace(
            image_filenames=[Path("a.png"), Path("b.png")], cameras=cameras
        ),
        photograph=lambda index: np.zeros((4, 8, 3), np.uint8),
        pseudo_views=[_pseudo_view()],
        schedule=PseudoViewSchedule(config, num_steps=100, num_real_views=2, num_pseudo_views=1),
        latest_unseen=None,
    )


@pytest.fixture
def viewer(server: FakeServer) -> SimpleNamespace:
    return SimpleNamespace(
        viser_server=server,
        config=SimpleNamespace(camera_frustum_scale=0.1),
        camera_handles={0: None, 1: None},
        current_camera_idx=0,
        hide_images=FakeElement(),
        show_images=FakeElement(),
        stats_markdown=SimpleNamespace(order=3),
        _pick_drawn_image_idxs=lambda count: list(range(count)),
    )


@pytest.fixture
def panel(viewer, manager) -> ViewsPanel:
    return ViewsPanel(viewer, manager)


REAL = ["/cameras/camera_00000", "/cameras/camera_00001"]
PSEUDO = "/pseudo_cameras/camera_00000"


def test_real_and_pseudo_cameras_differ_in_colour_and_stand_in_place(panel, server, viewer):
    assert [server.nodes[name].color for name in REAL] == [REAL_COLOUR] * 2
    assert server.nodes[PSEUDO].color == PSEUDO_COLOUR != REAL_COLOUR
    places = [float(server.nodes[name].position[0]) for name in (*REAL, PSEUDO)]
    assert places == [0.0, 10.0, 5.0]
    assert int(server.nodes[PSEUDO].image[0, 0, 0]) == 90
    # nerfstudio moves its frustums when poses are optimised: it must hold these.
    assert viewer.camera_handles[1] is server.nodes[REAL[1]]


def test_the_unseen_camera_stands_where_the_latest_one_is(panel, server, manager):
    panel.refresh(1)
    assert "/unseen_camera" not in server.nodes
    for x in (0.2, 0.3):
        manager.latest_unseen = Cameras(
            torch.from_numpy(_pose(x))[None], fx=4.0, fy=4.0, cx=4.0, cy=2.0, width=8, height=4
        )
        panel.refresh(2)
        assert float(server.nodes["/unseen_camera"].position[0]) == pytest.approx(10 * x)
    assert server.nodes["/unseen_camera"].color == UNSEEN_COLOUR
    server.elements["Pseudo cameras"].act(False)
    panel.refresh(3)
    assert not server.nodes["/unseen_camera"].visible


def perturbed(num_cameras: int) -> PerturbedCameras:
    poses = np.stack([_pose(x) for x in (0.0, 1.0)])
    config = PerturbedCamerasConfig(n=num_cameras, order="shuffled")
    return perturbed_cameras(poses, (1.0, 2.0), config)


@pytest.mark.parametrize("num_cameras", [5, 10_000])
def test_some_unseen_cameras_to_come_stand_there_from_the_first_to_the_last(
    viewer, server, manager, num_cameras
):
    """Under the check box of pseudo cameras, also where there are no pseudo views."""
    manager.coming_unseen = unseen = perturbed(num_cameras)
    manager.pseudo_views, manager.schedule = [], None
    manager.train_dataset.cameras = Cameras(
        manager.train_dataset.cameras.camera_to_worlds,
        fx=4.0, fy=4.0, cx=4.0, cy=2.0, width=8, height=torch.tensor([[4], [2]]),
    )  # fmt: skip
    ViewsPanel(viewer, manager)
    names = sorted(name for name in server.nodes if name.startswith("/unseen_cameras/"))
    assert len(names) == min(num_cameras, 24)
    for name, index in ((names[0], unseen.order[0]), (names[-1], unseen.order[-1])):
        node = server.nodes[name]
        assert node.color == UNSEEN_COLOUR
        np.testing.assert_allclose(node.position, 10 * unseen.camera_to_worlds[index, :, 3])
        assert node.aspect == (2.0, 4.0)[unseen.source[index]]
        assert node.scale < server.nodes[REAL[0]].scale
    server.elements["Pseudo cameras"].act(False)
    assert not any(server.nodes[name].visible for name in names)
    server.elements["Pseudo cameras"].act(True)
    assert all(server.nodes[name].visible for name in names)


def test_the_check_box_hides_the_latest_unseen_camera_at_once(panel, server, manager):
    manager.latest_unseen = manager.train_dataset.cameras[:1]
    panel.refresh(1)
    server.elements["Pseudo cameras"].act(False)
    assert not server.nodes["/unseen_camera"].visible


def test_unseen_cameras_of_a_training_are_found(server, viewer, capture):
    """The panel asks the datamanager for them."""
    config: Any = copy.deepcopy(ipsm_gaussian.config.pipeline.datamanager)
    config.data = capture()
    config.dataparser = SparseViewsDataParserConfig(views=3)
    config.pseudo_views.interpolator = "optical-flow"
    config.pseudo_views.source.min_mean_confidence = 0.0
    manager = config.setup(device="cpu", test_mode="val")
    viewer.camera_handles = {}
    ViewsPanel(viewer, manager)
    assert sum(name.startswith("/unseen_cameras/") for name in server.nodes) == 24


def test_check_boxes_hide_one_kind(panel, server):
    def shown() -> list[bool]:
        return [server.nodes[name].visible for name in (*REAL, PSEUDO)]

    server.elements["Pseudo cameras"].act(False)
    assert shown() == [True, True, False]
    server.elements["Real cameras"].act(False)
    assert shown() == [False, False, False]
    server.elements["Pseudo cameras"].act(True)
    assert shown() == [False, False, True]


def test_the_mark_hides_with_its_camera(panel, server):
    server.nodes[PSEUDO].act()
    assert server.nodes["/selected_camera"].visible
    server.elements["Pseudo cameras"].act(False)
    assert not server.nodes["/selected_camera"].visible


def test_a_click_shows_image_confidence_sources_and_loss(panel, server):
    panel.after_step(12, {ViewKey(True, 0): (torch.tensor(0.06), 0.3)})
    server.nodes[PSEUDO].act()
    said = server.everything_said()
    assert "a&#46;png and b&#46;png" in said
    assert "t = 0.25" in said
    assert "mean confidence 0.62" in said
    assert "last loss 0.2000, step 12" in said
    assert said.count("data:image/jpeg;base64,") == 2
    assert server.elements["View"].value == "pseudo 0"


def test_choosing_by_name_is_a_click(panel, server):
    server.elements["View"].act("1: b.png")
    assert "**Real view 1**: b&#46;png" in server.everything_said()
    assert server.elements["Look through this camera"].visible


def test_looking_through_a_camera_moves_the_client_there(panel, server, viewer):
    class Client:
        camera = SimpleNamespace(position="outside", wxyz=None)

        @staticmethod
        def atomic() -> FakeElement:
            return FakeElement()

    client = Client()
    server.nodes[PSEUDO].act(client=client)
    assert client.camera.position == "outside"  # a pseudo view is looked at from where one stands
    server.elements["Look through this camera"].act(client=client)
    assert client.camera.position[0] == pytest.approx(5.0)
    server.nodes[REAL[1]].act(client=client)  # nerfstudio's habit
    assert client.camera.position[0] == pytest.approx(10.0)
    assert viewer.current_camera_idx == 1


def test_p38_the_slider_acts_between_steps_on_the_live_schedule(
    panel, server, manager, monkeypatch, capsys
):
    """The object that the training asks, not the config of the run, and from the next step on."""
    schedule, config_of_run = manager.schedule, manager.schedule.config
    server.elements["Peak λ"].act(0.1)
    server.elements["Peak λ"].act(0.8)
    assert schedule.weight(50) == pytest.approx(0.3)
    panel.before_step(50)
    assert schedule.weight(50) == pytest.approx(0.8)
    assert config_of_run.peak_weight == 0.3
    monkeypatch.setattr(views_panel, "_REFRESH_S", -1.0)
    panel.before_step(51)
    panel.before_step(52)
    assert capsys.readouterr().out.count("0.8 (step 51)") == 1


def test_an_untouched_slider_changes_and_says_nothing(panel, manager, capsys):
    config = manager.schedule.config
    for step in range(5):
        panel.before_step(step)
    assert manager.schedule.config is config
    assert capsys.readouterr().out == ""


def test_worst_views_are_listed(panel, server):
    for index, loss in enumerate((0.1, 0.4)):
        panel.after_step(index, {ViewKey(False, index): (torch.tensor(loss), 1.0)})
    panel.refresh(1)
    said = server.everything_said()
    assert said.index("0.4000") < said.index("0.1000")
    assert "λ = 0.300 at step 1" in said


def test_after_training_the_slider_is_off(panel, server):
    panel.finish(99)
    assert server.elements["Peak λ"].disabled


def test_without_pseudo_views_only_real_ones_are_offered(server, viewer, manager):
    manager.pseudo_views, manager.schedule = [], None
    panel = ViewsPanel(viewer, manager)
    panel.before_step(0)
    panel.finish(0)
    assert not {"Pseudo cameras", "Peak λ"} & set(server.elements)
    server.elements["Real cameras"].act(False)
    assert not server.nodes[REAL[0]].visible


def test_a_radiance_fields_views_are_shown_like_those_of_splats(server, viewer, capture):
    config: Any = copy.deepcopy(ps4pro_nerfacto_small.config.pipeline.datamanager)
    config.data = capture()
    config.pseudo_views.interpolator = "optical-flow"
    manager = config.setup(device="cpu", test_mode="val")
    viewer.camera_handles = dict.fromkeys(range(len(manager.train_dataset)))
    panel = ViewsPanel(viewer, manager)
    assert len(manager.pseudo_views) > 0
    assert server.nodes[REAL[0]].color == REAL_COLOUR
    assert server.nodes[PSEUDO].color == PSEUDO_COLOUR
    panel.after_step(7, {ViewKey(False, 0): (torch.tensor(0.2), 1.0)})
    server.nodes[REAL[0]].act()
    said = server.everything_said()
    assert "last loss 0.2000, step 7" in said
    assert said.count("data:image/jpeg;base64,") == 1
