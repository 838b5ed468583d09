"""Maps of a whole volume, block by block, in memory that does not depend on the volume's size.

A block of the store (``map_store``) is made of all tiles that have weight in it. A tile is run once, for the first
block that needs it, and kept on disk (float16) as long as later blocks need it; where blocks are whole slices, as they
are for slices of ordinary size, no tile is ever kept. So the result does not depend on the blocks, and a block is the
same whether or not the run was interrupted before it.

::

    read, align, normalise (a thread)  ->  network  ->  blend, resample to the grid of the volume  ->  write (a thread)
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tqdm import tqdm

from baselines.memory import Network
from baselines.model import Baseline
from baselines.pipeline import ahead
from baselines.prediction_settings import TileSettings
from baselines.tiling import TileAxis, batched
from baselines.volumes.gray import Gray
from baselines.volumes.map_store import Index, MapStore
from baselines.volumes.resample import Line
from em_bench_eval.schema import Array3D
from em_bench_eval.whole_file import write_whole

Values = npt.NDArray[np.float32]
Half = npt.NDArray[np.float16]
TileIndex = tuple[int, int, int]
Span = tuple[int, int]  # half-open


@dataclass(frozen=True)
class Axis:
    """One axis: native voxels <-> aligned voxels <-> tiles <-> blocks."""

    to_aligned: Line
    to_native: Line
    tiles: TileAxis
    block: int  # edge of a block, native voxels

    @classmethod
    def of(cls, size: int, nm: float, target_nm: float, block: int, tiles: TileSettings, multiple: int) -> Axis:
        """Align voxels of ``nm`` to ``target_nm``, as ``em_bench_eval.align`` does."""
        aligned = max(1, round(size * nm / target_nm))
        cut = TileAxis.of(aligned, tiles.tile, tiles.margin, tiles.overlap, multiple)
        return cls(Line(size, aligned, target_nm / nm), Line(aligned, size, nm / target_nm), cut, block)

    @classmethod
    def of_slices(cls, count: int, block: int) -> Axis:
        """Each slice by itself."""
        return cls(Line(count, count, 1.0), Line(count, count, 1.0), TileAxis(count, 1, 0, 0.0), block)

    def native(self, block: int) -> Span:
        """Native voxels of a block."""
        return block * self.block, min((block + 1) * self.block, self.to_native.new)

    def aligned(self, block: int) -> Span:
        """Aligned voxels that a block is made of."""
        return self.to_native.needs(*self.native(block))

    @cached_property
    def _users(self) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
        """First and last block that needs each tile."""
        first = np.full(len(self.tiles.starts), -1, np.intp)
        last = first.copy()
        for block in range(-(-self.to_native.new // self.block)):
            needed = self.tiles.covering(*self.aligned(block))
            fresh = first[needed.start : needed.stop]
            fresh[fresh < 0] = block
            last[needed.start : needed.stop] = block
        return first, last

    def needed(self, block: int) -> range:
        """Tiles with weight in a block."""
        return self.tiles.covering(*self.aligned(block))

    def first_user(self, tile: int) -> int:
        """First block that needs a tile."""
        return int(self._users[0][tile])

    def last_user(self, tile: int) -> int:
        """Last block that needs a tile."""
        return int(self._users[1][tile])


class VolumePredictor:
    """Fills a ``MapStore`` with the maps of a volume that is sliced along its first axis."""

    def __init__(
        self,
        network: Network,
        image: Array3D,
        voxel_size_nm: Sequence[float],
        settings: TileSettings,
        store: MapStore,
    ) -> None:
        """Axes of ``image`` and ``voxel_size_nm`` are ordered as those of the store: ``(slice, row, column)``."""
        model = network.model
        self.network, self.image, self.store = network, image, store
        targets = aligned_voxel_nm(model, voxel_size_nm)
        sizes = list(zip(image.shape, voxel_size_nm, targets, store.block_shape, strict=True))
        if model.ndim == 2:
            first = Axis.of_slices(image.shape[0], store.block_shape[0])
        else:
            first = Axis.of(*sizes[0], settings, model.multiple)
        rows, columns = (Axis.of(*size, settings, model.multiple) for size in sizes[1:])
        self.axes = (first, rows, columns)
        lines = (first.to_aligned, rows.to_aligned, columns.to_aligned)
        self.gray = Gray(model.config.normalisation, image, lines, by_volume=model.ndim == 3)
        self.kept = store.folder / "tiles"

    def run(self, description: str = "predict", progress: bool = True) -> None:
        """Make every block that is missing."""
        missing = self.store.missing()
        voxels = [math.prod(side.stop - side.start for side in self.store.box(block)) for block in missing]
        total = math.prod(self.store.shape)
        self.kept.mkdir(exist_ok=True)
        with (
            tqdm(
                total=total,
                initial=total - sum(voxels),
                desc=description,
                unit="voxel",
                unit_scale=True,
                smoothing=0.1,
                disable=not progress,
            ) as bar,
            ThreadPoolExecutor(1) as reader,
            ThreadPoolExecutor(1) as writer,  # one: it finds the tiles that it kept for the block before
        ):
            writing: Future[None] | None = None
            inputs = ahead(reader, self._input, missing)
            for block, count, (corner, values) in zip(missing, voxels, inputs, strict=True):
                own = self._own(block)
                found = list(self._run(own, corner, values))
                if writing is not None:
                    writing.result()
                writing = writer.submit(self._finish, block, dict(zip(own, found, strict=True)), count, bar)
            if writing is not None:
                writing.result()
        for left in self.kept.iterdir():
            left.unlink()
        self.kept.rmdir()

    def _finish(self, block: Index, found: dict[TileIndex, Half], voxels: int, bar: Any) -> None:
        self.store.write(block, self._blended(block, found))
        bar.update(voxels)
        for tile in self._tiles(block):
            if self._kept_until(tile) == block:
                self._file(tile).unlink(missing_ok=True)

    def _input(self, block: Index) -> tuple[TileIndex, Values]:
        """Read, align and normalise what the new tiles of a block show; return its first aligned voxel, and it."""
        own = self._own(block)
        if not own:
            return (0, 0, 0), np.empty((0, 0, 0), np.float32)
        return self._region(own)

    def _region(self, tiles: Sequence[TileIndex]) -> tuple[TileIndex, Values]:
        spans = []
        for axis, numbers in zip(self.axes, zip(*tiles, strict=True), strict=True):
            shown = [axis.tiles.pixels(tile) for tile in {min(numbers), max(numbers)}]
            spans.append((min(int(p.min()) for p in shown), max(int(p.max()) for p in shown) + 1))
        native = [axis.to_aligned.needs(*span) for axis, span in zip(self.axes, spans, strict=True)]
        box = tuple(slice(*span) for span in native)
        values: npt.NDArray[Any] = np.asarray(self.image[box])
        for number, (axis, span, (first, _)) in enumerate(zip(self.axes, spans, native, strict=True)):
            values = axis.to_aligned.apply(values, first, *span, number)
        is_whole = all(span == (0, axis.to_aligned.new) for axis, span in zip(self.axes[1:], spans[1:], strict=True))
        corner = (spans[0][0], spans[1][0], spans[2][0])
        return corner, self.gray.normalise(values, corner[0], is_whole)

    def _blended(self, block: Index, found: dict[TileIndex, Half]) -> Values:
        """Blend the tiles of a block, always in raster order, and bring it to the native grid."""
        spans = [axis.aligned(at) for axis, at in zip(self.axes, block, strict=True)]
        blended = np.zeros((len(self.store.names), *(stop - start for start, stop in spans)), np.float32)
        for tile in self._tiles(block):
            maps = found.pop(tile, None)
            if maps is None:
                maps = self._kept(tile)
            elif self._kept_until(tile) != block:
                write_whole(self._file(tile), partial(_save, maps))
            self._add(blended, spans, tile, maps)
        for number, (axis, at, (first, _)) in enumerate(zip(self.axes, block, spans, strict=True), start=1):
            blended = axis.to_native.apply(blended, first, *axis.native(at), number)
        return blended

    def _add(self, blended: Values, spans: list[Span], tile: TileIndex, maps: Half) -> None:
        target, source, weights = [], [], []
        for axis, number, (start, stop) in zip(self.axes, tile, spans, strict=True):
            begin, end = axis.tiles.inside(number)
            low, high = max(begin, start), min(end, stop)
            target.append(slice(low - start, high - start))
            source.append(slice(low - begin, high - begin))
            weights.append(axis.tiles.weights(number)[low - begin : high - begin])
        weight = weights[0][:, None, None] * weights[1][:, None] * weights[2]
        blended[(slice(None), *target)] += maps[(slice(None), *source)] * weight

    def _run(self, tiles: Sequence[TileIndex], corner: TileIndex, values: Values) -> Iterator[Half]:
        """Run the network; yields what each tile holds inside its margins, (channel, z, y, x)."""
        inside = [slice(axis.tiles.margin, axis.tiles.edge - axis.tiles.margin) for axis in self.axes]
        is_flat = self.network.model.ndim == 2
        for batch in batched(tiles, self.network.batch_size):
            cut = np.stack(
                [
                    values[
                        np.ix_(
                            *(
                                axis.tiles.pixels(number) - first
                                for axis, number, first in zip(self.axes, tile, corner, strict=True)
                            )
                        )
                    ]
                    for tile in batch
                ]
            )
            maps = self.network.maps(torch.from_numpy(cut if is_flat else cut[:, None]))
            if is_flat:
                maps = maps[:, :, None]
            yield from maps[(slice(None), slice(None), *inside)].half().cpu().numpy()

    def _kept(self, tile: TileIndex) -> Half:
        """A tile that an earlier block kept; made again if somebody deleted it."""
        try:
            kept: Half = np.load(self._file(tile))
            return kept
        except (OSError, ValueError):
            return next(self._run([tile], *self._region([tile])))

    def _tiles(self, block: Index) -> Iterator[TileIndex]:
        return itertools.product(*(axis.needed(at) for axis, at in zip(self.axes, block, strict=True)))  # type: ignore[return-value]

    def _own(self, block: Index) -> list[TileIndex]:
        """Tiles that no earlier block needs, in raster order."""
        return [
            tile
            for tile in self._tiles(block)
            if all(axis.first_user(t) == at for axis, t, at in zip(self.axes, tile, block, strict=True))
        ]

    def _kept_until(self, tile: TileIndex) -> Index:
        z, y, x = (axis.last_user(t) for axis, t in zip(self.axes, tile, strict=True))
        return z, y, x

    def _file(self, tile: TileIndex) -> Path:
        return self.kept / f"{'-'.join(map(str, tile))}.npy"


def _save(maps: Half, path: Path) -> None:
    np.save(path, maps)


def aligned_voxel_nm(model: Baseline, voxel_size_nm: Sequence[float]) -> tuple[float, float, float]:
    """Edges of the voxels that the network sees: of a 2D model, slices stay where they are.

    A 3D model's configuration may state ``voxel_size_nm`` (z, y, x); without it its voxels are cubes of
    ``pixel_size_nm``.
    """
    edge = model.config.pixel_size_nm
    if model.ndim == 2:
        return float(voxel_size_nm[0]), edge, edge
    z, y, x = getattr(model.config, "voxel_size_nm", (edge, edge, edge))
    return float(z), float(y), float(x)
