"""Pictures of instances for the preview: one colour per instance, slices, close-ups. ``PIL`` is imported on use."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Rgb = tuple[int, int, int]
Labels = npt.NDArray[Any]  # (row, column) ids, 0 = background

GRAY = 119  # where there is no image
FILL, FAINT, STRONG = 125, 60, 150  # opacity of 255
OUTLINE = 0.72  # of the fill colour
TURN_DEGREES = 137.507764  # golden angle: neighbours in number are far apart in hue
LIGHTNESS, CHROMA = (0.58, 0.75, 0.82, 0.64, 0.70), 0.16


@dataclass(frozen=True)
class Plane:
    """A slice: which axis it cuts, where, and the edge lengths of its pixels."""

    axis: int  # 0, 1, 2 for z, y, x
    index: int
    pixel_nm: tuple[float, float]  # (row, column)

    @staticmethod
    def of(axis: int, index: int, voxel_nm: tuple[float, float, float]) -> Plane:
        """Cut ``axis`` at ``index``."""
        row, column = (edge for k, edge in enumerate(voxel_nm) if k != axis)
        return Plane(axis, index, (row, column))

    def cut(self, volume: Any, box: tuple[slice, slice] = (slice(None), slice(None))) -> npt.NDArray[Any]:
        """Read the slice, or a box of it."""
        index: list[Any] = list(box)
        index.insert(self.axis, self.index)
        return np.asarray(volume[tuple(index)])


def colour_of(number: int) -> Rgb:
    """Colour of the instance at a place in ascending order of id: golden-angle hues in OKLCH (Ottosson 2020)."""
    lightness = LIGHTNESS[number % len(LIGHTNESS)]
    angle = math.radians(number * TURN_DEGREES)
    chroma = CHROMA
    while True:
        rgb = _linear_rgb(lightness, chroma * math.cos(angle), chroma * math.sin(angle))
        if (rgb >= -1e-3).all() and (rgb <= 1.001).all():
            break
        chroma -= 0.01  # sRGB shows fewer colours than there are; gray is always one of them
    rgb = np.clip(rgb, 0, 1)
    encoded = np.where(rgb <= 0.0031308, 12.92 * rgb, 1.055 * rgb ** (1 / 2.4) - 0.055)
    red, green, blue = np.rint(255 * encoded).astype(int).tolist()
    return red, green, blue


def _linear_rgb(lightness: float, a: float, b: float) -> npt.NDArray[np.float64]:
    long = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3
    medium = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3
    short = (lightness - 0.0894841775 * a - 1.2914855480 * b) ** 3
    return np.array(
        [
            4.0767416621 * long - 3.3077115913 * medium + 0.2309699292 * short,
            -1.2684380046 * long + 2.6097574011 * medium - 0.3413193965 * short,
            -0.0041960863 * long - 0.7034186147 * medium + 1.7076147010 * short,
        ]
    )


def fill_layer(labels: Labels, colours: Mapping[int, Rgb], alpha_of: Mapping[int, int] | int = FILL) -> Any:
    """RGBA ``(row, column, 4)``: translucent instances with darker outlines; ids without a colour are left out."""
    ids, place = np.unique(labels, return_inverse=True)
    place = place.reshape(labels.shape)
    palette = np.zeros((len(ids), 4), np.uint8)
    for row, id_ in enumerate(ids.tolist()):
        if id_ and id_ in colours:
            alpha = alpha_of if isinstance(alpha_of, int) else alpha_of.get(id_, FILL)
            palette[row] = (*colours[id_], alpha)
    layer = palette[place]
    edge = inner_edge(labels) & (layer[..., 3] > FAINT)
    layer[edge, :3] = np.rint(layer[edge, :3] * OUTLINE)
    layer[edge, 3] = 255
    return layer


def inner_edge(labels: Labels) -> npt.NDArray[np.bool_]:
    """Pixels of an instance with another value above, below, left or right; the border of the picture is no edge."""
    edge = np.zeros(labels.shape, bool)
    for axis in (0, 1):
        first, last = ((slice(None),) * axis + (part,) for part in (slice(None, -1), slice(1, None)))
        differs = labels[first] != labels[last]
        edge[first] |= differs
        edge[last] |= differs
    return np.asarray(edge & (labels != 0), np.bool_)


def shown_shape(shape: tuple[int, int], pixel_nm: tuple[float, float], longest: int) -> tuple[int, int]:
    """Size of the picture in square pixels, with ``longest`` on its longer side."""
    extent = [size * edge for size, edge in zip(shape, pixel_nm, strict=True)]
    height, width = (max(1, round(longest * length / max(extent))) for length in extent)
    return height, width


def resized(labels: Labels, shape: tuple[int, int]) -> Labels:
    """Nearest-pixel resampling."""
    rows, columns = (
        np.minimum(((np.arange(new) + 0.5) * old / new).astype(np.intp), old - 1)
        for new, old in zip(shape, labels.shape, strict=True)
    )
    return np.asarray(labels[np.ix_(rows, columns)])


def gray_picture(
    image: npt.NDArray[Any] | None, shape: tuple[int, int], levels: tuple[float, float]
) -> npt.NDArray[np.uint8]:
    """Resample a slice of the image to ``shape`` and map ``levels`` to 0..255; mid-gray where there is no image."""
    if image is None:
        return np.full(shape, GRAY, np.uint8)
    from PIL import Image

    height, width = shape
    picture = Image.fromarray(image.astype(np.float32))
    smooth = np.asarray(picture.resize((width, height), Image.Resampling.BILINEAR))  # averages where it shrinks
    low, high = levels
    return np.asarray(np.clip(np.rint((smooth - low) * (255 / max(high - low, 1e-9))), 0, 255), np.uint8)


def gray_levels(image: Any) -> tuple[float, float]:
    """The 0.5 and 99.5 percentile of up to nine slices of a ``(z, y, x)`` image, for display only."""
    places = np.unique(np.linspace(0, image.shape[0] - 1, 9).astype(int))
    sample = np.concatenate([np.asarray(image[int(z)])[::2, ::2].ravel() for z in places]).astype(np.float64)
    low, high = np.percentile(sample[np.isfinite(sample)], (0.5, 99.5)).tolist()
    return low, high


def over(gray: npt.NDArray[np.uint8], layer: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Compose an RGBA layer over a gray picture; RGB."""
    alpha = layer[..., 3:].astype(np.float32) / 255
    mixed = gray[..., np.newaxis] * (1 - alpha) + layer[..., :3] * alpha
    return np.asarray(np.rint(mixed), np.uint8)


def data_uri(array: npt.NDArray[np.uint8], lossy: bool = False) -> str:
    """Encode a gray, RGB or RGBA picture for an ``img``; lossy: JPEG, for gray and RGB photographs."""
    from PIL import Image

    buffer, picture = io.BytesIO(), Image.fromarray(array)
    if lossy:
        picture.save(buffer, format="JPEG", quality=86)
    else:
        picture.save(buffer, format="PNG", compress_level=7)
    return f"data:image/{'jpeg' if lossy else 'png'};base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def scale_bar(width_nm: float, share: float = 0.25) -> tuple[str, float]:
    """A round length (1, 2 or 5 times a power of ten) of at most ``share`` of the width, and its share."""
    limit = width_nm * share
    power = 10.0 ** math.floor(math.log10(limit))
    length = max(step * power for step in (1, 2, 5) if step * power <= limit)
    return f"{length / 1000:g} µm" if length >= 1000 else f"{length:g} nm", length / width_nm
