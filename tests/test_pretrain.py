"""Pre-training by reconstruction: augmentations, images, resuming, and that something is learnt."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file

from baselines.cli_pretrain import pretrain as command
from baselines.models.transunet import SMOKE, TransUNet
from baselines.preprocess import CEM500K_MEAN, CEM500K_STD, percentile_normalised
from baselines.pretrain import pretrain_images, pretraining
from baselines.pretrain.pretrain_augment import (
    GRAY_SCALES,
    SECOND_SET,
    View,
    brightness_and_contrast,
    draw_view,
    gray_scale,
    holes,
    noise,
    seen_through,
)
from baselines.pretrain.pretrain_crops import HeldOut, SpoiltCrops, pair
from baselines.pretrain.pretrain_images import ImageFolder, PreparedImages, gray_values, open_images
from baselines.pretrain.pretrain_presets import PRESETS, preset
from baselines.pretrain.pretraining import PretrainRequest, pretrain
from baselines.pretrain.reconstruction import Reconstruction, load_reconstruction, reconstruction_loss
from baselines.pretrain.skipped_images import LIST, SkippedImages
from baselines.run_folder import RunFolder
from em_bench_eval.errors import InputError

torch.set_num_threads(1)


def _texture(edge: int, seed: int = 0) -> np.ndarray[Any, Any]:
    """A smooth gray image, uint8."""
    coarse = np.random.default_rng(seed).uniform(0, 255, (8, 8)).astype(np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((edge, edge), Image.Resampling.BICUBIC))


def _folder(place: Path, count: int = 24, edge: int = 48) -> Path:
    """Like CEM500K: small TIFF files in folders by source."""
    for number in range(count):
        source = place / ("mouse" if number % 2 else "fly")
        source.mkdir(parents=True, exist_ok=True)
        tifffile.imwrite(source / f"{number:03d}.tiff", _texture(edge, number))
    return place


def _request(images: Path, out: Path, **changes: Any) -> PretrainRequest:
    recipe = dataclasses.replace(preset("smoke").recipe, steps=7, crop=32, warmup_steps=2)
    request = PretrainRequest(str(images), "wild", out, "smoke", SMOKE, recipe, checkpoint_every=3)
    return dataclasses.replace(request, **changes)


# --- augmentation ----------------------------------------------------------------------------------------------------


def _reflected(index: int, size: int) -> int:
    index = abs(index) % (2 * (size - 1))
    return index if index < size else 2 * (size - 1) - index


def _seen_slowly(image: np.ndarray[Any, Any], view: View, edge: int) -> np.ndarray[Any, Any]:
    """Pixel by pixel: place in the crop, turned back about the image's centre, mirrored back, interpolated."""
    rows, columns = image.shape
    angle = np.deg2rad(view.angle_deg)
    out = np.zeros((edge, edge))
    for i, j in itertools.product(range(edge), repeat=2):
        y = view.top + (i + 0.5) * view.height / edge - 0.5 - (rows - 1) / 2
        x = view.left + (j + 0.5) * view.width / edge - 0.5 - (columns - 1) / 2
        y, x = np.cos(angle) * y + np.sin(angle) * x, -np.sin(angle) * y + np.cos(angle) * x
        y, x = (-y if view.flip_y else y) + (rows - 1) / 2, (-x if view.flip_x else x) + (columns - 1) / 2
        y0, x0 = int(np.floor(y)), int(np.floor(x))
        for dy, dx in itertools.product((0, 1), repeat=2):
            weight = (1 - abs(y - y0 - dy)) * (1 - abs(x - x0 - dx))
            out[i, j] += weight * image[_reflected(y0 + dy, rows), _reflected(x0 + dx, columns)]
    return out


@given(seed=st.integers(0, 999), rows=st.integers(9, 14), columns=st.integers(9, 14))
@settings(max_examples=15)
def test_a_view_equals_its_slow_twin(seed: int, rows: int, columns: int) -> None:
    generator = np.random.default_rng(seed)
    image = generator.uniform(0, 255, (rows, columns)).astype(np.float32)
    view = draw_view((rows, columns), generator)
    np.testing.assert_allclose(seen_through(image, view, 7), _seen_slowly(image, view, 7), atol=0.02)


def test_views_without_a_crop_are_exact_symmetries() -> None:
    image = np.random.default_rng(0).uniform(0, 255, (12, 12)).astype(np.float32)
    for flip_y, flip_x, turns in itertools.product((False, True), (False, True), (-1, 0, 1)):
        seen = seen_through(image, View(flip_y, flip_x, 90.0 * turns, 0, 0, 12, 12), 12)
        mirrored = image[:: -1 if flip_y else 1, :: -1 if flip_x else 1]
        np.testing.assert_allclose(seen, np.rot90(mirrored, turns), atol=1e-3)


@given(seed=st.integers(0, 10_000), rows=st.integers(20, 300), columns=st.integers(20, 300))
@settings(max_examples=60)
def test_crops_have_the_published_area_and_shape(seed: int, rows: int, columns: int) -> None:
    view = draw_view((rows, columns), np.random.default_rng(seed))
    assert view.top >= 0
    assert view.left >= 0
    assert view.top + view.height <= rows
    assert view.left + view.width <= columns
    assert abs(view.angle_deg) <= 90
    share = view.height * view.width / (rows * columns)
    if max(rows, columns) <= 2 * min(rows, columns):  # else no box of that shape may fit
        assert 0.06 <= share <= 1
        assert 0.45 <= view.width / view.height <= 1.6


def test_the_second_set_does_what_its_parameters_say() -> None:
    image = np.full((224, 224), 128, np.float32)
    draws = [np.random.default_rng(seed) for seed in range(200)]
    variances = [noise(image, generator).var() for generator in draws]
    assert min(variances) > 350
    assert max(variances) < 1300
    levels = [brightness_and_contrast(image, generator)[0, 0] for generator in draws]
    assert min(levels) >= 128 * 0.7 - 255 * 0.3
    assert max(levels) <= 128 * 1.3 + 255 * 0.3
    assert np.std(levels) > 30
    black = [int((holes(image, generator) == 0).sum()) for generator in draws]
    assert min(black) >= 16 * 16
    assert max(black) <= 32 * 16 * 16
    assert max(black) > 20 * 16 * 16
    ramp = np.tile(np.arange(0, 224, dtype=np.float32), (224, 1))
    for augmentation in SECOND_SET:
        before = ramp.copy()
        result = augmentation(ramp, draws[0])
        assert np.array_equal(ramp, before), "the target must not change with the input"
        assert result.dtype == np.float32
        assert result.min() >= 0
        assert result.max() <= 255


def test_targets_are_not_spoilt_and_numbers_decide_everything() -> None:
    image = _texture(64)
    pairs = [pair(image, 32, "cem500k", np.random.default_rng(seed)) for seed in range(40)]
    again = [pair(image, 32, "cem500k", np.random.default_rng(seed)) for seed in range(40)]
    for one, other in zip(pairs, again, strict=True):
        assert np.array_equal(one["image"], other["image"])
        assert np.array_equal(one["target"], other["target"])
    untouched = sum(np.array_equal(one["image"], one["target"]) for one in pairs)
    assert 0 < untouched < 10  # one in sixteen
    for one in pairs:
        gray = (one["target"] * CEM500K_STD + CEM500K_MEAN) * 255
        assert image.min() - 0.01 <= gray.min()
        assert gray.max() <= image.max() + 0.01


def test_both_normalisations_end_where_training_begins() -> None:
    image = _texture(64).astype(np.float32)
    scale = gray_scale("percentile-1-99")
    np.testing.assert_allclose(scale.to_network(scale.to_gray(image)), percentile_normalised(image), atol=1e-4)
    scale = gray_scale("cem500k")
    expected = (image / 255 - CEM500K_MEAN) / CEM500K_STD
    np.testing.assert_allclose(scale.to_network(scale.to_gray(image)), expected, atol=1e-4)
    assert {one.config.normalisation for one in PRESETS.values()} <= set(GRAY_SCALES)
    with pytest.raises(InputError, match="did you mean 'cem500k'"):
        gray_scale("cem500")


# --- images ----------------------------------------------------------------------------------------------------------


def test_a_folder_in_the_layout_of_cem500k(tmp_path: Path) -> None:
    images = ImageFolder(_folder(tmp_path))
    assert len(images) == 24
    assert images.name(0) == "fly/000.tiff"
    assert np.array_equal(images.read(0), _texture(48, 0))
    assert images.read(0).dtype == np.float32


def test_every_kind_of_gray_file_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gray = _texture(40)
    Image.fromarray(gray).save(tmp_path / "a.png")
    Image.fromarray(np.stack([gray] * 3, -1)).save(tmp_path / "b.png")
    Image.fromarray(gray.astype(np.uint16) * 9 + 1000).save(tmp_path / "c.png")
    Image.fromarray(gray).convert("P").save(tmp_path / "d.png")
    tifffile.imwrite(tmp_path / "e.tif", gray.astype(np.float32) / 1000, compression="lzw")
    monkeypatch.setattr(pretrain_images, "STACK_BYTES", 3000)
    tifffile.imwrite(tmp_path / "f.TIFF", np.stack([gray, 255 - gray]), photometric="minisblack")
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / ".hidden.png").write_text("no image")
    images = ImageFolder(tmp_path)
    assert [images.name(n) for n in range(len(images))][-2:] == ["f.TIFF plane 0", "f.TIFF plane 1"]
    assert len(images) == 7
    for number in (0, 1, 3, 5):
        assert np.array_equal(images.read(number), gray), images.name(number)
    assert np.array_equal(images.read(6), 255 - gray)
    for number in (2, 4):  # no agreed range: stretched
        stretched = images.read(number)
        assert (stretched.min(), stretched.max()) == (0, 255)
        assert np.corrcoef(stretched.ravel(), gray.ravel())[0, 1] > 0.999


def test_a_dataset_gives_its_training_images_at_8_nm(tiny_dataset: Path) -> None:
    from em_bench_eval.rows import open_rows

    images = open_images(str(tiny_dataset), "wild")
    one = open_images(str(tiny_dataset), "wild", ["lucchipp"])
    assert 0 < len(one) < len(images)
    assert all(one.name(number).startswith("lucchipp") for number in range(len(one)))
    rows = open_rows(tiny_dataset, "wild", "train")
    assert len(images) == len(rows)
    for number in (0, len(rows) - 1):
        native = pretrain_images.decode_png(rows[number]["image"]).shape
        expected = [round(n * nm / 8) for n, nm in zip(native, rows[number]["pixel_size_nm"], strict=True)]
        try:
            assert list(images.read(number).shape) == expected
        except pretrain_images.UnusableImage:
            assert min(expected) < pretrain_images.SMALLEST_EDGE


def test_prepared_images_keep_what_was_used_last(tmp_path: Path) -> None:
    folder, reads = ImageFolder(_folder(tmp_path, 4)), []
    original = folder.read
    folder.read = lambda number: (reads.append(number), original(number))[1]  # type: ignore[method-assign]
    images = PreparedImages(folder, lambda image: 255 - image, cache_bytes=2 * 48 * 48)
    for number in (0, 1, 0, 2, 0, 1):
        assert np.array_equal(images.read(number), 255 - original(number))
    assert reads == [0, 1, 2, 1]


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((3, 40, 40), np.uint8), r"has shape \(3, 40, 40\)"),
        (np.zeros((40, 31), np.uint8), "is too small"),
        (np.full((40, 40), np.nan, np.float32), "no finite numbers"),
    ],
)
def test_what_is_no_gray_image_is_not_guessed(array: Any, message: str) -> None:
    with pytest.raises(pretrain_images.UnusableImage, match=message):
        gray_values(array)


def test_bad_images_are_listed_and_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = _folder(tmp_path / "cem")
    whole = (folder / "fly" / "000.tiff").read_bytes()
    (folder / "fly" / "002.tiff").write_bytes(whole[: len(whole) // 2])
    (folder / "fly" / "004.tiff").write_bytes(b"")
    Image.fromarray(_texture(8)).save(folder / "fly" / "006.png")
    out = pretrain(_request(folder, tmp_path / "run"))
    lines = (out / LIST).read_text().splitlines()
    assert [line.split("\t")[0] for line in lines] == ["fly/002.tiff", "fly/004.tiff", "fly/006.png"]
    said = capsys.readouterr().err
    assert "3 images are left out; the list is" in said
    assert said.count("images are left out") == 1
    assert json.loads((out / "config.json").read_text())["training"]["images_left_out"] == 3


def test_an_image_that_turns_bad_later_is_replaced_and_listed(tmp_path: Path) -> None:
    images = PreparedImages(ImageFolder(_folder(tmp_path / "cem", 6)), lambda image: image)
    (tmp_path / "cem" / "fly" / "002.tiff").write_bytes(b"damaged")
    skipped = SkippedImages(tmp_path)
    crops = SpoiltCrops(images, range(6), 32, "cem500k", 0, skipped)
    for number in range(12):
        assert crops[number]["image"].shape == (1, 32, 32)
    assert len(skipped) == 1
    for file in (tmp_path / "cem").rglob("*.tiff"):
        file.unlink()
    gone = SpoiltCrops(PreparedImages(images.images, lambda image: image), range(6), 32, "cem500k", 0, skipped)
    with pytest.raises(InputError, match="20 images one after the other"):
        gone[0]


def test_places_without_images_are_answered(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "jpegs").mkdir()
    (tmp_path / "jpegs" / "a.jpg").write_bytes(b"x")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.png").write_bytes(b"x")
    for name, message in (
        ("absent", "there are no images at"),
        ("empty", r"(?s)there are no images in .*an empty folder"),
        ("jpegs", "1 files of other kinds"),
        ("jpegs/a.jpg", "is a file"),
        ("bad", r"(?s)none of the images can be used.*a\.png cannot be read"),
    ):
        with pytest.raises(InputError, match=message):
            pretrain(_request(tmp_path / name, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_each_image_is_seen_once_an_epoch_and_held_out_ones_never(tmp_path: Path) -> None:
    images = PreparedImages(ImageFolder(_folder(tmp_path, 44)), lambda image: image)
    held_out = HeldOut(images, {3}, 32, "cem500k", 0)
    assert len(held_out.numbers) == 2
    assert held_out.inputs.shape == held_out.targets.shape == (16, 1, 32, 32)
    training = sorted(set(range(44)) - {3} - set(held_out.numbers))
    seen: list[int] = []
    original = images.read
    images.read = lambda number: (seen.append(number), original(number))[1]  # type: ignore[method-assign]
    crops = SpoiltCrops(images, training, 32, "cem500k", 0, SkippedImages(tmp_path))
    for number in range(2 * len(training)):
        crops[number]
    assert sorted(seen[: len(training)]) == sorted(seen[len(training) :]) == training
    assert seen[: len(training)] != seen[len(training) :]
    few = HeldOut(PreparedImages(images.images, lambda image: image), set(range(10, 44)), 32, "cem500k", 0)
    assert few.numbers == []  # too few images to hold any out: shown, but not taken away
    assert len(few.inputs) == 16


# --- training --------------------------------------------------------------------------------------------------------


class _Interrupted(Exception):
    pass


def test_resumed_equals_uninterrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, whole, parts = _folder(tmp_path / "cem"), tmp_path / "whole", tmp_path / "parts"
    pretrain(_request(folder, whole))
    original = pretraining._Loop.step

    def step(self: Any, batch: Any, fraction: float) -> Any:
        if self.progress.step == 5:
            raise _Interrupted
        return original(self, batch, fraction)

    with monkeypatch.context() as context:
        context.setattr(pretraining._Loop, "step", step)
        with pytest.raises(_Interrupted):
            pretrain(_request(folder, parts))
    assert RunFolder(parts).last_step == 3
    assert not RunFolder(parts).is_complete
    with pytest.raises(InputError, match="unfinished"):
        pretrain(_request(folder, parts))
    with pytest.raises(InputError, match="other settings"):
        pretrain(_request(folder, parts, seed=1), resume=True)
    torch.manual_seed(99)  # whatever happened in between
    pretrain(_request(folder, parts), resume=True)

    expected, found = load_file(whole / "model.safetensors"), load_file(parts / "model.safetensors")
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=0, msg=name)
    logs = [[json.loads(line) for line in (run / "train_log.jsonl").read_text().splitlines()] for run in (whole, parts)]
    assert [entry["step"] for entry in logs[0]] == [3, 6, 7]
    assert [entry["held_out_mse"] for entry in logs[0]] == [entry["held_out_mse"] for entry in logs[1]]


def test_the_result_is_taken_by_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    arguments = ["--images", str(_folder(tmp_path / "cem", 21)), "--preset", "smoke", "--steps", "2", "--out", str(out)]
    assert command(arguments) == 0
    assert capsys.readouterr().out.strip() == str(out)
    restored = load_reconstruction(out)
    model = TransUNet(dataclasses.replace(SMOKE, transfer="all_encoder", freeze="none"))
    assert "em-bench weights run" in model.load_encoder_weights(out)
    for name, tensor in restored.encoder.state_dict().items():
        torch.testing.assert_close(model.encoder.state_dict()[name], tensor, rtol=0, atol=0)
    with Image.open(out / "reconstruction.png") as picture:
        assert picture.mode == "L"
        assert picture.width > 4 * 64
        assert np.asarray(picture).std() > 20
    card = (out / "README.md").read_text()
    assert "| steps | 2 |" in card
    assert str(tmp_path) not in card + (out / "config.json").read_text()
    assert command(arguments) == 0  # finished: left alone
    assert "holds this pre-training, finished" in capsys.readouterr().err
    with pytest.raises(InputError, match="holds no pre-trained encoder"):
        load_reconstruction(tmp_path / "cem")


def test_it_learns_to_restore(tmp_path: Path) -> None:
    """One batch again and again: the loss falls far below that of returning the input, or a flat gray."""
    torch.manual_seed(0)
    image = _texture(96)
    pairs = [pair(image, 64, "cem500k", np.random.default_rng(seed)) for seed in (1, 2, 3, 4)]
    inputs, targets = (torch.from_numpy(np.stack([one[key] for one in pairs])) for key in ("image", "target"))
    model = Reconstruction(dataclasses.replace(SMOKE, dropout=0.0))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(40):
        loss = reconstruction_loss(model(inputs), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]
    assert losses[-1] < 0.5 * float(reconstruction_loss(inputs, targets))
    assert losses[-1] < 0.5 * float(targets.var())


def test_the_loss_is_the_mean_over_all_pixels() -> None:
    restored, target = torch.randn(2, 1, 5, 7), torch.randn(2, 1, 5, 7)
    expected = sum((a - b) ** 2 for a, b in zip(restored.ravel(), target.ravel(), strict=True)) / 70
    torch.testing.assert_close(reconstruction_loss(restored, target), expected)


def test_the_published_schedule_hardly_falls(tmp_path: Path) -> None:
    """RETINA's code decays over 5000 epochs and its paper stops after 200."""
    retina = preset("retina")
    assert retina.epochs is not None
    assert retina.epochs * retina.stretch == 5000
    assert (retina.recipe.batch_size, retina.recipe.crop, retina.recipe.lr) == (256, 224, 0.003)
    assert (retina.recipe.optimizer, retina.recipe.momentum, retina.recipe.weight_decay) == ("sgd", 0.9, 1e-4)
    rate = retina.recipe.learning_rate(10**9, 1.0 / retina.stretch)
    assert rate == pytest.approx(0.00289, abs=1e-5)
    recipe = dataclasses.replace(retina.recipe, batch_size=8, crop=32)
    out = tmp_path / "run"
    pretrain(_request(_folder(tmp_path / "cem", 20), out, recipe=recipe, epochs=2.0, stretch=25))
    log = [json.loads(line) for line in (out / "train_log.jsonl").read_text().splitlines()]
    assert log[-1]["step"] == 5  # two epochs of 19 images in batches of eight
    assert log[-1]["lr"] == pytest.approx(0.003 * (1 - 4 / 5 / 25) ** 0.9, rel=1e-4)
    with pytest.raises(InputError, match="did you mean 'retina'"):
        preset("retinaa")
