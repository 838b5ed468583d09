"""Writing OME-Zarr 0.5: groups, and sharded zarr v3 arrays of labels, which any zarr v3 library reads."""

from __future__ import annotations

import errno
import json
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt

Shape = tuple[int, int, int]  # (z, y, x)

LABEL_ARRAY = "s0"  # the one level of a label group
ZSTD_LEVEL = 1  # labels are long runs of one value: higher levels cost time and save little


def create_labels(
    path: Path,
    shape: Shape,
    dtype: npt.DTypeLike,
    voxel_size_nm: Sequence[float] | None,
    chunk: Shape,
    shard: Shape,
    *,
    translation_nm: Sequence[float] | None = None,
    attributes: Mapping[str, object] | None = None,
) -> Any:
    """Create an OME-Zarr 0.5 label group with one empty, sharded array in it.

    Args:
        path: the group to make; its array is ``path/s0``.
        shape: ``(z, y, x)`` voxels.
        dtype: unsigned integers.
        voxel_size_nm: ``(z, y, x)``, or ``None`` where it is unknown (the group then states no unit).
        chunk: ``(z, y, x)`` voxels of what is compressed as one; divides ``shard``.
        shard: ``(z, y, x)`` voxels of what is stored as one file.
        translation_nm: centre of the first voxel, ``(z, y, x)``.
        attributes: further attributes of the group.

    Returns:
        The array, opened for writing by tensorstore.
    """
    import tensorstore as ts

    from em_bench_eval.volume_io import folder_store

    multiscales = [_one_level(path.name, voxel_size_nm, translation_nm)]
    ome = {"version": "0.5", "multiscales": multiscales, "image-label": {}}
    write_group(path, {"ome": ome, **(attributes or {})})
    spec = {
        "driver": "zarr3",
        "kvstore": folder_store(path / LABEL_ARRAY),
        "metadata": array_metadata(shape, dtype, chunk, shard, ZSTD_LEVEL),
    }
    with full_disk_is_os_error():
        return ts.open(spec, create=True).result()


def array_metadata(
    shape: Sequence[int], dtype: npt.DTypeLike, chunk: Sequence[int], shard: Sequence[int], zstd_level: int
) -> dict[str, object]:
    """Return the zarr v3 metadata of a sharded, zstd-compressed ``(z, y, x)`` array."""
    import numpy as np

    little = {"name": "bytes", "configuration": {"endian": "little"}}
    sharding = {
        "chunk_shape": list(chunk),
        "codecs": [little, {"name": "zstd", "configuration": {"level": zstd_level, "checksum": False}}],
        "index_codecs": [little, {"name": "crc32c"}],
    }
    return {
        "shape": list(shape),
        "data_type": np.dtype(dtype).name,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(shard)}},
        "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
        "fill_value": np.zeros((), dtype).item(),
        "dimension_names": ["z", "y", "x"],
    }


def write_group(path: Path, attributes: Mapping[str, object]) -> None:
    """Make a zarr v3 group with these attributes, and its folder."""
    path.mkdir(parents=True, exist_ok=True)
    node = {"zarr_format": 3, "node_type": "group", "attributes": attributes}
    (path / "zarr.json").write_text(json.dumps(node, indent=2) + "\n")


@contextmanager
def full_disk_is_os_error() -> Iterator[None]:
    """Raise ``OSError`` where tensorstore reports a full disk, which it does with a ``ValueError``."""
    try:
        yield
    except ValueError as error:
        if "RESOURCE_EXHAUSTED" in str(error):
            raise OSError(errno.ENOSPC, str(error)) from error
        raise


def _one_level(
    name: str, voxel_size_nm: Sequence[float] | None, translation_nm: Sequence[float] | None
) -> dict[str, object]:
    unit = {"unit": "nanometer"} if voxel_size_nm is not None else {}
    transforms: list[dict[str, object]] = [{"type": "scale", "scale": list(voxel_size_nm or (1.0, 1.0, 1.0))}]
    if voxel_size_nm is not None and translation_nm is not None and any(translation_nm):
        transforms.append({"type": "translation", "translation": list(translation_nm)})
    axes = [{"name": axis, "type": "space", **unit} for axis in "zyx"]
    return {"name": name, "axes": axes, "datasets": [{"path": LABEL_ARRAY, "coordinateTransformations": transforms}]}
