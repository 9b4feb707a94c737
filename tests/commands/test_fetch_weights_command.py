# SPDX-License-Identifier: Apache-2.0
"""`ps4pro fetch-weights`: what is asked, what is downloaded, and where it ends up."""

from __future__ import annotations

import fnmatch
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tyro

from ps4pro_nerfstudio.commands import fetch_weights as module
from ps4pro_nerfstudio.commands.fetch_weights import FetchWeights
from ps4pro_nerfstudio.diffusion.catalogue import CAPTION, DENOISERS, DEPTH
from ps4pro_nerfstudio.messages import InputError, MissingPartError
from ps4pro_nerfstudio.models.ipsm import IPSMModelConfig

huggingface_hub = pytest.importorskip("huggingface_hub")
constants = pytest.importorskip("huggingface_hub.constants")

INPAINTING, TEXT = DENOISERS["sd-1.5"]
DEPTH_ANYTHING = DEPTH["depth-anything"]

PUBLISHED = {
    INPAINTING.hub_id: [
        "unet/config.json", "unet/diffusion_pytorch_model.fp16.safetensors",
        "unet/diffusion_pytorch_model.bin", "vae/config.json",
        "vae/diffusion_pytorch_model.fp16.safetensors", "text_encoder/config.json",
        "text_encoder/model.fp16.safetensors", "tokenizer/vocab.json", "tokenizer/merges.txt",
        "tokenizer/tokenizer_config.json", "scheduler/scheduler_config.json",
        "safety_checker/model.fp16.safetensors", "sd-v1-5-inpainting.ckpt",
    ],
    TEXT.hub_id: [
        "unet/config.json", "unet/diffusion_pytorch_model.safetensors",
        "unet/diffusion_pytorch_model.fp16.safetensors", "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors", "scheduler/scheduler_config.json",
        "v1-5-pruned.safetensors",
    ],
    DEPTH_ANYTHING.hub_id: ["config.json", "model.safetensors", "preprocessor_config.json"],
}  # fmt: skip


class Hub:
    """Stands in for the hub: writes the files that the patterns allow, as `snapshot_download`."""

    def __init__(self, cache: Path) -> None:
        self.cache = cache
        self.calls: list[dict[str, Any]] = []
        self.error: Exception | None = None

    def __call__(self, repo_id: str, **options: Any) -> str:
        self.calls.append({"repo_id": repo_id, **options})
        if self.error is not None:
            raise self.error
        repository = self.cache / f"models--{repo_id.replace('/', '--')}"
        folder = Path(options["local_dir"] or repository / "snapshots" / "abc")
        for name in PUBLISHED[repo_id]:
            if any(fnmatch.fnmatch(name, pattern) for pattern in options["allow_patterns"]):
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).write_text("{}")
        if options["local_dir"] is None:
            (repository / "refs").mkdir(exist_ok=True)
            (repository / "refs" / options["revision"]).write_text("abc")
        return str(folder)

    @property
    def ids(self) -> list[str]:
        return [call["repo_id"] for call in self.calls]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    fake = Hub(tmp_path / "hub")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(fake.cache))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fake)
    monkeypatch.setattr(
        module.shutil, "disk_usage", lambda _: SimpleNamespace(free=10**12, total=10**12)
    )
    return fake


def files_of(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_only_needed_files_reach_the_folder(hub: Hub, tmp_path: Path) -> None:
    output = tmp_path / "weights"
    FetchWeights(method="ipsm", output=output, yes=True).run()
    assert files_of(output) == {
        "inpainting/unet/config.json",
        "inpainting/unet/diffusion_pytorch_model.fp16.safetensors",
        "inpainting/vae/config.json",
        "inpainting/vae/diffusion_pytorch_model.fp16.safetensors",
        "inpainting/text_encoder/config.json",
        "inpainting/text_encoder/model.fp16.safetensors",
        "inpainting/tokenizer/vocab.json",
        "inpainting/tokenizer/merges.txt",
        "inpainting/tokenizer/tokenizer_config.json",
        "inpainting/scheduler/scheduler_config.json",
        "text/unet/config.json",
        "text/unet/diffusion_pytorch_model.fp16.safetensors",
        "text/vae/config.json",
        "text/scheduler/scheduler_config.json",
        "depth/config.json",
        "depth/model.safetensors",
        "depth/preprocessor_config.json",
    }


def test_the_second_run_downloads_nothing_and_does_not_ask(
    hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    """Into the cache, where training finds them by itself."""
    FetchWeights(method="ipsm", yes=True).run()
    assert hub.ids == [INPAINTING.hub_id, TEXT.hub_id, DEPTH_ANYTHING.hub_id]
    capsys.readouterr()
    FetchWeights(method="ipsm").run()
    assert len(hub.calls) == 3
    assert capsys.readouterr().out.count("here") >= 3


def test_full_weights_where_they_are_published(hub: Hub, tmp_path: Path) -> None:
    output = tmp_path / "weights"
    FetchWeights(method="ipsm", output=output, variant="full", yes=True).run()
    found = {name for name in files_of(output) if name.endswith("safetensors")}
    assert "text/unet/diffusion_pytorch_model.safetensors" in found
    assert "text/unet/diffusion_pytorch_model.fp16.safetensors" not in found
    assert "inpainting/unet/diffusion_pytorch_model.fp16.safetensors" in found


@pytest.mark.parametrize("in_cache", [True, False])
def test_half_precision_weights_are_no_full_ones(hub: Hub, tmp_path: Path, in_cache: bool) -> None:
    """Who has the former and asks for the latter gets what is published of them, once."""
    output = None if in_cache else tmp_path / "weights"
    FetchWeights(method="ipsm", output=output, yes=True).run()
    assert len(hub.calls) == 3
    for _ in range(2):
        FetchWeights(method="ipsm", output=output, variant="full", yes=True).run()
        assert hub.ids[3:] == [TEXT.hub_id]
    # Full weights serve everybody.
    FetchWeights(method="ipsm", output=output).run()
    assert len(hub.calls) == 4


@pytest.fixture
def whole_hub(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """A hub that has all parts, in half precision."""
    for part in (*DENOISERS["sd-2"], DEPTH["dpt-hybrid"], CAPTION):
        monkeypatch.setitem(PUBLISHED, part.hub_id, part.patterns(part.best_variant("fp16")))
    return hub


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr(module, "say", lines.append)
    return lines


SCORE, MODEL = "--pipeline.model.score", "--pipeline.model"


@pytest.mark.parametrize(
    "options, expected",
    [
        ({}, []),
        ({"family": "sd-2"}, [f"{SCORE}.family sd-2"]),
        ({"family": "sd-2", "parts": ("depth",)}, []),
        ({"depth": "dpt-hybrid"}, [f"{MODEL}.depth dpt-hybrid"]),
        ({"depth": "dpt-hybrid", "parts": ("text",)}, []),
        (
            {"revision": "v1"},
            [
                f"{SCORE}.inpainting-revision v1",
                f"{SCORE}.text-revision v1",
                f"{MODEL}.depth-network.revision v1",
            ],
        ),
        ({"revision": "v1", "parts": ("caption",)}, [f"{SCORE}.caption-revision v1"]),
    ],
)
def test_the_command_that_it_names_uses_what_was_fetched(
    whole_hub: Hub, said: list[str], options: dict[str, Any], expected: list[str]
) -> None:
    """Each option exists; set as it says, training looks where the weights are."""
    del whole_hub
    FetchWeights(method="ipsm", yes=True, **options).run()
    (line,) = said
    command = line.split("; ", 1)[1]
    assert command == " ".join(["ns-train ipsm-gaussian", *expected])
    for option in expected:
        name, value = option.removeprefix(f"{MODEL}.").split()
        holder: Any = IPSMModelConfig()
        *groups, field = name.replace("-", "_").split(".")
        for group in groups:
            holder = getattr(holder, group)
        assert getattr(holder, field) != value  # Else nothing had to be said.


def test_a_folder_is_named_where_training_can_read_it(
    whole_hub: Hub, said: list[str], tmp_path: Path
) -> None:
    """Neither family nor revision matters there: a folder has one of each."""
    del whole_hub
    output = tmp_path / "my weights"
    prior, depth = f"{MODEL}.diffusion '{output}'", f"{MODEL}.depth '{output}'"

    def fetch(*parts: Any) -> str:
        FetchWeights(
            method="ipsm", parts=parts, output=output, family="sd-2", revision="v1", yes=True
        ).run()
        return said[-1].split("; ", 1)[1]

    assert fetch("inpainting") == "training uses them when inpainting and text are there too"
    assert fetch("depth") == f"ns-train ipsm-gaussian {depth}"
    # The other half of the prior is there already.
    assert fetch("text") == f"ns-train ipsm-gaussian {prior}"
    assert fetch("caption") == f"ns-train ipsm-gaussian {prior}"
    assert fetch("text", "depth") == f"ns-train ipsm-gaussian {prior} {depth}"


def test_the_table_shows_licences_and_sizes(
    hub: Hub, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    FetchWeights(method="ipsm", yes=True).run()
    printed = capsys.readouterr().out
    for part in (INPAINTING, TEXT, DEPTH_ANYTHING):
        assert f"https://huggingface.co/{part.hub_id}" in printed
        assert part.licence in printed
    for size in ("2,130", "1,720", "99"):
        assert size in printed


@pytest.mark.parametrize("answer, downloads", [("y", 1), ("YES", 1), ("", 0), ("n", 0)])
def test_it_asks_first(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, answer: str, downloads: int
) -> None:
    questions: list[str] = []
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(isatty=lambda: True))
    monkeypatch.setattr("builtins.input", lambda text: questions.append(text) or answer)
    command = FetchWeights(method="ipsm", parts=("depth",))
    if downloads:
        command.run()
    else:
        with pytest.raises(InputError, match="nothing downloaded"):
            command.run()
    assert len(hub.calls) == downloads
    assert questions == ["Download 0.1 GB under these licences? [y/N] "]


def test_without_a_terminal_it_wants_yes(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(isatty=lambda: False))
    with pytest.raises(InputError, match="--yes"):
        FetchWeights(method="ipsm").run()
    assert hub.calls == []


def test_no_network_is_one_line(hub: Hub) -> None:
    hub.error = ConnectionError("cannot reach huggingface.co\nand a long story")
    with pytest.raises(InputError) as raised:
        FetchWeights(method="ipsm", yes=True).run()
    message = str(raised.value)
    assert "\n" not in message
    assert INPAINTING.hub_id in message
    assert "cannot reach huggingface.co" in message
    assert "--output" in message


def test_a_repository_without_the_files_is_one_line(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PUBLISHED, DEPTH_ANYTHING.hub_id, ["config.json", "pytorch_model.bin"])
    with pytest.raises(InputError, match=r"revision other has no model.safetensors"):
        FetchWeights(method="ipsm", parts=("depth",), revision="other", yes=True).run()


def test_a_full_disk_is_seen_before_the_download(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: SimpleNamespace(free=10**9))
    with pytest.raises(InputError, match=r"1.0 GB free, .* takes 2.1 GB"):
        FetchWeights(method="ipsm", output=tmp_path / "weights", yes=True).run()
    assert hub.calls == []


def test_a_folder_that_cannot_be_written_is_one_line(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "can_write", lambda _: False)
    with pytest.raises(InputError, match="cannot write"):
        FetchWeights(method="ipsm", output=tmp_path / "weights", yes=True).run()
    assert hub.calls == []
    assert not (tmp_path / "weights").exists()


def test_a_file_as_output_is_refused(hub: Hub, tmp_path: Path) -> None:
    file = tmp_path / "weights"
    file.touch()
    with pytest.raises(InputError, match="is a file"):
        FetchWeights(method="ipsm", output=file, yes=True).run()


def test_missing_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingPartError, match=r"ps4pro-nerfstudio\[diffusion\]"):
        FetchWeights(method="ipsm", yes=True).run()


def test_the_command_line() -> None:
    command = tyro.cli(
        FetchWeights, args=["ipsm", "--parts", "depth", "--depth", "dpt-hybrid", "-o", "w", "--yes"]
    )
    assert command == FetchWeights(
        method="ipsm", parts=("depth",), depth="dpt-hybrid", output=Path("w"), yes=True
    )
