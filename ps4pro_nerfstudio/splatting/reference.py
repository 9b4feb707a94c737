# SPDX-License-Identifier: Apache-2.0
"""The rasterizer in plain torch: slow, obvious, any dtype and device; autograd does the gradients.

The oracle of the kernels' tests (in float64), the baseline of the benchmark, and what float64
callers get. `project` and `composite` have the signatures of `cpu/functions.py`, whose module
docstrings (`cpu/projection.py`, `cpu/compositing.py`) fix the notation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

TILE = 16


@dataclass(frozen=True)
class ProjectionSettings:
    """What does not take part in differentiation; arguments of `rasterization`."""

    width: int
    height: int
    near_plane: float = 0.01
    far_plane: float = 1e10
    radius_clip: float = 0.0
    eps2d: float = 0.3
    sh_degree: int | None = None
    antialiased: bool = False


def quaternion_to_rotation(quats: Tensor) -> Tensor:
    """Rotation matrices [..., 3, 3] of quaternions [..., 4] (w, x, y, z) of any length."""
    w, x, y, z = F.normalize(quats, dim=-1).unbind(-1)
    rows = [
        1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
        2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
        2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
    ]  # fmt: skip
    return torch.stack(rows, dim=-1).reshape(*quats.shape[:-1], 3, 3)


def sh_basis(directions: Tensor, degree: int) -> Tensor:
    """Real spherical harmonics at unit directions [..., 3] -> [..., (degree + 1)^2].

    Explicit polynomials, sign convention of gsplat (Condon-Shortley phase included).
    """
    x, y, z = directions.unbind(-1)
    terms = [
        0.28209479177387814 * torch.ones_like(x),
        -0.4886025119029199 * y,
        0.4886025119029199 * z,
        -0.4886025119029199 * x,
        1.0925484305920792 * x * y,
        -1.0925484305920792 * y * z,
        0.31539156525252005 * (3 * z * z - 1),
        -1.0925484305920792 * x * z,
        0.5462742152960396 * (x * x - y * y),
        -0.5900435899266435 * y * (3 * x * x - y * y),
        2.890611442640554 * x * y * z,
        -0.4570457994644658 * y * (5 * z * z - 1),
        0.3731763325901154 * z * (5 * z * z - 3),
        -0.4570457994644658 * x * (5 * z * z - 1),
        1.445305721320277 * z * (x * x - y * y),
        -0.5900435899266435 * x * (x * x - 3 * y * y),
        2.5033429417967046 * x * y * (x * x - y * y),
        -1.7701307697799304 * y * z * (3 * x * x - y * y),
        0.9461746957575601 * x * y * (7 * z * z - 1),
        -0.6690465435572892 * y * z * (7 * z * z - 3),
        0.10578554691520431 * (35 * z**4 - 30 * z * z + 3),
        -0.6690465435572892 * x * z * (7 * z * z - 3),
        0.47308734787878004 * (x * x - y * y) * (7 * z * z - 1),
        -1.7701307697799304 * x * z * (x * x - 3 * y * y),
        0.6258357354491761 * (x**4 - 6 * x * x * y * y + y**4),
    ]
    return torch.stack(terms[: (degree + 1) ** 2], dim=-1)


@dataclass(frozen=True)
class _Splats:
    """Screen-space rows of one camera, before any visibility test."""

    means2d: Tensor  # [N, 2] pixels
    depths: Tensor  # [N]
    conics: Tensor  # [N, 3]
    radii: Tensor  # [N] float, without culling
    determinants: Tensor  # [N], of the blurred covariance
    compensations: Tensor  # [N]
    rgb: Tensor  # [N, 3] with SH, else the plain colours
    raw_rgb: Tensor  # [N, ...] before clamping


def _splat(means, quats, scales, colors, viewmat, center, intrinsics, s: ProjectionSettings):
    """All formulas of the projection, for one camera."""
    rotation = viewmat[:3, :3]
    x, y, z = (means @ rotation.T + viewmat[:3, 3]).unbind(-1)
    fx, fy = intrinsics[0, 0], intrinsics[1, 1]
    cx, cy = intrinsics[0, 2], intrinsics[1, 2]
    means2d = torch.stack([fx * x / z + cx, fy * y / z + cy], dim=-1)

    margin_x = 0.15 * s.width / fx
    margin_y = 0.15 * s.height / fy
    tx = z * (x / z).clamp(-(cx / fx + margin_x), (s.width - cx) / fx + margin_x)
    ty = z * (y / z).clamp(-(cy / fy + margin_y), (s.height - cy) / fy + margin_y)
    zero = torch.zeros_like(z)
    jacobian = torch.stack(
        [fx / z, zero, -fx * tx / (z * z), zero, fy / z, -fy * ty / (z * z)], dim=-1
    ).reshape(-1, 2, 3)
    axes = jacobian @ rotation @ (quaternion_to_rotation(quats) * scales[:, None, :])
    covariance = axes @ axes.transpose(1, 2)
    sharp_xx = covariance[:, 0, 0]
    sharp_yy = covariance[:, 1, 1]
    cov_xy = covariance[:, 0, 1]
    cov_xx = sharp_xx + s.eps2d
    cov_yy = sharp_yy + s.eps2d
    determinants = cov_xx * cov_yy - cov_xy * cov_xy
    conics = torch.stack([cov_yy, -cov_xy, cov_xx], dim=-1) / determinants[:, None]
    ratio = (sharp_xx * sharp_yy - cov_xy * cov_xy) / determinants
    counts = ratio > 1e-12
    compensations = torch.where(counts, torch.where(counts, ratio, 1).sqrt(), 0)
    half_trace = 0.5 * (cov_xx + cov_yy)
    spread = torch.sqrt((half_trace * half_trace - determinants).clamp_min(0.01))
    radii = torch.ceil(3 * torch.sqrt(half_trace + spread)).clamp_max(1e9)

    if s.sh_degree is None:
        return _Splats(means2d, z, conics, radii, determinants, compensations, colors, colors)
    directions = F.normalize(means - center, dim=-1)
    basis = sh_basis(directions, s.sh_degree)
    raw_rgb = (basis[..., None] * colors[:, : basis.shape[-1]]).sum(1) + 0.5
    rgb = raw_rgb.clamp_min(0)
    return _Splats(means2d, z, conics, radii, determinants, compensations, rgb, raw_rgb)


def _visible(splats: _Splats, quats: Tensor, opacities: Tensor, s: ProjectionSettings) -> Tensor:
    """Which rows take part; NaN and infinity anywhere fail."""
    u, v = splats.means2d.unbind(-1)
    z, radii = splats.depths, splats.radii
    finite = torch.isfinite(splats.means2d).all(-1) & torch.isfinite(splats.raw_rgb).all(-1)
    finite &= torch.isfinite(opacities) & torch.isfinite(splats.determinants)
    finite &= quats.norm(dim=-1) > 0
    visible = finite & (splats.determinants > 0) & (radii > s.radius_clip)
    visible &= (z >= s.near_plane) & (z <= s.far_plane)
    visible &= (u + radii > 0) & (u - radii < s.width)
    visible &= (v + radii > 0) & (v - radii < s.height)
    return visible


def project(
    means: Tensor,
    quats: Tensor,
    scales: Tensor,
    opacities: Tensor,
    colors: Tensor,
    viewmats: Tensor,
    intrinsics: Tensor,
    settings: ProjectionSettings,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
    """Project Gaussians to C cameras; arguments and result as `cpu.functions.project`."""
    n = len(means)
    per_camera = colors.dim() == (3 if settings.sh_degree is None else 4)
    columns = []
    for c, (viewmat, k) in enumerate(zip(viewmats, intrinsics, strict=True)):
        # The last row of viewmat counts as constant.
        center = -torch.linalg.solve(viewmat[:3, :3], viewmat[:3, 3])
        shades = colors[c] if per_camera else colors
        arguments = (viewmat, center, k, settings)
        with torch.no_grad():
            splats = _splat(means, quats, scales, shades, *arguments)
            visible = _visible(splats, quats, opacities, settings)
            radii = torch.where(visible, splats.radii, torch.zeros_like(splats.radii)).int()
        # Only visible rows enter the graph, so nothing of the others reaches a gradient.
        rows = visible.nonzero()[:, 0]
        splats = _splat(means[rows], quats[rows], scales[rows], shades[rows], *arguments)
        parts = [splats.means2d, splats.conics, splats.depths, splats.compensations, splats.rgb]
        columns.append(
            [radii] + [x.new_zeros(n, *x.shape[1:]).index_copy(0, rows, x) for x in parts]
        )
    radii, means2d, conics, depths, compensations, rgb = (
        torch.stack(x) for x in zip(*columns, strict=True)
    )
    return (
        radii,
        means2d,
        conics,
        depths,
        compensations if settings.antialiased else None,
        rgb if settings.sh_degree is not None else None,
    )


# --------------------------------------------------------------------------- compositing


@dataclass
class TileLists:
    """Tile lists of one camera; rows count from `first`. Tensors, else as `cpu.functions`."""

    first: int
    last: int
    tile_starts: Tensor
    tiles_per_gauss: Tensor
    ids: Tensor
    isect_ids: Tensor


@torch.no_grad()
def tile_lists(
    means2d: Tensor,
    radii: Tensor,
    depths: Tensor,
    width: int,
    height: int,
    first: int = 0,
    camera: int = 0,
) -> TileLists:
    """Depth-sorted Gaussian ids per tile from the 3-sigma squares, as in gsplat.

    Args:
        means2d: [N, 2], pixels.
        radii: [N] int32.
        depths: [N].
        width: pixels.
        height: pixels.
        first: row of the first of these Gaussians among those of all cameras.
        camera: index of the camera, for the sort keys.
    """
    device = means2d.device
    tiles_w = math.ceil(width / TILE)
    tiles_h = math.ceil(height / TILE)
    limit = torch.tensor([tiles_w, tiles_h], dtype=torch.long, device=device)
    reach = (radii / TILE)[:, None]
    low = torch.floor(means2d / TILE - reach).clamp(-1, 1e6).long().clamp_min(0)
    high = torch.ceil(means2d / TILE + reach).clamp(-1, 1e6).long().clamp_min(0)
    low = torch.minimum(low, limit)
    size = torch.minimum(high, limit) - low
    counts = size.prod(-1) * (radii > 0)
    ids = torch.repeat_interleave(torch.arange(len(counts), device=device), counts)
    within = torch.arange(len(ids), device=device)
    within = within - torch.repeat_interleave(counts.cumsum(0) - counts, counts)
    tile_w = size[ids, 0]
    tile = (low[ids, 1] + within // tile_w) * tiles_w + low[ids, 0] + within % tile_w
    depth_bits = depths.float().contiguous().view(torch.int32)[ids].long()
    n_tiles = tiles_w * tiles_h
    keys = depth_bits | (tile << 32) | (camera << 32 << n_tiles.bit_length())
    order = torch.argsort(keys, stable=True)
    starts = torch.zeros(n_tiles + 1, dtype=torch.long, device=device)
    starts[1:] = torch.bincount(tile, minlength=n_tiles).cumsum(0)
    return TileLists(first, first + len(counts), starts, counts, ids[order], keys[order])


def _tile_weights(sigma: Tensor, opacities: Tensor) -> tuple[Tensor, Tensor]:
    """Blending weights [256, K] of one tile from its exponents [256, K], and their sum [256, 1]."""
    alpha = torch.clamp_max(opacities * torch.exp(-sigma), 0.999)
    alpha = torch.where((sigma < 0) | (alpha < 1 / 255), torch.zeros_like(alpha), alpha)
    after = torch.cumprod(1 - alpha, dim=1)
    before = torch.cat([torch.ones_like(after[:, :1]), after[:, :-1]], dim=1)
    weights = alpha * before * (after > 1e-4)
    return weights, weights.sum(1, keepdim=True)


def composite_camera(
    means2d: Tensor,
    conics: Tensor,
    opacities: Tensor,
    colors: Tensor,
    lists: TileLists,
    width: int,
    height: int,
    absgrad: Tensor | None = None,
) -> Tensor:
    """Blend the rows [N, ...] of one camera tile by tile to [H, W, D + 1], alpha last.

    In the backward pass, the sum over pixels of |d loss / d mean2d of that pixel| is added to
    `absgrad` [N, 2].
    """
    tiles_w = math.ceil(width / TILE)
    tiles_h = math.ceil(height / TILE)
    offsets = torch.arange(TILE, dtype=means2d.dtype, device=means2d.device) + 0.5
    starts = lists.tile_starts.tolist()
    rows = []
    for tile_y in range(tiles_h):
        row = []
        for tile_x in range(tiles_w):
            tile = tile_y * tiles_w + tile_x
            g = lists.ids[starts[tile] : starts[tile + 1]]
            yy, xx = torch.meshgrid(offsets + tile_y * TILE, offsets + tile_x * TILE, indexing="ij")
            dx = means2d[g, 0] - xx.reshape(-1, 1)
            dy = means2d[g, 1] - yy.reshape(-1, 1)
            if absgrad is not None and dx.requires_grad:
                _add_absolute_gradient(dx, absgrad, g, 0)
                _add_absolute_gradient(dy, absgrad, g, 1)
            a, b, c = conics[g].unbind(-1)
            sigma = 0.5 * (a * dx * dx + c * dy * dy) + b * dx * dy
            weights, alpha = _tile_weights(sigma, opacities[g])
            pixels = torch.cat([weights @ colors[g], alpha], dim=1)
            row.append(pixels.reshape(TILE, TILE, -1))
        rows.append(torch.cat(row, dim=1))
    return torch.cat(rows, dim=0)[:height, :width]


def _add_absolute_gradient(offset: Tensor, absgrad: Tensor, ids: Tensor, axis: int) -> None:
    """The gradient of one pixel's offset is that pixel's gradient of the mean."""

    def add(gradient: Tensor) -> None:
        absgrad[:, axis].index_add_(0, ids, gradient.abs().sum(0))

    offset.register_hook(add)


def composite(
    means2d: Tensor,
    conics: Tensor,
    opacities: Tensor,
    colors: Tensor,
    depths: Tensor,
    radii: Tensor,
    row_starts: list[int],
    width: int,
    height: int,
    depth_channel: bool,
    absgrad: bool,
) -> tuple[Tensor, Tensor, list[TileLists]]:
    """Blend projected Gaussians to C images; arguments and result as `cpu.functions.composite`."""
    if depth_channel:
        colors = torch.cat([colors, depths[..., None]], dim=-1)
    total = None
    if absgrad:
        total = torch.zeros_like(means2d)
        means2d.absgrad = total  # type: ignore[attr-defined]
        total = total.view(-1, 2)
    images, lists = [], []
    for c, (first, last) in enumerate(pairwise(row_starts)):
        rows = slice(first, last)
        means = means2d.reshape(-1, 2)[rows]
        camera = tile_lists(
            means, radii.reshape(-1)[rows], depths.reshape(-1)[rows], width, height, first, c
        )
        image = composite_camera(
            means,
            conics.reshape(-1, 3)[rows],
            opacities.reshape(-1)[rows],
            colors.reshape(-1, colors.shape[-1])[rows],
            camera,
            width,
            height,
            None if total is None else total[rows],
        )
        lists.append(camera)
        images.append(image)
    stacked = torch.stack(images)
    return stacked[..., :-1], stacked[..., -1:], lists
