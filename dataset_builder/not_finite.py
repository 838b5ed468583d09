"""Pixels that are NaN or infinite hold no intensity: gray 0, and part of what nobody annotated."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from dataset_builder.lazy import Elementwise, any_of
from dataset_builder.views import boxes
from em_bench_eval.errors import InputError
from em_bench_eval.schema import Array3D, Volume

KEY = "not_finite_pixels"  # in the provenance of a volume


def ignore_not_finite(volume: Volume, stored: Array3D | None = None) -> Volume:
    """Return a volume that ignores the pixels that are not finite, and records their number.

    An image of floating-point numbers is read once, box by box; volumes with any other come back as they are. A note on
    stderr tells the user of such pixels.

    Args:
        volume: the volume.
        stored: its image as the file holds it, where ``volume.image`` is already gray.

    Raises:
        InputError: no pixel is finite.
    """
    image = volume.image if stored is None else stored
    if np.dtype(image.dtype).kind != "f" or KEY in volume.provenance:
        return volume
    mask = Elementwise(_is_not_finite, [image], np.bool_)
    label = f"{volume.volume_id}: looking for NaN"
    found = sum(int(mask[box].sum()) for box in tqdm(list(boxes(image)), label, unit="box", leave=False))
    total = int(np.prod([int(size) for size in image.shape]))
    if found == total:
        raise InputError(
            f"{volume.volume_id}: the image is empty",
            found=f"{total:,} pixels, all of them NaN or infinite",
            expected="intensities",
            remedy="check the path and the program that wrote the file",
        )
    record = {**volume.provenance, KEY: str(found)}
    if not found:
        return replace(volume, provenance=record)
    note = f"note: {volume.volume_id}: {found:,} of {total:,} pixels are NaN or infinite: they become 0 and are ignored"
    tqdm.write(note, file=sys.stderr)
    ignore = mask if volume.ignore is None else any_of([volume.ignore, mask])
    return replace(volume, ignore=ignore, provenance=record)


def _is_not_finite(image: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    return np.asarray(~np.isfinite(image))
