"""AJI, SBD, AP, size classes, VOI and Rand against slow twins and outside oracles; blocks; border policy."""

from __future__ import annotations

import math
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

from em_bench_eval import Evaluation, Settings, score
from em_bench_eval.errors import InputError
from em_bench_eval.metrics import METRICS
from em_bench_eval.overlap_statistics import SIZE_BOUNDS_NM
from em_bench_eval.scoring import statistic_names

Labels = npt.NDArray[np.int64]


@st.composite
def pairs(draw: st.DrawFn) -> tuple[Labels, Labels]:
    shape = draw(st.one_of(st.tuples(*[st.integers(1, 6)] * 2), st.tuples(*[st.integers(1, 3)] * 3)))
    ids = st.sampled_from([0, 0, 1, 2, 3, 4])
    prediction, reference = (draw(hnp.arrays(np.int64, shape, elements=ids)) for _ in range(2))
    return prediction, reference


def blobs(seed: int, shape: tuple[int, ...] = (60, 50)) -> tuple[Labels, Labels]:
    rng = np.random.default_rng(seed)
    field = ndimage.gaussian_filter(rng.normal(size=shape), 2)
    noise = ndimage.gaussian_filter(rng.normal(size=shape), 1)
    return ndimage.label(field + 0.06 * noise > 0.02)[0], ndimage.label(field > 0.01)[0]


def of(prediction: Labels, reference: Labels, edge_nm: float = 1.0, **chosen: Any) -> dict[str, Any]:
    result = score(
        {"er": prediction}, {"er": reference}, voxel_size_nm=(edge_nm,) * reference.ndim, settings=Settings(**chosen)
    )
    return {key.removeprefix("er/"): value for key, value in result.items() if key.startswith("er/")}


def own_segments(labels: Labels, domain: npt.NDArray[np.bool_]) -> Labels:
    """Inside the domain, every background voxel becomes a segment of its own."""
    single = labels.copy()
    background = domain & (labels == 0)
    single[background] = labels.max() + 1 + np.arange(background.sum())
    return single[domain]


# ---- slow twins ----


def twin(prediction: Labels, reference: Labels, bounds: tuple[float, float]) -> dict[str, Any]:
    r_ids, p_ids = (np.unique(side[side > 0]) for side in (reference, prediction))
    r, p = [reference == i for i in r_ids], [prediction == i for i in p_ids]
    iou = np.array([[(a & b).sum() / (a | b).sum() for b in p] for a in r]).reshape(len(r), len(p))
    dice = 2 * iou / (1 + iou)
    empty = not r and not p
    ap = [float((iou > t).sum()) / max(1, len(r) + len(p) - (iou > t).sum()) for t in np.arange(10) * 0.05 + 0.5]
    best_r, best_p = ([0.0], [0.0]) if not (r and p) else (dice.max(1), dice.max(0))
    size_class = [int(a.sum() >= bounds[0]) + int(a.sum() >= bounds[1]) for a in r]
    found = [bool((row > 0.5).any()) for row in iou]
    recalls: dict[str, Any] = {}
    for index, name in enumerate(("small", "medium", "large")):
        members = [hit for hit, own in zip(found, size_class, strict=True) if own == index]
        recalls[f"recall__{name}"] = sum(members) / len(members) if members else None
    return {
        "ap50": None if empty else ap[0],
        "ap75": None if empty else ap[5],
        "ap": None if empty else sum(ap) / 10,
        "sbd__instance": None if empty else min(float(np.mean(best_r)), float(np.mean(best_p))),
        **recalls,
    }


@given(pairs())
def test_instance_metrics_equal_the_slow_twin(item: tuple[Labels, Labels]) -> None:
    bounds = SIZE_BOUNDS_NM[item[1].ndim]
    # voxels so large that the bounds of the size classes fall between 3 and 6 voxels
    edge = (bounds[0] / 2.5) ** (1 / item[1].ndim)
    found = of(*item, edge_nm=edge)
    for name, value in twin(*item, bounds=(2.5, 2.5 * bounds[1] / bounds[0])).items():
        assert found[name] == (value if value is None else pytest.approx(value, abs=1e-12)), name


@given(pairs())
def test_aji_is_one_of_the_values_that_ties_allow(item: tuple[Labels, Labels]) -> None:
    prediction, reference = item
    r, p = ([side == i for i in np.unique(side[side > 0])] for side in (reference, prediction))
    found = of(prediction, reference)["aji__pooled"]
    if not r and not p:
        assert found is None
        return
    options: set[tuple[int, int, frozenset[int]]] = {(0, 0, frozenset())}
    for a in r:
        ious = [(a & b).sum() / (a | b).sum() for b in p]
        best = max(ious, default=0.0)
        nxt = set()
        for intersection, union, used in options:
            if best == 0:
                nxt.add((intersection, union + int(a.sum()), used))
            for index, value in enumerate(ious):
                if value == best > 0:
                    one, other = int((a & p[index]).sum()), int((a | p[index]).sum())
                    nxt.add((intersection + one, union + other, used | {index}))
        options = nxt
    values = [i / (u + sum(int(b.sum()) for k, b in enumerate(p) if k not in used)) for i, u, used in options]
    assert min(abs(found - value) for value in values) < 1e-12


def entropy_twin(prediction: Labels, reference: Labels, domain: npt.NDArray[np.bool_]) -> tuple[Any, ...]:
    """H(P|R), H(R|P) and Rand error by counting; None in an empty domain."""
    if not domain.any():
        return None, None, None
    a, b = own_segments(reference, domain).tolist(), own_segments(prediction, domain).tolist()
    n, joint = len(a), list(zip(a, b, strict=True))
    split = -sum(math.log2(joint.count(pair) / a.count(pair[0])) for pair in joint) / n
    merge = -sum(math.log2(joint.count(pair) / b.count(pair[1])) for pair in joint) / n
    together = [sum(x.count(value) - 1 for value in x) for x in (a, b, joint)]
    both = together[0] + together[1]
    return split, merge, 1 - 2 * together[2] / both if both else 0.0


@settings(max_examples=60)
@given(pairs())
def test_entropies_equal_the_slow_twin(item: tuple[Labels, Labels]) -> None:
    prediction, reference = item
    found = of(prediction, reference)
    for name, domain in (("foreground", reference > 0), ("union", (reference > 0) | (prediction > 0))):
        split, merge, arand = entropy_twin(prediction, reference, domain)
        for key, value in (("voi_split", split), ("voi_merge", merge), ("arand", arand)):
            assert found[f"{key}__{name}"] == (value if value is None else pytest.approx(value, abs=1e-9)), (key, name)
        if split is not None:
            assert found[f"voi__{name}"] == pytest.approx(split + merge, abs=1e-9)


# ---- oracles ----


@pytest.mark.parametrize("seed", range(4))
def test_voi_and_rand_agree_with_scikit_image(seed: int) -> None:
    from skimage.metrics import adapted_rand_error, variation_of_information

    prediction, reference = blobs(seed)
    found = of(prediction, reference)
    for name, domain in (("foreground", reference > 0), ("union", (reference > 0) | (prediction > 0))):
        a, b = own_segments(reference, domain), own_segments(prediction, domain)
        split, merge = variation_of_information(a, b)  # H(b|a), H(a|b)
        assert found[f"voi_split__{name}"] == pytest.approx(split)
        assert found[f"voi_merge__{name}"] == pytest.approx(merge)
        assert found[f"arand__{name}"] == pytest.approx(adapted_rand_error(a, b, ignore_labels=())[0])
    # where the prediction covers the reference's foreground, the usual convention needs no special case
    covered = np.where((reference > 0) & (prediction == 0), prediction.max() + 1, prediction)
    split, merge = variation_of_information(reference, covered, ignore_labels=(0,))
    usual = of(covered, reference)
    assert (usual["voi_split__foreground"], usual["voi_merge__foreground"]) == pytest.approx((split, merge))
    assert usual["arand__foreground"] == pytest.approx(adapted_rand_error(reference, covered)[0])


def stardist_matching(prediction: Labels, reference: Labels, threshold: float) -> tuple[int, int, int]:
    """TP, FP, FN as StarDist defines them: an assignment that prefers pairs above the threshold."""
    n_r, n_p = len(np.unique(reference[reference > 0])), len(np.unique(prediction[prediction > 0]))
    overlap = np.zeros((n_r + 1, n_p + 1))
    np.add.at(overlap, (reference.ravel(), prediction.ravel()), 1)
    size_r, size_p = overlap.sum(1)[1:, None], overlap.sum(0)[None, 1:]
    iou = overlap[1:, 1:] / (size_r + size_p - overlap[1:, 1:])
    rows, columns = linear_sum_assignment(-(iou > threshold).astype(float) - iou / (2 * min(n_r, n_p)))
    true = int((iou[rows, columns] > threshold).sum())
    return true, n_p - true, n_r - true


@pytest.mark.parametrize("seed", range(4))
def test_average_precision_agrees_with_stardist(seed: int) -> None:
    prediction, reference = blobs(seed, (80, 70))
    found = of(prediction, reference)
    values = []
    for threshold in np.arange(10) * 0.05 + 0.5:
        true, false, missed = stardist_matching(prediction, reference, threshold)
        values.append(true / (true + false + missed))
    assert (found["ap50"], found["ap75"]) == pytest.approx((values[0], values[5]))
    assert found["ap"] == pytest.approx(sum(values) / 10)
    matching = pytest.importorskip("stardist.matching", reason="StarDist is not installed").matching
    for key, threshold in (("ap50", 0.5), ("ap75", 0.75)):
        theirs = matching(
            reference, prediction, thresh=threshold + 1e-6
        )  # StarDist counts IoU >= threshold, as float32
        assert found[key] == pytest.approx(theirs.accuracy)


# ---- blocks ----


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_blocks_give_the_same_bits_as_the_whole(data: st.DataObject) -> None:
    prediction, reference = blobs(3, (14, 18, 16))
    ignore = np.zeros(reference.shape, bool)
    ignore[:, :5, :4] = True
    organelles = {int(i): "mito" if i % 3 else "er" for i in range(1, 1 + max(prediction.max(), reference.max()))}
    border = data.draw(st.sampled_from(["judge", "ignore"]))
    chosen = Settings(border=border, min_size_nm=3 * 8.0**3)
    context = {"voxel_size_nm": (8.0,) * 3, "annotated": ["mito", "er"]}
    whole = Evaluation(chosen)
    whole.add((prediction, organelles), (reference, organelles), ignore=ignore, **context)
    cuts = [sorted({0, size, *data.draw(st.lists(st.integers(1, size - 1), max_size=3))}) for size in reference.shape]
    boxes = [
        tuple(slice(edges[k], edges[k + 1]) for edges, k in zip(cuts, index, strict=True))
        for index in np.ndindex(*(len(edges) - 1 for edges in cuts))
    ]
    parts = [Evaluation(chosen) for _ in range(2)]
    for box in data.draw(st.permutations(boxes)):
        data.draw(st.sampled_from(parts)).add_block(
            "v",
            (prediction[box], organelles),
            (reference[box], organelles),
            start=[edge.start for edge in box],
            shape=reference.shape,
            ignore=ignore[box],
            **context,
        )
    merged = Evaluation(chosen)
    for part in parts:
        merged.merge(part)
    assert merged.compute() == whole.compute()
    assert merged.compute() == whole.compute()  # computing closes nothing


def test_faults_of_blocks() -> None:
    labels = np.ones((2, 4), int)
    given_: dict[str, Any] = {"voxel_size_nm": (8, 8), "shape": (4, 4)}
    evaluation = Evaluation()
    evaluation.add_block("v", {"er": labels}, {"er": labels}, start=(0, 0), **given_)
    with pytest.raises(InputError, match="not complete"):
        evaluation.compute()
    with pytest.raises(InputError, match="overlap"):
        evaluation.add_block("v", {"er": labels}, {"er": labels}, start=(1, 0), **given_)
    with pytest.raises(InputError, match="outside"):
        evaluation.add_block("v", {"er": labels}, {"er": labels}, start=(3, 0), **given_)
    with pytest.raises(InputError, match="differ in what they say"):
        evaluation.add_block(
            "v", {"er": labels}, {"er": labels}, start=(2, 0), voxel_size_nm=(8, 8), shape=(4, 4), annotated=["er"]
        )
    with pytest.raises(InputError, match="added twice"):
        evaluation.add({"er": labels}, {"er": labels}, voxel_size_nm=(8, 8), item="v")
    evaluation.add_block("v", {"er": labels}, {"er": labels}, start=(2, 0), **given_)
    assert evaluation.compute()["er/pq"] == 1.0
    with pytest.raises(InputError, match="cannot be measured in blocks"):
        Evaluation(Settings(skeleton=("er",))).add_block("v", {}, {"er": labels}, start=(0, 0), **given_)


# ---- border ----


def test_border_policy() -> None:
    reference = np.zeros((8, 8), int)
    reference[0:3, 0:3], reference[4:7, 4:7] = 1, 2
    prediction = np.zeros((8, 8), int)
    prediction[0:2, 0:3], prediction[4:7, 4:7], prediction[7, 0] = 5, 6, 7  # 7: invented, at the border
    judged, ignored = of(prediction, reference), of(prediction, reference, border="ignore")
    assert (judged["n_reference"], judged["n_prediction"], judged["n_matched"]) == (2, 3, 2)
    assert (ignored["n_reference"], ignored["n_prediction"], ignored["n_matched"]) == (1, 2, 1)
    assert ignored["precision"] == 0.5  # false positives cannot hide at the border
    assert judged["semantic_dice"] == ignored["semantic_dice"]


# ---- what a cut does ----


def test_a_cut_tubule_moves_voi_but_hardly_dice() -> None:
    reference = np.zeros((20, 200, 200), int)
    for y in range(10, 200, 30):
        reference[8:12, y : y + 4, :] = 1
    reference[8:12, :, 98:102] = 1  # one connected network
    cut = reference.copy()
    cut[:, :, 60:61] = 0
    prediction = ndimage.label(cut)[0]
    whole, apart = of(reference, reference), of(prediction, reference)
    assert whole["voi__union"] == 0.0 < 0.3 < apart["voi_split__union"]
    assert apart["arand__union"] > 0.1
    one_cut = reference.copy()
    one_cut[:, 10:14, 60:61] = 0
    single = of(ndimage.label(one_cut)[0], reference)
    assert 1 - single["semantic_dice"] < 0.001
    assert single["voi_split__foreground"] > 0.1
    assert single["voi_split__union"] > 0.1


@pytest.mark.real_data
def test_real_labels_agree_with_scikit_image(real_data: Path) -> None:
    from skimage.metrics import variation_of_information

    nibabel = pytest.importorskip("nibabel")
    path = real_data / "urocell_labels" / "mito" / "instance" / "fib1-3-3-0.nii.gz"
    if not path.is_file():
        pytest.skip("no UroCell labels")
    reference = np.ascontiguousarray(np.asarray(nibabel.load(path).dataobj).T.astype(np.int64))
    prediction = ndimage.label(reference > 0, structure=np.ones((3, 3, 3)))[0]
    found = of(prediction, reference, edge_nm=16.0)
    split, merge = variation_of_information(reference, prediction, ignore_labels=(0,))
    assert (found["voi_split__foreground"], found["voi_merge__foreground"]) == pytest.approx((split, merge))
    values = [stardist_matching(prediction, np.unique(reference, return_inverse=True)[1].reshape(reference.shape), 0.5)]
    assert found["ap50"] == pytest.approx(values[0][0] / sum(values[0]))


# ---- skeletons and boundaries through the one interface ----


@pytest.mark.parametrize("axes", [2, 3])
def test_every_measurement_reaches_the_result_and_the_rows(axes: int) -> None:
    prediction, reference = blobs(1, (30, 40) if axes == 2 else (10, 20, 24))
    chosen = Settings(skeleton=("er",), boundary=("er", "mito"))
    size = (8.0,) * axes
    evaluation = Evaluation(chosen)
    evaluation.add({"er": prediction, "mito": prediction}, {"er": reference}, voxel_size_nm=size)
    result = evaluation.compute()
    assert {key for key in result if key.startswith("er/")} == {f"er/{name}" for name in METRICS}
    assert "mito/cldice__pooled" not in result
    assert result["mito/nsd__instance"] == 0.0
    assert 0.5 < result["er/cldice__pooled"] <= 1.0  # type: ignore[operator]
    sent = Evaluation(chosen)
    sent.add_rows(evaluation.to_rows())
    assert sent.compute() == result
    head = {"axes", "settings", "item", "organelle"}
    assert {name for row in evaluation.to_rows() for name in row} == {*head, *statistic_names()}
    together = Evaluation(chosen)
    names = {int(i): "er" if i % 2 else "golgi" for i in range(1, 1 + max(prediction.max(), reference.max()))}
    together.add((prediction, names), (reference, names), voxel_size_nm=size)
    apart = Evaluation(chosen)
    maps = [
        {o: np.where(np.isin(side, [i for i in names if names[i] == o]), side, 0) for o in ("er", "golgi")}
        for side in (prediction, reference)
    ]
    apart.add(*maps, voxel_size_nm=size)
    assert together.compute() == apart.compute()


def test_a_perfect_prediction_is_perfect_in_every_family() -> None:
    labels = blobs(2, (10, 20, 24))[1]
    result = of(labels, labels, edge_nm=8.0, skeleton=("er",), boundary=("er",))
    assert result["cldice__pooled"] == result["erl_normalised__pooled"] == result["nsd__instance"] == 1.0
    assert result["hd95__matched_nm"] == result["msd__matched_nm"] == result["betti0_error__item"] == 0.0
