# SPDX-License-Identifier: Apache-2.0
"""The inverse warp against scenes whose pixels can be counted by hand."""

from __future__ import annotations

import dataclasses
from itertools import pairwise

import pytest
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor
from torch.testing import assert_close

from ps4pro_nerfstudio.geometry.inverse_warp import Warp, inverse_warp, visible

HEIGHT, WIDTH = 24, 40
FOCAL = 100.0
INTRINSICS = torch.tensor(
    [[FOCAL, 0.0, WIDTH / 2], [0.0, FOCAL, HEIGHT / 2], [0.0, 0.0, 1.0]], dtype=torch.float64
)
AGREEMENTS = ("reproject", "minmax")


def photo(height: int = HEIGHT, width: int = WIDTH, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.rand(3, height, width, generator=torch.Generator().manual_seed(0)).to(dtype)


def camera_at(x: float = 0.0, y: float = 0.0, z: float = 0.0) -> Tensor:
    """World-to-camera of a camera without rotation whose centre is (x, y, z)."""
    matrix = torch.eye(4, dtype=torch.float64)
    matrix[:3, 3] = -torch.tensor([x, y, z], dtype=torch.float64)
    return matrix


def turned_camera(seed: int, distance: float = 1.0) -> Tensor:
    matrix = torch.eye(4, dtype=torch.float64)
    axis = [1.0 + seed, -0.7 * seed, 0.4]
    matrix[:3, :3] = torch.from_numpy(Rotation.from_rotvec(axis).as_matrix())
    matrix[:3, 3] = distance * torch.tensor([0.5, -1.0, 0.3])
    return matrix


def plane(depth: float) -> Tensor:
    return torch.full((HEIGHT, WIDTH), depth, dtype=torch.float64)


def half_wall(camera_x: float, front: float, back: float) -> Tensor:
    """Depth, seen from x = camera_x, of a wall at `back` and one at `front` that has x >= 0."""
    columns = torch.arange(WIDTH, dtype=torch.float64) + 0.5 - WIDTH / 2
    in_front = columns / FOCAL * front + camera_x >= 0
    return torch.where(in_front, front, back).expand(HEIGHT, WIDTH).double()


def warp_between(depth_i: Tensor, depth_j: Tensor, i: Tensor, j: Tensor, **options) -> Warp:
    image = photo(depth_i.shape[0], depth_i.shape[1])
    return inverse_warp(image, depth_i, depth_j, i, j, INTRINSICS, INTRINSICS, **options)


@pytest.mark.parametrize("mode", AGREEMENTS)
@pytest.mark.parametrize("constant", [False, True])
def test_equal_cameras_and_depth_give_the_photograph(mode, constant) -> None:
    depth = plane(2.0) if constant else 0.1 + 5 * photo()[0]
    for interpolation, tolerance in (("nearest", 0.0), ("bilinear", 1e-12)):
        camera = turned_camera(1)
        warp = warp_between(depth, depth, camera, camera, interpolation=interpolation)
        assert_close(warp.colors, photo(), rtol=0, atol=tolerance)
        assert_close(warp.source_depth, depth, rtol=0, atol=0)
        assert_close(warp.depth_in_source, depth)
        assert visible(warp, depth, 0.1, mode).all()
        assert visible(warp, depth, 0.3, mode).all()


def test_the_photograph_comes_back_in_single_precision_far_from_the_origin() -> None:
    depth, camera = (0.1 + 5 * photo()[0]).float(), turned_camera(1, distance=20.0).float()
    image, intrinsics = photo(dtype=torch.float32), INTRINSICS.float()
    warp = inverse_warp(image, depth, depth, camera, camera, intrinsics, intrinsics)
    assert warp.colors.dtype == torch.float32
    assert torch.equal(warp.colors, image)


def test_a_plane_shifts_by_its_parallax() -> None:
    """100 pixels * 0.06 / 2 = 3 pixels; the camera to the right sees the wall moved to the left."""
    depth = plane(2.0)
    warp = warp_between(depth, depth, camera_at(x=0.06), camera_at())
    assert torch.equal(warp.colors[:, :, 3:], photo()[:, :, :-3])
    assert not warp.inside[:, :3].any()
    assert warp.inside[:, 3:].all()
    assert (warp.colors[:, :, :3] == 0).all()
    assert (warp.source_depth[:, :3] == 0).all()
    assert torch.equal(visible(warp, depth, 0.1), warp.inside)


def test_half_a_pixel_of_parallax_blends_two_pixels() -> None:
    depth = plane(2.0)
    options = {"interpolation": "bilinear"}
    warp = warp_between(depth, depth, camera_at(x=0.01), camera_at(), **options)
    expected = (photo()[:, :, 1:] + photo()[:, :, :-1]) / 2
    assert_close(warp.colors[:, :, 1:], expected, atol=1e-12, rtol=0)
    # The first pixel's centre falls on the image's border: inside, with the border's colour.
    assert_close(warp.colors[:, :, 0], photo()[:, :, 0], atol=1e-12, rtol=0)


def test_each_view_has_its_own_intrinsics_and_size() -> None:
    """A view of half the size sees, at each pixel, the common corner of four pixels."""
    depth_i = plane(2.0)
    depth_j = torch.full((HEIGHT // 2, WIDTH // 2), 2.0, dtype=torch.float64)
    halved = INTRINSICS * torch.tensor([[0.5], [0.5], [1.0]])
    warp = inverse_warp(
        photo(), depth_i, depth_j, camera_at(), camera_at(), INTRINSICS, halved,
        interpolation="bilinear",
    )  # fmt: skip
    expected = torch.nn.functional.avg_pool2d(photo(), 2)
    assert_close(warp.colors, expected, atol=1e-12, rtol=0)
    assert warp.inside.all()


def test_skew_counts() -> None:
    skewed = INTRINSICS.clone()
    skewed[0, 1] = 20.0
    depth, camera = plane(2.0), turned_camera(2)
    warp = inverse_warp(photo(), depth, depth, camera, camera, skewed, skewed)
    assert torch.equal(warp.colors, photo())


@pytest.mark.parametrize("front, back, baseline", [(2.0, 4.0, 0.2), (1.0, 3.0, 0.09)])
def test_what_the_photograph_cannot_see_is_masked(front, back, baseline) -> None:
    """From the right, the near half hides f b (1/z1 - 1/z2) pixels of the wall: 5 and 6."""
    hidden = FOCAL * baseline * (1 / front - 1 / back)
    depth_j = half_wall(0.0, front, back)
    warp = warp_between(
        half_wall(baseline, front, back), depth_j, camera_at(x=baseline), camera_at()
    )
    masked = warp.inside & ~visible(warp, depth_j, 0.1)
    assert (abs(masked.sum(dim=1) - hidden) <= 1).all()
    edge = WIDTH // 2
    assert not masked[:, edge:].any()
    assert not masked[:, : edge - round(hidden) - 1].any()


def test_nothing_is_hidden_from_the_side_that_sees_more() -> None:
    depth_j = half_wall(0.0, 2.0, 4.0)
    warp = warp_between(half_wall(-0.2, 2.0, 4.0), depth_j, camera_at(x=-0.2), camera_at())
    masked = warp.inside & ~visible(warp, depth_j, 0.1)
    assert (masked.sum(dim=1) <= 1).all()


def test_points_behind_the_photograph_are_never_inside() -> None:
    """The camera stands beyond the plane: every point projects into its image, mirrored."""
    warp = warp_between(plane(2.0), plane(2.0), camera_at(z=4.0), camera_at())
    assert (warp.depth_in_source < 0).all()
    assert not warp.inside.any()
    assert not warp.colors.any()
    for mode in AGREEMENTS:
        assert not visible(warp, plane(2.0), 10.0, mode).any()


def test_points_before_the_near_plane_are_not_inside() -> None:
    camera = camera_at(x=0.01, y=0.01, z=1.95)  # on the ray of one pixel's centre
    assert warp_between(plane(0.05), plane(2.0), camera, camera_at(), near=0.04).inside.any()
    assert not warp_between(plane(0.05), plane(2.0), camera, camera_at(), near=0.06).inside.any()


@pytest.mark.parametrize("unknown", [0.0, -1.0, torch.inf, -torch.inf, torch.nan])
def test_unknown_depth_of_either_view_is_not_inside(unknown) -> None:
    known = 1 + photo()[0]
    holed = known.clone()
    holed[3, 4] = unknown
    for depth_i, depth_j in ((holed, known), (known, holed)):
        warp = warp_between(depth_i, depth_j, camera_at(), camera_at())
        assert not warp.inside[3, 4]
        assert int((~warp.inside).sum()) == 1
        for mode in AGREEMENTS:
            mask = visible(warp, depth_j, 0.1, mode)
            assert torch.equal(mask, warp.inside)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_depth_and_no_pose_gives_nan(seed, dtype) -> None:
    generator = torch.Generator().manual_seed(seed)
    odd = torch.tensor([0.0, -1.0, torch.inf, -torch.inf, torch.nan, 1e-30, 1e30, 3e38, 1.0])
    depth_i, depth_j = odd[torch.randint(9, (2, HEIGHT, WIDTH), generator=generator)].to(dtype)
    i, j = turned_camera(seed).to(dtype), turned_camera(seed + 100).to(dtype)
    intrinsics = INTRINSICS.to(dtype)
    for interpolation in ("nearest", "bilinear"):
        warp = inverse_warp(
            photo(dtype=dtype), depth_i, depth_j, i, j, intrinsics, intrinsics,
            interpolation=interpolation,
        )  # fmt: skip
        for field in dataclasses.fields(Warp):
            assert getattr(warp, field.name).isfinite().all(), field.name
        for mode in AGREEMENTS:
            assert not (visible(warp, depth_j, 0.3, mode) & ~warp.inside).any()


def test_agreement_is_relative_to_the_depth_of_the_photograph() -> None:
    depth_i = plane(1.0) * torch.logspace(-1, 2, WIDTH, dtype=torch.float64)
    for factor in (0.8, 1.2):
        warp = warp_between(depth_i, factor * depth_i, camera_at(), camera_at())
        assert visible(warp, factor * depth_i, 0.21).all()
        assert not visible(warp, factor * depth_i, 0.19).any()


@pytest.mark.parametrize("mode", AGREEMENTS)
def test_a_smaller_threshold_adds_no_pixel(mode) -> None:
    generator = torch.Generator().manual_seed(3)
    depth_i, depth_j = 1 + torch.rand(2, HEIGHT, WIDTH, generator=generator).double()
    warp = warp_between(depth_i, depth_j, camera_at(x=0.02), camera_at())
    masks = [visible(warp, depth_j, threshold, mode) for threshold in (0.05, 0.1, 0.2, 0.3, 2.0)]
    for smaller, larger in pairwise(masks):
        assert not (smaller & ~larger).any()
        assert smaller.sum() < larger.sum()


def test_a_far_floater_changes_other_pixels_only_in_minmax_mode() -> None:
    generator = torch.Generator().manual_seed(4)
    depth_i = 1 + torch.rand(HEIGHT, WIDTH, generator=generator).double()
    depth_j = depth_i * 1.2
    floater = depth_j.clone()
    floater[5, 6] = 1000.0
    elsewhere = torch.ones(HEIGHT, WIDTH, dtype=torch.bool)
    elsewhere[5, 6] = False

    def masks(mode) -> tuple[Tensor, Tensor]:
        cameras = (camera_at(), camera_at())
        without, with_it = (
            visible(warp_between(depth_i, depth, *cameras), depth, 0.3, mode)[elsewhere]
            for depth in (depth_j, floater)
        )
        return without, with_it

    assert torch.equal(*masks("reproject"))
    assert not torch.equal(*masks("minmax"))


def test_nothing_carries_a_gradient() -> None:
    depth = plane(2.0).requires_grad_()
    warp = warp_between(depth, depth, camera_at(), camera_at())
    assert not warp.colors.requires_grad
    assert not warp.depth_in_source.requires_grad


def test_wrong_arguments_are_refused() -> None:
    depth = plane(2.0)
    with pytest.raises(ValueError, match="depth_i"):
        inverse_warp(photo(), depth[1:], depth, camera_at(), camera_at(), INTRINSICS, INTRINSICS)
    with pytest.raises(ValueError, match="interpolation"):
        warp_between(depth, depth, camera_at(), camera_at(), interpolation="cubic")
    warp = warp_between(depth, depth, camera_at(), camera_at())
    with pytest.raises(ValueError, match="mode"):
        visible(warp, depth, 0.1, "other")  # pyright: ignore[reportArgumentType]
