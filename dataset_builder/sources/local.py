"""Private data: volumes in any format that `em-bench inspect` shows, declared by a YAML spec of the user's."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from dataset_builder.chunk_files import ignore_not_stored
from dataset_builder.harmonise import Window, contrast_of
from dataset_builder.label_values import BACKGROUND, IGNORE, Lookup, ValueMap, from_table
from dataset_builder.lazy import Elementwise
from dataset_builder.not_finite import ignore_not_finite
from dataset_builder.source import Option, Source
from dataset_builder.spec import Intensity, Spec, VolumeSpec, load_spec
from dataset_builder.spec_files import FileRef
from dataset_builder.spec_frames import Opening, check_frames, check_position, places_of
from dataset_builder.views import classes, gray, ids_of, ignored, named
from dataset_builder.yaml_check import At
from em_bench_eval.errors import InputError
from em_bench_eval.opened import Opened
from em_bench_eval.schema import Array3D, Organelle, SourceInfo, Volume, VoxelSize
from em_bench_eval.volume_files import plain_path
from em_bench_eval.volume_io import open_volume

INFO = SourceInfo(
    name="local",
    title="Private stacks, declared by a spec",
    citation="@misc{local,\n  title = {Private data}, note = {the spec of the data names its citation}\n}",
    licence="as the spec says",
    url="",
    redistributable=False,
    modality="as the spec says",
    annotated={},
    notes="em-bench inspect PATH --draft spec.yaml drafts a spec; em-bench build --spec spec.yaml builds it.",
)
SPEC_ABOUT = "the YAML file that declares the volumes; --spec FILE is short for it"
TOLERANCE = 0.01  # by which the voxel size of the spec may differ from the file's
DEFAULT_PERCENTILES = (0.1, 99.9)
SAMPLED_PLANES, SAMPLED_PIXELS = 16, 2**20  # evenly spaced planes, and pixels of each, from which percentiles are taken


def source_of(path: Path) -> Source:
    """Make the source that a spec declares, under the name and with the licence of the spec.

    The spec and the headers of its files are checked now, and every fault is raised at once as ``InputError``; voxels
    are read when the volumes are.
    """
    spec = load_spec(path)
    files, openings = _open_files(spec)
    places = places_of(spec, openings)

    def volumes(raw: Path | None, options: Mapping[str, str]) -> Iterator[Volume]:
        for volume in spec.volumes:
            made, place = _volume(spec, volume, files), places.get(volume.volume_id)
            yield made if place is None else replace(made, frame=place.frame, origin_nm=place.origin_nm)

    others = {name for volume in spec.volumes for label in volume.labels for name in label.values.others}
    others |= {extra.name for volume in spec.volumes for extra in volume.extras}
    return Source(
        info=spec.info,
        volumes=volumes,
        settings={
            "spec": Option(str(path.absolute()), SPEC_ABOUT),
            # an edited spec is another job: an interrupted build is not continued with it
            "sha256": Option(hashlib.sha256(path.read_bytes()).hexdigest(), "digest of the spec"),
        },
        extras=dict.fromkeys(sorted(others), f"declared in {path.name}"),
    )


def volumes(raw: Path | None, options: Mapping[str, str]) -> Iterable[Volume]:
    """Yield the volumes of the spec that the option ``spec`` names."""
    return declare(options).volumes(None, {})


def _open_files(spec: Spec) -> tuple[dict[str, Opened], dict[str, Opening]]:
    """Open every file of a spec, check shapes, types and voxel sizes against each other; return files and images."""
    opened: dict[str, Opened] = {}
    for volume in spec.volumes:
        for reference in _references(volume):
            if reference.location not in opened:
                try:
                    opened[reference.location] = open_volume(reference.location)
                except InputError as error:
                    _fail(spec, reference.at, error)
    for volume in spec.volumes:
        parts = [(reference, _part(spec, reference, opened)) for reference in _references(volume)]
        image = parts[0][1]
        for reference, part in parts[1:]:
            if image is not None and part is not None and part.shape != image.shape:
                spec.checker.fail(
                    reference.at,
                    found=f"{part.shape} voxels (z, y, x)",
                    expected=f"{image.shape}, as the image has",
                    hint=_box_hint(image, part),
                )
            elif image is not None and part is not None and not volume.header_ignored:
                check_position(spec.checker, reference.at, image, part, volume.voxel_size)
        if image is not None:
            _check_image(spec, volume, image)
            _voxel_size(spec, volume, [part for _, part in parts if part is not None])
    spec.checker.raise_faults()
    openings = _openings(spec, opened)
    check_frames(spec, openings)
    spec.checker.raise_faults()
    return opened, openings


def _openings(spec: Spec, files: Mapping[str, Opened]) -> dict[str, Opening]:
    openings = {}
    for volume in spec.volumes:
        parts = [
            _part(spec, reference, files) for reference in (volume.image, *(label.file for label in volume.labels))
        ]
        found = [part for part in parts if part is not None]
        size = _voxel_size(spec, volume, found)
        assert size is not None, "checked when the spec was opened"
        openings[volume.volume_id] = Opening(found[0], size)
    return openings


def _references(volume: VolumeSpec) -> list[FileRef]:
    masks = [] if volume.ignore is None else [volume.ignore.file]
    extras = [extra.file for extra in volume.extras]
    return [volume.image, *(label.file for label in volume.labels), *masks, *extras]


def _part(spec: Spec, reference: FileRef, opened: Mapping[str, Opened]) -> Opened | None:
    whole = opened.get(reference.location)
    if whole is None or reference.box is None:
        return whole
    try:
        return whole.crop(*reference.box)
    except InputError as error:
        _fail(spec, reference.at, error)
        return None


def _fail(spec: Spec, at: At, error: InputError) -> None:
    found = error.problem if error.found is None else f"{error.problem}: {error.found}"
    spec.checker.fail(at, found=found, expected=str(error.expected), hint=error.remedy or "")


def _check_image(spec: Spec, volume: VolumeSpec, image: Opened) -> None:
    if image.attributes.get("palette"):
        spec.checker.fail(
            volume.image.at,
            found="an image with a colour table, whose values are no intensities",
            expected="gray values",
            hint="export it as grayscale without a look-up table",
        )
    if image.dtype.kind == "b":
        spec.checker.fail(volume.image.at, found="a 1-bit image", expected="gray values", hint="is it a label file?")
    if image.dtype == np.uint8 and (volume.intensity.window or volume.intensity.percentiles):
        spec.checker.fail(
            volume.image.at,
            found="an 8-bit image, and intensity.window or intensity.percentiles",
            expected="neither: an 8-bit image keeps its values",
            hint="remove it; invert: true is possible",
        )


def _voxel_size(spec: Spec, volume: VolumeSpec, files: list[Opened]) -> VoxelSize | None:
    """Return the voxel size of a volume; notes a fault where none is stated, or one that contradicts a file."""
    stated = volume.voxel_size
    at = volume.voxel_size_at or volume.image.at
    if volume.header_ignored:
        return stated
    for opened in files:
        size = opened.voxel_size_nm
        if size is None:
            continue
        if stated is None:
            stated = size
        elif any(abs(ours / theirs - 1) > TOLERANCE for ours, theirs in zip(stated, size, strict=True)):
            spec.checker.fail(
                at,
                found=f"{_nm(stated)} nm (z, y, x), where {opened.location} says {_nm(size)}",
                expected=f"the same within {TOLERANCE:.0%}",
                hint="correct what is wrong here, or the header with the program that wrote the file; "
                "header_voxel_size: ignore beside voxel_size_nm overrides a wrong header",
            )
    if stated is None:
        notes = "; ".join(note for opened in files for note in opened.notes if "stated" in note)
        spec.checker.fail(
            at,
            found="no voxel_size_nm here, and none in the files" + (f" ({notes})" if notes else ""),
            expected="voxel_size_nm: [z, y, x]",
        )
    return stated


def _nm(size: VoxelSize) -> str:
    return ", ".join(f"{edge:g}" for edge in size)


def _box_hint(image: Opened, part: Opened) -> str:
    """Propose the box of the image that a smaller label file covers, where both state where they are."""
    here, there, size = image.translation_nm, part.translation_nm, image.voxel_size_nm
    if here is None or there is None or size is None:
        return "box: [[z0, z1], [y0, y1], [x0, x1]] beside a path takes a part of a file"
    first = [round((b - a) / nm) for a, b, nm in zip(here, there, size, strict=True)]
    box = [[start, start + edge] for start, edge in zip(first, part.shape, strict=True)]
    return f"by their positions the labels cover this part of the image: {{path: ..., box: {box}}}"


def _volume(spec: Spec, volume: VolumeSpec, files: Mapping[str, Opened]) -> Volume:
    def part(reference: FileRef) -> Opened:
        found = _part(spec, reference, files)
        assert found is not None, "checked when the spec was opened"
        return found

    image = part(volume.image)
    labels = [(part(label.file), Lookup(label.values, label.file.location)) for label in volume.labels]
    size = _voxel_size(spec, volume, [image, *(opened for opened, _ in labels)])
    assert size is not None, "checked when the spec was opened"
    mask = None if volume.ignore is None else part(volume.ignore.file)
    unsure = [pair for label, pair in zip(volume.labels, labels, strict=True) if label.values.ignores]
    ignore = ignored(unsure, mask, volume.ignore.values if volume.ignore else None) if unsure or mask else None
    picture, record = _gray(image, volume.intensity)
    common = Volume(
        volume_id=volume.volume_id,
        image=picture,
        voxel_size=size,
        source=spec.info.name,
        specimen=volume.specimen,
        cell_type=volume.cell_type,
        modality=volume.modality,
        annotated=volume.annotated,
        semantic=classes(labels),
        ignore=ignore,
        domain=volume.domain,
        published_fold=volume.fold,
        provenance={**_origin(spec, volume, files), **record},
        extras=_extras(volume, labels, {extra.name: part(extra.file) for extra in volume.extras}),
    )
    common = ignore_not_stored(ignore_not_finite(common, image), image)
    if not any(label.instances for label in volume.labels):
        return common
    ids, organelle_of = _instances(volume, labels)
    return replace(common, semantic=None, instances=ids, organelle_of=organelle_of)


def _extras(volume: VolumeSpec, labels: list[tuple[Opened, Lookup]], files: Mapping[str, Opened]) -> dict[str, Array3D]:
    """Collect what is labelled outside the five: ids from a file that tells instances apart, else masks."""
    extras: dict[str, Array3D] = {}
    for name in dict.fromkeys(other for label in volume.labels for other in label.values.others):
        having = [pair for pair in zip(volume.labels, labels, strict=True) if name in pair[0].values.others]
        marked = [(opened, Lookup(label.values.marking(name), lookup.where)) for label, (opened, lookup) in having]
        one_of_ids = len(having) == 1 and having[0][0].instances
        extras[name] = named(marked, _id_dtype(marked[0][0]) if one_of_ids else np.bool_)
    for extra in volume.extras:
        opened = files[extra.name]
        if extra.values is None:
            lookup = Lookup(ValueMap(((1, 2**64 - 1, IGNORE),)), extra.file.location)
            extras[extra.name] = named([(opened, lookup)], _id_dtype(opened))
        else:
            ranges = tuple((value, value, IGNORE) for value in extra.values)
            lookup = Lookup(ValueMap(ranges, BACKGROUND), extra.file.location)
            extras[extra.name] = named([(opened, lookup)])
    return extras


def _id_dtype(opened: Opened) -> np.dtype[Any]:
    """Return the unsigned type of a file's size; a 1-bit file holds a mask."""
    return np.dtype(bool) if opened.dtype.kind == "b" else np.dtype(f"uint{8 * opened.dtype.itemsize}")


def _instances(volume: VolumeSpec, labels: list[tuple[Opened, Lookup]]) -> tuple[Elementwise, dict[int, Organelle]]:
    """Number the instances of a volume; semantic files beside instance files are labelled in memory first."""
    import lpa

    class_of = {organelle.label_id: organelle for organelle in Organelle}
    files: list[tuple[Array3D, Lookup]] = []
    for label, (opened, lookup) in zip(volume.labels, labels, strict=True):
        if label.instances:
            files.append((opened, lookup))
            continue
        semantic = classes([(opened, lookup)])[:]
        found = lpa.label(semantic, lpa.DEFAULT_CONNECTIVITY, relabel="compact")
        ids, first = np.unique(found, return_index=True)
        organelles = [str(class_of[code]) for code in semantic.ravel()[first[ids > 0]].tolist()]
        table = dict(zip(ids[ids > 0].tolist(), organelles, strict=True))
        files.append((found, Lookup(from_table(table), lookup.where)))
    return ids_of(files, class_of)


def _gray(image: Opened, intensity: Intensity) -> tuple[Array3D, dict[str, str]]:
    """Return the image as the spec wants it, and what is recorded of that.

    Other than 8-bit images without a window stay as they are here: the builder gives them its own.
    """
    window = None
    low, high = intensity.window or (None, None)
    if low is not None and high is not None:
        window = Window(low, high, image.dtype.name)
    elif image.dtype == np.int8:  # MRC: a shift by 128 loses nothing
        window = Window(-128.0, 127.0, "int8")
    elif intensity.percentiles or (intensity.invert and image.dtype != np.uint8):
        window = _percentile_window(image, intensity.percentiles or DEFAULT_PERCENTILES)
    record = {} if window is None else window.provenance()
    if intensity.invert:
        record["intensity_inverted"] = "true"
    return (gray(image, window, intensity.invert) if window or intensity.invert else image), record


def _percentile_window(image: Opened, percentiles: tuple[float, float]) -> Window:
    """Choose the window from pixels of evenly spaced planes, without padding; the same in every run."""
    depth, height, width = image.shape
    step = max(1, math.isqrt(height * width // SAMPLED_PIXELS))
    planes = sorted({round(z) for z in np.linspace(0, depth - 1, SAMPLED_PLANES).tolist()})
    ends = contrast_of(np.concatenate([image[z, ::step, ::step].ravel() for z in planes]), percentiles)
    if ends is None or not ends[0] < ends[1]:
        between = f"{percentiles[0]:g} and {percentiles[1]:g} of {len(planes)} planes"
        raise InputError(
            f"{image.location}: the image is empty",
            found=f"no finite intensity in {len(planes)} planes"
            if ends is None
            else f"{ends[0]:g} at the percentiles {between}",
            expected="an image with contrast",
            remedy="check the path, or give the intensities yourself: intensity: {window: [low, high]}",
        )
    return Window(*ends, image.dtype.name)


def _origin(spec: Spec, volume: VolumeSpec, files: Mapping[str, Opened]) -> dict[str, str]:
    """Say which files a volume is made of, without the folders above the spec, which are nobody's business."""
    labels = [_short(spec, label.file) for label in volume.labels]
    record = {"raw": _short(spec, volume.image), "labels": ", ".join(labels)}
    if volume.ignore is not None:
        record["ignore"] = _short(spec, volume.ignore.file)
    if volume.header_ignored:
        record["header_voxel_size"] = f"ignored: {_headers(spec, volume, files)}"
    for label, name in zip(volume.labels, labels, strict=True):
        for other in label.values.others:
            record[f"extra:{other}"] = f"{name}: {label.values}"
    for extra in volume.extras:
        which = "" if extra.values is None else f": {', '.join(map(str, extra.values))}"
        record[f"extra:{extra.name}"] = f"{_short(spec, extra.file)}{which}"
    return record


def _headers(spec: Spec, volume: VolumeSpec, files: Mapping[str, Opened]) -> str:
    """Say what the headers of a volume's files state of the voxel size."""
    stated = {_short(spec, one): files[one.location].voxel_size_nm for one in _references(volume)}
    said = [f"{name} states {_nm(size)} nm (z, y, x)" for name, size in stated.items() if size is not None]
    return "; ".join(said) or "no file states one"


def _short(spec: Spec, reference: FileRef) -> str:
    home, stated = plain_path(spec.path.parent) + "/", str(getattr(reference.at.node, "value", ""))
    name = reference.location
    if name.startswith(home):
        name = name.removeprefix(home)
    elif "://" not in name:  # as the spec says it from where it lies; elsewhere the name of the file
        name = os.path.normpath(stated) if stated.startswith("../") else Path(name).name
    return name if reference.box is None else f"{name}[{', '.join(f'{a}:{b}' for a, b in reference.box)}]"


def declare(options: Mapping[str, str]) -> Source:
    """Make the source of the spec that the option ``spec`` names: its name, licence and annotation are the spec's."""
    if not options["spec"]:
        raise InputError(
            "source local needs a spec",
            expected="--spec spec.yaml",
            remedy="em-bench inspect PATH --draft spec.yaml writes one to fill in",
        )
    return source_of(Path(options["spec"]))


SOURCE = Source(info=INFO, volumes=volumes, settings={"spec": Option("", SPEC_ABOUT)}, declare=declare)
