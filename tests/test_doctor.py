# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import sys
from types import ModuleType

import torch

from ps4pro_nerfstudio import doctor


def _findings() -> dict[str, doctor.Finding]:
    return {finding.name: finding for finding in doctor.examine()}


def test_json_holds_every_finding(capsys):
    doctor.print_report(as_json=True)
    printed = json.loads(capsys.readouterr().out)
    groups = {finding["group"] for finding in printed}
    assert groups == {"versions", "devices", "programs", "weights", "caches"}
    for finding in printed:
        assert finding["state"] in ("ok", "optional", "missing")
        # What is not there comes with something to do about it.
        assert finding["state"] == "ok" or finding["advice"]


def test_versions_and_rasterizer_are_this_machines():
    findings = _findings()
    assert findings["torch (tensors)"].value == torch.__version__.split("+")[0] or findings[
        "torch (tensors)"
    ].value.startswith(torch.__version__.split("+")[0])
    expected = "gsplat on cuda" if torch.cuda.is_available() else "numba on cpu"
    assert findings["rasterizer"].value == expected


def test_absent_weights_are_reported_with_their_place(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    finding = _findings()["LPIPS (alex)"]
    assert finding.state == "optional"
    assert "alexnet-owt-7be5be79.pth" in finding.advice
    assert str(tmp_path) in finding.advice


def test_a_part_that_does_not_load_is_a_finding(monkeypatch):
    monkeypatch.setitem(sys.modules, "open3d", None)
    monkeypatch.setitem(sys.modules, "torchvision", None)
    findings = _findings()
    assert findings["open3d (ns-export)"].state == "optional"
    assert findings["torch and torchvision fit"].state == "missing"


def test_advice_is_printed_with_its_brackets(monkeypatch, capsys):
    """Square brackets are markup to the table's library; an extra's name must survive it."""
    advice = 'pip install "ps4pro-nerfstudio[ray]"'
    finding = doctor.Finding("versions", "ray", "absent", "optional", advice)
    monkeypatch.setattr(doctor, "examine", lambda: [finding])
    monkeypatch.setenv("COLUMNS", "200")
    doctor.print_report()
    assert advice in capsys.readouterr().out


def test_a_gpu_without_gsplats_kernels_is_told_what_to_install(monkeypatch):
    monkeypatch.setattr(
        "ps4pro_nerfstudio.splatting.api.chosen_rasterizer", lambda device: "gsplat"
    )
    backend = ModuleType("gsplat.cuda._backend")
    backend._C = None  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "gsplat.cuda._backend", backend)
    found = _findings()["rasterizer"]
    assert found.state == "missing"
    assert "kernels" in found.value
    assert "CUDA toolkit" in found.advice
