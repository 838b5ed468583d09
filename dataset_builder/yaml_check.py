"""Reading YAML by a declared structure: every fault with line, column, key, what was found and what was expected.

All faults are collected and raised at once. Scalars are read as what the key asks for, not as what YAML 1.1 takes them
for: a cell type ``no`` is text and ``1e-3`` is a number.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from em_bench_eval.errors import InputError, did_you_mean

GAP = "FILL_IN"  # what a draft leaves for a person to fill in
TRUE, FALSE = ("true", "yes", "on"), ("false", "no", "off")
NULL = ("", "~", "null")


@dataclass(frozen=True)
class At:
    """A value, where it stands, and the path of keys to it."""

    node: yaml.Node
    key: str

    @property
    def line(self) -> int:
        """Line in the file, from 1."""
        return int(self.node.start_mark.line) + 1

    @property
    def column(self) -> int:
        """Column in the line, from 1."""
        return int(self.node.start_mark.column) + 1


class Checker:
    """Reads values out of one file; what is wrong is noted, and ``None`` given instead."""

    def __init__(self, file: Path):
        self.file = file
        self._faults: list[tuple[int, int, str]] = []

    def root(self) -> At:
        """Parse the file; a fault of syntax is raised at once."""
        try:
            text = self.file.read_text(encoding="utf-8")
        except OSError as error:
            raise InputError(
                f"{self.file} cannot be read", found=error.strerror, expected="a YAML file", remedy="check the path"
            ) from error
        except UnicodeDecodeError as error:
            raise InputError(f"{self.file} is no text", found=str(error), expected="a YAML file in UTF-8") from error
        self._loader = yaml.SafeLoader(text)
        try:
            node = self._loader.get_single_node()
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark
            where = "" if mark is None else f", line {mark.line + 1}, column {mark.column + 1}"
            raise InputError(
                f"{self.file}{where}: no YAML",
                found=error.problem,
                expected="a document of keys and values",
                remedy="look at the indentation, colons and quotes there",
            ) from error
        except yaml.YAMLError as error:
            raise InputError(f"{self.file} is no YAML", found=str(error), expected="keys and values") from error
        if node is None:
            raise InputError(
                f"{self.file} is empty", expected="a spec", remedy="em-bench inspect PATH --draft writes one"
            )
        return At(node, "")

    def fail(self, at: At, *, expected: str, found: str | None = None, hint: str = "") -> None:
        """Note a fault."""
        lines = [f"line {at.line}, column {at.column}: {at.key or '(the document)'}"]
        lines.append(f"  found: {describe(at.node) if found is None else found}")
        lines.append(f"  expected: {expected}")
        if hint:
            lines.append(f"  what to do: {hint}")
        self._faults.append((at.line, at.column, "\n    ".join(lines)))

    def raise_faults(self) -> None:
        """Raise ``InputError`` with all faults noted so far, in the order of their lines."""
        if self._faults:
            faults = [text for _, _, text in sorted(dict.fromkeys(self._faults))]
            many = f"{len(faults)} faults" if len(faults) > 1 else "a fault"
            raise InputError(f"{self.file} has {many}\n  " + "\n  ".join(faults))

    def fields(self, at: At, known: Sequence[str], required: Sequence[str] = ()) -> dict[str, At]:
        """Read a mapping with known keys; values left empty count as absent."""
        if not isinstance(at.node, yaml.MappingNode):
            self.fail(at, expected=f"keys: {', '.join(known)}")
            return {}
        found: dict[str, At] = {}
        for key, value in self.entries(at):
            if key.node.value not in known:
                hint = did_you_mean(key.node.value, known)
                self.fail(key, found=f"the key {key.node.value!r}", expected=f"one of {', '.join(known)}", hint=hint)
            elif not (isinstance(value.node, yaml.ScalarNode) and self._is_null(value.node)):
                found[key.node.value] = value
        for name in required:
            if name not in found:
                self.fail(at, found=f"no {name}", expected=f"the key {_join(at.key, name)}")
        return found

    def entries(self, at: At) -> list[tuple[At, At]]:
        """Read the keys and values of a mapping; a key that stands there twice is a fault."""
        if not isinstance(at.node, yaml.MappingNode):
            self.fail(at, expected="keys and values, as {key: value}")
            return []
        lines: dict[str, int] = {}
        for key, _ in at.node.value:
            if not isinstance(key, yaml.ScalarNode):
                self.fail(At(key, at.key), expected="a plain word or number as the key")
                return []
            if key.value in lines and key.value != "<<":
                here = At(key, _join(at.key, key.value))
                self.fail(here, found="this key for the second time", expected=f"it once (see line {lines[key.value]})")
            lines[key.value] = key.start_mark.line + 1
        self._loader.flatten_mapping(at.node)  # << of anchors
        return [(At(k, _join(at.key, k.value)), At(v, _join(at.key, k.value))) for k, v in at.node.value]

    def items(self, at: At) -> list[At]:
        """Read a list; a single mapping stands for a list of one."""
        if isinstance(at.node, yaml.MappingNode):
            return [at]
        if not isinstance(at.node, yaml.SequenceNode) or not at.node.value:
            self.fail(at, expected="a list of at least one entry, each beginning with '- '")
            return []
        return [At(node, f"{at.key}[{place}]") for place, node in enumerate(at.node.value)]

    def text(self, at: At | None, pattern: str = "", expected: str = "text") -> str | None:
        """Read a scalar as text, all of which matches ``pattern``."""
        if at is None:
            return None
        if not isinstance(at.node, yaml.ScalarNode):
            self.fail(at, expected=expected)
            return None
        if at.node.value.strip() == GAP:
            self.fail(at, found=f"{GAP}, a gap of the draft", expected=expected, hint="fill it in")
            return None
        if pattern and not re.fullmatch(pattern, at.node.value.strip(), re.DOTALL):
            self.fail(at, expected=expected)
            return None
        value: str = at.node.value.strip()
        return value

    def choice(self, at: At | None, known: Sequence[str], expected: str = "") -> str | None:
        """Read one of several words."""
        expected = expected or f"one of {', '.join(known)}"
        value = self.text(at, expected=expected)
        if at is None or value is None:
            return None
        if value not in known:
            self.fail(at, expected=expected, hint=did_you_mean(value, known))
            return None
        return value

    def flag(self, at: At | None) -> bool | None:
        """Read true or false."""
        value = self.text(at, expected="true or false")
        if at is None or value is None:
            return None
        if value.lower() not in TRUE + FALSE:
            self.fail(at, expected="true or false")
            return None
        return value.lower() in TRUE

    def numbers(self, at: At | None, count: int, expected: str, *, whole: bool = False) -> tuple[float, ...] | None:
        """Read a list of so many finite numbers."""
        if at is None:
            return None
        if isinstance(at.node, yaml.ScalarNode) and at.node.value.strip() == GAP:
            self.text(at, expected=expected)
            return None
        nodes = at.node.value if isinstance(at.node, yaml.SequenceNode) else []
        values = []
        for node in nodes:
            if isinstance(node, yaml.ScalarNode) and node.value.strip() == GAP:
                self.text(At(node, at.key), expected=expected)
                return None
            try:
                value = float(node.value)
                values.append(value if not whole else float(int(node.value)))
            except (TypeError, ValueError):
                self.fail(At(node, at.key), expected="a whole number" if whole else "a number")
                return None
        if len(values) != count or not all(abs(value) < float("inf") for value in values):
            self.fail(at, expected=expected)
            return None
        return tuple(values)

    def _is_null(self, node: yaml.ScalarNode) -> bool:
        return node.value.strip().lower() in NULL and node.style is None


def describe(node: yaml.Node) -> str:
    """Say what a node holds, shortly."""
    if isinstance(node, yaml.ScalarNode):
        text = str(node.value)
        return repr(text) if len(text) <= 60 else repr(text[:57] + "...")
    if isinstance(node, yaml.SequenceNode):
        parts = [describe(child) if isinstance(child, yaml.ScalarNode) else "..." for child in node.value[:6]]
        return f"a list of {len(node.value)}: [{', '.join(part.strip(chr(39)) for part in parts)}]"
    keys: Mapping[Any, Any] = dict.fromkeys(getattr(key, "value", "?") for key, _ in node.value)
    return f"keys {', '.join(map(str, keys))}" if keys else "nothing"


def _join(key: str, name: str) -> str:
    return f"{key}.{name}" if key else name
