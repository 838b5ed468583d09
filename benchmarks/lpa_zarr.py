"""lpa.label_zarr against reading and writing alone, block-wise cc3d and dask-image; time, memory, scaling.

    python benchmarks/lpa_zarr.py                        # 512^3 and 1024^3, 5 rounds: about 20 minutes, 3 GB of disk
    python benchmarks/lpa_zarr.py --size 96 --rounds 1   # a quick look, as CI does
    python benchmarks/lpa_zarr.py --dask-image 256       # also dask-image, at its own size (minutes)

Equality comes first: with lpa.label at sizes up to 512. Then a round runs every method once, each in a fresh process
that has done a tiny volume before (imports, compiled code). ``lpa``: threads. ``floor``: the same threads and blocks
read the source twice and write the finished labels once, and do nothing else. ``cc3d``: cc3d instead of our kernels,
with our join, reading and writing; it holds the GIL, so for several workers it gets processes (whose start counts:
compare it with ``lpa-processes``). CPU seconds are of all processes and threads: on a machine that others use too they
say more than wall seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)  # instead of this folder, where a file is called lpa

import numba  # noqa: E402

from benchmarks import volumes  # noqa: E402
from lpa import jobs  # noqa: E402

BLOCK = 256
TARGETS = {
    "time over reading twice and writing once": "<= 2.2",
    "speed over block-wise cc3d": ">= 1.4",
    "speed over dask-image": ">= 20",
    "cost per voxel, 1024 over 512": "0.8 to 1.2",
    "speed of 2 workers over 1": ">= 1.5",
    "peak extra memory, MB": "<= 600",
}


def array_spec(path: Path, shape: tuple[int, ...], dtype: str) -> dict[str, Any]:
    from lpa.blockwise import chunk_edge
    from lpa.ome_zarr import ZSTD_LEVEL, array_metadata

    shard = tuple(min(BLOCK, size) for size in shape)
    chunk = tuple(chunk_edge(edge) for edge in shard)
    kvstore = {"driver": "file", "path": str(path)}
    return {"driver": "zarr3", "kvstore": kvstore, "metadata": array_metadata(shape, dtype, chunk, shard, ZSTD_LEVEL)}


def prepare(size: int, folder: Path) -> Path:
    """Write the five classes once; above 512, the periodic 512^3 volume side by side."""
    import tensorstore as ts

    from em_bench_eval.volume_io import open_volume

    path = folder / f"five-{size}.zarr"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        half = folder / "five-512.zarr"
        tile = open_volume(half)[:] if size > 512 and half.exists() else volumes.five_classes(min(size, 512))
        partial = folder / f"five-{size}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        store = ts.open(array_spec(partial, (size,) * 3, "uint8"), create=True).result()
        for z in range(0, size, tile.shape[0]):
            for y in range(0, size, tile.shape[1]):
                for x in range(0, size, tile.shape[2]):
                    box = np.s_[z : z + tile.shape[0], y : y + tile.shape[1], x : x + tile.shape[2]]
                    store[box].write(tile[: size - z, : size - y, : size - x]).result()
        partial.rename(path)
    return path


# --- the methods: each prepares to label `source` into `destination`, and returns what is then measured ----------

Run = Callable[[], object]


def label_blocks(source: Path, destination: Path, workers: int, scheduler: str | None = None) -> Run:
    from lpa.blockwise import label_zarr

    options: dict[str, Any] = {"scheduler": scheduler, "workers": workers, "progress": False}
    return lambda: label_zarr(source, destination, (BLOCK,) * 3, 26, **options)


def read_and_write(source: Path, destination: Path, workers: int) -> Run:
    """Read the source twice and write its labels once, block by block, on as many threads."""
    import tensorstore as ts

    from em_bench_eval.volume_io import open_volume
    from lpa.plan import Plan
    from lpa.scheduler import open_pool

    labels = open_volume(source.with_suffix(".labels"))[:]
    plan = Plan(str(source), labels.shape, "uint8", str(destination), (BLOCK,) * 3, 26, "min_index")

    def run() -> None:
        opened = open_volume(source)
        out = ts.open(array_spec(destination / "s0", labels.shape, labels.dtype.name), create=True).result()

        def read(box: Any) -> None:
            opened[box]

        def read_then_write(box: Any) -> None:
            opened[box]
            out[box].write(labels[box], can_reference_source_data_indefinitely=True).result()

        with open_pool(None, workers) as pool:
            for step in (read, read_then_write):
                for _ in pool.run(step, [plan.box(block) for block in plan.blocks()]):
                    pass

    return run


def label_blocks_with_cc3d(source: Path, destination: Path, workers: int) -> Run:
    from lpa import blockwise

    blockwise.find_components, blockwise.write_labels = cc3d_find_components, cc3d_write_labels
    return label_blocks(source, destination, workers, "threads" if workers == 1 else "processes")


def cc3d_find_components(job: Any) -> Any:
    jobs.Block = Cc3dBlock  # type: ignore[assignment, misc]
    return jobs.find_components(job)


def cc3d_write_labels(job: Any) -> Any:
    jobs.Block = Cc3dBlock  # type: ignore[assignment, misc]
    return jobs.write_labels(job)


@numba.njit(nogil=True, cache=True)
def first_voxels(labels: Any, first: Any, rename: Any) -> None:
    """Find the first voxel of each label, and number the labels in that order."""
    count = 0
    before = 0
    for i in range(labels.size):
        value = labels[i]
        if value != before and value != 0 and rename[value] == 0:
            first[count] = i
            count += 1
            rename[value] = count
        before = value


@numba.njit(nogil=True, cache=True)
def rewrite(labels: Any, names: Any, out: Any) -> None:
    for i in range(labels.size):
        out[i] = names[labels[i]]


class Cc3dBlock:
    """Stands in for ``lpa.block.Block``: cc3d's labels, and a compiled pass for what it does not give."""

    def __init__(self, semantic: npt.NDArray[Any], connectivity: int):
        import cc3d

        found, count = cc3d.connected_components(
            semantic, connectivity=connectivity, return_N=True, out_dtype=np.uint32
        )
        self._labels = found
        self.first = np.empty(count, np.int64)
        self._rename = np.zeros(count + 1, np.uint32)
        first_voxels(found.reshape(-1), self.first, self._rename)
        self.classes = semantic.reshape(-1)[self.first]

    def faces(self) -> dict[str, npt.NDArray[Any]]:
        planes = {f"{axis}{k}": self._labels.take(-k, "zyx".index(axis)) for axis in "zyx" for k in (0, 1)}
        return {name: self._rename[plane] for name, plane in planes.items()}

    def write(self, names: npt.NDArray[Any], out: npt.NDArray[Any]) -> None:
        ordered = np.zeros(len(names) + 1, out.dtype)
        ordered[1:] = names[self._rename[1:].astype(np.int64) - 1]
        rewrite(self._labels.reshape(-1), ordered, out.reshape(-1))


def label_with_dask_image(source: Path, destination: Path, workers: int) -> Run:
    """Make one class of all, for it joins classes that touch; read from memory, which favours it; write to zarr."""
    import dask
    import dask.array as da
    from dask_image.ndmeasure import label
    from scipy import ndimage

    from em_bench_eval.volume_io import open_volume

    semantic = open_volume(source)[:]

    def run() -> None:
        with dask.config.set(scheduler="threads", num_workers=workers):
            mask = da.from_array(semantic, chunks=(min(BLOCK, len(semantic) // 2),) * 3) > 0
            labels, _ = label(mask, structure=ndimage.generate_binary_structure(3, 3))
            labels.astype(np.uint32).to_zarr(str(destination))

    return run


METHODS: dict[str, Callable[[Path, Path, int], Run]] = {
    "lpa": label_blocks,
    "lpa-processes": lambda source, out, workers: label_blocks(source, out, workers, "processes"),
    "floor": read_and_write,
    "cc3d": label_blocks_with_cc3d,
    "dask-image": label_with_dask_image,
}

# --- measuring --------------------------------------------------------------------------------------------------


def cpu_seconds() -> float:
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(use.ru_utime + use.ru_stime for use in usage)


def resident(key: str) -> int:
    """Memory of this process in bytes: ``VmRSS`` now, ``VmHWM`` at most (ru_maxrss would include the parent's)."""
    return int(Path("/proc/self/status").read_text().split(key + ":")[1].split()[0]) * 1024


def measure_once(method: str, source: Path, workers: int) -> dict[str, float]:
    """Time one run in this process; ``memory`` is what it took at most beyond what was there, in bytes."""
    work = Path(tempfile.mkdtemp(dir=source.parent))
    try:
        if method != "floor":  # which has nothing to compile
            METHODS[method](prepare(16, source.parent), work / "warm", workers)()
        run = METHODS[method](source, work / "out", workers)
        Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
        before, cpu = resident("VmRSS"), cpu_seconds()
        began = time.perf_counter()
        run()
        return {"wall": time.perf_counter() - began, "cpu": cpu_seconds() - cpu, "memory": resident("VmHWM") - before}
    finally:
        shutil.rmtree(work)


def measure_apart(method: str, source: Path, workers: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--worker", method, str(source), str(workers)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    found = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    result: dict[str, float] = json.loads(found.stdout.splitlines()[-1])
    return result


def make_reference(source: Path, in_memory: bool) -> dict[str, float]:
    """Keep the labels for the floor, compare them with lpa.label, and measure what the join needs."""
    from em_bench_eval.volume_io import open_volume
    from lpa import blockwise
    from lpa.label import label

    seen: dict[str, float] = {}
    publish = blockwise._publish

    def look(plan: Any) -> None:
        files = list((plan.work / "faces").iterdir())
        seen["blocks"] = len(files)
        seen["face_bytes"] = sum(file.stat().st_size for file in files) / len(files)
        seen["entries"] = (plan.work / "uids").stat().st_size / 8 / len(files)
        publish(plan)

    blockwise._publish = look
    destination = source.with_suffix(".labels")
    print(blockwise.label_zarr(source, destination, (BLOCK,) * 3, 26, overwrite=True, progress=False))
    blockwise._publish = publish
    if in_memory:
        same = np.array_equal(label(open_volume(source)[:], 26), open_volume(destination)[:])
        print(f"{source.stem}: {'equal to' if same else 'DIFFERS FROM'} lpa.label")
        if not same:
            raise SystemExit(1)
    return seen


def extrapolate(seen: dict[str, float], edge: int = 10_000) -> str:
    """Work out disk and memory of the join at ``edge``^3 from what a block needed here."""
    blocks = (edge / BLOCK) ** 3
    entries = blocks * seen["entries"]
    planes = 16 * (edge / BLOCK + 1) * BLOCK**2 * 2  # bytes of what the join keeps of three rows of blocks
    return (
        f"{seen['face_bytes'] / 1e3:.0f} kB of faces and {seen['entries']:.0f} components at a face a block; "
        f"at {edge:,}^3 ({blocks:,.0f} blocks): {blocks * seen['face_bytes'] / 1e9:.1f} GB of faces on disk, uids in a "
        f"file of {8 * entries / 1e6:.0f} MB, join in {(5 * entries + planes) / 1e6:.0f} MB of memory "
        f"({(9 * entries + planes) / 1e6:.0f} MB with relabel='compact')"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=1024, help="edge of the volume; half of it is measured too")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "em_bench_lpa_zarr")
    parser.add_argument("--dask-image", type=int, metavar="SIZE", help="measure dask-image too, at this size, once")
    parser.add_argument("--worker", nargs=3, metavar=("METHOD", "SOURCE", "WORKERS"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        method, source, workers = arguments.worker
        print(json.dumps(measure_once(method, Path(source), int(workers))))
        return

    sizes = (arguments.size // 2, arguments.size)
    many = arguments.workers
    versions = {name: metadata.version(name) for name in ("numpy", "numba", "tensorstore", "connected-components-3d")}
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {versions}")
    prepare(16, arguments.folder)
    sources = {size: prepare(size, arguments.folder) for size in sizes}
    seen = {size: make_reference(source, size <= 512) for size, source in sources.items()}[sizes[1]]
    runs = [
        ("lpa", 1),
        ("lpa", many),
        ("lpa-processes", many),
        ("floor", 1),
        ("floor", many),
        ("cc3d", 1),
        ("cc3d", many),
    ]
    measured: dict[tuple[str, int, int], list[dict[str, float]]] = {}
    for number in range(arguments.rounds):
        for size, source in sources.items():
            for method, workers in runs:
                entry = measure_apart(method, source, workers)
                measured.setdefault((method, workers, size), []).append(entry)
                text = f"round {number + 1}: {size:>5} {method:<13} {workers} workers"
                print(f"{text} {entry['wall']:7.2f} s wall {entry['cpu']:7.2f} s CPU {entry['memory'] / 1e6:6.0f} MB")

    def median(method: str, workers: int, size: int, key: str = "wall") -> float:
        return float(np.median([entry[key] for entry in measured[method, workers, size]]))

    big, small = sizes[1], sizes[0]
    rows: list[tuple[str, str, str]] = []
    for key in ("wall", "cpu"):
        for workers in (1, many):
            ours = median("lpa", workers, big, key)
            name = f"{workers} workers, {key}"
            rows.append(
                ("time over reading twice and writing once", name, f"{ours / median('floor', workers, big, key):.2f}")
            )
            if workers == 1:
                rows.append(("speed over block-wise cc3d", name, f"{median('cc3d', 1, big, key) / ours:.2f}"))
            per_voxel = ours / big**3 / (median("lpa", workers, small, key) / small**3)
            rows.append((f"cost per voxel, {big} over {small}", name, f"{per_voxel:.2f}"))
    rows.append(
        (f"speed of {many} workers over 1", "threads, wall", f"{median('lpa', 1, big) / median('lpa', many, big):.2f}")
    )
    rows.append(
        (
            f"speed of {many} workers over 1",
            "floor, wall",
            f"{median('floor', 1, big) / median('floor', many, big):.2f}",
        )
    )
    rows.append(("peak extra memory, MB", f"{many} workers", f"{median('lpa', many, big, 'memory') / 1e6:.0f}"))
    rows.append(("Mvoxel/s", f"{many} workers", f"{big**3 / median('lpa', many, big) / 1e6:.0f}"))
    if arguments.dask_image:
        source = prepare(arguments.dask_image, arguments.folder)
        ours, theirs = (measure_apart(method, source, many)["wall"] for method in ("lpa", "dask-image"))
        rows.append(("speed over dask-image", f"{arguments.dask_image}^3, {many} workers", f"{theirs / ours:.1f}"))
    print()
    for name, how, value in rows:
        print(f"{name:<42} {how:<20} {value:>8}   target {TARGETS.get(name, '-')}")
    print(extrapolate(seen))


if __name__ == "__main__":
    main()
