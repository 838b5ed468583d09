from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from scipy import ndimage
from scipy.optimize import linear_sum_assignment

from baselines.aggregation.aggregation import aggregate, score_level
from baselines.aggregation.aggregation_cuts import boxes, even, slabs
from baselines.aggregation.aggregation_levels import ALL, LEVELS, Cuts
from baselines.aggregation.aggregation_scores import MIN_EDGE_NM, FragmentCount, pieces_of
from baselines.aggregation.aggregation_scratch import Scratch, read_classes
from baselines.aggregation.aggregation_sides import (
    ArrayMaps,
    Reference,
    open_reference,
    reference_of_arrays,
)
from baselines.aggregation.aggregation_write import write_level
from baselines.aggregation.link_slices import SliceRule
from em_bench_eval.errors import InputError
from em_bench_eval.schema import ORGANELLES, Organelle
from em_bench_eval.score_volumes import open_labels, score_volumes
from lpa import DEFAULT_CONNECTIVITY

CUTS = Cuts(patch=8, block=8, link=SliceRule(0.0))
SHAPE = (3, 10, 17)  # cut into patches of 5 x 8 or 9, and blocks of the same
NAMES = {organelle.label_id: organelle.value for organelle in Organelle}
ORGANELLE_OF = {1: "mito", 2: "mito", 3: "er", 4: "er"}
# coarse voxels blown up, so that instances are larger than a voxel
VOLUMES = hnp.arrays(np.uint8, (3, 5, 9), elements=st.sampled_from([0, 0, 1, 2, 3, 4])).map(
    lambda small: np.repeat(np.repeat(small, 2, 1), 2, 2)[:, : SHAPE[1], : SHAPE[2]]
)
CLASS_OF = np.array([0, 1, 1, 3, 3], np.uint8)


def reference(ids: np.ndarray) -> Reference:
    return reference_of_arrays(ids, ORGANELLE_OF, (8.0, 8.0, 8.0), annotated=("mito", "er"))


def structure(organelle: str, axes: int) -> np.ndarray:
    reach = {6: 1, 18: 2, 26: 3}[DEFAULT_CONNECTIVITY[organelle]]
    return ndimage.generate_binary_structure(axes, min(reach, axes))


def components(classes: np.ndarray) -> np.ndarray:
    """Same-class components of an image or a volume by scipy, class by class."""
    result, total = np.zeros(classes.shape, np.int64), 0
    for value, name in NAMES.items():
        found, count = ndimage.label(classes == value, structure(name, classes.ndim))
        result[found > 0] = found[found > 0] + total
        total += count
    return result


def cut(size: int, edge: int) -> list[slice]:
    parts = -(-size // edge)
    return [slice(size * k // parts, size * (k + 1) // parts) for k in range(parts)]


def twin_regions(shape: tuple[int, ...], level: str) -> Iterator[tuple[slice, ...]]:
    """Where components are looked for at each level."""
    edges = {"L0": (1, 8, 8), "L1": (1, 8, 8), "L2": (1, 99, 99), "L4": (8, 8, 8), "L5": (99, 99, 99)}[level]
    yield from itertools.product(*(cut(size, edge) for size, edge in zip(shape, edges, strict=True)))


def twin_instances(classes: np.ndarray, level: str) -> np.ndarray:
    if level == "L3":  # any common pixel links slices
        from baselines.aggregation.link_slices import union

        flat = twin_instances(classes, "L2")
        links = [
            (a, b)
            for z in range(len(flat) - 1)
            for a, b, k, m in zip(
                flat[z].ravel(), flat[z + 1].ravel(), classes[z].ravel(), classes[z + 1].ravel(), strict=True
            )
            if a and b and k == m
        ]
        return union(int(flat.max()) + 1, np.array(links, np.int64).reshape(-1, 2))[flat]
    result, total = np.zeros(classes.shape, np.int64), 0
    for box in twin_regions(classes.shape, level):
        part = classes[box]
        found = components(part[0])[None] if level in ("L0", "L1", "L2") else components(part)
        result[box] = np.where(found > 0, found + total, 0)
        total = max(total, int(result.max()))
    return result


def same_partition(a: np.ndarray, b: np.ndarray) -> bool:
    pairs = set(zip(a.ravel().tolist(), b.ravel().tolist(), strict=True))
    return len(pairs) == len({x for x, _ in pairs}) == len({y for _, y in pairs}) and (0, 0) in pairs | {(0, 0)}


def twin_dice(predicted: np.ndarray, known: np.ndarray) -> tuple[float, float, float, int, int]:
    """Sums over one image: Dice of matched pairs, the same times size, reference voxels, counts."""
    p, r = np.unique(predicted[predicted > 0]), np.unique(known[known > 0])
    inter = np.array([[((predicted == a) & (known == b)).sum() for a in p] for b in r]).reshape(len(r), len(p))
    sizes_p = np.array([(predicted == a).sum() for a in p])
    sizes_r = np.array([(known == b).sum() for b in r])
    total = sizes_r[:, None] + sizes_p[None, :]
    rows, columns = linear_sum_assignment(-inter / np.maximum(total - inter, 1))
    dice = 2 * inter[rows, columns] / total[rows, columns] if len(rows) else np.zeros(0)
    hit = dice > 0
    return (
        float(dice.sum()),
        float((dice * sizes_r[rows]).sum()) if len(rows) else 0.0,
        float(sizes_r.sum()),
        len(r),
        len(p) - int(hit.sum()),
    )


def twin_score(classes: np.ndarray, ids: np.ndarray, level: str, organelle: str) -> dict[str, float | None]:
    value = Organelle(organelle).label_id
    predicted = np.where(classes == value, twin_instances(classes, level), 0)
    known = np.where(CLASS_OF[ids] == value, ids, 0).astype(np.int64)
    if level in ("L0", "L1", "L2"):
        items = [(predicted[box], known[box]) for box in twin_regions(ids.shape, level)]
    else:
        items = [(predicted, known)]
    if level == "L0":  # pieces of each id by themselves
        pieces = []
        for one, other in items:
            own = np.zeros_like(other)
            for id_ in np.unique(other[other > 0]):
                found, _ = ndimage.label(other[0] == id_, structure(organelle, 2))
                own[0][found > 0] = found[found > 0] + own.max()
            pieces.append((one, own))
        items = pieces
    sums = [twin_dice(one, other) for one, other in items]
    dice, weighted, voxels, n_reference, n_unmatched = (sum(parts) for parts in zip(*sums, strict=True))
    either = n_reference + n_unmatched
    return {
        "dice__instance": dice / either if either else None,
        "dice__reference": dice / n_reference if n_reference else None,
        "dice__size": weighted / voxels if n_reference else None,
        "n_reference": n_reference,
    }


@given(VOLUMES)
@settings(max_examples=12)
def test_every_level_makes_the_instances_of_its_slow_twin(classes: np.ndarray) -> None:
    semantic = CLASS_OF[classes]
    for level in LEVELS:
        found = aggregate(semantic, level, CUTS)
        assert same_partition(found.labels, twin_instances(semantic, level)), level
        ids = np.unique(found.labels[found.labels > 0])
        assert ids.tolist() == list(range(1, len(ids) + 1)) == list(found.organelle_of)
        for id_, organelle in found.organelle_of.items():
            assert set(semantic[found.labels == id_]) == {organelle.label_id}


@given(VOLUMES, VOLUMES)
@settings(max_examples=6)
def test_every_level_scores_like_its_slow_twin(classes: np.ndarray, ids: np.ndarray) -> None:
    semantic = CLASS_OF[classes]
    for level, organelle in itertools.product(LEVELS, ("mito", "er")):
        found = score_level(semantic, level, reference(ids), CUTS, min_edge_nm=0, organelles=[organelle])[organelle]
        expected = twin_score(semantic, ids, level, organelle)
        assert {key: found[key] for key in expected} == pytest.approx(expected, nan_ok=False), (level, organelle)


@given(VOLUMES, VOLUMES)
@settings(max_examples=6)
def test_no_level_changes_pixels(classes: np.ndarray, ids: np.ndarray) -> None:
    for organelle in ("mito", "er"):
        value = Organelle(organelle).label_id
        p, r = CLASS_OF[classes] == value, CLASS_OF[ids] == value
        size = int(p.sum() + r.sum())
        expected = 2 * int((p & r).sum()) / size if size else None
        for level in ALL:
            found = score_level(CLASS_OF[classes], level, reference(ids), CUTS, organelles=[organelle])
            assert found[organelle]["semantic_dice"] == expected


@given(hnp.arrays(np.bool_, (2, 9, 14)))
@settings(max_examples=30)
def test_perfect_pixels_are_worth_2f_over_1_plus_f(mask: np.ndarray) -> None:
    """Oracle against one id in pieces: the best one-to-one Dice is 2 f / (1 + f), its IoU f (models.md 6.1)."""
    ids = mask.astype(np.uint8) * 3
    truth = reference(ids)
    box = (slice(0, 2), slice(0, 9), slice(0, 14))
    count = FragmentCount(truth, dict.fromkeys(ORGANELLES, 0.0))
    count.add(truth.read(box), pieces_of(truth.read(box), ["er"]))
    found = score_level(CLASS_OF[ids], "L2", truth, CUTS, min_edge_nm=0, organelles=["er"])["er"]
    if not mask.any():
        assert count.compute() == {}
        assert found["dice__reference"] is None
        return
    f = []
    for plane in mask:
        pieces, _ = ndimage.label(plane, np.ones((3, 3)))
        if plane.any():
            f.append(np.bincount(pieces[plane]).max() / plane.sum())
    fragments = count.compute()["er"]
    assert (fragments.images, fragments.instances) == (len(f), len(f))
    assert fragments.f_mean == pytest.approx(np.mean(f))
    assert found["dice__reference"] == pytest.approx(np.mean([2 * x / (1 + x) for x in f]))
    assert found["iou__reference"] == pytest.approx(np.mean(f))
    assert found["dice__reference"] == pytest.approx(fragments.dice_mean)
    assert found["dice__size"] == pytest.approx(fragments.dice_size)
    assert found["iou__size"] == pytest.approx(fragments.f_size)


def test_small_instances_of_both_sides_are_not_judged_but_stay_pixels() -> None:
    ids = np.zeros((4, 20, 20), np.uint8)
    ids[:, 2:8, 2:8] = 1  # 4 x 6 x 6 voxels of 8 nm: a cube of 42 nm
    ids[0, 12, 12] = 2  # a speck
    semantic = CLASS_OF[ids]
    semantic[3, 17, 17] = 1  # a false speck
    # the volume is 32 nm thick, so that is all that it holds of a larger cube
    for edge, counted in ((0, 2), (20, 1), (47, 1), (49, 0)):
        found = score_level(semantic, "L5", reference(ids), CUTS, min_edge_nm=edge)["mito"]
        assert found["n_reference"] == counted
        assert found["n_prediction"] == (3 if edge == 0 else counted)
        assert found["semantic_dice"] == 2 * 145 / 291
    assert MIN_EDGE_NM["er"] == pytest.approx(2000**0.5, abs=0.1)


def test_levels_on_disk_are_those_in_memory(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    fields = np.stack([ndimage.gaussian_filter(random.standard_normal((20, 40, 50)), 2) for _ in range(3)])
    ids = (fields.argmax(0) + 1).astype(np.uint32) * (fields.max(0) > 0.02)
    truth = reference(ids)
    cuts = Cuts(patch=16, block=16)
    probability = np.stack([CLASS_OF[ids] == 1, CLASS_OF[ids] == 3]).astype(np.float32) * 0.9
    with Scratch(tmp_path, memory_voxels=0) as disk, Scratch() as memory:
        volumes = [scratch.semantic_of_maps(ArrayMaps(("mito", "er"), probability)) for scratch in (disk, memory)]
        oracle = disk.semantic_of_reference(truth)
        assert isinstance(volumes[1], np.ndarray)
        assert not isinstance(volumes[0], np.ndarray)
        for volume in (*volumes, oracle):
            np.testing.assert_array_equal(np.asarray(volume[:]), CLASS_OF[ids])
        for level in LEVELS:
            a = aggregate(volumes[0], level, cuts, scratch=disk)
            b = aggregate(volumes[1], level, cuts, scratch=memory)
            np.testing.assert_array_equal(a.labels, b.labels)
            assert a.organelle_of == b.organelle_of
            assert score_level(volumes[0], level, truth, cuts, scratch=disk) == score_level(
                volumes[1], level, truth, cuts
            )
    assert list(tmp_path.iterdir()) == []


def test_labels_can_be_written_to_an_array_of_the_caller() -> None:
    semantic = np.zeros((2, 9, 9), np.uint8)
    semantic[:, 1:4, 1:4] = 3
    out = np.full((2, 9, 9), 77, np.uint64)
    assert aggregate(semantic, "L5", out=out).labels is out
    np.testing.assert_array_equal(out, semantic // 3)


def test_a_written_level_scores_like_one_in_memory(tmp_path: Path) -> None:
    ids = np.repeat(np.random.default_rng(1).integers(0, 5, (4, 3, 4)), 4, 2).repeat(4, 1).astype(np.uint8)
    path = tmp_path / "out" / "cell.zarr"
    for level in ("L4", "L5"):
        found = write_level(CLASS_OF[ids], level, path, (8, 8, 8), CUTS, annotated=("mito", "er"), overwrite=True)
        known = aggregate(CLASS_OF[ids], level, CUTS)
        np.testing.assert_array_equal(np.asarray(found.labels[:]), known.labels)
        assert found.organelle_of == known.organelle_of
        result = score_volumes(open_labels(path), reference(ids).labels).compute()
        expected = score_level(CLASS_OF[ids], level, reference(ids), CUTS, min_edge_nm=0)
        for organelle in ("mito", "er"):
            assert {key: result[f"{organelle}/{key}"] for key in expected[organelle]} == expected[organelle]
    assert [child.name for child in path.parent.iterdir()] == ["cell.zarr"]
    with pytest.raises(InputError, match="exists"):
        write_level(CLASS_OF[ids], "L5", path, (8, 8, 8))


@given(hnp.arrays(np.float64, (3, 4, 5), elements=st.sampled_from([0.0, 0.2, 0.3, 0.4, 0.5])))
def test_the_most_probable_class_wins_and_background_wins_ties(raw: np.ndarray) -> None:
    probability = raw / np.maximum(raw.sum(0), 1)
    maps = ArrayMaps(("mito", "er", "distance:mito", "golgi"), np.insert(probability, 2, 1.0, axis=0)[:, None])
    probability = maps.read((slice(None),) * 3, ("mito", "er", "golgi"))[:, 0]
    found = np.asarray(Scratch().semantic_of_maps(maps)[0])
    for place in np.ndindex(4, 5):
        values = probability[(slice(None), *place)]
        best = int(np.argmax(values))
        expected = 0 if 1 - values.sum() >= values.max() else (1, 3, 5)[best]
        assert found[place] == expected


def test_what_nobody_annotated_does_not_count() -> None:
    ids = np.zeros((2, 12, 12), np.uint8)
    ids[:, 1:5, 1:5] = 1
    semantic = CLASS_OF[ids]
    semantic[:, 7:11, 7:11] = 1
    hidden = np.zeros(ids.shape, bool)
    hidden[:, 6:, 6:] = True
    truth = reference_of_arrays(ids, ORGANELLE_OF, (8, 8, 8), ignore=hidden)
    for level in ALL:
        found = score_level(semantic, level, truth, CUTS, min_edge_nm=0, organelles=["mito"])["mito"]
        assert (found["dice__instance"], found["semantic_dice"]) == (1.0, 1.0), level


def test_a_reference_of_a_label_map_per_organelle(tmp_path: Path) -> None:
    import tifffile

    mito, er = np.zeros((3, 6, 6), np.uint8), np.zeros((3, 6, 6), np.uint8)
    mito[:, :3], er[:, 2:, 3:] = 1, 1  # the same id, and a corner that both claim: the first in order has it
    for name, labels in (("mito", mito), ("er", er)):
        tifffile.imwrite(tmp_path / f"{name}.tif", labels, photometric="minisblack")
    truth = open_reference(tmp_path, voxel_size_nm=(8, 8, 8))
    box = truth.read((slice(0, 3), slice(0, 6), slice(0, 6)))
    np.testing.assert_array_equal(box.classes, np.where(mito, 1, np.where(er, 3, 0)))
    assert len(np.unique(box.ids)) == 3
    with pytest.raises(InputError, match="voxel size"):
        open_reference(tmp_path)


def test_ids_of_any_size_are_looked_up() -> None:
    ids = np.zeros((1, 2, 3), np.uint64)
    ids[0, 0] = (2**40, 5, 0)
    truth = reference_of_arrays(ids, {2**40: "er", 5: "mito"}, (8, 8, 8))
    whole = (slice(0, 1), slice(0, 2), slice(0, 3))
    assert truth.classes(whole)[0, 0].tolist() == [3, 1, 0]
    assert truth.organelles == ("mito", "er")
    for table in ({2**40: "er"}, {5: "mito", 2: "mito"}):
        with pytest.raises(InputError, match="without an organelle"):
            reference_of_arrays(ids, table, (8, 8, 8)).classes(whole)


def test_unusable_input_is_refused() -> None:
    ids = np.zeros((2, 9, 9), np.uint8)
    with pytest.raises(InputError, match="did you mean 'L5'"):
        aggregate(ids, "L55")
    with pytest.raises(InputError, match="differ in shape"):
        score_level(np.zeros((2, 9, 8), np.uint8), "L1", reference(ids))
    with pytest.raises(InputError, match="no organelle"):
        read_classes(np.full((2, 2, 2), 9), (slice(0, 2), slice(0, 2), slice(0, 2)))
    with pytest.raises(InputError, match="a length"):
        score_level(ids, "L1", reference(ids), min_edge_nm=-1)
    with pytest.raises(InputError, match="8 voxels"):
        Cuts(patch=4)
    with Scratch() as scratch, pytest.raises(InputError, match="hold no organelle"):
        scratch.semantic_of_maps(ArrayMaps(("boundary:mito",), np.zeros((1, 2, 2, 2))))


@given(st.integers(1, 60), st.integers(1, 25))
def test_cuts_are_even_and_cover(size: int, most: int) -> None:
    parts = even(size, most)
    edges = [part.stop - part.start for part in parts]
    assert max(edges) <= most
    assert max(edges) - min(edges) <= 1
    assert len(parts) == -(-size // most)
    assert [k for part in parts for k in range(part.start, part.stop)] == list(range(size))
    seen = np.zeros((3, size, 4), int)
    for box in boxes(seen.shape, (2, most, 4)):
        seen[box] += 1
    assert (seen == 1).all()
    assert sum(box[0].stop - box[0].start for box in slabs((7, size, 3))) == 7
