"""OpenOrganelle: whole cells and tissues by FIB-SEM, with ground-truth crops and whole-volume segmentations.

Read in place from the public bucket, over S3 or HTTPS, or from a local copy; only the chunks that are needed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from dataset_builder.openorganelle.classes import EXTRAS
from dataset_builder.openorganelle.datasets import DATASETS, PROBED
from dataset_builder.openorganelle.options import BUCKET, SETTINGS, Options
from dataset_builder.source import Source
from em_bench_eval.errors import InputError, unknown_name
from em_bench_eval.schema import Organelle, SourceInfo, Volume

if TYPE_CHECKING:
    from dataset_builder.openorganelle.plan import Plan
    from dataset_builder.openorganelle.store import Store

PLANNED_AT_ONCE = 8  # volumes
INFO = SourceInfo(
    name="openorganelle",
    title="OpenOrganelle (HHMI Janelia; COSEM and CellMap)",
    citation="""@article{heinrich2021,
  author = {Heinrich, Larissa and Bennett, Davis and Ackerman, David and others},
  title = {Whole-cell organelle segmentation in volume electron microscopy}, journal = {Nature}, volume = {599},
  pages = {141--146}, year = {2021}, doi = {10.1038/s41586-021-03977-3}
}
@article{xu2021,
  author = {Xu, C. Shan and Pang, Song and Shtengel, Gleb and others},
  title = {An open-access volume electron microscopy atlas of whole cells and tissues}, journal = {Nature},
  volume = {599}, pages = {147--151}, year = {2021}, doi = {10.1038/s41586-021-03992-4}
}
@article{muller2021,
  author = {M{\\"u}ller, Andreas and Schmidt, Deborah and Xu, C. Shan and others},
  title = {{3D} {FIB-SEM} reconstruction of microtubule-organelle interaction in whole primary mouse {$\\beta$} cells},
  journal = {Journal of Cell Biology}, volume = {220}, number = {2}, year = {2021}, doi = {10.1083/jcb.202010039}
}""",
    licence="CC-BY-4.0",
    url="https://openorganelle.janelia.org/",
    redistributable=True,
    modality="FIB-SEM, ssTEM",
    annotated=dict.fromkeys(Organelle, "manual+lpa"),
    notes="What is annotated and how differs by crop and data set: ground-truth crops are drawn by hand, whole-volume "
    "segmentations are made by models. The nuclear envelope counts as nucleus (option ne) and lysosomes are no "
    "endosomes (option lyso). Crops of one data set touch and overlap: folds are cut at common z positions of "
    "the data set. jrc_mus-pancreas-* share the specimen group of betaseg.",
)
LAYOUT = """  janelia-cosem-datasets/      a copy of the bucket, or of the parts that are needed
    {ds}/{ds}.zarr/recon-1/    OME-Zarr: em/fibsem-uint8/s0, labels/groundtruth/crop1/mito/s0,
                               labels/inference/segmentations/mito/s0
    {ds}/{ds}.n5/              N5: em/fibsem-uint16/s0, labels/mito_seg/s0
    {ds}/{ds}.n5/volumes/      N5, publication of 2021: raw/s0, groundtruth/0003/crop1/labels/all"""


def volumes(raw: Path | None, options: Mapping[str, str]) -> Iterator[Volume]:
    """Find, quote and then yield the volumes; the options are checked at once.

    Raises ``InputError`` for a bad option, a data set or crop that is not there, a server that does not answer, and a
    quote above the option ``max_gb``.
    """
    return _volumes(raw, Options.of(options))


def _volumes(raw: Path | None, options: Options) -> Iterator[Volume]:
    from dataset_builder.openorganelle.assemble import frames_of, volume_of
    from dataset_builder.openorganelle.store import Store

    store = Store(options.root or raw or BUCKET)
    plans = _plans(store, options)
    stored, voxels = sum(plan.stored_bytes for plan in plans), sum(plan.voxels for plan in plans)
    quote = (
        f"{len(plans)} volumes, {voxels / 1e6:,.1f} million voxels, {stored / 1e6:,.1f} MB to read from {store.root}"
    )
    if stored > options.max_bytes:
        raise InputError(
            "this would read more than option max_gb allows",
            found=quote,
            expected=f"at most {options.max_bytes / 1e9:g} GB",
            remedy="name a region_nm, fewer datasets or crops, or voxel_nm (8 is the benchmark's); or raise it",
        )
    _say(quote)
    frames = frames_of(plans)
    for plan in plans:
        yield volume_of(store, plan, options, frames[plan.found.dataset])


def _plans(store: Store, options: Options) -> list[Plan]:
    """Look for the data sets and plan their volumes, several at a time: a server's answers take their time."""
    from dataset_builder.openorganelle import layout
    from dataset_builder.openorganelle.plan import plan_crop, plan_segmentation

    tasks: dict[str, Callable[[], Plan | str]] = {}
    crops: set[str] = set()
    names = options.datasets or tuple(layout.data_sets(store, PROBED))
    for name in tqdm(names, "openorganelle: looking for arrays", unit="data set"):
        found = layout.find(store, name, options.labels, options.crops)
        if found is None:
            if options.datasets:
                raise layout.not_found(store, name, options.labels, [*DATASETS, *layout.data_sets(store, ())])
            continue
        labels = ", ".join(found.segmentations) or f"{len(found.crops)} crops"
        _say(f"{found.base}: {found.images[0].removeprefix(found.base)}; {labels}")
        if found.segmentations:
            tasks[name] = partial(plan_segmentation, store, found, options)
        for key in found.crops:
            crop = key.rpartition("/")[2]
            crops.add(crop)
            if not options.crops or crop in options.crops:
                tasks[f"{name} {crop}"] = partial(plan_crop, store, found, key, options)
    for crop in options.crops:
        if options.labels == "groundtruth" and crop not in crops:
            raise unknown_name("crop", crop, crops or {"(none was found)"})
    plans: list[Plan] = []
    left_out: list[str] = []
    with ThreadPoolExecutor(PLANNED_AT_ONCE) as pool:
        running = {name: pool.submit(task) for name, task in tasks.items()}
        for name, future in tqdm(running.items(), "openorganelle: chunks needed", unit="volume"):
            plan = future.result()
            if isinstance(plan, str):
                left_out.append(f"{name}: {plan}")
                _say(f"left out: {left_out[-1]}")
            else:
                plans.append(plan)
    if not plans:
        raise InputError(
            f"{store.root} holds no volume that fits the options",
            found="; ".join(left_out[:3]) or f"no {options.labels} in {len(names)} data sets",
            expected="a volume in the region with one of the five organelles annotated",
            remedy="check datasets, labels, crops and region_nm; em-bench sources openorganelle draws the layout"
            + (f". The server does not list ({store.cannot_list}): name crops" if store.cannot_list else ""),
        )
    return plans


def _say(text: str) -> None:
    tqdm.write(f"openorganelle: {text}", sys.stderr)


SOURCE = Source(
    info=INFO,
    volumes=volumes,
    folders=("janelia-cosem-datasets", "openorganelle"),
    layout=LAYOUT,
    settings=SETTINGS,
    extras=EXTRAS,
    remote=True,
)
