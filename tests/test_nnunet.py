"""``em-bench export nnunet``: the folder against nnU-Net's documented rules, and its voxels against the dataset."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from baselines.cli_export import export as command
from baselines.external import nnunet_export
from baselines.external.nnunet_export import ExportRequest, export
from baselines.external.nnunet_layout import CASES_FILE, read_layout
from em_bench_eval.align import align_image, aligned_shape
from em_bench_eval.errors import InputError
from em_bench_eval.rows import LabelledImage, decode_row, open_rows
from em_bench_eval.schema import FOLDS
from em_bench_eval.volume_io import open_volume

RAW = "nnUNet_raw/Dataset501_EM"
HOMOGENEOUS = {"config": "homogeneous"}
READERS = {
    (".nii.gz", 3): "SimpleITKIO",
    (".tif", 2): "NaturalImage2DIO",
    (".png", 2): "NaturalImage2DIO",
    (".tif", 3): "Tiff3DIO",
}


def read_file(path: Path) -> tuple[npt.NDArray[Any], tuple[float, ...] | None]:
    """What the libraries that nnU-Net reads with make of a file: voxels (z, y, x) or (y, x), and spacing."""
    if path.name.endswith(".nii.gz"):
        import nibabel

        image: Any = nibabel.load(path)
        assert image.ndim == 3
        np.testing.assert_allclose(image.affine, np.diag([*image.header.get_zooms(), 1]), rtol=1e-6)
        assert image.header.get_xyzt_units()[0] == "mm"
        return np.asarray(image.dataobj).transpose(2, 1, 0), tuple(map(float, image.header.get_zooms()[::-1]))
    if path.name.endswith(".tif"):
        import tifffile

        beside = path.with_name(re.sub(r"(_0000)?\.tif$", ".json", path.name))
        spacing = tuple(json.loads(beside.read_text())["spacing"]) if beside.exists() else None
        return tifffile.imread(path), spacing
    from PIL import Image

    return np.asarray(Image.open(path)), None


def check_rules(folder: Path, dimension: int) -> dict[str, Any]:
    """The rules of nnU-Net's documentation (reference/dataset-format, ignore_label, manual_data_splits), one by one."""
    raw = folder / RAW
    assert re.fullmatch(r"Dataset\d{3}_\w+", raw.name)
    about: dict[str, Any] = json.loads((raw / "dataset.json").read_text())
    assert {"channel_names", "labels", "numTraining", "file_ending"} <= set(about)
    ending, labels = about["file_ending"], about["labels"]
    assert list(about["channel_names"]) == ["0"]
    assert list(labels.values()) == list(range(len(labels)))
    assert labels["background"] == 0
    assert "ignore" not in labels or labels["ignore"] == max(labels.values())
    two = dimension == 2 and ending != ".nii.gz"
    assert about["overwrite_image_reader_writer"] == READERS[ending, 2 if two else 3]

    cases = [path.name.removesuffix(ending) for path in sorted((raw / "labelsTr").glob(f"*{ending}"))]
    images = sorted(path.name for path in (raw / "imagesTr").glob(f"*{ending}"))
    assert images == [f"{case}_0000{ending}" for case in cases]
    assert len(cases) == about["numTraining"]
    tests = [path.name.removesuffix(f"_0000{ending}") for path in (raw / "imagesTs").glob(f"*{ending}")]
    assert not set(tests) & set(cases)
    for case in cases:
        image, spacing = read_file(raw / "imagesTr" / f"{case}_0000{ending}")
        label, of_label = read_file(raw / "labelsTr" / f"{case}{ending}")
        assert image.shape == label.shape
        assert image.ndim == (2 if two else 3)
        assert spacing == of_label
        assert (spacing is None) == two
        assert set(np.unique(label)) <= set(labels.values())
        assert (label != labels.get("ignore")).any(), "a case with nothing to learn from"
    (split,) = json.loads((folder / "nnUNet_preprocessed" / raw.name / "splits_final.json").read_text())
    assert set(split) == {"train", "val"}
    assert sorted(split["train"] + split["val"]) == cases
    return about


@pytest.fixture(scope="module")
def images(tiny_dataset: Path) -> dict[str, dict[str, LabelledImage]]:
    return {fold: {i.record_id: i for i in map(decode_row, open_rows(tiny_dataset, "wild", fold))} for fold in FOLDS}


def request_of(dataset: Path, out: Path, **options: Any) -> ExportRequest:
    return ExportRequest(str(dataset), options.pop("config", "wild"), out, **options)


@pytest.mark.parametrize("file_format", ["nifti", "tiff", "png"])
def test_images_are_the_rows(
    tiny_dataset: Path, images: dict[str, dict[str, LabelledImage]], tmp_path: Path, file_format: str
) -> None:
    layout = export(request_of(tiny_dataset, tmp_path / "out", file_format=file_format, organelles=("mito", "nucleus")))
    about = check_rules(tmp_path / "out", 2)
    assert about["labels"] == {"background": 0, "mito": 1, "nucleus": 2, "ignore": 3}
    assert {record for case in layout.cases for record in case.records} == {i for of in images.values() for i in of}
    raw, ending = tmp_path / "out" / RAW, layout.file_ending
    for case in layout.cases:
        row = images[case.fold][case.records[0]]
        test = case.fold == "test"
        image, spacing = read_file(raw / ("imagesTs" if test else "imagesTr") / f"{case.name}_0000{ending}")
        label, _ = read_file((tmp_path / "out" / "labelsTs" if test else raw / "labelsTr") / f"{case.name}{ending}")
        np.testing.assert_array_equal(image.reshape(row.image.shape), row.image)
        np.testing.assert_array_equal(label.reshape(row.image.shape), expected_labels(row))
        if spacing is not None:
            assert spacing[1:] == pytest.approx(row.pixel_size_nm)
            assert spacing[0] > 100 * max(spacing[1:]), "across a 2D image nnU-Net must never slice"


def expected_labels(row: LabelledImage) -> npt.NDArray[np.uint8]:
    """Pixel by pixel: mito 1, nucleus 2; 3 where nobody knows whether it is one of the two."""
    numbers = {"mito": 1, "nucleus": 2}
    missing = [name for name in numbers if name not in row.annotated]
    label = np.zeros(row.image.shape, np.uint8)
    for (y, x), id_ in np.ndenumerate(row.instances):
        organelle = row.organelle_of.get(int(id_))
        label[y, x] = numbers.get(str(organelle), 0) if organelle else (3 if missing else 0)
        if row.ignore[y, x]:
            label[y, x] = 3
    return label


@pytest.mark.parametrize("file_format", ["nifti", "tiff"])
def test_volumes_are_the_slabs_of_the_folds(
    tiny_dataset: Path, images: dict[str, dict[str, LabelledImage]], tmp_path: Path, file_format: str
) -> None:
    layout = export(request_of(tiny_dataset, tmp_path / "out", dimension="3d", file_format=file_format))
    check_rules(tmp_path / "out", 3)
    assert sorted(case.name for case in layout.of("train")) == [
        "lucchipp-train_z00000-00013",
        "vnc_sstem-stack1_z00000-00005",
    ]
    for case in layout.cases:
        part = "Ts" if case.fold == "test" else "Tr"
        volume, spacing = read_file(tmp_path / "out" / RAW / f"images{part}" / f"{case.name}_0000{layout.file_ending}")
        rows = [images[case.fold][record] for record in case.records]
        np.testing.assert_array_equal(volume, [row.image for row in rows])
        assert spacing == pytest.approx(case.voxel_size_nm)
        if part == "Ts":
            ids, _ = read_file(tmp_path / "out" / "instancesTs" / "mito" / f"{case.name}{layout.file_ending}")
            for plane, row in zip(ids, rows, strict=True):
                mito = np.isin(row.instances, [id_ for id_, what in row.organelle_of.items() if what == "mito"])
                np.testing.assert_array_equal(plane > 0, mito)
                pairs = set(zip(plane[mito].tolist(), row.instances[mito].tolist(), strict=True))
                assert len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs})


def test_folds_are_ours(tiny_dataset: Path, tmp_path: Path) -> None:
    layout = export(request_of(tiny_dataset, tmp_path / "out", dimension="3d"))
    (split,) = json.loads((tmp_path / "out/nnUNet_preprocessed/Dataset501_EM/splits_final.json").read_text())
    assert split["train"] == [case.name for case in layout.of("train")]
    assert split["val"] == ["lucchipp-train_z00022-00025", "vnc_sstem-stack1_z00007-00008"]
    assert read_layout(tmp_path / "out" / CASES_FILE) == layout


def test_planes_are_aligned(tiny_dataset: Path, images: dict[str, dict[str, LabelledImage]], tmp_path: Path) -> None:
    layout = export(request_of(tiny_dataset, tmp_path / "out", dimension="3d", pixel_nm=8.0))
    case = layout.of("train")[0]
    volume, spacing = read_file(tmp_path / "out" / RAW / "imagesTr" / f"{case.name}_0000.nii.gz")
    assert spacing == pytest.approx((case.voxel_size_nm[0], 8, 8))
    for plane, record in zip(volume, case.records, strict=True):
        row = images["train"][record]
        assert plane.shape == aligned_shape(row.image.shape, row.pixel_size_nm, 8.0)  # type: ignore[arg-type]
        np.testing.assert_array_equal(plane, np.rint(align_image(row.image, row.pixel_size_nm, 8.0)))


def test_cases_without_all_organelles_can_be_dropped(tiny_dataset: Path, tmp_path: Path) -> None:
    both = ("mito", "nucleus")  # no training case has a nucleus annotated
    with pytest.raises(InputError, match="nothing to train on"):
        export(request_of(tiny_dataset, tmp_path / "both", organelles=both, unannotated="drop"))
    layout = export(request_of(tiny_dataset, tmp_path / "out", organelles=("mito",), unannotated="drop"))
    assert len(layout.of("train")) == 20
    with pytest.raises(InputError, match="nothing to train on"):
        export(request_of(tiny_dataset, tmp_path / "er", organelles=("er",)))


def test_whole_test_volumes_without_training(tiny_dataset: Path, tmp_path: Path) -> None:
    layout = export(
        request_of(
            tiny_dataset, tmp_path / "out", dimension="3d", whole_volumes=True, test_only=True, config="homogeneous"
        )
    )
    assert [case.name for case in layout.cases] == ["lucchipp-train"]
    volume, _ = read_file(tmp_path / "out" / RAW / "imagesTs" / "lucchipp-train_0000.nii.gz")
    np.testing.assert_array_equal(volume, open_volume(tiny_dataset / "volumes" / "lucchipp-train.zarr")[:])
    assert not (tmp_path / "out" / RAW / "dataset.json").exists()
    assert "em-bench import" in (tmp_path / "out" / "README.md").read_text()


def test_an_interrupted_export_goes_on(tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    request = request_of(tiny_dataset, tmp_path / "out", config="homogeneous", file_format="png")
    write, written = nnunet_export._write, []

    def interrupted(stem: Path, *arguments: Any) -> None:
        if len(written) == 21:
            raise KeyboardInterrupt
        written.append(stem)
        write(stem, *arguments)

    monkeypatch.setattr(nnunet_export, "_write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        export(request)
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(nnunet_export, "_write", write)
    partial = tmp_path / ".partial-out"
    before = {path.name: path.stat().st_mtime_ns for path in partial.rglob("*.png")}
    with pytest.raises(InputError, match="unfinished export of other settings"):
        export(request_of(tiny_dataset, tmp_path / "out", config="homogeneous", file_format="png", pixel_nm=8.0))
    export(request)
    after = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.png")}
    assert len(before) == len(written) == 21
    assert before.items() <= after.items()
    assert not partial.exists()
    once = tmp_path / "once"
    export(request_of(tiny_dataset, once, config="homogeneous", file_format="png"))
    assert contents(once) == contents(tmp_path / "out")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_what_is_there_is_not_overwritten(tiny_dataset: Path, tmp_path: Path) -> None:
    request = request_of(tiny_dataset, tmp_path / "out", config="homogeneous", file_format="png")
    first = export(request)
    before = contents(tmp_path / "out")
    assert export(request) == first  # nothing to do
    other = request_of(tiny_dataset, tmp_path / "out", config="homogeneous", file_format="nifti")
    with pytest.raises(InputError, match="differs in"):
        export(other)
    assert contents(tmp_path / "out") == before
    export(other, overwrite=True)
    assert not list((tmp_path / "out").rglob("*.png"))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match="not overwritten"):
        export(request_of(tiny_dataset, tmp_path / "mine", config="homogeneous"), overwrite=True)
    assert (tmp_path / "mine" / "thesis.tex").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dimension": "3d", "file_format": "png"}, "hold no volumes"),
        ({"whole_volumes": True}, "exports volumes"),
        ({"dataset_id": 1000}, "Dataset501_Name"),
        ({"name": "a/b"}, "Dataset501_Name"),
        ({"organelles": ("mitochondria",)}, "did you mean 'mito'"),
        ({"config": "wilder"}, "cannot open"),
    ],
)
def test_requests_that_cannot_be_met(tiny_dataset: Path, tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        export(request_of(tiny_dataset, tmp_path / "out", **options))
    assert not list(tmp_path.iterdir())


def test_the_command(tiny_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    arguments = ["nnunet", "--dataset", str(tiny_dataset), "--config", "wild", "--out", str(out), "--format", "tiff"]
    assert command(arguments) == 0
    said = capsys.readouterr().out
    assert "36 images (20 train, 6 validation, 10 test)" in said
    assert "Pixels of 4.6 to 5 nm are mixed" in said
    assert "nnUNetv2_plan_and_preprocess -d 501 --verify_dataset_integrity" in (out / "README.md").read_text()


def test_a_volume_too_long_for_nifti(tmp_path: Path) -> None:
    from baselines.external.plane_writers import write_nifti

    planes = [np.zeros((1, 40_000), np.uint8)]
    with pytest.raises(InputError, match="too long for NIfTI"):
        write_nifti(tmp_path / "a.nii.gz", planes, (1, 1, 40_000), np.uint8, (1, 1, 1))
    assert not list(tmp_path.iterdir())
