"""Training crops from the dataset's volumes, for 3D models: the slabs that the rows of a fold come from, in blocks.

As with images (``baselines.data``) crop ``n`` of a seed is always the same crop. A block is at most ``BLOCK`` aligned
voxels along each axis; blocks are aligned when first needed, and the least recently used go first.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from baselines.data import Crop
from baselines.model import DEFAULT_CONFIG, Baseline, BaselineConfig
from baselines.preprocess import IGNORE, inner_distance
from baselines.recipe import Recipe
from baselines.validation import dice_over
from baselines.volumes.dataset_volumes import Slab, open_slabs
from baselines.volumes.gray import Gray
from baselines.volumes.resample import Line
from em_bench_eval.errors import InputError
from em_bench_eval.schema import ORGANELLES, Organelle

if TYPE_CHECKING:
    from baselines.training import TrainingRequest
    from baselines.training_data import TrainingData

BLOCK = 256  # aligned voxels
Box = tuple[slice, slice, slice]


@dataclass(frozen=True)
class Block:
    """A part of a slab, in aligned voxels of that slab."""

    slab: Slab
    box: Box
    lines: tuple[Line, Line, Line]  # native voxels of the slab -> aligned


def blocks_of(slab: Slab, voxel_size_nm: Sequence[float]) -> list[Block]:
    """Divide a slab into blocks of about equal size."""
    lines, parts = [], []
    for old, nm, target in zip(slab.shape, slab.voxel_size_nm, voxel_size_nm, strict=True):
        new = max(1, round(old * nm / target))
        lines.append(Line(old, new, target / nm))
        edges = np.linspace(0, new, 1 + -(-new // BLOCK)).round().astype(int)
        parts.append([slice(int(a), int(b)) for a, b in itertools.pairwise(edges)])
    z, y, x = lines
    return [Block(slab, (a, b, c), (z, y, x)) for a in parts[0] for b in parts[1] for c in parts[2]]


def aligned_block(block: Block, gray: Gray) -> dict[str, npt.NDArray[Any]]:
    """Read a block: ``(z, y, x)`` image float16 normalised, semantic uint8, instances int32, distance uint8.

    The image is averaged or interpolated as ``em_bench_eval.align`` does it; labels take the voxel at the centre.
    """
    slab = block.slab
    needed, places = [], []
    for line, part in zip(block.lines, block.box, strict=True):
        low, high = line.needs(part.start, part.stop)
        centres = ((np.arange(part.start, part.stop) + 0.5) * line.step).astype(np.intp).clip(low, high - 1)
        needed.append(slice(low, high))
        places.append(centres - low)
    values = np.asarray(slab.image[tuple(needed)])
    for axis, (line, part, native) in enumerate(zip(block.lines, block.box, needed, strict=True)):
        values = line.apply(values, native.start, part.start, part.stop, axis)
    at_centres = np.ix_(*places)
    instances = np.asarray(slab.instances[tuple(needed)])[at_centres].astype(np.int64)
    semantic = np.asarray(slab.semantic[tuple(needed)])[at_centres].astype(np.uint8)
    known = np.isin(semantic, [0, *(organelle.label_id for organelle in slab.annotated)])
    semantic = np.where(known, semantic, IGNORE).astype(np.uint8)
    if slab.ignore is not None:
        semantic[np.asarray(slab.ignore[tuple(needed)])[at_centres] > 0] = IGNORE
    _, ids = np.unique(instances, return_inverse=True)  # small numbers, for the targets that compare neighbours
    ids = ids.reshape(instances.shape) + int(instances.min() > 0)
    return {
        "image": gray.normalise(values, block.box[0].start, False).astype(np.float16),
        "semantic": semantic,
        "instances": ids.astype(np.int32),
        "distance": np.rint(inner_distance(ids) * 255).astype(np.uint8),
    }


class VolumeCrops:
    """``crops[n]`` for any ``n >= 0``; a share ``recipe.foreground`` lies over instances, organelles equally often."""

    def __init__(
        self,
        slabs: Sequence[Slab],
        recipe: Recipe,
        seed: int,
        config: BaselineConfig = DEFAULT_CONFIG,
        cache_bytes: int = 2 << 30,
    ) -> None:
        voxel_size_nm = voxel_size_of(config)
        self.recipe, self.seed, self.cache_bytes = recipe, seed, cache_bytes
        self.crop = crop_shape(config, recipe.crop)
        self.slabs = [slab for slab in slabs if slab.annotated]
        if not self.slabs:
            raise InputError(
                "the training split has no volume to learn from",
                found=f"{len(slabs)} volumes with images, none with an annotated organelle",
                remedy="check --config and --source, and that the dataset has volumes",
            )
        self.blocks = [block for slab in self.slabs for block in blocks_of(slab, voxel_size_nm)]
        self.grays = {
            id(slab): Gray(config.normalisation, slab.image, blocks_of(slab, voxel_size_nm)[0].lines, by_volume=True)
            for slab in self.slabs
        }
        self.targets = self._targets()
        self._cache: OrderedDict[int, dict[str, npt.NDArray[Any]]] = OrderedDict()
        self._held = 0

    @property
    def trained_organelles(self) -> tuple[str, ...]:
        """Organelles that are annotated in at least one volume."""
        return tuple(name for name in ORGANELLES if any(Organelle(name) in slab.annotated for slab in self.slabs))

    def __getitem__(self, number: int) -> Crop:
        generator = np.random.default_rng((self.seed, number))
        organelles = list(self.targets)
        if organelles and generator.random() < self.recipe.foreground:
            of_one = self.targets[organelles[int(generator.integers(len(organelles)))]]
            index, low, high = of_one[int(generator.integers(len(of_one)))]
            point: tuple[float, ...] | None = tuple(generator.uniform(low, high))
        else:
            sizes = np.array([np.prod([part.stop - part.start for part in block.box]) for block in self.blocks])
            index, point = int(generator.choice(len(self.blocks), p=sizes / sizes.sum())), None
        planes = self._block(index)
        corner = []
        for axis, size in enumerate(planes["image"].shape):
            last = max(0, size - self.crop[axis])
            if point is None:
                corner.append(int(generator.integers(last + 1)))
            else:
                corner.append(int(np.clip(point[axis] - generator.uniform(0.2, 0.8) * self.crop[axis], 0, last)))
        cut = {name: cut_volume(values, corner, self.crop, FILL[name]) for name, values in planes.items()}
        annotated = np.array([Organelle(name) in self.blocks[index].slab.annotated for name in ORGANELLES])
        return cut | {"image": cut["image"][None], "annotated": annotated, "number": np.asarray(number)}

    def _targets(self) -> dict[Organelle, list[tuple[int, npt.NDArray[Any], npt.NDArray[Any]]]]:
        """By organelle: a block, and the part of an instance's box in it, (low, high) in voxels of the block."""
        found: dict[Organelle, list[tuple[int, npt.NDArray[Any], npt.NDArray[Any]]]] = {}
        for index, block in enumerate(self.blocks):
            start, stop = (np.array([getattr(part, end) for part in block.box]) for end in ("start", "stop"))
            step = np.array([line.step for line in block.lines])
            for organelle, low, high in block.slab.objects:
                inside = np.maximum(low / step, start), np.minimum(high / step, stop)
                if (inside[0] < inside[1]).all():
                    found.setdefault(organelle, []).append((index, inside[0] - start, inside[1] - start))
        return dict(sorted(found.items()))

    def _block(self, index: int) -> dict[str, npt.NDArray[Any]]:
        if index in self._cache:
            self._cache.move_to_end(index)
            return self._cache[index]
        block = self.blocks[index]
        planes = aligned_block(block, self.grays[id(block.slab)])
        self._cache[index] = planes
        self._held += sum(values.nbytes for values in planes.values())
        while self._held > self.cache_bytes and len(self._cache) > 1:
            self._held -= sum(values.nbytes for values in self._cache.popitem(last=False)[1].values())
        return planes


FILL: dict[str, int | None] = {"image": None, "semantic": IGNORE, "instances": 0, "distance": 0}


def cut_volume(
    values: npt.NDArray[Any], corner: Sequence[int], shape: Sequence[int], fill: int | None
) -> npt.NDArray[Any]:
    """Cut ``shape`` out of a ``(z, y, x)`` array; what lies beyond is ``fill``, or reflected."""
    cut = values[tuple(slice(first, first + size) for first, size in zip(corner, shape, strict=True))]
    missing = [(0, size - there) for size, there in zip(shape, cut.shape, strict=True)]
    if not any(after for _, after in missing):
        return np.ascontiguousarray(cut)
    return np.pad(cut, missing, mode="reflect") if fill is None else np.pad(cut, missing, constant_values=fill)


def voxel_size_of(config: BaselineConfig) -> tuple[float, float, float]:
    """``(z, y, x)`` in nm of what the network sees."""
    z, y, x = getattr(config, "voxel_size_nm", (config.pixel_size_nm,) * 3)
    return float(z), float(y), float(x)


def crop_shape(config: BaselineConfig, edge: int) -> tuple[int, int, int]:
    """``(z, y, x)`` of a training crop."""
    return getattr(config, "crop_depth", None) or edge, edge, edge


class VolumeValidation:
    """The central crop of up to ``blocks`` blocks of the validation slabs."""

    def __init__(self, slabs: Sequence[Slab], recipe: Recipe, config: BaselineConfig, blocks: int = 4) -> None:
        crops = VolumeCrops(slabs, dataclasses.replace(recipe, foreground=0.0), 0, config)
        chosen = sorted({round(i) for i in np.linspace(0, len(crops.blocks) - 1, blocks)})
        self.crops = []
        for index in chosen:
            planes = crops._block(index)
            corner = [max(0, (size - edge) // 2) for size, edge in zip(planes["image"].shape, crops.crop, strict=True)]
            image, semantic = (cut_volume(planes[n], corner, crops.crop, FILL[n]) for n in ("image", "semantic"))
            annotated = np.array([Organelle(name) in crops.blocks[index].slab.annotated for name in ORGANELLES])
            self.crops.append((image.astype(np.float32), semantic, annotated))

    def dice(self, model: Baseline, device: torch.device) -> dict[str, float]:
        """Dice of ``p > 0.5`` per trained organelle, voxels pooled over the crops."""
        return dice_over(model, self.crops, device)


def open_volume_data(request: TrainingRequest) -> TrainingData:
    """Open the volumes of a dataset for a 3D model; raises ``InputError`` if there is nothing to learn from."""
    from baselines.training_data import TrainingData

    if request.streaming:
        raise InputError(
            "--streaming reads rows, not volumes",
            remedy="leave it away: a 3D model reads of its volumes only the chunks that it needs",
        )
    slabs = open_slabs(request.dataset, request.config, "train", request.sources)
    crops = VolumeCrops(slabs, request.recipe, request.seed, request.architecture)
    try:
        checked = open_slabs(request.dataset, request.config, "validation", request.sources)
        validation = VolumeValidation(checked, request.recipe, request.architecture)
    except InputError:  # a dataset without that split, or without volumes in it
        validation = None
    return TrainingData(crops, len(slabs), validation)
