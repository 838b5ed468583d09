"""What a source publishes for validation or test is that as a whole, and what lies beside it keeps the gap."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from test_frames import lay, rows_of, sites_of

from dataset_builder.build import build
from dataset_builder.jobs import Job
from dataset_builder.leaks import check_leaks
from dataset_builder.siblings import with_siblings
from dataset_builder.splits import Slab, SplitPolicy
from em_bench_eval.errors import InputError
from em_bench_eval.schema import Fold, Volume

Vector = tuple[float, float, float]
starts = st.integers(-20, 20).map(lambda steps: steps * 4.0)
places = st.tuples(st.tuples(starts, starts, starts), st.tuples(st.integers(1, 30), st.integers(1, 9), st.just(6)))


def laid(folds: list[Fold | None], *where: tuple[Vector, tuple[int, int, int]]) -> list[Volume]:
    """Volumes of 4 nm voxels in one frame, each with the fold that its source publishes."""
    volumes = lay(*((origin, shape, 4.0) for origin, shape in where))
    return with_siblings(replace(volume, published_fold=fold) for volume, fold in zip(volumes, folds, strict=True))


def test_each_published_fold_is_followed() -> None:
    train, validation, test = laid(["train", "validation", "test"], *[((1e4 * n, 0, 0), (90, 8, 8)) for n in range(3)])
    policy = SplitPolicy()
    assert policy.slabs_of(train) == [Slab("train", 0, 90)], "validation is published: none is cut off"
    assert policy.slabs_of(validation) == [Slab("validation", 0, 90)]
    assert policy.slabs_of(test) == [Slab("test", 0, 90)]
    train, test = laid(["train", "test"], *[((1e4 * n, 0, 0), (90, 8, 8)) for n in range(2)])
    assert [slab.fold for slab in policy.slabs_of(train)] == ["train", "validation"], "nothing is published for it"
    free, _ = laid([None, "validation"], *[((1e4 * n, 0, 0), (90, 8, 8)) for n in range(2)])
    assert [slab.fold for slab in policy.slabs_of(free)] == ["train", "validation", "test"], "it has no published fold"


def test_training_beside_validation_gives_up_the_gap() -> None:
    box = ((400.0, 0.0, 0.0), (50, 8, 8))
    around = [
        ((0.0, 0.0, 0.0), (100, 8, 8)),  # below it, touching: 40 nm are 10 slices
        ((0.0, 0.0, 0.0), (300, 4, 4)),  # through it
        ((0.0, 32.0, 0.0), (300, 8, 8)),  # beside it, touching
        ((0.0, 56.0, 0.0), (300, 8, 8)),  # 24 nm beside it: 32 nm along z make 40
        ((0.0, 72.0, 0.0), (300, 8, 8)),  # 40 nm beside it
    ]
    volumes = laid(["validation", *["train"] * 5], box, *around)
    slabs = [[(slab.start, slab.stop) for slab in SplitPolicy().slabs_of(volume)] for volume in volumes]
    assert slabs == [
        [(0, 50)],
        [(0, 90)],
        [(0, 90), (160, 300)],
        [(0, 90), (160, 300)],
        [(0, 92), (158, 300)],
        [(0, 300)],
    ]


@settings(max_examples=150)
@given(st.data(), st.lists(places, min_size=1, max_size=4), st.sampled_from([0.0, 3.0, 8.0, 40.0]))
def test_beside_one_published_volume_nothing_leaks_and_nothing_is_dropped_in_vain(
    data: st.DataObject, where: list[tuple[Vector, tuple[int, int, int]]], gap_nm: float
) -> None:
    policy = SplitPolicy(gap_nm=gap_nm)
    fold = data.draw(st.sampled_from(["validation", "test"]))
    volumes = laid([fold, *["train"] * (len(where) - 1)], *where)
    if fold == "test":  # what is cut off for validation has its own tests
        policy = SplitPolicy(gap_nm=gap_nm, smallest_train_slab=10**6)
    check_leaks(rows_of(policy, volumes), gap_nm, sites_of(volumes))
    held = volumes[0]
    assert held.origin_nm is not None
    for volume in volumes[1:]:
        kept = policy.folds_of(volume)
        assert volume.origin_nm is not None
        for z in range(volume.image.shape[0]):
            low = np.add(volume.origin_nm, (z * 4.0, 0, 0))
            high = low + 4.0 * np.array((1, *volume.image.shape[1:]))
            other_low = np.array(held.origin_nm)
            apart = np.maximum(other_low - high, low - (other_low + 4.0 * np.array(held.image.shape)))
            near = (apart < 0).all() or np.linalg.norm(apart.clip(0)) < gap_nm
            assert (z in kept) == (not near)


def test_two_published_volumes_that_touch_are_told() -> None:
    volumes = laid(["validation", "test"], ((0, 0, 0), (20, 8, 8)), ((80, 0, 0), (20, 8, 8)))
    policy = SplitPolicy()
    with pytest.raises(InputError, match=r"crop0 .* and crop1 .* are 0 nm apart, not 40"):
        check_leaks(rows_of(policy, volumes), policy.gap_nm, sites_of(volumes))


@pytest.mark.parametrize(("slice_nm", "gap_nm"), [(39.9999991, 40.0), (3.99999972, 4000.0), (8.0000001, 40.0)])
def test_rounded_sizes_do_not_cost_a_slice(slice_nm: float, gap_nm: float) -> None:
    (volume,) = lay(((0.0, 0.0, 0.0), (9000, 4, 4), slice_nm))
    policy = SplitPolicy(gap_nm=gap_nm)
    train, validation, _ = policy.slabs_of(volume)
    assert validation.start - train.stop == round(gap_nm / slice_nm)
    check_leaks(rows_of(policy, [volume]), gap_nm, sites_of([volume]))


def spec(folder: Path, folds: dict[str, Fold | None], shared: bool) -> Path:
    """A spec over volumes of 40 slices; ``shared``: they are parts of one stack, one below the other."""
    rng = np.random.default_rng(0)
    gray = rng.integers(0, 256, (40 * len(folds), 64, 64)).astype(np.uint8)
    volumes = []
    for number, (name, fold) in enumerate(folds.items()):
        part = slice(40 * number, 40 * number + 40)
        for kind, array in (("gray", gray), ("mito", (gray > 128).astype(np.uint8))):
            tifffile.imwrite(folder / f"{kind}-{name}.tif", array[part], photometric="minisblack")
        entry = {"id": name, "image": f"gray-{name}.tif", "specimen": "mouse", "cell_type": "cell"}
        entry |= {"labels": [{"path": f"mito-{name}.tif", "values": {1: "mito", 0: "background"}}]}
        entry |= {"voxel_size_nm": [20, 8, 8], "annotated": {"mito": "manual"}}
        entry |= {"fold": fold} if fold else {}
        entry |= {"frame": "stack", "origin_nm": [800 * number, 0, 0]} if shared else {}
        volumes.append(entry)
    source = {"name": "lab", "licence": "none stated", "modality": "SBF-SEM"}
    path = folder / "spec.yaml"
    path.write_text(yaml.safe_dump({"source": source, "volumes": volumes}))
    return path


@pytest.mark.parametrize("shared", [False, True])
def test_a_spec_that_names_folds_is_built_so(tmp_path: Path, shared: bool) -> None:
    path = spec(tmp_path, {"a": "train", "b": "validation", "c": "train", "d": "test"}, shared)
    stats = build([Job.of("local", None, {"spec": str(path)})], tmp_path / "out", SplitPolicy())
    images: Counter[str] = Counter()
    for (_, fold, _, _), count in stats.images.items():
        images[fold] += count
    dropped = 2 * 3 if shared else 0  # 40 nm are two slices: below b, above b and below d
    assert images == {"train": 80 - dropped, "validation": 40, "test": 40}
