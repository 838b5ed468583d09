"""``em-bench mismatch``: all aggregation levels from one probability volume, and what the differences consist of."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from em_bench_eval.argument_types import voxel_size_nm
from em_bench_eval.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

EPILOG = """levels:
  L0  patches, judged against the pieces of the reference that they show
  L1  patches, judged against the ids of the whole volume       gap_id     = L0 - L1
  L2  whole slices                                              gap_stitch = L5 - L1
  L3  slices linked through z                                   gap_pixel  = oracle L5 - L5
  L4  3D blocks, not stitched
  L5  the whole volume, stitched
Each level also with perfect pixels (oracle): its ceiling. All are made from the same pixels.

examples:
  em-bench mismatch --maps maps/cell1 --reference em-organelle-wild/volumes/cell1.zarr --out mismatch
      maps/cell1 is what `em-bench predict --volume` leaves; patches of 512 pixels, blocks of 128 voxels
  em-bench mismatch --oracle --reference truth.nii.gz --organelle mito --voxel-size-nm 15,16,16 --out ceiling
      no model: what perfect pixels would score at each level
  em-bench mismatch --semantic nnunet.nii.gz --reference em-organelle-wild/volumes/cell1.zarr --out nnunet
      the classes (1 mito, 2 nucleus, 3 er, 4 endo, 5 golgi) that some other program predicted

writes OUT/mismatch.json (every metric of every level), mismatch.csv, mismatch.svg and mismatch.txt (the statement).
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="em-bench mismatch",
        description="Take the difference between local and global scores apart: the definition of instances, "
        "stitching, pixels. One probability volume, six ways to make instances of it.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--maps", type=Path, metavar="FOLDER", help="probability maps written by em-bench predict")
    source.add_argument("--semantic", metavar="VOLUME", help="predicted classes 0 to 5, any volume format")
    source.add_argument("--oracle", action="store_true", help="perfect pixels alone (always measured as the ceiling)")
    add("--reference", required=True, metavar="VOLUME", help="annotated volume: of a dataset, or as for em-bench score")
    add("--out", required=True, type=Path, metavar="DIR", help="folder for the results")
    add("--patch", type=int, default=512, metavar="PIXELS", help="edge of the patches of L0, L1 (default: %(default)s)")
    add("--block", type=int, default=128, metavar="VOXELS", help="edge of the blocks of L4 (default: %(default)s)")
    add(
        "--link-overlap",
        type=float,
        default=0.25,
        metavar="SHARE",
        help="L3: pieces of neighbouring slices are one instance if they share this much of the smaller one "
        "(default: %(default)s)",
    )
    add(
        "--min-edge-nm",
        type=float,
        metavar="NM",
        help="judge nothing, on either side, below a square (images) or cube (volumes) of this edge; 0: judge all "
        "(default: by organelle; the square is the smallest area that em-bench predict keeps in images)",
    )
    add("--connectivity", type=int, choices=(6, 18, 26), help="for all organelles (default: as lpa has it for each)")
    add(
        "--metric",
        default="dice__size",
        choices=("dice__size", "dice__reference", "dice__instance", "dice__pooled"),
        help="the aggregation of Dice that statement and figure show (default: %(default)s); the files hold all",
    )
    add("--organelle", help="what the reference holds, where it does not say it itself")
    add("--voxel-size-nm", type=voxel_size_nm, metavar="Z,Y,X", help="where no file states it")
    return parser


def mismatch(argv: Sequence[str]) -> int:
    """Run ``em-bench mismatch``; see ``em-bench mismatch --help``."""
    arguments = _parser().parse_args(argv)
    if not (arguments.maps or arguments.semantic or arguments.oracle):
        raise InputError(
            "nothing to aggregate",
            expected="--maps FOLDER or --semantic VOLUME, or --oracle for perfect pixels alone",
        )
    from baselines.aggregation.aggregation_levels import Cuts
    from baselines.aggregation.aggregation_sides import open_reference
    from baselines.aggregation.link_slices import SliceRule
    from baselines.aggregation.mismatch import mismatch as measure
    from baselines.aggregation.mismatch_report import format_table, write_report
    from baselines.aggregation.mismatch_statement import statement
    from em_bench_eval.schema import ORGANELLES

    size = arguments.voxel_size_nm
    maps = _maps(arguments.maps)
    reference = open_reference(arguments.reference, arguments.organelle, size)
    if maps is not None and tuple(maps.shape) != reference.shape:  # a fold's part of a volume says where it lies
        from baselines.aggregation.predicted_levels import box_of_maps

        reference = open_reference(arguments.reference, arguments.organelle, size, box_of_maps(maps))
    connectivity = {} if arguments.connectivity is None else dict.fromkeys(ORGANELLES, arguments.connectivity)
    cuts = Cuts(
        arguments.patch,
        arguments.block,
        SliceRule(arguments.link_overlap),
        **({"connectivity": connectivity} if connectivity else {}),
    )
    found = measure(
        reference,
        maps,
        _semantic(arguments.semantic),
        cuts,
        min_edge_nm=arguments.min_edge_nm,
        progress=True,
    )
    written = write_report(found, arguments.out, arguments.metric)
    print(format_table(found))
    print()
    print(statement(found, arguments.metric))
    print(f"\nwrote {', '.join(str(path) for path in written)}")
    return 0


def _maps(folder: Path | None) -> Any:
    if folder is None:
        return None
    from baselines.volumes.map_store import open_maps

    store = open_maps(folder)
    if not store.is_complete:
        raise InputError(
            f"{folder} is not complete",
            found=f"{len(store.missing())} blocks are missing",
            expected="maps of the whole volume",
            remedy="run the same em-bench predict again: it continues where it was interrupted",
        )
    return store


def _semantic(location: str | None) -> Any:
    if location is None:
        return None
    from em_bench_eval.volume_io import open_volume

    return open_volume(location).as_labels()
