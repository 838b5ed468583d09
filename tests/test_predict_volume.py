"""Volumes: the maps do not depend on blocks, tiles or kills, the instances equal those of one slow pass in memory."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from skimage.segmentation import watershed
from torch import nn

from baselines import cli_predict
from baselines.decode import DECODERS
from baselines.model import Baseline, BaselineConfig
from baselines.models.unet import UNet, UNetConfig
from baselines.predict import Predictor
from baselines.prediction_settings import TileSettings
from baselines.preprocess import NORMALISATIONS
from baselines.volumes import volume_classes, volume_instances, volume_split
from baselines.volumes.gray import Gray
from baselines.volumes.map_store import MapStore, create_maps, open_maps
from baselines.volumes.orthoplane import volume_maps
from baselines.volumes.resample import Line
from baselines.volumes.volume_instances import Target, label_maps, min_volume_nm3, read_table
from baselines.volumes.volume_jobs import volume_name
from em_bench_eval.align import align_image, aligned_shape, resize_image
from em_bench_eval.cli_score import score
from em_bench_eval.errors import InputError
from em_bench_eval.rows import decode_row, open_rows, read_predictions
from em_bench_eval.schema import Organelle, VoxelSize
from em_bench_eval.volume_io import open_volume

torch.set_num_threads(1)
CPU = torch.device("cpu")
SMALL = TileSettings(tile=48, margin=8, batch_size=2)
ALL = (slice(None),) * 3


class Local(Baseline):
    """Sees exactly three voxels far in every direction that it convolves, with zero padding."""

    name = "local"
    multiple = 1

    def __init__(self, ndim: int = 2) -> None:
        super().__init__(BaselineConfig(trained_organelles=("mito", "er")))
        self.ndim = ndim  # type: ignore[misc]
        conv = nn.Conv2d if ndim == 2 else nn.Conv3d
        torch.manual_seed(0)
        layers: list[nn.Module] = []
        for channels in (1, 3, 3):
            layers += [conv(channels, 3, 3, padding=1), nn.Tanh()]
        self.layers = nn.Sequential(*layers, conv(3, 2, 1), nn.Sigmoid())

    @property
    def map_names(self) -> tuple[str, ...]:
        return ("mito", "er")

    @torch.no_grad()
    def maps(self, image: torch.Tensor) -> torch.Tensor:
        return self.layers(image)


def _volume(shape: tuple[int, int, int], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def _maps(model: Baseline, image: np.ndarray, folder: Path, nm: tuple[float, ...], **more: object) -> np.ndarray:
    options = {"settings": SMALL, "device": CPU, "progress": False, **more}
    return volume_maps(model, image, VoxelSize(*nm), folder, **options).read(ALL)  # type: ignore[arg-type]


@pytest.mark.parametrize("nm", [8.0, 5.0, 10.0])
def test_a_volume_of_slices_is_predicted_as_its_slices_are(nm: float, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = UNet(UNetConfig(width=2, depth=1, trained_organelles=("mito", "er"))).eval()
    image = _volume((3, 61, 74))
    found = _maps(model, image, tmp_path / "m", (30.0, nm, nm), block_shape=(2, 61, 74))
    predictor = Predictor(model, SMALL, CPU)
    for z in range(3):
        expected = resize_image(predictor.maps(image[z], (nm, nm)), (61, 74), [nm / 8] * 2)
        np.testing.assert_allclose(found[:, z], expected, atol=1e-3)  # float16


@pytest.mark.parametrize("ndim", [2, 3])
@given(st.integers(7, 30), st.tuples(*[st.integers(3, 40)] * 3), st.sampled_from([0.0, 0.3]), st.integers(1, 3))
@settings(max_examples=6, deadline=None)
def test_seams_neither_tiles_nor_blocks_show_where_the_network_sees_no_further_than_the_margin(
    tmp_path_factory: pytest.TempPathFactory,
    ndim: int,
    tile: int,
    block: tuple[int, int, int],
    overlap: float,
    batch: int,
) -> None:
    image = _volume((9, 21, 26))
    model = Local(ndim)
    folder = tmp_path_factory.mktemp("seams")
    tiles = TileSettings(tile, 3, overlap, batch)
    block = tuple(min(edge, size) for edge, size in zip(block, image.shape, strict=True))  # type: ignore[assignment]
    found = _maps(model, image, folder / "m", (8.0, 8.0, 8.0), settings=tiles, block_shape=block)

    if ndim == 2:
        padded = [np.pad(NORMALISATIONS["percentile-1-99"].of(plane), 3, mode="reflect") for plane in image]
        whole = model.maps(torch.from_numpy(np.stack(padded))[:, None])[..., 3:-3, 3:-3].transpose(0, 1)
    else:
        padded_volume = np.pad(NORMALISATIONS["percentile-1-99"].of(image), 3, mode="reflect")
        whole = model.maps(torch.from_numpy(padded_volume)[None, None])[0, :, 3:-3, 3:-3, 3:-3]
    np.testing.assert_allclose(found, whole.numpy(), atol=1e-3)  # kept as float16
    assert not (folder / "m" / "tiles").exists()


def test_blocks_change_nothing_also_where_the_volume_is_resampled(tmp_path: Path) -> None:
    image, nm = _volume((8, 40, 50)), (12.0, 5.0, 6.0)
    whole = _maps(Local(3), image, tmp_path / "whole", nm, block_shape=(8, 40, 50), settings=TileSettings(20, 3))
    for number, block in enumerate([(3, 17, 50), (8, 9, 11)]):
        found = _maps(Local(3), image, tmp_path / str(number), nm, block_shape=block, settings=TileSettings(20, 3))
        assert np.abs(found - whole).max() < 1e-3
        assert (found != whole).mean() < 1e-3  # other batches may round another way


def test_three_planes_are_the_mean_of_three_turned_predictions(tmp_path: Path) -> None:
    image, nm = _volume((18, 20, 24)), (5.0, 5.0, 5.0)
    model = Local()
    found = _maps(model, image, tmp_path / "all", nm, planes=("xy", "xz", "yz"))
    orders = {"xy": (0, 1, 2), "xz": (1, 0, 2), "yz": (2, 0, 1)}
    total = np.zeros_like(found)
    for plane, order in orders.items():
        turned = _maps(model, np.ascontiguousarray(image.transpose(order)), tmp_path / plane, nm)
        total += turned.transpose(0, *(1 + order.index(axis) for axis in range(3)))
    np.testing.assert_allclose(found, total / 3, atol=1e-3)
    assert not (tmp_path / "all" / "planes").exists()


def test_planes_that_make_no_sense_are_refused(tmp_path: Path) -> None:
    image = _volume((4, 8, 8))
    for model, nm, planes, message in (
        (Local(), (30.0, 8.0, 8.0), ("xy", "xz"), "need an isotropic volume\n  found: voxels of 30, 8, 8 nm"),
        (Local(3), (8.0, 8.0, 8.0), ("xy", "xz"), "is a 3D model and has no planes"),
        (Local(), (8.0, 8.0, 8.0), ("xy", "zx"), "did you mean"),
        (Local(), (8.0, 8.0, 8.0), ("xy", "xy"), "names no plane, or one twice"),
    ):
        with pytest.raises(InputError, match=message):
            _maps(model, image, tmp_path / "m", nm, planes=planes)
    assert not (tmp_path / "m").exists()


KILLED = """
import sys, time
from pathlib import Path
import numpy as np
sys.path.insert(0, {tests!r})
import test_predict_volume as t
class Slow(t.Local):
    def maps(self, image):
        time.sleep({delay})
        return super().maps(image)
t._maps(Slow(), t._volume((12, 40, 40)), Path({folder!r}), (8.0, 5.0, 5.0), block_shape=(1, 23, 40))
"""


def test_kill_9_at_any_moment_costs_one_block_and_changes_no_bit(tmp_path: Path) -> None:
    expected = _maps(Local(), _volume((12, 40, 40)), tmp_path / "whole", (8.0, 5.0, 5.0), block_shape=(1, 23, 40))
    folder = tmp_path / "killed"
    code = KILLED.format(tests=str(Path(__file__).parent), folder=str(folder), delay=0.03)
    journal = folder / "done.txt"
    for blocks in (3, 14):  # in the middle of a slice, and of one that an interrupted run left half done
        running = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
        for _ in range(12_000):
            if journal.exists() and len(journal.read_text().splitlines()) >= blocks:
                break
            assert running.poll() is None
            time.sleep(0.01)
        running.send_signal(signal.SIGKILL)
        running.wait()
        assert 0 < len(open_maps(folder).missing()) <= 24 - blocks
    found = _maps(Local(), _volume((12, 40, 40)), folder, (8.0, 5.0, 5.0), block_shape=(1, 23, 40))
    np.testing.assert_array_equal(found, expected)
    with pytest.raises(InputError, match="holds other maps"):
        _maps(Local(), _volume((12, 40, 40), seed=1), folder, (8.0, 5.0, 5.0), block_shape=(1, 23, 40))


@pytest.mark.parametrize("name", list(NORMALISATIONS))
def test_every_normalisation_of_images_is_that_of_parts(name: str) -> None:
    image = _volume((2, 30, 44))
    shape = aligned_shape((30, 44), (5.0, 5.0))
    lines = (Line(2, 2, 1.0), Line(30, shape[0], 1.6), Line(44, shape[1], 1.6))
    gray = Gray(name, image, lines, by_volume=False)
    for z in range(2):
        whole = NORMALISATIONS[name].of(align_image(image[z], (5.0, 5.0)))
        part = align_image(image[z], (5.0, 5.0))[None, 3:9, 5:20]
        np.testing.assert_allclose(gray.normalise(part, z, False)[0], whole[3:9, 5:20], atol=1e-5)


def test_limits_of_a_large_slice_come_from_samples_and_of_other_types_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    image = (np.random.default_rng(0).normal(120, 30, (1, 700, 900))).astype(np.float32)
    lines = (Line(1, 1, 1.0), Line(700, 700, 1.0), Line(900, 900, 1.0))
    exact = Gray("percentile-1-99", image, lines, False).normalise(image[:, :64, :64].copy(), 0, False)
    monkeypatch.setattr("baselines.volumes.gray.EXACT_PIXELS", 1000)
    monkeypatch.setattr("baselines.volumes.gray.WINDOW", 40)
    sampled = Gray("percentile-1-99", image, lines, False).normalise(image[:, :64, :64].copy(), 0, False)
    assert 0 < np.abs(sampled - exact).max() < 0.05
    with pytest.raises(InputError, match="needs gray values of 0 to 255"):
        Gray("cem500k", image.astype(np.uint16), lines, False)


# ---- instances


# smaller than those of real tissue, as the volumes are
SMALL_DECODERS = {o: replace(d, min_area_nm2=min(d.min_area_nm2, 1500.0)) for o, d in DECODERS.items()}


def _blobs(shape: tuple[int, int, int], seed: int, nm: tuple[float, ...]) -> tuple[tuple[str, ...], np.ndarray]:
    """Maps of touching mitochondria with holes, and of a network."""
    rng = np.random.default_rng(seed)
    sigma = [30.0 / edge for edge in nm]
    field, net = (ndimage.gaussian_filter(rng.normal(size=shape), sigma) for _ in range(2))
    mito = field > np.quantile(field, 0.7)
    mito &= rng.random(shape) > 0.002  # holes of one voxel
    er = (np.abs(net) < np.quantile(np.abs(net), 0.15)) & ~mito
    deep = ndimage.distance_transform_edt(mito, nm) / 60.0
    values = [np.where(mito, 0.9, 0.04), np.where(er, 0.8, 0.02), np.clip(deep, 0, 1)]
    noise = rng.random((3, *shape)) * 0.05
    return ("mito", "er", "distance:mito"), (np.stack(values) + noise).clip(0, 1).astype(np.float16)


def _store(folder: Path, shape: tuple[int, int, int], nm: tuple[float, ...], seed: int = 0) -> MapStore:
    names, values = _blobs(shape, seed, nm)
    store = create_maps(folder, names, shape, nm)
    for block in store.missing():
        store.write(block, values[(slice(None), *store.box(block))])
    return store


def _slow_twin(store: MapStore) -> tuple[np.ndarray, dict[int, Organelle]]:
    """The whole volume at once, by the sentences of the docstrings."""
    maps = dict(zip(store.names, store.read(ALL), strict=True))
    stack = np.stack([maps["mito"], maps["er"]])
    best = stack.argmax(0)
    best[1 - stack.sum(0) >= stack.max(0)] = -1
    holes, count = ndimage.label(best < 0)
    for hole in range(1, count + 1):
        here = holes == hole
        around = ndimage.binary_dilation(here) & ~here
        at_edge = any(np.take(here, side, axis).any() for axis in range(3) for side in (0, -1) if here.shape[axis] > 1)
        if not at_edge and set(best[around]) == {0}:
            best[here] = 0
    voxel = float(np.prod(tuple(store.voxel_size_nm)))
    sigma = [min(store.voxel_size_nm) / nm for nm in store.voxel_size_nm]
    depth = ndimage.gaussian_filter(maps["distance:mito"], sigma)
    mito = best == 0
    seeds, _ = ndimage.label((depth >= 0.3) & mito, np.ones((3, 3, 3)))
    flooded = watershed(-depth, seeds, connectivity=np.ones((3, 3, 3)), mask=mito)
    parts, _ = ndimage.label(mito)  # touching by a corner only: two instances, whatever watershed did
    network, _ = ndimage.label(best == 1, np.ones((3, 3, 3)))
    result, organelle_of = np.zeros(store.shape, int), {}
    for organelle, labels in ((Organelle.MITO, flooded + 10_000 * parts * (flooded > 0)), (Organelle.ER, network)):
        least = (
            min_volume_nm3(SMALL_DECODERS[organelle], min(np.multiply(store.shape, tuple(store.voxel_size_nm)))) / voxel
        )
        for id_ in np.unique(labels[labels > 0]):
            if (labels == id_).sum() >= least:
                organelle_of[len(organelle_of) + 1] = organelle
                result[labels == id_] = len(organelle_of)
    return result, organelle_of


def _same_partition(one: np.ndarray, other: np.ndarray) -> bool:
    pairs = np.unique(np.stack([one.ravel(), other.ravel()]), axis=1)
    return len(np.unique(pairs[0])) == len(np.unique(pairs[1])) == pairs.shape[1]


def _labelled(store: MapStore, folder: Path, **more: object) -> tuple[np.ndarray, volume_instances.Instances]:
    path = folder / "volumes" / "v.zarr"
    target = Target(path, "v", store.shape)
    found = label_maps(store, target, SMALL_DECODERS, progress=False, **more)  # type: ignore[arg-type]
    return np.asarray(open_volume(path / "labels" / "instances")[:]), found


@pytest.mark.parametrize(("shape", "nm"), [((26, 48, 52), (8.0, 8.0, 8.0)), ((9, 60, 64), (30.0, 8.0, 8.0))])
def test_instances_equal_those_of_one_slow_pass_and_do_not_depend_on_blocks(
    shape: tuple[int, int, int], nm: tuple[float, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = _store(tmp_path / "m", shape, nm)
    whole, found = _labelled(store, tmp_path / "whole")
    expected, organelle_of = _slow_twin(store)
    assert _same_partition(whole, expected)
    counts = found.counts()
    assert counts["mito"] == sum(o is Organelle.MITO for o in organelle_of.values()) > 3
    assert counts["er"] == sum(o is Organelle.ER for o in organelle_of.values()) >= 1
    parts, _ = ndimage.label(np.isin(whole, [i for i, o in found.organelle_of().items() if o is Organelle.MITO]))
    touching = [np.unique(whole[parts == part]).size for part in range(1, parts.max() + 1)]
    assert max(touching) > 1  # watershed had something to do
    for id_, voxels in enumerate(found.voxels, start=1):
        assert np.count_nonzero(whole == id_) == voxels
    assert 0.5 < found.confidence.min() <= found.confidence.max() <= 1

    monkeypatch.setattr(volume_classes, "BLOCK", (7, 16, 33))
    again, table = _labelled(store, tmp_path / "blocks")
    np.testing.assert_array_equal(again, whole)
    np.testing.assert_array_equal(table.voxels, found.voxels)
    np.testing.assert_allclose(table.confidence, found.confidence, atol=1e-6)


def test_a_component_too_large_to_be_flooded_at_once_is_flooded_block_by_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = _store(tmp_path / "m", (26, 48, 52), (8.0, 8.0, 8.0))
    whole, found = _labelled(store, tmp_path / "whole")
    monkeypatch.setattr(volume_classes, "BLOCK", (13, 24, 26))
    monkeypatch.setattr(volume_split, "HALO", 64)  # sees everything: equal to the last voxel
    forced, _ = _labelled(store, tmp_path / "seen", largest_box=1)
    np.testing.assert_array_equal(forced, whole)
    monkeypatch.setattr(volume_split.flood_blocks, "__defaults__", (4,))
    narrow, table = _labelled(store, tmp_path / "narrow", largest_box=1)
    assert len(table.voxels) == len(found.voxels)  # no instance more or less, for seeds are the same
    np.testing.assert_array_equal(narrow > 0, whole > 0)
    assert (narrow == whole)[whole > 0].mean() > 0.95


def test_the_minimum_volume_is_that_of_a_ball_and_in_a_slice_the_minimum_area() -> None:
    decoder = DECODERS[Organelle.MITO]
    radius = np.sqrt(decoder.min_area_nm2 / np.pi)
    assert min_volume_nm3(decoder, 1e6) == pytest.approx(4 / 3 * np.pi * radius**3)
    assert min_volume_nm3(decoder, 50.0) == decoder.min_area_nm2 * 50.0


def test_an_interrupted_labelling_goes_on_and_incomplete_maps_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = _store(tmp_path / "m", (12, 40, 40), (8.0, 8.0, 8.0))
    whole, _ = _labelled(store, tmp_path / "whole")

    def stops(*_: object) -> None:
        raise KeyboardInterrupt

    for step in ("components", "measure", "_write"):
        with monkeypatch.context() as patch:
            patch.setattr(volume_instances, step, stops)
            with pytest.raises(KeyboardInterrupt):
                _labelled(store, tmp_path / "out")
        assert not (tmp_path / "out" / "volumes" / "v.zarr").exists()
    found, _ = _labelled(store, tmp_path / "out")
    np.testing.assert_array_equal(found, whole)
    assert [path.name for path in (tmp_path / "out" / "volumes").iterdir()] == ["v.zarr"]
    empty = create_maps(tmp_path / "empty", ("mito",), (4, 8, 8), (8, 8, 8))
    with pytest.raises(InputError, match="not complete\n  found: 1 blocks missing"):
        _labelled(empty, tmp_path / "none")


# ---- from the command line


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A U-Net that calls dark pixels mitochondria: what the fake images draw."""
    folder = tmp_path_factory.mktemp("checkpoint")
    torch.manual_seed(0)
    model = UNet(UNetConfig(width=2, depth=1, trained_organelles=("mito", "er"), distance_organelles=()))
    model.save_pretrained(folder)
    return folder


def test_volumes_of_a_split_score_as_images_and_as_volumes(
    checkpoint: Path, tiny_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    arguments = ["--checkpoint", str(checkpoint), "--dataset", str(tiny_dataset), "--config", "volumes"]
    arguments += ["--out", str(out), "--margin", "8", "--batch-size", "1"]
    assert cli_predict.predict(arguments) == 0
    assert "score the images:  em-bench score" in capsys.readouterr().out
    rows = [decode_row(row) for row in open_rows(tiny_dataset, "wild", "test")]
    predictions = list(read_predictions(out))
    assert [prediction.record_id for prediction in predictions] == [row.record_id for row in rows]
    name = next(row.record_id for row in rows if row.record_id.startswith("lucchipp")).split("/")[0]
    labels = np.asarray(open_volume(out / "volumes" / f"{name}.zarr" / "labels" / "instances")[:])
    ignore = np.asarray(open_volume(out / "volumes" / f"{name}.zarr" / "labels" / "ignore")[:])
    table = read_table(out / "volumes" / f"{name}.zarr" / "labels" / "instances.parquet").organelle_of()
    of_volume = [prediction for prediction in predictions if prediction.record_id.startswith(f"{name}/z/")]
    assert of_volume
    for prediction in of_volume:
        z = int(prediction.record_id.split("/")[2])
        np.testing.assert_array_equal(prediction.instances, labels[z])  # ids of the volume in every slice
        assert all(table[id_] is organelle for id_, organelle in prediction.organelle_of.items())
        assert not ignore[z].any()
    others = sorted(set(range(labels.shape[0])) - {int(p.record_id.split("/")[2]) for p in of_volume})
    assert others  # the folds that were not asked for are neither predicted nor judged
    assert not labels[others].any()
    assert ignore[others].all()
    assert score([str(out), str(tiny_dataset)]) == 0
    volume = ["volumes", f"{name}.zarr"]
    hidden = str(out.joinpath(*volume, "labels", "ignore"))
    assert score([str(out.joinpath(*volume)), str(tiny_dataset.joinpath(*volume)), "--ignore", hidden]) == 0

    before = (out / "predictions.parquet").stat().st_mtime_ns
    assert cli_predict.predict(arguments) == 0
    assert "this very prediction" in capsys.readouterr().err
    assert (out / "predictions.parquet").stat().st_mtime_ns == before
    with pytest.raises(InputError, match="another prediction"):
        cli_predict.predict([*arguments, "--tile", "64"])
    with pytest.raises(InputError, match="did you mean"):
        cli_predict.predict([*arguments, "--only", "lucchip-test"])


def test_any_file_is_predicted_and_what_is_missing_is_said(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "my cell.tif"
    tifffile.imwrite(path, _volume((6, 40, 44)))
    arguments = ["--checkpoint", str(checkpoint), "--volume", str(path), "--out", str(tmp_path / "out"), "--margin=8"]
    with pytest.raises(InputError, match="does not say how large its voxels are") as error:
        cli_predict.predict(arguments)
    assert "--voxel-size-nm Z,Y,X" in str(error.value)
    with pytest.raises(InputError, match="need an isotropic volume"):
        cli_predict.predict([*arguments, "--voxel-size-nm", "40,4,4", "--planes", "xy,xz,yz"])
    assert not (tmp_path / "out").exists()
    sized = [*arguments, "--voxel-size-nm", "4,4,4"]
    assert cli_predict.predict([*sized, "--planes", "xy,xz,yz", "--discard-maps"]) == 0
    result = tmp_path / "out" / "volumes" / "my_cell.zarr"
    assert capsys.readouterr().out.startswith(f"{result}: ")
    opened = open_volume(result / "labels" / "instances")
    assert (opened.shape, tuple(opened.voxel_size_nm or ())) == ((6, 40, 44), (4.0, 4.0, 4.0))
    assert not (tmp_path / "out" / "maps" / "my_cell").exists()
    with pytest.raises(InputError, match="holds another prediction"):
        cli_predict.predict(sized)
    assert cli_predict.predict([*sized, "--overwrite"]) == 0
    assert open_maps(tmp_path / "out" / "maps" / "my_cell").is_complete
    with pytest.raises(InputError, match="--device"):
        cli_predict.predict([*sized, "--device", "tpu9"])


@pytest.mark.parametrize(
    ("location", "name"),
    [
        ("a/cell.nii.gz", "cell"),
        ("http://host/data/jrc_hela-2.n5/em/s0", "s0"),
        ("cell.h5:/volumes/raw", "raw"),
        ("../stack/", "stack"),
        ("my cell.ome.tif", "my_cell"),
    ],
)
def test_volumes_are_named_after_their_place(location: str, name: str) -> None:
    assert volume_name(location) == name
