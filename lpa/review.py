"""After labelling: split what touches, certify, preview - for volumes that fit in memory.

``em-bench label`` labels volumes of any size block by block. Splitting and judging need whole instances, so these steps
read the labels into memory, and say so where they are too large.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from em_bench_eval.errors import InputError
from em_bench_eval.schema import ORGANELLES, Organelle, VoxelSize
from em_bench_eval.volume_io import open_volume
from lpa.extents import extents
from lpa.ome_zarr import create_labels
from lpa.plan import replace_folder
from lpa.split import DEFAULT_RULES, SHEETS, SplitDecision, split
from lpa.split_rules import SplitRule

LARGEST = 2**30  # voxels; measuring takes about 30 bytes for each
CHUNK, SHARD = 64, 256  # voxels a side
SPLIT_RULES: Mapping[str, Mapping[str, SplitRule]] = {
    "necks": DEFAULT_RULES,
    "sheets": {**DEFAULT_RULES, Organelle.ENDO: SHEETS},  # stacked discs such as fusiform vesicles
}


@dataclass(frozen=True)
class Labelled:
    """Instances in memory, and what they are."""

    instances: npt.NDArray[Any]  # (z, y, x)
    organelle_of: dict[int, Organelle]
    voxel_size: VoxelSize
    decisions: Sequence[SplitDecision] = ()


def read_labelled(source: str, labels: str | os.PathLike[str], voxel_size: VoxelSize | None) -> Labelled:
    """Read the instances at ``labels``, and from the semantic volume ``source`` the organelle of each.

    ``voxel_size`` replaces what the files say. Raises ``InputError`` for values that are no organelles, an unknown
    voxel size and a volume above ``LARGEST``.
    """
    opened = open_volume(labels).as_labels()
    size = voxel_size or opened.voxel_size_nm
    if size is None:
        raise InputError(
            f"{source} does not say how large its voxels are",
            expected="a voxel size in its metadata",
            remedy="give it: --voxel-size-nm Z,Y,X",
        )
    voxels = opened.shape[0] * opened.shape[1] * opened.shape[2]
    if voxels > LARGEST:
        raise InputError(
            f"{labels} is too large to be split or judged in memory",
            found=f"{voxels:,} voxels",
            expected=f"at most {LARGEST:,}",
            remedy="label without --split, --certificate and --preview, or crop the volume",
        )
    instances = opened[:]
    found = extents(instances)
    values = np.asarray(open_volume(source).as_labels()[:]).reshape(-1)[found.first].astype(np.int64)
    strangers = sorted(set(values.tolist()) - set(range(1, len(ORGANELLES) + 1)))
    if strangers:
        raise InputError(
            f"{source} does not hold organelles",
            found=f"classes {', '.join(map(str, strangers[:8]))}",
            expected=", ".join(f"{organelle.label_id} {organelle}" for organelle in Organelle),
            remedy="map its classes to these first: what is judged depends on the organelle",
        )
    names = list(Organelle)
    organelle_of = {int(id_): names[int(value) - 1] for id_, value in zip(found.ids, values, strict=True)}
    return Labelled(instances, organelle_of, size)


def split_labelled(labelled: Labelled, rules: str) -> Labelled:
    """Split touching instances by a named set of rules (``SPLIT_RULES``)."""
    instances, decisions = split(labelled.instances, labelled.organelle_of, labelled.voxel_size, SPLIT_RULES[rules])
    organelle_of = dict(labelled.organelle_of)
    for decision in decisions:
        organelle_of.update(dict.fromkeys(decision.child_ids, decision.organelle))
    return Labelled(instances, organelle_of, labelled.voxel_size, decisions)


def replace_labels(destination: Path, labelled: Labelled, rules: str) -> None:
    """Write split instances over the labels at ``destination``, which keep their place until these are complete."""
    like = open_volume(destination)
    counts = Counter(organelle.label_id for organelle in labelled.organelle_of.values())
    instances_of_class = {str(label_id): count for label_id, count in sorted(counts.items())}
    about = {**like.attributes["lpa"], "split": rules, "instances_of_class": instances_of_class}
    partial = destination.with_name(f".{destination.name}.partial-split-{os.getpid()}")
    z, y, x = labelled.instances.shape
    edge = tuple(SHARD if size > CHUNK else CHUNK for size in (z, y, x))
    try:
        array = create_labels(
            partial,
            (z, y, x),
            labelled.instances.dtype,
            tuple(labelled.voxel_size),
            (CHUNK, CHUNK, CHUNK),
            (edge[0], edge[1], edge[2]),
            translation_nm=like.translation_nm,
            attributes={"lpa": about},
        )
        array.write(labelled.instances).result()
        replace_folder(partial, destination)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
