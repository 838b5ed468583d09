"""Predict a split with SAM or micro-SAM: automatically, or prompted from the reference; with or without organelles.

Images are aligned to the model's pixel size (8 nm) like those of every baseline. An image of up to 1024 pixels is one
network input. A larger one is cut into overlapping tiles: the automatic mode links masks over them; a prompted object
is asked for in the tile that shows most around it, and in the whole image, reduced to 1024 pixels, if no tile holds all
of it. What is written is resumable by image, as in ``baselines.predict``.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from tqdm import tqdm

from baselines.data import name_without_path
from baselines.image_pieces import Pieces
from baselines.masks import Mask, cut_to_box, disjoint
from baselines.memory_faults import out_of_memory_as_input_error
from baselines.models.sam import PromptBatch, Sam, to_gray
from baselines.predict import Predictor, native_masks
from baselines.prediction_settings import already_there, default_device, load_trained, weights_digest
from baselines.preprocess import network_input
from baselines.sam.grid import PIXELS_AT_A_TIME, GridSettings, clipped, flat_masks
from baselines.sam.prompts import NEGATIVES_NM, PROMPTS, Prompt, prompt_kind, prompts_of
from baselines.sam.semantic_vote import vote
from baselines.stitch_masks import LinkRule, Tile, stitch
from baselines.tiling import TileAxis
from em_bench_eval import __version__
from em_bench_eval.errors import InputError
from em_bench_eval.rows import PREDICTIONS_FILE, LabelledImage, decode_row, labels_are_private, open_rows
from em_bench_eval.schema import ORGANELLES, Organelle, Prediction

Gray = npt.NDArray[np.uint8]
Corner = tuple[int, int]
TILE, OVERLAP = 1024, 0.25  # aligned pixels; share of neighbouring tiles


@dataclass(frozen=True)
class SamSettings:
    """What decides a prediction besides the weights."""

    mode: Literal["automatic", "prompted"] = "automatic"
    grid: GridSettings = field(default_factory=GridSettings)  # automatic
    prompts: str = "box"  # prompted: key of prompts.PROMPTS
    reference_ids: Literal["volume", "slice"] = "volume"  # prompted: an object has one id, or is one connected piece
    seed: int = 0  # prompted: which negative points are drawn
    tile: int = TILE
    overlap: float = OVERLAP

    def __post_init__(self) -> None:
        prompt_kind(self.prompts)

    def recorded(self) -> dict[str, Any]:
        """What ``prediction.json`` says of them; what the mode does not use is left out."""
        common = {"mode": self.mode, "tile": self.tile, "overlap": self.overlap}
        if self.mode == "automatic":
            grid = dataclasses.asdict(self.grid)
            del grid["points_per_batch"]  # changes no result
            return {**common, "grid": grid}
        return {
            **common,
            "prompts": {"kind": self.prompts, **dataclasses.asdict(PROMPTS[self.prompts])},
            "reference_ids": self.reference_ids,
            "negatives_nm": list(NEGATIVES_NM),
            "seed": self.seed,
        }


def predict_sam(
    model: Sam,
    dataset: str,
    config: str,
    split: str,
    out: str | os.PathLike[str],
    settings: SamSettings = SamSettings(),
    *,
    name: str = "sam",
    weights: str = "",
    classes_from: str | None = None,
    overwrite: bool = False,
    device: torch.device | None = None,
) -> int:
    """Predict every image of a split into the folder ``out``; return the number of images.

    ``name`` is what the records call the model ("sam", "micro-sam"), ``weights`` where they came from. Without
    ``classes_from``, the checkpoint of a dense model that votes on organelles, the instances have none and are scored
    class-agnostically. An interrupted prediction goes on after its last finished image. Raises ``InputError``.
    """
    where = device or default_device()
    rows = open_rows(dataset, config, split)
    voter = None if classes_from is None else _voter(classes_from, model, where)
    info: dict[str, object] = {
        "model": name if voter is None else f"{name} + {voter.model.name} vote",
        "checkpoint": name_without_path(weights) if weights else None,
        "weights_sha256": weights_digest(model),
        "dataset": name_without_path(dataset),
        "config": config,
        "split": split,
        **({"prompts": f"oracle:{settings.prompts}"} if settings.mode == "prompted" else {}),
        **({"class_agnostic": True} if voter is None else {"organelles": list(voter.model.config.trained_organelles)}),
        "settings": {
            **settings.recorded(),
            "pixel_size_nm": model.config.pixel_size_nm,
            **({} if voter is None else {"classes_from": _about(voter, str(classes_from))}),
        },
        "training": model.training_info,
        "versions": {"em_organelle_wild": __version__, **{n: version(n) for n in ("torch", "transformers", "numpy")}},
    }
    if (Path(out) / PREDICTIONS_FILE).exists() and not overwrite:
        return already_there(out, info)
    pieces = Pieces(out, info)
    predictor = SamPredictor(model.to(where).eval(), settings, voter)
    remedy = "lower --points-per-batch, or use another device"
    for index, row in enumerate(tqdm(rows, desc=f"{name}, {settings.mode}", unit="image")):
        if not pieces.has(index, row):
            decoded = decode_row(row)
            if settings.mode == "prompted" and not decoded.labelled:
                raise labels_are_private(f"{config}/{split}")
            with out_of_memory_as_input_error(f"{name} on {decoded.record_id}", remedy):
                pieces.write(index, row, predictor.image(decoded))
    return pieces.assemble(len(rows))


class SamPredictor:
    """SAM for whole images of any size and pixel size; ``voter`` says what the masks are."""

    def __init__(self, model: Sam, settings: SamSettings = SamSettings(), voter: Predictor | None = None) -> None:
        self.model, self.settings, self.voter = model, settings, voter
        self.kind = prompt_kind(settings.prompts)

    def image(self, row: LabelledImage) -> Prediction:
        """Predict one decoded row; the prediction has the image's native ``(y, x)`` shape."""
        config = self.model.config
        aligned = network_input(row.image, row.pixel_size_nm, config.pixel_size_nm, config.normalisation)
        masks = self.masks(to_gray(aligned), row)
        if self.voter is not None:
            maps = dict(zip(self.voter.model.map_names, self.voter.maps(row.image, row.pixel_size_nm), strict=True))
            masks = vote(masks, maps)
        order = "area" if self.settings.mode == "automatic" else "score"
        steps = [nm / config.pixel_size_nm for nm in row.pixel_size_nm]
        return native_prediction(row, masks, (aligned.shape[0], aligned.shape[1]), order, steps)

    def masks(self, gray: Gray, row: LabelledImage) -> list[Mask]:
        """Masks of no organelle at the aligned pixel size: disjoint, or one for each prompt, where they may overlap."""
        if self.settings.mode == "automatic":
            return self.automatic(gray)
        scale = [nm / self.model.config.pixel_size_nm for nm in row.pixel_size_nm]
        prompts = prompts_of(row, self.kind, seed=self.settings.seed, reference_ids=self.settings.reference_ids)
        return self.prompted(gray, [_rescaled(prompt, scale) for prompt in prompts])

    def automatic(self, gray: Gray) -> list[Mask]:
        """Disjoint masks of an aligned 8-bit image, the smaller of two on top, the background taken out."""
        shape = (gray.shape[0], gray.shape[1])
        grid, found = self.settings.grid, []
        for (y, x), (height, width) in self._windows(shape):
            masks = self.model.segment(gray[y : y + height, x : x + width], grid)
            found.append(Tile((y, x), (height, width), masks))
        masks = list(found[0].masks) if len(found) == 1 else stitch(found, shape, LinkRule(order="area"))
        return flat_masks(masks, shape, grid)

    def prompted(self, gray: Gray, prompts: Sequence[Prompt]) -> list[Mask]:
        """One mask for each prompt (positions in aligned pixels) that gets a non-empty answer."""
        shape = (gray.shape[0], gray.shape[1])
        windows = self._windows(shape)
        if len(windows) > 1:
            windows.append(((0, 0), shape))  # for what no tile holds
        asked: dict[int, list[Prompt]] = defaultdict(list)
        for prompt in prompts:
            asked[_best_window(prompt, windows)].append(prompt)
        found: list[Mask] = []
        for index, here in sorted(asked.items()):
            corner, (height, width) = windows[index]
            y, x = corner
            embedded = self.model.embed(gray[y : y + height, x : x + width])
            for batch in _alike(here, self.settings.grid.points_per_batch):
                logits, predicted = self.model.decode(embedded, _tensors(batch, corner), several=self.kind.is_ambiguous)
                best = predicted.argmax(dim=1)
                lines = torch.arange(len(batch), device=best.device)
                logits, predicted = logits[lines, best], predicted[lines, best]
                for part in torch.split(torch.arange(len(batch)), max(1, PIXELS_AT_A_TIME // (height * width))):
                    planes = (embedded.frame.upsample(logits[part]) > 0).cpu().numpy()
                    for plane, score in zip(planes, predicted[part].tolist(), strict=True):
                        mask = cut_to_box(plane, None, score, corner)
                        found += [] if mask is None else [clipped(mask)]
        return found

    def _windows(self, shape: tuple[int, int]) -> list[tuple[Corner, tuple[int, int]]]:
        """(first pixel, size) of the tiles, both (y, x)."""
        if max(shape) <= self.settings.tile:
            return [((0, 0), shape)]
        axes = [TileAxis.of(size, self.settings.tile, 0, self.settings.overlap) for size in shape]
        edges = (axes[0].edge, axes[1].edge)
        return [((y, x), edges) for y, x in itertools.product(*(axis.starts for axis in axes))]


def native_prediction(
    row: LabelledImage, masks: Iterable[Mask], shape: tuple[int, int], order: str, steps: Sequence[float]
) -> Prediction:
    """Paint masks of ``shape`` on the image's own grid; ``order`` is a key of ``masks.PAINT_ORDERS``.

    ``steps`` are the edges of a native pixel in pixels of ``shape``. Either all masks have an organelle, or none has:
    then the instances have a confidence each, and no organelle.
    """
    flat = disjoint(masks, shape, order=order)
    nameless = any(mask.organelle is None for mask in flat)
    if nameless:  # ``native_masks`` is for models that tell organelles apart
        flat = [dataclasses.replace(mask, organelle=Organelle.MITO) for mask in flat]
    found = native_masks(row.record_id, (flat, shape), (row.image.shape[0], row.image.shape[1]), list(steps))
    return dataclasses.replace(found, organelle_of={}) if nameless else found


def _rescaled(prompt: Prompt, scale: Sequence[float]) -> Prompt:
    """Bring positions to aligned pixels; centres stay centres."""
    y, x = scale
    points = (prompt.points + 0.5) * [y, x] - 0.5
    y0, x0, y1, x1 = prompt.box
    # outer edges of the object, minus half an aligned pixel on each side: its first and last pixels' centres
    box = (y0 * y, x0 * x, max(y0 * y, (y1 + 1) * y - 1), max(x0 * x, (x1 + 1) * x - 1))
    return dataclasses.replace(prompt, points=points, box=box)


def _best_window(prompt: Prompt, windows: Sequence[tuple[Corner, tuple[int, int]]]) -> int:
    """The window that shows most around the object, among those that hold all of its box; else the last one.

    The first window of equals; a window's edge counts also where it is the image's own.
    """
    y0, x0, y1, x1 = prompt.box
    room = [min(y0 - y, x0 - x, y + height - 1 - y1, x + width - 1 - x1) for (y, x), (height, width) in windows[:-1]]
    best = int(np.argmax(room)) if room else 0
    return best if room and room[best] > -0.5 else len(windows) - 1


def _alike(prompts: Iterable[Prompt], size: int) -> Iterator[list[Prompt]]:
    """Batches of prompts with as many points each: near the image's edge an object may have fewer negatives."""
    groups: dict[int, list[Prompt]] = defaultdict(list)
    for prompt in prompts:
        groups[len(prompt.points)].append(prompt)
    for _, group in sorted(groups.items()):
        for start in range(0, len(group), size):
            yield group[start : start + size]


def _tensors(prompts: Sequence[Prompt], corner: Corner) -> PromptBatch:
    shift = np.array(corner)
    boxes = points = labels = None
    if prompts[0].with_box:
        ends = np.array([prompt.box for prompt in prompts]).reshape(-1, 2, 2) - shift
        boxes = torch.from_numpy(ends[..., ::-1].reshape(-1, 4).astype(np.float32))
    if len(prompts[0].points):
        places = np.stack([prompt.points for prompt in prompts]) - shift
        points = torch.from_numpy(places[..., ::-1].astype(np.float32))
        labels = torch.from_numpy(np.stack([prompt.labels for prompt in prompts]))
    return PromptBatch(points, labels, boxes)


def _voter(checkpoint: str, model: Sam, device: torch.device) -> Predictor:
    voter = load_trained(checkpoint)
    names = [name for name in voter.map_names if name in ORGANELLES] if voter.output == "maps" else []
    if not names or voter.ndim != 2 or voter.config.pixel_size_nm != model.config.pixel_size_nm:
        raise InputError(
            f"{checkpoint} cannot say what the masks are",
            found=f"{voter.name}: {voter.output}, {voter.ndim}D, {voter.config.pixel_size_nm:g} nm per pixel",
            expected=f"a 2D model of organelle maps at {model.config.pixel_size_nm:g} nm per pixel, such as unet",
        )
    return Predictor(voter, device=device)


def _about(voter: Predictor, checkpoint: str) -> dict[str, Any]:
    return {
        "model": voter.model.name,
        "checkpoint": name_without_path(checkpoint),
        "weights_sha256": weights_digest(voter.model),
        **voter.settings.recorded(),
    }
