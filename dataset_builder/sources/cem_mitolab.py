"""CEM-MitoLab (EMPIAR-11037): about 20,000 small images of many tissues and microscopes, mitochondria instances."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from dataset_builder.lazy import EveryId, check_grid, instance_ids
from dataset_builder.source import Download, Option, Source
from em_bench_eval.errors import InputError
from em_bench_eval.schema import Organelle, SourceInfo, Volume, VoxelSize
from em_bench_eval.volume_io import open_volume

INFO = SourceInfo(
    name="cem_mitolab",
    title="CEM-MitoLab",
    citation="""@article{conrad2023,
  author = {Conrad, Ryan and Narayan, Kedar},
  title = {Instance segmentation of mitochondria in electron microscopy images with a generalist deep learning model
    trained on a diverse dataset},
  journal = {Cell Systems}, volume = {14}, number = {1}, year = {2023}, doi = {10.1016/j.cels.2022.12.006}
}""",
    licence="CC0-1.0",
    url="https://www.ebi.ac.uk/empiar/EMPIAR-11037/",
    redistributable=True,
    modality="mixed EM",
    annotated={Organelle.MITO: "refined"},
    notes="Images of one folder are crops of one acquisition, not a stack: each is a volume of its own, each folder a "
    "specimen group. The images state no pixel size: option pixel_nm names a CSV file with the columns folder and "
    "pixel_nm (the entry's metadata sheet has the numbers); folders without a line are left out, and so are those "
    "whose names show that other sources here hold the same specimen (option leave_out).",
)
LAYOUT = """  cem_mitolab/
    FOLDER/images/NAME.tiff   8-bit gray, one folder per acquisition
    FOLDER/masks/NAME.tiff    one id per mitochondrion"""
LEAVE_OUT = ("bleck", "cremi", "guay", "jrc_", "kasthuri", "lucchi", "mitoem", "openorganelle", "perez", "urocell")


def volumes(raw: Path | None, options: Mapping[str, str]) -> Iterator[Volume]:
    """Yield every image whose pixel size is known; options are checked at once."""
    assert raw is not None, "Source.find returns the folder"
    folders = sorted(path for path in raw.iterdir() if (path / "images").is_dir())
    if not folders:
        raise InputError(
            f"{raw} holds no CEM-MitoLab folders",
            found=", ".join(sorted(path.name for path in raw.iterdir())[:8]) or "an empty folder",
            expected=LAYOUT,
            remedy="em-bench fetch cem_mitolab --raw DIR",
        )
    words = [word.strip().lower() for word in options["leave_out"].split(",") if word.strip()]
    folders = [folder for folder in folders if not any(word in folder.name.lower() for word in words)]
    pixel_nm = _pixel_sizes(options["pixel_nm"], [folder.name for folder in folders])
    return (volume for folder in folders if folder.name in pixel_nm for volume in _crops(folder, pixel_nm[folder.name]))


def _crops(folder: Path, pixel_nm: float) -> Iterator[Volume]:
    images, masks = ({path.name: path for path in _tiffs(folder / kind)} for kind in ("images", "masks"))
    if unpaired := sorted(set(images) ^ set(masks)):
        raise InputError(
            f"{folder} has images without masks, or masks without images",
            found=", ".join(unpaired[:5]),
            expected="the same names in images/ and masks/",
            remedy="unpack the published ZIP file again",
        )
    for name, path in images.items():
        image, labels = open_volume(path), open_volume(masks[name])
        check_grid(labels.location, image, labels)
        labelled = instance_ids(labels, labels.location)
        yield Volume(
            volume_id=re.sub(r"[^A-Za-z0-9_.-]", "_", f"cem_mitolab-{folder.name}-{path.stem}"),
            image=image,
            instances=labelled,
            organelle_of=EveryId(Organelle.MITO, labelled),
            voxel_size=VoxelSize(pixel_nm, pixel_nm, pixel_nm),
            source="cem_mitolab",
            specimen=f"cem_mitolab-{folder.name}",
            cell_type="not stated",
            modality=INFO.modality,
            annotated=INFO.annotated,
            provenance={"raw": f"{folder.name}/images/{name}", "labels": f"{folder.name}/masks/{name}"},
        )


def _tiffs(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*.tif*") if not path.name.startswith("."))


def _pixel_sizes(table: str, folders: list[str]) -> dict[str, float]:
    """Read the user's CSV file."""
    example = "\n".join(["folder,pixel_nm", *(f"{name}," for name in folders[:3]), "..."])
    if not table:
        raise InputError(
            "source cem_mitolab needs pixel sizes",
            found="none: the published images state none",
            expected=f"--option cem_mitolab.pixel_nm=FILE.csv with\n{example}",
            remedy="take the numbers from the metadata sheet of EMPIAR-11037; folders without one are left out",
        )
    try:
        with Path(table).open(newline="") as file:
            rows = [(row["folder"], row["pixel_nm"]) for row in csv.DictReader(file)]
        sizes = {folder: float(size) for folder, size in rows if size and size.strip()}
    except (OSError, KeyError, ValueError) as error:
        raise InputError(f"{table} is no table of pixel sizes", found=repr(error), expected=example) from error
    strangers = sorted(set(sizes) - set(folders))
    if strangers or not sizes or min(sizes.values()) <= 0:
        raise InputError(
            f"{table} does not fit the download",
            found=f"folders that are not there: {', '.join(strangers[:5])}" if strangers else "no positive size",
            expected=f"some of {', '.join(folders[:8])}",
        )
    return sizes


SOURCE = Source(
    info=INFO,
    volumes=volumes,
    folders=("cem_mitolab",),
    layout=LAYOUT,
    settings={
        "pixel_nm": Option("", "needed: a CSV file with the columns folder and pixel_nm; other folders are left out"),
        "leave_out": Option(",".join(LEAVE_OUT), "words with commas between: folders named so are left out"),
    },
    downloads=(
        Download(
            urls=("https://ftp.ebi.ac.uk/empiar/world_availability/11037/data/cem_mitolab.zip",),
            file="cem_mitolab.zip",
            unpack=True,
            strip="cem_mitolab",
        ),
    ),
)
