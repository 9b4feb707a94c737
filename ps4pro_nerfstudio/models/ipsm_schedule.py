# SPDX-License-Identifier: Apache-2.0
"""When each part of IPSM takes part (arXiv 2412.02225; the released code's numbers of iterations).

All numbers are those of a run of 10,000 steps and shrink with a shorter one; r(it) is the ramp.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

REFERENCE_LENGTH = 10_000
"""Steps of the run that the numbers are given for."""
_GOLDEN_RATIO = (math.sqrt(5.0) - 1.0) / 2.0


def check_weight(name: str, value: float) -> None:
    """Refuse what would switch a term off without a word, or make it NaN.

    Raises:
        ValueError: a value that is negative or not finite.
    """
    if not 0.0 <= value < math.inf:
        raise ValueError(f"{name} must be finite and not negative, got {value}")


@dataclass
class IPSMScheduleConfig:
    """Steps of a run of 10,000; a run of another length has them in proportion."""

    unseen_from: int = 2000
    """Unseen views take part after this step. Until then Gaussians are unpooled, or until
    densification ends, if that is earlier: after 1,000 steps from dense points (dense-start)."""
    unseen_until: int = 9500
    """And before this one; from then on the depth of seen views counts little, and no Gaussian is
    left out."""
    ramp: int = 500
    """Steps over which r(it), the factor on their score and depth terms, grows from 0 to 1."""
    every_k: int = 1
    """Unseen views take part in one of k steps, k times as strongly."""
    late_depth_weight: float = 0.001
    """Largest weight of the seen depth after the unseen views."""
    reset_at: tuple[int, ...] = (2001,)
    """Steps after which opacities are lowered, with --pipeline.model.densification released."""

    def __post_init__(self) -> None:
        if not 0 <= self.unseen_from < self.unseen_until <= REFERENCE_LENGTH:
            raise ValueError(
                "unseen_from and unseen_until are steps of a run of 10,000, the first below the "
                f"second, got {self.unseen_from} and {self.unseen_until}"
            )
        if self.ramp < 0:
            raise ValueError(f"ramp must not be negative, got {self.ramp}")
        if self.every_k < 1:
            raise ValueError(f"every_k must be at least 1, got {self.every_k}")
        check_weight("late_depth_weight", self.late_depth_weight)


@dataclass(frozen=True)
class IPSMSchedule:
    """The schedule of one run."""

    config: IPSMScheduleConfig = field(default_factory=IPSMScheduleConfig)
    num_steps: int = REFERENCE_LENGTH
    """Length of the run."""

    def _position(self, step: int) -> float:
        """Where a step would be in a run of 10,000."""
        return step * (REFERENCE_LENGTH / self.num_steps)

    def progress(self, step: int) -> float:
        """Share of the run that is over, in [0, 1]."""
        return min(max(step / self.num_steps, 0.0), 1.0)

    def unpools(self, step: int) -> bool:
        """Whether Gaussians far from their neighbours get new ones between."""
        return self._position(step) < self.config.unseen_from

    def has_unseen_view(self, step: int) -> bool:
        """Whether an unseen view takes part: unseen_from < it < unseen_until, one of k steps.

        Pseudo views have steps of their own in a fixed rhythm. Multiples of the golden ratio fill
        the unit interval evenly and have no rhythm in common with it, as every k-th step may.
        """
        config = self.config
        active = config.unseen_from < self._position(step) < config.unseen_until
        return active and step * _GOLDEN_RATIO % 1.0 < 1.0 / config.every_k

    def ramp(self, step: int) -> float:
        """r(it) in [0, 1]; it does not concern L_geo."""
        passed = self._position(step) - self.config.unseen_from
        return min(max(passed / max(self.config.ramp, 1), 0.0), 1.0)

    def seen_depth_weight(self, step: int, weight: float) -> float:
        """lambda_d,seen: as configured, and little in the end phase."""
        if self._position(step) > self.config.unseen_until:
            return min(self.config.late_depth_weight, weight)
        return weight

    def drop_rate(self, step: int, rate: float) -> float:
        """Share of the Gaussians that a render leaves out: grows from none to `rate`, none at last.

        The end phase brings back the sharpness that leaving Gaussians out costs.
        """
        if self._position(step) > self.config.unseen_until:
            return 0.0
        return rate * self.progress(step)

    def resets_opacity(self, step: int) -> bool:
        """Whether opacities are lowered after this step; each reset happens once in a run."""
        before, now = self._position(step - 1), self._position(step)
        return any(before < at <= now for at in self.config.reset_at)
