# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json

import pytest

from ps4pro_nerfstudio.benchmark.startup import StartupBenchmark


@pytest.mark.parametrize("plugin, verdict", [(0.1, "holds"), (0.5, "missed")])
def test_medians_are_judged_and_written(tmp_path, monkeypatch, capsys, plugin, verdict):
    """Three processes at 7, 9 and 8 s: the median is 8, and one outlier of ours does not count."""
    times = iter([(7.0, plugin), (9.0, 3.0), (8.0, plugin)])
    monkeypatch.setattr(StartupBenchmark, "_once", staticmethod(lambda: next(times)))
    output = tmp_path / "startup.json"
    figures = StartupBenchmark(repetitions=3, output=output).run()
    assert figures == {"nerfstudio_seconds": 8.0, "plugin_seconds": plugin}
    assert json.loads(output.read_text()) == figures
    assert verdict in capsys.readouterr().out


def test_the_probe_times_both_imports():
    framework, plugin = StartupBenchmark._once()
    assert framework > 0
    assert plugin > 0
