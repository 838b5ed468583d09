"""What a maintainer should know of a build that is no fault."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from dataset_builder.source import load_source, source_names
from dataset_builder.spec import load_spec
from dataset_builder.splits import Slab, SplitPolicy
from em_bench_eval.schema import VoxelSize

NAMED = 3  # volumes


class Sliced(NamedTuple):
    """A volume, and what decides along which axes it is sliced."""

    volume_id: str
    voxel_size: VoxelSize
    slabs: Sequence[Slab]


def axes_note(policy: SplitPolicy, volumes: Iterable[Sliced]) -> str | None:
    """Say which volumes have no images along y and x although these are asked for, and why."""
    found = [volume for volume in volumes if volume.slabs]
    reasons: dict[str, list[str]] = {}
    for name, voxel_size, slabs in found:
        if reason := policy.only_z(voxel_size, slabs):
            reasons.setdefault(reason, []).append(name)
    if not reasons:
        return None
    told = "; ".join(
        f"{reason} ({', '.join(names[:NAMED])}{', ...' if len(names) > NAMED else ''})"
        for reason, names in reasons.items()
    )
    count = sum(map(len, reasons.values()))
    return f"note: --axes all adds no images along y and x to {count} of {len(found)} volumes: {told}"


def modality_notes(spec: Path) -> list[str]:
    """Say which modalities of a spec no source has: what is not called FIB-SEM can never be homogeneous."""
    sources = [source for source in map(load_source, source_names()) if source.declare is None]
    known = {name for source in sources for name in re.findall(r"[\w-]*(?:SEM|TEM)\b", source.info.modality)}
    plain = {_plain(name): name for name in sorted(known)}
    notes = []
    for modality in dict.fromkeys(volume.modality for volume in load_spec(spec).volumes):
        if modality not in known:
            near = difflib.get_close_matches(_plain(modality), plain, n=1)
            hint = f"did you mean {plain[near[0]]!r}?" if near else f"sources have {', '.join(sorted(known))}."
            notes.append(f"note: {spec}: modality {modality!r} is new; {hint} Only FIB-SEM can be homogeneous")
    return notes


def _plain(modality: str) -> str:
    return re.sub(r"\W|_", "", modality).casefold()
