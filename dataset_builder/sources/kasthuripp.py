"""Kasthuri++: mouse neocortex, serial-section SEM, 30 x 3 x 3 nm, mitochondria."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dataset_builder.lazy import check_grid
from dataset_builder.source import Download, Source
from dataset_builder.stack import ImageStack, gray_image, paired_stacks, read_gray_in_colour
from em_bench_eval.schema import Fold, Organelle, SourceInfo, Volume, VoxelSize

VOXEL_SIZE = VoxelSize(30.0, 3.0, 3.0)  # nm (z, y, x)
INFO = SourceInfo(
    name="kasthuripp",
    title="Kasthuri++ (mouse neocortex)",
    citation="""@article{kasthuri2015,
  author = {Kasthuri, Narayanan and Hayworth, Kenneth Jeffrey and Berger, Daniel Raimund and others},
  title = {Saturated Reconstruction of a Volume of Neocortex},
  journal = {Cell}, volume = {162}, number = {3}, pages = {648--661}, year = {2015},
  doi = {10.1016/j.cell.2015.06.054}
}
@article{casser2018,
  author = {Casser, Vincent and Kang, Kai and Pfister, Hanspeter and Haehn, Daniel},
  title = {Fast Mitochondria Segmentation for Connectomics}, journal = {arXiv:1812.06024}, year = {2018}
}""",
    licence="none stated",
    url="https://casser.io/connectomics/",
    redistributable=False,
    modality="AT-SEM",
    annotated={Organelle.MITO: "manual+lpa"},
    voxel_size=VOXEL_SIZE,
    notes="Labels are semantic, stored as colour images: white is mitochondrion, (2, 2, 2) the empty area around the "
    "imaged tissue (an ignore region), anything else background. The voxel size is the publication's, the files state "
    "none.",
)
LAYOUT = """  kasthuripp/ (or Kasthuri++/)
    Train_In/*NNNN.png    8-bit gray
    Train_Out/*NNNN.png   gray stored as colour: 255 mitochondrion, 2 empty area, else background
    Test_In, Test_Out     the published test volume"""
MITOCHONDRION, EMPTY = 255, 2
PARTS: Mapping[str, Fold] = {"Train": "train", "Test": "test"}


def mitochondria(pixels: npt.NDArray[Any], path: Path) -> npt.NDArray[np.uint8]:
    """Decode a label image to ``Organelle.label_id``."""
    return np.where(pixels == MITOCHONDRION, Organelle.MITO.label_id, 0).astype(np.uint8)


def empty_area(pixels: npt.NDArray[Any], path: Path) -> npt.NDArray[np.bool_]:
    """Decode a label image to the mask of what was never imaged."""
    return np.asarray(pixels == EMPTY)


def volumes(raw: Path | None, options: Mapping[str, str]) -> Iterator[Volume]:
    """Yield the published training and test volumes."""
    assert raw is not None, "Source.find returns the folder"
    for part, fold in PARTS.items():
        images, labels = paired_stacks(raw / f"{part}_In", raw / f"{part}_Out")
        image = ImageStack(images, np.uint8, gray_image, read_gray_in_colour)
        semantic = ImageStack(labels, np.uint8, mitochondria, read_gray_in_colour)
        check_grid(str(raw / f"{part}_Out"), image, semantic)
        yield Volume(
            volume_id=f"kasthuripp-{fold}",
            image=image,
            semantic=semantic,
            ignore=ImageStack(labels, np.bool_, empty_area, read_gray_in_colour),
            voxel_size=VOXEL_SIZE,
            source="kasthuripp",
            specimen="kasthuri-mouse-neocortex",
            cell_type="mouse neocortical neuropil",
            modality=INFO.modality,
            annotated=INFO.annotated,
            published_fold=fold,
            provenance={"raw": f"{part}_In", "labels": f"{part}_Out"},
        )


SOURCE = Source(
    info=INFO,
    volumes=volumes,
    folders=("kasthuripp", "Kasthuri++"),
    layout=LAYOUT,
    downloads=(
        Download(
            urls=("https://www.casser.io/files/kasthuri_pp.zip", "http://www.casser.io/files/kasthuri_pp.zip"),
            file="kasthuri_pp.zip",
            sha256="bbb78fd205ec9b57feb8f93ebbdf1666261cbc3e0305e7f11583ab5157a3d792",
            unpack=True,
            strip="Kasthuri++",
        ),
    ),
)
