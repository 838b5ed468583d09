"""Reading files that somebody else wrote: nothing is followed, executed or unpacked, and every size is bounded.

What a file declares is compared with what is expected before anything is decoded. What only the decoding libraries
know (a parquet page or zarr chunk that unpacks to more than it says) is bounded by ``guarded``.
"""

from __future__ import annotations

import json
import os
import stat
import struct
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from em_bench_eval.leaderboard.verdict import Faults, printable

MAX_FILES = 400_000
MAX_DEPTH = 16  # folders
MAX_NAME = 400  # characters of a path inside the submission
MAX_TOTAL_BYTES = 256 * 2**30
MAX_TEXT_BYTES = 256 * 2**20  # of one JSON or CSV file
MAX_TEXT_VALUES_BYTES = 3 * 2**30  # what its values may take in memory
MAX_PIXELS = 2**26  # of one image, where the dataset does not say how large it is
MAX_INSTANCES = 65_535  # of one image
MAX_OBJECTS = 5_000_000  # of a submission
MAX_IMAGES = 1_000_000
LARGEST_ID = 2**32 - 1

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# bytes that Python spends at most on what begins with this character of a JSON text (measured with getsizeof)
_VALUE_BYTES = {b"{": 240, b"[": 96, b",": 72, b":": 72}


def list_files(root: Path, faults: Faults) -> dict[str, int]:
    """Return path (relative, with "/") -> size in bytes of every plain file below ``root``.

    Links, devices and pipes, names that are no plain text, and more or deeper files than a submission can need are
    noted and left out.
    """
    found: dict[str, int] = {}
    total = 0
    waiting = [(root, "", 0)]
    while waiting:
        folder, prefix, depth = waiting.pop()
        with os.scandir(folder) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                name = f"{prefix}{entry.name}"
                if not name.isprintable() or "\\" in name or len(name) > MAX_NAME:
                    faults.note("unsafe", name, "a name with control characters or backslashes, or very long")
                elif entry.is_symlink():
                    faults.note("unsafe", name, "a link", "a plain file")
                elif entry.is_dir(follow_symlinks=False):
                    if depth == MAX_DEPTH:
                        faults.note("unsafe", name, "deeper folders", f"at most {MAX_DEPTH}")
                    else:
                        waiting.append((Path(entry.path), f"{name}/", depth + 1))
                elif not entry.is_file(follow_symlinks=False):
                    faults.note("unsafe", name, "a device, pipe or socket", "a plain file")
                else:
                    found[name] = entry.stat(follow_symlinks=False).st_size
                    total += found[name]
                    if len(found) > MAX_FILES or total > MAX_TOTAL_BYTES:
                        faults.note(
                            "unsafe",
                            root.name,
                            f"more than {MAX_FILES:,} files" if len(found) > MAX_FILES else f"{total / 2**30:.0f} GiB",
                            f"at most {MAX_FILES:,} files and {MAX_TOTAL_BYTES // 2**30} GiB",
                        )
                        return found
    return dict(sorted(found.items()))


def open_plain(path: Path) -> int:
    """Open a plain file for reading, never a link, and return its descriptor; raises ``OSError``."""
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0))
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(f"{path.name} is no plain file")
    return handle


def read_bytes(path: Path, most: int, faults: Faults, name: str) -> bytes | None:
    """Read a whole file of at most ``most`` bytes; anything else is noted."""
    try:
        with os.fdopen(open_plain(path), "rb") as file:
            content = file.read(min(most, os.fstat(file.fileno()).st_size) + 1)  # allocates what it is asked for
    except OSError as error:
        faults.note("unreadable", name, error.strerror or error)
        return None
    if len(content) > most:
        faults.note("unsafe", name, f"more than {most / 2**20:g} MiB", f"at most {most / 2**20:g} MiB")
        return None
    return content


def read_text(path: Path, most: int, faults: Faults, name: str) -> str | None:
    """Read UTF-8 text, with or without a byte order mark."""
    content = read_bytes(path, most, faults, name)
    if content is None:
        return None
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        faults.note("unreadable", name, f"no UTF-8 text at byte {error.start:,}", "text in UTF-8")
        return None


def read_json(path: Path, faults: Faults, name: str) -> Any:
    """Read strict JSON whose values fit into memory; ``None`` after a fault (and for ``null``)."""
    text = read_text(path, MAX_TEXT_BYTES, faults, name)
    if text is None:
        return None
    raw = text.encode()
    needed = len(raw) + len(text) * 4 + sum(raw.count(mark) * size for mark, size in _VALUE_BYTES.items())
    if needed > MAX_TEXT_VALUES_BYTES:
        limit = MAX_TEXT_VALUES_BYTES // 2**30
        faults.note("unsafe", name, f"values that may take {needed / 2**30:.1f} GiB", f"at most {limit} GiB")
        return None
    del raw
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        faults.note("unreadable", name, _json_problem(error), "strict JSON")
        return None


def _refuse_constant(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


def _json_problem(error: BaseException) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"line {error.lineno}, column {error.colno}: {error.msg}"
    return "too many brackets inside each other" if isinstance(error, RecursionError) else printable(error)


def decode_labels(
    content: bytes, where: str, shape: tuple[int, int] | None, faults: Faults
) -> npt.NDArray[np.uint8 | np.uint16] | None:
    """Decode a gray PNG of 8 or 16 bits to ``(y, x)``; its header must promise ``shape`` before a pixel is decoded."""
    if len(content) < 33 or not content.startswith(_SIGNATURE) or content[12:16] != b"IHDR":
        faults.note("unreadable", where, _signature_of(content), "a PNG file")
        return None
    width, height, bits, colour = struct.unpack(">IIBB", content[16:26])
    if colour != 0 or bits not in (8, 16):
        kinds = {0: "gray", 2: "RGB", 3: "palette", 4: "gray with alpha", 6: "RGB with alpha"}
        faults.note("dtype", where, f"{kinds.get(colour, 'unknown')} PNG of {bits} bits", "gray, 8 or 16 bits")
        return None
    if shape is not None and (height, width) != shape:
        faults.note("shape", where, f"{height} x {width}", f"{shape[0]} x {shape[1]} (y, x)")
        return None
    if height * width > (MAX_PIXELS if shape is None else shape[0] * shape[1]):
        faults.note("unsafe", where, f"{height} x {width} pixels", f"at most {MAX_PIXELS:,} pixels")
        return None
    import io

    from PIL import Image

    try:
        with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
            labels = np.asarray(image)
    except Exception as error:  # whatever a damaged file makes the decoder raise
        faults.note("unreadable", where, f"{type(error).__name__}: {error}", "a PNG file")
        return None
    if labels.shape != (height, width) or labels.dtype not in (np.dtype(np.uint8), np.dtype(np.uint16)):
        faults.note("dtype", where, f"{labels.dtype} {labels.shape}", "gray, 8 or 16 bits")
        return None
    return labels


def _signature_of(content: bytes) -> str:
    known = {b"II*\0": "TIFF", b"MM\0*": "TIFF", b"\xff\xd8\xff": "JPEG", b"GIF8": "GIF", b"PK": "a zip archive"}
    kind = next((name for mark, name in known.items() if content.startswith(mark)), "no PNG signature")
    return f"{kind}, {len(content):,} bytes"


def whole_number(value: object, least: int = 0, most: int = LARGEST_ID) -> int | None:
    """Return an integer in a range, given one (or a float or text that is one); None for anything else."""
    if isinstance(value, str) and len(value) <= 20 and value.strip().isdigit() and value.isascii():
        value = int(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        return None
    return value if least <= value <= most else None
