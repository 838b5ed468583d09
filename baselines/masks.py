"""Instance masks as a model finds them: each cut to its box, possibly overlapping; from them to a label map.

A mask knows its organelle and a score. Masks of one image may overlap; a label map may not, so ``paint`` gives every
pixel to one mask by a declared rule.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from baselines.decode import DECODERS, Decoder
from em_bench_eval.errors import unknown_name
from em_bench_eval.schema import Organelle

Plane = npt.NDArray[np.bool_]
Box = tuple[int, int, int, int]  # (y0, x0, y1, x1), half-open


@dataclass(frozen=True, eq=False)
class Mask:
    """One found instance. ``corner`` may be negative or ``mask`` reach beyond the image: painting cuts it off."""

    mask: Plane  # (h, w), cut to its box
    corner: tuple[int, int]  # (y, x) of the mask's first pixel
    organelle: Organelle | None  # None: the model does not tell organelles apart
    score: float  # 0..1

    @property
    def box(self) -> Box:
        """(y0, x0, y1, x1) in the coordinates of ``corner``, half-open."""
        y, x = self.corner
        return y, x, y + self.mask.shape[0], x + self.mask.shape[1]

    @property
    def area(self) -> int:
        """Number of pixels."""
        return int(np.count_nonzero(self.mask))

    def moved(self, by: tuple[int, int]) -> Mask:
        """The same mask in the coordinates of something whose origin lies ``by`` (y, x) further up and left."""
        return Mask(self.mask, (self.corner[0] + by[0], self.corner[1] + by[1]), self.organelle, self.score)

    def plane(self, shape: tuple[int, int]) -> Plane:
        """The mask as a whole ``(y, x)`` plane of an image of that shape."""
        whole = np.zeros(shape, bool)
        y0, x0, y1, x1 = intersection(self.box, (0, 0, *shape))
        whole[y0:y1, x0:x1] = self.part((y0, x0, y1, x1))
        return whole

    def part(self, box: Box) -> Plane:
        """The pixels inside ``box``, which lies inside the mask's own box (a view)."""
        y, x = self.corner
        return self.mask[box[0] - y : box[2] - y, box[1] - x : box[3] - x]


def cut_to_box(
    plane: Plane, organelle: Organelle | None, score: float, corner: tuple[int, int] = (0, 0)
) -> Mask | None:
    """Make a ``Mask`` of a ``(y, x)`` bool plane whose first pixel lies at ``corner``; ``None`` if it is empty."""
    rows, columns = np.flatnonzero(plane.any(axis=1)), np.flatnonzero(plane.any(axis=0))
    if not len(rows):
        return None
    y0, y1, x0, x1 = int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1
    return Mask(plane[y0:y1, x0:x1].copy(), (corner[0] + y0, corner[1] + x0), organelle, float(score))


def intersection(a: Box, b: Box) -> Box:
    """Common part of two boxes; an empty one has no negative edge."""
    y0, x0 = max(a[0], b[0]), max(a[1], b[1])
    return y0, x0, max(y0, min(a[2], b[2])), max(x0, min(a[3], b[3]))


def overlap(a: Mask, b: Mask) -> int:
    """Number of common pixels."""
    common = intersection(a.box, b.box)
    if common[0] == common[2] or common[1] == common[3]:
        return 0
    return int(np.count_nonzero(a.part(common) & b.part(common)))


def overlapping_boxes(boxes: npt.NDArray[np.int64], box: Sequence[int]) -> npt.NDArray[np.int64]:
    """Indices of the rows of ``boxes`` (n, 4) that share a pixel with ``box``."""
    y0, x0, y1, x1 = box
    found: npt.NDArray[np.int64] = np.flatnonzero(
        (boxes[:, 0] < y1) & (boxes[:, 2] > y0) & (boxes[:, 1] < x1) & (boxes[:, 3] > x0)
    )
    return found


def boxes_of(masks: Sequence[Mask]) -> npt.NDArray[np.int64]:
    """Boxes as an (n, 4) array."""
    return np.array([mask.box for mask in masks], np.int64).reshape(-1, 4)


def _by_score(mask: Mask) -> tuple[float, float]:
    return -mask.score, float(mask.area)


def _by_area(mask: Mask) -> tuple[float, float]:
    return float(mask.area), -mask.score


PAINT_ORDERS: Mapping[str, Callable[[Mask], tuple[float, float]]] = {
    "score": _by_score,  # the more certain mask has a contested pixel; of equals the smaller one
    "area": _by_area,  # the smaller mask lies on top, as for segment-anything; of equals the more certain one
}


def ranked(masks: Iterable[Mask], order: str = "score") -> list[Mask]:
    """Masks by the rule ``order``, first the one that gets a contested pixel; the same whatever order they came in."""
    if order not in PAINT_ORDERS:
        raise unknown_name("paint order", order, PAINT_ORDERS)
    rule = PAINT_ORDERS[order]

    def key(mask: Mask) -> tuple[Any, ...]:
        return *rule(mask), mask.box, str(mask.organelle or ""), mask.mask.tobytes()

    return sorted(masks, key=key)


def nms(masks: Iterable[Mask], max_iou: float = 0.5, order: str = "score") -> list[Mask]:
    """Greedy non-maximum suppression: drop a mask that a better one of the same organelle overlaps by > ``max_iou``.

    Masks of different organelles never suppress each other; ``None`` counts as an organelle. Returned best first.
    """
    kept: list[Mask] = []
    groups: dict[Organelle | None, list[int]] = {}
    candidates = ranked(masks, order)
    boxes, areas = boxes_of(candidates), [mask.area for mask in candidates]
    for index, mask in enumerate(candidates):
        same = groups.setdefault(mask.organelle, [])
        rivals = [same[i] for i in overlapping_boxes(boxes[same], boxes[index])]
        for rival in rivals:
            common = overlap(candidates[rival], mask)
            if common > max_iou * (areas[rival] + areas[index] - common):
                break
        else:
            same.append(index)
            kept.append(mask)
    return kept


def disjoint(
    masks: Iterable[Mask], shape: tuple[int, int], *, order: str = "score", min_kept: float = 0.0
) -> list[Mask]:
    """Cut masks so that no pixel has two, inside an image of ``shape`` (y, x); first come the ones on top.

    A mask of which at most the share ``min_kept`` (0..1) of its own pixels would remain is dropped whole and leaves its
    pixels to the masks below it. Pixels outside the image count as lost only if nothing of the mask lies inside.
    """
    taken = np.zeros(shape, bool)
    result = []
    for mask in ranked(masks, order):
        box = intersection(mask.box, (0, 0, *shape))
        inside, window = mask.part(box), taken[box[0] : box[2], box[1] : box[3]]
        free = inside & ~window
        count = int(np.count_nonzero(free))
        if count <= min_kept * np.count_nonzero(inside):
            continue
        window |= free
        cut = cut_to_box(free, mask.organelle, mask.score, (box[0], box[1]))
        if cut is not None:
            result.append(cut)
    return result


def drop_small(
    masks: Iterable[Mask],
    pixel_size_nm: tuple[float, float],
    *,
    cut_by: tuple[int, int] | None = None,
    decoders: Mapping[Organelle, Decoder] = DECODERS,
) -> list[Mask]:
    """Drop masks below the minimum area of their organelle's decoder; without organelle there is no minimum.

    ``pixel_size_nm``: (y, x). ``cut_by``: shape of the tile that the masks lie in; one that touches its edge may go on
    beyond it and is kept, so ask again after stitching.
    """
    pixel_nm2, kept = pixel_size_nm[0] * pixel_size_nm[1], []
    for mask in masks:
        y0, x0, y1, x1 = mask.box
        cut = cut_by is not None and (y0 <= 0 or x0 <= 0 or y1 >= cut_by[0] or x1 >= cut_by[1])
        smallest = decoders[mask.organelle].min_area_nm2 if mask.organelle is not None else 0.0
        if cut or mask.area * pixel_nm2 >= smallest:
            kept.append(mask)
    return kept


def paint(
    masks: Iterable[Mask], shape: tuple[int, int], *, order: str = "score", min_kept: float = 0.0
) -> tuple[npt.NDArray[np.uint32], dict[int, Organelle], dict[int, float]]:
    """Paint masks into one ``(y, x)`` label map: ``(instances, organelle_of, confidence_of)`` with ids 1..N.

    ``order`` (a key of ``PAINT_ORDERS``) and ``min_kept`` as in ``disjoint``; ids go from the upper mask to the lower.
    The ids of masks without organelle have a confidence but are not in ``organelle_of``.
    """
    instances = np.zeros(shape, np.uint32)
    organelle_of: dict[int, Organelle] = {}
    confidence_of: dict[int, float] = {}
    for id_, mask in enumerate(disjoint(masks, shape, order=order, min_kept=min_kept), start=1):
        y0, x0, y1, x1 = mask.box
        instances[y0:y1, x0:x1][mask.mask] = id_
        confidence_of[id_] = float(np.clip(mask.score, 0.0, 1.0))
        if mask.organelle is not None:
            organelle_of[id_] = mask.organelle
    return instances, organelle_of, confidence_of
