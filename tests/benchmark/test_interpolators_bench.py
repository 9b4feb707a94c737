# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from ps4pro_nerfstudio.benchmark.interpolators import InterpolatorsBenchmark, moving_pair


def test_the_second_frame_is_the_first_moved_by_seven_pixels() -> None:
    first, second = moving_pair(96, 64)
    assert first.shape == second.shape == (1, 3, 64, 96)
    assert torch.equal(first[..., 7:], second[..., :-7])


def test_times_and_ratios_are_written(tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    try:
        output = tmp_path / "times.json"
        figures = InterpolatorsBenchmark((96, 64), 1, repetitions=1, output=output).run()
    finally:
        torch.set_num_threads(threads)
    assert json.loads(output.read_text()) == figures
    times, ratios = figures["milliseconds"], figures["over_optical_flow"]
    assert {"optical-flow", "ps4pro-small", "ps4pro-small bf16"} <= set(times)
    assert ratios["optical-flow"] == 1.0
    expected = times["ps4pro-small"] / times["optical-flow"]
    assert ratios["ps4pro-small"] == pytest.approx(expected)
