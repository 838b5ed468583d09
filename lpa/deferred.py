"""Labels that are not stored: components are found and named, and a block is labelled again when it is asked for.

For whoever reads every block of the result once, as ``em-bench build`` does. Finding and reading may happen in any
process and in any order; the ids are those of ``lpa.label(..., relabel="compact")``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lpa.jobs import keep_components, named_labels
from lpa.merge import merge
from lpa.plan import Index, Plan

Box = tuple[slice, slice, slice]  # (z, y, x), voxels


class DeferredLabels:
    """The instances of a volume that is labelled block by block; cheap to make, can be sent to other processes.

    ``find`` for every block, then ``join`` once, then ``read`` for any block.
    """

    def __init__(
        self, folder: Path, shape: Sequence[int], block_shape: Sequence[int], connectivity: int | Mapping[str, int]
    ):
        """Name the work folder, the volume's size and that of its blocks, ``(z, y, x)`` voxels, and what touches."""
        (depth, height, width), (z, y, x) = shape, block_shape
        self._plan = Plan(
            source=str(folder),
            shape=(depth, height, width),
            dtype="uint8",
            destination=str(folder / "labels"),
            block_shape=(z, y, x),
            connectivity=connectivity,
            relabel="compact",
        )

    @property
    def folder(self) -> Path:
        """The folder of what the blocks know of each other; nobody needs it once all of them are read."""
        return self._plan.work

    def find(self, box: Box, semantic: npt.NDArray[np.uint8]) -> None:
        """Find the components of one block and keep what its neighbours must know."""
        self._plan.faces_file((0, 0, 0)).parent.mkdir(parents=True, exist_ok=True)
        keep_components(self._plan, self._block_at(box), semantic)

    def join(self) -> dict[int, int]:
        """Give all components their ids, 1..N in the order of their first voxels; return how many each class has."""
        blocks = self._plan.blocks()
        self._plan.names_file((0, 0, 0)).parent.mkdir(parents=True, exist_ok=True)
        return merge(self._plan, blocks, blocks)

    def read(self, box: Box, semantic: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint32]:
        """Label one block; ``semantic`` holds what ``find`` was given for it."""
        ids = np.empty(semantic.shape, np.uint32)
        named_labels(self._plan, self._block_at(box), semantic, ids)
        return ids

    def _block_at(self, box: Box) -> Index:
        z, y, x = (side.start // edge for side, edge in zip(box, self._plan.block_shape, strict=True))
        assert self._plan.box((z, y, x)) == box, "boxes are the blocks of the plan"
        return z, y, x
