"""Network family, from overlaps: variation of information and adapted Rand error, which see every merge and split."""

from __future__ import annotations

from .metric import Metric, Statistics, Value, ratio

MEILA = "Meila 2007, doi:10.1016/j.jmva.2006.11.013"
RAND = "Arganda-Carreras et al. 2015, doi:10.3389/fnana.2015.00142"
DOMAINS = {
    "foreground": (
        "the reference's foreground; a missed voxel is a segment of its own, what is predicted outside costs nothing "
        "(the usual convention of connectomics: read it together with semantic_precision)",
        "None without reference voxels, whatever is predicted",
    ),
    "union": (
        "both foregrounds together; a voxel that only one side has is a segment of its own on the other side, so that "
        "missing and painting over cost as well",
        "None without voxels on either side",
    ),
}


def _entropy(domain: str, *parts: str) -> Metric:
    where, edge_cases = DOMAINS[domain]
    terms = {
        "split": ("H(prediction | reference)", "splits: bits that the prediction adds inside reference instances"),
        "merge": ("H(reference | prediction)", "merges: bits of the reference that the prediction loses"),
    }

    def compute(s: Statistics) -> Value:
        voxels = s[f"{domain}_voxels"]
        return ratio(sum(s[f"{domain}_{part}"] for part in parts), voxels, voxels)

    return Metric(
        compute,
        f"variation of information, {' and '.join(terms[part][1] for part in parts)}, over {where}",
        " + ".join(terms[part][0] for part in parts) + ", in bits",
        "0..",
        "voxels of the domain, pooled over items; ids of different items are different segments",
        edge_cases,
        MEILA,
        "network",
        better="lower",
    )


def _rand(domain: str) -> Metric:
    where, edge_cases = DOMAINS[domain]

    def compute(s: Statistics) -> Value:
        pairs = s["pairs_reference"] + s[f"{domain}_pairs_prediction"]
        if not pairs:  # voxels, but no two in one segment: no pair can be wrong
            return ratio(0.0, 0.0, s[f"{domain}_voxels"])
        return 1.0 - 2 * s["pairs_joint"] / pairs

    return Metric(
        compute,
        f"adapted Rand error: 1 - F1 score of 'these two voxels belong together', over {where}",
        "1 - 2 * pairs together in both / (pairs together in the reference + pairs together in the prediction)",
        "0..1",
        "pairs of voxels, pooled over items",
        edge_cases,
        RAND,
        "network",
        better="lower",
    )


METRICS: dict[str, Metric] = {
    f"{name}__{domain}": metric
    for domain in DOMAINS
    for name, metric in {
        "voi_split": _entropy(domain, "split"),
        "voi_merge": _entropy(domain, "merge"),
        "voi": _entropy(domain, "split", "merge"),
        "arand": _rand(domain),
    }.items()
}
