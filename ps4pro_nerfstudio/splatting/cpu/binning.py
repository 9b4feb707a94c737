# SPDX-License-Identifier: Apache-2.0
"""Records of projected Gaussians and depth-ordered lists of the Gaussians that touch each tile.

A tile is 16 x 16 pixels. Its list holds Gaussians front to back (by the bits of the depth, ties by
index). An *intersection* is one (Gaussian, tile) pair and has two numbers: its *position* in the
tile lists, and its *slot* in an order grouped by Gaussian, in which per-intersection results are
kept so that a Gaussian finds its own side by side.

The depth sort is done once per Gaussian (least significant digit radix sort) and the lists are
filled in that order, so nothing is sorted per intersection. Every step splits its input in
contiguous segments, counts, adds up and scatters: the result is the same for any number of
segments.
"""

from __future__ import annotations

import math

import numpy as np
from numba import prange

from ps4pro_nerfstudio.splatting.cpu.jit import NO_NAN, helper, kernel
from ps4pro_nerfstudio.splatting.cpu.simd import floor

F32 = np.float32
ZERO, HALF, ONE, TWO = (F32(x) for x in (0, 0.5, 1, 2))
TILE = 16
PER_TILE = F32(1 / TILE)
ALPHA_MIN = F32(1.0 / 255.0)

# One Gaussian as 16 floats (64 bytes, one cache line). The last two are int32 bit patterns: the
# slot of an intersection is SLOT_BASE + tile_y * SLOT_PITCH + tile_x.
RECORD = 16
(
    R_X,
    R_Y,
    R_A,
    R_B,
    R_C,
    R_OPACITY,
    R_SIGMA_MAX,
    R_B_OVER_A,
    R_B_OVER_C,
    R_COLOR,
    _,
    _,
    _,
    R_SLOT_BASE,
    R_SLOT_PITCH,
    _,
) = range(RECORD)

DIGIT_BITS = 11
DIGITS = 3
BINS = 1 << DIGIT_BITS
RECOLOR_CHUNK = 512
# Below this number of Gaussians, waking the threads seven times costs more than the sort.
SERIAL_SORT = 100_000


# --------------------------------------------------------------------------- phases of the binning

# Rows of `counts`: one per segment, long enough for the digits and for the tiles.
PREPARE, KEYS, COUNT_DIGITS, SCATTER_DIGITS, COUNT_TILES, SCATTER_TILES = range(6)


@helper(fastmath=NO_NAN)
def _color_rows(first, last, tiles_per_gauss, colors, depths, first_channel, records):
    """Four channels from `first_channel` on; depth follows the colours when there is one."""
    n_colors = colors.shape[1]
    n_channels = n_colors + min(1, depths.shape[0])
    for i in range(first, last):
        if tiles_per_gauss[i] > 0:
            for j in range(4):
                channel = first_channel + j
                value = ZERO
                if channel < n_colors:
                    value = colors[i, channel]
                elif channel < n_channels:
                    value = depths[i]
                records[RECORD * i + R_COLOR + j] = value


@kernel(fastmath=NO_NAN)
def recolor(n, tiles_per_gauss, colors, depths, first_channel, records):
    """Put channels first_channel .. first_channel + 3 in the records."""
    for chunk in prange((n + RECOLOR_CHUNK - 1) // RECOLOR_CHUNK):
        first = chunk * RECOLOR_CHUNK
        last = min(first + RECOLOR_CHUNK, n)
        _color_rows(first, last, tiles_per_gauss, colors, depths, first_channel, records)


@helper(fastmath=NO_NAN)
def _prepare_rows(
    first, last, tiles_w, tiles_h, means2d, conics, opacities, radii, records, rects,
    tiles_per_gauss, totals,
):  # fmt: skip
    """Records without colours, and the rectangle of tiles each row can touch.

    The rectangle is the intersection of the usual 3-sigma square and the bounding box of the
    ellipse on which alpha falls to 1 / 255; the second never drops a contribution. `totals`
    receives how many rows touch a tile, and how many tiles.
    """
    n_visible = 0
    n_isects = 0
    for i in range(first, last):
        rects[i, 0] = 0
        rects[i, 1] = 0
        rects[i, 2] = 0
        rects[i, 3] = 0
        tiles_per_gauss[i] = 0
        if radii[i] <= 0 or opacities[i] < ALPHA_MIN:
            continue
        x = means2d[i, 0]
        y = means2d[i, 1]
        radius = F32(radii[i])
        a = conics[i, 0]
        b = conics[i, 1]
        c = conics[i, 2]
        sigma_max = math.log(F32(255) * opacities[i]) + F32(1e-3)
        determinant = a * c - b * b
        half_w = radius
        half_h = radius
        # The determinant of a long diagonal needle drowns in rounding: the square alone counts.
        if determinant > F32(1e-4) * a * c:
            half_w = F32(1.002) * math.sqrt(TWO * sigma_max * c / determinant)
            half_h = F32(1.002) * math.sqrt(TWO * sigma_max * a / determinant)
        base = RECORD * i
        records[base + R_X] = x
        records[base + R_Y] = y
        records[base + R_A] = a
        records[base + R_B] = b
        records[base + R_C] = c
        records[base + R_OPACITY] = opacities[i]
        records[base + R_SIGMA_MAX] = sigma_max
        records[base + R_B_OVER_A] = b / a
        records[base + R_B_OVER_C] = b / c
        # Floored without a conversion to integers, which would not fit those of a huge Gaussian.
        x0 = max(floor((x - radius) * PER_TILE), floor((x - half_w - HALF) * PER_TILE))
        x1 = min(-floor((-x - radius) * PER_TILE), floor((x + half_w - HALF) * PER_TILE) + ONE)
        y0 = max(floor((y - radius) * PER_TILE), floor((y - half_h - HALF) * PER_TILE))
        y1 = min(-floor((-y - radius) * PER_TILE), floor((y + half_h - HALF) * PER_TILE) + ONE)
        rects[i, 0] = np.int32(min(max(x0, ZERO), F32(tiles_w)))
        rects[i, 1] = np.int32(min(max(y0, ZERO), F32(tiles_h)))
        rects[i, 2] = np.int32(min(max(x1, ZERO), F32(tiles_w)))
        rects[i, 3] = np.int32(min(max(y1, ZERO), F32(tiles_h)))
        count = max(rects[i, 2] - rects[i, 0], 0) * max(rects[i, 3] - rects[i, 1], 0)
        tiles_per_gauss[i] = count
        if count > 0:
            n_visible += 1
            n_isects += count
    totals[0] = n_visible
    totals[1] = n_isects


@helper()
def _write_keys(
    first, last, place, slot, rects, depth_bits, tiles_per_gauss, records_int, slot_starts, keys
):
    """Write sort keys of visible rows (depth bits above, row below) from `place`, and slots."""
    for i in range(first, last):
        slot_starts[i] = slot
        if tiles_per_gauss[i] > 0:
            keys[place] = (np.uint64(depth_bits[i]) << np.uint64(32)) | np.uint64(i)
            place += 1
            pitch = rects[i, 2] - rects[i, 0]
            records_int[RECORD * i + R_SLOT_BASE] = slot - rects[i, 1] * pitch - rects[i, 0]
            records_int[RECORD * i + R_SLOT_PITCH] = pitch
            slot += tiles_per_gauss[i]


@helper()
def _count_digits(keys, first, last, shift, counts):
    counts[:BINS] = 0
    for place in range(first, last):
        counts[(keys[place] >> shift) & np.uint64(BINS - 1)] += 1


@helper()
def _scatter_digits(keys, first, last, shift, cursors, result):
    for place in range(first, last):
        key = keys[place]
        digit = (key >> shift) & np.uint64(BINS - 1)
        result[cursors[digit]] = key
        cursors[digit] += 1


@helper()
def _count_tiles(keys, first, last, tiles_w, n_tiles, rects, counts):
    counts[:n_tiles] = 0
    for place in range(first, last):
        i = np.int64(keys[place] & np.uint64(0xFFFFFFFF))
        for y in range(rects[i, 1], rects[i, 3]):
            for x in range(rects[i, 0], rects[i, 2]):
                counts[y * tiles_w + x] += 1


@helper()
def _scatter_tiles(keys, first, last, tiles_w, rects, camera_bits, cursors, ids, isect_ids):
    for place in range(first, last):
        i = np.int64(keys[place] & np.uint64(0xFFFFFFFF))
        bits = camera_bits | np.int64(keys[place] >> np.uint64(32))
        for y in range(rects[i, 1], rects[i, 3]):
            for x in range(rects[i, 0], rects[i, 2]):
                tile = y * tiles_w + x
                position = cursors[tile]
                cursors[tile] = position + 1
                ids[position] = i
                isect_ids[position] = bits | (tile << 32)


@helper()
def _run_phase(
    phase, segment, n_segments, n, shift, tiles_w, tiles_h, means2d, conics, opacities, radii,
    colors, color_depths, depth_bits, camera_bits, records, records_int, rects, tiles_per_gauss,
    slot_starts, totals, keys, other, counts, ids, isect_ids,
):  # fmt: skip
    """One phase of one segment. Phases are separate so that one parallel loop serves them all."""
    first = segment * n // n_segments
    last = (segment + 1) * n // n_segments
    if phase == PREPARE:
        _prepare_rows(
            first, last, tiles_w, tiles_h, means2d, conics, opacities, radii, records, rects,
            tiles_per_gauss, totals[segment],
        )  # fmt: skip
        _color_rows(first, last, tiles_per_gauss, colors, color_depths, 0, records)
        return
    if phase == KEYS:
        _write_keys(
            first, last, totals[segment, 0], totals[segment, 1], rects, depth_bits,
            tiles_per_gauss, records_int, slot_starts, keys,
        )  # fmt: skip
        return
    first = segment * len(keys) // n_segments
    last = (segment + 1) * len(keys) // n_segments
    if phase == COUNT_DIGITS:
        _count_digits(keys, first, last, shift, counts[segment])
    elif phase == SCATTER_DIGITS:
        _scatter_digits(keys, first, last, shift, counts[segment], other)
    elif phase == COUNT_TILES:
        _count_tiles(keys, first, last, tiles_w, tiles_w * tiles_h, rects, counts[segment])
    else:
        _scatter_tiles(
            keys, first, last, tiles_w, rects, camera_bits, counts[segment], ids, isect_ids
        )


@helper()
def _exclusive_sums(counts, n_bins):
    """Turn counts [n_segments, >= n_bins] into the first place of each (bin, segment)."""
    total = 0
    for b in range(n_bins):
        for segment in range(counts.shape[0]):
            count = counts[segment, b]
            counts[segment, b] = total
            total += count


@helper(parallel=True)
def _run_segments(
    phase, n_segments, n, shift, tiles_w, tiles_h, means2d, conics, opacities, radii, colors,
    color_depths, depth_bits, camera_bits, records, records_int, rects, tiles_per_gauss,
    slot_starts, totals, keys, other, counts, ids, isect_ids,
):  # fmt: skip
    """One phase of all segments, in parallel."""
    for segment in prange(n_segments):
        _run_phase(
            phase, np.int64(segment), n_segments, n, shift, tiles_w, tiles_h, means2d, conics,
            opacities, radii, colors, color_depths, depth_bits, camera_bits, records,
            records_int, rects, tiles_per_gauss, slot_starts, totals, keys, other, counts, ids,
            isect_ids,
        )  # fmt: skip


@kernel(parallel=False)
def build_lists(
    n, tiles_w, tiles_h, means2d, conics, opacities, radii, colors, color_depths, depths,
    n_segments, max_isects, camera_bits, records, records_int, tiles_per_gauss, tile_starts,
    slot_starts,
):  # fmt: skip
    """Pack each Gaussian in a record, and list by depth the Gaussians of every tile.

    Arrays:
        means2d [n, 2], conics [n, 3], opacities [n], radii [n], colors [n, D]: inputs.
        color_depths: [n] when depth is a channel after the colours, else [0].
        depths [n]: positive; their bit patterns order like unsigned integers.
        n_segments: units of work; any value gives the same result.
        max_isects: gives up, returning empty lists, when there would be more intersections.
        camera_bits: int64, put into every sort key.
        records [16 n] and the same memory as int32, tiles_per_gauss [n], tile_starts [n_tiles + 1],
            slot_starts [n + 1]: outputs.

    Returns:
        ids [n_isects] int32, the Gaussian at each position; isect_ids [n_isects] int64, gsplat's
        sort key of each (camera bits, tile << 32, depth bits); and n_isects.
    """
    n_tiles = tiles_w * tiles_h
    depth_bits = depths.view(np.uint32)
    rects = np.empty((n, 4), np.int32)
    totals = np.empty((n_segments, 2), np.int64)
    n_bins = np.int64(BINS)
    counts = np.empty((n_segments, max(n_bins, n_tiles)), np.int64)
    keys = np.empty(0, np.uint64)
    other = np.empty(0, np.uint64)
    ids = np.empty(0, np.int32)
    isect_ids = np.empty(0, np.int64)
    n_visible = 0
    n_isects = 0
    # Prepare, keys, a count and a scatter for each digit, a count and a scatter for the tiles.
    for step in range(4 + 2 * DIGITS):
        phase = step
        shift = np.uint64(32)
        if step >= 2 + 2 * DIGITS:
            phase = COUNT_TILES + step - (2 + 2 * DIGITS)
        elif step >= 2:
            phase = COUNT_DIGITS + (step - 2) % 2
            shift = np.uint64(32 + (step - 2) // 2 * DIGIT_BITS)
        if KEYS <= phase <= SCATTER_DIGITS and n < SERIAL_SORT:
            for segment in range(n_segments):
                _run_phase(
                    phase, segment, n_segments, n, shift, tiles_w, tiles_h, means2d, conics,
                    opacities, radii, colors, color_depths, depth_bits, camera_bits, records,
                    records_int, rects, tiles_per_gauss, slot_starts, totals, keys, other, counts,
                    ids, isect_ids,
                )  # fmt: skip
        else:
            _run_segments(
                phase, n_segments, n, shift, tiles_w, tiles_h, means2d, conics, opacities, radii,
                colors, color_depths, depth_bits, camera_bits, records, records_int, rects,
                tiles_per_gauss, slot_starts, totals, keys, other, counts, ids, isect_ids,
            )  # fmt: skip
        if phase == PREPARE:
            for row in range(n_segments):
                visible = totals[row, 0]
                isects = totals[row, 1]
                totals[row, 0] = n_visible
                totals[row, 1] = n_isects
                n_visible += visible
                n_isects += isects
            if n_isects > max_isects:
                break
            slot_starts[n] = n_isects
            keys = np.empty(n_visible, np.uint64)
            other = np.empty(n_visible, np.uint64)
            ids = np.empty(n_isects, np.int32)
            isect_ids = np.empty(n_isects, np.int64)
        elif phase == COUNT_DIGITS:
            _exclusive_sums(counts, n_bins)
        elif phase == SCATTER_DIGITS:
            keys, other = other, keys
        elif phase == COUNT_TILES:
            _exclusive_sums(counts, n_tiles)
            for tile in range(n_tiles):
                tile_starts[tile] = counts[0, tile]
            tile_starts[n_tiles] = n_isects
    return ids, isect_ids, n_isects
