"""What a volume must know of the others of its source: whether validation is published, and where the others lie."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from em_bench_eval.schema import Frame, PublishedBox, Volume


def with_siblings(volumes: Iterable[Volume]) -> list[Volume]:
    """Tell every volume of a source what the source publishes for validation and test (see ``splits``).

    Volumes stay as they are where the source publishes neither.
    """
    found = list(volumes)
    validation = any(volume.published_fold == "validation" for volume in found)
    frames = {volume.frame.name: _frame(volume.frame, found) for volume in found if volume.frame is not None}
    return [
        replace(
            volume,
            validation_published=validation,
            frame=None if volume.frame is None else frames[volume.frame.name],
        )
        for volume in found
    ]


def _frame(frame: Frame, volumes: Iterable[Volume]) -> Frame:
    """Return the frame with the boxes that are published, which are not cut with the rest."""
    inside = [volume for volume in volumes if volume.frame is not None and volume.frame.name == frame.name]
    boxes = tuple(box for volume in inside if (box := _box_of(volume)))
    if not boxes:
        return frame
    spans = [volume.span for volume in inside if _box_of(volume) is None]
    return replace(frame, published=boxes, spans=tuple(span for span in spans if span is not None))


def _box_of(volume: Volume) -> PublishedBox | None:
    if volume.published_fold not in ("validation", "test"):
        return None
    assert volume.origin_nm is not None, "volumes in frames have an origin"
    places = zip(volume.origin_nm, volume.image.shape, volume.voxel_size, strict=True)
    z, y, x = (low + int(edge) * nm for low, edge, nm in places)
    return PublishedBox(volume.published_fold, volume.origin_nm, (z, y, x))
