"""Compile loops with numba where it works; everything has a twin in numpy, so that it never has to."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any


@cache
def compile_kernels(*functions: Callable[..., Any]) -> tuple[Callable[..., Any], ...] | None:
    """Return the compiled functions, or None without a working numba; numba is imported at the first call.

    The machine code is made when a function is first called with arguments of new types, and kept on disk where that
    is possible. The functions must be plain: no calls of each other, no closures.
    """
    try:
        from numba import config, njit
    except Exception:  # absent, or broken: numba refuses some versions of numpy with errors of several types
        return None
    if config.DISABLE_JIT:
        return None
    options: dict[str, Any] = {"nogil": True, "boundscheck": False, "error_model": "numpy"}
    compiled = []
    for function in functions:
        try:
            compiled.append(njit(cache=True, **options)(function))
        except (RuntimeError, OSError):  # no folder for the machine code can be written
            compiled.append(njit(**options)(function))
    return tuple(compiled)
