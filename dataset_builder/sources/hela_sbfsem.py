"""HeLa cell, SBF-SEM, 10 nm in plane: hand-drawn mitochondria of the central cell, and nuclei where converted."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from skimage.morphology import convex_hull_image

from dataset_builder.source import Download, Source
from dataset_builder.stack import ImageStack, gray_image, list_slices, read_gray
from em_bench_eval.errors import InputError
from em_bench_eval.schema import AnnotationType, Organelle, SourceInfo, Volume, VoxelSize

VOXEL_SIZE = VoxelSize(50.0, 10.0, 10.0)  # nm (z, y, x), nominal
INFO = SourceInfo(
    name="hela_sbfsem",
    title="HeLa cells, SBF-SEM (EMPIAR-10094)",
    citation="""@misc{empiar10094,
  author = {Iudin, Andrii and Korir, Paul K. and others}, title = {{SBF-SEM} of {HeLa} cells}, publisher = {EMPIAR},
  note = {EMPIAR-10094}
}
@article{karabag2021,
  author = {Karaba{\\u{g}}, Cefa and Jones, Martin L. and Reyes-Aldasoro, Constantino Carlos},
  title = {Volumetric Semantic Instance Segmentation of the Plasma Membrane of {HeLa} Cells},
  journal = {Journal of Imaging}, volume = {7}, number = {6}, year = {2021}
}
@article{britopacheco2023,
  author = {Brito-Pacheco, D. and Karaba{\\u{g}}, C. and Brito-Loeza, C. and Giannopoulos, P. and
    Reyes-Aldasoro, C. C.},
  title = {Relationship Between Irregularities of the Nuclear Envelope and Mitochondria in {HeLa} cells Observed with
    Electron Microscopy},
  journal = {bioRxiv}, year = {2023}, doi = {10.1101/2023.11.14.567016}
}""",
    licence="CC0-1.0 (images), GPL-3.0 (labels)",
    url="https://www.ebi.ac.uk/empiar/EMPIAR-10094/",
    redistributable=True,
    modality="SBF-SEM",
    annotated={Organelle.MITO: "manual", Organelle.NUCLEUS: "manual"},
    voxel_size=VOXEL_SIZE,
    notes="Each labelled slice is a volume of its own: few are adjacent. Mitochondria are drawn in the central cell "
    "only: everything farther than 500 nm from the convex hull of its mitochondria is an ignore region. em-bench fetch "
    "gets the nine slices with drawn mitochondria; nuclei are published elsewhere and are read only where they were "
    "converted by hand.",
)
LAYOUT = """  hela_sbfsem/
    OriginalImages/ROI_..._zNNNN.tif   8-bit gray
    GT_ROI_..._zNNNN.mat               groundTruthM (y, x, k): the k-th mitochondrion of the central cell has value k
    GT2_ROI_..._zNNNN.mat              the same, of further slices
  or converted: hela_sbfsem_mito2d/
    raw/zNNNN.png                      8-bit gray
    mito_instance/zNNNN.png            16 bit, one id per mitochondrion of the central cell
    nucleus_instance/zNNNN.png         16 bit, one id per nucleus; only for some slices"""
PUBLISHED = "https://raw.githubusercontent.com/reyesaldasoro/MitoEM/main/CODE"
REGION = "ROI_6005_4739_81"  # row, column and slice of its centre in EMPIAR-10094
DRAWN = {1: "GT", 2: "GT2", 4: "GT2", 26: "GT2", 28: "GT2", 30: "GT", 60: "GT", 116: "GT", 150: "GT"}  # slice: drawing
ANNOTATED_MARGIN_NM = 500.0


def merge_instances(
    files: Mapping[Organelle, Path], shape: tuple[int, ...]
) -> tuple[npt.NDArray[np.uint32], dict[int, Organelle]]:
    """Merge one id map per organelle into one ``(y, x)`` map with ids 1..N; where they overlap the first wins."""
    merged = np.zeros(shape, np.uint32)
    organelle_of: dict[int, Organelle] = {}
    for organelle, path in files.items():
        ids = drawn_instances(path) if path.suffix == ".mat" else read_gray(path)
        if ids.shape != shape or ids.dtype.kind not in "iu":
            raise InputError(
                f"{path} does not belong to its image",
                found=f"{ids.shape} (y, x), {ids.dtype}",
                expected=f"{shape}, one integer id per instance",
                remedy="download the label again",
            )
        values, compact = np.unique(ids, return_inverse=True)
        names = np.where(values > 0, len(organelle_of) + np.cumsum(values > 0), 0).astype(np.uint32)
        merged = np.where(merged > 0, merged, names[compact.reshape(shape)])
        organelle_of.update(dict.fromkeys(names[names > 0].tolist(), organelle))
    return merged, organelle_of


def drawn_instances(path: Path) -> npt.NDArray[np.uint16]:
    """Read a MATLAB file of one layer for each drawn mitochondrion; where two overlap the later drawn is on top."""
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    try:
        layers = loadmat(path, variable_names=["groundTruthM"])["groundTruthM"]
    except (OSError, KeyError, TypeError, ValueError, NotImplementedError, zlib.error, MatReadError) as error:
        raise InputError(
            f"{path} holds no drawn mitochondria",
            found=f"{path.stat().st_size} bytes; {type(error).__name__}: {error}",
            expected="a MATLAB file with groundTruthM (y, x, layer)",
            remedy="download the label again",
        ) from error
    return np.asarray(layers.reshape(*layers.shape[:2], -1).max(axis=2).astype(np.uint16))


def far_from(drawn: npt.NDArray[np.bool_], pixel_nm: float) -> npt.NDArray[np.bool_]:
    """Mark what lies farther than the margin from the convex hull of the drawn instances, ``(y, x)``."""
    if not drawn.any():
        return np.ones(drawn.shape, bool)
    distance_nm = ndimage.distance_transform_edt(~convex_hull_image(drawn), sampling=pixel_nm)
    return np.asarray(distance_nm > ANNOTATED_MARGIN_NM)


def volumes(raw: Path | None, options: Mapping[str, str]) -> Iterator[Volume]:
    """Yield every slice with drawn mitochondria as a volume of one slice."""
    assert raw is not None, "Source.find returns the folder"
    if (raw / "OriginalImages").is_dir():
        images = list_slices(raw / "OriginalImages")
        drawn = {number: raw / f"{drawing}_{REGION}_z{number:04d}.mat" for number, drawing in DRAWN.items()}
        mito = {number: path for number, path in drawn.items() if path.is_file()}
    else:
        images, mito = list_slices(raw / "raw"), list_slices(raw / "mito_instance")
    nuclei = list_slices(raw / "nucleus_instance") if (raw / "nucleus_instance").is_dir() else {}
    for number, mito_path in mito.items():
        if number not in images:
            raise InputError(
                f"{mito_path} has no image",
                found=f"images numbered {', '.join(map(str, list(images)[:8]))}",
                expected=f"a file numbered {number} beside them",
                remedy="download the missing image",
            )
        files = {Organelle.MITO: mito_path}
        if number in nuclei:
            files[Organelle.NUCLEUS] = nuclei[number]
        image = ImageStack([images[number]], np.uint8, gray_image)
        instances, organelle_of = merge_instances(files, image.shape[1:])
        in_central_cell = [id_ for id_, organelle in organelle_of.items() if organelle is Organelle.MITO]
        ignore = far_from(np.isin(instances, in_central_cell), pixel_nm=VOXEL_SIZE.x)
        annotated: dict[Organelle, AnnotationType] = dict.fromkeys(files, "manual")
        yield Volume(
            volume_id=f"hela_sbfsem-z{number:04d}",
            image=image,
            instances=instances[np.newaxis],
            organelle_of=organelle_of,
            ignore=ignore[np.newaxis],
            voxel_size=VOXEL_SIZE,
            source="hela_sbfsem",
            specimen="empiar-10094-hela",
            cell_type="HeLa",
            modality=INFO.modality,
            annotated=annotated,
            domain="out",
            provenance={
                "raw": images[number].name,
                "labels": ", ".join(path.relative_to(raw).as_posix() for path in files.values()),
            },
        )


SOURCE = Source(
    info=INFO,
    volumes=volumes,
    folders=("hela_sbfsem_mito2d", "hela_sbfsem"),
    layout=LAYOUT,
    downloads=tuple(
        Download(urls=(f"{PUBLISHED}/{file}",), file=file)
        for number, drawing in DRAWN.items()
        for file in (f"OriginalImages/{REGION}_z{number:04d}.tif", f"{drawing}_{REGION}_z{number:04d}.mat")
    ),
)
