"""Prediction of images: align, tile, blend or link, back to native resolution, decode, write; resumable by image."""

from __future__ import annotations

import os
import sys
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tqdm import tqdm

from baselines.decode import decode, native_maps
from baselines.image_pieces import Pieces
from baselines.masks import drop_small
from baselines.memory import Network, available_bytes
from baselines.memory_faults import out_of_memory_as_input_error
from baselines.model import Baseline
from baselines.pipeline import ahead
from baselines.prediction_settings import (
    DEFAULT,
    TileSettings,
    already_there,
    default_device,
    load_trained,
    prediction_info,
    say_what_cannot_be_scored,
)
from baselines.preprocess import network_input
from baselines.stitch_masks import Tile, stitch
from baselines.tiling import batched, tiled, tiles_of
from baselines.volumes.resample import Line
from em_bench_eval.errors import InputError
from em_bench_eval.rows import PREDICTIONS_FILE, LabelledImage, decode_row, open_rows
from em_bench_eval.schema import ORGANELLES, Prediction

Maps = npt.NDArray[np.float32]
FINISHERS = 4  # threads that decode and encode what the network has predicted
RESULT_SHARE = 0.25  # of a GPU's free memory; a larger image is blended in the machine's memory
IMAGE_REMEDY = "predict it as a volume, which is read and written block by block: em-bench predict --volume FILE"


class Predictor:
    """A trained model that predicts images of any size and pixel size."""

    def __init__(self, model: Baseline, settings: TileSettings = DEFAULT, device: torch.device | None = None):
        if settings.symmetries and model.output == "masks":
            raise InputError(
                f"--symmetries is not supported for {model.name}",
                found="a model that finds masks, which cannot be averaged",
                remedy="leave --symmetries away",
            )
        self.model, self.settings = model, settings.of(model)
        if model.ndim == 3:
            raise InputError(
                f"{model.name} is a 3D model and sees no single images",
                expected="volumes",
                remedy="predict the volumes of the split: --config volumes, or any volume: --volume FILE",
            )
        edge = -(-self.settings.tile // model.multiple) * model.multiple
        chosen = device or default_device()
        self.network = Network(model, chosen, (edge, edge), settings.batch_size, symmetries=settings.symmetries)

    def raw(self, aligned: Maps) -> Any:
        """Run the network over a normalised ``(y, x)`` image; what ``finish`` takes."""
        if self.model.output == "masks":
            return self._masks(aligned)
        return self.aligned_maps(aligned)

    def finish(self, raw: Any, row: LabelledImage) -> Prediction:
        """Bring what the network found to the image's native ``(y, x)`` grid, and make instances of it."""
        steps = self._steps(row.pixel_size_nm)
        shape = (row.image.shape[0], row.image.shape[1])
        if self.model.output == "masks":
            return native_masks(row.record_id, raw, shape, steps)
        nm, wanted = self.model.config.pixel_size_nm, self.settings.decoder
        maps = native_maps(self.model.map_names, raw, shape, row.pixel_size_nm, nm)
        return decode(row.record_id, maps, row.pixel_size_nm, wanted=wanted, network_nm=nm)

    def input_of(self, row: LabelledImage) -> Maps:
        """Align and normalise a row's image as in training."""
        config = self.model.config
        _check_room(row, len(ORGANELLES) + 2 if self.model.output == "masks" else len(self.model.map_names))
        return network_input(row.image, row.pixel_size_nm, config.pixel_size_nm, config.normalisation)

    def image(self, row: LabelledImage) -> Prediction:
        """Predict one decoded row; the prediction has the image's native ``(y, x)`` shape."""
        return self.finish(self.raw(self.input_of(row)), row)

    def maps(self, image: npt.NDArray[Any], pixel_size_nm: tuple[float, float]) -> Maps:
        """Blended maps ``(len(model.map_names), y, x)`` of a native image, at the model's aligned pixel size."""
        config = self.model.config
        return self.aligned_maps(network_input(image, pixel_size_nm, config.pixel_size_nm, config.normalisation))

    def aligned_maps(self, aligned: Maps) -> Maps:
        """Blended maps of an aligned, normalised ``(y, x)`` image."""
        channels, settings = len(self.model.map_names), self.settings
        where = self.network.device
        if where.type != "cpu" and aligned.size * 4 * channels > RESULT_SHARE * available_bytes(where):
            where = torch.device("cpu")
        what = f"blending {channels} maps of {aligned.shape[0]} x {aligned.shape[1]} pixels"
        with out_of_memory_as_input_error(what, IMAGE_REMEDY):
            found = tiled(
                lambda tiles: self.network.maps(tiles).to(where),
                torch.from_numpy(aligned).to(where),
                channels,
                tile=settings.tile,
                margin=settings.margin,
                overlap=settings.overlap,
                multiple=self.model.multiple,
                batch_size=self.network.batch_size,
            )
            return found.cpu().numpy()

    def _masks(self, aligned: Maps) -> Any:
        settings = self.settings
        cut = tiles_of(
            aligned,
            tile=settings.tile,
            margin=settings.margin,
            overlap=settings.overlap,
            multiple=self.model.multiple,
        )
        found: list[Tile] = []
        for batch in batched(cut, self.network.batch_size):
            tiles = torch.from_numpy(np.stack([tile for _, tile in batch])[:, None])
            for (corner, tile), masks in zip(batch, self.network.masks(tiles), strict=True):
                found.append(Tile(corner, (tile.shape[0], tile.shape[1]), masks))
        shape = (aligned.shape[0], aligned.shape[1])
        nm = self.model.config.pixel_size_nm
        return drop_small(stitch(found, shape), (nm, nm)), shape

    def _steps(self, pixel_size_nm: tuple[float, float]) -> list[float]:
        """Edge of a native pixel in aligned pixels: the inverse of what ``align_image`` did, so nothing shifts."""
        return [nm / self.model.config.pixel_size_nm for nm in pixel_size_nm]


def predict(
    checkpoint: str,
    dataset: str,
    config: str,
    split: str,
    out: str | os.PathLike[str],
    settings: TileSettings = DEFAULT,
    *,
    overwrite: bool = False,
    device: torch.device | None = None,
) -> int:
    """Predict every image of a split into the folder ``out``; return the number of images.

    Only organelles that were annotated in the model's training data are predicted. If ``out`` already holds the
    prediction of the same weights on the same images nothing is done; other predictions there are an ``InputError``
    unless ``overwrite``. Finished images of an interrupted prediction are kept, and the same call goes on after them.
    """
    model = load_trained(checkpoint)
    settings = settings.of(model)
    rows = open_rows(dataset, config, split)
    info = prediction_info(model, checkpoint, dataset, config, split, settings)
    if (Path(out) / PREDICTIONS_FILE).exists() and not overwrite:
        return already_there(out, info)
    say_what_cannot_be_scored(model, rows, f"{config}/{split}")
    pieces = Pieces(out, info)
    done = {index for index, row in enumerate(rows) if pieces.has(index, row)} if pieces.folder.exists() else set()
    todo = [index for index in range(len(rows)) if index not in done]
    if todo:
        sizes = image_pixels(rows)
        with tqdm(
            total=sum(sizes), initial=sum(sizes[index] for index in done), unit="px", unit_scale=True, smoothing=0.1
        ) as bar:
            bar.set_description(f"predict {model.name}")
            try:
                _predict_rows(Predictor(model, settings, device), rows, todo, pieces, lambda i: bar.update(sizes[i]))
            except BaseException:
                finished = len(rows) - len(todo) + sum(pieces.has(index, rows[index]) for index in todo)
                bar.write(f"{finished} of {len(rows)} images are kept: the same command goes on after them", sys.stderr)
                raise
    return pieces.assemble(len(rows))


def _predict_rows(
    predictor: Predictor, rows: Any, todo: list[int], pieces: Pieces, done: Callable[[int], object]
) -> None:
    """Read, predict and write in three stages at once, so that the network does not wait for PNG and watershed."""
    lock = threading.Lock()

    def read(index: int) -> tuple[int, Any, LabelledImage, Maps]:
        row = rows[index]
        decoded = decode_row({**row, "instances": None, "ignore": None})  # no reference is looked at
        return index, row, decoded, predictor.input_of(decoded)

    def finish(index: int, row: Any, decoded: LabelledImage, raw: Any) -> None:
        pieces.write(index, row, predictor.finish(raw, decoded))
        with lock:
            done(index)

    workers = min(FINISHERS, max(1, (os.cpu_count() or 1) - 1))
    with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(workers) as finisher:
        pending: deque[Future[None]] = deque()
        for index, row, decoded, aligned in ahead(reader, read, todo):
            pending.append(finisher.submit(finish, index, row, decoded, predictor.raw(aligned)))
            while len(pending) > workers:
                pending.popleft().result()
        for future in pending:
            future.result()


def native_masks(record_id: str, found: Any, shape: tuple[int, int], steps: list[float]) -> Prediction:
    """Paint disjoint masks on the native grid of ``shape``: a pixel is in a mask that covers at least half of it.

    A mask is resampled as an image is, so its outline stays where it was to a fraction of a pixel.
    """
    masks, aligned_shape = found
    nameless = sum(mask.organelle is None for mask in masks)
    if nameless:
        raise InputError(
            "the model finds masks without saying of which organelle",
            found=f"{nameless} of {len(masks)} masks",
            expected="a model that tells organelles apart",
            remedy="train one on organelles, or score masks class-agnostically",
        )
    lines = [Line(old, new, step) for old, new, step in zip(aligned_shape, shape, steps, strict=True)]
    instances, share = np.zeros(shape, np.uint32), np.full(shape, 0.5, np.float32)
    for number, mask in enumerate(masks, start=1):
        spans, windows = [], []
        for line, low, high in zip(lines, mask.box[:2], mask.box[2:], strict=True):
            span = (max(0, int(low / line.step) - 1), min(line.new, int(high / line.step) + 2))
            spans.append(span)
            windows.append(line.needs(*span))
        (y0, y1), (x0, x1) = windows
        # the window reaches beyond the mask, except where a tap of the resampling is all that it needs
        top, left = min(y0, mask.box[0]), min(x0, mask.box[1])
        plane = np.zeros((max(y1, mask.box[2]) - top, max(x1, mask.box[3]) - left), np.float32)
        plane[mask.box[0] - top : mask.box[2] - top, mask.box[1] - left : mask.box[3] - left] = mask.mask
        soft = lines[1].apply(lines[0].apply(plane, top, *spans[0], 0), left, *spans[1], 1)
        place = (slice(*spans[0]), slice(*spans[1]))
        mine = soft >= share[place]
        instances[place][mine] = number
        share[place][mine] = soft[mine]
    left_over = np.unique(instances[instances > 0]).tolist()
    name = np.zeros(len(masks) + 1, np.uint32)
    name[left_over] = np.arange(1, len(left_over) + 1)
    kept = [(int(name[number]), masks[number - 1]) for number in left_over]
    return Prediction(
        record_id,
        name[instances],
        {number: mask.organelle for number, mask in kept if mask.organelle is not None},
        {number: float(np.clip(mask.score, 0.0, 1.0)) for number, mask in kept},
    )


def image_pixels(rows: Any) -> list[int]:
    """Number of pixels of each row's image, from the headers of its PNG files: nothing is decoded."""
    sizes: list[int] = []
    for batch in rows.select_columns(["image"]).with_format("arrow").iter(batch_size=64):
        for cell in batch["image"].combine_chunks().field("bytes"):
            head = cell.as_buffer()[16:24].to_pybytes() if cell.is_valid else b""
            sizes.append(int.from_bytes(head[:4], "big") * int.from_bytes(head[4:], "big"))
    return sizes


def _check_room(row: LabelledImage, channels: int) -> None:
    """Refuse an image that memory cannot hold before the machine begins to swap."""
    needed = row.image.size * (12 * channels + 8)  # maps at both sizes while they are resampled
    if needed > (free := available_bytes()):
        raise InputError(
            f"{row.record_id} does not fit into memory",
            found=f"{row.image.shape[0]} x {row.image.shape[1]} pixels, about {needed / 1e9:.1f} GB of "
            f"{channels} maps; {free / 1e9:.1f} GB free",
            remedy=IMAGE_REMEDY,
        )
