# SPDX-License-Identifier: Apache-2.0
"""Crops of training pairs, enlarged, turned, mirrored, recoloured and reversed in time.

Every step moves the velocities with the pixels, so a changed sample is as exact as its original.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ps4pro_nerfstudio.training.samples import SEEN_IN_0, SEEN_IN_1, USABLE, Sample

_ENLARGED_SHARE = 0.1


def augment(sample: Sample, generator: np.random.Generator, crop: int) -> Sample:
    """A random square part of a sample: crop, mirror, quarter turn, channel order, direction."""
    height, width = sample.middle.shape[:2]
    crop = min(crop, height, width)
    # Larger motion than the data has, and softer pictures.
    enlarged = crop % 2 == 0 and generator.random() < _ENLARGED_SHARE
    size = crop // 2 if enlarged else crop
    # Where the classical flow fails is rare; of two places the one that shows more of it is taken.
    places = [
        (int(generator.integers(height - size + 1)), int(generator.integers(width - size + 1)))
        for _ in range(2)
    ]
    if sample.truth is not None and sample.start is not None and generator.random() < 0.7:
        places.sort(key=lambda place: _difficulty(sample, place, size), reverse=True)
    y, x = places[0]
    sample = _unsee_outside(_each(sample, lambda a: a[y : y + size, x : x + size]))
    if enlarged:
        sample = twice_as_large(sample)
    if generator.random() < 0.5:
        sample = mirror(sample)
    sample = quarter_turns(sample, int(generator.integers(4)))
    if generator.random() < 0.5:
        sample = reverse_time(sample)
    if generator.random() < 0.3:
        order = generator.permutation(3)
        sample = replace(
            sample,
            **{
                name: np.ascontiguousarray(getattr(sample, name)[..., order])
                for name in ("frame0", "middle", "frame1")
            },
        )
    return sample


def twice_as_large(sample: Sample) -> Sample:
    """Frames enlarged by bicubic interpolation, and what is known of them by repetition."""
    import cv2

    def enlarge(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        enlarged = cv2.resize(image, None, fx=2, fy=2, interpolation=cv2.INTER_CUBIC)
        return np.asarray(enlarged, np.uint8)

    frames = {name: enlarge(getattr(sample, name)) for name in ("frame0", "middle", "frame1")}
    sample = _each(sample, lambda a: a.repeat(2, axis=0).repeat(2, axis=1))
    return _velocities(replace(sample, **frames), lambda v: 2 * v)


def mirror(sample: Sample) -> Sample:
    """Left becomes right."""
    sample = _each(sample, lambda a: a[:, ::-1])
    return _velocities(sample, lambda v: v * np.array([-1, 1, -1, 1], v.dtype))


def quarter_turns(sample: Sample, count: int) -> Sample:
    """Turn a square or any sample counter-clockwise by `count` times 90 degrees."""
    sample = _each(sample, lambda a: np.rot90(a, count))
    for _ in range(count % 4):
        # Counter-clockwise on an image with y down: (x, y) -> (y, -x).
        sample = _velocities(
            sample, lambda v: v[..., [1, 0, 3, 2]] * np.array([1, -1, 1, -1], v.dtype)
        )
    return sample


def reverse_time(sample: Sample) -> Sample:
    """Frame 1 first: t becomes 1 - t, velocities change sign and places."""
    flags = sample.flags & USABLE
    flags = flags | np.where(sample.flags & SEEN_IN_1, SEEN_IN_0, 0).astype(np.uint8)
    flags = flags | np.where(sample.flags & SEEN_IN_0, SEEN_IN_1, 0).astype(np.uint8)
    sample = replace(
        sample,
        frame0=sample.frame1,
        frame1=sample.frame0,
        t=1.0 - sample.t,
        flags=flags.astype(np.uint8),
    )
    return _velocities(sample, lambda v: -v[..., [2, 3, 0, 1]])


def _unsee_outside(sample: Sample) -> Sample:
    """Clear the flags of pixels whose sources lie outside of the frames, as after a crop."""
    height, width = sample.middle.shape[:2]
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    place = np.stack([x, y], axis=-1).astype(np.float32)
    if sample.start is None:
        return sample
    velocity = sample.start.astype(np.float32)
    if sample.truth is not None:
        truth = sample.truth.astype(np.float32)
        velocity = np.where(np.isfinite(truth), truth, velocity)
    flags = sample.flags.copy()
    outside = np.ones((height, width), bool)
    parts = (
        (SEEN_IN_0, -sample.t, velocity[..., :2]),
        (SEEN_IN_1, 1 - sample.t, velocity[..., 2:]),
    )
    for bit, scale, part in parts:
        source = place + scale * part
        inside = ((source >= -0.5) & (source <= (width - 0.5, height - 0.5))).all(axis=-1)
        flags[~inside] &= ~np.uint8(bit)
        outside &= ~inside
    flags[outside] &= ~np.uint8(USABLE)
    return replace(sample, flags=flags)


def _difficulty(sample: Sample, place: tuple[int, int], size: int) -> float:
    y, x = place
    part = (slice(y, y + size, 4), slice(x, x + size, 4))
    assert sample.truth is not None
    assert sample.start is not None
    gap = np.abs(sample.truth[part].astype(np.float32) - sample.start[part].astype(np.float32))
    return float(np.mean(np.nan_to_num(gap).max(axis=-1) > 1.0))


def _each(sample: Sample, change) -> Sample:
    arrays = {
        name: np.ascontiguousarray(change(getattr(sample, name)))
        for name in ("frame0", "middle", "frame1", "flags", "truth", "start")
        if getattr(sample, name) is not None
    }
    return replace(sample, **arrays)


def _velocities(sample: Sample, change) -> Sample:
    arrays: dict[str, NDArray] = {
        name: np.ascontiguousarray(change(getattr(sample, name)))
        for name in ("truth", "start")
        if getattr(sample, name) is not None
    }
    return replace(sample, **arrays)
