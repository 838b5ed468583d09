"""Score one volume against another, from files or servers, block by block."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from .errors import InputError
from .label_maps import organelle_name
from .opened import Opened, whole_numbers
from .rows import labels_are_private
from .schema import ORGANELLES, VoxelSize
from .scoring import Evaluation
from .settings import DEFAULT_SETTINGS, Settings
from .volume_io import is_remote, open_volume

Ends = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]  # first and one past the last voxel: z, y, x
BLOCK_VOXELS = 1 << 25  # of each label map in memory: 128 MB of 32 bit
SAME_SIZE = 0.01  # relative difference of voxel sizes that are taken for equal


@dataclass(frozen=True)
class LabelVolume:
    """The instances of one volume: lazily read label maps, and what each id is where one map holds several organelles.

    ``organelle_of`` is None if ``maps`` has a label map per organelle, else ``maps`` has the one key "".
    """

    location: str
    maps: Mapping[str, Opened]
    organelle_of: Mapping[int, str] | None = None
    annotated: tuple[str, ...] | None = None
    ignore: Opened | None = None
    predicted_box: Ends | None = None  # the part of the reference's volume that was predicted

    @property
    def shape(self) -> tuple[int, int, int]:
        """Size in voxels, ``(z, y, x)``."""
        return next(iter(self.maps.values())).shape

    @property
    def voxel_size_nm(self) -> VoxelSize | None:
        """Voxel size in nm, if a file states it."""
        return next((opened.voxel_size_nm for opened in self.maps.values() if opened.voxel_size_nm), None)

    def crop(self, box: Ends) -> LabelVolume:
        """Return the part in a box; one that has the box's shape already is that part."""
        if self.shape == tuple(stop - start for start, stop in box):
            return self
        maps = {name: opened.crop(*box) for name, opened in self.maps.items()}
        return replace(self, maps=maps, ignore=None if self.ignore is None else self.ignore.crop(*box))

    def read(self, box: tuple[slice, ...]) -> Any:
        """Read a box in a form that ``Evaluation`` takes."""
        if self.organelle_of is None:
            return {organelle: whole_numbers(opened[box], opened.location) for organelle, opened in self.maps.items()}
        return whole_numbers(self.maps[""][box], self.location), self.organelle_of


def open_labels(location: str | os.PathLike[str], organelle: str | None = None) -> LabelVolume:
    """Open instances to score.

    Args:
        location: a label map (anything that ``open_volume`` opens) of the organelle that ``organelle`` names; a folder
            with one label map per organelle, called ``mito.nii.gz``, ``er.zarr``, ...; or a volume of a benchmark
            dataset (``volumes/<id>.zarr``), which says itself what each id is, what is annotated and what is not.
        organelle: one of the five.

    Raises:
        InputError: nothing to score there, or nothing says of which organelle.
    """
    path = os.fspath(location).rstrip("/")
    if organelle is not None:
        return LabelVolume(path, {organelle_name(organelle): open_volume(path)})
    if not is_remote(path) and Path(path).is_dir():
        per_organelle = _per_organelle(Path(path))
        if per_organelle:
            return _checked(LabelVolume(path, {name: open_volume(file) for name, file in per_organelle.items()}))
    about = open_volume(path).attributes.get("em_organelle_wild") if _is_group(path) else None
    if isinstance(about, Mapping) and about.get("private_labels") and not about["private_labels"]["public_slices"]:
        raise labels_are_private(path)
    organelle_of = _organelle_table(path, about) if isinstance(about, Mapping) else None
    if isinstance(about, Mapping) and organelle_of is not None:
        has_ignore = not is_remote(path) and Path(path, "labels", "ignore").is_dir()
        return LabelVolume(
            path,
            {"": open_volume(f"{path}/labels/instances")},
            organelle_of,
            tuple(map(organelle_name, about.get("annotated", ORGANELLES))),
            open_volume(f"{path}/labels/ignore") if has_ignore else None,
            _box(about.get("predicted_box")),
        )
    raise InputError(
        f"nothing says of which organelle the instances in {path} are",
        expected="--organelle NAME, a folder with mito.*, nucleus.*, ..., or a volume of a benchmark dataset",
        remedy=f"name it: --organelle {' | '.join(ORGANELLES)}",
    )


def score_volumes(
    prediction: LabelVolume,
    reference: LabelVolume,
    *,
    settings: Settings = DEFAULT_SETTINGS,
    voxel_size_nm: Sequence[float] | None = None,
    ignore: Opened | None = None,
    box: Ends | None = None,
    keep_instances: bool = False,
    block_voxels: int = BLOCK_VOXELS,
) -> Evaluation:
    """Score a volume; returns the evaluation, which ``compute`` reduces to keys.

    Reads blocks of about ``block_voxels``, so memory does not depend on the size of the volume; skeletons and
    boundaries need the whole label maps in memory. ``voxel_size_nm`` (z, y, x) is needed only where no file states it.
    ``box`` cuts both sides first, and instances with them; by default it is the part that the prediction says was
    predicted. Raises ``InputError`` if the grids differ.
    """
    from tqdm import tqdm

    part = box or prediction.predicted_box
    if part is not None:
        prediction, reference = prediction.crop(part), reference.crop(part)
        ignore = None if ignore is None else LabelVolume("ignore", {"": ignore}).crop(part).maps[""]
    hidden = ignore or reference.ignore
    size = _common_grid(prediction, reference, hidden, voxel_size_nm)
    context: dict[str, Any] = {"voxel_size_nm": tuple(size), "annotated": _judged(prediction, reference)}
    evaluation = Evaluation(settings, keep_instances=keep_instances)
    whole = bool(settings.skeleton or settings.boundary)
    first = next(iter(reference.maps.values()))
    boxes = list(_boxes(reference.shape, reference.shape if whole else _block_shape(first, block_voxels)))
    for block in tqdm(boxes, desc="score", unit="block"):
        mask = None if hidden is None else hidden[block] != 0
        labels = (prediction.read(block), reference.read(block))
        if whole:
            evaluation.add(*labels, ignore=mask, item=reference.location, **context)
        else:
            start = [side.start for side in block]
            evaluation.add_block(
                reference.location, *labels, start=start, shape=reference.shape, ignore=mask, **context
            )
    return evaluation


def _box(stated: Any) -> Ends | None:
    if stated is None:
        return None
    z, y, x = ((int(start), int(stop)) for start, stop in stated)
    return z, y, x


def _organelle_table(path: str, about: Mapping[str, Any]) -> dict[int, str] | None:
    """Return what each id of a dataset's volume is: from its attributes, or for many ids from the dataset's table."""
    if "organelle_of" in about:
        return {int(id_): organelle_name(name) for id_, name in about["organelle_of"].items()}
    table = Path(path).parent.parent / "instances.parquet"
    if "instances" not in about or is_remote(path) or not table.is_file():
        return None
    import pyarrow.parquet as pq

    own = [("volume_id", "==", Path(path).name.removesuffix(".zarr"))]
    rows = pq.read_table(table, columns=["instance_id", "organelle"], filters=own)
    pairs = zip(rows["instance_id"].to_pylist(), rows["organelle"].to_pylist(), strict=True)
    return {int(id_): organelle_name(name) for id_, name in pairs}


def _per_organelle(folder: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        name = path.name.split(".", 1)[0]
        if name in ORGANELLES and name in found:
            raise InputError(
                f"two label maps of {name} in {folder}", found=f"{found[name].name}, {path.name}", expected="one"
            )
        if name in ORGANELLES:
            found[name] = path
    return found


def _is_group(path: str) -> bool:
    return is_remote(path) or any(Path(path, name).is_file() for name in ("zarr.json", ".zgroup", ".zattrs"))


def _checked(volume: LabelVolume) -> LabelVolume:
    shapes = {name: opened.shape for name, opened in volume.maps.items()}
    if len(set(shapes.values())) > 1:
        raise InputError(
            f"the label maps in {volume.location} differ in shape",
            found=", ".join(f"{name} {shape}" for name, shape in shapes.items()),
            expected="one voxel grid",
        )
    return volume


def _judged(prediction: LabelVolume, reference: LabelVolume) -> tuple[str, ...]:
    """Judge what the reference says is annotated; where it says nothing, the organelles that it has a map of."""
    if reference.annotated is not None:
        return reference.annotated
    names = set(reference.maps) if reference.organelle_of is None else set(reference.organelle_of.values())
    return tuple(name for name in ORGANELLES if name in names)


def _common_grid(
    prediction: LabelVolume, reference: LabelVolume, ignore: Opened | None, given: Sequence[float] | None
) -> VoxelSize:
    shapes = {"prediction": prediction.shape, "reference": reference.shape}
    shapes |= {"ignore": ignore.shape} if ignore is not None else {}
    if len(set(shapes.values())) > 1:
        raise InputError(
            "prediction and reference differ in shape",
            found=", ".join(f"{name} {shape} (z, y, x)" for name, shape in shapes.items()),
            expected="one voxel grid",
            remedy="resample the prediction to the grid of the reference (nearest voxel), and never crop silently",
        )
    sizes = {"prediction": prediction.voxel_size_nm, "reference": reference.voxel_size_nm}
    if given is not None:
        sizes["--voxel-size-nm"] = VoxelSize(*given)
    stated = {name: size for name, size in sizes.items() if size is not None}
    if not stated:
        raise InputError(
            f"neither {prediction.location} nor {reference.location} states a voxel size",
            expected="the edge lengths of a voxel in nm",
            remedy="give --voxel-size-nm Z,Y,X (in Python: voxel_size_nm=(z, y, x))",
        )
    for (one, a), (other, b) in itertools.combinations(stated.items(), 2):
        if any(abs(i - j) > SAME_SIZE * max(i, j) for i, j in zip(a, b, strict=True)):
            raise InputError(
                f"{one} and {other} differ in voxel size",
                found=f"{tuple(a)} and {tuple(b)} nm (z, y, x)",
                expected=f"the same within {SAME_SIZE:.0%}",
                remedy="resample the prediction, or correct the metadata of the file that is wrong",
            )
    return stated.get("--voxel-size-nm") or stated.get("reference") or stated["prediction"]


def _block_shape(opened: Opened, block_voxels: int) -> tuple[int, ...]:
    """Grow a chunk until the block holds about ``block_voxels``: whole chunks, so that none is read twice."""
    block = [min(chunk, size) for chunk, size in zip(opened.chunk_shape, opened.shape, strict=True)]
    while True:
        open_axes = [axis for axis in (2, 1, 0) if block[axis] < opened.shape[axis]]
        if not open_axes or 2 * int(np.prod(block)) > block_voxels:
            return tuple(block)
        axis = min(open_axes, key=lambda axis: block[axis])
        block[axis] = min(2 * block[axis], opened.shape[axis])


def _boxes(shape: Sequence[int], block: Sequence[int]) -> Iterator[tuple[slice, ...]]:
    starts = [range(0, size, edge) for size, edge in zip(shape, block, strict=True)]
    for corner in itertools.product(*starts):
        yield tuple(
            slice(first, min(first + edge, size)) for first, edge, size in zip(corner, block, shape, strict=True)
        )
