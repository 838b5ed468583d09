"""Damaged and hostile submissions: whatever is in them, ``check`` returns a verdict, in bounded memory and time."""

from __future__ import annotations

import json
import random
import shutil
import signal
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import submission_forms as forms
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from em_bench_eval.leaderboard import safe_read
from em_bench_eval.leaderboard.forms import FORMS
from em_bench_eval.leaderboard.guarded import check_guarded
from em_bench_eval.leaderboard.items import Expected, SplitItem, VolumeItem
from em_bench_eval.leaderboard.manifest import read_manifest
from em_bench_eval.leaderboard.submission import check
from em_bench_eval.leaderboard.verdict import KINDS, Faults, Verdict, printable
from em_bench_eval.schema import ORGANELLES, Organelle, Prediction

SIDE = 12
IDS = [f"cell/z/{index:05d}" for index in range(3)]
EXPECTED = Expected(
    "em-organelle-wild",
    forms.CONFIG,
    forms.SPLIT,
    {name: SplitItem(name, (SIDE, SIDE), (8.0, 8.0)) for name in IDS},
    {"cell": VolumeItem((3, SIDE, SIDE), (8.0, 8.0, 8.0))},
)
FUZZED = settings(
    max_examples=60, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
FILES = {
    "parquet": "predictions.parquet",
    "png": "instances/cell/z/00001.png",
    "coco": "coco.json",
    "zarr": "objects.json",
}


def predictions() -> list[Prediction]:
    labels = np.zeros((SIDE, SIDE), np.uint32)
    labels[1:4, 1:4], labels[6:9, 2:11] = 1, 2
    return [Prediction(name, labels, {1: Organelle.MITO, 2: Organelle.ER}, {1: 0.5, 2: 1.0}) for name in IDS]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("sound")
    return {form: forms.write(folder / form, form, predictions(), EXPECTED) for form in FORMS}


def copied(sound: dict[str, Path], form: str, target: Path) -> Path:
    shutil.rmtree(target, ignore_errors=True)
    return Path(shutil.copytree(sound[form], target))


def judged(folder: Path) -> Verdict:
    """A verdict whose every word can be printed and sent."""
    verdict = check(folder, EXPECTED)
    text = json.dumps(verdict.to_json(), allow_nan=False)
    assert len(text) < 100_000
    assert all(group["kind"] in KINDS for group in verdict.faults)
    assert all(line.isprintable() for line in verdict.to_text().splitlines())
    assert verdict.to_markdown().count("~~~") == 2
    return verdict


def mutate(content: bytes, rng: random.Random) -> bytes:
    """Flip, cut, repeat or insert bytes in a few places."""
    data = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(len(data) + 1)
        action = rng.randrange(5)
        if action == 0 and data:
            data[place % len(data)] ^= 1 << rng.randrange(8)
        elif action == 1:
            data[place : place + rng.randint(1, 16)] = b""
        elif action == 2:
            data[place:place] = bytes(rng.randrange(256) for _ in range(rng.randint(1, 8)))
        elif action == 3:
            data[place:place] = data[place : place + 32]
        elif data:
            data[place % len(data)] = rng.choice((0, 1, 0x7F, 0x80, 0xFF))
    return bytes(data)


@pytest.mark.parametrize("form", FORMS)
def test_sound_submissions_are_sound(form: str, sound: dict[str, Path]) -> None:
    assert judged(sound[form]).faults == []


@pytest.mark.parametrize("form", ["png", "coco", "zarr"])
@FUZZED
@given(seed=st.integers(0, 2**32))
def test_mutated_files_get_a_verdict(form: str, seed: int, sound: dict[str, Path], tmp_path: Path) -> None:
    rng = random.Random(seed)
    folder = copied(sound, form, tmp_path / "copy")
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "prediction.json")
    chosen = folder / FILES[form] if rng.random() < 0.5 else rng.choice(files)
    chosen.write_bytes(mutate(chosen.read_bytes(), rng))
    judged(folder)


MANY = """
import random, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import test_submission_fuzz as fuzz
from em_bench_eval.leaderboard.guarded import limit_memory, warm_up
warm_up()
limit_memory(2**30)
file = Path(sys.argv[2]) / "predictions.parquet"
content = file.read_bytes()
for seed in range(int(sys.argv[3]), int(sys.argv[4])):
    file.write_bytes(fuzz.mutate(content, random.Random(seed)))
    print(seed, int(fuzz.judged(file.parent).ok), flush=True)
"""


def test_mutated_parquet_gets_a_verdict_within_a_gibibyte(
    sound: dict[str, Path], tmp_path: Path, project: Path
) -> None:
    """In processes of their own: the decoder is not ours, and some content ends its process (it says so and aborts)."""
    folder, file = copied(sound, "parquet", tmp_path / "copy"), "predictions.parquet"
    whole: dict[int, int] = {}
    crashed: list[int] = []
    while (first := len(whole) + len(crashed)) < 300:
        shutil.copy(sound["parquet"] / file, folder / file)
        command = [sys.executable, "-c", MANY, str(project / "tests"), str(folder), str(first), "300"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=project)
        whole |= {int(seed): int(ok) for seed, ok in map(str.split, done.stdout.splitlines())}
        if done.returncode:
            assert done.returncode in (-signal.SIGABRT, -signal.SIGSEGV), done.stderr[-2000:]
            crashed.append(len(whole) + len(crashed))
    assert sum(whole.values()) < 150  # most mutations do harm
    assert len(crashed) < 6
    for seed in crashed:
        (folder / file).write_bytes(mutate((sound["parquet"] / file).read_bytes(), random.Random(seed)))
        assert [group["kind"] for group in check_guarded(folder, EXPECTED).faults] == ["crash"]


# --- hostile manifests ------------------------------------------------------------------------------------------------

YAML_PARTS = st.sampled_from(
    [
        *("model", "team", ":", " ", "\n", "- ", "[", "]", "{", "}", "&a", "*a", "!!python/object:os.system", "|", ">"),
        *("\t", "?", "#", "%YAML 1.1", "---", "...", "<<", "~", "\x07", "\u2028", "9" * 50, "é", "\\", '"', "'", "a"),
    ]
)


@FUZZED
@given(st.lists(YAML_PARTS, max_size=40).map("".join))
@example("a: &a [x]\nb: &b [*a, *a]\nc: [*b, *b]")
@example("[" * 5000)
@example("{a: " * 5000)
@example("- " * 5000)
@example("model: !!python/object/apply:os.system ['echo']")
@example("model: |\n" + " x\n" * 20_000)
@example('"\\x1b[2J": 1')
@example("%YAML 1." + "9" * 5000 + "\n---\n")
@example("a: 1\n" * 30_000)
def test_any_manifest_gets_an_answer(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    folder = tmp_path_factory.getbasetemp() / "manifest"
    folder.mkdir(exist_ok=True)
    (folder / "submission.yaml").write_text(text, encoding="utf-8", errors="surrogatepass")
    faults = Faults()
    manifest, _ = read_manifest(folder, faults)
    assert (manifest is None) == bool(faults.count())
    assert Verdict(faults.as_list()).to_text().replace("\n", "").isprintable()


@FUZZED
@given(st.binary(max_size=200))
def test_manifests_of_any_bytes(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    folder = tmp_path_factory.getbasetemp() / "bytes"
    folder.mkdir(exist_ok=True)
    (folder / "submission.yaml").write_bytes(content)
    faults = Faults()
    assert read_manifest(folder, faults)[0] is None
    assert faults.count()


# --- hostile tables ---------------------------------------------------------------------------------------------------

KEYS = (
    *("id", "image_id", "category_id", "segmentation", "size", "counts", "score", "images", "annotations"),
    *("categories", "name", "file_name", "height", "width", "record_id", "organelle", "confidence", *IDS),
)
PLAIN = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5)
VALUES = st.recursive(
    PLAIN | st.sampled_from(ORGANELLES),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=5),
    max_leaves=20,
)


@pytest.mark.parametrize("form", ["coco", "png", "zarr"])
@FUZZED
@given(content=VALUES)
@example(content={"images": [{"id": 1, "file_name": IDS[0]}], "annotations": [{"image_id": 1, "segmentation": 7}]})
@example(content=[{"image_id": IDS[0], "segmentation": {"size": [2**40, 2**40], "counts": [2**80]}}])
@example(content=[{"image_id": IDS[0], "segmentation": {"size": [SIDE, SIDE], "counts": "\u20ac"}}])
@example(
    content=[{"image_id": IDS[0], "segmentation": {"size": [SIDE, SIDE], "counts": [SIDE * SIDE]}, "category_id": []}]
)
@example(content={IDS[0]: [{"id": [1], "organelle": ["mito"], "confidence": {}}]})
@example(content={"cell": {"1": None, "2": "er"}})
def test_any_json_gets_a_verdict(form: str, content: Any, sound: dict[str, Path], tmp_path: Path) -> None:
    folder = copied(sound, form, tmp_path / "copy")
    name = "coco.json" if form == "coco" else "objects.json"
    if form == "png":
        (folder / "objects.csv").unlink()
    (folder / name).write_text(json.dumps(content))
    judged(folder)


@pytest.mark.parametrize("text", ["[" * 100_000, "1" * 5000, "[1e999]", "[NaN]", '{"a": 1', "", "\0", '"\ud800"'])
def test_json_that_hurts_parsers_gets_a_verdict(text: str, sound: dict[str, Path], tmp_path: Path) -> None:
    folder = copied(sound, "coco", tmp_path / "copy")
    (folder / "coco.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    assert not judged(folder).ok


def test_json_of_too_many_values_is_refused_before_it_is_parsed(
    sound: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(safe_read, "MAX_TEXT_VALUES_BYTES", 2**20)
    folder = copied(sound, "coco", tmp_path / "copy")
    (folder / "coco.json").write_text("[" + "[]," * 50_000 + "[]]")
    monkeypatch.setattr(json, "loads", lambda *_, **__: pytest.fail("parsed"))
    assert check(folder, EXPECTED).faults[0]["kind"] == "unsafe"


# --- bombs ------------------------------------------------------------------------------------------------------------


def png(height: int, width: int, chunks: list[tuple[bytes, bytes]], bits: int = 16) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in [(b"IHDR", header), *chunks, (b"IEND", b"")])


def test_a_png_that_declares_more_pixels_is_never_decoded(
    sound: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from PIL import Image

    folder = copied(sound, "png", tmp_path / "copy")
    (folder / FILES["png"]).write_bytes(png(60_000, 60_000, [(b"IDAT", zlib.compress(bytes(10**6)))]))
    real = Image.open
    opened: list[tuple[int, int]] = []

    def spy(*arguments: Any, **options: Any) -> Any:
        image = real(*arguments, **options)
        opened.append(image.size)
        return image

    monkeypatch.setattr(Image, "open", spy)
    verdict = judged(folder)
    assert [group["kind"] for group in verdict.faults] == ["shape"]
    assert set(opened) == {(SIDE, SIDE)}
    assert not check(folder).ok  # nor without a dataset


def test_texts_inside_a_png_do_not_unpack_without_bound(sound: dict[str, Path], tmp_path: Path) -> None:
    folder = copied(sound, "png", tmp_path / "copy")
    pixels = zlib.compress(bytes(SIDE * (1 + 2 * SIDE)))
    bomb = zlib.compress(bytes(2**27), 9)
    heads = {b"zTXt": b"a\0\0", b"iCCP": b"a\0\0", b"iTXt": b"a\0\1\0\0\0"}
    for name, (kind, head) in zip(IDS, heads.items(), strict=True):
        (folder / "instances" / f"{name}.png").write_bytes(png(SIDE, SIDE, [(kind, head + bomb), (b"IDAT", pixels)]))
    verdict = check_guarded(folder, EXPECTED, memory_bytes=100 * 2**20)
    assert {group["kind"]: group["count"] for group in verdict.faults} == {"unreadable": 3}


def test_a_chunk_of_zstd_that_unpacks_to_gigabytes_ends_in_a_verdict(sound: dict[str, Path], tmp_path: Path) -> None:
    import pyarrow as pa

    folder = copied(sound, "zarr", tmp_path / "copy")
    store = folder / "volumes" / "cell.zarr"
    shutil.rmtree(store)
    codecs = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "zstd", "configuration": {"level": 1}}]
    labels = np.zeros((3, SIDE, SIDE), np.uint32)
    forms.write_zarr(store, labels + 1, driver="zarr3", metadata={"codecs": codecs})
    chunk = next(path for path in store.rglob("*") if path.is_file() and path.name != "zarr.json")
    block = pa.Codec("zstd").compress(bytes(2**24), asbytes=True)
    chunk.write_bytes(block * 256)  # 4 GiB of frames in a row
    assert chunk.stat().st_size < 2**20
    verdict = check_guarded(folder, EXPECTED, memory_bytes=2**29)
    assert not verdict.ok
    assert {group["kind"] for group in verdict.faults} <= {"unreadable", "resources", "no-object"}


def test_a_table_of_two_to_the_thirty_objects_is_refused_by_its_footer(sound: dict[str, Path], tmp_path: Path) -> None:
    """A run-length encoded list of nulls: millions of objects in a few bytes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = copied(sound, "parquet", tmp_path / "copy")
    table = pq.read_table(folder / "predictions.parquet").slice(0, 1)
    place = table.schema.get_field_index("objects")
    count = safe_read.MAX_OBJECTS + safe_read.MAX_IMAGES + 1
    entries = pa.nulls(count, table.schema.field(place).type.value_type)
    lists = pa.ListArray.from_arrays([0, count], entries)
    pq.write_table(table.set_column(place, "objects", lists), folder / "predictions.parquet", compression="zstd")
    verdict = judged(folder)
    assert verdict.faults[0]["kind"] == "unsafe"


def test_names_that_climb_out_are_never_opened(sound: dict[str, Path], tmp_path: Path) -> None:
    """Record ids and metadata may say anything; only files that a listing found are read."""
    secret = tmp_path / "secret.zarr"
    forms.write_zarr(secret, np.ones((3, SIDE, SIDE), np.uint8))
    folder = copied(sound, "zarr", tmp_path / "copy")
    store = folder / "volumes" / "cell.zarr"
    shutil.rmtree(store)
    store.mkdir()
    for path in ("../../../secret.zarr", str(secret), "..", ".", "a/b", "a\\b", ""):
        pyramid = {"multiscales": [{"axes": ["z", "y", "x"], "datasets": [{"path": path}]}]}
        (store / ".zattrs").write_text(json.dumps(pyramid))
        verdict = judged(folder)
        assert verdict.faults[0]["kind"] in ("unsafe", "unreadable")
    folder = copied(sound, "coco", tmp_path / "other")
    content = forms.coco(predictions())
    content["images"][0]["file_name"] = "../../etc/passwd"
    (folder / "coco.json").write_text(json.dumps(content))
    assert {group["kind"] for group in judged(folder).faults} == {"missing", "extra"}


def test_too_many_files_are_not_all_listed(
    sound: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(safe_read, "MAX_FILES", 5)
    folder = copied(sound, "png", tmp_path / "copy")
    for number in range(50):
        (folder / "instances" / f"{number}.png").write_bytes(b"")
    assert judged(folder).faults[0]["kind"] == "unsafe"


def test_texts_of_a_submission_are_made_printable() -> None:
    assert printable("a\x1b[31mb\n\u202ec") == "a\\x1b[31mb\\x0a\\x202ec"
    assert len(printable("x" * 10_000)) == 200
    faults = Faults()
    faults.note("extra", "~~~\n# @everyone", "\x00", "y" * 10_000)
    text = Verdict(faults.as_list()).to_markdown()
    assert text.count("~~~") == 2
    assert "\x00" not in text
