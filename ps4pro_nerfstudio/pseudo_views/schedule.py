# SPDX-License-Identifier: Apache-2.0
"""When a training step uses a pseudo view, which one, and how much it weighs.

    L(step) = L_real                     on a real step
    L(step) = weight(step) * L_pseudo    on a pseudo step

All answers are pure functions of the step and the seed: a resumed run continues bit-exactly without
any state. Pseudo steps are spread evenly (the k-th comes when step * share passes k), and each
round through the pseudo views has its own permutation.
"""

from __future__ import annotations

import bisect
import math
from dataclasses import dataclass

import numpy as np

from ps4pro_nerfstudio.messages import counted


@dataclass
class PseudoViewScheduleConfig:
    """How often and how strongly pseudo views take part in training."""

    share: float | None = None
    """Share of the steps that use a pseudo view; None decides from the number of photographs."""
    max_share: float = 0.35
    """Share for very sparse captures."""
    num_views_full: int = 12
    """Up to this number of photographs the share is `max_share`."""
    num_views_none: int = 40
    """From this number of photographs on there are no pseudo steps; linear in between."""
    peak_weight: float = 1.0
    """Largest loss weight lambda of a pseudo step. Each pixel is weighed by its confidence besides,
    so that nothing is gained by trusting all of them less."""
    start: float = 0.1
    """Part of the training before the first pseudo step."""
    ramp: float = 0.05
    """Part of the training in which lambda rises linearly to its peak."""
    tail: float = 0.25
    """Part of the training in which lambda falls to zero along a cosine."""
    real_only: float = 0.0
    """Part of the training, after the tail, that uses photographs only."""
    equal_real_steps: bool = False
    """Lengthen the training until it has as many real steps as without pseudo views."""
    seed: int = 0
    """Seed of the order in which pseudo views are visited."""

    def __post_init__(self) -> None:
        for name in ("share", "max_share"):
            value = getattr(self, name)
            if value is not None and not 0.0 <= value < 1.0:
                raise ValueError(f"{name} must lie in [0, 1), got {value}")
        if self.peak_weight < 0.0:
            raise ValueError(f"peak_weight must not be negative, got {self.peak_weight}")
        parts = (self.start, self.ramp, self.tail, self.real_only)
        if min(parts) < 0.0 or sum(parts) > 1.0:
            raise ValueError(
                "start, ramp, tail and real_only are parts of the training and must sum to at most "
                f"1, got {parts}"
            )
        if not 0 <= self.num_views_full < self.num_views_none:
            raise ValueError(
                "num_views_full must be below num_views_none, "
                f"got {self.num_views_full} and {self.num_views_none}"
            )


def sparsity(num_views: int, num_views_full: int = 12, num_views_none: int = 40) -> float:
    """How much help a capture needs: 1 up to `num_views_full` photographs, 0 from `num_views_none`.

    Linear in between.
    """
    return min(max((num_views_none - num_views) / (num_views_none - num_views_full), 0.0), 1.0)


class PseudoViewSchedule:
    """The plan of one training run."""

    def __init__(
        self,
        config: PseudoViewScheduleConfig,
        num_steps: int,
        num_real_views: int,
        num_pseudo_views: int,
    ) -> None:
        """Decide the share from the sparsity of the capture; see the config."""
        self.config = config
        self.num_steps = num_steps
        self.num_real_views = num_real_views
        self.num_pseudo_views = num_pseudo_views
        self.share = self._decide_share()
        self._first_step = math.ceil(config.start * num_steps)

    def weight(self, step: int) -> float:
        """Loss weight lambda of a pseudo step: 0, ramp, peak, cosine to 0 at the last step."""
        config = self.config
        progress = step / max(self.num_steps - 1, 1)
        end = 1.0 - config.real_only
        if progress < config.start or progress >= end:
            return 0.0
        rise = (progress - config.start) / config.ramp if config.ramp > 0.0 else 1.0
        left = (end - progress) / config.tail if config.tail > 0.0 else 1.0
        fall = 0.5 - 0.5 * math.cos(math.pi * min(left, 1.0))
        return config.peak_weight * min(rise, 1.0) * fall

    def is_pseudo(self, step: int) -> bool:
        """Whether this step trains on a pseudo view; never while its weight is zero."""
        return self.weight(step) > 0.0 and self._num_before(step + 1) > self._num_before(step)

    def view_index(self, step: int) -> int:
        """Which pseudo view a pseudo step uses: each once per round, in a new order each round."""
        if self.num_pseudo_views == 0:
            raise ValueError("view_index: there are no pseudo views")
        turn, place = divmod(self._num_before(step), self.num_pseudo_views)
        order = np.random.default_rng((self.config.seed, turn)).permutation(self.num_pseudo_views)
        return int(order[place])

    def describe(self, views: str | None = None) -> str:
        """One line with every decided value.

        Args:
            views: what is drawn from beside the photographs; None: the pseudo views.
        """
        photographs = counted(self.num_real_views, "photograph")
        if self.share == 0.0:
            why = "there are none"
            if self.num_pseudo_views > 0:
                dense = self.config.share is None and self.config.max_share > 0.0
                why = "the capture is dense enough" if dense else "their share is 0"
            return f"pseudo views take no part beside {photographs}: {why}"
        config, last = self.config, max(self.num_steps - 1, 1)
        full, end = config.start + config.ramp, 1.0 - config.real_only
        until = f"up to step {math.floor(end * last)}"
        if config.tail > 0.0:
            fall = math.floor((end - config.tail) * last)
            until = f"fading to 0 from step {fall} to {math.floor(end * last)}"
        return (
            f"{views or counted(self.num_pseudo_views, 'pseudo view')} beside {photographs}: "
            f"{self.share:.0%} of the steps from {self._first_step} on, weight up to "
            f"{config.peak_weight:g} from step {math.ceil(full * last)}, {until}"
        )

    def num_real_steps(self) -> int:
        """Steps of the run that use a photograph."""
        return sum(not self.is_pseudo(step) for step in range(self.num_steps))

    def lengthened(self) -> PseudoViewSchedule:
        """The shortest plan like this one with at least `num_steps` real steps."""

        def longer(num_steps: int) -> PseudoViewSchedule:
            return PseudoViewSchedule(
                self.config, num_steps, self.num_real_views, self.num_pseudo_views
            )

        enough = math.ceil(self.num_steps / (1.0 - self.share)) + 1
        candidates = range(self.num_steps, enough + 1)
        first = bisect.bisect_left(
            candidates, self.num_steps, key=lambda count: longer(count).num_real_steps()
        )
        return longer(candidates[min(first, len(candidates) - 1)])

    def _decide_share(self) -> float:
        config = self.config
        if self.num_pseudo_views == 0:
            return 0.0
        if config.share is not None:
            return config.share
        share = config.max_share * sparsity(
            self.num_real_views, config.num_views_full, config.num_views_none
        )
        # No pseudo view is visited more often than a photograph.
        total = self.num_pseudo_views + max(self.num_real_views, 1)
        return min(share, self.num_pseudo_views / total)

    def _num_before(self, step: int) -> int:
        """Number of pseudo steps planned before a step.

        At most one per step because the share is below 1.
        """
        return math.floor(max(step - self._first_step, 0) * self.share + 1e-9)
