# SPDX-License-Identifier: Apache-2.0
"""The ablation of IPSM-Gaussian: `ps4pro bench ipsm`, one command for all of its terms.

The table of the paper (arXiv 2412.02225, table 3): base, with depth, with geometry, with both, and
with the diffusion prior where its weights are on this machine.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ps4pro_nerfstudio.benchmark.scenes.command import ScenesBenchmark
from ps4pro_nerfstudio.diffusion.catalogue import DENOISERS
from ps4pro_nerfstudio.diffusion.libraries import EXTRA, missing_packages
from ps4pro_nerfstudio.diffusion.weights import find_cached
from ps4pro_nerfstudio.messages import say

_OFFLINE = ("ipsm-base", "ipsm-depth", "ipsm-geo", "ipsm-off")


@dataclass
class IPSMBenchmark(ScenesBenchmark):
    """The ablation of ipsm-gaussian: base, depth, geometry, both, and the prior if it is there."""

    views: tuple[str, ...] = ("3",)
    """Training views, as for `bench scenes`."""
    methods: tuple[str, ...] = ()
    """Default: the terms without weights, and ipsm-score where its weights are on this machine."""
    baseline: str = "ipsm-base"
    """Method that the others are compared with; it must be among the methods."""

    _name: ClassVar[str] = "ipsm"

    def run(self) -> None:
        """See `ScenesBenchmark.run`."""
        if not self.methods:
            self.methods = _OFFLINE
            if missing := missing_packages():
                say(f"without ipsm-score: it needs {', '.join(missing)}: {EXTRA}")
            elif all(find_cached(part) for part in DENOISERS["sd-1.5"]):
                self.methods += ("ipsm-score",)
            else:
                say("without ipsm-score: its weights are not here (`ps4pro fetch-weights ipsm`)")
        super().run()
