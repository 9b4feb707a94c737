# SPDX-License-Identifier: Apache-2.0
"""Which jobs there are, what their commands say, and what makes a job another one."""

from __future__ import annotations

from pathlib import Path

import pytest

from ps4pro_nerfstudio.benchmark.scenes import code_version
from ps4pro_nerfstudio.benchmark.scenes.arms import ARMS
from ps4pro_nerfstudio.benchmark.scenes.captures import Capture
from ps4pro_nerfstudio.benchmark.scenes.code_version import DECISIVE, installed_versions
from ps4pro_nerfstudio.benchmark.scenes.plan import Job, make_plan, superseded, view_arguments
from ps4pro_nerfstudio.messages import InputError


@pytest.fixture(autouse=True)
def _code(monkeypatch):
    """One version of the code, whoever edits it while the tests run."""
    monkeypatch.setattr(code_version, "package_digest", lambda: "c0de")


def _capture(name: str = "room", digest: str = "d", arguments: tuple[str, ...] = ()) -> Capture:
    return Capture(name, Path("/captures") / name, digest, Path(name), 1, arguments=arguments)


def _plan(**changes) -> list[Job]:
    options = {
        "captures": [_capture()], "views": ["6"], "methods": ["plain"], "seeds": [0], "steps": 100
    } | changes  # fmt: skip
    return make_plan(**options)


def test_the_plan_is_the_product_and_keeps_pairs_together():
    jobs = _plan(
        captures=[_capture("room"), _capture("hall")], views=["6", "dense"],
        methods=["plain", "ps4pro"], seeds=[0, 1],
    )  # fmt: skip
    assert len(jobs) == 16
    assert len({job.key for job in jobs}) == 16
    assert [(job.method, job.seed) for job in jobs[:3]] == [
        ("plain", 0), ("ps4pro", 0), ("plain", 1)
    ]  # fmt: skip


def test_views_may_be_for_one_scene():
    jobs = _plan(captures=[_capture("room"), _capture("hall")], views=["6", "hall:every-3"])
    assert [(job.scene, job.views) for job in jobs] == [
        ("room", "6"), ("hall", "6"), ("hall", "every-3")
    ]  # fmt: skip
    with pytest.raises(InputError, match="attic"):
        _plan(views=["attic:6"])
    with pytest.raises(InputError, match="6 twice"):
        _plan(views=["6", "room:6"])


def test_command_puts_the_method_before_the_parser(tmp_path):
    (job,) = _plan(captures=[_capture(arguments=("--downscale-factor", "8"))], seeds=[7])
    program, method, *arguments = job.train_command(tmp_path)
    assert Path(program).name.startswith("ns-train")
    assert method == "ps4pro-splatfacto"
    split = arguments.index("sparse-views")
    before, after = arguments[:split], arguments[split + 1 :]
    assert _option(before, "--machine.seed") == "7"
    assert _option(before, "--max-num-iterations") == "100"
    assert _option(before, "--output-dir") == str(tmp_path / "runs" / job.key)
    assert _option(before, "--pipeline.datamanager.pseudo-views.enabled") == "False"
    assert after == ["--data", "/captures/room", "--downscale-factor", "8", "--views", "6"]


def _option(arguments: list[str], name: str) -> str:
    return arguments[arguments.index(name) + 1]


@pytest.mark.parametrize(
    ("specification", "arguments"),
    [("6", ("--views", "6")), ("every-3", ("--every", "3")), ("dense", ("--test-every", "8"))],
)
def test_views_become_options_of_the_parser(specification, arguments):
    assert view_arguments(specification) == arguments


@pytest.mark.parametrize("specification", ["1", "every-1", "every-", "sparse", "-3", "6.5", ""])
def test_views_that_mean_nothing_are_refused(specification):
    with pytest.raises(InputError, match="--views"):
        view_arguments(specification)


@pytest.mark.parametrize(
    "change",
    [
        {"captures": [_capture(digest="other")]},
        {"views": ["7"]},
        {"methods": ["ps4pro"]},
        {"seeds": [1]},
        {"steps": 101},
        {"device": "cpu"},
        {"test_cap": 4},
    ],
    ids=lambda change: next(iter(change)),
)
def test_whatever_decides_the_result_changes_the_key(change):
    assert _plan(**change)[0].key != _plan()[0].key
    assert _plan(**change)[0].key == _plan(**change)[0].key


def test_the_place_of_a_capture_does_not_change_the_key():
    moved = Capture("room", Path("/elsewhere"), "d", Path("room"), 1)
    assert _plan(captures=[moved])[0].key == _plan()[0].key


def test_other_code_makes_other_jobs(monkeypatch):
    (before,) = _plan()
    monkeypatch.setattr(code_version, "package_digest", lambda: "edited")
    (after,) = _plan()
    assert (before.code, after.code) == ("c0de", "edited")
    assert before.key != after.key


def _record(job: Job, versions: dict[str, str], **changes) -> dict:
    names = ("key", "scene", "views", "method", "seed", "steps")
    return {name: getattr(job, name) for name in names} | {
        "machine": {"versions": versions}
    } | changes  # fmt: skip


def test_superseded_are_the_same_jobs_by_other_versions():
    """Not another seed, not another capture or size of the same versions, not what is shown."""
    (job,) = _plan()
    current = installed_versions(DECISIVE)
    older_torch = {**current, "torch": "2.4"}
    records = [
        _record(job, current),
        _record(job, {**current, code_version.CODE: "old"}, key="a"),
        _record(job, older_torch, key="b"),
        _record(job, {}, key="c"),
        _record(job, current, key="d"),
        _record(job, older_torch, key="e", seed=5),
        _record(job, older_torch),
    ]
    assert [record["key"] for record in superseded([job], records)] == ["a", "b", "c"]


def test_any_method_of_ns_train_runs_as_it_is():
    (job,) = _plan(methods=["splatfacto-of-tomorrow"])
    assert job.arguments[:2] == ("splatfacto-of-tomorrow", "--machine.seed")


def test_all_methods_of_a_plan_train_equally_long():
    jobs = _plan(methods=list(ARMS), steps=321)
    assert {_option(list(job.arguments), "--max-num-iterations") for job in jobs} == {"321"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"captures": []}, "--data is empty"),
        ({"seeds": []}, "--seeds is empty"),
        ({"seeds": [0, 0]}, "--seeds has 0 twice"),
        ({"captures": [_capture(), _capture(digest="other")]}, "--data has room twice"),
        ({"steps": 0}, "--steps is 0"),
    ],
)
def test_plans_that_cannot_be_are_refused(change, message):
    with pytest.raises(InputError, match=message):
        _plan(**change)
