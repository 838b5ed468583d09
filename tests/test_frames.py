"""Volumes that share a frame: cut at common positions, as well as can be, and never nearer than the gap."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataset_builder import frames
from dataset_builder.lazy import Constant
from dataset_builder.leaks import Placed, Site, check_leaks
from dataset_builder.split_file import as_split_file, read_split_file
from dataset_builder.splits import SplitPolicy
from em_bench_eval.errors import InputError
from em_bench_eval.schema import FOLDS, Fold, Frame, Organelle, Span, Volume, VoxelSize

Vector = tuple[float, float, float]
SHARES: tuple[tuple[Fold, float], ...] = (("train", 0.6), ("validation", 0.15), ("test", 0.25))


def lay(
    *places: tuple[Vector, tuple[int, int, int], float | Vector], published: Fold | None = None, name: str = "cell"
) -> list[Volume]:
    """Volumes of one frame from their origins (nm), shapes and voxel sizes."""
    sizes = [VoxelSize(*(nm if isinstance(nm, tuple) else (nm,) * 3)) for _, _, nm in places]
    spans = tuple(Span(origin[0], size.z, shape[0]) for (origin, shape, _), size in zip(places, sizes, strict=True))
    return [
        Volume(
            volume_id=f"crop{number}",
            image=Constant(0, shape, np.uint8),
            semantic=Constant(0, shape, np.uint8),
            voxel_size=size,
            source="made",
            specimen="specimen",
            cell_type="",
            modality="FIB-SEM",
            annotated={Organelle.MITO: "manual"},
            published_fold=published,
            frame=Frame(name, spans),
            origin_nm=origin,
        )
        for number, ((origin, shape, _), size) in enumerate(zip(places, sizes, strict=True))
    ]


def rows_of(policy: SplitPolicy, volumes: list[Volume]) -> list[Placed]:
    return [
        Placed(volume.volume_id, z, volume.voxel_size.z, volume.specimen, fold, policy.domain_of(volume), None)
        for volume in volumes
        for z, fold in policy.folds_of(volume).items()
    ]


def sites_of(volumes: list[Volume]) -> dict[str, Site]:
    found = {}
    for volume in volumes:
        assert volume.frame is not None
        assert volume.origin_nm is not None
        z, y, x = (int(size) * nm for size, nm in zip(volume.image.shape, volume.voxel_size, strict=True))
        found[volume.volume_id] = Site(volume.frame.name, volume.origin_nm, (z, y, x))
    return found


def check(policy: SplitPolicy, volumes: list[Volume]) -> None:
    check_leaks(rows_of(policy, volumes), policy.gap_nm, sites_of(volumes))


steps = st.sampled_from([2.0, 2.62, 4.0, 5.24, 8.0, 16.0, 30.0])
starts = st.integers(-60, 120).map(lambda halves: halves * 4.0)  # nm: half a voxel of 8 nm, and of no other
crops = st.tuples(st.tuples(starts, starts, starts), st.tuples(st.integers(1, 40), st.just(4), st.just(5)), steps)


@settings(deadline=None, max_examples=150)
@given(st.lists(crops, min_size=1, max_size=5), st.floats(0, 120), st.sampled_from([None, "train", "validation"]))
def test_no_place_is_in_two_folds_nor_within_the_gap_of_another(
    places: list[tuple[Vector, tuple[int, int, int], float]], gap_nm: float, published: Fold | None
) -> None:
    policy = SplitPolicy(gap_nm=gap_nm)
    volumes = lay(*places, published=published)
    check(policy, volumes)
    covered: list[tuple[float, float, Fold]] = []  # the slow twin: every slice against every other
    for volume in volumes:
        assert volume.origin_nm is not None
        low = volume.origin_nm[0]
        for z, fold in policy.folds_of(volume).items():
            covered.append((low + z * volume.voxel_size.z, low + (z + 1) * volume.voxel_size.z, fold))
    for (low, high, fold), (other_low, other_high, other) in itertools.combinations(covered, 2):
        if fold != other:
            assert max(other_low - high, low - other_high) > gap_nm - 1e-3
            assert (low < other_low) == (FOLDS.index(fold) < FOLDS.index(other))
    found = {fold for _, _, fold in covered}
    if len(volumes) > 1 and not published:
        assert found in ({"train"}, set(FOLDS)), "all folds, or too little to divide"


@settings(deadline=None, max_examples=60)
@given(
    st.lists(
        st.tuples(st.integers(0, 60), st.sampled_from([4.0, 5.0, 30.0]), st.integers(2, 9)), min_size=1, max_size=4
    ),
    st.sampled_from([0.0, 20.0, 40.0]),
    st.sampled_from([SHARES, SHARES[:2]]),
)
def test_the_shares_are_the_best_there_are(
    places: list[tuple[int, float, int]], gap_nm: float, shares: tuple[tuple[Fold, float], ...]
) -> None:
    spans = tuple(Span(4.0 * start, nm, slices) for start, nm, slices in places)
    slices = [(span.start_nm + k * span.slice_nm, span.slice_nm) for span in spans for k in range(span.slices)]
    wanted = [share / sum(s for _, s in shares) for _, share in shares]

    def depths(positions: tuple[float, ...]) -> list[float]:
        lows, highs = [-math.inf, *(nm + gap_nm for nm in positions)], [*positions, math.inf]
        return [
            sum(nm for start, nm in slices if start >= low - 1e-6 and start + nm <= high + 1e-6)
            for low, high in zip(lows, highs, strict=True)
        ]

    def error(positions: tuple[float, ...]) -> float:
        depth = depths(positions)
        if not min(depth) > 0 or depth[0] < 3 * min(span.slice_nm for span in spans):
            return math.inf
        return max(abs(part / sum(depth) - share) for part, share in zip(depth, wanted, strict=True))

    ends = sorted({start + nm for start, nm in slices})
    best = min(map(error, itertools.combinations(ends, len(shares) - 1)), default=math.inf)
    ranges = frames.cut(spans, shares, gap_nm, 3)
    if best == math.inf:
        assert ranges == (frames.Range("train", -math.inf, math.inf),)
    else:
        assert error(tuple(one.high_nm for one in ranges[:-1])) <= best + 0.00101


def test_a_large_frame_is_divided_as_well() -> None:
    rng = np.random.default_rng(3)
    whole = Span(0.0, 5.24, 6368)
    spans = (whole, *(Span(float(nm), 4.0, 400) for nm in rng.uniform(0, 31_000, 60)))
    ranges = frames.cut(spans, SHARES, 40.0, 3)
    depths = [
        sum(span.slice_nm * np.subtract(*frames.slices_within(span, *one[1:])[::-1]) for span in spans)
        for one in ranges
    ]
    assert np.array(depths) / sum(depths) == pytest.approx([share for _, share in SHARES], abs=0.001)
    assert sum(depths) > 0.99 * sum(span.slice_nm * span.slices for span in spans)


def test_the_order_of_volumes_does_not_matter() -> None:
    spans = [Span(8.0 * start, nm, 30) for start, nm in ((0, 4.0), (3, 2.62), (31, 8.0), (90, 5.24))]
    cuts = {frames.cut(tuple(order), SHARES, 40.0, 3) for order in itertools.permutations(spans)}
    assert len(cuts) == 1


@pytest.mark.parametrize("slice_nm", [4.0, 5.24, 8.0, 30.0])
@pytest.mark.parametrize("published", [None, "train"])
def test_one_volume_alone_is_cut_as_one_without_a_frame(slice_nm: float, published: Fold | None) -> None:
    policy = SplitPolicy()
    for slices in range(1, 120):
        (volume,) = lay(((1000.0, 0.0, 0.0), (slices, 4, 4), slice_nm), published=published)
        free = replace(volume, frame=None, origin_nm=None)
        assert policy.slabs_of(volume) == policy.slabs_of(free)
        assert volume.span is not None
        ranges = frames.cut((volume.span,), SHARES[: 2 if published else 3], policy.gap_nm, policy.smallest_train_slab)
        assert [one.fold for one in ranges] == [slab.fold for slab in policy.slabs_of(free)]
        for one, slab in zip(ranges, policy.slabs_of(free), strict=True):
            ends = frames.slices_within(volume.span, one.low_nm, one.high_nm)
            assert ends == pytest.approx((slab.start, slab.stop), abs=1), "the common rule agrees to a slice"


def test_crops_far_apart_lose_nothing_to_gaps() -> None:
    sizes = [60, 15, 25]
    volumes = lay(*((((1000.0 * place), 0.0, 0.0), (slices, 8, 8), 4.0) for place, slices in enumerate(sizes)))
    slabs = [SplitPolicy().slabs_of(volume) for volume in volumes]
    assert [[(slab.fold, slab.start, slab.stop) for slab in one] for one in slabs] == [
        [("train", 0, 60)],
        [("validation", 0, 15)],
        [("test", 0, 25)],
    ]


def test_a_segmentation_and_the_crops_in_it() -> None:
    whole = ((0.0, 0.0, 0.0), (500, 100, 100), 8.0)
    inside = [((z + 2.0, 200.0, 40.0), (100, 20, 20), 4.0) for z in (100.0, 2380.0, 2650.0, 3500.0)]
    volumes = lay(whole, *inside)
    policy = SplitPolicy()
    check(policy, volumes)
    assert [{slab.fold for slab in policy.slabs_of(volume)} for volume in volumes] == [
        set(FOLDS),
        {"train"},
        {"train", "validation"},
        {"validation", "test"},
        {"test"},
    ]
    alone = [replace(v, frame=Frame("cell", (v.span,))) for v in volumes if v.span]
    with pytest.raises(InputError, match=r"crop0 slices 0 to \d+ \(train\) and crop1 .* \(test\) overlap in cell"):
        check(policy, alone)


def test_too_little_depth_trains_as_a_whole() -> None:
    flat = [((0.0, 1000.0 * place, 0.0), (20, 8, 8), 4.0) for place in range(6)]  # 80 nm deep, gaps of 40 nm
    policy = SplitPolicy()
    assert {slab.fold for volume in lay(*flat) for slab in policy.slabs_of(volume)} == {"train"}
    deeper = lay(*flat, ((80.0, 0.0, 0.0), (5, 8, 8), 4.0))
    assert {slab.fold for volume in deeper for slab in policy.slabs_of(volume)} == set(FOLDS)


def test_other_rules_stay() -> None:
    places = [((0.0, 0.0, 0.0), (80, 8, 8), 4.0), ((160.0, 0.0, 0.0), (80, 8, 8), 4.0)]
    held = SplitPolicy(held_out=frozenset({"specimen"}))
    assert [slab.fold for volume in lay(*places) for slab in held.slabs_of(volume)] == ["test", "test"]
    assert "folds_nm" not in held.frame_entry_of(lay(*places)[0])
    tested = lay(*places, published="test")
    assert [slab.fold for volume in tested for slab in SplitPolicy().slabs_of(volume)] == ["test", "test"]
    (labels, _) = (replace(volume, has_image=False) for volume in lay(*places))
    assert SplitPolicy().slabs_of(labels) == []


@settings(deadline=None, max_examples=30)
@given(st.lists(crops, min_size=1, max_size=4))
def test_splits_json_repeats_the_cut_without_the_other_volumes(
    places: list[tuple[Vector, tuple[int, int, int], float]],
) -> None:
    policy = SplitPolicy()
    volumes = lay(*places)
    text = json.dumps(as_split_file(policy, {volume.volume_id: policy.entry_of(volume) for volume in volumes}))
    published = _read(text)
    for volume in volumes:
        assert published.slabs_of(volume) == policy.slabs_of(volume)
        assert published.entry_of(volume) == json.loads(json.dumps(policy.entry_of(volume)))
        assert volume.span is not None
        alone = replace(volume, frame=Frame("cell", (volume.span,)))
        assert published.slabs_of(alone) == policy.slabs_of(volume)


def _read(text: str) -> SplitPolicy:
    class File:  # a path whose content is at hand
        def read_text(self) -> str:
            return text

        def __str__(self) -> str:
            return "splits.json"

    return read_split_file(File())  # type: ignore[arg-type]


def test_what_splits_json_says_of_a_frame(tmp_path: Path) -> None:
    policy = SplitPolicy()
    volumes = lay(((0.0, 0.0, 0.0), (80, 8, 8), 4.0), ((160.0, 8.0, 16.0), (80, 8, 8), 4.0))
    entry = policy.entry_of(volumes[1])
    frame = entry["frame"]
    assert isinstance(frame, dict)
    assert (frame["name"], frame["origin_nm"]) == ("cell", [160.0, 8.0, 16.0])
    (train, t0, t1), (validation, v0, v1), (test, s0, s1) = frame["folds_nm"]
    assert (train, validation, test) == FOLDS
    assert (t0, s1) == (None, None)
    assert (v0 - t1, s0 - v1) == (40.0, 40.0)
    assert "frame" not in policy.entry_of(replace(volumes[0], frame=None, origin_nm=None))

    path = tmp_path / "splits.json"
    path.write_text(json.dumps(as_split_file(policy, {"crop1": entry})))
    published = read_split_file(path)
    moved = replace(volumes[1], origin_nm=(160.0, 8.0, 24.0))
    with pytest.raises(InputError, match=r"place cell at 160\.0, 8\.0, 24\.0 nm"):
        published.slabs_of(moved)
    with pytest.raises(InputError, match="place not known"):
        published.slabs_of(replace(volumes[1], frame=None, origin_nm=None))


def test_an_older_split_file_that_leaks_is_named(tmp_path: Path) -> None:
    policy = SplitPolicy()
    volumes = lay(((0.0, 0.0, 0.0), (80, 8, 8), 4.0), ((160.0, 0.0, 0.0), (80, 8, 8), 4.0))
    older = {v.volume_id: policy.entry_of(replace(v, frame=None, origin_nm=None)) for v in volumes}
    path = tmp_path / "splits.json"
    path.write_text(json.dumps(as_split_file(policy, older)))
    published = read_split_file(path)
    assert published.entry_of(volumes[0])["frame"] == {"name": "cell", "origin_nm": [0.0, 0.0, 0.0]}
    with pytest.raises(InputError) as caught:
        check_leaks(rows_of(published, volumes), 40.0, sites_of(volumes), published.leak_remedy)
    assert "crop1 slices 0 to 35 (train)" in str(caught.value)
    assert "overlap in cell" in str(caught.value)
    assert f"{path} divides them so" in str(caught.value)
    assert "build without --splits" in str(caught.value)


def test_a_volume_states_where_it_lies_completely() -> None:
    (volume,) = lay(((0.0, 0.0, 0.0), (8, 8, 8), 4.0))
    with pytest.raises(ValueError, match="frame and origin_nm, or neither"):
        replace(volume, origin_nm=None)
    with pytest.raises(ValueError, match="none of the spans"):
        replace(volume, origin_nm=(4.0, 0.0, 0.0))
