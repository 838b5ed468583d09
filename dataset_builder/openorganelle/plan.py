"""From what was found to what will be read: levels, grids, parts and chunks of every volume, with a size quote.

A plan opens arrays and asks for the sizes of the chunks that its region needs. No voxel is read yet.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from dataset_builder.openorganelle import classes
from dataset_builder.openorganelle.grids import Axis, Box, Extent, Grid
from dataset_builder.openorganelle.labels import PARTIAL, Encoding, Ids, Part
from dataset_builder.openorganelle.layers import Layer, Stored
from dataset_builder.openorganelle.layout import Crop, Found, Level, Pyramid, read_crop, read_pyramid
from dataset_builder.openorganelle.options import Options
from dataset_builder.openorganelle.store import Store
from em_bench_eval.errors import InputError, unknown_name
from em_bench_eval.schema import AnnotationType, Organelle

MOST_CHECKED = 50_000  # chunks of an array; of a larger region a sample is asked for
COARSER = 1.01  # a label level may be this much coarser than the output, for sizes rounded in the metadata


@dataclass(frozen=True)
class Plan:
    """One volume that will be built."""

    name: str  # "crop113" or "segmentation"
    found: Found
    grid: Grid  # of the output
    image: Layer
    image_pyramid: Pyramid
    parts: tuple[Part, ...]
    annotation: Mapping[Organelle, AnnotationType]  # of the organelles that have an array of their own
    image_stored: Stored
    labels_stored: tuple[Stored, ...]  # parallel to ``parts``
    notes: Mapping[str, str] = field(default_factory=dict)  # for the provenance
    extras: tuple[Part, ...] = ()  # structures outside the five
    extras_stored: tuple[Stored, ...] = ()  # parallel to ``extras``

    @property
    def stored_bytes(self) -> int:
        """Compressed bytes of all chunks that are needed; each is fetched once while it is kept."""
        labels = (*self.labels_stored, *self.extras_stored)
        return self.image_stored.stored_bytes + sum(stored.stored_bytes for stored in labels)

    @property
    def voxels(self) -> int:
        """Number of voxels of the output."""
        return math.prod(self.grid.shape)


def plan_crop(store: Store, found: Found, key: str, options: Options) -> Plan | str:
    """Plan one ground-truth crop; or say why it makes no volume."""
    crop = read_crop(store, found, key)
    parts, extras, notes = _parts_of_crop(store, found, crop, options)
    if not parts:
        return f"none of the organelles is annotated, only {', '.join(crop.annotated) or 'nothing'}"
    pyramid = _image(store, found, options)
    image = Layer(store, _level(pyramid, options.voxel_nm))
    drawn = _union(part.layer.grid.extent_nm for part in parts)
    if _is_empty(_intersection(drawn, image.grid.extent_nm)):
        return f"its labels are at {_say(drawn)}, the image {image.key} at {_say(image.grid.extent_nm)}"
    region = options.region_nm or drawn
    if _is_empty(_intersection(drawn, region)):
        return f"it is outside the region, at {_say(drawn)}"
    extent = _intersection(_widen(drawn, options.context_nm), image.grid.extent_nm)
    if options.region_nm is not None:
        extent = _intersection(extent, options.region_nm)
    finest = min((part.layer.grid for part in parts), key=lambda grid: math.prod(grid.voxel_nm))
    grid = _cut(finest if options.grid == "labels" else image.grid, extent)
    if grid is None:
        return f"it is thinner than a voxel of the image: {_say(extent)} holds no voxel's centre"
    own = {part.organelle for part in parts if part.organelle is not None}
    annotation: dict[Organelle, AnnotationType] = {o: "manual" for o in Organelle if o in own}
    stored = _stored(store, image, parts, grid)
    of_extras = tuple(part.layer.check(_needed(part.layer.grid, grid), MOST_CHECKED) for part in extras)
    described = tuple(parts), annotation, *stored, notes
    name = crop.name.lower()
    return Plan(name, found, grid, image, pyramid, *described, extras=tuple(extras), extras_stored=of_extras)


def plan_segmentation(store: Store, found: Found, options: Options) -> Plan | str:
    """Plan the whole-volume segmentations of a data set, or a region of them; or say why they make no volume."""
    pyramid = _image(store, found, options)
    image = Layer(store, _level(pyramid, options.voxel_nm))
    extent = image.grid.extent_nm
    if options.region_nm is not None:
        extent = _intersection(extent, options.region_nm)
    grid = _cut(image.grid, extent)
    if grid is None:
        return f"no voxel of the image is in the region; it is at {_say(image.grid.extent_nm)}"
    parts: list[Part] = []
    annotation: dict[Organelle, AnnotationType] = {}
    notes = {"arrays left out": ", ".join(key.rpartition("/")[2] for key in found.left_out) or "none"}
    for structure, key in found.segmentations.items():
        organelle = options.rules.organelle(structure)
        if organelle is None:
            continue
        labels = _required(read_pyramid(store, key, found.layout.n5), store, key)
        layer = Layer(store, _matching_level(labels, grid))
        finest = labels.levels[0].placement.scale_nm
        if layer.key != labels.levels[0].key:
            notes[f"level of {structure}"] = f"{layer.key.rpartition('/')[2]}, made by OpenOrganelle from {finest} nm"
        ids: Ids = "perhaps" if structure not in PARTIAL else "none"
        parts.append(Part(layer, structure, organelle, _encoding(labels), ids=ids))
        kind: AnnotationType = "refined" if "/ariadne/" in key else "model"
        annotation[organelle] = kind if annotation.get(organelle, kind) == kind else "model"
    # the envelope alone does not make a nucleus or an ER
    alone = {part.organelle for part in parts} - {p.organelle for p in parts if p.structure not in PARTIAL}
    parts = [part for part in parts if part.organelle not in alone]
    annotation = {organelle: kind for organelle, kind in annotation.items() if organelle not in alone}
    if not parts:
        return f"none of the organelles is segmented, only {', '.join(found.segmentations)}"
    stored = _stored(store, image, parts, grid)
    ordered = {organelle: annotation[organelle] for organelle in Organelle if organelle in annotation}
    return Plan("segmentation", found, grid, image, pyramid, tuple(parts), ordered, *stored, notes)


def _parts_of_crop(
    store: Store, found: Found, crop: Crop, options: Options
) -> tuple[list[Part], list[Part], dict[str, str]]:
    """Open the label arrays of a crop, the finest levels: how coarser ones of drawn labels were made is not stated.

    Returns:
        The organelles, the structures outside the five as far as they are stored, and notes for the provenance.
    """
    parts: list[Part] = []
    covered: set[Organelle] = set()

    def layer_of(name: str) -> tuple[Layer, Pyramid]:
        key = f"{crop.key}/{name}"
        pyramid = _required(read_pyramid(store, key, found.layout.n5), store, key)
        return Layer(store, pyramid.levels[0]), pyramid

    for choice in classes.choose_crop_arrays(crop.annotated, options.rules):
        organelle = options.rules.organelle(choice.structure)
        assert organelle is not None, "choose_crop_arrays leaves these out"
        for name in choice.arrays:
            layer, pyramid = layer_of(name)
            parts.append(Part(layer, choice.structure, organelle, _encoding(pyramid), ids=_ids(pyramid, choice)))
        covered.add(organelle)
    left = [organelle for organelle in Organelle if organelle not in covered]
    if left and classes.ALL in crop.annotated:
        layer, _ = layer_of(classes.ALL)
        table = classes.table_of_all(options.rules, published_2021=found.layout.n5)
        table[~np.isin(table, [organelle.label_id for organelle in left])] = 0
        parts.append(Part(layer, classes.ALL, None, table=table))
    how = "named by the crop's metadata" if crop.stated else "the arrays that are there: the metadata names none"
    rule = (
        f"{how}; from the array all, the organelles that occur in it" if parts and parts[-1].table is not None else how
    )
    extras = [
        name for name in classes.EXTRAS if name in crop.annotated and name not in {part.structure for part in parts}
    ]
    places = {f"extra:{name}": store.published(f"{crop.key}/{name}") for name in extras}
    opened = {name: read_pyramid(store, f"{crop.key}/{name}", found.layout.n5) for name in extras}
    others = [
        Part(Layer(store, pyramid.levels[0]), name, None, _encoding(pyramid))
        for name, pyramid in opened.items()
        if pyramid is not None
    ]
    return parts, others, {"annotated classes": rule, **places}


def _image(store: Store, found: Found, options: Options) -> Pyramid:
    keys = {key.rpartition("/")[2]: key for key in reversed(found.images)}
    if options.em and options.em not in keys:
        raise unknown_name(f"image of {found.base}", options.em, keys)
    key = keys[options.em] if options.em else found.images[0]
    return _required(read_pyramid(store, key, found.layout.n5), store, key)


def _required(pyramid: Pyramid | None, store: Store, key: str) -> Pyramid:
    if pyramid is None:
        raise InputError(
            f"no array at {store.location(key)}",
            found="neither an array nor a group with levels",
            expected="the array that the metadata name",
            remedy="the copy is incomplete: download it again, or read the bucket itself",
        )
    return pyramid


def _level(pyramid: Pyramid, voxel_nm: float | None) -> Level:
    """The level whose voxel is nearest to a size, by the ratio of (geometric mean) edges; ``None``: the finest."""
    if voxel_nm is None:
        return pyramid.levels[0]

    def ratio(level: Level) -> float:
        return abs(math.log(abs(math.prod(level.placement.scale_nm)) ** (1 / 3) / voxel_nm))

    return min(pyramid.levels, key=ratio)


def _matching_level(pyramid: Pyramid, grid: Grid) -> Level:
    """The coarsest level that is not coarser than the output along any axis, else the finest."""
    fine = [
        level
        for level in pyramid.levels
        if all(abs(nm) <= out * COARSER for nm, out in zip(level.placement.scale_nm, grid.voxel_nm, strict=True))
    ]
    return fine[-1] if fine else pyramid.levels[0]


def _annotation(pyramid: Pyramid) -> Mapping[str, object]:
    stated = pyramid.attributes.get("cellmap", {}).get("annotation", {}).get("annotation_type", {})
    return stated if isinstance(stated, Mapping) else {}


def _ids(pyramid: Pyramid, choice: classes.Choice) -> Ids:
    """Say whether an array of a crop tells instances apart, as its metadata state it."""
    if not choice.whole or choice.structure in PARTIAL:
        return "none"
    kinds: Mapping[object, Ids] = {"instance_segmentation": "stated", "semantic_segmentation": "none"}
    return kinds.get(_annotation(pyramid).get("type"), "perhaps")


def _encoding(pyramid: Pyramid) -> Encoding:
    """Read which values mean absent and unknown; where nothing is stated, 0 is absent."""
    stated = _annotation(pyramid).get("encoding")
    if not isinstance(stated, Mapping) or not {"absent", "unknown"} & set(stated):
        return Encoding()
    values = {name: frozenset({int(stated[name])} if name in stated else ()) for name in ("absent", "unknown")}
    return Encoding(values["absent"], values["unknown"])


def _stored(store: Store, image: Layer, parts: Sequence[Part], grid: Grid) -> tuple[Stored, tuple[Stored, ...]]:
    """Ask for the chunks under the output; refuse an image of which nothing is stored, and labels that were lost."""
    of_image = image.check(_needed(image.grid, grid), MOST_CHECKED)
    if len(of_image.missing) == of_image.chunks:
        raise InputError(
            f"{store.location(image.key)} holds nothing in this region",
            found=f"none of {of_image.chunks} chunks is stored",
            expected="an image",
            remedy="a local copy may be incomplete: download it again; else choose another region_nm",
        )
    of_parts = []
    for part in parts:
        stored = part.layer.check(_needed(part.layer.grid, grid), MOST_CHECKED)
        of_parts.append(stored)
        counts = part.layer.stated_absent(store)
        if len(stored.missing) == stored.chunks and counts is not None and counts < math.prod(part.layer.grid.shape):
            raise InputError(
                f"{store.location(part.layer.key)} lost its chunks",
                found=f"none of {stored.chunks} chunks is stored, which would mean that all of it is background",
                expected=f"{math.prod(part.layer.grid.shape) - counts} labelled voxels, as its metadata say",
                remedy="the copy is incomplete: download it again",
            )
    return of_image, tuple(of_parts)


def _needed(own: Grid, grid: Grid) -> Box:
    """Voxels of an array that the output needs, with those that a linear interpolation reaches."""
    ranges = []
    for axis, out in zip(own.axes, grid.axes, strict=True):
        ends = axis.fraction(np.array([out.first_nm, out.first_nm + out.step_nm * (out.size - 1)])).clip(
            0, axis.size - 1
        )
        ranges.append(slice(int(ends[0]), int(np.ceil(ends[1])) + 1))
    return ranges[0], ranges[1], ranges[2]


def _cut(base: Grid, extent: Extent) -> Grid | None:
    """The voxels of a grid, continued beyond its ends, whose centre is in an extent; ``None`` if there are none."""
    axes = []
    for axis, (low, high) in zip(base.axes, extent, strict=True):
        ends = np.ceil(axis.fraction(np.array([low, high]))).astype(int)
        if ends[1] <= ends[0]:
            return None
        axes.append(Axis(axis.first_nm + axis.step_nm * int(ends[0]), axis.step_nm, int(ends[1] - ends[0])))
    return Grid(axes[0], axes[1], axes[2])


def _intersection(one: Extent, other: Extent) -> Extent:
    z, y, x = ((max(a[0], b[0]), min(a[1], b[1])) for a, b in zip(one, other, strict=True))
    return z, y, x


def _is_empty(extent: Extent) -> bool:
    return any(low >= high for low, high in extent)


def _union(extents: Iterable[Extent]) -> Extent:
    every = list(extents)
    z, y, x = ((min(e[axis][0] for e in every), max(e[axis][1] for e in every)) for axis in range(3))
    return z, y, x


def _widen(extent: Extent, by_nm: float) -> Extent:
    z, y, x = ((low - by_nm, high + by_nm) for low, high in extent)
    return z, y, x


def _say(extent: Extent) -> str:
    return ", ".join(f"{low:g}:{high:g}" for low, high in extent) + " nm (z, y, x)"
