"""Every further public source builds a replica of its published layout; wrong layouts are explained."""

from __future__ import annotations

import pickle
import re
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import fake
import h5py
import numpy as np
import pytest
import replicas
import tifffile
from PIL import Image
from scipy import ndimage

import lpa
from dataset_builder.build import Job, build
from dataset_builder.harmonise import window_of
from dataset_builder.lazy import Constant, Elementwise, EveryId, instance_ids, masks_to_semantic, values_to_semantic
from dataset_builder.source import load_source
from dataset_builder.splits import SplitPolicy
from em_bench_eval.errors import InputError
from em_bench_eval.schema import Organelle, Volume
from em_bench_eval.volume_io import open_volume

MITO, NUCLEUS, GOLGI, ENDO = Organelle.MITO, Organelle.NUCLEUS, Organelle.GOLGI, Organelle.ENDO


def volumes_of(name: str, raw: Path, **options: str) -> list[Volume]:
    source = load_source(name)
    return list(source.volumes(source.find(raw), source.resolve_options(options)))


def replica(name: str, raw: Path, **options: str) -> list[Volume]:
    replicas.WRITERS[name](raw)
    return volumes_of(name, raw, **{**replicas.OPTIONS.get(name, lambda raw: {})(raw), **options})


def labelled(volume: Volume) -> dict[Organelle, np.ndarray]:
    """The mask of each organelle in a volume."""
    if volume.semantic is not None:
        semantic = np.asarray(volume.semantic[:])
        return {o: semantic == o.label_id for o in Organelle if (semantic == o.label_id).any()}
    assert volume.instances is not None
    ids = np.asarray(volume.instances[:])
    present = [int(id_) for id_ in np.unique(ids) if id_]
    organelles = {volume.organelle_of[id_] for id_ in present}
    return {o: np.isin(ids, [id_ for id_ in present if volume.organelle_of[id_] is o]) for o in organelles}


EXPECTED: dict[str, dict[str, tuple[set[Organelle], tuple[float, float, float], str, str | None]]] = {
    # volume: annotated, voxel size in nm, specimen group, published fold
    "betaseg": {
        "betaseg-high_c1": ({MITO, NUCLEUS, GOLGI}, (16, 16, 16), "mus-pancreas-islets", None),
        "betaseg-high_c2": ({MITO, NUCLEUS, GOLGI}, (16, 16, 16), "mus-pancreas-islets", None),
    },
    "cem_mitolab": {
        f"cem_mitolab-kidney_sbf-crop-{number}": ({MITO}, (8.5, 8.5, 8.5), "cem_mitolab-kidney_sbf", None)
        for number in (0, 1)
    },
    "cremi": {
        "cremi-A": (set(), (40, 4, 4), "cremi-drosophila-brain", "train"),
        "cremi-B": (set(), (40, 4, 4), "cremi-drosophila-brain", "train"),
        "cremi-C": (set(), (40, 4, 4), "cremi-drosophila-brain", "test"),
    },
    "guay_platelets": {
        "guay_platelets-train": ({MITO}, (50, 10, 10), "guay-human-platelets", "train"),
        "guay_platelets-eval": ({MITO}, (50, 10, 10), "guay-human-platelets", "validation"),
        "guay_platelets-test": ({MITO}, (50, 10, 10), "guay-human-platelets", "test"),
    },
    "kasthuripp": {
        "kasthuripp-train": ({MITO}, (30, 3, 3), "kasthuri-mouse-neocortex", "train"),
        "kasthuripp-test": ({MITO}, (30, 3, 3), "kasthuri-mouse-neocortex", "test"),
    },
    "mitoem": {
        "mitoem-rat-train": ({MITO}, (30, 8, 8), "mitoem-rat", "train"),
        "mitoem-rat-validation": ({MITO}, (30, 8, 8), "mitoem-rat", "validation"),
    },
    "mitonet_benchmark": {
        "mitonet_benchmark-c_elegans": ({MITO}, (24, 24, 24), "mitonet-c_elegans", "test"),
        "mitonet_benchmark-salivary_gland": ({MITO}, (15, 15, 15), "mitonet-salivary_gland", "test"),
    },
    "nucmm": {
        "nucmm-train-img_0000_0576_0768": ({NUCLEUS}, (480, 510, 510), "nucmm-zebrafish-brain", "train"),
        "nucmm-val-img_0000_0640_0832": ({NUCLEUS}, (480, 510, 510), "nucmm-zebrafish-brain", "validation"),
    },
    "perez": {
        f"perez-{name}-{fold}-{number:03d}": (organelles, (30, nm, nm), "perez-mouse-scn", fold)
        for name, organelles, nm in (
            ("mitochondria", {MITO}, 7.6),
            ("nuclei", {NUCLEUS}, 30.4),
            ("lysosomes", set(), 7.6),
        )
        for fold, numbers in (("train", (1, 2)), ("test", (10, 11)))
        for number in numbers
    },
    "urocell": {
        "urocell-fib1-0-0-0": ({MITO}, (15, 16, 16), "urocell-bladder", None),
        "urocell-fib1-2-2-3": ({GOLGI}, (15, 16, 16), "urocell-bladder", None),
        "urocell-fib1-4-3-0": ({MITO, GOLGI}, (15, 16, 16), "urocell-bladder", None),
    },
}


@pytest.mark.parametrize("name", sorted(replicas.WRITERS))
def test_a_replica_gives_the_organelles_voxel_sizes_specimens_and_folds_of_the_source(
    name: str, tmp_path: Path
) -> None:
    volumes = replica(name, tmp_path)
    found = {v.volume_id: (set(v.annotated), tuple(v.voxel_size), v.specimen, v.published_fold) for v in volumes}
    assert found == EXPECTED[name]
    extras = load_source(name).extras
    for volume in volumes:
        assert set(labelled(volume)) == set(volume.annotated), "the replica has every annotated organelle"
        image = np.asarray(volume.image[:])
        gray = window_of(volume).apply(image)
        assert gray.dtype == np.uint8
        assert gray.std() > 10, "there is a picture"
        labels = volume.instances if volume.semantic is None else volume.semantic
        for array in (volume.image, labels, volume.ignore):
            if array is not None:
                whole = np.asarray(array[:])
                assert whole.shape == tuple(array.shape)
                np.testing.assert_array_equal(np.asarray(array[0, 3:9, 4:7]), whole[0, 3:9, 4:7])
                np.testing.assert_array_equal(np.asarray(array[0:1, 3:9]), whole[0:1, 3:9])
        named = {key.removeprefix("extra:") for key in volume.provenance if key.startswith("extra:")}
        assert named <= set(extras)
        assert set(volume.extras) == named
        for extra in volume.extras.values():
            whole = np.asarray(extra[:])
            assert whole.dtype == extra.dtype
            np.testing.assert_array_equal(np.asarray(extra[0:1, 3:9, 4:7]), whole[0:1, 3:9, 4:7])
        copy = pickle.loads(pickle.dumps(volume))  # volumes go to other processes
        np.testing.assert_array_equal(np.asarray(copy.image[:]), image)


def test_betaseg_keeps_granules_out_and_says_where_they_are(tmp_path: Path) -> None:
    volume = replica("betaseg", tmp_path)[0]
    inside = tmp_path / "betaseg" / "download" / "high_c1"
    read = {name: tifffile.imread(inside / f"high_c1_{name}.tif") for name in ("granules", "golgi_corrected")}
    masks = labelled(volume)
    np.testing.assert_array_equal(masks[GOLGI], read["golgi_corrected"] > 0)
    mito = tifffile.imread(inside / "high_c1_mitochondria_mask.tif") > 0
    np.testing.assert_array_equal(masks[MITO], mito & ~masks[GOLGI])
    assert volume.provenance["extra:granules"] == "high_c1_granules.tif"
    nothing_else = ~(masks[GOLGI] | masks[MITO] | masks[NUCLEUS])
    assert (read["granules"][nothing_else] > 0).any(), "granules outside of the three exist, and are no organelle here"
    assert Organelle.ER not in volume.annotated
    assert ENDO not in volume.annotated
    assert volume.annotated[MITO] == "refined+lpa"


def test_urocell_reads_arrays_as_stored_although_the_headers_orient_them_differently(tmp_path: Path) -> None:
    volume = replica("urocell", tmp_path)[2]
    np.testing.assert_array_equal(labelled(volume)[MITO], replicas.instances(2, (16, 64, 32)) > 0)
    golgi = fake.blobs((16, 64, 32), 12, 0.1) & (replicas.instances(2, (16, 64, 32)) == 0)
    np.testing.assert_array_equal(labelled(volume)[GOLGI], golgi)
    assert volume.annotated == {MITO: "manual", GOLGI: "manual+lpa"}
    assert volume.provenance["extra:fv"] == "fv/instance/fib1-4-3-0.nii.gz"


def test_urocell_keeps_expert_ids_and_derives_golgi_ids_as_lpa_does(tmp_path: Path) -> None:
    volume = replica("urocell", tmp_path)[2]
    assert volume.instances is not None
    ids, expert = np.asarray(volume.instances[:]), replicas.instances(2, (16, 64, 32))
    np.testing.assert_array_equal(ids[expert > 0], expert[expert > 0])
    golgi = fake.blobs((16, 64, 32), 12, 0.1)
    twin = lpa.label(golgi.astype(np.uint8) * GOLGI.label_id, lpa.DEFAULT_CONNECTIVITY)
    free = golgi & (expert == 0)
    pairs = set(zip(ids[free].tolist(), twin[free].tolist(), strict=True))
    assert len(pairs) == len({one for one, _ in pairs}) == len({other for _, other in pairs}), "one to one"
    assert min(one for one, _ in pairs) > expert.max()


def test_urocell_options_decide_on_coarse_golgi_and_on_endolysosomes(tmp_path: Path) -> None:
    replicas.urocell(tmp_path)
    coarse = {v.volume_id: set(v.annotated) for v in volumes_of("urocell", tmp_path, golgi="approximate")}
    assert coarse["urocell-fib1-0-0-0"] == {MITO, GOLGI}
    as_endo = volumes_of("urocell", tmp_path, lyso="endo")[0]
    assert set(as_endo.annotated) == {MITO, ENDO}
    assert "extra:lyso" not in as_endo.provenance
    assert "extra:lyso" in volumes_of("urocell", tmp_path)[0].provenance
    with pytest.raises(InputError, match="did you mean 'precise'"):
        volumes_of("urocell", tmp_path, golgi="precis")


def test_urocell_ignores_rows_without_data_and_is_label_only_without_images(tmp_path: Path) -> None:
    with_rows, whole, _ = replica("urocell", tmp_path)
    assert with_rows.ignore is not None
    rows = np.asarray(with_rows.ignore[:])
    assert rows[:, :12].all()
    assert not rows[:, 12:].any()
    assert whole.ignore is None
    shutil.rmtree(tmp_path / "urocell")
    replicas.urocell(tmp_path, with_images=False)
    for volume in volumes_of("urocell", tmp_path):
        assert volume.provenance["image"] == "none"
        assert not volume.has_image
        assert not SplitPolicy().folds_of(volume), "nothing can be learned without an image"
        assert labelled(volume)


def test_guay_maps_mitochondria_only_and_ignores_what_is_outside_of_the_cells(tmp_path: Path) -> None:
    volume = replica("guay_platelets", tmp_path)[0]
    labels = tifffile.imread(tmp_path / "guay_platelets" / "train-labels.tif")
    assert volume.semantic is not None
    assert volume.ignore is not None
    np.testing.assert_array_equal(np.asarray(volume.semantic[:]) == MITO.label_id, labels == 2)
    np.testing.assert_array_equal(np.asarray(volume.ignore[:]), labels == 0)
    assert volume.provenance["extra:dense_granule_core"] == "train-labels.tif == 6"
    assert "intensity_window" in window_of(volume).provenance(), "signed 16 bit images are windowed on record"


def test_what_is_outside_of_the_five_comes_as_it_was_published(tmp_path: Path) -> None:
    cell, *_ = replica("betaseg", tmp_path)
    np.testing.assert_array_equal(np.asarray(cell.extras["granules"][:]), replicas.instances(20))
    assert np.asarray(cell.extras["membrane_full_mask"][:]).all()
    sample, *_ = replica("cremi", tmp_path)
    clefts = np.asarray(sample.extras["clefts"][:])
    np.testing.assert_array_equal(clefts, np.where(fake.blobs(replicas.SHAPE, 10, 0.05), 7, 0))
    assert clefts.dtype == np.uint64, "as large as its ids"
    np.testing.assert_array_equal(np.asarray(sample.extras["neuron_ids"][:]), replicas.instances(0))
    platelets, *_ = replica("guay_platelets", tmp_path)
    labels = tifffile.imread(tmp_path / "guay_platelets" / "train-labels.tif")
    for name, value in (("cell", 1), ("alpha_granule", 3), ("dense_granule_core", 6)):
        np.testing.assert_array_equal(np.asarray(platelets.extras[name][:]), labels == value)
    images = {volume.volume_id: volume for volume in replica("perez", tmp_path, nucleoli_nm="7.6")}
    mask = fake.blobs((1, 40, 48), 301)
    np.testing.assert_array_equal(np.asarray(images["perez-nucleoli-train-001"].extras["nucleoli"][:]), mask)
    assert not images["perez-nuclei-train-001"].extras
    block, *_ = replica("urocell", tmp_path)
    np.testing.assert_array_equal(np.asarray(block.extras["fv"][:]), replicas.instances(20, (16, 64, 32)))


def test_an_extra_off_the_grid_or_missing_is_no_reason_to_refuse_a_volume(tmp_path: Path) -> None:
    folder = replicas.betaseg(tmp_path) / "download" / "high_c1"
    tifffile.imwrite(folder / "high_c1_granules.tif", np.ones((6, 20, 24), np.uint16))
    (folder / "high_c1_microtubules.tif").unlink()
    cell, other = volumes_of("betaseg", tmp_path)
    assert set(cell.extras) == {"centrioles", "membrane_full_mask"}
    assert "not published: (6, 20, 24) voxels" in cell.provenance["extra:granules"]
    assert "extra:microtubules" not in cell.provenance
    assert len(other.extras) == 4


def test_kasthuri_ignores_the_empty_area_and_takes_white_for_mitochondria(tmp_path: Path) -> None:
    volume = replica("kasthuripp", tmp_path)[0]
    assert volume.ignore is not None
    np.testing.assert_array_equal(np.asarray(volume.ignore[:])[:, :, 0], [[True] * 6 + [False] * 34] * 12)
    expected = fake.blobs(replicas.SHAPE, 0)
    expected[:, :6] = False
    np.testing.assert_array_equal(labelled(volume)[MITO], expected)


def test_mitoem_takes_the_images_that_belong_to_the_labels(tmp_path: Path) -> None:
    train, validation = replica("mitoem", tmp_path)
    assert [v.image.shape[0] for v in (train, validation)] == [8, 4]
    ids = replicas.instances(1, (14, 40, 48))
    assert validation.instances is not None
    np.testing.assert_array_equal(np.asarray(validation.instances[:]), ids[8:12])
    np.testing.assert_array_equal(np.asarray(validation.image[:]), fake.em_like(ids > 0, 1)[8:12])
    assert set(validation.organelle_of) == set(np.unique(ids[8:12]).tolist()) - {0}
    slabs = [[(slab.fold, slab.start, slab.stop) for slab in SplitPolicy().slabs_of(v)] for v in (train, validation)]
    assert slabs == [[("train", 0, 6)], [("validation", 0, 4)]], "validation as published, the training 60 nm below it"


def test_guay_is_divided_as_published(tmp_path: Path) -> None:
    slabs = [SplitPolicy().slabs_of(volume) for volume in replica("guay_platelets", tmp_path)]
    assert [[(slab.fold, slab.start, slab.stop) for slab in one] for one in slabs] == [
        [("train", 0, 12)],
        [("validation", 0, 12)],
        [("test", 0, 12)],
    ]


def test_nucmm_blocks_are_where_their_names_say(tmp_path: Path) -> None:
    replicas.nucmm(tmp_path)
    for path in (tmp_path / "nucmm").rglob("val/*.h5"):
        path.rename(path.with_name(path.name.replace("0000_0640_0832", "0064_0512_0832")))
    train, val = volumes_of("nucmm", tmp_path)
    assert (train.origin_nm, val.origin_nm) == ((0, 576 * 510, 768 * 510), (64 * 480, 512 * 510, 832 * 510))
    assert train.frame is not None
    assert train.frame == val.frame
    assert [(span.start_nm, span.slices) for span in train.frame.spans] == [(0, 12)], "all that could be cut"
    assert [(box.fold, box.low_nm) for box in train.frame.published] == [("validation", val.origin_nm)]
    folds = [[(slab.fold, slab.start, slab.stop) for slab in SplitPolicy().slabs_of(v)] for v in (train, val)]
    assert folds == [[("train", 0, 12)], [("validation", 0, 12)]]
    for path in (tmp_path / "nucmm").rglob("train/*.h5"):
        path.rename(path.with_name("block.h5"))
    renamed, other = volumes_of("nucmm", tmp_path)
    assert renamed.frame is None, "no place is made up"
    assert other.frame is not None


def test_cem_mitolab_leaves_out_what_other_sources_image_and_what_has_no_pixel_size(tmp_path: Path) -> None:
    replicas.cem_mitolab(tmp_path)
    table = tmp_path / "all.csv"
    table.write_text("folder,pixel_nm\nkidney_sbf,8.5\nkasthuri_atum,6\n")
    with pytest.raises(InputError, match="not there: kasthuri_atum"):
        volumes_of("cem_mitolab", tmp_path, pixel_nm=str(table))
    everything = volumes_of("cem_mitolab", tmp_path, pixel_nm=str(table), leave_out="")
    assert {volume.specimen for volume in everything} == {"cem_mitolab-kidney_sbf", "cem_mitolab-kasthuri_atum"}


def test_lucchi_reads_the_authors_archive_as_well(tmp_path: Path) -> None:
    replicas.lucchipp_archive(tmp_path)
    train, test = volumes_of("lucchipp", tmp_path)
    assert (train.published_fold, test.published_fold) == ("train", "test")
    np.testing.assert_array_equal(labelled(train)[MITO], fake.blobs(replicas.SHAPE, 0))
    np.testing.assert_array_equal(labelled(test)[MITO], fake.blobs(replicas.SHAPE, 1))


def _no_golgi(folder: Path) -> None:
    (folder / "download" / "high_c1" / "high_c1_golgi_corrected.tif").unlink()


def _empty(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / "README.txt").write_text("?")


def _other_size(folder: Path) -> None:
    tifffile.imwrite(folder / "download" / "high_c1" / "high_c1_nucleus_mask.tif", np.ones((6, 40, 48), np.uint8))


def _no_eval(folder: Path) -> None:
    (folder / "eval-labels.tif").unlink()


def _unknown_class(folder: Path) -> None:
    tifffile.imwrite(folder / "train-labels.tif", np.full(replicas.SHAPE, 9, np.uint16))


def _resampled(folder: Path) -> None:
    with h5py.File(folder / "sample_A_20160501.hdf", "a") as file:
        file["volumes/raw"].attrs["resolution"] = [40.0, 8.0, 8.0]


def _no_raw(folder: Path) -> None:
    with h5py.File(folder / "sample_B_20160501.hdf", "a") as file:
        del file["volumes/raw"]


def _colour(folder: Path) -> None:
    pixels = np.zeros((40, 48, 3), np.uint8)
    pixels[..., 1] = 200
    Image.fromarray(pixels).save(folder / "Train_Out" / "mask0003.png")


def _unpaired(folder: Path) -> None:
    (folder / "ground_truth" / "nuclei" / "nuclei_gt.011.png").unlink()


def _float_ids(folder: Path) -> None:
    tifffile.imwrite(folder / "c_elegans" / "c_elegans_mito.tif", np.full(replicas.SHAPE, 0.5, np.float32))


def _no_image(folder: Path) -> None:
    (folder / "rat" / "im" / "im0009.png").unlink()


def _no_label(folder: Path) -> None:
    next((folder / "Zebrafish (NucMM-Z)" / "Label" / "val").iterdir()).unlink()


def _no_mask(folder: Path) -> None:
    (folder / "kidney_sbf" / "masks" / "crop-1.tiff").unlink()


WRONG = [
    ("betaseg", _no_golgi, "no high_c1_golgi_corrected.tif"),
    ("betaseg", _empty, "README.txt"),
    ("betaseg", _other_size, r"\(6, 40, 48\)"),
    ("guay_platelets", _no_eval, "eval-labels.tif is missing"),
    ("guay_platelets", _unknown_class, "found: 9"),
    ("cremi", _resampled, r"resolution \[40.0, 8.0, 8.0\]"),
    ("cremi", _no_raw, "no data set /volumes/raw"),
    ("cremi", _empty, "README.txt"),
    ("kasthuripp", _colour, "mask0003.png has colours"),
    ("kasthuripp", _empty, "Train_In is missing"),
    ("perez", _unpaired, "only one of them: 11"),
    ("mitonet_benchmark", _float_ids, "float32 values from 0.5"),
    ("mitonet_benchmark", _empty, "README.txt"),
    ("mitoem", _no_image, "no image 9"),
    ("mitoem", _empty, "README.txt"),
    ("nucmm", _no_label, "1 images and 0 labels in val"),
    ("cem_mitolab", _no_mask, "crop-1.tiff"),
    ("urocell", _empty, "README.txt"),
]


@pytest.mark.parametrize(("name", "spoil", "message"), WRONG)
def test_a_wrong_layout_is_explained(name: str, spoil: Callable[[Path], None], message: str, tmp_path: Path) -> None:
    spoil(replicas.WRITERS[name](tmp_path))
    options = replicas.OPTIONS.get(name, lambda raw: {})(tmp_path)
    with pytest.raises(InputError, match=message) as caught:
        [labelled(volume) for volume in volumes_of(name, tmp_path, **options)]
    parts = ("found:", "expected:", "what to do:")
    assert sum(f"\n  {part}" in str(caught.value) for part in parts) >= 2


@pytest.mark.parametrize(("name", "option"), [("perez", "perez.mitochondria_nm"), ("cem_mitolab", "folder,pixel_nm")])
def test_a_source_without_pixel_sizes_asks_for_them(name: str, option: str, tmp_path: Path) -> None:
    replicas.WRITERS[name](tmp_path)
    with pytest.raises(InputError, match=re.escape(option)):
        volumes_of(name, tmp_path)


@pytest.mark.parametrize("name", ["betaseg", "cremi", "mitoem", "urocell"])
def test_a_replica_builds_into_a_dataset(name: str, tmp_path: Path) -> None:
    volumes = replica(name, tmp_path)
    if name == "urocell":  # label-only
        shutil.rmtree(tmp_path / "urocell" / "data")
    stats = build([Job.of(name, tmp_path, {})], tmp_path / "out", SplitPolicy())
    expected: Counter[tuple[str, str]] = Counter()
    for volume in volumes:
        if volume.instances is None:
            assert volume.semantic is not None
            ids = lpa.label(np.asarray(volume.semantic[:]), lpa.DEFAULT_CONNECTIVITY)
            classes = dict(zip(ids.ravel().tolist(), np.asarray(volume.semantic[:]).ravel().tolist(), strict=True))
            organelles = [list(Organelle)[value - 1] for id_, value in classes.items() if id_]
        else:
            organelles = [volume.organelle_of[int(id_)] for id_ in np.unique(np.asarray(volume.instances[:])) if id_]
        expected.update((name, str(organelle)) for organelle in organelles)
    assert {key: count for key, count in stats.instances.items() if count} == dict(expected)


def test_lazy_arrays_equal_the_whole_computed_at_once() -> None:
    one, other = fake.blobs(replicas.SHAPE, 1), fake.blobs(replicas.SHAPE, 2)
    semantic = masks_to_semantic({GOLGI: one, MITO: other})
    expected = np.where(one, GOLGI.label_id, np.where(other, MITO.label_id, 0))
    for index in (slice(None), 3, (slice(2, 5), slice(1, 9), slice(0, 4)), (4, slice(3, 8)), (slice(0, 12, 3),)):
        np.testing.assert_array_equal(semantic[index], expected[index])
        np.testing.assert_array_equal(Constant(7, replicas.SHAPE, np.uint8)[index], np.full_like(expected[index], 7))
    with pytest.raises(ValueError, match="different sizes"):
        Elementwise(np.add, [one, other[1:]], np.uint8)
    with pytest.raises(InputError, match=r"where\.tif has unknown label values"):
        np.asarray(values_to_semantic(np.full((1, 2, 2), 5), {0: None}, "where.tif"))
    with pytest.raises(InputError, match="instance ids"):
        np.asarray(instance_ids(np.full((1, 2, 2), -1), "where.tif"))


def test_every_id_lists_what_is_in_the_labels() -> None:
    ids = np.zeros((5, 4, 4), np.uint16)
    ids[0, 0, 0], ids[4, 3, 3] = 9, 70
    every = EveryId(MITO, ids)
    assert every[123] is MITO
    assert dict(every) == {9: MITO, 70: MITO}
    assert 0 not in every


@pytest.mark.real_data
def test_real_urocell_labels_register_and_hold_the_published_instances(real_data: Path) -> None:
    volumes = {volume.volume_id: volume for volume in volumes_of("urocell", real_data)}
    counts = {
        name: {o: sum(organelle is o for organelle in volume.organelle_of.values()) for o in volume.annotated}
        for name, volume in volumes.items()
    }
    assert {name: number[MITO] for name, number in counts.items() if MITO in number} == {
        "urocell-fib1-0-0-0": 39,
        "urocell-fib1-1-0-3": 16,
        "urocell-fib1-3-3-0": 83,
    }
    golgi = labelled(volumes["urocell-fib1-2-2-3"])[GOLGI]
    assert counts["urocell-fib1-2-2-3"] == {GOLGI: ndimage.label(golgi, np.ones((3, 3, 3)))[1]}
    # vesicles and mitochondria exclude each other only if neither is turned round by its header
    from em_bench_eval.volume_io import open_volume

    volume = volumes["urocell-fib1-3-3-0"]
    vesicles = np.asarray(open_volume(real_data / "urocell_labels" / volume.provenance["extra:fv"])[:]) > 0
    mito = labelled(volume)[MITO]
    assert (vesicles & mito).sum() < 1e-3 * mito.sum()
    assert (vesicles[:, ::-1] & mito).sum() > 0.1 * mito.sum()


def test_labels_alone_make_a_dataset_of_volumes(tmp_path: Path) -> None:
    from datasets import load_dataset

    replicas.urocell(tmp_path, with_images=False)
    out = tmp_path / "labels-only"
    build([Job.of("urocell", tmp_path, {})], out, SplitPolicy())
    rows = load_dataset(str(out), split="volumes")
    assert len(rows) == 3
    assert not any(rows["has_image"])
    assert rows["extras"] == [["fv", "lyso"], [], ["fv", "lyso"]]
    first = tmp_path / "labels-only" / rows[0]["zarr"]
    assert np.asarray(open_volume(first / "labels" / "instances")[:]).any()
