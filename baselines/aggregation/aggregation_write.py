"""Writing the instances of a level as a volume that ``em-bench score`` and any OME-Zarr reader open."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from baselines.aggregation.aggregation import Aggregated, aggregate
from baselines.aggregation.aggregation_cuts import Box
from baselines.aggregation.aggregation_levels import DEFAULT_CUTS, Cuts
from baselines.aggregation.aggregation_scratch import Scratch
from baselines.volumes.volume_classes import create_volume
from em_bench_eval.errors import InputError
from em_bench_eval.schema import ORGANELLES, Array3D
from em_bench_eval.score_volumes import Ends
from lpa.ome_zarr import full_disk_is_os_error, write_group
from lpa.plan import replace_folder


class _Writer:
    """Takes ``out[box] = labels``."""

    def __init__(self, array: Any):
        self.array = array

    def __setitem__(self, box: Box, labels: npt.NDArray[Any]) -> None:
        with full_disk_is_os_error():
            self.array[box].write(labels.astype(np.uint32, copy=False)).result()


def write_level(
    semantic: Array3D,
    level: str,
    path: str | os.PathLike[str],
    voxel_size_nm: Sequence[float],
    cuts: Cuts = DEFAULT_CUTS,
    *,
    annotated: Sequence[str] = ORGANELLES,
    predicted_box: Ends | None = None,
    scratch: Scratch | None = None,
    overwrite: bool = False,
) -> Aggregated:
    """Make the instances of a level (``aggregation.aggregate``) and write them to ``path``, a folder NAME.zarr.

    The folder is laid out like a volume of the dataset without its image: ``labels/instances``, and in the attributes
    what each id is, and the part of a larger volume that it is. It gets its name when it is complete. ``labels`` of the
    result is the array on disk. Raises
    ``InputError`` for an existing path, unless ``overwrite``.
    """
    target = Path(path)
    if target.exists() and not overwrite:
        raise InputError(
            f"{target} exists", expected="a new name", remedy="choose another, or overwrite it (--overwrite)"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        partial = work / target.name
        z, y, x = semantic.shape
        array = create_volume(partial / "labels" / "instances", (z, y, x), np.uint32, tuple(voxel_size_nm))
        found = aggregate(semantic, level, cuts, scratch=scratch, out=_Writer(array))
        table = {str(id_): str(organelle) for id_, organelle in found.organelle_of.items()}
        about: dict[str, Any] = {"organelle_of": table, "annotated": list(annotated), "aggregation": level}
        if predicted_box is not None:
            about["predicted_box"] = predicted_box
        pyramid = {  # the group itself shows the instances
            "name": target.name.removesuffix(".zarr"),
            "axes": [{"name": axis, "type": "space", "unit": "nanometer"} for axis in "zyx"],
            "datasets": [
                {
                    "path": "labels/instances/s0",
                    "coordinateTransformations": [{"type": "scale", "scale": [float(edge) for edge in voxel_size_nm]}],
                }
            ],
        }
        write_group(partial, {"ome": {"version": "0.5", "multiscales": [pyramid]}, "em_organelle_wild": about})
        write_group(partial / "labels", {"ome": {"version": "0.5", "labels": ["instances"]}})
        os.chmod(partial, 0o755)
        replace_folder(partial, target)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return Aggregated(_opened(target), found.organelle_of)


def _opened(path: Path) -> Any:
    from em_bench_eval.volume_io import open_volume

    return open_volume(path / "labels" / "instances")
