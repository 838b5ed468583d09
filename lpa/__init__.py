"""3D label propagation: semantic volumes to instance volumes (paper, section 3.2).

``lpa.label`` is exact and fast, ``lpa.label_zarr`` the same for volumes of any size on disk or on a server;
``lpa.propagate`` is the paper's iteration as written, their reference. ``lpa.split`` takes touching instances apart,
``lpa.clean`` tidies up, ``lpa.measure`` makes one table row per instance.
"""

from em_bench_eval.volume_io import open_volume
from lpa.blockwise import label_zarr
from lpa.clean import clean
from lpa.connectivity import DEFAULT_CONNECTIVITY
from lpa.deferred import DeferredLabels
from lpa.label import label
from lpa.measure import measure
from lpa.propagate import propagate
from lpa.propagate_torch import propagate_torch
from lpa.split import DEFAULT_RULES, SHEETS, SplitDecision, split
from lpa.split_rules import NeckRule, SheetRule

__all__ = [
    "DEFAULT_CONNECTIVITY",
    "DEFAULT_RULES",
    "SHEETS",
    "DeferredLabels",
    "NeckRule",
    "SheetRule",
    "SplitDecision",
    "clean",
    "label",
    "label_zarr",
    "measure",
    "open_volume",
    "propagate",
    "propagate_torch",
    "split",
]
