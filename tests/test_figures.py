"""The figures of a dataset: counted right, the same bytes twice, and nothing decoded that need not be."""

from __future__ import annotations

import io
import shutil
from collections import Counter
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dataset_builder import figures
from dataset_builder.build import Job, build
from dataset_builder.figures_canvas import Canvas, ascii_of, round_ticks, shortened, text_width
from dataset_builder.figures_pictures import read_instance
from dataset_builder.figures_summary import SIZES, Sizes, summarise
from dataset_builder.splits import SplitPolicy
from dataset_builder.volumes import open_array
from em_bench_eval.errors import InputError
from em_bench_eval.schema import Organelle
from lpa.signs import THRESHOLDS


@pytest.fixture(scope="session")
def five_organelles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small dataset with all five organelles."""
    out = tmp_path_factory.mktemp("figures") / "phantom"
    build([Job.of("phantom", None, {"shape": "32,128,128", "setups": "fibsem8"})], out, SplitPolicy())
    return out


def test_summary_equals_a_count_of_all_rows(tiny_dataset: Path) -> None:
    summary = summarise(tiny_dataset)
    images: Counter[tuple[str, str, str]] = Counter()
    objects: Counter[tuple[str, str, str]] = Counter()
    areas: dict[str, list[float]] = {}
    for row in datasets.load_dataset(str(tiny_dataset), split="wild"):
        images[row["source"], row["fold"], row["domain"]] += 1
        for entry in row["objects"]:
            objects[row["source"], row["fold"], entry["organelle"]] += 1
            areas.setdefault(entry["organelle"], []).append(entry["area"] * np.prod(row["pixel_size_nm"]))
    assert summary.images == images
    assert summary.objects == objects
    table = pq.read_table(tiny_dataset / "instances.parquet").to_pylist()
    source_of = {name: row["source"] for name, row in summary.volumes.items()}
    counted = Counter((source_of[row["volume_id"]], row["organelle"]) for row in table)
    assert {key: count for key, count in summary.instances.items() if count} == counted
    for organelle in Organelle:
        found = areas.get(organelle.value, [])
        assert summary.area_nm2[organelle].count == len(found)
        own = [row["volume_nm3"] for row in table if row["organelle"] == organelle.value]
        assert summary.volume_nm3[organelle].count == len(own)


@given(st.lists(st.tuples(st.floats(1, 1e14), st.booleans()), min_size=1, max_size=40), st.floats(0.01, 1))
def test_quantiles_are_those_of_the_whole_instances_to_three_per_cent(
    entries: list[tuple[float, bool]], share: float
) -> None:
    values, cut = np.array([size for size, _ in entries]), np.array([is_cut for _, is_cut in entries])
    sizes = Sizes()
    sizes.add(values, cut)
    whole = np.sort(values[~cut])
    found = sizes.quantile(share)
    if not len(whole):
        assert found is None
        return
    expected = whole[max(1, int(np.ceil(share * len(whole)))) - 1]
    assert found == pytest.approx(expected, rel=0.03)


def test_examples_are_a_small_a_middle_and_the_largest_instance(five_organelles: Path) -> None:
    summary = summarise(five_organelles)
    rows = pq.read_table(five_organelles / "instances.parquet").to_pylist()
    assert set(summary.examples) == set(Organelle)
    for organelle, examples in summary.examples.items():
        own = [row for row in rows if row["organelle"] == organelle.value]
        least = THRESHOLDS[organelle].min_volume_nm3
        usable = [row for row in own if not row["touches_border"] and row["volume_nm3"] >= least]
        if len(usable) < len(SIZES):
            usable = [row for row in own if row["volume_nm3"] >= least] or own
        largest = max(row["volume_nm3"] for row in usable)
        assert examples["large"].volume_nm3 == pytest.approx(largest, rel=0.03)
        assert examples["small"].volume_nm3 <= examples["middle"].volume_nm3 <= examples["large"].volume_nm3


def test_an_instance_is_read_whole_and_coarser_where_it_is_too_large(
    five_organelles: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    summary = summarise(five_organelles)
    example = summary.examples[Organelle.NUCLEUS]["large"]
    mask, voxel_nm = read_instance(summary, example)
    labels = five_organelles / "volumes" / f"{example.volume_id}.zarr/labels/instances"
    ids = np.asarray(open_array(labels / "s0").read().result())
    assert mask.sum() == (ids == example.instance_id).sum() == example.voxels
    monkeypatch.setattr("dataset_builder.figures_pictures.MESH_VOXELS", mask.size - 1)
    coarse, coarse_nm = read_instance(summary, example)
    assert coarse.size < mask.size
    assert coarse_nm > voxel_nm
    assert coarse.sum() * np.prod(coarse_nm) == pytest.approx(mask.sum() * np.prod(voxel_nm), rel=0.1)


def test_figures_are_the_same_bytes_twice_and_pictures_that_open(five_organelles: Path) -> None:
    first = figures.render(five_organelles)
    bytes_of = {figure.path: (five_organelles / figure.path).read_bytes() for figure in first.figures}
    assert list(bytes_of) == [
        "figures/composition.png", "figures/sizes.png", "figures/meshes.png", "figures/overlays-1.jpg",
    ]  # fmt: skip
    stale = five_organelles / "figures" / "overlays-9.jpg"
    stale.write_bytes(b"of an earlier dataset with more sources")
    again = figures.render(five_organelles)
    assert {figure.path: (five_organelles / figure.path).read_bytes() for figure in again.figures} == bytes_of
    assert not stale.exists()
    for content in bytes_of.values():
        picture = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
        assert picture.shape[1] == 1640
        assert picture.std() > 10, "an empty sheet"
        assert (picture[:, -10:] > 240).all(), "something runs over the right margin"


def test_images_are_decoded_for_one_row_of_a_source_only(
    tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import dataset_builder.figures_pictures as pictures

    folder = Path(shutil.copytree(tiny_dataset, tmp_path / "copy"))
    decoded = []
    decode = pictures.decode_row
    monkeypatch.setattr(pictures, "decode_row", lambda row: (decoded.append(row["source"]), decode(row))[1])
    rendered = figures.render(folder)
    assert sorted(decoded) == sorted(rendered.summary.sources)


def test_many_sources_and_cell_types_fit(tiny_dataset: Path) -> None:
    summary = summarise(tiny_dataset)
    for number in range(60):
        summary.cell_types[f"cell type with a rather long name, number {number}", "train", "in"] = 1000 + number
        summary.images[f"source_{number}", "train", "in"] = 10 ** number.bit_length()
    canvas = figures.composition(summary)
    assert canvas.picture.height < 2400


@given(st.text(max_size=20))
def test_any_text_can_be_drawn(text: str) -> None:
    assert ascii_of(text).isascii()
    Canvas(80, 20).text(2, 10, text.replace("\n", " "))


def test_greek_and_accents_are_spelt_out() -> None:
    assert ascii_of("β cell, Müller, 5 µm, α–β") == "beta cell, Muller, 5 um, alpha-beta"


@given(st.text("abcdefgh ", min_size=1, max_size=40), st.floats(20, 200))
def test_shortened_text_fits(text: str, width: float) -> None:
    assert text_width(shortened(text, width)) <= width


@given(st.integers(1, 10**7))
def test_ticks_are_few_and_within_the_axis(top: int) -> None:
    ticks = round_ticks(top)
    assert ticks[0] == 0
    assert ticks[-1] <= top
    assert 1 <= len(ticks) <= 6


def test_what_is_no_dataset_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a dataset folder"):
        figures.render(tmp_path)
