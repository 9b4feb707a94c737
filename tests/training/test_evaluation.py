# SPDX-License-Identifier: Apache-2.0
"""Layouts are found, and the figures are what their names say."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from ps4pro_nerfstudio.interpolation.network import PS4PRO
from ps4pro_nerfstudio.messages import InputError
from ps4pro_nerfstudio.training.evaluation import (
    EvalInterpolator,
    find_triplets,
    image_figures,
    ssim_vfi,
)
from ps4pro_nerfstudio.training.view_pairs import area_under_roc, occlusion_edges


def _write(path: Path, value: int = 100, size: tuple[int, int] = (64, 64)) -> None:
    import cv2

    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(value)
    cv2.imwrite(str(path), rng.integers(0, 256, (*size, 3)).astype(np.uint8))


def test_every_layout_is_found(tmp_path: Path) -> None:
    for k in range(3):
        _write(tmp_path / "triplets" / "scene" / f"frame{k}.png")
        _write(tmp_path / "vimeo" / "sequences" / "00001" / "0003" / f"im{k + 1}.png")
    (tmp_path / "vimeo" / "tri_testlist.txt").write_text("00001/0003\n")
    for name in ("frame_00", "frame_01_gt", "frame_02"):
        _write(tmp_path / "ucf" / "7" / f"{name}.png")
    for k in range(3):
        _write(tmp_path / "snu" / "test" / "A" / f"{k:03d}.png")
    line = " ".join(f"data/SNU-FILM/test/A/{k:03d}.png" for k in range(3))
    (tmp_path / "snu" / "test-hard.txt").write_text(line + "\n")
    for k in range(5):
        _write(tmp_path / "xiph" / "Clip" / f"{k:03d}.png")

    def names(folder: str, layout: str, split: str = "") -> list[list[str]]:
        found = find_triplets(tmp_path / folder, layout, split)  # type: ignore[arg-type]
        return [[t.first.stem, t.truth.stem, t.last.stem] for t in found]

    assert names("triplets", "triplets") == [["frame0", "frame1", "frame2"]]
    assert names("vimeo", "vimeo90k") == [["im1", "im2", "im3"]]
    assert names("ucf", "ucf101") == [["frame_00", "frame_01_gt", "frame_02"]]
    assert names("snu", "snu-film", "hard") == [["000", "001", "002"]]
    assert names("xiph", "xiph") == [["001", "002", "003"]]
    with pytest.raises(InputError, match="holds no triplets"):
        names("ucf", "triplets")
    with pytest.raises(InputError, match="is absent"):
        names("ucf", "vimeo90k")


def test_figures_of_equal_and_of_known_images() -> None:
    """A difference of .1 everywhere is 20 dB."""
    image = torch.rand(40, 50, 3, generator=torch.Generator().manual_seed(0)) * 0.8
    assert ssim_vfi(image, image) == pytest.approx(1.0, abs=1e-4)
    figures = image_figures(image + 0.1, image)
    assert figures["psnr"] == pytest.approx(20.0, abs=1e-4)
    assert figures["ssim_vfi"] < 1.0
    assert image_figures(image, image, two_dimensional=True)["ssim_2d"] == pytest.approx(1.0)


def test_area_under_roc_counts_ordered_pairs() -> None:
    rng = np.random.default_rng(0)
    score = rng.integers(0, 6, 60).astype(float)
    positive = rng.random(60) < 0.4
    higher = [
        1.0 if p > n else 0.5 if p == n else 0.0 for p in score[positive] for n in score[~positive]
    ]
    assert area_under_roc(score, positive) == pytest.approx(np.mean(higher))
    assert np.isnan(area_under_roc(score, np.zeros(60, bool)))


def test_occlusion_edges_lie_around_a_step_in_depth() -> None:
    depth = np.full((40, 60), 2.0)
    depth[:, 30:] = 3.0
    edges = occlusion_edges(depth, reach_px=4)
    columns = np.flatnonzero(edges.any(axis=0))
    assert columns.tolist() == list(range(25, 35))
    slope = np.linspace(2.0, 3.0, 60)[None].repeat(40, axis=0)
    assert not occlusion_edges(slope).any()


def test_command_writes_one_entry_per_model(tmp_path: Path) -> None:
    for k in range(3):
        _write(tmp_path / "data" / "scene" / f"frame{k}.png", value=k)
    weights = tmp_path / "mine.safetensors"
    PS4PRO("tiny").save(weights)
    output = tmp_path / "figures.json"
    EvalInterpolator(
        data=tmp_path / "data", models=(str(weights),), lpips=False, output=output
    ).run()
    report = json.loads(output.read_text())
    assert set(report["models"]) == {"linear-blend", "optical-flow", "mine"}
    for figures in report["models"].values():
        assert set(figures) >= {"psnr", "ssim_vfi", "seconds", "parameters", "identity"}
    assert report["models"]["mine"]["parameters"] > 1e5
    with pytest.raises(InputError, match="ask for --views"):
        EvalInterpolator(models=()).run()
