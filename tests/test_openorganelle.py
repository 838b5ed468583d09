"""OpenOrganelle: both layouts, registered in nm, read in place, only what is needed, with every fault told."""

from __future__ import annotations

import itertools
import json
import pickle
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import openorganelle_replica as replica
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openorganelle_replica import GROUPS, WORLD, Function, Grid

from dataset_builder.instances import instances_of
from dataset_builder.openorganelle import classes
from dataset_builder.openorganelle.classes import MEMBERS, Rules
from dataset_builder.openorganelle.datasets import DATASETS, specimen_of
from dataset_builder.openorganelle.grids import Axis
from dataset_builder.source import load_source
from dataset_builder.splits import SplitPolicy
from em_bench_eval.errors import InputError
from em_bench_eval.schema import Organelle, Volume

ORDER = ("mito", "golgi", "endo", "nucleus", "er")  # who wins where the envelope is nucleus


def volumes(root: Path | str, **options: str) -> list[Volume]:
    source = load_source("openorganelle")
    return list(source.volumes(None, source.resolve_options({"root": str(root), **options})))


def one(root: Path | str, **options: str) -> Volume:
    (volume,) = volumes(root, **options)
    return volume


def semantic(volume: Volume) -> np.ndarray:
    """Classes of a volume, whichever way it holds them."""
    if volume.semantic is not None:
        return np.asarray(volume.semantic[:])
    assert volume.instances is not None
    table = np.zeros(max(volume.organelle_of, default=0) + 1, np.uint8)
    table[list(volume.organelle_of)] = [organelle.label_id for organelle in volume.organelle_of.values()]
    return table[np.asarray(volume.instances[:])]


# the slow twin: everything by comparing positions in nm, one axis at a time


def positions(first: float, step: float, size: int) -> list[float]:
    return [first + step * index for index in range(size)]


def nearest(wanted: list[float], stored: list[float]) -> list[float | None]:
    """Position of the stored voxel that holds each wanted position (on an edge, the upper one), or None."""
    half = abs(stored[1] - stored[0]) / 2 if len(stored) > 1 else 0.5
    held = []
    for position in wanted:
        holding = [centre for centre in stored if centre - half - 1e-6 <= position < centre + half - 1e-6]
        held.append(max(holding) if holding else None)
    return held


def centres_of(grid: Grid) -> list[list[float]]:
    return [positions(f, s, n) for f, s, n in zip(grid.first, grid.step, grid.shape, strict=True)]


def inside(image: Grid, low: tuple[float, ...], high: tuple[float, ...]) -> list[list[float]]:
    """Image centres in a box of nm, ascending."""
    axes = zip(centres_of(image), low, high, strict=True)
    return [sorted(p for p in axis if a - 1e-6 <= p < b - 1e-6) for axis, a, b in axes]


def sampled(function: Function, output: list[list[float]], labels: Grid) -> tuple[np.ndarray, np.ndarray]:
    """What a label array says at output positions, and where it says anything."""
    held = [nearest(axis, stored) for axis, stored in zip(output, centres_of(labels), strict=True)]
    known = [np.array([position is not None for position in axis]) for axis in held]
    z, y, x = (np.array([np.nan if p is None else p for p in axis]) for axis in held)
    with np.errstate(invalid="ignore"):
        values = function(z[:, None, None], y[None, :, None], x[None, None, :])
    covered = known[0][:, None, None] & known[1][None, :, None] & known[2][None, None, :]
    return np.where(covered, np.broadcast_to(values, covered.shape), 0), covered


def expected_classes(output: list[list[float]], labels: Grid, order: tuple[str, ...] = ORDER) -> np.ndarray:
    found = np.zeros([len(axis) for axis in output], np.uint8)
    for name in reversed(order):
        mask, _ = sampled(replica.mask_of({"nucleus": "nuc"}.get(name, name)), output, labels)
        found[mask > 0] = Organelle(name).label_id
    return found


def expected_gray(output: list[list[float]]) -> np.ndarray:
    z, y, x = (np.array(axis) for axis in output)
    return np.rint(replica.gray(z[:, None, None], y[None, :, None], x[None, None, :]))


def extent(grid: Grid) -> tuple[tuple[float, ...], tuple[float, ...]]:
    half = [abs(step) / 2 for step in grid.step]
    ends = [(min(axis), max(axis)) for axis in centres_of(grid)]
    return tuple(a - h for (a, _), h in zip(ends, half, strict=True)), tuple(
        b + h for (_, b), h in zip(ends, half, strict=True)
    )


# ------------------------------------------------------------------------------------------------------------- grids

steps = st.sampled_from([1.0, 2.0, 2.62, 3.24, 4.0, 5.24, 8.0, 16.0])


@settings(deadline=None, max_examples=200)
@given(steps, st.floats(-50, 50), st.integers(1, 30), st.booleans(), steps, st.integers(-9, 9))
def test_nearest_voxel_is_the_one_that_holds_the_position(
    step: float, first: float, size: int, flip: bool, out_step: float, quarter: int
) -> None:
    first = round(first, 2)
    stored = [first + (-step if flip else step) * index for index in range(size)]
    axis = Axis.of(-step if flip else step, first, size)
    assert axis.centres_nm(slice(0, size)) == pytest.approx(sorted(stored))
    wanted = [min(stored) + quarter * step / 4 + out_step * index for index in range(12)]
    indices = axis.nearest(np.array(wanted))
    half = step / 2
    for position, index in zip(wanted, indices, strict=True):
        centre = axis.first_nm + step * index
        assert centre - half - 1e-5 * step <= position < centre + half + 1e-5 * step
    on_edge = axis.nearest(np.array([axis.first_nm + half]))
    assert on_edge[0] == 1, "an edge belongs to the voxel above it"


def test_a_flipped_axis_reads_stored_voxels_backwards() -> None:
    axis = Axis.of(-4.0, 6396.0, 1600)  # stored from 6396 nm down to 0
    assert (axis.first_nm, axis.step_nm, axis.flipped) == (0.0, 4.0, True)
    assert axis.stored(slice(0, 10)) == slice(1590, 1600)
    assert axis.within(0.0, 40.0) == slice(0, 10)


# ------------------------------------------------------------------------------------ registration, exact to the voxel

FINE = (4.0, 4.0, 4.0)
HELA = Grid.over((0, 0, 0), (398.24, 400, 480), (5.24, 4, 4))
IMAGES = {
    "as it is": WORLD,
    "anisotropic": HELA,
    "flipped in y": HELA.flipped(1),
    "flipped in all": WORLD.flipped(0).flipped(1).flipped(2),
    "moved by less than a voxel": Grid((-1.0, -3.0, 4.0), (8, 8, 8), WORLD.shape),
}
LABELS = {
    "as the image": WORLD,
    "twice as fine": replica.CROP_GRID,
    "twice as fine, flipped": replica.CROP_GRID.flipped(1).flipped(2),
    "half of anisotropic": Grid.over((52.4, 80, 120), (183.4, 240, 320), (2.62, 2, 2)),
    "coarser": WORLD.coarser(),
    "not aligned": Grid((57.3, 93.1, 101.7), (3.0, 5.0, 7.0), (60, 50, 40)),
}


@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("image", IMAGES)
def test_image_and_labels_of_a_crop_are_where_they_are_in_nm(image: str, labels: str, tmp_path: Path) -> None:
    base = tmp_path / "jrc_x" / "jrc_x.zarr" / "recon-1"
    replica.save_pyramid(base / "em" / "fibsem-uint8", replica.gray, [IMAGES[image]], np.uint8, n5=False)
    groups = {name: GROUPS[name] for name in ("mito", "nuc", "er")}
    replica.save_crop(base / "labels" / "groundtruth" / "crop9", LABELS[labels], groups, list(groups))
    volume = one(tmp_path)
    low, high = extent(LABELS[labels])
    output = inside(IMAGES[image], low, high)
    assert volume.image.shape == tuple(map(len, output))
    np.testing.assert_array_equal(np.asarray(volume.image[:]), expected_gray(output))
    np.testing.assert_array_equal(semantic(volume), expected_classes(output, LABELS[labels], ("mito", "nucleus", "er")))
    assert volume.ignore is None
    voxel = [abs(step) for step in IMAGES[image].step]
    assert tuple(volume.voxel_size) == pytest.approx(voxel)
    assert volume.origin_nm == pytest.approx([min(axis) - nm / 2 for axis, nm in zip(output, voxel, strict=True)])


@pytest.mark.parametrize("labels", ["as the image", "twice as fine", "coarser", "not aligned"])
@pytest.mark.parametrize("image", ["as it is", "flipped in y", "moved by less than a voxel"])
def test_image_and_segmentations_in_n5(image: str, labels: str, tmp_path: Path) -> None:
    replica.n5_data_set(tmp_path, "jrc_y", IMAGES[image], LABELS[labels])
    volume = one(tmp_path, labels="segmentation", window="20000:30200", invert="no")
    output = [sorted(axis) for axis in centres_of(IMAGES[image])]
    assert volume.image.shape == tuple(map(len, output))
    np.testing.assert_array_equal(semantic(volume), expected_classes(output, LABELS[labels]))
    _, covered = sampled(replica.mask_of("nuc"), output, LABELS[labels])
    ignored = np.zeros(covered.shape, bool) if volume.ignore is None else np.asarray(volume.ignore[:])
    np.testing.assert_array_equal(ignored, ~covered, "nobody looked where the labels do not reach")
    stored = np.rint(20000 + 40 * replica.gray(*np.ix_(*(np.array(axis) for axis in output))))
    np.testing.assert_allclose(np.asarray(volume.image[:]), (stored - 20000) / 40, atol=0.51)


def test_the_2021_copies_mean_corners(tmp_path: Path) -> None:
    replica.publication(tmp_path)
    first, second = volumes(tmp_path)
    assert [v.volume_id for v in (first, second)] == [
        "openorganelle-jrc_hela-2-crop1",
        "openorganelle-jrc_hela-2-crop13",
    ]
    labels = Grid.over((40, 80, 160), (200, 240, 400), FINE)
    output = inside(WORLD, *extent(labels))
    np.testing.assert_array_equal(np.asarray(first.image[:]), expected_gray(output))
    np.testing.assert_array_equal(
        semantic(first), expected_classes(output, labels, ("mito", "golgi", "endo", "nucleus", "er"))
    )


def test_the_bucket_of_the_publication_has_containers_at_its_root(tmp_path: Path) -> None:
    base = replica.publication(tmp_path)
    base.parent.rename(tmp_path / "jrc_hela-2.n5")
    base.parent.parent.rmdir()
    assert [volume.volume_id for volume in volumes(tmp_path, crops="Crop13")] == ["openorganelle-jrc_hela-2-crop13"]
    with replica.serve(tmp_path, listing=False) as (url, _):
        assert one(url, datasets="jrc_hela-2", crops="Crop13").provenance["layout"] == "N5"


def test_any_box_is_a_part_of_the_whole(tmp_path: Path) -> None:
    replica.zarr_data_set(tmp_path, image=WORLD.flipped(1))
    volume = one(tmp_path, context_nm="40")
    assert volume.semantic is not None
    assert volume.ignore is not None
    for array in (volume.image, volume.semantic, volume.ignore):
        whole = np.asarray(array[:])
        assert whole.dtype == array.dtype
        for index in (3, -1, slice(2, 9), (4, slice(1, 5)), (slice(None, None, 2), 3, slice(5, 1, -1)), (..., 7)):
            np.testing.assert_array_equal(array[index], whole[index])
        assert array[5:5].shape == (0, *whole.shape[1:])
        with pytest.raises(IndexError):
            array[len(whole)]


def test_the_finer_grid_of_the_labels_keeps_every_label_voxel(tmp_path: Path) -> None:
    replica.zarr_data_set(tmp_path)
    assert "keeps 1 voxel of 8" in one(tmp_path).provenance["labels:mito"]
    volume = one(tmp_path, grid="labels")
    output = [sorted(axis) for axis in centres_of(replica.CROP_GRID)]
    np.testing.assert_array_equal(semantic(volume), expected_classes(output, replica.CROP_GRID))
    assert np.abs(np.asarray(volume.image[:]).astype(int) - expected_gray(output)).max() <= 1, "the image is linear"
    assert tuple(volume.voxel_size) == FINE
    assert "one voxel for one voxel" in volume.provenance["labels:mito"]


def test_a_coarser_level_is_chosen_by_its_size(tmp_path: Path) -> None:
    replica.zarr_data_set(tmp_path)
    volume = one(tmp_path, voxel_nm="15")
    output = inside(WORLD.coarser(), *extent(replica.CROP_GRID))
    np.testing.assert_array_equal(np.asarray(volume.image[:]), expected_gray(output))
    np.testing.assert_array_equal(semantic(volume), expected_classes(output, replica.CROP_GRID))
    assert volume.provenance["raw"].endswith("fibsem-uint8/s1")


# ------------------------------------------------------------------------------------------------------------- classes


def crop_with(root: Path, names: list[str] | None, present: list[str], more: dict[str, Any] | None = None) -> Volume:
    """A crop on the image's grid with these classes in its metadata, and these arrays."""
    base = root / "jrc_x" / "jrc_x.zarr" / "recon-1"
    replica.save_pyramid(base / "em" / "fibsem-uint8", replica.gray, [WORLD], np.uint8, n5=False)
    known: dict[str, Any] = dict(GROUPS)
    for kind, members in MEMBERS.items():
        for member in members:
            part = member.rpartition("_")[2]
            if part in ("mem", "lum") and kind not in ("ne", "nucleus"):
                known[member] = (replica.parts_of(kind, part == "mem"), {})
    known["ne_mem"] = known["ne_lum"] = (replica.mask_of("ne"), {})
    core = lambda *p: replica.depth("nuc", *p) >= replica.ENVELOPE_NM  # noqa: E731
    known |= {"hchrom": (core, {}), "echrom": (core, {}), "nucpl": (core, {}), "all": (replica.all_ids, {})}
    known["eres_mem"] = (lambda *p: 0 * sum(p), {})
    known |= more or {}
    replica.save_crop(
        base / "labels" / "groundtruth" / "crop9", WORLD, {name: known[name] for name in present}, names, chunk=48
    )
    return one(root)


MEMBER_NAMES = [
    *("mito_mem", "mito_lum", "golgi_mem", "golgi_lum", "endo_mem", "endo_lum", "er_mem", "er_lum", "eres_mem"),
    *("ne_mem", "ne_lum", "hchrom", "echrom", "nucpl"),
]


@pytest.mark.parametrize("names", [list(GROUPS), MEMBER_NAMES, ["all"]], ids=["groups", "members", "all"])
def test_groups_members_and_ids_give_the_same_organelles(names: list[str], tmp_path: Path) -> None:
    volume = crop_with(tmp_path, names, names)
    output = [sorted(axis) for axis in centres_of(WORLD)]
    np.testing.assert_array_equal(semantic(volume), expected_classes(output, WORLD))
    assert set(volume.annotated) == set(Organelle)
    assert set(volume.annotated.values()) == {"manual+lpa"}


@pytest.mark.parametrize("names", [list(GROUPS), MEMBER_NAMES, ["all"]], ids=["groups", "members", "all"])
def test_the_envelope_can_be_er_instead(names: list[str], tmp_path: Path) -> None:
    crop_with(tmp_path, names, names)
    volume = one(tmp_path, ne="er")
    output = [sorted(axis) for axis in centres_of(WORLD)]
    np.testing.assert_array_equal(
        semantic(volume), expected_classes(output, WORLD, ("mito", "golgi", "endo", "er", "nucleus"))
    )
    assert "nuclear envelope: er" in volume.provenance["rules"]


def test_lysosomes_are_endosomes_only_if_asked(tmp_path: Path) -> None:
    apart = crop_with(tmp_path, list(GROUPS), list(GROUPS))
    together = one(tmp_path, lyso="endo")
    gained = (semantic(together) == Organelle.ENDO.label_id) & (semantic(apart) == 0)
    mask, _ = sampled(replica.mask_of("lyso"), [sorted(axis) for axis in centres_of(WORLD)], WORLD)
    np.testing.assert_array_equal(gained, mask)
    assert gained.any()
    np.testing.assert_array_equal(np.asarray(apart.extras["lyso"][:]) > 0, mask)
    np.testing.assert_array_equal(np.asarray(apart.extras["lyso"][2:5, 3, 4:9]) > 0, mask[2:5, 3, 4:9])
    assert not together.extras


def test_other_classes_are_named_but_no_organelles(tmp_path: Path) -> None:
    volume = crop_with(tmp_path, [*GROUPS, "cell"], list(GROUPS))
    extras = {key: value.rpartition("/groundtruth/")[2] for key, value in volume.provenance.items() if "extra:" in key}
    assert extras == {"extra:lyso": "crop9/lyso", "extra:cell": "crop9/cell"}
    assert set(volume.extras) == {"lyso"}, "the array of cells is not there"
    assert "extra:lyso" not in one(tmp_path, lyso="endo").provenance
    assert set(classes.EXTRAS) == set(load_source("openorganelle").extras)


def test_only_classes_that_the_crop_names_are_annotated(tmp_path: Path) -> None:
    empty = {"endo": (lambda *p: 0 * sum(p), replica.annotation("instance", "endo", absent=0))}
    volume = crop_with(tmp_path, ["mito", "endo"], ["mito", "endo", "golgi", "er"], empty)
    assert set(volume.annotated) == {Organelle.MITO, Organelle.ENDO}, "an empty array that is named is background"
    assert Organelle.ENDO.label_id not in semantic(volume)
    assert volume.instances is not None, "both state that they hold instances"
    assert volume.provenance["annotated classes"] == "named by the crop's metadata"


def test_without_a_list_the_arrays_that_are_there_count(tmp_path: Path) -> None:
    volume = crop_with(tmp_path, None, ["mito", "golgi"])
    assert set(volume.annotated) == {Organelle.MITO, Organelle.GOLGI}
    assert "the metadata names none" in volume.provenance["annotated classes"]


def test_all_says_nothing_about_organelles_that_do_not_occur_in_it(tmp_path: Path) -> None:
    def no_golgi(*p: np.ndarray) -> np.ndarray:
        ids = replica.all_ids(*p)
        return np.where(np.isin(ids, (6, 7)), 35, ids)

    volume = crop_with(tmp_path, ["all"], ["all"], {"all": (no_golgi, {})})
    assert set(volume.annotated) == set(Organelle) - {Organelle.GOLGI}


def test_crops_that_make_no_volume_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = replica.zarr_data_set(tmp_path)
    crops = base / "labels" / "groundtruth"
    thin = Grid.over((42, 80, 80), (44, 120, 120), (2, 2, 2))  # no image centre between 42 and 44 nm
    far = Grid.over((9000, 80, 80), (9040, 120, 120), (4, 4, 4))
    replica.save_crop(crops / "crop2", thin, {"mito": GROUPS["mito"]}, ["mito"])
    replica.save_crop(crops / "crop3", far, {"mito": GROUPS["mito"]}, ["mito"])
    replica.save_crop(crops / "crop4", WORLD, {"ecs": GROUPS["mito"]}, ["ecs"])
    assert [volume.volume_id for volume in volumes(tmp_path)] == ["openorganelle-jrc_mus-liver-crop1"]
    told = capsys.readouterr().err
    assert "left out: jrc_mus-liver crop2: it is thinner than a voxel of the image" in told
    assert "left out: jrc_mus-liver crop3: its labels are at 9000:9040" in told
    assert "left out: jrc_mus-liver crop4: none of the organelles is annotated, only ecs" in told
    assert one(tmp_path, crops="crop2", grid="labels").image.shape == (1, 20, 20)
    with pytest.raises(InputError, match=r"holds no volume that fits(.|\n)*only ecs"):
        volumes(tmp_path, crops="crop4")


def test_a_class_that_is_named_and_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no array at .*crop9/golgi"):
        crop_with(tmp_path, ["mito", "golgi"], ["mito"])


def test_unknown_voxels_are_ignored_unless_another_class_claims_them(tmp_path: Path) -> None:
    def half_known(*p: np.ndarray) -> np.ndarray:
        return np.where(
            np.broadcast_to(p[2] > 280, replica.mask_of("mito")(*p).shape), 255, replica.mask_of("mito")(*p)
        )

    attributes = replica.annotation("semantic", "mito", unknown=255, absent=0, present=1)
    volume = crop_with(tmp_path, ["mito", "nuc"], ["mito", "nuc"], {"mito": (half_known, attributes)})
    assert volume.ignore is not None
    x = np.array(centres_of(WORLD)[2])
    known_nucleus = semantic(volume) == Organelle.NUCLEUS.label_id
    np.testing.assert_array_equal(np.asarray(volume.ignore[:]), (x > 280) & ~known_nucleus)
    assert int(volume.provenance["unknown_voxels"]) == np.asarray(volume.ignore[:]).sum()


def test_in_the_array_all_0_is_unknown(tmp_path: Path) -> None:
    hole = lambda *p: np.where(p[0] < 100, 0, replica.all_ids(*p))  # noqa: E731
    volume = crop_with(tmp_path, ["all"], ["all"], {"all": (hole, {})})
    assert volume.ignore is not None
    ignored = np.asarray(volume.ignore[:])
    np.testing.assert_array_equal(
        ignored, np.broadcast_to((np.array(centres_of(WORLD)[0]) < 100)[:, None, None], ignored.shape)
    )


def test_the_image_around_a_crop_is_ignored(tmp_path: Path) -> None:
    replica.zarr_data_set(tmp_path)
    volume = one(tmp_path, context_nm="48")
    low, high = extent(replica.CROP_GRID)
    output = inside(WORLD, tuple(max(0, a - 48) for a in low), tuple(b + 48 for b in high))
    assert volume.image.shape == tuple(map(len, output))
    np.testing.assert_array_equal(np.asarray(volume.image[:]), expected_gray(output))
    _, covered = sampled(replica.mask_of("nuc"), output, replica.CROP_GRID)
    assert volume.ignore is not None
    np.testing.assert_array_equal(np.asarray(volume.ignore[:]), ~covered)


def test_overlaps_are_counted_and_reported(tmp_path: Path) -> None:
    volume = crop_with(tmp_path, list(GROUPS), list(GROUPS))
    envelope, _ = sampled(replica.mask_of("ne"), [sorted(axis) for axis in centres_of(WORLD)], WORLD)
    assert volume.provenance["overlaps"] == f"nucleus over er: {int(envelope.sum())} voxels"
    counts = {str(o): int((semantic(volume) == o.label_id).sum()) for o in Organelle}
    assert volume.provenance["voxels"] == ", ".join(f"{name} {count}" for name, count in counts.items())


def test_the_class_table_is_cellmaps() -> None:
    atomic = {id_: name for members in MEMBERS.values() for name, id_ in members.items()}
    assert len(atomic) == sum(map(len, MEMBERS.values())), "no id twice"
    both = {20, 21, 22, 23}  # in nuc (20-29) and er (16-23)
    nucleus, er = (classes.table_of_all(Rules(rule), published_2021=False) for rule in classes.NE_RULES)
    assert {i for i in range(30) if nucleus[i] == Organelle.NUCLEUS.label_id} == set(range(20, 30))
    assert {i for i in range(30) if er[i] == Organelle.ER.label_id} == set(range(16, 24))
    assert {i for i in range(256) if nucleus[i] != er[i]} == both | {52, 53, 65}
    old = classes.table_of_all(Rules(), published_2021=True)
    assert not old[38:].any(), "40 is cardiac neurons in older copies"
    assert old[37] == Organelle.NUCLEUS.label_id
    assert nucleus[12] == nucleus[43] == 0
    assert classes.table_of_all(Rules(lysosome="endo"), published_2021=False)[12] == Organelle.ENDO.label_id


def test_one_array_is_chosen_per_structure() -> None:
    names = [
        "labels/mito_bag_seg",
        "labels/empanada-mito_seg",
        "labels/mito_seg",
        "labels/er-mem_seg",
        "labels/er_pred",
    ]
    names += ["labels/ariadne/nucleus_seg", "labels/mito_er_contacts"]
    chosen, left = classes.choose_segmentations(names)
    assert chosen == {"mito": "labels/mito_seg", "nucleus": "labels/ariadne/nucleus_seg"}
    assert set(left) == set(names) - set(chosen.values())
    assert classes.choose_segmentations(names[:2])[0] == {"mito": "labels/mito_bag_seg"}


# ----------------------------------------------------------------------------------------------------------- instances


def test_published_ids_are_kept_apart(tmp_path: Path) -> None:
    replica.n5_data_set(tmp_path)
    volume = one(tmp_path, labels="segmentation")
    assert volume.instances is not None
    assert set(volume.annotated.values()) == {"model"}
    ids = np.asarray(volume.instances[:])
    output = [sorted(axis) for axis in centres_of(WORLD)]
    for name, count in (("mito", 2), ("endo", 2)):
        published, _ = sampled(replica.instances_of(name), output, WORLD)
        of_ours = [id_ for id_, organelle in volume.organelle_of.items() if organelle == name]
        assert len(of_ours) == count
        pairs = set(zip(published[published > 0].tolist(), ids[published > 0].tolist(), strict=True))
        assert len(pairs) == count
        assert {ours for _, ours in pairs} == set(of_ours)
    assert set(np.unique(ids)) - {0} == set(volume.organelle_of)
    found, _ = instances_of(volume)
    np.testing.assert_array_equal(found[:] if not isinstance(found, np.ndarray) else found, ids)
    assert volume.provenance["arrays left out"] == "er-mem_seg, er_mito_contacts, mito_bag_seg, mito_pred"


def test_a_mask_makes_instances_by_label_propagation(tmp_path: Path) -> None:
    base = replica.n5_data_set(tmp_path)
    replica.save_pyramid(base / "labels" / "er_seg2", replica.mask_of("er"), [WORLD], np.uint8, n5=True)
    shutil.rmtree(base / "labels" / "er_seg")
    (base / "labels" / "er_seg2").rename(base / "labels" / "er_seg")
    volume = one(tmp_path, labels="segmentation")
    assert volume.instances is None
    assert set(volume.annotated.values()) == {"model+lpa"}
    assert "label propagation" in volume.provenance["ids"]


def test_an_envelope_without_id_is_ignored_where_ids_are_published(tmp_path: Path) -> None:
    base = replica.n5_data_set(tmp_path)
    shutil.rmtree(base / "labels" / "nucleus_seg")
    core = lambda *p: 3 * (replica.depth("nuc", *p) >= replica.ENVELOPE_NM)  # noqa: E731
    replica.save_pyramid(base / "labels" / "nucleus_seg", core, [WORLD], np.uint16, n5=True)
    replica.save_pyramid(base / "labels" / "ne_seg", replica.mask_of("ne"), [WORLD], np.uint16, n5=True)
    volume = one(tmp_path, labels="segmentation")
    assert volume.ignore is not None
    envelope, _ = sampled(replica.mask_of("ne"), [sorted(axis) for axis in centres_of(WORLD)], WORLD)
    np.testing.assert_array_equal(np.asarray(volume.ignore[:]), envelope)
    as_er = one(tmp_path, labels="segmentation", ne="er")
    assert as_er.ignore is None, "er_seg has an id there"


def test_proofread_arrays_are_called_refined(tmp_path: Path) -> None:
    base = replica.n5_data_set(tmp_path, "jrc_ctl-id8-2")
    (base / "labels" / "ariadne").mkdir()
    (base / "labels" / "mito_seg").rename(base / "labels" / "ariadne" / "mito_seg")
    shutil.rmtree(base / "labels" / "mito_bag_seg")
    annotated = one(tmp_path, labels="segmentation").annotated
    assert annotated[Organelle.MITO] == "refined"
    assert annotated[Organelle.ER] == "model"


# --------------------------------------------------------------------------------------------------------------- gray


def test_16_bit_images_are_windowed_and_inverted_as_the_manifests_state(tmp_path: Path) -> None:
    replica.n5_data_set(tmp_path)  # jrc_macrophage-2: 19463 to 28573, inverted
    volume = one(tmp_path, labels="segmentation")
    stored = np.rint(20000 + 40 * replica.gray(*WORLD.centres()))
    shown = 255 - np.clip((stored - 19463) / (28573 - 19463), 0, 1) * 255
    np.testing.assert_allclose(np.asarray(volume.image[:]), shown, atol=0.51)
    assert volume.provenance["inverted"] == "yes"
    assert '"low": 28573' in volume.provenance["intensity_window"]


def test_a_window_is_measured_where_none_is_declared(tmp_path: Path) -> None:
    base = tmp_path / "jrc_x" / "jrc_x.n5"
    padded = lambda *p: np.where(p[2] > 500, 0, 20000 + 40 * replica.gray(*p))  # noqa: E731
    replica.save_pyramid(base / "em" / "fibsem-uint16", padded, [WORLD, WORLD.coarser()], np.uint16, n5=True)
    replica.save_pyramid(base / "labels" / "mito_seg", replica.mask_of("mito"), [WORLD], np.uint8, n5=True)
    volume = one(tmp_path, labels="segmentation", invert="no")
    low, high = (
        float(re.search(rf'"{end}": ([\d.]+)', volume.provenance["intensity_window"])[1]) for end in ("low", "high")
    )  # type: ignore[index]
    stored = np.rint(padded(*WORLD.centres()))
    assert low == pytest.approx(np.percentile(stored[stored > 0], 0.1))
    assert high == pytest.approx(np.percentile(stored[stored > 0], 99.9))
    gray = np.asarray(volume.image[:])
    assert (gray[stored == 0] == 0).all()
    inside_window = (stored > low) & (stored < high)
    restored = low + gray.astype(float) * (high - low) / 255
    assert np.abs(restored - stored)[inside_window].max() <= (high - low) / 255 / 2 + 1e-6


def test_declared_8_bit_images_are_inverted(tmp_path: Path) -> None:
    replica.zarr_data_set(tmp_path, "jrc_hela-4")
    shown = {choice: np.asarray(one(tmp_path, invert=choice).image[:]) for choice in ("declared", "yes", "no")}
    np.testing.assert_array_equal(shown["declared"], 255 - shown["no"])
    np.testing.assert_array_equal(shown["declared"], shown["yes"])
    assert one(tmp_path).provenance["inverted"] == "yes"


# ---------------------------------------------------------------------------------------------------------- data sets


def test_specimens_that_share_a_preparation_share_a_group() -> None:
    assert {specimen_of(f"jrc_mus-pancreas-{n}") for n in (1, 2, 3)} == {"mus-pancreas-islets"}, "as source betaseg"
    assert specimen_of("jrc_hela-2") == specimen_of("jrc_hela-3")
    assert specimen_of("jrc_jurkat-1") == "jrc_jurkat-1"
    assert specimen_of("jrc_new-thing-1") == "jrc_new-thing-1"
    assert sum(known.inverted_8bit for known in DATASETS.values()) == 23


def test_what_is_where_and_what_was_chosen_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    replica.zarr_data_set(tmp_path)
    replica.n5_data_set(tmp_path)
    found = {volume.volume_id: volume for volume in volumes(tmp_path, labels="segmentation")}
    assert set(found) == {"openorganelle-jrc_mus-liver-segmentation", "openorganelle-jrc_macrophage-2-segmentation"}
    liver = found["openorganelle-jrc_mus-liver-segmentation"]
    assert liver.specimen == "jrc_mus-liver"
    assert liver.modality == "FIB-SEM"
    assert liver.provenance["arrays left out"] == "cell"
    assert "coarser than the output: each voxel is repeated 8 times" in liver.provenance["labels:mito"]
    assert "voxel_size_differs" in found["openorganelle-jrc_macrophage-2-segmentation"].provenance
    told = capsys.readouterr().err
    assert "jrc_mus-liver/jrc_mus-liver.zarr/recon-1: /em/fibsem-uint8" in told
    assert "MB to read" in told


def test_the_second_reconstruction_serves_where_the_first_has_no_labels(tmp_path: Path) -> None:
    base = replica.zarr_data_set(tmp_path)
    shutil.copytree(base, base.with_name("recon-2"))
    shutil.rmtree(base / "labels")
    assert "recon-2" in one(tmp_path).provenance["raw"]


def test_a_local_copy_below_raw(tmp_path: Path) -> None:
    replica.write(tmp_path)
    source = load_source("openorganelle")
    found = list(source.volumes(source.find(tmp_path), source.resolve_options({})))
    assert [volume.volume_id for volume in found] == [
        "openorganelle-jrc_hela-2-crop1",
        "openorganelle-jrc_hela-2-crop13",
        "openorganelle-jrc_mus-liver-crop1",
    ]
    assert source.find(None) is None, "without a copy the bucket is read"
    assert source.find(tmp_path / "jrc_other") is None


def test_volumes_travel_to_workers(tmp_path: Path) -> None:
    replica.zarr_data_set(tmp_path)
    volume = one(tmp_path, context_nm="40")
    there = pickle.loads(pickle.dumps(volume))
    np.testing.assert_array_equal(there.image[3:7], volume.image[3:7])
    np.testing.assert_array_equal(semantic(there), semantic(volume))
    np.testing.assert_array_equal(there.ignore[3:7], volume.ignore[3:7])  # type: ignore[index]


# ------------------------------------------------------------------------------------------------------------- servers


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A local copy of two data sets, one of each layout; tests that spoil it copy it first."""
    root = tmp_path_factory.mktemp("bucket")
    replica.zarr_data_set(root, chunk=16)
    replica.n5_data_set(root, chunk=16)
    return root


@pytest.fixture(scope="module")
def few_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same in larger chunks, for servers that take their time for each file."""
    root = tmp_path_factory.mktemp("bucket")
    replica.zarr_data_set(root)
    replica.n5_data_set(root)
    return root


@pytest.fixture(scope="module")
def s3(few_files: Path) -> Iterator[str]:
    boto3 = pytest.importorskip("boto3")
    moto = pytest.importorskip("moto.server")
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    secrets = {"aws_access_key_id": "test", "aws_secret_access_key": "test", "region_name": "us-east-1"}
    client = boto3.client("s3", endpoint_url=f"http://{host}:{port}", **secrets)
    client.create_bucket(Bucket="janelia", ACL="public-read-write")
    for file in few_files.rglob("*"):
        if file.is_file():
            client.put_object(Bucket="janelia", Key=file.relative_to(few_files).as_posix(), Body=file.read_bytes())
    yield f"http://{host}:{port}"
    server.stop()


def same(one: Volume, other: Volume) -> None:
    np.testing.assert_array_equal(np.asarray(one.image[:]), np.asarray(other.image[:]))
    np.testing.assert_array_equal(semantic(one), semantic(other))
    assert one.annotated == other.annotated
    assert one.volume_id == other.volume_id


def test_s3_gives_what_the_copy_gives(few_files: Path, s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3)
    for labels in ("groundtruth", "segmentation"):
        local, remote = volumes(few_files, labels=labels), volumes("s3://janelia", labels=labels)
        assert len(local) == len(remote)
        for here, there in zip(local, remote, strict=True):
            same(here, there)
            assert there.provenance["discovery"] == "listed"
            assert there.provenance["raw"].startswith("s3://janelia/jrc_")


@pytest.mark.parametrize("listing", [True, False], ids=["lists", "does not list"])
def test_http_gives_what_the_copy_gives(few_files: Path, listing: bool) -> None:
    with replica.serve(few_files, listing) as (url, log):
        chosen = {"datasets": "jrc_mus-liver,jrc_macrophage-2", "labels": "segmentation"}
        for here, there in zip(volumes(few_files, **chosen), volumes(url, **chosen), strict=True):
            same(here, there)
            assert there.provenance["discovery"] == ("listed" if listing else "declared names were tried: HTTP 404")
        same(one(few_files, crops="crop1"), one(url, crops="crop1"))
        assert not [
            path
            for _, path in log.requests
            if path.startswith("jrc_macrophage-2/jrc_macrophage-2.n5/labels/mito_pred/")
        ]


def test_a_server_that_does_not_list_has_to_be_told_the_crops(copy: Path) -> None:
    with replica.serve(copy, listing=False) as (url, _), pytest.raises(InputError, match="name the crops"):
        volumes(url, datasets="jrc_mus-liver")


def test_where_listing_is_forbidden_declared_names_are_tried(few_files: Path) -> None:
    with replica.serve(few_files, listing=True) as (url, log):
        log.forbidden = ("LIST",)
        volume = one(url, datasets="jrc_mus-liver", crops="crop1")
        assert volume.provenance["discovery"] == "declared names were tried: HTTP 403"
        same(one(few_files, crops="crop1"), volume)


def test_a_server_that_forbids_everything(copy: Path) -> None:
    with replica.serve(copy, listing=True) as (url, log):
        log.forbidden = ("LIST", "jrc_")
        with pytest.raises(InputError, match=r"401 or 403") as caught:
            volumes(url, datasets="jrc_mus-liver", crops="crop1")
        assert "does not list its folders (HTTP 403)" in str(caught.value)


def test_an_unreachable_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dataset_builder.openorganelle.store.FIRST_DELAY_S", 0.01)
    with replica.serve(Path("."), listing=False) as (url, _):
        pass
    with pytest.raises(InputError, match="cannot be reached"):
        volumes(url, datasets="jrc_hela-2")


# ------------------------------------------------------------------------------------------------- only what is needed


def needed(
    array: str, grid: Grid, low: tuple[float, ...], high: tuple[float, ...], n5: bool, chunk: int = 16
) -> set[str]:
    """Paths of the chunks that hold a voxel whose extent overlaps a box of nm."""
    numbers = []
    for first, step, size, a, b in zip(grid.first, grid.step, grid.shape, low, high, strict=True):
        touched = [
            i for i in range(size) if first + step * i + step / 2 > a + 1e-6 and first + step * i - step / 2 < b - 1e-6
        ]
        numbers.append(sorted({i // chunk for i in touched}))
    order = (lambda n: n[::-1]) if n5 else (lambda n: n)
    return {
        f"{array}/" + "/".join(map(str, order((z, y, x)))) for z in numbers[0] for y in numbers[1] for x in numbers[2]
    }


def test_only_chunks_of_the_region_are_fetched_and_each_once(copy: Path) -> None:
    low, high = (128, 128, 256), (256, 320, 384)
    region = ",".join(f"{a}:{b}" for a, b in zip(low, high, strict=True))
    with replica.serve(copy, listing=True) as (url, log):
        volume = one(url, datasets="jrc_macrophage-2", labels="segmentation", region_nm=region)
        whole = np.asarray(volume.image[:])
        for z in range(volume.image.shape[0]):  # the way slices are written
            np.testing.assert_array_equal(volume.image[z], whole[z])
        semantic(volume)
        base = "jrc_macrophage-2/jrc_macrophage-2.n5"
        arrays = [
            "em/fibsem-uint16/s0",
            *(f"labels/{name}_seg/s0" for name in ("mito", "nucleus", "er", "endo", "golgi")),
        ]
        want = set().union(*(needed(f"{base}/{array}", WORLD, low, high, n5=True) for array in arrays))
        asked = log.chunks("GET")
        assert len(asked) == len(set(asked)), "no chunk twice"
        stored = {path for path in want if (copy / path).is_file()}
        assert set(asked) == stored, "chunks that are not stored are known from the quote"
        assert not log.chunks("HEAD"), "a listing told what there is"
    output = inside(WORLD, low, high)
    np.testing.assert_array_equal(semantic(volume), expected_classes(output, WORLD))


def test_without_a_listing_only_chunks_of_the_region_are_asked_for(copy: Path) -> None:
    low, high = (128, 128, 256), (200, 200, 384)
    region = ",".join(f"{a}:{b}" for a, b in zip(low, high, strict=True))
    with replica.serve(copy, listing=False) as (url, log):
        volume = one(url, datasets="jrc_macrophage-2", labels="segmentation", region_nm=region)
        semantic(volume)
        names = ("mito", "nucleus", "er", "endo", "golgi")
        arrays = ["em/fibsem-uint16/s0", *(f"labels/{name}_seg/s0" for name in names)]
        base = "jrc_macrophage-2/jrc_macrophage-2.n5"
        want = set().union(*(needed(f"{base}/{array}", WORLD, low, high, n5=True) for array in arrays))
        assert sorted(log.chunks("HEAD")) == sorted(want)
        labels = {path for path in want if "/labels/" in path and (copy / path).is_file()}
        assert sorted(log.chunks("GET")) == sorted(labels), "the image was not touched"


def test_a_coarser_build_fetches_nothing_finer(copy: Path) -> None:
    with replica.serve(copy, listing=True) as (url, log):
        volume = one(url, datasets="jrc_mus-liver", labels="segmentation", voxel_nm="16")
        np.asarray(volume.image[:])
        assert not [path for path in log.chunks() if "/em/fibsem-uint8/s0/" in path]
        assert [path for path in log.chunks() if "/em/fibsem-uint8/s1/" in path]


def test_labels_are_read_at_the_coarsest_level_that_is_not_coarser_than_the_image(tmp_path: Path) -> None:
    base = tmp_path / "jrc_x" / "jrc_x.n5"
    fine = Grid.over((0, 0, 0), (400, 480, 560), FINE)
    levels = [fine, fine.coarser(2), fine.coarser(4)]
    replica.save_pyramid(base / "em" / "fibsem-uint8", replica.gray, [WORLD], np.uint8, n5=True, chunk=48)
    replica.save_pyramid(
        base / "labels" / "mito_seg", replica.instances_of("mito"), levels, np.uint16, n5=True, chunk=48
    )
    with replica.serve(tmp_path, listing=True) as (url, log):
        volume = one(url, labels="segmentation")
        output = [sorted(axis) for axis in centres_of(WORLD)]
        np.testing.assert_array_equal(semantic(volume), expected_classes(output, WORLD, ("mito",)))
        asked = {path.partition("/mito_seg/")[2][:2] for path in log.chunks("GET") if "/mito_seg/" in path}
    assert asked == {"s1"}
    assert volume.provenance["level of mito"] == "s1, made by OpenOrganelle from (4.0, 4.0, 4.0) nm"


def test_the_quote_is_what_is_fetched(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with replica.serve(copy, listing=True) as (url, log):
        volume = one(url, datasets="jrc_macrophage-2", labels="segmentation")
        np.asarray(volume.image[:])
        semantic(volume)
        fetched = sum((copy / path).stat().st_size for path in log.chunks("GET"))
    quoted = re.search(r"([\d.]+) MB to read", capsys.readouterr().err)
    assert quoted is not None
    assert float(quoted[1]) == pytest.approx(fetched / 1e6, abs=0.051)


def test_too_much_is_refused_before_a_voxel_is_read(copy: Path) -> None:
    with replica.serve(copy, listing=True) as (url, log):
        with pytest.raises(InputError, match="max_gb") as caught:
            volumes(url, datasets="jrc_macrophage-2", labels="segmentation", max_gb="0.00001")
        assert not log.chunks("GET")
    assert "MB to read" in str(caught.value)


# -------------------------------------------------------------------------------------------------------------- faults


def test_a_connection_that_breaks_off_is_repeated(copy: Path) -> None:
    with replica.serve(copy, listing=True) as (url, log):
        base = "jrc_mus-liver/jrc_mus-liver.zarr/recon-1"
        log.cut = {f"{base}/em/fibsem-uint8/s0/1/2/3", f"{base}/labels/groundtruth/crop1/mito/.zattrs"}
        log.cut.add(f"{base}/labels/groundtruth/crop1/er/s0/2/2/2")
        log.busy = {f"{base}/labels/groundtruth/crop1/nuc/.zattrs", f"{base}/em/fibsem-uint8/s0/2/2/3"}
        same(one(copy), one(url, datasets="jrc_mus-liver"))
        assert not log.cut | log.busy, "every one was asked for"


def test_a_missing_chunk_of_the_image_is_ignored_and_reported(tmp_path: Path) -> None:
    base = replica.zarr_data_set(tmp_path, image=WORLD.flipped(1), chunk=16)
    whole = np.asarray(one(tmp_path).image[:])
    (base / "em" / "fibsem-uint8" / "s0" / "0" / "1" / "2").unlink()  # stored rows 16 to 32 of 60, reversed: 28 to 44
    volume = one(tmp_path)
    output = inside(WORLD, *extent(replica.CROP_GRID))
    z, y, x = (np.array([WORLD_INDEX(p) for p in axis]) for axis in output)
    lost = (z < 16)[:, None, None] & ((y >= 28) & (y < 44))[None, :, None] & ((x >= 32) & (x < 48))[None, None, :]
    assert lost.any()
    np.testing.assert_array_equal(np.asarray(volume.image[:]), np.where(lost, 0, whole))
    assert volume.ignore is not None
    np.testing.assert_array_equal(np.asarray(volume.ignore[:]), lost)
    assert volume.provenance["chunks_missing_in_image"] == "1 of 48"


def test_chunk_names_with_dots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replica, "SEPARATOR", ".")
    base = replica.zarr_data_set(tmp_path, chunk=16)
    assert one(tmp_path).provenance["chunks_missing_in_image"] == "0 of 48"
    (base / "em" / "fibsem-uint8" / "s0" / "1.2.3").unlink()
    assert one(tmp_path).provenance["chunks_missing_in_image"] == "1 of 48"


def WORLD_INDEX(position: float) -> int:
    return round((position - 4) / 8)


def test_a_missing_chunk_of_a_label_array_is_background_and_reported(tmp_path: Path) -> None:
    base = replica.n5_data_set(tmp_path, chunk=16)
    before = semantic(one(tmp_path, labels="segmentation"))
    (base / "labels" / "mito_seg" / "s0" / "0" / "0" / "0").unlink()
    volume = one(tmp_path, labels="segmentation")
    after = semantic(volume)
    np.testing.assert_array_equal(after[16:], before[16:])
    assert (after[:16, :16, :16] != Organelle.MITO.label_id).all()
    assert volume.ignore is None
    missing = re.search(r"\(background\): (\d+) of (\d+)", volume.provenance["labels:mito_seg"])
    assert missing is not None
    stored = sum(
        1 for path in (base / "labels" / "mito_seg" / "s0").rglob("*") if path.name.isdigit() and path.is_file()
    )
    assert int(missing[2]) - int(missing[1]) == stored


def test_labels_that_lost_all_their_chunks_are_told_from_empty_ones(tmp_path: Path) -> None:
    base = replica.zarr_data_set(tmp_path)
    crop = base / "labels" / "groundtruth" / "crop1"
    attributes = {"of_array": {"cellmap": {"annotation": {"complement_counts": {"absent": 100}}}}}
    shutil.rmtree(crop / "mito")
    replica.save_pyramid(crop / "mito", replica.mask_of("mito"), [replica.CROP_GRID], np.uint8, n5=False, **attributes)
    for chunk in (crop / "mito" / "s0").iterdir():
        if chunk.is_dir():
            shutil.rmtree(chunk)
    with pytest.raises(InputError, match=r"mito/s0 lost its chunks") as caught:
        volumes(tmp_path)
    assert "labelled voxels" in str(caught.value)


def test_an_image_without_any_chunk(tmp_path: Path) -> None:
    base = replica.zarr_data_set(tmp_path, chunk=16)
    for chunk in (base / "em" / "fibsem-uint8" / "s0").iterdir():
        if chunk.is_dir():
            shutil.rmtree(chunk)
    with pytest.raises(InputError, match="none of 48 chunks is stored"):
        volumes(tmp_path)


@pytest.mark.parametrize("array", ["em/fibsem-uint8/s0/1/2/3", "labels/groundtruth/crop1/nuc/s0/2/2/2"])
def test_a_truncated_chunk_is_named(array: str, tmp_path: Path) -> None:
    base = replica.zarr_data_set(tmp_path, chunk=16)
    chunk = base / array
    chunk.write_bytes(chunk.read_bytes()[:20])
    with pytest.raises(InputError, match=r"cannot be read") as caught:
        np.asarray(one(tmp_path).image[:])
    assert array.rpartition("/s0")[0] in str(caught.value)
    assert "found:" in str(caught.value)
    assert "download" in str(caught.value)


def test_chunks_too_many_to_ask_for_must_be_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = replica.zarr_data_set(tmp_path, chunk=16)
    monkeypatch.setattr("dataset_builder.openorganelle.plan.MOST_CHECKED", 10)
    volume = one(tmp_path)
    assert "too many to ask for" in volume.provenance["chunks_missing_in_image"]
    (base / "em" / "fibsem-uint8" / "s0" / "1" / "2" / "3").unlink()
    with pytest.raises(InputError, match="has missing chunks"):
        np.asarray(one(tmp_path).image[:])


def test_broken_metadata_and_missing_voxel_size(tmp_path: Path) -> None:
    base = replica.zarr_data_set(tmp_path)
    attributes = base / "em" / "fibsem-uint8" / ".zattrs"
    good = attributes.read_text()
    attributes.write_text(good[:50])
    with pytest.raises(InputError, match="a JSON document"):
        volumes(tmp_path)
    attributes.write_text(good.replace('"unit": "nanometer"', '"unit": "pixel"'))
    with pytest.raises(InputError, match="states no voxel size"):
        volumes(tmp_path)


# ---------------------------------------------------------------------------------------------------------- user errors


def test_unknown_names(copy: Path) -> None:
    with pytest.raises(InputError, match=r"unknown OpenOrganelle data set 'jrc_hela2'(.|\n)*did you mean 'jrc_hela-2'"):
        volumes(copy, datasets="jrc_hela2")
    with pytest.raises(InputError, match=r"data set jrc_macrophage-2 has no groundtruth"):
        volumes(copy, datasets="jrc_macrophage-2")
    with pytest.raises(InputError, match=r"unknown crop 'crop11'(.|\n)*did you mean 'crop1'"):
        volumes(copy, crops="crop11")
    with pytest.raises(InputError, match="did you mean 'fibsem-uint8'"):
        volumes(copy, em="fibsem-uint9")
    with pytest.raises(InputError, match="holds no volume that fits"):
        volumes(copy, region_nm="9000:9100,0:100,0:100")


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("labels", "groundtruh", "did you mean 'groundtruth'"),
        ("region_nm", "0:100,0:100", "region_nm is not a box"),
        ("region_nm", "100:0,0:100,0:100", "region_nm is not a box"),
        ("voxel_nm", "0", "a number greater than 0, or native"),
        ("voxel_nm", "eight", "a number greater than 0, or native"),
        ("context_nm", "-1", "a number of at least 0"),
        ("max_gb", "nan", "a number greater than 0"),
        ("window", "5", "low:high"),
        ("window", "9:5", "low:high"),
        ("ne", "both", "one of er, nucleus"),
        ("lyso", "no", "one of endo, separate"),
        ("invert", "maybe", "one of declared, no, yes"),
        ("grid", "image", "one of em, labels"),
        ("datasets", ",", "a list of names is empty"),
    ],
)
def test_bad_options_are_refused_at_once(option: str, value: str, message: str) -> None:
    source = load_source("openorganelle")
    with pytest.raises(InputError, match=re.escape(message)):
        source.volumes(None, source.resolve_options({option: value}))  # before anything is iterated or asked for


def test_a_dataset_is_built_from_a_copy(tmp_path: Path) -> None:
    from datasets import load_dataset

    from dataset_builder import cli

    replica.write(tmp_path / "raw")
    out = tmp_path / "em-organelle-wild"
    assert cli.build(["--source", "openorganelle", "--raw", str(tmp_path / "raw"), "--out", str(out)]) == 0
    rows = load_dataset(str(out), split="wild")
    assert set(rows["volume_id"]) == {
        "openorganelle-jrc_hela-2-crop1",
        "openorganelle-jrc_hela-2-crop13",
        "openorganelle-jrc_mus-liver-crop1",
    }
    assert set(rows["specimen"]) == {"jrc_hela-wt", "jrc_mus-liver"}


# ------------------------------------------------------------------------------ crops that lie in, on and beside others

OVERLAPPING = {  # name: grid; the image's voxels are 8 nm, from 0
    "crop1": replica.CROP_GRID,
    "crop2": Grid.over((170, 110, 90), (370, 300, 300), (5, 5, 5)),  # overlaps crop1 by 110 nm
    "crop3": Grid.over((62, 94, 102), (142, 194, 202), (2, 2, 2)),  # inside crop1, off the image's voxels
    "crop4": Grid.over((280, 80, 80), (392, 400, 480), (4, 4, 4)),  # begins where crop1 ends
}


def overlapping(root: Path) -> Path:
    base = root / "janelia-cosem-datasets" / "jrc_x" / "jrc_x.zarr" / "recon-1"
    shown = replica.texture
    replica.save_pyramid(base / "em" / "fibsem-uint8", shown, [WORLD.flipped(1)], np.uint8, n5=False)
    groups = {name: GROUPS[name] for name in ("mito", "nuc", "er")}
    for name, grid in OVERLAPPING.items():
        replica.save_crop(base / "labels" / "groundtruth" / name, grid, groups, list(groups))
    return root


@pytest.mark.parametrize("options", [{}, {"grid": "labels"}, {"context_nm": "30"}], ids=str)
def test_crops_of_one_data_set_are_cut_in_its_coordinates(options: dict[str, str], tmp_path: Path) -> None:
    crops = volumes(overlapping(tmp_path) / "janelia-cosem-datasets", **options)
    policy = SplitPolicy(gap_nm=16.0)
    assert {volume.frame for volume in crops} == {crops[0].frame}
    assert crops[0].frame is not None
    assert crops[0].frame.name == "jrc_x"
    covered = []
    for volume, grid in zip(crops, OVERLAPPING.values(), strict=True):
        assert volume.origin_nm is not None
        wider, half = float(options.get("context_nm", 0)), max(volume.voxel_size) / 2
        low = [max(edge - wider, 0) for edge in extent(grid)[0]]  # of what is drawn; the image begins at 0
        assert volume.origin_nm == pytest.approx(low, abs=half + 1e-6)
        folds = policy.folds_of(volume)
        places = [(volume.origin_nm[0] + z * volume.voxel_size.z, fold) for z, fold in folds.items()]
        covered += [(nm, nm + volume.voxel_size.z, fold) for nm, fold in places]
    assert {fold for _, _, fold in covered} == {"train", "validation", "test"}
    for (low_nm, high_nm, fold), (other_nm, above_nm, other) in itertools.combinations(covered, 2):
        assert fold == other or max(other_nm - high_nm, low_nm - above_nm) > 16.0 - 1e-3


def test_a_build_of_overlapping_crops_and_of_an_older_split_of_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from dataset_builder import cli

    raw, out, again = str(overlapping(tmp_path / "raw")), tmp_path / "built", tmp_path / "again"
    command = ["--source", "openorganelle", "--raw", raw, "--out"]
    assert cli.build([*command, str(out)]) == 0
    splits = json.loads((out / "splits.json").read_text())
    entries = splits["volumes"]
    frames = [entry["frame"] for entry in entries.values()]
    assert [frame["name"] for frame in frames] == ["jrc_x"] * 4
    assert frames[0]["origin_nm"] == [40.0, 80.0, 80.0]
    assert all(frame["folds_nm"] == frames[0]["folds_nm"] for frame in frames)
    assert {slab[0] for entry in entries.values() for slab in entry["slabs"]} == {"train", "validation", "test"}
    assert cli.build([*command, str(again), "--splits", str(out / "splits.json")]) == 0
    assert (again / "splits.json").read_bytes() == (out / "splits.json").read_bytes()

    for volume in volumes(Path(raw) / "janelia-cosem-datasets"):  # as it was before: each crop for itself
        entries[volume.volume_id] = SplitPolicy().entry_of(replace(volume, frame=None, origin_nm=None))
    (tmp_path / "older.json").write_text(json.dumps(splits))
    capsys.readouterr()
    with pytest.raises(InputError) as caught:
        cli.build([*command, str(tmp_path / "leaks"), "--splits", str(tmp_path / "older.json")])
    found = str(caught.value)
    one, other = "openorganelle-jrc_x-crop1", "openorganelle-jrc_x-crop2"
    assert "the split leaks in 7 places" in found
    assert f"{other} slices 0 to 8 (train) and {one} slices 17 to 19 (validation) overlap in jrc_x" in found
    assert f"{other} slices 0 to 8 (train) and {one} slices 25 to 29 (test) are 0 nm apart, not 40, in jrc_x" in found
    assert "older.json divides them so, and may be older than this check: build without --splits" in found
    assert not (tmp_path / "leaks").exists()
