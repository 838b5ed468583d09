"""Volume to instances: published ids are kept, semantic labels go through label propagation."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

import lpa
from em_bench_eval.errors import InputError
from em_bench_eval.schema import ORGANELLES, Organelle, Volume


def instances_of(volume: Volume) -> tuple[npt.NDArray[Any], dict[int, Organelle]]:
    """Return the ``(z, y, x)`` instance ids of a volume, and the organelle of each id.

    Semantic labels become instances by ``lpa.label`` with the default connectivity of each organelle, ids in the
    order of their first voxel. Raises ``InputError`` for a class that is no organelle and an id without an organelle.
    """
    if volume.semantic is not None:
        semantic = np.asarray(volume.semantic[:])
        strangers = sorted(set(np.unique(semantic).tolist()) - set(range(len(ORGANELLES) + 1)))
        if strangers:
            raise InputError(
                f"{volume.volume_id}: unknown semantic classes",
                found=strangers,
                expected=f"0 to {len(ORGANELLES)}: background, {', '.join(ORGANELLES)}",
                remedy="map the source's classes to organelles where the volume is declared",
            )
        instances = lpa.label(semantic, lpa.DEFAULT_CONNECTIVITY, relabel="compact")
        ids, first = np.unique(instances, return_index=True)
        classes = semantic.ravel()[first]
        named = {int(id_): list(Organelle)[int(value) - 1] for id_, value in zip(ids, classes, strict=True) if id_}
        return instances, named
    assert volume.instances is not None, "Volume holds one of the two"
    instances = np.asarray(volume.instances[:])
    present = np.unique(instances)
    orphans = [int(id_) for id_ in present if id_ and int(id_) not in volume.organelle_of]
    if orphans:
        raise InputError(
            f"{volume.volume_id}: instances without an organelle",
            found=f"{len(orphans)} ids, first {orphans[:5]}",
            expected="an organelle for every id",
            remedy="complete organelle_of where the volume is declared",
        )
    return instances, {int(id_): volume.organelle_of[int(id_)] for id_ in present if id_}


def semantic_of(instances: npt.NDArray[Any], organelle_of: dict[int, Organelle]) -> npt.NDArray[np.uint8]:
    """Return the semantic map of an instance map: ``Organelle.label_id`` for every voxel, 0 background."""
    table = np.zeros(max(organelle_of, default=0) + 1, np.uint8)
    for id_, organelle in organelle_of.items():
        table[id_] = organelle.label_id
    return np.asarray(table[instances])
