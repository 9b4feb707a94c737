# SPDX-License-Identifier: Apache-2.0
"""What a photograph comes with: known points, and a camera near it that moves away in time."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from nerfstudio.engine.callbacks import TrainingCallbackAttributes
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ps4pro_nerfstudio.datamanagers.unseen_view_datamanager import UnseenViewDatamanager
from ps4pro_nerfstudio.dataparsers.sparse_views import SparseViewsDataParserConfig
from ps4pro_nerfstudio.initialization.points import SeedPointsConfig
from ps4pro_nerfstudio.initialization.stereo import StereoConfig
from ps4pro_nerfstudio.methods import ipsm_gaussian
from ps4pro_nerfstudio.models.ipsm import project_points
from ps4pro_nerfstudio.pseudo_views.perturbed import (
    PerturbedCameras,
    PerturbedCamerasConfig,
    depth_bounds,
    perturbed_cameras,
)
from ps4pro_nerfstudio.splatting.free_space import stands_before
from tests.conftest import write_capture

LENGTH = 100


def make(folder: Path, **options: Any) -> UnseenViewDatamanager:
    config: Any = copy.deepcopy(ipsm_gaussian.config).pipeline.datamanager
    config.data = folder
    config.dataparser = SparseViewsDataParserConfig(views=3)
    config.cache_dir = folder / "cache"
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
    assert manager.coming_unseen is not None
    largest = 0.05 if gap_share == 0.0 else float(manager.coming_unseen.sigma[-1])
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


def write_llff_capture(folder: Path, bounds: NDArray) -> Path:
    """The wall as an LLFF capture with these depth bounds [12, 2]."""
    write_capture(folder, width=160, height=120)
    file = folder / "transforms.json"
    meta = json.loads(file.read_text())
    file.unlink()
    rows = []
    for frame, near_far in zip(meta["frames"], bounds, strict=True):
        right, up, back, centre = np.array(frame["transform_matrix"])[:3].T
        matrix = np.stack([-up, right, back, centre, [120, 160, meta["fl_x"]]], axis=1)
        rows.append([*matrix.ravel(), *near_far])
    np.save(folder / "poses_bounds.npy", np.array(rows))
    return folder


def cameras_from_points(manager: UnseenViewDatamanager) -> PerturbedCameras:
    """Unseen cameras whose depth bounds are those of the initial points."""
    cameras = manager.train_dataset.cameras
    poses = cameras.camera_to_worlds.numpy()
    points = manager.train_dataparser_outputs.metadata["points3D_xyz"].numpy()
    intrinsics = cameras.get_intrinsics_matrices().numpy()
    bounds = depth_bounds(points, poses, intrinsics, [(160, 120)] * len(poses))
    assert bounds is not None
    return perturbed_cameras(poses, bounds, manager.config.unseen)


def assert_same_cameras(found: PerturbedCameras | None, expected: PerturbedCameras) -> None:
    assert found is not None
    for name, values in vars(expected).items():
        np.testing.assert_array_equal(getattr(found, name), values, err_msg=name)


def test_without_depth_bounds_the_initial_points_tell_them(manager: UnseenViewDatamanager) -> None:
    assert "depth_bounds" not in manager.train_dataparser_outputs.metadata
    assert_same_cameras(manager.coming_unseen, cameras_from_points(manager))


def test_depth_bounds_of_the_training_views_place_the_unseen_cameras(tmp_path: Path) -> None:
    """The nearest and the farthest bound of all belong to view 0, which is a test view."""
    views = np.arange(12)
    bounds = np.stack([0.5 + 0.1 * views, 9.0 - 0.1 * views], axis=1)
    manager = make(write_llff_capture(tmp_path / "capture", bounds))
    outputs = manager.train_dataparser_outputs
    train = [int(path.stem) for path in outputs.image_filenames]
    assert 0 not in train
    told = outputs.dataparser_scale * bounds[train]
    expected = perturbed_cameras(
        manager.train_dataset.cameras.camera_to_worlds.numpy(),
        (told[:, 0].min(), told[:, 1].max()),
        manager.config.unseen,
    )
    found = manager.coming_unseen
    assert found is not None
    np.testing.assert_allclose(found.look_at, expected.look_at, rtol=1e-5)
    np.testing.assert_allclose(found.camera_to_worlds, expected.camera_to_worlds, atol=1e-5)
    from_points = cameras_from_points(manager)
    assert np.abs(found.camera_to_worlds - from_points.camera_to_worlds).max() > 0.01


def test_depth_bounds_that_are_none_are_left_to_the_initial_points(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    manager = make(write_llff_capture(tmp_path / "capture", np.ones((12, 2))))
    assert_same_cameras(manager.coming_unseen, cameras_from_points(manager))
    assert capsys.readouterr().out.count("depth bounds are not 0 < near < far") == 1


def spoil_images(folder: Path, spare: set[str], kind: str) -> None:
    """Put noise over all photographs but some, or in their place."""
    rng = np.random.default_rng(0)
    for path in sorted((folder / "images").iterdir()):
        if path.name in spare:
            continue
        pixels = rng.integers(0, 256, (120, 160, 3)).astype(np.uint8)
        if kind == "noisy":
            noise = rng.normal(0.0, 12.0, pixels.shape)
            pixels = np.rint(np.asarray(Image.open(path)) + noise).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(path)


def derived_from_photographs(manager: UnseenViewDatamanager) -> dict[str, Tensor]:
    """All that a datamanager has made of photographs before the training."""
    metadata = manager.train_dataparser_outputs.metadata
    made = {name: metadata[name] for name in ("points3D_xyz", "points3D_rgb")}
    for view, known in enumerate(manager._known):
        made |= {f"seen depth {view}, {name}": value for name, value in known._asdict().items()}
    for index, pseudo in enumerate(manager.pseudo_views):
        for name in ("camera_to_world", "image", "confidence", "depth"):
            made[f"pseudo view {index}, {name}"] = torch.as_tensor(getattr(pseudo, name))
    assert manager.coming_unseen is not None
    for name, values in vars(manager.coming_unseen).items():
        made[f"unseen cameras, {name}"] = torch.as_tensor(values)
    return made


def served_tensors(manager: UnseenViewDatamanager, steps: range) -> dict[str, Tensor]:
    """All that steps get."""
    served: dict[str, Tensor] = {}
    for step in steps:
        camera, batch = manager.next_train(step)
        got = {"pose": camera.camera_to_worlds, **batch}
        if "unseen" in got:
            unseen = got.pop("unseen")
            got |= {"unseen": unseen.camera.camera_to_worlds, "sigma": unseen.sigma}
            got |= {f"seen {name}": v for name, v in got.pop("seen_depth")._asdict().items()}
        served |= {f"step {step}, {name}": torch.as_tensor(value) for name, value in got.items()}
    return served


class Training(NamedTuple):
    photographs: set[str]
    tensors: dict[str, Tensor]


def training_of(folder: Path) -> Training:
    """What is made of a capture, and what comes of it in the first steps."""
    # The wall is smooth: with more, its few triangulated points would not take part.
    manager = make(folder, seed_points=SeedPointsConfig(min_points=5))
    # Entries are named by the training views: from a shared cache the second run reads the first's.
    assert any((folder / "cache").iterdir())
    names = {path.name for path in manager.train_dataset.image_filenames}
    return Training(names, derived_from_photographs(manager) | served_tensors(manager, range(20)))


@pytest.fixture(scope="module")
def unspoilt(tmp_path_factory: pytest.TempPathFactory) -> Training:
    folder = tmp_path_factory.mktemp("unspoilt") / "capture"
    return training_of(write_capture(folder, width=160, height=120))


@pytest.mark.parametrize("kind", ["noisy", "random"])
def test_test_images_do_not_reach_the_training(
    tmp_path: Path, unspoilt: Training, kind: str
) -> None:
    """Check 13: other test images change nothing that a step gets, bit by bit.

    Noisy photographs still match the training views: used by mistake, they give other points.
    """
    folder = write_capture(tmp_path / "capture", width=160, height=120)
    spoil_images(folder, unspoilt.photographs, kind)
    spoilt = training_of(folder)
    assert spoilt.photographs == unspoilt.photographs
    assert spoilt.tensors.keys() == unspoilt.tensors.keys()
    for start in ("points3D_xyz", "seen depth", "pseudo view", "unseen cameras", "step"):
        assert any(name.startswith(start) and v.numel() for name, v in spoilt.tensors.items())
    changed = [
        name for name, value in spoilt.tensors.items() if not value.equal(unspoilt.tensors[name])
    ]
    assert changed == []
