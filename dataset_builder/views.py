"""Files as the builder wants them, lazily: 8-bit gray, organelle classes, instance ids, ignore regions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from dataset_builder.harmonise import Window
from dataset_builder.label_values import IGNORED, Lookup, ValueMap
from dataset_builder.lazy import Elementwise, any_of, first_claim, inside
from dataset_builder.numbering import LARGEST_VOLUME_ID
from em_bench_eval.errors import InputError
from em_bench_eval.opened import Opened, whole_numbers
from em_bench_eval.schema import Array3D, Organelle

Box = tuple[slice, slice, slice]
BOX_VOXELS = 2**24  # of a pass over a whole file


def gray(image: Opened, window: Window | None = None, invert: bool = False) -> Elementwise:
    """Return an image as uint8, dark membranes: windowed to 8 bits (``None``: it has 8 already), then inverted."""
    return Elementwise(partial(_as_gray, window, invert), [image], np.uint8)


def _as_gray(window: Window | None, invert: bool, image: npt.NDArray[Any]) -> npt.NDArray[Any]:
    windowed = image if window is None else window.apply(image)
    if not invert:
        return windowed
    inverted = np.uint8(255) - windowed
    return np.where(np.isfinite(image), inverted, np.uint8(0)) if image.dtype.kind == "f" else inverted


def classes(files: Sequence[tuple[Opened, Lookup]]) -> Elementwise:
    """Return ``Organelle.label_id`` of every voxel, uint8; where several files claim a voxel the first wins."""
    return first_claim([Elementwise(partial(_organelles, lookup), [opened], np.uint8) for opened, lookup in files])


def _organelles(lookup: Lookup, labels: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    codes = lookup.codes(labels)
    codes[codes == IGNORED] = 0
    return codes


def ignored(files: Sequence[tuple[Opened, Lookup]], mask: Opened | None, values: tuple[int, ...] | None) -> Elementwise:
    """Return where nobody annotated: a mask has ``values`` (``None``: any but 0), or a file a value that says so."""
    masks = [_marked(opened, lookup) for opened, lookup in files]
    if mask is not None:
        masks.append(inside(mask) if values is None else Elementwise(partial(_is_one_of, values), [mask], np.bool_))
    return any_of(masks)


def _is_one_of(values: tuple[int, ...], mask: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    return np.isin(mask, values)


def named(files: Sequence[tuple[Opened, Lookup]], dtype: npt.DTypeLike = np.bool_) -> Elementwise:
    """Return a structure outside the five, where ``Lookup.codes`` of files are ``IGNORED`` (``ValueMap.marking``).

    A mask where any of the files has it; or, if ``dtype`` is no bool, the ids of the only one.
    """
    if np.dtype(dtype).kind == "b":
        return any_of([_marked(opened, lookup) for opened, lookup in files])
    ((opened, lookup),) = files
    return Elementwise(partial(_marked_ids, lookup), [opened], dtype)


def _marked(opened: Opened, lookup: Lookup) -> Elementwise:
    return Elementwise(partial(_is_marked, lookup), [opened], np.bool_)


def _is_marked(lookup: Lookup, labels: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    return np.asarray(lookup.codes(labels) == IGNORED)


def _marked_ids(lookup: Lookup, labels: npt.NDArray[Any]) -> npt.NDArray[Any]:
    ids = whole_numbers(labels, lookup.where)
    return np.where(lookup.codes(ids) == IGNORED, ids, 0)


def boxes(volume: Array3D, voxels: int = BOX_VOXELS) -> Iterator[Box]:
    """Cut a volume into boxes of about ``voxels``, in whole chunks as far as these are smaller."""
    shape = volume.shape
    edges = [min(pair) for pair in zip(getattr(volume, "chunk_shape", (1, 1, 1)), shape, strict=True)]
    while np.prod(edges) > voxels:  # a chunk that is too large itself is read more than once
        longest = int(np.argmax(edges))
        edges[longest] = -(-edges[longest] // 2)
    for axis in (2, 1, 0):
        chunk, size = edges[axis], shape[axis]
        room = voxels // max(1, int(np.prod(edges)) // chunk)
        edges[axis] = min(size, max(1, room // chunk) * chunk)
    for z in range(0, shape[0], edges[0]):
        for y in range(0, shape[1], edges[1]):
            for x in range(0, shape[2], edges[2]):
                ends = [
                    slice(start, min(start + edge, size))
                    for start, edge, size in zip((z, y, x), edges, shape, strict=True)
                ]
                yield ends[0], ends[1], ends[2]


def distinct_ids(volume: Array3D, where: str, values: ValueMap | None = None) -> npt.NDArray[np.uint64]:
    """Read a whole label file and return its ids but 0, ascending; raises ``InputError`` for what is no id.

    Negative values are none; those that ``values`` knows to be no organelle are left out.
    """
    from tqdm import tqdm

    found: set[int] = set()
    for box in tqdm(list(boxes(volume)), f"ids of {where}", unit="box", leave=False):
        found.update(np.unique(whole_numbers(volume[box], where)).tolist())
    negative = sorted(value for value in found if value < 0)
    wrong = [value for value in negative if values is None or values.code(value) not in (0, IGNORED)]
    if wrong:
        raise InputError(
            f"{where} holds negative ids",
            found=", ".join(map(str, wrong[:8])) + (", ..." if len(wrong) > 8 else ""),
            expected="0 for background and positive ids",
            remedy=f"if they mark what is no instance, say so: instances: {{{wrong[0]}: ignore, rest: mito}} "
            "(or background); if they are ids, export the file with an unsigned type",
        )
    return np.array(sorted(found - {0, *negative}), np.uint64)


def ids_of(
    files: Sequence[tuple[Array3D, Lookup]], class_of: Mapping[int, Organelle]
) -> tuple[Elementwise, dict[int, Organelle]]:
    """Number the instances of several files: ``(ids, {id: class})``; ``class_of`` translates ``Lookup`` codes.

    The ids of a single file stay as they are; those of several become 1..N, in the order of the files and of their ids.
    Ids that mean no organelle are 0, and where several files claim a voxel the first wins.
    """
    numbered: list[Callable[..., npt.NDArray[Any]]] = []
    classes: dict[int, Organelle] = {}
    for opened, lookup in files:
        known = distinct_ids(opened, lookup.where, lookup.values)
        codes = [lookup.values.code(int(value)) for value in known.tolist()]
        strangers = [
            int(value) for value, code in zip(known, codes, strict=True) if code not in (*class_of, 0, IGNORED)
        ]
        if strangers:
            raise InputError(
                f"{lookup.where} holds ids of which the spec says nothing",
                found=f"{len(strangers)} ids: {', '.join(map(str, strangers[:8]))}",
                expected=str(lookup.values),
                remedy="add what they are, or 'rest: other'",
            )
        kept = [(int(value), code) for value, code in zip(known.tolist(), codes, strict=True) if code in class_of]
        _check_largest(lookup.where, [value for value, _ in kept])
        first = len(classes) + 1
        given = [value for value, _ in kept] if len(files) == 1 else list(range(first, first + len(kept)))
        classes.update({name: class_of[code] for name, (_, code) in zip(given, kept, strict=True)})
        old, new = np.array([value for value, _ in kept], np.uint64), np.array(given, np.uint64)
        numbered.append(partial(_numbered, lookup.where, old, new))
    dtype = np.dtype(np.uint32) if max(classes, default=0) < 2**32 else np.dtype(np.uint64)
    maps = [Elementwise(number, [opened], dtype) for number, (opened, _) in zip(numbered, files, strict=True)]
    return first_claim(maps), classes


def _check_largest(where: str, ids: Sequence[int]) -> None:
    """Refuse ids that the tables, whose ids are signed, cannot hold."""
    wrong = [value for value in ids if value > LARGEST_VOLUME_ID]
    if wrong:
        raise InputError(
            f"{where} holds ids that are too large",
            found=f"{len(wrong)} of {len(ids)} ids, the first {wrong[0]}",
            expected=f"at most {LARGEST_VOLUME_ID} (2^63 - 1)",
            remedy=f"if that is no instance, say so: instances: {{{wrong[0]}: ignore, rest: mito}} (or background); "
            "else renumber them, for example with skimage.segmentation.relabel_sequential",
        )


def _numbered(
    where: str, old: npt.NDArray[np.uint64], new: npt.NDArray[np.uint64], labels: npt.NDArray[Any]
) -> npt.NDArray[np.uint64]:
    """Replace the ids ``old``, ascending, by ``new``, and all others by 0."""
    ids = whole_numbers(labels, where).astype(np.uint64)
    if not len(old):
        return np.zeros_like(ids)
    place = np.minimum(np.searchsorted(old, ids), len(old) - 1)
    return np.where(old[place] == ids, new[place], np.uint64(0))
