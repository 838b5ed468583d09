"""NucMM-Z: nuclei of a whole zebrafish brain in down-sampled serial-section EM."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from dataset_builder.lazy import EveryId, check_grid, instance_ids
from dataset_builder.source import Source
from em_bench_eval.errors import InputError
from em_bench_eval.schema import Fold, Organelle, SourceInfo, Volume, VoxelSize
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
    "size is the publication's. The folder on Google Drive needs a browser.",
)
LAYOUT = """  nucmm/ (or NucMM-Release/)
    Zebrafish (NucMM-Z)/Image/train/*.h5    data set main, gray; Image/val likewise
    Zebrafish (NucMM-Z)/Label/train/*.h5    data set main, one id per nucleus; in the order of the images"""
FOLDS: Mapping[str, Fold] = {"train": "train", "val": "validation"}


def volumes(raw: Path | None, options: Mapping[str, str]) -> Iterator[Volume]:
    """Yield every labelled block."""
    assert raw is not None, "Source.find returns the folder"
    zebrafish = raw / "Zebrafish (NucMM-Z)"
    for part, fold in FOLDS.items():
        images, labels = (sorted((zebrafish / kind / part).glob("*.h5")) for kind in ("Image", "Label"))
        if not images or len(images) != len(labels):
            raise InputError(
                f"{zebrafish} is incomplete",
                found=f"{len(images)} images and {len(labels)} labels in {part}",
                expected=f"as many of each, as in\n{LAYOUT}",
                remedy=f"download the folder from {INFO.url}",
            )
        for image_path, label_path in zip(images, labels, strict=True):
            image = open_volume(f"{image_path}:/main")
            labelled = instance_ids(open_volume(f"{label_path}:/main"), str(label_path))
            check_grid(str(label_path), image, labelled)
            yield Volume(
                volume_id=f"nucmm-{part}-{image_path.stem}",
                image=image,
                instances=labelled,
                organelle_of=EveryId(Organelle.NUCLEUS, labelled),
                voxel_size=VOXEL_SIZE,
                source="nucmm",
                specimen="nucmm-zebrafish-brain",
                cell_type="zebrafish brain",
                modality=INFO.modality,
                annotated=INFO.annotated,
                published_fold=fold,
                provenance={"raw": image_path.name, "labels": label_path.name},
            )


SOURCE = Source(info=INFO, volumes=volumes, folders=("nucmm", "NucMM-Release"), layout=LAYOUT)
