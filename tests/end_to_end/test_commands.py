# SPDX-License-Identifier: Apache-2.0
"""The ns-* commands, unchanged, on a run of ours: train, resume, evaluate, export, render."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from tests.end_to_end.conftest import TRAIN, Run, run, succeed

pytestmark = pytest.mark.e2e


def _state(path) -> dict:
    return torch.load(path, map_location="cpu", weights_only=True)


def _flat(value, prefix="") -> dict:
    """Leaves of nested containers by their path."""
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list | tuple):
        items = enumerate(value)
    else:
        return {prefix: value}
    return {k: v for name, part in items for k, v in _flat(part, f"{prefix}/{name}").items()}


def test_training_says_its_device_and_its_pseudo_views(trained: Run):
    assert trained.output.count("ps4pro device: ") == 1
    assert "pseudo views, mean confidence" in trained.output
    assert (trained.path / "nerfstudio_models/step-000000029.ckpt").is_file()


def test_p03_the_stored_config_names_the_device_that_was_used(trained: Run):
    device = "cuda" if torch.cuda.is_available() else "cpu"
    assert f"device_type: {device}" in trained.config.read_text()


def test_p10_resume_continues_bit_exactly(trained: Run):
    """15 more steps from the checkpoint of step 15 end where the uninterrupted run ended.

    Parameters, optimizers, schedulers and the strategy's statistics are compared bit by bit.
    """
    arguments = list(TRAIN)
    arguments[arguments.index("--max-num-iterations") + 1] = 14
    succeed(
        "ns-train", *arguments, "--timestamp", "resumed", "--load-dir",
        trained.path / "nerfstudio_models", "--load-step", 15, cwd=trained.folder,
    )  # fmt: skip
    name = "nerfstudio_models/step-000000029.ckpt"
    whole = _flat(_state(trained.path / name))
    resumed = _flat(_state(trained.path.with_name("resumed") / name))
    assert whole.keys() == resumed.keys()
    for key, value in whole.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, resumed[key]), key
        else:
            assert value == resumed[key], key
    # Densification has changed the scene in between, so the comparison means something.
    early = _state(trained.path / "nerfstudio_models/step-000000015.ckpt")["pipeline"]
    means = "_model.gauss_params.means"
    assert len(early[means]) != len(whole[f"/pipeline/{means}"])


def test_p09_parameters_move_after_resuming(trained: Run):
    first = _state(trained.path / "nerfstudio_models/step-000000015.ckpt")
    last = _state(trained.path / "nerfstudio_models/step-000000029.ckpt")
    for name, state in last["optimizers"].items():
        for slot in state["state"].values():
            assert slot["exp_avg"].shape == last["pipeline"][f"_model.gauss_params.{name}"].shape
    assert not torch.equal(
        first["pipeline"]["_model.gauss_params.means"][:50],
        last["pipeline"]["_model.gauss_params.means"][:50],
    )


def test_eval_measures_the_test_views(trained: Run):
    succeed(
        "ns-eval", "--load-config", trained.config, "--output-path", "metrics.json",
        "--render-output-path", "evaluation", cwd=trained.folder,
    )  # fmt: skip
    results = json.loads((trained.folder / "metrics.json").read_text())["results"]
    assert 10 < results["psnr"] < 60
    assert 0 < results["ssim"] < 1
    images = sorted((trained.folder / "evaluation").glob("eval_img_*.png"))
    assert [np.asarray(Image.open(path)).shape for path in images] == [(64, 192, 3)] * 2
    printed = succeed(
        "ps4pro", "summary", "--load-config", trained.config, "--eval-json", "metrics.json",
        "--eval-images", "evaluation", "--picture", "pair.png", cwd=trained.folder,
    )  # fmt: skip
    assert f"{results['psnr']:.2f} dB" in printed
    assert Image.open(trained.folder / "pair.png").width == 192


def test_p34_eval_without_lpips_weights_says_so_once(trained: Run, tmp_path):
    printed = succeed(
        "ns-eval", "--load-config", trained.config, "--output-path", tmp_path / "metrics.json",
        cwd=trained.folder, env={"TORCH_HOME": str(tmp_path)},
    )  # fmt: skip
    results = json.loads((tmp_path / "metrics.json").read_text())["results"]
    assert "psnr" in results
    assert "lpips" not in results
    assert sum("LPIPS" in line for line in printed.splitlines()) == 1


def test_export_writes_the_gaussians(trained: Run):
    pytest.importorskip("open3d", reason="ns-export needs Open3D", exc_type=ImportError)
    from plyfile import PlyData

    succeed(
        "ns-export", "gaussian-splat", "--load-config", trained.config, "--output-dir", "export",
        cwd=trained.folder,
    )  # fmt: skip
    vertices = PlyData.read(trained.folder / "export/splat.ply")["vertex"]
    means = _state(trained.path / "nerfstudio_models/step-000000029.ckpt")["pipeline"][
        "_model.gauss_params.means"
    ]
    np.testing.assert_allclose(vertices["x"], means[:, 0].numpy(), rtol=1e-6)
    assert {"f_dc_0", "f_rest_44", "opacity", "scale_2", "rot_3"} <= set(vertices.data.dtype.names)


def test_p33_render_writes_a_video_and_frames(trained: Run):
    """With no ffmpeg on PATH but the one of imageio-ffmpeg."""
    printed = succeed(
        "ns-render", "interpolate", "--load-config", trained.config, "--output-path", "path.mp4",
        "--interpolation-steps", 3, "--pose-source", "train", "--frame-rate", 6, cwd=trained.folder,
    )  # fmt: skip
    assert "Error" not in printed
    import av

    with av.open(str(trained.folder / "path.mp4")) as video:
        frames = [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]
    # Real views only: 9 gaps of 3 steps between the 10 training views.
    assert len(frames) in (27, 30)
    assert frames[0].shape == (64, 96, 3)
    assert np.std(frames[0]) > 5


def test_render_of_the_dataset(trained: Run):
    succeed(
        "ns-render", "dataset", "--load-config", trained.config, "--output-path", "renders",
        "--rendered-output-names", "rgb", cwd=trained.folder,
    )  # fmt: skip
    assert len(list((trained.folder / "renders/test/rgb").iterdir())) == 2


def test_a_plain_splatfacto_run_of_ours_has_no_pseudo_views(trained: Run):
    printed = succeed(
        "ns-train", "ps4pro-splatfacto", "--data", "scene", "--vis", "tensorboard",
        "--max-num-iterations", 2, "--timestamp", "plain",
        "--pipeline.datamanager.pseudo-views.enabled", "False", cwd=trained.folder,
    )  # fmt: skip
    assert "pseudo view" not in printed


def test_a_checkpoint_folder_without_checkpoints_is_one_line(trained: Run, tmp_path):
    result = run(
        "ns-train", "ps4pro-splatfacto", "--data", "scene", "--vis", "tensorboard",
        "--load-dir", tmp_path, "--timestamp", "bad", cwd=trained.folder,
    )  # fmt: skip
    assert result.returncode == 1
    assert "holds no checkpoint" in result.stdout.splitlines()[-1]
    assert not trained.path.with_name("bad").exists()
