"""From a program's result for one case to instances at native size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from baselines.decode import DECODERS, Decoder, split
from baselines.external.import_arrays import read_nearest
from baselines.external.row_boxes import Triple
from baselines.flood import filled
from em_bench_eval.errors import InputError
from em_bench_eval.opened import Box, Opened, whole_numbers
from em_bench_eval.schema import Organelle

PLAIN = Decoder(min_area_nm2=0.0)
Classes = npt.NDArray[np.uint8]  # (z, y, x) ``Organelle.label_id``, 0 = background
Labels = npt.NDArray[Any]


@dataclass(frozen=True)
class Rule:
    """How classes become instances.

    ``decode`` "components": every connected component is one. "baseline": as the project's own models are decoded
    (``decode.DECODERS``): holes of compact organelles filled slice by slice, and what is smaller than the organelle's
    minimum area dropped - in a volume, what reaches it in no slice. ``by_slice``: volumes, too, slice by slice.
    ``connectivity`` None: 8 neighbours in images, ``lpa.DEFAULT_CONNECTIVITY`` in volumes, as the dataset was built.
    """

    decode: str = "components"
    by_slice: bool = False
    connectivity: int | None = None

    def decoder(self, organelle: Organelle) -> Decoder:
        """Return the rule of an organelle; without distance maps nothing is split."""
        return DECODERS[organelle] if self.decode == "baseline" else PLAIN


@dataclass(frozen=True)
class Piece:
    """Instances in a box of a case; ids without a confidence have 1."""

    labels: Labels  # 0 = background
    organelle_of: Mapping[int, Organelle]
    confidence_of: Mapping[int, float] = field(default_factory=dict)


class CaseResult(Protocol):
    """The prediction of one case, on the native grid, axes in the order of its file."""

    def read(self, box: Box) -> Piece:
        """Read a box."""
        ...


@dataclass(frozen=True)
class Decoded:
    """Instances of a whole case, in memory."""

    whole: Piece

    def read(self, box: Box) -> Piece:
        """Cut a box out."""
        return Piece(self.whole.labels[box], self.whole.organelle_of, self.whole.confidence_of)


@dataclass
class Given:
    """Instance maps that stay on disk, one an organelle; where two claim a pixel the first keeps it."""

    maps: Sequence[tuple[Organelle, Opened]]
    native: Triple
    ratio: tuple[float, float, float]
    contested: int = 0  # pixels read so far that several organelles claimed

    def read(self, box: Box) -> Piece:
        """Read a box and number its instances."""
        labels: Labels | None = None
        organelle_of: dict[int, Organelle] = {}
        for organelle, opened in self.maps:
            ids = whole_numbers(read_nearest(opened, self.native, box, self.ratio), opened.location)
            if ids.dtype.kind == "i" and ids.min(initial=0) < 0:
                raise InputError(f"{opened.location} holds negative ids", found=int(ids.min()), expected="0 and above")
            known, positions = np.unique(ids, return_inverse=True)
            numbers = np.cumsum(known != 0) + len(organelle_of)
            numbers[known == 0] = 0
            mine = numbers.astype(np.uint32)[positions].reshape(ids.shape)
            organelle_of.update({int(number): organelle for number in numbers[known != 0]})
            if labels is None:
                labels = mine
            else:
                self.contested += int(((labels > 0) & (mine > 0)).sum())
                labels = np.where(labels > 0, labels, mine)
        assert labels is not None, "a case has a result"
        return Piece(labels, organelle_of)


def classes_of(
    opened: Opened, native: Triple, ratio: tuple[float, float, float], table: Mapping[int, int] | None
) -> Classes:
    """Read a semantic map on the native grid as ``Organelle.label_id``, through ``table`` from the file's values.

    ``table`` None: a mask, whose one value other than 0 becomes 1.
    """
    everything = (slice(0, native[0]), slice(0, native[1]), slice(0, native[2]))
    values = whole_numbers(read_nearest(opened, native, everything, ratio), opened.location)
    present = np.unique(values).tolist()
    if table is None and len([value for value in present if value]) > 1:
        raise InputError(
            f"{opened.location} is no mask of one organelle",
            found=f"{len(present)} values: {', '.join(map(str, present[:8]))}",
            expected="0 and one other value",
            remedy="if they are instance ids add --instances; if they are classes say --labels mito=1,nucleus=2",
        )
    means = {value: int(value != 0) for value in present} if table is None else table
    unknown = [value for value in present if value not in means]
    if unknown:
        raise InputError(
            f"{opened.location} holds values that mean no organelle",
            found=", ".join(map(str, unknown[:8])),
            expected=", ".join(map(str, sorted(means))),
            remedy="say what they are with --labels mito=1,nucleus=2; instance ids need --instances",
        )
    known = np.array(present)
    return np.array([means[value] for value in present], np.uint8)[np.searchsorted(known, values)]


def most_probable(probability: npt.NDArray[np.float32], label_ids: Sequence[int]) -> tuple[Classes, Any]:
    """Return the most probable class of every voxel and its probability.

    ``probability`` is ``(class, z, y, x)``; ``label_ids[class]`` is ``Organelle.label_id``, 0 for background.
    """
    best = probability.argmax(axis=0)
    return np.array(label_ids, np.uint8)[best], probability.max(axis=0)


def instances_of(
    classes: Classes, spacing_nm: tuple[float, float, float], rule: Rule, probability: Any = None
) -> Piece:
    """Turn the classes of a case into instances 1..N; the confidence of one is its mean probability, where given."""
    flat = rule.by_slice or classes.shape[0] == 1
    labels, organelle_of = (_by_slice if flat else _by_volume)(classes, spacing_nm, rule)
    if probability is None:
        return Piece(labels, organelle_of)
    counts, sums = np.zeros(len(organelle_of) + 1), np.zeros(len(organelle_of) + 1)
    for plane, values in zip(labels, probability, strict=True):
        counts += np.bincount(plane.ravel(), minlength=len(counts))
        sums += np.bincount(plane.ravel(), values.ravel(), len(sums))
    means = np.clip(sums / np.maximum(counts, 1), 0, 1)
    return Piece(labels, organelle_of, {id_: float(means[id_]) for id_ in organelle_of})


def _by_slice(
    classes: Classes, spacing_nm: tuple[float, float, float], rule: Rule
) -> tuple[Labels, dict[int, Organelle]]:
    labels = np.zeros(classes.shape, np.uint32)
    organelle_of: dict[int, Organelle] = {}
    for plane, result in zip(classes, labels, strict=True):
        for organelle in _organelles_in(plane):
            found = _components(plane == organelle.label_id, rule, organelle, (spacing_nm[1], spacing_nm[2]))
            found[result > 0] = 0  # a filled hole in which an earlier organelle lies stays that
            numbers = np.unique(found[found > 0])
            first = len(organelle_of) + 1
            organelle_of.update(dict.fromkeys(range(first, first + len(numbers)), organelle))
            result[found > 0] = np.searchsorted(numbers, found[found > 0]) + first
    return labels, organelle_of


def _components(
    mask: npt.NDArray[np.bool_], rule: Rule, organelle: Organelle, pixel_nm: tuple[float, float]
) -> npt.NDArray[Any]:
    if rule.decode == "baseline" or rule.connectivity in (None, 18, 26):
        return split(mask, None, rule.decoder(organelle), pixel_nm)
    return np.asarray(ndimage.label(mask)[0])  # 4 neighbours


def _by_volume(
    classes: Classes, spacing_nm: tuple[float, float, float], rule: Rule
) -> tuple[Labels, dict[int, Organelle]]:
    import lpa

    whole = _fill_holes(classes, rule)
    connectivity: int | Mapping[str, int] = lpa.DEFAULT_CONNECTIVITY if rule.connectivity is None else rule.connectivity
    labels = lpa.label(whole, connectivity=connectivity, relabel="compact")
    organelles = list(Organelle)
    count = int(labels.max(initial=0))
    class_of, largest = np.zeros(count + 1, np.uint8), np.zeros(count + 1)
    for plane, values in zip(labels, whole, strict=True):
        class_of[plane] = values
        np.maximum(largest, np.bincount(plane.ravel(), minlength=count + 1), out=largest)
    smallest = np.array([0.0, *(rule.decoder(organelle).min_area_nm2 for organelle in organelles)])
    keep = largest * spacing_nm[1] * spacing_nm[2] >= smallest[class_of]
    keep[0] = False
    new = np.where(keep, np.cumsum(keep), 0).astype(np.uint32)
    organelle_of = {int(new[id_]): organelles[class_of[id_] - 1] for id_ in np.flatnonzero(keep)}
    return new[labels], organelle_of


def _fill_holes(classes: Classes, rule: Rule) -> Classes:
    compact = [o for o in _organelles_in(classes) if rule.decoder(o).fill_holes]
    if not compact:
        return classes
    result = classes.copy()
    for plane in result:
        for organelle in compact:
            inside = filled(plane == organelle.label_id)
            plane[inside & (plane == 0)] = organelle.label_id
    return result


def _organelles_in(classes: Classes) -> list[Organelle]:
    present = np.flatnonzero(np.bincount(classes.ravel(), minlength=6))
    return [organelle for organelle in Organelle if organelle.label_id in present]
