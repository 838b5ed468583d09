"""What is known about the data sets before any is opened: cell, specimen group, voxel size, polarity, 16-bit window.

From the manifests of janelia-cellmap/fibsem-metadata (2023) and the crop manifests of the CellMap challenge (2024). A
data set of the bucket that is not listed here builds too, as its own specimen group.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class DataSet:
    """One acquisition. Groups are drawn wide where preparations may be shared: a leak costs more than a volume."""

    cell_type: str
    specimen: str = ""  # specimen group; empty: the data set's own name
    voxel_nm: tuple[float, float, float] | None = None  # nominal, (z, y, x): checked against what the EM array states
    inverted_8bit: bool = False  # the 8-bit array shows heavy metal bright
    window_16bit: tuple[int, int] | None = None  # display range of the 16-bit array in the manifests


HELA = "HeLa, wild type"
ISLET = "mouse pancreatic islet"
# name shared with the source betaseg, whose cells come from the same publication (10.1083/jcb.202010039)
ISLETS = "mus-pancreas-islets"

DATASETS: Mapping[str, DataSet] = {
    # whole cells with all five organelles; cells 2 and 3 of one preparation (Aubrey_17-7-17)
    "jrc_hela-2": DataSet(HELA, "jrc_hela-wt", (5.24, 4.0, 4.0), window_16bit=(24444, 34078)),
    "jrc_hela-3": DataSet(HELA, "jrc_hela-wt", (3.24, 4.0, 4.0), window_16bit=(20512, 26803)),
    "jrc_jurkat-1": DataSet("Jurkat T cell", "", (3.44, 4.0, 4.0), window_16bit=(19463, 26345)),
    "jrc_macrophage-2": DataSet("THP-1 macrophage", "", (3.36, 4.0, 4.0), window_16bit=(19463, 28573)),
    # some organelles segmented
    "jrc_ctl-id8-2": DataSet("cytotoxic T cell and ID8 tumour cell", "jrc_ctl-id8", (8.0, 8.0, 8.0)),
    "jrc_choroid-plexus-2": DataSet("mouse choroid plexus", "jrc_choroid-plexus", (8.0, 8.0, 8.0)),
    "jrc_hela-1": DataSet(HELA, "jrc_hela-wt", (8.0, 8.0, 8.0)),
    "jrc_hela-bfa": DataSet("HeLa, brefeldin A", "", (8.0, 8.0, 8.0)),
    "jrc_mus-liver": DataSet("mouse liver", "jrc_mus-liver", (8.0, 8.0, 8.0)),
    "jrc_dauer-larva": DataSet("C. elegans dauer larva", "", (70.0, 4.0, 4.0)),
    # collections of the CellMap challenge: ground-truth crops
    "jrc_cos7-1a": DataSet("COS-7", "jrc_cos7-1"),
    "jrc_cos7-1b": DataSet("COS-7", "jrc_cos7-1"),
    "jrc_ctl-id8-1": DataSet("cytotoxic T cell and ID8 tumour cell", "jrc_ctl-id8"),
    "jrc_fly-mb-1a": DataSet("fruit fly mushroom body"),
    "jrc_fly-vnc-1": DataSet("fruit fly ventral nerve cord"),
    "jrc_mus-heart-1": DataSet("mouse heart"),
    "jrc_mus-kidney": DataSet("mouse kidney", "jrc_mus-kidney", (8.0, 8.0, 8.0)),
    "jrc_mus-kidney-3": DataSet("mouse kidney", "jrc_mus-kidney"),
    "jrc_mus-kidney-glomerulus-2": DataSet("mouse kidney glomerulus", "jrc_mus-kidney"),
    "jrc_mus-liver-3": DataSet("mouse liver", "jrc_mus-liver"),
    "jrc_mus-liver-zon-1": DataSet("mouse liver", "jrc_mus-liver-zon"),
    "jrc_mus-liver-zon-2": DataSet("mouse liver", "jrc_mus-liver-zon"),
    "jrc_mus-nacc-1": DataSet("mouse nucleus accumbens", "jrc_mus-nacc"),
    "jrc_mus-nacc-2": DataSet("mouse nucleus accumbens", "jrc_mus-nacc", inverted_8bit=True),
    "jrc_mus-nacc-3": DataSet("mouse nucleus accumbens", "jrc_mus-nacc", inverted_8bit=True),
    "jrc_mus-nacc-4": DataSet("mouse nucleus accumbens", "jrc_mus-nacc", inverted_8bit=True),
    "jrc_sum159-1": DataSet("SUM159 breast cancer cell", "jrc_sum159"),
    "jrc_sum159-4": DataSet("SUM159 breast cancer cell", "jrc_sum159"),
    "jrc_ut21-1413-003": DataSet("tissue, see OpenOrganelle"),
    "jrc_zf-cardiac-1": DataSet("zebrafish heart"),
    # raw only in the metadata of 2023
    "jrc_mus-pancreas-1": DataSet(ISLET, ISLETS, (3.4, 4.0, 4.0), window_16bit=(7077, 13041)),
    "jrc_mus-pancreas-2": DataSet(ISLET, ISLETS, (4.0, 4.0, 4.0)),
    "jrc_mus-pancreas-3": DataSet(ISLET, ISLETS, (4.0, 4.0, 4.0), inverted_8bit=True),
    # the rest of a published list of 23 volumes whose 8-bit image has to be inverted
    "jrc_ccl81-covid-1": DataSet("CCL-81, SARS-CoV-2", inverted_8bit=True),
    "jrc_fly-acc-calyx-1": DataSet("fruit fly brain", inverted_8bit=True),
    "jrc_fly-fsb-1": DataSet("fruit fly brain", "jrc_fly-fsb", inverted_8bit=True),
    "jrc_hela-4": DataSet("HeLa", inverted_8bit=True),
    "jrc_hela-22": DataSet("HeLa, RUSH cargo", "jrc_hela-rush", (8.0, 8.0, 8.0), inverted_8bit=True),
    "jrc_hela-h89-1": DataSet("HeLa, H89", "jrc_hela-h89", inverted_8bit=True),
    "jrc_hela-h89-2": DataSet("HeLa, H89", "jrc_hela-h89", inverted_8bit=True),
    "jrc_hela-nz-1": DataSet("HeLa, nocodazole", "jrc_hela-nz", inverted_8bit=True),
    "jrc_hela-nz-2": DataSet("HeLa, nocodazole", "jrc_hela-nz", inverted_8bit=True),
    "jrc_mus-cerebellum-4": DataSet("mouse cerebellum", "jrc_mus-cerebellum", inverted_8bit=True),
    "jrc_mus-cerebellum-5": DataSet("mouse cerebellum", "jrc_mus-cerebellum", inverted_8bit=True),
    "jrc_mus-cortex-3": DataSet("mouse cortex", "jrc_mus-cortex", inverted_8bit=True),
    "jrc_mus-dorsal-striatum": DataSet("mouse dorsal striatum", "jrc_mus-dorsal-striatum", inverted_8bit=True),
    "jrc_mus-dorsal-striatum-2": DataSet("mouse dorsal striatum", "jrc_mus-dorsal-striatum", inverted_8bit=True),
    "jrc_mus-granule-neurons-1": DataSet("mouse granule neurons", "jrc_mus-granule-neurons", inverted_8bit=True),
    "jrc_mus-granule-neurons-2": DataSet("mouse granule neurons", "jrc_mus-granule-neurons", inverted_8bit=True),
    "jrc_mus-granule-neurons-3": DataSet("mouse granule neurons", "jrc_mus-granule-neurons", inverted_8bit=True),
    "jrc_mus-hippocampus-2": DataSet("mouse hippocampus", "jrc_mus-hippocampus", inverted_8bit=True),
    "jrc_mus-hippocampus-3": DataSet("mouse hippocampus", "jrc_mus-hippocampus", inverted_8bit=True),
}

# what option datasets=all means where the server does not list: the collections with ground truth or segmentations
PROBED = tuple(DATASETS)[: list(DATASETS).index("jrc_mus-pancreas-1")]


def describe(name: str) -> DataSet:
    """Return what is known about a data set; one that is not listed is a specimen of its own."""
    return DATASETS.get(name, DataSet("see OpenOrganelle"))


def specimen_of(name: str) -> str:
    """Return the specimen group: data sets that may show the same preparation share it."""
    return describe(name).specimen or name


def inverted(name: str, bits: int) -> bool:
    """True if the array shows heavy metal bright, so that it has to be inverted to look like other EM.

    8 bit: the declared list. More: the raw detector signal, inverted in every manifest that was checked (jrc_hela-2,
    jrc_hela-3, jrc_jurkat-1, jrc_macrophage-2, jrc_mus-pancreas-1).
    """
    return bits > 8 or describe(name).inverted_8bit
