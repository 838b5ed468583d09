"""The score: JSON cases with their honest baselines, a slow twin, invariances, and outside oracles."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage
from scipy.optimize import linear_sum_assignment

import em_bench_eval
from em_bench_eval import Evaluation, Settings, score
from em_bench_eval.errors import InputError
from em_bench_eval.metrics import METRICS, compute_all, measured, pool
from em_bench_eval.schema import ORGANELLES, Organelle

Labels = npt.NDArray[np.int64]
CASES = sorted(Path(__file__).parent.glob("cases/metric_*.json"))
DRAWN = {".": 0, "#": 1, **{character: index for index, character in enumerate("0123456789abcdef")}}
NM = (8.0, 8.0)
# what a leaderboard may rank by: no case may beat its honest baseline in any of these
RANKED = (
    "dice__instance",
    "iou__instance",
    "dice__pooled",
    "iou__pooled",
    "aji__pooled",
    "sbd__instance",
    "pq",
    "rq",
    "ap50",
    "ap75",
    "ap",
    "voi__union",
    "arand__union",
    "semantic_dice",
    "semantic_iou",
)


def labels_of(drawing: Any) -> npt.NDArray[Any]:
    """A label map from rows of characters (``.`` is 0), or from values with a dtype."""
    if isinstance(drawing, Mapping):
        return np.array(drawing["values"], drawing["dtype"])
    return np.array([[DRAWN[character] for character in row] for row in drawing])


def side_of(drawn: Mapping[str, Any]) -> Any:
    if "ids" in drawn:
        return labels_of(drawn["ids"]), {int(id_): name for id_, name in drawn["organelle_of"].items()}
    return {organelle: labels_of(drawing) for organelle, drawing in drawn.items()}


def run(case: Mapping[str, Any], **replaced: Any) -> dict[str, Any]:
    case = {**case, **replaced}
    return score(
        side_of(case["prediction"]),
        side_of(case["reference"]),
        voxel_size_nm=case["voxel_size_nm"],
        annotated=case.get("annotated"),
        ignore=labels_of(case["ignore"]) > 0 if "ignore" in case else None,
        settings=Settings(**case.get("settings", {})),
    )


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem.removeprefix("metric_"))
def test_case(path: Path) -> None:
    case = json.loads(path.read_text())
    assert case["why"]
    if "error" in case:
        with pytest.raises(InputError) as error:
            run(case)
        assert case["error"] in str(error.value)
        return
    result = run(case)
    assert case["expected"]
    for key, value in case["expected"].items():
        if value is None or isinstance(value, int):
            assert result[key] == value, f"{key}: {case['why']}"
        else:
            assert result[key] == pytest.approx(value, abs=1e-12), f"{key}: {case['why']}"
    if "same_as" in case:
        bare = {name: value for name, value in case.items() if name not in ("annotated", "ignore")}
        assert run(bare, **case["same_as"]) == result
    if "honest" in case:
        honest = run(case, prediction=case["honest"]["prediction"])
        tried = [organelle for organelle in ORGANELLES if honest[f"{organelle}/n_prediction"]]
        for key in {*case["honest"]["keys"], *(f"{organelle}/{name}" for organelle in tried for name in RANKED)}:
            value, fair = result[key], honest[key]
            if value is not None and fair is not None:
                worse = value <= fair if METRICS[key.partition("/")[2]].better == "higher" else value >= fair
                assert worse, f"{key} beats {case['honest']['what']}: {value} against {fair}"


# ---- the slow twin: sets of voxels, a dense Hungarian matrix -------------------------------------------------------


def twin(prediction: Labels, reference: Labels, ignore: npt.NDArray[np.bool_], minimum: int) -> dict[str, float | None]:
    def voxel_sets(labels: Labels) -> dict[int, set[Any]]:
        return {int(i): set(zip(*np.nonzero(labels == i), strict=True)) for i in np.unique(labels) if i}

    hidden = set(zip(*np.nonzero(ignore), strict=True))
    every_r, every_p = voxel_sets(reference), voxel_sets(prediction)
    union_r, union_p = (set().union(*side.values()) - hidden for side in (every_r, every_p))
    not_judged = hidden.union(*(voxels for voxels in every_r.values() if 2 * len(voxels & hidden) > len(voxels)))
    r = [v - hidden for v in every_r.values() if 2 * len(v & hidden) <= len(v)]
    p = [v - not_judged for v in every_p.values() if 2 * len(v & not_judged) <= len(v)]
    r, p = ([v for v in side if len(v) >= minimum] for side in (r, p))
    dense_iou = np.array([[len(a & b) / len(a | b) for b in p] for a in r]).reshape(len(r), len(p))
    dense_dice = np.array([[2 * len(a & b) / (len(a) + len(b)) for b in p] for a in r]).reshape(len(r), len(p))
    rows, columns = linear_sum_assignment(dense_iou + 1e-9 * dense_dice, maximize=True)
    matched = [(i, j) for i, j in zip(rows, columns, strict=True) if dense_iou[i, j] > 0]
    hits = dense_iou[dense_iou > 0.5]
    n_union, n_both = len(r) + len(p) - len(matched), len(r) + len(p)

    def mean(values: list[float], n: int, defined: int) -> float | None:
        return (sum(values) / n if n else 0.0) if defined else None

    dices, ious = [dense_dice[pair] for pair in matched], [dense_iou[pair] for pair in matched]
    return {
        "dice__instance": mean(dices, n_union, n_both),
        "dice__reference": mean(dices, len(r), len(r)),
        "dice__matched": mean(dices, len(matched), len(r)),
        "iou__instance": mean(ious, n_union, n_both),
        "pq": mean([2 * float(v) for v in hits], n_both, n_both),
        "sq": mean([float(v) for v in hits], len(hits), len(r)),
        "rq": mean([2.0] * len(hits), n_both, n_both),
        "precision": mean([1.0] * len(hits), len(p), n_both),
        "recall": mean([1.0] * len(hits), len(r), len(r)),
        "semantic_dice": mean([2.0 * len(union_r & union_p)], len(union_r) + len(union_p), len(union_r) + len(union_p)),
        "semantic_iou": mean([float(len(union_r & union_p))], len(union_r | union_p), len(union_r | union_p)),
        "n_reference": len(r),
        "n_prediction": len(p),
        "n_matched": len(matched),
    }


@st.composite
def items(draw: st.DrawFn) -> tuple[Labels, Labels, npt.NDArray[np.bool_]]:
    shape = draw(st.one_of(st.tuples(*[st.integers(1, 6)] * 2), st.tuples(*[st.integers(1, 3)] * 3)))
    ids = st.sampled_from([0, 0, 1, 2, 3, 4])
    prediction, reference = (draw(hnp.arrays(np.int64, shape, elements=ids)) for _ in range(2))
    ignore = draw(st.one_of(st.just(np.zeros(shape, bool)), hnp.arrays(np.bool_, shape)))
    return prediction, reference, ignore


@given(items(), st.integers(0, 4))
def test_score_equals_the_slow_twin(item: tuple[Labels, Labels, npt.NDArray[np.bool_]], minimum: int) -> None:
    prediction, reference, ignore = item
    nm = NM[:1] * prediction.ndim
    result = score(
        {"er": prediction},
        {"er": reference},
        voxel_size_nm=nm,
        ignore=ignore,
        settings=Settings(min_size_nm=minimum * math.prod(nm)),
    )
    for name, value in twin(prediction, reference, ignore, minimum).items():
        found = result[f"er/{name}"]
        assert found == (value if value is None else pytest.approx(value, abs=1e-9)), name


@given(items())
def test_every_value_is_in_range_and_iou_never_exceeds_dice(item: tuple[Labels, Labels, npt.NDArray[np.bool_]]) -> None:
    result = score({"mito": item[0]}, {"mito": item[1]}, voxel_size_nm=NM[:1] * item[0].ndim, ignore=item[2])
    for key, value in result.items():
        assert value is None or (value >= 0 and math.isfinite(value))
        name = key.partition("/")[2]
        if name in METRICS and METRICS[name].family != "count":
            assert value is None or value <= 1 or METRICS[name].range == "0.."
            twin_key = key.replace("iou", "dice")
            assert value is None or "iou" not in key or value <= result[twin_key]


@given(items(), st.permutations(range(1, 5)), st.permutations(range(1, 5)))
def test_ids_are_names(item: tuple[Labels, Labels, Any], new_p: list[int], new_r: list[int]) -> None:
    prediction, reference, ignore = item
    nm = NM[:1] * prediction.ndim
    renamed = np.array([0, *new_p])[prediction], np.array([0, *new_r])[reference]
    original = score({"mito": prediction}, {"mito": reference}, voxel_size_nm=nm, ignore=ignore)
    assert score({"mito": renamed[0]}, {"mito": renamed[1]}, voxel_size_nm=nm, ignore=ignore) == original


@given(items())
def test_a_perfect_prediction_scores_one(item: tuple[Labels, Labels, Any]) -> None:
    labels = item[0]
    result = score({"mito": labels}, {"mito": labels}, voxel_size_nm=NM[:1] * labels.ndim)
    for name, metric in measured("mito", Settings()).items():
        if metric.family != "count" and (metric.range, result[f"mito/{name}"]) != ("0..1", None):
            best = {"higher": 1.0, "lower": 0.0}[metric.better]
            assert result[f"mito/{name}"] == (best if labels.any() else None), name
        if metric.family != "count" and not name.startswith("recall__"):
            assert (result[f"mito/{name}"] is None) == (not labels.any()), name


@given(items())
def test_both_forms_of_label_maps_agree(item: tuple[Labels, Labels, Any]) -> None:
    organelle_of = {1: Organelle.MITO, 2: "er", 3: "mito", 4: "golgi"}
    prediction, reference, ignore = item
    nm = NM[:1] * prediction.ndim
    separate = [
        {
            name: np.where(np.isin(labels, [i for i, other in organelle_of.items() if other == name]), labels, 0)
            for name in ORGANELLES
        }
        for labels in (prediction, reference)
    ]
    together = score((prediction, organelle_of), (reference, organelle_of), voxel_size_nm=nm, ignore=ignore)
    assert together == score(*separate, voxel_size_nm=nm, ignore=ignore)
    assert together == score(separate[0], (reference, organelle_of), voxel_size_nm=nm, ignore=ignore)


# ---- pooling ----


def random_images(count: int) -> list[tuple[Labels, Labels]]:
    rng = np.random.default_rng(7)
    images = []
    for _ in range(count):
        field = ndimage.gaussian_filter(rng.normal(size=(48, 40)), 2)
        reference = ndimage.label(field > 0.05)[0]
        prediction = ndimage.label(field + 0.06 * ndimage.gaussian_filter(rng.normal(size=field.shape), 1) > 0.06)[0]
        images.append((prediction, reference))
    return images


@settings(max_examples=25)
@given(st.permutations(range(7)), st.lists(st.integers(0, 2), min_size=7, max_size=7))
def test_any_order_and_any_partition_give_the_same_bits(order: list[int], process: list[int]) -> None:
    images = random_images(7)
    whole = Evaluation()
    for prediction, reference in images:
        whole.add({"mito": prediction}, {"mito": reference}, voxel_size_nm=NM)
    parts = [Evaluation() for _ in range(3)]
    for index in order:
        parts[process[index]].add({"mito": images[index][0]}, {"mito": images[index][1]}, voxel_size_nm=NM)
    merged, sent = Evaluation(), Evaluation()
    for part in parts:
        merged.merge(part)
        sent.add_rows(json.loads(json.dumps(part.to_rows())))
    assert merged.compute() == sent.compute() == whole.compute()
    assert whole.compute()["mito/n_matched"] > 50


def test_counts_are_pooled_and_not_averaged_per_image() -> None:
    one, five = np.eye(5, dtype=int), np.diag(np.arange(1, 6))
    evaluation = Evaluation()
    evaluation.add({"mito": one}, {"mito": one}, voxel_size_nm=NM)
    evaluation.add({}, {"mito": five}, voxel_size_nm=NM)
    assert evaluation.compute()["mito/dice__instance"] == pytest.approx(1 / 6)  # the mean over images would be 1/2


def test_an_image_with_a_fault_counts_nothing() -> None:
    evaluation = Evaluation()
    good = np.ones((2, 2), int)
    with pytest.raises(InputError):
        evaluation.add({"mito": good, "er": good - 2}, {"mito": good}, voxel_size_nm=NM)
    assert evaluation.compute() == Evaluation().compute()


def test_what_cannot_be_pooled() -> None:
    image, volume = np.ones((2, 2), int), np.ones((2, 2, 2), int)
    evaluation = Evaluation()
    evaluation.add({"mito": image}, {"mito": image}, voxel_size_nm=NM)
    with pytest.raises(InputError, match="images and volumes"):
        evaluation.add({"mito": volume}, {"mito": volume}, voxel_size_nm=(8, 8, 8))
    with pytest.raises(InputError, match="cannot be pooled"):
        evaluation.merge(Evaluation(Settings(min_size_nm=1)))
    with pytest.raises(InputError, match="different settings"):
        Evaluation(Settings(min_size_nm=1)).add_rows(evaluation.to_rows())
    with pytest.raises(InputError, match="needs images"):
        score({}, {"mito": volume}, voxel_size_nm=(8, 8, 8), settings=Settings(reference_ids="slice"))


# ---- declarations ----


def test_keys_of_a_result() -> None:
    result = score({}, {}, voxel_size_nm=NM)
    given = measured("mito", Settings())
    macro = {f"macro/{name}" for name, metric in given.items() if metric.family != "count"}
    assert set(result) == {f"{o}/{name}" for o in ORGANELLES for name in given} | macro | {"macro/n_organelles"}
    assert all(type(value) is int for key, value in result.items() if "/n_" in key)
    json.dumps(result, allow_nan=False)


def test_an_iou_above_its_dice_is_refused() -> None:
    one = np.ones((2, 2), int)
    evaluation = Evaluation()
    evaluation.add({"mito": one}, {"mito": one}, voxel_size_nm=NM)
    statistics = dict(evaluation.items()[0][1]["mito"])
    with pytest.raises(ArithmeticError, match="mito/iou__instance"):
        compute_all({"mito": {**statistics, "matched_dice": 0.5, "matched_iou": 0.6}}, Settings())


def test_every_metric_is_declared_in_words() -> None:
    for name, metric in METRICS.items():
        for text in ("definition", "formula", "aggregation", "edge_cases", "reference"):
            assert getattr(metric, text), f"{name}.{text}"
        assert metric.range.startswith(("0", "above 0")), name
        described = metric.family == "count" or "reference" in name or name.startswith("largest_share")
        assert metric.better or described, name
    assert pool([]) == {}


def test_settings_are_hashed_and_checked() -> None:
    assert Settings().hash() == Settings(min_size_nm=0).hash()
    assert len({Settings().hash(), Settings(min_size_nm=2).hash(), Settings(reference_ids="slice").hash()}) == 3
    with pytest.raises(InputError, match="did you mean 'slice'"):
        Settings(reference_ids="slices")  # type: ignore[arg-type]
    for wrong in ({"min_size_nm": -1}, {"min_size_nm": math.nan}, {"iou_threshold": 0.4}, {"iou_threshold": 1.0}):
        with pytest.raises(InputError, match="out of range"):
            Settings(**wrong)  # type: ignore[arg-type]


def test_public_names() -> None:
    assert em_bench_eval.score is score
    assert em_bench_eval.Evaluation is Evaluation
    assert em_bench_eval.Settings is Settings


@pytest.mark.parametrize("nm", [(8,), (8, 0), (8, math.inf), (8, 8, 8, 8)])
def test_voxel_sizes_that_are_none(nm: tuple[float, ...]) -> None:
    with pytest.raises(InputError, match="not a voxel size"):
        score({}, {}, voxel_size_nm=nm)


def test_sides_of_no_known_form() -> None:
    with pytest.raises(InputError, match="neither a mapping nor a pair"):
        score(np.ones((2, 2), int), {}, voxel_size_nm=NM)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="not a mask"):
        score({}, {}, voxel_size_nm=NM, ignore=np.zeros((2, 2)))


# ---- oracles ----


def test_agrees_with_panoptica() -> None:
    panoptica = pytest.importorskip("panoptica")
    from panoptica.metrics import Metric

    evaluator = panoptica.Panoptica_Evaluator(
        expected_input=panoptica.InputType.UNMATCHED_INSTANCE,
        instance_matcher=panoptica.NaiveThresholdMatching(matching_threshold=0.5, strict_threshold=True),
        instance_metrics=[Metric.IOU, Metric.DSC],
        global_metrics=[Metric.DSC],
    )
    for prediction, reference in random_images(4):
        theirs = evaluator.evaluate(prediction.astype(np.uint16), reference.astype(np.uint16))["ungrouped"]
        ours = score({"mito": prediction}, {"mito": reference}, voxel_size_nm=NM)
        assert ours["mito/n_reference"] == theirs.n_ref_instances
        assert ours["mito/n_prediction"] == theirs.n_pred_instances
        for name, value in (
            ("rq", theirs.rq),
            ("sq", theirs.sq),
            ("pq", theirs.pq),
            ("semantic_dice", theirs.global_bin_dsc),
        ):
            assert ours[f"mito/{name}"] == pytest.approx(value, abs=1e-9), name


@pytest.mark.real_data
def test_real_mitochondria_agree_with_a_dense_hungarian(real_data: Path) -> None:
    path = real_data / "urocell_labels" / "mito" / "instance" / "fib1-3-3-0.nii.gz"
    nibabel = pytest.importorskip("nibabel")
    if not path.is_file():
        pytest.skip("no UroCell labels")
    reference = np.ascontiguousarray(np.asarray(nibabel.load(path).dataobj).T.astype(np.int64))
    nm = (15.0, 16.0, 16.0)
    perfect = score({"mito": reference}, {"mito": reference}, voxel_size_nm=nm)
    assert perfect["mito/n_reference"] == 83
    assert perfect["mito/dice__instance"] == perfect["mito/pq"] == 1.0
    # 26-connected components of the mask merge mitochondria that touch
    prediction, n_components = ndimage.label(reference > 0, structure=np.ones((3, 3, 3)))
    ours = score({"mito": prediction}, {"mito": reference}, voxel_size_nm=nm)
    assert ours["mito/n_prediction"] == n_components < 83
    assert ours["mito/semantic_dice"] == 1.0
    dense = np.zeros((int(reference.max()) + 1, n_components + 1), np.int64)
    np.add.at(dense, (reference.ravel(), prediction.ravel()), 1)
    dense = dense[np.unique(reference)][1:, 1:]
    sizes = dense.sum(1)[:, None], dense.sum(0)[None]
    rows, columns = linear_sum_assignment(dense / (sizes[0] + sizes[1] - dense), maximize=True)
    matched = dense[rows, columns] > 0
    dices = (2 * dense / (sizes[0] + sizes[1]))[rows, columns][matched]
    assert ours["mito/n_matched"] == matched.sum()
    assert ours["mito/dice__instance"] == pytest.approx(dices.sum() / (83 + n_components - matched.sum()), abs=1e-12)
    # the memory layout changes nothing
    assert score({"mito": np.asfortranarray(prediction)}, {"mito": reference}, voxel_size_nm=nm) == ours
