"""From probability and distance maps to instances, each organelle by its own declared rule."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from em_bench_eval.schema import Organelle, Prediction

Plane = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int32]
# prefixes of the names of maps that are not an organelle's probability
DISTANCE = "distance:"  # + organelle: inner distance
BOUNDARY = "boundary:"  # + organelle: inner side of its border
AFFINITY = "affinity:"  # + offset in pixels, "0,4": whether pixel and neighbour belong to one instance


@dataclass(frozen=True)
class Decoder:
    """How one organelle's pixels become instances.

    ``min_area_nm2``: smaller instances are dropped; a speck costs the instance mean as much as a missed organelle.
    ``seed_distance``: with a distance map, seeds are the connected places that lie at least this deep (0..1) in their
    instance, watershed grows them over the mask, and what has no seed is dropped; ``None``: connected components.
    """

    min_area_nm2: float
    seed_distance: float | None = None
    fill_holes: bool = False


DECODERS: Mapping[Organelle, Decoder] = {
    Organelle.MITO: Decoder(min_area_nm2=15_000.0, seed_distance=0.3, fill_holes=True),
    Organelle.NUCLEUS: Decoder(min_area_nm2=500_000.0, fill_holes=True),
    Organelle.ER: Decoder(min_area_nm2=2000.0),
    Organelle.ENDO: Decoder(min_area_nm2=4000.0, seed_distance=0.3, fill_holes=True),
    Organelle.GOLGI: Decoder(min_area_nm2=4000.0),
}


def decode(
    record_id: str,
    maps: Mapping[str, Plane],
    pixel_size_nm: tuple[float, float],
    decoders: Mapping[Organelle, Decoder] = DECODERS,
) -> Prediction:
    """Turn ``(y, x)`` maps by name into a prediction with ids 1..N.

    ``maps`` holds a probability for each predicted organelle, and optionally ``distance:<organelle>``; background has
    the rest of the probability. Each pixel goes to its most probable class. The confidence of an instance is its mean
    probability.
    """
    organelles = [organelle for organelle in Organelle if organelle.value in maps]
    shape = next(iter(maps.values())).shape
    probability = np.stack([maps[organelle.value] for organelle in organelles])
    background = 1.0 - probability.sum(axis=0)
    best = probability.argmax(axis=0)
    best[background >= probability.max(axis=0)] = -1

    instances = np.zeros(shape, np.uint32)
    organelle_of: dict[int, Organelle] = {}
    confidence_of: dict[int, float] = {}
    for channel, organelle in enumerate(organelles):
        distance = maps.get(DISTANCE + organelle.value)
        labels = split(best == channel, distance, decoders[organelle], pixel_size_nm)
        labels[(labels > 0) & (instances > 0)] = 0  # a hole that was filled over an earlier organelle stays that
        count = int(labels.max(initial=0))
        first = len(organelle_of) + 1
        instances[labels > 0] = labels[labels > 0] + np.uint32(first - 1)
        means = ndimage.mean(probability[channel], labels, np.arange(1, count + 1)) if count else []
        for offset, mean in enumerate(means):
            organelle_of[first + offset] = organelle
            confidence_of[first + offset] = float(np.clip(mean, 0.0, 1.0))
    return Prediction(record_id, instances, organelle_of, confidence_of)


def split(
    mask: npt.NDArray[np.bool_], distance: Plane | None, decoder: Decoder, pixel_size_nm: tuple[float, float]
) -> Labels:
    """Split one organelle's ``(y, x)`` mask into instances 1..N of at least the decoder's minimum area."""
    if decoder.fill_holes:
        mask = ndimage.binary_fill_holes(mask)
    labels, _ = ndimage.label(mask, structure=np.ones((3, 3), bool))
    if distance is not None and decoder.seed_distance is not None:
        labels = watershed_instances(labels, distance, decoder.seed_distance)
    return drop_small(labels, decoder.min_area_nm2 / (pixel_size_nm[0] * pixel_size_nm[1]))


def watershed_instances(components: Labels, distance: Plane, seed_distance: float) -> Labels:
    """Split connected components by marker-controlled watershed on the inner distance.

    Seeds are connected places with ``distance >= seed_distance``. A component without a seed is dropped: the semantic
    head took some texture for the organelle, and the distance head found nothing there that has an inside.
    """
    from skimage.segmentation import watershed

    smooth = ndimage.gaussian_filter(distance, 1.0)
    seeds, _ = ndimage.label((smooth >= seed_distance) & (components > 0), structure=np.ones((3, 3), bool))
    result: Labels = watershed(-smooth, seeds, connectivity=2, mask=components > 0).astype(np.int32)
    return result


def drop_small(labels: Labels, min_pixels: float) -> Labels:
    """Remove labels with fewer than ``min_pixels`` pixels and number the others 1..N in their order."""
    area = np.bincount(labels.ravel())
    keep = area >= max(min_pixels, 1)
    keep[0] = False
    return np.where(keep, np.cumsum(keep), 0).astype(np.int32)[labels]
