"""Small submissions of every form, made from predictions of a dataset's split."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from em_bench_eval.leaderboard.items import Expected, split_hash
from em_bench_eval.leaderboard.rle import packed, runs_of
from em_bench_eval.rows import LabelledImage, encode_png, write_predictions
from em_bench_eval.schema import Organelle, Prediction, parse_record_id

CONFIG, SPLIT = "wild", "test"
INFO = {"model": "unet", "checkpoint": "runs/unet", "dataset": "em-organelle-wild", "config": CONFIG, "split": SPLIT}


def perfect(image: LabelledImage) -> Prediction:
    return Prediction(image.record_id, image.instances.astype(np.uint32), image.organelle_of)


def damaged(image: LabelledImage) -> Prediction:
    """Every third instance missing, the rest two pixels off."""
    labels = np.roll(np.where(image.instances % 3 == 1, 0, image.instances), 2, axis=1).astype(np.uint32)
    ids = [int(id_) for id_ in np.unique(labels) if id_]
    return Prediction(image.record_id, labels, {id_: image.organelle_of[id_] for id_ in ids}, dict.fromkeys(ids, 0.5))


def manifest(expected: Expected | None = None, **changed: Any) -> str:
    values: dict[str, Any] = {
        "format": "em-organelle-wild submission v1",
        "model": "U-Net (ours)",
        "team": "A laboratory",
        "paper": "https://doi.org/10.1000/182",
        "code": "none",
        "training_data": ["em-organelle-wild wild/train"],
        "prompts": "none",
        "compute": "one GPU, 6 h",
        "config": CONFIG,
        "split": SPLIT,
        "split_hash": "0" * 64 if expected is None else split_hash(expected.items.values()),
        **changed,
    }
    return "".join(f"{name}: {json.dumps(value)}\n" for name, value in values.items() if value is not None)


def as_parquet(folder: Path, predictions: Iterable[Prediction]) -> None:
    write_predictions(folder, predictions, INFO)


def as_png(folder: Path, predictions: Iterable[Prediction]) -> None:
    with (folder / "objects.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["record_id", "id", "organelle", "confidence"])
        for one in predictions:
            path = folder / "instances" / f"{one.record_id}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encode_png(one.instances.astype(np.uint16)))
            for id_, organelle in one.organelle_of.items():
                table.writerow([one.record_id, id_, str(organelle), one.confidence_of.get(id_, 1.0)])


def coco(predictions: Iterable[Prediction], *, pack: bool = True) -> dict[str, Any]:
    images, annotations = [], []
    for number, one in enumerate(predictions):
        height, width = one.instances.shape
        images.append({"id": number, "file_name": f"{one.record_id}.png", "height": height, "width": width})
        for id_, organelle in one.organelle_of.items():
            runs = runs_of(one.instances == id_)
            annotations.append(
                {
                    "image_id": number,
                    "category_id": Organelle(organelle).label_id,
                    "segmentation": {"size": [height, width], "counts": packed(runs) if pack else runs},
                    "score": one.confidence_of.get(id_, 1.0),
                }
            )
    return {"images": images, "annotations": annotations}


def as_coco(folder: Path, predictions: Iterable[Prediction]) -> None:
    (folder / "coco.json").write_text(json.dumps(coco(predictions)))


def write_zarr(path: Path, labels: np.ndarray[Any, Any], **spec: Any) -> None:
    """A zarr v2 array, or v3 with ``driver="zarr3"``."""
    import tensorstore as ts

    store = {"driver": "zarr", "kvstore": {"driver": "file", "path": f"{path}/"}, **spec}
    array = ts.open(store, create=True, dtype=labels.dtype.name, shape=labels.shape).result()
    array.write(labels).result()


def as_zarr(folder: Path, predictions: Sequence[Prediction], expected: Expected) -> None:
    """Put images back into volumes: ids of an image and an organelle become ids of the volume."""
    volumes: dict[str, np.ndarray[Any, Any]] = {}
    objects: dict[str, dict[str, str]] = {}
    for one in predictions:
        volume_id, axis, index, (y, x) = parse_record_id(one.record_id)
        labels = volumes.setdefault(volume_id, np.zeros(expected.volumes[volume_id].shape, np.uint32))
        named = objects.setdefault(volume_id, {})
        first = len(named)
        plane = np.zeros(one.instances.shape, np.uint32)
        for place, (id_, organelle) in enumerate(sorted(one.organelle_of.items()), start=1):
            plane[one.instances == id_] = first + place
            named[str(first + place)] = str(organelle)
        box: list[int | slice] = [slice(y, y + plane.shape[0]), slice(x, x + plane.shape[1])]
        box.insert("zyx".index(axis), index)
        labels[tuple(box)] = plane
    for place, (volume_id, labels) in enumerate(sorted(volumes.items())):
        driver = {"driver": "zarr3"} if place % 2 else {}
        write_zarr(folder / "volumes" / f"{volume_id}.zarr", labels, **driver)
    (folder / "objects.json").write_text(json.dumps(objects))


FORMS: dict[str, Callable[..., None]] = {"parquet": as_parquet, "png": as_png, "coco": as_coco, "zarr": as_zarr}


def write(folder: Path, form: str, predictions: Sequence[Prediction], expected: Expected, **changed: Any) -> Path:
    """Write a submission of a form; ``changed`` are keys of the manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    FORMS[form](folder, predictions, *([expected] if form == "zarr" else []))
    (folder / "submission.yaml").write_text(manifest(expected, **changed))
    return folder
