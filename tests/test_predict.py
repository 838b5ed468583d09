"""Prediction of images: registered, resumable, at any memory, from a checkpoint and a dataset folder to a folder."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from scipy import ndimage

from baselines import cli_predict, memory, predict
from baselines.image_pieces import Pieces
from baselines.masks import Mask, cut_to_box
from baselines.memory import Network, available_bytes, symmetric_maps
from baselines.model import Baseline, BaselineConfig
from baselines.models.unet import UNet, UNetConfig
from baselines.predict import Predictor, image_pixels
from baselines.prediction_settings import TileSettings, load_trained
from em_bench_eval.errors import InputError
from em_bench_eval.rows import LabelledImage, decode_row, open_rows, read_prediction_info, read_predictions
from em_bench_eval.schema import Organelle

torch.set_num_threads(1)
CPU = torch.device("cpu")
SMALL = TileSettings(tile=64, margin=8, batch_size=1)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("checkpoint")
    UNet(UNetConfig(width=4, depth=2, trained_organelles=("mito", "er"))).save_pretrained(folder)
    return folder


class _Bright(Baseline):
    """Says that what is bright is a mitochondrion; looks at one pixel at a time."""

    name = "bright"
    multiple = 1

    def __init__(self) -> None:
        super().__init__(BaselineConfig(trained_organelles=("mito",)))

    @property
    def map_names(self) -> tuple[str, ...]:
        return ("mito",)

    def maps(self, image: torch.Tensor) -> torch.Tensor:
        return (image + 1) / 2


class _BrightMasks(_Bright):
    """The same as masks: one for each bright piece of a tile."""

    name = "bright-masks"
    output = "masks"
    organelle: Organelle | None = Organelle.MITO

    def masks(self, image: torch.Tensor) -> list[list[Mask]]:
        found = []
        for tile in image[:, 0].numpy():
            pieces, count = ndimage.label(tile > 0)
            cut = [cut_to_box(pieces == number, self.organelle, 0.9) for number in range(1, count + 1)]
            found.append([mask for mask in cut if mask is not None])
        return found


def _row(image: np.ndarray, nm: float) -> LabelledImage:
    none = np.zeros(image.shape, np.uint16)
    return LabelledImage("v/z/00000", image, none, {}, frozenset(), none > 0, (nm, nm), "s", "s", "in", "test")


def _squares(nm: float, height_nm: float = 960.0, width_nm: float = 1200.0) -> np.ndarray:
    """Two bright squares of 240 nm; pixels that an edge crosses are as bright as their share."""
    places = [(np.arange(round(size / nm) * 8) + 0.5) * nm / 8 for size in (height_nm, width_nm)]
    fine = np.full([len(place) for place in places], 60.0)
    for y, x in ((160.0, 160.0), (660.0, 890.0)):
        inside = [(place > start) & (place < start + 240) for place, start in zip(places, (y, x), strict=True)]
        fine[np.ix_(*inside)] = 200.0
    height, width = (size // 8 for size in fine.shape)
    return fine.reshape(height, 8, width, 8).mean(axis=(1, 3)).astype(np.uint8)


@pytest.mark.parametrize("model", [_Bright(), _BrightMasks()], ids=["maps", "masks"])
@pytest.mark.parametrize("nm", [8.0, 5.0, 4.6, 16.0])
def test_instances_come_back_at_native_resolution_and_in_their_place(model: Baseline, nm: float) -> None:
    """The centre of the square near the far corner is where it was drawn, to less than half a pixel."""
    row = _row(_squares(nm), nm)
    found = Predictor(model, SMALL, CPU).image(row)
    assert found.record_id == "v/z/00000"
    assert found.organelle_of == {1: Organelle.MITO, 2: Organelle.MITO}
    assert found.instances.shape == row.image.shape
    ids = sorted((1, 2), key=lambda id_: np.nonzero(found.instances == id_)[0].mean())
    for id_, centre_nm in zip(ids, ((280.0, 280.0), (780.0, 1010.0)), strict=True):
        centre = [(place.mean() + 0.5) * nm for place in np.nonzero(found.instances == id_)]
        # a mask has no grey edges: it is right to half a pixel of the network at each side
        assert np.abs(np.subtract(centre, centre_nm)).max() < 0.5 * (nm if model.output == "maps" else max(nm, 8.0))
    assert all(0.5 < confidence <= 1.0 for confidence in found.confidence_of.values())


def test_an_extent_that_is_no_whole_number_of_pixels_shifts_nothing() -> None:
    """148 pixels of 5 nm are 92.5 of 8 nm: stretching 92 back to 148 would move the far end by 0.8 pixels."""
    width = 148
    stripes = (np.sin(2 * np.pi * np.arange(width) / 37.0) * 90 + 120).astype(np.uint8)
    maps = Predictor(_Bright(), SMALL, CPU).maps(np.tile(stripes, (40, 1)), (5.0, 5.0))
    from em_bench_eval.align import resize_image

    back = resize_image(maps, (40, width), [5 / 8] * 2)[0, 20]
    original = stripes.astype(float)
    slope, _ = np.polyfit(original[5:-5], back[5:-5], 1)
    shift = [np.corrcoef(np.interp(np.arange(width) + by, np.arange(width), original)[100:-5], back[100:-5])[0, 1]
             for by in np.linspace(-1, 1, 41)]  # fmt: skip
    assert slope > 0
    assert abs(np.linspace(-1, 1, 41)[int(np.argmax(shift))]) <= 0.1


def test_tile_and_batch_do_not_matter_to_a_model_that_looks_at_pixels() -> None:
    image = _squares(8.0)
    maps = [
        Predictor(_Bright(), TileSettings(tile, 16, 0.25, batch), CPU).maps(image, (8.0, 8.0))
        for tile, batch in ((64, 1), (96, 3), (512, None))
    ]
    np.testing.assert_allclose(maps[0], maps[2], atol=1e-6)
    np.testing.assert_allclose(maps[1], maps[2], atol=1e-6)


def test_symmetries_are_undone_and_masks_have_none() -> None:
    image = torch.randn(2, 1, 12, 20)
    torch.testing.assert_close(symmetric_maps(_Bright(), image), (image + 1) / 2)
    torch.manual_seed(0)
    model = UNet(UNetConfig(width=2, depth=1, trained_organelles=("mito",))).eval()
    square = torch.randn(1, 1, 16, 16)
    turned = symmetric_maps(model, torch.rot90(square, 1, (-2, -1)))
    torch.testing.assert_close(turned, torch.rot90(symmetric_maps(model, square), 1, (-2, -1)), atol=1e-5, rtol=1e-4)
    with pytest.raises(InputError, match="--symmetries is not supported for bright-masks"):
        Predictor(_BrightMasks(), TileSettings(symmetries=True), CPU)


def test_masks_without_an_organelle_are_refused() -> None:
    model = _BrightMasks()
    model.organelle = None
    with pytest.raises(InputError, match="without saying of which organelle"):
        Predictor(model, SMALL, CPU).image(_row(_squares(8.0), 8.0))


class _Hungry(_Bright):
    """Runs out of memory with more than ``most`` tiles."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most, self.seen = most, []

    def maps(self, image: torch.Tensor) -> torch.Tensor:
        self.seen.append(len(image))
        if len(image) > self.most:
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried to allocate 1 TB")
        return super().maps(image)


def test_a_batch_that_does_not_fit_is_halved_and_a_tile_that_does_not_fit_is_said(
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = _Hungry(2)
    tiles = torch.randn(11, 1, 8, 8)
    network = Network(model, CPU, (8, 8), batch_size=8)
    torch.testing.assert_close(network.maps(tiles), (tiles + 1) / 2)
    assert network.batch_size == 2
    assert model.seen == [8, 4, 2, 2, 2, 2, 2, 1]
    assert "2 tiles at a time from here on" in capsys.readouterr().err
    with pytest.raises(InputError, match="8 x 8 pixels on cpu ran out of memory") as error:
        Network(_Hungry(0), CPU, (8, 8), batch_size=1).maps(tiles)
    assert "--tile" in str(error.value)
    with pytest.raises(RuntimeError, match="something else"):
        Network(_Bright(), CPU, (8, 8), batch_size=1)._in_batches(tiles, _fails)


def _fails(_: torch.Tensor) -> None:
    raise RuntimeError("something else")


def test_the_batch_is_chosen_to_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "measured_bytes", lambda device, run: 100)
    for free, expected in ((100_000, 4), (400, 2), (450, 2)):
        monkeypatch.setattr(memory, "available_bytes", lambda device=None, free=free: free)
        assert Network(_Bright(), CPU, (64, 64)).batch_size == expected
    monkeypatch.setattr(memory, "available_bytes", lambda device=None: 300)
    with pytest.raises(InputError, match="one tile of 64 x 64 pixels on cpu does not fit into memory"):
        Network(_Bright(), CPU, (64, 64))


def test_what_a_call_takes_is_measured_and_what_is_free_is_known(project: Path) -> None:
    code = "import numpy, torch; from baselines.memory import measured_bytes\n"
    code += f"print(measured_bytes(torch.device('cpu'), lambda: numpy.ones({96 << 20}, numpy.uint8).sum()))"
    # of a process of its own: what earlier tests leave behind may be given back meanwhile
    measured = subprocess.run([sys.executable, "-c", code], cwd=project, capture_output=True, text=True, check=True)
    assert 0.8 * (96 << 20) < int(measured.stdout) < 2 * (96 << 20)
    assert 1 << 20 < available_bytes() < 1 << 50


def test_an_image_that_memory_cannot_hold_is_refused_before_it_swaps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predict, "available_bytes", lambda device=None: 1000)
    with pytest.raises(InputError, match="does not fit into memory") as error:
        Predictor(_Bright(), SMALL, CPU).image(_row(_squares(8.0), 8.0))
    assert "em-bench predict --volume" in str(error.value)


def test_end_to_end(checkpoint: Path, tiny_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "predictions"
    arguments = ["--checkpoint", str(checkpoint), "--dataset", str(tiny_dataset), "--out", str(out), "--margin", "8"]
    assert cli_predict.predict(arguments) == 0
    assert "note: er: predicted, but annotated nowhere in wild/test" in capsys.readouterr().err
    rows = {row.record_id: row for row in map(decode_row, open_rows(tiny_dataset, "wild", "test"))}
    predictions = {prediction.record_id: prediction for prediction in read_predictions(out)}
    assert list(predictions) == list(rows)
    for id_, prediction in predictions.items():
        assert prediction.instances.shape == rows[id_].image.shape
        assert set(np.unique(prediction.instances)) - {0} == set(prediction.organelle_of)
        assert list(prediction.organelle_of) == list(range(1, len(prediction.organelle_of) + 1))
        assert set(prediction.organelle_of.values()) <= {Organelle.MITO, Organelle.ER}
    info = read_prediction_info(out)
    assert (info["model"], info["dataset"], info["config"]) == ("unet", "em-organelle-wild", "wild")
    assert (info["split"], info["images"], info["organelles"]) == ("test", len(rows), ["mito", "er"])
    assert info["settings"]["decoders"]["mito"]["min_area_nm2"] > 0
    assert (info["settings"]["tile"], info["settings"]["margin"]) == (512, 8)
    assert str(tmp_path) not in json.dumps(info)  # no paths of this machine in what is submitted
    assert not list(out.glob(".partial-*"))

    before = (out / "predictions.parquet").stat().st_mtime_ns
    assert cli_predict.predict([*arguments, "--batch-size", "2"]) == 0  # changes nothing
    assert "this very prediction" in capsys.readouterr().err
    assert (out / "predictions.parquet").stat().st_mtime_ns == before
    with pytest.raises(InputError, match="another prediction\n  found: it differs in settings"):
        cli_predict.predict([*arguments, "--tile", "256"])
    assert cli_predict.predict([*arguments, "--tile", "256", "--overwrite"]) == 0
    assert (out / "predictions.parquet").stat().st_mtime_ns != before


def test_an_interrupted_prediction_goes_on_where_it_stopped(
    checkpoint: Path, tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def run(out: Path) -> int:
        settings = TileSettings(margin=8)
        return predict.predict(str(checkpoint), str(tiny_dataset), "wild", "test", out, settings)

    count = run(tmp_path / "whole")
    assert count >= 4
    original = Predictor.raw
    seen: list[object] = []

    def stops(self: Predictor, aligned: object) -> object:
        seen.append(aligned)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return original(self, aligned)  # type: ignore[arg-type]

    monkeypatch.setattr(Predictor, "raw", stops)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "out")
    assert f"2 of {count} images are kept" in capsys.readouterr().err
    assert not (tmp_path / "out" / "predictions.parquet").exists()
    assert run(tmp_path / "out") == count
    assert len(seen) == 3 + count - 2  # the two finished images were not predicted again
    whole, resumed = (pq.read_table(tmp_path / name / "predictions.parquet") for name in ("whole", "out"))
    assert resumed.equals(whole)
    assert json.loads((tmp_path / "out" / "prediction.json").read_text()) == json.loads(
        (tmp_path / "whole" / "prediction.json").read_text()
    )
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["prediction.json", "predictions.parquet"]


def test_pieces_of_other_images_and_other_settings_are_not_taken(tiny_dataset: Path, tmp_path: Path) -> None:
    rows = open_rows(tiny_dataset, "wild", "test")
    pieces = Pieces(tmp_path, {"tile": 512})
    found = Predictor(_Bright(), SMALL, CPU).image(decode_row(rows[0]))
    pieces.write(0, rows[0], found)
    assert pieces.has(0, rows[0])
    assert not pieces.has(0, {**rows[0], "image": {"bytes": b"another", "path": None}})
    assert not pieces.has(0, rows[1])
    assert not Pieces(tmp_path, {"tile": 256}).has(0, rows[0])


def test_pixels_are_counted_without_decoding(tiny_dataset: Path) -> None:
    rows = open_rows(tiny_dataset, "wild", "test")
    assert image_pixels(rows) == [decode_row(row).image.size for row in rows]


def test_an_untrained_checkpoint_and_an_unknown_split_are_refused(
    checkpoint: Path, tiny_dataset: Path, tmp_path: Path
) -> None:
    UNet(UNetConfig(width=2, depth=1)).save_pretrained(tmp_path / "untrained")
    with pytest.raises(InputError, match="was never trained"):
        load_trained(str(tmp_path / "untrained"))
    with pytest.raises(InputError, match="cannot open"):
        predict.predict(str(checkpoint), str(tiny_dataset), "wild", "tset", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset", "y", "--tile", "32", "--margin", "16"], "--tile 32 leaves nothing"),
        ([], "nothing to predict"),
        (["--dataset", "y", "--volume", "z"], "exclude each other"),
        (["--dataset", "y", "--planes", "xy,xz"], "--planes belongs to volumes"),
        (["--dataset", "y", "--voxel-size-nm", "8,8,8"], "--voxel-size-nm does not belong here"),
        (["--volume", "z", "--only", "a"], "--only does not belong here"),
    ],
)
def test_options_that_contradict_each_other_are_refused_at_once(arguments: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        cli_predict.predict(["--checkpoint", "x", "--out", "o", *arguments])


def test_help_teaches_and_imports_nothing_heavy() -> None:
    code = (
        "import sys; from baselines import cli_predict\n"
        "try: cli_predict.predict(['--help'])\n"
        "except SystemExit as end: assert end.code == 0\n"
        "print('heavy:', sorted({'torch', 'transformers', 'datasets', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "examples:" in done.stdout
    assert done.stdout.strip().endswith("heavy: []")
