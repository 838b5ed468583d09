"""Pictures for the report: an EM image and transparent layers of coloured instances that a page stacks on top.

The image is stored once as a gray PNG and every organelle as its own small RGBA PNG, so that a page can fade, switch
and blink the layers without a second copy of the image. Match, miss and false detection differ by pattern, not only by
colour. ``PIL`` is imported inside the functions that use it.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from em_bench_eval.align import aligned_shape, resize_image, resize_labels
from em_bench_eval.colours import Rgb, outline_colours
from em_bench_eval.comparison import Drawing, Mark
from em_bench_eval.schema import Organelle

LONGEST_SIDE = 640  # pixels of a stored picture
SHORTEST_LONGEST_SIDE = 384  # smaller images are enlarged to this, so that outlines stay thin beside the instances
FILL_ALPHA, FAINT_ALPHA = 125, 45
MISS_COLOUR = (200, 0, 30, 255)
HATCH_PERIOD, HATCH_WIDTH, DASH = 9, 3, 5  # pixels of a stored picture

Rgba = npt.NDArray[np.uint8]  # (y, x, 4)
Labels = npt.NDArray[np.integer[Any]]  # (y, x), 0 = background


@dataclass(frozen=True)
class ScaleBar:
    """A round length and the share of the picture's width that it takes."""

    label: str  # "500 nm", "2 µm"
    fraction: float


@dataclass(frozen=True)
class Picture:
    """What a page needs to show one image; every PNG has the same ``(y, x)`` size."""

    shape: tuple[int, int]
    image_png: bytes
    ignore_png: bytes | None
    reference_png: dict[Organelle, bytes]
    prediction_png: dict[Organelle, bytes]
    scale_bar: ScaleBar
    cropped: bool  # True: only the annotated part of the image is shown


def draw(
    image: npt.NDArray[np.uint8],
    ignore: npt.NDArray[np.bool_],
    pixel_size_nm: tuple[float, float],
    reference: Drawing,
    prediction: Drawing,
) -> Picture:
    """Draw one image: everything is ``(y, x)`` of one shape; ``ignore`` is True where nobody annotated.

    The picture shows square pixels (an anisotropic slice is stretched to its physical proportions), at most
    ``LONGEST_SIDE`` of them a side, and only the annotated part where that is much smaller than the image.
    """
    box = annotated_box(ignore)
    cropped = image[box].shape != image.shape
    shape, nm = display_shape((image[box].shape[0], image[box].shape[1]), pixel_size_nm)
    shown_ignore = resize_labels(ignore[box], shape).astype(bool)
    return Picture(
        shape=shape,
        image_png=encode_picture_png(stretch_contrast(resize_image(image[box], shape), ~shown_ignore)),
        ignore_png=encode_picture_png(ignore_layer(shown_ignore)) if shown_ignore.any() else None,
        reference_png=_layers(reference, box, shape),
        prediction_png=_layers(prediction, box, shape),
        scale_bar=scale_bar(shape[1] * nm),
        cropped=cropped,
    )


def annotated_box(ignore: npt.NDArray[np.bool_], margin: float = 0.04) -> tuple[slice, slice]:
    """Return the box of the annotated pixels with a margin, or the whole image if that would remove under 20 %."""
    whole = (slice(0, ignore.shape[0]), slice(0, ignore.shape[1]))
    if ignore.all() or not ignore.any():
        return whole
    box = []
    for axis, size in enumerate(ignore.shape):
        inside = np.flatnonzero(~ignore.all(axis=1 - axis))
        border = round(margin * (inside[-1] - inside[0] + 1))
        box.append(slice(max(0, int(inside[0]) - border), min(size, int(inside[-1]) + 1 + border)))
    if (box[0].stop - box[0].start) * (box[1].stop - box[1].start) > 0.8 * ignore.size:
        return whole
    return box[0], box[1]


def display_shape(shape: tuple[int, int], pixel_size_nm: tuple[float, float]) -> tuple[tuple[int, int], float]:
    """Return the ``(y, x)`` size of a stored picture and the nm that each of its square pixels covers."""
    extent_nm = max(size * nm for size, nm in zip(shape, pixel_size_nm, strict=True))
    longest = min(LONGEST_SIDE, max(SHORTEST_LONGEST_SIDE, extent_nm / min(pixel_size_nm)))
    return aligned_shape(shape, pixel_size_nm, extent_nm / longest), extent_nm / longest


def stretch_contrast(image: npt.NDArray[np.float32], counted: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint8]:
    """Map the 0.5 to 99.5 percentile of the counted pixels of a ``(y, x)`` image to 0..255, for display only."""
    low, high = np.percentile(image[counted] if counted.any() else image, (0.5, 99.5))
    scaled = (image - low) * (255.0 / max(float(high - low), 1.0))
    return np.asarray(np.clip(np.rint(scaled), 0, 255), np.uint8)


def instance_layer(instances: Labels, colour_of: Mapping[int, Rgb], mark_of: Mapping[int, Mark]) -> Rgba:
    """Paint instances ``(y, x)`` as RGBA: a translucent fill and a crisp darker outline inside the instance."""
    ids = np.unique(instances)
    ids = ids[ids > 0].astype(np.int64)
    position = np.searchsorted(ids, instances)  # background also gets one; ``inside`` removes it
    inside = instances > 0
    layer = np.zeros((*instances.shape, 4), np.uint8)
    if ids.size == 0:
        return layer
    position = np.where(inside, position, 0)
    colours = np.array([colour_of[int(id_)] for id_ in ids], np.uint8)
    mark_at = np.array([mark_of[int(id_)].value for id_ in ids])[position]
    faint = np.isin(mark_at, (Mark.MISSED.value, Mark.UNJUDGED.value))
    rows, columns = np.indices(instances.shape)
    layer[..., :3] = colours[position]
    layer[..., 3] = np.where(faint, FAINT_ALPHA, FILL_ALPHA)
    layer[(mark_at == Mark.UNMATCHED.value) & ((rows + columns) % HATCH_PERIOD < HATCH_WIDTH)] = (255, 255, 255, 215)
    edge = _inner_edge(instances)
    layer[edge, :3] = outline_colours(colours)[position[edge]]
    layer[edge, 3] = 255
    thick = edge | _inner_edge(np.where(edge, 0, instances))  # two pixels wide
    light = (rows // DASH + columns // DASH) % 2 == 0
    missed = thick & (mark_at == Mark.MISSED.value)
    layer[missed & ~light] = MISS_COLOUR
    layer[light & (missed | (thick & (mark_at == Mark.WEAK.value)))] = (255, 255, 255, 255)
    layer[~inside] = 0
    return layer


def ignore_layer(ignore: npt.NDArray[np.bool_]) -> Rgba:
    """Darken ``(y, x)`` pixels that nobody annotated, with thin hatching."""
    rows, columns = np.indices(ignore.shape)
    layer = np.zeros((*ignore.shape, 4), np.uint8)
    layer[ignore] = (16, 20, 28, 150)
    layer[ignore & ((rows - columns) % 12 < 1)] = (255, 255, 255, 110)
    return layer


def scale_bar(width_nm: float) -> ScaleBar:
    """Choose a round length (1, 2 or 5 times a power of ten) of at most a quarter of the picture's width."""
    limit = width_nm / 4
    power = 10.0 ** math.floor(math.log10(limit))
    length = max(step * power for step in (1, 2, 5) if step * power <= limit)
    return ScaleBar(f"{length / 1000:g} µm" if length >= 1000 else f"{length:g} nm", length / width_nm)


def _layers(drawing: Drawing, box: tuple[slice, slice], shape: tuple[int, int]) -> dict[Organelle, bytes]:
    shown = np.asarray(resize_labels(drawing.instances[box], shape), np.int64)
    layers = {}
    for organelle in Organelle:
        ids = [id_ for id_, kind in drawing.organelle_of.items() if kind is organelle]
        only = np.where(np.isin(shown, ids), shown, 0)
        if only.any():
            layers[organelle] = encode_picture_png(instance_layer(only, drawing.colour_of, drawing.mark_of))
    return layers


def _inner_edge(instances: Labels) -> npt.NDArray[np.bool_]:
    """Pixels of an instance that touch another value above, below, left or right; the image border is no edge."""
    edge = np.zeros(instances.shape, bool)
    for axis in (0, 1):
        ahead = np.diff(instances.astype(np.int64), axis=axis) != 0
        first, last = ((slice(None),) * axis + (part,) for part in (slice(None, -1), slice(1, None)))
        edge[first] |= ahead
        edge[last] |= ahead
    return np.asarray(edge & (instances > 0), np.bool_)


def encode_picture_png(array: npt.NDArray[np.uint8]) -> bytes:
    """Encode a gray ``(y, x)`` or RGBA ``(y, x, 4)`` picture as PNG, deterministically."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()
