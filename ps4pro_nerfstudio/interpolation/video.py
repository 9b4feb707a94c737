# SPDX-License-Identifier: Apache-2.0
"""`ps4pro interpolate`: frames between two pictures, or a video with more frames per second.

A video keeps its length: with n times the frames, each original frame is followed by n - 1 new ones
on the way to the next, and the last one is repeated. Time stamps are interpolated as well, so that
a variable frame rate stays what it was, and sound is copied as it is. Nothing is interpolated
across a cut: the frame before it is repeated.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import tyro
from numpy.typing import NDArray

from ps4pro_nerfstudio.interpolation.optical_flow import OpticalFlowInterpolator
from ps4pro_nerfstudio.interpolation.protocol import FrameInterpolator
from ps4pro_nerfstudio.messages import InputError, say

PICTURE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"}
_CUT_DIFFERENCE = 0.16
"""Mean absolute difference, in [0, 1], of neighbours of which at least one follows a cut."""
_STATIC_DIFFERENCE = 0.006


@dataclass
class Interpolate:
    """Make frames between two pictures, or a video with more frames per second."""

    inputs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Two pictures of one size, or one video."""
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("interpolated")
    """Folder for the pictures, or the video file to write (.mp4)."""
    count: int = 1
    """Pictures: how many frames between the two, equally spaced."""
    times: int = 2
    """Video: how many times as many frames as before."""
    model: str = "ps4pro-small"
    """Weights: a shipped name, a .safetensors file, or `optical-flow` for none."""
    device: str = "cpu"
    """Device that the network runs on."""

    def run(self) -> None:
        """Do it."""
        videos = [p for p in self.inputs if p.suffix.lower() not in PICTURE_SUFFIXES]
        for path in self.inputs:
            if not path.is_file():
                raise InputError(f"there is no file {path}")
        if len(self.inputs) == 2 and not videos:
            self._between_pictures(*self.inputs)
        elif len(self.inputs) == 1 and len(videos) == 1:
            self._video(self.inputs[0])
        else:
            raise InputError(
                "give two pictures or one video; "
                f"got {', '.join(path.name for path in self.inputs) or 'nothing'}"
            )

    def _between_pictures(self, first: Path, last: Path) -> None:
        import cv2

        if self.count < 1:
            raise InputError(f"--count must be at least 1, got {self.count}")
        images = []
        for path in (first, last):
            image = cv2.imread(str(path), cv2.IMREAD_COLOR)
            if image is None:
                raise InputError(f"{path} cannot be read as a picture")
            images.append(np.ascontiguousarray(image[..., ::-1], np.uint8))
        if images[0].shape != images[1].shape:
            raise InputError(
                f"the pictures differ in size: {first.name} is {_size(images[0])}, "
                f"{last.name} is {_size(images[1])}"
            )
        interpolator = load_interpolator(self.model, self.device)
        self.output.mkdir(parents=True, exist_ok=True)
        for index in range(1, self.count + 1):
            t = index / (self.count + 1)
            image = between(interpolator, images[0], images[1], t, self.device)
            path = self.output / f"{first.stem}_{last.stem}_{index:03d}.png"
            cv2.imwrite(str(path), np.ascontiguousarray(image[..., ::-1], np.uint8))
        say(f"{self.count} frames written to {self.output}")

    def _video(self, path: Path) -> None:
        if self.times < 2:
            raise InputError(f"--times must be at least 2, got {self.times}")
        if not self.output.suffix:
            raise InputError(f"name the video to write, e.g. -o {path.stem}-x{self.times}.mp4")
        interpolator = load_interpolator(self.model, self.device)
        num_frames, rate = interpolate_video(
            path, self.output, interpolator, self.times, self.device
        )
        say(f"{num_frames} frames at {float(rate):.2f} per second written to {self.output}")


def load_interpolator(model: str, device: str = "cpu") -> FrameInterpolator:
    """The interpolator of a name: `optical-flow`, shipped weights, or a .safetensors file."""
    if model == OpticalFlowInterpolator.name:
        return OpticalFlowInterpolator()
    from ps4pro_nerfstudio.interpolation.network import PS4PRO

    return PS4PRO.from_pretrained(model).to(device)


def between(
    interpolator: FrameInterpolator,
    frame0: NDArray[np.uint8],
    frame1: NDArray[np.uint8],
    t: float,
    device: str = "cpu",
) -> NDArray[np.uint8]:
    """The frame at t between two frames [H, W, 3]."""
    tensors = [
        torch.from_numpy(frame.astype(np.float32) / 255.0).permute(2, 0, 1)[None].to(device)
        for frame in (frame0, frame1)
    ]
    with torch.inference_mode():
        image = interpolator(tensors[0], tensors[1], t).image[0]
    rounded = (image.float().permute(1, 2, 0) * 255.0).round().clamp(0, 255)
    return rounded.to(torch.uint8).cpu().numpy()


def interpolate_video(
    source: Path, target: Path, interpolator: FrameInterpolator, times: int, device: str = "cpu"
) -> tuple[int, Fraction]:
    """Write a video with `times` as many frames; returns their number and their rate.

    Raises:
        InputError: when the file is no video that can be read, or the result cannot be encoded.
    """
    import av
    from rich.progress import Progress

    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_name(f".{target.name}.part{target.suffix}")
    count = 0
    try:
        with av.open(str(source)) as reading, av.open(str(draft), "w") as writing:
            if not reading.streams.video:
                raise InputError(f"{source} has no video")
            stream = reading.streams.video[0]
            rate = Fraction(stream.average_rate or 30) * times
            time_base = Fraction(stream.time_base or 1 / Fraction(stream.average_rate or 30))
            output: Any = writing.add_stream("libx264", rate=rate)
            output.options = {"crf": "16"}
            output.time_base = output.codec_context.time_base = time_base / times
            sounds = {
                sound.index: writing.add_stream_from_template(sound)
                for sound in reading.streams.audio
            }
            # Filled by the first frame: containers may be wrong about the size.
            output.width = 0
            with Progress(transient=True) as progress:
                task = progress.add_task(source.name, total=stream.frames or None)
                previous: Any = None
                for packet in reading.demux():
                    if packet.stream.index in sounds:
                        if packet.dts is not None:
                            packet.stream = sounds[packet.stream.index]
                            writing.mux(packet)
                        continue
                    if packet.stream is not stream:
                        continue
                    for decoded in packet.decode():
                        image = decoded.to_ndarray(format="rgb24")
                        if previous is None:
                            start = decoded.pts or 0
                            output.width = image.shape[1] // 2 * 2
                            output.height = image.shape[0] // 2 * 2
                            output.pix_fmt = "yuv420p"
                        else:
                            frames = _way(interpolator, previous[0], image, times, device)
                            gap = decoded.pts - previous[1]
                            for k, frame in enumerate(frames):
                                _write(
                                    writing,
                                    output,
                                    frame,
                                    (previous[1] - start) * times + k * gap,
                                )
                                count += 1
                        step = decoded.pts - previous[1] if previous is not None else 0
                        previous = (image, decoded.pts, step)
                        progress.advance(task)
                if previous is None:
                    raise InputError(f"{source} has no frame that can be decoded")
                for k in range(times):
                    _write(
                        writing,
                        output,
                        previous[0],
                        (previous[1] - start) * times + k * max(previous[2], 1),
                    )
                    count += 1
                writing.mux(output.encode(None))
    except av.FFmpegError as error:  # pyright: ignore[reportPrivateImportUsage]
        draft.unlink(missing_ok=True)
        raise InputError(f"{source} cannot be turned into {target.name}: {error}") from error
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    draft.replace(target)
    return count, rate


def _way(
    interpolator: FrameInterpolator,
    frame0: NDArray[np.uint8],
    frame1: NDArray[np.uint8],
    times: int,
    device: str,
) -> Iterator[NDArray[np.uint8]]:
    """The first frame and those on the way to the second."""
    yield frame0
    jump = is_cut(frame0, frame1) or frame0.shape != frame1.shape
    still = not jump and np.array_equal(frame0, frame1)
    for k in range(1, times):
        if jump or still:
            yield frame0
        else:
            yield between(interpolator, frame0, frame1, k / times, device)


def _write(container: Any, stream: Any, image: NDArray[np.uint8], pts: int) -> None:
    import av

    even = np.ascontiguousarray(image[: stream.height, : stream.width])
    frame = av.VideoFrame.from_ndarray(even, format="rgb24")
    frame.pts = pts
    frame.time_base = stream.codec_context.time_base
    container.mux(stream.encode(frame))


def is_static(frame0: NDArray[np.uint8], frame1: NDArray[np.uint8]) -> bool:
    """Whether two frames [H, W, 3] show the same picture."""
    return _difference(frame0, frame1) < _STATIC_DIFFERENCE


def is_cut(frame0: NDArray[np.uint8], frame1: NDArray[np.uint8]) -> bool:
    """Whether two neighbouring frames [H, W, 3] belong to different shots.

    They do when hardly a pixel stays what it was, or when many change and the share of each
    brightness does too.
    """
    if frame0.shape != frame1.shape:
        return True
    histograms = [np.histogram(f, bins=32, range=(0, 256))[0] / f.size for f in (frame0, frame1)]
    moved_share = 0.5 * float(np.abs(histograms[0] - histograms[1]).sum())
    difference = _difference(frame0, frame1)
    return difference > 2 * _CUT_DIFFERENCE or (difference > _CUT_DIFFERENCE and moved_share > 0.25)


def _difference(frame0: NDArray[np.uint8], frame1: NDArray[np.uint8]) -> float:
    small = [frame[::4, ::4].astype(np.float32) for frame in (frame0, frame1)]
    return float(np.abs(small[0] - small[1]).mean() / 255.0)


def _size(image: NDArray[np.uint8]) -> str:
    return f"{image.shape[1]}x{image.shape[0]}"
