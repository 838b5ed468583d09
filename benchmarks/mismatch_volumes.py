"""Volumes for docs/mismatch.md: synthetic sheets and tubules, and probability maps with errors of a known amount.

    python -m benchmarks.mismatch_volumes sheets --out sheets.zarr
    python -m benchmarks.mismatch_volumes corrupt --reference volumes/cell.zarr --out maps/cell --dice 0.95

The "ER" made here is a level set of a smoothed random field: it has the topology that the argument is about, one
connected structure whose sections are many pieces, and nothing else of a real one.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from baselines.aggregation.aggregation_sides import LABEL_ID, open_reference
from baselines.volumes.map_store import create_maps
from em_bench_eval.schema import Organelle
from lpa import label
from lpa.ome_zarr import create_labels

Volume = npt.NDArray[np.float32]
KINDS = ("sheets", "tubules")
CHUNK, SHARD = (32, 64, 64), (64, 256, 256)


def field(shape: tuple[int, ...], sigma: float | tuple[float, ...], random: np.random.Generator) -> Volume:
    """Smoothed white noise of unit variance."""
    values = ndimage.gaussian_filter(random.standard_normal(shape, dtype=np.float32), sigma, mode="wrap")
    return np.asarray(values / values.std(), np.float32)


def network(kind: str, shape: tuple[int, ...], sigma: float, thickness: float, seed: int) -> npt.NDArray[np.bool_]:
    """Sheets: a level set of one field, thickened. Tubules: where the level sets of two fields meet."""
    random = np.random.default_rng(seed)
    one = np.abs(field(shape, sigma, random)) < thickness
    return one if kind == "sheets" else one & (np.abs(field(shape, sigma, random)) < 3 * thickness)


def corrupted(mask: npt.NDArray[np.bool_], dice: float, random: np.random.Generator) -> Volume:
    """Probabilities of a mask, soft at its border, with correlated errors such that ``p > 0.5`` has the given Dice."""
    if not mask.any():
        return np.zeros(mask.shape, np.float32)
    soft = ndimage.gaussian_filter(mask.astype(np.float32), 1.5)
    certain = 2 * soft + 2 * mask.astype(np.float32) - 2
    noise = field(mask.shape, 2.5, random)
    low, high = 0.0, 8.0
    for _ in range(20):
        amount = (low + high) / 2
        guess = certain + amount * noise > 0
        found = 2 * np.count_nonzero(guess & mask) / max(1, np.count_nonzero(guess) + np.count_nonzero(mask))
        low, high = (amount, high) if found > dice else (low, amount)
    return np.asarray(1 / (1 + np.exp(-4 * (certain + low * noise))), np.float32)


def _sheets(arguments: argparse.Namespace) -> None:
    shape = tuple(int(part) for part in arguments.shape.split(","))
    mask = network(arguments.kind, shape, arguments.sigma, arguments.thickness, arguments.seed)
    ids = label(mask.astype(np.uint8), 26, "compact")
    out = Path(arguments.out)
    partial = out.with_name(f".{out.name}.partial")
    create_labels(partial, ids.shape, np.uint32, (8.0, 8.0, 8.0), CHUNK, SHARD)[...] = ids
    os.replace(partial, out)
    sizes = np.bincount(ids[ids > 0])[1:]
    print(
        f"{out}: {mask.mean():.3f} of the volume, {len(sizes)} components, the largest {sizes.max() / sizes.sum():.4f}"
    )


def _corrupt(arguments: argparse.Namespace) -> None:
    reference = open_reference(arguments.reference, arguments.organelle)
    whole = reference.classes(tuple(slice(0, size) for size in reference.shape))  # type: ignore[arg-type]
    random = np.random.default_rng(arguments.seed)
    names = [organelle.value for organelle in Organelle if organelle.value in reference.organelles]
    values = np.stack([corrupted(whole == LABEL_ID[name], arguments.dice, random) for name in names])
    values /= np.maximum(values.sum(axis=0), 1.0)  # background has the rest
    settings = {"corrupted": {"dice": arguments.dice, "seed": arguments.seed}}
    store = create_maps(arguments.out, names, reference.shape, tuple(reference.voxel_size_nm), settings=settings)
    for block in store.missing():
        store.write(block, values[(slice(None), *store.box(block))])
    print(f"{arguments.out}: {', '.join(names)}")


def main(argv: list[str]) -> int:
    """Run a command; see the module's text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    sheets = commands.add_parser("sheets", help="instances of a synthetic network, as a label volume")
    sheets.add_argument("--kind", choices=KINDS, default="sheets")
    sheets.add_argument("--shape", default="128,256,256")
    sheets.add_argument("--thickness", type=float, default=0.12, help="half width in standard deviations of the field")
    sheets.add_argument(
        "--sigma", type=float, default=3.0, help="of the smoothing, voxels: the mesh gets wider with it"
    )
    corrupt = commands.add_parser("corrupt", help="probability maps of a reference with errors")
    corrupt.add_argument("--reference", required=True)
    corrupt.add_argument("--organelle")
    corrupt.add_argument("--dice", type=float, default=0.95)
    for command in (sheets, corrupt):
        command.add_argument("--out", required=True)
        command.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)
    {"sheets": _sheets, "corrupt": _corrupt}[arguments.command](arguments)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
