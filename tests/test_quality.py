"""The quality report: every check finds the fault it is for, and nothing in a clean dataset."""

from __future__ import annotations

import itertools
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from dataset_builder.build import Job, build
from dataset_builder.cli_check import check
from dataset_builder.layout import Layout
from dataset_builder.quality import check_dataset, examine, listed_volumes
from dataset_builder.quality_checks import BY_NAME, CHECKS, LEAST_SCORE, ranges
from dataset_builder.quality_registration import RADIUS, agreement, label_shift, mirror_score, slice_shift
from dataset_builder.splits import SplitPolicy
from dataset_builder.volumes import create_array, open_array
from em_bench_eval.errors import InputError

SHAPE = (40, 144, 160)


@pytest.fixture(scope="session")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small dataset without a fault."""
    out = tmp_path_factory.mktemp("quality") / "clean"
    options = {"shape": ",".join(map(str, SHAPE)), "setups": "fibsem8"}
    build([Job.of("phantom", None, options)], out, SplitPolicy())
    return out


@pytest.fixture
def faulty(clean: Path, tmp_path: Path) -> Path:
    """A copy of it to break."""
    return Path(shutil.copytree(clean, tmp_path / "faulty"))


def volume_of(dataset: Path) -> Path:
    return next((dataset / "volumes").glob("*.zarr"))


def array(dataset: Path, group: str = ".") -> object:
    return open_array(volume_of(dataset) / group / "s0")


def read(dataset: Path, group: str = ".") -> np.ndarray:
    return np.array(array(dataset, group).read().result())


def write(dataset: Path, values: np.ndarray, group: str = ".") -> None:
    array(dataset, group)[...].write(values).result()


def found(dataset: Path) -> dict[str, tuple[int, ...]]:
    """Name -> slices of everything that is flagged."""
    (listed,) = listed_volumes(dataset)
    return {finding.check.name: finding.slices for finding in examine(listed).findings}


def edit(change: Callable[[np.ndarray], np.ndarray | None], group: str = ".") -> Callable[[Path], None]:
    def inject(dataset: Path) -> None:
        values = read(dataset, group)
        changed = change(values)
        write(dataset, values if changed is None else changed, group)

    return inject


def at(z: int, value: int) -> Callable[[np.ndarray], None]:
    def change(image: np.ndarray) -> None:
        image[z] = value

    return change


def saturate(image: np.ndarray) -> None:
    image[4, :60] = 255


def flatten(image: np.ndarray) -> None:
    image[9] = (image[9].astype(float) - image[9].mean()) * 0.15 + image[9].mean()


def use_few_levels(image: np.ndarray) -> np.ndarray:
    return image // 8 * 8


def brighten(image: np.ndarray) -> None:
    image[6] = np.clip(image[6].astype(int) + 45, 0, 254)


def repeat(image: np.ndarray) -> None:
    image[11] = image[8]


def jump(image: np.ndarray) -> None:
    image[15:] = np.roll(image[15:], (7, -5), (1, 2))


def lose_part_of_labels(ids: np.ndarray) -> None:
    ids[:4, :80] = 0


def rename(ids: np.ndarray) -> None:
    biggest = np.bincount(ids.ravel())[1:].argmax() + 1
    ids[5][ids[5] == biggest] = 60000


def both_labels(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], None]:
    def inject(dataset: Path) -> None:
        for group in ("labels/instances", "labels/semantic"):
            edit(change, group)(dataset)

    return inject


def clear_slice(labels: np.ndarray) -> np.ndarray:
    labels[10] = 0
    return labels


def lose_image_file(dataset: Path) -> None:
    for path in (volume_of(dataset) / "s0" / "c").rglob("*"):
        if path.is_file():
            path.unlink()


def lose_pyramid_file(dataset: Path) -> None:
    for path in (volume_of(dataset) / "s1" / "c").rglob("*"):
        if path.is_file():
            path.unlink()


def damage(dataset: Path) -> None:
    (path,) = [path for path in (volume_of(dataset) / "s0" / "c").rglob("*") if path.is_file()]
    content = bytearray(path.read_bytes())
    content[-20:] = bytes(20)
    path.write_bytes(content)


def ignore_nearly_all(dataset: Path) -> None:
    shutil.copytree(volume_of(dataset) / "labels" / "semantic", volume_of(dataset) / "labels" / "ignore")
    everything = np.ones(SHAPE, np.uint8)
    everything[:2] = 0
    write(dataset, everything, "labels/ignore")


INJECTED: dict[str, tuple[Callable[[Path], None], set[int] | None]] = {  # check -> fault, slices that must be named
    "black": (edit(at(3, 0)), {3}),
    "empty": (edit(at(7, 131)), {7}),
    "saturated": (edit(saturate), {4}),
    "low_contrast": (edit(flatten), {9}),
    "few_levels": (edit(use_few_levels), None),
    "brightness": (edit(brighten), {6}),
    "duplicate": (edit(repeat), {11}),
    "jump": (edit(jump), {15}),
    "misregistered": (both_labels(lambda labels: np.roll(labels, (4, -3), (1, 2))), None),
    "mirrored": (both_labels(lambda labels: labels[:, ::-1]), None),
    "unknown_id": (edit(rename, "labels/instances"), {5}),
    "class_conflict": (edit(clear_slice, "labels/semantic"), {10}),
    "wrong_size": (edit(lose_part_of_labels, "labels/instances"), None),
    "label_gap": (both_labels(clear_slice), {10}),
    "missing_chunk": (lose_image_file, set(range(SHAPE[0]))),
    "unreadable": (damage, None),
    "ignored": (ignore_nearly_all, None),
}


def test_a_clean_dataset_passes(clean: Path) -> None:
    assert found(clean) == {}


@pytest.mark.parametrize("name", INJECTED)
def test_every_fault_is_found_where_it_is(faulty: Path, name: str) -> None:
    inject, slices = INJECTED[name]
    inject(faulty)
    flagged = found(faulty)
    assert name in flagged
    if slices is not None:
        assert set(flagged[name]) == slices


def test_windows_that_agree_with_each_other_to_the_digit_prove_nothing() -> None:
    plain = np.zeros((2 * RADIUS + 1, 2 * RADIUS + 1), np.float32)
    plain[RADIUS, RADIUS] = 0.3
    assert mirror_score([plain] * 8, [plain + np.float32(0.003)] * 8) < 3
    rng = np.random.default_rng(1)
    better = [plain * 1.5 + rng.normal(0, 0.02) for _ in range(8)]
    assert mirror_score([plain] * 8, better) > 10


def test_the_shift_of_misregistered_labels_is_measured(faulty: Path) -> None:
    both_labels(lambda labels: np.roll(labels, (4, -3), (1, 2)))(faulty)
    (listed,) = listed_volumes(faulty)
    labels = examine(listed).measured.labels
    assert labels is not None
    # to match the image, the labels must be moved back
    np.testing.assert_allclose(labels.shift, (-4, 3), atol=1)


def test_a_shift_along_z_is_seen_across_the_slices(faulty: Path) -> None:
    both_labels(lambda labels: np.roll(labels, 4, 0))(faulty)
    assert "misregistered" in found(faulty)


def test_labels_drawn_too_large_are_not_called_shifted(faulty: Path) -> None:
    both_labels(lambda labels: ndimage.grey_dilation(labels, (1, 3, 3)))(faulty)
    assert not {"misregistered", "mirrored"} & set(found(faulty))


def test_a_lost_pyramid_file_is_named(faulty: Path) -> None:
    lose_pyramid_file(faulty)
    (listed,) = listed_volumes(faulty)
    finding, *_ = examine(listed).findings
    assert finding.check.name == "missing_chunk"
    assert "s1/c/0/0/0" in finding.text


def test_black_padding_without_labels_is_only_a_warning(faulty: Path) -> None:
    z, y, x = array(faulty).chunk_layout.read_chunk.shape
    for group in (".", "labels/instances", "labels/semantic"):
        values = read(faulty, group)
        values[:z, :y, :x] = 0
        write(faulty, values, group)
    # the labels that were lost with it are another finding
    if (z, y, x) == SHAPE:
        pytest.skip("one chunk holds the whole volume")
    assert "black_chunk" in found(faulty)
    assert "missing_chunk" not in found(faulty)


def test_ids_that_turned_negative_in_the_tables_are_unknown(faulty: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    stored = open_array(volume_of(faulty) / "labels/instances/s0")
    chunk, shard = stored.chunk_layout.read_chunk.shape, stored.chunk_layout.write_chunk.shape
    ids = read(faulty, "labels/instances").astype(np.uint64)
    shutil.rmtree(volume_of(faulty) / "labels/instances/s0")
    create_array(volume_of(faulty) / "labels/instances/s0", Layout(SHAPE, chunk, shard), "uint64")
    write(faulty, np.where(ids > 0, ids + np.uint64(2**63), np.uint64(0)), "labels/instances")
    table = pq.read_table(faulty / "instances.parquet")
    negative = pa.array(table["instance_id"].to_numpy() + np.iinfo(np.int64).min, pa.int64())
    place = table.schema.get_field_index("instance_id")
    pq.write_table(table.set_column(place, table.schema.field(place), negative), faulty / "instances.parquet")
    assert {"unknown_id", "wrong_size"} <= set(found(faulty))


def test_crumbs_are_counted(faulty: Path) -> None:
    out = faulty
    import pyarrow as pa
    import pyarrow.parquet as pq

    (listed,) = listed_volumes(out)
    ids, classes = read(out, "labels/instances"), read(out, "labels/semantic")
    free = np.argwhere((ids == 0) & (np.indices(SHAPE).min(axis=0) > 0))[::997][:6]
    table = pq.read_table(out / "instances.parquet")
    rows = table.to_pylist()
    for number, (z, y, x) in enumerate(free.tolist(), start=int(ids.max()) + 1):
        ids[z, y, x], classes[z, y, x] = number, 1
        box = [z, y, x, z + 1, y + 1, x + 1]
        rows.append({"volume_id": listed.volume_id, "instance_id": number, "organelle": "mito", "voxels": 1,
                     "volume_nm3": 512.0, "bbox": box, "touches_border": False})  # fmt: skip
    write(out, ids, "labels/instances")
    write(out, classes, "labels/semantic")
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), out / "instances.parquet")
    assert set(found(out)) == {"tiny"}


def test_every_check_has_a_test() -> None:
    assert {check.name for check in CHECKS} == {*INJECTED, "black_chunk", "tiny"}


@given(st.integers(-9, 9), st.integers(-9, 9))
def test_slices_are_registered_to_half_a_pixel(dy: int, dx: int) -> None:
    noise = np.random.default_rng(abs(dy) * 40 + abs(dx)).normal(size=(120, 130))
    field = ndimage.gaussian_filter(noise, 2.5, mode="wrap")
    found = slice_shift(field[12:-12, 12:-12], np.roll(field, (-dy, -dx), (0, 1))[12:-12, 12:-12])
    np.testing.assert_allclose(found.shift, (dy, dx), atol=0.5)
    assert found.correlation > 0.95


@pytest.mark.parametrize("grown", [-2, 0, 2])
@pytest.mark.parametrize("offset", [(0, 0), (5, -3)])
def test_labels_are_registered_however_large_they_are_drawn(grown: int, offset: tuple[int, int]) -> None:
    rng = np.random.default_rng(5)
    rows, columns = np.indices((160, 160))
    surfaces = []
    for _ in range(8):
        distance = np.hypot(rows - rng.integers(70, 90), columns - rng.integers(70, 90))
        radius = rng.integers(18, 30)
        image = np.where(distance < radius, 90, 150) + rng.normal(0, 12, distance.shape)
        surfaces.append(agreement(image, np.roll(distance < radius + grown, offset, (0, 1)).astype(np.uint16)))
    found = label_shift(surfaces)
    assert found is not None
    np.testing.assert_allclose(found.shift, (-offset[0], -offset[1]), atol=0.75)
    assert (found.score > LEAST_SCORE and found.length > BY_NAME["misregistered"].limit) == any(offset)


def test_a_dataset_above_this_folder(
    clean: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(clean, "data")
    Path("here").mkdir()
    monkeypatch.chdir("here")
    assert check(["../data", "--out", "../report"]) == 0
    assert "0 errors, 0 warnings" in capsys.readouterr().out
    assert (tmp_path / "report" / "quality.html").is_file()


@given(st.sets(st.integers(0, 40)))
def test_ranges_hold_exactly_the_slices(slices: set[int]) -> None:
    joined = ranges(slices)
    assert {z for first, last in joined for z in range(first, last + 1)} == slices
    assert all(b[0] - a[1] > 1 for a, b in itertools.pairwise(joined))


def test_command_says_what_is_wrong_and_ends_with_1(
    clean: Path, faulty: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert check([str(clean), "--out", str(tmp_path / "fine")]) == 0
    assert "0 errors, 0 warnings" in capsys.readouterr().out
    edit(at(3, 0))(faulty)
    edit(repeat)(faulty)
    assert check([str(faulty)]) == 1
    printed = capsys.readouterr().out
    assert "error: phantom-fibsem8-0: black: z 3" in printed
    assert "warning: phantom-fibsem8-0: duplicate" in printed
    document = json.loads((faulty / "quality.json").read_text())
    (volume,) = document["volumes"]
    assert {entry["check"] for entry in volume["findings"]} == {"black", "duplicate"}
    assert document["checks"].keys() == BY_NAME.keys()
    assert sum(volume["slices"]["voxels"]["nucleus"]) == np.count_nonzero(read(faulty, "labels/semantic") == 2)
    assert len(volume["slices"]["mean"]) == SHAPE[0]


def test_warnings_alone_end_with_0(faulty: Path) -> None:
    edit(repeat)(faulty)
    assert check([str(faulty)]) == 0


def test_page_needs_nothing_else_and_shows_what_was_flagged(faulty: Path) -> None:
    edit(at(3, 0))(faulty)
    edit(jump)(faulty)
    check_dataset(faulty)
    page = (faulty / "quality.html").read_text()
    assert not re.findall(r'(?:src|href)="(?!data:|#)', page)
    assert "<script" not in page
    assert page.count("<figure><img") >= 2
    assert "z 3" in page
    assert page.count('id="phantom-fibsem8-0"') == 1


def test_the_report_does_not_depend_on_the_workers(tiny_dataset: Path, tmp_path: Path) -> None:
    for workers in (1, 2):
        check_dataset(tiny_dataset, tmp_path / str(workers), workers)
    for name in ("quality.json", "quality.html"):
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()


def test_what_is_no_dataset_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a dataset folder"):
        check([str(tmp_path)])
