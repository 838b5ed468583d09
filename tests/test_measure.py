"""Measurement: a slow twin voxel by voxel, bodies with known surfaces and axes, blocks that add up."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from em_bench_eval.errors import InputError
from lpa.measure import HALF_NEIGHBOURS, measure, sums, surface_weights

VOXEL_NM = (30.0, 8.0, 5.0)
ORGANELLE_OF = {1: "mito", 2: "er", 3: "endo", 200: "golgi"}
volumes = hnp.arrays(
    np.uint8,
    hnp.array_shapes(min_dims=3, max_dims=3, min_side=1, max_side=6),
    elements=st.sampled_from([0, 0, 1, 1, 2, 3, 200]),
)


def value_at(volume, voxel):
    inside = all(0 <= position < size for position, size in zip(voxel, volume.shape, strict=True))
    return int(volume[tuple(voxel)]) if inside else 0


def slow_row(volume, value, weights):
    voxels = np.argwhere(volume == value)
    surface, neighbours = 0.0, set()
    for voxel in voxels:
        for step, weight in zip(HALF_NEIGHBOURS, weights, strict=True):
            for sign in (1, -1):
                other = value_at(volume, voxel + sign * np.array(step))
                surface += weight * (other != value)
                if np.abs(step).sum() == 1 and other not in (0, value):
                    neighbours.add(other)
    # covariance of a body of boxes: corners of each voxel's box weigh in through its own variance
    points = (voxels + 0.5) * VOXEL_NM
    covariance = np.cov(points.T, bias=True).reshape(3, 3) + np.diag(np.square(VOXEL_NM)) / 12
    return {
        "id": value,
        "organelle": ORGANELLE_OF[value],
        "voxels": len(voxels),
        "volume_nm3": len(voxels) * np.prod(VOXEL_NM),
        "surface_nm2": surface,
        "bbox": [*voxels.min(axis=0), *(voxels.max(axis=0) + 1)],
        "centroid_nm": points.mean(axis=0),
        "axes_nm": 2 * np.sqrt(5 * np.linalg.eigvalsh(covariance)[::-1]),
        "touches_border": bool((voxels == 0).any() or (voxels == np.array(volume.shape) - 1).any()),
        "neighbours": tuple(sorted(neighbours)),
    }


@settings(max_examples=80, deadline=None)
@given(volumes)
def test_equals_its_slow_twin(volume):
    table = measure(volume, ORGANELLE_OF, VOXEL_NM)
    ids = [int(value) for value in np.unique(volume) if value]
    assert table["id"].tolist() == ids
    assert {len(column) for column in table.values()} == {len(ids)}
    weights = surface_weights(VOXEL_NM)
    for index, value in enumerate(ids):
        for name, expected in slow_row(volume, value, weights).items():
            found = table[name][index]
            if isinstance(expected, (str, tuple, bool)):
                assert found == expected, name
            else:
                assert found == pytest.approx(expected, rel=1e-9, abs=1e-6), name


@settings(max_examples=60, deadline=None)
@given(volumes, st.tuples(*(st.integers(1, 4),) * 3))
def test_blocks_add_up_to_the_whole(volume, block):
    padded = np.pad(volume, 1)

    def box(start, stop):
        outer = padded[tuple(slice(a, b + 2) for a, b in zip(start, stop, strict=True))]
        return sums(outer, tuple(slice(1, b - a + 1) for a, b in zip(start, stop, strict=True)), tuple(start))

    whole = box((0, 0, 0), volume.shape)
    total = None
    for corner in np.ndindex(*(-(-size // edge) for size, edge in zip(volume.shape, block, strict=True))):
        start = [index * edge for index, edge in zip(corner, block, strict=True)]
        stop = [min(a + edge, size) for a, edge, size in zip(start, block, volume.shape, strict=True)]
        part = box(start, stop)
        total = part if total is None else total + part
    for name in ("ids", "voxels", "crossings", "faces"):
        assert np.array_equal(getattr(total, name), getattr(whole, name)), name
    assert total.moments == pytest.approx(whole.moments)


@pytest.mark.parametrize("voxel_nm", [(8, 8, 8), (40, 8, 8), (8, 8, 24)])
def test_a_ball_has_the_surface_and_shape_of_a_ball(voxel_nm):
    radius = 240
    grid = [(np.arange(600 // edge) + 0.5) * edge - 300 for edge in voxel_nm]
    z, y, x = np.meshgrid(*grid, indexing="ij")
    body = (z**2 + y**2 + x**2 <= radius**2).astype(np.uint32)
    table = measure(body, {1: "endo"}, voxel_nm)
    assert table["surface_nm2"][0] == pytest.approx(4 * np.pi * radius**2, rel=0.03)
    assert table["volume_nm3"][0] == pytest.approx(4 / 3 * np.pi * radius**3, rel=0.02)
    assert table["sphericity"][0] == pytest.approx(1, abs=0.03)
    assert table["elongation"][0] == pytest.approx(1, abs=0.02)
    assert table["axes_nm"][0] == pytest.approx([2 * radius] * 3, rel=0.02)
    assert table["centroid_nm"][0] == pytest.approx([300, 300, 300], abs=1e-6)


def test_tubes_are_long_and_discs_are_flat():
    z, y, x = np.mgrid[:60, :60, :60] - 29.5
    tube = ((z / 25) ** 2 + (y / 8) ** 2 + (x / 8) ** 2 <= 1).astype(np.uint8)
    disc = ((z / 5) ** 2 + (y / 25) ** 2 + (x / 25) ** 2 <= 1).astype(np.uint8)
    long = measure(tube, {1: "mito"}, (10, 10, 10))
    flat = measure(disc, {1: "endo"}, (10, 10, 10))
    assert (long["elongation"][0], long["flatness"][0]) == pytest.approx((25 / 8, 1), rel=0.03)
    assert (flat["elongation"][0], flat["flatness"][0]) == pytest.approx((1, 5), rel=0.03)
    assert flat["sphericity"][0] < long["sphericity"][0] < 1


def test_a_neck_is_found():
    body = np.zeros((24, 24, 50), np.uint8)
    z, y, x = np.mgrid[:24, :24, :50]
    for centre in (13, 36):
        body[(z - 11.5) ** 2 + (y - 11.5) ** 2 + (x - centre) ** 2 <= 10**2] = 1
    body[10:14, 10:14, 13:36] = 1
    assert measure(body, {1: "mito"}, (10, 10, 10))["neck_ratio"][0] == pytest.approx(0.2, abs=0.06)


def test_empty_volume_and_errors():
    table = measure(np.zeros((3, 3, 3), np.uint16), {}, (5, 5, 5))
    assert {len(column) for column in table.values()} == {0}
    with pytest.raises(InputError, match="no organelle"):
        measure(np.ones((2, 2, 2), np.uint8), {}, (5, 5, 5))
    with pytest.raises(InputError, match="three axes"):
        measure(np.ones((2, 2), np.uint8), {1: "mito"}, (5, 5, 5))
