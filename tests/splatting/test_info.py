# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import inspect
import re

import pytest
import torch

from ps4pro_nerfstudio.splatting import rasterization
from ps4pro_nerfstudio.splatting.adapter import gsplat_version, radii_for_strategy

needs_gsplat_1_4 = pytest.mark.skipif(gsplat_version() != (1, 4), reason="written for gsplat 1.4")


def gsplat_rasterization():
    from gsplat import rendering

    return rendering.rasterization


@needs_gsplat_1_4
def test_signature_is_gsplats():
    own = list(inspect.signature(rasterization).parameters.values())[:-1]
    theirs = list(inspect.signature(gsplat_rasterization()).parameters.values())
    assert [(p.name, p.default) for p in own] == [(p.name, p.default) for p in theirs]


@needs_gsplat_1_4
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_keys_are_those_that_gsplat_fills(scene, rendered, packed, dtype):
    source = inspect.getsource(gsplat_rasterization())
    filled = "".join(re.findall(r"meta\.update\(\s*\{(.*?)\}\s*\)", source, flags=re.DOTALL))
    keys = set(re.findall(r'"(\w+)":', filled))
    assert {"radii", "means2d", "n_cameras", "isect_offsets"} <= keys
    *_, info = rendered(scene(30, 40, 20, cameras=2), dtype, packed=packed)
    assert set(info) == keys


def test_shapes_of_unpacked_info(scene, rendered):
    *_, info = rendered(scene(30, 40, 20, cameras=2))
    shapes = {k: tuple(v.shape) for k, v in info.items() if isinstance(v, torch.Tensor)}
    n_isects = len(info["flatten_ids"])
    assert shapes == {
        "radii": (2, 30) if gsplat_version() < (1, 5) else (2, 30, 2),
        "means2d": (2, 30, 2),
        "depths": (2, 30),
        "conics": (2, 30, 3),
        "opacities": (2, 30),
        "tiles_per_gauss": (2, 30),
        "isect_ids": (n_isects,),
        "flatten_ids": (n_isects,),
        "isect_offsets": (2, 2, 3),
    }
    numbers = {k: v for k, v in info.items() if not isinstance(v, torch.Tensor)}
    assert numbers == {
        "camera_ids": None,
        "gaussian_ids": None,
        "tile_width": 3,
        "tile_height": 2,
        "width": 40,
        "height": 20,
        "tile_size": 16,
        "n_cameras": 2,
    }
    integers = ("radii", "tiles_per_gauss", "flatten_ids", "isect_offsets")
    assert all(info[name].dtype == torch.int32 for name in integers)
    assert info["isect_ids"].dtype == torch.int64


def test_packed_info_holds_the_visible_rows(scene, rendered):
    s = scene(60, 40, 20, cameras=2)
    s["means"][:20, 2] -= 6
    render, alphas, gradients, full = rendered(s, absgrad=True)
    packed_render, packed_alphas, packed_gradients, info = rendered(s, absgrad=True, packed=True)
    assert torch.equal(render, packed_render)
    assert torch.equal(alphas, packed_alphas)
    for name in ("means", "quats", "scales", "opacities", "colors", "viewmats"):
        torch.testing.assert_close(gradients[name], packed_gradients[name])
    visible = (full["radii"] > 0).reshape(2, 60, -1).all(-1)
    cameras, gaussians = visible.nonzero(as_tuple=True)
    assert torch.equal(info["camera_ids"], cameras)
    assert torch.equal(info["gaussian_ids"], gaussians)
    for name in ("radii", "means2d", "depths", "conics", "opacities", "tiles_per_gauss"):
        assert torch.equal(info[name], full[name][cameras, gaussians]), name
    assert torch.equal(info["means2d"].grad, full["means2d"].grad[cameras, gaussians])
    assert torch.equal(info["means2d"].absgrad, full["means2d"].absgrad[cameras, gaussians])
    assert torch.equal(cameras * 60 + gaussians, (cameras * 60 + gaussians).sort().values)
    rows = cameras * 60 + gaussians
    assert torch.equal(rows[info["flatten_ids"].long()].int(), full["flatten_ids"])


def test_tile_lists_of_all_cameras_are_joined(scene, rendered):
    *_, info = rendered(scene(60, 40, 20, cameras=2))
    offsets = torch.cat([info["isect_offsets"].flatten(), torch.tensor([len(info["flatten_ids"])])])
    assert (offsets.diff() >= 0).all()
    assert info["tiles_per_gauss"].sum() == len(info["flatten_ids"])
    counts = info["flatten_ids"].bincount(minlength=120).reshape(2, 60)
    assert torch.equal(counts.int(), info["tiles_per_gauss"])
    # gsplat's keys: camera, tile, depth bits from the highest bit down.
    assert (info["isect_ids"].diff() >= 0).all()
    tiles = info["isect_ids"] >> 32
    n_bits = (6).bit_length()
    for c in range(2):
        for tile in range(6):
            k = 6 * c + tile
            assert (tiles[offsets[k] : offsets[k + 1]] == (c << n_bits) + tile).all()


def test_invisible_rows_are_zero_and_means2d_carries_gradients(scene, rendered):
    s = scene(60, 40, 20)
    s["means"][:20, 2] -= 6
    *_, info = rendered(s, absgrad=True)
    hidden = (info["radii"] == 0).reshape(1, 60, -1).all(-1)
    assert hidden.sum() >= 20
    for name in ("means2d", "depths", "conics", "tiles_per_gauss"):
        assert not info[name][hidden].any()
    assert not info["means2d"].is_leaf
    assert info["means2d"].grad.shape == info["means2d"].absgrad.shape == (1, 60, 2)
    assert info["means2d"].grad.any()
    assert not info["means2d"].grad[hidden].any()
    assert not info["means2d"].absgrad[hidden].any()


def test_without_absgrad_there_is_none(scene, rendered):
    *_, info = rendered(scene(10, 20, 20))
    assert not hasattr(info["means2d"], "absgrad")


@pytest.mark.parametrize(("version", "rank"), [((1, 4), 2), ((1, 5), 3), ((2, 0), 3)])
def test_radii_have_the_rank_of_the_version(version, rank):
    radii = torch.tensor([[0, 3, 5]], dtype=torch.int32)
    result = radii_for_strategy(radii, version)
    assert result.dim() == rank
    assert result.dtype == torch.int32
    visible = result > 0 if rank == 2 else (result > 0).all(-1)
    assert torch.equal(visible, radii > 0)
