"""The paper's two tables: its layout, its printed rows, and a check of what a row prints.

Quoted from "In-the-wild EM organelle benchmark", arXiv 2601.12464, Tables 1 (homogeneous) and 2 (wild). The paper does
not say how its Dice and IoU are aggregated, and some printed averages are not the mean of their row; ``faults`` says
which, so that nobody compares a number of ours with one that means something else.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from em_bench_eval.errors import InputError, unknown_name
from em_bench_eval.schema import ORGANELLES

Pair = tuple[float, float]  # Dice, IoU
TITLES = {"mito": "Mito", "nucleus": "Nucleus", "er": "ER", "endo": "Endo", "golgi": "Golgi", "average": "Average"}
BLOCKS = (("mito", "nucleus", "er"), ("endo", "golgi", "average"))  # the paper sets a row in two lines
AGGREGATIONS = ("instance", "reference", "matched", "pooled", "size")
PRINTED_DIGITS = 5e-4  # the tables print three decimals
DERIVED = 1.5e-3  # what rounding of both to three decimals allows


@dataclass(frozen=True)
class PaperRow:
    """One model's line. ``average`` is what is printed, which need not be the mean of ``values``."""

    model: str
    values: Mapping[str, Pair | None]  # organelle -> (Dice, IoU)
    average: Pair | None
    origin: str  # "quoted" or what was scored


def _quoted(model: str, average: Pair, *values: Pair) -> PaperRow:
    return PaperRow(model, dict(zip(ORGANELLES, values, strict=False)), average, "quoted")


PUBLISHED: Mapping[str, tuple[PaperRow, ...]] = {
    "homogeneous": (
        _quoted(
            "U-Net", (0.605, 0.522), (0.692, 0.603), (0.879, 0.916), (0.248, 0.158), (0.216, 0.155), (0.337, 0.224)
        ),
        _quoted("SAM (automatic)", (0.504, 0.337)),
        _quoted("SAM (prompted)", (0.524, 0.355)),
        _quoted("micro-SAM (automatic)", (0.551, 0.380)),
        _quoted("micro-SAM (prompted)", (0.584, 0.412)),
        _quoted(
            "Mask2Former",
            (0.672, 0.595),
            (0.829, 0.770),
            (0.941, 0.907),
            (0.273, 0.183),
            (0.537, 0.427),
            (0.408, 0.282),
        ),
    ),
    "wild": (
        _quoted(
            "U-Net", (0.436, 0.320), (0.650, 0.481), (0.840, 0.724), (0.180, 0.099), (0.210, 0.117), (0.300, 0.176)
        ),
        _quoted(
            "Mask2Former",
            (0.588, 0.467),
            (0.825, 0.702),
            (0.940, 0.887),
            (0.255, 0.145),
            (0.530, 0.360),
            (0.390, 0.242),
        ),
    ),
}


def row_of_score(score: Mapping[str, Any], aggregation: str = "instance", group: str = "all") -> PaperRow:
    """Take a row from a score document (``score.json``); the average is the plain mean of the organelles that have one.

    Raises ``InputError`` for an unknown aggregation or a group that was not scored.
    """
    if aggregation not in AGGREGATIONS:
        raise unknown_name("aggregation", aggregation, AGGREGATIONS)
    if group not in score["groups"]:
        raise unknown_name("group", group, score["groups"])
    values = score["groups"][group]

    def pair(name: str) -> Pair | None:
        dice, iou = (values.get(f"{name}/{metric}__{aggregation}") for metric in ("dice", "iou"))
        return None if dice is None or iou is None else (dice, iou)

    model = str(score["prediction"].get("model", "?"))
    return PaperRow(model, {name: pair(name) for name in ORGANELLES}, pair("macro"), f"{group}, {aggregation}")


def faults(row: PaperRow) -> list[str]:
    """Say what cannot be right, or means less than it seems, in a printed row."""
    found = []
    known = {name: pair for name, pair in row.values.items() if pair is not None}
    for name, (dice, iou) in known.items():
        if iou > dice + PRINTED_DIGITS:
            found.append(
                f"{TITLES[name]}: IoU {iou:.3f} exceeds Dice {dice:.3f}, which no aggregation of matched pairs can give"
            )
    if row.average is not None and not known:
        found.append("an average without the values that it is the average of")
    elif row.average is not None:
        for term, printed, column in (("Dice", row.average[0], 0), ("IoU", row.average[1], 1)):
            mean = math.fsum(pair[column] for pair in known.values()) / len(known)
            if abs(mean - printed) > 2 * PRINTED_DIGITS:
                found.append(f"the printed average {term} {printed:.3f} is not the mean of the row, {mean:.3f}")
    derived = [abs(iou - dice / (2 - dice)) <= DERIVED for dice, iou in known.values()]
    if len(derived) > 1 and all(derived):
        found.append("every IoU is Dice / (2 - Dice): it carries no information of its own")
    return found


def layout(split: str, rows: Sequence[PaperRow], *, markdown: bool = False) -> str:
    """Set rows as the paper does, two lines of three columns; below it, what ``faults`` says."""
    if split not in PUBLISHED:
        raise InputError("the paper has no such table", found=split, expected=" or ".join(PUBLISHED))
    number = 1 + list(PUBLISHED).index(split)
    names = [f"{row.model} [{row.origin}]" for row in rows]
    width = max((len(name) for name in names), default=5)
    lines = [f"Table {number}: {split}"]
    for block in BLOCKS:
        head = [f"{TITLES[name]} {term}" for name in block for term in ("Dice", "IoU")]
        lines += [""]
        if markdown:
            lines += ["| model | " + " | ".join(head) + " |", "|---" * (len(head) + 1) + "|"]
        else:
            lines += [" " * width + "  " + "  ".join(f"{text:>12}" for text in head)]
        for name, row in zip(names, rows, strict=True):
            cells = [
                cell
                for column in block
                for cell in _cells(row.average if column == "average" else row.values.get(column))
            ]
            lines.append(
                f"| {name} | " + " | ".join(cells) + " |"
                if markdown
                else f"{name:<{width}}  " + "  ".join(f"{cell:>12}" for cell in cells)
            )
    notes = [f"{name}: {fault}" for name, row in zip(names, rows, strict=True) for fault in faults(row)]
    return "\n".join([*lines, *_notes(notes)])


def _cells(pair: Pair | None) -> tuple[str, str]:
    return ("-", "-") if pair is None else (f"{pair[0]:.3f}", f"{pair[1]:.3f}")


def _notes(notes: Iterable[str]) -> list[str]:
    listed = [f"- {note}" for note in notes]
    return ["", "checked:", *listed] if listed else []
