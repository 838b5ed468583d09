"""Raw data of a source, downloaded, verified and unpacked: complete or not there at all.

Below the raw folder of the user::

    NAME/              the data, once it is complete
    NAME.sha256        what was downloaded, and the digest of every file (``sha256sum -c`` reads it too)
    .fetch-NAME/       unfinished: archives, ``.part`` files; a later call goes on from here
    .fetch-NAME.lock   held while a process works on it
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from dataset_builder.fetch_archive import unpack_zip
from dataset_builder.fetch_http import PartFile, Patience, announced_size, fetch_file
from dataset_builder.source import Download, Source
from em_bench_eval.alone import alone
from em_bench_eval.errors import InputError
from em_bench_eval.whole_file import sha256_of, write_whole

RESERVE_BYTES = 10**9  # left free on the disk


@dataclass(frozen=True)
class Quote:
    """What a fetch will move, before it begins."""

    download: Download
    size_bytes: int | None  # as the server announces it, else as declared
    here_bytes: int  # of these, already downloaded by an earlier call

    @property
    def missing_bytes(self) -> int:
        """What is still to be transferred, as far as it is known."""
        return max(0, (self.size_bytes or 0) - self.here_bytes)


def folder_of(source: Source, raw: Path) -> Path:
    """Return where ``fetch`` puts the data."""
    return raw / source.info.name


def existing(source: Source, raw: Path) -> Path | None:
    """Return the folder that already holds this source, under any name that the source accepts."""
    return next((raw / name for name in source.folders if (raw / name).is_dir()), None)


def quote(source: Source, raw: Path) -> list[Quote]:
    """Ask the servers how large everything is; nothing is downloaded."""
    _check_fetchable(source)
    staging, quotes = _staging(source, raw), []
    for download in source.downloads:
        target = staging / download.file
        here = target.stat().st_size if target.is_file() else PartFile(target).size
        quotes.append(Quote(download, announced_size(download), here))
    return quotes


def fetch(source: Source, raw: Path, *, patience: Patience | None = None, keep_archives: bool = False) -> Path:
    """Download everything of a source and return its folder.

    A call that was killed or cut off is continued. What is there already is left as it is.

    Raises:
        InputError: nothing to download, no space, no mirror works, a wrong checksum, an archive that cannot be
            trusted, another process at work on the same source.
    """
    _check_fetchable(source)
    there = existing(source, raw)
    if there is not None:
        return there
    raw.mkdir(parents=True, exist_ok=True)
    lock = raw / f".fetch-{source.info.name}.lock"
    only_one = alone(lock, f"fetching {source.info.name} into {raw}", "wait for it, or choose another --raw")
    with only_one, _full_disk_is_input_error(raw):
        there = existing(source, raw)  # another process may just have finished it
        if there is not None:
            return there
        staging = _staging(source, raw)
        staging.mkdir(exist_ok=True)
        _check_space(quote(source, raw), raw)
        lines = [f"# em-bench fetch {source.info.name}"]
        for download in source.downloads:
            target = staging / download.file
            digest = _download(source, download, target, raw, patience or Patience())
            lines.append(f"# download {digest} {target.stat().st_size} {download.file} {download.urls[0]}")
        unpacked = staging / "unpacked"
        shutil.rmtree(unpacked, ignore_errors=True)  # a killed call may have left half of it
        unpacked.mkdir()
        for download in source.downloads:
            digests = _place(download, staging, unpacked, keep_archives)
            lines += [f"{digest}  {source.info.name}/{path}" for path, digest in sorted(digests.items())]
        write_whole(_record(source, raw), lambda path: path.write_text("\n".join(lines) + "\n"))
        target = folder_of(source, raw)
        os.replace(unpacked, target)
        shutil.rmtree(staging)
    return target


def verify(source: Source, raw: Path) -> list[str]:
    """Compare every file with the digest recorded when it was fetched; return one line per fault, none if all hold.

    Raises ``InputError`` if there is no record to compare with.
    """
    record = _record(source, raw)
    if not record.is_file():
        raise InputError(
            f"{source.info.name} cannot be verified",
            found=f"no {record.name} in {raw}",
            expected="a folder made by em-bench fetch",
            remedy=f"em-bench fetch {source.info.name} --raw {raw}",
        )
    entries = [line.split("  ", 1) for line in record.read_text().splitlines() if line and not line.startswith("#")]
    faults = []
    for digest, name in tqdm(entries, f"verify {source.info.name}", unit="file"):
        path = raw / name
        if not path.is_file():
            faults.append(f"{name}: missing")
        elif sha256_of(path) != digest:
            faults.append(f"{name}: changed since it was fetched")
    return faults


def recorded_digests(source: Source, raw: Path) -> dict[str, str]:
    """Return ``{file: sha256}`` of the downloads, as an earlier fetch recorded them."""
    record = _record(source, raw)
    if not record.is_file():
        return {}
    lines = [line.split() for line in record.read_text().splitlines() if line.startswith("# download ")]
    return {words[4]: words[2] for words in lines if len(words) >= 5}


def _download(source: Source, download: Download, target: Path, raw: Path, patience: Patience) -> str:
    """Get one file into the staging folder unless an earlier call did; return its sha256."""
    finished = target.with_name(target.name + ".sha256")
    if target.is_file() and finished.is_file():
        return finished.read_text().strip()
    target.parent.mkdir(parents=True, exist_ok=True)
    expected = download.sha256 or recorded_digests(source, raw).get(download.file)
    with tqdm(desc=download.file, unit="B", unit_scale=True, unit_divisor=1000) as bar:

        def progress(done: int, total: int | None) -> None:
            if bar.total != total:
                bar.total = total
            bar.update(done - bar.n)

        digest = fetch_file(download, target, patience, sha256=expected, progress=progress)
    finished.write_text(digest + "\n")
    return digest


def _place(download: Download, staging: Path, unpacked: Path, keep_archives: bool) -> dict[str, str]:
    """Unpack or move one download below ``unpacked``; return ``{path: sha256}``."""
    archive = staging / download.file
    if not download.unpack:
        _link(archive, unpacked / download.file)
        return {download.file: archive.with_name(archive.name + ".sha256").read_text().strip()}
    free = shutil.disk_usage(staging).free - RESERVE_BYTES
    try:
        with tqdm(desc=f"unpack {download.file}", unit="B", unit_scale=True, unit_divisor=1000) as bar:

            def progress(done: int, total: int) -> None:
                bar.total = total
                bar.update(done - bar.n)

            digests = unpack_zip(
                archive, unpacked / download.into, strip=download.strip, limit_bytes=max(0, free), progress=progress
            )
    except InputError:
        if download.sha256 is None:  # nothing vouches for it: get it anew next time
            archive.unlink()
        raise
    if keep_archives:
        _link(archive, unpacked / download.file)
    return {os.fspath(Path(download.into) / path): digest for path, digest in digests.items()}


def _link(file: Path, target: Path) -> None:
    """Give a file a second name, so that a kill between here and the end loses no download."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(file, target)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise
        shutil.copyfile(file, target)  # a file system without hard links


def _check_fetchable(source: Source) -> None:
    if not source.downloads and source.remote:
        raise InputError(
            f"source {source.info.name} is not fetched as a whole",
            found="a server that em-bench build reads piece by piece",
            remedy=f"em-bench build --source {source.info.name}; em-bench sources {source.info.name} lists its options",
        )
    if not source.downloads:
        raise InputError(
            f"source {source.info.name} cannot be fetched",
            found="no address that serves it without a browser" if source.folders else "it needs no download",
            remedy=f"{source.how_to_get()}, laid out as\n{source.layout}" if source.folders else None,
        )


def _check_space(quotes: list[Quote], raw: Path) -> None:
    """Refuse to begin what cannot end: the transfer, and as much again for what is unpacked."""
    needed = sum(item.missing_bytes + (item.size_bytes or 0) * item.download.unpack for item in quotes)
    free = shutil.disk_usage(raw).free
    if needed + RESERVE_BYTES > free:
        raise InputError(
            f"not enough space in {raw}",
            found=f"{free / 1e9:.1f} GB free",
            expected=f"{needed / 1e9:.1f} GB for the downloads and what they unpack to, and {RESERVE_BYTES / 1e9:g} GB",
            remedy="free space, or choose --raw on another disk",
        )


@contextmanager
def _full_disk_is_input_error(raw: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise InputError(
            f"no space left in {raw}",
            found=f"{shutil.disk_usage(raw).free / 1e6:.0f} MB free",
            remedy="free space and run the same command again: it goes on where it stopped",
        ) from error


def _staging(source: Source, raw: Path) -> Path:
    return raw / f".fetch-{source.info.name}"


def _record(source: Source, raw: Path) -> Path:
    return raw / f"{source.info.name}.sha256"
