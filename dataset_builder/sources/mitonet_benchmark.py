"""MitoNet benchmark volumes (EMPIAR-10982): five tissues, mitochondria instances, never used to train MitoNet."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from dataset_builder.lazy import EveryId, check_grid, instance_ids
from dataset_builder.source import Download, Source
from em_bench_eval.errors import InputError
from em_bench_eval.schema import Organelle, SourceInfo, Volume, VoxelSize
from em_bench_eval.volume_io import open_volume

INFO = SourceInfo(
    name="mitonet_benchmark",
    title="MitoNet benchmarks (C. elegans, fly brain, muscle, HeLa, salivary gland)",
    citation="""@article{conrad2023,
  author = {Conrad, Ryan and Narayan, Kedar},
  title = {Instance segmentation of mitochondria in electron microscopy images with a generalist deep learning model
    trained on a diverse dataset},
  journal = {Cell Systems}, volume = {14}, number = {1}, year = {2023}, doi = {10.1016/j.cels.2022.12.006}
}""",
    licence="CC0-1.0",
    url="https://www.ebi.ac.uk/empiar/EMPIAR-10982/",
    redistributable=True,
    modality="volume EM",
    annotated={Organelle.MITO: "manual"},
    notes="Voxel sizes are the publication's (isotropic). The entry's lucchi_pp is source lucchipp here; its 100 2D "
    "TEM images state no pixel size and are not read. Held out as a whole: domain out.",
)
LAYOUT = """  mitonet_benchmark/
    NAME/NAME_em.tif      gray volume; NAME is c_elegans, fly_brain, glycolytic_muscle, hela_cell, salivary_gland
    NAME/NAME_mito.tif    one id per mitochondrion"""
TISSUES = {  # name: isotropic voxel, nm; cell type
    "c_elegans": (24.0, "C. elegans"),
    "fly_brain": (12.0, "Drosophila brain"),
    "glycolytic_muscle": (18.0, "glycolytic muscle"),
    "hela_cell": (15.0, "HeLa"),
    "salivary_gland": (15.0, "salivary gland"),
}
SHA256 = {
    "salivary_gland_em.tif": "222f50dd8fd801a84f118ce71bc735f5c54f1a3ca4d98315b27721ae499bff94",
    "salivary_gland_mito.tif": "95247d952a1dd0f7b37da1be95980b598b590e4777065c7cd877ab67cb63c5eb",
}
SERVER = "https://ftp.ebi.ac.uk/empiar/world_availability/10982/data/mito_benchmarks"


def volumes(raw: Path | None, options: Mapping[str, str]) -> Iterator[Volume]:
    """Yield the volume of every tissue that is there."""
    assert raw is not None, "Source.find returns the folder"
    there = [name for name in TISSUES if (raw / name).is_dir()]
    if not there:
        raise InputError(
            f"{raw} holds no MitoNet benchmark",
            found=", ".join(sorted(path.name for path in raw.iterdir())[:8]) or "an empty folder",
            expected=LAYOUT,
            remedy="em-bench fetch mitonet_benchmark --raw DIR",
        )
    for name in there:
        size_nm, cell_type = TISSUES[name]
        image, labels = (open_volume(raw / name / f"{name}_{kind}.tif") for kind in ("em", "mito"))
        check_grid(labels.location, image, labels)
        labelled = instance_ids(labels, labels.location)
        yield Volume(
            volume_id=f"mitonet_benchmark-{name}",
            image=image,
            instances=labelled,
            organelle_of=EveryId(Organelle.MITO, labelled),
            voxel_size=VoxelSize(size_nm, size_nm, size_nm),
            source="mitonet_benchmark",
            specimen=f"mitonet-{name}",
            cell_type=cell_type,
            modality=INFO.modality,
            annotated=INFO.annotated,
            domain="out",
            published_fold="test",
            provenance={"raw": f"{name}/{name}_em.tif", "labels": f"{name}/{name}_mito.tif"},
        )


SOURCE = Source(
    info=INFO,
    volumes=volumes,
    folders=("mitonet_benchmark", "mito_benchmarks"),
    layout=LAYOUT,
    downloads=tuple(
        Download(
            urls=(f"{SERVER}/{name}/{name}_{kind}.tif",),
            file=f"{name}/{name}_{kind}.tif",
            sha256=SHA256.get(f"{name}_{kind}.tif"),
        )
        for name in TISSUES
        for kind in ("em", "mito")
    ),
)
