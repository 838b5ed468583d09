"""The files that a spec names: images, labels and what their values mean, masks."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import yaml

from dataset_builder.label_values import IGNORE, REST, TARGETS, ValueMap, from_table, is_target, parse_range, read_table
from dataset_builder.yaml_check import At, Checker
from em_bench_eval.errors import did_you_mean
from em_bench_eval.schema import EXTRA_NAME, ORGANELLES
from em_bench_eval.volume_files import plain_path, split_location
from em_bench_eval.volume_io import is_remote


@dataclass(frozen=True)
class FileRef:
    """A file that the spec names, and the part of it that is meant."""

    location: str  # absolute, or a URL; with FILE:/inside
    box: tuple[tuple[int, int], tuple[int, int], tuple[int, int]] | None
    at: At


@dataclass(frozen=True)
class LabelFile:
    """A label file: semantic values, or (``instances``) one id per instance."""

    file: FileRef
    values: ValueMap
    instances: bool


@dataclass(frozen=True)
class Mask:
    """Where nobody annotated: voxels with one of ``values``, or (``None``) with any but 0."""

    file: FileRef
    values: tuple[int, ...] | None


@dataclass(frozen=True)
class Extra:
    """A structure outside the five organelles in a file: the mask of ``values``, or (``None``) its ids."""

    name: str
    file: FileRef
    values: tuple[int, ...] | None


def read_file(check: Checker, at: At | None, otherwise: At, extra: tuple[str, ...] = ()) -> FileRef:
    """Read ``PATH`` or ``{path: PATH, box: [[z0, z1], [y0, y1], [x0, x1]], ...}``; paths are relative to the spec."""
    if at is None:
        return FileRef("", None, otherwise)
    where, box = at, None
    if isinstance(at.node, yaml.MappingNode):
        fields = check.fields(at, ("path", "box", *extra), ("path",))
        where = fields.get("path", at)
        box = _box(check, fields.get("box"))
    # a mapping without a path has been told already
    text = None if isinstance(where.node, yaml.MappingNode) else check.text(where, r".+", "a path")
    if text is None:
        return FileRef("", None, where)
    location = text if is_remote(text) else plain_path(check.file.absolute().parent / Path(text).expanduser())
    if not is_remote(text):
        path = split_location(location)[0]
        if not path.exists():
            near = next(folder for folder in path.parents if folder.is_dir())
            names = sorted(child.name for child in near.iterdir())
            hint = did_you_mean(path.relative_to(near).parts[0], names)
            check.fail(where, found=f"{text}: no such file or folder", expected=f"a path from {near}", hint=hint)
    return FileRef(location, box, where)


def _box(check: Checker, at: At | None) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]] | None:
    expected = "three ranges of voxels [[z0, z1], [y0, y1], [x0, x1]], each ascending"
    if at is None:
        return None
    if not isinstance(at.node, yaml.SequenceNode) or len(at.node.value) != 3:
        check.fail(at, expected=expected)
        return None
    ranges = [check.numbers(At(node, at.key), 2, expected, whole=True) for node in at.node.value]
    ends = [(int(pair[0]), int(pair[1])) for pair in ranges if pair is not None]
    if len(ends) != 3:
        return None
    if not all(0 <= low < high for low, high in ends):
        check.fail(at, expected=expected)
        return None
    return ends[0], ends[1], ends[2]


def read_labels(check: Checker, at: At | None) -> tuple[LabelFile, ...]:
    """Read label files; each has ``values`` (semantic) or ``instances``."""
    found = []
    for entry in check.items(at) if at is not None else []:
        fields = check.fields(entry, ("path", "box", "values", "instances"), ("path",))
        if not fields:
            continue
        kinds = [kind for kind in ("values", "instances") if kind in fields]
        if len(kinds) != 1:
            check.fail(
                entry,
                found="both values and instances" if kinds else "neither values nor instances",
                expected="values: {1: mito, ...} for a semantic map, or instances: ORGANELLE for one id per instance",
            )
            continue
        file = FileRef("", None, entry)
        if "path" in fields:
            reference = read_file(check, fields["path"], entry)
            file = FileRef(reference.location, _box(check, fields.get("box")), reference.at)
        values = _values(check, fields[kinds[0]], instances=kinds[0] == "instances")
        found.append(LabelFile(file, values, kinds[0] == "instances"))
    return tuple(found)


def _values(check: Checker, at: At, *, instances: bool) -> ValueMap:
    """Read ``{1: mito, 2-9: other, rest: ignore}``; for instances also one organelle, or the path of a CSV table."""
    if instances and isinstance(at.node, yaml.ScalarNode):
        text = check.text(at, expected="an organelle, {1-400: mito, ...} or a table ids.csv")
        if text is None:
            return ValueMap(())
        if text.endswith(".csv"):
            return _table(check, at, text)
        target = check.choice(at, ORGANELLES)
        return ValueMap(((1, 2**64 - 1, target),) if target else ())
    ranges: list[tuple[int, int, str]] = []
    rest = None
    for key, value in check.entries(at):
        target = check.text(value, expected=f"one of {', '.join(TARGETS)}")
        if target is not None and not is_target(target):
            hint = did_you_mean(target, ORGANELLES)
            more = f"any other structure is written other:{_folder_name(target.lower().removeprefix('other:'))}"
            check.fail(value, expected=f"one of {', '.join(TARGETS)}", hint=hint + more)
        if key.node.value == REST:
            rest = target
            continue
        span = parse_range(key.node.value)
        if span is None:
            check.fail(key, expected="a value, a range as 1-400, or the word rest")
            continue
        clash = next((old for old in ranges if old[0] <= span[1] and span[0] <= old[1]), None)
        if clash is not None:
            check.fail(key, expected=f"values that are not in {clash[0]}-{clash[1]} ({clash[2]}) too")
        ranges.append((*span, target or IGNORE))
    return ValueMap(tuple(ranges), rest)


def _table(check: Checker, at: At, text: str) -> ValueMap:
    expected = "a CSV table with the columns id and organelle"
    path = check.file.absolute().parent / text
    if not path.is_file():
        check.fail(at, found=f"{text}: no such file", expected=expected)
        return ValueMap(())
    table, fault = read_table(path)
    if fault:
        check.fail(at, found=f"{text}, {fault}", expected=f"{expected}; organelle is one of {', '.join(TARGETS)}")
    return from_table(table)


def _folder_name(text: str) -> str:
    return re.sub(r"[^a-z0-9_]+", "_", text).strip("_") or "name"


def read_extras(check: Checker, at: At | None, labels: tuple[LabelFile, ...]) -> tuple[Extra, ...]:
    """Read ``{NAME: PATH}`` (ids, or a mask) and ``{NAME: {path: PATH, values: [3]}}``: structures beside the five."""
    found: list[Extra] = []
    named = {name for label in labels for name in label.values.others}
    for key, value in check.entries(at) if at is not None else []:
        name = str(key.node.value)
        if name in ORGANELLES or re.fullmatch(EXTRA_NAME, name) is None:
            expected = "a name of letters, digits, '-' and '_' that is none of the five organelles"
            check.fail(key, found=repr(name), expected=expected, hint="organelles belong into labels")
        elif name in named:
            check.fail(key, found=f"{name}, which labels has too, as other:{name}", expected="it once")
        else:
            mask = read_mask(check, value, value)
            assert mask is not None, "there is a value"
            found.append(Extra(name, mask.file, mask.values))
    return tuple(found)


def read_mask(check: Checker, at: At | None, otherwise: At) -> Mask | None:
    """Read ``PATH`` (any value but 0 is ignored) or ``{path: PATH, values: [0]}``."""
    if at is None:
        return None
    values = None
    if isinstance(at.node, yaml.MappingNode):
        listed = next((value for key, value in at.node.value if getattr(key, "value", "") == "values"), None)
        if listed is not None:
            count = len(listed.value) if isinstance(listed, yaml.SequenceNode) else 1
            expected = "a list of the values to ignore, as [255]"
            numbers = check.numbers(At(listed, f"{at.key}.values"), max(1, count), expected, whole=True)
            values = None if numbers is None else tuple(int(number) for number in numbers)
    return Mask(read_file(check, at, otherwise, ("values",)), values)
