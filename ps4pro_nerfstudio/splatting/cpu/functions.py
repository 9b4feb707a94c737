# SPDX-License-Identifier: Apache-2.0
"""The CPU kernels as two autograd functions: projection (with SH colour) and compositing.

Two, because densification reads the gradient of the projected means between them. Both take and
return float32 CPU tensors; shapes as in the kernels, with a leading camera axis in `project`, and
flattened rows in `composite`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ps4pro_nerfstudio.messages import InputError
from ps4pro_nerfstudio.splatting.cpu import binning, compositing, projection
from ps4pro_nerfstudio.splatting.cpu.threads import kernel_threads
from ps4pro_nerfstudio.splatting.reference import ProjectionSettings

F32 = np.float32
# Positions and slots are int32.
MAX_INTERSECTIONS = 2**31 - 1
# Tiles are dealt to more units of work than threads, because their cost differs.
TILE_CHUNKS_PER_THREAD = 8


def _array(tensor: Tensor) -> np.ndarray:
    """The tensor's memory as a contiguous NumPy array; copies only if it must."""
    return tensor.detach().contiguous().numpy()


def _array_or_zeros(tensor: Tensor | None, shape: Sequence[int]) -> np.ndarray:
    """A gradient that autograd may not have."""
    return np.zeros(tuple(shape), F32) if tensor is None else _array(tensor)


def _by_camera(colors: Tensor, degree: int) -> np.ndarray:
    """Colours as [C or 1, N, K, 3], plain ones as [C or 1, N, D, 1]; 1 when cameras share them."""
    array = _array(colors)
    if degree < 0:
        array = array[..., None]
    return array if array.ndim == 4 else array[None]


def _camera_arrays(
    viewmats: np.ndarray, intrinsics: Tensor, settings: ProjectionSettings
) -> np.ndarray:
    """What the projection kernels read of each camera, [C, 25].

    Raises:
        ValueError: a rotation cannot be inverted.
    """
    cameras = np.empty((len(viewmats), projection.CAMERA), F32)
    cameras[:, :12] = viewmats[:, :3].reshape(-1, 12)
    cameras[:, 12:15] = _camera_centers(viewmats)[0]
    k = _array(intrinsics)
    cameras[:, 15:19] = np.stack([k[:, 0, 0], k[:, 1, 1], k[:, 0, 2], k[:, 1, 2]], axis=-1)
    cameras[:, 19:21] = settings.width, settings.height
    cameras[:, 21:23] = settings.near_plane, settings.far_plane
    cameras[:, 23:25] = settings.radius_clip, settings.eps2d
    return cameras


def _camera_centers(viewmats: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Camera centres -R^-1 t in the world [C, 3], and R^-1 [C, 3, 3], float64.

    In NumPy, because one small `torch.inverse` takes longer than binning a small scene.
    """
    try:
        inverse = np.linalg.inv(viewmats[:, :3, :3].astype(np.float64))
    except np.linalg.LinAlgError:
        raise ValueError("viewmats: the 3 x 3 rotation of a camera cannot be inverted") from None
    return -np.einsum("cij,cj->ci", inverse, viewmats[:, :3, 3]), inverse


def _viewmat_gradient(sums: np.ndarray, viewmats: np.ndarray) -> Tensor:
    """Gradient [C, 4, 4] from the sums [C, 15] over all Gaussians (float64)."""
    centers, inverse = _camera_centers(viewmats)
    gradient = np.zeros((len(viewmats), 4, 4), F32)
    # The centre is -R^-1 t: dc = -R^-1 (dR c + dt).
    through_center = np.einsum("cji,cj->ci", inverse, sums[:, 12:])
    rotation = sums[:, :9].reshape(-1, 3, 3)
    gradient[:, :3, :3] = rotation - through_center[:, :, None] * centers[:, None, :]
    gradient[:, :3, 3] = sums[:, 9:12] - through_center
    return torch.from_numpy(gradient)


class _Project(torch.autograd.Function):
    """Parameters -> radii, means2d, conics, depths, compensations, rgb of every camera."""

    @staticmethod
    def forward(ctx, means, quats, scales, opacities, colors, viewmats, intrinsics, settings):
        n = means.shape[0]
        n_cameras = viewmats.shape[0]
        degree = -1 if settings.sh_degree is None else settings.sh_degree
        arrays = [_array(x) for x in (means, quats, scales, opacities)]
        coefficients = _by_camera(colors, degree)
        cameras = _camera_arrays(_array(viewmats), intrinsics, settings)
        radii = torch.empty(n_cameras, n, dtype=torch.int32)
        means2d = torch.empty(n_cameras, n, 2)
        conics = torch.empty(n_cameras, n, 3)
        depths = torch.empty(n_cameras, n)
        compensations = torch.empty(n_cameras, n if settings.antialiased else 0)
        rgb = torch.empty(n_cameras, n if degree >= 0 else 0, 3)
        outputs = [x.numpy() for x in (means2d, conics, depths, compensations, rgb, radii)]
        with kernel_threads():
            for c in range(n_cameras):
                projection.project(
                    n, *arrays, coefficients[c % len(coefficients)], degree, cameras[c],
                    *(x[c] for x in outputs),
                )  # fmt: skip
        ctx.save_for_backward(
            means, quats, scales, colors, viewmats, radii, conics, compensations, rgb
        )
        ctx.cameras = cameras
        ctx.degree = degree
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(radii)
        return radii, means2d, conics, depths, compensations, rgb

    @staticmethod
    @once_differentiable
    def backward(ctx, *gradients):
        _, *gradients = gradients
        (
            means, quats, scales, colors, viewmats, radii, conics, compensations, rgb,
        ) = ctx.saved_tensors  # fmt: skip
        degree = ctx.degree
        n = means.shape[0]
        n_cameras = radii.shape[0]
        outputs = [_array(x) for x in (conics, compensations, rgb)]
        shapes = [
            (n_cameras, n, 2), conics.shape, radii.shape, compensations.shape, rgb.shape,
        ]  # fmt: skip
        v_outputs = [_array_or_zeros(g, s) for g, s in zip(gradients, shapes, strict=True)]
        arrays = [_array(x) for x in (means, quats, scales)]
        v_means, v_quats, v_scales = (torch.empty(x.shape) for x in (means, quats, scales))
        v_colors = torch.empty(colors.shape) if degree >= 0 else None
        if v_colors is not None:
            coefficients = _by_camera(colors, degree)
            v_coefficients = _by_camera(v_colors, degree)
        else:
            coefficients = v_coefficients = np.empty((1, 0, 0, 0), F32)
        with_camera = ctx.needs_input_grad[5]
        n_chunks = -(-n // projection.CHUNK)
        sums = np.empty(
            (n_cameras, n_chunks, projection.CAMERA_SUMS if with_camera else 0), np.float64
        )
        radii_array = _array(radii)
        results = [x.numpy() for x in (v_means, v_quats, v_scales)]
        with kernel_threads():
            for c in range(n_cameras):
                shared = c % len(coefficients)
                projection.project_backward(
                    n, radii_array[c], *arrays, coefficients[shared], degree, ctx.cameras[c],
                    *(x[c] for x in outputs), *(x[c] for x in v_outputs),
                    c > 0, c > 0 and len(coefficients) == 1, *results, v_coefficients[shared],
                    sums[c],
                )  # fmt: skip
        v_viewmats = _viewmat_gradient(sums.sum(axis=1), _array(viewmats)) if with_camera else None
        return v_means, v_quats, v_scales, None, v_colors, v_viewmats, None, None


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
    """Project Gaussians to C cameras.

    Args:
        means: [N, 3].
        quats: [N, 4].
        scales: [N, 3].
        opacities: [N], only tested for NaN.
        colors: [(C,) N, K, 3] SH coefficients, or [(C,) N, D] colours (only tested for NaN) when
            settings.sh_degree is None.
        viewmats: [C, 4, 4], world to camera.
        intrinsics: [C, 3, 3], pixels.
        settings: the rest.

    Returns:
        radii [C, N] int32, means2d [C, N, 2], conics [C, N, 3], depths [C, N], compensations [C, N]
        (None in classic mode) and rgb [C, N, 3] (None for plain colours).
    """
    radii, means2d, conics, depths, compensations, rgb = _Project.apply(
        means, quats, scales, opacities, colors, viewmats, intrinsics, settings
    )  # type: ignore[misc]
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
    """What binning found for one camera; rows count from `first`.

    tile_starts [n_tiles + 1], slot_starts [rows + 1], tiles_per_gauss [rows], ids [n_isects] are
    int32; isect_ids [n_isects] int64; records [16 rows] float32.
    """

    first: int
    last: int
    records: np.ndarray
    tile_starts: np.ndarray
    slot_starts: np.ndarray
    tiles_per_gauss: np.ndarray
    ids: np.ndarray
    isect_ids: np.ndarray


def bin_rows(
    first: int,
    last: int,
    width: int,
    height: int,
    arrays: Sequence[np.ndarray],
    colors: np.ndarray,
    depths: np.ndarray,
    depth_channel: bool,
    camera_bits: int,
    threads: int,
) -> TileLists:
    """Tile lists of rows first .. last - 1; arrays are means2d, conics, opacities and radii.

    `camera_bits` are put into the sort keys `isect_ids`.

    Raises:
        InputError: more intersections than an int32 counts.
    """
    n = last - first
    tiles_w = -(-width // binning.TILE)
    tiles_h = -(-height // binning.TILE)
    # torch aligns to 64 bytes, so a record is one cache line.
    records = torch.empty(n * binning.RECORD).numpy()
    tiles_per_gauss = np.empty(n, np.int32)
    tile_starts = np.empty(tiles_w * tiles_h + 1, np.int32)
    slot_starts = np.empty(n + 1, np.int32)
    row_depths = depths[first:last]
    ids, isect_ids, n_isects = binning.build_lists(
        n, tiles_w, tiles_h, *(x[first:last] for x in arrays), colors[first:last],
        row_depths if depth_channel else depths[:0], row_depths, threads, MAX_INTERSECTIONS,
        camera_bits, records, records.view(np.int32), tiles_per_gauss, tile_starts, slot_starts,
    )  # fmt: skip
    if n_isects > MAX_INTERSECTIONS:
        raise InputError(
            f"{n_isects} Gaussian-tile intersections exceed {MAX_INTERSECTIONS}; render at a lower"
            " resolution, or train with fewer or smaller Gaussians"
        )
    return TileLists(
        first, last, records, tile_starts, slot_starts, tiles_per_gauss, ids, isect_ids
    )


def _passes(n_channels: int) -> list[tuple[int, tuple[int, ...]]]:
    """First channel and tag of each compositing pass."""
    return [
        (first, (0,) * (3 if n_channels - first <= 3 else 4)) for first in range(0, n_channels, 4)
    ]


class _Composite(torch.autograd.Function):
    """Screen-space rows -> render [C, H, W, D] and alphas [C, H, W, 1]."""

    @staticmethod
    def forward(
        ctx, means2d, conics, opacities, colors, depths, radii, row_starts, width, height,
        depth_channel, absgrad, lists,
    ):  # fmt: skip
        n_rows = row_starts[-1]
        n_cameras = len(row_starts) - 1
        shapes = [(n_rows, 2), (n_rows, 3), (n_rows,), (n_rows,)]
        arrays = [
            _array(x).reshape(s)
            for x, s in zip((means2d, conics, opacities, radii), shapes, strict=True)
        ]
        color_rows = _array(colors).reshape(n_rows, colors.shape[-1])
        depth_rows = _array(depths).reshape(n_rows)
        n_channels = colors.shape[-1] + depth_channel
        passes = _passes(n_channels)
        render = torch.empty(n_cameras, height, width, n_channels)
        alphas = torch.empty(n_cameras, height, width, 1)
        render_array = render.numpy()
        alphas_array = alphas.numpy().reshape(n_cameras, height, width)
        tiles_w = -(-width // binning.TILE)
        n_tiles = tiles_w * -(-height // binning.TILE)
        state = []
        with kernel_threads() as threads:
            for c in range(n_cameras):
                camera = bin_rows(
                    row_starts[c], row_starts[c + 1], width, height, arrays, color_rows, depth_rows,
                    depth_channel, c << 32 << n_tiles.bit_length(), threads,
                )  # fmt: skip
                lists.append(camera)
                masks = np.zeros(len(camera.ids), np.uint16)
                tile_ends = np.empty(n_tiles, np.int32)
                for first_channel, tag in passes:
                    if first_channel > 0:
                        _recolor(camera, color_rows, depth_rows, depth_channel, first_channel)
                    compositing.forward(
                        tiles_w, n_tiles, width, height, camera.tile_starts, camera.ids,
                        camera.records, camera.records.view(np.int32), tag, first_channel,
                        render_array[c], alphas_array[c], masks, tile_ends,
                        min(n_tiles, TILE_CHUNKS_PER_THREAD * threads),
                    )  # fmt: skip
                state.append((camera, masks, tile_ends))
        # Leaves of the graph that backward does not read are kept for their shapes only.
        ctx.save_for_backward(means2d, conics, opacities, colors, depths, render, alphas)
        ctx.state = state
        ctx.depth_channel = depth_channel
        ctx.absgrad = absgrad
        ctx.set_materialize_grads(False)
        return render, alphas

    @staticmethod
    @once_differentiable
    def backward(ctx, *gradients):
        v_render, v_alphas = gradients
        means2d, conics, opacities, colors, depths, render, alphas = ctx.saved_tensors
        n_cameras, height, width, n_channels = render.shape
        n_colors = colors.shape[-1]
        n_rows = opacities.numel()
        depth_channel = ctx.depth_channel
        v_means2d, v_conics, v_opacities, v_colors = (
            torch.empty(x.shape) for x in (means2d, conics, opacities, colors)
        )
        v_depths = torch.empty(depths.shape) if depth_channel else None
        absgrad = torch.empty(means2d.shape) if ctx.absgrad else torch.empty(0, 2)
        results = [
            v_means2d.numpy().reshape(n_rows, 2),
            absgrad.numpy().reshape(-1, 2),
            v_conics.numpy().reshape(n_rows, 3),
            v_opacities.numpy().reshape(n_rows),
            v_colors.numpy().reshape(n_rows, n_colors),
            np.empty(0, F32) if v_depths is None else v_depths.numpy().reshape(n_rows),
        ]
        color_rows = _array(colors).reshape(n_rows, n_colors)
        depth_rows = _array(depths).reshape(n_rows)
        render_array = _array(render)
        alphas_array = _array(alphas).reshape(n_cameras, height, width)
        v_render_array = _array_or_zeros(v_render, render.shape)
        if v_alphas is None:
            v_alphas_array = np.empty((n_cameras, 0, 0), F32)
        else:
            v_alphas_array = _array(v_alphas).reshape(n_cameras, height, width)
        no_alphas = np.empty((0, 0), F32)
        tiles_w = -(-width // binning.TILE)
        n_tiles = tiles_w * -(-height // binning.TILE)
        passes = _passes(n_channels)
        with kernel_threads() as threads:
            for c, (camera, masks, tile_ends) in enumerate(ctx.state):
                isect_grads = np.empty(len(camera.ids) * compositing.GRADS + 4, F32)
                rows = slice(camera.first, camera.last)
                for first_channel, tag in passes:
                    if len(passes) > 1:
                        _recolor(camera, color_rows, depth_rows, depth_channel, first_channel)
                    compositing.backward(
                        tiles_w, n_tiles, width, height, camera.tile_starts, camera.ids,
                        camera.records, camera.records.view(np.int32), tag, first_channel,
                        render_array[c], alphas_array[c], v_render_array[c],
                        v_alphas_array[c] if first_channel == 0 else no_alphas, masks, tile_ends,
                        isect_grads, min(n_tiles, TILE_CHUNKS_PER_THREAD * threads),
                    )  # fmt: skip
                    compositing.gather(
                        camera.last - camera.first, camera.slot_starts, masks, isect_grads,
                        camera.records, first_channel, *(x[rows] for x in results),
                    )  # fmt: skip
        if ctx.absgrad:
            means2d.absgrad = absgrad
        return v_means2d, v_conics, v_opacities, v_colors, v_depths, *(None,) * 7


def _recolor(
    camera: TileLists,
    color_rows: np.ndarray,
    depth_rows: np.ndarray,
    depth_channel: bool,
    first_channel: int,
) -> None:
    rows = slice(camera.first, camera.last)
    binning.recolor(
        camera.last - camera.first, camera.tiles_per_gauss, color_rows[rows],
        depth_rows[rows] if depth_channel else depth_rows[:0], first_channel, camera.records,
    )  # fmt: skip


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
    """Blend projected Gaussians to C images.

    Args:
        means2d: [..., 2], rows grouped by camera; leading axes are flattened, here and below.
        conics: [..., 3].
        opacities: [...].
        colors: [..., D].
        depths: [...].
        radii: [...] int32.
        row_starts: first row of each camera, and the number of rows.
        width: pixels.
        height: pixels.
        depth_channel: append the depth to the colours as one more channel.
        absgrad: let backward set `means2d.absgrad`, the sum over pixels of the absolute gradient.
            With more than 4 channels, the absolute sums of groups of 4 are added.

    Returns:
        render [C, H, W, D (+ 1)], alphas [C, H, W, 1] and the tile lists of each camera.
    """
    lists: list[TileLists] = []
    render, alphas = _Composite.apply(
        means2d, conics, opacities, colors, depths, radii, row_starts, width, height,
        depth_channel, absgrad, lists,
    )  # type: ignore[misc]  # fmt: skip
    return render, alphas, lists
