# SPDX-License-Identifier: Apache-2.0
"""A view that no camera took: a camera, a time, an image, a confidence and where it came from.

Cameras are nerfstudio's: `camera_to_world` [3, 4] with OpenGL axes (x right, y up, z back),
intrinsics in pixels with the centre of pixel (column x, row y) at (x + .5, y + .5). Images are
uint8 RGB [H, W, 3], confidences uint8 [H, W] with 255 for 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from nerfstudio.cameras.cameras import Cameras


@dataclass(frozen=True)
class Provenance:
    """Where a pseudo view came from and how good its sources thought it was."""

    source_names: tuple[str, ...]
    """File names of the training photographs, in the order of t."""
    t: float
    """Place between the sources, 0 at the first and 1 at the last."""
    pose_source: str
    """How the camera was chosen, e.g. "slerp+lerp"."""
    depth_source: str
    """What gave the depth of the alignment plane: "points", "matches" or "optical axes"."""
    plane_depth: float
    """Distance of the alignment plane from the camera, in units of the poses."""
    interpolator: str
    """Name of the interpolator."""
    mean_confidence: float
    """Mean over as many pixels as the photographs have without what masks and transparency leave
    out, in [0, 1]."""
    agreeing_share: float
    """Share of as many pixels whose sources agree, in colour and in where they lie."""
    moved_px: float = float("nan")
    """Median distance by which positions of agreeing pixels had to be moved to be those of one
    point; NaN where that is not asked."""


@dataclass(frozen=True)
class PseudoView:
    """A camera with an image that may supervise it where the confidence is above zero."""

    camera_to_world: NDArray[np.float32]
    """[3, 4], OpenGL axes, in the frame of nerfstudio's poses."""
    fx: float
    fy: float
    cx: float
    cy: float
    width: int
    height: int
    time: float | None
    """Normalised time, None for static scenes."""
    image: NDArray[np.uint8] | None
    """[H, W, 3] RGB, or None for views that carry no image (a prior scores the render instead)."""
    confidence: NDArray[np.uint8]
    """[H, W]; 0 = never use: out of bounds, invalid in a source, or not to be trusted."""
    provenance: Provenance
    depth: NDArray[np.float32] | None = None
    """[H, W] along the optical axis in units of the poses, 0 where it is not known well enough to
    be a point of the scene; None for views whose source finds no depth."""

    def __post_init__(self) -> None:
        size = (self.height, self.width)
        if self.camera_to_world.shape != (3, 4):
            raise ValueError(f"camera_to_world must be [3, 4], got {self.camera_to_world.shape}")
        if self.confidence.shape != size or self.confidence.dtype != np.uint8:
            raise ValueError(
                f"confidence must be uint8 {size}, got {self.confidence.dtype} "
                f"{self.confidence.shape}"
            )
        if self.image is not None and (
            self.image.shape != (*size, 3) or self.image.dtype != np.uint8
        ):
            raise ValueError(
                f"image must be uint8 {(*size, 3)}, got {self.image.dtype} {self.image.shape}"
            )

        if self.depth is not None and (self.depth.shape != size or self.depth.dtype != np.float32):
            raise ValueError(
                f"depth must be float32 {size}, got {self.depth.dtype} {self.depth.shape}"
            )

    @property
    def num_bytes(self) -> int:
        """Memory that the pixels take."""
        arrays = (self.confidence, self.image, self.depth)
        return sum(array.nbytes for array in arrays if array is not None)

    def to_cameras(self) -> Cameras:
        """One nerfstudio camera in a batch of one, on the CPU.

        There is no `cam_idx` in its metadata: camera optimisers and appearance embeddings count
        real views only.
        """
        import torch
        from nerfstudio.cameras.cameras import Cameras, CameraType

        return Cameras(
            camera_to_worlds=torch.from_numpy(self.camera_to_world.copy())[None],
            fx=self.fx,
            fy=self.fy,
            cx=self.cx,
            cy=self.cy,
            width=self.width,
            height=self.height,
            camera_type=CameraType.PERSPECTIVE,
            times=None if self.time is None else torch.tensor([[self.time]]),
        )
