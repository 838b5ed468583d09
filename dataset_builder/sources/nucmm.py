"""NucMM-Z: nuclei of a whole zebrafish brain in down-sampled serial-section EM."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from dataset_builder.lazy import EveryId, check_grid, instance_ids
from dataset_builder.siblings import with_siblings
from dataset_builder.source import Source
from em_bench_eval.errors import InputError
from em_bench_eval.schema import Fold, Frame, Organelle, SourceInfo, Span, Volume, VoxelSize
from em_bench_eval.volume_io import open_volume

VOXEL_SIZE = VoxelSize(480.0, 510.0, 510.0)  # nm (z, y, x)
INFO = SourceInfo(
    name="nucmm",
    title="NucMM-Z (zebrafish brain nuclei)",
    citation="""@inproceedings{lin2021nucmm,
  author = {Lin, Zudi and Wei, Donglai and Petkova, Mariela D. and Wu, Yuelong and others},
  title = {{NucMM} Dataset: {3D} Neuronal Nuclei Instance Segmentation at Sub-Cubic Millimeter Scale},
  booktitle = {MICCAI}, year = {2021}, doi = {10.1007/978-3-030-87193-2_16}
}""",
    licence="none stated",
    url="https://drive.google.com/drive/folders/1_4CrlYvzx0ITnGlJOHdgcTRgeSkm9wT8",
    redistributable=False,
    modality="ssSEM",
    annotated={Organelle.NUCLEUS: "refined"},
    voxel_size=VOXEL_SIZE,
    notes="The mouse volume of NucMM is X-ray micro-CT, no EM, and is not read. A voxel is about 500 nm: this is "
    "nuclei at the scale of tissue, 60 times coarser than the 8 nm of Scale Alignment. The voxel "
    "size is the publication's. The names of blocks, which touch, say where in the brain they lie (the order z, y, x "
    "follows from their ranges): training slices beside a published validation block are dropped. Nothing is published "
    "for test: these are no test rows. The folder on Google Drive needs a browser.",
)
LAYOUT = """  nucmm/ (or NucMM-Release/)
    Zebrafish (NucMM-Z)/Image/train/*.h5    data set main, gray, named img_Z_Y_X.h5 (voxels); Image/val likewise
    Zebrafish (NucMM-Z)/Label/train/*.h5    data set main, one id per nucleus; in the order of the images"""
FOLDS: Mapping[str, Fold] = {"train": "train", "val": "validation"}
PLACE = re.compile(r"_(\d+)_(\d+)_(\d+)$")  # of a block's first voxel in the whole brain, z, y, x


def volumes(raw: Path | None, options: Mapping[str, str]) -> list[Volume]:
    """Return every labelled block."""
    assert raw is not None, "Source.find returns the folder"
    return with_siblings(_volumes(raw))


def _volumes(raw: Path) -> Iterator[Volume]:
    blocks = list(_blocks(raw / "Zebrafish (NucMM-Z)"))
    images = {path: open_volume(f"{path}:/main") for _, path, _ in blocks}
    origins = {path: place for path in images if (place := _origin_nm(path))}
    spans = [Span(origin[0], VOXEL_SIZE.z, images[path].shape[0]) for path, origin in origins.items()]
    frame = Frame("nucmm-zebrafish-brain", tuple(spans))
    for part, image_path, label_path in blocks:
        labelled = instance_ids(open_volume(f"{label_path}:/main"), str(label_path))
        check_grid(str(label_path), images[image_path], labelled)
        yield Volume(
            volume_id=f"nucmm-{part}-{image_path.stem}",
            image=images[image_path],
            instances=labelled,
            organelle_of=EveryId(Organelle.NUCLEUS, labelled),
            voxel_size=VOXEL_SIZE,
            source="nucmm",
            specimen="nucmm-zebrafish-brain",
            cell_type="zebrafish brain",
            modality=INFO.modality,
            annotated=INFO.annotated,
            published_fold=FOLDS[part],
            provenance={"raw": image_path.name, "labels": label_path.name},
            frame=frame if image_path in origins else None,
            origin_nm=origins.get(image_path),
        )


def _blocks(zebrafish: Path) -> Iterator[tuple[str, Path, Path]]:
    """Yield part, image and labels of every block."""
    for part in FOLDS:
        images, labels = (sorted((zebrafish / kind / part).glob("*.h5")) for kind in ("Image", "Label"))
        if not images or len(images) != len(labels):
            raise InputError(
                f"{zebrafish} is incomplete",
                found=f"{len(images)} images and {len(labels)} labels in {part}",
                expected=f"as many of each, as in\n{LAYOUT}",
                remedy=f"download the folder from {INFO.url}",
            )
        yield from ((part, image, label) for image, label in zip(images, labels, strict=True))


def _origin_nm(path: Path) -> tuple[float, float, float] | None:
    """Read where a block lies from its name; ``None`` if it has been renamed."""
    place = PLACE.search(path.stem)
    if place is None:
        return None
    z, y, x = (int(number) * nm for number, nm in zip(place.groups(), VOXEL_SIZE, strict=True))
    return z, y, x


SOURCE = Source(info=INFO, volumes=volumes, folders=("nucmm", "NucMM-Release"), layout=LAYOUT)
