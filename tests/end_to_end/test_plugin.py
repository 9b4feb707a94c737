# SPDX-License-Identifier: Apache-2.0
"""The plugin among nerfstudio's own methods."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from nerfstudio.configs import method_configs as registry
from nerfstudio.models.splatfacto import SplatfactoModel, SplatfactoModelConfig
from torchvision.models import alexnet

from tests.conftest import write_capture
from tests.end_to_end.conftest import run, succeed

all_methods: dict[str, Any] = dict(registry.all_methods)
method_configs: dict[str, Any] = dict(registry.method_configs)

OPTIONAL = ("numba", "pycolmap", "imageio_ffmpeg", "embreex", "diffusers", "transformers", "ray")


def test_p14_entry_points_carry_the_name_of_their_method():
    entries = importlib.metadata.entry_points(group="nerfstudio.method_configs")
    ours = [entry for entry in entries if entry.value.startswith("ps4pro_nerfstudio")]
    assert ours
    for entry in ours:
        assert entry.load().config.method_name == entry.name


def test_p37_our_model_is_a_splatfacto_model():
    target = all_methods["ps4pro-splatfacto"].pipeline.model._target
    assert issubclass(target, SplatfactoModel)


def test_nerfstudios_own_methods_are_untouched():
    assert type(method_configs["splatfacto"].pipeline.model) is SplatfactoModelConfig
    assert method_configs["splatfacto"].pipeline.model._target is SplatfactoModel
    assert all_methods["nerfacto"] is method_configs["nerfacto"]
    assert method_configs["splatfacto"].viewer.websocket_host == "0.0.0.0"


def test_the_viewer_listens_on_loopback_and_evaluation_stays_on():
    config = all_methods["ps4pro-splatfacto"]
    assert config.viewer.websocket_host == "127.0.0.1"
    assert config.is_tensorboard_enabled()  # p36: the viewer alone switches evaluation off


def _python(code: str, **env) -> subprocess.CompletedProcess:
    import os

    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        capture_output=True, text=True, env={**os.environ, **env}, timeout=300, check=False,
    )  # fmt: skip


def test_p31_listing_methods_imports_nothing_heavy():
    """Only what nerfstudio has imported itself by then may be loaded."""
    code = """
import importlib.metadata as metadata, sys
find = metadata.entry_points
metadata.entry_points = lambda **query: metadata.EntryPoints()
import nerfstudio.configs.method_configs
before = set(sys.modules)
metadata.entry_points = find
import ps4pro_nerfstudio.methods
added = {name.split(".")[0] for name in set(sys.modules) - before}
print(sorted(added - {"ps4pro_nerfstudio"}))
"""
    printed = _python(code)
    assert printed.returncode == 0, printed.stderr
    heavy = {*OPTIONAL, "trimesh", "skimage", "scipy", "matplotlib", "cv2", "torchmetrics"}
    added = set(eval(printed.stdout.splitlines()[-1]))
    assert not added & (heavy - {"imageio_ffmpeg"}), added


def _broken_packages(folder: Path) -> str:
    for name in OPTIONAL:
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").write_text("raise ImportError('broken on purpose')\n")
    return str(folder)


@pytest.mark.e2e
def test_p31_a_broken_optional_package_breaks_no_command(tmp_path):
    broken = _broken_packages(tmp_path / "broken")
    assert "broken on purpose" in _python("import numba", PYTHONPATH=broken).stderr
    for method in ((), ("ps4pro-splatfacto",)):
        printed = succeed("ns-train", *method, "-h", cwd=tmp_path, env={"PYTHONPATH": broken})
        assert "ps4pro-splatfacto" in printed


@pytest.mark.e2e
def test_completion_for_shells_knows_our_method(tmp_path):
    """What ns-install-cli writes for bash."""
    printed = succeed("ns-train", "--tyro-print-completion", "bash", cwd=tmp_path)
    assert "ps4pro-splatfacto" in printed


@pytest.mark.e2e
def test_nerfacto_still_trains(tmp_path):
    """On the CPU, with AlexNet weights that mean nothing but spare its LPIPS a download."""
    weights = tmp_path / "hub/checkpoints/alexnet-owt-7be5be79.pth"
    weights.parent.mkdir(parents=True)
    torch.save(alexnet(weights=None).state_dict(), weights)
    write_capture(tmp_path / "scene")
    succeed(
        "ns-train", "nerfacto", "--data", "scene", "--vis", "tensorboard",
        "--machine.device-type", "cpu", "--max-num-iterations", 2, "--timestamp", "run",
        "--pipeline.model.implementation", "torch",
        "--pipeline.datamanager.train-num-rays-per-batch", 64, cwd=tmp_path,
        env={"TORCH_HOME": str(tmp_path)},
    )  # fmt: skip
    run_folder = tmp_path / "outputs/scene/nerfacto/run"
    # Its checkpoint holds NumPy floats: without the plugin torch refuses to load it.
    succeed(
        "ns-eval", "--load-config", run_folder / "config.yml", "--output-path", "metrics.json",
        cwd=tmp_path, env={"TORCH_HOME": str(tmp_path)},
    )  # fmt: skip
    assert (tmp_path / "metrics.json").is_file()


@pytest.mark.e2e
def test_splatfacto_reaches_its_own_code(tmp_path):
    """On a GPU it trains; on the CPU it ends where upstream ends without us, in its `.cuda()`."""
    write_capture(tmp_path / "scene")
    weights = tmp_path / "hub/checkpoints/alexnet-owt-7be5be79.pth"
    weights.parent.mkdir(parents=True)
    torch.save(alexnet(weights=None).state_dict(), weights)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    result = run(
        "ns-train", "splatfacto", "--data", "scene", "--vis", "tensorboard",
        "--machine.device-type", device, "--max-num-iterations", 2, cwd=tmp_path,
        env={"TORCH_HOME": str(tmp_path), "CUDA_HOME": "/nonexistent"},
    )  # fmt: skip
    if device == "cuda":
        assert result.returncode == 0, result.stdout[-3000:]
    else:
        assert "models/splatfacto.py" in result.stdout or "open3d" in result.stdout
        assert "ps4pro_nerfstudio" not in result.stdout.split("Traceback")[-1]
