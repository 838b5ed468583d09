"""From a dataset row to what a network sees: Scale Alignment, normalisation, semantic and distance targets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from em_bench_eval.align import aligned_shape, resize_image, resize_labels
from em_bench_eval.errors import unknown_name
from em_bench_eval.rows import LabelledImage
from em_bench_eval.schema import ORGANELLES

IGNORE = 255  # equals baselines.losses.IGNORE; repeated because this file imports no torch (a test holds it)


@dataclass(frozen=True)
class AlignedImage:
    """A training image at the aligned pixel size, compact enough to keep many in memory (4 bytes a pixel)."""

    image: npt.NDArray[np.float16]  # (y, x), normalised
    semantic: npt.NDArray[np.uint8]  # (y, x), 0, Organelle.label_id or IGNORE
    distance: npt.NDArray[np.uint8]  # (y, x), 255 = innermost pixel of its instance, 0 = outside

    @property
    def nbytes(self) -> int:
        """Memory held by the arrays."""
        return self.image.nbytes + self.semantic.nbytes + self.distance.nbytes


def percentile_normalised(image: npt.NDArray[np.generic]) -> npt.NDArray[np.float32]:
    """Scale so that the image's 1st and 99th percentile become -1 and 1, clipped at ±1.5; a flat image becomes 0."""
    low, high = np.percentile(image.astype(np.float32), (1, 99))
    if high <= low:
        return np.zeros(image.shape, np.float32)
    scaled = (image.astype(np.float32) - np.float32(low)) * np.float32(2.0 / (high - low)) - np.float32(1.0)
    return np.clip(scaled, -1.5, 1.5)


NORMALISATIONS: Mapping[str, Callable[[npt.NDArray[np.generic]], npt.NDArray[np.float32]]] = {
    "percentile-1-99": percentile_normalised,
}


def network_input(
    image: npt.NDArray[np.generic], pixel_size_nm: tuple[float, float], target_nm: float, normalisation: str
) -> npt.NDArray[np.float32]:
    """Align a native ``(y, x)`` image to ``target_nm`` and normalise it; the same in training and in prediction."""
    if normalisation not in NORMALISATIONS:
        raise unknown_name("normalisation", normalisation, NORMALISATIONS)
    shape = aligned_shape((image.shape[0], image.shape[1]), pixel_size_nm, target_nm)
    return NORMALISATIONS[normalisation](resize_image(image, shape))


def align_row(row: LabelledImage, target_nm: float, normalisation: str) -> AlignedImage:
    """Align a decoded row and make its targets.

    Instances keep their ids over disconnected pieces; the distance target treats each piece on its own. Pixels of an
    organelle that the row does not list as annotated become IGNORE.
    """
    image = network_input(row.image, row.pixel_size_nm, target_nm, normalisation)
    shape = (image.shape[0], image.shape[1])
    instances = resize_labels(row.instances, shape)
    value_of = np.full(int(instances.max(initial=0)) + 1, IGNORE, np.uint8)  # an id without organelle stays unknown
    value_of[0] = 0
    for id_, organelle in row.organelle_of.items():
        if id_ < len(value_of) and organelle in row.annotated:
            value_of[id_] = organelle.label_id
    semantic = value_of[instances]
    semantic[resize_labels(row.ignore, shape)] = IGNORE
    distance = np.rint(inner_distance(instances) * 255).astype(np.uint8)
    return AlignedImage(image.astype(np.float16), semantic, distance)


def inner_distance(instances: npt.NDArray[np.generic]) -> npt.NDArray[np.float32]:
    """Distance to the border of the pixel's own connected piece, divided by its maximum over the piece; 0 outside.

    ``instances`` is a ``(y, x)`` label map. The image's edge is no border: what is cut there goes on.
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
        inner = ndimage.distance_transform_edt(np.pad(mask, 1, mode="edge"))[1:-1, 1:-1]
        pieces, count = ndimage.label(mask)
        peak = np.concatenate([[1.0], ndimage.maximum(inner, pieces, np.arange(1, count + 1))])
        distance[grown] += np.where(mask, inner / peak[pieces], 0.0).astype(np.float32)
    return distance


def annotated_vector(row: Mapping[str, object]) -> npt.NDArray[np.bool_]:
    """Column ``annotated`` of a dataset row as five flags in the order of ORGANELLES."""
    names = row["annotated"]
    assert isinstance(names, (list, tuple))
    return np.array([organelle in names for organelle in ORGANELLES])
