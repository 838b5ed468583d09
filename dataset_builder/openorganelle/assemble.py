"""From a plan to a lazy volume: one survey of its labels, then arrays that are read on demand."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from dataset_builder.openorganelle import datasets
from dataset_builder.openorganelle.images import MEASURED_VOXELS, EmImage, Gray, gray_of
from dataset_builder.openorganelle.labels import (
    PARTIAL,
    Composition,
    Extra,
    Ignore,
    Instances,
    Semantic,
    Survey,
    overlaps_text,
)
from dataset_builder.openorganelle.layers import Layer
from dataset_builder.openorganelle.options import Options
from dataset_builder.openorganelle.plan import Plan
from dataset_builder.openorganelle.store import Store
from em_bench_eval.schema import AnnotationType, Frame, Organelle, Span, Volume, VoxelSize

SOURCE_NAME = "openorganelle"
WITH_LPA: dict[AnnotationType, AnnotationType] = {
    "manual": "manual+lpa",
    "refined": "refined+lpa",
    "model": "model+lpa",
}


def frames_of(plans: Iterable[Plan]) -> dict[str, Frame]:
    """Return the frame of each data set: all arrays of one state their positions in the same nm.

    What the volumes cover is the output's grid, ascending whichever way it is stored, with the context around crops.
    """
    spans: dict[str, list[Span]] = {}
    for plan in plans:
        z = plan.grid.z
        spans.setdefault(plan.found.dataset, []).append(Span(z.extent_nm[0], z.step_nm, z.size))
    return {name: Frame(name, tuple(of_data_set)) for name, of_data_set in spans.items()}


def volume_of(store: Store, plan: Plan, options: Options, frame: Frame) -> Volume:
    """Survey the labels of a plan and return its volume.

    Published instance ids are kept if every organelle has them; if one has a mask only, all are published as classes
    and become instances by label propagation, because a volume holds one kind or the other.
    """
    name = plan.found.dataset
    gray = _gray(store, plan, options)
    image = EmImage(plan.image, gray, plan.grid)
    composition = Composition(plan.parts, plan.grid, options.rules.precedence)
    survey = composition.survey(f"{name} {plan.name}")
    annotation = dict(plan.annotation)
    if any(part.table is not None for part in composition.parts):
        for organelle in Organelle:
            if survey.voxels[organelle]:
                annotation.setdefault(organelle, "manual")
    with_ids = _all_have_ids(composition, survey)
    z, y, x = plan.grid.extent_nm
    instances = Instances(composition, survey) if with_ids else None
    without_ids = with_ids and survey.without_id > 0
    ignored = survey.unknown > 0 or bool(plan.image.missing) or without_ids
    kinds = {organelle: annotation[organelle] for organelle in Organelle if organelle in annotation}
    return Volume(
        volume_id=f"{SOURCE_NAME}-{name}-{plan.name}",
        image=image,
        voxel_size=VoxelSize(*plan.grid.voxel_nm),
        source=SOURCE_NAME,
        specimen=datasets.specimen_of(name),
        cell_type=datasets.describe(name).cell_type,
        modality="ssTEM" if _image_name(plan).startswith("tem-") else "FIB-SEM",
        annotated=kinds if with_ids else {organelle: WITH_LPA[kind] for organelle, kind in kinds.items()},
        semantic=None if with_ids else Semantic(composition),
        instances=instances,
        organelle_of={} if instances is None else instances.organelle_of,
        ignore=Ignore(composition, image, without_ids) if ignored else None,
        provenance=_provenance(store, plan, options, gray, survey, composition, with_ids),
        extras={part.structure: Extra(part, plan.grid) for part in plan.extras},
        frame=frame,
        origin_nm=(z[0], y[0], x[0]),
    )


def _gray(store: Store, plan: Plan, options: Options) -> Gray:
    known = datasets.describe(plan.found.dataset)
    bits = plan.image.dtype.itemsize * 8
    is_fibsem = not _image_name(plan).startswith("tem-")
    inverted = datasets.inverted(plan.found.dataset, bits) and is_fibsem if options.invert is None else options.invert
    declared = options.window or (known.window_16bit if plan.image.dtype == np.uint16 else None)
    coarse = plan.image
    if bits > 8 and declared is None:
        for level in plan.image_pyramid.levels:
            coarse = Layer(store, level)
            if math.prod(coarse.grid.shape) <= MEASURED_VOXELS:
                break
    return gray_of(plan.image, coarse, declared, inverted)


def _all_have_ids(composition: Composition, survey: Survey) -> bool:
    """True if the array of every organelle tells instances apart; the envelope's and lysosomes' need not."""
    lyso_is_endo = any(part.structure == "lyso" for part in composition.parts)
    main = [(number, part) for number, part in enumerate(composition.parts) if part.structure not in PARTIAL]
    return not lyso_is_endo and all(survey.has_ids(number, part) for number, part in main)


def _image_name(plan: Plan) -> str:
    return plan.image_pyramid.key.rpartition("/")[2]


def _provenance(
    store: Store,
    plan: Plan,
    options: Options,
    gray: Gray,
    survey: Survey,
    composition: Composition,
    with_ids: bool,
) -> dict[str, str]:
    known = datasets.describe(plan.found.dataset)
    finest = plan.image_pyramid.levels[0].placement.scale_nm
    states = tuple(abs(nm) for nm in finest)
    told = {
        "raw": store.published(plan.image.key),
        "raw_grid": str(plan.image.grid),
        "grid": f"{plan.grid}; of the {'labels, image interpolated' if options.grid == 'labels' else 'image'}",
        "extent_nm": ",".join(f"{low:g}:{high:g}" for low, high in plan.grid.extent_nm),
        "discovery": f"declared names were tried: {store.cannot_list}" if store.cannot_list else "listed",
        "layout": plan.found.layout.name,
        "inverted": "yes" if gray.window.low > gray.window.high or gray.inverted else "no",
        "rules": str(options.rules),
        "precedence": " > ".join(map(str, composition.precedence)),
        "overlaps": overlaps_text(survey.overlaps),
        "voxels": ", ".join(f"{organelle} {survey.voxels[organelle]}" for organelle in _present(survey)) or "none",
        "unknown_voxels": str(survey.unknown),
        "ids": "published" if with_ids else "label propagation: not every organelle has published ids",
        "chunks_missing_in_image": _chunks(
            plan.image_stored.missing, plan.image_stored.chunks, plan.image_stored.checked
        ),
        **gray.window.provenance(),
        **plan.notes,
    }
    if known.voxel_nm is not None and any(abs(a / b - 1) > 0.01 for a, b in zip(states, known.voxel_nm, strict=True)):
        told["voxel_size_differs"] = f"states {states}, the manifests {known.voxel_nm} nm"
    for part, stored in zip(plan.parts, plan.labels_stored, strict=True):
        told[f"labels:{part.array}"] = (
            f"{store.published(part.layer.key)}; {part.layer.grid}; {_resampling(part.layer, plan)}; chunks not "
            + (f"stored (background): {_chunks(stored.missing, stored.chunks, stored.checked)}")
        )
    return told


def _present(survey: Survey) -> list[Organelle]:
    """Organelles that occur, in the order of the schema."""
    return [organelle for organelle in Organelle if survey.voxels[organelle]]


def _chunks(missing: frozenset[tuple[int, int, int]], chunks: int, checked: bool) -> str:
    return f"{len(missing)} of {chunks}" if checked else f"unknown, {chunks} are too many to ask for"


def _resampling(layer: Layer, plan: Plan) -> str:
    """Say what becomes of the label voxels: finer truth is not thrown away silently."""
    ratio = math.prod(plan.grid.voxel_nm) / math.prod(layer.grid.voxel_nm)
    if ratio > 1.05:
        return f"finer than the output: nearest keeps 1 voxel of {ratio:.3g} (option grid=labels keeps all)"
    if ratio < 0.95:
        return f"coarser than the output: each voxel is repeated {1 / ratio:.3g} times"
    return "one voxel for one voxel"
