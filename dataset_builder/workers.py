"""Where boxes are worked on: in this process, in others, or on a dask cluster; and volumes that can be sent there."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

from dataset_builder.layout import Box
from em_bench_eval.schema import Array3D, Volume
from lpa.scheduler import Pool, open_pool

Given = TypeVar("Given")
Result = TypeVar("Result")

LARGEST_SENT = 2**26  # bytes; larger arrays go through a file


class Workers(Protocol):
    """Runs independent tasks; results come in any order."""

    workers: int

    def run(self, function: Callable[[Given], Result], tasks: Iterable[Given]) -> Iterator[Result]:
        """Yield the results as they arrive; the first failure ends the work."""
        ...


class Here:
    """This process, one task after the other."""

    workers = 1

    def run(self, function: Callable[[Given], Result], tasks: Iterable[Given]) -> Iterator[Result]:
        """Yield the results in order."""
        return map(function, tasks)


@contextmanager
def open_workers(scheduler: str | None, workers: int) -> Iterator[Workers]:
    """Open ``workers`` processes (1: this one), or the cluster of the dask scheduler at the address ``scheduler``."""
    if scheduler is not None:
        with open_pool(scheduler, None) as pool:
            yield pool
    elif workers == 1:
        yield Here()
    else:
        with ProcessPoolExecutor(workers, mp_context=_context(), initializer=_end_with_parent) as processes:
            processes.submit(int)  # the server imports while this process does the first stage
            yield Pool(processes, workers, 2 * workers)


def _context() -> Any:
    """How processes start. A fork of this one would inherit the locks of tensorstore's threads.

    So they are forked from a server that has imported everything and started nothing; on Windows, which cannot, each
    imports for itself.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["__main__", "dataset_builder.build"])
    return context


def _end_with_parent() -> None:
    """End this process when the one that started it ends, also after ``kill -9``: nobody would ever stop it."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "this runs in a child"

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def sendable(volume: Volume, work: Path, boxes: Iterable[Box]) -> Volume:
    """Return the same volume with arrays that any process can read; what cannot be sent is copied to files.

    Arrays of tensorstore and lists of files are sent as they are. ``boxes`` cover the volume; one is read at a time.
    """
    boxes = list(boxes)
    arrays: dict[str, Any] = {}
    for name in ("image", "semantic", "instances", "ignore"):
        array = getattr(volume, name)
        if array is not None and not _can_be_sent(array):
            arrays[name] = _copy(array, work / f"{name}.npy", boxes)
    extras = {
        name: array if _can_be_sent(array) else _copy(array, work / f"extra-{name}.npy", boxes)
        for name, array in volume.extras.items()
    }
    return replace(volume, extras=extras, **arrays)


def _can_be_sent(array: Array3D) -> bool:
    if isinstance(array, np.ndarray):
        return array.nbytes <= LARGEST_SENT
    try:
        return len(pickle.dumps(array)) <= LARGEST_SENT
    except Exception:  # whatever an array of a source may raise: it cannot be sent
        return False


def _copy(array: Array3D, path: Path, boxes: Iterable[Box]) -> OnDisk:
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = tuple(int(size) for size in array.shape)
    open_memmap: Any = np.lib.format.open_memmap
    stored = open_memmap(path, "w+", np.dtype(array.dtype), shape)
    for box in boxes:
        stored[box] = np.asarray(array[box])
    stored.flush()
    return OnDisk(path, shape, np.dtype(array.dtype))


class OnDisk:
    """An ``.npy`` file that is mapped when it is indexed, so that it can be sent by its name."""

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: np.dtype[Any]):
        self._path, self.shape, self.dtype = path, shape, dtype

    def __getitem__(self, index: Any, /) -> Any:
        return np.array(np.load(self._path, mmap_mode="r")[index])
