# SPDX-License-Identifier: Apache-2.0
"""`ps4pro augment`: an ordinary dataset in which nothing real has changed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
from PIL import Image

from ps4pro_nerfstudio.commands.augment import Augment, _Dataset, _self_contained
from ps4pro_nerfstudio.commands.loading import CaptureFrame
from ps4pro_nerfstudio.messages import InputError
from ps4pro_nerfstudio.pseudo_views.pseudo_view import Provenance, PseudoView
from tests.conftest import write_capture
from tests.dataparsers.test_sparse_views import WRITERS, wall_poses

TEST = ["images/000.png", "images/008.png"]


def _distorted(meta: dict[str, Any]) -> None:
    meta.update(k1=0.01, p1=-0.002, camera_angle_x=1.0, camera_model="OPENCV")
    for frame in meta["frames"]:
        frame["sharpness"] = 3.0


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A capture of ten photographs and its augmented copy."""
    folder = tmp_path_factory.mktemp("augment")
    data = write_capture(folder / "capture", num_images=10, width=96, height=72, edit=_distorted)
    Augment(data=data, output=folder / "new", interpolator="optical-flow").run()
    return data, folder / "new"


def _transforms(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "transforms.json").read_text())


def test_photographs_are_the_same_bytes_and_poses_the_same_numbers(both) -> None:
    data, new = both
    frames = {frame["file_path"]: frame for frame in _transforms(new)["frames"]}
    for original in _transforms(data)["frames"]:
        copied = frames[original["file_path"]]
        assert copied["transform_matrix"] == original["transform_matrix"]
        assert copied["sharpness"] == 3.0
        name = original["file_path"]
        assert (new / name).read_bytes() == (data / name).read_bytes()
    assert sorted(path.name for path in new.parent.iterdir()) == ["capture", "new"]


def test_split_is_fixed_and_pseudo_views_only_train(both) -> None:
    _, new = both
    meta = _transforms(new)
    pseudo = [frame for frame in meta["frames"] if "pseudo_view" in frame]
    real = [f"images/{index:03d}.png" for index in range(1, 10) if index != 8]
    assert len(pseudo) >= 5
    assert meta["train_filenames"] == real + [frame["file_path"] for frame in pseudo]
    assert meta["val_filenames"] == meta["test_filenames"] == TEST
    held_out = {Path(name).name for name in TEST}
    for frame in pseudo:
        said = frame["pseudo_view"]
        assert not held_out & set(said["source_names"])
        assert said["t"] == 0.5
        assert 0.0 < said["confidence"] <= 1.0
        assert said["interpolator"] == "optical-flow"


def test_every_frame_has_a_mask_of_its_size(both) -> None:
    _, new = both
    for frame in _transforms(new)["frames"]:
        mask = np.asarray(Image.open(new / frame["mask_path"]))
        assert mask.shape == (frame["h"], frame["w"])
        assert Image.open(new / frame["file_path"]).size == (frame["w"], frame["h"])
        if "pseudo_view" in frame:
            assert set(np.unique(mask)) <= {0, 255}
            assert mask.mean() > 100
        else:
            assert (mask == 255).all()


def test_nerfstudio_reads_it_in_the_frame_of_the_original(both) -> None:
    """Orientation off: both files' cameras as they are; distortion belongs to photographs only."""
    data, new = both

    def parse(folder: Path, split: str):
        config = NerfstudioDataParserConfig(
            data=folder, orientation_method="none", center_method="none", auto_scale_poses=False,
            eval_mode="all",
        )  # fmt: skip
        return config.setup().get_dataparser_outputs(split)

    originals = parse(data, "train")
    by_name = {path.name: i for i, path in enumerate(originals.image_filenames)}
    num_pseudo = 0
    for split in ("train", "val", "test"):
        outputs = parse(new, split)
        assert outputs.mask_filenames is not None
        for index, path in enumerate(outputs.image_filenames):
            camera = outputs.cameras[index]
            assert camera.distortion_params is not None
            if path.parent.name == "pseudo_views":
                num_pseudo += 1
                assert not camera.distortion_params.any()
                continue
            original = originals.cameras[by_name[path.name]]
            for name in ("camera_to_worlds", "fx", "fy", "cx", "cy", "width", "distortion_params"):
                assert (getattr(camera, name) == getattr(original, name)).all(), name
        if split != "train":
            assert [path.name for path in outputs.image_filenames] == ["000.png", "008.png"]
    assert num_pseudo == sum("pseudo_view" in frame for frame in _transforms(new)["frames"])


def test_pseudo_cameras_stand_between_their_sources(both) -> None:
    _, new = both
    frames = _transforms(new)["frames"]
    centres = {
        Path(frame["file_path"]).name: np.array(frame["transform_matrix"])[:3, 3]
        for frame in frames
    }
    for frame in frames:
        if "pseudo_view" in frame:
            a, b = (centres[name] for name in frame["pseudo_view"]["source_names"])
            here = np.array(frame["transform_matrix"])[:3, 3]
            np.testing.assert_allclose(here, (a + b) / 2, atol=1e-5)


def test_masks_take_what_is_above_the_threshold(tmp_path: Path) -> None:
    confidence = np.arange(256, dtype=np.uint8).reshape(16, 16)
    view = PseudoView(
        camera_to_world=np.eye(4, dtype=np.float32)[:3], fx=9.0, fy=9.0, cx=8.0, cy=8.0, width=16,
        height=16, time=None, image=np.zeros((16, 16, 3), np.uint8), confidence=confidence,
        provenance=Provenance(("a", "b"), 0.5, "", "", 1.0, "", 1.0, 1.0),
    )  # fmt: skip
    frame = CaptureFrame(np.eye(3), 1.0, np.zeros(3))
    _Dataset(tmp_path, tmp_path, None, frame).add_pseudo_views([view], 0.5)
    mask = np.asarray(Image.open(tmp_path / "masks/pseudo_views/0000.png"))
    np.testing.assert_array_equal(mask, np.where(confidence >= 128, 255, 0))


def test_values_for_all_frames_go_before_those_of_one() -> None:
    """As nerfstudio reads them; one common distortion parameter makes those of frames void."""
    frame = {"file_path": "a", "fl_x": 1.0, "k1": 0.5, "k2": 0.25, "depth_file_path": "d"}
    assert _self_contained(frame, {"fl_x": 2.0, "p1": 0.1}) == {
        "file_path": "a",
        "fl_x": 2.0,
        "p1": 0.1,
    }
    assert _self_contained(frame, {}) == {"file_path": "a", "fl_x": 1.0, "k1": 0.5, "k2": 0.25}


def test_outputs_that_would_lose_something_are_refused(both, tmp_path: Path) -> None:
    data, new = both
    before = sorted(path.name for path in new.rglob("*"))
    with pytest.raises(InputError, match="not empty"):
        Augment(data=data, output=new).run()
    for inside in (data, data.parent):
        with pytest.raises(InputError, match="holds the capture itself"):
            Augment(data=data, output=inside, overwrite=True).run()
    with pytest.raises(InputError, match="pseudo views already"):
        Augment(data=new, output=tmp_path / "twice").run()
    assert sorted(path.name for path in new.rglob("*")) == before
    assert not list(tmp_path.iterdir())


def test_a_failure_leaves_the_former_dataset_and_nothing_else(
    both, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, _ = both
    output = tmp_path / "new"
    output.mkdir()
    (output / "former").write_text("x")
    augment = Augment(data=data, output=output, interpolator="optical-flow", overwrite=True)

    def full(*_) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(_Dataset, "write_transforms", full)
        with pytest.raises(InputError, match="No space left"):
            augment.run()
    assert [path.name for path in tmp_path.iterdir()] == ["new"]
    assert [path.name for path in output.iterdir()] == ["former"]
    augment.run()
    assert [path.name for path in tmp_path.iterdir()] == ["new"]
    assert not (output / "former").exists()
    assert (output / "transforms.json").is_file()


@pytest.mark.parametrize("kind", ["colmap", "llff"])
def test_captures_of_other_formats_keep_their_poses(kind: str, tmp_path: Path) -> None:
    """Both writers take photographs of a wall from the same twelve places."""
    data, new = tmp_path / "capture", tmp_path / "new"
    data.mkdir()
    WRITERS[kind](data)
    Augment(data=data, output=new, interpolator="optical-flow").run()
    meta = _transforms(new)
    frames = {frame["file_path"]: np.array(frame["transform_matrix"]) for frame in meta["frames"]}
    files = sorted((data / "images").iterdir(), key=_number)
    for file, pose in zip(files, wall_poses(), strict=True):
        np.testing.assert_allclose(frames[f"images/{file.name}"], pose, atol=1e-5)
        assert (new / "images" / file.name).read_bytes() == file.read_bytes()
    pseudo = [frame for frame in meta["frames"] if "pseudo_view" in frame]
    assert len(pseudo) >= 5
    held_out = [files[index].name for index in (0, 8)]
    assert [Path(name).name for name in meta["test_filenames"]] == held_out
    outputs = NerfstudioDataParserConfig(data=new).setup().get_dataparser_outputs("train")
    assert len(outputs.image_filenames) == 10 + len(pseudo)


def test_beside_fisheye_photographs_pseudo_views_are_left_out(tmp_path: Path, capsys) -> None:
    """nerfstudio has one camera model for all frames; theirs would be misread."""

    def edit(meta: dict[str, Any]) -> None:
        meta.update(camera_model="OPENCV_FISHEYE", k1=0.02, k2=0.0, k3=0.0, k4=0.0)

    data = write_capture(tmp_path / "capture", num_images=10, width=96, height=72, edit=edit)
    Augment(data=data, output=tmp_path / "new", interpolator="optical-flow").run()
    printed = " ".join(capsys.readouterr().out.split())
    assert "pseudo views are left out: beside fisheye photographs" in printed
    assert ", 0 pseudo views," in printed
    meta = _transforms(tmp_path / "new")
    assert meta["camera_model"] == "OPENCV_FISHEYE"
    assert len(meta["frames"]) == 10


def _number(file: Path) -> int:
    return int("".join(filter(str.isdigit, file.stem)))
