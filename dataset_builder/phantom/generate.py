"""Make one synthetic volume: lay out a cell, sample it, stain it, image it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from dataset_builder.phantom.anatomy import sample
from dataset_builder.phantom.cell import lay_out
from dataset_builder.phantom.er import main_network
from dataset_builder.phantom.grid import Grid, random_stream
from dataset_builder.phantom.imaging import Setup, acquire
from dataset_builder.phantom.render import stain
from em_bench_eval.schema import Organelle

REFERENCE_NM = 8.0  # shapes are given for isotropic voxels of this size
FEWEST_SLICES = 8


@dataclass(frozen=True)
class Phantom:
    """An image and its complete labels."""

    image: npt.NDArray[np.uint8]  # (z, y, x)
    instances: npt.NDArray[np.uint32]  # (z, y, x), 1..N, 0 = background
    organelle_of: dict[int, Organelle]


def volume_shape(setup: Setup, shape: tuple[int, int, int]) -> tuple[int, int, int]:
    """Voxels ``(z, y, x)`` of a set-up: y and x as given; a thick slice means fewer slices, at least eight."""
    z, y, x = shape
    thick = setup.voxel_nm[0] / max(REFERENCE_NM, setup.voxel_nm[1])
    return (z if thick <= 1 else max(FEWEST_SLICES, round(z * REFERENCE_NM / setup.voxel_nm[0]))), y, x


def generate(setup: Setup, shape: tuple[int, int, int], seed: str) -> Phantom:
    """Make a volume of ``volume_shape(setup, shape)`` voxels; the same arguments give the same bytes."""
    depth, height, width = volume_shape(setup, shape)
    name = f"{seed}/{setup.name}"
    rng = random_stream(name, "imaging")
    margin = setup.shift_px  # each slice is cut out of a slightly larger one, at its own offset
    grid = Grid(
        (depth * setup.subslices, height + 2 * margin, width + 2 * margin),
        (setup.voxel_nm[0] / setup.subslices, setup.voxel_nm[1], setup.voxel_nm[2]),
    )
    with tqdm(total=4, desc=f"phantom {setup.name}", unit="step", leave=False) as bar:
        cell = lay_out(grid.extent_nm, name)
        bar.update()
        fields = sample(cell, grid, setup.processes_per_um2, setup.crowding)
        bar.update()
        labels, organelle_of = fields.labels, fields.organelle_of
        density = stain(cell, fields)
        del fields
        bar.update()
        image = acquire(density, grid, setup, rng)
        labels = _slice_labels(labels, organelle_of, setup.subslices)
        if margin:
            offsets = margin + np.rint(np.clip(rng.normal(0, 0.6 * margin, (depth, 2)), -margin, margin)).astype(int)
            image, labels = (
                np.stack([plane[dy : dy + height, dx : dx + width] for plane, (dy, dx) in zip(a, offsets, strict=True)])
                for a in (image, labels)
            )
        instances, organelle_of = _finish(labels, organelle_of)
        bar.update()
    return Phantom(image, instances, organelle_of)


def _slice_labels(
    labels: npt.NDArray[np.uint32], organelle_of: dict[int, Organelle], subslices: int
) -> npt.NDArray[np.uint32]:
    """Labels of whole slices: the middle sub-slice; ER, thinner than a slice, also where half of the slice holds it.

    The middle alone cuts 1 to 2 % of the ER off its network in 50 nm slices; half of the slice loses 0.1 % at most.
    """
    stacked = labels.reshape(-1, subslices, *labels.shape[1:])
    middle = stacked[:, subslices // 2].copy()
    for number, organelle in organelle_of.items():
        if organelle == Organelle.ER:
            middle[(middle == 0) & (2 * np.sum(stacked == number, axis=1) >= subslices)] = number
    return middle


def _finish(
    labels: npt.NDArray[np.uint32], organelle_of: dict[int, Organelle]
) -> tuple[npt.NDArray[np.uint32], dict[int, Organelle]]:
    """Keep the ER in one piece (26 neighbours) and number the instances that are left 1..N."""
    nuclei = [number for number, organelle in organelle_of.items() if organelle == Organelle.NUCLEUS]
    for number, organelle in organelle_of.items():
        if organelle == Organelle.ER:
            body = labels == number
            labels[body & ~main_network(body, np.isin(labels, nuclei))] = 0
    present = [int(number) for number in np.unique(labels) if number]
    renumber = np.zeros(max(present, default=0) + 1, dtype=np.uint32)
    renumber[present] = np.arange(1, len(present) + 1)
    return renumber[labels], {int(renumber[number]): organelle_of[number] for number in present}
