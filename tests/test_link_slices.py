from __future__ import annotations

import itertools

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from scipy import ndimage

from baselines.aggregation.link_slices import SliceLinker, SliceRule, link_slices, union
from em_bench_eval.errors import InputError
from lpa import label

CLASSES = hnp.arrays(np.uint8, st.tuples(*[st.integers(1, 5)] * 3), elements=st.sampled_from([0, 0, 1, 3]))


def planes(classes: np.ndarray, connectivity: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Pieces of each slice, and the class of each piece."""
    found = []
    for plane in classes:
        pieces = label(plane, connectivity, "compact")
        kinds = np.zeros(int(pieces.max()) + 1, np.uint8)
        kinds[pieces] = plane
        found.append((pieces, kinds))
    return found


def twin(slices: list[tuple[np.ndarray, np.ndarray]], min_inclusion: float) -> np.ndarray:
    """Every pair of pieces is looked at; sets are merged until nothing changes."""
    pieces = [(z, id_) for z, (labels, _) in enumerate(slices) for id_ in range(1, int(labels.max()) + 1)]
    sets = [{piece} for piece in pieces]
    for (z, a), (other, b) in itertools.combinations(pieces, 2):
        if other != z + 1 or slices[z][1][a] != slices[other][1][b]:
            continue
        one, two = slices[z][0] == a, slices[other][0] == b
        common = (one & two).sum()
        if common >= 1 and common >= min_inclusion * min(one.sum(), two.sum()):
            first = next(group for group in sets if (z, a) in group)
            second = next(group for group in sets if (other, b) in group)
            if first is not second:
                sets.remove(second)
                first |= second
    sets.sort(key=min)
    result = np.zeros((len(slices), *slices[0][0].shape), np.int64)
    for number, group in enumerate(sets, 1):
        for z, id_ in group:
            result[z][slices[z][0] == id_] = number
    return result


@given(CLASSES, st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]))
@settings(max_examples=80)
def test_links_are_those_of_the_slow_twin(classes: np.ndarray, min_inclusion: float) -> None:
    slices = planes(classes, 26)
    found = np.stack(list(link_slices(slices, SliceRule(min_inclusion))))
    np.testing.assert_array_equal(found, twin(slices, min_inclusion))


@given(CLASSES)
@settings(max_examples=60)
def test_any_common_pixel_gives_the_six_connected_components(classes: np.ndarray) -> None:
    linked = np.stack(list(link_slices(planes(classes, 6), SliceRule(0.0))))
    np.testing.assert_array_equal(linked, label(classes, 6, "compact"))


@given(st.integers(1, 12).flatmap(lambda n: st.tuples(st.just(n), st.lists(st.tuples(*[st.integers(0, n - 1)] * 2)))))
def test_union_names_each_set_by_its_smallest_number(case: tuple[int, list[tuple[int, int]]]) -> None:
    count, links = case
    grid = np.eye(count, dtype=bool)
    for a, b in links:
        grid[a, b] = grid[b, a] = True
    for _ in range(count):
        grid = (grid.astype(int) @ grid.astype(int)) > 0
    expected = [int(np.flatnonzero(row)[0]) for row in grid]
    assert union(count, np.array(links, np.int64).reshape(-1, 2)).tolist() == expected


def test_branches_that_meet_again_are_one_instance_and_other_classes_stay_apart() -> None:
    ring = np.zeros((4, 5, 7), np.uint8)
    ring[0, 2, 1:6] = ring[3, 2, 1:6] = 1
    ring[1:3, 2, 1] = ring[1:3, 2, 5] = 1
    ring[3, 3, 3] = 3  # another organelle, below the ring
    ring[2, 3, 3] = 3
    linked = np.stack(list(link_slices(planes(ring, 6))))
    assert set(linked[ring == 1]) == {1}
    assert set(linked[ring == 3]) == {2}


def test_a_share_of_the_smaller_piece_decides() -> None:
    slices = np.zeros((2, 1, 12), np.uint8)
    slices[0, 0, :8] = 1
    slices[1, 0, 7:11] = 1  # one pixel of four in common
    assert np.stack(list(link_slices(planes(slices, 6), SliceRule(0.25)))).max() == 1
    assert np.stack(list(link_slices(planes(slices, 6), SliceRule(0.26)))).max() == 2


def test_empty_slices_part_instances() -> None:
    slices = np.zeros((3, 4, 4), np.uint8)
    slices[0, 1, 1] = slices[2, 1, 1] = 1
    linked = list(link_slices(planes(slices, 6)))
    assert [int(plane.max()) for plane in linked] == [1, 0, 2]
    assert SliceLinker().finish() == []


def test_linking_bodies_follows_them_through_oblique_slices() -> None:
    """A tube that moves two pixels a slice: its slices overlap, so it stays one."""
    tube = np.zeros((10, 12, 40), np.uint8)
    for z in range(10):
        tube[z, 4:8, 2 + 2 * z : 8 + 2 * z] = 1
    assert int(np.stack(list(link_slices(planes(tube, 26)))).max()) == 1
    assert ndimage.label(tube)[1] == 1


@pytest.mark.parametrize("share", [-0.1, 1.5])
def test_a_rule_that_is_no_share_is_refused(share: float) -> None:
    with pytest.raises(InputError, match="min_inclusion"):
        SliceRule(share)
