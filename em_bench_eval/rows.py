"""Rows of the published dataset and of prediction folders, decoded to arrays and back.

This is the only place where columns become arrays: training, inference, scoring and reports all read rows here.
``datasets``, ``pyarrow`` and ``PIL`` are imported where they are used.
"""

from __future__ import annotations

import io
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import InputError
from .schema import Organelle, Prediction, parse_record_id, record_id

PREDICTIONS_FILE = "predictions.parquet"
PREDICTION_INFO_FILE = "prediction.json"
ID_COLUMNS = ["volume_id", "axis", "slice", "offset"]  # what ``row_id`` reads


@dataclass(frozen=True)
class LabelledImage:
    """A decoded row: what training needs to learn from it and scoring needs to judge it."""

    record_id: str
    image: npt.NDArray[np.uint8]  # (y, x)
    instances: npt.NDArray[np.uint16]  # (y, x), ids 1..N
    organelle_of: dict[int, Organelle]  # id in ``instances`` -> organelle
    annotated: frozenset[Organelle]
    ignore: npt.NDArray[np.bool_]  # (y, x), True = not annotated
    pixel_size_nm: tuple[float, float]  # (y, x)
    source: str
    specimen: str
    domain: str
    fold: str
    labelled: bool = True  # False: its labels are private, so nothing is annotated and all of it is to be ignored


def encode_png(array: npt.NDArray[np.generic]) -> bytes:
    """Encode a ``(y, x)`` uint8, bool or uint16 array as a gray PNG (8 or 16 bit), deterministically.

    EM noise repeats nothing, and in label maps the last pixel and the row above (PNG's filters) say all that earlier
    ones could: looking for runs only (``Z_RLE``) makes files of the same size up to three times as fast.
    """
    import zlib

    from PIL import Image

    if array.dtype == np.bool_:
        array = array.astype(np.uint8) * np.uint8(255)
    if array.dtype not in (np.dtype(np.uint8), np.dtype(np.uint16)) or array.ndim != 2:
        raise TypeError(f"a PNG column takes a (y, x) uint8 or uint16 array, found {array.shape} {array.dtype}")
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(array)).save(buffer, format="PNG", compress_type=zlib.Z_RLE)
    return buffer.getvalue()


def decode_png(cell: object) -> npt.NDArray[Any]:
    """Decode an image cell: PNG bytes, ``{"bytes": ..., "path": ...}`` or a PIL image; returns ``(y, x)``."""
    from PIL import Image

    if isinstance(cell, Mapping):
        cell = cell["bytes"] if cell.get("bytes") is not None else Path(cell["path"]).read_bytes()
    if isinstance(cell, (bytes, bytearray, memoryview)):
        cell = Image.open(io.BytesIO(bytes(cell)))
    return np.asarray(cell)


def open_rows(dataset: str | os.PathLike[str], config: str, split: str, *, streaming: bool = False) -> Any:
    """Open a split of a dataset folder or Hub dataset with ``datasets.load_dataset``; images stay encoded.

    Raises ``InputError`` if the folder is no dataset, or has no such configuration or split.
    """
    import datasets

    name = os.fspath(dataset)
    if not Path(name).is_dir() and name.count("/") != 1:
        # datasets would fall back on whatever its cache holds under that name
        raise no_dataset(name, "no such folder")
    if Path(name).is_dir() and not (Path(name) / "README.md").is_file():
        raise InputError(
            f"{name} is not a dataset folder",
            found="no README.md (the card that declares its configurations)",
            expected="a folder written by `em-bench build`",
            remedy="name the folder that `em-bench build --out` wrote",
        )
    try:
        rows = datasets.load_dataset(name, config, split=split, streaming=streaming)
    except ValueError as error:  # unknown configuration or split: the message of datasets lists the known ones
        raise InputError(f"cannot open {name}", found=str(error), remedy="check --config and --split") from error
    except (FileNotFoundError, ConnectionError) as error:  # DatasetNotFoundError is a FileNotFoundError
        raise no_dataset(name, f"no such folder, and not on the Hub: {error}") from error
    for column in ("image", "instances", "ignore"):
        rows = rows.cast_column(column, datasets.Image(decode=False))
    return rows


def no_dataset(name: str, found: str) -> InputError:
    """Return the fault of a dataset that cannot be found."""
    return InputError(
        f"there is no dataset {name!r}",
        found=found,
        expected="a folder written by `em-bench build`, or <org>/em-organelle-wild on the Hub",
        remedy="build it first: em-bench build --source phantom --out em-organelle-wild",
    )


def decode_row(row: Mapping[str, Any]) -> LabelledImage:
    """Decode one dataset row, whether its images are still encoded or already PIL images."""
    image = decode_png(row["image"])
    ignore, labels = row.get("ignore"), row["instances"]
    labelled = labels is not None and not (isinstance(labels, Mapping) and not any(labels.values()))
    return LabelledImage(
        record_id=row_id(row),
        image=image.astype(np.uint8, copy=False),
        instances=decode_png(labels).astype(np.uint16, copy=False) if labelled else np.zeros(image.shape, np.uint16),
        organelle_of={int(entry["id"]): Organelle(entry["organelle"]) for entry in row["objects"]},
        annotated=frozenset(Organelle(name) for name in row["annotated"] if labelled),
        ignore=np.full(image.shape, not labelled) if ignore is None else decode_png(ignore) > 0,
        pixel_size_nm=(float(row["pixel_size_nm"][0]), float(row["pixel_size_nm"][1])),
        source=row["source"],
        specimen=row["specimen"],
        domain=row["domain"],
        fold=row["fold"],
        labelled=labelled,
    )


def labels_are_private(where: str) -> InputError:
    """Build the error for whoever needs labels that the public dataset does not show."""
    return InputError(
        f"the labels of {where} are private",
        found="images without labels",
        expected="a split with labels",
        remedy="score on the validation split (--split validation), or submit: em-bench validate PRED --draft, then "
        "em-bench submit PRED; maintainers name the private dataset",
    )


def row_id(row: Mapping[str, Any]) -> str:
    """Name a dataset or prediction row from its columns ``ID_COLUMNS``; see ``schema.record_id``."""
    return record_id(row["volume_id"], row["axis"], int(row["slice"]), row.get("offset") or (0, 0))


def write_predictions(
    folder: str | os.PathLike[str], predictions: Iterable[Prediction], info: Mapping[str, object]
) -> int:
    """Write predictions of 2D rows as ``predictions.parquet`` plus ``prediction.json``; return their number.

    Both appear under their names only when complete: an interrupted run leaves earlier files untouched. ``info``
    records model, checkpoint, dataset, configuration, split and settings.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    schema = _prediction_schema()
    count = 0
    with tempfile.TemporaryDirectory(prefix=".partial-", dir=target) as partial:
        with pq.ParquetWriter(Path(partial) / PREDICTIONS_FILE, schema, compression="zstd") as writer:
            for prediction in predictions:
                writer.write_table(pa.Table.from_pylist([_prediction_row(prediction)], schema=schema))
                count += 1
        (Path(partial) / PREDICTION_INFO_FILE).write_text(json.dumps({**info, "images": count}, indent=2) + "\n")
        for name in (PREDICTIONS_FILE, PREDICTION_INFO_FILE):
            os.replace(Path(partial) / name, target / name)
    return count


def read_predictions(folder: str | os.PathLike[str]) -> Iterator[Prediction]:
    """Yield the predictions of a folder one at a time, in the order written."""
    import pyarrow.parquet as pq

    path = Path(folder) / PREDICTIONS_FILE
    _require_predictions(path)
    for batch in pq.ParquetFile(path).iter_batches(batch_size=8):
        for row in batch.to_pylist():
            yield Prediction(
                record_id=row_id(row),
                instances=decode_png(row["instances"]).astype(np.uint32),
                organelle_of={e["id"]: Organelle(e["organelle"]) for e in row["objects"] if e["organelle"] is not None},
                confidence_of={entry["id"]: entry["confidence"] for entry in row["objects"]},
            )


def read_prediction_info(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Return ``prediction.json``: which model predicted which split of which dataset, and how."""
    path = Path(folder) / PREDICTION_INFO_FILE
    _require_predictions(path)
    info: dict[str, Any] = json.loads(path.read_text())
    return info


def _require_predictions(path: Path) -> None:
    if not path.is_file():
        raise InputError(
            f"{path.parent} is not a prediction folder",
            found=f"no {path.name}",
            expected="a folder written by `em-bench predict`",
            remedy="run `em-bench predict --out` first, or name its folder",
        )


def _prediction_row(prediction: Prediction) -> dict[str, object]:
    volume_id, axis, slice_index, offset = parse_record_id(prediction.record_id)
    organelle_of = {id_: str(organelle) for id_, organelle in prediction.organelle_of.items()}
    if int(prediction.instances.max(initial=0)) > 65535:
        raise InputError(
            f"{prediction.record_id}: too many predicted instances",
            found=f"id {int(prediction.instances.max())}",
            expected="ids 1..65535 (16-bit PNG)",
            remedy="relabel the instances of each image to 1..N, and drop specks with a minimum size",
        )
    return {
        "volume_id": volume_id,
        "axis": axis,
        "slice": slice_index,
        "offset": list(offset),
        "instances": {"bytes": encode_png(prediction.instances.astype(np.uint16)), "path": None},
        "objects": [
            # null: the model finds instances and does not say of what (see class_agnostic)
            {"id": id_, "organelle": organelle_of.get(id_), "confidence": float(prediction.confidence_of.get(id_, 1.0))}
            for id_ in sorted(organelle_of.keys() | prediction.confidence_of.keys())
        ],
    }


def _prediction_schema() -> Any:
    import datasets

    features = datasets.Features(
        {
            "volume_id": datasets.Value("string"),
            "axis": datasets.Value("string"),
            "slice": datasets.Value("int32"),
            "offset": datasets.List(datasets.Value("int32"), length=2),
            "instances": datasets.Image(),
            "objects": datasets.List(
                {
                    "id": datasets.Value("int32"),
                    "organelle": datasets.Value("string"),
                    "confidence": datasets.Value("float32"),
                }
            ),
        }
    )
    return features.arrow_schema
