# SPDX-License-Identifier: Apache-2.0
"""Depth of one photograph from others with known cameras, by PatchMatch over slanted planes.

Each pixel holds a plane; good ones spread to their neighbours and are refined at random, and the
cost of a plane is how badly the patches that it predicts in the other photographs correlate with
the pixel's own (Bleyer et al., PatchMatch Stereo, 2011; Schönberger et al., ECCV 2016; the choice
of neighbours is that of Xu and Tao, CVPR 2019). Flow between two pictures gives up where they are
far apart, because patches turn and shrink; a plane with known cameras predicts just that.

A plane is the inverse depth w of its pixel and the gradient of w along columns and rows: inverse
depth of a plane is linear in the picture. A position q of the photograph then lies at
A q + b w(q) in another one (homogeneous), A = K' R K^-1 and b = K' t.
"""

from __future__ import annotations

import math

import numpy as np
from numba import prange
from numpy.typing import NDArray

from ps4pro_nerfstudio.splatting.cpu.jit import helper, kernel
from ps4pro_nerfstudio.splatting.cpu.threads import kernel_threads

Float32 = NDArray[np.float32]

RADIUS = 5
"""Patches reach this many pixels to each side."""
STRIDE = 2
"""Every which pixel of a patch is looked at."""
_SIDE = 2 * RADIUS // STRIDE + 1
_SAMPLES = _SIDE * _SIDE
_DX = np.tile(np.arange(-RADIUS, RADIUS + 1, STRIDE), _SIDE).astype(np.float32)
_DY = np.repeat(np.arange(-RADIUS, RADIUS + 1, STRIDE), _SIDE).astype(np.float32)
WORST = 2.0
"""Cost of a plane that no other photograph shows."""
_SIGMA_COLOR = 0.15
"""Difference of grey, of 1, at which a pixel of the patch counts 1/e of the central one."""
_NOISE = (2.0 / 255.0) ** 2
"""Variance that a flat patch has at least; without structure nothing correlates."""
_STEEPEST = 3.0
"""Largest slope of a random plane: depth over width, about 72 degrees."""
_REACH = 11
"""How far away planes are looked for, in pixels."""


def match_planes(
    planes: Float32,  # [H, W, 3] inverse depth and its gradient, changed in place
    image: Float32,  # [H, W] grey in [0, 1]
    others: Float32,  # [S, H', W'] grey, each in the top left corner
    sizes: NDArray[np.int64],  # [S, 2] (width, height) of the others
    motions: Float32,  # [S, 3, 4], A and b of each
    bounds: tuple[float, float],  # smallest and largest inverse depth
    focal: float,  # in pixels
    rounds: int,
    seed: int,
) -> Float32:  # [H, W] cost of the planes, 0 (best) to 2
    """Improve the plane of each pixel; the same result for any number of threads."""
    costs = np.empty(image.shape, np.float32)
    arguments = (planes, costs, image, others, sizes, motions)
    with kernel_threads():
        _evaluate(*arguments)
        for turn in range(2 * rounds):
            shrink = 0.5 ** (turn // 2)
            _spread(*arguments, *map(np.float32, bounds), np.float32(focal), turn, shrink, seed)
    return costs


@helper()
def _prepare(image, row, column, values, weights):
    """Deviations of a patch from its mean, and its weights, 0 beyond the border."""
    height, width = image.shape
    centre = image[row, column]
    total, first, second = np.float32(0), np.float32(0), np.float32(0)
    index = 0
    for i in range(_SIDE):
        r = row + i * STRIDE - RADIUS
        for j in range(_SIDE):
            c = column + j * STRIDE - RADIUS
            values[index], weights[index] = centre, np.float32(0)
            if r >= 0 and c >= 0 and r < height and c < width:
                value = image[r, c]
                weight = np.float32(math.exp(-abs(value - centre) / np.float32(_SIGMA_COLOR)))
                values[index], weights[index] = value, weight
                total += weight
                first += weight * value
            index += 1
    # With an odd radius and a stride of 2 the centre itself is not looked at.
    total = max(total, np.float32(1e-3))
    mean = first / total
    for index in range(_SAMPLES):
        values[index] -= mean
        second += weights[index] * values[index] * values[index]
    return total, mean, second / total


@helper()
def _correlation_cost(
    others, place, sizes, motions, x, y, w, gx, gy, values, weights, patch, scratch
):
    """1 - NCC of a patch with the one that a plane predicts in another photograph."""
    width, height = np.float32(sizes[place, 0]), np.float32(sizes[place, 1])
    zero, half = np.float32(0.0), np.float32(0.5)
    # Position of the centre, and how it changes by a column and by a row of the patch.
    bx, by, bz = motions[place, 0, 3], motions[place, 1, 3], motions[place, 2, 3]
    cx, rx = motions[place, 0, 0] + bx * gx, motions[place, 0, 1] + bx * gy
    cy, ry = motions[place, 1, 0] + by * gx, motions[place, 1, 1] + by * gy
    cz, rz = motions[place, 2, 0] + bz * gx, motions[place, 2, 1] + bz * gy
    px = motions[place, 0, 0] * x + motions[place, 0, 1] * y + motions[place, 0, 2] + bx * w
    py = motions[place, 1, 0] * x + motions[place, 1, 1] * y + motions[place, 1, 2] + by * w
    pz = motions[place, 2, 0] * x + motions[place, 2, 1] * y + motions[place, 2, 2] + bz * w
    # The depth is linear over the patch: its corners decide.
    if not pz > np.float32(RADIUS) * (abs(cz) + abs(rz)) + np.float32(1e-6):
        return np.float32(WORST)
    u, v = px / pz, py / pz
    if not (u >= zero and v >= zero and u < width and v < height):
        return np.float32(WORST)
    total, mean, variance = patch
    right, bottom = width - np.float32(1.001), height - np.float32(1.001)
    # One kind of work in each loop: the arithmetic is done in vectors, the look-ups are not.
    for index in range(_SAMPLES):
        dx, dy = _DX[index], _DY[index]
        inverse = np.float32(1.0) / (pz + dx * cz + dy * rz)
        u = (px + dx * cx + dy * rx) * inverse - half
        v = (py + dx * cy + dy * ry) * inverse - half
        u = u if u > zero else zero
        v = v if v > zero else zero
        scratch[0, index] = u if u < right else right
        scratch[1, index] = v if v < bottom else bottom
    for index in range(_SAMPLES):
        u, v = scratch[0, index], scratch[1, index]
        c, r = np.uint32(np.int32(u)), np.uint32(np.int32(v))
        fu, fv = u - np.float32(c), v - np.float32(r)
        above, below = others[place, r, c], others[place, r + 1, c]
        above += fu * (others[place, r, c + 1] - above)
        below += fu * (others[place, r + 1, c + 1] - below)
        scratch[2, index] = above + fv * (below - above)
    first, second, both = zero, zero, zero
    for index in range(_SAMPLES):
        value = scratch[2, index] - mean
        weighted = weights[index] * value
        first += weighted
        second += weighted * value
        both += weighted * values[index]
    first /= total
    spread = max(second / total - first * first, zero)
    # The values are deviations from the patch's mean, so those of the other need not be.
    noise = np.float32(_NOISE)
    return np.float32(1.0) - both / (total * np.sqrt((variance + noise) * (spread + noise)))


@helper()
def _cost(others, sizes, motions, x, y, w, gx, gy, values, weights, patch, scratch):
    """The lowest cost in any of the other photographs: most pixels are hidden in some."""
    best = np.float32(WORST)
    for place in range(len(others)):
        cost = _correlation_cost(
            others, place, sizes, motions, x, y, w, gx, gy, values, weights, patch, scratch
        )
        best = min(best, cost)
    return best


@kernel()
def _evaluate(planes, costs, image, others, sizes, motions):
    height, width = image.shape
    for row in prange(height):
        values, weights = np.empty(_SAMPLES, np.float32), np.empty(_SAMPLES, np.float32)
        scratch = np.empty((3, _SAMPLES), np.float32)
        for column in range(width):
            patch = _prepare(image, row, column, values, weights)
            w, gx, gy = planes[row, column]
            x, y = np.float32(column + 0.5), np.float32(row + 0.5)
            costs[row, column] = _cost(
                others, sizes, motions, x, y, w, gx, gy, values, weights, patch, scratch
            )


@helper()
def _random(state):
    """Next state of a generator, and a number in [0, 1)."""
    state ^= state << np.uint64(13)
    state ^= state >> np.uint64(7)
    state ^= state << np.uint64(17)
    return state, np.float32(state >> np.uint64(40)) / np.float32(1 << 24)


@kernel()
def _spread(planes, costs, image, others, sizes, motions, least, most, focal, turn, shrink, seed):
    """One half of a round: the pixels of one colour of the checkerboard look at the other's."""
    height, width = image.shape
    for row in prange(height):
        values, weights = np.empty(_SAMPLES, np.float32), np.empty(_SAMPLES, np.float32)
        scratch = np.empty((3, _SAMPLES), np.float32)
        for column in range((row + turn) % 2, width, 2):
            patch = _prepare(image, row, column, values, weights)
            x, y = np.float32(column + 0.5), np.float32(row + 0.5)
            best = costs[row, column]
            w, gx, gy = planes[row, column]
            # The next pixel in each direction, and the best of those farther away.
            for direction in range(8):
                dr = (0, 0, 1, -1)[direction % 4]
                dc = (1, -1, 0, 0)[direction % 4]
                if direction < 4:
                    r, c = row + dr, column + dc
                    if r < 0 or c < 0 or r >= height or c >= width:
                        continue
                else:
                    r, c, least_cost = -1, -1, np.float32(WORST)
                    for distance in range(3, _REACH + 1, 2):
                        far_r, far_c = row + distance * dr, column + distance * dc
                        if far_r < 0 or far_c < 0 or far_r >= height or far_c >= width:
                            break
                        if costs[far_r, far_c] < least_cost:
                            r, c, least_cost = far_r, far_c, costs[far_r, far_c]
                    if r < 0:
                        continue
                ax, ay = planes[r, c, 1], planes[r, c, 2]
                a = planes[r, c, 0] + ax * (column - c) + ay * (row - r)
                if not (a >= least and a <= most):
                    continue
                cost = _cost(
                    others, sizes, motions, x, y, a, ax, ay, values, weights, patch, scratch
                )
                if cost < best:
                    best, w, gx, gy = cost, a, ax, ay
            state = np.uint64((seed * 7919 + turn) * height * width + row * width + column + 1)
            state *= np.uint64(0x9E3779B97F4A7C15)
            for attempt in range(4):
                state, first = _random(state)
                state, second = _random(state)
                state, third = _random(state)
                a, ax, ay = w, gx, gy
                if attempt == 0:  # anywhere
                    a = least + first * (most - least)
                    ax = a * _STEEPEST * (2 * second - 1) / focal
                    ay = a * _STEEPEST * (2 * third - 1) / focal
                elif attempt == 1:  # another depth
                    a = w * (1 + np.float32(0.1 * shrink) * (2 * first - 1))
                elif attempt == 2:  # another slope
                    ax += w * np.float32(shrink) * (2 * second - 1) / focal
                    ay += w * np.float32(shrink) * (2 * third - 1) / focal
                else:  # both, a little
                    a = w * (1 + np.float32(0.02 * shrink) * (2 * first - 1))
                    ax += w * np.float32(0.3 * shrink) * (2 * second - 1) / focal
                    ay += w * np.float32(0.3 * shrink) * (2 * third - 1) / focal
                if not (a >= least and a <= most):
                    continue
                cost = _cost(
                    others, sizes, motions, x, y, a, ax, ay, values, weights, patch, scratch
                )
                if cost < best:
                    best, w, gx, gy = cost, a, ax, ay
            costs[row, column] = best
            planes[row, column, 0] = w
            planes[row, column, 1] = gx
            planes[row, column, 2] = gy
