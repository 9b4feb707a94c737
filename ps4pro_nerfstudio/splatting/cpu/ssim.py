# SPDX-License-Identifier: Apache-2.0
"""Fused L1 + SSIM on the CPU: the value and the gradient of the prediction in one call.

The mathematics is that of `splatting.losses`, whose torch twin is the reference of the tests; the
window is that of `geometry.windows`. With E the window average,
    mu_x = E[x], mu_y = E[y], s = E[x^2 + y^2], p = E[xy]
    SSIM = (2 mu_x mu_y + C1)(2 (p - mu_x mu_y) + C2)
           / ((mu_x^2 + mu_y^2 + C1)(s - mu_x^2 - mu_y^2 + C2))
Only the sum of the two variances occurs, so four blurs do instead of five. The gradient keeps three
maps, dL/dE[x], dL/ds and dL/dp per window, blurs them back and combines them as g1 + 2 x g2 + y g3.

Images stay in the renderer's [H, W, 3] layout: a row is W * 3 contiguous numbers, in which the
horizontal neighbour of entry j is entry j + 3. Inner loops therefore run over one long contiguous
row, which LLVM vectorises, and nothing is transposed. It gives up on a loop that touches too many
rows at once ("too many memory checks needed"), which is why averages are stored before they are
used; the remark `--pass-remarks-analysis=loop-vectorize` of LLVM tells.

Rows are the unit of work. A row is summed by one thread and the rows are summed in order, so the
result has the same bits for any number of threads.
"""

from __future__ import annotations

import numpy as np
from numba import prange

from ps4pro_nerfstudio.geometry import windows as _windows
from ps4pro_nerfstudio.splatting.cpu.jit import helper, kernel
from ps4pro_nerfstudio.splatting.cpu.threads import kernel_threads

__all__ = ["CHANNELS", "l1_ssim_value_and_gradient"]

F32 = np.float32

CHANNELS = 3
"""Colour channels; a constant, since LLVM does not vectorise a step known only at run time."""
WINDOW_SIZE = _windows.WINDOW_SIZE
REACH = WINDOW_SIZE - 1
DROP_UNUSED, WINDOWS, GRADIENT = range(3)
W0, W1, W2, W3, W4, W5 = (F32(tap) for tap in _windows.gaussian_taps()[:6].tolist())
C1 = F32(_windows.C1)
C2 = F32(_windows.C2)


@helper()
def _blur_rows(rows, i, out):
    """Vertical blur of rows i .. i + 10 into one row."""
    r0 = rows[i]
    r1 = rows[i + 1]
    r2 = rows[i + 2]
    r3 = rows[i + 3]
    r4 = rows[i + 4]
    r5 = rows[i + 5]
    r6 = rows[i + 6]
    r7 = rows[i + 7]
    r8 = rows[i + 8]
    r9 = rows[i + 9]
    r10 = rows[i + 10]
    for j in range(out.shape[0]):
        out[j] = (
            W0 * (r0[j] + r10[j])
            + W1 * (r1[j] + r9[j])
            + W2 * (r2[j] + r8[j])
            + W3 * (r3[j] + r7[j])
            + W4 * (r4[j] + r6[j])
            + W5 * r5[j]
        )


@helper()
def _blur_along(columns, out):
    """Horizontal blur of each row of columns into the same row of out, which is shorter."""
    for m in range(columns.shape[0]):
        row = columns[m]
        blurred = out[m]
        for j in range(blurred.shape[0]):
            blurred[j] = (
                W0 * (row[j] + row[j + 10 * CHANNELS])
                + W1 * (row[j + CHANNELS] + row[j + 9 * CHANNELS])
                + W2 * (row[j + 2 * CHANNELS] + row[j + 8 * CHANNELS])
                + W3 * (row[j + 3 * CHANNELS] + row[j + 7 * CHANNELS])
                + W4 * (row[j + 4 * CHANNELS] + row[j + 6 * CHANNELS])
                + W5 * row[j + 5 * CHANNELS]
            )


@helper()
def _spread(weights, i, out):
    """Repeat each weight of row i for every channel; ones when there are no weights."""
    if weights.shape[0] == 0:
        for j in range(out.shape[0]):
            out[j] = F32(1)
        return
    for j in range(weights.shape[1]):
        for c in range(CHANNELS):
            out[j * CHANNELS + c] = weights[i, j]


@helper()
def _windows_row(x, y, z, windows, ssim_scale, maps):
    """Sum v (1 - SSIM) of one row of windows; writes the row's three derivatives into the maps."""
    row_length = x.shape[1]
    pad = REACH * CHANNELS
    columns = np.empty((4, row_length), np.float32)
    a0 = x[z]
    a1 = x[z + 1]
    a2 = x[z + 2]
    a3 = x[z + 3]
    a4 = x[z + 4]
    a5 = x[z + 5]
    a6 = x[z + 6]
    a7 = x[z + 7]
    a8 = x[z + 8]
    a9 = x[z + 9]
    a10 = x[z + 10]
    b0 = y[z]
    b1 = y[z + 1]
    b2 = y[z + 2]
    b3 = y[z + 3]
    b4 = y[z + 4]
    b5 = y[z + 5]
    b6 = y[z + 6]
    b7 = y[z + 7]
    b8 = y[z + 8]
    b9 = y[z + 9]
    b10 = y[z + 10]
    column_x = columns[0]
    column_y = columns[1]
    column_squares = columns[2]
    column_cross = columns[3]
    for j in range(row_length):
        a = a0[j]
        b = b0[j]
        p = a10[j]
        q = b10[j]
        sum_x = W0 * (a + p)
        sum_y = W0 * (b + q)
        sum_squares = W0 * (a * a + b * b + p * p + q * q)
        sum_cross = W0 * (a * b + p * q)
        a = a1[j]
        b = b1[j]
        p = a9[j]
        q = b9[j]
        sum_x += W1 * (a + p)
        sum_y += W1 * (b + q)
        sum_squares += W1 * (a * a + b * b + p * p + q * q)
        sum_cross += W1 * (a * b + p * q)
        a = a2[j]
        b = b2[j]
        p = a8[j]
        q = b8[j]
        sum_x += W2 * (a + p)
        sum_y += W2 * (b + q)
        sum_squares += W2 * (a * a + b * b + p * p + q * q)
        sum_cross += W2 * (a * b + p * q)
        a = a3[j]
        b = b3[j]
        p = a7[j]
        q = b7[j]
        sum_x += W3 * (a + p)
        sum_y += W3 * (b + q)
        sum_squares += W3 * (a * a + b * b + p * p + q * q)
        sum_cross += W3 * (a * b + p * q)
        a = a4[j]
        b = b4[j]
        p = a6[j]
        q = b6[j]
        sum_x += W4 * (a + p)
        sum_y += W4 * (b + q)
        sum_squares += W4 * (a * a + b * b + p * p + q * q)
        sum_cross += W4 * (a * b + p * q)
        a = a5[j]
        b = b5[j]
        column_x[j] = sum_x + W5 * a
        column_y[j] = sum_y + W5 * b
        column_squares[j] = sum_squares + W5 * (a * a + b * b)
        column_cross[j] = sum_cross + W5 * a * b
    weights = np.empty(row_length - pad, np.float32)
    _spread(windows, z, weights)
    averages = np.empty((4, row_length - pad), np.float32)
    _blur_along(columns, averages)
    average_x = averages[0]
    average_y = averages[1]
    average_squares = averages[2]
    average_cross = averages[3]
    slope_mean = maps[0, z + REACH, pad:]
    slope_squares = maps[1, z + REACH, pad:]
    slope_cross = maps[2, z + REACH, pad:]
    total = F32(0)
    for j in range(weights.shape[0]):
        mx = average_x[j]
        my = average_y[j]
        squares = average_squares[j]
        cross = average_cross[j]
        product = mx * my
        energy = mx * mx + my * my
        luminance = F32(2) * product + C1
        structure = F32(2) * (cross - product) + C2
        inverse_luminance = F32(1) / (energy + C1)
        inverse_structure = F32(1) / (squares - energy + C2)
        ssim = luminance * structure * inverse_luminance * inverse_structure
        total += weights[j] * (F32(1) - ssim)
        scale = -ssim_scale * weights[j]
        by_squares = -ssim * inverse_structure
        by_cross = F32(2) * luminance * inverse_luminance * inverse_structure
        by_mean = (
            F32(2) * inverse_luminance * (my * structure * inverse_structure - mx * ssim)
            - F32(2) * mx * by_squares
            - my * by_cross
        )
        slope_mean[j] = scale * by_mean
        slope_squares[j] = scale * by_squares
        slope_cross[j] = scale * by_cross
    for m in range(3):
        for j in range(pad):
            maps[m, z + REACH, j] = F32(0)
            maps[m, z + REACH, row_length + j] = F32(0)
    return total


@helper()
def _gradient_row(x, y, i, pixels, l1_scale, maps, gradient):
    """Sum w |x - y| of one image row; writes the row's gradient of the whole loss."""
    row_length = x.shape[1]
    columns = np.empty((3, maps.shape[2]), np.float32)
    for m in range(3):
        _blur_rows(maps[m], i, columns[m])
    averages = np.empty((3, row_length), np.float32)
    _blur_along(columns, averages)
    by_mean = averages[0]
    by_squares = averages[1]
    by_cross = averages[2]
    weights = np.empty(row_length, np.float32)
    _spread(pixels, i, weights)
    row_x = x[i]
    row_y = y[i]
    row_gradient = gradient[i]
    total = F32(0)
    for j in range(row_length):
        difference = row_x[j] - row_y[j]
        total += weights[j] * abs(difference)
        slope = l1_scale * weights[j]
        # torch's convention: the slope of |d| at d = 0 is 0.
        sign = slope if difference > F32(0) else (-slope if difference < F32(0) else F32(0))
        row_gradient[j] = (
            by_mean[j] + F32(2) * row_x[j] * by_squares[j] + row_y[j] * by_cross[j] + sign
        )
    return total


@helper()
def _used_row(x, y, i, pixels, windows, outputs):
    """Copy a row of both images, with 0 where neither the weight nor a weighted window counts.

    0 times a NaN or an overflow is not 0, so such values have to go before any arithmetic.
    """
    width = pixels.shape[1]
    windows_h, windows_w = windows.shape
    # The largest weight of the windows that a pixel lies in: down the columns, then along the row.
    column = np.zeros(width + REACH, np.float32)
    for z in range(max(0, i - REACH), min(windows_h - 1, i) + 1):
        for j in range(windows_w):
            weight = windows[z, j]
            column[REACH + j] = weight if weight > column[REACH + j] else column[REACH + j]
    largest = np.empty((1, width), np.float32)
    for j in range(width):
        largest[0, j] = pixels[i, j]
    for k in range(WINDOW_SIZE):
        for j in range(width):
            largest[0, j] = column[j + k] if column[j + k] > largest[0, j] else largest[0, j]
    used = np.empty(CHANNELS * width, np.float32)
    _spread(largest, 0, used)
    for j in range(CHANNELS * width):
        outputs[0, i, j] = x[i, j] if used[j] > F32(0) else F32(0)
    for j in range(CHANNELS * width):
        outputs[1, i, j] = y[i, j] if used[j] > F32(0) else F32(0)


@kernel()
def _run_stage(
    stage,  # DROP_UNUSED, WINDOWS or GRADIENT
    num_rows,
    x,  # [H, W * 3] prediction
    y,  # [H, W * 3] target
    pixels,  # [H, W], or [0, 0] for weights of 1
    windows,  # [H - 10, W - 10], or [0, 0] for weights of 1
    scale,  # of the sums in the loss
    maps,  # [3, H + 10, (W + 10) * 3]: dL/dE[x], dL/ds and dL/dp of each window
    outputs,  # [2, H, W * 3]
    sums,  # [H]
):
    # One kernel for the three loops over rows: numba optimises all that a kernel calls four times
    # over (loop body, two wrappers, kernel), which is most of the time of the first call.
    for row in prange(num_rows):
        # Unsigned in the loop body and signed in numba's first look at it: without the cast, each
        # helper is compiled for both.
        i = np.int64(row)
        if stage == DROP_UNUSED:
            _used_row(x, y, i, pixels, windows, outputs)
        elif stage == WINDOWS:
            sums[i] = _windows_row(x, y, i, windows, scale, maps)
        else:
            sums[i] = _gradient_row(x, y, i, pixels, scale, maps, outputs[0])


def l1_ssim_value_and_gradient(
    prediction: np.ndarray,
    target: np.ndarray,
    ssim_lambda: float,
    pixels: np.ndarray | None = None,
    windows: np.ndarray | None = None,
) -> tuple[float, np.ndarray]:
    """Compute the weighted L1 + SSIM loss and its derivative with respect to the prediction.

    Args:
        prediction: [H, W, 3] float32, contiguous, H and W at least 11.
        target: [H, W, 3] float32, contiguous.
        ssim_lambda: share of the SSIM part, in [0, 1].
        pixels: [H, W] float32 weights of the L1 part, or None for weights of 1.
        windows: [H - 10, W - 10] float32 weights of the SSIM part; given exactly when pixels is.

    Returns:
        The loss and its gradient [H, W, 3]. A part whose weights are all zero counts as 0.
    """
    height, width, _ = prediction.shape
    x = prediction.reshape(height, width * CHANNELS)
    y = target.reshape(height, width * CHANNELS)
    if pixels is not None and windows is not None:
        pixel_sum = float(pixels.sum(dtype=np.float64))
        window_sum = float(windows.sum(dtype=np.float64))
    else:
        pixels = windows = np.empty((0, 0), np.float32)
        pixel_sum = float(height * width)
        window_sum = float((height - REACH) * (width - REACH))
    l1_scale = (1 - ssim_lambda) / (CHANNELS * pixel_sum) if pixel_sum > 0 else 0.0
    ssim_scale = ssim_lambda / (CHANNELS * window_sum) if window_sum > 0 else 0.0

    # A margin of zeros around the maps spares blurring back any special case at the border.
    maps = np.empty((3, height + REACH, (width + REACH) * CHANNELS), np.float32)
    maps[:, :REACH] = 0
    maps[:, height:] = 0
    gradient = np.empty((1, *x.shape), np.float32)
    ssim_rows = np.empty(height - REACH, np.float32)
    l1_rows = np.empty(height, np.float32)
    weights = (pixels, windows)
    with kernel_threads():
        if len(pixels) > 0:
            used = np.empty((2, *x.shape), np.float32)
            _run_stage(DROP_UNUSED, height, x, y, *weights, F32(0), maps, used, l1_rows)
            x, y = used
        _run_stage(
            WINDOWS, height - REACH, x, y, *weights, F32(ssim_scale), maps, gradient, ssim_rows
        )
        _run_stage(GRADIENT, height, x, y, *weights, F32(l1_scale), maps, gradient, l1_rows)
    loss = l1_scale * float(l1_rows.sum(dtype=np.float64))
    loss += ssim_scale * float(ssim_rows.sum(dtype=np.float64))
    return loss, gradient.reshape(height, width, CHANNELS)
