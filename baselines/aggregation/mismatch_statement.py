"""What the numbers of a mismatch say, in words; nothing here that is not computed from them."""

from __future__ import annotations

from baselines.aggregation.mismatch import AGGREGATIONS, Mismatch, OrganelleMismatch, gaps

APART = "instances that touch or lie in several pieces, which connected components cannot tell"
NAMES = {  # of the three parts of what patches lose
    "gap_id": "the definition of an instance",
    "pixels": "pixels",
    "contacts": "touching instances",
}
MEANING = {
    "dice__size": "mean Dice over reference instances, weighted by their size",
    "dice__reference": "mean Dice over reference instances",
    "dice__instance": "mean Dice over reference instances and unmatched predictions",
    "dice__pooled": "Dice of the voxels of matched instances against those of all instances",
}
NOTHING = 0.005  # differences below are called none
WORTH_A_WORD = 0.02  # of what stitching costs
CLEAR = 2.0  # how many times larger than the next part a main cause is


def statement(found: Mismatch, key: str = AGGREGATIONS[0]) -> str:
    """Return a paragraph for each organelle, after a line that says what is measured."""
    lines = [f"Instance Dice here: {MEANING[key]} ({key})."]
    lines += [of_organelle(name, part, key, found) for name, part in found.organelles.items()]
    if found.not_predicted:
        lines.append(f"Annotated, but not predicted by this model: {', '.join(found.not_predicted)}.")
    if found.empty:
        lines.append(f"No instance that is large enough to be judged: {', '.join(found.empty)}.")
    return "\n\n".join(lines)


def of_organelle(name: str, part: OrganelleMismatch, key: str, found: Mismatch) -> str:
    """Say what one organelle loses in patches, and what aggregation gets back."""
    predicted = "predicted" in part.levels
    measured = gaps(part, key, "predicted" if predicted else "oracle")
    gap = {what: value for what, value in measured.items() if value is not None}
    if len(gap) < len(measured):
        return f"{name}: no statement, because no instance is large enough to be judged at some level."
    if (
        predicted
        and not part.value("L5", "n_prediction", "predicted")
        and not part.value("L5", "semantic_dice", "predicted")
    ):
        return f"{name}: nothing is predicted, so all of it is lost to pixels at every level."
    where = "whole slices (one patch each)" if found.about["one_patch_per_slice"] else "patches"
    where += "" if predicted else " with perfect pixels"
    text = [f"{name}: {where} score {1 - gap['lost']:.2f} against the ids of the volume."]
    if gap["lost"] >= NOTHING:
        parts = {what: gap[what] for what in NAMES if predicted or what != "pixels"}
        shares = [f"{_digits(value)} {NAMES[what]}" for what, value in parts.items()]
        shares[0] = shares[0].replace(" ", " is ", 1)
        text.append(f"Of the {gap['lost']:.2f} lost, {', '.join(shares[:-1])} and {shares[-1]}. {_cause(parts)}")
    text.append(_of_pieces(part))
    steps = [f"linking them through z {_change(gap['through_z'])}"]
    if not found.about["one_patch_per_slice"]:
        steps.insert(0, f"whole slices instead of patches make {_change(gap['field_of_view'])}")
    else:
        steps[0] = steps[0].replace("them through z", "the slices through z makes")
    text.append(f"The stitched volume scores {1 - gap['left']:.2f}, {_change(gap['gap_stitch'])}: {', '.join(steps)}.")
    if gap["gap_stitch"] <= -WORTH_A_WORD and _merges_more(part, "predicted" if predicted else "oracle"):
        text.append("It loses because one contact anywhere joins two instances in the whole volume, not in one image.")
    if not found.about["one_block"] and name not in found.about["too_small_blocks"]:
        blocks = 1 - gap["left"] - gap["blocks"]
        text.append(f"In 3D blocks of {found.about['cuts']['block']} voxels, not stitched, it would be {blocks:.2f}.")
    if predicted and gap["left"] >= NOTHING:
        text.append(
            f"Of the {gap['left']:.2f} still missing, {_digits(gap['gap_pixel'])} is pixels and {_digits(gap['rule'])} "
            f"{APART}."
        )
    elif gap["rule"] >= NOTHING:
        text.append(f"The {gap['rule']:.2f} still missing is {APART}.")
    if min(gap["gap_pixel"], gap["pixels"]) <= -NOTHING:
        text.append("A negative part is a gain: some wrong pixels join pieces of an instance, or part two that touch.")
    return " ".join(sentence for sentence in text if sentence)


def _merges_more(part: OrganelleMismatch, semantics: str) -> bool:
    """Whether the stitched volume has more merges than patches, by the variation of information."""
    merges = [part.value(level, "voi_merge__union", semantics) for level in ("L1", "L5")]
    return merges[0] is not None and merges[1] is not None and merges[1] > merges[0]


def main_cause(part: OrganelleMismatch, key: str, semantics: str) -> str | None:
    """Return the key of ``NAMES`` that most of the loss in patches is due to; None if none clearly is."""
    gap = gaps(part, key, semantics)
    parts = {what: value for what in NAMES if (value := gap[what]) is not None}
    return _largest(parts)


def _largest(parts: dict[str, float]) -> str | None:
    ordered = sorted(parts, key=lambda what: -parts[what])
    if not ordered or parts[ordered[0]] < NOTHING:
        return None
    second = max(parts[ordered[1]], 0.0) if len(ordered) > 1 else 0.0
    return ordered[0] if parts[ordered[0]] >= CLEAR * second else None


def _cause(parts: dict[str, float]) -> str:
    cause = _largest(parts)
    return f"The main cause is {NAMES[cause]}." if cause else "No single cause dominates."


def _of_pieces(part: OrganelleMismatch) -> str:
    found = part.fragmentation.get("patch")
    if found is None or found.f_mean is None or found.f_size is None:
        return ""
    return (
        f"An instance lies in {found.pieces / found.instances:.1f} pieces an image, and the largest holds a share f of "
        f"{found.f_mean:.2f} of it ({found.f_size:.2f} by size)."
    )


def _digits(value: float) -> str:
    """Two digits, never -0.00."""
    return f"{round(value, 2) + 0.0:.2f}"


def _change(value: float) -> str:
    return f"{round(value, 2) + 0.0:+.2f}"
