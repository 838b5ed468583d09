"""Labels that stay private: what the public dataset still says, what it must not, and that everything else works."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import submission_forms as forms
from scipy import ndimage

from dataset_builder.private_labels import LABELS as LABEL_ARRAYS
from dataset_builder.private_labels import _hide_volume
from dataset_builder.publish import planned
from dataset_builder.volumes import Pyramids, open_array
from em_bench_eval.errors import InputError
from em_bench_eval.leaderboard.items import expected_items, split_hash
from em_bench_eval.leaderboard.rescoring import rescore
from em_bench_eval.rows import decode_row, open_rows, write_predictions
from em_bench_eval.score_dataset import score_folder
from em_bench_eval.score_volumes import open_labels, score_volumes
from em_bench_eval.settings import DEFAULT_SETTINGS
from lpa.ome_zarr import write_group


def hashes(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def parts(tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The public dataset and the private one, as folders."""
    out = tmp_path_factory.mktemp("published")
    before = hashes(tiny_dataset)
    with planned(tiny_dataset, private=["test"]) as plan:
        for kind, files in (("public", plan.files), ("labels", plan.labels)):
            for name, path in files.items():
                target = out / kind / "em-organelle-wild" / name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)
    assert hashes(tiny_dataset) == before, "the original is not touched, not even through hard links"
    assert not list(tiny_dataset.parent.glob(".*"))
    return out / "public" / "em-organelle-wild", out / "labels" / "em-organelle-wild"


def rows(dataset: Path, *folds: str) -> list[dict[str, Any]]:
    paths = sorted(path for fold in folds for path in (dataset / "data").glob(f"*/{fold}-*.parquet"))
    found = [row for path in paths for row in pq.read_table(path).to_pylist()]
    return [row for row in found if row["source"] != "lucchipp"]  # may not be redistributed at all


def test_rows_lose_their_labels_and_nothing_else(parts: tuple[Path, Path], tiny_dataset: Path) -> None:
    public, private = parts
    assert rows(public, "train", "validation") == rows(tiny_dataset, "train", "validation")
    original = rows(tiny_dataset, "test")
    assert rows(private, "train", "validation", "test") == original
    assert original
    empty = {"instances": None, "objects": [], "ignore": None}
    assert rows(public, "test") == [{**row, **empty} for row in original]
    text = (public / "stats.json").read_text()
    assert json.loads(text)["private_labels"] == ["test"]
    assert "The labels of `test` are not here" in (public / "README.md").read_text()
    assert "Keep this repository private" in (private / "README.md").read_text()


def test_volumes_keep_public_slabs_only(parts: tuple[Path, Path], tiny_dataset: Path) -> None:
    public, private = parts
    splits = json.loads((public / "splits.json").read_text())["volumes"]
    kinds = set()
    for folder in sorted((public / "volumes").iterdir()):
        slabs = splits[folder.name.removesuffix(".zarr")]["slabs"]
        original = tiny_dataset / "volumes" / folder.name
        kept = [(start, stop) for fold, start, stop in slabs if fold != "test"]
        hidden = len(kept) < len(slabs)
        kinds.add((hidden, bool(kept)))
        assert (private / "volumes" / folder.name).is_dir() == hidden
        if not hidden:
            assert hashes(folder) == hashes(original)
            continue
        about = json.loads((folder / "zarr.json").read_text())["attributes"]["em_organelle_wild"]
        assert about["private_labels"]["public_slices"] == [list(slab) for slab in kept]
        if not kept:
            assert not (folder / "labels").exists()
            assert "organelle_of" not in about
            continue
        ids: set[int] = set()
        for level in sorted(path.name for path in (folder / "labels" / "instances").glob("s*")):
            whole = read(original / "labels" / "instances" / level)
            factor = round(read(original / "s0").shape[0] / len(whole))
            shown = np.array(
                [all(any(a <= z * factor + k < b for a, b in kept) for k in range(factor)) for z in range(len(whole))]
            )
            for name in ("instances", "semantic"):
                expected = read(original / "labels" / name / level)
                expected[~shown] = 0
                np.testing.assert_array_equal(read(folder / "labels" / name / level), expected)
            np.testing.assert_array_equal(read(folder / "labels" / "ignore" / level).all(axis=(1, 2)), ~shown)
            ids |= (
                set(np.unique(read(folder / "labels" / "instances" / "s0")).tolist()) - {0} if level == "s0" else set()
            )
        assert {int(name) for name in about["organelle_of"]} == ids
        assert about["instances"] == len(ids)
    assert {(True, True), (True, False)} <= kinds, "volumes of both kinds were looked at"


def test_levels_that_are_reduced_within_slices_only(tmp_path: Path) -> None:
    """As those of serial sections: every level has all slices."""
    whole, rng = tmp_path / "whole.zarr", np.random.default_rng(0)
    shape, size_nm = (6, 256, 256), (50.0, 5.0, 5.0)
    pyramids = Pyramids(whole, tmp_path / "drafts", shape, size_nm, 2048, ignore=True)
    pyramids.create(np.uint16)
    assert [layout.shape[0] for layout in pyramids.layouts] == [6] * len(pyramids.layouts) != [6]
    ids = ndimage.zoom(rng.integers(0, 5, (6, 8, 8)), (1, 32, 32), order=0).astype(np.uint16)
    hidden = np.zeros(shape, np.uint8)
    hidden[1, :40] = 1
    box = tuple(slice(0, edge) for edge in shape)
    for group, values in (("labels/instances", ids), ("labels/semantic", ids > 0), ("labels/ignore", hidden)):
        pyramids.store(group, box, values.astype(np.uint16 if group.endswith("instances") else np.uint8))
        for level in range(1, len(pyramids.layouts)):
            pyramids.reduce(group, level, tuple(slice(0, edge) for edge in pyramids.layouts[level].shape))
    scales = [{"path": f"s{k}", "coordinateTransformations": [{"scale": [50.0]}]} for k in range(len(pyramids.layouts))]
    for name in ("instances", "semantic", "ignore"):
        write_group(whole / "labels" / name, {"ome": {"multiscales": [{"datasets": scales}]}})
    write_group(whole / "labels", {"ome": {}})
    expected = {f"{name}/s{k}": read(whole / "labels" / name / f"s{k}") for name in LABEL_ARRAYS for k in range(2)}
    seen = _hide_volume(whole, [(0, 2), (3, 4)])
    public = np.array([True, True, False, True, False, False])
    for place, values in expected.items():
        values[~public] = place.startswith("ignore")
        np.testing.assert_array_equal(read(whole / "labels" / place), values)
    ids[~public] = 0
    assert {id_: part.voxels for id_, part in seen.items()} == {
        id_: int((ids == id_).sum()) for id_ in np.unique(ids).tolist() if id_
    }
    places = np.argwhere(ids == 1)
    assert (seen[1].low, seen[1].high) == (places.min(axis=0).tolist(), (places.max(axis=0) + 1).tolist())


def read(path: Path) -> np.ndarray:
    return np.array(open_array(path)[...].read().result())


def test_tables_and_counts_tell_only_what_is_public(parts: tuple[Path, Path]) -> None:
    public, _ = parts
    listed = {row["volume_id"]: row for row in pq.read_table(public / "volumes.parquet").to_pylist()}
    table = pq.read_table(public / "instances.parquet").to_pylist()
    for name, volume in listed.items():
        path = public / volume["zarr"] / "labels" / "instances" / "s0"
        labels = read(path) if path.exists() else np.zeros((1, 1, 1), int)
        own = {row["instance_id"]: row for row in table if row["volume_id"] == name}
        assert set(own) == set(np.unique(labels).tolist()) - {0}
        assert sum(json.loads(volume["instances"]).values()) == len(own)
        for id_, row in own.items():
            places = np.argwhere(labels == id_)
            assert row["voxels"] == len(places)
            assert row["bbox"] == [*places.min(axis=0), *(places.max(axis=0) + 1)]
    stats = json.loads((public / "stats.json").read_text())
    assert sum(entry["volume_instances"] for entry in stats["instances_by"]) == len(table)
    objects = sum(len(row["objects"]) for row in rows(public, "train", "validation", "test"))
    assert sum(entry["slice_objects"] for entry in stats["instances_by"]) == objects


def test_no_private_label_is_in_any_public_file(parts: tuple[Path, Path], tiny_dataset: Path) -> None:
    public, _ = parts
    everything = b"".join(path.read_bytes() for path in sorted(public.rglob("*")) if path.is_file())
    for row in rows(tiny_dataset, "test"):
        assert row["instances"]["bytes"] not in everything
        assert row["image"]["bytes"] in everything
        if row["ignore"] is not None:
            assert row["ignore"]["bytes"] not in everything


def predictions(dataset: Path, split: str, out: Path) -> Path:
    found = [forms.damaged(decode_row(row)) for row in open_rows(dataset, "wild", split)]
    write_predictions(out, found, {**forms.INFO, "split": split})
    return out


def test_scoring_says_what_to_do_and_works_elsewhere(
    parts: tuple[Path, Path], tiny_dataset: Path, tmp_path: Path
) -> None:
    public, private = parts
    guess = predictions(private, "test", tmp_path / "test")
    with pytest.raises(
        InputError, match=r"labels of .*\(wild/test\) are private[\s\S]*--split validation[\s\S]*submit"
    ):
        score_folder(guess, str(public), "wild", "test", DEFAULT_SETTINGS, forms.INFO)
    for split, dataset in (("test", private), ("validation", public)):
        folder = predictions(dataset, split, tmp_path / f"again-{split}")
        found, _ = score_folder(folder, str(dataset), "wild", split, DEFAULT_SETTINGS, forms.INFO)
        assert found["images"] == len(open_rows(dataset, "wild", split)) > 0
    image = decode_row(open_rows(public, "wild", "test")[0])
    assert not image.labelled
    assert image.ignore.all()
    assert not image.annotated
    assert image.image.any()


def test_volumes_are_scored_where_their_labels_are_public(parts: tuple[Path, Path], tiny_dataset: Path) -> None:
    public, _ = parts
    hidden = next(path for path in sorted((public / "volumes").iterdir()) if not (path / "labels").exists())
    with pytest.raises(InputError, match=f"labels of .*{hidden.name} are private"):
        open_labels(hidden)
    cut = public / "volumes" / "vnc_sstem-stack1.zarr"
    whole = open_labels(tiny_dataset / "volumes" / cut.name)
    scores = score_volumes(whole, open_labels(cut)).compute()
    assert scores["mito/dice__instance"] == 1.0, "what is private is not judged"
    assert 0 < scores["mito/n_reference"] <= score_volumes(whole, whole).compute()["mito/n_reference"]


def test_a_submission_is_validated_with_the_public_and_scored_with_the_private_dataset(
    parts: tuple[Path, Path], tmp_path: Path
) -> None:
    public, private = parts
    seen, known = (expected_items(dataset, "wild", "test") for dataset in parts)
    assert split_hash(seen.items.values()) == split_hash(known.items.values())
    found = [forms.damaged(decode_row(row)) for row in open_rows(private, "wild", "test")]
    submission = forms.write(tmp_path / "team", "parquet", found, seen)
    result = rescore(submission, private, expected=seen, progress=False)
    direct, _ = score_folder(submission, str(private), "wild", "test", DEFAULT_SETTINGS, forms.INFO)
    assert result["scores"] == direct["groups"]
    with pytest.raises(InputError, match="no labels"):
        rescore(submission, public, progress=False)


def test_a_folder_without_labels_cannot_hide_them_again(parts: tuple[Path, Path]) -> None:
    with pytest.raises(InputError, match="has no labels of test itself"), planned(parts[0], private=["test"]):
        pass


def test_pictures_are_drawn_without_private_labels(tiny_dataset: Path, tmp_path: Path) -> None:
    dataset = Path(shutil.copytree(tiny_dataset, tmp_path / "em-organelle-wild"))
    (dataset / "figures").mkdir(exist_ok=True)
    (dataset / "figures" / "overlays-9.jpg").write_bytes(b"drawn with all labels")
    with planned(dataset, private=["test"]) as plan:
        drawn = {name: path.read_bytes() for name, path in plan.files.items() if name.startswith("figures/")}
    assert "figures/overlays-1.jpg" in drawn
    assert b"drawn with all labels" not in drawn.values()
