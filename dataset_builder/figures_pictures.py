"""Pictures of a dataset: example instances as surfaces (paper, Fig. 4) and labelled images of every source (Fig. 5)."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from dataset_builder.figures_canvas import (
    BAND,
    DENSITY,
    INK,
    ORGANELLE_COLOUR,
    ORGANELLE_TITLE,
    SOFT,
    WIDTH,
    Canvas,
    length_text,
    shortened,
    size_text,
    text_width,
)
from dataset_builder.figures_summary import SIZES, Example, RowPlace, Summary
from em_bench_eval.colours import instance_colours
from em_bench_eval.pictures import ignore_layer, scale_bar
from em_bench_eval.rows import LabelledImage, decode_row
from em_bench_eval.schema import Organelle
from em_bench_eval.spacing import multiscales
from em_bench_eval.volume_io import open_volume
from lpa.mesh import mesh_of, render
from lpa.pictures import fill_layer, gray_levels, gray_picture, over, resized, shown_shape

MARGIN = 14.0
MESH_HEIGHT, NAME_WIDTH = 150.0, 92.0
LEAST_VOXELS = 16  # along the longest side of what is drawn
MESH_VOXELS = 2**25  # read for one instance; larger ones are read from a coarser level
TILE, PER_SHEET = 250.0, 6  # points of an image's longer side, sources a sheet


def meshes(summary: Summary) -> Canvas:
    """One row an organelle: a small, a middle and the largest instance, each scaled to its cell."""
    rows = [organelle for organelle in summary.organelles() if organelle in summary.examples]
    width = (WIDTH - 2 * MARGIN - NAME_WIDTH) / len(SIZES)
    canvas = Canvas(WIDTH, 52 + max(1, len(rows)) * (MESH_HEIGHT + 36))
    count = sum(len({example.instance_id for example in summary.examples[row].values()}) for row in rows)
    canvas.text(MARGIN, 15, f"Example instances (n = {count}), each at its own scale", 13, strong=True)
    heads = ("small: 10 % are smaller", "middle: half are smaller", "large: the largest")
    for column, head in enumerate(heads):
        canvas.text(MARGIN + NAME_WIDTH + column * width + 6, 38, head, 10, SOFT)
    with tqdm(total=len(rows) * len(SIZES), desc="meshes", unit="mesh", file=sys.stderr, disable=None) as bar:
        for row, organelle in enumerate(rows):
            y = 52 + row * (MESH_HEIGHT + 36)
            canvas.text(MARGIN, y + MESH_HEIGHT / 2, ORGANELLE_TITLE[organelle], 12, strong=True)
            shown: set[tuple[str, int]] = set()
            for column, name in enumerate(SIZES):
                example = summary.examples[organelle][name]
                key = (example.volume_id, example.instance_id)
                if key not in shown:  # fewer than three instances
                    _mesh(canvas, MARGIN + NAME_WIDTH + column * width, y, width - 8, example, organelle, summary)
                shown.add(key)
                bar.update()
    return canvas


def _mesh(
    canvas: Canvas, x: float, y: float, width: float, example: Example, organelle: Organelle, summary: Summary
) -> None:
    canvas.box(x, y, width, MESH_HEIGHT, BAND)
    mask, voxel_nm = read_instance(summary, example)
    if mask.any():
        shape = (round((MESH_HEIGHT - 30) * DENSITY), round((width - 12) * DENSITY))
        picture, pixel_nm = render(mesh_of(*finer(mask, voxel_nm)), ORGANELLE_COLOUR[organelle], shape)
        canvas.paste(x + 6, y + 5, picture)
        bar = scale_bar(shape[1] * pixel_nm)
        nm = bar.fraction * shape[1] * pixel_nm
        canvas.scale_bar(x + width - 8, y + MESH_HEIGHT - 8, bar.fraction * (width - 12), length_text(nm))
    else:
        canvas.text(
            x + width / 2, y + MESH_HEIGHT / 2, "too thin for the coarser level it is read from", 10, SOFT, "mm"
        )
    cut = ", cut by the border" if example.touches_border else ""
    canvas.text(x + 2, y + MESH_HEIGHT + 9, f"{size_text(example.volume_nm3, 3)}, {example.voxels:,} voxels{cut}", 10)
    where = f"{example.volume_id} #{example.instance_id}"
    canvas.text(x + 2, y + MESH_HEIGHT + 22, shortened(where, width - 4, 9), 9, SOFT)


def finer(
    mask: npt.NDArray[np.bool_], voxel_nm: tuple[float, float, float]
) -> tuple[npt.NDArray[np.bool_], tuple[float, float, float]]:
    """Repeat the voxels of a small mask until there are enough along it: the renderer wants small triangles."""
    longest = max(size * edge for size, edge in zip(mask.shape, voxel_nm, strict=True))
    times = [max(1, math.ceil(edge / (longest / LEAST_VOXELS))) for edge in voxel_nm]
    for axis, count in enumerate(times):
        mask = np.repeat(mask, count, axis)
    z, y, x = (edge / count for edge, count in zip(voxel_nm, times, strict=True))
    return mask, (z, y, x)


def read_instance(summary: Summary, example: Example) -> tuple[npt.NDArray[np.bool_], tuple[float, float, float]]:
    """Read the mask of an instance within its box from the finest level that ``MESH_VOXELS`` allows."""
    listed = summary.volumes[example.volume_id]
    labels = summary.folder / listed["zarr"] / "labels" / "instances"
    low, high = np.array(example.bbox[:3]), np.array(example.bbox[3:])
    finest = np.array(listed["voxel_size_nm"])
    pyramid = multiscales(open_volume(labels).attributes)
    assert pyramid is not None, "the builder writes pyramids"
    for number, level in enumerate(pyramid["datasets"]):
        volume = open_volume(labels / level["path"])
        size = np.array(list(volume.voxel_size_nm or finest))
        start = np.floor(low * finest / size).astype(int)
        stop = np.minimum(np.maximum(np.ceil(high * finest / size), start + 1), volume.shape).astype(int)
        if np.prod(stop - start) <= MESH_VOXELS or number == len(pyramid["datasets"]) - 1:
            break
    box = tuple(slice(a, b) for a, b in zip(start.tolist(), stop.tolist(), strict=True))
    z, y, x = size.tolist()
    return np.asarray(volume[box] == example.instance_id), (z, y, x)


@dataclass(frozen=True)
class Shown:
    """One row of the contact sheet."""

    source: str
    row: LabelledImage
    about: str


def overlays(summary: Summary) -> Iterator[Canvas]:
    """Contact sheets with the most telling image of every source: image, organelles, instances."""
    sources = [source for source in summary.sources if source in summary.best_row]
    sheets = [sources[first : first + PER_SHEET] for first in range(0, len(sources), PER_SHEET)]
    for number, names in enumerate(sheets, start=1):
        rows = [_shown(source, summary.best_row[source]) for source in names]
        shapes = [_tile_shape(entry.row) for entry in rows]
        heights = [shape[0] / DENSITY + 34 for shape in shapes]
        canvas = Canvas(WIDTH, 58 + sum(heights))
        part = f", sheet {number} of {len(sheets)}" if len(sheets) > 1 else ""
        canvas.text(MARGIN, 15, f"One image of every source (n = {len(sources)}){part}", 13, strong=True)
        _legend(canvas)
        y = 58.0
        for entry, shape, height in zip(rows, shapes, heights, strict=True):
            _overlay_row(canvas, y, entry, shape)
            y += height
        yield canvas


def _shown(source: str, place: RowPlace) -> Shown:
    import pyarrow.parquet as pq

    with pq.ParquetFile(place.file) as file:
        row = file.read_row_group(place.row_group).slice(place.row, 1).to_pylist()[0]
    return Shown(source, decode_row(row), f"{row['cell_type']}, {row['modality']}")


def _tile_shape(row: LabelledImage) -> tuple[int, int]:
    height, width = row.image.shape
    return shown_shape((height, width), row.pixel_size_nm, round(TILE * DENSITY))


def _legend(canvas: Canvas) -> None:
    x = MARGIN
    for head in ("image", "organelles:"):
        canvas.text(x if head == "image" else MARGIN + TILE + 14, 38, head, 10, SOFT)
    x = MARGIN + TILE + 14 + text_width("organelles:", 10) + 6
    short = {Organelle.MITO: "mito", Organelle.ENDO: "endo"}
    for organelle, colour in ORGANELLE_COLOUR.items():
        name = short.get(organelle, ORGANELLE_TITLE[organelle])
        canvas.box(x, 33, 9, 9, colour)
        canvas.text(x + 12, 38, name, 9)
        x += 16 + text_width(name, 9)
    text = "instances; hatched: nobody annotated"
    canvas.text(MARGIN + 2 * (TILE + 14), 38, text, 10, SOFT)


def _overlay_row(canvas: Canvas, y: float, entry: Shown, shape: tuple[int, int]) -> None:
    row = entry.row
    levels = gray_levels(np.where(row.ignore, np.median(row.image), row.image)[np.newaxis])
    has_image = bool(row.image.min() < row.image.max())  # a label-only source has a constant one
    gray = gray_picture(row.image if has_image else None, shape, levels)
    ids = resized(row.instances, shape)
    kinds = {id_: ORGANELLE_COLOUR[organelle] for id_, organelle in row.organelle_of.items()}
    numbers = instance_colours(range(len(row.organelle_of)))
    own = {id_: numbers[place] for place, id_ in enumerate(sorted(row.organelle_of))}
    ignored = resized(row.ignore, shape)
    pictures = [np.repeat(gray[..., np.newaxis], 3, axis=2)]
    for colours in (kinds, own):
        pictures.append(_over(over(gray, fill_layer(ids, colours)), ignore_layer(ignored)))
    for column, picture in enumerate(pictures):
        canvas.paste(MARGIN + column * (TILE + 14), y, picture)
    if not has_image:
        canvas.text(MARGIN + TILE / 2, y + TILE / 2, "labels only: no image", 11, anchor="mm")
    nm = max(size * edge for size, edge in zip(row.image.shape, row.pixel_size_nm, strict=True)) / max(shape)
    bar = scale_bar(shape[1] * nm)
    width = bar.fraction * shape[1] / DENSITY
    right, lower = MARGIN + shape[1] / DENSITY - 6, y + shape[0] / DENSITY - 8
    label = length_text(bar.fraction * shape[1] * nm)
    plate = max(width, text_width(label, 9)) + 6
    canvas.box(right - plate + 3, lower - 15, plate, 20, (255, 255, 255))
    canvas.scale_bar(right, lower, width, label)
    pixel = " x ".join(f"{edge:g}" for edge in dict.fromkeys(row.pixel_size_nm))
    counts = ", ".join(
        f"{sum(kind is organelle for kind in row.organelle_of.values())} {organelle}"
        for organelle in Organelle
        if organelle in row.annotated
    )
    share = f"; {row.ignore.mean():.0%} not annotated" if row.ignore.any() else ""
    below = y + shape[0] / DENSITY
    canvas.text(MARGIN, below + 10, entry.source, 11, INK, strong=True)
    about = f"{entry.about}, {pixel} nm/px; {counts or 'nothing'} annotated{share}; {row.record_id}"
    x = MARGIN + text_width(entry.source, 11) + 10
    canvas.text(x, below + 10, shortened(about, WIDTH - x - MARGIN, 10), 10, SOFT)


def _over(picture: npt.NDArray[np.uint8], layer: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    alpha = layer[..., 3:].astype(np.float32) / 255
    return np.asarray(np.rint(picture * (1 - alpha) + layer[..., :3] * alpha), np.uint8)
