# SPDX-License-Identifier: Apache-2.0
"""`ps4pro fetch-weights`: downloads what a method can use, after showing licences and sizes."""

from __future__ import annotations

import shlex
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console
from rich.table import Table

from ps4pro_nerfstudio.caches import can_write
from ps4pro_nerfstudio.diffusion.catalogue import CAPTION, DENOISERS, DEPTH, Part, Role, Variant
from ps4pro_nerfstudio.diffusion.libraries import EXTRA, first_line, missing_packages, take
from ps4pro_nerfstudio.messages import InputError, MissingPartError, say

_REVISION_OPTIONS: dict[Role, str] = {
    "inpainting": "--pipeline.model.score.inpainting-revision",
    "text": "--pipeline.model.score.text-revision",
    "depth": "--pipeline.model.depth-network.revision",
    "caption": "--pipeline.model.score.caption-revision",
}
"""Where training is told which revision of each part to look for in the cache."""


@dataclass(kw_only=True)
class FetchWeights:
    """Download the weights of the priors of a method, after showing their licences and sizes.

    Nothing is downloaded without this command. Only the files that training reads are fetched, from
    huggingface.co, into the Hugging Face cache, where training finds them by itself, or into a
    folder that may be carried to a machine without a network.
    """

    method: tyro.conf.Positional[Literal["ipsm"]]
    """For which method: ipsm, for ipsm-gaussian."""
    family: Literal["sd-1.5", "sd-2"] = "sd-1.5"
    """Which Stable Diffusion judges unseen views; the paper uses 1.5."""
    depth: Literal["depth-anything", "dpt-hybrid"] = "depth-anything"
    """Which network sees depth in single photographs; the paper uses dpt-hybrid."""
    parts: tuple[Literal["inpainting", "text", "depth", "caption"], ...] = (
        "inpainting",
        "text",
        "depth",
    )
    """Which parts to fetch; `--parts depth` leaves out the large ones. `caption` describes the
    first photograph, for trainings without a prompt."""
    variant: Variant = "fp16"
    """Half-precision weights, or full ones where they are published: twice as large."""
    revision: str = "main"
    """Branch, tag or commit id of the repositories; give --parts as well for a commit id."""
    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None
    """Folder to write instead of the Hugging Face cache, for --pipeline.model.diffusion FOLDER and
    --pipeline.model.depth FOLDER; it gets a sub-folder for each part."""
    yes: bool = False
    """Do not ask: I have read the licences."""

    def run(self) -> None:
        """Show what is to be downloaded, ask, download, and say how to use it.

        Raises:
            InputError: nothing chosen, the answer was no, no network, no space, or a repository
                without the expected files.
            MissingPartError: huggingface_hub is not installed.
        """
        known = (*DENOISERS[self.family], DEPTH[self.depth], CAPTION)
        chosen = [part for part in known if part.role in self.parts]
        if not chosen:
            raise InputError("--parts is empty; name inpainting, text, depth or caption")
        if self.output is not None and self.output.exists() and not self.output.is_dir():
            raise InputError(f"{self.output} is a file; name a folder")
        if missing_packages("huggingface_hub"):
            raise MissingPartError(f"downloading needs huggingface_hub: {EXTRA}")
        wanted = [part for part in chosen if not self._present(part)]
        Console().print(self._table(chosen, wanted))
        if wanted:
            if not self.yes:
                self._ask(wanted)
            for part in wanted:
                self._fetch(part)
        roles: set[Role] = {part.role for part in chosen}
        place, use = "the Hugging Face cache", self._options_of_cache(roles)
        if self.output is not None:
            place, use = str(self.output), self._options_of_folder(roles, self.output)
        command = " ".join(["ns-train ipsm-gaussian", *use])
        if self.output is not None and not use:
            command = "training uses them when inpainting and text are there too"
        say(f"{len(chosen)} of {len(chosen)} parts in {place}; {command}")

    def _present(self, part: Part) -> bool:
        if self.output is not None:
            folder = self.output / part.role
            if part.missing(folder):
                return False
        else:
            from ps4pro_nerfstudio.diffusion.weights import find_cached

            found = find_cached(part, self.revision)
            if found is None:
                return False
            folder = found.folder
        # Full weights serve whoever wants half-precision ones, not the other way round.
        variant = part.best_variant(self.variant)
        return variant == "fp16" or all(
            (folder / network.file(variant)).is_file() for network in part.networks
        )

    def _table(self, chosen: list[Part], wanted: list[Part]) -> Table:
        table = Table(title="Weights; not part of this package, each under its own licence")
        for name in ("part", "repository, with its licence", "licence", "files", "MB"):
            table.add_column(name, justify="right" if name == "MB" else "left", overflow="fold")
        for part in chosen:
            variant = part.best_variant(self.variant)
            size = f"{part.megabytes[variant]:,}" if part in wanted else "here"
            link = f"https://huggingface.co/{part.hub_id}"
            table.add_row(part.role, link, part.licence, variant, size)
        return table

    def _ask(self, wanted: list[Part]) -> None:
        if not sys.stdin.isatty():
            raise InputError("nobody to ask whether to download: add --yes")
        total = self._megabytes(wanted)
        answer = input(f"Download {total / 1000:.1f} GB under these licences? [y/N] ")
        if answer.strip().lower() not in ("y", "yes"):
            raise InputError("nothing downloaded")

    def _megabytes(self, parts: list[Part]) -> int:
        return sum(part.megabytes[part.best_variant(self.variant)] for part in parts)

    def _fetch(self, part: Part) -> None:
        download = take("huggingface_hub", "snapshot_download")
        target = None if self.output is None else self.output / part.role
        if target is not None:
            self._check_space(target, part)
        try:
            folder = download(
                part.hub_id,
                revision=self.revision,
                allow_patterns=part.patterns(part.best_variant(self.variant)),
                local_dir=target,
            )
        # The client and what it is built on raise errors of many kinds, other ones in each version.
        except Exception as error:
            raise InputError(
                f"{part.hub_id} could not be downloaded: {first_line(error)}; check the network, "
                "or fetch on another machine with --output FOLDER and copy the folder here"
            ) from error
        lacking = part.missing(Path(folder))
        if lacking:
            raise InputError(
                f"{part.hub_id} at revision {self.revision} has no {lacking[0].split('|')[0]}; "
                "try another --revision or --variant"
            )

    def _check_space(self, target: Path, part: Part) -> None:
        if not can_write(target):
            raise InputError(f"cannot write {target}; name another folder")
        existing = next(place for place in (target, *target.absolute().parents) if place.exists())
        free = shutil.disk_usage(existing).free
        needed = self._megabytes([part]) * 10**6
        if free < needed:
            raise InputError(
                f"{target} has {free / 1e9:.1f} GB free, {part.hub_id} takes {needed / 1e9:.1f} GB"
            )

    def _options_of_cache(self, roles: set[Role]) -> list[str]:
        """What makes training look for these parts, where its defaults look for others."""
        use = []
        if self.family != "sd-1.5" and roles & {"inpainting", "text"}:
            use.append(f"--pipeline.model.score.family {self.family}")
        if self.depth != "depth-anything" and "depth" in roles:
            use.append(f"--pipeline.model.depth {self.depth}")
        if self.revision != "main":
            revision = shlex.quote(self.revision)
            options = [option for role, option in _REVISION_OPTIONS.items() if role in roles]
            use += [f"{option} {revision}" for option in options]
        return use

    def _options_of_folder(self, roles: set[Role], folder: Path) -> list[str]:
        """What makes training read these parts; a folder has one family and revision of each."""
        use, quoted = [], shlex.quote(str(folder))
        has_prior = not any(part.missing(folder / part.role) for part in DENOISERS[self.family])
        if has_prior and roles - {"depth"}:
            use.append(f"--pipeline.model.diffusion {quoted}")
        if "depth" in roles:
            use.append(f"--pipeline.model.depth {quoted}")
        return use
