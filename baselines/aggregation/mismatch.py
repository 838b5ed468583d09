"""The local/global mismatch, taken apart: all aggregation levels from one probability volume, and what lies between.

A score in patches against the ids of the whole volume (L1) is what a 2D benchmark reports. What it loses is the sum of

* ``gap_id`` = L0 - L1: the definition of an instance: the same patches, judged against the pieces that they show;
* ``pixels`` = oracle L0 - L0: voxels that the model got wrong;
* ``contacts`` = 1 - oracle L0: instances that touch in the patch, which connected components cannot tell apart,

exactly, because these are differences along one path from L1 to 1. What aggregation does about it is ``gap_stitch`` =
L5 - L1, in the steps L1 -> L2 (the whole slice: a larger 2D field of view), L2 -> L3 (linking through z) and, the other
way round, L4 -> L5 (stitching 3D blocks). What it leaves over is ``gap_pixel`` = oracle L5 - L5, and ``rule`` =
1 - oracle L5: instances that touch in 3D, or lie in several pieces in the volume.

The levels below L3 judge images and the others a volume, so their instances are not the same population: an instance
that is cut by a hundred slices counts a hundred times below, once above. Views "L3 in slices" and "L5 in slices" judge
the volume's instances image by image for comparison.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from baselines.aggregation.aggregation import by_source, score_levels
from baselines.aggregation.aggregation_levels import ALL, DEFAULT_CUTS, LEVELS, Cuts
from baselines.aggregation.aggregation_scores import Fragmentation, Keys, min_edges, min_volume_nm3
from baselines.aggregation.aggregation_scratch import Scratch
from baselines.aggregation.aggregation_sides import Maps, Reference, check_grid, mapped_organelles
from em_bench_eval.errors import InputError
from em_bench_eval.metric import Value
from em_bench_eval.schema import Array3D
from em_bench_eval.settings import METRIC_VERSION

FORMAT = "em-organelle-wild mismatch v1"
AGGREGATIONS = ("dice__size", "dice__reference", "dice__instance", "dice__pooled")  # the first is told in words
SEMANTICS = ("predicted", "oracle")
SAME_PIXELS = ("semantic_dice", "semantic_precision", "semantic_recall")

Levels = dict[str, Keys]  # level -> metric -> value


@dataclass(frozen=True)
class OrganelleMismatch:
    """One organelle: the metrics of every level, and how its reference falls into pieces.

    ``levels``: "predicted" and "oracle" -> level -> metric -> value; "predicted" is missing without a prediction.
    ``fragmentation``: "patch" and "slice".
    """

    levels: Mapping[str, Levels]
    fragmentation: Mapping[str, Fragmentation]

    def value(self, level: str, key: str, semantics: str) -> float | None:
        """Return a metric; None where it is undefined or was not measured."""
        found = self.levels.get(semantics, {}).get(level, {}).get(key)
        return None if found is None else float(found)


@dataclass(frozen=True)
class Mismatch:
    """The result for one volume."""

    about: Mapping[str, Any]  # what was measured and how
    organelles: Mapping[str, OrganelleMismatch]
    not_predicted: tuple[str, ...] = ()  # annotated, but the maps do not hold them
    empty: tuple[str, ...] = ()  # annotated, but the volume has no instance that is large enough to be judged

    def as_json(self) -> dict[str, Any]:
        """Return plain values: everything measured, and the gaps for each aggregation of the Dice."""
        return {
            "format": FORMAT,
            "metric_version": METRIC_VERSION,
            **self.about,
            "not_predicted": list(self.not_predicted),
            "empty": list(self.empty),
            "organelles": {
                name: {
                    "fragmentation": {kind: part._asdict() for kind, part in found.fragmentation.items()},
                    "levels": {semantics: dict(levels) for semantics, levels in found.levels.items()},
                    "gaps": {
                        semantics: {key: gaps(found, key, semantics) for key in AGGREGATIONS}
                        for semantics in found.levels
                    },
                }
                for name, found in self.organelles.items()
            },
        }


def gaps(found: OrganelleMismatch, key: str, semantics: str = "predicted") -> dict[str, Value]:
    """Return the differences of the module's text for one metric; None where a level is undefined.

    With ``semantics="oracle"`` everything that pixels cost is 0.
    """

    def at(level: str) -> float | None:
        return found.value(level, key, semantics)

    def oracle(level: str) -> float | None:
        return found.value(level, key, "oracle")

    return {
        "lost": _minus(1.0, at("L1")),
        "pixels": _minus(oracle("L0"), at("L0")),
        "contacts": _minus(1.0, oracle("L0")),
        "gap_id": _minus(at("L0"), at("L1")),
        "gap_stitch": _minus(at("L5"), at("L1")),
        "gap_pixel": _minus(oracle("L5"), at("L5")),
        "field_of_view": _minus(at("L2"), at("L1")),
        "through_z": _minus(at("L3"), at("L2")),
        "blocks": _minus(at("L5"), at("L4")),
        "left": _minus(1.0, at("L5")),
        "rule": _minus(1.0, oracle("L5")),
    }


def _minus(one: float | None, other: float | None) -> Value:
    return None if one is None or other is None else one - other


def mismatch(
    reference: Reference,
    maps: Maps | None = None,
    semantic: Array3D | None = None,
    cuts: Cuts = DEFAULT_CUTS,
    *,
    min_edge_nm: float | None = None,
    scratch: Scratch | None = None,
    progress: bool = False,
) -> Mismatch:
    """Measure every level, with the prediction's and with perfect pixels.

    Args:
        reference: the annotated volume.
        maps: probability maps of it (``map_store.open_maps``); or
        semantic: its predicted classes, 1 to 5; or neither: perfect pixels alone.
        cuts: sizes of patches and blocks, and the rule that links slices.
        min_edge_nm: see ``aggregation.score_level``.
        scratch: where intermediate volumes lie.
        progress: show bars on stderr.

    Raises:
        InputError: maps or reference are unusable, or their grids differ.
        ArithmeticError: a level changed pixels, which no level may.
    """
    if maps is not None and semantic is not None:
        raise ValueError("give maps or a semantic map, not both")
    judged, missing = reference.organelles, tuple[str, ...]()
    if maps is not None:
        check_grid("the maps", maps.shape, getattr(maps, "voxel_size_nm", None), reference)
        predicted = mapped_organelles(maps)
        judged = tuple(name for name in reference.organelles if name in predicted)
        missing = tuple(name for name in reference.organelles if name not in predicted)
    if not judged:
        raise InputError(
            "nothing to compare",
            found=f"the reference annotates {', '.join(reference.organelles) or 'nothing'}",
            expected="an organelle that the maps predict" if maps is not None else "an annotated organelle",
        )
    edges = min_edges(min_edge_nm)
    with scratch or Scratch(progress=progress) as own:
        volumes = {"oracle": own.semantic_of_reference(reference)}
        if maps is not None:
            volumes["predicted"] = own.semantic_of_maps(maps, reference.voxel_size_nm)
        elif semantic is not None:
            volumes["predicted"] = semantic
        levels: dict[str, dict[str, dict[str, Keys]]] = {name: {} for name in volumes}
        fragments: dict[str, dict[str, Fragmentation]] = {}
        for semantics, volume in volumes.items():
            for group in by_source(ALL):
                names = " and ".join(name for name in group if name in LEVELS)
                scored = score_levels(
                    volume, group, reference, cuts, edges, judged, own, f"{names}, {semantics}" if progress else ""
                )
                levels[semantics].update(scored.levels)
                if scored.fragmentation:
                    fragments["patch" if "L1" in group else "slice"] = scored.fragmentation
    organelles = {
        name: OrganelleMismatch(
            {
                semantics: {level: levels[semantics][level][name] for level in ALL}
                for semantics in SEMANTICS
                if semantics in levels
            },
            {kind: found[name] for kind, found in fragments.items() if name in found},
        )
        for name in judged
    }
    check_same_pixels(organelles)
    defined = {name: found for name, found in organelles.items() if _has_instances(found)}
    about = _about(reference, cuts, edges, judged)
    return Mismatch(about, defined, missing, tuple(name for name in organelles if name not in defined))


def _has_instances(found: OrganelleMismatch) -> bool:
    return bool(found.value("L5", "n_reference", "oracle"))


def _about(reference: Reference, cuts: Cuts, edges: Mapping[str, float], judged: Sequence[str]) -> dict[str, Any]:
    return {
        "reference": reference.labels.location,
        "shape": list(reference.shape),
        "voxel_size_nm": list(reference.voxel_size_nm),
        "cuts": asdict(cuts),
        "too_small_blocks": [name for name in judged if _smaller(cuts.block, edges[name], reference)],
        "one_patch_per_slice": max(reference.shape[1:]) <= cuts.patch,
        "one_block": max(reference.shape) <= cuts.block,
        "min_edge_nm": {name: edges[name] for name in judged},
    }


def _smaller(block: int, edge_nm: float, reference: Reference) -> bool:
    """Whether blocks hold nothing that is large enough to be judged."""
    sides = list(zip(reference.shape, reference.voxel_size_nm, strict=True))
    extent_nm = [n * nm for n, nm in sides]
    return math.prod(min(block, n) * nm for n, nm in sides) < min_volume_nm3(edge_nm, extent_nm)


def check_same_pixels(organelles: Mapping[str, OrganelleMismatch]) -> None:
    """Raise ``ArithmeticError`` unless all levels of the same semantics agree about pixels, to the last bit."""
    for name, found in organelles.items():
        for semantics, levels in found.levels.items():
            for key in SAME_PIXELS:
                values = {level: keys[key] for level, keys in levels.items()}
                if len(set(values.values())) > 1:
                    raise ArithmeticError(f"{key} of {name}, {semantics}, is not the same at all levels: {values}")
