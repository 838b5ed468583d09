"""The volumes of a dataset that the rows of a fold come from: lazily opened, one slab for each run of slices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from em_bench_eval.errors import InputError, unknown_name
from em_bench_eval.opened import Opened
from em_bench_eval.rows import open_rows
from em_bench_eval.schema import Organelle
from em_bench_eval.volume_io import open_volume

Corner = npt.NDArray[np.float64]  # (z, y, x) in native voxels of the slab


@dataclass(frozen=True)
class Slab:
    """Consecutive slices of a volume that belong to one fold; arrays are ``(z, y, x)``."""

    volume_id: str
    image: Opened
    instances: Opened
    semantic: Opened
    ignore: Opened | None
    voxel_size_nm: tuple[float, float, float]
    annotated: frozenset[Organelle]
    objects: list[tuple[Organelle, Corner, Corner]]  # a slice of an instance: its box, low and high

    @property
    def shape(self) -> tuple[int, int, int]:
        """Native voxels ``(z, y, x)``."""
        return self.image.shape


def open_slabs(dataset: str, config: str, split: str, sources: Sequence[str] = ()) -> list[Slab]:
    """Open what the rows of a split along z were cut from; label-only volumes are left out.

    Raises ``InputError`` if the dataset has no volumes, or the split no rows of ``sources``.
    """
    rows = open_rows(dataset, config, split)
    light = rows.select_columns(["volume_id", "axis", "slice", "offset", "source", "annotated", "objects"])
    slices: dict[str, dict[int, list[Any]]] = {}
    known = set()
    for row in light:
        known.add(row["source"])
        if row["axis"] == "z" and (not sources or row["source"] in sources):
            slices.setdefault(row["volume_id"], {}).setdefault(int(row["slice"]), []).append(row)
    for source in sources:
        if source not in known:
            raise unknown_name("source in this split", source, sorted(known))
    listed = {row["volume_id"]: row for row in _volume_rows(dataset)}
    slabs = []
    for volume_id in sorted(slices.keys() & listed.keys()):
        about = listed[volume_id]
        if about["has_image"]:
            for first, last in _runs(sorted(slices[volume_id])):
                slabs.append(_open_slab(dataset, about, first, last, slices[volume_id]))
    return slabs


def _volume_rows(dataset: str) -> Any:
    import datasets

    try:
        return datasets.load_dataset(dataset, "volumes", split="volumes")
    except (ValueError, FileNotFoundError, ConnectionError) as error:
        raise InputError(
            f"{dataset} has no list of volumes",
            found=str(error),
            expected="a dataset folder or Hub dataset with the configuration 'volumes'",
        ) from error


def _open_slab(dataset: str, about: Any, first: int, last: int, slices: dict[int, list[Any]]) -> Slab:
    def cut(path: str) -> Opened:
        opened = open_volume(_address(dataset, f"{about['zarr']}/{path}"))
        return opened.crop((first, last + 1), (0, opened.shape[1]), (0, opened.shape[2]))

    try:
        ignore = cut("labels/ignore/s0")
    except InputError:  # all of it is annotated
        ignore = None
    objects = []
    for number in range(first, last + 1):
        for row in slices[number]:
            shift = np.array([0, *(row["offset"] or (0, 0))], float)
            for entry in row["objects"]:
                if entry["organelle"] in row["annotated"]:
                    y0, x0, y1, x1 = entry["bbox"]
                    low, high = np.array([number - first, y0, x0], float), np.array([number - first + 1, y1, x1], float)
                    objects.append((Organelle(entry["organelle"]), low + shift, high + shift))
    z, y, x = (float(nm) for nm in about["voxel_size_nm"])
    annotated = frozenset(Organelle(name) for name in about["annotated"])
    parts = [cut(path) for path in ("s0", "labels/instances/s0", "labels/semantic/s0")]
    return Slab(about["volume_id"], parts[0], parts[1], parts[2], ignore, (z, y, x), annotated, objects)


def _address(dataset: str, path: str) -> str:
    """Where a file of a dataset folder or Hub dataset is; a private one on the Hub needs a local copy."""
    if Path(dataset).is_dir():
        return str(Path(dataset) / path)
    from huggingface_hub import hf_hub_url

    return str(hf_hub_url(dataset, path, repo_type="dataset"))


def _runs(numbers: Sequence[int]) -> list[tuple[int, int]]:
    """Return first and last of each run of consecutive numbers."""
    runs: list[tuple[int, int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1] = (runs[-1][0], number)
        else:
            runs.append((number, number))
    return runs
