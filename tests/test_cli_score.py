"""``em-bench score`` on a built dataset: the file it writes, the table it prints, the faults it names."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from em_bench_eval import Evaluation, Settings
from em_bench_eval.cli import main
from em_bench_eval.metrics import measured
from em_bench_eval.rows import LabelledImage, decode_row, open_rows, write_predictions
from em_bench_eval.schema import Organelle, Prediction

CONFIG, SPLIT = "wild", "test"
INFO = {"model": "made up", "config": CONFIG, "split": SPLIT}


@pytest.fixture(scope="module")
def images(tiny_dataset: Path) -> list[LabelledImage]:
    return [decode_row(row) for row in open_rows(tiny_dataset, CONFIG, SPLIT)]


def perfect(image: LabelledImage) -> Prediction:
    return Prediction(image.record_id, image.instances.astype(np.uint32), image.organelle_of)


def imperfect(image: LabelledImage) -> Prediction:
    """Every second instance missing, the rest one pixel off, one speck invented."""
    labels = np.roll(np.where(image.instances % 2, image.instances, 0), 1, axis=1).astype(np.uint32)
    labels[-1, -1] = 900
    return Prediction(image.record_id, labels, {**image.organelle_of, 900: Organelle.MITO})


@pytest.fixture
def predict(tmp_path: Path, images: list[LabelledImage]) -> Callable[..., Path]:
    def write(make: Callable[[LabelledImage], Prediction] = imperfect, edit: Any = None) -> Path:
        predictions: Iterator[Prediction] = (make(image) for image in reversed(images))
        write_predictions(tmp_path / "pred", predictions if edit is None else edit(list(predictions)), INFO)
        return tmp_path / "pred"

    return write


def read(path: Path) -> dict[str, Any]:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    content: dict[str, Any] = json.loads(path.read_text(), parse_constant=refuse)
    return content


def test_perfect_predictions_score_one(
    predict: Callable[..., Path], tiny_dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = predict(perfect)
    assert main(["score", str(folder), str(tiny_dataset)]) == 0
    values = read(folder / "score.json")["groups"]["all"]
    assert values["mito/n_reference"] > 0
    for name, metric in measured("mito", Settings()).items():
        if metric.family != "count":
            best = 1.0 if metric.better == "higher" else 0.0
            assert values[f"mito/{name}"] == values[f"macro/{name}"] == best or name.startswith("recall__")
            assert values[f"golgi/{name}"] is None
    table = capsys.readouterr().out.splitlines()
    mito = next(line.split() for line in table if line.split()[:1] == ["mito"])
    assert mito == ["mito", *["1.000"] * 6, "0.000", "1.000", *[str(values["mito/n_reference"])] * 2]
    assert next(line.split() for line in table if line.split()[:1] == ["golgi"]) == ["golgi", *"-" * 8, "0", "0"]


def test_the_file_holds_the_direct_scores_of_every_group(
    predict: Callable[..., Path], tiny_dataset: Path, images: list[LabelledImage]
) -> None:
    folder = predict()
    assert main(["score", str(folder), str(tiny_dataset), "--min-size-nm2", "100"]) == 0
    result = read(folder / "score.json")
    settings = Settings(min_size_nm=100)
    assert result["format"] == "em-organelle-wild score v1"
    assert Settings(**result["settings"]) == settings
    assert result["settings_hash"] == settings.hash()
    assert result["prediction"] == {**INFO, "images": len(images)}
    assert result["dataset"] == {"path": str(tiny_dataset), "config": CONFIG, "split": SPLIT}
    assert result["images"] == len(images) == len(result["per_image"])
    members: dict[str, list[LabelledImage]] = {}
    for image in images:
        for group in ("all", f"domain={image.domain}", f"source={image.source}"):
            members.setdefault(group, []).append(image)
    assert set(result["groups"]) == set(members)
    for group, chosen in members.items():
        assert result["groups"][group] == direct(chosen, settings).compute()
    for image in images:
        values, alone = result["per_image"][image.record_id], direct([image], settings).compute()
        assert values.items() <= alone.items()
        assert "macro/dice__instance" in values
        assert ("mito/n_reference" in values) == bool(alone["mito/n_reference"] or alone["mito/n_prediction"])
    assert 0 < result["groups"]["all"]["mito/dice__instance"] < 1


def direct(images: list[LabelledImage], settings: Settings) -> Evaluation:
    evaluation = Evaluation(settings)
    for image in images:
        made = imperfect(image)
        evaluation.add(
            (made.instances, made.organelle_of),
            (image.instances, image.organelle_of),
            voxel_size_nm=image.pixel_size_nm,
            annotated=image.annotated,
            ignore=image.ignore,
        )
    return evaluation


def test_out_and_tables_of_domains_and_sources(
    predict: Callable[..., Path],
    tiny_dataset: Path,
    tmp_path: Path,
    images: list[LabelledImage],
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder, out = predict(), tmp_path / "new folder" / "result.json"
    assert main(["score", str(folder), str(tiny_dataset), "--out", str(out), "--reference-ids", "slice"]) == 0
    assert not (folder / "score.json").exists()
    assert read(out)["settings"]["reference_ids"] == "slice"
    assert [path.name for path in out.parent.iterdir()] == ["result.json"]
    text = capsys.readouterr().out
    assert {image.domain for image in images} == {"in", "out"}
    assert "\ndomain=in\n" in text
    assert "\ndomain=out\n" in text
    assert "source=" not in text
    assert "dice__instance: mean over the union of reference instances and unmatched predictions" in text
    assert main(["score", str(folder), str(tiny_dataset), "--table"]) == 0
    text = capsys.readouterr().out
    assert all(f"\nsource={image.source}\n" in text for image in images)


def test_one_domain_is_named_and_not_repeated(
    tiny_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [decode_row(row) for row in open_rows(tiny_dataset, "homogeneous", "test")]
    write_predictions(tmp_path, map(perfect, rows), {**INFO, "config": "homogeneous"})
    assert main(["score", str(tmp_path), str(tiny_dataset)]) == 0
    text = capsys.readouterr().out
    assert "all images, domain=in" in text
    assert text.count("\n  macro ") == 2  # one table and the footnote


def other_shape(prediction: Prediction) -> Prediction:
    return Prediction(prediction.record_id, prediction.instances[:-1], prediction.organelle_of)


FAULTS: dict[str, tuple[Callable[[list[Prediction]], list[Prediction]], str]] = {
    "missing": (lambda p: p[1:], "not predicted"),
    "extra": (lambda p: [*p, Prediction("else/z/00001", p[0].instances, p[0].organelle_of)], "not in wild/test"),
    "twice": (lambda p: [*p, p[0]], "predicted twice"),
    "other shape": (lambda p: [*p[1:], other_shape(p[0])], "same shape"),
    "no organelle": (
        lambda p: [*p[1:], Prediction(p[0].record_id, p[0].instances, {})],
        "prediction has instances without an organelle",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named_and_nothing_is_written(
    fault: str, predict: Callable[..., Path], tiny_dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit, message = FAULTS[fault]
    folder = predict(edit=edit)
    (folder / "score.json").write_text("earlier")
    assert main(["score", str(folder), str(tiny_dataset)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert ": 1 faults" in error
    assert (folder / "score.json").read_text() == "earlier"
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


def test_all_faults_at_once(
    predict: Callable[..., Path], tiny_dataset: Path, images: list[LabelledImage], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = predict(edit=lambda predictions: [other_shape(predictions[0]), *predictions[1:2] * 3])
    assert main(["score", str(folder), str(tiny_dataset)]) == 2
    error = capsys.readouterr().err
    assert f": {len(images) + 1} faults" in error  # one shape, two repeated, all but two missing
    assert "same shape" in error
    assert "predicted twice" in error
    assert error.count("not predicted") == 7  # ten faults are listed
    assert "\n    ...\n" in error


def test_what_is_no_prediction_and_no_dataset(
    predict: Callable[..., Path], tiny_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    for arguments, message in (
        ([str(tmp_path / "empty"), str(tiny_dataset)], "is not a prediction folder"),
        ([str(predict()), str(tmp_path / "empty")], "is not a dataset folder"),
        ([str(predict()), str(tiny_dataset), "--config", "mild"], "cannot open"),
        ([str(predict()), str(tiny_dataset), "--split", "train"], "faults"),
        ([str(predict()), str(tiny_dataset), "--min-size-nm2", "-1"], "min_size_nm is out of range"),
    ):
        assert main(["score", *arguments]) == 2
        assert message in capsys.readouterr().err


def test_an_interrupted_write_leaves_the_earlier_score(tmp_path: Path) -> None:
    from em_bench_eval.cli_score import write_json

    path = tmp_path / "score.json"
    write_json(path, {"value": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"value": float("nan")})
    with pytest.raises(TypeError):
        write_json(path, {"value": object()})
    assert read(path) == {"value": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["score.json"]
