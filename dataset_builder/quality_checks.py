"""What a quality report looks for: one table of checks, each with its limit and the reason for it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Severity = Literal["error", "warning"]

LEAST_SCORE = 4.0  # standard errors by which shifted labels must agree better; the best of 289 shifts is chosen


@dataclass(frozen=True)
class Check:
    """One fault that is looked for; values beyond ``limit`` are reported."""

    name: str
    severity: Severity  # error: the data are wrong; warning: somebody should look
    limit: float
    unit: str
    what: str
    reason: str  # why this limit


@dataclass(frozen=True)
class Finding:
    """One fault of a volume."""

    check: Check
    text: str
    slices: tuple[int, ...] = ()  # z; empty: the whole volume
    value: float | None = None  # in the unit of the check, of the worst place


CHECKS: tuple[Check, ...] = (
    Check("unreadable", "error", 0, "boxes", "stored boxes that cannot be read", "a broken file is never intended"),
    Check(
        "missing_chunk",
        "error",
        0,
        "chunks",
        "image files that are absent where the volume is not black, and black chunks with labels in them",
        "an absent chunk reads as zeros, and nothing else says so",
    ),
    Check(
        "black_chunk",
        "warning",
        0,
        "chunks",
        "whole chunks of an image at 0, without labels",
        "padding is black, but so is a lost chunk",
    ),
    Check(
        "black",
        "error",
        0.99,
        "share of the pixels",
        "slices with this share of pixels at 0",
        "the darkest membranes cover a few per cent; padding of a tilted stack less than this",
    ),
    Check(
        "empty",
        "error",
        0.99,
        "share of the pixels",
        "slices in which this share of the pixels has one value above 0",
        "resin has noise: neighbouring gray values are as frequent",
    ),
    Check(
        "saturated",
        "warning",
        0.2,
        "share of the pixels",
        "slices with this share of pixels at 255",
        "empty resin may saturate; structures that do are lost",
    ),
    Check(
        "low_contrast",
        "warning",
        0.4,
        "of the volume's median",
        "slices whose contrast (1 to 99 percentile) is less than this share of the volume's median, or 8 gray values",
        "focus and staining vary by some tens of per cent from slice to slice",
    ),
    Check(
        "few_levels",
        "warning",
        48,
        "gray values",
        "volumes of which fewer gray values than this make up 98% of the pixels between 0 and 255",
        "EM images use 80 to 200; few are left where padding or hot pixels made the window to 8 bits too wide",
    ),
    Check(
        "brightness",
        "warning",
        30,
        "gray values",
        "slices whose mean differs by more from the median of the five slices around",
        "charging changes brightness by a few gray values",
    ),
    Check(
        "duplicate",
        "warning",
        0,
        "slices",
        "slices with the very pixels of an earlier one",
        "noise never repeats: one was copied into the place of a lost one",
    ),
    Check(
        "jump",
        "warning",
        5,
        "pixels",
        "neighbouring slices that are shifted by more, beyond the volume's steady drift, and match better when moved",
        "registered stacks move by less than a pixel; a tenth of a small organelle is 5 pixels",
    ),
    Check(
        "misregistered",
        "error",
        1.5,
        "pixels",
        "labels whose boundaries lie on stronger edges of the image when moved by more than this",
        "half a pixel is what rounding explains, and one pixel which side of a membrane is drawn",
    ),
    Check(
        "mirrored",
        "error",
        2.5,
        "standard errors",
        "labels that lie better on the image's edges when one axis is mirrored",
        "labels that are right score -3 or less; 2.5 standard errors by chance are one in a hundred",
    ),
    Check("unknown_id", "error", 0, "voxels", "instance ids that the table does not list", "they have no organelle"),
    Check(
        "class_conflict",
        "error",
        0,
        "voxels",
        "voxels whose semantic label is not the organelle of their instance",
        "both are stored from one map",
    ),
    Check(
        "wrong_size",
        "error",
        0,
        "instances",
        "instances with other than the listed number of voxels",
        "a chunk of labels was lost or changed after the table was made",
    ),
    Check(
        "label_gap",
        "warning",
        0.001,
        "share of the pixels",
        "an organelle that is missing in one or two slices and covers more than this on both sides",
        "an organelle does not end and begin again within two slices",
    ),
    Check(
        "ignored",
        "warning",
        0.9,
        "share of the voxels",
        "volumes of which more than this was not annotated",
        "they teach and test little, and cost as much as others",
    ),
    Check(
        "tiny",
        "warning",
        0.05,
        "share of the instances",
        "organelles of which more whole instances than this are crumbs by the limits of lpa",
        "annotators do not draw crumbs: propagation makes them of stray voxels (--min-size-nm3 drops them)",
    ),
)
BY_NAME = {check.name: check for check in CHECKS}


def finding(name: str, text: str, slices: Iterable[int] = (), value: float | None = None) -> Finding:
    """Make a finding of a check."""
    return Finding(BY_NAME[name], text, tuple(int(z) for z in slices), None if value is None else float(value))


def ranges(slices: Iterable[int]) -> list[tuple[int, int]]:
    """Join slices to ranges, both ends included."""
    joined: list[tuple[int, int]] = []
    for z in sorted(slices):
        if joined and z == joined[-1][1] + 1:
            joined[-1] = (joined[-1][0], z)
        else:
            joined.append((z, z))
    return joined


def ranges_text(slices: Iterable[int], most: int = 6) -> str:
    """Write slices as ``z 3, 7-9, ...``."""
    joined = ranges(slices)
    parts = [f"{a}" if a == b else f"{a}–{b}" for a, b in joined[:most]]
    return "z " + ", ".join(parts) + (", ..." if len(joined) > most else "")
