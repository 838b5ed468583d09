"""BibTeX of what a dataset is made of: read apart, without repeats, as BibTeX or as plain text."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from em_bench_eval.errors import InputError, did_you_mean

BENCHMARK = """@misc{em_organelle_wild,
  title = {em-organelle-wild: a multi-source benchmark for instance segmentation of organelles in electron microscopy},
  author = {{The em-organelle-wild authors}},
  year = {2026}
}"""
# the benchmark's paper also defines the 3D label propagation (LPA) that instance ids come from, in its section 3.2
PAPER = """@article{em_organelle_benchmark,
  title = {Large-scale {EM} Benchmark for Multi-Organelle Instance Segmentation in the Wild},
  author = {{The authors of arXiv:2601.12464}},
  journal = {arXiv preprint arXiv:2601.12464},
  year = {2026},
  note = {benchmark; 3D label propagation (LPA): section 3.2}
}"""
ACCENTS = {'"': "\u0308", "'": "\u0301", "`": "\u0300", "^": "\u0302", "~": "\u0303", "=": "\u0304", ".": "\u0307",
           "c": "\u0327", "v": "\u030c", "u": "\u0306", "r": "\u030a", "k": "\u0328", "H": "\u030b"}  # fmt: skip
LETTERS = {"ss": "ß", "o": "ø", "O": "Ø", "l": "ł", "L": "Ł", "ae": "æ", "AE": "Æ", "aa": "å", "AA": "Å", "i": "ı"}


@dataclass(frozen=True)
class Entry:
    """One BibTeX entry; ``fields`` are as written, without the outer braces."""

    kind: str
    key: str
    fields: Mapping[str, str]
    text: str

    @property
    def identity(self) -> str:
        """What makes two entries the same work: the DOI, else the title."""
        doi = self.fields.get("doi", "").lower().removeprefix("https://doi.org/")
        return doi or re.sub(r"\W+", " ", plain(self.fields.get("title", self.key)).lower()).strip()


def parse(text: str) -> Iterator[Entry]:
    """Yield the entries of a BibTeX text; raises ``InputError`` for an entry that does not end."""
    for start in re.finditer(r"@(\w+)\s*\{\s*([^\s,{}]+)\s*,", text):
        if _depth(text[: start.start()]):
            continue  # an @ inside another entry
        end = _closing(text, start.end())
        if end is None:
            raise InputError(
                f"the BibTeX entry {start[2]} does not end",
                found=text[start.start() : start.start() + 60],
                expected="as many closing braces as opening ones",
            )
        body = text[start.end() : end]
        yield Entry(start[1].lower(), start[2], dict(_fields(body)), text[start.start() : end + 1])


def _depth(text: str) -> int:
    return text.count("{") - text.count("\\{") - text.count("}") + text.count("\\}")


def _closing(text: str, start: int) -> int | None:
    """Place of the brace that closes one opened before ``start``."""
    depth = 1
    for brace in re.finditer(r"\\.|[{}]", text[start:]):
        depth += {"{": 1, "}": -1}.get(brace[0], 0)
        if depth == 0:
            return start + brace.start()
    return None


def _fields(body: str) -> Iterator[tuple[str, str]]:
    place = 0
    while (name := re.compile(r"\s*,?\s*(\w+)\s*=\s*").match(body, place)) is not None:
        place = name.end()
        if body[place : place + 1] == "{":
            end = _closing(body, place + 1)
            stop = len(body) if end is None else end
            value, place = body[place + 1 : stop], stop + 1
        elif body[place : place + 1] == '"':
            stop = body.find('"', place + 1)
            stop = len(body) if stop < 0 else stop
            value, place = body[place + 1 : stop], stop + 1
        else:
            bare = re.compile(r"[^,\s]+").match(body, place)
            value, place = (bare[0], bare.end()) if bare else ("", len(body))
        yield name[1].lower(), " ".join(value.split())


def merged(texts: Iterable[str]) -> list[Entry]:
    """Return the entries of all texts in order, each work once; a key that two works share gets a letter."""
    works: dict[str, Entry] = {}
    keys: set[str] = set()
    for text in texts:
        for entry in parse(text):
            if entry.identity in works:
                continue
            key = entry.key
            for letter in "bcdefghijklmnopqrstuvwxyz":
                if key not in keys:
                    break
                key = entry.key + letter
            if key != entry.key:
                entry = Entry(entry.kind, key, entry.fields, entry.text.replace(entry.key, key, 1))
            keys.add(key)
            works[entry.identity] = entry
    return list(works.values())


def bibliography(citations: Iterable[str]) -> str:
    """Return ``CITATION.bib``: the benchmark, its paper, and every source's own entries, each work once."""
    return "\n\n".join(entry.text for entry in merged([BENCHMARK, PAPER, *citations])) + "\n"


def plain_text(citations: Iterable[str]) -> str:
    """Return the same as a numbered list for readers."""
    entries = merged([BENCHMARK, PAPER, *citations])
    return "\n".join(f"[{number}] {_reference(entry.fields)}" for number, entry in enumerate(entries, start=1)) + "\n"


def _reference(fields: Mapping[str, str]) -> str:
    names = [plain(name) for name in _authors(fields.get("author", ""))]
    people = ", ".join(names[:3]) + (" et al." if len(names) > 3 or names[-1:] == ["others"] else "")
    people = people.replace(", others", "")
    volume = fields.get("volume", "") + (f"({fields['number']})" if "number" in fields else "")
    pages = fields.get("pages", "")
    where = " ".join(part for part in (plain(fields.get("journal", fields.get("publisher", ""))), volume) if part)
    where += f": {plain(pages)}" if pages else ""
    parts = [f"{people} ({fields['year']})" if "year" in fields else people, plain(fields.get("title", "")), where]
    parts += [plain(fields[name]) for name in ("note", "howpublished") if name in fields]
    if "doi" in fields:
        parts.append(f"https://doi.org/{fields['doi'].removeprefix('https://doi.org/')}")
    return ". ".join(part.rstrip(".") for part in parts if part) + "."


def _authors(text: str) -> list[str]:
    """Split at ``and`` outside braces; ``Last, First`` becomes ``Last F.``."""
    names: list[str] = []
    current: list[str] = []
    depth = 0
    for word in text.split():
        if word == "and" and depth == 0:
            names.append(" ".join(current))
            current = []
            continue
        depth += _depth(word)
        current.append(word)
    names.append(" ".join(current))
    return [_short_name(name) for name in names if name]


def _short_name(name: str) -> str:
    last, comma, first = name.partition(", ")
    if not comma or (name.startswith("{") and _closing(name, 1) == len(name) - 1):
        return name
    return f"{last} {''.join(part[0] for part in plain(first).replace('-', ' ').split())}"


def plain(text: str) -> str:
    """Turn LaTeX of titles and names into Unicode: accents, Greek letters, dashes; braces go."""
    text = re.sub(r"\\([\"'`^~=.])\s*\{?\\?([A-Za-z])\}?", lambda found: _accented(found[1], found[2]), text)
    text = re.sub(r"\\([cvurkH])\s*\{\\?([A-Za-z])\}", lambda found: _accented(found[1], found[2]), text)
    text = re.sub(r"\\(ss|ae|AE|aa|AA|[oOlLi])(?![A-Za-z])\s?", lambda found: LETTERS[found[1]], text)
    text = re.sub(r"\\([a-z]+)(?![A-Za-z])\s?", lambda found: _greek(found[1]), text)
    text = re.sub(r"\\([&%_#$])", r"\1", text)
    text = text.replace("---", "—").replace("--", "–").replace("~", " ").replace("$", "")
    return " ".join(re.sub(r"[{}]", "", text).split())


def _accented(accent: str, letter: str) -> str:
    return unicodedata.normalize("NFC", letter + ACCENTS[accent])


def _greek(name: str) -> str:
    try:
        return unicodedata.lookup(f"GREEK SMALL LETTER {name.upper()}")
    except KeyError:
        return name


def cited(rows: Iterable[Mapping[str, Any]], sources: Iterable[str] = ()) -> dict[str, str]:
    """Return source -> BibTeX of rows with the columns ``source`` and ``citation``, in the order of the rows.

    Raises:
        InputError: a source in ``sources`` that no row comes from.
    """
    found: dict[str, str] = {}
    for row in rows:
        found.setdefault(row["source"], row["citation"])
    wanted = list(sources)
    for name in wanted:
        if name not in found:
            raise InputError(
                f"no row comes from the source {name!r}",
                found=f"rows of {', '.join(sorted(found)) or 'no source'}",
                remedy=f"{did_you_mean(name, found)}drop --source, or choose another split",
            )
    return {name: text for name, text in found.items() if not wanted or name in wanted}
