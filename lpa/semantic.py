"""What counts as a semantic volume: the checks that every labeller makes first."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from em_bench_eval.errors import InputError


def as_semantic(semantic: npt.ArrayLike) -> npt.NDArray[Any]:
    """Return a C-contiguous array of integers or booleans, 2D or 3D; raise ``InputError`` for anything else.

    0 is background; classes are positive. Any strides and byte order are accepted.
    """
    array = np.asarray(semantic)
    if array.ndim not in (2, 3):
        raise InputError(
            "a semantic volume has two or three axes",
            found=f"shape {array.shape}",
            expected="(z, y, x) or (y, x)",
            remedy="drop or index channel and time axes first",
        )
    if array.dtype.kind not in "bui":
        raise InputError(
            "a semantic volume holds class numbers",
            found=f"dtype {array.dtype}",
            expected="bool, or signed or unsigned integers",
            remedy="threshold probabilities or take their argmax first; a float label file: array.astype('uint8')",
        )
    array = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("="))
    if array.dtype.kind == "i" and array.size and int(array.min()) < 0:
        raise InputError(
            "a semantic volume has no negative classes",
            found=f"minimum {int(array.min())}",
            expected="0 for background, positive integers for classes",
            remedy="set ignored voxels to 0 and carry them as an ignore mask",
        )
    return array
