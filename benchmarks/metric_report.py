"""Where the time of a whole report goes: every family of metrics, on a volume with mitochondria and ER.

    python benchmarks/metric_report.py                 # 512^3, 28,000 mitochondria-like instances and an ER network
    python benchmarks/metric_report.py --size 96 --instances 200

Prints CPU and wall seconds by part, and the peak memory over that of the label maps.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parent.parent)]

import numpy as np  # noqa: E402
from metric import make_pair  # noqa: E402
from volumes import field  # noqa: E402

from em_bench_eval import scoring  # noqa: E402
from em_bench_eval.schema import ORGANELLES  # noqa: E402
from em_bench_eval.scoring import Evaluation  # noqa: E402
from em_bench_eval.settings import Settings  # noqa: E402

PARTS = {
    "contingency": "contingency tables",
    "judge": "judging and matching",
    "overlap_statistics": "instance, panoptic, entropy statistics",
    "skeleton_statistics": "skeletons (er)",
    "boundary_statistics": "boundaries (mito, er)",
}


def timed(function: Callable[..., Any], spent: dict[str, list[float]], name: str) -> Callable[..., Any]:
    def call(*arguments: Any, **named: Any) -> Any:
        wall, cpu = time.perf_counter(), time.process_time()
        result = function(*arguments, **named)
        spent[name][0] += time.process_time() - cpu
        spent[name][1] += time.perf_counter() - wall
        return result

    return call


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--instances", type=int, default=28_000)
    arguments = parser.parse_args()
    reference, prediction = make_pair(arguments.size, arguments.instances, seed=1)
    network = (np.abs(field(arguments.size, 5, seed=2)) < 0.12).astype(np.uint8)  # sheets and tubules, a tenth of it
    cut = network.copy()
    cut[:, :, arguments.size // 2] = 0  # one plane is missed: every tubule through it is cut
    spent: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for name in PARTS:
        setattr(scoring, name, timed(getattr(scoring, name), spent, name))
    small = np.zeros((4, 4, 4), np.uint8)
    everything = Settings(skeleton=("er",), boundary=ORGANELLES)
    Evaluation(everything).add({"er": small + 1}, {"er": small + 1}, voxel_size_nm=(8, 8, 8))  # compiles
    spent.clear()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    evaluation = Evaluation(everything)
    wall, cpu = time.perf_counter(), time.process_time()
    evaluation.add({"mito": prediction, "er": cut}, {"mito": reference, "er": network}, voxel_size_nm=(8, 8, 8))
    result = evaluation.compute()
    total = (time.process_time() - cpu, time.perf_counter() - wall)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    counts = f"{result['mito/n_reference']} reference and {result['mito/n_prediction']} predicted mitochondria"
    print(f"{arguments.size}^3, {counts}, {int((network != 0).sum()):,} voxels of ER; {len(result)} keys")
    print("\n| part | CPU s | wall s | share of wall |\n|---|---|---|---|")
    for name, title in PARTS.items():
        print(f"| {title} | {spent[name][0]:.1f} | {spent[name][1]:.1f} | {spent[name][1] / total[1]:.0%} |")
    rest = [total[k] - sum(values[k] for values in spent.values()) for k in range(2)]
    print(f"| the rest | {rest[0]:.1f} | {rest[1]:.1f} | {rest[1] / total[1]:.0%} |")
    print(f"| all | {total[0]:.1f} | {total[1]:.1f} | |")
    print(f"\npeak memory over that of the label maps: {(peak - before) / 1024:.0f} MB")


if __name__ == "__main__":
    main()
