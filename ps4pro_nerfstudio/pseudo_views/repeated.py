# SPDX-License-Identifier: Apache-2.0
"""Photographs once more, in the place of pseudo views: a control for what repetition alone does."""

from __future__ import annotations

import numpy as np

from ps4pro_nerfstudio.pseudo_views.pseudo_view import Provenance, PseudoView
from ps4pro_nerfstudio.pseudo_views.sources import SourceViews


def repeat_photographs(views: SourceViews) -> list[PseudoView]:
    """Each training view as a pseudo view that is trusted wherever the photograph is valid."""
    repeated = []
    for index, image in enumerate(views.images):
        valid = None if views.valid is None else views.valid[index]
        confidence = np.full(image.shape[:2], 255, np.uint8)
        if valid is not None:
            confidence[~valid] = 0
        fx, fy = views.intrinsics[index, 0, 0], views.intrinsics[index, 1, 1]
        repeated.append(
            PseudoView(
                camera_to_world=np.asarray(views.camera_to_worlds[index][:3], np.float32),
                fx=float(fx),
                fy=float(fy),
                cx=float(views.intrinsics[index, 0, 2]),
                cy=float(views.intrinsics[index, 1, 2]),
                width=image.shape[1],
                height=image.shape[0],
                time=None if views.times is None else float(views.times[index]),
                image=image,
                confidence=confidence,
                provenance=Provenance(
                    source_names=(views.names[index],),
                    t=0.0,
                    pose_source="photograph",
                    depth_source="none",
                    plane_depth=float("inf"),
                    interpolator="none",
                    mean_confidence=float(confidence.mean() / 255.0),
                    agreeing_share=1.0,
                ),
            )
        )
    return repeated
