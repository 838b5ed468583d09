"""Voxel size and position as the formats state them: OME-Zarr, COSEM, Paintera, n5-viewer, daisy, elf; and units."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .schema import VoxelSize

# the names that OME-Zarr (UDUNITS-2) and the N5 tools use
NANOMETRES: Mapping[str, float] = {
    **dict.fromkeys(("picometer", "pm"), 1e-3),
    **dict.fromkeys(("angstrom", "Å", "A"), 0.1),
    **dict.fromkeys(("nanometer", "nanometers", "nanometre", "nm"), 1.0),
    **dict.fromkeys(("micrometer", "micrometers", "micrometre", "micron", "um", "µm", "μm"), 1e3),
    **dict.fromkeys(("millimeter", "millimetre", "mm"), 1e6),
    **dict.fromkeys(("centimeter", "centimetre", "cm"), 1e7),
    **dict.fromkeys(("meter", "metre", "m"), 1e9),
}
LARGEST_EDGE_NM = 1e5


def nanometres(unit: object) -> float | None:
    """Return how many nm a unit is, or ``None`` for no unit of length ("pixel", nothing); ImageJ escapes its µ."""
    return NANOMETRES.get(str(unit or "").replace("\\u00B5", "µ").strip())


def in_nm(sizes: Sequence[float], unit: object, default: float | None = None) -> tuple[VoxelSize | None, str]:
    """Return ``(z, y, x)`` edges in ``unit`` as a voxel size, or ``None`` and why they are not believed.

    ``default`` is the edge that a format's writers put where they know none: three of it are no statement. Nor is what
    no electron microscope makes: edges of 0.1 mm or more (headers with 57594930 mm are published).
    """
    factor = nanometres(unit)
    if factor is None or len(sizes) != 3 or not all(math.isfinite(size) and size > 0 for size in sizes):
        return None, ""
    stated = " x ".join(f"{size:g}" for size in sizes)
    if default is not None and all(size == default for size in sizes):
        return None, f"a voxel of {stated} {unit} is stated, which is this format's word for unknown: not believed"
    if max(sizes) * factor >= LARGEST_EDGE_NM:
        return None, f"a voxel of {stated} {unit} is stated, which no microscope makes: not believed"
    z, y, x = (float(size) * factor for size in sizes)
    return VoxelSize(z, y, x), ""


def of_float32(size: VoxelSize | None) -> VoxelSize | None:
    """Round edges that a header holds as 32-bit floats to the 7 digits which these carry: 39.9999991 nm is 40 nm."""
    return None if size is None else VoxelSize(*(float(f"{edge:.7g}") for edge in size))


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

    def without_unit(self) -> str:
        """Say which voxel size is stated in no unit of length; empty where there is nothing to say."""
        if not set("zyx") <= set(self.axes) or not len(self.scale) == len(self.units) == len(self.axes):
            return ""
        unit = dict(zip(self.axes, self.units, strict=True))
        edge = dict(zip(self.axes, self.scale, strict=True))
        unknown = {str(unit[axis]) for axis in "zyx" if NANOMETRES.get(unit[axis] or "") is None and unit[axis]}
        if all(NANOMETRES.get(unit[axis] or "") for axis in "zyx") or all(edge[axis] == 1 for axis in "zyx"):
            return ""
        how = f"in {', '.join(sorted(unknown))}, which is no known unit of length" if unknown else "without a unit"
        return f"a voxel of {' x '.join(f'{edge[axis]:g}' for axis in 'zyx')} (z, y, x) is stated {how}"

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

    Paintera (N5) and daisy (zarr, and CREMI's HDF5) write ``resolution`` and ``offset`` in nm; n5-viewer writes
    ``pixelResolution`` with a unit; elf and PlantSeg (HDF5) write ``element_size_um``, and 1 where they know none.
    """
    if isinstance(attributes.get("transform"), Mapping):
        return of_transform(attributes["transform"])
    element = attributes.get("element_size_um")
    if isinstance(element, Sequence) and len(element) == 3:
        unknown = all(float(size) == 1 for size in element)
        return None if unknown else Spacing(tuple("zyx"), tuple(map(float, element)), (0.0,) * 3, ("um",) * 3)
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
