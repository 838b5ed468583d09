"""``em-bench sources`` and ``em-bench build``."""

from __future__ import annotations

import argparse
import signal
from collections.abc import Sequence
from pathlib import Path

from dataset_builder.source import load_source, source_names
from em_bench_eval.errors import InputError, unknown_name
from em_bench_eval.schema import SourceInfo

BUILD_EXAMPLES = """examples:
  em-bench build --source phantom --out em-organelle-wild
      the embedded synthetic cell: no download, about a minute
  em-bench build --source lucchipp --source vnc_sstem --source hela_sbfsem --raw DIR --out em-organelle-wild
      three public sets; DIR holds their unpacked downloads (em-bench sources NAME shows each layout)
  em-bench build --source phantom --option phantom.shape=32,128,128 --option phantom.seed=7 --out small

Then: python -c "from datasets import load_dataset; print(load_dataset('em-organelle-wild'))"
"""


def sources(argv: Sequence[str]) -> int:
    """List all sources, or describe one."""
    parser = argparse.ArgumentParser(
        prog="em-bench sources",
        description="List the data sources, or describe one: licence, organelles, raw layout, options, citation.",
        epilog="example: em-bench sources lucchipp",
    )
    parser.add_argument("name", nargs="?", help="a source to describe")
    name = parser.parse_args(argv).name
    if name is not None:
        source = load_source(name)
        info = source.info
        print(f"{info.title}\n\n{_describe(info)}")
        print(f"\nraw layout below --raw:\n{source.layout}" if source.layout else "\nneeds no raw data")
        for option, default in source.options.items():
            print(f"option --option {name}.{option}=VALUE (default {default})")
        print(f"\n{info.citation}")
        return 0
    rows = [("source", "modality", "voxel nm (z, y, x)", "organelles", "licence")]
    for known in source_names():
        info = load_source(known).info
        rows.append((known, info.modality, _voxel(info), ", ".join(map(str, info.annotated)), info.licence))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    return 0


def build(argv: Sequence[str]) -> int:
    """Build a dataset folder."""
    parser = argparse.ArgumentParser(
        prog="em-bench build",
        description="Build the benchmark dataset folder: parquet rows for load_dataset, OME-Zarr volumes, a card. "
        "All or nothing: an interrupted build leaves an earlier dataset as it was.",
        epilog=BUILD_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--source", action="append", required=True, metavar="NAME", help="repeat for several")
    parser.add_argument("--raw", type=Path, metavar="DIR", help="folder with the unpacked downloads of the sources")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the dataset folder to make")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier dataset once the new is complete")
    parser.add_argument("--option", action="append", default=[], metavar="SOURCE.KEY=VALUE", help="option of a source")
    parser.add_argument(
        "--hold-out", action="append", default=[], metavar="SPECIMEN", help="test only on this specimen group"
    )
    parser.add_argument("--gap-nm", type=float, default=40.0, help="distance between folds in a volume (default 40)")
    arguments = parser.parse_args(argv)

    chosen = list(dict.fromkeys(arguments.source))
    for name in chosen:
        if name not in source_names():
            raise unknown_name("source", name, source_names())
    if not arguments.gap_nm >= 0:
        raise InputError("--gap-nm is a distance", found=arguments.gap_nm, expected="0 or more nm")
    options = _options(arguments.option, chosen)

    from dataset_builder.build import Job
    from dataset_builder.build import build as build_dataset
    from dataset_builder.splits import SplitPolicy

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a polite kill cleans up like Ctrl-C
    jobs = [Job.of(name, arguments.raw, options.get(name, {})) for name in chosen]
    policy = SplitPolicy(gap_nm=arguments.gap_nm, held_out=frozenset(arguments.hold_out))
    stats = build_dataset(jobs, arguments.out, policy, overwrite=arguments.overwrite)

    print(f"{arguments.out}: {sum(stats.images.values())} images from {len(stats.volumes)} volumes")
    for (part, fold, domain, source), images in sorted(stats.images.items()):
        print(f"  {part:<13} {fold:<10} domain {domain:<3}  {source:<14} {images:>6} images")
    print(f'load it: datasets.load_dataset("{arguments.out}")')
    return 0


def _options(given: Sequence[str], chosen: Sequence[str]) -> dict[str, dict[str, str]]:
    options: dict[str, dict[str, str]] = {}
    for text in given:
        key, separator, value = text.partition("=")
        source, dot, name = key.partition(".")
        if not (separator and dot and name):
            raise InputError("--option cannot be read", found=text, expected="SOURCE.KEY=VALUE, as phantom.seed=7")
        if source not in chosen:
            raise unknown_name("source in --option", source, chosen)
        options.setdefault(source, {})[name] = value
    return options


def _describe(info: SourceInfo) -> str:
    annotated = ", ".join(f"{organelle} ({kind})" for organelle, kind in info.annotated.items())
    lines = {
        "modality": info.modality,
        "voxel size": f"{_voxel(info)} nm (z, y, x)",
        "annotated": f"{annotated}; any other organelle is unknown here",
        "licence": info.licence + ("" if info.redistributable else "; not redistributable: users rebuild it"),
        "from": info.url or "em-bench itself: nothing to download",
        "notes": info.notes or "-",
    }
    return "\n".join(f"{name:<11} {text}" for name, text in lines.items())


def _voxel(info: SourceInfo) -> str:
    return "several" if info.voxel_size is None else ", ".join(f"{nm:g}" for nm in info.voxel_size)
