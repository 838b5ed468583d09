"""Boundary family: equal to point-by-point loops on every path, to hand-computed cases and to outside oracles."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any
from unittest import mock

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage
from scipy.spatial.distance import directed_hausdorff

from em_bench_eval import surface
from em_bench_eval.boundary_statistics import boundary_statistics
from em_bench_eval.errors import InputError
from em_bench_eval.matching import best_matching, iou
from em_bench_eval.metrics_boundary import METRICS
from em_bench_eval.overlap import contingency

Labels = npt.NDArray[Any]
Voxel = tuple[int, ...]
Result = dict[str, Any]

# Every tier of the search alone: neighbours then trees, trees at once, the transform at once (with a margin that is
# too small for some voxels), and all of them over one-plane blocks.
TIERS: dict[str, dict[str, int]] = {
    "as shipped": {},
    "trees": {"_BALL_MANY_GROUPS": 1, "_BALL_ONE_GROUP": 1, "_DENSE": 0, "_TREE_QUERIES": 3},
    "transform": {"_BALL_ONE_GROUP": 1, "_DENSE": 10**6, "_BLOCK_VOXELS": 1, "_MARGIN_VOXELS": 1, "_TREE_QUERIES": 3},
    "planes": {"_BALL_MANY_GROUPS": 9, "_BALL_ONE_GROUP": 5, "_BLOCK_VOXELS": 1, "_BALL_REACH": 2},
}


@st.composite
def items(draw: st.DrawFn) -> dict[str, Any]:
    """Everything that ``boundary_statistics`` takes, 2D or 3D, anisotropic, ids up to 2**64 - 1, arbitrary pairs."""
    shape = draw(
        st.one_of(
            st.tuples(st.integers(0, 8), st.integers(0, 8)),
            st.tuples(st.integers(1, 5), st.integers(1, 4), st.integers(1, 5)),
        )
    )
    ids = st.sampled_from([0, 0, 1, 2, 5] if draw(st.booleans()) else [0, 1, 7, 2**40, 2**64 - 1])
    reference, prediction = (draw(hnp.arrays(np.uint64, shape, elements=ids)) for _ in range(2))
    judged = [draw(st.permutations(np.unique(side[side > 0]).tolist())) for side in (reference, prediction)]
    dropped = [draw(st.integers(0, 1)) for _ in judged]
    judged = [side[drop:] for side, drop in zip(judged, dropped, strict=True)]
    n = draw(st.integers(0, min(map(len, judged))))
    return {
        "reference": reference,
        "prediction": prediction,
        "voxel_size_nm": tuple(draw(st.sampled_from([1.0, 4.0, 5.2, 30.0])) for _ in shape),
        "matched": list(zip(judged[0][:n], judged[1][:n], strict=True)),
        "unmatched_reference": judged[0][n:],
        "unmatched_prediction": judged[1][n:],
        "tolerance_nm": draw(st.sampled_from([0.0, 4.0, 5.2, 10.4, 100.0])),
        "ignore": draw(st.one_of(st.none(), hnp.arrays(np.bool_, shape))),
    }


def neighbours(voxel: Voxel, shape: Voxel) -> list[Voxel]:
    near = []
    for axis, step in itertools.product(range(len(shape)), (-1, 1)):
        other = (*voxel[:axis], voxel[axis] + step, *voxel[axis + 1 :])
        if 0 <= other[axis] < shape[axis]:
            near.append(other)
    return near


def surface_twin(member: Mapping[Voxel, bool], hidden: Mapping[Voxel, bool], shape: Voxel) -> list[Voxel]:
    """Voxels of an instance with a visible neighbour that is not of it."""
    return [
        voxel
        for voxel in member
        if member[voxel]
        and not hidden[voxel]
        and any(not member[near] and not hidden[near] for near in neighbours(voxel, shape))
    ]


def directed_twin(one: list[Voxel], other: list[Voxel], size: tuple[float, ...]) -> list[float]:
    """Distance of each voxel of one set to the nearest of the other, by all pairs."""
    scaled = [[index * edge for index, edge in zip(voxel, size, strict=True)] for voxel in other]
    return [
        min(math.dist([index * edge for index, edge in zip(voxel, size, strict=True)], point) for point in scaled)
        for voxel in one
        if scaled
    ]


def twin(item: dict[str, Any]) -> dict[str, float]:
    """Every statistic by loops over voxels, and distances between all pairs of points."""
    size, shape, maps = item["voxel_size_nm"], item["reference"].shape, (item["reference"], item["prediction"])
    voxels = list(np.ndindex(shape))
    hidden = {voxel: item["ignore"] is not None and bool(item["ignore"][voxel]) for voxel in voxels}
    near_nm = item["tolerance_nm"] + 1e-6

    def surface_of(labels: Labels, id_: int | None) -> list[Voxel]:
        member = {voxel: int(labels[voxel]) == id_ if id_ is not None else labels[voxel] > 0 for voxel in voxels}
        return surface_twin(member, hidden, shape)

    result = dict.fromkeys(STATISTICS, 0.0)
    result["boundary_instances"] = len(item["matched"])
    for labels, name in zip(maps, ("unmatched_reference", "unmatched_prediction"), strict=True):
        result["boundary_instances"] += len(item[name])
        result["boundary_elements"] += sum(len(surface_of(labels, id_)) for id_ in item[name])
    for ids in item["matched"]:
        r, p = (surface_of(labels, id_) for labels, id_ in zip(maps, ids, strict=True))
        there, back = directed_twin(r, p, size), directed_twin(p, r, size)
        within = sum(distance <= near_nm for distance in there + back)
        result["boundary_elements"] += len(r) + len(p)
        result["boundary_elements_within"] += within
        if not r and not p:
            result["boundary_pairs_without_surface"] += 1
        else:
            result["boundary_nsd"] += within / (len(r) + len(p))
        if r and p:
            result["boundary_pairs_with_distance"] += 1
            result["boundary_hd95_nm"] += float(max(np.percentile(there, 95), np.percentile(back, 95)))
            result["boundary_msd_nm"] += float(np.mean(there + back))

    r, p = (surface_of(labels, None) for labels in maps)
    there, back = directed_twin(r, p, size), directed_twin(p, r, size)
    result["boundary_mask_elements"] = len(r) + len(p)
    result["boundary_mask_elements_within"] = sum(distance <= near_nm for distance in there + back)
    if r and p:
        result["boundary_mask_items_with_distance"] = 1
        result["boundary_mask_elements_with_distance"] = len(r) + len(p)
        result["boundary_mask_distance_nm"] = sum(there + back)
        result["boundary_mask_hd95_nm"] = float(max(np.percentile(there, 95), np.percentile(back, 95)))

    r, p = ([voxel for voxel in voxels if labels[voxel] and not hidden[voxel]] for labels in maps)
    there, back = directed_twin(r, p, size), directed_twin(p, r, size)
    result["boundary_voxel_items"] = int(bool(r or p))
    result["boundary_cremi_fn"] = sum(distance > 200 for distance in there) if p else len(r)
    result["boundary_cremi_fp"] = sum(distance > 200 for distance in back) if r else len(p)
    if r and p:
        result["boundary_voxel_items_with_distance"] = 1
        result["boundary_adgt_voxels"], result["boundary_adgt_nm"] = len(p), sum(back)
        result["boundary_adf_voxels"], result["boundary_adf_nm"] = len(r), sum(there)
        result["boundary_mfd_hausdorff_nm"] = (max(there) + max(back)) / 2
        result["boundary_mfd_mean_nm"] = float((np.mean(there) + np.mean(back)) / 2)
    return result


def measure(
    reference: Labels, prediction: Labels, size: tuple[float, ...], tolerance_nm: float = 4.0, **more: Any
) -> dict[str, float]:
    """Statistics with the matching that the benchmark uses."""
    table = contingency(reference, prediction, more.get("ignore"))
    sizes = table.reference_voxels[table.pair_reference], table.prediction_voxels[table.pair_prediction]
    chosen = best_matching(
        table.pair_reference, table.pair_prediction, iou(table.pair_voxels, *sizes), table.pair_voxels
    )
    pairs = table.reference_ids[table.pair_reference[chosen]], table.prediction_ids[table.pair_prediction[chosen]]
    return boundary_statistics(
        reference,
        prediction,
        size,
        matched=np.stack(pairs, axis=1),
        unmatched_reference=np.setdiff1d(table.reference_ids, pairs[0]),
        unmatched_prediction=np.setdiff1d(table.prediction_ids, pairs[1]),
        tolerance_nm=tolerance_nm,
        **more,
    )


def compute(*parts: Mapping[str, float]) -> Result:
    pooled = {name: math.fsum(part[name] for part in parts) for name in parts[0]}
    return {name: metric.compute(pooled) for name, metric in METRICS.items()}


def score(
    reference: Labels, prediction: Labels, size: tuple[float, ...], tolerance_nm: float = 4.0, **more: Any
) -> Result:
    return compute(measure(reference, prediction, size, tolerance_nm, **more))


STATISTICS = tuple(measure(np.ones((2, 2), int), np.ones((2, 2), int), (1.0, 1.0)))


@pytest.mark.parametrize("tier", TIERS)
@given(item=items())
def test_equals_all_pairs_of_points(tier: str, item: dict[str, Any]) -> None:
    with mock.patch.dict(vars(surface), TIERS[tier]):
        found = boundary_statistics(**item)
    assert found == pytest.approx(twin(item), rel=1e-9, abs=1e-9)
    assert all(math.isfinite(value) for value in found.values())


@given(item=items(), data=st.data())
def test_what_stands_in_ignored_voxels_changes_nothing(item: dict[str, Any], data: st.DataObject) -> None:
    ignore = data.draw(hnp.arrays(np.bool_, item["reference"].shape))
    item["ignore"] = ignore
    other = {
        name: np.where(ignore, data.draw(hnp.arrays(np.uint64, ignore.shape, elements=st.integers(0, 3))), item[name])
        for name in ("reference", "prediction")
    }
    assert boundary_statistics(**{**item, **other}) == boundary_statistics(**item)


@given(item=items())
def test_sides_are_alike(item: dict[str, Any]) -> None:
    swapped = {
        **item,
        "reference": item["prediction"],
        "prediction": item["reference"],
        "matched": [pair[::-1] for pair in item["matched"]],
        "unmatched_reference": item["unmatched_prediction"],
        "unmatched_prediction": item["unmatched_reference"],
    }
    one, other = compute(boundary_statistics(**item)), compute(boundary_statistics(**swapped))
    partners = {"cremi_adgt__mask_nm": "cremi_adf__mask_nm", "cremi_fp__mask": "cremi_fn__mask"}
    partners |= {there: back for back, there in partners.items()}
    for name, value in one.items():
        back = other[partners.get(name, name)]
        assert back is value if value is None else back == pytest.approx(value, rel=1e-12), name


@given(item=items(), data=st.data())
def test_ids_and_order_of_instances_are_names_only(item: dict[str, Any], data: st.DataObject) -> None:
    renamed = dict(item)
    renamed["matched"] = data.draw(st.permutations(item["matched"]))
    for side, place in (("reference", 0), ("prediction", 1)):
        old = np.unique(item[side][item[side] > 0]).tolist()
        new = dict(zip(old, data.draw(st.permutations(range(10, 10 + len(old)))), strict=True))
        renamed[side] = np.array([new.get(int(id_), 0) for id_ in item[side].flat], np.uint8).reshape(item[side].shape)
        renamed[f"unmatched_{side}"] = [new[id_] for id_ in item[f"unmatched_{side}"]]
        renamed["matched"] = [
            tuple(new[id_] if index == place else id_ for index, id_ in enumerate(pair)) for pair in renamed["matched"]
        ]
    assert boundary_statistics(**renamed) == boundary_statistics(**item)


def test_two_voxels_by_hand() -> None:
    reference, prediction = np.zeros((7, 9), int), np.zeros((7, 9), int)
    reference[3, 2] = prediction[3, 5] = 1
    ids: dict[str, Any] = {"matched": [(1, 1)], "unmatched_reference": [], "unmatched_prediction": []}

    def result(tolerance_nm: float) -> Result:
        return compute(boundary_statistics(reference, prediction, (40.0, 5.2), tolerance_nm=tolerance_nm, **ids))

    near, far = result(15.6), result(15.5)  # 3 voxels of 5.2 nm, which is more than 15.6 in binary
    assert [near[name] for name in ("nsd__instance", "nsd__pooled", "nsd__mask")] == [1.0] * 3
    assert [far[name] for name in ("nsd__instance", "nsd__pooled", "nsd__mask")] == [0.0] * 3
    for name, value in near.items():
        if name.endswith("_nm"):
            assert value == pytest.approx(15.6), name
    assert near["distance_share__instance"] == near["distance_share__mask"] == 1.0
    assert near["cremi_fp__mask"] == near["cremi_fn__mask"] == 0


def test_missed_and_invented_instances_by_hand() -> None:
    """One pair that agrees, one missed, two invented single voxels: surfaces are 8, 1, and 2 elements."""
    reference, prediction = np.zeros((20, 20), int), np.zeros((20, 20), int)
    reference[2:5, 2:5] = prediction[2:5, 2:5] = 1
    reference[10, 10], prediction[10, 12], prediction[18, 18] = 2, 2, 3
    result = score(reference, prediction, (100.0, 100.0), tolerance_nm=50.0)
    assert result["nsd__instance"] == 1 / 4
    assert result["nsd__pooled"] == 16 / (16 + 1 + 2)
    assert result["nsd__mask"] == 16 / 19
    assert result["hd95__matched_nm"] == result["msd__matched_nm"] == 0.0
    assert result["distance_share__instance"] == 1 / 4
    assert result["msd__mask_nm"] == pytest.approx((200 + 200 + 100 * math.hypot(8, 8)) / 19)
    assert result["cremi_adgt__mask_nm"] == pytest.approx((200 + 100 * math.hypot(8, 8)) / 11)
    assert result["cremi_adf__mask_nm"] == pytest.approx(200 / 10)
    assert result["cremi_score__mask_nm"] == pytest.approx((200 + 100 * math.hypot(8, 8)) / 22 + 10)
    assert result["mfd_average__mask_nm"] == pytest.approx(result["cremi_score__mask_nm"])
    assert result["mfd_hausdorff__mask_nm"] == pytest.approx((200 + 100 * math.hypot(8, 8)) / 2)
    assert (result["cremi_fp__mask"], result["cremi_fn__mask"]) == (1, 0)  # 200 nm are not farther than 200 nm


def test_contact_between_instances_is_surface_and_the_border_is_not() -> None:
    halves = np.ones((4, 6), int)
    halves[:, 3:] = 2
    assert surface.surface_positions(halves).tolist() == [2, 3, 8, 9, 14, 15, 20, 21]
    assert not len(surface.surface_positions(np.ones((4, 6), int)))
    assert surface.surface_positions(np.pad(np.ones((3, 3, 3), int), 1)).size == 26
    merged = np.ones((4, 6), int)
    result = score(halves, merged, (4.0, 4.0))
    assert result["nsd__instance"] == 0.0  # the contact is missed, and the merged instance has no surface at all
    assert result["nsd__mask"] is None  # both masks fill the image
    assert score(halves, halves, (4.0, 4.0))["nsd__instance"] == 1.0


def test_contact_with_ignored_voxels_is_no_surface() -> None:
    reference = np.zeros((5, 12), int)
    reference[1:4, 1:6] = 1  # annotated up to column 5 only
    prediction = np.zeros((5, 12), int)
    prediction[1:4, 1:10] = 1
    ignore = np.zeros((5, 12), bool)
    ignore[:, 6:] = True
    result = score(reference, prediction, (4.0, 4.0), tolerance_nm=0.0, ignore=ignore)
    assert result["nsd__instance"] == result["nsd__pooled"] == result["nsd__mask"] == 1.0
    assert result["cremi_score__mask_nm"] == result["hd95__matched_nm"] == 0.0


@pytest.mark.parametrize("size", [(40.0, 4.0, 5.0), (6.0, 8.0)])
def test_growing_by_one_voxel_moves_the_surface_by_its_size(size: tuple[float, ...]) -> None:
    for axis, edge in enumerate(size):
        box = np.zeros((14,) * len(size), int)
        box[(slice(4, 10),) * len(size)] = 1
        grown = box.copy()
        grown[tuple(slice(3, 11) if other == axis else slice(4, 10) for other in range(len(size)))] = 1
        result = score(box, grown, size, tolerance_nm=edge)
        assert result["nsd__instance"] == 1.0
        assert score(box, grown, size, tolerance_nm=edge * 0.99)["nsd__instance"] < 1.0
        assert result["hd95__matched_nm"] == result["hd95__mask_nm"] == edge
        assert result["cremi_adgt__mask_nm"] == pytest.approx(edge * 2 / 8)
        assert result["cremi_adf__mask_nm"] == 0.0
        assert result["mfd_hausdorff__mask_nm"] == edge / 2


def blobs(seed: int, shape: Voxel) -> Labels:
    """A few smooth objects that stay away from the border."""
    noise = np.random.default_rng(seed).standard_normal(shape)
    inner = np.zeros(shape, bool)
    inner[tuple(slice(2, -2) for _ in shape)] = True
    return np.asarray(ndimage.label((ndimage.gaussian_filter(noise, 2) > 0.1) & inner)[0])


def edge_of(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Surface by erosion: the same as by neighbours for what does not touch the border of the image."""
    return np.asarray(mask & ~ndimage.binary_erosion(mask, ndimage.generate_binary_structure(mask.ndim, 1)))


@pytest.mark.parametrize(("shape", "size"), [((40, 50), (5.0, 8.0)), ((20, 24, 28), (30.0, 8.0, 5.2))])
def test_agrees_with_outside_oracles_on_masks(shape: Voxel, size: tuple[float, ...]) -> None:
    reference, prediction = (blobs(seed, shape) > 0 for seed in (1, 2))
    result = score(reference.astype(int), prediction.astype(int), size, tolerance_nm=16.0)
    to_prediction = ndimage.distance_transform_edt(~prediction, sampling=size)[reference]
    to_reference = ndimage.distance_transform_edt(~reference, sampling=size)[prediction]
    assert result["cremi_adf__mask_nm"] == pytest.approx(to_prediction.mean())
    assert result["cremi_adgt__mask_nm"] == pytest.approx(to_reference.mean())
    points = [np.argwhere(mask) * np.array(size) for mask in (reference, prediction)]
    both = directed_hausdorff(*points)[0], directed_hausdorff(*points[::-1])[0]
    assert result["mfd_hausdorff__mask_nm"] == pytest.approx(sum(both) / 2)

    edges = [edge_of(mask) for mask in (reference, prediction)]
    there = ndimage.distance_transform_edt(~edges[1], sampling=size)[edges[0]]
    back = ndimage.distance_transform_edt(~edges[0], sampling=size)[edges[1]]
    assert result["hd95__mask_nm"] == pytest.approx(max(np.percentile(there, 95), np.percentile(back, 95)))
    assert result["msd__mask_nm"] == pytest.approx((there.sum() + back.sum()) / (len(there) + len(back)))
    within = (there <= 16 + 1e-6).sum() + (back <= 16 + 1e-6).sum()
    assert result["nsd__mask"] == pytest.approx(within / (len(there) + len(back)))


def test_agrees_with_scikit_image() -> None:
    metrics = pytest.importorskip("skimage.metrics")
    reference, prediction = (blobs(seed, (40, 50)) > 0 for seed in (3, 4))
    with mock.patch("em_bench_eval.boundary_statistics.PERCENTILE", 1.0):  # then it is the Hausdorff distance
        result = score(reference.astype(int), prediction.astype(int), (1.0, 1.0))
    edges = [edge_of(mask) for mask in (reference, prediction)]
    assert result["hd95__mask_nm"] == pytest.approx(metrics.hausdorff_distance(*edges))


def test_agrees_with_panoptica_where_definitions_do() -> None:
    """Same surface distances; panoptica then takes the 95th percentile of both directions together, and gives each
    direction the same weight in ASSD and NSD, while here every surface element has the same weight."""
    assd = pytest.importorskip("panoptica.metrics.assd")
    size = (30.0, 8.0, 5.2)
    reference, prediction = (blobs(seed, (20, 24, 28)) for seed in (5, 5))
    prediction = np.roll(prediction, (0, 1, -1), (0, 1, 2))  # instances keep their ids and stay off the border
    for id_ in range(1, int(reference.max()) + 1):
        pair = reference == id_, prediction == id_
        there, back = (
            getattr(assd, "__surface_distances")(one, other, voxelspacing=size) for one, other in (pair, pair[::-1])
        )
        found = compute(
            boundary_statistics(
                reference,
                prediction,
                size,
                matched=[(id_, id_)],
                unmatched_reference=[],
                unmatched_prediction=[],
                tolerance_nm=9.0,
            )
        )
        together = np.concatenate([there, back])
        assert found["msd__matched_nm"] == pytest.approx(together.mean())
        assert found["nsd__instance"] == pytest.approx((together <= 9).mean())
        assert found["hd95__matched_nm"] == pytest.approx(max(np.percentile(there, 95), np.percentile(back, 95)))


def balls(shift: int = 0) -> Labels:
    """27 balls, each with its id."""
    image = np.zeros((48, 48, 48), np.int32)
    grid = np.indices(image.shape)
    for id_, centre in enumerate(itertools.product((8, 24, 40), repeat=3), start=1):
        image[((grid - np.reshape(np.add(centre, (0, 0, shift)), (3, 1, 1, 1))) ** 2).sum(0) <= 25] = id_
    return image


def test_no_trick_beats_an_honest_prediction() -> None:
    reference, honest = balls(), balls(shift=1)
    rng = np.random.default_rng(0)
    speckle = np.where(rng.random(reference.shape) < 0.2, np.arange(reference.size).reshape(reference.shape), 0) + 28
    speckle[speckle == 28] = 0
    giant = np.zeros_like(reference)
    giant[3:46, 3:46, 3:46] = 1
    tricks = {
        "speckle flood": speckle,
        "honest and a speckle flood": np.where(honest > 0, honest, speckle),
        "everything foreground": np.ones_like(reference),
        "everything foreground, every voxel an instance": np.arange(1, reference.size + 1).reshape(reference.shape),
        "one giant instance": giant,
        "all instances merged": (honest > 0).astype(int),
        "one voxel of each": np.where(rng.random(reference.shape) < 0.01, reference, 0),
        "only the easiest": np.where(honest == 1, 1, 0),
        "nothing": np.zeros_like(reference),
    }
    size = (8.0, 8.0, 8.0)
    fair = score(reference, honest, size, tolerance_nm=8.0)
    assert fair["nsd__instance"] == fair["nsd__pooled"] == 1.0
    strict = score(reference, honest, size, tolerance_nm=4.0)
    assert 0.3 < strict["nsd__instance"] < 1.0
    for name, trick in tricks.items():
        for tolerance_nm, baseline in ((8.0, fair), (4.0, strict)):
            found = score(reference, trick, size, tolerance_nm=tolerance_nm)
            if name == "all instances merged":  # no surface moves, but all of them belong to one instance
                assert found["nsd__mask"] == baseline["nsd__mask"]
            assert found["nsd__instance"] < 0.5 * baseline["nsd__instance"], name
            assert found["nsd__pooled"] < 0.9 * baseline["nsd__pooled"], name
    assert score(reference, tricks["only the easiest"], size)["distance_share__instance"] == 1 / 27


def test_splitting_an_instance_costs() -> None:
    reference = balls()
    split = reference.copy()
    split[:24][reference[:24] == 14] = 99
    result = score(reference, split, (8.0, 8.0, 8.0), tolerance_nm=8.0)
    assert result["nsd__mask"] == 1.0
    assert 26 / 28 < result["nsd__instance"] < 27 / 28


def test_sums_over_items_in_any_order() -> None:
    size = (30.0, 8.0, 5.2)
    parts = [measure(blobs(seed, (12, 14, 16)), blobs(seed + 50, (12, 14, 16)), size) for seed in range(5)]
    parts.append(measure(blobs(1, (12, 14, 16)), np.zeros((12, 14, 16), int), size))
    result = compute(*parts)
    for order in itertools.islice(itertools.permutations(parts), 0, 720, 97):
        assert compute(*order) == result
    assert result["hd95__mask_nm"] == pytest.approx(np.mean([compute(part)["hd95__mask_nm"] for part in parts[:5]]))
    assert result["mfd_average__mask_nm"] == pytest.approx(
        np.mean([compute(part)["cremi_score__mask_nm"] for part in parts[:5]])
    )
    assert result["distance_share__mask"] == 5 / 6


def test_what_is_missing_is_none_and_never_perfect() -> None:
    empty, one = np.zeros((3, 6, 6), int), np.zeros((3, 6, 6), int)
    one[1, 2:4, 2:4] = 7
    size = (30.0, 4.0, 4.0)
    counts = ("cremi_fp__mask", "cremi_fn__mask")
    assert score(empty, empty, size) == {name: 0 if name in counts else None for name in METRICS}
    for reference, prediction, false in ((empty, one, (4, 0)), (one, empty, (0, 4))):
        result = score(reference, prediction, size)
        assert (result["cremi_fp__mask"], result["cremi_fn__mask"]) == false
        for name in METRICS:
            if name.startswith(("nsd", "distance_share")):
                assert result[name] == 0.0, name
            elif name not in counts:
                assert result[name] is None, name


def test_a_prediction_that_fills_the_image_has_no_distance() -> None:
    one = np.zeros((6, 6), int)
    one[2:4, 2:4] = 1
    result = score(one, np.ones((6, 6), int), (4.0, 4.0))
    assert result["nsd__instance"] == result["nsd__pooled"] == result["nsd__mask"] == 0.0
    assert result["hd95__matched_nm"] is None
    assert result["distance_share__instance"] == 0.0
    assert result["cremi_adgt__mask_nm"] > 0.0 == result["cremi_adf__mask_nm"]


def test_many_unmatched_speckles_are_counted() -> None:
    prediction = np.zeros((60, 60, 60), np.uint64)
    prediction[::2, ::2, ::2] = np.arange(1, 27_001, dtype=np.uint64).reshape(30, 30, 30) + np.uint64(2**63)
    reference = np.zeros((60, 60, 60), np.uint8)
    reference[20:30, 20:30, 20:30] = 3
    result = score(reference, prediction, (8.0, 8.0, 8.0), tolerance_nm=8.0)
    # one speckle is matched; voxels of the cube's surface within 8 nm of it count, and the speckle itself does not
    assert result["nsd__instance"] < 1e-5
    assert result["nsd__pooled"] < 1e-3
    assert result["distance_share__instance"] == 1 / 27_000


def test_views_are_read_as_they_are() -> None:
    big = np.zeros((20, 30), np.int16)
    big[4:12, 6:20] = 5
    nothing = np.broadcast_to(np.uint8(0), (10, 15))
    assert score(big[::2, ::2], big[::2, ::2].copy(), (4.0, 4.0))["nsd__instance"] == 1.0
    assert score(big[::2, ::2], nothing, (4.0, 4.0))["nsd__instance"] == 0.0


def test_unusable_input_is_refused() -> None:
    labels = np.ones((4, 4), int)
    no_ids: dict[str, Any] = {"matched": [], "unmatched_reference": [], "unmatched_prediction": [], "tolerance_nm": 4.0}
    with pytest.raises(InputError, match="do not fit together"):
        boundary_statistics(labels, labels[:3], (4.0, 4.0), **no_ids)
    with pytest.raises(InputError, match="do not fit together"):
        boundary_statistics(labels, labels, (4.0, 4.0, 4.0), **no_ids)
    with pytest.raises(InputError, match="do not fit together"):
        boundary_statistics(labels, labels, (4.0, 4.0), **no_ids, ignore=np.zeros((2, 2), bool))
    with pytest.raises(InputError, match="tolerance_nm"):
        boundary_statistics(labels, labels, (4.0, 4.0), **{**no_ids, "tolerance_nm": math.nan})
    with pytest.raises(InputError, match="not a label map"):
        boundary_statistics(labels > 0, labels, (4.0, 4.0), **no_ids)
    labels[0, 0] = 0
    with pytest.raises(ValueError, match="matched twice"):
        boundary_statistics(labels, labels, (4.0, 4.0), **{**no_ids, "matched": [(1, 1)], "unmatched_reference": [1]})


@pytest.mark.parametrize("name", METRICS)
def test_declarations_are_complete(name: str) -> None:
    metric = METRICS[name]
    assert name.partition("__")[2].removesuffix("_nm") in {"instance", "pooled", "mask", "matched"}
    assert metric.needs == "boundary"
    assert metric.family == ("count" if name in ("cremi_fp__mask", "cremi_fn__mask") else "boundary")
    assert name.endswith("_nm") == metric.range.endswith("nm")
    assert (metric.better == "lower") == (name.endswith("_nm") or name.startswith("cremi"))
    for text in (metric.definition, metric.formula, metric.aggregation, metric.edge_cases, metric.reference):
        assert text
        assert "{" not in text.replace("#{", "")


@pytest.mark.parametrize("tier", TIERS)
def test_every_path_of_the_search_finds_far_surfaces(tier: str) -> None:
    """Instances that are missing altogether and one that is far off, in a volume of several blocks."""
    reference = np.pad(blobs(6, (30, 30, 36)), ((0, 0), (8, 8), (10, 10)))
    prediction = np.roll(np.where(reference % 2, reference, 0), (0, 7, -9), (0, 1, 2))
    size = (30.0, 8.0, 5.2)
    ids = np.unique(prediction[prediction > 0])
    with mock.patch.dict(vars(surface), TIERS[tier]):
        found = boundary_statistics(
            reference,
            prediction,
            size,
            matched=np.stack([ids, ids], axis=1),
            unmatched_reference=np.setdiff1d(reference[reference > 0], ids),
            unmatched_prediction=[],
            tolerance_nm=20.0,
        )
    total = 0.0
    for id_ in ids:
        edges = [np.argwhere(mask) for mask in (edge_of(reference == id_), edge_of(prediction == id_))]
        scaled = [points * np.array(size) for points in edges]
        pairwise = np.sqrt(((scaled[0][:, None] - scaled[1][None]) ** 2).sum(-1))
        total += float(max(np.percentile(pairwise.min(1), 95), np.percentile(pairwise.min(0), 95)))
    assert found["boundary_hd95_nm"] == pytest.approx(total)
    missed = ndimage.distance_transform_edt(prediction == 0, sampling=size)[reference > 0]
    assert found["boundary_adf_nm"] == pytest.approx(missed.sum())
    assert found["boundary_cremi_fn"] == (missed > 200).sum()
    assert found["boundary_mfd_hausdorff_nm"] == pytest.approx(
        (missed.max() + ndimage.distance_transform_edt(reference == 0, sampling=size)[prediction > 0].max()) / 2
    )
