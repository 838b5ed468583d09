"""The paper's tables: the printed inconsistencies are found, consistent rows pass, scores take the same layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from em_bench_eval import score
from em_bench_eval.cli import main
from em_bench_eval.paper_tables import PUBLISHED, PaperRow, faults, layout, row_of_score
from em_bench_eval.schema import ORGANELLES

ROWS = {(split, row.model): row for split, rows in PUBLISHED.items() for row in rows}


def test_the_printed_averages_of_table_1_are_not_means() -> None:
    found = faults(ROWS["homogeneous", "Mask2Former"])
    assert "the printed average Dice 0.672 is not the mean of the row, 0.598" in found
    assert "the printed average IoU 0.595 is not the mean of the row, 0.514" in found
    unet = faults(ROWS["homogeneous", "U-Net"])
    assert any("Nucleus: IoU 0.916 exceeds Dice 0.879" in fault for fault in unet)
    assert any("0.605 is not the mean of the row, 0.474" in fault for fault in unet)
    assert faults(ROWS["homogeneous", "SAM (prompted)"]) == ["an average without the values that it is the average of"]


def test_the_rows_of_table_2_are_consistent_and_their_iou_is_derived() -> None:
    for model in ("U-Net", "Mask2Former"):
        assert faults(ROWS["wild", model]) == ["every IoU is Dice / (2 - Dice): it carries no information of its own"]


def test_a_row_of_ours_is_the_mean_that_it_prints() -> None:
    values = {name: (0.5 + i / 10, 0.4 + i / 20) for i, name in enumerate(ORGANELLES)}
    mean = (sum(pair[0] for pair in values.values()) / 5, sum(pair[1] for pair in values.values()) / 5)
    assert faults(PaperRow("ours", values, mean, "all, instance")) == []


def document(config: str) -> dict[str, Any]:
    labels = [[1, 1, 0, 2], [1, 1, 0, 2]]
    groups = {"all": score({"mito": [[1, 1, 0, 0], [1, 1, 0, 0]]}, {"mito": labels}, voxel_size_nm=(8, 8))}
    return {
        "format": "em-organelle-wild score v1",
        "dataset": {"config": config},
        "groups": groups,
        "prediction": {"model": "unet"},
    }


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "score.json").write_text(json.dumps(document("wild")))
    assert main(["table", str(tmp_path / "score.json")]) == 0
    printed = capsys.readouterr().out
    assert "Table 1: homogeneous" in printed
    assert "is not the mean of the row" in printed
    line = next(line for line in printed.splitlines() if line.startswith("unet [all, instance]"))
    assert line.split()[3:] == ["0.500", "0.500", "-", "-", "-", "-"]
    assert main(["table", str(tmp_path / "score.json"), "--only-ours", "--markdown", "--aggregation", "pooled"]) == 0
    printed = capsys.readouterr().out
    assert "| unet [all, pooled] | 0.800 | 0.667 |" in printed
    assert "quoted" not in printed


def test_faults_of_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "other.json").write_text("{}")
    assert main(["table", str(tmp_path / "other.json")]) == 2
    assert "is no score of the benchmark" in capsys.readouterr().err
    (tmp_path / "score.json").write_text(json.dumps(document("homogeneous")))
    for wrong in (["--aggregation", "instances"], ["--group", "domain=inn"]):
        assert main(["table", str(tmp_path / "score.json"), *wrong]) == 2
        assert "unknown" in capsys.readouterr().err
    assert row_of_score(document("wild")).average == (0.5, 0.5)
    assert "Table 2: wild" in layout("wild", [])
