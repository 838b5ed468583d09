"""The two jobs that are done block by block, on any worker that sees the files; each may safely be done twice."""

from __future__ import annotations

import threading
import zipfile
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from em_bench_eval.errors import InputError
from em_bench_eval.volume_io import Opened, open_volume
from em_bench_eval.whole_file import write_whole
from lpa.block import FACES, Block
from lpa.ome_zarr import LABEL_ARRAY, full_disk_is_os_error
from lpa.plan import Index, Plan


class Job(NamedTuple):
    """One block of one run."""

    plan: Plan
    block: Index
    run: str  # a new word for each run: files that were opened for another run may have been replaced


def find_components(job: Job) -> Index:
    """Pass 1: label one block by itself and keep what its neighbours must know."""
    keep_components(job.plan, job.block, _semantic(job))
    return job.block


def keep_components(plan: Plan, index: Index, semantic: npt.NDArray[Any]) -> None:
    """Label one block by itself and write what its neighbours must know.

    The file ``plan.faces_file(block)`` holds the six faces with the components that touch one numbered 1..K in the
    smallest dtype, ``uid`` and ``classes`` of these, and of the others ``inner_classes`` with ``inner_counts`` and, if
    they are to be numbered, ``inner_uid``. Faces without foreground are left out.
    """
    block = Block(semantic, plan.connectivity)
    faces, at_face = _number_faces(block)
    inner = np.ones(len(block.first), bool)
    inner[at_face] = False
    inner_classes, inner_counts = np.unique(block.classes[inner], return_counts=True)
    kept = {name: face for name, face in faces.items() if face.any()}
    kept |= {"uid": plan.global_uid(index, block.first[at_face]), "classes": block.classes[at_face]}
    kept |= {"inner_classes": inner_classes, "inner_counts": inner_counts}
    if plan.relabel == "compact":
        kept["inner_uid"] = plan.global_uid(index, block.first[inner])
    write_whole(plan.faces_file(index), lambda path: _save(path, kept))


def _save(path: Path, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    """Write what ``np.load`` reads; ``np.savez_compressed`` is four times slower, to save a third."""
    write: Any = np.lib.format.write_array
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file:
        for name, array in arrays.items():
            with file.open(f"{name}.npy", "w") as member:
                write(member, np.ascontiguousarray(array))


def write_labels(job: Job) -> Index:
    """Pass 2: label one block again, with the names that the join gave to its components, and store it."""
    plan, index, _ = job
    box = plan.box(index)
    out = _buffer(tuple(side.stop - side.start for side in box), plan.label_dtype)
    named_labels(plan, index, _semantic(job), out)
    with full_disk_is_os_error():
        # tensorstore need not copy: nothing reads through this handle, and the buffer is used again after the commit
        result = _result(str(plan.labels / LABEL_ARRAY), job.run)
        result[box].write(out, can_reference_source_data_indefinitely=True).result()
    return index


def named_labels(plan: Plan, index: Index, semantic: npt.NDArray[Any], out: npt.NDArray[Any]) -> None:
    """Label one block again and write to ``out`` the names that the join gave to its components.

    Raises ``InputError`` if its components are not those that the first pass found.
    """
    block = Block(semantic, plan.connectivity)
    decided = np.load(plan.names_file(index))
    if plan.relabel == "compact":
        names = decided
    else:
        names = plan.global_uid(index, block.first).astype(plan.label_dtype)
        _, at_face = _number_faces(block)
        if len(decided) == len(at_face):
            names[at_face] = decided
    if len(names) != len(block.first) or (plan.relabel != "compact" and len(decided) != len(at_face)):
        raise InputError(
            f"{plan.source} has changed while it was labelled",
            found=f"other components in block {index} than before",
            remedy=f"delete {plan.work} and run again",
        )
    block.write(names, out)


def _number_faces(block: Block) -> tuple[dict[str, npt.NDArray[Any]], npt.NDArray[np.int64]]:
    """Return the faces with numbers 1..K, and which components (0..N-1) those are, in order."""
    faces = block.faces()
    touching = np.zeros(len(block.first) + 1, bool)
    for face in faces.values():
        touching[face.reshape(-1)] = True
    touching[0] = False
    at_face = np.flatnonzero(touching) - 1
    number = np.zeros(len(touching), np.min_scalar_type(len(at_face)))
    number[at_face + 1] = np.arange(1, len(at_face) + 1)
    return {name: number[faces[name]] for name in FACES}, at_face


def _semantic(job: Job) -> npt.NDArray[Any]:
    return _source(job.plan.source, job.run)[job.plan.box(job.block)]


@lru_cache(maxsize=4)
def _source(location: str, run: str) -> Opened:
    return open_volume(location).as_labels()


@lru_cache(maxsize=4)
def _result(path: str, run: str) -> Any:
    import tensorstore as ts

    return ts.open({"driver": "zarr3", "kvstore": {"driver": "file", "path": path}}, write=True).result()


_own = threading.local()


def _buffer(shape: tuple[int, ...], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """Return this thread's output buffer: fresh pages for every block cost as much as labelling it."""
    size = int(np.prod(shape)) * dtype.itemsize
    if getattr(_own, "buffer", None) is None or _own.buffer.size < size:
        _own.buffer = np.empty(size, np.uint8)
    buffer: npt.NDArray[np.uint8] = _own.buffer
    return buffer[:size].view(dtype).reshape(shape)
