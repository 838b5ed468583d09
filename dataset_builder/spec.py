"""The spec of private data: a YAML file that says what `em-bench build --spec` cannot know from the pixels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import yaml

from dataset_builder.source import source_names
from dataset_builder.spec_files import Extra, FileRef, LabelFile, Mask, read_extras, read_file, read_labels, read_mask
from dataset_builder.yaml_check import GAP, At, Checker
from em_bench_eval.errors import did_you_mean
from em_bench_eval.schema import (
    DOMAINS,
    FOLDS,
    ORGANELLES,
    AnnotationType,
    Domain,
    Fold,
    Organelle,
    SourceInfo,
    VoxelSize,
)

ANNOTATION_TYPES: tuple[AnnotationType, ...] = get_args(AnnotationType)
SOURCE_KEYS = ("name", "title", "licence", "citation", "redistributable", "modality", "url", "notes")
SHARED_KEYS = (
    "voxel_size_nm",
    "header_voxel_size",
    "annotated",
    "specimen",
    "frame",
    "cell_type",
    "modality",
    "domain",
    "fold",
    "intensity",
)
VOLUME_KEYS = ("id", "image", "labels", "ignore", "extras", "origin_nm", *SHARED_KEYS)
HEADER_WORDS = ("check", "ignore")
NANOMETRES = "three numbers [z, y, x] in nm, for example [8, 4, 4]"
SMALLEST_NM, LARGEST_NM = 0.05, 1e5
BIBTEX = r"@\w+\{[^,\s]+,.*\}"


@dataclass(frozen=True)
class Intensity:
    """How the image becomes 8-bit gray with dark membranes."""

    invert: bool = False
    window: tuple[float, float] | None = None  # intensities that become 0 and 255
    percentiles: tuple[float, float] | None = None  # the same, as percentiles of sampled voxels


@dataclass(frozen=True)
class VolumeSpec:
    """One volume, as the spec states it."""

    volume_id: str
    image: FileRef
    labels: tuple[LabelFile, ...]
    ignore: Mask | None
    extras: tuple[Extra, ...]  # structures outside the five, in files of their own
    annotated: Mapping[Organelle, AnnotationType]
    voxel_size: VoxelSize | None
    voxel_size_at: At | None
    header_ignored: bool  # what the files state of voxel size and position is wrong
    specimen: str
    frame: str | None  # coordinates that it shares with other volumes
    frame_at: At | None
    origin_nm: tuple[float, float, float] | None  # (z, y, x) in the frame: lower corner of the first voxel
    cell_type: str
    modality: str
    domain: Domain
    fold: Fold | None
    intensity: Intensity


@dataclass(frozen=True)
class Spec:
    """A whole spec, free of faults that can be seen without opening a volume."""

    path: Path
    info: SourceInfo
    volumes: tuple[VolumeSpec, ...]
    checker: Checker  # names lines in what is found later


def load_spec(path: Path) -> Spec:
    """Read and check a spec; raises ``InputError`` that lists every fault with its line."""
    check = Checker(path)
    top = check.fields(check.root(), ("source", "defaults", "volumes"), required=("source", "volumes"))
    source = check.fields(top["source"], SOURCE_KEYS, ("name", "licence", "modality")) if "source" in top else {}
    defaults = check.fields(top["defaults"], SHARED_KEYS) if "defaults" in top else {}
    name = _source_name(check, source.get("name"))
    modality = check.text(source.get("modality")) or ""
    volumes = []
    ids: dict[str, int] = {}
    for at in check.items(top["volumes"]) if "volumes" in top else []:
        own = check.fields(at, VOLUME_KEYS, ("id", "image", "labels"))
        for key in ("specimen", "cell_type", "annotated"):
            if own and key not in own and key not in defaults:
                check.fail(at, found=f"no {key}", expected=f"the key {at.key}.{key}, or defaults.{key}")
        volume = _volume(check, at, {**defaults, **own}, name or "local", modality)
        if "id" in own and volume.volume_id in ids:
            check.fail(own["id"], expected=f"an id of its own (line {ids[volume.volume_id]} has this one)")
        ids.setdefault(volume.volume_id, at.line)
        volumes.append(volume)
    info = _info(check, source, name or "local", modality, volumes)
    check.raise_faults()
    return Spec(path, info, tuple(volumes), check)


def _source_name(check: Checker, at: At | None) -> str | None:
    name = check.text(at, r"[a-z][a-z0-9_]*", "a short name: lower-case letters, digits and _")
    if at is not None and name in source_names():
        check.fail(at, expected="another name", hint="em-bench itself has a source of this name (em-bench sources)")
    return name


def _info(check: Checker, source: Mapping[str, At], name: str, modality: str, volumes: list[VolumeSpec]) -> SourceInfo:
    title = check.text(source.get("title")) or name
    licence = check.text(source.get("licence"), expected="an SPDX identifier such as CC-BY-4.0, or 'none stated'")
    citation = check.text(source.get("citation"), BIBTEX, "BibTeX: @article{key, author = {...}, ...}")
    share = check.flag(source.get("redistributable")) or False
    if share and licence is not None and licence.lower() in ("none", "none stated", "private", "proprietary"):
        check.fail(source["redistributable"], expected=f"false, with the licence {licence!r}", hint="name the licence")
    annotated: dict[Organelle, AnnotationType] = {}
    for volume in volumes:
        annotated.update(volume.annotated)
    sizes = {volume.voxel_size for volume in volumes}
    return SourceInfo(
        name=name,
        title=title,
        citation=citation or f"@misc{{{name},\n  title = {{{title}}}, note = {{unpublished data}}\n}}",
        licence=licence or "",
        url=check.text(source.get("url"), r"https?://\S+", "a web address, https://...") or "",
        redistributable=share,
        modality=modality,
        annotated={organelle: annotated[organelle] for organelle in Organelle if organelle in annotated},
        voxel_size=sizes.pop() if len(sizes) == 1 else None,
        notes=check.text(source.get("notes")) or "",
    )


def _volume(check: Checker, at: At, given: Mapping[str, At], source: str, modality: str) -> VolumeSpec:
    name = check.text(given.get("id"), r"[A-Za-z0-9._-]+", "letters, digits, '-', '_' and '.'") or ""
    labels = read_labels(check, given.get("labels"))
    annotated = _annotated(check, given.get("annotated"), labels)
    size = check.numbers(given.get("voxel_size_nm"), 3, NANOMETRES)
    if size is not None and not all(SMALLEST_NM <= edge < LARGEST_NM for edge in size):
        hint = "are these micrometres? Write nm" if all(0 < edge < 1 for edge in size) else ""
        check.fail(given["voxel_size_nm"], expected=NANOMETRES, hint=hint)
        size = None
    trust = check.choice(given.get("header_voxel_size"), HEADER_WORDS)
    if trust == "ignore" and "voxel_size_nm" not in given:
        check.fail(
            given["header_voxel_size"], found="ignore, and no voxel_size_nm", expected=f"voxel_size_nm: {NANOMETRES}"
        )
    origin = check.numbers(given.get("origin_nm"), 3, "three numbers [z, y, x] in nm, where the first voxel begins")
    if "origin_nm" in given and "frame" not in given:
        check.fail(given["origin_nm"], found="a position, and no frame", expected="frame: a name that volumes share")
    domain = check.choice(given.get("domain"), DOMAINS, "in (the specimen also trains) or out (it only tests)")
    fold = check.choice(given.get("fold"), FOLDS)
    return VolumeSpec(
        volume_id=f"{source}-{name}",
        image=read_file(check, given.get("image"), at),
        labels=labels,
        ignore=read_mask(check, given.get("ignore"), at),
        extras=read_extras(check, given.get("extras"), labels),
        annotated=annotated,
        voxel_size=None if size is None else VoxelSize(*size),
        voxel_size_at=given.get("voxel_size_nm"),
        header_ignored=trust == "ignore",
        specimen=check.text(given.get("specimen")) or "",
        frame=check.text(given.get("frame")),
        frame_at=given.get("frame"),
        origin_nm=None if origin is None else (origin[0], origin[1], origin[2]),
        cell_type=check.text(given.get("cell_type")) or "",
        modality=check.text(given.get("modality")) or modality,
        domain="out" if domain == "out" else "in",
        fold=next((known for known in FOLDS if known == fold), None),
        intensity=_intensity(check, given.get("intensity")),
    )


def _annotated(check: Checker, at: At | None, labels: tuple[LabelFile, ...]) -> dict[Organelle, AnnotationType]:
    """Read which organelles are annotated and how; organelles of semantic files get ``+lpa``."""
    if at is None:
        return {}
    if not isinstance(at.node, yaml.MappingNode):
        check.fail(at, expected="keys and values, as {mito: manual}")
        return {}
    annotated: dict[Organelle, AnnotationType] = {}
    derived = {organelle for label in labels if not label.instances for organelle in label.values.organelles}
    drawn = {organelle for label in labels if label.instances for organelle in label.values.organelles}
    for key, value in check.entries(at):
        known = key.node.value in ORGANELLES
        if key.node.value == GAP:
            check.text(key, expected=f"each organelle that was annotated: {', '.join(ORGANELLES)}")
            continue
        if not known:
            hint = did_you_mean(key.node.value, ORGANELLES)
            check.fail(key, found=repr(key.node.value), expected=f"one of {', '.join(ORGANELLES)}", hint=hint)
        kind = check.choice(value, ANNOTATION_TYPES)
        if not known or kind is None:
            continue
        organelle = Organelle(key.node.value)
        if labels and organelle not in derived | drawn:
            expected = f"an organelle that the labels have: {', '.join(sorted(derived | drawn)) or 'none'}"
            hint = f"say which value is {organelle}; without one, all of it would count as background"
            check.fail(key, found=f"{organelle}, which no label value means", expected=expected, hint=hint)
        full = f"{kind}+lpa" if organelle in derived and f"{kind}+lpa" in ANNOTATION_TYPES else kind
        annotated[organelle] = next(name for name in ANNOTATION_TYPES if name == full)
    for organelle in Organelle:
        if organelle in derived | drawn and organelle not in annotated and not _named(at, organelle):
            check.fail(
                at,
                found=f"no {organelle}, which the labels have",
                expected=f"{organelle}: one of {', '.join(ANNOTATION_TYPES)}",
                hint=f"say how {organelle} was annotated, or map its values to other:{organelle}",
            )
    return annotated


def _named(at: At, organelle: Organelle) -> bool:
    return any(getattr(key, "value", None) == organelle.value for key, _ in at.node.value)


def _intensity(check: Checker, at: At | None) -> Intensity:
    if at is None:
        return Intensity()
    fields = check.fields(at, ("invert", "window", "percentiles"))
    if {"window", "percentiles"} <= set(fields):
        check.fail(at, found="both window and percentiles", expected="one of them")
    window = check.numbers(fields.get("window"), 2, "two intensities [low, high]")
    percentiles = check.numbers(fields.get("percentiles"), 2, "two percentiles [low, high], as [0.1, 99.9]")
    if window is not None and not window[0] < window[1]:
        check.fail(fields["window"], expected="low below high", hint="invert: true turns the image round")
    if percentiles is not None and not 0 <= percentiles[0] < percentiles[1] <= 100:
        check.fail(fields["percentiles"], expected="0 <= low < high <= 100")
    return Intensity(
        check.flag(fields.get("invert")) or False,
        (window[0], window[1]) if window else None,
        (percentiles[0], percentiles[1]) if percentiles else None,
    )
