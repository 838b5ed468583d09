"""The leaderboard row: one small JSON file that says what was scored, how, with what, and what came out.

A row is derived from ``score.json`` and nothing else, and is checked both when written and when read: a score above 1,
a NaN, or an IoU above the Dice of the same aggregation means that some number was computed wrongly.
"""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import platform
import time
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from em_bench_eval import __version__
from em_bench_eval.errors import InputError
from em_bench_eval.schema import DOMAINS, ORGANELLES

ROW_FORMAT = "em-organelle-wild row v1"
SCORE_FORMAT = "em-organelle-wild score v1"
HEADLINE_METRICS = ("dice__instance", "iou__instance", "pq")
ROW_GROUPS = ("all", *(f"domain={domain}" for domain in DOMAINS))
ROW_NAMES = ("macro", *ORGANELLES)
ROW_KEYS = tuple(f"{name}/{metric}" for name in ROW_NAMES for metric in HEADLINE_METRICS)
# of predictions without organelles, which have none of the others (em_bench_eval.class_agnostic)
AGNOSTIC_KEYS = (
    *(f"any/{metric}" for metric in (*HEADLINE_METRICS, "dice__reference", "iou__reference")),
    *(f"{name}/{metric}" for name in ROW_NAMES for metric in ("dice__stratified", "iou__stratified")),
)
REPORTED_PACKAGES = ("numpy", "scipy", "datasets", "pyarrow", "pillow")
ROUNDING = 1e-9  # IoU and Dice of a perfect match may differ by rounding

_REQUIRED = (
    *("format", "model", "checkpoint", "dataset", "images", "metric_version", "settings", "settings_hash"),
    *("reference_ids", "scores", "software", "platform", "date"),
)


def build_row(score: Mapping[str, Any]) -> dict[str, Any]:
    """Build the row of a score document (``score.json``); raises ``InputError`` if a value cannot be right.

    ``scores`` maps "all", "domain=in" and "domain=out", as far as they were scored, to
    ``{"<macro or organelle>/<metric>": value in [0, 1] or None}``; ``None`` is undefined or not annotated.
    """
    prediction, dataset, agnostic = score["prediction"], score["dataset"], bool(score.get("class_agnostic"))
    row = {
        "format": ROW_FORMAT,
        "model": prediction.get("model"),
        "checkpoint": prediction.get("checkpoint"),
        # a local folder goes by its name: where it lay on somebody's disk is nobody's business
        "dataset": {**dataset, "path": dataset_name(dataset["path"])},
        "images": score["images"],
        "metric_version": score["metric_version"],
        "settings": score["settings"],
        "settings_hash": score["settings_hash"],
        "reference_ids": score["settings"].get("reference_ids"),
        "scores": {
            group: {key: score["groups"][group].get(key) for key in (*ROW_KEYS, *(AGNOSTIC_KEYS if agnostic else ()))}
            for group in ROW_GROUPS
            if group in score["groups"]
        },
        **({"class_agnostic": True} if agnostic else {}),
        # what the model was shown of the reference: such a row is never ranked with one that saw nothing
        **({"prompts": prediction["prompts"]} if prediction.get("prompts") else {}),
        "software": {"prediction": prediction.get("versions", {}), "report": software_versions()},
        "platform": platform.platform(),
        "date": utc_date(),
    }
    check_row(row, "the score")
    return row


def read_row(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read and check a ``row.json``; raises ``InputError`` for anything that is not a consistent row."""
    row = read_json(path, "a row written by `em-bench report`")
    check_row(row, str(path))
    return row


def check_row(row: Mapping[str, Any], where: str) -> None:
    """Raise ``InputError`` unless the row is complete, its values lie in [0, 1] or are null, and IoU <= Dice."""
    missing = [key for key in _REQUIRED if key not in row]
    if missing or row["format"] != ROW_FORMAT:
        raise InputError(
            f"{where} is not a leaderboard row",
            found=f"format {row.get('format')!r}" + (f", no {', '.join(missing)}" if missing else ""),
            expected=f"format {ROW_FORMAT!r} with every field",
            remedy="write it again with em-bench report",
        )
    if not isinstance(row["scores"], Mapping) or "all" not in row["scores"]:
        raise InputError(f"{where}: no scores for the group 'all'", remedy="run em-bench score and report again")
    for group, values in row["scores"].items():
        check_values(values, f"{where}, group {group!r}")


def check_values(values: Mapping[str, Any], where: str) -> None:
    """Raise ``InputError`` unless every ``"<name>/<metric>"`` is null or in [0, 1], and every IoU <= its Dice."""
    for key, value in values.items():
        if value is None:
            continue
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or not math.isfinite(value) or not 0 <= value <= 1 + ROUNDING:
            raise InputError(f"{where}: {key} cannot be a score", found=repr(value), expected="null or 0 to 1")
        name, _, metric = key.partition("/")
        dice = values.get(f"{name}/{metric.replace('iou', 'dice', 1)}")
        if "iou" in metric and dice is not None and value > dice + ROUNDING:
            raise InputError(
                f"{where}: {key} exceeds the Dice of the same aggregation, which is impossible",
                found=f"IoU {value} and Dice {dice}",
                expected="IoU <= Dice",
                remedy="score again with a released version of em-organelle-wild",
            )


def read_json(path: str | os.PathLike[str], expected: str) -> dict[str, Any]:
    """Read a JSON object; NaN and infinities, which are not JSON, raise ``InputError`` like any other damage."""

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON; an undefined value is null")

    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"), parse_constant=refuse)
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path}", found=str(error), expected=expected) from error
    if not isinstance(value, dict):
        raise InputError(f"cannot read {path}", found=f"a JSON {type(value).__name__}", expected=expected)
    return value


def to_json(document: Mapping[str, Any]) -> str:
    """Serialise a row; NaN raises ``ValueError``."""
    return json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def dataset_name(path: str) -> str:
    """Return the folder name of a local dataset, or ``<org>/<name>`` of a Hub dataset."""
    is_hub_id = path.count("/") == 1 and not path.startswith((".", "/", "~")) and not Path(path).exists()
    return path if is_hub_id else Path(path).resolve().name


def software_versions() -> dict[str, str]:
    """Versions of this package, Python and what decodes and scores, read without importing any of them."""
    versions = {"em-organelle-wild": __version__, "python": platform.python_version()}
    for package in REPORTED_PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def utc_date() -> str:
    """Now in UTC, or the time that ``SOURCE_DATE_EPOCH`` gives (https://reproducible-builds.org/specs/)."""
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    try:
        seconds = int(epoch) if epoch else int(time.time())
        return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (ValueError, OverflowError, OSError) as error:
        raise InputError(
            "the environment variable SOURCE_DATE_EPOCH is no time",
            found=epoch,
            expected="seconds since 1970-01-01 UTC, a whole number",
            remedy="unset it",
        ) from error
