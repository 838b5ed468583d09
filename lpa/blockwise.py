"""Labelling volumes larger than memory: block by block, exact, on as many workers as there are.

::

    pass 1   every block by itself      read, label, keep only its faces and who touches them
    join     serial, small              components that meet across blocks get one name: the smallest uid
    pass 2   every block by itself      read, label again, write the names

Labelling twice costs less than storing an intermediate label volume and reading it back. A component's uid is its
minimum linear index + 1 in the whole volume; that of its piece in a block is known in the block, because the first
voxel of the piece in the block's raster order is also its first in the volume's. So the result equals ``lpa.label``.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from tqdm import tqdm

from em_bench_eval.errors import InputError, unknown_name
from em_bench_eval.schema import Organelle
from em_bench_eval.volume_io import Opened, is_remote, open_volume
from lpa.block import Connectivity, connectivity_of
from lpa.jobs import Job, find_components, write_labels
from lpa.merge import merge
from lpa.ome_zarr import LABEL_ARRAY, create_labels
from lpa.plan import Index, Journal, Plan, Shape, work_folder
from lpa.scheduler import Pool, open_pool

T = TypeVar("T")

BLOCK_EDGE = 256  # voxels; a block and its labels take 5 or 9 bytes a voxel
CHUNK_EDGE = 64


@dataclass(frozen=True)
class LabelReport:
    """What a run did."""

    shape: Shape
    instances: Mapping[int, int]  # semantic value -> number of instances
    seconds: float  # of this run; an interrupted one's are not in it
    blocks: int
    found_before: int  # blocks that an interrupted run had finished in pass 1
    written_before: int  # and in pass 2

    def __str__(self) -> str:
        voxels = self.shape[0] * self.shape[1] * self.shape[2]
        known = {organelle.label_id: str(organelle) for organelle in Organelle}
        if not set(self.instances) <= set(known):
            known = {value: f"class {value}" for value in self.instances}
        parts = [f"{known[value]} {count:,}" for value, count in self.instances.items()]
        if len(parts) > len(Organelle):
            parts = [f"{len(parts)} classes"]
        resumed = ", resumed" if self.found_before else ""
        return (
            f"{sum(self.instances.values()):,} instances ({', '.join(parts) or 'none'}) in "
            f"{' x '.join(map(str, self.shape))} voxels, {self.seconds:.1f} s, "
            f"{voxels / max(self.seconds, 1e-9) / 1e6:.1f} Mvoxel/s{resumed}"
        )


def label_zarr(
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    block_shape: Sequence[int] | None = None,
    connectivity: Connectivity = 26,
    relabel: str = "min_index",
    scheduler: str | None = None,
    workers: int | None = None,
    *,
    overwrite: bool = False,
    progress: bool = True,
) -> LabelReport:
    """Label the same-class connected components of a volume on disk or on a server; equals ``lpa.label``.

    If a run is interrupted, also by ``kill -9``, the same call continues it: finished blocks are not done again. The
    destination gets its name when it is complete.

    Args:
        source: anything that ``em_bench_eval.volume_io.open_volume`` opens; integers or booleans, 0 = background.
        destination: the local OME-Zarr 0.5 group to make, with one sharded zarr v3 array ``s0``.
        block_shape: ``(z, y, x)`` voxels; one block is one shard of the result. By default about 256 a side, whole
            chunks of the source. The result does not depend on it.
        connectivity: 6, 18 or 26 for all classes; per organelle (``{"mito": 6, "er": 26}``); or ``"default"``:
            ``lpa.DEFAULT_CONNECTIVITY`` for the values 1 to 5 and 26 for any other.
        relabel: ``"min_index"`` (uint32, or uint64 from 2^32 voxels) or ``"compact"`` (1..N in that order, uint32).
        scheduler: ``None`` for threads, ``"processes"``, or the address of a ``dask.distributed`` scheduler, whose
            workers must see source, destination and its folder under the same paths.
        workers: threads or processes, by default one for each core; memory grows with them.
        overwrite: replace an existing destination once the new one is complete, and the remains of a run that had other
            settings.
        progress: show a bar on stderr.

    Raises:
        InputError: an unusable source, an existing destination, other settings than the interrupted run's.
    """
    began = time.perf_counter()
    opened = open_volume(source).as_labels()
    plan = _plan(opened, source, destination, block_shape, connectivity, relabel)
    if os.path.lexists(plan.destination) and not overwrite:
        raise InputError(
            f"{plan.destination} exists", expected="a new name", remedy="choose another, or overwrite it (--overwrite)"
        )
    with open_pool(scheduler, workers) as pool, work_folder(plan, overwrite):
        blocks = plan.blocks()
        to_find = [block for block in blocks if not plan.faces_file(block).exists()]
        _each(pool, find_components, plan, to_find, len(blocks), "finding components", progress)

        merged = plan.work / "merged.json"
        if merged.exists() and not to_find:
            instances = {int(value): count for value, count in json.loads(merged.read_text()).items()}
        else:
            instances = merge(plan, blocks, _bar(blocks, len(blocks), 0, "joining blocks", progress))

        journal_file = plan.work / "written.txt"
        if not (plan.labels / LABEL_ARRAY / "zarr.json").exists():
            journal_file.unlink(missing_ok=True)
            _create(plan, opened, instances)
        journal = Journal(journal_file)
        to_write = [block for block in blocks if block not in journal.done]
        _each(pool, write_labels, plan, to_write, len(blocks), "writing labels", progress, journal.add)
        _publish(plan)
    shutil.rmtree(plan.work)
    written_before, found_before = len(blocks) - len(to_write), len(blocks) - len(to_find)
    seconds = time.perf_counter() - began
    return LabelReport(plan.shape, instances, seconds, len(blocks), found_before, written_before)


def _plan(
    opened: Opened,
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    block_shape: Sequence[int] | None,
    connectivity: Connectivity,
    relabel: str,
) -> Plan:
    """Check the settings before anything is written."""
    if relabel not in ("min_index", "compact"):
        raise unknown_name("relabel", relabel, ("min_index", "compact"))
    if isinstance(connectivity, str) and connectivity != "default":
        raise unknown_name("connectivity", connectivity, ("default",))
    connectivity_of(connectivity, [])  # names and numbers are valid
    if opened.dtype.kind not in "bui":
        raise InputError(
            f"{source} does not hold class numbers",
            found=f"dtype {opened.dtype}",
            expected="bool, or signed or unsigned integers",
            remedy="threshold probabilities or take their argmax first",
        )
    if "image-label" not in opened.attributes.get("ome", opened.attributes) and _has_semantic_labels(source):
        raise InputError(
            f"{source} is an image, and its labels lie beside it",
            expected="a semantic volume",
            remedy=f"label {os.fspath(source).rstrip('/')}/labels/semantic",
        )
    if 0 in opened.shape:
        raise InputError(f"{source} is empty", found=f"shape {opened.shape}", expected="at least one voxel")
    if is_remote(destination):
        raise InputError(
            "the destination is written on a local file system", found=destination, expected="a local path"
        )
    where = Path(os.path.abspath(os.fspath(destination)))
    location = os.fspath(source)
    if not is_remote(source):
        path = Path(os.path.abspath(location.removeprefix("file://")))
        if path.resolve().is_relative_to(where.resolve()):
            raise InputError(
                "the destination would replace the source", found=f"{location} and {destination}", expected="two places"
            )
        location = str(path)
    if block_shape is None:
        block_shape = default_block_shape(opened.shape, opened.chunk_shape)
    if len(block_shape) != 3 or any(edge < 1 for edge in block_shape):
        raise InputError("the block shape is three edges in voxels", found=tuple(block_shape), expected="(z, y, x)")
    z, y, x = (min(int(edge), max(1, size)) for edge, size in zip(block_shape, opened.shape, strict=True))
    chosen: int | str | dict[str, int]
    if isinstance(connectivity, Mapping):
        chosen = {str(name): int(value) for name, value in connectivity.items()}
    else:
        chosen = connectivity if isinstance(connectivity, str) else int(connectivity)
    return Plan(location, opened.shape, opened.dtype.name, str(where), (z, y, x), chosen, relabel)


def _has_semantic_labels(source: str | os.PathLike[str]) -> bool:
    """True for an OME-Zarr image with ``labels/semantic``, as ``em-bench build`` writes them."""
    try:
        open_volume(f"{os.fspath(source).rstrip('/')}/labels/semantic")
    except InputError:
        return False
    return True


def default_block_shape(shape: Shape, chunk_shape: Shape) -> Shape:
    """About 256 voxels a side, in whole chunks of the source where these are not larger themselves."""

    def edge(size: int, chunk: int) -> int:
        return min(size, chunk * max(1, round(BLOCK_EDGE / chunk)) if chunk <= BLOCK_EDGE else BLOCK_EDGE)

    z, y, x = (max(1, edge(size, chunk)) for size, chunk in zip(shape, chunk_shape, strict=True))
    return z, y, x


def chunk_edge(shard_edge: int) -> int:
    """Largest divisor of a shard's edge up to 64; the whole edge where there is none from 16 up."""
    divisors = [edge for edge in range(16, CHUNK_EDGE + 1) if shard_edge % edge == 0]
    return max(divisors, default=shard_edge)


def _create(plan: Plan, opened: Opened, instances: Mapping[int, int]) -> None:
    chunk = tuple(chunk_edge(edge) for edge in plan.block_shape)
    about = {
        "source": plan.source,
        "connectivity": plan.connectivity,
        "relabel": plan.relabel,
        "instances_of_class": {str(value): count for value, count in instances.items()},
    }
    create_labels(
        plan.labels,
        plan.shape,
        plan.label_dtype,
        tuple(opened.voxel_size_nm) if opened.voxel_size_nm else None,
        (chunk[0], chunk[1], chunk[2]),
        plan.block_shape,
        translation_nm=opened.translation_nm,
        attributes={"lpa": about},
    )


def _each(
    pool: Pool,
    function: Callable[[Job], Index],
    plan: Plan,
    blocks: Sequence[Index],
    total: int,
    description: str,
    progress: bool,
    done: Callable[[Index], object] = lambda block: None,
) -> None:
    run = uuid.uuid4().hex
    results = pool.run(function, (Job(plan, block, run) for block in blocks))
    for block in _bar(results, total, total - len(blocks), description, progress):
        done(block)


def _bar(items: Iterable[T], total: int, initial: int, description: str, progress: bool) -> Iterable[T]:
    return tqdm(items, description, total=total, initial=initial, unit="block", disable=not progress, file=sys.stderr)


def _publish(plan: Plan) -> None:
    """Give the complete result its name."""
    for stale in plan.labels.rglob("*.__lock"):  # tensorstore's, of a process that was killed while it wrote
        stale.unlink()
    destination = Path(plan.destination)
    if os.path.lexists(destination):
        os.replace(destination, plan.work / "replaced")
    os.replace(plan.labels, destination)
