"""Tiny raw data in the published layout of the further public sources, written on the fly.

Every writer gets the folder for raw data and returns the source's folder in it. Names, nesting, types and label values
are those that the authors publish, as far as they are known; ``OPTIONS`` holds what a build of the replica needs.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import fake
import h5py
import nibabel
import numpy as np
import tifffile
from PIL import Image
from scipy import ndimage

SHAPE = (12, 40, 48)  # (z, y, x)


def instances(seed: int, shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    ids: np.ndarray = ndimage.label(fake.blobs(shape, seed))[0]
    return ids


def betaseg(raw: Path) -> Path:
    folder = raw / "betaseg"
    for seed, cell in enumerate(("high_c1", "high_c2")):
        inside = folder / "download" / cell
        inside.mkdir(parents=True)
        mito, golgi = fake.blobs(SHAPE, seed), fake.blobs(SHAPE, seed + 10)
        nucleus = np.zeros(SHAPE, bool)
        nucleus[:, 20:, 20:] = True
        gray = fake.em_like(mito, seed).astype(np.uint16) * 100 + 3000
        files = {
            "source": gray,
            "mitochondria_mask": mito.astype(np.uint8) * 255,
            "nucleus_mask": nucleus.astype(np.uint8),
            "golgi_corrected": golgi.astype(np.uint16),
            "granules": instances(seed + 20).astype(np.uint16),
            "microtubules": instances(seed + 30).astype(np.uint16),
            "centrioles": np.zeros(SHAPE, np.uint8),
            "membrane_full_mask": np.ones(SHAPE, np.uint8),
        }
        for name, array in files.items():
            tifffile.imwrite(inside / f"{cell}_{name}.tif", array)
    return folder


def nifti(path: Path, array: np.ndarray, signs: tuple[int, int, int] = (-1, -1, 1)) -> None:
    """Store a ``(z, y, x)`` array as the UroCell files are: zooms of 1, and orientations that differ between files."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array.transpose(2, 1, 0), np.diag([*signs, 1])), path)


def urocell(raw: Path, with_images: bool = True) -> Path:
    folder = raw / "urocell"
    shape = (16, 64, 32)
    for seed, block in enumerate(("fib1-0-0-0", "fib1-2-2-3", "fib1-4-3-0")):
        mito, golgi = instances(seed, shape), fake.blobs(shape, seed + 10, 0.1)
        if with_images:
            nifti(folder / "data" / f"{block}.nii.gz", fake.em_like(mito > 0, seed).astype(np.float64))
        if block != "fib1-2-2-3":
            nifti(folder / "mito" / "instance" / f"{block}.nii.gz", mito.astype(np.int16))
            nifti(folder / "fv" / "instance" / f"{block}.nii.gz", instances(seed + 20, shape).astype(float), (-1, 1, 1))
            lyso = fake.blobs(shape, seed + 30, 0.1) & (mito == 0)
            nifti(folder / "lyso" / "binary" / f"{block}.nii.gz", lyso.astype(np.float32))
        if block != "fib1-0-0-0":
            nifti(folder / "golgi" / "precise" / "binary" / f"{block}.nii.gz", golgi.astype(np.int16))
        nifti(folder / "golgi" / "approximate" / "binary" / f"{block}.nii.gz", golgi.astype(np.int8), (-1, 1, 1))
    return folder


def cremi(raw: Path) -> Path:
    folder = raw / "cremi"
    folder.mkdir(parents=True)
    for seed, sample in enumerate("ABC"):
        neurons = instances(seed).astype(np.uint64)
        clefts = np.where(fake.blobs(SHAPE, seed + 10, 0.05), np.uint64(7), np.uint64(2**64 - 1))
        with h5py.File(folder / f"sample_{sample}_20160501.hdf", "w") as file:
            for name, array in (("raw", fake.em_like(neurons > 0, seed)), ("neuron_ids", neurons), ("clefts", clefts)):
                path = "volumes/raw" if name == "raw" else f"volumes/labels/{name}"
                dataset = file.create_dataset(path, data=array, compression="gzip", chunks=(4, 20, 24))
                dataset.attrs["resolution"] = np.array([40.0, 4.0, 4.0])
    return folder


def guay_platelets(raw: Path) -> Path:
    folder = raw / "guay_platelets"
    folder.mkdir(parents=True)
    for seed, part in enumerate(("train", "eval", "test")):
        labels = np.zeros(SHAPE, np.uint16)
        labels[:, 5:, 5:] = 1
        for value in (3, 4, 5, 6, 2):
            labels[fake.blobs(SHAPE, seed + 10 * value, 0.08) & (labels > 0)] = value
        gray = fake.em_like(labels == 2, seed).astype(np.int16) * 64 - 8000
        tifffile.imwrite(folder / f"{part}-images.tif", gray)
        tifffile.imwrite(folder / f"{part}-labels.tif", labels)
    return folder


def kasthuripp(raw: Path) -> Path:
    folder = raw / "kasthuripp"
    for seed, part in enumerate(("Train", "Test")):
        mask = fake.blobs(SHAPE, seed)
        labels = np.where(mask, 255, 0).astype(np.uint8)
        labels[:, :6] = 2
        images = fake.em_like(mask, seed)
        images[:, :6] = 0
        for z, (image, label) in enumerate(zip(images, labels, strict=True)):
            fake.save(folder / f"{part}_In" / f"mask{z:04d}.png", image)
            fake.save(folder / f"{part}_Out" / f"mask{z:04d}.png", np.stack([label] * 3, axis=-1))
    return folder


def perez(raw: Path) -> Path:
    folder = raw / "perez"
    for images, labels, first in (("training_images", "training_labels", 1), ("test_images", "ground_truth", 10)):
        for seed, name in enumerate(("mitochondria", "nuclei", "lysosomes", "nucleoli")):
            for number in (first, first + 1):
                mask = fake.blobs((1, 40, 48), 100 * seed + number)[0]
                fake.save(folder / images / name / f"{name}_orig.{number:03d}.png", fake.em_like(mask, number))
                fake.save(folder / labels / name / f"{name}_gt.{number:03d}.png", mask.astype(np.uint8))
    return folder


def mitoem(raw: Path, sample: str = "rat") -> Path:
    folder = raw / "mitoem"
    shape = (14, 40, 48)
    ids = instances(1, shape).astype(np.uint16)
    for z, image in enumerate(fake.em_like(ids > 0, 1)):
        fake.save(folder / sample / "im" / f"im{z:04d}.png", image)
    for name, first, last in (("mito-train-v2", 0, 8), ("mito-val-v2", 8, 12)):
        (folder / sample / name).mkdir()
        for z in range(first, last):
            tifffile.imwrite(folder / sample / name / f"seg{z:04d}.tif", ids[z])
    return folder


def mitonet_benchmark(raw: Path) -> Path:
    folder = raw / "mitonet_benchmark"
    for seed, name in enumerate(("c_elegans", "salivary_gland")):
        (folder / name).mkdir(parents=True)
        ids = instances(seed).astype(np.uint32)
        tifffile.imwrite(folder / name / f"{name}_em.tif", fake.em_like(ids > 0, seed))
        tifffile.imwrite(folder / name / f"{name}_mito.tif", ids)
    return folder


def cem_mitolab(raw: Path) -> Path:
    folder = raw / "cem_mitolab"
    for seed, name in enumerate(("kidney_sbf", "plant_fib", "kasthuri_atum")):
        for kind in ("images", "masks"):
            (folder / name / kind).mkdir(parents=True)
        for number in range(2):
            ids = instances(10 * seed + number, (1, 40, 48))[0].astype(np.uint16)
            tifffile.imwrite(folder / name / "images" / f"crop-{number}.tiff", fake.em_like(ids > 0, number))
            tifffile.imwrite(folder / name / "masks" / f"crop-{number}.tiff", ids)
    (raw / "cem_pixel_nm.csv").write_text("folder,pixel_nm\nkidney_sbf,8.5\nplant_fib,\n")
    return folder


def nucmm(raw: Path) -> Path:
    folder = raw / "nucmm"
    for seed, (part, place) in enumerate((("train", "0000_0576_0768"), ("val", "0000_0640_0832"))):
        ids = instances(seed).astype(np.uint16)
        for kind, start, array in (("Image", "img", fake.em_like(ids > 0, seed)), ("Label", "seg", ids)):
            path = folder / "Zebrafish (NucMM-Z)" / kind / part / f"{start}_{place}.h5"
            path.parent.mkdir(parents=True)
            with h5py.File(path, "w") as file:
                file.create_dataset("main", data=array)
    return folder


def lucchipp_archive(raw: Path) -> Path:
    """The authors' own archive; ``fake.lucchipp`` writes the other layout."""
    folder = raw / "lucchipp"
    for seed, part in enumerate(("Train", "Test")):
        mask = fake.blobs(SHAPE, seed)
        for z, (image, label) in enumerate(zip(fake.em_like(mask, seed), mask, strict=True)):
            fake.save(folder / f"{part}_In" / f"mask{z:04d}.png", image)
            fake.save(folder / f"{part}_Out" / f"{z}.png", label.astype(np.uint8) * 255)
            white = Image.open(folder / f"{part}_Out" / f"{z}.png")
            white.convert("RGBA").save(folder / f"{part}_Out" / f"{z}.png")
    return folder


WRITERS: dict[str, Callable[[Path], Path]] = {
    "betaseg": betaseg,
    "cem_mitolab": cem_mitolab,
    "cremi": cremi,
    "guay_platelets": guay_platelets,
    "kasthuripp": kasthuripp,
    "mitoem": mitoem,
    "mitonet_benchmark": mitonet_benchmark,
    "nucmm": nucmm,
    "perez": perez,
    "urocell": urocell,
}
OPTIONS: dict[str, Callable[[Path], dict[str, str]]] = {
    "cem_mitolab": lambda raw: {"pixel_nm": str(raw / "cem_pixel_nm.csv")},
    "perez": lambda raw: {"mitochondria_nm": "7.6", "nuclei_nm": "30.4", "lysosomes_nm": "7.6"},
}
