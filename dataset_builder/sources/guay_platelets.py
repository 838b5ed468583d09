"""Guay et al.: human blood platelets, SBF-SEM; seven classes, of which mitochondria are one of the five."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from dataset_builder.lazy import check_grid, equals, named_extras, values_to_semantic
from dataset_builder.siblings import with_siblings
from dataset_builder.source import Download, Source
from em_bench_eval.errors import InputError
from em_bench_eval.schema import Fold, Organelle, SourceInfo, Volume, VoxelSize
from em_bench_eval.volume_io import open_volume

VOXEL_SIZE = VoxelSize(50.0, 10.0, 10.0)  # nm (z, y, x)
INFO = SourceInfo(
    name="guay_platelets",
    title="Dense cellular segmentation of human platelets",
    citation="""@article{guay2021,
  author = {Guay, Matthew D. and Emam, Zeyad A. S. and Anderson, Adam B. and Aronova, Maria A. and
    Pokrovskaya, Irina D. and Storrie, Brian and Leapman, Richard D.},
  title = {Dense cellular segmentation for {EM} using {2D--3D} neural network ensembles},
  journal = {Scientific Reports}, volume = {11}, number = {1}, pages = {2561}, year = {2021},
  doi = {10.1038/s41598-021-81590-0}
}""",
    licence="none stated",
    url="https://leapmanlab.github.io/dense-cell/",
    redistributable=False,
    modality="SBF-SEM",
    annotated={Organelle.MITO: "manual+lpa"},
    voxel_size=VOXEL_SIZE,
    notes="Granules and the canalicular system are no endosomes: extras. Value 0 is outside of the annotated cells; "
    "whether other cells lie there is not stated, so it is an ignore region. The files state no voxel size: 50 nm "
    "between slices is the publication's, the authors' page of the same data (platelet-em) says about 40. "
    "Labels are semantic; instance ids are derived.",
)
LAYOUT = """  guay_platelets/ (or platelet_data/)
    train-images.tif, train-labels.tif    stacks of equal size; images signed 16 bit, labels:
    eval-images.tif, eval-labels.tif        0 outside, 1 cell, 2 mitochondrion, 3 alpha granule,
    test-images.tif, test-labels.tif        4 canalicular system, 5 dense granule, 6 dense granule core"""
MITOCHONDRION = 2
EXTRAS = {"cell": 1, "alpha_granule": 3, "canalicular_system": 4, "dense_granule": 5, "dense_granule_core": 6}
PARTS: Mapping[str, Fold] = {"train": "train", "eval": "validation", "test": "test"}


def volumes(raw: Path | None, options: Mapping[str, str]) -> list[Volume]:
    """Return the training, evaluation and test volumes."""
    assert raw is not None, "Source.find returns the folder"
    return with_siblings(_volumes(raw))


def _volumes(raw: Path) -> Iterator[Volume]:
    folder = raw / "platelet_data" if (raw / "platelet_data").is_dir() else raw
    for part, fold in PARTS.items():
        paths = [folder / f"{part}-{kind}.tif" for kind in ("images", "labels")]
        for path in paths:
            if not path.is_file():
                raise InputError(
                    f"{path} is missing",
                    found=", ".join(sorted(file.name for file in folder.iterdir())[:8]) or "an empty folder",
                    expected=LAYOUT,
                    remedy="em-bench fetch guay_platelets --raw DIR",
                )
        image, labels = (open_volume(path) for path in paths)
        check_grid(str(paths[1]), image, labels)
        classes = {0: None, MITOCHONDRION: Organelle.MITO, **dict.fromkeys(EXTRAS.values())}
        masks = {name: (equals(labels, value), f"{paths[1].name} == {value}") for name, value in EXTRAS.items()}
        extras, places = named_extras(image, masks)
        yield Volume(
            volume_id=f"guay_platelets-{part}",
            image=image,
            semantic=values_to_semantic(labels, classes, str(paths[1])),
            ignore=equals(labels, 0),
            voxel_size=VOXEL_SIZE,
            source="guay_platelets",
            specimen="guay-human-platelets",
            cell_type="human platelet",
            modality=INFO.modality,
            annotated=INFO.annotated,
            published_fold=fold,
            provenance={"raw": paths[0].name, "labels": paths[1].name, **places},
            extras=extras,
        )


SOURCE = Source(
    info=INFO,
    volumes=volumes,
    folders=("guay_platelets", "platelet_data"),
    layout=LAYOUT,
    extras={name: f"label value {value}" for name, value in EXTRAS.items()},
    downloads=(
        Download(
            urls=("https://www.dropbox.com/s/68yclbraqq1diza/platelet_data_1219.zip?dl=1",),
            file="platelet_data_1219.zip",
            size_bytes=180_000_000,
            unpack=True,
            strip="platelet_data",
        ),
    ),
)
