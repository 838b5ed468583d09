"""Perez et al.: mouse suprachiasmatic nucleus, SBF-SEM; single images, each with the mask of one organelle."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dataset_builder.lazy import check_grid
from dataset_builder.source import Download, Option, Source
from dataset_builder.stack import ImageStack, gray_image, list_slices, read_gray_in_colour
from em_bench_eval.errors import InputError
from em_bench_eval.schema import AnnotationType, Fold, Organelle, SourceInfo, Volume, VoxelSize

INFO = SourceInfo(
    name="perez",
    title="Organelles of the mouse suprachiasmatic nucleus (CHM supplemental data)",
    citation="""@article{perez2014,
  author = {Perez, Alex J. and Seyedhosseini, Mojtaba and Deerinck, Thomas J. and Bushong, Eric A. and
    Panda, Satchidananda and Tasdizen, Tolga and Ellisman, Mark H.},
  title = {A workflow for the automatic segmentation of organelles in electron microscopy image stacks},
  journal = {Frontiers in Neuroanatomy}, volume = {8}, pages = {126}, year = {2014},
  doi = {10.3389/fnana.2014.00126}
}""",
    licence="none stated",
    url="https://www.sci.utah.edu/releases/chm_v2.1.367/",
    redistributable=False,
    modality="SBF-SEM",
    annotated={Organelle.MITO: "manual+lpa", Organelle.NUCLEUS: "manual+lpa"},
    notes="Each image has the mask of one class only; all others are unknown in it. The files state no pixel size and "
    "it differs by class: name it for every class that is to be built, the others are left out. Lysosomes and "
    "nucleoli are none of the five: their images carry no annotation, their masks are extras. Images are not adjacent, "
    "so each is a volume of one slice. Masks are semantic; instance ids are derived.",
)
LAYOUT = """  perez/ (or supplemental_data/)
    training_images/CLASS/*.NNN.png    8-bit gray; CLASS is mitochondria, nuclei, lysosomes, nucleoli
    training_labels/CLASS/*.NNN.png    not 0: inside
    test_images/CLASS, ground_truth/CLASS    the same, the published test images"""
CLASSES: Mapping[str, Organelle | None] = {
    "mitochondria": Organelle.MITO,
    "nuclei": Organelle.NUCLEUS,
    "lysosomes": None,
    "nucleoli": None,
}
PARTS: Mapping[Fold, tuple[str, str]] = {
    "train": ("training_images", "training_labels"),
    "test": ("test_images", "ground_truth"),
}


def volumes(raw: Path | None, options: Mapping[str, str]) -> Iterator[Volume]:
    """Yield the images of every class whose pixel size is given; options are checked at once."""
    assert raw is not None, "Source.find returns the folder"
    pixel_nm = {name: _nm(f"{name}_nm", options[f"{name}_nm"]) for name in CLASSES if options[f"{name}_nm"]}
    slice_nm = _nm("slice_nm", options["slice_nm"])
    if not pixel_nm:
        raise InputError(
            "source perez needs pixel sizes",
            found="none: the published files state none",
            expected=f"one or more of {', '.join(f'--option perez.{name}_nm=NM' for name in CLASSES)}",
            remedy="take them from the publication; classes without one are left out",
        )
    return (
        volume
        for name, nm in pixel_nm.items()
        for fold in PARTS
        for volume in _images(raw, name, fold, VoxelSize(slice_nm, nm, nm))
    )


def _images(raw: Path, name: str, fold: Fold, voxel_size: VoxelSize) -> Iterator[Volume]:
    organelle = CLASSES[name]
    image_folder, label_folder = (raw / folder / name for folder in PARTS[fold])
    images, labels = list_slices(image_folder), list_slices(label_folder)
    if unpaired := sorted(set(images) ^ set(labels)):
        raise InputError(
            f"{label_folder} does not belong to {image_folder}",
            found=f"numbers in only one of them: {', '.join(map(str, unpaired[:8]))}",
            expected="one mask for each image",
            remedy="download the missing files",
        )
    annotated: dict[Organelle, AnnotationType] = {organelle: "manual+lpa"} if organelle else {}
    for number, path in images.items():
        mask = labels[number].relative_to(raw).as_posix()
        image = ImageStack([path], np.uint8, gray_image, read_gray_in_colour)
        semantic = ImageStack([labels[number]], np.uint8, DECODERS[organelle], read_gray_in_colour)
        check_grid(str(labels[number]), image, semantic)
        yield Volume(
            volume_id=f"perez-{name}-{fold}-{number:03d}",
            image=image,
            semantic=semantic,
            voxel_size=voxel_size,
            source="perez",
            specimen="perez-mouse-scn",
            cell_type="mouse suprachiasmatic nucleus",
            modality=INFO.modality,
            annotated=annotated,
            published_fold=fold,
            provenance={"raw": path.relative_to(raw).as_posix(), "labels" if organelle else f"extra:{name}": mask},
            extras={} if organelle else {name: ImageStack([labels[number]], np.bool_, _mask, read_gray_in_colour)},
        )


def _mito(pixels: npt.NDArray[Any], path: Path) -> npt.NDArray[np.uint8]:
    return np.where(pixels != 0, Organelle.MITO.label_id, 0).astype(np.uint8)


def _nucleus(pixels: npt.NDArray[Any], path: Path) -> npt.NDArray[np.uint8]:
    return np.where(pixels != 0, Organelle.NUCLEUS.label_id, 0).astype(np.uint8)


def _mask(pixels: npt.NDArray[Any], path: Path) -> npt.NDArray[np.bool_]:
    return np.asarray(pixels != 0)


def _nothing(pixels: npt.NDArray[Any], path: Path) -> npt.NDArray[np.uint8]:
    return np.zeros(pixels.shape, np.uint8)


DECODERS = {Organelle.MITO: _mito, Organelle.NUCLEUS: _nucleus, None: _nothing}


def _nm(option: str, text: str) -> float:
    try:
        size_nm = float(text)
    except ValueError:
        size_nm = 0.0
    if not 0 < size_nm < 1e6:
        raise InputError(f"option {option} of source perez is not a size", found=repr(text), expected="a number of nm")
    return size_nm


SOURCE = Source(
    info=INFO,
    volumes=volumes,
    folders=("perez", "supplemental_data"),
    layout=LAYOUT,
    settings={
        **{
            f"{name}_nm": Option("", f"pixel size of the {name} images, nm; none: they are left out")
            for name in CLASSES
        },
        "slice_nm": Option("30", "thickness of the slices, nm"),
    },
    extras={"lysosomes": "mask, on images of their own", "nucleoli": "mask, on images of their own"},
    downloads=(
        Download(
            urls=("https://www.sci.utah.edu/releases/chm_v2.1.367/chm-supplemental_data.zip",),
            file="chm-supplemental_data.zip",
            unpack=True,
            strip="supplemental_data",
        ),
    ),
)
