# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import copy
import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.data.datamanagers.base_datamanager import VanillaDataManager
from nerfstudio.engine.callbacks import TrainingCallbackAttributes
from nerfstudio.engine.optimizers import Optimizers
from PIL import Image

from ps4pro_nerfstudio.datamanagers.captures import source_views, undistorted_photographs
from ps4pro_nerfstudio.datamanagers.photo_dataset import PhotoDataset
from ps4pro_nerfstudio.datamanagers.pseudo_ray_datamanager import (
    PseudoPixels,
    join_batches,
    join_rays,
    num_pseudo_rays,
)
from ps4pro_nerfstudio.initialization.stereo import StereoDepth
from ps4pro_nerfstudio.messages import InputError
from ps4pro_nerfstudio.methods import ps4pro_nerfacto_small, ps4pro_splatfacto
from ps4pro_nerfstudio.pseudo_views.per_view import METADATA_KEY
from ps4pro_nerfstudio.pseudo_views.pseudo_view import Provenance, PseudoView
from tests.conftest import look_at, write_capture

NUM_REAL, NUM_RAYS, NUM_STEPS = 11, 64, 100
MIDDLE = 50


def _config(folder: Path, **options) -> Any:
    config: Any = copy.deepcopy(ps4pro_nerfacto_small.config.pipeline.datamanager)
    config.data, config.train_num_rays_per_batch = folder, NUM_RAYS
    config.pseudo_views.interpolator = "optical-flow"
    config.pseudo_views.schedule.share = 0.25
    for name, value in options.items():
        setattr(config, name, value)
    return config


def _manager(folder: Path, num_steps: int | None = NUM_STEPS, enabled=True, **options) -> Any:
    config = _config(folder, **options)
    config.pseudo_views.enabled = enabled
    return _planned(config, num_steps)


def _planned(config: Any, num_steps: int | None = NUM_STEPS) -> Any:
    """A manager that knows the length of its run, if there is one."""
    torch.manual_seed(0)
    manager = config.setup(device="cpu", test_mode="val")
    if num_steps is not None:
        trainer: Any = types.SimpleNamespace(run_length=num_steps)
        attributes = TrainingCallbackAttributes(
            optimizers=Optimizers({}, {}),
            grad_scaler=None,  # type: ignore[arg-type]
            pipeline=None,  # type: ignore[arg-type]
            trainer=trainer,
        )
        manager.get_training_callbacks(attributes)
    return manager


def _next(manager: Any, step: int) -> tuple[RayBundle, dict]:
    """A batch, its random numbers fixed by the step as the trainer fixes them."""
    torch.manual_seed(step)
    return manager.next_train(step)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve photographs of a wall, the 11 of training among them, with distortion."""
    return write_capture(
        tmp_path_factory.mktemp("rays") / "scene", edit=lambda meta: meta.update(k1=0.05)
    )


@pytest.fixture(scope="module")
def manager(folder: Path) -> Any:
    return _manager(folder)


def _view(confidence: np.ndarray, seed: int, eye=(0.0, 2.0, 0.3)) -> PseudoView:
    height, width = confidence.shape
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    pose = look_at(np.array(eye), np.zeros(3))[:3].astype(np.float32)
    origin = Provenance(("a", "b"), 0.5, "slerp+lerp", "points", 2.0, "none", 0.5, 0.5)
    return PseudoView(
        pose, 20.0, 22.0, width / 2, height / 2, width, height, None, image, confidence, origin
    )


# ---------------------------------------------------------------------- pixels


def test_trusted_pixels_are_drawn_with_equal_probability_and_others_never():
    """One trusted pixel in the first view, none in the second, three in the third."""
    confidences = np.zeros((3, 4, 6), np.uint8)
    confidences[0, 1, 2] = 255
    confidences[2, 0, 5], confidences[2, 3, 0], confidences[2, 3, 5] = 1, 51, 255
    pixels = PseudoPixels([_view(confidence, i) for i, confidence in enumerate(confidences)])
    assert len(pixels) == 4
    sample = pixels.sample(4000, np.random.default_rng(0))
    found, counts = np.unique(sample.indices.numpy(), axis=0, return_counts=True)
    assert found.tolist() == [[0, 1, 2], [2, 0, 5], [2, 3, 0], [2, 3, 5]]
    # Binomial with p = 1/4: standard deviation 27.
    assert np.abs(counts - 1000).max() < 4 * 27
    expected = confidences[tuple(sample.indices.numpy().T)] / 255
    np.testing.assert_allclose(sample.confidence, expected, rtol=1e-6)


def test_rays_are_those_of_the_views_camera_and_colours_those_of_its_image():
    """Views of different sizes."""
    views = [
        _view(np.full((6, 8), 255, np.uint8), 1, eye=(0.5, 1.9, 0.1)),
        _view(np.full((10, 4), 128, np.uint8), 2, eye=(-0.4, 2.1, 0.2)),
    ]
    pixels = PseudoPixels(views)
    sample = pixels.sample(200, np.random.default_rng(0))
    rays = pixels.rays(sample)
    assert rays.camera_indices is not None
    assert set(rays.camera_indices.flatten().tolist()) == {0, 1}
    for index, view in enumerate(views):
        own = sample.indices[:, 0] == index
        rows, columns = sample.indices[own, 1], sample.indices[own, 2]
        expected = view.to_cameras().generate_rays(camera_indices=0, keep_shape=True)
        for name in ("origins", "directions", "pixel_area"):
            torch.testing.assert_close(
                getattr(rays, name)[own], getattr(expected, name)[rows, columns]
            )
        assert view.image is not None
        image = torch.from_numpy(view.image).float() / 255
        torch.testing.assert_close(sample.rgb[own], image[rows, columns])


def test_photographs_with_transparency_meet_opaque_pseudo_pixels():
    view = _view(np.full((4, 6), 255, np.uint8), 0)
    sample = PseudoPixels([view], view_indices=[5]).sample(2, np.random.default_rng(0))
    real = {
        "image": torch.rand(4, 4),
        "indices": torch.zeros(4, 3, dtype=torch.long),
        "mask": torch.ones(4, 1, dtype=torch.bool),
        "depth_image": torch.ones(4, 1),
    }
    batch = join_batches(real, sample)
    assert batch["image"].shape == (6, 4)
    assert batch["image"][4:, 3].tolist() == [1.0, 1.0]
    assert batch["indices"][4:, 0].tolist() == [5, 5]
    assert batch["mask"].shape == (6, 1)
    assert "depth_image" not in batch


def test_rays_of_a_moving_scene_keep_their_times():
    """Joined with real rays that have times, neither loses them; with others, both have none."""
    views = [
        replace(_view(np.full((4, 6), 255, np.uint8), seed), time=time)
        for seed, time in enumerate((0.125, 0.75))
    ]
    pixels = PseudoPixels(views)
    sample = pixels.sample(20, np.random.default_rng(0))
    rays = pixels.rays(sample)
    assert rays.times is not None
    expected = torch.tensor([0.125, 0.75])[sample.indices[:, 0]]
    torch.testing.assert_close(rays.times[:, 0], expected)
    real = replace(views[0], time=0.5).to_cameras().generate_rays(0).flatten()
    joined = join_rays(real, rays)
    assert joined.times is not None
    assert joined.times.shape == (24 + 20, 1)
    assert bool((joined.times[:24] == 0.5).all())
    torch.testing.assert_close(joined.times[24:], rays.times)
    without = PseudoPixels([replace(view, time=None) for view in views]).rays(sample)
    assert without.times is None
    assert join_rays(real, without).times is None


@pytest.mark.parametrize(
    ("num_rays", "share", "expected"),
    [(1024, 0.35, 358), (64, 0.25, 16), (64, 0.0, 0), (4, 0.9, 2), (10, 0.01, 0)],
)
def test_the_number_of_pseudo_rays_is_even_and_leaves_real_ones(num_rays, share, expected):
    assert num_pseudo_rays(num_rays, share) == expected


# ---------------------------------------------------------------------- batches


def test_a_batch_keeps_its_size_and_has_its_share(manager):
    rays, batch = _next(manager, MIDDLE)
    is_pseudo = batch["is_pseudo"]
    assert len(rays) == len(batch["image"]) == len(batch["indices"]) == NUM_RAYS
    assert is_pseudo.sum() == 16
    assert bool(is_pseudo[-16:].all())
    assert batch["pseudo_weight"] == manager.config.pseudo_views.schedule.peak_weight
    assert bool((batch["confidence"][~is_pseudo] == 1).all())
    assert rays.camera_indices is not None
    assert torch.equal(rays.camera_indices[:, 0], batch["indices"][:, 0])
    assert bool((batch["indices"][~is_pseudo, 0] < NUM_REAL).all())
    assert bool((batch["indices"][is_pseudo, 0] < NUM_REAL + len(manager.pseudo_views)).all())
    assert manager.get_train_rays_per_batch() == NUM_RAYS


def _source(manager, view: int) -> PseudoView:
    """What the added rays of a view were drawn from."""
    is_real = view < NUM_REAL
    return manager.known_photographs[view] if is_real else manager.pseudo_views[view - NUM_REAL]


def _left_half(views, known, config, cache_folder=None, progress=None):
    """In the place of `stereo_depths`: depth of the left half of all photographs but the first."""
    del known, config, cache_folder, progress
    found: list[StereoDepth | None] = [None]
    for index in range(1, len(views)):
        image = views.images[index]
        depth = np.zeros(image.shape[:2], np.float32)
        depth[:, : image.shape[1] // 2] = 2.0 + index
        pose, matrix = views.camera_to_worlds[index], views.intrinsics[index]
        found.append(StereoDepth(depth, (depth > 0).astype(np.float32), image, pose, matrix))
    return found


STEREO = "ps4pro_nerfstudio.datamanagers.augmentation.stereo_depths"


def test_rays_of_photographs_whose_depth_is_known_are_drawn_beside(folder, monkeypatch):
    """With the index of their photograph, its colours, and ends at the known depth."""
    monkeypatch.setattr(STEREO, _left_half)
    manager = _manager(folder)
    assert sorted(manager.known_photographs) == list(range(1, NUM_REAL))
    num_photographs = num_all = 0
    for step in range(40, 60):
        rays, batch = _next(manager, step)
        ends = rays.origins + batch["distance"][:, None] * rays.directions
        num_all += int(batch["is_pseudo"].sum())
        for ray in batch["is_pseudo"].nonzero()[:, 0].tolist():
            view, row, column = batch["indices"][ray].tolist()
            if view >= NUM_REAL:
                continue
            num_photographs += 1
            seen = manager.known_photographs[view]
            assert column < seen.width // 2
            assert float(batch["confidence"][ray]) == 1.0
            assert seen.image is not None
            assert batch["image"][ray].tolist() == pytest.approx(seen.image[row, column] / 255)
            camera = manager.train_dataset.cameras.camera_to_worlds[view]
            assert -float((ends[ray] - camera[:, 3]) @ camera[:, 2]) == pytest.approx(2.0 + view)
    assert 0.2 < num_photographs / num_all < 0.5


def test_photographs_too_far_apart_for_frames_still_tell_where_their_rays_end(
    folder, monkeypatch, capsys
):
    monkeypatch.setattr(STEREO, _left_half)
    config = _config(folder)
    config.pseudo_views.source.pairs.max_rotation_degrees = 1e-3
    manager = _planned(config)
    assert manager.pseudo_views == []
    said = " ".join(capsys.readouterr().out.split())
    assert f"matched pixels of {NUM_REAL - 1} photographs beside {NUM_REAL} photographs" in said
    _, batch = _next(manager, MIDDLE)
    is_pseudo = batch["is_pseudo"]
    assert is_pseudo.sum() == 16
    assert bool((batch["distance"][is_pseudo] > 0.0).all())
    views = batch["indices"][is_pseudo, 0]
    assert bool(((views >= 1) & (views < NUM_REAL)).all())


def test_without_frames_and_known_depth_all_rays_are_nerfstudios(folder, monkeypatch):
    monkeypatch.setattr(STEREO, lambda views, *_: [None] * len(views))
    config = _config(folder)
    config.pseudo_views.source.pairs.max_rotation_degrees = 1e-3
    manager = _planned(config)
    assert manager.schedule is None
    assert "is_pseudo" not in _next(manager, MIDDLE)[1]


def test_pseudo_pixels_are_trusted_and_carry_their_views_colour(manager):
    for step in range(MIDDLE, MIDDLE + 5):
        _, batch = _next(manager, step)
        pseudo = batch["is_pseudo"]
        places = batch["indices"][pseudo]
        for (view, row, column), rgb, confidence in zip(
            places.tolist(), batch["image"][pseudo], batch["confidence"][pseudo], strict=True
        ):
            source = _source(manager, view)
            assert source.image is not None
            assert source.confidence[row, column] > 0
            assert float(confidence) == pytest.approx(source.confidence[row, column] / 255)
            assert rgb.tolist() == pytest.approx(source.image[row, column] / 255)


def test_pseudo_rays_end_at_the_depth_of_their_pixel(manager):
    num_known = 0
    for step in range(MIDDLE, MIDDLE + 5):
        rays, batch = _next(manager, step)
        ends = rays.origins + batch["distance"][:, None] * rays.directions
        assert batch["distance"].shape == (NUM_RAYS,)
        assert bool((batch["distance"][~batch["is_pseudo"]] == 0.0).all())
        for ray in batch["is_pseudo"].nonzero()[:, 0].tolist():
            view, row, column = batch["indices"][ray].tolist()
            source = _source(manager, view)
            assert source.depth is not None
            pose = torch.from_numpy(source.camera_to_world)
            along_axis = -float((ends[ray] - pose[:, 3]) @ pose[:, 2])
            assert along_axis == pytest.approx(source.depth[row, column], rel=1e-4, abs=1e-6)
            num_known += along_axis > 0.1
    assert num_known > 20


def test_while_pseudo_views_weigh_nothing_all_rays_are_real(manager):
    for step in (0, 9, NUM_STEPS - 1):
        rays, batch = _next(manager, step)
        assert len(rays) == NUM_RAYS
        assert "is_pseudo" not in batch
        assert int(batch["indices"][:, 0].max()) < NUM_REAL


def test_disabled_it_is_nerfstudios_own_datamanager(folder):
    """Bit by bit, also against a manager with pseudo views on the steps that are all real."""
    import random

    batches = []
    for target in (None, VanillaDataManager[PhotoDataset]):
        random.seed(0)  # decides the order in which upstream stacks the photographs
        config = _config(folder)
        config.pseudo_views.enabled = False
        if target is not None:
            config._target = target
        batches.append(_next(config.setup(device="cpu", test_mode="val"), MIDDLE))
    (rays, batch), (expected_rays, expected) = batches
    assert batch.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(batch[name], value), name
    assert torch.equal(rays.origins, expected_rays.origins)
    assert torch.equal(rays.directions, expected_rays.directions)


def test_real_rays_of_a_mixed_batch_come_from_nerfstudios_sampler(manager):
    _, batch = _next(manager, MIDDLE)
    sampler = manager.train_pixel_sampler
    sampler.set_num_rays_per_batch(48)
    torch.manual_seed(MIDDLE)
    expected_rays, expected = VanillaDataManager.next_train(manager, MIDDLE)
    sampler.set_num_rays_per_batch(NUM_RAYS)
    rays, _ = _next(manager, MIDDLE)
    assert torch.equal(batch["indices"][:48], expected["indices"])
    assert torch.equal(batch["image"][:48], expected["image"])
    assert torch.equal(rays.directions[:48], expected_rays.directions)


def test_a_batch_depends_on_its_step_alone(manager):
    """Not on the batches before it: a resumed run draws what the whole run would have drawn."""
    first = _next(manager, MIDDLE)[1]
    for step in (3, 70, 71):
        _next(manager, step)
    again = _next(manager, MIDDLE)[1]
    assert torch.equal(first["indices"], again["indices"])
    other = _next(manager, MIDDLE + 1)[1]
    assert not torch.equal(first["indices"][48:], other["indices"][48:])


# ---------------------------------------------------------------------- captures


def test_p16_pseudo_views_are_counted_nowhere(manager):
    assert len(manager.pseudo_views) == 10
    assert len(manager.train_dataset) == len(manager.train_dataset.cameras) == NUM_REAL
    assert len(manager.eval_dataset) == 1
    assert int(next(manager.iter_train_image_dataloader)["image_idx"].max()) == NUM_REAL - 1
    sources = manager.train_dataset.metadata[METADATA_KEY]
    names = [path.name for path in manager.train_dataset.image_filenames]
    for view, first, second in zip(
        manager.pseudo_views, sources.first, sources.second, strict=True
    ):
        assert view.provenance.source_names == (names[first], names[second])


def test_the_plan_is_said_and_stored(folder, capsys):
    manager = _manager(folder)
    assert "16 of 64" in " ".join(capsys.readouterr().out.split())
    assert manager.config.pseudo_views.schedule.share == 0.25
    manager.config.pseudo_views.schedule.equal_real_steps = True
    assert manager.planned_length(NUM_STEPS) > NUM_STEPS


def test_photographs_stay_distorted_and_are_interpolated_undistorted(folder, manager):
    """The interpolation sees what the full-image datamanager sees; rays follow the distortion."""
    config: Any = copy.deepcopy(ps4pro_splatfacto.config.pipeline.datamanager)
    config.data, config.pseudo_views.enabled = folder, False
    full = config.setup(device="cpu", test_mode="test")
    files = full.train_dataset.image_filenames
    expected = source_views(full.cached_train, full.train_dataset.cameras, files)
    photographs, cameras = undistorted_photographs(manager.train_dataset)
    found = source_views(photographs, cameras, files)
    for image, other in zip(found.images, expected.images, strict=True):
        assert np.array_equal(image, other)
    np.testing.assert_array_equal(found.intrinsics, expected.intrinsics)
    distortion = manager.train_dataset.cameras.distortion_params
    assert bool((distortion[:, 0] == 0.05).all())


def test_masked_pixels_enter_nothing(tmp_path):
    """The left ten columns are masked: in real views, in pseudo views, and in a view's metrics."""

    def with_masks(meta: dict) -> None:
        for index, frame in enumerate(meta["frames"]):
            frame["mask_path"] = f"masks/{index:03d}.png"

    scene = write_capture(tmp_path / "scene", edit=with_masks)
    mask = np.full((48, 64), 255, np.uint8)
    mask[:, :10] = 0
    (scene / "masks").mkdir()
    for path in (scene / "images").iterdir():
        Image.fromarray(mask).save(scene / "masks" / path.name)
    manager = _manager(scene)
    _, batch = _next(manager, MIDDLE)
    real = batch["indices"][~batch["is_pseudo"]]
    assert len(real) == 48
    assert int(real[:, 2].min()) >= 10
    assert bool(batch["mask"].all())
    for view in manager.pseudo_views:
        assert (view.confidence[:, :5] == 0).all()
    assert not bool(manager.next_eval_image(0)[1]["mask"][:, :10].any())


def test_dense_captures_stay_as_they_are(folder, capsys, monkeypatch):
    monkeypatch.setattr(
        "ps4pro_nerfstudio.datamanagers.pseudo_ray_datamanager.augment",
        lambda *_: pytest.fail("looked for points that nothing needs"),
    )
    config = _config(folder)
    config.pseudo_views.schedule.share = None
    config.pseudo_views.schedule.num_views_none = NUM_REAL
    config.pseudo_views.schedule.num_views_full = 2
    manager = config.setup(device="cpu", test_mode="val")
    assert "dense enough" in capsys.readouterr().out
    assert manager.pseudo_views == []
    assert METADATA_KEY not in manager.train_dataset.metadata


def test_a_share_of_none_is_not_called_dense(folder, capsys):
    config = _config(folder)
    config.pseudo_views.schedule.share = 0.0
    config.setup(device="cpu", test_mode="val")
    printed = " ".join(capsys.readouterr().out.split())
    assert "their share is 0" in printed
    assert "dense enough" not in printed


def test_unusable_captures_are_refused_before_an_image_is_read(tmp_path):
    scene = write_capture(tmp_path / "scene", num_images=3)
    with pytest.raises(InputError, match="no evaluation view"):
        _manager(scene)
    scene = write_capture(tmp_path / "sizes", edit=lambda meta: meta.update(w=63))
    with pytest.raises(InputError, match="64x48 pixels, its camera 63x48"):
        _manager(scene)
    scene = write_capture(tmp_path / "damaged")
    (scene / "images/003.png").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"003\.png cannot be read"):
        _manager(scene)


def test_photographs_of_the_same_name_are_told_apart(tmp_path):
    """Left and right camera of a rig; a pseudo view names the photographs it lies between."""
    view = _view(np.full((4, 4), 255, np.uint8), 0)
    names = source_views(
        [{"image": torch.from_numpy(view.image)}] * 2,
        view.to_cameras()[torch.tensor([0, 0])],
        [tmp_path / "left/1.png", tmp_path / "right/1.png"],
    ).names
    assert names == ["left/1.png", "right/1.png"]
