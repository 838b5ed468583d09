"""UroCell: mouse urinary bladder umbrella cells, FIB-SEM; mitochondria with expert instances, Golgi."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

import lpa
from dataset_builder.lazy import Constant, check_grid, instance_ids, named_extras
from dataset_builder.source import Download, Option, Source
from em_bench_eval.errors import InputError, unknown_name
from em_bench_eval.schema import AnnotationType, Array3D, Organelle, SourceInfo, Volume, VoxelSize
from em_bench_eval.volume_io import open_volume

VOXEL_SIZE = VoxelSize(15.0, 16.0, 16.0)  # nm (z, y, x); the zooms in the files' headers are wrong
INFO = SourceInfo(
    name="urocell",
    title="UroCell (mouse urinary bladder, umbrella cells)",
    citation="""@article{zerovnikmekuc2020,
  author = {{\\v{Z}}erovnik Meku{\\v{c}}, Manca and Bohak, Ciril and Hudoklin, Samo and Kim, Byeong Hak and
    Romih, Rok and Kim, Min Young and Marolt, Matija},
  title = {Automatic segmentation of mitochondria and endolysosomes in volumetric electron microscopy data},
  journal = {Computers in Biology and Medicine}, volume = {119}, year = {2020},
  doi = {10.1016/j.compbiomed.2020.103693}
}""",
    licence="CC-BY-NC-SA-4.0",
    url="https://github.com/MancaZerovnikMekuc/UroCell",
    redistributable=True,
    modality="FIB-SEM",
    annotated={Organelle.MITO: "manual", Organelle.GOLGI: "manual+lpa"},
    voxel_size=VOXEL_SIZE,
    notes="Fusiform vesicles carry uroplakins to the surface: secretory, no endosomes, so an extra. Endolysosomes mix "
    "late endosomes with lysosomes, which the other sources keep apart from endosomes, so they are an extra too and "
    "endosomes unknown, unless lyso=endo. Golgi is annotated where its precise label exists; golgi=approximate takes "
    "the coarse outlines instead. The arrays of one block agree voxel by voxel although the orientations in their "
    "headers differ: never reorient them. Without data/ a block is label-only: it is published as a volume "
    "of labels and makes no rows. Some rows of two blocks hold no data and are an ignore region.",
)
LAYOUT = """  urocell/
    data/BLOCK.nii.gz                      gray, 256x256x256; BLOCK is fib1-0-0-0, ...; may be missing: label-only
    mito/instance/BLOCK.nii.gz             one id per mitochondrion
    golgi/precise/[binary/]BLOCK.nii.gz    not 0: inside; golgi/approximate/[binary/] likewise
    lyso/[binary/|instance/]BLOCK.nii.gz, fv/instance/BLOCK.nii.gz   extras"""
EXTRAS = {"lyso": "endolysosomes, mask", "fv": "fusiform vesicles, instance ids"}
PLACES = {  # where the repository has kept each label over the years, newest first
    "mito": ("mito/instance",),
    "golgi precise": ("golgi/precise/binary", "golgi/precise"),
    "golgi approximate": ("golgi/approximate/binary", "golgi/approximate"),
    "lyso": ("lyso/instance", "lyso/binary", "lyso"),
    "fv": ("fv/instance", "fv/binary"),
}
ROWS_WITHOUT_DATA = {"fib1-0-0-0": 12, "fib1-1-0-3": 54}  # first rows along y
CHOICES = {"golgi": ("precise", "approximate"), "lyso": ("extra", "endo")}


def volumes(raw: Path | None, options: Mapping[str, str]) -> Iterator[Volume]:
    """Yield every block that has a label of one of the five organelles; options are checked at once."""
    assert raw is not None, "Source.find returns the folder"
    for option, allowed in CHOICES.items():
        if options[option] not in allowed:
            raise unknown_name(f"value of option {option} of source urocell", options[option], allowed)
    names = {path.name for place in [("data",), *PLACES.values()] for f in place for path in (raw / f).glob("*.nii.gz")}
    if not names:
        raise InputError(
            f"{raw} holds no UroCell block",
            found=", ".join(sorted(path.name for path in raw.iterdir())[:8]) or "an empty folder",
            expected=f"NIfTI files, as in\n{LAYOUT}",
            remedy="em-bench fetch urocell --raw DIR",
        )
    return (
        _volume(raw, block, labels)
        for block in sorted(name.removesuffix(".nii.gz") for name in names)
        if (labels := _labels(raw, block, options))
    )


def _labels(raw: Path, block: str, options: Mapping[str, str]) -> dict[Organelle, Path]:
    """Find the label file of each annotated organelle of a block."""
    wanted = {Organelle.MITO: "mito", Organelle.GOLGI: f"golgi {options['golgi']}"}
    if options["lyso"] == "endo":
        wanted[Organelle.ENDO] = "lyso"
    found = {organelle: _find(raw, label, block) for organelle, label in wanted.items()}
    return {organelle: path for organelle, path in found.items() if path is not None}


def _find(raw: Path, label: str, block: str) -> Path | None:
    places = (raw / folder / f"{block}.nii.gz" for folder in PLACES[label])
    return next((path for path in places if path.is_file()), None)


def _volume(raw: Path, block: str, labels: Mapping[Organelle, Path]) -> Volume:
    instances, organelle_of = _merge(labels)
    picture = raw / "data" / f"{block}.nii.gz"
    image: Array3D = open_volume(picture) if picture.is_file() else Constant(128, instances.shape, np.uint8)
    check_grid(f"{raw}, block {block}", image, instances)
    ignore: Array3D | None = None
    if block in ROWS_WITHOUT_DATA:
        ignore = np.zeros(instances.shape, np.bool_)
        ignore[:, : ROWS_WITHOUT_DATA[block]] = True
    found = {name: path for name in EXTRAS if (path := _find(raw, name, block)) and path not in labels.values()}
    extras, places = named_extras(image, {name: _extra(path, raw) for name, path in found.items()})
    annotated: dict[Organelle, AnnotationType] = {
        organelle: "manual" if organelle is Organelle.MITO else "manual+lpa" for organelle in labels
    }
    return Volume(
        volume_id=f"urocell-{block}",
        image=image,
        instances=instances,
        organelle_of=organelle_of,
        ignore=ignore,
        has_image=picture.is_file(),
        voxel_size=VOXEL_SIZE,
        source="urocell",
        specimen="urocell-bladder",
        cell_type="mouse bladder umbrella cell",
        modality=INFO.modality,
        annotated=annotated,
        provenance={
            "image": f"data/{block}.nii.gz" if picture.is_file() else "none",
            "labels": ", ".join(path.relative_to(raw).as_posix() for path in labels.values()),
            **places,
        },
        extras=extras,
    )


def _extra(path: Path, raw: Path) -> tuple[Array3D, str]:
    return instance_ids(open_volume(path), str(path)), path.relative_to(raw).as_posix()


def _merge(labels: Mapping[Organelle, Path]) -> tuple[npt.NDArray[np.uint32], dict[int, Organelle]]:
    """Join expert ids of mitochondria and the components of masks to one id map; where they overlap the first wins."""
    merged: npt.NDArray[np.uint32] | None = None
    organelle_of: dict[int, Organelle] = {}
    for organelle, path in labels.items():
        ids = np.asarray(instance_ids(open_volume(path), str(path)))
        if organelle is not Organelle.MITO:
            semantic = np.where(ids > 0, organelle.label_id, 0).astype(np.uint8)
            ids = lpa.label(semantic, lpa.DEFAULT_CONNECTIVITY, relabel="compact").astype(np.uint32)
        if merged is None:
            merged = np.zeros(ids.shape, np.uint32)
        elif merged.shape != ids.shape:
            raise InputError(
                f"{path} does not belong to its block",
                found=f"{ids.shape} voxels (z, y, x)",
                expected=f"{merged.shape}, as the other labels",
                remedy="download the label again",
            )
        offset = max(organelle_of, default=0)
        ids = np.where((ids > 0) & (merged == 0), ids + np.uint32(offset), np.uint32(0))
        merged = np.where(ids > 0, ids, merged).astype(np.uint32)
        organelle_of.update(dict.fromkeys(np.unique(ids[ids > 0]).tolist(), organelle))
    assert merged is not None, "called with at least one label"
    return merged, organelle_of


SOURCE = Source(
    info=INFO,
    volumes=volumes,
    folders=("urocell", "urocell_labels", "UroCell", "UroCell-master"),
    layout=LAYOUT,
    settings={
        "golgi": Option("precise", "which Golgi labels: precise, or approximate, coarse outlines"),
        "lyso": Option("extra", "endolysosomes: extra, beside the five organelles, or endo, counted as endosomes"),
    },
    extras=EXTRAS,
    downloads=(
        Download(
            urls=("https://github.com/MancaZerovnikMekuc/UroCell/archive/refs/heads/master.zip",),
            file="urocell.zip",
            sha256="a48cf31b06114d7def642742b4fcbe76103483c069122abe10f377d71a1acabc",
            unpack=True,
            strip="UroCell-master",
        ),
    ),
)
