"""Where block-wise work runs: threads, processes, or a dask cluster. Tasks are independent and may run twice."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import Any, TypeVar

from em_bench_eval.errors import InputError

Task = TypeVar("Task")
Result = TypeVar("Result")

LOST_WORKERS = 5  # a task that has outlived this many workers is taken to be what kills them
CONNECT_TIMEOUT = "15s"


class Pool:
    """An executor, and how many tasks it is given at a time; memory follows from that."""

    def __init__(self, executor: Executor, workers: int, in_flight: int):
        self.workers = workers
        self._executor, self._in_flight = executor, in_flight

    def run(self, function: Callable[[Task], Result], tasks: Iterable[Task]) -> Iterator[Result]:
        """Yield the results in the order in which they arrive; the first failure ends the work."""
        waiting = iter(tasks)
        pending: set[Future[Result]] = set()
        try:
            while True:
                for task in waiting:
                    pending.add(self._executor.submit(function, task))
                    if len(pending) >= self._in_flight:
                        break
                if not pending:
                    return
                done, pending = wait(pending, return_when=FIRST_COMPLETED)
                for future in done:
                    yield future.result()
        finally:
            for future in pending:
                future.cancel()


@contextmanager
def open_pool(scheduler: str | None, workers: int | None) -> Iterator[Pool]:
    """Open the place where tasks run.

    Args:
        scheduler: ``None`` or ``"threads"``; ``"processes"``; or the address of a ``dask.distributed`` scheduler.
        workers: threads or processes, by default one for each core. A cluster has its own workers.
    """
    if workers is not None and workers < 1:
        raise InputError("workers run the blocks", found=workers, expected="1 or more")
    count = workers or available_cores()
    if scheduler in (None, "threads"):
        with ThreadPoolExecutor(count, thread_name_prefix="lpa") as threads:
            yield Pool(threads, count, count)
    elif scheduler == "processes":
        import multiprocessing

        # a forked child would inherit the locks of tensorstore's threads
        with ProcessPoolExecutor(count, mp_context=multiprocessing.get_context("spawn")) as processes:
            yield Pool(processes, count, count)
    else:
        with _dask(str(scheduler)) as pool:
            yield pool


@contextmanager
def _dask(address: str) -> Iterator[Pool]:
    try:
        from dask import distributed
    except ImportError as error:
        raise InputError(
            "--scheduler needs dask.distributed", found=str(error), remedy="pip install 'em-organelle-wild[dask]'"
        ) from error
    if "://" not in address:
        raise InputError(
            "unknown scheduler",
            found=address,
            expected="threads, processes, or the address of a dask scheduler, such as tcp://10.0.0.5:8786",
        )
    try:
        connect: Any = distributed.Client
        client = connect(address, timeout=CONNECT_TIMEOUT, set_as_default=False)
    except (OSError, ValueError) as error:
        raise InputError(
            f"no dask scheduler answers at {address}",
            found=str(error),
            remedy="start one (dask scheduler; dask worker ADDRESS) and give the address that it prints",
        ) from error
    try:
        threads = sum(client.nthreads().values())
        if not threads:
            raise InputError(f"the scheduler at {address} has no workers", remedy="start some: dask worker ADDRESS")
        # one task beyond each running one, so that no worker waits for the network
        yield Pool(client.get_executor(pure=False, retries=LOST_WORKERS), threads, 2 * threads)
    finally:
        client.close()


def available_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
