"""Split components that hold several touching instances, and report every decision.

Connected components cannot tell two mitochondria that touch from one. ``split`` cuts each component into the basins of
its distance transform (``lpa.fragments``), puts together what belongs together (``lpa.split_rules``) and renumbers. All
scales are in nm, so the same settings hold for every voxel size. Components are handled one by one in their bounding
boxes: beyond the result and 4 bytes per voxel of what is cut, memory is bounded by the largest.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from em_bench_eval.errors import InputError, unknown_name
from em_bench_eval.schema import ORGANELLES, Organelle
from lpa.extents import Extents, as_instances, extents, organelles_of
from lpa.fragments import Neck, fragment, weakest_neck
from lpa.split_rules import NeckRule, SheetRule, SplitRule, absorb_small, connected_groups

# Conservative on purpose: in three expert-labelled volumes every mitochondrion cut at a neck wider than one voxel was
# cut wrongly (docs/lpa_quality.md). Triage shows the narrow cases that were kept.
DEFAULT_RULES: Mapping[str, SplitRule] = {
    Organelle.MITO: NeckRule(max_neck_ratio=0.15, min_persistence_nm=120, min_volume_nm3=5e6),
    Organelle.NUCLEUS: NeckRule(max_neck_ratio=0.3, min_persistence_nm=500, min_volume_nm3=1e9),
    Organelle.ENDO: NeckRule(max_neck_ratio=0.5, min_persistence_nm=40, min_volume_nm3=2e5),
}
# Fusiform vesicles (urothelium; discs about 50 nm thick in dense stacks) and other stacked cisternae
SHEETS = SheetRule(reach_nm=144, normal_scale_nm=32, min_affinity=0.55, min_volume_nm3=1e6)


@dataclass(frozen=True)
class SplitDecision:
    """What was decided for one component that could have been cut."""

    parent_id: int
    child_ids: tuple[int, ...]  # in raster order of first voxel; (parent_id,) where it was kept
    organelle: Organelle
    is_split: bool
    volume_nm3: float
    neck_ratio: float  # of the most persistent cut: half width of the neck / half width of the thinner body
    persistence_nm: float  # of the same cut: half width of the thinner body - half width of the neck
    child_volumes_nm3: tuple[float, ...]


def split(
    instances: npt.ArrayLike,
    organelle_of: Mapping[int, Organelle | str],
    voxel_size: Iterable[float],
    rules: Mapping[str, SplitRule] | None = None,
) -> tuple[npt.NDArray[Any], list[SplitDecision]]:
    """Split the components of compact organelles that hold several touching instances.

    Args:
        instances: ``(z, y, x)`` unsigned integers, 0 = background; each id one connected component.
        organelle_of: organelle of every id.
        voxel_size: ``(z, y, x)`` in nm (``schema.VoxelSize`` or three numbers).
        rules: organelle -> ``NeckRule`` or ``SheetRule``; only the organelles named here are split. ``None``:
            ``DEFAULT_RULES`` (mito, nucleus, endo). For stacked discs: ``{"endo": lpa.SHEETS}``.

    Returns:
        New instances, each 6-connected if its component was: the child that owns the first voxel of a component keeps
        its id, the others get ids above the largest one, in raster order of their first voxels (wider dtype where
        needed). And one decision per component that had more than one fragment, in ascending order of id; a new id
        (``decision.child_ids``) has the organelle of its parent.

    Raises:
        InputError: er or golgi in ``rules`` (networks are never split), ids without organelle, floats.
    """
    volume = as_instances(instances)
    voxel_nm = three_lengths(voxel_size)
    chosen = _checked(DEFAULT_RULES if rules is None else rules)
    found = extents(volume)
    organelles = organelles_of(found.ids, organelle_of)
    todo = [index for index, organelle in enumerate(organelles) if str(organelle) in chosen]
    result = volume.copy()
    cut: list[tuple[int, npt.NDArray[np.int64], Neck]] = []  # component, first voxels of its parts, neck
    pieces: list[tuple[int, int, int]] = []  # first voxel, component, part
    labels: dict[int, npt.NDArray[np.int32]] = {}  # parts of the component's own voxels, in raster order
    sizes: dict[int, npt.NDArray[np.int64]] = {}
    for index in tqdm(todo, desc="split", unit="component", disable=None if len(todo) >= 100 else True):
        parts, neck = _parts(volume, found, index, chosen[str(organelles[index])], voxel_nm)
        if neck is None:
            continue
        first, size = _first_and_size(parts, found, index, volume.shape)
        cut.append((index, first, neck))
        sizes[index] = size
        if len(first) > 1:
            labels[index] = parts[parts > 0]
            pieces += [(int(where), index, part) for part, where in enumerate(first.tolist()) if part]
    new_id = _number(pieces, int(found.ids.max()) if len(found.ids) else 0)
    result = _widen(result, max(new_id.values(), default=0))
    for index, parts in labels.items():
        box = found.box(index, volume.shape, margin=1)
        names = [0, int(found.ids[index]), *(new_id[index, part] for part in range(1, int(parts.max())))]
        result[box][volume[box] == found.ids[index]] = np.array(names, result.dtype)[parts]
    return result, [
        _decision(index, found, organelles[index], neck, sizes[index], new_id, voxel_nm) for index, _, neck in cut
    ]


def _parts(
    volume: npt.NDArray[Any], found: Extents, index: int, rule: SplitRule, voxel_nm: tuple[float, float, float]
) -> tuple[npt.NDArray[np.int32], Neck | None]:
    """Label the parts of one component 1..n in raster order of first voxel; no neck: there was nothing to decide."""
    box = found.box(index, volume.shape, margin=1)
    mask = volume[box] == found.ids[index]
    fragments = fragment(mask, voxel_nm)
    if len(fragments.peak) < 2:
        return fragments.basin, None
    forest = connected_groups(rule.group(fragments, voxel_nm), fragments)
    absorb_small(forest, fragments, rule.min_volume_nm3 / float(np.prod(voxel_nm)))
    group = np.concatenate([[0], forest.names() + 1])[fragments.basin]
    values, first = np.unique(group, return_index=True)
    values, first = values[values > 0], first[values > 0]
    lookup = np.zeros(len(fragments.peak) + 1, np.int32)
    lookup[values[np.argsort(first)]] = np.arange(1, len(values) + 1)
    return lookup[group], weakest_neck(fragments)


def _first_and_size(
    parts: npt.NDArray[np.int32], found: Extents, index: int, shape: tuple[int, ...]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Linear index in the whole volume of the first voxel of each part, and its voxels."""
    count = int(parts.max())
    inside = np.flatnonzero(parts)
    values, where = np.unique(parts.reshape(-1)[inside], return_index=True)
    assert len(values) == count
    local = np.unravel_index(inside[where], parts.shape)
    box = found.box(index, shape, margin=1)
    world = [axis + part.start for axis, part in zip(local, box, strict=True)]
    return np.ravel_multi_index(world, shape).astype(np.int64), np.bincount(parts.reshape(-1))[1:]


def _number(pieces: list[tuple[int, int, int]], largest: int) -> dict[tuple[int, int], int]:
    """New ids above ``largest`` in raster order of first voxel, by component and part."""
    return {(index, part): largest + 1 + rank for rank, (_, index, part) in enumerate(sorted(pieces))}


def _widen(array: npt.NDArray[Any], largest: int) -> npt.NDArray[Any]:
    if largest <= np.iinfo(array.dtype).max:
        return array
    return array.astype(np.uint32 if largest < 2**32 else np.uint64)


def _decision(
    index: int,
    found: Extents,
    organelle: Organelle,
    neck: Neck,
    sizes: npt.NDArray[np.int64],
    new_id: Mapping[tuple[int, int], int],
    voxel_nm: tuple[float, float, float],
) -> SplitDecision:
    voxel_nm3 = float(np.prod(voxel_nm))
    parent = int(found.ids[index])
    return SplitDecision(
        parent_id=parent,
        child_ids=(parent, *(new_id[index, part] for part in range(1, len(sizes)))),
        organelle=organelle,
        is_split=len(sizes) > 1,
        volume_nm3=float(found.voxels[index]) * voxel_nm3,
        neck_ratio=neck.ratio,
        persistence_nm=neck.persistence_nm,
        child_volumes_nm3=tuple((sizes * voxel_nm3).tolist()),
    )


def _checked(rules: Mapping[str, SplitRule]) -> dict[str, SplitRule]:
    for name in rules:
        if str(name) not in ORGANELLES:
            raise unknown_name("organelle", str(name), ORGANELLES)
        if Organelle(str(name)).is_network:
            raise InputError(
                "network organelles are never split",
                found=f"a rule for {name}",
                expected="rules for mito, nucleus and endo only",
                remedy=f"leave {name} out: an er or golgi is one connected network however narrow its necks",
            )
    return {str(name): rule for name, rule in rules.items()}


def three_lengths(voxel_size: Iterable[float]) -> tuple[float, float, float]:
    """Return ``(z, y, x)`` in nm, or raise ``InputError``."""
    lengths = tuple(float(length) for length in voxel_size)
    if len(lengths) != 3 or not all(np.isfinite(length) and length > 0 for length in lengths):
        raise InputError("unusable voxel size", found=lengths, expected="three positive numbers of nm, (z, y, x)")
    return lengths[0], lengths[1], lengths[2]
