"""Texts of the leaderboard's pages: everything that comes from a submission is escaped, links are http(s) or no links.

Numbers are rounded as browsers round them (``toFixed``), because a page redraws its tables itself.
"""

from __future__ import annotations

import hashlib
import html
import re
from collections.abc import Sequence
from decimal import ROUND_HALF_UP, Decimal

from em_bench_eval.leaderboard.verdict import printable
from em_bench_eval.metrics import METRICS
from em_bench_eval.metrics_stratified import STRATIFIED

DASH = "–"
LONGEST = 1_000  # characters of one text on a page
STORED_DIGITS = 6  # of a number in a page's data
_LINK = re.compile(r"https?://([A-Za-z0-9-]+\.)*[A-Za-z0-9-]+(:\d{1,5})?([/?#][!-~]*)?")
_NOT_IN_LINKS = re.compile(r"[\"'<>\\^`{|}]")
_WORDS = {
    "dice": "Dice",
    "iou": "IoU",
    "aji": "AJI",
    "sbd": "SBD",
    "voi": "VOI",
    "arand": "adapted Rand error",
    "pq": "PQ",
    "sq": "SQ",
    "rq": "RQ",
    "f1": "F1",
    "ap": "AP",
    "ap50": "AP50",
    "ap75": "AP75",
    "erl": "run length",
    "cldice": "clDice",
    "betti0": "Betti-0",
    "nsd": "NSD",
    "hd95": "HD95",
    "msd": "MSD",
    "mfd": "MFD",
    "cremi": "CREMI",
    "adgt": "ADGT",
    "adf": "ADF",
    "nm": "nm",
    "fscore": "F-score",
}


def text(value: object, longest: int = LONGEST) -> str:
    """Escape for HTML text and quoted attributes; invisible characters are spelt out, endless text is cut."""
    return html.escape(printable(value, longest))


def link(address: object, title: str, kind: str = "") -> str:
    """Return a link that opens elsewhere, or "" for anything that is no plain http(s) address; ``title`` is escaped."""
    address = str(address)
    if len(address) > 500 or not _LINK.fullmatch(address) or _NOT_IN_LINKS.search(address):
        return ""
    return (
        f'<a class="{kind or "out"}" href="{html.escape(address)}" target="_blank" '
        f'rel="nofollow ugc noopener noreferrer">{text(title)}</a>'
    )


def slug(model: str, hash_: str, extra: str = "") -> str:
    """Return a file name of letters, digits and hyphens for a submission; ``extra`` tells equal ones apart."""
    name = re.sub(r"[^a-z0-9]+", "-", model.lower()).strip("-")[:40].strip("-") or "submission"
    suffix = f"-{hashlib.sha256(extra.encode()).hexdigest()[:6]}" if extra else ""
    return f"{name}-{re.sub('[^0-9a-f]', '', hash_)[:12]}{suffix}"


def stored(value: float) -> float | int:
    """Round a number as it is kept in a page's data."""
    return value if isinstance(value, int) else round(float(value), STORED_DIGITS)


def data_value(value: float) -> str:
    """Write a number as a script writes it: ``String(value)``."""
    return f"{stored(value):.{STORED_DIGITS}f}".rstrip("0").rstrip(".")


def number(value: float, digits: int = 3) -> str:
    """Format a number; whole numbers in full, with thousands set apart."""
    if isinstance(value, int):
        return f"{value:,}"
    exact = Decimal(round(float(value), STORED_DIGITS))
    return str(exact.quantize(Decimal(1).scaleb(-digits), rounding=ROUND_HALF_UP))


def interval(bounds: Sequence[float], metric: str) -> str:
    """Format an interval shortly: one digit less than the value has, unless both ends would look the same then.

    Shares are written as in the field, without the 0 before the point.
    """
    digits = digits_of(metric)
    ends = [number(float(bound), max(1, digits - 1)) for bound in bounds]
    if ends[0] == ends[1]:
        ends = [number(float(bound), digits) for bound in bounds]
    if is_share(metric):
        ends = [end[1:] if end.startswith("0.") else end for end in ends]
    return DASH.join(ends)


def digits_of(metric: str) -> int:
    """Return the decimals that a metric is shown with."""
    return 1 if metric.endswith("_nm") else 3


def metric_title(name: str) -> str:
    """Return a metric's name as a person writes it: "Dice (instance)", "HD95 (matched, nm)"."""
    aggregation = name.partition("__")[2]
    said = ", ".join(_WORDS.get(word, word) for word in aggregation.split("_") if word)
    return short_title(name) + (f" ({said})" if said else "")


def short_title(name: str) -> str:
    """Return a metric's name without its aggregation, for a column."""
    words = " ".join(_WORDS.get(word, word) for word in name.partition("__")[0].split("_"))
    return words[:1].upper() + words[1:] if words[:1].islower() and not words.startswith("clD") else words


def is_share(name: str) -> bool:
    """Return whether a metric lies between 0 and 1, so that a bar can show it."""
    metric = METRICS.get(name) or STRATIFIED.get(name)
    return metric is not None and metric.range.endswith("..1") and metric.family != "count"
