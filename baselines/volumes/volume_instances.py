"""From the maps of a whole volume to its instances: one id per instance in the whole volume, whatever the blocks.

::

    maps -> classes -> holes filled -> components -> touching ones split -> small ones dropped -> OUT.zarr

    OUT.zarr/                       OME-Zarr 0.5, laid out as a volume of the dataset without its image
        labels/instances/s0         ids 1..N, in the order of the components' first voxels
        labels/semantic/s0          Organelle.label_id
        labels/ignore/s0            1 where nothing was predicted or annotated; only if there is such a region
        labels/instances.parquet    one row per instance: organelle, confidence, voxels

The rules are those of images (``baselines.decode.DECODERS``) in three dimensions: the minimum volume is that of the
ball whose cross section has the decoder's minimum area (``min_volume_nm3``), holes are closed cavities, and components
are connected as ``lpa.DEFAULT_CONNECTIVITY`` says (6 neighbours for compact organelles, 26 for networks).
"""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from baselines.decode import DECODERS, Decoder, methods_of
from baselines.volumes.map_store import Box, MapStore, Shape
from baselines.volumes.volume_classes import (
    BLOCK,
    Components,
    Work,
    boxes,
    components,
    create_volume,
    filled,
    measure,
    organelles_in,
    semantic,
)
from baselines.volumes.volume_split import LANDSCAPES, LARGEST_BOX, Cut, Pieces, save_pieces, split_component
from em_bench_eval.alone import alone
from em_bench_eval.errors import InputError
from em_bench_eval.opened import Opened
from em_bench_eval.schema import Organelle
from em_bench_eval.whole_file import write_whole
from lpa.ome_zarr import full_disk_is_os_error, write_group
from lpa.plan import replace_folder

TABLE = "labels/instances.parquet"  # of a volume's folder
SHOWN_COMPONENTS = 100
LISTED_IN_ATTRIBUTES = 4096  # instances; the organelles of more are in the table of the prediction only


@dataclass(frozen=True)
class Instances:
    """The instances of one volume; entry ``i`` is id ``i + 1``."""

    label_id: npt.NDArray[np.uint8]
    voxels: npt.NDArray[np.int64]
    confidence: npt.NDArray[np.float32]  # mean probability of the organelle

    def organelle_of(self) -> dict[int, Organelle]:
        """Organelle of every id."""
        known = {organelle.label_id: organelle for organelle in Organelle}
        return {number: known[value] for number, value in enumerate(self.label_id.tolist(), start=1)}

    def counts(self) -> dict[str, int]:
        """Number of instances of each organelle that has any."""
        return {o.value: n for o in Organelle if (n := int(np.count_nonzero(self.label_id == o.label_id)))}


@dataclass(frozen=True)
class Target:
    """Where the instances go: a volume that may be larger than what was predicted."""

    path: Path  # OUT.zarr
    name: str  # of the volume
    shape: Shape
    offset: tuple[int, int, int] = (0, 0, 0)  # of the maps' first voxel in it
    origin_nm: tuple[float, float, float] = (0.0, 0.0, 0.0)  # of its own first voxel
    ignore: Any = None  # box -> bool array, True where nothing is to be judged; None: nowhere


def min_volume_nm3(decoder: Decoder, thinnest_nm: float) -> float:
    """Volume of the ball whose largest cross section is the decoder's minimum area.

    In a volume that is thinner than that (its smallest extent is ``thinnest_nm``), the area times the thickness: of
    one slice, the rule of images.
    """
    area = decoder.min_area_nm2
    two_thirds_of_diameter = 4.0 / 3.0 * math.sqrt(area / math.pi)
    return area * min(two_thirds_of_diameter, thinnest_nm)


def label_maps(
    store: MapStore,
    target: Target,
    decoders: Mapping[Organelle, Decoder] = DECODERS,
    *,
    wanted: str | None = None,
    about: Mapping[str, Any] | None = None,
    largest_box: int = LARGEST_BOX,
    progress: bool = True,
) -> Instances:
    """Make the instances of a complete store and write them to ``target``; return them.

    ``wanted`` is a method of ``baselines.decode``, by default the best one that the maps allow (``methods_of``).
    An interrupted call goes on with the step that it was at when it is repeated. Ids do not depend on blocks. Memory
    follows a block, the number of components, and the largest component up to ``largest_box`` voxels of its box.
    """
    if not store.is_complete:
        raise InputError(
            f"the maps in {store.folder} are not complete",
            found=f"{len(store.missing())} blocks missing",
            remedy="finish the prediction: repeat the command that began it",
        )
    methods = methods_of(store.names, 3, wanted, decoders)
    folder = target.path.with_name(f".{target.path.name}.work")
    folder.mkdir(parents=True, exist_ok=True)
    with alone(folder / "lock", f"writing {target.path}"):
        _same_or_empty(folder, store, decoders, methods, largest_box)
        work = Work(folder, store.shape, progress)
        classes = filled(semantic(store, work), [o for o in organelles_in(store) if decoders[o].fill_holes], work)
        labels = components(Path(classes.location), work)
        found = measure(labels, classes, store, work)
        naming = _Naming(found, store, labels, decoders, methods, work, largest_box)
        _write(naming, labels, store, target, work, about or {})
    shutil.rmtree(folder)
    return naming.instances


class _Naming:
    """Which components stay, which are split, and the ids of all."""

    def __init__(
        self,
        found: Components,
        store: MapStore,
        labels: Opened,
        decoders: Mapping[Organelle, Decoder],
        methods: Mapping[Organelle, str],
        work: Work,
        largest_box: int,
    ) -> None:
        self.folder = work.folder / "pieces"
        self.folder.mkdir(exist_ok=True)
        self.id_of = np.zeros(len(found.voxels) + 1, np.uint32)  # of components that are one instance
        self.ids_of: dict[
            int, npt.NDArray[np.uint32]
        ] = {}  # of the pieces (0: background) of components that are split
        self.pieces: dict[int, Pieces] = {}  # only of those that are not held in memory
        self.start = found.start
        known = {organelle.label_id: organelle for organelle in Organelle}
        voxel_nm3 = math.prod(store.voxel_size_nm)
        thinnest = min(size * nm for size, nm in zip(store.shape, store.voxel_size_nm, strict=True))
        smallest_nm3 = {organelle: min_volume_nm3(decoders[organelle], thinnest) for organelle in Organelle}
        least = np.array([0.0, *(max(1.0, smallest_nm3[organelle] / voxel_nm3) for organelle in Organelle)])
        cuts = {
            o: Cut(LANDSCAPES[m](store, labels, o, decoders[o], m, smallest_nm3[o]), store, labels, o.value)
            for o, m in methods.items()
            if m in LANDSCAPES
        }
        candidates = np.flatnonzero(found.voxels >= least[found.label_id])
        rows: list[tuple[int, int, float]] = []
        hidden = not work.progress or len(candidates) < SHOWN_COMPONENTS
        show = tqdm(candidates, "split", unit="component", disable=hidden, leave=False, file=sys.stderr)
        for index in show:
            number, organelle = int(index) + 1, known[int(found.label_id[index])]
            if organelle not in cuts:
                rows.append((organelle.label_id, int(found.voxels[index]), float(found.probability[index])))
                self.id_of[number] = len(rows)
                continue
            where = found.start[index], found.stop[index]
            pieces = split_component(number, *where, cuts[organelle], work, largest_box)
            kept = np.flatnonzero(pieces.voxels >= least[organelle.label_id])
            ids = np.zeros(len(pieces.voxels) + 1, np.uint32)
            ids[kept + 1] = len(rows) + 1 + np.arange(len(kept))
            for piece in kept:
                rows.append((organelle.label_id, int(pieces.voxels[piece]), float(pieces.probability[piece])))
            if len(pieces.voxels) == 1:
                self.id_of[number] = ids[1]
            elif len(kept):
                self.ids_of[number] = ids
                if isinstance(pieces.labels, np.ndarray):
                    save_pieces(self._file(number), pieces.labels)
                else:
                    self.pieces[number] = pieces
        columns = list(zip(*rows, strict=True)) or [(), (), ()]
        voxels = np.array(columns[1], np.int64)
        confidence = np.clip(np.array(columns[2], np.float64) / np.maximum(voxels, 1), 0, 1).astype(np.float32)
        self.instances = Instances(np.array(columns[0], np.uint8), voxels, confidence)
        self._labels_of = lru_cache(maxsize=64)(self._load)

    def instance_ids(self, parts: npt.NDArray[Any], box: Box) -> npt.NDArray[np.uint32]:
        """Turn a box of components into instances."""
        ids: npt.NDArray[np.uint32] = self.id_of[parts]
        for number in np.unique(parts).tolist():
            if number not in self.ids_of:
                continue
            labels = self._labels_of(number)
            corner = self.start[number - 1]
            low = [max(side.start, int(at)) for side, at in zip(box, corner, strict=True)]
            high = [min(side.stop, int(at) + size) for side, at, size in zip(box, corner, labels.shape, strict=True)]
            here = tuple(slice(a - s.start, b - s.start) for a, b, s in zip(low, high, box, strict=True))
            there = tuple(slice(a - int(at), b - int(at)) for a, b, at in zip(low, high, corner, strict=True))
            mine = parts[here] == number
            ids[here][mine] = self.ids_of[number][labels[there][mine]]
        return ids

    def _load(self, number: int) -> Any:
        if number in self.pieces:
            return self.pieces[number].labels
        with np.load(self._file(number)) as file:
            return file["labels"]

    def _file(self, number: int) -> Path:
        return self.folder / f"{number}.npz"


def _write(
    naming: _Naming, labels: Opened, store: MapStore, target: Target, work: Work, about: Mapping[str, Any]
) -> None:
    """Write the volume under another name, then give it its own."""
    partial = work.folder / "result.zarr"
    if partial.exists():
        shutil.rmtree(partial)
    voxel_nm = tuple(store.voxel_size_nm)
    dtypes = {"instances": np.uint32, "semantic": np.uint8} | ({"ignore": np.uint8} if target.ignore else {})
    arrays = {
        name: create_volume(partial / "labels" / name, target.shape, dtype, voxel_nm, translation_nm=target.origin_nm)
        for name, dtype in dtypes.items()
    }
    class_of = np.concatenate([np.zeros(1, np.uint8), naming.instances.label_id])
    for box in work.boxes("write", target.shape):
        part = tuple(
            slice(max(s.start - by, 0), min(s.stop - by, size))
            for s, by, size in zip(box, target.offset, store.shape, strict=True)
        )
        values: dict[str, npt.NDArray[Any]] = {}
        if all(s.start < s.stop for s in part):
            ids = np.zeros([s.stop - s.start for s in box], np.uint32)
            place = tuple(
                slice(s.start + by - b.start, s.stop + by - b.start)
                for s, by, b in zip(part, target.offset, box, strict=True)
            )
            z, y, x = part
            ids[place] = naming.instance_ids(labels[part], (z, y, x))
            values = {"instances": ids, "semantic": class_of[ids]}
        if target.ignore:
            values["ignore"] = target.ignore(box).astype(np.uint8)
        for name, array in values.items():
            with full_disk_is_os_error():
                arrays[name][box].write(array).result()
    _describe(partial, target, voxel_nm, naming.instances, list(dtypes), about)
    write_table(partial / TABLE, {target.name: naming.instances})
    target.path.parent.mkdir(parents=True, exist_ok=True)
    replace_folder(partial, target.path)


def _describe(
    path: Path,
    target: Target,
    voxel_nm: tuple[float, ...],
    instances: Instances,
    groups: list[str],
    about: Mapping[str, Any],
) -> None:
    """Write the attributes; the group itself points at the instances, so that any OME-Zarr reader shows them."""
    transforms: list[dict[str, Any]] = [{"type": "scale", "scale": list(voxel_nm)}]
    if any(target.origin_nm):
        transforms.append({"type": "translation", "translation": list(target.origin_nm)})
    pyramid = {
        "name": target.name,
        "axes": [{"name": axis, "type": "space", "unit": "nanometer"} for axis in "zyx"],
        "datasets": [{"path": "labels/instances/s0", "coordinateTransformations": transforms}],
    }
    described: dict[str, Any] = {**about, "instances": len(instances.voxels), "instances_of": instances.counts()}
    if len(instances.voxels) <= LISTED_IN_ATTRIBUTES:
        described["organelle_of"] = {str(id_): str(organelle) for id_, organelle in instances.organelle_of().items()}
    write_group(path, {"ome": {"version": "0.5", "multiscales": [pyramid]}, "em_organelle_wild": described})
    write_group(path / "labels", {"ome": {"version": "0.5", "labels": groups}})


def write_table(path: Path, volumes: Mapping[str, Instances]) -> None:
    """Write ``volume_id, instance_id, organelle, confidence, voxels``, one row per instance."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = np.array(["", *(organelle.value for organelle in Organelle)])
    tables = [
        pa.table(
            {
                "volume_id": pa.array([name] * len(found.voxels), pa.string()),
                "instance_id": np.arange(1, len(found.voxels) + 1, dtype=np.int64),
                "organelle": pa.array(names[found.label_id], pa.string()),
                "confidence": found.confidence,
                "voxels": found.voxels,
            }
        )
        for name, found in volumes.items()
    ]
    write_whole(path, lambda partial: pq.write_table(pa.concat_tables(tables), partial, compression="zstd"))


def read_table(path: str | os.PathLike[str]) -> Instances:
    """Read the instances of one volume back from its own table."""
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    ids = {organelle.value: organelle.label_id for organelle in Organelle}
    return Instances(
        np.array([ids[name] for name in table["organelle"].to_pylist()], np.uint8),
        table["voxels"].to_numpy().astype(np.int64),
        table["confidence"].to_numpy().astype(np.float32),
    )


def _same_or_empty(
    folder: Path,
    store: MapStore,
    decoders: Mapping[Organelle, Decoder],
    methods: Mapping[Organelle, str],
    largest_box: int,
) -> None:
    """Keep the steps of an interrupted run only if it would do the same."""
    wanted = json.loads(
        json.dumps(
            {
                "maps": [*store.names, *store.shape, *store.voxel_size_nm],
                "settings": dict(store.settings),
                "decoders": {organelle.value: asdict(decoder) for organelle, decoder in decoders.items()},
                "methods": {organelle.value: method for organelle, method in methods.items()},
                "largest_box": largest_box,
                "block": BLOCK,
            }
        )
    )
    manifest = folder / "manifest.json"
    if manifest.exists() and json.loads(manifest.read_text()) == wanted:
        return
    for child in folder.iterdir():
        if child.is_dir():
            shutil.rmtree(child)
    write_whole(manifest, lambda path: path.write_text(json.dumps(wanted, indent=1) + "\n"))


def volume_boxes(shape: Shape) -> list[Box]:
    """The boxes in which label volumes are written."""
    return list(boxes(shape))
