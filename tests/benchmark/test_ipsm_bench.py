# SPDX-License-Identifier: Apache-2.0
"""The benchmarks of ipsm-gaussian: what they plan, and what they refuse before they measure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ps4pro_nerfstudio.benchmark import ipsm, ipsm_step
from ps4pro_nerfstudio.benchmark.ipsm import IPSMBenchmark
from ps4pro_nerfstudio.benchmark.ipsm_step import IPSMStepBenchmark
from ps4pro_nerfstudio.benchmark.scenes.command import ScenesBenchmark
from ps4pro_nerfstudio.messages import InputError


@pytest.mark.parametrize(
    "options, words",
    [
        ({"repetitions": 0}, "--repetitions must be at least 1, got 0"),
        ({"output": Path("nodir/x.json")}, "--output nodir/x.json cannot be written"),
        ({"output": Path()}, "--output . cannot be written"),
    ],
)
def test_what_cannot_end_well_is_refused_before_it_begins(
    options: dict[str, Any], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ipsm_step, "_Work", lambda *_: pytest.fail("too late"))
    with pytest.raises(InputError, match=words):
        IPSMStepBenchmark(**options).run()


@pytest.mark.parametrize(
    "missing, cached, words",
    [
        ([], True, None),
        ([], False, "its weights are not here"),
        (["diffusers"], True, "it needs diffusers: pip install"),
    ],
)
def test_the_score_is_planned_where_weights_and_packages_are_there(
    missing: list[str],
    cached: bool,
    words: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said: list[str] = []
    monkeypatch.setattr(ipsm, "say", said.append)
    monkeypatch.setattr(ipsm, "missing_packages", lambda: missing)
    monkeypatch.setattr(ipsm, "find_cached", lambda _: cached)
    monkeypatch.setattr(ScenesBenchmark, "run", lambda _: None)
    benchmark = IPSMBenchmark(data=(tmp_path,))
    benchmark.run()
    assert ("ipsm-score" in benchmark.methods) == (words is None)
    assert [line for line in said if words and words in line] == said
    assert len(said) == (words is not None)
