"""What a prediction is made with: tiles, a trained checkpoint, and the record of both."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import sys
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import torch

from baselines.data import name_without_path
from baselines.decode import DECODERS, recorded
from baselines.model import Baseline, load_model
from baselines.pretrained import load_pretrained
from em_bench_eval import __version__
from em_bench_eval.errors import InputError
from em_bench_eval.rows import read_prediction_info
from em_bench_eval.schema import Organelle

DEFAULT_TILES = {2: (512, 32), 3: (128, 16)}  # axes of the model -> edge of a tile, margin; aligned pixels


@dataclass(frozen=True)
class TileSettings:
    """How an image is cut up (``tiling.tiled``'s arguments, in aligned pixels), augmented, and decoded."""

    tile: int = 0  # 0: as DEFAULT_TILES says; of 3D models, edges of cubes
    margin: int = -1  # -1: as DEFAULT_TILES says
    overlap: float = 0.25
    batch_size: int | None = None  # None: what fits into memory; changes nothing but the last digits of floats
    symmetries: bool = False  # average over the eight symmetries of the square: eight times the work
    decoder: str | None = None  # a key of decode.METHODS; None: the best one that the maps allow

    def of(self, model: Baseline) -> TileSettings:
        """Fill in what was left to the model; ``InputError`` for tiles that are all margin.

        A model with position embeddings or pooling over all that it sees gets tiles of its training crops' size, and
        one that finds masks no margin: masks are linked, and those that a tile's edge cuts lose against whole ones.
        """
        if self.decoder is not None and model.output == "masks":
            raise InputError(
                f"--decoder is not supported for {model.name}",
                found="a model that finds masks, not maps",
                remedy="leave --decoder away",
            )
        tile, margin = DEFAULT_TILES[model.ndim]
        if model.sees_its_size:
            tile = model.training_info.get("recipe", {}).get("crop", tile)
        margin = 0 if model.output == "masks" else min(margin, tile // 8)
        filled = dataclasses.replace(self, tile=self.tile or tile, margin=margin if self.margin < 0 else self.margin)
        if filled.tile <= 2 * filled.margin:
            raise InputError(
                f"--tile {filled.tile} leaves nothing inside margins of {filled.margin}",
                expected="a tile of more than twice the margin",
                remedy="raise --tile, or lower --margin",
            )
        return filled

    def recorded(self) -> dict[str, Any]:
        """What decides the maps of a prediction; ``decode.recorded`` says what decides how they are decoded."""
        decided = dataclasses.asdict(self)
        return {name: decided[name] for name in decided if name not in ("batch_size", "decoder")}


DEFAULT = TileSettings()


def load_trained(checkpoint: str) -> Baseline:
    """Load a checkpoint; one that was never trained is an ``InputError``."""
    model = load_pretrained(checkpoint)
    if not load_model(model.name).trainable:
        raise InputError(
            f"{checkpoint} holds {model.name}, which finds objects without their organelle",
            expected="a checkpoint of `em-bench train`",
            remedy=f"em-bench {model.name} --weights {checkpoint}; its --help says how objects get an organelle",
        )
    if not model.config.trained_organelles:
        raise InputError(
            f"{checkpoint} was never trained",
            found="no trained_organelles in its config.json",
            expected="a checkpoint of `em-bench train`, which notes what its data annotated",
            remedy="train it first: em-bench train --help",
        )
    return model


def default_device() -> torch.device:
    """The first GPU, if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def say_what_cannot_be_scored(model: Baseline, rows: Any, where: str) -> None:
    """Tell of organelles that the model predicts and nobody annotated there."""
    annotated = {name for row in rows.select_columns(["annotated"]) for name in row["annotated"]}
    without = [name for name in model.config.trained_organelles if name not in annotated]
    if without:
        print(f"note: {', '.join(without)}: predicted, but annotated nowhere in {where}: not scored", file=sys.stderr)


def prediction_info(
    model: Baseline, checkpoint: str, dataset: str, config: str, split: str, settings: TileSettings, axes: int = 2
) -> dict[str, object]:
    """What ``prediction.json`` records: everything that decides the result; of volumes, ``axes`` is 3."""
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
            **settings.recorded(),
            "pixel_size_nm": model.config.pixel_size_nm,
            "decoders": recorded(model.map_names, axes, settings.decoder)
            if model.output == "maps"
            else {name: DECODERS[Organelle(name)].recorded("masks") for name in trained},
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


def already_there(out: str | os.PathLike[str], info: dict[str, object]) -> int:
    """Return the number of images if ``out`` holds this very prediction; another one is an ``InputError``."""
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
