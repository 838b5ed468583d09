"""The figures of the preview page: slices, close-ups, histograms and rendered shapes, as HTML."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from em_bench_eval.schema import Array3D, Organelle, VoxelSize
from lpa.extents import Extents
from lpa.mesh import mesh_of, render
from lpa.pictures import (
    FAINT,
    FILL,
    STRONG,
    Plane,
    Rgb,
    colour_of,
    data_uri,
    fill_layer,
    gray_picture,
    inner_edge,
    over,
    resized,
    scale_bar,
    shown_shape,
)
from lpa.signs import Thresholds, volume_text
from lpa.triage import Flag

TITLES: Mapping[Organelle, str] = {
    Organelle.MITO: "Mitochondria",
    Organelle.NUCLEUS: "Nuclei",
    Organelle.ER: "ER",
    Organelle.ENDO: "Endosomes",
    Organelle.GOLGI: "Golgi",
}
AXES = ("z", "y", "x")
SLICE_PIXELS, CLOSE_PIXELS, MESH_PIXELS = 640, 300, (220, 320)
Z_SLICES = (0.2, 0.4, 0.6, 0.8)  # of the depth
BARS_PER_DECADE = 5
CLOSE_NM = {"merge": (300.0, 2500.0), "split": (250.0, 1000.0), "crumb": (200.0, 600.0)}  # half width, least and most


@dataclass(frozen=True)
class Scene:
    """What the figures are drawn from."""

    image: Array3D | None
    levels: tuple[float, float]
    instances: npt.NDArray[Any]  # (z, y, x)
    found: Extents
    organelle: Sequence[Organelle]  # parallel to found.ids
    voxel_nm: tuple[float, float, float]
    thresholds: Mapping[Organelle, Thresholds]

    @property
    def axes(self) -> tuple[int, ...]:
        """Axes that may be cut: of anisotropic volumes only z, whose slices are what the microscope saw."""
        return (0, 1, 2) if VoxelSize(*self.voxel_nm).is_isotropic else (0,)

    @property
    def volume_nm3(self) -> npt.NDArray[np.float64]:
        """Volume of every instance."""
        return np.asarray(self.found.voxels * np.prod(self.voxel_nm), np.float64)

    @property
    def is_cut(self) -> npt.NDArray[np.bool_]:
        """True for instances at the border of the volume."""
        low, high = self.found.start == 0, self.found.stop == self.instances.shape
        return np.asarray(low.any(axis=1) | high.any(axis=1), np.bool_)

    def rows(self, organelle: Organelle) -> npt.NDArray[np.int64]:
        """Places of the instances of an organelle."""
        return np.flatnonzero([own is organelle for own in self.organelle])

    def present(self) -> list[Organelle]:
        """Organelles that have instances, in the project's order."""
        return [organelle for organelle in Organelle if organelle in set(self.organelle)]

    def colours(self, ids: Iterable[int]) -> dict[int, Rgb]:
        """Colours by id; the same everywhere on the page."""
        return {id_: colour_of(int(np.searchsorted(self.found.ids, id_))) for id_ in ids if id_}


def text(value: object) -> str:
    """Escape for HTML text and quoted attributes; control characters become spaces."""
    return html.escape(re.sub(r"[\x00-\x1f\x7f]", " ", str(value)))


def planes(scene: Scene) -> list[Plane]:
    """Slices that the page shows: several z and, of isotropic volumes, the middle y and x."""
    depth, height, width = scene.instances.shape
    places = [(0, z) for z in dict.fromkeys(int(depth * share) for share in Z_SLICES)]
    places += [(axis, size // 2) for axis, size in ((1, height), (2, width)) if axis in scene.axes]
    return [Plane.of(axis, index, scene.voxel_nm) for axis, index in places]


def slice_figure(scene: Scene, plane: Plane) -> str:
    """One slice, with a layer for every organelle that the page can hide."""
    labels = plane.cut(scene.instances)
    shape = shown_shape((labels.shape[0], labels.shape[1]), plane.pixel_nm, SLICE_PIXELS)
    labels = resized(labels, shape)
    gray = gray_picture(None if scene.image is None else plane.cut(scene.image), shape, scene.levels)
    ids = [int(id_) for id_ in np.unique(labels) if id_]
    kind = {id_: scene.organelle[int(np.searchsorted(scene.found.ids, id_))] for id_ in ids}
    layers = ""
    for organelle in scene.present():
        own = scene.colours(id_ for id_ in ids if kind[id_] is organelle)
        if own:
            layers += f'<img data-organelle="{organelle}" alt="" src="{data_uri(fill_layer(labels, own))}">'
    counts = ", ".join(
        f"{sum(own is organelle for own in kind.values())} {organelle}"
        for organelle in scene.present()
        if organelle in kind.values()
    )
    caption = f"{AXES[plane.axis]} = {plane.index}: {counts or 'no instance'}"
    width_nm = plane.cut(scene.instances).shape[1] * plane.pixel_nm[1]
    return f"<figure>{_stack(gray, layers, width_nm)}<figcaption>{caption}</figcaption></figure>"


def _stack(gray: npt.NDArray[np.uint8], layers: str, width_nm: float) -> str:
    height, width = gray.shape[:2]
    flat = bool((gray == gray.flat[0]).all())
    base = "" if flat else f'<img alt="" src="{data_uri(gray, lossy=True)}">'
    return f'<span class="stack" style="aspect-ratio:{width}/{height}">{base}{layers}{_scale(width_nm)}</span>'


def _scale(width_nm: float, share: float = 0.25) -> str:
    label, fraction = scale_bar(width_nm, share)
    return f'<span class="scale" style="width:{fraction:.2%}"><i></i><span>{label}</span></span>'


def close_up(scene: Scene, row: int, flag: Flag) -> tuple[str, str]:
    """Cut where the flagged instance and its neighbours show most, through the voxel to look at; picture and place."""
    involved = (flag.instance_id, *flag.neighbours)
    candidates = []
    for axis in scene.axes:
        plane = Plane.of(axis, flag.focus[axis], scene.voxel_nm)
        box = _window(scene, row, plane, flag)
        labels = plane.cut(scene.instances, box)
        areas = [int((labels == id_).sum()) for id_ in involved]
        nm2 = plane.pixel_nm[0] * plane.pixel_nm[1]
        candidates.append((areas[0] > 0, min(max(areas[1:], default=areas[0]), areas[0]) * nm2, -axis, plane, box))
    *_, plane, box = max(candidates, key=lambda candidate: candidate[:3])
    labels = plane.cut(scene.instances, box)
    width_nm = labels.shape[1] * plane.pixel_nm[1]
    shape = shown_shape((labels.shape[0], labels.shape[1]), plane.pixel_nm, CLOSE_PIXELS)
    labels = resized(labels, shape)
    gray = gray_picture(None if scene.image is None else plane.cut(scene.image, box), shape, scene.levels)
    ids = [int(id_) for id_ in np.unique(labels) if id_]
    alpha = {id_: FILL if id_ in involved else FAINT for id_ in ids} | {flag.instance_id: STRONG}
    if scene.image is None:
        alpha = {id_: 255 if value > FAINT else 110 for id_, value in alpha.items()}
    layer = fill_layer(labels, scene.colours(ids), alpha)
    own = np.where(labels == flag.instance_id, labels, 0)
    edge = inner_edge(own)
    layer[edge | inner_edge(np.where(edge, 0, own))] = (255, 255, 255, 255)
    picture = over(gray, layer)
    height, width = shape
    stack = (
        f'<span class="stack" style="aspect-ratio:{width}/{height}"><img alt="{flag.organelle} {flag.instance_id}"'
        f' src="{data_uri(picture, lossy=scene.image is not None)}">{_scale(width_nm, 0.4)}</span>'
    )
    return stack, f"{AXES[plane.axis]} = {plane.index}"


def _window(scene: Scene, row: int, plane: Plane, flag: Flag) -> tuple[slice, slice]:
    """A box of the plane around the focus, large enough for the instance within limits, square where there is room."""
    focus, axes = flag.focus, [axis for axis in range(3) if axis != plane.axis]
    far = max(
        max(focus[axis] - int(scene.found.start[row, axis]), int(scene.found.stop[row, axis]) - focus[axis]) * edge
        for axis, edge in zip(axes, plane.pixel_nm, strict=True)
    )
    least, most = CLOSE_NM[flag.kind]
    half_nm = min(max(1.25 * far, least), most)
    box = []
    for axis, edge in zip(axes, plane.pixel_nm, strict=True):
        size = scene.instances.shape[axis]
        count = min(size, 2 * max(1, math.ceil(half_nm / edge)))
        start = min(max(0, focus[axis] - count // 2), size - count)  # shifted rather than cut at the border
        box.append(slice(start, start + count))
    return box[0], box[1]


def histogram(scene: Scene, organelle: Organelle) -> str:
    """Log-spaced histogram of volumes, counts on the bars (paper, Fig. 3)."""
    rows = scene.rows(organelle)
    volumes, cut = scene.volume_nm3[rows], scene.is_cut[rows]
    crumb = scene.thresholds[organelle].min_volume_nm3
    place = np.floor(np.log10(volumes) * BARS_PER_DECADE + 1e-9).astype(int)
    first, last = int(place.min()) - 1, int(place.max()) + 2
    while last - first < 8:
        first, last = first - 1, last + 1
    whole, at_border = (np.bincount(place[part] - first, minlength=last - first) for part in (~cut, cut))
    width, height, left, bottom, top = 420, 200, 10, 34, 36
    step = (width - 2 * left) / (last - first)
    unit = (height - bottom - top) / max(int((whole + at_border).max()), 1)
    base = height - bottom
    bars = ""
    for k, (a, b) in enumerate(zip(whole.tolist(), at_border.tolist(), strict=True)):
        x = left + k * step
        for css, count, below in (("whole", a, 0), ("cut", b, a)):
            if count:
                y, tall = base - (below + count) * unit, count * unit
                place_size = f'x="{x + 0.7:.1f}" y="{y:.1f}" width="{step - 1.4:.1f}" height="{tall:.1f}"'
                bars += f'<rect class="{css}" {place_size}/>'
        if a + b:
            y = base - (a + b) * unit - 4
            bars += f'<text class="count" x="{x + step / 2:.1f}" y="{y:.1f}" text-anchor="middle">{a + b}</text>'

    def at(nm3: float) -> float:
        return left + (math.log10(nm3) * BARS_PER_DECADE - first) * step

    ticks = ""
    for decade in range(math.ceil(first / BARS_PER_DECADE), last // BARS_PER_DECADE + 1):
        x = at(10.0**decade)
        label = f"{10.0 ** (decade - 9):g} µm³" if decade >= 7 else f"10{_superscript(decade)} nm³"
        ticks += f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{base}" y2="{base + 5}"/>'
        ticks += f'<text x="{x:.1f}" y="{base + 18}" text-anchor="middle">{label}</text>'
    marks = ""
    if left <= at(crumb) <= width - left:
        x, is_left = at(crumb), at(crumb) < 70
        marks = f'<line class="limit" x1="{x:.1f}" x2="{x:.1f}" y1="4" y2="{base}" stroke-dasharray="4 3"/>'
        marks += f'<text class="limit" x="{x + (5 if is_left else -5):.1f}" y="12"'
        marks += f' text-anchor="{"start" if is_left else "end"}">crumbs {"left of here" if is_left else ""}</text>'
    count = f"{len(rows):,} instance{'' if len(rows) == 1 else 's'}"
    caption = f"median {volume_text(float(np.median(volumes)))}, {int(np.median(scene.found.voxels[rows])):,} voxels"
    return (
        f'<div class="card"><h3>{TITLES[organelle]}</h3><p class="small soft">{count}; {caption}</p>'
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="Volumes of {organelle}">'
        f'<line class="axis" x1="{left}" x2="{width - left}" y1="{base}" y2="{base}"/>{bars}{ticks}{marks}</svg></div>'
    )


def _superscript(number: int) -> str:
    return str(number).translate(str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻"))


def shapes(scene: Scene, organelle: Organelle) -> str:
    """A small, a middle and the largest instance as rendered surfaces (paper, Fig. 4)."""
    rows, volumes = scene.rows(organelle), scene.volume_nm3
    whole = rows[volumes[rows] >= scene.thresholds[organelle].min_volume_nm3]
    rows = whole if len(whole) else rows
    rows = rows[np.argsort(volumes[rows], kind="stable")]
    picks = {"small": (len(rows) - 1) // 10, "middle": (len(rows) - 1) // 2, "large": len(rows) - 1}
    chosen: dict[int, str] = {}
    for name, place in picks.items():
        chosen[int(rows[place])] = name
    figures = ""
    for row, name in chosen.items():
        mask = scene.instances[scene.found.box(row, scene.instances.shape)] == scene.found.ids[row]
        id_ = int(scene.found.ids[row])
        picture, pixel_nm = render(mesh_of(mask, scene.voxel_nm), scene.colours([id_])[id_], MESH_PIXELS)
        cut = "; cut by the border" if scene.is_cut[row] else ""
        figures += (
            f'<figure><div class="stage"><img width="{MESH_PIXELS[1]}" height="{MESH_PIXELS[0]}"'
            f' alt="{name} {organelle}" src="{data_uri(picture)}">{_scale(MESH_PIXELS[1] * pixel_nm)}</div>'
            f"<figcaption><b>{name if len(chosen) > 1 else 'the only one'}</b>: {organelle} {id_}, "
            f"{volume_text(float(volumes[row]))}, {int(scene.found.voxels[row]):,} voxels{cut}</figcaption></figure>"
        )
    return f'<div class="card"><h3>{TITLES[organelle]}</h3><div class="trio">{figures}</div></div>'
