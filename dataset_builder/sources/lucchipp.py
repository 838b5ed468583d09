"""Lucchi++: mouse hippocampus CA1, FIB-SEM, 5 nm isotropic, mitochondria."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from dataset_builder.source import Download, Source
from dataset_builder.stack import ImageStack, gray_image, paired_stacks, read_gray_in_colour, semantic_values
from em_bench_eval.schema import Fold, Organelle, SourceInfo, Volume, VoxelSize

VOXEL_SIZE = VoxelSize(5.0, 5.0, 5.0)  # nm (z, y, x)
INFO = SourceInfo(
    name="lucchipp",
    title="Lucchi++ (mouse hippocampus CA1)",
    citation="""@article{lucchi2012,
  author = {Lucchi, Aur{\\'e}lien and Smith, Kevin and Achanta, Radhakrishna and Knott, Graham and Fua, Pascal},
  title = {Supervoxel-Based Segmentation of Mitochondria in {EM} Image Stacks With Learned Shape Features},
  journal = {IEEE Transactions on Medical Imaging}, volume = {31}, number = {2}, pages = {474--486}, year = {2012}
}
@article{casser2018,
  author = {Casser, Vincent and Kang, Kai and Pfister, Hanspeter and Haehn, Daniel},
  title = {Fast Mitochondria Segmentation for Connectomics}, journal = {arXiv:1812.06024}, year = {2018}
}""",
    licence="none stated",
    url="https://casser.io/connectomics/",
    redistributable=False,
    modality="FIB-SEM",
    annotated={Organelle.MITO: "manual+lpa"},
    voxel_size=VOXEL_SIZE,
    notes="Labels are semantic; instance ids are derived by label propagation.",
)
LAYOUT = """  lucchipp_fibsem_mito/
    train/raw/NNNN.png     8-bit gray
    train/label/NNNN.png   0 background, 255 mitochondrion
    test/raw, test/label   the same, optional: the published test volume
  or as in the authors' archive: Train_In/maskNNNN.png (images), Train_Out/N.png, Test_In, Test_Out"""
PARTS: tuple[Fold, ...] = ("train", "test")
LAYOUTS = (("{part}/raw", "{part}/label"), ("{Part}_In", "{Part}_Out"))  # folders of images and labels


def _folders(raw: Path, part: str) -> tuple[Path, Path] | None:
    """Find the image and label folders of a part, in either layout."""
    named = [[raw / name.format(part=part, Part=part.title()) for name in pair] for pair in LAYOUTS]
    return next(((images, labels) for images, labels in named if images.is_dir()), None)


def volumes(raw: Path | None, options: Mapping[str, str]) -> Iterator[Volume]:
    """Yield the training volume and, where it is there, the published test volume."""
    assert raw is not None, "Source.find returns the folder"
    found = {part: _folders(raw, part) for part in PARTS}
    parts = [part for part in PARTS if part == "train" or found[part]]
    for part in parts:
        image_folder, label_folder = found[part] or (raw / part / "raw", raw / part / "label")
        images, labels = paired_stacks(image_folder, label_folder)
        values = semantic_values({0: 0, 255: Organelle.MITO.label_id})
        yield Volume(
            volume_id=f"lucchipp-{part}",
            image=ImageStack(images, np.uint8, gray_image),
            semantic=ImageStack(labels, np.uint8, values, read_gray_in_colour if label_folder.parent == raw else None),
            voxel_size=VOXEL_SIZE,
            source="lucchipp",
            specimen="lucchi-ca1-hippocampus",
            cell_type="mouse hippocampal neuropil",
            modality=INFO.modality,
            annotated=INFO.annotated,
            published_fold=part if len(parts) > 1 else None,
            provenance={
                "raw": image_folder.relative_to(raw).as_posix(),
                "labels": label_folder.relative_to(raw).as_posix(),
            },
        )


SOURCE = Source(
    info=INFO,
    volumes=volumes,
    folders=("lucchipp_fibsem_mito", "lucchipp", "Lucchi++"),
    layout=LAYOUT,
    downloads=(
        Download(
            urls=("https://www.casser.io/files/lucchi_pp.zip", "http://www.casser.io/files/lucchi_pp.zip"),
            file="lucchi_pp.zip",
            sha256="770ce9e98fc6f29c1b1a250c637e6c5125f2b5f1260e5a7687b55a79e2e8844d",
            unpack=True,
            strip="Lucchi++",
        ),
    ),
)
