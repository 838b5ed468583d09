"""``em-bench import``: options to a request; heavy imports only once they are parsed."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence
from pathlib import Path

from em_bench_eval.errors import InputError, unknown_name
from em_bench_eval.schema import ORGANELLES

EPILOG = """examples:
  em-bench import predictionsTs --dataset em-organelle-wild --config wild --split test --cases nnunet/cases.json \\
      --model nnunet --out predictions/nnunet
      semantic results of nnU-Net for an export; --probabilities reads its .npz files and gives each instance a
      confidence
  em-bench import mitonet --instances --organelle mito --dataset em-organelle-wild --split test --model mitonet \\
      --out predictions/mitonet
      instance maps of whole volumes, called like them: vnc_sstem-stack1.tif, lucchipp-train.zarr, ...

What is read: NIfTI, TIFF, PNG, HDF5, MRC, zarr, N5 and folders of slices, one result for each case of an export, each
volume or each row of the dataset. The organelle is said by a folder (mito/CASE.tif), by the name (CASE_mito.tif), by
--organelle, or by the values (--labels). docs/external.md says more.
"""


def import_(argv: Sequence[str]) -> int:
    """Run ``em-bench import``; return the exit status."""
    options = _parser().parse_args(argv)
    from baselines.external.import_decode import Rule
    from baselines.external.import_reader import ImportRequest
    from baselines.external.import_results import import_results

    request = ImportRequest(
        results=options.results,
        dataset=options.dataset,
        config=options.config,
        split=options.split,
        model=options.model,
        kind=options.kind,
        cases=options.cases,
        organelle=options.organelle,
        labels=None if options.labels is None else parse_labels(options.labels),
        pattern=options.pattern,
        inside=options.inside,
        axes=options.axes,
        rule=Rule(options.decode, options.by_slice, options.connectivity),
        checkpoint=options.checkpoint,
        note=options.note,
        memory_gb=options.memory_gb,
    )
    count = import_results(request, options.out, overwrite=options.overwrite)
    print(f"{options.out}: {count} images")
    print(
        f"score them: em-bench score {options.out} {options.dataset} --config {options.config} --split {options.split}"
    )
    return 0


def parse_labels(text: str) -> dict[str, int]:
    """Read ``"mito=1,er=3"``."""
    labels = {"background": 0}
    for part in text.split(","):
        name, _, number = part.partition("=")
        if name.strip() not in ORGANELLES:
            raise unknown_name("organelle", name.strip(), ORGANELLES)
        if not number.strip().isdecimal() or int(number) in labels.values():
            raise InputError("--labels is not readable", found=text, expected="different numbers above 0: mito=1,er=2")
        labels[name.strip()] = int(number)
    return labels


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="em-bench import",
        description="Read the results of another program as a prediction folder, which em-bench score takes.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("results", type=Path, metavar="PATH", help="folder of results, or one result")
    add("--dataset", required=True, metavar="DATASET", help="dataset folder, or name on the Hub")
    add("--config", default="wild", metavar="NAME", help="configuration of the dataset (default: %(default)s)")
    add("--split", default="test", metavar="NAME", help="default: %(default)s")
    add("--out", required=True, type=Path, metavar="OUT", help="folder for predictions.parquet and prediction.json")
    add("--model", required=True, metavar="NAME", help="what the leaderboard row is called")
    add("--checkpoint", metavar="TEXT", help="which weights, for the record")
    add("--note", metavar="TEXT", help="how it was trained, for the record")
    add("--overwrite", action="store_true", help="replace other predictions in OUT")
    what = parser.add_argument_group("what the files are")
    add = what.add_argument
    add(
        "--cases",
        type=Path,
        metavar="cases.json",
        help="of the export; without it files are called after volumes or rows",
    )
    kind = what.add_mutually_exclusive_group()
    kind.add_argument(
        "--semantic", dest="kind", action="store_const", const="semantic", default="semantic", help="classes (default)"
    )
    kind.add_argument("--instances", dest="kind", action="store_const", const="instances", help="instance ids")
    kind.add_argument(
        "--probabilities",
        dest="kind",
        action="store_const",
        const="probabilities",
        help="nnU-Net's .npz, or a map of 0 to 1 for each organelle",
    )
    add("--organelle", choices=ORGANELLES, metavar="NAME", help="of files whose name says none")
    add("--labels", metavar="mito=1,er=2", help="values of a semantic map (default: those of the export, else 1 to 5)")
    add("--pattern", metavar="TEXT", help="how files are called, without suffix: '{case}_{organelle}_pred'")
    add("--inside", metavar="PATH", help="array in HDF5, zarr and N5 files")
    orders = ["".join(order) for order in itertools.permutations("zyx")]
    add("--axes", default="zyx", choices=orders, metavar="ORDER", help="of the files' axes (default: %(default)s)")
    how = parser.add_argument_group("from classes to instances")
    add = how.add_argument
    add(
        "--decode",
        choices=("components", "baseline"),
        default="components",
        help="connected components as they are, or with holes filled and specks dropped like the project's own models "
        "(default: %(default)s)",
    )
    add("--by-slice", action="store_true", help="decode volumes slice by slice, not in 3D")
    add(
        "--connectivity",
        type=int,
        choices=(6, 18, 26),
        help="neighbours of a voxel (default: as the dataset was built; 8 neighbours in images)",
    )
    add("--memory-gb", type=float, default=16.0, metavar="GB", help="most memory to decode a case (default: 16)")
    return parser
