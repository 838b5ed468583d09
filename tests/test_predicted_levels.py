"""``em-bench predict --aggregation``: levels from the kept maps, on the part of the volume that was predicted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from baselines.cli_mismatch import mismatch
from baselines.cli_predict import predict
from baselines.cli_train import train
from em_bench_eval.cli_score import score
from em_bench_eval.errors import InputError
from em_bench_eval.score_volumes import open_labels, score_volumes
from em_bench_eval.volume_io import open_volume

torch.set_num_threads(1)


def test_levels_of_a_split_score_against_the_dataset(
    tiny_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["--model", "unet", "--preset", "smoke", "--dataset", str(tiny_dataset), "--out", str(tmp_path / "run")]
    assert train([*common, "--steps", "1", "--crop", "32", "--source", "lucchipp"]) == 0
    volume = next(path.stem for path in sorted((tiny_dataset / "volumes").glob("lucchipp*.zarr")))
    options = ["--checkpoint", str(tmp_path / "run"), "--dataset", str(tiny_dataset), "--config", "volumes"]
    out = tmp_path / "out"
    levels = ["--aggregation", "L1", "L5", "--oracle", "--patch", "16", "--block", "8"]
    assert predict([*options, "--only", volume, "--out", str(out), *levels]) == 0
    assert sorted(path.name for path in (out / "levels").iterdir()) == ["L1", "L5", "oracle-L1", "oracle-L5"]
    reference = tiny_dataset / "volumes" / f"{volume}.zarr"
    whole = open_volume(reference / "labels" / "instances").shape
    best = open_labels(out / "levels" / "oracle-L5" / f"{volume}.zarr")
    assert best.predicted_box is not None
    assert best.shape[0] < whole[0]  # the test slices only
    values = score_volumes(best, open_labels(reference)).compute()
    assert values["mito/semantic_dice"] == 1.0
    written = np.asarray(open_volume(out / "levels" / "oracle-L5" / f"{volume}.zarr" / "labels" / "instances")[:])
    z0, z1 = best.predicted_box[0]
    np.testing.assert_array_equal(
        written > 0, np.asarray(open_volume(reference / "labels" / "instances")[:])[z0:z1] > 0
    )
    capsys.readouterr()
    assert score([str(out / "levels" / "L1" / f"{volume}.zarr"), str(reference)]) == 0
    assert f"[{z1 - z0}, " in capsys.readouterr().out
    assert (
        mismatch(["--maps", str(out / "maps" / volume), "--reference", str(reference), "--out", str(tmp_path / "m")])
        == 0
    )
    assert (tmp_path / "m" / "mismatch.svg").is_file()


def test_what_excludes_each_other_is_refused_at_once(tmp_path: Path) -> None:
    common = ["--checkpoint", "none", "--out", str(tmp_path / "out")]
    with pytest.raises(InputError, match="--aggregation belongs to volumes"):
        predict([*common, "--dataset", "d", "--aggregation", "L5"])
    with pytest.raises(InputError, match="--aggregation reads the maps"):
        predict([*common, "--volume", "v.tif", "--aggregation", "L5", "--discard-maps"])
    with pytest.raises(InputError, match="--oracle needs a reference and levels"):
        predict([*common, "--volume", "v.tif", "--aggregation", "L5", "--oracle"])
