"""The quality report of a dataset folder: ``quality.json`` and the page ``quality.html``.

Every volume is read once, box by box (``quality_volume``), judged by the table of checks (``quality_checks``), and
shown with pictures of what was flagged (``quality_page``).
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from dataset_builder.quality_checks import BY_NAME, CHECKS, LEAST_SCORE, Finding, finding, ranges, ranges_text
from dataset_builder.quality_registration import LabelShift
from dataset_builder.quality_volume import Listed, Measured, measure
from dataset_builder.workers import open_workers
from em_bench_eval.errors import InputError
from em_bench_eval.schema import ORGANELLES, Organelle
from em_bench_eval.volume_files import plain_path
from em_bench_eval.whole_file import write_whole
from lpa.signs import THRESHOLDS

FORMAT = "em-organelle-wild quality v1"
LEAST_CONTRAST = 8  # gray values
LEAST_GAIN, LEAST_CORRELATION = 0.05, 0.2  # of a shifted slice over an unshifted one; of the two when so moved
LEAST_TINY = 3  # instances


@dataclass(frozen=True)
class VolumeReport:
    """What was measured in a volume and what is wrong with it."""

    listed: Listed
    measured: Measured
    findings: tuple[Finding, ...]

    def count(self, severity: str) -> int:
        """Findings of a severity."""
        return sum(found.check.severity == severity for found in self.findings)


def examine(listed: Listed) -> VolumeReport:
    """Measure and judge one volume."""
    measured = measure(listed)
    return VolumeReport(listed, measured, tuple(judge(listed, measured)))


def judge(listed: Listed, measured: Measured) -> Iterator[Finding]:
    """Yield every finding, in the order of the table of checks."""
    for rule in (_stored, _slices, _neighbours, _registration, _labels, _amounts):
        yield from rule(listed, measured)


def _stored(listed: Listed, measured: Measured) -> Iterator[Finding]:
    if measured.unreadable:
        count = len(measured.unreadable)
        yield finding("unreadable", f"{count} stored boxes: {measured.unreadable[0]}", value=count)
    if measured.missing and not measured.label_only:
        more = f", and {len(measured.missing) - 3} more" if len(measured.missing) > 3 else ""
        text = "; ".join(measured.missing[:3]) + more
        yield finding("missing_chunk", text, sorted(measured.missing_z), len(measured.missing))
    if measured.black_chunks and not measured.label_only:
        yield finding("black_chunk", f"{measured.black_chunks} chunks without labels", value=measured.black_chunks)


def contrast(gray: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return the 1 and the 99 percentile of every slice from histograms ``(z, 256)``."""
    cumulative = np.cumsum(gray, axis=1) / np.maximum(gray.sum(axis=1, keepdims=True), 1)
    low, high = ((cumulative < share).sum(axis=1).astype(np.float64) for share in (0.01, 0.99))
    return low, high


def levels_used(gray: npt.NDArray[np.int64]) -> int:
    """Return the smallest number of gray values that make up 98% of the pixels which are neither 0 nor 255."""
    counts = np.sort(gray.sum(axis=0)[1:-1])[::-1]
    return int(np.count_nonzero(np.cumsum(counts) - counts < 0.98 * counts.sum()))


def means(gray: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Return the mean gray value of every slice."""
    return np.asarray((gray * np.arange(256)).sum(axis=1) / np.maximum(gray.sum(axis=1), 1), np.float64)


def _slices(listed: Listed, measured: Measured) -> Iterator[Finding]:
    if measured.label_only:
        return
    share = measured.gray / np.maximum(measured.gray.sum(axis=1, keepdims=True), 1)
    read = measured.gray.sum(axis=1) > 0
    black = share[:, 0] >= BY_NAME["black"].limit
    empty = (share[:, 1:].max(axis=1) >= BY_NAME["empty"].limit) & ~black
    saturated = (share[:, 255] > BY_NAME["saturated"].limit) & ~empty
    low, high = contrast(measured.gray)
    spread, usable = high - low, read & ~black & ~empty
    usual = float(np.median(spread[usable])) if usable.any() else 0.0
    flat = usable & (spread < max(LEAST_CONTRAST, BY_NAME["low_contrast"].limit * usual))
    for name, mask, values, text in (
        ("black", black, share[:, 0], "of the pixels are 0"),
        ("empty", empty, share.max(axis=1), "of the pixels have one value"),
        ("saturated", saturated, share[:, 255], "of the pixels are 255"),
    ):
        places = np.flatnonzero(mask)
        if len(places):
            yield finding(name, f"{ranges_text(places)}: {values[places].max():.1%} {text}", places, values[mask].max())
    places = np.flatnonzero(flat)
    if len(places):
        text = f"{ranges_text(places)}: {spread[places].min():.0f} gray values, the volume's median is {usual:.0f}"
        yield finding("low_contrast", text, places, spread[places].min() / max(usual, 1.0))
    levels = levels_used(measured.gray[usable])
    if usable.any() and levels < BY_NAME["few_levels"].limit:
        text = (
            f"{levels} gray values make up 98% of the pixels between 0 and 255, expected are "
            f"{BY_NAME['few_levels'].limit:.0f} or more: give the window yourself (intensity: {{window: [low, high]}} "
            "in a spec), or export the image with more contrast"
        )
        yield finding("few_levels", text, value=levels)
    mean = means(measured.gray)
    around = np.array([np.median(mean[max(0, z - 2) : z + 3][usable[max(0, z - 2) : z + 3]]) for z in range(len(mean))
                       if usable[z]])  # fmt: skip
    off = np.zeros(len(mean))
    off[usable] = np.abs(mean[usable] - around)
    places = np.flatnonzero(off > BY_NAME["brightness"].limit)
    if len(places):
        yield finding("brightness", f"{ranges_text(places)}: by {off.max():.0f} gray values", places, off.max())


def _neighbours(listed: Listed, measured: Measured) -> Iterator[Finding]:
    if measured.duplicate_of:
        pairs = [f"{z} repeats {first}" for z, first in sorted(measured.duplicate_of.items())]
        text = "z " + ", ".join(pairs[:5]) + (", ..." if len(pairs) > 5 else "")
        yield finding("duplicate", text, sorted(measured.duplicate_of), len(pairs))
    known = [(z, shift) for z, shift in enumerate(measured.shifts) if shift is not None]
    if not known:
        return
    drift = np.median([shift.shift for _, shift in known], axis=0)
    limit = BY_NAME["jump"].limit / measured.small_factor
    jumps = {
        z: float(np.hypot(*(np.array(shift.shift) - drift))) * measured.small_factor
        for z, shift in known
        if np.hypot(*(np.array(shift.shift) - drift)) > limit
        and shift.gain > LEAST_GAIN
        and shift.correlation > LEAST_CORRELATION
    }
    if jumps:
        worst = max(jumps, key=lambda z: jumps[z])
        shift = measured.shifts[worst]
        assert shift is not None
        dy, dx = (part * measured.small_factor for part in shift.shift)
        text = (
            f"{ranges_text(jumps)}: z {worst} must move by (y, x) = ({dy:.1f}, {dx:.1f}) pixels to match z {worst - 1}"
        )
        yield finding("jump", text, sorted(jumps), jumps[worst])


def _registration(listed: Listed, measured: Measured) -> Iterator[Finding]:
    mirrored = {axis: score for axis, score in measured.mirrored.items() if score > BY_NAME["mirrored"].limit}
    if mirrored:
        axis = max(mirrored, key=lambda name: mirrored[name])
        text = f"labels agree better with the image mirrored along {axis}, by {mirrored[axis]:.1f} standard errors"
        yield finding("mirrored", text, value=mirrored[axis])
        return
    for plane, labels in (("(y, x)", measured.labels), ("(z, x)", measured.labels_across)):
        if labels is not None and labels.score > LEAST_SCORE and labels.length > BY_NAME["misregistered"].limit:
            moved = ", ".join(f"{part:+.1f}" for part in labels.shift)
            text = f"labels agree best when moved by {plane} = ({moved}) voxels; {labels.windows} windows"
            yield finding("misregistered", text, value=labels.length)


def _labels(listed: Listed, measured: Measured) -> Iterator[Finding]:
    for name, counts, text in (
        ("unknown_id", measured.unknown, "voxels with an id that no table lists"),
        ("class_conflict", measured.conflicts, "voxels whose class is not their instance's"),
    ):
        places = np.flatnonzero(counts)
        if len(places):
            yield finding(name, f"{ranges_text(places)}: {counts.sum():,} {text}", places, counts.sum())
    wrong = np.flatnonzero(measured.counted != listed.voxels)
    if len(wrong) and not measured.unreadable:
        row = int(wrong[0])
        example = f"{listed.ids[row]} has {measured.counted[row]:,} voxels, listed are {listed.voxels[row]:,}"
        slices = sorted({z for row in wrong[:20] for z in range(int(listed.boxes[row, 0]), int(listed.boxes[row, 3]))})
        yield finding("wrong_size", f"{len(wrong)} instances; for example {example}", slices, len(wrong))
    pixels = measured.shape[1] * measured.shape[2]
    for organelle in Organelle:
        share = measured.class_voxels[:, organelle.label_id] / pixels
        gaps = _gaps(share, BY_NAME["label_gap"].limit)
        if gaps:
            text = f"{ranges_text(gaps)}: no {organelle}, which is there before and after"
            yield finding("label_gap", text, gaps, len(gaps))


def _gaps(share: npt.NDArray[np.float64], limit: float) -> list[int]:
    """Slices of gaps of one or two slices in something that covers more than ``limit`` on both sides."""
    gaps: list[int] = []
    for first, last in ranges(np.flatnonzero(share == 0).tolist()):
        inside = first > 0 and last < len(share) - 1 and last - first < 2
        if inside and min(share[first - 1], share[last + 1]) > limit:
            gaps += range(first, last + 1)
    return gaps


def _amounts(listed: Listed, measured: Measured) -> Iterator[Finding]:
    share = float(measured.ignored.sum()) / float(np.prod(measured.shape))
    if share > BY_NAME["ignored"].limit:
        text = "labels only: there is no image" if measured.label_only else f"{share:.1%} of the voxels"
        yield finding("ignored", text, value=share)
    whole = ((listed.boxes[:, :3] > 0) & (listed.boxes[:, 3:] < np.array(measured.shape))).all(axis=1)
    volume_nm3 = listed.voxels * float(np.prod(listed.voxel_size_nm))
    for organelle in Organelle:
        own = whole & (listed.classes == organelle.label_id)
        least = THRESHOLDS[organelle].min_volume_nm3
        tiny = int((volume_nm3[own] < least).sum())
        if tiny >= LEAST_TINY and tiny / int(own.sum()) > BY_NAME["tiny"].limit:
            text = f"{tiny} of {int(own.sum())} whole {organelle} are smaller than {least:,.0f} nm³"
            yield finding("tiny", text, value=tiny / int(own.sum()))


def listed_volumes(folder: Path) -> Iterator[Listed]:
    """Yield the volumes of a dataset with their instances, one at a time, in the order of the tables."""
    import pyarrow.parquet as pq

    missing = [name for name in ("volumes.parquet", "instances.parquet") if not (folder / name).is_file()]
    if not missing and "has_image" not in pq.read_schema(folder / "volumes.parquet").names:
        missing = ["column has_image in volumes.parquet"]
    if missing:
        raise InputError(
            f"{folder} is not a dataset folder",
            found=f"no {', '.join(missing)}",
            expected="a folder written by this version of em-bench build",
            remedy="build it again",
        )
    columns = ["volume_id", "zarr", "voxel_size_nm", "source", "has_image"]
    rows = pq.read_table(folder / "volumes.parquet", columns=columns).to_pylist()
    for row, table in zip(rows, _tables(folder, [row["volume_id"] for row in rows]), strict=True):
        z, y, x = row["voxel_size_nm"]
        ids, classes, voxels, boxes = table
        yield Listed(
            folder,
            row["volume_id"],
            row["source"],
            row["zarr"],
            (z, y, x),
            ids,
            classes,
            voxels,
            boxes,
            row["has_image"],
        )


def _tables(folder: Path, names: Sequence[str]) -> Iterator[tuple[npt.NDArray[Any], ...]]:
    """Yield ids, classes, voxels and boxes of each volume; instances are stored in the order of the volumes."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    file = pq.ParquetFile(folder / "instances.parquet")
    columns = ["volume_id", "instance_id", "organelle", "voxels", "bbox"]
    groups = (file.read_row_group(number, columns=columns) for number in range(file.num_row_groups))
    waiting: Any = None
    for name in names:
        parts: list[Any] = []
        while True:
            if waiting is None:
                waiting = next(groups, None)
                if waiting is None:
                    break
            own = pc.equal(waiting["volume_id"].cast(pa.string()), name)
            count = int(pc.sum(own).as_py() or 0)
            parts.append(waiting.slice(0, count))
            waiting = waiting.slice(count) if count < waiting.num_rows else None
            if waiting is not None:
                break
        table = pa.concat_tables(parts) if parts else None
        if table is None or not table.num_rows:
            yield np.zeros(0, np.int64), np.zeros(0, np.uint8), np.zeros(0, np.int64), np.zeros((0, 6), np.int64)
            continue
        classes = pc.index_in(table["organelle"].cast(pa.string()), value_set=pa.array(ORGANELLES))
        yield (
            table["instance_id"].to_numpy().astype(np.int64),
            (classes.to_numpy().astype(np.int64) + 1).astype(np.uint8),
            table["voxels"].to_numpy().astype(np.int64),
            np.array(table["bbox"].to_pylist(), np.int64).reshape(-1, 6),
        )


@dataclass(frozen=True)
class Quality:
    """How a check of a dataset ended."""

    errors: int
    warnings: int
    lines: tuple[str, ...]  # one a finding


def check_dataset(
    folder: str | os.PathLike[str], out: str | os.PathLike[str] | None = None, workers: int = 1
) -> Quality:
    """Examine every volume of a dataset folder and write ``quality.json`` and ``quality.html``.

    Args:
        folder: the dataset.
        out: where to write; ``None``: into the dataset folder.
        workers: processes, each with one volume at a time.

    Raises:
        InputError: not a dataset folder.
    """
    from dataset_builder.quality_page import Page

    dataset, target = Path(plain_path(folder)), Path(out if out is not None else folder)
    volumes = listed_volumes(dataset)
    target.mkdir(parents=True, exist_ok=True)
    reports: dict[str, dict[str, Any]] = {}
    page, lines = Page(dataset.name), {}
    with (
        open_workers(None, workers) as pool,
        tqdm(desc="checking volumes", unit="volume", file=sys.stderr, disable=None) as bar,
    ):
        for report in pool.run(examine, volumes):
            name = report.listed.volume_id
            reports[name] = as_json(report)
            page.add(report)
            lines[name] = [
                f"{found.check.severity}: {name}: {found.check.name}: {found.text}" for found in report.findings
            ]
            bar.update()
    order = sorted(reports)  # workers finish in any order
    errors, warnings = (
        sum(found["severity"] == severity for name in order for found in reports[name]["findings"])
        for severity in ("error", "warning")
    )
    document = {
        "format": FORMAT,
        "checks": {check.name: {key: getattr(check, key) for key in ("severity", "limit", "unit", "what", "reason")}
                   for check in CHECKS},
        "errors": errors,
        "warnings": warnings,
        "volumes": [reports[name] for name in order],
    }  # fmt: skip
    write_whole(target / "quality.json", lambda path: path.write_text(json.dumps(document, allow_nan=False) + "\n"))
    write_whole(target / "quality.html", lambda path: path.write_text(page.html(), encoding="utf-8"))
    all_lines = tuple(line for name in order for line in lines[name])
    return Quality(errors, warnings, all_lines)


def as_json(report: VolumeReport) -> dict[str, Any]:
    """Return the entry of a volume in ``quality.json``."""
    measured = report.measured
    low, high = contrast(measured.gray)
    return {
        "volume_id": report.listed.volume_id,
        "source": report.listed.source,
        "shape": list(measured.shape),
        "findings": [
            {
                "check": found.check.name,
                "severity": found.check.severity,
                "text": found.text,
                "slices": [list(pair) for pair in ranges(found.slices)],
                "value": found.value,
            }
            for found in report.findings
        ],
        "label_shift_yx": _shift_json(measured.labels),
        "label_shift_zx": _shift_json(measured.labels_across),
        "mirrored_standard_errors": {axis: round(score, 2) for axis, score in measured.mirrored.items()},
        "ignored_share": float(measured.ignored.sum()) / float(np.prod(measured.shape)),
        "slices": {
            "mean": means(measured.gray).round(2).tolist(),
            "percentile_1": low.tolist(),
            "percentile_99": high.tolist(),
            "ignored": measured.ignored.tolist(),
            "shift_pixels": [
                None if shift is None else [round(part * measured.small_factor, 2) for part in shift.shift]
                for shift in measured.shifts
            ],
            "voxels": {
                organelle.value: measured.class_voxels[:, organelle.label_id].tolist() for organelle in Organelle
            },
        },
    }


def _shift_json(labels: LabelShift | None) -> dict[str, Any] | None:
    if labels is None:
        return None
    voxels = [round(part, 3) for part in labels.shift]
    return {"voxels": voxels, "standard_errors": round(labels.score, 2), "windows": labels.windows}
