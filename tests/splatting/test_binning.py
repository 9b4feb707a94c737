# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from ps4pro_nerfstudio.messages import InputError
from ps4pro_nerfstudio.splatting import reference
from ps4pro_nerfstudio.splatting.cpu import functions as kernels
from ps4pro_nerfstudio.splatting.cpu.threads import kernel_threads

# Any: type checkers do not follow unpacked lists into parameters.
functions: Any = kernels
WIDTH, HEIGHT = 75, 53


@pytest.fixture
def splats(scene):
    """Screen-space rows of 500 Gaussians in one camera."""
    s = scene(500, WIDTH, HEIGHT, seed=2)
    s["means"][:100, 2] = 3.0  # equal depths: ties
    settings = reference.ProjectionSettings(WIDTH, HEIGHT)
    names = ("means", "quats", "scales", "opacities", "colors", "viewmats", "Ks")
    s["viewmats"] = torch.eye(4)[None]
    radii, means2d, conics, depths, _, _ = functions.project(*(s[k] for k in names), settings)
    return means2d[0], conics[0], s["opacities"], radii[0], depths[0]


def bin_with(splats, segments):
    means2d, conics, opacities, radii, depths = (x.numpy() for x in splats)
    n = len(radii)
    with kernel_threads():
        return functions.bin_rows(
            0, n, WIDTH, HEIGHT, [means2d, conics, opacities, radii], np.zeros((n, 1), np.float32),
            depths, False, 0, segments,
        )  # fmt: skip


def tiles(starts):
    return enumerate(zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True))


def test_lists_hold_all_that_contribute_in_gsplats_order(splats):
    """Each list is gsplat's without Gaussians whose alpha stays below 1/255 in the whole tile."""
    means2d, conics, opacities, radii, depths = splats
    truth = reference.tile_lists(means2d, radii, depths, WIDTH, HEIGHT)
    lists = bin_with(splats, 2)
    dropped = 0
    for tile, (first, last) in tiles(truth.tile_starts):
        full = truth.ids[first:last].tolist()
        own = lists.ids[lists.tile_starts[tile] : lists.tile_starts[tile + 1]].tolist()
        kept = set(own)
        assert own == [g for g in full if g in kept]
        tiles_w = math.ceil(WIDTH / 16)
        y, x = torch.meshgrid(torch.arange(16) + 0.5, torch.arange(16) + 0.5, indexing="ij")
        for g in set(full) - kept:
            dx = means2d[g, 0] - x - 16 * (tile % tiles_w)
            dy = means2d[g, 1] - y - 16 * (tile // tiles_w)
            a, b, c = conics[g]
            sigma = 0.5 * (a * dx * dx + c * dy * dy) + b * dx * dy
            assert (opacities[g] * torch.exp(-sigma)).max() < 1 / 255
            dropped += 1
    assert dropped > 50


def test_sort_keys_are_gsplats(splats):
    means2d, _, _, radii, depths = splats
    truth = reference.tile_lists(means2d, radii, depths, WIDTH, HEIGHT)
    lists = bin_with(splats, 1)
    assert set(lists.isect_ids.tolist()) <= set(truth.isect_ids.tolist())
    assert np.all(np.diff(lists.isect_ids) >= 0)


@pytest.mark.parametrize("segments", [2, 3, 7])
def test_segments_do_not_change_the_lists(splats, segments):
    one, many = bin_with(splats, 1), bin_with(splats, segments)
    for name in ("ids", "isect_ids", "tile_starts", "slot_starts", "tiles_per_gauss"):
        np.testing.assert_array_equal(getattr(one, name), getattr(many, name))


def test_each_intersection_has_its_own_slot_beside_those_of_its_gaussian(splats):
    lists = bin_with(splats, 2)
    records = lists.records.view(np.int32).reshape(-1, 16)
    tiles_w = math.ceil(WIDTH / 16)
    seen = set()
    for tile, (first, last) in tiles(lists.tile_starts):
        for g in lists.ids[first:last]:
            slot = records[g, 13] + tile // tiles_w * records[g, 14] + tile % tiles_w
            assert lists.slot_starts[g] <= slot < lists.slot_starts[g + 1]
            seen.add(int(slot))
    assert seen == set(range(len(lists.ids)))


@pytest.mark.parametrize("segments", [1, 3])
def test_large_scenes_are_sorted_in_parallel_by_depth_then_index(segments):
    n = 120_000
    generator = torch.Generator().manual_seed(0)
    depths = (torch.rand(n, generator=generator) * 1e4).round() / 8 + 0.25  # many ties
    means2d = torch.full((n, 2), 8.0)
    conics = torch.tensor([1.0, 0, 1]).repeat(n, 1)
    rows = (means2d, conics, torch.full((n,), 0.5), torch.ones(n, dtype=torch.int32), depths)
    lists = bin_with(rows, segments)
    expected = torch.argsort(depths, stable=True)
    np.testing.assert_array_equal(lists.ids, expected.numpy())


def test_too_many_intersections_are_refused_with_advice(splats, monkeypatch):
    monkeypatch.setattr(functions, "MAX_INTERSECTIONS", 10)
    with pytest.raises(InputError, match="lower resolution"):
        bin_with(splats, 1)
