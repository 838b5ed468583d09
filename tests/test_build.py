"""The dataset folder, as users load it; and everything that may go wrong while it is built."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import datasets
import fake
import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from dataset_builder import build as build_module
from dataset_builder.blueprint import Limits
from dataset_builder.build import Job, build
from dataset_builder.build import rows as rows_of
from dataset_builder.hf_builder import EmOrganelleWild
from dataset_builder.instances import instances_of
from dataset_builder.numbering import number_plane
from dataset_builder.records import class_table, features
from dataset_builder.source import load_source
from dataset_builder.splits import SplitPolicy
from em_bench_eval.cli import main
from em_bench_eval.errors import InputError
from em_bench_eval.rows import decode_row, open_rows
from em_bench_eval.schema import Organelle

SOURCES = ("lucchipp", "vnc_sstem", "hela_sbfsem")


def digest(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_bare_name_gives_the_two_splits_and_nothing_is_stored_twice(
    tiny_dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny_dataset.parent)
    data = datasets.load_dataset("em-organelle-wild")
    assert set(data) == {"homogeneous", "wild"}
    assert set(data["homogeneous"]["source"]) == {"lucchipp"}
    assert set(data["wild"]["source"]) == set(SOURCES)
    rows = sum(
        datasets.load_dataset("parquet", data_files=str(path), split="train").num_rows
        for path in tiny_dataset.glob("data/*/*.parquet")
    )
    assert rows == len(data["wild"])


@pytest.mark.parametrize("config", ["homogeneous", "wild"])
def test_configurations_give_train_validation_and_test(tiny_dataset: Path, config: str) -> None:
    data = datasets.load_dataset(str(tiny_dataset), config)
    assert list(data) == ["train", "validation", "test"]
    for fold, rows in data.items():
        assert set(rows["fold"]) == {fold}
        assert rows.features == features()
    names = "image instances objects annotated annotation_type ignore volume_id axis slice source specimen fold domain"
    names += " cell_type modality pixel_size_nm voxel_size_nm licence citation offset"
    assert list(data["train"].features) == names.split(), "what users of the dataset have in their code"


def test_every_row_decodes_to_the_volume_it_came_from(tiny_dataset: Path, tiny_raw: Path) -> None:
    volumes = {}
    for name in SOURCES:
        source = load_source(name)
        for volume in source.volumes(source.find(tiny_raw), {}):
            volumes[volume.volume_id] = (volume, *instances_of(volume))
    for row in datasets.load_dataset(str(tiny_dataset), split="wild"):
        volume, instances, organelle_of = volumes[row["volume_id"]]
        z = row["slice"]
        image = decode_row(row)
        assert row["instances"].mode == "I;16"
        np.testing.assert_array_equal(image.image, volume.image[z])
        to_volume = np.zeros(len(row["objects"]) + 1, np.int64)
        for entry in row["objects"]:
            to_volume[entry["id"]] = entry["instance_id"]
            mask = image.instances == entry["id"]
            y, x = np.nonzero(mask)
            assert entry["area"] == mask.sum()
            assert entry["bbox"] == [y.min(), x.min(), y.max() + 1, x.max() + 1]
            border = np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]])
            assert entry["touches_border"] == border.any()
            assert entry["organelle"] == str(organelle_of[entry["instance_id"]])
        np.testing.assert_array_equal(to_volume[image.instances], instances[z])
        assert image.ignore.any() == (row["source"] == "hela_sbfsem")
        assert [str(o) for o in Organelle if o in volume.annotated] == row["annotated"]
        assert row["pixel_size_nm"] == row["voxel_size_nm"][1:] == [volume.voxel_size.y, volume.voxel_size.x]
    assert {row["volume_id"] for row in datasets.load_dataset(str(tiny_dataset), split="wild")} == set(volumes)


def test_streaming_and_filters(tiny_dataset: Path) -> None:
    data = datasets.load_dataset(
        str(tiny_dataset), "wild", split="test", streaming=True, filters=[("source", "==", "hela_sbfsem")]
    )
    rows = list(data)
    assert [row["volume_id"] for row in rows] == ["hela_sbfsem-z0001", "hela_sbfsem-z0030"]
    assert {row["domain"] for row in rows} == {"out"}
    whole = datasets.load_dataset(str(tiny_dataset), "wild", split="test")
    assert [row["volume_id"] for row in whole if row["source"] == "hela_sbfsem"] == [row["volume_id"] for row in rows]


def test_volumes_are_ome_zarr_that_zarr_opens(tiny_dataset: Path, tiny_raw: Path) -> None:
    zarr = pytest.importorskip("zarr", minversion="3", reason="zarr 3 needs Python 3.11")
    listing = datasets.load_dataset(str(tiny_dataset), "volumes", split="volumes")
    assert len(listing) == 4
    source = load_source("lucchipp")
    (volume,) = source.volumes(source.find(tiny_raw), {})
    row = next(row for row in listing if row["volume_id"] == "lucchipp-train")
    group = zarr.open_group(str(tiny_dataset / row["zarr"]), mode="r")
    np.testing.assert_array_equal(group["s0"][:], volume.image[:])
    instances, _ = instances_of(volume)
    np.testing.assert_array_equal(group["labels/instances/s0"][:], instances)
    np.testing.assert_array_equal(group["labels/semantic/s0"][:], volume.semantic[:])
    scale = group.attrs["ome"]["multiscales"][0]["datasets"][0]["coordinateTransformations"][0]["scale"]
    assert scale == [5.0, 5.0, 5.0] == row["voxel_size_nm"]
    assert json.loads(row["instances"])["mito"] == len(np.unique(instances)) - 1
    assert group["s0"].shards is not None


def test_pyramid_levels_average_and_stay_registered(tmp_path: Path) -> None:
    zarr = pytest.importorskip("zarr", minversion="3", reason="zarr 3 needs Python 3.11")
    fake.lucchipp(tmp_path, shape=(40, 300, 280))
    build([Job.of("lucchipp", tmp_path, {})], tmp_path / "out", SplitPolicy())
    group = zarr.open_group(str(tmp_path / "out" / "volumes" / "lucchipp-train.zarr"), mode="r")
    levels = group.attrs["ome"]["multiscales"][0]["datasets"]
    assert [level["path"] for level in levels] == ["s0", "s1", "s2"]
    full, half = group["s0"][:].astype(float), group["s1"][:]
    assert half.shape == (20, 150, 140)
    assert abs(half[3, 5, 7] - full[6:8, 10:12, 14:16].mean()) <= 0.5
    scale, shift = levels[1]["coordinateTransformations"]
    assert scale["scale"] == [10.0, 10.0, 10.0]
    assert shift["translation"] == [2.5, 2.5, 2.5]


def test_texts_and_stats(tiny_dataset: Path) -> None:
    card = (tiny_dataset / "README.md").read_text()
    header = yaml.safe_load(card.split("---")[1])
    assert [config["config_name"] for config in header["configs"]] == ["default", "homogeneous", "wild", "volumes"]
    assert "| lucchipp | FIB-SEM | 1 |" in card
    stats = json.loads((tiny_dataset / "stats.json").read_text())
    data = datasets.load_dataset(str(tiny_dataset), split="wild")
    assert stats["images"] == len(data) == sum(entry["images"] for entry in stats["images_by"])
    assert "doi = {10.6084/m9.figshare.856713}" in (tiny_dataset / "CITATION.bib").read_text()
    assert "CC-BY-NC-SA-3.0" in (tiny_dataset / "LICENSES.md").read_text()
    tasks = yaml.safe_load((tiny_dataset / "eval.yaml").read_text())["tasks"]
    assert {"id": "wild_mito", "config": "wild", "split": "test"} in tasks


def test_installed_builder_yields_the_same_rows(tiny_dataset: Path, tiny_raw: Path, tmp_path: Path) -> None:
    builder = EmOrganelleWild(cache_dir=str(tmp_path), config_name="wild", sources=list(SOURCES), raw=str(tiny_raw))
    builder.download_and_prepare()
    published = datasets.load_dataset(str(tiny_dataset), "wild")
    for fold, rows in builder.as_dataset().items():
        raw_rows = rows.cast_column("image", datasets.Image(decode=False)).remove_columns(["instances", "ignore"])
        expected = published[fold].cast_column("image", datasets.Image(decode=False))
        names = {row["volume_id"] + str(row["slice"]): row for row in expected.remove_columns(["instances", "ignore"])}
        assert len(raw_rows) == len(names)
        for row in raw_rows:
            other = names[row["volume_id"] + str(row["slice"])]
            assert row["image"]["bytes"] == other["image"]["bytes"]
            assert {**row, "image": 0} == {**other, "image": 0}


def test_the_installed_builder_divides_and_cuts_as_it_is_told(
    tiny_dataset: Path, tiny_raw: Path, tmp_path: Path
) -> None:
    def made(name: str, **settings: Any) -> list[tuple[Any, ...]]:
        builder = EmOrganelleWild(
            cache_dir=str(tmp_path / name), config_name="wild", sources=["lucchipp"], raw=str(tiny_raw), **settings
        )
        builder.download_and_prepare()
        columns = ("volume_id", "axis", "slice", "fold", "offset")
        return [
            tuple(map(str, values))
            for fold, split in builder.info.splits.items()
            if split.num_examples  # datasets reads no empty split
            for values in zip(*(builder.as_dataset(split=fold)[column] for column in columns), strict=True)
        ]

    def built(policy: SplitPolicy, limits: Limits | None = None) -> list[tuple[Any, ...]]:
        found = [row for _, row in rows_of([Job.of("lucchipp", tiny_raw, {})], policy, limits)]
        listed = [tuple(str(row[name]) for name in ("volume_id", "axis", "slice", "fold", "offset")) for row in found]
        return sorted(listed)

    everything = made("all", axes="all", gap_nm=20.0, max_side=64)
    assert sorted(everything) == built(SplitPolicy(axes="all", gap_nm=20.0), Limits(max_side=64))
    held = made("held", held_out=["lucchi-ca1-hippocampus"])
    assert sorted(held) == built(SplitPolicy(held_out=frozenset({"lucchi-ca1-hippocampus"})))
    published = made("splits", splits=str(tiny_dataset / "splits.json"))
    assert sorted(published) == built(SplitPolicy())
    with pytest.raises(InputError, match="splits and gap_nm contradict"):
        EmOrganelleWild(splits="x.json", gap_nm=1.0, cache_dir=str(tmp_path)).config.policy()


def test_a_second_build_is_byte_identical(tiny_dataset: Path, tiny_raw: Path, tmp_path: Path) -> None:
    out = tmp_path / "em-organelle-wild"
    build([Job.of(name, tiny_raw, {}) for name in SOURCES], out, SplitPolicy())
    assert digest(out) == digest(tiny_dataset)


def test_a_rebuilt_dataset_does_not_load_as_the_earlier_one(tmp_path: Path) -> None:
    out = tmp_path / "em-organelle-wild"
    first = []
    for seed in (1, 2):  # the same files, rows and sizes: only the content differs
        raw = fake.lucchipp(tmp_path / str(seed), seed=seed).parent
        build([Job.of("lucchipp", raw, {})], out, SplitPolicy(), overwrite=seed == 2)
        first.append(decode_row(open_rows(out, "wild", "train")[0]).image)
    assert not np.array_equal(*first)


def test_only_out_of_domain_rows_make_a_dataset_with_a_test_split_only(tiny_raw: Path, tmp_path: Path) -> None:
    build([Job.of("hela_sbfsem", tiny_raw, {})], tmp_path / "out", SplitPolicy())
    assert set(datasets.load_dataset(str(tmp_path / "out"))) == {"wild"}
    assert set(datasets.load_dataset(str(tmp_path / "out"), "wild")) == {"test"}
    with pytest.raises(InputError, match="check --config and --split"):
        open_rows(tmp_path / "out", "wild", "train")
    with pytest.raises(InputError, match="check --config and --split"):
        open_rows(tmp_path / "out", "homogeneous", "test")


@hypothesis_settings(max_examples=60, deadline=None)
@given(
    hnp.arrays(np.uint32, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.sampled_from([0, 3, 9, 70000]))
)
def test_numbering_of_a_slice_keeps_every_instance(ids: np.ndarray) -> None:
    class_of = class_table({3: Organelle.MITO, 9: Organelle.ER, 70000: Organelle.MITO})
    plane = number_plane(ids, class_of[ids], "v slice 0")
    back = np.array([0, *plane.instance_ids], np.uint32)
    np.testing.assert_array_equal(back[plane.ids], ids)
    assert plane.instance_ids.tolist() == sorted(set(ids.ravel().tolist()) - {0})
    assert plane.classes.tolist() == [3 if id_ == 9 else 1 for id_ in plane.instance_ids]


# --- what bad input gets -------------------------------------------------------------------------------------------


@pytest.fixture
def earlier(tiny_dataset: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_dataset, tmp_path / "em-organelle-wild"))


def leftovers(parent: Path) -> list[str]:
    return [path.name for path in parent.iterdir() if path.name.startswith(".")]


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def test_a_broken_slice_stops_the_build_and_keeps_the_earlier_dataset(
    earlier: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = digest(earlier)
    bad = fake.lucchipp(tmp_path / "raw") / "train" / "label" / "0033.png"
    bad.write_bytes(bad.read_bytes()[:40])
    assert run("build", "--source", "lucchipp", "--raw", tmp_path / "raw", "--out", earlier, "--overwrite") == 2
    message = capsys.readouterr().err
    assert str(bad) in message
    assert "download it again" in message
    assert digest(earlier) == before
    assert leftovers(tmp_path) == []


def test_an_existing_folder_is_only_replaced_on_request_and_only_if_it_is_ours(
    earlier: Path, tiny_raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("build", "--source", "hela_sbfsem", "--raw", tiny_raw, "--out")
    before = digest(earlier)
    assert run(*arguments, earlier) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert digest(earlier) == before
    precious = tmp_path / "thesis"
    precious.mkdir()
    (precious / "chapter1.tex").write_text("four years of work")
    assert run(*arguments, precious, "--overwrite") == 2
    assert "not a dataset that em-bench built" in capsys.readouterr().err
    assert (precious / "chapter1.tex").read_text() == "four years of work"
    assert run(*arguments, earlier, "--overwrite") == 0
    assert set(datasets.load_dataset(str(earlier))["wild"]["source"]) == {"hela_sbfsem"}
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--source", "luchipp"], "did you mean 'lucchipp'"),
        (["--source", "vnc_sstem", "--raw", "nowhere"], "no such folder"),
        (["--source", "vnc_sstem"], "--raw DIR"),
        (["--source", "lucchipp", "--raw", ".", "--option", "seed=3"], "SOURCE.KEY=VALUE"),
        (["--source", "lucchipp", "--raw", ".", "--option", "phantom.seed=3"], "unknown source in --option"),
        (["--source", "lucchipp", "--raw", ".", "--gap-nm", "-1"], "0 or more nm"),
    ],
)
def test_unusable_arguments(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("build", *arguments, "--out", tmp_path / "out") == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_leak_stops_the_build(tiny_raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw = tmp_path / "raw"
    fake.lucchipp(raw, part="train")
    fake.lucchipp(raw, part="test")  # the same images again
    assert run("build", "--source", "lucchipp", "--raw", raw, "--out", tmp_path / "out") == 2
    assert "looks like" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_held_out_specimen_is_test_only(tiny_raw: Path, tmp_path: Path) -> None:
    arguments = ("build", "--source", "lucchipp", "--source", "vnc_sstem", "--raw", tiny_raw, "--out", tmp_path / "out")
    assert run(*arguments, "--hold-out", "gerhard-drosophila-vnc") == 0
    wild = datasets.load_dataset(str(tmp_path / "out"), "wild")
    assert set(wild["train"]["source"]) == {"lucchipp"}
    assert {(row["source"], row["domain"]) for row in wild["test"]} == {("lucchipp", "in"), ("vnc_sstem", "out")}


def test_a_full_disk_says_so(tiny_raw: Path, earlier: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error is raised by hand here; ``test_a_really_full_disk`` uses a real small file system where it may."""
    before = digest(earlier)

    def no_space(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(build_module.stages, "store_box", no_space)
    with pytest.raises(InputError, match="no space left"):
        build([Job.of("lucchipp", tiny_raw, {})], earlier, SplitPolicy(), overwrite=True)
    assert digest(earlier) == before
    assert leftovers(earlier.parent) == []


@pytest.mark.parametrize("size", ["60k", "300k"])  # full at the first volume, and later
def test_a_really_full_disk(tiny_raw: Path, tmp_path: Path, size: str) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"may not mount a small file system: {mounted.stderr.decode().strip()}")
    jobs = [Job.of("hela_sbfsem", tiny_raw, {})]
    try:
        with pytest.raises(InputError, match="no space left"):
            build(jobs, disk / "out", SplitPolicy())
        assert not (disk / "out").exists()
        subprocess.run(["mount", "-o", "remount,size=50m", str(disk)], check=True)
        build(jobs, disk / "out", SplitPolicy())
        build(jobs, tmp_path / "elsewhere", SplitPolicy())
        assert digest(disk / "out") == digest(tmp_path / "elsewhere"), "what was finished before was used well"
        assert leftovers(disk) == []
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("kill", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_build_leaves_the_earlier_dataset_and_can_be_rerun(
    earlier: Path, tmp_path: Path, kill: signal.Signals, capsys: pytest.CaptureFixture[str]
) -> None:
    before = digest(earlier)
    raw = tmp_path / "raw"
    fake.vnc_sstem(raw)
    fake.lucchipp(raw, shape=(60, 400, 400))
    command = [sys.executable, "-m", "em_bench_eval.cli", "build", "--raw", str(raw), "--out", str(earlier)]
    command += ["--source", "vnc_sstem", "--source", "lucchipp", "--overwrite"]
    process = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=tmp_path,
        # a shell starts what it puts into the background deaf to Ctrl-C, and its children with it
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob(".*partial/dataset/volumes/lucchipp*")) and time.monotonic() < deadline:
        assert process.poll() is None, "the build ended before it could be interrupted"
        time.sleep(0.01)
    process.send_signal(kill)
    assert process.wait(60) == (-signal.SIGKILL if kill == signal.SIGKILL else 130)
    assert digest(earlier) == before
    assert leftovers(tmp_path) == [".em-organelle-wild.partial"], "what is finished is kept"
    other = ("build", "--source", "hela_sbfsem", "--raw", fake.hela_sbfsem(raw).parent, "--out", earlier, "--overwrite")
    assert run(*other) == 2
    message = capsys.readouterr().err
    assert "an unfinished build" in message
    assert "--restart" in message
    assert run(*map(str, command[3:])) == 0, "the same command continues"
    build([Job.of(name, raw, {}) for name in ("vnc_sstem", "lucchipp")], tmp_path / "at-once", SplitPolicy())
    assert digest(earlier) == digest(tmp_path / "at-once")
    assert leftovers(tmp_path) == []


def test_restart_discards_what_another_build_left(earlier: Path, tmp_path: Path, tiny_raw: Path) -> None:
    partial = tmp_path / ".em-organelle-wild.partial"
    (partial / "dataset").mkdir(parents=True)
    (partial / "manifest.json").write_text('{"jobs": []}')
    with pytest.raises(InputError, match="had other settings"):
        build([Job.of("hela_sbfsem", tiny_raw, {})], earlier, SplitPolicy(), overwrite=True)
    build([Job.of("hela_sbfsem", tiny_raw, {})], earlier, SplitPolicy(), overwrite=True, restart=True)
    assert leftovers(tmp_path) == []


def test_sources_command_lists_and_describes(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("sources") == 0
    listed = capsys.readouterr().out
    assert "vnc_sstem" in listed
    assert "50, 4.6, 4.6" in listed
    assert run("sources", "vnc_sstem") == 0
    assert "stack1/labels" in capsys.readouterr().out
    assert run("sources", "vnc") == 2
    assert "did you mean 'vnc_sstem'" in capsys.readouterr().err


@pytest.mark.real_data
def test_the_three_real_sources_build_and_load(real_data: Path, tmp_path: Path) -> None:
    out = tmp_path / "em-organelle-wild"
    sources = [argument for name in SOURCES for argument in ("--source", name)]
    assert run("build", *sources, "--raw", real_data, "--out", out) == 0
    wild = datasets.load_dataset(str(out), "wild")
    assert {fold: len(rows) for fold, rows in wild.items()} == {"train": 40, "validation": 10, "test": 19}
    hela = [row for row in wild["test"] if row["source"] == "hela_sbfsem"]
    assert sum(len(row["objects"]) for row in hela) == 35 + 43 + 34
    assert all(isinstance(row["ignore"], Image.Image) for row in hela)
    assert os.listdir(tmp_path) == ["em-organelle-wild"]
