"""The card and the licences: what they say is what the dataset holds, and publishing can rely on it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import datasets
import pytest
import yaml

from dataset_builder import card, figures
from dataset_builder.licences import read_sources, redistributable
from dataset_builder.source import load_source
from dataset_builder.splits import SplitPolicy
from dataset_builder.stats import Stats
from em_bench_eval.errors import InputError
from em_bench_eval.schema import Organelle

SOURCES = ("lucchipp", "vnc_sstem", "hela_sbfsem", "betaseg", "openorganelle", "phantom")


def example(*names: str) -> Stats:
    stats = Stats(SplitPolicy(), sources={name: load_source(name).info for name in names or SOURCES})
    for number, (name, info) in enumerate(stats.sources.items(), start=1):
        stats.volumes[f"{name}-1"] = name
        part = "homogeneous" if number == 1 else "heterogeneous"
        for fold in ("train", "validation", "test"):
            stats.images[part, fold, "in", name] = 10 * number
        for organelle in info.annotated:
            stats.instances[name, organelle.value] = number
    return stats


def tables(markdown: str) -> list[list[list[str]]]:
    """Cells of every table, header first."""
    found: list[list[list[str]]] = [[]]
    for line in markdown.splitlines():
        if line.startswith("|"):
            found[-1].append([cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
        elif found[-1]:
            found.append([])
    return [[rows[0], *rows[2:]] for rows in found if rows]


def test_every_table_of_the_card_is_rectangular_and_nothing_is_left_to_fill_in() -> None:
    for name, text in card.texts(example(), "abc").items():
        for table in tables(text):
            assert len({len(row) for row in table}) == 1, f"{name}: {table[0]}"
        assert not re.search(r"\$\{?[a-z_]+\b", text.replace("$\\beta$", "")), name


def test_header_is_valid_and_carries_the_fingerprint() -> None:
    text = card.texts(example(), "abc")["README.md"]
    header = yaml.safe_load(text.split("---")[1])
    assert [config["config_name"] for config in header["configs"]] == ["default", "homogeneous", "wild", "volumes"]
    assert all(config["description"] == "content abc" for config in header["configs"])
    assert header["size_categories"] == ["n<1K"]
    assert header["annotations_creators"] == ["expert-generated", "machine-generated"]


def test_what_is_not_annotated_is_said_not_counted_as_zero() -> None:
    text = card.texts(example("betaseg"), "abc")["README.md"]
    composition = next(table for table in tables(text) if table[0][:2] == ["source", "modality"])
    row = dict(zip(composition[0], composition[1], strict=True))
    assert row["er"] == "–"
    assert row["endo"] == "–"
    assert row["mito"] == "1"
    assert "`er` is annotated nowhere" in text
    assert "Instance ids of betaseg are derived" in text


def test_limitations_follow_from_the_sources() -> None:
    synthetic = card.texts(example("phantom"), "abc")["README.md"]
    assert "simulated" in synthetic
    assert "annotated nowhere" not in synthetic
    assert "No specimen is held out" in synthetic
    held_out = example("lucchipp")
    held_out.images["heterogeneous", "test", "out", "lucchipp"] = 3
    assert "No specimen is held out" not in card.texts(held_out, "abc")["README.md"]


def test_licences_say_what_may_be_passed_on_and_how_to_rebuild_the_rest() -> None:
    text = card.texts(example(), "abc")["LICENSES.md"]
    (table,) = tables(text)
    said = {row[0]: row[4].strip("*") == "yes" for row in table[1:]}
    assert said == {name: load_source(name).info.redistributable for name in SOURCES}
    assert "em-bench fetch betaseg" in text
    assert "--source lucchipp --source betaseg" in text
    assert "recipe" not in card.texts(example("phantom"), "abc")["LICENSES.md"].split("* **no**")[1].splitlines()[-3]


def test_publishing_asks_every_source_that_the_folder_holds(tiny_dataset: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    folder.mkdir()
    for name in ("data", "volumes.parquet"):
        (folder / name).symlink_to(tiny_dataset / name)
    with pytest.raises(InputError, match="does not say what its sources allow"):
        redistributable(folder)
    infos = {name: load_source(name).info for name in ("lucchipp", "vnc_sstem", "hela_sbfsem")}
    texts = card.texts(Stats(SplitPolicy(), sources=infos), "abc")
    (folder / "sources.json").write_text(texts["sources.json"])
    assert redistributable(folder) == {"lucchipp": False, "vnc_sstem": True, "hela_sbfsem": True}
    # a source that is not described may not be passed on
    document = json.loads(texts["sources.json"])
    del document["sources"]["vnc_sstem"]
    (folder / "sources.json").write_text(json.dumps(document))
    assert redistributable(folder)["vnc_sstem"] is False


@pytest.mark.parametrize(
    "content", ["", "{}", '{"format": "em-organelle-wild sources v1", "sources": {"a": {}}}', "[]"]
)
def test_a_damaged_description_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "sources.json").write_text(content)
    with pytest.raises(InputError, match="does not say what its sources allow"):
        read_sources(tmp_path)


def test_card_with_figures_loads_and_shows_files_that_are_there(tiny_dataset: Path, tmp_path: Path) -> None:
    import shutil

    folder = Path(shutil.copytree(tiny_dataset, tmp_path / "em-organelle-wild"))
    rendered = figures.render(folder)
    built = json.loads((folder / "stats.json").read_text())
    stats = Stats(SplitPolicy(), sources={name: load_source(name).info for name in rendered.summary.sources})
    for entry in built["images_by"]:
        stats.images[entry["part"], entry["fold"], entry["domain"], entry["source"]] = entry["images"]
    for entry in built["instances_by"]:
        stats.instances[entry["source"], entry["organelle"]] = entry["volume_instances"]
    stats.volumes = {name: row["source"] for name, row in rendered.summary.volumes.items()}
    text = card.texts(stats, "abc", rendered)["README.md"]
    (folder / "README.md").write_text(text)
    shown = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", text)
    assert len(shown) == len(set(shown)) == 4
    assert all((folder / name).is_file() for name in shown)
    by_fold = next(table for table in tables(text) if table[0][0] == "images")
    data = datasets.load_dataset(str(folder), "wild")
    for row in by_fold[1:]:
        for fold, count in zip(("train", "validation", "test"), row[-1].split(" / "), strict=True):
            objects = sum(len(entry["objects"]) for entry in data[fold] if entry["source"] == row[0])
            assert objects == int(count.replace(",", ""))
    sizes = next(table for table in tables(text) if table[0][0] == "organelle")
    assert {row[0] for row in sizes[1:]} <= {organelle.value for organelle in Organelle}
