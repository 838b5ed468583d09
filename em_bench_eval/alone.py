"""One process at a time: a lock file that is free again however the process that holds it ends."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import InputError


@contextmanager
def alone(lock: Path, doing: str, remedy: str = "wait for it, or stop it and run this again") -> Iterator[None]:
    """Hold the file ``lock``, which is made where it is missing, while the block runs.

    The system frees it with its process, also after ``kill -9``; that the file exists means nothing. The block may
    remove it, which Windows refuses.

    Raises:
        InputError: another run is ``doing`` something here; ``remedy`` says what then.
        OSError: the file cannot be made.
    """
    from filelock import FileLock, Timeout

    held = FileLock(lock)
    try:
        held.acquire(timeout=0)
    except Timeout as error:
        raise InputError(f"another run is {doing}", remedy=remedy) from error
    try:
        yield
    finally:
        held.release()
