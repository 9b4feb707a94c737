# SPDX-License-Identifier: Apache-2.0
"""Writes a generated room as a nerfstudio dataset.

    OUT/transforms.json   cameras, split lists, name of the point file
    OUT/images/           train_001.png, ..., test_001.png, ...
    OUT/sparse_pc.ply     noisy points with colours, as structure from motion would give them
    OUT/depth/            one 16-bit PNG per picture, for evaluation; not named in transforms.json
    OUT/demo_scene.json   the options that made the scene, and the unit of the depth maps

Frames: `transform_matrix` is camera-to-world with OpenGL camera axes (x right, y up, z back), the
world is z up, in metres. The pixel (column i, row j) has its centre at (i + 0.5, j + 0.5), so that
cx = w / 2. A depth value is z along the optical axis at the pixel centre, in millimetres; 0 means
that there is none.

nerfstudio's data parser turns, centres and scales poses and points together by default, so
positions in a trained model are not metres; `dataparser_transforms.json`, which training writes,
tells how. The lists val and test are the same views; none of them is a training view.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ps4pro_nerfstudio.messages import InputError

MARKER_NAME = "demo_scene.json"
"""A folder with this file was written by `DemoScene.write`."""

DEPTH_UNIT_M = 1e-3
"""Metres per unit of the depth PNGs, which is also nerfstudio's default."""

_HORIZONTAL_FIELD_OF_VIEW_RAD = np.deg2rad(70.0)


@dataclass
class DemoScene:
    """Options of the generated demo scene: a photo-textured room seen along a hand-held path."""

    size: tuple[int, int] = (320, 180)
    """Width and height of the pictures, in pixels; at least 32 each."""
    num_train_views: int = 24
    """Pictures along the path, for training; at least 2."""
    num_test_views: int = 8
    """Pictures beside the path, for evaluation; at least 1."""
    seed: int = 0
    """Chooses room, textures and path. Same options and seed, same files, bit for bit."""
    num_points: int = 3000
    """At most this many sparse points are written; at least 1."""
    point_noise_px: float = 0.7
    """Standard deviation, per axis, of the pixels from which the points are triangulated."""
    supersampling: int = 2
    """Each pixel averages n x n rays; 1 to 8."""
    finest_detail_m: float = 0.02
    """Textures carry nothing finer than this length, in metres; smaller needs more Gaussians."""
    overwrite: bool = False
    """Replace an earlier demo scene at the same place."""

    def check(self) -> None:
        """Refuse options that give no usable scene.

        Raises:
            InputError: naming the option, its value and its range.
        """
        for name, value, least, most in (
            ("size", min(self.size), 32, None),
            ("size", max(self.size), 32, 8192),
            ("num-train-views", self.num_train_views, 2, 10_000),
            ("num-test-views", self.num_test_views, 1, 10_000),
            ("seed", self.seed, 0, None),
            ("num-points", self.num_points, 1, None),
            ("point-noise-px", self.point_noise_px, 0.0, 20.0),
            ("supersampling", self.supersampling, 1, 8),
            ("finest-detail-m", self.finest_detail_m, 0.0, 1.0),
        ):
            # Written so that NaN fails as well.
            if not (value >= least and (most is None or value <= most)):
                limit = f"at least {least}" if most is None else f"between {least} and {most}"
                raise InputError(f"--{name} must be {limit}, got {value}")

    def write(self, output: Path) -> Path:
        """Generate the scene into a folder, which appears only when it is complete.

        Args:
            output: the folder to write; must be absent or empty, or an earlier demo scene when
                `overwrite` is set.

        Returns:
            `output`.

        Raises:
            InputError: if an option is out of range or the folder is taken.
        """
        self.check()
        output = Path(output).absolute()
        _check_free(output, self.overwrite)
        output.parent.mkdir(parents=True, exist_ok=True)
        # A sibling, because renaming is atomic only within a file system.
        draft = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
        try:
            self._write_into(draft)
            draft.chmod(0o755)  # mkdtemp closes the folder to other users
            _put_in_place(draft, output, self.overwrite)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
        return output

    def _write_into(self, folder: Path) -> None:
        from rich.progress import track

        from ps4pro_nerfstudio.demo.capture import hand_held_capture
        from ps4pro_nerfstudio.demo.raycasting import Camera, render
        from ps4pro_nerfstudio.demo.room import build_room
        from ps4pro_nerfstudio.demo.sparse_points import reconstruct

        # Streams of their own: the number of views changes neither the room nor its light.
        room_stream, path_stream, point_stream = (
            np.random.default_rng(child) for child in np.random.SeedSequence(self.seed).spawn(3)
        )
        room = build_room(room_stream, self.finest_detail_m)
        capture = hand_held_capture(room, self.num_train_views, self.num_test_views, path_stream)
        width, height = self.size
        focal_px = width / 2.0 / np.tan(_HORIZONTAL_FIELD_OF_VIEW_RAD / 2.0)
        views = [(f"train_{k + 1:03d}.png", pose) for k, pose in enumerate(capture.train)]
        views += [(f"test_{k + 1:03d}.png", pose) for k, pose in enumerate(capture.test)]

        (folder / "images").mkdir()
        (folder / "depth").mkdir()
        cameras = [Camera(width, height, float(focal_px), pose) for _, pose in views]
        train_renderings = []
        described = track(
            list(zip(views, cameras, strict=True)),
            description="Rendering views",
            transient=True,
            disable=not sys.stdout.isatty(),  # else it leaves an empty line in logs
        )
        for index, ((name, _), camera) in enumerate(described):
            rendering = render(room.caster, camera, self.supersampling)
            _write_png(folder / "images" / name, _to_uint8(rendering.image))
            _write_png(folder / "depth" / name, _to_depth_units(rendering.depth))
            if index < self.num_train_views:
                train_renderings.append(rendering)

        points = reconstruct(
            room.caster,
            cameras[: self.num_train_views],
            train_renderings,
            self.num_points,
            self.point_noise_px,
            point_stream,
        )
        if len(points.positions) == 0:
            raise InputError(
                "no point is seen by two training views: "
                "raise --size or --num-train-views, or choose another --seed"
            )
        _write_points(folder / "sparse_pc.ply", points.positions, points.colors)

        names = [f"images/{name}" for name, _ in views]
        train, test = names[: self.num_train_views], names[self.num_train_views :]
        _write_json(
            folder / "transforms.json",
            {
                "camera_model": "OPENCV",
                "w": width,
                "h": height,
                "fl_x": float(focal_px),
                "fl_y": float(focal_px),
                "cx": width / 2.0,
                "cy": height / 2.0,
                "k1": 0.0,
                "k2": 0.0,
                "p1": 0.0,
                "p2": 0.0,
                "ply_file_path": "sparse_pc.ply",
                "train_filenames": train,
                "val_filenames": test,
                "test_filenames": test,
                "frames": [
                    {"file_path": name, "transform_matrix": _to_opengl(pose).tolist()}
                    for name, (_, pose) in zip(names, views, strict=True)
                ],
            },
        )
        # Only what shapes the content: a subclass may add the place that it is written to.
        options = {
            f.name: getattr(self, f.name) for f in fields(DemoScene) if f.name != "overwrite"
        }
        _write_json(
            folder / MARKER_NAME,
            {
                "made_by": "ps4pro demo-scene",
                "options": options,
                "depth": {
                    "files": "depth/<name of the image>",
                    "unit_m": DEPTH_UNIT_M,
                    "meaning": "z along the optical axis at the pixel centre; 0: nothing is hit",
                },
            },
        )


def _check_free(output: Path, overwrite: bool) -> None:
    if not output.exists():
        return
    if not output.is_dir():
        raise InputError(f"{output} is a file; name a folder for the demo scene")
    if not any(output.iterdir()):
        return
    if not (output / MARKER_NAME).is_file():
        raise InputError(
            f"{output} is not empty and holds no demo scene, so it is left alone: "
            "name another folder, or empty this one"
        )
    if not overwrite:
        raise InputError(f"{output} already holds a demo scene: add --overwrite to replace it")


def _put_in_place(draft: Path, output: Path, overwrite: bool) -> None:
    # Again, because another process may have written there meanwhile.
    _check_free(output, overwrite)
    if not output.exists():
        draft.rename(output)
        return
    if not any(output.iterdir()):
        output.rmdir()
        draft.rename(output)
        return
    former = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
    try:
        os.replace(output, former)  # onto the empty folder just made
        draft.rename(output)
    finally:
        shutil.rmtree(former, ignore_errors=True)


def _to_opengl(camera_to_world: NDArray[np.float64]) -> NDArray[np.float64]:
    """OpenCV camera axes (y down, z forward) to OpenGL's (y up, z back)."""
    return camera_to_world @ np.diag([1.0, -1.0, -1.0, 1.0])


def _to_uint8(image: NDArray[np.float32]) -> NDArray[np.uint8]:
    return np.round(image * 255.0).astype(np.uint8)


def _to_depth_units(depth: NDArray[np.float64]) -> NDArray[np.uint16]:
    units = np.where(np.isfinite(depth), np.round(depth / DEPTH_UNIT_M), 0.0)
    return np.minimum(units, 65535.0).astype(np.uint16)


def _write_png(path: Path, values: NDArray[np.uint8] | NDArray[np.uint16]) -> None:
    from PIL import Image

    Image.fromarray(values).save(path, format="PNG")


def _write_points(path: Path, positions: NDArray[np.float64], colors: NDArray[np.uint8]) -> None:
    import trimesh

    trimesh.PointCloud(positions, colors).export(str(path), file_type="ply")


def _write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
