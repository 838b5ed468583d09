"""``em-bench inspect``: what is in a file, a folder or on a server, and a spec to begin with."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from em_bench_eval.errors import InputError

DESCRIPTION = """Show what is in a volume: format, shape, type, voxel size and who states it, how it is read, its range
and percentiles, how many values it has, and whether it looks like an image, semantic labels or instances. Headers and
the middle of five planes are read, so this takes seconds for any size."""
EXAMPLES = """what can be named, with examples:
  a folder of TIFF or PNG slices            em-bench inspect raw/
  a file: TIFF (OME, ImageJ, BigTIFF, ...),
  HDF5, NIfTI, MRC, PNG                     em-bench inspect stack.tif
  one data set of an HDF5 file              em-bench inspect cremi.h5:/volumes/raw
  zarr, OME-Zarr, N5; local or remote       em-bench inspect s3://bucket/cell.zarr/recon-1/em/fibsem-uint8
  a folder with any of these                em-bench inspect experiment/

a first build of your own data:
  em-bench inspect raw/ labels.tif --draft spec.yaml
      writes a spec, with FILL_IN where only you know
  (fill it in)
  em-bench build --spec spec.yaml --out dataset
      names every fault of the spec by its line, then builds
"""


def inspect(argv: Sequence[str]) -> int:
    """Show what is in each path; draft a spec over all of them if asked to."""
    parser = argparse.ArgumentParser(
        prog="em-bench inspect",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("path", nargs="+", metavar="PATH", help="a file, a folder, FILE:/inside, or a URL (http, s3)")
    parser.add_argument(
        "--draft", type=Path, metavar="SPEC", help="write a spec for em-bench build here; an existing file is kept"
    )
    parser.add_argument("--details", action="store_true", help="everything about each of several volumes")
    arguments = parser.parse_args(argv)
    if arguments.draft is not None and arguments.draft.exists():
        raise InputError(f"{arguments.draft} exists", expected="a new name", remedy="choose another --draft")

    from dataset_builder.inspection import details, inspect_path, table
    from dataset_builder.spec_draft import draft, write_draft

    everything = []
    for path in arguments.path:
        found, more = inspect_path(path)
        everything += found
        if more:
            print(f"{path} holds more than {len(found)} volumes; name a folder inside it to see the others")
    alone = len(everything) == 1
    if not alone:
        print("\n".join(table(everything)))
        for one in everything if not arguments.details else []:
            print("".join(f"note: {one.location}: {doubt}\n" for doubt in one.doubts), end="")
    for one in everything if alone or arguments.details else []:
        print(("" if alone else "\n") + "\n".join(details(one)))
    if arguments.draft is not None:
        write_draft(draft(everything, arguments.draft), arguments.draft)
        print(f"\n{arguments.draft}: fill in every FILL_IN, then")
        print(f"  em-bench build --spec {arguments.draft} --out DIR")
    return 0
