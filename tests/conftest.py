# SPDX-License-Identifier: Apache-2.0
"""Small captures that tests train on, and caches that no test shares with its user."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ps4pro_nerfstudio.caches import cache_folder

CaptureMaker = Callable[..., Path]


@pytest.fixture(scope="session", autouse=True)
def _private_caches(tmp_path_factory: pytest.TempPathFactory):
    """Pseudo views and points go to a folder of the session; compiled kernels stay shared."""
    with pytest.MonkeyPatch.context() as patch:
        if "PS4PRO_CACHE" not in os.environ:
            patch.setenv("NUMBA_CACHE_DIR", str(cache_folder("numba")))
            patch.setenv("PS4PRO_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def look_at(eye: np.ndarray, target: np.ndarray) -> np.ndarray:
    """OpenGL camera-to-world [4, 4] at `eye`, looking at `target`, z up."""
    back = (eye - target) / np.linalg.norm(eye - target)
    right = np.cross([0.0, 0.0, 1.0], back)
    right /= np.linalg.norm(right)
    pose = np.eye(4)
    pose[:3, :4] = np.stack([right, np.cross(back, right), back, eye], axis=1)
    return pose


def wall_image(pose: np.ndarray, focal: float, width: int, height: int) -> np.ndarray:
    """Photograph [H, W, 3] uint8 of a wall at y = 0 with a smooth pattern, seen from y > 0."""
    x = (np.arange(width) + 0.5 - width / 2) / focal
    y = -(np.arange(height) + 0.5 - height / 2) / focal
    rays = np.stack([*np.meshgrid(x, y), -np.ones((height, width))], axis=-1) @ pose[:3, :3].T
    distance = -pose[1, 3] / rays[..., 1]
    hit = pose[:3, 3] + distance[..., None] * rays
    u, v = hit[..., 0] * 5, hit[..., 2] * 5
    rgb = np.stack([np.sin(u) * np.cos(v), np.sin(1.7 * u + v), np.cos(2.3 * v - u)], axis=-1)
    return np.rint(127.5 + 100 * rgb).astype(np.uint8)


def write_capture(
    folder: Path,
    *,
    num_images: int = 12,
    width: int = 64,
    height: int = 48,
    points: bool = True,
    edit: Callable[[dict[str, Any]], None] | None = None,
) -> Path:
    """Write a capture of a patterned wall in nerfstudio's format.

    `points` writes sparse points on the wall; `edit` changes the content of transforms.json before
    it is written.
    """
    focal = 0.9 * width
    (folder / "images").mkdir(parents=True)
    frames = []
    for index in range(num_images):
        angle = 0.5 * (index / max(num_images - 1, 1) - 0.5)
        eye = np.array([2 * np.sin(angle), 2 * np.cos(angle), 0.2 * np.sin(5 * angle)])
        pose = look_at(eye, np.zeros(3))
        name = f"images/{index:03d}.png"
        Image.fromarray(wall_image(pose, focal, width, height)).save(folder / name)
        frames.append({"file_path": name, "transform_matrix": pose.tolist()})
    meta: dict[str, Any] = {
        "fl_x": focal, "fl_y": focal, "cx": width / 2, "cy": height / 2, "w": width, "h": height,
        "frames": frames,
    }  # fmt: skip
    if points:
        import trimesh

        rng = np.random.default_rng(0)
        xyz = rng.uniform(-0.8, 0.8, (400, 3)) * [1, 0, 0.8]
        trimesh.PointCloud(xyz, rng.integers(0, 255, (400, 3), dtype=np.uint8)).export(
            folder / "sparse_pc.ply"
        )
        meta["ply_file_path"] = "sparse_pc.ply"
    if edit is not None:
        edit(meta)
    (folder / "transforms.json").write_text(json.dumps(meta))
    return folder


@pytest.fixture
def capture(tmp_path: Path) -> CaptureMaker:
    """Function that writes a capture into the test's folder; see `write_capture`."""
    return lambda name="capture", **options: write_capture(tmp_path / name, **options)
