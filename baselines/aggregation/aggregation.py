"""Aggregating one semantic map into instances at a level, and scoring a level: what ``predict`` and ``mismatch`` call.

with Scratch() as scratch:
    semantic = scratch.semantic_of_maps(open_maps(folder))         # once, for all levels
    oracle = scratch.semantic_of_reference(reference)              # perfect pixels
    labels, organelle_of = aggregate(semantic, "L5", scratch=scratch)
    scores = score_level(semantic, "L5", reference, scratch=scratch)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from baselines.aggregation.aggregation_levels import DEFAULT_CUTS, Cuts, Instances, Level, level_named
from baselines.aggregation.aggregation_scores import (
    Fragmentation,
    FragmentCount,
    Keys,
    LevelScore,
    min_edges,
    pieces_of,
)
from baselines.aggregation.aggregation_scratch import Scratch
from baselines.aggregation.aggregation_sides import LABEL_ID, Reference, check_grid
from em_bench_eval.schema import Array3D, Organelle


@dataclass(frozen=True)
class Aggregated:
    """The instances of a volume at one level."""

    labels: npt.NDArray[Any]  # (z, y, x), 0 = background
    organelle_of: dict[int, Organelle]


@dataclass(frozen=True)
class Scored:
    """Levels made from the same instances."""

    levels: dict[str, dict[str, Keys]]  # level -> organelle -> metric -> value
    fragmentation: dict[str, Fragmentation]  # of the reference in the images of these levels; empty without images


def aggregate(
    semantic: Array3D,
    level: str,
    cuts: Cuts = DEFAULT_CUTS,
    *,
    scratch: Scratch | None = None,
    out: Any = None,
) -> Aggregated:
    """Make the instances of a level.

    Args:
        semantic: ``(z, y, x)``, 0 = background, 1 to 5 = ``Organelle.label_id``; a numpy array, or an opened volume.
            ``Scratch.semantic_of_maps`` makes it of probability maps, ``Scratch.semantic_of_reference`` is the oracle.
        level: "L0" to "L5"; L0 and L1 are the same instances.
        cuts: sizes of patches and blocks, and the rule that links slices.
        scratch: where components of volumes beyond memory are labelled.
        out: array to write to instead of a new one in memory: anything that takes ``out[z, y, x] = labels``, such as a
            tensorstore array; ids stay below 2^32 unless there are that many.

    Returns:
        Ids 1 to N without gaps, and the organelle of each. No voxel is dropped, however small its instance.
    """
    chosen = level_named(level)
    own = scratch or Scratch()
    target = np.zeros(tuple(semantic.shape), np.uint32) if out is None else out
    organelle_of: dict[int, Organelle] = {}
    by_label_id = {organelle.label_id: organelle for organelle in Organelle}
    with own if scratch is None else nullcontext():
        for tile in chosen.instances(semantic, cuts, own):
            ids, first = np.unique(tile.labels, return_index=True)
            values = tile.classes.reshape(-1)[first]
            organelle_of.update(
                (int(id_), by_label_id[int(value)]) for id_, value in zip(ids, values, strict=True) if id_
            )
            target[tile.box] = tile.labels
    return Aggregated(target, dict(sorted(organelle_of.items())))


def score_level(
    semantic: Array3D,
    level: str,
    reference: Reference,
    cuts: Cuts = DEFAULT_CUTS,
    *,
    min_edge_nm: float | None = None,
    organelles: Sequence[str] | None = None,
    scratch: Scratch | None = None,
) -> dict[str, Keys]:
    """Make and score one level; returns ``{organelle: {metric: value}}`` with the names of ``em-bench explain``.

    ``min_edge_nm``: instances of either side below the square (images) or cube (volumes) of this edge are not judged;
    default: by organelle, ``aggregation_scores.MIN_EDGE_NM``.
    """
    own = scratch or Scratch()
    with own if scratch is None else nullcontext():
        chosen = {level: level_named(level)}
        found = score_levels(semantic, chosen, reference, cuts, min_edges(min_edge_nm), organelles, own)
    return found.levels[level]


def score_levels(
    semantic: Array3D,
    levels: Mapping[str, Level],
    reference: Reference,
    cuts: Cuts,
    min_edge_nm: Mapping[str, float],
    organelles: Sequence[str] | None,
    scratch: Scratch,
    progress: str = "",
) -> Scored:
    """Score levels that are made from the same instances, in one pass; ``progress`` names it on the bar."""
    from tqdm import tqdm

    check_grid("the semantic map", semantic.shape, getattr(semantic, "voxel_size_nm", None), reference)
    judged = tuple(name for name in LABEL_ID if name in (organelles or reference.organelles))
    scores = {name: LevelScore(level, reference, min_edge_nm, judged) for name, level in levels.items()}
    made = _one_source(levels)
    needs_pieces = any(level.reference == "pieces" for level in levels.values())
    fragments = FragmentCount(reference, min_edge_nm)
    total = int(np.prod(semantic.shape, dtype=np.int64))
    with tqdm(desc=progress, total=total, unit="voxel", unit_scale=True, disable=not progress, leave=False) as bar:
        for tile in made(semantic, cuts, scratch):
            truth = reference.read(tile.box)
            pieces = pieces_of(truth, judged, cuts.connectivity) if needs_pieces else None
            if pieces is not None:
                fragments.add(truth, pieces)
            for score in scores.values():
                score.add(tile, truth, pieces)
            bar.update(tile.labels.size)
    return Scored({name: score.compute() for name, score in scores.items()}, fragments.compute())


def by_source(levels: Mapping[str, Level]) -> list[dict[str, Level]]:
    """Group levels that are made from the same instances, in order."""
    groups: dict[Instances, dict[str, Level]] = {}
    for name, level in levels.items():
        groups.setdefault(level.instances, {})[name] = level
    return list(groups.values())


def _one_source(levels: Mapping[str, Level]) -> Instances:
    sources = {level.instances for level in levels.values()}
    if len(sources) != 1:
        raise ValueError(f"{', '.join(levels)} are not made from the same instances")
    return sources.pop()
