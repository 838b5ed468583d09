"""lpa.label against the paper's iteration, scipy, and a dictionary flood fill."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

import lpa
from em_bench_eval.errors import InputError
from lpa.connectivity import offsets

SHAPES = st.one_of(hnp.array_shapes(min_dims=3, max_dims=3, max_side=7), hnp.array_shapes(min_dims=2, max_dims=2))
DTYPES = ["u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "?", ">u2"]


def flood_fill(semantic: np.ndarray, connectivity: int) -> np.ndarray:
    """Visit voxels in raster order and flood each new component with the index + 1 of its first voxel."""
    volume = semantic.reshape((-1, *semantic.shape[-2:]))
    labels = np.zeros(volume.shape, np.uint64)
    for start in np.ndindex(volume.shape):
        if not volume[start] or labels[start]:
            continue
        name = np.ravel_multi_index(start, volume.shape) + 1
        stack = [start]
        while stack:
            voxel = stack.pop()
            if labels[voxel]:
                continue
            labels[voxel] = name
            for step in offsets(connectivity):
                other = tuple(int(a + b) for a, b in zip(voxel, step, strict=True))
                inside = all(0 <= a < size for a, size in zip(other, volume.shape, strict=True))
                if inside and volume[other] == volume[start]:
                    stack.append(other)
    return labels.reshape(semantic.shape)


@st.composite
def semantic_volumes(draw: st.DrawFn) -> np.ndarray:
    dtype = np.dtype(draw(st.sampled_from(DTYPES)))
    values = st.booleans() if dtype.kind == "b" else st.sampled_from([0, 0, 1, 1, 2, 5])
    volume = draw(hnp.arrays(dtype, SHAPES, elements=values))
    return np.asfortranarray(volume) if draw(st.booleans()) else volume


@settings(max_examples=150, deadline=None)
@given(semantic_volumes(), st.sampled_from([6, 18, 26]))
def test_label_equals_the_papers_iteration_and_a_flood_fill(semantic: np.ndarray, connectivity: int) -> None:
    labels = lpa.label(semantic, connectivity)
    np.testing.assert_array_equal(labels, lpa.propagate(semantic, connectivity))
    np.testing.assert_array_equal(labels, flood_fill(semantic, connectivity))
    assert labels.dtype == np.uint32
    assert labels.flags.c_contiguous


@settings(max_examples=60, deadline=None)
@given(semantic_volumes())
def test_compact_labels_are_numbered_in_order_of_the_first_voxel(semantic: np.ndarray) -> None:
    compact = lpa.label(semantic, 26, relabel="compact")
    minimum = lpa.label(semantic, 26)
    order = {name: rank for rank, name in enumerate(np.unique(minimum))}
    expected = np.vectorize(order.get, otypes=[np.uint32])(minimum) if minimum.size else minimum
    np.testing.assert_array_equal(compact, expected + (0 if (minimum == 0).any() or not minimum.size else 1))


@settings(max_examples=60, deadline=None)
@given(
    hnp.arrays(np.uint8, SHAPES, elements=st.integers(0, 5)),
    st.dictionaries(st.sampled_from(["mito", "er", "golgi"]), st.sampled_from([6, 18, 26])),
)
def test_connectivity_per_organelle_equals_the_iteration(semantic: np.ndarray, connectivity: dict[str, int]) -> None:
    np.testing.assert_array_equal(lpa.label(semantic, connectivity), lpa.propagate(semantic, connectivity))


@pytest.mark.parametrize(("connectivity", "rank"), [(6, 1), (18, 2), (26, 3)])
def test_component_count_equals_scipy(connectivity: int, rank: int) -> None:
    mask = ndimage.gaussian_filter(np.random.default_rng(3).normal(size=(40, 41, 42)), 1.2) > 0.1
    expected = ndimage.label(mask, ndimage.generate_binary_structure(3, rank))[1]
    assert expected > 5
    assert lpa.label(mask, connectivity, relabel="compact").max() == expected


def test_touching_classes_never_share_a_label() -> None:
    np.testing.assert_array_equal(lpa.label(np.array([[1, 1, 2, 2, 1]])), [[1, 1, 3, 3, 5]])


def test_large_class_values_stay_apart() -> None:
    semantic = np.array([[2**40, 2**40 + 2**33, 2**33, 0, 2**40]], np.uint64)
    np.testing.assert_array_equal(lpa.label(semantic), [[1, 2, 3, 0, 5]])


@pytest.mark.parametrize(
    ("semantic", "message"),
    [
        (np.zeros((2, 2, 2), np.float32), "float32"),
        (np.full((2, 2), np.nan), "float64"),
        (np.array([[-1, 0]]), "minimum -1"),
        (np.zeros(4, np.uint8), r"shape \(4,\)"),
        (np.zeros((1, 2, 2, 2), np.uint8), r"shape \(1, 2, 2, 2\)"),
    ],
)
def test_unusable_volumes_are_refused(semantic: np.ndarray, message: str) -> None:
    with pytest.raises(InputError, match=message):
        lpa.label(semantic)
    with pytest.raises(InputError, match=message):
        lpa.propagate(semantic)


def test_unusable_settings_are_refused() -> None:
    with pytest.raises(InputError, match=r"6 \(faces\)"):
        lpa.label(np.ones((2, 2), int), connectivity=1)
    with pytest.raises(InputError, match="did you mean 'mito'"):
        lpa.label(np.ones((2, 2), int), connectivity={"mitto": 6})
    with pytest.raises(InputError, match=r"values \[9\]"):
        lpa.label(np.full((2, 2), 9), connectivity={"mito": 6})
    with pytest.raises(InputError, match="did you mean 'compact'"):
        lpa.label(np.ones((2, 2), int), relabel="compac")  # type: ignore[arg-type]
