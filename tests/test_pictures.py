"""Pictures: colours, marks, scale bars, and that what is drawn is what was scored."""

import io
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from em_bench_eval.colours import instance_colours
from em_bench_eval.comparison import Drawing, Mark, compare
from em_bench_eval.judging import judge
from em_bench_eval.overlap import contingency
from em_bench_eval.pictures import (
    FAINT_ALPHA,
    FILL_ALPHA,
    LONGEST_SIDE,
    annotated_box,
    display_shape,
    draw,
    ignore_layer,
    instance_layer,
    scale_bar,
    stretch_contrast,
)
from em_bench_eval.rows import LabelledImage
from em_bench_eval.schema import Organelle, Prediction
from em_bench_eval.scoring import score
from em_bench_eval.settings import Settings

MITO, NUCLEUS = Organelle.MITO, Organelle.NUCLEUS


def labelled(instances, *, organelle_of=None, annotated=(MITO,), ignore=None, pixel_size_nm=(5.0, 5.0)):
    instances = np.asarray(instances, np.uint16)
    return LabelledImage(
        record_id="v/z/00000",
        image=np.zeros(instances.shape, np.uint8),
        instances=instances,
        organelle_of=organelle_of or {int(id_): MITO for id_ in np.unique(instances) if id_},
        annotated=frozenset(annotated),
        ignore=np.zeros(instances.shape, bool) if ignore is None else np.asarray(ignore, bool),
        pixel_size_nm=pixel_size_nm,
        source="s",
        specimen="s",
        domain="in",
        fold="test",
    )


def predicted(instances, organelle_of=None):
    instances = np.asarray(instances, np.uint32)
    return Prediction("v/z/00000", instances, organelle_of or {int(id_): MITO for id_ in np.unique(instances) if id_})


def decoded(png):
    return np.asarray(Image.open(io.BytesIO(png)))


# -- colours


def test_colours_depend_on_the_index_alone_and_differ():
    together = instance_colours(range(1, 61))
    assert instance_colours([37]) == {37: together[37]}
    assert len(set(together.values())) == 60


def test_neighbouring_indices_are_far_apart_and_nothing_is_gray():
    colours = np.array([instance_colours([index])[index] for index in range(1, 25)], float)
    difference = np.linalg.norm(colours[:, None] - colours[None], axis=-1)
    steps = [difference[i, i + step] for step in (1, 2, 3) for i in range(24 - step)]
    assert min(steps) > 60
    assert difference[np.triu_indices(24, 1)].min() > 20
    assert (colours.max(axis=1) - colours.min(axis=1)).min() > 60  # the EM image is the only gray thing


# -- marks


def test_every_mark_and_the_colour_of_a_match():
    reference = np.zeros((12, 40), int)
    truth = {1: slice(0, 8), 2: slice(10, 18), 3: slice(20, 28)}
    for id_, columns in truth.items():
        reference[2:10, columns] = id_
    prediction = np.zeros_like(reference)
    prediction[2:10, 0:8] = 11  # exact
    prediction[2:10, 10:13] = 12  # 3 of 8 columns: matched, IoU 0.375
    prediction[2:10, 14:16] = 13  # 2 of 8 columns of the same reference instance
    prediction[2:10, 32:36] = 14  # on background
    result = compare(labelled(reference), predicted(prediction), Settings())
    assert result.reference.mark_of == {1: Mark.HIT, 2: Mark.WEAK, 3: Mark.MISSED}
    assert result.prediction.mark_of == {11: Mark.HIT, 12: Mark.WEAK, 13: Mark.UNMATCHED, 14: Mark.UNMATCHED}
    assert result.counts == {MITO: (3, 4, 2)}
    of_reference, of_prediction = result.reference.colour_of, result.prediction.colour_of
    assert of_prediction[11] == of_reference[1]
    assert of_prediction[12] == of_prediction[13] == of_reference[2]  # a split shows as one colour twice
    assert of_prediction[14] not in of_reference.values()


def test_what_is_not_annotated_or_ignored_is_not_judged():
    reference = np.zeros((10, 30), int)
    reference[2:8, 2:8], reference[2:8, 22:28] = 1, 2
    prediction = np.where(reference > 0, reference + 4, 0)
    prediction[2:8, 12:18] = 9
    ignore = np.zeros(reference.shape, bool)
    ignore[:, 20:] = True
    result = compare(
        labelled(reference, ignore=ignore), predicted(prediction, {5: MITO, 6: MITO, 9: NUCLEUS}), Settings()
    )
    assert result.reference.mark_of == {1: Mark.HIT, 2: Mark.UNJUDGED}
    assert result.prediction.mark_of == {5: Mark.HIT, 6: Mark.UNJUDGED, 9: Mark.UNJUDGED}
    assert result.counts == {MITO: (1, 1, 1)}


def test_organelles_never_match_each_other():
    square = np.pad(np.ones((6, 6), int), 3)
    result = compare(labelled(square, annotated=(MITO, NUCLEUS)), predicted(square, {1: NUCLEUS}), Settings())
    assert result.reference.mark_of == {1: Mark.MISSED}
    assert result.prediction.mark_of == {1: Mark.UNMATCHED}
    assert result.prediction.colour_of[1] != result.reference.colour_of[1]


def test_pieces_are_instances_of_their_own_where_the_score_says_so():
    reference = np.zeros((8, 20), int)
    reference[2:6, 2:6] = reference[2:6, 12:16] = 1
    prediction = np.where(np.arange(20) < 10, reference, 0)
    by_slice = compare(labelled(reference), predicted(prediction), Settings(reference_ids="slice"))
    assert sorted(by_slice.reference.mark_of.values()) == [Mark.HIT, Mark.MISSED]
    by_volume = compare(labelled(reference), predicted(prediction), Settings())
    assert list(by_volume.reference.mark_of.values()) == [Mark.WEAK]


label_maps = st.tuples(st.integers(0, 2**32 - 1), st.integers(1, 5), st.sampled_from([0, 0.3]), st.integers(0, 6))


@settings(deadline=None, max_examples=60)
@given(label_maps, st.sampled_from(["volume", "slice"]))
def test_pictures_agree_with_the_score(case, reference_ids):
    """The twin of ``scoring.count``: the same numbers from the instance-by-instance decisions."""
    seed, ids, ignored, smallest = case
    random = np.random.default_rng(seed)
    maps = [np.kron(random.integers(0, ids + 1, (4, 5)), np.ones((2, 2), int)) for _ in range(2)]
    maps[1] = np.roll(maps[1], 1, axis=1)
    ignore = random.random(maps[0].shape) < ignored
    chosen = Settings(min_size_nm=25.0 * smallest, reference_ids=reference_ids)
    organelle_of = {id_: (MITO, NUCLEUS)[id_ % 2] for id_ in range(1, ids + 1)}
    image = labelled(maps[0], organelle_of=organelle_of, annotated=(MITO, NUCLEUS), ignore=ignore)
    result = compare(image, predicted(maps[1], organelle_of), chosen)
    values = score(
        (maps[1], organelle_of),
        (maps[0], organelle_of),
        voxel_size_nm=(5.0, 5.0),
        annotated=("mito", "nucleus"),
        ignore=ignore,
        settings=chosen,
    )
    for organelle, (n_reference, n_prediction, n_matched) in result.counts.items():
        assert n_reference == values[f"{organelle}/n_reference"]
        assert n_prediction == values[f"{organelle}/n_prediction"]
        assert n_matched == values[f"{organelle}/n_matched"]
    hits = sum(mark is Mark.HIT for mark in result.prediction.mark_of.values())
    judged = {organelle: values[f"{organelle}/n_prediction"] for organelle in ("mito", "nucleus")}
    scored_hits = sum(round((values[f"{o}/precision"] or 0) * n) for o, n in judged.items())
    assert hits == scored_hits


def test_matching_reads_the_same_table_as_the_score():
    reference = np.kron(np.arange(1, 5).reshape(2, 2), np.ones((5, 5), int))
    prediction = np.roll(reference, 1, axis=0)
    table = contingency(reference, prediction)
    decision = judge(table, 25.0, Settings())
    assert compare(labelled(reference), predicted(prediction), Settings()).counts[MITO][2] == len(decision.matched)


# -- layers


def disc(mark):
    rows, columns = np.indices((40, 40))
    inside = (rows - 20) ** 2 + (columns - 20) ** 2 < 15**2
    return inside, instance_layer(inside.astype(int), {1: (200, 100, 50)}, {1: mark})


@pytest.mark.parametrize("mark", list(Mark))
def test_layers_are_transparent_outside(mark):
    inside, layer = disc(mark)
    assert (layer[~inside] == 0).all()
    assert (layer[inside][:, 3] > 0).all()


def test_each_mark_looks_different():
    centre = {mark: disc(mark)[1][15:25, 15:25] for mark in Mark}
    assert {tuple(pixel) for pixel in centre[Mark.HIT].reshape(-1, 4)} == {(200, 100, 50, FILL_ALPHA)}
    assert {tuple(pixel) for pixel in centre[Mark.MISSED].reshape(-1, 4)} == {(200, 100, 50, FAINT_ALPHA)}
    striped = (centre[Mark.UNMATCHED][..., :3] == 255).all(axis=-1)
    assert 0.2 < striped.mean() < 0.5
    pictures = [disc(mark)[1].tobytes() for mark in Mark]
    assert len(set(pictures)) == len(pictures)


def test_outline_is_darker_opaque_and_one_pixel_wide():
    _, layer = disc(Mark.HIT)
    row = layer[20]
    opaque = np.flatnonzero(row[:, 3] == 255)
    assert opaque.tolist() == [6, 34]
    assert (row[6, :3] < (200, 100, 50)).all()


def test_touching_instances_keep_a_line_between_them():
    halves = np.repeat([[1, 2]], 10, axis=1).repeat(10, axis=0)
    layer = instance_layer(halves, {1: (250, 0, 0), 2: (0, 0, 250)}, {1: Mark.HIT, 2: Mark.HIT})
    assert np.flatnonzero(layer[5, :, 3] == 255).tolist() == [9, 10]


def test_nothing_to_draw():
    assert not instance_layer(np.zeros((5, 5), int), {}, {}).any()
    assert not ignore_layer(np.zeros((5, 5), bool)).any()


# -- geometry and contrast


@given(st.floats(10, 1e6))
def test_scale_bar_is_round_and_fits(width_nm):
    bar = scale_bar(width_nm)
    length, unit = bar.label.split(" ")
    nm = float(length) * (1000 if unit == "µm" else 1)
    assert nm / width_nm == pytest.approx(bar.fraction)
    assert 0.1 <= bar.fraction <= 0.25 + 1e-12
    mantissa = nm / 10 ** math.floor(math.log10(nm) + 1e-9)
    assert min(abs(mantissa - step) for step in (1, 2, 5)) < 1e-6


def test_display_keeps_physical_proportions():
    assert display_shape((2000, 1000), (10.0, 10.0))[0] == (LONGEST_SIDE, LONGEST_SIDE // 2)
    shape, nm = display_shape((20, 500), (50.0, 5.0))  # an xz slice: 1000 nm by 2500 nm
    assert shape == (200, 500)
    assert nm == pytest.approx(5.0)
    shape, nm = display_shape((64, 64), (4.0, 4.0))
    assert shape == (384, 384)  # small images are enlarged
    assert nm == pytest.approx(64 * 4.0 / 384)


def test_contrast_uses_the_counted_pixels():
    image = np.tile(np.linspace(100, 120, 50, dtype=np.float32), (50, 1))
    image[:, :5] = 0  # padding outside the annotated part
    counted = np.ones(image.shape, bool)
    counted[:, :5] = False
    stretched = stretch_contrast(image, counted)
    assert stretched[:, 5:].min() == 0
    assert stretched.max() == 255
    assert (stretch_contrast(np.full((4, 4), 7, np.float32), np.ones((4, 4), bool)) == 0).all()


def test_annotated_box():
    ignore = np.ones((100, 100), bool)
    ignore[20:60, 30:70] = False
    rows, columns = annotated_box(ignore)
    assert rows == slice(18, 62)
    assert columns == slice(28, 72)
    for whole in (np.zeros((9, 9), bool), np.ones((9, 9), bool)):
        assert annotated_box(whole) == (slice(0, 9), slice(0, 9))


def test_draw_stacks_layers_of_one_size():
    reference = np.zeros((1500, 1000), int)
    reference[300:600, 300:600], reference[700:900, 100:300] = 1, 2
    drawing = Drawing(reference, {1: MITO, 2: NUCLEUS}, instance_colours([1, 2]), {1: Mark.HIT, 2: Mark.MISSED})
    empty = Drawing(np.zeros_like(reference), {}, {}, {})
    ignore = np.zeros(reference.shape, bool)
    ignore[:, 990:] = True
    image = np.random.default_rng(0).integers(0, 255, reference.shape, dtype=np.uint8)
    picture = draw(image, ignore, (8.0, 8.0), drawing, empty)
    assert max(picture.shape) == LONGEST_SIDE
    assert not picture.cropped
    assert set(picture.reference_png) == {MITO, NUCLEUS}
    assert picture.prediction_png == {}
    assert decoded(picture.image_png).shape == picture.shape
    assert decoded(picture.ignore_png).shape == (*picture.shape, 4)
    mito = decoded(picture.reference_png[MITO])
    assert mito.shape == (*picture.shape, 4)
    scale = LONGEST_SIDE / 1500
    assert np.count_nonzero(mito[..., 3]) == pytest.approx((300 * scale) ** 2, rel=0.03)
    assert picture == draw(image, ignore, (8.0, 8.0), drawing, empty)  # the same bytes again
