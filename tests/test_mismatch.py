from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from scipy import ndimage

from baselines.aggregation.aggregation_levels import ALL, LEVELS, Cuts
from baselines.aggregation.aggregation_sides import ArrayMaps, Reference, reference_of_arrays
from baselines.aggregation.mismatch import AGGREGATIONS, Mismatch, OrganelleMismatch, check_same_pixels, gaps, mismatch
from baselines.aggregation.mismatch_figure import figure
from baselines.aggregation.mismatch_report import as_csv, format_table
from baselines.aggregation.mismatch_statement import main_cause, statement
from baselines.cli_mismatch import mismatch as command
from baselines.volumes.map_store import create_maps
from em_bench_eval.errors import InputError
from lpa import label

CUTS = Cuts(patch=24, block=24)
ORGANELLES = ("mito", "er")


def field(shape: tuple[int, ...], sigma: float, seed: int) -> np.ndarray:
    values = ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal(shape), sigma, mode="wrap")
    return np.asarray(values / values.std())


@pytest.fixture(scope="module")
def cell() -> Reference:
    """Sheets of ER (components of a level set), beside it two mitochondria that touch in a wide face."""
    shape = (28, 48, 80)
    ids = np.zeros(shape, np.uint32)
    sheets = np.abs(field(shape, 2.5, 3)) < 0.2
    sheets[:, :, 50:] = False
    ids[sheets] = label(sheets.astype(np.uint8), 26, "compact")[sheets]
    first = int(ids.max()) + 1
    z, y, x = np.indices(shape)
    ball = (z - 14) ** 2 + (y - 24) ** 2 + (x - 65) ** 2 < 12**2
    ids[ball] = np.where(y[ball] < 22, first, first + 1)
    table = dict.fromkeys(range(1, first), "er") | {first: "mito", first + 1: "mito"}
    return reference_of_arrays(ids, table, (8, 8, 8), annotated=ORGANELLES, name="cell")


def probabilities(cell: Reference, noise: float) -> ArrayMaps:
    """Maps of the cell with correlated errors; without noise the semantic map is perfect."""
    shape = cell.shape
    classes = cell.classes((slice(0, shape[0]), slice(0, shape[1]), slice(0, shape[2])))
    values = []
    for number, value in enumerate((1, 3)):
        mask = (classes == value).astype(np.float64)
        logit = 2 * ndimage.gaussian_filter(mask, 1) + 2 * mask - 2 + noise * field(shape, 2, number)
        values.append(1 / (1 + np.exp(-4 * logit)))
    stacked = np.stack(values)
    return ArrayMaps(ORGANELLES, stacked / np.maximum(stacked.sum(0), 1))


@pytest.fixture(scope="module")
def perfect(cell: Reference) -> Mismatch:
    return mismatch(cell, None, cuts=CUTS, min_edge_nm=0)


@pytest.fixture(scope="module")
def predicted(cell: Reference) -> Mismatch:
    return mismatch(cell, probabilities(cell, 0.7), cuts=CUTS, min_edge_nm=30)


def test_sheets_lose_their_score_to_the_definition_of_ids(perfect: Mismatch) -> None:
    """The order of models.md 6.1: A = 1, B low, C no better than B, blocks far below G = 1."""
    er = perfect.organelles["er"]
    at = {level: er.value(level, "dice__size", "oracle") or 0.0 for level in ALL}
    assert at["L0"] == at["L5"] == at["L2 pieces"] == at["L5 in slices"] == 1.0
    assert at["L1"] < 0.75
    assert at["L2"] < at["L1"]
    assert at["L4"] < 0.5
    assert at["L3"] > 0.95
    assert main_cause(er, "dice__size", "oracle") == "gap_id"
    assert er.value("L1", "dice__size", "oracle") == pytest.approx(er.fragmentation["patch"].dice_size)
    assert er.value("L2", "dice__reference", "oracle") == pytest.approx(er.fragmentation["slice"].dice_mean)


def test_touching_bodies_lose_it_to_contacts(perfect: Mismatch) -> None:
    mito = perfect.organelles["mito"]
    assert mito.value("L5", "n_prediction", "oracle") == 1
    assert mito.value("L5", "n_reference", "oracle") == 2
    gap = gaps(mito, "dice__size", "oracle")
    assert gap["gap_id"] == pytest.approx(0.0, abs=0.02)
    assert (gap["contacts"] or 0) > 0.05
    assert main_cause(mito, "dice__size", "oracle") == "contacts"
    assert "The main cause is touching instances." in statement(perfect)


def test_the_parts_add_up_to_what_is_lost(predicted: Mismatch) -> None:
    for part in predicted.organelles.values():
        for key in AGGREGATIONS:
            for semantics in ("predicted", "oracle"):
                gap = {name: value for name, value in gaps(part, key, semantics).items() if value is not None}
                assert gap["gap_id"] + gap["pixels"] + gap["contacts"] == pytest.approx(gap["lost"])
                assert gap["gap_pixel"] + gap["rule"] == pytest.approx(gap["left"])
                assert gap["lost"] - gap["gap_stitch"] == pytest.approx(gap["left"])
                if semantics == "oracle":
                    assert gap["pixels"] == gap["gap_pixel"] == 0.0
            l0, l1, l5 = (part.value(level, key, "predicted") or 0.0 for level in ("L0", "L1", "L5"))
            gap = gaps(part, key)
            assert (gap["gap_id"], gap["gap_stitch"]) == (l0 - l1, l5 - l1)
            assert gap["gap_pixel"] == (part.value("L5", key, "oracle") or 0.0) - l5


def test_imperfect_pixels_show_up_as_such(predicted: Mismatch) -> None:
    er = predicted.organelles["er"]
    dice = er.value("L0", "semantic_dice", "predicted") or 0.0
    assert 0.8 < dice < 0.99
    assert er.value("L0", "semantic_dice", "oracle") == 1.0
    assert (gaps(er, "dice__size")["gap_pixel"] or 0.0) > 0.005
    assert (gaps(er, "dice__size")["gap_id"] or 0.0) > 0.2


def test_a_level_that_changes_pixels_is_an_error(perfect: Mismatch) -> None:
    levels = {s: {name: dict(keys) for name, keys in by.items()} for s, by in perfect.organelles["er"].levels.items()}
    check_same_pixels({"er": OrganelleMismatch(levels, {})})
    levels["oracle"]["L3"]["semantic_dice"] = 0.999
    with pytest.raises(ArithmeticError, match="semantic_dice of er"):
        check_same_pixels({"er": OrganelleMismatch(levels, {})})


def test_the_statement_tells_the_numbers(predicted: Mismatch) -> None:
    for key in AGGREGATIONS:
        text = next(line for line in statement(predicted, key).splitlines() if line.startswith("er:"))
        gap = {name: round(value or 0.0, 2) + 0.0 for name, value in gaps(predicted.organelles["er"], key).items()}
        lost, ids, pixels, contacts = re.findall(
            r"Of the (\S+) lost, (\S+) is the definition of an instance, (\S+) pixels and (\S+) touching", text
        )[0]
        assert [float(lost), float(ids), float(pixels), float(contacts)] == [
            gap[name] for name in ("lost", "gap_id", "pixels", "contacts")
        ]
        assert f"{gap['gap_stitch']:+.2f}" in text
        assert "In 3D blocks of 24 voxels" in text


def test_figure_and_tables_hold_every_level(predicted: Mismatch, perfect: Mismatch) -> None:
    for found in (predicted, perfect):
        drawing = ElementTree.fromstring(figure(found, "dice__size"))
        words = ["".join(text.itertext()) for text in drawing.iter("{http://www.w3.org/2000/svg}text")]
        assert {"ER", "Mitochondria", *LEVELS} <= set(words)
        assert any(word.startswith("gap_stitch") for word in words)
        for shape in drawing.iter("{http://www.w3.org/2000/svg}rect"):
            assert 0 <= float(shape.get("x", 0)) <= float(drawing.get("width", 0)) - float(shape.get("width", 0)) + 0.1
            assert (
                0 <= float(shape.get("y", 0)) <= float(drawing.get("height", 0)) - float(shape.get("height", 0)) + 0.1
            )
    lines = list(csv.DictReader(as_csv(predicted).splitlines()))
    assert len(lines) == 2 * 2 * len(ALL)
    for line in lines:
        value = predicted.organelles[line["organelle"]].value(line["level"], "dice__size", line["pixels"])
        assert float(line["dice__size"]) == value
    assert "f in each patch: mean" in format_table(predicted)


def test_the_command_writes_everything(
    cell: Reference, predicted: Mismatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    maps = probabilities(cell, 0.7)
    store = create_maps(tmp_path / "maps", maps.names, maps.shape, (8, 8, 8))
    truth = _volume(cell, tmp_path)
    arguments = ["--maps", str(tmp_path / "maps"), "--reference", truth, "--voxel-size-nm", "8,8,8"]
    arguments += ["--patch", "24", "--block", "24", "--min-edge-nm", "30", "--out", str(tmp_path / "out")]
    with pytest.raises(InputError, match="not complete"):
        command(arguments)
    for block in store.missing():
        store.write(block, maps.read(store.box(block)))
    assert command(arguments) == 0
    printed = capsys.readouterr().out
    assert "gap_id" in printed
    assert "er: patches score" in printed
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["mismatch.csv", "mismatch.json", "mismatch.svg", "mismatch.txt"]
    content = json.loads((tmp_path / "out" / "mismatch.json").read_text())
    assert content["cuts"]["patch"] == 24
    er = content["organelles"]["er"]
    assert set(er["levels"]["predicted"]) == set(ALL)
    assert set(er["gaps"]["predicted"]) == set(AGGREGATIONS)
    assert er["fragmentation"]["slice"]["f_mean"] < 0.9
    # float16 maps on disk, and ids by organelle: the same up to the rounding of probabilities
    expected = predicted.organelles["er"].value("L1", "dice__size", "predicted")
    assert er["levels"]["predicted"]["L1"]["dice__size"] == pytest.approx(expected, abs=0.01)


def test_perfect_maps_and_the_oracle_agree(cell: Reference) -> None:
    found = mismatch(cell, probabilities(cell, 0.0), cuts=CUTS)
    for part in found.organelles.values():
        assert part.levels["predicted"] == part.levels["oracle"]


def test_the_oracle_needs_no_model(cell: Reference, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    truth = _volume(cell, tmp_path)
    common = ["--reference", truth, "--voxel-size-nm", "8,8,8", "--out", str(tmp_path / "out")]
    assert command([*common, "--oracle", "--patch", "96"]) == 0
    printed = capsys.readouterr().out
    assert "with perfect pixels" in printed
    assert "A patch covers a whole slice" in printed
    with pytest.raises(InputError, match="nothing to aggregate"):
        command(common)


def test_unusable_maps_are_refused(cell: Reference) -> None:
    maps = probabilities(cell, 0.0)
    with pytest.raises(InputError, match="differ in shape"):
        mismatch(cell, ArrayMaps(maps.names, maps.values[:, 1:]))
    with pytest.raises(InputError, match="nothing to compare"):
        mismatch(cell, ArrayMaps(("golgi",), maps.values[:1]))
    found = mismatch(cell, ArrayMaps(("er",), maps.values[1:]), cuts=CUTS)
    assert (set(found.organelles), found.not_predicted) == ({"er"}, ("mito",))
    assert "not predicted by this model: mito" in statement(found)


def test_real_mitochondria_come_near_the_measured_table(real_data: Path) -> None:
    """UroCell, expert instances, perfect pixels; models.md 6.1 has B .99, C .99, F .91 for a whole volume."""
    from em_bench_eval.volume_io import open_volume

    ids = np.asarray(open_volume(real_data / "urocell_labels/mito/instance/fib1-3-3-0.nii.gz").as_labels()[96:144])
    table = {int(id_): "mito" for id_ in np.unique(ids) if id_}
    truth = reference_of_arrays(ids.astype(np.uint32), table, (15, 16, 16))
    found = mismatch(truth, cuts=Cuts(patch=128, block=128), min_edge_nm=0).organelles["mito"]
    at = {level: found.value(level, "dice__reference", "oracle") or 0.0 for level in ALL}
    assert at["L0"] > 0.999
    assert 0.97 < at["L2"] <= at["L1"] < 1.0
    assert at["L5"] > 0.98
    assert at["L4"] < 0.97
    assert (found.fragmentation["slice"].f_mean or 0) > 0.95


def _volume(cell: Reference, folder: Path) -> str:
    """Write the cell as a folder with one label map per organelle."""
    import tifffile

    box = cell.read(tuple(slice(0, size) for size in cell.shape))  # type: ignore[arg-type]
    for name, value in (("mito", 1), ("er", 3)):
        target = folder / "truth" / f"{name}.tif"
        target.parent.mkdir(exist_ok=True)
        tifffile.imwrite(target, np.where(box.classes == value, box.ids, 0).astype(np.uint16), photometric="minisblack")
    return str(folder / "truth")
