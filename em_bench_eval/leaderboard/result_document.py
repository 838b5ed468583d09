"""The result of re-scoring a submission: one JSON document, from which the results table and the pages are made.

Its schema is described in ``docs/submissions.md``. A document is checked when written and when read.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from em_bench_eval.errors import InputError
from em_bench_eval.metrics import METRICS
from em_bench_eval.row import check_values, read_json

RESULT_FORMAT = "em-organelle-wild result v1"
REQUIRED = (
    *(
        "format",
        "submission",
        "ranked",
        "class_agnostic",
        "config",
        "split",
        "metric_version",
        "settings",
        "settings_hash",
        "dataset",
    ),
    *("groups", "scores", "intervals", "per_source", "images", "levels", "timings", "software", "date"),
)
SUBMISSION_KEYS = (
    *("model", "team", "paper", "code", "training_data", "prompts", "compute", "notes"),
    *("form", "hash", "split_hash"),
)


def read_result(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read and check a result; raises ``InputError`` for anything that is not a consistent one."""
    document = read_json(path, "a result written by em-bench leaderboard update")
    check_result(document, str(Path(path)))
    return document


def check_result(document: Mapping[str, Any], where: str) -> None:
    """Raise ``InputError`` unless the document is complete, and its scores are possible and its groups agree.

    A prompted submission must not be ranked.
    """
    missing = [key for key in REQUIRED if key not in document]
    if missing or document["format"] != RESULT_FORMAT:
        raise InputError(
            f"{where} is no result",
            found=f"format {document.get('format')!r}" + (f", no {', '.join(missing)}" if missing else ""),
            expected=f"format {RESULT_FORMAT!r} with every field",
            remedy="score the submission again",
        )
    submission = document["submission"]
    lost = [key for key in SUBMISSION_KEYS if key not in submission]
    if lost or not re.fullmatch(r"[0-9a-f]{64}", str(submission["hash"])):
        raise InputError(f"{where}: the submission is not identified", found=f"no {', '.join(lost) or 'hash'}")
    if document["ranked"] and not is_ranked(submission["prompts"], document["split"], document["class_agnostic"]):
        raise InputError(
            f"{where}: a row that must not be ranked",
            found=f"prompts {submission['prompts']}, split {document['split']}",
            expected="prompts none, the split test, instances with organelles",
        )
    groups = set(document["groups"])
    if "all" not in groups or set(document["scores"]) != groups or set(document["intervals"]) != groups:
        raise InputError(f"{where}: scores, intervals and groups differ", found=", ".join(sorted(groups)))
    for group, values in document["scores"].items():
        bounded = {key: value for key, value in values.items() if _is_share(key)}
        check_values(bounded, f"{where}, group {group!r}")


def _is_share(key: str) -> bool:
    metric = METRICS.get(key.partition("/")[2])
    return metric is not None and metric.range.startswith("0..1") and metric.family != "count"


def is_ranked(prompts: str, split: str, class_agnostic: bool) -> bool:
    """Return whether a submission competes: automatic, on the test split, and with organelles."""
    return prompts == "none" and split == "test" and not class_agnostic
