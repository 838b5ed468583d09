"""HDF5: one 3D data set of a file, read chunk by chunk with ``h5py``."""

from __future__ import annotations

import contextlib
import re
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import InputError, did_you_mean
from .opened import Box, Opened
from .spacing import of_attributes
from .volume_files import unreadable

NUMBERS = "buif"  # numpy kinds
LABEL_NAMES = "label|seg|mask|ids?\\b|annot|gt\\b|truth|mito|nuc|golgi|endo"


def open_hdf5(location: str, path: Path, inside: str | None = None) -> Opened:
    """Open the data set ``inside``, or the only 3D one of the file."""
    file = _file(path)
    known = data_sets(file)
    name = _choose(path, known, inside)
    dataset = file[name]
    order = _spatial_axes(dataset)
    if order is None or dataset.dtype.kind not in NUMBERS:
        raise InputError(
            f"{path}:{name} is not one 3D volume",
            found=f"shape {dataset.shape}, {dataset.dtype}",
            expected="three axes (z, y, x) of numbers, and any others of length 1",
            remedy=_listing(path, known) or "store one channel and one time point as a data set of its own",
        )
    _check_sources(path, dataset)
    attributes = {key: _plain(value) for key, value in dataset.attrs.items()}
    stated = of_attributes(attributes, fastest_first=False)
    notes: tuple[str, ...] = ()
    if stated is None and [float(v) for v in attributes.get("element_size_um", ())] == [1.0] * 3:
        notes = ("a voxel of 1 x 1 x 1 um is stated, which is this format's word for unknown: not believed",)
    return Opened(
        location,
        "HDF5",
        _DataSet(dataset, order, path),
        stated.voxel_size_nm() if stated else None,
        stated.translation_nm() if stated else None,
        {**attributes, "dataset": name, "compression": dataset.compression},
        notes,
    )


def data_sets(file: Any) -> dict[str, Any]:
    """List all data sets of an open file, by path."""
    import h5py

    found: dict[str, Any] = {}
    file.visititems(lambda name, item: found.update({f"/{name}": item}) if isinstance(item, h5py.Dataset) else None)
    return found


def names(path: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    """List the data sets of numbers in a file: path to shape and type."""
    known = data_sets(_file(path))
    return {name: (one.shape, str(one.dtype)) for name, one in known.items() if one.dtype.kind in NUMBERS}


def _file(path: Path) -> Any:
    import h5py

    with contextlib.suppress(ImportError):
        import hdf5plugin  # noqa: F401  # registers blosc, zstd, ... where a user has installed it
    try:
        file = h5py.File(path, "r", locking="best-effort")
    except OSError as error:
        raise unreadable(path, "HDF5", error) from error
    weakref.finalize(file, file.id.close)
    return file


def _choose(path: Path, known: dict[str, Any], inside: str | None) -> str:
    if inside is not None:
        name = "/" + inside.strip("/")
        if name in known:
            return name
        raise InputError(
            f"{path} has no data set {name}",
            found=_listing(path, known) or "no data sets",
            remedy=f"{did_you_mean(name, known)}Name one that it has",
        )
    volumes = {name: one for name, one in known.items() if one.dtype.kind in NUMBERS and _spatial_axes(one)}
    if len(volumes) == 1:
        return next(iter(volumes))
    if not volumes:
        raise InputError(
            f"{path} holds no 3D data set", found=_listing(path, known) or "no data sets", expected="one at least"
        )
    others = {name: one for name, one in known.items() if name not in volumes}
    raise InputError(
        f"{path} holds {len(volumes)} 3D data sets",
        found="; not 3D: ".join(filter(None, (_listing(path, volumes), _listing(path, others)))),
        expected="the name of one, or only one",
        remedy=f"name the one that is meant, as {path}:{min(volumes, key=_likely_labels)}",
    )


def _likely_labels(name: str) -> bool:
    """Sort key by which what is named like an image comes before what is named like labels."""
    return re.search(LABEL_NAMES, name.lower()) is not None


def _listing(path: Path, known: dict[str, Any]) -> str:
    lines = [f"{path}:{name} {dataset.shape} {dataset.dtype}" for name, dataset in list(known.items())[:12]]
    return "; ".join(lines) + ("; ..." if len(known) > 12 else "")


def _spatial_axes(dataset: Any) -> tuple[int, int, int] | None:
    """Return which axes are z, y and x; ilastik and vigra name them, others must have length 1 if there are more."""
    shape = dataset.shape or ()
    tags = [str(axis.label).lower() for axis in dataset.dims] if len(shape) else []
    if set("zyx") <= set(tags):
        axes = tuple(tags.index(axis) for axis in "zyx")
    else:
        keep = list(range(len(shape)))
        while len(keep) > 3:
            singles = [axis for axis in keep if shape[axis] == 1]
            if not singles:
                return None
            keep.remove(singles[-1] if shape[keep[-1]] == 1 else singles[0])  # a channel comes last or first
        axes = tuple(keep)
    others = set(range(len(shape))) - set(axes)
    if len(axes) != 3 or any(shape[axis] != 1 for axis in others):
        return None
    z, y, x = axes
    return z, y, x


def _check_sources(path: Path, dataset: Any) -> None:
    """Raise ``InputError`` where voxels lie in other files that are not there: HDF5 reads zeros for them."""
    elsewhere = [source.file_name for source in dataset.virtual_sources()] if dataset.is_virtual else []
    elsewhere += [entry[0] for entry in dataset.external or ()]
    missing = sorted({name for name in elsewhere if name != "." and not (path.parent / name).exists()})
    if missing:
        raise InputError(
            f"{path}:{dataset.name} takes its voxels from other files",
            found=f"{len(missing)} of them are not there: {', '.join(missing[:5])}",
            expected=f"them in {path.parent}",
            remedy="copy them too: what is missing would be read as zeros",
        )


class _DataSet:
    """A data set with its axes in the order ``(z, y, x)``."""

    def __init__(self, dataset: Any, order: tuple[int, int, int], path: Path):
        self._dataset, self._order, self._path = dataset, order, path
        z, y, x = (dataset.shape[axis] for axis in order)
        self.shape = (z, y, x)
        self.dtype = np.dtype(dataset.dtype)
        chunk = [dataset.chunks[axis] for axis in order] if dataset.chunks else [1, 1, x]
        self.chunk_shape = (chunk[0], chunk[1], chunk[2])

    def read(self, box: Box) -> npt.NDArray[Any]:
        """Read the chunks that the box touches."""
        index: list[Any] = [0] * len(self._dataset.shape)
        for axis, side in zip(self._order, box, strict=True):
            index[axis] = side
        try:
            values = np.asarray(self._dataset[tuple(index)])
        except OSError as error:
            codec = "filter" in str(error)
            raise InputError(
                f"{self._path}:{self._dataset.name} cannot be read",
                found=str(error),
                expected="chunks that are complete, and compressed as HDF5 itself can",
                remedy="pip install hdf5plugin: it has further codecs"
                if codec
                else "the file is damaged: copy it again",
            ) from error
        kept = sorted(self._order)
        return np.transpose(values, [kept.index(axis) for axis in self._order])


def _plain(value: Any) -> Any:
    """Return an attribute as Python values."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, np.generic):
        return value.item()
    return value.decode(errors="replace") if isinstance(value, bytes) else value
