"""What re-scoring a submission costs: per image, per megapixel, per megavoxel, with one process and with two.

    python benchmarks/rescoring.py                                      # 300 images, two volumes of 128^3: a minute
    python benchmarks/rescoring.py --images 10000 --volumes 10 --volume-size 512       # the full-size test split

A small number of different images of 512 x 512 with 40 instances each is generated, encoded once, and repeated under
other names: the work is that of distinct images, the files are small. The equality of the re-scoring with
``em-bench score`` and of one process with two is checked before anything is reported. Volumes are label maps made by
``benchmarks/metric.py``, counted in slabs as ``score_volumes`` does.

``core`` is CPU time of all processes together; wall time is only meaningful on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)  # instead of this folder

from benchmarks.metric import make_pair  # noqa: E402

SIDE, INSTANCES, DIFFERENT = 512, 40, 16
CHECKED = 64  # images of which every number is compared with em-bench score
SLAB = 64  # planes of a volume that are counted at once
CARD = """---
configs:
- config_name: wild
  data_files:
  - split: test
    path: data/homogeneous/test-*.parquet
  description: content {content}
---
"""
TENTHS = 10 * 512**3 / 1e6  # megavoxels of ten volumes of 512^3


def cpu_seconds() -> float:
    """CPU time of this process and of those that it has waited for."""
    both = (resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in both)


def timed(job: Callable[[], Any]) -> tuple[Any, float, float]:
    """Return the result, wall seconds and CPU seconds of a call."""
    cpu, wall = cpu_seconds(), time.perf_counter()
    result = job()
    return result, time.perf_counter() - wall, cpu_seconds() - cpu


def make_images() -> list[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]]:
    """Pairs of (reference, prediction) ``(y, x)`` uint16: irregular blobs, their borders shifted, some missed."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:SIDE, :SIDE]
    pairs = np.zeros((2, DIFFERENT, SIDE, SIDE), np.uint16)
    for plane in range(DIFFERENT):
        for id_ in range(1, INSTANCES + 1):
            centre, radius = rng.uniform(0, SIDE, 2), rng.uniform(12, 40, 2)
            for side in range(2):
                if side and rng.random() < 0.1:
                    continue
                moved = centre + side * rng.normal(0, 3, 2)
                wave = 1 + 0.15 * np.sin(np.arctan2(y - moved[0], x - moved[1]) * rng.integers(3, 8))
                inside = ((y - moved[0]) / radius[0]) ** 2 + ((x - moved[1]) / radius[1]) ** 2 < wave
                pairs[side, plane][inside] = id_
    return list(zip(*pairs, strict=True))


def write_split(folder: Path, count: int) -> tuple[Path, Path]:
    """Write a dataset with a test split of ``count`` images, and a submission for it; return both folders."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from em_bench_eval.leaderboard.items import expected_items, split_hash
    from em_bench_eval.rows import encode_png
    from em_bench_eval.schema import ORGANELLES

    pairs = make_images()
    encoded = [(encode_png(reference), encode_png(prediction)) for reference, prediction in pairs]
    objects = [
        [[{"id": int(id_), "organelle": ORGANELLES[id_ % 5]} for id_ in np.unique(labels) if id_] for labels in pair]
        for pair in pairs
    ]
    picture = encode_png(np.zeros((SIDE, SIDE), np.uint8))

    def name(index: int) -> dict[str, Any]:
        return {"volume_id": f"cell-{index // 100}", "axis": "z", "slice": index % 100, "offset": [0, 0]}

    def reference_rows() -> Iterator[dict[str, Any]]:
        for index in range(count):
            yield {
                **name(index),
                "image": {"bytes": picture, "path": None},
                "instances": {"bytes": encoded[index % DIFFERENT][0], "path": None},
                "objects": objects[index % DIFFERENT][0],
                "annotated": list(ORGANELLES),
                "ignore": None,
                "source": f"source-{index // 100 % 7}",
                "specimen": "cell",
                "fold": "test",
                "domain": "in" if index // 100 % 2 else "out",
                "pixel_size_nm": [8.0, 8.0],
            }

    def prediction_rows() -> Iterator[dict[str, Any]]:
        for index in range(count):
            entries = [{**entry, "confidence": 1.0} for entry in objects[index % DIFFERENT][1]]
            yield {
                **name(index),
                "instances": {"bytes": encoded[index % DIFFERENT][1], "path": None},
                "objects": entries,
            }

    cell = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    entry = {"id": pa.int32(), "organelle": pa.string()}
    text = dict.fromkeys(("source", "specimen", "fold", "domain"), pa.string())
    naming = {"volume_id": pa.string(), "axis": pa.string(), "slice": pa.int32(), "offset": pa.list_(pa.int32(), 2)}
    reference = {
        **naming,
        **dict.fromkeys(("image", "instances", "ignore"), cell),
        "objects": pa.list_(pa.struct(entry)),
        "annotated": pa.list_(pa.string()),
        **text,
        "pixel_size_nm": pa.list_(pa.float64(), 2),
    }
    predicted = {**naming, "instances": cell, "objects": pa.list_(pa.struct({**entry, "confidence": pa.float32()}))}
    dataset, submission = folder / "em-organelle-wild", folder / "submission"
    (dataset / "data" / "homogeneous").mkdir(parents=True)
    submission.mkdir()
    for path, columns, rows, at_once in (
        (dataset / "data" / "homogeneous" / "test-00000-of-00001.parquet", reference, reference_rows(), 16),
        (submission / "predictions.parquet", predicted, prediction_rows(), 1),
    ):
        schema = pa.schema(columns)
        with pq.ParquetWriter(path, schema, compression="zstd") as writer:
            while batch := [row for _, row in zip(range(at_once), rows, strict=False)]:
                writer.write_table(pa.Table.from_pylist(batch, schema=schema))
    (dataset / "README.md").write_text(CARD.format(content=f"{count:016x}"))
    manifest = {
        "format": "em-organelle-wild submission v1",
        **dict.fromkeys(("model", "team", "training_data", "compute"), "generated"),
        **dict.fromkeys(("paper", "code", "prompts"), "none"),
        "config": "wild",
        "split": "test",
        "split_hash": split_hash(expected_items(dataset, "wild", "test").items.values()),
    }
    (submission / "submission.yaml").write_text(json.dumps(manifest))
    (submission / "prediction.json").write_text(json.dumps({"config": "wild", "split": "test"}))
    return dataset, submission


def check_equality(folder: Path) -> None:
    """Compare every number of a small split with ``em-bench score``."""
    from em_bench_eval.leaderboard.rescoring import rescore
    from em_bench_eval.score_dataset import score_folder
    from em_bench_eval.settings import DEFAULT_SETTINGS

    dataset, submission = write_split(folder, CHECKED)
    whole, _ = score_folder(submission, str(dataset), "wild", "test", DEFAULT_SETTINGS, {})
    for workers in (1, 2):
        found = rescore(submission, dataset, workers=workers, progress=False)
        assert found["scores"] == whole["groups"], "re-scoring differs from em-bench score"
        assert found["intervals"] == whole["intervals"], "intervals differ from em-bench score"
    print(f"equal to em-bench score in every digit, one process and two ({CHECKED} images)")


def measure_images(folder: Path, count: int) -> None:
    from em_bench_eval.leaderboard.guarded import check_guarded
    from em_bench_eval.leaderboard.items import expected_items
    from em_bench_eval.leaderboard.rescoring import rescore

    dataset, submission = write_split(folder, count)
    pixels = count * SIDE**2 / 1e6
    expected, wall, core = timed(lambda: expected_items(dataset, "wild", "test"))
    print(f"\n{count} images of {SIDE} x {SIDE}, {INSTANCES} instances each")
    print("| step | wall s | core s | core ms an image | core ms a megapixel |")
    print("|---|---|---|---|---|")

    def line(step: str, wall: float, core: float) -> None:
        print(f"| {step} | {wall:.2f} | {core:.2f} | {1e3 * core / count:.2f} | {1e3 * core / pixels:.2f} |")

    line("read what the split holds", wall, core)
    verdict, wall, core = timed(lambda: check_guarded(submission, expected))
    assert verdict.ok, verdict.to_text()
    line("validate (a process of its own: 1 s to start)", wall, core)
    results = []
    for workers in (1, 2):
        result, wall, core = timed(
            lambda workers=workers: rescore(submission, dataset, workers=workers, expected=expected, progress=False)
        )
        timings = result["timings"]
        line(f"re-score, {workers} process{'es' if workers > 1 else ''} (validation included)", wall, core)
        line("  of which scoring (wall only)", timings["score_s"], timings["core_s"])
        line("  of which pooling and intervals", timings["pool_s"], timings["pool_s"])
        results.append({key: value for key, value in result.items() if key not in ("timings", "date")})
    assert results[0] == results[1], "two processes give other numbers than one"
    print(f"expected by validate: {verdict.facts['expected_seconds']:.1f} s of one core for the scoring")


def count_volume(folder: str) -> tuple[list[dict[str, Any]], float]:
    """Count one volume in slabs; returns its statistics as rows, and CPU seconds without the start of the process."""
    from em_bench_eval.scoring import Evaluation

    maps = [np.load(f"{folder}/{side}.npy", mmap_mode="r") for side in ("prediction", "reference")]

    def count(evaluation: Evaluation, start: int) -> None:
        prediction, reference = ({"mito": np.asarray(labels[start : start + SLAB])} for labels in maps)
        where = {"start": (start, 0, 0), "shape": maps[0].shape, "voxel_size_nm": (8.0,) * 3}
        evaluation.add_block(Path(folder).name, prediction, reference, **where)  # type: ignore[arg-type]

    count(Evaluation(), 0)  # imports and machine code
    evaluation, began = Evaluation(), time.process_time()
    for start in range(0, maps[0].shape[0], SLAB):
        count(evaluation, start)
    return evaluation.to_rows(), time.process_time() - began


def measure_volumes(folder: Path, count: int, size: int) -> None:
    from em_bench_eval.scoring import Evaluation

    names = []
    for index in range(count):
        target = folder / f"volume-{index}"
        target.mkdir()
        names.append(str(target))
        if index >= 2:  # two different ones are enough
            for side in ("reference", "prediction"):
                (target / f"{side}.npy").symlink_to(folder / f"volume-{index % 2}" / f"{side}.npy")
            continue
        reference, prediction = make_pair(size, round(28_000 * (size / 512) ** 3), index)
        np.save(target / "reference.npy", reference)
        np.save(target / "prediction.npy", prediction)
    megavoxels = count * size**3 / 1e6
    print(f"\n{count} volumes of {size}^3, counted in slabs of {SLAB} planes")
    print("| processes | wall s | core s | core ms a megavoxel | ten volumes of 512^3, core s |")
    print("|---|---|---|---|---|")
    values = []
    for workers in (1, 2):

        def job(workers: int = workers) -> list[tuple[list[dict[str, Any]], float]]:
            if workers == 1:
                return list(map(count_volume, names))
            with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
                return list(pool.map(count_volume, names))

        found, wall, _ = timed(job)
        evaluation = Evaluation()
        for rows, _ in found:
            evaluation.add_rows(rows)
        values.append(evaluation.compute())
        core = sum(seconds for _, seconds in found)
        cost = core / megavoxels
        print(f"| {workers} | {wall:.2f} | {core:.2f} | {1e3 * cost:.2f} | {cost * TENTHS:.0f} |")
    assert values[0] == values[1], "two processes give other numbers than one"
    print(f"{values[0]['mito/n_reference']} reference and {values[0]['mito/n_prediction']} predicted instances")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=300, help="default: %(default)s")
    parser.add_argument("--volumes", type=int, default=2, help="default: %(default)s; 0: none")
    parser.add_argument("--volume-size", type=int, default=128, help="edge in voxels (default: %(default)s)")
    options = parser.parse_args()
    from em_bench_eval.leaderboard import rescoring

    rescoring.SPREAD_FROM_S = 0.0  # measure two processes also where one would do
    with tempfile.TemporaryDirectory() as scratch:
        for part in ("equality", "images", "volumes"):
            (Path(scratch) / part).mkdir()
        check_equality(Path(scratch) / "equality")
        measure_images(Path(scratch) / "images", options.images)
        if options.volumes:
            measure_volumes(Path(scratch) / "volumes", options.volumes, options.volume_size)


if __name__ == "__main__":
    main()
