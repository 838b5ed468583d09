"""From the maps of an image to instances, each organelle by its own declared rule.

What belongs to an organelle is decided by its probability alone; a *method* takes touching instances apart. Methods
find a seed in each instance and grow it over the connected component that it lies in::

    distance     seeds are places deep inside, by the map of the inner distance; growth goes down from there
    boundary     seeds are places that are surely inside: probability x (1 - boundary); growth goes down from there
    affinity     seeds are pieces that affinities hold together (``baselines.affinities``), large enough to be one
    components   nothing is taken apart

Each organelle's decoder lists its methods; the first one that the model's maps allow is used, unless a user names one
(``em-bench predict --decoder``). The order is that of what little training they need: after some minutes on a CPU
distances part what touches, boundaries nearly as well, while affinities still join it; trained longer, on images whose
borders show, affinities were the best of the three by one or two points of instance Dice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from baselines.affinities import AFFINITY as AFFINITY
from baselines.affinities import affinity_maps, join_all_axes, pieces
from baselines.flood import ALL_NEIGHBOURS, Labels, Mask, Plane, drop_small, filled, grown, watershed_instances
from em_bench_eval.align import resize_image, resize_labels
from em_bench_eval.errors import InputError
from em_bench_eval.schema import Organelle, Prediction

# prefixes of the names of maps that are not an organelle's probability; AFFINITY is the third
DISTANCE = "distance:"  # + organelle: inner distance
BOUNDARY = "boundary:"  # + organelle: inner side of its border

NEEDS = {
    "components": "nothing",
    "distance": "a distance map of an organelle that may be split",
    "boundary": "a boundary map of an organelle that may be split",
    "affinity": "affinities of neighbours along each of {axes} axes",
}
METHODS = tuple(NEEDS)
SEED_SHARE = 0.5  # of the minimum area: pieces of affinities that are smaller are left to their neighbours


@dataclass(frozen=True)
class Decoder:
    """How one organelle's pixels become instances.

    ``min_area_nm2``: smaller instances are dropped; a speck costs the instance mean as much as a missed organelle.
    ``methods``: what may take touching ones apart, the best first; none: components.
    ``seed_distance``: seeds lie at least this deep (0..1) by the distance map; a component without seed is dropped.
    ``seed_interior``: in seeds, probability x (1 - boundary) is at least this; a component without seed - what is thin
    is all boundary - stays one instance.
    ``min_affinity``: above it two neighbours belong together. ``repulsive``: pairs further apart with an affinity below
    it are kept apart. A component in which nothing of half the minimum area holds together is dropped.
    """

    min_area_nm2: float
    methods: tuple[str, ...] = ()
    seed_distance: float = 0.3
    seed_interior: float = 0.5
    min_affinity: float = 0.5
    repulsive: bool = False
    fill_holes: bool = False

    def recorded(self, method: str) -> dict[str, Any]:
        """What ``prediction.json`` says: the method that was used, and the parameters."""
        return {"method": method} | {name: value for name, value in asdict(self).items() if name != "methods"}


TOUCHING = ("distance", "boundary", "affinity")
NETWORK = ("components", "affinity")  # they are hardly ever cut: affinities only for who asks for them
DECODERS: Mapping[Organelle, Decoder] = {
    Organelle.MITO: Decoder(min_area_nm2=15_000.0, methods=TOUCHING, repulsive=True, fill_holes=True),
    Organelle.NUCLEUS: Decoder(min_area_nm2=500_000.0, fill_holes=True),
    Organelle.ER: Decoder(min_area_nm2=2000.0, methods=NETWORK),
    Organelle.ENDO: Decoder(min_area_nm2=4000.0, methods=TOUCHING, repulsive=True, fill_holes=True),
    Organelle.GOLGI: Decoder(min_area_nm2=4000.0, methods=NETWORK),
}


def method_of(organelle: Organelle, decoder: Decoder, map_names: Sequence[str], axes: int, wanted: str | None) -> str:
    """Return the method that an organelle is decoded by in images (2 ``axes``) or volumes (3).

    ``wanted``: a method, used where the decoder lists it and its maps are there; components elsewhere.
    """
    there = {
        "affinity": join_all_axes(map_names, axes),
        "distance": DISTANCE + organelle.value in map_names,
        "boundary": BOUNDARY + organelle.value in map_names,
        "components": True,
    }
    allowed = [method for method in decoder.methods if wanted in (None, method) and there[method]]
    return allowed[0] if allowed else "components"


def methods_of(
    map_names: Sequence[str],
    axes: int = 2,
    wanted: str | None = None,
    decoders: Mapping[Organelle, Decoder] = DECODERS,
) -> dict[Organelle, str]:
    """Return the method of every organelle in ``map_names``; ``InputError`` where none of them can use ``wanted``."""
    organelles = [organelle for organelle in Organelle if organelle.value in map_names]
    methods = {o: method_of(o, decoders[o], map_names, axes, wanted) for o in organelles}
    if wanted is not None and organelles and wanted not in methods.values():
        possible = [m for m in METHODS if any(method_of(o, decoders[o], map_names, axes, m) == m for o in organelles)]
        raise InputError(
            f"--decoder {wanted} needs {NEEDS[wanted].format(axes=axes)}",
            found=", ".join(map_names),
            expected=f"--decoder {' or '.join(possible)}",
            remedy="leave --decoder away to use the best one, or train a model with such maps (--preset)",
        )
    return methods


def recorded(map_names: Sequence[str], axes: int = 2, wanted: str | None = None) -> dict[str, dict[str, Any]]:
    """What ``prediction.json`` says of the decoders of all organelles."""
    methods = methods_of(map_names, axes, wanted)
    return {organelle.value: DECODERS[organelle].recorded(method) for organelle, method in methods.items()}


@dataclass(frozen=True)
class Evidence:
    """What takes the touching instances of one organelle apart in an image."""

    method: str
    maps: Mapping[str, Plane]  # (y, x) on the image's grid; affinities on the network's
    organelle: Organelle
    network_nm: float  # edge of a pixel of the affinities

    @property
    def depth(self) -> Plane:
        """How far inside an instance a pixel lies, 0..1, by the distance map or by the boundary map."""
        return depth_of(self.method, self.organelle, self.maps)


def depth_of(method: str, organelle: Organelle, maps: Mapping[str, npt.NDArray[np.float32]]) -> Plane:
    """Return the map whose deep places are seeds; of images and volumes alike."""
    if method == "distance":
        return maps[DISTANCE + organelle.value]
    return np.asarray(maps[organelle.value] * (1.0 - maps[BOUNDARY + organelle.value]), np.float32)


def seed_depth(method: str, decoder: Decoder) -> float:
    """How deep seeds lie, by ``depth_of``."""
    return decoder.seed_distance if method == "distance" else decoder.seed_interior


def depth_maps(method: str, organelle: Organelle) -> list[str]:
    """Names of the maps that ``depth_of`` reads."""
    if method == "distance":
        return [DISTANCE + organelle.value]
    return [organelle.value, BOUNDARY + organelle.value]


def native_maps(
    names: Sequence[str], aligned: Plane, shape: tuple[int, int], pixel_size_nm: tuple[float, float], network_nm: float
) -> dict[str, Plane]:
    """Bring ``(channel, y, x)`` maps to the image's own grid, for ``decode``; affinities stay on the network's.

    An affinity belongs to a pair of pixels; between the pixels of another grid there is no such pair.
    """
    moved = [number for number, name in enumerate(names) if not name.startswith(AFFINITY)]
    native = resize_image(aligned[moved], shape, [nm / network_nm for nm in pixel_size_nm])
    found = dict(zip((names[number] for number in moved), native, strict=True))
    return found | {name: aligned[k] for k, name in enumerate(names) if name.startswith(AFFINITY)}


def decode(
    record_id: str,
    maps: Mapping[str, Plane],
    pixel_size_nm: tuple[float, float],
    decoders: Mapping[Organelle, Decoder] = DECODERS,
    *,
    wanted: str | None = None,
    network_nm: float | None = None,
) -> Prediction:
    """Turn ``(y, x)`` maps by name into a prediction with ids 1..N.

    ``maps`` holds a probability for each predicted organelle, and further maps; background has the rest of the
    probability. Each pixel goes to its most probable class; what lies in a filled hole as an instance of another
    organelle stays that. The confidence of an instance is its mean probability.
    ``wanted``: see ``methods_of``. ``network_nm``: edge of a pixel of the affinity maps, which lie on the grid of the
    network (``native_maps``); by default that of the image.
    """
    organelles = [organelle for organelle in Organelle if organelle.value in maps]
    methods = methods_of(list(maps), 2, wanted, decoders)
    probability = np.stack([maps[organelle.value] for organelle in organelles])
    most = 1.0 - probability.sum(axis=0)  # of the background, which wins a tie
    best = np.full(most.shape, -1, np.int8)
    for channel, values in enumerate(probability):
        np.copyto(best, channel, where=values > most)
        np.maximum(most, values, out=most)

    organelle_of: dict[int, Organelle] = {}
    own, holes = np.zeros(best.shape, np.uint32), np.zeros(best.shape, np.uint32)
    for channel, organelle in enumerate(organelles):
        evidence = Evidence(methods[organelle], maps, organelle, network_nm or pixel_size_nm[0])
        mine = best == channel
        if not mine.any():
            continue
        labels = split(mine, evidence, decoders[organelle], pixel_size_nm)
        first = len(organelle_of) + 1
        organelle_of.update(dict.fromkeys(range(first, first + int(labels.max(initial=0))), organelle))
        found = np.where(labels > 0, labels + (first - 1), 0).astype(np.uint32)
        np.copyto(own, found, where=mine)
        if decoders[organelle].fill_holes:
            np.copyto(holes, found, where=(holes == 0) & ~mine)
    return _prediction(record_id, np.where(own > 0, own, holes), organelle_of, organelles, probability)


def _prediction(
    record_id: str,
    instances: npt.NDArray[np.uint32],
    organelle_of: Mapping[int, Organelle],
    organelles: Sequence[Organelle],
    probability: npt.NDArray[np.float32],
) -> Prediction:
    """Number the instances that have pixels, and give each its mean probability."""
    where = np.flatnonzero(instances)
    ids = instances.ravel()[where]
    channel_of = np.array([0, *(organelles.index(organelle) for organelle in organelle_of.values())])
    own = probability.reshape(len(organelles), -1)[channel_of[ids], where]
    area = np.bincount(ids, minlength=len(channel_of))
    present = area > 0
    confidence = np.clip(np.bincount(ids, own, len(channel_of)) / np.maximum(area, 1), 0.0, 1.0)
    name = np.where(present, np.cumsum(present), 0).astype(np.uint32)
    kept = np.flatnonzero(present).tolist()
    return Prediction(
        record_id,
        name[instances],
        {int(name[id_]): organelle_of[id_] for id_ in kept},
        {int(name[id_]): float(confidence[id_]) for id_ in kept},
    )


def split(mask: Mask, evidence: Evidence | None, decoder: Decoder, pixel_size_nm: tuple[float, float]) -> Labels:
    """Split one organelle's ``(y, x)`` mask into instances 1..N of at least the decoder's minimum area."""
    whole = filled(mask) if decoder.fill_holes else mask
    labels, count = ndimage.label(whole, structure=ALL_NEIGHBOURS)
    if count and evidence is not None:
        labels = SPLITS[evidence.method](labels, mask, evidence, decoder, pixel_size_nm)
    return drop_small(labels, decoder.min_area_nm2 / (pixel_size_nm[0] * pixel_size_nm[1]))


def _by_depth(
    components: Labels, mask: Mask, evidence: Evidence, decoder: Decoder, pixel_size_nm: tuple[float, float]
) -> Labels:
    threshold = seed_depth(evidence.method, decoder)
    return watershed_instances(components, evidence.depth, threshold, keep_seedless=evidence.method == "boundary")


def _by_affinity(
    components: Labels, mask: Mask, evidence: Evidence, decoder: Decoder, pixel_size_nm: tuple[float, float]
) -> Labels:
    """Decide on the network's grid; a pixel of the image belongs to the piece at its centre, or to the nearest one.

    What lies in a filled hole may hold together, too, as an instance of another organelle; it is not asked.
    """
    offsets, values = affinity_maps(evidence.maps)
    nm = evidence.network_nm
    there = resize_labels(np.where(mask, components, 0), values[0].shape, [nm / own for own in pixel_size_nm])  # type: ignore[arg-type]
    found = pieces(there, offsets, values.__getitem__, decoder.min_affinity, decoder.repulsive)
    found = drop_small(found, SEED_SHARE * decoder.min_area_nm2 / nm**2)
    component_of = np.zeros(int(found.max(initial=0)) + 1, components.dtype)
    component_of[found] = there  # no piece lies in two components
    component_of[0] = 0
    seeds = resize_labels(found, components.shape, [own / nm for own in pixel_size_nm])  # type: ignore[arg-type]
    seeds = np.where(component_of[seeds] == components, seeds, 0)
    return grown(components, seeds)


def _components(
    components: Labels, mask: Mask, evidence: Evidence, decoder: Decoder, pixel_size_nm: tuple[float, float]
) -> Labels:
    return components


# components (their holes filled), the organelle's own pixels of them, evidence, rule, (y, x) nm of a pixel -> instances
Split = Callable[[Labels, Mask, Evidence, Decoder, tuple[float, float]], Labels]
SPLITS: Mapping[str, Split] = {
    "affinity": _by_affinity,
    "distance": _by_depth,
    "boundary": _by_depth,
    "components": _components,
}
