# SPDX-License-Identifier: Apache-2.0
"""Which views become neighbours, and what each gate refuses."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from ps4pro_nerfstudio.pseudo_views.pairs import (
    Pair,
    PairConfig,
    PairSelection,
    baseline_objection,
    exposure_objection,
    overlap_objection,
    pose_distances,
    select_pairs,
)


def circle(num_views: int, degrees: float) -> np.ndarray:
    """Cameras [N, 4, 4] on a circle of radius 3 that look at its middle."""
    poses = np.tile(np.eye(4), (num_views, 1, 1))
    for pose, angle in zip(poses, np.radians(np.linspace(0, degrees, num_views)), strict=True):
        rotation = Rotation.from_rotvec([0.0, angle, 0.0]).as_matrix()
        pose[:3, :3] = rotation
        pose[:3, 3] = rotation @ [0.0, 0.0, -3.0]
    return poses


def names(count: int) -> list[str]:
    return [f"frame_{index}.jpg" for index in range(count)]


def select(poses: np.ndarray, *args: object, **options: object) -> PairSelection:
    given_names = args[0] if args else names(len(poses))
    return select_pairs(poses, given_names, PairConfig(), depth_scale=3.0, **options)  # pyright: ignore


def joined(selection: PairSelection, viewpoint: np.ndarray) -> set[tuple[int, int]]:
    """The viewpoints that are joined by a pair, by the viewpoint of each view."""
    ends = [sorted((int(viewpoint[pair.a]), int(viewpoint[pair.b]))) for pair in selection.pairs]
    return {(first, second) for first, second in ends}


def orders(count: int) -> list[np.ndarray]:
    """The file order, and three in which nothing is next to its neighbour."""
    shuffled = [np.random.default_rng(seed).permutation(count) for seed in range(3)]
    return [np.arange(count), *shuffled]


EIGHT_GAPS = {(index, index + 1) for index in range(7)}


def reasons(selection: PairSelection) -> list[str]:
    return [skip.objection.reason for skip in selection.skipped]


def test_a_path_pairs_each_view_with_the_next() -> None:
    selection = select(circle(6, 90.0))
    assert selection.is_path
    assert selection.pairs == [Pair(index, index + 1) for index in range(5)]
    assert selection.skipped == []


def test_file_order_counts_numbers_not_letters() -> None:
    """As text, frame_10 and frame_11 come before frame_2."""
    poses = circle(12, 90.0)
    shuffled = np.random.default_rng(0).permutation(12)
    given = [names(12)[index] for index in shuffled]
    selection = select(poses[shuffled], given)
    position = {int(view): place for place, view in enumerate(shuffled)}
    assert selection.is_path
    assert selection.pairs == [Pair(position[i], position[i + 1]) for i in range(11)]


def test_a_closed_circle_pairs_the_last_with_the_first() -> None:
    selection = select(circle(13, 360.0)[:12])
    assert selection.pairs[-1] == Pair(11, 0)
    assert len(selection.pairs) == 12


def test_a_second_row_is_paired_with_the_first() -> None:
    """A snake over two rows: each view also has the one above or below it, if it is as near."""
    upper = circle(4, 30.0)
    lower = upper[::-1].copy()
    lower[:, 1, 3] += 0.5
    selection = select(np.concatenate([upper, lower]))
    assert selection.is_path
    assert set(selection.pairs) == {Pair(i, i + 1) for i in range(7)} | {Pair(7, 0)} | {
        Pair(1, 6),
        Pair(2, 5),
    }


def test_overlap_gate() -> None:
    """30 of 60 points are shared by views that show 60 and 40 of them: 30 / 40."""
    a, b = np.zeros(100, bool), np.zeros(100, bool)
    a[:60], b[30:70] = True, True
    assert overlap_objection(a, b, PairConfig(min_overlap=0.75)) is None
    objection = overlap_objection(a, b, PairConfig(min_overlap=0.76))
    assert objection is not None
    assert (objection.reason, objection.detail) == ("too little overlap", "75% < 76%")
    assert overlap_objection(a, ~a & False, PairConfig(min_overlap=0.9)) is None


def test_an_uneven_path_is_still_a_path() -> None:
    """Every second gap is twice as wide, as when a split takes views out of a video."""
    poses = circle(31, 90.0)[[0, 2, 6, 8, 12, 14, 18, 20, 24, 26, 30]]
    assert select(poses).is_path


def test_an_unordered_set_pairs_nearest_neighbours_at_most_twice() -> None:
    poses = circle(12, 100.0)
    shuffled = np.random.default_rng(1).permutation(12)
    selection = select(poses[shuffled])
    assert not selection.is_path
    used = Counter(index for pair in selection.pairs for index in (pair.a, pair.b))
    assert max(used.values()) <= 2
    steps = {tuple(sorted((int(shuffled[p.a]), int(shuffled[p.b])))) for p in selection.pairs}
    assert steps == {(index, index + 1) for index in range(11)}


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_views_have_no_pairs(count: int) -> None:
    selection = select(circle(2, 10.0)[:count])
    assert selection.pairs == selection.skipped == []


def test_two_views_are_a_pair() -> None:
    assert select(circle(2, 20.0)).pairs == [Pair(0, 1)]


def test_rotation_gate() -> None:
    selection = select(circle(3, 100.0))
    assert selection.pairs == []
    assert reasons(selection) == ["rotation too large"] * 2
    assert selection.skipped[0].objection.detail == "50 degrees > 45"


def test_one_place_gate() -> None:
    poses = circle(3, 20.0)
    poses[:, :3, 3] = 1.0
    assert reasons(select(poses)) == ["taken from one place"] * 2


def test_identical_poses_without_a_known_depth_are_one_place() -> None:
    selection = select_pairs(np.tile(np.eye(4), (3, 1, 1)), names(3), PairConfig())
    assert set(reasons(selection)) == {"taken from one place"}


def test_camera_model_gate() -> None:
    selection = select(circle(3, 20.0), is_pinhole=[True, True, False])
    assert selection.pairs == [Pair(0, 1)]
    assert reasons(selection) == ["not a pinhole camera"]


def test_image_size_gate() -> None:
    selection = select(circle(3, 20.0), sizes=[(40, 30), (30, 40), (30, 40)])
    assert selection.pairs == [Pair(1, 2)]
    assert reasons(selection) == ["different image shapes"]


@pytest.mark.parametrize("order", orders(16))
def test_landscape_and_portrait_of_each_viewpoint_make_two_rows(order: np.ndarray) -> None:
    """8 viewpoints, each photographed both ways from one place: 7 pairs of either shape."""
    viewpoint = np.repeat(np.arange(8), 2)[order]
    is_portrait = (np.arange(16) % 2 == 1)[order]
    sizes = [(30, 40) if portrait else (40, 30) for portrait in is_portrait]
    selection = select(circle(8, 70.0)[viewpoint], sizes=sizes)
    # Without an order the two ends of the arc are left over for each other.
    assert set(reasons(selection)) <= {"rotation too large"}
    for shape in (False, True):
        pairs = [pair for pair in selection.pairs if is_portrait[pair.a] == shape]
        assert all(is_portrait[pair.b] == shape for pair in pairs)
        assert len(pairs) == 7
        assert joined(PairSelection(pairs, [], True), viewpoint) == EIGHT_GAPS


@pytest.mark.parametrize("scatter", [0.0, 5e-4, 2e-3])
@pytest.mark.parametrize("shots", [2, 3])
def test_shots_from_a_tripod_are_one_viewpoint(shots: int, scatter: float) -> None:
    """A bracketing or a burst: each gap once, whatever the order and the error of the poses."""
    count = 8 * shots
    for order in orders(count):
        viewpoint = np.repeat(np.arange(8), shots)[order]
        generator = np.random.default_rng(7)
        poses = circle(8, 70.0)[viewpoint]
        poses[:, :3, 3] += scatter * generator.normal(size=(count, 3))
        turn = Rotation.from_rotvec(scatter * generator.normal(size=(count, 3))).as_matrix()
        poses[:, :3, :3] = turn @ poses[:, :3, :3]
        selection = select(poses)
        assert joined(selection, viewpoint) == EIGHT_GAPS
        assert len(selection.pairs) == 7
        assert Counter(reasons(selection))["taken from one place"] == count - 8


def test_the_first_shot_stands_for_its_viewpoint() -> None:
    """With three exposures of each, the pairs join photographs of one exposure."""
    selection = select(circle(4, 30.0)[np.repeat(np.arange(4), 3)])
    assert selection.pairs == [Pair(0, 3), Pair(3, 6), Pair(6, 9)]
    assert [(skip.a, skip.b) for skip in selection.skipped[:3]] == [(0, 1), (0, 2), (3, 4)]


def test_a_second_turn_through_the_same_viewpoints_adds_nothing() -> None:
    poses = circle(13, 360.0)[:12]
    once, twice = select(poses), select(np.concatenate([poses, poses]))
    assert twice.is_path
    assert {frozenset((pair.a, pair.b)) for pair in twice.pairs} == {
        frozenset((pair.a, pair.b)) for pair in once.pairs
    }


def test_directions_from_one_place_are_paired_across_places() -> None:
    """Three photographs from each stand, 40 degrees apart: each finds the one of its direction."""
    stand = np.repeat(np.arange(5), 3)
    poses = np.tile(np.eye(4), (15, 1, 1))
    for index, pose in enumerate(poses):
        angle = np.radians(40.0 * (index % 3 - 1))
        pose[:3, :3] = Rotation.from_rotvec([0.0, angle, 0.0]).as_matrix()
        pose[0, 3] = 0.5 * stand[index]
    pairs = select(poses).pairs
    assert {Pair(index, index + 3) for index in range(12)} <= set(pairs)
    assert all(stand[pair.a] != stand[pair.b] for pair in pairs)


def test_a_photograph_of_another_shape_is_stepped_over_and_named() -> None:
    selection = select(circle(3, 20.0), sizes=[(40, 30), (30, 40), (40, 30)])
    assert selection.pairs == [Pair(0, 2)]
    assert reasons(selection) == ["different image shapes"]
    assert 1 in (selection.skipped[0].a, selection.skipped[0].b)
    assert selection.skipped[0].objection.detail == "width / height 0.75 and 1.33"


def test_all_of_different_shapes_are_named() -> None:
    selection = select(circle(4, 30.0), sizes=[(40, 10), (40, 20), (40, 30), (40, 40)])
    assert selection.pairs == []
    assert reasons(selection) == ["different image shapes"] * 3


def reference_pairs(poses: np.ndarray) -> tuple[list[Pair], bool]:
    """The choice among views of which any two can be a pair, written out plainly."""
    cost = pose_distances(poses, 3.0)
    every = [(i, j) for i in range(len(poses)) for j in range(i + 1, len(poses))]
    every.sort(key=lambda edge: cost[edge])
    nearest: list[tuple[int, int]] = []
    for edge in every:
        if all(sum(view in other for other in nearest) < 2 for view in edge):
            nearest.append(edge)
    path = [(index, index + 1) for index in range(len(poses) - 1)]
    usual = np.median([cost[edge] for edge in nearest])
    is_path = bool(np.mean([cost[edge] <= 3.0 * usual for edge in path]) >= 0.8)
    chosen = list(path) if is_path else sorted(nearest)
    longest = 1.5 * np.median([cost[edge] for edge in path])
    for edge in every if is_path else []:
        is_free = all(sum(view in other for other in chosen) < 3 for view in edge)
        if cost[edge] <= longest and edge not in chosen and is_free:
            chosen.append(edge)
    last = len(poses) - 1
    if is_path and last > 1:  # The frame between the last view and the first lies in this order.
        chosen = [(last, 0) if edge == (0, last) else edge for edge in chosen]
    return [Pair(*edge) for edge in chosen], is_path


@pytest.mark.parametrize("seed", range(60))
def test_where_any_two_views_can_be_a_pair_the_choice_is_the_plain_one(seed: int) -> None:
    """Arcs, circles and scattered views, in order and shuffled, with noise."""
    generator = np.random.default_rng(seed)
    count = int(generator.integers(2, 20))
    poses = circle(count + 1, float(generator.choice([30.0, 90.0, 360.0])))[:count]
    poses[:, :3, 3] += generator.choice([0.01, 0.3]) * generator.normal(size=(count, 3))
    if seed % 2:
        poses = poses[generator.permutation(count)]
    config = PairConfig(max_rotation_degrees=180.0)
    selection = select_pairs(poses, names(count), config, 3.0, sizes=[(40, 30)] * count)
    assert (selection.pairs, selection.is_path) == reference_pairs(poses)
    assert selection.skipped == []


def test_a_pose_that_is_not_finite_is_left_out_and_the_others_stay() -> None:
    poses = circle(4, 30.0)
    poses[1, 0, 3] = np.nan
    selection = select(poses)
    assert selection.pairs == [Pair(0, 2), Pair(2, 3)]
    assert reasons(selection) == ["pose is not finite"]


def test_baseline_gate() -> None:
    """At 45 degrees on a circle of radius 3 the baseline is 6 sin(22.5 deg) = 2.30."""
    poses = circle(2, 45.0)
    assert baseline_objection(poses[0], poses[1], 3.0, PairConfig()) is None
    objection = baseline_objection(poses[0], poses[1], 2.0, PairConfig())
    assert objection is not None
    assert objection.detail == "baseline 1.15 of the depth > 1"


def test_exposure_gate_compares_the_overlap_only() -> None:
    dark, bright = np.full((4, 6, 3), 0.4), np.full((4, 6, 3), 0.7)
    overlap = np.zeros((4, 6), bool)
    overlap[:, :3] = True
    objection = exposure_objection(dark, bright, overlap, PairConfig())
    assert objection is not None
    assert objection.reason == "exposure changes"
    bright[:, :3] = 0.45
    assert exposure_objection(dark, bright, overlap, PairConfig()) is None
    nothing = exposure_objection(dark, bright, np.zeros((4, 6), bool), PairConfig())
    assert nothing is not None
    assert nothing.reason == "no overlap"


def test_another_number_of_names_is_refused() -> None:
    with pytest.raises(ValueError, match="names and camera_to_worlds"):
        select(circle(3, 20.0), names(2))
