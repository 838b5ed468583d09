"""Probability maps of a whole volume on disk: written block by block, each block once, in any order, resumable.

::

    FOLDER/
        store.json      names, shape, block shape, voxel size, origin, and whatever decided the values ("settings")
        maps.zarr       zarr v3 array (channel, z, y, x), float16 in 0..1, on the grid of the volume itself; one shard
                        holds one block with all channels, one chunk one channel; 0 where nothing is written yet. Its
                        attributes are those of store.json without the settings
        done.txt        one line "z y x" (index in the grid of blocks) for each block that is complete on disk
        .lock           held by the process that is writing

Channels are those of ``Baseline.map_names``: organelle probabilities (background has the rest), then
``distance:<organelle>``, ``boundary:<organelle>`` and ``affinity:<k>``. A block is noted in ``done.txt`` only after its
shard was committed, and writing it again writes the same bytes, so ``kill -9`` at any moment costs one block.

    store = create_maps(folder, model.map_names, (64, 512, 512), (5, 5, 5), settings={...})
    for block in store.missing():
        store.write(block, values)                       # (channel, z, y, x) of store.box(block)
    maps = open_maps(folder).read(box, ["mito"])         # float32 (1, z, y, x); any box
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from em_bench_eval.alone import alone
from em_bench_eval.errors import InputError, unknown_name
from em_bench_eval.schema import VoxelSize
from em_bench_eval.volume_files import folder_store
from em_bench_eval.whole_file import write_whole
from lpa.ome_zarr import array_metadata, full_disk_is_os_error
from lpa.plan import Journal

Shape = tuple[int, int, int]  # (z, y, x)
Box = tuple[slice, slice, slice]
Index = tuple[int, int, int]  # of a block in the grid of blocks

ARRAY, JOURNAL, ABOUT, LOCK = "maps.zarr", "done.txt", "store.json", ".lock"
FORMAT = "em-organelle-wild maps v1"
ZSTD_LEVEL = 1
BLOCK_VOXELS = 1 << 22  # a block of seven float32 channels takes 120 MB
LARGEST_SLICE = 1 << 24  # pixels of a slice that is still one block
CHUNK_SIDE, CHUNK_VOXELS = 256, 1 << 18


@dataclass(frozen=True)
class MapStore:
    """An opened store; ``create_maps`` makes one, ``open_maps`` opens one."""

    folder: Path
    names: tuple[str, ...]  # of the channels
    shape: Shape
    block_shape: Shape
    voxel_size_nm: VoxelSize
    origin_nm: tuple[float, float, float]  # centre of the first voxel, (z, y, x)
    settings: Mapping[str, Any]

    @property
    def grid(self) -> Shape:
        """Number of blocks along each axis."""
        z, y, x = (-(-size // edge) for size, edge in zip(self.shape, self.block_shape, strict=True))
        return z, y, x

    def blocks(self) -> Iterator[Index]:
        """All blocks in raster order."""
        depth, height, width = self.grid
        return itertools.product(range(depth), range(height), range(width))

    def box(self, block: Index) -> Box:
        """The voxels of a block."""
        z, y, x = (
            slice(i * edge, min((i + 1) * edge, size))
            for i, edge, size in zip(block, self.block_shape, self.shape, strict=True)
        )
        return z, y, x

    def missing(self) -> list[Index]:
        """Blocks that are not complete, in raster order."""
        done = self._journal.done
        return [block for block in self.blocks() if block not in done]

    @property
    def is_complete(self) -> bool:
        """True once every block is on disk."""
        return not self.missing()

    def write(self, block: Index, values: npt.NDArray[np.floating[Any]]) -> None:
        """Write a block, ``(channel, z, y, x)`` in the shape of its box, and note that it is done.

        Raises ``OSError`` where the disk is full: the blocks before stay.
        """
        with full_disk_is_os_error():
            self.array[(slice(None), *self.box(block))].write(values.astype(np.float16, copy=False)).result()
        self._journal.add(block)
        self._journal.done.add(block)

    def read(self, box: Sequence[slice], names: Sequence[str] | None = None) -> npt.NDArray[np.float32]:
        """Read a ``(z, y, x)`` box of the channels ``names`` (default: all); float32 ``(channel, z, y, x)``."""
        channels = range(len(self.names)) if names is None else [self.channel(name) for name in names]
        reads = [self.array[(channel, *box)].read() for channel in channels]
        sides = [len(range(*side.indices(size))) for side, size in zip(box, self.shape, strict=True)]
        values = np.empty((len(reads), *sides), np.float32)
        for place, read in enumerate(reads):
            values[place] = read.result()
        return values

    def channel(self, name: str) -> int:
        """Index of a channel; a misspelt name answers "did you mean ..."."""
        if name not in self.names:
            raise unknown_name("map", name, self.names)
        return self.names.index(name)

    @cached_property
    def array(self) -> Any:
        """The tensorstore array ``(channel, z, y, x)``."""
        import tensorstore as ts

        spec = {"driver": "zarr3", "kvstore": folder_store(self.folder / ARRAY)}
        return ts.open(spec).result()

    @cached_property
    def _journal(self) -> Journal:
        return Journal(self.folder / JOURNAL)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the store for writing; ``InputError`` if another process does."""
        with alone(self.folder / LOCK, f"writing {self.folder}"):
            # tensorstore's, of a process that was killed while it wrote; nobody else writes now
            for stale in (self.folder / ARRAY).rglob("*.__lock"):
                stale.unlink(missing_ok=True)
            yield


def create_maps(
    folder: str | os.PathLike[str],
    names: Sequence[str],
    shape: Sequence[int],
    voxel_size_nm: Sequence[float],
    origin_nm: Sequence[float] = (0.0, 0.0, 0.0),
    *,
    settings: Mapping[str, Any] | None = None,
    block_shape: Sequence[int] | None = None,
) -> MapStore:
    """Make an empty store, or take up an interrupted (or complete) one of the same description.

    Args:
        folder: the folder of the store.
        names: of the channels.
        shape: ``(z, y, x)`` voxels of the volume.
        voxel_size_nm: ``(z, y, x)``.
        origin_nm: position of the first voxel in the source, ``(z, y, x)``.
        settings: everything that decides the values, JSON-able: weights, tiles, planes, source. A store that was
            begun with other settings is not continued.
        block_shape: ``(z, y, x)``; default ``default_blocks(shape)``.

    Raises:
        InputError: the folder holds a store of another description, or something else.
    """
    target = Path(folder)
    store = MapStore(
        target,
        tuple(names),
        _three(shape),
        _three(block_shape or default_blocks(shape)),
        VoxelSize(*voxel_size_nm),
        (float(origin_nm[0]), float(origin_nm[1]), float(origin_nm[2])),
        json.loads(json.dumps(dict(settings or {}))),
    )
    about = _about(store)
    if (target / ABOUT).is_file():
        found = json.loads((target / ABOUT).read_text())
        if found != about:
            raise InputError(
                f"{target} holds other maps",
                found="; ".join(_differences(found, about)),
                expected="; ".join(_differences(about, found)),
                remedy="repeat the settings to continue it, replace it (--overwrite), or name another folder",
            )
        return store
    if target.exists() and any(child.name != LOCK for child in target.iterdir()):
        raise InputError(f"{target} holds something else", expected="a new or empty folder", remedy="name another")
    target.mkdir(parents=True, exist_ok=True)
    _create_array(store, about)
    write_whole(target / ABOUT, lambda path: path.write_text(json.dumps(about, indent=2) + "\n"))
    return store


def open_maps(folder: str | os.PathLike[str]) -> MapStore:
    """Open a store; raises ``InputError`` if there is none."""
    path = Path(folder) / ABOUT
    if not path.is_file():
        raise InputError(
            f"{folder} holds no maps",
            found=f"no {ABOUT}",
            expected="a folder OUT/maps/VOLUME that `em-bench predict` wrote",
            remedy="predict a volume first: em-bench predict --help",
        )
    about = json.loads(path.read_text())
    return MapStore(
        Path(folder),
        tuple(about["names"]),
        _three(about["shape"]),
        _three(about["block_shape"]),
        VoxelSize(*about["voxel_size_nm"]),
        tuple(about["origin_nm"]),
        about["settings"],
    )


def default_blocks(shape: Sequence[int]) -> Shape:
    """Whole slices up to about ``BLOCK_VOXELS`` voxels; slices of more than ``LARGEST_SLICE`` pixels are cut up.

    Whole slices are what slice-wise prediction makes without doing any tile twice.
    """
    depth, height, width = (int(size) for size in shape)
    if height * width > LARGEST_SLICE:
        side = int(LARGEST_SLICE**0.5)
        height, width = (
            min(size, side * max(1, side // max(1, other))) for size, other in ((height, width), (width, height))
        )
    return max(1, min(depth, BLOCK_VOXELS // (height * width))), height, width


def chunk_of(block: Sequence[int]) -> Shape:
    """Chunk of one channel: about 256 pixels a side and up to 2^18 voxels; tensorstore needs divisors of the block."""
    height, width = (_divisor(edge, CHUNK_SIDE) for edge in block[1:])
    return _divisor(block[0], max(1, CHUNK_VOXELS // (height * width))), height, width


def _divisor(edge: int, most: int) -> int:
    """Largest divisor up to ``most``, unless it is tiny (the edge is nearly prime): then all of it."""
    best = max(size for size in range(1, min(edge, most) + 1) if edge % size == 0)
    return best if 4 * best >= min(edge, most) else edge


def _create_array(store: MapStore, about: Mapping[str, Any]) -> None:
    import tensorstore as ts

    channels = len(store.names)
    metadata = array_metadata(
        (channels, *store.shape),
        np.float16,
        (1, *chunk_of(store.block_shape)),
        (channels, *store.block_shape),
        ZSTD_LEVEL,
    )
    attributes = {key: value for key, value in about.items() if key != "settings"}
    metadata |= {"dimension_names": ["channel", "z", "y", "x"], "attributes": attributes}
    path = store.folder / ARRAY
    spec = {"driver": "zarr3", "kvstore": folder_store(path), "metadata": metadata}
    with full_disk_is_os_error():
        ts.open(
            spec, create=True, delete_existing=path.exists()
        ).result()  # store.json comes last: what lies here is torn


def _about(store: MapStore) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "names": list(store.names),
        "shape": list(store.shape),
        "block_shape": list(store.block_shape),
        "voxel_size_nm": list(store.voxel_size_nm),
        "origin_nm": list(store.origin_nm),
        "settings": dict(store.settings),
    }


def _differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    flat, against = ({**store, **store.get("settings", {})} for store in (one, other))
    return [f"{key} {flat[key]}" for key in flat if key != "settings" and flat[key] != against.get(key)]


def _three(values: Sequence[int]) -> Shape:
    z, y, x = (int(value) for value in values)
    return z, y, x
