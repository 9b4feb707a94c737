# SPDX-License-Identifier: Apache-2.0
"""Cut-out photographs of a synthetic scene, through the parser that nerfstudio has for them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ps4pro_nerfstudio.geometry.cameras import flip_camera_axes
from tests.end_to_end.conftest import succeed
from tests.initialization.scenes import BALL_FOCAL, BALL_SIZE, ball_views

pytestmark = pytest.mark.e2e


def _write(folder: Path, num_views: int = 6) -> None:
    """A red ball without any texture; test views are training views, nothing is claimed of them."""
    views, silhouettes = ball_views(num_views)
    frames = []
    (folder / "images").mkdir(parents=True)
    for index, (pose, silhouette) in enumerate(
        zip(flip_camera_axes(views.camera_to_worlds), silhouettes, strict=True)
    ):
        assert silhouette is not None
        pixels = np.zeros((BALL_SIZE, BALL_SIZE, 4), np.uint8)
        pixels[silhouette] = (200, 30, 30, 255)
        Image.fromarray(pixels).save(folder / f"images/{index}.png")
        frames.append({"file_path": f"./images/{index}", "transform_matrix": pose.tolist()})
    angle = 2 * np.arctan(BALL_SIZE / 2 / BALL_FOCAL)
    for split in ("train", "val", "test"):
        meta = {"camera_angle_x": angle, "frames": frames if split == "train" else frames[:2]}
        (folder / f"transforms_{split}.json").write_text(json.dumps(meta))


def test_a_cut_out_object_is_trained_as_one_and_evaluated_on_white(tmp_path):
    _write(tmp_path / "scene")
    output = succeed(
        "ns-train", "ps4pro-splatfacto", "--data", "scene", "--vis", "tensorboard",
        "--max-num-iterations", 60, "--timestamp", "run",
        "--pipeline.datamanager.pseudo-views.interpolator", "optical-flow",
        "blender-data", cwd=tmp_path,
    )  # fmt: skip
    assert "coarse points more in the visual hull of cut-out photographs" in output
    run = tmp_path / "outputs/scene/ps4pro-splatfacto/run"
    succeed(
        "ns-eval", "--load-config", run / "config.yml", "--output-path", "eval.json",
        "--render-output-path", "renders", cwd=tmp_path,
    )  # fmt: skip
    pictures = sorted((tmp_path / "renders").rglob("*.png"))
    assert pictures
    for path in pictures:
        picture = np.array(Image.open(path).convert("RGB")).astype(float)
        assert picture[0, 0].tolist() == [255, 255, 255]
        middle = picture[BALL_SIZE // 2, -BALL_SIZE // 2]  # beside the photograph, if it is there
        assert middle[0] > 150
        assert middle[1:].max() < 120
    results = json.loads((tmp_path / "eval.json").read_text())["results"]
    assert results["psnr"] > 15.0
