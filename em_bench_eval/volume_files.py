"""Files that hold a volume: which format a file is, by its name and its first bytes, and what opens it."""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .errors import InputError, did_you_mean
from .opened import Opened

Opener = Callable[[str, Path, "str | None"], Opened]  # (location as asked, file, what follows the colon or None)


@dataclass(frozen=True)
class FileFormat:
    """One line of ``FORMATS``."""

    name: str
    suffixes: tuple[str, ...]
    magic: tuple[tuple[int, bytes], ...]  # (offset in bytes, what stands there): any of them
    opener: str  # ".module:function" of this package, imported when a file is opened
    inside: str = ""  # what may follow FILE: ; empty: nothing


FORMATS: tuple[FileFormat, ...] = (
    FileFormat(
        "TIFF",
        (".tif", ".tiff", ".btf", ".tf8"),
        ((0, b"II*\0"), (0, b"MM\0*"), (0, b"II+\0"), (0, b"MM\0+")),
        ".tiff_volume:open_tiff",
        "number of the series, from 0",
    ),
    FileFormat("PNG", (".png",), ((0, b"\x89PNG"),), ".stack_volume:open_image"),
    FileFormat(
        "HDF5",
        (".h5", ".hdf5", ".hdf"),
        ((0, b"\x89HDF\r\n\x1a\n"),),
        ".hdf5_volume:open_hdf5",
        "path of the data set",
    ),
    FileFormat(
        "NIfTI",
        (".nii", ".nii.gz"),
        ((344, b"n+1\0"), (4, b"n+2\0")),
        ".nifti_volume:open_nifti",
    ),
    FileFormat("MRC", (".mrc", ".rec", ".map", ".st", ".ali"), ((208, b"MAP"),), ".mrc_volume:open_mrc"),
)
OTHER_MAGIC = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"BM", "BMP"),
    (b"PK\x03\x04", "a zip archive"),
    (b"\x1f\x8b", "gzip"),
    (b"<", "HTML or XML text"),
    (b"version https://git-lfs", "a Git LFS pointer"),
)


def plain_path(path: str | os.PathLike[str]) -> str:
    """Return the absolute path without ``..``, which tensorstore refuses; it leads where the system would go.

    Symbolic links stay as they are, unless a ``..`` behind one leads out of its target.
    """
    if ".." not in Path(path).parts:
        return str(Path(path).absolute())
    flat = os.path.abspath(path)
    real = os.path.realpath(path)
    return flat if os.path.realpath(flat) == real else real


def folder_store(path: str | os.PathLike[str]) -> dict[str, object]:
    """Return tensorstore's spec of a local folder."""
    return {"driver": "file", "path": plain_path(path) + "/"}


def split_location(location: str) -> tuple[Path, str | None]:
    """Split ``FILE:INSIDE`` where ``FILE`` is a file, or has the suffix of one: ``("a.h5", "/raw")``."""
    text = location.removeprefix("file://")
    for colon in re.finditer(":", text):
        head, tail = text[: colon.start()], text[colon.end() :]
        if not Path(text).exists() and (Path(head).is_file() or (format_of_name(head) and not Path(head).exists())):
            return Path(head), tail
    return Path(text), None


def format_of_name(name: str) -> FileFormat | None:
    """Return the format whose suffix the name has, if any."""
    lower = name.lower()
    return next((entry for entry in FORMATS if lower.endswith(entry.suffixes)), None)


def format_of_bytes(path: Path) -> FileFormat | None:
    """Return the format that the first bytes tell, if any."""
    with path.open("rb") as file:
        head = file.read(512)
    return next((f for f in FORMATS if any(head[at : at + len(what)] == what for at, what in f.magic)), None)


def open_file(location: str, path: Path, inside: str | None) -> Opened:
    """Open one file; a name that contradicts the content is an ``InputError``."""
    named, held = format_of_name(path.name), format_of_bytes(path)
    chosen = named or held
    if chosen is None:
        raise InputError(
            f"{path} has no known format",
            found=f"a file: {content_of(path)}",
            expected=", ".join(f"{entry.name} ({', '.join(entry.suffixes)})" for entry in FORMATS),
            remedy=f"{did_you_mean(path.suffix, known_suffixes())}Export it as TIFF, HDF5 or zarr",
        )
    if named is not None and held is not None and named is not held:
        raise InputError(
            f"{path} is not a {named.name} file",
            found=f"the content of a {held.name} file",
            expected=f"a name that says so: {', '.join(held.suffixes)}",
            remedy=f"rename it to {path.with_suffix('').name}{held.suffixes[0]}",
        )
    if inside is not None and not chosen.inside:
        raise InputError(
            f"{location}: nothing can be named inside a {chosen.name} file",
            expected=str(path),
            remedy=f"leave out ':{inside}'",
        )
    module, _, function = chosen.opener.partition(":")
    opener: Opener = getattr(importlib.import_module(module, __package__), function)
    return opener(location, path, inside)


def known_suffixes() -> tuple[str, ...]:
    """All suffixes of ``FORMATS``."""
    return tuple(suffix for entry in FORMATS for suffix in entry.suffixes)


def content_of(path: Path) -> str:
    """Say in a few words what a file seems to hold."""
    size = path.stat().st_size
    if size == 0:
        return "0 bytes"
    held = format_of_bytes(path)
    with path.open("rb") as file:
        head = file.read(64)
    other = next((name for magic, name in OTHER_MAGIC if head.startswith(magic)), None)
    return f"{size:,} bytes, " + (f"which begin like {held.name if held else other}" if held or other else "unknown")


def unreadable(path: Path, format_name: str, error: object) -> InputError:
    """Build the error for a file whose library cannot read it."""
    return InputError(
        f"{path} cannot be read",
        found=f"{content_of(path)}; {error}",
        expected=f"a complete {format_name} file",
        remedy="it is truncated, damaged or of another format: copy or export it again",
    )
