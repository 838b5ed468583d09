"""Unpacking a ZIP file that somebody else made: nothing outside the folder, nothing beyond the limit."""

from __future__ import annotations

import hashlib
import os
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from em_bench_eval.errors import InputError

BLOCK = 2**20
LITTER = ("__MACOSX", ".DS_Store", "Thumbs.db", "desktop.ini")


def unpack_zip(
    archive: Path,
    folder: Path,
    *,
    strip: str = "",
    limit_bytes: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, str]:
    """Unpack ``archive`` into ``folder`` and return ``{path below folder: sha256}``.

    Args:
        archive: a ZIP file, stored or compressed by any method that Python reads.
        folder: created if needed; what is there is overwritten.
        strip: the name of a top folder that all members share and that is dropped; ``""`` keeps the paths.
        limit_bytes: how much the members may declare in all.
        progress: called with the bytes written so far and the total.

    Raises:
        InputError: no or a damaged ZIP file; a member that would leave the folder, is a link, is encrypted, overlaps
            another one or holds more than it declares; too much in all.
        OSError: the disk is full.
    """
    try:
        with zipfile.ZipFile(archive) as file:
            members = _members(file, archive, strip)
            total = sum(info.file_size for info in members.values())
            if total > limit_bytes:
                raise InputError(
                    f"{archive.name} is too large to unpack",
                    found=f"{total:,} bytes in {len(members)} files",
                    expected=f"at most {limit_bytes:,} bytes",
                    remedy="free space, or choose --raw on another disk",
                )
            digests, done = {}, 0
            for path, info in members.items():
                target = folder / path
                target.parent.mkdir(parents=True, exist_ok=True)
                digest = hashlib.sha256()
                with file.open(info) as source, target.open("wb") as out:
                    while block := source.read(BLOCK):
                        digest.update(block)
                        out.write(block)
                        done += len(block)
                        progress(done, total)
                digests[path] = digest.hexdigest()
            return digests
    except (zipfile.BadZipFile, EOFError, NotImplementedError) as error:
        raise InputError(
            f"{archive.name} is not a complete ZIP file",
            found=f"{archive.stat().st_size:,} bytes; {error}",
            expected="a ZIP file whose checksums hold",
            remedy="it is downloaded afresh when the same command is run again",
        ) from error


def _members(file: zipfile.ZipFile, archive: Path, strip: str) -> dict[str, zipfile.ZipInfo]:
    """Map the path below the target folder to its entry, for every file; refuse what no honest archive holds."""
    members: dict[str, zipfile.ZipInfo] = {}
    compressed = 0
    for info in file.infolist():
        name = info.filename
        path = PurePosixPath(name)
        if any(part in LITTER for part in path.parts):
            continue
        if "\\" in name or ":" in name or "\0" in name or path.is_absolute() or ".." in path.parts:
            raise _refused(archive, name, "its path leads out of the folder")
        mode = info.external_attr >> 16
        if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise _refused(archive, name, "it is a link or a device")
        if info.flag_bits & 1:
            raise _refused(archive, name, "it is encrypted")
        if info.is_dir():
            continue
        if strip:
            if path.parts[0] != strip or len(path.parts) == 1:
                raise InputError(
                    f"{archive.name} has another layout than expected",
                    found=name,
                    expected=f"everything below {strip}/",
                    remedy="the authors may have published a new version: update em-bench, or unpack it by hand",
                )
            path = PurePosixPath(*path.parts[1:])
        compressed += info.compress_size
        if os.fspath(path) in members:
            raise _refused(archive, name, "it occurs twice")
        members[os.fspath(path)] = info
    if compressed > archive.stat().st_size:
        raise _refused(archive, f"{len(members)} members", "they overlap, as in a ZIP bomb")
    if not members:
        raise InputError(f"{archive.name} is empty", expected="the files of the data set")
    return members


def _refused(archive: Path, name: str, reason: str) -> InputError:
    return InputError(
        f"{archive.name} is not unpacked",
        found=f"{name}: {reason}",
        expected="plain files below one folder",
        remedy="do not use this file; report it to the maintainers of em-bench",
    )
