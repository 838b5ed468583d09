"""Instances recovered from binary masks, against experts: UroCell mitochondria and fusiform vesicles.

    python benchmarks/lpa_quality.py [--data FOLDER] [--crop 160] [--fixed]

Recall at t is the share of expert instances whose best one-to-one predicted instance has IoU > t (above 0.5 no two
instances compete, so no assignment is needed); F1 counts surplus predictions too. The sheet rule's settings are chosen
on a crop of one volume by F1 at 0.5 and reported on the whole other volume, both ways round; ``--fixed`` reports the
shipped settings only. Needs nibabel; prints Markdown.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

sys.path[0] = str(Path(__file__).resolve().parents[1])  # instead of this folder, which has a file called lpa, too

import lpa  # noqa: E402
from benchmarks.volumes import REAL_DATA  # noqa: E402
from em_bench_eval.overlap import contingency  # noqa: E402
from lpa.split import DEFAULT_RULES, SHEETS, split  # noqa: E402
from lpa.split_rules import NeckRule, SplitRule  # noqa: E402

VOXEL_NM = (15.0, 16.0, 16.0)  # (z, y, x), from the paper: the zooms in the files' headers are wrong
MITO = ("fib1-0-0-0", "fib1-1-0-3", "fib1-3-3-0")
VESICLES = ("fib1-0-0-0", "fib1-3-3-0")
THRESHOLDS = (0.5, 0.75, 0.9)
GRID = [
    replace(SHEETS, reach_nm=reach, min_affinity=affinity)
    for reach, affinity in itertools.product((80.0, 112.0, 144.0), (0.5, 0.55, 0.6))
]
# what the distance transform alone can do: h-maxima watershed, no neck ratio
H_MAXIMA = [
    NeckRule(max_neck_ratio=1.0, min_persistence_nm=h, min_volume_nm3=SHEETS.min_volume_nm3)
    for h in (4.0, 8.0, 16.0, 24.0, 32.0, 48.0)
]


def load(folder: Path, organelle: str, name: str, crop: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Return the expert's instances and the binary mask, ``(z, y, x)``."""
    import nibabel

    arrays = [
        np.asarray(nibabel.load(folder / organelle / kind / f"{name}.nii.gz").dataobj)
        for kind in ("instance", "binary")
    ]
    part = (slice(crop),) * 3
    # NIfTI is (x, y, z); ids are stored as floats
    expert, binary = (np.ascontiguousarray(np.rint(array.T[part]).astype(np.uint32)) for array in arrays)
    return expert, binary > 0


def scores(expert: np.ndarray, found: np.ndarray) -> dict[str, float]:
    table = contingency(expert, found)
    reference, prediction = table.reference_voxels[table.pair_reference], table.prediction_voxels[table.pair_prediction]
    iou = table.pair_voxels / (reference + prediction - table.pair_voxels)
    experts, predicted = len(table.reference_ids), len(table.prediction_ids)
    result = {f"recall@{t}": float((iou > t).sum() / experts) for t in THRESHOLDS}
    return {
        "experts": experts,
        "found": predicted,
        **result,
        "f1": float(2 * (iou > 0.5).sum() / (experts + predicted)),
    }


def recover(mask: np.ndarray, organelle: str, rule: SplitRule | None, connectivity: int = 6) -> np.ndarray:
    parts = lpa.label(mask, connectivity=connectivity, relabel="compact")
    if rule is None:
        return parts
    organelle_of = dict.fromkeys(range(1, int(parts.max()) + 1), organelle)
    return split(parts, organelle_of, VOXEL_NM, {organelle: rule})[0]


def row(volume: str, method: str, expert: np.ndarray, mask: np.ndarray, *arguments: object) -> None:
    begin = time.perf_counter()
    result = scores(expert, recover(mask, *arguments))  # type: ignore[arg-type]
    seconds = time.perf_counter() - begin
    cells = [volume, method, result["experts"], result["found"]]
    cells += [f"{result[name]:.3f}" for name in (*(f"recall@{t}" for t in THRESHOLDS), "f1")]
    print("| " + " | ".join(map(str, [*cells, f"{seconds:.0f}"])) + " |", flush=True)


def best(folder: Path, name: str, crop: int, rules: list[SplitRule]) -> SplitRule:
    expert, mask = load(folder, "fv", name, crop)
    results = [scores(expert, recover(mask, "endo", rule))["f1"] for rule in rules]
    return rules[int(np.argmax(results))]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=REAL_DATA / "urocell_labels", help="the folder urocell_labels")
    parser.add_argument("--crop", type=int, default=160, help="edge of the crop on which settings are chosen, voxels")
    parser.add_argument("--fixed", action="store_true", help="report the shipped settings only")
    arguments = parser.parse_args()
    try:
        import nibabel  # noqa: F401
    except ImportError:
        print("skipped: reading UroCell needs nibabel (pip install nibabel)", file=sys.stderr)
        return 0
    if not arguments.data.is_dir():
        print(f"skipped: no UroCell labels at {arguments.data} (--data or EM_BENCH_TEST_DATA)", file=sys.stderr)
        return 0
    print("| volume | method | experts | found | recall@0.5 | recall@0.75 | recall@0.9 | F1@0.5 | s |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name in MITO:
        expert, mask = load(arguments.data, "mito", name, None)
        for connectivity, rule in itertools.product((6, 26), (None, DEFAULT_RULES["mito"])):
            what = f"{connectivity}-connected" + (", default rule" if rule else "")
            row(f"mito {name}", what, expert, mask, "mito", rule, connectivity)
    for name, other in (VESICLES, VESICLES[::-1]):
        expert, mask = load(arguments.data, "fv", name, None)
        row(f"fv {name}", "6-connected", expert, mask, "endo", None)
        row(f"fv {name}", "shipped SHEETS", expert, mask, "endo", SHEETS)
        if arguments.fixed:
            continue
        for kind, rules in (("h-maxima", H_MAXIMA), ("sheets", GRID)):
            rule = best(arguments.data, other, arguments.crop, list(rules))
            chosen = (
                f"h {rule.min_persistence_nm:g} nm"
                if isinstance(rule, NeckRule)
                else f"reach {rule.reach_nm:g} nm, affinity {rule.min_affinity:g}"
            )
            row(f"fv {name}", f"{kind}, chosen on {other}: {chosen}", expert, mask, "endo", rule)
    return 0


if __name__ == "__main__":
    sys.exit(main())
