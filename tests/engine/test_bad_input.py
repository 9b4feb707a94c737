# SPDX-License-Identifier: Apache-2.0
"""What a user may hand to ns-train: one clear line and exit code 1, or training goes on.

The trainer is set up as ns-train does it, in this process; test_commands checks the command itself.
"""

from __future__ import annotations

import copy
import errno
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ps4pro_nerfstudio.methods import ps4pro_splatfacto


def _trainer(folder: Path, **parser_options) -> Any:
    """Set up training as `ns-train ps4pro-splatfacto --data folder` does."""
    config: Any = copy.deepcopy(ps4pro_splatfacto.config)
    config.vis = "tensorboard"
    config.logging.local_writer.enable = False
    config.max_num_iterations = 4
    config.output_dir = folder.parent / "outputs"
    config.data = config.pipeline.datamanager.data = folder
    for name, value in parser_options.items():
        setattr(config.pipeline.datamanager.dataparser, name, value)
    config.pipeline.datamanager.cache_dir = folder.parent / "cache"
    config.pipeline.datamanager.seed_points.num_random = 500
    config.set_timestamp()
    config.save_config()
    trainer = config.setup()
    trainer.setup()
    return trainer


def _refused(capsys, folder: Path, **parser_options) -> str:
    """The line that a refused capture ends with; nothing may be left behind."""
    with pytest.raises(SystemExit) as stop:
        _trainer(folder, **parser_options)
    assert stop.value.code == 1
    assert not (folder.parent / "outputs").exists()
    assert not (folder.parent / "cache").exists()
    printed = capsys.readouterr().out.strip().splitlines()
    assert printed[-1].startswith("ps4pro ")
    return printed[-1]


def _images(folder: Path) -> list[Path]:
    return sorted((folder / "images").iterdir())


def _train_a_step(trainer: Any) -> float:
    trainer.pipeline.train()
    trainer.pipeline.model.step_cb(trainer.optimizers, 0)
    loss, _, _ = trainer.train_iteration(0)
    return float(loss.detach())


# ---------------------------------------------------------------- refused


def test_no_images(capture, capsys):
    folder = capture(edit=lambda meta: meta.update(frames=[]))
    assert "lists no images" in _refused(capsys, folder)


def test_no_folder(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert "transforms.json not found" in _refused(capsys, tmp_path / "empty")


def test_one_image(capture, capsys):
    folder = capture(num_images=1, points=False)
    assert "has one image" in _refused(capsys, folder, eval_mode="all")


def test_one_training_view(capture, capsys):
    folder = capture(num_images=2)
    line = _refused(capsys, folder, eval_mode="interval", eval_interval=2)
    assert "1 photo left for training" in line
    assert "--eval-mode all" in line


def test_cameras_at_one_place(capture, capsys):
    def edit(meta):
        for frame in meta["frames"]:
            for row in frame["transform_matrix"][:3]:
                row[3] = 1.0

    assert "same place" in _refused(capsys, capture(edit=edit))


def test_training_cameras_at_one_place(capture, capsys):
    """The only camera that moves is held out."""

    def edit(meta):
        for index, frame in enumerate(meta["frames"]):
            for row in frame["transform_matrix"][:3]:
                row[3] = 2.0 if index == 0 else 1.0

    folder = capture(edit=edit)
    line = _refused(capsys, folder, eval_mode="interval", eval_interval=12)
    assert "taken from the same place" in line


def test_p18_no_evaluation_views(capture, capsys):
    """nerfstudio's default split holds out nothing of fewer than ten photos."""
    line = _refused(capsys, capture(num_images=6))
    assert "no evaluation view" in line
    assert "--eval-mode interval" in line


def test_what_two_photographs_are_advised_to_do_works(capture, capsys):
    """Of two none can be held out."""
    folder = capture(num_images=2)
    line = _refused(capsys, folder)
    assert "--eval-mode all" in line
    assert "--eval-mode interval" not in line
    assert np.isfinite(_train_a_step(_trainer(folder, eval_mode="all")))


def test_a_photograph_that_exif_alone_turns(capture, capsys):
    folder = capture()
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.new("RGB", (48, 64)).save(_images(folder)[4], exif=turned)
    line = _refused(capsys, folder)
    assert "004.png has 48x64 pixels, its camera 64x48" in line
    assert "EXIF" in line


def test_images_of_another_size_than_their_camera(capture, capsys):
    folder = capture()
    Image.new("RGB", (32, 24)).save(_images(folder)[4])
    assert "004.png has 32x24 pixels, its camera 64x48" in _refused(capsys, folder)


def test_a_missing_file(capture, capsys):
    folder = capture()
    _images(folder)[7].unlink()
    assert "007.png does not exist" in _refused(capsys, folder)


def test_an_unreadable_file(capture, capsys):
    folder = capture()
    _images(folder)[2].write_bytes(b"not an image")
    assert "002.png cannot be read" in _refused(capsys, folder)


def test_a_truncated_file(capture, capsys):
    """Its header is fine, so it is found only when its pixels are read."""
    folder = capture()
    path = _images(folder)[2]
    path.write_bytes(path.read_bytes()[:600])
    assert "002.png cannot be read" in _refused(capsys, folder)


def test_a_missing_downscaled_folder(capture, capsys):
    line = _refused(capsys, capture(), downscale_factor=4)
    assert "images_4" in line
    assert "does not exist" in line


@pytest.mark.parametrize("value", [float("nan"), 0.0])
def test_a_pose_that_is_none(capture, capsys, value):
    def edit(meta):
        for row in meta["frames"][5]["transform_matrix"][:3]:
            row[0] = value

    assert "005.png" in _refused(capsys, capture(edit=edit))


def test_masks_for_some_frames_only(capture, capsys):
    def edit(meta):
        meta["frames"][0]["mask_path"] = "masks/000.png"

    assert "masks for 1 of 12 frames" in _refused(capsys, capture(edit=edit))


def _with_masks(meta):
    for index, frame in enumerate(meta["frames"]):
        frame["mask_path"] = f"masks/{index:03d}.png"


def _write_masks(folder: Path) -> None:
    (folder / "masks").mkdir()
    for path in _images(folder):
        mask = np.full((48, 64), 255, np.uint8)
        mask[:, :10] = 0
        Image.fromarray(mask).save(folder / "masks" / path.name)


def test_a_missing_mask(capture, capsys):
    folder = capture(edit=_with_masks)
    _write_masks(folder)
    (folder / "masks/004.png").unlink()
    assert "mask" in (line := _refused(capsys, folder))
    assert "004.png does not exist" in line


def test_a_mask_of_another_size(capture, capsys):
    folder = capture(edit=_with_masks)
    _write_masks(folder)
    Image.new("L", (32, 24)).save(folder / "masks/004.png")
    line = _refused(capsys, folder)
    assert "004.png has 32x24 pixels, its camera 64x48" in line
    assert "in the size of its photo" in line


def test_a_mask_in_colour(capture, capsys):
    folder = capture(edit=_with_masks)
    _write_masks(folder)
    Image.new("RGB", (64, 48), "white").save(folder / "masks/004.png")
    assert "004.png has 3 channels" in _refused(capsys, folder)


def test_masks_that_leave_nothing_of_any_photograph(capture, capsys):
    folder = capture(edit=_with_masks)
    _write_masks(folder)
    for path in (folder / "masks").iterdir():
        Image.new("L", (64, 48)).save(path)
    assert "leave nothing of any photograph" in _refused(capsys, folder)


# ---------------------------------------------------------------- training goes on


def test_masks_reach_photographs_and_pseudo_views(capture):
    folder = capture(edit=_with_masks)
    _write_masks(folder)
    trainer = _trainer(folder)
    manager = trainer.pipeline.datamanager
    assert not manager.cached_train[0]["mask"][:, :10].any()
    assert manager.cached_train[0]["mask"][:, 10:].all()
    for view in manager.pseudo_views:
        assert (view.confidence[:, :5] == 0).all()
    assert np.isfinite(_train_a_step(trainer))


def test_a_mask_that_leaves_nothing_is_named(capture, capsys):
    folder = capture(edit=_with_masks)
    _write_masks(folder)
    Image.new("L", (64, 48)).save(folder / "masks/004.png")
    trainer = _trainer(folder)
    assert "less than 1% of 004.png" in capsys.readouterr().out
    assert np.isfinite(_train_a_step(trainer))


def test_no_sparse_points_are_replaced(capture, capsys):
    """Too smooth for features: random points where several cameras look, and a line about it."""
    trainer = _trainer(capture(points=False))
    printed = capsys.readouterr().out
    assert "random points" in printed or "triangulated" in printed
    assert trainer.pipeline.model.num_points >= 100
    assert np.isfinite(_train_a_step(trainer))


def test_blank_images_start_from_random_points(capture, capsys):
    folder = capture(points=False)
    for path in _images(folder):
        Image.new("RGB", (64, 48), (90, 120, 90)).save(path)
    trainer = _trainer(folder)
    assert "random points" in capsys.readouterr().out
    assert trainer.pipeline.model.num_points == 500
    assert np.isfinite(_train_a_step(trainer))


def _convert(folder: Path, kind: str) -> None:
    for path in _images(folder):
        image = Image.open(path)
        if kind == "RGBA":
            image.putalpha(Image.fromarray(np.full((48, 64), 255, np.uint8)))
        elif kind == "grey":
            image = image.convert("L")
        else:
            image = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
        image.save(path)


@pytest.mark.parametrize("kind", ["RGBA", "grey", "16 bit"])
def test_kinds_of_images_train(capture, kind):
    folder = capture()
    _convert(folder, kind)
    trainer = _trainer(folder)
    assert len(trainer.pipeline.datamanager.pseudo_views) > 0
    assert np.isfinite(_train_a_step(trainer))


def test_images_of_different_sizes_train(capture):
    """Each frame with its own camera: nerfstudio's format allows it; one shape makes a pair."""

    def edit(meta):
        shared = {key: meta.pop(key) for key in ("fl_x", "fl_y", "cx", "cy", "w", "h")}
        for index, frame in enumerate(meta["frames"]):
            scale = 0.5 if index == 3 else 1.0
            frame.update({key: value * scale for key, value in shared.items()})
            frame["w"], frame["h"] = int(frame["w"]), int(frame["h"])

    folder = capture(edit=edit)
    path = _images(folder)[3]
    Image.open(path).resize((32, 24)).save(path)
    trainer = _trainer(folder)
    views = trainer.pipeline.datamanager.pseudo_views
    assert len(views) > 0
    assert any("003.png" in view.provenance.source_names for view in views)
    assert np.isfinite(_train_a_step(trainer))


def _fisheye(k1: float):
    def edit(meta):
        meta.update(camera_model="OPENCV_FISHEYE", k1=k1, k2=0.0, k3=0.0, k4=0.0)

    return edit


def test_undistorted_fisheye_photographs_are_like_others(capture, capsys):
    """nerfstudio makes pinhole pictures of them, and the splat renders pinhole cameras."""
    trainer = _trainer(capture(edit=_fisheye(0.02)))
    assert len(trainer.pipeline.datamanager.pseudo_views) == 10
    printed = " ".join(capsys.readouterr().out.split())
    assert "photographs matched with each other" in printed
    assert "pinhole" not in printed
    assert np.isfinite(_train_a_step(trainer))


def test_a_fisheye_without_parameters_is_left_out_and_said(capture, capsys):
    """nerfstudio leaves these photographs as they are: no pinhole camera shows that."""
    trainer = _trainer(capture(edit=_fisheye(0.0)))
    manager = trainer.pipeline.datamanager
    assert manager.pseudo_views == []
    printed = " ".join(capsys.readouterr().out.split())
    assert "no pseudo views, training uses the photographs only" in printed
    first, second = (path.name for path in manager.train_dataset.image_filenames[:2])
    assert f"left out of depth, free space and coarse points: {first}, {second}, " in printed
    assert "photographs matched with each other" not in printed
    assert np.isfinite(_train_a_step(trainer))


def test_a_full_disk_costs_the_store_not_the_training(capture, capsys, monkeypatch):
    folder = capture()
    replace = os.replace

    def full(source, target):
        if any(store in str(target) for store in ("pseudo_views", "stereo", "dense_points")):
            raise OSError(errno.ENOSPC, "No space left on device")
        return replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    trainer = _trainer(folder)
    assert len(trainer.pipeline.datamanager.pseudo_views) > 0
    assert "No space left" in capsys.readouterr().out
    left = [path for path in (folder.parent / "cache").rglob("*") if path.is_file()]
    assert left == []
    assert np.isfinite(_train_a_step(trainer))


# ---------------------------------------------------------------- bookkeeping


def test_p16_pseudo_views_are_counted_nowhere(capture):
    trainer = _trainer(capture())
    manager, model = trainer.pipeline.datamanager, trainer.pipeline.model
    assert len(manager.pseudo_views) == 10
    assert len(manager.train_dataset) == model.num_train_data == 11
    assert len(manager.eval_dataset) == 1
    assert len(manager.train_dataset.cameras) == 11


def test_p02_nothing_is_pinned_and_large_captures_load(capture, monkeypatch):
    """Above 500 views nerfstudio switches to pinned memory, which raises without a GPU."""
    if torch.cuda.is_available():
        pytest.skip("pins by right where there is a GPU")
    from ps4pro_nerfstudio.datamanagers.pseudo_view_datamanager import PseudoViewDatamanager

    folder = capture()
    config: Any = copy.deepcopy(ps4pro_splatfacto.config.pipeline.datamanager)
    config.data = folder
    config.cache_images = "cpu"
    manager = config.setup(device="cpu", test_mode="test")
    assert isinstance(manager, PseudoViewDatamanager)
    assert len(manager.cached_train) == 11


def test_p24_a_subclass_keeps_the_dataset_type(capture):
    from ps4pro_nerfstudio.datamanagers.photo_dataset import PhotoDataset
    from ps4pro_nerfstudio.datamanagers.pseudo_view_datamanager import PseudoViewDatamanager

    class Grandchild(PseudoViewDatamanager):
        pass

    config: Any = copy.deepcopy(ps4pro_splatfacto.config.pipeline.datamanager)
    config._target, config.data = Grandchild, capture()
    assert type(config.setup(device="cpu", test_mode="test").train_dataset) is PhotoDataset


def test_undistortion_borders_are_masked(capture):
    """Pincushion distortion: the corners of the undistorted image come from outside the photo."""
    folder = capture(edit=lambda meta: meta.update(k1=0.3, k2=0.1, p1=0.02, p2=0.01))
    trainer = _trainer(folder)
    for data in trainer.pipeline.datamanager.cached_train:
        mask = data.get("mask")
        dark = (data["image"].float().sum(-1) == 0).numpy()
        if mask is None:
            assert not dark.any()
        else:
            assert not (dark & mask[..., 0].numpy()).any()
            assert mask.float().mean() > 0.5


def test_training_views_alone_make_points_and_pseudo_views(capture):
    """Noise in place of the held-out photo changes neither."""
    results = []
    for name, junk in (("a", False), ("b", True)):
        folder = capture(name, points=False)
        if junk:
            meta = json.loads((folder / "transforms.json").read_text())
            noise = np.random.default_rng(1).integers(0, 255, (48, 64, 3), dtype=np.uint8)
            manager: Any = ps4pro_splatfacto.config.pipeline.datamanager
            parsed = copy.deepcopy(manager.dataparser)
            parsed.data = folder
            held_out = parsed.setup().get_dataparser_outputs("val").image_filenames
            assert len(held_out) == 1
            assert len(meta["frames"]) == 12
            Image.fromarray(noise).save(held_out[0])
        manager = _trainer(folder).pipeline.datamanager
        points = manager.train_dataparser_outputs.metadata["points3D_xyz"]
        results.append((points, manager.pseudo_views))
    assert torch.equal(results[0][0], results[1][0])
    for one, other in zip(results[0][1], results[1][1], strict=True):
        assert np.array_equal(one.image, other.image)
        assert np.array_equal(one.confidence, other.confidence)
