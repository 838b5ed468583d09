"""Normalising a volume part by part: gray limits that depend on the slice or volume only, never on the part.

A slice of up to ``EXACT_PIXELS`` is normalised exactly as ``baselines.preprocess`` normalises an image of it. Larger
slices, and volumes for 3D models, get their limits from evenly spaced samples: reading all of them first would take as
long as predicting them on a fast GPU, and two million samples know a percentile to a small part of a gray level.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from baselines.preprocess import normalisation
from baselines.volumes.resample import Line
from em_bench_eval.errors import InputError
from em_bench_eval.schema import Array3D

Values = npt.NDArray[np.float32]
Limits = tuple[float, float]

EXACT_PIXELS = 1 << 25
WINDOWS, WINDOW = 8, 192  # samples of a large slice: WINDOWS x WINDOWS windows of this edge, aligned
SLICES = 32  # samples of a volume, strided within to about SAMPLED pixels each
SAMPLED = 1 << 16


@dataclass(frozen=True)
class Scale:
    """A normalisation in two steps: what it takes from the whole image, and what it does to any part of it."""

    limits: Callable[[npt.NDArray[Any]], Limits]
    apply: Callable[[Values, Limits], Values]


def _percentiles(image: npt.NDArray[Any]) -> Limits:
    low, high = np.percentile(image.astype(np.float32, copy=False), (1, 99))
    return float(low), float(high)


def _between(values: Values, limits: Limits) -> Values:
    low, high = limits
    if high <= low:
        return np.zeros(values.shape, np.float32)
    scaled = (values - np.float32(low)) * np.float32(2.0 / (high - low)) - np.float32(1.0)
    return np.clip(scaled, -1.5, 1.5, out=scaled)


# those of preprocess.NORMALISATIONS that look at the image; the others are the same for every pixel (a test holds it)
SCALES: Mapping[str, Scale] = {"percentile-1-99": Scale(_percentiles, _between)}


@dataclass
class Gray:
    """Normalises parts of a volume that is sliced along its first axis."""

    name: str  # key of preprocess.NORMALISATIONS
    image: Array3D  # (slice, row, column), native
    lines: tuple[Line, Line, Line]  # native -> aligned
    by_volume: bool  # one pair of limits for all slices: what 3D models get
    _limits: dict[int, Limits] = field(default_factory=dict)

    def __post_init__(self) -> None:
        normalisation(self.name)
        if self.name not in SCALES and np.dtype(self.image.dtype) != np.uint8:
            raise InputError(
                f"the normalisation {self.name} needs gray values of 0 to 255",
                found=f"{self.image.dtype}",
                expected="uint8",
                remedy="convert the volume to 8 bit, black at 0 and white at 255",
            )

    def normalise(self, values: Values, first: int, is_whole: bool) -> Values:
        """Normalise aligned ``(slice, row, column)`` values; ``first`` is the number of the first slice.

        ``is_whole``: the values are complete slices, so that no other pixels need be read for their limits.
        """
        scale = SCALES.get(self.name)
        if scale is None:
            return normalisation(self.name).of(values)
        if self.by_volume:
            return scale.apply(values, self._of_volume(scale))
        return np.stack(
            [
                scale.apply(plane, self._of_slice(scale, number, plane if is_whole else None))
                for number, plane in enumerate(values, first)
            ]
        )

    def _of_slice(self, scale: Scale, number: int, whole: Values | None) -> Limits:
        if number not in self._limits:
            height, width = (line.new for line in self.lines[1:])
            if height * width <= EXACT_PIXELS:
                plane = self._aligned(number, (0, height), (0, width)) if whole is None else whole
                self._limits[number] = scale.limits(plane)
            else:
                windows = [
                    self._aligned(number, (y, min(y + WINDOW, height)), (x, min(x + WINDOW, width))).ravel()
                    for y in _spread(height - WINDOW)
                    for x in _spread(width - WINDOW)
                ]
                self._limits[number] = scale.limits(np.concatenate(windows))
        return self._limits[number]

    def _of_volume(self, scale: Scale) -> Limits:
        if -1 not in self._limits:
            depth, height, width = self.image.shape
            stride = max(1, int(np.sqrt(height * width / SAMPLED)))
            numbers = np.unique(np.linspace(0, depth - 1, SLICES).round().astype(int))
            sample = [np.asarray(self.image[int(z), ::stride, ::stride]).ravel() for z in numbers]
            self._limits[-1] = scale.limits(np.concatenate(sample))
        return self._limits[-1]

    def _aligned(self, number: int, rows: tuple[int, int], columns: tuple[int, int]) -> Values:
        (y0, y1), (x0, x1) = (line.needs(*part) for line, part in zip(self.lines[1:], (rows, columns), strict=True))
        native = np.asarray(self.image[number, y0:y1, x0:x1])
        return self.lines[2].apply(self.lines[1].apply(native, y0, *rows, 0), x0, *columns, 1)


def _spread(room: int) -> list[int]:
    return sorted({round(place) for place in np.linspace(0, max(0, room), WINDOWS)})
