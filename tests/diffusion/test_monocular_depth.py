# SPDX-License-Identifier: Apache-2.0
"""Depth networks: what they are shown, the gradient through them, and which one is opened."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ps4pro_nerfstudio.diffusion.catalogue import DEPTH
from ps4pro_nerfstudio.diffusion.monocular_depth import (
    MonocularDepth,
    MonocularDepthConfig,
    network_size,
    tells_depth,
)
from ps4pro_nerfstudio.diffusion.weights import open_depth_prior
from ps4pro_nerfstudio.messages import InputError, MissingPartError
from tests.diffusion.test_weights import cut_short

transformers = pytest.importorskip("transformers")


def tiny_depth_anything() -> Any:
    backbone = transformers.Dinov2Config(
        image_size=56, patch_size=14, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        mlp_ratio=2, out_indices=[1, 2], reshape_hidden_states=False, apply_layernorm=True,
    )  # fmt: skip
    sizes = transformers.DepthAnythingConfig(
        backbone_config=backbone, reassemble_hidden_size=16, patch_size=14,
        reassemble_factors=[1, 0.5], neck_hidden_sizes=[8, 16], fusion_hidden_size=8,
        head_hidden_size=8,
    )  # fmt: skip
    network = _seeded(transformers.DepthAnythingForDepthEstimation, sizes)
    # Its last layer cuts off what is negative; random weights must not end there.
    torch.nn.init.constant_(network.head.conv3.bias, 5.0)
    return network


def tiny_dpt() -> Any:
    sizes = transformers.DPTConfig(
        image_size=32, patch_size=16, hidden_size=16, num_hidden_layers=4, num_attention_heads=2,
        intermediate_size=16, backbone_out_indices=[0, 1, 2, 3], neck_hidden_sizes=[8, 8, 8, 8],
        fusion_hidden_size=8, is_hybrid=False,
    )  # fmt: skip
    return _seeded(transformers.DPTForDepthEstimation, sizes)


def _seeded(kind: Any, sizes: Any) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        network = kind(sizes)
        for weight in network.parameters():
            # The library's start is so small that all outputs are alike.
            torch.nn.init.normal_(weight, std=0.15)
    return network


def image(height: int = 40, width: int = 56) -> torch.Tensor:
    return torch.rand(3, height, width, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("make", [tiny_depth_anything, tiny_dpt])
def test_the_gradient_of_the_image_is_that_of_differences(make) -> None:
    """Along a random direction."""
    prior = MonocularDepth(make(), "tiny", MonocularDepthConfig(size=28), "cpu")
    direction = torch.randn(3, 40, 56, generator=torch.Generator().manual_seed(2))
    weights_of_pixels = torch.randn(40, 56, generator=torch.Generator().manual_seed(3))

    def value(picture: torch.Tensor) -> torch.Tensor:
        return (prior.inverse_depth(picture) * weights_of_pixels).sum()

    leaf = image().requires_grad_(True)
    (gradient,) = torch.autograd.grad(value(leaf), leaf)
    assert float(gradient.abs().max()) > 0
    step = 2e-3
    difference = (value(image() + step * direction) - value(image() - step * direction)) / 2 / step
    assert float((gradient * direction).sum()) == pytest.approx(float(difference), rel=0.05)
    assert all(weight.grad is None for weight in prior._network.parameters())
    assert not any(weight.requires_grad for weight in prior._network.parameters())


@pytest.mark.parametrize("shape", [(40, 56), (56, 40), (33, 61)])
def test_depth_has_the_size_of_the_image(shape: tuple[int, int]) -> None:
    prior = MonocularDepth(tiny_depth_anything(), "tiny", MonocularDepthConfig(size=28), "cpu")
    assert prior.inverse_depth(image(*shape)).shape == shape
    assert prior.inverse_offset is None
    assert not isinstance(prior, torch.nn.Module)


def recording(model_type: str, **sizes: Any) -> tuple[Any, list[torch.Tensor]]:
    shown: list[torch.Tensor] = []

    class Network(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.config = SimpleNamespace(model_type=model_type, **sizes)

        def forward(self, pixel_values: torch.Tensor) -> Any:
            shown.append(pixel_values)
            return SimpleNamespace(predicted_depth=pixel_values.mean(dim=1))

    return Network(), shown


def test_depth_anything_is_shown_multiples_of_its_patch_with_imagenets_normalisation() -> None:
    network, shown = recording("depth_anything", patch_size=14, depth_estimation_type="relative")
    prior = MonocularDepth(network, "fake", MonocularDepthConfig(size=518), "cpu")
    grey = torch.tensor([0.485, 0.456, 0.406]) + 2 * torch.tensor([0.229, 0.224, 0.225])
    depth = prior.inverse_depth(grey[:, None, None].expand(3, 378, 504))
    assert shown[0].shape == (1, 3, 518, 686)
    torch.testing.assert_close(shown[0], torch.full_like(shown[0], 2.0), atol=1e-5, rtol=0)
    torch.testing.assert_close(depth, torch.full((378, 504), 2.0), atol=1e-5, rtol=0)


def test_dpt_hybrid_is_shown_its_training_size_and_has_the_papers_offset() -> None:
    network, shown = recording("dpt", is_hybrid=True, backbone_config=object(), image_size=384)
    prior = MonocularDepth(network, "fake", MonocularDepthConfig(), "cpu")
    prior.inverse_depth(torch.full((3, 30, 40), 0.75))
    assert shown[0].shape == (1, 3, 384, 384)
    torch.testing.assert_close(shown[0], torch.full_like(shown[0], 0.5))
    assert prior.inverse_offset == 200.0


@pytest.mark.parametrize(
    "height, width, expected", [(378, 504, (518, 686)), (504, 378, (686, 518)), (9, 9, (518, 518))]
)
def test_sizes_keep_the_aspect_ratio(height: int, width: int, expected: tuple[int, int]) -> None:
    sizes = SimpleNamespace(model_type="depth_anything", patch_size=14)
    assert network_size(sizes, height, width, 518) == expected
    rows, columns = network_size(sizes, height, width, 1)
    assert rows >= 14
    assert columns >= 14


@pytest.mark.parametrize(
    "model_type, sizes, words",
    [
        ("glpn", {}, "type 'glpn'"),
        ("depth_anything", {"patch_size": 14, "depth_estimation_type": "metric"}, "metric depth"),
    ],
)
def test_other_networks_are_refused(model_type: str, sizes: dict[str, Any], words: str) -> None:
    network, _ = recording(model_type, **sizes)
    with pytest.raises(InputError, match=words):
        MonocularDepth(network, "mine", MonocularDepthConfig(), "cpu")


def test_sizes_below_one_are_refused() -> None:
    network, _ = recording("depth_anything", patch_size=14)
    with pytest.raises(InputError, match="positive"):
        MonocularDepth(network, "mine", MonocularDepthConfig(size=0), "cpu")


def test_one_depth_for_all_or_values_without_end_tell_nothing() -> None:
    slope = torch.linspace(0.0, 1.0, 60).reshape(6, 10)
    assert tells_depth(slope)
    assert tells_depth(200.0 + slope)
    assert tells_depth(1e-3 * slope)
    for flat in (torch.zeros(6, 10), torch.full((6, 10), 3.0), 3.0 + 1e-5 * slope):
        assert not tells_depth(flat)
    for value in (torch.nan, torch.inf, -torch.inf):
        spoiled = slope.clone()
        spoiled[0, 0] = value
        assert not tells_depth(spoiled)


def test_a_network_that_is_plugged_in_is_said(
    monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    prior = SimpleNamespace(name="ours")
    monkeypatch.setitem(sys.modules, "my_depth", SimpleNamespace(make=lambda *_: prior))
    assert open_depth_prior("my_depth:make", MonocularDepthConfig(), "cpu") is prior
    assert said == ["depth of single images: ours (my_depth:make)"]


def test_a_broken_library_stops_only_who_insists_on_a_network(
    hub_cache: Path, monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    put_in_cache(hub_cache, "depth-anything", tiny_depth_anything())
    broken = SimpleNamespace(__spec__=sys.modules["transformers"].__spec__)
    monkeypatch.setitem(sys.modules, "transformers", broken)
    assert open_depth_prior("auto", MonocularDepthConfig(), "cpu") is None
    (line,) = said
    assert "triangulated" in line
    assert "pip install -U diffusers transformers" in line
    with pytest.raises(MissingPartError, match="transformers cannot be used"):
        open_depth_prior("depth-anything", MonocularDepthConfig(), "cpu")


@pytest.mark.parametrize("nested", [False, True])
def test_a_folder_is_loaded_with_its_own_normalisation(
    tmp_path: Path, said: list[str], nested: bool
) -> None:
    network = tiny_depth_anything()
    place = tmp_path / "depth" if nested else tmp_path
    network.save_pretrained(place)
    statistics = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
    (place / "preprocessor_config.json").write_text(json.dumps(statistics))
    prior = open_depth_prior(str(tmp_path), MonocularDepthConfig(size=28), "cpu")
    assert isinstance(prior, MonocularDepth)
    expected = MonocularDepth(
        network, "same", MonocularDepthConfig(size=28), "cpu", ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    )
    torch.testing.assert_close(prior.inverse_depth(image()), expected.inverse_depth(image()))
    assert prior.name == str(place)
    assert said == [f"depth of single images: {place}"]


def put_in_cache(cache: Path, choice: str, network: Any) -> None:
    repository = cache / f"models--{DEPTH[choice].hub_id.replace('/', '--')}"
    network.save_pretrained(repository / "snapshots" / "abc")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")


def test_auto_takes_whichever_network_is_cached(hub_cache: Path, said: list[str]) -> None:
    assert open_depth_prior("auto", MonocularDepthConfig(), "cpu") is None
    put_in_cache(hub_cache, "dpt-hybrid", tiny_dpt())
    prior = open_depth_prior("auto", MonocularDepthConfig(), "cpu")
    assert prior is not None
    assert prior.name == "Intel/dpt-hybrid-midas@abc"
    put_in_cache(hub_cache, "depth-anything", tiny_depth_anything())
    prior = open_depth_prior("auto", MonocularDepthConfig(), "cpu")
    assert prior is not None
    assert prior.name.startswith(DEPTH["depth-anything"].hub_id)
    assert "triangulated" in said[0]
    assert DEPTH["depth-anything"].hub_id in said[0]
    assert "ps4pro fetch-weights ipsm" in said[0]
    assert len(said) == 3


def test_broken_weights_name_their_cause_and_for_auto_the_way_out(hub_cache: Path) -> None:
    put_in_cache(hub_cache, "depth-anything", tiny_depth_anything())
    (file,) = hub_cache.rglob("model.safetensors")
    cut_short(file)
    endings = {}
    for choice in ("auto", "depth-anything"):
        with pytest.raises(InputError, match=r"as a depth network: .*fully covered") as raised:
            open_depth_prior(choice, MonocularDepthConfig(), "cpu")
        endings[choice] = str(raised.value).endswith("--pipeline.model.depth triangulated")
        assert "\n" not in str(raised.value)
    assert endings == {"auto": True, "depth-anything": False}


@pytest.mark.parametrize("choice", ["depth-anything", "dpt-hybrid"])
def test_an_explicit_network_without_weights_is_an_error(hub_cache: Path, choice: str) -> None:
    with pytest.raises(MissingPartError) as raised:
        open_depth_prior(choice, MonocularDepthConfig(), "cpu")
    message = str(raised.value)
    assert "\n" not in message
    for word in (
        DEPTH[choice].hub_id,
        f"fetch-weights ipsm --depth {choice}",
        "--pipeline.model.depth FOLDER",
        "ps4pro-nerfstudio[diffusion]",
    ):
        assert word in message


def test_triangulated_is_silent_and_needs_no_package(
    monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert open_depth_prior("triangulated", MonocularDepthConfig(), "cpu") is None
    assert said == []
    assert open_depth_prior("auto", MonocularDepthConfig(), "cpu") is None
    assert "transformers" in said[0]
    with pytest.raises(MissingPartError, match="Depth-Anything-V2-Small"):
        open_depth_prior("depth-anything", MonocularDepthConfig(), "cpu")


def test_folders_without_a_network_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"config.json is missing; `ps4pro fetch-weights ipsm"):
        open_depth_prior(str(tmp_path), MonocularDepthConfig(), "cpu")
    (tmp_path / "config.json").write_text('{"model_type": "nothing-known"}')
    (tmp_path / "model.safetensors").write_bytes(b"no")
    with pytest.raises(InputError, match="cannot be loaded as a depth network") as raised:
        open_depth_prior(str(tmp_path), MonocularDepthConfig(), "cpu")
    assert "\n" not in str(raised.value)
    with pytest.raises(InputError, match="no such folder"):
        open_depth_prior(str(tmp_path / "nowhere"), MonocularDepthConfig(), "cpu")
