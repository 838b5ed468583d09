"""What the network metrics need to know about one item: sums over skeleton voxels, runs and components.

Skeletons are thinned from whole instances, also where they reach into the ignored region; only afterwards, what lies
in it is left out. A skeleton voxel or an edge with an end there counts for nothing, and runs end there, for the
reference itself too.

Three rules keep a prediction from scoring without following the network:

- A predicted skeleton voxel is *on* the reference only if it lies in a reference instance and the prediction is there
  no more than ``THICKNESS`` times as thick as that instance at its thickest, plus one voxel: a volume painted full has
  one or two skeleton voxels, which may well lie in a tubule.
- A predicted instance *holds* a reference instance if more than ``CONTACT_NM`` of its skeleton lie inside, or half of
  its skeleton voxels. An instance that holds two or more merges them, and nothing in it is correct. Less is contact:
  two tubules touch over about their diameter.
- Nothing is correct either in a predicted instance with nothing, or less than half, of its own counted skeleton on the
  reference: it merges the network with background.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from .components import component_sizes
from .skeleton_graph import Edges, connected_parts, edges_between, spanning_forest
from .thinning import Skeleton, skeletonise

CONTACT_NM = 100.0
THICKNESS = 2.0

# what ``skeleton_statistics`` returns
STATISTICS = (
    *("skeleton_reference", "skeleton_reference_inside", "skeleton_prediction", "skeleton_prediction_inside"),
    *("skeleton_nm", "run_squares_nm2", "ideal_squares_nm2", "betti0_error", "betti0_items"),
    *("component_voxels_reference", "component_voxels_prediction"),
    *("largest_voxels_reference", "largest_voxels_prediction"),
)

Bools = npt.NDArray[np.bool_]
Labels = npt.NDArray[Any]


def skeleton_statistics(
    reference: Labels, prediction: Labels, voxel_size_nm: Sequence[float], ignore: Bools | None = None
) -> dict[str, int | float]:
    """Measure one organelle in one image or volume; statistics of several items add up.

    ``reference``, ``prediction``: integer label maps of one shape, (y, x) or (z, y, x), 0 = background. ``ignore``:
    True where nothing counts. ``voxel_size_nm``: in the order of the axes.
    """
    size = tuple(float(edge) for edge in voxel_size_nm)
    reference_skeleton, prediction_skeleton = skeletonise(reference, size), skeletonise(prediction, size)
    on_reference = _on_reference(reference_skeleton, prediction_skeleton, reference, min(size))
    counted = [
        np.ones(len(skeleton.voxels), bool) if ignore is None else ~ignore.reshape(-1)[skeleton.voxels]
        for skeleton in (reference_skeleton, prediction_skeleton)
    ]
    inside = prediction.reshape(-1)[reference_skeleton.voxels] != 0
    confirmed = _confirmed(prediction.reshape(-1)[prediction_skeleton.voxels], on_reference, counted[1])
    sides = {
        "reference": component_sizes(reference != 0, ignore),
        "prediction": component_sizes(prediction != 0, ignore),
    }
    n_components = {name: len(voxels) for name, voxels in sides.items()}
    return {
        "skeleton_reference": int(counted[0].sum()),
        "skeleton_reference_inside": int((inside & counted[0]).sum()),
        "skeleton_prediction": int(counted[1].sum()),
        "skeleton_prediction_inside": int((on_reference & counted[1]).sum()),
        **_runs(reference_skeleton.voxels[counted[0]], reference, prediction, confirmed, size),
        "betti0_error": abs(n_components["reference"] - n_components["prediction"]),
        "betti0_items": int(any(n_components.values())),
        **{f"component_voxels_{name}": int(voxels.sum()) for name, voxels in sides.items()},
        **{f"largest_voxels_{name}": int(voxels.max(initial=0)) for name, voxels in sides.items()},
    }


def _on_reference(reference: Skeleton, prediction: Skeleton, labels: Labels, edge_nm: float) -> Bools:
    """Mark the predicted skeleton voxels that lie in a reference instance of comparable thickness."""
    ids, instance = np.unique(labels.reshape(-1)[reference.voxels], return_inverse=True)
    if not len(ids):
        return np.zeros(len(prediction.voxels), bool)
    thickest = np.zeros(len(ids))
    np.maximum.at(thickest, instance, reference.radius_nm)
    there = labels.reshape(-1)[prediction.voxels]
    limit = THICKNESS * thickest[np.minimum(np.searchsorted(ids, there), len(ids) - 1)] + edge_nm
    return np.asarray((there != 0) & (prediction.radius_nm <= limit))


def _confirmed(instance: Labels, on_reference: Bools, counted: Bools) -> Labels:
    """Return the predicted ids (ascending) with any, and at least half, of their counted voxels on the reference."""
    ids, position = np.unique(instance, return_inverse=True)
    on = np.bincount(position[on_reference & counted], minlength=len(ids))
    return ids[(on > 0) & (2 * on >= np.bincount(position[counted], minlength=len(ids)))]


def _runs(
    voxels: npt.NDArray[np.int64], reference: Labels, prediction: Labels, confirmed: Labels, size: tuple[float, ...]
) -> dict[str, float]:
    """Measure the reference skeleton, and the parts of it that the prediction follows without an error.

    A run is a connected part of the skeleton within one correct predicted instance. Lengths are those of the minimum
    spanning forest of the whole skeleton, so that runs are never longer than what they are part of; what is connected
    is decided by all neighbours, so that it does not matter where the forest opens a ring.
    """
    here, found = reference.reshape(-1)[voxels], prediction.reshape(-1)[voxels]
    edges = edges_between(voxels, reference.shape, here, size)
    forest = spanning_forest(len(voxels), edges)
    correct = np.isin(found, np.setdiff1d(confirmed, _mergers(here, found, edges.select(forest))))
    correct &= found != 0
    follows = correct[edges.start] & (found[edges.start] == found[edges.end])
    return {
        "skeleton_nm": math.fsum(edges.length_nm[forest]),
        "run_squares_nm2": _squares(len(voxels), edges, forest, follows),
        "ideal_squares_nm2": _squares(len(voxels), edges, forest, np.ones(len(forest), bool)),
    }


def _mergers(reference: Labels, prediction: Labels, forest: Edges) -> Labels:
    """Return the predicted ids that hold two or more reference instances, given both ids at each skeleton voxel."""
    _, r = np.unique(reference, return_inverse=True)
    prediction_ids, p = np.unique(prediction, return_inverse=True)
    pairs, pair = np.unique(r * np.int64(len(prediction_ids) + 1) + p, return_inverse=True)
    within = pair[forest.start] == pair[forest.end]
    length_nm = np.bincount(pair[forest.start[within]], weights=forest.length_nm[within], minlength=len(pairs))
    share = np.bincount(pair, minlength=len(pairs)) / np.bincount(r)[pairs // (len(prediction_ids) + 1)]
    holder = pairs[(length_nm > CONTACT_NM) | (share >= 0.5)] % (len(prediction_ids) + 1)
    return prediction_ids[np.bincount(holder, minlength=len(prediction_ids)) > 1]


def _squares(n_nodes: int, edges: Edges, forest: Bools, followed: Bools) -> float:
    """Sum of squared run lengths: connected by all the followed edges, measured along those of the forest."""
    run = connected_parts(n_nodes, edges.select(followed))
    part = edges.select(followed & forest)
    lengths = np.bincount(run[part.start], weights=part.length_nm, minlength=1)
    return math.fsum(lengths**2)
