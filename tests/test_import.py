"""``em-bench import``: the reference exported and read back scores exactly 1; every form of result; every fault."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from round_trip import export, images_of, read_back, same_partition, score
from scipy import ndimage

from baselines.decode import DECODERS
from baselines.external.import_decode import Rule, instances_of
from em_bench_eval.rows import read_prediction_info, read_predictions, write_predictions
from em_bench_eval.schema import Organelle, Prediction
from em_bench_eval.volume_io import open_volume

IDEAL = ("dice__instance", "iou__instance", "pq", "sq", "rq", "ap", "semantic_dice", "semantic_iou", "dice__pooled")
BOTH = ["--organelle", "mito", "nucleus"]


@pytest.fixture(scope="module")
def perfect(tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, Any]]:
    """The score of the reference itself, written without any of the code under test."""
    known: dict[str, dict[str, Any]] = {}

    def of(config: str) -> dict[str, Any]:
        if config not in known:
            folder = tmp_path_factory.mktemp(config)
            made = [
                Prediction(name, image.instances.astype(np.uint32), image.organelle_of)
                for name, image in images_of(tiny_dataset, config).items()
            ]
            write_predictions(folder, made, {"model": "copy", "config": config, "split": "test"})
            known[config] = score(folder, tiny_dataset)
        return known[config]

    return of


@pytest.fixture(scope="module")
def exported(tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    made: dict[tuple[str, ...], Path] = {}

    def of(config: str, *options: str) -> Path:
        key = (config, *options)
        if key not in made:
            made[key] = export(tiny_dataset, tmp_path_factory.mktemp("export") / "out", config, *options)
        return made[key]

    return of


def ideal(groups: dict[str, Any]) -> None:
    values = {
        key: value for key, value in groups["all"].items() if key.partition("/")[2] in IDEAL and value is not None
    }
    assert "mito/dice__instance" in values
    assert set(values.values()) == {1.0}, values


@pytest.mark.parametrize("dimension", ["2d", "3d"])
@pytest.mark.parametrize("file_format", ["nifti", "tiff"])
def test_the_reference_scores_one(
    tiny_dataset: Path,
    exported: Callable[..., Path],
    perfect: Callable[[str], dict[str, Any]],
    tmp_path: Path,
    dimension: str,
    file_format: str,
) -> None:
    out = exported("wild", "--dimension", dimension, "--format", file_format, *BOTH)
    cases = ["--cases", str(out / "cases.json")]
    ids = read_back(out / "instancesTs", tiny_dataset, tmp_path / "ids", "wild", "--instances", *cases)
    groups = score(ids, tiny_dataset)
    ideal(groups)
    assert groups == perfect("wild")
    classes = read_back(out / "labelsTs", tiny_dataset, tmp_path / "classes", "wild", *cases)
    semantic = {key: value for key, value in score(classes, tiny_dataset)["all"].items() if "semantic" in key}
    assert semantic == {key: value for key, value in perfect("wild")["all"].items() if "semantic" in key}
    assert semantic["mito/semantic_dice"] == semantic["nucleus/semantic_dice"] == 1.0


def test_classes_score_one_where_instances_are_components(
    tiny_dataset: Path, exported: Callable[..., Path], perfect: Callable[[str], dict[str, Any]], tmp_path: Path
) -> None:
    out = exported("homogeneous", "--dimension", "3d", "--whole-volumes")
    cases = ["--cases", str(out / "cases.json")]
    groups = score(read_back(out / "labelsTs", tiny_dataset, tmp_path / "p", "homogeneous", *cases), tiny_dataset)
    ideal(groups)
    assert groups == perfect("homogeneous")


def test_aligned_results_come_back_to_native_pixels(
    tiny_dataset: Path, exported: Callable[..., Path], perfect: Callable[[str], dict[str, Any]], tmp_path: Path
) -> None:
    out = exported("wild", "--dimension", "3d", "--pixel-nm", "3", *BOTH)  # finer than all: nothing is lost
    cases = ["--cases", str(out / "cases.json"), "--instances"]
    groups = score(read_back(out / "instancesTs", tiny_dataset, tmp_path / "p", "wild", *cases), tiny_dataset)
    assert groups == perfect("wild")


def slow_components(classes: npt.NDArray[Any], label_id: int) -> npt.NDArray[Any]:
    return np.asarray(ndimage.label(classes == label_id, np.ones((3, 3)))[0])


def test_images_of_classes_are_split_into_components(
    tiny_dataset: Path, exported: Callable[..., Path], tmp_path: Path
) -> None:
    out = exported("wild", "--dimension", "2d", "--format", "tiff", *BOTH)
    folder = read_back(out / "labelsTs", tiny_dataset, tmp_path / "p", "wild", "--cases", str(out / "cases.json"))
    images = images_of(tiny_dataset, "wild")
    for prediction in read_predictions(folder):
        row = images[prediction.record_id]
        mito = np.isin(row.instances, [i for i, organelle in row.organelle_of.items() if organelle == "mito"])
        mine = [i for i, organelle in prediction.organelle_of.items() if organelle == "mito"]
        found = np.where(np.isin(prediction.instances, mine), prediction.instances, 0)
        assert same_partition(found, slow_components(mito & ~row.ignore, 1))
    info = read_prediction_info(folder)
    assert info["settings"]["rule"] == {"decode": "components", "by_slice": False, "connectivity": None}
    assert info["settings"]["labels"] == {"background": 0, "mito": 1, "nucleus": 2, "ignore": 3}
    assert (info["model"], info["organelles"], info["imported"]) == ("reference", ["mito", "nucleus"], True)


def test_the_rule_of_the_baselines_drops_specks_and_fills_holes() -> None:
    classes = np.zeros((4, 40, 40), np.uint8)
    classes[1:, 5:25, 5:25] = 1
    classes[2, 12, 12] = 0  # a hole in a slice
    classes[0, 35:37, 35:37] = 1  # a speck
    spacing = (30.0, 8.0, 8.0)
    plain = instances_of(classes, spacing, Rule())
    assert plain.labels.max() == 2
    assert plain.labels[2, 12, 12] == 0
    ruled = instances_of(classes, spacing, Rule("baseline"))
    assert 4 * 64 < DECODERS[Organelle.MITO].min_area_nm2 < 400 * 64
    expected = np.zeros_like(classes)
    expected[1:, 5:25, 5:25] = 1
    np.testing.assert_array_equal(ruled.labels, expected)
    assert ruled.organelle_of == {1: Organelle.MITO}
    slices = instances_of(classes, spacing, Rule("baseline", by_slice=True))
    assert [np.unique(plane).tolist() for plane in slices.labels] == [[0], [0, 1], [0, 2], [0, 3]]


def test_probabilities_of_nnunet(tiny_dataset: Path, exported: Callable[..., Path], tmp_path: Path) -> None:
    out = exported("wild", "--dimension", "3d", "--format", "nifti", *BOTH)
    rng = np.random.default_rng(4)
    expected: dict[str, Any] = {}
    for path in (out / "labelsTs").iterdir():
        labels = open_volume(path)[:]
        logits = ndimage.gaussian_filter(rng.normal(size=(3, *labels.shape)), (0, 1, 3, 3)) * 20
        probability = (np.exp(logits) / np.exp(logits).sum(axis=0)).astype(np.float16)
        case = path.name.removesuffix(".nii.gz")
        expected[case] = probability
        (tmp_path / "results").mkdir(exist_ok=True)
        np.savez_compressed(tmp_path / "results" / f"{case}.npz", probabilities=probability)
        (tmp_path / "results" / f"{case}.nii.gz").write_bytes(path.read_bytes())
        (tmp_path / "results" / f"{case}.pkl").write_bytes(pickle.dumps({"spacing": 1}))
    options = ["--probabilities", "--cases", str(out / "cases.json")]
    folder = read_back(tmp_path / "results", tiny_dataset, tmp_path / "p", "wild", *options)
    places = {
        record: (case["name"], place)
        for case in json.loads((out / "cases.json").read_text())["cases"]
        for place, record in enumerate(case["records"])
    }
    for prediction in read_predictions(folder):
        case, place = places[prediction.record_id]
        probability = expected[case].astype(np.float32)
        best = probability.argmax(axis=0)
        seen = np.zeros_like(best[place])
        for id_, organelle in prediction.organelle_of.items():
            seen[prediction.instances == id_] = organelle.label_id
        np.testing.assert_array_equal(seen, best[place])
        if prediction.organelle_of and best.shape[0] == 1:  # whole instances are in view
            for id_, confidence in prediction.confidence_of.items():
                mean = probability.max(axis=0)[place][prediction.instances == id_].mean()
                assert confidence == pytest.approx(mean, rel=1e-5)
    assert score(folder, tiny_dataset)["all"]["mito/ap"] is not None
