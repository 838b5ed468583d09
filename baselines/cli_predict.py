"""``em-bench predict``: options to a request; heavy imports only once they are parsed."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from em_bench_eval.argument_types import positive_int, share, voxel_size_nm, whole_number
from em_bench_eval.errors import InputError

if TYPE_CHECKING:
    import torch

    from baselines.prediction_settings import TileSettings
    from baselines.volumes.volume_jobs import VolumeSettings

VOLUMES_CONFIG = "volumes"
DECODERS = ("components", "distance", "boundary", "affinity")  # baselines.decode.METHODS, without importing it
LEVELS = ("L0", "L1", "L2", "L3", "L4", "L5")
EPILOG = """examples:
  em-bench predict --checkpoint runs/unet --dataset em-organelle-wild --split test --out predictions
      every image of a split; em-bench score predictions em-organelle-wild
  em-bench predict --checkpoint runs/unet --dataset em-organelle-wild --config volumes --split test --out predictions
      the volumes that the split's images come from, each in the slices of that split: one id per instance in the whole
      volume. Scores in images as above, and in volumes, as printed at the end
  em-bench predict --checkpoint runs/unet --volume cell.tif --voxel-size-nm 8,8,8 --out cell
      any volume: zarr, OME-Zarr, N5, TIFF, NIfTI, MRC, HDF5 (FILE:/path/inside), a folder of slices, http:// and s3://;
      read and written block by block, so it may be larger than memory. Instances: cell/volumes/cell.zarr
  em-bench predict --checkpoint runs/unet --volume cell.zarr --planes xy,xz,yz --out cell
      an isotropic volume seen along its three axes, averaged: better, and three times slower

Images are aligned to the pixel size of the network (8 nm), cut into overlapping tiles, blended, brought back to their
own grid and decoded to instances. An interrupted prediction goes on when the same command is given again. Neither
--batch-size nor the blocks of a volume change the result beyond the last digits of floats.
"""


def predict(argv: Sequence[str]) -> int:
    """Run ``em-bench predict``; return the exit status."""
    options = _parser().parse_args(argv)
    _check(options)
    # let waiting threads sleep; takes effect only before torch is imported (see baselines.cli_train)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # a polite kill ends like Ctrl-C
    if options.volume is not None:
        return _volume(options)
    if options.config == VOLUMES_CONFIG:
        return _split_volumes(options)
    return _images(options)


def _images(options: argparse.Namespace) -> int:
    from baselines.predict import predict as run

    count = run(
        options.checkpoint,
        options.dataset,
        options.config,
        options.split,
        options.out,
        _tiles(options),
        overwrite=options.overwrite,
        device=_device(options),
    )
    print(f"{options.out}: {count} images")
    return 0


def _split_volumes(options: argparse.Namespace) -> int:
    from baselines.volumes.volume_jobs import predict_split_volumes

    names = predict_split_volumes(
        options.checkpoint,
        options.dataset,
        options.rows_of,
        options.split,
        options.out,
        _volume_settings(options),
        only=options.only,
    )
    print(f"{options.out}: {len(names)} volumes")
    if not options.only:
        print(f"score the images:  em-bench score {options.out} {options.dataset}")
    for name in names:
        path = options.out / "volumes" / f"{name}.zarr"
        print(f"score a volume:    em-bench score {path} {options.dataset}/volumes/{name}.zarr")
    if options.aggregation:
        from baselines.aggregation.predicted_levels import write_levels

        cuts = (options.patch, options.block)
        for written in write_levels(options.out, names, options.aggregation, cuts, options.dataset, options.oracle):
            print(f"a level:           em-bench score {written} {options.dataset}/volumes/{written.name}")
    return 0


def _volume(options: argparse.Namespace) -> int:
    from baselines.volumes.volume_instances import TABLE, read_table
    from baselines.volumes.volume_jobs import predict_file
    from em_bench_eval.schema import VoxelSize

    given = options.voxel_size_nm
    name = predict_file(
        options.checkpoint,
        options.volume,
        options.out,
        _volume_settings(options),
        None if given is None else VoxelSize(*given),
    )
    if options.aggregation:
        from baselines.aggregation.predicted_levels import write_levels

        for written in write_levels(options.out, [name], options.aggregation, (options.patch, options.block)):
            print(written)
    path = options.out / "volumes" / f"{name}.zarr"
    counts = read_table(path / TABLE).counts()
    print(f"{path}: {', '.join(f'{number:,} {what}' for what, number in counts.items()) or 'no instances'}")
    return 0


def _tiles(options: argparse.Namespace) -> TileSettings:
    from baselines.prediction_settings import TileSettings

    return TileSettings(
        options.tile, options.margin, options.overlap, options.batch_size, options.symmetries, options.decoder
    )


def _volume_settings(options: argparse.Namespace) -> VolumeSettings:
    from baselines.volumes.volume_jobs import VolumeSettings

    return VolumeSettings(
        _tiles(options), tuple(options.planes), not options.discard_maps, options.overwrite, _device(options)
    )


def _device(options: argparse.Namespace) -> torch.device | None:
    if options.device == "auto":
        return None
    import torch

    try:
        device = torch.device(options.device)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:  # unknown, or not in this machine, or torch built without it
        raise InputError(
            f"--device {options.device} cannot be used",
            found=str(error).splitlines()[0],
            expected="auto, cpu, cuda, or cuda:N",
            remedy="leave --device away to use what is there",
        ) from error
    return device


def _check(options: argparse.Namespace) -> None:
    """What can be refused before anything heavy is imported."""
    if (options.dataset is None) == (options.volume is None):
        raise InputError(
            "nothing to predict" if options.dataset is None else "--dataset and --volume exclude each other",
            expected="--dataset DATASET, or --volume FILE",
            remedy="em-bench predict --help shows examples",
        )
    if options.tile and options.margin >= 0 and options.tile <= 2 * options.margin:
        raise InputError(
            f"--tile {options.tile} leaves nothing inside margins of {options.margin}",
            expected="a tile of more than twice the margin",
            remedy="raise --tile, or lower --margin",
        )
    of_volumes = options.volume is not None or options.config == VOLUMES_CONFIG
    for name, given in (
        ("--planes", options.planes != ["xy"]),
        ("--discard-maps", options.discard_maps),
        ("--aggregation", options.aggregation),
    ):
        if given and not of_volumes:
            raise InputError(f"{name} belongs to volumes", expected="--config volumes, or --volume FILE")
    if options.aggregation and options.discard_maps:
        raise InputError("--aggregation reads the maps", found="--discard-maps", remedy="leave one of the two away")
    if options.oracle and (not options.aggregation or options.volume is not None):
        raise InputError("--oracle needs a reference and levels", expected="--config volumes and --aggregation")
    for name, given in (("--voxel-size-nm", options.voxel_size_nm), ("--only", options.only)):
        wrong = options.volume is None if name == "--voxel-size-nm" else options.config != VOLUMES_CONFIG
        if given and wrong:
            raise InputError(
                f"{name} does not belong here",
                expected="--volume FILE" if name == "--voxel-size-nm" else f"--config {VOLUMES_CONFIG}",
            )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="em-bench predict",
        description="Predict the images of a dataset's split, its volumes, or any volume of any size.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--checkpoint", required=True, metavar="CHECKPOINT", help="folder of `em-bench train`, or name on the Hub")
    add("--out", required=True, type=Path, metavar="OUT", help="folder for the result")
    add("--overwrite", action="store_true", help="replace other predictions in OUT")
    what = parser.add_argument_group("what to predict")
    add = what.add_argument
    add("--dataset", metavar="DATASET", help="dataset folder, or name on the Hub (volumes: a folder)")
    add(
        "--config",
        default="wild",
        metavar="NAME",
        help=f"configuration of the dataset, or '{VOLUMES_CONFIG}' (default: %(default)s)",
    )
    add("--split", default="test", metavar="NAME", help="default: %(default)s")
    add("--rows-of", default="wild", metavar="NAME", help="with --config volumes: whose split (default: %(default)s)")
    add("--only", action="append", default=[], metavar="ID", help="with --config volumes: this volume; repeatable")
    add("--volume", metavar="FILE", help="a volume instead of a dataset: path or URL")
    add("--voxel-size-nm", type=voxel_size_nm, metavar="Z,Y,X", help="where FILE does not say it, or says it wrong")
    how = parser.add_argument_group("how")
    add = how.add_argument
    add(
        "--tile",
        type=positive_int,
        default=0,
        metavar="PIXELS",
        help="edge, at 8 nm (default: 512, in 3D 128; the training crop for models whose view has a size)",
    )
    add("--margin", type=whole_number, default=-1, metavar="PIXELS", help="rim that is not used (default: 32; 3D: 16)")
    add("--overlap", type=share, default=0.25, metavar="SHARE", help="of neighbouring tiles (default: %(default)s)")
    add("--batch-size", type=_batch, metavar="N|auto", help="tiles at a time (default: auto: what fits into memory)")
    add("--symmetries", action="store_true", help="average over flips and turns: better, and eight times slower")
    add(
        "--decoder",
        choices=DECODERS,
        help="what takes touching instances apart: nothing, the distance map, the boundary map, or affinities "
        "(default: for each organelle the best one that the model's maps allow)",
    )
    add(
        "--planes",
        type=lambda text: text.split(","),
        default=["xy"],
        metavar="xy,xz,yz",
        help="of volumes: slice along z (xy), y (xz), x (yz), and average; isotropic voxels (default: xy)",
    )
    add(
        "--aggregation",
        nargs="+",
        default=[],
        choices=LEVELS,
        help="of volumes: write the instances of these levels as well, from the same maps: L0 and L1 patches, L2 "
        "slices, L3 slices linked through z, L4 blocks, L5 whole volume; components, as em-bench mismatch has them",
    )
    add("--oracle", action="store_true", help="with --aggregation: also from perfect pixels, the reference's")
    add("--patch", type=positive_int, default=512, metavar="VOXELS", help="of L0 and L1 (default: %(default)s)")
    add("--block", type=positive_int, default=128, metavar="VOXELS", help="of L4 (default: %(default)s)")
    add("--discard-maps", action="store_true", help="of volumes: delete OUT/maps once instances are made of them")
    add("--device", default="auto", metavar="NAME", help="cpu, cuda, cuda:1 (default: a GPU if there is one)")
    return parser


def _batch(text: str) -> int | None:
    return None if text == "auto" else positive_int(text)


if __name__ == "__main__":
    sys.exit(predict(sys.argv[1:]))
