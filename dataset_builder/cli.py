"""``em-bench sources`` and ``em-bench build``."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dataset_builder.source import Source, load_source, source_names
from em_bench_eval.errors import InputError, unknown_name
from em_bench_eval.schema import SourceInfo

if TYPE_CHECKING:
    from dataset_builder.splits import SplitPolicy

BUILD_EXAMPLES = """examples:
  em-bench build --source phantom --out em-organelle-wild
      the embedded synthetic cell: no download, about a minute
  em-bench build --source lucchipp --source vnc_sstem --source hela_sbfsem --raw DIR --out em-organelle-wild
      three public sets; DIR holds their unpacked downloads (em-bench sources NAME shows each layout)
  em-bench build --source phantom --option phantom.shape=32,128,128 --option phantom.seed=7 --out small

  em-bench build --spec spec.yaml --out private
      your own volumes; em-bench inspect PATH drafts the spec; repeat --spec for several
  em-bench build --source phantom --out em-organelle-wild --dry-run
      what would be built: volumes, specimen groups, rows, bytes, folds

An interrupted build (also by kill -9) is continued by the same command.
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
        if source.settings:
            print(f"\noptions, each given as --option {name}.OPTION=VALUE:\n{source.options_text()}")
        print(f"\n{info.citation}")
        return 0
    rows = [("source", "modality", "voxel nm (z, y, x)", "organelles (annotation)", "download", "licence")]
    for known in source_names():
        source = load_source(known)
        info = source.info
        rows.append((known, info.modality, _voxel(info), _annotated(info), _download_size(source), info.licence))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    return 0


def build(argv: Sequence[str]) -> int:
    """Build a dataset folder."""
    parser = argparse.ArgumentParser(
        prog="em-bench build",
        description="Build the benchmark dataset folder: parquet rows for load_dataset, OME-Zarr volumes, a card. "
        "All or nothing: until the new dataset is complete, an earlier one stays as it was.",
        epilog=BUILD_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--source", action="append", default=[], metavar="NAME", help="repeat for several")
    parser.add_argument(
        "--spec", action="append", default=[], type=Path, metavar="FILE", help="your own volumes; repeat for several"
    )
    parser.add_argument("--raw", type=Path, metavar="DIR", help="folder with the unpacked downloads of the sources")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the dataset folder to make")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier dataset once the new is complete")
    parser.add_argument("--option", action="append", default=[], metavar="SOURCE.KEY=VALUE", help="option of a source")
    parser.add_argument(
        "--hold-out", action="append", default=[], metavar="SPECIMEN", help="test only on this specimen group"
    )
    parser.add_argument("--gap-nm", type=float, help="distance between folds in a volume (default 40)")
    parser.add_argument(
        "--axes",
        choices=("acquisition", "all"),
        help="slice along z (default), or isotropic volumes along z, y and x, each image within one fold's slab",
    )
    parser.add_argument("--splits", type=Path, metavar="FILE", help="divide exactly as the splits.json of a dataset")
    parser.add_argument(
        "--max-side", type=int, default=2048, metavar="PIXELS", help="cut larger slices into tiles (default 2048)"
    )
    parser.add_argument("--min-size-nm3", type=float, default=0.0, metavar="NM3", help="drop smaller instances")
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="processes (default 1)")
    parser.add_argument("--scheduler", metavar="ADDRESS", help="a dask.distributed scheduler instead of --workers")
    parser.add_argument("--restart", action="store_true", help="discard what an interrupted build left")
    parser.add_argument("--dry-run", action="store_true", help="say what would be built, and write nothing")
    arguments = parser.parse_args(argv)

    chosen = list(dict.fromkeys(arguments.source))
    if not chosen and not arguments.spec:
        raise InputError("nothing to build from", expected="--source NAME or --spec FILE", remedy="em-bench sources")
    for name in chosen:
        if name not in source_names():
            raise unknown_name("source", name, source_names())
    if arguments.gap_nm is not None and not arguments.gap_nm >= 0:
        raise InputError("--gap-nm is a distance", found=arguments.gap_nm, expected="0 or more nm")
    if not arguments.min_size_nm3 >= 0:
        raise InputError("--min-size-nm3 is a volume", found=arguments.min_size_nm3, expected="0 or more nm^3")
    if arguments.max_side < 64 or arguments.max_side % 64:
        raise InputError("--max-side is a tile edge", found=arguments.max_side, expected="a multiple of 64 pixels")
    if arguments.workers < 1:
        raise InputError("--workers build the dataset", found=arguments.workers, expected="1 or more")
    options = _options(arguments.option, [*chosen, *["local"] * bool(arguments.spec)])
    specs = [{**options.get("local", {}), "spec": str(path.absolute())} for path in arguments.spec]
    if specs and "spec" not in options.get("local", {}):
        chosen = [name for name in chosen if name != "local"]

    from dataset_builder.blueprint import Limits
    from dataset_builder.build import build as build_dataset
    from dataset_builder.jobs import Job
    from dataset_builder.notes import modality_notes

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a polite kill ends like Ctrl-C
    policy = _policy(arguments)
    jobs = [Job.of(name, arguments.raw, options.get(name, {})) for name in chosen]
    jobs += [Job.of("local", arguments.raw, of_spec) for of_spec in specs]
    for note in (note for job in jobs if job.spec for note in modality_notes(job.spec)):
        print(note, file=sys.stderr)
    limits = Limits(arguments.max_side, arguments.min_size_nm3)
    if arguments.dry_run:
        from dataset_builder.preview import preview

        print(preview(jobs, policy, limits))
        return 0
    try:
        stats = build_dataset(
            jobs,
            arguments.out,
            policy,
            limits,
            workers=arguments.workers,
            scheduler=arguments.scheduler,
            overwrite=arguments.overwrite,
            restart=arguments.restart,
        )
    except KeyboardInterrupt:
        print("interrupted; the same command continues", file=sys.stderr)
        raise

    print(f"{arguments.out}: {sum(stats.images.values())} images from {len(stats.volumes)} volumes")
    for (part, fold, domain, source), images in sorted(stats.images.items()):
        print(f"  {part:<13} {fold:<10} domain {domain:<3}  {source:<14} {images:>6} images")
    print(f'load it: datasets.load_dataset("{arguments.out}")')
    return 0


def _policy(arguments: argparse.Namespace) -> SplitPolicy:
    from dataset_builder.split_file import read_split_file
    from dataset_builder.splits import SplitPolicy

    rules = {"--gap-nm": arguments.gap_nm, "--axes": arguments.axes, "--hold-out": arguments.hold_out or None}
    if arguments.splits is None:
        return SplitPolicy(
            gap_nm=40.0 if arguments.gap_nm is None else arguments.gap_nm,
            held_out=frozenset(arguments.hold_out),
            axes=arguments.axes or "acquisition",
        )
    clash = [name for name, value in rules.items() if value is not None]
    if clash:
        raise InputError(
            f"--splits and {', '.join(clash)} contradict each other",
            expected="--splits alone: the file says how every volume is divided",
        )
    return read_split_file(arguments.splits)


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


def _annotated(info: SourceInfo) -> str:
    """Group the organelles by how they were annotated: ``mito, nucleus (manual); er (model)``."""
    kinds: dict[str, list[str]] = {}
    for organelle, kind in info.annotated.items():
        kinds.setdefault(kind, []).append(str(organelle))
    return "; ".join(f"{', '.join(organelles)} ({kind})" for kind, organelles in kinds.items()) or "as declared"


def _download_size(source: Source) -> str:
    if not source.downloads:
        return "as needed" if source.remote else "by hand" if source.folders else "-"
    size = source.download_bytes
    return "size unknown" if size is None else format_bytes(size)


def format_bytes(size: float) -> str:
    """Write a size with a decimal unit, as ``1.3 GB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"
