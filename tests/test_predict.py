"""Prediction from a checkpoint and a dataset folder to a prediction folder."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from baselines import cli
from baselines.model import Baseline, BaselineConfig
from baselines.models.unet import UNet, UNetConfig
from baselines.predict import TileSettings, predict, predict_image, predict_maps, symmetric_maps
from em_bench_eval.errors import InputError
from em_bench_eval.rows import LabelledImage, decode_row, open_rows, read_prediction_info, read_predictions
from em_bench_eval.schema import Organelle

torch.set_num_threads(1)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("checkpoint")
    UNet(UNetConfig(width=4, depth=2, groups=2, trained_organelles=("mito", "er"))).save_pretrained(folder)
    return folder


class _Bright(Baseline):
    """Says that what is bright is a mitochondrion; looks at one pixel at a time."""

    name = "bright"

    def __init__(self) -> None:
        super().__init__(BaselineConfig(trained_organelles=("mito",)))

    @property
    def map_names(self) -> tuple[str, ...]:
        return ("mito",)

    def maps(self, image: torch.Tensor) -> torch.Tensor:
        return (image > 0).float()


def _two_squares(nm: float) -> LabelledImage:
    scale = 8.0 / nm
    image = np.full((round(120 * scale), round(150 * scale)), 60, np.uint8)
    for y, x in ((20, 20), (70, 90)):
        image[round(y * scale) : round((y + 30) * scale), round(x * scale) : round((x + 30) * scale)] = 200
    return LabelledImage(
        "v/z/00000",
        image,
        np.zeros(image.shape, np.uint16),
        {},
        frozenset(),
        image < 0,
        (nm, nm),
        "s",
        "s",
        "in",
        "test",
    )


@pytest.mark.parametrize("nm", [8.0, 5.0, 16.0])
def test_instances_come_back_at_native_resolution(nm: float) -> None:
    row = _two_squares(nm)
    found = predict_image(_Bright(), row, TileSettings(tile=64, margin=8), CPU)
    assert found.record_id == "v/z/00000"
    assert found.organelle_of == {1: Organelle.MITO, 2: Organelle.MITO}
    assert found.instances.shape == row.image.shape
    reference = row.image == 200
    overlap = 2 * np.count_nonzero(reference & (found.instances > 0))
    assert overlap / (reference.sum() + (found.instances > 0).sum()) > 0.95
    assert all(0.9 < confidence <= 1.0 for confidence in found.confidence_of.values())


def test_tile_size_does_not_matter_to_a_model_that_looks_at_pixels() -> None:
    row = _two_squares(8.0)
    maps = [
        predict_maps(_Bright(), row.image, row.pixel_size_nm, TileSettings(tile, 16, 0.25, batch), CPU)
        for tile, batch in ((64, 1), (96, 3), (512, 1))
    ]
    np.testing.assert_allclose(maps[0], maps[2], atol=1e-6)
    np.testing.assert_allclose(maps[1], maps[2], atol=1e-6)


def test_symmetries_are_undone() -> None:
    image = torch.randn(2, 1, 12, 20)
    torch.testing.assert_close(symmetric_maps(_Bright(), image), (image > 0).float())
    torch.manual_seed(0)
    model = UNet(UNetConfig(width=2, depth=1, groups=1, trained_organelles=("mito",))).eval()
    square = torch.randn(1, 1, 16, 16)
    turned = symmetric_maps(model, torch.rot90(square, 1, (-2, -1)))
    torch.testing.assert_close(turned, torch.rot90(symmetric_maps(model, square), 1, (-2, -1)), atol=1e-5, rtol=1e-4)


def test_end_to_end(checkpoint: Path, tiny_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "predictions"
    arguments = ["--checkpoint", str(checkpoint), "--dataset", str(tiny_dataset), "--out", str(out), "--margin", "8"]
    assert cli.predict(arguments) == 0
    rows = {row.record_id: row for row in map(decode_row, open_rows(tiny_dataset, "wild", "test"))}
    predictions = {prediction.record_id: prediction for prediction in read_predictions(out)}
    assert predictions.keys() == rows.keys()
    for id_, prediction in predictions.items():
        assert prediction.instances.shape == rows[id_].image.shape
        assert set(np.unique(prediction.instances)) - {0} == set(prediction.organelle_of)
        assert list(prediction.organelle_of) == list(range(1, len(prediction.organelle_of) + 1))
        assert set(prediction.organelle_of.values()) <= {Organelle.MITO, Organelle.ER}
    info = read_prediction_info(out)
    assert (info["model"], info["dataset"], info["config"], info["split"]) == (
        "unet",
        "em-organelle-wild",
        "wild",
        "test",
    )
    assert info["images"] == len(rows)
    assert info["organelles"] == ["mito", "er"]
    assert info["settings"]["decoders"]["mito"]["min_area_nm2"] > 0
    assert str(tmp_path) not in json.dumps(info)  # no paths of this machine in what is submitted

    before = (out / "predictions.parquet").stat().st_mtime_ns
    assert cli.predict(arguments) == 0
    assert "this very prediction" in capsys.readouterr().err
    assert (out / "predictions.parquet").stat().st_mtime_ns == before
    with pytest.raises(InputError, match="another prediction\n  found: it differs in settings"):
        cli.predict([*arguments, "--tile", "256"])
    assert cli.predict([*arguments, "--tile", "256", "--overwrite"]) == 0
    assert (out / "predictions.parquet").stat().st_mtime_ns != before


def test_an_untrained_checkpoint_and_an_unknown_split_are_refused(
    checkpoint: Path, tiny_dataset: Path, tmp_path: Path
) -> None:
    UNet(UNetConfig(width=2, depth=1, groups=1)).save_pretrained(tmp_path / "untrained")
    with pytest.raises(InputError, match="was never trained"):
        predict(str(tmp_path / "untrained"), str(tiny_dataset), "wild", "test", tmp_path / "out")
    with pytest.raises(InputError, match="cannot open"):
        predict(str(checkpoint), str(tiny_dataset), "wild", "tset", tmp_path / "out")
    with pytest.raises(InputError, match="--tile 32 leaves nothing"):
        cli.predict(["--checkpoint", "x", "--dataset", "y", "--out", "z", "--tile", "32", "--margin", "16"])
    assert not (tmp_path / "out").exists()


def test_an_interrupted_prediction_leaves_nothing_and_harms_nothing(
    checkpoint: Path, tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    predict(str(checkpoint), str(tiny_dataset), "wild", "test", out, TileSettings(margin=8))
    kept = shutil.copytree(out, tmp_path / "kept")

    def fails(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("baselines.predict.predict_image", fails)
    with pytest.raises(KeyboardInterrupt):
        predict(str(checkpoint), str(tiny_dataset), "wild", "test", out, overwrite=True)
    assert sorted(path.name for path in out.iterdir()) == sorted(path.name for path in kept.iterdir())
    assert (out / "predictions.parquet").read_bytes() == (kept / "predictions.parquet").read_bytes()


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from baselines import cli\n"
        "for command in (cli.train, cli.predict):\n"
        "    try: command(['--help'])\n"
        "    except SystemExit as end: assert end.code == 0\n"
        "print('heavy:', sorted({'torch', 'transformers', 'datasets', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.count("example:") == 2
    assert done.stdout.strip().endswith("heavy: []")
