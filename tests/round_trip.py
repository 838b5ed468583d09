"""Exporting a dataset and reading results back, as a user does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from baselines.cli_export import export as export_command
from baselines.cli_import import import_
from em_bench_eval.cli import main
from em_bench_eval.rows import LabelledImage, decode_row, open_rows


def export(dataset: Path, out: Path, config: str, *options: str) -> Path:
    assert export_command(["nnunet", "--dataset", str(dataset), "--config", config, "--out", str(out), *options]) == 0
    return out


def read_back(results: Path, dataset: Path, out: Path, config: str, *options: str) -> Path:
    where = ["--dataset", str(dataset), "--config", config, "--out", str(out), "--model", "reference"]
    assert import_([str(results), *where, *options]) == 0
    return out


def score(prediction: Path, dataset: Path) -> dict[str, Any]:
    assert main(["score", str(prediction), str(dataset), "--json"]) == 0
    values: dict[str, Any] = json.loads((prediction / "score.json").read_text())["groups"]
    return values


def images_of(dataset: Path, config: str) -> dict[str, LabelledImage]:
    return {image.record_id: image for image in map(decode_row, open_rows(dataset, config, "test"))}


def same_partition(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> bool:
    pairs = np.unique(np.stack([a.ravel(), b.ravel()]), axis=1)
    return pairs.shape[1] == len(np.unique(pairs[0])) == len(np.unique(pairs[1])) and bool(((a == 0) == (b == 0)).all())
