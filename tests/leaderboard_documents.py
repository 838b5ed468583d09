"""Result documents as re-scoring writes them, with numbers that are made up but consistent."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from em_bench_eval.leaderboard.result_document import RESULT_FORMAT, check_result, is_ranked
from em_bench_eval.pictures import encode_picture_png
from em_bench_eval.schema import ORGANELLES
from em_bench_eval.settings import METRIC_VERSION, Settings

SOURCES: dict[str, tuple[list[str], list[str]]] = {  # domains, annotated organelles
    "cell_in": (["in"], ["mito", "nucleus", "er"]),
    "cell_out": (["out"], ["mito", "endo"]),
}
GROUPS = {"all": 30, "domain=in": 20, "domain=out": 10, "source=cell_in": 20, "source=cell_out": 10}


ALL = {"mito": 0.8, "nucleus": 0.9, "er": 0.5, "endo": 0.6}  # Dice of the organelles that the sources annotate


def scaled(factor: float) -> dict[str, float]:
    return {name: value * factor for name, value in ALL.items()}


def documents() -> list[dict[str, Any]]:
    """One result for every kind of table."""
    return [
        document("best", ALL, date="2026-02-01T00:00:00Z", team="Team B", training_data=["CEM500K", "wild/train"]),
        document("middle", scaled(0.9), team="Team A"),
        document("only mito", {"mito": 0.9}, code="https://example.org/code"),
        document("shown points", scaled(1.1), prompts="oracle:points"),
        document("no organelles", ALL, agnostic=True),
        document("older metric", scaled(1.1), metric_version="1"),
        document("homogeneous one", ALL, config="homogeneous"),
    ]


def document(
    model: str, dice: Mapping[str, float], *, width: float | None = 0.05, agnostic: bool = False, **changed: Any
) -> dict[str, Any]:
    """A result: ``dice`` of organelles (others are annotated, and not predicted); ``width`` of intervals on each side.

    ``changed``: keys of the submission, or of the document (config, split, metric_version, settings_hash, date,
    dataset, levels).
    """
    submission = {
        "model": model,
        "team": "A laboratory",
        "paper": "https://doi.org/10.1000/182",
        "code": "none",
        "training_data": ["em-organelle-wild wild/train"],
        "prompts": "none",
        "compute": "one GPU, 6 h",
        "contact": "",
        "notes": "",
        "split_hash": "5" * 64,
        "form": "predictions.parquet",
        "hash": hashlib.sha256(repr((model, sorted(changed.items()))).encode()).hexdigest(),
        "images": 30,
        "instances": 300,
    }
    submission |= {name: changed.pop(name) for name in list(changed) if name in submission}
    split = changed.get("split", "test")
    scores = {group: _scores(dice, _annotated(group), agnostic) for group in GROUPS}
    result = {
        "format": RESULT_FORMAT,
        "submission": submission,
        "ranked": is_ranked(submission["prompts"], split, agnostic),
        "class_agnostic": agnostic,
        "config": "wild",
        "split": split,
        "metric_version": METRIC_VERSION,
        "settings": {name: getattr(Settings(), name) for name in Settings.__dataclass_fields__},
        "settings_hash": Settings().hash(),
        "dataset": {
            "name": "em-organelle-wild",
            "fingerprint": "content 1",
            "revision": "",
            "split_hash": "5" * 64,
            "images": 30,
        },
        "groups": {group: {"images": n, "volumes": n // 5, "megapixels": n / 4} for group, n in GROUPS.items()},
        "scores": scores,
        "intervals": {group: _intervals(values, width) for group, values in scores.items()},
        "per_source": {
            source: {"group": f"source={source}", "domains": domains, "annotated": annotated}
            for source, (domains, annotated) in SOURCES.items()
        },
        "images": {"by": "macro/dice__instance", "worst": [], "best": [], "defined": 30},
        "levels": None,
        "timings": {"validate_s": 1.0, "score_s": 2.0, "pool_s": 0.5, "workers": 1, "core_s": 2.0},
        "software": {"em-organelle-wild": "0.1.0"},
        "date": "2026-01-01T00:00:00Z",
        **changed,
    }
    check_result(result, model)
    return result


def _annotated(group: str) -> set[str]:
    kind, _, name = group.partition("=")
    return {
        organelle
        for source, (domains, annotated) in SOURCES.items()
        if kind == "all" or name in (source, *domains)
        for organelle in annotated
    }


def _scores(dice: Mapping[str, float], annotated: set[str], agnostic: bool) -> dict[str, Any]:
    values: dict[str, Any] = {}
    of = {name: dice.get(name, 0.0) if name in annotated else None for name in ORGANELLES}
    for name, value in of.items():
        metrics = _metrics(value)
        if agnostic:
            kept = ("dice__stratified", "iou__stratified")
            metrics = {twin: metrics[twin.replace("stratified", "instance")] for twin in kept}
        values |= {f"{name}/{metric}": found for metric, found in metrics.items()}
        values[f"{name}/n_reference"] = 10 if value is not None else 0
        values[f"{name}/n_prediction"] = 9 if value else 0
        values[f"{name}/n_matched"] = 8 if value else 0
    known = [value for value in of.values() if value is not None]
    mean = sum(known) / len(known)
    values |= {f"{'any' if agnostic else 'macro'}/{metric}": found for metric, found in _metrics(mean).items()}
    return values


def _metrics(value: float | None) -> dict[str, float | None]:
    if value is None:
        return dict.fromkeys(("dice__instance", "iou__instance", "pq", "voi__union"))
    return {"dice__instance": value, "iou__instance": value / (2 - value), "pq": value**2, "voi__union": 4 - 3 * value}


def _intervals(values: Mapping[str, Any], width: float | None) -> dict[str, Any]:
    bounds = {
        key: [max(0.0, value - width), min(1.0, value + width)]
        for key, value in values.items()
        if width is not None and value is not None and "dice" in key
    }
    return {"over": "volumes", "n": 6, "level": 0.95, "resamples": 1000, "values": bounds}


def case(role: str, record_id: str) -> dict[str, Any]:
    """An image as ``site_pictures.draw_cases`` returns it, of a few pixels."""

    def png(colour: int) -> str:
        picture = np.full((24, 32, 4), colour, np.uint8)
        return f"data:image/png;base64,{base64.b64encode(encode_picture_png(picture)).decode()}"

    return {
        "role": role,
        "record_id": record_id,
        "source": "cell_in",
        "domain": "in",
        "pixel_size_nm": [8.0, 8.0],
        "values": {"macro/dice__instance": 0.5, "mito/dice__instance": 0.5},
        "shape": [24, 32],
        "scale": {"label": "50 nm", "fraction": 0.2},
        "cropped": False,
        "counts": {"mito": [3, 2, 1]},
        "image": png(90),
        "ignore": None,
        "reference": {"mito": png(150)},
        "prediction": {"mito": png(200)},
    }
