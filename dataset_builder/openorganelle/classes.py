"""From the classes of CellMap and OpenOrganelle to the five organelles.

Two rules have to be chosen, because a voxel has one class here:

* the nuclear envelope (membrane, lumen, pores) belongs to both ``nuc`` and ``er`` in CellMap. Default: nucleus.
* lysosomes (``lyso``) are a class of their own beside endosomes (``endo``). Default: kept out of endo, background.

Class names and ids: classes.csv of the CellMap challenge; the 2021 copies use the same ids up to 37.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from em_bench_eval.schema import Organelle

NE_RULES = ("nucleus", "er")
LYSO_RULES = ("separate", "endo")


@dataclass(frozen=True)
class Rules:
    """How classes that could go either way are assigned."""

    nuclear_envelope: str = "nucleus"  # one of NE_RULES
    lysosome: str = "separate"  # one of LYSO_RULES

    @property
    def precedence(self) -> tuple[Organelle, ...]:
        """Which organelle a voxel is that several arrays claim, first wins.

        The smaller structure lies in or on the larger one. ``nuc`` and ``er`` share the nuclear envelope and nothing
        else, so their order is the rule of the envelope.
        """
        envelope = (Organelle.NUCLEUS, Organelle.ER)
        last = envelope if self.nuclear_envelope == "nucleus" else envelope[::-1]
        return Organelle.MITO, Organelle.GOLGI, Organelle.ENDO, *last

    def organelle(self, kind: str) -> Organelle | None:
        """Return the organelle of a kind of structure (a key of ``MEMBERS``); ``None`` for one that is kept out."""
        if kind == "ne":
            return Organelle.NUCLEUS if self.nuclear_envelope == "nucleus" else Organelle.ER
        if kind == "lyso":
            return Organelle.ENDO if self.lysosome == "endo" else None
        return Organelle(kind)

    def __str__(self) -> str:
        lysosome = "part of endo" if self.lysosome == "endo" else "kept out of endo (background)"
        return f"nuclear envelope: {self.nuclear_envelope}; lysosomes: {lysosome}"


# structure -> CellMap atomic classes and their ids; "er" without the envelope, which is "ne"
MEMBERS: Mapping[str, Mapping[str, int]] = {
    "mito": {"mito_mem": 3, "mito_lum": 4, "mito_ribo": 5},
    "golgi": {"golgi_mem": 6, "golgi_lum": 7},
    "endo": {"endo_mem": 10, "endo_lum": 11},
    "lyso": {"lyso_mem": 12, "lyso_lum": 13},
    "er": {"er_mem": 16, "er_lum": 17, "eres_mem": 18, "eres_lum": 19},
    "ne": {"ne_mem": 20, "ne_lum": 21, "np_out": 22, "np_in": 23},
    "nucleus": {"hchrom": 24, "nhchrom": 25, "echrom": 26, "nechrom": 27, "nucpl": 28, "nucleo": 29},
}
# what a crop must have annotated for the atomic classes to make up the structure; the others are parts of these or rare
CORE: Mapping[str, Sequence[str]] = {
    "mito": ("mito_mem", "mito_lum"),
    "golgi": ("golgi_mem", "golgi_lum"),
    "endo": ("endo_mem", "endo_lum"),
    "lyso": ("lyso_mem", "lyso_lum"),
    "er": ("er_mem", "er_lum"),
    "ne": ("ne_mem", "ne_lum"),
    "nucleus": ("hchrom", "echrom", "nucpl"),
}
GROUPS: Mapping[str, str] = {
    "mito": "mito",
    "golgi": "golgi",
    "endo": "endo",
    "lyso": "lyso",
    "er": "er",
    "nucleus": "nuc",
}
# ids of groups that `all` holds where nothing finer was drawn; 38 and up mean other things in the 2021 copies
GROUP_IDS: Mapping[int, str] = {
    37: "nucleus",
    40: "golgi",
    42: "endo",
    43: "lyso",
    46: "er",
    50: "mito",
    51: "er",
    52: "ne",
    53: "ne",
    54: "nucleus",
    65: "ne",
}
LARGEST_2021_ID = 37
ALL = "all"
CROP_CLASSES = (ALL, *GROUPS.values(), *(name for members in MEMBERS.values() for name in members))

# classes of crops that are none of the five; their arrays are named in the provenance of a volume
EXTRAS: Mapping[str, str] = {
    "lyso": "lysosomes (part of endo with option lyso=endo)",
    "ves": "vesicles",
    "ld": "lipid droplets",
    "perox": "peroxisomes",
    "mt": "microtubules",
    "pm": "plasma membrane",
    "cell": "cells",
}
# whole-volume arrays: structure -> names without "_seg", best first; membranes (er-mem) are a part and are left out
SEGMENTATIONS: Mapping[str, Sequence[str]] = {
    "mito": ("mito", "mito_bag", "empanada-mito", "mitochondria"),
    "golgi": ("golgi",),
    "endo": ("endo", "endosome"),
    "lyso": ("lyso", "lysosome"),
    "er": ("er",),
    "ne": ("ne",),
    "nucleus": ("nuc", "nucleus"),
}


def structure_of(array_name: str) -> str | None:
    """Return the structure that an array segments: ``mito_bag_seg`` is ``mito``; ``None`` for no organelle."""
    stem = array_name.rpartition("/")[2].removesuffix("_seg")
    return next((structure for structure, names in SEGMENTATIONS.items() if stem in names), None)


def choose_segmentations(array_names: Iterable[str]) -> tuple[dict[str, str], list[str]]:
    """Choose one array per structure; return ``({structure: array}, arrays left out)``."""
    chosen: dict[str, str] = {}
    left: list[str] = []

    def rank(name: str) -> tuple[int, int, str]:
        stem = name.rpartition("/")[2].removesuffix("_seg")
        structure = structure_of(name)
        return (SEGMENTATIONS[structure].index(stem) if structure else 0, name.count("/"), name)

    for name in sorted(array_names, key=rank):
        structure = structure_of(name)
        if structure is None or structure in chosen:
            left.append(name)
        else:
            chosen[structure] = name
    return chosen, sorted(left)


def table_of_all(rules: Rules, published_2021: bool) -> npt.NDArray[np.uint8]:
    """Return the table from the ids of an array ``all`` to ``Organelle.label_id``; 0 for any other class."""
    kinds = {**GROUP_IDS, **{id_: kind for kind, members in MEMBERS.items() for id_ in members.values()}}
    table = np.zeros(256, np.uint8)
    for id_, kind in kinds.items():
        organelle = rules.organelle(kind)
        if organelle is not None and not (published_2021 and id_ > LARGEST_2021_ID):
            table[id_] = organelle.label_id
    return table


@dataclass(frozen=True)
class Choice:
    """Which arrays of a crop make up one structure."""

    structure: str
    arrays: tuple[str, ...]
    whole: bool  # one array for the structure, which may hold instance ids; else its parts


def choose_crop_arrays(annotated: Iterable[str], rules: Rules) -> list[Choice]:
    """Choose the arrays for each structure from the classes that a crop names as annotated.

    The group's own array if there is one, else its atomic classes if all that make it up are annotated. ``er`` of
    CellMap includes the envelope; where er or nucleus is put together from parts the envelope comes from ``ne``.
    """
    names = set(annotated)
    choices = []
    for structure, group in GROUPS.items():
        if rules.organelle(structure) is None:
            continue
        if group in names:
            choices.append(Choice(structure, (group,), whole=True))
        elif set(CORE[structure]) <= names:
            choices.append(Choice(structure, tuple(name for name in MEMBERS[structure] if name in names), whole=False))
    parts = {choice.structure for choice in choices if not choice.whole}
    if parts & {"er", "nucleus"}:
        envelope = ("ne",) if "ne" in names else tuple(name for name in MEMBERS["ne"] if name in names)
        if envelope == ("ne",) or set(CORE["ne"]) <= set(envelope):
            choices.append(Choice("ne", envelope, whole=False))
    return choices
