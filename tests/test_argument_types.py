"""Command-line values are read, or refused with what is wrong with them."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import pytest

from em_bench_eval.argument_types import positive_float, positive_int, share, voxel_size_nm, whole_number


@pytest.mark.parametrize(
    ("read", "good", "bad"),
    [
        (positive_int, {"1": 1, "512": 512}, {"0": "not a positive", "-3": "not a positive", "1.5": "invalid"}),
        (positive_float, {"1": 1.0, "5e-3": 0.005}, {"0": "not a positive", "inf": "not a positive", "nan": "not a"}),
        (whole_number, {"0": 0, "7": 7}, {"-1": "below 0", "x": "invalid"}),
        (share, {"0": 0.0, "0.25": 0.25}, {"1": "not in", "-0.1": "not in", "nan": "not in"}),
        (voxel_size_nm, {"8,4,3.24": (8.0, 4.0, 3.24)}, {"8,8": "three positive", "8,8,0": "three", "a,b,c": "three"}),
    ],
)
def test_values(
    read: Callable[[str], Any], good: dict[str, Any], bad: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--value", type=read)
    for text, value in good.items():
        assert parser.parse_args([f"--value={text}"]).value == value
    for text, message in bad.items():
        with pytest.raises(SystemExit):
            parser.parse_args([f"--value={text}"])
        error = capsys.readouterr().err
        assert "argument --value" in error
        assert message in error, text
