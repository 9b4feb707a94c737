# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
import tyro

from ps4pro_nerfstudio import doctor
from ps4pro_nerfstudio.commands.fetch_weights import FetchWeights
from ps4pro_nerfstudio.diffusion.catalogue import CAPTION, DENOISERS, DEPTH, Part


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


ALL_PARTS = [*DENOISERS["sd-1.5"], *DENOISERS["sd-2"], *DEPTH.values(), CAPTION]


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty Hugging Face cache of the test's own."""
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    return tmp_path


def put_in_cache(cache: Path, part: Part) -> Path:
    """Store a part as the hub's client does, of empty files."""
    repository = cache / f"models--{part.hub_id.replace('/', '--')}"
    snapshot = repository / "snapshots" / "abc"
    for name in part.patterns(part.best_variant("fp16")):
        (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
        (snapshot / name).touch()
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    return snapshot


def _priors() -> list[doctor.Finding]:
    return [finding for finding in doctor._weights() if finding.name.startswith("ipsm ")]


def _fetched_by(command: str) -> list[Part]:
    """What a printed command fetches."""
    program, name, *arguments = shlex.split(command)
    assert (program, name) == ("ps4pro", "fetch-weights")
    fetch = tyro.cli(FetchWeights, args=arguments)
    known = (*DENOISERS[fetch.family], DEPTH[fetch.depth], CAPTION)
    return [part for part in known if part.role in fetch.parts]


@pytest.mark.usefixtures("hub_cache")
def test_absent_weights_of_priors_are_optional_and_come_with_their_command():
    findings = _priors()
    assert [_fetched_by(finding.advice) for finding in findings] == [[part] for part in ALL_PARTS]
    assert {finding.state for finding in findings} == {"optional"}
    assert len({finding.name for finding in findings}) == len(ALL_PARTS)


def test_cached_weights_of_priors_are_shown_with_their_place(hub_cache: Path):
    text, depth = DENOISERS["sd-2"][1], DEPTH["dpt-hybrid"]
    places = {part.hub_id: str(put_in_cache(hub_cache, part)) for part in (text, depth)}
    found = {finding.name: finding for finding in _priors() if finding.state == "ok"}
    assert {finding.value for finding in found.values()} == set(places.values())
    assert set(found) == {"ipsm text (sd-2)", "ipsm depth (dpt-hybrid)"}


def test_weights_of_priors_cannot_be_looked_for_without_the_extra(monkeypatch: pytest.MonkeyPatch):
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(__spec__=hub.__spec__))
    for finding in _priors():
        assert finding.state == "optional"
        assert "pip install -U" in finding.advice
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    for finding in _priors():
        assert finding.state == "optional"
        assert '"ps4pro-nerfstudio[diffusion]", then ps4pro fetch-weights ipsm' in finding.advice


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
