"""Running out of memory, said so that somebody can do something about it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from em_bench_eval.errors import InputError


@contextmanager
def out_of_memory_as_input_error(what: str, remedy: str) -> Iterator[None]:
    """Raise ``InputError`` for what GPUs, torch on CPUs and numpy raise when there is no memory left."""
    import torch

    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise InputError(f"{what} ran out of memory", found=_first_line(error), remedy=remedy) from error
    except RuntimeError as error:
        if "not enough memory" not in str(error):  # torch's allocator for CPUs has no exception of its own
            raise
        raise InputError(f"{what} ran out of memory", found=_first_line(error), remedy=remedy) from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
