# SPDX-License-Identifier: Apache-2.0
"""What is opened for each choice, and the one line said when something is missing."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ps4pro_nerfstudio.diffusion import weights
from ps4pro_nerfstudio.diffusion.catalogue import DENOISERS, Part, licences
from ps4pro_nerfstudio.diffusion.inpainting_score import InpaintingScoreConfig, InpaintingScorePrior
from ps4pro_nerfstudio.diffusion.weights import (
    check_score_weights,
    find_cached,
    open_score_prior,
)
from ps4pro_nerfstudio.messages import InputError, MissingPartError
from tests.diffusion.conftest import pictures, seeded

COMMIT = "0123456789abcdef0123456789abcdef01234567"
INPAINTING, TEXT = DENOISERS["sd-1.5"]


def put_in_cache(cache: Path, part: Part, source: Path) -> Path:
    """Store a part as the hub's client does; returns the folder of the snapshot."""
    repository = cache / f"models--{part.hub_id.replace('/', '--')}"
    snapshot = repository / "snapshots" / COMMIT
    shutil.copytree(source, snapshot)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    return snapshot


def config(**changes: Any) -> InpaintingScoreConfig:
    return InpaintingScoreConfig(size=64, **changes)


def one_line(error: BaseException) -> str:
    message = str(error)
    assert "\n" not in message
    return message


def test_off_is_silent(said: list[str]) -> None:
    assert open_score_prior("off", config(), "cpu") is None
    assert said == []


def test_a_folder_is_loaded_and_scores(pipelines: Path, said: list[str]) -> None:
    """Half-precision weights for one part, full for the other, read into float32."""
    settings = config(prompt="an a")
    prior = open_score_prior(str(pipelines), settings, "cpu")
    assert isinstance(prior, InpaintingScorePrior)
    assert prior.config is settings
    assert "inpainting" in prior.name
    assert said == [f"score prior: {prior.name}"]
    score = prior.score(*pictures(), seeded())
    assert torch.isfinite(score.gradient).all()
    assert float(score.gradient.abs().max()) > 0
    weight = next(prior._parts.inpainting_unet.parameters())
    assert weight.dtype == torch.float32
    assert torch.equal(weight, weight.half().float())  # Stored with half precision.


def test_the_prompt_reaches_the_branch_with_text_only(pipelines: Path, said: list[str]) -> None:
    def embeddings(**changes: str) -> torch.Tensor:
        prior = open_score_prior(str(pipelines), config(**changes), "cpu")
        assert isinstance(prior, InpaintingScorePrior)
        return prior._embeddings

    plain = embeddings(prompt="an")
    assert plain.shape == (2, 77, 32)
    other = embeddings(prompt="an a")
    assert torch.equal(plain[0], other[0])
    assert not torch.allclose(plain[1], other[1])
    # Words cannot make the text longer than the encoder reads.
    negative = embeddings(prompt="an", negative_prompt="blurry " * 100)
    torch.testing.assert_close(negative[1], plain[1])
    assert not torch.allclose(negative[0], plain[0])


def test_auto_takes_what_the_cache_holds(
    pipelines: Path, hub_cache: Path, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    put_in_cache(hub_cache, INPAINTING, pipelines / "inpainting")
    put_in_cache(hub_cache, TEXT, pipelines / "text")
    found = find_cached(TEXT)
    assert found is not None
    assert found.name == f"{TEXT.hub_id}@{COMMIT[:12]}"
    loaded: list[Any] = []
    monkeypatch.setattr(weights, "_load_score", lambda *arguments: loaded.append(arguments))
    open_score_prior("auto", config(), "cuda")
    assert said == []
    open_score_prior("auto", config(), "cpu")
    (line,) = said
    assert "without a GPU" in line
    assert [arguments[3].type for arguments in loaded] == ["cuda", "cpu"]
    for inpainting, text, *_ in loaded:
        assert inpainting.name.startswith(INPAINTING.hub_id)
        assert text.name.startswith(TEXT.hub_id)


def test_stable_diffusion_is_used_even_on_a_cpu(
    pipelines: Path, hub_cache: Path, said: list[str]
) -> None:
    put_in_cache(hub_cache, INPAINTING, pipelines / "inpainting")
    put_in_cache(hub_cache, TEXT, pipelines / "text")
    prior = open_score_prior("stable-diffusion", config(), "cpu")
    assert prior is not None
    assert INPAINTING.hub_id in prior.name
    assert COMMIT[:12] in prior.name


def test_a_revision_that_is_not_here_is_not_replaced_by_another(
    pipelines: Path, hub_cache: Path
) -> None:
    put_in_cache(hub_cache, TEXT, pipelines / "text")
    assert find_cached(TEXT, "other") is None
    assert find_cached(TEXT, COMMIT) is not None


@pytest.mark.parametrize("lacking", ["both", "text", "a file"])
def test_missing_weights(pipelines: Path, hub_cache: Path, said: list[str], lacking: str) -> None:
    """Auto goes on after one line; an explicit choice is an error that names all ways out."""
    if lacking != "both":
        put_in_cache(hub_cache, INPAINTING, pipelines / "inpainting")
    if lacking == "a file":
        snapshot = put_in_cache(hub_cache, TEXT, pipelines / "text")
        (snapshot / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    assert open_score_prior("auto", config(), "cuda") is None
    (line,) = said
    with pytest.raises(MissingPartError) as raised:
        open_score_prior("stable-diffusion", config(), "cuda")
    message = one_line(raised.value)
    for text in (line, message):
        assert TEXT.hub_id in text
        assert (INPAINTING.hub_id in text) == (lacking == "both")
        assert "ps4pro fetch-weights ipsm" in text
    assert "--pipeline.model.diffusion FOLDER" in message
    assert 'pip install "ps4pro-nerfstudio[diffusion]"' in message


def test_the_other_family_is_named_in_the_advice(hub_cache: Path, said: list[str]) -> None:
    assert open_score_prior("auto", config(family="sd-2"), "cuda") is None
    assert "ps4pro fetch-weights ipsm --family sd-2" in said[0]


@pytest.mark.parametrize("package", ["diffusers", "transformers", "huggingface_hub"])
def test_missing_extra(
    package: str, monkeypatch: pytest.MonkeyPatch, said: list[str], tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    assert open_score_prior("auto", config(), "cuda") is None
    (line,) = said
    for choice in ("stable-diffusion", str(tmp_path), "tiny-random"):
        with pytest.raises(MissingPartError) as raised:
            open_score_prior(choice, config(), "cpu")
        for text in (line, one_line(raised.value)):
            assert package in text
            assert 'pip install "ps4pro-nerfstudio[diffusion]"' in text
        assert INPAINTING.hub_id in str(raised.value)


@pytest.fixture
def broken_diffusers(monkeypatch: pytest.MonkeyPatch) -> None:
    """As when diffusers and transformers do not fit each other: no class can be imported."""
    diffusers = pytest.importorskip("diffusers")
    broken = SimpleNamespace(__spec__=diffusers.__spec__)
    monkeypatch.setitem(sys.modules, "diffusers", broken)


@pytest.mark.usefixtures("broken_diffusers")
def test_a_broken_package_is_one_line(pipelines: Path) -> None:
    """Known early, and with another advice than for an absent one, which pip would not change."""
    with pytest.raises(MissingPartError) as raised:
        check_score_weights(str(pipelines), config())
    assert "diffusers cannot be used" in one_line(raised.value)
    assert "pip install -U diffusers" in str(raised.value)


@pytest.mark.usefixtures("broken_diffusers")
def test_auto_goes_on_without_a_broken_package(
    pipelines: Path, hub_cache: Path, said: list[str]
) -> None:
    put_in_cache(hub_cache, INPAINTING, pipelines / "inpainting")
    put_in_cache(hub_cache, TEXT, pipelines / "text")
    check_score_weights("auto", config())
    assert said == []
    assert open_score_prior("auto", config(), "cuda") is None
    (line,) = said
    assert line.startswith("training without a score prior: diffusers cannot be used")
    assert "pip install -U diffusers" in line


def test_tiny_random_only_by_name_and_with_a_warning(said: list[str]) -> None:
    pytest.importorskip("diffusers")
    prior = open_score_prior("tiny-random", config(), "cpu")
    assert prior is not None
    assert prior.name == "tiny-random"
    (line,) = said
    assert "random weights" in line


def test_anything_else_may_be_plugged_in(monkeypatch: pytest.MonkeyPatch, said: list[str]) -> None:
    made: list[Any] = []
    prior = SimpleNamespace(name="ours")

    def make(*arguments: Any) -> Any:
        made.append(arguments)
        return prior

    monkeypatch.setitem(sys.modules, "my_priors", SimpleNamespace(make=make))
    settings = config()
    assert open_score_prior("my_priors:make", settings, "cpu") is prior
    assert said == ["score prior: ours (my_priors:make)"]
    assert made == [(settings, torch.device("cpu"))]
    for choice in ("my_priors:other", "no_such_module_here:make"):
        with pytest.raises(InputError) as raised:
            open_score_prior(choice, settings, "cpu")
        assert f"--pipeline.model.diffusion {choice}" in one_line(raised.value)


def test_an_unknown_choice_names_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(InputError) as raised:
        open_score_prior(str(tmp_path / "nowhere"), config(), "cpu")
    for name in ("nowhere", "auto", "stable-diffusion"):
        assert name in one_line(raised.value)


def edit_json(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def cut_short(file: Path) -> None:
    """Leave the first half of a file, as an interrupted copy does."""
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])


def cut_unet_short(folder: Path) -> None:
    cut_short(folder / "text/unet/diffusion_pytorch_model.safetensors")


def cut_text_encoder_short(folder: Path) -> None:
    cut_short(folder / "inpainting/text_encoder/model.fp16.safetensors")


def same_unet_twice(folder: Path) -> None:
    shutil.rmtree(folder / "inpainting" / "unet")
    shutil.copytree(folder / "text" / "unet", folder / "inpainting" / "unet")


def inpainting_as_text(folder: Path) -> None:
    shutil.rmtree(folder / "text" / "unet")
    shutil.copytree(folder / "inpainting" / "unet", folder / "text" / "unet")


def another_vae(folder: Path) -> None:
    target = folder / "text" / "vae"
    target.mkdir()
    shutil.copy(folder / "inpainting" / "vae" / "config.json", target)
    edit_json(target / "config.json", block_out_channels=[16, 32, 32])


def more_latents(folder: Path) -> None:
    edit_json(folder / "inpainting/vae/config.json", latent_channels=16)


@pytest.mark.parametrize(
    "spoil, words",
    [
        (same_unet_twice, "inpainting UNet takes 4 channels instead of 9"),
        (inpainting_as_text, "text UNet takes 9 channels instead of 4"),
        (more_latents, "the VAE has 16 latent channels, the UNets take 4"),
        (another_vae, "VAEs of the two denoisers differ"),
        (
            lambda folder: (folder / "text/unet/config.json").write_text("{"),
            "unet cannot be loaded",
        ),
    ],
)
def test_what_small_files_tell_is_known_early(
    pipelines: Path, tmp_path: Path, hub_cache: Path, spoil: Callable[[Path], Any], words: str
) -> None:
    """With auto, which nobody asked for, the way out is named as well."""
    folder = tmp_path / "mine"
    shutil.copytree(pipelines, folder)
    spoil(folder)
    with pytest.raises(InputError, match=words) as raised:
        check_score_weights(str(folder), config())
    assert "diffusion off" not in one_line(raised.value)
    put_in_cache(hub_cache, INPAINTING, folder / "inpainting")
    put_in_cache(hub_cache, TEXT, folder / "text")
    with pytest.raises(InputError, match=words) as raised:
        check_score_weights("auto", config())
    assert one_line(raised.value).endswith("--pipeline.model.diffusion off")


def test_what_is_found_at_loading_names_the_way_out_as_well(
    pipelines: Path, tmp_path: Path, hub_cache: Path
) -> None:
    folder = tmp_path / "mine"
    shutil.copytree(pipelines, folder)
    wider_text(folder)
    put_in_cache(hub_cache, INPAINTING, folder / "inpainting")
    put_in_cache(hub_cache, TEXT, folder / "text")
    with pytest.raises(InputError, match="reads text of width 32") as raised:
        open_score_prior("auto", config(), "cpu")
    assert one_line(raised.value).endswith("--pipeline.model.diffusion off")


def test_fitting_weights_and_choices_without_any_pass_early(
    pipelines: Path, hub_cache: Path, said: list[str]
) -> None:
    for choice in ("off", "auto", "tiny-random", "no_such_module_here:make", str(pipelines)):
        check_score_weights(choice, config())
    assert said == []


def wider_text(folder: Path) -> None:
    from transformers import CLIPTextConfig, CLIPTextModel

    shutil.rmtree(folder / "inpainting" / "text_encoder")
    sizes = CLIPTextConfig(
        vocab_size=500, hidden_size=48, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=77,
    )  # fmt: skip
    CLIPTextModel(sizes).save_pretrained(folder / "inpainting" / "text_encoder")


@pytest.mark.parametrize(
    "spoil, words",
    [
        (lambda folder: shutil.rmtree(folder / "text"), ("text/unet/config.json is missing",)),
        (lambda folder: shutil.rmtree(folder / "inpainting"), ("inpainting/unet/config.json",)),
        (
            lambda folder: shutil.rmtree(folder / "inpainting" / "tokenizer"),
            ("inpainting/tokenizer/vocab.json is missing", "fetch-weights ipsm --output"),
        ),
        (cut_unet_short, ("text/unet cannot be loaded: ", "not fully covered")),
        (cut_text_encoder_short, ("text_encoder cannot be loaded: ", "not fully covered")),
        (same_unet_twice, ("inpainting UNet takes 4 channels instead of 9",)),
        (inpainting_as_text, ("text UNet takes 9 channels instead of 4",)),
        (another_vae, ("VAEs of the two denoisers differ", "(8, 0.18215)", "(4, 0.18215)")),
        (wider_text, ("reads text of width 32", "writes 48")),
        (
            lambda folder: edit_json(
                folder / "text/scheduler/scheduler_config.json", beta_end=0.02
            ),
            ("different noise schedules",),
        ),
        (
            lambda folder: edit_json(
                folder / "text/scheduler/scheduler_config.json", prediction_type="sample"
            ),
            ("predicts 'sample'",),
        ),
    ],
)
def test_a_folder_that_does_not_fit_is_one_line(
    pipelines: Path, tmp_path: Path, spoil: Callable[[Path], None], words: tuple[str, ...]
) -> None:
    folder = tmp_path / "mine"
    shutil.copytree(pipelines, folder)
    spoil(folder)
    with pytest.raises(InputError) as raised:
        open_score_prior(str(folder), config(), "cpu")
    message = one_line(raised.value)
    for word in words:
        assert word in message


def test_an_empty_folder_says_what_belongs_there(tmp_path: Path) -> None:
    with pytest.raises(InputError) as raised:
        open_score_prior(str(tmp_path), config(), "cpu")
    message = one_line(raised.value)
    assert "inpainting/unet/config.json is missing" in message
    assert f"ps4pro fetch-weights ipsm --output {tmp_path}" in message


def test_pickled_weights_are_not_read(pipelines: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    shutil.copytree(pipelines, folder)
    file = folder / "text/unet/diffusion_pytorch_model.safetensors"
    file.rename(file.with_suffix(".bin"))
    with pytest.raises(InputError, match=r"diffusion_pytorch_model.*safetensors is missing"):
        open_score_prior(str(folder), config(), "cpu")


def test_velocity_is_read_from_the_schedule_of_each_part(
    pipelines: Path, tmp_path: Path, said: list[str]
) -> None:
    folder = tmp_path / "mine"
    shutil.copytree(pipelines, folder)
    edit_json(folder / "text/scheduler/scheduler_config.json", prediction_type="v_prediction")
    prior = open_score_prior(str(folder), config(), "cpu")
    assert isinstance(prior, InpaintingScorePrior)
    assert prior._parts.inpainting_prediction == "epsilon"
    assert prior._parts.text_prediction == "v_prediction"


@pytest.mark.parametrize(
    "held, variant, dtype, expected",
    [
        ("both", "auto", "float32", None),
        ("both", "auto", "bfloat16", "fp16"),
        ("both", "fp16", "float32", "fp16"),
        ("both", "full", "float16", None),
        ("fp16", "full", "float32", "fp16"),
        ("full", "fp16", "float16", None),
    ],
)
def test_which_weights_files_are_read(
    tmp_path: Path, held: str, variant: Any, dtype: str, expected: str | None
) -> None:
    from ps4pro_nerfstudio.diffusion.catalogue import Network
    from ps4pro_nerfstudio.diffusion.loading import _variant

    network = Network("unet", "diffusion_pytorch_model")
    (tmp_path / "unet").mkdir()
    for one in ("fp16", "full"):
        if held in ("both", one):
            (tmp_path / network.file(one)).touch()
    settings = config(variant=variant)
    assert _variant(network, tmp_path, settings, getattr(torch, dtype)) == expected


def test_configs_and_choices_import_without_the_extra() -> None:
    """Listing the methods must not cost the seconds that diffusers and transformers take."""
    code = (
        "import sys; import ps4pro_nerfstudio.diffusion.weights; "
        "import ps4pro_nerfstudio.commands.fetch_weights; "
        "print([name for name in ('diffusers', 'transformers', 'huggingface_hub')"
        " if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_licences_of_a_prior_are_those_of_the_parts_in_its_name() -> None:
    assert licences(f"{INPAINTING.hub_id}@0123 + {TEXT.hub_id}@4567") == {
        INPAINTING.hub_id: INPAINTING.licence,
        TEXT.hub_id: TEXT.licence,
    }
    assert licences("/some/folder + /another") == {}
