"""``em-bench label``."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from em_bench_eval.errors import InputError
from em_bench_eval.schema import VoxelSize

EXAMPLES = """examples:
  em-bench label semantic.zarr instances.zarr
      6 neighbours for mito, nucleus and endo (values 1, 2, 4), 26 for er and golgi (3, 5) and for any other value
  em-bench label cell.zarr/labels/semantic instances.zarr --connectivity mito=6,er=26 --relabel
  em-bench label https://host/data/cell.n5/labels/mito_seg mito.zarr --connectivity 6
  em-bench label semantic.zarr instances.zarr --split --certificate quality --preview preview.html --image raw.zarr
      cuts touching instances apart, writes the queue for the expert and a page to look at (in memory)
  em-bench label s3://bucket/cell.zarr/semantic instances.zarr --scheduler tcp://10.0.0.5:8786
      on a dask cluster whose workers see instances.zarr and its folder

Reads zarr v2 and v3, OME-Zarr and N5; writes OME-Zarr 0.5 (sharded zarr v3). Memory follows from the blocks in flight,
not from the volume. An interrupted run continues when the same command is given again.
"""


def label(argv: Sequence[str]) -> int:
    """Label the instances of a semantic volume of any size."""
    parser = argparse.ArgumentParser(
        prog="em-bench label",
        description="Turn a semantic volume into instances: 3D label propagation, exact, block by block.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", metavar="IN", help="semantic volume: a folder, or a URL (http, https, s3)")
    parser.add_argument("destination", metavar="OUT", help="the OME-Zarr group of labels to make")
    parser.add_argument(
        "--connectivity",
        default="default",
        metavar="6|18|26|default|NAME=N,...",
        help="neighbours of a voxel, for all classes or per organelle; organelles left out have their default",
    )
    parser.add_argument(
        "--relabel", action="store_true", help="number the instances 1..N (otherwise: index of their first voxel + 1)"
    )
    parser.add_argument("--block", metavar="Z,Y,X", help="block shape in voxels (default about 256,256,256)")
    parser.add_argument(
        "--scheduler", metavar="ADDR", help="threads (default), processes, or the address of a dask scheduler"
    )
    parser.add_argument("--workers", type=int, metavar="N", help="threads or processes (default: one for each core)")
    parser.add_argument("--overwrite", action="store_true", help="replace OUT once the new one is complete")
    after = parser.add_argument_group("after labelling, in memory, for volumes of organelles (values 1 to 5)")
    after.add_argument(
        "--split",
        nargs="?",
        const="necks",
        choices=("necks", "sheets"),
        help="cut touching mito, nucleus and endo apart at narrow necks; sheets: endo are stacked discs (slow)",
    )
    after.add_argument(
        "--certificate", metavar="DIR", help="write certificate.json, queue.csv and audit.csv; reads a filled audit.csv"
    )
    after.add_argument("--preview", metavar="FILE.html", help="write a page with slices, sizes, meshes and the queue")
    after.add_argument("--image", metavar="IMAGE", help="the EM image behind the preview's slices")
    after.add_argument("--voxel-size-nm", metavar="Z,Y,X", help="where IN does not say it")
    arguments = parser.parse_args(argv)
    voxel_size = None if arguments.voxel_size_nm is None else parse_voxel_size(arguments.voxel_size_nm)
    connectivity = parse_connectivity(arguments.connectivity)
    block_shape = None if arguments.block is None else parse_block(arguments.block)

    from lpa.blockwise import label_zarr

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a polite kill ends like Ctrl-C
    try:
        report = label_zarr(
            arguments.source,
            arguments.destination,
            block_shape,
            connectivity,
            "compact" if arguments.relabel else "min_index",
            arguments.scheduler,
            arguments.workers,
            overwrite=arguments.overwrite,
        )
    except KeyboardInterrupt:
        print("the same command continues this run", file=sys.stderr)
        raise
    print(f"{arguments.destination}: {report}")
    if arguments.split or arguments.certificate or arguments.preview:
        _review(arguments, voxel_size)
    return 0


def _review(arguments: argparse.Namespace, voxel_size: VoxelSize | None) -> None:
    """Split, certify and preview, as asked for."""
    from em_bench_eval.volume_io import open_volume
    from lpa.certificate import certify, write_certificate
    from lpa.preview import write_preview
    from lpa.review import read_labelled, replace_labels, split_labelled

    image = None if arguments.image is None else open_volume(arguments.image)
    labelled = read_labelled(arguments.source, arguments.destination, voxel_size)
    if arguments.split:
        before = len(labelled.organelle_of)
        labelled = split_labelled(labelled, arguments.split)
        replace_labels(Path(arguments.destination), labelled, arguments.split)
        cut = sum(decision.is_split for decision in labelled.decisions)
        print(f"split: {cut} of {before} instances cut, {len(labelled.organelle_of)} now")
    if not (arguments.certificate or arguments.preview):
        return  # judging takes longer than labelling
    filled = Path(arguments.certificate or ".") / "audit.csv"
    certificate = certify(
        labelled.instances,
        labelled.organelle_of,
        labelled.voxel_size,
        decisions=labelled.decisions,
        audit=filled if arguments.certificate and filled.is_file() else None,
    )
    if arguments.certificate:
        write_certificate(certificate, arguments.certificate)
        print(f"certificate: {arguments.certificate}: {certificate.summary()}")
    if arguments.preview:
        title = f"Instances of {Path(arguments.source).name}"
        write_preview(
            arguments.preview,
            image,
            labelled.instances,
            labelled.organelle_of,
            labelled.voxel_size,
            certificate,
            title=title,
        )
        print(f"preview: {arguments.preview}")


def parse_connectivity(text: str) -> int | Mapping[str, int] | str:
    """Read ``26``, ``default`` or ``mito=6,er=26``; ``InputError`` for anything else."""
    if text == "default" or text.isdecimal():
        return text if text == "default" else int(text)
    chosen: dict[str, int] = {}
    for part in text.split(","):
        name, separator, number = part.strip().partition("=")
        if not (name and separator and number.strip().isdecimal()):
            raise InputError(
                "--connectivity cannot be read",
                found=text,
                expected="6, 18, 26, default, or pairs such as mito=6,er=26",
            )
        chosen[name.strip()] = int(number)
    return chosen


def parse_voxel_size(text: str) -> VoxelSize:
    """Read ``50,4.6,4.6`` (nm); ``InputError`` for anything else."""
    try:
        z, y, x = map(float, text.split(","))
        return VoxelSize(z, y, x)
    except ValueError as error:
        raise InputError(
            "--voxel-size-nm cannot be read", found=text, expected="three positive numbers Z,Y,X"
        ) from error


def parse_block(text: str) -> tuple[int, int, int]:
    """Read ``64,256,256``; one number is a cube."""
    parts = text.split(",")
    if len(parts) not in (1, 3) or not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise InputError("--block cannot be read", found=text, expected="voxels as Z,Y,X, for instance 128,256,256")
    z, y, x = map(int, parts * (3 // len(parts)))
    return z, y, x
