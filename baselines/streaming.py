"""Training crops from a stream of rows: nothing is downloaded to disk, and memory holds a window of rows.

The columns without images are read first, all of them (parquet stores columns apart, so this costs little): they say
which organelles are annotated and where instances lie. Then rows stream through the window in shuffled order, and
crops are drawn from the rows that the window holds at the time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch.utils.data import IterableDataset

from baselines.data import Crop, annotated_organelles, corner_of, cut_out, objects_of
from baselines.model import DEFAULT_CONFIG, BaselineConfig
from baselines.preprocess import AlignedImage, align_row, annotated_vector
from baselines.recipe import Recipe
from em_bench_eval.rows import decode_row
from em_bench_eval.schema import Organelle

WINDOW_ROWS = 64
CROPS_PER_ROW = 4  # a row leaves the window after WINDOW_ROWS * CROPS_PER_ROW crops were drawn from it and its like
FIRST_ROWS = 8  # in the window before the first crop is drawn
SHUFFLED_ROWS = 256


@dataclass(frozen=True)
class _Held:
    image: AlignedImage
    annotated: Any
    points: dict[Organelle, list[tuple[float, float, float, float]]]  # boxes in aligned pixels


class StreamedCrops(IterableDataset[Crop]):
    """Crops of one process, without end; each process reads its own share of the files."""

    def __init__(self, rows: Any, recipe: Recipe, seed: int, config: BaselineConfig = DEFAULT_CONFIG) -> None:
        self.rows, self.recipe, self.seed, self.config = rows, recipe, seed, config
        self.process, self.processes, self.first = 0, 1, 0
        flags = [annotated_vector(row) for row in rows.select_columns(["annotated"])]
        self.trained_organelles = annotated_organelles(flags)

    def for_process(self, process: int, processes: int, first_crop: int) -> StreamedCrops:
        """Return the crops of one of several processes, from about ``first_crop`` (counted over all) on.

        A stream cannot be entered at any place at no cost, so a resumed training goes on with other crops than an
        uninterrupted one would have seen.
        """
        mine = object.__new__(StreamedCrops)
        mine.__dict__.update(self.__dict__)
        mine.process, mine.processes, mine.first = process, processes, first_crop
        return mine

    def __iter__(self) -> Iterator[Crop]:
        window: deque[_Held] = deque(maxlen=WINDOW_ROWS)
        rows = self._endless_rows()
        number = self.first + self.process
        while True:
            while len(window) < FIRST_ROWS or (number // self.processes) % CROPS_PER_ROW == 0:
                window.append(next(rows))
                if len(window) >= FIRST_ROWS:
                    break
            yield self._crop(list(window), number)
            number += self.processes

    def _crop(self, window: list[_Held], number: int) -> Crop:
        generator = np.random.default_rng((self.seed, number))
        held, point = window[int(generator.integers(len(window)))], None
        organelles = sorted({organelle for row in window for organelle in row.points})
        if organelles and generator.random() < self.recipe.foreground:
            organelle = organelles[int(generator.integers(len(organelles)))]
            having = [row for row in window if organelle in row.points]
            held = having[int(generator.integers(len(having)))]
            boxes = held.points[organelle]
            y0, x0, y1, x1 = boxes[int(generator.integers(len(boxes)))]
            point = (generator.uniform(y0, y1), generator.uniform(x0, x1))
        corner = corner_of(held.image.image.shape, self.recipe.crop, point, generator)
        return cut_out(held.image, corner, self.recipe.crop) | {
            "annotated": held.annotated,
            "number": np.asarray(number),
        }

    def _endless_rows(self) -> Iterator[_Held]:
        from datasets.distributed import split_dataset_by_node

        epoch = self.first  # another order after every interruption
        while True:
            shuffled = self.rows.shuffle(seed=self.seed + epoch, buffer_size=SHUFFLED_ROWS)
            if self.processes > 1:
                shuffled = split_dataset_by_node(shuffled, rank=self.process, world_size=self.processes)
            for row in shuffled:
                if row["annotated"]:
                    yield self._held(row)
            epoch += 1

    def _held(self, row: Any) -> _Held:
        config, decoded = self.config, decode_row(row)
        scale = [nm / config.pixel_size_nm for nm in decoded.pixel_size_nm] * 2
        points: dict[Organelle, list[tuple[float, float, float, float]]] = {}
        for organelle, bbox in objects_of(row):
            y0, x0, y1, x1 = (edge * factor for edge, factor in zip(bbox, scale, strict=True))
            points.setdefault(organelle, []).append((y0, x0, y1, x1))
        aligned = align_row(decoded, config.pixel_size_nm, config.normalisation)
        return _Held(aligned, annotated_vector(row), points)
