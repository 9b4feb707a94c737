# SPDX-License-Identifier: Apache-2.0
"""Fused projection and spherical-harmonics colour of 3-D Gaussians, with gradients.

Conventions (gsplat's; EWA splatting after Zwicker et al. 2001, antialiasing after Mip-Splatting)
    viewmat [4, 4] is world-to-camera, camera axes x right, y down, z forward.
    quats are (w, x, y, z) and need not be normalised; scales are linear (not log).
    cov2d = A A^T + eps I, with A = J W R S (2 x 3): J the perspective Jacobian, W the
    rotation of viewmat, R S the Gaussian's own axes. conic = inverse(cov2d) as (a, b, c).
    The tangent point of J is clamped to 1.15 of the half field of view on either side.
    radius = ceil(3 sqrt(largest eigenvalue)); 0 for a Gaussian that is not visible.
    compensation = sqrt(det(A A^T) / det(cov2d)), the opacity factor of antialiased rendering.
    colour = max(0, 0.5 + sum_k Y_k(direction) sh_k), direction from camera to Gaussian.

det(A A^T) is the sum of the squared 2 x 2 minors of A (Cauchy-Binet), which does not cancel:
needles keep their determinant in float32.

A Gaussian with a NaN or infinite parameter, or whose covariance overflows, is not visible. All
rows of an invisible Gaussian are zero, and so are its gradients.
"""

from __future__ import annotations

import math

import numpy as np
from numba import prange

from ps4pro_nerfstudio.splatting.cpu.jit import helper, kernel

F32 = np.float32
# Constants as globals: each F32(...) in a kernel would be one more call to compile.
ZERO, HALF, ONE, TWO, THREE, FOUR = (F32(x) for x in (0, 0.5, 1, 2, 3, 4))
EIGENVALUE_FLOOR = F32(0.01)
MARGIN = F32(0.15)
LARGEST = F32(3.4e38)
# Larger radii mean the same (every tile) and would not fit an int32.
LARGEST_RADIUS = F32(1e9)
# Below this ratio of determinants the compensation counts as 0 and passes no gradient.
SMALLEST_RATIO = F32(1e-12)

# Gaussians per unit of work. Fixed, so that sums over a chunk do not depend on the thread count.
CHUNK = 512

# What the kernels know of a camera, as one float32 array: rows 0-2 of world-to-camera, its centre
# in the world, fx, fy, cx, cy, width, height, near plane, far plane, radius clip, eps2d.
CAMERA = 25

# Sums per chunk for the camera: 9 of the rotation (row-major), 3 of the translation, 3 of the
# camera centre.
CAMERA_SUMS = 15

# Real spherical-harmonics constants, named by their polynomial; P. Sloan, "Efficient Spherical
# Harmonic Evaluation", JCGT 2013.
SH_0 = F32(0.2820947917738781)
SH_1 = F32(0.48860251190292)
SH_XY = F32(0.5462742152960395)
SH_YZ = F32(1.092548430592079)
SH_ZZ = F32(0.9461746957575601)
SH_ZZ_OFFSET = F32(0.3153915652525201)
SH_XXX = F32(0.5900435899266435)
SH_XYZ = F32(1.445305721320277)
SH_XZZ = F32(2.285228997322329)
SH_XZZ_OFFSET = F32(0.4570457994644658)
SH_ZZZ = F32(1.865881662950577)
SH_ZZZ_OFFSET = F32(1.119528997770346)
SH_XXXX = F32(0.6258357354491763)
SH_XXXZ = F32(1.770130769779931)
SH_XXZZ = F32(3.31161143515146)
SH_XXZZ_OFFSET = F32(0.47308734787878)
SH_XZZZ = F32(4.683325804901025)
SH_XZZZ_OFFSET = F32(2.007139630671868)
SH_Z4 = F32(1.984313483298443 * 1.865881662950577)
SH_Z4_SQUARE = F32(-1.984313483298443 * 1.119528997770346 - 1.006230589874905 * 0.9461746957575601)
SH_Z4_OFFSET = F32(1.006230589874905 * 0.3153915652525201)
MAX_BASES = 25


@helper()
def _rotation(w, x, y, z):
    """Row-major rotation matrix of a unit quaternion."""
    return (
        ONE - TWO * (y * y + z * z),
        TWO * (x * y - w * z),
        TWO * (x * z + w * y),
        TWO * (x * y + w * z),
        ONE - TWO * (x * x + z * z),
        TWO * (y * z - w * x),
        TWO * (x * z - w * y),
        TWO * (y * z + w * x),
        ONE - TWO * (x * x + y * y),
    )


@helper()
def _sh_basis(degree, x, y, z, basis):
    """Write the (degree + 1)^2 basis values at a unit direction."""
    basis[0] = SH_0
    if degree >= 1:
        basis[1] = -SH_1 * y
        basis[2] = SH_1 * z
        basis[3] = -SH_1 * x
    if degree >= 2:
        zz = z * z
        cos2 = x * x - y * y
        sin2 = TWO * x * y
        basis[4] = SH_XY * sin2
        basis[5] = -SH_YZ * z * y
        basis[6] = SH_ZZ * zz - SH_ZZ_OFFSET
        basis[7] = -SH_YZ * z * x
        basis[8] = SH_XY * cos2
        if degree >= 3:
            cos3 = x * cos2 - y * sin2
            sin3 = x * sin2 + y * cos2
            xzz = SH_XZZ_OFFSET - SH_XZZ * zz
            basis[9] = -SH_XXX * sin3
            basis[10] = SH_XYZ * z * sin2
            basis[11] = xzz * y
            basis[12] = z * (SH_ZZZ * zz - SH_ZZZ_OFFSET)
            basis[13] = xzz * x
            basis[14] = SH_XYZ * z * cos2
            basis[15] = -SH_XXX * cos3
            if degree >= 4:
                cos4 = x * cos3 - y * sin3
                sin4 = x * sin3 + y * cos3
                xxzz = SH_XXZZ * zz - SH_XXZZ_OFFSET
                xzzz = z * (SH_XZZZ_OFFSET - SH_XZZZ * zz)
                basis[16] = SH_XXXX * sin4
                basis[17] = -SH_XXXZ * z * sin3
                basis[18] = xxzz * sin2
                basis[19] = xzzz * y
                basis[20] = (SH_Z4 * zz + SH_Z4_SQUARE) * zz + SH_Z4_OFFSET
                basis[21] = xzzz * x
                basis[22] = xxzz * cos2
                basis[23] = -SH_XXXZ * z * cos3
                basis[24] = SH_XXXX * cos4


@helper()
def _sh_direction_gradient(degree, x, y, z, h):
    """Gradient of sum_k h_k Y_k with respect to (x, y, z), before projecting on the sphere."""
    v_x = ZERO
    v_y = ZERO
    v_z = ZERO
    if degree >= 1:
        v_x -= SH_1 * h[3]
        v_y -= SH_1 * h[1]
        v_z += SH_1 * h[2]
    if degree >= 2:
        cos2 = x * x - y * y
        sin2 = TWO * x * y
        v_x += TWO * SH_XY * (y * h[4] + x * h[8]) - SH_YZ * z * h[7]
        v_y += TWO * SH_XY * (x * h[4] - y * h[8]) - SH_YZ * z * h[5]
        v_z += TWO * SH_ZZ * z * h[6] - SH_YZ * (y * h[5] + x * h[7])
        if degree >= 3:
            zz = z * z
            xyz = TWO * SH_XYZ * z
            xzz = SH_XZZ_OFFSET - SH_XZZ * zz
            xzz_dz = -TWO * SH_XZZ * z
            v_x += (
                xyz * (y * h[10] + x * h[14])
                + xzz * h[13]
                - THREE * SH_XXX * (sin2 * h[9] + cos2 * h[15])
            )
            v_y += (
                xyz * (x * h[10] - y * h[14])
                + xzz * h[11]
                + THREE * SH_XXX * (sin2 * h[15] - cos2 * h[9])
            )
            v_z += (
                SH_XYZ * (sin2 * h[10] + cos2 * h[14])
                + xzz_dz * (y * h[11] + x * h[13])
                + (THREE * SH_ZZZ * zz - SH_ZZZ_OFFSET) * h[12]
            )
            if degree >= 4:
                cos3 = x * cos2 - y * sin2
                sin3 = x * sin2 + y * cos2
                xxzz = TWO * (SH_XXZZ * zz - SH_XXZZ_OFFSET)
                xzzz = z * (SH_XZZZ_OFFSET - SH_XZZZ * zz)
                xzzz_dz = SH_XZZZ_OFFSET - THREE * SH_XZZZ * zz
                v_x += (
                    FOUR * SH_XXXX * (sin3 * h[16] + cos3 * h[24])
                    - THREE * SH_XXXZ * z * (sin2 * h[17] + cos2 * h[23])
                    + xxzz * (y * h[18] + x * h[22])
                    + xzzz * h[21]
                )
                v_y += (
                    FOUR * SH_XXXX * (cos3 * h[16] - sin3 * h[24])
                    - THREE * SH_XXXZ * z * (cos2 * h[17] - sin2 * h[23])
                    + xxzz * (x * h[18] - y * h[22])
                    + xzzz * h[19]
                )
                v_z += (
                    -SH_XXXZ * (sin3 * h[17] + cos3 * h[23])
                    + TWO * SH_XXZZ * z * (sin2 * h[18] + cos2 * h[22])
                    + xzzz_dz * (y * h[19] + x * h[21])
                    + TWO * z * (TWO * SH_Z4 * zz + SH_Z4_SQUARE) * h[20]
                )
    return v_x, v_y, v_z


# --------------------------------------------------------------------------- forward


@helper()
def _project_rows(
    first, last, means, quats, scales, opacities, colors, degree, camera, basis,
    means2d, conics, depths, compensations, rgb, radii,
):  # fmt: skip
    w00 = camera[0]
    w01 = camera[1]
    w02 = camera[2]
    w03 = camera[3]
    w10 = camera[4]
    w11 = camera[5]
    w12 = camera[6]
    w13 = camera[7]
    w20 = camera[8]
    w21 = camera[9]
    w22 = camera[10]
    w23 = camera[11]
    center_x = camera[12]
    center_y = camera[13]
    center_z = camera[14]
    fx = camera[15]
    fy = camera[16]
    cx = camera[17]
    cy = camera[18]
    width = camera[19]
    height = camera[20]
    near = camera[21]
    far = camera[22]
    radius_clip = camera[23]
    blur = camera[24]
    for i in range(first, last):
        # The row of an invisible Gaussian; overwritten at the end when it turns out visible.
        radii[i] = 0
        depths[i] = ZERO
        means2d[i, 0] = ZERO
        means2d[i, 1] = ZERO
        conics[i, 0] = ZERO
        conics[i, 1] = ZERO
        conics[i, 2] = ZERO
        if compensations.shape[0] > 0:
            compensations[i] = ZERO
        if degree >= 0:
            rgb[i, 0] = ZERO
            rgb[i, 1] = ZERO
            rgb[i, 2] = ZERO

        px = means[i, 0]
        py = means[i, 1]
        pz = means[i, 2]
        z = w20 * px + w21 * py + w22 * pz + w23
        # Tests are written so that NaN fails them.
        if not (z >= near and z <= far and math.fabs(opacities[i]) <= LARGEST):
            continue
        x = w00 * px + w01 * py + w02 * pz + w03
        y = w10 * px + w11 * py + w12 * pz + w13
        inv_z = ONE / z
        u = fx * x * inv_z + cx
        v = fy * y * inv_z + cy

        # Perspective Jacobian times view rotation (T, 2 x 3).
        margin_x = MARGIN * width / fx
        margin_y = MARGIN * height / fy
        tx = z * min((width - cx) / fx + margin_x, max(-(cx / fx + margin_x), x * inv_z))
        ty = z * min((height - cy) / fy + margin_y, max(-(cy / fy + margin_y), y * inv_z))
        j_ux = fx * inv_z
        j_uz = -fx * tx * inv_z * inv_z
        j_vy = fy * inv_z
        j_vz = -fy * ty * inv_z * inv_z
        t00 = j_ux * w00 + j_uz * w20
        t01 = j_ux * w01 + j_uz * w21
        t02 = j_ux * w02 + j_uz * w22
        t10 = j_vy * w10 + j_vz * w20
        t11 = j_vy * w11 + j_vz * w21
        t12 = j_vy * w12 + j_vz * w22

        qw = quats[i, 0]
        qx = quats[i, 1]
        qy = quats[i, 2]
        qz = quats[i, 3]
        inv_norm = ONE / math.sqrt(qw * qw + qx * qx + qy * qy + qz * qz)
        r0, r1, r2, r3, r4, r5, r6, r7, r8 = _rotation(
            qw * inv_norm, qx * inv_norm, qy * inv_norm, qz * inv_norm
        )
        s0 = scales[i, 0]
        s1 = scales[i, 1]
        s2 = scales[i, 2]
        a00 = (t00 * r0 + t01 * r3 + t02 * r6) * s0
        a01 = (t00 * r1 + t01 * r4 + t02 * r7) * s1
        a02 = (t00 * r2 + t01 * r5 + t02 * r8) * s2
        a10 = (t10 * r0 + t11 * r3 + t12 * r6) * s0
        a11 = (t10 * r1 + t11 * r4 + t12 * r7) * s1
        a12 = (t10 * r2 + t11 * r5 + t12 * r8) * s2
        sharp_xx = a00 * a00 + a01 * a01 + a02 * a02
        sharp_yy = a10 * a10 + a11 * a11 + a12 * a12
        cov_xy = a00 * a10 + a01 * a11 + a02 * a12
        cov_xx = sharp_xx + blur
        cov_yy = sharp_yy + blur
        m01 = a00 * a11 - a01 * a10
        m02 = a00 * a12 - a02 * a10
        m12 = a01 * a12 - a02 * a11
        sharp_determinant = m01 * m01 + m02 * m02 + m12 * m12
        determinant = sharp_determinant + blur * (sharp_xx + sharp_yy) + blur * blur
        if not (determinant > ZERO and determinant <= LARGEST):
            continue
        half_trace = HALF * (cov_xx + cov_yy)
        spread = math.sqrt(max(EIGENVALUE_FLOOR, half_trace * half_trace - determinant))
        radius = min(math.ceil(THREE * math.sqrt(half_trace + spread)), LARGEST_RADIUS)
        if radius <= radius_clip:
            continue
        on_screen = u + radius > ZERO and u - radius < width
        on_screen = on_screen and v + radius > ZERO and v - radius < height
        # The finite test keeps an infinite centre out when the radius is at its limit.
        if not (on_screen and math.fabs(u) <= LARGEST and math.fabs(v) <= LARGEST):
            continue

        if degree >= 0:
            dx = px - center_x
            dy = py - center_y
            dz = pz - center_z
            inv_length = ONE / math.sqrt(dx * dx + dy * dy + dz * dz)
            _sh_basis(degree, dx * inv_length, dy * inv_length, dz * inv_length, basis)
            red = HALF
            green = HALF
            blue = HALF
            for k in range((degree + 1) * (degree + 1)):
                red += basis[k] * colors[i, k, 0]
                green += basis[k] * colors[i, k, 1]
                blue += basis[k] * colors[i, k, 2]
            if not (
                math.fabs(red) <= LARGEST
                and math.fabs(green) <= LARGEST
                and math.fabs(blue) <= LARGEST
            ):
                continue
            rgb[i, 0] = max(red, ZERO)
            rgb[i, 1] = max(green, ZERO)
            rgb[i, 2] = max(blue, ZERO)
        else:
            finite = True
            for k in range(colors.shape[1]):
                finite = finite and math.fabs(colors[i, k, 0]) <= LARGEST
            if not finite:
                continue

        inv_determinant = ONE / determinant
        means2d[i, 0] = u
        means2d[i, 1] = v
        conics[i, 0] = cov_yy * inv_determinant
        conics[i, 1] = -cov_xy * inv_determinant
        conics[i, 2] = cov_xx * inv_determinant
        depths[i] = z
        radii[i] = np.int32(radius)
        if compensations.shape[0] > 0:
            ratio = sharp_determinant * inv_determinant
            compensations[i] = math.sqrt(ratio) if ratio > SMALLEST_RATIO else ZERO


@kernel()
def project(
    n, means, quats, scales, opacities, colors, degree, camera,
    means2d, conics, depths, compensations, rgb, radii,
):  # fmt: skip
    """Project n Gaussians to one camera; writes every row of the outputs.

    Arrays:
        means [n, 3], quats [n, 4], scales [n, 3], opacities [n]: parameters.
        colors: [n, K, 3] coefficients; [n, D, 1] plain colours, only tested for NaN, if degree < 0.
        camera [25]: the camera and the limits, see `CAMERA`.
        means2d [n, 2], conics [n, 3], depths [n], radii [n] int32: outputs.
        compensations [n], or [0] when not wanted; rgb [n, 3], or [0, 3] if degree < 0: outputs.
    """
    for chunk in prange((n + CHUNK - 1) // CHUNK):
        basis = np.empty(MAX_BASES, np.float32)
        first = chunk * CHUNK
        _project_rows(
            first, min(first + CHUNK, n), means, quats, scales, opacities, colors, degree,
            camera, basis, means2d, conics, depths, compensations, rgb, radii,
        )  # fmt: skip


# --------------------------------------------------------------------------- backward


@helper()
def _project_rows_backward(
    first, last, radii, means, quats, scales, colors, degree, camera, basis, h, conics,
    compensations, rgb, v_means2d, v_conics, v_depths, v_compensations, v_rgb, accumulate,
    accumulate_colors, v_means, v_quats, v_scales, v_colors, camera_sums,
):  # fmt: skip
    w00 = camera[0]
    w01 = camera[1]
    w02 = camera[2]
    w03 = camera[3]
    w10 = camera[4]
    w11 = camera[5]
    w12 = camera[6]
    w13 = camera[7]
    w20 = camera[8]
    w21 = camera[9]
    w22 = camera[10]
    w23 = camera[11]
    center_x = camera[12]
    center_y = camera[13]
    center_z = camera[14]
    fx = camera[15]
    fy = camera[16]
    cx = camera[17]
    cy = camera[18]
    width = camera[19]
    height = camera[20]
    blur = camera[24]
    camera_sums[:] = 0
    for i in range(first, last):
        if radii[i] <= 0:
            if not accumulate:
                for k in range(3):
                    v_means[i, k] = ZERO
                    v_scales[i, k] = ZERO
                for k in range(4):
                    v_quats[i, k] = ZERO
            if degree >= 0 and not accumulate_colors:
                for k in range(v_colors.shape[1]):
                    v_colors[i, k, 0] = ZERO
                    v_colors[i, k, 1] = ZERO
                    v_colors[i, k, 2] = ZERO
            continue
        # Forward quantities, recomputed rather than stored.
        px = means[i, 0]
        py = means[i, 1]
        pz = means[i, 2]
        x = w00 * px + w01 * py + w02 * pz + w03
        y = w10 * px + w11 * py + w12 * pz + w13
        z = w20 * px + w21 * py + w22 * pz + w23
        inv_z = ONE / z
        margin_x = MARGIN * width / fx
        margin_y = MARGIN * height / fy
        right = (width - cx) / fx + margin_x
        left = -(cx / fx + margin_x)
        bottom = (height - cy) / fy + margin_y
        top = -(cy / fy + margin_y)
        tan_x = x * inv_z
        tan_y = y * inv_z
        tx = z * min(right, max(left, tan_x))
        ty = z * min(bottom, max(top, tan_y))
        inside_x = tan_x <= right and tan_x >= left
        inside_y = tan_y <= bottom and tan_y >= top
        j_ux = fx * inv_z
        j_uz = -fx * tx * inv_z * inv_z
        j_vy = fy * inv_z
        j_vz = -fy * ty * inv_z * inv_z
        t00 = j_ux * w00 + j_uz * w20
        t01 = j_ux * w01 + j_uz * w21
        t02 = j_ux * w02 + j_uz * w22
        t10 = j_vy * w10 + j_vz * w20
        t11 = j_vy * w11 + j_vz * w21
        t12 = j_vy * w12 + j_vz * w22
        qw = quats[i, 0]
        qx = quats[i, 1]
        qy = quats[i, 2]
        qz = quats[i, 3]
        inv_norm = ONE / math.sqrt(qw * qw + qx * qx + qy * qy + qz * qz)
        qw *= inv_norm
        qx *= inv_norm
        qy *= inv_norm
        qz *= inv_norm
        r0, r1, r2, r3, r4, r5, r6, r7, r8 = _rotation(qw, qx, qy, qz)
        s0 = scales[i, 0]
        s1 = scales[i, 1]
        s2 = scales[i, 2]
        a00 = (t00 * r0 + t01 * r3 + t02 * r6) * s0
        a01 = (t00 * r1 + t01 * r4 + t02 * r7) * s1
        a02 = (t00 * r2 + t01 * r5 + t02 * r8) * s2
        a10 = (t10 * r0 + t11 * r3 + t12 * r6) * s0
        a11 = (t10 * r1 + t11 * r4 + t12 * r7) * s1
        a12 = (t10 * r2 + t11 * r5 + t12 * r8) * s2

        # dL/dcov2d = -conic V conic, with V the symmetric dL/dconic.
        conic_a = conics[i, 0]
        conic_b = conics[i, 1]
        conic_c = conics[i, 2]
        v_a = v_conics[i, 0]
        v_b = HALF * v_conics[i, 1]
        v_c = v_conics[i, 2]
        p00 = v_a * conic_a + v_b * conic_b
        p01 = v_a * conic_b + v_b * conic_c
        p10 = v_b * conic_a + v_c * conic_b
        p11 = v_b * conic_b + v_c * conic_c
        g00 = -(conic_a * p00 + conic_b * p10)
        g01 = -(conic_a * p01 + conic_b * p11)
        g11 = -(conic_b * p01 + conic_c * p11)
        if compensations.shape[0] > 0 and compensations[i] > ZERO:
            # conic = adj(cov1) / det1;
            # d(det0 / det1) = (adj(cov0) - ratio adj(cov1)) / det1 : dcov.
            sharp_xx = a00 * a00 + a01 * a01 + a02 * a02
            sharp_yy = a10 * a10 + a11 * a11 + a12 * a12
            m01 = a00 * a11 - a01 * a10
            m02 = a00 * a12 - a02 * a10
            m12 = a01 * a12 - a02 * a11
            sharp_determinant = m01 * m01 + m02 * m02 + m12 * m12
            inv_determinant = ONE / (sharp_determinant + blur * (sharp_xx + sharp_yy) + blur * blur)
            ratio = sharp_determinant * inv_determinant
            v_ratio = HALF * v_compensations[i] / compensations[i]
            g00 += v_ratio * (sharp_yy * inv_determinant - ratio * conic_a)
            g01 += v_ratio * (conic_b - ratio * conic_b)
            g11 += v_ratio * (sharp_xx * inv_determinant - ratio * conic_c)

        # dL/dA = 2 G A.
        v_a00 = TWO * (g00 * a00 + g01 * a10)
        v_a01 = TWO * (g00 * a01 + g01 * a11)
        v_a02 = TWO * (g00 * a02 + g01 * a12)
        v_a10 = TWO * (g01 * a00 + g11 * a10)
        v_a11 = TWO * (g01 * a01 + g11 * a11)
        v_a12 = TWO * (g01 * a02 + g11 * a12)

        # A = T M with M = R S: dL/dT = dL/dA M^T, then dL/dJ = dL/dT W^T.
        m0 = r0 * s0
        m1 = r1 * s1
        m2 = r2 * s2
        m3 = r3 * s0
        m4 = r4 * s1
        m5 = r5 * s2
        m6 = r6 * s0
        m7 = r7 * s1
        m8 = r8 * s2
        v_t00 = v_a00 * m0 + v_a01 * m1 + v_a02 * m2
        v_t01 = v_a00 * m3 + v_a01 * m4 + v_a02 * m5
        v_t02 = v_a00 * m6 + v_a01 * m7 + v_a02 * m8
        v_t10 = v_a10 * m0 + v_a11 * m1 + v_a12 * m2
        v_t11 = v_a10 * m3 + v_a11 * m4 + v_a12 * m5
        v_t12 = v_a10 * m6 + v_a11 * m7 + v_a12 * m8
        v_j_ux = v_t00 * w00 + v_t01 * w01 + v_t02 * w02
        v_j_uz = v_t00 * w20 + v_t01 * w21 + v_t02 * w22
        v_j_vy = v_t10 * w10 + v_t11 * w11 + v_t12 * w12
        v_j_vz = v_t10 * w20 + v_t11 * w21 + v_t12 * w22

        # Gradient of the camera-space position: through the 2-D mean, the depth and J.
        v_u = v_means2d[i, 0]
        v_v = v_means2d[i, 1]
        inv_z2 = inv_z * inv_z
        inv_z3 = inv_z2 * inv_z
        v_x = fx * inv_z * v_u
        v_y = fy * inv_z * v_v
        v_z = -(fx * x * v_u + fy * y * v_v) * inv_z2 + v_depths[i]
        if inside_x:
            v_x -= fx * inv_z2 * v_j_uz
        else:
            v_z -= fx * inv_z3 * v_j_uz * tx
        if inside_y:
            v_y -= fy * inv_z2 * v_j_vz
        else:
            v_z -= fy * inv_z3 * v_j_vz * ty
        v_z += -fx * inv_z2 * v_j_ux - fy * inv_z2 * v_j_vy
        v_z += TWO * fx * tx * inv_z3 * v_j_uz + TWO * fy * ty * inv_z3 * v_j_vz

        # dL/dM = T^T dL/dA, split in scale and rotation.
        v_m0 = t00 * v_a00 + t10 * v_a10
        v_m1 = t00 * v_a01 + t10 * v_a11
        v_m2 = t00 * v_a02 + t10 * v_a12
        v_m3 = t01 * v_a00 + t11 * v_a10
        v_m4 = t01 * v_a01 + t11 * v_a11
        v_m5 = t01 * v_a02 + t11 * v_a12
        v_m6 = t02 * v_a00 + t12 * v_a10
        v_m7 = t02 * v_a01 + t12 * v_a11
        v_m8 = t02 * v_a02 + t12 * v_a12
        v_s0 = v_m0 * r0 + v_m3 * r3 + v_m6 * r6
        v_s1 = v_m1 * r1 + v_m4 * r4 + v_m7 * r7
        v_s2 = v_m2 * r2 + v_m5 * r5 + v_m8 * r8
        v_r0 = v_m0 * s0
        v_r1 = v_m1 * s1
        v_r2 = v_m2 * s2
        v_r3 = v_m3 * s0
        v_r4 = v_m4 * s1
        v_r5 = v_m5 * s2
        v_r6 = v_m6 * s0
        v_r7 = v_m7 * s1
        v_r8 = v_m8 * s2
        v_qw = TWO * (qx * (v_r7 - v_r5) + qy * (v_r2 - v_r6) + qz * (v_r3 - v_r1))
        v_qx = TWO * (
            -TWO * qx * (v_r4 + v_r8) + qy * (v_r3 + v_r1) + qz * (v_r6 + v_r2) + qw * (v_r7 - v_r5)
        )
        v_qy = TWO * (
            qx * (v_r3 + v_r1) - TWO * qy * (v_r0 + v_r8) + qz * (v_r7 + v_r5) + qw * (v_r2 - v_r6)
        )
        v_qz = TWO * (
            qx * (v_r6 + v_r2) + qy * (v_r7 + v_r5) - TWO * qz * (v_r0 + v_r4) + qw * (v_r3 - v_r1)
        )
        # Through the normalisation: remove the part along the unit quaternion.
        along = v_qw * qw + v_qx * qx + v_qy * qy + v_qz * qz
        v_qw = (v_qw - along * qw) * inv_norm
        v_qx = (v_qx - along * qx) * inv_norm
        v_qy = (v_qy - along * qy) * inv_norm
        v_qz = (v_qz - along * qz) * inv_norm

        v_px = w00 * v_x + w10 * v_y + w20 * v_z
        v_py = w01 * v_x + w11 * v_y + w21 * v_z
        v_pz = w02 * v_x + w12 * v_y + w22 * v_z
        if camera_sums.shape[0] > 0:
            camera_sums[0] += v_x * px + j_ux * v_t00
            camera_sums[1] += v_x * py + j_ux * v_t01
            camera_sums[2] += v_x * pz + j_ux * v_t02
            camera_sums[3] += v_y * px + j_vy * v_t10
            camera_sums[4] += v_y * py + j_vy * v_t11
            camera_sums[5] += v_y * pz + j_vy * v_t12
            camera_sums[6] += v_z * px + j_uz * v_t00 + j_vz * v_t10
            camera_sums[7] += v_z * py + j_uz * v_t01 + j_vz * v_t11
            camera_sums[8] += v_z * pz + j_uz * v_t02 + j_vz * v_t12
            camera_sums[9] += v_x
            camera_sums[10] += v_y
            camera_sums[11] += v_z

        if degree >= 0:
            # Spherical harmonics: coefficients, then the viewing direction.
            n_bases = (degree + 1) * (degree + 1)
            dx = px - center_x
            dy = py - center_y
            dz = pz - center_z
            inv_length = ONE / math.sqrt(dx * dx + dy * dy + dz * dz)
            dx *= inv_length
            dy *= inv_length
            dz *= inv_length
            _sh_basis(degree, dx, dy, dz, basis)
            v0 = v_rgb[i, 0] if rgb[i, 0] > ZERO else ZERO
            v1 = v_rgb[i, 1] if rgb[i, 1] > ZERO else ZERO
            v2 = v_rgb[i, 2] if rgb[i, 2] > ZERO else ZERO
            for k in range(n_bases):
                h[k] = colors[i, k, 0] * v0 + colors[i, k, 1] * v1 + colors[i, k, 2] * v2
            if accumulate_colors:
                for k in range(n_bases):
                    v_colors[i, k, 0] += basis[k] * v0
                    v_colors[i, k, 1] += basis[k] * v1
                    v_colors[i, k, 2] += basis[k] * v2
            else:
                for k in range(n_bases):
                    v_colors[i, k, 0] = basis[k] * v0
                    v_colors[i, k, 1] = basis[k] * v1
                    v_colors[i, k, 2] = basis[k] * v2
                for k in range(n_bases, v_colors.shape[1]):
                    v_colors[i, k, 0] = ZERO
                    v_colors[i, k, 1] = ZERO
                    v_colors[i, k, 2] = ZERO
            v_dx, v_dy, v_dz = _sh_direction_gradient(degree, dx, dy, dz, h)
            along = v_dx * dx + v_dy * dy + v_dz * dz
            v_dx = (v_dx - along * dx) * inv_length
            v_dy = (v_dy - along * dy) * inv_length
            v_dz = (v_dz - along * dz) * inv_length
            v_px += v_dx
            v_py += v_dy
            v_pz += v_dz
            if camera_sums.shape[0] > 0:
                camera_sums[12] -= v_dx
                camera_sums[13] -= v_dy
                camera_sums[14] -= v_dz

        if accumulate:
            v_px += v_means[i, 0]
            v_py += v_means[i, 1]
            v_pz += v_means[i, 2]
            v_s0 += v_scales[i, 0]
            v_s1 += v_scales[i, 1]
            v_s2 += v_scales[i, 2]
            v_qw += v_quats[i, 0]
            v_qx += v_quats[i, 1]
            v_qy += v_quats[i, 2]
            v_qz += v_quats[i, 3]
        v_means[i, 0] = v_px
        v_means[i, 1] = v_py
        v_means[i, 2] = v_pz
        v_scales[i, 0] = v_s0
        v_scales[i, 1] = v_s1
        v_scales[i, 2] = v_s2
        v_quats[i, 0] = v_qw
        v_quats[i, 1] = v_qx
        v_quats[i, 2] = v_qy
        v_quats[i, 3] = v_qz


@kernel()
def project_backward(
    n, radii, means, quats, scales, colors, degree, camera,
    conics, compensations, rgb, v_means2d, v_conics, v_depths, v_compensations, v_rgb,
    accumulate, accumulate_colors, v_means, v_quats, v_scales, v_colors, camera_sums,
):  # fmt: skip
    """Gradients of `project` for one camera.

    Arrays:
        v_means2d, v_conics, v_depths, v_compensations, v_rgb: gradients of the outputs.
        accumulate, accumulate_colors: add to the results instead of writing them.
        v_means, v_quats, v_scales, v_colors: results, shaped like the parameters; v_colors
            [0, 0, 0] if degree < 0.
        camera_sums: [n_chunks, 15] float64 result per chunk, or [n_chunks, 0] when not wanted.
    """
    for chunk in prange((n + CHUNK - 1) // CHUNK):
        scratch = np.empty(2 * MAX_BASES, np.float32)
        first = chunk * CHUNK
        _project_rows_backward(
            first, min(first + CHUNK, n), radii, means, quats, scales, colors, degree, camera,
            scratch[:MAX_BASES], scratch[MAX_BASES:], conics, compensations, rgb,
            v_means2d, v_conics, v_depths, v_compensations, v_rgb, accumulate, accumulate_colors,
            v_means, v_quats, v_scales, v_colors, camera_sums[chunk],
        )  # fmt: skip
