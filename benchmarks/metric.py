"""em_bench_eval against others: the contingency table, the matching, and the way through ``evaluate``.

    python benchmarks/metric.py                         # 512^3, 28,000 and 180,000 instances, 5 rounds: about an hour
    python benchmarks/metric.py --size 96 --rounds 1    # a quick look
    python benchmarks/metric.py --peers VENV/bin/python # with elf / bioimage (pip install python-elf there)

A round runs every method once, so that a change of the machine's load meets all of them. Each measurement is one call
in its own process after a tiny warm-up call (imports, machine code from numba's cache). Every result is compared with
the others' before anything is reported. Ratios are of medians, and of minima in brackets; ``memory`` is the peak beyond
what was there before the call. The numbers of instances are for 512^3 and are scaled to other sizes.

The pairs are made here: irregular balls, many of them touching, and a prediction whose borders are shifted, of which
some are missed, merged with a neighbour, split in two, or invented.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)  # instead of this folder

from benchmarks.lpa import Measured, machine, median, ratio, resident  # noqa: E402

Labels = npt.NDArray[np.uint32]  # (z, y, x)
Table = tuple[Any, Any, Any]  # reference ids, prediction ids (both > 0), overlapping voxels (None: not given)
Count = Callable[[Labels, Labels], Table]
INSTANCES = (28_000, 180_000)  # in 512^3 voxels
DENSE_BYTES = 8e9


def make_pair(size: int, instances: int, seed: int) -> tuple[Labels, Labels]:
    """A reference and a prediction of ``size``^3 voxels with about so many instances each."""
    rng = np.random.default_rng(seed)
    cells = max(1, round((instances / 0.9) ** (1 / 3)))  # one ball in nine of ten cells of a bent grid
    pitch, number = size / cells, cells**3
    reference_centre = rng.uniform(-0.12, 0.12, (number, 3))  # in units of the pitch, from the middle of the cell
    centre = np.stack([reference_centre, reference_centre + rng.normal(0, 0.05, (number, 3))]).astype(np.float32)
    reference_radius = rng.uniform(0.3, 0.65, number)
    radius = np.stack([reference_radius, reference_radius * rng.normal(1, 0.07, number)]).astype(np.float32)

    fate, occupied, cell = rng.random(number), rng.random(number) < 0.9, np.arange(1, number + 1)
    predicted = np.where(occupied, fate > 0.05, fate < 0.3)  # missed; invented
    one = np.where(predicted, cell, 0)
    merged = (fate > 0.9) & predicted & (np.roll(one, 1) > 0)
    one = np.where(merged, np.roll(one, 1), one)
    other_half = np.where((fate > 0.82) & (fate < 0.9) & predicted, number + cell, one)  # split
    reference_id = _consecutive(np.where(occupied, cell, 0))
    prediction_id = _consecutive(np.stack([one, other_half]))

    result = np.zeros((2, size, size, size), np.uint32)
    turn = np.arange(size, dtype=np.float32) / size * 2 * np.pi
    y, x = np.meshgrid(np.arange(size, dtype=np.float32), np.arange(size, dtype=np.float32), indexing="ij")
    for z in range(size):
        bend_z = np.sin(6 * turn[None, :] + 5 * turn[:, None])
        bend_y, bend_x = np.sin(5 * turn[None, :] + 3 * turn[z]), np.sin(4 * turn[:, None] - 2 * turn[z])
        for side in range(2):
            bend = pitch * (0.3 + 0.12 * side)  # the prediction's grid is bent more: its borders are elsewhere
            grid = np.stack([z + bend * bend_z, y + bend * bend_y, x + bend * bend_x]) / pitch
            corner = np.floor(grid).astype(np.int32)
            k = np.ravel_multi_index(tuple(corner % cells), (cells,) * 3)
            offset = grid - corner - 0.5 - np.moveaxis(centre[side][k], -1, 0)
            inside = (offset**2).sum(axis=0) < radius[side][k] ** 2
            ids = prediction_id[(offset[2] > 0).astype(np.intp), k] if side else reference_id[k]
            result[side, z] = np.where(inside, ids, 0)
    return result[0], result[1]


def _consecutive(ids: npt.NDArray[np.int64]) -> Labels:
    return np.unique(np.append(ids, 0), return_inverse=True)[1][:-1].reshape(ids.shape).astype(np.uint32)


def ours(threads: int) -> Count:
    from em_bench_eval.overlap import contingency
    from em_bench_eval.overlap_compiled import kernels

    kernels(np.dtype(np.uint32))

    def count(reference: Labels, prediction: Labels) -> Table:
        table = contingency(reference, prediction, threads=threads)
        ids = table.reference_ids[table.pair_reference], table.prediction_ids[table.pair_prediction]
        return *ids, table.pair_voxels

    return count


def ours_numpy() -> Count:
    from em_bench_eval import overlap

    overlap.COMPILED_FROM_VOXELS = 1 << 62
    return ours(1)


def read_once() -> Count:
    """The floor: no more than looking at every voxel of both."""
    return lambda reference, prediction: (reference.max(), prediction.max(), None)


def numpy_unique() -> Count:
    def count(reference: Labels, prediction: Labels) -> Table:
        r, p = reference.reshape(-1), prediction.reshape(-1)
        voxels = np.flatnonzero((r > 0) | (p > 0))
        pairs, counts = np.unique(r[voxels].astype(np.uint64) << 32 | p[voxels], return_counts=True)
        return pairs >> np.uint64(32), pairs & np.uint64(0xFFFFFFFF), counts

    return count


def skimage() -> Count:
    from skimage.metrics import contingency_table

    def count(reference: Labels, prediction: Labels) -> Table:
        table = contingency_table(reference, prediction, sparse_type="array").tocoo()
        return *table.coords, table.data

    return count


def panoptica() -> Count:
    """Overlapping pairs and their IoU; the list of reference ids that it needs is given to it for nothing."""
    from panoptica import Metric, _functionals

    def count(reference: Labels, prediction: Labels, ids: tuple[int, ...] = (1, 2, 3)) -> Table:
        scored = _functionals._calc_matching_metric_of_overlapping_labels(prediction, reference, ids, Metric.IOU)
        pairs = np.array([pair for _, pair in scored], np.int64).reshape(-1, 2)
        return pairs[:, 0], pairs[:, 1], None

    return count


def elf() -> Count:
    from elf.evaluation.util import contigency_table

    def count(reference: Labels, prediction: Labels) -> Table:
        pairs, counts = contigency_table(reference, prediction)[2:]
        return pairs[:, 0], pairs[:, 1], counts

    return count


COUNTERS: dict[str, Callable[[], Count]] = {
    "ours, 2 threads": lambda: ours(2),
    "ours, 1 thread": lambda: ours(1),
    "ours without numba": ours_numpy,
    "read both once": read_once,
    "np.unique, foreground": numpy_unique,
    "scikit-image": skimage,
    "panoptica": panoptica,
    "elf / bioimage": elf,
}


def digests(table: Table) -> list[str | None]:
    """Identify the foreground pairs, and their counts."""
    if np.ndim(table[0]) == 0:
        return [None, None]
    r, p = (np.asarray(ids).astype(np.uint64) for ids in table[:2])
    n = np.ones(len(r), np.int64) if table[2] is None else np.asarray(table[2]).astype(np.int64)
    keep = (r > 0) & (p > 0) & (n > 0)
    order = np.lexsort((p[keep], r[keep]))
    pairs = hashlib.sha256(r[keep][order].tobytes() + p[keep][order].tobytes()).hexdigest()
    return [pairs, None if table[2] is None else hashlib.sha256(n[keep][order].tobytes()).hexdigest()]


Graph = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.float64], npt.NDArray[np.int64]]
Match = Callable[..., npt.NDArray[np.int64]]  # graph -> positions of the chosen pairs


def ours_matching() -> Match:
    from em_bench_eval.matching import best_matching

    return best_matching


def scipy_sparse() -> Match:
    """Each reference also has a partner of its own that is worth next to nothing: "unmatched"."""
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import min_weight_full_bipartite_matching

    def match(rows: Any, columns: Any, weight: Any, voxels: Any) -> Any:
        n, m = rows.max() + 1, columns.max() + 1
        everyone = np.arange(n)
        ends = np.concatenate([rows, everyone]), np.concatenate([columns, m + everyone])
        graph = csr_array((np.concatenate([weight, np.full(n, 1e-12)]), ends), shape=(n, n + m))
        partner = np.empty(n, np.int64)
        found = min_weight_full_bipartite_matching(graph, maximize=True)
        partner[found[0]] = found[1]
        return np.flatnonzero(partner[rows] == columns)

    return match


def scipy_dense() -> Match:
    from scipy.optimize import linear_sum_assignment

    def match(rows: Any, columns: Any, weight: Any, voxels: Any) -> Any:
        gain = np.zeros((rows.max() + 1, columns.max() + 1))
        gain[rows, columns] = weight
        partner = np.full(len(gain), -1)
        found = linear_sum_assignment(gain, maximize=True)
        partner[found[0]] = found[1]
        return np.flatnonzero(partner[rows] == columns)

    return match


MATCHERS: dict[str, Callable[[], Match]] = {
    "ours": ours_matching,
    "scipy sparse": scipy_sparse,
    "scipy dense": scipy_dense,
}


def measured(call: Callable[[], Any], touched: int) -> tuple[dict[str, float], Any]:
    """Time one call; ``memory`` is what it needed at most beyond what was there, in bytes."""
    np.ones(touched, np.uint8)  # a virtual machine may have to get free memory back from its host first
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before = resident("VmRSS")
    wall, cpu = time.perf_counter(), time.process_time()
    found = call()
    result = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
    return {**result, "memory": resident("VmHWM") - before}, found


def count_once(method: str, path: str) -> dict[str, Any]:
    reference, prediction = np.load(path)
    count = COUNTERS[method]()
    small = np.arange(64, dtype=np.uint32).reshape(4, 4, 4) % 4
    count(small, small)
    given = (tuple(np.unique(reference)[1:].tolist()),) if method == "panoptica" else ()
    result, table = measured(lambda: count(reference, prediction, *given), 3 * reference.nbytes)
    return {**result, "digests": digests(table)}


def match_once(method: str, path: str) -> dict[str, Any]:
    with np.load(path) as arrays:
        graph = tuple(arrays[name] for name in ("rows", "columns", "weight", "voxels"))
    match = MATCHERS[method]()
    match(*(array[:2] for array in graph))
    result, chosen = measured(lambda: match(*graph), 1 << 20)
    rows, columns, weight = (array[chosen] for array in graph[:3])
    assert len(np.unique(rows)) == len(np.unique(columns)) == len(chosen)
    return {**result, "total": float(weight.sum()), "matched": len(chosen)}


def evaluate_once(method: str, path: str) -> dict[str, Any]:
    """64 images through ``evaluate.load`` (loaded before), or straight into an ``Evaluation``."""
    import evaluate

    import em_bench_eval

    reference, prediction = (array[:64] for array in np.load(path))
    pairs = [({"mito": p}, {"mito": r}) for p, r in zip(prediction, reference, strict=True)]
    with tempfile.TemporaryDirectory() as cache:
        metric = evaluate.load(em_bench_eval.metric_path(), cache_dir=cache)
        metric.compute(predictions=[pairs[0][0]], references=[pairs[0][1]], voxel_size_nm=(8, 8))

        def through_evaluate() -> Any:
            for start in range(0, len(pairs), 16):
                predictions, references = zip(*pairs[start : start + 16], strict=True)
                metric.add_batch(predictions=predictions, references=references, voxel_size_nm=(8, 8))
            return metric.compute()

        def direct() -> Any:
            evaluation = em_bench_eval.Evaluation()
            for p, r in pairs:
                evaluation.add(p, r, voxel_size_nm=(8, 8))
            return evaluation.compute()

        result, scores = measured(through_evaluate if method == "evaluate" else direct, 1 << 20)
    return {**result, "scores": json.dumps(scores, sort_keys=True)}


ONCE: dict[str, Callable[[str, str], dict[str, Any]]] = {
    "count": count_once,
    "match": match_once,
    "evaluate": evaluate_once,
}


def apart(python: str, kind: str, method: str, path: Path) -> dict[str, Any]:
    command = [python, __file__, "--worker", kind, method, str(path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{method} failed:\n{done.stderr}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def interleaved(kind: str, methods: dict[str, str], path: Path, rounds: int) -> Measured:
    """Run every method once a round, each in the Python that has it; slow ones (over a minute) only once."""
    found: Measured = {method: [] for method in methods}
    for _ in range(rounds):
        for method, python in methods.items():
            if found[method] and found[method][0]["wall"] > 60:
                continue
            found[method].append(apart(python, kind, method, path))
            wall = found[method][-1]["wall"]
            print(f"{path.stem}, {method}: {wall:.4f} s", file=sys.stderr, flush=True)
    return found


def refuse_differences(found: Measured, name: str, places: int | None = None) -> None:
    """Every method gave the same ``name``, wherever it gave one."""
    values: dict[Any, list[str]] = {}
    for method, entries in found.items():
        for entry in entries:
            value: Any = entry[name]
            value = round(value, places) if places else value
            for part in enumerate(value) if isinstance(value, list) else [(0, value)]:
                if part[1] is not None:
                    values.setdefault(part, []).append(method)
    for place in {part[0] for part in values}:
        different = [sorted(set(methods)) for part, methods in values.items() if part[0] == place]
        if len(different) > 1:
            raise SystemExit(f"{name} differ between {different}")


def table_of(found: Measured, against: str) -> str:
    lines = [f"| method | seconds (least) | CPU seconds | / {against} | memory, MB | runs |", "|" + "---|" * 6]
    for method, entries in found.items():
        least = min(entry["wall"] for entry in entries)
        times, of_minima = ratio(found, method, against)
        cells = [
            method,
            f"{median(found, method):.4g} ({least:.4g})",
            f"{median(found, method, 'cpu'):.4g}",
            f"{times:.2f} ({of_minima:.2f})",
            f"{median(found, method, 'memory') / 1e6:.0f}",
            str(len(entries)),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def prepare(size: int, instances: int, folder: Path) -> tuple[Path, Path, str]:
    """Write a pair of volumes and its overlap graph once."""
    from em_bench_eval.matching import iou
    from em_bench_eval.overlap import contingency

    folder.mkdir(parents=True, exist_ok=True)
    name = f"pair-{instances}-{size}"
    volumes, graph = folder / f"{name}.npy", folder / f"{name}-graph.npz"
    if not volumes.exists():
        pair = np.stack(make_pair(size, max(1, round(instances * (size / 512) ** 3)), seed=instances))
        np.save(volumes, pair)
    reference, prediction = np.load(volumes)
    table = contingency(reference, prediction)
    rows, columns = table.pair_reference, table.pair_prediction
    weight = iou(table.pair_voxels, table.reference_voxels[rows], table.prediction_voxels[columns])
    np.savez(graph, rows=rows, columns=columns, weight=weight, voxels=table.pair_voxels)
    foreground = (reference > 0).mean()
    sizes = f"{len(table.reference_ids)} x {len(table.prediction_ids)} instances, {len(rows)} overlaps"
    return volumes, graph, f"{sizes}, {foreground:.0%} foreground"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=512, help="edge of the volumes, voxels (512)")
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each method (5)")
    parser.add_argument("--instances", type=int, nargs="+", default=list(INSTANCES), help="in 512^3 voxels")
    parser.add_argument("--parts", nargs="+", default=list(ONCE), choices=list(ONCE))
    parser.add_argument("--counters", nargs="+", default=[], choices=list(COUNTERS))
    parser.add_argument("--peers", help="a Python that has elf")
    parser.add_argument("--dense", action="store_true", help="also scipy's dense matching, where 8 GB are enough")
    parser.add_argument("--sparse-limit", type=int, default=60_000, help="most overlaps for scipy's sparse matching")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "em_bench_volumes")
    parser.add_argument("--json", type=Path, help="write every measurement here")
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        kind, method, path = options.worker
        print(json.dumps(ONCE[kind](method, path)))
        return
    results: dict[str, Measured] = {}
    here, sections = sys.executable, [machine()]
    for instances in options.instances:
        volumes, graph, description = prepare(options.size, instances, options.folder)
        if "count" in options.parts:
            wanted = options.counters or list(COUNTERS)
            methods = {m: here for m in wanted if "elf" not in m} | {m: options.peers for m in wanted if "elf" in m}
            found = interleaved("count", {m: p for m, p in methods.items() if p}, volumes, options.rounds)
            refuse_differences(found, "digests")
            results[f"count {instances}"] = found
            against = next(iter(found))
            sections.append(f"Contingency table, {options.size}^3: {description}\n\n{table_of(found, against)}")
        if "match" in options.parts:
            with np.load(graph) as arrays:
                overlaps, n, m = len(arrays["rows"]), int(arrays["rows"].max()), int(arrays["columns"].max())
            fits = {"scipy dense": options.dense and 8 * (n + 1) * (m + 1) < DENSE_BYTES}
            fits["scipy sparse"] = overlaps <= options.sparse_limit
            found = interleaved("match", {m: here for m in MATCHERS if fits.get(m, True)}, graph, options.rounds)
            refuse_differences(found, "total", places=6)
            results[f"match {instances}"] = found
            sections.append(f"Matching: {description}\n\n{table_of(found, 'ours')}")
    if "evaluate" in options.parts:
        volumes = prepare(512, options.instances[0], options.folder)[0]
        found = interleaved("evaluate", dict.fromkeys(("direct", "evaluate"), here), volumes, options.rounds)
        refuse_differences(found, "scores")
        results["evaluate"] = found
        sections.append(f"64 pairs of 512 x 512 images\n\n{table_of(found, 'direct')}")
    print(*sections, sep="\n\n")
    if options.json:
        options.json.write_text(json.dumps(results))


if __name__ == "__main__":
    main()
