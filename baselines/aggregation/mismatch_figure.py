"""The figure of a mismatch: the six levels of each organelle with their ceilings, the gaps, what L1 consists of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import PurePath

from baselines.aggregation.aggregation_levels import LEVELS
from baselines.aggregation.mismatch import Mismatch, OrganelleMismatch, gaps
from baselines.aggregation.mismatch_statement import MEANING
from baselines.aggregation.svg_sheet import BAND, INK, RULE, SOFT, Sheet

COLOUR = {  # Okabe and Ito (2008): apart for every common kind of colour blindness
    "mito": "#d55e00",
    "nucleus": "#0072b2",
    "er": "#009e73",
    "endo": "#cc79a7",
    "golgi": "#e69f00",
}
TITLE = {"mito": "Mitochondria", "nucleus": "Nucleus", "er": "ER", "endo": "Endosomes", "golgi": "Golgi"}
PARTS = {  # of what patches lose: key of ``gaps`` -> title, colour
    "gap_id": ("definition of an instance", "#33415c"),
    "pixels": ("pixels", "#98a2b0"),
    "contacts": ("touching instances", "#f0e442"),
}
PANEL_WIDTH, PANEL_HEIGHT, MARGIN, HEAD, FOOT = 452.0, 282.0, 18.0, 64.0, 84.0
LEFT, RIGHT, TOP, BASE = 30.0, 112.0, 40.0, 178.0  # of the bars in a panel
LEAST_APART = 12.0  # labels of arrows


def figure(found: Mismatch, key: str) -> str:
    """Draw the metric ``key`` (one of ``mismatch.AGGREGATIONS``) of all organelles; returns an SVG document."""
    columns = min(2, max(1, len(found.organelles)))
    rows = -(-max(1, len(found.organelles)) // columns)
    width = 2 * MARGIN + max(2, columns) * PANEL_WIDTH
    sheet = Sheet(width, HEAD + rows * PANEL_HEIGHT + FOOT)
    name = PurePath(str(found.about["reference"])).name
    depth, height, length = found.about["shape"]
    size = " x ".join(f"{edge:g}" for edge in found.about["voxel_size_nm"])
    sheet.text(MARGIN, 26, "The same pixels, six aggregations", 17, strong=True)
    sheet.text(
        MARGIN, 45, f"{name}, {depth} x {height} x {length} voxels of {size} nm (z, y, x); {MEANING[key]}", 11, SOFT
    )
    for place, (organelle, part) in enumerate(found.organelles.items()):
        x = MARGIN + place % columns * PANEL_WIDTH
        y = HEAD + place // columns * PANEL_HEIGHT
        _panel(sheet, x, y, organelle, part, key, found.about["too_small_blocks"])
    _legend(sheet, HEAD + rows * PANEL_HEIGHT + 8, found)
    return sheet.svg(f"Aggregation levels of {name}")


def _panel(
    sheet: Sheet, x: float, y: float, organelle: str, part: OrganelleMismatch, key: str, too_small: Sequence[str]
) -> None:
    """Draw one organelle; ``too_small`` are those of which a block of L4 can hold no instance that is judged."""
    colour = COLOUR[organelle]
    semantics = "predicted" if "predicted" in part.levels else "oracle"
    sheet.box(x, y, PANEL_WIDTH - 12, PANEL_HEIGHT - 12, BAND)
    sheet.box(x + 12, y + 12, 10, 10, colour)
    sheet.text(x + 28, y + 21, TITLE[organelle], 13, strong=True)
    dice = part.value("L5", "semantic_dice", semantics)
    pixels = "perfect pixels" if semantics == "oracle" else f"semantic Dice {_number(dice)}, at every level"
    sheet.text(x + PANEL_WIDTH - 24, y + 21, pixels, 10, SOFT, "end")
    left, right, top, base = x + LEFT, x + PANEL_WIDTH - 12 - RIGHT, y + TOP, y + BASE

    def up(value: float) -> float:
        return base - (base - top) * value

    for tick in (0.0, 0.5, 1.0):
        sheet.line(left, up(tick), right, up(tick))
        sheet.text(left - 5, up(tick) + 3.5, f"{tick:g}", 9, SOFT, "end")
    step = (right - left) / len(LEVELS)
    middle = {}
    for place, level in enumerate(LEVELS):
        middle[level] = left + (place + 0.5) * step
        if level == "L4" and organelle in too_small:
            sheet.text(middle[level], base + 14, level, 11, SOFT, "middle")
            sheet.text(middle[level], base + 28, "too small", 9, SOFT, "middle")
            continue
        ceiling, value = part.value(level, key, "oracle"), part.value(level, key, "predicted")
        if ceiling is not None:
            sheet.box(middle[level] - 19, up(ceiling), 38, base - up(ceiling), colour, 0.2)
            sheet.line(middle[level] - 19, up(ceiling), middle[level] + 19, up(ceiling), colour, 1.6)
        if value is not None:
            sheet.box(middle[level] - 13, up(value), 26, base - up(value), colour)
        sheet.text(middle[level], base + 14, level, 11, anchor="middle", strong=True)
        if semantics == "predicted":
            sheet.text(middle[level], base + 28, _number(value), 10.5, anchor="middle")
        sheet.text(
            middle[level], base + (41 if semantics == "predicted" else 28), _number(ceiling), 9.5, SOFT, "middle"
        )
    _arrows(sheet, part, key, semantics, middle, right, up)
    _strip(sheet, x + 12, y + PANEL_HEIGHT - 42, PANEL_WIDTH - 36, part, key, semantics, colour)


def _arrows(
    sheet: Sheet,
    part: OrganelleMismatch,
    key: str,
    semantics: str,
    middle: dict[str, float],
    right: float,
    up: Callable[[float], float],
) -> None:
    """Mark gap_id between L0 and L1, gap_stitch and gap_pixel to the right of L5."""
    at = {level: part.value(level, key, semantics) for level in ("L0", "L1", "L5")}
    ceiling = part.value("L5", key, "oracle")
    found = gaps(part, key, semantics)
    if at["L0"] is None or at["L1"] is None or at["L5"] is None:
        return
    l0, l1, l5 = up(at["L0"]), up(at["L1"]), up(at["L5"])
    x = middle["L1"] - 4
    if abs(l1 - l0) >= 3:
        sheet.arrow(x, l0, l1)
        sheet.text(x + 5, (l0 + l1) / 2 + 3.5, f"gap_id {_number(found['gap_id'])}", 10, halo=BAND)
    out = right + 8
    sheet.line(middle["L1"] + 13, l1, out + 4, l1, INK, 0.7, "2 3")
    sheet.line(middle["L5"] + 13, l5, out + 12, l5, INK, 0.7, "2 3")
    labels = []
    if abs(l5 - l1) >= 1:
        sheet.arrow(out, l1, l5)
    labels.append(((l1 + l5) / 2, f"gap_stitch {_number(found['gap_stitch'])}"))
    if semantics == "predicted" and ceiling is not None:
        top = up(ceiling)
        sheet.arrow(out + 9, l5, top, SOFT)
        labels.append(((l5 + top) / 2, f"gap_pixel {_number(found['gap_pixel'])}"))
    if len(labels) == 2 and labels[0][0] - labels[1][0] < LEAST_APART:
        centre = (labels[0][0] + labels[1][0]) / 2
        labels = [(centre + LEAST_APART / 2, labels[0][1]), (centre - LEAST_APART / 2, labels[1][1])]
    for number, (y, text) in enumerate(labels):
        sheet.text(out + 16, y + 3.5, text, 10, SOFT if number else INK, halo=BAND)


def _strip(
    sheet: Sheet, x: float, y: float, width: float, part: OrganelleMismatch, key: str, semantics: str, colour: str
) -> None:
    """Divide 1 into the score of L1 and what is lost there."""
    found = gaps(part, key, semantics)
    score = part.value("L1", key, semantics)
    if score is None:
        return
    pieces = [("L1", score, colour, "#ffffff")]
    for what, (_, fill) in PARTS.items():
        value = found[what]
        if value is not None and value >= 0.0005:  # a part that is a gain has no length
            pieces.append((what, float(value), fill, INK if what == "contacts" else "#ffffff"))
    total = sum(value for _, value, _, _ in pieces)
    if not total:  # nothing was found, and nothing explains it
        return
    at = x
    for what, value, fill, ink in pieces:
        long = width * value / total
        sheet.box(at, y, long, 15, fill)
        text = f"{'ids' if what == 'gap_id' else what} {value:.2f}"
        if long > 7 * len(text) * 0.82:
            sheet.text(at + long / 2, y + 11, text, 9.5, ink, "middle")
        at += long
    sheet.line(x, y + 15.5, x + width, y + 15.5, RULE)


def _legend(sheet: Sheet, y: float, found: Mismatch) -> None:
    cuts = found.about["cuts"]
    x = MARGIN
    predicted = any("predicted" in part.levels for part in found.organelles.values())
    if predicted:
        sheet.box(x, y, 12, 12, SOFT)
        sheet.text(x + 17, y + 10, "predicted", 10.5)
        x += 90
    sheet.box(x, y, 12, 12, SOFT, 0.25)
    sheet.line(x, y, x + 12, y, SOFT, 1.6)
    sheet.text(x + 17, y + 10, "perfect pixels (oracle)", 10.5)
    x += 170
    sheet.text(x, y + 10, "strip: L1, and what it loses to", 10.5, SOFT)
    x += 158
    for what, (title, fill) in PARTS.items():
        if what == "pixels" and not predicted:
            continue
        sheet.box(x, y, 12, 12, fill)
        sheet.text(x + 17, y + 10, title, 10.5)
        x += 24 + 6.2 * len(title)
    lines = (
        f"L0 patches of {cuts['patch']} pixels against the pieces they show. L1 the same against the ids of the "
        "volume. L2 whole slices. L3 slices linked through z.",
        f"L4 3D blocks of {cuts['block']} voxels, not stitched. L5 the whole volume, stitched. "
        "gap_id = L0 - L1, gap_stitch = L5 - L1, gap_pixel = oracle L5 - L5.",
        "L0 to L2 judge images, L3 to L5 the volume: an instance counts once for each image there, once here.",
    )
    for number, line in enumerate(lines):
        sheet.text(MARGIN, y + 30 + 14 * number, line, 10, SOFT)


def _number(value: float | None) -> str:
    """Two digits, never -0.00."""
    return "-" if value is None else f"{round(value, 2) + 0.0:.2f}".replace("-", "\N{MINUS SIGN}")
