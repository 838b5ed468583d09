"""Where the volumes of a spec lie: parts of one image file share its coordinates, others those that the spec names.

Volumes of one frame may touch or overlap, so their folds are cut together (``frames``) and compared in space
(``leaks``).
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import NamedTuple

from dataset_builder.spec import Spec, VolumeSpec
from dataset_builder.yaml_check import At, Checker
from em_bench_eval.opened import Opened
from em_bench_eval.schema import Frame, Span, VoxelSize

Vector = tuple[float, float, float]  # (z, y, x), nm
RESOLUTIONS = {"resolution", "pixelResolution", "element_size_um"}  # attributes whose writers may add an offset
DIGITS = 1e-6  # voxels: positions are written in decimals


class Place(NamedTuple):
    """Where one volume lies."""

    frame: Frame
    origin_nm: Vector  # lower corner of its first voxel


class Opening(NamedTuple):
    """The image of a volume, as it was opened: the part that the spec takes, and its voxel size."""

    image: Opened
    voxel_size: VoxelSize


def check_frames(spec: Spec, openings: Mapping[str, Opening]) -> None:
    """Note a fault for every volume of a named frame whose position nobody states."""
    for volume in spec.volumes:
        opening = openings.get(volume.volume_id)
        stated = opening is not None and opening.image.translation_nm is not None and not volume.header_ignored
        if volume.frame and opening and volume.origin_nm is None and not stated:
            spec.checker.fail(
                volume.frame_at or volume.image.at,
                found=f"the frame {volume.frame}, and no position: none here, and none in {opening.image.location}",
                expected="origin_nm: [z, y, x], where the first voxel of the image begins in the frame",
            )


def check_position(checker: Checker, at: At, image: Opened, labels: Opened, voxel_size: VoxelSize | None) -> None:
    """Note a fault where image and labels both state where they begin, more than half a voxel apart.

    Some tools mean the corner of the first voxel, others its centre: half a voxel is no contradiction.
    """
    here, there, size = _position(image), _position(labels), voxel_size or image.voxel_size_nm
    if here is None or there is None or size is None:
        return
    shift = [(b - a) / nm for a, b, nm in zip(here, there, size, strict=True)]
    if max(map(abs, shift)) > 0.5 + DIGITS:
        apart = ", ".join(f"{voxels:+.4g}" for voxels in shift)
        checker.fail(
            at,
            found=f"begins at {_nm(there)} nm (z, y, x), as {labels.location} says; the image at {_nm(here)} nm, as "
            f"{image.location} says: {apart} voxels apart",
            expected="the position of the image, within half a voxel",
            hint="if both are right, take the part that both cover, by a box: beside each path; if not, correct the "
            "position in the file where it is wrong",
        )


def _position(opened: Opened) -> Vector | None:
    """Return where the first voxel is; a file that states a resolution and no offset does not say."""
    silent = RESOLUTIONS & set(opened.attributes) and "offset" not in opened.attributes
    return None if silent else opened.translation_nm


def _nm(position: Vector) -> str:
    return ", ".join(f"{edge:g}" for edge in position)


def places_of(spec: Spec, openings: Mapping[str, Opening]) -> dict[str, Place]:
    """Return the place of every volume that lies in a frame, by ``volume_id``."""
    images = Counter(volume.image.location for volume in spec.volumes)
    origins: dict[str, tuple[str, Vector]] = {}
    for volume in spec.volumes:
        opening = openings[volume.volume_id]
        if volume.frame:
            origins[volume.volume_id] = volume.frame, _stated(volume, opening)
        elif images[volume.image.location] > 1:
            origins[volume.volume_id] = volume.image.location, _in_file(volume, opening.voxel_size)
    spans: dict[str, list[Span]] = defaultdict(list)
    for name, (frame, (z_nm, _, _)) in origins.items():
        spans[frame].append(Span(z_nm, openings[name].voxel_size.z, openings[name].image.shape[0]))
    frames = {name: Frame(f"{spec.info.name}: {_named(spec, name)}", tuple(spans[name])) for name in spans}
    return {name: Place(frames[frame], origin_nm) for name, (frame, origin_nm) in origins.items()}


def _named(spec: Spec, frame: str) -> str:
    """Name a file as the spec would; the name of a frame is none, and stays."""
    return os.path.relpath(frame, spec.path.absolute().parent) if os.path.isabs(frame) else frame


def _in_file(volume: VolumeSpec, voxel_size: VoxelSize) -> Vector:
    box = volume.image.box or ((0, 0), (0, 0), (0, 0))
    z, y, x = (start * nm for (start, _), nm in zip(box, voxel_size, strict=True))
    return z, y, x


def _stated(volume: VolumeSpec, opening: Opening) -> Vector:
    if volume.origin_nm is not None:
        return volume.origin_nm
    centre_nm = opening.image.translation_nm
    assert centre_nm is not None, "checked when the spec was opened"
    z, y, x = (nm - edge / 2 for nm, edge in zip(centre_nm, opening.voxel_size, strict=True))
    return z, y, x
