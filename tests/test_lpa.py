"""lpa.label against the paper's iteration, a flood fill, cc3d and scipy."""

from __future__ import annotations

import itertools
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import cc3d
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

import lpa
from em_bench_eval.errors import InputError
from em_bench_eval.schema import ORGANELLES
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
    layout = draw(st.sampled_from(["C", "F", "strided", "reversed"]))
    if layout == "strided":
        volume = np.repeat(volume, 2, axis=-1)[..., ::2]
    return {"F": np.asfortranarray(volume), "reversed": volume[::-1]}.get(layout, volume)


@settings(max_examples=150, deadline=None)
@given(semantic_volumes(), st.sampled_from([6, 18, 26]), st.integers(1, 7))
def test_label_equals_the_papers_iteration_and_a_flood_fill(
    semantic: np.ndarray, connectivity: int, threads: int
) -> None:
    labels = lpa.label(semantic, connectivity, threads=threads)
    np.testing.assert_array_equal(labels, lpa.propagate(semantic, connectivity))
    np.testing.assert_array_equal(labels, flood_fill(semantic, connectivity))
    assert labels.dtype == np.uint32
    assert labels.flags.c_contiguous


def minimum_index(components: np.ndarray) -> np.ndarray:
    """Rename components to the linear index + 1 of their first voxel."""
    names, first, place = np.unique(components, return_index=True, return_inverse=True)
    return np.where(names > 0, first + 1, 0)[place].reshape(components.shape)


@st.composite
def wide_volumes(draw: st.DrawFn) -> np.ndarray:
    """Rows around whole words of 64 voxels, from specks to long runs that cross several words."""
    width = draw(st.sampled_from([1, 2, 31, 63, 64, 65, 127, 128, 129, 130, 192, 300]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    shape = (draw(st.integers(1, 5)), draw(st.integers(1, 5)), width)
    semantic = rng.integers(1, draw(st.integers(2, 5)), shape, np.uint8)
    semantic[rng.random(shape) > draw(st.sampled_from([0.1, 0.3, 0.5, 0.9, 1.0]))] = 0
    stretch = draw(st.sampled_from([1, 2, 7, 40]))
    return np.ascontiguousarray(np.repeat(semantic, stretch, axis=2)[:, :, :width])


@settings(max_examples=300, deadline=None)
@given(wide_volumes(), st.sampled_from([6, 18, 26]), st.integers(1, 5))
def test_any_row_length_equals_cc3d(semantic: np.ndarray, connectivity: int, threads: int) -> None:
    expected = cc3d.connected_components(semantic, connectivity=connectivity).reshape(semantic.shape)
    np.testing.assert_array_equal(lpa.label(semantic, connectivity, threads=threads), minimum_index(expected))


@pytest.mark.parametrize("connectivity", [6, 18, 26])
@pytest.mark.parametrize("texture", ["smooth", "sheets", "noise", "mosaic"])
def test_volumes_of_every_texture_equal_cc3d(texture: str, connectivity: int) -> None:
    rng = np.random.default_rng(11)
    field = ndimage.gaussian_filter(rng.normal(size=(50, 60, 150)), 2)
    field /= field.std()
    semantic = {
        "smooth": (field > 0.8) + 2 * (field < -1.0),
        "sheets": np.abs(field) < 0.25,
        "noise": (rng.random(field.shape) < 0.3) * rng.integers(1, 4, field.shape),
        "mosaic": np.digitize(field, [-1, 0, 1]) + 1,
    }[texture].astype(np.uint8)
    expected = minimum_index(cc3d.connected_components(semantic, connectivity=connectivity))
    assert len(np.unique(expected)) > 3
    for threads in (1, 2, 7):
        np.testing.assert_array_equal(lpa.label(semantic, connectivity, threads=threads), expected)


def compacted(labels: np.ndarray) -> np.ndarray:
    names, place = np.unique(labels, return_inverse=True)
    return (place + (0 if 0 in names else 1)).reshape(labels.shape)


@settings(max_examples=60, deadline=None)
@given(wide_volumes(), st.integers(1, 5))
def test_compact_labels_are_numbered_in_order_of_the_first_voxel(semantic: np.ndarray, threads: int) -> None:
    compact = lpa.label(semantic, 26, relabel="compact", threads=threads)
    assert compact.dtype == np.uint32
    np.testing.assert_array_equal(compact, compacted(lpa.label(semantic, 26)))


MIXED = st.dictionaries(st.sampled_from(["mito", "er", "golgi"]), st.sampled_from([6, 18, 26]))


@settings(max_examples=60, deadline=None)
@given(hnp.arrays(np.uint8, SHAPES, elements=st.integers(0, 5)), MIXED)
def test_connectivity_per_organelle_equals_the_iteration(semantic: np.ndarray, connectivity: dict[str, int]) -> None:
    np.testing.assert_array_equal(lpa.label(semantic, connectivity), lpa.propagate(semantic, connectivity))


@settings(max_examples=60, deadline=None)
@given(wide_volumes(), st.tuples(*[st.sampled_from([6, 18, 26])] * 4), st.integers(1, 3))
def test_connectivity_per_organelle_is_each_organelle_alone(
    semantic: np.ndarray, connectivity: tuple[int, ...], threads: int
) -> None:
    alone = np.zeros(semantic.shape, np.uint32)
    for value, neighbours in enumerate(connectivity, start=1):
        alone += lpa.label(semantic == value, neighbours)
    named = dict(zip(ORGANELLES, connectivity, strict=False))
    np.testing.assert_array_equal(lpa.label(semantic, named, threads=threads), alone)


@pytest.mark.parametrize("dtype", ["u2", "i4", "u8", ">i8"])
def test_more_than_255_classes(dtype: str) -> None:
    semantic = np.random.default_rng(5).integers(0, 3, (6, 9, 70)) * 300 + np.arange(2).repeat(35)
    expected = minimum_index(cc3d.connected_components(semantic.astype(np.uint32), connectivity=18))
    for threads in (1, 2):
        np.testing.assert_array_equal(lpa.label(semantic.astype(dtype), 18, threads=threads), expected)


@pytest.mark.parametrize("shape", [(0, 3, 4), (3, 0, 4), (3, 4, 0), (0, 5), (5, 0), (0, 0, 0)])
def test_empty_arrays_stay_empty(shape: tuple[int, ...]) -> None:
    for semantic, connectivity in itertools.product([np.zeros(shape, np.uint8)], [26, {"mito": 6}]):
        assert lpa.label(semantic, connectivity).shape == shape


@pytest.mark.parametrize("value", [0, 1])
def test_volumes_of_one_value(value: int) -> None:
    np.testing.assert_array_equal(lpa.label(np.full((3, 4, 130), value, bool), 6, threads=2), value)


def serpentine(size: int) -> np.ndarray:
    """One corridor through the whole volume: the longest geodesic path that fits."""
    volume = np.zeros((size, size, size), np.uint8)
    volume[::2, ::2, :] = 1
    for z in range(0, size, 2):
        for k, y in enumerate(range(1, size - 1, 2)):
            volume[z, y, -1 if k % 2 == 0 else 0] = 1
    for k, z in enumerate(range(1, size - 1, 2)):
        y = size - 2 if k % 2 == 0 else 0
        volume[z, y, :] = volume[z + 1, y, :] = 0
        volume[z, y, -1] = volume[z - 1, y, -1] = volume[z + 1, y, :] = 1
    return volume


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_a_serpentine_is_one_instance_however_long_it_is(threads: int) -> None:
    semantic = serpentine(70)
    np.testing.assert_array_equal(lpa.label(semantic, 6, threads=threads), semantic)


def test_out_is_filled_and_returned_whatever_it_held() -> None:
    rng = np.random.default_rng(2)
    buffer = np.full((4, 5, 70), 77, np.uint32)
    for _ in range(3):
        semantic = rng.integers(0, 3, buffer.shape, np.uint8)
        assert lpa.label(semantic, 6, out=buffer, threads=2) is buffer
        np.testing.assert_array_equal(buffer, lpa.propagate(semantic, 6))


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("classes", [1, 9])
def test_no_remains_of_the_union_find_in_the_background(classes: int, threads: int) -> None:
    rng = np.random.default_rng(4)
    semantic = np.zeros((60, 40, 50), np.uint8)
    for crowded in (semantic[:3], semantic[20:24], semantic[40:42]):  # with 9 classes more runs than half the voxels
        crowded[:] = rng.integers(0 if classes == 1 else 1, classes + 1, crowded.shape)
    for volume in (semantic, semantic[:24], semantic[:3]):
        expected = minimum_index(cc3d.connected_components(volume, connectivity=6))
        np.testing.assert_array_equal(lpa.label(volume, 6, threads=threads), expected)


@pytest.mark.skipif(sys.platform == "win32", reason="pages are protected with mprotect")
def test_nothing_outside_of_the_volume_is_read() -> None:
    """Each volume fills whole pages of memory between two that may not be touched."""
    script = """
import ctypes, mmap
import numpy as np
import lpa
for shape in [(8, 16, 32), (3, 8, 512), (1, 64, 64), (128, 1, 96), (1, 4, 4096), (4096, 1, 1), (5, 64, 64)]:
    size = -(-int(np.prod(shape)) // mmap.PAGESIZE) * mmap.PAGESIZE
    memory = mmap.mmap(-1, size + 2 * mmap.PAGESIZE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    for guard in (address, address + mmap.PAGESIZE + size):
        assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(guard), ctypes.c_size_t(mmap.PAGESIZE), 0) == 0
    inside = np.frombuffer(memory, np.uint8, size, mmap.PAGESIZE)
    for start in (0, size - int(np.prod(shape))):
        volume = inside[start : start + int(np.prod(shape))].reshape(shape)
        volume[:] = np.random.default_rng(1).integers(0, 3, shape)
        for threads in (1, 2):
            assert (lpa.label(volume, 26, threads=threads) == lpa.label(volume.copy(), 26)).all()
print("done")
"""
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert found.stdout == "done\n", found.stderr


def test_out_may_be_wider_than_needed() -> None:
    semantic = np.random.default_rng(3).integers(0, 3, (4, 5, 70), np.uint8)
    wide = lpa.label(semantic, 6, out=np.empty(semantic.shape, np.uint64))
    np.testing.assert_array_equal(wide, lpa.label(semantic, 6))


def test_unusable_out_is_refused() -> None:
    semantic = np.ones((4, 6), np.uint32)
    read_only = np.empty((4, 6), np.uint32)
    read_only.flags.writeable = False
    transposed = np.empty((6, 4), np.uint32).T
    wrong = [np.empty((6, 4), np.uint32), np.empty((4, 6), np.int32), np.empty((4, 6), ">u4"), [[0]]]
    for out in (*wrong, read_only, transposed, semantic):
        with pytest.raises(InputError, match="cannot be written to out"):
            lpa.label(semantic, out=out)  # type: ignore[arg-type]


def test_several_python_threads_may_label_at_once() -> None:
    rng = np.random.default_rng(7)
    volumes = [(rng.random((20, 30, 140)) < 0.4).astype(np.uint8) for _ in range(4)]
    expected = [lpa.label(volume, 6, threads=1) for volume in volumes]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            found = list(pool.map(lambda volume: lpa.label(volume, 6, threads=2), volumes))
            for labels, truth in zip(found, expected, strict=True):
                np.testing.assert_array_equal(labels, truth)


@settings(max_examples=60, deadline=None)
@given(hnp.arrays(np.uint8, SHAPES, elements=st.sampled_from([0, 1, 1, 2])), st.sampled_from([6, 18, 26]), MIXED)
def test_the_torch_propagation_equals_the_iteration(
    semantic: np.ndarray, connectivity: int, mixed: dict[str, int]
) -> None:
    for setting in (connectivity, mixed):
        labels = lpa.propagate_torch(torch.from_numpy(semantic), setting)
        np.testing.assert_array_equal(labels.numpy(), lpa.propagate(semantic, setting))


def test_the_torch_propagation_jumps_through_a_serpentine() -> None:
    semantic = serpentine(32)  # the iteration as written takes 8191 rounds
    np.testing.assert_array_equal(lpa.propagate_torch(torch.from_numpy(semantic), 6).numpy(), semantic)


@pytest.mark.parametrize(
    ("semantic", "message"),
    [
        (torch.zeros(2, 2), "float32"),
        (torch.tensor([[-1, 0]]), "minimum -1"),
        (torch.zeros(1, 2, 2, 2, dtype=torch.uint8), r"shape \(1, 2, 2, 2\)"),
    ],
)
def test_unusable_tensors_are_refused(semantic: torch.Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        lpa.propagate_torch(semantic)


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
    with pytest.raises(InputError, match="threads=0"):
        lpa.label(np.ones((2, 2), int), threads=0)
