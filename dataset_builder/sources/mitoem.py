"""MitoEM: rat and human cortex, multi-beam SEM, 30 x 8 x 8 nm; mitochondria instances."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dataset_builder.lazy import EveryId, check_grid
from dataset_builder.siblings import with_siblings
from dataset_builder.source import Download, Source
from dataset_builder.stack import ImageStack, complete_stack, gray_image, list_slices
from em_bench_eval.errors import InputError
from em_bench_eval.schema import Fold, Frame, Organelle, SourceInfo, Span, Volume, VoxelSize

VOXEL_SIZE = VoxelSize(30.0, 8.0, 8.0)  # nm (z, y, x)
INFO = SourceInfo(
    name="mitoem",
    title="MitoEM (rat and human cortex)",
    citation="""@inproceedings{wei2020mitoem,
  author = {Wei, Donglai and Lin, Zudi and Franco-Barranco, Daniel and Wendt, Nils and Liu, Xingyu and Yin, Wenjie and
    Huang, Xin and Gupta, Aarush and Jang, Won-Dong and Wang, Xueying and others},
  title = {{MitoEM} Dataset: Large-Scale {3D} Mitochondria Instance Segmentation from {EM} Images},
  booktitle = {MICCAI}, pages = {66--76}, year = {2020}, doi = {10.1007/978-3-030-59722-1_7}
}""",
    licence="MIT (card of the Hub repository pytc/MitoEM)",
    url="https://mitoem.grand-challenge.org/",
    redistributable=True,
    modality="multi-beam SEM",
    annotated={Organelle.MITO: "refined"},
    voxel_size=VOXEL_SIZE,
    notes="Labels are published for slices 0 to 399 (training) and 400 to 499 (validation) of 1,000; the rest has none "
    "and is not read. The published validation slices follow the training slices without a gap, so the last training "
    "slices before them are dropped. Nothing is published for test: these are no test rows.",
)
LAYOUT = """  mitoem/
    rat/im/imNNNN.png               8-bit gray, 4096x4096, slices 0000 to 0999; human/ likewise
    rat/mito-train-v2/segNNNN.tif   one id per mitochondrion, slices 0000 to 0399
    rat/mito-val-v2/segNNNN.tif     slices 0400 to 0499"""
SAMPLES = {"rat": "rat cortex", "human": "human cortex"}
FOLDERS: Mapping[str, Fold] = {"mito-train-v2": "train", "mito-val-v2": "validation"}


def volumes(raw: Path | None, options: Mapping[str, str]) -> list[Volume]:
    """Return the labelled parts of each sample that is there."""
    assert raw is not None, "Source.find returns the folder"
    return with_siblings(_volumes(raw))


def _volumes(raw: Path) -> Iterator[Volume]:
    samples = [sample for sample in SAMPLES if (raw / sample).is_dir()]
    if not samples:
        raise InputError(
            f"{raw} holds no MitoEM sample",
            found=", ".join(sorted(path.name for path in raw.iterdir())[:8]) or "an empty folder",
            expected=LAYOUT,
            remedy="em-bench fetch mitoem --raw DIR; archives unpacked by hand belong in rat/ and human/",
        )
    for sample in samples:
        images = list_slices(raw / sample / "im")
        parts = {folder: list(list_slices(raw / sample / folder)) for folder in FOLDERS}
        spans = [Span(VOXEL_SIZE.z * numbers[0], VOXEL_SIZE.z, len(numbers)) for numbers in parts.values()]
        for folder, fold in FOLDERS.items():
            labels, numbers = complete_stack(raw / sample / folder), parts[folder]
            if missing := [number for number in numbers if number not in images]:
                raise InputError(
                    f"{raw / sample / folder} has labels without images",
                    found=f"no image {', '.join(map(str, missing[:8]))}",
                    expected=f"imNNNN.png in {raw / sample / 'im'}",
                    remedy="download the images again",
                )
            image = ImageStack([images[number] for number in numbers], np.uint8, gray_image)
            labelled = ImageStack(labels, np.uint32, ids)
            check_grid(str(raw / sample / folder), image, labelled)
            yield Volume(
                volume_id=f"mitoem-{sample}-{fold}",
                image=image,
                instances=labelled,
                organelle_of=EveryId(Organelle.MITO, labelled),
                voxel_size=VOXEL_SIZE,
                source="mitoem",
                specimen=f"mitoem-{sample}",
                cell_type=SAMPLES[sample],
                modality=INFO.modality,
                annotated=INFO.annotated,
                published_fold=fold,
                provenance={"raw": f"{sample}/im", "labels": f"{sample}/{folder}"},
                frame=Frame(f"mitoem-{sample}", tuple(spans)),
                origin_nm=(VOXEL_SIZE.z * numbers[0], 0.0, 0.0),
            )


def ids(pixels: npt.NDArray[Any], path: Path) -> npt.NDArray[Any]:
    """Accept any unsigned ids; ``InputError`` for fractions."""
    if pixels.dtype.kind not in "iu":
        raise InputError(
            f"{path} does not hold instance ids",
            found=str(pixels.dtype),
            expected="whole numbers",
            remedy="download the published label again",
        )
    return pixels


HUB = "https://huggingface.co/datasets/pytc"
DROPBOX = "https://www.dropbox.com/s"
SOURCE = Source(
    info=INFO,
    volumes=volumes,
    folders=("mitoem", "MitoEM"),
    layout=LAYOUT,
    downloads=(
        Download(
            urls=(f"{HUB}/EM30/resolve/main/EM30-R-im.zip", f"{DROPBOX}/kobmxbrabdfkx7y/EM30-R-im.zip?dl=1"),
            file="EM30-R-im.zip",
            sha256="6a2cac68adde5d01984542d3ee1d7753d1fa3e6eb2a042ce15ce297c95885bbe",
            unpack=True,
            into="rat",
        ),
        Download(
            urls=(
                f"{HUB}/MitoEM/resolve/main/EM30-R-mito-train-val-v2.zip",
                f"{DROPBOX}/stncdytayhr8ggz/EM30-R-mito-train-val-v2.zip?dl=1",
            ),
            file="EM30-R-mito-train-val-v2.zip",
            sha256="c56380ac575428a818bd293ca3509d1249999846c3702ccbf11d308acdd2ae86",
            size_bytes=66_600_000,
            unpack=True,
            into="rat",
        ),
        Download(
            urls=(f"{DROPBOX}/z41qtu4y735j95e/EM30-H-im.zip?dl=1",),
            file="EM30-H-im.zip",
            sha256="98fe259f36a7d8d43f99981b7a0ef8cdeba2ce2615ff91595f428ae57207a041",
            unpack=True,
            into="human",
        ),
        Download(
            urls=(
                f"{HUB}/MitoEM/resolve/main/EM30-H-mito-train-val-v2.zip",
                f"{DROPBOX}/dhf89bc14kemw4e/EM30-H-mito-train-val-v2.zip?dl=1",
            ),
            file="EM30-H-mito-train-val-v2.zip",
            sha256="0e8ed292cfcd0c58701d9f4299244a1b66d6aeb506c85754c34f98a4eda0ef1b",
            size_bytes=55_900_000,
            unpack=True,
            into="human",
        ),
    ),
)
