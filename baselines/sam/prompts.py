"""Prompts made from the reference: the paper's prompted setting, which knows where every object is (an oracle).

"Synthetic prompts derived from ground-truth: positive points from object centroids, negative points near boundaries and
ground-truth bounding boxes" (the benchmark's paper, section 3.1). It does not say which of them are used together, how
many negatives there are or how near; the four settings here, four negatives and 40 to 64 nm (5 to 8 pixels at 8 nm) are
ours. Where a centroid lies outside of its object (a bent mitochondrion, ER, Golgi), the pixel furthest from the
object's border takes its place.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from em_bench_eval.errors import unknown_name
from em_bench_eval.label_maps import connected_pieces
from em_bench_eval.rows import LabelledImage
from em_bench_eval.schema import Organelle

Plane = npt.NDArray[np.bool_]
NEGATIVES_NM = (40.0, 64.0)  # how far negative points lie from the object


@dataclass(frozen=True)
class PromptKind:
    """What a prompt consists of."""

    positives: int  # 0 or 1
    negatives: int
    box: bool

    @property
    def is_ambiguous(self) -> bool:
        """One point may mean a whole, a part or a detail: SAM answers with three masks, of which the best is taken."""
        return not self.box and self.positives + self.negatives == 1


PROMPTS: Mapping[str, PromptKind] = {
    "point": PromptKind(1, 0, False),
    "point+4neg": PromptKind(1, 4, False),
    "box": PromptKind(0, 0, True),
    "box+1+4": PromptKind(1, 4, True),
}


@dataclass(frozen=True)
class Prompt:
    """One object's prompt in native pixels; positions count pixel centres from (0, 0), the first pixel's."""

    id: int  # of the reference instance
    organelle: Organelle
    points: npt.NDArray[np.float64]  # (k, 2) as (y, x), the positive one first
    labels: npt.NDArray[np.int64]  # (k,), 1 inside, 0 outside
    box: tuple[
        float, float, float, float
    ]  # first and last row and column that the object has: (y0, x0, y1, x1), inclusive
    with_box: bool


def prompt_kind(name: str) -> PromptKind:
    """Find a setting; a misspelt name answers "did you mean ..."."""
    if name not in PROMPTS:
        raise unknown_name("kind of prompt", name, PROMPTS)
    return PROMPTS[name]


def prompts_of(
    row: LabelledImage,
    kind: PromptKind,
    *,
    seed: int = 0,
    reference_ids: Literal["volume", "slice"] = "volume",
    negatives_nm: tuple[float, float] = NEGATIVES_NM,
) -> Iterator[Prompt]:
    """Yield a prompt for every reference instance whose organelle is annotated, in the order of ids.

    An instance is what has one id in the image, also in several pieces ("volume"), or a connected piece ("slice"); all
    its pixels count, ignored ones too. Which negatives are drawn depends on ``seed``, the row's name and the id alone.
    """
    instances: npt.NDArray[Any] = row.instances
    organelle_of: Mapping[int, Organelle] = row.organelle_of
    if reference_ids == "slice":
        instances, parents = connected_pieces(row.instances)
        organelle_of = {
            piece: row.organelle_of[int(parent)]
            for piece, parent in enumerate(parents, start=1)
            if int(parent) in row.organelle_of
        }
    name = zlib.crc32(row.record_id.encode())
    for id_, box in enumerate(ndimage.find_objects(instances.astype(np.int32)), start=1):
        organelle = organelle_of.get(id_)
        if box is None or organelle is None or organelle not in row.annotated:
            continue
        generator = np.random.default_rng([seed, name, id_])
        yield _prompt(instances, id_, organelle, box, kind, generator, row.pixel_size_nm, negatives_nm)


def _prompt(
    instances: npt.NDArray[Any],
    id_: int,
    organelle: Organelle,
    box: tuple[slice, slice],
    kind: PromptKind,
    generator: np.random.Generator,
    pixel_size_nm: tuple[float, float],
    negatives_nm: tuple[float, float],
) -> Prompt:
    corner = np.array([part.start for part in box])
    points = np.zeros((0, 2))
    if kind.positives:
        points = inner_point(instances[box] == id_, pixel_size_nm)[None] + corner
    if kind.negatives:
        reach = [int(np.ceil(negatives_nm[1] / nm)) + 1 for nm in pixel_size_nm]
        grown = tuple(slice(max(0, part.start - r), part.stop + r) for part, r in zip(box, reach, strict=True))
        outside = ring(instances[grown] == id_, pixel_size_nm, negatives_nm)
        chosen = generator.choice(len(outside), min(kind.negatives, len(outside)), replace=False)
        points = np.concatenate([points, outside[np.sort(chosen)] + [part.start for part in grown]])
    labels = (np.arange(len(points)) < kind.positives).astype(np.int64)
    (y, x) = box
    return Prompt(id_, organelle, points, labels, (y.start, x.start, y.stop - 1, x.stop - 1), kind.box)


def inner_point(mask: Plane, pixel_size_nm: tuple[float, float]) -> npt.NDArray[np.float64]:
    """Centroid (y, x) of a ``(y, x)`` mask, to the next pixel, or, outside of the mask, its pixel furthest inside.

    The edge of the array counts as the object's border.
    """
    centroid = np.floor(np.argwhere(mask).mean(axis=0) + 0.5).astype(int)
    if mask[tuple(centroid)]:
        return np.asarray(centroid, np.float64)
    depth = ndimage.distance_transform_edt(np.pad(mask, 1), sampling=pixel_size_nm)[1:-1, 1:-1]
    return np.array(np.unravel_index(int(depth.argmax()), depth.shape), float)


def ring(mask: Plane, pixel_size_nm: tuple[float, float], distance_nm: tuple[float, float]) -> npt.NDArray[np.int64]:
    """Pixels (n, 2) as (y, x) whose distance to the object lies within the bounds.

    Where pixels are so large that there may be none, the outer bound moves out by a pixel's diagonal.
    """
    distance = ndimage.distance_transform_edt(~mask, sampling=pixel_size_nm)
    outer = max(distance_nm[1], distance_nm[0] + float(np.hypot(*pixel_size_nm)))
    return np.argwhere((distance >= distance_nm[0]) & (distance <= outer)).astype(np.int64)
