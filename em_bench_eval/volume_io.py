"""Opening any volume lazily: zarr v2 and v3, OME-Zarr, N5 here; TIFF, PNG, HDF5, NIfTI, MRC by ``volume_files``.

Detection of chunked volumes, which also lie over HTTP or on S3, reads a few small files by name and lists nothing,
because plain HTTP servers and many buckets cannot list.
"""

from __future__ import annotations

import copyreg
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import InputError
from .opened import Box, Opened
from .spacing import Spacing, multiscales, of_attributes, of_multiscales
from .volume_files import folder_store, format_of_name, known_suffixes, open_file, plain_path, split_location

__all__ = ["Opened", "folder_store", "is_remote", "open_volume", "read_document", "read_node"]

EXPECTED = "a zarr (v2, v3), OME-Zarr (0.4, 0.5) or N5 array, or a group that declares multiscales"
ALSO_LOCAL = f"a folder of TIFF or PNG slices, or a file: {', '.join(known_suffixes())}"
DRIVERS = {"zarr v3": "zarr3", "zarr v2": "zarr", "N5": "n5"}
METADATA = ("zarr.json", ".zarray", ".zgroup", ".zattrs", "attributes.json")
RETRIES = {"max_retries": 5, "initial_delay": "200ms", "max_delay": "5s"}  # the default keeps trying for minutes


class Chunked:
    """A tensorstore array with axes ordered ``(z, y, x)``."""

    def __init__(self, store: Any, location: str):
        self.store = store  # tensorstore.TensorStore
        self.location = location  # of the array itself: a folder, absolute, or a URL
        z, y, x = store.shape
        self.shape = (z, y, x)
        self.dtype: np.dtype[Any] = store.dtype.numpy_dtype
        z, y, x = store.chunk_layout.read_chunk.shape
        self.chunk_shape = (z, y, x)

    def read(self, box: Box) -> npt.NDArray[Any]:
        """Read the chunks that a box touches."""
        return np.asarray(self.store[box].read().result())


@dataclass(frozen=True)
class Node:
    """An array or a group, as its metadata files describe it."""

    format: str
    is_array: bool
    attributes: Mapping[str, Any]
    dimension_names: tuple[str, ...] = ()


def open_volume(location: str | os.PathLike[str]) -> Opened:
    """Open a volume for reading.

    Args:
        location: a local path, or a URL ``http://``, ``https://``, ``s3://bucket/key`` (anonymous; the environment
            variable ``AWS_ENDPOINT_URL`` names another S3 server). Zarr and N5: an array, or a group that declares
            multiscales, of which the finest level is opened. Local only: a folder with one TIFF or PNG file a slice,
            and the files of ``volume_files.FORMATS``, with ``FILE:/path/inside`` for HDF5 and ``FILE:0`` for one of
            several series of a TIFF.

    Returns:
        The volume, ordered ``(z, y, x)`` (N5 and NIfTI list their axes the other way round); axes of time and channel
        are dropped if they have length 1. ``voxel_size_nm`` is ``None`` where none with a unit is stated.

    Raises:
        InputError: nothing there, an unknown or contradictory format, a truncated file, missing slices, colour, a
            group with no image in it, other than three axes.
    """
    url = os.fspath(location).rstrip("/")
    if is_remote(url):
        _refuse_remote_file(url)
    elif (split := split_location(url))[0].is_file():
        return open_file(url, *split)
    node = read_node(url)
    if node is None and not is_remote(url):
        from .stack_volume import holds_planes, open_stack

        if holds_planes(folder := split_location(url)[0]):
            return open_stack(url, folder)
    if node is None:
        raise InputError(
            f"no volume at {url}",
            found=_what_is_there(url),
            expected=EXPECTED if is_remote(url) else f"{EXPECTED}; {ALSO_LOCAL}",
            remedy="check the path; em-bench inspect shows what is in a folder",
        )
    if node.is_array:
        # the array of a pyramid's level: its group knows the spacing
        above, _, name = url.rpartition("/")
        group = read_node(above) if above and not above.endswith(":/") else None
        return _open_array(url, url, node, group, name)
    path = _finest_level(url, node)
    array = None if path is None else read_node(f"{url}/{path}")
    if path is None or array is None or not array.is_array:
        raise InputError(
            f"{url} is a {node.format} group without an image of its own",
            found="no multiscales in its attributes" if path is None else f"no array at its finest level, {path}",
            expected=EXPECTED,
            remedy=_children(url) or "name the array inside it",
        )
    return _open_array(url, f"{url}/{path}", array, node, path)


def _open_part(location: str, part: Box | None) -> Opened:
    return replace(open_volume(location), part=part)


def _reopen(opened: Opened) -> tuple[Callable[[str, Box | None], Opened], tuple[str, Box | None]]:
    here = opened.location
    return _open_part, (here if "://" in here else plain_path(here), opened.part)


copyreg.pickle(Opened, _reopen)  # open files stay here


def _refuse_remote_file(url: str) -> None:
    named = format_of_name(url.rpartition("/")[2].partition(":")[0])
    if named is not None and not url.endswith((".zarr", ".n5")):
        raise InputError(
            f"{url} cannot be read in place",
            found=f"a {named.name} file on a server",
            expected="zarr or N5, whose chunks are fetched one by one",
            remedy="download the file and open the copy",
        )


def _open_array(location: str, url: str, node: Node, group: Node | None, path: str) -> Opened:
    import tensorstore as ts

    spec = {"driver": DRIVERS[node.format], "kvstore": _kvstore(url)}
    try:
        array = ts.open(spec, read=True, context=_context()).result()
    except ValueError as error:
        raise InputError(
            f"the {node.format} array {url} cannot be opened",
            found=str(error).split(" [source locations")[0],
            expected="valid metadata and a codec that tensorstore has",
            remedy="convert it, for instance with zarr-python or z5py",
        ) from error
    if node.format == "N5":
        array = array.T  # N5 lists the fastest axis first
    stated = _spacing(node, group, path) or Spacing(())
    axes = stated.axes if len(stated.axes) == array.rank else node.dimension_names
    attributes = {**(group.attributes if group and location != url else {}), **node.attributes}
    note = stated.without_unit()
    return Opened(
        location,
        _format_name(node, group, path),
        Chunked(_spatial(array, axes, url), url if is_remote(url) else plain_path(url.removeprefix("file://"))),
        stated.voxel_size_nm(),
        stated.translation_nm(),
        attributes,
        (note,) if note else (),
    )


def _format_name(node: Node, group: Node | None, path: str) -> str:
    """Name the format as a person does: OME-Zarr, with its version, where a pyramid lists the array."""
    pyramid = multiscales(group.attributes) if group else None
    if group is None or pyramid is None or node.format == "N5" or _level_of(pyramid, path) is None:
        return node.format
    ome = group.attributes.get("ome")
    version = (ome if isinstance(ome, Mapping) else pyramid).get("version")
    return f"OME-Zarr {version} ({node.format})" if version else f"OME-Zarr ({node.format})"


def _spatial(array: Any, axes: tuple[str, ...], url: str) -> Any:
    """Order a tensorstore view ``(z, y, x)``; drop axes of length 1 that are not space."""
    import tensorstore as ts

    order = [axes.index(axis) for axis in "zyx"] if len(axes) == array.rank and set("zyx") <= set(axes) else []
    if not order:  # names are missing: the last three axes
        order = list(range(max(0, array.rank - 3), array.rank))
    others = [axis for axis in range(array.rank) if axis not in order]
    if len(order) != 3 or any(array.shape[axis] != 1 for axis in others):
        raise InputError(
            f"{url} is not one 3D volume",
            found=f"shape {tuple(array.shape)}" + (f", axes {', '.join(axes)}" if axes else ""),
            expected="three axes (z, y, x), and any others of length 1",
            remedy="store one channel and one time point as an array of its own",
        )
    for axis in sorted(others, reverse=True):
        array = array[ts.d[axis][array.domain[axis].inclusive_min]]
    ranks = [sorted(order).index(axis) for axis in order]
    array = array[ts.d[ranks].transpose[:]]
    return array[ts.d[:].translate_to[0]]


def _spacing(node: Node, group: Node | None, path: str) -> Spacing | None:
    """Ask the pyramid that lists this array first, then the array, then its group."""
    pyramid = multiscales(group.attributes) if group else None
    level = None if pyramid is None else _level_of(pyramid, path)
    if pyramid is not None and level is not None:
        return of_multiscales(pyramid, level)
    own = of_attributes(node.attributes, node.format == "N5")
    if own is None and group is not None and path in ("s0", "0"):
        return of_attributes(group.attributes, group.format == "N5")
    return own


def _level_of(pyramid: Mapping[str, Any], path: str) -> int | None:
    """Return the level of a pyramid that is stored at a path."""
    paths = [str(dataset.get("path", "")).strip("/") for dataset in pyramid["datasets"]]
    return paths.index(path) if path in paths else None


def _finest_level(url: str, node: Node) -> str | None:
    pyramid = multiscales(node.attributes)
    if pyramid is not None:
        return str(pyramid["datasets"][0].get("path", "")).strip("/")
    # Paintera and n5-viewer name the levels s0, s1, ... and may declare nothing
    if node.format == "N5" and (first := read_node(f"{url}/s0")) is not None and first.is_array:
        return "s0"
    return None


@lru_cache(maxsize=1)
def _context() -> Any:
    import tensorstore as ts

    return ts.Context({"http_request_retries": RETRIES, "s3_request_retries": RETRIES})


def _file(url: str) -> dict[str, object]:
    return folder_store(url.removeprefix("file://"))


def _http(url: str) -> dict[str, object]:
    return {"driver": "http", "base_url": url + "/"}


def _s3(url: str) -> dict[str, object]:
    bucket, _, key = url.removeprefix("s3://").partition("/")
    spec: dict[str, object] = {"driver": "s3", "bucket": bucket, "path": key + "/" if key else ""}
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if endpoint:
        spec |= {"endpoint": endpoint, "aws_region": os.environ.get("AWS_REGION", "us-east-1")}
    return {**spec, "aws_credentials": {"type": "anonymous"}}


SCHEMES: Mapping[str, Callable[[str], dict[str, object]]] = {"file": _file, "http": _http, "https": _http, "s3": _s3}


def is_remote(location: str | os.PathLike[str]) -> bool:
    """True for a URL of another machine."""
    scheme, separator, _ = os.fspath(location).partition("://")
    return bool(separator) and scheme != "file"


def _kvstore(url: str) -> dict[str, object]:
    scheme, separator, _ = url.partition("://")
    if separator and scheme not in SCHEMES:
        raise InputError(
            f"cannot open {url}",
            found=f"a URL that begins with {scheme}://",
            expected=f"a local path, or {', '.join(f'{name}://' for name in SCHEMES)}",
        )
    return SCHEMES[scheme if separator else "file"](url)


def read_node(url: str) -> Node | None:
    """Read the metadata files of one array or group; ``None`` if there is none."""
    import tensorstore as ts

    spec = _kvstore(url)
    if spec["driver"] == "file" and not os.path.isdir(str(spec["path"])):
        return None
    store = ts.KvStore.open(spec, context=_context()).result()
    pending = {name: store.read(name) for name in METADATA}
    found: dict[str, dict[str, Any]] = {}
    failure: Exception | None = None
    for name, read in pending.items():
        try:
            answer = read.result()
            if answer.state == "value":
                found[name] = json.loads(answer.value)
        except json.JSONDecodeError as error:
            raise InputError(f"{url}/{name} cannot be read", found=str(error), expected="a JSON document") from error
        except ValueError as error:  # a bucket that may not be listed denies what does not exist
            failure = error
    if not found and failure is not None:
        raise InputError(
            f"{url} cannot be reached",
            found=str(failure).split(" [source locations")[0],
            expected="a server that answers without a login",
            remedy="check the address and the network",
        ) from failure
    return _interpret(found)


def read_document(url: str) -> str | None:
    """Read one small text file beside a volume, wherever it is; ``None`` if it is not there."""
    import tensorstore as ts

    folder, _, name = url.rpartition("/")
    answer = ts.KvStore.open(_kvstore(folder), context=_context()).result().read(name).result()
    return answer.value.decode() if answer.state == "value" else None


def _interpret(found: Mapping[str, Any]) -> Node | None:
    if "zarr.json" in found:
        metadata = found["zarr.json"]
        names = tuple(str(name or "").lower() for name in metadata.get("dimension_names") or ())
        return Node("zarr v3", metadata.get("node_type") == "array", metadata.get("attributes", {}), names)
    if {".zarray", ".zgroup", ".zattrs"} & set(found):
        return Node("zarr v2", ".zarray" in found, found.get(".zattrs", {}))
    if "attributes.json" in found:
        attributes = found["attributes.json"]
        return Node("N5", {"dimensions", "dataType"} <= set(attributes), attributes)
    return None


def _what_is_there(url: str) -> str:
    if is_remote(url):
        return f"none of {', '.join(METADATA)}"
    path = Path(url.removeprefix("file://"))
    if path.is_file():
        return "a file"
    if not path.exists():
        return "no such file or folder"
    inside = sorted(child.name for child in path.iterdir())
    return f"a folder with {', '.join(inside[:8])}{', ...' if len(inside) > 8 else ''}" if inside else "an empty folder"


def _children(url: str) -> str | None:
    """Name what can be opened below a local group."""
    if is_remote(url):
        return None
    path = Path(url.removeprefix("file://"))
    names = sorted(child.parent.relative_to(path).as_posix() for name in METADATA for child in path.glob(f"*/{name}"))
    unique = list(dict.fromkeys(names))
    return f"name one inside it: {', '.join(f'{url}/{name}' for name in unique[:8])}" if unique else None
