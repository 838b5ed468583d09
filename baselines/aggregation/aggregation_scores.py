"""Judging the tiles of a level against the reference, and what the reference's own pieces say before any model.

``f`` of an instance in an image is the share of its largest connected piece there. If every piece is predicted without
an error and counted as an instance, one-to-one matching gives that instance a Dice of 2 f / (1 + f): what perfect
pixels are worth.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from baselines.aggregation.aggregation_levels import Level, Tile
from baselines.aggregation.aggregation_sides import LABEL_ID, Classes, Reference, ReferenceBox
from baselines.decode import DECODERS
from em_bench_eval.errors import InputError
from em_bench_eval.metric import Value
from em_bench_eval.schema import Organelle
from em_bench_eval.scoring import Evaluation
from em_bench_eval.settings import Settings
from lpa import DEFAULT_CONNECTIVITY
from lpa.label import label

Keys = dict[str, Value]  # metric name -> value, of one organelle
Sizes = npt.NDArray[np.float64]  # pixels

# Edge in nm of the smallest square (in images) or cube (in volumes) that is judged; the square is the smallest area
# that ``baselines.decode`` keeps. One length for both sides, and for images and volumes.
MIN_EDGE_NM: Mapping[str, float] = {
    organelle.value: round(DECODERS[organelle].min_area_nm2 ** 0.5, 1) for organelle in Organelle
}


def min_edges(given: float | None) -> dict[str, float]:
    """Return the smallest judged edge by organelle: the default, or one length in nm for all (0: judge everything)."""
    if given is not None and not 0 <= given < float("inf"):
        raise InputError("the smallest edge that is judged is a length", found=given, expected="0 nm or more")
    return dict(MIN_EDGE_NM) if given is None else {organelle.value: float(given) for organelle in Organelle}


def min_volume_nm3(edge_nm: float, extent_nm: Iterable[float]) -> float:
    """Volume of the cube, or of what a volume that is thinner than its edge holds of it."""
    return edge_nm**2 * min(edge_nm, *extent_nm)


class LevelScore:
    """Accumulates one level; ids that ``volume`` levels see in several tiles must mean the same instance."""

    def __init__(
        self, level: Level, reference: Reference, min_edge_nm: Mapping[str, float], organelles: Iterable[str]
    ) -> None:
        self.level, self.reference = level, reference
        extent_nm = [n * nm for n, nm in zip(reference.shape, reference.voxel_size_nm, strict=True)]
        self._evaluations = {}
        for name in organelles:
            edge = min_edge_nm[name]
            smallest = edge**2 if level.unit == "image" else min_volume_nm3(edge, extent_nm)
            self._evaluations[name] = Evaluation(Settings(min_size_nm=smallest))

    def add(self, tile: Tile, truth: ReferenceBox, pieces: Mapping[str, npt.NDArray[Any]] | None = None) -> None:
        """Count a tile. ``pieces`` (of ``pieces_of``) is needed where the level judges against pieces."""
        for name, evaluation in self._evaluations.items():
            predicted = only(tile.labels, tile.classes, name)
            if self.level.reference == "pieces":
                if pieces is None:
                    raise ValueError("this level is judged against the pieces of the reference")
                known = pieces[name]
            else:
                known = only(truth.ids, truth.classes, name)
            if self.level.unit == "volume":
                self._add_block(evaluation, name, tile, predicted, known, truth.ignore)
            elif predicted.any() or known.any():
                self._add_images(evaluation, name, predicted, known, truth.ignore)

    def _add_block(
        self, evaluation: Evaluation, name: str, tile: Tile, predicted: Any, known: Any, ignore: Any
    ) -> None:
        evaluation.add_block(
            "volume",
            {name: predicted},
            {name: known},
            start=[side.start for side in tile.box],
            shape=self.reference.shape,
            voxel_size_nm=tuple(self.reference.voxel_size_nm),
            annotated=(name,),
            ignore=ignore,
        )

    def _add_images(self, evaluation: Evaluation, name: str, predicted: Any, known: Any, ignore: Any) -> None:
        pixel_size_nm = tuple(self.reference.voxel_size_nm)[1:]
        for z in range(len(predicted)):
            evaluation.add(
                {name: predicted[z]},
                {name: known[z]},
                voxel_size_nm=pixel_size_nm,
                annotated=(name,),
                ignore=None if ignore is None else ignore[z],
            )

    def compute(self) -> dict[str, Keys]:
        """Return every overlap metric by organelle and name."""
        return {name: dict(_of(name, evaluation.compute())) for name, evaluation in self._evaluations.items()}


def _of(organelle: str, values: Mapping[str, Value]) -> Iterator[tuple[str, Value]]:
    for key, value in values.items():
        owner, _, name = key.partition("/")
        if owner == organelle:
            yield name, value


def only(labels: npt.NDArray[Any], classes: Classes, organelle: str) -> npt.NDArray[Any]:
    """Return the labels of one organelle, 0 elsewhere."""
    return np.where(classes == LABEL_ID[organelle], labels, labels.dtype.type(0))


def pieces_of(
    truth: ReferenceBox, organelles: Iterable[str], connectivity: Mapping[str, int] = DEFAULT_CONNECTIVITY
) -> dict[str, npt.NDArray[Any]]:
    """Give each connected piece of each id in each slice of a box an id of its own, by organelle.

    Pieces of different ids stay apart where they touch; slices stay apart as well, their ids starting again at 1.
    """
    found = {}
    for name in organelles:
        ids = only(truth.ids, truth.classes, name)
        pieces = np.zeros(ids.shape, np.uint32)
        for z in range(len(ids)):
            if ids[z].any():
                pieces[z] = label(ids[z], connectivity[name], "compact")
        found[name] = pieces
    return found


class Fragmentation(NamedTuple):
    """How one organelle's reference instances fall into pieces in images; None without instances.

    ``f_*``: share of an instance's largest piece in an image, over (image, instance); ``dice_*``: 2 f / (1 + f) of the
    same, what perfect pixels are worth. ``*_mean``: plain mean; ``*_size``: weighted by pixels.
    """

    images: int  # with at least one instance
    instances: int  # (image, instance) pairs
    pieces: int
    f_mean: Value
    f_size: Value
    dice_mean: Value
    dice_size: Value


@dataclass
class FragmentCount:
    """Accumulates ``Fragmentation`` of the organelles over the images of one kind (patches, or whole slices)."""

    reference: Reference
    min_edge_nm: Mapping[str, float]

    def __post_init__(self) -> None:
        self._found: dict[str, list[tuple[Sizes, Sizes, int]]] = {}

    def add(self, truth: ReferenceBox, pieces: Mapping[str, npt.NDArray[Any]]) -> None:
        """Count the slices of a box."""
        pixel_nm2 = self.reference.voxel_size_nm.y * self.reference.voxel_size_nm.x
        for name, numbered in pieces.items():
            smallest = self.min_edge_nm[name] ** 2 / pixel_nm2
            for z in np.flatnonzero(numbered.any(axis=(1, 2))):
                seen = numbered[z] > 0
                if truth.ignore is not None:
                    seen &= ~truth.ignore[z]
                parent, size = _sizes(numbered[z][seen], truth.ids[z][seen])
                ids, position = np.unique(parent, return_inverse=True)
                whole = np.bincount(position, size, len(ids)).astype(np.float64)
                largest = np.zeros(len(ids))
                np.maximum.at(largest, position, size)
                judged = whole >= max(smallest, 1)
                if judged.any():
                    count = int(judged[position].sum())
                    self._found.setdefault(name, []).append((largest[judged], whole[judged], count))

    def compute(self) -> dict[str, Fragmentation]:
        """Return the sums by organelle."""
        return {name: _fragmentation(found) for name, found in self._found.items()}


def _sizes(pieces: npt.NDArray[Any], ids: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], Sizes]:
    """Return the id that each piece belongs to, and its pixels, from the values of the same pixels."""
    _, first, counts = np.unique(pieces, return_index=True, return_counts=True)
    return ids[first], counts.astype(np.float64)


def _fragmentation(found: list[tuple[Sizes, Sizes, int]]) -> Fragmentation:
    largest = np.concatenate([part[0] for part in found])
    whole = np.concatenate([part[1] for part in found])
    f = largest / whole
    dice = 2 * f / (1 + f)
    return Fragmentation(
        len(found),
        len(f),
        sum(part[2] for part in found),
        float(f.mean()),
        float(np.average(f, weights=whole)),
        float(dice.mean()),
        float(np.average(dice, weights=whole)),
    )
