# SPDX-License-Identifier: Apache-2.0
"""Points on the rays of a frame: exact flows give exact depth, wrong ones are noticed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from ps4pro_nerfstudio.geometry.cameras import flip_camera_axes, pixel_centres, project
from ps4pro_nerfstudio.geometry.planes import apply_homography
from ps4pro_nerfstudio.interpolation.protocol import Interpolation
from ps4pro_nerfstudio.pseudo_views.alignment import (
    Photograph,
    PlaneAligned,
    TargetCamera,
    align,
    align_to_surface,
    sample_photograph,
    unproject,
)
from ps4pro_nerfstudio.pseudo_views.correspondence import Correspondence, correspond, surface
from ps4pro_nerfstudio.pseudo_views.sources import SourceViews

WALL_DEPTH = 4.0


@pytest.fixture(scope="module")
def photographs(three_views: SourceViews) -> list[Photograph]:
    poses = flip_camera_axes(three_views.camera_to_worlds)
    return [
        Photograph(image, np.ones(image.shape[:2], bool), pose, matrix)
        for image, pose, matrix in zip(
            three_views.images, poses, three_views.intrinsics, strict=True
        )
    ]


def to_the_wall(photographs: list[Photograph], plane: float) -> tuple[TargetCamera, NDArray]:
    """The middle camera and the points [H, W, 3] of the wall that its pixels see."""
    middle = photographs[1]
    target = TargetCamera(middle.camera_to_world, middle.intrinsics, middle.size)
    centres = pixel_centres(middle.size[1], middle.size[0])
    one = unproject(centres, np.ones(centres.shape[:2]), target)
    origin = target.camera_to_world[:3, 3]
    along = (WALL_DEPTH - origin[2]) / (one - origin)[..., 2]
    return target, origin + along[..., None] * (one - origin)


def flows_to(
    points: NDArray, photographs: list[Photograph], aligned: tuple[PlaneAligned, PlaneAligned]
) -> list[torch.Tensor]:
    """What an interpolator would answer that knows the scene [1, 2, H, W]."""
    flows = []
    centres = pixel_centres(*points.shape[:2])
    for photograph, view in zip((photographs[0], photographs[2]), aligned, strict=True):
        pixels, _ = project(points, photograph.camera_to_world, photograph.intrinsics)
        position = apply_homography(np.linalg.inv(view.to_source), pixels)
        flows.append(torch.from_numpy(position - centres).permute(2, 0, 1)[None].float())
    return flows


def found(photographs: list[Photograph], shift: tuple[float, float] = (0.0, 0.0)) -> Correspondence:
    """The correspondence of true flows to the wall, the first shifted by some pixels."""
    target, points = to_the_wall(photographs, 3.0)
    aligned = (align(photographs[0], target, 3.0), align(photographs[2], target, 3.0))
    flow_a, flow_b = flows_to(points, photographs, aligned)
    flow_a = flow_a + torch.tensor(shift)[None, :, None, None]
    one = torch.ones(1, 1, *points.shape[:2])
    interpolation = Interpolation(torch.zeros(1, 3, *points.shape[:2]), flow_a, flow_b, one, one)
    return correspond((photographs[0], photographs[2]), aligned, target, interpolation)


def test_true_flows_give_the_true_depth_and_nothing_is_moved(
    photographs: list[Photograph],
) -> None:
    """Whatever plane the photographs were aligned through."""
    result = found(photographs)
    target, points = to_the_wall(photographs, 3.0)
    _, depth = project(points, target.camera_to_world, target.intrinsics)
    inside = result.in_bounds
    assert inside.mean() > 0.5
    np.testing.assert_allclose(result.depth[inside], depth[inside], rtol=1e-3)
    assert result.moved_px[inside].max() < 0.02
    # Two cameras 20 degrees apart on a circle of radius 3.7 stand 1.285 apart and 3.944 before the
    # wall: 2 atan(.6425 / 3.944).
    assert result.angle[48, 64] == pytest.approx(0.323, abs=1e-3)


def test_an_error_across_the_epipolar_lines_is_noticed_in_full(
    photographs: list[Photograph],
) -> None:
    """The cameras move sideways, the lines are nearly level: 2 px down cannot be a depth.

    The best depth stays, and the two positions share the error: it is all in the photograph that
    was shifted.
    """
    result = found(photographs, shift=(0.0, 2.0))
    middle = np.s_[30:66, 40:88]
    assert result.moved_px[middle].mean() == pytest.approx(2.0, abs=0.3)


def test_an_error_along_them_is_taken_for_depth_and_noticed_in_part(
    photographs: list[Photograph],
) -> None:
    """The frame's camera lies between: an error of 2 px in one photograph would need the other to
    move as far the other way, so the depth takes half of it and sqrt(1^2 + 1^2) px are left."""
    result = found(photographs, shift=(2.0, 0.0))
    middle = np.s_[30:66, 40:88]
    assert result.moved_px[middle].mean() == pytest.approx(np.sqrt(2.0), abs=0.2)


def test_the_wall_looks_the_same_from_both_photographs(photographs: list[Photograph]) -> None:
    result = found(photographs)
    left_of_the_board = np.s_[10:86, 14:24]
    difference = np.abs(result.colors[0] - result.colors[1])[left_of_the_board]
    assert difference.mean() < 0.01


def test_what_a_mask_hides_is_out_of_bounds(photographs: list[Photograph]) -> None:
    hidden = photographs[0].valid.copy()
    hidden[:, :64] = False
    masked = Photograph(
        photographs[0].image, hidden, photographs[0].camera_to_world, photographs[0].intrinsics
    )
    whole, half = found(photographs), found([masked, *photographs[1:]])
    assert 0.3 < half.in_bounds.sum() / whole.in_bounds.sum() < 0.7
    assert not (half.in_bounds & ~whole.in_bounds).any()


def test_sampling_at_pixel_centres_gives_the_photograph(photographs: list[Photograph]) -> None:
    image = photographs[0].image
    sampled = sample_photograph(image, pixel_centres(*image.shape[:2]))
    np.testing.assert_allclose(sampled, image / 255.0, atol=1e-6)


def test_through_the_true_surface_both_photographs_show_the_target(
    photographs: list[Photograph],
) -> None:
    """Nothing is left to be moved where the depth is right, here on the wall."""
    target, points = to_the_wall(photographs, 3.0)
    _, depth = project(points, target.camera_to_world, target.intrinsics)
    aligned = [align_to_surface(photographs[index], target, depth) for index in (0, 2)]
    left_of_the_board = np.s_[10:86, 14:24]
    truth = photographs[1].image[left_of_the_board] / 255.0
    for view in aligned:
        assert np.abs(view.image[left_of_the_board] - truth).mean() < 0.01
        places, _ = project(points, photographs[0].camera_to_world, photographs[0].intrinsics)
    centres = pixel_centres(96, 128)
    between = 0.5 * (centres[:-1, :-1] + centres[1:, 1:])
    expected = 0.25 * (places[:-1, :-1] + places[:-1, 1:] + places[1:, :-1] + places[1:, 1:])
    inside = np.isfinite(expected).all(axis=-1)
    np.testing.assert_allclose(aligned[0].source_of(between)[inside], expected[inside], atol=2e-3)


def test_a_surface_fills_the_gaps_between_trusted_pixels(photographs: list[Photograph]) -> None:
    result = found(photographs)
    trusted = np.zeros(result.depth.shape)
    trusted[::7, ::5] = 1.0
    filled = surface(result, trusted)
    assert filled is not None
    target, points = to_the_wall(photographs, 3.0)
    _, depth = project(points, target.camera_to_world, target.intrinsics)
    np.testing.assert_allclose(filled[10:-10, 10:-10], depth[10:-10, 10:-10], rtol=0.02)
    assert surface(result, np.zeros_like(trusted)) is None
