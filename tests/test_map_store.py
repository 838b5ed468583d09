"""The store of maps: what is written is read, blocks are done or not, and other settings do not mix."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from baselines.volumes.map_store import chunk_of, create_maps, default_blocks, open_maps
from em_bench_eval.errors import InputError

NAMES = ("mito", "distance:mito")


def test_what_is_written_is_read_by_channel_and_box(tmp_path: Path) -> None:
    values = np.random.default_rng(0).random((2, 7, 20, 33)).astype(np.float32)
    store = create_maps(tmp_path / "m", NAMES, (7, 20, 33), (30, 5, 5), (0, 10, 20), block_shape=(3, 8, 33))
    assert store.grid == (3, 3, 1)
    for block in store.missing():
        assert not store.is_complete
        store.write(block, values[(slice(None), *store.box(block))])
    again = open_maps(tmp_path / "m")
    assert again.is_complete
    assert again.missing() == []
    assert (again.names, again.shape, again.origin_nm) == (NAMES, (7, 20, 33), (0.0, 10.0, 20.0))
    box = (slice(1, 6), slice(5, 20), slice(0, 9))
    np.testing.assert_array_equal(again.read(box), values[(slice(None), *box)].astype(np.float16).astype(np.float32))
    np.testing.assert_array_equal(again.read(box, ["distance:mito"])[0], again.read(box)[1])
    with pytest.raises(InputError, match="did you mean 'mito'"):
        again.read(box, ["mit"])


def test_any_zarr_library_reads_it(tmp_path: Path) -> None:
    zarr = pytest.importorskip("zarr")  # version 3 needs Python 3.11
    store = create_maps(tmp_path / "m", NAMES, (4, 6, 8), (30, 5, 5), block_shape=(2, 6, 8))
    store.write((1, 0, 0), np.full((2, 2, 6, 8), 0.25, np.float32))
    array = zarr.open_array(tmp_path / "m" / "maps.zarr", mode="r")
    assert array.shape == (2, 4, 6, 8)
    assert array.attrs["names"] == list(NAMES)
    assert array.attrs["voxel_size_nm"] == [30.0, 5.0, 5.0]
    assert array[:, 2:].min() == 0.25
    assert array[:, :2].max() == 0  # not written yet


def test_an_interrupted_store_is_taken_up_and_a_torn_line_is_a_missing_block(tmp_path: Path) -> None:
    make = {"settings": {"tile": 512}, "block_shape": (2, 4, 8)}
    store = create_maps(tmp_path / "m", NAMES, (4, 8, 8), (8, 8, 8), **make)
    for block in [(0, 0, 0), (1, 1, 0)]:
        store.write(block, np.ones((2, 2, 4, 8), np.float32))
    with (tmp_path / "m" / "done.txt").open("a") as file:
        file.write("0 1")  # killed while it wrote
    again = create_maps(tmp_path / "m", NAMES, (4, 8, 8), (8, 8, 8), **make)
    assert again.missing() == [(0, 1, 0), (1, 0, 0)]
    with pytest.raises(InputError, match=r"holds other maps\n  found: tile 512\n  expected: tile 256"):
        create_maps(tmp_path / "m", NAMES, (4, 8, 8), (8, 8, 8), settings={"tile": 256}, block_shape=(2, 4, 8))
    (tmp_path / "m" / "store.json").unlink()  # killed while it was made: nothing says what lies there
    with pytest.raises(InputError, match="holds something else"):
        create_maps(tmp_path / "m", NAMES, (4, 8, 8), (8, 8, 8), **make)


def test_two_writers_exclude_each_other_and_no_store_is_said_to_be_none(tmp_path: Path) -> None:
    store = create_maps(tmp_path / "m", NAMES, (2, 4, 4), (8, 8, 8))
    with store.alone(), pytest.raises(InputError, match="another run is writing"), open_maps(tmp_path / "m").alone():
        pass
    with pytest.raises(InputError, match="holds no maps"):
        open_maps(tmp_path / "other")
    assert json.loads((tmp_path / "m" / "store.json").read_text())["format"].endswith("v1")


@given(st.tuples(st.integers(1, 3000), st.integers(1, 60_000), st.integers(1, 60_000)))
@settings(max_examples=200, deadline=None)
def test_blocks_are_whole_slices_where_these_are_not_huge_and_chunks_divide_them(shape: tuple[int, int, int]) -> None:
    block = default_blocks(shape)
    assert all(1 <= edge <= size for edge, size in zip(block, shape, strict=True))
    assert np.prod(block) <= 1 << 24
    if shape[1] * shape[2] <= 1 << 24:
        assert block[1:] == shape[1:]
    chunk = chunk_of(block)
    assert all(edge % part == 0 for edge, part in zip(block, chunk, strict=True))


def test_a_store_above_this_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    store = create_maps("../m", NAMES, (2, 4, 4), (8, 8, 8))
    (block,) = store.missing()
    store.write(block, np.full((len(NAMES), 2, 4, 4), 0.5))
    assert (open_maps("../here/../m").read((slice(0, 2),) * 3) == 0.5).all()
