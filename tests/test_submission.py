"""Submissions of every form: accepted when sound, every kind of fault named, all at once."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import submission_forms as forms
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from em_bench_eval.cli_validate import validate
from em_bench_eval.errors import InputError
from em_bench_eval.leaderboard.forms import FORMS
from em_bench_eval.leaderboard.guarded import check_guarded
from em_bench_eval.leaderboard.items import Expected, SplitItem, expected_items, split_hash
from em_bench_eval.leaderboard.manifest import KEYS, draft, gaps, read_manifest
from em_bench_eval.leaderboard.rle import packed, pixels_of, read_runs, runs_of
from em_bench_eval.leaderboard.submission import check, own_files, submission_hash
from em_bench_eval.leaderboard.verdict import KINDS, Faults, Verdict
from em_bench_eval.rows import decode_row, encode_png, open_rows, read_predictions
from em_bench_eval.schema import Organelle, Prediction

CONFIG, SPLIT = forms.CONFIG, forms.SPLIT


@pytest.fixture(scope="module")
def expected(tiny_dataset: Path) -> Expected:
    return expected_items(tiny_dataset, CONFIG, SPLIT)


@pytest.fixture(scope="module")
def predictions(tiny_dataset: Path) -> list[Prediction]:
    return [forms.damaged(decode_row(row)) for row in open_rows(tiny_dataset, CONFIG, SPLIT)]


def kinds(verdict: Verdict) -> dict[str, int]:
    return {group["kind"]: group["count"] for group in verdict.faults}


# --- the split --------------------------------------------------------------------------------------------------------


def test_the_split_is_what_the_rows_say_and_needs_no_labels(
    tiny_dataset: Path, expected: Expected, tmp_path: Path
) -> None:
    import pyarrow.parquet as pq

    rows = list(open_rows(tiny_dataset, CONFIG, SPLIT))
    decoded = {one.record_id: one for one in map(decode_row, rows)}
    assert {name: item.shape for name, item in expected.items.items()} == {
        name: one.image.shape for name, one in decoded.items()
    }
    assert all(item.pixel_size_nm == decoded[name].pixel_size_nm for name, item in expected.items.items())
    assert split_hash(rows) == split_hash(reversed(expected.items.values()))
    assert expected.dataset == "em-organelle-wild"
    assert expected.fingerprint.startswith("content ")
    assert Expected.from_json(json.loads(json.dumps(expected.to_json()))) == expected

    private = tmp_path / "public" / "em-organelle-wild"
    for file in (path for path in tiny_dataset.rglob("*") if path.suffix in (".md", ".parquet")):
        target = private / file.relative_to(tiny_dataset)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(file.read_bytes())
        if file.name.startswith("test"):
            table = pq.read_table(file)
            place = table.schema.get_field_index("instances")
            blank = [{"bytes": b"", "path": None} if number % 2 else None for number in range(table.num_rows)]
            import pyarrow as pa

            column = pa.array(blank, table.schema.field(place).type)
            pq.write_table(table.set_column(place, table.schema.field(place), column), target)
    assert split_hash(expected_items(private, CONFIG, SPLIT).items.values()) == split_hash(rows)


def test_the_split_hash_sees_every_id_shape_and_pixel_size() -> None:
    items = [SplitItem(f"v/z/{index:05d}", (3, 4), (8.0, 8.0)) for index in range(3)]
    whole = split_hash(items)
    assert whole == split_hash(items[::-1])
    for changed in (
        replace(items[0], record_id="v/z/00009"),
        replace(items[0], shape=(4, 3)),
        replace(items[0], pixel_size_nm=(8.0, 8.000001)),
    ):
        assert split_hash([changed, *items[1:]]) != whole
    assert split_hash(items[1:]) != whole


def test_no_such_dataset_configuration_or_split(tiny_dataset: Path, tmp_path: Path) -> None:
    for arguments in ((tmp_path / "none", "wild", "test"), (tiny_dataset, "wld", "test"), (tiny_dataset, "wild", "x")):
        with pytest.raises(InputError):
            expected_items(*arguments)


# --- sound submissions ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_accepted(form: str, predictions: list[Prediction], expected: Expected, tmp_path: Path) -> None:
    verdict = check(forms.write(tmp_path, form, predictions, expected), expected)
    assert verdict.faults == []
    assert verdict.facts["images"] == len(expected.items)
    assert verdict.facts["instances"] == sum(len(one.organelle_of) for one in predictions) > 0
    assert verdict.facts["submission_hash"] == submission_hash(tmp_path)
    assert verdict.facts["expected_seconds"] >= 0
    assert "ACCEPTED" in verdict.to_text()
    assert Verdict.from_json(json.loads(json.dumps(verdict.to_json()))) == verdict


@pytest.mark.parametrize("form", FORMS)
def test_every_form_decodes_to_the_same_labels(
    form: str, predictions: list[Prediction], expected: Expected, tmp_path: Path
) -> None:
    from em_bench_eval.leaderboard.checking import check_prediction
    from em_bench_eval.leaderboard.forms import open_form
    from em_bench_eval.leaderboard.safe_read import list_files

    folder = forms.write(tmp_path, form, predictions, expected)
    faults = Faults()
    opened = open_form(form, folder, list_files(folder, faults), expected, faults)
    cut = len(opened.ids) // 2
    candidates = [*opened.read(0, cut, faults), *opened.read(cut, len(opened.ids), faults)]
    read = {one.record_id: check_prediction(one, expected.items[one.record_id], faults) for one in candidates}
    assert not faults.as_list()
    for one in predictions:
        found = read[one.record_id]
        assert found is not None
        assert found.instances.dtype == np.uint32
        pairs = {(int(a), int(b)) for a, b in zip(found.instances.flat, one.instances.flat, strict=True)}
        assert len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs}), "one id there is one id here"
        assert all(found.organelle_of[a] == one.organelle_of[b] for a, b in pairs if a)
        assert {a == 0 for a, b in pairs if b == 0} <= {True}
    if form == "parquet":
        written = {one.record_id: one for one in read_predictions(folder)}
        for name, found in read.items():
            assert found is not None
            assert found.organelle_of == written[name].organelle_of
            assert found.confidence_of == pytest.approx(written[name].confidence_of)
            assert np.array_equal(found.instances, written[name].instances)


def test_tolerant_readers(predictions: list[Prediction], expected: Expected, tmp_path: Path) -> None:
    """Flat PNG names, a table in JSON, plain lists of COCO results, a table in Parquet from other tools."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    flat = forms.write(tmp_path / "flat", "png", predictions, expected)
    for path in list((flat / "instances").rglob("*.png")):
        path.rename(flat / "instances" / str(path.relative_to(flat / "instances")).replace("/", "__"))
    (flat / "objects.csv").unlink()
    table = {one.record_id: {str(id_): str(name) for id_, name in one.organelle_of.items()} for one in predictions}
    (flat / "objects.json").write_text(json.dumps(table))
    assert check(flat, expected).faults == []

    listed = forms.write(tmp_path / "listed", "coco", predictions, expected)
    content = forms.coco(predictions, pack=False)
    for mask in content["annotations"]:
        mask["image_id"] = content["images"][mask["image_id"]]["file_name"].removesuffix(".png")
    (listed / "coco.json").write_text(json.dumps(content["annotations"]))
    empty = {one.record_id for one in predictions if not one.organelle_of}
    assert kinds(check(listed, expected)) == ({"missing": len(empty)} if empty else {})

    other = forms.write(tmp_path / "other", "png", predictions, expected)
    rows = [
        {
            "record_id": one.record_id,
            "instances": encode_png(one.instances.astype(np.uint16)),
            "objects": [{"id": float(id_), "organelle": str(name)} for id_, name in one.organelle_of.items()],
            "pixel_size_nm": list(expected.items[one.record_id].pixel_size_nm),
        }
        for one in predictions
    ]
    kind = pa.list_(pa.struct({"id": pa.float64(), "organelle": pa.string()}))
    schema = {
        "record_id": pa.string(),
        "instances": pa.binary(),
        "objects": kind,
        "pixel_size_nm": pa.list_(pa.float64()),
    }
    for path in [*(other / "instances").rglob("*.png"), other / "objects.csv"]:
        path.unlink()
    pq.write_table(pa.Table.from_pylist(rows, pa.schema(schema)), other / "predictions.parquet")
    assert check(other, expected).faults == []


# --- faults -----------------------------------------------------------------------------------------------------------

Edit = Callable[[list[Prediction]], list[Prediction]]


def first(change: Callable[[Prediction], Prediction]) -> Edit:
    """Change the first prediction that has instances."""

    def edit(predictions: list[Prediction]) -> list[Prediction]:
        place = next(index for index, one in enumerate(predictions) if one.organelle_of)
        return [change(one) if index == place else one for index, one in enumerate(predictions)]

    return edit


def with_object(one: Prediction) -> Prediction:
    return replace(one, organelle_of={**one.organelle_of, 999: Organelle.ER})


FAULTS: dict[str, tuple[Edit, dict[str, int]]] = {
    "missing": (lambda p: p[2:], {"missing": 2}),
    "extra": (lambda p: [*p, replace(p[0], record_id="else/z/00001")], {"extra": 1}),
    "twice": (lambda p: [*p, p[0], p[0]], {"duplicate": 2}),
    "shape": (first(lambda one: replace(one, instances=one.instances[:-1])), {"shape": 1}),
    "no object": (first(lambda one: replace(one, organelle_of={}, confidence_of={})), {"no-object": 1}),
    "no organelle": (first(lambda one: replace(one, organelle_of={})), {"organelle": 0}),
    "no pixels": (first(with_object), {"no-pixels": 1}),
    "organelle": (
        first(lambda one: replace(one, organelle_of=dict.fromkeys(one.organelle_of, "mit"))),
        {"organelle": 0},
    ),
    "confidence": (
        first(lambda one: replace(one, confidence_of=dict.fromkeys(one.organelle_of, 1.5))),
        {"confidence": 0},
    ),
    "nan": (
        first(lambda one: replace(one, confidence_of=dict.fromkeys(one.organelle_of, float("nan")))),
        {"confidence": 0},
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_alone_is_named(
    fault: str, predictions: list[Prediction], expected: Expected, tmp_path: Path
) -> None:
    edit, wanted = FAULTS[fault]
    verdict = check(forms.write(tmp_path, "parquet", edit(predictions), expected), expected)
    assert set(kinds(verdict)) == set(wanted)
    assert all(count in (0, kinds(verdict)[kind]) for kind, count in wanted.items())
    assert "submission_hash" not in verdict.facts
    text = verdict.to_text()
    for kind in wanted:
        assert KINDS[kind].title in text
        assert KINDS[kind].remedy in text


def test_all_faults_at_once_with_counts_and_examples(
    predictions: list[Prediction], expected: Expected, tmp_path: Path
) -> None:
    edited = first(with_object)([*predictions[:-9], *predictions[:1] * 2])
    edited.append(replace(predictions[0], record_id="elsewhere/z/00001"))
    folder = forms.write(tmp_path, "parquet", edited, expected, prompts="oracle", model="", split_hash="f" * 64)
    verdict = check(folder, expected)
    assert kinds(verdict) == {"manifest": 2, "missing": 9, "extra": 1, "duplicate": 2, "no-pixels": 1}
    missing = next(group for group in verdict.faults if group["kind"] == "missing")
    assert len(missing["examples"]) == 5
    assert "... and 4 more" in verdict.to_text()
    assert verdict.count == 15
    assert "15 faults of 5 kinds" in verdict.to_text()
    assert verdict.to_markdown().count("~~~") == 2


def test_pixel_sizes_and_hashes_are_compared(predictions: list[Prediction], expected: Expected, tmp_path: Path) -> None:
    folder = forms.write(tmp_path / "a", "parquet", predictions, expected, split_hash="a" * 64)
    assert kinds(check(folder, expected)) == {"split-hash": 1}
    content = forms.coco(predictions)
    content["images"][0]["pixel_size_nm"] = [1.0, 8.0]
    content["images"][1]["height"] += 1
    folder = forms.write(tmp_path / "b", "coco", predictions, expected)
    (folder / "coco.json").write_text(json.dumps(content))
    assert kinds(check(folder, expected)) == {"pixel-size": 1, "shape": 1}


def test_overlapping_masks_and_wrong_runs(predictions: list[Prediction], expected: Expected, tmp_path: Path) -> None:
    content = forms.coco(predictions)
    masks = content["annotations"]
    masks.append({**masks[0], "category_id": 2})
    last = {**masks[1], "segmentation": {**masks[1]["segmentation"], "counts": [5, 5]}}
    last["image_id"] = next(mask["image_id"] for mask in masks if mask["image_id"] != masks[0]["image_id"])
    masks.append(last)
    folder = forms.write(tmp_path, "coco", predictions, expected)
    (folder / "coco.json").write_text(json.dumps(content))
    assert kinds(check(folder, expected)) == {"overlap": 1, "unreadable": 1}


def test_label_maps_of_the_wrong_type(predictions: list[Prediction], expected: Expected, tmp_path: Path) -> None:
    from PIL import Image

    folder = forms.write(tmp_path, "png", predictions, expected)
    paths = sorted((folder / "instances").rglob("*.png"))
    shapes = {path: Image.open(path).size for path in paths}
    Image.new("RGB", shapes[paths[0]]).save(paths[0])
    Image.new("L", shapes[paths[1]]).save(paths[1], format="TIFF")
    paths[2].write_bytes(paths[2].read_bytes()[:60])
    (folder / "instances" / "notes.txt").write_text("notes")
    found = kinds(check(folder, expected))
    assert found == {"dtype": 1, "unreadable": 3}


def test_volumes_that_do_not_fit(predictions: list[Prediction], expected: Expected, tmp_path: Path) -> None:
    folder = forms.write(tmp_path, "zarr", predictions, expected)
    first_volume, second = sorted(path for path in (folder / "volumes").iterdir())[:2]
    metadata = next(path for path in (first_volume / ".zarray", first_volume / "zarr.json") if path.exists())
    about = json.loads(metadata.read_text())
    metadata.write_text(json.dumps({**about, "shape": [10**9] * 3}))
    forms.write_zarr(folder / "volumes" / "unknown.zarr", np.zeros((1, 2, 2), np.uint8))
    metadata = next(path for path in (second / ".zarray", second / "zarr.json") if path.exists())
    about = json.loads(metadata.read_text())
    metadata.write_text(json.dumps({**about, "dtype": "<f4", "data_type": "float32"}))
    found = kinds(check(folder, expected))
    assert found == {"shape": 1, "dtype": 1, "extra": 1}


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [2**20, 2**10, 2**10]}}}, "unsafe"),
        ({"codecs": [{"name": "numcodecs.pickle"}]}, "unsafe"),
        ({"data_type": "object"}, "dtype"),
        ({"shape": [1, -2, 3]}, "shape"),
        ({"shape": "many"}, "shape"),
        ({"codecs": "zip"}, "shape"),
    ],
)
def test_metadata_of_volumes_is_judged_before_anything_is_opened(
    change: dict[str, Any], kind: str, predictions: list[Prediction], expected: Expected, tmp_path: Path
) -> None:
    folder = forms.write(tmp_path, "zarr", predictions, expected)
    path = sorted((folder / "volumes").rglob("zarr.json"))[0]
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    assert kinds(check(folder, expected)) == {kind: 1}


def test_no_predictions_several_forms_and_no_folder(
    predictions: list[Prediction], expected: Expected, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    assert kinds(check(tmp_path / "empty", expected)) == {"manifest": 1, "layout": 1}
    folder = forms.write(tmp_path / "two", "parquet", predictions, expected)
    forms.as_coco(folder, predictions)
    assert kinds(check(folder, expected)) == {"layout": 1}
    assert kinds(check(tmp_path / "nothing", expected)) == {"layout": 1}
    folder = forms.write(tmp_path / "table", "png", predictions, expected)
    (folder / "objects.csv").rename(folder / "objects.txt")
    assert kinds(check(folder, expected)) == {"layout": 1}


def test_other_files_are_ignored_and_links_refused(
    predictions: list[Prediction], expected: Expected, tmp_path: Path
) -> None:
    folder = forms.write(tmp_path / "a", "parquet", predictions, expected)
    before = submission_hash(folder)
    (folder / "score.json").write_text("{}")
    (folder / "run.py").write_text("raise SystemExit('executed')")
    (folder / ".git").mkdir()
    (folder / ".git" / "config").write_text("")
    verdict = check(folder, expected)
    assert verdict.ok
    assert own_files(folder) == ["prediction.json", "predictions.parquet", "submission.yaml"]
    assert submission_hash(folder) == before
    assert "3 of its files" in verdict.notes[0]
    os.symlink(tmp_path, folder / "elsewhere")
    os.mkfifo(folder / "pipe")
    assert kinds(check(folder, expected)) == {"unsafe": 2}


def test_a_cell_that_names_a_path_is_never_followed(
    predictions: list[Prediction], expected: Expected, tmp_path: Path
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = forms.write(tmp_path / "a", "parquet", predictions, expected)
    secret = tmp_path / "reference.png"
    secret.write_bytes(encode_png(predictions[0].instances.astype(np.uint16)))
    table = pq.read_table(folder / "predictions.parquet")
    rows = table.to_pylist()
    rows[0]["instances"] = {"bytes": None, "path": str(secret)}
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), folder / "predictions.parquet")
    verdict = check(folder, expected)
    assert kinds(verdict) == {"unreadable": 1}
    assert "a path instead of bytes" in verdict.to_text()


# --- the manifest -----------------------------------------------------------------------------------------------------

MANIFESTS = {
    "team": (["team"], "line 3, team"),
    "paper": ("javascript:alert(1)", "http(s) address"),
    "code": ("https://a.b/<script>", "http(s) address"),
    "prompts": ("oracle", "oracle:points"),
    "config": ("wlid", "did you mean 'wild'?"),
    "split": ("tset", "did you mean 'test'?"),
    "split_hash": ("12", "64 hexadecimal digits"),
    "training_data": ([], "1 to 50 data sets"),
    "compute": ("x" * 1001, "1001 characters"),
    "model": ("FILL_IN", "a gap of the draft"),
    "metric": ("all", "the key 'metric'"),
    "notes": ("a\u202eb", "printable"),
}


@pytest.mark.parametrize("key", MANIFESTS)
def test_faults_of_the_manifest_name_line_and_key(key: str, tmp_path: Path) -> None:
    value, said = MANIFESTS[key]
    (tmp_path / "submission.yaml").write_text(forms.manifest(**{key: value}), encoding="utf-8")
    faults = Faults()
    assert read_manifest(tmp_path, faults)[0] is None
    (group,) = faults.as_list()
    assert group["count"] == 1
    text = Verdict(faults.as_list()).to_text()
    assert said in text
    assert "submission.yaml line " in text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "- a\n- b\n",
        "a: [",
        "a: &x 1\nb: *x\n",
        "{{{{{{: 1",
        "\t",
        "? [a]\n: b",
        '"\\UFFFFFFFF": 1',
        "%YAML 9" + "9" * 5000,
    ],
)
def test_what_is_no_manifest_is_a_fault(text: str, tmp_path: Path) -> None:
    (tmp_path / "submission.yaml").write_text(text)
    faults = Faults()
    assert read_manifest(tmp_path, faults)[0] is None
    assert faults.count()


def test_required_keys_and_repeated_ones_are_faults(tmp_path: Path) -> None:
    (tmp_path / "submission.yaml").write_text("model: a\nmodel: b\nteam:\n")
    faults = Faults()
    read_manifest(tmp_path, faults)
    text = Verdict(faults.as_list()).to_text()
    assert "line 2, model" in text
    assert "this key for the second time" in text
    required = [name for name, key in KEYS.items() if key.required]
    assert faults.count() == len(required) - 1 + 1  # all but model are missing or empty; model is there twice


def test_a_draft_is_sound_once_its_gaps_are_filled(
    predictions: list[Prediction],
    expected: Expected,
    tiny_dataset: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    forms.as_parquet(tmp_path, predictions)
    assert validate([str(tmp_path), "--draft", "--dataset", str(tiny_dataset)]) == 0
    path = tmp_path / "submission.yaml"
    text = path.read_text()
    open_gaps = ["team", "paper", "code", "training_data", "prompts", "compute"]
    assert gaps(text) == open_gaps
    assert ", ".join(open_gaps) in capsys.readouterr().out
    assert kinds(check(tmp_path, expected)) == {"manifest": len(open_gaps)}
    path.write_text(text.replace("FILL_IN", "none").replace("Replace every none", ""))
    assert check(tmp_path, expected).ok
    with pytest.raises(InputError, match="is there already"):
        validate([str(tmp_path), "--draft"])


def test_a_draft_quotes_what_yaml_would_misread(tmp_path: Path) -> None:
    strange = 'no: "model" #1'
    text = draft({"model": strange, "config": "wild", "split": "test"}).replace("FILL_IN", "none")
    (tmp_path / "submission.yaml").write_text(text.replace("split_hash: none", "split_hash: " + "0" * 64))
    faults = Faults()
    manifest = read_manifest(tmp_path, faults)[0]
    assert manifest is not None, faults.as_list()
    assert manifest.model == strange


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_command_answers_with_status_and_json(
    predictions: list[Prediction],
    expected: Expected,
    tiny_dataset: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = forms.write(tmp_path / "a", "parquet", predictions, expected)
    assert validate([str(folder), "--dataset", str(tiny_dataset), "--json"]) == 0
    verdict = json.loads(capsys.readouterr().out)
    assert verdict["ok"]
    assert verdict["format"] == "em-organelle-wild verdict v1"
    assert verdict["facts"]["dataset"]["images"] == len(expected.items)
    folder = forms.write(tmp_path / "b", "parquet", predictions[1:], expected)
    assert validate([str(folder), "--dataset", str(tiny_dataset)]) == 2
    assert "missing" in capsys.readouterr().out
    assert validate([str(folder)]) == 0  # nobody can know
    assert "without --dataset" in capsys.readouterr().out


# --- bounds -----------------------------------------------------------------------------------------------------------


def test_what_unpacks_to_more_than_it_says_ends_in_a_verdict(
    predictions: list[Prediction], expected: Expected, tmp_path: Path
) -> None:
    """One long organelle name, written once and referred to 2000 times: 2 GB from a few kB."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = forms.write(tmp_path, "parquet", predictions, expected)
    table = pq.read_table(folder / "predictions.parquet").slice(0, 1)
    count = 2000
    name = pa.DictionaryArray.from_arrays(pa.array([0] * count, pa.int32()), pa.array(["m" * 2**20]))
    entries = pa.StructArray.from_arrays([pa.array(range(1, count + 1), pa.int32()), name], ["id", "organelle"])
    place = table.schema.get_field_index("objects")
    bomb = table.set_column(place, "objects", pa.ListArray.from_arrays([0, count], entries))
    pq.write_table(bomb, folder / "predictions.parquet", compression="zstd", store_schema=False)
    assert (folder / "predictions.parquet").stat().st_size < 2**20
    verdict = check_guarded(folder, expected, memory_bytes=2**29)
    assert not verdict.ok
    assert set(kinds(verdict)) & {"resources", "unreadable"}


def test_a_verdict_comes_in_bounded_time(predictions: list[Prediction], expected: Expected, tmp_path: Path) -> None:
    verdict = check_guarded(forms.write(tmp_path, "parquet", predictions, expected), expected, seconds=0.05)
    assert kinds(verdict) == {"resources": 1}


# --- run-length encoding ----------------------------------------------------------------------------------------------


@settings(max_examples=100)
@given(hnp.arrays(np.bool_, st.tuples(st.integers(1, 9), st.integers(1, 9))))
def test_runs_are_the_mask_packed_or_not(mask: np.ndarray[Any, Any]) -> None:
    runs = runs_of(mask)
    for counts in (runs, packed(runs)):
        pixels = pixels_of(read_runs(counts, mask.size))
        again = np.zeros(mask.size, bool)
        again[pixels] = True
        assert np.array_equal(again.reshape(mask.shape, order="F"), mask)


def test_runs_packed_by_hand() -> None:
    # a 5 x 5 mask with a 3 x 3 square: runs 6 3 2 3 2 3 6, from the fourth on as differences to the one before last
    mask = np.zeros((5, 5), bool)
    mask[1:4, 1:4] = True
    assert runs_of(mask) == [6, 3, 2, 3, 2, 3, 6]
    assert packed(runs_of(mask)) == "6320004"
    assert packed([33]) == "Q1"  # 33 = 1 + 32 * 1: 'Q' is 48 + 1 + 32 (more follows), '1' is 48 + 1


@pytest.mark.parametrize(
    "counts", [[26], [-1, 26], [10, 10], [True, 24], "~", "P", "o" * 20, 7, None, [1e9], ["a"], ""]
)
def test_runs_that_are_none(counts: object) -> None:
    with pytest.raises(ValueError, match=r"run|counts|cover|character"):
        read_runs(counts, 25)
