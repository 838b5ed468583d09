"""Predicting volumes from the command line: those of a dataset's split, or any file; one output layout for both.

::

    OUT/volumes/<id>.zarr       instances (``volume_instances``): what `em-bench score` compares
    OUT/maps/<id>/              probability maps (``map_store``), unless they are discarded
    OUT/instances.parquet       one row per instance of all volumes
    OUT/predictions.parquet     of a dataset: the rows of the split, cut from the volumes' instances
    OUT/prediction.json         of a dataset: what predicted what, and how

An interrupted run goes on when the same command is given again.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from baselines.memory_faults import out_of_memory_as_input_error
from baselines.model import Baseline
from baselines.prediction_settings import (
    DEFAULT,
    TileSettings,
    already_there,
    load_trained,
    prediction_info,
    say_what_cannot_be_scored,
)
from baselines.volumes.map_store import MapStore, open_maps
from baselines.volumes.orthoplane import check_planes, volume_maps
from baselines.volumes.volume_instances import TABLE, Instances, Target, label_maps, read_table, write_table
from baselines.volumes.volume_rows import (
    DatasetVolume,
    Place,
    Uncovered,
    chosen,
    dataset_volumes,
    hull,
    open_dataset_volume,
    places,
    predictions_of_rows,
)
from em_bench_eval.errors import InputError
from em_bench_eval.rows import PREDICTIONS_FILE, open_rows, write_predictions
from em_bench_eval.schema import VoxelSize
from em_bench_eval.volume_io import Opened, open_volume

MAPS, VOLUMES, TABLE_OF_ALL = "maps", "volumes", "instances.parquet"
REMEDY = "use smaller tiles (--tile) or a smaller --batch-size; what is finished is kept"
SUFFIXES = re.compile(r"(\.(ome|nii|zarr|n5|tiff?|gz|h5|hdf5?|mrc|rec|map|png))+$", re.IGNORECASE)


@dataclass(frozen=True)
class VolumeSettings:
    """How volumes are predicted."""

    tiles: TileSettings = DEFAULT
    planes: tuple[str, ...] = ("xy",)
    keep_maps: bool = True
    overwrite: bool = False
    device: torch.device | None = None


DEFAULT_VOLUMES = VolumeSettings()


def predict_split_volumes(
    checkpoint: str,
    dataset: str,
    rows_config: str,
    split: str,
    out: Path,
    settings: VolumeSettings = DEFAULT_VOLUMES,
    *,
    only: Sequence[str] = (),
) -> list[str]:
    """Predict the volumes that a split's rows come from, each in the box that these rows cover.

    Returns the ids of the volumes. ``only`` names some of them; then no ``predictions.parquet`` is written.
    """
    model = load_trained(checkpoint)
    settings = replace(settings, tiles=settings.tiles.of(model))
    rows = open_rows(dataset, rows_config, split)
    info = prediction_info(model, checkpoint, dataset, rows_config, split, settings.tiles, axes=3)
    info["made_of"] = {"what": "volumes", "planes": list(settings.planes)}
    found = places(rows)
    of_volume: dict[str, list[Place]] = {}
    for place in found:
        of_volume.setdefault(place.volume_id, []).append(place)
    names = chosen(only, of_volume)
    if (out / PREDICTIONS_FILE).exists() and not settings.overwrite and not only:
        already_there(out, info)
        return names
    say_what_cannot_be_scored(model, rows, f"{rows_config}/{split}")
    known = dataset_volumes(dataset)
    volumes = {name: open_dataset_volume(dataset, known[name]) for name in names}
    for volume in volumes.values():  # before anything is predicted
        _check(model, volume.image, settings)
    instances: dict[str, Instances] = {}
    for number, (name, volume) in enumerate(volumes.items(), start=1):
        print(f"[{number}/{len(names)}] {name}", file=sys.stderr)
        instances[name] = _predict_part(model, volume, of_volume[name], out, settings)
    write_table(out / TABLE_OF_ALL, instances)
    if not only:
        labels = {name: open_volume(out / VOLUMES / f"{name}.zarr" / "labels" / "instances") for name in names}
        write_predictions(out, predictions_of_rows(found, labels, instances), info)
    return names


def predict_file(
    checkpoint: str,
    location: str,
    out: Path,
    settings: VolumeSettings = DEFAULT_VOLUMES,
    voxel_size_nm: VoxelSize | None = None,
) -> str:
    """Predict any volume that ``em_bench_eval.volume_io`` opens; return its name in ``out``."""
    model = load_trained(checkpoint)
    settings = replace(settings, tiles=settings.tiles.of(model))
    opened = open_volume(location)
    size = voxel_size_nm or opened.voxel_size_nm
    if size is None:
        raise InputError(
            f"{location} does not say how large its voxels are",
            found="; ".join(opened.notes) or f"a {opened.format} volume without a voxel size",
            expected=f"edges in nm: the network sees {model.config.pixel_size_nm:g} nm per pixel",
            remedy="give them: --voxel-size-nm Z,Y,X",
        )
    if opened.dtype.kind not in "uif" or 0 in opened.shape:
        raise InputError(
            f"{location} is no gray image",
            found=f"{opened.dtype}, shape {opened.shape} (z, y, x)",
            expected="gray values, and at least one voxel",
        )
    name = volume_name(location)
    _check(model, opened, settings, size)
    about = {"annotated": list(model.config.trained_organelles), "source": name}
    target = Target(
        out / VOLUMES / f"{name}.zarr", name, opened.shape, origin_nm=opened.translation_nm or (0.0, 0.0, 0.0)
    )
    write_table(out / TABLE_OF_ALL, {name: _predict(model, opened, size, target, out, settings, about)})
    return name


def volume_name(location: str) -> str:
    """Name a volume by the last part of its location, without suffix: ``cell.nii.gz`` is ``cell``."""
    parts = [part for part in re.split(r"[/\\:]", location) if part]
    name = SUFFIXES.sub("", parts[-1]) if parts else ""
    return re.sub(r"[^A-Za-z0-9_.-]", "_", name) or "volume"


def _predict_part(
    model: Baseline, volume: DatasetVolume, of: Sequence[Place], out: Path, settings: VolumeSettings
) -> Instances:
    """Predict the box of a dataset's volume that some rows lie in."""
    box = hull(of)
    (z0, z1), (y0, y1), (x0, x1) = ((side.start, side.stop) for side in box)
    part = volume.image.crop((z0, z1), (y0, y1), (x0, x1))
    size = part.voxel_size_nm
    assert size is not None  # _check
    uncovered = Uncovered(of, volume.unannotated)
    target = Target(
        out / VOLUMES / f"{volume.volume_id}.zarr",
        volume.volume_id,
        volume.image.shape,
        (z0, y0, x0),
        volume.image.translation_nm or (0.0, 0.0, 0.0),
        uncovered if uncovered.is_needed(volume.image.shape) else None,
    )
    about = {
        "source": volume.volume_id,
        "annotated": list(model.config.trained_organelles),
        "predicted_box": [[side.start, side.stop] for side in box],
    }
    return _predict(model, part, size, target, out, settings, about)


def _predict(
    model: Baseline,
    image: Opened,
    size: VoxelSize,
    target: Target,
    out: Path,
    settings: VolumeSettings,
    about: Mapping[str, Any],
) -> Instances:
    """Maps, then instances; finished volumes of the same prediction are not done again."""
    folder = out / MAPS / target.name
    with out_of_memory_as_input_error(f"predicting {target.name}", REMEDY):
        described = {**about, "made_by": _made_by(model, settings)}
        if target.path.exists():
            if _attributes(target.path).get("made_by") == described["made_by"]:
                return read_table(target.path / TABLE)
            if not settings.overwrite:
                raise InputError(
                    f"{target.path} holds another prediction",
                    expected="the same weights and settings, to go on with it",
                    remedy="name another folder with --out, or replace it with --overwrite",
                )
        store = _maps(model, image, size, folder, settings, about)
        instances = label_maps(store, target, wanted=settings.tiles.decoder, about=described)
    if not settings.keep_maps:
        shutil.rmtree(folder)
    return instances


def _maps(
    model: Baseline, image: Opened, size: VoxelSize, folder: Path, settings: VolumeSettings, about: Mapping[str, Any]
) -> MapStore:
    source = json.dumps(about, sort_keys=True)
    made: dict[str, Any] = {
        "planes": settings.planes,
        "origin_nm": image.translation_nm or (0.0, 0.0, 0.0),
        "source": source,
        "device": settings.device,
    }
    try:
        return volume_maps(model, image, size, folder, settings.tiles, **made)
    except InputError as error:
        if not settings.overwrite or "holds other maps" not in error.problem:
            raise
    shutil.rmtree(folder)
    return volume_maps(model, image, size, folder, settings.tiles, **made)


def _check(model: Baseline, image: Opened, settings: VolumeSettings, size: VoxelSize | None = None) -> None:
    known = size or image.voxel_size_nm
    if known is None:
        raise InputError(f"{image.location} states no voxel size", remedy="build the dataset again")
    check_planes(model, settings.planes, known)


def _made_by(model: Baseline, settings: VolumeSettings) -> str:
    """Digest of what decides a volume's instances, besides the volume."""
    info = prediction_info(model, "", "", "", "", settings.tiles, axes=3)
    text = json.dumps({"info": info, "planes": settings.planes}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _attributes(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads((path / "zarr.json").read_text())["attributes"]["em_organelle_wild"]
    except (OSError, ValueError, KeyError):
        return {}
    return found


def maps_of(out: Path, name: str) -> MapStore:
    """Open the maps that a prediction kept."""
    return open_maps(out / MAPS / name)
