"""The ``datasets`` builder: its example runs, rows stand in the order of a dataset, and its cache is never stale."""

from __future__ import annotations

import doctest
import os
from pathlib import Path
from typing import Any

import datasets
import fake
import numpy as np
import pytest
import tifffile
from PIL import Image
from test_build_arguments import write_spec

from dataset_builder import hf_builder
from dataset_builder.build import build
from dataset_builder.hf_builder import EmOrganelleWild
from dataset_builder.jobs import Job
from dataset_builder.raw_files import files_fingerprint, raw_paths
from dataset_builder.splits import SplitPolicy


def test_the_example_of_the_module_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake.lucchipp(tmp_path / "raw")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    ran = doctest.testmod(hf_builder)
    assert (ran.failed, ran.attempted) == (0, 5)


@pytest.mark.parametrize("config", ["wild", "homogeneous"])
def test_rows_stand_in_the_order_of_a_dataset_whatever_the_order_of_sources(
    config: str, tiny_raw: Path, tmp_path: Path
) -> None:
    sources = ["vnc_sstem", "lucchipp", "hela_sbfsem"]  # a dataset has the homogeneous lucchipp first
    build([Job.of(name, tiny_raw, {}) for name in sources], tmp_path / "em-organelle-wild", SplitPolicy())
    published = datasets.load_dataset(str(tmp_path / "em-organelle-wild"), config)
    builder = EmOrganelleWild(config_name=config, sources=sources, raw=str(tiny_raw), cache_dir=str(tmp_path / "c"))
    builder.download_and_prepare()
    for fold, rows in builder.as_dataset().items():
        assert len(rows) == len(published[fold]) > 0
        plain = [split.cast_column("image", datasets.Image(decode=False)) for split in (rows, published[fold])]
        for one, other in zip(*plain, strict=True):
            assert one == other


def read(tmp_path: Path, **settings: Any) -> list[Any]:
    builder = EmOrganelleWild(config_name="wild", cache_dir=str(tmp_path / "cache"), **settings)
    builder.download_and_prepare()
    return [np.asarray(image) for image in builder.as_dataset(split="train")["image"]]


def test_changed_raw_data_is_prepared_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = fake.vnc_sstem(tmp_path / "raw").parent
    first = read(tmp_path, sources=["vnc_sstem"], raw=str(raw))
    for path in (raw / "vnc_sstem" / "stack1" / "raw").iterdir():
        Image.fromarray(255 - np.asarray(Image.open(path))).save(path)
    second = read(tmp_path, sources=["vnc_sstem"], raw=str(raw))
    assert all(np.array_equal(255 - one, other) for one, other in zip(first, second, strict=True))

    def nothing(*arguments: object) -> None:
        raise AssertionError("what is unchanged is prepared once")

    monkeypatch.setattr(EmOrganelleWild, "_generate_examples", nothing)
    assert len(read(tmp_path, sources=["vnc_sstem"], raw=str(raw))) == len(first)


def test_the_files_of_a_spec_and_the_splits_count_as_raw_data(tmp_path: Path) -> None:
    spec = write_spec(tmp_path, "lab", slices=60)
    splits = tmp_path / "splits.json"
    job = Job.of("local", None, {"spec": str(spec)})
    build([job], tmp_path / "out", SplitPolicy())
    splits.write_bytes((tmp_path / "out" / "splits.json").read_bytes())
    names = {path.name for path in raw_paths(job)}
    assert names == {"lab.yaml", "gray-lab.tif", "mito-lab.tif"}

    def named() -> str:
        settings: dict[str, Any] = {"options": {"local": {"spec": str(spec)}}, "splits": str(splits)}
        return str(EmOrganelleWild(sources=["local"], cache_dir=str(tmp_path / "c"), **settings).config_id)

    found = [named()]
    assert named() == found[0]
    tifffile.imwrite(tmp_path / "mito-lab.tif", np.ones((60, 64, 64), np.uint8), photometric="minisblack")
    found.append(named())
    os.utime(splits, ns=(1, 1))
    found.append(named())
    assert len(set(found)) == 3


def test_what_changes_a_fingerprint(tmp_path: Path) -> None:
    folder = tmp_path / "raw"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "loop").symlink_to(folder)
    files = [folder / "a.tif", folder / "deep" / "b.tif"]
    for path in files:
        path.write_bytes(b"12")
        os.utime(path, ns=(5, 5))
    prints = [files_fingerprint([folder])]
    assert files_fingerprint([folder]) == prints[0]
    assert files_fingerprint([*files, *files]) == files_fingerprint(files[::-1])
    os.utime(files[1], ns=(6, 6))
    prints.append(files_fingerprint([folder]))
    files[1].write_bytes(b"123")
    os.utime(files[1], ns=(6, 6))
    prints.append(files_fingerprint([folder]))
    files[1].rename(folder / "deep" / "c.tif")
    prints.append(files_fingerprint([folder]))
    (folder / "deep" / "c.tif").unlink()
    prints.append(files_fingerprint([folder]))
    prints.append(files_fingerprint([tmp_path / "none"]))
    assert len(set(prints)) == len(prints)


def test_generated_sources_have_no_files() -> None:
    assert list(raw_paths(Job.of("phantom", None, {}))) == []
