# SPDX-License-Identifier: Apache-2.0
"""Dense points: one for each cell, at the weighted mean, beside the sparse ones."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ps4pro_nerfstudio.initialization import dense_points
from ps4pro_nerfstudio.initialization.dense_points import (
    DensePointsConfig,
    PointCloud,
    PointObservations,
    fuse,
    load_or_fuse,
)

NO_POINTS = PointCloud(np.zeros((0, 3), np.float32), np.zeros((0, 3), np.uint8))


def observed(xyz: np.ndarray, pixel_size: float = 0.25, weight: float = 1.0) -> PointObservations:
    count = len(xyz)
    return PointObservations(
        xyz=np.asarray(xyz, np.float64),
        rgb=np.full((count, 3), 100, np.uint8),
        weight=np.full(count, weight),
        pixel_size=np.full(count, pixel_size),
    )


def plane(spacing: float, depth: float = 0.5) -> np.ndarray:
    """Points of a square of edge 8."""
    x, y = np.meshgrid(np.arange(0.0, 8.0, spacing) + 0.01, np.arange(0.0, 8.0, spacing) + 0.01)
    return np.stack([x.ravel(), y.ravel(), np.full(x.size, depth)], axis=1)


def test_one_point_for_each_cell_whoever_saw_it() -> None:
    """Cells of 4 px x .25 = 1 on a square of edge 8: 64 points, from one frame or from three."""
    config = DensePointsConfig(spacing_px=4.0)
    assert len(fuse([observed(plane(0.1))], NO_POINTS, config)) == 64
    assert len(fuse([observed(plane(0.1))] * 3, NO_POINTS, config)) == 64


def test_cells_grow_with_the_size_of_a_pixel() -> None:
    far = fuse([observed(plane(0.1), pixel_size=0.5)], NO_POINTS, DensePointsConfig(spacing_px=4.0))
    assert len(far) == 16


def test_points_spread_over_any_range_are_told_apart() -> None:
    """Cells too many to be numbered through: one point at each end of a huge diagonal."""
    xyz = np.array([[0.5, 0.5, 0.5], [1e9, 1e9, 1e9], [0.6, 0.6, 0.6], [-1e9, 0.0, 1e9]])
    fused = fuse([observed(xyz)], NO_POINTS, DensePointsConfig(spacing_px=4.0))
    assert len(fused) == 3


def test_a_point_is_the_weighted_mean_of_its_cell() -> None:
    """Weights 1 and 3 at .2 and .6: (.2 + 3 x .6) / 4 = .5."""
    first = observed(np.array([[0.2, 0.2, 0.2]]))
    second = observed(np.array([[0.6, 0.6, 0.6]]), weight=3.0)
    fused = fuse([first, second], NO_POINTS, DensePointsConfig(spacing_px=4.0)).points
    np.testing.assert_allclose(fused.xyz, [[0.5, 0.5, 0.5]], rtol=1e-6)
    np.testing.assert_array_equal(fused.rgb, [[100, 100, 100]])


def test_sparse_points_stay_and_keep_their_cells() -> None:
    sparse = PointCloud(
        np.array([[0.5, 0.5, 0.5], [20.0, 0.0, 0.0]], np.float32),
        np.array([[1, 2, 3], [4, 5, 6]], np.uint8),
    )
    result = fuse([observed(plane(0.1))], sparse, DensePointsConfig(spacing_px=4.0))
    assert (result.num_sparse, result.num_dense) == (2, 63)
    fused = result.points
    assert len(fused) == 63 + 2
    for point, color in zip(sparse.xyz, sparse.rgb, strict=True):
        (place,) = np.flatnonzero((fused.xyz == point).all(axis=1))
        np.testing.assert_array_equal(fused.rgb[place], color)


def test_the_number_is_bounded_and_a_prefix_is_a_fair_sample() -> None:
    config = DensePointsConfig(spacing_px=0.4, max_points=1000)
    fused = fuse([observed(plane(0.05))], NO_POINTS, config).points
    assert len(fused) == 1000
    np.testing.assert_allclose(fused.xyz[:250, :2].mean(axis=0), [4.0, 4.0], atol=0.5)


def test_for_comparisons_there_are_as_many_points_as_without() -> None:
    """Drawn from all: of 63 + 2 points on average one thirtieth are sparse."""
    sparse = PointCloud(plane(1.0)[:20].astype(np.float32), np.full((20, 3), 7, np.uint8))
    config = DensePointsConfig(spacing_px=0.4, as_many_as_sparse=True)
    fused = fuse([observed(plane(0.05))], sparse, config)
    assert len(fused) == 20
    are_dense = (fused.points.rgb == 100).all(axis=1)
    assert are_dense.sum() > 15
    assert (fused.num_sparse, fused.num_dense) == ((~are_dense).sum(), are_dense.sum())
    assert len(fuse([observed(plane(0.05))], NO_POINTS, config)) > 1000


def test_sparse_points_stay_even_where_they_are_too_many() -> None:
    sparse = PointCloud(plane(1.0).astype(np.float32), np.zeros((64, 3), np.uint8))
    fused = fuse([observed(plane(0.05))], sparse, DensePointsConfig(max_points=10)).points
    assert sorted(map(tuple, fused.xyz)) == sorted(map(tuple, sparse.xyz))


def test_the_draw_is_repeatable() -> None:
    config = DensePointsConfig(spacing_px=0.4, max_points=500)
    first, second = (fuse([observed(plane(0.1))], NO_POINTS, config).points for _ in range(2))
    np.testing.assert_array_equal(first.xyz, second.xyz)


def test_without_observations_the_sparse_points_remain() -> None:
    sparse = PointCloud(plane(1.0).astype(np.float32), np.zeros((64, 3), np.uint8))
    fused = fuse([], sparse, DensePointsConfig()).points
    assert sorted(map(tuple, fused.xyz)) == sorted(map(tuple, sparse.xyz))


def test_fused_points_are_kept_until_something_that_decides_them_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any bit of an observation, of a sparse point and of an option that matters; no other."""
    config = DensePointsConfig(spacing_px=4.0)
    seen = [observed(plane(0.1)), observed(plane(0.1, depth=2.5)), observed(np.zeros((0, 3)))]
    sparse = PointCloud(plane(1.0)[:5].astype(np.float32), np.zeros((5, 3), np.uint8))
    first = load_or_fuse(seen, sparse, config, tmp_path)
    expected = fuse(seen, sparse, config)
    monkeypatch.setattr(dense_points, "fuse", None)  # nothing is fused again
    again = load_or_fuse(seen, sparse, replace(config, enabled=False, max_views=7), tmp_path)
    for fused in (first, again):
        np.testing.assert_array_equal(fused.points.xyz, expected.points.xyz)
        np.testing.assert_array_equal(fused.points.rgb, expected.points.rgb)
        assert fused.points.xyz.dtype == np.float32
        assert fused.num_sparse == expected.num_sparse == 5
    changed = [
        ([replace(seen[0], xyz=np.nextafter(seen[0].xyz, 9.0)), *seen[1:]], sparse, config),
        ([replace(seen[0], rgb=seen[0].rgb + np.uint8(1)), *seen[1:]], sparse, config),
        ([replace(seen[0], weight=0.9 * seen[0].weight), *seen[1:]], sparse, config),
        ([replace(seen[0], pixel_size=1.1 * seen[0].pixel_size), *seen[1:]], sparse, config),
        (seen[1:], sparse, config),
        (seen, replace(sparse, rgb=sparse.rgb + np.uint8(1)), config),
        (seen, replace(sparse, xyz=sparse.xyz[:-1]), config),
        (seen, sparse, replace(config, spacing_px=4.1)),
        (seen, sparse, replace(config, max_points=9)),
        (seen, sparse, replace(config, as_many_as_sparse=True)),
        (seen, sparse, replace(config, seed=1)),
    ]
    for arguments in changed:
        with pytest.raises(TypeError):
            load_or_fuse(*arguments, tmp_path)


def test_damaged_fused_points_are_fused_anew(tmp_path: Path) -> None:
    config = DensePointsConfig(spacing_px=4.0)
    expected = load_or_fuse([observed(plane(0.1))], NO_POINTS, config, tmp_path)
    (file,) = tmp_path.iterdir()
    good = file.read_bytes()
    file.write_bytes(good[:100])
    anew = load_or_fuse([observed(plane(0.1))], NO_POINTS, config, tmp_path)
    np.testing.assert_array_equal(anew.points.xyz, expected.points.xyz)
    assert file.read_bytes() == good


@pytest.mark.parametrize(("field", "value"), [("spacing_px", 0.0), ("max_points", 0)])
def test_impossible_settings_are_refused(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=field):
        DensePointsConfig(**{field: value})  # pyright: ignore
