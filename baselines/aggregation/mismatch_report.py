"""Table, CSV, JSON, figure and statement of a mismatch."""

from __future__ import annotations

import csv
import io
import json
from functools import partial
from pathlib import Path

from baselines.aggregation.aggregation_levels import ALL
from baselines.aggregation.mismatch import AGGREGATIONS, Mismatch, gaps
from baselines.aggregation.mismatch_figure import figure
from baselines.aggregation.mismatch_statement import statement
from em_bench_eval.metric import Value
from em_bench_eval.whole_file import write_whole

COLUMNS = {  # header -> metric
    "sem Dice": "semantic_dice",
    "D size": "dice__size",
    "D ref": "dice__reference",
    "D inst": "dice__instance",
    "VOI spl": "voi_split__union",
    "VOI mrg": "voi_merge__union",
    "n pred": "n_prediction",
    "n ref": "n_reference",
}
GAPS = ("gap_id", "gap_stitch", "gap_pixel")


def format_table(found: Mismatch) -> str:
    """Lay out the levels and gaps of every organelle for a terminal."""
    about = found.about
    lines = [
        f"{about['reference']}: {about['shape']} voxels (z, y, x) of {about['voxel_size_nm']} nm; patches of "
        f"{about['cuts']['patch']}, blocks of {about['cuts']['block']} voxels"
    ]
    for name, part in found.organelles.items():
        edge = about["min_edge_nm"][name]
        lines += ["", f"{name} (nothing below {edge:g} nm a side is judged)"]
        lines.append("  " + f"{'level':<13}" + f"{'pixels':<10}" + "".join(f"{header:>9}" for header in COLUMNS))
        for level in ALL:
            for semantics, levels in part.levels.items():
                cells = (_cell(levels[level][key]) for key in COLUMNS.values())
                lines.append("  " + f"{level:<13}" + f"{semantics:<10}" + "".join(f"{cell:>9}" for cell in cells))
        for kind, pieces in part.fragmentation.items():
            lines.append(
                f"  f in each {kind}: mean {_cell(pieces.f_mean)}, by size {_cell(pieces.f_size)}; perfect pixels are "
                f"worth 2f/(1+f): {_cell(pieces.dice_mean)}, by size {_cell(pieces.dice_size)}; "
                f"{pieces.pieces} pieces of {pieces.instances} instances"
            )
        for semantics in part.levels:
            for key in AGGREGATIONS[:3]:
                values = gaps(part, key, semantics)
                listed = ", ".join(f"{gap} {_cell(values[gap], sign=True)}" for gap in GAPS)
                lines.append(f"  {semantics:<10}{key:<16}{listed}")
    short = {header: key for header, key in COLUMNS.items() if header not in key}
    lines += ["", "; ".join(f"{header}: {key}" for header, key in short.items()) + " (em-bench explain KEY)"]
    if about["one_patch_per_slice"]:
        lines.append("A patch covers a whole slice: L1 and L2 are the same; a smaller --patch sets them apart.")
    if about["too_small_blocks"]:
        names = ", ".join(about["too_small_blocks"])
        lines.append(f"A block is smaller than the smallest {names} that is judged: L4 says nothing about it.")
    if about["one_block"]:
        lines.append("A block covers the volume: L4 and L5 are the same; a smaller --block sets them apart.")
    return "\n".join(lines)


def _cell(value: Value, *, sign: bool = False) -> str:
    if value is None:
        return "-"
    if isinstance(value, int):
        return str(value)
    return f"{value:+.3f}" if sign else f"{value:.3f}"


def as_csv(found: Mismatch) -> str:
    """Return a line for each organelle, level and semantics."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    keys = [*COLUMNS.values(), *(key for key in AGGREGATIONS if key not in COLUMNS.values())]
    writer.writerow(["organelle", "level", "about", "unit", "reference_ids", "pixels", *keys])
    for name, part in found.organelles.items():
        for level, how in ALL.items():
            for semantics, levels in part.levels.items():
                values = [levels[level][key] for key in keys]
                cells = ["" if value is None else value for value in values]
                writer.writerow([name, level, how.title, how.unit, how.reference, semantics, *cells])
    return text.getvalue()


def write_report(found: Mismatch, out: Path, key: str) -> list[Path]:
    """Write ``mismatch.json``, ``.csv``, ``.svg`` and ``.txt`` to the folder ``out``; return their paths."""
    out.mkdir(parents=True, exist_ok=True)
    content = {**found.as_json(), "statement": {name: statement(found, name) for name in AGGREGATIONS}}
    files = {
        "mismatch.json": json.dumps(content, indent=1, allow_nan=False) + "\n",
        "mismatch.csv": as_csv(found),
        "mismatch.svg": figure(found, key),
        "mismatch.txt": f"{format_table(found)}\n\n{statement(found, key)}\n",
    }
    for name, text in files.items():
        write_whole(out / name, partial(Path.write_text, data=text, encoding="utf-8"))
    return [out / name for name in files]
