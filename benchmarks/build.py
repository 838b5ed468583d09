"""Building at scale: throughput against its bound, cost and memory per row, and how fast the result is read.

::

    python benchmarks/build.py throughput        MB/s of raw voxels, 1 and 2 workers, against reading + PNG + writing
    python benchmarks/build.py rows --rows 100000
    python benchmarks/build.py reading
    python benchmarks/build.py memory --edge 1024 --depth 1024 --workers 2

Every measured run is a process of its own. CPU seconds are those of the process and its workers: on a shared machine
they say more than the clock.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)  # instead of this folder, where a file is called lpa

VOXEL_NM = 8.0
PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
NOISE = 6.0  # standard deviation of the detector's, gray levels
TILE = 256  # edge of the random field that a large volume repeats, with shifts


def scene(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """An EM-like ``(z, y, x)`` image, uint8, and semantic labels of all five classes, of edge ``TILE``."""
    from scipy import ndimage

    rng = np.random.default_rng(seed)
    field = ndimage.gaussian_filter(rng.normal(size=(TILE,) * 3).astype(np.float32), 7, mode="wrap")
    kinds = ndimage.gaussian_filter(rng.normal(size=(TILE,) * 3).astype(np.float32), 20, mode="wrap")
    semantic = np.where(
        field > np.quantile(field, 0.8), np.digitize(kinds, np.quantile(kinds, [0.2, 0.4, 0.6, 0.8])) + 1, 0
    )
    texture = ndimage.gaussian_filter(rng.normal(size=(TILE,) * 3).astype(np.float32), 1.5, mode="wrap") * 60
    image = np.clip(150 - 60 * (semantic > 0) + texture, 0, 255)
    return image.astype(np.uint8), semantic.astype(np.uint8)


def write_raw(folder: Path, shape: tuple[int, int, int]) -> None:
    """Write a volume as two zarr v3 arrays, as they come from a microscope's archive; box by box.

    The structures repeat, the detector's noise does not: PNG files of the slices are as large as those of real EM (0.55
    to 0.8 bytes a pixel), and as slow to make.
    """
    from dataset_builder.layout import layout_of
    from dataset_builder.volumes import create_array, open_array

    image, semantic = scene(1)
    rng = np.random.default_rng(2)
    layout = layout_of(shape, 2048)
    for name in ("image", "semantic"):
        create_array(folder / name, layout, np.uint8)
    arrays = [open_array(folder / name) for name in ("image", "semantic")]
    for box in layout.boxes():
        places = [(np.arange(side.start, side.stop) + 17 * (side.start // TILE)) % TILE for side in box]
        noise = rng.standard_normal([len(side) for side in places], np.float32) * np.float32(NOISE)
        noisy = np.clip(image[np.ix_(*places)] + noise, 0, 255).astype(np.uint8)
        for array, values in zip(arrays, (noisy, semantic[np.ix_(*places)]), strict=True):
            array[box].write(values).result()


def raw_job(folder: Path) -> Any:
    """The volume of ``write_raw`` as a source; one fold, because its pattern repeats."""
    from dataset_builder.build import Job
    from dataset_builder.instances import Stored
    from dataset_builder.source import Source
    from dataset_builder.volumes import open_array
    from em_bench_eval.schema import Organelle, SourceInfo, Volume, VoxelSize

    annotated = dict.fromkeys(Organelle, "manual")
    info = SourceInfo("bench", "Benchmark", "@misc{bench}", "CC0-1.0", "", True, "FIB-SEM", annotated)  # type: ignore[arg-type]
    image, semantic = (Stored(open_array(folder / name)) for name in ("image", "semantic"))
    volume = Volume(
        volume_id="bench", image=image, semantic=semantic, voxel_size=VoxelSize(*[VOXEL_NM] * 3), source="bench",
        specimen="bench", cell_type="", modality="FIB-SEM", annotated=annotated, published_fold="test",  # type: ignore[arg-type]
    )  # fmt: skip
    return Job(Source(info, lambda raw, options: [volume]), None)


def run_build(folder: Path, workers: int) -> None:
    """Build the raw volume (in a process of its own), without figures: their cost is one dataset's, not its voxels'."""
    from dataset_builder import figures
    from dataset_builder.build import build
    from dataset_builder.splits import SplitPolicy

    figures.render = lambda folder: None  # type: ignore[assignment, return-value]
    build([raw_job(folder)], folder / f"out-{workers}", SplitPolicy(), workers=workers)


def run_figures(folder: Path) -> None:
    """Draw the figures of the built dataset."""
    from dataset_builder import figures

    figures.render(folder / "out-1")


def write_pixels(folder: Path) -> None:
    """Write the published label images of the built dataset as a raw array, for the bound to read."""
    from dataset_builder.layout import layout_of
    from dataset_builder.volumes import create_array, open_array
    from em_bench_eval.rows import decode_row, open_rows

    rows = open_rows(folder / "out-1", "wild", "test")
    pixels = np.stack([decode_row(row).instances for row in rows])
    layout = layout_of(pixels.shape, 2048)
    create_array(folder / "instances", layout, np.uint16)
    array = open_array(folder / "instances")
    for box in layout.boxes():
        array[box].write(pixels[box]).result()


def run_bound(folder: Path, encoder: str) -> None:
    """Read image and label images, PNG-encode both, write the bytes; nothing else, nor its imports.

    ``encoder`` is ``pillow``, its defaults, or ``ours``, the build's own settings of Pillow.
    """
    import io

    import tensorstore as ts
    from PIL import Image

    from em_bench_eval.rows import encode_png

    def pillow(array: np.ndarray) -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(array).save(buffer, format="PNG")
        return buffer.getvalue()

    encode = {"pillow": pillow, "ours": encode_png}[encoder]
    image, instances = (
        ts.open({"driver": "zarr3", "kvstore": {"driver": "file", "path": str(folder / name)}}).result()
        for name in ("image", "instances")
    )
    with (folder / "bound.bin").open("wb") as file:
        for z in range(0, image.shape[0], 32):
            slab, labels = image[z : z + 32].read().result(), instances[z : z + 32].read().result()
            for place in range(len(slab)):
                file.write(encode(slab[place]))
                file.write(encode(labels[place]))


def measured(function: str, *arguments: object) -> dict[str, float]:
    """Run a function of this file in a process; return seconds, CPU seconds and the peak memory of the tree.

    CPU seconds are those of all processes that it started: what outlives its parent becomes a child of this one.
    """
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    code = f"import sys; sys.path[0] = {str(ROOT)!r}\nfrom pathlib import Path\nfrom benchmarks import build\n"
    code += f"if __name__ == '__main__': build.{function}({', '.join(map(repr, arguments))})\n"
    with tempfile.NamedTemporaryFile("w", suffix=".py", delete=False) as script:
        script.write(code.replace("PosixPath", "Path"))
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.perf_counter()
    errors = tempfile.TemporaryFile("w+")  # noqa: SIM115
    process = subprocess.Popen([sys.executable, script.name], stderr=errors)
    peak = [0.0]
    watcher = threading.Thread(target=_watch, args=(process, peak))
    watcher.start()
    if process.wait():
        errors.seek(0)
        raise RuntimeError(f"{function} failed:\n{errors.read()[-2000:]}")
    watcher.join()
    seconds = time.perf_counter() - began
    with contextlib.suppress(ChildProcessError):
        while True:
            os.wait()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    os.unlink(script.name)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"seconds": seconds, "cpu": cpu, "peak_mb": peak[0]}


def _watch(process: subprocess.Popen[bytes], peak: list[float]) -> None:
    """Sample the private memory (anonymous pages) of a process and its children."""
    while process.poll() is None:
        peak[0] = max(peak[0], sum(_private_mb(pid) for pid in _tree(process.pid)))
        time.sleep(0.05)


def _tree(pid: int) -> list[int]:
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return [pid]
    return [pid, *(grandchild for child in children for grandchild in _tree(int(child)))]


def _private_mb(pid: int) -> float:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024


def throughput(folder: Path, edge: int, depth: int, rounds: int) -> None:
    """Print build throughput against the bound: least CPU time of interleaved rounds."""
    write_raw(folder, (depth, edge, edge))
    megabytes = 2 * depth * edge * edge / 1e6  # image and semantic labels, 1 byte each
    run_build(folder, 1)
    write_pixels(folder)
    shutil.rmtree(folder / "out-1")
    runs: dict[str, list[dict[str, float]]] = {}
    for _ in range(rounds):
        runs.setdefault("imports", []).append(measured("nothing"))
        for encoder in ("pillow", "ours"):
            runs.setdefault(f"bound, PNG as {encoder}", []).append(measured("run_bound", folder, encoder))
        for workers in (1, 2):
            name = f"build, {workers} worker{'s'[: workers > 1]}"
            runs.setdefault(name, []).append(measured("run_build", folder, workers))
            if workers == 1:
                runs.setdefault("figures", []).append(measured("run_figures", folder))
            shutil.rmtree(folder / f"out-{workers}")
    least = {name: min(of, key=lambda run: run["cpu"]) for name, of in runs.items()}
    imports, drawn = least.pop("imports")["cpu"], least.pop("figures")["cpu"]
    print(
        f"{depth} x {edge} x {edge} voxels, {megabytes:.0f} MB of raw voxels; in each build imports cost {imports:.1f} "
        f"CPU s; the figures of a dataset, not in these lines, cost {drawn - imports:.1f} CPU s"
    )
    bounds = [least[f"bound, PNG as {encoder}"]["cpu"] for encoder in ("pillow", "ours")]
    for name, run in least.items():
        share = " and ".join(f"{bound / run['cpu']:.0%}" for bound in bounds)
        print(
            f"{name:<26} {megabytes / run['seconds']:7.1f} MB/s  {megabytes / run['cpu']:7.1f} MB per CPU s "
            f"({share} of the bounds)  peak {run['peak_mb']:.0f} MB",
            flush=True,
        )


def nothing() -> None:
    """Import what a build imports."""
    import dataset_builder.build  # noqa: F401


def run_rows(folder: Path, rows: int, side: int) -> None:
    """Build ``rows`` small images from volumes of 500 slices, read them back, print what it took as JSON."""
    from dataset_builder.build import Job, build
    from dataset_builder.source import Source
    from dataset_builder.splits import SplitPolicy
    from em_bench_eval.rows import decode_row, open_rows
    from em_bench_eval.schema import Organelle, SourceInfo, Volume, VoxelSize

    annotated: Any = dict.fromkeys(Organelle, "manual")
    info = SourceInfo("bench", "Benchmark", "@misc{bench}", "CC0-1.0", "", True, "ssTEM", annotated)
    image, semantic = scene(1)

    def volumes(raw: Path | None, options: Any) -> Any:
        rng = np.random.default_rng(0)
        for number in range(-(-rows // 500)):
            # other noise for each slice, or they would be duplicates of one another
            noise = rng.normal(0, 60, (500, 8, 8)).repeat(side // 8, 1).repeat(side // 8, 2)
            places = [rng.integers(0, TILE, 500), np.arange(side), np.arange(side)]
            yield Volume(
                volume_id=f"bench-{number}", image=np.clip(image[np.ix_(*places)] + noise, 0, 255).astype(np.uint8),
                semantic=semantic[np.ix_(*places)], voxel_size=VoxelSize(50.0, 8.0, 8.0), source="bench",
                specimen=f"bench-{number}", cell_type="", modality="ssTEM", annotated=annotated,
            )  # fmt: skip

    memory = []
    began, cpu = time.perf_counter(), time.process_time()
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(1.0):
            memory.append(_private_mb(os.getpid()))

    watcher = threading.Thread(target=watch)
    watcher.start()
    job = Job(Source(info, volumes), None)
    stats = build([job], folder / "out", SplitPolicy(gap_nm=0))
    stop.set()
    watcher.join()
    built = sum(stats.images.values())
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    data = open_rows(folder / "out", "wild", "train")
    decode_row(data[0]), decode_row(data[len(data) - 1])
    third = len(memory) // 3
    print(
        f"{built} rows of {side} x {side}: {seconds:.0f} s, {cpu / built * 1e3:.2f} CPU ms a row; memory (median MB) "
        f"{np.median(memory[:third]):.0f} in the first third, {np.median(memory[third:-third]):.0f} in the second, "
        f"{np.median(memory[-third:]):.0f} in the last, peak {max(memory):.0f}"
    )


def reading(folder: Path, edge: int, depth: int) -> None:
    """Print streaming and random access rates of the published format, of TIFF and of zarr, for the same pixels."""
    import tifffile
    import zarr

    from dataset_builder.volumes import open_array
    from em_bench_eval.rows import decode_row, open_rows

    write_raw(folder, (depth, edge, edge))
    run_build(folder, 1)
    rows = open_rows(folder / "out-1", "wild", "test")
    image = np.asarray(open_array(folder / "image").read().result())
    labels = np.asarray(open_array(folder / "out-1/volumes/bench.zarr/labels/instances/s0").read().result())
    count = len(rows)
    for z in range(count):
        tifffile.imwrite(folder / f"image-{z}.tif", image[z])
        tifffile.imwrite(folder / f"labels-{z}.tif", labels[z])
    volume = zarr.open_group(str(folder / "out-1/volumes/bench.zarr"), mode="r")
    stream = open_rows(folder / "out-1", "wild", "test", streaming=True)
    order = np.random.default_rng(0).permutation(count)[:64]
    megabytes = edge * edge * 5 / 1e6  # uint8 image and uint32 labels of one slice

    def tiff(z: int) -> None:
        tifffile.imread(folder / f"image-{z}.tif")
        tifffile.imread(folder / f"labels-{z}.tif")

    def plane(z: int) -> None:
        volume["s0"][z], volume["labels/instances/s0"][z]

    def slabs() -> None:
        for z in range(0, count, volume["s0"].chunks[0]):
            volume["s0"][z : z + volume["s0"].chunks[0]], volume["labels/instances/s0"][z : z + volume["s0"].chunks[0]]

    cases: dict[str, tuple[Callable[[], Any], int]] = {
        "published rows, streamed": (lambda: [decode_row(row) for row in stream], count),
        "published rows, at random": (lambda: [decode_row(rows[int(z)]) for z in order], len(order)),
        "TIFF, in order": (lambda: [tiff(z) for z in range(count)], count),
        "TIFF, at random": (lambda: [tiff(int(z)) for z in order], len(order)),
        "published zarr, in order": (slabs, count),
        "published zarr, at random": (lambda: [plane(int(z)) for z in order], len(order)),
    }
    print(f"{count} slices of {edge} x {edge}, image and labels; files in the page cache")
    for name, (work, slices) in cases.items():
        times = []
        for _ in range(3):
            began = time.process_time()
            work()
            times.append(time.process_time() - began)
        print(f"{name:<28} {min(times) / slices * 1e3:7.2f} CPU ms a slice {slices * megabytes / min(times):8.0f} MB/s")


def memory(folder: Path, edge: int, depth: int, workers: int) -> None:
    """Print the peak memory of building one volume."""
    write_raw(folder, (depth, edge, edge))
    run = measured("run_build", folder, workers)
    print(
        f"{depth} x {edge} x {edge} voxels, {workers} worker{'s'[: workers > 1]}: "
        f"{run['seconds']:.0f} s, {run['cpu']:.0f} CPU s, "
        f"{2 * depth * edge**2 / 1e6 / run['cpu']:.1f} MB of raw voxels per CPU s, peak {run['peak_mb']:.0f} MB"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("throughput", "rows", "reading", "memory"))
    parser.add_argument("--edge", type=int, default=512, help="pixels of a slice")
    parser.add_argument("--depth", type=int, default=256, help="slices")
    parser.add_argument("--rows", type=int, default=5000)
    parser.add_argument("--side", type=int, default=64, help="pixels of a small image")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3, help="of throughput")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if given.what == "throughput":
            throughput(folder, given.edge, given.depth, given.rounds)
        elif given.what == "rows":
            run_rows(folder, given.rows, given.side)
        elif given.what == "reading":
            reading(folder, given.edge, given.depth)
        else:
            memory(folder, given.edge, given.depth, given.workers)


if __name__ == "__main__":
    main()
