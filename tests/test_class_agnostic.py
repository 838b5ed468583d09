"""Scores of predictions without organelles: the matching of all classes, and what each organelle gets of it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.optimize import linear_sum_assignment

from em_bench_eval import Settings, score
from em_bench_eval.class_agnostic import AgnosticEvaluation
from em_bench_eval.cli import main
from em_bench_eval.cli_score import score as score_command
from em_bench_eval.comparison import Mark
from em_bench_eval.errors import InputError
from em_bench_eval.metrics_stratified import STRATIFIED
from em_bench_eval.report_agnostic import WORDING, compare_agnostic
from em_bench_eval.row import build_row
from em_bench_eval.rows import LabelledImage, decode_row, open_rows, read_predictions, write_predictions
from em_bench_eval.schema import ORGANELLES, Organelle, Prediction

Labels = npt.NDArray[np.int64]
ORGANELLE_OF = {1: "mito", 2: "er", 3: "mito", 4: "golgi"}


@st.composite
def pairs(draw: st.DrawFn) -> tuple[Labels, Labels]:
    shape = draw(st.tuples(st.integers(1, 6), st.integers(1, 6)))
    ids = st.sampled_from([0, 0, 1, 2, 3, 4])
    prediction, reference = (draw(hnp.arrays(np.int64, shape, elements=ids)) for _ in range(2))
    return prediction, reference


def agnostic(
    prediction: Labels,
    reference: Labels,
    organelle_of: Mapping[int, str] = ORGANELLE_OF,
    annotated: tuple[str, ...] = ORGANELLES,
    ignore: npt.NDArray[np.bool_] | None = None,
    **chosen: Any,
) -> dict[str, Any]:
    evaluation = AgnosticEvaluation(Settings(**chosen))
    evaluation.add(
        (prediction, {}), (reference, organelle_of), voxel_size_nm=(1.0, 1.0), annotated=annotated, ignore=ignore
    )
    return evaluation.compute()


@given(pairs())
def test_any_is_the_score_of_one_class(item: tuple[Labels, Labels]) -> None:
    found = agnostic(*item)
    expected = score({"endo": item[0]}, {"endo": item[1]}, voxel_size_nm=(1.0, 1.0))
    for key, value in expected.items():
        if key.startswith("endo/"):
            assert found[f"any/{key.partition('/')[2]}"] == value


@given(pairs())
@settings(max_examples=200)
def test_stratified_equals_the_slow_twin(item: tuple[Labels, Labels]) -> None:
    prediction, reference = item
    found = agnostic(prediction, reference)
    r, p = (np.unique(side[side > 0]) for side in (reference, prediction))
    masks = [[side == id_ for id_ in ids] for side, ids in ((reference, r), (prediction, p))]
    iou = np.array([[(a & b).sum() / (a | b).sum() for b in masks[1]] for a in masks[0]]).reshape(len(r), len(p))
    best = sum(iou[pair] for pair in zip(*linear_sum_assignment(-iou), strict=True))
    hits = {id_: bool((row > 0.5).any()) for id_, row in zip(r.tolist(), iou, strict=True)}
    # matchings of the same total IoU may divide it differently among organelles: the total is what is fixed
    members = {name: [id_ for id_ in r.tolist() if ORGANELLE_OF[id_] == name] for name in ORGANELLES}
    total = sum(len(own) * found[f"{name}/iou__stratified"] for name, own in members.items() if own)
    assert total == pytest.approx(best, abs=1e-9)
    for name, own in members.items():
        assert found[f"{name}/n_reference"] == len(own)
        values = [found[f"{name}/{metric}"] for metric in STRATIFIED]
        assert (values == [None, None, None]) == (not own)
        if own:
            assert values[2] == pytest.approx(sum(hits[id_] for id_ in own) / len(own))
            assert values[1] <= values[0] + 1e-9


def scene() -> tuple[Labels, Labels]:
    """Reference: two mitochondria and an ER; prediction: one exact, one half, nothing on the ER, one invented."""
    reference, prediction = np.zeros((20, 30), np.int64), np.zeros((20, 30), np.int64)
    reference[0:4, 0:4], reference[0:4, 10:14], reference[10:12, 0:20] = 1, 3, 2
    prediction[0:4, 0:4], prediction[0:4, 10:12], prediction[15:19, 20:29] = 7, 5, 9
    return prediction, reference


def test_values_by_hand() -> None:
    found = agnostic(*scene())
    assert found["mito/dice__stratified"] == pytest.approx((1 + 2 / 3) / 2)
    assert found["mito/iou__stratified"] == pytest.approx(0.75)
    assert found["mito/recall__stratified"] == 0.5  # IoU of 0.5 is not above 0.5
    assert found["er/dice__stratified"] == 0.0
    assert found["golgi/dice__stratified"] is None
    assert found["macro/dice__stratified"] == pytest.approx((1 + 2 / 3) / 4)
    assert found["any/dice__reference"] == pytest.approx((1 + 2 / 3) / 3)
    assert found["any/dice__instance"] == pytest.approx((1 + 2 / 3) / 4)
    assert [found[f"mito/{name}"] for name in ("n_reference", "n_matched")] == [2, 2]


def test_what_is_not_annotated_is_not_judged() -> None:
    prediction, reference = scene()
    prediction[10:12, 0:20] = 11  # exactly the ER, which this image does not list as annotated
    found = agnostic(prediction, reference, annotated=("mito",))
    assert found["any/n_prediction"] == 3
    assert found["any/n_reference"] == 2
    assert found["er/dice__stratified"] is None
    assert agnostic(prediction, reference, annotated=())["any/n_prediction"] == 0
    ignored = agnostic(prediction, reference, ignore=reference == 3)
    assert ignored["mito/dice__stratified"] == 1.0


def test_pieces_settings_and_sizes() -> None:
    reference = np.zeros((10, 10), np.int64)
    reference[0:2, 0:2] = reference[6:9, 6:9] = 2
    prediction = (reference > 0) * np.int64(1)
    prediction[6:9, 6:9] = 2
    whole, pieces = agnostic(prediction, reference), agnostic(prediction, reference, reference_ids="slice")
    assert whole["er/n_reference"] == 1
    assert whole["er/dice__stratified"] == pytest.approx(18 / 22)
    assert pieces["er/n_reference"] == 2
    assert pieces["er/dice__stratified"] == pieces["any/dice__instance"] == 1.0
    assert agnostic(prediction, reference, reference_ids="slice", min_size_nm=5.0)["er/n_reference"] == 1
    assert agnostic(prediction, reference, skeleton=("er",), boundary=("er",)).keys() == whole.keys()


def test_merging_adds_up_and_instances_know_their_organelle() -> None:
    prediction, reference = scene()
    parts = []
    for labels in (prediction, np.roll(prediction, 1, axis=1)):
        evaluation = AgnosticEvaluation(keep_instances=True)
        evaluation.add((labels, {}), (reference, ORGANELLE_OF), voxel_size_nm=(1.0, 1.0))
        parts.append(evaluation)
    both = AgnosticEvaluation(keep_instances=True)
    for part in parts:
        both.merge(part)
    values = [part.compute()["mito/dice__stratified"] for part in parts]
    assert both.compute()["mito/dice__stratified"] == pytest.approx(sum(v for v in values if v is not None) / 2)
    assert both.compute()["any/n_reference"] == 6
    rows = parts[0].instances()
    assert [(row["side"], row["organelle"], row["id"]) for row in rows] == [
        ("reference", "mito", 1),
        ("reference", "er", 2),
        ("reference", "mito", 3),
        ("prediction", "mito", 5),
        ("prediction", "mito", 7),
        ("prediction", "any", 9),
    ]
    assert len(both.instances()) == 12


@pytest.fixture(scope="module")
def images(tiny_dataset: Path) -> list[LabelledImage]:
    return [decode_row(row) for row in open_rows(tiny_dataset, "wild", "test")]


def unnamed(image: LabelledImage) -> Prediction:
    ids = np.unique(image.instances)
    return Prediction(image.record_id, image.instances.astype(np.uint32), {}, {int(id_): 0.25 for id_ in ids[ids > 0]})


INFO = {"model": "sam", "config": "wild", "split": "test", "class_agnostic": True}


def test_instances_without_organelle_survive_the_file(tmp_path: Path, images: list[LabelledImage]) -> None:
    mixed = replace(unnamed(images[0]), organelle_of={1: Organelle.ER})
    write_predictions(tmp_path, [mixed], INFO)
    (read,) = read_predictions(tmp_path)
    assert read.organelle_of == {1: Organelle.ER}
    assert read.confidence_of == mixed.confidence_of
    np.testing.assert_array_equal(read.instances, mixed.instances)


def test_score_of_a_perfect_prediction_and_its_row(
    tmp_path: Path, tiny_dataset: Path, images: list[LabelledImage], capsys: pytest.CaptureFixture[str]
) -> None:
    write_predictions(tmp_path, map(unnamed, images), {**INFO, "prompts": "oracle:box"})
    assert main(["score", str(tmp_path), str(tiny_dataset), "--per-instance", str(tmp_path / "i.parquet")]) == 0
    result = json.loads((tmp_path / "score.json").read_text())
    assert result["class_agnostic"] is True
    assert result["prediction"]["prompts"] == "oracle:box"
    assert set(result["groups"]) >= {"all", "domain=in", "domain=out"}
    values = result["groups"]["all"]
    assert values["any/n_reference"] == sum(len(image.organelle_of) for image in images)
    assert values["any/dice__instance"] == values["mito/dice__stratified"] == values["macro/iou__stratified"] == 1.0
    assert values["golgi/dice__stratified"] is None
    assert result["intervals"]["all"]["values"]["mito/dice__stratified"] == [1.0, 1.0]
    assert result["intervals"]["all"]["values"]["any/pq"] == [1.0, 1.0]
    for image in images:
        of = result["per_image"][image.record_id]
        assert of["any/n_prediction"] == len(image.organelle_of)
    text = capsys.readouterr().out
    assert "prompts made from the reference (oracle:box)" in text
    assert "  any            1.000" in text
    assert main(["report", str(tmp_path), str(tiny_dataset), "--images", "2"]) == 0
    page = (tmp_path / "report" / "index.html").read_text()
    assert "oracle:box: shown the reference, never ranked" in page
    assert [text for text in WORDING.values() if text not in page] == []
    assert [text for text in WORDING if text in page] == []
    assert "mean of" not in page.partition("<main>")[0]
    row = json.loads((tmp_path / "report" / "row.json").read_text())
    assert row["scores"] == build_row(result)["scores"]
    assert (row["prompts"], row["class_agnostic"]) == ("oracle:box", True)
    assert row["scores"]["all"]["any/dice__instance"] == row["scores"]["all"]["mito/dice__stratified"] == 1.0
    assert row["scores"]["all"]["mito/dice__instance"] is None


def test_pictures_agree_with_the_score(images: list[LabelledImage]) -> None:
    image = next(image for image in images if len(image.organelle_of) > 3)
    ids = sorted(image.organelle_of)
    labels = np.where(image.instances == ids[0], 0, image.instances).astype(np.uint32)
    quarter = np.arange((image.instances == ids[1]).sum()) % 4 == 0
    labels[image.instances == ids[1]] = np.where(quarter, 500, 1000)
    found = compare_agnostic(image, Prediction(image.record_id, labels, {}), Settings())
    expected = agnostic(
        labels.astype(np.int64), image.instances.astype(np.int64), image.organelle_of, tuple(image.annotated),
        image.ignore,
    )  # fmt: skip
    for organelle, (reference, _, matched) in found.counts.items():
        assert reference == expected[f"{organelle}/n_reference"]
        assert matched == expected[f"{organelle}/n_matched"]
    assert found.reference.mark_of[ids[0]] == Mark.MISSED
    assert (found.prediction.mark_of[500], found.prediction.mark_of[1000]) == (Mark.UNMATCHED, Mark.HIT)
    assert found.reference.organelle_of == image.organelle_of
    assert found.prediction.organelle_of[500] == image.organelle_of[ids[1]]


def test_named_predictions_may_be_scored_class_agnostically(
    tmp_path: Path, tiny_dataset: Path, images: list[LabelledImage]
) -> None:
    """A model that finds every instance and names all of them wrongly."""

    def wrong(image: LabelledImage) -> Prediction:
        return replace(unnamed(image), organelle_of=dict.fromkeys(image.organelle_of, Organelle.GOLGI))

    write_predictions(tmp_path, map(wrong, images), {**INFO, "class_agnostic": False})
    assert main(["score", str(tmp_path), str(tiny_dataset)]) == 0
    ordinary = json.loads((tmp_path / "score.json").read_text())
    assert ordinary["groups"]["all"]["mito/dice__instance"] == 0.0
    assert "class_agnostic" not in ordinary
    assert "prompts" not in build_row(ordinary)
    assert main(["score", str(tmp_path), str(tiny_dataset), "--class-agnostic"]) == 0
    assert json.loads((tmp_path / "score.json").read_text())["groups"]["all"]["any/dice__instance"] == 1.0


def test_unnamed_instances_in_an_ordinary_prediction_are_a_fault(
    tmp_path: Path, tiny_dataset: Path, images: list[LabelledImage], capsys: pytest.CaptureFixture[str]
) -> None:
    write_predictions(tmp_path, map(unnamed, images), {**INFO, "class_agnostic": False})
    assert main(["score", str(tmp_path), str(tiny_dataset)]) == 2
    assert "instances without an organelle" in capsys.readouterr().err


def test_a_volume_has_no_such_option(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros(1))
    with pytest.raises(InputError, match="--class-agnostic belongs to a dataset"):
        score_command([str(tmp_path / "a.npy"), str(tmp_path / "a.npy"), "--organelle", "mito", "--class-agnostic"])


@pytest.mark.parametrize("key", ["mito/dice__stratified", "any/pq", "macro/iou__stratified", "recall__stratified"])
def test_explain_knows_the_keys(key: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", key]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "class-agnostic" in text
    name = key.rpartition("/")[2]
    if name in STRATIFIED:
        assert STRATIFIED[name].definition in text


def test_nothing_added_is_nothing_defined() -> None:
    values = AgnosticEvaluation().compute()
    assert values["any/dice__instance"] is None
    assert all(value is None or value == 0 for value in values.values())
    assert not any(isinstance(value, float) and math.isnan(value) for value in values.values())
