"""SAM as a baseline: size, any image, checkpoints; whole images automatically and prompted; the command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy import ndimage
from torch import Tensor

from baselines.cli_sam import KINDS, sam
from baselines.model import Batch, count_parameters, load_model
from baselines.models.sam import MODEL, SMOKE, VIT_B, Embedded, Frame, PromptBatch, Sam, network_pixels, to_gray
from baselines.preprocess import percentile_normalised
from baselines.sam.grid import GridSettings
from baselines.sam.predict import SamPredictor, SamSettings, predict_sam
from baselines.sam.prompts import PROMPTS
from baselines.sam.semantic_vote import vote
from em_bench_eval.cli import main
from em_bench_eval.errors import InputError
from em_bench_eval.rows import LabelledImage, decode_row, open_rows, read_predictions
from em_bench_eval.schema import Organelle

EASY = GridSettings(points_per_side=3, min_predicted_iou=-1e9, min_stability=0.0, drop_background=False)


@pytest.fixture(scope="module")
def model() -> Sam:
    torch.manual_seed(0)
    return Sam(SMOKE).eval()


@pytest.mark.parametrize(
    ("preset", "published"),  # segment-anything's own count; the table of positions is there twice in transformers
    [("vit_b", 93_735_472), ("vit_l", 312_342_832), ("vit_h", 641_090_608), ("smoke", None)],
)
def test_parameters(preset: str, published: int | None) -> None:
    with torch.device("meta"):
        count = count_parameters(Sam(load_model("sam").preset(preset).config))
    assert count == (48_133 if published is None else published + 512)


def test_it_is_not_trained(model: Sam) -> None:
    assert not MODEL.trainable
    heads = model(torch.zeros(2, 1, 40, 64))
    assert heads["embedding"].shape == (2, SMOKE.width, 8, 8)
    batch: Batch = {}  # type: ignore[typeddict-item]
    with pytest.raises(InputError, match="em-bench sam --weights"):
        model.loss(heads, batch)


def test_save_and_load(model: Sam, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    loaded = Sam.from_pretrained(tmp_path)
    assert loaded.config == model.config
    image = torch.randn(1, 1, 50, 40)
    torch.testing.assert_close(loaded(image)["embedding"], model(image)["embedding"], rtol=0, atol=0)


@pytest.mark.parametrize("shape", [(64, 64), (100, 37), (7, 150)])
def test_any_size_of_image(model: Sam, shape: tuple[int, int]) -> None:
    model.grid = EASY
    (masks,) = model.masks(torch.randn(1, 1, *shape))
    assert masks
    for mask in masks:
        y0, x0, y1, x1 = mask.box
        assert 0 <= y0 < y1 <= shape[0]
        assert 0 <= x0 < x1 <= shape[1]
        assert mask.organelle is None


@pytest.mark.parametrize(
    ("shape", "resized"),  # what segment-anything's ResizeLongestSide(1024) gives
    [((480, 640), (768, 1024)), ((1024, 1024), (1024, 1024)), ((333, 1000), (341, 1024)), ((1500, 700), (1024, 478))],
)
def test_the_longest_side_fills_the_square(shape: tuple[int, int], resized: tuple[int, int]) -> None:
    frame = Frame(shape, 1024)
    assert frame.resized == resized
    corner = frame.to_network(torch.tensor([[float(shape[1]), float(shape[0])]]))
    assert corner.tolist() == [[pytest.approx(resized[1]), pytest.approx(resized[0])]]
    pixels = network_pixels(np.full(shape, 255, np.uint8), frame)
    assert pixels.shape == (1, 3, 1024, 1024)
    assert pixels[0, :, 0, 0].tolist() == pytest.approx([2.2489, 2.4286, 2.64], abs=1e-3)
    assert not pixels[..., resized[0] :, :].any()
    assert not pixels[..., resized[1] :].any()


def test_masks_come_back_to_the_image() -> None:
    frame = Frame((30, 60), 64)
    logits = torch.full((1, 16, 16), -10.0)
    logits[:, :4, 8:] = 10.0  # right half of the square, upper quarter: half of the image's 32 rows
    plane = frame.upsample(logits)[0] > 0
    assert plane.shape == (30, 60)
    expected = np.zeros((30, 60), bool)
    expected[:15, 30:] = True
    assert (plane.numpy() != expected).sum() <= 45  # the border, where the logits are interpolated


def test_gray_values_span_the_percentiles() -> None:
    image = np.random.default_rng(0).normal(100, 20, (64, 64)).clip(0, 255).astype(np.uint8)
    gray = to_gray(percentile_normalised(image))
    low, high = np.percentile(image, (1, 99))
    expected = np.clip((image.astype(float) - low) / (high - low) * 255, 0, 255)
    assert np.abs(gray - expected).max() <= 0.51


# ---- whole images, with a network that knows the answer ----


class Ideal(Sam):
    """Sees connected bright places, and answers a prompt with the one that it points at."""

    def __init__(self, config: Any = SMOKE) -> None:
        super().__init__(config)
        self.seen: list[tuple[int, int]] = []

    def embed(self, gray: npt.NDArray[np.uint8]) -> Embedded:
        self.seen.append((gray.shape[0], gray.shape[1]))
        edge = max(gray.shape)  # nothing is resized
        return Embedded(torch.from_numpy(gray.copy()), Frame((gray.shape[0], gray.shape[1]), edge))

    def decode(self, embedded: Embedded, prompts: PromptBatch, *, several: bool) -> tuple[Tensor, Tensor]:
        pieces, _ = ndimage.label(embedded.features.numpy() > 127)
        if prompts.boxes is not None:
            targets = (prompts.boxes[:, :2] + prompts.boxes[:, 2:]) / 2
        else:
            assert prompts.points is not None
            targets = prompts.points[:, 0]
        edge = embedded.frame.edge
        masks = torch.full((len(targets), 3 if several else 1, edge, edge), -50.0)
        quality = torch.zeros(masks.shape[:2])
        for index, (x, y) in enumerate(targets.round().long().tolist()):
            if pieces[y, x]:
                found = torch.from_numpy(pieces == pieces[y, x])
                masks[index, -1, : found.shape[0], : found.shape[1]][found] = 50.0
                quality[index, -1] = 0.95
        return masks, quality


def discs(size_nm: float = 8.0) -> LabelledImage:
    y, x = np.indices((150, 260))
    labels = np.zeros(y.shape, np.uint16)
    for id_, (row, column, radius) in enumerate(
        ((30, 40, 16), (35, 128, 22), (40, 210, 12), (110, 90, 25), (115, 195, 24), (110, 30, 9)), start=1
    ):
        labels[np.hypot(y - row, x - column) < radius] = id_
    return LabelledImage(
        record_id="v/z/00000",
        image=np.where(labels, 220, 30).astype(np.uint8),
        instances=labels,
        organelle_of={id_: Organelle.MITO if id_ % 2 else Organelle.ER for id_ in range(1, 7)},
        annotated=frozenset(Organelle),
        ignore=np.zeros(labels.shape, bool),
        pixel_size_nm=(size_nm, size_nm),
        source="s",
        specimen="s",
        domain="in",
        fold="test",
    )


def same_partition(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> bool:
    pairs = np.unique(np.stack([a.ravel(), b.ravel()]), axis=1).T
    return len(pairs) == len(np.unique(a)) == len(np.unique(b)) and bool(((pairs > 0).sum(1) != 1).all())


@pytest.mark.parametrize("tile", [300, 120])
def test_automatic_finds_every_disc_once_also_over_tiles(tile: int) -> None:
    row, network = discs(), Ideal()
    rule = GridSettings(points_per_side=16, min_stability=0.5)
    prediction = SamPredictor(network, SamSettings(grid=rule, tile=tile)).image(row)
    assert len(network.seen) == (1 if tile == 300 else 6)
    assert same_partition(prediction.instances, row.instances)
    assert prediction.organelle_of == {}
    assert set(prediction.confidence_of) == set(range(1, 7))
    assert list(prediction.confidence_of.values()) == pytest.approx([0.95] * 6)


@pytest.mark.parametrize("tile", [300, 120])
@pytest.mark.parametrize("prompts", PROMPTS)
def test_prompted_gives_each_prompt_its_object(prompts: str, tile: int) -> None:
    row, network = discs(), Ideal()
    settings = SamSettings("prompted", prompts=prompts, tile=tile)
    prediction = SamPredictor(network, settings).image(row)
    assert same_partition(prediction.instances, row.instances)
    assert len(network.seen) == 1 if tile == 300 else 2 <= len(network.seen) <= 6
    assert max(max(shape) for shape in network.seen) <= tile


def test_an_object_larger_than_a_tile_is_asked_for_in_the_whole_image() -> None:
    row, network = discs(), Ideal()
    prediction = SamPredictor(network, SamSettings("prompted", tile=40)).image(row)
    assert (150, 260) in network.seen
    assert same_partition(prediction.instances, row.instances)


def test_pixel_sizes_are_aligned_and_undone() -> None:
    row, network = discs(4.0), Ideal()
    prediction = SamPredictor(network, SamSettings("prompted", prompts="point")).image(row)
    assert network.seen == [(75, 130)]
    assert prediction.instances.shape == row.instances.shape
    overlap = (prediction.instances > 0) == (row.instances > 0)
    assert overlap.mean() > 0.97
    assert len(np.unique(prediction.instances)) == 7


def test_votes() -> None:
    row = discs()
    masks = SamPredictor(Ideal(), SamSettings("prompted")).masks(row.image, row)
    maps = {"mito": np.zeros(row.image.shape, np.float32), "er": np.zeros(row.image.shape, np.float32)}
    maps["mito"][row.instances == 1] = 0.9
    maps["er"][row.instances == 2], maps["mito"][row.instances == 2] = 0.5, 0.2
    maps["er"][row.instances == 3], maps["mito"][row.instances == 3] = 0.3, 0.3  # background has more
    maps["distance:mito"] = np.ones(row.image.shape, np.float32)
    named = vote(masks, maps)
    assert [mask.organelle for mask in named] == [Organelle.MITO, Organelle.ER]
    assert [mask.score for mask in named] == pytest.approx([0.95 * 0.9, 0.95 * 0.5])


# ---- a dataset, from weights to scores ----


def test_automatic_through_the_command_and_scored(
    tiny_dataset: Path, tmp_path: Path, model: Sam, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(_twin_state(), tmp_path / "vit_em_organelles.pth")
    out = tmp_path / "auto"
    command = ["--weights", str(tmp_path / "vit_em_organelles.pth"), "--dataset", str(tiny_dataset), "--out", str(out)]
    command += ["--points-per-side", "2", "--min-predicted-iou", "-1000", "--min-stability", "0"]
    assert sam([*command, "--convert", str(tmp_path / "folder")]) == 0
    assert sorted(path.name for path in (tmp_path / "folder").iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]
    info = json.loads((out / "prediction.json").read_text())
    assert (info["model"], info["class_agnostic"]) == ("micro-sam", True)
    assert "prompts" not in info
    assert info["settings"]["grid"]["points_per_side"] == 2
    assert main(["score", str(out), str(tiny_dataset)]) == 0
    assert "any/dice__instance" in json.loads((out / "score.json").read_text())["groups"]["all"]
    capsys.readouterr()
    assert sam(command) == 0  # the same again: nothing to do
    assert "this very prediction" in capsys.readouterr().err
    with pytest.raises(InputError, match="it differs in settings"):
        sam([*command, "--min-area", "5"])
    assert sam([*command, "--min-area", "5", "--overwrite"]) == 0


def _twin_state() -> dict[str, Tensor]:
    import sam_twin

    return sam_twin.random_state()


def test_prompted_is_marked_as_an_oracle(tiny_dataset: Path, tmp_path: Path, model: Sam) -> None:
    settings = SamSettings("prompted", prompts="box+1+4")
    count = predict_sam(model, str(tiny_dataset), "wild", "test", tmp_path, settings)
    rows = [decode_row(row) for row in open_rows(tiny_dataset, "wild", "test")]
    predictions = list(read_predictions(tmp_path))
    assert count == len(predictions) == len(rows)
    for row, prediction in zip(rows, predictions, strict=True):
        assert prediction.record_id == row.record_id
        assert prediction.instances.shape == row.image.shape
        assert len(prediction.confidence_of) <= len(row.organelle_of)
        assert prediction.organelle_of == {}
    assert json.loads((tmp_path / "prediction.json").read_text())["prompts"] == "oracle:box+1+4"
    assert main(["score", str(tmp_path), str(tiny_dataset)]) == 0


def test_an_interrupted_prediction_goes_on(tiny_dataset: Path, tmp_path: Path, model: Sam, monkeypatch: Any) -> None:
    settings = SamSettings("prompted")
    whole = tmp_path / "whole"
    predict_sam(model, str(tiny_dataset), "wild", "test", whole, settings)
    image, calls = SamPredictor.image, []

    def interrupted(self: SamPredictor, row: LabelledImage) -> Any:
        calls.append(row.record_id)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return image(self, row)

    monkeypatch.setattr(SamPredictor, "image", interrupted)
    again = tmp_path / "again"
    with pytest.raises(KeyboardInterrupt):
        predict_sam(model, str(tiny_dataset), "wild", "test", again, settings)
    assert not (again / "predictions.parquet").exists()
    predict_sam(model, str(tiny_dataset), "wild", "test", again, settings)
    assert calls.count(calls[0]) == 1
    assert calls.count(calls[3]) == 2
    assert (again / "predictions.parquet").read_bytes() == (whole / "predictions.parquet").read_bytes()


def test_with_a_vote_it_is_an_ordinary_prediction(tiny_dataset: Path, tmp_path: Path, model: Sam) -> None:
    import dataclasses

    unet = load_model("unet")
    config = dataclasses.replace(unet.preset("smoke").config, trained_organelles=("mito", "er"))
    torch.manual_seed(1)
    unet.build(config).save_pretrained(tmp_path / "unet")
    out = tmp_path / "out"
    predict_sam(
        model, str(tiny_dataset), "wild", "test", out, SamSettings(grid=EASY), classes_from=str(tmp_path / "unet")
    )
    info = json.loads((out / "prediction.json").read_text())
    assert (info["model"], info["organelles"]) == ("sam + unet vote", ["mito", "er"])
    assert "class_agnostic" not in info
    assert info["settings"]["classes_from"]["model"] == "unet"
    for prediction in read_predictions(out):
        assert set(prediction.organelle_of) == set(prediction.confidence_of)
        assert set(prediction.organelle_of.values()) <= {Organelle.MITO, Organelle.ER}
    assert main(["score", str(out), str(tiny_dataset)]) == 0
    model.save_pretrained(tmp_path / "sam")
    with pytest.raises(InputError, match=r"finds objects without their organelle"):
        predict_sam(model, str(tiny_dataset), "wild", "test", out, classes_from=str(tmp_path / "sam"))


def test_the_command_says_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match="nothing to do"):
        sam(["--weights", "x.pth"])
    with pytest.raises(InputError, match="prompted mode"):
        sam(["--weights", "x.pth", "--dataset", "d", "--out", "o", "--prompts", "box"])
    with pytest.raises(InputError, match="there is no file"):
        sam(["--weights", str(tmp_path / "x.pth"), "--convert", str(tmp_path / "folder")])
    with pytest.raises(SystemExit):
        sam(["--help"])
    assert "example" in capsys.readouterr().out
    assert tuple(PROMPTS) == KINDS
    assert VIT_B.image_size == 1024
