# SPDX-License-Identifier: Apache-2.0
"""The truth of generated pairs is true, and stays so under augmentation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from ps4pro_nerfstudio.interpolation.protocol import sample_at
from ps4pro_nerfstudio.messages import InputError
from ps4pro_nerfstudio.training import layered as layers_of_photographs
from ps4pro_nerfstudio.training.augmentation import (
    augment,
    mirror,
    quarter_turns,
    reverse_time,
    twice_as_large,
)
from ps4pro_nerfstudio.training.layered import layered_sample
from ps4pro_nerfstudio.training.photographs import Photographs
from ps4pro_nerfstudio.training.samples import SEEN_IN_0, SEEN_IN_1, USABLE, Batch, Sample
from ps4pro_nerfstudio.training.stream import SampleStream, StreamConfig


@pytest.fixture(scope="module")
def photographs() -> Photographs:
    return Photographs(None)


@pytest.fixture(scope="module")
def layered(photographs: Photographs) -> list[Sample]:
    """Four pairs, one of them with motion blur, without change of exposure and noise."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layers_of_photographs, "_disturb", lambda generator, frames: frames)
        samples = []
        for k in range(4):
            patch.setattr(layers_of_photographs, "_BLURRED_SHARE", float(k == 3))
            generator = np.random.default_rng([3, k])
            samples.append(layered_sample(generator, photographs, 160, 96))
    return samples


def _median_error(sample: Sample) -> float:
    """Median absolute colour error, in 8-bit steps, of seen pixels warped by the true flow."""
    batch = Batch.stack([sample])
    truth, t = torch.nan_to_num(batch.truth), sample.t
    errors = []
    for bit, frame, flow in (
        (SEEN_IN_0, batch.frame0, -t * truth[:, :2]),
        (SEEN_IN_1, batch.frame1, (1.0 - t) * truth[:, 2:]),
    ):
        difference = (sample_at(frame, flow) - batch.middle).abs().mean(dim=1, keepdim=True)
        errors.append(difference[(batch.flags & bit) > 0])
    return float(torch.cat(errors).median()) * 255.0


def test_true_flow_of_layers_reproduces_the_middle_frame(layered: list[Sample]) -> None:
    for sample in layered:
        assert _median_error(sample) < 4.0


def test_pixels_that_no_frame_shows_are_not_trained_on(layered: list[Sample]) -> None:
    for sample in layered:
        hidden = (sample.flags & (SEEN_IN_0 | SEEN_IN_1)) == 0
        assert not ((sample.flags & USABLE) > 0)[hidden].any()


@pytest.mark.parametrize("seed", range(4))
def test_augmented_samples_stay_exact(layered: list[Sample], seed: int) -> None:
    sample = layered[seed].with_start()
    changed = augment(sample, np.random.default_rng(seed), 80)
    assert changed.middle.shape == (80, 80, 3)
    assert _median_error(changed) < 6.0


def test_mirrors_turns_and_reversals_undo_themselves(layered: list[Sample]) -> None:
    sample = layered[0].with_start()
    for twice in (
        mirror(mirror(sample)),
        reverse_time(reverse_time(sample)),
        quarter_turns(quarter_turns(sample, 3), 1),
    ):
        for name, value in vars(sample).items():
            np.testing.assert_array_equal(np.nan_to_num(getattr(twice, name)), np.nan_to_num(value))


def test_an_enlarged_sample_stays_exact(layered: list[Sample]) -> None:
    sample = layered[2].with_start()
    enlarged = twice_as_large(sample)
    assert enlarged.middle.shape == (192, 320, 3)
    assert _median_error(enlarged) < 4.0
    assert sample.start is not None
    assert enlarged.start is not None
    np.testing.assert_array_equal(enlarged.start[10, 20], 2 * sample.start[5, 10])


def test_an_open_shutter_blurs_along_the_motion(photographs: Photographs) -> None:
    """A disc that only moves sideways loses its left and right edges, not its top and bottom."""
    import cv2

    from ps4pro_nerfstudio.training.layered import _exposure, _Layer, _take

    grey = np.full((192, 320, 3), 40, np.uint8)
    disc = np.zeros((192, 320), np.uint8)
    cv2.circle(disc, (160, 96), 30, (255,), -1)
    exposure = _exposure(0.5, 0.2)
    assert exposure[0] == 0.5
    assert np.mean(exposure) == pytest.approx(0.5)

    def moved(pixels: float) -> dict[float, np.ndarray]:
        return {s: np.array([[1, 0, pixels * (s - 0.5)], [0, 1, 0], [0, 0, 1.0]]) for s in exposure}

    layers = [
        _Layer(grey, np.full((192, 320), 255, np.uint8), moved(0.0)),
        _Layer(np.full_like(grey, 200), disc, moved(40.0)),
    ]
    sharp, owner = _take(layers, [0.5], 160, 96)
    blurred, same_owner = _take(layers, exposure, 160, 96)
    np.testing.assert_array_equal(owner, same_owner)
    row, column = blurred[48, :, 0].astype(int), blurred[:, 80, 0].astype(int)
    assert np.sum((row > 45) & (row < 195)) > 10
    assert np.sum((column > 45) & (column < 195)) <= 4
    assert abs(float(sharp.mean()) - float(blurred.mean())) < 1.0


def test_true_flow_of_rooms_reproduces_the_middle_frame() -> None:
    from ps4pro_nerfstudio.training.rooms import MOTIONS, draw_room, view_pair

    generator = np.random.default_rng(11)
    room = draw_room(generator, None, baked=False)
    for motion in MOTIONS:
        pair = view_pair(room, motion, 8.0, 0.4, generator, 96, 64)
        assert _median_error(pair.sample) < 8.0
        shown = (pair.sample.flags & (SEEN_IN_0 | SEEN_IN_1)) > 0
        assert 0.7 < shown.mean() <= 1.0


def test_samples_survive_the_disk(layered: list[Sample], tmp_path: Path) -> None:
    layered[1].save(tmp_path / "a.npz")
    loaded = Sample.load(tmp_path / "a.npz")
    assert loaded.start is None
    for name, value in vars(layered[1]).items():
        if value is not None:
            np.testing.assert_array_equal(getattr(loaded, name), value)


def test_a_batch_is_a_function_of_its_step(tmp_path: Path) -> None:
    streams = [
        SampleStream(
            StreamConfig(cache=tmp_path / name, num_rooms=0, num_layered=3, size=(128, 96))
        )
        for name in ("a", "b")
    ]
    first = [stream.batch(7, 2, 64) for stream in streams]
    other = streams[0].batch(8, 2, 64)
    assert torch.equal(first[0].middle, first[1].middle)
    assert torch.equal(first[0].start, first[1].start)
    assert not torch.equal(first[0].middle, other.middle)
    assert streams[0].missing() == [] or len(streams[0].missing()) < 3


def test_a_stream_without_data_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no training data"):
        SampleStream(StreamConfig(cache=tmp_path, num_rooms=0, num_layered=0))
    with pytest.raises(InputError, match="no pictures"):
        Photographs(tmp_path)


def test_triplets_of_a_folder_move_and_keep_their_order(tmp_path: Path) -> None:
    import cv2

    from ps4pro_nerfstudio.training.video import VideoTriplets

    texture = np.random.default_rng(0).integers(0, 256, (30, 50, 3)).astype(np.uint8)
    texture = np.asarray(cv2.resize(texture, (500, 300), interpolation=cv2.INTER_CUBIC))
    folder = tmp_path / "data" / "00001" / "0001"
    folder.mkdir(parents=True)
    for k in range(7):
        cv2.imwrite(str(folder / f"im{k + 1}.png"), texture[:256, 5 * k : 5 * k + 448])
    videos = VideoTriplets(tmp_path / "data", tmp_path / "cache")
    for seed in range(4):
        sample = videos.sample(np.random.default_rng(seed), 200, 120)
        assert 0.0 < sample.t < 1.0
        steps = [
            _shift(sample.frame0, sample.middle),
            _shift(sample.frame0, sample.frame1),
        ]
        assert steps[0] / steps[1] == pytest.approx(sample.t, abs=0.05)
    with pytest.raises(InputError, match="no videos"):
        VideoTriplets(tmp_path / "cache-that-is-empty", tmp_path / "cache")


def test_clips_that_stand_still_give_no_triplet(tmp_path: Path) -> None:
    import cv2

    from ps4pro_nerfstudio.training.video import VideoTriplets

    for k in range(3):
        cv2.imwrite(str(tmp_path / f"im{k + 1}.png"), np.full((256, 448, 3), 90, np.uint8))
    with pytest.raises(InputError, match="hardly move"):
        VideoTriplets(tmp_path, tmp_path / "cache").sample(np.random.default_rng(0))


def _shift(a: np.ndarray, b: np.ndarray) -> int:
    """Columns by which b's content lies left of a's."""
    columns = a.shape[1]
    errors = [
        np.abs(a[:, shift:].astype(int) - b[:, : columns - shift]).mean() for shift in range(40)
    ]
    return int(np.argmin(errors))
