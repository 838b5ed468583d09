"""Where intermediate label volumes lie while levels are measured: in memory, or on disk where they are large."""

from __future__ import annotations

import itertools
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from baselines.aggregation.aggregation_cuts import Box, Shape
from baselines.aggregation.aggregation_sides import LABEL_ID, Classes, Maps, Reference, mapped_organelles
from baselines.volumes.volume_classes import boxes, classes_of, create_volume
from em_bench_eval.errors import InputError
from em_bench_eval.opened import Opened, whole_numbers
from em_bench_eval.schema import Array3D, VoxelSize
from em_bench_eval.volume_io import open_volume
from lpa import label, label_zarr
from lpa.ome_zarr import full_disk_is_os_error

MEMORY_VOXELS = 1 << 28  # a semantic map of 256 MB, and its 32 bit labels of 1 GB, stay in memory


class Scratch:
    """Makes semantic maps and whole-volume components; use it as a context, which removes its files at the end."""

    def __init__(self, folder: Path | None = None, memory_voxels: int = MEMORY_VOXELS, *, progress: bool = False):
        """``folder``: where a temporary folder is made if one is needed (default: the system's place for such)."""
        self.memory_voxels, self.progress = memory_voxels, progress
        self._parent = folder
        self._made: Path | None = None
        self._names = (f"volume{number}" for number in itertools.count())

    def __enter__(self) -> Scratch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._made is not None:
            shutil.rmtree(self._made, ignore_errors=True)
            self._made = None

    def semantic_of_maps(self, maps: Maps, voxel_size_nm: VoxelSize | None = None) -> Array3D:
        """Reduce probability maps to the one semantic map (uint8) that every level is made from."""
        organelles = mapped_organelles(maps)
        label_ids = [LABEL_ID[name] for name in organelles]
        return self.fill(
            maps.shape, lambda box: classes_of(maps.read(box, organelles), label_ids), "semantic map", voxel_size_nm
        )

    def semantic_of_reference(self, reference: Reference) -> Array3D:
        """Make the oracle's semantic map: the reference's own pixels, its organelles only."""
        return self.fill(reference.shape, reference.classes, "oracle semantic map", reference.voxel_size_nm)

    def fill(
        self,
        shape: Shape,
        read: Callable[[Box], Classes],
        about: str = "semantic map",
        voxel_size_nm: VoxelSize | None = None,
    ) -> Array3D:
        """Collect what ``read`` returns for the boxes of a volume."""
        path = None
        if np.prod(shape, dtype=np.int64) <= self.memory_voxels:
            target: Any = np.zeros(shape, np.uint8)
        else:
            path = self._path()
            target = create_volume(path, shape, np.uint8, None if voxel_size_nm is None else tuple(voxel_size_nm))
        for box in tqdm(list(boxes(shape)), desc=about, unit="block", disable=not self.progress, leave=False):
            with full_disk_is_os_error():
                target[box] = read(box)
        return target if path is None else open_volume(path)

    def components(self, semantic: Array3D, connectivity: Mapping[str, int]) -> Array3D:
        """Label the same-class components of the whole volume, 1 to N; ``connectivity`` by organelle."""
        if isinstance(semantic, np.ndarray):
            return label(semantic, connectivity, "compact")
        if not isinstance(semantic, Opened):
            raise InputError("components need a numpy array or an opened volume", found=type(semantic).__name__)
        path = self._path()
        label_zarr(semantic.location, path, connectivity=connectivity, relabel="compact", progress=self.progress)
        return open_volume(path)

    def _path(self) -> Path:
        if self._made is None:
            self._made = Path(tempfile.mkdtemp(prefix="em-bench-aggregation-", dir=self._parent))
        return self._made / f"{next(self._names)}.zarr"


def read_classes(semantic: Array3D, box: Box) -> Classes:
    """Read a box of a semantic map as uint8; raises ``InputError`` for anything but 0 to 5."""
    values: npt.NDArray[Any] = np.asarray(semantic[box])
    if values.dtype.kind == "f":
        values = whole_numbers(values, "the semantic map")
    if values.size and (int(values.min()) < 0 or int(values.max()) > 5):
        raise InputError(
            "the semantic map holds values that are no organelle",
            found=f"{int(values.min())} to {int(values.max())}",
            expected="0 for background, 1 mito, 2 nucleus, 3 er, 4 endo, 5 golgi",
        )
    return values.astype(np.uint8, copy=False)
