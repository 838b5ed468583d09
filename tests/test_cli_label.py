"""``em-bench label`` from the shell's side."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from em_bench_eval.cli import main
from em_bench_eval.errors import InputError
from em_bench_eval.volume_io import open_volume
from lpa.cli import parse_block, parse_connectivity
from lpa.label import label
from lpa.ome_zarr import create_labels

SEMANTIC = np.random.default_rng(0).integers(0, 6, (12, 13, 14)).astype(np.uint8)


@pytest.fixture
def source(tmp_path: Path) -> str:
    create_labels(tmp_path / "in.zarr", SEMANTIC.shape, "uint8", None, (6, 7, 7), (12, 14, 14)).write(SEMANTIC).result()
    return str(tmp_path / "in.zarr")


def test_labels_with_the_connectivity_of_each_organelle(
    source: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "out.zarr")
    assert main(["label", source, out, "--block", "5,6,7"]) == 0
    expected = label(SEMANTIC, {"mito": 6})  # the others have their default
    np.testing.assert_array_equal(open_volume(out)[:], expected)
    printed = capsys.readouterr()
    count = len(np.unique(expected)) - 1
    assert printed.out.startswith(f"{out}: {count:,} instances (mito ")
    assert printed.out.count("\n") == 1
    assert "writing labels: 100%" in printed.err


def test_masks_that_a_file_stores_as_floats(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tifffile = pytest.importorskip("tifffile")
    whole, soft, out = tmp_path / "whole.tif", tmp_path / "soft.tif", str(tmp_path / "out.zarr")
    tifffile.imwrite(whole, SEMANTIC.astype(np.float32))
    tifffile.imwrite(soft, SEMANTIC.astype(np.float32) / 4)
    assert main(["label", str(whole), out, "--connectivity", "26"]) == 0
    np.testing.assert_array_equal(open_volume(out)[:], label(SEMANTIC, 26))
    assert main(["label", str(soft), str(tmp_path / "soft.zarr")]) == 2
    assert "whole numbers" in capsys.readouterr().err


@pytest.mark.parametrize("connectivity", ["6", "18", "26", "mito=26,er=6"])
def test_options(connectivity: str, source: str, tmp_path: Path) -> None:
    out = str(tmp_path / "out.zarr")
    options = ["--connectivity", connectivity, "--relabel", "--block", "8", "--workers", "1"]
    assert main(["label", source, out, *options]) == 0
    chosen: Any = int(connectivity) if connectivity.isdecimal() else {"mito": 26, "er": 6}
    np.testing.assert_array_equal(open_volume(out)[:], label(SEMANTIC, chosen, "compact"))


def test_what_is_wrong_is_said_without_a_traceback(
    source: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "out.zarr")
    for arguments, said in [
        ([str(tmp_path / "nothing"), out], "no such file or folder"),
        ([source, source], "replace the source"),
        ([source, out, "--connectivity", "mito=7"], "found: 7"),
        ([source, out, "--connectivity", "full"], "mito=6,er=26"),
        ([source, out, "--block", "0,8,8"], "Z,Y,X"),
        ([source, out, "--scheduler", "somewhere"], "tcp://"),
    ]:
        assert main(["label", *arguments]) == 2
        assert said in capsys.readouterr().err
        assert not (tmp_path / "out.zarr").exists()
    assert main(["label", source, out]) == 0
    assert main(["label", source, out]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert main(["label", source, out, "--overwrite"]) == 0


def test_an_interrupted_command_can_be_given_again(
    source: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from lpa import blockwise, jobs

    def interrupted(job: jobs.Job) -> Any:
        if job.block == (1, 0, 1):
            raise KeyboardInterrupt
        return jobs.write_labels(job)

    command = ["label", source, str(tmp_path / "out.zarr"), "--block", "6", "--workers", "1"]
    with monkeypatch.context() as patched:
        patched.setattr(blockwise, "write_labels", interrupted)
        assert main(command) == 130
    assert "the same command continues" in capsys.readouterr().err
    assert main(command) == 0
    assert "resumed" in capsys.readouterr().out
    np.testing.assert_array_equal(open_volume(tmp_path / "out.zarr")[:], label(SEMANTIC, {"mito": 6}))


def test_help_shows_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["label", "--help"])
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    assert "em-bench label semantic.zarr instances.zarr" in printed
    assert "--scheduler" in printed


def test_reading_options() -> None:
    assert parse_connectivity("default") == "default"
    assert parse_connectivity("18") == 18
    assert parse_connectivity("mito=6, er=26") == {"mito": 6, "er": 26}
    assert parse_block("64,128,256") == (64, 128, 256)
    assert parse_block("128") == (128, 128, 128)
    for text in ("mito", "mito=", "=6", "mito=x", ""):
        with pytest.raises(InputError):
            parse_connectivity(text)
    for text in ("64,64", "a", "-1,2,3", ""):
        with pytest.raises(InputError):
            parse_block(text)
