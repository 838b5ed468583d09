"""Prompts are what the paper says, inside or outside of the object as they claim, and the same every time."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from baselines.sam.prompts import PROMPTS, inner_point, prompt_kind, prompts_of, ring
from em_bench_eval.errors import InputError
from em_bench_eval.rows import LabelledImage
from em_bench_eval.schema import Organelle

MITO, ER, GOLGI = Organelle.MITO, Organelle.ER, Organelle.GOLGI


def row_of(
    instances: npt.NDArray[np.uint16], organelle_of: dict[int, Organelle] | None = None, name: str = "v/z/00001"
) -> LabelledImage:
    ids = [int(id_) for id_ in np.unique(instances) if id_]
    return LabelledImage(
        record_id=name,
        image=np.zeros(instances.shape, np.uint8),
        instances=instances,
        organelle_of=dict.fromkeys(ids, MITO) if organelle_of is None else organelle_of,
        annotated=frozenset({MITO, ER}),
        ignore=np.zeros(instances.shape, bool),
        pixel_size_nm=(8.0, 8.0),
        source="s",
        specimen="s",
        domain="in",
        fold="test",
    )


def scene() -> npt.NDArray[np.uint16]:
    """A disc (1), a ring around nothing (2) and two bars with one id (3)."""
    y, x = np.indices((120, 160))
    labels = np.zeros(y.shape, np.uint16)
    labels[np.hypot(y - 30, x - 30) < 15] = 1
    labels[(np.hypot(y - 70, x - 100) < 30) & (np.hypot(y - 70, x - 100) >= 20)] = 2
    labels[100:104, 5:25] = 3
    labels[110:118, 60:80] = 3
    return labels


def test_the_four_settings() -> None:
    row = row_of(scene())
    found = {name: list(prompts_of(row, kind)) for name, kind in PROMPTS.items()}
    assert all([prompt.id for prompt in prompts] == [1, 2, 3] for prompts in found.values())
    assert [len(found[name][0].points) for name in PROMPTS] == [1, 5, 0, 5]
    assert [found[name][0].with_box for name in PROMPTS] == [False, False, True, True]
    assert [kind.is_ambiguous for kind in PROMPTS.values()] == [True, False, False, False]
    assert found["box+1+4"][0].labels.tolist() == [1, 0, 0, 0, 0]
    assert [prompt.box for prompt in found["box"]] == [(16, 16, 44, 44), (41, 71, 99, 129), (100, 5, 117, 79)]
    with pytest.raises(InputError, match="did you mean 'box'"):
        prompt_kind("boxs")


def test_centroid_where_it_is_inside_else_the_deepest_pixel() -> None:
    labels = scene()
    disc, hollow, bars = prompts_of(row_of(labels), PROMPTS["point"])
    assert disc.points.tolist() == [[30, 30]]
    y, x = hollow.points[0]
    assert labels[int(y), int(x)] == 2
    assert abs(np.hypot(y - 70, x - 100) - 25) < 1.5  # the middle of the wall
    y, x = bars.points[0]
    assert labels[int(y), int(x)] == 3
    assert 112 <= y <= 115  # in the thicker bar


@given(hnp.arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9))), st.sampled_from([(1.0, 1.0), (1.0, 3.0)]))
def test_the_positive_point_is_inside(mask: npt.NDArray[np.bool_], size: tuple[float, float]) -> None:
    assume(mask.any())
    y, x = inner_point(mask, size).astype(int)
    assert mask[y, x]
    centroid = np.floor(np.argwhere(mask).mean(axis=0) + 0.5).astype(int)
    if not mask[tuple(centroid)]:
        depth = ndimage.distance_transform_edt(np.pad(mask, 1), sampling=size)[1:-1, 1:-1]
        assert depth[y, x] == depth.max()


@given(hnp.arrays(bool, st.tuples(st.integers(1, 8), st.integers(1, 8))), st.sampled_from([8.0, 20.0, 60.0]))
@settings(max_examples=50)
def test_the_ring_equals_the_slow_twin(mask: npt.NDArray[np.bool_], size: float) -> None:
    assume(mask.any())
    inside = np.argwhere(mask)
    outer = max(64.0, 40.0 + size * np.sqrt(2))
    expected = [
        [y, x]
        for y, x in np.ndindex(*mask.shape)
        if 40.0 <= min(size * np.hypot(*(np.array([y, x]) - other)) for other in inside) <= outer
    ]
    assert ring(mask, (size, size), (40.0, 64.0)).tolist() == expected


def test_negatives_lie_near_the_border_and_outside() -> None:
    labels = scene()
    for prompt in prompts_of(row_of(labels), PROMPTS["point+4neg"]):
        assert prompt.labels.tolist() == [1, 0, 0, 0, 0]
        assert len({tuple(point) for point in prompt.points}) == 5
        away = 8.0 * ndimage.distance_transform_edt(labels != prompt.id)
        distance = [away[int(y), int(x)] for y, x in prompt.points[1:]]
        assert min(distance) >= 40
        assert max(distance) <= 64


def test_the_same_every_time_whatever_else_is_there() -> None:
    labels, kind = scene(), PROMPTS["box+1+4"]
    alone = np.where(labels == 2, labels, 0).astype(np.uint16)
    (again,) = prompts_of(row_of(alone), kind)
    first = next(prompt for prompt in prompts_of(row_of(labels), kind) if prompt.id == 2)
    np.testing.assert_array_equal(first.points, again.points)
    others = [
        next(iter(prompts_of(row_of(alone), kind, seed=1))),
        next(iter(prompts_of(row_of(alone, name="v/z/00002"), kind))),
    ]
    assert all(not np.array_equal(first.points, other.points) for other in others)
    assert all(first.box == other.box for other in others)


def test_only_annotated_instances_and_pieces() -> None:
    labels = scene()
    row = row_of(labels, {1: MITO, 2: GOLGI, 3: ER})
    assert [prompt.id for prompt in prompts_of(row, PROMPTS["box"])] == [1, 3]
    pieces = list(prompts_of(row, PROMPTS["box"], reference_ids="slice"))
    assert [prompt.organelle for prompt in pieces].count(ER) == 2
    assert [prompt.organelle for prompt in pieces].count(MITO) == 1
    assert (100, 5, 103, 24) in [prompt.box for prompt in pieces]


def test_an_object_that_fills_the_image_has_no_negatives() -> None:
    (prompt,) = prompts_of(row_of(np.ones((20, 30), np.uint16)), PROMPTS["box+1+4"])
    assert prompt.labels.tolist() == [1]
    assert prompt.box == (0, 0, 19, 29)
    coarse = replace(row_of(scene()), pixel_size_nm=(200.0, 200.0))  # a pixel is wider than the ring
    assert all(len(found.points) == 5 for found in prompts_of(coarse, PROMPTS["point+4neg"]))


def test_an_empty_image_has_no_prompts() -> None:
    assert list(prompts_of(row_of(np.zeros((5, 5), np.uint16)), PROMPTS["box"])) == []
