"""The options of the source, read and checked before anything is asked of a server."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from dataset_builder.openorganelle.classes import LYSO_RULES, NE_RULES, Rules
from dataset_builder.openorganelle.grids import Extent, parse_extent
from dataset_builder.source import Option
from em_bench_eval.errors import InputError, unknown_name

BUCKET = "s3://janelia-cosem-datasets"
SETTINGS: Mapping[str, Option] = {
    "datasets": Option("all", "names with commas between, or all that the root lists"),
    "labels": Option("groundtruth", "groundtruth: crops drawn by hand; or segmentation: whole volumes, made by models"),
    "crops": Option("all", "ground truth: names with commas between, or all"),
    "region_nm": Option("", "z0:z1,y0:y1,x0:x1 in nm, in the data set's coordinates; nothing is read outside of it"),
    "context_nm": Option("0", "nm of image around a crop, ignored by losses and metrics"),
    "voxel_nm": Option("native", "nm: the image level nearest to this; finer ones are not read; or native, the finest"),
    "grid": Option("em", "em: labels on the image's voxels; or labels: the crop's own, finer grid, image interpolated"),
    "ne": Option(NE_RULES[0], f"what the nuclear envelope counts as: {' or '.join(NE_RULES)}"),
    "lyso": Option(LYSO_RULES[0], "lysosomes: separate, an extra beside the five; or endo, counted as endosomes"),
    "em": Option("", "name of the image array, where the one that is chosen is wrong"),
    "window": Option("", "low:high, intensities of a 16-bit image that become 0 and 255, as 24444:34078"),
    "invert": Option("declared", "yes or no: turn the image's gray values round; declared: as known of the data set"),
    "max_gb": Option("50", "GB of stored chunks that a build may read; more is refused before anything is read"),
    "root": Option("", "folder or URL that holds the data sets; none: the copy below --raw, else the public bucket"),
}


@dataclass(frozen=True)
class Options:
    """The options of one build, in units."""

    datasets: tuple[str, ...]  # empty: all
    labels: str
    crops: tuple[str, ...]  # empty: all
    region_nm: Extent | None
    context_nm: float
    voxel_nm: float | None  # None: the finest level
    grid: str
    rules: Rules
    em: str
    window: tuple[float, float] | None
    invert: bool | None  # None: as declared
    max_bytes: float
    root: str

    @classmethod
    def of(cls, options: Mapping[str, str]) -> Options:
        """Read the options as given on the command line; raises ``InputError``."""
        native = options["voxel_nm"].strip() == "native"
        return cls(
            datasets=_names(options["datasets"]),
            labels=_one_of("labels", options, ("groundtruth", "segmentation")),
            crops=_names(options["crops"]),
            region_nm=parse_extent(options["region_nm"]),
            context_nm=_number("context_nm", options, smallest=0.0),
            voxel_nm=None if native else _number("voxel_nm", options, above=0.0, also="native"),
            grid=_one_of("grid", options, ("em", "labels")),
            rules=Rules(_one_of("ne", options, NE_RULES), _one_of("lyso", options, LYSO_RULES)),
            em=options["em"].strip(),
            window=_window(options["window"]),
            invert={"declared": None, "yes": True, "no": False}[_one_of("invert", options, ("declared", "yes", "no"))],
            max_bytes=_number("max_gb", options, above=0.0) * 1e9,
            root=options["root"].strip(),
        )


def _names(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    if not names:
        raise InputError("a list of names is empty", found=repr(text), expected="names with commas between, or all")
    return () if names == ("all",) else tuple(dict.fromkeys(names))


def _one_of(name: str, options: Mapping[str, str], allowed: tuple[str, ...]) -> str:
    value = options[name].strip()
    if value not in allowed:
        raise unknown_name(f"value of option {name} of source openorganelle", value, allowed)
    return value


def _number(
    name: str, options: Mapping[str, str], *, smallest: float = -math.inf, above: float = -math.inf, also: str = ""
) -> float:
    try:
        value = float(options[name])
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value >= smallest and value > above):
        bound = f"of at least {smallest:g}" if smallest > -math.inf else f"greater than {above:g}"
        raise InputError(
            f"option {name} of source openorganelle cannot be read",
            found=repr(options[name]),
            expected=f"a number {bound}" + (f", or {also}" if also else ""),
        )
    return value


def _window(text: str) -> tuple[float, float] | None:
    if not text.strip():
        return None
    try:
        low, high = (float(end) for end in text.split(":"))
    except ValueError:
        low = high = math.nan
    if not low < high:
        raise InputError(
            "option window of source openorganelle cannot be read",
            found=repr(text),
            expected="low:high, the intensities that become black and white, as window=24444:34078",
        )
    return low, high
