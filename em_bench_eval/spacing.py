"""Voxel size and position as the formats state them: OME-Zarr 0.4 and 0.5, COSEM, Paintera, n5-viewer, daisy."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from em_bench_eval.schema import VoxelSize

# the names that OME-Zarr (UDUNITS-2) and the N5 tools use
NANOMETRES: Mapping[str, float] = {
    **dict.fromkeys(("picometer", "pm"), 1e-3),
    **dict.fromkeys(("angstrom", "Å", "A"), 0.1),
    **dict.fromkeys(("nanometer", "nanometers", "nanometre", "nm"), 1.0),
    **dict.fromkeys(("micrometer", "micrometers", "micrometre", "micron", "um", "µm", "μm"), 1e3),
    **dict.fromkeys(("millimeter", "millimetre", "mm"), 1e6),
    **dict.fromkeys(("meter", "metre", "m"), 1e9),
}


@dataclass(frozen=True)
class Spacing:
    """What is stated about the axes of an array, in the array's order."""

    axes: tuple[str, ...]  # "z", "y", "x", "t", "c"; empty: not stated
    scale: tuple[float, ...] = ()
    translation: tuple[float, ...] = ()
    units: tuple[str | None, ...] = ()

    def voxel_size_nm(self) -> VoxelSize | None:
        """Return the voxel size, or ``None`` where scale or unit is missing or unusable."""
        sizes = self._spatial_nm(self.scale)
        if sizes is None or not all(math.isfinite(size) and size > 0 for size in sizes):
            return None
        return VoxelSize(*sizes)

    def translation_nm(self) -> tuple[float, float, float] | None:
        """Return the position of the first voxel, ``(z, y, x)``, or ``None`` where it is not stated."""
        return self._spatial_nm(self.translation)

    def _spatial_nm(self, values: tuple[float, ...]) -> tuple[float, float, float] | None:
        if not set("zyx") <= set(self.axes) or not len(values) == len(self.units) == len(self.axes):
            return None
        factor = {axis: NANOMETRES.get(unit or "") for axis, unit in zip(self.axes, self.units, strict=True)}
        value = dict(zip(self.axes, values, strict=True))
        z, y, x = (None if factor[axis] is None else value[axis] * (factor[axis] or 0) for axis in "zyx")
        return None if z is None or y is None or x is None else (z, y, x)


def multiscales(attributes: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the first image pyramid that a group declares (OME-Zarr 0.5 or 0.4, N5 with multiscales)."""
    ome = attributes.get("ome")
    entries = (ome if isinstance(ome, Mapping) else attributes).get("multiscales")
    if isinstance(entries, Sequence) and entries and isinstance(entries[0], Mapping) and entries[0].get("datasets"):
        return entries[0]
    return None


def of_multiscales(pyramid: Mapping[str, Any], level: int) -> Spacing | None:
    """Read the spacing of one level of a pyramid."""
    dataset = pyramid["datasets"][level]
    if "transform" in dataset:
        return of_transform(dataset["transform"])
    axes = [axis if isinstance(axis, Mapping) else {"name": axis} for axis in pyramid.get("axes", ())]
    names = tuple(str(axis.get("name", "")).lower() for axis in axes)
    units = tuple(axis.get("unit") for axis in axes)
    scale, translation = [1.0] * len(axes), [0.0] * len(axes)
    stated = False
    # a level's own transformations come first, then those of the whole pyramid
    for step in (*dataset.get("coordinateTransformations", ()), *pyramid.get("coordinateTransformations", ())):
        values = step.get(step.get("type"))
        if not (isinstance(values, Sequence) and len(values) == len(axes)):
            continue
        if step["type"] == "scale":
            stated = True
            scale = [a * float(b) for a, b in zip(scale, values, strict=True)]
            translation = [a * float(b) for a, b in zip(translation, values, strict=True)]
        elif step["type"] == "translation":
            translation = [a + float(b) for a, b in zip(translation, values, strict=True)]
    return Spacing(names, tuple(scale), tuple(translation), units) if stated else Spacing(names)


def of_transform(transform: Mapping[str, Any]) -> Spacing:
    """Read COSEM's ``transform`` (OpenOrganelle), whose axes are named and listed slowest first."""
    scale = tuple(map(float, transform.get("scale", ())))
    translation = tuple(map(float, transform.get("translate", (0.0,) * len(scale))))
    return Spacing(tuple(transform.get("axes", ())), scale, translation, tuple(transform.get("units", ())))


def of_attributes(attributes: Mapping[str, Any], fastest_first: bool) -> Spacing | None:
    """Read the spacing that an array states itself; ``fastest_first`` for N5, whose vectors are ``(x, y, z)``.

    Paintera (N5) and daisy (zarr) write ``resolution`` and ``offset`` in nm; n5-viewer writes ``pixelResolution`` with
    a unit.
    """
    if isinstance(attributes.get("transform"), Mapping):
        return of_transform(attributes["transform"])
    pixel = attributes.get("pixelResolution")
    unit: object = attributes.get("units", "nm")
    if isinstance(pixel, Mapping):
        unit, pixel = pixel.get("unit", "nm"), pixel.get("dimensions")
    scale = pixel or attributes.get("resolution")
    if not (isinstance(scale, Sequence) and len(scale) == 3):
        return None
    units = tuple(unit) if isinstance(unit, (list, tuple)) and len(unit) == 3 else (unit if unit else "nm",) * 3
    offset = attributes.get("offset", (0.0, 0.0, 0.0))
    order = slice(None, None, -1) if fastest_first else slice(None)
    return Spacing(tuple("zyx"), tuple(map(float, scale[order])), tuple(map(float, offset[order])), units[order])
