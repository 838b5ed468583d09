"""The leak check over the volumes of one frame, against comparing every voxel with every other."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataset_builder.leaks import Placed, Site, _frame_leaks, _stretches, check_leaks
from em_bench_eval.errors import InputError
from em_bench_eval.schema import FOLDS, Fold

Vector = tuple[float, float, float]
Crop = tuple[Vector, Vector, dict[int, Fold], tuple[int, int]]  # origin, voxel (nm), fold of slices, height and width

halves = st.integers(0, 24).map(lambda count: count * 4.0)
voxels = st.sampled_from([(8.0, 8.0, 8.0), (4.0, 4.0, 4.0), (20.0, 8.0, 4.0)])
folds = st.dictionaries(st.integers(0, 4), st.sampled_from(FOLDS), min_size=1, max_size=4)
placed = st.tuples(st.tuples(halves, halves, halves), voxels, folds, st.tuples(st.integers(1, 3), st.integers(1, 3)))


def rows_of(crops: list[Crop]) -> tuple[list[Placed], dict[str, Site]]:
    rows, sites = [], {}
    for number, (origin, (z_nm, y_nm, x_nm), fold_of, (height, width)) in enumerate(crops):
        rows += [Placed(f"v{number}", z, z_nm, "s", fold, "in", None) for z, fold in fold_of.items()]
        sites[f"v{number}"] = Site("cell", origin, (5 * z_nm, height * y_nm, width * x_nm))
    return rows, sites


def boxes(crop: Crop) -> list[tuple[Fold, Vector, Vector]]:
    origin, voxel, fold_of, (height, width) = crop
    found = []
    for (z, fold), y, x in itertools.product(fold_of.items(), range(height), range(width)):
        low = [o + i * nm for o, i, nm in zip(origin, (z, y, x), voxel, strict=True)]
        high = [nm + size for nm, size in zip(low, voxel, strict=True)]
        found.append((fold, (low[0], low[1], low[2]), (high[0], high[1], high[2])))
    return found


def apart(one: tuple[Fold, Vector, Vector], other: tuple[Fold, Vector, Vector]) -> tuple[float, bool]:
    sides = [max(c - b, a - d) for a, b, c, d in zip(one[1], one[2], other[1], other[2], strict=True)]
    return math.sqrt(sum(max(0.0, side) ** 2 for side in sides)), all(side < 0 for side in sides)


@settings(deadline=None, max_examples=150)
@given(st.lists(placed, min_size=2, max_size=4), st.sampled_from([0.0, 10.0, 16.0, 40.0]))
def test_the_pairs_found_are_those_with_near_voxels_of_two_folds(crops: list[Crop], gap_nm: float) -> None:
    expected: dict[tuple[str, str], float] = {}
    for (i, one), (j, other) in itertools.combinations(enumerate(crops), 2):
        for first, second in itertools.product(boxes(one), boxes(other)):
            distance, overlap = apart(first, second)
            if first[0] != second[0] and (overlap or distance < gap_nm):
                expected[f"v{i}", f"v{j}"] = min(distance, expected.get((f"v{i}", f"v{j}"), math.inf))
    rows, sites = rows_of(crops)
    found = _pairs(rows, gap_nm, sites)
    assert found.keys() == expected.keys()
    for pair, distance in expected.items():
        assert min(found[pair]) == pytest.approx(distance, rel=1e-4)


def _pairs(rows: list[Placed], gap_nm: float, sites: dict[str, Site]) -> dict[tuple[str, str], list[float]]:
    found: dict[tuple[str, str], list[float]] = {}
    for fault in _frame_leaks(_stretches(rows), gap_nm, sites):
        words = fault.split()
        one, other = sorted((words[0], words[words.index("and") + 1]))
        found.setdefault((one, other), []).append(0.0 if "overlap" in words else float(words[words.index("nm") - 1]))
    return found


def test_a_leak_says_which_slices_and_how_far() -> None:
    left: Crop = ((0.0, 0.0, 0.0), (8.0, 8.0, 8.0), {0: "train", 1: "train"}, (3, 3))
    diagonal: Crop = ((28.0, 40.0, 0.0), (4.0, 4.0, 4.0), {0: "test"}, (3, 3))  # 12 nm above, 16 nm beside
    rows, sites = rows_of([left, diagonal])
    with pytest.raises(InputError) as caught:
        check_leaks(rows, 40.0, sites, "do something")
    assert "leaks in 1 place" in str(caught.value)
    assert "v0 slices 0 to 1 (train) and v1 slice 0 (test) are 20 nm apart, not 40, in cell" in str(caught.value)
    assert "do something" in str(caught.value)
    check_leaks(rows, 20.0, sites)
    with pytest.raises(InputError, match=r"20 nm apart, not 20\.1, in cell"):
        check_leaks(rows, 20.1, sites)


def test_frames_are_compared_by_name_and_volumes_without_one_not_at_all() -> None:
    crops: list[Crop] = [((0.0, 0.0, 0.0), (8.0, 8.0, 8.0), {0: fold}, (3, 3)) for fold in FOLDS]
    rows, sites = rows_of(crops)
    with pytest.raises(InputError, match="leaks in 3 places"):
        check_leaks(rows, 40.0, sites)
    other = Site("another", sites["v1"].origin_nm, sites["v1"].size_nm)
    with pytest.raises(InputError, match=r"leaks in 1 place\b"):
        check_leaks(rows, 40.0, sites | {"v1": other})
    check_leaks(rows, 40.0, {"v0": sites["v0"]})


def test_rows_along_y_and_x_count_with_all_their_depth() -> None:
    site = {name: Site("cell", (origin, 0.0, 0.0), (800.0, 80.0, 80.0)) for name, origin in (("a", 0.0), ("b", 400.0))}
    rows = [
        Placed("a", 3, 8.0, "s", "train", "in", None, "y", (0, 50)),
        Placed("b", 9, 8.0, "s", "test", "in", None, "x", (4, 30)),
    ]
    with pytest.raises(InputError, match=r"a slices 0 to 49 \(train\) and b slices 4 to 29 \(test\) are 32 nm apart"):
        check_leaks(rows, 40.0, site)
    check_leaks(rows, 32.0, site)


def test_a_hundred_thousand_rows() -> None:
    rows, sites = [], {}
    for crop in range(250):
        name = f"crop{crop}"
        sites[name] = Site("cell", (16.0 * (crop % 50), 500.0 * (crop // 50), 0.0), (1600.0, 400.0, 400.0))
        first = 200 - 2 * (crop % 50)  # of the slices above the cut at 1600 nm and a gap of 40 nm
        rows += [Placed(name, z, 8.0, "s", "train", "in", None) for z in range(first)]
        rows += [Placed(name, z, 8.0, "s", "test", "in", None) for z in range(first + 5, 200)]
        rows += [Placed(name, y, 8.0, "s", "train", "in", None, "y", (0, first)) for y in range(200)]
    assert len(rows) > 95_000
    assert sum(map(len, _stretches(rows).values())) <= 500, "few boxes are compared, however many rows there are"
    check_leaks(rows, 40.0, sites)
    with pytest.raises(InputError, match="leaks in"):
        check_leaks(rows, 48.0, sites)
