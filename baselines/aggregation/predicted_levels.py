"""``em-bench predict --aggregation``: the instances of the levels L0 to L5, from the maps that a prediction kept."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from baselines.aggregation.aggregation_levels import Cuts
from baselines.aggregation.aggregation_scratch import Scratch
from baselines.aggregation.aggregation_sides import Reference, open_reference
from baselines.aggregation.aggregation_write import write_level
from baselines.volumes.map_store import MapStore
from baselines.volumes.volume_jobs import maps_of
from em_bench_eval.errors import InputError
from em_bench_eval.schema import Array3D
from em_bench_eval.score_volumes import Ends

LEVELS, ORACLE = "levels", "oracle"


def write_levels(
    out: Path,
    names: Sequence[str],
    levels: Sequence[str],
    patch_and_block: tuple[int, int],
    dataset: str | None = None,
    oracle: bool = False,
) -> Iterator[Path]:
    """Write ``OUT/levels/<level>/<id>.zarr`` for every volume and level, and yield each.

    With ``oracle``, ``OUT/levels/oracle-<level>/<id>.zarr`` as well, from the reference's own pixels in ``dataset``.
    What is there is made anew.
    """
    cuts = Cuts(*patch_and_block)
    for name in names:
        store = maps_of(out, name)
        with Scratch() as scratch:
            sides: dict[str, Array3D] = {"": scratch.semantic_of_maps(store, store.voxel_size_nm)}
            if oracle:
                sides[f"{ORACLE}-"] = scratch.semantic_of_reference(reference_of(dataset, name, store))
            for prefix, semantic in sides.items():
                for level in levels:
                    path = out / LEVELS / f"{prefix}{level}" / f"{name}.zarr"
                    print(f"{prefix}{level} of {name}", file=sys.stderr)
                    write_level(
                        semantic,
                        level,
                        path,
                        tuple(store.voxel_size_nm),
                        cuts,
                        annotated=[organelle for organelle in store.names if ":" not in organelle],
                        predicted_box=box_of_maps(store),
                        scratch=scratch,
                        overwrite=True,
                    )
                    yield path


def reference_of(dataset: str | None, name: str, store: MapStore) -> Reference:
    """Open the part of a dataset's volume that maps were made of."""
    if dataset is None:
        raise InputError("perfect pixels need a reference", expected="a dataset folder")
    return open_reference(f"{dataset}/volumes/{name}.zarr", box=box_of_maps(store))


def box_of_maps(store: MapStore) -> Ends:
    """Return the voxels of the whole volume that maps cover, from where they say that they lie."""
    z, y, x = (
        (round(start / nm), round(start / nm) + size)
        for start, nm, size in zip(store.origin_nm, store.voxel_size_nm, store.shape, strict=True)
    )
    return z, y, x
