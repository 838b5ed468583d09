"""Maps of a volume from a checkpoint: slice by slice, along three planes averaged, or in 3D.

A plane is named by the two axes of its images: ``xy`` has slices along z, ``xz`` along y and ``yz`` along x. Each plane
is predicted into a store of its own, sliced along its first axis, and only then are they averaged: every step can be
interrupted, and none adds to what another run has written.
"""

from __future__ import annotations

import hashlib
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tqdm import tqdm

from baselines.memory import Network
from baselines.model import Baseline
from baselines.prediction_settings import DEFAULT, TileSettings, default_device, weights_digest
from baselines.volumes.map_store import MapStore, Shape, create_maps, default_blocks
from baselines.volumes.predict_volume import VolumePredictor, aligned_voxel_nm
from em_bench_eval.errors import InputError, unknown_name
from em_bench_eval.schema import Array3D, VoxelSize
from em_bench_eval.whole_file import write_whole

# plane -> order of the volume's axes that puts the slices first; images as in dataset rows (rows x columns)
PLANES = {"xy": (0, 1, 2), "xz": (1, 0, 2), "yz": (2, 0, 1)}
CUBE_BLOCK = (128, 192, 192)  # blocks of 3D models
SAMPLE_EDGE = 32


@dataclass(frozen=True)
class Turned:
    """A volume with its axes in another order, still read lazily."""

    volume: Array3D
    order: tuple[int, int, int]

    @property
    def shape(self) -> tuple[int, ...]:
        """Size in the new order."""
        return turned(self.volume.shape, self.order)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Element type."""
        return self.volume.dtype

    def __getitem__(self, index: Any, /) -> npt.NDArray[Any]:
        """Read a box, or a slice ``[number, rows, columns]``."""
        whole = [slice(part, part + 1) if isinstance(part, int) else part for part in index]
        box = tuple(whole[self.order.index(axis)] for axis in range(3))
        values = np.asarray(self.volume[box]).transpose(self.order)
        return values[tuple(0 if isinstance(part, int) else slice(None) for part in index)]


def turned(values: Sequence[Any], order: Sequence[int]) -> tuple[Any, ...]:
    """``values`` by axis, in another order of axes."""
    return tuple(values[axis] for axis in order)


def volume_maps(
    model: Baseline,
    image: Array3D,
    voxel_size_nm: VoxelSize,
    folder: Path,
    settings: TileSettings = DEFAULT,
    *,
    planes: Sequence[str] = ("xy",),
    origin_nm: Sequence[float] = (0.0, 0.0, 0.0),
    source: str = "",
    device: torch.device | None = None,
    block_shape: Shape | None = None,
    progress: bool = True,
) -> MapStore:
    """Predict the maps of a volume into ``folder``; an interrupted call goes on when it is repeated.

    Args:
        model: a trained model whose output is maps.
        image: ``(z, y, x)``, read lazily.
        voxel_size_nm: of the image.
        folder: of the store.
        settings: tiles in aligned pixels; of a 3D model, edges of cubes.
        planes: which planes a 2D model predicts and averages; more than ``xy`` only for isotropic volumes.
        origin_nm: position of the first voxel, ``(z, y, x)``.
        source: what the image is called; part of what must be the same to continue.
        device: default: a GPU if there is one.
        block_shape: of the store, ``(z, y, x)``; changes no value.
        progress: show a bar on stderr.

    Raises:
        InputError: planes that make no sense here, a model that finds masks, an interrupted run of other settings.
    """
    check_planes(model, planes, voxel_size_nm)
    settings = settings.of(model)
    about = {
        "model": model.name,
        "weights_sha256": weights_digest(model),
        "source": source,
        "image_sha256": _fingerprint(image),
        "planes": list(planes),
        "tiles": settings.recorded(),
        "voxel_nm_of_the_network": list(aligned_voxel_nm(model, tuple(voxel_size_nm))),
    }
    flat = model.ndim == 2
    if block_shape is None:
        z, y, x = (min(edge, size) for edge, size in zip(CUBE_BLOCK, image.shape, strict=True))
        block_shape = default_blocks(image.shape) if flat else (z, y, x)
    store = create_maps(
        folder, model.map_names, image.shape, tuple(voxel_size_nm), origin_nm, settings=about, block_shape=block_shape
    )
    if store.is_complete:
        return store
    where = device or default_device()
    with store.alone():
        edge = -(-settings.tile // model.multiple) * model.multiple
        batch = settings.batch_size or _batch_before(folder)
        network = Network(model, where, (edge,) * model.ndim, batch, symmetries=settings.symmetries)
        write_whole(folder / "batch.txt", lambda path: path.write_text(f"{network.batch_size}\n"))
        if tuple(planes) == ("xy",):
            VolumePredictor(network, image, tuple(voxel_size_nm), settings, store).run(
                f"predict {model.name}", progress
            )
        else:
            _average(_planes(network, image, voxel_size_nm, settings, store, planes, progress), store, planes, progress)
            shutil.rmtree(folder / "planes")
        (folder / "batch.txt").unlink()
    return store


def check_planes(model: Baseline, planes: Sequence[str], voxel_size_nm: VoxelSize) -> None:
    """Raise ``InputError`` for planes that a model or a volume does not have."""
    for plane in planes:
        if plane not in PLANES:
            raise unknown_name("plane", plane, PLANES)
    if not planes or len(set(planes)) != len(planes):
        raise InputError("--planes names no plane, or one twice", found=", ".join(planes), expected="xy or xy,xz,yz")
    if model.output == "masks":
        raise InputError(
            f"{model.name} predicts no volumes",
            found="a model that finds masks in images",
            expected="a model with probability maps",
            remedy="predict the images of its slices (--config wild), or use another model",
        )
    if tuple(planes) != ("xy",) and model.ndim == 3:
        raise InputError(f"{model.name} is a 3D model and has no planes", remedy="leave --planes away")
    if tuple(planes) != ("xy",) and not voxel_size_nm.is_isotropic:
        raise InputError(
            "planes across the slices need an isotropic volume",
            found=f"voxels of {', '.join(f'{nm:g}' for nm in voxel_size_nm)} nm (z, y, x)",
            expected="edges that differ by at most 10 %",
            remedy="leave --planes away: slices are then predicted along z alone",
        )


def _planes(
    network: Network,
    image: Array3D,
    voxel_size_nm: VoxelSize,
    settings: TileSettings,
    store: MapStore,
    planes: Sequence[str],
    progress: bool,
) -> dict[str, MapStore]:
    made: dict[str, MapStore] = {}
    for plane in planes:
        order = PLANES[plane]
        view = Turned(image, order)
        nm = turned(tuple(voxel_size_nm), order)
        made[plane] = create_maps(store.folder / "planes" / plane, store.names, view.shape, nm)
        if not made[plane].is_complete:
            VolumePredictor(network, view, nm, settings, made[plane]).run(f"predict {plane}", progress)
    return made


def _average(made: dict[str, MapStore], store: MapStore, planes: Sequence[str], progress: bool) -> None:
    for block in tqdm(store.missing(), desc="average planes", unit="block", disable=not progress, file=sys.stderr):
        box = store.box(block)
        total = np.zeros((len(store.names), *(side.stop - side.start for side in box)), np.float32)
        for plane in planes:
            order = PLANES[plane]
            back = [1 + order.index(axis) for axis in range(3)]
            total += made[plane].read(turned(box, order)).transpose(0, *back)
        store.write(block, total / len(planes))


def _fingerprint(image: Array3D) -> str:
    """Digest of the middle of a volume: enough to notice that it was exchanged."""
    box = tuple(slice(max(0, size // 2 - SAMPLE_EDGE), size // 2 + SAMPLE_EDGE) for size in image.shape)
    return hashlib.sha256(np.ascontiguousarray(image[box]).tobytes()).hexdigest()


def _batch_before(folder: Path) -> int | None:
    """The batch size of an interrupted run: the same batches give the same floats to the last digit."""
    try:
        return int((folder / "batch.txt").read_text())
    except (OSError, ValueError):
        return None
