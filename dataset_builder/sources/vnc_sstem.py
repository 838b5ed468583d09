"""Drosophila larva ventral nerve cord, ssTEM, 50 x 4.6 x 4.6 nm, mitochondria."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dataset_builder.lazy import at_most, equals, named_extras
from dataset_builder.source import Download, Source
from dataset_builder.stack import ImageStack, gray_image, paired_stacks, semantic_values
from em_bench_eval.schema import Organelle, SourceInfo, Volume, VoxelSize

VOXEL_SIZE = VoxelSize(50.0, 4.6, 4.6)  # nm (z, y, x)
INFO = SourceInfo(
    name="vnc_sstem",
    title="Segmented anisotropic ssTEM dataset of neural tissue (Drosophila VNC)",
    citation="""@misc{gerhard2013,
  author = {Gerhard, Stephan and Funke, Jan and Martel, Julien and Cardona, Albert and Fetter, Richard},
  title = {Segmented anisotropic {ssTEM} dataset of neural tissue}, publisher = {figshare}, year = {2013},
  doi = {10.6084/m9.figshare.856713}
}""",
    licence="CC-BY-NC-SA-3.0",
    url="https://doi.org/10.6084/m9.figshare.856713",
    redistributable=True,
    modality="ssTEM",
    annotated={Organelle.MITO: "manual+lpa"},
    voxel_size=VOXEL_SIZE,
    notes="The published folder `mitochondria` mixes 1-bit and 8-bit files, so `labels` is what is read.",
)
LAYOUT = """  vnc_sstem/
    stack1/raw/NN.png (or .tif)         8-bit gray
    stack1/labels/labelsNNNNNNNN.png    0..128 membrane, 159 glia, 191 mitochondrion, 223 synapse, 255 cell interior
  (stack2 has no published labels and is not read)"""
MITOCHONDRION = 191
OTHER_VALUES = (0, 32, 64, 96, 128, 159, 223, 255)


def published_values(pixels: npt.NDArray[Any], path: Path) -> npt.NDArray[np.uint8]:
    """Decode a label image to its own values."""
    return pixels.astype(np.uint8, copy=False)


def volumes(raw: Path | None, options: Mapping[str, str]) -> Iterator[Volume]:
    """Yield stack 1, the one with published labels."""
    assert raw is not None, "Source.find returns the folder"
    images, labels = paired_stacks(raw / "stack1" / "raw", raw / "stack1" / "labels")
    values = {**dict.fromkeys(OTHER_VALUES, 0), MITOCHONDRION: Organelle.MITO.label_id}
    image, published = ImageStack(images, np.uint8, gray_image), ImageStack(labels, np.uint8, published_values)
    masks = {
        "glia": (equals(published, 159), "stack1/labels == 159"),
        "synapse": (equals(published, 223), "stack1/labels == 223"),
        "membrane": (at_most(published, 128), "stack1/labels <= 128"),
    }
    extras, places = named_extras(image, masks)
    yield Volume(
        volume_id="vnc_sstem-stack1",
        image=image,
        semantic=ImageStack(labels, np.uint8, semantic_values(values)),
        voxel_size=VOXEL_SIZE,
        source="vnc_sstem",
        specimen="gerhard-drosophila-vnc",
        cell_type="Drosophila larval neuropil",
        modality=INFO.modality,
        annotated=INFO.annotated,
        provenance={"raw": "stack1/raw", "labels": "stack1/labels", **places},
        extras=extras,
    )


SOURCE = Source(
    info=INFO,
    volumes=volumes,
    folders=("vnc_sstem", "groundtruth-drosophila-vnc", "groundtruth-drosophila-vnc-master"),
    layout=LAYOUT,
    extras={"glia": "label value 159", "synapse": "label value 223", "membrane": "label values 0 to 128"},
    downloads=(
        Download(
            urls=("https://github.com/unidesigner/groundtruth-drosophila-vnc/archive/refs/heads/master.zip",),
            file="vnc_sstem.zip",
            sha256="f7bd0db03c86b64440a16b60360ad60c0a4411f89e2c021c7ee2c8d6af3d7e86",
            unpack=True,
            strip="groundtruth-drosophila-vnc-master",
        ),
    ),
)
