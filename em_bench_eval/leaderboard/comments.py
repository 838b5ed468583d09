"""Comments under pull requests: what we say, how we know it again, and how nothing in it can link, mention or format.

The first line of a comment of ours is a mark that is not shown, ``<!-- em-bench STATE ID STAMP -->``. It counts only in
comments of accounts that write results. Texts of a submission stand in a code block only.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from em_bench_eval.leaderboard.pulls import Pull
from em_bench_eval.leaderboard.verdict import Verdict, printable
from em_bench_eval.schema import ORGANELLES

NO_WIDTH = 1e-9  # of an interval: every draw gave the same value, mostly because there is only one volume
LONGEST = 30_000  # characters of a comment
_MARK = re.compile(r"<!-- em-bench (scored|refused) ([0-9a-f]{40,64}) ([0-9a-f]{12}) -->\n")
METRICS = ("dice__instance", "iou__instance", "pq")
TITLES = {"dice__instance": "Dice", "iou__instance": "IoU", "pq": "PQ"}
GROUPS = {"all": "all images", "domain=in": "in-domain", "domain=out": "held-out specimens"}


@dataclass(frozen=True)
class Mark:
    """What a comment of ours is about.

    ``state``: "scored" or "refused"; ``about``: hash of the submission that was scored, or commit that was refused;
    ``stamp``: of metric, settings and dataset.
    """

    state: str
    about: str
    stamp: str

    def text(self) -> str:
        """Return the line that is not shown."""
        return f"<!-- em-bench {self.state} {self.about} {self.stamp} -->\n"

    def is_in(self, pull: Pull, ours: Collection[str]) -> bool:
        """Is there a comment with this mark by one of the accounts ``ours``?"""
        return any(comment.author in ours and mark_of(comment.text) == self for comment in pull.comments)


def mark_of(text: str) -> Mark | None:
    """Return the mark on the first line of a comment."""
    found = _MARK.match(text.replace("\r\n", "\n"))
    return None if found is None else Mark(*found.groups())


def scored_comment(document: Mapping[str, Any], stamp: str) -> str:
    """Write the comment on a submission that was scored."""
    submission, dataset = document["submission"], document["dataset"]
    status = "Ranked." if document["ranked"] else f"Listed, not ranked: {_why_not(document)}."
    about = [
        f"submission    {submission['model']}, by {submission['team']}",
        f"predicts      {document['config']}/{document['split']}, {dataset['images']:,} images",
        f"prompts       {submission['prompts']}",
        f"hash          {submission['hash']}",
        f"dataset       {dataset['name']} {dataset['fingerprint'] or dataset['revision']}".rstrip(),
        f"metric        version {document['metric_version']}, settings {document['settings_hash']}",
        f"scored with   em-organelle-wild {document['software'].get('em-organelle-wild', '?')}, {document['date']}",
    ]
    return "\n".join(
        [
            Mark("scored", submission["hash"], stamp).text() + f"**Scored. {status}**",
            "",
            *score_table(document),
            "",
            "In parentheses: 95 % bootstrap intervals over volumes where there are several, else over images. "
            "A dash: not annotated or undefined, never 0.",
            "",
            code_block("\n".join(about)),
        ]
    )


def refused_comment(verdict: Verdict, head: str, stamp: str) -> str:
    """Write the comment on a pull request that cannot be scored."""
    return "\n".join(
        [
            Mark("refused", head, stamp).text() + "**Not scored.** Push to this pull request to correct it; the next "
            "update looks at it again. `em-bench validate` gives this verdict offline.",
            "",
            code_block(verdict.to_text()),
        ]
    )


def score_table(document: Mapping[str, Any]) -> list[str]:
    """Lay the headline scores out as a Markdown table: a row for the mean and each organelle, by group."""
    agnostic = bool(document["class_agnostic"])
    names = ("any",) if agnostic else ("macro", *ORGANELLES)
    lines = ["| | | " + " | ".join(TITLES[metric] for metric in METRICS) + " |", "|---|---|" + "---|" * len(METRICS)]
    for group, title in GROUPS.items():
        scores = document["scores"].get(group)
        if scores is None:
            continue
        intervals = document["intervals"].get(group, {}).get("values", {})
        for name in names:
            keys = [f"{name}/{metric}" for metric in METRICS]
            if name in ("macro", "any") or any(scores.get(key) is not None for key in keys):
                cells = " | ".join(_cell(scores.get(key), intervals.get(key)) for key in keys)
                lines.append(f"| {title} | {'mean' if name == 'macro' else name} | {cells} |")
    return lines


def _cell(value: float | None, interval: Any) -> str:
    if value is None:
        return "–"
    low, high = interval or (0.0, 0.0)
    return f"{value:.3f}" + (f" ({low:.3f} to {high:.3f})" if high - low > NO_WIDTH else "")


def _why_not(document: Mapping[str, Any]) -> str:
    if document["submission"]["prompts"] != "none":
        return "it was shown something of the reference (prompts)"
    if document["class_agnostic"]:
        return "its instances have no organelle"
    return "only the split test is ranked"


def code_block(text: str) -> str:
    """Return text that is shown as it is: no formatting, links, pictures or mentions."""
    lines = [printable(line, 600) for line in text.split("\n")]
    shown = "\n".join(lines).replace("~~~", "~ ~ ~")
    shown = re.sub(r"@(?!\d+,\d)", "@\u200b", shown)  # a mention of nobody, and record ids stay as they are
    if len(shown) > LONGEST:
        shown = shown[:LONGEST] + "\n... (cut; em-bench validate shows all of it)"
    return f"~~~text\n{shown}\n~~~"
