"""A spec of private data: every fault with its line, and volumes that are what the files and the spec say."""

from __future__ import annotations

import json
import pickle
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dataset_builder.harmonise import Window
from dataset_builder.instances import instances_of
from dataset_builder.label_values import IGNORED, UNKNOWN, Lookup, ValueMap, parse_range
from dataset_builder.source import Source, load_source
from dataset_builder.sources.local import SOURCE, source_of
from dataset_builder.spec import load_spec
from dataset_builder.splits import SplitPolicy
from dataset_builder.views import boxes, distinct_ids
from em_bench_eval.errors import InputError
from em_bench_eval.opened import Mapped, Opened, whole_numbers
from em_bench_eval.schema import Frame, Organelle, Span, Volume, VoxelSize

SHAPE = (5, 24, 30)
RNG = np.random.default_rng(3)
GRAY = RNG.integers(0, 256, SHAPE, dtype=np.uint8)
DEEP = RNG.integers(500, 4000, SHAPE, dtype=np.uint16)
CLASSES = np.repeat(np.repeat(RNG.integers(0, 4, (5, 6, 6)), 4, 1), 5, 2).astype(np.uint8)  # 0..3 in blocks
IDS = np.arange(np.prod(SHAPE)).reshape(SHAPE) // 90 % 7 * 10
IDS = IDS.astype(np.uint16)  # 0, 10, 20, ... 60

SPEC = """
source:
  name: our_lab
  title: Our cells
  licence: CC-BY-4.0
  modality: FIB-SEM
  redistributable: yes
  citation: |
    @article{us2026, author = {Us}, title = {Cells}, year = {2026}}
defaults:
  voxel_size_nm: [8, 4, 4]
  specimen: mouse 7
  cell_type: no
volumes:
  - id: a
    image: gray.tif
    labels: {path: classes.tif, values: {1: mito, 2: golgi, 3: other:lysosome}}
    annotated: {mito: manual, golgi: refined}
"""


@pytest.fixture
def lab(tmp_path: Path) -> Path:
    """A folder with volumes, in which a spec is written."""
    tifffile.imwrite(tmp_path / "gray.tif", GRAY)
    tifffile.imwrite(tmp_path / "deep.tif", DEEP)
    tifffile.imwrite(tmp_path / "classes.tif", CLASSES)
    tifffile.imwrite(tmp_path / "ids.tif", IDS)
    return tmp_path


def declared(lab: Path, text: str = SPEC) -> Source:
    (lab / "spec.yaml").write_text(text)
    return source_of(lab / "spec.yaml")


def volume(lab: Path, text: str = SPEC) -> Volume:
    (only,) = declared(lab, text).volumes(None, {})
    return only


def read_everything(lab: Path, text: str) -> None:
    for one in declared(lab, text).volumes(None, {}):
        instances_of(one)
        if one.ignore is not None:
            np.asarray(one.ignore[:])


def fault(lab: Path, text: str) -> str:
    with pytest.raises(InputError) as caught:
        read_everything(lab, text)
    return str(caught.value)


def test_a_volume_is_what_the_spec_says(lab: Path) -> None:
    source = declared(lab)
    info = source.info
    assert (info.name, info.title, info.licence, info.redistributable) == ("our_lab", "Our cells", "CC-BY-4.0", True)
    assert info.citation.startswith("@article{us2026")
    assert info.voxel_size == VoxelSize(8, 4, 4)
    assert dict(info.annotated) == {Organelle.MITO: "manual+lpa", Organelle.GOLGI: "refined+lpa"}
    assert set(source.extras) == {"lysosome"}
    (found,) = source.volumes(None, {})
    assert (found.volume_id, found.source, found.specimen) == ("our_lab-a", "our_lab", "mouse 7")
    assert found.cell_type == "no", "text, not the boolean that YAML 1.1 makes of it"
    assert (found.modality, found.domain, found.published_fold) == ("FIB-SEM", "in", None)
    np.testing.assert_array_equal(found.image[:], GRAY)
    assert found.semantic is not None
    expected = np.select([CLASSES == 1, CLASSES == 2], [Organelle.MITO.label_id, Organelle.GOLGI.label_id], 0)
    np.testing.assert_array_equal(found.semantic[:], expected)
    np.testing.assert_array_equal(found.semantic[1:3, 4:9, 5], expected[1:3, 4:9, 5])
    assert found.provenance["raw"] == "gray.tif"
    assert found.provenance["labels"] == "classes.tif"
    assert "3: other:lysosome" in found.provenance["extra:lysosome"]
    assert str(lab) not in json.dumps(dict(found.provenance)), "folders of the lab are not published"


# (what is replaced, by what, line that is named, and what the message says)
FAULTS = [
    ("name: our_lab", "name: Our Lab", 3, "lower-case"),
    ("name: our_lab", "name: lucchipp", 3, "em-bench itself has a source of this name"),
    ("licence: CC-BY-4.0", "licence: FILL_IN", 5, "fill it in"),
    ("licence: CC-BY-4.0", "licence: none stated", 7, "name the licence"),
    ("licence: CC-BY-4.0", "", 3, "found: no licence"),
    ("modality: FIB-SEM", "modalities: FIB-SEM", 6, "did you mean 'modality'"),
    ("redistributable: yes", "redistributable: perhaps", 7, "true or false"),
    ("@article{us2026,", "us2026,", 8, "BibTeX"),
    ("[8, 4, 4]", "[8, 4]", 11, "a list of 2: [8, 4]"),
    ("[8, 4, 4]", "[8, 4, x]", 11, "a number"),
    ("[8, 4, 4]", "8", 11, "three numbers"),
    ("[8, 4, 4]", "[0.008, 0.004, 0.004]", 11, "micrometres"),
    ("[8, 4, 4]", "[8, 0, 4]", 11, "[z, y, x]"),
    ("[8, 4, 4]", "[8, 4, 1e999]", 11, "[z, y, x]"),
    ("[8, 4, 4]", "[FILL_IN, FILL_IN, FILL_IN]", 11, "fill it in"),
    ("  specimen: mouse 7", "", 15, "found: no specimen"),
    ("- id: a", "- id: a/b", 15, "letters, digits"),
    ("image: gray.tif", "image: grey.tif", 16, "did you mean 'gray.tif'"),
    ("image: gray.tif", "image:", 15, "found: no image"),
    ("image: gray.tif", "image: [gray.tif]", 16, "expected: a path"),
    ("image: gray.tif", "image: {path: gray.tif, boks: 1}", 16, "did you mean 'box'"),
    ("image: gray.tif", "image: {path: gray.tif, box: [[0, 5], [3, 2], [0, 30]]}", 16, "each ascending"),
    ("image: gray.tif", "image: {path: gray.tif, box: [[0, 5.5], [1, 2], [0, 30]]}", 16, "whole number"),
    ("image: gray.tif", "image: {path: gray.tif, box: [[0, 5], [0, 24], [0, 31]]}", 16, "no such box"),
    ("image: gray.tif", "image: classes.tif:3", 16, "no series"),
    ("image: gray.tif", "image: gray.tif\n    intensity: {window: [0, 9]}", 16, "8-bit"),
    ("image: gray.tif", "image: deep.tif\n    intensity: {window: [9, 0]}", 17, "low below high"),
    ("image: gray.tif", "image: deep.tif\n    intensity: {percentiles: [1, 101]}", 17, "<= 100"),
    ("image: gray.tif", "image: deep.tif\n    intensity: {window: [1, 2], percentiles: [1, 9]}", 17, "both window"),
    ("image: gray.tif", "image: deep.tif\n    intensity: {inverted: true}", 17, "did you mean 'invert'"),
    ("image: gray.tif", "image: gray.tif\n    image: deep.tif", 17, "second time"),
    ("image: gray.tif", "image: gray.tif\n    fold: trian", 17, "did you mean 'train'"),
    ("image: gray.tif", "image: gray.tif\n    domain: outside", 17, "only tests"),
    ("image: gray.tif", "image: gray.tif\n    ignore: nothing.tif", 17, "no such file"),
    ("image: gray.tif", "image: gray.tif\n    ignore: {path: ids.tif, values: [a]}", 17, "whole number"),
    ("values: {1: mito", "value: {1: mito", 17, "neither values nor instances"),
    ("3: other:lysosome}", "3: lysosome}", 17, "other:lysosome"),
    ("{1: mito", "{1: mitochondria", 17, "did you mean 'mito'"),
    ("{1: mito", "{1.5: mito", 17, "a range as 1-400"),
    ("{1: mito", "{1-2: mito", 17, "in 1-2 (mito) too"),
    ("{1: mito", "{1: FILL_IN", 17, "fill it in"),
    ("values: {1", "instances: ids.csv, values: {1", 17, "both values and instances"),
    ("values: {1: mito, 2: golgi, 3: other:lysosome}", "instances: ids.csv", 17, "ids.csv: no such file"),
    ("values: {1: mito, 2: golgi, 3: other:lysosome}", "instances: mitos", 17, "did you mean 'mito'"),
    ("{mito: manual, ", "{", 18, "no mito, which the labels have"),
    ("{mito: manual, ", "{mito: manual, er: manual, ", 18, "no label value means"),
    ("{mito: manual, ", "{mito: by hand, ", 18, "manual+lpa"),
    ("{mito: manual, ", "{mitos: manual, ", 18, "did you mean 'mito'"),
    ("{mito: manual, ", "{FILL_IN: manual, ", 18, "fill it in"),
    ("annotated: {mito: manual, golgi: refined}", "annotated: all", 18, "keys and values"),
    ("volumes:", "volume:", 14, "did you mean 'volumes'"),
    ("\nvolumes:", "\n- volumes:", 14, "no YAML"),
    ("@article", "  @article: [", 8, "BibTeX"),
]


@pytest.mark.parametrize(("old", "new", "line", "says"), FAULTS)
def test_a_fault_names_its_line(old: str, new: str, line: int, says: str, lab: Path) -> None:
    assert old in SPEC
    text = fault(lab, SPEC.replace(old, new, 1))
    assert "spec.yaml" in text
    assert says in text
    assert f"line {line}," in text, text
    assert re.search(r"line \d+, column \d+", text)


def test_all_faults_at_once_in_the_order_of_lines(lab: Path) -> None:
    text = SPEC
    for old, new in (("name: our_lab", "name: 7"), ("[8, 4, 4]", "[8]"), ("gray.tif", "gone.tif"), ("manual", "hand")):
        text = text.replace(old, new, 1)
    message = fault(lab, text)
    assert "has 4 faults" in message
    lines = [int(number) for number in re.findall(r"^  line (\d+), column", message, re.MULTILINE)]
    assert lines == sorted(lines)
    assert lines == [3, 11, 16, 18]


@pytest.mark.parametrize("text", ["", "# nothing\n", "just words", "[1, 2]", "a: b\n\tc: d", "a: &x {b: c}\nd: *y"])
def test_what_is_no_spec(text: str, lab: Path) -> None:
    assert "spec.yaml" in fault(lab, text)


def test_no_spec_at_all(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot be read"):
        load_spec(tmp_path / "none.yaml")
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="UTF-8"):
        load_spec(tmp_path / "bytes.yaml")
    with pytest.raises(InputError, match=r"--spec spec\.yaml"):
        SOURCE.volumes(None, SOURCE.resolve_options({}))


def test_faults_of_several_files_are_found_before_any_voxel_is_read(lab: Path) -> None:
    tifffile.imwrite(lab / "small.tif", CLASSES[:, :20])
    (lab / "broken.tif").write_bytes(b"II*\0")
    text = SPEC.replace("gray.tif", "broken.tif") + (
        "  - id: b\n    image: gray.tif\n    labels: {path: small.tif, values: {1-3: mito}}\n"
        "    annotated: {mito: manual}\n"
    )
    message = fault(lab, text)
    assert "has 2 faults" in message
    assert "(5, 20, 30) voxels" in message
    assert "broken.tif cannot be read" in message


def test_a_voxel_size_comes_from_the_file_and_must_not_contradict_it(lab: Path) -> None:
    metadata = {"axes": "ZYX", "spacing": 8, "unit": "nm"}
    tifffile.imwrite(lab / "gray.tif", GRAY, imagej=True, metadata=metadata, resolution=(0.25, 0.25))
    assert volume(lab, SPEC.replace("  voxel_size_nm: [8, 4, 4]\n", "")).voxel_size == VoxelSize(8, 4, 4)
    assert volume(lab, SPEC.replace("[8, 4, 4]", "[8.07, 4.03, 4]")).voxel_size == VoxelSize(8.07, 4.03, 4)
    message = fault(lab, SPEC.replace("[8, 4, 4]", "[8, 4, 5]"))
    assert "line 11" in message
    assert "8, 4, 5 nm" in message
    assert "says 8, 4, 4" in message
    (lab / "gray.tif").unlink()
    tifffile.imwrite(lab / "gray.tif", GRAY)
    assert "expected: voxel_size_nm: [z, y, x]" in fault(lab, SPEC.replace("  voxel_size_nm: [8, 4, 4]\n", ""))


def test_images_that_are_none(lab: Path) -> None:
    picture = Image.fromarray(CLASSES[0])
    picture.putpalette(RNG.integers(0, 255, 768, dtype=np.uint8).tobytes())
    picture.save(lab / "p.png")
    tifffile.imwrite(lab / "m.tif", CLASSES > 1, photometric="minisblack")
    assert "colour table" in fault(lab, SPEC.replace("gray.tif", "p.png"))
    assert "1-bit image" in fault(lab, SPEC.replace("gray.tif", "m.tif"))


def with_labels(labels: str, annotated: str = "{mito: manual}", more: str = "") -> str:
    head = SPEC[: SPEC.index("    labels:")]
    return f"{head}    labels: {labels}\n    annotated: {annotated}\n{more}"


def test_structures_outside_the_five_come_from_values_and_from_files_of_their_own(lab: Path) -> None:
    (lab / "ids.csv").write_text("id,organelle\n10-20,mito\n30-40,other:vesicle\n50-60,other\n")
    classes = "{path: classes.tif, values: {3: other:lysosome, rest: other}}"
    text = with_labels(f"[{{path: ids.tif, instances: ids.csv}}, {classes}]")
    more = "{granule: ids.tif, cell: {path: classes.tif, values: [1, 2]}, spot: {path: mask.tif}}"
    tifffile.imwrite(lab / "mask.tif", CLASSES == 2)
    found = volume(lab, f"{text}    extras: {more}\n")
    expected = {
        "vesicle": np.where(np.isin(IDS, (30, 40)), IDS, 0),
        "lysosome": CLASSES == 3,
        "granule": IDS,
        "cell": np.isin(CLASSES, (1, 2)),
        "spot": CLASSES == 2,
    }
    assert set(found.extras) == set(expected)
    for name, array in expected.items():
        extra = pickle.loads(pickle.dumps(found.extras[name]))
        assert extra.dtype.kind in "bu"
        np.testing.assert_array_equal(extra[:], array)
        np.testing.assert_array_equal(extra[1:3, 4:9, 5], array[1:3, 4:9, 5])
    assert found.instances is not None
    np.testing.assert_array_equal(found.instances[:] > 0, np.isin(IDS, (10, 20)))
    assert found.provenance["extra:cell"] == "classes.tif: 1, 2"
    assert set(declared(lab, f"{text}    extras: {more}\n").extras) == set(expected)


@pytest.mark.parametrize(
    ("extras", "message"),
    [
        ("{mito: ids.tif}", "organelles belong into labels"),
        ("{a b: ids.tif}", "'a b'"),
        ("{lysosome: ids.tif}", "other:lysosome"),
        ("{granule: nowhere.tif}", "no such file"),
        ("{granule: small.tif}", "as the image has"),
        ("[granule]", "keys and values"),
    ],
)
def test_faults_of_extras_are_told(extras: str, message: str, lab: Path) -> None:
    tifffile.imwrite(lab / "small.tif", CLASSES[:3], photometric="minisblack")
    assert message in fault(lab, f"{SPEC}    extras: {extras}\n")


def test_one_instance_file_keeps_its_ids(lab: Path) -> None:
    found = volume(lab, with_labels("{path: ids.tif, instances: mito}"))
    assert found.instances is not None
    np.testing.assert_array_equal(found.instances[:], IDS)
    np.testing.assert_array_equal(found.instances[2, 3:9], IDS[2, 3:9])
    assert found.organelle_of == dict.fromkeys(range(10, 70, 10), Organelle.MITO)
    assert dict(found.annotated) == {Organelle.MITO: "manual"}, "drawn ids are not derived"


def test_ranges_and_tables_of_ids(lab: Path) -> None:
    expected = {10: Organelle.MITO, 20: Organelle.MITO, 40: Organelle.ER}
    text = "{path: ids.tif, instances: {10-20: mito, 40: er, rest: other}}"
    found = volume(lab, with_labels(text, "{mito: manual, er: model}"))
    assert found.instances is not None
    assert found.organelle_of == expected
    np.testing.assert_array_equal(found.instances[:], np.where(np.isin(IDS, list(expected)), IDS, 0))
    (lab / "ids.csv").write_text(
        "id,Organelle\n10-20,mito\n40,er\n30,other:vesicle\n50-60,other\n", encoding="utf-8-sig"
    )
    table = volume(lab, with_labels("{path: ids.tif, instances: ids.csv}", "{mito: manual, er: model}"))
    assert table.organelle_of == expected
    assert "extra:vesicle" in table.provenance
    (lab / "ids.csv").write_text("id,organelle\n10,mito\n20,spine\n")
    assert "line 3: id '20', organelle 'spine'" in fault(lab, with_labels("{path: ids.tif, instances: ids.csv}"))
    (lab / "ids.csv").write_text("label,class\n10,mito\n")
    assert "columns label, class" in fault(lab, with_labels("{path: ids.tif, instances: ids.csv}"))
    message = fault(lab, with_labels("{path: ids.tif, instances: {10-30: mito}}"))
    assert "3 ids: 40, 50, 60" in message


def test_several_files_are_numbered_on_and_the_first_wins(lab: Path) -> None:
    other = np.where(CLASSES == 1, 7, np.where(CLASSES == 2, 2**40, 0)).astype(np.uint64)
    with h5py.File(lab / "l.h5", "w") as file:
        file["n"] = other
    labels = "[{path: 'l.h5:/n', instances: nucleus}, {path: ids.tif, instances: mito}]"
    found = volume(lab, with_labels(labels, "{mito: manual, nucleus: manual}"))
    assert found.instances is not None
    expected = np.zeros(SHAPE, int)
    for name, mask in enumerate([other == 7, other == 2**40, *(id_ == IDS for id_ in range(10, 70, 10))], start=1):
        expected[mask & (expected == 0)] = name
    np.testing.assert_array_equal(found.instances[:], expected)
    assert found.organelle_of == {n: Organelle.NUCLEUS if n <= 2 else Organelle.MITO for n in range(1, 9)}
    assert found.instances.dtype == np.uint32
    single = volume(lab, with_labels("{path: 'l.h5:/n', instances: mito}"))
    assert single.instances is not None
    assert single.instances.dtype == np.uint64
    np.testing.assert_array_equal(single.instances[:], other)


def test_semantic_files_beside_instance_files_are_labelled(lab: Path) -> None:
    labels = (
        "[{path: ids.tif, instances: {10: nucleus, rest: other}}, {path: classes.tif, values: {1: mito, rest: other}}]"
    )
    found = volume(lab, with_labels(labels, "{mito: manual, nucleus: manual}"))
    assert dict(found.annotated) == {Organelle.MITO: "manual+lpa", Organelle.NUCLEUS: "manual"}
    instances, organelle_of = instances_of(found)
    drawn = IDS == 10
    np.testing.assert_array_equal(instances == 1, drawn)
    np.testing.assert_array_equal(instances > 1, (CLASSES == 1) & ~drawn)
    alone = volume(lab, with_labels("{path: classes.tif, values: {1: mito, rest: other}}"))
    pieces, _ = instances_of(alone)
    pairs = np.unique(np.stack([pieces[instances > 1], instances[instances > 1]]), axis=1)
    assert len(np.unique(pairs[0])) == len(np.unique(pairs[1])) == pairs.shape[1], "the same pieces, numbered on"
    assert organelle_of[1] is Organelle.NUCLEUS
    assert set(organelle_of.values()) == {Organelle.MITO, Organelle.NUCLEUS}


def test_ignore_by_value_and_by_mask(lab: Path) -> None:
    text = with_labels("{path: classes.tif, values: {1: mito, 2: background, 3: ignore}}")
    found = volume(lab, text)
    assert found.ignore is not None
    np.testing.assert_array_equal(found.ignore[:], CLASSES == 3)
    assert found.semantic is not None
    assert set(np.unique(found.semantic[:])) == {0, 1}
    both = volume(lab, text + "    ignore: {path: ids.tif, values: [10, 30]}\n")
    assert both.ignore is not None
    np.testing.assert_array_equal(both.ignore[1:4, :, 2:9], ((CLASSES == 3) | np.isin(IDS, [10, 30]))[1:4, :, 2:9])
    mask = volume(lab, with_labels("{path: classes.tif, values: {1: mito, rest: other}}", more="    ignore: ids.tif\n"))
    assert mask.ignore is not None
    np.testing.assert_array_equal(mask.ignore[:], IDS != 0)
    assert mask.ignore.dtype == bool
    outside = with_labels("{path: ids.tif, instances: {10-50: mito, 60: ignore}}")
    by_id = volume(lab, outside)
    assert by_id.ignore is not None
    np.testing.assert_array_equal(by_id.ignore[:], IDS == 60)


def test_unknown_values_are_told_where_they_are_met(lab: Path) -> None:
    message = fault(lab, with_labels("{path: classes.tif, values: {1: mito}}"))
    assert "classes.tif" in message
    assert "found: 2, 3" in message
    assert "rest: other" in message


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_floats_are_labels_if_they_are_whole(dtype: str, lab: Path) -> None:
    tifffile.imwrite(lab / "classes.tif", CLASSES.astype(dtype))
    found = volume(lab)
    assert found.semantic is not None
    assert set(np.unique(found.semantic[:])) == {0, 1, 5}
    soft = CLASSES.astype(dtype)
    soft[3, 2, 1] = 0.5
    tifffile.imwrite(lab / "classes.tif", soft)
    message = fault(lab, SPEC)
    assert "with the value 0.5" in message
    assert "threshold" in message
    soft[3, 2, 1] = np.nan
    with pytest.raises(InputError, match="nan"):
        whole_numbers(soft, "x")


def test_negative_ids(lab: Path) -> None:
    tifffile.imwrite(lab / "ids.tif", IDS.astype(np.int16) - 10)
    assert "negative ids" in fault(lab, with_labels("{path: ids.tif, instances: mito}"))


TARGET = st.sampled_from(["mito", "er", "ignore", "other:x"])


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(-3, 12), st.integers(0, 5), st.sampled_from(["mito", "er", "ignore", "other:x"])),
        max_size=4,
    ),
    st.sampled_from([None, "golgi", "other", "ignore", "background"]),
    st.sampled_from(["int8", "uint8", "int16", "uint16", "int32", "uint64", "float64", "bool"]),
    st.integers(0, 2**32),
)
def test_the_table_equals_asking_for_every_voxel(ranges: Any, rest: str | None, dtype: str, seed: int) -> None:
    values = ValueMap(tuple((first, first + more, target) for first, more, target in ranges), rest)
    low = -3 if np.dtype(dtype).kind in "if" else 0
    labels = np.random.default_rng(seed).integers(low, 2 if dtype == "bool" else 20, (3, 4, 5)).astype(dtype)
    expected = np.array([values.code(int(value)) for value in labels.ravel()], np.uint8).reshape(labels.shape)
    if (expected == UNKNOWN).any():
        with pytest.raises(InputError, match="says nothing"):
            Lookup(values, "f").codes(labels)
    else:
        np.testing.assert_array_equal(Lookup(values, "f").codes(labels), expected)
    assert ((expected == IGNORED).any()) <= values.ignores


@pytest.mark.parametrize(
    ("text", "means"),
    [("7", (7, 7)), ("1-400", (1, 400)), ("1..4", (1, 4)), ("1 to 4", (1, 4)), ("-1", (-1, -1)), ("-2-3", (-2, 3))],
)
def test_ranges_of_values(text: str, means: tuple[int, int]) -> None:
    assert parse_range(text) == means
    for wrong in ("4-1", "a", "1-", "1.5", ""):
        assert parse_range(wrong) is None


def deep(intensity: str = "") -> str:
    return SPEC.replace("gray.tif", "deep.tif\n    intensity: {" + intensity + "}")


def test_a_window_is_recorded_and_can_be_undone(lab: Path) -> None:
    found = volume(lab, deep("window: [500, 4000]"))
    assert found.image.dtype == np.uint8
    record = json.loads(found.provenance["intensity_window"])
    restored = Window(**record).restore(np.asarray(found.image[:]))
    assert np.abs(restored - DEEP).max() <= (4000 - 500) / 255 / 2 + 1e-3, "to within half a gray level"
    assert "intensity_inverted" not in found.provenance
    turned = volume(lab, deep("window: [500, 4000], invert: true"))
    np.testing.assert_array_equal(turned.image[:], 255 - np.asarray(found.image[:]))
    assert turned.provenance["intensity_inverted"] == "true"
    np.testing.assert_array_equal(turned.image[2, 3:7], 255 - np.asarray(found.image[2, 3:7]))


def test_percentiles_are_those_of_the_voxels(lab: Path) -> None:
    found = volume(lab, deep("percentiles: [1, 99]"))
    record = json.loads(found.provenance["intensity_window"])
    assert [record["low"], record["high"]] == np.percentile(DEEP, [1, 99]).tolist()
    again = volume(lab, deep("percentiles: [1, 99]"))
    np.testing.assert_array_equal(found.image[:], again.image[:])
    assert json.loads(volume(lab, deep("invert: true")).provenance["intensity_window"])["dtype"] == "uint16"
    tifffile.imwrite(lab / "deep.tif", np.full(SHAPE, 7, np.uint16))
    with pytest.raises(InputError, match="the image is empty"):
        volume(lab, deep("percentiles: [1, 99]"))


def test_what_is_left_to_the_builder(lab: Path) -> None:
    assert volume(lab, SPEC.replace("gray.tif", "deep.tif")).image.dtype == np.uint16
    inverted = volume(lab, SPEC.replace("gray.tif", "gray.tif\n    intensity: {invert: true}"))
    np.testing.assert_array_equal(inverted.image[:], 255 - GRAY)
    tifffile.imwrite(lab / "deep.tif", GRAY.view(np.int8))
    shifted = volume(lab, SPEC.replace("gray.tif", "deep.tif"))
    np.testing.assert_array_equal(shifted.image[:], GRAY.view(np.int8).astype(int) + 128)


def test_a_box_of_a_larger_image(lab: Path) -> None:
    tifffile.imwrite(lab / "part.tif", CLASSES[1:4, 2:20, 5:25], photometric="minisblack")
    text = SPEC.replace("classes.tif", "part.tif")
    assert "box: [[z0, z1], [y0, y1], [x0, x1]]" in fault(lab, text)
    found = volume(lab, text.replace("image: gray.tif", "image: {path: gray.tif, box: [[1, 4], [2, 20], [5, 25]]}"))
    np.testing.assert_array_equal(found.image[:], GRAY[1:4, 2:20, 5:25])
    assert found.provenance["raw"] == "gray.tif[1:4, 2:20, 5:25]"


def test_positions_in_the_files_propose_the_box(lab: Path) -> None:
    with h5py.File(lab / "cremi.h5", "w") as file:
        for name, array, offset in (("raw", GRAY, (0, 0, 0)), ("labels", CLASSES[1:4, 2:20, 5:25], (8, 8, 20))):
            file[name] = array
            file[name].attrs["resolution"] = (8.0, 4.0, 4.0)
            file[name].attrs["offset"] = offset
    text = SPEC.replace("gray.tif", "cremi.h5:/raw").replace("classes.tif", "'cremi.h5:/labels'")
    assert "box: [[1, 4], [2, 20], [5, 25]]" in fault(lab, text)


def test_labels_that_lie_elsewhere_than_the_image(lab: Path) -> None:
    def at(raw: tuple[float, ...] | None, labels: tuple[float, ...] | None, more: str = "") -> str:
        (lab / "cremi.h5").unlink(missing_ok=True)  # a new file: the old one may still be open
        with h5py.File(lab / "cremi.h5", "w") as file:
            for name, array, offset in (("raw", GRAY, raw), ("labels", CLASSES, labels)):
                file[name] = array
                file[name].attrs["resolution"] = (8.0, 4.0, 4.0)
                if offset is not None:
                    file[name].attrs["offset"] = offset
        text = SPEC.replace("gray.tif", "cremi.h5:/raw").replace("classes.tif", "'cremi.h5:/labels'")
        return text.replace("  - id: a", f"  - id: a{more}")

    message = fault(lab, at((0, 0, 0), (0, 40, -8)))
    assert "line 17, column 20" in message
    assert f"begins at 0, 40, -8 nm (z, y, x), as {lab / 'cremi.h5:/labels'} says" in message
    assert f"the image at 0, 0, 0 nm, as {lab / 'cremi.h5:/raw'} says: +0, +10, -2 voxels apart" in message
    assert "box:" in message
    for raw, labels in (((8, 4, 4), (12, 6, 6)), (None, (0, 40, 0)), ((0, 40, 0), None)):
        assert volume(lab, at(raw, labels)).image.shape == SHAPE, "half a voxel apart, or not stated by both"
    assert "voxels apart" in fault(lab, at((8, 4, 4), (12, 6, 6.2)))
    # parts at one place of the two files: what counts is where the parts are
    text = at((0, 0, 0), (8, 0, 0)).replace(
        "image: cremi.h5:/raw", "image: {path: cremi.h5:/raw, box: [[1, 5], [0, 24], [0, 30]]}"
    )
    text = text.replace("'cremi.h5:/labels',", "'cremi.h5:/labels', box: [[0, 4], [0, 24], [0, 30]],")
    np.testing.assert_array_equal(volume(lab, text).image[:], GRAY[1:])
    told = at((0, 0, 0), (0, 40, 0), "\n    voxel_size_nm: [8, 4, 4]\n    header_voxel_size: ignore")
    assert volume(lab, told).image.shape == SHAPE, "a header that is known to be wrong"


ONE_PART = "[[0, 3], [0, 12], [0, 12]]"
FIRST_PART = SPEC.replace("gray.tif", f"{{path: gray.tif, box: {ONE_PART}}}")
FIRST_PART = FIRST_PART.replace("classes.tif,", f"classes.tif, box: {ONE_PART},")
SECOND_PART = FIRST_PART[FIRST_PART.index("  - id: a") :].replace("id: a", "id: b")
TWO_PARTS = FIRST_PART + SECOND_PART.replace(ONE_PART, "[[2, 5], [6, 18], [0, 12]]")


def test_parts_of_one_file_lie_in_its_coordinates(lab: Path) -> None:
    assert volume(lab).frame is None
    first, second = declared(lab, TWO_PARTS).volumes(None, {})
    assert first.frame == second.frame == Frame("our_lab: gray.tif", (Span(0.0, 8.0, 3), Span(16.0, 8.0, 3)))
    assert (first.origin_nm, second.origin_nm) == ((0, 0, 0), (16, 24, 0))
    folds: dict[tuple[int, int, int], set[str]] = {}
    for one, (z0, y0) in ((first, (0, 0)), (second, (2, 6))):
        for z, fold in SplitPolicy(gap_nm=8, smallest_train_slab=1).folds_of(one).items():
            for y in range(12):
                folds.setdefault((z0 + z, y0 + y, 0), set()).add(fold)
    assert {fold for of_voxel in folds.values() for fold in of_voxel} == {"train", "validation", "test"}
    assert all(len(of_voxel) == 1 for of_voxel in folds.values())


def test_volumes_of_a_named_frame_need_a_position(lab: Path) -> None:
    placed = SPEC.replace("  - id: a", "  - id: a\n    frame: cell 3\n    origin_nm: [80, -4.5, 0]")
    found = volume(lab, placed)
    assert found.frame is not None
    assert (found.frame.name, found.origin_nm) == ("our_lab: cell 3", (80.0, -4.5, 0.0))
    message = fault(lab, SPEC.replace("specimen:", "frame: cell 3\n  specimen:"))
    assert "line 12, column 10: defaults.frame" in message
    assert "no position: none here, and none in" in message
    assert "origin_nm: [z, y, x]" in message
    assert "a position, and no frame" in fault(lab, SPEC.replace("  - id: a", "  - id: a\n    origin_nm: [0, 0, 0]"))
    with h5py.File(lab / "cremi.h5", "w") as file:
        for name, array in (("raw", GRAY), ("labels", CLASSES)):
            file[name] = array
            file[name].attrs["resolution"] = (8.0, 4.0, 4.0)
            file[name].attrs["offset"] = (800.0, 40.0, 0.0)
    text = SPEC.replace("gray.tif", "cremi.h5:/raw").replace("classes.tif", "'cremi.h5:/labels'")
    stated = volume(lab, text.replace("  - id: a", "  - id: a\n    frame: cell 3"))
    assert stated.origin_nm == (796.0, 38.0, -2.0)  # a position is that of a voxel's centre


def test_merge_keys_and_repeated_volumes(lab: Path) -> None:
    second = "  - <<: *first\n    id: b\n    fold: test\n"
    source = declared(lab, SPEC.replace("  - id: a", "  - &first\n    id: a") + second)
    a, b = source.volumes(None, {})
    assert (a.volume_id, b.volume_id, b.published_fold) == ("our_lab-a", "our_lab-b", "test")
    assert "an id of its own (line 15" in fault(
        lab, SPEC.replace("  - id: a", "  - &first\n    id: a") + "  - *first\n"
    )


def test_volumes_travel_to_other_processes(lab: Path) -> None:
    text = with_labels("{path: ids.tif, instances: {10-50: mito, 60: ignore}}").replace("gray.tif", "deep.tif")
    found = volume(lab, text.replace("deep.tif", "deep.tif\n    intensity: {window: [0, 4000], invert: true}"))
    sent = pickle.dumps(found)
    assert len(sent) < 6000, "voxels do not travel"
    arrived = pickle.loads(sent)
    for name in ("image", "instances", "ignore"):
        np.testing.assert_array_equal(getattr(arrived, name)[1:4], getattr(found, name)[1:4])


def test_an_edited_spec_is_another_job(lab: Path) -> None:
    assert declared(lab).options != declared(lab, SPEC + "# a remark\n").options
    assert declared(lab).resolve_options({}) == dict(declared(lab).options)


@settings(max_examples=80, deadline=None)
@given(st.tuples(*[st.integers(1, 40)] * 3), st.tuples(*[st.integers(1, 50)] * 3), st.integers(1, 5000))
def test_boxes_cover_every_voxel_once(shape: Any, chunk: Any, voxels: int) -> None:
    seen = np.zeros(shape, np.uint8)
    for box in boxes(Opened("", "", Mapped(seen, chunk), None, None), voxels):
        assert seen[box].size <= voxels
        seen[box] += 1
    assert (seen == 1).all()


def test_ids_are_found_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dataset_builder.views.BOX_VOXELS", 100)
    opened = Opened("", "", Mapped(IDS, (2, 7, 9)), None, None)
    assert distinct_ids(opened, "x").tolist() == list(range(10, 70, 10))


def same(found: Volume, expected: Volume) -> None:
    """Compare everything but names and provenance."""
    for name in (
        "voxel_size",
        "annotated",
        "organelle_of",
        "domain",
        "published_fold",
        "modality",
        "specimen",
        "cell_type",
    ):
        assert getattr(found, name) == getattr(expected, name), name
    for name in ("image", "semantic", "instances", "ignore"):
        one, other = getattr(found, name), getattr(expected, name)
        assert (one is None) == (other is None), name
        if one is not None:
            np.testing.assert_array_equal(np.asarray(one[:]), np.asarray(other[:]), err_msg=name)


def of_declared(name: str, raw: Path, **options: str) -> list[Volume]:
    source = load_source(name)
    return list(source.volumes(source.find(raw), source.resolve_options(options)))


@pytest.mark.real_data
def test_a_spec_over_real_lucchi_gives_the_declared_volume(real_data: Path, tmp_path: Path) -> None:
    raw = real_data / "lucchipp_fibsem_mito" / "train"
    (expected,) = of_declared("lucchipp", real_data)
    text = f"""
source: {{name: my_lucchi, licence: none stated, modality: FIB-SEM}}
volumes:
  - id: train
    image: {raw / "raw"}
    labels: {{path: {raw / "label"}, values: {{255: mito}}}}
    voxel_size_nm: [5, 5, 5]
    annotated: {{mito: manual}}
    specimen: {expected.specimen}
    cell_type: {expected.cell_type}
"""
    same(volume(tmp_path, text), expected)


@pytest.mark.real_data
def test_a_spec_over_real_hela_gives_the_declared_volumes(real_data: Path, tmp_path: Path) -> None:
    raw = real_data / "hela_sbfsem_mito2d"
    volumes = of_declared("hela_sbfsem", real_data)
    text = """
source: {name: my_hela, licence: CC0-1.0, modality: SBF-SEM}
defaults: {voxel_size_nm: [50, 10, 10], specimen: empiar-10094-hela, cell_type: HeLa, domain: out}
volumes:
"""
    for one in volumes:
        name = one.volume_id.removeprefix("hela_sbfsem-")
        assert one.ignore is not None
        Image.fromarray(np.asarray(one.ignore[0]).astype(np.uint8)).save(tmp_path / f"{name}.png")
        nuclei = f"      - {{path: {raw}/nucleus_instance/{name}.png, instances: nucleus}}\n"
        text += f"""  - id: {name}
    image: {raw}/raw/{name}.png
    ignore: {name}.png
    annotated: {{mito: manual{", nucleus: manual" if Organelle.NUCLEUS in one.annotated else ""}}}
    labels:
      - {{path: {raw}/mito_instance/{name}.png, instances: mito}}
{nuclei if Organelle.NUCLEUS in one.annotated else ""}"""
    found = list(declared(tmp_path, text).volumes(None, {}))
    assert len(found) == len(volumes) == 3
    for one, expected in zip(found, volumes, strict=True):
        same(one, expected)


@pytest.mark.real_data
def test_a_spec_over_real_urocell_gives_the_declared_instances(real_data: Path, tmp_path: Path) -> None:
    block = "fib1-3-3-0"
    raw = real_data / "urocell_labels"
    (expected,) = (v for v in of_declared("urocell", real_data) if v.volume_id.endswith(block))
    assert expected.instances is not None
    tifffile.imwrite(tmp_path / "constant.tif", np.asarray(expected.image[:]), compression="zlib")
    text = f"""
source: {{name: my_urocell, licence: CC-BY-NC-SA-4.0, modality: FIB-SEM}}
volumes:
  - id: {block}
    image: constant.tif
    labels:
      - {{path: {raw}/mito/instance/{block}.nii.gz, instances: mito}}
    annotated: {{mito: manual}}
    voxel_size_nm: [15, 16, 16]
    specimen: {expected.specimen}
    cell_type: {expected.cell_type}
"""
    found = volume(tmp_path, text)
    same(replace(found, ignore=expected.ignore), expected)
    assert len(found.organelle_of) == 83
    assert found.image.shape == (256, 256, 256)
