# SPDX-License-Identifier: Apache-2.0
"""CPU kernels of the splatting package, compiled by numba at first use.

Importing this package is cheap; importing `projection`, `binning`, `compositing`, `functions` or
`ssim` imports numba. Every kernel is declared through `jit.kernel` (own cache folder) and launched
inside `threads.kernel_threads()` (one lock, torch's thread count).
"""
