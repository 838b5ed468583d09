"""``submission.yaml``: who submits what, read key by key, every fault with its line.

The text is untrusted: it is small, aliases are refused, nothing is constructed but text, and what goes on a page later
is one printable line. Links are http(s) only.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from em_bench_eval.errors import did_you_mean
from em_bench_eval.leaderboard.safe_read import read_text
from em_bench_eval.leaderboard.verdict import Faults, printable
from em_bench_eval.schema import FOLDS

MANIFEST_FILE = "submission.yaml"
MANIFEST_FORMAT = "em-organelle-wild submission v1"
GAP = "FILL_IN"  # what a draft leaves for a person to fill in
CONFIGS = ("homogeneous", "wild")
NONE = "none"
MAX_BYTES = 64 * 2**10
MAX_NODES = 2_000
MAX_DEPTH = 4
LONGEST_LINE = 120
LONGEST_TEXT = 1_000
MOST_ENTRIES = 50


@dataclass(frozen=True)
class Manifest:
    """A sound ``submission.yaml``. ``prompts`` is "none" or "oracle:<what>"; ``split_hash`` may be empty."""

    model: str
    team: str
    paper: str
    code: str
    training_data: tuple[str, ...]
    prompts: str
    compute: str
    config: str
    split: str
    split_hash: str = ""
    contact: str = ""
    notes: str = ""
    class_agnostic: bool = False  # its instances have no organelle

    @property
    def is_automatic(self) -> bool:
        """True if nothing was taken from the reference labels; only such submissions are ranked."""
        return self.prompts == NONE


@dataclass(frozen=True)
class Value:
    """A value of the manifest as YAML text: a scalar, or a list of scalars (``node``), and where it stands."""

    key: str
    node: Any

    @property
    def where(self) -> str:
        """``submission.yaml line 4, model``."""
        return f"{MANIFEST_FILE} line {self.node.start_mark.line + 1}, {self.key}"


Read = Callable[[Value, Faults], Any]


@dataclass(frozen=True)
class Key:
    """A key of the manifest: how it is read, and what the draft and the documentation say about it."""

    read: Read
    about: str
    required: bool = True


def _scalar(value: Value, faults: Faults, expected: str) -> str | None:
    import yaml

    if not isinstance(value.node, yaml.ScalarNode):
        faults.note("manifest", value.where, "a list or keys", expected)
        return None
    text = " ".join(str(value.node.value).split())
    if GAP in text:
        faults.note("manifest", value.where, f"{GAP}, a gap of the draft", KEYS[value.key.partition("[")[0]].about)
        return None
    return text


def _text(longest: int) -> Read:
    expected = f"text of 1 to {longest} printable characters"

    def read(value: Value, faults: Faults) -> str | None:
        text = _scalar(value, faults, expected)
        if text is not None and not (1 <= len(text) <= longest and text.isprintable()):
            faults.note("manifest", value.where, f"{len(text)} characters: {printable(text, 60)!r}", expected)
            return None
        return text

    return read


def _matching(pattern: str, expected: str) -> Read:
    def read(value: Value, faults: Faults) -> str | None:
        text = _scalar(value, faults, expected)
        if text is not None and not re.fullmatch(pattern, text):
            faults.note("manifest", value.where, repr(printable(text, 60)), expected)
            return None
        return text

    return read


def _choice(*known: str) -> Read:
    def read(value: Value, faults: Faults) -> str | None:
        text = _scalar(value, faults, " or ".join(known))
        if text is not None and text not in known:
            hint = did_you_mean(text[:LONGEST_LINE], known)
            faults.note(
                "manifest", value.where, repr(printable(text, 60)), f"{' or '.join(known)}; {hint}".rstrip("; ")
            )
            return None
        return text

    return read


def _flag(value: Value, faults: Faults) -> bool | None:
    text = _choice("true", "false")(value, faults)
    return None if text is None else text == "true"


def _texts(value: Value, faults: Faults) -> tuple[str, ...] | None:
    import yaml

    nodes = value.node.value if isinstance(value.node, yaml.SequenceNode) else [value.node]
    if not 1 <= len(nodes) <= MOST_ENTRIES:
        faults.note("manifest", value.where, f"a list of {len(nodes)}", f"a list of 1 to {MOST_ENTRIES} data sets")
        return None
    read = _text(LONGEST_TEXT)
    texts = [read(Value(f"{value.key}[{place}]", node), faults) for place, node in enumerate(nodes)]
    return None if None in texts else tuple(str(text) for text in texts)


_LINK = r"none|https?://[A-Za-z0-9.-]+(:\d+)?(/[A-Za-z0-9._~:/?#@!$&*+,;=%()-]*)?"
_link = _matching(rf"(?=.{{1,500}}$)({_LINK})", "an http(s) address, or none")

KEYS: dict[str, Key] = {
    "format": Key(_choice(MANIFEST_FORMAT), "the version of this file"),
    "model": Key(_text(LONGEST_LINE), "name in the table"),
    "team": Key(_text(LONGEST_LINE), "people or laboratory"),
    "paper": Key(_link, "address of the paper or preprint, or none"),
    "code": Key(_link, "address of the code that predicts, or none"),
    "training_data": Key(_texts, "everything it was trained on, pretraining included; or none"),
    "prompts": Key(
        _matching(r"none|oracle:[a-z][a-z0-9 ,+-]{0,59}", "none, or oracle:<what>, such as oracle:points"),
        "none, or oracle:<what> if it was shown anything of the reference (oracle:points, oracle:boxes, oracle:masks); "
        "such rows are listed apart and never ranked",
    ),
    "compute": Key(_text(LONGEST_TEXT), "hardware and time, of training and per image"),
    "contact": Key(_text(LONGEST_LINE), "public way to reach you", required=False),
    "notes": Key(_text(LONGEST_TEXT), "what a reader of the table should know", required=False),
    "class_agnostic": Key(_flag, "true if instances have no organelle: scored apart, never ranked", required=False),
    "config": Key(_choice(*CONFIGS), "configuration of the dataset that was predicted"),
    "split": Key(_choice(*FOLDS), "split that was predicted; the leaderboard ranks test"),
    "split_hash": Key(
        _matching(r"[0-9a-f]{64}", "64 hexadecimal digits, as em-bench validate --dataset prints them"),
        "which version of the split was predicted (em-bench validate PRED --draft --dataset DATASET fills it in)",
    ),
}


def read_manifest(folder: Path, faults: Faults) -> tuple[Manifest | None, dict[str, Any]]:
    """Read ``submission.yaml``: the manifest if it is sound, and every value that could be read; faults are noted."""
    path = folder / MANIFEST_FILE
    if not path.is_file() or path.is_symlink():
        faults.note("manifest", MANIFEST_FILE, "no such file", "who submits what")
        return None, {}
    before = faults.count()
    text = read_text(path, MAX_BYTES, faults, MANIFEST_FILE)
    values = {} if text is None else _read(text, faults)
    if faults.count() > before:
        return None, values
    fields = {name: value for name, value in values.items() if name != "format"}
    return Manifest(**fields), values


def _read(text: str, faults: Faults) -> dict[str, Any]:
    import yaml

    entries = _entries(text, faults)
    if entries is None:
        return {}
    found: dict[str, Any] = {}
    lines: dict[str, int] = {}
    for key_node, node in entries:
        key, line = str(key_node.value), key_node.start_mark.line + 1
        where = f"{MANIFEST_FILE} line {line}"
        if not isinstance(key_node, yaml.ScalarNode) or key not in KEYS:
            shown = printable(key, 40) if isinstance(key_node, yaml.ScalarNode) else "a list or keys"
            hint = did_you_mean(shown, KEYS)
            faults.note("manifest", where, f"the key {shown!r}", f"{hint}one of {', '.join(KEYS)}")
        elif key in lines:
            faults.note("manifest", f"{where}, {key}", "this key for the second time", f"it once (line {lines[key]})")
        else:
            lines[key] = line
            empty = isinstance(node, yaml.ScalarNode) and node.style is None and node.value in ("", "~", "null")
            if not empty:
                found[key] = KEYS[key].read(Value(key, node), faults)
            elif KEYS[key].required:
                faults.note("manifest", f"{where}, {key}", "nothing", KEYS[key].about)
    for key, declared in KEYS.items():
        if declared.required and key not in lines:
            faults.note("manifest", MANIFEST_FILE, f"no {key}", f"the key {key}: {declared.about}")
    return {key: value for key, value in found.items() if value is not None}


def _entries(text: str, faults: Faults) -> list[tuple[Any, Any]] | None:
    """Parse the text to the (key, value) nodes of one mapping; small and without aliases, or a fault is noted."""
    import yaml

    depth = nodes = 0
    try:
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            nodes += 1
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if isinstance(event, yaml.AliasEvent) or depth > MAX_DEPTH or nodes > MAX_NODES:
                what = "an alias" if isinstance(event, yaml.AliasEvent) else "deep or endless lists"
                where = f"{MANIFEST_FILE} line {event.start_mark.line + 1 if event.start_mark else 1}"
                faults.note("manifest", where, what, "one level of keys with plain values")
                return None
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        line = "" if error.problem_mark is None else f" line {error.problem_mark.line + 1}"
        faults.note("manifest", f"{MANIFEST_FILE}{line}", error.problem, "keys and values (look at colons and quotes)")
        return None
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError) as error:
        faults.note("manifest", MANIFEST_FILE, printable(error, 100), "YAML: keys and values")
        return None
    if not isinstance(root, yaml.MappingNode):
        faults.note("manifest", MANIFEST_FILE, "no keys" if root is not None else "an empty file", ", ".join(KEYS))
        return None
    return list(root.value)


def draft(known: Mapping[str, str]) -> str:
    """Return the text of a ``submission.yaml``: what is ``known`` filled in, the rest marked ``FILL_IN``."""
    lines = ["# A submission to the em-organelle-wild leaderboard. Replace every FILL_IN; see docs/submissions.md."]
    known = {"format": MANIFEST_FORMAT, **known}
    for name, key in KEYS.items():
        lines.append(f"\n# {key.about}" + ("" if key.required else " (may stay empty)"))
        if name in known:
            lines.append(f"{name}: {_quoted(known[name])}")
        elif name == "training_data":
            lines.append(f"{name}:\n  - {GAP}")
        else:
            lines.append(f"{name}: {GAP}" if key.required else f"{name}:")
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    plain = re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9 ._/-]*", text) and text == text.strip()
    return text if plain else '"' + printable(text).replace("\\", "\\\\").replace('"', '\\"') + '"'


def gaps(text: str) -> list[str]:
    """Name the keys of a draft that a person has to fill in."""
    found = []
    key = ""
    for line in text.splitlines():
        if line[:1].isalpha():
            key = line.partition(":")[0]
        if GAP in line and not line.startswith("#"):
            found.append(key)
    return found
