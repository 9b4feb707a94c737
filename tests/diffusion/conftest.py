# SPDX-License-Identifier: Apache-2.0
"""Fakes of the denoisers, and tiny pipelines written as a user's folders."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ps4pro_nerfstudio.diffusion import weights
from ps4pro_nerfstudio.diffusion.inpainting_score import InpaintingScoreConfig
from ps4pro_nerfstudio.diffusion.parts import DiffusionParts

SIDE = 32
"""Pixels of the square that the fakes score; 8 per latent."""

ALPHA_BAR = torch.linspace(0.99, 0.05, 100)


class LinearVAE(nn.Module):
    """Mean over 8 x 8 pixels, each latent a fixed mix of the colours; no spread."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Parameter(torch.randn(4, 3, generator=torch.Generator().manual_seed(0)))
        self.config = SimpleNamespace(
            block_out_channels=(1, 1, 1, 1), latent_channels=4, scaling_factor=0.5
        )

    def encode(self, picture: Tensor) -> Any:
        mean = torch.einsum("lc,bchw->blhw", self.mix, nn.functional.avg_pool2d(picture, 8))
        posterior = SimpleNamespace(mean=mean, std=torch.zeros_like(mean))
        return SimpleNamespace(latent_dist=posterior)


class FakeUNet(nn.Module):
    """Records its inputs; predicts the noise of a fixed clean latent, or random noise."""

    def __init__(self, channels: int, clean: Tensor | None = None, seed: int = 0) -> None:
        super().__init__()
        self.config = SimpleNamespace(in_channels=channels, cross_attention_dim=8)
        self.gain = nn.Parameter(torch.ones(()))
        self.clean = clean
        self.seed = seed
        self.calls: list[tuple[Tensor, Tensor, Tensor]] = []
        self.outputs: list[Tensor] = []

    def forward(self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor) -> Any:
        assert not torch.is_grad_enabled()
        self.calls.append((sample.clone(), timestep.clone(), encoder_hidden_states.clone()))
        noisy = sample[:, :4]
        if self.clean is None:
            output = torch.randn(noisy.shape, generator=torch.Generator().manual_seed(self.seed))
        else:
            alpha_bar = ALPHA_BAR[int(timestep)]
            output = (noisy - alpha_bar.sqrt() * self.clean) / (1 - alpha_bar).sqrt()
        self.outputs.append(output)
        return SimpleNamespace(sample=self.gain * output)


def fake_parts(inpaint: Tensor | None = None, text: Tensor | None = None) -> DiffusionParts:
    """Fakes that work together; they predict the clean latents given, or noise without."""
    return DiffusionParts(
        name="fakes",
        vae=LinearVAE(),
        inpainting_unet=FakeUNet(9, inpaint, seed=1),
        text_unet=FakeUNet(4, text, seed=2),
        alphas_cumprod=ALPHA_BAR,
        embeddings=torch.arange(2 * 5 * 8.0).reshape(2, 5, 8),
    )


def fake_config(**changes: Any) -> InpaintingScoreConfig:
    return replace(InpaintingScoreConfig(size=SIDE), **changes)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pictures(height: int = 24, width: int = 40) -> tuple[Tensor, Tensor, Tensor]:
    """An image, a warped photograph and a mask whose left half is visible."""
    generator = seeded(5)
    image, warped = (torch.rand(3, height, width, generator=generator) for _ in range(2))
    visible = torch.zeros(height, width, dtype=torch.bool)
    visible[:, : width // 2] = True
    return image, warped, visible


def write_tokenizer(folder: Path) -> None:
    """A tokenizer of single characters, in the files that Stable Diffusion's comes in."""
    folder.mkdir(parents=True)
    characters = [chr(c) for c in (*range(33, 127), *range(161, 173), *range(174, 256))]
    tokens = [*characters, *(c + "</w>" for c in characters), "<|startoftext|>", "<|endoftext|>"]
    tokens.append("an</w>")
    vocabulary = {token: index for index, token in enumerate(tokens)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\na n</w>\n")
    settings = {"model_max_length": 77, "tokenizer_class": "CLIPTokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def write_pipelines(folder: Path) -> Path:
    """Tiny random pipelines as `inpainting` and `text`, half precision there, full here."""
    from transformers import CLIPTextConfig, CLIPTextModel

    from ps4pro_nerfstudio.diffusion.tiny import tiny_parts, training_schedule

    parts = tiny_parts()
    inpainting, text = folder / "inpainting", folder / "text"
    write_tokenizer(inpainting / "tokenizer")
    sizes = CLIPTextConfig(
        vocab_size=500, hidden_size=32, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=77,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        encoder = CLIPTextModel(sizes)
    encoder.half().save_pretrained(inpainting / "text_encoder", variant="fp16")
    parts.vae.half().save_pretrained(inpainting / "vae", variant="fp16")
    parts.inpainting_unet.half().save_pretrained(inpainting / "unet", variant="fp16")
    parts.text_unet.save_pretrained(text / "unet")
    for place in (inpainting, text):
        training_schedule().save_pretrained(place / "scheduler")
    return folder


@pytest.fixture(scope="session")
def pipelines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with tiny pipelines; read only, copy it to change it."""
    pytest.importorskip("diffusers")
    pytest.importorskip("transformers")
    return write_pipelines(tmp_path_factory.mktemp("pipelines"))


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Lines printed by `weights`."""
    lines: list[str] = []
    monkeypatch.setattr(weights, "say", lines.append)
    monkeypatch.setattr(weights, "warn", lines.append)
    return lines


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty Hugging Face cache of the test's own."""
    constants = pytest.importorskip("huggingface_hub.constants")
    folder = tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    return folder
