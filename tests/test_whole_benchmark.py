"""Every source in one dataset: it builds, passes its own checks, loads in every way alike, and builds again alike."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import fake
import openorganelle_replica
import pytest
import replicas

from dataset_builder.build import Job, build, rows
from dataset_builder.source import load_source, source_names
from dataset_builder.splits import SplitPolicy
from em_bench_eval.schema import FOLDS

ALL = [name for name in source_names() if name != "local"]  # "local" is whatever a user's spec names


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("raw")
    writers = {**fake.WRITERS, **replicas.WRITERS, "openorganelle": openorganelle_replica.write}
    for number, name in enumerate(sorted(writers), start=1):
        fake.specimen = number
        writers[name](folder)
    fake.specimen = 0
    return folder


def jobs(raw: Path) -> list[Job]:
    options: dict[str, dict[str, str]] = {"phantom": {"shape": "16,96,96"}}
    options |= {name: given(raw) for name, given in replicas.OPTIONS.items()}
    return [Job.of(name, raw, options.get(name, {})) for name in ALL]


@pytest.fixture(scope="module")
def dataset(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "em-organelle-wild"
    build(jobs(raw), out, SplitPolicy())
    return out


def digests(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.slow
def test_every_source_is_in_the_dataset(dataset: Path) -> None:
    import pyarrow.parquet as pq

    listing = pq.read_table(dataset / "volumes.parquet")
    assert set(listing["source"].to_pylist()) == set(ALL)
    with_images = {
        v for v, has in zip(*(listing[c].to_pylist() for c in ("volume_id", "has_image")), strict=True) if has
    }
    assert len(with_images) == len(listing)  # the replica of UroCell has its images
    listed = (dataset / "README.md").read_text() + (dataset / "LICENSES.md").read_text()
    assert [name for name in ALL if load_source(name).info.name not in listed] == []


@pytest.mark.slow
def test_folder_streaming_and_builder_give_the_same_rows(dataset: Path, raw: Path) -> None:
    from datasets import load_dataset

    def key(row: dict[str, Any]) -> tuple[Any, ...]:
        return row["volume_id"], row["axis"], row["slice"], tuple(row["offset"])

    def content(row: dict[str, Any]) -> Any:
        return {
            name: (value.tobytes(), value.size, value.mode) if hasattr(value, "tobytes") else value
            for name, value in row.items()
        }

    direct: dict[str, dict[Any, Any]] = {fold: {} for fold in FOLDS}
    for _, row in rows(jobs(raw), SplitPolicy()):
        direct[row["fold"]][key(row)] = row
    for fold in FOLDS:
        loaded = {key(row): content(row) for row in load_dataset(str(dataset), "wild", split=fold)}
        streamed = {key(row): content(row) for row in load_dataset(str(dataset), "wild", split=fold, streaming=True)}
        assert loaded == streamed
        assert set(loaded) == set(direct[fold])
        for name, row in loaded.items():
            other = direct[fold][name]
            assert all(row[column] == other[column] for column in ("source", "specimen", "domain", "objects"))
    assert sum(map(len, direct.values())) == json.loads((dataset / "stats.json").read_text())["images"]


@pytest.mark.slow
def test_a_second_build_by_two_workers_from_a_copy_has_the_same_bytes(dataset: Path, raw: Path, tmp_path: Path) -> None:
    again = tmp_path / "em-organelle-wild"
    build(jobs(Path(shutil.copytree(raw, tmp_path / "elsewhere"))), again, SplitPolicy(), workers=2)
    assert digests(again) == digests(dataset)
