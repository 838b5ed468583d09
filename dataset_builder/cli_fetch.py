"""``em-bench fetch``: download the raw data of public sources."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from dataset_builder.source import Source, load_source, source_names
from em_bench_eval.errors import unknown_name

DESCRIPTION = """Download the raw data of one or more public sources into DIR/NAME, ready for em-bench build --raw DIR.

A download that is cut off or killed goes on where it stopped when the same command is run again. Several mirrors are
tried in turn. Checksums are verified while the bytes stream; where nobody published one, it is printed and kept in
DIR/NAME.sha256, and a later download has to agree with it (delete that file to accept a new version). DIR/NAME appears
once everything is complete.
"""
EPILOG = """examples:
  em-bench fetch lucchipp vnc_sstem --raw raw
  em-bench fetch betaseg --raw raw --dry-run      sizes, licence and addresses only
  em-bench fetch betaseg --raw raw --verify       compare the files with the digests of their download

em-bench sources lists the names. Mind the licences: some forbid redistribution or commercial use.
"""


def fetch(argv: Sequence[str]) -> int:
    """Download, quote or verify; return 0, or 1 if verification found faults."""
    parser = argparse.ArgumentParser(
        prog="em-bench fetch",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="+", metavar="NAME", help="a source; several may be given")
    parser.add_argument("--raw", type=Path, required=True, metavar="DIR", help="folder for the raw data of all sources")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--dry-run", action="store_true", help="say what would be downloaded, and how much")
    what.add_argument("--verify", action="store_true", help="check files that were fetched earlier; downloads nothing")
    parser.add_argument("--keep-archives", action="store_true", help="keep ZIP files beside what was in them")
    arguments = parser.parse_args(argv)

    names = list(dict.fromkeys(arguments.names))
    for name in names:
        if name not in source_names():
            raise unknown_name("source", name, source_names())
    sources = [load_source(name) for name in names]
    if arguments.verify:
        return max([_verify(source, arguments.raw) for source in sources])
    for source in sources:
        if arguments.dry_run:
            _quote(source, arguments.raw)
        else:
            _fetch(source, arguments.raw, arguments.keep_archives)
    return 0


def size_text(size_bytes: int | None) -> str:
    """Return a size in decimal units, as disks and servers count; ``"unknown"`` for ``None``."""
    if size_bytes is None:
        return "unknown"
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size_bytes >= size:
            return f"{size_bytes / size:.1f} {unit}"
    return f"{size_bytes} B"


def _quote(source: Source, raw: Path) -> None:
    from dataset_builder.fetch import existing, quote

    there = existing(source, raw)
    print(f"{source.info.name}: {source.info.title}\n  licence: {source.info.licence}")
    if there is not None:
        print(f"  already in {there}")
        return
    quotes = quote(source, raw)
    for item in quotes:
        begun = f", {size_text(item.here_bytes)} of it here" if item.here_bytes else ""
        checksum = "" if item.download.sha256 else ", no checksum published"
        print(f"  {item.download.file}: {size_text(item.size_bytes)}{begun}{checksum}")
        for url in item.download.urls:
            print(f"    {url}")
    known = sum(item.missing_bytes for item in quotes)
    unknown = sum(item.size_bytes is None for item in quotes)
    print(f"  to download: {size_text(known)}" + (f" and {unknown} of unknown size" if unknown else ""))


def _fetch(source: Source, raw: Path, keep_archives: bool) -> None:
    from dataset_builder.fetch import existing, fetch, recorded_digests

    there = existing(source, raw)
    if there is not None:
        print(f"{source.info.name}: already in {there}")
        return
    folder = fetch(source, raw, keep_archives=keep_archives)
    print(f"{source.info.name}: complete in {folder} (licence: {source.info.licence})")
    recorded = recorded_digests(source, raw)
    for download in source.downloads:
        if download.sha256 is None:
            print(f"  {download.file}: sha256 {recorded[download.file]} (none was published; recorded)")


def _verify(source: Source, raw: Path) -> int:
    from dataset_builder.fetch import verify

    faults = verify(source, raw)
    for fault in faults:
        print(f"{source.info.name}: {fault}", file=sys.stderr)
    print(f"{source.info.name}: {f'{len(faults)} faults' if faults else 'all files are as they were downloaded'}")
    return 1 if faults else 0
