"""Boundary family: how far surfaces are apart, in nm, of matched instances and of the organelle's mask.

A surface element is a voxel with a face neighbour that is not of the same instance (or mask); the border of the image
and ignored voxels make no surface. ``d(a, B)`` is the distance from the centre of voxel ``a`` to that of the nearest
element of ``B``; ``R`` and ``P`` are the elements of the reference and of the prediction.
"""

from __future__ import annotations

from collections.abc import Callable

from .boundary_statistics import CREMI_FAR_NM, PERCENTILE
from .metric import Metric, Statistics, Value, ratio

NIKOLOV = "Nikolov et al. 2021, doi:10.2196/26151 (elements are counted there by area, here each voxel counts once)"
RELOADED = "Maier-Hein et al. 2024, doi:10.1038/s41592-023-02151-z"
CREMI = "CREMI challenge 2016, https://cremi.org/metrics/ (there per volume)"
RETINA = "Xing et al. 2025, doi:10.1371/journal.pcbi.1013115, caption of S8 Table (in voxels there; no code published)"
COSEM = "Heinrich et al. 2021, doi:10.1038/s41586-021-03977-3"

ITEMS = "mean over the images or volumes where both masks have {what}: a distance of this kind cannot be pooled"
PAIRS = (
    "mean over matched pairs: optimistic, since missed and invented instances have no distance; read it together with "
    "distance_share__instance"
)
SHARE = "None if there is nothing on either side; 0.0 if only one side has any"


def _nsd_instance(s: Statistics) -> Value:
    judged = s["boundary_instances"] - s["boundary_pairs_without_surface"]
    return ratio(s["boundary_nsd"], judged, judged)


def _share(part: str, whole: str) -> Callable[[Statistics], Value]:
    """Divide two statistics; None if ``whole`` is nothing."""
    return lambda s: ratio(s[part], s[whole], s[whole])


def _cremi(s: Statistics) -> Value:
    if not s["boundary_adgt_voxels"]:  # then there is no item with both masks, and no adf either
        return None
    return (s["boundary_adgt_nm"] / s["boundary_adgt_voxels"] + s["boundary_adf_nm"] / s["boundary_adf_voxels"]) / 2


def _nsd(compute: Callable[[Statistics], Value], definition: str, formula: str, aggregation: str, edge: str) -> Metric:
    return Metric(
        compute,
        f"normalised surface Dice, the share of the surface that agrees within the tolerance in nm of the settings: "
        f"{definition}",
        formula,
        "0..1",
        aggregation,
        edge,
        NIKOLOV,
        "boundary",
        needs="boundary",
    )


def _distance(
    compute: Callable[[Statistics], Value], definition: str, formula: str, aggregation: str, edge: str, reference: str
) -> Metric:
    return Metric(
        compute,
        definition,
        formula,
        "0.. nm",
        aggregation,
        edge,
        reference,
        "boundary",
        better="lower",
        needs="boundary",
    )


def _found_share(compute: Callable[[Statistics], Value], definition: str, formula: str, aggregation: str) -> Metric:
    return Metric(
        compute, definition, formula, "0..1", aggregation, SHARE, "this project", "boundary", needs="boundary"
    )


def _false_voxels(statistic: str, one: str, other: str) -> Metric:
    return Metric(
        lambda s: int(s[statistic]),
        f"CREMI: number of {one} voxels farther than {CREMI_FAR_NM:g} nm from every {other} voxel of the same image or "
        "volume; depends on the voxel size and on how much was scored",
        f"#{{v in {one} mask: d(v, {other} mask) > {CREMI_FAR_NM:g} nm}}",
        "0.. voxels",
        "sum over everything added",
        f"0 if nothing is {one}; every {one} voxel counts where the {other} mask is empty",
        CREMI,
        "count",
        better="lower",
        needs="boundary",
    )


_PAIR_EDGE = (
    "None if no matched pair has a surface on both sides; a pair that lacks one (an instance that fills the image has "
    "none) is left out"
)
_MASK_EDGE = (
    "None if no image or volume has surfaces on both sides; where only one mask has one, the item is left out: read it "
    "together with distance_share__mask"
)
_VOXEL_EDGE = (
    "None if no image or volume has voxels on both sides; where only one mask is empty, the item is left out: read it "
    "together with distance_share__mask, and with cremi_fp__mask and cremi_fn__mask, which do count it"
)
_P = f"{100 * PERCENTILE:g}th percentile"

METRICS: dict[str, Metric] = {
    "nsd__instance": _nsd(
        _nsd_instance,
        "of each matched pair, 0 for each unmatched reference or predicted instance, averaged",
        "sum over matched pairs of (#{r: d(r, P) <= tolerance} + #{p: d(p, R) <= tolerance}) / (#R + #P), divided by "
        "(number of reference instances + unmatched predictions)",
        "mean over the union of reference instances and unmatched predictions",
        "None if there is no instance on either side; 0.0 if only one side has any; a matched pair counts 0 if only "
        "one of the two has a surface, and is left out if neither has (both fill the image)",
    ),
    "nsd__pooled": _nsd(
        _share("boundary_elements_within", "boundary_elements"),
        "elements of matched pairs that agree with the partner's surface, against all elements of all instances",
        "sum over matched pairs of (#{r: d(r, P) <= tolerance} + #{p: d(p, R) <= tolerance}) / sum over all instances, "
        "matched or not, of #R + #P",
        "surface elements of everything added, pooled: large instances weigh more",
        "None if no instance has a surface; 0.0 if only one side has any",
    ),
    "nsd__mask": _nsd(
        _share("boundary_mask_elements_within", "boundary_mask_elements"),
        "of the organelle's mask, instances ignored: contacts between instances are no surface, merges cost nothing",
        "sum over items of (#{r: d(r, P) <= tolerance} + #{p: d(p, R) <= tolerance}) / sum over items of (#R + #P)",
        "surface elements of the masks of everything added, pooled; before any instance is dropped",
        "None if no mask has a surface; 0.0 if only one side has any",
    ),
    "hd95__matched_nm": _distance(
        _share("boundary_hd95_nm", "boundary_pairs_with_distance"),
        f"95 % Hausdorff distance between the surfaces of the matched pairs: the larger of the two directed {_P}s "
        "(interpolated linearly)",
        f"sum over matched pairs of max({_P} of d(r, P), {_P} of d(p, R)) / number of such pairs",
        PAIRS,
        _PAIR_EDGE,
        RELOADED,
    ),
    "msd__matched_nm": _distance(
        _share("boundary_msd_nm", "boundary_pairs_with_distance"),
        "mean symmetric surface distance of the matched pairs: mean over all elements of both surfaces",
        "sum over matched pairs of (sum of d(r, P) + sum of d(p, R)) / (#R + #P), divided by the number of such pairs",
        PAIRS,
        _PAIR_EDGE,
        RELOADED,
    ),
    "distance_share__instance": _found_share(
        _share("boundary_pairs_with_distance", "boundary_instances"),
        "share of instances that hd95__matched_nm and msd__matched_nm speak of",
        "matched pairs with a distance / (number of reference instances + unmatched predictions)",
        "share of the union of reference instances and unmatched predictions",
    ),
    "hd95__mask_nm": _distance(
        _share("boundary_mask_hd95_nm", "boundary_mask_items_with_distance"),
        f"95 % Hausdorff distance between the surfaces of the organelle's masks: the larger of the two directed {_P}s",
        f"sum over items of max({_P} of d(r, P), {_P} of d(p, R)) / number of such items",
        ITEMS.format(what="a surface"),
        _MASK_EDGE,
        RELOADED,
    ),
    "msd__mask_nm": _distance(
        _share("boundary_mask_distance_nm", "boundary_mask_elements_with_distance"),
        "mean symmetric surface distance of the organelle's masks",
        "sum over items of (sum of d(r, P) + sum of d(p, R)) / sum over items of (#R + #P)",
        "surface elements of the masks of everything added, pooled",
        _MASK_EDGE,
        RELOADED,
    ),
    "distance_share__mask": _found_share(
        _share("boundary_voxel_items_with_distance", "boundary_voxel_items"),
        "share of images or volumes where both masks have voxels, so that distances between the masks exist",
        "items with voxels on both sides / items with voxels on either side",
        "share of the images or volumes where either mask has voxels",
    ),
    "mfd_hausdorff__mask_nm": _distance(
        _share("boundary_mfd_hausdorff_nm", "boundary_voxel_items_with_distance"),
        "mean false distance as RETINA words it: mean of the two directed Hausdorff distances (each a maximum) between "
        "the voxels of the masks; not the average distance, which is mfd_average__mask_nm",
        "sum over items of (max over reference voxels of d(r, prediction) + max over predicted voxels of "
        "d(p, reference)) / 2, divided by the number of such items",
        ITEMS.format(what="voxels"),
        _VOXEL_EDGE,
        RETINA,
    ),
    "mfd_average__mask_nm": _distance(
        _share("boundary_mfd_mean_nm", "boundary_voxel_items_with_distance"),
        "mean false distance as COSEM computes it: mean of the two average distances from the voxels of one mask to "
        "the other, 0 where the masks overlap; for one item the same number as cremi_score__mask_nm",
        "sum over items of (mean over reference voxels of d(r, prediction) + mean over predicted voxels of "
        "d(p, reference)) / 2, divided by the number of such items",
        "mean over the images or volumes where both masks have voxels",
        _VOXEL_EDGE,
        COSEM,
    ),
    "cremi_adgt__mask_nm": _distance(
        _share("boundary_adgt_nm", "boundary_adgt_voxels"),
        "CREMI's average distance to ground truth: from the predicted voxels to the nearest reference voxel; grows "
        "with false positives",
        "sum over predicted voxels of d(p, reference) / number of predicted voxels",
        "predicted voxels of the images or volumes where both masks have voxels, pooled",
        _VOXEL_EDGE,
        CREMI,
    ),
    "cremi_adf__mask_nm": _distance(
        _share("boundary_adf_nm", "boundary_adf_voxels"),
        "CREMI's average distance from ground truth: from the reference voxels to the nearest predicted voxel; grows "
        "with false negatives",
        "sum over reference voxels of d(r, prediction) / number of reference voxels",
        "reference voxels of the images or volumes where both masks have voxels, pooled",
        _VOXEL_EDGE,
        CREMI,
    ),
    "cremi_score__mask_nm": _distance(
        _cremi,
        "CREMI score for clefts: mean of cremi_adgt__mask_nm and cremi_adf__mask_nm",
        "(cremi_adgt__mask_nm + cremi_adf__mask_nm) / 2",
        "voxels pooled on each side, then the mean of the two sides",
        _VOXEL_EDGE,
        CREMI,
    ),
    "cremi_fp__mask": _false_voxels("boundary_cremi_fp", "predicted", "reference"),
    "cremi_fn__mask": _false_voxels("boundary_cremi_fn", "reference", "predicted"),
}
