# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from ps4pro_nerfstudio.dataparsers.view_selection import (
    OwnSplit,
    Split,
    SplitOptions,
    choose_split,
    farthest_points,
    linspaced,
    natural_key,
)
from ps4pro_nerfstudio.messages import InputError

NAMES = [f"images/{index}.png" for index in range(20)]


def _poses(count: int = 20, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    rotations = Rotation.from_rotvec(2 * rng.normal(size=(count, 3))).as_matrix()
    return np.concatenate([rotations, rng.normal(size=(count, 3, 1))], axis=2)


def _split(names=NAMES, own=None, data=None, **options):
    arguments = {} if data is None else {"data": data}
    return choose_split(names, _poses(len(names)), SplitOptions(**options), own, **arguments)


def test_numbers_in_names_sort_by_value():
    names = ["b/1.png", "a/10.png", "a/2.png", "a/x.png", "a/²2.png", "02.png", "2.png"]
    ordered = sorted(names, key=natural_key)
    assert ordered == ["02.png", "2.png", "a/2.png", "a/10.png", "a/x.png", "a/²2.png", "b/1.png"]


def test_the_llff_protocol_by_hand():
    """20 photos: 0, 8, 16 test; of the 17 others the places 0, 3.2, 6.4, 9.6, 12.8, 16 train."""
    split = _split(views=6)
    assert split.test == [0, 8, 16]
    assert split.train == [1, 4, 7, 12, 15, 19]
    assert split.is_subset


def test_all_other_photos_train_by_default():
    split = _split(test_every=5)
    assert split.test == [0, 5, 10, 15]
    assert sorted(split.train + split.test) == list(range(20))
    assert not split.is_subset
    assert not _split(views=17).is_subset


def test_every_kth_photo_trains_and_all_others_test():
    split = _split(every=6)
    assert split.train == [0, 6, 12, 18]
    assert split.test == [i for i in range(20) if i % 6]
    assert split.is_subset
    assert _split(every=6, views=4) == split
    assert _split(every=6, test_cap=4).test == [1, 7, 13, 19]


@given(st.integers(1, 60), st.integers(1, 60))
def test_linspaced_is_spread_and_has_both_ends(length, count):
    items = list(range(100, 100 + length))
    chosen = linspaced(items, count)
    assert len(chosen) == min(length, count)
    assert chosen == sorted(set(chosen))
    if count > 1:
        assert chosen[0] == items[0]
        assert chosen[-1] == items[-1]
        gaps = np.diff(chosen)
        assert len(gaps) == 0 or gaps.max() - gaps.min() <= 2


def test_farthest_points_on_a_line_by_hand():
    """Centres 0..8 with one direction: the middle first, then the ends, then a quarter each."""
    poses = np.tile(np.eye(4)[:3], (9, 1, 1))
    poses[:, 0, 3] = np.arange(9)
    assert farthest_points(poses, 5) == [4, 0, 8, 2, 6]


def test_farthest_points_sees_directions_where_centres_agree():
    poses = np.tile(np.eye(4)[:3], (6, 1, 1))
    poses[4, :, :3] = Rotation.from_euler("y", 90, degrees=True).as_matrix()
    assert farthest_points(poses, 2) == [0, 4]


@pytest.mark.parametrize("seed", range(5))
def test_farthest_points_ignores_where_the_capture_stands(seed):
    poses = _poses(15, seed)
    turn = Rotation.from_rotvec([0.3 * seed, 1.0, -2.0]).as_matrix()
    moved = np.einsum("ij,njk->nik", turn, poses)
    moved[:, :, 3] = 7.0 * moved[:, :, 3] + [3.0, -8.0, 100.0]
    chosen = farthest_points(poses, 6)
    assert len(set(chosen)) == 6
    assert farthest_points(moved, 6) == chosen


def test_farthest_points_beats_chance():
    """Its smallest distance between two chosen views is above that of random choices."""
    poses = _poses(40, 3)
    centres = poses[:, :, 3]

    def spread(views):
        distances = np.linalg.norm(centres[views][:, None] - centres[views], axis=-1)
        angles = np.arccos(np.clip(poses[views, :, 2] @ poses[views, :, 2].T, -1, 1))
        return (distances + angles)[np.triu_indices(len(views), 1)].min()

    rng = np.random.default_rng(0)
    chance = [spread(rng.choice(40, 6, replace=False)) for _ in range(200)]
    assert spread(farthest_points(poses, 6)) >= np.quantile(chance, 0.99)


def test_test_views_do_not_influence_what_trains():
    options = SplitOptions(views=6, selection="farthest-point")
    poses = _poses()
    before = choose_split(NAMES, poses, options)
    poses[before.test] = _poses(20, 5)[before.test] * 50
    assert choose_split(NAMES, poses, options).train == before.train


def test_lists(tmp_path):
    (tmp_path / "train.txt").write_text("# chosen by hand\n3.png\nimages/1.png\n\n3.png\n")
    (tmp_path / "test.txt").write_text("images/7.png\n")
    lists = {"train_list": tmp_path / "train.txt", "selection": "list"}
    split = _split(**lists, test_list=tmp_path / "test.txt")
    assert (split.train, split.test, split.is_subset) == ([1, 3], [7], True)
    alone = _split(**lists)
    assert alone.test == [i for i in range(20) if i not in (1, 3)]
    only_test = _split(test_list=tmp_path / "test.txt", views=3)
    assert only_test.train == [0, 10, 19]
    assert only_test.test == [7]
    # A list that is not found as given is looked for in the capture.
    assert _split(test_list=Path("test.txt"), data=tmp_path).test == [7]


def test_a_capture_keeps_its_own_test_views():
    own = OwnSplit(train=[2, 3, 4, 5, 9, 10], test=[0, 1])
    assert _split(own=own).train == own.train
    assert _split(own=own).test == own.test
    assert _split(own=own, views=3).train == [2, 4, 10]  # places 0, 2.5, 5; halves go to even
    assert not _split(own=own).is_subset
    every = _split(own=own, every=3)
    assert (every.train, every.test) == ([2, 5], [0, 1])


def test_the_advice_about_too_many_views_is_what_can_work(tmp_path):
    own = OwnSplit(train=[2, 3, 4, 5, 9, 10], test=[0, 1])
    (tmp_path / "test.txt").write_text("2.png\n3.png\n")
    listed = {"test_list": tmp_path / "test.txt"}
    for options in ({"own": own, "views": 9}, {"own": own, "views": 7, **listed}):
        with pytest.raises(InputError, match="only 6 training photos; ask for that many") as raised:
            _split(**options)
        assert "hold" not in str(raised.value)
    with pytest.raises(InputError, match=r"only 4 photos .*hold out fewer \(--test-list\)"):
        _split(own=own, views=5, **listed)
    with pytest.raises(InputError, match=r"hold out fewer \(--test-every\)"):
        _split(views=18)


def _lists(folder, train, test):
    (folder / "a.txt").write_text(train)
    (folder / "b.txt").write_text(test)
    return {"selection": "list", "train_list": folder / "a.txt", "test_list": folder / "b.txt"}


def test_lists_that_cannot_be_used_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"b\.txt names 99\.png, which is no photo"):
        _split(**_lists(tmp_path, "1.png\n2.png", "99.png"))
    with pytest.raises(InputError, match=r"images/2\.png stands in both .*a\.txt and .*b\.txt"):
        _split(**_lists(tmp_path, "1.png\n2.png", "2.png"))
    with pytest.raises(InputError, match="no test view is left"):
        _split(**_lists(tmp_path, "1.png\n2.png", "\n"))
    with pytest.raises(InputError, match=r"1 training view.*at least two"):
        _split(**_lists(tmp_path, "1.png", "2.png"))
    with pytest.raises(InputError, match="--views 5 contradicts --train-list, which gives 2"):
        _split(views=5, **_lists(tmp_path, "1.png\n2.png", "3.png"))
    with pytest.raises(InputError, match=r"missing\.txt cannot be read"):
        _split(test_list=tmp_path / "missing.txt")
    same_names = ["a/0.png", "b/0.png", "c/1.png"]
    with pytest.raises(InputError, match=r"0\.png, which may be a/0\.png or b/0\.png"):
        _split(same_names, **_lists(tmp_path, "0.png", "b/0.png"))
    split = _split(same_names, **_lists(tmp_path, "a/0.png\n1.png", "b/0.png"))
    assert (split.train, split.test) == ([0, 2], [1])


@pytest.mark.parametrize(
    "options, message",
    [
        ({"views": 18}, "only 17 photos are not held out"),
        ({"views": 1}, "--views 1: at least 2"),
        ({"every": 1}, "--every 1: at least 2"),
        ({"test_every": 1}, "--test-every 1: at least 2"),
        ({"test_cap": 0}, "--test-cap 0: at least 1"),
        ({"every": 4, "views": 6}, "contradicts --every, which gives 5"),
        ({"every": 20}, r"1 training view"),
        ({"every": 4, "selection": "farthest-point"}, "leave out --selection"),
        ({"selection": "list"}, "--train-list FILE belong together"),
    ],
)
def test_options_that_contradict_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        _split(**options)


def test_too_few_photos_are_refused():
    with pytest.raises(InputError, match="1 training view"):
        _split(NAMES[:2])


def test_views_between_are_the_middle_ones_that_nobody_uses():
    """Gaps 0-4 and 4-8; 2 is a test view, so 1 or 3 stands in, and 6 is the middle of the other."""
    split = Split(train=[0, 4, 8, 9], test=[2, 7], is_subset=True)
    assert split.between() == [1, 6]
    assert Split(train=[0, 1, 2], test=[3], is_subset=False).between() == []
