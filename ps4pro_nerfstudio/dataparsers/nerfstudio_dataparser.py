# SPDX-License-Identifier: Apache-2.0
"""nerfstudio's own format, checked before use.

`CheckedNerfstudio` takes the place of `Nerfstudio` behind the unchanged `nerfstudio-data` command
line. It adds checks whose messages name the frame, and reads sparse points with trimesh: Open3D,
which nerfstudio uses there, needs system libraries that a fresh machine lacks.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nerfstudio.data.dataparsers.base_dataparser import DataparserOutputs
from nerfstudio.data.dataparsers.nerfstudio_dataparser import Nerfstudio
from torch import Tensor

from ps4pro_nerfstudio.dataparsers.places import check_places
from ps4pro_nerfstudio.messages import InputError

# Rotations written with six digits are this orthonormal; a singular matrix is far from it.
_ROTATION_TOLERANCE = 1e-2


class CheckedNerfstudio(Nerfstudio):
    """See the module's docstring."""

    def _generate_dataparser_outputs(self, split: str = "train") -> DataparserOutputs:
        meta = check_transforms(self.config.data)
        if "ply_file_path" not in meta:
            # Upstream would ask whether to write a point cloud into the capture; ours has points
            # triangulated instead.
            self.config = dataclasses.replace(self.config, load_3D_points=False)
        return super()._generate_dataparser_outputs(split)

    def _load_3D_points(
        self, ply_file_path: Path, transform_matrix: Tensor, scale_factor: float
    ) -> dict[str, Tensor] | None:
        """Points [P, 3] in the world frame of the parsed poses, colours [P, 3] uint8."""
        if not ply_file_path.is_file():
            raise InputError(
                f"{ply_file_path} is named as ply_file_path in transforms.json but does not exist; "
                "add it, or remove the entry to have points triangulated from the photos"
            )
        import trimesh

        try:
            cloud = trimesh.load(ply_file_path, process=False)
        except Exception as error:  # trimesh raises whatever its readers raise
            raise InputError(f"{ply_file_path} cannot be read as a point cloud: {error}") from error
        points = np.asarray(getattr(cloud, "vertices", np.zeros((0, 3))), dtype=np.float32)
        finite = np.isfinite(points).all(1)
        if not finite.any():
            return None
        colors = getattr(cloud, "colors", None)
        if colors is None or len(colors) != len(points):
            colors = np.full((len(points), 3), 128, np.uint8)
        xyz = torch.from_numpy(points[finite])
        rotation, translation = transform_matrix[:3, :3], transform_matrix[:3, 3]
        return {
            "points3D_xyz": (xyz @ rotation.T + translation) * scale_factor,
            "points3D_rgb": torch.from_numpy(np.asarray(colors)[finite, :3].astype(np.uint8)),
        }


def check_transforms(data: Path) -> dict[str, Any]:
    """Check a capture's `transforms.json` as far as nerfstudio would fail without saying where.

    Args:
        data: the folder of the capture, or its json file.

    Returns:
        What the file says.

    Raises:
        InputError: missing or unreadable file, fewer than two frames, a pose that is not a rigid
            motion, cameras that do not move, masks or depth for some frames only, a split list
            that is missing or empty.
    """
    path = data if data.suffix == ".json" else data / "transforms.json"
    if not path.is_file():
        raise InputError(
            f"{path} not found; --data wants a capture in nerfstudio's format (ns-process-data "
            "makes one), or name another parser such as `colmap` after the options"
        )
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not valid JSON: {error}") from error
    frames = meta.get("frames") if isinstance(meta, dict) else None
    if not frames:
        raise InputError(f'{path} lists no images (its "frames" are empty)')
    for frame in frames:
        if "file_path" not in frame or "transform_matrix" not in frame:
            raise InputError(f"{path}: a frame lacks file_path or transform_matrix: {frame}")
        _check_pose(frame["transform_matrix"], f"{path}: frame {frame['file_path']}")
    if len(frames) == 1:
        raise InputError(f"{path} has one image; a scene needs at least two, from different places")
    check_places([np.asarray(frame["transform_matrix"])[:3, 3] for frame in frames], path)
    for key, what in (("mask_path", "masks"), ("depth_file_path", "depth maps")):
        count = sum(key in frame for frame in frames)
        if count not in (0, len(frames)):
            raise InputError(
                f"{path} names {what} for {count} of {len(frames)} frames; give {key} for all "
                "frames (an all-white mask uses the whole photo) or for none"
            )
    _check_splits(meta, path)
    return meta


def _check_pose(matrix, where: str) -> None:
    try:
        pose = np.asarray(matrix, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"{where}: transform_matrix is not a matrix of numbers") from error
    if pose.shape not in ((4, 4), (3, 4)):
        raise InputError(f"{where}: transform_matrix has shape {pose.shape}, expected (4, 4)")
    if not np.isfinite(pose).all():
        raise InputError(f"{where}: transform_matrix has NaN or infinite entries")
    rotation = pose[:3, :3]
    is_orthonormal = np.abs(rotation @ rotation.T - np.eye(3)).max() <= _ROTATION_TOLERANCE
    if not is_orthonormal or np.linalg.det(rotation) < 0.0:
        raise InputError(
            f"{where}: the rotation part of transform_matrix is not a rotation (determinant "
            f"{np.linalg.det(rotation):.3g}); remove the frame or repair its pose"
        )


def _check_splits(meta: dict, path: Path) -> None:
    names = [f"{split}_filenames" for split in ("train", "val", "test")]
    if not any(name in meta for name in names):
        return
    for name in names:
        if not meta.get(name):
            raise InputError(
                f'{path} has split lists, but "{name}" is missing or empty; nerfstudio wants all '
                "of train_filenames, val_filenames and test_filenames or none of them"
            )
