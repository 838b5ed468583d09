"""Masks: painting without overlaps, suppression, and stitching over tiles, against slow twins."""

from __future__ import annotations

import random

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from baselines.masks import Mask, cut_to_box, disjoint, drop_small, nms, overlap, paint, ranked
from baselines.stitch_masks import LinkRule, Tile, stitch
from em_bench_eval.errors import InputError
from em_bench_eval.schema import Organelle

MITO, ER = Organelle.MITO, Organelle.ER
Plane = npt.NDArray[np.bool_]
KINDS = st.sampled_from([MITO, ER, None])


@st.composite
def masks_of(draw: st.DrawFn, size: int = 12, most: int = 6) -> list[Mask]:
    """Random masks around a ``size`` x ``size`` image, some of them partly or wholly outside; scores often equal."""
    found = []
    for _ in range(draw(st.integers(0, most))):
        shape = draw(st.integers(1, 7)), draw(st.integers(1, 7))
        bits = draw(st.lists(st.booleans(), min_size=shape[0] * shape[1], max_size=shape[0] * shape[1]))
        plane = np.array(bits).reshape(shape)
        corner = draw(st.integers(-4, size)), draw(st.integers(-4, size))
        found.append(Mask(plane, corner, draw(KINDS), draw(st.sampled_from([0.3, 0.5, 0.9]))))
    return found


def pixels(mask: Mask) -> set[tuple[int, int]]:
    return {(int(y) + mask.corner[0], int(x) + mask.corner[1]) for y, x in np.argwhere(mask.mask)}


def inside(places: set[tuple[int, int]], size: int) -> set[tuple[int, int]]:
    return {(y, x) for y, x in places if 0 <= y < size and 0 <= x < size}


@given(masks_of(), st.sampled_from(["score", "area"]), st.sampled_from([0.0, 0.5, 0.8]))
@settings(max_examples=60)
def test_painting_equals_its_rule_pixel_by_pixel(masks: list[Mask], order: str, min_kept: float) -> None:
    size = 12
    taken: dict[tuple[int, int], int] = {}
    kept = []
    for mask in ranked(masks, order):
        own = inside(pixels(mask), size)
        free = own - taken.keys()
        if len(free) > min_kept * len(own):
            kept.append(mask)
            taken.update(dict.fromkeys(free, len(kept)))
    expected = np.zeros((size, size), np.uint32)
    for place, number in taken.items():
        expected[place] = number
    instances, organelle_of, confidence_of = paint(masks, (size, size), order=order, min_kept=min_kept)
    np.testing.assert_array_equal(instances, expected)
    assert organelle_of == {n: mask.organelle for n, mask in enumerate(kept, 1) if mask.organelle is not None}
    assert confidence_of == {n: mask.score for n, mask in enumerate(kept, 1)}


@given(masks_of(), st.randoms(use_true_random=False))
@settings(max_examples=40)
def test_painting_and_suppression_do_not_depend_on_the_order_of_the_masks(masks: list[Mask], r: random.Random) -> None:
    shuffled = list(masks)
    r.shuffle(shuffled)
    np.testing.assert_array_equal(paint(masks, (12, 12))[0], paint(shuffled, (12, 12))[0])
    assert [(m.box, m.score, m.mask.tobytes()) for m in nms(masks)] == [
        (m.box, m.score, m.mask.tobytes()) for m in nms(shuffled)
    ]


@given(masks_of(), st.sampled_from([0.0, 0.3, 0.5]))
@settings(max_examples=60)
def test_suppression_equals_its_slow_twin(masks: list[Mask], max_iou: float) -> None:
    kept: list[Mask] = []
    for mask in ranked(masks):
        rivals = [other for other in kept if other.organelle == mask.organelle]
        shared = [(len(pixels(mask) & pixels(other)), len(pixels(mask) | pixels(other))) for other in rivals]
        if all(common <= max_iou * union for common, union in shared):
            kept.append(mask)
    assert nms(masks, max_iou) == kept
    for a in masks:
        for b in masks:
            assert overlap(a, b) == len(pixels(a) & pixels(b))


def test_the_smaller_mask_lies_on_top_if_that_is_the_rule() -> None:
    large, small = Mask(np.ones((6, 6), bool), (0, 0), MITO, 0.9), Mask(np.ones((2, 2), bool), (2, 2), MITO, 0.6)
    assert (paint([large, small], (6, 6), order="area")[0] == 1).sum() == 4
    assert paint([large, small], (6, 6), order="score")[0].max() == 1
    with pytest.raises(InputError, match="did you mean 'area'"):
        paint([large], (6, 6), order="aera")


def test_masks_below_the_minimum_area_go_unless_the_tile_cuts_them() -> None:
    small = Mask(np.ones((4, 4), bool), (8, 8), MITO, 0.9)  # 16 pixels of 64 nm² are far from 15 000 nm²
    at_edge = Mask(np.ones((4, 4), bool), (28, 8), MITO, 0.9)
    unnamed = Mask(np.ones((1, 1), bool), (3, 3), None, 0.9)
    large = Mask(np.ones((16, 16), bool), (8, 8), MITO, 0.9)
    assert drop_small([small, at_edge, unnamed, large], (8.0, 8.0)) == [unnamed, large]
    assert drop_small([small, at_edge, unnamed, large], (8.0, 8.0), cut_by=(32, 32)) == [at_edge, unnamed, large]


# stitching ---------------------------------------------------------------------------------------------------------


def grid(size: int, edge: int, overlap_pixels: int, padding: int = 0) -> list[tuple[int, int]]:
    """Corners of tiles that cover an image, beginning ``padding`` pixels outside of it."""
    starts = list(range(-padding, max(1, size + padding - overlap_pixels), edge - overlap_pixels))
    return [(y, x) for y in starts for x in starts]


def cut_into_tiles(labels: npt.NDArray[np.int64], edge: int, overlap_pixels: int, padding: int = 0) -> list[Tile]:
    """What a perfect model finds: each instance of the label map, cut by each tile, in the tile's coordinates."""
    far = np.pad(labels, edge + padding)
    tiles = []
    for y, x in grid(len(labels), edge, overlap_pixels, padding):
        window = far[y + edge + padding :, x + edge + padding :][:edge, :edge]
        found = [cut_to_box(window == id_, MITO, 0.5 + id_ / 1000) for id_ in np.unique(window[window > 0])]
        tiles.append(Tile((y, x), (edge, edge), [mask for mask in found if mask is not None]))
    return tiles


def blobs(seed: int, size: int = 48, threshold: float = 0.0) -> npt.NDArray[np.int64]:
    """Connected blobs with ids, neighbours of which often touch: half of them are cut in two."""
    field = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(size, size)), 3)
    labels, _ = ndimage.label(field > threshold * field.std(), structure=np.ones((3, 3)))
    labels[:, : size // 2] *= 2
    pieces, _ = ndimage.label(labels % 2 == 1)
    others, _ = ndimage.label((labels > 0) & (labels % 2 == 0))
    return np.where(pieces > 0, pieces, np.where(others > 0, others + pieces.max(), 0)).astype(np.int64)


def same_partition(a: npt.NDArray[np.integer], b: npt.NDArray[np.integer]) -> bool:
    pairs = np.unique(np.stack([a.ravel(), b.ravel()]).astype(np.int64), axis=1)
    return len(pairs[0]) == len(np.unique(a)) == len(np.unique(b))


@given(
    seed=st.integers(0, 10_000),
    edge=st.integers(8, 30),
    overlap_share=st.floats(0.1, 0.6),
    padding=st.sampled_from([0, 5]),
    r=st.randoms(use_true_random=False),
)
@settings(max_examples=25)
def test_what_tiles_cut_is_whole_again_in_any_order(
    seed: int, edge: int, overlap_share: float, padding: int, r: random.Random
) -> None:
    labels = blobs(seed)
    tiles = cut_into_tiles(labels, edge, max(2, int(edge * overlap_share)), padding)
    r.shuffle(tiles)
    tiles = [tile._replace(masks=r.sample(list(tile.masks), len(tile.masks))) for tile in tiles]
    instances, organelle_of, _ = paint(stitch(tiles, labels.shape), labels.shape)
    assert same_partition(instances, labels)
    assert set(organelle_of.values()) <= {MITO}


@given(st.lists(masks_of(size=10, most=4), min_size=4, max_size=4), st.randoms(use_true_random=False))
@settings(max_examples=40)
def test_whatever_tiles_say_the_result_has_no_overlaps_and_no_order(parts: list[list[Mask]], r: random.Random) -> None:
    corners = [(0, 0), (0, 6), (6, 0), (6, 6)]
    tiles = [Tile(corner, (10, 10), masks) for corner, masks in zip(corners, parts, strict=True)]
    found = stitch(tiles, (16, 16))
    total = np.zeros((16, 16), int)
    for mask in found:
        assert mask.area > 0
        assert 0 <= mask.box[0] < mask.box[2] <= 16
        total += mask.plane((16, 16))
    assert total.max(initial=0) <= 1
    r.shuffle(tiles)
    again = stitch([tile._replace(masks=r.sample(list(tile.masks), len(tile.masks))) for tile in tiles], (16, 16))
    assert [(m.box, m.organelle, m.score, m.mask.tobytes()) for m in again] == [
        (m.box, m.organelle, m.score, m.mask.tobytes()) for m in found
    ]


RULE = LinkRule()


def bar(width: int, corner: tuple[int, int], organelle: Organelle | None = MITO, score: float = 0.9) -> Mask:
    return Mask(np.ones((4, width), bool), corner, organelle, score)


def two_tiles(left: list[Mask], right: list[Mask], rule: LinkRule = RULE) -> list[Mask]:
    """Tiles of 20 x 20 pixels at x = 0 and x = 12: they share 8 columns."""
    return stitch([Tile((0, 0), (20, 20), left), Tile((0, 12), (20, 20), right)], (20, 32), rule)


def test_masks_are_linked_by_what_both_tiles_see() -> None:
    assert len(two_tiles([bar(18, (8, 2))], [bar(14, (8, 0))])) == 1  # 6 of 8 columns agree
    assert len(two_tiles([bar(18, (8, 2))], [bar(14, (8, 0), ER)])) == 2  # another organelle
    assert len(two_tiles([bar(18, (8, 2))], [bar(14, (13, 0))])) == 2  # elsewhere
    assert len(two_tiles([bar(18, (8, 2))], [bar(14, (10, 0))])) == 2  # half as high: IoU 1/3, neither in the other
    assert len(two_tiles([bar(8, (8, 2))], [bar(14, (8, 6))])) == 2  # do not reach into each other's tile
    strict = LinkRule(min_iou=0.9, min_inclusion=0.95)
    assert len(two_tiles([bar(18, (8, 2))], [bar(14, (9, 0))], strict)) == 2


def test_two_pieces_of_one_tile_become_one_if_the_next_tile_sees_the_whole() -> None:
    ends = [bar(8, (4, 12)), bar(8, (12, 12))]  # the arms of a U whose bow lies in the other tile
    whole = np.zeros((20, 20), bool)
    whole[4:8, :12] = whole[12:16, :12] = whole[4:16, 10:13] = True
    found = two_tiles(ends, [Mask(whole, (0, 0), MITO, 0.5)])
    assert len(found) == 1
    assert found[0].box == (4, 12, 16, 25)
    assert 0.5 < found[0].score < 0.9


def test_two_halves_inside_a_tile_become_one_if_the_next_tile_sees_the_whole() -> None:
    halves = [bar(2, (8, 13)), bar(3, (8, 15))]  # neither is cut by the edge of their tile at x = 20
    assert len(two_tiles(halves, [bar(6, (8, 1))])) == 1


def test_where_tiles_disagree_the_one_further_from_its_edge_decides() -> None:
    left, right = bar(18, (8, 2)), Mask(np.ones((8, 20), bool), (6, 0), MITO, 0.9)  # right: 2 rows more on both sides
    (found,) = two_tiles([left], [right])
    plane = found.plane((20, 32))
    assert not plane[6, 12:15].any()  # near the right tile's edge
    assert plane[6, 17:32].all()  # near, and beyond, the left tile's edge
    assert plane[8:12, 2:32].all()


def test_what_one_tile_alone_found_stays_whole() -> None:
    (found,) = two_tiles([bar(18, (8, 2))], [])
    assert found.box == (8, 2, 12, 20)


def test_a_part_and_its_whole_are_not_linked_through_the_neighbour() -> None:
    """segment-anything finds nested masks: the organelle and a fold inside it."""
    whole, part = bar(18, (8, 2), None, 0.8), Mask(np.ones((2, 4), bool), (9, 13), None, 0.9)
    found = two_tiles([whole, part], [bar(14, (8, 0), None, 0.8)], LinkRule(order="area"))
    assert sorted(mask.area for mask in found) == [8, 4 * 24 - 8]


def test_disjoint_reports_nothing_outside_of_the_image() -> None:
    assert disjoint([Mask(np.ones((3, 3), bool), (-3, 0), MITO, 0.9)], (5, 5)) == []
    (cut,) = disjoint([Mask(np.ones((3, 3), bool), (-2, 4), MITO, 0.9)], (5, 5))
    assert cut.box == (0, 4, 1, 5)
