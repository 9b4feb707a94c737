# SPDX-License-Identifier: Apache-2.0
"""Front-to-back compositing of projected Gaussians, with gradients.

Notation (screen space, pixels; pixel (x, y) has its centre at (x + 0.5, y + 0.5))
    d       = mean2d - pixel centre
    sigma   = 0.5 * (a dx^2 + c dy^2) + b dx dy          conic = (a, b, c)
    alpha   = min(0.999, opacity * exp(-sigma)), dropped when below 1 / 255
    T       = product of (1 - alpha) of the Gaussians in front
    render  = sum of T * alpha * colour; alphas = 1 - T behind the last Gaussian
A pixel stops before the Gaussian that would bring T to 1e-4 or less (3D Gaussian Splatting, Kerbl
et al. 2023, section 6; constants of gsplat).

A tile of 16 x 16 pixels is 16 *blocks* of 4 x 4 pixels, one SIMD vector each. For every tile the
loop order is Gaussian (front to back) -> block, so parameters of a Gaussian stay in registers and
no sorting per pixel is needed. The cull has two phases: one vector, a lane per block, holds the
smallest sigma over each block's square of pixel centres, in closed form; the comparison with the
sigma of alpha = 1 / 255 gives a bit mask, and only its set bits are composited.

Backward walks the same masks front to back again. It keeps, per pixel, the value still to be
composited behind the current Gaussian (``behind``), which gives
    d render / d alpha = T * colour - behind / (1 - alpha)
without storing per-pixel state of the forward pass. Gradients are written once per intersection
and then gathered per Gaussian, in slot order: no atomics, and the same sum order for any number of
threads.

One pass composites 3 or 4 channels, by the length of `tag`, a tuple of zeros that makes numba
compile one version for each.
"""

from __future__ import annotations

import numpy as np
from numba import prange

from ps4pro_nerfstudio.splatting.cpu.binning import (
    R_A,
    R_B,
    R_B_OVER_A,
    R_B_OVER_C,
    R_C,
    R_COLOR,
    R_OPACITY,
    R_SIGMA_MAX,
    R_SLOT_BASE,
    R_SLOT_PITCH,
    R_X,
    R_Y,
    RECORD,
    TILE,
)
from ps4pro_nerfstudio.splatting.cpu.jit import NO_NAN, helper, kernel
from ps4pro_nerfstudio.splatting.cpu.simd import (
    LANES,
    absolute,
    align_stack,
    any_lane,
    both,
    broadcast,
    choose,
    exp_negative,
    keep,
    load,
    load_scalar,
    lowest_bit,
    mask_bits,
    maximum,
    minimum,
    prefetch,
    prefetch_for_write,
    store,
    store_four_sums,
)

F32 = np.float32

BLOCK_W = 4
BLOCK_H = LANES // BLOCK_W
BLOCKS_X = TILE // BLOCK_W
BLOCKS = BLOCKS_X * (TILE // BLOCK_H)
PIXELS = BLOCKS * LANES

# Scratch of a tile: planes of PIXELS floats, then the constants of the cull. Planes 1-4 are
# colours, respectively their gradients; P_BEHIND is used in the backward pass only.
# A plane is a line longer than its pixels, so that no two planes are a multiple of 4 KiB apart,
# which CPUs mistake for the same address.
PLANE = PIXELS + LANES
P_TRANSMITTANCE = 0
P_C0 = PLANE
P_C1 = 2 * PLANE
P_C2 = 3 * PLANE
P_C3 = 4 * PLANE
P_BEHIND = 5 * PLANE
P_X = 6 * PLANE
P_Y = 7 * PLANE
P_BLOCK_X = 8 * PLANE
P_BLOCK_Y = 8 * PLANE + LANES
SCRATCH = 8 * PLANE + 2 * LANES

# Columns of an intersection's gradient row: sum x, y | sum of |x|, |y| | moments xx, xy, yy | sum s
# | 4 colours.
GRADS = 12
GATHER_CHUNK = 512

ALPHA_MIN = F32(1.0 / 255.0)
ALPHA_MAX = F32(0.999)
T_MIN = F32(1e-4)
PREFETCH_AHEAD = 4
# Widens the cull by more than the rounding of sigma.
CULL_MARGIN = F32(0.01)


@helper(fastmath=NO_NAN)
def _make_scratch():
    """Scratch of a tile with its constants: pixel centres by block and lane, and block centres.

    Aligned to 64 bytes: a vector that straddles two cache lines costs twice.
    """
    memory = np.empty(SCRATCH + LANES, np.float32)
    offset = (64 - memory.ctypes.data % 64) // 4 % 16
    scratch = memory[offset : offset + SCRATCH]
    for block in range(BLOCKS):
        block_x = (block % BLOCKS_X) * BLOCK_W
        block_y = (block // BLOCKS_X) * BLOCK_H
        for i in range(LANES):
            scratch[P_X + block * LANES + i] = F32(block_x + i % BLOCK_W) + F32(0.5)
            scratch[P_Y + block * LANES + i] = F32(block_y + i // BLOCK_W) + F32(0.5)
        scratch[P_BLOCK_X + block] = F32(block_x) + F32(0.5) * F32(BLOCK_W)
        scratch[P_BLOCK_Y + block] = F32(block_y) + F32(0.5) * F32(BLOCK_H)
    return scratch


@helper(fastmath=NO_NAN)
def _hit_blocks(records, g, mean_x, mean_y, half_a, conic_b, half_c, sigma_max, scratch):
    """Bit mask of the blocks in which sigma may fall below sigma_max.

    The smallest value of the convex sigma over a box lies on the edge nearest to the mean in x,
    or on the one nearest in y; on either, the free coordinate is its optimum clamped to the edge.
    """
    zero = broadcast(F32(0))
    reach_x = broadcast(F32(0.5) * F32(BLOCK_W - 1))
    reach_y = broadcast(F32(0.5) * F32(BLOCK_H - 1))
    centre_x = broadcast(mean_x) - load(scratch, P_BLOCK_X)
    centre_y = broadcast(mean_y) - load(scratch, P_BLOCK_Y)
    low_x = centre_x - reach_x
    high_x = centre_x + reach_x
    low_y = centre_y - reach_y
    high_y = centre_y + reach_y
    near_x = maximum(low_x, minimum(high_x, zero))
    near_y = maximum(low_y, minimum(high_y, zero))
    slope_y = broadcast(-load_scalar(records, g + R_B_OVER_C))
    slope_x = broadcast(-load_scalar(records, g + R_B_OVER_A))
    free_y = maximum(low_y, minimum(high_y, slope_y * near_x))
    free_x = maximum(low_x, minimum(high_x, slope_x * near_y))
    edge_x = (half_a * near_x + conic_b * free_y) * near_x + half_c * free_y * free_y
    edge_y = (half_c * near_y + conic_b * free_x) * near_y + half_a * free_x * free_x
    return mask_bits(minimum(edge_x, edge_y) <= sigma_max)


# --------------------------------------------------------------------------- forward


@helper(fastmath=NO_NAN)
def _forward_tile(
    tile, tiles_w, width, height, tile_starts, ids, records, records_int, tag, first_channel,
    render, alphas, masks, tile_ends, scratch,
):  # fmt: skip
    align_stack()
    column = tile % tiles_w
    row = tile // tiles_w
    tile_x = column * TILE
    tile_y = row * TILE
    origin_x = F32(tile_x)
    origin_y = F32(tile_y)
    zero = broadcast(F32(0))
    one = broadcast(F32(1))
    alpha_min = broadcast(ALPHA_MIN)
    alpha_max = broadcast(ALPHA_MAX)
    t_min = broadcast(T_MIN)
    columns = broadcast(F32(min(width - tile_x, TILE)))
    rows = broadcast(F32(min(height - tile_y, TILE)))
    alive = 0
    for block in range(BLOCKS):
        p = block * LANES
        inside = both(load(scratch, P_X + p) <= columns, load(scratch, P_Y + p) <= rows)
        store(scratch, P_TRANSMITTANCE + p, keep(inside, one))
        store(scratch, P_C0 + p, zero)
        store(scratch, P_C1 + p, zero)
        store(scratch, P_C2 + p, zero)
        store(scratch, P_C3 + p, zero)
        if any_lane(inside):
            alive |= 1 << block

    k = tile_starts[tile]
    end = tile_starts[tile + 1]
    while k < end and alive != 0:
        g = ids[k] * RECORD
        k += 1
        if k + PREFETCH_AHEAD < end:
            prefetch(records, ids[k + PREFETCH_AHEAD] * RECORD)
        mean_x = load_scalar(records, g + R_X) - origin_x
        mean_y = load_scalar(records, g + R_Y) - origin_y
        half_a = broadcast(F32(0.5) * load_scalar(records, g + R_A))
        conic_b = broadcast(load_scalar(records, g + R_B))
        half_c = broadcast(F32(0.5) * load_scalar(records, g + R_C))
        cull = broadcast(load_scalar(records, g + R_SIGMA_MAX) + CULL_MARGIN)
        hits = alive & _hit_blocks(
            records, g, mean_x, mean_y, half_a, conic_b, half_c, cull, scratch
        )
        slot = load_scalar(records_int, g + R_SLOT_BASE)
        slot += row * load_scalar(records_int, g + R_SLOT_PITCH) + column
        masks[slot] = hits
        if hits == 0:
            continue
        centre_x = broadcast(mean_x)
        centre_y = broadcast(mean_y)
        opacity = broadcast(load_scalar(records, g + R_OPACITY))
        color0 = broadcast(load_scalar(records, g + R_COLOR))
        color1 = broadcast(load_scalar(records, g + R_COLOR + 1))
        color2 = broadcast(load_scalar(records, g + R_COLOR + 2))
        color3 = broadcast(load_scalar(records, g + R_COLOR + 3))
        while hits != 0:
            block = lowest_bit(hits)
            hits &= hits - 1
            p = block * LANES
            dx = centre_x - load(scratch, P_X + p)
            dy = centre_y - load(scratch, P_Y + p)
            sigma = (half_a * dx + conic_b * dy) * dx + half_c * dy * dy
            alpha = minimum(opacity * exp_negative(sigma), alpha_max)
            alpha = keep(both(alpha >= alpha_min, sigma >= zero), alpha)
            # A pixel that has stopped keeps its T with the sign turned: t_next is then below t_min.
            t = load(scratch, P_TRANSMITTANCE + p)
            weight = alpha * t
            t_next = t - weight
            live = t_next > t_min
            weight = keep(live, weight)
            store(scratch, P_TRANSMITTANCE + p, choose(live, t_next, zero - absolute(t)))
            store(scratch, P_C0 + p, load(scratch, P_C0 + p) + weight * color0)
            store(scratch, P_C1 + p, load(scratch, P_C1 + p) + weight * color1)
            store(scratch, P_C2 + p, load(scratch, P_C2 + p) + weight * color2)
            if len(tag) == 4:
                store(scratch, P_C3 + p, load(scratch, P_C3 + p) + weight * color3)
            if not any_lane(live):
                alive &= ~(1 << block)
    tile_ends[tile] = k

    n_channels = min(len(tag), render.shape[2] - first_channel)
    for j in range(min(TILE, height - tile_y)):
        y = tile_y + j
        for i in range(min(TILE, width - tile_x)):
            x = tile_x + i
            p = ((j // BLOCK_H) * BLOCKS_X + i // BLOCK_W) * LANES
            p += (j % BLOCK_H) * BLOCK_W + i % BLOCK_W
            for channel in range(n_channels):
                render[y, x, first_channel + channel] = scratch[P_C0 + channel * PLANE + p]
            if first_channel == 0:
                alphas[y, x] = F32(1) - abs(scratch[P_TRANSMITTANCE + p])


@kernel(fastmath=NO_NAN)
def forward(
    tiles_w, n_tiles, width, height, tile_starts, ids, records, records_int, tag, first_channel,
    render, alphas, masks, tile_ends, n_chunks,
):  # fmt: skip
    """Composite one image.

    Arrays:
        tile_starts, ids, records, records_int (records viewed as int32): from binning.
        tag: (0, 0, 0) or (0, 0, 0, 0); the number of channels composited at a time.
        render [H, W, D], alphas [H, W]: outputs; channels first_channel .. of render are written,
            alphas when first_channel is 0.
        masks [n_isects] uint16: hit blocks by slot, an output; must be zero before.
        tile_ends [n_tiles]: position behind the last one looked at, an output.
        n_chunks: units of work; any value gives the same result.
    """
    for chunk in prange(n_chunks):
        scratch = _make_scratch()
        for tile in range(chunk, n_tiles, n_chunks):
            _forward_tile(
                tile, tiles_w, width, height, tile_starts, ids, records, records_int, tag,
                first_channel, render, alphas, masks, tile_ends, scratch,
            )  # fmt: skip


# --------------------------------------------------------------------------- backward


@helper(fastmath=NO_NAN)
def _backward_tile(
    tile, tiles_w, width, height, tile_starts, ids, records, records_int, tag, first_channel,
    render, alphas, v_render, v_alphas, masks, tile_ends, isect_grads, scratch,
):  # fmt: skip
    align_stack()
    column = tile % tiles_w
    row = tile // tiles_w
    tile_x = column * TILE
    tile_y = row * TILE
    origin_x = F32(tile_x)
    origin_y = F32(tile_y)
    zero = broadcast(F32(0))
    one = broadcast(F32(1))
    alpha_min = broadcast(ALPHA_MIN)
    alpha_max = broadcast(ALPHA_MAX)
    t_min = broadcast(T_MIN)
    for p in range(0, P_X, LANES):
        store(scratch, p, zero)
    n_channels = min(len(tag), render.shape[2] - first_channel)
    for j in range(min(TILE, height - tile_y)):
        y = tile_y + j
        for i in range(min(TILE, width - tile_x)):
            x = tile_x + i
            p = ((j // BLOCK_H) * BLOCKS_X + i // BLOCK_W) * LANES
            p += (j % BLOCK_H) * BLOCK_W + i % BLOCK_W
            scratch[P_TRANSMITTANCE + p] = F32(1)
            behind = F32(0)
            for channel in range(n_channels):
                v = v_render[y, x, first_channel + channel]
                scratch[P_C0 + channel * PLANE + p] = v
                behind += v * render[y, x, first_channel + channel]
            if v_alphas.shape[0] > 0:
                behind -= (F32(1) - alphas[y, x]) * v_alphas[y, x]
            scratch[P_BEHIND + p] = behind

    end = tile_ends[tile]
    for k in range(tile_starts[tile], end):
        # Gradient rows are scattered in memory: wait neither for the record nor for its row.
        if k + 2 * PREFETCH_AHEAD < end:
            prefetch(records, ids[k + 2 * PREFETCH_AHEAD] * RECORD)
        if k + PREFETCH_AHEAD < end:
            g = ids[k + PREFETCH_AHEAD] * RECORD
            slot = load_scalar(records_int, g + R_SLOT_BASE)
            slot += row * load_scalar(records_int, g + R_SLOT_PITCH) + column
            prefetch_for_write(isect_grads, np.int64(slot) * GRADS)
        g = ids[k] * RECORD
        slot = load_scalar(records_int, g + R_SLOT_BASE)
        slot += row * load_scalar(records_int, g + R_SLOT_PITCH) + column
        hits = np.int64(masks[slot])
        if hits == 0:
            continue
        centre_x = broadcast(load_scalar(records, g + R_X) - origin_x)
        centre_y = broadcast(load_scalar(records, g + R_Y) - origin_y)
        conic_a = broadcast(load_scalar(records, g + R_A))
        conic_b = broadcast(load_scalar(records, g + R_B))
        conic_c = broadcast(load_scalar(records, g + R_C))
        half_a = broadcast(F32(0.5) * load_scalar(records, g + R_A))
        half_c = broadcast(F32(0.5) * load_scalar(records, g + R_C))
        opacity = broadcast(load_scalar(records, g + R_OPACITY))
        color0 = broadcast(load_scalar(records, g + R_COLOR))
        color1 = broadcast(load_scalar(records, g + R_COLOR + 1))
        color2 = broadcast(load_scalar(records, g + R_COLOR + 2))
        color3 = broadcast(load_scalar(records, g + R_COLOR + 3))
        sum_s = zero
        sum_x = zero
        sum_y = zero
        sum_abs_x = zero
        sum_abs_y = zero
        sum_xx = zero
        sum_xy = zero
        sum_yy = zero
        sum_c0 = zero
        sum_c1 = zero
        sum_c2 = zero
        sum_c3 = zero
        while hits != 0:
            block = lowest_bit(hits)
            hits &= hits - 1
            p = block * LANES
            dx = centre_x - load(scratch, P_X + p)
            dy = centre_y - load(scratch, P_Y + p)
            sigma = (half_a * dx + conic_b * dy) * dx + half_c * dy * dy
            raw_alpha = opacity * exp_negative(sigma)
            alpha = minimum(raw_alpha, alpha_max)
            counted = both(alpha >= alpha_min, sigma >= zero)
            alpha = keep(counted, alpha)
            t = load(scratch, P_TRANSMITTANCE + p)
            weight = alpha * t
            t_next = t - weight
            live = t_next > t_min
            weight = keep(live, weight)
            store(scratch, P_TRANSMITTANCE + p, keep(live, t_next))
            v0 = load(scratch, P_C0 + p)
            v1 = load(scratch, P_C1 + p)
            v2 = load(scratch, P_C2 + p)
            sum_c0 = sum_c0 + weight * v0
            sum_c1 = sum_c1 + weight * v1
            sum_c2 = sum_c2 + weight * v2
            color_dot_v = v0 * color0 + v1 * color1 + v2 * color2
            if len(tag) == 4:
                v3 = load(scratch, P_C3 + p)
                sum_c3 = sum_c3 + weight * v3
                color_dot_v = color_dot_v + v3 * color3
            behind = load(scratch, P_BEHIND + p) - weight * color_dot_v
            store(scratch, P_BEHIND + p, behind)
            v_alpha = t * color_dot_v - behind / (one - alpha)
            # s = -dL/dsigma; a clamped alpha passes no gradient.
            s = keep(both(both(counted, live), raw_alpha <= alpha_max), raw_alpha * v_alpha)
            s_dx = s * dx
            s_dy = s * dy
            u_x = conic_a * s_dx + conic_b * s_dy
            u_y = conic_b * s_dx + conic_c * s_dy
            sum_s = sum_s + s
            sum_x = sum_x + u_x
            sum_y = sum_y + u_y
            sum_xx = sum_xx + s_dx * dx
            sum_xy = sum_xy + s_dx * dy
            sum_yy = sum_yy + s_dy * dy
            sum_abs_x = sum_abs_x + absolute(u_x)
            sum_abs_y = sum_abs_y + absolute(u_y)
        base = np.int64(slot) * GRADS
        store_four_sums(isect_grads, base, sum_x, sum_y, sum_abs_x, sum_abs_y)
        store_four_sums(isect_grads, base + 4, sum_xx, sum_xy, sum_yy, sum_s)
        store_four_sums(isect_grads, base + 8, sum_c0, sum_c1, sum_c2, sum_c3)


@kernel(fastmath=NO_NAN)
def backward(
    tiles_w, n_tiles, width, height, tile_starts, ids, records, records_int, tag, first_channel,
    render, alphas, v_render, v_alphas, masks, tile_ends, isect_grads, n_chunks,
):  # fmt: skip
    """Gradients of one pass of `forward`, one row per intersection.

    Arrays:
        render, alphas, masks, tile_ends: outputs of `forward`.
        v_render [H, W, D]: gradient of render. v_alphas: [H, W], or [0, 0] for none.
        isect_grads [12 n_isects + 4]: output, by slot; rows whose mask is 0 are not written.
    """
    for chunk in prange(n_chunks):
        scratch = _make_scratch()
        for tile in range(chunk, n_tiles, n_chunks):
            _backward_tile(
                tile, tiles_w, width, height, tile_starts, ids, records, records_int, tag,
                first_channel, render, alphas, v_render, v_alphas, masks, tile_ends, isect_grads,
                scratch,
            )  # fmt: skip


@helper(fastmath=NO_NAN)
def _gather_rows(
    first, last, slot_starts, masks, isect_grads, records, first_channel,
    v_means2d, absgrad, v_conics, v_opacities, v_colors, v_depths, row,
):  # fmt: skip
    n_colors = v_colors.shape[1]
    n_channels = min(4, n_colors + min(1, v_depths.shape[0]) - first_channel)
    for g in range(first, last):
        # A row has GRADS columns; the lanes above them add up parts of the next and are not read.
        total = broadcast(F32(0))
        touched = False
        for slot in range(slot_starts[g], slot_starts[g + 1]):
            if masks[slot] != 0:
                touched = True
                total = total + load(isect_grads, np.int64(slot) * GRADS)
        store(row, 0, total)
        opacity_gradient = F32(0)
        if touched:
            opacity_gradient = row[7] / records[RECORD * g + R_OPACITY]
        if first_channel == 0:
            v_means2d[g, 0] = -row[0]
            v_means2d[g, 1] = -row[1]
            v_conics[g, 0] = F32(-0.5) * row[4]
            v_conics[g, 1] = -row[5]
            v_conics[g, 2] = F32(-0.5) * row[6]
            v_opacities[g] = opacity_gradient
            if absgrad.shape[0] > 0:
                absgrad[g, 0] = row[2]
                absgrad[g, 1] = row[3]
        else:
            v_means2d[g, 0] -= row[0]
            v_means2d[g, 1] -= row[1]
            v_conics[g, 0] -= F32(0.5) * row[4]
            v_conics[g, 1] -= row[5]
            v_conics[g, 2] -= F32(0.5) * row[6]
            v_opacities[g] += opacity_gradient
            if absgrad.shape[0] > 0:
                absgrad[g, 0] += row[2]
                absgrad[g, 1] += row[3]
        for j in range(n_channels):
            if first_channel + j < n_colors:
                v_colors[g, first_channel + j] = row[8 + j]
            else:
                v_depths[g] = row[8 + j]


@kernel(fastmath=NO_NAN)
def gather(
    n, slot_starts, masks, isect_grads, records, first_channel,
    v_means2d, absgrad, v_conics, v_opacities, v_colors, v_depths,
):  # fmt: skip
    """Sum the intersection rows of each Gaussian and apply the constant factors.

    Arrays:
        isect_grads [12 n_isects + 4]: rows by slot; the last 4 floats are only loaded.
        v_means2d [n, 2], v_conics [n, 3], v_opacities [n]: written when first_channel is 0, else
            added to. absgrad likewise, [n, 2] or [0, 2] when not wanted.
        v_colors [n, D]: channels first_channel .. are written.
        v_depths: [n] when depth is the channel after the colours, else [0].
    """
    for chunk in prange((n + GATHER_CHUNK - 1) // GATHER_CHUNK):
        row = np.empty(LANES, np.float32)
        first = chunk * GATHER_CHUNK
        _gather_rows(
            first, min(first + GATHER_CHUNK, n), slot_starts, masks, isect_grads, records,
            first_channel, v_means2d, absgrad, v_conics, v_opacities, v_colors, v_depths, row,
        )  # fmt: skip
