# SPDX-License-Identifier: Apache-2.0
"""The fixed set of view pairs that interpolators are compared on: what the suite asks of them.

80 pairs of ray-cast rooms, four motions times five angles times four rooms, aligned through a plane
as the suite does, with exact flow, visibility and depth. Rooms and their textures (scikit-image's
photographs) come from seeds that training never uses, and training takes other photographs. The set
of version 1 served to choose settings; this one was not looked at before the shipped weights were
final.

Measured per pair, over pixels of the middle view that at least one photograph shows:

    psnr            8-bit rounded
    psnr_edges      the same, over pixels within 4 px of an occlusion boundary: where the depths of
                    two neighbouring pixels differ by more than a tenth
    flow_error_px   mean |F_t0 - truth| over pixels that frame 0 shows
and pooled over pairs, over all pixels,
    auc_error       area under the ROC of low confidence as a detector of colours that are wrong by
                    more than .05 (mean of the channels)
    auc_occlusion   the same for pixels that one frame or none shows
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ps4pro_nerfstudio.interpolation.protocol import FrameInterpolator
from ps4pro_nerfstudio.training.rooms import MOTIONS, ViewPair, draw_room, view_pair
from ps4pro_nerfstudio.training.samples import SEEN_IN_0, SEEN_IN_1, USABLE, Sample

ANGLES_DEG = (2.0, 5.0, 10.0, 15.0, 20.0)
REPEATS = 4
SIZE = (384, 216)
VERSION = 2
"""Part of the cache's name: raise it when anything above changes."""

_SEED = 77_200_000
_WRONG_COLOR = 0.05
_EDGE_DEPTH_RATIO = 1.1
_EDGE_REACH_PX = 4
_POOLED_PIXELS_PER_PAIR = 6000


@dataclass(frozen=True)
class PairFigures:
    """What one interpolator does on one pair."""

    motion: str
    angle_deg: float
    psnr: float
    psnr_edges: float
    flow_error_px: float
    confidence: NDArray[np.float32]
    """[P] of some pixels."""
    wrong: NDArray[np.bool_]
    """[P]: their colour is wrong."""
    occluded: NDArray[np.bool_]
    """[P]: a frame does not show them."""


def view_pairs(
    cache: Path | None, angles: tuple[float, ...] = ANGLES_DEG, progress: Any = None
) -> list[ViewPair]:
    """The fixed set, or its part at some angles; kept in a cache folder if one is given."""
    width, height = SIZE
    wanted = [
        (repeat, motion, angle)
        for repeat in range(REPEATS)
        for motion in MOTIONS
        for angle in ANGLES_DEG
        if angle in angles
    ]
    rooms: dict[int, Any] = {}
    pairs = []
    for repeat, motion, angle in progress(wanted) if progress else wanted:
        name = f"view-pairs-{VERSION}/{repeat}-{motion}-{angle:g}.npz"
        path = None if cache is None else cache / name
        depth_path = None if path is None else path.with_suffix(".depth.npy")
        if path is not None and path.is_file() and depth_path is not None and depth_path.is_file():
            pairs.append(ViewPair(Sample.load(path), np.load(depth_path), motion, angle))
            continue
        if repeat not in rooms:
            rooms = {repeat: draw_room(np.random.default_rng([_SEED, repeat]), None, baked=True)}
        generator = np.random.default_rng([_SEED, repeat, MOTIONS.index(motion), round(10 * angle)])
        pair = view_pair(rooms[repeat], motion, angle, 0.5, generator, width, height)
        if path is not None and depth_path is not None:
            pair.sample.save(path)
            np.save(depth_path, pair.depth)
        pairs.append(pair)
    return pairs


def occlusion_edges(depth: NDArray[np.float64], reach_px: int = _EDGE_REACH_PX) -> NDArray:
    """Pixels [H, W] within `reach_px` of a step in depth [H, W] of more than a tenth."""
    import cv2

    logarithm = np.log(np.where(np.isfinite(depth), depth, 1e3))
    edge = np.zeros(depth.shape, bool)
    step = np.log(_EDGE_DEPTH_RATIO)
    across = np.abs(np.diff(logarithm, axis=1)) > step
    down = np.abs(np.diff(logarithm, axis=0)) > step
    edge[:, 1:] |= across
    edge[:, :-1] |= across
    edge[1:] |= down
    edge[:-1] |= down
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach_px + 1,) * 2)
    return cv2.dilate(edge.astype(np.uint8), kernel) > 0


def measure(pair: ViewPair, interpolator: FrameInterpolator, device: str = "cpu") -> PairFigures:
    """Run an interpolator on a pair and compare with the truth."""
    sample = pair.sample
    frame0, frame1 = (
        torch.from_numpy(frame.astype(np.float32) / 255.0).permute(2, 0, 1)[None].to(device)
        for frame in (sample.frame0, sample.frame1)
    )
    with torch.inference_mode():
        result = interpolator(frame0, frame1, sample.t)
    image = (result.image[0].float().permute(1, 2, 0).cpu().numpy() * 255.0).round().clip(0, 255)
    flow = result.flow_t0[0].float().permute(1, 2, 0).cpu().numpy()
    confidence = result.confidence[0, 0].float().cpu().numpy()

    difference = (image - sample.middle) / 255.0
    usable = (sample.flags & USABLE) > 0
    edges = usable & occlusion_edges(pair.depth)
    assert sample.truth is not None
    true_flow = -sample.t * sample.truth[..., :2].astype(np.float32)
    known = ((sample.flags & SEEN_IN_0) > 0) & np.isfinite(true_flow).all(axis=-1)
    flow_error = np.linalg.norm(flow - true_flow, axis=-1)[known]
    chosen = np.random.default_rng(0).permutation(difference.shape[0] * difference.shape[1])
    chosen = chosen[:_POOLED_PIXELS_PER_PAIR]
    both = SEEN_IN_0 | SEEN_IN_1
    return PairFigures(
        motion=pair.motion,
        angle_deg=pair.angle_deg,
        psnr=_psnr(difference[usable]),
        psnr_edges=_psnr(difference[edges]),
        flow_error_px=float(flow_error.mean()),
        confidence=confidence.reshape(-1)[chosen],
        wrong=(np.abs(difference).mean(axis=-1) > _WRONG_COLOR).reshape(-1)[chosen],
        occluded=((sample.flags & both) != both).reshape(-1)[chosen],
    )


def summarise(figures: list[PairFigures]) -> dict[str, float]:
    """Means over pairs, and the pooled areas under ROC; NaN where nothing can be said."""
    confidence = np.concatenate([f.confidence for f in figures])
    wrong = np.concatenate([f.wrong for f in figures])
    occluded = np.concatenate([f.occluded for f in figures])
    return {
        "pairs": len(figures),
        "psnr": float(np.mean([f.psnr for f in figures])),
        "psnr_edges": float(np.nanmean([f.psnr_edges for f in figures])),
        "flow_error_px": float(np.mean([f.flow_error_px for f in figures])),
        "auc_error": area_under_roc(-confidence, wrong),
        "auc_occlusion": area_under_roc(-confidence, occluded),
    }


def area_under_roc(score: NDArray, positive: NDArray[np.bool_]) -> float:
    """Chance that a positive [P] has a higher score [P] than a negative; ties count half."""
    from scipy.stats import rankdata

    num_positive = int(positive.sum())
    num_negative = len(positive) - num_positive
    if num_positive == 0 or num_negative == 0:
        return float("nan")
    ranks = rankdata(score)[positive].sum()
    return float((ranks - num_positive * (num_positive + 1) / 2) / (num_positive * num_negative))


def _psnr(difference: NDArray) -> float:
    if difference.size == 0:
        return float("nan")
    return float(-10.0 * np.log10(max(float(np.mean(np.square(difference))), 1e-10)))
