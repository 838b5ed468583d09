"""What ``em-bench build`` would make, from what the sources declare: no voxel is converted and nothing is written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from dataset_builder.blueprint import Limits
from dataset_builder.cli import format_bytes
from dataset_builder.jobs import Job, check_jobs
from dataset_builder.layout import layout_of
from dataset_builder.leaks import Placed, Site, check_leaks
from dataset_builder.notes import Sliced, axes_note
from dataset_builder.splits import SplitPolicy, part_of
from em_bench_eval.errors import InputError
from em_bench_eval.schema import Volume

# PNG bytes a pixel. Measured on Lucchi++ (FIB-SEM) 0.74, VNC (ssTEM) 0.80, HeLa (SBF-SEM) 0.55; label maps of these and
# of UroCell 0.005 to 0.015. Assumed to hold for the volumes too, and for the sources that are none of these.
IMAGE_RATIO, LABEL_RATIO = 0.75, 0.01


def preview(jobs: Sequence[Job], policy: SplitPolicy, limits: Limits) -> str:
    """Return a table of volumes with their specimen groups, rows by fold, and bytes.

    Sources that generate their volumes generate them. Raises ``InputError`` as a build would, for what shows without
    reading voxels: specimens and places on both sides of the split do, images that look alike do not.
    """
    check_jobs(jobs)
    lines = []
    rows: Counter[tuple[str, str, str]] = Counter()
    seen: set[str] = set()
    placed: list[Placed] = []
    sites: dict[str, Site] = {}
    sliced: list[Sliced] = []
    specimens: list[str] = []
    read = stored = 0.0
    for job in jobs:
        for volume in job.volumes():
            if volume.volume_id in seen:
                raise InputError(f"two volumes are called {volume.volume_id}", remedy="rename one in its source")
            seen.add(volume.volume_id)
            placed += _placed(volume, policy)
            sites |= _site(volume)
            sliced.append(Sliced(volume.volume_id, volume.voxel_size, policy.slabs_of(volume)))
            specimens.append(volume.specimen)
            of_volume = rows_by_fold(volume, policy, limits)
            pixels = sum(count * area for _, count, area in of_volume)
            size = " x ".join(str(edge) for edge in volume.image.shape)
            folds: Counter[str] = Counter()
            for fold, count, _ in of_volume:
                folds[fold] += count
                rows[part_of(volume), fold, policy.domain_of(volume)] += count
            text = ", ".join(f"{fold} {count}" for fold, count in folds.items())
            kind = f"{part_of(volume)}, {policy.domain_of(volume)}"
            lines.append(f"  {volume.volume_id}: {size} voxels, specimen {volume.specimen}, {kind}; {text}")
            voxels = float(np.prod([int(edge) for edge in volume.image.shape]))
            labels = volume.semantic if volume.semantic is not None else volume.instances
            assert labels is not None, "Volume holds one of the two"
            read += voxels * (np.dtype(volume.image.dtype).itemsize + np.dtype(labels.dtype).itemsize)
            stored += (pixels + 8 / 7 * voxels) * (IMAGE_RATIO + LABEL_RATIO)
    policy.check_held_out(specimens)
    policy.check_complete(seen)
    check_leaks(placed, policy.gap_nm, sites, policy.leak_remedy)
    note = axes_note(policy, sliced)
    summary = [f"  {part:<13} {fold:<10} domain {domain:<3} {n:>8} rows" for (part, fold, domain), n in rows.items()]
    total = f"{len(seen)} volumes, {sum(rows.values())} rows"
    size = f"{format_bytes(read)} of raw voxels; about {format_bytes(stored)} would be written"
    return "\n".join([f"would build {total}: {size}", *lines, *sorted(summary), *([note] if note else [])])


def _placed(volume: Volume, policy: SplitPolicy) -> list[Placed]:
    """Return where the rows of a volume lie, slab by slab; how they look is not known."""
    slice_nm, specimen, domain = volume.voxel_size.z, volume.specimen, policy.domain_of(volume)
    return [
        Placed(
            volume.volume_id,
            slab.start,
            slice_nm,
            specimen,
            slab.fold,
            domain,
            fingerprint=None,
            z_range=(slab.start, slab.stop),
        )
        for slab in policy.slabs_of(volume)
    ]


def _site(volume: Volume) -> dict[str, Site]:
    if volume.frame is None or volume.origin_nm is None:
        return {}
    return {volume.volume_id: Site.of(volume.frame.name, volume.origin_nm, volume.image.shape, volume.voxel_size)}


def rows_by_fold(volume: Volume, policy: SplitPolicy, limits: Limits) -> list[tuple[str, int, int]]:
    """Return ``(fold, rows, pixels of one)`` for every slab and axis of a volume."""
    _, height, width = (int(edge) for edge in volume.image.shape)
    found: list[tuple[str, int, int]] = []
    for slab in policy.slabs_of(volume):
        thick = slab.stop - slab.start
        planes = {"z": (thick, height, width), "y": (height, thick, width), "x": (width, thick, height)}
        for axis in policy.axes_of(volume):
            slices, rows, columns = planes[axis]
            if axis == "z" or thick >= policy.smallest_cut:
                tiles = len(list(layout_of((1, rows, columns), limits.max_side).boxes()))
                found.append((slab.fold, slices * tiles, rows * columns // tiles))
    return found
