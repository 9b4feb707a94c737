# SPDX-License-Identifier: Apache-2.0
"""`ps4pro augment`: a capture with pseudo views as an ordinary dataset of nerfstudio.

    NEW/transforms.json       frames with their own intrinsics, fixed split lists, provenance
    NEW/images/...            the photographs, byte by byte
    NEW/pseudo_views/*.png    the pseudo views, pinhole cameras
    NEW/masks/...             one for each frame: the photographs' own, else white; the pixels of a
                              pseudo view that can be trusted
    NEW/points.ply            sparse and dense points

The split is fixed before anything is made, and pseudo views only train. Everything stands in the
frame of reference of the capture's own file. nerfstudio wants masks for all frames or for none and
all three split lists or none.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import tyro
from numpy.typing import NDArray

from ps4pro_nerfstudio.commands.loading import CaptureCommand, CaptureFrame, read_transforms
from ps4pro_nerfstudio.commands.points import write_points
from ps4pro_nerfstudio.initialization.dense_points import PointCloud
from ps4pro_nerfstudio.messages import InputError, say, warn
from ps4pro_nerfstudio.pseudo_views.pseudo_view import PseudoView

if TYPE_CHECKING:
    from nerfstudio.data.dataparsers.base_dataparser import DataparserOutputs

_INTRINSICS = ("w", "h", "fl_x", "fl_y", "cx", "cy")
_DISTORTION = ("k1", "k2", "k3", "k4", "p1", "p2", "distortion_params")
_SPLITS = ("train_filenames", "val_filenames", "test_filenames")
_POINTS = "points.ply"
# Written anew, or no longer true for all frames. nerfstudio scales points by applied_scale, but not
# the poses that they belong to.
_NOT_TAKEN_OVER = {
    "frames", "ply_file_path", "camera_angle_x", "camera_angle_y", "applied_scale",
    *_INTRINSICS, *_DISTORTION, *_SPLITS,
}  # fmt: skip


@dataclass(kw_only=True)
class Augment(CaptureCommand):
    """Write a capture with pseudo views as a dataset that any method of nerfstudio trains on."""

    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])]
    """Folder of the new dataset."""
    min_confidence: float = 0.5
    """Pixels of pseudo views above this confidence train; the others are masked out."""
    overwrite: bool = False
    """Replace the output folder when it is not empty."""

    def run(self) -> None:
        """Write the dataset, complete or not at all, and say in one line what it holds.

        Raises:
            InputError: a capture that cannot be used, an output folder that is not empty or cannot
                be written.
        """
        transforms = read_transforms(self.data)
        self._check(transforms)
        parser = self.split.parser(self.data).setup()
        train = parser.get_dataparser_outputs("train")
        test = parser.get_dataparser_outputs("test")
        made = self.interpolate(train)
        frame = CaptureFrame.of(train, self.data, transforms)
        temporary: Path | None = None
        try:
            self.output.parent.mkdir(parents=True, exist_ok=True)
            prefix = f".{self.output.name}.unfinished-"
            temporary = Path(tempfile.mkdtemp(prefix=prefix, dir=self.output.parent))
            temporary.chmod(0o755)  # mkdtemp gives 0700.
            dataset = _Dataset(temporary, self.data, transforms, frame)
            dataset.add_photographs(train, "train_filenames")
            dataset.add_photographs(test, "val_filenames", "test_filenames")
            pseudo_views = made.pseudo_views
            if pseudo_views and dataset.is_fisheye:
                # nerfstudio knows one camera model for all frames, and these are pinhole pictures.
                warn("pseudo views are left out: beside fisheye photographs they would be misread")
                pseudo_views = []
            dataset.add_pseudo_views(pseudo_views, self.min_confidence)
            # Random ones are no points of the scene.
            num_points = len(made.points) if made.num_sparse + made.num_dense > 0 else 0
            if num_points > 0:
                dataset.add_points(made.points)
            dataset.write_transforms()
            self._move_into_place(temporary)
        except OSError as error:
            reason = error.strerror or str(error)
            raise InputError(f"cannot write {self.output}: {reason}") from error
        finally:
            if temporary is not None:
                shutil.rmtree(temporary, ignore_errors=True)
        num_real = len(train.image_filenames)
        say(
            f"wrote {self.output}: {num_real} training photographs, {len(pseudo_views)} "
            f"pseudo views, {len(test.image_filenames)} test photographs, {num_points:,} "
            f"points; train with: ns-train METHOD --data {self.output}"
        )

    def _check(self, transforms: dict[str, Any] | None) -> None:
        if not 0.0 <= self.min_confidence < 1.0:
            raise InputError(f"--min-confidence {self.min_confidence}: must lie in [0, 1)")
        if any("pseudo_view" in frame for frame in (transforms or {}).get("frames", ())):
            raise InputError(f"{self.data} has pseudo views already; augment the original capture")
        if self.output.exists() and not self.output.is_dir():
            raise InputError(f"{self.output} is a file; name a folder")
        capture = self.data.parent if self.data.suffix == ".json" else self.data
        if self.output.resolve() in (capture.resolve(), *capture.resolve().parents):
            raise InputError(f"{self.output} holds the capture itself; name another folder")
        if not self.overwrite and self.output.is_dir() and any(self.output.iterdir()):
            raise InputError(f"{self.output} is not empty; name another folder or add --overwrite")

    def _move_into_place(self, finished: Path) -> None:
        if not self.output.is_dir():
            finished.rename(self.output)
            return
        # The former folder leaves in one step, too, and is removed with what is unfinished.
        grave = Path(tempfile.mkdtemp(prefix=f".{self.output.name}.old-", dir=self.output.parent))
        try:
            self.output.rename(grave / "removed")
            finished.rename(self.output)
        finally:
            shutil.rmtree(grave, ignore_errors=True)


class _Dataset:
    """A dataset of nerfstudio while it is written."""

    def __init__(
        self, folder: Path, data: Path, transforms: dict[str, Any] | None, frame: CaptureFrame
    ) -> None:
        self._folder = folder
        self._data = data
        self._root = data.parent if data.suffix == ".json" else data
        self._frame = frame
        self._transforms = transforms
        self._frames: list[dict[str, Any]] = []
        self._splits: dict[str, list[str]] = {name: [] for name in _SPLITS}
        self._points: dict[str, str] = {}
        self._camera_model = "OPENCV"

    def add_photographs(self, views: DataparserOutputs, *splits: str) -> None:
        """Copy photographs and their masks; their cameras as the capture's file gives them."""
        from nerfstudio.cameras.cameras import CameraType

        known = self._known_frames()
        for index, source in enumerate(views.image_filenames):
            name = self._name(source)
            _copy(source, self._folder / name)
            camera = views.cameras[index]
            original = known.get(source) or known.get(Path(source.name))
            if self._transforms is None:
                entry = self._parsed_frame(camera)
            elif original is None:
                raise InputError(f"{source} is no frame of {self._data}")
            else:
                entry = _self_contained(original, self._transforms)
                if source not in known:  # a smaller copy of the photograph
                    entry.update(_scaled_intrinsics(camera))
            if int(camera.camera_type.item()) == CameraType.FISHEYE.value:
                self._camera_model = "OPENCV_FISHEYE"
            mask = views.mask_filenames[index] if views.mask_filenames else None
            if mask is None:
                entry["mask_path"] = f"masks/{name}.png"
                white = np.full((int(camera.height), int(camera.width)), 255, np.uint8)
                _write_png(self._folder / entry["mask_path"], white)
            else:
                entry["mask_path"] = f"masks/{name}{mask.suffix}"
                _copy(mask, self._folder / entry["mask_path"])
            self._add({**entry, "file_path": name}, splits)

    @property
    def is_fisheye(self) -> bool:
        """Whether the photographs are said to come from a fisheye lens."""
        given = self._transforms or {}
        return given.get("camera_model", self._camera_model) == "OPENCV_FISHEYE"

    def add_pseudo_views(self, views: Sequence[PseudoView], min_confidence: float) -> None:
        """Write pseudo views as training views that say where they come from."""
        for index, view in enumerate(views):
            if view.image is None:
                continue
            name = f"pseudo_views/{index:04d}.png"
            mask = f"masks/{name}"
            _write_png(self._folder / name, view.image[..., ::-1])
            trusted = view.confidence > 255.0 * min_confidence
            _write_png(self._folder / mask, np.where(trusted, 255, 0).astype(np.uint8))
            provenance = view.provenance
            entry = {
                "file_path": name,
                "mask_path": mask,
                "transform_matrix": self._frame.pose(view.camera_to_world).tolist(),
                "w": view.width, "h": view.height, "fl_x": view.fx, "fl_y": view.fy,
                "cx": view.cx, "cy": view.cy,
                "pseudo_view": {
                    "source_names": list(provenance.source_names),
                    "t": provenance.t,
                    "confidence": provenance.mean_confidence,
                    "agreeing_share": provenance.agreeing_share,
                    "interpolator": provenance.interpolator,
                    "pose_source": provenance.pose_source,
                },
            }  # fmt: skip
            self._add(entry, ("train_filenames",))

    def add_points(self, points: PointCloud) -> None:
        """Write the initial points."""
        write_points(self._folder / _POINTS, self._frame.points(points.xyz), points.rgb)
        self._points = {"ply_file_path": _POINTS}

    def write_transforms(self) -> None:
        """Write `transforms.json`."""
        meta: dict[str, Any] = {"camera_model": self._camera_model}
        if self._transforms is not None:
            kept = {k: v for k, v in self._transforms.items() if k not in _NOT_TAKEN_OVER}
            meta.update(kept)
        meta.update(**self._points, **self._splits, frames=self._frames)
        (self._folder / "transforms.json").write_text(json.dumps(meta, indent=2), encoding="utf-8")

    def _add(self, entry: dict[str, Any], splits: Sequence[str]) -> None:
        self._frames.append(entry)
        for split in splits:
            self._splits[split].append(entry["file_path"])

    def _known_frames(self) -> dict[Path, dict[str, Any]]:
        """Frames of the capture's file by the path of the photograph and by its bare name."""
        known: dict[Path, dict[str, Any]] = {}
        for frame in (self._transforms or {}).get("frames", ()):
            path = self._root / frame["file_path"]
            known[path] = known[Path(path.name)] = frame
        return known

    def _name(self, source: Path) -> str:
        """Where a photograph goes: where it was, if that was inside the capture."""
        try:
            name = PurePosixPath(source.relative_to(self._root).as_posix())
        except ValueError:
            name = PurePosixPath("..")
        if ".." in name.parts or name.parts[0] in ("masks", "pseudo_views"):
            return f"images/{len(self._frames):04d}_{source.name}"
        return str(name)

    def _parsed_frame(self, camera: Any) -> dict[str, Any]:
        """A frame of a capture without `transforms.json`."""
        entry: dict[str, Any] = _scaled_intrinsics(camera)
        distortion = camera.distortion_params
        if distortion is not None and bool(distortion.any()):
            names = ("k1", "k2", "k3", "k4", "p1", "p2")
            entry.update(zip(names, map(float, distortion.flatten()), strict=True))
        pose = self._frame.pose(camera.camera_to_worlds.numpy())
        return {**entry, "transform_matrix": pose.tolist()}


def _self_contained(frame: dict[str, Any], transforms: dict[str, Any]) -> dict[str, Any]:
    """A frame with the intrinsics and the distortion that nerfstudio reads for it.

    Values for the whole capture go before those of a frame, and one distortion parameter for the
    whole capture makes those of the frames void.
    """
    entry = {k: v for k, v in frame.items() if k not in (*_DISTORTION, "depth_file_path")}
    entry.update({name: transforms[name] for name in _INTRINSICS if name in transforms})
    is_common = any(name in transforms for name in _DISTORTION if name != "k4")
    distortion = transforms if is_common else frame
    entry.update({name: distortion[name] for name in _DISTORTION if name in distortion})
    return entry


def _scaled_intrinsics(camera: Any) -> dict[str, Any]:
    """Size and intrinsics of a parsed camera."""
    return {
        "w": int(camera.width), "h": int(camera.height),
        "fl_x": float(camera.fx), "fl_y": float(camera.fy),
        "cx": float(camera.cx), "cy": float(camera.cy),
    }  # fmt: skip


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def _write_png(file: Path, image: NDArray[np.uint8]) -> None:
    import cv2

    file.parent.mkdir(parents=True, exist_ok=True)
    written, content = cv2.imencode(".png", np.ascontiguousarray(image))
    if not written:
        raise ValueError(f"cannot encode an image of shape {image.shape} as PNG")
    file.write_bytes(content.tobytes())
