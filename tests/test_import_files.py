"""``em-bench import``: files of other programs, by whatever name and in whatever format; every fault."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from round_trip import export, images_of, read_back, same_partition, score

from em_bench_eval.errors import InputError
from em_bench_eval.rows import LabelledImage, read_prediction_info, read_predictions
from em_bench_eval.volume_io import open_volume


@pytest.fixture(scope="module")
def exported(tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    made: dict[tuple[str, ...], Path] = {}

    def of(config: str, *options: str) -> Path:
        key = (config, *options)
        if key not in made:
            made[key] = export(tiny_dataset, tmp_path_factory.mktemp("export") / "out", config, *options)
        return made[key]

    return of


# --- whole volumes of other programs -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reference(tiny_dataset: Path) -> dict[str, npt.NDArray[Any]]:
    """Whole instance volumes of the one homogeneous test volume (mito only)."""
    return {"lucchipp-train": open_volume(tiny_dataset / "volumes/lucchipp-train.zarr/labels/instances")[:]}


def write_tiff(place: Path, volume: npt.NDArray[Any]) -> list[str]:
    import tifffile

    tifffile.imwrite(place.with_suffix(".tif"), volume)
    return []


def write_hdf5(place: Path, volume: npt.NDArray[Any]) -> list[str]:
    import h5py

    with h5py.File(place.with_suffix(".h5"), "w") as file:
        file["volumes/mito"] = volume
        file["volumes/raw"] = volume
    return ["--inside", "volumes/mito"]


def write_zarr(place: Path, volume: npt.NDArray[Any]) -> list[str]:
    import tensorstore as ts

    path = place.with_suffix(".zarr") / "labels" / "mito"
    spec = {"driver": "zarr", "kvstore": {"driver": "file", "path": str(path)}}
    ts.open(spec, create=True, dtype="uint64", shape=volume.shape).result().write(volume.astype(np.uint64)).result()
    return ["--inside", "labels/mito"]


def write_n5(place: Path, volume: npt.NDArray[Any]) -> list[str]:
    import tensorstore as ts

    spec = {"driver": "n5", "kvstore": {"driver": "file", "path": str(place.with_suffix(".n5"))}}
    array = ts.open(spec, create=True, dtype="uint32", shape=volume.shape[::-1]).result()
    array.T.write(volume).result()
    return []


def write_slices(place: Path, volume: npt.NDArray[Any]) -> list[str]:
    from PIL import Image

    place.mkdir()
    for z, plane in enumerate(volume):
        Image.fromarray(plane.astype(np.uint16)).save(place / f"{z:04d}.png")
    return []


def write_turned(place: Path, volume: npt.NDArray[Any]) -> list[str]:
    import tifffile

    tifffile.imwrite(place.with_suffix(".tif"), np.ascontiguousarray(volume.transpose(2, 0, 1)))
    return ["--axes", "xzy"]


@pytest.mark.parametrize("write", [write_tiff, write_hdf5, write_zarr, write_n5, write_slices, write_turned])
def test_whole_volumes_are_cut_into_the_slices_of_the_split(
    tiny_dataset: Path,
    reference: dict[str, npt.NDArray[Any]],
    tmp_path: Path,
    write: Callable[[Path, npt.NDArray[Any]], list[str]],
) -> None:
    results = tmp_path / "results"
    results.mkdir()
    (results / "log.txt").write_text("no result")
    more = [option for name, volume in reference.items() for option in write(results / name, volume)]
    options = ["--instances", "--organelle", "mito", *more]
    folder = read_back(results, tiny_dataset, tmp_path / "p", "homogeneous", *options)
    images = images_of(tiny_dataset, "homogeneous")
    predictions = list(read_predictions(folder))
    assert {prediction.record_id for prediction in predictions} == set(images)
    for prediction in predictions:
        assert same_partition(prediction.instances, images[prediction.record_id].instances)
        ids = set(np.unique(prediction.instances).tolist()) - {0}
        assert set(prediction.organelle_of) == ids == set(range(1, len(ids) + 1))


def test_slices_along_all_axes_and_tiles(tmp_path: Path) -> None:
    import fake

    from dataset_builder.blueprint import Limits
    from dataset_builder.build import Job, build
    from dataset_builder.splits import SplitPolicy

    fake.lucchipp(tmp_path, (80, 40, 48))
    dataset = tmp_path / "tiles"
    policy = SplitPolicy(axes="all", smallest_cut=8)
    build([Job.of("lucchipp", tmp_path, {})], dataset, policy, Limits(max_side=32))
    images = images_of(dataset, "homogeneous")
    assert {name.split("/")[1] for name in images} == {"x", "y", "z"}
    assert any("@" in name for name in images)
    for dimension in ("2d", "3d"):
        out = export(dataset, tmp_path / dimension, "homogeneous", "--dimension", dimension)
        options = ["--instances", "--cases", str(out / "cases.json")]
        predictions = read_back(out / "instancesTs", dataset, tmp_path / f"p{dimension}", "homogeneous", *options)
        found = {one.record_id: one.instances for one in read_predictions(predictions)}
        assert set(found) == set(images)
        for name, labels in found.items():
            assert labels.shape == images[name].instances.shape
            assert ((labels > 0) == (images[name].instances > 0)).all()
            if dimension == "2d" or name.split("/")[1] == "z":
                assert same_partition(labels, images[name].instances)


# --- files by row, by organelle, probabilities ---------------------------------------------------------------------


@pytest.fixture
def rows(tiny_dataset: Path) -> dict[str, LabelledImage]:
    images = images_of(tiny_dataset, "homogeneous")
    return {name.replace("/z/", "_z"): image for name, image in images.items()}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("{case}.png", ["--organelle", "mito"]),
        ("{case}_0000.png", ["--organelle", "mito"]),
        ("mito/{case}.png", []),
        ("{case}_mito.png", []),
        ("pred-{case}-mito-v2.png", ["--pattern", "pred-{case}-{organelle}-v2"]),
    ],
)
def test_files_are_called_after_rows(
    tiny_dataset: Path, rows: dict[str, LabelledImage], tmp_path: Path, name: str, options: list[str]
) -> None:
    from PIL import Image

    for case, image in rows.items():
        path = tmp_path / "results" / name.format(case=case)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.instances).save(path)
    folder = read_back(tmp_path / "results", tiny_dataset, tmp_path / "p", "homogeneous", "--instances", *options)
    assert score(folder, tiny_dataset)["all"]["mito/dice__instance"] == 1.0


def test_the_first_organelle_keeps_a_contested_pixel(
    tiny_dataset: Path, rows: dict[str, LabelledImage], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import tifffile

    for case, image in rows.items():
        for organelle, mask in (("mito", image.instances > 0), ("er", np.ones(image.instances.shape, bool))):
            (tmp_path / "results" / organelle).mkdir(parents=True, exist_ok=True)
            tifffile.imwrite(tmp_path / "results" / organelle / f"{case}.tif", mask.astype(np.uint8) * 255)
    folder = read_back(tmp_path / "results", tiny_dataset, tmp_path / "p", "homogeneous")
    contested = sum(int((image.instances > 0).sum()) for image in rows.values())
    assert f"{contested} pixels were claimed by several" in capsys.readouterr().err
    assert score(folder, tiny_dataset)["all"]["mito/semantic_dice"] == 1.0
    assert read_prediction_info(folder)["organelles"] == ["mito", "er"]


def test_maps_of_one_organelle(tiny_dataset: Path, reference: dict[str, npt.NDArray[Any]], tmp_path: Path) -> None:
    import tifffile

    volume = reference["lucchipp-train"] > 0
    tifffile.imwrite(tmp_path / "lucchipp-train.tif", np.where(volume, 0.7, 0.4).astype(np.float32))
    options = ["--probabilities", "--organelle", "mito"]
    folder = read_back(tmp_path / "lucchipp-train.tif", tiny_dataset, tmp_path / "p", "homogeneous", *options)
    assert score(folder, tiny_dataset)["all"]["mito/dice__instance"] == 1.0
    confidences = [value for one in read_predictions(folder) for value in one.confidence_of.values()]
    assert confidences == pytest.approx([0.7] * len(confidences))
    tifffile.imwrite(tmp_path / "lucchipp-train.tif", np.where(volume, 3.0, -2.0).astype(np.float32))
    with pytest.raises(InputError, match="holds no probabilities"):
        read_back(tmp_path / "lucchipp-train.tif", tiny_dataset, tmp_path / "q", "homogeneous", *options)


# --- faults --------------------------------------------------------------------------------------------------------


def refused(
    tiny_dataset: Path, results: Path, tmp_path: Path, message: str, *options: str, config: str = "homogeneous"
) -> str:
    with pytest.raises(InputError, match=message) as error:
        read_back(results, tiny_dataset, tmp_path / "p", config, *options)
    assert not (tmp_path / "p" / "predictions.parquet").exists()
    return str(error.value)


def test_all_faults_of_a_folder_at_once(tiny_dataset: Path, rows: dict[str, LabelledImage], tmp_path: Path) -> None:
    import tifffile
    from PIL import Image

    results = tmp_path / "results"
    results.mkdir()
    for case, image in rows.items():
        Image.fromarray(image.instances).save(results / f"{case}.png")
    first, second, third, fourth, *_ = rows
    (results / f"{first}.png").unlink()
    tifffile.imwrite(results / f"{second}.tif", rows[second].instances)
    Image.fromarray(rows[third].instances[:-3]).save(results / f"{third}.png")
    Image.fromarray(rows[fourth].instances).save(results / "lucchipp-train_z00099.png")
    (results / f"{fourth}.png").write_bytes(b"\x89PNG and then nothing")
    said = refused(tiny_dataset, results, tmp_path, "5 faults", "--instances", "--organelle", "mito")
    assert f"{first}: no result" in said
    assert f"{second}: two results, {second}.png and {second}.tif" in said
    assert f"{third}.png has the shape (1, 61, 64), not (1, 64, 64)" in said
    assert "lucchipp-train_z00099.png: of no known case" in said
    assert f"{fourth}: " in said


def test_values_that_mean_nothing(tiny_dataset: Path, reference: dict[str, npt.NDArray[Any]], tmp_path: Path) -> None:
    import tifffile

    path = tmp_path / "lucchipp-train.tif"
    volume = reference["lucchipp-train"]
    tifffile.imwrite(path, volume.astype(np.uint16))
    refused(tiny_dataset, path, tmp_path, "add --instances", "--organelle", "mito")
    refused(tiny_dataset, path, tmp_path, "nothing says of which organelle", "--instances")
    tifffile.imwrite(path, (volume > 0).astype(np.uint8) * 7)
    refused(tiny_dataset, path, tmp_path, "mean no organelle")
    refused(tiny_dataset, path, tmp_path, "different numbers", "--labels", "mito=1,er=1")
    refused(tiny_dataset, path, tmp_path, "did you mean 'mito'", "--labels", "mit=1")
    refused(tiny_dataset, path, tmp_path, "must contain", "--labels", "mito=7", "--pattern", "x")
    tifffile.imwrite(path, -(volume > 0).astype(np.int16))
    refused(tiny_dataset, path, tmp_path, "negative ids", "--instances", "--organelle", "mito")
    tifffile.imwrite(path, (volume > 0) * np.float32(0.5))
    refused(tiny_dataset, path, tmp_path, "not a label map", "--organelle", "mito")
    tifffile.imwrite(path, volume.transpose(1, 0, 2).astype(np.uint16))
    refused(tiny_dataset, path, tmp_path, "another order: --axes", "--instances", "--organelle", "mito")
    tifffile.imwrite(path, (volume > 0).astype(np.uint8) * 7)
    refused(tiny_dataset, path, tmp_path, "em-bench label", "--labels", "mito=7", "--memory-gb", "0.0001")
    read_back(path, tiny_dataset, tmp_path / "q", "homogeneous", "--labels", "mito=7")
    with pytest.raises(InputError, match="holds a prediction"):
        read_back(path, tiny_dataset, tmp_path / "q", "homogeneous", "--labels", "mito=7")
    read_back(path, tiny_dataset, tmp_path / "q", "homogeneous", "--labels", "mito=7", "--overwrite")
    refused(tiny_dataset, tmp_path / "nowhere", tmp_path, "there is nothing at")


class Loud:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("pickle-was-run"),))


def test_nothing_is_unpickled(
    tiny_dataset: Path, exported: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    out = exported("homogeneous", "--dimension", "3d", "--whole-volumes")
    options = ["--probabilities", "--cases", str(out / "cases.json")]
    path = tmp_path / "results" / "lucchipp-train.npz"
    path.parent.mkdir()
    np.savez(path, probabilities=np.array([Loud()], object))
    refused(tiny_dataset, path.parent, tmp_path, "holds no probabilities", *options)
    assert not Path("pickle-was-run").exists()
    np.savez(path, scores=np.zeros((2, 40, 64, 64), np.float16))
    refused(tiny_dataset, path.parent, tmp_path, "holds no probabilities", *options)
    np.savez(path, probabilities=np.zeros((3, 40, 64, 64), np.float16))
    refused(tiny_dataset, path.parent, tmp_path, "3 channels, not 2", *options)
    np.savez(path, probabilities=np.zeros((2, 40, 64, 60), np.float16))
    refused(tiny_dataset, path.parent, tmp_path, "has the shape", *options)
    path.write_bytes(path.read_bytes()[:500])
    refused(tiny_dataset, path.parent, tmp_path, "holds no probabilities", *options)


def edit(path: Path, change: Callable[[dict[str, Any]], object], into: Path) -> Path:
    content = json.loads(path.read_text())
    change(content)
    into.write_text(json.dumps(content))
    return into


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content.update(format="other"), "which case is which part"),
        (lambda content: content.update(labels={"mito": 1}), "which case is which part"),
        (lambda content: content.update(surprise=1), "which case is which part"),
        (lambda content: content["cases"][0]["box"].update(shape=[0, 1, 1]), "which case is which part"),
        (lambda content: content["cases"].append(content["cases"][0]), "which case is which part"),
        (lambda content: content["cases"].pop(), "in no case"),
        (lambda content: content["cases"][-1]["box"].update(shape=[40, 64, 60]), "only partly in cases"),
    ],
)
def test_a_file_of_cases_that_does_not_fit(
    tiny_dataset: Path, exported: Callable[..., Path], tmp_path: Path, change: Any, message: str
) -> None:
    out = exported("homogeneous", "--dimension", "3d", "--whole-volumes")
    cases = edit(out / "cases.json", change, tmp_path / "cases.json")
    refused(tiny_dataset, out / "labelsTs", tmp_path, message, "--cases", str(cases))
