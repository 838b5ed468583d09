"""Whole-image prediction: align, tile, stitch, back to native resolution, decode, write."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from baselines.data import name_without_path
from baselines.decode import DECODERS, decode
from baselines.model import Baseline
from baselines.preprocess import network_input
from baselines.pretrained import load_pretrained
from baselines.tiling import Maps, tiled
from em_bench_eval import __version__
from em_bench_eval.align import resize_image
from em_bench_eval.errors import InputError
from em_bench_eval.rows import (
    PREDICTIONS_FILE,
    LabelledImage,
    decode_row,
    open_rows,
    read_prediction_info,
    write_predictions,
)
from em_bench_eval.schema import Organelle, Prediction

TILE_MULTIPLE = 32  # tiles that a network with up to five halvings need not pad


@dataclass(frozen=True)
class TileSettings:
    """How an image is cut up: ``tiling.tiled``'s arguments, in aligned pixels, and test-time augmentation."""

    tile: int = 512
    margin: int = 32
    overlap: float = 0.25
    batch_size: int = 1
    symmetries: bool = False  # average over the eight symmetries of the square: eight times the work


def predict(
    checkpoint: str,
    dataset: str,
    config: str,
    split: str,
    out: str | os.PathLike[str],
    settings: TileSettings = TileSettings(),
    *,
    overwrite: bool = False,
) -> int:
    """Predict every image of a split into the folder ``out``; return the number of images.

    Only organelles that were annotated in the model's training data are predicted. If ``out`` already holds the
    prediction of the same weights on the same images nothing is done; other predictions there are an ``InputError``
    unless ``overwrite``. An interrupted prediction leaves nothing.
    """
    model = load_pretrained(checkpoint)
    if not model.config.trained_organelles:
        raise InputError(
            f"{checkpoint} was never trained",
            found="no trained_organelles in its config.json",
            remedy="train it first: em-bench train --help",
        )
    rows = open_rows(dataset, config, split)
    info = prediction_info(model, checkpoint, dataset, config, split, settings)
    if (Path(out) / PREDICTIONS_FILE).exists() and not overwrite:
        return _already_there(out, info)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device)
    return write_predictions(out, _predictions(model, rows, settings, device), info)


def predict_image(model: Baseline, row: LabelledImage, settings: TileSettings, device: torch.device) -> Prediction:
    """Predict one decoded row; the prediction has the image's native ``(y, x)`` shape."""
    maps = predict_maps(model, row.image, row.pixel_size_nm, settings, device)
    native = resize_image(maps, (row.image.shape[0], row.image.shape[1]))
    return decode(row.record_id, dict(zip(model.map_names, native, strict=True)), row.pixel_size_nm)


def predict_maps(
    model: Baseline,
    image: np.ndarray[Any, Any],
    pixel_size_nm: tuple[float, float],
    settings: TileSettings,
    device: torch.device,
) -> Maps:
    """Stitched maps ``(len(model.map_names), y, x)`` float32 of a native image, at the model's aligned pixel size."""
    aligned = network_input(image, pixel_size_nm, model.config.pixel_size_nm, model.config.normalisation)

    def of_tiles(tiles: Maps) -> Maps:
        batch = torch.from_numpy(tiles)[:, None].to(device)
        return (symmetric_maps(model, batch) if settings.symmetries else model.maps(batch)).cpu().numpy()

    return tiled(
        of_tiles,
        aligned,
        len(model.map_names),
        tile=settings.tile,
        margin=settings.margin,
        overlap=settings.overlap,
        multiple=TILE_MULTIPLE,
        batch_size=settings.batch_size,
    )


def symmetric_maps(model: Baseline, images: torch.Tensor) -> torch.Tensor:
    """Mean of ``model.maps`` over the eight symmetries of the square, each undone on the result."""
    total = torch.zeros(())
    for mirror in (False, True):
        for turns in range(4):
            turned = torch.rot90(images.flip(-1) if mirror else images, turns, (-2, -1))
            back = torch.rot90(model.maps(turned), -turns, (-2, -1))
            total = total.to(back) + (back.flip(-1) if mirror else back)
    return total / 8


def prediction_info(
    model: Baseline, checkpoint: str, dataset: str, config: str, split: str, settings: TileSettings
) -> dict[str, object]:
    """What ``prediction.json`` records: everything that decides the result."""
    trained = model.config.trained_organelles
    return {
        "model": model.name,
        "checkpoint": name_without_path(checkpoint),
        "weights_sha256": weights_digest(model),
        "dataset": name_without_path(dataset),
        "config": config,
        "split": split,
        "organelles": list(trained),
        "settings": {
            **dataclasses.asdict(settings),
            "pixel_size_nm": model.config.pixel_size_nm,
            "decoders": {name: dataclasses.asdict(DECODERS[Organelle(name)]) for name in trained},
        },
        "training": model.training_info,
        "versions": {"em_organelle_wild": __version__, "torch": version("torch"), "numpy": version("numpy")},
    }


def weights_digest(model: Baseline) -> str:
    """SHA-256 over the names and values of all tensors."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _predictions(model: Baseline, rows: Any, settings: TileSettings, device: torch.device) -> Iterator[Prediction]:
    pixels = 0
    with tqdm(rows, desc=f"predict {model.name}", unit="image") as bar:
        for row in bar:
            decoded = decode_row(row)
            yield predict_image(model, decoded, settings, device)
            pixels += decoded.image.size
            bar.set_postfix({"megapixels": f"{pixels / 1e6:.1f}"})


def _already_there(out: str | os.PathLike[str], info: dict[str, object]) -> int:
    earlier = read_prediction_info(out)
    if {**earlier, "images": 0} == {**info, "images": 0}:
        print(f"{out} holds this very prediction; --overwrite would repeat it.", file=sys.stderr)
        return int(earlier["images"])
    differing = sorted(key for key in info if earlier.get(key) != info[key])
    raise InputError(
        f"{out} holds another prediction",
        found=f"it differs in {', '.join(differing)}",
        remedy="name another folder with --out, or replace it with --overwrite",
    )
