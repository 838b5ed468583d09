"""lpa.label against cc3d and others: equality first, then time and memory, each method alone in a fresh process.

    python benchmarks/lpa.py                          # 512^3, 7 rounds: about 15 minutes
    python benchmarks/lpa.py --size 96 --rounds 1     # a quick look, as CI does
    python benchmarks/lpa.py --cases mito er --methods lpa-2 cc3d scipy skimage

A round runs every method once, so that a change of the machine's load meets all of them. Each measurement is one call
in its own process: nothing but a tiny warm-up call came before (imports, compiled code), the output is allocated by the
call (``lpa-2-out``: by an earlier call), its memory pages are new. Ratios are of medians, and of minima beside them.
The last column is CPU time over wall time of ``lpa-2``: well below 1.7, the second core was busy with something else.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
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
sys.path[0] = str(ROOT)  # instead of this folder: this file is called lpa, too

from benchmarks import volumes  # noqa: E402

Labels = npt.NDArray[Any]
PEERS = ("cc3d", "cc3d-min", "astype")
DEFAULT_METHODS = ("lpa-1", "lpa-2", "lpa-2-out", *PEERS)


def run_lpa(threads: int) -> Callable[..., Labels]:
    import lpa

    return lambda semantic, connectivity, out=None: lpa.label(semantic, connectivity, threads=threads, out=out)


def run_cc3d() -> Callable[..., Labels]:
    import cc3d

    return lambda semantic, connectivity: cc3d.connected_components(semantic, connectivity=connectivity)


def run_cc3d_min() -> Callable[..., Labels]:
    """cc3d, then its ids replaced by minimum indices in place, in one compiled pass: the fastest way found."""
    import cc3d
    from numba import njit

    @njit(nogil=True, cache=True)
    def rename(components: Labels, first: Labels) -> None:
        for i in range(components.size):
            component = components[i]
            if component:
                if not first[component]:
                    first[component] = i + 1
                components[i] = first[component]

    def label(semantic: volumes.Semantic, connectivity: int) -> Labels:
        components, count = cc3d.connected_components(
            semantic, connectivity=connectivity, return_N=True, out_dtype=np.uint32
        )
        rename(components.reshape(-1), np.zeros(count + 1, np.uint32))
        return components

    return label


def run_scipy() -> Callable[..., Labels]:
    """One class only: scipy joins touching classes."""
    from scipy import ndimage

    def label(semantic: volumes.Semantic, connectivity: int) -> Labels:
        rank = {6: 1, 18: 2, 26: 3}[connectivity]
        return ndimage.label(semantic, ndimage.generate_binary_structure(3, rank))[0]

    return label


def run_skimage() -> Callable[..., Labels]:
    from skimage import measure

    return lambda semantic, connectivity: measure.label(semantic, connectivity={6: 1, 18: 2, 26: 3}[connectivity])


def run_iteration() -> Callable[..., Labels]:
    """The paper's iteration as written: for sizes up to about 64."""
    import lpa

    return lpa.propagate


METHODS: dict[str, Callable[[], Callable[..., Labels]]] = {
    "lpa-1": lambda: run_lpa(1),
    "lpa-2": lambda: run_lpa(2),
    "lpa-2-out": lambda: run_lpa(2),
    "cc3d": run_cc3d,
    "cc3d-min": run_cc3d_min,
    "astype": lambda: lambda semantic, connectivity: semantic.astype(np.uint32),
    "scipy": run_scipy,
    "skimage": run_skimage,
    "iteration": run_iteration,
}


def measure_once(method: str, path: str, connectivity: int) -> dict[str, float]:
    """Time one call in this process; ``memory`` is what it needed at most beyond what was there, in bytes."""
    label = METHODS[method]()
    semantic = np.load(path)
    label(np.ones((4, 4, 4), np.uint8), connectivity)
    extra = {"out": label(semantic, connectivity)} if method.endswith("-out") else {}
    # A virtual machine may have given its free memory back to the host, whose page faults then cost more than any
    # labelling, by chance. Touching and freeing enough makes it take the memory again; to us the pages are new still.
    np.ones(6 * semantic.size, np.uint8)
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before = resident("VmRSS")
    wall, cpu = time.perf_counter(), time.process_time()
    labels = label(semantic, connectivity, **extra)
    result = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
    return {**result, "memory": resident("VmHWM") - before, "output": labels.nbytes}


def resident(key: str) -> int:
    """Memory of this process in bytes: ``VmRSS`` now, ``VmHWM`` at most (ru_maxrss would include the parent's)."""
    status = Path("/proc/self/status").read_text()
    return int(status.split(key + ":")[1].split()[0]) * 1024


def measure_apart(method: str, path: Path, connectivity: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--worker", method, str(path), str(connectivity)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    found = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    result: dict[str, float] = json.loads(found.stdout)
    return result


def check_equality(path: Path, connectivity: int) -> None:
    semantic = np.load(path)
    expected = run_cc3d_min()(semantic, connectivity)
    for threads in (1, 2):
        if not np.array_equal(run_lpa(threads)(semantic, connectivity), expected):
            raise SystemExit(f"{path.stem}, {connectivity}: lpa.label ({threads} threads) differs from cc3d")


def prepare(cases: list[str], size: int, folder: Path) -> dict[str, Path]:
    """Write each case as .npy once; real volumes keep their size."""
    folder.mkdir(parents=True, exist_ok=True)
    real = volumes.urocell()
    paths = {}
    for case in cases or [*volumes.SYNTHETIC, *real]:
        path = folder / (f"{case}-{size}.npy" if case in volumes.SYNTHETIC else f"{case}.npy")
        if not path.exists():
            semantic = volumes.SYNTHETIC[case](size) if case in volumes.SYNTHETIC else volumes.read_nifti(real[case])
            np.save(path, semantic)
        paths[case] = path
    return paths


def geometric_mean(values: list[float]) -> float:
    return float(np.exp(np.mean(np.log(values))))


Measured = dict[str, list[dict[str, float]]]  # method: one entry a round


def median(measured: Measured, method: str, key: str = "wall") -> float:
    return float(np.median([entry[key] for entry in measured[method]]))


def ratio(measured: Measured, slow: str, fast: str) -> tuple[float, float]:
    """Ratio of medians and of minima of the wall times."""
    least = {method: min(entry["wall"] for entry in measured[method]) for method in (slow, fast)}
    return median(measured, slow) / median(measured, fast), least[slow] / least[fast]


def report(results: dict[tuple[str, int], Measured]) -> str:
    """Return a Markdown table with a row for each volume and connectivity, and the geometric means."""
    methods = list(next(iter(results.values())))
    columns = [("cc3d", method) for method in methods if method.startswith("lpa")]
    columns += [(other, "lpa-2") for other in methods if other not in ("cc3d", "astype") and "lpa" not in other]
    columns = [(slow, fast) for slow, fast in columns if slow in methods and fast in methods]
    header = ["volume", "connectivity", *(f"{slow} / {fast}" for slow, fast in columns)]
    header += ["lpa-2 / astype", "cpu cc3d / lpa-1", "extra memory / output", "cores lpa-2 got"]
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    means: dict[tuple[str, str], list[float]] = {column: [] for column in columns}
    for (case, connectivity), measured in results.items():
        cells = [case, str(connectivity)]
        for column in columns:
            of_medians, of_minima = ratio(measured, *column)
            means[column].append(of_medians)
            cells.append(f"{of_medians:.2f} ({of_minima:.2f})")
        floor = ratio(measured, "lpa-2", "astype")[0] if {"lpa-2", "astype"} <= set(methods) else np.nan
        work = median(measured, "cc3d", "cpu") / median(measured, "lpa-1", "cpu") if "lpa-1" in methods else np.nan
        fast = "lpa-2" if "lpa-2" in methods else methods[0]
        memory = median(measured, fast, "memory") / median(measured, fast, "output")
        cores = float(np.median([entry["cpu"] / entry["wall"] for entry in measured[fast]]))
        cells += [f"{floor:.2f}", f"{work:.2f}", f"{memory:.2f}", f"{cores:.1f}"]
        lines.append("| " + " | ".join(cells) + " |")
    mean_cells = [f"{geometric_mean(means[column]):.2f}" for column in columns]
    lines.append("| " + " | ".join(["geometric mean", "", *mean_cells, "", "", "", ""]) + " |")
    return "\n".join(lines)


def machine() -> str:
    names = ("numpy", "numba", "connected-components-3d", "scipy", "scikit-image")
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in names)
    model = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    cpu = model[0].split(":")[1].strip() if model else platform.processor()
    load = os.getloadavg()[1]
    return f"{os.cpu_count()} CPUs ({cpu}), Python {platform.python_version()}, {versions}; load {load:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=512, help="edge of the synthetic volumes, voxels (512)")
    parser.add_argument("--rounds", type=int, default=7, help="measurements of each method (7)")
    parser.add_argument("--cases", nargs="+", default=[], help="mito er five noise and real volumes (default: all)")
    parser.add_argument("--methods", nargs="+", default=DEFAULT_METHODS, choices=METHODS)
    parser.add_argument("--connectivity", nargs="+", type=int, default=[6, 26])
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "em_bench_volumes")
    parser.add_argument("--json", type=Path, help="write every measurement here")
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        method, path, connectivity = options.worker
        print(json.dumps(measure_once(method, path, int(connectivity))))
        return
    paths = prepare(options.cases, options.size, options.folder)
    results: dict[tuple[str, int], Measured] = {}
    for case, path in paths.items():
        for connectivity in options.connectivity:
            check_equality(path, connectivity)
            measured: Measured = {method: [] for method in options.methods}
            for _ in range(options.rounds):
                for method in options.methods:
                    measured[method].append(measure_apart(method, path, connectivity))
            results[case, connectivity] = measured
            walls = ", ".join(f"{method} {median(measured, method):.3f}" for method in options.methods)
            print(f"{case}, {connectivity}: {walls} s", file=sys.stderr, flush=True)
    print(machine(), report(results), sep="\n\n")
    if options.json:
        options.json.write_text(json.dumps({f"{case} {n}": measured for (case, n), measured in results.items()}))


if __name__ == "__main__":
    main()
