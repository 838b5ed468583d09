"""CREMI: adult Drosophila brain, ssTEM; neurons and synaptic clefts, none of the five organelles."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from dataset_builder.lazy import Constant, named_extras, without_value
from dataset_builder.source import Download, Source
from em_bench_eval.errors import InputError
from em_bench_eval.schema import Array3D, Fold, SourceInfo, Volume, VoxelSize
from em_bench_eval.volume_io import open_volume

VOXEL_SIZE = VoxelSize(40.0, 4.0, 4.0)  # nm (z, y, x)
INFO = SourceInfo(
    name="cremi",
    title="CREMI (adult Drosophila brain)",
    citation="""@misc{cremi2016,
  author = {Funke, Jan and Saalfeld, Stephan and Bock, Davi and Turaga, Srini and Perlman, Eric},
  title = {{MICCAI} Challenge on Circuit Reconstruction from Electron Microscopy Images}, year = {2016},
  howpublished = {https://cremi.org}
}""",
    licence="none stated",
    url="https://cremi.org/data/",
    redistributable=False,
    modality="ssTEM",
    annotated={},
    voxel_size=VOXEL_SIZE,
    notes="None of the five organelles is labelled, so nothing here is background either: rows carry images without "
    "annotation (for pre-training), and the extras serve tasks beside the benchmark (RETINA trains clefts on A and B, "
    "tests on C). The background of clefts, 2^64 - 1, becomes 0; ids stay.",
)
LAYOUT = """  cremi/
    sample_A_20160501.hdf (or sample_A.hdf, sampleA.h5), B and C likewise, with
      /volumes/raw                  8-bit gray, attribute resolution = 40, 4, 4 (nm; z, y, x)
      /volumes/labels/clefts        uint64, background 2^64 - 1
      /volumes/labels/neuron_ids    uint64"""
EXTRAS = {"clefts": "synaptic clefts, instance ids", "neuron_ids": "neurons, instance ids"}
OUTSIDE_CLEFTS = 2**64 - 1
FOLDS: Mapping[str, Fold] = {"A": "train", "B": "train", "C": "test"}
SHA256 = {
    "A": "4c563d1b78acb2bcfb3ea958b6fe1533422f7f4a19f3e05b600bfa11430b510d",
    "B": "887e85521e00deead18c94a21ad71f278d88a5214c7edeed943130a1f4bb48b8",
    "C": "2874496f224d222ebc29d0e4753e8c458093e1d37bc53acd1b69b19ed1ae7052",
}
SIZE_BYTES = {"A": 167_000_000, "B": 160_000_000, "C": 165_000_000}


def volumes(raw: Path | None, options: Mapping[str, str]) -> Iterator[Volume]:
    """Yield every sample that is there."""
    assert raw is not None, "Source.find returns the folder"
    files = {found[1]: path for path in sorted(raw.iterdir()) if (found := _sample(path.name))}
    if not files:
        raise InputError(
            f"{raw} holds no CREMI sample",
            found=", ".join(sorted(path.name for path in raw.iterdir())[:8]) or "an empty folder",
            expected=LAYOUT,
            remedy="em-bench fetch cremi --raw DIR",
        )
    for sample, path in sorted(files.items()):
        image = open_volume(f"{path}:/volumes/raw")
        stated = [float(size) for size in image.attributes.get("resolution", tuple(VOXEL_SIZE))]
        if stated != list(VOXEL_SIZE):
            raise InputError(
                f"{path} is not a CREMI volume at its published resolution",
                found=f"resolution {stated}",
                expected=f"{list(VOXEL_SIZE)} nm (z, y, x)",
                remedy="download the published file; resampled copies can be read with --source local",
            )
        extras, places = named_extras(image, _labels(path))
        yield Volume(
            volume_id=f"cremi-{sample}",
            image=image,
            semantic=Constant(0, image.shape, np.uint8),
            voxel_size=VOXEL_SIZE,
            source="cremi",
            specimen="cremi-drosophila-brain",
            cell_type="Drosophila adult neuropil",
            modality=INFO.modality,
            annotated={},
            published_fold=FOLDS[sample],
            provenance={"raw": f"{path.name}:/volumes/raw", **places},
            extras=extras,
        )


def _labels(path: Path) -> dict[str, tuple[Array3D, str]]:
    """Open the label arrays that a sample has; the padded and the test samples lack some."""
    found: dict[str, tuple[Array3D, str]] = {}
    for name in EXTRAS:
        try:
            ids = open_volume(f"{path}:/volumes/labels/{name}")
        except InputError:
            continue
        labels: Array3D = without_value(ids, OUTSIDE_CLEFTS) if name == "clefts" else ids
        found[name] = labels, f"{path.name}:/volumes/labels/{name}"
    return found


def _sample(name: str) -> re.Match[str] | None:
    return re.fullmatch(r"sample_?([ABC])(?:_\d{8})?\.(?:hdf|hdf5|h5)", name)


SOURCE = Source(
    info=INFO,
    volumes=volumes,
    folders=("cremi", "CREMI"),
    layout=LAYOUT,
    extras=EXTRAS,
    downloads=tuple(
        Download(
            urls=(
                f"https://cremi.org/static/data/sample_{sample}_20160501.hdf",
                f"https://huggingface.co/datasets/MedOtter/CREMI/resolve/main/train/sample_{sample}.hdf",
            ),
            file=f"sample_{sample}_20160501.hdf",
            sha256=SHA256[sample],
            size_bytes=SIZE_BYTES[sample],
        )
        for sample in FOLDS
    ),
)
