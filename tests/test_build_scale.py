"""Builds in boxes, by several workers, after kills: the same bytes. Tiles, axes, windows, split files, pyramids."""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import datasets
import fake
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_build import digest, leftovers

from dataset_builder import records, shards, volumes
from dataset_builder.blueprint import Limits
from dataset_builder.build import Job, build, rows
from dataset_builder.columns import IMAGE, Many, array_of, schema_of
from dataset_builder.fingerprint import SIDE, _area_sums
from dataset_builder.harmonise import Window, window_of
from dataset_builder.instances import InstanceTable, count_voxels, instances_of, names_without_specks
from dataset_builder.journal import Journal
from dataset_builder.layout import layout_of
from dataset_builder.leaks import Placed, check_leaks
from dataset_builder.numbering import IdTable
from dataset_builder.preview import rows_by_fold
from dataset_builder.pyramid import any_of, average, commonest
from dataset_builder.source import Source
from dataset_builder.split_file import read_split_file
from dataset_builder.splits import SplitPolicy
from dataset_builder.volumes import open_array
from em_bench_eval.alone import alone
from em_bench_eval.cli import main
from em_bench_eval.errors import InputError
from em_bench_eval.rows import decode_row
from em_bench_eval.schema import Organelle, SourceInfo, Volume, VoxelSize

INFO = SourceInfo("made", "Made here", "@misc{made}", "CC0-1.0", "", True, "FIB-SEM", {Organelle.MITO: "manual"})
EVERYWHERE = SplitPolicy(axes="all", smallest_cut=8)
IN_BOXES = Limits(in_memory_voxels=0)


def made(shape: tuple[int, int, int], seed: int = 1, **changes: object) -> Volume:
    mask = fake.blobs(shape, seed)
    second = fake.blobs(shape, seed + 1, 0.05)
    semantic = np.where(second, Organelle.ER.label_id, mask).astype(np.uint8)
    facts = {
        "volume_id": f"made-{seed}",
        "image": fake.em_like(mask, seed),
        "semantic": semantic,
        "voxel_size": VoxelSize(8.0, 8.0, 8.0),
        "source": "made",
        "specimen": f"specimen-{seed}",
        "cell_type": "cell",
        "modality": "FIB-SEM",
        "annotated": {Organelle.MITO: "manual", Organelle.ER: "manual"},
    }
    return Volume(**{**facts, **changes})  # type: ignore[arg-type]


def job(*volumes: Volume) -> Job:
    return Job(Source(INFO, lambda raw, options: volumes), None)


def raw_sources(folder: Path) -> list[Job]:
    fake.lucchipp(folder, shape=(72, 136, 70))
    fake.vnc_sstem(folder)
    fake.hela_sbfsem(folder)
    return [Job.of(name, folder, {}) for name in ("lucchipp", "vnc_sstem", "hela_sbfsem")]


def test_building_in_boxes_or_at_once_or_by_two_processes_gives_the_same_bytes(tmp_path: Path) -> None:
    jobs = raw_sources(tmp_path / "raw")
    small = {"min_size_nm3": 40_000.0, "max_side": 128}
    build(jobs, tmp_path / "whole", EVERYWHERE, Limits(**small))
    expected = digest(tmp_path / "whole")
    assert sum(name.startswith("data/") for name in expected) >= 5
    in_boxes = Limits(**small, in_memory_voxels=0)
    build(jobs, tmp_path / "boxes", EVERYWHERE, in_boxes)
    assert digest(tmp_path / "boxes") == expected
    build(jobs, tmp_path / "two", EVERYWHERE, in_boxes, workers=2)
    assert digest(tmp_path / "two") == expected
    for workers in (1, 2):  # one volume: its boxes are shared out, its labels kept in files
        build(jobs[:1], tmp_path / f"one-{workers}", EVERYWHERE, Limits(**small), workers=workers)
    assert digest(tmp_path / "one-1") == digest(tmp_path / "one-2")
    listed = [row for part, row in rows(jobs, EVERYWHERE, in_boxes)]
    published = datasets.load_dataset(str(tmp_path / "whole"), split="wild")
    assert len(listed) == len(published)
    assert leftovers(tmp_path) == []


class HeldHere:
    """An array that cannot be sent to another process."""

    def __init__(self, array: np.ndarray):
        self.array, self.shape, self.dtype = array, array.shape, array.dtype
        self.unsendable = lambda: None

    def __getitem__(self, index: object) -> np.ndarray:
        return np.asarray(self.array[index])  # type: ignore[index]


def test_structures_outside_the_five_are_published_beside_them(tmp_path: Path) -> None:
    shape = (40, 136, 264)
    vesicles = fake.blobs(shape, 7)
    neurons = (np.arange(np.prod(shape), dtype=np.uint64).reshape(shape) // 1000 % 5) << np.uint64(40)
    extras = {"vesicles": vesicles, "neurons": HeldHere(neurons.astype(">u8"))}
    with_extras, without = job(made(shape, extras=extras)), job(made(shape))
    limits = Limits(max_side=128, in_memory_voxels=0)
    build([with_extras], tmp_path / "whole", EVERYWHERE, Limits(max_side=128))
    build([with_extras], tmp_path / "boxes", EVERYWHERE, limits, workers=2)
    expected = digest(tmp_path / "whole")
    assert digest(tmp_path / "boxes") == expected
    listed = datasets.load_dataset(str(tmp_path / "whole"), "volumes", split="volumes")
    assert listed["extras"] == [["neurons", "vesicles"]]

    folder = tmp_path / "whole" / listed[0]["zarr"]
    zarr = pytest.importorskip("zarr", minversion="3", reason="zarr 3 needs Python 3.11")
    group = zarr.open(str(folder))
    for name, array in (("vesicles", vesicles.astype(np.uint8)), ("neurons", neurons)):
        stored = group[f"labels/extra/{name}"]
        np.testing.assert_array_equal(stored["s0"][:], array)
        assert stored["s0"].dtype == array.dtype
        np.testing.assert_array_equal(stored["s1"][:], commonest(array, (2, 2, 2)))
        scales = stored.attrs["ome"]["multiscales"][0]["datasets"]
        assert scales == group["labels/instances"].attrs["ome"]["multiscales"][0]["datasets"]
    assert group["labels"].attrs["ome"]["labels"] == ["instances", "semantic", "extra/neurons", "extra/vesicles"]
    assert group.attrs["em_organelle_wild"]["extras"] == ["neurons", "vesicles"]

    build([without], tmp_path / "without", EVERYWHERE, Limits(max_side=128))
    plain = digest(tmp_path / "without")
    changed = {name for name in expected if plain.get(name) != expected[name]}
    of_volume = folder.relative_to(tmp_path / "whole").as_posix()
    own = {f"{of_volume}/zarr.json", f"{of_volume}/labels/zarr.json", "volumes.parquet", "README.md"}
    assert own <= changed
    assert all(name in own or name.startswith(f"{of_volume}/labels/extra/") for name in changed), "rows are the same"


def test_an_extra_must_be_labels_on_the_grid_with_a_plain_name() -> None:
    shape = (4, 8, 8)
    faults = {
        "a/b": np.zeros(shape, bool),
        "float": np.zeros(shape),
        "signed": np.zeros(shape, np.int16),
        "small": np.zeros((4, 8, 4), bool),
    }
    for name, array in faults.items():
        with pytest.raises(ValueError, match=f"extra.*{name}"):
            made(shape, extras={name: array})


def test_a_dask_cluster_gives_the_same_bytes(tmp_path: Path) -> None:
    distributed = pytest.importorskip("distributed")
    build([job(made((40, 72, 80)))], tmp_path / "here", SplitPolicy(), IN_BOXES)
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None
    ) as cluster:
        build(
            [job(made((40, 72, 80)))], tmp_path / "there", SplitPolicy(), IN_BOXES, scheduler=cluster.scheduler_address
        )
    assert digest(tmp_path / "there") == digest(tmp_path / "here")


DRIVER = """
import sys
from pathlib import Path
from dataset_builder.build import Job, build
from dataset_builder.splits import SplitPolicy
from dataset_builder.blueprint import Limits
raw, out, workers = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
jobs = [Job.of(name, raw, {}) for name in ("lucchipp", "vnc_sstem", "hela_sbfsem")]
policy = SplitPolicy(axes="all", smallest_cut=8)
limits = Limits(max_side=128, in_memory_voxels=200_000)
build(jobs, out, policy, limits, workers=workers, overwrite=True)
"""


@pytest.mark.parametrize(("workers", "attempts"), [(1, 5), (2, 3)])
def test_killed_at_random_moments_and_continued_it_is_the_same_dataset(
    tmp_path: Path, tiny_dataset: Path, workers: int, attempts: int
) -> None:
    jobs = raw_sources(tmp_path / "raw")
    limits = Limits(max_side=128, in_memory_voxels=200_000)
    build(jobs, tmp_path / "at-once", EVERYWHERE, limits)
    out = tmp_path / "killed"
    subprocess.run(["cp", "-r", str(tiny_dataset), str(out)], check=True)
    earlier = digest(out)
    journal = tmp_path / ".killed.partial" / "journal.jsonl"
    dice = random.Random(workers)
    command = [sys.executable, "-c", DRIVER, str(tmp_path / "raw"), str(out), str(workers)]
    kills = 0
    for _ in range(attempts):
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        lines = Journal(journal).__len__() if journal.exists() else 0
        until = lines + dice.choice([0, 1, 5, 9])
        while process.poll() is None and (not journal.exists() or journal.read_bytes().count(b"\n") <= until):
            time.sleep(0.002)
        time.sleep(dice.uniform(0, 0.05))
        process.send_signal(signal.SIGKILL)
        if process.wait(60) == 0:
            break
        kills += 1
        assert digest(out) in (earlier, digest(tmp_path / "at-once"))
    else:
        subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    assert kills >= 2
    assert digest(out) == digest(tmp_path / "at-once")
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("moment", ["old aside", "new in place"])
def test_killed_while_the_new_dataset_replaces_the_earlier_one(
    tmp_path: Path, tiny_dataset: Path, tiny_raw: Path, moment: str
) -> None:
    """The two moments between renames, made by hand: a real kill hits them too rarely."""
    out, partial = tmp_path / "out", tmp_path / ".out.partial"
    subprocess.run(["cp", "-r", str(tiny_dataset), str(out)], check=True)
    earlier = digest(out)
    partial.mkdir()
    (partial / "manifest.json").write_text('{"jobs": "others"}')
    (partial / "journal.jsonl").write_text("")
    out.rename(partial / "dataset.old")
    if moment == "old aside":
        (partial / "dataset").mkdir()
    else:
        subprocess.run(["cp", "-r", str(tiny_dataset), str(out)], check=True)
    with pytest.raises(InputError, match="exists"):
        build([Job.of("hela_sbfsem", tiny_raw, {})], out, SplitPolicy())
    assert digest(out) == earlier
    build([Job.of("hela_sbfsem", tiny_raw, {})], out, SplitPolicy(), overwrite=True, restart=True)
    assert leftovers(tmp_path) == []


def test_two_builds_of_one_folder_do_not_mix(tmp_path: Path, tiny_raw: Path) -> None:
    (tmp_path / ".out.partial").mkdir()
    with alone(tmp_path / ".out.partial" / "lock", "x"), pytest.raises(InputError, match="another run is building"):
        build([Job.of("hela_sbfsem", tiny_raw, {})], tmp_path / "out", SplitPolicy())


def test_a_volume_that_changed_since_the_unfinished_build_is_refused(tmp_path: Path) -> None:
    source = Source(INFO, lambda raw, options: given_volumes(), folders=("x",))

    def broken(volume: Volume) -> Volume:
        return Volume(**{**vars(volume), "semantic": np.full(volume.image.shape, 9, np.uint8)})

    def given_volumes() -> list[Volume]:
        return [first, second]

    first, second = made((12, 40, 40), 1), broken(made((12, 40, 40), 3))
    with pytest.raises(InputError, match="unknown semantic classes"):
        build([Job(source, None)], tmp_path / "out", SplitPolicy())
    assert leftovers(tmp_path) == [".out.partial"], "the first volume is kept"
    first, second = made((13, 40, 40), 1), made((12, 40, 40), 3)
    with pytest.raises(InputError, match="made-1 has changed"):
        build([Job(source, None)], tmp_path / "out", SplitPolicy())
    first = made((12, 40, 40), 1)
    build([Job(source, None)], tmp_path / "out", SplitPolicy())
    build([Job(source, None)], tmp_path / "at-once", SplitPolicy())
    assert digest(tmp_path / "out") == digest(tmp_path / "at-once")


def test_a_torn_journal_line_is_forgotten(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j")
    for number in range(3):
        journal.add(f"thing {number}", {"number": number})
    content = (tmp_path / "j").read_bytes()
    for length in range(len(content)):
        (tmp_path / "j").write_bytes(content[:length])
        again = Journal(tmp_path / "j")
        complete = content[:length].count(b"\n")
        assert [f"thing {n}" in again for n in range(3)] == [n < complete for n in range(3)]
        again.add("more", 1)
        assert Journal(tmp_path / "j")["more"] == 1
        assert all(again[f"thing {n}"] == {"number": n} for n in range(complete))


# --- what is published -----------------------------------------------------------------------------------------------


def rows_of(folder: Path) -> list[dict[str, object]]:
    return list(datasets.load_dataset(str(folder), split="wild"))


def test_tiles_put_together_are_the_slice(tmp_path: Path) -> None:
    volume = made((5, 200, 150), voxel_size=VoxelSize(50.0, 8.0, 8.0), modality="ssTEM", published_fold="test")
    build([job(volume)], tmp_path / "out", SplitPolicy(), Limits(max_side=64))
    instances, _ = instances_of(volume)
    names = set()
    seen = np.zeros(volume.image.shape, int)
    for row in rows_of(tmp_path / "out"):
        image = decode_row(row)
        assert max(image.image.shape) <= 64
        names.add(image.record_id)
        y, x = row["offset"]
        place = (row["slice"], slice(y, y + image.image.shape[0]), slice(x, x + image.image.shape[1]))
        np.testing.assert_array_equal(image.image, volume.image[place])
        to_volume = np.array([0, *(entry["instance_id"] for entry in row["objects"])])
        np.testing.assert_array_equal(to_volume[image.instances], instances[place])
        seen[place] += 1
    assert (seen == 1).all()
    assert len(names) == 5 * 4 * 3


def test_slices_along_every_axis_stay_in_their_slab(tmp_path: Path) -> None:
    volume = made((90, 40, 50))
    build([job(volume)], tmp_path / "out", EVERYWHERE)
    instances, _ = instances_of(volume)
    slabs = {slab.fold: slab for slab in EVERYWHERE.slabs_of(volume)}
    expected = dict.fromkeys(slabs, 0)
    for fold, count, _ in rows_by_fold(volume, EVERYWHERE, Limits()):
        expected[fold] += count
    counts = dict.fromkeys(slabs, 0)
    for row in rows_of(tmp_path / "out"):
        image, slab = decode_row(row), slabs[row["fold"]]
        to_volume = np.array([0, *(entry["instance_id"] for entry in row["objects"])])
        axis = "zyx".index(row["axis"])
        pixels, ids = (array.take(row["slice"], axis) for array in (volume.image, instances))
        if row["axis"] == "z":
            assert slab.start <= row["slice"] < slab.stop
            assert row["offset"] == [0, 0]
        else:
            assert row["offset"] == [slab.start, 0]
            pixels, ids = pixels[slab.start : slab.stop], ids[slab.start : slab.stop]
        np.testing.assert_array_equal(image.image, pixels)
        np.testing.assert_array_equal(to_volume[image.instances], ids)
        counts[row["fold"]] += 1
    assert counts == expected
    assert expected["train"] > 90
    ids = [decode_row(row).record_id for row in rows_of(tmp_path / "out")]
    assert len(set(ids)) == len(ids)


def test_the_leak_check_sees_what_a_slice_along_y_covers() -> None:
    inside = Placed("v", 7, 8.0, "s", "train", "in", None, "y", (0, 50))
    check_leaks([inside, Placed("v", 55, 8.0, "s", "test", "in", None)], gap_nm=40.0)
    with pytest.raises(InputError, match="slices 49 and 54 are 32 nm apart, not 40"):
        check_leaks([inside, Placed("v", 54, 8.0, "s", "test", "in", None)], gap_nm=40.0)
    with pytest.raises(InputError, match="0 nm apart"):
        check_leaks([inside, Placed("v", 9, 8.0, "s", "test", "in", None, "x", (30, 90))], gap_nm=40.0)


def test_small_instances_are_dropped_everywhere(tmp_path: Path) -> None:
    volume = made((30, 64, 64))
    instances, organelle_of = instances_of(volume)
    voxels = np.bincount(instances.ravel())
    smallest = int(np.median(voxels[1:]))
    build([job(volume)], tmp_path / "out", SplitPolicy(), Limits(min_size_nm3=smallest * 512.0))
    kept = [id_ for id_ in range(1, len(voxels)) if voxels[id_] >= smallest]
    new = np.zeros(len(voxels), int)
    new[kept] = range(1, len(kept) + 1)
    stored = open_array(tmp_path / "out/volumes/made-1.zarr/labels/instances/s0").read().result()
    np.testing.assert_array_equal(stored, new[instances])
    semantic = open_array(tmp_path / "out/volumes/made-1.zarr/labels/semantic/s0").read().result()
    np.testing.assert_array_equal(semantic, np.where(new[instances] > 0, volume.semantic, 0))
    assert 0 < len(kept) < len(organelle_of)
    table = datasets.load_dataset("parquet", data_files=str(tmp_path / "out/instances.parquet"), split="train")
    assert table["instance_id"] == list(range(1, len(kept) + 1))
    for row in table:
        z, y, x = np.nonzero(stored == row["instance_id"])
        assert row["voxels"] == len(z)
        assert row["volume_nm3"] == len(z) * 512.0
        assert row["bbox"] == [z.min(), y.min(), x.min(), z.max() + 1, y.max() + 1, x.max() + 1]
        touching = 0 in row["bbox"][:3] or any(a == b for a, b in zip(row["bbox"][3:], stored.shape, strict=True))
        assert row["touches_border"] == touching
        assert row["organelle"] == str(organelle_of[kept[row["instance_id"] - 1]])


@pytest.mark.parametrize("dtype", ["uint16", "int16", "float32"])
def test_other_depths_become_8_bit_by_a_recorded_window(tmp_path: Path, dtype: str) -> None:
    volume = made((6, 70, 70))
    deep = (volume.image.astype(np.float64) * 97 - 3000).astype(dtype)
    volume = Volume(**{**vars(volume), "image": deep})
    build([job(volume)], tmp_path / "out", SplitPolicy())
    zarr = tmp_path / "out/volumes/made-1.zarr"
    stored = open_array(zarr / "s0").read().result()
    recorded = json.loads((zarr / "zarr.json").read_text())["attributes"]["em_organelle_wild"]["provenance"]
    window = Window(**json.loads(recorded["intensity_window"]))
    inside = (deep >= window.low) & (deep <= window.high)
    assert inside.mean() > 0.99
    error = np.abs(window.restore(stored) - deep.astype(np.float64))[inside]
    assert error.max() <= (window.high - window.low) / 255 / 2 + 0.01
    assert stored.dtype == np.uint8
    assert window_of(made((6, 70, 70))).provenance() == {}


def test_published_splits_are_repeated_exactly_and_contradictions_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    volumes = [made((40, 48, 48), 1), made((60, 48, 48), 3)]
    build([job(*volumes)], tmp_path / "first", SplitPolicy(gap_nm=80.0, held_out=frozenset({"specimen-3"})))
    published = read_split_file(tmp_path / "first" / "splits.json")
    build([job(*volumes)], tmp_path / "second", published)
    assert digest(tmp_path / "second") == digest(tmp_path / "first")
    cases = {
        "does not say how volume made-5": [*volumes, made((40, 48, 48), 5)],
        "found: slices 41": [made((41, 48, 48), 1), volumes[1]],
        "found: specimen other": [made((40, 48, 48), 1, specimen="other"), volumes[1]],
        "volumes of .* are missing": [volumes[0]],
    }
    for number, (message, others) in enumerate(cases.items()):
        with pytest.raises(InputError, match=message):
            build([job(*others)], tmp_path / str(number), published)
        assert not (tmp_path / str(number)).exists()
    (tmp_path / "broken.json").write_text('{"format": "em-organelle-wild splits v0"}')
    with pytest.raises(InputError, match="is no split file"):
        read_split_file(tmp_path / "broken.json")
    arguments = [
        "build",
        "--source",
        "phantom",
        "--out",
        str(tmp_path / "x"),
        "--splits",
        str(tmp_path / "broken.json"),
    ]
    assert main([*arguments, "--gap-nm", "9"]) == 2
    assert "contradict" in capsys.readouterr().err


def test_a_dry_run_tells_the_truth_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fake.lucchipp(tmp_path / "raw", shape=(90, 150, 140))
    before = digest(tmp_path)
    arguments = ["build", "--source", "lucchipp", "--raw", str(tmp_path / "raw"), "--out", str(tmp_path / "out")]
    arguments += ["--axes", "all", "--max-side", "128"]
    assert main([*arguments, "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert digest(tmp_path) == before
    assert not (tmp_path / "out").exists()
    assert main(arguments) == 0
    stats = json.loads((tmp_path / "out" / "stats.json").read_text())
    assert f"1 volumes, {stats['images']} rows" in said


# --- parts -----------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.tuples(*[st.integers(1, 700)] * 3), st.sampled_from([64, 128, 192, 2048]))
def test_a_layout_covers_the_volume_once_in_whole_chunks(shape: tuple[int, int, int], max_side: int) -> None:
    layout = layout_of(shape, max_side)
    assert all(shard % chunk == 0 for shard, chunk in zip(layout.shard, layout.chunk, strict=True))
    assert sum(np.prod([s.stop - s.start for s in box]) for box in layout.boxes()) == np.prod(shape)
    corners = [tuple(s.start for s in box) for box in layout.boxes()]
    assert len(set(corners)) == len(corners)
    assert all(place % edge == 0 for corner in corners for place, edge in zip(corner, layout.shard, strict=True))
    assert all(s.stop - s.start <= max_side for box in layout.boxes() for s in box[1:])


@settings(max_examples=60, deadline=None)
@given(st.tuples(*[st.integers(1, 7)] * 3), st.sampled_from([(1, 2, 2), (2, 2, 2)]), st.integers(0, 99))
def test_pyramid_kernels_equal_their_slow_twins(shape: tuple[int, int, int], factors: tuple, seed: int) -> None:
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, shape).astype(np.uint8)
    labels = rng.choice([0, 0, 3, 70000], shape).astype(np.uint32)
    small = [size // by for size, by in zip(shape, factors, strict=True)]
    means, modes, anys = (
        reduce(array, factors)
        for reduce, array in ((average, image), (commonest, labels), (any_of, (image > 99).astype(np.uint8)))
    )
    assert means.shape == modes.shape == anys.shape == tuple(small)
    for place in np.ndindex(*small):
        box = tuple(slice(p * by, (p + 1) * by) for p, by in zip(place, factors, strict=True))
        assert means[place] == int(np.floor(image[box].mean() + 0.5))
        values = labels[box].ravel().tolist()
        assert modes[place] == max(values, key=lambda v: (values.count(v), v != 0, -values.index(v)))
        assert anys[place] == (image[box] > 99).any()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 60), max_size=90), st.data())
def test_shards_do_not_depend_on_how_rows_were_cut_into_parts(sizes: list[int], data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.sets(st.integers(1, max(1, len(sizes))), max_size=5)) | {0, len(sizes)})
    parts = [shards.Part(Path(f"{a}"), sizes[a:b]) for a, b in itertools.pairwise(cuts)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "BYTES_PER_SHARD", 400)
        planned = shards.plan_shards(Path("data"), "train", parts)
        at_once = shards.plan_shards(Path("data"), "train", [shards.Part(Path("0"), sizes)])
    lines = [[int(path.name) + row for path, a, b in shard.pieces for row in range(a, b)] for shard in planned]
    assert lines == [[row for _, a, b in shard.pieces for row in range(a, b)] for shard in at_once]
    assert list(itertools.chain(*lines)) == list(range(len(sizes)))
    assert all(len(line) % shards.ROWS_PER_GROUP == 0 for line in lines[:-1])


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.sampled_from([1, 2, 9, 300, 2**27, 2**40]), st.integers(1, 9)), st.booleans())
def test_tables_of_ids_look_up_what_they_hold(values: dict[int, int], wide: bool) -> None:
    if not wide:
        values = {id_: value for id_, value in values.items() if id_ < 2**26}
    table = IdTable(np.array(list(values), np.uint64), np.array(list(values.values()), np.uint8))
    asked = np.array([[0, 1, 2, 9], [300, 301, 2**27, 2**40]], np.uint64)
    expected = [[values.get(int(id_), 0) for id_ in line] for line in asked]
    np.testing.assert_array_equal(table[asked], expected)
    np.testing.assert_array_equal(table[asked[:1].astype(np.uint8)], expected[:1])


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 999), st.booleans())
def test_counts_and_tables_of_boxes_add_up(seed: int, compact: bool) -> None:
    ids = np.random.default_rng(seed).choice([0, 0, 4, 7, 11], (6, 5, 4)).astype(np.uint32)
    halves = [ids[:2], ids[2:]]
    all_ids, names = names_without_specks(map(count_voxels, halves), 20, compact)
    kept = [id_ for id_ in all_ids.tolist() if (ids == id_).sum() >= 20]
    order = {id_: (kept.index(id_) + 1 if compact else id_) if id_ in kept else 0 for id_ in all_ids.tolist()}
    assert dict(zip(all_ids.tolist(), names.tolist(), strict=True)) == order
    tables = [
        InstanceTable(v.astype(np.int64), np.ones(len(v), np.uint8), n, np.tile([z, 0, 0, z + 1, 1, 1], (len(v), 1)))
        for z, (v, n) in enumerate(map(count_voxels, halves))
    ]
    merged = InstanceTable.merged(tables)
    assert merged.ids.tolist() == sorted(set(np.unique(ids).tolist()) - {0})
    assert merged.voxels.tolist() == [(ids == id_).sum() for id_ in merged.ids]


@pytest.mark.parametrize("columns", [records.COLUMNS, volumes.COLUMNS])
def test_columns_are_those_of_datasets(columns: dict) -> None:
    schema = schema_of(columns)
    assert datasets.Features.from_arrow_schema(schema).arrow_schema.equals(schema, check_metadata=True)


TEXTS = st.text(max_size=4)
VALUES = {
    "string": TEXTS,
    "bool": st.booleans(),
    "int64": st.integers(-(2**63), 2**63 - 1),
    Many("string"): st.lists(TEXTS, max_size=3),
    Many("float64", 2): st.lists(st.floats(allow_nan=False), min_size=2, max_size=2),
    IMAGE: st.none() | st.binary(max_size=5),
}


@settings(max_examples=80, deadline=None)
@given(st.sampled_from(list(VALUES)), st.data())
def test_arrays_hold_what_pyarrow_makes_of_the_same_values(column: object, data: st.DataObject) -> None:
    values = data.draw(st.lists(VALUES[column], max_size=11))
    cells = [None if v is None else {"bytes": v, "path": None} for v in values] if column == IMAGE else values
    array = array_of(column, values)
    array.validate(full=True)
    assert array.equals(pa.array(cells, array.type))


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 150), st.integers(1, 150), st.integers(0, 99))
def test_area_sums_are_those_of_the_enlarged_image(height: int, width: int, seed: int) -> None:
    image = np.random.default_rng(seed).integers(0, 256, (height, width)).astype(np.uint8)
    sums = np.empty((SIDE, SIDE), np.uint64)
    _area_sums(image, np.empty(width, np.uint32), sums)
    rows = image.astype(np.uint64).repeat(SIDE, 0).reshape(SIDE, height, width).sum(axis=1)
    np.testing.assert_array_equal(sums, rows.repeat(SIDE, 1).reshape(SIDE, SIDE, width).sum(axis=2))


def test_workers_end_with_the_process_that_started_them(tmp_path: Path) -> None:
    code = (
        "import os, sys, time\n"
        "from dataset_builder.workers import open_workers\n"
        "def slow(n):\n    print(os.getpid(), flush=True); time.sleep(600)\n"
        "if __name__ == '__main__':\n    with open_workers(None, 2) as pool: list(pool.run(slow, range(2)))\n"
    )
    (tmp_path / "slow.py").write_text(code)
    process = subprocess.Popen([sys.executable, str(tmp_path / "slow.py")], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    workers = [int(process.stdout.readline()) for _ in range(2)]
    process.kill()
    process.wait()
    deadline = time.monotonic() + 20
    while any(os.path.exists(f"/proc/{pid}") for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(os.path.exists(f"/proc/{pid}") for pid in workers)
