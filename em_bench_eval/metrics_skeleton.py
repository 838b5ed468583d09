"""The network family's metrics on skeletons: does the prediction follow the centre lines, and for how long.

Statistics come from ``skeleton_statistics``, whose rules against predictions that score without following the network
are part of these definitions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from .metric import Metric, Statistics, ratio

_CLDICE = "Shit et al. 2021, doi:10.1109/CVPR46437.2021.01629"
_ERL = "Januszewski et al. 2018, doi:10.1038/s41592-018-0049-4"
_SKELETON = (
    "Skeletons are thinned from each whole instance: lines in tubules, medial surfaces in sheets, topology unchanged."
)
_ON = (
    "A predicted skeleton voxel is on the reference if it lies in a reference instance and the prediction is there at "
    "most twice as thick (plus one voxel) as that instance anywhere."
)
_CORRECT = (
    "An edge is correct if both ends lie in one predicted instance that has at least half of its own skeleton on the "
    "reference and does not hold a second reference instance (to hold: more than 100 nm of its skeleton, or half of "
    "its skeleton voxels). In a sheet the forest passes through every voxel of the medial surface, so that lengths of "
    "sheets depend on the voxel size, and values in nm compare only at the same one."
)
_VOXELS = "skeleton voxels of everything added, pooled"
_LENGTH = "nm of reference skeleton of everything added, pooled"


def _precision(s: Statistics) -> float | None:
    return ratio(
        s["skeleton_prediction_inside"], s["skeleton_prediction"], s["skeleton_prediction"] + s["skeleton_reference"]
    )


def _sensitivity(s: Statistics) -> float | None:
    return ratio(s["skeleton_reference_inside"], s["skeleton_reference"], s["skeleton_reference"])


def _cldice(s: Statistics) -> float | None:
    precision, sensitivity = _precision(s) or 0.0, _sensitivity(s) or 0.0
    return ratio(
        2 * precision * sensitivity, precision + sensitivity, s["skeleton_prediction"] + s["skeleton_reference"]
    )


def _erl(squares: str) -> Callable[[Statistics], float | None]:
    return lambda s: ratio(s[squares], s["skeleton_nm"], s["skeleton_nm"])


def _largest(side: str) -> Metric:
    return Metric(
        lambda s: ratio(s[f"largest_voxels_{side}"], s[f"component_voxels_{side}"], s[f"component_voxels_{side}"]),
        definition=f"Share of the {side}'s voxels that lie in its largest connected component (26 neighbours, in "
        "images 8; instances that touch are one component). To be read beside the other side's.",
        formula="sum over items of voxels in the largest component / sum over items of voxels",
        range="above 0..1",
        aggregation="voxels of everything added, pooled; the largest component of each item",
        edge_cases=f"None if the {side} is empty. Voxels in the ignored region do not count, but connect.",
        reference="none: a plain description of the mask",
        family="network",
        better="",
        needs="skeleton",
    )


METRICS: Mapping[str, Metric] = {
    "cldice__pooled": Metric(
        _cldice,
        definition=f"Centre line Dice: do the two masks hold each other's skeletons. {_SKELETON} {_ON} Thickness "
        "within that limit costs nothing: read it beside a Dice or surface distance.",
        formula="2 P S / (P + S), P = cldice_precision__pooled, S = cldice_sensitivity__pooled",
        range="0..1",
        aggregation=_VOXELS,
        edge_cases="None if neither side has a skeleton; 0.0 if only one has, or if P = S = 0.",
        reference=_CLDICE,
        family="network",
        needs="skeleton",
    ),
    "cldice_precision__pooled": Metric(
        _precision,
        definition=f"Topology precision: the share of the prediction's skeleton that is on the reference. {_SKELETON} "
        f"{_ON}",
        formula="|S_P on V_R| / |S_P|, S_P = skeleton voxels of the prediction, V_R = mask of the reference",
        range="0..1",
        aggregation=_VOXELS,
        edge_cases="None if neither side has a skeleton; 0.0 if only one has.",
        reference=_CLDICE,
        family="network",
        needs="skeleton",
    ),
    "cldice_sensitivity__pooled": Metric(
        _sensitivity,
        definition="Topology sensitivity: the share of the reference's skeleton that lies in the predicted mask. Too "
        f"much foreground costs nothing: read it beside cldice_precision__pooled. {_SKELETON}",
        formula="|S_R in V_P| / |S_R|, S_R = skeleton voxels of the reference, V_P = mask of the prediction",
        range="0..1",
        aggregation=_VOXELS,
        edge_cases="None if the reference has no skeleton; 0.0 without any prediction.",
        reference=_CLDICE,
        family="network",
        needs="skeleton",
    ),
    "erl_nm__pooled": Metric(
        _erl("run_squares_nm2"),
        definition="Expected run length in nm: how far one can go on, on average, within one predicted instance from a "
        "random point of the reference skeleton, until the prediction is missing, changes its id, or is wrong "
        f"altogether. A run is a connected part of the skeleton graph whose edges are correct. {_CORRECT}",
        formula="sum over runs of length^2 / length of the whole reference skeleton; lengths in nm along the minimum "
        "spanning forest of its 26-neighbour graph (in images 8), per reference instance",
        range="0 up to erl_reference_nm__pooled",
        aggregation=_LENGTH,
        edge_cases="None if no reference instance has two neighbouring skeleton voxels; 0.0 without any prediction. "
        "Runs end at the ignored region.",
        reference=_ERL,
        family="network",
        needs="skeleton",
    ),
    "erl_reference_nm__pooled": Metric(
        _erl("ideal_squares_nm2"),
        definition="Expected run length in nm of a prediction equal to the reference: the most that erl_nm__pooled "
        "can be.",
        formula="sum over connected parts of the reference skeleton of length^2 / length of the whole skeleton",
        range="above 0 nm",
        aggregation=_LENGTH,
        edge_cases="None if no reference instance has two neighbouring skeleton voxels.",
        reference=_ERL,
        family="network",
        better="",
        needs="skeleton",
    ),
    "erl_normalised__pooled": Metric(
        lambda s: ratio(s["run_squares_nm2"], s["ideal_squares_nm2"], s["ideal_squares_nm2"]),
        definition=f"Expected run length relative to what the reference itself has. {_CORRECT}",
        formula="erl_nm__pooled / erl_reference_nm__pooled",
        range="0..1",
        aggregation=_LENGTH,
        edge_cases="None if no reference instance has two neighbouring skeleton voxels; 0.0 without any prediction.",
        reference=_ERL,
        family="network",
        needs="skeleton",
    ),
    "betti0_error__item": Metric(
        lambda s: ratio(s["betti0_error"], s["betti0_items"], s["betti0_items"]),
        definition="By how many the numbers of connected components of the two masks differ (26 neighbours, in images "
        "8). Missing and invented components cancel each other, and ids do not matter: a count, and no matching.",
        formula="sum over items of |b0(prediction) - b0(reference)| / number of items",
        range="0..",
        aggregation="mean over the images or volumes where either side has any voxel",
        edge_cases="None if both sides are empty everywhere. A component wholly in the ignored region does not count.",
        reference="Hu et al. 2019, arXiv:1906.05404 (Betti number error)",
        family="network",
        better="lower",
        needs="skeleton",
    ),
    "largest_share_reference__pooled": _largest("reference"),
    "largest_share_prediction__pooled": _largest("prediction"),
}
