"""Bootstrap intervals: the truth of a known distribution, clusters, and a slow twin."""

from __future__ import annotations

import numpy as np
import pytest

from em_bench_eval import Evaluation
from em_bench_eval.confidence import intervals

KEYS = ["mito/dice__instance", "mito/semantic_dice", "er/pq", "macro/dice__instance"]


def evaluation(hits: list[bool]) -> Evaluation:
    result = Evaluation()
    one = np.ones((2, 2), int)
    for hit in hits:
        result.add({"mito": one * hit}, {"mito": one}, voxel_size_nm=(8, 8))
    return result


def test_the_interval_of_a_share_is_the_binomial_one() -> None:
    hits = [k % 4 != 0 for k in range(400)]  # a share of 0.75
    items = [statistics for _, statistics in evaluation(hits).items()]
    found = intervals(items, KEYS)
    low, high = found["mito/dice__instance"] or (0, 0)
    half = 1.96 * np.sqrt(0.75 * 0.25 / 400)
    assert (low, high) == pytest.approx((0.75 - half, 0.75 + half), abs=0.01)
    assert found["macro/dice__instance"] == found["mito/dice__instance"]
    assert found["er/pq"] is None
    assert intervals(items, KEYS) == found  # the same seed, the same bits
    assert intervals(items, KEYS, seed=1) != found


def test_clusters_widen_the_interval() -> None:
    hits = [k < 60 for k in range(80)]
    items = [statistics for _, statistics in evaluation(hits).items()]
    alone = intervals(items, KEYS[:1])["mito/dice__instance"] or (0, 0)
    together = intervals(items, KEYS[:1], clusters=[str(k // 20) for k in range(80)])["mito/dice__instance"] or (0, 0)
    assert together[1] - together[0] > 2 * (alone[1] - alone[0])


def test_one_cluster_has_no_interval() -> None:
    items = [statistics for _, statistics in evaluation([True, False]).items()]
    assert intervals(items, KEYS, clusters=["v", "v"]) == dict.fromkeys(KEYS)
    assert intervals([], KEYS) == dict.fromkeys(KEYS)


def test_an_organelle_of_one_volume_has_no_interval_beside_others_that_have_one() -> None:
    one = np.ones((2, 2), int)
    result = Evaluation()
    for index in range(4):
        maps = {"mito": one} if index < 3 else {"mito": one, "er": 0 * one}
        reference = {"mito": one * (index > 0)} if index < 3 else {"mito": one, "er": one}
        result.add(maps, reference, voxel_size_nm=(8, 8))
    items = [statistics for _, statistics in result.items()]
    found = intervals(items, KEYS, clusters=["a", "b", "c", "d"])
    assert found["er/pq"] is None  # only in d: all samples would be the same
    assert found["mito/dice__instance"] is not None
    assert found["macro/dice__instance"] is not None


def test_each_resample_is_a_score_of_resampled_images() -> None:
    hits = [True, False, True]
    items = [statistics for _, statistics in evaluation(hits).items()]
    found = intervals(items, KEYS[:1], resamples=50, level=1 - 1e-9)["mito/dice__instance"] or (0, 0)
    possible = {evaluation([a, b, c]).compute()["mito/dice__instance"] for a in hits for b in hits for c in hits}
    assert all(min(abs(value - other) for other in possible) < 1e-6 for value in found)
