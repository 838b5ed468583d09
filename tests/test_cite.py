"""What to cite: BibTeX that other programs read, each work once, of the rows that were used."""

from __future__ import annotations

import contextlib
from pathlib import Path

import fake
import pytest
import replicas
from hypothesis import given
from hypothesis import strategies as st

from dataset_builder import citation
from dataset_builder.build import Job, build
from dataset_builder.citation import bibliography, merged, parse, plain, plain_text
from dataset_builder.cli_cite import cite
from dataset_builder.source import load_source, source_names
from dataset_builder.splits import SplitPolicy
from em_bench_eval.errors import InputError


def strict_parse(text: str) -> dict[str, dict[str, str]]:
    """A slow, strict BibTeX reader, letter by letter: raises ValueError for anything between or inside entries."""
    entries: dict[str, dict[str, str]] = {}
    place = 0

    def skip() -> None:
        nonlocal place
        while place < len(text) and text[place].isspace():
            place += 1

    def take(letter: str) -> None:
        nonlocal place
        skip()
        if text[place : place + 1] != letter:
            raise ValueError(f"expected {letter!r} at {text[place : place + 30]!r}")
        place += 1

    def word() -> str:
        nonlocal place
        skip()
        start = place
        while place < len(text) and (text[place].isalnum() or text[place] in "_-:."):
            place += 1
        if start == place:
            raise ValueError(f"expected a name at {text[place : place + 30]!r}")
        return text[start:place]

    def braced() -> str:
        nonlocal place
        take("{")
        start, depth = place, 1
        while depth:
            if text[place] == "\\":
                place += 1
            elif text[place] in "{}":
                depth += 1 if text[place] == "{" else -1
            place += 1
        return text[start : place - 1]

    skip()
    while place < len(text):
        take("@")
        word()
        take("{")
        key, fields = word(), {}
        if key in entries:
            raise ValueError(f"two entries are called {key}")
        skip()
        while text[place] == ",":
            take(",")
            skip()
            if text[place] == "}":
                break
            name = word()
            take("=")
            skip()
            fields[name] = braced() if text[place] == "{" else word()
            skip()
        take("}")
        entries[key] = fields
        skip()
    return entries


def every_citation() -> list[str]:
    return [load_source(name).info.citation for name in source_names()]


def test_the_bibliography_of_all_sources_is_valid_bibtex() -> None:
    entries = strict_parse(bibliography(every_citation()))
    assert {"em_organelle_wild", "em_organelle_benchmark"} <= entries.keys()
    for name in source_names():
        for entry in parse(load_source(name).info.citation):
            assert any(entry.fields.get("title", "?").split()[0] in fields["title"] for fields in entries.values()), (
                name
            )
    assert all("title" in fields for fields in entries.values())


def test_the_reader_agrees_with_the_strict_one() -> None:
    text = bibliography(every_citation())
    strict = strict_parse(text)
    ours = {entry.key: entry.fields for entry in parse(text)}
    assert ours == {
        key: {name: " ".join(value.split()) for name, value in fields.items()} for key, fields in strict.items()
    }


def test_a_work_that_two_sources_cite_is_listed_once() -> None:
    both = bibliography(load_source(name).info.citation for name in ("betaseg", "openorganelle"))
    assert both.count("10.1083/jcb.202010039") == 1


def test_a_work_has_one_key_wherever_it_is_cited() -> None:
    entries = [entry for name in source_names() for entry in parse(load_source(name).info.citation)]
    keys = {entry.identity: {other.key for other in entries if other.identity == entry.identity} for entry in entries}
    assert {work: of_work for work, of_work in keys.items() if len(of_work) > 1} == {}


def test_two_works_with_one_key_both_stay() -> None:
    one = "@article{smith2020, title = {Mitochondria}, author = {Smith, A}, doi = {10.1/a}}"
    other = "@article{smith2020, title = {Nuclei}, author = {Smith, B}, doi = {10.1/b}}"
    assert [entry.key for entry in merged([one, other, one])] == ["smith2020", "smith2020b"]
    assert len(strict_parse(bibliography([one, other]))) == 4


def test_an_entry_without_an_end_is_refused() -> None:
    with pytest.raises(InputError, match="does not end"):
        bibliography(["@article{broken, title = {No {end}, year = {2020}"])


@given(st.lists(st.text("ab {}\\\"'@,=é", max_size=30), max_size=3))
def test_any_text_is_read_or_refused(texts: list[str]) -> None:
    with contextlib.suppress(InputError):
        assert len({entry.key for entry in merged(texts)}) == len(merged(texts))


@pytest.mark.parametrize(
    ("latex", "text"),
    [
        (r"M{\"u}ller", "Müller"),
        (r"Karaba{\u{g}}", "Karabağ"),
        (r"{\v{Z}}erovnik Meku{\v{c}}", "Žerovnik Mekuč"),
        (r"Aur{\'e}lien", "Aurélien"),
        (r"primary mouse {$\beta$} cells", "primary mouse β cells"),
        ("474--486", "474–486"),
        (r"dataset\_builder", "dataset_builder"),
        (r"Stra{\ss}e", "Straße"),
    ],
)
def test_latex_becomes_text(latex: str, text: str) -> None:
    assert plain(latex) == text


def test_plain_text_is_a_numbered_list_without_latex() -> None:
    lines = plain_text(every_citation()).splitlines()
    assert [line.split("]")[0] for line in lines] == [f"[{number}" for number in range(1, len(lines) + 1)]
    assert not any(letter in line for line in lines for letter in "{}\\$")
    assert any("https://doi.org/10.1083/jcb.202010039" in line for line in lines)


def test_the_command_names_the_sources_of_the_rows_that_were_asked_for(
    tiny_dataset: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def keys(*arguments: str) -> set[str]:
        assert cite([*arguments, str(tiny_dataset)]) == 0
        return set(strict_parse(capsys.readouterr().out)) - {"em_organelle_wild", "em_organelle_benchmark"}

    of = {name: {entry.key for entry in parse(load_source(name).info.citation)} for name in
          ("lucchipp", "vnc_sstem", "hela_sbfsem")}  # fmt: skip
    assert keys() == set().union(*of.values())
    assert keys("--config", "homogeneous") == of["lucchipp"]
    assert keys("--split", "homogeneous") == of["lucchipp"]
    assert keys("--config", "wild", "--split", "train") == of["lucchipp"] | of["vnc_sstem"]  # HeLa is held out
    assert keys("--config", "wild", "--source", "vnc_sstem") == of["vnc_sstem"]
    assert keys("--config", "volumes") == set().union(*of.values())
    out = tmp_path / "used.txt"
    assert cite(["--plain", "--out", str(out), str(tiny_dataset)]) == 0
    assert out.read_text() == plain_text(load_source(name).info.citation for name in of)


def test_labels_without_an_image_are_cited_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    replicas.urocell(tmp_path, with_images=False)
    fake.vnc_sstem(tmp_path)
    out = tmp_path / "em-organelle-wild"
    build([Job.of(name, tmp_path, {}) for name in ("urocell", "vnc_sstem")], out, SplitPolicy())
    assert cite([str(out)]) == 0
    assert {"gerhard2013", "zerovnikmekuc2020"} <= set(strict_parse(capsys.readouterr().out))
    assert cite([str(out), "--source", "urocell"]) == 0
    assert "zerovnikmekuc2020" in capsys.readouterr().out
    assert cite([str(out), "--config", "wild"]) == 0  # no row is of it
    assert "zerovnikmekuc2020" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config", "wlid"], "did you mean 'wild'"),
        (["--config", "wild", "--split", "tset"], "did you mean 'test'"),
        (["--source", "luchipp"], "did you mean 'lucchipp'"),
    ],
)
def test_a_misspelt_name_is_corrected(tiny_dataset: Path, arguments: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        cite([*arguments, str(tiny_dataset)])


def test_what_is_no_dataset_is_refused(tmp_path: Path) -> None:
    for name in (str(tmp_path), "no-such-folder"):
        with pytest.raises(InputError, match="there is no dataset"):
            cite([name])


def test_the_paper_and_the_benchmark_are_always_cited() -> None:
    assert bibliography([]).startswith(citation.BENCHMARK)
    assert citation.PAPER in bibliography([])
