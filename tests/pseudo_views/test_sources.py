# SPDX-License-Identifier: Apache-2.0
"""Interpolated pseudo views against the exact picture that their camera would have taken."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from ps4pro_nerfstudio.geometry.cameras import flip_camera_axes
from ps4pro_nerfstudio.interpolation.optical_flow import LinearBlend, OpticalFlowInterpolator
from ps4pro_nerfstudio.interpolation.protocol import Interpolation
from ps4pro_nerfstudio.pseudo_views.pairs import Objection, Pair, PairConfig, Skipped
from ps4pro_nerfstudio.pseudo_views.pseudo_view import PseudoView
from ps4pro_nerfstudio.pseudo_views.sources import (
    InterpolatedSource,
    InterpolatedSourceConfig,
    PseudoViewSet,
    SourceViews,
    make_pseudo_views,
)
from tests.pseudo_views.conftest import arc, capture, wall_points

Render = Callable[[NDArray], NDArray[np.uint8]]


def made(views: SourceViews, **options: object) -> PseudoViewSet:
    config = InterpolatedSourceConfig(**options)  # pyright: ignore
    return make_pseudo_views(views, OpticalFlowInterpolator(), config)


def error_against_truth(view: PseudoView, render: Render) -> NDArray[np.float64]:
    """Mean absolute difference [H, W] in [0, 1] to the exact picture of the same camera."""
    assert view.image is not None
    truth = render(flip_camera_axes(view.camera_to_world))
    return np.abs(view.image.astype(float) - truth).mean(axis=-1) / 255.0


@pytest.fixture(scope="module")
def result(three_views: SourceViews) -> PseudoViewSet:
    return made(three_views)


def test_one_view_per_gap_with_its_provenance(result: PseudoViewSet) -> None:
    assert [view.provenance.source_names for view in result.views] == [
        ("frame_0.png", "frame_1.png"),
        ("frame_1.png", "frame_2.png"),
    ]
    for view in result.views:
        assert view.provenance.depth_source == "points"
        assert view.provenance.t == 0.5
        assert view.provenance.interpolator == "optical-flow"
        assert 0.5 < view.provenance.mean_confidence <= view.provenance.agreeing_share + 0.2
        assert view.confidence.mean() / 255 == pytest.approx(
            view.provenance.mean_confidence, abs=2e-3
        )


def test_confident_pixels_show_the_truth(result: PseudoViewSet, render: Render) -> None:
    for view in result.views:
        error = error_against_truth(view, render)
        assert np.sqrt(np.mean(error[view.confidence > 128] ** 2)) < 10 ** (-30 / 20)


def test_error_falls_with_confidence(three_views: SourceViews, render: Render) -> None:
    """Over 20 degrees the board hides much of the wall: ghosts, and they must not be trusted."""
    ends = select(three_views, [0, 2])
    (view,) = made(ends).views
    error = error_against_truth(view, render)
    levels = [(0, 128), (128, 230), (230, 256)]
    means = [error[(view.confidence >= a) & (view.confidence < b)].mean() for a, b in levels]
    assert means[0] > means[1] > means[2]
    assert means[2] < 0.01
    assert error[view.confidence > 0].mean() < 0.2 * error[view.confidence == 0].mean()


def test_alignment_makes_the_camera_of_the_frame_right(
    three_views: SourceViews, render: Render
) -> None:
    """The same flow without alignment shows the scene from elsewhere."""
    ends = select(three_views, [0, 2])
    (view,) = made(ends).views
    frames = [torch.from_numpy(image / np.float32(255)).permute(2, 0, 1) for image in ends.images]
    raw = OpticalFlowInterpolator()(frames[0][None], frames[1][None], 0.5).image[0]
    naive = replace(view, image=(raw.permute(1, 2, 0) * 255).round().byte().numpy())
    inner = (slice(20, -20), slice(20, -20))
    aligned_error = error_against_truth(view, render)[inner].mean()
    assert aligned_error < 0.5 * error_against_truth(naive, render)[inner].mean()


def test_same_input_gives_the_same_bytes(three_views: SourceViews, result: PseudoViewSet) -> None:
    again = made(three_views)
    for first, second in zip(result.views, again.views, strict=True):
        assert first.image is not None
        assert second.image is not None
        np.testing.assert_array_equal(first.image, second.image)
        np.testing.assert_array_equal(first.confidence, second.confidence)


def test_camera_lies_between_its_sources(three_views: SourceViews) -> None:
    views = made(three_views, frames_per_gap=3).views
    assert [view.provenance.t for view in views] == [0.25, 0.5, 0.75] * 2
    centres = three_views.camera_to_worlds[:, :, 3]
    for view in views[:3]:
        t = view.provenance.t
        expected = (1 - t) * centres[0] + t * centres[1]
        np.testing.assert_allclose(view.camera_to_world[:, 3], expected, atol=1e-6)


def test_a_photograph_of_which_nothing_is_valid_is_not_judged(three_views: SourceViews) -> None:
    nothing = np.zeros(three_views.images[0].shape[:2], bool)
    views = replace(three_views, valid=[None, nothing, None])
    source = InterpolatedSource(views, OpticalFlowInterpolator(), InterpolatedSourceConfig())
    assert source.leave_one_out(1, Pair(0, 2)) is None


def test_a_small_cut_out_is_judged_by_what_it_shows(three_views: SourceViews) -> None:
    """Photographs of which a window is left, five percent of them without its margin."""
    rows, columns = np.mgrid[:96, :128]
    window = (abs(rows - 50) < 20) & (abs(columns - 64) < 26)
    cut = made(replace(three_views, valid=[window] * 3)).views
    assert len(cut) == 2
    for view in cut:
        assert (view.confidence / 255).mean() < 0.05
        assert 0.5 < view.provenance.mean_confidence <= 1.0
        assert 0.5 < view.provenance.agreeing_share <= 1.0


@pytest.mark.parametrize("frames_per_gap", [1, 2])
def test_invalid_pixels_never_enter(three_views: SourceViews, frames_per_gap: int) -> None:
    """What stands in a frame of 3 pixels and in a hole, both marked invalid, leaves no trace."""
    invalid = np.zeros(three_views.images[0].shape[:2], bool)
    invalid[:3] = invalid[-3:] = invalid[:, :3] = invalid[:, -3:] = invalid[40:60, 20:40] = True
    made_from = []
    for colour in (0, 255):
        images = [
            np.where(invalid[..., None], colour, image).astype(np.uint8)
            for image in three_views.images
        ]
        views = replace(three_views, images=images, valid=[~invalid] * 3)
        made_from.append(made(views, frames_per_gap=frames_per_gap).views)
    assert len(made_from[0]) == 2 * frames_per_gap
    for black, white in zip(*made_from, strict=True):
        assert black.image is not None
        assert white.image is not None
        both = (black.confidence > 0) & (white.confidence > 0)
        assert 0.4 < both.mean() < 0.8
        assert not both[45:55, 25:35].any()
        difference = np.abs(black.image.astype(int) - white.image)[both]
        # A flow may end elsewhere when what lies far from it changes; hardly any does.
        assert np.percentile(difference, 99.9) < 24
        assert difference.mean() < 0.2


def test_photographs_are_reduced_to_the_long_side(three_views: SourceViews) -> None:
    full, small = made(three_views), made(three_views, max_long_side=64)
    for large, view in zip(full.views, small.views, strict=True):
        assert (view.width, view.height) == (64, 48)
        assert view.fx == pytest.approx(large.fx / 2)
        assert view.cx == pytest.approx(large.cx / 2)
        assert view.image is not None
        assert large.image is not None
        halved = large.image.reshape(48, 2, 64, 2, 3).mean(axis=(1, 3))
        both = (view.confidence > 128) & (large.confidence[::2, ::2] > 128)
        assert np.abs(halved - view.image)[both].mean() < 6.0


def test_time_is_interpolated(three_views: SourceViews) -> None:
    views = made(replace(three_views, times=[0.0, 0.5, 1.0])).views
    assert [view.time for view in views] == [0.25, 0.75]


def test_refused_neighbours_are_named_by_reason(three_views: SourceViews) -> None:
    result = made(three_views, pairs=PairConfig(max_rotation_degrees=5.0))
    assert result.views == []
    assert result.describe(three_views.names) == (
        "no pseudo views, training uses the photographs only; gaps left out: rotation too large, "
        "10 degrees > 5 (frame_0.png - frame_1.png, frame_1.png - frame_2.png)"
    )


def skips(reason: str, *details: str) -> list[Skipped]:
    return [Skipped(i, i + 1, Objection(reason, detail)) for i, detail in enumerate(details)]


def test_the_line_gives_the_range_of_the_figures_and_their_limit() -> None:
    """So that a user knows which value to set; frames of one gap are named once."""
    skipped = [
        *skips("rotation too large", "62 degrees > 45", "47.3 degrees > 45", "50 degrees > 45"),
        *skips("taken from one place", ""),
        *skips("too little overlap", "9% < 15%") * 2,
    ]
    assert PseudoViewSet([], skipped).describe(["a", "b", "c", "d"]) == (
        "no pseudo views, training uses the photographs only; gaps left out: rotation too large, "
        "47.3 to 62 degrees > 45 (a - b, b - c, c - d); too little overlap, 9% < 15% (a - b); "
        "taken from one place (a - b)"
    )


def test_a_photograph_without_a_neighbour_is_named(three_views: SourceViews) -> None:
    result = made(three_views)
    assert "neighbour" not in result.describe(three_views.names)
    only_first = replace(result, views=result.views[:1])
    assert only_first.describe(three_views.names).endswith(
        "; without a usable neighbour: frame_2.png"
    )


def test_fisheye_views_get_none(three_views: SourceViews) -> None:
    result = made(replace(three_views, is_pinhole=[False, False, False]))
    assert result.views == []
    assert {skip.objection.reason for skip in result.skipped} == {"not a pinhole camera"}


def test_unrelated_photographs_are_refused(three_views: SourceViews) -> None:
    images = list(three_views.images)
    images[2] = np.random.default_rng(0).integers(0, 256, images[2].shape, dtype=np.uint8)
    result = made(replace(three_views, images=images))
    assert len(result.views) == 1
    assert [skip.objection.reason for skip in result.skipped] == ["sources do not match"]


def test_exposure_jump_is_refused(three_views: SourceViews) -> None:
    images = list(three_views.images)
    images[2] = (images[2] * 0.6).astype(np.uint8)
    result = made(replace(three_views, images=images))
    assert [skip.objection.reason for skip in result.skipped] == ["exposure changes"]


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_photographs_make_nothing(three_views: SourceViews, count: int) -> None:
    assert made(select(three_views, list(range(count)))).views == []


def test_progress_counts_the_pairs(three_views: SourceViews) -> None:
    calls: list[tuple[int, int]] = []
    make_pseudo_views(
        three_views, LinearBlend(), progress=lambda done, total: calls.append((done, total))
    )
    assert calls == [(1, 2), (2, 2)]


def test_any_interpolator_fits_in(three_views: SourceViews) -> None:
    """A learned network comes as an object with a name, an identity and a call."""

    class Grey:
        name = "grey"
        identity = "grey/1"
        judges_itself = True

        def __call__(self, frame0: torch.Tensor, frame1: torch.Tensor, t: float) -> Interpolation:
            assert frame0.shape == (1, 3, 96, 128)
            zero = torch.zeros_like(frame0[:, :2])
            one = torch.ones_like(frame0[:, :1])
            doubtful = 0.6 * one
            return Interpolation(torch.full_like(frame0, 0.5), zero, zero, one * (1 - t), doubtful)

    result = make_pseudo_views(three_views, Grey())
    whole = make_pseudo_views(three_views, Grey(), InterpolatedSourceConfig(own_confidence=False))
    for doubted, view in zip(result.views, whole.views, strict=True):
        kept = (doubted.confidence > 0) & (view.confidence > 0)
        assert kept.any()
        ratio = doubted.confidence[kept].astype(float) / view.confidence[kept]
        np.testing.assert_allclose(ratio, 0.6, atol=0.03)
    assert [view.provenance.interpolator for view in result.views] == ["grey", "grey"]
    # The picture is what the photographs show, whatever the interpolator painted.
    doubted, trusted = result.views[0].image, whole.views[0].image
    assert doubted is not None
    assert trusted is not None
    np.testing.assert_array_equal(doubted, trusted)
    assert doubted.std() > 10


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("names", ["a"], "names has 1 entries for 3 images"),
        ("valid", [None, None, np.ones((4, 4), bool)], r"valid of frame_2.png is \(4, 4\)"),
        ("points", np.zeros((4, 2)), r"points must be \[P, 3\], got \(4, 2\)"),
        ("intrinsics", np.zeros((3, 2, 3)), r"intrinsics must be \[3, 3, 3\]"),
        ("images", [np.zeros((4, 4), np.uint8)] * 3, r"uint8 \[H, W, 3\], got uint8 \(4, 4\)"),
    ],
)
def test_wrong_input_is_refused_by_name(
    three_views: SourceViews, field: str, value: object, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        replace(three_views, **{field: value})


@pytest.mark.parametrize("options", [{"frames_per_gap": 0}, {"max_long_side": 8}])
def test_impossible_options_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        InterpolatedSourceConfig(**options)  # pyright: ignore


def select(views: SourceViews, indices: list[int]) -> SourceViews:
    """A part of a capture."""
    return replace(
        views,
        images=[views.images[index] for index in indices],
        camera_to_worlds=views.camera_to_worlds[indices],
        intrinsics=views.intrinsics[indices],
        names=[views.names[index] for index in indices],
    )


def test_a_second_pass_finds_the_depth_more_precisely(three_views: SourceViews) -> None:
    """Over 20 degrees: aligned through what the first pass found, less is left to be found."""
    ends = select(three_views, [0, 2])
    once, twice = (made(ends, passes=passes).views[0] for passes in (1, 2))
    assert twice.provenance.agreeing_share > 0.98 * once.provenance.agreeing_share
    errors = []
    for view in (once, twice):
        assert view.depth is not None
        depth = view.depth[view.depth > 0]
        errors.append(float(np.median(np.minimum(np.abs(depth - 4.0), np.abs(depth - 3.0)))))
    assert errors[1] < errors[0]


def test_photographs_of_one_shape_and_two_sizes_are_joined(three_views: SourceViews) -> None:
    """The second photograph at half size: the frame has the size of the first."""
    import cv2

    small = cv2.resize(three_views.images[1], (64, 48), interpolation=cv2.INTER_AREA)
    intrinsics = three_views.intrinsics.copy()
    intrinsics[1, :2] /= 2
    mixed = replace(
        three_views,
        images=[three_views.images[0], small, three_views.images[2]],
        intrinsics=intrinsics,
    )
    same, first = made(three_views).views[0], made(mixed).views[0]
    assert (first.width, first.height, first.fx) == (128, 96, 120.0)
    assert first.provenance.agreeing_share > 0.7 * same.provenance.agreeing_share


def test_an_exposure_jump_is_evened_out(three_views: SourceViews, render: Render) -> None:
    """The second photograph a quarter darker: the frame lies between, and is trusted as before."""
    images = list(three_views.images)
    images[1] = np.rint(images[1] * 0.75).astype(np.uint8)
    plain, jump = made(three_views).views[0], made(replace(three_views, images=images)).views[0]
    both = (plain.confidence > 128) & (jump.confidence > 128)
    assert both.sum() > 0.9 * (plain.confidence > 128).sum()
    assert plain.image is not None
    assert jump.image is not None
    ratio = jump.image[both].astype(float).mean() / plain.image[both].mean()
    assert ratio == pytest.approx(np.sqrt(0.75), abs=0.01)


def test_a_photograph_predicted_from_its_neighbours_is_itself(three_views: SourceViews) -> None:
    source = InterpolatedSource(three_views, OpticalFlowInterpolator(), InterpolatedSourceConfig())
    psnr = source.leave_one_out(1, Pair(0, 2))
    assert psnr is not None
    assert psnr > 28


def test_a_wrong_pose_among_good_ones_is_named(render: Render) -> None:
    """The third of five cameras is said to stand a third of the way to its neighbour: its frames
    match nobody, and its neighbours predict another picture there."""
    poses = arc(5, 20.0)
    views = capture(poses, wall_points())
    wrong = poses.copy()
    wrong[2, :3, 3] += 0.25 * np.array([0.0, 1.0, 0.0])
    views = replace(views, camera_to_worlds=flip_camera_axes(wrong)[:, :3])
    result = made(views)
    sources = {name for view in result.views for name in view.provenance.source_names}
    assert "frame_2.png" not in sources
    assert {"frame_0.png", "frame_1.png", "frame_3.png", "frame_4.png"} == sources
    (odd,) = [skip for skip in result.skipped if "differs" in skip.objection.reason]
    assert (odd.a, odd.b) == (2, 2)
    line = result.describe(views.names)
    assert re.search(
        r"differs from what its neighbours show, [\d.]+ dB < 18: "
        r"it still trains, look at its pose \(frame_2.png\)$",
        line,
    )


def test_a_moving_object_is_not_trusted(three_views: SourceViews) -> None:
    """A sticker that climbs by 8 px between two photographs, across the epipolar lines."""
    import cv2

    noise = np.random.default_rng(5).uniform(0, 255, (24, 24, 3)).astype(np.float32)
    sticker = np.clip(cv2.GaussianBlur(noise, (0, 0), 1.5) * 3 - 255, 0, 255).astype(np.uint8)
    images = [image.copy() for image in three_views.images]
    for image, row in zip(images, (44, 36, 28), strict=True):
        image[row : row + 24, 52:76] = sticker
    still, moving = made(three_views), made(replace(three_views, images=images))
    where = np.s_[44:60, 56:72]
    for calm, view in zip(still.views, moving.views, strict=True):
        assert (calm.confidence[where] > 128).mean() > 0.8
        assert (view.confidence[where] > 128).mean() < 0.1


def test_portrait_and_landscape_in_one_capture(three_views: SourceViews) -> None:
    """The turned photograph gets no frame, the others theirs; the line says why."""
    images, intrinsics = list(three_views.images), three_views.intrinsics.copy()
    images[2] = np.ascontiguousarray(np.rot90(images[2]))
    intrinsics[2, 0, 2], intrinsics[2, 1, 2] = intrinsics[2, 1, 2], intrinsics[2, 0, 2]
    result = made(replace(three_views, images=images, intrinsics=intrinsics))
    assert [view.provenance.source_names for view in result.views] == [
        ("frame_0.png", "frame_1.png")
    ]
    line = result.describe(three_views.names)
    assert (
        "different image shapes, width / height 0.75 and 1.33 (frame_1.png - frame_2.png)" in line
    )
