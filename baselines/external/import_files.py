"""Which file of a folder of results is the prediction of which case: every fault of a folder is found at once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from baselines.external.nnunet_layout import IMAGE_SUFFIX, Case
from em_bench_eval.errors import InputError
from em_bench_eval.schema import ORGANELLES
from em_bench_eval.volume_files import known_suffixes

TREES = (".ome.zarr", ".zarr", ".n5")  # folders that are one array
PROBABILITIES = ".npz"  # what nnU-Net's --save_probabilities writes beside each result
PATTERNS = ("{organelle}/{case}", "{case}/{organelle}", "{case}_{organelle}", "{organelle}_{case}")
ANY = ""  # organelle of a file that holds several, or whose name says none
SHOWN = 12


@dataclass
class Results:
    """The files found: of each case, by organelle (``ANY`` where the name says none); and what is wrong."""

    of_case: dict[str, dict[str, Path]] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    @property
    def organelles(self) -> tuple[str, ...]:
        """The organelles that file names say, in the usual order."""
        named = {name for files in self.of_case.values() for name in files}
        return tuple(name for name in ORGANELLES if name in named)


def find_results(
    place: Path, cases: Iterable[Case], needed: Sequence[str], pattern: str | None, probabilities: bool
) -> Results:
    """Match the files of a folder (or one file) to cases by name.

    A file is called like its case, with or without ``_0000``, and says its organelle by a folder or a part of its name
    (``PATTERNS``); ``pattern`` replaces those, as ``"{case}_{organelle}_seg"``. Images of ``needed`` cases without a
    file, two files of one case, and files that are of no case are faults; other kinds of files are passed over.
    """
    known = _expected([case.name for case in cases], pattern)
    results = Results()
    suffixes = (PROBABILITIES,) if probabilities else (*known_suffixes(), *TREES)
    strangers: list[str] = []
    if not place.exists():
        raise InputError(f"there is nothing at {place}", expected="a folder of results, or one result")
    for path, stem in _entries(place, known, suffixes):
        match = known.get(stem)
        if match is None:
            strangers.append(path.relative_to(place).as_posix() if path != place else path.name)
            continue
        case, organelle = match
        files = results.of_case.setdefault(case, {})
        if organelle in files:
            results.faults.append(f"{case}: two results, {files[organelle].name} and {path.name}")
        files[organelle] = path
    _complain(results, needed, strangers)
    return results


def _complain(results: Results, needed: Sequence[str], strangers: list[str]) -> None:
    named = results.organelles
    for case in needed:
        files = results.of_case.get(case)
        if files is None:
            results.faults.append(f"{case}: no result")
        elif ANY in files and len(files) > 1:
            results.faults.append(f"{case}: {files[ANY].name}, and others by organelle")
        elif ANY not in files and set(files) != set(named):
            results.faults.append(f"{case}: no result of {', '.join(name for name in named if name not in files)}")
    results.faults += [f"{name}: of no known case" for name in strangers]


def _expected(cases: Sequence[str], pattern: str | None) -> dict[str, tuple[str, str]]:
    """Return what each possible name without its suffix means: ``(case, organelle)``."""
    if pattern is not None and "{case}" not in pattern:
        raise InputError("--pattern must contain {case}", found=pattern, expected="for instance '{case}_{organelle}'")
    patterns = PATTERNS if pattern is None else (pattern,)
    known: dict[str, tuple[str, str]] = {}
    for case in cases:
        for name in (case, case + IMAGE_SUFFIX):
            if pattern is None or "{organelle}" not in pattern:
                known[name if pattern is None else pattern.replace("{case}", name)] = (case, ANY)
            for each in patterns:
                if "{organelle}" in each:
                    for organelle in ORGANELLES:
                        stem = each.replace("{case}", name).replace("{organelle}", organelle)
                        known.setdefault(stem, (case, organelle))
    return known


def _entries(
    place: Path, known: Mapping[str, tuple[str, str]], suffixes: tuple[str, ...]
) -> Iterator[tuple[Path, str]]:
    """Yield every possible result, and its name relative to ``place`` without the suffix."""
    if place.is_file() or place.name.endswith(TREES):
        yield place, _stem(place.name, suffixes)
        return
    folders = [(place, "")]
    while folders:
        folder, prefix = folders.pop()
        for path in sorted(folder.iterdir()):
            stem = prefix + _stem(path.name, suffixes)
            if path.name.startswith("."):
                continue
            is_array = path.is_dir() and (stem in known or path.name.endswith(TREES))
            if is_array or (path.is_file() and path.name.lower().endswith(suffixes)):
                yield path, stem
            elif path.is_dir() and not prefix:
                folders.append((path, f"{path.name}/"))


def _stem(name: str, suffixes: tuple[str, ...]) -> str:
    fitting = [suffix for suffix in suffixes if name.lower().endswith(suffix)]
    return name[: -max(map(len, fitting))] if fitting else name


def raise_faults(faults: Sequence[str], place: Path, cases: Sequence[str], remedy: str) -> None:
    """Raise all faults of a folder as one ``InputError``."""
    if faults:
        shown = [*faults[:SHOWN], *(["..."] if len(faults) > SHOWN else [])]
        raise InputError(
            f"the results in {place} do not fit the dataset: {len(faults)} faults",
            found="\n    ".join(["", *shown]),
            expected=f"one result for each of {len(cases)} cases, called like {', '.join(cases[:2])}",
            remedy=remedy,
        )
