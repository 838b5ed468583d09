"""What changes the numbers of a score, and its fingerprint."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

from .errors import InputError, unknown_name
from .schema import ORGANELLES

METRIC_VERSION = "2"  # raised whenever a definition changes: scores of different versions are not comparable
REFERENCE_IDS = ("volume", "slice")
BORDER = ("judge", "ignore")
NETWORKS = ("er", "golgi")


@dataclass(frozen=True)
class Settings:
    """What changes the numbers, and what is measured; results are comparable only at equal ``hash()``.

    Attributes:
        min_size_nm: reference and predicted instances smaller than this are not judged (nm^2 in images, nm^3 in
            volumes; the part outside the ignored region counts).
        iou_threshold: what makes a true positive of ``pq``, ``f1``, ``precision``, ``recall``: IoU above it; at least
            0.5, so that true positives are unique.
        reference_ids: "volume" takes reference ids as published, where one instance may lie in several pieces of an
            image; "slice" gives every 8-connected piece of the reference image its own id first.
        border: "judge" scores reference instances that the border of the image or volume cuts like all others;
            "ignore" does not judge them, and what is predicted on their voxels costs nothing. Predictions that touch
            the border are judged either way: otherwise false positives could be hidden there.
        tolerance_nm: how far two surfaces may be apart and still agree (``nsd``).
        skeleton, boundary: the organelles whose skeletons (``cldice``, ``erl``, ...) and surfaces (``nsd``, ``hd95``,
            ...) are measured, which takes longer than counting overlaps. They add keys and change no number, so they
            are not part of the hash.
    """

    min_size_nm: float = 0.0
    iou_threshold: float = 0.5
    reference_ids: Literal["volume", "slice"] = "volume"
    border: Literal["judge", "ignore"] = "judge"
    tolerance_nm: float = 16.0
    skeleton: tuple[str, ...] = ()
    boundary: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, known in (("reference_ids", REFERENCE_IDS), ("border", BORDER)):
            if getattr(self, name) not in known:
                raise unknown_name(f"setting of {name}", str(getattr(self, name)), known)
        for name in ("min_size_nm", "iou_threshold", "tolerance_nm"):
            object.__setattr__(self, name, float(getattr(self, name)))
        for name in ("skeleton", "boundary"):
            object.__setattr__(self, name, _organelles(name, getattr(self, name)))
        for name in ("min_size_nm", "tolerance_nm"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise InputError(f"{name} is out of range", found=value, expected="a finite number >= 0")
        if not 0.5 <= self.iou_threshold < 1:
            raise InputError("iou_threshold is out of range", found=self.iou_threshold, expected="0.5 up to below 1")

    def hash(self) -> str:
        """Return 12 hexadecimal digits that identify these settings and the metric version."""
        chosen: dict[str, Any] = {"metric_version": METRIC_VERSION, **asdict(self)}
        del chosen["skeleton"], chosen["boundary"]
        return hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()[:12]


def _organelles(setting: str, given: Iterable[str]) -> tuple[str, ...]:
    """Check organelle names and bring them into the order of the benchmark; one string is one name."""
    names = [given] if isinstance(given, str) else list(given)
    for name in names:
        if name not in ORGANELLES:
            raise unknown_name(f"organelle in the setting {setting}", str(name), ORGANELLES)
    return tuple(name for name in ORGANELLES if name in names)


DEFAULT_SETTINGS = Settings()
