"""Instance masks of overlapping tiles -> masks of the whole image, one for each instance; for every ``masks`` model.

Two masks of overlapping tiles are the same instance if they have the same organelle and agree where both tiles look:
IoU >= 0.5 there, or the smaller one lies in the larger by at least 0.7 (of a bent mitochondrion a tile may see the two
ends only). Masks without organelle, as segment-anything's, nest: what lies inside of an organelle is no piece of it. Of
them the smaller one must also be cut by its tile's edge; one that is not cut is complete. Links are transitive
(union-find).

Where the tiles of one instance disagree about a pixel they vote, and a tile's vote counts more the further the pixel
lies from that tile's edge; tiles that do not know of the instance have no vote, so what only one tile found is kept
whole.

Nothing depends on the order of the tiles or of their masks (tests/test_stitch_masks.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from baselines.masks import Box, Mask, boxes_of, cut_to_box, disjoint, intersection, overlapping_boxes

FAR = 1 << 20  # pixels; more than any tile's edge


class Tile(NamedTuple):
    """What a model found in one tile."""

    corner: tuple[int, int]  # (y, x) of the tile in the image; negative where the tile begins in reflected padding
    shape: tuple[int, int]  # (h, w)
    masks: Sequence[Mask]  # in the tile's own coordinates, as ``Baseline.masks`` returns them


@dataclass(frozen=True)
class LinkRule:
    """When two masks of overlapping tiles are one instance, judged inside the overlap of their tiles."""

    min_iou: float = 0.5
    min_inclusion: float = 0.7  # common pixels / pixels of the smaller mask
    reach: int = 2  # pixels; a mask that comes so close to its tile's edge is cut by it
    order: str = "score"  # key of masks.PAINT_ORDERS: which of two overlapping masks has a contested pixel
    min_kept: float = 0.3  # share of its own pixels that a mask must keep, in its tile and in the image


@dataclass
class _Placed:
    """A tile's masks in image coordinates, disjoint, and the part of the image that the tile covers."""

    edges: tuple[tuple[int, int], tuple[int, int]]  # (first, end) along y and x; where the image ends, far outside
    cover: Box
    masks: list[Mask]
    first: int = 0  # number of its first mask among all

    def cuts(self, mask: Mask, reach: int) -> bool:
        """Whether the mask comes within ``reach`` pixels of an edge of the tile that is not the image's."""
        return any(
            mask.box[axis] < self.edges[axis][0] + reach or mask.box[axis + 2] > self.edges[axis][1] - reach
            for axis in (0, 1)
        )


def stitch(tiles: Iterable[Tile], image_shape: tuple[int, int], rule: LinkRule = LinkRule()) -> list[Mask]:
    """Link the masks of overlapping tiles; returns disjoint masks in image coordinates, the best first.

    Masks that overlap inside one tile are made disjoint first (``masks.disjoint``), so that a part and the whole that
    contains it are not linked through a neighbouring tile. What lies outside of the image is cut off. The score of an
    instance is the mean of its masks' scores, weighted by their areas. Memory: the masks, and for one instance at a
    time two planes of its box.
    """
    placed = [_place(tile, image_shape, rule) for tile in tiles]
    placed.sort(key=lambda tile: tile.cover)
    count = 0
    for tile in placed:
        tile.first = count
        count += len(tile.masks)
    root = UnionFind(count)
    for index, a in enumerate(placed):
        for b in placed[:index]:
            for i, j in _linked(a, b, rule):
                root.join(a.first + i, b.first + j)
    groups: dict[int, list[tuple[_Placed, Mask]]] = {}
    for tile in placed:
        for number, mask in enumerate(tile.masks, tile.first):
            groups.setdefault(root.find(number), []).append((tile, mask))
    whole = [merged for members in groups.values() if (merged := _merged(members)) is not None]
    return disjoint(whole, image_shape, order=rule.order, min_kept=rule.min_kept)


def _linked(a: _Placed, b: _Placed, rule: LinkRule) -> list[tuple[int, int]]:
    """Pairs (index in ``a.masks``, index in ``b.masks``) that are one instance."""
    box = intersection(a.cover, b.cover)
    if not a.masks or not b.masks or box[0] == box[2] or box[1] == box[3]:
        return []
    boxes, pairs = boxes_of(b.masks), []
    for i in overlapping_boxes(boxes_of(a.masks), box):
        one = a.masks[i]
        window = intersection(one.box, box)
        for j in overlapping_boxes(boxes, window):
            other = b.masks[j]
            common = intersection(window, other.box)
            shared = int(np.count_nonzero(one.part(common) & other.part(common)))
            if not shared or one.organelle != other.organelle:
                continue
            size_a = int(np.count_nonzero(one.part(window)))
            size_b = int(np.count_nonzero(other.part(intersection(other.box, box))))
            may_nest = one.organelle is None
            included = any(
                size == min(size_a, size_b)
                and shared >= rule.min_inclusion * size
                and (not may_nest or tile.cuts(mask, rule.reach))
                for size, tile, mask in ((size_a, a, one), (size_b, b, other))
            )
            if included or shared >= rule.min_iou * (size_a + size_b - shared):
                pairs.append((int(i), int(j)))
    return pairs


class UnionFind:
    """Disjoint sets of the numbers 0 to n - 1; the smallest number of a set stands for it."""

    def __init__(self, count: int) -> None:
        self.parent = list(range(count))

    def find(self, number: int) -> int:
        """Return the smallest number of the set that holds ``number``."""
        while self.parent[number] != number:
            self.parent[number] = self.parent[self.parent[number]]
            number = self.parent[number]
        return number

    def join(self, a: int, b: int) -> None:
        """Make one set of two."""
        a, b = self.find(a), self.find(b)
        self.parent[max(a, b)] = min(a, b)


def _place(tile: Tile, image_shape: tuple[int, int], rule: LinkRule) -> _Placed:
    (y, x), (height, width) = tile.corner, tile.shape
    cover = intersection((y, x, y + height, x + width), (0, 0, *image_shape))
    flat = disjoint((mask.moved((y, x)) for mask in tile.masks), image_shape, order=rule.order, min_kept=rule.min_kept)
    edges = [
        (-FAR if first <= 0 else first, FAR if first + size >= whole else first + size)
        for first, size, whole in zip(tile.corner, tile.shape, image_shape, strict=True)
    ]
    return _Placed((edges[0], edges[1]), cover, flat)


def _merged(members: Sequence[tuple[_Placed, Mask]]) -> Mask | None:
    """One mask of the linked masks, by the vote of their tiles."""
    if len(members) == 1:
        return members[0][1]
    boxes = boxes_of([mask for _, mask in members])
    y0, x0, y1, x1 = *(int(v) for v in boxes[:, :2].min(0)), *(int(v) for v in boxes[:, 2:].max(0))
    votes = np.zeros((y1 - y0, x1 - x0), np.int32)  # for, minus against
    claimed = np.zeros(votes.shape, bool)
    seen: set[int] = set()
    for tile, mask in members:
        if id(tile) not in seen:  # against, once for each tile; masks of one tile are disjoint
            seen.add(id(tile))
            box = intersection(tile.cover, (y0, x0, y1, x1))
            votes[box[0] - y0 : box[2] - y0, box[1] - x0 : box[3] - x0] -= _weight(tile, box)
        box = mask.box
        window = np.s_[box[0] - y0 : box[2] - y0, box[1] - x0 : box[3] - x0]
        votes[window] += 2 * _weight(tile, box) * mask.mask
        claimed[window] |= mask.mask
    areas = np.array([mask.area for _, mask in members], float)
    scores = np.array([mask.score for _, mask in members])
    score = float(np.sort(areas * scores).sum() / areas.sum())  # sorted: the same sum in any order
    return cut_to_box(claimed & (votes >= 0), members[0][1].organelle, score, (y0, x0))


def _weight(tile: _Placed, box: Box) -> npt.NDArray[np.int32]:
    """How much the tile's vote counts in ``box``: the distance to its nearest edge in pixels, beginning with 1.

    Whole numbers, so that their sums do not depend on the order of the tiles. Where a tile ends because the image
    ends, nothing is cut off and that edge does not count.
    """
    lines = []
    for axis, (first, end) in enumerate(tile.edges):
        place = np.arange(box[axis], box[axis + 2], dtype=np.int32)
        lines.append(np.minimum(place - first + 1, end - place))
    nearest: npt.NDArray[np.int32] = np.minimum(lines[0][:, None], lines[1][None, :]).clip(max=FAR // 2)
    return nearest
