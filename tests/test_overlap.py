"""The contingency table: equal to a dictionary of voxel sets, additive over blocks, and strict about its input."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from em_bench_eval import overlap
from em_bench_eval.errors import InputError
from em_bench_eval.label_maps import connected_pieces
from em_bench_eval.matching import best_matching, iou
from em_bench_eval.overlap import OverlapTable, contingency
from em_bench_eval.overlap_compiled import kernels

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


COUNTERS = ["numpy", "compiled"]


@contextmanager
def counted_by(counter: str, piece_voxels: int = overlap.PIECE_VOXELS) -> Iterator[None]:
    """Let numpy, or the compiled code, count volumes of every size."""
    if counter == "compiled":
        pytest.importorskip("numba")
        assert kernels(np.dtype("u4")) is not None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(overlap, "COMPILED_FROM_VOXELS", 0 if counter == "compiled" else 2**62)
        patch.setattr(overlap, "PIECE_VOXELS", piece_voxels)
        yield


LAYOUTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "C": np.ascontiguousarray,
    "Fortran": np.asfortranarray,
    "reversed": lambda a: np.ascontiguousarray(a[::-1])[::-1],
    "every second": lambda a: np.repeat(a, 2, axis=-1)[..., ::2],
    "read-only": lambda a: np.frombuffer(a.tobytes(), a.dtype).reshape(a.shape),
    "unaligned": lambda a: np.frombuffer(b"x" + a.tobytes(), a.dtype, offset=1).reshape(a.shape),
    "swapped bytes": lambda a: a.astype(a.dtype.newbyteorder()),
}
DTYPES = ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8"]


@pytest.mark.parametrize("counter", COUNTERS)
@given(items(), st.integers(1, 3))
def test_table_equals_the_voxel_by_voxel_twin(counter: str, item: Item, threads: int) -> None:
    with counted_by(counter):
        assert as_dicts(contingency(*item, threads=threads)) == twin(*item)


@pytest.mark.parametrize("counter", COUNTERS)
@given(items(), st.data())
def test_dtype_layout_and_pieces_do_not_matter(counter: str, item: Item, data: st.DataObject) -> None:
    expected = twin(*(array % 100 for array in item[:2]), item[2])
    arrays = []
    for array in item[:2]:
        dtype, layout = data.draw(st.sampled_from(DTYPES)), data.draw(st.sampled_from(list(LAYOUTS)))
        arrays.append(LAYOUTS[layout]((array % 100).astype(dtype)))
    mask = LAYOUTS[data.draw(st.sampled_from(["C", "Fortran", "every second"]))](item[2])
    with counted_by(counter, piece_voxels=data.draw(st.integers(1, 9))):
        assert as_dicts(contingency(arrays[0], arrays[1], mask, threads=data.draw(st.integers(1, 3)))) == expected
        unmasked = contingency(arrays[0], arrays[1], threads=data.draw(st.integers(1, 3)))
    assert as_dicts(unmasked) == twin(*(array % 100 for array in item[:2]), np.zeros(item[2].shape, bool))


@pytest.mark.parametrize("dtype", ["u4", "u8"])
def test_compiled_tables_that_grow_equal_numpys(dtype: str) -> None:
    """Noise on top of blocks: runs of every length, more pairs than the first table holds, ids alike in most bits."""
    rng = np.random.default_rng(5)
    blocks = np.kron(rng.integers(0, 9, (6, 10, 10)), np.ones((8, 8, 8), int))
    speckle = rng.random(blocks.shape) < 0.3
    reference = np.where(speckle, rng.integers(0, 30_000, blocks.shape), blocks).astype(dtype)
    prediction = np.where(speckle, rng.integers(0, 30_000, blocks.shape), blocks).astype(dtype)
    if dtype == "u8":
        reference, prediction = reference << np.uint64(48), ~(prediction << np.uint64(20))
    ignore = rng.random(blocks.shape) < 0.05
    for mask in (None, ignore):
        with counted_by("numpy"):
            expected = contingency(reference, prediction, mask)
        assert len(expected.pair_voxels) > 60_000
        for threads in (1, 2, 5):
            with counted_by("compiled", piece_voxels=50_000):
                assert same(contingency(reference, prediction, mask, threads), expected)


@pytest.mark.parametrize("counter", COUNTERS)
def test_working_memory_is_a_piece_and_not_a_copy(counter: str) -> None:
    reference = np.zeros((128, 128, 256), np.int64)[:, :, ::2]  # 16 MB of which no piece is contiguous
    reference[20:40, 20:40, 20:40] = 7
    prediction = reference.astype(np.uint16).transpose(1, 2, 0)
    with counted_by(counter, piece_voxels=1 << 14):
        contingency(reference[:8, :8, :8], prediction[:8, :8, :8])
        tracemalloc.start()
        table = contingency(reference, prediction, threads=1)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert table.pair_voxels.tolist() == [20**3]
    assert peak < 4e6


def test_large_work_changes_over_to_compiled_code(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("numba")
    used = []
    monkeypatch.setattr(overlap, "kernels", lambda dtype: used.append(dtype) or kernels(dtype))
    monkeypatch.setattr(overlap, "COMPILED_FROM_VOXELS", 250)
    monkeypatch.setattr(overlap, "_counted", Counter())
    labels = np.ones((10, 10), np.uint8)
    assert all(same(contingency(labels, labels), contingency(labels, labels)) for _ in range(2))
    assert used == [np.dtype("u1")] * 2  # the third and the fourth time


def test_a_thread_is_needed() -> None:
    with pytest.raises(InputError, match="threads=0"):
        contingency(np.ones((2, 2), int), np.ones((2, 2), int), threads=0)


@given(items())
def test_ids_and_pairs_ascend(item: Item) -> None:
    table = contingency(*item)
    assert table.reference_ids.tolist() == sorted(set(table.reference_ids.tolist()))
    pairs = list(zip(table.pair_reference.tolist(), table.pair_prediction.tolist(), strict=True))
    assert pairs == sorted(set(pairs))


@given(items(), st.integers(0, 2), st.integers(0, 7))
def test_tables_of_disjoint_blocks_add_up(item: Item, axis: int, cut: int) -> None:
    axis = min(axis, item[0].ndim - 1)
    blocks = list(zip(*(np.split(array, [cut], axis=axis) for array in item), strict=True))
    first, second = (contingency(*block) for block in blocks)
    assert same(first.merge(second), contingency(*item))
    assert same(second.merge(first), contingency(*item))


@given(items(), st.lists(st.integers(0, 7), max_size=6), st.randoms(use_true_random=False))
def test_many_tables_add_up_in_any_order(item: Item, cuts: list[int], random: object) -> None:
    blocks = [
        block
        for rows in zip(*(np.split(array, sorted(cuts)) for array in item), strict=True)
        for block in zip(*(np.split(array, [2, 3], axis=1) for array in rows), strict=True)
    ]
    tables = [contingency(*block) for block in blocks]
    random.shuffle(tables)  # type: ignore[attr-defined]
    assert same(OverlapTable.merge_all(tables), contingency(*item))


def test_no_tables_add_up_to_an_empty_one() -> None:
    nothing = np.zeros((0, 0), int)
    assert same(OverlapTable.merge_all([]), contingency(nothing, nothing))


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


def test_lists_are_label_maps() -> None:
    labels = np.arange(24).reshape(4, 6) % 4
    assert same(contingency(labels.tolist(), labels.tolist()), contingency(labels, labels))


@pytest.mark.parametrize("counter", COUNTERS)
def test_ids_up_to_the_last_unsigned_64_bit_number(counter: str) -> None:
    last = 2**64 - 1
    reference = np.array([[last, last, 0, 5]], np.uint64)
    with counted_by(counter):
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


TABLES = """
import sys
from pathlib import Path
import numpy as np
sys.path.insert(0, sys.argv[2])
if sys.argv[1] == "numba is absent":
    sys.modules["numba"] = None
import em_bench_eval.matching as matching
import em_bench_eval.overlap as overlap
assert Path(overlap.__file__).is_relative_to(sys.argv[2]), overlap.__file__
overlap.COMPILED_FROM_VOXELS = matching.COMPILED_FROM_PAIRS = 0
rng = np.random.default_rng(9)
reference, prediction = rng.integers(0, 90, (2, 30, 30, 30)).astype(np.uint32)
table = overlap.contingency(reference, prediction)
pairs = table.pair_reference, table.pair_prediction
sizes = table.reference_voxels[pairs[0]], table.prediction_voxels[pairs[1]]
chosen = matching.best_matching(*pairs, matching.iou(table.pair_voxels, *sizes), table.pair_voxels)
compiled = matching.kernel() is not None and overlap.kernels(np.dtype("u4")) is not None
print(compiled, *map(sum, vars(table).values()), *chosen)
"""


@pytest.mark.parametrize(
    ("case", "compiled"),
    [("numba is absent", False), ("no compiling", False), ("no folder to write to", True)],
)
def test_results_are_the_same_in_every_environment(case: str, compiled: bool, tmp_path: Path) -> None:
    """A copy of the folder, as ``evaluate`` makes it: new to numba's cache, and perhaps not writable."""
    pytest.importorskip("numba")
    copy = tmp_path / "em_bench_eval"
    shutil.copytree(Path(overlap.__file__).parent, copy, ignore=shutil.ignore_patterns("__pycache__"))
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    if case == "no compiling":
        environment["NUMBA_DISABLE_JIT"] = "1"
    if case == "no folder to write to":  # a file stands where each folder would be made (permissions do not stop root)
        (copy / "__pycache__").write_text("")
        blocked = str(copy / "__pycache__" / "cache")
        environment.update(NUMBA_CACHE_DIR=blocked, XDG_CACHE_HOME=blocked, HOME=blocked)
    done = subprocess.run(
        [sys.executable, "-c", TABLES, case, str(tmp_path)],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rng = np.random.default_rng(9)
    reference, prediction = rng.integers(0, 90, (2, 30, 30, 30))
    table = contingency(reference, prediction)
    pairs = table.pair_reference, table.pair_prediction
    pair_iou = iou(table.pair_voxels, table.reference_voxels[pairs[0]], table.prediction_voxels[pairs[1]])
    chosen = best_matching(*pairs, pair_iou, table.pair_voxels)
    expected = [int(array.sum()) for array in vars(table).values()] + chosen.tolist()
    assert done.stdout.split() == [str(compiled), *map(str, expected)]
