# SPDX-License-Identifier: Apache-2.0
"""`ps4pro interpolate`: number, order and timing of frames."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from ps4pro_nerfstudio.interpolation.optical_flow import LinearBlend
from ps4pro_nerfstudio.interpolation.video import (
    Interpolate,
    interpolate_video,
    is_cut,
    is_static,
)
from ps4pro_nerfstudio.messages import InputError


def _scene(brightness: int, shift: int) -> np.ndarray:
    image = np.full((48, 64, 3), brightness, np.uint8)
    image[10:30, 10 + shift : 30 + shift] = 255 - brightness
    return image


def _write_video(path: Path, frames: list[np.ndarray], rate: int = 10) -> None:
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"  # type: ignore[union-attr]
        sound = container.add_stream("aac", rate=8000)
        samples = np.zeros((1, 800 * len(frames)), np.float32)
        for frame in frames:
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            container.mux(stream.encode(picture))  # type: ignore[arg-type]
        container.mux(stream.encode(None))  # type: ignore[arg-type]
        audio = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
        audio.rate = 8000
        container.mux(sound.encode(audio))  # type: ignore[arg-type]
        container.mux(sound.encode(None))  # type: ignore[arg-type]


def _read_video(path: Path) -> tuple[list[np.ndarray], Fraction, float, float]:
    """Frames, rate, seconds of the video and of the sound."""
    import av

    with av.open(str(path)) as container:
        video, sound = container.streams.video[0], container.streams.audio[0]
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video)]
        assert video.average_rate is not None
        assert video.duration is not None
        assert sound.duration is not None
        return (
            frames,
            Fraction(video.average_rate),
            float(video.duration * video.time_base),
            float(sound.duration * sound.time_base),
        )


def test_twice_the_frames_at_twice_the_rate_last_as_long(tmp_path: Path) -> None:
    source, target = tmp_path / "in.mp4", tmp_path / "out.mp4"
    _write_video(source, [_scene(60, 2 * k) for k in range(6)])
    count, rate = interpolate_video(source, target, LinearBlend(), times=2)
    before, after = _read_video(source), _read_video(target)
    assert count == 12 == len(after[0])
    assert rate == 20 == after[1]
    assert after[2] == pytest.approx(before[2], abs=0.02)
    assert after[3] == pytest.approx(before[3], abs=0.05)
    # The new frame is between its neighbours, and they are the old ones.
    blend = (before[0][1].astype(int) + before[0][2]) / 2.0
    assert np.abs(after[0][2].astype(int) - before[0][1]).mean() < 2.0
    assert np.abs(after[0][3] - blend).mean() < 2.0


def test_nothing_is_interpolated_across_a_cut(tmp_path: Path) -> None:
    source, target = tmp_path / "in.mp4", tmp_path / "out.mp4"
    _write_video(source, [_scene(20, 0), _scene(20, 1), _scene(235, 0), _scene(235, 1)])
    interpolate_video(source, target, LinearBlend(), times=3)
    means = [float(frame.mean()) for frame in _read_video(target)[0]]
    assert len(means) == 12
    assert max(means[:6]) < 110.0
    assert min(means[6:]) > 145.0


def test_cut_and_static_are_told_apart() -> None:
    assert is_static(_scene(60, 0), _scene(60, 0))
    assert not is_static(_scene(60, 0), _scene(60, 8))
    assert not is_cut(_scene(60, 0), _scene(60, 8))
    assert is_cut(_scene(20, 0), _scene(235, 0))


def test_two_pictures_give_the_frames_between(tmp_path: Path) -> None:
    import cv2

    for name, brightness in (("a", 40), ("b", 80)):
        cv2.imwrite(str(tmp_path / f"{name}.png"), np.full((64, 64, 3), brightness, np.uint8))
    output = tmp_path / "between"
    Interpolate(
        (tmp_path / "a.png", tmp_path / "b.png"), output, count=3, model="optical-flow"
    ).run()
    means = [float(cv2.imread(str(path)).mean()) for path in sorted(output.iterdir())]
    assert means == pytest.approx([50.0, 60.0, 70.0], abs=1.0)


def test_wrong_inputs_are_named(tmp_path: Path) -> None:
    import cv2

    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((64, 64, 3), np.uint8))
    cv2.imwrite(str(tmp_path / "b.png"), np.zeros((64, 80, 3), np.uint8))
    (tmp_path / "c.mp4").write_bytes(b"no video")
    picture, other, video = (tmp_path / name for name in ("a.png", "b.png", "c.mp4"))
    with pytest.raises(InputError, match=r"a\.png is 64x64, b\.png is 80x64"):
        Interpolate((picture, other), tmp_path / "o").run()
    with pytest.raises(InputError, match="give two pictures or one video"):
        Interpolate((picture,), tmp_path / "o").run()
    with pytest.raises(InputError, match="there is no file"):
        Interpolate((tmp_path / "absent.png", picture), tmp_path / "o").run()
    with pytest.raises(InputError, match=r"c\.mp4 cannot be turned"):
        Interpolate((video,), tmp_path / "o.mp4", model="optical-flow").run()
    assert not (tmp_path / "o.mp4").exists()
