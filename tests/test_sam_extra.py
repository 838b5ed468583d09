"""The packages of the extra `sam` and the core run the same weights to the same result; needs their own environment.

    bash scripts/test_sam.sh

Where the packages are absent, or torchvision is of another build than torch, only the messages are tested.
"""

from __future__ import annotations

import json
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sam_lively import (
    State,
    assert_same_masks,
    key,
    large_sam,
    lively_state,
    needs_micro_sam,
    needs_sam,
    noise,
    random_decoder,
    small,
)

from baselines.cli_sam import CORE, sam
from baselines.cli_sam import ENGINES as CLI_ENGINES
from baselines.models.sam import VIT_B, VIT_H, VIT_L, PromptBatch, Sam, SamBaselineConfig
from baselines.sam.engines import ENGINES, engine_settings, load_engine
from baselines.sam.grid import GridSettings
from baselines.sam.predict import SamPredictor, SamSettings, predict_sam
from baselines.sam.prompts import PROMPTS
from baselines.sam.weights import ARCHITECTURES, from_state_dict
from em_bench_eval.cli import main
from em_bench_eval.errors import InputError
from em_bench_eval.rows import LabelledImage, read_predictions
from em_bench_eval.schema import Organelle

ALL = GridSettings(points_per_side=8, min_predicted_iou=-1e9, min_stability=0.0, drop_background=False)


@pytest.fixture(scope="module")
def state() -> State:
    return lively_state(small())


@pytest.fixture(scope="module")
def core(state: State) -> Sam:
    return from_state_dict(state, "small.pth")


@pytest.fixture(scope="module")
def engine(core: Sam) -> Any:
    from baselines.sam.segment_anything_runner import SegmentAnything

    return SegmentAnything(core)


@pytest.fixture(scope="module")
def broad() -> tuple[Sam, Any]:
    """A core and an engine whose masks cover much, so that few prompts get an empty answer."""
    from baselines.sam.segment_anything_runner import SegmentAnything

    core = from_state_dict(lively_state(small(), share=0.4), "broad.pth")
    return core, SegmentAnything(core)


# ---- segment-anything ----


@needs_sam
def test_the_package_has_the_weights_under_its_own_names(engine: Any, state: State) -> None:
    found = engine.network.state_dict()
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in state.items())


@needs_sam
@pytest.mark.parametrize(("name", "config"), [("vit_b", VIT_B), ("vit_l", VIT_L), ("vit_h", VIT_H)])
def test_published_architectures_are_those_of_the_registry(name: str, config: SamBaselineConfig) -> None:
    from baselines.sam.segment_anything_runner import package_network

    registry = import_module("segment_anything").sam_model_registry
    with torch.device("meta"):
        ours, theirs = package_network(config), registry[name]()
    assert ARCHITECTURES[name] == config
    assert {n: t.shape for n, t in ours.state_dict().items()} == {n: t.shape for n, t in theirs.state_dict().items()}
    assert str(ours) == str(theirs)


@needs_sam
@pytest.mark.parametrize("shape", [(128, 128), (90, 120), (200, 37), (300, 301)])
def test_embeddings_agree(core: Sam, engine: Any, shape: tuple[int, int]) -> None:
    gray = noise(shape)
    torch.testing.assert_close(engine.embed(gray).features, core.embed(gray).features, rtol=1e-4, atol=1e-4)


@needs_sam
@pytest.mark.parametrize("several", [True, False])
@pytest.mark.parametrize(("points", "box"), [(1, False), (5, False), (0, True), (1, True), (5, True)])
def test_answers_to_prompts_agree(core: Sam, engine: Any, several: bool, points: int, box: bool) -> None:
    gray, rng = noise((90, 120)), torch.Generator().manual_seed(points)
    xy = torch.rand(6, points, 2, generator=rng) * torch.tensor([119.0, 89.0])
    labels = (torch.arange(points) == 0).long().repeat(6, 1)
    low = torch.rand(6, 2, generator=rng) * 40
    boxes = torch.cat([low, low + 1 + torch.rand(6, 2, generator=rng) * 45], dim=1)
    batch = PromptBatch(xy if points else None, labels if points else None, boxes if box else None)
    here, there = core.embed(gray), engine.embed(gray)
    (logits, predicted), (expected, expected_iou) = (
        model.decode(embedded, batch, several=several) for model, embedded in ((core, here), (engine, there))
    )
    assert expected.std() > 1
    torch.testing.assert_close(logits, expected, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(predicted, expected_iou, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(
        here.frame.upsample(logits[:, 0]), there.frame.upsample(expected[:, 0]), rtol=1e-3, atol=1e-3
    )


@needs_sam
@pytest.mark.parametrize(
    ("grid", "at_least"),
    [
        (ALL, 30),
        (GridSettings(8, min_predicted_iou=0.7, min_stability=0.0), 10),
        (GridSettings(8, min_predicted_iou=0.6, min_stability=0.3, stability_offset=0.2), 8),
        (GridSettings(7, points_per_batch=10, min_predicted_iou=0.5, min_stability=0.5, stability_offset=0.3), 3),
        (GridSettings(8, min_predicted_iou=-1e9, min_stability=0.0, max_box_iou=0.3), 30),
        (GridSettings(8, min_predicted_iou=-1e9, min_stability=0.5, stability_offset=0.2, max_box_iou=0.95), 15),
        (GridSettings(8), 0),
    ],
)
@pytest.mark.parametrize("shape", [(90, 120), (128, 50)])
def test_the_automatic_mode_agrees(
    core: Sam, engine: Any, grid: GridSettings, at_least: int, shape: tuple[int, int]
) -> None:
    found, expected = core.segment(noise(shape), grid), engine.segment(noise(shape), grid)
    assert len(expected) >= at_least
    assert_same_masks(found, expected)


@needs_sam
def test_small_masks_are_dropped(engine: Any) -> None:
    everything = engine.segment(noise((90, 120)), ALL)
    large = engine.segment(noise((90, 120)), GridSettings(8, min_predicted_iou=-1e9, min_stability=0.0, min_area=40))
    assert 0 < len(large) < len(everything)
    assert_same_masks(large, [mask for mask in everything if mask.area >= 40])


def labelled(shape: tuple[int, int] = (90, 120)) -> LabelledImage:
    labels = np.zeros(shape, np.uint16)
    for id_, (y, x, radius) in enumerate(((20, 30, 12), (60, 30, 17), (30, 80, 14), (70, 95, 9), (5, 110, 8)), start=1):
        rows, columns = np.indices(shape)
        labels[np.hypot(rows - y, columns - x) < radius] = id_
    return LabelledImage(
        record_id="v/z/00000",
        image=noise(shape, 7),
        instances=labels,
        organelle_of=dict.fromkeys(range(1, 6), Organelle.MITO),
        annotated=frozenset(Organelle),
        ignore=np.zeros(shape, bool),
        pixel_size_nm=(8.0, 8.0),
        source="s",
        specimen="s",
        domain="in",
        fold="test",
    )


@needs_sam
@pytest.mark.parametrize("tile", [300, 64])
@pytest.mark.parametrize("prompts", PROMPTS)
def test_the_prompted_mode_agrees(broad: tuple[Sam, Any], prompts: str, tile: int) -> None:
    core, engine = broad
    row, settings = labelled(), SamSettings("prompted", prompts=prompts, tile=tile)
    found, expected = (
        SamPredictor(model, each).masks(row.image, row)
        for model, each in ((core, settings), (engine, engine_settings(engine, settings)))
    )
    assert len(expected) >= 4  # an answer may be empty
    assert len(set(map(key, expected))) >= 4
    assert_same_masks(found, expected)


# ---- all of them: a dataset, from the command to scores ----


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=needs_micro_sam if "micro" in name else needs_sam) for name in ENGINES],
)
def test_the_command(name: str, tiny_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content: dict[str, Any] = {"model_state": large_sam()}
    command = ["--engine", name, "--dataset", str(tiny_dataset), "--out", str(tmp_path / "out")]
    command += ["--points-per-side", "3", "--min-predicted-iou", "0.5", "--min-stability", "0.1"]
    if ENGINES[name].has_decoder:
        content["decoder_state"] = random_decoder(from_state_dict(content["model_state"], "large.pth"))
        command += ["--centre-distance", "0.6"]
    torch.save(content, tmp_path / "vit_b_em_organelles.pt")
    command += ["--weights", str(tmp_path / "vit_b_em_organelles.pt")]
    assert sam(command) == 0
    info = json.loads((tmp_path / "out" / "prediction.json").read_text())
    settings = info["settings"]
    assert info["model"] == ("micro-sam" if name == "segment-anything" else name)
    assert info["class_agnostic"] is True
    assert settings["engine"]["name"] == name
    assert "torchvision" in settings["engine"]["packages"]
    assert ("grid" in settings) != ENGINES[name].has_decoder
    if ENGINES[name].has_decoder:
        assert settings["engine"]["centre_distance"] == 0.6
        assert info["training"]["decoder"] == "vit_b_em_organelles.pt"
    else:
        assert settings["grid"]["drop_background"] is True
    predictions = list(read_predictions(tmp_path / "out"))
    assert any(prediction.confidence_of for prediction in predictions)
    assert not any(prediction.organelle_of for prediction in predictions)
    assert main(["score", str(tmp_path / "out"), str(tiny_dataset)]) == 0
    capsys.readouterr()
    assert sam(command) == 0  # the same again: nothing to do
    assert "this very prediction" in capsys.readouterr().err


@needs_sam
def test_core_and_package_write_the_same_predictions(
    core: Sam, engine: Any, tiny_dataset: Path, tmp_path: Path
) -> None:
    for mode in ("automatic", "prompted"):
        settings = SamSettings(mode, ALL, "box")  # type: ignore[arg-type]
        for name, model, each in (("core", core, settings), ("package", engine, engine_settings(engine, settings))):
            predict_sam(model, str(tiny_dataset), "wild", "test", tmp_path / mode / name, each)
        both = zip(*(read_predictions(tmp_path / mode / name) for name in ("core", "package")), strict=True)
        for ours, theirs in both:
            assert (ours.instances != theirs.instances).mean() < 0.001
            assert len(ours.confidence_of) == len(theirs.confidence_of)


# ---- without the packages ----


@pytest.mark.parametrize("name", ENGINES)
def test_an_absent_package_is_named_with_the_installation(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = ENGINES[name].packages[-1]
    for other in ENGINES[name].packages[:-1]:
        monkeypatch.setitem(sys.modules, other, sys)  # as if it were there
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError, match=rf"needs {package}(.|\n)*pip install -e"):
        sam(["--engine", name, "--weights", "x.pth", "--dataset", "d", "--out", str(tmp_path)])


def test_a_torchvision_of_another_build(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken_import(name: str) -> Any:
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr("baselines.sam.engines.import_module", broken_import)
    with pytest.raises(InputError, match=r"torchvision::nms(.|\n)*same build as torch"):
        load_engine("segment-anything", "x.pth")


def test_options_that_do_not_go_together(tmp_path: Path) -> None:
    assert (CORE, *ENGINES) == CLI_ENGINES
    start = ["--weights", "x.pth", "--dataset", "d", "--out", str(tmp_path)]
    with pytest.raises(InputError, match="--decoder, --centre-distance"):
        sam([*start, "--decoder", "d.pt", "--centre-distance", "0.3"])
    with pytest.raises(InputError, match="--convert"):
        sam([*start, "--engine", "segment-anything", "--convert", str(tmp_path)])
    with pytest.raises(InputError, match="micro-sam-ais"):
        load_engine("micro-sam-asi", "x.pth")
