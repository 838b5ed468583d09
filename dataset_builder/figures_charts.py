"""Charts of a dataset: what it is composed of (paper, Fig. 2), and how large its instances are (Fig. 3)."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from dataset_builder.figures_canvas import (
    BAND,
    FOLD_COLOUR,
    FOLD_TITLE,
    INK,
    ORGANELLE_COLOUR,
    ORGANELLE_TITLE,
    PAPER,
    SOFT,
    WIDTH,
    Canvas,
    Colour,
    round_ticks,
    shortened,
    size_text,
    text_width,
)
from dataset_builder.figures_summary import BINS_PER_DECADE, Sizes, Summary
from em_bench_eval.schema import Organelle

MARGIN, ROW, TITLE = 14.0, 19.0, 30.0
MOST_BARS = 16  # of a chart; the rest is one bar
BARS_PER_DECADE = 5
LIGHT, DARK = np.array([232, 241, 248]), np.array([0, 82, 136])  # of the table of counts, few to many

Split = tuple[str, str]  # (fold, domain)
Bars = dict[str, Counter[Split]]


def composition(summary: Summary) -> Canvas:
    """Images by source and by cell type, divided into folds; instances by source and organelle."""
    sources = _bars(summary.images, summary.sources)
    cells = _bars(summary.cell_types, None)
    rows = max(len(sources), len(cells))
    bars_height = TITLE + rows * ROW + 22
    legend_height = 24.0
    table_height = TITLE + 20 + (len(summary.sources) + 1) * ROW
    canvas = Canvas(WIDTH, bars_height + legend_height + table_height + 2 * MARGIN + 10)
    images, gap = sum(summary.images.values()), 26.0
    half = (WIDTH - 2 * MARGIN - gap) / 2
    _draw_bars(canvas, MARGIN, MARGIN, half, f"Images by source (n = {images:,})", sources)
    _draw_bars(canvas, MARGIN + half + gap, MARGIN, half, f"Images by cell type (n = {images:,})", cells)
    used = [split for split in FOLD_COLOUR if any(split == key[1:] for key in summary.images)]
    _legend(canvas, MARGIN + bars_height + 4, [(FOLD_TITLE[split], FOLD_COLOUR[split]) for split in used])
    _draw_counts(canvas, MARGIN + bars_height + legend_height + 10, summary)
    return canvas


def _bars(counts: Mapping[tuple[str, str, str], int], order: list[str] | None) -> Bars:
    """Sum by name and split, in the given order or the largest first; what is too many becomes one bar."""
    totals: Counter[str] = Counter()
    for (name, _, _), count in counts.items():
        totals[name] += count
    names = [name for name in order if name in totals] if order else sorted(totals, key=lambda name: -totals[name])
    kept = set(sorted(names, key=lambda name: -totals[name])[: MOST_BARS - 1]) if len(names) > MOST_BARS else set(names)
    others = f"{len(names) - len(kept)} others"
    bars: Bars = {name: Counter() for name in [*(name for name in names if name in kept), others]}
    for (name, fold, domain), count in counts.items():
        bars[name if name in kept else others][fold, domain] += count
    return {name: splits for name, splits in bars.items() if splits}


def _draw_bars(canvas: Canvas, x: float, y: float, width: float, title: str, bars: Bars) -> None:
    canvas.text(x, y + 9, title, 13, strong=True)
    name_width = min(0.45 * width, max((text_width(name) for name in bars), default=0) + 8)
    left, right = x + name_width, x + width - 40
    top, bottom = y + TITLE, y + TITLE + len(bars) * ROW
    longest = max((sum(splits.values()) for splits in bars.values()), default=1)
    for tick in round_ticks(longest):
        at = left + (right - left) * tick / longest
        canvas.line(at, top - 2, at, bottom + 3)
        canvas.text(at, bottom + 11, f"{tick:,.0f}", 9, SOFT, "mm")
    for place, (name, splits) in enumerate(bars.items()):
        middle, start = top + (place + 0.5) * ROW, left
        canvas.text(left - 6, middle, shortened(name, name_width - 8), anchor="rm")
        for split, colour in FOLD_COLOUR.items():
            end = start + (right - left) * splits[split] / longest
            canvas.box(start, middle - 6, end - start, 12, colour)
            start = end
        canvas.text(start + 5, middle, f"{sum(splits.values()):,}", 10)


def _legend(canvas: Canvas, y: float, entries: list[tuple[str, Colour]]) -> None:
    x = MARGIN
    for title, colour in entries:
        canvas.box(x, y, 12, 12, colour)
        canvas.text(x + 17, y + 6, title, 10.5)
        x += 17 + text_width(title, 10.5) + 20


def _draw_counts(canvas: Canvas, y: float, summary: Summary) -> None:
    """A table of instance counts, darker for more; hatched where an organelle is not annotated."""
    total = sum(summary.instances.values())
    canvas.text(MARGIN, y + 9, f"Instances in whole volumes, by source and organelle (n = {total:,})", 13, strong=True)
    left = MARGIN + 150
    side = (WIDTH - MARGIN - left) / len(Organelle)
    top = y + TITLE + 16
    for column, organelle in enumerate(Organelle):
        canvas.text(left + (column + 0.5) * side, top - 9, ORGANELLE_TITLE[organelle], 11, anchor="mm")
    most = max(summary.instances.values(), default=1)
    for row, source in enumerate([*summary.sources, None]):
        middle = top + (row + 0.5) * ROW
        name = "all sources" if source is None else source
        canvas.text(left - 8, middle, shortened(name, 140), anchor="rm", strong=source is None)
        for column, organelle in enumerate(Organelle):
            place = (left + column * side + 1, middle - ROW / 2 + 1, side - 2, ROW - 2)
            if source is not None and (source, organelle.value) not in summary.annotated:
                canvas.hatch(*place)
                canvas.text(place[0] + side / 2 - 1, middle, "not annotated", 9, SOFT, "mm")
                continue
            names = summary.sources if source is None else [source]
            count = sum(summary.instances[name, organelle.value] for name in names)
            share = math.log1p(count) / math.log1p(most) if count and source is not None else 0
            fill = np.rint(LIGHT + (DARK - LIGHT) * share).astype(int).tolist() if source is not None else list(BAND)
            canvas.box(*place, (fill[0], fill[1], fill[2]))
            colour = PAPER if share > 0.55 else INK
            canvas.text(place[0] + side / 2 - 1, middle, f"{count:,}", 11, colour, "mm", source is None)


def sizes(summary: Summary) -> Canvas:
    """Volumes of whole instances and their areas in images, one row an organelle, on common logarithmic axes."""
    organelles = summary.organelles()
    kinds = (("Volumes in nm^3", summary.volume_nm3, 3), ("Areas in images in nm^2", summary.area_nm2, 2))
    gap, panel, head = 38.0, 112.0, 46.0
    canvas = Canvas(WIDTH, head + max(1, len(organelles)) * panel + 40)
    width = (WIDTH - 2 * MARGIN - gap) / 2
    _legend_of_sizes(canvas)
    for column, (title, table, power) in enumerate(kinds):
        x = MARGIN + column * (width + gap)
        count = sum(sizes.count for sizes in table.values())
        canvas.text(x, 14, f"{title} (n = {count:,})", 13, strong=True)
        span = _span(table)
        for row, organelle in enumerate(organelles):
            y = head + row * panel
            _histogram(canvas, (x, y, width, panel - 14), table.get(organelle, Sizes()), organelle, span, power)
        bottom = head + len(organelles) * panel
        for decade in range(span[0], span[1] + 1):
            at = x + width * (decade - span[0]) / (span[1] - span[0])
            canvas.text(at, bottom + 4, f"10^{decade}", 10, SOFT, "mm")
        canvas.text(x + width / 2, bottom + 22, f"{title.split(' in ')[0].lower()[:-1]}, nm^{power}", 10.5, SOFT, "mm")
    return canvas


def _legend_of_sizes(canvas: Canvas) -> None:
    x, y = MARGIN, 33.0
    canvas.box(x, y - 5, 10, 10, SOFT)
    canvas.text(x + 15, y, "whole", 10)
    canvas.box(x + 62, y - 5, 10, 10, _pale(SOFT))
    canvas.text(x + 77, y, "cut by the border of the volume or image", 10)
    canvas.line(x + 300, y - 6, x + 300, y + 6, INK, 1.5)
    canvas.text(x + 307, y, "median of the whole ones", 10)


def _span(table: Mapping[Organelle, Sizes]) -> tuple[int, int]:
    """Decades that hold all instances."""
    together = np.sum([sizes.whole + sizes.cut for sizes in table.values()] or [np.zeros(1, np.int64)], axis=0)
    used = np.flatnonzero(together)
    if not len(used):
        return 0, 1
    return int(used[0]) // BINS_PER_DECADE, int(used[-1]) // BINS_PER_DECADE + 1


def _histogram(
    canvas: Canvas,
    place: tuple[float, float, float, float],
    sizes: Sizes,
    organelle: Organelle,
    span: tuple[int, int],
    power: int,
) -> None:
    x, y, width, height = place
    base, top = y + height, y + 22
    bars = (span[1] - span[0]) * BARS_PER_DECADE
    step = width / bars
    for decade in range(span[0], span[1] + 1):
        at = x + width * (decade - span[0]) / (span[1] - span[0])
        canvas.line(at, top, at, base + 3)
    whole, cut = (_bars_of(part, span) for part in (sizes.whole, sizes.cut))
    colour = ORGANELLE_COLOUR[organelle]
    highest = max(int((whole + cut).max(initial=0)), 1)
    unit = (base - top) / highest
    for bar, (a, b) in enumerate(zip(whole.tolist(), cut.tolist(), strict=True)):
        left = x + bar * step + 0.5
        canvas.box(left, base - a * unit, step - 1, a * unit, colour)
        canvas.box(left, base - (a + b) * unit, step - 1, b * unit, _pale(colour))
    canvas.line(x, base, x + width, base, SOFT)
    median = sizes.quantile(0.5)
    about = f"n = {sizes.count:,}"
    if median is not None:
        at = x + width * (math.log10(median) - span[0]) / (span[1] - span[0])
        canvas.line(at, top, at, base, INK, 1.5)
        about += f", {int(sizes.whole.sum()):,} whole, median {size_text(median, power)}"
    else:
        about += ", none whole"
    canvas.text(x, y + 8, f"{ORGANELLE_TITLE[organelle]}", 11.5, strong=True)
    canvas.text(x + text_width(ORGANELLE_TITLE[organelle], 11.5) + 10, y + 8, about, 10, SOFT)
    canvas.text(x + width, y + 8, f"highest {highest:,}", 9, SOFT, "rm")


def _bars_of(counts: npt.NDArray[np.int64], span: tuple[int, int]) -> npt.NDArray[np.int64]:
    part = counts[span[0] * BINS_PER_DECADE : span[1] * BINS_PER_DECADE]
    return np.asarray(part.reshape(-1, BINS_PER_DECADE // BARS_PER_DECADE).sum(axis=1), np.int64)


def _pale(colour: Colour) -> Colour:
    red, green, blue = (round(0.42 * part + 0.58 * 255) for part in colour)
    return red, green, blue


def fold_objects(summary: Summary) -> dict[str, Counter[str]]:
    """Objects in images by source and fold."""
    table: dict[str, Counter[str]] = defaultdict(Counter)
    for (source, fold, _), count in summary.objects.items():
        table[source][fold] += count
    return table
