"""Block-wise labelling equals ``lpa.label`` bit by bit, wherever it runs and however often it is killed."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorstore as ts
from hypothesis import given, settings
from hypothesis import strategies as st

from em_bench_eval.errors import InputError
from em_bench_eval.schema import VoxelSize
from em_bench_eval.volume_io import open_volume
from lpa import blockwise, jobs
from lpa.block import FACES, Block
from lpa.blockwise import LabelReport, chunk_edge, default_block_shape, label_zarr
from lpa.faces import FORWARD
from lpa.label import label
from lpa.ome_zarr import create_labels
from lpa.plan import Plan

NM = (30.0, 8.0, 8.0)
CONNECTIVITIES: list[Any] = [6, 18, 26, {"mito": 6, "nucleus": 18, "er": 26, "endo": 18, "golgi": 6}]


def store(path: Path, semantic: np.ndarray) -> Path:
    chunk = tuple(max(1, size) for size in semantic.shape)
    array = create_labels(path, semantic.shape, semantic.dtype, NM, chunk, chunk, translation_nm=(1, 2, 3))
    array.write(semantic).result()
    return path


def clumps(shape: tuple[int, int, int], seed: int, classes: int = 5, filled: float = 0.5) -> np.ndarray:
    """Touching classes in clumps of about three voxels, so that components reach far and wind."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(1, classes + 1, tuple(-(-size // 2) for size in shape)).astype(np.uint8)
    coarse[rng.random(coarse.shape) > filled] = 0
    fine = coarse.repeat(2, 0).repeat(2, 1).repeat(2, 2)[: shape[0], : shape[1], : shape[2]]
    flip = rng.random(shape)
    return np.where(flip < 0.1, 0, np.where(flip > 0.95, rng.integers(1, classes + 1, shape), fine)).astype(np.uint8)


def run(source: Path, destination: Path, *arguments: Any, **options: Any) -> LabelReport:
    return label_zarr(source, destination, *arguments, **{"workers": 2, "progress": False, **options})


@pytest.fixture
def volume(tmp_path: Path) -> np.ndarray:
    semantic = clumps((24, 30, 28), seed=3)
    store(tmp_path / "in", semantic)
    return semantic


BLOCK = (9, 10, 8)  # 3 x 3 x 4 blocks, the last ones cut off


# --- equality -----------------------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(
    shape=st.tuples(*[st.integers(1, 9)] * 3),
    block=st.tuples(*[st.integers(1, 6)] * 3),
    seed=st.integers(0, 2**32 - 1),
    filled=st.sampled_from([0.2, 0.5, 0.9]),
    connectivity=st.sampled_from(CONNECTIVITIES),
    relabel=st.sampled_from(["min_index", "compact"]),
)
def test_equals_the_labelling_in_memory(
    tmp_path_factory: pytest.TempPathFactory,
    shape: tuple[int, int, int],
    block: tuple[int, int, int],
    seed: int,
    filled: float,
    connectivity: int | Mapping[str, int],
    relabel: str,
) -> None:
    folder = tmp_path_factory.mktemp("volume")
    semantic = clumps(shape, seed, filled=filled)
    # few blocks: each file costs a flush to disk
    block = tuple(max(edge, -(-size // 4)) for edge, size in zip(block, shape, strict=True))
    report = run(store(folder / "in", semantic), folder / "out", block, connectivity, relabel, workers=1)
    expected = label(semantic, connectivity, relabel)
    found = open_volume(folder / "out")
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found[:], expected)
    names, first = np.unique(expected, return_index=True)
    classes, counts = np.unique(semantic.ravel()[first[names > 0]], return_counts=True)
    assert report.instances == dict(zip(classes.tolist(), counts.tolist(), strict=True))


@pytest.mark.parametrize("connectivity", CONNECTIVITIES, ids=str)
@pytest.mark.parametrize("step", FORWARD)
def test_two_voxels_across_every_border(step: tuple[int, int, int], connectivity: Any, tmp_path: Path) -> None:
    """Blocks of one voxel: every contact is one between blocks, along each of the 13 directions."""
    semantic = np.zeros((3, 3, 3), np.uint8)
    semantic[1, 1, 1] = semantic[tuple(1 + d for d in step)] = 2
    run(store(tmp_path / "in", semantic), tmp_path / "out", (2, 2, 2), connectivity)
    np.testing.assert_array_equal(open_volume(tmp_path / "out")[:], label(semantic, connectivity))


@pytest.mark.parametrize("dtype", ["bool", "int8", "uint16", "int32", "uint64"])
def test_every_integer_type(dtype: str, tmp_path: Path) -> None:
    semantic = clumps((8, 9, 10), seed=1)
    if dtype == "uint64":
        semantic = semantic * np.uint64(2**60 + 1)  # values that only differ beyond 32 bits, and beyond a double
    elif np.dtype(dtype).itemsize > 1:
        semantic = semantic.astype(dtype) * 300
    semantic = semantic.astype(dtype)
    report = run(store(tmp_path / "in", semantic), tmp_path / "out", (4, 5, 6))
    np.testing.assert_array_equal(open_volume(tmp_path / "out")[:], label(semantic))
    assert set(report.instances) == set(np.unique(semantic).tolist()) - {0}


def test_default_connectivity_also_for_values_that_are_no_organelles(tmp_path: Path) -> None:
    semantic = clumps((10, 11, 12), seed=5, classes=7)
    run(store(tmp_path / "in", semantic), tmp_path / "out", (5, 5, 5), "default")
    organelles = label(np.where(semantic <= 5, semantic, 0), {"mito": 6})  # the others have their default
    others = label(np.where(semantic > 5, semantic, 0), 26)
    np.testing.assert_array_equal(open_volume(tmp_path / "out")[:], np.maximum(organelles, others))


def test_a_component_that_winds_through_every_block(tmp_path: Path) -> None:
    semantic = np.zeros((9, 9, 9), np.uint8)
    semantic[::2] = 1
    semantic[1::4, 0, 0] = semantic[3::4, -1, -1] = 1  # one long snake
    report = run(store(tmp_path / "in", semantic), tmp_path / "out", (2, 3, 4), 6)
    assert report.instances == {1: 1}
    np.testing.assert_array_equal(open_volume(tmp_path / "out")[:], semantic)


def test_nothing_to_label(tmp_path: Path) -> None:
    report = run(store(tmp_path / "in", np.zeros((5, 6, 7), np.uint8)), tmp_path / "out", (3, 3, 3))
    assert report.instances == {}
    assert not open_volume(tmp_path / "out")[:].any()


def test_faces_are_the_borders_of_the_labels() -> None:
    semantic = clumps((5, 6, 7), seed=2)
    block = Block(semantic, 26)
    compact = label(semantic, 26, "compact")
    for name, face in block.faces().items():
        axis, side = "zyx".index(name[0]), -int(name[1])
        np.testing.assert_array_equal(face, compact.take(side, axis))
    assert tuple(block.faces()) == FACES
    out = np.empty(semantic.shape, np.uint64)
    block.write(block.first + 1, out)
    np.testing.assert_array_equal(out, label(semantic))
    np.testing.assert_array_equal(block.classes, semantic.ravel()[block.first])


# --- what is written ------------------------------------------------------------------------------------------


def test_the_result_keeps_the_place_of_its_source(volume: np.ndarray, tmp_path: Path) -> None:
    report = run(tmp_path / "in", tmp_path / "out", BLOCK)
    opened = open_volume(tmp_path / "out")
    assert opened.voxel_size_nm == VoxelSize(*NM)
    assert opened.translation_nm == (1.0, 2.0, 3.0)
    assert opened.attributes["lpa"]["instances_of_class"] == {str(k): v for k, v in report.instances.items()}
    assert opened.array.store.spec().to_json()["metadata"]["chunk_grid"]["configuration"]["chunk_shape"] == list(BLOCK)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"], "no remains"
    assert not list(tmp_path.rglob("*.__lock"))


def test_the_report_is_one_line(volume: np.ndarray, tmp_path: Path) -> None:
    line = str(run(tmp_path / "in", tmp_path / "out", BLOCK, 6))
    count = len(np.unique(label(volume, 6))) - 1
    assert line.startswith(f"{count:,} instances (mito ")
    assert "24 x 30 x 28 voxels" in line
    assert "Mvoxel/s" in line
    assert "\n" not in line


def test_names_beyond_32_bits() -> None:
    shape, block = (2000, 2000, 2000), (256, 256, 256)
    plan = Plan("in", shape, "uint8", "/out", block, 26, "min_index")
    assert plan.label_dtype == np.uint64
    assert Plan("in", shape, "uint8", "/out", block, 26, "compact").label_dtype == np.uint32
    assert Plan("in", (1024, 2048, 2048), "uint8", "/out", block, 26, "min_index").label_dtype == np.uint64
    assert Plan("in", (1024, 2048, 2047), "uint8", "/out", block, 26, "min_index").label_dtype == np.uint32
    inside = np.array([0, 1, 207, 208, 53_247, 53_248])  # the last block is 208 a side
    z, y, x = np.unravel_index(inside, (208, 208, 208))
    expected = np.ravel_multi_index((z + 1792, y + 1792, x + 1792), shape) + 1
    np.testing.assert_array_equal(plan.global_uid((7, 7, 7), inside), expected)
    assert expected.max() > 2**32


def test_shapes_of_blocks_and_chunks() -> None:
    assert default_block_shape((5000, 5000, 5000), (64, 64, 64)) == (256, 256, 256)
    assert default_block_shape((5000, 5000, 5000), (100, 96, 128)) == (300, 288, 256)
    assert default_block_shape((40, 5000, 100), (1, 2048, 2048)) == (40, 256, 100)
    assert [chunk_edge(edge) for edge in (256, 300, 40, 7, 251)] == [64, 60, 40, 7, 251]


# --- what is refused ------------------------------------------------------------------------------------------


def refusal(*arguments: Any, **options: Any) -> str:
    with pytest.raises(InputError) as caught:
        run(*arguments, **options)
    return str(caught.value)


def test_an_existing_destination_is_kept(volume: np.ndarray, tmp_path: Path) -> None:
    run(tmp_path / "in", tmp_path / "out", BLOCK, 6)
    before = open_volume(tmp_path / "out")[:]
    assert "exists" in refusal(tmp_path / "in", tmp_path / "out", BLOCK, 26)
    np.testing.assert_array_equal(open_volume(tmp_path / "out")[:], before)
    run(tmp_path / "in", tmp_path / "out", BLOCK, 26, overwrite=True)
    np.testing.assert_array_equal(open_volume(tmp_path / "out")[:], label(volume, 26))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]


def test_unusable_places(volume: np.ndarray, tmp_path: Path) -> None:
    assert "replace the source" in refusal(tmp_path / "in", tmp_path / "in", overwrite=True)
    assert "replace the source" in refusal(tmp_path / "in" / "s0", tmp_path / "in", overwrite=True)
    (tmp_path / "link").symlink_to(tmp_path / "in")
    assert "replace the source" in refusal(tmp_path / "link", tmp_path / "in", overwrite=True)
    assert "local" in refusal(tmp_path / "in", "s3://bucket/out")
    assert "no volume" in refusal(tmp_path / "nothing", tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "link"]


def test_source_and_destination_above_this_folder(
    volume: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store(tmp_path / "semantic.zarr", volume)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    run(Path("../semantic.zarr"), Path("../labels.zarr"))
    np.testing.assert_array_equal(open_volume("../labels.zarr")[:], label(volume))


def test_an_image_is_not_labelled_instead_of_its_labels(tmp_path: Path) -> None:
    store(tmp_path / "cell", clumps((6, 6, 6), seed=1, classes=200))
    metadata = json.loads((tmp_path / "cell" / "zarr.json").read_text())
    del metadata["attributes"]["ome"]["image-label"]
    (tmp_path / "cell" / "zarr.json").write_text(json.dumps(metadata))
    run(tmp_path / "cell", tmp_path / "out")  # nothing says that it is no semantic volume
    store(tmp_path / "cell" / "labels" / "semantic", clumps((6, 6, 6), seed=1))
    assert f"label {tmp_path}/cell/labels/semantic" in refusal(tmp_path / "cell", tmp_path / "out2")
    run(tmp_path / "cell" / "labels" / "semantic", tmp_path / "out2")


def test_unusable_settings(volume: np.ndarray, tmp_path: Path) -> None:
    for options, said in [
        ({"connectivity": 8}, "found: 8"),
        ({"connectivity": {"mitos": 6}}, "did you mean 'mito'"),
        ({"connectivity": "full"}, "default"),
        ({"relabel": "none"}, "compact"),
        ({"block_shape": (8, 8)}, "three edges"),
        ({"block_shape": (8, 8, 0)}, "three edges"),
        ({"workers": 0}, "1 or more"),
        ({"scheduler": "cluster"}, "tcp://"),
    ]:
        assert said in refusal(tmp_path / "in", tmp_path / "out", **options)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]
    store(tmp_path / "float", np.full((3, 3, 3), 0.5, np.float32))  # whole numbers stored as floats are labels
    assert "float32 with the value 0.5" in refusal(tmp_path / "float", tmp_path / "out2")
    assert not (tmp_path / "out2").exists()
    store(tmp_path / "other", np.full((3, 3, 3), 9, np.uint8))
    assert "[9]" in refusal(tmp_path / "other", tmp_path / "out3", connectivity={"mito": 6})
    store(tmp_path / "empty", np.zeros((3, 0, 3), np.uint8))
    assert "is empty" in refusal(tmp_path / "empty", tmp_path / "out4")


# --- interrupted runs -----------------------------------------------------------------------------------------

KILLED = """
    import os, signal, sys
    from lpa import blockwise
    source, destination, name, after = sys.argv[1:]
    work, calls = getattr(blockwise, name), []
    def dies(job):
        calls.append(job)
        if len(calls) > int(after):
            os.kill(os.getpid(), signal.SIGKILL)
        return work(job)
    setattr(blockwise, name, dies)
    blockwise.label_zarr(source, destination, (9, 10, 8), 26, workers=1, progress=False)
"""


def kill_in(name: str, after: int, folder: Path) -> None:
    """Run in a process of its own, which kills itself with SIGKILL at one block more than ``after``."""
    command = [sys.executable, "-c", textwrap.dedent(KILLED), str(folder / "in"), str(folder / "out"), name, str(after)]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert not (folder / "out").exists()


class Counted:
    """A job that counts how often it is done."""

    def __init__(self, name: str, monkeypatch: pytest.MonkeyPatch):
        self.blocks: list[tuple[int, int, int]] = []
        work = getattr(jobs, name)

        def counted(job: jobs.Job) -> Any:
            self.blocks.append(job.block)
            return work(job)

        monkeypatch.setattr(blockwise, name, counted)


@pytest.mark.parametrize(
    ("name", "left"), [("find_components", (36 - 7, 36)), ("write_labels", (0, 36 - 7))], ids=["pass 1", "pass 2"]
)
def test_a_killed_run_continues(
    name: str, left: tuple[int, int], volume: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kill_in(name, 7, tmp_path)
    found, written = Counted("find_components", monkeypatch), Counted("write_labels", monkeypatch)
    report = run(tmp_path / "in", tmp_path / "out", BLOCK, 26)
    assert (len(set(found.blocks)), len(set(written.blocks))) == (len(found.blocks), len(written.blocks)) == left
    assert (report.found_before, report.written_before) == (36 - left[0], 36 - left[1])
    np.testing.assert_array_equal(open_volume(tmp_path / "out")[:], label(volume))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]


def test_killed_again_and_again(volume: np.ndarray, tmp_path: Path) -> None:
    kill_in("find_components", 20, tmp_path)
    kill_in("write_labels", 5, tmp_path)
    journal = tmp_path / ".out.partial" / "written.txt"
    journal.write_text(journal.read_text() + "1 1")  # a line torn by the kill is no finished block
    kill_in("write_labels", 4, tmp_path)
    report = run(tmp_path / "in", tmp_path / "out", BLOCK, 26)
    assert (report.found_before, report.written_before) == (36, 9)
    np.testing.assert_array_equal(open_volume(tmp_path / "out")[:], label(volume))


def test_an_interrupted_run_is_not_continued_with_other_settings(volume: np.ndarray, tmp_path: Path) -> None:
    kill_in("write_labels", 3, tmp_path)
    said = refusal(tmp_path / "in", tmp_path / "out", BLOCK, 6)
    assert "connectivity 26" in said
    assert "connectivity 6" in said
    run(tmp_path / "in", tmp_path / "out", BLOCK, 6, overwrite=True)
    np.testing.assert_array_equal(open_volume(tmp_path / "out")[:], label(volume, 6))


def test_a_source_that_changed_meanwhile_is_noticed(volume: np.ndarray, tmp_path: Path) -> None:
    kill_in("write_labels", 0, tmp_path)
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(tmp_path / "in" / "s0")}}
    ts.open(spec).result().write(np.roll(volume, 3, 2)).result()
    assert "has changed" in refusal(tmp_path / "in", tmp_path / "out", BLOCK, 26)
    assert not (tmp_path / "out").exists()


def test_two_runs_do_not_write_the_same_destination(
    volume: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []

    def meanwhile(job: jobs.Job) -> Any:
        if not said:
            said.append(refusal(tmp_path / "in", tmp_path / "out", BLOCK, 26))
        return jobs.find_components(job)

    monkeypatch.setattr(blockwise, "find_components", meanwhile)
    run(tmp_path / "in", tmp_path / "out", BLOCK, 26, workers=1)
    assert "another run" in said[0]


def test_a_failing_block_ends_the_run_and_is_done_next_time(
    volume: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(job: jobs.Job) -> Any:
        if job.block == (1, 1, 1):
            raise OSError("disk full")
        return jobs.write_labels(job)

    with monkeypatch.context() as patched:
        patched.setattr(blockwise, "write_labels", fails)
        with pytest.raises(OSError, match="disk full"):
            run(tmp_path / "in", tmp_path / "out", BLOCK)
    assert not (tmp_path / "out").exists()
    run(tmp_path / "in", tmp_path / "out", BLOCK)
    np.testing.assert_array_equal(open_volume(tmp_path / "out")[:], label(volume))


# --- other schedulers -----------------------------------------------------------------------------------------


def test_in_processes(volume: np.ndarray, tmp_path: Path) -> None:
    run(tmp_path / "in", tmp_path / "out", BLOCK, {"er": 18}, "compact", "processes")
    np.testing.assert_array_equal(open_volume(tmp_path / "out")[:], label(volume, {"er": 18}, "compact"))


@pytest.fixture
def cluster() -> Iterator[Any]:
    distributed = pytest.importorskip("dask.distributed")
    options: dict[str, Any] = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None, "processes": True}
    with distributed.LocalCluster(**options) as cluster:
        cluster.wait_for_workers(2)
        yield cluster


def test_on_a_cluster_that_loses_a_worker(cluster: Any, tmp_path: Path) -> None:
    semantic = clumps((48, 48, 48), seed=9)
    store(tmp_path / "in", semantic)
    faces = tmp_path / ".out.partial" / "faces"
    killed: list[int] = []

    def kill() -> None:
        victim = next(iter(cluster.workers.values())).process.pid
        for _ in itertools.takewhile(lambda _: len(list(faces.glob("*.npz"))) < 5, range(3000)):
            time.sleep(0.01)
        os.kill(victim, signal.SIGKILL)
        killed.append(len(list(faces.glob("*.npz"))))

    thread = threading.Thread(target=kill)
    thread.start()
    run(tmp_path / "in", tmp_path / "out", (8, 8, 8), 26, scheduler=cluster.scheduler_address)
    thread.join()
    assert 5 <= killed[0] < 216, "a worker died in the middle"
    np.testing.assert_array_equal(open_volume(tmp_path / "out")[:], label(semantic))


def test_no_scheduler_there(volume: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("dask.distributed")
    monkeypatch.setattr("lpa.scheduler.CONNECT_TIMEOUT", "1s")
    assert "127.0.0.1:9" in refusal(tmp_path / "in", tmp_path / "out", scheduler="tcp://127.0.0.1:9")
