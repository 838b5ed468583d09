"""Rows decoded and encoded: nothing is lost between an array and a column."""

from __future__ import annotations

from pathlib import Path

import datasets
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from em_bench_eval import registry
from em_bench_eval.errors import InputError, unknown_name
from em_bench_eval.rows import (
    decode_png,
    decode_row,
    encode_png,
    open_rows,
    read_prediction_info,
    read_predictions,
    write_predictions,
)
from em_bench_eval.schema import Organelle, Prediction, VoxelSize, record_id


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from([np.uint8, np.uint16, np.bool_]).flatmap(
        lambda dtype: hnp.arrays(dtype, st.tuples(st.integers(1, 9), st.integers(1, 9)))
    )
)
def test_png_round_trip_is_exact(array: np.ndarray) -> None:
    back = decode_png(encode_png(array))
    np.testing.assert_array_equal(back > 0 if array.dtype == bool else back, array)
    np.testing.assert_array_equal(decode_png({"bytes": encode_png(array), "path": None}), back)


@pytest.mark.parametrize("array", [np.zeros((2, 2), np.float32), np.zeros((2, 2, 3), np.uint8), np.zeros(4, np.uint8)])
def test_png_refuses_what_it_cannot_hold(array: np.ndarray) -> None:
    with pytest.raises(TypeError, match="uint8 or uint16"):
        encode_png(array)


def test_a_row_decodes_alike_with_and_without_decoded_images(tiny_dataset: Path) -> None:
    raw = decode_row(open_rows(tiny_dataset, "wild", "test")[0])
    ready = decode_row(datasets.load_dataset(str(tiny_dataset), "wild", split="test")[0])
    for name in ("image", "instances", "ignore"):
        np.testing.assert_array_equal(getattr(raw, name), getattr(ready, name))
    assert raw.organelle_of == ready.organelle_of
    assert raw.instances.dtype == np.uint16


def test_predictions_round_trip(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    written = [
        Prediction(
            record_id=record_id(f"volume-{n}", "z", n),
            instances=rng.choice(np.array([0, 1, 2, 65535], np.uint32), (12, 15)),
            organelle_of={1: Organelle.MITO, 2: Organelle.ER, 65535: Organelle.GOLGI},
            confidence_of={1: 0.5, 2: 0.25, 65535: 1.0},
        )
        for n in range(11)
    ]
    assert write_predictions(tmp_path, written, {"model": "none"}) == 11
    assert read_prediction_info(tmp_path) == {"model": "none", "images": 11}
    for one, other in zip(written, read_predictions(tmp_path), strict=True):
        assert one.record_id == other.record_id
        np.testing.assert_array_equal(one.instances, other.instances)
        assert one.organelle_of == other.organelle_of
        assert one.confidence_of == other.confidence_of
    features = datasets.load_dataset(
        "parquet", data_files=str(tmp_path / "predictions.parquet"), split="train"
    ).features
    assert isinstance(features["instances"], datasets.Image), "users can look at predictions with plain datasets"


def test_interrupted_predictions_leave_the_earlier_ones(tmp_path: Path) -> None:
    blank = Prediction("v/z/00000", np.zeros((4, 4), np.uint32), {})
    write_predictions(tmp_path, [blank], {"run": 1})

    def breaks() -> object:
        yield blank
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_predictions(tmp_path, breaks(), {"run": 2})  # type: ignore[arg-type]
    assert read_prediction_info(tmp_path)["run"] == 1
    assert len(list(read_predictions(tmp_path))) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["prediction.json", "predictions.parquet"]


def test_what_is_no_dataset_and_no_prediction_says_so(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a dataset folder"):
        open_rows(tmp_path, "wild", "test")
    for name in ("nobody/nothing", "em-organelle-wild-that-is-not-here", "./no/such/folder"):
        with pytest.raises(InputError, match=f"there is no dataset '{name}'"):
            open_rows(name, "wild", "test")
    with pytest.raises(InputError, match="not a prediction folder"):
        list(read_predictions(tmp_path))
    with pytest.raises(InputError, match="not a prediction folder"):
        read_prediction_info(tmp_path)
    too_many = Prediction("v/z/00000", np.full((2, 2), 70000, np.uint32), {})
    with pytest.raises(InputError, match="too many predicted instances"):
        write_predictions(tmp_path, [too_many], {})


def test_registry_lists_without_importing_and_suggests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "things_of_this_test"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "good.py").write_text("VALUE = 3\n")
    (folder / "broken.py").write_text("raise RuntimeError('imported')\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert registry.names("things_of_this_test") == ["broken", "good"]
    assert registry.load("things_of_this_test", "good", "thing").VALUE == 3
    with pytest.raises(InputError, match="unknown thing 'goood'"):
        registry.load("things_of_this_test", "goood", "thing")
    with pytest.raises(ModuleNotFoundError):
        registry.names("there_is_no_such_package")


def test_error_message_has_its_four_parts() -> None:
    assert str(unknown_name("organelle", "mitto", ["mito", "er"])) == (
        "unknown organelle 'mitto'\n  expected: one of er, mito\n"
        "  what to do: did you mean 'mito'? Names are case-sensitive."
    )


@pytest.mark.parametrize("size", [(0.0, 5.0, 5.0), (5.0, -1.0, 5.0), (5.0, 5.0, float("nan"))])
def test_voxel_sizes_are_positive_numbers(size: tuple[float, float, float]) -> None:
    with pytest.raises(ValueError, match="positive number of nm"):
        VoxelSize(*size)


def test_voxel_sizes_stay_floats() -> None:
    assert tuple(VoxelSize(3, 4, 4)) == (3.0, 4.0, 4.0)
    assert all(isinstance(nm, float) for nm in VoxelSize(3, 4, 4))
    assert VoxelSize(5.24, 5, 5).is_isotropic
    assert not VoxelSize(5.24, 4, 4).is_isotropic


def test_organelle_ids_are_fixed() -> None:
    assert {str(organelle): organelle.label_id for organelle in Organelle} == {
        "mito": 1,
        "nucleus": 2,
        "er": 3,
        "endo": 4,
        "golgi": 5,
    }
    assert [organelle for organelle in Organelle if organelle.is_network] == [Organelle.ER, Organelle.GOLGI]
