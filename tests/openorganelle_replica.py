"""Tiny OpenOrganelle data sets in both layouts, written on the fly, and a server for them.

Everything is defined in nm: one cell, as a function of position. Any array is that function at its voxels' centres,
wherever they are, so what a reader must give is known without reading.
"""

from __future__ import annotations

import functools
import http.server
import json
import threading
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import numpy as np
import tensorstore as ts

Vector = tuple[float, float, float]  # (z, y, x), nm
Function = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]

# ball centres and radii in nm; the cell is 400 x 480 x 560 nm
BALLS: Mapping[str, list[tuple[Vector, float]]] = {
    "mito": [((90, 100, 120), 61), ((300, 130, 450), 53)],
    "golgi": [((310, 380, 130), 45)],
    "endo": [((90, 390, 470), 37), ((200, 70, 300), 29)],
    "lyso": [((330, 60, 60), 31)],
}
NUCLEUS = ((200, 260, 290), 121.0)
ENVELOPE_NM = 23.0  # outer part of the nucleus, that CellMap counts as er too
ER = ((190, 260), 17.0)  # a tube along x at this (z, y): runs into the envelope
KINDS = {"mito": (3, 4), "golgi": (6, 7), "endo": (10, 11), "lyso": (12, 13), "er": (16, 17)}  # ids of membrane, lumen
MEMBRANE_NM = 11.0


def distance(centre: Vector, z: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    return np.sqrt((z - centre[0]) ** 2 + (y - centre[1]) ** 2 + (x - centre[2]) ** 2)


def depth(kind: str, z: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """How far below the surface of a structure a position is, nm; negative outside."""
    if kind == "nuc":
        return NUCLEUS[1] - distance(NUCLEUS[0], z, y, x)
    if kind == "ne":
        inside = depth("nuc", z, y, x)
        return np.minimum(inside, ENVELOPE_NM - inside)
    if kind == "er":
        tube = ER[1] - np.hypot(z - ER[0][0], y - ER[0][1]) + 0 * x
        return np.maximum(np.where(depth("nuc", z, y, x) >= ENVELOPE_NM, -1.0, tube), depth("ne", z, y, x))
    return np.max([radius - distance(centre, z, y, x) for centre, radius in BALLS[kind]], axis=0)


def mask_of(kind: str) -> Function:
    return lambda z, y, x: depth(kind, z, y, x) > 0


def parts_of(kind: str, membrane: bool) -> Function:
    """Membrane or lumen of a structure; of ``er`` without the envelope."""

    def part(z: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
        below = depth(kind, z, y, x)
        if kind == "er":
            below = np.where(depth("nuc", z, y, x) > 0, -1.0, below)
        return (below > 0) & ((below <= MEMBRANE_NM) == membrane)

    return part


def instances_of(kind: str, first: int = 7) -> Function:
    """Ids of the balls of a structure, in steps of 5."""

    def ids(z: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
        found = np.zeros(np.broadcast_shapes(z.shape, y.shape, x.shape), int)
        for number, (centre, radius) in enumerate(BALLS[kind]):
            found[distance(centre, z, y, x) < radius] = first + 5 * number
        return found

    return ids


def all_ids(z: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """The most granular ids of CellMap: 35 is cytosol."""
    found = np.full(np.broadcast_shapes(z.shape, y.shape, x.shape), 35)
    found[parts_of("er", True)(z, y, x)], found[parts_of("er", False)(z, y, x)] = 16, 17
    nucleus = depth("nuc", z, y, x)
    found[nucleus > 0] = 28
    found[(nucleus > 0) & (nucleus < ENVELOPE_NM)] = 21
    for kind in BALLS:
        found[parts_of(kind, True)(z, y, x)], found[parts_of(kind, False)(z, y, x)] = KINDS[kind]
    return found


def gray(z: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Intensity as a linear function of the position: no two places look alike along a diagonal."""
    return 20 + 0.11 * z + 0.13 * y + 0.17 * x


def texture(z: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Intensity of which no two sections look alike, with darker organelles: what a dataset is built from."""
    waves = np.random.default_rng(5).normal(size=(12, 4)) / 15  # radians per nm along z, y, x; phase
    field = sum(np.cos(a * z + b * y + c * x + 99 * phase) for a, b, c, phase in waves)
    inside = sum(mask_of(kind)(z, y, x).astype(float) for kind in ("mito", "nuc", "er", "endo", "golgi"))
    return np.clip(150 + 14 * field - 40 * inside, 0, 255)


@dataclass(frozen=True)
class Grid:
    """Where the voxels of an array are: position of the first stored one, and steps, which may be negative."""

    first: Vector
    step: Vector
    shape: tuple[int, int, int]

    @classmethod
    def over(cls, low: Vector, high: Vector, voxel: Vector) -> Grid:
        """Voxels of which the first begins at ``low`` (its edge)."""
        shape = tuple(round((b - a) / nm) for a, b, nm in zip(low, high, voxel, strict=True))
        first = tuple(a + nm / 2 for a, nm in zip(low, voxel, strict=True))
        return cls(first, voxel, shape)  # type: ignore[arg-type]

    def flipped(self, axis: int) -> Grid:
        """The same voxels, stored the other way round along an axis."""
        first, step = list(self.first), list(self.step)
        first[axis] += step[axis] * (self.shape[axis] - 1)
        step[axis] = -step[axis]
        return Grid(tuple(first), tuple(step), self.shape)  # type: ignore[arg-type]

    def coarser(self, factor: int = 2) -> Grid:
        """Blocks of voxels, centred on their blocks."""
        first = tuple(f + nm * (factor - 1) / 2 for f, nm in zip(self.first, self.step, strict=True))
        return Grid(first, tuple(nm * factor for nm in self.step), tuple(n // factor for n in self.shape))  # type: ignore[arg-type]

    def centres(self) -> list[np.ndarray]:
        """Positions along z, y and x, shaped to broadcast."""
        axes = [f + nm * np.arange(n) for f, nm, n in zip(self.first, self.step, self.shape, strict=True)]
        return [axes[0][:, None, None], axes[1][None, :, None], axes[2][None, None, :]]

    def evaluate(self, function: Function, dtype: Any) -> np.ndarray:
        values = np.broadcast_to(function(*self.centres()), self.shape)
        return np.rint(values).astype(dtype)


PAGE = 5  # keys of a listing
SEPARATOR = "/"  # of chunk keys in zarr
WORLD = Grid.over((0, 0, 0), (400, 480, 560), (8, 8, 8))


def save_array(path: Path, values: np.ndarray, n5: bool, chunk: int, **attributes: Any) -> None:
    values = values.astype(values.dtype.newbyteorder("="))
    if n5:
        metadata: dict[str, Any] = {"blockSize": [chunk] * 3, "compression": {"type": "gzip"}}
    else:
        metadata = {"chunks": [chunk] * 3, "dimension_separator": SEPARATOR}
    spec = {"driver": "n5" if n5 else "zarr", "kvstore": {"driver": "file", "path": str(path)}, "metadata": metadata}
    stored = values.T if n5 else values
    ts.open(spec, create=True, dtype=values.dtype, shape=stored.shape).result().write(stored).result()
    name = path / ("attributes.json" if n5 else ".zattrs")
    known = json.loads(name.read_text()) if name.exists() else {}
    name.write_text(json.dumps(known | attributes))


def save_pyramid(
    path: Path, function: Function, grids: list[Grid], dtype: Any, *, n5: bool, chunk: int = 48, **attributes: Any
) -> None:
    """Write levels s0, s1, ...; zarr with OME-Zarr 0.4 metadata, N5 with COSEM's, both with the voxels' centres."""
    datasets = []
    for level, grid in enumerate(grids):
        cosem = {"axes": list("zyx"), "units": ["nm"] * 3, "scale": list(grid.step), "translate": list(grid.first)}
        own = {"transform": cosem} if n5 else attributes.get("of_array", {})
        save_array(path / f"s{level}", grid.evaluate(function, dtype), n5, chunk, **own)
        transforms = [
            {"type": "scale", "scale": cosem["scale"]},
            {"type": "translation", "translation": cosem["translate"]},
        ]
        datasets.append(
            {"path": f"s{level}", "transform": cosem}
            if n5
            else {"path": f"s{level}", "coordinateTransformations": transforms}
        )
    axes = [{"name": name, "type": "space", "unit": "nanometer"} for name in "zyx"]
    multiscales = [{"datasets": datasets} if n5 else {"version": "0.4", "axes": axes, "datasets": datasets}]
    known = {"multiscales": multiscales, **{k: v for k, v in attributes.items() if k != "of_array"}}
    (path / ("attributes.json" if n5 else ".zattrs")).write_text(json.dumps(known))
    if not n5:
        (path / ".zgroup").write_text('{"zarr_format": 2}')


def annotation(kind: str, name: str, **encoding: int) -> dict[str, Any]:
    """CellMap's attributes of a class group."""
    types = {"semantic": "semantic_segmentation", "instance": "instance_segmentation"}
    return {
        "cellmap": {"annotation": {"class_name": name, "annotation_type": {"type": types[kind], "encoding": encoding}}}
    }


def save_crop(
    path: Path,
    grid: Grid,
    functions: Mapping[str, tuple[Function, dict[str, Any]]],
    names: list[str] | None,
    chunk: int = 48,
) -> None:
    """Write a ground-truth crop; ``names`` are the classes that its metadata call annotated (``None``: no metadata)."""
    for name, (function, attributes) in functions.items():
        save_pyramid(path / name, function, [grid, grid.coarser()], np.uint8, n5=False, chunk=chunk, **attributes)
    path.mkdir(parents=True, exist_ok=True)
    (path / ".zgroup").write_text('{"zarr_format": 2}')
    if names is not None:
        (path / ".zattrs").write_text(
            json.dumps({"cellmap": {"annotation": {"version": "0.1.1", "class_names": names}}})
        )


GROUPS: Mapping[str, tuple[Function, dict[str, Any]]] = {
    "mito": (instances_of("mito"), annotation("instance", "mito", absent=0)),
    "nuc": (mask_of("nuc"), annotation("instance", "nuc", absent=0)),
    "er": (mask_of("er"), annotation("semantic", "er", absent=0, present=1)),
    "endo": (instances_of("endo"), annotation("instance", "endo", absent=0)),
    "golgi": (mask_of("golgi"), annotation("semantic", "golgi", absent=0, present=1)),
    "lyso": (mask_of("lyso"), annotation("instance", "lyso", absent=0)),
}
# labels twice as fine as the image, over a part of it, voxel edges aligned with the image's
CROP_GRID = Grid.over((40, 80, 80), (280, 400, 480), (4, 4, 4))


def zarr_data_set(
    root: Path, name: str = "jrc_mus-liver", image: Grid = WORLD, chunk: int = 48, shown: Function = gray
) -> Path:
    """A data set of 2024: 8 nm image; crop1 with group classes at 4 nm; coarse segmentations at 16 nm."""
    base = root / name / f"{name}.zarr" / "recon-1"
    save_pyramid(base / "em" / "fibsem-uint8", shown, [image, image.coarser()], np.uint8, n5=False, chunk=chunk)
    save_crop(base / "labels" / "groundtruth" / "crop1", CROP_GRID, GROUPS, [*GROUPS, "all"], chunk)
    save_pyramid(base / "labels/groundtruth/crop1/all", all_ids, [CROP_GRID], np.uint8, n5=False, chunk=chunk)
    for stem, function in (("mito", instances_of("mito")), ("nuc", mask_of("nuc")), ("cell", mask_of("nuc"))):
        path = base / "labels" / "inference" / "segmentations" / stem
        save_pyramid(path, function, [WORLD.coarser()], np.uint16, n5=False, chunk=chunk)
    return base


def n5_data_set(
    root: Path, name: str = "jrc_macrophage-2", image: Grid = WORLD, labels: Grid = WORLD, chunk: int = 48
) -> Path:
    """A data set of 2021: a 16-bit image, whole-volume segmentations with ids, and arrays that are none of ours."""
    base = root / name / f"{name}.n5"
    save_pyramid(
        base / "em" / "fibsem-uint16",
        lambda *p: 20000 + 40 * gray(*p),
        [image, image.coarser()],
        np.uint16,
        n5=True,
        chunk=chunk,
    )
    ids: Mapping[str, Function] = {
        "mito_seg": instances_of("mito"),
        "mito_bag_seg": mask_of("nuc"),
        "nucleus_seg": lambda *p: 3 * mask_of("nuc")(*p),
        "er_seg": lambda *p: 9 * mask_of("er")(*p),
        "endo_seg": instances_of("endo"),
        "golgi_seg": lambda *p: 4 * mask_of("golgi")(*p),
        "lyso_seg": mask_of("lyso"),
        "er-mem_seg": mask_of("er"),
        "mito_pred": mask_of("nuc"),
        "er_mito_contacts": mask_of("nuc"),
    }
    for array, function in ids.items():
        save_pyramid(base / "labels" / array, function, [labels], np.uint16, n5=True, chunk=chunk)
    return base


def publication(root: Path, name: str = "jrc_hela-2", shown: Function = gray) -> Path:
    """A copy of the publication of 2021: resolution and offset mean corners, labels twice as fine, x first."""
    base = root / name / f"{name}.n5" / "volumes"
    save_array(base / "raw" / "s0", WORLD.evaluate(shown, np.uint8), True, 16, resolution=[8, 8, 8], offset=[0, 0, 0])
    for crop, low in (("crop1", (40, 80, 160)), ("Crop13", (200, 280, 40))):
        fine = Grid.over(low, (low[0] + 160, low[1] + 160, low[2] + 240), (4, 4, 4))
        path = base / "groundtruth" / "0003" / crop / "labels" / "all"
        save_array(path, fine.evaluate(all_ids, np.uint64), True, 16, resolution=[4, 4, 4], offset=list(low[::-1]))
    return base


def write(raw: Path) -> Path:
    """Write one data set of each layout below ``raw``, as a local copy of the bucket."""
    root = raw / "janelia-cosem-datasets"
    zarr_data_set(root, shown=texture)
    publication(root, shown=lambda *p: texture(p[0], p[1], p[2] + 7000))
    return root


@dataclass
class Log:
    """What a server was asked."""

    requests: list[tuple[str, str]] = field(default_factory=list)  # (method, path)
    sent: int = 0  # bytes of bodies
    cut: set[str] = field(default_factory=set)  # paths whose next answer breaks off
    busy: set[str] = field(default_factory=set)  # paths whose next answer is 503
    forbidden: tuple[str, ...] = ()  # beginnings of paths that are answered 403

    def chunks(self, method: str = "GET") -> list[str]:
        """Paths of the chunks that were asked for."""
        return [path for how, path in self.requests if how == method and path.rpartition("/")[2].isdigit()]


class Handler(http.server.BaseHTTPRequestHandler):
    """Files below a folder, with ranges; as an S3 server would, lists them if ``listing``."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def __init__(self, *arguments: Any, folder: Path, log: Log, listing: bool):
        self.folder, self.log, self.listing = folder, log, listing
        super().__init__(*arguments)

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        url = urllib.parse.urlsplit(self.path)
        path = urllib.parse.unquote(url.path).strip("/")
        query = urllib.parse.parse_qs(url.query)
        self.log.requests.append((self.command, path))
        if path.startswith(self.log.forbidden or ("\0",)) or ("list-type" in query and "LIST" in self.log.forbidden):
            return self._answer(403, b"")
        if "list-type" in query:
            return self._answer(200, self._list(query)) if self.listing else self._answer(404, b"<html>no</html>")
        if path in self.log.busy:
            self.log.busy.discard(path)
            return self._answer(503, b"")
        file = self.folder / path
        if not file.is_file():
            return self._answer(404, b"")
        body = file.read_bytes()
        status = 200
        if "Range" in self.headers:
            first, _, last = self.headers["Range"].removeprefix("bytes=").partition("-")
            body, status = body[int(first) : int(last) + 1 if last else None], 206
        return self._answer(status, body, cut=path in self.log.cut)

    def _answer(self, status: int, body: bytes, cut: bool = False) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if cut:
            self.log.cut.discard(urllib.parse.unquote(urllib.parse.urlsplit(self.path).path).strip("/"))
            self.wfile.write(body[: len(body) // 2])
            self.close_connection = True
            return
        self.wfile.write(body)
        self.log.sent += len(body)

    def _list(self, query: Mapping[str, list[str]]) -> bytes:
        """One page of at most ``PAGE`` folders or files, so that continuation is used."""
        prefix = query.get("prefix", [""])[0]
        start = int(query.get("continuation-token", ["0"])[0])
        if "delimiter" in query:
            names = sorted(path.name for path in (self.folder / prefix).glob("*") if path.is_dir())
            found = [f"<CommonPrefixes><Prefix>{escape(prefix + name)}/</Prefix></CommonPrefixes>" for name in names]
        else:
            files = sorted(path for path in (self.folder / prefix).rglob("*") if path.is_file())
            keys = [(escape(path.relative_to(self.folder).as_posix()), path.stat().st_size) for path in files]
            found = [f"<Contents><Key>{key}</Key><Size>{size}</Size></Contents>" for key, size in keys]
        page = "".join(found[start : start + PAGE])
        more = f"<NextContinuationToken>{start + PAGE}</NextContinuationToken>" if found[start + PAGE :] else ""
        space = "http://s3.amazonaws.com/doc/2006-03-01/"
        return f'<?xml version="1.0"?><ListBucketResult xmlns="{space}">{page}{more}</ListBucketResult>'.encode()


@contextmanager
def serve(folder: Path, listing: bool) -> Iterator[tuple[str, Log]]:
    """Serve a folder; yield its address and what is asked of it."""
    log = Log()
    handler = functools.partial(Handler, folder=folder, log=log, listing=listing)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", log
    finally:
        server.shutdown()
        server.server_close()
