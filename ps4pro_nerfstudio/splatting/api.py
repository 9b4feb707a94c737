# SPDX-License-Identifier: Apache-2.0
"""`rasterization` with gsplat's signature and return, on every device.

CUDA tensors go to gsplat; float32 CPU tensors to the numba kernels (`cpu/`); everything else, and
float64, to the torch twin (`reference.py`). The environment variable PS4PRO_RASTERIZER (auto,
gsplat, numba, torch) overrides the choice.

Shapes: N Gaussians, C cameras, K spherical-harmonics coefficients, D channels. Frames: OpenCV
camera axes (x right, y down, z forward), pixel (x, y) centred at (x + 0.5, y + 0.5). `viewmats` are
world to camera.
"""

from __future__ import annotations

import os
from types import ModuleType
from typing import Any, Literal

import torch
from torch import Tensor

from ps4pro_nerfstudio.messages import InputError
from ps4pro_nerfstudio.splatting import adapter, reference
from ps4pro_nerfstudio.splatting.cpu.tracing import untraced

TILE_SIZE = 16
MAX_SH_DEGREE = 4
RENDER_MODES = ("RGB", "D", "ED", "RGB+D", "RGB+ED")
RASTERIZERS = ("auto", "gsplat", "numba", "torch")


def chosen_rasterizer(device: torch.device | str, dtype: torch.dtype = torch.float32) -> str:
    """Which implementation renders tensors of this device and dtype: gsplat, numba or torch.

    Raises:
        InputError: PS4PRO_RASTERIZER names none, or one that cannot take such tensors.
    """
    kind = torch.device(device).type
    suitable = {
        "gsplat": kind == "cuda",
        "numba": kind == "cpu" and dtype == torch.float32,
        "torch": True,
    }
    wish = os.environ.get("PS4PRO_RASTERIZER", "auto").strip().lower() or "auto"
    if wish not in RASTERIZERS:
        raise InputError(f"PS4PRO_RASTERIZER={wish!r}: expected one of {', '.join(RASTERIZERS)}")
    if wish == "auto":
        return next(name for name, fits in suitable.items() if fits)
    if not suitable[wish]:
        raise InputError(
            f"PS4PRO_RASTERIZER={wish} cannot render {dtype} tensors on {kind}; set it to auto"
        )
    return wish


def rasterization(
    means: Tensor,  # [N, 3]
    quats: Tensor,  # [N, 4]
    scales: Tensor,  # [N, 3]
    opacities: Tensor,  # [N]
    colors: Tensor,  # [(C,) N, D] or [(C,) N, K, 3]
    viewmats: Tensor,  # [C, 4, 4]
    Ks: Tensor,  # [C, 3, 3]
    width: int,
    height: int,
    near_plane: float = 0.01,
    far_plane: float = 1e10,
    radius_clip: float = 0.0,
    eps2d: float = 0.3,
    sh_degree: int | None = None,
    packed: bool = True,
    tile_size: int = TILE_SIZE,
    backgrounds: Tensor | None = None,
    render_mode: Literal["RGB", "D", "ED", "RGB+D", "RGB+ED"] = "RGB",
    sparse_grad: bool = False,
    absgrad: bool = False,
    rasterize_mode: Literal["classic", "antialiased"] = "classic",
    channel_chunk: int = 32,
    distributed: bool = False,
    camera_model: Literal["pinhole", "ortho", "fisheye"] = "pinhole",
    covars: Tensor | None = None,
    **newer_arguments: Any,
) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Render N Gaussians to C images; differentiable in all but the intrinsics.

    Names, order and defaults are gsplat's, and on CUDA this is gsplat's function.

    Args:
        means: [N, 3], world.
        quats: [N, 4], (w, x, y, z), any length but zero.
        scales: [N, 3], linear, world units.
        opacities: [N], in [0, 1].
        colors: [(C,) N, D] colours or features, or [(C,) N, K, 3] SH coefficients with `sh_degree`.
        viewmats: [C, 4, 4], world to camera.
        Ks: [C, 3, 3], intrinsics in pixels.
        width: of the images, pixels.
        height: of the images, pixels.
        near_plane: Gaussians whose centre is nearer are not drawn.
        far_plane: nor those farther away.
        radius_clip: nor those whose radius in pixels is at most this.
        eps2d: variance in px^2 added to the projected covariance.
        sh_degree: 0 .. 4, degree in use (K may be larger); None for plain colours.
        packed: whether the rows of `info` are those of visible Gaussians only ([nnz, ...], with
            `camera_ids` and `gaussian_ids`) or all ([C, N, ...]). Strategies must be told the same.
            The image does not depend on it; False is faster here.
        tile_size: 16.
        backgrounds: [C, D], added behind the colours; depth has none.
        render_mode: colours, accumulated depth D, expected depth ED = D / max(alpha, 1e-10), or
            both with the depth last.
        sparse_grad: CUDA only.
        absgrad: let the backward pass fill `info["means2d"].absgrad`.
        rasterize_mode: "antialiased" multiplies opacities by sqrt(det before blur / det after).
        channel_chunk: channels per pass on CUDA; without effect here.
        distributed: CUDA only.
        camera_model: "pinhole"; others are CUDA only.
        covars: CUDA only.
        newer_arguments: what a newer gsplat accepts besides; CUDA only.

    Returns:
        render [C, H, W, D'], alpha [C, H, W, 1], and `info` with the keys of gsplat. Rows of
        invisible Gaussians are zero. Tile lists hold fewer intersections than gsplat's: tiles that
        an ellipse of alpha = 1/255 cannot touch are left out.

    Raises:
        ValueError: an argument has the wrong shape, dtype, device or value.
        NotImplementedError: an option that the CPU path lacks.
    """
    arguments = dict(locals())
    arguments.update(arguments.pop("newer_arguments"))
    backend = chosen_rasterizer(means.device, means.dtype)
    if backend == "gsplat":
        return adapter.gsplat_rasterization(**arguments)
    _refuse_missing_options(tile_size, sparse_grad, distributed, camera_model, covars)
    for name, value in newer_arguments.items():
        if value is not None and value is not False:
            raise NotImplementedError(f"{name}={value!r} is not available on the CPU")
    _check_values(width, height, sh_degree, render_mode, rasterize_mode)
    _check_tensors(
        means, quats, scales, opacities, colors, viewmats, Ks, backgrounds, sh_degree, render_mode
    )
    settings = reference.ProjectionSettings(
        width=width,
        height=height,
        near_plane=near_plane,
        far_plane=far_plane,
        radius_clip=radius_clip,
        eps2d=eps2d,
        sh_degree=sh_degree,
        antialiased=rasterize_mode == "antialiased",
    )
    return _render(
        _implementation(backend), means, quats, scales, opacities, colors, viewmats, Ks, settings,
        packed, backgrounds, render_mode, absgrad,
    )  # fmt: skip


def _implementation(backend: str) -> ModuleType:
    """The module with `project` and `composite`."""
    if backend == "torch":
        return reference
    with untraced():
        from ps4pro_nerfstudio.splatting.cpu import functions

    return functions


# --------------------------------------------------------------------------- validation


def _refuse_missing_options(tile_size, sparse_grad, distributed, camera_model, covars) -> None:
    if tile_size != TILE_SIZE:
        raise NotImplementedError(f"tile_size={tile_size}: the CPU has tiles of {TILE_SIZE} only")
    if sparse_grad:
        raise NotImplementedError("sparse_grad=True is not available on the CPU")
    if distributed:
        raise NotImplementedError("distributed=True is not available on the CPU")
    if camera_model not in ("pinhole", "ortho", "fisheye", "ftheta"):
        raise ValueError(f"camera_model={camera_model!r}: expected 'pinhole'")
    if camera_model != "pinhole":
        raise NotImplementedError(f"camera_model={camera_model!r} is not available on the CPU")
    if covars is not None:
        raise NotImplementedError("covars is not available on the CPU; pass quats and scales")


def _check_values(width, height, sh_degree, render_mode, rasterize_mode) -> None:
    for name, value in (("width", width), ("height", height)):
        if int(value) != value or value < 1:
            raise ValueError(f"{name}={value!r}: expected a positive whole number")
    if render_mode not in RENDER_MODES:
        raise ValueError(f"render_mode={render_mode!r}: expected one of {', '.join(RENDER_MODES)}")
    if rasterize_mode not in ("classic", "antialiased"):
        raise ValueError(f"rasterize_mode={rasterize_mode!r}: expected classic or antialiased")
    if sh_degree is not None and sh_degree not in range(MAX_SH_DEGREE + 1):
        raise ValueError(f"sh_degree={sh_degree!r}: expected None or 0 to {MAX_SH_DEGREE}")


def _check_tensors(
    means, quats, scales, opacities, colors, viewmats, intrinsics, backgrounds, sh_degree, mode
) -> None:
    if means.dim() != 2 or means.shape[1] != 3:
        raise ValueError(f"means: expected shape [N, 3], got {list(means.shape)}")
    if means.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"means: expected dtype float32 or float64, got {means.dtype}")
    if viewmats.dim() != 3 or viewmats.shape[1:] != (4, 4) or len(viewmats) == 0:
        raise ValueError(f"viewmats: expected shape [C, 4, 4], got {list(viewmats.shape)}")
    n, c = len(means), len(viewmats)
    tensors: dict[str, tuple[Tensor, list[list[int]]]] = {
        "quats": (quats, [[n, 4]]),
        "scales": (scales, [[n, 3]]),
        "opacities": (opacities, [[n]]),
        "viewmats": (viewmats, [[c, 4, 4]]),
        "Ks": (intrinsics, [[c, 3, 3]]),
    }
    if sh_degree is None:
        d = colors.shape[-1] if colors.dim() else 0
        tensors["colors"] = (colors, [[n, d], [c, n, d]])
        if d == 0:
            raise ValueError(
                f"colors: expected at least one channel, got shape {list(colors.shape)}"
            )
    else:
        bases = (sh_degree + 1) ** 2
        k = max(colors.shape[-2], bases) if colors.dim() in (3, 4) else bases
        tensors["colors"] = (colors, [[n, k, 3], [c, n, k, 3]])
        d = 3
    # The background of a depth image is zero whatever is passed, as in gsplat.
    if backgrounds is not None and "RGB" in mode:
        tensors["backgrounds"] = (backgrounds, [[c, d]])
    for name, (tensor, shapes) in tensors.items():
        if list(tensor.shape) not in shapes:
            expected = " or ".join(str(shape) for shape in shapes)
            raise ValueError(f"{name}: expected shape {expected}, got {list(tensor.shape)}")
        if tensor.dtype != means.dtype:
            raise ValueError(
                f"{name}: expected dtype {means.dtype} (that of means), got {tensor.dtype}"
            )
        if tensor.device != means.device:
            raise ValueError(
                f"{name}: expected device {means.device} (that of means), got {tensor.device}"
            )


# --------------------------------------------------------------------------- rendering


def _render(
    implementation: ModuleType,
    means: Tensor,
    quats: Tensor,
    scales: Tensor,
    opacities: Tensor,
    colors: Tensor,
    viewmats: Tensor,
    intrinsics: Tensor,
    settings: reference.ProjectionSettings,
    packed: bool,
    backgrounds: Tensor | None,
    render_mode: str,
    absgrad: bool,
) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """What all implementations share: rows, channels, background, expected depth, info."""
    n, c = len(means), len(viewmats)
    radii, means2d, conics, depths, compensations, rgb = implementation.project(
        means, quats, scales, opacities, colors, viewmats, intrinsics, settings
    )
    if rgb is None:
        rgb = colors.expand(c, n, colors.shape[-1])
    opacity_rows = opacities.expand(c, n)
    if compensations is not None:
        opacity_rows = opacity_rows * compensations

    camera_ids = gaussian_ids = None
    row_starts = [n * camera for camera in range(c + 1)]
    if packed:
        camera_ids, gaussian_ids = (radii > 0).nonzero(as_tuple=True)
        radii, means2d, conics, depths, opacity_rows, rgb = (
            x[camera_ids, gaussian_ids] for x in (radii, means2d, conics, depths, opacity_rows, rgb)
        )
        row_starts = [0, *camera_ids.bincount(minlength=c).cumsum(0).tolist()]

    with_color = "RGB" in render_mode
    with_depth = "D" in render_mode
    render, alphas, lists = implementation.composite(
        means2d, conics, opacity_rows, rgb if with_color else rgb[..., :0], depths, radii,
        row_starts, settings.width, settings.height, with_depth, absgrad,
    )  # fmt: skip
    if backgrounds is not None and with_color:
        if with_depth:
            backgrounds = torch.cat([backgrounds, backgrounds.new_zeros(c, 1)], dim=-1)
        render = render + (1 - alphas) * backgrounds[:, None, None, :]
    if "ED" in render_mode:
        expected = render[..., -1:] / alphas.clamp(min=1e-10)
        render = torch.cat([render[..., :-1], expected], dim=-1) if with_color else expected

    tiles_w = -(-settings.width // TILE_SIZE)
    tiles_h = -(-settings.height // TILE_SIZE)
    info = {
        "camera_ids": camera_ids,
        "gaussian_ids": gaussian_ids,
        "radii": adapter.radii_for_strategy(radii),
        "means2d": means2d,
        "depths": depths,
        "conics": conics,
        "opacities": opacity_rows,
        "tile_width": tiles_w,
        "tile_height": tiles_h,
        "width": settings.width,
        "height": settings.height,
        "tile_size": TILE_SIZE,
        "n_cameras": c,
    }
    info.update(_tile_info(lists, (c, tiles_h, tiles_w), depths.shape))
    return render, alphas, info


def _tile_info(lists: list, grid: tuple[int, int, int], rows: torch.Size) -> dict[str, Tensor]:
    """The tile lists of all cameras in gsplat's form."""
    # as_tensor shares the memory of arrays, so one camera costs no copy.
    ids = [torch.as_tensor(x.ids) for x in lists]
    ids = [i + x.first if x.first else i for i, x in zip(ids, lists, strict=True)]
    offsets, total = [], 0
    for x in lists:
        starts = torch.as_tensor(x.tile_starts)
        offsets.append(starts[:-1] + total)
        total += len(x.ids)
    tiles_per_gauss = _joined([torch.as_tensor(x.tiles_per_gauss) for x in lists])
    return {
        "tiles_per_gauss": tiles_per_gauss.int().reshape(rows),
        "isect_ids": _joined([torch.as_tensor(x.isect_ids) for x in lists]),
        "flatten_ids": _joined(ids).int(),
        "isect_offsets": _joined(offsets).int().reshape(grid),
    }


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)
