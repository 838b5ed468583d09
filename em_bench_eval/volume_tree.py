"""Which volumes lie below a path: in folders, in zarr and N5 groups, inside HDF5 files; also on servers that say so."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from em_bench_eval import spacing
from em_bench_eval.errors import InputError
from em_bench_eval.volume_files import format_of_name, split_location
from em_bench_eval.volume_io import METADATA, is_remote, read_document, read_node

MOST = 64  # volumes that are looked at
DEEPEST = 8  # folders
LEVEL = re.compile(r"s?\d+")  # of an image pyramid: coarser copies, which are not listed


def volumes_below(location: str | os.PathLike[str]) -> tuple[list[str], bool]:
    """Return the locations that ``open_volume`` may open at and below a path, and whether there are more.

    A pyramid counts as one volume. HTTP servers and most buckets cannot be listed: there, what OME-Zarr ``labels`` and
    consolidated metadata name is found.
    """
    url = os.fspath(location).rstrip("/")
    found: list[str] = []
    for place in _remote(url) if is_remote(url) else _local(url):
        if len(found) == MOST:
            return found, True
        found.append(place)
    return found, False


def _local(url: str) -> Iterator[str]:
    path, inside = split_location(url)
    if path.is_file():
        yield from _inside(path) if inside is None else [url]
    elif path.is_dir():
        yield from _folder(path, 0)


def _inside(path: Path) -> list[str]:
    """List what one file holds; what cannot be read stands for itself: opening it says why."""
    try:
        return list(_named_inside(path))
    except InputError:
        return [str(path)]


def _named_inside(path: Path) -> Iterator[str]:
    known = format_of_name(path.name)
    if known is not None and known.name == "HDF5":
        from em_bench_eval.hdf5_volume import names

        several = [name for name, (shape, _) in names(path).items() if len(shape) >= 3]
        yield from [f"{path}:{name}" for name in several] or [str(path)]
    elif known is not None and known.name == "TIFF":
        from em_bench_eval.tiff_volume import count_series

        count = count_series(path)
        yield from [f"{path}:{number}" for number in range(count)] if count > 1 else [str(path)]
    else:
        yield str(path)


def _folder(folder: Path, depth: int) -> Iterator[str]:
    from em_bench_eval.stack_volume import is_stack

    levels: set[str] = set()
    if any((folder / name).is_file() for name in METADATA):
        node = read_node(str(folder))
        if node is not None and node.is_array:
            yield str(folder)
            return
        pyramid = spacing.multiscales(node.attributes) if node is not None else None
        paintera = node is not None and node.format == "N5" and (folder / "s0").is_dir()
        if pyramid is not None or paintera:
            yield str(folder)
            levels = {str(entry.get("path")) for entry in (pyramid or {}).get("datasets", ())}
            levels |= {child.name for child in folder.iterdir() if LEVEL.fullmatch(child.name)}
    stacked = is_stack(folder)
    if stacked:
        yield str(folder)
    for child in sorted(folder.iterdir()):
        if child.name.startswith(".") or child.name in levels:
            continue
        if child.is_dir() and depth < DEEPEST:
            yield from _folder(child, depth + 1)
        elif child.is_file() and format_of_name(child.name) is not None and not stacked:
            yield from _inside(child)


def _remote(url: str) -> Iterator[str]:
    node = read_node(url)
    if node is None:
        return
    if node.is_array or spacing.multiscales(node.attributes) is not None or _first_level(url):
        yield url
    if node.is_array:
        return
    named = _consolidated(url)
    labels = read_node(f"{url}/labels")
    if labels is not None:
        about = labels.attributes.get("ome", labels.attributes)
        named += [f"labels/{name}" for name in about.get("labels", ())]
    for name in dict.fromkeys(named):
        yield f"{url}/{name}"


def _first_level(url: str) -> bool:
    first = read_node(f"{url}/s0")
    return first is not None and first.is_array and first.format == "N5"


def _consolidated(url: str) -> list[str]:
    """Name the arrays that consolidated metadata list, pyramids by their group."""
    text = read_document(f"{url}/.zmetadata") or read_document(f"{url}/zarr.json") or "{}"
    document: dict[str, Any] = json.loads(text)
    entries = document.get("metadata") or (document.get("consolidated_metadata") or {}).get("metadata") or {}
    arrays = [
        name.removesuffix("/.zarray")
        for name, entry in entries.items()
        if name.endswith("/.zarray") or (isinstance(entry, dict) and entry.get("node_type") == "array")
    ]
    return [name.rpartition("/")[0] or name if LEVEL.fullmatch(name.rpartition("/")[2]) else name for name in arrays]
