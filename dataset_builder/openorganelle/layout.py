"""Finding the arrays of a data set: paths are discovered, in both layouts, and what was found is recorded.

OME-Zarr (2024):  {ds}/{ds}.zarr/recon-{n}/em/{fibsem-uint8}/s{level}
                  {ds}/{ds}.zarr/recon-{n}/labels/groundtruth/crop{n}/{class}/s{level}
                  {ds}/{ds}.zarr/recon-{n}/labels/inference/segmentations/{mito}/s{level}, .../inference/{nucleus_seg}
N5 (2020-2023):   {ds}/{ds}.n5/em/{fibsem-uint16}/s{level}, .../labels/[ariadne/]{mito_seg}/s{level}
N5 (publication): {ds}.n5/volumes/raw/s{level}, .../volumes/groundtruth/0003/{crop13}/labels/all

A server that lists is asked what there is; any other is asked for each name of a declared list.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dataset_builder.openorganelle import classes
from dataset_builder.openorganelle.grids import Placement, placement_of
from dataset_builder.openorganelle.store import Store
from em_bench_eval import spacing
from em_bench_eval.errors import InputError, did_you_mean

EM_CANDIDATES = ("fibsem-uint8", "fibsem-uint8_1", "fibsem-uint16", "fibsem-int16", "tem-uint8", "tem-uint16")
LEVEL_CANDIDATES = tuple(f"s{level}" for level in range(12))
SEGMENTATION_CANDIDATES = tuple(
    f"{name}{suffix}" for names in classes.SEGMENTATIONS.values() for name in names for suffix in ("_seg", "")
)
RECONSTRUCTIONS = ("recon-1", "recon-2")


@dataclass(frozen=True)
class Layout:
    """Where one layout keeps things, below the container."""

    name: str
    containers: tuple[str, ...]  # below the root; {ds} is the data set
    em: tuple[str, ...]  # groups whose children are images
    raw: tuple[str, ...]  # images themselves
    groundtruth: tuple[str, ...]  # groups whose children are crops
    crop_arrays: str  # below a crop: the group of its arrays
    segmentations: tuple[str, ...]  # groups whose children are whole-volume labels
    n5: bool
    reconstructions: bool = False  # everything is below recon-{n}


LAYOUTS = (
    Layout(
        "OME-Zarr",
        containers=("{ds}/{ds}.zarr",),
        em=("em",),
        raw=(),
        groundtruth=("labels/groundtruth",),
        crop_arrays="",
        segmentations=("labels/inference/segmentations", "labels/inference"),
        n5=False,
        reconstructions=True,
    ),
    Layout(
        "N5",
        containers=("{ds}/{ds}.n5", "{ds}.n5"),
        em=("em",),
        raw=("volumes/raw",),
        groundtruth=("volumes/groundtruth/0003",),
        crop_arrays="labels",
        segmentations=("labels", "labels/ariadne"),
        n5=True,
    ),
)


@dataclass(frozen=True)
class Level:
    """One array of a pyramid."""

    key: str
    placement: Placement


@dataclass(frozen=True)
class Pyramid:
    """An image or a label map at one or more resolutions, finest first."""

    key: str
    attributes: Mapping[str, Any]
    levels: tuple[Level, ...]


@dataclass(frozen=True)
class Crop:
    """A ground-truth crop: the classes that it names as annotated, and where their arrays are."""

    name: str
    key: str  # the group of its arrays
    annotated: tuple[str, ...]
    stated: bool  # its metadata lists the annotated classes; else they are the arrays that are there


@dataclass(frozen=True)
class Found:
    """What a data set holds in one container."""

    dataset: str
    layout: Layout
    base: str  # container and reconstruction
    images: tuple[str, ...]  # keys, best first
    crops: tuple[str, ...] = ()  # keys of crop groups
    segmentations: Mapping[str, str] = field(default_factory=dict)  # structure -> key
    left_out: tuple[str, ...] = ()


def find(store: Store, dataset: str, labels: str, crops: Sequence[str]) -> Found | None:
    """Look for images and labels of a data set, the newer layout first; ``None`` if there are none of these labels.

    ``labels`` is ``groundtruth`` or ``segmentation``; ``crops`` are names to ask for where the server does not list.
    """
    for layout in LAYOUTS:
        for container in layout.containers:
            for base in _bases(store, layout, container.format(ds=dataset)):
                found = _look_below(store, layout, dataset, base, labels, crops)
                if found.images and (found.crops or found.segmentations):
                    return found
    return None


def data_sets(store: Store, candidates: Sequence[str]) -> list[str]:
    """List the data sets at the root; the candidates where the server does not list."""
    folders = store.folders("")
    if folders is None:
        return list(candidates)
    return sorted({folder.removesuffix(".n5").removesuffix(".zarr") for folder in folders})


def read_pyramid(store: Store, key: str, n5: bool) -> Pyramid | None:
    """Read the metadata of a pyramid or of a single array; ``None`` if there is nothing at ``key``.

    Raises ``InputError`` for an array that states no voxel size.
    """
    attributes = _attributes(store, key, n5)
    if attributes is None:
        return None
    if _is_array(store, key, n5, attributes):
        placement = placement_of(attributes, n5) or _placement_above(store, key, n5)
        return Pyramid(key, attributes, (Level(key, _required(placement, key, attributes)),))
    pyramid = spacing.multiscales(attributes)
    declared = [str(level.get("path", "")).strip("/") for level in pyramid["datasets"]] if pyramid else []
    names = declared or store.folders(key)
    if names is None:
        names = [name for name in LEVEL_CANDIDATES if _attributes(store, f"{key}/{name}", n5) is not None]
    levels = []
    for number, name in enumerate(sorted(names, key=_number) if not declared else names):
        if not declared and not re.fullmatch(r"s?\d+", name):
            continue
        placement = placement_of(attributes, n5, number) if declared else None
        own = None if placement else _attributes(store, f"{key}/{name}", n5)
        placement = placement or (placement_of(own, n5) if own is not None else None)
        if placement is None and number == 0:
            placement = placement_of(attributes, n5)  # a group that states the size of its finest level
        levels.append(Level(f"{key}/{name}", _required(placement, f"{key}/{name}", own or attributes)))
    if not levels:
        return None
    return Pyramid(
        key, attributes, tuple(sorted(levels, key=lambda level: [abs(nm) for nm in level.placement.scale_nm]))
    )


def read_crop(store: Store, found: Found, key: str) -> Crop:
    """Read which classes a crop names as annotated; where it does not say, they are the arrays that are there."""
    name = key.rpartition("/")[2]
    arrays = "/".join(part for part in (key, found.layout.crop_arrays) if part)
    attributes = _attributes(store, key, found.layout.n5) or {}
    stated = attributes.get("cellmap", {}).get("annotation", {}).get("class_names")
    if isinstance(stated, list) and stated:
        return Crop(name, arrays, tuple(map(str, stated)), stated=True)
    present = store.folders(arrays)
    if present is None:
        present = [c for c in classes.CROP_CLASSES if _attributes(store, f"{arrays}/{c}", found.layout.n5) is not None]
    return Crop(name, arrays, tuple(present), stated=False)


def not_found(store: Store, dataset: str, labels: str, known: Sequence[str]) -> InputError:
    """Build the error for a data set without the labels that were asked for, or an unknown one."""
    seen = {layout.name: store.folders(layout.containers[0].format(ds=dataset)) for layout in LAYOUTS}
    exists = any(seen.values()) or dataset in known
    if not exists:
        return InputError(
            f"unknown OpenOrganelle data set {dataset!r}",
            found=_how(store),
            expected="a data set as OpenOrganelle names it, such as jrc_hela-2",
            remedy=f"{did_you_mean(dataset, known)}em-bench sources openorganelle names those that are known",
        )
    inside = "; ".join(f"{name}: {', '.join(folders) or 'nothing'}" for name, folders in seen.items() if folders)
    return InputError(
        f"data set {dataset} has no {labels} with an image beside it",
        found=f"{inside or 'nothing at the declared paths'} ({_how(store)})",
        expected="one of the layouts of `em-bench sources openorganelle`",
        remedy="try the other option labels=groundtruth|segmentation"
        + ("; name the crops (crops=crop1,crop3): this server does not list them" if store.cannot_list else ""),
    )


def _how(store: Store) -> str:
    if store.cannot_list:
        denied = f"; {store.denied} answers were 401 or 403" if store.denied else ""
        return f"{store.root} does not list its folders ({store.cannot_list}), declared names were tried{denied}"
    return f"listed {store.root}"


def _bases(store: Store, layout: Layout, container: str) -> list[str]:
    if not layout.reconstructions:
        return [container]
    names = store.folders(container)
    found = RECONSTRUCTIONS if names is None else [name for name in names if name.startswith("recon-")]
    return [f"{container}/{name}" for name in sorted(found, key=_number)]


def _look_below(store: Store, layout: Layout, dataset: str, base: str, labels: str, crops: Sequence[str]) -> Found:
    images = []
    for group in layout.em:
        names = store.folders(f"{base}/{group}")
        if names is None:
            names = [n for n in EM_CANDIDATES if _attributes(store, f"{base}/{group}/{n}", layout.n5) is not None]
        images += [f"{base}/{group}/{name}" for name in sorted(names, key=_image_rank)]
    images += [f"{base}/{raw}" for raw in layout.raw if _attributes(store, f"{base}/{raw}", layout.n5) is not None]
    if not images:
        return Found(dataset, layout, base, ())
    if labels == "groundtruth":
        return Found(dataset, layout, base, tuple(images), tuple(_crops(store, layout, base, crops)))
    names = []
    for group in layout.segmentations:
        inside = store.folders(f"{base}/{group}")
        if inside is None:
            keys = [f"{base}/{group}/{name}" for name in SEGMENTATION_CANDIDATES]
            names += [key for key in keys if _attributes(store, key, layout.n5) is not None]
        else:
            names += [f"{base}/{group}/{name}" for name in inside if f"{group}/{name}" not in layout.segmentations]
    chosen, left = classes.choose_segmentations(names)
    return Found(dataset, layout, base, tuple(images), (), chosen, tuple(left))


def _crops(store: Store, layout: Layout, base: str, asked: Sequence[str]) -> list[str]:
    keys = []
    for group in layout.groundtruth:
        names = store.folders(f"{base}/{group}")
        if names is None:
            inside = f"{layout.crop_arrays}/{classes.ALL}" if layout.crop_arrays else ""
            names = [
                n
                for n in asked
                if _attributes(store, f"{base}/{group}/{n}/{inside}".rstrip("/"), layout.n5) is not None
            ]
        keys += [f"{base}/{group}/{name}" for name in sorted(names, key=_number) if re.match(r"(?i)crop\d", name)]
    return keys


def _attributes(store: Store, key: str, n5: bool) -> dict[str, Any] | None:
    """Attributes of a group or an array; ``None`` if there is neither."""
    if n5:
        stated = store.json(f"{key}/attributes.json")
        if stated is None:  # an N5 group needs no file
            inside = store.folders(key)
            is_group = bool(inside) if inside is not None else store.json(f"{key}/s0/attributes.json") is not None
            return {} if is_group else None
        return stated
    attributes = store.json(f"{key}/.zattrs")
    if attributes is None and (store.json(f"{key}/.zgroup") or store.json(f"{key}/.zarray")) is not None:
        return {}
    return attributes


def _is_array(store: Store, key: str, n5: bool, attributes: Mapping[str, Any]) -> bool:
    if n5:
        return "dimensions" in attributes
    return spacing.multiscales(attributes) is None and store.json(f"{key}/.zarray") is not None


def _placement_above(store: Store, key: str, n5: bool) -> Placement | None:
    """An array of a pyramid may leave its placement to the group above."""
    above, _, name = key.rpartition("/")
    attributes = _attributes(store, above, n5) or {}
    pyramid = spacing.multiscales(attributes)
    paths = [str(level.get("path", "")).strip("/") for level in pyramid["datasets"]] if pyramid else []
    return placement_of(attributes, n5, paths.index(name)) if name in paths else None


def _required(placement: Placement | None, key: str, attributes: Mapping[str, Any]) -> Placement:
    if placement is None:
        raise InputError(
            f"{key} states no voxel size",
            found=f"attributes {', '.join(attributes) or 'none'}",
            expected="multiscales, transform or resolution, with a unit of length",
            remedy="without it image and labels cannot be registered: leave this data set out or complete a copy",
        )
    return placement


def _image_rank(name: str) -> tuple[int, str]:
    """8-bit images first: they need no window."""
    kinds = ("uint8", "uint16", "int16")
    return next((rank for rank, kind in enumerate(kinds) if f"-{kind}" in name), len(kinds)), name


def _number(name: str) -> tuple[int, str]:
    digits = re.search(r"(\d+)", name)
    return int(digits[1]) if digits else -1, name
