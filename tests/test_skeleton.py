"""Network metrics on skeletons: equal to slow twins and to hand counts, sensitive to one cut, and hard to game."""

from __future__ import annotations

import itertools
import math

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from em_bench_eval import components, skeleton_graph, skeleton_statistics, thinning
from em_bench_eval.metrics_skeleton import METRICS
from em_bench_eval.thinning import skeletonise

Labels = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
NM = (8.0, 8.0, 8.0)


def measure(
    reference: Labels, prediction: Labels, voxel_size_nm: tuple[float, ...] = NM, ignore: Mask | None = None
) -> dict[str, float]:
    return skeleton_statistics.skeleton_statistics(reference, prediction, voxel_size_nm[-reference.ndim :], ignore)


def metrics(
    reference: Labels, prediction: Labels, voxel_size_nm: tuple[float, ...] = NM, ignore: Mask | None = None
) -> dict[str, float | None]:
    statistics = measure(reference, prediction, voxel_size_nm, ignore)
    return {name: metric.compute(statistics) for name, metric in METRICS.items()}


def tubules(shape: tuple[int, ...], paths: list[list[tuple[int, ...]]], radius: float = 2.5) -> Labels:
    """One instance per path: all voxels within ``radius`` voxels of its corner-to-corner segments."""
    labels = np.zeros(shape, np.int64)
    places = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"), axis=-1).astype(float)
    for id_, path in enumerate(paths, 1):
        for start, end in itertools.pairwise(path):
            a, b = np.array(start, float), np.array(end, float)
            along = np.clip((places - a) @ (b - a) / ((b - a) @ (b - a)), 0, 1)
            labels[((places - a - along[..., None] * (b - a)) ** 2).sum(-1) <= radius**2] = id_
    return labels


# --------------------------------------------------------------------------------------------------------- the twin


def twin(reference: Labels, prediction: Labels, size: tuple[float, ...], ignore: Mask) -> dict[str, float]:
    """Everything again from the skeletons, voxel by voxel, with dictionaries, depth-first search and Kruskal."""
    sides = {}
    for name, labels in (("reference", reference), ("prediction", prediction)):
        skeleton = skeletonise(labels, size)
        places = [tuple(int(i) for i in np.unravel_index(voxel, labels.shape)) for voxel in skeleton.voxels]
        sides[name] = dict(zip(places, skeleton.radius_nm.tolist(), strict=True))
    thickest: dict[int, float] = {}
    for place, radius in sides["reference"].items():
        thickest[int(reference[place])] = max(radius, thickest.get(int(reference[place]), 0.0))

    def on(place: tuple[int, ...]) -> bool:
        there = int(reference[place])
        return there > 0 and sides["prediction"][place] <= 2 * thickest[there] + min(size)

    r_voxels = [place for place in sides["reference"] if not ignore[place]]
    p_voxels = [place for place in sides["prediction"] if not ignore[place]]
    valid = {int(id_) for id_ in np.unique(prediction) if id_}
    for id_ in list(valid):
        own = [place for place in p_voxels if prediction[place] == id_]
        if not any(map(on, own)) or 2 * sum(map(on, own)) < len(own):
            valid.discard(id_)

    edges = []
    for a in r_voxels:
        for b in r_voxels:
            if a < b and max(abs(i - j) for i, j in zip(a, b, strict=True)) == 1 and reference[a] == reference[b]:
                step = tuple(j - i for i, j in zip(a, b, strict=True))
                length = math.sqrt(sum((s * edge) ** 2 for s, edge in zip(step, size, strict=True)))
                edges.append((length, step, a, b))
    group = {place: place for place in r_voxels}

    def find(place: tuple[int, ...]) -> tuple[int, ...]:
        while group[place] != place:
            place = group[place]
        return place

    forest = []
    for length, _, a, b in sorted(edges):
        if find(a) != find(b):
            group[find(a)] = find(b)
            forest.append((length, a, b))

    for id_ in list(valid):
        held = 0
        for instance in {int(reference[place]) for place in r_voxels}:
            all_of_it = [place for place in r_voxels if reference[place] == instance]
            within = {place for place in all_of_it if prediction[place] == id_}
            nm = sum(length for length, a, b in forest if a in within and b in within)
            held += nm > 100 or (bool(within) and 2 * len(within) >= len(all_of_it))
        if held > 1:
            valid.discard(id_)

    def squares(followed: list[tuple[tuple[int, ...], tuple[int, ...]]]) -> float:
        """Depth-first search over the followed edges; the length of a run is that of the forest's edges in it."""
        near: dict[tuple[int, ...], list[tuple[int, ...]]] = {place: [] for place in r_voxels}
        for a, b in followed:
            near[a].append(b)
            near[b].append(a)
        seen: set[tuple[int, ...]] = set()
        total = 0.0
        for start in r_voxels:
            if start in seen:
                continue
            stack, run = [start], {start}
            while stack:
                for other in near[stack.pop()]:
                    if other not in run:
                        run.add(other)
                        stack.append(other)
            seen |= run
            chosen = set(followed)
            total += sum(length for length, a, b in forest if a in run and b in run and (a, b) in chosen) ** 2
        return total

    right = [(a, b) for _, _, a, b in edges if prediction[a] == prediction[b] and int(prediction[a]) in valid]
    components = {}
    for name, labels in (("reference", reference), ("prediction", prediction)):
        found, _ = ndimage.label(labels > 0, np.ones((3,) * labels.ndim))
        components[name] = [n for n in np.bincount(found[~ignore])[1:].tolist() if n]
    r_sizes, p_sizes = components["reference"], components["prediction"]
    return {
        "skeleton_reference": len(r_voxels),
        "skeleton_reference_inside": sum(prediction[place] > 0 for place in r_voxels),
        "skeleton_prediction": len(p_voxels),
        "skeleton_prediction_inside": sum(on(place) for place in p_voxels),
        "skeleton_nm": sum(length for length, _, _ in forest),
        "run_squares_nm2": squares(right),
        "ideal_squares_nm2": squares([(a, b) for _, _, a, b in edges]),
        "betti0_error": abs(len(r_sizes) - len(p_sizes)),
        "betti0_items": int(bool(r_sizes or p_sizes)),
        "component_voxels_reference": sum(r_sizes),
        "component_voxels_prediction": sum(p_sizes),
        "largest_voxels_reference": max(r_sizes, default=0),
        "largest_voxels_prediction": max(p_sizes, default=0),
    }


@st.composite
def items(draw: st.DrawFn) -> tuple[Labels, Labels, Mask]:
    """Blocky random labels, so that instances have skeletons of some length, touch, merge and split."""
    shape = draw(st.one_of(st.tuples(*[st.integers(1, 5)] * 2), st.tuples(*[st.integers(1, 3)] * 3)))
    ids = st.sampled_from([0, 1, 1, 2, 7])
    coarse = [draw(hnp.arrays(np.int64, shape, elements=ids)) for _ in range(2)]
    hidden = draw(hnp.arrays(np.bool_, shape, elements=st.sampled_from([False, False, False, True])))
    blocks = [np.kron(part, np.ones((4,) * len(shape), np.int64)) for part in coarse]
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    for part in blocks:
        part[rng.random(part.shape) < 0.03] = 0
    return blocks[0], blocks[1], np.kron(hidden, np.ones((4,) * len(shape), np.int8)).astype(bool)


@given(items(), st.sampled_from([NM, (30.0, 8.0, 8.0)]), st.booleans())
@settings(max_examples=40, deadline=None)
def test_statistics_equal_the_slow_twin(
    item: tuple[Labels, Labels, Mask], voxel_size_nm: tuple[float, ...], hide: bool
) -> None:
    reference, prediction, ignore = item
    size = voxel_size_nm[-reference.ndim :]
    found = measure(reference, prediction, size, ignore if hide else None)
    expected = twin(reference, prediction, size, ignore if hide else np.zeros_like(ignore))
    assert found.keys() == expected.keys()
    assert found == {name: pytest.approx(value, rel=1e-12) for name, value in expected.items()}


@pytest.mark.skipif(components.kernels() is None, reason="numba does not work here")
@given(items())
@settings(max_examples=25, deadline=None)
def test_statistics_are_the_same_without_numba(item: tuple[Labels, Labels, Mask]) -> None:
    reference, prediction, ignore = item
    compiled = measure(reference, prediction, NM, ignore)
    with pytest.MonkeyPatch.context() as patch:
        for module in (thinning, skeleton_graph, components):
            patch.setattr(module, "kernels", lambda: None)
        assert measure(reference, prediction, NM, ignore) == compiled


@given(items())
@settings(max_examples=25, deadline=None)
def test_ids_do_not_matter_and_values_stay_in_range(item: tuple[Labels, Labels, Mask]) -> None:
    reference, prediction, ignore = item
    rename = np.array([0, 9, 3, 0, 0, 0, 0, 1])
    assert measure(rename[reference], (rename * 2**40)[prediction], NM, ignore) == measure(
        reference, prediction, NM, ignore
    )
    values = metrics(reference, prediction, NM, ignore)
    for name in ("cldice__pooled", "cldice_precision__pooled", "cldice_sensitivity__pooled", "erl_normalised__pooled"):
        value = values[name]
        assert value is None or 0.0 <= value <= 1.0
    same = metrics(reference, reference, NM, ignore)
    assert {same["cldice__pooled"], same["erl_normalised__pooled"]} <= {None, 1.0}
    assert same["betti0_error__item"] in (None, 0.0)


# ---------------------------------------------------------------------------------------------------- counts by hand


def test_one_line_by_hand() -> None:
    """A line of 41 pixels, 8 nm each: 40 edges. The prediction misses the pixel in the middle."""
    reference = np.zeros((5, 45), np.int64)
    reference[2, 2:43] = 1
    prediction = reference.copy()
    prediction[2, 22] = 0
    found = measure(reference, prediction)
    assert found == {
        "skeleton_reference": 41,
        "skeleton_reference_inside": 40,
        "skeleton_prediction": 40,
        "skeleton_prediction_inside": 40,
        "skeleton_nm": 40 * 8.0,
        "run_squares_nm2": 2 * (19 * 8.0) ** 2,
        "ideal_squares_nm2": (40 * 8.0) ** 2,
        "betti0_error": 1,
        "betti0_items": 1,
        "component_voxels_reference": 41,
        "component_voxels_prediction": 40,
        "largest_voxels_reference": 41,
        "largest_voxels_prediction": 20,
    }
    values = metrics(reference, prediction)
    assert values["erl_nm__pooled"] == pytest.approx(2 * 152**2 / 320)
    assert values["erl_reference_nm__pooled"] == 320
    assert values["erl_normalised__pooled"] == pytest.approx(2 * 19**2 / 40**2)
    assert values["cldice_sensitivity__pooled"] == pytest.approx(40 / 41)
    assert values["cldice__pooled"] == pytest.approx(2 * (40 / 41) / (1 + 40 / 41))
    assert values["largest_share_prediction__pooled"] == 0.5


def test_lengths_are_physical() -> None:
    """A line along z in voxels of 30 x 8 x 8 nm."""
    line = np.zeros((11, 5, 5), np.int64)
    line[:, 2, 2] = 1
    assert metrics(line, line, (30.0, 8.0, 8.0))["erl_nm__pooled"] == 300
    diagonal = np.zeros((12, 12), np.int64)
    diagonal[np.arange(12), np.arange(12)] = 1
    assert metrics(diagonal, diagonal, (3.0, 4.0))["erl_nm__pooled"] == pytest.approx(55)


def test_a_change_of_id_ends_a_run() -> None:
    reference = np.zeros((5, 41), np.int64)
    reference[2] = 1
    prediction = reference.copy()
    prediction[2, 21:] = 2
    assert measure(reference, prediction)["run_squares_nm2"] == (20 * 8.0) ** 2 + (19 * 8.0) ** 2


def test_a_ring_cut_once_is_still_one_run() -> None:
    """Where the spanning forest happens to open the ring makes no difference: only the cut edges are lost."""
    y, x = np.indices((41, 41)) - 20
    ring = ((np.hypot(y, x) >= 14) & (np.hypot(y, x) <= 18)).astype(np.int64)
    whole = measure(ring, ring)
    for column in (0, 40):
        cut = ring.copy()
        cut[20:22, min(column, 20) : max(column, 21)] = 0
        found = measure(ring, cut)
        assert found["run_squares_nm2"] > (whole["skeleton_nm"] - 4 * 8 * 1.5) ** 2


def test_merge_of_two_tubules_counts_zero() -> None:
    reference = tubules((16, 40, 60), [[(8, 10, 5), (8, 10, 55)], [(8, 28, 5), (8, 28, 55)]])
    assert metrics(reference, reference)["erl_normalised__pooled"] == 1.0
    merged = (reference > 0).astype(np.int64)
    assert metrics(reference, merged)["erl_normalised__pooled"] == 0.0
    assert metrics(reference, merged)["cldice__pooled"] == 1.0  # clDice does not see merges


def test_a_touch_is_no_merge() -> None:
    """The first prediction also takes 9 voxels (72 nm) of the second tubule, then 15 (120 nm)."""
    reference = tubules((16, 40, 60), [[(8, 10, 5), (8, 10, 55)], [(8, 28, 5), (8, 28, 55)]])
    for extent, tolerated in ((9, True), (15, False)):
        prediction = reference.copy()
        bite = prediction[:, 20:, 30 : 30 + extent]
        bite[bite == 2] = 1
        found = metrics(reference, prediction)["erl_normalised__pooled"]
        assert found is not None
        assert (found > 0.6) == tolerated


def test_small_instances_can_be_merged_too() -> None:
    """Two beads of 40 nm, shorter than the tolerated contact, under one id: half of the skeleton voxels is enough."""
    reference = np.zeros((7, 30), np.int64)
    reference[3, 3:8] = 1
    reference[3, 20:25] = 2
    assert metrics(reference, reference)["erl_normalised__pooled"] == 1.0
    assert metrics(reference, (reference > 0).astype(np.int64))["erl_normalised__pooled"] == 0.0


def test_ignored_region_counts_for_nothing() -> None:
    reference = tubules((16, 30, 80), [[(8, 15, 5), (8, 15, 75)]])
    ignore = np.zeros(reference.shape, bool)
    ignore[:, :, 40:] = True
    prediction = reference.copy()
    prediction[:, :, 45:] = 0
    prediction[2:5, 2:6, 60:70] = 3
    found = metrics(reference, prediction, NM, ignore)
    assert found["erl_normalised__pooled"] == found["cldice__pooled"] == 1.0
    assert found["betti0_error__item"] == 0.0
    assert found["erl_nm__pooled"] == pytest.approx(8 * 34, abs=8 * 3)  # from the tubule's end at 5 to the border at 39
    assert metrics(reference, prediction)["erl_normalised__pooled"] < 0.5


def test_undefined_is_none() -> None:
    nothing, line = np.zeros((5, 30), np.int64), np.zeros((5, 30), np.int64)
    line[2, 3:27] = 1
    assert set(metrics(nothing, nothing).values()) == {None}
    invented = metrics(nothing, line)
    assert invented["cldice__pooled"] == invented["cldice_precision__pooled"] == 0.0
    assert invented["cldice_sensitivity__pooled"] is None
    assert invented["erl_nm__pooled"] is None
    assert invented["erl_normalised__pooled"] is None
    missed = metrics(line, nothing)
    for name in ("cldice__pooled", "cldice_precision__pooled", "cldice_sensitivity__pooled", "erl_nm__pooled"):
        assert missed[name] == 0.0
    point = np.zeros((5, 5), np.int64)
    point[2, 2] = 1
    assert metrics(point, point)["erl_normalised__pooled"] is None  # a point has no length
    assert metrics(point, point)["cldice__pooled"] == 1.0


def test_statistics_of_items_add_up() -> None:
    """Two lines of different length: pooled over nm, not averaged over items."""
    parts = []
    for length in (11, 21):
        line = np.zeros((5, 30), np.int64)
        line[2, :length] = 1
        parts.append(measure(line, line))
    pooled = {name: parts[0][name] + parts[1][name] for name in parts[0]}
    assert METRICS["erl_nm__pooled"].compute(pooled) == pytest.approx((80**2 + 160**2) / 240)
    assert METRICS["betti0_error__item"].compute(pooled) == 0.0


def test_declarations_are_complete() -> None:
    for name, metric in METRICS.items():
        assert metric.family == "network"
        assert metric.needs == "skeleton"
        for text in (metric.definition, metric.formula, metric.range, metric.aggregation, metric.edge_cases):
            assert len(text) > 2, name
        assert metric.reference


# ------------------------------------------------------------------------------------------------------ a network


@pytest.fixture(scope="module")
def network() -> Labels:
    """Two ER-like instances of tubules: a long one with branches and no rings, and a short one."""
    shape = (32, 96, 128)
    main = [(16, 12, 6), (16, 16, 50), (10, 36, 76), (20, 50, 122)]
    branches = [[(16, 16, 50), (24, 48, 32), (24, 88, 24)], [(10, 36, 76), (8, 76, 84), (20, 90, 120)]]
    labels = (tubules(shape, [main, *branches], 3.0) > 0).astype(np.int64)
    labels[(tubules(shape, [[(26, 6, 70), (26, 8, 122)]], 3.0) > 0) & (labels == 0)] = 2
    assert ndimage.label(labels > 0, np.ones((3, 3, 3)))[1] == 2
    return labels


def instances(mask: Mask) -> Labels:
    """What labelling the components of a semantic prediction gives."""
    return np.asarray(ndimage.label(mask, np.ones((3, 3, 3)))[0], np.int64)


def dice(reference: Labels, prediction: Labels) -> float:
    return 2 * float(((reference > 0) & (prediction > 0)).sum()) / float((reference > 0).sum() + (prediction > 0).sum())


def test_one_cut_moves_erl_and_hardly_any_voxel() -> None:
    """A trunk with eight branches, cut through in the middle, one voxel wide."""
    branches = [[(7, 70, x), (7, 70 + way, x + 6)] for x in (40, 80, 120, 160) for way in (-62, 62)]
    tree = tubules((14, 140, 200), [[(7, 70, 6), (7, 70, 194)], *branches])
    reference = (tree > 0).astype(np.int64)
    cut = reference > 0
    cut[:, :, 100] = False
    prediction = instances(cut)
    assert prediction.max() == 2
    before, after = metrics(reference, reference), metrics(reference, prediction)
    assert 1 - dice(reference, prediction) < 0.001
    assert before["erl_normalised__pooled"] == 1.0
    assert after["erl_normalised__pooled"] == pytest.approx(0.5, abs=0.02)
    assert after["betti0_error__item"] == 1.0
    assert after["cldice__pooled"] > 0.99  # clDice hardly sees it: that is what ERL is for


def honest(network: Labels) -> Labels:
    """A fair prediction: rough boundary, one tubule cut, some invented blobs."""
    rng = np.random.default_rng(0)
    field = ndimage.gaussian_filter(rng.standard_normal(network.shape), 2.0)
    depth = ndimage.distance_transform_edt(network > 0) - ndimage.distance_transform_edt(network == 0)
    mask = depth + 0.7 * field / field.std() > 0
    mask[:, 50:53, :60] = False
    mask[3:8, 80:88, 40:48] = True
    return instances(mask)


def test_nothing_cheap_beats_an_honest_prediction(network: Labels) -> None:
    fair = honest(network)
    baseline = metrics(network, fair)
    assert baseline["cldice__pooled"] > 0.85
    assert baseline["erl_normalised__pooled"] > 0.3
    rng = np.random.default_rng(1)
    ball = ((np.indices(network.shape) - np.array([14, 34, 70]).reshape(3, 1, 1, 1)) ** 2).sum(0) <= 30**2
    speckle = np.arange(1, network.size + 1).reshape(network.shape) * (rng.random(network.shape) < 0.02)
    lattice = np.zeros_like(network)
    lattice[::4, ::4, ::4] = np.arange(1, lattice[::4, ::4, ::4].size + 1).reshape(lattice[::4, ::4, ::4].shape)
    blocks = np.indices(network.shape) // 20
    cubes = blocks[0] * 100 + blocks[1] * 10 + blocks[2] + 1
    attacks = {
        "nothing": np.zeros_like(network),
        "everything": np.ones_like(network),
        "everything in cubes": cubes,
        "everything but the border": np.pad(np.ones(np.array(network.shape) - 2, np.int64), 1),
        "one big ball": ball.astype(np.int64),
        "speckle": speckle,
        "lattice of voxels": lattice,
        "every voxel of the mask an instance": np.arange(1, network.size + 1).reshape(network.shape) * (fair > 0),
        "the inverse": (network == 0).astype(np.int64),
    }
    for name, prediction in attacks.items():
        values = metrics(network, prediction)
        assert values["cldice__pooled"] <= baseline["cldice__pooled"], name
        assert values["erl_normalised__pooled"] < baseline["erl_normalised__pooled"], name
    merged = metrics(network, (fair > 0).astype(np.int64))
    assert merged["erl_normalised__pooled"] == 0.0
    noisy = np.where(fair > 0, fair, speckle)
    assert metrics(network, noisy)["erl_normalised__pooled"] <= baseline["erl_normalised__pooled"]
    assert metrics(network, noisy)["cldice__pooled"] < baseline["cldice__pooled"]


def test_flooding_a_cube_around_one_tubule_scores_nothing() -> None:
    """The skeleton of a cube is its centre, which lies in the tubule: inside, but far too thick."""
    reference = tubules((40, 40, 40), [[(20, 20, 2), (20, 20, 37)]], 3.0)
    flood = np.ones_like(reference)
    centre = skeletonise(flood, NM).voxels
    assert (reference.reshape(-1)[centre] > 0).all()
    values = metrics(reference, flood)
    assert values["cldice__pooled"] == values["erl_nm__pooled"] == 0.0
    assert values["cldice_sensitivity__pooled"] == 1.0
    hidden = np.zeros(reference.shape, bool)
    hidden.reshape(-1)[centre] = True  # nor can the centre hide in the ignored region
    assert metrics(reference, flood, NM, hidden)["erl_nm__pooled"] == 0.0


def test_a_thicker_prediction_is_not_punished(network: Labels) -> None:
    """One voxel more all around doubles the volume of a tubule, and leaves its centre line."""
    thick = instances(ndimage.binary_dilation(network > 0))
    assert dice(network, thick) < 0.85
    values = metrics(network, thick)
    assert values["cldice__pooled"] > 0.97
    assert values["erl_normalised__pooled"] > 0.97


def test_a_hundred_thousand_speckles() -> None:
    """Each is an instance of one voxel: no loop over instances, and nothing to gain."""
    shape = (96, 160, 192)
    reference = tubules(shape, [[(48, 80, 5), (48, 80, 185)]], 4.0)
    speckle = np.zeros(shape, np.int64)
    speckle[::3, ::3, ::3] = np.arange(1, 110593).reshape(32, 54, 64)[: len(speckle[::3])]
    values = metrics(reference, np.where(reference > 0, reference, speckle))
    assert values["erl_normalised__pooled"] == 1.0
    assert values["cldice_sensitivity__pooled"] == 1.0
    assert values["cldice_precision__pooled"] < 0.01
    assert values["betti0_error__item"] > 90_000
