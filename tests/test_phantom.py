"""The embedded source: what every synthetic cell must hold, whatever the seed."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from dataset_builder.phantom import generate as generate_module
from dataset_builder.phantom.anatomy import Fields, sample
from dataset_builder.phantom.cell import Cell, lay_out
from dataset_builder.phantom.er import main_network
from dataset_builder.phantom.generate import Phantom, generate, volume_shape
from dataset_builder.phantom.grid import Grid, NoiseField, random_stream
from dataset_builder.phantom.imaging import SETUPS
from dataset_builder.phantom.render import stain
from dataset_builder.phantom.shapes import segment_distance
from dataset_builder.source import load_source
from dataset_builder.sources.phantom import SETUP_NAMES, parse_setups, parse_shape
from em_bench_eval.errors import InputError
from em_bench_eval.schema import Organelle, Volume

EVERYWHERE = np.ones((3, 3, 3), dtype=bool)
MIDDLE_SIZE = (32, 160, 160)


@pytest.fixture(scope="module", params=SETUP_NAMES)
def phantom(request: pytest.FixtureRequest) -> Phantom:
    return generate(SETUPS[request.param], MIDDLE_SIZE, "0")


def ids_of(phantom: Phantom, organelle: Organelle) -> list[int]:
    return [number for number, kind in phantom.organelle_of.items() if kind == organelle]


def touching_pairs(instances: np.ndarray, ids: list[int]) -> set[tuple[int, int]]:
    """Pairs of ids that share a voxel face."""
    pairs = set()
    for axis in range(3):
        a = np.take(instances, range(instances.shape[axis] - 1), axis=axis).ravel()
        b = np.take(instances, range(1, instances.shape[axis]), axis=axis).ravel()
        for low, high in {(int(min(p)), int(max(p))) for p in zip(a[a != b], b[a != b], strict=True)}:
            if low in ids and high in ids:
                pairs.add((low, high))
    return pairs


def test_all_organelles_are_there(phantom: Phantom) -> None:
    least = {Organelle.MITO: 2, Organelle.ENDO: 2, Organelle.GOLGI: 1, Organelle.NUCLEUS: 1, Organelle.ER: 1}
    for organelle, count in least.items():
        assert len(ids_of(phantom, organelle)) >= count, organelle
    assert len(ids_of(phantom, Organelle.ER)) == len(ids_of(phantom, Organelle.NUCLEUS)) == 1


def test_labels_are_exactly_the_listed_instances(phantom: Phantom) -> None:
    assert phantom.instances.dtype == np.uint32
    assert phantom.image.dtype == np.uint8
    assert phantom.image.shape == phantom.instances.shape
    assert np.unique(phantom.instances).tolist() == list(range(len(phantom.organelle_of) + 1))
    assert sorted(phantom.organelle_of) == list(range(1, len(phantom.organelle_of) + 1))


def test_er_is_one_network_that_touches_the_nucleus(phantom: Phantom) -> None:
    er = np.isin(phantom.instances, ids_of(phantom, Organelle.ER))
    nucleus = np.isin(phantom.instances, ids_of(phantom, Organelle.NUCLEUS))
    assert ndimage.label(er, EVERYWHERE)[1] == 1
    assert (ndimage.binary_dilation(er, EVERYWHERE) & nucleus).any()
    # a network, not a lump: most of it lies within a thin layer of its surface
    assert er.mean() > 0.02
    spread = [np.ptp(line) / (n - 1) for line, n in zip(np.nonzero(er), er.shape, strict=True)]
    assert min(spread) > 0.5


def test_some_mitochondria_touch(phantom: Phantom) -> None:
    assert touching_pairs(phantom.instances, ids_of(phantom, Organelle.MITO))


def test_set_ups_look_different(phantom: Phantom) -> None:
    assert 90 < phantom.image.mean() < 190
    assert 15 < phantom.image.std() < 70
    assert np.mean(phantom.image == 0) < 0.05
    assert np.mean(phantom.image == 255) < 0.05


@pytest.fixture(scope="module")
def cell_and_fields() -> tuple[Cell, Fields]:
    grid = Grid((16, 160, 160), (8.0, 8.0, 8.0))
    cell = lay_out(grid.extent_nm, "0/fibsem8")
    return cell, sample(cell, grid, 16.0, 1.0)


def test_membranes_are_darker_than_what_they_enclose(cell_and_fields: tuple[Cell, Fields]) -> None:
    cell, fields = cell_and_fields
    density = stain(cell, fields)
    free = (fields.own > 60) & (fields.nucleus > 60)
    membrane = density[(np.abs(fields.er) < 2) & free].mean()
    lumen = density[(fields.er < -10) & free].mean()
    rest = np.minimum(np.minimum(fields.er, fields.mito), np.minimum(fields.endo, fields.golgi))
    cytosol = density[(np.minimum(rest, fields.vesicle) > 40) & free].mean()
    matrix = density[(fields.mito < -25) & free].mean()
    assert membrane > matrix + 0.2 > cytosol + 0.2
    assert lumen < cytosol


def test_er_lumen_continues_into_the_nuclear_envelope(cell_and_fields: tuple[Cell, Fields]) -> None:
    _, fields = cell_and_fields
    lumen = ndimage.label(fields.lumen < 0, EVERYWHERE)[0]
    inside_er = np.unique(lumen[(fields.er < -8) & (fields.nucleus > 40)])
    inside_envelope = np.unique(lumen[(fields.lumen < 0) & (np.abs(fields.nucleus + 17) < 4)])
    assert set(inside_er) & set(inside_envelope) - {0}


def test_nuclear_envelope_has_pores(cell_and_fields: tuple[Cell, Fields]) -> None:
    _, fields = cell_and_fields
    middle_of_envelope = np.abs(fields.nucleus + 17) < 4
    open_share = np.mean(fields.lumen[middle_of_envelope] > 0)
    assert 0.02 < open_share < 0.5


def test_cell_does_not_depend_on_the_voxel_size() -> None:
    """The same box, sampled twice as finely, shows the same organelles at the same places."""
    coarse, fine = Grid((8, 64, 64), (16.0, 16.0, 16.0)), Grid((16, 128, 128), (8.0, 8.0, 8.0))
    cell = lay_out(coarse.extent_nm, "one")
    np.testing.assert_allclose(
        cell.nucleus.distance(coarse.axes()), cell.nucleus.distance(fine.axes())[::2, ::2, ::2], atol=1e-2
    )
    a, b = sample(cell, coarse, 16.0, 1.0), sample(cell, fine, 16.0, 1.0)
    same = a.organelle_of == b.organelle_of
    assert same
    agreement = np.mean(a.labels == b.labels[::2, ::2, ::2])
    assert agreement > 0.95


def test_same_seed_same_bytes_other_seed_other_cell() -> None:
    shape = (16, 96, 64)
    first, again, other = (generate(SETUPS["sstem"], shape, seed) for seed in ("5", "5", "6"))
    assert first.image.tobytes() == again.image.tobytes()
    assert first.instances.tobytes() == again.instances.tobytes()
    assert first.organelle_of == again.organelle_of
    assert (first.instances > 0).tobytes() != (other.instances > 0).tobytes()


@pytest.mark.parametrize("name", SETUP_NAMES)
@pytest.mark.parametrize("shape", [(16, 64, 64), (12, 48, 112), (8, 32, 32)])
def test_tiny_and_oblong_volumes(name: str, shape: tuple[int, int, int]) -> None:
    phantom = generate(SETUPS[name], shape, "2")
    assert phantom.image.shape == volume_shape(SETUPS[name], shape)
    assert phantom.image.shape[1:] == shape[1:]
    assert set(np.unique(phantom.instances)) - {0} == set(phantom.organelle_of)
    assert Organelle.NUCLEUS in phantom.organelle_of.values()
    if shape == (16, 64, 64):
        assert {Organelle.MITO, Organelle.ENDO, Organelle.ER} <= set(phantom.organelle_of.values())


def test_thick_slices_are_fewer_but_never_less_than_eight() -> None:
    assert volume_shape(SETUPS["fibsem8"], (64, 256, 256)) == (64, 256, 256)
    assert volume_shape(SETUPS["fibsem5"], (64, 256, 256)) == (64, 256, 256)
    assert volume_shape(SETUPS["sbfsem"], (64, 256, 256)) == (17, 256, 256)
    assert volume_shape(SETUPS["sstem"], (16, 64, 64)) == (8, 64, 64)


@given(seed=st.integers(0, 10**6), density=st.floats(0.1, 0.5))
@settings(max_examples=25, deadline=None)
def test_main_network_against_flood_fill(seed: int, density: float) -> None:
    rng = np.random.default_rng(seed)
    body = rng.random((4, 6, 5)) < density
    nucleus = np.zeros_like(body)
    nucleus[:, 0] = True
    body &= ~nucleus
    kept = main_network(body, nucleus)

    def flood(start: tuple[int, ...]) -> set[tuple[int, ...]]:
        todo, seen = [start], {start}
        while todo:
            here = todo.pop()
            for step in np.ndindex(3, 3, 3):
                there = tuple(h + s - 1 for h, s in zip(here, step, strict=True))
                inside = all(0 <= t < n for t, n in zip(there, body.shape, strict=True))
                if inside and body[there] and there not in seen:
                    seen.add(there)
                    todo.append(there)
        return seen

    pieces = {frozenset(flood(tuple(map(int, start)))) for start in np.argwhere(body)}
    touching = [piece for piece in pieces if any(voxel[1] == 1 for voxel in piece)]
    largest = max(map(len, touching or pieces), default=0)
    assert kept.sum() == largest
    assert frozenset(tuple(map(int, voxel)) for voxel in np.argwhere(kept)) in (pieces or {frozenset()})


@given(st.lists(st.floats(-50, 50), min_size=9, max_size=9))
@settings(max_examples=30, deadline=None)
def test_segment_distance_against_points_along_the_segment(numbers: list[float]) -> None:
    start, end, point = np.array(numbers).reshape(3, 3)
    axes = tuple(np.float32(p).reshape(1, 1, 1) for p in point)
    along = start + np.linspace(0, 1, 2001)[:, None] * (end - start)
    slow = np.sqrt(((along - point) ** 2).sum(axis=1)).min() - 7
    assert segment_distance(axes, start, end, 7.0, 7.0).item() == pytest.approx(slow, abs=0.1)


def test_noise_is_the_same_on_axes_and_at_points() -> None:
    noise = NoiseField(random_stream("noise"), (0, 0, 0), (200, 200, 200), (40.0, 25.0, 30.0))
    grid = Grid((5, 6, 7), (30.0, 22.0, 25.0), (3.0, 4.0, 5.0))
    on_grid = noise.on(grid.axes())
    points = grid.points(np.argwhere(np.ones(grid.shape, dtype=bool)))
    np.testing.assert_allclose(on_grid.ravel(), noise.on_points(points), atol=1e-4)
    assert (
        0.6
        < NoiseField(random_stream("n2"), (0, 0, 0), (900,) * 3, 30.0).on(Grid((40,) * 3, (20.0,) * 3).axes()).std()
        < 1.4
    )


def volumes(**options: str) -> Iterator[Volume]:
    source = load_source("phantom")
    return iter(source.volumes(None, source.resolve_options(options)))


def test_source_yields_one_volume_per_set_up() -> None:
    made = list(volumes(shape="16,64,64", seed="7"))
    assert [volume.volume_id for volume in made] == [f"phantom-{name}-7" for name in SETUP_NAMES]
    assert len({volume.specimen for volume in made}) == len(made)
    assert [volume.domain for volume in made] == ["in", "in", "in", "out"]
    assert {volume.modality for volume in made} == {"FIB-SEM", "SBF-SEM", "ssTEM"}
    assert len({tuple(volume.voxel_size) for volume in made}) == len(made)
    for volume in made:
        assert tuple(volume.voxel_size) == SETUPS[volume.provenance["setup"]].voxel_nm
        assert set(volume.annotated) == set(Organelle)
        assert set(volume.annotated.values()) == {"synthetic"}


def test_volumes_are_made_when_they_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    real = generate_module.generate

    def counting(setup, shape, seed):  # type: ignore[no-untyped-def]
        made.append(setup.name)
        return real(setup, shape, seed)

    monkeypatch.setattr(generate_module, "generate", counting)
    lazily = volumes(shape="8,32,32", setups="sstem,fibsem8")
    assert made == []
    next(lazily)
    assert made == ["sstem"]
    next(lazily)
    assert made == ["sstem", "fibsem8"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"seed": "-1"}, ("seed", "'-1'", "positive whole number")),
        ({"seed": "abc"}, ("seed", "'abc'")),
        ({"shape": "64,256"}, ("shape", "'64,256'", "z,y,x")),
        ({"shape": "64,256,0"}, ("shape", "'64,256,0'")),
        ({"shape": "4,64,64"}, ("too small", "8,32,32")),
        ({"shape": "a,b,c"}, ("shape", "'a,b,c'")),
        ({"setups": "fibsem9"}, ("fibsem9", "did you mean 'fibsem8'")),
        ({"setups": ""}, ("set-up", "fibsem8,fibsem5,sbfsem,sstem")),
        ({"setups": "sstem,sstem"}, ("twice",)),
        ({"sed": "1"}, ("option", "did you mean 'seed'")),
    ],
)
def test_bad_options_are_explained_before_anything_is_made(options: dict[str, str], words: tuple[str, ...]) -> None:
    with pytest.raises(InputError) as caught:
        volumes(**options)
    for word in words:
        assert word in str(caught.value)


def test_options_that_are_fine() -> None:
    assert parse_shape(" 16, 64,96") == (16, 64, 96)
    assert parse_setups("sstem, fibsem8,") == ("sstem", "fibsem8")
    assert set(SETUP_NAMES) == set(SETUPS)
