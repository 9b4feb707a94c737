# SPDX-License-Identifier: Apache-2.0
"""Training pairs from flat layers of photographs before a moving camera, with exact truth.

Layer j is a plane n_j . X = d_j in the coordinates of the middle camera, painted with a photograph
and cut to a shape. The camera at s has rotation R(s) and centre c(s) (slerp and lerp, the path that
the suite assumes between two photographs); pixels of the middle camera go to pixels of camera s by

    H_j(s) = K (R(s) + c(s) n_j^T / d_j) K^-1
    V0 = (x - H_j(0) x) / t,   V1 = (H_j(1) x - x) / (1 - t)

so that a layer is drawn at s by sampling its photograph at H_j(s)^-1 x. Every frame is sampled from
the photographs, never from another frame, at twice the size, and averaged down. Some layers move on
their own. Half of the pairs are aligned through one of the planes, as the suite aligns its pairs.
Some are taken with an open shutter: each frame is then the mean of `_SHUTTER_STEPS` instants about
its own, which is exact motion blur, and flow and visibility are those of the middle instant.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ps4pro_nerfstudio.training.photographs import Photographs
from ps4pro_nerfstudio.training.samples import SEEN_IN_0, SEEN_IN_1, USABLE, Sample

_SUPERSAMPLING = 2
_SHUTTER_STEPS = 5
_BLURRED_SHARE = 0.15
_MARGIN = 0.5
"""Photographs reach beyond the frame by this share of it on each side, as far as they move."""


@dataclass(frozen=True)
class _Layer:
    picture: NDArray[np.uint8]  # [h, w, 3]
    opacity: NDArray[np.uint8]  # [h, w]
    motion: dict[float, NDArray[np.float64]]  # s -> [3, 3], middle pixels to pixels of frame s


def layered_sample(
    generator: np.random.Generator, photographs: Photographs, width: int = 320, height: int = 192
) -> Sample:
    """Draw a scene of 2 to 6 layers and take its three pictures."""
    t = 0.5 if generator.random() < 0.6 else float(generator.uniform(0.15, 0.85))
    times = (0.0, t, 1.0)
    shutter = generator.uniform(0.04, 0.2) if generator.random() < _BLURRED_SHARE else 0.0
    exposures = [_exposure(s, shutter) for s in times]
    instants = tuple(sorted({s for exposure in exposures for s in exposure}))
    layers = _draw_layers(generator, photographs, width, height, t, instants)
    pictures, owners = zip(
        *(_take(layers, exposure, width, height) for exposure in exposures), strict=True
    )

    x, y = np.meshgrid(np.arange(width, dtype=np.float64), np.arange(height, dtype=np.float64))
    points = np.stack([x, y, np.ones_like(x)], axis=-1)
    middle = owners[1]
    truth = np.full((height, width, 4), np.nan)
    flags = np.full((height, width), USABLE, np.uint8)
    for index, layer in enumerate(layers):
        own = middle == index
        for k, (s, bit) in enumerate(((0.0, SEEN_IN_0), (1.0, SEEN_IN_1))):
            moved = points[own] @ layer.motion[s].T
            moved = moved[:, :2] / np.maximum(moved[:, 2:], 1e-6)
            scale = -1.0 / t if s == 0.0 else 1.0 / (1.0 - t)
            truth[own, 2 * k : 2 * k + 2] = scale * (moved - points[own][:, :2])
            column = np.rint(moved[:, 0]).clip(-1, width).astype(int)
            row = np.rint(moved[:, 1]).clip(-1, height).astype(int)
            inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
            owner = owners[0 if s == 0.0 else 2]
            seen = inside & (owner[row.clip(0, height - 1), column.clip(0, width - 1)] == index)
            flags[own] |= np.where(seen, bit, 0).astype(np.uint8)
    flags[(flags & (SEEN_IN_0 | SEEN_IN_1)) == 0] = 0
    frames = _disturb(generator, list(pictures))
    truth = np.where(np.abs(truth) < 2000.0, truth, np.nan)
    return Sample(frames[0], frames[1], frames[2], t, flags, truth.astype(np.float16))


def _draw_layers(
    generator: np.random.Generator,
    photographs: Photographs,
    width: int,
    height: int,
    t: float,
    times: tuple[float, ...],
) -> list[_Layer]:
    from scipy.spatial.transform import Rotation

    focal = width * generator.uniform(0.7, 1.4)
    intrinsics = np.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1.0]])
    inverse = np.linalg.inv(intrinsics)
    count = int(generator.integers(2, 7))
    # From far to near; the far one fills the frame.
    depths = np.sort(np.exp(generator.uniform(0.0, np.log(6.0), count)))[::-1]
    turn = np.deg2rad(np.exp(generator.uniform(np.log(0.3), np.log(6.0))))
    axis = generator.normal(size=3) * np.array([2.0, 4.0, 1.0])
    axis *= turn / np.linalg.norm(axis)
    kind = generator.random()
    direction = generator.normal(size=3) * np.array([1.0, 0.6, 0.25])
    if kind < 0.2:
        direction = np.array([*generator.normal(0.0, 0.15, 2), generator.choice([-1.0, 1.0])])
    direction /= np.linalg.norm(direction)
    # The relative motion of near and far decides how hard the pair is: log-uniform in pixels.
    parallax = np.exp(generator.uniform(np.log(4.0), np.log(56.0)))
    spread = focal * (1.0 / depths[-1] - 1.0 / depths[0])
    baseline = direction * parallax / max(spread, 1e-3)
    aligned = generator.random() < 0.6
    reference = float(depths[generator.integers(count)])
    if aligned:
        axis = axis * 0.0

    layers = []
    for index, depth in enumerate(depths):
        normal = np.array([*generator.normal(0.0, 0.25, 2), 1.0])
        normal /= np.linalg.norm(normal)
        own = np.zeros(3)
        if generator.random() < 0.25:
            own[:2] = generator.normal(0.0, 0.5 * parallax, 2)
            own[2] = generator.normal(0.0, np.deg2rad(4.0))
        motion = {}
        for s in times:
            rotation = Rotation.from_rotvec(axis * (s - t)).as_matrix()
            centre = baseline * (s - t)
            homography = intrinsics @ (rotation + np.outer(centre, normal) / depth) @ inverse
            if aligned:
                flat = np.eye(3) + np.outer(centre, [0.0, 0.0, 1.0]) / reference
                homography = np.linalg.inv(intrinsics @ flat @ inverse) @ homography
            angle = own[2] * (s - t)
            middle = np.array([width / 2.0, height / 2.0])
            turned = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
            similar = np.eye(3)
            similar[:2, :2] = turned
            similar[:2, 2] = middle - turned @ middle + own[:2] * (s - t)
            motion[s] = homography @ similar
        layers.append(_draw_layer(generator, photographs, width, height, index == 0, motion))
    return layers


def _draw_layer(
    generator: np.random.Generator,
    photographs: Photographs,
    width: int,
    height: int,
    fills: bool,
    motion: dict[float, NDArray[np.float64]],
) -> _Layer:
    shape = (int(height * (1 + 2 * _MARGIN)), int(width * (1 + 2 * _MARGIN)))
    n = _SUPERSAMPLING
    picture = photographs.crop(generator, shape[0] * n, shape[1] * n)
    if generator.random() < 0.3:
        picture = np.ascontiguousarray(picture[..., generator.permutation(3)])
    if fills:
        opacity = np.full(shape, 255, np.uint8)
    else:
        opacity = draw_shape(generator, width, height, shape)
    import cv2

    opacity = np.asarray(cv2.resize(opacity, None, fx=n, fy=n, interpolation=cv2.INTER_LINEAR))
    return _Layer(picture, opacity.astype(np.uint8), motion)


def draw_shape(
    generator: np.random.Generator, width: int, height: int, shape: tuple[int, int]
) -> NDArray[np.uint8]:
    """A random shape, 255 inside, on an array larger than the frame: blob, box, bars or strokes."""
    import cv2

    canvas = np.zeros(shape, np.uint8)
    centre = np.array([shape[1], shape[0]]) / 2.0
    place = centre + generator.uniform(-0.45, 0.45, 2) * (width, height)
    kind = generator.random()
    size = np.exp(generator.uniform(np.log(0.08), np.log(0.45))) * width

    def polygon(corners: NDArray[np.float64]) -> None:
        cv2.fillPoly(canvas, [np.rint(corners * 16).astype(np.int32)], (255,), cv2.LINE_AA, 4)

    def stroke(start: NDArray, end: NDArray, thickness: float) -> None:
        along = (end - start) / max(float(np.linalg.norm(end - start)), 1e-6)
        across = np.array([-along[1], along[0]]) * thickness / 2.0
        polygon(np.array([start + across, end + across, end - across, start - across]))

    if kind < 0.35:
        corners = int(generator.integers(5, 14))
        angle = np.sort(generator.uniform(0, 2 * np.pi, corners))
        radius = size * generator.uniform(0.4, 1.0, corners)
        polygon(place + radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=-1))
    elif kind < 0.6:
        half = size * generator.uniform(0.3, 1.0, 2)
        angle = generator.normal(0.0, 0.3)
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        polygon(place + (half * np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]])) @ turn.T)
    elif kind < 0.7:
        axes = tuple((size * generator.uniform(0.3, 1.0, 2)).astype(int).tolist())
        cv2.ellipse(
            canvas, tuple(place.astype(int).tolist()), axes, 0, 0, 360, (255,), -1, cv2.LINE_AA
        )
    elif kind < 0.88:
        # Bars, as of a fence or the legs of a chair.
        thickness = float(np.exp(generator.uniform(np.log(2.0), np.log(14.0))))
        angle = generator.choice([0.0, np.pi / 2]) + generator.normal(0.0, 0.15)
        along = np.array([np.cos(angle), np.sin(angle)])
        across = np.array([-along[1], along[0]])
        gap = thickness * generator.uniform(3.0, 10.0)
        for k in range(int(generator.integers(1, 6))):
            middle = place + across * gap * k
            length = size * generator.uniform(0.6, 1.6)
            stroke(middle - along * length, middle + along * length, thickness)
    else:
        # Strokes, as of a plant or of writing.
        for _ in range(int(generator.integers(3, 9))):
            start = place + generator.normal(0.0, size / 2, 2)
            for _ in range(4):
                end = start + generator.normal(0.0, size / 3, 2)
                stroke(start, end, float(np.exp(generator.uniform(np.log(1.5), np.log(6.0)))))
                start = end
    return canvas


def _exposure(s: float, shutter: float) -> list[float]:
    """The instants that a frame at s averages, s itself in the middle."""
    if shutter == 0.0:
        return [s]
    return [s, *(s + shutter * (k / (_SHUTTER_STEPS - 1) - 0.5) for k in _AROUND)]


_AROUND = [k for k in range(_SHUTTER_STEPS) if 2 * k != _SHUTTER_STEPS - 1]


def _take(
    layers: list[_Layer], exposure: list[float], width: int, height: int
) -> tuple[NDArray[np.uint8], NDArray[np.int16]]:
    """The picture of an exposure, and the owners of its first instant."""
    pictures, owners = zip(*(_paint(layers, s, width, height) for s in exposure), strict=True)
    if len(pictures) == 1:
        return pictures[0], owners[0]
    return np.rint(np.mean(pictures, axis=0)).astype(np.uint8), owners[0]


def _paint(
    layers: list[_Layer], s: float, width: int, height: int
) -> tuple[NDArray[np.uint8], NDArray[np.int16]]:
    """The picture at s and, per pixel, the layer that is in front."""
    import cv2

    n = _SUPERSAMPLING
    size = (width * n, height * n)
    image = np.zeros((size[1], size[0], 3), np.float32)
    owner = np.zeros((height, width), np.int16)
    # Pixel centres at integers before and after: x_fine = n x + (n - 1) / 2.
    finer = np.array([[n, 0, (n - 1) / 2.0], [0, n, (n - 1) / 2.0], [0, 0, 1.0]])
    shift = np.eye(3)
    for index, layer in enumerate(layers):
        rows, columns = layer.opacity.shape
        shift[:2, 2] = (columns - size[0]) / 2.0, (rows - size[1]) / 2.0
        # Picture pixels -> fine middle pixels -> fine pixels of frame s.
        to_frame = finer @ layer.motion[s] @ np.linalg.inv(finer) @ np.linalg.inv(shift)
        picture = cv2.warpPerspective(
            layer.picture, to_frame, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT
        )
        if index == 0:
            image = picture.astype(np.float32)
            continue
        opacity = cv2.warpPerspective(
            layer.opacity, to_frame, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT
        )
        share = opacity.astype(np.float32)[..., None] / 255.0
        image += share * (picture - image)
        covered = cv2.resize(opacity, (width, height), interpolation=cv2.INTER_AREA) > 127
        owner[covered] = index
    image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    return np.rint(image).clip(0, 255).astype(np.uint8), owner


def _disturb(
    generator: np.random.Generator, frames: list[NDArray[np.uint8]]
) -> list[NDArray[np.uint8]]:
    """Exposure change along time, blur of all frames, and noise of the two given ones."""
    import cv2

    result = [frame.astype(np.float32) for frame in frames]
    if generator.random() < 0.25:
        change = generator.normal(0.0, 0.03)
        result = [
            frame * (1.0 + change * s) for frame, s in zip(result, (-1.0, 0.0, 1.0), strict=True)
        ]
    if generator.random() < 0.2:
        sigma = float(generator.uniform(0.3, 0.9))
        result = [np.asarray(cv2.GaussianBlur(frame, (0, 0), sigma)) for frame in result]
    if generator.random() < 0.4:
        level = generator.uniform(0.5, 3.0)
        for k in (0, 2):
            result[k] = result[k] + generator.normal(0.0, level, result[k].shape)
    return [np.rint(frame).clip(0, 255).astype(np.uint8) for frame in result]
