"""What is wrong with a submission: faults grouped by kind, counted, with the first examples; and the verdict on it.

Texts that come from a submission are made printable and cut here, so that no other place has to remember to.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

VERDICT_FORMAT = "em-organelle-wild verdict v1"
EXAMPLES = 5  # kept of each kind
ALL_OF = {"manifest": 40}  # of these more: they are few, and each is another thing to do
LONGEST_TEXT = 200


@dataclass(frozen=True)
class Kind:
    """A kind of fault: what it says, and what its author does about it."""

    title: str
    remedy: str


KINDS: dict[str, Kind] = {
    "manifest": Kind(
        "submission.yaml", "docs/submissions.md lists its keys; em-bench validate PRED --draft writes a first one"
    ),
    "layout": Kind("no predictions, or several forms of them", "see docs/submissions.md for the four forms"),
    "unsafe": Kind(
        "a file that is refused unread", "submit plain files only: no links, archives or scripts, and nothing huge"
    ),
    "unreadable": Kind("a file or item that cannot be decoded", "write it again; was the upload complete?"),
    "missing": Kind("an image of the split without a prediction", "predict every image, also where nothing is found"),
    "extra": Kind("a prediction for what is not in the split", "predict the configuration and split that you name"),
    "duplicate": Kind("an image that is predicted twice", "keep one prediction of each image"),
    "shape": Kind("another shape than the image's", "resample labels to the native size of the image (nearest)"),
    "dtype": Kind("a label map of the wrong type", "gray PNG of 8 or 16 bits, or integers; ids from 1, 0 = background"),
    "pixel-size": Kind("another pixel size than the image's", "predict at native size, or correct what is stated"),
    "organelle": Kind("an unknown organelle", "names are lower case: mito, nucleus, er, endo, golgi"),
    "duplicate-id": Kind("an id that has two objects in one item", "give every instance its own id"),
    "no-object": Kind("ids in a label map without an object", "name the organelle of every instance"),
    "no-pixels": Kind("objects without a pixel", "drop objects that post-processing has removed or covered"),
    "overlap": Kind("instances that overlap", "give each pixel to one instance, for instance to the most confident"),
    "confidence": Kind("a confidence that is no number from 0 to 1", "calibrate, or leave confidences out"),
    "instances": Kind("too many instances", "relabel each image to 1..N, and drop specks with a minimum size"),
    "split-hash": Kind("made for another version of the split", "predict the current version of the dataset"),
    "crash": Kind("made the check itself fail", "please report it: em-bench should have named the fault"),
    "resources": Kind(
        "more time or memory than a submission may take", "make it simpler: smaller chunks, fewer specks"
    ),
}


def printable(value: object, longest: int = LONGEST_TEXT) -> str:
    """Return text on one line without control characters, cut to ``longest`` characters."""
    text = str(value)[: longest + 1]
    text = "".join(letter if letter.isprintable() else f"\\x{ord(letter):02x}" for letter in text)
    return text if len(text) <= longest else text[: longest - 3] + "..."


class Faults:
    """Collects faults; memory is bounded by the number of kinds."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._examples: dict[str, list[dict[str, str]]] = {}

    def note(self, kind: str, where: object, found: object = "", expected: object = "") -> None:
        """Note a fault of a kind of ``KINDS``: where, what was found, what was expected."""
        assert kind in KINDS, kind
        self._counts[kind] = self._counts.get(kind, 0) + 1
        examples = self._examples.setdefault(kind, [])
        if len(examples) < ALL_OF.get(kind, EXAMPLES):
            example = {"where": printable(where), "found": printable(found), "expected": printable(expected)}
            examples.append({name: text for name, text in example.items() if text})

    def count(self) -> int:
        """Return the number of faults noted so far."""
        return sum(self._counts.values())

    def as_list(self) -> list[dict[str, Any]]:
        """Return one entry a kind, in the order of ``KINDS``."""
        return [
            {
                "kind": name,
                "title": kind.title,
                "count": self._counts[name],
                "examples": self._examples[name],
                "remedy": kind.remedy,
            }
            for name, kind in KINDS.items()
            if name in self._counts
        ]


@dataclass(frozen=True)
class Verdict:
    """The hub's answer to a submission; ``ok`` means that it will be scored.

    Attributes:
        faults: ``Faults.as_list()``.
        facts: what is known: ``model``, ``team``, ``prompts``, ``config``, ``split``, ``form``, ``files`` (those that
            belong to the submission), ``images``, ``instances``, ``megapixels``, ``submission_hash``, ``split_hash``,
            ``dataset``, ``expected_seconds``; what could not be found out is missing.
        notes: what its author should know, but nothing that is wrong.
    """

    faults: list[dict[str, Any]]
    facts: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """True if there is no fault."""
        return not self.faults

    @property
    def count(self) -> int:
        """Number of faults of all kinds."""
        return sum(int(group["count"]) for group in self.faults)

    def to_json(self) -> dict[str, Any]:
        """Return the machine-readable form."""
        return {
            "format": VERDICT_FORMAT,
            "ok": self.ok,
            "count": self.count,
            "faults": self.faults,
            "facts": self.facts,
            "notes": self.notes,
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Verdict:
        """Read what ``to_json`` gave."""
        return cls(list(document["faults"]), dict(document["facts"]), list(document["notes"]))

    def to_text(self) -> str:
        """Lay the verdict out for a terminal."""
        return "\n".join([*_heading(self), *(line for group in self.faults for line in _group(group)), *_end(self)])

    def to_markdown(self) -> str:
        """Lay the verdict out for a comment on a pull request; nothing in it can link, mention or format."""
        title = "Accepted: it will be scored." if self.ok else f"Not accepted: {_faults(self)}."
        return f"**{title}**\n\n~~~text\n{self.to_text().replace('~~~', '~ ~ ~')}\n~~~\n"


def _faults(verdict: Verdict) -> str:
    kinds = len(verdict.faults)
    faults = "1 fault" if verdict.count == 1 else f"{verdict.count:,} faults"
    return f"{faults} of {kinds} kinds" if kinds > 1 else faults


def _heading(verdict: Verdict) -> list[str]:
    facts = verdict.facts
    lines = []
    if "model" in facts:
        prompts = facts.get("prompts")
        ranked = {None: "", "none": " (automatic)"}.get(prompts, f" (prompts: {prompts}; never ranked)")
        lines.append(f"submission  {facts['model']}, by {facts.get('team', '?')}{ranked}")
    if "form" in facts:
        lines.append(f"form        {facts['form']}, {facts.get('config', '?')}/{facts.get('split', '?')}")
    if "dataset" in facts:
        dataset = facts["dataset"]
        content = f", {dataset['fingerprint']}" if dataset.get("fingerprint") else ""
        lines.append(f"dataset     {dataset['name']}{content}, {dataset['images']:,} images")
    if "images" in facts:
        lines.append(
            f"read        {facts['images']:,} images, {facts['megapixels']:.1f} megapixels, "
            f"{facts['instances']:,} instances"
        )
    return [*lines, "", "ACCEPTED: no faults" if verdict.ok else f"NOT ACCEPTED: {_faults(verdict)}"]


def _group(group: Mapping[str, Any]) -> list[str]:
    lines = ["", f"{group['title']}: {group['count']:,} ({group['kind']})"]
    for example in group["examples"]:
        said = [f"{name}: {example[name]}" for name in ("found", "expected") if name in example]
        lines.append(f"  {example['where']}" + (f"  ({'; '.join(said)})" if said else ""))
    more = group["count"] - len(group["examples"])
    if more:
        lines.append(f"  ... and {more:,} more")
    return [*lines, f"  what to do: {group['remedy']}"]


def _end(verdict: Verdict) -> list[str]:
    lines = [f"note: {note}" for note in verdict.notes]
    seconds = verdict.facts.get("expected_seconds")
    if verdict.ok and seconds is not None:
        lines.append(f"scoring will take about {duration(seconds)} on one core like this one")
    return ["", *lines] if lines else []


def duration(seconds: float) -> str:
    """Say a time in words."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
