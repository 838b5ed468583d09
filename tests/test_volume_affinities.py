"""Touching instances of volumes taken apart by affinities and boundaries: whatever the blocks, and on any grid."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage
from skimage.segmentation import watershed

from baselines.affinities import AFFINITY, pieces
from baselines.decode import DECODERS, Decoder
from baselines.models.unet3d import AFFINITIES
from baselines.targets import affinity_target, boundary_target
from baselines.volumes import volume_classes, volume_split
from baselines.volumes.map_store import MapStore, create_maps
from baselines.volumes.volume_affinities import NETWORK_NM, AffinityGrid, Axis
from baselines.volumes.volume_instances import Target, label_maps
from em_bench_eval.errors import InputError
from em_bench_eval.schema import Organelle
from em_bench_eval.volume_io import open_volume

ALL = (slice(None),) * 3
MITO = replace(DECODERS[Organelle.MITO], min_area_nm2=1500.0, methods=("affinity", "boundary"))
Volume = tuple[int, int, int]


def _cells(shape: Volume, nm: tuple[float, ...], seed: int = 0) -> np.ndarray:
    """Touching grains in a few lumps: the nearest of some points, where a smooth field is high."""
    rng = np.random.default_rng(seed)
    extent = np.multiply(shape, nm)
    places = (np.stack(np.indices(shape), -1) + 0.5) * nm
    points = rng.random((40, 3)) * extent
    nearest = (((places[..., None, :] - points) ** 2).sum(-1)).argmin(-1) + 1
    field = ndimage.gaussian_filter(rng.normal(size=shape), [40.0 / edge for edge in nm])
    labels = np.where(field > np.quantile(field, 0.55), nearest, 0)
    parts = [ndimage.label(labels == id_)[0] + 1000 * id_ for id_ in np.unique(labels[labels > 0])]
    whole = np.zeros(shape, int)
    for part in parts:
        whole = np.where(part % 1000 > 0, part, whole)
    return np.unique(whole, return_inverse=True)[1].reshape(shape)


def _perfect(labels: np.ndarray, offsets: tuple[tuple[int, ...], ...] = AFFINITIES) -> dict[str, np.ndarray]:
    """Maps of a network that knows; on the grid of ``labels``."""
    ids = torch.from_numpy(labels.astype(np.int64))[None]
    affinities = affinity_target(ids, (ids > 0).long(), offsets)[0][0].numpy()
    maps = {"mito": np.where(labels > 0, 0.9, 0.04), "boundary:mito": boundary_target(ids)[0].numpy() * 0.96}
    return maps | {AFFINITY + ",".join(map(str, o)): v for o, v in zip(offsets, affinities, strict=True)}


def _store(folder: Path, maps: dict[str, np.ndarray], nm: tuple[float, ...], network: float = 8.0) -> MapStore:
    shape = next(iter(maps.values())).shape
    store = create_maps(folder, tuple(maps), shape, nm, settings={NETWORK_NM: [network] * 3})
    values = np.stack(list(maps.values())).astype(np.float16)
    for block in store.missing():
        store.write(block, values[(slice(None), *store.box(block))])
    return store


def _noisy(maps: dict[str, np.ndarray], noise: float, seed: int = 1) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        name: np.clip(value + noise * rng.normal(size=value.shape), 0, 1) if AFFINITY in name else value
        for name, value in maps.items()
    }


def _labelled(store: MapStore, folder: Path, decoder: Decoder = MITO, **more: object) -> np.ndarray:
    path = folder / "v.zarr"
    decoders = {**DECODERS, Organelle.MITO: decoder}
    label_maps(store, Target(path, "v", store.shape), decoders, progress=False, **more)  # type: ignore[arg-type]
    return np.asarray(open_volume(path / "labels" / "instances")[:])


def _agreement(found: np.ndarray, expected: np.ndarray) -> float:
    """Share of the voxels of all expected instances that their best instance holds."""
    ids = np.unique(expected[expected > 0])
    return float(sum(np.bincount(found[expected == id_]).max() for id_ in ids) / np.count_nonzero(expected))


def _same_partition(one: np.ndarray, other: np.ndarray) -> bool:
    pairs = np.unique(np.stack([one.ravel(), other.ravel()]), axis=1)
    return len(np.unique(pairs[0])) == len(np.unique(pairs[1])) == pairs.shape[1]


@pytest.mark.parametrize("repulsive", [True, False])
def test_perfect_affinities_give_back_touching_instances_of_every_size(repulsive: bool, tmp_path: Path) -> None:
    labels = _cells((24, 40, 44), (8.0, 8.0, 8.0))
    decoder = Decoder(min_area_nm2=0.0, methods=("affinity",), repulsive=repulsive)
    found = _labelled(_store(tmp_path / "m", _perfect(labels), (8.0, 8.0, 8.0)), tmp_path, decoder)
    assert ndimage.label(labels > 0)[1] < labels.max() > 10
    assert _same_partition(found, labels)


@pytest.mark.parametrize("repulsive", [True, False])
def test_pieces_of_noisy_affinities_equal_one_pass_in_memory_and_do_not_depend_on_blocks(
    repulsive: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = _cells((24, 40, 44), (8.0, 8.0, 8.0))
    store = _store(tmp_path / "m", _noisy(_perfect(labels), 0.3), (8.0, 8.0, 8.0))
    decoder = replace(MITO, repulsive=repulsive, fill_holes=False, min_area_nm2=300.0)
    whole = _labelled(store, tmp_path / "whole", decoder)

    components, _ = ndimage.label(store.read(ALL, ["mito"])[0] > 0.5)
    names = [name for name in store.names if name.startswith(AFFINITY)]
    found = pieces(components, AFFINITIES, lambda k: store.read(ALL, [names[k]])[0], 0.5, repulsive)
    volume = (whole > 0).sum() / (components > 0).sum()
    assert volume > 0.9
    size = np.bincount(found.ravel())
    clear = (whole > 0) & (size[found] >= 200)  # not a piece that was left to its neighbours
    assert clear.sum() > 0.5 * (whole > 0).sum()
    assert _same_partition(whole[clear], found[clear])

    for number, block in enumerate([(7, 16, 33), (24, 11, 44)]):
        monkeypatch.setattr(volume_classes, "BLOCK", block)
        np.testing.assert_array_equal(_labelled(store, tmp_path / str(number), decoder), whole)


def test_components_of_affinities_that_are_decided_in_blocks_are_exact_and_numbered_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No voxel is left over here, so nothing is flooded: what remains are decisions, all the same ones."""
    labels = _cells((24, 40, 44), (8.0, 8.0, 8.0))
    store = _store(tmp_path / "m", _perfect(labels), (8.0, 8.0, 8.0))
    decoder = Decoder(min_area_nm2=0.0, methods=("affinity",))
    whole = _labelled(store, tmp_path / "whole", decoder)
    monkeypatch.setattr(volume_classes, "BLOCK", (7, 16, 33))
    np.testing.assert_array_equal(_labelled(store, tmp_path / "blocks", decoder, largest_box=1), whole)


def test_a_component_too_large_for_the_mutex_watershed_is_decided_by_the_pieces_of_its_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = _cells((24, 40, 44), (8.0, 8.0, 8.0))
    store = _store(tmp_path / "m", _noisy(_perfect(labels), 0.2), (8.0, 8.0, 8.0))
    whole = _labelled(store, tmp_path / "whole")
    monkeypatch.setattr(volume_classes, "BLOCK", (12, 20, 22))
    forced = _labelled(store, tmp_path / "blocks", largest_box=1)
    assert abs(int(forced.max()) - int(whole.max())) <= 1
    assert _agreement(forced, whole) > 0.97
    assert _agreement(forced, labels * (whole > 0)) > 0.95
    np.testing.assert_array_equal(forced, _labelled(store, tmp_path / "again", largest_box=1))


@pytest.mark.parametrize("nm", [5.0, 8.0, 16.0])
def test_volumes_of_other_voxels_than_the_networks(nm: float, tmp_path: Path) -> None:
    """The network's affinities, brought to the volume's grid as its maps are, still part what touches."""
    from baselines.volumes.resample import Line

    edge = 320.0
    aligned = _cells((40, 40, 40), (8.0,) * 3, seed=3)
    size = round(edge / nm)
    line = Line(40, size, nm / 8.0)
    maps = {}
    for name, value in _perfect(aligned).items():
        moved = np.asarray(value, np.float32)
        for axis in range(3):
            moved = line.apply(moved, 0, 0, size, axis)
        maps[name] = moved
    store = _store(tmp_path / "m", maps, (nm,) * 3)
    found = _labelled(store, tmp_path, replace(MITO, fill_holes=False))
    at = np.minimum(((np.arange(size) + 0.5) * nm / 8.0).astype(int), 39)
    expected = aligned[np.ix_(at, at, at)] * (found > 0)
    large = np.bincount(aligned.ravel()) * 8.0**3 > 6e4
    expected = np.where(large[expected], expected, 0)
    assert len(np.unique(expected)) > 10
    assert _agreement(found, expected) > (0.8 if nm > 8 else 0.97)
    assert _agreement(expected, found * (expected > 0)) > (0.8 if nm > 8 else 0.97)


def test_the_grid_of_affinities_is_the_coarser_one_and_offsets_never_vanish(tmp_path: Path) -> None:
    maps = {f"{AFFINITY}{o}": np.zeros((6, 16, 10)) for o in ("1,0,0", "0,1,0", "0,0,-1", "4,0,0", "0,9,-9")}
    grid = AffinityGrid(_store(tmp_path / "m", maps, (32.0, 4.0, 8.0)))
    assert [axis.ratio for axis in grid.axes] == [1.0, 2.0, 1.0]
    assert grid.offsets == ((1, 0, 0), (0, 1, 0), (0, 0, -1), (1, 0, 0), (0, 9, -9))
    assert grid.place_nm3 == 32.0 * 8.0 * 8.0
    assert [axis.count for axis in grid.axes] == [6, 8, 10]
    assert grid.values(1, grid.box((slice(0, 6), slice(0, 16), slice(0, 10)))).shape == (6, 8, 10)
    assert grid.values(0, (slice(0, 1), slice(0, 1), slice(0, 1)))[0, 0, 0] == 0.0


@pytest.mark.parametrize(("size", "ratio"), [(1, 1.0), (1, 3.0), (7, 1.6), (100, 1.6), (10, 2.0)])
def test_every_voxel_has_a_place_and_every_place_its_voxel(size: int, ratio: float) -> None:
    axis = Axis(size, ratio)
    voxels, places = axis.voxels(0, axis.count), axis.places(0, size)
    assert voxels[-1] < size
    assert (np.diff(voxels) >= 1).all()
    assert set(places) == set(range(axis.count))
    np.testing.assert_array_equal(places[voxels], np.arange(axis.count))


def test_boundaries_part_what_touches_whatever_the_blocks_and_thin_ones_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = _cells((24, 40, 44), (8.0, 8.0, 8.0))
    labels[:, 0:4, :] = 0
    labels[2:22, 0:3, 4:40] = labels.max() + 1  # three voxels thick: all boundary
    maps = {name: value for name, value in _perfect(labels).items() if AFFINITY not in name}
    store = _store(tmp_path / "m", maps, (8.0, 8.0, 8.0))
    whole = _labelled(store, tmp_path / "whole")
    mito, boundary = store.read(ALL, ["mito", "boundary:mito"])
    mask = mito > 0.5
    depth = ndimage.gaussian_filter(mito * (1 - boundary), 1.0)
    parts, count = ndimage.label(mask)
    seeds, _ = ndimage.label((depth >= 0.5) & mask, np.ones((3, 3, 3)))
    flooded = watershed(-depth, seeds, connectivity=np.ones((3, 3, 3)), mask=mask) + 1000 * parts
    for part in range(1, count + 1):
        if not (seeds[parts == part] > 0).any():
            flooded[parts == part] = 1000 * part
    flooded[~mask] = 0
    assert _same_partition(whole[whole > 0], flooded[whole > 0])
    assert len(np.unique(whole[labels == labels.max()])) == 1
    assert whole[10, 1, 20] > 0
    assert whole.max() > count
    monkeypatch.setattr(volume_classes, "BLOCK", (7, 16, 33))
    np.testing.assert_array_equal(_labelled(store, tmp_path / "blocks"), whole)
    monkeypatch.setattr(volume_split.flood_blocks, "__defaults__", (64,))
    forced = _labelled(store, tmp_path / "forced", largest_box=1)
    assert forced.max() == whole.max()
    assert (forced == whole).mean() > 0.999  # perfect maps are flat: at the seams of blocks ties may fall otherwise


def test_affinities_within_slices_make_no_volume_and_a_method_without_maps_is_refused(tmp_path: Path) -> None:
    bar = np.zeros((3, 12, 40), np.float32)
    bar[:, 3:9, 4:36] = 0.9
    flat = {"mito": bar, "affinity:1,0": bar, "affinity:0,1": bar}
    store = _store(tmp_path / "m", flat, (30.0, 8.0, 8.0))
    assert _labelled(store, tmp_path).max() == 1  # by components: a 2D model's affinities do not reach the next slice
    with pytest.raises(
        InputError, match="--decoder affinity needs affinities of neighbours along each of 3 axes"
    ) as error:
        _labelled(store, tmp_path / "none", wanted="affinity")
    assert "--decoder components" in str(error.value)
