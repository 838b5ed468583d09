"""One lint over every source, and each real source on its published layout."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import fake
import numpy as np
import pytest
import replicas
from PIL import Image
from scipy.io import savemat

from dataset_builder.instances import instances_of
from dataset_builder.source import Source, load_source, source_names
from em_bench_eval.cli import main
from em_bench_eval.errors import InputError
from em_bench_eval.schema import Organelle, Volume


def volumes_of(name: str, raw: Path) -> list[Volume]:
    source = load_source(name)
    return list(source.volumes(source.find(raw), source.resolve_options({})))


def read_everything(name: str, raw: Path) -> None:
    for volume in volumes_of(name, raw):
        np.asarray(volume.image[:])
        instances_of(volume)


@pytest.mark.parametrize("name", source_names())
def test_every_source_declares_what_a_user_needs(name: str) -> None:
    source = load_source(name)
    info = source.info
    assert isinstance(source, Source)
    assert info.name == name
    assert re.search(r"@\w+\{\w+,", info.citation), "citation is BibTeX"
    assert info.licence
    assert info.url.startswith("https://") == bool(source.folders), "a source with raw data says where it is"
    assert set(info.annotated) <= set(Organelle)
    assert bool(source.folders) == bool(source.layout), "a source with raw data draws its layout"
    written = {*fake.WRITERS, *replicas.WRITERS}
    assert not source.folders or source.remote or name in written, (
        "tests/fake.py or replicas.py writes a tiny raw copy of every download"
    )
    for entry in re.split(r"\n(?=@)", info.citation) if info.url else []:
        assert entry.count("{") == entry.count("}"), "braces pair up"
        fields = set(re.findall(r"\b([a-z]+)\s*=\s*\{", entry))
        assert {"author", "title"} <= fields
        assert fields & {"year", "note", "howpublished"}
    assert info.redistributable is False or info.licence != "none stated", "no licence, no redistribution"
    for download in source.downloads:
        assert download.urls[0].startswith("https://")
    for option, setting in source.settings.items():
        assert re.fullmatch(r"\S.{9,110}[^.\s]", setting.about), f"{option}: one line says what it means, for a list"
        assert type(source.resolve_options({})[option]) is str


@pytest.mark.parametrize("name", sorted(fake.WRITERS))
def test_volumes_of_a_fake_download_are_complete(name: str, tiny_raw: Path) -> None:
    volumes = volumes_of(name, tiny_raw)
    assert volumes
    for volume in volumes:
        image = np.asarray(volume.image[:])
        instances, organelle_of = instances_of(volume)
        assert image.dtype == np.uint8
        assert image.shape == instances.shape == volume.image.shape
        assert organelle_of, "the fake data has instances"
        assert set(np.unique(instances)) - {0} == set(organelle_of)
        assert set(organelle_of.values()) <= set(volume.annotated)
        np.testing.assert_array_equal(volume.image[0], image[0])
        np.testing.assert_array_equal(volume.image[0:3, 4:9], image[0:3, 4:9])


def test_vnc_reads_mitochondria_from_the_labels_whatever_the_other_folder_holds(tmp_path: Path) -> None:
    fake.vnc_sstem(tmp_path)
    (volume,) = volumes_of("vnc_sstem", tmp_path)
    assert volume.semantic is not None
    np.testing.assert_array_equal(np.asarray(volume.semantic[:]), fake.blobs((12, 72, 64), 2))


def test_hela_ignores_what_is_far_from_the_drawn_mitochondria(tiny_raw: Path) -> None:
    plain, with_nucleus = volumes_of("hela_sbfsem", tiny_raw)
    assert set(plain.annotated) == {Organelle.MITO}
    assert set(with_nucleus.annotated) == {Organelle.MITO, Organelle.NUCLEUS}
    for volume in (plain, with_nucleus):
        assert volume.instances is not None
        assert volume.ignore is not None
        assert volume.domain == "out"
        mito = [id_ for id_, organelle in volume.organelle_of.items() if organelle is Organelle.MITO]
        drawn = np.isin(volume.instances[0], mito)
        assert not volume.ignore[0][drawn].any()
        rows, columns = np.nonzero(~volume.ignore[0])
        reach_px = 500 / 10
        assert rows.min() == pytest.approx(np.nonzero(drawn)[0].min() - reach_px, abs=1)
        assert columns.min() == pytest.approx(np.nonzero(drawn)[1].min() - reach_px, abs=1)


def drawn_as_published(raw: Path, converted: Path) -> Path:
    """Write the converted slices as their authors publish them: one MATLAB layer for each drawn mitochondrion."""
    folder = raw / "hela_sbfsem"
    (folder / "OriginalImages").mkdir(parents=True)
    for path in sorted((converted / "mito_instance").iterdir()):
        name = f"ROI_6005_4739_81_{path.stem}"
        Image.open(converted / "raw" / path.name).save(folder / "OriginalImages" / f"{name}.tif")
        ids = np.asarray(Image.open(path))
        masks = [ids == value for value in np.unique(ids) if value]
        layers = np.stack([number * mask.astype(float) for number, mask in enumerate(masks, start=1)], axis=2)
        savemat(folder / f"GT_{name}.mat", {"groundTruthM": layers}, do_compression=True)
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(folder / "OriginalImages" / "ROI_6005_4739_81_z0099.tif")
    return folder


def test_hela_reads_the_authors_files_and_explains_a_broken_one(tiny_raw: Path, tmp_path: Path) -> None:
    folder = drawn_as_published(tmp_path, tiny_raw / "hela_sbfsem_mito2d")
    converted, published = volumes_of("hela_sbfsem", tiny_raw), volumes_of("hela_sbfsem", tmp_path)
    assert [volume.volume_id for volume in published] == [volume.volume_id for volume in converted]
    for mine, theirs in zip(converted, published, strict=True):
        assert set(theirs.annotated) == {Organelle.MITO}  # nuclei are not among these files
        np.testing.assert_array_equal(theirs.image[:], mine.image[:])
        mito = [id_ for id_, organelle in mine.organelle_of.items() if organelle is Organelle.MITO]
        assert len(theirs.organelle_of) == len(mito)
        np.testing.assert_array_equal(theirs.instances[0] > 0, np.isin(mine.instances[0], mito))
        pairs = {*zip(mine.instances[0][theirs.instances[0] > 0], theirs.instances[theirs.instances > 0], strict=True)}
        assert len(pairs) == len(mito)
        np.testing.assert_array_equal(theirs.ignore, mine.ignore)
    broken = folder / "GT_ROI_6005_4739_81_z0030.mat"
    for content in (broken.read_bytes()[:300], b"", b"no MATLAB file at all, but long enough to hold a header" * 9):
        broken.write_bytes(content)
        with pytest.raises(InputError, match=r"z0030\.mat holds no drawn mitochondria\n.*found.*\n.*groundTruthM"):
            volumes_of("hela_sbfsem", tmp_path)


def test_published_test_volume_of_lucchi_becomes_the_test_fold(tmp_path: Path) -> None:
    fake.lucchipp(tmp_path, part="train")
    fake.lucchipp(tmp_path, part="test", seed=5)
    assert [(v.volume_id, v.published_fold) for v in volumes_of("lucchipp", tmp_path)] == [
        ("lucchipp-train", "train"),
        ("lucchipp-test", "test"),
    ]


def _remove(path: Path) -> None:
    path.unlink()


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _smaller(path: Path) -> None:
    Image.open(path).crop((0, 0, 60, 64)).save(path)


def _rgba(path: Path) -> None:
    Image.open(path).convert("RGBA").save(path)


def _unknown_value(path: Path) -> None:
    Image.fromarray(np.full((64, 64), 77, np.uint8)).save(path)


def _no_image(path: Path) -> None:
    path.write_text("<html>404 not found</html>")


def _sixteen_bit(path: Path) -> None:
    Image.fromarray(np.full((64, 64), 300, np.uint16)).save(path)


FAULTS = [
    ("raw/0007.png", _remove, "none numbered 7"),
    ("label/0039.png", _remove, "39 label slices"),
    ("raw/0007.png", _truncate, "truncated"),
    ("label/0007.png", _truncate, "truncated"),
    ("label/0007.png", _smaller, r"\(64, 60\)"),
    ("raw/0007.png", _rgba, "mode RGBA"),
    ("label/0007.png", _rgba, "mode RGBA"),
    ("label/0007.png", _unknown_value, "found: 77"),
    ("raw/0007.png", _no_image, "no image"),
    ("raw/0007.png", _sixteen_bit, "uint16"),
]


@pytest.mark.parametrize(("file", "spoil", "message"), FAULTS)
def test_a_fault_in_a_stack_names_file_found_expected_and_remedy(
    tmp_path: Path, file: str, spoil: object, message: str
) -> None:
    folder = fake.lucchipp(tmp_path)
    spoil(folder / "train" / file)  # type: ignore[operator]
    with pytest.raises(InputError, match=message) as caught:
        read_everything("lucchipp", tmp_path)
    text = str(caught.value)
    assert "train" in text
    for part in ("found:", "expected:", "what to do:"):
        assert part in text


def test_an_image_without_label_and_a_label_without_image(tmp_path: Path) -> None:
    folder = fake.hela_sbfsem(tmp_path)
    (folder / "raw" / "z0001.png").unlink()
    with pytest.raises(InputError, match=r"z0001\.png has no image"):
        volumes_of("hela_sbfsem", tmp_path)


def test_misspelt_source_and_missing_download(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="did you mean 'lucchipp'"):
        load_source("luchipp")
    with pytest.raises(InputError, match="folder named vnc_sstem"):
        load_source("vnc_sstem").find(tmp_path)
    with pytest.raises(InputError, match="--raw DIR"):
        load_source("vnc_sstem").find(None)
    with pytest.raises(InputError, match=r"unknown option of source lucchipp 'size'\n.*this source has no options"):
        load_source("lucchipp").resolve_options({"size": "3"})


def test_a_misspelt_option_shows_what_each_option_means(capsys: pytest.CaptureFixture[str]) -> None:
    urocell = load_source("urocell")
    with pytest.raises(InputError, match="unknown option of source urocell 'golgy'") as caught:
        urocell.resolve_options({"golgy": "approximate"})
    assert main(["sources", "urocell"]) == 0
    listed = capsys.readouterr().out
    assert "did you mean 'golgi'" in str(caught.value)
    for text in (str(caught.value), listed):
        for option, setting in urocell.settings.items():
            assert re.search(rf"^ +{option} +{re.escape(setting.about)} \(default: {setting.default}\)$", text, re.M)
    assert urocell.resolve_options({"golgi": "approximate"}) == {"golgi": "approximate", "lyso": "extra"}


def test_raw_may_name_the_source_folder_itself(tmp_path: Path) -> None:
    folder = fake.vnc_sstem(tmp_path)
    assert load_source("vnc_sstem").find(folder) == folder
    shutil.move(folder, tmp_path / "groundtruth-drosophila-vnc-master")
    assert load_source("vnc_sstem").find(tmp_path) == tmp_path / "groundtruth-drosophila-vnc-master"


@pytest.mark.real_data
def test_real_vnc_labels_agree_with_the_published_mitochondria_masks(real_data: Path) -> None:
    (volume,) = volumes_of("vnc_sstem", real_data)
    assert volume.semantic is not None
    masks = sorted((real_data / "vnc_sstem" / "stack1" / "mitochondria").iterdir())
    differ = [
        float(((np.asarray(Image.open(path)) > 0) != (volume.semantic[z] > 0)).mean()) for z, path in enumerate(masks)
    ]
    assert len(differ) == 20
    assert max(differ) < 0.01, "any non-zero value is mitochondrion in every encoding"


@pytest.mark.real_data
def test_real_sources_hold_the_published_instances(real_data: Path) -> None:
    counts = {
        volume.volume_id: len(instances_of(volume)[1])
        for name in ("lucchipp", "vnc_sstem", "hela_sbfsem")
        for volume in volumes_of(name, real_data)
    }
    assert counts == {
        "lucchipp-train": 13,
        "vnc_sstem-stack1": 27,
        "hela_sbfsem-z0001": 35,
        "hela_sbfsem-z0030": 40 + 3,
        "hela_sbfsem-z0060": 34,
    }
