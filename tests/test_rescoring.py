"""Re-scoring gives the numbers of ``em-bench score`` to the last digit, whatever the form and number of processes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import submission_forms as forms

from em_bench_eval.errors import InputError
from em_bench_eval.leaderboard import rescoring
from em_bench_eval.leaderboard.forms import FORMS
from em_bench_eval.leaderboard.items import Expected, expected_items
from em_bench_eval.leaderboard.rescoring import RefusedSubmission, rescore
from em_bench_eval.leaderboard.result_document import RESULT_FORMAT, check_result, read_result
from em_bench_eval.leaderboard.submission import check, submission_hash
from em_bench_eval.rows import decode_row, open_rows
from em_bench_eval.schema import Prediction
from em_bench_eval.score_dataset import score_folder
from em_bench_eval.settings import DEFAULT_SETTINGS, Settings


@pytest.fixture(scope="module")
def expected(tiny_dataset: Path) -> Expected:
    return expected_items(tiny_dataset, forms.CONFIG, forms.SPLIT)


@pytest.fixture(scope="module")
def predictions(tiny_dataset: Path) -> list[Prediction]:
    return [forms.damaged(decode_row(row)) for row in open_rows(tiny_dataset, forms.CONFIG, forms.SPLIT)]


@pytest.fixture(scope="module")
def submission(predictions: list[Prediction], expected: Expected, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return forms.write(tmp_path_factory.mktemp("team") / "unet", "parquet", predictions, expected)


@pytest.fixture(scope="module")
def result(submission: Path, tiny_dataset: Path) -> dict[str, Any]:
    return rescore(submission, tiny_dataset, progress=False)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Judge in this process: starting another one takes seconds."""
    monkeypatch.setattr(rescoring, "check_guarded", lambda folder, expected, **_: check(folder, expected))


def scored(folder: Path, dataset: Path, settings: Settings = DEFAULT_SETTINGS, **options: Any) -> dict[str, Any]:
    found, _ = score_folder(folder, str(dataset), forms.CONFIG, forms.SPLIT, settings, forms.INFO, **options)
    return found


def lasting(document: dict[str, Any]) -> dict[str, Any]:
    """What does not depend on the clock."""
    return {key: value for key, value in document.items() if key not in ("timings", "date")}


def test_equals_em_bench_score_to_the_last_digit(
    result: dict[str, Any], submission: Path, tiny_dataset: Path, tmp_path: Path
) -> None:
    whole = scored(submission, tiny_dataset)
    assert result["scores"] == whole["groups"]
    assert result["intervals"] == whole["intervals"]
    assert result["settings_hash"] == whole["settings_hash"]
    assert 0 < result["scores"]["all"]["macro/dice__instance"] < 1
    for shown in (*result["images"]["worst"], *result["images"]["best"]):
        assert shown["values"] == whole["per_image"][shown["record_id"]]
    path = tmp_path / "result.json"
    path.write_text(json.dumps(result, allow_nan=False))
    assert read_result(path) == json.loads(json.dumps(result))


@pytest.mark.usefixtures("quick")
def test_processes_change_nothing(
    result: dict[str, Any], submission: Path, tiny_dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rescoring, "SPREAD_FROM_S", 0.0)
    monkeypatch.setattr(rescoring, "IMAGES_AT_ONCE", 3)
    spread = rescore(submission, tiny_dataset, workers=2, progress=False)
    assert spread["timings"]["workers"] == 2
    assert lasting(spread) == lasting(result)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("form", [name for name in FORMS if name != "parquet"])
def test_every_form_scores_the_same(
    form: str,
    result: dict[str, Any],
    predictions: list[Prediction],
    expected: Expected,
    tiny_dataset: Path,
    tmp_path: Path,
) -> None:
    other = rescore(forms.write(tmp_path, form, predictions, expected), tiny_dataset, progress=False)
    assert other["scores"] == result["scores"]
    assert other["submission"]["hash"] != result["submission"]["hash"]


@pytest.mark.usefixtures("quick")
def test_settings_reach_the_metric(submission: Path, tiny_dataset: Path) -> None:
    settings = Settings(reference_ids="slice", min_size_nm=200)
    found = rescore(submission, tiny_dataset, settings, progress=False)
    assert found["scores"] == scored(submission, tiny_dataset, settings)["groups"]
    assert found["settings_hash"] == settings.hash()


def test_the_document_says_what_was_scored_and_how(
    result: dict[str, Any], submission: Path, expected: Expected, tiny_dataset: Path
) -> None:
    assert result["format"] == RESULT_FORMAT
    assert result["submission"]["model"] == "U-Net (ours)"
    assert result["submission"]["training_data"] == ["em-organelle-wild wild/train"]
    assert result["submission"]["hash"] == submission_hash(submission)
    assert result["ranked"] is True
    assert result["dataset"]["fingerprint"] == expected.fingerprint
    assert result["dataset"]["split_hash"] == result["submission"]["split_hash"]
    images = [decode_row(row) for row in open_rows(tiny_dataset, forms.CONFIG, forms.SPLIT)]
    assert result["groups"]["all"]["images"] == len(images)
    for source, about in result["per_source"].items():
        own = [image for image in images if image.source == source]
        assert result["groups"][about["group"]]["images"] == len(own)
        assert about["domains"] == sorted({image.domain for image in own})
        assert about["annotated"] == sorted({str(name) for image in own for name in image.annotated})
    worst = [shown["values"]["macro/dice__instance"] for shown in result["images"]["worst"]]
    best = [shown["values"]["macro/dice__instance"] for shown in result["images"]["best"]]
    assert worst == sorted(worst)
    assert best == sorted(best, reverse=True)
    assert worst[0] <= best[0]
    assert result["levels"] is None
    assert str(submission) not in json.dumps(result)
    assert str(tiny_dataset) not in json.dumps(result)


@pytest.mark.usefixtures("quick")
def test_prompted_and_class_agnostic_submissions_are_never_ranked(
    predictions: list[Prediction], expected: Expected, tiny_dataset: Path, tmp_path: Path
) -> None:
    unnamed = [replace(one, organelle_of={}, confidence_of=dict.fromkeys(one.organelle_of, 0.5)) for one in predictions]
    folder = forms.write(
        tmp_path, "parquet", unnamed, expected, prompts="oracle:box+1+4", class_agnostic="true", contact=None
    )
    found = rescore(folder, tiny_dataset, progress=False)
    assert found["ranked"] is False
    assert found["class_agnostic"] is True
    assert found["scores"] == scored(folder, tiny_dataset, class_agnostic=True)["groups"]
    assert found["images"]["by"] == "any/dice__instance"
    with pytest.raises(InputError, match="must not be ranked"):
        check_result({**found, "ranked": True}, "result")
    (folder / "submission.yaml").write_text(forms.manifest(expected))
    with pytest.raises(RefusedSubmission):
        rescore(folder, tiny_dataset, progress=False)


@pytest.mark.usefixtures("quick")
def test_a_refused_submission_says_why(
    predictions: list[Prediction], expected: Expected, tiny_dataset: Path, tmp_path: Path
) -> None:
    folder = forms.write(tmp_path, "parquet", predictions[1:], expected)
    with pytest.raises(RefusedSubmission, match="an image of the split without a prediction") as refused:
        rescore(folder, tiny_dataset, progress=False)
    assert [group["kind"] for group in refused.value.verdict.faults] == ["missing"]


@pytest.mark.usefixtures("quick")
def test_a_submission_that_changes_meanwhile_is_not_scored(
    predictions: list[Prediction],
    expected: Expected,
    tiny_dataset: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = forms.write(tmp_path, "parquet", predictions, expected)
    judge = rescoring.check_guarded

    def judge_then_change(*arguments: Any, **options: Any) -> Any:
        verdict = judge(*arguments, **options)
        forms.as_parquet(folder, [replace(one, instances=one.instances * 0, organelle_of={}) for one in predictions])
        return verdict

    monkeypatch.setattr(rescoring, "check_guarded", judge_then_change)
    with pytest.raises(InputError, match="was changed"):
        rescore(folder, tiny_dataset, progress=False)


@pytest.mark.usefixtures("quick")
def test_a_reference_without_labels_says_so(
    submission: Path, tiny_dataset: Path, expected: Expected, tmp_path: Path
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    public = tmp_path / "em-organelle-wild"
    for file in (path for path in tiny_dataset.rglob("*") if path.suffix in (".md", ".parquet")):
        target = public / file.relative_to(tiny_dataset)
        target.parent.mkdir(parents=True, exist_ok=True)
        table = pq.read_table(file) if file.name.startswith("test") else None
        if table is None:
            target.write_bytes(file.read_bytes())
            continue
        place = table.schema.get_field_index("instances")
        field = table.schema.field(place)
        pq.write_table(table.set_column(place, field, pa.nulls(table.num_rows, field.type)), target)
    with pytest.raises(InputError, match="the reference has no labels"):
        rescore(submission, public, expected=expected, progress=False)


@pytest.mark.parametrize(
    "change",
    [
        {"format": "other"},
        {"ranked": None, "split": "train"},
        {"scores": {}},
        {"submission": {}},
        {"scores": "nan"},
    ],
)
def test_an_inconsistent_document_is_refused(change: dict[str, Any], result: dict[str, Any]) -> None:
    document = json.loads(json.dumps(result))
    if change == {"scores": "nan"}:
        document["scores"]["all"]["mito/pq"] = 1.5
    elif "ranked" in change:
        document["split"] = "train"
    else:
        document.update(change)
    with pytest.raises(InputError):
        check_result(document, "result")
