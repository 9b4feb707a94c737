# SPDX-License-Identifier: Apache-2.0
"""What a photograph comes with: known points, and a camera near it that moves away in time."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from nerfstudio.engine.callbacks import TrainingCallbackAttributes

from ps4pro_nerfstudio.datamanagers.unseen_view_datamanager import UnseenViewDatamanager
from ps4pro_nerfstudio.dataparsers.sparse_views import SparseViewsDataParserConfig
from ps4pro_nerfstudio.initialization.points import SeedPointsConfig
from ps4pro_nerfstudio.initialization.stereo import StereoConfig
from ps4pro_nerfstudio.methods import ipsm_gaussian
from ps4pro_nerfstudio.models.ipsm import project_points
from ps4pro_nerfstudio.pseudo_views.perturbed import PerturbedCamerasConfig
from ps4pro_nerfstudio.splatting.free_space import stands_before
from tests.conftest import write_capture

LENGTH = 100


def make(folder: Path, **options: Any) -> UnseenViewDatamanager:
    config: Any = copy.deepcopy(ipsm_gaussian.config).pipeline.datamanager
    config.data = folder
    config.dataparser = SparseViewsDataParserConfig(views=3)
    config.cache_dir = folder.parent / "cache"
    config.pseudo_views.interpolator = "optical-flow"
    config.pseudo_views.source.min_mean_confidence = 0.0
    for name, value in options.items():
        setattr(config, name, value)
    manager = config.setup(device="cpu", test_mode="val", world_size=1, local_rank=0)
    trainer: Any = SimpleNamespace(run_length=LENGTH)
    manager.get_training_callbacks(
        TrainingCallbackAttributes(
            optimizers=None, grad_scaler=None, pipeline=None, trainer=trainer
        )
    )
    return manager


@pytest.fixture(scope="module")
def manager(tmp_path_factory: pytest.TempPathFactory) -> UnseenViewDatamanager:
    folder = write_capture(tmp_path_factory.mktemp("wall") / "capture", width=160, height=120)
    return make(folder)


def real_views(manager: UnseenViewDatamanager, steps: range) -> list[tuple[Any, dict[str, Any]]]:
    served = [manager.next_train(step) for step in steps]
    return [(camera, batch) for camera, batch in served if "pseudo_weight" not in batch]


def test_a_photograph_comes_with_the_depth_of_what_it_shows(manager: UnseenViewDatamanager) -> None:
    """The wall stands at y = 0 and is seen from y > 0, in a frame that nerfstudio has scaled."""
    for camera, batch in real_views(manager, range(3)):
        seen = batch["seen_depth"]
        assert len(seen.depth) > 100
        pixels, depth = project_points(seen.xyz, camera)
        torch.testing.assert_close(pixels, seen.pixels, atol=1e-2, rtol=0)
        torch.testing.assert_close(depth, seen.depth, atol=1e-4, rtol=1e-4)


def test_the_unseen_camera_stands_near_the_seen_one(manager: UnseenViewDatamanager) -> None:
    for camera, batch in real_views(manager, range(30)):
        unseen = batch["unseen"]
        assert unseen.source is camera
        moved = (unseen.camera.camera_to_worlds - camera.camera_to_worlds)[0, :, 3].norm()
        assert 0.0 < float(moved) < 1.0
        assert float(unseen.camera.fx) == float(camera.fx)
        assert (int(unseen.camera.width), int(unseen.camera.height)) == (160, 120)
        assert "cam_idx" not in (unseen.camera.metadata or {})


@pytest.mark.parametrize("gap_share", [0.0, 0.3])
def test_the_noise_grows_with_the_training(tmp_path: Path, gap_share: float) -> None:
    """To the published .05, or to a share of the gap, which is wider here."""
    folder = write_capture(tmp_path / "capture", width=160, height=120)
    unseen = PerturbedCamerasConfig(gap_share=gap_share)
    manager = make(folder, unseen=unseen)
    assert manager._unseen is not None
    largest = 0.05 if gap_share == 0.0 else float(manager._unseen.sigma[-1])
    early = [batch["unseen"].sigma for _, batch in real_views(manager, range(10))]
    late = [batch["unseen"].sigma for _, batch in real_views(manager, range(90, 100))]
    assert max(early) == pytest.approx(0.01)
    assert 0.88 * largest < min(late) <= max(late) <= largest
    assert largest > 0.08 or gap_share == 0.0


def test_pseudo_views_come_with_neither(manager: UnseenViewDatamanager) -> None:
    batches = [manager.next_train(step)[1] for step in range(10, 60)]
    pseudo = [batch for batch in batches if "pseudo_weight" in batch]
    assert pseudo
    assert all("seen_depth" not in batch and "unseen" not in batch for batch in pseudo)


def test_depth_is_known_even_where_nothing_else_is_added(tmp_path: Path) -> None:
    folder = write_capture(tmp_path / "capture", width=160, height=120)
    config: Any = ipsm_gaussian.config.pipeline.datamanager
    pseudo, dense = copy.deepcopy(config.pseudo_views), copy.deepcopy(config.dense_points)
    pseudo.enabled = dense.enabled = False
    pseudo.interpolator, pseudo.source.min_mean_confidence = "optical-flow", 0.0
    manager = make(folder, pseudo_views=pseudo, dense_points=dense)
    assert manager.pseudo_views == []
    assert len(manager.next_train(0)[1]["seen_depth"].depth) > 100


def test_features_give_depth_where_a_capture_brings_points_but_no_neighbours_match(
    tmp_path: Path,
) -> None:
    """Which photographs show the points of a file is not known, so they are found anew."""
    folder = write_capture(tmp_path / "capture", num_images=4, width=320, height=240)
    config: Any = ipsm_gaussian.config.pipeline.datamanager
    pseudo = copy.deepcopy(config.pseudo_views)
    pseudo.source.pairs.max_rotation_degrees = 0.1
    parser = SparseViewsDataParserConfig(test_every=4)
    few = SeedPointsConfig(min_points=5)  # the wall is smooth
    manager = make(folder, pseudo_views=pseudo, dataparser=parser, seed_points=few)
    assert manager.pseudo_views == []
    for camera, batch in real_views(manager, range(3)):
        seen = batch["seen_depth"]
        assert len(seen.depth) >= 3
        pixels, _ = project_points(seen.xyz, camera)
        torch.testing.assert_close(pixels, seen.pixels, atol=1e-2, rtol=0)


def without_correspondences() -> dict[str, Any]:
    """Options with which neither neighbours nor distant photographs are matched."""
    config: Any = ipsm_gaussian.config.pipeline.datamanager
    pseudo = copy.deepcopy(config.pseudo_views)
    pseudo.source.pairs.max_rotation_degrees = 0.1
    return {
        "pseudo_views": pseudo,
        "stereo": StereoConfig(enabled=False),
        "dataparser": SparseViewsDataParserConfig(test_every=4),
    }


def test_a_depth_network_places_what_correspondences_leave_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Points of the file cover the middle of the wall; the rest is where the network has it."""
    folder = write_capture(tmp_path / "capture", num_images=4, width=160, height=120)
    options = without_correspondences()
    without = make(folder, **options)
    plane = wall_of(without)

    def farthest_from_wall(manager: Any) -> float:
        points = manager.train_dataparser_outputs.metadata["points3D_xyz"]
        assert len(points) > 400 + 200
        return float((points @ plane[:3] + plane[3]).abs().max())

    # Planes tell the rest of the wall; that of a network is taken all the same, right or wrong.
    assert farthest_from_wall(without) < 0.02
    for bent in (False, True):
        answers = [inverse_depth_of_wall(without, index) for index in range(3)]
        if bent:
            answers = [answer * torch.linspace(1.1, 0.9, 160) for answer in answers]
        prior: Any = SimpleNamespace(
            name="wall", inverse_offset=None, inverse_depth=lambda _, left=answers: left.pop(0)
        )
        monkeypatch.setitem(sys.modules, "my_wall", SimpleNamespace(make=lambda *_, p=prior: p))
        manager = make(folder, **options, depth="my_wall:make")
        assert answers == []
        assert (farthest_from_wall(manager) > 0.05) == bent


@pytest.mark.parametrize("value", [3.0, torch.nan, torch.inf])
def test_a_network_that_tells_no_depth_places_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, value: float
) -> None:
    """Coarse points are then those of a run without a network, and are called so."""
    folder = write_capture(tmp_path / "capture", num_images=4, width=160, height=120)
    options = without_correspondences()
    prior: Any = SimpleNamespace(
        name="flat",
        inverse_offset=None,
        inverse_depth=lambda image: torch.full_like(image[0], value),
    )
    monkeypatch.setitem(sys.modules, "my_flat", SimpleNamespace(make=lambda *_: prior))
    without, flat = make(folder, **options), make(folder, **options, depth="my_flat:make")
    points = [m.train_dataparser_outputs.metadata["points3D_xyz"] for m in (without, flat)]
    assert torch.equal(points[0], points[1])
    printed = capsys.readouterr().out
    assert "the depth network's depth" not in printed
    assert "depth of single images: flat (my_flat:make)" in printed


def test_depth_comes_from_photographs_that_are_too_far_apart_for_frames(tmp_path: Path) -> None:
    folder = write_capture(tmp_path / "capture", num_images=4, width=160, height=120)
    config: Any = ipsm_gaussian.config.pipeline.datamanager
    pseudo = copy.deepcopy(config.pseudo_views)
    pseudo.source.pairs.max_rotation_degrees = 0.1
    options = {"pseudo_views": pseudo, "dataparser": SparseViewsDataParserConfig(test_every=4)}
    manager = make(folder, **options)
    plane = wall_of(manager)
    for known in manager._known:
        assert len(known.depth) > 1024
        distance = (known.xyz.float() @ plane[:3] + plane[3]).abs()
        # Neighbours see the wall, 4 away, from 10 degrees apart: half a pixel is 2 %.
        assert float(distance.median()) < 0.08
        assert float(distance.quantile(0.9)) < 0.16
    free = manager.free_space
    assert free is not None
    assert len(free.seen) == 3
    for view, known in zip(free.seen, manager._known, strict=True):
        surface = known.xyz.float()
        halfway = 0.5 * (surface + view.world_to_camera.inverse()[:3, 3])
        # Pixels with a hole beside them are left alone.
        assert stands_before(halfway, *view, free.share).float().mean() > 0.3
        assert stands_before(surface, *view, free.share).float().mean() < 0.01


def wall_of(manager: UnseenViewDatamanager) -> torch.Tensor:
    """The wall y = 0 of the file as a plane (n, d), |n| = 1, in the frame of the training."""
    outputs = manager.train_dataparser_outputs
    rotation, shift = outputs.dataparser_transform[:, :3], outputs.dataparser_transform[:, 3]
    normal = rotation @ torch.tensor([0.0, 1.0, 0.0])
    return torch.cat([normal, -(normal @ shift)[None] * outputs.dataparser_scale])


def inverse_depth_of_wall(manager: UnseenViewDatamanager, index: int) -> torch.Tensor:
    """Inverse depth [H, W] of a photograph along its axis, of another scale and shift."""
    camera = manager.train_dataset.cameras[index : index + 1]
    plane = wall_of(manager)
    coords = camera.get_image_coords()
    x = (coords[..., 1] - camera.cx) / camera.fx
    y = (coords[..., 0] - camera.cy) / camera.fy
    rays = torch.stack([x, -y, -torch.ones_like(x)], dim=-1)
    pose = camera.camera_to_worlds[0]
    towards = (rays @ pose[:, :3].T) @ plane[:3]
    return 0.3 - 2.0 * towards / (pose[:, 3] @ plane[:3] + plane[3])


def test_test_images_do_not_reach_the_training(tmp_path: Path) -> None:
    """Check 13: black test images change nothing that a step gets."""
    from PIL import Image

    folders = [write_capture(tmp_path / name, width=160, height=120) for name in ("a", "b")]
    kept = make(folders[0])
    train = {path.name for path in kept.train_dataset.image_filenames}
    for path in sorted((folders[1] / "images").iterdir()):
        if path.name not in train:
            Image.new("RGB", (160, 120)).save(path)
    changed = make(folders[1])
    for step in range(20):
        (camera, batch), (other_camera, other) = (m.next_train(step) for m in (kept, changed))
        assert bool((camera.camera_to_worlds == other_camera.camera_to_worlds).all())
        assert bool((batch["image"] == other["image"]).all())
        if "unseen" in batch:
            assert bool((batch["seen_depth"].depth == other["seen_depth"].depth).all())
            poses = [b["unseen"].camera.camera_to_worlds for b in (batch, other)]
            assert bool((poses[0] == poses[1]).all())
