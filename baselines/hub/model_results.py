"""Scores for a model card: only those that were computed from the predictions of these very weights.

``score.json`` of ``em-bench score`` names the weights by their hash. A result of the leaderboard names the submission
by its hash, and the submission's predictions name the weights: so the predictions are needed as well. What cannot be
followed back like this is refused; nothing is typed in by hand.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from em_bench_eval.errors import InputError
from em_bench_eval.row import HEADLINE_METRICS, ROW_GROUPS, ROW_KEYS, ROW_NAMES, SCORE_FORMAT, check_values, read_json

HEADLINE = "dice__instance"  # of a task of eval.yaml, one value
TITLES = {"dice__instance": "instance Dice", "iou__instance": "instance IoU", "pq": "panoptic quality"}
GROUP_TITLES = {"all": "all images", "domain=in": "known specimens", "domain=out": "held-out specimens"}
DIGITS = 4


@dataclass(frozen=True)
class Measured:
    """Scores of these weights on a split, and where they come from."""

    dataset: str  # name
    config: str
    split: str
    images: int
    metric_version: str
    settings_hash: str
    scores: Mapping[str, Mapping[str, float | None]]  # group -> key -> value in 0..1
    rescored: bool  # by the leaderboard, from a submission; else with em-bench score by whoever publishes
    prompts: str = "none"
    date: str | None = None
    fingerprint: str = ""
    intervals: Mapping[str, Any] = field(default_factory=dict)  # key -> (low, high) in the group "all"

    @property
    def how(self) -> str:
        """Who computed the numbers, in words."""
        if self.rescored:
            return "re-scored by the leaderboard from the submitted predictions"
        return "computed with `em-bench score` by whoever published this model"

    @property
    def source_name(self) -> str:
        """Name of the source in the Hub's metadata."""
        return "em-organelle-wild leaderboard" if self.rescored else "em-bench score, by the publisher"


def read_measured(path: Path, weights_sha256: str, predictions: Path | None = None) -> Measured:
    """Read a ``score.json``, or a result of the leaderboard together with the predictions that were submitted.

    Raises:
        InputError: neither of them, values that cannot be right, or scores of other weights.
    """
    document = read_json(path, "score.json of em-bench score, or a result of the leaderboard")
    if document.get("format") == SCORE_FORMAT:
        return _of_score(document, path, weights_sha256)
    return _of_result(path, weights_sha256, predictions)


def _of_score(document: Mapping[str, Any], path: Path, weights_sha256: str) -> Measured:
    from em_bench_eval.row import dataset_name

    try:
        prediction, dataset = document["prediction"], document["dataset"]
        _same_weights(prediction.get("weights_sha256"), weights_sha256, path)
        return Measured(
            dataset=dataset_name(dataset["path"]),
            config=dataset["config"],
            split=dataset["split"],
            images=int(document["images"]),
            metric_version=str(document["metric_version"]),
            settings_hash=str(document["settings_hash"]),
            scores=_headline(document["groups"], path),
            rescored=False,
            prompts=prediction.get("prompts", "none"),
            intervals=document.get("intervals", {}).get("all", {}).get("values", {}),
        )
    except (KeyError, TypeError, AttributeError) as error:
        problem = f"{path} is no complete score"
        raise InputError(problem, found=repr(error), remedy="run em-bench score again") from error


def _of_result(path: Path, weights_sha256: str, predictions: Path | None) -> Measured:
    from em_bench_eval.leaderboard.result_document import read_result
    from em_bench_eval.leaderboard.submission import submission_hash
    from em_bench_eval.rows import read_prediction_info

    document = read_result(path)
    if predictions is None:
        raise InputError(
            f"nothing connects {path} with these weights",
            expected="the folder of predictions that was submitted, which says which weights made them",
            remedy="name it with --predictions",
        )
    found = submission_hash(predictions)
    if found != document["submission"]["hash"]:
        raise InputError(
            f"{path} is not the result of the predictions in {predictions}",
            found=f"their hash is {found[:16]}...",
            expected=f"{document['submission']['hash'][:16]}...",
        )
    _same_weights(read_prediction_info(predictions).get("weights_sha256"), weights_sha256, predictions)
    return Measured(
        dataset=str(document["dataset"]["name"]),
        config=document["config"],
        split=document["split"],
        images=int(document["groups"]["all"]["images"]),
        metric_version=str(document["metric_version"]),
        settings_hash=str(document["settings_hash"]),
        scores=_headline(document["scores"], path),
        rescored=True,
        prompts=document["submission"]["prompts"],
        date=str(document["date"]),
        fingerprint=str(document["dataset"].get("fingerprint", "")),
        intervals=document["intervals"]["all"].get("values", {}),
    )


def _same_weights(found: object, expected: str, where: Path) -> None:
    if found != expected:
        raise InputError(
            f"{where} is not about these weights",
            found="it names no weights" if not isinstance(found, str) else f"weights {found[:16]}...",
            expected=f"weights {expected[:16]}...",
            remedy="predict and score with this checkpoint, then push again",
        )


def _headline(groups: Mapping[str, Mapping[str, Any]], path: Path) -> dict[str, dict[str, float | None]]:
    chosen = {group: {key: groups[group].get(key) for key in ROW_KEYS} for group in ROW_GROUPS if group in groups}
    for group, values in chosen.items():
        check_values(values, f"{path}, group {group!r}")
    if not any(value is not None for value in chosen.get("all", {}).values()):
        raise InputError(
            f"{path} holds no score of an organelle", expected="predictions with organelles, on a split with labels"
        )
    return chosen


def table(measured: Measured) -> str:
    """Return the scores as Markdown."""
    shown = [name for name in ROW_NAMES if measured.scores["all"].get(f"{name}/{HEADLINE}") is not None]
    head = ["images", "score", *shown]
    lines = [head, ["---"] * len(head)]
    for group, values in measured.scores.items():
        for metric in HEADLINE_METRICS:
            cells = [_cell(values.get(f"{name}/{metric}")) for name in shown]
            lines.append([GROUP_TITLES[group], TITLES[metric], *cells])
            bounds = [measured.intervals.get(f"{name}/{metric}") for name in shown]
            if group == "all" and metric == HEADLINE and any(bounds):
                texts = ["–" if bound is None else f"{bound[0]:.3f} to {bound[1]:.3f}" for bound in bounds]
                lines.append(["", "95 % interval", *texts])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cell(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def model_index(measured: Measured, model_name: str, dataset_id: str, source_url: str | None) -> list[dict[str, Any]]:
    """Return ``model-index`` of the card's metadata; every value says who computed it, and how."""
    from huggingface_hub import EvalResult
    from huggingface_hub.repocard_data import eval_results_to_model_index

    found = []
    for key, value in measured.scores["all"].items():
        name, _, metric = key.partition("/")
        if value is not None:
            found.append(
                EvalResult(
                    task_type="image-segmentation",
                    task_name="organelle instance segmentation",
                    dataset_type=dataset_id,
                    dataset_name="EM organelles in the wild",
                    dataset_config=measured.config,
                    dataset_split=measured.split,
                    metric_type=metric,
                    metric_name=f"{TITLES[metric]}, {name}",
                    metric_value=round(value, DIGITS),
                    metric_args={
                        "key": key,
                        "em_bench_eval": measured.metric_version,
                        "settings": measured.settings_hash,
                        "prompts": measured.prompts,
                        "provenance": measured.how.replace("`", ""),
                    },
                    **({"source_name": measured.source_name, "source_url": source_url} if source_url else {}),
                )
            )
    index: list[dict[str, Any]] = eval_results_to_model_index(model_name, found)
    return index


def eval_results(measured: Measured, dataset_id: str, source_url: str | None, tasks: list[str]) -> list[dict[str, Any]]:
    """Return the entries of ``.eval_results/*.yaml``: the headline of each task of the dataset's ``eval.yaml``.

    Only what the leaderboard re-scored, on the test split, without prompts; otherwise the list is empty.

    Raises:
        InputError: the dataset has no such task.
    """
    from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml

    if not measured.rescored or measured.split != "test" or measured.prompts != "none":
        return []
    notes = f"{HEADLINE}, em_bench_eval {measured.metric_version}, settings {measured.settings_hash}"
    if measured.fingerprint:
        notes += f", dataset {measured.fingerprint}"
    entries = []
    for name in ROW_NAMES:
        value = measured.scores["all"].get(f"{name}/{HEADLINE}")
        if value is None:
            continue
        task = f"{measured.config}_{name}"
        if task not in tasks:
            raise InputError(
                f"{dataset_id} has no task {task}",
                found=", ".join(tasks) or "no tasks in its eval.yaml",
                expected="the dataset that was scored, built with this version",
            )
        source = {"source_url": source_url, "source_name": measured.source_name} if source_url else {}
        entries.append(
            EvalResultEntry(
                dataset_id=dataset_id,
                task_id=task,
                value=round(value, DIGITS),
                date=measured.date,
                notes=notes,
                **source,
            )
        )
    listed: list[dict[str, Any]] = eval_result_entries_to_yaml(entries)
    return listed
