"""``em-bench export``: options to a request; heavy imports only once they are parsed."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from em_bench_eval.argument_types import positive_float
from em_bench_eval.schema import ORGANELLES, TARGET_PIXEL_SIZE_NM

EPILOG = """examples:
  em-bench export nnunet --dataset em-organelle-wild --config wild --organelle mito --out nnunet-mito
      every row as a 2D image; background is safe because mitochondria are annotated in all that is kept
  em-bench export nnunet --dataset em-organelle-wild --config homogeneous --dimension 3d --out nnunet-3d
      the slabs of train, validation and test as volumes
  em-bench export nnunet --dataset em-organelle-wild --config wild --dimension 3d --whole-volumes --test-only \\
      --format tiff --out volumes-for-mitonet
      whole volumes with a test slice, for a program that is trained already

OUT/README.md has the commands that follow; em-bench import reads the results. docs/external.md says more.
"""


def export(argv: Sequence[str]) -> int:
    """Run ``em-bench export``; return the exit status."""
    options = _parser().parse_args(argv)
    from baselines.external.nnunet_export import ExportRequest
    from baselines.external.nnunet_export import export as run
    from baselines.external.nnunet_readme import counts, labels

    request = ExportRequest(
        dataset=options.dataset,
        config=options.config,
        out=options.out,
        dimension=options.dimension,
        organelles=tuple(options.organelle) if options.organelle else None,
        unannotated=options.unannotated,
        file_format=options.format,
        pixel_nm=options.pixel_nm,
        whole_volumes=options.whole_volumes,
        test_only=options.test_only,
        dataset_id=options.id,
        name=options.name,
    )
    layout = run(request, overwrite=options.overwrite)
    print(f"{options.out}: {counts(layout)}")
    if not options.test_only:
        print(labels(layout))
    print(f"{options.out / 'README.md'} has the next commands")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="em-bench export",
        description="Export a dataset for another program. OUT appears when it is complete; an interrupted export goes "
        "on where it was.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("program", choices=("nnunet",), help="nnU-Net v2; other programs read its images too")
    add("--dataset", required=True, metavar="DATASET", help="dataset folder, or name on the Hub (2D only)")
    add("--config", default="wild", metavar="NAME", help="configuration of the dataset (default: %(default)s)")
    add("--out", required=True, type=Path, metavar="OUT", help="folder to write")
    add("--dimension", choices=("2d", "3d"), default="2d", help="rows or volumes (default: %(default)s)")
    add(
        "--organelle",
        nargs="+",
        choices=ORGANELLES,
        metavar="NAME",
        help=f"of {', '.join(ORGANELLES)} (default: all that a training case has annotated)",
    )
    add(
        "--unannotated",
        choices=("ignore", "drop"),
        default="ignore",
        help="training cases where some of the organelles are not annotated: ignore their background, or leave them "
        "out (default: %(default)s)",
    )
    add("--format", choices=("nifti", "tiff", "png"), default="nifti", help="default: %(default)s; png: 2D only")
    add(
        "--pixel-nm",
        type=positive_float,
        metavar="NM",
        help=f"align planes to pixels of this size, as the baselines do to {TARGET_PIXEL_SIZE_NM:g} (default: native)",
    )
    add("--whole-volumes", action="store_true", help="3D: test cases are whole volumes, not only their test slices")
    add("--test-only", action="store_true", help="no training cases: for a program that is trained already")
    add("--id", type=int, default=501, metavar="N", help="nnU-Net's number of the dataset (default: %(default)s)")
    add("--name", default="EM", help="nnU-Net's name of the dataset (default: %(default)s)")
    add("--overwrite", action="store_true", help="replace another export in OUT")
    return parser
