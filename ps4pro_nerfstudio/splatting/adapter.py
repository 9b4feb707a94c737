# SPDX-License-Identifier: Apache-2.0
"""The only place that knows which gsplat is installed.

gsplat changed the shape of `info["radii"]` from [C, N] to [C, N, 2] (x and y extents) in 1.5, and
its strategies test the shape of their own version. Two operations of its strategies exist for CUDA
only; `enable_cpu_strategies` adds them for CPU tensors. Nothing but `require_kernels` loads
gsplat's CUDA extension: where a CUDA compiler but no GPU exists, that would start a build that
fails.
"""

from __future__ import annotations

import functools
import math
from importlib import metadata
from typing import Any

import torch
from torch import Tensor

from ps4pro_nerfstudio.messages import MissingPartError
from ps4pro_nerfstudio.splatting.reference import quaternion_to_rotation


@functools.cache
def gsplat_version() -> tuple[int, int]:
    """Major and minor version of the installed gsplat, from its metadata."""
    major, minor = metadata.version("gsplat").split(".")[:2]
    return int(major), int(minor)


def radii_for_strategy(radii: Tensor, version: tuple[int, int] | None = None) -> Tensor:
    """Radii [...] int32 in the shape that gsplat's strategies of this version expect.

    Args:
        radii: [C, N] or [nnz], pixels, 0 for Gaussians that are not visible.
        version: major and minor; None for the installed one.

    Returns:
        The same for gsplat below 1.5; [..., 2], equal in x and y, from 1.5 on.
    """
    if (version or gsplat_version()) < (1, 5):
        return radii
    return radii[..., None].expand(*radii.shape, 2)


def gsplat_rasterization(**arguments: Any) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Call gsplat's own `rasterization`, for CUDA tensors."""
    from gsplat.rendering import rasterization

    return rasterization(**arguments)


def require_kernels() -> None:
    """Load gsplat's CUDA kernels, which its first use on a machine compiles for minutes.

    Raises:
        MissingPartError: they cannot be compiled here; says what is missing.
    """
    cure = (
        f"install a CUDA toolkit with nvcc (CUDA {torch.version.cuda}), or gsplat as a wheel with "
        "kernels, or train on the CPU: --machine.device-type cpu"
    )
    try:
        from gsplat.cuda._backend import _C  # pyright: ignore[reportAttributeAccessIssue]
    except Exception as error:  # Whatever the compilation raises.
        reason = str(error).strip().splitlines()[:1] or [type(error).__name__]
        raise MissingPartError(f"gsplat's CUDA kernels: {reason[0]}; {cure}") from error
    if _C is None:
        raise MissingPartError(f"gsplat's CUDA kernels are not compiled; {cure}")


def relocated(opacities: Tensor, scales: Tensor, ratios: Tensor) -> tuple[Tensor, Tensor]:
    """Opacity and scale of each of `ratios` coincident copies that together look like one Gaussian.

    3D Gaussian Splatting as Markov Chain Monte Carlo (Kheradmand et al. 2024), equation 9:
        o' = 1 - (1 - o)^(1 / n)
        s' = s o / sum_{i=1..n} sum_{k=0..i-1} C(i-1, k) (-1)^k o'^(k+1) / sqrt(k + 1)
    The sum over i of C(i-1, k) is C(n, k+1). Evaluated in float64, because the terms alternate.

    Args:
        opacities: [N], in (0, 1).
        scales: [N, 3], linear.
        ratios: [N] integers, number of copies n; clamped to 1 .. 51 as in gsplat.

    Returns:
        New opacities [N] and scales [N, 3], in the dtype of the input.
    """
    limit = 51
    copies = ratios.clamp(1, limit).long()
    opacity = opacities.double()
    shared = 1 - (1 - opacity) ** (1 / copies)
    table = torch.zeros(limit + 1, limit, dtype=torch.float64)
    for n in range(1, limit + 1):
        for k in range(n):
            table[n, k] = math.comb(n, k + 1) * (-1) ** k / math.sqrt(k + 1)
    powers = shared[:, None] ** torch.arange(1, limit + 1)
    factor = opacity / (table[copies] * powers).sum(-1)
    return shared.to(opacities.dtype), (scales * factor[:, None]).to(scales.dtype)


def _covariances(
    quats: Tensor,
    scales: Tensor,
    compute_covar: bool = True,
    compute_preci: bool = True,
    triu: bool = False,
) -> tuple[Tensor | None, Tensor | None]:
    """Do what gsplat's `quat_scale_to_covar_preci` does, full matrices only."""
    if triu:
        raise NotImplementedError("triu=True is not available on the CPU")
    rotation = quaternion_to_rotation(quats)

    def product(axes: Tensor) -> Tensor:
        return axes @ axes.transpose(-1, -2)

    return (
        product(rotation * scales[..., None, :]) if compute_covar else None,
        product(rotation / scales[..., None, :]) if compute_preci else None,
    )


def enable_cpu_strategies() -> None:
    """Let gsplat's strategies work on CPU tensors; CUDA tensors still go to gsplat. Idempotent.

    MCMCStrategy calls `compute_relocation` and `quat_scale_to_covar_preci`, which gsplat implements
    in CUDA only. Both names in `gsplat.strategy.ops` are replaced by functions that look at the
    device first.
    """
    from gsplat.strategy import ops

    if getattr(ops.compute_relocation, "cpu_too", False):
        return
    relocation_on_cuda = ops.compute_relocation
    covariances_on_cuda = ops.quat_scale_to_covar_preci

    @functools.wraps(relocation_on_cuda)
    def compute_relocation(opacities, scales, ratios, binoms):
        if opacities.is_cuda:
            return relocation_on_cuda(opacities, scales, ratios, binoms)
        # Models keep opacities as [N] or [N, 1]; gsplat returns the shape it was given.
        new_opacities, new_scales = relocated(opacities.flatten(), scales, ratios)
        return new_opacities.reshape(opacities.shape), new_scales

    @functools.wraps(covariances_on_cuda)
    def quat_scale_to_covar_preci(quats, scales, *arguments, **options):
        convert = covariances_on_cuda if quats.is_cuda else _covariances
        return convert(quats, scales, *arguments, **options)

    compute_relocation.cpu_too = True  # type: ignore[attr-defined]
    ops.compute_relocation = compute_relocation
    ops.quat_scale_to_covar_preci = quat_scale_to_covar_preci  # type: ignore[assignment]
