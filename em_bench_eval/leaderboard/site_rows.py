"""Which results stand in which table, in which order, with which rank: nothing is ranked with what it cannot beat.

Rows compare only if they were scored by the same metric, settings, images and labels, which ``Key`` identifies.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from em_bench_eval.leaderboard.result_document import is_ranked
from em_bench_eval.leaderboard.site_text import slug
from em_bench_eval.metrics import HEADLINE

Result = Mapping[str, Any]
NO_WIDTH = 1e-9
RANKED_BY, AGNOSTIC_BY = f"macro/{HEADLINE}", f"any/{HEADLINE}"


class Key(NamedTuple):
    """What two results must share to be compared."""

    metric_version: str
    settings_hash: str
    split_hash: str
    fingerprint: str  # of the dataset's content: labels do not enter the hash of the split

    @classmethod
    def of(cls, result: Result) -> Key:
        """Return the key of a result document."""
        dataset = result["dataset"]
        hashes = (result["settings_hash"], dataset.get("split_hash"), dataset.get("fingerprint"))
        return cls(str(result["metric_version"]), *(str(value or "") for value in hashes))

    def differs(self, other: Key) -> list[str]:
        """Say in what two keys differ."""
        said = ("metric version", "settings", "images of the split", "content of the dataset")
        return [name for name, ours, theirs in zip(said, self, other, strict=True) if ours != theirs]


@dataclass(frozen=True)
class Row:
    """A result in its table. ``span``: the ranks that its interval allows; None where it has no interval."""

    result: Result
    slug: str
    rank: int | None = None
    span: tuple[int, int] | None = None
    of: int = 0  # ranked rows of the table

    @property
    def headline(self) -> float | None:
        """The value that orders the table."""
        value = self.result["scores"]["all"].get(headline_key(self.result))
        return None if value is None else float(value)


@dataclass(frozen=True)
class Kind:
    """A kind of table, apart from the others."""

    title: str
    about: str
    ranked: bool = False
    agnostic: bool = False


KINDS: dict[str, Kind] = {
    "automatic": Kind(
        "Automatic",
        "Nothing of the reference was shown to these models. Only automatic submissions are ranked.",
        ranked=True,
    ),
    "prompted": Kind(
        "Prompted with the reference",
        "Points, boxes or masks of the reference labels were shown to these models: what they could do with a perfect "
        "annotator. Not ranked, and not comparable with automatic models.",
    ),
    "agnostic": Kind(
        "Class-agnostic",
        "Instances without an organelle, scored as those of one class; the values of an organelle are those of its "
        "reference instances, whatever they were matched to, and false positives cost them nothing. Not ranked.",
        agnostic=True,
    ),
    "agnostic-prompted": Kind(
        "Class-agnostic, prompted with the reference",
        "Instances without an organelle from models that were shown the reference. Not ranked.",
        agnostic=True,
    ),
}


@dataclass(frozen=True)
class Section:
    """One table: rows of one kind and one key. ``apart`` says why it is not comparable; empty: it is."""

    id: str
    config: str
    kind: Kind
    key: Key
    rows: tuple[Row, ...]
    apart: str = ""

    @property
    def ranked(self) -> bool:
        """True for the one table whose rows compete."""
        return self.kind.ranked and not self.apart


def headline_key(result: Result) -> str:
    """Return the key that a result is ordered by."""
    return AGNOSTIC_BY if result["class_agnostic"] else RANKED_BY


def sections_of(
    results: Iterable[Result], config: str, current: Key | None = None, taken: set[str] | None = None
) -> list[Section]:
    """Divide the results of a configuration into tables, comparable ones first.

    ``current`` is the key that the ranking is for; default: that of the newest result on the test split. Of two results
    of one submission with the same key the newer one is kept. ``taken`` collects the names of pages.
    """
    taken = set() if taken is None else taken
    found = newest(result for result in results if result["config"] == config)
    if current is None:
        current = current_key(found)
    groups: dict[tuple[str, str, Key], list[Result]] = {}
    for result in found:
        groups.setdefault((str(result["split"]), kind_of(result), Key.of(result)), []).append(result)

    def order(group: tuple[str, str, Key]) -> tuple[Any, ...]:
        split, kind, key = group
        return bool(_why_apart(split, key, current)), list(KINDS).index(kind), split, key

    sections: list[Section] = []
    for split, kind, key in sorted(groups, key=order):
        apart = _why_apart(split, key, current)
        named = []
        for result in sorted(groups[split, kind, key], key=_order):
            submission = result["submission"]
            name = slug(str(submission["model"]), str(submission["hash"]))
            if name in taken:
                name = slug(str(submission["model"]), str(submission["hash"]), repr((config, split, kind, *key)))
            taken.add(name)
            named.append(Row(result, name))
        place = "" if not apart else f"-apart-{len(sections)}"
        section = Section(f"{config}-{kind}{place}", config, KINDS[kind], key, tuple(named), apart)
        sections.append(_ranked(section) if section.ranked else section)
    return sections


def current_key(results: Sequence[Result]) -> Key | None:
    """Return the key of the newest result on the test split."""
    tests = [result for result in results if result["split"] == "test"]
    return Key.of(max(tests, key=lambda result: (str(result["date"]), Key.of(result)))) if tests else None


def newest(results: Iterable[Result]) -> list[Result]:
    """Keep the newest of the results that one submission has with one key."""
    kept: dict[tuple[str, Key], Result] = {}
    for result in sorted(results, key=lambda result: str(result["date"])):
        kept[str(result["submission"]["hash"]), Key.of(result)] = result
    return list(kept.values())


def kind_of(result: Result) -> str:
    """Return the key of ``KINDS`` for a result."""
    automatic = result["submission"]["prompts"] == "none"
    if result["class_agnostic"]:
        return "agnostic" if automatic else "agnostic-prompted"
    return "automatic" if automatic else "prompted"


def _why_apart(split: str, key: Key, current: Key | None) -> str:
    if split != "test":
        return f"the split {split} was predicted; only test is ranked"
    if current is not None and key != current:
        return f"not comparable: another {', another '.join(key.differs(current))}"
    return ""


def _order(result: Result) -> tuple[Any, ...]:
    value = result["scores"]["all"].get(headline_key(result))
    submission = result["submission"]
    return value is None, -(value or 0.0), str(result["date"]), str(submission["model"]), str(submission["hash"])


def _ranked(section: Section) -> Section:
    """Give ranks (equal values share one) and the ranks that overlapping intervals allow."""
    competing = [
        row
        for row in section.rows
        if row.headline is not None
        and row.result["ranked"]
        and is_ranked(row.result["submission"]["prompts"], row.result["split"], row.result["class_agnostic"])
    ]
    intervals = {row.slug: interval_of(row.result, "all", RANKED_BY) for row in competing}
    rows = []
    for row in section.rows:
        if row.slug not in intervals:
            rows.append(row)
            continue
        rank = 1 + sum(_headline(other) > _headline(row) for other in competing)
        span, own = None, intervals[row.slug]
        if own is not None:
            others = [bounds for name, bounds in intervals.items() if name != row.slug and bounds is not None]
            above = sum(low > own[1] for low, _ in others)
            below = sum(high < own[0] for _, high in others)
            span = min(rank, 1 + above), max(rank, len(competing) - below)
        rows.append(Row(row.result, row.slug, rank, span, len(competing)))
    return Section(section.id, section.config, section.kind, section.key, tuple(rows))


def _headline(row: Row) -> float:
    return row.headline if row.headline is not None else -1.0


def interval_of(result: Result, group: str, key: str) -> tuple[float, float] | None:
    """Return the bounds of a value's interval, if it has one.

    One without width is none: every draw gave the same value, mostly because a single volume has the organelle.
    """
    bounds = (result["intervals"].get(group) or {}).get("values", {}).get(key)
    if bounds is None or bounds[1] - bounds[0] < NO_WIDTH:
        return None
    return float(bounds[0]), float(bounds[1])
