"""Clean-up: a slow twin that does one thing at a time, and drawn cases with an obvious answer."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from em_bench_eval.errors import InputError
from em_bench_eval.schema import Organelle
from lpa.clean import clean

ORGANELLE_OF = {1: "mito", 2: "mito", 3: "mito", 4: "er", 5: "er"}
STEPS = [(1, 0, 0), (-1, 0, 0), (0, 1, 0), (0, -1, 0), (0, 0, 1), (0, 0, -1)]


def around(volume, voxel, steps=STEPS):
    """Values of the face neighbours; None outside the volume."""
    values = []
    for step in steps:
        other = tuple(np.add(voxel, step).tolist())
        inside = all(0 <= position < size for position, size in zip(other, volume.shape, strict=True))
        values.append(int(volume[other]) if inside else None)
    return values


def slow_fill(volume, max_voxels, by_slice):
    result = volume.copy()
    steps = [step for step in STEPS if not (by_slice and step[0])]
    structure = ndimage.generate_binary_structure(3, 1)
    if by_slice:
        structure[[0, 2]] = False
    holes, count = ndimage.label(volume == 0, structure)
    for hole in range(1, count + 1):
        voxels = np.argwhere(holes == hole).tolist()
        walls = {value for voxel in voxels for value in around(volume, voxel, steps)} - {0}
        if len(walls) != 1 or None in walls or len(voxels) > max_voxels:
            continue
        (owner,) = walls
        if not (by_slice and ORGANELLE_OF[owner] == "er"):
            result[holes == hole] = owner
    return result


def slow_clean(volume, min_voxels, fragment_voxels, holes, max_hole):
    volume = volume if holes == "keep" else slow_fill(volume, max_hole, holes == "slices")
    size = {int(value): int((volume == value).sum()) for value in np.unique(volume) if value}
    target = {value: value for value in size}
    for value in size:
        if size[value] >= fragment_voxels:
            continue
        touching: dict[int, int] = {}
        for voxel in np.argwhere(volume == value).tolist():
            for other in around(volume, voxel):
                if other and other != value and ORGANELLE_OF[other] == ORGANELLE_OF[value]:
                    touching[other] = touching.get(other, 0) + 1
        larger = [other for other in touching if (size[other], other) > (size[value], value)]
        if larger:
            target[value] = sorted(larger, key=lambda other: (-touching[other], other))[0]
    joined = volume.copy()
    for value in sorted(size, key=lambda value: (size[value], value)):  # crumbs first: chains end in the largest
        joined[joined == value] = target[value]
    result = np.zeros(volume.shape, np.uint32)
    organelle_of, touches = {}, {}
    for value in joined.ravel().tolist():  # raster order
        inside = joined == value
        if value and inside.sum() >= min_voxels and not result[inside].any():
            new = len(organelle_of) + 1
            result[inside] = new
            organelle_of[new] = Organelle(ORGANELLE_OF[value])
            where = np.argwhere(inside)
            touches[new] = bool((where == 0).any() or (where == np.array(volume.shape) - 1).any())
    return result, organelle_of, touches


@settings(max_examples=150, deadline=None)
@given(
    hnp.arrays(
        np.uint16,
        hnp.array_shapes(min_dims=3, max_dims=3, min_side=1, max_side=5),
        elements=st.sampled_from([0, 0, 1, 1, 1, 2, 3, 4, 4, 5]),
    ),
    st.integers(0, 8),
    st.integers(0, 8),
    st.sampled_from(["3d", "slices", "keep"]),
    st.sampled_from([1, 3, 1000]),
)
def test_equals_its_slow_twin(volume, min_voxels, fragment_voxels, holes, max_hole):
    voxel_nm3 = 30 * 4 * 4
    cleaned = clean(
        volume,
        ORGANELLE_OF,
        (30, 4, 4),
        min_volume_nm3=min_voxels * voxel_nm3,
        fragment_nm3=fragment_voxels * voxel_nm3,
        holes=holes,
        max_hole_nm3=max_hole * voxel_nm3,
    )
    instances, organelle_of, touches = slow_clean(volume, min_voxels, fragment_voxels, holes, max_hole)
    assert np.array_equal(cleaned.instances, instances)
    assert cleaned.organelle_of == organelle_of
    assert cleaned.touches_border == touches
    assert cleaned.filled_voxels == (
        0 if holes == "keep" else np.count_nonzero(slow_fill(volume, max_hole, holes == "slices") != volume)
    )
    old = {int(value) for value in np.unique(volume)} - {0}
    assert cleaned.new_id_of.keys() == old
    assert len(old) == cleaned.attached + cleaned.dropped + len(organelle_of)
    for value, new in cleaned.new_id_of.items():
        assert set(np.unique(cleaned.instances[volume == value])) == {new}


def test_holes_in_3d_and_by_slice():
    tube = np.zeros((5, 9, 9), np.uint8)
    tube[:, 2:7, 2:7] = 1
    tube[:, 4, 4] = 0  # a tunnel along z: open in 3D, closed in every slice
    assert clean(tube, {1: "mito"}, (5, 5, 5)).filled_voxels == 0
    assert clean(tube, {1: "mito"}, (5, 5, 5), holes="slices").filled_voxels == 5
    assert clean(tube, {1: "er"}, (5, 5, 5), holes="slices").filled_voxels == 0
    tube[0, 4, 4] = tube[4, 4, 4] = 1
    assert clean(tube, {1: "er"}, (5, 5, 5)).filled_voxels == 3
    assert clean(tube, {1: "er"}, (5, 5, 5), max_hole_nm3=2 * 125).filled_voxels == 0


def test_limits_are_physical_and_per_organelle():
    volume = np.zeros((4, 4, 8), np.uint8)
    volume[1, 1, 1:3] = 1
    volume[1, 1, 5:7] = 4
    cleaned = clean(volume, ORGANELLE_OF, (10, 10, 10), min_volume_nm3={"mito": 2001})
    assert (cleaned.new_id_of, cleaned.dropped) == ({1: 0, 4: 1}, 1)
    assert len(clean(volume, ORGANELLE_OF, (10, 10, 10), min_volume_nm3={"mito": 2000}).organelle_of) == 2


def test_large_ids_and_the_input_are_left_as_they_are():
    volume = np.zeros((3, 3, 3), np.uint64)
    volume[1, 1, :] = 2**40
    before = volume.copy()
    cleaned = clean(volume, {2**40: "mito"}, (5, 5, 5))
    assert cleaned.new_id_of == {2**40: 1}
    assert cleaned.instances.max() == 1
    assert np.array_equal(volume, before)


def test_errors_name_the_mistake():
    volume = np.ones((2, 2, 2), np.uint8)
    with pytest.raises(InputError, match="unknown holes"):
        clean(volume, {1: "mito"}, (5, 5, 5), holes="2d")
    with pytest.raises(InputError, match="unknown organelle"):
        clean(volume, {1: "mito"}, (5, 5, 5), min_volume_nm3={"mitochondrion": 1})
    with pytest.raises(InputError, match="min_volume_nm3 of mito"):
        clean(volume, {1: "mito"}, (5, 5, 5), min_volume_nm3={"mito": -1})
