"""From a dataset row to what a network sees: Scale Alignment, normalisation, semantic and distance targets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from em_bench_eval.align import align_image, align_instances, align_mask
from em_bench_eval.errors import unknown_name
from em_bench_eval.rows import LabelledImage
from em_bench_eval.schema import ORGANELLES

IGNORE = 255  # equals baselines.losses.IGNORE; repeated because this file imports no torch (a test holds it)


@dataclass(frozen=True)
class AlignedImage:
    """A training image at the aligned pixel size, compact enough to keep many in memory (6 bytes a pixel)."""

    image: npt.NDArray[np.float16]  # (y, x), normalised
    semantic: npt.NDArray[np.uint8]  # (y, x), 0, Organelle.label_id or IGNORE
    instances: npt.NDArray[np.uint16]  # (y, x), ids of the row
    distance: npt.NDArray[np.uint8]  # (y, x), 255 = innermost pixel of its instance, 0 = outside

    @property
    def nbytes(self) -> int:
        """Memory held by the arrays."""
        return self.image.nbytes + self.semantic.nbytes + self.instances.nbytes + self.distance.nbytes


@dataclass(frozen=True)
class Normalisation:
    """How gray values become what a network sees; nothing lies outside ``low`` to ``high``."""

    of: Callable[[npt.NDArray[np.generic]], npt.NDArray[np.float32]]
    low: float
    high: float


def percentile_normalised(image: npt.NDArray[np.generic]) -> npt.NDArray[np.float32]:
    """Scale so that the image's 1st and 99th percentile become -1 and 1, clipped at ±1.5; a flat image becomes 0."""
    gray = image.astype(np.float32, copy=False)
    low, high = np.percentile(gray, (1, 99))
    if high <= low:
        return np.zeros(image.shape, np.float32)
    scaled = (gray - np.float32(low)) * np.float32(2.0 / (high - low)) - np.float32(1.0)
    return np.clip(scaled, -1.5, 1.5, out=scaled)


CEM500K_MEAN, CEM500K_STD = 0.57287007, 0.12740536  # of 8-bit gray values scaled to 0..1 (RETINA's code)


def cem500k_normalised(image: npt.NDArray[np.generic]) -> npt.NDArray[np.float32]:
    """Subtract the mean of CEM500K and divide by its standard deviation; takes gray values of 0 to 255."""
    return (image.astype(np.float32) / np.float32(255) - np.float32(CEM500K_MEAN)) / np.float32(CEM500K_STD)


NORMALISATIONS: Mapping[str, Normalisation] = {
    "percentile-1-99": Normalisation(percentile_normalised, -1.5, 1.5),
    "cem500k": Normalisation(cem500k_normalised, -CEM500K_MEAN / CEM500K_STD, (1 - CEM500K_MEAN) / CEM500K_STD),
}


def normalisation(name: str) -> Normalisation:
    """Find a normalisation; a misspelt name answers "did you mean ..."."""
    if name not in NORMALISATIONS:
        raise unknown_name("normalisation", name, NORMALISATIONS)
    return NORMALISATIONS[name]


def network_input(
    image: npt.NDArray[np.generic], pixel_size_nm: tuple[float, float], target_nm: float, normalised: str
) -> npt.NDArray[np.float32]:
    """Align a native ``(y, x)`` image to pixels of exactly ``target_nm`` and normalise it, as training does, too."""
    return normalisation(normalised).of(align_image(image, pixel_size_nm, target_nm))


def align_row(row: LabelledImage, target_nm: float, normalised: str) -> AlignedImage:
    """Align a decoded row and make its targets.

    Instances keep their ids over disconnected pieces; the distance target treats each piece on its own. Pixels of an
    organelle that the row does not list as annotated become IGNORE.
    """
    image = network_input(row.image, row.pixel_size_nm, target_nm, normalised)
    instances = align_instances(row.instances, row.pixel_size_nm, target_nm).ids.astype(np.uint16, copy=False)
    value_of = np.full(int(instances.max(initial=0)) + 1, IGNORE, np.uint8)  # an id without organelle stays unknown
    value_of[0] = 0
    for id_, organelle in row.organelle_of.items():
        if id_ < len(value_of) and organelle in row.annotated:
            value_of[id_] = organelle.label_id
    semantic = value_of[instances]
    semantic[align_mask(row.ignore, row.pixel_size_nm, target_nm).astype(bool)] = IGNORE
    distance = np.rint(inner_distance(instances) * 255).astype(np.uint8)
    return AlignedImage(image.astype(np.float16), semantic, instances, distance)


def inner_distance(instances: npt.NDArray[np.generic]) -> npt.NDArray[np.float32]:
    """Distance to the border of the pixel's own connected piece, divided by its maximum over the piece; 0 outside.

    ``instances`` is a ``(y, x)`` or ``(z, y, x)`` label map. The image's edge is no border: what is cut there goes on.
    """
    distance = np.zeros(instances.shape, np.float32)
    for id_, box in enumerate(ndimage.find_objects(instances.astype(np.int32)), start=1):
        if box is None:
            continue
        grown = tuple(slice(max(0, part.start - 1), part.stop + 1) for part in box)
        mask = instances[grown] == id_
        if mask.all():  # fills the image: there is no border to be far from
            distance[grown] = 1.0
            continue
        inner = ndimage.distance_transform_edt(np.pad(mask, 1, mode="edge"))[(slice(1, -1),) * mask.ndim]
        pieces, count = ndimage.label(mask)
        peak = np.ones(count + 1)
        np.maximum.at(peak, pieces, inner)
        distance[grown] += np.where(mask, inner / peak[pieces], 0.0).astype(np.float32)
    return distance


def annotated_vector(row: Mapping[str, object]) -> npt.NDArray[np.bool_]:
    """Column ``annotated`` of a dataset row as five flags in the order of ORGANELLES."""
    names = row["annotated"]
    assert isinstance(names, (list, tuple))
    return np.array([organelle in names for organelle in ORGANELLES])
