"""Which voxels are neighbours: 6 (faces), 18 (and edges) or 26 (and corners), per organelle.

::

    6: faces            18: faces, edges       26: faces, edges, corners
      . | .               o | o                  o | o        (the slice through the voxel and
     -- + --             -- + --                -- + --        one of its two neighbour slices:
      . | .               o | o                  o | o         corners exist only off-slice)

A 2D image is one slice: 6 becomes its 4-neighbourhood, 18 and 26 its 8-neighbourhood. scikit-image and scipy call these
connectivity 1, 2 and 3.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping

from em_bench_eval.errors import InputError, unknown_name
from em_bench_eval.schema import ORGANELLES, Organelle

CONNECTIVITIES = (6, 18, 26)

# Thin networks lose tubules with face contact only; compact organelles that touch merge with corner contact.
# Measured on expert instances (research/models.md, section 6): mito 0.936 with 6 against 0.891 with 26.
DEFAULT_CONNECTIVITY: Mapping[str, int] = {
    Organelle.MITO: 6,
    Organelle.NUCLEUS: 6,
    Organelle.ER: 26,
    Organelle.ENDO: 6,
    Organelle.GOLGI: 26,
}


def offsets(connectivity: int) -> list[tuple[int, int, int]]:
    """Return the neighbour offsets ``(dz, dy, dx)`` of a voxel, in raster order."""
    reach = {6: 1, 18: 2, 26: 3}[check_connectivity(connectivity)]
    steps = itertools.product((-1, 0, 1), (-1, 0, 1), (-1, 0, 1))
    return [step for step in steps if 1 <= sum(map(abs, step)) <= reach]


def check_connectivity(connectivity: int) -> int:
    """Return ``connectivity``, or raise ``InputError`` if it is not 6, 18 or 26."""
    if connectivity not in CONNECTIVITIES:
        raise InputError(
            "connectivity counts the neighbours of a voxel",
            found=connectivity,
            expected="6 (faces), 18 (faces and edges) or 26 (faces, edges and corners)",
            remedy="scipy's and scikit-image's connectivity 1, 2, 3 are 6, 18, 26 here",
        )
    return connectivity


def per_class(connectivity: int | Mapping[str, int], classes: Iterable[int]) -> dict[int, int]:
    """Resolve a setting to ``{semantic value: connectivity}``.

    A mapping names organelles (``{"mito": 6, "er": 26}``); organelles that it leaves out get their default.
    Raises ``InputError`` for an unknown organelle, or a value that is no organelle while a mapping is given.
    """
    if not isinstance(connectivity, Mapping):
        check_connectivity(connectivity)
        return dict.fromkeys(classes, connectivity)
    named = {Organelle(name).label_id: value for name, value in DEFAULT_CONNECTIVITY.items()}
    for name, value in connectivity.items():
        if str(name) not in ORGANELLES:
            raise unknown_name("organelle", str(name), ORGANELLES)
        named[Organelle(str(name)).label_id] = check_connectivity(value)
    strangers = sorted(set(classes) - set(named))
    if strangers:
        raise InputError(
            "connectivity per organelle needs a semantic volume of organelles",
            found=f"the values {strangers}",
            expected=f"0 to {len(ORGANELLES)}: background, {', '.join(ORGANELLES)}",
            remedy="give one connectivity for all classes, or map the classes first",
        )
    return {value: named[value] for value in classes}
