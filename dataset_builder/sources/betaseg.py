"""BetaSeg: mouse pancreatic beta cells, FIB-SEM, 16 nm isotropic; mitochondria, nucleus, Golgi."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from dataset_builder.lazy import check_grid, inside, instance_ids, masks_to_semantic, named_extras
from dataset_builder.source import Download, Source
from em_bench_eval.errors import InputError
from em_bench_eval.schema import Array3D, Organelle, SourceInfo, Volume, VoxelSize
from em_bench_eval.volume_io import open_volume

VOXEL_SIZE = VoxelSize(16.0, 16.0, 16.0)  # nm (z, y, x): raw 4 nm, published binned 4 times
INFO = SourceInfo(
    name="betaseg",
    title="BetaSeg (mouse pancreatic islets, beta cells)",
    citation="""@article{muller2021,
  author = {M{\\"u}ller, Andreas and Schmidt, Deborah and Xu, C. Shan and Pang, Song and D'Costa, Joyson Verner and
    Kretschmar, Susanne and M{\\"u}nster, Carla and Kurth, Thomas and Jug, Florian and Weigert, Martin and
    Hess, Harald F. and Solimena, Michele},
  title = {{3D} {FIB-SEM} reconstruction of microtubule--organelle interaction in whole primary mouse {$\\beta$} cells},
  journal = {Journal of Cell Biology}, volume = {220}, number = {2}, year = {2021}, doi = {10.1083/jcb.202010039}
}""",
    licence="none stated",
    url="https://betaseg.github.io/",
    redistributable=False,
    modality="FIB-SEM",
    annotated=dict.fromkeys((Organelle.GOLGI, Organelle.MITO, Organelle.NUCLEUS), "refined+lpa"),
    voxel_size=VOXEL_SIZE,
    notes="No ER and no endosomes were labelled: both are unknown here, not background. Insulin granules are no "
    "endosomes. Masks are semantic; instance ids are derived. Where masks overlap, Golgi goes before mitochondria "
    "before nucleus. Same publication, and so one specimen group, as OpenOrganelle jrc_mus-pancreas-1 to -3.",
)
LAYOUT = """  betaseg/
    download/                              or the cells' folders directly
      CELL/CELL_source.tif                 gray volume, all pages in one file; CELL is high_c1, high_c2, ...
      CELL/CELL_mitochondria_mask.tif      not 0: inside; the same for the others
      CELL/CELL_nucleus_mask.tif
      CELL/CELL_golgi_corrected.tif
      CELL/CELL_granules.tif, _microtubules.tif, _centrioles.tif, _membrane_full_mask.tif (extras, optional)"""
MASKS = {  # in the order of precedence
    Organelle.GOLGI: "golgi_corrected",
    Organelle.MITO: "mitochondria_mask",
    Organelle.NUCLEUS: "nucleus_mask",
}
EXTRAS = {
    "granules": "insulin secretory granules, instance ids",
    "microtubules": "instance ids",
    "centrioles": "mask",
    "membrane_full_mask": "the cell up to its plasma membrane, mask",
}
MASKED_EXTRAS = ("centrioles", "membrane_full_mask")


def volumes(raw: Path | None, options: Mapping[str, str]) -> Iterator[Volume]:
    """Yield one volume per cell."""
    assert raw is not None, "Source.find returns the folder"
    images = sorted([*raw.glob("*/*_source.tif"), *raw.glob("download/*/*_source.tif")])
    if not images:
        raise InputError(
            f"{raw} holds no BetaSeg cell",
            found=", ".join(sorted(path.name for path in raw.iterdir())[:8]) or "an empty folder",
            expected=f"CELL/CELL_source.tif, as in\n{LAYOUT}",
            remedy="em-bench fetch betaseg --raw DIR, or unpack the published ZIP file there",
        )
    for image in images:
        cell = image.name.removesuffix("_source.tif")
        paths = {organelle: image.with_name(f"{cell}_{name}.tif") for organelle, name in MASKS.items()}
        missing = [path.name for path in paths.values() if not path.is_file()]
        if missing:
            raise InputError(
                f"{image.parent} is incomplete",
                found=f"no {', '.join(missing)}",
                expected="the masks of mitochondria, nucleus and Golgi beside the image",
                remedy="unpack the published ZIP file again",
            )
        picture, masks = open_volume(image), {organelle: open_volume(path) for organelle, path in paths.items()}
        check_grid(str(image.parent), picture, *masks.values())
        found = {name: path for name in EXTRAS if (path := image.with_name(f"{cell}_{name}.tif")).is_file()}
        extras, places = named_extras(picture, {name: (_extra(name, path), path.name) for name, path in found.items()})
        yield Volume(
            volume_id=f"betaseg-{cell}",
            image=picture,
            semantic=masks_to_semantic(masks),
            voxel_size=VOXEL_SIZE,
            source="betaseg",
            specimen="mus-pancreas-islets",
            cell_type="mouse pancreatic beta cell",
            modality=INFO.modality,
            annotated=INFO.annotated,
            provenance={
                "raw": image.name,
                "labels": ", ".join(path.name for path in paths.values()),
                **places,
            },
            extras=extras,
        )


def _extra(name: str, path: Path) -> Array3D:
    labels = open_volume(path)
    return inside(labels) if name in MASKED_EXTRAS else instance_ids(labels, str(path))


SOURCE = Source(
    info=INFO,
    volumes=volumes,
    folders=("betaseg",),
    layout=LAYOUT,
    extras=EXTRAS,
    downloads=(
        Download(
            urls=("https://cloud.mpi-cbg.de/index.php/s/UJopHTRuh6f4wR8/download",),
            file="betaseg.zip",
            sha256="4872eec0211721dc224acee319c27c4f51c190adc36004e3d5bb60dfcd67eb7b",
            unpack=True,
        ),
    ),
)
