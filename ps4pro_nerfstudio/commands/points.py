# SPDX-License-Identifier: Apache-2.0
"""`ps4pro points`: sparse and dense points of a capture as a PLY file for any other tool."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from numpy.typing import NDArray

from ps4pro_nerfstudio.commands.loading import (
    CaptureCommand,
    CaptureFrame,
    SplitOptions,
    read_all,
    read_transforms,
)
from ps4pro_nerfstudio.geometry.cameras import pixel_centres, project
from ps4pro_nerfstudio.messages import InputError, say
from ps4pro_nerfstudio.pseudo_views.consistency import camera_of
from ps4pro_nerfstudio.pseudo_views.correspondence import unproject
from ps4pro_nerfstudio.pseudo_views.pseudo_view import PseudoView


@dataclass(kw_only=True)
class Points(CaptureCommand):
    """Write the points that neighbouring photographs of a capture agree on as a PLY file.

    The points stand in the frame of reference of the capture's own file, so that `ply_file_path` of
    its transforms.json may name them. All photographs are used, unless an option chooses some.
    """

    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("points.ply")
    """The file to write."""
    hold_out: bool = False
    """Use the training views of the split only. Options that choose views say so too."""

    def run(self) -> None:
        """Write the file and say in one line what it holds.

        Raises:
            InputError: a capture that cannot be used, or without points; a file that cannot be
                written.
        """
        if self.output.suffix != ".ply":
            raise InputError(f"{self.output} must end in .ply")
        if self.hold_out or _chooses_views(self.split):
            train = self.split.parser(self.data).setup().get_dataparser_outputs("train")
        else:
            train = read_all(self.split, self.data)
        made = self.interpolate(train)
        if made.num_sparse + made.num_dense == 0:
            raise InputError(f"the photographs of {self.data} do not match anywhere: no points")
        frame = CaptureFrame.of(train, self.data, read_transforms(self.data))
        write_points(self.output, frame.points(made.points.xyz), made.points.rgb)
        error = reprojection_error_px(made.pseudo_views)
        known = "" if error is None else f"; median reprojection between frames {error:.2f} px"
        say(
            f"wrote {self.output}: {len(made.points):,} points, {made.num_dense:,} dense and "
            f"{made.num_sparse:,} sparse{known}"
        )


def write_points(file: Path, xyz: NDArray[np.float32], rgb: NDArray[np.uint8]) -> None:
    """Write points [P, 3] and colours [P, 3] as a binary PLY file, complete or not at all.

    Raises:
        InputError: the file cannot be written.
    """
    import trimesh

    content = trimesh.PointCloud(xyz, rgb).export(file_type="ply")
    assert isinstance(content, bytes)
    temporary: Path | None = None
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.parent)
        os.close(handle)
        temporary = Path(name)
        temporary.write_bytes(content)
        temporary.chmod(0o644)  # mkstemp gives 0600.
        temporary.replace(file)
    except OSError as error:
        raise InputError(f"cannot write {file}: {error.strerror or error}") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def reprojection_error_px(views: Sequence[PseudoView]) -> float | None:
    """Median distance in pixels between two frames' beliefs about the same surface.

    A pixel's point, seen from another frame, falls on a pixel with a depth of its own; that depth's
    point goes back into the first frame. The distance to where it came from is the error. Pixels
    whose two points are hidden from each other (more than 7 % apart in depth) do not count.

    Returns:
        None when no two frames share a surface.
    """
    errors = []
    known = [view for view in views if view.depth is not None and view.depth.any()]
    for one in known:
        assert one.depth is not None
        camera = camera_of(one)
        row, column = np.nonzero(one.depth)
        centres = pixel_centres(*one.depth.shape)[row, column]
        points = unproject(centres, one.depth[row, column], camera)
        for other in known:
            if other is one:
                continue
            assert other.depth is not None
            seen_from = camera_of(other)
            pixels, depth = project(points, seen_from.camera_to_world, seen_from.intrinsics)
            with np.errstate(invalid="ignore"):
                inside = np.all((pixels >= 0.0) & (pixels < seen_from.size), axis=-1)
            x, y = pixels[inside].astype(np.int64).T
            there = other.depth[y, x]
            same = np.abs(there / depth[inside] - 1.0) < _HIDDEN
            back = unproject(pixels[inside][same], there[same], seen_from)
            returned, _ = project(back, camera.camera_to_world, camera.intrinsics)
            errors.append(np.linalg.norm(returned - centres[inside][same], axis=-1))
    found = np.concatenate(errors) if errors else np.zeros(0)
    found = found[np.isfinite(found)]
    return float(np.median(found)) if len(found) else None


_HIDDEN = 0.07
"""Relative difference of depth from which two frames see different surfaces."""


def _chooses_views(options: SplitOptions) -> bool:
    """Whether an option was given that only makes sense when some views do not take part."""
    default = SplitOptions()
    neutral = ("format", "downscale_factor")
    return any(
        getattr(options, one.name) != getattr(default, one.name)
        for one in fields(options)
        if one.name not in neutral
    )
