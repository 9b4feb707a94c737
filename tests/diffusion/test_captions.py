# SPDX-License-Identifier: Apache-2.0
"""Prompts: the user's, else a caption of the photograph, else one that fits every scene."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from ps4pro_nerfstudio.diffusion import captions, weights
from ps4pro_nerfstudio.diffusion.captions import GENERIC_PROMPT, complete_prompt, write_prompt
from ps4pro_nerfstudio.diffusion.catalogue import CAPTION, licences
from ps4pro_nerfstudio.diffusion.inpainting_score import InpaintingScoreConfig
from ps4pro_nerfstudio.diffusion.weights import open_score_prior
from ps4pro_nerfstudio.messages import InputError, MissingPartError
from tests.diffusion.test_weights import COMMIT, INPAINTING, TEXT, cut_short, put_in_cache

_WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", "a", "photography", "of", "fox")
_IMAGE_PX = 32


@pytest.fixture
def blip(tmp_path: Path) -> Path:
    """A BLIP with random weights whose every next word is "fox" until the tokens run out."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path / "blip"
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(_WORDS) + "\n")
    size = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    tokens = {"bos_token_id": 5, "eos_token_id": 3, "sep_token_id": 3, "pad_token_id": 0}
    text = {**size, **tokens, "vocab_size": len(_WORDS), "encoder_hidden_size": 16}
    sizes = transformers.BlipConfig(
        text_config=text,
        vision_config={**size, "image_size": _IMAGE_PX, "patch_size": 16},
        projection_dim=16,
    )
    torch.manual_seed(0)
    network = transformers.BlipForConditionalGeneration(sizes)
    with torch.no_grad():
        network.text_decoder.cls.predictions.bias.fill_(-100.0)
        network.text_decoder.cls.predictions.bias[_WORDS.index("fox")] = 100.0
    network.save_pretrained(folder)
    transformers.BlipProcessor(
        transformers.BlipImageProcessor(size={"height": _IMAGE_PX, "width": _IMAGE_PX}),
        transformers.BertTokenizerFast(str(folder / "vocab.txt"), bos_token="[DEC]"),
    ).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(pipelines: Path, tmp_path: Path) -> Path:
    """The tiny pipelines as a folder of the test's own."""
    return Path(shutil.copytree(pipelines, tmp_path / "own"))


@pytest.fixture
def photograph() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (24, 40, 3), dtype=np.uint8)


def prompt_of(folder: Path, photograph: np.ndarray | None, **settings: str) -> str:
    """What the prompt of a training with tiny pipelines becomes."""
    config = InpaintingScoreConfig(size=64, **settings)  # type: ignore[arg-type]
    open_score_prior(str(folder), config, "cpu", None if photograph is None else lambda: photograph)
    return config.prompt


def test_a_caption_begins_as_the_papers_and_is_the_same_each_time(
    blip: Path, photograph: np.ndarray
) -> None:
    prompt = write_prompt(blip, photograph, "cpu")
    assert prompt.startswith("a photography of fox fox")
    assert prompt.endswith("fox, realistic, 8k")
    assert write_prompt(blip, photograph, "cpu") == prompt


def test_the_users_words_come_first(
    folder: Path, blip: Path, photograph: np.ndarray, said: list[str]
) -> None:
    blip.rename(folder / "caption")
    assert prompt_of(folder, photograph, prompt="a bed") == "a bed, realistic, 8k"
    assert len(said) == 1


@pytest.mark.parametrize("words", ["a bed", "a bed.", " a bed ", "a bed, realistic, 8k"])
def test_each_prompt_ends_as_the_papers_once(words: str) -> None:
    assert complete_prompt(words) == "a bed, realistic, 8k"
    assert complete_prompt(GENERIC_PROMPT) == GENERIC_PROMPT


def test_a_caption_in_the_folder_comes_second(
    folder: Path, blip: Path, photograph: np.ndarray, said: list[str]
) -> None:
    blip.rename(folder / "caption")
    assert "fox fox" in prompt_of(folder, photograph)
    assert str(folder / "caption") in said[0]


def test_a_cached_network_is_found(
    folder: Path, blip: Path, photograph: np.ndarray, hub_cache: Path, said: list[str]
) -> None:
    put_in_cache(hub_cache, CAPTION, blip)
    assert "fox fox" in prompt_of(folder, photograph)
    name = f"{CAPTION.hub_id}@{COMMIT[:12]}"
    assert name in said[0]
    assert licences(name) == {CAPTION.hub_id: "BSD-3-Clause"}
    assert prompt_of(folder, photograph, caption_revision="other") == GENERIC_PROMPT


def test_a_broken_captioning_network_is_one_line_and_the_prior_stays(
    folder: Path, blip: Path, photograph: np.ndarray, said: list[str]
) -> None:
    cut_short(blip / "model.safetensors")
    blip.rename(folder / "caption")
    assert prompt_of(folder, photograph) == GENERIC_PROMPT
    line, loaded = said
    assert "\n" not in line
    assert "--pipeline.model.score.prompt" in line
    assert f"{folder / 'caption'} cannot be loaded" in line
    assert "not fully covered" in line
    assert loaded.startswith("score prior: ")


def test_without_the_class_that_captions_the_prior_stays(
    pipelines: Path,
    blip: Path,
    photograph: np.ndarray,
    hub_cache: Path,
    said: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Even for auto, which does without the prior where its own classes are missing."""
    for part, source in ((INPAINTING, pipelines / "inpainting"), (TEXT, pipelines / "text")):
        put_in_cache(hub_cache, part, source)
    put_in_cache(hub_cache, CAPTION, blip)

    def take(package: str, name: str) -> None:
        raise MissingPartError(f"{package} cannot be used (no {name})")

    monkeypatch.setattr(captions, "take", take)
    config = InpaintingScoreConfig(size=64)
    assert open_score_prior("auto", config, "cpu", lambda: photograph) is not None
    assert config.prompt == GENERIC_PROMPT
    (line,) = [line for line in said if line.startswith("prompt:")]
    assert "no BlipForConditionalGeneration" in line
    assert "--pipeline.model.score.prompt" in line


def test_without_either_the_prompt_fits_every_scene(
    folder: Path, photograph: np.ndarray, hub_cache: Path, said: list[str]
) -> None:
    del hub_cache  # empty
    assert prompt_of(folder, photograph) == GENERIC_PROMPT
    assert "--pipeline.model.score.prompt" in said[0]
    assert "--parts caption" in said[0]


def test_a_folder_that_holds_no_captioning_network_is_one_line(
    tmp_path: Path, photograph: np.ndarray
) -> None:
    pytest.importorskip("transformers")
    with pytest.raises(InputError) as raised:
        write_prompt(tmp_path, photograph, "cpu")
    assert "\n" not in str(raised.value)


def test_missing_files_are_named(blip: Path) -> None:
    assert CAPTION.missing(blip) == []
    (blip / "tokenizer_config.json").unlink()
    assert CAPTION.missing(blip) == ["tokenizer_config.json"]
    assert weights.find_cached(CAPTION) is None
