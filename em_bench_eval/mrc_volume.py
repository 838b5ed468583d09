"""MRC (.mrc, .rec, .map of IMOD, SerialEM, ...): mapped into memory with ``mrcfile``."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np

from .errors import InputError
from .opened import Mapped, Opened
from .spacing import in_nm, of_float32
from .volume_files import unreadable

IMOD_STAMP = 1146047817  # "IMOD" as an integer, bytes 152 to 155 of the header; bit 0 of the next four: signed bytes
STAMP_IN_EXTRA2 = slice(40, 48)


def open_mrc(location: str, path: Path, inside: str | None = None) -> Opened:
    """Open an MRC file of mode 0, 1, 2, 6 or 12; big-endian files and those of before 2014 too."""
    import mrcfile

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            # permissive: files of before 2014 have no map id, and extra bytes at the end do no harm
            file: Any = mrcfile.mmap(path, mode="r", permissive=True)
        except (OSError, ValueError) as error:
            raise unreadable(path, "MRC", error) from error
    values = file.data
    if values is None or values.size == 0:
        raise unreadable(path, "MRC", "; ".join(dict.fromkeys(str(one.message) for one in caught)) or "no voxels")
    values = values[np.newaxis] if values.ndim == 2 else values
    if values.ndim != 3 or values.dtype.kind not in "iuf":
        raise InputError(
            f"{path} is not one 3D volume of real numbers",
            found=f"shape {values.shape}, {values.dtype} (mode {int(file.header.mode)})",
            expected="three axes (z, y, x); mode 0, 1, 2, 6 or 12",
            remedy="store one volume in a file of its own",
        )
    notes = [str(one.message).strip() for one in caught]
    if int(file.header.mode) == 0:
        signed, reason = _is_signed(file.header)
        values = values if signed else values.view(np.uint8)
        notes.append(f"bytes are read as {'signed' if signed else 'unsigned'}: {reason}")
    edge = file.voxel_size
    voxel_size, note = in_nm([float(edge.z), float(edge.y), float(edge.x)], "angstrom", default=1.0)
    return Opened(
        location,
        "MRC",
        Mapped(values),
        of_float32(voxel_size),
        None,
        {"mode": int(file.header.mode), "labels": [str(label) for label in file.get_labels()]},
        tuple(notes + [note] * bool(note)),
    )


def _is_signed(header: Any) -> tuple[bool, str]:
    """Tell whether mode 0 means int8, as the standard of 2014 says, or uint8, as most EM software wrote before."""
    extra = bytes(header.extra2)[STAMP_IN_EXTRA2]
    order = ">" if header.mode.dtype.byteorder == ">" else "<"
    stamp, flags = (int(number) for number in np.frombuffer(extra, f"{order}i4"))
    if stamp == IMOD_STAMP:
        return bool(flags & 1), "IMOD's flag says so"
    if header.dmin <= header.dmax:
        if header.dmin < 0:
            return True, f"the header's smallest value is {float(header.dmin):g}"
        if header.dmax > 127:
            return False, f"the header's largest value is {float(header.dmax):g}"
    return True, "the MRC2014 standard; nothing in the header speaks against it"
