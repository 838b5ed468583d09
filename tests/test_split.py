"""Splitting of touching instances: drawn bodies with known necks, slow twins of the sheet rule, ids and decisions."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from em_bench_eval.errors import InputError
from em_bench_eval.schema import Organelle, VoxelSize
from lpa.fragments import fragment, weakest_neck
from lpa.split import DEFAULT_RULES, SHEETS, split
from lpa.split_rules import NeckRule, SheetRule, merge_by_average, sheet_normals

RULE = NeckRule(max_neck_ratio=0.6, min_persistence_nm=40)


def ball(shape, centre_nm, radius_nm, voxel_nm):
    grid = [(np.arange(size) + 0.5) * edge for size, edge in zip(shape, voxel_nm, strict=True)]
    z, y, x = np.meshgrid(*grid, indexing="ij")
    return (z - centre_nm[0]) ** 2 + (y - centre_nm[1]) ** 2 + (x - centre_nm[2]) ** 2 <= radius_nm**2


def two_balls(voxel_nm, distance_nm):
    """Two balls of 200 nm radius on the x axis in a box of 560 x 560 x 1040 nm."""
    shape = tuple(round(size / edge) for size, edge in zip((560, 560, 1040), voxel_nm, strict=True))
    middle = 520
    return [ball(shape, (280, 280, middle + side * distance_nm / 2), 200, voxel_nm) for side in (-1, 1)]


@pytest.mark.parametrize("voxel_nm", [(10, 10, 10), (40, 10, 10), (10, 20, 40)])
def test_two_touching_balls_are_cut_in_the_middle_at_every_anisotropy(voxel_nm):
    left, right = two_balls(voxel_nm, distance_nm=370)
    body = (left | right).astype(np.uint32) * 7
    parts, decisions = split(body, {7: "mito"}, VoxelSize(*voxel_nm), {"mito": RULE})
    assert set(np.unique(parts)) == {0, 7, 8}
    assert ((parts > 0) == (body > 0)).all()
    sizes = sorted(np.bincount(parts.ravel())[7:])
    assert sizes[0] / sizes[1] > 0.9
    own = max((parts[left & ~right] == value).mean() for value in (7, 8))
    assert own > 0.97
    (decision,) = decisions
    assert (decision.parent_id, decision.child_ids, decision.is_split) == (7, (7, 8), True)
    # two balls of radius 200 at 370: the neck's radius is sqrt(200^2 - 185^2) = 76 nm; depths are known to a voxel
    assert decision.neck_ratio == pytest.approx(76 / 200, abs=max(voxel_nm) / 200)
    assert decision.persistence_nm == pytest.approx(200 - 76, abs=2 * max(voxel_nm))
    assert decision.volume_nm3 == pytest.approx(np.count_nonzero(body) * np.prod(voxel_nm))
    assert sum(decision.child_volumes_nm3) == pytest.approx(decision.volume_nm3)


def test_a_wide_contact_is_kept_and_reported():
    left, right = two_balls((10, 10, 10), distance_nm=200)  # neck radius 173 nm
    body = (left | right).astype(np.uint8)
    parts, (decision,) = split(body, {1: Organelle.MITO}, (10, 10, 10), {"mito": RULE})
    assert np.array_equal(parts, body)
    assert (decision.is_split, decision.child_ids) == (False, (1,))
    assert decision.neck_ratio == pytest.approx(0.865, abs=0.1)


def test_persistence_is_physical():
    left, right = two_balls((10, 10, 10), distance_nm=370)
    body = (left | right).astype(np.uint32)
    for scale, expected in ((1.0, 2), (0.1, 1)):  # the same picture at a tenth of the voxel size is ten times smaller
        parts, _ = split(body, {1: "mito"}, (10 * scale,) * 3, {"mito": RULE})
        assert parts.max() == expected


def test_parts_below_the_minimum_volume_are_not_cut_off():
    left, right = two_balls((10, 10, 10), distance_nm=370)
    body = (left | right).astype(np.uint32)
    one_ball = 4 / 3 * np.pi * 200**3
    parts, _ = split(body, {1: "mito"}, (10, 10, 10), {"mito": NeckRule(0.6, 40, min_volume_nm3=1.2 * one_ball)})
    assert parts.max() == 1


def test_ids_follow_the_first_voxel_and_grow_the_dtype():
    voxel = (10, 10, 10)
    left, right = two_balls(voxel, distance_nm=370)
    pair = np.maximum(left, right)
    body = np.concatenate([pair * 255, pair * 1], axis=1).astype(np.uint8)  # in raster order 255 comes first
    parts, decisions = split(body, {255: "mito", 1: "mito"}, voxel, {"mito": RULE})
    assert parts.dtype == np.uint32
    assert [decision.parent_id for decision in decisions] == [1, 255]
    for decision in decisions:
        inside = body == decision.parent_id
        first = [np.flatnonzero(parts.ravel() == child)[0] for child in decision.child_ids]
        assert first == sorted(first)
        assert first[0] == np.flatnonzero(inside.ravel())[0]
        assert set(np.unique(parts[inside])) == set(decision.child_ids)
    new = sorted(child for decision in decisions for child in decision.child_ids[1:])
    assert new == [256, 257]
    assert [np.flatnonzero(parts.ravel() == child)[0] for child in new] == sorted(
        np.flatnonzero(parts.ravel() == child)[0] for child in new
    )


def stack_of_discs():
    """Three discs, 4 voxels thick, one voxel apart, bridged at two spots: one 6-connected component."""
    body = np.zeros((24, 60, 60), np.uint32)
    y, x = np.mgrid[:60, :60]
    truth = np.zeros_like(body)
    for index, z in enumerate((4, 9, 14), start=1):
        truth[z : z + 4, (y - 30) ** 2 + (x - 30) ** 2 <= 24**2] = index
    body[truth > 0] = 1
    body[8, 28:33, 20:25] = 1
    body[13, 40:44, 30:34] = 1
    return body, truth


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_stacked_discs_come_apart_by_visibility(axis):
    body, truth = (np.ascontiguousarray(np.moveaxis(array, 0, axis)) for array in stack_of_discs())
    parts, (decision,) = split(body, {1: "endo"}, (16, 16, 16), {"endo": SHEETS})
    assert len(decision.child_ids) == 3
    for index in (1, 2, 3):
        inside = truth == index
        best = max((parts[inside] == child).mean() for child in decision.child_ids)
        assert best > 0.98


def test_a_bent_sheet_stays_whole():
    z, y, x = np.mgrid[:40, :40, :40]
    radius = np.hypot(z - 2, y - 2)
    body = ((radius >= 26) & (radius < 30) & (x > 3) & (x < 36)).astype(np.uint32)  # a quarter of a pipe
    parts, _ = split(body, {1: "endo"}, (16, 16, 16), {"endo": SHEETS})
    assert parts.max() == 1


def test_only_named_organelles_are_split_and_networks_never():
    left, right = two_balls((10, 10, 10), distance_nm=370)
    body = (left | right).astype(np.uint32)
    parts, decisions = split(body, {1: "er"}, (10, 10, 10))
    assert np.array_equal(parts, body)
    assert decisions == []
    assert set(DEFAULT_RULES) == {"mito", "nucleus", "endo"}
    for name in ("er", "golgi"):
        with pytest.raises(InputError, match="network organelles are never split"):
            split(body, {1: name}, (10, 10, 10), {name: RULE})
    with pytest.raises(InputError, match="did you mean 'mito'"):
        split(body, {1: "mito"}, (10, 10, 10), {"mitos": RULE})
    with pytest.raises(InputError, match="no organelle"):
        split(body, {2: "mito"}, (10, 10, 10))
    with pytest.raises(InputError, match="integers"):
        split(body.astype(float), {1: "mito"}, (10, 10, 10))
    with pytest.raises(InputError, match="voxel size"):
        split(body, {1: "mito"}, (10, 10))


def test_empty_and_full_volumes():
    empty = np.zeros((3, 4, 5), np.uint16)
    parts, decisions = split(empty, {}, (10, 10, 10))
    assert np.array_equal(parts, empty)
    assert decisions == []
    full = np.ones((3, 4, 5), np.uint16)
    assert np.array_equal(split(full, {1: "mito"}, (10, 10, 10))[0], full)


def test_corner_contact_is_a_neck_of_width_zero():
    body = np.zeros((12, 12, 12), np.uint8)
    body[1:6, 1:6, 1:6] = 1
    body[6:11, 6:11, 6:11] = 1
    neck = weakest_neck(fragment(body > 0, (10, 10, 10)))
    assert (neck.ratio, neck.persistence_nm) == (0, 30)
    assert split(body, {1: "mito"}, (10, 10, 10), {"mito": RULE})[0].max() == 2


@settings(max_examples=25, deadline=None)
@given(
    hnp.arrays(np.uint8, hnp.array_shapes(min_dims=3, max_dims=3, min_side=1, max_side=7), elements=st.integers(0, 2))
)
def test_split_refines_and_is_deterministic(body):
    organelle_of = {1: "mito", 2: "endo"}
    rules = {"mito": NeckRule(0.9, 1), "endo": SheetRule(reach_nm=40, normal_scale_nm=15, min_affinity=0.5)}
    parts, decisions = split(body, organelle_of, (20, 10, 10), rules)
    again, decisions_again = split(np.asfortranarray(body), organelle_of, (20, 10, 10), rules)
    assert np.array_equal(parts, again)
    assert decisions == decisions_again
    parent = {child: decision.parent_id for decision in decisions for child in decision.child_ids}
    for value in np.unique(parts):
        assert set(np.unique(body[parts == value])) == {parent.get(int(value), int(value))}


def test_a_voxel_that_hangs_on_by_a_corner_is_kept():
    body = np.array(
        [[[1, 0, 1, 0, 1], [1, 1, 0, 1, 1], [1, 1, 1, 1, 1]], [[1, 1, 0, 1, 1], [1] * 5, [1] * 5]], np.uint8
    )
    parts, _ = split(body, {1: "mito"}, (20, 10, 10), {"mito": NeckRule(0.9, 1)})
    assert np.array_equal(parts > 0, body > 0)


def test_every_child_is_one_body():
    body, _ = stack_of_discs()
    body = np.concatenate([body[:, :, :54], body[:, :, 53::-1]], axis=2)  # two stacks that touch rim to rim
    assert ndimage.label(body)[1] == 1
    parts, (decision,) = split(body, {1: "endo"}, (16, 16, 16), {"endo": SHEETS})
    assert len(decision.child_ids) >= 3
    for child in decision.child_ids:
        assert ndimage.label(parts == child)[1] == 1


def slow_visibility(basin, voxel_nm, rule):
    """Every pair of voxels, every voxel between them, one at a time."""
    mask = basin > 0
    voxels = [tuple(map(int, voxel)) for voxel in np.argwhere(mask)]
    normal = dict(zip(voxels, sheet_normals(mask, voxel_nm, rule.normal_scale_nm), strict=True))
    sums: dict[tuple[int, int], list[float]] = {}
    for p, q in itertools.combinations(voxels, 2):
        step = np.subtract(q, p)
        steps = int(np.abs(step).max())
        straight = all(abs(s) in (0, steps) for s in step.tolist())
        length = float(np.linalg.norm(step * np.array(voxel_nm)))
        a, b = sorted((int(basin[p]), int(basin[q])))
        if not straight or a == b or length > rule.reach_nm + 1e-6:
            continue
        between = [tuple((np.array(p) + step // steps * k).tolist()) for k in range(1, steps)]
        across = max(float(normal[end] @ (step * np.array(voxel_nm) / length)) ** 2 for end in (p, q))
        entry = sums.setdefault((a - 1, b - 1), [0.0, 0.0])
        entry[0] += (1 - across) if all(mask[voxel] for voxel in between) else 0.0
        entry[1] += 1
    return sums


@settings(max_examples=20, deadline=None)
@given(
    hnp.arrays(bool, hnp.array_shapes(min_dims=3, max_dims=3, min_side=2, max_side=5)),
    st.sampled_from([(10.0, 10.0, 10.0), (25.0, 10.0, 8.0)]),
    st.sampled_from([10.0, 27.0, 45.0]),
)
def test_visibility_equals_its_slow_twin(mask, voxel_nm, reach_nm):
    if not mask.any():
        return
    rule = SheetRule(reach_nm=reach_nm, normal_scale_nm=12, min_affinity=0.5)
    fragments = fragment(mask, voxel_nm)
    pairs, sums, counts = rule.visibility(fragments, voxel_nm)
    expected = slow_visibility(fragments.basin, voxel_nm, rule)
    found = {tuple(pair): value for pair, value in zip(pairs.tolist(), zip(sums, counts, strict=True), strict=True)}
    assert found.keys() == expected.keys()
    for pair, value in expected.items():
        assert found[pair] == pytest.approx(value, abs=1e-4)


def slow_merge(count, edges, minimum):
    """Recompute the average between every two groups before every merge."""
    groups = [{node} for node in range(count)]
    while True:
        best = None
        for a, b in itertools.combinations(range(len(groups)), 2):
            between = [
                w
                for (i, j), w in edges.items()
                if (i in groups[a]) != (j in groups[a]) and {i, j} <= groups[a] | groups[b]
            ]
            if not between:
                continue
            average = sum(total for total, _ in between) / sum(weight for _, weight in between)
            key = (average, -min(groups[a] | groups[b]))
            if average >= minimum and (best is None or key > best[0]):
                best = (key, a, b)
        if best is None:
            return sorted(sorted(group) for group in groups)
        _, a, b = best
        groups[a] |= groups.pop(b)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_average_linkage_equals_its_slow_twin(data):
    count = data.draw(st.integers(1, 7))
    possible = list(itertools.combinations(range(count), 2))
    chosen = data.draw(st.lists(st.sampled_from(possible), unique=True)) if possible else []
    # distinct powers: no two averages are ever equal, so that the order of merging is defined
    rng = np.random.default_rng(data.draw(st.integers(0, 10**6)))
    edges = {
        pair: (float(total), 1.0 + int(weight))
        for pair, total, weight in zip(
            sorted(chosen), rng.random(len(chosen)) * 3, rng.integers(0, 3, len(chosen)), strict=True
        )
    }
    pairs = np.array(sorted(edges), np.int64).reshape(-1, 2)
    sums, weights = (np.array([edges[tuple(pair)][k] for pair in pairs.tolist()]) for k in (0, 1))
    names = merge_by_average(count, pairs, sums, weights, 0.7).names()
    found = sorted(sorted(np.flatnonzero(names == name).tolist()) for name in np.unique(names))
    assert found == slow_merge(count, edges, 0.7)
