# SPDX-License-Identifier: Apache-2.0
"""What is added to photographs: which parts are made when, and what they start from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ps4pro_nerfstudio.datamanagers import augmentation
from ps4pro_nerfstudio.datamanagers.augmentation import (
    Augmentation,
    AugmentationConfig,
    Control,
    augment,
    dense_observations,
    make_interpolator,
    sparse_points,
    to_uint8_photo,
)
from ps4pro_nerfstudio.geometry.cameras import flip_camera_axes, project
from ps4pro_nerfstudio.initialization import dense_points
from ps4pro_nerfstudio.initialization.dense_points import PointCloud
from ps4pro_nerfstudio.messages import InputError
from ps4pro_nerfstudio.pseudo_views.schedule import PseudoViewScheduleConfig
from ps4pro_nerfstudio.pseudo_views.sources import SourceViews
from tests.initialization.scenes import BALL_RADIUS, ball_views
from tests.pseudo_views.conftest import arc, capture, wall_points

SPARSE = PointCloud(wall_points(150).astype(np.float32), np.full((150, 3), 9, np.uint8))


@pytest.fixture(scope="module")
def views() -> SourceViews:
    return capture(arc(3, 20.0), wall_points())


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr(augmentation, "say", lines.append)
    return lines


@pytest.fixture
def warned(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr(augmentation, "warn", lines.append)
    return lines


def added(
    views: SourceViews,
    folder: Path,
    control: Control = "none",
    pseudo: bool = True,
    dense: bool = True,
    share: float | None = None,
) -> Augmentation:
    config = AugmentationConfig(cache_dir=folder)
    config.pseudo_views.interpolator = "optical-flow"
    config.pseudo_views.enabled = pseudo
    config.pseudo_views.control = control
    config.pseudo_views.schedule.share = share
    config.dense_points.enabled = dense
    return augment(views, SPARSE, config)


def test_pseudo_views_and_points_come_together(views: SourceViews, tmp_path: Path) -> None:
    result = added(views, tmp_path)
    assert len(result.pseudo_views) == 2
    assert len(result.points) > 10 * len(SPARSE)
    kept = {tuple(point) for point in result.points.xyz}
    assert all(tuple(point) in kept for point in SPARSE.xyz)


def test_each_can_be_had_without_the_other(views: SourceViews, tmp_path: Path) -> None:
    only_points = added(views, tmp_path, pseudo=False)
    assert only_points.pseudo_views == []
    assert len(only_points.points) > 10 * len(SPARSE)
    only_views = added(views, tmp_path, dense=False)
    assert len(only_views.pseudo_views) == 2
    assert only_views.points is SPARSE
    neither = added(views, tmp_path, pseudo=False, dense=False)
    assert neither.pseudo_views == []
    assert neither.points is SPARSE


def test_free_space_and_coarse_points_are_for_few_pinhole_photographs(
    views: SourceViews, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sparse points in a corner alone: the rest is filled, unless the cameras are no pinholes."""
    corner = SPARSE.xyz[SPARSE.xyz[:, 0] < np.median(SPARSE.xyz[:, 0])]
    half = PointCloud(corner, np.full((len(corner), 3), 9, np.uint8))
    config = AugmentationConfig(cache_dir=tmp_path)
    config.seed_points.min_points = 10
    config.pseudo_views.interpolator = "optical-flow"
    config.pseudo_views.source.pairs.max_rotation_degrees = 0.1
    config.stereo.enabled = False
    filled = augment(views, half, config)
    assert len(filled.points) > len(half)
    with monkeypatch.context() as patch:
        patch.setattr(augmentation, "filled_points", None)  # a second run fills nothing
        again = augment(views, half, config)
        np.testing.assert_array_equal(again.points.xyz, filled.points.xyz)
        np.testing.assert_array_equal(again.points.rgb, filled.points.rgb)
        with pytest.raises(TypeError):  # other guesses, another file
            augment(views, half, config, inverse_depths=lambda: [np.ones((96, 128))] * 3)
    assert filled.free_radii is not None
    assert bool((filled.free_radii > 0.0).all())
    fisheye = augment(replace(views, is_pinhole=[False] * 3), half, config)
    assert len(fisheye.points) == len(half)
    assert fisheye.free_radii is None
    config.filled_points.max_views = config.free_space.max_views = 2
    many = augment(views, half, config)
    assert len(many.points) == len(half)
    assert many.free_radii is None


def test_photographs_are_matched_where_no_frame_is_made(views: SourceViews, tmp_path: Path) -> None:
    config = AugmentationConfig(cache_dir=tmp_path)
    config.pseudo_views.interpolator = "optical-flow"
    config.pseudo_views.source.pairs.max_rotation_degrees = 0.1
    config.filled_points.enabled = False
    result = augment(views, SPARSE, config)
    assert result.frames == []
    assert result.num_dense > 1000
    depth = result.points.xyz[:, 2]
    near = np.minimum(np.abs(depth - 4.0), np.abs(depth - 3.0))
    assert np.quantile(near, 0.8) < 0.1
    assert result.stereo is not None
    shares = [0.0 if one is None else float((one.depth > 0).mean()) for one in result.stereo]
    assert min(shares) > 0.2
    assert [path.name for path in (tmp_path / "stereo").iterdir()]
    config.stereo.max_views = 2
    without = augment(views, SPARSE, config)
    assert without.stereo is None
    assert without.num_dense == 0


def test_photographs_of_other_cameras_are_left_out_by_name(
    tmp_path: Path, warned: list[str]
) -> None:
    """Of five the middle one: the other four give what they give without it."""
    five = capture(arc(5, 20.0), wall_points())
    others = [0, 1, 3, 4]
    four = replace(
        five,
        images=[five.images[i] for i in others],
        names=[five.names[i] for i in others],
        camera_to_worlds=five.camera_to_worlds[others],
        intrinsics=five.intrinsics[others],
    )
    config = AugmentationConfig(cache_dir=tmp_path)
    config.pseudo_views.interpolator = "optical-flow"
    config.pseudo_views.source.pairs.max_rotation_degrees = 0.1
    expected = augment(four, SPARSE, config)
    assert warned == []
    result = augment(replace(five, is_pinhole=[i != 2 for i in range(5)]), SPARSE, config)
    (line,) = warned
    assert "frame_2.png" in line
    assert "frame_1.png" not in line
    assert result.stereo is not None
    assert expected.stereo is not None
    assert result.stereo[2] is None
    for place, index in enumerate(others):
        found, alone = result.stereo[index], expected.stereo[place]
        assert found is not None
        assert alone is not None
        np.testing.assert_array_equal(found.depth, alone.depth)
    np.testing.assert_array_equal(result.points.xyz, expected.points.xyz)
    assert result.free_radii is not None
    assert expected.free_radii is not None
    np.testing.assert_array_equal(result.free_radii[others], expected.free_radii)
    assert result.free_radii[2] == 0.0
    assert bool((expected.free_radii > 0.0).all())


def test_a_network_is_asked_for_all_and_used_for_those_that_are_filled(
    views: SourceViews, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[object] = []

    def fill(seen, points, config, inverse_depths):
        given.extend([list(seen.names), inverse_depths])
        return PointCloud(points.xyz[:0], points.rgb[:0])

    monkeypatch.setattr(augmentation, "filled_points", fill)
    config = AugmentationConfig(cache_dir=tmp_path)
    config.pseudo_views.interpolator = "linear-blend"
    config.stereo.enabled = False
    maps = [np.full((96, 128), float(index)) for index in range(3)]
    some = replace(views, is_pinhole=[True, False, True])
    augment(some, SPARSE, config, inverse_depths=lambda: maps)
    names, chosen = given
    assert names == ["frame_0.png", "frame_2.png"]
    assert chosen == [maps[0], maps[2]]


def test_counts_are_those_of_the_points_that_training_starts_from(
    views: SourceViews, tmp_path: Path, said: list[str]
) -> None:
    """As many as sparse, drawn from all: few of them are sparse ones, and the line says so."""
    config = AugmentationConfig(cache_dir=tmp_path)
    config.pseudo_views.interpolator = "optical-flow"
    config.dense_points.as_many_as_sparse = True
    for _ in range(2):  # The second run loads them.
        said.clear()
        result = augment(views, SPARSE, config)
        kept = {tuple(point) for point in SPARSE.xyz}
        num_sparse = sum(tuple(point) in kept for point in result.points.xyz)
        assert len(result.points) == len(SPARSE)
        assert num_sparse < len(SPARSE) / 2
        assert (result.num_sparse, result.num_dense) == (num_sparse, len(SPARSE) - num_sparse)
        (line,) = (line for line in said if line.startswith("starting from"))
        assert f"{num_sparse} sparse ones and {len(SPARSE) - num_sparse} from dense" in line


def test_a_second_run_fuses_nothing_and_starts_from_the_same_points(
    views: SourceViews, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = added(views, tmp_path)
    monkeypatch.setattr(dense_points, "fuse", None)
    again = added(views, tmp_path)
    np.testing.assert_array_equal(again.points.xyz, first.points.xyz)
    np.testing.assert_array_equal(again.points.rgb, first.points.rgb)
    assert (again.num_sparse, again.num_dense) == (first.num_sparse, first.num_dense)


@pytest.mark.parametrize(
    ("share", "none_from", "reason"),
    [(0.0, 40, "their share is 0"), (None, 3, "the capture is dense enough")],
)
def test_why_there_are_no_pseudo_views_is_said_as_it_is(
    views: SourceViews,
    tmp_path: Path,
    said: list[str],
    share: float | None,
    none_from: int,
    reason: str,
) -> None:
    config = AugmentationConfig(cache_dir=tmp_path)
    config.dense_points.enabled = False
    config.pseudo_views.schedule = PseudoViewScheduleConfig(
        share=share, num_views_full=2, num_views_none=none_from
    )
    assert augment(views, SPARSE, config).pseudo_views == []
    (line,) = said
    assert line.endswith(reason)


def test_a_dense_capture_keeps_its_points_only(views: SourceViews, tmp_path: Path) -> None:
    assert added(views, tmp_path, share=0.0).pseudo_views == []


def test_dense_points_lie_on_the_scene(views: SourceViews, tmp_path: Path) -> None:
    """The wall at 4, the board at 3; between them are the pixels of the board's edge."""
    result = added(views, tmp_path)
    depth = result.points.xyz[:, 2]
    near = np.minimum(np.abs(depth - 4.0), np.abs(depth - 3.0))
    assert np.quantile(near, 0.8) < 0.1
    assert (depth < 3.5).any()


def test_observations_project_to_their_pixels(views: SourceViews, tmp_path: Path) -> None:
    frame = added(views, tmp_path).pseudo_views[0]
    (seen,) = dense_observations([frame])
    intrinsics = np.array([[frame.fx, 0, frame.cx], [0, frame.fy, frame.cy], [0, 0, 1]])
    pixels, depth = project(seen.xyz, flip_camera_axes(frame.camera_to_world), intrinsics)
    assert frame.depth is not None
    row, column = np.nonzero(frame.depth)
    np.testing.assert_allclose(pixels, np.stack([column, row], 1) + 0.5, atol=1e-3)
    np.testing.assert_allclose(seen.pixel_size, depth / 120.0, rtol=1e-5)


@pytest.mark.parametrize("name", ["ps4pro", "optical-flow", "linear-blend"])
def test_interpolators_work_where_the_frames_are(name: str) -> None:
    """A network left on the CPU cannot take frames on a GPU; meta stands in for one."""
    interpolator = make_interpolator(name, "meta")
    if isinstance(interpolator, torch.nn.Module):
        places = {parameter.device.type for parameter in interpolator.parameters()}
        assert places == {"meta"}
        assert all(buffer.device.type == "meta" for buffer in interpolator.buffers())


@pytest.mark.parametrize("control", ["naive", "linear-blend", "none"])
def test_photographs_of_two_sizes_are_interpolated(
    views: SourceViews, tmp_path: Path, control: Control
) -> None:
    """The second one is cut by a pixel on each side, as undistortion does it."""
    images = [views.images[0], views.images[1][:-1, :-1], views.images[2]]
    made = added(replace(views, images=images), tmp_path, control)
    assert len(made.pseudo_views) == 2


@pytest.mark.parametrize("control", ["linear-blend", "naive", "unweighted"])
def test_controls_trust_every_pixel_and_bring_no_points(
    views: SourceViews, tmp_path: Path, control: Control
) -> None:
    result = added(views, tmp_path, control)
    assert result.points is SPARSE
    for view in result.pseudo_views:
        assert view.depth is None
        assert set(np.unique(view.confidence)) <= {0, 255}
    whole = [bool((view.confidence == 255).all()) for view in result.pseudo_views]
    assert all(whole) == (control == "naive")


def test_the_naive_control_shows_ghosts_where_ours_does_not(
    views: SourceViews, tmp_path: Path
) -> None:
    ours, blend = added(views, tmp_path), added(views, tmp_path, "linear-blend")
    assert ours.pseudo_views[0].image is not None
    assert blend.pseudo_views[0].image is not None
    sharp, soft = (
        np.abs(np.diff(result.pseudo_views[0].image.astype(float), axis=1)).mean()  # type: ignore
        for result in (ours, blend)
    )
    assert sharp > 1.05 * soft


def test_repeated_photographs_are_the_photographs(views: SourceViews, tmp_path: Path) -> None:
    result = added(views, tmp_path, "repeat-real")
    assert len(result.pseudo_views) == 3
    for index, view in enumerate(result.pseudo_views):
        assert view.image is not None
        np.testing.assert_array_equal(view.image, views.images[index])
        np.testing.assert_allclose(view.camera_to_world, views.camera_to_worlds[index], atol=1e-6)
        assert view.confidence.min() == 255


def test_points_of_a_capture_without_colors_are_grey() -> None:
    assert sparse_points({}) is None
    cloud = sparse_points({"points3D_xyz": torch.zeros(4, 3)})
    assert cloud is not None
    assert set(np.unique(cloud.rgb)) == {128}


def test_photos_of_any_kind_become_eight_bit() -> None:
    pixels = np.array([[[0.0, 0.5, 1.0, 1.0], [1.0, 1.0, 1.0, 0.5]]], np.float32)
    rgb, opaque = to_uint8_photo(pixels)
    np.testing.assert_array_equal(rgb, [[[0, 128, 255], [255, 255, 255]]])
    assert opaque is not None
    np.testing.assert_array_equal(opaque, [[True, False]])
    assert to_uint8_photo(pixels[..., :3])[1] is None


def test_the_oracle_uses_photographs_between_and_wants_some(
    views: SourceViews, tmp_path: Path
) -> None:
    config = AugmentationConfig(cache_dir=tmp_path)
    config.pseudo_views.control = "oracle"
    between = capture(arc(2, 10.0), wall_points())
    made = augment(views, SPARSE, config, between=between).pseudo_views
    assert len(made) == 2
    np.testing.assert_array_equal(made[0].image, between.images[0])  # type: ignore
    with pytest.raises(InputError, match="test-cap"):
        augment(views, SPARSE, config)


# ---------------------------------------------------------------------- cut-outs


def cut_outs(count: int = 8) -> SourceViews:
    """Photographs of a ball without any texture, cut out."""
    views, silhouettes = ball_views(count)
    return SourceViews(
        images=views.images,
        camera_to_worlds=flip_camera_axes(views.camera_to_worlds),
        intrinsics=views.intrinsics,
        names=views.names,
        valid=views.valid,
        silhouettes=silhouettes,
    )


def cut_out_config(folder: Path) -> AugmentationConfig:
    config = AugmentationConfig(cache_dir=folder)
    config.pseudo_views.interpolator = "optical-flow"
    config.visual_hull.cells = 20
    return config


def test_cut_out_photographs_start_from_their_visual_hull(
    said: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not from random points; a second run has them from the disk."""
    config = cut_out_config(tmp_path)
    made = augment(cut_outs(), None, config)
    assert made.num_sparse == made.num_dense == 0
    assert np.linalg.norm(made.points.xyz, axis=1).max() < 1.5 * BALL_RADIUS
    assert any("in the visual hull of cut-out photographs" in line for line in said)
    with monkeypatch.context() as patch:
        patch.setattr(augmentation, "visual_hull_points", None)
        again = augment(cut_outs(), None, config)
    np.testing.assert_array_equal(again.points.xyz, made.points.xyz)
    np.testing.assert_array_equal(again.points.rgb, made.points.rgb)
    config.visual_hull.enabled = False
    spread = np.linalg.norm(augment(cut_outs(), None, config).points.xyz, axis=1)
    assert np.percentile(spread, 90) > 1.5 * BALL_RADIUS


def test_the_hull_tells_where_to_look_for_depth(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where features gave no points; nothing else is known of how far away the object is."""
    asked: list[np.ndarray] = []

    def stereo_depths(views, known, *_):
        asked.append(known)
        return [None] * len(views)

    monkeypatch.setattr(augmentation, "stereo_depths", stereo_depths)
    config = cut_out_config(tmp_path)
    augment(cut_outs(), None, config)
    config.visual_hull.enabled = False  # its points are not wanted as initial ones
    augment(cut_outs(), None, config)
    augment(replace(cut_outs(), silhouettes=None), None, config)
    *hulls, nothing = asked
    for hull in hulls:
        assert len(hull) > 100
        assert np.linalg.norm(hull, axis=1).max() < 1.5 * BALL_RADIUS
    assert len(nothing) == 0


def test_known_points_stay_beside_those_of_the_hull(tmp_path: Path) -> None:
    towards = np.array([[0.0, 0.0, BALL_RADIUS]])
    generator = np.random.default_rng(0)
    xyz = (towards + generator.normal(0.0, 0.01, (150, 3))).astype(np.float32)
    sparse = PointCloud(xyz, np.full((150, 3), 9, np.uint8))
    made = augment(cut_outs(), sparse, cut_out_config(tmp_path))
    kept = {tuple(point) for point in made.points.xyz}
    assert all(tuple(point) in kept for point in xyz)
    assert len(made.points) > len(sparse) + 100
    assert made.num_sparse == len(sparse)


def test_more_photographs_than_the_hull_is_for_start_without_it(tmp_path: Path) -> None:
    config = cut_out_config(tmp_path)
    config.visual_hull.max_views = 7
    made = augment(cut_outs(), None, config)
    spread = np.linalg.norm(made.points.xyz, axis=1)
    assert np.percentile(spread, 90) > 1.5 * BALL_RADIUS
