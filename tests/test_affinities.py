"""Affinities give back the instances that they were made of, whatever the grid; what they do not say joins nothing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from baselines.affinities import AFFINITY, both_ends, edges_of, join_all_axes, offsets_in, pieces
from baselines.decode import DECODERS, Decoder, decode
from baselines.flood import filled
from baselines.models.unet import AFFINITIES
from baselines.mutex_watershed import mutex_watershed
from baselines.targets import affinity_target
from em_bench_eval.align import align_image, resize_labels
from em_bench_eval.schema import Organelle

MITO = {Organelle.MITO: Decoder(min_area_nm2=600.0, methods=("affinity",), repulsive=True, fill_holes=True)}
LONG = ((1, 0), (0, 1), (4, 0), (0, 4))
Y, X = np.mgrid[:96, :128]


def _affinities(instances: np.ndarray, offsets: Sequence[tuple[int, ...]]) -> np.ndarray:
    """What a perfect network says: the targets of training."""
    ids = torch.from_numpy(instances.astype(np.int64))[None]
    return affinity_target(ids, (ids > 0).long(), offsets)[0][0].numpy()


def _maps(instances: np.ndarray, offsets: Sequence[tuple[int, ...]] = AFFINITIES) -> dict[str, np.ndarray]:
    named = {AFFINITY + ",".join(map(str, o)): v for o, v in zip(offsets, _affinities(instances, offsets), strict=True)}
    return {"mito": np.where(instances > 0, 0.9, 0.02).astype(np.float32), **named}


def _same_partition(one: np.ndarray, other: np.ndarray) -> bool:
    pairs = np.unique(np.stack([one.ravel(), other.ravel()]), axis=1)
    return len(np.unique(pairs[0])) == len(np.unique(pairs[1])) == pairs.shape[1]


def _discs() -> np.ndarray:
    left, right = (Y - 48) ** 2 + (X - 40) ** 2 < 400, (Y - 48) ** 2 + (X - 74) ** 2 < 400
    return np.where(left & (X < 57), 1, np.where(right & (X >= 57), 2, 0))


def _found(maps: dict[str, np.ndarray], nm: float = 8.0, **more: object) -> np.ndarray:
    return decode("v/z/00000", maps, (nm, nm), MITO, **more).instances  # type: ignore[arg-type]


def test_two_touching_discs_are_parted_by_affinities_alone() -> None:
    reference = _discs()
    assert ndimage.label(reference > 0)[1] == 1
    assert _same_partition(_found(_maps(reference)), reference)
    assert _found(_maps(reference), wanted="components").max() == 1


@pytest.mark.parametrize("offsets", [AFFINITIES, LONG, ((1, 0), (0, 1)), ((-1, 0), (0, -1), (-9, 0))])
def test_a_ring_its_core_and_what_touches_both_come_back_from_any_offsets(offsets: tuple[tuple[int, int], ...]) -> None:
    radius = np.hypot(Y - 48, X - 50)
    reference = np.where(radius < 12, 1, np.where((radius >= 12) & (radius < 30), 2, 0))
    reference[40:60, 80:120] = 3
    reference[70:72, 5:40] = 4  # thin, and apart
    assert _same_partition(_found(_maps(reference, offsets)), reference)


def test_a_few_wrong_neighbours_join_without_long_offsets_and_not_with_them() -> None:
    reference = _discs()
    maps = _maps(reference, LONG)
    across = both_ends(reference.shape, (0, 1))
    leak = np.flatnonzero(((reference[across[0]] == 1) & (reference[across[1]] == 2)).any(axis=1))[::5]
    for y in leak:
        maps["affinity:0,1"][y] = np.where(reference[y] > 0, 0.55, 0)
    alone = {name: value for name, value in maps.items() if "4" not in name}
    assert _found(alone).max() == 1
    found = _found(maps)
    assert found.max() == 2
    assert (found > 0).sum() == (reference > 0).sum()
    assert (ndimage.minimum(found, reference, [1, 2]) == [1, 2]).all() or _overlap(found, reference) > 0.97


def _overlap(found: np.ndarray, reference: np.ndarray) -> float:
    return float(np.mean([np.bincount(found[reference == id_]).max() / (reference == id_).sum() for id_ in (1, 2)]))


@pytest.mark.parametrize("nm", [4.0, 4.6, 5.0, 11.0, 16.0])
def test_on_other_grids_labels_are_decided_where_the_network_sees_and_cover_the_native_mask(nm: float) -> None:
    edge = 1024.0
    size = round(edge / nm)
    y, x = (np.mgrid[:size, :size] + 0.5) * nm
    native = np.where(np.hypot(y - 400, x - 320) < 240, 1, 0)
    native[(np.hypot(y - 400, x - 730) < 240) & (x > 520)] = 2
    native[(y > 600) & (y < 800) & (x > 200) & (x < 900) & (native == 0)] = 3
    steps = [8.0 / nm] * 2
    aligned = resize_labels(native, align_image(native, (nm, nm)).shape, steps)
    maps = {"mito": np.where(native > 0, 0.9, 0.0).astype(np.float32), **_maps(aligned)}
    maps["mito"] = np.where(native > 0, 0.9, 0.0).astype(np.float32)
    found = _found(maps, nm, network_nm=8.0)
    assert found.max() == 3
    np.testing.assert_array_equal(found > 0, filled(native > 0))
    agree = sum(np.bincount(found[native == id_]).max() for id_ in (1, 2, 3)) / (native > 0).sum()
    assert agree > 0.99
    if nm < 8:
        whole = ndimage.grey_erosion(native, 5) == ndimage.grey_dilation(native, 5)
        whole &= (native > 0) == (found > 0)
        assert _same_partition(found[whole], native[whole])  # differences only where a border runs


@pytest.mark.parametrize("value", [0.0, 1.0, 0.5])
def test_saying_no_everywhere_finds_nothing_and_yes_everywhere_is_components(value: float) -> None:
    reference = _discs()
    maps = _maps(reference)
    for name in maps:
        if name.startswith(AFFINITY):
            maps[name] = np.full(reference.shape, value, np.float32)
    found = _found(maps)
    assert found.max() == (1 if value == 1.0 else 0)
    if value == 1.0:
        np.testing.assert_array_equal(found > 0, reference > 0)


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (5, 1)])
def test_images_smaller_than_every_offset(shape: tuple[int, int]) -> None:
    everywhere = np.ones(shape, int)
    decoders = {Organelle.MITO: Decoder(min_area_nm2=0.0, methods=("affinity",), repulsive=True)}
    found = decode("v/z/00000", _maps(everywhere), (8.0, 8.0), decoders)
    assert (found.instances == 1).all()
    assert decode("v/z/00000", _maps(0 * everywhere), (8.0, 8.0), decoders).instances.max() == 0


def test_an_instance_in_the_hole_of_another_organelle_stays_itself() -> None:
    radius = np.hypot(Y - 48, X - 60)
    ring, core = (radius >= 15) & (radius < 40), radius < 12
    maps = _maps(np.where(ring, 1, np.where(core, 2, 0)))
    maps["mito"], maps["endo"] = (np.where(mask, 0.9, 0.02).astype(np.float32) for mask in (ring, core))
    found = decode("v/z/00000", maps, (8.0, 8.0))
    assert sorted(found.organelle_of.values()) == [Organelle.ENDO, Organelle.MITO]
    endo = next(id_ for id_, organelle in found.organelle_of.items() if organelle is Organelle.ENDO)
    np.testing.assert_array_equal(found.instances == endo, core)


def test_a_network_is_cut_only_where_neighbours_are_apart_and_never_by_long_offsets() -> None:
    bar = (abs(Y - 48) < 4).astype(int)
    maps = {name.replace("mito", "er"): value for name, value in _maps(bar).items()}
    for name in maps:
        if name.startswith(AFFINITY) and name not in ("affinity:1,0", "affinity:0,1"):
            maps[name] = np.zeros_like(maps[name])
    assert decode("v/z/00000", maps, (8.0, 8.0), wanted="affinity").instances.max() == 1
    maps["affinity:0,1"][:, 63] = 0.1
    assert decode("v/z/00000", maps, (8.0, 8.0)).instances.max() == 1  # components, unless asked
    found = decode("v/z/00000", maps, (8.0, 8.0), wanted="affinity").instances
    np.testing.assert_array_equal(found, np.where(bar, np.where(X <= 63, 1, 2), 0))
    assert not DECODERS[Organelle.ER].repulsive


def _slow_pieces(
    groups: np.ndarray, offsets: Sequence[tuple[int, ...]], values: np.ndarray, threshold: float, repulsive: bool
) -> np.ndarray:
    """Pixel by pixel; then the mutex watershed, which has its own twin."""
    places = [tuple(p) for p in np.argwhere(groups > 0).tolist()]
    number = {place: k for k, place in enumerate(places)}
    edges = []
    for k, offset in enumerate(offsets):
        joins = sum(map(abs, offset)) == 1
        for place in places:
            other = tuple(i + step for i, step in zip(place, offset, strict=True))
            if other not in number or groups[place] != groups[other] or (not joins and not repulsive):
                continue
            value = values[(k, *place)]
            if value > threshold if joins else value < threshold:
                edges.append((number[place], number[other], value if joins else 1 - value, joins))
    columns = list(zip(*edges, strict=True)) or [(), (), (), ()]
    types = (int, int, np.float32, bool)
    of = mutex_watershed(len(places), *(np.array(c, t) for c, t in zip(columns, types, strict=True)))
    result = np.zeros(groups.shape, int)
    for k, place in enumerate(places):
        result[place] = sorted(set(of.tolist())).index(of[k]) + 1
    return result


@given(st.integers(0, 10_000), st.booleans(), st.sampled_from([(7, 9), (3, 4, 5)]))
@settings(max_examples=40, deadline=None)
def test_pieces_equal_the_loop_over_pixels_on_noise(seed: int, repulsive: bool, shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(seed)
    groups = rng.integers(0, 3, shape)
    axes = np.eye(len(shape), dtype=int)
    offsets = [tuple(map(int, axis)) for axis in axes] + [(0,) * (len(shape) - 1) + (-3,), (2,) * len(shape)]
    values = (rng.integers(0, 5, (len(offsets), *shape)) / 4).astype(np.float32)
    found = pieces(groups, offsets, values.__getitem__, 0.5, repulsive)
    np.testing.assert_array_equal(found, _slow_pieces(groups, offsets, values, 0.5, repulsive))


@given(st.integers(0, 10_000), st.tuples(st.integers(0, 6), st.integers(0, 6)))
@settings(max_examples=25, deadline=None)
def test_pieces_of_a_component_do_not_depend_on_what_lies_around_it(seed: int, corner: tuple[int, int]) -> None:
    """Ties included: what a component becomes is the same in its own box and in the whole image."""
    rng = np.random.default_rng(seed)
    groups = np.zeros((24, 24), int)
    groups[corner[0] : corner[0] + 12, corner[1] : corner[1] + 12] = 1
    groups[:, 20:] = 2
    values = (rng.integers(0, 4, (len(LONG), 24, 24)) / 3).astype(np.float32)
    whole = pieces(groups, LONG, values.__getitem__, 0.5, True)
    box = (slice(corner[0], corner[0] + 12), slice(corner[1], corner[1] + 12))
    alone = pieces(groups[box], LONG, lambda k: values[k][box], 0.5, True)
    assert _same_partition(alone, whole[box])


def test_edges_between_the_same_piece_and_outside_of_groups_are_left_out() -> None:
    ids = np.array([[0, 0, 1, 1, 2]])
    values = np.full((2, 1, 5), 0.9, np.float32)
    first, second, strength, joins = edges_of(
        ids, np.array([[1, 1, 1, 0, 1]]), [(0, 1), (0, 2)], values.__getitem__, 0.5, True
    )
    assert (first.tolist(), second.tolist(), joins.tolist()) == ([0], [1], [True])
    np.testing.assert_allclose(strength, [0.9])


def test_names_of_maps_say_which_axes_they_join() -> None:
    names = ["mito", "distance:mito", "affinity:1,0", "affinity:0,-1", "affinity:0,4"]
    assert offsets_in(names) == {"affinity:1,0": (1, 0), "affinity:0,-1": (0, -1), "affinity:0,4": (0, 4)}
    assert join_all_axes(names, 2)
    assert not join_all_axes(names, 3)
    assert not join_all_axes(["affinity:1,0", "affinity:0,2"], 2)
    assert not join_all_axes(["affinity:1,1", "affinity:1,0"], 2)
    assert join_all_axes(["affinity:1,0,0", "affinity:0,1,0", "affinity:0,0,1"], 3)
