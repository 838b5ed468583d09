"""What `em-bench build` tells before it builds, and how it ends where files cannot be used."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import fake
import numpy as np
import pytest
import tifffile
import yaml

from dataset_builder import jobs as jobs_module
from dataset_builder.splits import SplitPolicy
from em_bench_eval.cli import main
from em_bench_eval.errors import InputError


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def write_spec(
    folder: Path, name: str, modality: str = "FIB-SEM", slices: int = 120, seed: int = 0, **volume: object
) -> Path:
    """A spec over one volume with a specimen group of its own."""
    gray = np.random.default_rng(seed).integers(0, 256, (slices, 64, 64)).astype(np.uint8)
    for kind, array in (("gray", gray), ("mito", (gray > 128).astype(np.uint8))):
        tifffile.imwrite(folder / f"{kind}-{name}.tif", array, photometric="minisblack")
    entry = {"id": "a", "image": f"gray-{name}.tif", "specimen": f"mouse-{name}", "cell_type": "cell"}
    entry |= {"labels": [{"path": f"mito-{name}.tif", "values": {1: "mito", 0: "background"}}]}
    entry |= {"voxel_size_nm": [8, 8, 8], "annotated": {"mito": "manual"}, **volume}
    path = folder / f"{name}.yaml"
    source = {"name": name, "licence": "none stated", "modality": modality}
    path.write_text(yaml.safe_dump({"source": source, "volumes": [entry]}))
    return path


# --- several specs ------------------------------------------------------------------------------------------------


def test_several_specs_are_several_sources(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, two = write_spec(tmp_path, "one", slices=60), write_spec(tmp_path, "two", slices=60, seed=1)
    assert run("build", "--spec", one, "--spec", two, "--out", tmp_path / "out", "--dry-run") == 0
    said = capsys.readouterr().out
    assert "would build 2 volumes" in said
    assert "one-a: 60 x 64 x 64 voxels, specimen mouse-one, homogeneous, in; train" in said
    assert "two-a: 60 x 64 x 64 voxels, specimen mouse-two, homogeneous, in; train" in said
    assert run("build", "--source", "local", "--spec", one, "--out", tmp_path / "out", "--dry-run") == 0
    assert "would build 1 volumes" in capsys.readouterr().out


@pytest.mark.parametrize("more", [[], ["--dry-run"]])
def test_two_specs_of_one_name_are_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str]
) -> None:
    (tmp_path / "other").mkdir()
    one, two = write_spec(tmp_path, "lab"), write_spec(tmp_path / "other", "lab")
    assert run("build", "--spec", one, "--spec", two, "--out", tmp_path / "out", *more) == 2
    message = capsys.readouterr().err
    assert f"two sources are called lab\n  found: {one} and {two}" in message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("modality", "told"),
    [
        ("FIB-SEM", ""),
        ("FIBSEM", "did you mean 'FIB-SEM'? Only FIB-SEM can be homogeneous"),
        ("fib_sem", "did you mean 'FIB-SEM'?"),
        ("SS-TEM", "did you mean 'ssTEM'?"),
        ("cryo-ET", "is new; sources have AT-SEM, FIB-SEM"),
    ],
)
def test_a_modality_that_no_source_has_is_noted(
    modality: str, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = write_spec(tmp_path, "lab", modality, slices=4)
    assert run("build", "--spec", spec, "--out", tmp_path / "out", "--dry-run") == 0
    message = capsys.readouterr().err
    assert told in message
    assert ("note:" in message) == bool(told)


# --- held out, and where volumes lie --------------------------------------------------------------------------------


@pytest.mark.parametrize("more", [[], ["--dry-run"]])
def test_an_unknown_specimen_group_is_told_before_anything_is_built(
    tmp_path: Path, tiny_raw: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, more: list[str]
) -> None:
    def build_one(*arguments: object) -> None:
        raise AssertionError("nothing is to be built")

    monkeypatch.setattr("dataset_builder.build.stages.whole_volume", build_one)
    monkeypatch.setattr("dataset_builder.build._by_boxes", build_one)
    out = tmp_path / "new" / "out"
    arguments = ["build", "--source", "lucchipp", "--source", "vnc_sstem", "--raw", tiny_raw, "--out", out, *more]
    assert run(*arguments, "--hold-out", "gerhard-drosophila-vnc", "--hold-out", "lucchi-ca1-hipocampus") == 2
    message = capsys.readouterr().err
    assert "found: lucchi-ca1-hipocampus\n" in message
    assert "expected: --hold-out with one of gerhard-drosophila-vnc, lucchi-ca1-hippocampus" in message
    assert "did you mean 'lucchi-ca1-hippocampus'" in message
    assert "0volume" not in message
    assert not any(tmp_path.rglob("*out*"))


def test_the_specimens_of_a_spec_are_known_without_its_volumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def volumes(self: object) -> None:
        raise AssertionError("opening the volumes of a spec may read all of its labels")

    monkeypatch.setattr(jobs_module.Job, "volumes", volumes)
    spec = write_spec(tmp_path, "lab", slices=4)
    assert run("build", "--spec", spec, "--out", tmp_path / "out", "--hold-out", "mouse-lap") == 2
    assert "did you mean 'mouse-lab'" in capsys.readouterr().err


def test_held_out_groups_are_asked_for_no_longer_than_needed() -> None:
    asked = []
    policy = SplitPolicy(held_out=frozenset({"b"}))
    policy.check_held_out(asked.append(name) or name for name in "abcd")  # type: ignore[func-returns-value]
    assert asked == ["a", "b"]
    SplitPolicy().check_held_out(asked.append(name) or name for name in "abcd")  # type: ignore[func-returns-value]
    assert asked == ["a", "b"]
    with pytest.raises(InputError, match="there are no volumes"):
        policy.check_held_out([])


def test_a_dry_run_finds_leaks_that_show_without_pixels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = write_spec(tmp_path, "lab", slices=20, fold="test", frame="stack", origin_nm=[0, 0, 0])
    second = write_spec(tmp_path, "lab", slices=20, fold="validation", frame="stack", origin_nm=[160, 0, 0])
    content = yaml.safe_load(second.read_text())
    content["volumes"].append({**content["volumes"][0], "id": "b", "fold": "test", "origin_nm": [0, 0, 0]})
    first.write_text(yaml.safe_dump(content))
    assert run("build", "--spec", first, "--out", tmp_path / "out", "--dry-run") == 2
    message = capsys.readouterr().err
    assert "the split leaks in 1 place" in message
    assert "are 0 nm apart, not 40, in lab: stack" in message


# --- what is noted --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dry", [True, False])
def test_axes_that_add_nothing_are_noted_once(tmp_path: Path, capsys: pytest.CaptureFixture[str], dry: bool) -> None:
    fake.lucchipp(tmp_path / "raw", shape=(40, 64, 64))
    fake.vnc_sstem(tmp_path / "raw", shape=(12, 64, 64))
    arguments = ["build", "--source", "lucchipp", "--source", "vnc_sstem", "--raw", tmp_path / "raw"]
    arguments += ["--out", tmp_path / "out", "--axes", "all", *["--dry-run"] * dry]
    assert run(*arguments) == 0
    captured = capsys.readouterr()
    said = captured.out if dry else captured.err
    assert said.count("note: ") == 1
    assert (
        "note: --axes all adds no images along y and x to 2 of 2 volumes: slabs are thinner than 32 slices "
        "(lucchipp-train); voxels are not isotropic (vnc_sstem-stack1)\n"
    ) in said
    assert run(*arguments[:-2] if not dry else arguments[:-3], *["--overwrite"] * (not dry), *["--dry-run"] * dry) == 0
    captured = capsys.readouterr()
    assert "note: " not in captured.out + captured.err


def test_a_fault_of_the_first_volume_is_told_without_a_bar(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw = fake.vnc_sstem(tmp_path / "raw").parent
    (raw / "vnc_sstem" / "stack1" / "raw" / "03.png").unlink()
    assert run("build", "--source", "vnc_sstem", "--raw", raw, "--out", tmp_path / "out") == 2
    assert "building" not in capsys.readouterr().err


# --- files that cannot be used --------------------------------------------------------------------------------------


def test_the_whole_disk_is_no_dataset(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("build", "--source", "phantom", "--out", os.path.abspath(os.sep)) == 2
    assert "is the whole disk" in capsys.readouterr().err


def test_a_path_through_a_file_is_told(tmp_path: Path, tiny_raw: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert run("build", "--source", "vnc_sstem", "--raw", tiny_raw, "--out", tmp_path / "file" / "out") == 2
    message = capsys.readouterr().err
    assert f"em-bench build: cannot read or write {tmp_path / 'file'}" in message
    assert "choose another name" in message


@pytest.mark.parametrize(
    ("number", "told"),
    [
        (errno.EACCES, "found: Permission denied\n  what to do: change its permissions"),
        (errno.EROFS, "found: Read-only file system\n  what to do: this file system can only be read"),
        (errno.EIO, "then run the same command again"),
    ],
)
def test_an_error_of_the_system_is_told_with_its_file(
    number: int, told: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def sources(arguments: list[str]) -> int:
        raise OSError(number, os.strerror(number), "data/a.tif")

    monkeypatch.setattr("dataset_builder.cli.sources", sources)
    assert main(["sources"]) == 2
    message = capsys.readouterr().err
    assert message.startswith("em-bench sources: cannot read or write data/a.tif\n")
    assert told in message


def test_an_error_of_the_system_without_a_file_is_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    def sources(arguments: list[str]) -> int:
        raise OSError(errno.EBADF, "Bad file descriptor")

    monkeypatch.setattr("dataset_builder.cli.sources", sources)
    with pytest.raises(OSError, match="Bad file descriptor"):
        main(["sources"])
