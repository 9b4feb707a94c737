# SPDX-License-Identifier: Apache-2.0
"""What the number of photographs and of initial points make of a splat's configuration.

Pure functions of the two, so that a resumed run decides as the first one did. The configuration
itself is not changed: it is what the user asked for.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from ps4pro_nerfstudio.messages import counted
from ps4pro_nerfstudio.pseudo_views.schedule import sparsity

if TYPE_CHECKING:
    from ps4pro_nerfstudio.models.splatfacto import PS4PROSplatfactoModelConfig


@dataclass(frozen=True)
class SplatPlan:
    """Densification, fading and bounds of one run."""

    num_initial_points: int
    """Gaussians at the start."""
    stop_split_at: int
    """Step after which no Gaussians are added."""
    densify_grad_thresh: float
    """Gradient in the image above which a Gaussian is doubled or split."""
    fading: float
    """Share of its opacity that each Gaussian loses after a step; 0 is none."""
    fading_until: float
    """Step from which on opacities fade no longer."""
    max_angular_scale: float
    """Largest scale of a Gaussian as a share of its distance from the nearest camera; 0 is any."""
    colors_unseen: bool
    """Evaluation and renders show the photographs' colours where nothing stands."""
    drop_rate: float = 0.0
    """Largest share of the Gaussians that a training render leaves out."""

    def describe(self) -> str:
        """One line with every decided value."""
        parts = [
            f"{counted(self.num_initial_points, 'initial point')}: Gaussians are added until step "
            f"{self.stop_split_at:,}, where gradients exceed {self.densify_grad_thresh:g}"
        ]
        if self.fading > 0.0:
            end = "" if math.isinf(self.fading_until) else f" until step {self.fading_until:,.0f}"
            parts.append(f"opacities fade by {self.fading:.2%} a step{end}")
        if self.max_angular_scale > 0.0:
            parts.append(f"scales up to {self.max_angular_scale:g} of the distance")
        if self.drop_rate > 0.0:
            parts.append(
                f"up to {self.drop_rate:.0%} of the Gaussians left out of a training render"
            )
        if self.colors_unseen:
            parts.append("unseen regions in the photographs' colours")
        return "; ".join(parts)

    def record(self) -> dict[str, Any]:
        """The values for JSON; a step that never comes is None."""
        values = asdict(self)
        if math.isinf(self.fading_until):
            values["fading_until"] = None
        return values


def starts_dense(
    config: PS4PROSplatfactoModelConfig, num_initial_points: int, num_views: int
) -> bool:
    """Whether a sparse capture starts from so many points that densification is to be short."""
    dense = config.dense_start
    has_points = num_initial_points >= dense.num_points
    return dense.enabled and has_points and sparsity(num_views) > 0.0


def densify_grad_thresh(
    config: PS4PROSplatfactoModelConfig, num_initial_points: int, num_views: int
) -> float:
    """Threshold of densification, the lower one of a dense start where there is one."""
    thresh = config.densify_grad_thresh
    if starts_dense(config, num_initial_points, num_views):
        return min(thresh, config.dense_start.grad_thresh)
    return thresh


def plan_splat(
    config: PS4PROSplatfactoModelConfig,
    num_initial_points: int,
    num_views: int,
    run_length: int | None = None,
) -> SplatPlan:
    """Decide for a run of `run_length` steps on `num_views` photographs; None is of any length."""
    sparse = sparsity(num_views)
    ends = [config.stop_split_at]
    if run_length is not None:
        ends.append(int(config.densify_until * run_length))
    if starts_dense(config, num_initial_points, num_views):
        ends.append(int(config.dense_start.stop_split_at / sparse))
    return SplatPlan(
        num_initial_points=num_initial_points,
        stop_split_at=min(ends),
        densify_grad_thresh=densify_grad_thresh(config, num_initial_points, num_views),
        fading=config.fading * sparse,
        fading_until=math.inf if run_length is None else config.fading_until * run_length,
        max_angular_scale=config.max_angular_scale if sparse > 0.0 else 0.0,
        colors_unseen=config.unseen_color == "photographs" and sparse > 0.0,
    )
