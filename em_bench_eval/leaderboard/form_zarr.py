"""``volumes/<volume id>.zarr``: label volumes (zarr v2 or v3, OME-Zarr) from which the images of the split are cut.

An image shows the plane ``axis = slice`` of its volume, from ``offset`` on, as in the dataset; ids stay those of the
volume. Only chunks that an image of the split needs are read; a chunk that is not there holds background.

Metadata is judged here before any array is opened: shape, type, chunk sizes and codecs.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from em_bench_eval.leaderboard.forms import Candidate, ObjectEntry
from em_bench_eval.leaderboard.items import Expected, volume_of
from em_bench_eval.leaderboard.objects_table import note_unknown_items, read_objects
from em_bench_eval.leaderboard.safe_read import read_text, whole_number
from em_bench_eval.leaderboard.verdict import Faults, printable
from em_bench_eval.schema import parse_record_id
from em_bench_eval.volume_files import folder_store

FOLDER = "volumes"
MAX_METADATA_BYTES = 2 * 2**20
MAX_CHUNK_BYTES = 512 * 2**20
MAX_SHARD_CHUNKS = 2**20
CACHE_BYTES = 512 * 2**20  # decoded chunks that neighbouring planes share
CODECS = frozenset({"bytes", "transpose", "zstd", "gzip", "blosc", "crc32c", "sharding_indexed"})
COMPRESSORS = frozenset({None, "zstd", "gzip", "zlib", "blosc", "bz2"})
SIZE_TOLERANCE = 1e-3  # relative, of a stated voxel size
PLACES = ("", "labels/instances", "instances")  # inside the store, where the labels may be


@dataclass(frozen=True)
class Array:
    """A judged array: where it is and what its metadata say."""

    path: str  # inside the submission
    driver: str
    shape: tuple[int, ...]
    voxel_size_nm: tuple[float, ...] | None


class ZarrForm:
    """See ``forms.Form``."""

    def __init__(self, folder: Path, files: Mapping[str, int], expected: Expected | None, faults: Faults):
        self._folder = folder
        self._arrays: dict[str, Array] = {}
        stores = sorted({file.split("/")[1] for file in files if file.startswith(f"{FOLDER}/") and file.count("/") > 1})
        loose = [file for file in files if file.startswith(f"{FOLDER}/") and file.count("/") == 1]
        for file in loose:
            faults.note("unreadable", file, "a file", f"{FOLDER}/<volume id>.zarr, a folder")
        needed = {} if expected is None else {volume_of(name): None for name in expected.items}
        for store in stores:
            name = store.removesuffix(".zarr")
            if expected is not None and name not in needed:
                faults.note("extra", f"{FOLDER}/{store}", "no image of the split is cut from it")
                continue
            array = _judge(folder, f"{FOLDER}/{store}", files, faults)
            if array is not None and _fits(name, array, expected, faults):
                self._arrays[name] = array
        submitted = {store.removesuffix(".zarr") for store in stores}
        images = expected.items if expected is not None else {}
        # an image of a submitted volume is not missing, whatever is wrong with the volume
        self.ids: Sequence[str] = sorted(name for name in images if volume_of(name) in submitted)
        self._items = images
        objects = read_objects(folder, files, faults)
        note_unknown_items(objects, submitted, faults)
        self._objects = {volume_id: _by_id(entries) for volume_id, entries in objects.items()}
        self._open: dict[str, Any] = {}

    def read(self, start: int, stop: int, faults: Faults) -> Iterator[Candidate]:
        """Decode ``ids[start:stop]``."""
        for place in range(start, min(stop, len(self.ids))):
            name = self.ids[place]
            volume_id, axis, index, offset = parse_record_id(name)
            if volume_id not in self._arrays:
                continue
            side = "zyx".find(axis)
            plane = [size for at, size in enumerate(self._arrays[volume_id].shape) if at != side]
            (height, width), (y, x) = self._items[name].shape, offset
            if index >= self._arrays[volume_id].shape[side] or y + height > plane[0] or x + width > plane[1]:
                faults.note("shape", name, f"a volume of {self._arrays[volume_id].shape}", "one that holds this image")
                continue
            box: list[int | slice] = [slice(y, y + height), slice(x, x + width)]
            box.insert(side, index)
            try:
                labels = np.asarray(self._opened(volume_id)[tuple(box)].read().result())
            except Exception as error:  # whatever damaged chunks make the decoder raise
                text = str(error).split(" [source locations")[0]
                faults.note("unreadable", name, f"{type(error).__name__}: {text}", "chunks that fit the metadata")
                continue
            named = self._objects.get(volume_id, {})
            shown = np.unique(labels).tolist()  # a volume's other objects are not in this image
            yield Candidate(name, labels, [entry for id_ in shown for entry in named.get(id_, ())])

    def _opened(self, volume_id: str) -> Any:
        import tensorstore as ts

        if volume_id not in self._open:
            array = self._arrays[volume_id]
            spec = {"driver": array.driver, "kvstore": folder_store(self._folder / array.path)}
            context = ts.Context({"cache_pool": {"total_bytes_limit": CACHE_BYTES}})
            self._open = {volume_id: ts.open(spec, read=True, context=context).result()}  # one at a time
        return self._open[volume_id]


def _by_id(entries: Sequence[ObjectEntry]) -> dict[int, list[ObjectEntry]]:
    found: dict[int, list[ObjectEntry]] = {}
    for entry in entries:
        id_ = whole_number(entry[0], 1)
        if id_ is not None:
            found.setdefault(id_, []).append(entry)
    return found


def _judge(folder: Path, store: str, files: Mapping[str, int], faults: Faults) -> Array | None:
    """Find the array of instances in a store and judge its metadata; faults are noted."""
    scale: tuple[float, ...] | None = None
    for place in PLACES:
        path = f"{store}/{place}".rstrip("/")
        for _ in range(2):  # a group that declares a pyramid, then its finest level
            if f"{path}/.zarray" in files:
                about = _metadata(folder, f"{path}/.zarray", faults)
                return None if about is None else _array(path, "zarr", about, scale, faults)
            if f"{path}/zarr.json" in files:
                about = _metadata(folder, f"{path}/zarr.json", faults)
                if about is None or about.get("node_type") == "array":
                    return None if about is None else _array(path, "zarr3", about, scale, faults)
                attributes = about.get("attributes")
            elif f"{path}/.zattrs" in files:
                attributes = _metadata(folder, f"{path}/.zattrs", faults)
            else:
                break
            level, scale = _finest(attributes, f"{path}", faults)
            if level is None:
                break
            path = f"{path}/{level}"
    faults.note("unreadable", store, "no array", "a zarr array, an OME-Zarr group, or labels/instances inside a group")
    return None


def _metadata(folder: Path, name: str, faults: Faults) -> Mapping[str, Any] | None:
    text = read_text(folder / name, MAX_METADATA_BYTES, faults, name)
    if text is None:
        return None
    try:
        about = json.loads(text)
    except (ValueError, RecursionError) as error:
        faults.note("unreadable", name, printable(error, 100), "JSON")
        return None
    if not isinstance(about, dict):
        faults.note("unreadable", name, f"a {type(about).__name__}", "an object")
        return None
    return about


def _finest(attributes: Any, where: str, faults: Faults) -> tuple[str | None, tuple[float, ...] | None]:
    """Return the name of a pyramid's finest level and its voxel size in nm, ``(z, y, x)``, if it states one."""
    from em_bench_eval.spacing import multiscales, of_multiscales

    try:
        pyramid = multiscales(attributes if isinstance(attributes, Mapping) else {})
        if pyramid is None:
            return None, None
        level = str(pyramid["datasets"][0]["path"])
        spacing = of_multiscales(pyramid, 0)
        size = None if spacing is None else spacing.voxel_size_nm()
    except Exception as error:  # attributes can hold anything
        faults.note("unreadable", where, f"multiscales: {type(error).__name__}", "OME-Zarr multiscales")
        return None, None
    if not level or level.startswith((".", "/")) or "/" in level or not level.isprintable():
        faults.note("unsafe", where, f"a level called {printable(level, 60)!r}", "a plain name such as 0 or s0")
        return None, None
    return level, None if size is None else tuple(size)


def _array(
    path: str, driver: str, about: Mapping[str, Any], scale: tuple[float, ...] | None, faults: Faults
) -> Array | None:
    shape = _whole(about.get("shape"))
    chunks, codecs = _chunks_v2(about) if driver == "zarr" else _chunks_v3(about)
    text = about.get("dtype") if driver == "zarr" else about.get("data_type")
    try:
        dtype = np.dtype(text) if isinstance(text, str) and len(text) < 10 else None
    except TypeError:
        dtype = None
    if dtype is None or dtype.kind not in "ui":
        faults.note("dtype", path, printable(text, 60), "unsigned integers of 8 to 64 bits")
        return None
    if len(shape) != 3 or len(chunks) != 3 or min((*shape, *chunks)) < 1:
        faults.note("shape", path, f"shape {printable(about.get('shape'), 60)}, chunks {chunks}", "(z, y, x)")
        return None
    if math.prod(chunks) * dtype.itemsize > MAX_CHUNK_BYTES:
        faults.note("unsafe", path, f"chunks of {chunks}", f"at most {MAX_CHUNK_BYTES // 2**20} MiB a chunk")
        return None
    unknown = [codec for codec in codecs if codec not in (COMPRESSORS if driver == "zarr" else CODECS)]
    if unknown:
        known = sorted(str(codec) for codec in (COMPRESSORS if driver == "zarr" else CODECS))
        faults.note("unsafe", path, f"codec {printable(unknown[0], 60)}", ", ".join(known))
        return None
    return Array(path, driver, shape, scale)


def _whole(values: Any) -> tuple[int, ...]:
    if not isinstance(values, list) or not 1 <= len(values) <= 8:
        return ()
    right = all(isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31 for value in values)
    return tuple(values) if right else ()


def _chunks_v2(about: Mapping[str, Any]) -> tuple[tuple[int, ...], list[Any]]:
    compressor, filters = about.get("compressor"), about.get("filters")
    codec = compressor.get("id") if isinstance(compressor, Mapping) else compressor
    return _whole(about.get("chunks")), [codec if isinstance(codec, (str, type(None))) else "?", *(filters or ())]


def _chunks_v3(about: Mapping[str, Any]) -> tuple[tuple[int, ...], list[Any]]:
    """Return the size of what is decoded as one, and the names of all codecs, those inside shards too."""
    grid = about.get("chunk_grid")
    settings = grid.get("configuration") if isinstance(grid, Mapping) and grid.get("name") == "regular" else None
    chunks = _whole(settings.get("chunk_shape")) if isinstance(settings, Mapping) else ()
    names: list[Any] = []
    waiting = about.get("codecs")
    for _ in range(4):  # shards inside shards
        if not isinstance(waiting, list) or not all(isinstance(codec, Mapping) for codec in waiting):
            return (), names
        names += [codec.get("name") for codec in waiting]
        shards = [codec.get("configuration") for codec in waiting if codec.get("name") == "sharding_indexed"]
        if not shards:
            return chunks, [name if isinstance(name, str) else "?" for name in names]
        inner = _whole(shards[0].get("chunk_shape")) if isinstance(shards[0], Mapping) else ()
        if len(inner) != len(chunks) or not all(inner):
            return (), names
        if math.prod(-(-outer // part) for outer, part in zip(chunks, inner, strict=True)) > MAX_SHARD_CHUNKS:
            return (), names
        index = shards[0].get("index_codecs", [])
        names += [codec.get("name") for codec in index if isinstance(codec, Mapping)] if isinstance(index, list) else []
        chunks, waiting = inner, shards[0].get("codecs")
    return (), names


def _fits(name: str, array: Array, expected: Expected | None, faults: Faults) -> bool:
    """Compare an array with the dataset's volume of this name."""
    volume = expected.volumes.get(name) if expected is not None else None
    if volume is None:
        return True
    if array.shape != volume.shape:
        faults.note("shape", array.path, array.shape, f"{volume.shape} (z, y, x)")
        return False
    stated = array.voxel_size_nm
    if stated is not None and any(
        abs(mine - right) > SIZE_TOLERANCE * right for mine, right in zip(stated, volume.voxel_size_nm, strict=True)
    ):
        faults.note("pixel-size", array.path, f"{stated} nm", f"{volume.voxel_size_nm} nm (z, y, x)")
        return False
    return True
