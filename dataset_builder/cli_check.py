"""``em-bench check``: is every volume of a dataset as it should be?"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from em_bench_eval.errors import InputError

SHOWN = 40  # findings on the terminal

EXAMPLES = """examples:
  em-bench check em-organelle-wild
      writes quality.html (pictures) and quality.json (every number) into the folder
  em-bench check em-organelle-wild --out report --workers 4
      leaves the dataset untouched

Exit status: 0 if there are warnings at most, 1 if there is an error, 2 if the folder cannot be used.
"""


def check(argv: Sequence[str]) -> int:
    """Write the quality report of a dataset folder; return 1 if something is wrong, 0 if there are warnings at most."""
    parser = argparse.ArgumentParser(
        prog="em-bench check",
        description="Look for faults in every volume of a dataset folder: empty, black, saturated or repeated slices, "
        "jumps between slices, labels that do not lie on the image, lost chunks, ids without an organelle, crumbs.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("dataset", type=Path, metavar="FOLDER", help="a folder that em-bench build wrote")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where to write the report (default: into FOLDER)")
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="processes (default 1)")
    arguments = parser.parse_args(argv)
    if arguments.workers < 1:
        raise InputError("--workers examine the volumes", found=arguments.workers, expected="1 or more")

    from dataset_builder.quality import check_dataset

    quality = check_dataset(arguments.dataset, arguments.out, arguments.workers)
    for line in quality.lines[:SHOWN]:
        print(line)
    if len(quality.lines) > SHOWN:
        print(f"... and {len(quality.lines) - SHOWN} more")
    print(
        f"{quality.errors} errors, {quality.warnings} warnings: {(arguments.out or arguments.dataset) / 'quality.html'}"
    )
    return 1 if quality.errors else 0
