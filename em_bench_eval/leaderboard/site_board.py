"""A table of the leaderboard as HTML, for the headline and all images; a script shows other metrics and images.

Columns: rank (where there is one), submission, then what the chosen metric gives: the average, its in-domain and
out-of-domain values, the organelles; then the training data and the date.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from em_bench_eval.leaderboard.site_rows import Result, Row, Section
from em_bench_eval.leaderboard.site_text import (
    DASH,
    data_value,
    digits_of,
    interval,
    is_share,
    link,
    number,
    short_title,
    stored,
    text,
)
from em_bench_eval.leaderboard.site_values import (
    GROUP_TITLES,
    REASONS,
    SHORT_TITLES,
    TITLES,
    Value,
    View,
    best_of,
    declaration,
    predicted_organelles,
    value_of,
)
from em_bench_eval.schema import ORGANELLES

DOMAINS = ("domain=in", "domain=out")
RANK_HEAD = (
    '<th scope="col" class="rank" data-better="lower"><span class="top">Rank</span> '
    '<span class="sub">95 % range</span></th>'
)
SHOWN_TRAINING = 160  # characters in a table; a submission's page has all


@dataclass
class Choices:
    """Texts that can be chosen in a filter; rows name them by number, so that no text is ever compared in a page."""

    team: dict[str, int] = field(default_factory=dict)
    training: dict[str, int] = field(default_factory=dict)
    prompts: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, rows: Sequence[Row]) -> Choices:
        """Number the texts of all rows, in alphabetical order."""
        named = [row.result["submission"] for row in rows]
        return cls(
            _numbered(str(one["team"]) for one in named),
            _numbered(str(data) for one in named for data in one["training_data"]),
            _numbered(str(one["prompts"]) for one in named),
        )


def _numbered(texts: Any) -> dict[str, int]:
    return {value: place for place, value in enumerate(sorted(set(texts), key=lambda value: (value.lower(), value)))}


@dataclass(frozen=True)
class Column:
    """A column of values: a group of images, a name of ``NAMES`` and a metric."""

    group: str
    name: str
    metric: str
    opens: bool = False  # the first column of its name

    def head(self, agnostic: bool) -> str:
        """Return the heading, in two lines."""
        title = GROUP_TITLES[self.group] if self.group in DOMAINS else SHORT_TITLES[self.name]
        if self.name == "macro" and agnostic and self.group not in DOMAINS:
            title = SHORT_TITLES["any"]
        return f'<span class="top">{title}</span> <span class="sub">{text(short_title(self.metric))}</span>'


def columns_of(view: View, domains: Sequence[str]) -> list[Column]:
    """Return the columns of a view for all images: average, domains, organelles."""
    found = [Column("all", "macro", metric, place == 0) for place, metric in enumerate(view.metrics)]
    found += [Column(domain, "macro", view.metrics[0], place == 0) for place, domain in enumerate(domains)]
    for name in ORGANELLES:
        found += [Column("all", name, metric, place == 0) for place, metric in enumerate(view.metrics)]
    return found


def board(section: Section, view: View, domains: Sequence[str], choices: Choices) -> str:
    """Return the table of a section."""
    columns = columns_of(view, domains)
    agnostic = section.kind.agnostic
    best = [best_of(section.rows, column.group, column.name, column.metric) for column in columns]
    heads = [RANK_HEAD] if section.ranked else []
    heads.append('<th scope="col" class="who">Submission</th>')
    for place, column in enumerate(columns):
        better = declaration(column.metric).better
        state = f' aria-sort="{"descending" if better == "higher" else "ascending"}"' if place == 0 else ""
        heads.append(
            f'<th scope="col" class="num{" opens" if column.opens else ""}" data-shown data-better="{better}"{state}>'
            f"{column.head(agnostic)}</th>"
        )
    heads += ['<th scope="col" class="training">Training data</th>', '<th scope="col" class="date">Scored</th>']
    body = "".join(_row(row, section, columns, best, choices) for row in section.rows)
    caption = f"{section.config}: {section.kind.title}" + (f" ({section.apart})" if section.apart else "")
    return (
        f'<div class="card board" data-agnostic="{int(agnostic)}" data-domains="{" ".join(domains)}">'
        f'<div class="scroll" tabindex="0" role="region" aria-label="{text(caption)}">'
        f'<table class="board"><caption class="sr">{text(caption)}</caption>'
        f"<thead><tr>{''.join(heads)}</tr></thead><tbody>{body}</tbody></table></div>"
        '<p class="nothing" hidden>No submission in this table passes the filters.</p></div>'
    )


def _row(row: Row, section: Section, columns: Sequence[Column], best: Sequence[Any], choices: Choices) -> str:
    submission = row.result["submission"]
    cells = rank_cell(row) if section.ranked else ""
    cells += _who(row)
    for column, top in zip(columns, best, strict=True):
        found = value_of(row.result, column.group, column.name, column.metric)
        whisker = column.name == "macro" and column.group == "all" and column.opens
        cells += cell(
            found,
            column.metric,
            opens=column.opens,
            best=found.value is not None and stored(found.value) == top,
            whisker=whisker,
        )
    training = "; ".join(map(str, submission["training_data"]))
    cells += f'<td class="training">{text(training, SHOWN_TRAINING)}</td>'
    cells += f'<td class="date">{text(str(row.result["date"])[:10])}</td>'
    search = " ".join(
        map(str, (submission["model"], submission["team"], training, submission.get("notes", "")))
    ).lower()
    filters = {
        "page": row.slug,
        "search": search,
        "team": choices.team[str(submission["team"])],
        "training": " ".join(str(choices.training[str(data)]) for data in submission["training_data"]),
        "prompts": choices.prompts[str(submission["prompts"])],
        "covers": " ".join(predicted_organelles(row.result)),
    }
    attributes = "".join(f' data-{name}="{text(value, 5000)}"' for name, value in filters.items())
    return f"<tr{attributes}>{cells}</tr>"


def rank_cell(row: Row) -> str:
    """Return the rank, and the ranks that the intervals allow."""
    if row.rank is None:
        return f'<td class="rank none" data-value="">{DASH}<span class="sr"> undefined, not ranked</span></td>'
    return f'<td class="rank" data-value="{row.rank}"><b>{row.rank}</b>{_span(row)}</td>'


def _span(row: Row) -> str:
    if row.of < 2:
        return ""
    if row.span is None:
        return '<span class="span" title="no interval: one volume, or one image">no interval</span>'
    low, high = row.span
    if low == high:
        return '<span class="span" title="its interval overlaps no other">clear</span>'
    return (
        f'<span class="span tied" title="its 95 % interval overlaps those of ranks {low} to {high}">'
        f'<span class="sr">tied: </span>{low}{DASH}{high}</span>'
    )


def cell(found: Value, metric: str, *, opens: bool = False, best: bool = False, whisker: bool = False) -> str:
    """Return the cell of a value: three decimals, its interval below; undefined: a dash with a letter that says why."""
    kind = "num opens" if opens else "num"
    if found.value is None:
        return (
            f'<td class="{kind} none" data-value="" title="{REASONS[found.reason]}">{DASH}<sup>{found.reason}</sup>'
            f'<span class="sr"> {REASONS[found.reason]}</span></td>'
        )
    digits = digits_of(metric)
    shown = f'<span class="v">{number(found.value, digits)}</span>'
    if found.interval is not None:
        shown += f'<span class="ci">{interval(found.interval, metric)}</span>'
    if whisker and is_share(metric):
        low, high = found.interval or (found.value, found.value)
        shown += (
            f'<span class="whisker" style="--l:{_share(low)}%;--h:{_share(high)}%;--v:{_share(found.value)}%"></span>'
        )
    return f'<td class="{kind}{" best" if best else ""}" data-value="{data_value(found.value)}">{shown}</td>'


def _share(value: float) -> str:
    return number(100 * min(1.0, max(0.0, float(value))), 1)


def _who(row: Row) -> str:
    submission = row.result["submission"]
    links = [link(submission["paper"], "paper"), link(submission["code"], "code")]
    shown = "".join(links)
    return (
        '<th scope="row" class="who">'
        f'<a class="name" href="submissions/{row.slug}.html">{text(submission["model"])}</a>'
        f'<span class="team">{text(submission["team"])}</span>'
        f'<span class="links">{chips(row.result)}{shown}</span></th>'
    )


def chips(result: Result) -> str:
    """Return small marks: what was shown to the model, and the organelles if it does not predict all."""
    prompts = str(result["submission"]["prompts"])
    marks = f'<span class="chip prompt">{text(prompts)}</span>' if prompts != "none" else ""
    if result["class_agnostic"]:
        return marks
    covered = predicted_organelles(result)
    if len(covered) < len(ORGANELLES):
        names = ", ".join(TITLES[name] if name != "er" else "ER" for name in covered) or "nothing"
        marks += f'<span class="chip" title="it predicts instances of these organelles alone">{names} only</span>'
    return marks


def quoted_value(value: float | None) -> str:
    """Return the cell of a number that somebody else printed."""
    if value is None:
        return f'<td class="num none">{DASH}<span class="sr"> not printed</span></td>'
    return f'<td class="num"><span class="v">{number(value)}</span></td>'


def reasons_list(used: Mapping[str, str] = REASONS) -> str:
    """Return what the letters at dashes mean."""
    items = "".join(f"<li><b>{DASH}<sup>{letter}</sup></b> {reason}</li>" for letter, reason in used.items())
    return f'<ul class="reasons">{items}</ul>'
