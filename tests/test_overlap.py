"""The contingency table: equal to a dictionary of voxel sets, additive over blocks, and strict about its input."""

from __future__ import annotations

from collections import Counter

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from em_bench_eval import overlap
from em_bench_eval.errors import InputError
from em_bench_eval.label_maps import connected_pieces
from em_bench_eval.overlap import OverlapTable, contingency

Labels = npt.NDArray[np.int64]
Item = tuple[Labels, Labels, npt.NDArray[np.bool_]]

SHAPES = st.one_of(
    st.tuples(st.integers(0, 7), st.integers(0, 7)),
    st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 5)),
)


@st.composite
def items(draw: st.DrawFn) -> Item:
    """A reference, a prediction and an ignore mask of one shape, with few ids so that overlaps are common."""
    shape = draw(SHAPES)
    ids = st.sampled_from([0, 0, 1, 2, 3, 70_000, 2**33, 2**62 + 1])
    reference, prediction = (draw(hnp.arrays(np.int64, shape, elements=ids)) for _ in range(2))
    return reference, prediction, draw(hnp.arrays(np.bool_, shape))


def twin(reference: Labels, prediction: Labels, ignore: npt.NDArray[np.bool_]) -> dict[str, dict[object, int]]:
    """Every voxel looked at, one by one."""
    counts: dict[str, Counter[object]] = {name: Counter() for name in ("r", "r_ignored", "p", "p_ignored", "pairs")}
    for r, p, hidden in zip(reference.flat, prediction.flat, ignore.flat, strict=True):
        for side, id_ in (("r", int(r)), ("p", int(p))):
            if id_:
                counts[side][id_] += not hidden
                counts[f"{side}_ignored"][id_] += bool(hidden)
        if r and p and not hidden:
            counts["pairs"][int(r), int(p)] += 1
    return {name: dict(counter) for name, counter in counts.items()}


def as_dicts(table: OverlapTable) -> dict[str, dict[object, int]]:
    reference, prediction = table.reference_ids.tolist(), table.prediction_ids.tolist()
    pairs = zip(table.pair_reference.tolist(), table.pair_prediction.tolist(), strict=True)
    return {
        "r": dict(zip(reference, table.reference_voxels.tolist(), strict=True)),
        "r_ignored": dict(zip(reference, table.reference_ignored.tolist(), strict=True)),
        "p": dict(zip(prediction, table.prediction_voxels.tolist(), strict=True)),
        "p_ignored": dict(zip(prediction, table.prediction_ignored.tolist(), strict=True)),
        "pairs": {
            (reference[r], prediction[p]): n for (r, p), n in zip(pairs, table.pair_voxels.tolist(), strict=True)
        },
    }


def same(first: OverlapTable, second: OverlapTable) -> bool:
    return all(
        np.array_equal(value, vars(second)[name]) and value.dtype == vars(second)[name].dtype
        for name, value in vars(first).items()
    )


@given(items())
def test_table_equals_the_voxel_by_voxel_twin(item: Item) -> None:
    assert as_dicts(contingency(*item)) == twin(*item)


@given(items())
def test_ids_and_pairs_ascend(item: Item) -> None:
    table = contingency(*item)
    assert table.reference_ids.tolist() == sorted(set(table.reference_ids.tolist()))
    pairs = list(zip(table.pair_reference.tolist(), table.pair_prediction.tolist(), strict=True))
    assert pairs == sorted(set(pairs))


@given(items(), st.integers(1, 9))
def test_chunks_do_not_show(item: Item, chunk: int) -> None:
    whole = contingency(*item)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(overlap, "_CHUNK_VOXELS", chunk)
        assert same(contingency(*item), whole)


@given(items(), st.integers(0, 2), st.integers(0, 7))
def test_tables_of_disjoint_blocks_add_up(item: Item, axis: int, cut: int) -> None:
    axis = min(axis, item[0].ndim - 1)
    blocks = list(zip(*(np.split(array, [cut], axis=axis) for array in item), strict=True))
    first, second = (contingency(*block) for block in blocks)
    assert same(first.merge(second), contingency(*item))
    assert same(second.merge(first), contingency(*item))


@given(items())
def test_a_mask_of_nothing_is_no_mask(item: Item) -> None:
    reference, prediction, _ = item
    nothing = np.zeros(reference.shape, bool)
    assert same(contingency(reference, prediction), contingency(reference, prediction, nothing))


@given(items())
def test_select_keeps_sizes_whole(item: Item) -> None:
    table = contingency(*item)
    kept = table.select(table.reference_ids % np.uint64(2) == 1, table.prediction_ids > 2)
    expected = twin(*item)
    assert as_dicts(kept)["r"] == {id_: n for id_, n in expected["r"].items() if int(str(id_)) % 2 == 1}
    assert as_dicts(kept)["pairs"] == {k: n for k, n in expected["pairs"].items() if k[0] % 2 == 1 and k[1] > 2}  # type: ignore[index]


def test_layout_and_dtype_do_not_matter() -> None:
    reference = np.arange(24, dtype=np.uint8).reshape(4, 6) // 5
    prediction = np.arange(24).reshape(4, 6) % 4
    table = contingency(reference, prediction)
    assert same(contingency(np.asfortranarray(reference), prediction.astype(np.uint16)), table)
    assert same(contingency(reference.tolist(), prediction.astype(">i4")), table)


def test_ids_up_to_the_last_unsigned_64_bit_number() -> None:
    last = 2**64 - 1
    reference = np.array([[last, last, 0, 5]], np.uint64)
    table = contingency(reference, np.array([[1, 0, 0, last - 1]], np.uint64))
    assert table.reference_ids.tolist() == [5, last]
    assert as_dicts(table)["pairs"] == {(last, 1): 1, (5, last - 1): 1}


@pytest.mark.parametrize(
    ("bad", "names"),
    [
        (np.zeros((2, 2)), "float64"),
        (np.full((2, 2), np.nan, np.float32), "float32"),
        (np.zeros((2, 2), bool), "bool"),
        (np.array([["1", "2"]]), "<U1"),
        (np.array([[1, -1], [0, 2]]), "-1"),
        (np.zeros((2, 2, 2, 2), int), "(2, 2, 2, 2)"),
        (np.zeros(4, int), "(4,)"),
    ],
)
@pytest.mark.parametrize("side", ["reference", "prediction"])
def test_what_is_no_label_map_is_refused(bad: np.ndarray, names: str, side: str) -> None:
    maps = {"reference": np.ones((2, 2), int), "prediction": np.ones((2, 2), int), side: bad}
    with pytest.raises(InputError) as error:
        contingency(maps["reference"], maps["prediction"])
    assert side in str(error.value)
    assert names in str(error.value)


def test_other_shapes_are_refused() -> None:
    with pytest.raises(InputError, match="differ in shape"):
        contingency(np.ones((2, 3), int), np.ones((3, 2), int))
    with pytest.raises(InputError, match="ignore and reference differ"):
        contingency(np.ones((2, 3), int), np.ones((2, 3), int), np.ones((1, 3), bool))


@given(hnp.arrays(np.int64, st.tuples(st.integers(0, 6), st.integers(0, 6)), elements=st.sampled_from([0, 1, 2, 9])))
def test_pieces_equal_a_flood_fill(labels: Labels) -> None:
    pieces, parents = connected_pieces(labels)
    assert np.array_equal(np.concatenate([[0], parents.astype(np.int64)])[pieces], labels)
    flooded = _flood_fill(labels)
    joint = set(zip(pieces.ravel().tolist(), flooded.ravel().tolist(), strict=True))
    assert len(joint) == len({a for a, _ in joint}) == len({b for _, b in joint})  # the same partition
    assert sorted(set(pieces[pieces > 0].tolist())) == list(range(1, len(parents) + 1))


def _flood_fill(labels: Labels) -> Labels:
    pieces = np.zeros(labels.shape, np.int64)
    for start in zip(*np.nonzero(labels), strict=True):
        if pieces[start]:
            continue
        number, stack = int(pieces.max()) + 1, [start]
        while stack:
            y, x = stack.pop()
            inside = 0 <= y < labels.shape[0] and 0 <= x < labels.shape[1]
            if inside and not pieces[y, x] and labels[y, x] == labels[start]:
                pieces[y, x] = number
                stack += [(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
    return pieces
