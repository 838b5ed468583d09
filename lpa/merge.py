"""Between the two passes: join the components of all blocks and decide every name. Serial, and small."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from em_bench_eval.errors import InputError
from em_bench_eval.whole_file import write_whole
from lpa.block import connectivity_of
from lpa.faces import contacts, flatten, join_planes
from lpa.plan import Index, Plan

REACH = {6: 1, 18: 2, 26: 3}  # along how many axes two touching voxels may differ


def merge(plan: Plan, blocks: Sequence[Index], progress: Iterable[Index]) -> dict[int, int]:
    """Name the components of all blocks; write ``names/`` and ``merged.json``; return instances per semantic value.

    Memory: 5 bytes for each component of a block that touches its face (9 for compact numbers), and the faces of three
    rows of blocks; the uids lie in a file. ``progress`` yields ``blocks`` and shows how far it is.
    """
    entries = _Entries(plan, blocks)
    # a plane is asked for by up to nine blocks, in this row of blocks, the next and the one after
    plane = lru_cache(maxsize=16 * (plan.grid[2] + 1))(lambda block, face: _plane(plan, block, face))
    for block in progress:
        own = entries.of[block]
        if own.start == own.stop:
            continue
        for other, steps, own_voxels, other_voxels in contacts(block, entries.present, plane):
            offsets = own.start, entries.of[other].start
            join_planes(
                own_voxels, other_voxels, steps, *offsets, entries.kind, entries.reach, entries.uid, entries.parent
            )
    flatten(entries.parent)

    instances: dict[int, int] = {}
    for block in blocks:
        own = entries.of[block]
        is_root = entries.parent[own] == np.arange(own.start, own.stop)
        values, counts = np.unique(entries.kind[own][is_root], return_counts=True)
        _count(instances, entries.values[values], counts)
        _count(instances, *_load(plan, block, "inner_classes", "inner_counts"))
    if plan.relabel == "compact":
        _number(plan, blocks, entries)
    else:
        for block in blocks:
            _save_names(plan, block, entries.uid[entries.parent[entries.of[block]]])
    text = json.dumps({str(value): count for value, count in sorted(instances.items())})
    write_whole(plan.work / "merged.json", lambda path: path.write_text(text + "\n"))
    return instances


class _Entries:
    """One entry for each component of each block that touches a face of the block, block after block.

    Attributes:
        of: the entries of each block; ``present``: the blocks that have any.
        uid: ``(N,)`` uint64, minimum linear index + 1 in the volume, in a file.
        kind: ``(N,)`` index into ``values`` (the classes) and ``reach`` (along how many axes their voxels may differ).
        parent: ``(N,)`` the union-find forest; a root is the entry of its tree with the smallest uid.
    """

    def __init__(self, plan: Plan, blocks: Sequence[Index]):
        index_of: dict[int, int] = {}
        kinds: list[npt.NDArray[np.uint16]] = []
        self.of: dict[Index, slice] = {}
        count = 0
        for block in blocks:
            (classes,) = _load(plan, block, "classes")
            present, which = np.unique(classes, return_inverse=True)
            known = [index_of.setdefault(int(value), len(index_of)) for value in present.tolist()]
            kinds.append(np.array(known, np.min_scalar_type(len(index_of)))[which])
            self.of[block] = slice(count, count + len(classes))
            count += len(classes)
        self.present = {block for block, own in self.of.items() if own.start < own.stop}
        self.kind = np.concatenate(kinds)
        self.values = np.array(list(index_of), np.uint64)
        neighbours_of = connectivity_of(plan.connectivity, list(index_of))
        self.reach = np.array([REACH[neighbours_of[value]] for value in index_of], np.uint8)
        self.parent = np.arange(count, dtype=np.uint32 if count < 2**32 else np.uint64)
        file = plan.work / "uids"
        self.uid = np.memmap(file, np.uint64, "w+", shape=(max(1, count),))[:count]
        for block in blocks:
            (self.uid[self.of[block]],) = _load(plan, block, "uid")


def _number(plan: Plan, blocks: Sequence[Index], entries: _Entries) -> None:
    """Number all components 1..N in the order of their uids, one layer of blocks after the other.

    The uids of a layer are all smaller than those of the next, so only one layer's components are sorted at a time.
    """
    number = np.zeros(len(entries.parent), np.uint32)
    base = 0
    for _, members in itertools.groupby(blocks, key=lambda block: block[0]):
        layer = list(members)
        inner = {block: _load(plan, block, "inner_uid")[0] for block in layer}
        first, last = entries.of[layer[0]].start, entries.of[layer[-1]].stop
        roots = first + np.flatnonzero(entries.parent[first:last] == np.arange(first, last))
        order = np.sort(np.concatenate([entries.uid[roots], *inner.values()]))
        number[roots] = base + 1 + np.searchsorted(order, entries.uid[roots])
        for block in layer:
            own = entries.of[block]
            at_face = number[entries.parent[own]]  # of this layer or an earlier one: a root has the smallest uid
            names = np.concatenate([at_face, base + 1 + np.searchsorted(order, inner[block])])
            # components of a block are in the order of their own first voxels
            in_order = np.argsort(np.concatenate([entries.uid[own], inner[block]]))
            _save_names(plan, block, names[in_order])
        base += len(order)
    if base >= 2**32:
        raise InputError("too many instances to number in 32 bits", found=base, remedy='use relabel="min_index"')


def _save_names(plan: Plan, block: Index, names: npt.NDArray[Any]) -> None:
    np.save(plan.names_file(block), names.astype(plan.label_dtype))


def _load(plan: Plan, block: Index, *names: str) -> tuple[npt.NDArray[Any], ...]:
    with np.load(plan.faces_file(block)) as file:
        return tuple(file[name] for name in names)


def _plane(plan: Plan, block: Index, face: str) -> npt.NDArray[Any]:
    with np.load(plan.faces_file(block)) as file:
        if face in file:
            plane: npt.NDArray[Any] = file[face]
            return plane
    box = plan.box(block)
    shape = [side.stop - side.start for axis, side in zip("zyx", box, strict=True) if axis != face[0]]
    return np.zeros(shape, np.uint8)


def _count(instances: dict[int, int], values: npt.NDArray[Any], counts: npt.NDArray[Any]) -> None:
    for value, count in zip(values.tolist(), counts.tolist(), strict=True):
        instances[int(value)] = instances.get(int(value), 0) + count
